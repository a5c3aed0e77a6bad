# SPDX-License-Identifier: GPL-3.0-or-later
"""XenAPI: the management API of a XenServer or XCP-ng pool, from Python 3.6 and later.

    session = XenAPI.Session('https://pool.example.org', ignore_ssl=True, timeout=60)
    # or, on a host of the pool itself, with any password: session = XenAPI.xapi_local()
    session.xenapi.login_with_password('root', password, '1.0', 'VmBackup')
    try:
        for ref, vm in session.xenapi.VM.get_all_records().items():
            print(vm['name_label'])
    except XenAPI.Failure as failure:
        print(failure.details)                           # ['HANDLE_INVALID', 'VM', 'OpaqueRef:...']
    finally:
        session.xenapi.logout()

It takes the place of the SDK's module of the same name: what scripts use of that has the same
names, sends the same requests and gives the same results and errors (tests/rules/test_xenapi.py
compares the two call by call, with the PyPI package XenAPI 26.21.1). New here: a timeout for all of
a call, limits of what may answer it, a pool's own certificates, a user agent, and unix sockets of
any path.

What Python gets: strings, enums and references as str, 64-bit integers as str too (send them so),
bool, float, list, dict, and xmlrpc.client.DateTime (xapi: the XML-RPC codec of ocaml-rpc).

A session is one kept-alive connection: it is not safe to share one between threads. A request that
finds the connection dropped is sent once more by the standard library (xmlrpc.client.Transport).
"""

import contextlib
import http.client as httplib
import io
import os
import re
import socket
import ssl
import time
import xmlrpc.client as xmlrpclib

API_VERSION_1_1 = '1.1'
API_VERSION_1_2 = '1.2'


# ----------------------------------------------------------------------------------------------
# Errors and answers
# ----------------------------------------------------------------------------------------------

class Failure(Exception):
    """The pool's refusal: `details` is the list that it sent, first the code, then its parameters.

    Codes and parameters: xapi: ocaml/idl/datamodel_errors.ml.
    """

    def __init__(self, details):
        super().__init__(details)
        self.details = details

    def __str__(self):
        return str(self.details)


class BadAnswer(xmlrpclib.ResponseError):
    """What came is no answer, or one that would take memory or time without end."""

    def __str__(self):
        return str(self.args[0])


class _SessionInvalid(Exception):
    """The pool does not know the session (any more)."""


def _value_of(answer):
    """Return the value in an answer's {'Status': ...}.

    Raises _SessionInvalid, Failure for another refusal, Fault 500 for an answer that is none.
    """
    if not isinstance(answer, dict) or 'Status' not in answer:
        raise xmlrpclib.Fault(500, 'Missing Status in response from server%s' % (answer,))
    if answer['Status'] == 'Success':
        if 'Value' not in answer:
            raise xmlrpclib.Fault(500, 'Missing Value in response from server')
        return answer['Value']
    details = answer.get('ErrorDescription')
    if not details or not isinstance(details, (list, str)):
        raise xmlrpclib.Fault(500, 'Missing ErrorDescription in response from server')
    if details[0] == 'SESSION_INVALID':
        raise _SessionInvalid
    raise Failure(details)


# ----------------------------------------------------------------------------------------------
# Parsing: an answer costs a few times its bytes at most, whoever wrote it
# ----------------------------------------------------------------------------------------------

LONGEST_ANSWER = 2**29  # bytes, with headers; a VM's record has 6,000, a snapshot's ten times that
MOST_COLLECTIONS = 2**20     # a VM's record has 15; an empty one takes 20 times its bytes
LONGEST_TAG = 2**16     # bytes; expat reads one again with each part of it that arrives
LONGEST_NUMBER = 400    # digits, as a double has 309; int() takes hours for millions
NUMBERS = {'int', 'i1', 'i2', 'i4', 'i8', 'biginteger', 'bigdecimal', 'double', 'float'}
DEEPEST = 100           # elements within each other; a map in a map of records has 17


class _Parser(xmlrpclib.ExpatParser):
    """Refuses declarations, and so entities; tags, elements and numbers without end."""

    def __init__(self, target):
        super().__init__(target)
        self._fed = 0
        begin, finish = target.start, target.end    # closures take half the time of methods
        depth = collections = 0

        def start(tag, attributes):
            nonlocal depth, collections
            depth += 1
            collections += tag in ('struct', 'array')
            if collections > MOST_COLLECTIONS:
                raise BadAnswer('an answer of more than %d records and lists' % MOST_COLLECTIONS)
            if depth > DEEPEST:
                raise BadAnswer('an answer with more than %d elements within each other' % DEEPEST)
            begin(tag, attributes)

        def end(tag):
            nonlocal depth
            depth -= 1
            if (tag in NUMBERS or ':' in tag) and sum(map(len, target._data)) > LONGEST_NUMBER:
                raise BadAnswer('an answer with a number of more than %d digits' % LONGEST_NUMBER)
            finish(tag)

        def refuse(*_declaration):
            raise BadAnswer('an answer with a declaration')

        self._parser.StartElementHandler, self._parser.EndElementHandler = start, end
        self._parser.StartDoctypeDeclHandler = refuse

    def feed(self, data):
        """Parse a part of an answer. Raises BadAnswer."""
        super().feed(data)
        self._fed += len(data)
        if self._fed - self._parser.CurrentByteIndex > LONGEST_TAG:
            raise BadAnswer('an answer with a tag of more than %d bytes' % LONGEST_TAG)


# ----------------------------------------------------------------------------------------------
# Connections: TCP, TLS, unix socket; each with one deadline for a call
# ----------------------------------------------------------------------------------------------

class _Incoming(io.RawIOBase):
    """What the server of a connection sends for one request: LONGEST_ANSWER bytes at most."""

    def __init__(self, connection, connected):
        super().__init__()
        self._connection = connection
        self._stream = connected.makefile('rb', 0)
        self._room = LONGEST_ANSWER

    def makefile(self, _mode):
        """Return a stream of it, as a response asks a socket for."""
        return io.BufferedReader(self)

    def readable(self):
        """Return True."""
        return True

    def readinto(self, buffer):
        """Read some bytes. Raises OSError, BadAnswer."""
        self._connection.hurry()
        count = self._stream.readinto(buffer)
        self._room -= count
        if self._room < 0:
            raise BadAnswer('an answer of more than %d bytes' % LONGEST_ANSWER)
        return count

    def close(self):
        """Let go of the connection, which may be used again."""
        super().close()
        self._stream.close()


class _Bounded:
    """Mixed into a connection: all that it does ends at the moment `until` (of time.monotonic).

    The timeout of a socket is one for each next byte; here it is what remains.
    """

    until = None

    def hurry(self):
        """Have whatever comes next wait no longer than that. Raises socket.timeout."""
        if self.until is None:
            return
        self.timeout = self.until - time.monotonic()
        if self.timeout <= 0:
            raise socket.timeout('timed out')
        if self.sock is not None:
            self.sock.settimeout(self.timeout)

    def connect(self):
        """Open the connection. Raises OSError."""
        self.hurry()
        super().connect()

    def send(self, data):
        """Send bytes, in parts, as TLS has the timeout for each of its own."""
        for begin in range(0, len(data), 16384):
            self.hurry()
            super().send(data[begin:begin + 16384])

    def response_class(self, connected, *args, **options):
        """Return a response that is read from the socket."""
        return httplib.HTTPResponse(_Incoming(self, connected), *args, **options)


class _HTTPConnection(_Bounded, httplib.HTTPConnection):
    """HTTP over TCP."""


class _HTTPSConnection(_Bounded, httplib.HTTPSConnection):
    """HTTP over TLS."""


class UDSHTTPConnection(_Bounded, httplib.HTTPConnection):
    """HTTP over the unix socket `path`, or over the one that the host spells with _ for /.

    The second is the SDK's way, '_var_lib_xcp_xapi', and cannot name a path with a _ in it.
    """

    path = None

    def connect(self):
        """Open the connection. Raises OSError."""
        self.hurry()
        path = self.host.replace('_', '/') if self.path is None else os.fsencode(self.path)
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if isinstance(self.timeout, (int, float)):  # else the socket module's default
                connected.settimeout(self.timeout)
            connected.connect(path)
        except BaseException:
            connected.close()
            raise
        self.sock = connected


# ----------------------------------------------------------------------------------------------
# Transports
# ----------------------------------------------------------------------------------------------

class _Transport(xmlrpclib.Transport):
    """XML-RPC over TCP; `timeout`: seconds for a call with its answer, or None.

    A server is not asked for gzip, a megabyte of which may be a gigabyte, and followed nowhere.
    """

    accept_gzip_encoding = False
    timeout = None
    _until = None

    def connection_to(self, host):
        """Make a connection."""
        return _HTTPConnection(host)

    def make_connection(self, host):
        """Return the connection to `host`, kept from the last request where there was one."""
        if self._connection[0] != host:
            plain_host, self._extra_headers, _ = self.get_host_info(host)
            self._connection = host, self.connection_to(plain_host)
        self._connection[1].until = self._until
        return self._connection[1]

    def request(self, *args, **options):
        """Send a request, twice where the connection was dropped; return what it answers."""
        self._until = None if self.timeout is None else time.monotonic() + self.timeout
        return super().request(*args, **options)

    def single_request(self, host, handler, request_body, verbose=False):
        """Send a request; return what it answers. Any other status than 200 is a ProtocolError."""
        try:
            response = self.send_request(host, handler, request_body, verbose).getresponse()
            coding = response.getheader('Content-Encoding')
            if response.status != 200 or coding:
                raise xmlrpclib.ProtocolError(
                    host + handler, response.status, coding or response.reason,
                    dict(response.getheaders()))
            self.verbose = verbose
            return self.parse_response(response)
        except xmlrpclib.Fault:
            raise
        except Exception:       # of what is left on the connection nobody knows
            self.close()
            raise

    def parse_response(self, response):
        """Return what it holds. Raises as the standard library, BadAnswer for odd elements."""
        try:
            return super().parse_response(response)
        except (ArithmeticError, LookupError, TypeError) as error:
            raise BadAnswer('an answer that is none: %s' % error) from None

    def getparser(self):
        """Return a parser and what collects the values from it."""
        _, target = super().getparser()
        return _Parser(target), target


class _TLSTransport(_Transport):
    """XML-RPC over TLS."""

    context = None

    def connection_to(self, host):
        """Make a connection."""
        return _HTTPSConnection(host, context=self.context)


class _PoolContext(ssl.SSLContext):
    """Asks each server for the certificate that hosts of a pool show each other, by `pool` as the
    server's name (xapi: ocaml/libs/stunnel/stunnel.ml, ocaml/xapi/xapi_stunnel_server.ml)."""

    def wrap_socket(self, *args, **options):
        """Return a TLS socket, once hands are shaken. Raises OSError."""
        return super().wrap_socket(*args, **dict(options, server_hostname='pool'))


def _tcp_transport(uri, ignore_ssl, bundle):
    """Make a transport for an http or https `uri`; it verifies certificates unless `ignore_ssl`,
    and those in a `bundle` in any case. These have a host's uuid, no address (xapi:
    ocaml/gencert/selfcert.ml): no name is compared, as by stunnel's verifyPeer.
    """
    if not uri.startswith('https:'):
        return _Transport()
    transport = _TLSTransport()
    if bundle or ignore_ssl:
        kind = _PoolContext if bundle else ssl.SSLContext
        transport.context = kind(ssl.PROTOCOL_TLS_CLIENT)
        transport.context.check_hostname = False
        transport.context.verify_mode = ssl.CERT_REQUIRED if bundle else ssl.CERT_NONE
    if bundle:
        transport.context.load_verify_locations(bundle)
    return transport


class UDSTransport(_Transport):
    """XML-RPC over a unix socket: that of `path`, or the one that the URI's host spells."""

    path = None

    def connection_to(self, host):
        """Make a connection."""
        connection = UDSHTTPConnection(host)
        connection.path = self.path
        return connection


# ----------------------------------------------------------------------------------------------
# Sessions
# ----------------------------------------------------------------------------------------------

class _Dispatcher:
    """A name in the making: `xenapi.VM.get_all` becomes send('VM.get_all', args) when called."""

    def __init__(self, send, name):
        self.__send = send
        self.__name = name

    def __repr__(self):
        return '<XenAPI._Dispatcher%s>' % (' for ' + self.__name if self.__name else '')

    def __getattr__(self, name):
        if name.startswith('__'):                       # what copy and pickle look for
            raise AttributeError(name)
        return _Dispatcher(self.__send, '%s.%s' % (self.__name, name) if self.__name else name)

    def __call__(self, *args):
        return self.__send(self.__name, args)


class Session(xmlrpclib.ServerProxy):
    """A connection to the pool at `uri` (http:// or https://), and who we are to it once logged in.

    xenapi.CLASS.METHOD(*args)      the method's value, the session being sent as first argument
    xenapi.login_with_password(user, password, version='1.0', originator='')
                                    log in (also login_..., slave_local_login...); gives None
    xenapi.logout()                 log out; nothing happens where nobody is logged in
    handle                          the session's reference, or None

    Login methods and logout may also be called on the session itself. Any other name on it is a raw
    method, as of every ServerProxy: no session is sent, the {'Status': ...} comes back as it is. So
    are `with session:`, which closes the connection but does not log out, and session('close')().

    ignore_ssl: accept any certificate. bundle: path of a PEM file of certificates of hosts; one of
    them has to be shown. timeout: seconds for a call, from connecting (to each of the addresses of
    a name) to the end of the answer, before socket.timeout (an OSError) is raised; None: the server
    may stay silent for as long as socket.getdefaulttimeout() says, for ever unless changed. A login
    of which nobody knows how it ended may have left a session with the pool, which drops it after
    24 idle hours (xapi: ocaml/xapi/xapi_globs.ml, inactive_session_timeout). user_agent: what xapi
    counts its clients by, and limits them (recorded from 26.17.0: host.get_tracked_user_agents);
    None: Python's own.

    Raises Failure for what the pool refuses; xmlrpc.client.Fault for answers that make no sense
    (500) and calls that need a login (401); xmlrpc.client.ProtocolError for HTTP errors and
    redirections, ResponseError for answers beyond our limits; OSError for the rest of the
    network; OverflowError for an int beyond 32 bits.

    A session that the pool has forgotten is renewed with the parameters of the last login, so these
    are kept in memory, and `handle` changes; the caller never sees SESSION_INVALID.
    """

    def __init__(self, uri, transport=None, encoding=None, verbose=False, allow_none=True,
                 ignore_ssl=False, timeout=None, user_agent=None, bundle=None):
        if transport is None:
            transport = _tcp_transport(uri, ignore_ssl, bundle)
            transport.timeout = timeout
            transport.user_agent = user_agent or transport.user_agent
        elif (timeout, user_agent, bundle) != (None, None, None):
            raise ValueError('timeout, user agent and bundle are for a transport made here')
        self.transport = transport
        self._session = None
        self.last_login_method = None
        self.last_login_params = None
        super().__init__(uri, transport, encoding, bool(verbose), bool(allow_none))

    def __repr__(self):
        """Show '<Session for host/path>', without user and password that a URI may hold."""
        return re.sub(' for [^/]*@', ' for ', super().__repr__(), count=1)

    __str__ = __repr__

    def __getattr__(self, name):
        if name == 'handle':
            return self._session
        if name == 'xenapi':
            return _Dispatcher(self.xenapi_request, None)
        if name == 'logout' or name.startswith(('login', 'slave_local')):
            return _Dispatcher(self.xenapi_request, name)
        if name.startswith('__'):                       # what copy and pickle look for
            raise AttributeError(name)
        return super().__getattr__(name)

    def xenapi_request(self, methodname, params):
        """Do what xenapi.METHODNAME(*params) does. Tries three times, each with a new session."""
        if methodname.startswith(('login', 'slave_local')):
            return self._login(methodname, params)
        if methodname in ('logout', 'session.logout'):
            return self._logout()
        for _attempt in range(3):
            try:
                return self._call(methodname, (self._session,) + tuple(params))
            except _SessionInvalid:
                if self.last_login_method is None:
                    raise xmlrpclib.Fault(401, 'You must log in') from None
            self._login(self.last_login_method, self.last_login_params)
        raise xmlrpclib.Fault(500, 'Tried 3 times to get a valid session, but failed')

    def _call(self, methodname, params):
        """Send one request as it stands; return its value. Raises as _value_of.

        Not by our own __getattr__, which has names that are no methods of the pool's.
        """
        return _value_of(super().__getattr__(methodname)(*params))

    def _login(self, method, params):
        try:
            session = self._call('session.' + method, params)
        except _SessionInvalid:
            raise xmlrpclib.Fault(500, 'Received SESSION_INVALID when logging in') from None
        self._session = session
        self.last_login_method = method
        self.last_login_params = params

    def _logout(self):
        """Forget who we are, whether or not the pool hears of it or cares."""
        local = (self.last_login_method or '').startswith('slave_local')
        try:
            with contextlib.suppress(_SessionInvalid):  # it has ended already
                if self._session is not None:
                    self._call('session.local_logout' if local else 'session.logout',
                               (self._session,))
        finally:
            self._session = None
            self.last_login_method = None
            self.last_login_params = None


def xapi_local(path='/var/lib/xcp/xapi', timeout=None, user_agent=None):
    """A Session over this host's unix socket, where login_with_password takes anybody for root.

    On a pool member calls are passed on to the master (xapi: ocaml/xapi/api_server.ml, forward).
    `timeout`, `user_agent`: as Session's.
    """
    transport = UDSTransport()
    transport.path, transport.timeout = path, timeout
    transport.user_agent = user_agent or transport.user_agent
    return Session('http://localhost/', transport)
