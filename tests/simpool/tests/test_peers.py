"""Programs that nobody here wrote, against the simulated pool: the SDK's module, the client of Xen
Orchestra (xen-api from npm), qemu-img."""

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

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'xen_api_client.mjs')
XEN_API = os.path.join(os.environ.get('XEN_API_NODE_MODULES', ''), 'xen-api')
LOGIN = ['session.login_with_password', 'pool.get_all_records', 'system.listMethods']


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


@unittest.skipUnless(shutil.which('node') and os.path.isdir(XEN_API),
                     'xen-api, the package from npm, is not in XEN_API_NODE_MODULES, or no node')
class DrivenByXenOrchestra(Case):
    """The package xen-api from npm, which Xen Orchestra is built on, against the pool.

    It speaks JSON-RPC, and does not try XML-RPC where /jsonrpc is refused (404, 500); so both are
    tried here. Its XML-RPC posts to /xmlrpc, for which xapi has no handler but that of `/`.
    """

    description = dict(TWO_DISKS, vms=TWO_DISKS['vms'] + [{'name': '名前 é "x" \' <&>\n..'}])

    def drive(self, url, transport, password='password'):
        options = {'url': url, 'transport': transport, 'allowUnauthorized': True,
                   'auth': {'user': 'root', 'password': password}}
        return subprocess.run(['node', SCRIPT, XEN_API, json.dumps(options), 'box'],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)

    def test_a_session_from_connect_to_disconnect(self):
        for url, transport in ((self.sim.url, 'auto'), (self.sim.https_url, 'auto'),
                               (self.sim.url, 'xml-rpc'), (self.sim.https_url, 'xml-rpc')):
            with self.subTest(url=url, transport=transport):
                began = len(self.pool.journal)
                run = self.drive(url, transport)
                self.assertEqual((0, b''), (run.returncode, run.stderr))
                self.check(json.loads(run.stdout.decode()), transport == 'auto')
                self.check_calls([call.name for call in self.pool.journal[began:]])
                self.assertEqual({}, self.pool.tables['session'])

    def check(self, came, is_json):
        box, = self.pool.call('VM.get_by_name_label', 'box')
        seed = self.pool.call('VM.get_other_config', box)
        self.assertEqual(self.pool.pool_ref, came['pool'])
        host = self.pool.record('host', self.pool.master)
        self.assertEqual([host['hostname'], host['software_version']], came['host'])
        self.assertLess({'VM', 'VDI', 'VBD', 'SR', 'host', 'pool', 'task'}, set(came['types']))
        self.assertEqual(sorted(vm['name_label'] for vm in self.pool.tables['VM'].values()),
                         sorted(came['names']))
        self.assertTrue(came['byUuid'])
        size = 3 * MIB if is_json else str(3 * MIB)         # an int64 is text in XML-RPC alone
        self.assertEqual(
            [size, '0', False, 1, '19700101T00:00:00Z' if is_json else '1970-01-01T00:00:00.000Z',
             size], came['values'])
        self.assertEqual(['été 名 "1" <&>', True, True, 'Halted', True], came['snapshot'])
        self.assertEqual('', came['destroyed'])
        ref, refusal = came['gone']
        self.assertEqual(self.error('HANDLE_INVALID', 'VM', ref), refusal)
        self.assertEqual(dict(seed, backup='no 名', **{'a/b': ''}), came['set'])
        self.assertEqual(seed, came['removed'])
        self.assertEqual(self.error('MAP_DUPLICATE_KEY', 'VM', 'other_config', box, 'mac_seed'),
                         came['twice'])
        self.assertEqual(self.error('MESSAGE_METHOD_UNKNOWN', 'nosuch.call'), came['unknown'])

    @staticmethod
    def error(code, *params):
        return {'name': 'XapiError', 'code': code, 'params': list(params)}

    def check_calls(self, calls):
        set_one = ['VM.remove_from_other_config', 'VM.add_to_other_config']
        self.assertEqual(
            LOGIN + ['host.get_record', 'host.get_software_version', 'VM.get_all_records',
                     'VM.get_by_uuid', 'VM.get_record'] + 3 * ['VBD.get_record']
            + ['VDI.get_record', 'VDI.get_virtual_size', 'VM.snapshot', 'VM.get_record',
               'VM.destroy', 'VM.get_record'] + 2 * set_one + ['VM.get_other_config']
            + 2 * set_one[:1] + ['VM.get_other_config', set_one[1], 'nosuch.call',
                                 'session.logout'], calls)

    def test_a_wrong_password_is_an_error_of_xapi(self):
        for transport in 'auto', 'xml-rpc':
            run = self.drive(self.sim.url, transport, 'wrong')
            self.assertEqual(1, run.returncode)
            self.assertIn(b'XapiError: SESSION_AUTHENTICATION_FAILED(root, Authentication failure)',
                          run.stderr)


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
