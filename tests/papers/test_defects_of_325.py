"""What 3.25 did to its users: every defect of it that is known, and the test that it is gone.

DEFECTS names them in a few words, with the tests that hold each; those that are in no other
module are below.
"""

import ast
import io
import os
import re
import signal
import time
import unittest

import VmBackup
from tests import ROOT, SCRIPT
from tests.tools.support import LIMIT, PoolCase

REFUSED = {'do': 'refuse', 'error': ['SR_BACKEND_FAILURE_46', '', 'The VDI is not available', '']}

# (number, what went wrong, tests: module.class.method)
DEFECTS = (
    (1, 'VMs and disks were destroyed for their names', '''
        test_defects_of_325.InThePool.test_a_vm_called_RESTORE_web_is_never_uninstalled
        test_defects_of_325.InThePool.test_a_disk_called_SNAP_web_is_never_destroyed
        test_failures.FailuresOfOneVm.test_a_real_vm_called_like_our_snapshot_survives'''),
    (2, 'whatever lay beside backups was counted and deleted as one', '''
        test_runs.Rotation.test_what_is_not_ours_is_neither_counted_nor_deleted
        test_runs.Rotation.test_failed_backups_never_push_out_good_ones'''),
    (3, 'a loose file among the backups ended the night', '''
        test_defects_of_325.OnDisk.test_a_loose_file_among_the_backups_does_not_end_the_night'''),
    (4, 'names of VMs were paths', '''
        test_defects_of_325.OnDisk.test_a_vm_called_dot_dot_deletes_nobodys_backups
        test_defects_of_325.OnDisk.test_a_vm_called_as_the_pool_dumps_directory_harms_no_dump
        test_names.OddNames.test_whole_vms_of_any_name_are_backed_up_and_rotated'''),
    (5, 'a second run deleted what the first was writing', '''
        test_defects_of_325.OnDisk.
            test_a_second_cron_run_does_not_delete_the_export_of_the_first'''),
    (6, 'pre_clean deleted before there was a snapshot', '''
        test_runs.Rotation.test_pre_clean_deletes_nothing_when_the_snapshot_fails
        test_runs.Rotation.test_pre_clean_never_deletes_the_last_good_backup'''),
    (7, 'the disk below a share that was not mounted was filled', '''
        test_defects_of_325.OnDisk.
            test_a_share_that_is_not_mounted_does_not_fill_the_disk_below'''),
    (8, 'a backup counted before it was complete and on disk', '''
        test_defects_of_325.OnDisk.test_an_export_that_was_cut_off_never_counts
        test_failures.FailingSteps.test_an_export_that_says_nothing_or_writes_nothing_fails
        test_faults_kill.OrderOfOperations.
            test_the_marker_comes_after_everything_else_is_on_the_disk
        test_runs.Markers.test_the_limit_can_be_set'''),
    (9, 'a failed export left its snapshot', '''
        test_failures.FailingSteps.test_a_refused_step_has_its_token_and_leaves_nothing
        test_failures.FailingSteps.test_a_storage_error_in_mid_export_fails_the_vm_and_leaves_no_partial_file
        test_leftovers.Records.test_an_unlabelled_disk_snapshot_of_that_moment_is_ours'''),
    (10, 'a killed run left its snapshot, several left all but one', '''
        test_defects_of_325.InThePool.test_of_several_leftovers_all_are_removed_not_only_the_last
        test_signals.Signals.test_a_signal_in_mid_export_ends_it_and_removes_the_snapshot
        test_signals.Signals.test_a_run_that_was_killed_is_cleaned_up_by_the_next'''),
    (11, 'no run ever logged out', 'test_login.Sessions.test_every_way_out_logs_out'),
    (12, 'exit status 0 after errors', '''
        test_differences.CommandLine.test_exit_status_tells_errors_and_warnings
        test_differences.CommandLine.test_help_texts_end_with_0
        test_preview.Preview.test_it_changes_nothing'''),
    (13, 'a configured VM that was gone was a success', '''
        test_failures.FailuresOfOneVm.test_a_missing_vm_is_an_error_and_the_others_are_backed_up
        test_failures.FailuresOfTheRun.test_only_missing_vms_are_told_in_the_status_log_too'''),
    (14, 'empty metadata was a success', '''
        test_runs.Metadata.test_a_metadata_export_that_is_cut_off_or_empty_is_noticed'''),
    (15, 'the pool database was never dumped, and that was a success', '''
        test_defects_of_325.Reports.test_a_master_of_another_name_dumps_the_pool_database
        test_runs.PoolDatabase.test_a_failing_dump_is_an_error_and_the_vms_are_backed_up
        test_runs.PoolDatabase.test_dumps_are_all_kept_unless_a_number_is_given
        test_runs.PoolDatabase.test_a_dump_is_made_for_its_owner_only'''),
    (16, 'what xe said of a failure was lost', '''
        test_differences.Run.test_words_of_xe_are_lines_of_the_log
        test_failures.FailingSteps.test_a_snapshot_command_that_prints_rubbish_fails_the_vm'''),
    (17, 'nobody was told of a run that died', '''
        test_mail.WhenItIsSent.test_a_run_that_dies_early_is_told_by_mail
        test_mail.BadServers.test_three_failures_are_a_warning'''),
    (18, 'a misspelt compress= meant none, and zstd too', '''
        test_defects_of_325.Reports.test_compress_that_is_not_understood_is_never_no_compression
        test_runs.ANight.test_compression_names_the_file_and_is_asked_of_xe
        test_runs.ANight.test_compress_can_stand_in_the_config_and_the_command_line_wins'''),
    (19, 'names were run as commands by root', '''
        test_defects_of_325.Security.test_no_name_in_the_pool_is_ever_run_as_a_command
        test_names.OddNames.test_disks_of_vms_of_any_name_are_backed_up_and_rotated'''),
    (20, "root's password could be read", '''
        test_login.Passwords.test_local_needs_no_password_on_the_unix_socket
        test_login.PasswordFiles.
            test_only_its_owner_can_read_it_whatever_the_umask_and_whatever_was_there
        test_login.Members.test_the_password_never_goes_to_another_machine_in_the_clear
        test_secrets.Children.test_no_child_has_a_password_in_its_command_line_or_environment
        test_login.Addresses.test_a_pool_that_is_down_is_one_clear_line'''),
    (21, 'an exclude with a dot left other VMs without backups, unseen', '''
        test_defects_of_325.Reports.test_all_that_an_exclude_with_a_dot_catches_is_shown
        test_selection.Patterns.test_a_name_with_regex_characters_also_means_that_very_vm'''),
    (22, 'a template passed as the VM of that name', '''
        test_failures.FailuresOfOneVm.
            test_a_template_snapshot_or_control_domain_of_the_same_name_does_no_harm
        test_preview.Preview.test_templates_and_snapshots_are_no_candidates'''),
    (23, 'colons, equals signs and commas broke names and values', '''
        test_settings.Lines.test_a_line_is_split_at_its_first_equals_sign
        test_settings.Lines.test_comments_and_empty_lines_are_passed_over
        test_selection.Patterns.test_retention_follows_the_last_colon
        test_names.OddNames.test_each_name_can_be_selected_by_itself'''),
    (24, 'wrong numbers passed, a key given twice crashed', '''
        test_settings.Keys.test_wrong_values_are_named_with_file_and_line_and_the_default_stays
        test_settings.Keys.test_the_last_line_of_a_key_wins
        test_selection.Verdicts.test_a_retention_that_is_no_number_is_an_error'''),
    (25, 'an exclude worked for the lines below it only', '''
        test_differences.ConfigFile.test_an_exclude_may_stand_below_the_lines_that_it_concerns'''),
    (26, 'one bad VM ended the night for all', '''
        test_failures.FailuresOfOneVm.test_a_vm_directory_that_is_a_file_stops_only_that_vm
        test_failures.FailuresOfOneVm.
            test_an_unexpected_answer_of_the_pool_is_that_vms_internal_error
        test_failures.FailuresOfOneVm.test_a_vm_without_disks_is_no_candidate_for_vdi_export'''),
    (27, 'an umlaut under cron ended the night', '''
        test_runs.Metadata.test_cfg_files_have_the_keys_of_3_25_in_utf_8_under_any_locale'''),
    (28, 'no directory for the status log, no backup; mails held all of history', '''
        test_differences.Run.test_the_directory_of_the_status_log_is_made
        test_mail.TheMail.test_its_body_is_the_log_of_this_run'''),
    (29, 'an xe that hung did so for ever', '''
        test_differences.Run.test_an_xe_that_hangs_is_ended
        test_mail.BadServers.test_a_server_that_never_answers_is_given_up'''),
    (30, 'names of directories, and the order of backups, depended on clock and share', '''
        test_defects_of_325.OnDisk.
            test_a_clock_that_was_put_back_does_not_make_the_newest_the_oldest
        test_runs.Rotation.test_another_name_pattern_and_the_default_one_are_both_known
        test_runs.Rotation.test_two_backups_of_one_second_get_directories_of_their_own
        test_differences.Run.test_a_backup_of_more_than_a_day_takes_more_than_a_day'''),
    (31, 'only xvda was exported, and a first failure was never cleaned up', '''
        test_failures.FailuresOfOneVm.test_the_boot_disk_of_a_vm_that_never_ran_is_found
        test_failures.FailuresOfOneVm.test_the_bootable_disk_is_taken_where_there_is_no_xvda
        test_runs.Rotation.test_failed_backups_older_than_every_good_one_go_too'''),
    (32, 'memory grew with every line of the log', '''
        test_defects_of_325.Reports.test_a_very_long_night_keeps_a_bounded_part_of_its_log'''),
)


class Table(unittest.TestCase):
    """DEFECTS itself."""

    def test_every_defect_has_a_test_that_exists(self):
        self.assertEqual(list(range(1, 33)), [number for number, _, _ in DEFECTS])
        for number, words, names in DEFECTS:
            with self.subTest(number=number, words=words):
                self.assertTrue(listed(names), 'no test')
                for name in listed(names):
                    module, group, test = name.split('.')
                    self.assertIn(test, methods(module).get(group, ()), name)

    def test_every_test_here_is_in_the_table(self):
        named = {name for _, _, names in DEFECTS for name in listed(names)}
        here = {'test_defects_of_325.%s.%s' % (group, test)
                for group, tests in methods('test_defects_of_325').items() if group != 'Table'
                for test in tests if test.startswith('test_')}
        self.assertEqual(set(), here - named)


def listed(names):
    """The tests of a line of the table; a long one goes on in the next line, after a dot."""
    return re.sub(r'\.\s+', '.', names).split()


def methods(module):
    """{class: names of its methods} of a test module."""
    with open(os.path.join(ROOT, 'tests', module + '.py'), encoding='utf-8') as stream:
        tree = ast.parse(stream.read())
    return {node.name: [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
            for node in tree.body if isinstance(node, ast.ClassDef)}


class DefectCase(PoolCase):
    """A test with VMs of the names that 3.25 took for its own."""

    pool_description = {'vms': [
        {'name': 'web', 'disks': ['1 MiB'], 'ran': True},
        {'name': 'db', 'disks': ['64 KiB'], 'ran': True}]}

    def wait_for(self, condition, child=None):
        """Wait until something has happened, while the child runs."""
        end = time.monotonic() + LIMIT
        while not condition():
            self.assertLess(time.monotonic(), end, 'it never happened')
            if child is not None:
                self.assertIsNone(child.poll(), 'it ended before')
            time.sleep(0.01)

    def calls_of(self, verb):
        """How often an xe verb was called so far."""
        return [name for name, _ in self.xe_calls()].count(verb)

    def killed_in(self, verb, *lines, **options):
        """Kill a run with -9 in the nth next call of a verb; the pool then comes to rest."""
        before = self.calls_of(verb)
        nth = 2 if verb == 'vm-export' else 1          # the first one is for the metadata
        self.sim.pool.faults.add(verb, 'slow', nth=nth, rate=4000000)
        child = self.start_with(
            ['password', self.config(*lines)], script=options.get('script', SCRIPT))
        self.wait_for(lambda: self.calls_of(verb) >= before + nth, child)
        os.kill(child.pid, signal.SIGKILL)
        self.finish(child)
        self.wait_for(lambda: not self.contents()['task'])
        self.sim.pool.tables['session'].clear()        # xapi's own time-out: a day

    def disks_and_snapshots(self, *names):
        """What VMs have: {name: uuids, bytes of each disk, names of snapshots}."""
        tables, found = self.sim.pool.tables, {}
        for record in list(tables['VM'].values()):
            if record['name_label'] in names:
                disks = [tables['VBD'][vbd]['VDI'] for vbd in record['VBDs']]
                found.setdefault(record['name_label'], []).append((
                    record['uuid'], [self.sim.pool.content[vdi].sha256() for vdi in disks],
                    [tables['VM'][ref]['name_label'] for ref in record['snapshots']]))
        return {name: sorted(found[name]) for name in found}


class InThePool(DefectCase):
    """What was destroyed there, and what was left."""

    pool_description = {'vms': [
        {'name': 'web', 'disks': ['1 MiB'], 'ran': True},
        {'name': 'RESTORE_web', 'disks': ['64 KiB', '64 KiB'], 'ran': True,
         'snapshots': ['before the upgrade']},
        {'name': 'RESTORE_web', 'disks': ['64 KiB'], 'template': True},
        {'name': 'db', 'ran': True,
         'disks': ['64 KiB', {'size': '64 KiB', 'name': 'SNAP_web_web-0'}]}]}

    def test_a_vm_called_RESTORE_web_is_never_uninstalled(self):
        before = self.disks_and_snapshots('RESTORE_web')
        self.assertEqual(2, len(before['RESTORE_web']))
        self.killed_in('vm-export', 'vm-export=web')
        self.sim.pool.faults.add('vm-export', nth=2, **REFUSED)
        self.assertEqual(2, self.back_up('vm-export=web').status)
        done = self.back_up('vm-export=web', 'vdi-export=RESTORE_web')
        self.assertEqual(0, done.status, done.output)
        self.assertEqual(before, self.disks_and_snapshots('RESTORE_web'))
        self.assert_clean()

    def test_a_disk_called_SNAP_web_is_never_destroyed(self):
        sr = self.sim.pool.tables['pool'][self.sim.pool.pool_ref]['default_SR']
        for name in ('SNAP_web_web-0', 'web 0'):
            self.sim.pool.make_vdi(sr, 1 << 16, name_label=name)
        self.before = self.contents()
        self.killed_in('vdi-export', 'vdi-export=web')
        self.sim.pool.faults.add('vdi-export', **REFUSED)
        self.assertEqual(2, self.back_up('vdi-export=web').status)
        self.assertEqual(0, self.back_up('vdi-export=web').status)
        self.assert_clean()

    def test_of_several_leftovers_all_are_removed_not_only_the_last(self):
        script = self.changed_script(DISCARD_PAUSES=(0,))
        for number in range(1, 3):                     # what the one before left cannot be removed
            for verb in ('vm-uninstall', 'snapshot-uninstall', 'vdi-destroy'):
                self.sim.pool.faults.add(verb, times=0, **REFUSED)
            self.killed_in('vm-export', 'vm-export=web', script=script)
            self.sim.pool.faults.clear()
            self.assertEqual(len(self.before['VDI']) + number, len(self.contents()['VDI']))
        done = self.back_up('vm-export=web')
        self.assertEqual(0, done.status, done.output)
        self.assert_clean()


class OnDisk(DefectCase):
    """Backups that were lost, and disks that were filled."""

    def test_a_loose_file_among_the_backups_does_not_end_the_night(self):
        self.old_backup('web', 'backup-2019-01-01-(00:00:00)', 'success')
        names = ('0-notes.txt', 'zz', 'backup-2018-01-01-(00:00:00)', '.nfs000001')
        for name in names:
            with open(os.path.join(self.backups, 'web', name), 'w', encoding='utf-8') as stream:
                stream.write('mine')
        for _ in range(2):
            done = self.back_up('vm-export=web:1', 'vm-export=db')
            self.assertEqual(0, done.status, done.output)
        self.assertEqual(1, len([path for path in self.dated('web') if os.path.isdir(path)]))
        for name in names:
            with open(os.path.join(self.backups, 'web', name), encoding='utf-8') as stream:
                self.assertEqual('mine', stream.read())

    def test_a_vm_called_dot_dot_deletes_nobodys_backups(self):
        self.pool_description = {'vms': [{'name': name, 'disks': ['64 KiB']} for name in (
            '..', '.', '../elsewhere', '/', 'web')]}
        self.use_pool()
        kept = [self.old_backup(vm, 'backup-2019-01-0%d-(00:00:00)' % day, 'success')
                for vm in ('web', '../elsewhere', '../BACKUPS2/web') for day in (1, 2)]
        for _ in range(3):
            done = self.back_up('vm-export=[./].*:1')
            self.assertEqual(0, done.status, done.output)
        self.assertEqual([True] * 6, [os.path.exists(os.path.join(path, 'success'))
                                      for path in kept])
        self.assertEqual(['%2E', '%2E%2E', '%2F', '..%2Felsewhere', 'web'],
                         sorted(name for name in os.listdir(self.backups) if name[:2] != '.l'))

    def test_a_vm_called_as_the_pool_dumps_directory_harms_no_dump(self):
        name = 'METADATA_' + os.uname().nodename
        self.pool_description = {'vms': [{'name': name, 'disks': ['64 KiB']}]}
        self.use_pool()
        for _ in range(3):
            done = self.back_up('vm-export=%s:1' % name, pool_db_backup=1, pool_db_max_backups=2)
            self.assertEqual(0, done.status, done.output)
        names = os.listdir(os.path.join(self.backups, name))
        self.assertEqual(2, len([each for each in names if each.endswith('.dump')]), names)
        self.assertEqual(1, len([each for each in names if each.startswith('backup-')]), names)

    def test_a_second_cron_run_does_not_delete_the_export_of_the_first(self):
        old = self.old_backup('web', 'backup-2019-01-01-(00:00:00)', 'success')
        self.sim.pool.faults.add('vm-export', 'slow', nth=2, rate=300000)
        config = self.config('vm-export=web', max_backups=2)
        first = self.start('password', config)
        self.wait_for(lambda: self.calls_of('vm-export') == 2, first)
        second = self.vmbackup('password', config)
        self.assertIsNone(first.poll(), 'it has ended before the second one was there')
        self.assertEqual(2, second.status, second.output)
        self.assertIn('vm-export,end,VM-LOCKED web', self.status())
        done = self.finish(first)
        self.assertEqual(0, done.status, done.output)
        new, = [path for path in self.dated('web') if path != old]
        self.assertLess(1 << 20, os.stat(os.path.join(new, 'web.xva')).st_size)
        self.assertTrue(os.path.exists(os.path.join(new, 'success')))
        self.assertTrue(os.path.exists(old))
        self.assertEqual(0, self.vmbackup('password', config).status)

    def test_a_share_that_is_not_mounted_does_not_fill_the_disk_below(self):
        table = os.path.join(self.directory, 'fstab')
        with open(table, 'w', encoding='utf-8') as stream:
            stream.write('# the share\nnas:/backup %s nfs defaults 0 0\n' % self.backups)
        self.script = self.changed_script(FSTAB=table)
        for target in (self.backups, os.path.join(self.backups, 'of this pool')):
            os.makedirs(target, exist_ok=True)
            done = self.back_up('vm-export=db', backup_dir=target, require_mount='auto')
            self.assertEqual(2, done.status, done.output)
            self.assertIn('mount', done.output)
            self.assertEqual('vmbackup.py,end,ERROR,S:0 W:0 E:1', self.status()[-1])
            self.assertEqual([], os.listdir(target) if target != self.backups else [])
        self.assertEqual(['of this pool'], os.listdir(self.backups))
        self.assertEqual([], self.sim.calls('xe'))
        done = self.back_up('vm-export=db', require_mount='no')
        self.assertEqual(0, done.status, done.output)

    def test_an_export_that_was_cut_off_never_counts(self):
        old = self.old_backup('web', 'backup-2019-01-01-(00:00:00)', 'success')
        for verb in ('vm-export', 'vdi-export'):
            self.killed_in(verb, verb + '=web:1')
            self.assertTrue(os.path.exists(old))
            self.assertEqual([old], [path for path in self.dated('web')
                                     if os.path.exists(os.path.join(path, 'success'))])
        done = self.back_up('vm-export=web:1')
        self.assertEqual(0, done.status, done.output)
        self.assertFalse(os.path.exists(old))
        self.assertEqual(1, len(self.dated('web')))

    def test_a_clock_that_was_put_back_does_not_make_the_newest_the_oldest(self):
        self.assertEqual(0, self.back_up('vm-export=db:2').status)
        ahead = os.path.join(self.backups, 'db', 'backup-2098-01-01-(00:00:00)')
        os.rename(self.dated('db')[0], ahead)          # as if it was made by a clock far ahead
        self.assertEqual(0, self.back_up('vm-export=db:2').status)
        second, = [path for path in self.dated('db') if path != ahead]
        self.assertTrue(os.path.exists(ahead))
        self.assertEqual(0, self.back_up('vm-export=db:2').status)
        self.assertEqual((False, True), (os.path.exists(ahead), os.path.exists(second)))
        self.assertEqual(2, len(self.dated('db')))


class Reports(DefectCase):
    """What was not told."""

    def test_a_master_of_another_name_dumps_the_pool_database(self):
        self.pool_description = {'hosts': ['quite another name'],
                                 'vms': [{'name': 'db', 'disks': ['64 KiB']}]}
        self.use_pool()
        done = self.back_up('vm-export=db', pool_db_backup=1)
        self.assertEqual(0, done.status, done.output)
        dumps = os.listdir(os.path.join(self.backups, 'METADATA_' + os.uname().nodename))
        self.assertEqual(1, len(dumps))

    def test_compress_that_is_not_understood_is_never_no_compression(self):
        for words, keys in ((['compress=zsdt'], {}), (['compress'], {}), ([], {'compress': 'zip'}),
                            ([], {'compress': ''})):
            done = self.vmbackup('password', self.config('vm-export=db', **keys), *words)
            self.assertEqual(2, done.status, done.output)
            self.assertIn('compress', done.output)
        self.assertEqual([], self.tree())
        self.assertEqual([], self.sim.calls('xe'))

    def test_all_that_an_exclude_with_a_dot_catches_is_shown(self):
        self.pool_description = {'vms': [{'name': name, 'disks': []} for name in (
            'db1.example.com', 'db1.example.com-replica', 'db1xexample.com', 'web')]}
        self.use_pool()
        done = self.vmbackup('password', self.config('vm-export=.*', 'exclude=db1.example.com'),
                             'preview')
        self.assertIn('  exclude: db1.example.com, db1.example.com-replica, db1xexample.com',
                      done.lines)
        done = self.vmbackup('password', self.config('vm-export=.*',
                                                     r'exclude=db1\.example\.com$'), 'preview')
        self.assertIn('  exclude: db1.example.com', done.lines)

    def test_a_very_long_night_keeps_a_bounded_part_of_its_log(self):
        console = VmBackup.Console(io.BytesIO())
        for number in range(25000):
            console.log('line %d' % number)
        self.assertLess(len(console.lines), 25000)
        self.assertIn('line 24999', console.lines[-1])
        self.assertEqual(25000, console.stream.getvalue().count(b'\n'))


class Security(DefectCase):
    """What names could do."""

    def test_no_name_in_the_pool_is_ever_run_as_a_command(self):
        evil = 'x$(touch PWNED)`touch PWNED`"; touch PWNED; \'|touch PWNED&&touch PWNED #'
        self.pool_description = {'name': evil, 'hosts': [evil], 'networks': [evil], 'vms': [
            {'name': evil, 'description': evil, 'networks': [evil], 'ran': True,
             'other_config': {evil: evil}, 'snapshots': [evil],
             'disks': [{'size': '64 KiB', 'name': evil, 'description': evil}]}]}
        self.use_pool()
        before = set(os.listdir(self.directory)) | {'run.cfg', 'logs'}
        for method in ('vm-export', 'vdi-export'):
            for _ in range(2):
                done = self.back_up(method + '=x.*:1', pool_db_backup=1)
                self.assertEqual(0, done.status, done.output)
        self.assertEqual(before, set(os.listdir(self.directory)))
        self.assertNotIn('PWNED', [os.path.basename(path) for path in self.tree()])


if __name__ == '__main__':
    unittest.main()
