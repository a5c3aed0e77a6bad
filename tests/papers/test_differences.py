"""Differences from 3.25 that no other test is about; each has a row in the README."""

import io
import os
import re
import shlex
import subprocess
import time
import types
import unittest
import unittest.mock

import VmBackup
from tests.tools.support import PoolCase


class CommandLine(PoolCase):
    """What is asked for, and how it ends."""

    def test_help_texts_end_with_0(self):
        for word in ('help', 'config', 'example', 'HELP'):
            done = self.vmbackup(word)
            self.assertEqual(0, done.status)
            self.assertIn('Usage-', done.output)
        self.assertEqual(2, self.vmbackup().status)
        self.assertEqual([], self.sim.calls())

    def test_unknown_options_and_values_are_errors(self):
        config = self.config('vm-export=db')
        for word in ('prevew', 'compress', 'compress=zip', 'pre_clean=perhaps', 'max_backups=3'):
            done = self.vmbackup('password', config, word)
            self.assertEqual(2, done.status)
            self.assertEqual(1, len(done.lines))
            self.assertIn(word, done.lines[0])
        self.assertEqual([], self.sim.calls())

    def test_exit_status_tells_errors_and_warnings(self):
        self.assertEqual(0, self.back_up('vm-export=db').status)
        self.assertEqual(1, self.back_up('vm-export=db', 'vm-export=nothing.*').status)
        self.assertEqual(2, self.back_up('vm-export=db', 'vm-export=nothing').status)

    def test_arguments_of_xe_in_the_environment_are_not_passed_on(self):
        done = self.vmbackup('password', self.config('vm-export=db'),
                             XE_EXTRA_ARGS='server=other.example.com,username=x')
        self.assertEqual(0, done.status, done.output)


class ConfigFile(PoolCase):
    """What a config file may say."""

    def test_an_exclude_may_stand_below_the_lines_that_it_concerns(self):
        done = self.vmbackup('password', self.config('vm-export=.*', 'exclude=we.*'), 'preview')
        self.assertIn('  vm-export: db', done.lines)

    def test_an_exclude_of_a_chosen_vm_is_a_note(self):
        done = self.back_up('vm-export=db', 'vm-export=web', 'exclude=web')
        self.assertEqual(0, done.status, done.output)
        self.assertIn('***NOTE - forcing exclude of: web', done.lines)

    def test_a_value_may_have_equal_signs_in_it(self):
        self.sim.pool.add_vm(name_label='a=b')
        self.before = self.contents()
        done = self.vmbackup('password', self.config('vm-export=a(?=.b).*'), 'preview')
        self.assertIn('  vm-export: a=b', done.lines)

    def test_an_indented_comment_is_a_comment(self):
        self.assertEqual(0, self.vmbackup(
            'password', self.config('   # compress', 'vm-export=db'), 'preview').status)

    def test_of_two_values_of_a_key_the_last_counts(self):
        done = self.vmbackup('password', self.config(
            'max_backups=3', 'max_backups=7', 'vm-export=db'), 'preview')
        self.assertIn('  max_backups       = 7', done.lines)

    def test_a_mistake_is_told_with_file_and_line(self):
        path = self.config('vm-export=db', 'max_backups=many')
        done = self.vmbackup('password', path)
        self.assertIn('ERROR: config max_backups out of range -> many (%s line 4)' % path,
                      done.lines)
        path = self.config('vm-export=db', 'bogus=1')
        done = self.vmbackup('password', path)
        self.assertIn('***ERROR unexpected config key: bogus (%s line 4)' % path, done.lines)

    def test_pre_clean_can_stand_in_the_config(self):
        old = [self.old_backup('db', 'backup-2019-01-0%d-(00:00:00)' % day, 'success')
               for day in (1, 2)]
        self.sim.pool.faults.add('vm-export', 'refuse', nth=2, error=['VDI_IO_ERROR', 'x'])
        self.assertEqual(2, self.back_up('vm-export=db:2', pre_clean='True').status)
        self.assertEqual([False, True], [os.path.exists(path) for path in old])


class Run(PoolCase):
    """What a run does and tells."""

    def run_here(self, *words):
        """Run the program in this process, so that its clock can be set; (status, output)."""
        stream = io.BytesIO()
        with unittest.mock.patch.dict(os.environ, self.environ()):
            status = VmBackup.command(words, 'VmBackup.py', VmBackup.Console(stream),
                                      VmBackup.Signals())
        return status, stream.getvalue().decode('utf-8')

    def test_the_limit_for_success_compress_is_a_key(self):
        for gib, marker in ((1, 'success_compress'), (2, 'success')):
            config = self.config('vm-export=db', large_backup=gib)
            with unittest.mock.patch.object(VmBackup, 'written', return_value=(1 << 30) + 1):
                self.assertEqual(0, self.run_here('password', config)[0])
            self.assertIn(marker, os.listdir(self.dated('db')[-1]))

    def test_a_backup_of_more_than_a_day_takes_more_than_a_day(self):
        def later():
            exporting = [call.name for call in self.sim.calls('xe')].count('vm-export') > 1
            return time.monotonic() + (30 * 3600 if exporting else 0)
        clock = types.SimpleNamespace(monotonic=later, sleep=time.sleep)
        with unittest.mock.patch.object(VmBackup, 'time', clock):
            status, output = self.run_here('password', self.config('vm-export=db'))
        self.assertEqual(0, status, output)
        self.assertIn('VmBackup vm-export db - ***Success*** t:1800', output)
        self.assertIn('vm-export,end,SUCCESS db,elapse:1800 size:0G', self.status())

    def test_an_xe_that_hangs_is_ended(self):
        self.sim.pool.faults.add('template-param-set', 'hang')
        with unittest.mock.patch.object(VmBackup, 'XE_TIMEOUT', 0.5):
            status, output = self.run_here('password', self.config('vm-export=db'))
        self.assertEqual(2, status, output)
        self.assertIn('vm-export,end,TEMPLATE-PARAM-SET-FAIL db', self.status())

    def test_words_of_xe_are_lines_of_the_log(self):
        self.sim.pool.faults.add('vm-snapshot', 'refuse',
                                 error=['SR_BACKEND_FAILURE_44', '', '', ''])
        done = self.back_up('vm-export=db')
        for line in done.output.splitlines():
            self.assertRegex(line, r'^\d{4}-\d\d-\d\d-\(\d\d:\d\d:\d\d\) - ')
        self.assertIn('Error code: SR_BACKEND_FAILURE_44', done.lines)
        reason = [line for line in done.lines
                  if line.startswith('ERROR vm-export SNAPSHOT-FAIL db: ')]
        self.assertIn('SR_BACKEND_FAILURE_44', reason[0])

    def test_the_directory_of_the_status_log_is_made(self):
        path = os.path.join(self.directory, 'a', 'b', 'status.log')
        self.assertEqual(0, self.back_up('vm-export=db', status_log=path).status)
        self.assertTrue(os.path.isfile(path))

    def test_a_status_log_that_cannot_be_written_harms_no_backup(self):
        done = self.back_up('vm-export=db', status_log=self.backups)
        self.assertEqual(1, done.status, done.output)
        self.assertEqual(1, done.output.count('***WARNING - cannot write status_log'))
        self.assertIn('db/DATED/success', self.tree())

    def test_no_program_is_started_but_xe_and_df(self):
        tools = os.path.join(self.directory, 'bin')
        os.mkdir(tools)
        real_df = subprocess.check_output(['sh', '-c', 'command -v df']).decode().strip()
        os.symlink(real_df, os.path.join(tools, 'df'))
        tattler = os.path.join(tools, 'touch')
        with open(tattler, 'w', encoding='utf-8') as stream:
            stream.write('#!/bin/sh\n: > %s\n' % shlex.quote(self.directory + '/started'))
        os.chmod(tattler, 0o755)
        for name in ('xmllint', 'rm', 'ls', 'hostname', 'sh', 'mkdir'):
            os.symlink('touch', os.path.join(tools, name))
        done = self.vmbackup('password', self.config('vm-export=db', pool_db_backup=1), PATH=tools)
        self.assertEqual(0, done.status, done.output)
        self.assertFalse(os.path.exists(os.path.join(self.directory, 'started')))
        self.assertIn('Success: backup directory area is writable', done.lines)
        self.assertEqual([], [line for line in done.lines if 'touch' in line])
        self.assertNotIn(VmBackup.WRITE_TEST, os.listdir(self.backups))

    def test_a_dump_gets_its_name_when_it_is_complete(self):
        self.sim.pool.faults.add('pool-dump-database', 'die', after=1000)
        self.assertEqual(2, self.back_up('vm-export=db', pool_db_backup=1).status)
        self.assertEqual([], os.listdir(os.path.join(self.backups,
                                                     'METADATA_' + os.uname().nodename)))
        self.assertEqual(0, self.back_up('vm-export=db', pool_db_backup=1).status)
        names = os.listdir(os.path.join(self.backups, 'METADATA_' + os.uname().nodename))
        self.assertTrue(re.fullmatch(r'pool_db_\d{8}-\d{6}\.dump', names[0]), names)

    def test_a_failed_vm_leaves_its_directory_for_a_look(self):
        self.sim.pool.faults.add('vm-export', 'refuse', nth=2, after=1000,
                                 error=['VDI_IO_ERROR', 'x'])
        self.assertEqual(2, self.back_up('vm-export=db').status)
        self.assertIn('db/DATED/vm.cfg', self.tree())
        self.assertNotIn('db/DATED/success', self.tree())


if __name__ == '__main__':
    unittest.main()
