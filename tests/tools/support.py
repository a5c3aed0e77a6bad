"""What the tests share: a simulated pool, a backup directory, VmBackup.py as a real process."""

import contextlib
import fcntl
import io
import itertools
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
import types
import unittest
import unittest.mock
from typing import List, NamedTuple

import VmBackup
from tests import ROOT, SCRIPT
from tests.simpool import SimPool
from tests.tools import forked

if not forked.deferred:
    forked.begin()

DATED = re.compile(r'backup-\d{4}-\d\d-\d\d-\(\d\d:\d\d:\d\d\)')
TIME_STAMP = re.compile(r'^\d{4}-\d\d-\d\d-\(\d\d:\d\d:\d\d\) - ')


def hanging(name):
    """A prelude: what opens a file that begins so waits, as for a share that does not answer."""
    return ('import os, time\nopening = os.open\n'
            'os.open = lambda path, *how, **more: (\n'
            '    time.sleep(300) if str(path).startswith(%r) else opening(path, *how, **more))\n'
            % name)


# A prelude: the process has no module xxhash.
NO_XXHASH = "import sys; sys.modules['xxhash'] = None"
LIMIT = 120                    # seconds: far beyond what any of these children needs
HOST = os.uname().nodename
SMALL = {'vms': [{'name': 'web', 'disks': ['64 KiB'], 'ran': True},
                 {'name': 'db', 'disks': ['64 KiB'], 'ran': True}]}


def screen(data):
    """The lines that a terminal shows which got this."""
    lines, row = [''], 0
    for piece in re.findall('\x1b\\[K|\x1b\\[A|\r|\n|[^\x1b\r\n]+', data):
        if piece == '\x1b[K':
            lines[row] = ''
        elif piece == '\x1b[A':
            row -= 1
        elif piece == '\n':
            row += 1
            lines += [''] * (row == len(lines))
        elif piece != '\r':
            lines[row] += piece
    return lines


class Done(NamedTuple):
    status: int
    output: str                # standard output and error

    @property
    def lines(self) -> List[str]:
        """Its log lines without their time stamps."""
        return [TIME_STAMP.sub('', line) for line in self.output.splitlines()]


class Journal(list):
    """A pool's journal that tells somebody of each call, by its number, before it goes on."""

    def __init__(self, tell):
        super().__init__()
        self.tell = tell

    def append(self, call):
        super().append(call)
        self.tell(len(self), call)


# An answer of xapi that no check of ours expects, to find out what a bug does.
RUBBISH = dict(dict.fromkeys((VmBackup.FIELDS['VM'] + ' uuid name_label is_a_template '
                              'is_a_snapshot is_control_domain').split(), []),
               current_operations={}, other_config={})


class PoolCase(unittest.TestCase):
    """A test with a simulated pool of its own; it ends with nothing of ours left in the pool."""

    pool_description = {'vms': [
        {'name': 'web', 'power_state': 'Running', 'disks': ['3 MiB', '2 MiB']},
        {'name': 'db', 'disks': ['2 MiB', {'size': '3 MiB', 'fill': 0}], 'ran': True}]}
    leaves_things_behind = False       # a test that means to sets it
    script = SCRIPT
    prelude = ''                       # what the script's process runs first

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='vmbackup-test-')
        self.addCleanup(shutil.rmtree, self.directory)
        self.backups = os.path.join(self.directory, 'BACKUPS')
        self.status_log = os.path.join(self.directory, 'logs', 'status.log')
        os.mkdir(self.backups)
        self.use_pool()

    def use_pool(self, **options):
        """Start this test's pool; with options of SimPool, in the place of the one it had."""
        self.sim = SimPool(self.pool_description, **options)
        self.addCleanup(self.sim.stop)
        self.before = self.contents()

    def doCleanups(self):
        """A test ends by looking at what is left, before the pool is taken down."""
        if getattr(self, 'before', None) is not None and not self.leaves_things_behind:
            self.leaves_things_behind = True
            with self._outcome.testPartExecutor(self):
                self.assert_clean()
        return super().doCleanups()

    def contents(self):
        return {cls: {ref: record.get('name_label', '')
                      for ref, record in self.sim.pool.tables[cls].items()
                      if record.get('status', 'pending') == 'pending'}
                for cls in ('VM', 'VBD', 'VDI', 'VIF', 'session', 'task')}

    def assert_clean(self):
        """No snapshot, disk, VBD, session or task that was not there at the beginning.

        The daemon takes a moment to notice that a client was killed.
        """
        end = time.monotonic() + 30
        while self.contents() != self.before and time.monotonic() < end:
            time.sleep(0.02)
        now = self.contents()
        for cls, objects in self.before.items():
            extra = {ref: name for ref, name in now[cls].items() if ref not in objects}
            lost = {ref: name for ref, name in objects.items() if ref not in now[cls]}
            self.assertEqual(({}, {}), (extra, lost), 'left in or lost from the pool: ' + cls)

    def config(self, *lines, **keys):
        """Write a config file for this test's directories; return its path."""
        keys = dict(dict(backup_dir=self.backups, status_log=self.status_log), **keys)
        text = ['%s=%s' % item for item in keys.items()] + list(lines)
        if 'require_mount' not in keys:
            text.append('require_mount=no')     # temporary files are anywhere
        return self.put_file('run.cfg', '\n'.join(text) + '\n')

    def changed_script(self, **constants):
        """The script with other values of these first-page constants."""
        place = tempfile.mkdtemp(dir=self.directory, prefix='script-')
        shutil.copy(os.path.join(ROOT, 'XenAPI.py'), place)
        text = self.read(SCRIPT)
        for name, value in constants.items():
            line = re.compile(r'^%s = ("""\n(.*\n)*?"""|.*)$' % name, re.MULTILINE)
            text, count = line.subn(lambda _: '%s = %r' % (name, value), text)
            self.assertEqual(1, count, '%s is no constant of the script' % name)
        script = forked.Script(os.path.join(place, 'VmBackup.py'))
        script.constants = constants
        self.put_file(script, text)
        return script

    def with_defaults(self, **defaults):
        """The script with other defaults on its first page."""
        text = VmBackup.KEYS_HELP
        for name, value in defaults.items():
            text, count = re.subn(r'(?m)^%s=.* \[' % name, '%s=%s [' % (name, value), text)
            self.assertEqual(1, count, name)
        return self.changed_script(KEYS_HELP=text)

    def environ(self, **more):
        return dict(self.sim.environ(HOME=self.directory), **more)

    def at(self, *parts):
        return os.path.join(self.directory, *parts)

    def put_file(self, name, text=''):
        with open(self.at(name), 'wb') as stream:
            stream.write(text if isinstance(text, bytes) else text.encode('utf-8'))
        return stream.name

    def program(self, name, text):
        path = self.put_file(name, text if text.startswith('#!') else '#!/bin/sh\n' + text)
        os.chmod(path, 0o755)
        return path

    def xe_that(self, change, first='%s "$@" || exit'):
        """The path of an xe after whose exports into a file this shell command is run, $1 being
        the file."""
        return self.program('odd-xe', first % self.sim.xe + '\nfor word; do case $word in '
                            'filename=?*) set -- "${word#filename=}"; %s;; esac; done\n' % change)

    def xe_whose(self, verb, change):
        """The same in the place of its exports by this verb."""
        return self.xe_that(change, '[ "$1" = ' + verb + ' ] || exec %s "$@"')

    def fault(self, name, do, **details):
        self.sim.pool.faults.add(name, do, **details)

    def at_call(self, name, work, nth=1):
        """Have something done when the nth call of that name comes, or each with 0, before the
        pool acts."""
        numbers = itertools.count(1)
        self.sim.pool.journal = Journal(
            lambda _, call: call.name == name and nth in (0, next(numbers)) and work())

    def start(self, *arguments, **environ):
        return self.start_with(arguments, environ)

    def start_with(self, arguments, environ=(), **options):
        """The same, with further options of forked.start."""
        return forked.start(arguments, self.environ(**dict(environ)), self.directory,
                            **dict(dict(script=self.script, prelude=self.prelude),
                                   **options))

    def finish(self, child):
        output, _ = child.communicate(timeout=LIMIT)
        return Done(child.returncode, output.decode('utf-8'))

    def on_terminal(self, *words, rows=24, columns=100, meanwhile=lambda child, text: None,
                    **environ):
        """A run on a terminal, which shows ten times a second what goes on: its exit status, and
        what was printed. `meanwhile` is called with the process and the text so far."""
        main, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('4H', rows, columns, 0, 0))
        child = self.start_with(words, environ, stdout=terminal,
                                script=self.changed_script(SHOW_EVERY=0.1))
        os.close(terminal)
        printed = b''
        with contextlib.suppress(OSError):             # EIO: it has ended
            for piece in iter(lambda: os.read(main, 65536), b''):
                printed += piece
                meanwhile(child, printed.decode('utf-8', 'replace'))
        os.close(main)
        return child.wait(LIMIT), printed.decode('utf-8').replace('\r\n', '\n')

    def vmbackup(self, *arguments, **environ):
        return self.finish(self.start(*arguments, **environ))

    def command(self, status, *arguments, **environ):
        """The same; it has to end with that status, and without a crash."""
        return self.assert_ends(status, self.vmbackup(*arguments, **environ))

    def back_up(self, *lines, **keys):
        """A run with such a config; keys in capitals are of its environment."""
        environ = {name: keys.pop(name) for name in list(keys) if name.isupper()}
        return self.vmbackup('password', self.config(*lines, **keys), **environ)

    def ends(self, status, *lines, **keys):
        """The same; it has to end with that status, and without a crash."""
        return self.assert_ends(status, self.back_up(*lines, **keys))

    def assert_ends(self, status, done):
        """A run has ended with that status, and without a crash; return it."""
        self.assertEqual(status, done.status, done.output)
        self.assertNotIn('Traceback', done.output)
        return done

    def run_here(self, *lines, **keys):
        """(exit status, output) of a run in this process, where parts of it can be broken."""
        stream = io.BytesIO()
        environ = {name: keys.pop(name) for name in list(keys) if name.isupper()}
        with unittest.mock.patch.dict(os.environ, self.environ(**environ)):
            status = VmBackup.perform(['password', self.config(*lines, **keys)], 'VmBackup.py',
                                      VmBackup.Console(stream))
        return status, stream.getvalue().decode('utf-8')

    def xe(self, *words):
        done = subprocess.run([self.sim.xe] + list(words), timeout=LIMIT, env=self.environ(),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual((0, b''), (done.returncode, done.stderr), words)
        return done.stdout.decode('utf-8')

    def uuid_of(self, name):
        return self.xe('vm-list', 'name-label=' + name, 'params=uuid', '--minimal').strip()

    def disk_of(self, name, device):
        return self.xe('vbd-list', 'vm-name-label=' + name, 'userdevice=' + device,
                       'params=vdi-uuid', '--minimal').strip()

    def xe_calls(self):
        return [(call.name, dict(word.partition('=')[::2] for word in call.args))
                for call in self.sim.calls('xe')]

    def verbs(self):
        return [verb for verb, _ in self.xe_calls()]

    def wait_for(self, condition, what='it'):
        end = time.monotonic() + LIMIT
        while not condition():
            self.assertLess(time.monotonic(), end, what + ' never happened')
            time.sleep(0.005)

    def wait_for_call(self, name, nth=1):
        """Wait until the pool has got so many calls of that name, by either door."""
        self.wait_for(lambda: [call.name for call in self.sim.calls()].count(name) >= nth)

    def start_until(self, name, nth, *words):
        child = self.start(*words)
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.kill)
        self.wait_for_call(name, nth)
        return child

    def signalled(self, child, signum=signal.SIGTERM):
        child.send_signal(signum)
        return self.assert_ends(128 + signum, self.finish(child))

    def entries(self):
        """The names in the backup directory but for locks and records of runs, sorted."""
        return sorted(name for name in os.listdir(self.backups)
                      if name != '.locks' and not name.startswith('.run-'))

    def tree(self):
        """The files and directories below the backup directory, dates blanked, sorted; locks and
        records of runs left out."""
        found = []
        for directory, names, files in os.walk(os.fsencode(self.backups)):
            names[:] = [name for name in names if name != b'.locks']
            for name in names + [name for name in files if not name.startswith(b'.run-')]:
                path = os.path.join(directory, name)[len(os.fsencode(self.backups)) + 1:]
                found.append(DATED.sub('DATED', path.decode('utf-8')))
        return sorted(found)

    def dated(self, vm):
        directory = os.path.join(self.backups, vm)
        return [os.path.join(directory, name) for name in sorted(os.listdir(directory))
                if not name.startswith('.vm-')]        # a claim of it

    def newest(self, vm, *parts):
        return os.path.join(self.dated(vm)[-1], *parts)

    def manifest(self, vm):
        return json.loads(self.read(self.newest(vm, 'backup.json')))

    def digest(self, vm, device='0'):
        pool = self.sim.pool
        return pool.content[pool.ref_of('VDI', self.disk_of(vm, device))].sha256()

    def status(self):
        """The lines of the status log without times and the host's name."""
        fields = [line.split(',', 3) for line in self.read(self.status_log).splitlines()]
        return ['%s,%s' % (words[1], words[3]) for words in fields]

    def assert_told(self, *lines):
        for line in lines:
            self.assertIn(line, self.status())

    def read_bytes(self, *parts):
        with open(self.at(*parts), 'rb') as stream:
            return stream.read()

    def read(self, *parts):
        return self.read_bytes(*parts).decode('utf-8')

    def record(self, failed, disk, known=True, **fields):
        """Leave the record of a snapshot in a directory; this host has noted it unless known=False
        (another host's, one of 5.0.0, or a forged one)."""
        pool, = self.sim.pool.tables['pool'].values()
        ref = self.sim.pool.ref_of('VDI', disk)
        intent = VmBackup.Intent(
            pool['uuid'], 'VDI', disk, ref, 'SNAP_x', VmBackup.utc(-60), VmBackup.utc(900),
            VmBackup.utc(900), 'host', '1 1', (), (ref,),
            names=(self.sim.pool.tables['VDI'][ref]['name_label'],))._replace(**fields)
        path = self.put_file(os.path.join(failed, 'snapshot.json'), json.dumps(intent._asdict()))
        with unittest.mock.patch.dict(os.environ, self.environ()):
            if known:
                VmBackup.note(path, intent)
            else:
                with contextlib.suppress(OSError):
                    os.remove(VmBackup.note_of(path))

    def old_backup(self, vm, name, *files):
        """Make a dated directory as an earlier run would have; return its path."""
        path = os.path.join(self.backups, vm, name)
        os.makedirs(path)
        for file in files:
            self.put_file(os.path.join(path, file))
        return path


def parsed(*words):
    """What a command line says; raises the first thing that is wrong with it."""
    line = VmBackup.parse_words(words)
    for error in line.wrong:
        raise error
    return line


def store_at(backup_dir, pattern=VmBackup.DEFAULT_PATTERN):
    """The Store of a config that names this directory."""
    return VmBackup.Store(types.SimpleNamespace(path='', settings=types.SimpleNamespace(
        backup_dir=backup_dir, backup_dir_pattern=pattern, require_mount='no')))


def policy(**counts):
    """A Policy whose other rules keep nothing."""
    return dict(dict.fromkeys(['last', *VmBackup.PERIODS], 0), **counts)


def shared_without_pool(backup_dir):
    """What the backups of one run have in common, as far as they need no pool."""
    config = VmBackup.parse_config(['backup_dir=' + backup_dir])
    shared = VmBackup.Shared(config)
    shared.pool = types.SimpleNamespace(uuid=lambda: '', names={})
    return shared
