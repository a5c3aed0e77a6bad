"""The simulated pool itself: what its XML-RPC door says, byte for byte, and how its state behaves.

Expected texts, counts and orders are from recordings of xapi 25.6.0, or from its source as the
modules of tests/simpool name it.
"""

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import uuid
import xml.etree.ElementTree as ElementTree
import xmlrpc.client
from contextlib import contextmanager
from unittest import mock

from tests import DATA, ROOT
from tests.simpool import Down, SimPool, XapiError, archive, pools
from tests.simpool.database import NULL, TEMPLATES, Query, QueryError, column

PATIENCE = 20       # seconds after which a test that waits gives up
TWO_DISKS = {'vms': [
    {'name': 'box', 'description': 'a "box" & <more>', 'tags': ['prod'], 'ran': True,
     'ha_restart_priority': 'restart', 'cd': 'tools.iso',
     'disks': [{'size': '3 MiB', 'name': 'root'}, {'size': 1500 * 512, 'name': 'data'}]},
    {'name': 'busy', 'power_state': 'Running', 'disks': ['2 MiB'], 'cd': None}],
    'srs': [{'name': 'Local storage', 'type': 'ext'},
            {'name': 'ISOs', 'content': 'iso', 'isos': ['tools.iso']}]}
SMALL = {'vms': [{'name': 'box', 'disks': ['2 MiB']}]}


def load_sdk():
    """The SDK's module from its PyPI package, under a name of its own; None if not installed."""
    for directory in sys.path:
        path = os.path.join(directory, 'XenAPI', 'XenAPI.py')
        if os.path.isfile(path):
            spec = importlib.util.spec_from_file_location('sdk_of_simpool', path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return None


SDK = load_sdk()


def request(method, *params):
    """The body of a call."""
    return xmlrpc.client.dumps(params, method, allow_none=True).encode()


def connect(url):
    """A raw connection to the port of an address."""
    return socket.create_connection(('127.0.0.1', int(url.rsplit(':', 1)[1])), PATIENCE)


def exchange(sim, data, times=1):
    """Send raw bytes to the port and return `times` (head, body) answers, or what came till EOF."""
    answers = []
    with connect(sim.url) as client:
        file = client.makefile('rb')
        for _ in range(times):
            client.sendall(data)
            head = []
            while True:
                line = file.readline()
                if line in (b'', b'\r\n'):
                    break
                head.append(line.decode().rstrip('\r\n'))
            length = [int(line.split(':')[1]) for line in head
                      if line.lower().startswith('content-length')]
            answers.append((head, file.read(length[0] if length else -1)))
    return answers if times > 1 else answers[0]


def post(body, path='/', version='1.1', extra=''):
    """The bytes of a request."""
    return ('POST %s HTTP/%s\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n' % (
        path, version, len(body), extra)).encode() + body


class Simulated(unittest.TestCase):
    """A test with a pool of its own; `self.x` calls it through XML-RPC in a session."""

    description = SMALL

    def setUp(self):
        self.sim = SimPool(self.description)
        self.addCleanup(self.sim.stop)
        self.pool = self.sim.pool
        self._session = None

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
        self.assertEqual({'Status': 'Failure', 'ErrorDescription': details},
                         self.x(method, *params))

    @contextmanager
    def refusal(self, *details):
        with self.assertRaises(XapiError) as caught:
            yield
        self.assertEqual(list(details), caught.exception.details[:len(details)])

    def vm(self, name='box'):
        return self.pool.call('VM.get_by_name_label', name)[0]

    def disks(self, vm):
        """{userdevice: VDI ref} of a VM's disks."""
        vbds = [self.pool.record('VBD', ref) for ref in self.pool.record('VM', vm)['VBDs']]
        return {vbd['userdevice']: vbd['VDI'] for vbd in vbds if vbd['type'] == 'Disk'}

    def exported(self, vm, **options):
        with self.pool.export_vm(vm, **options) as stream:
            return b''.join(stream)

    def wait_until(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), deadline, 'waited in vain')
            time.sleep(0.005)

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


class WireForms(Simulated):
    """What goes over the wire, compared as bytes."""

    description = TWO_DISKS

    def body_of(self, method, *params):
        session = self.pool.login('root', 'password')
        return exchange(self.sim, post(request(method, session, *params)))[1].decode()

    def value_of(self, method, *params):
        body = self.body_of(method, *params)
        before = ('<?xml version="1.0"?><methodResponse><params><param><value><struct><member>'
                  '<name>Status</name><value>Success</value></member><member><name>Value</name>')
        after = '</member></struct></value></param></params></methodResponse>'
        self.assertTrue(body.startswith(before) and body.endswith(after), body)
        return body[len(before):-len(after)]

    def test_integers_are_untyped_text(self):
        disk = self.disks(self.vm())['0']
        self.assertEqual('<value>3145728</value>', self.value_of('VDI.get_virtual_size', disk))

    def test_booleans_doubles_and_dates_are_typed(self):
        vm = self.vm()
        self.assertEqual('<value><boolean>0</boolean></value>',
                         self.value_of('VM.get_is_a_template', vm))
        self.assertEqual('<value><double>1</double></value>',
                         self.value_of('VM.get_HVM_shadow_multiplier', vm))
        self.assertEqual(
            '<value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>',
            self.value_of('VM.get_snapshot_time', vm))

    def test_sets_are_arrays_and_maps_structs(self):
        vm = self.vm()
        self.assertEqual('<value><array><data><value>prod</value></data></array></value>',
                         self.value_of('VM.get_tags', vm))
        self.assertEqual(
            '<value><struct><member><name>order</name><value>cd</value></member></struct></value>',
            self.value_of('VM.get_HVM_boot_params', vm))
        self.assertEqual('<value><struct></struct></value>', self.value_of('VM.get_NVRAM', vm))

    def test_nothing_is_an_empty_value(self):
        self.assertEqual('<value></value>', self.value_of('VM.set_name_label', self.vm(), 'new'))

    def test_null_reference(self):
        self.assertEqual('<value>OpaqueRef:NULL</value>',
                         self.value_of('VM.get_snapshot_of', self.vm()))

    def test_special_characters_are_escaped(self):
        self.assertEqual('<value>a &quot;box&quot; &amp; &lt;more&gt;</value>',
                         self.value_of('VM.get_name_description', self.vm()))

    def test_control_characters_are_dropped_from_answers(self):
        vm = self.vm()
        self.pool.put('VM', vm, name_label='a\x01b\x1b[31m\tc\nd\re名')
        self.assertEqual('<value>ab[31m\tc\nd\re名</value>',
                         self.value_of('VM.get_name_label', vm))

    def test_a_failure_is_a_struct_too_and_its_status_is_200(self):
        session = self.pool.login('root', 'password')
        head, body = exchange(self.sim, post(request('VM.get_record', session, 'x')))
        self.assertEqual('HTTP/1.1 200 OK', head[0])
        self.assertEqual(
            b'<?xml version="1.0"?><methodResponse><params><param><value><struct><member>'
            b'<name>Status</name><value>Failure</value></member><member>'
            b'<name>ErrorDescription</name><value><array><data><value>HANDLE_INVALID</value>'
            b'<value>VM</value><value>x</value></data></array></value></member></struct></value>'
            b'</param></params></methodResponse>', body)

    def test_headers(self):
        head, body = exchange(self.sim, post(request('session.logout', 'x')))
        self.assertEqual(['HTTP/1.1 200 OK', 'Connection: keep-alive',
                          'Cache-Control: no-cache, no-store', 'Content-Type: text/xml',
                          'Access-Control-Allow-Origin: *', 'Content-Length: %d' % len(body)], head)

    def test_a_connection_serves_many_calls(self):
        call = post(request('session.logout', 'x'), '/RPC2')
        first, second = exchange(self.sim, call, times=2)
        self.assertEqual(first, second)

    def test_http_1_0_is_answered_so_and_ends(self):
        head, _ = exchange(self.sim, post(request('session.logout', 'x'), version='1.0'))
        self.assertEqual(['HTTP/1.0 200 OK', 'Connection: close'], head[:2])

    def test_other_paths_are_not_there(self):
        for data in (post(b'', '/elsewhere'), b'GET / HTTP/1.1\r\n\r\n'):
            self.assertEqual('HTTP/1.1 404 Not Found', exchange(self.sim, data)[0][0])

    def test_a_length_is_needed_and_limited(self):
        self.assertEqual('HTTP/1.1 411 Length Required',
                         exchange(self.sim, b'POST / HTTP/1.1\r\n\r\n')[0][0])
        huge = b'POST / HTTP/1.1\r\nContent-Length: 999999\r\n\r\n'
        self.assertEqual('HTTP/1.1 413 Request Entity Too Large', exchange(self.sim, huge)[0][0])

    def test_a_body_that_is_no_call_is_an_internal_error(self):
        for body in (b'rubbish', b'<methodCall>', request('VM.get_all', 'a\x01b')):
            self.assertEqual('HTTP/1.1 500 Internal Error', exchange(self.sim, post(body))[0][0])

    def test_list_methods_is_a_bare_array(self):
        body = exchange(self.sim, post(request('system.listMethods')))[1]
        (names,), _ = xmlrpc.client.loads(body)
        wanted = {'VM.snapshot', 'VM.get_all_records', 'VDI.set_name_label', 'VM.add_tags',
                  'VM.add_to_other_config', 'session.login_with_password', 'session.logout'}
        unwanted = {'VM.set_uuid', 'pool.get_by_name_label', 'session.get_all'}
        self.assertEqual((set(), set()), (wanted - set(names), unwanted & set(names)))


class Sessions(Simulated):
    """Who may call, from where, and what the others are told."""

    def test_wrong_password(self):
        self.assertEqual(
            {'Status': 'Failure', 'ErrorDescription':
             ['SESSION_AUTHENTICATION_FAILED', 'root', 'Authentication failure']},
            self.raw('session.login_with_password', 'root', 'wrong'))

    def test_version_and_originator_are_optional(self):
        for more in ((), ('1.0',), ('1.0', 'VmBackup')):
            answer = self.raw('session.login_with_password', 'root', 'password', *more)
            self.assertEqual('Success', answer['Status'])
        self.assertEqual('VmBackup', self.value('session.get_originator', answer['Value']))

    def test_a_session_ends_with_its_logout(self):
        session = self.raw('session.login_with_password', 'root', 'password')['Value']
        self.assertEqual({'Status': 'Success', 'Value': ''}, self.raw('session.logout', session))
        self.assertEqual(['SESSION_INVALID', session],
                         self.raw('VM.get_all', session)['ErrorDescription'])
        self.assertEqual(['SESSION_INVALID', session],
                         self.raw('session.logout', session)['ErrorDescription'])
        self.assertEqual({}, self.pool.tables['session'])

    def test_no_session_is_no_valid_session(self):
        self.assertEqual('SESSION_INVALID', self.raw('VM.get_all', None)['ErrorDescription'][0])

    def test_sessions_do_not_survive_a_restart_but_the_state_does(self):
        self.value('VM.set_name_label', self.vm(), 'renamed')
        url = self.sim.url
        self.sim.restart()
        self.assertEqual(url, self.sim.url)
        self.assertEqual(['SESSION_INVALID', self._session],
                         self.x('VM.get_all')['ErrorDescription'])
        self._session = None
        self.assertEqual(1, len(self.value('VM.get_by_name_label', 'renamed')))

    def test_unknown_methods_and_wrong_counts_come_before_the_session(self):
        self.assertEqual(['MESSAGE_METHOD_UNKNOWN', 'nosuch.call'],
                         self.raw('nosuch.call', 'x')['ErrorDescription'])
        self.assertEqual(['MESSAGE_PARAMETER_COUNT_MISMATCH', 'VM.snapshot', '2', '1'],
                         self.raw('VM.snapshot', 'x', 'vm')['ErrorDescription'])
        self.assertEqual(['MESSAGE_PARAMETER_COUNT_MISMATCH', 'VM.get_all', '0', '-1'],
                         self.raw('VM.get_all')['ErrorDescription'])

    def test_unix_socket_needs_no_password(self):
        answer = self.over_unix(request('session.login_with_password', 'whoever', ''))
        session = answer['Value']
        self.assertIn(self.vm(), self.over_unix(request('VM.get_all', session))['Value'])
        self.assertTrue(self.pool.tables['session'][session]['is_local_superuser'])

    def over_unix(self, body):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(self.sim.unix_url[len('unix:'):])
            client.sendall(post(body, extra='Connection: close\r\n'))
            data = client.makefile('rb').read()
        return xmlrpc.client.loads(data.split(b'\r\n\r\n', 1)[1])[0][0]


class Members(Simulated):
    """A member of a pool, whose master is reached by TLS."""

    def setUp(self):
        super().setUp()
        self.sim.stop()
        self.sim = SimPool(SMALL, role='slave')
        self.addCleanup(self.sim.stop)
        self.pool = self.sim.pool

    def test_a_member_names_its_master_before_it_looks_at_the_password(self):
        address = self.sim.https_url[len('https://'):]
        for password in ('password', 'wrong'):
            self.assertEqual(['HOST_IS_SLAVE', address],
                             self.raw('session.login_with_password', 'root', password)
                             ['ErrorDescription'])

    def test_the_master_answers_by_tls_at_that_address(self):
        context = ssl._create_unverified_context()
        with xmlrpc.client.ServerProxy(self.sim.https_url, context=context) as master:
            session = master.session.login_with_password('root', 'password')['Value']
            self.assertEqual([self.vm()], master.VM.get_by_name_label(session, 'box')['Value'])

    def test_its_certificate_is_self_signed(self):
        with self.assertRaises(ssl.SSLError), xmlrpc.client.ServerProxy(
                self.sim.https_url, context=ssl.create_default_context()) as master:
            master.session.login_with_password('root', 'password')

    def test_its_unix_socket_reaches_the_master(self):
        answer = Sessions.over_unix(self, request('session.login_with_password', 'root', ''))
        self.assertEqual('Success', answer['Status'])

    def test_the_address_can_be_any(self):
        with SimPool(SMALL, role='slave', master_address='10.1.2.3') as sim:
            with xmlrpc.client.ServerProxy(sim.url) as server:
                self.assertEqual(['HOST_IS_SLAVE', '10.1.2.3'],
                                 server.VM.get_all('x')['ErrorDescription'])


class Queries(Simulated):
    """The getters, setters and queries that every class has."""

    description = TWO_DISKS

    def test_a_record_has_the_fields_that_were_recorded(self):
        with open(os.path.join(DATA, 'simpool', 'columns.json')) as file:
            recorded = json.load(file)
        internal = {'_ref', 'reserved', 'reserved_pci', 'recommended_guidances', 'wlb_password',
                    'boot_free_mem', 'port', 'default_vdi_visibility'}
        for cls, template in TEMPLATES.items():
            if recorded[cls]:
                self.assertEqual(set(recorded[cls]) - internal,
                                 {column(cls, field) for field in template}, cls)

    def test_every_class_answers_with_whole_records(self):
        self.pool.call('VM.snapshot', self.vm(), 'snap')
        for cls in TEMPLATES:
            if cls == 'session':
                continue
            records = self.value(cls + '.get_all_records')
            self.assertEqual(sorted(records), sorted(self.value(cls + '.get_all')))
            for ref, record in records.items():
                self.assertEqual(set(TEMPLATES[cls]), set(record))
                self.assertEqual(ref, self.value(cls + '.get_by_uuid', record['uuid']))
                self.assertRegex(ref, '^OpaqueRef:[0-9a-f-]{36}$')

    def test_all_vms_are_all_there_is(self):
        self.value('VM.snapshot', self.vm(), 'snap')
        records = self.value('VM.get_all_records').values()
        kinds = {flag: sum(record[flag] for record in records) for flag in (
            'is_a_template', 'is_default_template', 'is_a_snapshot', 'is_control_domain')}
        self.assertEqual({'is_a_template': 4, 'is_default_template': 3, 'is_a_snapshot': 1,
                          'is_control_domain': 1}, kinds)

    def test_every_host_has_a_control_domain(self):
        pool = pools.load({'hosts': ['a', {'name': 'b', 'address': '10.9.9.9'}]})
        hosts = pool.call('host.get_all_records')
        self.assertEqual(['Control domain on host: a', 'Control domain on host: b'],
                         [pool.record('VM', host['control_domain'])['name_label']
                          for host in hosts.values()])
        self.assertEqual(next(iter(hosts)), pool.record('pool', pool.pool_ref)['master'])

    def test_label_finds_templates_and_snapshots_too(self):
        snapshot = self.value('VM.snapshot', self.vm(), 'box')
        self.assertEqual({self.vm(), snapshot}, set(self.value('VM.get_by_name_label', 'box')))
        self.assertEqual([], self.value('VM.get_by_name_label', 'Box'))

    def test_bad_refs_and_uuids(self):
        nobody = '00000000-0000-0000-0000-000000000000'
        self.assert_refused(['UUID_INVALID', 'VM', nobody], 'VM.get_by_uuid', nobody)
        self.assert_refused(['HANDLE_INVALID', 'VDI', NULL], 'VDI.get_record', NULL)
        self.assert_refused(['HANDLE_INVALID', 'VM', self.disks(self.vm())['0']],
                            'VM.get_name_label', self.disks(self.vm())['0'])

    def test_maps_and_sets_change_by_member(self):
        vm = self.vm()
        self.value('VM.add_to_other_config', vm, 'key', 'value')
        self.assert_refused(['MAP_DUPLICATE_KEY', 'VM', 'other_config', vm, 'key'],
                            'VM.add_to_other_config', vm, 'key', 'again')
        self.assertEqual('value', self.value('VM.get_other_config', vm)['key'])
        self.value('VM.remove_from_other_config', vm, 'key')
        self.value('VM.remove_from_other_config', vm, 'key')
        self.assertNotIn('key', self.value('VM.get_other_config', vm))
        self.value('VM.add_tags', vm, 'new')
        self.value('VM.remove_tags', vm, 'prod')
        self.assertEqual(['new'], self.value('VM.get_tags', vm))

    def test_setters_want_the_field_s_type(self):
        vm = self.vm()
        self.assert_refused(['FIELD_TYPE_ERROR', 'is_a_template'], 'VM.set_is_a_template', vm, 'x')
        self.assert_refused(['FIELD_TYPE_ERROR', 'name_label'], 'VM.set_name_label', vm, ['x'])
        self.assert_refused(['FIELD_TYPE_ERROR', 'name_label'], 'VM.snapshot', vm, 5)
        self.value('VM.set_VCPUs_max', vm, 4)
        self.assertEqual('4', self.value('VM.get_VCPUs_max', vm))

    def test_what_nobody_foresaw_is_an_internal_error(self):
        self.assertEqual('INTERNAL_ERROR',
                         self.x('VM.snapshot', self.vm(), 'x', 7)['ErrorDescription'][0])
        self.assertEqual([], self.pool.record('VM', self.vm())['snapshots'])

    def test_what_is_read_only_has_no_setter(self):
        self.assert_refused(['MESSAGE_METHOD_UNKNOWN', 'VM.set_uuid'], 'VM.set_uuid', self.vm(), '')

    def test_a_new_record_shares_nothing_that_changes(self):
        before = dict(TEMPLATES['VM']['other_config'])
        self.value('VM.add_to_other_config', self.vm(), 'only', 'here')
        self.assertEqual(before, TEMPLATES['VM']['other_config'])
        self.assertNotIn('only', self.value('VM.get_other_config', self.vm('busy')))

    def test_where(self):
        names = {record['name_label'] for record in self.value(
            'VM.get_all_records_where', 'field "is_a_template"="false" and '
            '(not field "is_control_domain" = "true")').values()}
        self.assertEqual({'box', 'busy'}, names)

    def test_where_knows_columns_refs_and_texts_of_all_kinds(self):
        vm = self.vm()
        for query in ('field "name__label" = "box"', 'field "_ref"="%s"' % vm,
                      'field "tags"="(\'prod\')" and true', '"box"=field "name__label"',
                      'field "HVM__shadow_multiplier"="1" and field "name__label"="box"',
                      'field "snapshot_time"="19700101T00:00:00Z" and field "VCPUs__max"="1"'
                      ' and field "ha_restart_priority"="restart"'):
            self.assertEqual([vm], list(self.value('VM.get_all_records_where', query)), query)

    def test_where_refuses_bad_grammar(self):
        for query in ('', 'field "uuid"', 'true and', '(true', 'TRUE', 'true true', '"a" = "b'):
            answer = self.x('VM.get_all_records_where', query)['ErrorDescription']
            self.assertEqual(['INVALID_VALUE', query], answer[:2])
        self.assert_refused(['INTERNAL_ERROR', 'missing field', 'name_label', ''],
                            'VM.get_all_records_where', 'field "name_label"="box"')

    def test_where_joins_from_the_left_and_not_takes_the_rest(self):
        for query, expected in (('true or true and false', False), ('false and true or true', True),
                                ('not false and false', True), ('not (false) or true', False),
                                ('(not true) or true', True), ('not not true', True)):
            self.assertEqual(expected, Query('VM', query).matches('ref', {}), query)
        with self.assertRaises(QueryError):
            Query('VM', 'and')


class Snapshots(Simulated):
    """VM.snapshot and VDI.snapshot: what is new, what is shared, what is refused."""

    description = TWO_DISKS

    def snapshot(self, name='box'):
        return self.pool.record('VM', self.value('VM.snapshot', self.vm(name), 'RESTORE_' + name))

    def test_fields_of_a_snapshot(self):
        self.value('VM.set_blocked_operations', self.vm(), {'destroy': 'mine'})
        snapshot, original = self.snapshot(), self.pool.record('VM', self.vm())
        expected = {
            'name_label': 'RESTORE_box', 'is_a_template': True, 'is_a_snapshot': True,
            'is_default_template': False, 'snapshot_of': self.vm(), 'power_state': 'Halted',
            'ha_always_run': False, 'ha_restart_priority': 'restart', 'tags': ['prod'],
            'blocked_operations': {}, 'domid': '-1', 'resident_on': NULL, 'snapshots': [],
            'name_description': 'a "box" & <more>', 'current_operations': {},
            'snapshot_info': {'power-state-at-snapshot': 'Halted',
                              'disk-snapshot-type': 'crash_consistent'},
            'allowed_operations': ['destroy', 'metadata_export', 'export', 'revert', 'copy',
                                   'clone'],
            'other_config': original['other_config']}
        self.assertEqual(expected, {field: snapshot[field] for field in expected})
        self.assertIn("('name__label' 'box')", snapshot['snapshot_metadata'])
        self.assertIn("('tags' '(\\'prod\\')')", snapshot['snapshot_metadata'])
        self.assertRegex(snapshot['snapshot_time'].value, r'^20\d{6}T\d\d:\d\d:\d\dZ$')

    def test_the_original_knows_its_snapshots(self):
        first, second = [self.value('VM.snapshot', self.vm(), 'x') for _ in range(2)]
        original = self.pool.record('VM', self.vm())
        self.assertEqual({first, second}, set(original['snapshots']))
        self.assertEqual(second, original['parent'])
        self.assertEqual(first, self.pool.record('VM', second)['parent'])

    def test_disks_are_snapshots_of_their_disks_and_have_an_owner(self):
        original, snapshot = self.vm(), self.snapshot()
        for vbd in map(lambda ref: self.pool.record('VBD', ref), snapshot['VBDs']):
            if vbd['type'] == 'CD':
                continue
            vdi = self.pool.record('VDI', vbd['VDI'])
            source = self.pool.record('VDI', self.disks(original)[vbd['userdevice']])
            self.assertEqual((True, self.disks(original)[vbd['userdevice']], source['name_label']),
                             (vdi['is_a_snapshot'], vdi['snapshot_of'], vdi['name_label']))
            self.assertEqual([vbd['VDI']], source['snapshots'])
            self.assertEqual({'owner': ''}, vbd['other_config'])
            self.assertFalse(vbd['currently_attached'])
            self.assertEqual(self.pool.content[vdi['snapshot_of']], self.pool.content[vbd['VDI']])

    def test_a_cd_stays_the_same_iso_and_an_empty_drive_empty(self):
        def drives(record):
            return [(vbd['VDI'], vbd['empty']) for vbd in map(
                lambda ref: self.pool.record('VBD', ref), record['VBDs']) if vbd['type'] == 'CD']
        iso = self.pool.call('VDI.get_by_name_label', 'tools.iso')[0]
        self.assertEqual([(iso, False)], drives(self.snapshot()))
        self.assertEqual([(NULL, True)], drives(self.snapshot('busy')))

    def test_mac_addresses_stay(self):
        def macs(record):
            return [self.pool.record('VIF', vif)['MAC'] for vif in record['VIFs']]
        self.assertEqual(macs(self.pool.record('VM', self.vm())), macs(self.snapshot()))

    def test_what_is_written_later_is_not_in_the_snapshot(self):
        disk = self.disks(self.vm())['0']
        copy = self.value('VDI.snapshot', disk)
        before = self.pool.content[copy].sha256()
        self.pool.content[disk].write(0, b'changed')
        self.assertEqual(before, self.pool.content[copy].sha256())
        self.assertNotEqual(before, self.pool.content[disk].sha256())

    def test_a_disk_can_be_left_out(self):
        disks = self.disks(self.vm())
        snapshot = self.value('VM.snapshot', self.vm(), 'x', [disks['1']])
        self.assertEqual(['0'], list(self.disks(snapshot)))

    def test_clone_has_addresses_of_its_own(self):
        clone = self.value('VM.clone', self.vm(), 'twin')
        record, original = self.pool.record('VM', clone), self.pool.record('VM', self.vm())
        self.assertEqual((False, False, NULL), (record['is_a_template'], record['is_a_snapshot'],
                                                record['snapshot_of']))
        self.assertNotEqual(original['other_config']['mac_seed'],
                            record['other_config']['mac_seed'])

    def test_checkpoint_is_suspended_with_its_memory(self):
        self.assert_refused(['VM_BAD_POWER_STATE', self.vm(), 'paused, suspended, running',
                             'halted'], 'VM.checkpoint', self.vm(), 'x')
        record = self.pool.record('VM', self.value('VM.checkpoint', self.vm('busy'), 'x'))
        self.assertEqual('Suspended', record['power_state'])
        self.assertEqual('suspend', self.pool.record('VDI', record['suspend_VDI'])['type'])

    def test_no_room_leaves_nothing(self):
        pool = pools.load({'vms': [{'name': 'box', 'disks': ['4 MiB', '4 MiB']}],
                           'srs': [{'name': 'tight', 'type': 'lvm', 'size': '13 MiB'}]})
        before = {cls: set(pool.tables[cls]) for cls in ('VM', 'VDI', 'VBD', 'VIF', 'task')}
        with self.refusal('SR_BACKEND_FAILURE_44', '', 'There is insufficient space', ''):
            pool.call('VM.snapshot', pool.call('VM.get_by_name_label', 'box')[0], 'x')
        self.assertEqual(before, {cls: set(pool.tables[cls]) for cls in before})
        sr = pool.call('SR.get_by_name_label', 'tight')[0]
        self.assertEqual(str(8 << 20), pool.record('SR', sr)['physical_utilisation'])

    def test_refusals(self):
        vm, snapshot = self.vm(), self.value('VM.snapshot', self.vm(), 'x')
        template = self.pool.call('VM.get_by_name_label', 'Other install media')[0]
        dom0 = next(ref for ref, record in self.pool.tables['VM'].items()
                    if record['is_control_domain'])
        self.assert_refused(['VM_IS_SNAPSHOT', snapshot, 'snapshot'], 'VM.snapshot', snapshot, 'y')
        self.assert_refused(['VM_IS_TEMPLATE', template, 'snapshot'], 'VM.snapshot', template, 'y')
        self.assert_refused(['OPERATION_NOT_ALLOWED',
                             'This operation is not allowed on a control domain'],
                            'VM.snapshot', dom0, 'y')
        self.value('VM.add_to_blocked_operations', vm, 'snapshot', 'no')
        self.assert_refused(['OPERATION_BLOCKED', vm, 'no'], 'VM.snapshot', vm, 'y')

    def test_a_disk_that_resets_at_boot_cannot_be_snapshot_with_its_vm(self):
        self.value('VDI.set_on_boot', self.disks(self.vm())['1'], 'reset')
        self.assert_refused(['VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION'],
                            'VM.snapshot', self.vm(), 'x')

    def test_an_iso_cannot_be_snapshot(self):
        iso = self.pool.call('VDI.get_by_name_label', 'tools.iso')[0]
        self.assert_refused(['SR_OPERATION_NOT_SUPPORTED', self.pool.record('VDI', iso)['SR']],
                            'VDI.snapshot', iso)


class LifeAndDeath(Simulated):
    """Making, starting and destroying things."""

    description = TWO_DISKS

    def test_destroying_a_snapshot_leaves_its_disks(self):
        snapshot = self.value('VM.snapshot', self.vm(), 'x')
        disks = set(self.disks(snapshot).values())
        self.value('VM.destroy', snapshot)
        self.assertLessEqual(disks, set(self.pool.tables['VDI']))
        self.assertEqual([[], []], [self.pool.record('VDI', disk)['VBDs'] for disk in disks])
        self.assertEqual([], self.pool.record('VM', self.vm())['snapshots'])
        for disk in disks:
            self.value('VDI.destroy', disk)
            self.assertNotIn(disk, self.pool.content)

    def test_destroying_leaves_no_vbd_vif_or_metrics(self):
        before = {cls: len(self.pool.tables[cls]) for cls in ('VBD', 'VIF', 'VM_metrics', 'task')}
        self.value('VM.destroy', self.value('VM.snapshot', self.vm(), 'x'))
        self.assertEqual(before, {cls: len(self.pool.tables[cls]) for cls in before})

    def test_snapshots_outlive_their_vm(self):
        vm, snapshot = self.vm(), self.value('VM.snapshot', self.vm(), 'x')
        self.value('VM.destroy', vm)
        self.assertEqual(vm, self.value('VM.get_snapshot_of', snapshot))

    def test_what_may_not_be_destroyed(self):
        dom0 = next(ref for ref, record in self.pool.tables['VM'].items()
                    if record['is_control_domain'])
        template = self.pool.call('VM.get_by_name_label', 'Other install media')[0]
        busy = self.vm('busy')
        self.assertEqual('OPERATION_NOT_ALLOWED',
                         self.x('VM.destroy', dom0)['ErrorDescription'][0])
        self.assert_refused(['VM_IS_TEMPLATE', template, 'destroy'], 'VM.destroy', template)
        self.assert_refused(['VM_BAD_POWER_STATE', busy, 'halted, suspended', 'running'],
                            'VM.destroy', busy)

    def test_an_attached_disk_may_not_be_destroyed(self):
        disk = self.disks(self.vm('busy'))['0']
        self.assert_refused(['VDI_IN_USE', disk, 'destroy'], 'VDI.destroy', disk)
        self.value('VM.hard_shutdown', self.vm('busy'))
        self.value('VDI.destroy', disk)
        self.assertEqual({}, self.disks(self.vm('busy')))

    def test_a_template_flag_comes_and_goes(self):
        snapshot = self.value('VM.snapshot', self.vm(), 'x')
        self.value('VM.set_is_a_template', snapshot, False)
        record = self.pool.record('VM', snapshot)
        self.assertEqual((False, True), (record['is_a_template'], record['is_a_snapshot']))
        self.assertNotEqual('19700101T00:00:00Z', self.pool.record(
            'VM_metrics', record['metrics'])['install_time'].value)
        self.assert_refused(['VM_IS_SNAPSHOT', snapshot, 'start'],
                            'VM.start', snapshot, False, False)
        self.assert_refused(['VM_BAD_POWER_STATE', self.vm('busy'), 'halted', 'running'],
                            'VM.set_is_a_template', self.vm('busy'), True)

    def test_ha_always_run_is_the_restart_priority(self):
        self.assertTrue(self.value('VM.get_ha_always_run', self.vm()))
        self.value('VM.set_ha_always_run', self.vm(), False)
        self.assertEqual('', self.value('VM.get_ha_restart_priority', self.vm()))

    def test_devices_have_names_once_a_vm_ran(self):
        def devices(name):
            return sorted(self.pool.record('VBD', vbd)['device']
                          for vbd in self.pool.record('VM', self.vm(name))['VBDs'])
        self.assertEqual(['xvda', 'xvdb', 'xvdd'], devices('box'))
        never = self.value('VM.clone', self.vm(), 'never')
        self.assertEqual(['', '', ''], devices('never'))
        self.value('VM.start', never, False, False)
        self.assertEqual(['xvda', 'xvdb', 'xvdd'], devices('never'))
        self.assertIn(never, self.pool.record('host', self.pool.master)['resident_VMs'])

    def test_power_moves(self):
        vm = self.vm('busy')
        for method, state in (('VM.suspend', 'Suspended'), ('VM.resume', 'Running'),
                              ('VM.pause', 'Paused'), ('VM.unpause', 'Running'),
                              ('VM.clean_shutdown', 'Halted'), ('VM.start', 'Running')):
            self.value(method, vm, *([False, False] if method in ('VM.start', 'VM.resume') else []))
            self.assertEqual(state, self.value('VM.get_power_state', vm))
        self.assertEqual(0, sum(vdi['type'] == 'suspend'
                                for vdi in self.pool.tables['VDI'].values()))

    def test_a_disk_that_is_attached_elsewhere_stops_a_start(self):
        disk = self.disks(self.vm('busy'))['0']
        self.value('VBD.create', {'VM': self.vm(), 'VDI': disk, 'userdevice': 'autodetect',
                                  'mode': 'RW', 'type': 'Disk', 'bootable': False, 'empty': False})
        self.assert_refused(['VDI_IN_USE', disk], 'VM.start', self.vm(), False, False)
        self.assertEqual('Halted', self.value('VM.get_power_state', self.vm()))

    def test_a_new_disk_and_its_vbd(self):
        sr = self.pool.call('SR.get_by_name_label', 'Local storage')[0]
        disk = self.value('VDI.create', {'SR': sr, 'virtual_size': str(5 << 20), 'type': 'user',
                                         'name_label': 'more', 'sharable': False})
        vbd = {'VM': self.vm(), 'VDI': disk, 'userdevice': '7', 'mode': 'RW', 'type': 'Disk'}
        ref = self.value('VBD.create', vbd)
        self.assertEqual(disk, self.disks(self.vm())['7'])
        self.assert_refused(['DEVICE_ALREADY_EXISTS', '7'], 'VBD.create', vbd)
        self.assertEqual(5 << 20, self.pool.content[disk].virtual_size)
        self.value('VBD.destroy', ref)
        self.assert_refused(['HANDLE_INVALID', 'SR', NULL], 'VDI.create', {'virtual_size': '1'})

    def new_vbd(self, device, vm='busy', kind='Disk'):
        """The record of a VBD with a new disk for a VM."""
        sr = self.pool.call('SR.get_by_name_label', 'Local storage')[0]
        return {'VM': self.vm(vm), 'userdevice': device, 'mode': 'RW', 'type': kind,
                'VDI': self.pool.call('VDI.create', {'SR': sr, 'virtual_size': '512'})}

    def test_a_device_that_is_no_number_and_no_name_of_a_disk_is_refused(self):
        for device in ('', 'zz', 'xvd', 'xvdq', 'xvdaa', 'XVDA', 'hdz', 'sdab', 'fdc', '1.5', '1 ',
                       '1\n', 'xvda1\n', '\u0661', 'sdap1', 'd1', '9' * 5000):
            self.assert_refused(['INVALID_DEVICE', device], 'VBD.create', self.new_vbd(device))
        self.assert_refused(['INVALID_DEVICE', '5'], 'VBD.create',
                            self.new_vbd('5', kind='Floppy'))

    def test_devices_get_the_names_of_linux(self):
        for device, name in (('autodetect', 'xvdb'), ('xvdc', 'xvdc'), ('hde', 'xvde'),
                             ('sda1', 'sda1'), ('fda', 'fda'), ('15', 'xvdp'), ('26', 'xvdaa'),
                             ('701', 'xvdzz'), ('702', 'xvdaaa')):
            vbd = self.value('VBD.create', self.new_vbd(device))
            self.value('VBD.plug', vbd)
            self.assertEqual(name, self.value('VBD.get_device', vbd), device)

    def test_two_names_of_one_device_are_one(self):
        for device in ('0', 'xvda', 'hda'):
            self.assert_refused(['DEVICE_ALREADY_EXISTS', device], 'VBD.create',
                                self.new_vbd(device))
        self.value('VBD.create', self.new_vbd('sda'))
        self.value('VBD.create', self.new_vbd('xvdb'))
        self.value('VBD.create', self.new_vbd('hdb'))
        self.assert_refused(['DEVICE_ALREADY_EXISTS', '1'], 'VBD.create', self.new_vbd('1'))

    def test_autodetect_takes_what_is_free_until_nothing_is(self):
        self.value('VBD.create', self.new_vbd('xvdb'))
        made = [self.pool.call('VBD.create', self.new_vbd('autodetect')) for _ in range(252)]
        devices = [self.pool.record('VBD', vbd)['userdevice'] for vbd in made]
        self.assertEqual(['2'] + [str(number) for number in range(4, 255)], devices)
        self.assert_refused(['INVALID_DEVICE', 'autodetect'], 'VBD.create',
                            self.new_vbd('autodetect'))
        for device in ('fda', 'fdb'):
            vbd = self.value('VBD.create', self.new_vbd('autodetect', kind='Floppy'))
            self.assertEqual(device, self.value('VBD.get_userdevice', vbd))
        self.assert_refused(['INVALID_DEVICE', 'autodetect'], 'VBD.create',
                            self.new_vbd('autodetect', kind='Floppy'))

    def test_a_device_that_there_cannot_be_is_refused_when_it_is_attached(self):
        for device in ('-1', '1048576', 'zz', '', 'sda-1'):
            vbd = self.value('VBD.create', self.new_vbd('7'))
            self.value('VBD.set_userdevice', vbd, device)
            self.assert_refused(['ILLEGAL_VBD_DEVICE', vbd, device], 'VBD.plug', vbd)
            self.assertFalse(self.value('VBD.get_currently_attached', vbd))
            self.value('VBD.destroy', vbd)
        vbd = self.value('VBD.create', self.new_vbd('-1', 'box'))
        self.assert_refused(['ILLEGAL_VBD_DEVICE', vbd, '-1'], 'VM.start', self.vm(), False, False)
        self.assertEqual('Halted', self.value('VM.get_power_state', self.vm()))
        self.assertFalse(any(self.pool.record('VBD', each)['currently_attached']
                             for each in self.pool.record('VM', self.vm())['VBDs']))

    def test_drives_open_and_close(self):
        iso = self.pool.call('VDI.get_by_name_label', 'tools.iso')[0]
        drive = next(vbd for vbd in self.pool.record('VM', self.vm('busy'))['VBDs']
                     if self.pool.record('VBD', vbd)['type'] == 'CD')
        self.assert_refused(['VBD_IS_EMPTY', drive], 'VBD.eject', drive)
        self.value('VBD.insert', drive, iso)
        self.assert_refused(['VBD_NOT_EMPTY', drive], 'VBD.insert', drive, iso)
        self.assertIn(drive, self.value('VDI.get_VBDs', iso))
        self.value('VBD.eject', drive)
        self.assertEqual((NULL, True), (self.value('VBD.get_VDI', drive),
                                        self.value('VBD.get_empty', drive)))
        self.assertNotIn(drive, self.value('VDI.get_VBDs', iso))

    def test_attached_vbds_stay_until_they_are_unplugged(self):
        vbd = next(vbd for vbd in self.pool.record('VM', self.vm('busy'))['VBDs']
                   if self.pool.record('VBD', vbd)['type'] == 'Disk')
        disk = self.value('VBD.get_VDI', vbd)
        self.assertEqual(['snapshot', 'clone'], self.value('VDI.get_allowed_operations', disk))
        self.assertEqual('OPERATION_NOT_ALLOWED',
                         self.x('VBD.destroy', vbd)['ErrorDescription'][0])
        self.assert_refused(['DEVICE_ALREADY_ATTACHED', vbd], 'VBD.plug', vbd)
        self.value('VBD.unplug', vbd)
        self.assert_refused(['DEVICE_ALREADY_DETACHED', vbd], 'VBD.unplug', vbd)
        self.assertIn('destroy', self.value('VDI.get_allowed_operations', disk))
        self.value('VBD.destroy', vbd)
        halted = self.pool.record('VM', self.vm())['VBDs'][0]
        self.assert_refused(['VM_BAD_POWER_STATE', self.vm(), 'running', 'halted'],
                            'VBD.plug', halted)

    def test_networks_and_vifs(self):
        network = self.value('network.create', {'name_label': 'lab', 'MTU': 9000})
        vif = self.value('VIF.create', {'VM': self.vm(), 'network': network, 'device': '5',
                                        'MAC': '', 'MTU': '9000'})
        self.assertRegex(self.value('VIF.get_MAC', vif), '^([0-9a-f]{2}:){5}[0-9a-f]{2}$')
        self.assertEqual([vif], self.value('network.get_VIFs', network))
        self.assert_refused(['NETWORK_CONTAINS_VIF', vif], 'network.destroy', network)
        self.value('VIF.destroy', vif)
        self.assertNotIn(vif, self.value('VM.get_VIFs', self.vm()))
        self.value('network.destroy', network)
        attached = self.value('VM.get_VIFs', self.vm('busy'))[0]
        self.assertEqual('OPERATION_NOT_ALLOWED',
                         self.x('VIF.destroy', attached)['ErrorDescription'][0])

    def test_a_snapshot_leaves_a_message(self):
        self.value('VM.snapshot', self.vm(), 'x')
        ref, = self.value('message.get_all')
        self.assertEqual(('VM_SNAPSHOTTED', '5', self.value('VM.get_uuid', self.vm())), (
            self.value('message.get_name', ref), self.value('message.get_priority', ref),
            self.value('message.get_obj_uuid', ref)))
        self.value('message.destroy', ref)
        self.assertEqual({}, self.value('message.get_all_records'))

    def test_an_asynchronous_call_is_a_task(self):
        task = self.value('Async.VM.snapshot', self.vm(), 'later')
        self.wait_until(lambda: self.value('task.get_status', task) == 'success')
        snapshot = self.pool.call('VM.get_by_name_label', 'later')[0]
        self.assertEqual('<value>%s</value>' % snapshot, self.value('task.get_result', task))
        failed = self.value('Async.VM.snapshot', snapshot, 'no')
        self.wait_until(lambda: self.value('task.get_status', failed) == 'failure')
        self.assertEqual(['VM_IS_SNAPSHOT', snapshot, 'snapshot'],
                         self.value('task.get_error_info', failed))


class Conflicts(Simulated):
    """Who waits for whom, and for how long."""

    def test_a_snapshot_waits_until_the_export_has_ended(self):
        with self.pool.export_vm(self.vm()) as stream:
            next(stream)
            outcome = self.background(self.value, 'VM.snapshot', self.vm(), 'during')
            self.wait_until(lambda: any(task['name_label'] == 'VM.snapshot'
                                        for task in list(self.pool.tables['task'].values())))
            self.assertEqual([], self.pool.call('VM.get_by_name_label', 'during'))
            for _ in stream:
                self.assertEqual([], outcome)
        self.wait_until(lambda: outcome)
        self.assertEqual(outcome, self.pool.call('VM.get_by_name_label', 'during'))

    def test_waiting_ends_with_an_error_that_names_the_operation(self):
        self.pool.lock_wait = 0
        for version, expected in (('26.1', ['VM', self.vm(), 'export']),
                                  ('1.249', ['VM.export', self.vm()])):
            self.pool.xapi_version = version
            with self.pool.export_vm(self.vm()) as stream:
                answer = self.x('VM.snapshot', self.vm(), 'during')['ErrorDescription']
                self.assertEqual(['OTHER_OPERATION_IN_PROGRESS'] + expected,
                                 answer[:1 + len(expected)])
                self.assertEqual(5 if version == '26.1' else 3, len(answer))
                for _ in stream:
                    continue

    def test_two_exports_go_side_by_side(self):
        with self.pool.export_vm(self.vm()) as one, self.pool.export_vm(self.vm()) as two:
            next(one)
            next(two)
            operations = self.pool.record('VM', self.vm())['current_operations']
            self.assertEqual(['export', 'export'], list(operations.values()))
            self.assertEqual(['export', 'copy', 'clone'],
                             self.value('VM.get_allowed_operations', self.vm()))
            self.assertEqual(len(b''.join(one)), len(b''.join(two)))
        self.assertEqual({}, self.pool.record('VM', self.vm())['current_operations'])

    def test_metadata_is_not_exported_beside_an_export(self):
        self.pool.lock_wait = 0
        with self.pool.export_vm(self.vm()) as stream:
            with self.refusal('OTHER_OPERATION_IN_PROGRESS'):
                with self.pool.export_vm(self.vm(), metadata=True):
                    self.fail('was let in')
            b''.join(stream)

    def test_a_disk_that_is_being_exported_cannot_be_destroyed_at_once_nor_later(self):
        disk = self.disks(self.vm())['0']
        with self.pool.export_vdi(disk) as stream:
            next(stream)
            self.assert_refused(['VDI_IN_USE', disk, 'destroy'], 'VDI.destroy', disk)
            b''.join(stream)
        self.value('VDI.destroy', disk)


class Transfers(Simulated):
    """Exports and imports: what they take, what they leave."""

    description = TWO_DISKS

    def sums(self, vm):
        return {device: self.pool.content[vdi].sha256()
                for device, vdi in self.disks(vm).items()}

    def test_what_was_exported_comes_back_with_the_same_bytes(self):
        for compress in ('none', 'gzip', 'zstd'):
            data = self.exported(self.vm(), compress=compress)
            vm, = self.pool.import_vm(io.BytesIO(data))
            self.assertEqual(self.sums(self.vm()), self.sums(vm))

    def test_an_import_is_a_new_vm(self):
        data = self.exported(self.vm())
        vm, = self.pool.import_vm(io.BytesIO(data))
        old, new = self.pool.record('VM', self.vm()), self.pool.record('VM', vm)
        self.assertNotEqual(old['uuid'], new['uuid'])
        self.assertNotEqual(old['other_config']['mac_seed'], new['other_config']['mac_seed'])
        macs = [[self.pool.record('VIF', vif)['MAC'] for vif in record['VIFs']]
                for record in (old, new)]
        self.assertNotEqual(*macs)
        for field in ('name_label', 'name_description', 'tags', 'memory_static_max', 'platform'):
            self.assertEqual(old[field], new[field])
        self.assertEqual(({}, 'Halted'), (new['current_operations'], new['power_state']))
        networks = [self.pool.record('VIF', vif)['network'] for vif in old['VIFs'] + new['VIFs']]
        self.assertEqual(1, len(set(networks)))

    def test_preserve_keeps_uuid_and_mac_but_not_beside_the_original(self):
        data, vm = self.exported(self.vm()), self.vm()
        old = dict(self.pool.record('VM', vm))
        mac = self.pool.record('VIF', old['VIFs'][0])['MAC']
        before = {cls: set(self.pool.tables[cls]) for cls in ('VM', 'VDI', 'VBD', 'network')}
        with self.refusal('VM_TO_IMPORT_IS_NOT_NEWER_VERSION', vm):
            self.pool.import_vm(io.BytesIO(data), preserve=True)
        twin = self.value('VM.copy', vm, 'twin', NULL)
        self.value('VM.destroy', vm)
        self.pool.put('VM', twin, other_config=old['other_config'])
        with self.refusal('DUPLICATE_MAC_SEED', old['other_config']['mac_seed']):
            self.pool.import_vm(io.BytesIO(data), preserve=True)
        self.assertEqual(before['network'], set(self.pool.tables['network']))
        self.pool.put('VM', twin, other_config={})
        new, = self.pool.import_vm(io.BytesIO(data), preserve=True)
        record = self.pool.record('VM', new)
        self.assertEqual((old['uuid'], mac), (record['uuid'], self.pool.record(
            'VIF', record['VIFs'][0])['MAC']))
        self.assertEqual(new, self.pool.ref_of('VM', old['uuid']))

    def test_a_failed_import_leaves_nothing(self):
        data = self.exported(self.vm())
        rotten = bytearray(data)
        rotten[len(data) // 2] ^= 1
        before = {cls: dict(rows) for cls, rows in self.pool.tables.items() if cls != 'SR'}
        for bad, code in ((data[:len(data) // 2], 'IMPORT_ERROR_PREMATURE_EOF'),
                          (bytes(rotten), 'IMPORT_ERROR'), (b'', 'IMPORT_ERROR_PREMATURE_EOF')):
            with self.refusal(code):
                self.pool.import_vm(io.BytesIO(bad))
            self.assertEqual(before, {cls: rows for cls, rows in self.pool.tables.items()
                                      if cls != 'SR'})

    def test_a_daemon_that_dies_in_an_import_leaves_what_there_is(self):
        data = self.exported(self.vm())

        class Dying(io.BytesIO):
            def read(reader, *size):
                if reader.tell() > len(data) // 2:
                    self.sim.down()
                return super().read(*size)
        with self.assertRaises(Down):
            self.pool.import_vm(Dying(data))
        self.sim.restart()
        half, = set(self.pool.call('VM.get_by_name_label', 'box')) - {self.vm()}
        record = self.pool.record('VM', half)
        self.assertEqual({}, record['current_operations'])
        self.assertIn('destroy', record['allowed_operations'])
        self.assertNotEqual(self.sums(self.vm()), self.sums(half))

    def test_an_archive_of_a_newer_toolstack_is_refused(self):
        data = self.exported(self.vm())
        self.pool.xapi_version = '25.33'
        with self.refusal('IMPORT_INCOMPATIBLE_VERSION'):
            self.pool.import_vm(io.BytesIO(data))

    def test_metadata_refers_to_disks_that_are_here(self):
        data = self.exported(self.vm('busy'), metadata=True)
        self.assertEqual([], self.pool.import_vm(io.BytesIO(data), metadata=True, dry_run=True))
        vm, = self.pool.import_vm(io.BytesIO(data), metadata=True)
        self.assertEqual(self.disks(self.vm('busy')), self.disks(vm))
        self.value('VM.hard_shutdown', self.vm('busy'))
        self.value('VDI.destroy', self.disks(vm)['0'])
        with self.refusal('VDI_LOCATION_MISSING'):
            self.pool.import_vm(io.BytesIO(data), metadata=True)

    def test_an_archive_of_a_real_xapi_is_taken(self):
        samples = os.path.join(DATA, 'samples')
        with open(os.path.join(samples, 'SHA256SUMS.images')) as file:
            recorded = sorted(line.split()[0] for line in file)
        for name in ('sample.xva.gz', 'sample.xva.zst')[:2 if shutil.which('zstd') else 1]:
            with open(os.path.join(samples, name), 'rb') as file:
                vm, = self.pool.import_vm(file)
            self.assertEqual(recorded, sorted(self.sums(vm).values()))
            self.assertEqual(recorded, sorted(
                archive.Image.sha256(self.pool.content[vdi]) for vdi in self.disks(
                    self.pool.import_vm(io.BytesIO(self.exported(vm)))[0]).values()))

    def test_an_iso_library_takes_no_disks(self):
        data = self.exported(self.vm())
        iso = self.pool.call('SR.get_by_name_label', 'ISOs')[0]
        before = dict(self.pool.tables['VDI'])
        with self.assertRaises(XapiError) as caught:
            self.pool.import_vm(io.BytesIO(data), sr=iso)
        self.assertEqual(['SR_OPERATION_NOT_SUPPORTED', iso], caught.exception.details)
        self.assertEqual(set(before), set(self.pool.tables['VDI']))

    def test_another_pool_gets_the_network_and_an_empty_drive(self):
        data = self.exported(self.vm())
        other = pools.load({'networks': ['elsewhere']})
        other.tables['network'][next(iter(other.tables['network']))]['bridge'] = 'xenbr7'
        vm, = other.import_vm(io.BytesIO(data))
        network, = [other.record('VIF', vif)['network'] for vif in other.record('VM', vm)['VIFs']]
        self.assertEqual(pools.NETWORK, other.record('network', network)['name_label'])
        drive, = [record for record in map(lambda ref: other.record('VBD', ref),
                                           other.record('VM', vm)['VBDs'])
                  if record['type'] == 'CD']
        self.assertEqual((NULL, True), (drive['VDI'], drive['empty']))

    def test_force_replaces_a_halted_vm_of_the_same_uuid(self):
        data, old = self.exported(self.vm()), self.vm()
        self.value('VM.start', old, False, False)
        with self.refusal('VM_BAD_POWER_STATE', old, 'halted', 'running'):
            self.pool.import_vm(io.BytesIO(data), preserve=True, force=True)
        self.value('VM.hard_shutdown', old)
        new, = self.pool.import_vm(io.BytesIO(data), preserve=True, force=True)
        self.assertEqual([new], self.pool.call('VM.get_by_name_label', 'box'))

    def test_no_room_for_an_import_leaves_nothing(self):
        data = self.exported(self.vm())
        tight = pools.load({'srs': [{'name': 'tight', 'type': 'lvm', 'size': '3500 KiB'}]})
        before = {cls: dict(rows) for cls, rows in tight.tables.items()}
        with self.refusal('SR_BACKEND_FAILURE_44'):
            tight.import_vm(io.BytesIO(data))
        self.assertEqual(before, tight.tables)

    def test_a_running_vm_is_refused_before_any_byte(self):
        busy = self.vm('busy')
        with self.refusal('VM_BAD_POWER_STATE', busy, 'halted, suspended', 'running'):
            with self.pool.export_vm(busy):
                self.fail('was let in')
        self.assertEqual({}, self.pool.tables['task'])

    def test_a_disk_in_use_fails_after_the_description(self):
        disk = self.disks(self.vm())['0']
        dom0 = self.pool.record('host', self.pool.master)['control_domain']
        vbd = self.value('VBD.create', {'VM': dom0, 'VDI': disk, 'userdevice': '0', 'mode': 'RW',
                                        'type': 'Disk'})
        self.value('VBD.plug', vbd)
        pieces = []
        with self.refusal('VDI_IN_USE', disk):
            with self.pool.export_vm(self.vm()) as stream:
                pieces.extend(stream)
        self.assertEqual([], pieces[1:])
        with self.refusal('VDI_IN_USE', disk), self.pool.export_vdi(disk) as stream:
            next(stream)

    def test_images_of_a_disk(self):
        disk = self.disks(self.vm())['1']
        with self.pool.export_vdi(disk, 'RAW') as stream:
            raw = b''.join(stream)
        with self.pool.export_vdi(disk, 'vhd') as stream:
            vhd = b''.join(stream)
        self.assertEqual(1500 * 512, len(raw))
        self.assertEqual(self.pool.content[disk], archive.read_vhd(io.BytesIO(vhd)))
        for format, data in (('raw', raw), ('vhd', vhd)):
            sr = self.pool.record('VDI', disk)['SR']
            copy = self.value('VDI.create', {'SR': sr, 'virtual_size': str(1500 * 512)})
            self.pool.import_vdi(copy, io.BytesIO(data), format)
            self.assertEqual(self.pool.content[disk], self.pool.content[copy])
        with self.refusal('INTERNAL_ERROR', 'Unknown format tgz'):
            with self.pool.export_vdi(disk, 'tgz'):
                self.fail('was let in')

    def test_too_large_an_image_is_refused(self):
        disks = self.disks(self.vm())
        with self.pool.export_vdi(disks['0']) as stream:
            data = b''.join(stream)
        before = self.pool.content[disks['1']].sha256()
        with self.refusal('VDI_IO_ERROR'):
            self.pool.import_vdi(disks['1'], io.BytesIO(data))
        self.assertEqual(before, self.pool.content[disks['1']].sha256())

    def test_a_vhd_may_be_smaller_than_its_disk_but_not_larger(self):
        disks = self.disks(self.vm())
        small = b''.join(archive.vhd_stream(self.pool.content[disks['1']]))
        large = b''.join(archive.vhd_stream(self.pool.content[disks['0']]))
        with self.refusal('VDI_IO_ERROR'):
            self.pool.import_vdi(disks['1'], io.BytesIO(large), 'vhd')
        self.pool.import_vdi(disks['0'], io.BytesIO(small), 'vhd')
        self.assertEqual(self.pool.content[disks['1']].read(0, 1500 * 512),
                         self.pool.content[disks['0']].read(0, 1500 * 512))
        self.assertEqual(3 << 20, self.pool.content[disks['0']].virtual_size)

    def test_keep_alive_members_do_not_change_what_is_read(self):
        plain = self.exported(self.vm())
        self.pool.keep_alive_chunks = (1,)
        data = self.exported(self.vm())
        self.assertGreater(len(data), len(plain))
        vm, = self.pool.import_vm(io.BytesIO(data))
        self.assertEqual(self.sums(self.vm()), self.sums(vm))

    def test_a_running_task_that_is_destroyed_goes_when_it_ends(self):
        task = self.pool.make_task('Export of VM')
        with self.pool.export_vm(self.vm(), task=task) as stream:
            next(stream)
            self.value('task.destroy', task)
            self.assertEqual('pending', self.value('task.get_status', task))
            b''.join(stream)
        self.assert_refused(['HANDLE_INVALID', 'task', task], 'task.get_status', task)

    def test_a_task_follows_the_export(self):
        task = self.pool.make_task('Export of VM', 'whose')
        self.assertEqual(-1.0, self.value('task.get_progress', task))
        self.pool.progress_interval = 0
        with self.pool.export_vm(self.vm(), task=task) as stream:
            next(stream)
            self.assertEqual({task: 'export'}, self.value('VM.get_current_operations', self.vm()))
            seen = [self.value('task.get_progress', task)]
            for _ in stream:
                seen.append(self.pool.record('task', task)['progress'])
        self.assertEqual((0.0, sorted(seen)), (seen[0], seen))
        self.assertEqual(('success', 1.0), (self.value('task.get_status', task),
                                            self.value('task.get_progress', task)))

    def test_own_tasks_are_named_by_the_version_and_go(self):
        uuid_ = self.value('VM.get_uuid', self.vm())
        for version, expected in (('26.1', ('Export of VM', uuid_)),
                                  ('1.249', ('Export of VM: ' + uuid_, ''))):
            self.pool.xapi_version = version
            with self.pool.export_vm(self.vm()) as stream:
                task, = self.value('task.get_all_records').values()
                self.assertEqual(expected, (task['name_label'], task['name_description']))
                b''.join(stream)
            self.assertEqual({}, self.pool.tables['task'])

    def test_a_cancelled_export_ends(self):
        self.pool.progress_interval = 0
        task = self.pool.make_task('Export of VM')
        with self.refusal('TASK_CANCELLED', task):
            with self.pool.export_vm(self.vm(), task=task) as stream:
                next(stream)
                self.value('task.cancel', task)
                b''.join(stream)
        self.assertEqual('cancelled', self.value('task.get_status', task))
        self.assert_released()

    def test_a_client_that_leaves_makes_the_task_fail(self):
        for leave in (lambda stream: None, self.break_off):
            task = self.pool.make_task('Export of VM')
            with self.assertRaises(OSError), self.pool.export_vm(self.vm(), task=task) as stream:
                next(stream)
                next(stream)
                self.assertEqual(2, sum(vbd['other_config'] == {'task_id': task}
                                        for vbd in self.pool.tables['VBD'].values()))
                leave(stream)
            self.assertEqual(('failure', 'CLIENT_ERROR'), (
                self.value('task.get_status', task), self.value('task.get_error_info', task)[0]))
            self.assert_released()

    @staticmethod
    def break_off(stream):
        raise ConnectionResetError('gone')

    def assert_released(self):
        dom0 = self.pool.record('host', self.pool.master)['control_domain']
        self.assertEqual([], self.pool.record('VM', dom0)['VBDs'])
        self.assertEqual({}, self.pool.record('VM', self.vm())['current_operations'])

    def test_the_database_dump_has_every_table_and_value(self):
        root = ElementTree.fromstring(self.pool.dump_database())
        with open(os.path.join(DATA, 'simpool', 'columns.json')) as file:
            recorded = json.load(file)
        self.assertEqual(list(recorded), [table.get('name') for table in root.iter('table')])
        rows = {row.get('_ref'): row for row in root.iter('row')}
        row = rows[self.vm()]
        self.assertEqual('a%."box"%.&%.<more>', row.get('name__description'))
        self.assertEqual("('prod')", row.get('tags'))
        self.assertEqual("(('owner'%.''))", rows[self.pool.record('VM', self.vm())['VBDs'][-1]]
                         .get('other_config'))


class FaultsOfTheDoor(Simulated):
    """Everything that can be made to go wrong in an API call."""

    def fault(self, do, name='VM.get_all', **details):
        self.pool.faults.add(name, do, **details)

    def test_refuse(self):
        self.fault('refuse', error=['SR_BACKEND_FAILURE_46', '', 'not available', ''])
        self.assert_refused(['SR_BACKEND_FAILURE_46', '', 'not available', ''], 'VM.get_all')
        self.assertIn(self.vm(), self.value('VM.get_all'))

    def test_print_answers_something_else_and_does_nothing(self):
        self.fault('print', 'VM.destroy', value='ok')
        self.assertEqual('ok', self.value('VM.destroy', self.vm()))
        self.fault('print', body=b'not even XML')
        with self.assertRaises(Exception) as caught:
            self.x('VM.get_all')
        self.assertEqual('ExpatError', type(caught.exception).__name__)

    def test_die_cuts_the_answer(self):
        session = self.pool.login('root', 'password')
        whole = post(request('VM.get_all', session))
        for after in (0, 7, 300):
            self.fault('die', after=after)
            with connect(self.sim.url) as client:
                client.sendall(whole)
                data = client.makefile('rb').read()
            self.assertEqual(after, len(data))

    def test_hang_lasts_until_the_client_leaves(self):
        self.fault('hang')
        session = self.pool.login('root', 'password')
        before = threading.active_count()
        client = connect(self.sim.url)
        client.sendall(post(request('VM.get_all', session)))
        self.wait_until(lambda: self.sim.calls('xapi'))
        client.settimeout(0.05)
        with self.assertRaises(socket.timeout):
            client.recv(1)
        client.close()
        self.wait_until(lambda: threading.active_count() == before)

    def test_hang_ends_with_the_pool(self):
        self.fault('hang')
        session = self.pool.login('root', 'password')
        outcome = self.background(self.raw, 'VM.get_all', session)
        self.wait_until(lambda: self.sim.calls('xapi'))
        self.sim.stop()
        self.wait_until(lambda: outcome)
        self.assertIsInstance(outcome[0], (OSError, xmlrpc.client.Error))

    def test_slow_waits_and_trickles(self):
        self.fault('slow', seconds=0.05, rate=4000)
        began = time.monotonic()
        self.assertIn(self.vm(), self.value('VM.get_all'))
        self.assertGreater(time.monotonic() - began, 0.1)

    def test_down_stops_before_the_work(self):
        self.x('VM.get_all')
        self.fault('down', 'VM.snapshot')
        with self.assertRaises((OSError, xmlrpc.client.Error)):
            self.x('VM.snapshot', self.vm(), 'x')
        with self.assertRaises(OSError):
            self.raw('session.logout', 'x')
        with self.assertRaises(Down):
            self.pool.call('VM.get_all')
        self.sim.restart()
        self.assertEqual([], self.pool.call('VM.get_by_name_label', 'x'))

    def test_down_after_has_done_the_work(self):
        self.x('VM.get_all')
        self.fault('down-after', 'VM.snapshot')
        with self.assertRaises((OSError, xmlrpc.client.Error)):
            self.x('VM.snapshot', self.vm(), 'x')
        self.sim.restart()
        self.assertEqual(1, len(self.pool.call('VM.get_by_name_label', 'x')))
        self.assertEqual({}, self.pool.tables['session'])

    def test_going_down_ends_waiting_and_exporting(self):
        with self.assertRaises(Down), self.pool.export_vm(self.vm()) as stream:
            next(stream)
            outcome = self.background(self.pool.call, 'VM.snapshot', self.vm(), 'x')
            self.wait_until(lambda: len(self.pool.tables['task']) == 2)
            self.sim.down()
            b''.join(stream)
        self.wait_until(lambda: outcome)
        self.assertIsInstance(outcome[0], Down)
        self.sim.restart()
        self.assertEqual({}, self.pool.record('VM', self.vm())['current_operations'])

    def test_the_nth_call_and_so_many(self):
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

    def test_orders_that_make_no_sense(self):
        for order in (('VM.get_all', 'explode'), ('VM.get_all', 'hang', 0), ('x', 'refuse')):
            with self.assertRaises(ValueError):
                self.pool.faults.add(*order)
        with self.assertRaises(ValueError):
            self.pool.faults.add('x', 'die', afterwards=3)

    def test_the_journal_has_every_call_in_order(self):
        vm = self.vm()
        self.value('VM.get_name_label', vm)
        self.fault('refuse', error=['X'])
        self.x('VM.get_all')
        self.x('no.such', 1)
        self.assertEqual([('xapi', 'session.login_with_password', ('root', 'password')),
                          ('xapi', 'VM.get_name_label', (vm,)), ('xapi', 'VM.get_all', ()),
                          ('xapi', 'no.such', (1,))],
                         [(call.door, call.name, tuple(call.args)) for call in self.sim.calls()])
        self.assertEqual([], self.sim.calls('xe'))

    def test_latency_is_per_call(self):
        self.x('VM.get_all')
        self.pool.faults.latency = 0.03
        began = time.monotonic()
        for _ in range(3):
            self.x('VM.get_all')
        self.assertGreater(time.monotonic() - began, 0.09)


class HalfWay(Simulated):
    """The daemon dies, or is slow, in the midst of a call's work."""

    description = TWO_DISKS

    def die_in(self, method, *params, after):
        """Have the daemon die in the midst of a call, and start it again."""
        self.x('VM.get_all')
        self.pool.faults.add(method, 'down', after=after)
        with self.assertRaises((OSError, xmlrpc.client.Error)):
            self.x(method, *params)
        self.assertTrue(self.pool.is_down)
        self.sim.restart()
        self._session = None
        self.assertEqual({}, {ref: task for ref, task in self.pool.tables['task'].items()
                              if task['status'] == 'pending'})

    def counts(self):
        """How many VMs, VBDs and VDIs there are."""
        return [len(self.pool.tables[cls]) for cls in ('VM', 'VBD', 'VDI')]

    def orphans(self):
        """The snapshots of disks that no VBD holds."""
        return [record for record in self.pool.tables['VDI'].values()
                if record['is_a_snapshot'] and not record['VBDs']]

    def test_a_snapshot_of_which_the_disks_alone_were_made_leaves_them_without_a_vbd(self):
        before = self.counts()
        for after in range(3):
            self.die_in('VM.snapshot', self.vm(), 'half', after=after)
            self.assertEqual([before[0], before[1], before[2] + after], self.counts())
            found = self.orphans()
            self.assertEqual(sorted(['root', 'data'][:after]),
                             sorted(record['name_label'] for record in found))
            self.assertLessEqual({record['snapshot_of'] for record in found},
                                 set(self.disks(self.vm()).values()))
            self.assertEqual({}, self.pool.record('VM', self.vm())['current_operations'])
            for record in found:
                self.pool.call('VDI.destroy', self.pool.ref_of('VDI', record['uuid']))

    def test_a_snapshot_whose_record_was_just_made_has_no_vbds(self):
        self.die_in('VM.snapshot', self.vm(), 'half', after=3)
        made = self.pool.record('VM', self.vm('half'))
        self.assertEqual((True, self.vm(), []),
                         (made['is_a_snapshot'], made['snapshot_of'], made['VBDs']))
        self.assertEqual(2, len(self.orphans()))

    def test_with_fewer_steps_than_that_it_dies_when_all_is_done(self):
        self.die_in('VM.snapshot', self.vm(), 'whole', after=99)
        self.assertEqual(3, len(self.pool.record('VM', self.vm('whole'))['VBDs']))
        self.assertEqual([], self.orphans())

    def test_a_refusal_in_the_midst_of_a_snapshot_leaves_nothing(self):
        before = self.counts()
        for after in range(3):
            self.pool.faults.add('VM.snapshot', 'refuse', error=['SR_BACKEND_FAILURE_82', '',
                                                                 'Failed to snapshot VDI', ''],
                                 after=after)
            self.assertEqual('SR_BACKEND_FAILURE_82', self.x(
                'VM.snapshot', self.vm(), 'half')['ErrorDescription'][0])
            self.assertEqual(before, self.counts())

    def test_a_clone_can_be_left_half_way_too(self):
        before = self.counts()
        self.value('VM.hard_shutdown', self.vm('busy'))
        self.die_in('VM.clone', self.vm('busy'), 'half', after=1)
        self.assertEqual([before[0], before[1], before[2] + 1], self.counts())

    def test_a_destroyed_disk_is_gone_when_it_dies_after_it_and_here_when_before(self):
        for after, left in ((0, 1), (1, 0)):
            vdi = self.pool.call('VDI.snapshot', self.disks(self.vm())['0'])
            self.die_in('VDI.destroy', vdi, after=after)
            self.assertEqual(left, len([each for each in self.orphans()
                                        if self.pool.tables['VDI'].get(vdi) == each]))

    def test_an_operation_that_takes_its_time_is_seen_meanwhile(self):
        disk = self.disks(self.vm())['0']
        for cls, ref, arguments in (('VM', self.vm(), ['slow']), ('VDI', disk, [])):
            self.x('VM.get_all')
            before = len(self.pool.record(cls, ref)['snapshots'])
            self.pool.faults.add(cls + '.snapshot', 'slow', seconds=0.3, after=0)
            outcome = self.background(self.pool_call_by_wire, cls + '.snapshot', ref, *arguments)
            self.wait_until(lambda: self.sim.calls()[-1].name == cls + '.snapshot')
            self.wait_until(lambda: self.value(cls + '.get_current_operations', ref) or outcome)
            self.assertEqual(['snapshot'], list(self.value(
                cls + '.get_current_operations', ref).values()), outcome)
            self.assertEqual(before, len(self.value(cls + '.get_snapshots', ref)))
            self.wait_until(lambda: outcome)
            self.assertEqual(before + 1, len(self.value(cls + '.get_snapshots', ref)))
            self.assertEqual({}, self.value(cls + '.get_current_operations', ref))

    def pool_call_by_wire(self, method, *params):
        """A call in this test's session, from another thread."""
        return self.raw(method, self._session, *params)

    def test_what_a_dead_transfer_had_attached_is_detached_when_it_starts_again(self):
        with self.assertRaises(Down), self.pool.export_vm(self.vm()) as stream:
            next(stream)
            next(stream)
            held = [ref for ref, vbd in self.pool.tables['VBD'].items()
                    if 'task_id' in vbd['other_config']]
            self.assertEqual(2, len(held))
            self.assertEqual(['export'], list(
                self.pool.record('VM', self.vm())['current_operations'].values()))
            self.sim.restart()
            self.assertEqual([], [ref for ref in held if ref in self.pool.tables['VBD']])
            self.assertEqual({}, self.pool.record('VM', self.vm())['current_operations'])
            b''.join(stream)

    def test_the_snapshots_of_several_disks_are_found_with_one_query(self):
        vdis = list(self.disks(self.vm()).values())
        made = {self.pool.call('VDI.snapshot', vdi) for vdi in vdis + vdis[:1]}
        self.pool.call('VM.snapshot', self.vm('busy'), 'of another')
        of_these = ' or '.join('field "snapshot_of" = "%s"' % vdi for vdi in vdis)
        for query in (of_these, '(%s) and field "is_a_snapshot" = "true"' % of_these,
                      'field "is_a_snapshot"="true" and (%s)' % of_these):
            self.assertEqual(made, set(self.value('VDI.get_all_records_where', query)), query)
        self.assertEqual(len(made) + 1, len(self.value(
            'VDI.get_all_records_where', 'field "is_a_snapshot" = "true"')))


class Lifetimes(unittest.TestCase):
    """A pool comes and goes without a trace."""

    def test_nothing_is_left_when_it_stops(self):
        def files():
            return len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 0
        others, before = set(threading.enumerate()), files()
        sim = SimPool(SMALL)
        sim.pool.faults.add('*', 'hang')
        with connect(sim.url) as client, connect(sim.https_url) as tls:
            client.sendall(post(request('VM.get_all', 'x')))
            tls.sendall(b'never a handshake')
            while not sim.calls():
                time.sleep(0.005)
            sim.stop()
        deadline = time.monotonic() + PATIENCE
        while set(threading.enumerate()) - others and time.monotonic() < deadline:
            time.sleep(0.005)
        self.assertEqual(set(), set(threading.enumerate()) - others)
        self.assertLessEqual(files(), before)
        self.assertFalse(os.path.exists(sim.directory))
        sim.stop()

    def test_who_waited_when_it_died_does_not_wake_up_in_its_next_life(self):
        with SimPool(SMALL) as sim:
            vm = sim.pool.call('VM.get_by_name_label', 'box')[0]
            with self.assertRaises(Down), sim.pool.operation(vm, 'destroy'):
                outcome = []

                def snapshot():
                    try:
                        outcome.append(sim.pool.call('VM.snapshot', vm, 'too late'))
                    except Down as error:
                        outcome.append(error)
                thread = threading.Thread(target=snapshot)
                thread.start()
                while len(sim.pool.tables['task']) < 2:
                    time.sleep(0.005)
                with sim.pool.lock:
                    sim.pool.go_down()
                    sim.pool.come_up()
                thread.join(PATIENCE)
                raise Down('as the holder would see it')
            self.assertEqual([Down], [type(each) for each in outcome])
            self.assertEqual([], sim.pool.call('VM.get_by_name_label', 'too late'))

    def test_a_directory_of_somebody_else_stays(self):
        with tempfile.TemporaryDirectory() as directory:
            with SimPool(SMALL, directory=directory):
                self.assertIn('xapi.sock', os.listdir(directory))
            self.assertTrue(os.path.isdir(directory))
            self.assertNotIn('xapi.sock', os.listdir(directory))

    def test_the_environment_points_at_it(self):
        with SimPool(SMALL) as sim:
            environ = sim.environ(MORE='1')
            self.assertEqual((sim.xe, sim.url, '1'), (
                environ['VMBACKUP_XE'], environ['VMBACKUP_XAPI_URL'], environ['MORE']))
            self.assertEqual(os.path.dirname(sim.xe), environ['PATH'].split(os.pathsep)[0])
            self.assertTrue(os.access(sim.xe, os.X_OK))


class Descriptions(unittest.TestCase):
    """Pools from dicts and files."""

    def assert_bad(self, description, *words):
        with self.assertRaises(pools.DescriptionError) as caught:
            pools.from_description(description)
        for word in words:
            self.assertIn(word, str(caught.exception))

    def test_bad_descriptions_say_where(self):
        self.assert_bad([], 'the description')
        self.assert_bad({'vm': []}, "unknown key 'vm'")
        self.assert_bad({'vms': {}}, 'vms')
        self.assert_bad({'vms': [{}]}, 'vms[0]', 'name')
        self.assert_bad({'vms': [{'name': 'a'}, {'name': 'b', 'disk': 1}]}, 'vms[1]', "'disk'")
        self.assert_bad({'vms': [{'name': 'a', 'disks': ['8 megs']}]}, 'vms[0].disks[0].size')
        self.assert_bad({'vms': [{'name': 'a', 'disks': [{'fill': 2}]}]}, 'disks[0].fill')
        self.assert_bad({'vms': [{'name': 'a', 'cd': 'x.iso'}]}, 'vms[0].cd', "'x.iso'")
        self.assert_bad({'vms': [{'name': 'a', 'networks': ['x']}]}, 'vms[0].networks')
        self.assert_bad({'vms': [{'name': 'a', 'disks': [{'sr': 'x'}]}]}, 'disks[0].sr')
        self.assert_bad({'vms': [{'name': 'a', 'power_state': 'on'}]}, 'power_state')
        self.assert_bad({'srs': [{'name': 's', 'type': 'lvm', 'size': 4096}],
                         'vms': [{'name': 'a', 'disks': [8192]}]},
                        'vms[0]', 'SR_BACKEND_FAILURE_44')
        self.assert_bad({'xapi_version': 'new'}, 'xapi_version')

    def test_values_of_a_wrong_kind_are_refused_with_their_place(self):
        for key, value, *words in (
                ('disks', 5, ': a list'), ('tags', 5, ': a list'), ('tags', [5], '[0]: a text'),
                ('tags', 'prod', ': a list'), ('other_config', 5, ': an object'),
                ('other_config', {'a': 5}, '.a: a text'),
                ('blocked_operations', ['x'], ': an object'), ('uuid', 5, ': a uuid'),
                ('uuid', '', ': a uuid'), ('description', None, ': a text'),
                ('snapshots', 'abc', ': a list'), ('snapshots', [None], '[0]: a text'),
                ('vcpus', 'x', ': a whole number'), ('vcpus', True, ': a whole number'),
                ('vcpus', 0, ': a whole number'), ('count', -1, ': a whole number'),
                ('count', True, ': a whole number'), ('ran', 1, ': true or false'),
                ('template', 'no', ': true or false'), ('memory', 0, ': a size'),
                ('memory', None, ': a size'), ('host', 5, ': a text'),
                ('cd', 5, ': a text or null'), ('cd', ['x'], ': a text or null'),
                ('networks', [[]], '[0]: a text'),
                ('firmware', 'efi', ': bios or uefi'), ('power_state', [], ': Halted'),
                ('ha_restart_priority', 1, ': a text')):
            with self.subTest((key, value)):
                self.assert_bad({'vms': [{'name': 'a'}, {'name': 'b', key: value, 'count': 0}]
                                 if key != 'count' else [{'name': 'a'}, {'name': 'b', key: value}]},
                                'vms[1].' + key + words[0])

    def test_disks_of_a_wrong_kind_are_refused_with_their_place(self):
        for key, value, word in (
                ('name', 3, ': a text'), ('device', 'zz', ': a device'),
                ('device', -1, ': a device'), ('device', 1.5, ': a device'),
                ('device', True, ': a device'),
                ('device', 'autodetect', ': a device'), ('size', 0, ': a size'),
                ('size', '0 MiB', ': a size'), ('size', None, ': a size'),
                ('size', [1], ': a size'), ('size', True, ': a size'), ('sr', ['x'], ': a text'),
                ('fill', '1', ': a number'), ('fill', True, ': a number'), ('seed', 5, ': a text'),
                ('bootable', 'yes', ': true or false'), ('mode', 'rw', ': RO or RW'),
                ('on_boot', 'never', ': persist or reset'), ('owner', None, ': true or false'),
                ('sharable', 'x', ': true or false'), ('description', 7, ': a text')):
            with self.subTest((key, value)):
                self.assert_bad({'vms': [{'name': 'a', 'disks': ['1 MiB', {key: value}]}]},
                                'vms[0].disks[1].' + key + word)
        for disk in (0, None, [], True, '0'):
            self.assert_bad({'vms': [{'name': 'a', 'disks': [disk]}]},
                            'vms[0].disks[0].size: a size')

    def test_pools_hosts_and_srs_of_a_wrong_kind_are_refused_with_their_place(self):
        for description, words in (
                ({'name': 5}, 'name: a text'), ({'password': None}, 'password: a text'),
                ({'xapi_version': 26.1}, 'xapi_version: '), ({'product': 5}, 'product: a text'),
                ({'xapi_version': '26.1-beta'}, 'xapi_version: '),
                ({'hosts': 'xen1'}, 'hosts: a list'), ({'hosts': [5]}, 'hosts[0]: an object'),
                ({'hosts': [{'name': 'x', 'address': 5}]}, 'hosts[0].address: a text'),
                ({'networks': [5]}, 'networks[0]: a text'), ({'srs': ['x']}, 'srs[0]: an object'),
                ({'srs': [{'name': 's', 'type': 5}]}, 'srs[0].type: a text'),
                ({'srs': [{'name': 's', 'shared': 'yes'}]}, 'srs[0].shared: true or false'),
                ({'srs': [{'name': 's', 'content': []}]}, 'srs[0].content: a text'),
                ({'srs': [{'name': 's', 'isos': 'x.iso'}]}, 'srs[0].isos: a list'),
                ({'srs': [{'name': 's', 'size': -1}]}, 'srs[0].size: a size'),
                ({'srs': [{'name': None}]}, 'srs[0].name: a text'),
                ({'vms': [5]}, 'vms[0]: an object'),
                ({'vms': [{'name': 5}]}, 'vms[0].name: a text')):
            with self.subTest(description):
                self.assert_bad(description, words)

    def test_what_cannot_be_together_is_refused_with_its_place(self):
        one = '5a5a5a5a-0000-4000-8000-000000000001'
        self.assert_bad({'vms': [{'name': 'a', 'uuid': one}, {'name': 'b'},
                                 {'name': 'c', 'uuid': one}]}, 'vms[2].uuid', 'vms[0]')
        self.assert_bad({'vms': [{'name': 'a', 'uuid': one, 'count': 2}]}, 'vms[0].uuid')
        isos = {'name': 'ISOs', 'content': 'iso', 'isos': ['x.iso']}
        self.assert_bad({'srs': [{'name': 's'}, isos],
                         'vms': [{'name': 'a', 'disks': [{'sr': 'ISOs'}]}]},
                        'vms[0].disks[0].sr', "'ISOs'")
        self.assert_bad({'srs': [isos], 'vms': [{'name': 'a', 'disks': ['1 MiB']}]},
                        'vms[0].disks[0]', 'no SR')
        for second in ({'device': 'xvdb'}, {'device': 1}, {'device': 'hdb'}):
            self.assert_bad({'vms': [{'name': 'a', 'disks': [second, '1 MiB']}]},
                            'vms[0].disks[1].device')
        self.assert_bad({'vms': [{'name': 'a', 'host': 'x'}]}, 'vms[0].host', "'x'")
        pool = pools.load({'vms': [{'name': 'a', 'uuid': one, 'count': 1, 'cd': None, 'ran': True,
                                    'disks': [{'device': 'xvdd'}, {'device': 7}]}]})
        vm, = pool.call('VM.get_by_name_label', 'a')
        self.assertEqual(one, pool.record('VM', vm)['uuid'])
        self.assertEqual({'xvdd', '7', '0'}, {pool.record('VBD', vbd)['userdevice']
                                              for vbd in pool.record('VM', vm)['VBDs']})

    def test_every_key_that_is_told_is_known(self):
        told = set(re.findall(r'"(\w+)":', pools.__doc__))
        known = {key for keys in pools.KEYS.values() for key in keys}
        self.assertEqual(known, told - {'key', 'snapshot'})

    def test_a_description_is_checked_once_not_for_every_vm(self):
        with mock.patch.object(pools, '_check', wraps=pools._check) as check:
            numbers = []
            for count in (1, 50):
                check.reset_mock()
                pools.load({'vms': [{'name': 'vm{n}', 'count': count, 'disks': ['1 MiB']}]})
                numbers.append(check.call_count)
            self.assertEqual(numbers[0], numbers[1])

    def test_files(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, 'pool.json')
            for text, words in ((b'{\n"vms": [}', 'line 2'), (b'\xff', 'UTF-8'),
                                (b'{"vms": 3}', 'vms')):
                with open(path, 'wb') as file:
                    file.write(text)
                with self.assertRaises(pools.DescriptionError) as caught:
                    pools.load(path)
                self.assertIn(path, str(caught.exception))
                self.assertIn(words, str(caught.exception))
            with open(path, 'w') as file:
                json.dump(pools.DEMO, file)
            pool = pools.load(path)
            self.assertEqual('demo pool', pool.record('pool', pool.pool_ref)['name_label'])

    def test_sizes(self):
        self.assertEqual([0, 512, 8 << 20, 3 << 30, 1 << 40], [
            pools.size_of(text) for text in (0, '512 B', '8 MiB', '3GiB', '1 TiB')])

    def test_demo(self):
        pool = pools.load(pools.DEMO)
        vms = [vm for vm in pool.tables['VM'].values()
               if not (vm['is_a_template'] or vm['is_control_domain'])]
        self.assertEqual(['web', 'db', 'old-intranet', 'desktop', 'mail server', 'büro'],
                         [vm['name_label'] for vm in vms])
        self.assertEqual(3, sum(vm['power_state'] == 'Running' for vm in vms))
        self.assertEqual(2, len(pool.call('VM.get_by_name_label', 'web')))
        self.assertLess(sum(image.virtual_size for image in pool.content.values()), 100 << 20)

    def test_odd_names_are_kept_as_they_are(self):
        pool = pools.load(pools.odd())
        for name in pools.odd_names():
            self.assertEqual(1, len(pool.call('VM.get_by_name_label', name)), name)

    def test_many_at_once(self):
        pool = pools.load({'vms': [{'name': 'vm{n}', 'count': 300,
                                    'disks': [{'size': '1 GiB', 'fill': 0}]}]})
        self.assertEqual(1, len(pool.call('VM.get_by_name_label', 'vm299')))
        self.assertEqual(300, len({vm['uuid'] for vm in pool.tables['VM'].values()
                                   if vm['name_label'].startswith('vm')}))

    def test_the_same_description_gives_the_same_disks(self):
        sums = [sorted(image.sha256() for image in pools.load(TWO_DISKS).content.values())
                for _ in range(2)]
        self.assertEqual(*sums)


class Wrapper(unittest.TestCase):
    """python3 -m tests.simpool [--pool FILE] COMMAND..."""

    def start(self, *arguments, **options):
        return subprocess.Popen(
            (sys.executable, '-m', 'tests.simpool') + arguments, cwd=ROOT,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True, **options)

    def run_it(self, *arguments):
        """(exit status, stdout, stderr)"""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE * 3)
        return process.returncode, out, err

    def test_the_command_sees_the_pool_and_its_status_comes_back(self):
        script = ('import os, sys, xmlrpc.client as x; s = x.ServerProxy(os.environ["VMBACKUP_XAPI_'
                  'URL"]); i = s.session.login_with_password("root", "password")["Value"]; '
                  'print(len(s.VM.get_by_name_label(i, "web")["Value"])); sys.exit(7)')
        self.assertEqual((7, '2\n', ''), self.run_it(sys.executable, '-c', script))

    def test_people_find_xe_in_their_path(self):
        status, out, err = self.run_it('xe', 'vm-list', 'name-label=db', 'params=name-label',
                                       '--minimal')
        self.assertEqual((0, 'db\n', ''), (status, out, err))

    def test_a_pool_of_one_s_own(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, 'pool.json')
            with open(path, 'w') as file:
                json.dump({'vms': [{'name': 'mine'}]}, file)
            for arguments in (('--pool', path), ('--pool=' + path,)):
                status, out, _ = self.run_it(*(arguments + (
                    '--', 'xe', 'vm-list', 'is-control-domain=false', 'params=name-label',
                    '--minimal')))
                self.assertEqual((0, 'mine\n'), (status, out))
            with open(path, 'w') as file:
                file.write('{\n\n  oops}')
            self.assertEqual((2, '', 'simpool: %s, line 3: Expecting property name enclosed in '
                                     'double quotes\n' % path), self.run_it('--pool', path, 'true'))
            with open(path, 'w') as file:
                file.write('{"vms": [{"name": "a", "disks": 5}]}')
            self.assertEqual((2, '', 'simpool: %s: vms[0].disks: a list is needed, not 5\n' % path),
                             self.run_it('--pool', path, 'true'))

    def test_mistakes_are_one_line_and_status_2(self):
        for arguments in ((), ('--pool',), ('--pull', 'x', 'true'), ('--pool', '/no/such', 'true')):
            status, out, err = self.run_it(*arguments)
            self.assertEqual((2, '', 1), (status, out, err.count('\n')), err)
        self.assertEqual(127, self.run_it('/no/such/command')[0])

    def test_signals_reach_the_command_and_its_death_is_told(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            script = ('import os, signal, sys; signal.signal(%d, lambda *_: sys.exit(40 + %d)); '
                      'print("ready", flush=True); signal.pause()' % (number, number))
            process = self.start(sys.executable, '-c', script)
            self.assertEqual('ready\n', process.stdout.readline())
            process.send_signal(number)
            process.communicate(timeout=PATIENCE)
            self.assertEqual(40 + number, process.returncode)
        self.assertEqual(128 + signal.SIGKILL, self.run_it('sh', '-c', 'kill -9 $$')[0])

    def test_nothing_is_left_of_it(self):
        with tempfile.TemporaryDirectory() as directory:
            process = self.start('sh', '-c', 'ls "$TMPDIR"', env=dict(os.environ, TMPDIR=directory))
            out, _ = process.communicate(timeout=PATIENCE)
            self.assertRegex(out, '^simpool-')
            self.assertEqual([], os.listdir(directory))


@unittest.skipIf(SDK is None, "the SDK's XenAPI package is not installed")
class DrivenByTheSdk(unittest.TestCase):
    """The SDK's own XenAPI package, as it comes from PyPI, against the pool."""

    def setUp(self):
        directory = '/tmp/simpool-sdk-' + uuid.uuid4().hex[:8]     # its path must have no `_`
        os.mkdir(directory, 0o700)
        self.addCleanup(os.rmdir, directory)
        self.sim = SimPool(TWO_DISKS, directory=directory)
        self.addCleanup(self.clear, directory)

    def clear(self, directory):
        self.sim.stop()
        for parent, _, files in os.walk(directory, topdown=False):
            for name in files:
                os.unlink(os.path.join(parent, name))
            if parent != directory:
                os.rmdir(parent)

    def session(self, *args, **options):
        session = SDK.Session(*args, **options)
        self.addCleanup(session('close'))
        return session

    def test_a_session_from_login_to_logout(self):
        session = self.session(self.sim.url)
        session.xenapi.login_with_password('root', 'password', '1.0', 'tests')
        self.assertEqual('2.21', session.API_version)
        vm, = session.xenapi.VM.get_by_name_label('box')
        snapshot = session.xenapi.VM.snapshot(vm, 'api snap')
        record = session.xenapi.VM.get_record(snapshot)
        self.assertEqual((True, True, vm, 'Halted'), (
            record['is_a_template'], record['is_a_snapshot'], record['snapshot_of'],
            record['power_state']))
        self.assertIsInstance(record['snapshot_time'], xmlrpc.client.DateTime)
        self.assertEqual('', session.xenapi.VM.set_is_a_template(snapshot, False))
        self.assertEqual('', session.xenapi.VM.destroy(snapshot))
        session.xenapi.session.logout()
        self.assertEqual({}, self.sim.pool.tables['session'])

    def test_failures(self):
        session = self.session(self.sim.url)
        with self.assertRaises(SDK.Failure) as caught:
            session.xenapi.login_with_password('root', 'wrong')
        self.assertEqual(['SESSION_AUTHENTICATION_FAILED', 'root', 'Authentication failure'],
                         caught.exception.details)
        session.xenapi.login_with_password('root', 'password')
        for call, details in (
                (lambda x: x.VM.get_record('OpaqueRef:nonsense'),
                 ['HANDLE_INVALID', 'VM', 'OpaqueRef:nonsense']),
                (lambda x: x.nosuch.call(), ['MESSAGE_METHOD_UNKNOWN', 'nosuch.call']),
                (lambda x: x.VM.snapshot('vm'),
                 ['MESSAGE_PARAMETER_COUNT_MISMATCH', 'VM.snapshot', '2', '1'])):
            with self.assertRaises(SDK.Failure) as caught:
                call(session.xenapi)
            self.assertEqual(details, caught.exception.details)

    def test_it_logs_in_again_when_its_session_is_gone(self):
        session = self.session(self.sim.url)
        session.xenapi.login_with_password('root', 'password')
        before = session.handle
        self.sim.pool.logout(before)
        self.assertTrue(session.xenapi.VM.get_all())
        self.assertNotEqual(before, session.handle)

    def test_over_tls_and_over_the_unix_socket(self):
        session = self.session(self.sim.https_url, ignore_ssl=True)
        session.xenapi.login_with_password('root', 'password')
        self.assertTrue(session.xenapi.pool.get_all())
        path = self.sim.unix_url[len('unix:'):].replace('/', '_')
        local = self.session('http://%s/' % path, transport=SDK.UDSTransport())
        local.xenapi.login_with_password('root', '')
        self.assertTrue(local.xenapi.VM.get_all_records())


class DescribedFaults(unittest.TestCase):
    """Faults and latency can stand in a description."""

    def test_a_described_fault_meets_its_call(self):
        description = {'vms': [{'name': 'box', 'disks': ['1 MiB']}], 'faults': [
            {'at': 'vm-list', 'nth': 2, 'do': 'print', 'stdout': 'no', 'exit': 1}]}
        with SimPool(description) as sim:
            done = [subprocess.run([sim.xe, 'vm-list', '--minimal'], stdout=subprocess.PIPE)
                    for _ in range(3)]
        self.assertEqual([0, 1, 0], [each.returncode for each in done])
        self.assertEqual(b'no', done[1].stdout.strip())

    def test_latency_is_that_of_every_call(self):
        self.assertEqual(0.25, pools.load({'latency': 0.25}).faults.latency)

    def test_impossible_faults_are_refused_with_their_place(self):
        for fault in ({'at': 'vm-list', 'do': 'explode'}, {'at': 'vm-list', 'do': 'refuse'},
                      {'do': 'hang'}, {'at': 'vm-list', 'do': 'die', 'how': 'x'},
                      {'at': 'vm-list', 'do': 'slow', 'rate': 0}, 'vm-list'):
            with self.assertRaisesRegex(pools.DescriptionError, r'^faults\[0\]'):
                pools.load({'faults': [fault]})


if __name__ == '__main__':
    unittest.main()
