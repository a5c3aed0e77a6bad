"""The demo: what it shows is so, it ends as it should, and nothing stays of it."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

from tests import ROOT
from tests.tools.demo import FAILURES
from tests.tools.support import LIMIT


class DemoCase(unittest.TestCase):
    """A demo in a TMPDIR of its own, which is empty again at the end."""

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='demo test ')      # blanks do no harm
        self.addCleanup(shutil.rmtree, self.directory)
        self.addCleanup(self.assert_empty)

    def assert_empty(self):
        """Nothing stays."""
        self.assertEqual([], os.listdir(self.directory))

    def start(self, *options, **environ):
        """Start the demo as a user would, but in LANG=C, and with stdin closed."""
        environ = dict(dict(os.environ, TMPDIR=self.directory, LC_ALL='C', LANG='C'), **environ)
        return subprocess.Popen(
            ['sh', '-c', 'exec "$0" -m tests demo "$@" <&-', sys.executable] + list(options),
            cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def demo(self, *options, **environ):
        """(exit status, output) of a demo."""
        child = self.start(*options, **environ)
        output = child.communicate(timeout=LIMIT)[0].decode('utf-8')
        return child.returncode, output


class TwoNights(DemoCase):
    """The demo without options."""

    def test_it_shows_two_nights_and_ends_with_0(self):
        status, output = self.demo()
        self.assertEqual(0, status, output)
        shown = re.findall(r'^\$ (.*)$', output, re.MULTILINE)
        self.assertEqual(['./VmBackup.py password create-password-file=VmBackup.pass',
                          './VmBackup.py VmBackup.pass demo.cfg preview',
                          './VmBackup.py VmBackup.pass demo.cfg',
                          './VmBackup.py VmBackup.pass demo.cfg > VmBackup.log 2>&1'],
                         [line for line in shown if line.startswith('./VmBackup.py')])
        self.assertEqual(4, output.count('\n[exit status 0]\n'))
        for text in ('not covered by any line: desktop', 'SUCCESS preview of parameters',
                     '\n-rw-------', '/büro.xva\n', '/db.raw\n', '/success\n', '/vm.cfg\n',
                     'Deleting oldest backup ', 'VmBackup ended - Success - S:4 W:0 E:0',
                     ',vdi-export,', ',end,SUCCESS mail server,elapse:0 size:0G',
                     'name-label ( RW): before the upgrade', 'All of that went as expected.'):
            self.assertIn(text, output)
        self.assertNotIn('RESTORE_', output.split('-- 9.')[1])

    def test_keep_keeps_the_directory_and_says_where(self):
        status, output = self.demo('--keep')
        self.assertEqual(0, status, output)
        kept = re.search('^kept: (.*)$', output, re.MULTILINE).group(1)
        self.assertEqual([os.path.basename(kept)], os.listdir(self.directory))
        self.assertTrue(os.path.exists(os.path.join(kept, 'logs', 'status.log')))
        self.assertEqual(1, len(os.listdir(os.path.join(kept, 'BACKUPS', 'web'))))
        shutil.rmtree(kept)

    def test_shell_opens_the_users_shell_beside_the_pool(self):
        shell = os.path.join(self.directory, 'my shell')
        with open(shell, 'w') as stream:
            stream.write('#!/bin/sh\n./VmBackup.py VmBackup.pass demo.cfg preview | tail -n 1\n'
                         'xe vm-list name-label=desktop params=name-label --minimal\n'
                         'test -n "$VMBACKUP_XE" && ls\n')
        os.chmod(shell, 0o700)
        status, output = self.demo('--shell', SHELL=shell)
        os.unlink(shell)
        self.assertEqual(0, status, output)
        inside = output.split('-- 10. A shell in ')[1]
        self.assertIn(' - SUCCESS preview of parameters', inside)
        self.assertIn('\ndesktop\n', inside)
        self.assertIn('\nVmBackup.pass\n', inside)

    def test_a_shell_that_is_not_there_is_replaced_by_sh(self):
        self.assertEqual(0, self.demo('--shell', SHELL='/nosuch/shell')[0])

    def test_a_signal_takes_everything_down(self):
        child = self.start()
        while b'-- 5.' not in child.stdout.readline():
            self.assertIsNone(child.poll())
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=LIMIT)
        self.assertEqual(143, child.returncode)

    def test_a_reader_that_goes_away_takes_everything_down(self):
        command = '%s -m tests demo | head -n 1' % shlex.quote(sys.executable)
        output = subprocess.check_output(['sh', '-c', command], cwd=ROOT, timeout=LIMIT,
                                         stderr=subprocess.STDOUT,
                                         env=dict(os.environ, TMPDIR=self.directory))
        self.assertEqual(1, len(output.splitlines()), output)

    def test_what_is_not_as_expected_is_told_and_ends_with_1(self):
        tools = os.path.join(self.directory, 'tools')
        os.mkdir(tools)
        with open(os.path.join(tools, 'find'), 'w') as stream:
            stream.write('#!/bin/sh\nkill -s TERM $$\n')
        with open(os.path.join(tools, 'sort'), 'w') as stream:
            stream.write('#!/bin/sh\nexit 7\n')
        for name in os.listdir(tools):
            os.chmod(os.path.join(tools, name), 0o700)
        status, output = self.demo(PATH=tools + os.pathsep + os.environ['PATH'])
        shutil.rmtree(tools)
        self.assertEqual(1, status, output)
        self.assertIn('\nNOT AS EXPECTED: exit status 7, not 0, of: find BACKUPS | sort\n', output)


class Failing(DemoCase):
    """--fail."""

    def test_each_failure_is_told_and_leaves_nothing_in_the_pool(self):
        for verb, failure in FAILURES.items():
            with self.subTest(verb):
                status, output = self.demo('--fail', verb)
                self.assertEqual(0, status, output)
                self.assertIn(failure.line, output)
                self.assertIn('\n[exit status %d]\n' % failure.status, output)
                word = {1: 'WARNING', 2: 'ERROR'}[failure.status]
                self.assertRegex(output, ',vmbackup.py,.*,end,%s,' % word)
                third = output.split('-- 10.')[1]
                self.assertIn('VmBackup ended - Success - S:4 W:0 E:0', third)
                self.assertNotIn('RESTORE_', third)
                self.assertNotIn('SNAP_', third)


class Options(DemoCase):
    """What cannot be understood."""

    def test_a_wrong_option_is_one_clear_line(self):
        for options in (['--nosuch'], ['--fail'], ['--fail', 'vm-list'], ['--shel'], ['word']):
            status, output = self.demo(*options)
            self.assertEqual(2, status)
            self.assertEqual(1, len(output.splitlines()), output)
            self.assertIn('python3 -m tests demo: ', output)

    def test_help_names_the_commands_that_can_be_made_to_fail(self):
        status, output = self.demo('--help')
        self.assertEqual(0, status)
        for verb in FAILURES:
            self.assertIn(verb, output)


if __name__ == '__main__':
    unittest.main()
