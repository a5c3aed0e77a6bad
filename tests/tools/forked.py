"""VmBackup.py as a process of its own, forked from one that has loaded it and never ran it.

Most of a short run's time is the interpreter's start, the compilation and the imports. So a server
is forked when this module is imported, and forks again for each run. What a process has of its own
it has here too: arguments, environment, directory, streams, umask, signals, limits, exit status.

What an interpreter decides as it starts cannot be had so: where a run's environment differs in one
of those variables, or the script is another, it is started for real.
"""

import array
import atexit
import contextlib
import dis
import faulthandler
import functools
import importlib.machinery
import io
import marshal
import os
import random
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
import warnings

import VmBackup
from tests import SCRIPT
from tests.tools import forked_xe

# Variables that the interpreter, the loader or a library looks at before the script does.
DECIDED_AT_START = re.compile(r'(LANG|LANGUAGE|LC_\w+|PYTHON\w*|LD_\w+|OPENSSL_\w+|SSL\w+)\Z')
REQUEST = 1 << 20               # bytes at most
LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith('RLIMIT_')]


class Script(str):
    """The path of a copy of the script, with what is different in it: {constant: value}."""

    constants = {}


def environ_at_start(environ):
    """The part of an environment that cannot be changed by forking."""
    return {name: value for name, value in environ.items() if DECIDED_AT_START.match(name)}


@functools.lru_cache(None)
def names_read_at_import():
    """The globals that the script reads while it is loaded: changing them later is too late."""
    found, codes = set(), [importlib.machinery.SourceFileLoader(
        'VmBackup', SCRIPT).get_code('VmBackup')]
    while codes:
        code = codes.pop()
        found |= {each.argval for each in dis.get_instructions(code)
                  if each.opname.startswith(('LOAD_NAME', 'LOAD_GLOBAL'))}
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType) and
                  (not each.co_flags & 2 or        # CO_NEWLOCALS: functions, run later
                   each.co_name in ('<listcomp>', '<setcomp>', '<dictcomp>', '<genexpr>'))]
    return found


def can_fork(script, environ):
    """Whether a run of that script in that environment can be forked."""
    constants = getattr(script, 'constants', {})
    return (server is not None and (script == SCRIPT or isinstance(script, Script)) and
            environ_at_start(environ) == server.environ and
            not (constants and names_read_at_import().intersection(constants)))


def start(words, environ, cwd, script=SCRIPT, umask=-1, prelude='', **streams):
    """Start the script with these words; return what can be used as a subprocess.Popen.

    prelude: a text that its process runs first. streams: stdin, stdout, stderr, as there; by
    default nothing, and one pipe for both.
    """
    streams = dict(dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT), **streams)
    if can_fork(script, environ):
        return Forked(server, script, words, environ, cwd, umask, prelude, **streams)
    if prelude:
        raise ValueError('a prelude needs an environment like ours')
    return subprocess.Popen(
        [sys.executable, script] + [os.fsencode(word) for word in words], cwd=cwd, env=environ,
        preexec_fn=None if umask < 0 else lambda: os.umask(umask), **streams)


class Forked:
    """A run that was forked: the part of subprocess.Popen that tests use."""

    def __init__(self, server, script, words, environ, cwd, umask, prelude, stdin, stdout,
                 stderr):
        self.args = [script] + list(words)
        self.stdin = self.stdout = self.stderr = self.returncode = None
        self._lock = threading.RLock()
        with contextlib.ExitStack() as theirs:
            self.stdin, reading = self._stream(0, stdin, theirs)
            self.stdout, writing = self._stream(1, stdout, theirs)
            self.stderr, errors = (None, writing) if stderr == subprocess.STDOUT else \
                self._stream(2, stderr, theirs)
            self._answers, answering = socket.socketpair()
            theirs.callback(answering.close)
            server.ask(dict(script=str(script), words=list(words), environ=dict(environ),
                            cwd=os.fspath(cwd), umask=umask,
                            constants=getattr(script, 'constants', {}),
                            prelude=prelude, **inherited()),
                       [reading, writing, errors, answering.fileno()])
        self.pid = int(self._line())

    @staticmethod
    def _stream(number, wanted, theirs):
        """(our end or None, descriptor for the child) of one of its streams."""
        if wanted == subprocess.PIPE:
            ends = os.pipe()
            ours, other = ends[::-1] if number == 0 else ends
            theirs.callback(os.close, other)
            return open(ours, 'wb' if number == 0 else 'rb', -1 if number else 0), other
        if wanted == subprocess.DEVNULL:
            null = os.open(os.devnull, os.O_RDWR)
            theirs.callback(os.close, null)
            return None, null
        if wanted is None:
            return None, number
        return None, wanted if isinstance(wanted, int) else wanted.fileno()

    def _line(self):
        """The server's next line; EOFError where it has died."""
        line = b''
        while not line.endswith(b'\n'):
            part = self._answers.recv(1)
            if not part:
                raise EOFError('the fork server died')
            line += part
        return line.decode('ascii')

    def wait(self, timeout=None):
        """Its exit status, awaited; subprocess.TimeoutExpired."""
        with self._lock:
            if self.returncode is None:
                if not select.select([self._answers], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(self.args, timeout)
                self.returncode = int(self._line())
                self._answers.close()
        return self.returncode

    def poll(self):
        """Its exit status, or None while it runs."""
        if not self._lock.acquire(False):
            return None                     # another thread waits for it
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self._lock.release()

    def communicate(self, timeout=None):
        """(standard output, standard error) to their ends, and wait; TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        found = {stream: [] for stream in (self.stdout, self.stderr) if stream}
        reading = list(found)
        while reading:
            left = None if end is None else max(0, end - time.monotonic())
            ready = select.select(reading, [], [], left)[0]
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout)
            for stream in ready:
                part = stream.read1(1 << 16)
                found[stream].append(part)
                if not part:
                    reading.remove(stream)
                    stream.close()
        self.wait(None if end is None else max(0, end - time.monotonic()))
        return tuple(b''.join(found[stream]) if stream else None
                     for stream in (self.stdout, self.stderr))

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()


def inherited():
    """What a child has from its parent besides: umask, ignored and blocked signals, limits."""
    with open('/proc/self/status', encoding='ascii', errors='replace') as stream:
        status = dict(line.split(':', 1) for line in stream)
    return dict(own_umask=int(status['Umask'], 8), ignored=int(status['SigIgn'], 16),
                blocked=int(status['SigBlk'], 16),
                limits={each: resource.getrlimit(each) for each in LIMITS})


def numbers(mask):
    """The signals in a mask of /proc."""
    return [number for number in range(1, 65) if mask >> (number - 1) & 1]


# The server, and the child that becomes the run

class Server:
    """The process that forks; it ends with the one that has made it."""

    def __init__(self):
        self.environ = environ_at_start(os.environ)
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._control, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REQUEST)
        sys.stdout.flush()
        sys.stderr.flush()
        self.maker = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            self._control.close()
            try:
                serve(theirs)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()

    def ask(self, request, handles):
        """Have a child forked that gets these descriptors."""
        with self._lock:
            self._control.sendmsg([marshal.dumps(request)], [(
                socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', handles).tobytes())])

    def stop(self):
        if os.getpid() == self.maker:
            self._control.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)


def serve(control):
    """Fork for each request, tell of each child's end, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # a terminal's is for those who ask
    for each in vars(VmBackup).values():
        if hasattr(each, 'cache_clear'):        # what tests ask as they are imported
            each.cache_clear()
    waking, woken = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(waking, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    children = {}
    while True:
        ready = select.select([control, waking], [], [])[0]
        if waking in ready:
            os.read(waking, 1 << 12)
            reap(children)
        if control not in ready:
            continue
        data, ancillary, _, _ = control.recvmsg(REQUEST, socket.CMSG_SPACE(4 * 4))
        if not data:
            os._exit(0)
        handles = array.array('i')
        handles.frombytes(ancillary[0][2])
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            become(marshal.loads(data), handles[:3])
        children[pid] = socket.socket(fileno=handles[3])
        children[pid].sendall(b'%d\n' % pid)
        for handle in handles[:3]:
            os.close(handle)


def reap(children):
    """Tell of all children that have ended."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        with contextlib.suppress(BrokenPipeError), children.pop(pid) as answers:
            answers.sendall(b'%d\n' % code)


def become(request, handles):
    """Be the run that is asked for; never return."""
    status = 1
    try:
        prepare(request, handles)
        forked_xe.install()
        if request['prelude']:
            exec(request['prelude'], {'__name__': 'prelude'})
        status = VmBackup.main(sys.argv)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, (int, type(None))):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
    except BaseException:
        status = 120            # as an interpreter that could not flush
    os._exit(status)


def prepare(request, handles):
    """Have all that a process is started with."""
    high = [os.dup(handle) for handle in handles] if min(handles) < 3 else handles
    for number, handle in enumerate(high):
        os.dup2(handle, number)
    for name in os.listdir('/proc/self/fd'):
        if int(name) > 2:
            with contextlib.suppress(OSError):      # the one that listed them
                os.close(int(name))
    for number in signal.Signals:
        if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN, None):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in numbers(request['ignored']):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, numbers(request['blocked']))
    faulthandler.disable()
    for name, limit in request['limits'].items():
        if resource.getrlimit(int(name)) != tuple(limit):
            resource.setrlimit(int(name), tuple(limit))
    os.umask(request['own_umask'] if request['umask'] < 0 else request['umask'])
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['environ'])
    time.tzset()
    random.seed()
    if sys.version_info >= (3, 7):      # PEP 565: those of __main__ are shown
        warnings.filterwarnings('default', '', DeprecationWarning, 'VmBackup$')
    sys.argv[:] = [request['script']] + [os.fsdecode(os.fsencode(word))
                                         for word in request['words']]
    sys.path[0] = os.path.dirname(request['script'])
    sys.stdin, sys.stdout, sys.stderr = (
        text_stream(number, old) for number, old in enumerate(
            (sys.__stdin__, sys.__stdout__, sys.__stderr__)))
    VmBackup.__file__ = request['script']
    for name, value in request['constants'].items():
        if not hasattr(VmBackup, name):
            raise AttributeError('no such constant of the script: ' + name)
        setattr(VmBackup, name, value)


def text_stream(number, old):
    """One of sys.stdin, stdout and stderr, as the interpreter makes them (pylifecycle.c)."""
    raw = io.FileIO(number, 'r' if number == 0 else 'w', closefd=False)
    unbuffered = number > 0 and isinstance(old.buffer, io.RawIOBase)       # python3 -u
    buffer = raw if unbuffered else (io.BufferedWriter if number else io.BufferedReader)(raw)
    return io.TextIOWrapper(buffer, old.encoding, old.errors, '\n' if number else None,
                            raw.isatty() or old.line_buffering and (number != 1 or unbuffered),
                            write_through=unbuffered)


server = None
deferred = False                # whether somebody else calls `begin`


def begin():
    """Have a server from now on, forked from this process: before it has threads."""
    global server
    if os.path.isdir('/proc/self/fd'):
        server = Server()
        atexit.register(end)


def end():
    """End the server."""
    global server
    if server:
        server.stop()
        server = None
