"""XenAPI.py: scripts of calls, played by ours and, where that is installed, by the SDK's, too.

Both have to give the same results, the same exceptions and the same requests, byte for byte but for
User-Agent and Accept-Encoding. Where ours deliberately does better, the script says so:
Fixed(ours, sdk).
"""

import contextlib
import copy
import errno
import gc
import gzip
import importlib.util
import os
import pickle
import shutil
import socket
import ssl
import sys
import tempfile
import threading
import time
import unittest
import warnings
import xmlrpc.client
from http.client import parse_headers
from typing import NamedTuple
from unittest import mock

import XenAPI

from tests import DATA

CERTIFICATE = os.path.join(DATA, 'selfsigned.pem')
OF_POOL = os.path.join(DATA, 'pool.pem')
CALM = dict.fromkeys(('TRACEPARENT', 'BAGGAGE', 'ORIGINATOR'), '')
PATIENCE = 30  # seconds: far more than an answer needs


def load_sdk():
    """The SDK's module, from its PyPI package, under another name; None if not installed."""
    for directory in sys.path:
        path = os.path.join(directory, 'XenAPI', 'XenAPI.py')
        if os.path.isfile(path):
            spec = importlib.util.spec_from_file_location('sdk_xenapi', path)
            sys.modules['sdk_xenapi'] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules['sdk_xenapi'])
            return sys.modules['sdk_xenapi']
    return None


SDK = load_sdk()


class Answer(NamedTuple):
    """What the server sends for one request, and what becomes of the connection after that, or
    how: by bytes ('drip', 'drip body'), without end ('flood')."""
    raw: bytes
    then: str = 'keep'  # or 'close', 'silence'


class Request(NamedTuple):
    connection: int  # 1 for the first that was made
    line: str
    headers: list
    body: bytes

    def __str__(self):
        """Method and parameters: a text as it is but for OpaqueRef:, None as -."""
        params, method = xmlrpc.client.loads(self.body)
        return ' '.join([method] + ['-' if each is None else str(each).replace('OpaqueRef:', '')
                                    for each in params])


class ScriptedServer:
    """Gives the n-th request the n-th answer of the script and keeps what it was sent.

    door: 'tcp', 'tls' (with the self-signed certificate; as the server `pool`, with the pool's: as
    a host's stunnel) or the path of a unix socket.
    """

    def __init__(self, door, script):
        self.requests = []
        self.door = door
        self._script = iter(script)
        self._connections = []
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if door == 'tls' else None
        if self._tls:
            self._tls.load_cert_chain(CERTIFICATE)
            self._of_pool = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._of_pool.load_cert_chain(OF_POOL)
            self._tls.set_servername_callback(self._choose)
        is_path = '/' in door
        self._listener = socket.socket(socket.AF_UNIX if is_path else socket.AF_INET)
        self._listener.bind(door if is_path else ('127.0.0.1', 0))
        self._listener.listen(8)
        self.address = (door.replace('/', '_') if is_path else
                        '127.0.0.1:%d' % self._listener.getsockname()[1])
        self.uri = '%s://%s' % ('https' if self._tls else 'http', self.address)
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_exc):
        for each in [self._listener] + self._connections:
            with contextlib.suppress(OSError):  # whose other end is gone already
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for each in [self._listener] + self._connections:
            each.close()
        if '/' in self.door:
            os.unlink(self.door)

    def _accept(self):
        """Serve one connection after another: that is how a session makes them."""
        with contextlib.suppress(OSError):  # stopped
            while True:
                self._connections.append(self._listener.accept()[0])
                with contextlib.suppress(OSError):  # the client does not like our certificate
                    if self._tls:
                        self._connections[-1] = self._tls.wrap_socket(
                            self._connections[-1], server_side=True)
                    self._serve(self._connections[-1])

    def _choose(self, connection, name, _context):
        if name == 'pool':
            connection.context = self._of_pool

    def _serve(self, connection):
        then = 'keep'
        with connection.makefile('rb') as incoming:
            while then == 'keep':
                line = incoming.readline().decode('ascii').rstrip('\r\n')
                if not line:
                    return
                headers = parse_headers(incoming)
                body = incoming.read(int(headers['Content-Length']))
                raw, then = next(self._script, http('', '599 Not in the script'))
                self.requests.append(Request(len(self._connections), line, headers.items(), body))
                at_once = {'drip': 0, 'drip body': raw.find(b'<')}.get(then, len(raw))
                connection.sendall(raw[:at_once])
                for byte in raw[at_once:]:
                    time.sleep(0.02)
                    connection.sendall(bytes([byte]))
                while then == 'flood':
                    connection.sendall(raw)
        if then == 'close':
            connection.shutdown(socket.SHUT_RDWR)


# What it answers

def http(body, status='200 OK', headers=(), then='keep'):
    """An HTTP response, with headers as xapi sends them."""
    lines = ['HTTP/1.1 ' + status, 'Connection: keep-alive', 'Cache-Control: no-cache, no-store',
             'Content-Type: text/xml', 'Content-Length: %d' % len(body.encode()), *headers]
    return Answer('\r\n'.join(lines + ['', body]).encode(), then)


def answer(value, **options):
    return http(xmlrpc.client.dumps((value,), methodresponse=True, allow_none=True), **options)


def success(value, **options):
    return answer({'Status': 'Success', 'Value': value}, **options)


def refusal(*details):
    return answer({'Status': 'Failure', 'ErrorDescription': list(details)})


# The scripts: {what: steps}. A step is an expression, in which X is the module and s the session;
# the repr of its value, or 'Kind: what an exception says', where ... stands for anything; then for
# each request that it sends its text and the answer.

class Fixed(NamedTuple):
    """A step on which ours differs from the SDK's on purpose, as the SDK has a bug there."""
    ours: str
    sdk: str
    asks_the_same: bool = True


def call(result, reply, *more, ask='a.b A'):
    return ('s.xenapi.a.b()', result, (ask, reply)) + more


def login(result, reply):
    return ("s.login_with_password('root', 'pw')", result, (IN, reply))


def odd(missing, value, more='', sdk=None):
    ours = 'Fault: <Fault 500: %r>' % ('Missing %s in response from server%s' % (missing, more))
    return call(Fixed(ours, sdk) if sdk else ours, answer(value))


IN, OUT, KNOWN = ('session.login_with_password root pw', 'session.logout A',
                  '(s.handle, s.last_login_method, s.last_login_params)')
IS_A, IS_B, EXPIRED = success('OpaqueRef:A'), success('OpaqueRef:B'), refusal('SESSION_INVALID', 1)
CUT, SILENT = Answer(b'', 'close'), Answer(b'', 'silence')
LOGIN, LOGOUT = login('None', IS_A), ('s.xenapi.session.logout()', 'None', (OUT, success('')))
NOBODY, SOMEBODY = ((KNOWN, "(None, None, None)"), (
    KNOWN, "('OpaqueRef:A', 'login_with_password', ('root', 'pw'))"))
SLAVE, REFUSED = refusal('HOST_IS_SLAVE', '192.0.2.1'), "Failure: ['HOST_IS_SLAVE', '192.0.2.1']"
MUST, BREAKS = "Fault: <Fault 401: 'You must log in'>", Fixed('None', 'AttributeError: ...')
MAGIC = Fixed('AttributeError: ...', 'NotImplementedError: ...')

SCRIPTS = {
    'a login gives None, and its session goes before every call': [
        NOBODY, LOGIN, SOMEBODY,
        ("s.xenapi.VM.get_uuid('r')", "'u'", ('VM.get_uuid A r', success('u'))),
        ("s.xenapi.login_with_password('root', 'é', X.API_VERSION_1_2, 'VmBackup')", 'None',
         ('session.login_with_password root é 1.2 VmBackup', IS_B)),
        ("s.xenapi.login.magic('x')", 'None', ('session.login.magic x', IS_B)),
        ('s.last_login_method', "'login.magic'"), call("'v'", success('v'), ask='a.b B'),
        ('s.xenapi.session.login_with_password()', "Failure: ['ODD']",
         ('session.login_with_password B', refusal('ODD')))],
    'a login that fails changes nothing': [
        login(REFUSED, SLAVE), NOBODY,
        login("Fault: <Fault 500: 'Received SESSION_INVALID when logging in'>", EXPIRED), LOGIN,
        ("s.login('x')", "Fault: <Fault 500: 'Missing Value in response from server'>",
         ('session.login x', answer({'Status': 'Success'}))), SOMEBODY],
    'an expired session is renewed, and the call repeated': [
        LOGIN, call("'v'", EXPIRED, (IN, IS_B), ('a.b B', success('v'))),
        call(REFUSED, EXPIRED, (IN, SLAVE), ask='a.b B'), ('s.handle', "'OpaqueRef:B'")],
    'a session that expires again and again is a fault after the third time': [
        LOGIN, call("'v'", EXPIRED, (IN, IS_A), ('a.b A', EXPIRED), (IN, IS_A),
                    ('a.b A', success('v'))),
        call("Fault: <Fault 500: 'Tried 3 times to get a valid session, but failed'>", EXPIRED,
             (IN, IS_A), ('a.b A', EXPIRED), (IN, IS_A), ('a.b A', EXPIRED), (IN, IS_A))],
    'without a login, and after a logout, an unknown session is not renewed': [
        call(MUST, EXPIRED, ask='a.b -'), call("'2'", success('2'), ask='a.b -'),
        LOGIN, LOGOUT, NOBODY, call(MUST, EXPIRED, ask='a.b -')],
    'a logout forgets the session, whatever comes of it': [
        LOGIN, ("s.xenapi.logout('ignored')", 'None', (OUT, EXPIRED)), NOBODY,
        LOGIN, ('s.logout()', "Failure: ['ERROR']", (OUT, refusal('ERROR'))), NOBODY,
        LOGIN, ('s.logout()', 'ProtocolError: <ProtocolError for ADDRESS/RPC2: 503 No>',
                (OUT, http('', '503 No'))), NOBODY],
    'a logout where nobody logged in does nothing, or ends what was handed over': [
        ('s.logout()', BREAKS), LOGIN, LOGOUT, ('s.xenapi.session.logout()', BREAKS),
        ("setattr(s, '_session', 'OpaqueRef:A')", 'None'), ('s.handle', "'OpaqueRef:A'"),
        ('s.logout()', BREAKS._replace(asks_the_same=False), (OUT, success(''))), NOBODY],
    'the emergency login of one host is renewed and logged out as such': [
        ("s.slave_local_login('x')", 'None', ('session.slave_local_login x', IS_A)),
        call("'v'", EXPIRED, ('session.slave_local_login x', IS_B), ('a.b B', success('v'))),
        ('s.logout()', 'None', ('session.local_logout B', success(''))),
        ("s.xenapi.slave_local_login('y')", Fixed('None', 'TypeError: ...', False),
         ('session.slave_local_login y', IS_A))],

    'a refusal is a failure with its details': [
        LOGIN, call(REFUSED, SLAVE),
        call('Failure: X', answer({'Status': 'Failure', 'ErrorDescription': 'X'})),
        call("Failure: ['ODD', 7, None]", answer({'ErrorDescription': ['ODD', 7, None],
                                                  'Status': None, 'Value': 'v'}))],
    'an answer that makes no sense is a fault': [
        LOGIN, odd('Value', {'Status': 'Success'}), odd('ErrorDescription', {'Status': 'Failure'}),
        odd('ErrorDescription', {'Status': 'success', 'Value': 'v'}),
        odd('Status', 'no Status', 'no Status'), odd('Status', 'Größe', 'Größe')] + [
        odd('Status', value, value, sdk='TypeError: ...')
        for value in (None, 7, {}, {'Value': 'v'}, ['Status'])] + [
        odd('ErrorDescription', {'Status': 'x', 'ErrorDescription': value}, sdk=kind + ': ...')
        for value, kind in (([], 'IndexError'), ('', 'IndexError'), (None, 'TypeError'),
                            (5, 'TypeError'), ({'code': 'X'}, 'KeyError'))],
    'HTTP errors, broken XML and faults are those of the standard library': [
        LOGIN, call(Fixed(*['ProtocolError: <ProtocolError for ADDRESS/RPC2: 500 X>'] * 2, False),
                    http('', '500 X')),             # what is left of it is not read
        call("Fault: <Fault 3: 'fie'>", http(xmlrpc.client.dumps(xmlrpc.client.Fault(3, 'fie')))),
        call('ExpatError: ...', Answer(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<x', 'close')),
        call("'v'", success('v'))],
    'parameters of every type arrive, but what XML-RPC cannot say is not sent': [
        ("s.xenapi.a.b('r', '名 \U0001f600 <&>')", "{'名': ['é', 'a\\tb\\n']}",
         ('a.b - r 名 \U0001f600 <&>', success({'名': ['é', 'a\tb\n']}))),
        ("s.xenapi.a.b(None, True, 0.5, -2**31, 2**31 - 1, ['x', []], {'k': {'': None}}, ())", "''",
         ("a.b - - True 0.5 -2147483648 2147483647 ['x', []] {'k': {'': None}} []", success(''))),
        ('s.xenapi.a.b(2**31)', 'OverflowError: int exceeds XML-RPC limits'),
        ('s.logout(x=1)', 'TypeError: ...'), ('s.xenapi.a.b(x=1)', 'TypeError: ...'),
        ('s.login(x=1)', 'TypeError: ...')],

    'any name can be dispatched': [
        ("getattr(s.xenapi.event, 'from')([], 'x')", "'1'", ('event.from - [] x', success('1'))),
        ("s.xenapi_request('VM.logout', ('y',))", "'3'", ('VM.logout - y', success('3')))],
    "methods named like the session's own attributes are requests": [
        ('s.xenapi.%s()' % name, Fixed("'v'", error + ': ...', False), (name + ' -', success('v')))
        for name, error in (('handle', 'TypeError'), ('transport', 'TypeError'),
                            ('xenapi', 'AttributeError'))],
    'other names on the session are raw methods, but for magic ones': [
        ("s.a.b('x')", "{'Status': 'Success', 'Value': 'v'}", ('a.b x', success('v'))),
        ("s.a.b('y')['Status']", "'Failure'", ('a.b y', EXPIRED)),      # and no new login
        ('s.__foo__(1, a=2)', MAGIC), ('s.xenapi.__foo__()', MAGIC),
        ('len(s)', 'TypeError: ...'), ('(bool(s), s == s, s == 1)', '(True, True, False)')],
    'dispatchers and sessions show their name': [
        ('s.xenapi', '<XenAPI._Dispatcher>'), ('s.xenapi.VM', '<XenAPI._Dispatcher for VM>'),
        ("X.Session('https://host:8443')", '<Session for host:8443/RPC2>')],
    'a failure is its details, and can be printed, copied and pickled': [
        ("X.Failure(['CODE', 'é']).details", "['CODE', 'é']"), ('str(X.Failure(None))', "'None'"),
        ('X.Failure()', 'TypeError: ...'), ("copy.copy(X.Failure(['A'])).args", "(['A'],)"),
        ("pickle.loads(pickle.dumps(X.Failure(['A']))).details", "['A']"),
        ("X.Failure(details=['A']).args", Fixed("(['A'],)", '()'))],
}


class Scripts(unittest.TestCase):
    """Ours does what a script says; so does the SDK's, and nothing can tell the two apart."""

    def play(self, what, steps, session='X.Session(uri)', door='tcp', environ=CALM):
        """Play steps with both modules; give the requests of ours, without User-Agent, address."""
        with self.subTest(what):
            played = [self.play_with(module, column, steps, session, door, environ)
                      for column, module in enumerate((XenAPI, SDK)) if module]
            if all(wanted[2:] != (False,) for _, wanted, *_ in steps):
                self.assertEqual(played[0], played[-1])
            return played[0]

    def play_with(self, module, column, steps, session, door, environ):
        exchanges = [exchange for _, _, *some in steps for exchange in some]
        with mock.patch.dict(os.environ, environ), ScriptedServer(
                door, [reply for _, reply in exchanges]) as server:
            names = dict(X=module, uri=server.uri, copy=copy, pickle=pickle, os=os, xmlrpc=xmlrpc,
                         transport=mock.Mock(**{'request.side_effect': TimeoutError(
                             errno.ETIMEDOUT, 'gone')}))
            session = names['s'] = eval(session, names)
            for step, wanted, *_ in steps:
                wanted = wanted[column] if isinstance(wanted, Fixed) else wanted
                came = self.outcome(step, names).replace(server.address, 'ADDRESS')
                self.assertEqual(wanted, came[:len(wanted) - 3] + '...' if wanted.endswith('...')
                                 else came, step)
            session('close')()
        if module is XenAPI:
            self.assertEqual([ask for ask, _ in exchanges], list(map(str, server.requests)))
        return [request._replace(headers=[
            (name, value.replace(server.address, 'ADDRESS')) for name, value in request.headers
            if name not in ('User-Agent', 'Accept-Encoding')]) for request in server.requests]

    @staticmethod
    def outcome(step, names):
        """What an expression ends in."""
        try:
            return repr(eval(step, names))
        except Exception as error:  # whatever it is, the script says what it should be
            return '%s: %s' % (type(error).__name__, error)

    def test_calls_have_the_same_results_and_requests(self):
        for what, steps in SCRIPTS.items():
            self.play(what, steps)
        self.play('a call that times out in the network is an OSError, also a login', [
            ('s.login()', Fixed('TimeoutError: ...', 'Fault: <Fault 504: ...')),
            ('s.xenapi.a.b()', 'TimeoutError: ...')], session='X.Session(uri, transport)')
        self.play('None can be forbidden, and the encoding be chosen', [
            ('s.xenapi.a.b()', 'TypeError: cannot marshal None unless allow_none is enabled'),
            ("s.a.b('é')", "{'Status': 'Success', 'Value': ''}", ('a.b é', success('')))],
            session="X.Session(uri, None, 'iso-8859-1', allow_none=0)")

    def test_connections_are_kept_until_they_are_closed_or_dropped(self):
        requests = self.play('one connection serves until it is closed, by either side', [
            ('s.__enter__() is s', 'True'), LOGIN, call("'1'", success('1')),
            ('s.__exit__(None, None, None)', 'None'), call("'2'", success('2')),
            ("s('close')()", 'None'), call("'3'", success('3', then='close')),
            call("'4'", success('4', headers=['Connection: close'], then='close')),
            call("'5'", success('5'))])
        self.assertEqual([1, 1, 2, 3, 4, 5], [request.connection for request in requests])
        requests = self.play('a request on a dropped connection is sent once more', [
            LOGIN, call("'1'", CUT, ('a.b A', success('1'))),
            call('RemoteDisconnected: ...', CUT, ('a.b A', CUT)), call("'2'", success('2'))])
        self.assertEqual([1, 1, 2, 2, 3, 4], [request.connection for request in requests])

    def test_tcp_has_path_and_authorization_of_the_uri_and_nothing_of_the_environment(self):
        request, = self.play(
            'tcp', [LOGIN], session="X.Session(uri.replace('//', '//me:secret@') + '/a')",
            environ=dict.fromkeys(CALM, 'x'))
        self.assertEqual('POST /a HTTP/1.1', request.line)
        self.assertEqual(['Host', 'Authorization', 'Content-Type', 'Content-Length'],
                         [name for name, _ in request.headers])

    def test_certificates_are_verified_unless_that_is_not_wanted(self):
        self.play('unknown', [('s.xenapi.a.b()', 'SSLError: ...' if sys.version_info < (3, 7) else
                               'SSLCertVerificationError: ...')], door='tls')
        self.play('ignored', [LOGIN, call("'1'", success('1'))], door='tls',
                  session='X.Session(uri, ignore_ssl=True)')
        self.play('trusted', [LOGIN], door='tls', environ=dict(CALM, SSL_CERT_FILE=CERTIFICATE))

    def test_unix_sockets_may_be_spelled_as_in_the_sdk(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        handle = os.open(directory.name, os.O_RDONLY)
        self.addCleanup(os.close, handle)       # the SDK can spell no path with a _ in it
        self.play('unix', [LOGIN, call("'1'", CUT, ('a.b A', success('1')))],
                  door='/proc/self/fd/%d/sock' % handle,
                  session='X.Session(uri, X.UDSTransport())')

    @unittest.skipUnless(SDK, 'NOTHING WAS COMPARED WITH THE SDK: pip install XenAPI')
    def test_module_has_the_names_of_the_sdks_that_scripts_use(self):
        for name in ('API_VERSION_1_1', 'API_VERSION_1_2', 'Failure', 'Session', 'UDSTransport',
                     'UDSHTTPConnection', 'xapi_local'):
            self.assertEqual(type(getattr(SDK, name)), type(getattr(XenAPI, name)), name)


class WhatTheSdkHasNot(unittest.TestCase):
    """Timeouts, sockets of any path, and no secrets."""

    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)

    def assert_patient(self, session):
        """It waits for what is left of PATIENCE."""
        left = session('transport')._connection[1].sock.gettimeout()
        self.assertTrue(PATIENCE / 2 < left < PATIENCE, left)

    def test_silent_server_is_given_up_and_the_session_can_be_used_after_that(self):
        half = Answer(success('v').raw[:-20], 'silence')
        path = os.path.join(self.directory, 'x_y')
        for door, session in (
                ('tcp', 'X.Session(uri, timeout=0.2)'),
                (path, 'X.xapi_local(path, timeout=0.2)')):
            with self.subTest(session), ScriptedServer(
                    door, [SILENT, half, IS_A, CUT, success('v')]) as server:
                with eval(session, {'X': XenAPI, 'uri': server.uri, 'path': door}) as s:
                    for number, ask in enumerate((s.login, s.xenapi.a.b), 1):
                        with self.assertRaises(socket.timeout) as caught:
                            ask()
                        self.assertIsInstance(caught.exception, OSError)
                        while len(server.requests) < number:
                            time.sleep(0.01)
                    self.assertEqual((None, None), (s.handle, s.last_login_params))
                    s('transport').timeout = PATIENCE
                    s.login()
                    self.assertEqual('v', s.xenapi.a.b())
                    self.assert_patient(s)
                self.assertEqual([1, 2, 3, 3, 4], [each.connection for each in server.requests])

    def test_timeout_is_that_of_tls_too(self):
        with ScriptedServer('tls', [IS_A]) as server:
            with XenAPI.Session(server.uri, ignore_ssl=True, timeout=PATIENCE) as s:
                s.login()
                self.assert_patient(s)
            with self.assertRaises(ssl.SSLError):
                XenAPI.Session(server.uri, timeout=PATIENCE).login()
        with socket.socket() as listener:       # never shakes hands
            listener.bind(('127.0.0.1', 0))
            listener.listen(1)
            with self.assertRaises(socket.timeout):
                XenAPI.Session('https://127.0.0.1:%d' % listener.getsockname()[1],
                               timeout=0.2).login()
        with self.assertRaises(ValueError):     # beside a transport that was made elsewhere
            XenAPI.Session('http://host', transport=xmlrpc.client.Transport(), timeout=1)

    def test_user_agent_is_sent_by_every_door(self):
        path = os.path.join(self.directory, 'sock')
        for door, session in (('tcp', "X.Session(uri, user_agent='VmBackup/1')"),
                              (path, "X.xapi_local(path, user_agent='VmBackup/1')")):
            with ScriptedServer(door, [IS_A]) as server:
                with eval(session, {'X': XenAPI, 'uri': server.uri, 'path': door}) as opened:
                    opened.login()
                self.assertIn(('User-Agent', 'VmBackup/1'), server.requests[0].headers)

    def test_socket_may_lie_anywhere(self):
        for name in ('a_b__c', '_', 'with blank', 'with:colon', '[x]', 'a@b?c#d%41',
                     os.fsdecode('é'.encode()), os.fsdecode(b'\xff')):
            path = os.path.join(self.directory, name)
            with self.subTest(os.fsencode(path)), ScriptedServer(path, [IS_A]):
                with XenAPI.xapi_local(path) as session:
                    session.login()

    def test_local_session_is_at_xapis_own_socket_and_leaves_none_open_where_it_is_refused(self):
        self.assertEqual('/var/lib/xcp/xapi', XenAPI.xapi_local().transport.path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            with self.assertRaises(FileNotFoundError):
                XenAPI.xapi_local(self.directory + '/nobody').login()
            gc.collect()
        self.assertEqual([], [str(each.message) for each in caught])

    def test_no_password_is_shown(self):
        with ScriptedServer('tcp', [IS_A]) as server:
            uri = server.uri.replace('//', '//me:hidden@')
            with XenAPI.Session(uri + '/a@b') as session:
                session.login_with_password('root', 'secret')
                self.assertEqual('<Session for %s/a@b>' % server.address, repr(session))
                self.assertEqual(str(session), repr(session))
                for thing in (session.xenapi, session.logout, session.login_with_password):
                    self.assertNotIn('secret', repr(thing))


def xml(value, before=''):
    """An answer with this in the place of its value."""
    return http(before + '<methodResponse><params><param><value>%s</value></param></params>'
                '</methodResponse>' % value)


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha">%s]>' % ''.join(
    '<!ENTITY %s "%s">' % (name, '&%s;' % before * 9) for before, name in zip('abcde', 'bcdef'))
GZIP = gzip.compress(success('v').raw.partition(b'\r\n\r\n')[2])
TOO_LONG = 'BadAnswer: an answer of more than 100000 bytes'
REFUSED_ANSWERS = {
    'records without end': (xml('<array><data>%s</data></array>' % (
        '<value><struct/></value>' * 999)),
                            'BadAnswer: an answer of more than 900 records and lists'),
    'an entity that grows': (xml('&f;', LAUGHS), 'BadAnswer: an answer with a declaration'),
    'a document type': (xml('v', '<!DOCTYPE x>'), 'BadAnswer: an answer with a declaration'),
    'a number without end': (xml('<i4>%s</i4>' % ('1' * 4000)),
                             'BadAnswer: an answer with a number of more than 400 digits'),
    'one of a prefix': (xml('<a:int>%s</a:int>' % ('1' * 4000)),
                        'BadAnswer: an answer with a number of more than 400 digits'),
    'nesting without end': (xml('<array><data><value>' * 99 + '</value></data></array>' * 99),
                            'BadAnswer: an answer with more than 100 elements'),
    'a tag without end': (http('<methodResponse a="' + 'x' * 80000),
                          'BadAnswer: an answer with a tag of more than 65536 bytes'),
    'a fault that is none': (http(xml('1').raw.decode().partition('\r\n\r\n')[2].replace(
        'param>', 'fault>').replace('<params>', '').replace('</params>', '')),
                             'BadAnswer: an answer that is none'),
    'a redirection': (http('', '302 Found', ['Location: http://192.0.2.1/']),
                      'ProtocolError: <ProtocolError for ADDRESS/RPC2: 302 Found>'),
    'gzip': (Answer(b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s' % (
        len(GZIP), GZIP)), 'ProtocolError: <ProtocolError for ADDRESS/RPC2: 200 gzip>'),
    'an error of a terabyte': (Answer(b'HTTP/1.1 500 X\r\nContent-Length: %d\r\n\r\n' % 10**12),
                               'ProtocolError: <ProtocolError for ADDRESS/RPC2: 500 X>'),
    'a status without end': (Answer(b'HTTP/1.1 200 ' + b'x' * 70000), 'LineTooLong: '),
    'headers without end': (Answer(b'HTTP/1.1 200 OK\r\n' + b'a: b\r\n' * 200), 'HTTPException: '),
    'answers without end before it': (Answer(b'HTTP/1.1 100 Continue\r\n\r\n', 'flood'), TOO_LONG),
    'text without end': (Answer(b'HTTP/1.1 200 OK\r\n\r\n<a>' + b'x' * 9999, 'flood'), TOO_LONG),
    'chunks without end': (Answer(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n<a>'
                                  b'\r\n' + b'4;x=y\r\n<a/>\r\n' * 9999, 'silence'), TOO_LONG),
}


class HostileServers(unittest.TestCase):
    """What may answer in the place of a pool costs a little time and memory, and is told."""

    def refused(self, door, reply, **options):
        """Kind and text of what a call raises; the server's requests."""
        with ScriptedServer(door, [reply]) as server:
            session = (XenAPI.xapi_local(door, **options) if '/' in door else
                       XenAPI.Session(server.uri, **dict(dict(ignore_ssl=True), **options)))
            with session, self.assertRaises(Exception) as caught:
                session.xenapi.a.b()
        self.requests = server.requests
        return '%s: %s' % (type(caught.exception).__name__,
                           str(caught.exception).replace(server.address, 'ADDRESS'))

    def test_answers_that_would_take_all_memory_or_time_are_refused(self):
        with mock.patch.multiple(XenAPI, LONGEST_ANSWER=100000, MOST_COLLECTIONS=900):
            for what, (reply, words) in REFUSED_ANSWERS.items():
                with self.subTest(what):
                    refused = self.refused('tcp', reply, timeout=PATIENCE)
                    self.assertEqual(words, refused[:len(words)])
                    self.assertEqual(1, len(self.requests))
                    self.assertIn(('Accept-Encoding', 'identity'), self.requests[0].headers)

    def test_answers_of_a_byte_now_and_then_have_one_deadline(self):
        with tempfile.TemporaryDirectory() as directory:
            for door in 'tcp', 'tls', os.path.join(directory, 'sock'):
                for then in 'drip', 'drip body':
                    with self.subTest(door, then=then):
                        self.assertEqual(socket.timeout.__name__, self.refused(
                            door, success('v' * 99)._replace(then=then),
                            timeout=0.5).partition(':')[0])

    def test_a_call_that_is_sent_again_has_one_deadline_too(self):
        with ScriptedServer('tcp', [IS_A, CUT, success('v')._replace(then='drip')]) as server:
            with XenAPI.Session(server.uri, timeout=0.5) as session:
                session.login()
                with self.assertRaises(socket.timeout):
                    session.xenapi.a.b()

    def test_an_answer_as_large_as_pools_have_arrives(self):
        value = {'OpaqueRef:%d' % number: {'other_config': {'k': 'x' * 5000}, 'tags': []}
                 for number in range(2000)}
        with ScriptedServer('tcp', [success(value)]) as server:
            with XenAPI.Session(server.uri, timeout=PATIENCE) as session:
                self.assertEqual(value, session.xenapi.VM.get_all_records())

    def test_only_certificates_of_the_pool_are_trusted_whatever_the_address(self):
        for bundle, trusted in ((OF_POOL, True), (CERTIFICATE, False)):
            with self.subTest(bundle), ScriptedServer('tls', [IS_A]) as server:
                with XenAPI.Session(server.uri, bundle=bundle, timeout=PATIENCE) as session:
                    with contextlib.ExitStack() as stack:
                        if not trusted:
                            stack.enter_context(self.assertRaisesRegex(ssl.SSLError, 'VERIFY'))
                        session.login_with_password('root', 'secret')
            self.assertEqual(trusted, bool(server.requests))
        for bundle, error in (('/nosuch', FileNotFoundError), (__file__, ssl.SSLError)):
            with self.assertRaises(error):
                XenAPI.Session('https://192.0.2.1', bundle=bundle)
