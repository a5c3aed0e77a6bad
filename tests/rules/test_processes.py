"""Processes: commands as they are logged and as they are run, to their end or before it."""

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from unittest import mock

import VmBackup
from tests import ROOT
from tests.tools.processes import read_proc
from tests.tools.support import LIMIT, TIME_STAMP, PoolCase

HOSTILE = ['', ' ', 'plain', 'two words', ' lead and trail ', 'a,b', "it's", '"quoted"', '"', "'",
           '$HOME', '$(id)', '`id`', '${IFS}', 'a;b', 'a|b', 'a&b', 'a>b', '*', '?', '[a-z]', '~',
           '~root', '!', '!!', 'wow!', '#', '# no comment', '\\', 'a\\', '\\n', '\\"', '\\\\', '-n',
           '--', '-dash', '=', 'a=b', '..', 'a/b', '{a,b}', '%s', '%', '<x>', '(x)', 'a\tb',
           'two\nlines', '\n', 'end\n', '\r', '\x01', '\x7f', 'ünïcödé', '名前', '\u2028', '\udcff',
           '"$(id)"', "'; id; '", 'x' * 255]
KEYS = ('filename', 'file-name', 'new-name-label', 'name-label', 'uuid', 'format')

# Programs for sh.
TELL = 'for word; do printf "%s\\000" "$word"; done'
IGNORE_TERM = ('trap "" TERM; echo begun >"$1"; until [ -e "$1.go" ]; do sleep 0.05; done; '
               'echo finished >"$1.end"')
CLEAN_UP = ('trap \'trap "echo disturbed" TERM; for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.2; '
            'done; echo clean; exit 1\' TERM; echo begun >"$1"; until false; do sleep 0.05; done')


def told(line):
    """The words that bash makes of a command line."""
    script = 'tell() { %s; }\ntell %s' % (TELL, line)
    output = subprocess.check_output(['bash', '-c', script.encode('utf-8', 'surrogateescape')])
    return [word.decode('utf-8', 'surrogateescape') for word in output.split(b'\0')[:-1]]


def ended(done):
    """(exit status, output, errors) of a program."""
    return done.returncode, done.stdout, done.stderr


class QuotedCommands(unittest.TestCase):
    def test_a_shell_makes_the_same_words_of_any_command(self):
        self.assertEqual(HOSTILE, told(VmBackup.quoted(HOSTILE)))
        for key in KEYS:
            words = [key] + ['%s=%s' % (key, text) for text in HOSTILE]
            self.assertEqual(words, told(VmBackup.quoted(words)))

    def test_words_look_as_in_3_25_where_that_is_safe(self):
        self.assertEqual(
            'xe vm-snapshot uuid=1 new-name-label="RESTORE_a b" filename="/x/it\'s (1).xva" '
            "name-label=\"名前\" file-name='/d/a.dump' format=raw force=true filename=",
            VmBackup.quoted(['xe', 'vm-snapshot', 'uuid=1', 'new-name-label=RESTORE_a b',
                             "filename=/x/it's (1).xva", 'name-label=名前', 'file-name=/d/a.dump',
                             'format=raw', 'force=true', 'filename=']))

    def test_what_a_shell_acts_on_in_double_quotes_gets_single_ones(self):
        for text in ('$x', '`x`', 'a"b', 'a\\b', 'a!b'):
            self.assertEqual("'filename=%s'" % text, VmBackup.quoted(['filename=' + text]))


class LoggedCommands(PoolCase):
    pool_description = {'vms': [{'name': name, 'disks': ['64 KiB']} for name in (
        'it\'s "x"', 'x$(id)`id`', 'a,b', '-dash', ' lead', '!!', 'a\\', '名前', 'a/b', '..')]}

    def test_every_line_can_be_pasted_and_is_what_xe_was_given(self):
        done = self.ends(0, 'vm-export=.*', 'vdi-export=a.*')
        logged = [[re.sub('^(filename=).*/', r'\1', word)
                   for word in told(line.split(': ', 1)[1])[1:]]
                  for line in done.lines if '.cmd: ' in line]
        given = [[call.name] + [re.sub('=/proc/[0-9]+/fd/[0-9]+/', '=', word) for word in call.args]
                 for call in self.sim.calls('xe') if 'metadata=true' not in call.args]
        self.assertEqual(4 * len(self.pool_description['vms']), len(logged))
        self.assertEqual([sorted(words) for words in given], [sorted(words) for words in logged])


class ProgramCase(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='vmbackup-test-')
        self.addCleanup(shutil.rmtree, self.directory)

    def path(self, name):
        return os.path.join(self.directory, name)

    def script(self, text, mode=0o755, name=None):
        name = name or 'script %d' % len(os.listdir(self.directory))
        with open(self.path(name), 'w', encoding='utf-8') as stream:
            stream.write(text)
        os.chmod(stream.name, mode)
        return stream.name


class Running(ProgramCase):
    def refusal(self, *arguments):
        with self.assertRaises(VmBackup.CommandFailed) as caught:
            VmBackup.run(*arguments)
        return str(caught.exception)

    def wait_for(self, name):
        limit = time.monotonic() + LIMIT
        while time.monotonic() < limit:
            if os.path.exists(self.path(name)):
                with open(self.path(name), encoding='utf-8') as stream:
                    text = stream.read()
                if text.endswith('\n'):
                    return text
            time.sleep(0.01)
        return self.fail('no ' + name)

    def assert_gone(self, pid):
        """That process has ended, or is about to: well before the minute that it would take."""
        limit = time.monotonic() + LIMIT / 6
        while time.monotonic() < limit:
            if read_proc(pid, 'stat').rpartition(b')')[2].split()[:1] in ([], [b'Z']):
                return                                 # nobody reaps orphans here
            time.sleep(0.01)
        self.fail('process %d runs still' % pid)

    def test_arguments_arrive_as_they_are(self):
        words = [word for word in HOSTILE if word]
        result = VmBackup.run(['sh', '-c', TELL, 'sh'] + words, 60)
        self.assertEqual(words, [word.decode('utf-8', 'surrogateescape')
                                 for word in result.stdout.split(b'\0')[:-1]])

    def test_status_and_large_output_and_errors_come_back(self):
        half = 'head -c 3000000 /dev/zero'
        result = VmBackup.run(['sh', '-c', '%s >&2 & %s; wait; echo out; echo err >&2; exit 3' % (
            half, half)], 60)
        zeros = bytes(3000000)
        self.assertTrue((3, zeros + b'out\n', zeros + b'err\n') == ended(result))
        self.assertEqual(-9, VmBackup.run(['sh', '-c', 'kill -9 $$'], 60).returncode)

    def test_one_that_closes_its_output_and_goes_on_is_waited_for(self):
        """subprocess of Python 3.6 cannot: it reads a closed file when it looks again."""
        for script in ('echo out; echo err >&2; exec >&- 2>&-; sleep 0.5; exit 3',
                       'echo out; exec >&-; sleep 0.5; echo err >&2; exit 3'):
            watchdog = VmBackup.Watchdog(60, lambda: 0, 'exported', 'x')
            watchdog.every = 0.1
            self.assertEqual((3, b'out\n', b'err\n'), ended(VmBackup.run(
                ['sh', '-c', script], 60, False, watchdog)))

    def fed(self, script, pieces):
        """What a program of sh said, and what it got, of which the watchdog is told."""
        watchdog = VmBackup.Watchdog(LIMIT / 12, lambda: watchdog.done, 'restored', 'x')
        watchdog.pieces = pieces
        watchdog.every = 0.1
        return ended(VmBackup.run(['sh', '-c', script], 1, False, watchdog))

    def test_one_that_says_much_before_it_reads_is_heard_and_fed(self):
        half = 'head -c 200000 /dev/zero'
        result = self.fed('%s >&2; %s; wc -c; %s >&2; exit 3' % (half, half, half),
                          (bytes(1 << 16) for _ in range(64)))
        self.assertTrue((3, bytes(200000) + b'4194304\n', bytes(400000)) == result)

    def test_what_its_feeder_meets_is_raised_when_it_has_ended(self):
        def pieces():
            yield bytes(1 << 20)
            raise VmBackup.Damaged('a piece')
        with self.assertRaisesRegex(VmBackup.Damaged, 'a piece'):
            self.fed('cat >/dev/null; echo done >&2; echo over >"%s"' % self.path('over'), pieces())
        self.assertEqual('over\n', self.wait_for('over'))

    def test_one_that_ends_before_it_is_fed_has_its_own_words(self):
        self.assertEqual((4, b'', b'words\n'), self.fed(
            'echo words >&2; exit 4', (bytes(1 << 16) for _ in range(64))))

    def test_our_input_is_not_the_childs(self):
        code = 'import VmBackup; print(VmBackup.run(["cat"], 60).stdout)'
        output = subprocess.check_output([sys.executable, '-c', code], input=b'ours', cwd=ROOT)
        self.assertEqual(b"b''\n", output)

    def test_children_are_out_of_reach_of_the_terminals_ctrl_c(self):
        code = 'import os; print(os.getsid(0) == os.getpid() == os.getpgid(0))'
        self.assertEqual(b'True\n', VmBackup.run([sys.executable, '-c', code], 60).stdout)

    def test_the_environment_is_inherited_without_options_for_xe(self):
        with mock.patch.dict(os.environ, XE_EXTRA_ARGS='server=x', OTHER='é'):
            output = VmBackup.run(['env'], 60).stdout
        self.assertNotIn(b'XE_EXTRA_ARGS', output)
        self.assertIn('OTHER=é'.encode('utf-8'), output.split(b'\n'))

    def test_a_program_that_cannot_be_started_is_told(self):
        for argv, reason in (([self.path('none')], 'No such file or directory'),
                             ([self.directory], 'Permission denied'),
                             ([self.script('#!/bin/sh\n', 0o644)], 'Permission denied'),
                             ([self.script('#!/nonexistent/sh\n')], 'No such file or directory'),
                             (['sh', 'nul\0'], 'null byte'),
                             (['sh', 'x' * (1 << 22)], 'Argument list too long')):
            with self.subTest(argv[-1][-20:]):
                message = self.refusal(argv, 60)
                self.assertTrue(message.startswith('cannot start %s: ' % argv[0]), message)
                self.assertIn(reason, message)
        self.assertIn('cannot start', self.refusal([self.script('')], 60))

    def test_what_takes_too_long_is_killed_with_what_it_started(self):
        script, real = 'sleep 60 & echo $$ $! >"$1"; trap "" TERM; wait', threading.Thread.join

        def once_begun(thread, timeout=None):
            self.wait_for('pids')
            real(thread, timeout)
        with mock.patch.object(threading.Thread, 'join', once_begun):
            message = self.refusal(['sh', '-c', script, 'sh', self.path('pids')], 0.5, None)
        self.assertTrue(message.startswith('still running after 0.5 seconds: sh -c'), message)
        for pid in self.wait_for('pids').split():
            self.assert_gone(int(pid))

    def test_a_child_given_up_whose_output_another_holds_costs_no_later_file_its_bytes(self):
        self.refusal(['sh', '-c', 'setsid sh -c \'echo $$ >"$1"; until [ -e "$1.go" ]; do '
                      'sleep 0.05; done\' sh "$1" & exit 0', 'sh', self.path('pid')], 0.5, None)
        pid = int(self.wait_for('pid'))
        with open(self.path('file'), 'wb') as stream:
            stream.write(bytes(1000000))
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(stream.name, 'rb')) for _ in range(8)]
            open(self.path('pid.go'), 'w').close()
            self.assert_gone(pid)
            for thread in threading.enumerate():
                if thread is not threading.current_thread():
                    thread.join(LIMIT)
            self.assertEqual([0] * 8, [os.lseek(each.fileno(), 0, os.SEEK_CUR) for each in files])

    def handling(self):
        """The signals that are handled, as something is begun: one may come before `attend`."""
        patcher = mock.patch.object(VmBackup.Signals, 'current', VmBackup.Signals())
        self.addCleanup(patcher.stop)
        signals = patcher.start()
        signals.at_once = False
        return signals

    def interrupted(self, script, *signums, run=VmBackup.run):
        """Run a program of sh that says so in a file when it has begun; signals come then."""
        signals = self.handling()
        failures = []

        def send():
            try:
                self.wait_for('begun')
                for signum in signums:
                    signals.note(signum)
                open(self.path('begun.go'), 'w').close()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            with self.assertRaises(VmBackup.Interrupted) as caught:
                run(['sh', '-c', script, 'sh', self.path('begun')], LIMIT, True)
        finally:
            thread.join()
        self.assertEqual([], failures)
        self.assertFalse(signals.children)
        return caught.exception.signum

    def test_a_signal_ends_an_export_and_what_it_started(self):
        script = ('(until [ -e "$1.go" ]; do sleep 0.05; done; sleep 2; echo too late >"$1.end") & '
                  'echo begun >"$1"; wait')
        self.assertEqual(signal.SIGHUP, self.interrupted(script, signal.SIGHUP, signal.SIGTERM))
        self.assertFalse(os.path.exists(self.path('begun.end')))

    def test_an_export_that_finishes_all_the_same_is_waited_for(self):
        with mock.patch('VmBackup.REAP_TIMEOUT', LIMIT):
            self.assertEqual(signal.SIGTERM, self.interrupted(IGNORE_TERM, signal.SIGTERM))
        self.assertEqual('finished\n', self.wait_for('begun.end'))

    def test_a_signal_from_before_the_start_ends_an_export_too_but_no_step_without_signals(self):
        signals = self.handling()
        signals.note(signal.SIGINT)
        self.assertEqual(b'done\n', VmBackup.run(['echo', 'done'], 60).stdout)
        with self.assertRaises(VmBackup.Interrupted):
            VmBackup.run(['sleep', '60'], LIMIT, True)
        self.assertRaises(VmBackup.Interrupted, VmBackup.check_signals)

    def test_a_hook_to_which_nobody_can_listen_is_ended(self):
        script = 'echo $$ >"$1"; exec sleep 60'
        thread = mock.Mock(start=mock.Mock(side_effect=self.fail_to_start),
                           is_alive=mock.Mock(return_value=False))
        with mock.patch('VmBackup.Thread', return_value=thread), self.assertRaises(RuntimeError):
            VmBackup.run_hook(['sh', '-c', script, 'sh', self.path('pid')], {}, 60, None, print)
        self.assert_gone(int(self.wait_for('pid')))

    def test_a_hook_has_some_seconds_to_end_after_a_signal_before_the_next(self):
        lines = []
        self.interrupted(CLEAN_UP, signal.SIGTERM, run=lambda argv, timeout, cuttable:
                         VmBackup.run_hook(argv, {}, timeout, cuttable, lines.append))
        self.assertIn('clean', lines)
        self.assertNotIn('disturbed', lines)

    def fail_to_start(self):
        self.wait_for('pid')
        raise RuntimeError("can't start new thread")


class XePrograms(ProgramCase):
    def setUp(self):
        super().setUp()
        self.output = io.BytesIO()
        console = mock.patch.object(VmBackup.Console, 'current', VmBackup.Console(self.output))
        console.start()
        self.addCleanup(console.stop)

    def xe(self, text):
        path = self.script('#!/bin/sh\n' + text, name='xe')
        with mock.patch.dict(os.environ, VMBACKUP_XE=path):
            return VmBackup.Xe()

    def log(self):
        text = self.output.getvalue().decode('utf-8').replace(self.directory + '/', '')
        return [TIME_STAMP.sub('', line) for line in text.splitlines()]

    def test_words_are_spelt_as_xe_wants_them(self):
        self.assertEqual('vm-snapshot uuid=1 new-name-label=RESTORE a other-config:x_y=z', self.xe(
            'echo "$@"').tell('vm-snapshot', uuid='1', new_name_label='RESTORE a',
                              **{'other-config:x_y': 'z'}))

    def test_commands_that_change_something_are_numbered_and_those_that_ask_are_not(self):
        xe = self.xe('echo said')
        self.assertEqual(b'said\n', xe.issue('vm-list', asking=True))
        self.assertEqual('said', xe.tell('vm-snapshot', uuid='1'))
        self.assertEqual('said', xe.tell('vm-export', filename='/a b'))
        self.assertEqual(['1.cmd: xe vm-snapshot uuid=1', '2.cmd: xe vm-export filename="/a b"'],
                         self.log())

    def test_a_failures_last_words_are_in_the_log_and_in_the_error(self):
        xe = self.xe('for n in 1 2 3 4 5 6; do echo "word $n" >&2; done; exit 1')
        with self.assertRaises(VmBackup.CommandFailed) as caught:
            xe.tell('vm-snapshot', uuid='1')
        self.assertEqual('xe vm-snapshot failed: word 3 / word 4 / word 5 / word 6',
                         str(caught.exception))
        self.assertEqual(1, self.log().count('word 1'))
        self.assertEqual(1, self.log().count('ERROR xe vm-snapshot uuid=1'))

    def test_a_failure_without_words_has_its_exit_status(self):
        for text, words in (('exit 7', 'exit status 7'), ('kill -9 $$', 'exit status -9')):
            with self.assertRaisesRegex(VmBackup.CommandFailed, words):
                self.xe(text).tell('vm-snapshot')

    def test_bytes_that_are_no_text_harm_nothing(self):
        xe = self.xe("printf '\\377\\001\\n'; printf '\\376\\n' >&2; exit 1")
        self.assertRaises(VmBackup.CommandFailed, xe.tell, 'vm-export')
        self.assertIn('\ufffd', self.log())
