"""Time: nothing waits for ever, neither for an export that stands still nor for an xapi that is
gone; and what had to be left in the pool is removed by the next run."""

import glob
import os

from tests.tools.support import LIMIT, SMALL, PoolCase

EXPORTS = {'vm-export': ('vm-export', 2, 'VM-EXPORT-FAIL'),      # the first is of the metadata
           'vdi-export': ('vdi-export', 1, 'VDI-EXPORT-FAIL')}
SEVERAL = [('vdi-export', {'vdi_disks': 'all'})]     # of one snapshot of the VM
SHORT = 0.01                   # minutes without progress after which an export is ended
SOON = (0.05, 0.05, 0.05)      # seconds between attempts

NOBODY_THERE = 'Error: Connection refused (calling connect )'
BEGUN = 150000                 # bytes of web's archive or image: in mid-export
# In the place of an export: it writes a little, then stands, and heeds no SIGTERM.
DEAF = 'trap "" TERM; echo begun >"$1"; echo $$ >%s; while :; do sleep 0.05; done'


class StallCase(PoolCase):
    pool_description = {'vms': [
        {'name': 'web', 'power_state': 'Running', 'disks': [{'size': '256 KiB', 'fill': 1}]},
        SMALL['vms'][1]]}

    def setUp(self):
        super().setUp()
        self.sim.pool.progress_interval = 0.05

    def exporting(self, method, *lines, **keys):
        """Start a run; return it once the export itself is under way."""
        verb, nth, _ = EXPORTS[method]
        return self.start_until(verb, nth, 'password', self.config(*lines, **keys))

    def records(self):
        return [path for path in self.tree() if path.endswith('snapshot.json')]


class Stalls(StallCase):
    """An export that does not move is ended, and only that one."""

    def test_a_stalled_export_is_ended_and_the_other_vms_are_backed_up(self):
        for method, (verb, nth, token) in EXPORTS.items():
            with self.subTest(method):
                self.setUp()
                self.fault(verb, 'stall', nth=nth, after=BEGUN)
                done = self.ends(2, method + '=web', method + '=db', stall_timeout=SHORT)
                self.assertIn('ERROR %s %s web: no progress for 0.01 minutes (stall_timeout), '
                              'with 146.5 KiB exported' % (method, token), done.lines)
                self.assert_told('%s,end,%s web' % (method, token),
                                 'vmbackup.py,end,ERROR,S:1 W:0 E:1')
                self.wait_for(lambda: not self.sim.is_busy)        # xe is gone
                self.assert_clean()
                self.assertEqual([], [path for path in self.tree() if 'DATED/web.' in path])

    def test_a_stalled_dump_of_the_pool_is_ended_and_the_vms_are_backed_up(self):
        self.fault('pool-dump-database', 'stall', after=100)
        done = self.ends(2, 'vm-export=db', pool_db_backup=1, stall_timeout=SHORT)
        self.assertIn('ERROR pool database not backed up: no progress for 0.01 minutes '
                      '(stall_timeout), with 100 bytes dumped', done.lines)
        self.assertIn('vmbackup.py,end,ERROR,S:1 W:0 E:1', self.status())
        self.wait_for(lambda: not self.sim.is_busy)
        self.assertEqual([], [path for path in self.tree() if 'pool_db' in path])

    def test_an_export_that_is_slow_but_moves_is_not_ended(self):
        self.fault('vdi-export', 'slow', rate=180000)
        self.ends(0, 'vdi-export=web', stall_timeout=0.015)

    def test_a_vdi_export_is_watched_by_its_file_where_nothing_names_its_task(self):
        for version in ('26.1', '26.17'):
            for fault, status in (({'do': 'slow', 'rate': 180000}, 0),
                                  ({'do': 'stall', 'after': BEGUN}, 2)):
                with self.subTest(version, **fault):
                    self.setUp()
                    self.sim.pool.xapi_version = version
                    self.fault('vdi-export', **fault)
                    done = self.ends(status, 'vdi-export=web', stall_timeout=0.015)
                    self.assertEqual(status == 2, '(stall_timeout)' in done.output)

    def test_a_vm_export_whose_file_stands_still_while_its_task_moves_is_not_ended(self):
        for version in ('23.10', '26.17'):
            with self.subTest(version):
                self.setUp()
                self.sim.pool.xapi_version = version
                self.fault('vm-export', 'slow', nth=2, after=BEGUN, seconds=1.2)
                self.at_call('task.get_all_records', self.move_tasks, nth=0)
                self.ends(0, 'vm-export=web', stall_timeout=SHORT)
                calls = [call.name for call in self.sim.pool.journal]
                self.assertGreater(calls.count('task.get_all_records'), 3)

    def test_one_that_stands_still_while_another_moves_is_ended(self):
        self.fault('vm-export', 'stall', nth=2, after=BEGUN)
        other = self.sim.pool.make_task('Export of VM', 'another')
        self.at_call('task.get_all_records', lambda: self.move_tasks(other), nth=0)
        self.assertIn('(stall_timeout)', self.ends(
            2, 'vm-export=web', stall_timeout=SHORT).output)
        self.sim.pool.finish_task(other, 'success')

    def move_tasks(self, *only):
        """Let the tasks of exports tell a progress that they never told."""
        pool = self.sim.pool
        with pool.lock:
            for ref, task in list(pool.tables['task'].items()):
                if task['status'] == 'pending' and ref in (only or [ref]):
                    pool.put('task', ref, progress=len(pool.journal) / 1000)

    def test_an_xe_that_heeds_no_sigterm_is_killed(self):
        self.script = self.changed_script(REAP_TIMEOUT=0.3)
        pid = self.at('pid')
        done = self.ends(2, 'vdi-export=web', stall_timeout=SHORT,
                         VMBACKUP_XE=self.xe_whose('vdi-export', DEAF % pid))
        self.assertIn('ERROR vdi-export VDI-EXPORT-FAIL web: no progress for 0.01 minutes '
                      '(stall_timeout), with 6 bytes exported', done.lines)
        self.assertRaises(ProcessLookupError, os.kill, int(self.read(pid)), 0)


class LeftBehind(StallCase):
    """What cannot be removed tonight is recorded, and is removed by the next run."""

    leaves_things_behind = True

    def setUp(self):
        super().setUp()
        self.script = self.changed_script(SNAPSHOT_PAUSES=SOON + (0.2,), DISCARD_PAUSES=SOON[:2],
                                          BUSY_PAUSES=SOON)

    def assert_left(self, vm):
        """A snapshot is in the pool, and a record of it is on disk."""
        self.assertNotEqual(self.before['VDI'], self.contents()['VDI'])
        self.assertEqual([vm + '/DATED/snapshot.json'], self.records())

    def assert_settled(self):
        self.assert_clean()
        self.assertEqual([], self.records())

    def test_the_snapshot_of_a_task_that_does_not_end_although_it_is_cancelled(self):
        for method, (verb, nth, token) in EXPORTS.items():
            with self.subTest(method):
                self.setUp()
                self.fault(verb, 'slow', nth=nth, after=BEGUN, seconds=LIMIT)
                done = self.ends(2, method + '=web', 'vm-export=db', stall_timeout=SHORT)
                self.assert_told('%s,end,%s web' % (method, token),
                                 'vm-export,end,SUCCESS db,elapse:0 size:0G')
                self.assertRegex(done.output, r'\*\*\*WARNING - web: the snapshot \S+ was left in '
                                 r'the pool: (it is still being exported|the disk \S+ is in use by '
                                 'a transfer, VDI export)')
                self.assert_left('web')
                self.sim.restart()                     # this ends the task
                done = self.ends(0, 'vm-export=db')
                self.assertIn('removing the snapshot of an unfinished backup', done.output)
                self.assert_settled()

    def refuse(self, error, times):
        """Let xapi refuse to destroy disks; how often that is tried after the VM's export."""
        self.fault('vdi-destroy', 'refuse', times=times, error=error)
        done = self.ends(int(not times), 'vdi-export=db')
        self.assertIn('vdi-export,end,%s db,elapse:0 size:0G' % (
            'SUCCESS' if times else 'WARNING'), self.status())
        return done.output.partition('VmBackup vdi-export db')[0].count(
            '.cmd: %s vdi-destroy' % self.sim.xe)

    def test_a_disk_that_is_in_use_is_tried_longer_than_after_other_refusals(self):
        in_use, other = ['VDI_IN_USE', 'x', 'destroy'], ['SR_BACKEND_FAILURE_46', '', 'x', '']
        self.assertEqual(6, self.refuse(in_use, 5))
        self.assert_settled()
        self.setUp()
        self.assertEqual(3, self.refuse(other, 0))
        self.assert_left('db')
        self.setUp()
        self.assertEqual(6, self.refuse(in_use, 0))
        self.assert_left('db')
        self.sim.pool.faults.clear()
        self.ends(0, 'vm-export=db')                   # by the other method
        self.assert_settled()

    def test_the_record_of_another_pool_on_the_same_share_is_left_to_that(self):
        failed = self.old_backup('db', 'backup-2019-01-01-(00:00:00)')
        self.record(failed, self.disk_of('db', '0'), pool='another')
        self.xe('vdi-snapshot', 'uuid=' + self.disk_of('db', '0'))
        done = self.ends(0, 'vm-export=web')
        self.assertIn('***NOTE - %s records a snapshot in another pool, another: not touched'
                      % failed, done.lines)
        self.assert_left('db')

    def test_a_killed_runs_export_is_ended_at_the_beginning_of_the_next_run(self):
        for method, keys in [(method, {}) for method in EXPORTS] + SEVERAL:
            with self.subTest(method, **keys):
                self.setUp()
                verb, nth, _ = EXPORTS[method]
                self.fault(verb, 'stall', nth=nth, after=BEGUN)
                child = self.start('password', self.config(method + '=web', **keys), LC_ALL='C')
                self.addCleanup(child.stdout.close)            # not forked: /proc shows its xe
                self.wait_for_call(verb, nth)
                self.wait_for(lambda: glob.glob(self.backups + '/web/*/*.[rxv]*[wad]*'))   # xe's
                child.kill()
                child.wait()
                self.assert_left('web')
                self.sim.pool.tables['session'].clear()        # xapi's own time-out: a day
                done = self.ends(0, 'vm-export=db')            # web is not selected any more
                self.assertNotIn('task.cancel', [call.name for call in self.sim.calls('xapi')])
                self.assertIn('ending a transfer of a run that was killed: process ', done.output)
                self.assertLess(done.output.index('removing the snapshot of an unfinished backup'),
                                done.output.index('*** vm-export begin db'))
                self.assert_settled()


class Restarts(StallCase):
    def setUp(self):
        super().setUp()
        self.script = self.changed_script(SNAPSHOT_PAUSES=SOON, DISCARD_PAUSES=SOON,
                                          BUSY_PAUSES=SOON, SECOND_LOOK=0.01, RESTART_PAUSE=0.01)

    def restarted(self, at, after_start=None, **details):
        """(exit status, output) of a run of two VMs, in which xapi dies at a call and is started
        again once that is noted."""
        self.fault(at, 'down', **details)
        child = self.start('password', self.config('vm-export=web', 'vm-export=db'))
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.kill)
        lines = []
        for line in child.stdout:
            lines.append(line.decode('utf-8'))
            if '***NOTE - XenAPI' in lines[-1]:
                self.assertTrue(self.sim.pool.is_down, lines)
                self.assertRegex(lines[-1], r'NOTE - XenAPI \S+ failed: .*: trying again$')
                self.sim.restart()
                if after_start:
                    after_start()
        done = ''.join(lines)
        self.assertNotIn('Traceback', done)
        self.assertIn('vm-export,end,SUCCESS db,elapse:0 size:0G', self.status())
        return child.wait(), done

    def survived(self, outcome, at, **details):
        """web's backup ends so in such a run, db's well, and nothing is left."""
        _, done = self.restarted(at, **details)
        self.assertIn('vm-export,end,%s web' % outcome, '\n'.join(self.status()), done)
        self.assertEqual([], self.records())
        self.assert_clean()
        return done

    def test_between_two_vms(self):
        self.survived('SUCCESS', 'VM.get_record', nth=2)

    def test_in_mid_export(self):
        self.survived('VM-EXPORT-FAIL', 'vm-export', nth=2, after=BEGUN)

    def test_while_the_snapshot_is_made_or_removed(self):
        for verb in ('vm-snapshot', 'vm-uninstall'):
            for after in (0, 1, 2):
                with self.subTest(verb=verb, after=after):
                    self.setUp()
                    self.survived('SUCCESS', verb, after=after)

    def test_the_vm_that_just_begins_is_tried_again_once(self):
        for verb in ('vm-snapshot', 'template-param-set'):
            with self.subTest(verb):
                self.setUp()
                done = self.survived('SUCCESS', verb)
                self.assertEqual(1, done.count(': trying web again'))
        self.setUp()
        self.fault('vm-snapshot', 'print', times=2, exit=1, stderr='Lost connection to the server.')
        done = self.ends(2, 'vm-export=web', 'vm-export=db')
        self.assertEqual(1, done.output.count(': trying web again'))
        self.assertIn('vm-export,end,SNAPSHOT-FAIL web', self.status())
        self.assertEqual([], self.records())

    def test_what_it_says_when_xapi_forgot_its_task_is_tried_again_too(self):
        forgotten = ['HANDLE_INVALID', 'task', 'OpaqueRef:1']
        for verb, again in (('vm-snapshot', 1), ('template-param-set', 1), ('vm-export', 0)):
            with self.subTest(verb):
                self.setUp()
                self.fault(verb, 'refuse', error=forgotten)
                done = self.ends(0, 'vm-export=web')
                self.assertEqual(again, done.output.count(': trying web again'))
                self.assert_clean()

    def test_an_export_that_nobody_was_there_for_is_tried_again_as_nothing_was_exported(self):
        for verb, nth, keys in (('vm-export', 2, {}), ('vdi-export', 1, {}),
                                ('vdi-export', 1, {'vdi_compress': 'gzip'})):
            with self.subTest(verb, **keys):
                self.setUp()
                self.fault(verb, 'print', nth=nth, exit=1, stderr=NOBODY_THERE)
                done = self.ends(0, verb + '=web', **keys)
                self.assertEqual(1, done.output.count(': trying web again'))
                self.assert_clean()

    def test_metadata_are_asked_for_again(self):
        self.fault('vm-export', 'print', exit=1, stderr='Lost connection to the server.')
        self.ends(0, 'vm-export=web')

    def test_a_signal_while_it_waits_to_try_again_ends_the_run(self):
        self.script = self.changed_script(RESTART_PAUSE=60)
        self.fault('vm-snapshot', 'print', exit=1, stderr='Lost connection to the server.')
        done = self.signalled(self.start_until('vm-snapshot', 1, 'password',
                                               self.config('vm-export=web')))
        self.assertEqual(1, self.verbs().count('vm-snapshot'), done and done.output)

    def test_a_snapshot_of_a_disk_that_xapi_makes_again_as_it_starts_is_spoken_of_in_each_run(self):
        def make():
            for disk in disks:
                made.append(self.sim.pool.call('VDI.snapshot', disk))
        made, disks = [], [self.sim.pool.ref_of('VDI', self.disk_of('web', '0'))]
        status, output = self.restarted('vm-snapshot', make, after=2)
        self.assertEqual(1, status, output)
        self.assertIn('vm-export,end,SUCCESS web,elapse:0 size:0G', self.status())
        left = [vdi['uuid'] for ref, vdi in self.sim.pool.tables['VDI'].items()
                if vdi['is_a_snapshot']]
        self.assertEqual(2, len(left))
        for output in output, self.ends(1, 'vm-export=db').output:
            for uuid in left:
                self.assertIn('xe vdi-destroy uuid=' + uuid, output)
        for uuid in left:
            self.xe('vdi-destroy', 'uuid=' + uuid)
        self.ends(0, 'vm-export=db')
        self.assertEqual([], self.records())

    def test_one_that_never_comes_back_is_waited_for_once_in_the_whole_run(self):
        self.script = self.changed_script(XAPI_PATIENCE=0.5, DISCARD_PAUSES=SOON)
        self.fault('VM.get_record', 'down')
        done = self.ends(2, 'vm-export=web', 'vm-export=db')
        notes = [line for line in done.lines if line.startswith('***NOTE')]
        self.assertEqual(1, len(notes), done.output)
        self.assert_told('vm-export,end,BACKUP-FAIL web', 'vm-export,end,BACKUP-FAIL db',
                         'vmbackup.py,end,ERROR,S:0 W:0 E:2')
        self.sim.restart()


class Logins(StallCase):
    def test_one_that_ends_after_a_signal_leaves_no_session(self):
        self.fault('session.login_with_password', 'slow', seconds=0.5)
        self.signalled(self.start_until('session.login_with_password', 1, 'password',
                                        self.config('vm-export=web')))
        self.assertIn('session.logout', [call.name for call in self.sim.calls('xapi')])
