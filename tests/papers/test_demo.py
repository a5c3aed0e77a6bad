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

from tests import DATA, ROOT
from tests.commands.archives import WITH_XXH64
from tests.simpool import Faults
from tests.tools.demo import FAILURES

PICTURE = Path(DATA, 'demo.svg')
# Each scene: words of its heading, and texts that it shows in this order.
STORY = (
    ('a preview changes nothing', '$ cat night.cfg\n', 'vm-export=web\n', ' preview night.cfg\n',
     '  vm-export: mail server:2, web\n', 'not covered by any line: büro, desktop, old-intranet\n'),
    ('A night', 'verified web.xva: all checksums match', 'VMs: 3 good, 0 with warnings, 0 failed',
     'VmBackup ended - Success - S:3 W:0 E:0\n'),
    ('What is on disk', '/RESTORE.txt\n', '/success\n', '/web.xva\n'),
    ('still whole', '- good ', '/BACKUPS/web/backup-', 'verify ended - Success - S:4 W:0 E:0\n'),
    ('Which backups', 'when  ', 'mail server (', ' good ', 'total of 3 VMs: 3 good, '),
    ('A VM is lost', '$ xe vm-uninstall ', ' (mail server 0)', 'All objects destroyed\n'),
    ('restored', 'restore of mail server', 'restored: the VM mail server ('),
    ('the same, byte for byte', 'filename=back.raw\n', '$ cmp lost.raw back.raw && ', '  back.raw'),
    ('One file is wanted', 'extracted: ', '/web.raw, 8388608 bytes', 'ext2/3/4\n', 'mount -o ro,'),
    ('A bad night', '- FAILED web (VM-EXPORT-FAIL): ', ' - **ERRORS DETECTED** - S:2 W:0 E:1\n',
     '[exit status 2]\n', 'To: admin@example.com\nSubject: VmBackup ',
     ' - ERROR - S:2 W:0 E:1 - web', '\n\nFAILED web (VM-EXPORT-FAIL): '),
    ('monitoring', 'VMBACKUP WARNING - last run', 'ERROR S:2 W:0 E:1', '[exit status 1]\n',
     'ended - Success - S:3 W:0 E:0\n', 'VMBACKUP OK - 3 of 3 VMs have a good backup',
     '\n\nAll of that went as expected.\n'),
)
# The same with --full --fail vdi-destroy: what comes before, instead of the bad night, and after.
INSTALLING = ('Installing', '\nXenAPI.py\n', 'password file created', '\n-rw------- ')
TRIED_AGAIN = (
    ('A bad night', '***NOTE - xe vdi-destroy failed: ', ': trying again', '- Success - S:3 W:0'),
    ('monitoring', 'VMBACKUP OK - ', '- Success - S:3 W:0 E:0', 'VMBACKUP OK - '),
)
FURTHER = (
    ('What the nights left', '\nBACKUPS/web:\nbackup-', ',begin,db\n', ',end,SUCCESS mail server,',
     '$ xe vdi-list is-a-snapshot=true params=name-label --minimal\nweb 0\n'),
    ('One disk comes back', ' disk=xvda\n', 'restored: the disk db 0-restored-'),
    ('A look into a disk', ' attach=db mode=rw\n', 'attached: web 0-restored-', 'VMBACKUP OK - ',
     'attached: web 0-restored-', ', RW, to the VM db since ', 'detached: '),
    ('without a network', 'network:  VIF 0 in none', 'the VM web-2 (', '$ xe vif-list '),
    ('A stream', 'streamed desktop: ', '/desktop.xva: all checksums match'),
    ('A second try', 'TRY-AGAIN web: SNAPSHOT-FAIL', '- Success - S:3 W:0 E:0',
     ',end,TRY-AGAIN web\n', ',end,SUCCESS web,', ' try:2\n'),
    ('is told of each run', 'told: success', '\nGET /secret\nGET /secret/start\nGET /secret',
     '\n\nAll of that went as expected.\n'),
    ('A shell in', '\ndesktop\n', '\nnight.cfg\n', '\nbackup-'),
)


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


class Story(DemoCase):
    def assert_scenes(self, wanted, output):
        scenes = re.split(r'\n== \d+\. (.*)\n', output)
        self.assertEqual(len(wanted), len(scenes) // 2, scenes[1::2])
        for heading, scene, (words, *texts) in zip(scenes[1::2], scenes[2::2], wanted):
            self.assertIn(words, heading)
            self.assertRegex(scene, '(?s)' + '.*'.join(map(re.escape, texts)))

    @WITH_XXH64
    def test_it_has_120_lines_at_most_and_is_the_picture_in_the_readme(self):
        with tempfile.TemporaryDirectory(prefix='vmbackup-test-') as directory:
            drawn = Path(directory, 'demo.svg')
            status, output = self.demo('--record', str(drawn), TMPDIR=directory)
            picture = drawn.read_text('utf-8')
        self.assertEqual(0, status, output)
        self.assert_scenes(STORY, output)
        self.assertLessEqual(len(output.splitlines()), 120)
        self.assertEqual(PICTURE.read_text('utf-8'), picture,
                         'python3 -m tests demo --record tests/data/demo.svg draws it anew')
        self.assertLess(PICTURE.stat().st_size, 200000)

    @WITH_XXH64
    def test_all_of_it_with_a_step_that_is_tried_again_and_then_the_users_shell(self):
        status, output = self.demo('--full', '--fail', 'vdi-destroy', '--shell', SHELL=self.program(
            'my shell', 'xe vm-list name-label=desktop params=name-label --minimal\n'
            'test -n "$VMBACKUP_XE" && ls . BACKUPS/web\n'))
        self.assertEqual(0, status, output)
        self.assert_scenes((INSTALLING,) + STORY[:9] + TRIED_AGAIN + FURTHER, output)
        self.assertNotIn(' lines more]\n', output)
        self.assertLessEqual(set(FAILURES), set(re.findall(r" - .*/bin/xe'? ([\w-]+) ", output)))

    def test_what_is_not_as_expected_is_told_and_ends_with_1_after_sh_where_no_shell_is(self):
        status, output = self.demo('--shell', SHELL='/nosuch/shell', PATH=self.cat('exit 7\n'))
        self.assertEqual(1, status, output)
        told, inside = output.split('== 2. A shell in ')
        self.assertIn('\nNOT AS EXPECTED: exit status 7, not 0, of: cat night.cfg\n', told)
        self.assertNotIn('as expected', inside)
        status, output = self.demo(PATH=self.cat('echo vm-export=other\n'))
        self.assertEqual(1, status, output)
        self.assertIn('\nNOT AS EXPECTED: this is not printed: vm-export=web\n', output)

    def test_a_signal_takes_everything_down(self):
        fifo = os.path.join(self.directory, 'fifo')
        os.mkfifo(fifo)
        child = self.start(PATH=self.cat('echo > %s\nexec sleep 1000\n' % shlex.quote(fifo)))
        Path(fifo).read_bytes()                 # until the demo waits for its command
        child.send_signal(signal.SIGTERM)
        child.communicate()
        os.unlink(fifo)
        self.assertEqual(143, child.returncode)

    def test_each_failure_is_one_that_the_pool_can_have_and_names_its_line(self):
        for verb, failure in FAILURES.items():
            with self.subTest(verb):
                Faults().add(verb, nth=failure.nth, **failure.fault)
                self.assertRegex(failure.line, '^ERROR ' if failure.status else 'NOTE')
