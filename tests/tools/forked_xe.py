"""The simulated `xe` of a forked run: forked as well, where an interpreter would be started for it.

subprocess does all as ever, but for its last step, fork and exec in C: where the program is the
simulated pool's xe (tests/simpool/client.py), the child does what exec and a new interpreter do
to a process, and runs that program's text.
"""

import contextlib
import gc
import os
import posix
import signal
import subprocess
import sys
import warnings

from tests.tools.processes import name_process, process_name, xe_name

MARK = b'"""The xe of a simulated pool'
HOLDER, NAME = ((subprocess, '_fork_exec') if hasattr(subprocess, '_fork_exec') else
                (subprocess._posixsubprocess, 'fork_exec'))
fork_and_exec = getattr(HOLDER, NAME)
name = ''                       # of this process; its threads may have others
forks = 0                       # how many this process has made


def install():
    """From now on this process forks the xe that it is to start."""
    global name
    warnings.filterwarnings('ignore', '.*multi-threaded.*', DeprecationWarning)     # of os.fork
    name = process_name()
    setattr(HOLDER, NAME, start)


def program_of(candidates):
    """(path, text) of a simulated xe, if the first of these that can be executed is one."""
    for path in candidates:
        with contextlib.suppress(OSError), open(path, 'rb') as file:
            text = file.read(1 << 12)
            if os.access(path, os.X_OK):
                return (path, text) if MARK in text else None
    return None


def start(args, candidates, close_fds, kept, cwd, environ, p2cread, p2cwrite, c2pread, c2pwrite,
          errread, errwrite, errpipe_read, errpipe_write, restore_signals, start_new_session,
          *more):
    """As _posixsubprocess.fork_exec, whose first 16 arguments are these from 3.6 to 3.14."""
    program = program_of(candidates)
    if not program or cwd is not None or any(map(callable, more)):      # of these, preexec_fn
        return fork_and_exec(args, candidates, close_fds, kept, cwd, environ, p2cread, p2cwrite,
                             c2pread, c2pwrite, errread, errwrite, errpipe_read, errpipe_write,
                             restore_signals, start_new_session, *more)
    global forks
    forks += 1
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, list(signal.Signals))
    try:
        pid = os.fork()
        if not pid:
            try:
                sys.setprofile(None)
                sys.settrace(None)
                prepare(environ, [p2cread, c2pwrite, errwrite], set(kept) - {errpipe_write},
                        start_new_session, blocked)
                run(args, *program)
            finally:
                posix._exit(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return pid


def prepare(environ, handles, kept, new_session, blocked):
    """Be a process that has just been started."""
    gc.disable()                # nothing of the parent's may be closed by its number
    name_process(xe_name(name))
    high = [handle if handle < 0 else os.dup(handle) for handle in handles]
    for number, handle in enumerate(high):
        if handle >= 0:
            os.dup2(handle, number)
    for handle in map(int, os.listdir('/proc/self/fd')):
        if handle > 2 and handle not in kept:
            with contextlib.suppress(OSError):          # the one that listed them
                os.close(handle)
    if new_session:
        os.setsid()
    for number in signal.Signals:
        if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN, None):
            signal.signal(number, signal.SIG_DFL)
    if environ is not None:
        posix.environ.clear()
        posix.environ.update(pair.split(b'=', 1) for pair in environ)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def run(args, path, text):
    """Run a program as the interpreter in its first line would."""
    sys.argv[:] = [os.fsdecode(word) for word in [path] + list(args[1:])]
    try:
        exec(compile(text, path, 'exec'), {'__name__': '__main__', '__file__': sys.argv[0]})
    except BaseException as error:
        tail = error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(tail), tail)
        sys.stderr.flush()
        posix._exit(1)
    posix._exit(0)
