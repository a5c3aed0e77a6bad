"""The runner: on little packages of tests that pass, fail, crash, hang and litter."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest

from tests import ROOT
from tests.tools import figures, runner
from tests.tools.processes import living, read_proc

HEADER = 'import os, subprocess, sys, tempfile, time, unittest\n\n'
PROGRAM = ('import os, sys\nfrom tests.tools import runner\n'
           'place = sys.argv.pop(1)\n'
           'sys.exit(runner.main(sys.argv[1:], places=[place], top=os.path.dirname(place)))\n')


class SampleCase(unittest.TestCase):
    """Gives each test a package of its own, `sample`, and a way to run it."""

    def setUp(self):
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.place = place.name
        self.package = os.path.join(place.name, 'a place', 'sample')
        self.tmp = os.path.join(place.name, 'tmp')
        os.makedirs(self.package)
        os.mkdir(self.tmp)
        self.write('__init__.py', '')

    def write(self, name, body):
        with open(os.path.join(self.package, name), 'w', encoding='utf-8') as file:
            file.write(HEADER + textwrap.dedent(body))

    def write_tests(self, body, name='test_it.py'):
        self.write(name, 'class It(unittest.TestCase):\n%s' % textwrap.indent(
            textwrap.dedent(body), '    '))

    def start(self, *options, **environ):
        return subprocess.Popen(
            [sys.executable, '-c', PROGRAM, self.package] + list(options), cwd=ROOT,
            env=dict(os.environ, TMPDIR=self.tmp, **environ),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run_it(self, *options, **environ):
        """Run the package: sets output, closing (its last line) and status."""
        with self.start(*options, **environ) as process:
            self.output = process.communicate()[0].decode('utf-8', 'replace')
        self.closing = self.output.splitlines()[-1]
        self.status = process.returncode

    def assert_run(self, closing, status, *texts):
        """The run ended so, its output has the texts, and nothing is left in TMPDIR."""
        self.assertEqual((self.closing, self.status), (closing, status), self.output)
        for text in texts:
            self.assertIn(text, self.output)
        self.assertEqual(os.listdir(self.tmp), [])

    def assert_none_living(self):
        """No process has our runner's TMPDIR any more."""
        left = [command for pid, command in living(
            runner.MARK, os.environ.get(runner.MARK, '-')).items()
            if self.tmp.encode() in read_proc(pid, 'environ')]
        self.assertEqual(left, [])


class Outcomes(SampleCase):
    def test_everything_is_counted_and_told(self):
        self.write_tests('''
            def test_pass(self):
                print('quiet words')
            def test_fail(self):
                print('last words')
                self.assertEqual([1], [2])
            def test_error(self):
                raise KeyError('lost')
            @unittest.skip('no moon')
            def test_skip_one(self): pass
            @unittest.skip('no moon')
            def test_skip_two(self): pass
            @unittest.expectedFailure
            def test_expected(self):
                self.fail()
            @unittest.expectedFailure
            def test_unexpected(self): pass
            def test_failing_part(self):
                for number in range(3):
                    with self.subTest(number=number):
                        self.assertEqual(number, 1)
            def test_skipped_part(self):
                with self.subTest('one'):
                    self.skipTest('half a moon')
            def test_cleanup(self):
                self.addCleanup(lambda: 1 / 0)
        ''')
        self.write('test_fixtures.py', '''
            class Broken(unittest.TestCase):
                @classmethod
                def setUpClass(cls):
                    raise OSError('no server')
                def test_one(self): pass
                def test_two(self): pass
            class Skipped(unittest.TestCase):
                @classmethod
                def setUpClass(cls):
                    raise unittest.SkipTest('no qemu')
                def test_one(self): pass
        ''')
        self.write('test_syntax.py', 'def (:\n')
        self.write('test_absent.py', 'import nowhere_at_all\n')
        self.write('test_skip.py', 'raise unittest.SkipTest("not here")\n')
        self.run_it()
        self.assert_run('2 passed, 8 failed, 5 skipped', 1,
                        'FAILED sample.test_it.It.test_fail', 'AssertionError: Lists differ',
                        'FAILED sample.test_it.It.test_error', "KeyError: 'lost'",
                        'FAILED sample.test_it.It.test_unexpected', 'unexpected success',
                        'skipped 2: no moon', 'last words', 'slowest', 'number=0', 'number=2',
                        'ZeroDivisionError', 'skipped 1: half a moon', 'OSError: no server',
                        'skipped 1: no qemu', 'nowhere_at_all', 'SyntaxError',
                        'skipped 1: not here',
                        "    failed: sample.test_it.It.test_error: KeyError: 'lost'\n")

    def test_status_0_only_if_something_ran_and_all_passed(self):
        self.run_it()
        self.assert_run('0 passed, 0 failed, 0 skipped', 1, 'no test was selected')
        self.write_tests('def test_pass(self): print("quiet words")')
        self.run_it()
        self.assert_run('1 passed, 0 failed, 0 skipped', 0)
        for text in ('quiet words', 'what failed', 'faults'):
            self.assertNotIn(text, self.output)

    def test_words_that_the_locale_cannot_show_are_escaped(self):
        self.write_tests("def test_it(self): self.fail('\u540d\\udc80')")
        self.run_it(LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0', VMBACKUP_TESTS_LOCALE='')
        self.assert_run('0 passed, 1 failed, 0 skipped', 1, '\\u540d\\udc80')

    def test_a_log_of_the_administrators_that_is_written_fails_the_unit(self):
        self.write_tests('''
            def test_it(self):
                pass
            @classmethod
            def setUpClass(cls):
                from tests.tools import runner
                with open(runner.NOT_OURS, 'w'):
                    pass
        ''')
        path = os.path.join(self.place, 'status.log')
        self.write('test_a.py', 'from tests.tools import runner\nrunner.NOT_OURS = %r\n' % path)
        self.run_it()
        self.assert_run('1 passed, 1 failed, 0 skipped', 1, path + ' was written')

    def test_what_is_counted_is_added_up(self):
        for name, number in (('test_it.py', 2), ('test_other.py', 3)):
            self.write_tests('''
                def test_lost(self):
                    from tests.tools import figures
                    figures.add('a lost disk', faults=%d)
                    figures.add('a lost disk', checks=12)
                    figures.add('a dead daemon', faults=1, checks=6)
            ''' % number, name)
        self.run_it()
        self.assert_run('2 passed, 0 failed, 0 skipped', 0, '\n'.join((
            'faults injected, and invariants checked after them',
            '    kind of fault  injected   checked',
            '    a dead daemon         2        12',
            '    a lost disk           5        24',
            '    in all                7        36')))
        self.assertEqual({}, figures.read(os.path.join(self.place, 'nothing')))
        self.assertEqual([], figures.table({}))


class Accidents(SampleCase):
    def test_crash_is_a_failure_of_the_test_at_work(self):
        self.write_tests('''
            def test_a(self): pass
            def test_b(self): os._exit(0)
            def test_c(self): pass
        ''')
        self.write_tests('def test_segfault(self): os.kill(os.getpid(), 11)', 'test_other.py')
        self.run_it()
        self.assert_run('1 passed, 2 failed, 0 skipped', 1,
                        'FAILED sample.test_it.It.test_b', 'ended with exit status 0',
                        'FAILED sample.test_other.It.test_segfault', 'ended with signal 11')

    def test_hang_is_ended_and_shows_where(self):
        self.write_tests('''
            def test_before(self): pass
            def test_for_ever(self):
                subprocess.Popen(['sleep', '1000'])
                self.sleep_well()
            def sleep_well(self): time.sleep(1000)
        ''')
        self.write_tests('''
            def test_thread(self):
                import threading
                threading.Thread(target=time.sleep, args=(1000,)).start()
        ''', 'test_thread.py')
        self.run_it('--limit', '2')
        self.assert_run('2 passed, 2 failed, 0 skipped', 1,
                        'FAILED sample.test_it.It.test_for_ever', 'still running after 2 s',
                        'in sleep_well', 'FAILED sample.test_thread/2 (unit)')
        self.assert_none_living()

    @unittest.skipUnless(os.path.isdir('/proc/self'), 'children are found through /proc')
    def test_what_is_left_is_a_failure(self):
        self.write_tests('''
            def test_child(self):
                subprocess.Popen(['sleep', '1001'])
            def test_child_in_a_session_of_its_own(self):
                subprocess.Popen(['sleep', '1002'], start_new_session=True)
            def test_child_without_environment(self):
                subprocess.Popen(['/bin/sleep', '1003'], env={})
            def test_file(self):
                os.mkdir(os.path.join(tempfile.gettempdir(), 'litter'), 0)
        ''')
        self.run_it()
        self.assert_run('4 passed, 2 failed, 0 skipped', 1, 'FAILED sample.test_it/1 (processes)',
                        'sleep 1001', 'sleep 1002', 'sleep 1003',
                        'FAILED sample.test_it/1 (files)', "left behind in TMPDIR: ['litter']")
        self.assert_none_living()

    def test_long_tmpdir_has_room_for_sockets(self):
        self.write_tests('''
            def test_socket(self):
                import socket
                path = os.path.join(tempfile.mkdtemp(), 'socket')
                with socket.socket(socket.AF_UNIX) as door:
                    door.bind(path)
                os.unlink(path)
                os.rmdir(os.path.dirname(path))
                self.assertTrue(os.path.realpath(path).startswith(os.environ['LONG']))
        ''')
        self.tmp = os.path.join(self.tmp, 'x' * 150)
        os.mkdir(self.tmp)
        self.run_it(LONG=os.path.realpath(self.tmp))
        self.assert_run('1 passed, 0 failed, 0 skipped', 0)

    def test_signal_ends_everything(self):
        self.write_tests('''
            def test_for_ever(self):
                with open(os.environ['STARTED'], 'w'):
                    subprocess.call(['sleep', '1000'])
        ''')
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number=number):
                started = os.path.join(self.place, 'started-%d' % number)
                with self.start(STARTED=started) as process:
                    while not os.path.exists(started) and process.poll() is None:
                        time.sleep(0.02)
                    process.send_signal(number)
                    output = process.communicate()[0].decode()
                self.assertEqual((output, process.returncode), ('interrupted\n', 128 + number))
                self.assertEqual(os.listdir(self.tmp), [])
                self.assert_none_living()


class Choices(SampleCase):
    def setUp(self):
        super().setUp()
        self.write('test_many.py', ''.join(textwrap.dedent('''
            class Case%d(unittest.TestCase):
                def test_one(self): pass
                def test_two(self): pass
        ''') % number for number in range(30)) +
            "Made = type('Made', (unittest.TestCase,), {'test_made': lambda self: None})\n")

    def test_a_divided_module_runs_every_test_once(self):
        self.run_it('-v')
        self.assert_run('61 passed, 0 failed, 0 skipped', 0, 'test_many/2',
                        'sample.test_many.Case29.test_two', 'sample.test_many.Made.test_made')
        self.assertEqual(self.output.count('sample.test_many.Case7.test_one\n'), 1)

    def test_k_selects_by_substring_before_anything_is_started(self):
        self.run_it('-k', 'Case2.test_one', '-k', 'e3.', '-j', '1')
        self.assert_run('3 passed, 0 failed, 0 skipped', 0)
        self.assertEqual(1, self.output.count('\nok ') + self.output.startswith('ok '))

    def test_nonsense_is_status_2(self):
        for arguments in (['-j', '0'], ['--limit', 'x'], ['--what']):
            with self.subTest(arguments=arguments):
                self.run_it(*arguments)
                self.assertEqual(self.status, 2)


class Dispatcher(unittest.TestCase):
    def test_unknown_command_is_status_2(self):
        done = subprocess.run([sys.executable, '-m', 'tests', 'dance'], cwd=ROOT,
                              stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 2)
        for word in ('no such command: dance', 'coverage'):
            self.assertIn(word, done.stderr.decode())
