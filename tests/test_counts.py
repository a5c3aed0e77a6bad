"""What a run costs, counted: processes, tables, listings, manifests that are read."""

import io
import os
import subprocess
import unittest
import unittest.mock

import VmBackup
from tests.support import PoolCase


class Processes(PoolCase):
    """What is started."""

    def started(self, *lines):
        """The programs that a run starts, in this process so that they can be seen."""
        seen, real = [], subprocess.Popen

        def popen(argv, *rest, **more):
            seen.append(os.path.basename(os.fsdecode(argv[0])))
            return real(argv, *rest, **more)
        stream = io.BytesIO()
        with unittest.mock.patch.dict(os.environ, self.environ()), (
                unittest.mock.patch('subprocess.Popen', popen)):
            status = VmBackup.command(['password', self.config(*lines)], 'VmBackup.py',
                                      VmBackup.Console(stream), VmBackup.Signals())
        self.assertEqual(0, status, stream.getvalue().decode('utf-8'))
        return seen

    def test_five_for_each_vm_and_three_for_the_run(self):
        for method in ('vm-export', 'vdi-export'):
            one = self.started(method + '=web')
            both = self.started(method + '=web', method + '=db')
            self.assertEqual(['df', 'df', 'ionice'] + ['xe'] * 5, sorted(one))
            self.assertEqual(['df', 'df', 'ionice'] + ['xe'] * 10, sorted(both))


class Tables(PoolCase):
    """What is kept of the pool."""

    def test_only_fields_in_use_are_kept_and_no_vm_at_all(self):
        with unittest.mock.patch.dict(os.environ, self.environ()):
            with VmBackup.Pool.connect('password', VmBackup.Console(None),
                                       VmBackup.Signals()) as pool:
                vms = pool.vms()
                self.assertEqual(2, len(vms))
                self.assertEqual({}, pool.tables)
                for vm in vms:
                    self.assertEqual(set(VmBackup.VM_FIELDS), set(vm.record))
                    pool.disks(vm)
                    pool.vifs(vm)
                    pool.os_version(vm)
                pool.identity()
        self.assertLessEqual({'VBD', 'VDI', 'VIF', 'SR', 'network', 'host', 'pool'},
                             set(pool.tables))
        for name, table in pool.tables.items():
            kept = set(VmBackup.FIELDS.get(name, ()) + VmBackup.FURTHER_FIELDS.get(name, ()))
            for record in table.values():
                self.assertLessEqual(set(record), kept, name)

    def test_a_table_is_read_once(self):
        self.assertEqual(0, self.back_up('vm-export=.*', parallel=2).status)
        names = [call.name for call in self.sim.calls('xapi')]
        whole = [name for name in names if name.endswith('.get_all_records')]
        self.assertEqual(sorted(set(whole)), sorted(whole))


class Store(PoolCase):
    """What is looked at on disk to rotate and to list."""

    def test_each_directory_of_a_vm_is_listed_once_and_each_manifest_is_read_once(self):
        for vm in ('web', 'db'):
            for day in range(1, 8):
                path = self.old_backup(vm, 'backup-2026-01-0%d-(00:00:00)' % day, 'success')
                with open(os.path.join(path, 'backup.json'), 'w', encoding='utf-8') as stream:
                    stream.write('{"number": %d, "started": "2026-01-0%dT00:00:00+00:00"}'
                                 % (day, day))
        store = VmBackup.BackupStore(self.backups, VmBackup.DEFAULT_BACKUP_DIR_PATTERN)
        listed, opened = [], []
        scandir, real_open = os.scandir, os.open

        def list_it(path):
            listed.append(os.path.relpath(path, self.backups))
            return scandir(path)

        def open_it(path, *rest):
            opened.append(os.path.relpath(path, self.backups))
            return real_open(path, *rest)
        with unittest.mock.patch('os.scandir', list_it), unittest.mock.patch(
                'os.open', open_it), unittest.mock.patch('os.listdir', side_effect=list_it):
            for history in store.histories():
                new = VmBackup.BackupDir(os.path.join(history.directory, 'new'), 0)
                self.assertEqual(5, len(history.surplus(new, 3)))
        self.assertEqual(['.', 'db', 'web'], sorted(listed))
        self.assertEqual(14, len(opened))
        self.assertEqual(14, len(set(opened)))


if __name__ == '__main__':
    unittest.main()
