"""The doors of the simulated pool: what goes over the wire, who may call, and what faults do.

Expected texts are from recordings of xapi 25.6.0, or from its source as xapi.py names it.
"""

import json
import os
import socket
import threading
import unittest
import xmlrpc.client
from unittest import mock

from tests.simpool import Down, SimPool, XapiError
from tests.simpool.tests.support import MIB, PATIENCE, Case, end, wait_until
from tests.simpool.tests.test_model import ModelCase

VALUE = ('<?xml version="1.0"?><methodResponse><params><param><value><struct><member>'
         '<name>Status</name><value>Success</value></member><member><name>Value</name>%s'
         '</member></struct></value></param></params></methodResponse>')
FULL = ['SR_BACKEND_FAILURE_44', '', 'There is insufficient space', '']
LOST = 'Lost connection to the server.\n'
REFUSED = 'Error: Connection refused (calling connect )\n'
BROKEN = 'Error: Broken pipe (calling single_write )\n'


def request(method, *params):
    return xmlrpc.client.dumps(params, method, allow_none=True).encode()


def connect(url):
    if url.startswith('unix:'):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(url[len('unix:'):])
        return client
    return socket.create_connection(('127.0.0.1', int(url.rsplit(':', 1)[1])), PATIENCE)


def exchange(url, data, times=1):
    """Send raw bytes and return `times` (head, body) answers, or what came till EOF."""
    answers = []
    with connect(url) as client:
        file = client.makefile('rb')
        for _ in range(times):
            client.sendall(data)
            head, line = [], file.readline()
            while line not in (b'', b'\r\n'):
                head.append(line.decode().rstrip('\r\n'))
                line = file.readline()
            length = [int(line.split(':')[1]) for line in head
                      if line.lower().startswith('content-length')]
            answers.append((head, file.read(length[0] if length else -1)))
    return answers if times > 1 else answers[0]


def post(body, path='/', version='1.1'):
    return ('POST %s HTTP/%s\r\nHost: x\r\nContent-Length: %d\r\n\r\n' % (
        path, version, len(body))).encode() + body


class WireForms(ModelCase):
    def test_each_kind_of_value_has_its_form(self):
        session = self.pool.login('root', 'password')
        self.pool.put('VM', self.busy, name_label='a\x01b\x1b[31m\tc\nd\re名')
        for expected, method, *params in (
                ('3145728', 'VDI.get_virtual_size', self.disks(self.box)['0']),
                ('<boolean>0</boolean>', 'VM.get_is_a_template', self.box),
                ('<double>1</double>', 'VM.get_HVM_shadow_multiplier', self.box),
                ('<dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601>',
                 'VM.get_snapshot_time', self.box),
                ('<array><data><value>prod</value></data></array>', 'VM.get_tags', self.box),
                ('<struct><member><name>order</name><value>cd</value></member></struct>',
                 'VM.get_HVM_boot_params', self.box),
                ('<struct></struct>', 'VM.get_NVRAM', self.box),
                ('OpaqueRef:NULL', 'VM.get_snapshot_of', self.box),
                ('a &quot;box&quot; &amp; &lt;more&gt;', 'VM.get_name_description', self.box),
                ('ab[31m\tc\nd\re名', 'VM.get_name_label', self.busy),     # controls are dropped
                ('', 'VM.set_name_label', self.box, 'new')):
            body = exchange(self.sim.url, post(request(method, session, *params)))[1].decode()
            self.assertEqual(VALUE % ('<value>%s</value>' % expected), body, method)

    def test_a_connection_serves_many_calls_or_with_http_1_0_one(self):
        logout = request('session.logout', 'x')
        first, second = exchange(self.sim.url, post(logout, '/RPC2'), times=2)
        self.assertEqual(first, second)
        self.assertEqual(['HTTP/1.1 200 OK', 'Connection: keep-alive',
                          'Cache-Control: no-cache, no-store', 'Content-Type: text/xml',
                          'Access-Control-Allow-Origin: *', 'Content-Length: %d' % len(first[1])],
                         first[0])
        head, _ = exchange(self.sim.url, post(logout, version='1.0'))
        self.assertEqual(['HTTP/1.0 200 OK', 'Connection: close'], head[:2])

    def test_what_is_no_call_is_an_error_of_http(self):
        for status, data in (
                ('404 Not Found', post(b'', '/cli')),
                ('500 Internal Error', post(b'', '/elsewhere')),
                ('404 Not Found', b'GET / HTTP/1.1\r\n\r\n'),
                ('411 Length Required', b'POST / HTTP/1.1\r\n\r\n'),
                ('413 Request Entity Too Large',
                 b'POST / HTTP/1.1\r\nContent-Length: 999999\r\n\r\n'),
                ('500 Internal Error', post(b'rubbish')),
                ('500 Internal Error', post(b'<methodCall>')),
                ('500 Internal Error', post(request('VM.get_all', 'a\x01b')))):
            self.assertEqual('HTTP/1.1 ' + status, exchange(self.sim.url, data)[0][0])


class Json(ModelCase):
    """JSON-RPC 2.0, as xapi spells it; values and failures are asked for by test_peers."""

    def test_what_is_no_call_of_version_2_is_an_error_of_http(self):
        whole = {'jsonrpc': '2.0', 'id': 1, 'method': 'VM.get_all', 'params': []}
        for wrong in ({'jsonrpc': '1.0'}, {'id': None}, {'method': None}, {'params': 'x'}):
            body = json.dumps(dict(whole, **wrong)).encode()
            self.assertEqual('HTTP/1.1 500 Internal Error',
                             exchange(self.sim.url, post(body, '/jsonrpc'))[0][0])
        for body in b'[]', b'{', b'\xff':
            self.assertEqual('HTTP/1.1 500 Internal Error',
                             exchange(self.sim.url, post(body, '/jsonrpc'))[0][0])

    def test_the_list_of_methods_is_that_of_what_is_answered(self):
        call = b'{"jsonrpc":"2.0","id":7,"method":"system.listMethods","params":[]}'
        listed = json.loads(exchange(self.sim.url, post(call, '/jsonrpc'))[1].decode())['result']
        self.assertEqual(listed, self.raw('system.listMethods'))
        self.assertLess({'VM.snapshot', 'VM.get_all_records', 'VDI.get_virtual_size',
                         'VGPU.get_all_records', 'VM.add_to_other_config'}, set(listed))
        for name in listed:
            with self.assertRaises(XapiError) as caught:
                self.pool.check_message(name, 99)
            self.assertEqual('MESSAGE_PARAMETER_COUNT_MISMATCH', caught.exception.details[0])
        self.assertFalse({'VBD_metrics.get_all_records', 'session.get_all', 'VM.set_domid',
                          'VM.add_name_label'} & set(listed))


class Agents(Case):
    """Whom a host remembers to have logged in (xapi: xapi_tracked_user_agents.ml)."""

    description = dict(Case.description, xapi_version='26.17.0')

    def login(self, agent, password='password'):
        body = request('session.login_with_password', 'root', password)
        exchange(self.sim.url, post(body).replace(
            b'Host: x', b'Host: x\r\nUser-Agent: ' + agent.encode()))

    def tracked(self):
        return self.pool.call('host.get_tracked_user_agents', self.pool.master)

    def test_a_login_notes_name_and_version_of_its_client(self):
        for agent in ('XenCenter/2025.2.0.8315', 'Mozilla/5.0 (Windows NT 10.0)', 'Plain',
                      'Old 1/2', 'XenCenter/2025.2.0.8316', 'Long/' + '1' * 60):
            self.login(agent)
        self.login('Stranger/1', 'wrong')
        exchange(self.sim.url, post(request('session.login_with_password', 'root', 'password')))
        self.assertEqual({'XenCenter': '2025.2.0.8316', 'Mozilla': '5.0', 'Plain': '', 'Old': ''},
                         self.tracked())

    def test_the_oldest_of_129_is_forgotten_and_all_by_a_restart(self):
        for number in range(129):
            self.pool.track('Agent%d/1' % number)
        self.assertEqual({'Agent%d' % number: '1' for number in range(1, 129)}, self.tracked())
        self.sim.restart()
        self.assertEqual({}, self.tracked())


class Sessions(Case):
    def test_sessions_begin_with_a_password_and_end_with_their_logout(self):
        for more in ((), ('1.0',), ('1.0', 'VmBackup')):
            answer = self.raw('session.login_with_password', 'root', 'password', *more)
            self.assertEqual('Success', answer['Status'])
        session = answer['Value']
        self.assertEqual('VmBackup', self.raw('session.get_originator', session, session)['Value'])
        self.assertEqual({'Status': 'Success', 'Value': ''}, self.raw('session.logout', session))
        self.assertNotIn(session, self.pool.tables['session'])
        for details, method, *params in (
                (['SESSION_AUTHENTICATION_FAILED', 'root', 'Authentication failure'],
                 'session.login_with_password', 'root', 'wrong'),
                (['SESSION_INVALID', session], 'VM.get_all', session),
                (['SESSION_INVALID', session], 'session.logout', session),
                (['SESSION_INVALID'], 'VM.get_all', None),
                # before the session is looked at
                (['MESSAGE_METHOD_UNKNOWN', 'nosuch.call'], 'nosuch.call', 'x'),
                (['MESSAGE_PARAMETER_COUNT_MISMATCH', 'VM.snapshot', '2', '1'],
                 'VM.snapshot', 'x', 'vm'),
                (['MESSAGE_PARAMETER_COUNT_MISMATCH', 'VM.get_all', '0', '-1'], 'VM.get_all')):
            answer = self.raw(method, *params)['ErrorDescription']
            self.assertEqual(details, answer if details[1:] else answer[:1])


class Faults(ModelCase):
    def fault(self, do, name='VM.get_all', **details):
        self.pool.faults.add(name, do, **details)

    def cut_off(self, method='VM.snapshot', *params):
        with self.assertRaises((OSError, xmlrpc.client.Error)):
            self.x(method, *(params or (self.box, 'x')))

    def test_codes_known_unknown_and_of_a_wrong_length_have_their_shapes_in_xe(self):
        named = '%s (box)' % self.get('VM', self.box)
        for error, words in (
                (['VM_IS_TEMPLATE', self.box], 'The operation attempted is not valid for a template'
                                               ' VM\nvm: %s\n' % named),
                (['TASK_CANCELLED', 'a', 'b'], 'The request was asynchronously canceled.\n'
                                               'task: a\n<extra>: b\n'),
                (['SR_BACKEND_FAILURE_47', '', self.box, ''],
                 'Error code: SR_BACKEND_FAILURE_47\nError parameters: , %s, \n' % named),
                (['OTHER_OPERATION_IN_PROGRESS', 'VM', self.box],
                 'Another operation involving the object is currently in progress\nclass: VM\n'
                 'object: %s\noperation_type: <unknown>\noperation_ref: <unknown>\n' % named)):
            self.fault('refuse', 'vm-list', error=error)
            self.assertEqual(words, self.refused('vm-list'))
        self.pool.xapi_version = '1.249'
        self.fault('refuse', 'vm-list', error=['OTHER_OPERATION_IN_PROGRESS', 'x', 'y'])
        self.assertTrue(self.refused('vm-list').endswith('class: x\nobject: y\n'))

    def test_xe_says_something_else_and_nothing_is_done(self):
        self.fault('print', 'vm-snapshot', stdout='not a uuid', stderr='oh\n', exit=7)
        self.assertEqual((7, 'not a uuid', 'oh\n'),
                         self.xe('vm-snapshot', 'vm=box', 'new-name-label=s'))
        self.assertEqual('', self.ask('snapshot-list'))

    def test_what_xe_says_is_cut_off_after_so_many_bytes(self):
        self.fault('die', 'vm-list', after=10)
        self.assertEqual((1, 'uuid ( RO)', LOST), self.xe('vm-list', 'name-label=box'))
        disk = 'uuid=' + self.get('VDI', self.disks(self.box)['0'])
        self.fault('die', 'vdi-destroy')
        self.assertEqual(LOST, self.refused('vdi-destroy', disk))
        self.assertEqual('', self.ask('vdi-list', disk))

    def test_a_call_that_hangs_ends_with_its_client_or_the_pool(self):
        session = self.pool.login('root', 'password')
        others = threading.active_count()
        self.fault('hang')
        client = connect(self.sim.url)
        client.sendall(post(request('VM.get_all', session)))
        wait_until(lambda: self.sim.calls('xapi'))
        client.settimeout(0.05)
        with self.assertRaises(socket.timeout):
            client.recv(1)
        client.close()
        self.fault('hang', 'vm-snapshot')
        process = self.start('vm-snapshot', 'vm=box', 'new-name-label=s')
        wait_until(lambda: self.sim.calls('xe'))
        self.assertIsNone(process.poll())
        end(process)
        wait_until(lambda: threading.active_count() == others)
        self.assertEqual('', self.ask('snapshot-list'))
        self.fault('hang')
        outcome = self.background(self.raw, 'VM.get_all', session)
        wait_until(lambda: len(self.sim.calls('xapi')) == 2)
        self.sim.stop()
        wait_until(lambda: outcome)
        self.assertIsInstance(outcome[0], (OSError, xmlrpc.client.Error))

    def test_a_slow_call_waits_and_trickles_and_latency_is_per_call(self):
        self.x('VM.get_all')
        waits = []
        with mock.patch.object(self.pool, 'sleep', waits.append):
            self.pool.faults.latency = 3
            self.x('VM.get_all')
            self.ask('vm-list')
            self.assertEqual([3, 3], waits)
            self.pool.faults.clear()
            self.fault('slow', seconds=5, rate=4000)
            answer = self.value('VM.get_all')
            self.assertIn(self.box, answer)
            self.assertEqual(5, waits[2])
            wait_until(lambda: sum(waits[3:]) > len(str(answer)) / 4000)

    def test_a_daemon_is_down_until_it_is_back_and_has_or_has_not_done_the_work(self):
        for do, made in (('down', 0), ('down-after', 1)):
            self.x('VM.get_all')
            self.fault(do, 'VM.snapshot')
            self.cut_off()
            with self.assertRaises(OSError):
                self.raw('session.logout', 'x')
            with self.assertRaises(Down):
                self.pool.call('VM.get_all')
            self.assertEqual(REFUSED, self.refused('vm-list'))
            url = self.sim.url
            self.sim.restart()
            self.assertEqual(({}, url), (self.pool.tables['session'], self.sim.url))
            self._session = None
            self.assertEqual(made, len(self.pool.call('VM.get_by_name_label', 'x')))
            self.fault(do, 'vm-snapshot')
            self.assertEqual(LOST, self.refused('vm-snapshot', 'vm=box', 'new-name-label=y'))
            self.assertEqual(REFUSED, self.refused('vm-list'))
            self.assertEqual('Unable to contact server. Please check server and port settings.\n',
                             self.refused('-s', 'localhost', '-pw', 'password', 'vm-list'))
            self.sim.restart()
            self.assertEqual(made, len(self.pool.call('VM.get_by_name_label', 'y')))

    def test_faults_strike_the_nth_call_and_so_many(self):
        faults = self.pool.faults
        faults.add('VM.get_all', 'refuse', nth=2, times=2, error=['X'])
        faults.add('*', 'slow', nth=4)
        self.assertEqual([None, 'refuse', 'refuse', 'slow', None],
                         [fault and fault.do for fault in
                          (faults.take('VM.get_all') for _ in range(5))])
        faults.add('VM.get_all', 'hang', times=0)
        self.assertEqual({'hang'}, {faults.take('VM.get_all').do for _ in range(9)})
        faults.clear()
        self.assertIsNone(faults.take('VM.get_all'))
        for order in (('VM.get_all', 'explode'), ('VM.get_all', 'hang', 0), ('x', 'refuse')):
            with self.assertRaises(ValueError):
                faults.add(*order)
        with self.assertRaises(ValueError):
            faults.add('x', 'die', afterwards=3)


class HalfWay(ModelCase):
    def die_in(self, method, *params, after):
        self.x('VM.get_all')
        self.pool.faults.add(method, 'down', after=after)
        with self.assertRaises((OSError, xmlrpc.client.Error)):
            self.x(method, *params)
        self.assertTrue(self.pool.is_down)
        self.sim.restart()
        self._session = None
        self.assertNotIn('pending', [task['status'] for task in self.pool.tables['task'].values()])

    def counts(self):
        return self.count('VM', 'VBD', 'VDI')

    def orphans(self):
        """The snapshots of disks that no VBD holds."""
        return [record for record in self.pool.tables['VDI'].values()
                if record['is_a_snapshot'] and not record['VBDs']]

    def test_a_snapshot_is_disks_then_a_record_then_whole(self):
        vms, vbds, vdis = self.counts()
        for after in range(3):
            self.die_in('VM.snapshot', self.box, 'half', after=after)
            self.assertEqual([vms, vbds, vdis + after], self.counts())
            found = self.orphans()
            self.assertEqual(sorted(['data', 'root'][:after]),
                             sorted(record['name_label'] for record in found))
            self.assertLessEqual({record['snapshot_of'] for record in found},
                                 set(self.disks(self.box).values()))
            self.assertEqual({}, self.get('VM', self.box, 'current_operations'))
            for record in found:
                self.pool.call('VDI.destroy', self.pool.ref_of('VDI', record['uuid']))
        self.die_in('VM.snapshot', self.box, 'half', after=3)
        made = self.pool.record('VM', self.vm('half'))
        self.assertEqual((True, self.box, []),
                         (made['is_a_snapshot'], made['snapshot_of'], made['VBDs']))
        self.assertEqual(2, len(self.orphans()))
        self.die_in('VM.snapshot', self.box, 'whole', after=99)
        self.assertEqual(3, len(self.get('VM', self.vm('whole'), 'VBDs')))
        self.assertEqual(2, len(self.orphans()))

    def test_a_refusal_in_the_midst_of_a_snapshot_leaves_nothing(self):
        before = self.counts()
        for after in range(3):
            self.pool.faults.add('VM.snapshot', 'refuse', error=FULL, after=after)
            self.assert_refused(FULL, 'VM.snapshot', self.box, 'half')
            self.assertEqual(before, self.counts())

    def test_a_clone_and_a_destroyed_disk_can_be_left_half_way_too(self):
        vms, vbds, vdis = self.counts()
        self.value('VM.hard_shutdown', self.busy)
        self.die_in('VM.clone', self.busy, 'half', after=1)
        self.assertEqual([vms, vbds, vdis + 1], self.counts())
        for after, left in ((0, True), (1, False)):
            vdi = self.pool.call('VDI.snapshot', self.disks(self.box)['0'])
            self.die_in('VDI.destroy', vdi, after=after)
            self.assertEqual(left, vdi in self.pool.tables['VDI'])

    def test_a_daemon_that_dies_while_it_uninstalls_leaves_the_disks_that_come_later(self):
        for after, vms, disks in ((0, 1, 1), (1, 0, 1), (2, 0, 0), (3, 0, 0)):
            made = self.pool.call('VM.snapshot', self.busy, 'x')
            disk, = self.disks(made).values()
            self.pool.faults.add('snapshot-uninstall', 'down', after=after)
            self.assertEqual(LOST, self.refused(
                'snapshot-uninstall', 'uuid=' + self.get('VM', made), 'force=true'))
            self.sim.restart()
            self.assertEqual((vms, disks), (made in self.pool.tables['VM'],
                                            disk in self.pool.tables['VDI']), after)

    def test_an_operation_that_takes_its_time_is_seen_meanwhile(self):
        sleep, over = self.pool.sleep, threading.Event()
        self.pool.sleep = lambda seconds, gone=None: sleep(PATIENCE, over.is_set)
        self.x('VM.get_all')
        for cls, ref, arguments in (('VM', self.box, ['slow']),
                                    ('VDI', self.disks(self.box)['0'], [])):
            over.clear()
            before = len(self.get(cls, ref, 'snapshots'))
            self.pool.faults.add(cls + '.snapshot', 'slow', seconds=1, after=0)
            outcome = self.background(self.raw, cls + '.snapshot', self._session, ref, *arguments)
            wait_until(lambda: self.value(cls + '.get_current_operations', ref) or outcome)
            self.assertEqual(['snapshot'], list(self.value(
                cls + '.get_current_operations', ref).values()), outcome)
            self.assertEqual(before, len(self.value(cls + '.get_snapshots', ref)))
            over.set()
            wait_until(lambda: outcome)
            self.assertEqual(before + 1, len(self.value(cls + '.get_snapshots', ref)))
            self.assertEqual({}, self.value(cls + '.get_current_operations', ref))


class FaultsOfImports(Case):
    description = {'srs': [{'name': 'disks', 'type': 'ext'}],
                   'vms': [{'name': 'box', 'disks': ['4 MiB']}]}

    def setUp(self):
        """Lines that import a VM, and a disk from raw and from VHD."""
        super().setUp()
        vm, disk = self.vm(), self.disks(self.vm())['0']
        sr = self.pool.call('SR.get_by_name_label', 'disks')[0]
        self.lines = []
        for name, options in (('x.xva', {}), ('x.zst', {'compress': 'zstd'})):
            self.write(name, self.pool.export_vm(vm, **options))
            self.lines.append(['vm-import', 'filename=' + self.path(name)])
        for kind in ('raw', 'vhd'):
            self.write('x.' + kind, self.pool.export_vdi(disk, kind))
            new = self.pool.call('VDI.create', {'SR': sr, 'virtual_size': str(4 * MIB)})
            self.lines.append(['vdi-import', 'uuid=' + self.get('VDI', new), 'format=' + kind,
                               'filename=' + self.path('x.' + kind)])

    def write(self, name, exporting):
        with exporting as stream, open(self.path(name), 'wb') as file:
            file.writelines(stream)

    def test_an_import_that_is_slow_or_whose_fault_comes_too_late_is_done(self):
        for fault in ({'do': 'slow', 'rate': 64 * MIB},
                      {'do': 'refuse', 'error': FULL, 'after': 1 << 30}):
            for line in self.lines:
                self.pool.faults.add(line[0], **fault)
                self.ask(*line)
        made = len(self.pool.call('VM.get_by_name_label', 'box'))
        self.assertEqual(5, made)
        self.pool.faults.add('vm-import', 'die')
        self.assertEqual(LOST, self.refused(*self.lines[0]))
        self.assertEqual(made + 1, len(self.pool.call('VM.get_by_name_label', 'box')))


class Lifetimes(unittest.TestCase):
    def test_nothing_is_left_when_it_stops(self):
        def files():
            return len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 0
        others, before = set(threading.enumerate()), files()
        sim = SimPool(Case.description)
        sim.pool.faults.add('*', 'hang')
        with connect(sim.url) as client, connect(sim.https_url) as tls:
            client.sendall(post(request('VM.get_all', 'x')))
            tls.sendall(b'never a handshake')
            wait_until(sim.calls)
            sim.stop()
        wait_until(lambda: set(threading.enumerate()) <= others)
        self.assertLessEqual(files(), before)
        self.assertFalse(os.path.exists(sim.directory))
        sim.stop()

    def test_who_waited_when_it_died_does_not_wake_up_in_its_next_life(self):
        with SimPool(Case.description) as sim:
            vm, = sim.pool.call('VM.get_by_name_label', 'box')
            outcome = []

            def snapshot():
                try:
                    outcome.append(sim.pool.call('VM.snapshot', vm, 'too late'))
                except Down as error:
                    outcome.append(error)
            with self.assertRaises(Down), sim.pool.operation(vm, 'destroy'):
                thread = threading.Thread(target=snapshot)
                thread.start()
                wait_until(lambda: len(sim.pool.tables['task']) == 2)
                with sim.pool.lock:
                    sim.pool.go_down()
                    sim.pool.come_up()
                thread.join(PATIENCE)
                raise Down('as the holder would see it')
            self.assertEqual([Down], [type(each) for each in outcome])
            self.assertEqual([], sim.pool.call('VM.get_by_name_label', 'too late'))
