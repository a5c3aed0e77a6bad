"""Faults on demand, latency, and the notes about each call.

A fault is set for an xe verb (`vm-export`) or an API method (`VM.snapshot`), or for `*`. Both
doors ask for the fault that awaits a call when the call arrives, and act it out themselves:

    do            details                     what happens
    refuse        error=[CODE, params...]     the call fails so, instead of doing anything
                  error= after=N              or in the midst of the work
    print         stdout= stderr= exit=       xe: says this and does nothing else
                  value= or body=             API: answers this value, or these raw bytes
    die           after=BYTES                 the connection ends, after so many bytes in either way
    hang          after=BYTES                 no answer until the pool stops or the client goes away
    stall         after=BYTES                 the same; a file's ends with its cancelled task, too
    slow          seconds= rate=              waits first; sends so many bytes per second
                  seconds= after=N            waits in the midst of the work, and heeds nobody
    down                                      the daemon dies instead of doing anything
                  after=N                     it dies in the midst of the work
    down-after                                the daemon dies after the work, before the answer

The midst of the work is N bytes into a file, or else so many steps on. A step is a disk that was
snapshotted, cloned or destroyed, a VM's record that was made or destroyed (its VBDs are made after
that). With 0 the work's operation has just begun; where there are fewer steps or bytes, the daemon
dies when they are done. Of an import `made=N` in the place of `after` is when it has made so many
objects: disks first, then networks, the VM, its VBDs and VIFs.
"""

import threading
from typing import Any, List, NamedTuple, Optional

KINDS = ('refuse', 'print', 'die', 'hang', 'stall', 'slow', 'down', 'down-after')


class Call(NamedTuple):
    """One call as it came in: through which door ('xapi', 'xe'), its name, its arguments.

    The arguments of an API call are without the session; those of xe are the words of the line.
    """
    door: str
    name: str
    args: Any = ()


class Fault(NamedTuple):
    """What a call meets. Each field but `do` is a detail of the table above."""
    do: str
    error: Optional[List[str]] = None
    stdout: str = ''
    stderr: str = ''
    exit: int = 0
    value: Any = ''
    body: Optional[bytes] = None
    after: Optional[int] = None
    made: Optional[int] = None
    seconds: float = 0.0
    rate: Optional[float] = None

    def is_amid(self):
        return self.do in ('refuse', 'slow', 'down') and (
            self.after is not None or self.made is not None)


class _Order:
    """A fault that waits for its calls: passes `skip` of them, then strikes `left` times."""

    def __init__(self, name, fault, nth, times):
        self.name = name
        self.fault = fault
        self.skip = nth - 1
        self.left = times or float('inf')


class Faults:
    """The faults that wait, and the latency (in seconds) of every call. Safe among threads."""

    def __init__(self):
        self.latency = 0.0
        self._orders = []
        self._lock = threading.Lock()

    def add(self, name, do, nth=1, times=1, **details):
        """Order a fault for the nth next call of that name, and for `times` calls (0: for ever).

        Raises ValueError for a kind, a number or a detail that does not exist.
        """
        if do not in KINDS:
            raise ValueError('no such fault: %r (there are: %s)' % (do, ', '.join(KINDS)))
        if nth < 1 or times < 0:
            raise ValueError('nth counts from 1, times from 0 (for ever)')
        if do == 'refuse' and not details.get('error'):
            raise ValueError('refuse needs error=[CODE, parameters...]')
        try:
            fault = Fault(do, **details)
        except TypeError:
            raise ValueError('no such detail of a fault among: ' + ', '.join(sorted(details)))
        with self._lock:
            self._orders.append(_Order(name, fault, nth, times))

    def take(self, name):
        """The fault that this call of `name` meets, or None. Every order counts the call."""
        met = None
        with self._lock:
            for order in self._orders:
                if order.name not in (name, '*') or not order.left:
                    continue
                if order.skip:
                    order.skip -= 1
                elif met is None:
                    order.left -= 1
                    met = order.fault
        return met

    def clear(self):
        with self._lock:
            self._orders = []
        self.latency = 0.0
