"""Processes by what /proc tells of them."""

import contextlib
import ctypes
import os
import signal
import struct
import time


def read_proc(pid, name):
    """The bytes of /proc/PID/NAME; empty where the process is gone, or another user's."""
    try:
        with open('/proc/%s/%s' % (pid, name), 'rb') as file:
            return file.read()
    except OSError:
        return b''


def pids():
    return filter(str.isdigit, os.listdir('/proc') if os.path.isdir('/proc/self') else [])


def process_name():
    """The name of this process, which what it forks has too."""
    return read_proc('self', 'comm').decode('utf-8', 'replace').rstrip('\n')


def name_process(name):
    """Give this process another name, of 15 bytes at most."""
    with contextlib.suppress(OSError), open('/proc/self/comm', 'w', encoding='utf-8') as file:
        file.write(name)


def xe_name(name):
    """The name of an xe that is forked by a process of that name."""
    return 'x' + name[1:]


def living(mark, token, session=-1):
    """{pid: command line} of the processes whose environment has that token in the variable
    `mark`, a list with colons, or that belong to a session, or whose name is the token."""
    found = {}
    for pid in pids():
        state, _, _, group = (read_proc(pid, 'stat').rpartition(b')')[2].split() + [b'X'] * 4)[:4]
        marks = [line.partition(b'=')[2] for line in read_proc(pid, 'environ').split(b'\0')
                 if line.startswith(mark.encode() + b'=')]
        ours = (group == b'%d' % session or any(token.encode() in m.split(b':') for m in marks) or
                read_proc(pid, 'comm').decode('utf-8', 'replace').rstrip('\n')
                in (token, xe_name(token)))
        if ours and state not in b'ZX':
            command = read_proc(pid, 'cmdline').replace(b'\0', b' ')
            found[int(pid)] = command.decode('utf-8', 'replace').strip()
    return found


def end_all(mark, token, session=-1):
    """Kill all of them, children that they still make meanwhile included."""
    for _ in range(100):
        found = living(mark, token, session)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            break
        time.sleep(0.02)


def children_of(parent):
    found = []
    for pid in pids():
        fields = read_proc(pid, 'stat').rpartition(b')')[2].split()
        if len(fields) > 1 and int(fields[1]) == parent:
            found.append(int(pid))
    return found


def drop_rights(*numbers):
    """Take capabilities from this process and what it starts (capabilities(7): 1, to write any
    file, CAP_DAC_OVERRIDE; 2, to read any, CAP_DAC_READ_SEARCH): root then heeds modes of files."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head = struct.pack('Ii', 0x20080522, 0)             # _LINUX_CAPABILITY_VERSION_3, this process
    sets = ctypes.create_string_buffer(24)              # effective, permitted, inheritable; twice
    failed = libc.capget(head, sets)
    words = [word & ~sum(1 << number for number in numbers) if place < 3 else word
             for place, word in enumerate(struct.unpack('6I', sets.raw))]
    for number in numbers:
        failed = failed or libc.prctl(24, number, 0, 0, 0)      # PR_CAPBSET_DROP: from children
    if failed or libc.capset(head, struct.pack('6I', *words)):
        raise PermissionError('cannot drop rights: ' + os.strerror(ctypes.get_errno()))


def enter(pid):
    """Go into the mount namespace of a process, and into its user namespace unless we are root."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ('user', 'mnt')[not os.geteuid():]:
        handle = os.open('/proc/%d/ns/%s' % (pid, kind), os.O_RDONLY)
        failed = libc.setns(handle, 0)
        os.close(handle)
        if failed:
            raise OSError(ctypes.get_errno(), 'setns', kind)
