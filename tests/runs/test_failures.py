"""Failures: every step made to fail; one VM's failure never stops the others."""

import os
import shutil

import VmBackup
from tests.tools.support import PoolCase

REFUSED = {'do': 'refuse', 'error': ['SR_BACKEND_FAILURE_46', '', 'The VDI is not available', '']}
BEGUN = 150000                     # bytes of web's archive or image: in mid-export
# (verb, its nth call, token): in the run below xe's vm-export is called for the metadata of db and
# of web first, so the export itself is its third call
STEPS = ({'vm-export': ('vm-snapshot', 1, 'SNAPSHOT-FAIL'),
          'vdi-export': ('vdi-snapshot', 1, 'VDI-SNAPSHOT-FAIL')},
         {'vm-export': ('template-param-set', 1, 'TEMPLATE-PARAM-SET-FAIL'),
          'vdi-export': ('vdi-param-set', 1, 'VDI-PARAM-SET-FAIL')},
         {'vm-export': ('vm-export', 3, 'VM-EXPORT-FAIL'),
          'vdi-export': ('vdi-export', 1, 'VDI-EXPORT-FAIL')})
SNAPSHOT, _, EXPORT = range(len(STEPS))
DISCARD = {'vm-export': 'vm-uninstall', 'vdi-export': 'vdi-destroy'}


class FailureCase(PoolCase):
    """A test whose runs are in a hurry."""

    pool_description = {'vms': [
        {'name': 'web', 'power_state': 'Running', 'disks': [
            {'size': '256 KiB', 'fill': 1}, '64 KiB']},
        {'name': 'db', 'disks': [{'size': '256 KiB', 'fill': 1}, '64 KiB'], 'ran': True},
        {'name': 'third', 'disks': ['64 KiB']}]}

    def setUp(self):
        super().setUp()
        self.script = self.changed_script(DISCARD_PAUSES=(0.05, 0.05), XAPI_PATIENCE=0.3)


class FailingSteps(FailureCase):
    """Each of the four xe commands of each method fails: nothing is left, the others go on."""

    def fail_step(self, step, stdout=(), **fault):
        """Make a step of each method fail, web's and db's; check tokens, exit status and the third
        VM. stdout: what the steps print, by method."""
        tokens = {}
        for method, (verb, nth, tokens[method]) in STEPS[step].items():
            self.fault(verb, nth=nth, **dict(fault, **{'stdout': stdout[method]} if stdout else {}))
        done = self.ends(2, 'vdi-export=db', 'vm-export=web', 'vm-export=third')
        self.assertEqual(['vmbackup.py,begin', 'vdi-export,begin,db',
                          'vdi-export,end,%s db' % tokens['vdi-export'], 'vm-export,begin,web',
                          'vm-export,end,%s web' % tokens['vm-export'], 'vm-export,begin,third',
                          'vm-export,end,SUCCESS third,elapse:0 size:0G',
                          'vmbackup.py,end,ERROR,S:1 W:0 E:2'], self.status())
        self.assert_clean()
        self.assertEqual(['third/DATED/success'],
                         [path for path in self.tree() if '/success' in path])
        return done

    def test_a_refused_step_has_its_token_and_leaves_nothing(self):
        for step in range(len(STEPS)):
            with self.subTest(STEPS[step]):
                self.setUp()
                done = self.fail_step(step, **REFUSED)
                self.assertEqual(2, done.lines.count('Error code: SR_BACKEND_FAILURE_46'))
                self.assertIn('The VDI is not available', done.output)

    def test_a_step_that_dies_half_way_has_its_token_and_leaves_nothing(self):
        for step in range(len(STEPS)):
            with self.subTest(STEPS[step]):
                self.setUp()
                self.fail_step(step, do='die', after=BEGUN)

    def test_a_snapshot_command_that_prints_rubbish_fails_the_vm(self):
        for words in ('', 'rubbish\n', '00000000-0000-0000-0000-000000000000\n'):
            with self.subTest(words):
                self.setUp()
                self.fail_step(SNAPSHOT, dict.fromkeys(DISCARD, words), do='print')

    def test_the_uuid_of_a_real_vm_or_disk_in_place_of_a_snapshots_destroys_nothing(self):
        self.fail_step(SNAPSHOT, {'vm-export': self.uuid_of('third') + '\n',
                                  'vdi-export': self.disk_of('third', '0') + '\n'}, do='print')

    def test_the_uuid_of_an_older_snapshot_in_place_of_a_new_one_destroys_nothing(self):
        older = {'vm-export': self.xe('vm-snapshot', 'vm=web', 'new-name-label=mine'),
                 'vdi-export': self.xe('vdi-snapshot', 'uuid=' + self.disk_of('db', '0'))}
        self.before = self.contents()
        self.sim.pool.journal.clear()
        self.fail_step(SNAPSHOT, older, do='print')

    def test_a_storage_error_in_mid_export_fails_the_vm_and_leaves_no_partial_file(self):
        self.fail_step(EXPORT, after=BEGUN, **REFUSED)
        self.assertEqual([], [path for path in self.tree() if '/DATED/web.' in path or
                              '/DATED/db.' in path])

    def test_an_export_that_says_nothing_or_writes_nothing_fails(self):
        for words in ('', 'Export succeeded\n'):
            self.setUp()
            self.fail_step(EXPORT, {'vm-export': words, 'vdi-export': ''}, do='print')

    def test_a_refused_removal_of_the_snapshot_is_tried_again_and_a_warning(self):
        for method, verb in DISCARD.items():
            with self.subTest(verb):
                self.setUp()
                self.fault(verb, **REFUSED)
                self.ends(1, method + '=web', method + '=db')
                self.assert_told(method + ',end,WARNING web,elapse:0 size:0G',
                                 'vmbackup.py,end,WARNING,S:1 W:1 E:0')
                self.assert_clean()

    def test_a_raw_image_that_is_shorter_than_the_disk_fails(self):
        done = self.assert_ends(2, self.vmbackup('password', self.config(
            'vdi-export=db'), VMBACKUP_XE=self.xe_whose('vdi-export', 'exec truncate -s 64K "$1"')))
        self.assertIn('the image has 65536 bytes, the disk 262144', done.output)
        self.assertIn('vdi-export,end,VDI-EXPORT-FAIL db', self.status())

    def test_a_removal_that_was_done_but_not_confirmed_is_recognised(self):
        self.fault('vdi-destroy', 'print', stderr='Lost connection', exit=1)
        self.ends(1, 'vdi-export=web')

    def test_a_snapshot_that_could_not_be_removed_is_removed_by_the_next_run(self):
        for method, verbs in (('vm-export', ('vm-uninstall', 'snapshot-uninstall')),
                              ('vdi-export', ('vdi-destroy',))):
            with self.subTest(method):
                self.setUp()
                for verb in verbs:
                    self.fault(verb, times=0, **REFUSED)
                done = self.ends(1, method + '=db')
                self.assertIn('was left in the pool', done.output)
                self.assertNotEqual(self.before['VDI'], self.contents()['VDI'])
                self.sim.pool.faults.clear()
                done = self.ends(0, method + '=db')
                self.assert_clean()
                self.assertEqual([], [path for path in self.tree() if 'snapshot.json' in path])


class FailuresOfOneVm(FailureCase):
    def test_a_vm_without_disks_is_no_candidate_for_vdi_export(self):
        self.pool_description = {'vms': [{'name': 'diskless', 'disks': []},
                                         {'name': 'web', 'disks': ['64 KiB']}]}
        self.use_pool()
        self.ends(2, 'vdi-export=.*')
        self.assert_told('vdi-export,end,NO-BOOT-DISK diskless',
                         'vdi-export,end,SUCCESS web,elapse:0 size:0G')

    def test_the_boot_disk_is_xvda_although_the_vm_never_ran_or_else_the_bootable_one(self):
        for ran, other, boot, bootable in ((False, '3', '0', False), (True, '1', '2', True)):
            with self.subTest(boot):
                self.pool_description = {'vms': [{'name': 'new', 'ran': ran, 'disks': [
                    {'size': '64 KiB', 'device': other, 'bootable': False},
                    {'size': '128 KiB', 'device': boot, 'bootable': bootable}]}]}
                self.setUp()
                self.ends(0, 'vdi-export=new')
                self.assertEqual(128 << 10, os.stat(self.newest('new', 'new.raw')).st_size)
                self.assertIn('new/DATED/DISK-xvd' + 'abcd'[int(other)], self.tree())

    def test_a_vm_directory_that_is_a_file_stops_only_that_vm(self):
        self.put_file(os.path.join(self.backups, 'web'))
        self.ends(2, 'vm-export=web', 'vm-export=db')
        self.assert_told('vm-export,end,BACKUP-FAIL web',
                         'vm-export,end,SUCCESS db,elapse:0 size:0G')

    def test_a_missing_vm_is_an_error_and_the_others_are_backed_up(self):
        done = self.ends(2, 'vm-export=gone', 'vm-export=db')
        self.assertIn('***ERROR - vm not found: vm-export=gone (%s/run.cfg line 3)' %
                      self.directory, done.lines)
        self.assert_told('vm-export,end,VM-NOT-FOUND gone', 'vmbackup.py,end,ERROR,S:1 W:0 E:1')

    def test_a_regex_without_a_match_ends_the_run_with_a_warning_that_no_vm_has(self):
        done = self.ends(1, 'vm-export=nope.*', 'vm-export=db')
        self.assertIn('vmbackup.py,end,WARNING,S:1 W:0 E:0', self.status())
        self.assertIn('VmBackup ended - **WARNING(s)** - S:1 W:0 E:0', done.lines)

    def test_a_vm_that_goes_away_during_the_night_is_an_error_of_its_own(self):
        self.fault('VM.get_record', 'refuse', nth=1,
                   error=['HANDLE_INVALID', 'VM', 'OpaqueRef:gone'])
        self.ends(2, 'vm-export=web', 'vm-export=db')
        self.assert_told('vm-export,end,VM-NOT-FOUND web',
                         'vm-export,end,SUCCESS db,elapse:0 size:0G')

    def test_a_template_snapshot_or_control_domain_of_the_same_name_does_no_harm(self):
        self.pool_description = {'vms': [
            {'name': 'web', 'disks': ['64 KiB'], 'snapshots': ['web', 'RESTORE_web']},
            {'name': 'web', 'template': True}]}
        self.use_pool()
        done = self.ends(1, 'vm-export=web')   # tells of the snapshot named like ours
        self.assertIn('not touched', done.output)
        self.assertIn('vmbackup.py,end,WARNING,S:0 W:1 E:0', self.status())

    def test_a_real_vm_called_like_our_snapshot_survives(self):
        self.pool_description = {'vms': [{'name': 'jira', 'disks': ['64 KiB']},
                                         {'name': 'RESTORE_jira', 'disks': ['64 KiB']}]}
        self.use_pool()
        for _ in range(2):
            self.ends(0, 'vm-export=.*')
        self.assert_clean()

    def test_an_unexpected_answer_of_the_pool_is_that_vms_internal_error(self):
        self.fault('VM.get_record', 'print', value=dict.fromkeys(VmBackup.FIELDS['VM'], [[]]))
        done = self.back_up('vm-export=web', 'vm-export=db')
        self.assertEqual(2, done.status, done.output)
        self.assertIn('vm-export,end,INTERNAL-ERROR web', self.status())
        self.assertIn('a bug in VmBackup.py', done.output)
        self.assertIn('vm-export,end,SUCCESS db,elapse:0 size:0G', self.status())


class FailuresOfTheRun(FailureCase):
    def test_a_missing_backup_directory_is_an_error(self):
        done = self.ends(2, 'vm-export=db', backup_dir='/nonexistent/backups')
        self.assertIn('config backup_dir does not exist', done.output)
        self.assertEqual(['vmbackup.py,begin', 'vmbackup.py,end,ERROR,S:0 W:0 E:1'], self.status())

    def test_a_daemon_that_dies_in_mid_export_is_told(self):
        self.leaves_things_behind = True       # nobody is there to remove it
        self.fault('vm-export', 'down', nth=2)
        self.ends(2, 'vm-export=db')
        self.assertIn('vm-export,end,VM-EXPORT-FAIL db', self.status())
        self.sim.restart()
        self.ends(0, 'vm-export=db')
        self.assert_clean()

    def test_a_snapshot_whose_client_died_is_removed(self):
        for method in ('vm', 'vdi'):
            with self.subTest(method):
                self.setUp()
                self.fault(method + '-snapshot', 'down-after')
                self.ends(2, method + '-export=db')
                self.assertNotEqual(self.before['VDI'], self.contents()['VDI'])
                self.sim.restart()
                self.ends(0, method + '-export=db')
                self.assert_clean()

    def test_a_persons_snapshot_with_our_label_is_told_of_and_never_touched(self):
        web = self.sim.pool.call('VM.get_by_name_label', 'db')[0]
        uuid = self.xe('vm-snapshot', 'uuid=' + self.sim.pool.tables['VM'][web]['uuid'],
                       'new-name-label=RESTORE_db').strip()
        self.before = self.contents()
        done = self.ends(1, 'vm-export=db')
        self.assertIn('not touched', done.output)
        self.assertIn(uuid, self.xe('snapshot-list', 'params=uuid'))
        self.assertIn(uuid, done.output)

    def test_a_backup_that_tells_of_a_snapshot_of_ours_is_not_rotated_away(self):
        for verb in ('vm-uninstall', 'snapshot-uninstall'):
            self.fault(verb, times=0, **REFUSED)
        for _ in range(2):
            self.ends(1, 'vm-export=db:1')
        self.assertEqual(2, len(self.dated('db')))
        self.ends(2, 'vm-export=db:1')     # there are enough of them
        self.assertIn('vm-export,end,SNAPSHOT-FAIL db', self.status())
        self.assertEqual(2, len(self.dated('db')))
        self.sim.pool.faults.clear()
        self.ends(0, 'vm-export=db:1')
        self.assert_clean()
        self.assertEqual(1, len(self.dated('db')))

    def test_an_unreadable_record_is_a_warning(self):
        old = self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'success')
        os.mkdir(os.path.join(old, 'snapshot.json'))
        self.ends(1, 'vm-export=db')
        self.assertIn('vm-export,end,WARNING db,elapse:0 size:0G', self.status())

    def test_a_new_disk_snapshot_that_may_be_ours_or_not_is_told_of(self):
        failed = self.old_backup('db', 'backup-2019-01-01-(00:00:00)')
        disk = self.disk_of('db', '0')
        made = [self.xe('vdi-snapshot', 'uuid=' + disk).strip() for _ in range(2)]
        self.before = self.contents()
        self.record(failed, disk, since='2', until='3')
        done = self.ends(1, 'vdi-export=db')
        for uuid in made:
            self.assertIn('the snapshot %s, called db 0, was not made' % uuid, done.output)

    def test_a_backup_directory_that_vanishes_is_not_made_again(self):
        self.at_call('VM.get_record', lambda: os.rename(self.backups, self.backups + '.gone'))
        self.ends(2, 'vm-export=db', 'vm-export=web')
        self.assertFalse(os.path.exists(self.backups))
        self.assertIn('vmbackup.py,end,ERROR,S:0 W:0 E:2', self.status())

    def test_the_write_test_follows_no_link_and_knows_no_vms_directory(self):
        precious = self.put_file('precious', 'precious')
        for name in ('00VMbackupWriteTest', '00VMbackupWriteTest%20'):
            os.symlink(precious, os.path.join(self.backups, name))
        self.back_up('vm-export=db')
        self.assertEqual('precious', self.read(precious))
        self.pool_description = {'vms': [{'name': '00VMbackupWriteTest'},
                                         {'name': '00VMbackupWriteTest%20'}]}
        self.use_pool()
        for name in os.listdir(self.backups):
            if name.startswith('00'):
                os.unlink(os.path.join(self.backups, name))
        for _ in range(2):
            self.ends(0, 'vm-export=.*')

    def test_a_status_log_that_cannot_be_written_is_one_warning(self):
        self.put_file('file')
        for path, reason in ((self.at('file', 'status.log'), 'File exists'),
                             (self.directory, 'Is a directory'), ('/dev/full', 'No space left')):
            with self.subTest(path):
                done = self.ends(1, 'vm-export=db', status_log=path)
                self.assertTrue(os.path.exists(self.newest('db', 'success')))
                warning, = [line for line in done.lines if 'status_log' in line and
                            'WARNING' in line]
                self.assertIn('***WARNING - cannot write status_log %s: ' % path, warning)
                self.assertIn(reason, warning)
                self.assertIn('VmBackup ended - **WARNING(s)** - S:1 W:0 E:0', done.lines)

    def test_only_missing_vms_are_told_in_the_status_log_too(self):
        self.ends(2, 'vm-export=gone')
        self.assertIn('vm-export,end,VM-NOT-FOUND gone', self.status())

    def test_a_record_of_another_vms_snapshot_is_not_ours_to_act_on(self):
        victim = self.xe('vm-snapshot', 'vm=web', 'new-name-label=RESTORE_db').strip()
        self.before = self.contents()
        ref = self.sim.pool.ref_of('VM', self.uuid_of('db'))
        for fields in (dict(uuid=victim), dict(label='RESTORE_db'), dict(before=5)):
            failed = self.old_backup('db', 'backup-2019-01-01-(00:00:00)')
            self.record(failed, self.disk_of('db', '0'), kind='VM', of=self.uuid_of('db'), ref=ref,
                        **fields)
            self.back_up('vm-export=db')
            self.assert_clean()
            shutil.rmtree(failed, ignore_errors=True)

    def test_a_changed_boot_disk_does_not_make_other_snapshots_ours(self):
        self.fault('vdi-snapshot', 'refuse', error=['SR_BACKEND_FAILURE_1', '', ''])
        self.back_up('vdi-export=db')
        failed = self.dated('db')[0]
        uuid = self.xe('vdi-snapshot', 'uuid=' + self.disk_of('db', '0')).strip()
        self.before = self.contents()
        self.record(failed, self.disk_of('db', '1'))
        self.ends(0, 'vdi-export=db')
        self.assertIn(uuid, self.xe('vdi-list', 'params=uuid'))

    def test_a_leftover_is_settled_whatever_method_the_vm_has_now(self):
        self.script = self.changed_script(DISCARD_PAUSES=())
        self.fault('vdi-destroy', times=2, **REFUSED)
        self.ends(1, 'vdi-export=db')
        self.assertNotEqual(self.before['VDI'], self.contents()['VDI'])
        self.ends(0, 'vm-export=db')
        self.assert_clean()
