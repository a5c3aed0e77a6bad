"""Programs that nobody here wrote, against the simulated pool: the SDK's module, qemu-img."""

import json
import os
import shutil
import subprocess
import unittest
import uuid
import xmlrpc.client

from tests.rules.test_xenapi import SDK
from tests.simpool import archive
from tests.simpool.archive import Image
from tests.simpool.tests.support import MIB, Case
from tests.simpool.tests.test_archive import file_of
from tests.simpool.tests.test_model import TWO_DISKS


@unittest.skipIf(SDK is None, "the SDK's XenAPI package is not installed")
class DrivenByTheSdk(Case):
    """The SDK's own XenAPI package, as it comes from PyPI, against the pool."""

    description = TWO_DISKS

    def setUp(self):
        super().setUp()
        self.session = self.opened(self.sim.url)

    def opened(self, *args, **options):
        session = SDK.Session(*args, **options)
        self.addCleanup(session('close'))
        return session

    def test_a_session_from_login_to_logout(self):
        session, api = self.session, self.session.xenapi
        api.login_with_password('root', 'password', '1.0', 'tests')
        self.assertEqual('2.21', session.API_version)
        vm, = api.VM.get_by_name_label('box')
        snapshot = api.VM.snapshot(vm, 'api snap')
        record = api.VM.get_record(snapshot)
        self.assertEqual((True, True, vm, 'Halted'), (
            record['is_a_template'], record['is_a_snapshot'], record['snapshot_of'],
            record['power_state']))
        self.assertIsInstance(record['snapshot_time'], xmlrpc.client.DateTime)
        self.assertEqual('', api.VM.set_is_a_template(snapshot, False))
        self.assertEqual('', api.VM.destroy(snapshot))
        before = session.handle
        self.pool.logout(before)
        self.assertTrue(api.VM.get_all())           # it logs in again
        self.assertNotEqual(before, session.handle)
        api.session.logout()
        self.assertEqual({}, self.pool.tables['session'])

    def test_failures(self):
        api = self.session.xenapi
        with self.assertRaises(SDK.Failure) as caught:
            api.login_with_password('root', 'wrong')
        self.assertEqual(['SESSION_AUTHENTICATION_FAILED', 'root', 'Authentication failure'],
                         caught.exception.details)
        api.login_with_password('root', 'password')
        for call, details in (
                (lambda: api.VM.get_record('OpaqueRef:nonsense'),
                 ['HANDLE_INVALID', 'VM', 'OpaqueRef:nonsense']),
                (lambda: api.nosuch.call(), ['MESSAGE_METHOD_UNKNOWN', 'nosuch.call']),
                (lambda: api.VM.snapshot('vm'),
                 ['MESSAGE_PARAMETER_COUNT_MISMATCH', 'VM.snapshot', '2', '1'])):
            with self.assertRaises(SDK.Failure) as caught:
                call()
            self.assertEqual(details, caught.exception.details)

    def test_over_tls_and_over_the_unix_socket(self):
        session = self.opened(self.sim.https_url, ignore_ssl=True)
        session.xenapi.login_with_password('root', 'password')
        self.assertTrue(session.xenapi.pool.get_all())
        directory = '/tmp/simpool-' + uuid.uuid4().hex      # the transport takes `_` for `/`
        os.mkdir(directory, 0o700)
        link = os.path.join(directory, 'sock')
        os.symlink(self.sim.unix_url[len('unix:'):], link)
        try:
            local = self.opened('http://%s/' % link.replace('/', '_'),
                                transport=SDK.UDSTransport())
            local.xenapi.login_with_password('root', '')
            self.assertTrue(local.xenapi.VM.get_all_records())
        finally:
            os.unlink(link)
            os.rmdir(directory)


@unittest.skipUnless(shutil.which('qemu-img'), 'qemu-img is not installed')
class Images(unittest.TestCase):
    """VHD images, read and written by qemu-img."""

    def qemu(self, *words):
        """What qemu-img prints; it has to succeed."""
        return subprocess.check_output(('qemu-img',) + words, stderr=subprocess.STDOUT)

    def test_it_reads_ours(self):
        for image in (Image.sample(2 * MIB, 'root', 1), Image(3 * MIB), Image.sample(
                5 * MIB + 512, 'odd', 0.5), Image(40 << 30)):
            with file_of(archive.vhd_stream(image)) as path:
                # The size is the footer's, not that of the geometry.
                options = 'driver=vpc,force_size_calc=current_size,file.filename=' + path
                info = json.loads(self.qemu('info', '--output=json', '--image-opts',
                                            options).decode())
                self.assertEqual(('vpc', image.virtual_size), (
                    info['format'], info['virtual-size']))
                if image.virtual_size < 16 * MIB:
                    self.qemu('convert', '--image-opts', options, '-O', 'raw', path + '.raw')
                    with open(path + '.raw', 'rb') as raw:
                        self.assertEqual(archive.read_raw(raw, image.virtual_size), image)
                    os.unlink(path + '.raw')

    def test_we_read_its(self):
        image = Image.sample(10 * MIB, 'qemu', 0.4)
        with file_of(archive.raw_stream(image)) as path:
            self.qemu('convert', '-f', 'raw', '-O', 'vpc', '-o', 'force_size=on', path,
                      path + '.vhd')
            with open(path + '.vhd', 'rb') as file:
                self.assertEqual(archive.read_vhd(file).sha256(), image.sha256())
            os.unlink(path + '.vhd')
