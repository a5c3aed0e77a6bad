"""What a run costs, counted: processes, tables, listings, manifests that are read."""

import collections
import contextlib
import io
import os
import re
import subprocess
import unittest
import unittest.mock

import VmBackup
from tests.tools.support import SMALL, PoolCase, policy, store_at


class Processes(PoolCase):
    pool_description = SMALL

    def started(self, *lines, **keys):
        """The programs that a run starts, in this process so that they can be seen."""
        seen, real = [], subprocess.Popen

        def popen(argv, *rest, **more):
            seen.append(os.path.basename(os.fsdecode(argv[0])))
            return real(argv, *rest, **more)
        with unittest.mock.patch('VmBackup.Popen', popen):
            status, output = self.run_here(*lines, **keys)
        self.assertEqual(0, status, output)
        return seen

    def test_five_for_each_vm_and_three_for_the_run_and_one_for_a_dump_of_the_pool(self):
        for method in ('vm-export', 'vdi-export'):
            one = self.started(method + '=web')
            both = self.started(method + '=web', method + '=db', pool_db_backup=1)
            self.assertEqual(['df', 'df', 'ionice'] + ['xe'] * 5, sorted(one))
            self.assertEqual(['df', 'df', 'ionice'] + ['xe'] * 11, sorted(both))


class Tables(PoolCase):
    pool_description = SMALL

    def test_only_fields_in_use_are_kept_and_no_vm_at_all(self):
        with unittest.mock.patch.dict(os.environ, self.environ()):
            with VmBackup.Pool.connect(VmBackup.CommandLine(password='password')) as pool:
                vms = pool.vms()
                self.assertEqual(2, len(vms))
                self.assertEqual({}, pool.tables)
                for vm in vms:
                    self.assertEqual(set(VmBackup.FIELDS['VM'].split()), set(vm.record))
                    pool.disks(vm)
                    pool.vifs(vm)
                    pool.table('VM_guest_metrics')
                pool.identity()
                old = dict(uuid='1', tags=[])          # a pool from before VUSBs
                with unittest.mock.patch.object(pool, 'record', lambda *_: old):
                    self.assertEqual({'tags': []}, pool.reread(vms[0]).record)
        self.assertLessEqual({'VBD', 'VDI', 'VIF', 'SR', 'network', 'host', 'pool'},
                             set(pool.tables))
        for name, table in pool.tables.items():
            for record in table.values():
                self.assertLessEqual(set(record), set(VmBackup.FIELDS[name].split()), name)

    def test_a_table_is_read_once(self):
        self.ends(0, 'vm-export=.*', parallel=2)
        names = [call.name for call in self.sim.calls('xapi')]
        whole = [name for name in names if name.endswith('.get_all_records')]
        self.assertEqual(sorted(set(whole)), sorted(whole))


class Store(PoolCase):
    pool_description = SMALL

    def setUp(self):
        super().setUp()
        for vm in ('web', 'db'):
            for day in range(1, 8):
                path = self.old_backup(vm, 'backup-2026-01-0%d-(00:00:00)' % day, 'success')
                self.put_file(os.path.join(path, 'backup.json'), '{"number": %d, "started": '
                              '"2026-01-0%dT00:00:00+00:00", "files": {"x.xva": 7}, '
                              '"earlier": []}' % (day, day))

    @contextlib.contextmanager
    def watched(self):
        """The paths below backup_dir that are listed, opened (a directory: `entered`) and looked at
        meanwhile."""
        seen = {name: [] for name in ('scandir', 'open', 'entered', 'stat')}

        def watching(name, real):
            def call(path, *rest, **more):
                path = re.sub('^/proc/self/fd/[0-9]+$', lambda found: os.readlink(found.group()),
                              path if isinstance(path, str) else '')
                if more.get('dir_fd') is not None:
                    path = os.path.join(os.readlink('/proc/self/fd/%d' % more['dir_fd']), path)
                if path.startswith(self.backups) and not (
                        name == 'open' and rest[0] == os.O_RDONLY):    # the second one of a file
                    is_directory = name == 'open' and rest[0] & os.O_DIRECTORY
                    seen['entered' if is_directory else name].append(
                        os.path.relpath(path, self.backups))
                return real(path, *rest, **dict(more, dir_fd=None) if more else {})
            return call
        with contextlib.ExitStack() as stack:
            for name in ('scandir', 'open', 'stat'):
                stack.enter_context(unittest.mock.patch(
                    'os.' + name, watching(name, getattr(os, name))))
            yield seen

    def test_each_directory_of_a_vm_is_listed_once_and_each_manifest_is_read_once(self):
        store = store_at(self.backups)
        with self.watched() as seen:
            for history in store.histories():
                judged = history.judged(policy(last=3), VmBackup.Manifest(), (),
                                        VmBackup.Aged(VmBackup.now()), 'new')
                self.assertEqual(5, sum(not why for _, why in judged))
        self.assertEqual(['.', 'db', 'web'], sorted(seen['scandir']))
        self.assertEqual((14, 14), (len(seen['open']), len(set(seen['open']))))
        # A directory by its own path, for two purposes, is entered from backup_dir.
        self.assertEqual((14, 4, 5), tuple(len([path for path in seen['entered'] if path.count(
            '/') == depth and path != '.']) for depth in (1, 0)) + (seen['entered'].count('.'),))

    def test_a_run_lists_and_reads_a_history_before_the_export_and_after_it(self):
        """And the other directories once, for what runs that died have left there."""
        for keys in ({}, {'pre_clean': 'True'}):
            with self.watched() as seen, self.subTest(**keys):
                self.assertEqual(0, self.run_here('vm-export=web', max_backups=9, **keys)[0])
            listed = collections.Counter(path for path in seen['scandir'] if 'backup-' not in path)
            manifests = collections.Counter(path for path in seen['open'] if re.search(
                'backup-2026-01-0.*/backup[.]json$', path))
            self.assertEqual({'.': 4, 'web': 2, 'db': 1}, dict(listed))
            self.assertEqual(({2}, 7), (set(manifests.values()), len(manifests)))
            self.assertEqual({'web'}, {path.split('/')[0] for path in manifests})

    def list_here(self, *words):
        return VmBackup.perform(['list', *words], '', VmBackup.Console(io.BytesIO()))

    def test_to_list_all_is_one_listing_of_a_vm_and_three_looks_at_a_backup(self):
        config = self.config('vm-export=.*')
        with self.watched() as seen:
            self.assertEqual(0, self.list_here(config))
        self.assertEqual(['.', '.', 'db', 'web'], sorted(seen['scandir']))
        names = ['%s/backup-2026-01-0%d-(00:00:00)/' % (vm, day)
                 for vm in ('db', 'web') for day in range(1, 8)]
        self.assertEqual([name + 'backup.json' for name in names], sorted(seen['open']))
        self.assertEqual([name + file for name in names for file in ('protected', 'success')],
                         sorted(path for path in seen['stat'] if path.count('/') == 2))
