"""Leftovers: what is ours in the pool is removed, sooner or later, and nothing else ever is."""

import contextlib
import os
import signal

import VmBackup
from tests.faults import test_disk as test_faults_disk
from tests.simpool import XapiError
from tests.tools.processes import children_of
from tests.tools.support import PoolCase

FAILURE = ['SR_BACKEND_FAILURE_46', '', 'The VDI is not available', '']


class LeftoverCase(PoolCase):
    pool_description = {'vms': [{'name': 'web', 'disks': ['64 KiB', '64 KiB']},
                                {'name': 'db', 'disks': ['64 KiB'], 'ran': True}]}

    def setUp(self):
        super().setUp()
        self.script = self.changed_script(DISCARD_PAUSES=(0.05, 0.05, 0.05))


class OnAFullShare(test_faults_disk.SmallShare, LeftoverCase):
    """A run was killed in mid-export, and the disk is full of what it had written."""

    pool_description = {'vms': [{'name': 'web', 'disks': [{'size': '3 MiB', 'fill': 1}]}]}
    share_size = '1m'

    def test_the_next_run_removes_the_snapshot_and_what_fills_the_disk(self):
        for verb, nth, image in (('vm-export', 2, 'xva'), ('vdi-export', 1, 'raw')):
            with self.subTest(verb):
                self.setUp()
                self.fault(verb, 'stall', nth=nth, after=600000)
                child = self.start('password', self.config(verb + '=web'))
                self.addCleanup(child.stdout.close)
                self.wait_for_call(verb, nth)
                self.wait_for(lambda: any('web.' in name for name in self.tree()))
                children = children_of(child.pid)
                child.kill()
                child.wait()
                for number in children:
                    os.kill(number, signal.SIGKILL)
                self.sim.pool.tables['session'].clear()
                self.sim.pool.faults.clear()
                with contextlib.suppress(OSError):
                    with open(self.newest('web', 'web.' + image), 'ab', 0) as stream:
                        while True:
                            stream.write(bytes(4096))
                full = os.stat(self.newest('web')).st_ino
                done = self.back_up(verb + '=web')
                self.assertIn('removing the snapshot of an unfinished backup', done.output)
                self.assert_clean()
                self.assertNotIn(full, [os.stat(path).st_ino for path in self.dated('web')])


class DisksOfASnapshot(LeftoverCase):
    """vm-uninstall removes the VM's record first: disks that it then leaves are ours to remove."""

    def refuse_to_destroy(self, times):
        """Have the next destructions of disks refused; return the list of those refused."""
        destroy, refused = type(self.sim.pool).drop_vdi, []

        def drop_vdi(vdi):
            if len(refused) < times:
                refused.append(vdi)
                raise XapiError(*FAILURE)
            return destroy(self.sim.pool, vdi)
        self.sim.pool.drop_vdi = drop_vdi
        return refused

    def test_they_are_removed_at_once_or_tried_again_or_at_the_end_of_the_run_or_by_the_next(self):
        for times, pauses, left in ((1, (0.05,), False), (3, (0.05, 0.05, 0.05), False),
                                    (3, (0.05,), True), (5, (0.05,), True)):
            with self.subTest(times=times, pauses=pauses):
                self.script = self.changed_script(DISCARD_PAUSES=pauses)
                refused = self.refuse_to_destroy(times)    # vm-uninstall's, then each disk
                done = self.ends(int(left), 'vm-export=web')
                self.assertEqual(times, len(refused))
                self.assertIn('vdi-destroy', self.verbs())
                self.assertEqual(left, 'was left in the pool' in done.output)
                if times == 5:                             # both once more at the end of the run
                    self.assertNotEqual(self.before['VDI'], self.contents()['VDI'])
                    self.ends(0, 'vm-export=web')
                self.assert_clean()

    def test_one_that_cannot_be_removed_keeps_no_other(self):
        self.script = self.changed_script(DISCARD_PAUSES=())
        drop = self.sim.pool.drop_vdi
        stubborn = []

        def drop_vdi(vdi):
            if not stubborn:
                stubborn.append(vdi)
            if vdi in stubborn:
                raise XapiError(*FAILURE)
            return drop(vdi)
        self.sim.pool.drop_vdi = drop_vdi
        done = self.ends(1, 'vm-export=web')
        extra = set(self.contents()['VDI']) - set(self.before['VDI'])
        self.assertEqual(set(stubborn), extra)
        self.assertRegex(done.output, 'may be left in the pool: .* failed: .*still there: .*'
                         + self.sim.pool.tables['VDI'][stubborn[0]]['uuid'])
        self.sim.pool.drop_vdi = drop
        self.ends(0, 'vm-export=db')

    def test_a_disk_name_that_forges_lines_of_xe_removes_nothing_else(self):
        disk = self.disk_of('web', '0')
        mine = self.xe('vdi-snapshot', 'uuid=' + disk).strip()
        ref = self.sim.pool.ref_of('VDI', disk)
        self.sim.pool.put('VDI', ref, name_label='x\nVDI: %s (x) ' % mine)
        self.before = self.contents()
        self.refuse_to_destroy(1)
        self.ends(0, 'vm-export=web')
        self.assert_clean()


class Records(LeftoverCase):
    """snapshot.json: what a run wrote down before it made a snapshot."""

    def failure(self, vm, **fields):
        """Leave a failed backup of a VM with such a record; return its path."""
        failed = self.old_backup(vm, 'backup-2019-01-01-(00:00:00)')
        self.record(failed, self.disk_of(vm, '0'), **fields)
        return failed

    def test_an_unlabelled_disk_snapshot_of_that_moment_is_ours(self):
        self.failure('db')
        self.xe('vdi-snapshot', 'uuid=' + self.disk_of('db', '0'))
        self.ends(0, 'vdi-export=db')
        self.assert_clean()

    def test_one_that_cannot_be_removed_and_has_no_uuid_in_its_record_stops_the_backup(self):
        self.script = self.changed_script(DISCARD_PAUSES=())
        self.failure('db')
        made = self.xe('vdi-snapshot', 'uuid=' + self.disk_of('db', '0')).strip()
        self.fault('vdi-destroy', 'refuse', times=0, error=['SR_BACKEND_FAILURE_46', '', '', ''])
        done = self.ends(2, 'vdi-export=db')
        self.assertIn('cannot be removed from the pool: one of unknown uuid', done.output)
        self.sim.pool.faults.clear()
        self.xe('vdi-destroy', 'uuid=' + made)

    def test_one_that_may_be_ours_or_anybodys_is_spoken_of_until_somebody_marks_it_for_his(self):
        pool, disk, vm = self.sim.pool, self.disk_of('db', '0'), self.uuid_of('db')
        of_vm = dict(kind='VM', of=vm, ref=pool.ref_of('VM', vm),
                     sources=(pool.ref_of('VDI', disk),))
        past = dict(since=VmBackup.utc(-7200), until=VmBackup.utc(-3600))
        for fields, count, mark in (({}, 2, {'name_label': 'mine'}), (of_vm, 2, {'tags': ['mine']}),
                                    (past, 1, {'tags': ['mine']}),
                                    (dict(of_vm, **past), 1, {'name_label': 'mine'})):
            with self.subTest(fields, count=count):
                self.failure('db', **fields)
                made = [self.xe('vdi-snapshot', 'uuid=' + disk).strip() for _ in range(count)]
                self.before = self.contents()
                for _ in range(2):
                    done = self.ends(1, 'vdi-export=web', 'vdi-export=db')
                    for uuid in made:
                        self.assertEqual(2, done.output.count('the snapshot ' + uuid))
                        for verb in 'vdi-param-list', 'vdi-destroy':
                            self.assertIn('xe %s uuid=%s' % (verb, uuid), done.output)
                    self.assertIn('vdi-export,end,SUCCESS db,elapse:0 size:0G', self.status())
                    self.assert_clean()
                for uuid in made:
                    pool.put('VDI', pool.ref_of('VDI', uuid), **mark)
                self.before = self.contents()
                self.ends(0, 'vdi-export=db')
                self.assert_clean()

    def test_disks_that_a_removal_left_are_found_again_although_their_vm_snapshot_is_gone(self):
        disk = self.disk_of('web', '0')
        snapshot = self.xe('vm-snapshot', 'vm=web', 'new-name-label=RESTORE_web').strip()
        vm = self.uuid_of('web')
        ref = self.sim.pool.ref_of
        self.failure('web', kind='VM', of=vm, ref=ref('VM', vm), label='RESTORE_web', uuid=snapshot,
                     sources=(ref('VDI', disk), ref('VDI', self.disk_of('web', '1'))))
        self.script = self.changed_script(DISCARD_PAUSES=())
        drop, self.sim.pool.drop_vdi = self.sim.pool.drop_vdi, self.refused
        for _ in range(2):
            self.ends(1, 'vm-export=db')
        self.sim.pool.drop_vdi = drop
        self.ends(0, 'vm-export=db')
        self.assert_clean()

    @staticmethod
    def refused(vdi):
        raise XapiError(*FAILURE)

    def test_an_older_disk_snapshot_is_nobodys_business(self):
        self.failure('db', since=VmBackup.utc(3600), until=VmBackup.utc(7200))
        self.xe('vdi-snapshot', 'uuid=' + self.disk_of('db', '0'))
        self.before = self.contents()
        self.ends(0, 'vdi-export=db')

    def test_no_further_snapshot_is_made_while_one_may_still_come(self):
        self.failure('db')
        self.sim.pool.put('VDI', self.sim.pool.ref_of('VDI', self.disk_of('db', '0')),
                          current_operations={'OpaqueRef:1': 'snapshot'})
        self.script = self.changed_script(SNAPSHOT_PAUSES=())
        self.ends(2, 'vm-export=db', 'vm-export=web')
        self.assert_told('vm-export,end,SNAPSHOT-FAIL db',
                         'vm-export,end,SUCCESS web,elapse:0 size:0G')
        self.assertTrue(os.path.exists(os.path.join(self.dated('db')[0], 'snapshot.json')))

    def test_a_record_of_a_disk_that_is_gone_is_dropped(self):
        failed = self.failure('db', of='00000000-0000-0000-0000-000000000000',
                              ref='OpaqueRef:00000000-0000-0000-0000-000000000000')
        self.ends(0, 'vdi-export=db')
        self.assertFalse(os.path.exists(failed))

    def test_the_snapshot_of_a_disk_that_is_gone_is_known_by_the_name_that_was_written_down(self):
        disk = self.disk_of('db', '0')
        self.failure('db', sources=(self.sim.pool.ref_of('VDI', disk),), names=('db 0',))
        snapshot = self.xe('vdi-snapshot', 'uuid=' + disk).strip()
        self.xe('vm-uninstall', 'uuid=' + self.uuid_of('db'), 'force=true')
        self.before = self.contents()
        del self.before['VDI'][self.sim.pool.ref_of('VDI', snapshot)]
        self.ends(0, 'vm-export=web')


class ChangesInTheNight(LeftoverCase):
    """What changes in the pool after the tables were read."""

    def test_a_disk_that_was_moved_is_backed_up_where_it_is_now(self):
        self.pool_description = {'vms': [
            {'name': 'first', 'disks': ['64 KiB']},
            {'name': 'web', 'disks': ['64 KiB', '128 KiB']}]}
        self.use_pool()
        pool = self.sim.pool
        boot, data = sorted((ref for ref, vbd in pool.tables['VBD'].items()
                             if pool.tables['VM'][vbd['VM']]['name_label'] == 'web'),
                            key=lambda ref: pool.tables['VBD'][ref]['userdevice'])

        def move():
            with pool.lock:
                one, other = (pool.tables['VBD'][ref]['VDI'] for ref in (boot, data))
                for ref, vdi in ((boot, other), (data, one)):
                    pool.put('VBD', ref, VDI=vdi)
                for vdi, vbd in ((one, data), (other, boot)):
                    pool.put('VDI', vdi, VBDs=[vbd])
        self.at_call('vdi-export', move)
        self.ends(0, 'vdi-export=first', 'vdi-export=web')
        self.assertEqual(128 << 10, os.stat(self.newest('web', 'web.raw')).st_size)

    def test_a_table_that_is_none_spoils_only_what_needs_it(self):
        for table, answer in (('network', []), ('network', {'OpaqueRef:x': 'y'}), ('VIF', ''),
                              ('VM_guest_metrics', [])):
            with self.subTest((table, answer)):
                self.fault(table + '.get_all_records', 'print', value=answer)
                self.ends(1, 'vm-export=web', 'vm-export=db')
                self.assertEqual('vmbackup.py,end,WARNING,S:1 W:1 E:0', self.status()[-1])

    def test_without_hosts_the_dump_fails_and_without_the_pools_uuid_the_vm_too(self):
        for table, counts in (('host', 'S:1 W:0 E:1'), ('pool', 'S:0 W:0 E:2')):
            for answer in ([], {}):
                with self.subTest((table, answer)):
                    self.setUp()
                    self.fault(table + '.get_all_records', 'print', times=0, value=answer)
                    done = self.ends(2, 'vm-export=db', pool_db_backup=1)
                    self.assertNotIn('a bug', done.output)
                    self.assertIn('vmbackup.py,end,ERROR,' + counts, self.status())

    def test_what_the_pool_does_not_tell_is_not_gone(self):
        for rule, verb, method in (('vm-export=db', 'vm-uninstall', 'VM.get_by_uuid'),
                                   ('vdi-export=db', 'vdi-destroy', 'VDI.get_by_uuid')):
            with self.subTest(verb):
                self.sim.pool.faults.add(verb, 'refuse', error=FAILURE)
                self.sim.pool.faults.add(method, 'refuse', error=['INTERNAL_ERROR', 'no'], times=0)
                self.before = self.contents()
                self.ends(0, rule)
                self.sim.pool.faults.clear()
                self.assert_clean()
