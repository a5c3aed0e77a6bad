"""Failures: every step made to fail; one VM's failure never stops the others."""

import errno
import os
import re
import shutil
import signal
import socket
import unittest.mock

import VmBackup
from tests.tools.support import RUBBISH, TIME_STAMP, PoolCase

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
        self.assertEqual(['third/DATED/backup.json', 'third/DATED/success'], [
            path for path in self.tree() if re.search('/(success|backup[.]json)', path)])
        self.assertIn('web/DATED/vm.cfg', self.tree())
        for line in done.output.splitlines():
            self.assertRegex(line, TIME_STAMP)
        return done

    def fail_step_once(self, step, *lines, **fault):
        """The same, where web's and db's backups are then tried again, and good."""
        self.script = self.changed_script(RESTART_PAUSE=0.01)
        for verb, nth, _ in STEPS[step].values():
            self.fault(verb, nth=nth, **fault)
        done = self.ends(0, 'vdi-export=db', 'vm-export=web', 'vm-export=third', *lines)
        good = '%s,end,SUCCESS %s,elapse:0 size:0G%s'
        self.assertEqual([
            'vmbackup.py,begin', 'vdi-export,begin,db', 'vdi-export,end,TRY-AGAIN db',
            'vm-export,begin,web', 'vm-export,end,TRY-AGAIN web', 'vm-export,begin,third',
            good % ('vm-export', 'third', ''), 'vdi-export,begin,db',
            good % ('vdi-export', 'db', ' try:2'), 'vm-export,begin,web',
            good % ('vm-export', 'web', ' try:2'), 'vmbackup.py,end,SUCCESS,S:3 W:0 E:0'],
            self.status())
        for name, (_, _, token) in zip(('web', 'db'), STEPS[step].values()):
            self.assertEqual(1, done.output.count(' TRY-AGAIN %s: %s: ' % (name, token)))
        self.assertEqual(3, len([path for path in self.tree() if path.endswith('/success')]))
        self.assert_clean()
        return done

    def test_retries_try_what_failed_once_more_at_the_end_with_a_new_snapshot(self):
        self.fail_step_once(EXPORT, 'retries=1', **REFUSED)
        self.setUp()
        self.script = self.changed_script(RESTART_PAUSE=0.01, DISCARD_PAUSES=(0.05,))
        self.fault('vm-snapshot', 'refuse', times=2, error=REFUSED['error'])
        done = self.ends(0, 'vm-export=web', 'vm-export=db', 'vm-export=third', 'retries=1',
                         'parallel=3')
        self.assertEqual(2, done.output.count(' TRY-AGAIN '))
        self.assertEqual(2, '\n'.join(self.status()).count(' try:2'))

    def test_a_second_try_that_a_hook_skips_or_a_signal_prevents_leaves_a_failure(self):
        self.script = self.changed_script(RESTART_PAUSE=0.01)
        hook = self.program('hook', '[ $1 != backup-start ] || mkdir %s || exit 75\n'
                            % self.at('tried'))
        self.fault('vm-export', 'refuse', nth=2, error=REFUSED['error'])
        done = self.ends(2, 'vm-export=web', 'retries=1', 'hook=' + hook)
        self.assertIn('BACKUP-FAIL web: the hook skipped the second try', done.output)
        self.setUp()
        report = self.at('report.json')
        self.fault('vm-export', 'refuse', nth=2, error=REFUSED['error'])
        child = self.start('password', self.config('vm-export=web', 'retries=1',
                                                   report_file=report))
        self.wait_for(lambda: os.path.exists(self.status_log) and
                      'TRY-AGAIN' in self.read(self.status_log))
        child.send_signal(signal.SIGTERM)
        self.assertEqual(143, self.finish(child).status)
        self.assertIn('TRY-AGAIN', self.read(report))
        self.assert_clean()

    def test_a_second_try_that_fails_is_the_outcome(self):
        self.script = self.changed_script(RESTART_PAUSE=0.01)
        for nth in (2, 4):
            self.fault('vm-export', 'refuse', nth=nth, error=REFUSED['error'])
        done = self.ends(2, 'vm-export=web', 'retries=1')
        self.assertEqual(['vm-export,begin,web', 'vm-export,end,TRY-AGAIN web',
                          'vm-export,begin,web', 'vm-export,end,VM-EXPORT-FAIL web',
                          'vmbackup.py,end,ERROR,S:0 W:0 E:1'], self.status()[1:])
        self.assertEqual(1, done.output.count('ERROR vm-export VM-EXPORT-FAIL web: '))
        self.assertEqual(1, len(self.dated('web')))
        self.assertEqual('web (VM-EXPORT-FAIL)', VmBackup.last_logged(self.status_log).failed)

    def test_a_step_that_is_refused_or_dies_half_way_has_its_token_and_leaves_nothing(self):
        for step, fault in [(step, fault) for step in range(len(STEPS)) for fault in (
                REFUSED, dict(do='die', after=BEGUN))] + [(EXPORT, dict(REFUSED, after=BEGUN))]:
            with self.subTest(STEPS[step], **fault):
                self.setUp()
                if fault['do'] == 'die' and step != EXPORT:
                    self.fail_step_once(step, **fault)
                    continue
                done = self.fail_step(step, **fault)
                refused = 2 * (fault['do'] == 'refuse')
                self.assertEqual(refused, done.lines.count('Error code: SR_BACKEND_FAILURE_46'))
                self.assertEqual(refused > 0, 'The VDI is not available' in done.output)
                self.assertFalse([path for path in self.tree() if re.search(
                    r'^(web|db)/DATED/(web|db)\.', path)])       # no partial file

    def test_a_step_that_only_prints_something_fails_the_vm(self):
        for step, words in ((SNAPSHOT, ''), (SNAPSHOT, 'rubbish\n'),
                            (SNAPSHOT, '00000000-0000-0000-0000-000000000000\n'),
                            (EXPORT, ''), (EXPORT, 'Export succeeded\n')):
            with self.subTest(STEPS[step], words=words):
                self.setUp()
                self.fail_step(step, dict.fromkeys(DISCARD, words), do='print')

    def test_the_uuid_of_something_older_in_place_of_a_new_snapshots_destroys_nothing(self):
        disk = self.disk_of('db', '0')
        for vm, vdi in ((self.uuid_of('third') + '\n', self.disk_of('third', '0') + '\n'),
                        (self.xe('vm-snapshot', 'vm=web', 'new-name-label=mine'),
                         self.xe('vdi-snapshot', 'uuid=' + disk))):
            self.before = self.contents()
            self.sim.pool.journal.clear()
            self.fail_step(SNAPSHOT, {'vm-export': vm, 'vdi-export': vdi}, do='print')
            for each in (os.path.dirname(self.status_log), self.backups + '/third'):
                shutil.rmtree(each)

    def test_a_refused_removal_of_the_snapshot_that_succeeds_later_is_a_line_of_the_log(self):
        for method, verb in DISCARD.items():
            for error in (REFUSED['error'], ['VDI_IN_USE', 'OpaqueRef:x', 'destroy']):
                with self.subTest(verb=verb, error=error):
                    self.setUp()
                    self.fault(verb, 'refuse', error=error)
                    done = self.ends(0, method + '=web', method + '=db')
                    self.assertRegex(done.output, 'NOTE - xe %s failed: .*: trying again\n' % verb)
                    self.assertNotRegex(done.output, 'WARNING|ERROR')
                    self.assertEqual([], self.manifest('web')['warnings'])
                    self.assert_clean()

    def test_an_export_that_says_that_it_failed_fails_whatever_its_exit_status(self):
        for method in ('vm-export', 'vdi-export'):
            xe = self.xe_that('case $* in *.xva|*.raw) echo "Export failed, why" >&2;; esac')
            done = self.ends(2, method + '=db', VMBACKUP_XE=xe)
            self.assertIn('xe %s failed, with exit status 0' % method, done.output)
            self.assertNotIn('success', ' '.join(self.tree()))

    def test_a_removal_that_was_done_but_not_confirmed_is_recognised(self):
        self.fault('vdi-destroy', 'print', stderr='Lost connection', exit=1)
        self.ends(0, 'vdi-export=web')


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

    def test_a_vm_with_a_usb_device_is_told_of_in_preview_and_run_with_what_works(self):
        self.pool_description = {'vms': [
            {'name': 'usb', 'usb': True, 'disks': ['64 KiB', '64 KiB']}, {'name': 'web'}]}
        self.use_pool()
        for status, line, keys in ((2, 'vm-export', {}), (2, 'vdi-export', {'vdi_disks': 'all'}),
                                   (0, 'vdi-export', {})):
            with self.subTest(line, **keys):
                config = self.config(line + '=usb', 'vm-export=web', **keys)
                shown = self.command(status, 'password', config, 'preview')
                self.assertLessEqual(len(self.sim.calls('xapi')), 6)
                done = self.command(status, 'password', config)
                works = ('vdi_disks=boot', 'xe vusb-list vm-uuid=' + self.uuid_of('usb'),
                         'vusb-unplug and vusb-destroy', 'xe vm-export uuid=' + self.uuid_of('usb'))
                for words in works:
                    self.assertEqual(status == 2, words in shown.output and words in done.output)
                self.assertEqual('SNAPSHOT-FAIL' in done.output, status == 2)
                self.sim.pool.journal.clear()
        vm = self.sim.pool.call('VM.get_by_uuid', self.uuid_of('usb'))
        self.sim.pool.put('VM', vm, VUSBs=[])          # it was taken off
        self.ends(0, 'vm-export=usb')

    def test_why_a_step_that_may_fail_did_is_told_in_words(self):
        told = []
        for error in (OSError(errno.EIO, os.strerror(errno.EIO), '/x'),
                      OSError(errno.EIO, os.strerror(errno.EIO)), VmBackup.TargetError('no')):
            with VmBackup.tolerating(told, 'w'):
                raise error
        self.assertEqual(['w: cannot access /x: Input/output error', 'w: Input/output error',
                          'w: no'], told)

    def test_what_befalls_one_vm_has_its_token_and_stops_no_other(self):
        for token, befalls in (
                ('VM-NOT-FOUND', lambda: self.fault(
                    'VM.get_record', 'refuse', error=['HANDLE_INVALID', 'VM', 'OpaqueRef:gone'])),
                ('INTERNAL-ERROR', lambda: self.fault(
                    'VM.get_record', 'print', value=dict(RUBBISH, name_label=[[]]))),
                ('BACKUP-FAIL', lambda: self.put_file('BACKUPS/web'))):
            with self.subTest(token):
                befalls()
                done = self.back_up('vm-export=web', 'vm-export=db')
                self.assertEqual(2, done.status, done.output)
                self.assertEqual(token == 'INTERNAL-ERROR',
                                 'a bug in VmBackup.py' in done.output)
                self.assert_told('vm-export,end,%s web' % token,
                                 'vm-export,end,SUCCESS db,elapse:0 size:0G')
                shutil.rmtree(os.path.join(self.backups, 'web'), ignore_errors=True)

    def test_metadata_that_an_older_xapi_refuses_during_a_snapshot_are_asked_for_again(self):
        self.script = self.changed_script(SNAPSHOT_PAUSES=(0.01, 0.01))
        for times, status in ((2, 0), (3, 1)):
            self.fault('vm-export', 'refuse', times=times,
                       error=['OTHER_OPERATION_IN_PROGRESS', 'VM.snapshot', 'x'])
            self.sim.pool.xapi_version = '25.6'
            done = self.ends(status, 'vdi-export=web')
            self.assertEqual(bool(status), 'vm-metadata.xml is missing' in done.output)

    def test_a_regex_without_a_match_ends_the_run_with_a_warning_that_no_vm_has(self):
        done = self.ends(1, 'vm-export=nope.*', 'vm-export=db')
        self.assertIn('vmbackup.py,end,WARNING,S:1 W:0 E:0', self.status())
        self.assertIn('VmBackup ended - **WARNING(s)** - S:1 W:0 E:0', done.lines)

    def test_a_template_or_snapshot_of_the_same_name_and_one_with_our_label_stay_as_they_are(self):
        self.pool_description = {'vms': [
            {'name': 'web', 'disks': ['64 KiB'], 'snapshots': ['web', 'RESTORE_web']},
            {'name': 'web', 'template': True}]}
        self.use_pool()
        uuid = self.xe('snapshot-list', 'name-label=RESTORE_web', '--minimal').strip()
        done = self.ends(1, 'vm-export=web')
        self.assertRegex(done.output, '%s.* not touched' % uuid)
        self.assertIn('vmbackup.py,end,WARNING,S:0 W:1 E:0', self.status())


class FailuresOfTheRun(FailureCase):
    def test_a_snapshot_of_which_a_daemon_that_died_did_not_tell_is_removed(self):
        for verb, do, nth, token in (
                ('vm-snapshot', 'down-after', 1, 'SNAPSHOT-FAIL'), ('vm-export', 'down', 2,
                                                                    'VM-EXPORT-FAIL'),
                ('vdi-snapshot', 'down-after', 1, 'VDI-SNAPSHOT-FAIL')):
            with self.subTest(verb):
                self.setUp()
                method = verb.partition('-')[0] + '-export'
                self.fault(verb, do, nth=nth)
                self.ends(2, method + '=db')
                self.assertIn('%s,end,%s db' % (method, token), self.status())
                self.assertNotEqual(self.before['VDI'], self.contents()['VDI'])
                self.sim.restart()
                self.ends(0, method + '=db')
                self.assert_clean()

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

    def test_a_backup_that_cannot_be_read_neither_counts_nor_is_deleted_and_holds_up_nothing(self):
        old = [self.old_backup('web', 'backup-2019-01-0%d-(00:00:00)' % day, 'success', 'web.xva')
               for day in (1, 2, 3)]
        os.symlink('backup.json', old[1] + '/backup.json')         # ELOOP
        os.makedirs(self.backups + '/somebody/s')
        os.symlink('backup.json', self.backups + '/somebody/s/backup.json')
        for pre_clean, left in (('False', 3), ('True', 3)):
            config = self.config('vm-export=web', max_backups=2, pre_clean=pre_clean)
            done = self.command(1, 'password', config)
            self.assertIn('WARNING - web: cannot read %s, which neither counts' % old[1],
                          done.output)
            self.assertEqual((left, True), (len(self.dated('web')), os.path.isdir(old[1])))
        self.command(0, 'verify', config)
        self.command(0, 'list', config)
        self.command(0, 'status', config)
        self.assertNotIn('passed over', self.command(
            0, 'password', 'restore=web', 'preview', 'from=' + config).output)
        self.assertIn('ERROR %s: cannot access' % old[1], self.command(
            2, 'verify', config, 'backups=all').output)
        done = self.command(2, 'prune', config)
        self.assertIn('2 kept, 0 deleted', done.output)

    def refusing(self, name, refuses, number=errno.EIO):
        """A function of os that fails for paths of which that is so."""
        real = getattr(os, name)

        def call(path, *arguments, **words):
            if refuses(str(path)):
                raise OSError(number, 'Input/output error')
            return real(path, *arguments, **words)
        return unittest.mock.patch('os.' + name, call)

    def test_an_old_directory_in_which_nothing_can_be_looked_for_is_a_warning(self):
        bad = self.old_backup('web', 'backup-2026-01-01-(00:00:00)', 'success_compress', 'web.xva')
        with self.refusing('stat', lambda path: path == 'success_compress'):
            status, output = self.run_here('vm-export=web')
        self.assertEqual(1, status, output)
        self.assertIn('WARNING - web: cannot read %s, which neither counts' % bad, output)
        self.assertIn('vm-export,end,WARNING web', '\n'.join(self.status()))

    def test_a_failed_export_on_a_share_in_trouble_keeps_its_word_and_reason(self):
        xe = self.xe_whose('vm-export', '[ "$#" = 0 ] || { touch %s; echo oops >&2; exit 1; }'
                           % self.at('failed'))
        with self.refusing('stat', lambda path: path.endswith('.xva')
                           and os.path.exists(self.at('failed'))):
            status, output = self.run_here('vm-export=web', VMBACKUP_XE=xe)
        self.assertEqual(2, status, output)
        self.assertIn('ERROR vm-export VM-EXPORT-FAIL web: xe vm-export failed: oops', output)

    def test_words_of_xe_beside_the_uuid_of_a_snapshot_leave_none_behind(self):
        xe = self.program('words', '[ $1 = vm-snapshot ] && echo "a note of the shell"\n'
                          'exec %s "$@"\n' % self.sim.xe)
        done = self.ends(2, 'vm-export=web', VMBACKUP_XE=xe)
        self.assertIn('SNAPSHOT-FAIL web: xe printed no uuid of a snapshot', done.output)
        self.assert_clean()

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

    def bad_places(self):
        """(path, what is said of it) of all that is no file of its own; what was in that stays."""
        rc, no_file = self.put_file('.bashrc', 'PS1=#\n'), 'is not a regular file'
        self.addCleanup(lambda: self.assertEqual('PS1=#\n', self.read(rc)))
        yield self.at('.bashrc', 'status.log'), 'Not a directory'
        yield self.directory, no_file
        yield '/dev/full', no_file
        for make, reason in ((os.symlink, 'is a symbolic link'),
                             (os.link, 'has another name, too (a hard link)')):
            make(rc, self.at(make.__name__))
            yield self.at(make.__name__), reason
        os.mkfifo(self.at('pipe'))
        yield self.at('pipe'), no_file
        handle = os.open(self.at('pipe'), os.O_RDONLY | os.O_NONBLOCK)     # somebody reads it
        self.addCleanup(os.close, handle)
        yield self.at('pipe'), no_file
        self.addCleanup(lambda: self.assertEqual(b'', os.read(handle, 1)))
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(self.at('socket'))
        yield self.at('socket'), no_file
        os.symlink(self.at('elsewhere'), self.backups + '/logs')   # on the share, which is others'
        os.mkdir(self.at('elsewhere'))
        yield self.backups + '/logs/new/status.log', 'is a symbolic link'
        self.assertEqual([], os.listdir(self.at('elsewhere')))
        yield self.backups + '/logs/status.log', 'is a symbolic link'
        self.assertEqual([], os.listdir(self.at('elsewhere')))

    def test_no_status_log_is_written_to_dev_null(self):
        self.ends(0, 'vm-export=db', status_log='/dev/null')
        self.assertFalse(os.path.exists('/dev/null.json'))

    def test_a_status_log_that_cannot_be_written_is_one_warning(self):
        for path, reason in self.bad_places():
            with self.subTest(path):
                done = self.ends(1, 'vm-export=db', status_log=path)
                self.assertTrue(os.path.exists(self.newest('db', 'success')))
                warning, = [line for line in done.lines if 'status_log' in line and
                            '**WARNING' in line]
                self.assertIn('***WARNING - cannot write status_log %s: ' % path, warning)
                self.assertIn(reason, warning)
                self.assertIn('VmBackup ended - **WARNING(s)** - S:1 W:0 E:0', done.lines)

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
