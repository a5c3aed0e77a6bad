"""A simulated pool without sockets and without time: its threads take turns, step by step.

    stage = Stage(pool)
    with stage.clock():
        client = stage.xe(['vm-export', 'uuid=...', 'filename=x'], files)
        stage.step()                    # one of those who can move moves
        stage.finish(client)            # (exit status, stdout, stderr)

One thread runs at a time. It gives way after each change that others can see, each piece of data,
and where it waits; nobody waits in real time: the clock moves on when all others wait.
"""
import collections
import contextlib
import itertools
import os
import posix
import stat
import threading
import time
import types
from unittest import mock

from . import client, model, transfer, xe

LARGEST = 80 << 20     # what a file takes; all that follows is lost
BUFFER = 1 << 20        # bytes that a connection takes before its sender waits
AHEAD = 12 << 20        # and from a client to the server (recorded)


class Killed(BaseException):
    """The end of an actor, wherever it is."""


class Actor:
    """A thread that runs only when it is its turn."""

    def __init__(self, stage, work, life=None, client=None):
        self.life = life            # of the daemon that it is a thread of
        self.client = client        # for whom it works
        self.stage, self.until, self.ended, self.killed, self.depth = stage, None, False, False, 0
        self.deadline = None
        self.turn = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work):
        self.stage.of[threading.get_ident()] = self
        self.turn.acquire()
        try:
            if not self.killed:
                work()
        except Killed:
            return
        finally:
            self.ended = True
            self.stage.of.pop(threading.get_ident(), None)
            self.stage.back.release()

    def can_move(self):
        late = self.deadline is not None and self.deadline <= self.stage.now
        return not self.ended and (self.killed or late or self.until is None or bool(self.until()))


class Lock:
    """Stands in for a pool's condition: with one thread at a time nobody is ever locked out."""

    def __init__(self, stage):
        self.stage, self.notices = stage, 0

    def __enter__(self):
        self.stage.actor.depth += 1

    def __exit__(self, *exc):
        actor = self.stage.actor
        actor.depth -= 1
        if not actor.depth and self.stage.has_changed:
            self.stage.give_way()

    def notify_all(self):
        self.notices += 1
        self.stage.note()

    def wait(self, timeout=None):
        actor, before = self.stage.actor, self.notices
        depth, actor.depth = actor.depth, 0
        self.stage.give_way(lambda: self.notices > before, timeout)
        actor.depth = depth


class End:
    """One end of a connection, with what of a socket the xe door and its client use."""

    def __init__(self, stage):
        self.stage, self.peer, self.closed, self.room = stage, None, False, BUFFER
        self.pieces = collections.deque()

    @classmethod
    def pair(cls, stage):
        one, other = cls(stage), cls(stage)
        one.peer, other.peer = other, one
        return one, other

    def sendall(self, data):
        self._check()
        self.peer.pieces.append(bytes(data))
        if len(data) >= 4096:
            self.stage.give_way(lambda: self.peer.closed or self.closed
                                or sum(map(len, self.peer.pieces)) < self.room)
            self._check()

    def _check(self):
        if self.closed or self.peer.closed:
            raise BrokenPipeError(32, 'Broken pipe')

    def recv(self, size, flags=0):
        if not self.pieces:
            self.stage.give_way(lambda: self.pieces or self.closed or self.peer.closed)
        if not self.pieces:
            return b''
        piece = self.pieces.popleft()
        if len(piece) > size:
            self.pieces.appendleft(piece[size:])
        return piece[:size]

    def recv_into(self, buffer):
        data = self.recv(len(buffer))
        buffer[:len(data)] = data
        return len(data)

    def makefile(self, mode):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None

    def read(self, size):
        parts = []
        while size:
            part = self.recv(size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b''.join(parts)

    def readline(self):
        line = b''
        while not line.endswith(b'\n'):
            byte = self.recv(1)
            if not byte:
                break
            line += byte
        return line

    def shutdown(self, how):
        self.closed = True

    def close(self):
        self.closed = True


class Event:
    """An event for which actors wait."""

    def __init__(self, stage):
        self.stage, self.happened = stage, False

    def set(self):
        self.happened = True

    def wait(self):
        if not self.happened:
            self.stage.give_way(lambda: self.happened)


class Clock:
    """The time of a stage, where the modules of the pool look for `time`."""

    def __init__(self, stage):
        self.stage = stage

    def __getattr__(self, name):
        return getattr(time, name)

    def monotonic(self):
        return self.stage.now

    def time(self):
        return self.stage.epoch + self.stage.now

    def gmtime(self, seconds=None):
        return time.gmtime(self.time() if seconds is None else seconds)


class Files:
    """The files that the simulated programs see: {name: bytearray}, as `posix` for the client."""

    def __init__(self, content, stdin=None, piped=False):
        self.content, self.stdin, self.piped, self.open_ones = content, stdin, piped, {}
        self.output = {1: bytearray(), 2: bytearray()}

    def __getattr__(self, name):
        return getattr(posix, name)

    def open(self, path, flags, mode=0):
        name = os.fsdecode(path)
        if name == '/dev/stdin':
            name = self.stdin
        if flags & os.O_CREAT:
            if os.path.dirname(name) not in ('', 'DIR/files'):
                raise FileNotFoundError(2, 'No such file or directory')
            self.content[name] = bytearray()
        elif name not in self.content:
            raise FileNotFoundError(2, 'No such file or directory')
        fd = 3 + len(self.open_ones)
        self.open_ones[fd] = [name, 0]
        return fd

    def read(self, fd, size):
        name, at = self.open_ones[fd]
        self.open_ones[fd][1] += size
        return bytes(self.content[name][at:at + size])

    def fstat(self, fd):
        """A pipe's, where the data come through one."""
        kind = stat.S_IFIFO if self.piped and self.open_ones[fd][0] == self.stdin else stat.S_IFREG
        return types.SimpleNamespace(
            st_mode=kind, st_size=len(self.content[self.open_ones[fd][0]]))

    def write(self, fd, data):
        target = self.output[fd] if fd in self.output else self.content[self.open_ones[fd][0]]
        if len(target) < LARGEST:
            target += data
        return len(data)

    def close(self, fd):
        return None


class Client:
    """One run of the program xe: `kill` ends it as a signal does."""

    def __init__(self, stage, words, files, stdin=None, piped=False):
        self.stage, self.status, self.ends = stage, None, []
        self.files = Files(files, stdin, piped)
        self.program = types.ModuleType('xe')
        exec(CLIENT, self.program.__dict__)
        self.program.posix, self.program.connect = self.files, self._connect
        self.number = next(stage.numbers)
        self.asked, self.words = words, [os.fsencode(word) for word in words]
        self.actors = [Actor(stage, self._run, client=self)]

    def _connect(self):
        if self.stage.pool.is_down:
            raise ConnectionRefusedError(111, 'Connection refused')
        ours, theirs = End.pair(self.stage)
        ours.room = AHEAD
        self.ends.append(ours)
        self.actors.append(self.stage.serve(theirs, self))
        return ours

    def _run(self):
        try:
            self.program.run(self.words, {})
        except self.program.Quit as end:
            self.files.output[2] += end.text
            self.status = end.status
        self._hang_up()

    def _hang_up(self):
        for end in self.ends:
            end.close()

    def kill(self):
        """What it had to send is on its way by now. The server hears of its end first where it
        waits for its word."""
        while self.stage.step(self.actors[:1]):
            pass
        self.actors[0].killed = True
        for end in self.ends[:1]:
            end.close()
        for _ in range(10):
            self.stage.step(self.actors[:2])
        self._hang_up()

    def said(self):
        out, err = (bytes(self.files.output[fd]).decode('utf-8', 'surrogateescape')
                    for fd in (1, 2))
        return self.status, out, err


CLIENT = compile(open(client.__file__, encoding='utf-8').read(), client.__file__, 'exec')


class Stage:
    def __init__(self, pool, on_change=lambda: None):
        self.pool, self.on_change = pool, on_change
        self.now, self.epoch = 1000.0, int(time.time()) - 1000
        self.back = threading.Semaphore(0)
        self.of, self.actors, self.numbers = {}, [], itertools.count()
        self.main = types.SimpleNamespace(depth=0, client=None)
        self.has_changed = False
        pool.lock = Lock(self)
        pool.step, pool.sleep = self._stepping(pool.step), self._sleeping(pool.sleep)
        self.door = xe.XeDoor(pool, '')
        self.door._listener = End(self)
        pool.when_down.append(self.door._close)

    @property
    def actor(self):
        return self.of.get(threading.get_ident(), self.main)

    @contextlib.contextmanager
    def clock(self):
        with contextlib.ExitStack() as stack:
            for module in (model, transfer, xe):
                stack.enter_context(mock.patch.object(module, 'time', Clock(self)))
            stack.enter_context(mock.patch.object(xe, 'threading', types.SimpleNamespace(
                Event=lambda: Event(self), current_thread=threading.current_thread)))
            try:
                yield self
            finally:
                for actor in self.actors:
                    actor.killed = True
                while self.step():
                    pass

    def _stepping(self, step):
        def stepping(done=1):
            step(done)
            actor = self.actor
            depth, actor.depth = actor.depth, 0
            self.give_way()
            actor.depth = depth
        return stepping

    def _sleeping(self, sleep):
        def sleeping(seconds, gone=lambda: False):
            if seconds is not None:
                return sleep(seconds, gone)
            life = self.pool.life
            self.give_way(lambda: gone() or life != self.pool.life)
            self.pool.check_up(life)
        return sleeping

    def note(self):
        self.has_changed = True
        self.on_change()

    def give_way(self, until=None, timeout=None):
        """The running actor lets others run, and goes on when `until()` holds."""
        self.has_changed = False
        actor = self.actor
        if actor is self.main:
            return
        actor.until = until
        actor.deadline = None if timeout is None else self.now + timeout
        self.back.release()
        actor.turn.acquire()
        if actor.killed:
            raise Killed
        if actor.life not in (None, self.pool.life):
            raise model.Down('its daemon is dead')

    def serve(self, connection, client):
        actor = Actor(self, lambda: self.door._serve(connection), self.pool.life, client)
        self.door._connections[connection] = False
        self.actors.append(actor)
        return actor

    def xe(self, words, files, stdin=None, piped=False):
        made = Client(self, words, files, stdin, piped)
        self.actors.append(made.actors[0])
        return made

    def step(self, among=None):
        """Let an actor move, one of these if given; whether one could. When all wait for each
        other or for time, time goes on to the next of their deadlines."""
        self.actors = [actor for actor in self.actors if not actor.ended]
        ready = [actor for actor in self.actors if actor.can_move()
                 and (among is None or actor in among)]
        if not ready and among is None:
            ready = sorted((actor for actor in self.actors if actor.deadline is not None),
                           key=lambda actor: actor.deadline)
            self.now = max([self.now] + [actor.deadline for actor in ready[:1]])
        if not ready:
            return False
        actor = ready[0]
        self.actors.remove(actor)
        self.actors.append(actor)           # who moved is the last to move again
        actor.deadline = actor.until = None
        actor.turn.release()
        self.back.acquire()
        return True

    def come_to(self, now):
        """Time goes on; those who waited for it go on first."""
        self.now = max(self.now, now)
        late = [actor for actor in self.actors
                if actor.deadline is not None and actor.deadline <= self.now]
        while late and self.step(late):
            late = [actor for actor in late if actor.deadline and actor.deadline <= self.now]

    def clients(self):
        return {actor.client for actor in self.actors}

    def finish(self, made):
        """Run a client to its end, others only where it waits for them; what it said."""
        while not made.actors[0].ended:
            if not self.step(made.actors) and not self.step():
                return 'hangs', '', ''
        while self.step(made.actors):
            pass
        return made.said()
