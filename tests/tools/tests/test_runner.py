"""The test runner itself: on little packages of tests that pass, fail, crash, hang and litter."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest

from tests.faults import faulting
from tests.tools import coverage_run, figures, runner

TOP = os.path.dirname(runner.HERE)
HEADER = 'import os, subprocess, sys, tempfile, time, unittest\n\n'


class SampleCase(unittest.TestCase):
    """Gives each test a package of its own, `sample`, and a way to run it."""

    command = 'test'

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
        """Make a module of the package."""
        with open(os.path.join(self.package, name), 'w', encoding='utf-8') as file:
            file.write(HEADER + textwrap.dedent(body))

    def write_tests(self, body, name='test_it.py'):
        """Make a module with one class, its methods given."""
        self.write(name, 'class It(unittest.TestCase):\n%s' % textwrap.indent(
            textwrap.dedent(body), '    '))

    def start(self, *options, **environ):
        """Start the runner on the package."""
        command = [sys.executable, '-m', 'tests', self.command, '--directory', self.package]
        return subprocess.Popen(
            command + list(options), cwd=TOP, env=dict(os.environ, TMPDIR=self.tmp, **environ),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run_it(self, *options, **environ):
        """Run the package: sets output, closing (its last line) and status."""
        process = self.start(*options, **environ)
        with process:
            self.output = process.communicate()[0].decode('utf-8', 'replace')
        self.closing = self.output.splitlines()[-1]
        self.status = process.returncode

    def assert_run(self, closing, status, *texts):
        """The run ended so, its output has the texts, and nothing is left in TMPDIR."""
        self.assertEqual((self.closing, self.status), (closing, status), self.output)
        for text in texts:
            self.assertIn(text, self.output)
        self.assertEqual(os.listdir(self.tmp), [])


class Outcomes(SampleCase):
    """What becomes of each kind of test."""

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
            def test_skip_one(self):
                pass
            @unittest.skip('no moon')
            def test_skip_two(self):
                pass
            @unittest.expectedFailure
            def test_expected(self):
                self.fail()
            @unittest.expectedFailure
            def test_unexpected(self):
                pass
        ''')
        self.run_it()
        self.assertIn('\nwhat failed\n'
                      "    failed: sample.test_it.It.test_error: KeyError: 'lost'\n"
                      '    failed: sample.test_it.It.test_fail: AssertionError: Lists differ: '
                      '[1] != [2]\n'
                      '    failed: sample.test_it.It.test_unexpected: unexpected success',
                      self.output)
        self.assert_run('2 passed, 3 failed, 2 skipped', 1,
                        'FAILED sample.test_it.It.test_fail', 'AssertionError: Lists differ',
                        'FAILED sample.test_it.It.test_error', "KeyError: 'lost'",
                        'FAILED sample.test_it.It.test_unexpected', 'unexpected success',
                        'skipped 2: no moon', 'last words', 'slowest')

    def test_all_passed_is_status_0(self):
        self.write_tests('def test_pass(self): print("quiet words")')
        self.run_it()
        self.assert_run('1 passed, 0 failed, 0 skipped', 0)
        self.assertNotIn('quiet words', self.output)
        self.assertNotIn('what failed', self.output)

    def test_no_test_is_status_1(self):
        self.run_it()
        self.assert_run('0 passed, 0 failed, 0 skipped', 1)

    def test_parts_decide_for_the_whole_test(self):
        self.write_tests('''
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
        self.run_it()
        self.assert_run('0 passed, 2 failed, 1 skipped', 1, 'number=0', 'number=2',
                        'ZeroDivisionError', 'skipped 1: half a moon')

    def test_fixtures_that_fail_or_skip_count_once(self):
        self.write('test_it.py', '''
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
        self.run_it()
        self.assert_run('0 passed, 1 failed, 1 skipped', 1, 'OSError: no server',
                        'skipped 1: no qemu')

    def test_module_that_cannot_be_imported_is_one_failure(self):
        many = ''.join('def test_%d(self): pass\n' % number for number in range(40))
        self.write_tests(many + 'import nowhere_at_all\n', 'test_absent.py')
        with open(os.path.join(self.package, 'test_absent.py'), 'a', encoding='utf-8') as file:
            file.write('class Second(It): pass\n')
        self.write('test_syntax.py', 'def (:\n')
        self.write('test_exit.py', 'sys.exit(0)\n')
        self.write('test_skip.py', 'raise unittest.SkipTest("not here")\n')
        self.run_it()
        self.assert_run('0 passed, 3 failed, 1 skipped', 1, 'nowhere_at_all', 'SyntaxError',
                        'FAILED sample.test_exit (import)', 'skipped 1: not here')

    def test_words_that_the_locale_cannot_show_are_escaped(self):
        self.write_tests("def test_it(self): self.fail('\u540d\\udc80')")
        self.run_it(LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
        self.assert_run('0 passed, 1 failed, 0 skipped', 1, '\\u540d\\udc80')


class Accidents(SampleCase):
    """Units that do not end as they should."""

    def test_crash_is_a_failure_of_the_test_at_work(self):
        self.write_tests('''
            def test_a(self): pass
            def test_b(self): os._exit(0)
            def test_c(self): pass
        ''')
        self.write('test_other.py', '''
            class Other(unittest.TestCase):
                def test_segfault(self):
                    os.kill(os.getpid(), 11)
        ''')
        self.run_it()
        self.assert_run('1 passed, 2 failed, 0 skipped', 1,
                        'FAILED sample.test_it.It.test_b', 'ended with exit status 0',
                        'FAILED sample.test_other.Other.test_segfault', 'ended with signal 11')

    def test_hang_is_ended_and_shows_where(self):
        self.write_tests('''
            def test_before(self): pass
            def test_for_ever(self):
                subprocess.Popen(['sleep', '1000'])
                self.sleep_well()
            def sleep_well(self): time.sleep(1000)
        ''')
        self.run_it('--limit', '2')
        self.assert_run('1 passed, 1 failed, 0 skipped', 1,
                        'FAILED sample.test_it.It.test_for_ever', 'still running after 2 s',
                        'in sleep_well')
        self.assert_none_living()

    def test_thread_that_does_not_end_is_a_failure(self):
        self.write_tests('''
            def test_thread(self):
                import threading
                threading.Thread(target=time.sleep, args=(1000,)).start()
        ''')
        self.run_it('--limit', '2')
        self.assert_run('1 passed, 1 failed, 0 skipped', 1, 'FAILED sample.test_it (exit)')

    @unittest.skipUnless(os.path.isdir('/proc/self'), 'children are found through /proc')
    def test_process_left_running_is_a_failure(self):
        self.write_tests('''
            def test_child(self):
                subprocess.Popen(['sleep', '1001'])
            def test_child_in_a_session_of_its_own(self):
                subprocess.Popen(['sleep', '1002'], start_new_session=True)
            def test_child_without_environment(self):
                subprocess.Popen(['/bin/sleep', '1003'], env={})
        ''')
        self.run_it()
        self.assert_run('3 passed, 1 failed, 0 skipped', 1, 'FAILED sample.test_it (processes)',
                        'sleep 1001', 'sleep 1002', 'sleep 1003')
        self.assert_none_living()

    def test_file_left_in_tmpdir_is_a_failure(self):
        self.write_tests('''
            def test_file(self):
                os.mkdir(os.path.join(tempfile.gettempdir(), 'litter'), 0)
        ''')
        self.run_it()
        self.assert_run('1 passed, 1 failed, 0 skipped', 1, 'FAILED sample.test_it (files)',
                        "left behind in TMPDIR: 'litter'")

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
                process = self.start(STARTED=started)
                with process:
                    while not os.path.exists(started) and process.poll() is None:
                        time.sleep(0.02)
                    process.send_signal(number)
                    output = process.communicate()[0].decode()
                self.assertEqual((output, process.returncode), ('interrupted\n', 128 + number))
                self.assertEqual(os.listdir(self.tmp), [])
                self.assert_none_living()

    def assert_none_living(self):
        """No process has our runner's TMPDIR any more."""
        left = [command for pid, command in runner.living(os.environ.get(runner.MARK, '-')).items()
                if self.tmp.encode() in runner.read_proc(pid, 'environ')]
        self.assertEqual(left, [])


class Choices(SampleCase):
    """What is run, and how."""

    MANY = 30

    def setUp(self):
        super().setUp()
        body = '''
            class Case%d(unittest.TestCase):
                def test_one(self): pass
                def test_two(self): pass
        '''
        self.write('test_many.py', ''.join(
            textwrap.dedent(body) % number for number in range(self.MANY)) + textwrap.dedent('''
                Made = type('Made', (unittest.TestCase,), {'test_made': lambda self: None})
            '''))

    def test_divided_module_runs_every_test_once(self):
        self.run_it('-v')
        self.assert_run('61 passed, 0 failed, 0 skipped', 0, 'sample.test_many/2',
                        'sample.test_many.Case29.test_two', 'sample.test_many.Made.test_made')
        self.assertEqual(self.output.count('sample.test_many.Case7.test_one\n'), 1)

    def test_k_selects_by_substring(self):
        self.run_it('-k', 'Case2.test_one', '-k', 'e3.', '-j', '1')
        self.assert_run('3 passed, 0 failed, 0 skipped', 0)

    def test_k_that_selects_nothing_is_status_1(self):
        self.run_it('-k', 'nothing like it')
        self.assert_run('0 passed, 0 failed, 0 skipped', 1, 'no test was selected')

    def test_nonsense_is_status_2(self):
        for arguments in (['-j', '0'], ['--limit', 'x'], ['--what']):
            with self.subTest(arguments=arguments):
                self.run_it(*arguments)
                self.assertEqual(self.status, 2)


class Figures(SampleCase):
    """What the tests count is added up, and printed before the closing line."""

    BODY = '''
        def test_lost(self):
            from tests.tools import figures
            figures.add('a lost disk', faults=%d)
            figures.add_check('a lost disk', 12)
            figures.add('a dead daemon', faults=1, checks=6)
    '''
    TABLE = [
        'faults injected, and invariants checked after them',
        '    kind of fault  injected   checked',
        '    a dead daemon         2        12',
        '    a lost disk           5        24',
        '    in all                7        36']

    def test_they_are_the_sums_of_all_units(self):
        self.write_tests(self.BODY % 2)
        self.write_tests(self.BODY % 3, 'test_other.py')
        self.run_it()
        self.assert_run('2 passed, 0 failed, 0 skipped', 0, '\n'.join(self.TABLE))

    def test_there_is_no_table_of_nothing(self):
        self.write_tests('def test_pass(self): pass')
        self.run_it()
        self.assert_run('1 passed, 0 failed, 0 skipped', 0)
        self.assertNotIn('faults', self.output)

    def test_outside_of_a_run_nothing_is_counted(self):
        file = os.environ.pop(figures.FILE, None)
        try:
            figures.add('a lost disk', faults=1)
        finally:
            if file:
                os.environ[figures.FILE] = file
        self.assertEqual({}, figures.read(os.path.join(self.place, 'nothing')))
        self.assertEqual([], figures.table({}))


class AllFaults(SampleCase):
    """python3 -m tests faults."""

    command = 'faults'

    def test_it_runs_the_modules_of_faults_in_full_each_class_on_its_own(self):
        self.write('test_other.py', 'sys.exit("not to be run")\n')
        self.write('test_faults_of_disks.py', '''
            from tests.faults import faulting
            class Some(unittest.TestCase):
                def test_full(self):
                    self.assertTrue(faulting.full())
                    self.assertEqual([1, 2, 3], faulting.sample([1, 2, 3], 1))
            class Heir(Some): pass
        ''')
        self.run_it(**{faulting.FULL: ''})
        self.assert_run('2 passed, 0 failed, 0 skipped', 0, 'sample.test_faults_of_disks/1',
                        'sample.test_faults_of_disks/2')

    def test_without_it_a_sample_by_the_seed_is_taken(self):
        self.command = 'test'
        self.write('test_faults_of_disks.py', '''
            from tests.faults import faulting
            class Some(unittest.TestCase):
                def test_sample(self):
                    self.assertFalse(faulting.full())
                    print(faulting.sample(range(1000), 5), faulting.sample([1], 5))
                    self.fail('show it')
        ''')
        shown = []
        for seed in '1', '1', '2':
            self.run_it(**{faulting.FULL: '', faulting.SEED: seed})
            shown.append([line for line in self.output.splitlines() if line.endswith('] [1]')])
        self.assertEqual(1, len(shown[0]))
        self.assertEqual(shown[0], shown[1])
        self.assertNotEqual(shown[0], shown[2])


class Coverage(SampleCase):
    """Measuring, in children and in those that are ended by a signal."""

    def setUp(self):
        super().setUp()
        try:
            import coverage
        except ImportError:
            self.skipTest('no package coverage')
        self.coverage = coverage
        self.environ = coverage_run.prepare(self.tmp, coverage.version_info, self.package)

    def measure(self, body, number=None):
        """Numbers of the missing lines of a program that is run, and ended by a signal."""
        self.write('program.py', body)
        program = os.path.join(self.package, 'program.py')
        process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE,
                                   env=dict(os.environ, **self.environ))
        with process:
            self.assertEqual(process.stdout.readline(), b'ready\n')
            if number:
                process.send_signal(number)
        measured = self.coverage.Coverage(
            config_file=self.environ['COVERAGE_PROCESS_START'])
        measured.combine()
        return measured.analysis2(program)[3]

    def test_children_are_measured(self):
        self.assertEqual(self.measure("""
            if len(sys.argv) == 1:
                print('ready', flush=True)
            else:
                print('never')
        """), [7])

    def test_children_ended_by_a_signal_are_measured(self):
        if self.coverage.version_info < (6, 4):
            self.skipTest('this coverage loses what a signal ends')
        self.assertEqual(self.measure("""
            print('ready', flush=True); time.sleep(1000)
            print('never')
        """, signal.SIGTERM), [5])


class Dispatcher(unittest.TestCase):
    """python3 -m tests COMMAND."""

    def test_unknown_command_is_status_2(self):
        process = subprocess.Popen([sys.executable, '-m', 'tests', 'dance'], cwd=TOP,
                                   stderr=subprocess.PIPE)
        with process:
            words = process.communicate()[1].decode()
        self.assertEqual(process.returncode, 2)
        self.assertIn('no such command: dance', words)
        self.assertIn('coverage', words)


if __name__ == '__main__':
    unittest.main()
