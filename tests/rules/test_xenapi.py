"""XenAPI.py: one script of calls, played by ours alone and, where that is installed, by the SDK's.

`Calls` is the script: what a program does with the module, how the server answers, what comes of
it. `OursAlone` plays it with our module and needs nothing else. `BesideTheSdk` plays it with both
and wants the same results, the same exceptions and the same requests, byte for byte but for the
User-Agent. Where ours deliberately does better, the script says so: Fixed(ours=..., sdk=...).
"""

import base64
import contextlib
import copy
import errno
import gc
import importlib.util
import io
import os
import pickle
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import unittest
import uuid
import warnings
import xmlrpc.client
from typing import Any, NamedTuple
from unittest import mock

import XenAPI

from tests import ROOT

CERTIFICATE = os.path.join(ROOT, 'tests', 'data', 'selfsigned.pem')
FROM_ENVIRONMENT = ('TRACEPARENT', 'BAGGAGE', 'ORIGINATOR')
PATIENCE = 10  # seconds after which a silent server hangs up, so that a missed timeout fails a test


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


# ----------------------------------------------------------------------------------------------
# The scripted server
# ----------------------------------------------------------------------------------------------

class Answer(NamedTuple):
    """What the server sends for one request, and what becomes of the connection after that."""
    raw: bytes
    then: str = 'keep'  # or 'close', 'silence'


HANGS_UP = Answer(b'', 'close')
IS_SILENT = Answer(b'', 'silence')


def http(body, status='200 OK', headers=(), then='keep'):
    """An HTTP response with `body` (str or bytes), headers as xapi sends them."""
    body = body.encode() if isinstance(body, str) else body
    lines = ['HTTP/1.1 ' + status, 'Connection: keep-alive', 'Cache-Control: no-cache, no-store',
             'Content-Type: text/xml', 'Content-Length: %d' % len(body)] + list(headers)
    return Answer('\r\n'.join(lines + ['', '']).encode() + body, then)


def answer(value, **kwargs):
    """A method response with any value."""
    return http(xmlrpc.client.dumps((value,), methodresponse=True, allow_none=True), **kwargs)


def success(value, **kwargs):
    return answer({'Status': 'Success', 'Value': value}, **kwargs)


def refusal(*details):
    return answer({'Status': 'Failure', 'ErrorDescription': list(details)})


LOGGED_IN = success('OpaqueRef:A')
LOGGED_IN_AGAIN = success('OpaqueRef:B')
EXPIRED = refusal('SESSION_INVALID', 'OpaqueRef:A')


class Request(NamedTuple):
    """A request as the server got it."""
    connection: int  # 1 for the first that was made
    line: str
    headers: list
    body: bytes

    @property
    def call(self):
        """(method, parameter, ...)"""
        params, method = xmlrpc.client.loads(self.body)
        return (method,) + params


class ScriptedServer:
    """Gives the n-th request the n-th answer of the script and keeps what it was sent.

    door: 'tcp', 'tls' (with the self-signed certificate) or the path of a unix socket.
    """

    def __init__(self, door, script):
        self.requests = []
        self._script = list(script)
        self._connections = []
        self._threads = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._tls = None
        if door == 'tls':
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(CERTIFICATE)
        if door in ('tcp', 'tls'):
            self._listener = socket.socket()
            self._listener.bind(('127.0.0.1', 0))
            self.address = '127.0.0.1:%d' % self._listener.getsockname()[1]
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(door)
            self.address = door.replace('/', '_')
        self.uri = '%s://%s' % ('https' if self._tls else 'http', self.address)
        self._listener.listen(8)

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, *_exc):
        self._stopping.set()
        for each in [self._listener] + self._connections:
            with contextlib.suppress(OSError):  # whose other end is gone already
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in [self._listener] + self._connections:
            each.close()

    def _start(self, target, *args):
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while not self._stopping.is_set():
            try:
                connection = self._listener.accept()[0]
            except OSError:  # stopped
                return
            self._connections.append(connection)
            self._start(self._serve, connection, len(self._connections))

    def _serve(self, connection, number):
        with contextlib.suppress(OSError):  # the client is gone, or does not like our certificate
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._connections[number - 1] = connection
            with connection.makefile('rb') as incoming:
                while self._answer_one(connection, incoming, number):
                    continue
            connection.shutdown(socket.SHUT_RDWR)

    def _answer_one(self, connection, incoming, number):
        """Whether the connection goes on."""
        line = incoming.readline().decode('ascii').rstrip('\r\n')
        if not line:
            return False
        headers = []
        while True:
            header = incoming.readline().decode('latin-1').rstrip('\r\n')
            if not header:
                break
            headers.append(tuple(header.split(': ', 1)))
        body = incoming.read(int(dict(headers)['Content-Length']))
        with self._lock:
            self.requests.append(Request(number, line, headers, body))
            reply = self._script.pop(0) if self._script else http('', '599 Not in the script')
        connection.sendall(reply.raw)
        if reply.then == 'silence':
            self._stopping.wait(PATIENCE)
        return reply.then == 'keep'


# ----------------------------------------------------------------------------------------------
# Playing the script
# ----------------------------------------------------------------------------------------------

class Raised(NamedTuple):
    """A step that ended in an exception: the name of its class, and what it says."""
    kind: str
    details: Any = mock.ANY


class Fixed(NamedTuple):
    """A step on which ours differs from the SDK's on purpose."""
    ours: Any
    sdk: Any


def failure(*details):
    return Raised('Failure', (list(details),))


def fault(code, text):
    return Raised('Fault', (code, text))


MISSING_STATUS = 'Missing Status in response from server'


class TimesOut(xmlrpc.client.Transport):
    """A network that gives up: what connecting to a host that is switched off ends in."""

    def request(self, *_args, **_kwargs):
        raise OSError(errno.ETIMEDOUT, 'Connection timed out')


class Garbled:
    """A detail of a failure that cannot be printed."""

    def __repr__(self):
        raise ValueError('unprintable')


def outcome(step, names):
    try:
        return eval(step, names)
    except Exception as error:  # whatever it is, the script says what it should be
        if isinstance(error, xmlrpc.client.Fault):
            return Raised('Fault', (error.faultCode, error.faultString))
        if isinstance(error, xmlrpc.client.ProtocolError):
            return Raised('ProtocolError', (error.errcode, error.errmsg))
        return Raised(type(error).__name__, error.args)


class Played(NamedTuple):
    outcomes: list
    requests: list  # of Request; without User-Agent, and with PORT for the port


def perform(module, script, steps, session, door, environ):
    """Play `steps` with `module` against a server that answers as `script` says."""
    clean = {name: value for name, value in os.environ.items() if name not in FROM_ENVIRONMENT}
    with mock.patch.dict(os.environ, dict(clean, **environ), clear=True), \
            ScriptedServer(door, script) as server:
        names = {'X': module, 'uri': server.uri, 'copy': copy, 'pickle': pickle, 'os': os,
                 'xmlrpc': xmlrpc, 'TimesOut': TimesOut, 'Garbled': Garbled}
        names['s'] = outcome(session, names)
        outcomes = [outcome(step, names) for step, _expected in steps]
        if isinstance(names['s'], module.Session):
            names['s']('close')()
    if door != 'tcp' and door != 'tls':
        os.unlink(door)
    requests = [request._replace(headers=[
        (name, '127.0.0.1:PORT' if value == server.address and ':' in value else value)
        for name, value in request.headers if name != 'User-Agent']) for request in server.requests]
    return Played(outcomes, requests)


def unix_path(test):
    """Where a unix socket may be made: a path that the SDK can spell, that is without a `_`."""
    directory = '/tmp/xenapi-' + uuid.uuid4().hex
    os.mkdir(directory, 0o700)
    test.addCleanup(shutil.rmtree, directory)
    return directory + '/sock'


class Calls:
    """The script. Every test plays it by self.play(answers, steps, asks, ...).

    answers  what the server says to each request
    steps    (expression, value or Raised or Fixed); X is the module, s the session
    asks     the calls that the server gets: (method, parameter, ...)
    """

    # Logging in

    def test_login_gives_none_and_its_session_goes_before_every_call(self):
        self.play(
            [LOGGED_IN, success('running'), success(['OpaqueRef:1'])],
            [("s.handle", None),
             ("s.login_with_password('root', 'pass word')", None),
             ("s.handle", 'OpaqueRef:A'),
             ("(s.last_login_method, s.last_login_params)",
              ('login_with_password', ('root', 'pass word'))),
             ("s.xenapi.VM.get_power_state('OpaqueRef:1')", 'running'),
             ("s.xenapi.VM.get_all()", ['OpaqueRef:1'])],
            asks=[('session.login_with_password', 'root', 'pass word'),
                  ('VM.get_power_state', 'OpaqueRef:A', 'OpaqueRef:1'),
                  ('VM.get_all', 'OpaqueRef:A')])

    def test_login_through_xenapi_passes_version_and_originator_on(self):
        self.play(
            [LOGGED_IN],
            [("s.xenapi.login_with_password('root', 'pw', X.API_VERSION_1_2, 'VmBackup')", None),
             ("s.handle", 'OpaqueRef:A'),
             ("(s.last_login_method, s.last_login_params)",
              ('login_with_password', ('root', 'pw', '1.2', 'VmBackup')))],
            asks=[('session.login_with_password', 'root', 'pw', '1.2', 'VmBackup')])

    def test_any_name_that_begins_with_login_is_a_login(self):
        self.play(
            [LOGGED_IN, LOGGED_IN_AGAIN],
            [("s.login_by_magic()", None), ("s.xenapi.login.again('x')", None),
             ("s.handle", 'OpaqueRef:B'), ("s.last_login_method", 'login.again')],
            asks=[('session.login_by_magic',), ('session.login.again', 'x')])

    def test_session_login_with_password_spelled_out_is_an_ordinary_call(self):
        self.play(
            [refusal('MESSAGE_PARAMETER_COUNT_MISMATCH', 'session.login_with_password', '2', '3')],
            [("s.xenapi.session.login_with_password('root', 'pw')",
              failure('MESSAGE_PARAMETER_COUNT_MISMATCH', 'session.login_with_password', '2', '3')),
             ("s.handle", None)],
            asks=[('session.login_with_password', None, 'root', 'pw')])

    def test_refused_login_changes_nothing(self):
        self.play(
            [refusal('SESSION_AUTHENTICATION_FAILED', 'root', 'Authentication failure'),
             refusal('HOST_IS_SLAVE', '192.0.2.1'), LOGGED_IN,
             refusal('SESSION_AUTHENTICATION_FAILED', 'root', 'Authentication failure')],
            [("s.login_with_password('root', 'bad')",
              failure('SESSION_AUTHENTICATION_FAILED', 'root', 'Authentication failure')),
             ("(s.handle, s.last_login_method, s.last_login_params)", (None, None, None)),
             ("s.xenapi.login_with_password('root', 'pw')", failure('HOST_IS_SLAVE', '192.0.2.1')),
             ("s.xenapi.login_with_password('root', 'pw')", None),
             ("s.xenapi.login_with_password('root', 'bad')",
              failure('SESSION_AUTHENTICATION_FAILED', 'root', 'Authentication failure')),
             ("(s.handle, s.last_login_params)", ('OpaqueRef:A', ('root', 'pw')))],
            asks=[('session.login_with_password', 'root', word)
                  for word in ('bad', 'pw', 'pw', 'bad')])

    def test_login_answered_with_session_invalid_is_a_fault(self):
        self.play(
            [EXPIRED],
            [("s.login_with_password('root', 'pw')",
              fault(500, 'Received SESSION_INVALID when logging in')),
             ("s.handle", None)],
            asks=[('session.login_with_password', 'root', 'pw')])

    def test_malformed_answer_to_a_login_is_a_fault(self):
        self.play(
            [answer('what?'), answer({'Status': 'Success'})],
            [("s.login_with_password('root', 'pw')", fault(500, MISSING_STATUS + 'what?')),
             ("s.login_with_password('root', 'pw')",
              fault(500, 'Missing Value in response from server')),
             ("s.handle", None)],
            asks=[('session.login_with_password', 'root', 'pw')] * 2)

    def test_login_that_times_out_in_the_network_is_a_fault_and_a_call_is_not(self):
        self.play(
            [],
            [("s.login_with_password('root', 'pw')", fault(504, 'The connection timed out')),
             ("s.xenapi.VM.get_all()",
              Raised('TimeoutError', (errno.ETIMEDOUT, 'Connection timed out')))],
            asks=[], session="X.Session(uri, transport=TimesOut())")

    # Sessions that the server does not know

    def test_call_without_login_sends_nil_and_asks_for_a_login_if_it_needs_one(self):
        self.play(
            [EXPIRED, success('2.21')],
            [("s.xenapi.VM.get_all()", fault(401, 'You must log in')),
             ("s.xenapi.host.get_anything('x')", '2.21')],
            asks=[('VM.get_all', None), ('host.get_anything', None, 'x')])

    def test_expired_session_is_renewed_and_the_call_repeated(self):
        self.play(
            [LOGGED_IN, EXPIRED, LOGGED_IN_AGAIN, success('v'), success('w')],
            [("s.xenapi.login_with_password('root', 'pw', '1.0')", None),
             ("s.xenapi.VM.get_uuid('x')", 'v'),
             ("s.handle", 'OpaqueRef:B'),
             ("s.xenapi.VM.get_uuid('y')", 'w')],
            asks=[('session.login_with_password', 'root', 'pw', '1.0'),
                  ('VM.get_uuid', 'OpaqueRef:A', 'x'),
                  ('session.login_with_password', 'root', 'pw', '1.0'),
                  ('VM.get_uuid', 'OpaqueRef:B', 'x'),
                  ('VM.get_uuid', 'OpaqueRef:B', 'y')])

    def test_session_that_expires_three_times_is_a_fault(self):
        login = ('session.login_with_password', 'root', 'pw')
        self.play(
            [LOGGED_IN, EXPIRED, LOGGED_IN_AGAIN, EXPIRED, LOGGED_IN, EXPIRED, LOGGED_IN_AGAIN],
            [("s.login_with_password('root', 'pw')", None),
             ("s.xenapi.VM.get_all()",
              fault(500, 'Tried 3 times to get a valid session, but failed')),
             ("s.handle", 'OpaqueRef:B')],
            asks=[login, ('VM.get_all', 'OpaqueRef:A'), login, ('VM.get_all', 'OpaqueRef:B'),
                  login, ('VM.get_all', 'OpaqueRef:A'), login])

    def test_session_that_expires_twice_is_found_again_the_third_time(self):
        login = ('session.login_with_password', 'root', 'pw')
        self.play(
            [LOGGED_IN, EXPIRED, LOGGED_IN_AGAIN, EXPIRED, LOGGED_IN, refusal('NOT_TODAY')],
            [("s.login_with_password('root', 'pw')", None),
             ("s.xenapi.VM.get_all()", failure('NOT_TODAY'))],
            asks=[login, ('VM.get_all', 'OpaqueRef:A'), login, ('VM.get_all', 'OpaqueRef:B'),
                  login, ('VM.get_all', 'OpaqueRef:A')])

    def test_renewal_that_is_refused_is_the_failure_of_the_call(self):
        self.play(
            [LOGGED_IN, EXPIRED, refusal('HOST_IS_SLAVE', '192.0.2.1')],
            [("s.login_with_password('root', 'pw')", None),
             ("s.xenapi.VM.get_all()", failure('HOST_IS_SLAVE', '192.0.2.1')),
             ("(s.handle, s.last_login_method)", ('OpaqueRef:A', 'login_with_password'))],
            asks=[('session.login_with_password', 'root', 'pw'), ('VM.get_all', 'OpaqueRef:A'),
                  ('session.login_with_password', 'root', 'pw')])

    def test_after_logout_an_unknown_session_is_not_renewed(self):
        self.play(
            [LOGGED_IN, success(''), EXPIRED],
            [("s.login_with_password('root', 'pw')", None), ("s.logout()", None),
             ("s.xenapi.VM.get_all()", fault(401, 'You must log in'))],
            asks=[('session.login_with_password', 'root', 'pw'),
                  ('session.logout', 'OpaqueRef:A'), ('VM.get_all', None)])

    # Logging out

    def test_logout_in_each_spelling_ends_the_session(self):
        for spelling in ('s.logout()', 's.xenapi.logout()', 's.xenapi.session.logout()',
                         's.logout("ignored")'):
            with self.subTest(spelling):
                self.play(
                    [LOGGED_IN, success('')],
                    [("s.login_with_password('root', 'pw')", None),
                     (spelling, None),
                     ("(s.handle, s.last_login_method, s.last_login_params, s.API_version)",
                      (None, None, None, '1.1'))],
                    asks=[('session.login_with_password', 'root', 'pw'),
                          ('session.logout', 'OpaqueRef:A')])

    def test_logout_of_an_expired_session_is_content(self):
        self.play(
            [LOGGED_IN, EXPIRED],
            [("s.login_with_password('root', 'pw')", None), ("s.logout()", None),
             ("s.handle", None)],
            asks=[('session.login_with_password', 'root', 'pw'), ('session.logout', 'OpaqueRef:A')])

    def test_logout_that_fails_forgets_the_session_all_the_same(self):
        for reply, error in ((refusal('INTERNAL_ERROR', 'oh'), failure('INTERNAL_ERROR', 'oh')),
                             (answer('eh'), fault(500, MISSING_STATUS + 'eh')),
                             (http('', '503 Busy'), Raised('ProtocolError', (503, 'Busy')))):
            with self.subTest(error):
                self.play(
                    [LOGGED_IN, reply],
                    [("s.login_with_password('root', 'pw')", None), ("s.logout()", error),
                     ("(s.handle, s.last_login_method, s.last_login_params)", (None, None, None))],
                    asks=[('session.login_with_password', 'root', 'pw'),
                          ('session.logout', 'OpaqueRef:A')])

    def test_logout_where_nobody_is_logged_in_does_nothing(self):
        # A bug of the SDK's: AttributeError, in the clean-up of a program whose login failed.
        nothing = Fixed(ours=None, sdk=Raised('AttributeError'))
        self.play(
            [LOGGED_IN, success('')],
            [("s.logout()", nothing), ("s.xenapi.logout()", nothing),
             ("s.login_with_password('root', 'pw')", None), ("s.logout()", None),
             ("s.logout()", nothing)],
            asks=[('session.login_with_password', 'root', 'pw'), ('session.logout', 'OpaqueRef:A')])

    def test_logout_of_a_session_that_was_handed_over_ends_it(self):
        # The same bug: a session's reference that came from elsewhere knows no login method.
        self.play(
            [success('')],
            [("setattr(s, '_session', 'OpaqueRef:C')", None), ("s.handle", 'OpaqueRef:C'),
             ("s.logout()", Fixed(ours=None, sdk=Raised('AttributeError'))), ("s.handle", None)],
            asks=[('session.logout', 'OpaqueRef:C')], sdk_asks=[])

    def test_only_logout_itself_is_a_logout(self):
        self.play(
            [success('v'), success('w')],
            [("s.logout.x()", 'v'), ("s.xenapi.VM.logout()", 'w')],
            asks=[('logout.x', None), ('VM.logout', None)])

    # The emergency login of one host

    def test_slave_local_login_is_logged_out_as_such(self):
        self.play(
            [LOGGED_IN, success(True), success('')],
            [("s.slave_local_login_with_password('root', 'pw')", None),
             ("s.last_login_method", 'slave_local_login_with_password'),
             ("s.xenapi.host.is_in_emergency_mode()", True),
             ("s.xenapi.session.logout()", None), ("s.handle", None)],
            asks=[('session.slave_local_login_with_password', 'root', 'pw'),
                  ('host.is_in_emergency_mode', 'OpaqueRef:A'),
                  ('session.local_logout', 'OpaqueRef:A')])

    def test_slave_local_login_is_renewed_as_such(self):
        self.play(
            [LOGGED_IN, EXPIRED, LOGGED_IN_AGAIN, success(True)],
            [("s.slave_local_login()", None), ("s.xenapi.host.is_slave('x')", True)],
            asks=[('session.slave_local_login',), ('host.is_slave', 'OpaqueRef:A', 'x'),
                  ('session.slave_local_login',), ('host.is_slave', 'OpaqueRef:B', 'x')])

    def test_slave_local_login_through_xenapi_is_a_login(self):
        # A bug of the SDK's: it logs in with the session as a parameter too many, then breaks.
        login = "s.xenapi.slave_local_login_with_password('root', 'pw')"
        self.play(
            [LOGGED_IN],
            [(login, Fixed(ours=None, sdk=Raised('TypeError'))), ("s.handle", 'OpaqueRef:A')],
            asks=[('session.slave_local_login_with_password', 'root', 'pw')],
            sdk_asks=[('session.slave_local_login_with_password', None, 'root', 'pw')])

    # The version of the API

    def test_api_version_is_asked_for_once_and_only_when_wanted(self):
        version = [success(['OpaqueRef:P']), success('OpaqueRef:M'), success('2'), success('21')]
        asked = [('pool.get_all', 'OpaqueRef:A'), ('pool.get_master', 'OpaqueRef:A', 'OpaqueRef:P'),
                 ('host.get_API_version_major', 'OpaqueRef:A', 'OpaqueRef:M'),
                 ('host.get_API_version_minor', 'OpaqueRef:A', 'OpaqueRef:M')]
        login = ('session.login_with_password', 'root', 'pw')
        self.play(
            [LOGGED_IN] + version + [LOGGED_IN] + version + [success('')],
            [("s.API_version", '1.1'),
             ("s.login_with_password('root', 'pw')", None),
             ("s.API_version", '2.21'), ("s.API_version", '2.21'),
             ("s.login_with_password('root', 'pw')", None),
             ("s.API_version", '2.21'),
             ("s.logout()", None), ("s.API_version", '1.1')],
            asks=[login] + asked + [login] + asked + [('session.logout', 'OpaqueRef:A')])

    def test_api_version_that_cannot_be_had_is_asked_for_again(self):
        self.play(
            [LOGGED_IN, refusal('HOST_STILL_BOOTING'), success([])],
            [("s.login_with_password('root', 'pw')", None),
             ("s.API_version", failure('HOST_STILL_BOOTING')),
             ("s.API_version", Raised('IndexError'))],
            asks=[('session.login_with_password', 'root', 'pw'), ('pool.get_all', 'OpaqueRef:A'),
                  ('pool.get_all', 'OpaqueRef:A')])

    # Answers

    def test_refusal_is_a_failure_with_its_details(self):
        self.play(
            [refusal('HANDLE_INVALID', 'VM', 'OpaqueRef:x'), refusal('NO_HOSTS_AVAILABLE'),
             refusal('SR_BACKEND_FAILURE_44', '', 'There is insufficient space', ''),
             answer({'Status': 'Failure', 'ErrorDescription': 'TEXT'}),
             answer({'Status': None, 'ErrorDescription': ['ODD', 7, None]}),
             answer({'Status': 'Failure', 'ErrorDescription': ['X'], 'Value': 'v'})],
            [("s.xenapi.VM.get_uuid('OpaqueRef:x')",
              failure('HANDLE_INVALID', 'VM', 'OpaqueRef:x')),
             ("s.xenapi.a.b()", failure('NO_HOSTS_AVAILABLE')),
             ("s.xenapi.a.b()",
              failure('SR_BACKEND_FAILURE_44', '', 'There is insufficient space', '')),
             ("s.xenapi.a.b()", Raised('Failure', ('TEXT',))),
             ("s.xenapi.a.b()", failure('ODD', 7, None)),
             ("s.xenapi.a.b()", failure('X'))],
            asks=[('VM.get_uuid', None, 'OpaqueRef:x')] + [('a.b', None)] * 5)

    def test_text_instead_of_a_status_is_a_fault_that_shows_it(self):
        self.play(
            [answer('no Status'), answer(''), answer('Größe')],
            [("s.xenapi.a.b()", fault(500, MISSING_STATUS + 'no Status')),
             ("s.xenapi.a.b()", fault(500, MISSING_STATUS)),
             ("s.xenapi.a.b()", fault(500, MISSING_STATUS + 'Größe'))],
            asks=[('a.b', None)] * 3)

    def test_anything_else_instead_of_a_status_is_a_fault_too(self):
        # A bug of the SDK's: it adds the answer to a str, whatever it is.
        def fixed(text):
            return Fixed(ours=fault(500, MISSING_STATUS + text), sdk=Raised('TypeError'))
        two = xmlrpc.client.dumps(('a', 'b'), methodresponse=False)
        two = two.replace('<methodCall>', '<methodResponse>')
        two = two.replace('</methodCall>', '</methodResponse>')
        self.play(
            [answer(None), answer(7), answer({}), answer({'Value': 'v'}), answer(['Status']),
             http(two)],
            [("s.xenapi.a.b()", fixed('None')), ("s.xenapi.a.b()", fixed('7')),
             ("s.xenapi.a.b()", fixed('{}')), ("s.xenapi.a.b()", fixed("{'Value': 'v'}")),
             ("s.xenapi.a.b()", fixed("['Status']")), ("s.xenapi.a.b()", fixed("('a', 'b')"))],
            asks=[('a.b', None)] * 6)

    def test_missing_value_or_description_is_a_fault(self):
        self.play(
            [answer({'Status': 'Success'}), answer({'Status': 'Failure'}),
             answer({'Status': 'success', 'Value': 'v'})],
            [("s.xenapi.a.b()", fault(500, 'Missing Value in response from server')),
             ("s.xenapi.a.b()", fault(500, 'Missing ErrorDescription in response from server')),
             ("s.xenapi.a.b()", fault(500, 'Missing ErrorDescription in response from server'))],
            asks=[('a.b', None)] * 3)

    def test_description_without_a_code_is_as_good_as_missing(self):
        # A bug of the SDK's: it looks at the first element of whatever there is.
        missing = fault(500, 'Missing ErrorDescription in response from server')
        self.play(
            [answer({'Status': 'Failure', 'ErrorDescription': each})
             for each in ([], '', None, 5, {'code': 'X'})],
            [("s.xenapi.a.b()", Fixed(ours=missing, sdk=Raised('IndexError'))),
             ("s.xenapi.a.b()", Fixed(ours=missing, sdk=Raised('IndexError'))),
             ("s.xenapi.a.b()", Fixed(ours=missing, sdk=Raised('TypeError'))),
             ("s.xenapi.a.b()", Fixed(ours=missing, sdk=Raised('TypeError'))),
             ("s.xenapi.a.b()", Fixed(ours=missing, sdk=Raised('KeyError')))],
            asks=[('a.b', None)] * 5)

    def test_http_errors_broken_xml_and_faults_are_those_of_the_standard_library(self):
        self.play(
            [http('<html/>', '500 Internal Server Error'), http('', '404 Not Found'),
             http('<methodResponse><params>'), http('not XML'), http(''),
             http(xmlrpc.client.dumps(xmlrpc.client.Fault(3, 'fie'), methodresponse=True)),
             Answer(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<?xml', 'close'),
             Answer(b'garbage\r\n\r\n', 'close'),
             success('well')],
            [("s.xenapi.a.b()", Raised('ProtocolError', (500, 'Internal Server Error'))),
             ("s.xenapi.a.b()", Raised('ProtocolError', (404, 'Not Found'))),
             ("s.xenapi.a.b()", Raised('ExpatError')),
             ("s.xenapi.a.b()", Raised('ExpatError')),
             ("s.xenapi.a.b()", Raised('ExpatError')),
             ("s.xenapi.a.b()", fault(3, 'fie')),
             ("s.xenapi.a.b()", Raised('ExpatError')),
             ("s.xenapi.a.b()", Raised('BadStatusLine')),
             ("s.xenapi.a.b()", 'well')],
            asks=[('a.b', None)] * 9)

    def test_values_as_xapi_spells_them(self):
        self.play(
            [http('<?xml version="1.0"?><methodResponse><params><param><value><struct><member>'
                  '<name>Status</name><value>Success</value></member><member><name>Value</name>'
                  '<value>%s</value></member></struct></value></param></params></methodResponse>'
                  % value)
             for value in (
                 '', '8589934592', '<boolean>1</boolean>', '<double>-1</double>',
                 'a &lt;&amp;&gt; b', '<array><data/></array>', '<struct/>', '<nil/>',
                 '<struct><member><name>snapshot_time</name><value><dateTime.iso8601>'
                 '20240131T23:59:59Z</dateTime.iso8601></value></member><member><name>VBDs</name>'
                 '<value><array><data><value>OpaqueRef:1</value></data></array></value></member>'
                 '</struct>')],
            [("s.xenapi.a.b()", value) for value in (
                '', '8589934592', True, -1.0, 'a <&> b', [], {}, None,
                {'snapshot_time': xmlrpc.client.DateTime('20240131T23:59:59Z'),
                 'VBDs': ['OpaqueRef:1']})],
            asks=[('a.b', None)] * 9)

    # Parameters

    def test_parameters_of_every_type_arrive(self):
        date = xmlrpc.client.DateTime('20240131T23:59:59Z')
        self.play(
            [success({'名': ['é', 'a\tb\n']}), success('')],
            [("s.xenapi.VM.set_name_label('r', '名前 \U0001f600 <&>')",
              {'名': ['é', 'a\tb\n']}),
             ("s.xenapi.a.b(None, True, 0.5, -2**31, 2**31 - 1, ['x', []], {'k': {'': None}}, (),"
              " xmlrpc.client.DateTime('20240131T23:59:59Z'))", '')],
            asks=[('VM.set_name_label', None, 'r', '名前 \U0001f600 <&>'),
                  ('a.b', None, None, True, 0.5, -2**31, 2**31 - 1, ['x', []], {'k': {'': None}},
                   [], date)])

    def test_what_xmlrpc_cannot_say_is_not_sent(self):
        self.play(
            [success('')],
            [("s.xenapi.a.b(2**31)", Raised('OverflowError', ('int exceeds XML-RPC limits',))),
             ("s.xenapi.a.b(-2**31 - 1)", Raised('OverflowError')),
             ("s.xenapi.a.b({1: 'x'})", Raised('TypeError', ('dictionary key must be string',))),
             ("s.xenapi.a.b(object)", Raised('TypeError')),
             ("s.xenapi.a.b(str(2**31))", '')],
            asks=[('a.b', None, '2147483648')])

    def test_keyword_arguments_are_refused(self):
        self.play(
            [],
            [("s.xenapi.VM.get_all(x=1)", Raised('TypeError')),
             ("s.xenapi.login_with_password(uname='root', pwd='pw')", Raised('TypeError')),
             ("s.login_with_password(uname='root', pwd='pw')", Raised('TypeError')),
             ("s.logout(x=1)", Raised('TypeError'))],
            asks=[])

    def test_none_can_be_forbidden(self):
        forbidden = Raised('TypeError', ('cannot marshal None unless allow_none is enabled',))
        self.play(
            [LOGGED_IN, success('')],
            [("s.xenapi.VM.get_all()", forbidden), ("s.login_with_password('root', 'pw')", None),
             ("s.xenapi.a.b(None)", forbidden), ("s.xenapi.a.b('')", '')],
            asks=[('session.login_with_password', 'root', 'pw'), ('a.b', 'OpaqueRef:A', '')],
            session="X.Session(uri, allow_none=0)")

    def test_encoding_of_requests_can_be_chosen(self):
        self.play([success('')], [("s.a.b('é')", {'Status': 'Success', 'Value': ''})],
                  asks=[('a.b', 'é')], session="X.Session(uri, None, 'iso-8859-1')")

    # Names

    def test_any_name_can_be_dispatched(self):
        self.play(
            [success('1'), success('2'), success('3'), success('4')],
            [("s.xenapi.Async.VM.snapshot('x', 'y')", '1'),
             ("s.xenapi.VM.__len__()", '2'),
             ("getattr(getattr(s.xenapi, 'event'), 'from')([], '', 30.0)", '3'),
             ("s.xenapi_request('host.call_plugin', ('x',))", '4')],
            asks=[('Async.VM.snapshot', None, 'x', 'y'), ('VM.__len__', None),
                  ('event.from', None, [], '', 30.0), ('host.call_plugin', None, 'x')])

    def test_dispatchers_show_their_name(self):
        self.play(
            [],
            [("repr(s.xenapi)", '<XenAPI._Dispatcher>'),
             ("repr(s.xenapi.VM.get_all)", '<XenAPI._Dispatcher for VM.get_all>'),
             ("repr(s.logout)", '<XenAPI._Dispatcher for logout>'),
             ("repr(s.xenapi.login_with_password)",
              '<XenAPI._Dispatcher for login_with_password>'),
             ("hasattr(s.xenapi, '__nothing__')", True),
             ("s.xenapi.VM == s.xenapi.VM", False),
             ("s.xenapi()", Raised('AttributeError'))],
            asks=[])

    def test_magic_names_are_refused_when_called(self):
        def refused(*args):
            return Raised('NotImplementedError',
                          ('XMLRPC proxies do not support python magic methods',) + args)
        self.play(
            [],
            [("hasattr(s, '__len__')", True),
             ("s.__len__()", refused('__len__', (), {})),
             ("s.__foo__(1, a=2)", refused('__foo__', (1,), {'a': 2})),
             ("s.xenapi.__foo__(1)", refused('__foo__', (None, 1), {})),
             ("len(s)", Raised('TypeError')),
             ("bool(s)", True), ("s == s", True), ("s == 1", False),
             ("copy.deepcopy(s)", refused('__deepcopy__', ({},), {}))],
            asks=[])

    def test_copy_of_a_session_is_refused_without_telling_the_password(self):
        # A bug of the SDK's: the error carries the session's whole state, the password with it
        # (from Python 3.11 on); and it lets itself be pickled, if not unpickled, with the same.
        self.play(
            [LOGGED_IN],
            [("s.login_with_password('root', 'secret')", None), ("s('close')()", None),
             ("copy.copy(s)", Fixed(
                 ours=Raised('NotImplementedError',
                             ('XMLRPC proxies do not support python magic methods',
                              '__getstate__', (), {})),
                 sdk=Raised('NotImplementedError')))],
            asks=[('session.login_with_password', 'root', 'secret')])

    def test_methods_named_like_the_sessions_own_attributes_are_requests(self):
        # A bug of the SDK's: its xenapi.handle() calls the session's handle, and so on.
        def sent(value, error):
            return Fixed(ours=value, sdk=Raised(error))
        self.play(
            [success('1'), success('2'), success('3'), success('4')],
            [("s.xenapi.handle('x')", sent('1', 'TypeError')),
             ("s.xenapi.transport()", sent('2', 'TypeError')),
             ("s.xenapi.API_version()", sent('3', 'TypeError')),
             ("s.xenapi.xenapi('x')", sent('4', 'AttributeError'))],
            asks=[('handle', None, 'x'), ('transport', None), ('API_version', None),
                  ('xenapi', None, 'x')],
            sdk_asks=[])

    def test_other_names_on_the_session_are_raw_methods(self):
        self.play(
            [LOGGED_IN, success('v'), EXPIRED, answer(['a', 'b'])],
            [("s.login_with_password('root', 'pw')", None),
             ("s.VM.get_all('x')", {'Status': 'Success', 'Value': 'v'}),
             ("s.VM.get_all(s.handle)",
              {'Status': 'Failure', 'ErrorDescription': ['SESSION_INVALID', 'OpaqueRef:A']}),
             ("s.system.listMethods()", ['a', 'b'])],
            asks=[('session.login_with_password', 'root', 'pw'), ('VM.get_all', 'x'),
                  ('VM.get_all', 'OpaqueRef:A'), ('system.listMethods',)])

    def test_new_session_is_nobody(self):
        self.play(
            [],
            [("(s.transport, s._session, s.last_login_method, s.last_login_params, s._API_version)",
              (None, None, None, None, '1.1')),
             ("isinstance(s, xmlrpc.client.ServerProxy)", True),
             ("repr(X.Session('http://host'))", '<Session for host/RPC2>'),
             ("str(X.Session('https://host:8443/'))", '<Session for host:8443/>')],
            asks=[])

    # Failure

    def test_failure_is_its_details(self):
        made = "X.Failure(['CODE', 'é', '2'])"
        self.play(
            [],
            [(made + ".details", ['CODE', 'é', '2']), (made + ".args", (['CODE', 'é', '2'],)),
             ("str(%s)" % made, "['CODE', 'é', '2']"),
             ("repr(%s)" % made, "Failure(['CODE', 'é', '2'])" if sys.version_info >= (3, 7)
              else "Failure(['CODE', 'é', '2'],)"),
             (made + "._details_map()", {'0': 'CODE', '1': 'é', '2': '2'}),
             ("'%(0)s: %(1)s' % X.Failure(['A', 'b'])._details_map()", 'A: b'),
             ("str(X.Failure([]))", '[]'), ("str(X.Failure('text'))", 'text'),
             ("str(X.Failure(None))", 'None'),
             ("isinstance(%s, Exception)" % made, True),
             ("X.Failure()", Raised('TypeError')), ("X.Failure('A', 'b')", Raised('TypeError'))],
            asks=[])

    def test_failure_can_be_copied_and_pickled(self):
        for how in ('copy.copy(f)', 'copy.deepcopy(f)', 'pickle.loads(pickle.dumps(f))',
                    'pickle.loads(pickle.dumps(f, 0))'):
            with self.subTest(how):
                self.play([], [("(lambda f: (type(%s) is X.Failure, (%s).details, (%s).args))"
                                "(X.Failure(['A', 'b']))" % (how, how, how),
                                (True, ['A', 'b'], (['A', 'b'],)))], asks=[])

    def test_failure_by_keyword_is_the_same(self):
        # A bug of the SDK's: such a one has no args, so it shows nothing and cannot be unpickled.
        self.play([], [("X.Failure(details=['A']).details", ['A']),
                       ("X.Failure(details=['A']).args", Fixed(ours=(['A'],), sdk=()))], asks=[])

    def test_failure_can_be_printed_whatever_it_holds(self):
        complaint = io.StringIO()
        with contextlib.redirect_stderr(complaint):
            self.play([], [("str(X.Failure([Garbled()]))", 'Xen-API failure: unprintable')],
                      asks=[])
        times = complaint.getvalue().count('Xen-API failure: unprintable')
        self.assertEqual(complaint.getvalue(), 'Xen-API failure: unprintable' * times)
        self.assertEqual(times, self.PLAYERS)

    # Connections

    def test_one_connection_serves_until_it_is_closed(self):
        self.play(
            [success('1'), success('2'), success('3'), success('4', then='close'), success('5')],
            [("s.xenapi.a.b()", '1'), ("s.xenapi.a.b()", '2'),
             ("s('close')()", None), ("s('close')()", None), ("s.xenapi.a.b()", '3'),
             ("s.xenapi.a.b()", '4'), ("s.xenapi.a.b()", '5')],
            asks=[('a.b', None)] * 5, connections=[1, 1, 2, 2, 3])

    def test_request_on_a_dropped_connection_is_sent_once_more(self):
        self.play(
            [success('1'), HANGS_UP, success('2'), HANGS_UP, HANGS_UP, success('3')],
            [("s.xenapi.a.b()", '1'), ("s.xenapi.a.b()", '2'),
             ("s.xenapi.a.b()", Raised('RemoteDisconnected')),
             ("s.xenapi.a.b()", '3')],
            asks=[('a.b', None)] * 6, connections=[1, 1, 2, 2, 3, 4])

    def test_server_that_says_close_is_obeyed(self):
        self.play(
            [http(success('').raw.partition(b'\r\n\r\n')[2], headers=['Connection: close'],
                  then='close'), success('2')],
            [("s.xenapi.a.b()", ''), ("s.xenapi.a.b()", '2')],
            asks=[('a.b', None)] * 2, connections=[1, 2])

    def test_refused_connection_is_an_oserror(self):
        with socket.socket() as nobody_listens:
            nobody_listens.bind(('127.0.0.1', 0))
            uri = 'http://127.0.0.1:%d' % nobody_listens.getsockname()[1]
            self.play(
                [],
                [("s.login_with_password('root', 'pw')", Raised('ConnectionRefusedError')),
                 ("s.xenapi.a.b()", Raised('ConnectionRefusedError')),
                 ("s.handle", None)],
                asks=[], session="X.Session(%r)" % uri)

    def test_with_closes_the_connection_and_logs_nobody_out(self):
        self.play(
            [LOGGED_IN, success('v')],
            [("s.__enter__() is s", True),
             ("s.login_with_password('root', 'pw')", None),
             ("s.__exit__(None, None, None)", None),
             ("s.handle", 'OpaqueRef:A'), ("s.xenapi.a.b()", 'v')],
            asks=[('session.login_with_password', 'root', 'pw'), ('a.b', 'OpaqueRef:A')],
            connections=[1, 2])

    def test_session_call_knows_close_and_transport_only(self):
        self.play(
            [],
            [("isinstance(s('transport'), xmlrpc.client.Transport)", True),
             ("s('handle')", Raised('AttributeError'))],
            asks=[])

    def test_uri_decides_path_and_authorization(self):
        for uri, line in (("uri", 'POST /RPC2 HTTP/1.1'), ("uri + '/'", 'POST / HTTP/1.1'),
                          ("uri + '/a/b'", 'POST /a/b HTTP/1.1'),
                          ("uri.replace('http://', 'HTTP://')", 'POST /RPC2 HTTP/1.1'),
                          ("uri.replace('//', '//me:secret@')", 'POST /RPC2 HTTP/1.1')):
            with self.subTest(uri):
                requests = self.play([success('v')], [("s.xenapi.a.b()", 'v')],
                                     asks=[('a.b', None)], session="X.Session(%s)" % uri)
                headers = dict(requests[0].headers)
                self.assertEqual(requests[0].line, line)
                self.assertEqual(headers['Host'], '127.0.0.1:PORT')
                self.assertEqual(headers.get('Authorization'), 'Basic ' + base64.b64encode(
                    b'me:secret').decode() if 'secret' in uri else None)

    def test_other_protocols_are_refused(self):
        unsupported = Raised('OSError', ('unsupported XML-RPC protocol',))
        self.play(
            [],
            [("X.Session('ftp://host/')", unsupported), ("X.Session('unix:/path')", unsupported),
             ("X.Session('host')", unsupported)],
            asks=[])

    def test_transport_of_the_callers_own_is_used(self):
        self.play(
            [success('v')],
            [("s.xenapi.a.b()", 'v'), ("s.transport is s('transport')", True)],
            asks=[('a.b', None)],
            session="X.Session(uri, transport=xmlrpc.client.Transport(use_builtin_types=True))")

    def test_environment_adds_no_headers_over_tcp(self):
        requests = self.play([success('v')], [("s.xenapi.a.b()", 'v')], asks=[('a.b', None)],
                             environ=dict.fromkeys(FROM_ENVIRONMENT, 'x'))
        self.assertEqual([name for name, _value in requests[0].headers],
                         ['Host', 'Accept-Encoding', 'Content-Type', 'Content-Length'])

    # TLS

    def test_unknown_certificate_is_refused(self):
        self.play([success('v')], [("s.xenapi.a.b()", Raised(
            'SSLCertVerificationError' if sys.version_info >= (3, 7) else 'SSLError'))],
            asks=[], door='tls')

    def test_unknown_certificate_can_be_ignored(self):
        self.play([LOGGED_IN, success('v')],
                  [("s.login_with_password('root', 'pw')", None), ("s.xenapi.a.b()", 'v')],
                  asks=[('session.login_with_password', 'root', 'pw'), ('a.b', 'OpaqueRef:A')],
                  door='tls', session="X.Session(uri, ignore_ssl=True)", connections=[1, 1])

    def test_trusted_certificate_is_verified(self):
        self.play([success('v')], [("s.xenapi.a.b()", 'v')], asks=[('a.b', None)], door='tls',
                  environ={'SSL_CERT_FILE': CERTIFICATE})

    def test_ignore_ssl_means_nothing_without_tls(self):
        self.play([success('v')], [("s.xenapi.a.b()", 'v')], asks=[('a.b', None)],
                  session="X.Session(uri, ignore_ssl=True)")

    # Unix socket

    def test_unix_socket_is_spelled_as_a_host(self):
        path = unix_path(self)
        requests = self.play(
            [LOGGED_IN, success('v'), HANGS_UP, success('w')],
            [("s.xenapi.login_with_password('root', '')", None), ("s.xenapi.a.b()", 'v'),
             ("s.xenapi.a.b()", 'w'),
             ("isinstance(s('transport'), xmlrpc.client.Transport)", True)],
            asks=[('session.login_with_password', 'root', ''), ('a.b', 'OpaqueRef:A'),
                  ('a.b', 'OpaqueRef:A'), ('a.b', 'OpaqueRef:A')],
            door=path, session="X.Session(uri + '/', transport=X.UDSTransport())",
            connections=[1, 1, 1, 2])
        self.assertEqual(requests[0].line, 'POST / HTTP/1.1')
        self.assertEqual(requests[0].headers, [
            ('Host', path.replace('/', '_')), ('Accept-Encoding', 'gzip'),
            ('Content-Type', 'text/xml'), ('Content-Length', str(len(requests[0].body)))])

    def test_unix_requests_carry_what_the_environment_says(self):
        requests = self.play(
            [success('v'), success('w')],
            [("s.xenapi.a.b()", 'v'), ("os.environ.update(TRACEPARENT='00-1-2-01')", None),
             ("s('transport').add_extra_header('x-lost', 'as make_connection begins anew')", None),
             ("s.xenapi.a.b()", 'w')],
            asks=[('a.b', None)] * 2, door=unix_path(self), connections=[1, 1],
            session="X.Session(uri, transport=X.UDSTransport())",
            environ={'ORIGINATOR': 'VmBackup', 'BAGGAGE': 'k=v', 'TRACEPARENT': ''})
        always = {'Host', 'Accept-Encoding', 'Content-Type', 'Content-Length'}
        self.assertEqual([[each for each in request.headers if each[0] not in always]
                          for request in requests],
                         [[('baggage', 'k=v'), ('originator', 'VmBackup')],
                          [('traceparent', '00-1-2-01'), ('baggage', 'k=v'),
                           ('originator', 'VmBackup')]])

    def test_unix_socket_without_a_server_is_an_oserror(self):
        path = unix_path(self)
        session = "X.Session('http://%s', transport=X.UDSTransport())" % path.replace('/', '_')
        with socket.socket(socket.AF_UNIX) as nobody_listens:
            self.play([], [("s.xenapi.a.b()", Raised('FileNotFoundError'))], asks=[],
                      session=session)
            nobody_listens.bind(path)
            self.play([], [("s.xenapi.a.b()", Raised('ConnectionRefusedError'))], asks=[],
                      session=session)

    def test_local_session_is_at_xapis_own_socket(self):
        self.play(
            [],
            [("repr(X.xapi_local())", '<Session for _var_lib_xcp_xapi/>'),
             ("isinstance(X.xapi_local().transport, X.UDSTransport)", True),
             ("X.xapi_local().handle", None)],
            asks=[])

    def test_unix_connection_stands_alone(self):
        path = unix_path(self)
        self.play(
            [success('v')],
            [("(lambda c: (c.request('POST', '/', '<methodCall/>'), c.getresponse().status,"
              " c.close()))(X.UDSHTTPConnection(%r))" % path.replace('/', '_'),
              (None, 200, None))],
            asks=None, door=path)


# ----------------------------------------------------------------------------------------------
# Who plays it
# ----------------------------------------------------------------------------------------------

class OursAlone(Calls, unittest.TestCase):
    """Our module does what the script says."""

    PLAYERS = 1

    def play(self, script, steps, asks, session="X.Session(uri)", door='tcp', environ=(),
             connections=None, sdk_asks=None):
        """Play it; give the requests. asks=None: not calls, so they are not compared."""
        played = perform(XenAPI, script, steps, session, door, dict(environ))
        self.compare(played, steps, 'ours', asks)
        if connections:
            self.assertEqual([request.connection for request in played.requests], connections)
        return played.requests

    def compare(self, played, steps, whose, asks):
        for (step, expected), came in zip(steps, played.outcomes):
            if isinstance(expected, Fixed):
                expected = getattr(expected, whose)
            self.assertEqual(came, expected, '%s: %s' % (whose, step))
            self.assertIs(type(came), type(expected), '%s: %s' % (whose, step))
        if asks is not None:
            self.assertEqual([request.call for request in played.requests], asks, whose)


@unittest.skipUnless(SDK, 'NOT COMPARED WITH THE SDK: its package is missing (pip install XenAPI)')
class BesideTheSdk(OursAlone):
    """The SDK's module does what the script says too, and nothing can tell the two apart."""

    PLAYERS = 2

    def play(self, script, steps, asks, session="X.Session(uri)", door='tcp', environ=(),
             connections=None, sdk_asks=None):
        ours, theirs = (perform(module, script, steps, session, door, dict(environ))
                        for module in (XenAPI, SDK))
        self.compare(ours, steps, 'ours', asks)
        self.compare(theirs, steps, 'sdk', asks if sdk_asks is None else sdk_asks)
        for (step, expected), our, their in zip(steps, ours.outcomes, theirs.outcomes):
            if not isinstance(expected, Fixed):
                self.assertEqual(our, their, step)
        if sdk_asks is None:
            self.assertEqual(ours.requests, theirs.requests)
        return ours.requests

    def test_module_has_every_public_name_of_the_sdks(self):
        for name in dir(SDK):
            if not name.startswith('__'):
                with self.subTest(name):
                    self.assertIs(type(getattr(XenAPI, name)), type(getattr(SDK, name)))
        for name in ('API_VERSION_1_1', 'API_VERSION_1_2', 'otel', 'httplib', 'xmlrpclib'):
            self.assertEqual(getattr(XenAPI, name), getattr(SDK, name))


# ----------------------------------------------------------------------------------------------
# What the SDK has not
# ----------------------------------------------------------------------------------------------

class TestTimeout(unittest.TestCase):

    def assert_times_out(self, answers, door='tcp', session="X.Session(uri, timeout=0.2)"):
        with ScriptedServer(door, answers) as server:
            with eval(session, {'X': XenAPI, 'uri': server.uri, 'path': door}) as s:
                for _each in answers[:-1]:
                    self.assertEqual(s.xenapi.a.b(), 'v')
                with self.assertRaises(socket.timeout) as caught:
                    s.xenapi.a.b()
        self.assertIsInstance(caught.exception, OSError)
        self.assertEqual(len(server.requests), len(answers))

    def test_silent_server_is_given_up(self):
        for door, session in (
                ('tcp', "X.Session(uri, timeout=0.2)"),
                ('tls', "X.Session(uri, ignore_ssl=True, timeout=0.2)"),
                (unix_path(self), "X.xapi_local(path, timeout=0.2)"),
                (unix_path(self), "X.Session(uri, transport=X.UDSTransport(timeout=0.2))")):
            with self.subTest(session):
                self.assert_times_out([IS_SILENT], door, session)

    def test_server_that_falls_silent_in_mid_answer_is_given_up(self):
        half = success('v').raw[:-20]
        self.assert_times_out([Answer(half, 'silence')])
        self.assert_times_out([Answer(half, 'silence')], unix_path(self),
                              "X.xapi_local(path, timeout=0.2)")

    def test_timeout_holds_on_later_requests_and_connections(self):
        before = [success('v'), success('v', then='close'), success('v')]
        self.assert_times_out(before + [IS_SILENT])
        self.assert_times_out(before + [IS_SILENT], unix_path(self),
                              "X.xapi_local(path, timeout=0.2)")

    def test_session_can_be_used_after_a_timeout(self):
        for door, session in (('tcp', "X.Session(uri, timeout=1)"),
                              (unix_path(self), "X.xapi_local(path, timeout=1)")):
            with self.subTest(session), ScriptedServer(door, [IS_SILENT, success('v')]) as server:
                with eval(session, {'X': XenAPI, 'uri': server.uri, 'path': door}) as s:
                    with self.assertRaises(socket.timeout):
                        s.xenapi.a.b()
                    self.assertEqual(s.xenapi.a.b(), 'v')
                self.assertEqual([each.connection for each in server.requests], [1, 2])

    def test_login_that_times_out_says_so_and_leaves_nobody_logged_in(self):
        with ScriptedServer('tcp', [IS_SILENT]) as server:
            with XenAPI.Session(server.uri, timeout=0.2) as session:
                with self.assertRaises(socket.timeout):
                    session.login_with_password('root', 'pw')
                self.assertIsNone(session.handle)
                self.assertIsNone(session.last_login_params)

    def test_server_that_never_shakes_hands_is_given_up(self):
        with socket.socket() as listener:
            listener.bind(('127.0.0.1', 0))
            listener.listen(1)
            hang_up = threading.Timer(PATIENCE, listener.shutdown, [socket.SHUT_RDWR])
            hang_up.start()
            self.addCleanup(hang_up.cancel)
            uri = 'https://127.0.0.1:%d' % listener.getsockname()[1]
            with self.assertRaises(socket.timeout):
                XenAPI.Session(uri, timeout=0.2).xenapi.a.b()

    def test_answer_in_time_is_taken(self):
        for door, session in (('tcp', "X.Session(uri, timeout=PATIENCE)"),
                              ('tls', "X.Session(uri, ignore_ssl=True, timeout=PATIENCE)"),
                              (unix_path(self), "X.xapi_local(path, PATIENCE)")):
            with self.subTest(session), ScriptedServer(door, [success('v')]) as server:
                names = {'X': XenAPI, 'uri': server.uri, 'path': door, 'PATIENCE': PATIENCE}
                with eval(session, names) as s:
                    self.assertEqual(s.xenapi.a.b(), 'v')

    def test_certificates_are_verified_with_a_timeout_too(self):
        with ScriptedServer('tls', []) as server:
            with self.assertRaises(ssl.SSLError):
                XenAPI.Session(server.uri, timeout=PATIENCE).xenapi.a.b()

    def test_timeout_beside_a_transport_is_refused(self):
        with self.assertRaises(ValueError):
            XenAPI.Session('http://host', transport=xmlrpc.client.Transport(), timeout=1)


class TestUnixPath(unittest.TestCase):

    def test_socket_may_lie_anywhere(self):
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        for name in ('a_b__c', '_', 'with blank', 'with:colon', '[x]', 'a@b?c#d%41',
                     os.fsdecode('é'.encode()), os.fsdecode(b'\xff')):
            path = os.path.join(directory, name)
            with self.subTest(os.fsencode(path)), ScriptedServer(path, [success('v')]):
                with XenAPI.xapi_local(path) as session:
                    self.assertEqual(session.xenapi.a.b(), 'v')

    def test_path_is_heeded_by_transport_and_connection(self):
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        path = os.path.join(directory, 'x_y')
        with ScriptedServer(path, [success('v'), success('w')]) as server:
            transport = XenAPI.UDSTransport(path=path, timeout=PATIENCE)
            with XenAPI.Session('http://anything/', transport=transport) as session:
                self.assertEqual(session.xenapi.a.b(), 'v')
            connection = XenAPI.UDSHTTPConnection('anything', path=path)
            self.addCleanup(connection.close)
            connection.request('POST', '/', 'x')
            self.assertEqual(connection.getresponse().status, 200)
        self.assertEqual([dict(request.headers)['Host'] for request in server.requests],
                         ['anything', 'anything'])

    def test_refused_connection_leaves_no_socket_open(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            with self.assertRaises(FileNotFoundError):
                XenAPI.xapi_local('/nowhere/at_all').xenapi.a.b()
            gc.collect()
        self.assertEqual([str(each.message) for each in caught], [])

    def test_transport_keeps_the_options_of_the_standard_one(self):
        transport = XenAPI.UDSTransport(use_builtin_types=True)
        self.assertTrue(transport._use_builtin_types)


class TestSecrets(unittest.TestCase):

    def test_repr_of_a_session_shows_no_password(self):
        with ScriptedServer('tcp', [LOGGED_IN]) as server:
            uri = server.uri.replace('//', '//me:hidden@')
            with XenAPI.Session(uri + '/a@b') as session:
                session.xenapi.login_with_password('root', 'secret')
                self.assertEqual(repr(session), '<Session for %s/a@b>' % server.address)
                self.assertEqual(str(session), repr(session))
                for thing in (session.xenapi, session.logout, session.login_with_password):
                    self.assertNotIn('secret', repr(thing))

    def test_pickle_of_a_session_is_refused(self):
        with self.assertRaises(NotImplementedError):
            pickle.dumps(XenAPI.Session('http://host'))


class TestModule(unittest.TestCase):

    def test_it_is_the_one_of_this_repository_that_is_tested(self):
        self.assertTrue(os.path.samefile(XenAPI.__file__, os.path.join(ROOT, 'XenAPI.py')))

    def test_import_looks_for_nothing_beyond_the_standard_library(self):
        with tempfile.TemporaryDirectory() as decoys:
            with open(os.path.join(decoys, 'opentelemetry.py'), 'w') as decoy:
                decoy.write('raise SystemExit("imported")')
            script = 'import XenAPI; print(XenAPI.otel)'
            environ = dict(os.environ, PYTHONPATH=decoys, OTEL_SDK_DISABLED='false')
            ended = subprocess.run([sys.executable, '-c', script], cwd=ROOT, env=environ,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual((ended.returncode, ended.stdout), (0, b'False\n'))


if __name__ == '__main__':
    unittest.main()
