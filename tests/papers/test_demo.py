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
from pathlib import Path

from tests import ROOT
from tests.simpool import Faults
from tests.tools.demo import FAILURES


class DemoCase(unittest.TestCase):
    """A demo in a TMPDIR of its own, which is empty again at the end."""

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='demo test ')      # blanks do no harm
        self.addCleanup(shutil.rmtree, self.directory)
        self.addCleanup(self.assert_empty)

    def assert_empty(self):
        self.assertEqual([], os.listdir(self.directory))

    def start(self, *options, **environ):
        """Start the demo as a user would, but in LANG=C, and with stdin closed.

        Nobody waits for it with a limit: how long it takes depends on what else the machine does,
        and what hangs is ended by the runner.
        """
        environ = dict(dict(os.environ, TMPDIR=self.directory, LC_ALL='C', LANG='C'), **environ)
        return subprocess.Popen(
            ['sh', '-c', 'exec "$0" -m tests demo "$@" <&-', sys.executable] + list(options),
            cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def demo(self, *options, **environ):
        child = self.start(*options, **environ)
        output = child.communicate()[0].decode('utf-8')
        return child.returncode, output

    def program(self, name, text):
        """The path of a program, a shell script, in a directory of its own."""
        tools = tempfile.TemporaryDirectory(prefix='my tools ')
        self.addCleanup(tools.cleanup)
        path = Path(tools.name, name)
        path.write_text('#!/bin/sh\n' + text)
        path.chmod(0o700)
        return str(path)

    def cat(self, text):
        """A PATH on which the first command that the demo looks with, `cat`, does this."""
        return os.path.dirname(self.program('cat', text)) + os.pathsep + os.environ['PATH']


class TwoNights(DemoCase):
    def test_it_shows_two_nights_and_opens_the_users_shell(self):
        status, output = self.demo('--shell', SHELL=self.program(
            'my shell', 'xe vm-list name-label=desktop params=name-label --minimal\n'
            'test -n "$VMBACKUP_XE" && ls . BACKUPS/web\n'))
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
        self.assertEqual(set(FAILURES), set(re.findall(r" - .*/bin/xe'? ([\w-]+) ", output)))

        inside = output.split('-- 10. A shell in ')[1]
        self.assertIn('\ndesktop\n', inside)
        self.assertIn('\nVmBackup.pass\n', inside)
        self.assertEqual(1, inside.count('\nbackup-'))

    def test_what_is_not_as_expected_is_told_and_ends_with_1_after_sh_where_no_shell_is(self):
        status, output = self.demo('--shell', SHELL='/nosuch/shell', PATH=self.cat('exit 7\n'))
        self.assertEqual(1, status, output)
        told, inside = output.split('-- 3. A shell in ')
        self.assertIn('\nNOT AS EXPECTED: exit status 7, not 0, of: cat demo.cfg\n', told)
        self.assertNotIn('as expected', inside)

    def test_a_signal_takes_everything_down(self):
        fifo = os.path.join(self.directory, 'fifo')
        os.mkfifo(fifo)
        child = self.start(PATH=self.cat('echo > %s\nexec sleep 1000\n' % shlex.quote(fifo)))
        Path(fifo).read_bytes()                 # until the demo waits for its command
        child.send_signal(signal.SIGTERM)
        child.communicate()
        os.unlink(fifo)
        self.assertEqual(143, child.returncode)


class Failing(DemoCase):
    def test_an_error_and_a_step_that_is_tried_again_are_told_and_leave_nothing_in_the_pool(self):
        for verb, told in (('vm-export', ',vm,end,ERROR,S:3 W:0 E:1'),
                           ('vdi-destroy', ': trying again')):
            with self.subTest(verb):
                failure = FAILURES[verb]
                status, output = self.demo('--fail', verb)
                self.assertEqual(0, status, output)
                self.assertIn(failure.line, output)
                self.assertIn(told, output)
                self.assertEqual(verb == 'vm-export', '\n[exit status 2]\n' in output)
                cause = re.escape('FAILED web (VM-EXPORT-FAIL): ')
                shown = re.search(r'(?s)- Space status:.* - %s.* - VmBackup ended.*\n'
                                  r'Subject: VmBackup .* - ERROR - .*\n\n%s' % (cause, cause),
                                  output)
                self.assertEqual(verb == 'vm-export', bool(shown), output)
                third = output.split('. The third night')[1]
                self.assertIn('VmBackup ended - Success - S:4 W:0 E:0', third)
                self.assertNotIn('RESTORE_', third)
                self.assertNotIn('SNAP_', third)

    def test_each_failure_is_one_that_the_pool_can_have_and_names_its_line(self):
        for verb, failure in FAILURES.items():
            with self.subTest(verb):
                Faults().add(verb, nth=failure.nth, **failure.fault)
                self.assertRegex(failure.line, '^ERROR ' if failure.status else 'NOTE')
