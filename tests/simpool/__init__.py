"""A simulated XenServer pool: one state, an XML-RPC door and a program `xe`.

    with SimPool(pools.DEMO) as sim:
        subprocess.call(['./VmBackup.py', 'local', 'my.cfg'], env=sim.environ())

Or around any command: python3 -m tests.simpool [--pool FILE] COMMAND...
"""

import os
import shutil
import socket
import tempfile
import threading
import uuid

from .. import DATA
from . import pools
from .faults import Call, Fault, Faults
from .model import Down, Pool, XapiError
from .xapi import XapiDoor
from .xe import XeDoor

__all__ = ['Call', 'Down', 'Fault', 'Faults', 'Pool', 'SimPool', 'XapiError', 'pools']

CERTIFICATE = os.path.join(DATA, 'selfsigned.pem')
SOCKET_PATH_LIMIT = 90          # bytes; the system allows 108 with the socket's own name


class SimPool:
    """A running pool, for `with`; leaving it stops everything and removes its directory.

    description     a dict (see pools.py), the path of such a JSON file, a Pool, or None
    role            'slave': the TCP port belongs to a member, which answers HOST_IS_SLAVE; its unix
                    socket and its xe reach the master all the same
    master_address  what it answers (default: the address at which https_url listens)
    """

    def __init__(self, description=None, directory=None, role='master', master_address=None):
        self.pool = description if isinstance(description, Pool) else pools.load(description)
        self.role = role
        self._own_directory = directory is None
        self.directory = directory or _short_directory()
        self._master_address = master_address
        self._doors = []
        self._ports = {}
        self._held = {}
        self._guard = threading.Lock()      # of the doors
        self._naming = threading.Lock()     # of the threads that shut them
        if self.pool.is_down:
            self.pool.come_up()
        self.pool.when_down.append(self._shut_soon)
        self._shutting = []
        try:
            self._open()
        except BaseException:
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()

    def _open(self):
        """Start the doors, on the ports that they had before."""
        https = self._door('https', self._ports.get('https', 0), certificate=CERTIFICATE)
        master = None
        if self.role == 'slave':
            master = self._master_address or '127.0.0.1:%d' % https.port
        self._door('http', self._ports.get('http', 0), master_address=master)
        self._door('unix', os.path.join(self.directory, 'xapi.sock'))
        xe = XeDoor(self.pool, self.directory, master)
        xe.start()
        self._doors.append(xe)
        self.xe = xe.xe_path

    def _door(self, name, address, **options):
        if name in self._held:
            self._held.pop(name).close()
        door = XapiDoor(self.pool, address, **options)
        self._doors.append(door)
        if name != 'unix':
            self._ports[name] = door.port
        return door

    @property
    def url(self):
        """http://127.0.0.1:PORT"""
        return 'http://127.0.0.1:%d' % self._ports['http']

    @property
    def https_url(self):
        """The master's TLS port, with a self-signed certificate."""
        return 'https://127.0.0.1:%d' % self._ports['https']

    @property
    def unix_url(self):
        """unix:/path: who connects there is root, without a password."""
        return 'unix:' + os.path.join(self.directory, 'xapi.sock')

    def environ(self, **more):
        """An environment for children: this one, with the pool's xe and addresses."""
        path = os.path.dirname(self.xe) + os.pathsep + os.environ.get('PATH', os.defpath)
        return dict(os.environ, VMBACKUP_XE=self.xe, VMBACKUP_XAPI_URL=self.url, PATH=path, **more)

    def calls(self, door=None):
        """The calls so far, in order: of both doors, or of one ('xapi', 'xe')."""
        return [call for call in list(self.pool.journal) if door in (None, call.door)]

    @property
    def is_busy(self):
        """Whether a client is connected to any door."""
        with self._guard:
            return any(door.is_busy for door in self._doors)

    def down(self):
        """Kill the daemon: connections end, sockets refuse. State and directory stay."""
        self.pool.go_down()
        with self._naming:
            threads, self._shutting = self._shutting, []
        for thread in threads:
            thread.join()

    def _shut_soon(self):
        """Shut the doors from a thread of their own: the caller may be one of a door's threads."""
        thread = threading.Thread(target=self._shut, daemon=True)
        with self._naming:
            thread.start()
            self._shutting.append(thread)

    def _shut(self):
        with self._guard:
            doors, self._doors = self._doors, []
            for door in doors:
                door.stop()
            for name in set(self._ports) - set(self._held):
                self._held[name] = _reserved(self._ports[name])

    def restart(self):
        """Start the daemon again (after a fault, or while it runs): state kept, sessions gone."""
        self.down()
        self.pool.come_up()
        with self._guard:
            self._open()

    def stop(self):
        """Take everything down and remove the directory. Doing it twice does no harm."""
        self.down()
        if self._shut_soon in self.pool.when_down:
            self.pool.when_down.remove(self._shut_soon)
        while self._held:
            self._held.popitem()[1].close()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)


def _reserved(port):
    """A socket that refuses connections to a port, and keeps it from others, until it is closed."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(('127.0.0.1', port))
    return holder


def _short_directory():
    """A new directory of ours, its path short enough for a socket's.

    Its own name has no `_`, which the SDK's unix transport takes for a `/`.
    """
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > SOCKET_PATH_LIMIT - 20:
        base = '/tmp'
    path = os.path.join(base, 'simpool-' + uuid.uuid4().hex[:8])
    os.mkdir(path, 0o700)
    return path
