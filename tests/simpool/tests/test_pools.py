"""Pools from descriptions, and the program that runs a command beside one."""

import contextlib
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest

from tests import ROOT
from tests.simpool import __main__ as wrapper
from tests.simpool import pools
from tests.simpool.tests.support import MIB, PATIENCE, end
from tests.simpool.tests.test_model import TWO_DISKS

ONE = '5a5a5a5a-0000-4000-8000-000000000001'
ISOS = {'name': 'ISOs', 'content': 'iso', 'isos': ['x.iso']}


class Descriptions(unittest.TestCase):
    def test_what_makes_no_sense_is_refused_with_its_place(self):
        twice = [{'name': 'a', 'uuid': ONE}, {'name': 'b'}, {'name': 'c', 'uuid': ONE}]

        def vm(**keys):
            return {'srs': [{'name': 's'}, ISOS], 'vms': [{'name': 'a'}, dict(keys, name='b')]}
        for description, *words in (
                ([], 'the description: '), ({'colour': 1}, "unknown key 'colour'"),
                ({'hosts': [{}]}, 'the description: ', 'name'),
                ({'xapi_version': '26.1-beta'}, 'the description: ', '1-beta'),
                ({'srs': [{'name': 5}]}, 'srs[0]: ', 'name: a text'),
                ({'srs': [{'name': 's', 'size': -1}]}, 'srs[0]: ', 'not a size: -1'),
                ({'srs': [{'name': 's', 'type': 'lvm', 'size': 4096}],
                  'vms': [{'name': 'a', 'disks': [8192]}]}, 'vms[0]: ', 'SR_BACKEND_FAILURE_44'),
                ({'srs': [ISOS], 'vms': [{'name': 'a', 'disks': ['1 MiB']}]}, 'vms[0]: ', 'SR'),
                ({'vms': twice}, 'vms[2]: ', 'uuid'), (vm(uuid=ONE, count=2), 'vms[1]: ', 'uuid'),
                ({'vms': [{}]}, 'vms[0]: ', 'name'), (vm(colour=1), "vms[1]: ", 'colour'),
                (vm(networks=['x']), 'vms[1]: ', 'x'), (vm(cd='y.iso'), 'vms[1]: ', 'y.iso'),
                (vm(memory='8 megs'), 'vms[1]: ', '8 megs'),
                (vm(firmware='efi'), 'firmware: one of bios uefi'),
                (vm(power_state='on'), 'power_state: one of'), (vm(count='2'), 'vms[1]: '),
                (vm(disks=[{'sr': 'ISOs'}]), "vms[1]: ", "'ISOs' is for ISO images"),
                (vm(disks=[{'sr': 'x'}]), 'vms[1]: ', 'x'), (vm(disks=[None]), 'vms[1]: ', 'None'),
                (vm(disks=[{'mode': 'rw'}]), 'mode: one of RO RW'),
                (vm(disks=[{'color': 'x'}]), "vms[1]: ", 'color'),
                (vm(disks=['1 MiB', {'device': 'zz'}]), "vms[1]: ", "disks[1]: no device"),
                (vm(disks=[{'device': 'xvdb'}, '1 MiB']), 'vms[1]: ', "disks[1]: ", "disk is '1'"),
                ({'faults': [{'at': 'vm-list', 'do': 'explode'}]}, 'faults[0]: '),
                ({'faults': [{'at': 'vm-list', 'do': 'slow', 'how': 'x'}]}, 'faults[0]: '),
                ({'faults': [{'do': 'hang'}]}, 'faults[0]: ', 'at')):
            with self.assertRaises(pools.DescriptionError) as caught:
                pools.from_description(description)
            for word in words:
                self.assertIn(word, str(caught.exception), description)

    def test_devices_and_uuids_are_those_of_the_description(self):
        pool = pools.load({'vms': [{'name': 'a', 'uuid': ONE, 'count': 1, 'cd': None, 'ran': True,
                                    'disks': [{'device': 'xvdd'}, {'device': 7}]}]})
        vm, = pool.call('VM.get_by_name_label', 'a')
        self.assertEqual(ONE, pool.record('VM', vm)['uuid'])
        self.assertEqual({'xvdd', '7', '0'}, {pool.record('VBD', vbd)['userdevice']
                                              for vbd in pool.record('VM', vm)['VBDs']})

    def test_every_key_that_is_told_is_known(self):
        told = set(re.findall(r'"(\w+)":', pools.__doc__))
        known = set(itertools.chain(*pools.KEYS.values()))
        self.assertEqual(known, told - {'key', 'snapshot'})

    def test_a_count_makes_many_vms_of_one_description(self):
        pool = pools.load({'vms': [{'name': 'vm{n}', 'count': 30, 'disks': ['1 MiB']}]})
        self.assertEqual(1, len(pool.call('VM.get_by_name_label', 'vm29')))
        self.assertEqual(30, len({vm['uuid'] for vm in pool.tables['VM'].values()
                                  if vm['name_label'].startswith('vm')}))

    def test_sizes(self):
        self.assertEqual([0, 512, 8 * MIB, 3 << 30, 1 << 40], [
            pools.size_of(text) for text in (0, '512 B', '8 MiB', '3GiB', '1 TiB')])

    def test_the_demo_comes_from_a_file_too(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, 'pool.json')
            with open(path, 'w') as file:
                json.dump(pools.DEMO, file)
            pool = pools.load(path)
        self.assertEqual('demo pool', pool.record('pool', pool.pool_ref)['name_label'])
        vms = [vm for vm in pool.tables['VM'].values()
               if not (vm['is_a_template'] or vm['is_control_domain'])]
        self.assertEqual(['web', 'db', 'old-intranet', 'desktop', 'mail server', 'büro'],
                         [vm['name_label'] for vm in vms])
        self.assertEqual(3, sum(vm['power_state'] == 'Running' for vm in vms))
        self.assertEqual(2, len(pool.call('VM.get_by_name_label', 'web')))
        self.assertLess(sum(image.virtual_size for image in pool.content.values()), 100 * MIB)

    def test_odd_names_are_kept_as_they_are(self):
        pool = pools.load(pools.odd())
        for name in pools.odd_names():
            self.assertEqual(1, len(pool.call('VM.get_by_name_label', name)), name)

    def test_the_same_description_gives_the_same_disks(self):
        self.assertEqual(*[sorted(image.sha256() for image in pools.load(
            TWO_DISKS).content.values()) for _ in range(2)])

    def test_a_described_fault_meets_its_call(self):
        pool = pools.load({'latency': 0.25, 'faults': [
            {'at': 'vm-list', 'nth': 2, 'do': 'print', 'stdout': 'no', 'exit': 1}]})
        self.assertEqual(0.25, pool.faults.latency)
        self.assertEqual([None, ('print', 'no', 1), None], [
            fault and (fault.do, fault.stdout, fault.exit)
            for fault in (pool.faults.take('vm-list') for _ in range(3))])


class Wrapper(unittest.TestCase):
    def setUp(self):
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.directory = place.name
        self.file = self.described('{"vms": [{"name": "mine"}]}')
        for number in wrapper.FROM_TERMINALS + (signal.SIGTERM,):
            self.addCleanup(signal.signal, number, signal.getsignal(number))

    def described(self, text):
        path = os.path.join(self.directory, 'pool.json')
        with open(path, 'wb') as file:
            file.write(text if isinstance(text, bytes) else text.encode())
        return path

    def run_it(self, *arguments):
        with contextlib.redirect_stderr(io.StringIO()) as err:
            status = wrapper.main(list(arguments))
        return status, err.getvalue()

    def test_the_command_sees_a_pool_and_its_status_comes_back(self):
        seen = os.path.join(self.directory, 'seen')
        script = ('case $VMBACKUP_XAPI_URL in unix:/*) ;; *) exit 1;; esac; '
                  'xe vm-list is-control-domain=false params=name-label --minimal > %s; '
                  'exit 7' % seen)
        for arguments, name in ((('--pool', self.file, '--'), 'mine'),
                                (('--pool=' + self.file,), 'mine'), ((), 'web')):
            self.assertEqual((7, ''), self.run_it(*(arguments + ('sh', '-c', script))))
            with open(seen) as file:
                self.assertEqual(name, file.read().strip().split(',')[0])
        self.assertEqual(128 + signal.SIGKILL, self.run_it(
            '--pool', self.file, 'sh', '-c', 'kill -9 $$')[0])
        self.assertEqual(127, self.run_it('--pool', self.file, '/no/such/command')[0])

    def test_mistakes_are_one_line_and_status_2(self):
        for text, words in (
                ('{\n\n  oops}', ', line 3: Expecting property name enclosed in double quotes'),
                ('{"vms": [{"name": "a", "disks": 5}]}', ': vms[0]: TypeError: '),
                ('{\n"vms": [}', ', line 2: Expecting value'), (b'\xff', ': not UTF-8: ')):
            status, err = self.run_it('--pool', self.described(text), 'true')
            self.assertEqual((2, 1), (status, err.count('\n')))
            self.assertTrue(err.startswith('simpool: ' + self.file + words), err)
        for arguments in ((), ('--pool',), ('--pull', 'x', 'true'), ('--pool', '/no/such', 'true')):
            status, err = self.run_it(*arguments)
            self.assertEqual((2, 1), (status, err.count('\n')), err)

    def test_sigterm_reaches_the_command_and_nothing_is_left_of_it(self):
        script = 'trap "exit 43" TERM; ls "$TMPDIR"; while :; do sleep 0.01; done'
        place = os.path.join(self.directory, 'tmp')
        os.mkdir(place)
        process = subprocess.Popen(
            [sys.executable, '-m', 'tests.simpool', '--pool', self.file, 'sh', '-c', script],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            universal_newlines=True, env=dict(os.environ, TMPDIR=place))
        self.addCleanup(end, process)
        self.assertRegex(process.stdout.readline(), r'^simpool-\w+$')
        process.send_signal(signal.SIGTERM)
        self.assertEqual(43, process.wait(PATIENCE))
        self.assertEqual([], os.listdir(place))
