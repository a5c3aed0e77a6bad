"""Watches a run's file operations: `watch` is called in its process before it begins.

at, when    signal ourselves `before` or `after` operation number `at` (from 1) ...
signals     ... with each of these
trace       append each operation to that file as a JSON line: what was new, gone, or forced to the
            disk by it below `root`, words that tell whether anything is different `before` and
            `after` it, and whether other processes were talked to since the last one
attack      from operation `at` on, before each, let an Attacker of these attributes do what it can;
            operations are also those that only look, and the start of a process
counted     write into that file how many there were, at the end of each

Nothing of the program is replaced: the interpreter tells a profiling function of every call of a C
function. It does not tell the arguments, so that a trace finds out what has changed by looking.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import sys
import threading
from _posixsubprocess import fork_exec

from tests.tools.attacker import Attacker

OPERATIONS = {id(function) for function in (
    os.rename, os.replace, os.unlink, os.remove, os.rmdir, os.mkdir, os.link, os.symlink,
    os.chmod, os.fsync, os.fdatasync, os.truncate, os.open, io.open, fcntl.flock, fcntl.lockf)}
LOOKS = {id(function) for function in (
    os.stat, os.lstat, os.access, os.listdir, os.scandir, os.statvfs, os.utime, os.readlink,
    os.fork, fork_exec)} | OPERATIONS
TALKS = ('fork_exec', 'fork', 'sendall', 'send')    # others may have done something since
BY = {'VmBackup.py', 'shutil.py', 'os.py', 'tempfile.py'}      # as callers: ours, or for us
LOOK_BY = BY | {'glob.py', 'genericpath.py', 'posixpath.py', 'subprocess.py', 'forked_xe.py'}


class Watcher:
    """The profiling function: counts operations, strikes at one, writes the trace."""

    def __init__(self, at=0, when='before', signals=(), trace=None, root=None, attack=None,
                 counted=None):
        self.at = at
        self.when = when
        self.signals = signals
        self.trace = trace
        self.root = root
        self.attacker = Attacker(**attack) if attack else None
        self.counted = counted
        self.operations, self.by = (LOOKS, LOOK_BY) if attack or counted else (OPERATIONS, BY)
        self.number = 0
        self.counting = threading.Lock()
        self.here = threading.local()       # open: numbers of this thread's operations
        self.seen = None
        self.talked = False

    def __call__(self, frame, event, function):
        if event not in ('c_call', 'c_return', 'c_exception'):
            return
        if id(function) not in self.operations:
            self.talked = self.talked or getattr(function, '__name__', None) in TALKS
            return
        if os.path.basename(frame.f_code.co_filename) not in self.by:
            return
        if event == 'c_call':
            with self.counting:
                self.number += 1
                number = self.number
                if self.attacker and number >= self.at:
                    self.attacker.at_operation('%d: %s in %s' % (
                        number, function.__name__, frame.f_code.co_name))
                if self.counted:
                    with io.open(self.counted, 'w') as file:
                        file.write(str(number))
            self.here.open = getattr(self.here, 'open', []) + [number]
            if self.trace:
                self.seen = look(self.root)
                self.synced = forced(frame, self.root) if function is os.fsync else []
        else:
            number = self.here.open.pop()
            if self.trace:
                self.note(number, frame, function.__name__, event == 'c_return')
        if self.signals and number == self.at and (event == 'c_call') == (self.when == 'before'):
            self.at = 0
            for signum in self.signals:
                os.kill(os.getpid(), signum)

    def note(self, number, frame, name, success):
        now = look(self.root)
        line = json.dumps({
            'number': number, 'name': name, 'by': frame.f_code.co_name, 'success': success,
            'gone': sorted(path for path in self.seen if path not in now),
            'new': sorted(path for path in now if path not in self.seen),
            'synced': self.synced, 'talked': self.talked,
            'before': digest(self.seen), 'after': digest(now)}) + '\n'
        self.talked = False
        handle = os.open(self.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(handle, line.encode('utf-8'))
        os.close(handle)


def look(root):
    """{path: what tells of a change} of all below root."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(directory, name)
            state = os.lstat(path)
            found[os.path.relpath(path, root)] = (state.st_ino, state.st_size, state.st_mtime_ns)
    return found


def digest(found):
    return hashlib.sha1(repr(sorted(found.items())).encode('utf-8')).hexdigest()


def forced(frame, root):
    """The file or directory below root that a call of os.fsync in this frame is about: its
    descriptor is a variable there, or that of a stream which is one."""
    found = []
    for value in frame.f_locals.values():
        handle = value if type(value) is int else getattr(value, 'fileno', lambda: -1)()
        with contextlib.suppress(OSError):
            path = os.readlink('/proc/self/fd/%d' % handle)
            if path.startswith(root + os.sep):
                found.append(os.path.relpath(path, root))
    return found


def watch(**spec):
    watcher = Watcher(**spec)
    threading.setprofile(watcher)
    sys.setprofile(watcher)
