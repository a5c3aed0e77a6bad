"""Forked runs: they have what a process has of its own, and none sees anything of another."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import warnings

from tests import SCRIPT
from tests.tools import forked, forked_xe, support
from tests.tools.processes import read_proc

# All that a process may find as it begins, told in a line.
TELL = '''
import os, resource, signal, sys
print(sys.argv[1:], os.getcwd(), sorted(os.environ.items()), os.getpgrp(), os.getsid(0),
      [resource.getrlimit(getattr(resource, name)) for name in dir(resource)
       if name[:7] == 'RLIMIT_'],
      [int(number) for number in range(1, 65) if number not in (32, 33)
       and signal.getsignal(number) == signal.SIG_IGN],
      signal.getsignal(signal.SIGINT) is signal.default_int_handler,
      signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.umask(0), os.getpriority(os.PRIO_PROCESS, 0),
      [(stream.encoding, stream.errors, stream.newlines, stream.line_buffering,
        type(stream.buffer).__name__, stream.isatty())
       for stream in (sys.stdin, sys.stdout, sys.stderr)],
      sorted(os.listdir('/proc/self/fd'))[:3], sys.stdin.read())
os._exit(sys.stdout.flush() or 0)
'''


class ForkedCase(unittest.TestCase):
    """A way to have a text run first in a run's process, forked and for real."""

    maxDiff = None

    def setUp(self):
        if not forked.can_fork(SCRIPT, os.environ):
            self.skipTest('nothing is forked here')
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.place = place.name
        self.environ = dict(os.environ, HOME=self.place, ODD='\udcff é\n')

    def start(self, text, *words, **options):
        child = forked.start(words, self.environ, self.place, prelude=text, **options)
        self.assertIsInstance(child, forked.Forked)
        return child

    def end_of(self, text, *words, **options):
        child = self.start(text, *words, **options)
        output = child.communicate(support.LIMIT)[0]
        return child.returncode, output

    def real_end_of(self, text, *words, **options):
        done = subprocess.run(
            [sys.executable, '-c', text] + [os.fsencode(word) for word in words], cwd=self.place,
            env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            **dict(dict(stdin=subprocess.DEVNULL), **options))
        return done.returncode, done.stdout


class TheSame(ForkedCase):
    """As a real start."""

    def test_what_a_process_finds(self):
        words = ('a b', '', "'$(id)", 'büro', '\udcfe')
        self.assertEqual(self.real_end_of(TELL, *words), self.end_of(TELL, *words))

    def test_what_its_parent_hands_on(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        umask, handler = os.umask(0o027), signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        try:
            found = self.end_of(TELL)
            self.assertEqual(self.real_end_of(TELL), found)
            self.assertIn(b' %d ' % 0o027, found[1])
        finally:
            os.umask(umask)
            signal.signal(signal.SIGUSR1, handler)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])

    def test_streams(self):
        path = os.path.join(self.place, 'input')
        with open(path, 'w') as stream:
            stream.write('words')
        for start in (self.end_of, self.real_end_of):
            with open(path) as stream:
                self.assertIn(b"words", start(TELL, stdin=stream)[1])
        child = self.start('import sys\nsys.stderr.write(sys.stdin.read().upper())\nsys.exit()',
                           stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        child.stdin.write(b'words')
        child.stdin.close()
        self.assertEqual((b'', b'WORDS'), child.communicate(support.LIMIT))

    def test_ends(self):
        for text in ('sys.exit()', 'sys.exit(7)', 'sys.exit("words")', '1 / 0', 'os._exit(9)',
                     'os.kill(os.getpid(), 9)', 'os.kill(os.getpid(), 15)',
                     'print("kept"); sys.exit(0)', 'os.close(1); print("lost"); sys.exit(0)',
                     'threading.Thread(target=lambda: print("later")).start(); sys.exit(3)'):
            with self.subTest(text):
                text = 'import os, sys, threading\n' + text
                real, ours = self.real_end_of(text), self.end_of(text)
                self.assertEqual(real[0], ours[0], ours)
                if 'lost' not in text:      # an interpreter says more at its very end
                    self.assertEqual(real[1].splitlines()[-1:], ours[1].splitlines()[-1:])

    @unittest.skipIf(sys.version_info < (3, 7), 'no interpreter of 3.6 tells of it')
    def test_what_is_deprecated_in_the_script_is_told(self):
        self.assertIn(b'DeprecationWarning: old', self.end_of(
            'import sys, VmBackup\nexec("__import__(\'warnings\').warn(\'old\', '
            'DeprecationWarning)", vars(VmBackup))\nsys.exit()')[1])

    def test_it_is_the_script(self):
        status, output = self.end_of('', 'help')
        real = subprocess.run([sys.executable, SCRIPT, 'help'], stdout=subprocess.PIPE)
        self.assertEqual((real.returncode, real.stdout), (status, output))


class OfItsOwn(ForkedCase):
    """Nothing of one is seen by another, and each can be handled."""

    def test_what_one_changes_no_other_sees(self):
        change = ('import os, random, signal, sys, VmBackup\nVmBackup.VERSION = "0"\n'
                  'signal.signal(15, signal.SIG_IGN)\nos.umask(0)\nos.chdir("/")\n'
                  'os.environ["NEW"] = "1"\nsys.exit(random.getrandbits(7))\n')
        look = 'import sys, VmBackup\nprint(VmBackup.VERSION)\n' + TELL
        before = self.end_of(look)
        self.assertGreater(len({self.end_of(change)[0] for _ in range(9)}), 1)     # seeds
        self.assertEqual(before, self.end_of(look))

    def test_constants_are_its_own(self):
        script = forked.Script(SCRIPT)
        script.constants = {'XXHASH': (), 'MAIL_PAUSE': 0}
        look = 'import sys, VmBackup\nprint(VmBackup.XXHASH, VmBackup.MAIL_PAUSE)\nsys.exit()'
        ours = self.end_of(look)[1]
        self.assertNotEqual(ours, b'() 0\n')
        self.assertEqual(ours, self.end_of(look)[1])
        child = forked.start(['help'], self.environ, self.place, script=script)
        self.assertEqual(0, child.communicate(support.LIMIT) and child.returncode)
        script.constants = {'NO_SUCH': 0}
        self.assertNotEqual(0, forked.start(
            ['help'], self.environ, self.place, script=script).communicate() and 1)

    def test_it_can_be_stopped_killed_and_waited_for(self):
        child = self.start('print("here", flush=True)\nimport time\ntime.sleep(1000)')
        self.assertEqual(b'here\n', child.stdout.readline())
        self.assertIsNone(child.poll())
        with self.assertRaises(subprocess.TimeoutExpired):
            child.wait(0.05)
        with self.assertRaises(subprocess.TimeoutExpired):
            child.communicate(0.05)
        child.send_signal(signal.SIGSTOP)
        while read_proc(child.pid, 'stat').rpartition(b')')[2].split()[0] != b'T':
            time.sleep(0.01)
        child.kill()
        with child:
            self.assertEqual(-signal.SIGKILL, child.wait(support.LIMIT))
        self.assertEqual((-signal.SIGKILL, b''), (child.poll(), read_proc(child.pid, 'stat')))
        child.terminate()                               # does nothing any more


# An xe that tells what it has found, asked for twice by a run: forked, and for real.
XE = '''#!%s -IS
%s."""
import os, posix, resource, signal, sys
os.write(1, repr([
    sys.argv, os.getcwd(), sorted(posix.environ.items()), os.getsid(0) == os.getpid(), os.umask(0),
    [resource.getrlimit(getattr(resource, name)) for name in dir(resource)
     if name[:7] == 'RLIMIT_'],
    [int(number) for number in range(1, 65) if number not in (32, 33)
     and signal.getsignal(number) == signal.SIG_IGN], [
        number for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_DFL],
    signal.pthread_sigmask(signal.SIG_BLOCK, ()), sys.getprofile(),
    sorted(os.listdir('/proc/self/fd')), os.read(0, 9), os.write(2, b'errors')]).encode())
%s
'''
ASK = '''
import os, signal, subprocess, sys, threading
from tests.tools import forked_xe
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
kept = os.dup(0)
os.set_inheritable(kept, True)
sys.setprofile(lambda *_: None)
def ask():
    for options in ({}, dict(env={b'A': b'\\xff=', b'LC_ALL': b'C'}), dict(pass_fds=[kept])):
        child = subprocess.Popen([os.environb[b'XE'], b'a b', b'', b'\\xfe'], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 start_new_session=True, **options)
        found.append(child.communicate(b'words') + (child.returncode,))
for number in range(2):
    found = []
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    print(ascii(found))
    setattr(forked_xe.HOLDER, forked_xe.NAME, forked_xe.fork_and_exec)
print(forked_xe.forks)
sys.exit()
'''


class AnXe(ForkedCase):
    """That of a forked run is forked, and finds what it finds when it is started."""

    def test_forked_or_started_is_the_same(self):
        for end in ('os._exit(3)', '1 / 0', 'os.kill(os.getpid(), 15)', 'posix.write(1, b"x")'):
            with self.subTest(end):
                self.environ['XE'] = os.path.join(self.place, 'xe')
                with open(self.environ['XE'], 'w') as stream:
                    stream.write(XE % (sys.executable, forked_xe.MARK.decode(), end))
                os.chmod(self.environ['XE'], 0o755)
                forks, real, number = self.end_of(ASK)[1].splitlines()
                self.assertEqual(real, forks)
                self.assertEqual(b'3', number)


class ForReal(ForkedCase):
    def test_what_an_interpreter_decides_at_its_start(self):
        for change in ({'LC_ALL': 'C'}, {'LANG': 'xx'}, {'PYTHONHASHSEED': '1'},
                       {'PYTHONPATH': self.place}, {'LD_PRELOAD': ''}):
            with self.subTest(change):
                child = forked.start(['help'], dict(self.environ, **change), self.place)
                self.assertIsInstance(child, subprocess.Popen)
                child.communicate(timeout=support.LIMIT)
                self.assertEqual(0, child.returncode)
        with self.assertRaises(ValueError):
            forked.start([], dict(self.environ, LC_ALL='C'), self.place, prelude='x')

    def test_another_script_and_what_the_script_reads_while_it_is_loaded(self):
        script = forked.Script(SCRIPT)
        self.assertTrue(forked.can_fork(script, self.environ))
        self.assertFalse(forked.can_fork('/some/other.py', self.environ))
        script.constants = {min(filter(str.isupper, forked.names_read_at_import())): 1}
        self.assertFalse(forked.can_fork(script, self.environ))

    def test_a_server_that_died_is_no_silence(self):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')     # threads of other tests
            server = forked.Server()
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGKILL)
        with self.assertRaises((EOFError, OSError)):
            forked.Forked(server, SCRIPT, ['help'], self.environ, self.place, -1, '',
                          *[subprocess.DEVNULL] * 3)
        server.stop()
