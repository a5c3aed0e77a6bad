"""The host test, on a simulated pool: that it passes, fails and cleans up where it should."""

import os
import re
import signal
import subprocess
import sys
import threading
import unittest.mock

from tests import ROOT
from tests.simpool.archive import Image
from tests.tools import host
from tests.tools.support import LIMIT, Done, Journal, PoolCase


class HostTests(PoolCase):
    """Each test runs `python3 -m tests host` on a pool where others have similar names."""

    pool_description = {'vms': [
        {'name': host.PREFIX + '0badc0de-one', 'disks': ['1 MiB']},
        {'name': 'other', 'other_config': {host.KEY: '0badc0de'}, 'disks': ['1 MiB']}]}
    place = ROOT

    def setUp(self):
        super().setUp()
        os.mkdir(self.at('tmp'))

    def begin(self, *options):
        return subprocess.Popen(
            [sys.executable, '-m', 'tests', 'host', '--login', 'password', '--target',
             self.backups] + list(options), cwd=self.place, stdin=subprocess.DEVNULL,
            env=self.environ(TMPDIR=self.at('tmp')), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)

    def result(self, process):
        with process:
            output = process.communicate(timeout=LIMIT)[0].decode('utf-8')
        return Done(process.returncode, output)

    def host_test(self, status, *names, options=('--yes',)):
        """Run the scenarios of these names; it has to end so, and leave no file."""
        only = [word for name in names for word in ('-k', name)]
        done = self.result(self.begin(*only, *options))
        self.assert_ends(status, done)
        self.assertEqual(([], []), (os.listdir(self.backups), os.listdir(self.at('tmp'))))
        return done

    def outcomes(self, done):
        return dict(re.findall('^(.*?) +(passed|FAILED|skipped) +[0-9.]+  ', done.output, re.M))

    def broken_script(self, old, new):
        """Have the tests of another checkout run, in whose script this text is another one."""
        self.place = self.at('checkout')
        os.mkdir(self.place)
        for name in ('tests', 'XenAPI.py'):
            os.symlink(os.path.join(ROOT, name), os.path.join(self.place, name))
        text = self.read(os.path.join(ROOT, 'VmBackup.py'))
        self.assertEqual(1, text.count(old))
        self.put_file('checkout/VmBackup.py', text.replace(old, new))

    def test_backups_restores_and_kills_pass_and_leave_nothing(self):
        names = ('preview', 'stream none', 'vdi-export vhd gzip', 'SIGKILL amid vm-export',
                 'SIGTERM after vm-import', 'SIGKILL of a stream amid vm-export')
        done = self.host_test(0, *names, options=('--yes', '--report', self.at('report')))
        self.assertEqual(dict.fromkeys(names + ('census',), 'passed'), self.outcomes(done))
        self.sim.pool.tables['session'].clear()         # that of what SIGKILL ended stays
        report = self.read('report')
        self.assertIn('VmBackup host test: 7 passed, 0 FAILED, 0 skipped\n', report)
        self.assertIn('xapi 26.1.0, XCP-ng 8.3.0', report)

    def test_a_script_that_leaves_what_is_half_restored_fails_and_it_is_removed(self):
        self.broken_script('self.store.restores().values()', '[]')
        done = self.host_test(1, 'SIGKILL amid vdi-import')
        self.sim.pool.tables['session'].clear()
        self.assertEqual({'SIGKILL amid vdi-import': 'FAILED', 'census': 'passed'},
                         self.outcomes(done))
        self.assertRegex(done.output, 'left is VDI .* "vmbackup_restore ')

    def test_a_disk_that_is_restored_with_other_bytes_fails(self):
        def spoil(_number, call):
            words = dict(word.partition('=')[::2] for word in call.args)
            if call.name == 'vdi-param-set' and '-restored-' in words.get('name-label', ''):
                ref = self.sim.pool.ref_of('VDI', words['uuid'])
                self.sim.pool.content[ref] = Image(self.sim.pool.content[ref].virtual_size)
        self.sim.pool.journal = Journal(spoil)
        self.assertIn('has other bytes than before',
                      self.host_test(1, 'vdi-export raw none').output)

    def test_what_a_killed_one_left_is_removed_by_the_next(self):
        process = self.begin('--yes', '-k', 'parallel')
        self.wait_for_call('vm-export', 2)
        process.kill()
        self.result(process)
        self.assertNotEqual(self.before, self.contents())
        done = self.host_test(0, 'preview')
        self.sim.pool.tables['session'].clear()
        self.assertIn('removed what an earlier test left: ' + self.backups, done.output)

    def test_a_signal_ends_it_and_it_cleans_up_at_once(self):
        process = self.begin('--yes', '-k', 'parallel')
        self.wait_for_call('vm-export', 2)
        process.send_signal(signal.SIGTERM)
        done = self.assert_ends(1, self.result(process))
        self.assertIn('ended by signal 15', done.output)
        self.assertEqual([], os.listdir(self.backups))
        self.assert_clean()

    def test_the_toolstack_is_restarted_where_a_command_for_that_is_given(self):
        asked, over = self.at('asked'), threading.Event()

        def restart_when_asked():
            while not over.wait(0.02):
                if os.path.exists(asked):
                    self.sim.restart()
                    os.unlink(asked)
        thread = threading.Thread(target=restart_when_asked)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(over.set)
        command = self.program('restart', 'touch %s\nwhile [ -e %s ]; do sleep 0.02; done\n'
                               % (asked, asked))
        names = ('restart amid vm-export', 'restart amid vdi-import')
        done = self.host_test(0, *names, options=('--yes', '--restart-toolstack', command))
        self.assertEqual(dict.fromkeys(names + ('census',), 'passed'), self.outcomes(done))

    def test_where_it_cannot_begin_one_line_says_why_and_nothing_is_made(self):
        for options, words in (((), 'nobody to ask: add --yes'),
                               (('--yes', '--sr', 'x'), 'no SR x'),
                               (('--yes', '-k', 'nothing'), 'no scenario has that in its name'),
                               (('--yes', '--login', 'wrong'), 'xe or xapi does not answer: ')):
            with self.subTest(words):
                done = self.host_test(2, options=options)
                self.assertIn('host test: ' + words, done.lines[-1])
        self.assertEqual([], [verb for verb in self.verbs() if not verb.endswith('-list')])

    def test_two_do_not_run_at_once(self):
        with host.lock_host(self.sim.xe), unittest.mock.patch.object(host, 'PATIENCE', 0.1):
            self.assertRaisesRegex(host.Refused, 'still running', host.lock_host, self.sim.xe)
