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

It takes the place of the SDK's module of the same name: same names, same requests on the wire, same
results and errors. Its behaviour is that of the PyPI package XenAPI 26.21.1, found by running it;
tests/rules/test_xenapi.py compares the two call by call, and names each bug of the SDK's that is
not repeated. New here: a timeout for every transport, and unix sockets of any path.

What Python gets: strings, enums and references as str, 64-bit integers as str too (send them so),
bool, float, list, dict, and xmlrpc.client.DateTime (xapi: the XML-RPC codec of ocaml-rpc).

A session is one kept-alive connection: it is not safe to share one between threads. A request that
finds the connection dropped is sent once more by the standard library (xmlrpc.client.Transport).
"""

import errno
import functools
import gettext
import http.client as httplib
import os
import re
import socket
import ssl
import sys
import xmlrpc.client as xmlrpclib
from urllib.parse import quote, urlsplit

API_VERSION_1_1 = '1.1'
API_VERSION_1_2 = '1.2'

# Two more names of the SDK's: its message catalogue, and whether it traces its own calls with
# OpenTelemetry (here never; a trace id in the environment is passed on all the same).
translation = gettext.translation('xen-xm', fallback=True)
otel = False

_RECONNECT_AND_RETRY = object()


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
        try:
            return str(self.details)
        except Exception as error:  # details may hold anything; an error must be printable
            text = 'Xen-API failure: %s' % error
            sys.stderr.write(text)
            return text

    def _details_map(self):
        """The details by position, for templates such as '%(0)s': {'0': code, '1': ...}."""
        return {str(position): detail for position, detail in enumerate(self.details)}


def notimplemented(name, *args, **kwargs):
    """Refuse the magic method `name`: a request called `__len__` would make no sense to a pool."""
    raise NotImplementedError('XMLRPC proxies do not support python magic methods',
                              name, args, kwargs)


def _parse_result(result):
    """The value in an answer's {'Status': ...}, or _RECONNECT_AND_RETRY for an unknown session.

    Raises Failure where the pool refused, and Fault 500 where the answer is none. Of these the SDK
    stumbles over one that is neither text nor has a Status (TypeError), and over an
    ErrorDescription without a first element (IndexError and others).
    """
    if not isinstance(result, dict) or 'Status' not in result:
        raise xmlrpclib.Fault(500, 'Missing Status in response from server%s' % (result,))
    if result['Status'] == 'Success':
        if 'Value' not in result:
            raise xmlrpclib.Fault(500, 'Missing Value in response from server')
        return result['Value']
    details = result.get('ErrorDescription')
    if not details or not isinstance(details, (list, str)):
        raise xmlrpclib.Fault(500, 'Missing ErrorDescription in response from server')
    if details[0] == 'SESSION_INVALID':
        return _RECONNECT_AND_RETRY
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


def _tcp_transport(uri, ignore_ssl, timeout, user_agent):
    """A new transport for an http or https `uri`; certificates are verified unless `ignore_ssl`."""
    if urlsplit(uri).scheme != 'https':
        transport = _HTTPTransport()
    elif ignore_ssl:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        transport = _HTTPSTransport(context=context)
    else:
        transport = _HTTPSTransport()
    transport.timeout = timeout
    transport.user_agent = user_agent or transport.user_agent
    return transport


class UDSHTTPConnection(httplib.HTTPConnection):
    """HTTP over the unix socket `path`, or over the one that the host spells with _ for /.

    The second is the SDK's way, '_var_lib_xcp_xapi', and cannot name a path with a _ in it.
    """

    def __init__(self, host, *args, path=None, **kwargs):
        super().__init__(host, *args, **kwargs)
        self.path = path

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
    """XML-RPC over a unix socket: that of `path`, or the one that the URI's host spells.

    Each request carries TRACEPARENT, BAGGAGE and ORIGINATOR of the environment as headers, where
    they are set. `timeout`, `user_agent`: as Session's.
    """

    def __init__(self, *args, path=None, timeout=None, user_agent=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.path = path
        self.timeout = timeout
        self.user_agent = user_agent or self.user_agent

    def add_extra_header(self, key, value):
        """Add a header to those of the next request, from within make_connection."""
        self._extra_headers += [(key, value)]

    def make_connection(self, host):
        """The connection to `host`, kept from the last request where there was one."""
        self._extra_headers = []
        for name in ('traceparent', 'baggage', 'originator'):
            if os.environ.get(name.upper()):
                self.add_extra_header(name, os.environ[name.upper()])
        if self._connection[0] != host:
            self._connection = host, UDSHTTPConnection(host, timeout=self.timeout, path=self.path)
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
    API_version                     the pool's 'major.minor', asked for once; '1.1' if not logged in

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
    (500), calls that need a login (401) and a login that timed out in the network (504);
    xmlrpc.client.ProtocolError for HTTP errors; OSError for the rest of the network; OverflowError
    for an int beyond 32 bits.

    A session that the pool has forgotten is renewed with the parameters of the last login, so these
    are kept in memory, and `handle` changes; the caller never sees SESSION_INVALID.
    """

    def __init__(self, uri, transport=None, encoding=None, verbose=False, allow_none=True,
                 ignore_ssl=False, timeout=None, user_agent=None):
        if transport is not None and (timeout, user_agent) != (None, None):
            raise ValueError('a timeout or user agent is for a transport that is made here')
        self.transport = transport
        self._session = None
        self.last_login_method = None
        self.last_login_params = None
        self._API_version = API_VERSION_1_1
        if transport is None:
            transport = _tcp_transport(uri, ignore_ssl, timeout, user_agent)
        super().__init__(uri, transport, encoding, bool(verbose), bool(allow_none))

    def __repr__(self):
        """'<Session for host/path>', without the user and password that a URI may hold."""
        return re.sub(' for [^/]*@', ' for ', super().__repr__(), count=1)

    __str__ = __repr__

    def __getattr__(self, name):
        if name == 'handle':
            return self._session
        if name == 'xenapi':
            return _Dispatcher(self.xenapi_request, None)
        if name.startswith(('login', 'slave_local')):
            return lambda *params: self._login(name, params)
        if name == 'logout':
            return _Dispatcher(self.xenapi_request, name)
        return self._method(name)

    def __getstate__(self):
        """No copies, no pickles; the SDK's error for a copy shows all state, the password too."""
        notimplemented('__getstate__')

    @property
    def API_version(self):
        """The pool's API version, such as '2.21': asked of it once; '1.1' when not logged in."""
        if self._API_version is None:
            master = self.xenapi.pool.get_master(self.xenapi.pool.get_all()[0])
            self._API_version = '%s.%s' % (self.xenapi.host.get_API_version_major(master),
                                           self.xenapi.host.get_API_version_minor(master))
        return self._API_version

    def xenapi_request(self, methodname, params):
        """What xenapi.METHODNAME(*params) does. It tries three times, each with a new session."""
        if methodname.startswith(('login', 'slave_local')):
            return self._login(methodname, params)
        if methodname in ('logout', 'session.logout'):
            return self._logout()
        for _attempt in range(3):
            result = self._call(methodname, (self._session,) + tuple(params))
            if result is not _RECONNECT_AND_RETRY:
                return result
            if self.last_login_method is None:
                raise xmlrpclib.Fault(401, 'You must log in')
            self._login(self.last_login_method, self.last_login_params)
        raise xmlrpclib.Fault(500, 'Tried 3 times to get a valid session, but failed')

    def _method(self, name):
        """The pool's method `name`, raw. Python's magic methods are none."""
        if name.startswith('__') and name.endswith('__'):
            return functools.partial(notimplemented, name)
        return super().__getattr__(name)

    def _call(self, methodname, params):
        """One request just as it stands; what _parse_result makes of the answer.

        Not by __getattr__, as in the SDK, which so takes a request for one of the session's own
        names: its xenapi.slave_local_login_with_password(...) ends in a TypeError.
        """
        return _parse_result(self._method(methodname)(*params))

    def _login(self, method, params):
        try:
            session = self._call('session.' + method, params)
        except OSError as error:
            if error.errno == errno.ETIMEDOUT:
                raise xmlrpclib.Fault(504, 'The connection timed out')
            raise
        if session is _RECONNECT_AND_RETRY:
            raise xmlrpclib.Fault(500, 'Received SESSION_INVALID when logging in')
        self._session = session
        self.last_login_method = method
        self.last_login_params = params
        self._API_version = None

    def _logout(self):
        """Forget who we are, whether or not the pool hears of it or cares (SESSION_INVALID)."""
        local = (self.last_login_method or '').startswith('slave_local')
        try:
            if self._session is not None:  # the SDK raises AttributeError before a login
                self._call('session.local_logout' if local else 'session.logout', (self._session,))
        finally:
            self._session = None
            self.last_login_method = None
            self.last_login_params = None
            self._API_version = API_VERSION_1_1


def xapi_local(path='/var/lib/xcp/xapi', timeout=None, user_agent=None):
    """A Session over this host's unix socket, where login_with_password takes anybody for root.

    On a pool member calls are passed on to the master (xapi: ocaml/xapi/api_server.ml, forward).
    `timeout`, `user_agent`: as Session's.
    """
    host = quote(os.fsencode(path)).replace('/', '_')
    return Session('http://%s/' % host, transport=UDSTransport(
        path=path, timeout=timeout, user_agent=user_agent))
