"""Pools from descriptions, and the program that runs a command beside one."""

import contextlib
import io
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
    def assert_bad(self, description, *words):
        with self.assertRaises(pools.DescriptionError) as caught:
            pools.from_description(description)
        for word in words:
            self.assertIn(word, str(caught.exception), description)

    def test_a_value_of_a_wrong_kind_is_refused_with_its_place(self):
        around = {
            'pool': ('', lambda thing: thing),
            'fault': ('faults[0].', lambda thing: {'faults': [thing]}),
            'host': ('hosts[1].', lambda thing: {'hosts': ['a', thing]}),
            'SR': ('srs[0].', lambda thing: {'srs': [thing]}),
            'VM': ('vms[1].', lambda thing: {'vms': [{'name': 'a'}, thing]}),
            'disk': ('vms[0].disks[1].', lambda thing: {
                'vms': [{'name': 'a', 'disks': ['1 MiB', thing]}]})}
        self.assertEqual(set(pools.KEYS), set(around))
        for kind, (place, inside) in around.items():
            needed = {key: 'x' for key, value in pools.KEYS[kind].items() if value.endswith('!')}
            for key in pools.KEYS[kind]:
                self.assert_bad(inside(dict(needed, **{key: frozenset()})), place + key + ': ')
            self.assert_bad(inside(dict(needed, colour=1)), "unknown key 'colour'")
            for key in needed:
                self.assert_bad(inside(dict(needed, **{key: None})), place + key + ': a text')
                self.assert_bad(inside({}), place.rstrip('.') + ': a ')

    def test_a_value_that_there_cannot_be_is_refused_with_its_place(self):
        two = [{'name': 'a', 'uuid': ONE}, {'name': 'b'}, {'name': 'c', 'uuid': ONE}]
        for description, *words in (
                ([], 'the description'), ({'vms': [5]}, 'vms[0]: an object'),
                ({'srs': [{'name': 's', 'type': 'lvm', 'size': 4096}],
                  'vms': [{'name': 'a', 'disks': [8192]}]}, 'vms[0]', 'SR_BACKEND_FAILURE_44'),
                ({'xapi_version': '26.1-beta'}, 'xapi_version: '),
                ({'networks': [5]}, 'networks[0]: a text'),
                ({'srs': [{'name': 's', 'size': -1}]}, 'srs[0].size: a size'),
                ({'vms': two}, 'vms[2].uuid', 'vms[0]'),
                ({'vms': [dict(two[0], count=2)]}, 'vms[0].uuid'),
                ({'srs': [{'name': 's'}, ISOS], 'vms': [{'name': 'a', 'disks': [{'sr': 'ISOs'}]}]},
                 'vms[0].disks[0].sr', "'ISOs'"),
                ({'srs': [ISOS], 'vms': [{'name': 'a', 'disks': ['1 MiB']}]},
                 'vms[0].disks[0]', 'no SR')):
            self.assert_bad(description, *words)
        for key, word, *values in (
                ('tags', '[0]: a text', [5]), ('other_config', '.a: a text', {'a': 5}),
                ('uuid', ': a uuid', ''), ('vcpus', ': a whole number', True, 0),
                ('count', ': a whole number', True, -1), ('ran', ': true or false', 1),
                ('memory', ': a size', 0), ('host', ': ', 'x'), ('cd', '', 'x.iso'),
                ('networks', '', ['x']), ('firmware', ': bios or uefi', 'efi'),
                ('power_state', '', 'on')):
            for value in values:
                self.assert_bad({'vms': [{'name': 'a'}, {'name': 'b', key: value}]},
                                'vms[1].' + key + word)
        for key, word, *values in (
                ('device', ': a device', 'zz', -1, 1.5, True, 'autodetect'),
                ('size', ': a size', 0, '0 MiB', '8 megs', True), ('sr', '', 'x'),
                ('fill', ': a number', '1', True), ('fill', '', 2), ('mode', ': RO or RW', 'rw'),
                ('on_boot', ': persist or reset', 'never')):
            for value in values:
                self.assert_bad({'vms': [{'name': 'a', 'disks': ['1 MiB', {key: value}]}]},
                                'vms[0].disks[1].' + key + word)
        for disk in (0, None, [], '0'):
            self.assert_bad({'vms': [{'name': 'a', 'disks': [disk]}]},
                            'vms[0].disks[0].size: a size')
        for second in ('xvdb', 1, 'hdb'):
            self.assert_bad({'vms': [{'name': 'a', 'disks': [{'device': second}, '1 MiB']}]},
                            'vms[0].disks[1].device')

    def test_devices_and_uuids_are_those_of_the_description(self):
        pool = pools.load({'vms': [{'name': 'a', 'uuid': ONE, 'count': 1, 'cd': None, 'ran': True,
                                    'disks': [{'device': 'xvdd'}, {'device': 7}]}]})
        vm, = pool.call('VM.get_by_name_label', 'a')
        self.assertEqual(ONE, pool.record('VM', vm)['uuid'])
        self.assertEqual({'xvdd', '7', '0'}, {pool.record('VBD', vbd)['userdevice']
                                              for vbd in pool.record('VM', vm)['VBDs']})

    def test_every_key_that_is_told_is_known(self):
        told = set(re.findall(r'"(\w+)":', pools.__doc__))
        known = {key for keys in pools.KEYS.values() for key in keys}
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

    def test_impossible_faults_are_refused_with_their_place(self):
        for fault in ({'at': 'vm-list', 'do': 'explode'}, {'at': 'vm-list', 'do': 'refuse'},
                      {'do': 'hang'}, {'at': 'vm-list', 'do': 'die', 'how': 'x'},
                      {'at': 'vm-list', 'do': 'slow', 'rate': 0}, 'vm-list'):
            with self.assertRaisesRegex(pools.DescriptionError, r'^faults\[0\]'):
                pools.load({'faults': [fault]})


class Wrapper(unittest.TestCase):
    def setUp(self):
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.directory = place.name
        self.file = self.described('{"vms": [{"name": "mine"}]}')
        for number in wrapper.FORWARDED:
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
        script = ('case $VMBACKUP_XAPI_URL in http://127.0.0.1:*) ;; *) exit 1;; esac; '
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
                ('{"vms": [{"name": "a", "disks": 5}]}', ': vms[0].disks: a list is needed, not 5'),
                ('{\n"vms": [}', ', line 2: Expecting value'), (b'\xff', ': not UTF-8: ')):
            status, err = self.run_it('--pool', self.described(text), 'true')
            self.assertEqual((2, 1), (status, err.count('\n')))
            self.assertTrue(err.startswith('simpool: ' + self.file + words), err)
        for arguments in ((), ('--pool',), ('--pull', 'x', 'true'), ('--pool', '/no/such', 'true')):
            status, err = self.run_it(*arguments)
            self.assertEqual((2, 1), (status, err.count('\n')), err)

    def test_signals_reach_the_command_and_nothing_is_left_of_it(self):
        numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
        script = ('import os, signal, sys, time\n'
                  'seen = []\n'
                  'for number in %r:\n'
                  '    signal.signal(number, lambda number, _: seen.append(number))\n'
                  'print(os.listdir(os.environ["TMPDIR"]), flush=True)\n'
                  'for count in range(3):\n'
                  '    while len(seen) == count:\n'
                  '        time.sleep(0.01)\n'
                  '    print(seen[count], flush=True)\n'
                  'sys.exit(43)' % ([int(number) for number in numbers],))
        place = os.path.join(self.directory, 'tmp')
        os.mkdir(place)
        process = subprocess.Popen(
            [sys.executable, '-m', 'tests.simpool', '--pool', self.file, sys.executable, '-c',
             script], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, universal_newlines=True,
            env=dict(os.environ, TMPDIR=place))
        self.addCleanup(end, process)
        self.assertRegex(process.stdout.readline(), r"^\['simpool-\w+'\]$")
        for number in numbers:
            process.send_signal(number)
            self.assertEqual('%d\n' % number, process.stdout.readline())
        self.assertEqual(43, process.wait(PATIENCE))
        self.assertEqual([], os.listdir(place))
