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
compares the two call by call, with the PyPI package XenAPI 26.21.1). New here: a timeout, a user
agent, and unix sockets of any path.

What Python gets: strings, enums and references as str, 64-bit integers as str too (send them so),
bool, float, list, dict, and xmlrpc.client.DateTime (xapi: the XML-RPC codec of ocaml-rpc).

A session is one kept-alive connection: it is not safe to share one between threads. A request that
finds the connection dropped is sent once more by the standard library (xmlrpc.client.Transport).
"""

import contextlib
import http.client as httplib
import os
import re
import socket
import ssl
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
# Transports: TCP, TLS, unix socket; each with an optional timeout
# ----------------------------------------------------------------------------------------------

class _Timed:
    """Mixed into a transport: its connections wait `timeout` seconds at most for each next byte."""

    timeout = None

    def make_connection(self, host):
        connection = super().make_connection(host)
        if self.timeout is not None:
            connection.timeout = self.timeout
        return connection


class _HTTPTransport(_Timed, xmlrpclib.Transport):
    """Plain TCP."""


class _HTTPSTransport(_Timed, xmlrpclib.SafeTransport):
    """TLS over TCP."""


def _tcp_transport(uri, ignore_ssl):
    """Make a transport for an http or https `uri`; it verifies certificates unless `ignore_ssl`."""
    if not uri.startswith('https:'):
        return _HTTPTransport()
    if not ignore_ssl:
        return _HTTPSTransport()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _HTTPSTransport(context=context)


class UDSHTTPConnection(httplib.HTTPConnection):
    """HTTP over the unix socket `path`, or over the one that the host spells with _ for /.

    The second is the SDK's way, '_var_lib_xcp_xapi', and cannot name a path with a _ in it.
    """

    path = None

    def connect(self):
        """Open the connection. Raises OSError."""
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


class UDSTransport(xmlrpclib.Transport):
    """XML-RPC over a unix socket: that of `path`, or the one that the URI's host spells."""

    path = timeout = None

    def make_connection(self, host):
        """Return the connection to `host`, kept from the last request where there was one."""
        if self._connection[0] != host:
            self._connection = host, UDSHTTPConnection(host, timeout=self.timeout)
            self._connection[1].path = self.path
        return self._connection[1]


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

    ignore_ssl: accept any certificate. timeout: seconds that the server may stay silent, during
    connecting or any read or write, before socket.timeout (an OSError) is raised; None: as long as
    socket.getdefaulttimeout() says, which is for ever unless changed. A login of which nobody knows
    how it ended may have left a session with the pool, which drops it after 24 idle hours (xapi:
    ocaml/xapi/xapi_globs.ml, inactive_session_timeout). user_agent: what xapi counts its clients
    by, and limits them (recorded from 26.17.0: host.get_tracked_user_agents); None: Python's own.

    Raises Failure for what the pool refuses; xmlrpc.client.Fault for answers that make no sense
    (500) and calls that need a login (401); xmlrpc.client.ProtocolError for HTTP errors; OSError
    for the rest of the network; OverflowError for an int beyond 32 bits.

    A session that the pool has forgotten is renewed with the parameters of the last login, so these
    are kept in memory, and `handle` changes; the caller never sees SESSION_INVALID.
    """

    def __init__(self, uri, transport=None, encoding=None, verbose=False, allow_none=True,
                 ignore_ssl=False, timeout=None, user_agent=None):
        if transport is None:
            transport = _tcp_transport(uri, ignore_ssl)
            transport.timeout = timeout
            transport.user_agent = user_agent or transport.user_agent
        elif timeout is not None or user_agent is not None:
            raise ValueError('a timeout or user agent is for a transport that is made here')
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
