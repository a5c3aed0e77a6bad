"""What the tests of the simulated pool share: a pool, both doors to it, and waiting."""

import os
import shutil
import subprocess
import tempfile
import threading
import time
import unittest
import xmlrpc.client
from contextlib import contextmanager
from unittest import mock

from tests.simpool import SimPool, XapiError, client

PATIENCE = 30       # seconds after which a test that waits gives up
MIB = 1 << 20
NOBODY = '00000000-0000-4000-8000-000000000000'


def run_client(sim, words, home, **environ):
    """(exit status, stdout, stderr), as bytes, of the program `xe`, run in this process: all of it
    but what it does with signals and with closed streams."""
    out, err, sockets = [], [], []
    connect = client.connect

    def noted_connect():
        sockets.append(connect())
        return sockets[-1]
    environ = {os.fsencode(name): os.fsencode(value)
               for name, value in dict(environ, HOME=home).items()}
    address = os.fsencode(os.path.join(sim.directory, 'xe.sock'))
    with mock.patch.multiple(client, SOCKET=address, show=out.append, complain=err.append,
                             connect=noted_connect):
        try:
            client.run([os.fsencode(word) for word in words], environ)
        except client.Quit as end:
            return end.status, b''.join(out), b''.join(err) + end.text
        finally:
            for each in sockets:
                each.close()


def decoded(data):
    return data.decode('utf-8', 'backslashreplace')


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError('waited in vain')
        time.sleep(0.005)


class Case(unittest.TestCase):
    """A test with a pool of its own, which it asks through both doors."""

    description = {'vms': [{'name': 'box', 'disks': ['2 MiB']}]}

    def setUp(self):
        self.work = tempfile.mkdtemp(prefix='simpool-test-')
        self.addCleanup(shutil.rmtree, self.work)
        self.sim = SimPool(self.description)
        self.addCleanup(self.sim.stop)
        self.pool = self.sim.pool
        self._session = None

    # XML-RPC

    def x(self, method, *params):
        """The answer's struct of a call in this test's session, which is opened when needed."""
        if self._session is None:
            self._session = self.raw('session.login_with_password', 'root', 'password')['Value']
        return self.raw(method, self._session, *params)

    def raw(self, method, *params):
        with xmlrpc.client.ServerProxy(self.sim.url, allow_none=True) as server:
            return getattr(server, method)(*params)

    def value(self, method, *params):
        answer = self.x(method, *params)
        self.assertEqual('Success', answer['Status'], answer)
        return answer['Value']

    def assert_refused(self, details, method, *params):
        answer = self.x(method, *params)
        self.assertEqual(['Failure', details], [answer['Status'], answer.get('ErrorDescription')])

    # xe

    def xe(self, *words, **environ):
        """(exit status, stdout, stderr) of the client, as texts."""
        status, out, err = run_client(self.sim, words, self.work, **environ)
        return status, decoded(out), decoded(err)

    def ask(self, *words):
        """stdout of a command that must succeed, without its last newline."""
        status, out, err = self.xe(*words)
        self.assertEqual((0, ''), (status, err), words)
        return out[:-1]

    def refused(self, *words, **environ):
        """stderr of a command that must fail with exit 1 and nothing on stdout."""
        status, out, err = self.xe(*words, **environ)
        self.assertEqual((1, ''), (status, out), (words, err))
        return err

    def start(self, *words, **options):
        process = subprocess.Popen([self.sim.xe] + list(words), **dict(dict(
            cwd=self.work, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={'HOME': self.work, 'LANG': 'C'}), **options))
        self.addCleanup(end, process)
        return process

    def path(self, name):
        return os.path.join(self.work, name)

    def read(self, name):
        with open(self.path(name), 'rb') as file:
            return file.read()

    # The state

    @contextmanager
    def refusal(self, *details):
        with self.assertRaises(XapiError) as caught:
            yield
        self.assertEqual(list(details), caught.exception.details[:len(details)])

    def vm(self, name='box'):
        return self.pool.call('VM.get_by_name_label', name)[0]

    def get(self, cls, ref, field='uuid'):
        return self.pool.record(cls, ref)[field]

    def vbds(self, vm, kind='Disk'):
        found = [(ref, self.pool.record('VBD', ref)) for ref in self.get('VM', vm, 'VBDs')]
        return [(ref, vbd) for ref, vbd in found if vbd['type'] == kind]

    def disks(self, vm):
        return {vbd['userdevice']: vbd['VDI'] for _, vbd in self.vbds(vm)}

    def sums(self, vm):
        return {device: self.pool.content[vdi].sha256() for device, vdi in self.disks(vm).items()}

    def count(self, *classes):
        return [len(self.pool.tables[cls]) for cls in classes]

    def dom0(self):
        return self.get('host', self.pool.master, 'control_domain')

    def exported(self, vm, **options):
        with self.pool.export_vm(vm, **options) as stream:
            return b''.join(stream)

    def background(self, function, *args):
        """Run it in a thread; the list that its value, or its exception, will be in."""
        outcome = []

        def work():
            try:
                outcome.append(function(*args))
            except (XapiError, OSError, xmlrpc.client.Error) as error:
                outcome.append(error)
        thread = threading.Thread(target=work)
        thread.start()
        self.addCleanup(thread.join)
        return outcome


def end(process):
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()
