"""What 3.25 did to its users in the pool and on disk, and what a run does now."""

import io
import os
import signal
import time
import unittest
import unittest.mock

import VmBackup
from tests.runs.test_failures import REFUSED
from tests.tools.support import SMALL, PoolCase

EXPORTS = {'vm-export': 2, 'vdi-export': 1}         # the first vm-export is for the metadata
OLD = 'backup-2019-01-01-(00:00:00)'


class SmallCase(PoolCase):
    pool_description = SMALL


class InThePool(SmallCase):
    pool_description = {'vms': [
        {'name': 'web', 'disks': ['512 KiB'], 'ran': True},
        {'name': 'RESTORE_web', 'disks': ['64 KiB', '64 KiB'], 'ran': True,
         'snapshots': ['before the upgrade']},
        {'name': 'RESTORE_web', 'disks': ['64 KiB'], 'template': True},
        {'name': 'db', 'ran': True,
         'disks': ['64 KiB', {'size': '64 KiB', 'name': 'SNAP_web_web-0'}]}]}

    def killed_in(self, method):
        """Kill a run in its export of web with -9; the pool then comes to rest."""
        wanted = self.verbs().count(method) + EXPORTS[method]
        self.fault(method, 'slow', nth=EXPORTS[method], rate=4000000)
        child = self.start('password', self.config(method + '=web'))
        self.wait_for(lambda: self.verbs().count(method) >= wanted)
        os.kill(child.pid, signal.SIGKILL)
        self.assertEqual(-signal.SIGKILL, self.finish(child).status)
        self.wait_for(lambda: not self.contents()['task'])
        self.sim.pool.tables['session'].clear()        # xapi's own time-out: a day

    def vms_and_their_disks(self):
        """Of each VM of the pool: name, uuid, its disks' bytes, its snapshots' names."""
        tables = self.sim.pool.tables
        return sorted((vm['name_label'], vm['uuid'],
                       [self.sim.pool.content[tables['VBD'][vbd]['VDI']].sha256()
                        for vbd in vm['VBDs']],
                       [tables['VM'][ref]['name_label'] for ref in vm['snapshots']])
                      for vm in tables['VM'].values() if not vm['is_control_domain'])

    def test_vms_and_disks_that_are_called_like_our_snapshots_survive(self):
        sr = self.sim.pool.tables['pool'][self.sim.pool.pool_ref]['default_SR']
        for name in ('SNAP_web_web-0', 'web 0'):
            self.sim.pool.make_vdi(sr, 1 << 16, name_label=name)
        self.before, before = self.contents(), self.vms_and_their_disks()
        self.assertEqual(2, [vm[0] for vm in before].count('RESTORE_web'))
        for method, nth in EXPORTS.items():
            self.killed_in(method)
            self.fault(method, nth=nth, **REFUSED)
            self.ends(2, method + '=web')
            self.ends(0, method + '=web', 'vdi-export=RESTORE_web')
        self.assertEqual(before, self.vms_and_their_disks())
        self.assert_clean()

    def test_of_several_leftovers_all_are_removed_not_only_the_last(self):
        self.script = self.changed_script(DISCARD_PAUSES=(0,))
        for number in range(1, 3):                     # what the one before left cannot be removed
            for verb in ('vm-uninstall', 'snapshot-uninstall', 'vdi-destroy'):
                self.fault(verb, times=0, **REFUSED)
            self.killed_in('vm-export')
            self.sim.pool.faults.clear()
            self.assertEqual(len(self.before['VDI']) + number, len(self.contents()['VDI']))
        self.ends(0, 'vm-export=web')
        self.assert_clean()


class OnDisk(SmallCase):
    def test_a_vm_called_as_the_pool_dumps_directory_harms_no_dump(self):
        name = 'METADATA_' + os.uname().nodename
        self.pool_description = {'vms': [{'name': name, 'disks': ['64 KiB']}]}
        self.use_pool()
        self.old_backup(name, OLD, 'success')
        self.put_file(os.path.join(self.backups, name, 'pool_db_20190101-000000.dump'))
        self.ends(0, 'vm-export=%s:1' % name, pool_db_backup=1, pool_db_max_backups=1)
        backup, dump, version = sorted(os.listdir(os.path.join(self.backups, name)))
        self.assertEqual((OLD, 'pool_db', dump + '.json'), (backup, dump[:7], version))
        self.assertNotEqual('pool_db_20190101-000000.dump', dump)
        self.assertEqual(1, len(self.dated('%4D' + name[1:])))


class Run(SmallCase):
    def test_a_backup_of_more_than_a_day_takes_more_than_a_day(self):
        def later():
            return time.monotonic() + (30 * 3600 if self.verbs().count('vm-export') > 1 else 0)
        with unittest.mock.patch.object(VmBackup, 'monotonic', later):
            status, output = self.run_here('vm-export=db')
        self.assertEqual(0, status, output)
        self.assertIn('VmBackup vm-export db - ***Success*** t:1800', output)
        self.assertIn('vm-export,end,SUCCESS db,elapse:1800 size:0G', self.status())

    def test_an_xe_that_hangs_is_ended(self):
        self.fault('template-param-set', 'hang')
        self.script = self.changed_script(XE_TIMEOUT=0.5)
        self.ends(2, 'vm-export=db')
        self.assertIn('vm-export,end,TEMPLATE-PARAM-SET-FAIL db', self.status())

    def test_a_very_long_night_keeps_a_bounded_part_of_its_log(self):
        console = VmBackup.Console(io.BytesIO())
        for number in range(25000):
            console.log('line %d' % number)
        self.assertLess(len(console.lines), 25000)
        self.assertIn('line 24999', console.lines[-1])
        self.assertEqual(25000, console.stream.getvalue().count(b'\n'))
