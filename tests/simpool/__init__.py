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

    def __init__(self, description=None, role='master', master_address=None):
        self.pool = description if isinstance(description, Pool) else pools.load(description)
        self.role = role
        self.directory = _short_directory()
        self._master_address = master_address
        self._doors = []
        self._holders = {name: _reserved() for name in ('http', 'https')}
        self._ports = {name: each.getsockname()[1] for name, each in self._holders.items()}
        self.url = 'http://127.0.0.1:%d' % self._ports['http']
        self.https_url = 'https://127.0.0.1:%d' % self._ports['https']      # the master's
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
        """Start the doors, always on the same ports."""
        master = None
        if self.role == 'slave':
            master = self._master_address or self.https_url[len('https://'):]
        for address, options in ((self._ports['https'], {'certificate': CERTIFICATE}),
                                 (self._ports['http'], {'master_address': master}),
                                 (os.path.join(self.directory, 'xapi.sock'), {})):
            self._doors.append(XapiDoor(self.pool, address, **options))
        xe = XeDoor(self.pool, self.directory, master)
        xe.start()
        self._doors.append(xe)
        self.xe = xe.xe_path

    @property
    def unix_url(self):
        """unix:/path: who connects there is root, without a password."""
        return 'unix:' + os.path.join(self.directory, 'xapi.sock')

    def environ(self, **more):
        """An environment for children: this one, with the pool's xe and addresses, and a place for
        what VmBackup.py notes of this pool on its host."""
        path = os.path.dirname(self.xe) + os.pathsep + os.environ.get('PATH', os.defpath)
        return dict(dict(os.environ, VMBACKUP_XE=self.xe, VMBACKUP_XAPI_URL=self.url, PATH=path,
                         VMBACKUP_STATE=os.path.join(self.directory, 'state')), **more)

    def calls(self, door=None):
        """The calls so far, in order: of both doors, or of one ('xapi', 'xe')."""
        return [call for call in list(self.pool.journal) if door in (None, call.door)]

    @property
    def is_busy(self):
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
        """Have the doors refuse at once, before the client whose call it was notices, and shut them
        from a thread of their own: the caller may be one of a door's threads."""
        for door in list(self._doors):
            door.refuse()
        thread = threading.Thread(target=self._shut, daemon=True)
        with self._naming:
            thread.start()
            self._shutting.append(thread)

    def _shut(self):
        with self._guard:
            doors, self._doors = self._doors, []
            for door in doors:
                door.stop()

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
        for holder in self._holders.values():
            holder.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def _reserved():
    """A socket that keeps a port from others until it is closed, but not from doors of ours."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(('127.0.0.1', 0))
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
