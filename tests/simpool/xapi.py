"""The door of XML-RPC and JSON-RPC: HTTP/1.1 on a loopback port (plain or TLS) and a unix socket.

Wire forms are xapi's: a struct that begins with `Status`, never a fault; integers, references and
enums as untyped strings; dates without dashes; `<value></value>` for nothing. JSON: see wire.py.
Sources: xapi: ocaml/xapi/api_server.ml, api_server_common.ml, session_check.ml,
ocaml/libs/http-lib/http_svr.ml; ocaml-rpc: src/lib/xmlrpc.ml, jsonrpc.ml.
"""

import contextlib
import os
import select
import socket
import socketserver
import ssl
import threading
import xmlrpc.client
from http.server import BaseHTTPRequestHandler

from .model import Down, XapiError
from .wire import from_json, to_json, to_xml

BODY_LIMIT = 300 * 1024         # bytes of a request; xapi: ocaml/xapi-consts/constants.ml
LOGIN, LOGOUT = 'session.login_with_password', 'session.logout'
LIST_METHODS = 'system.listMethods'
# A call may be posted to any path that no other handler has; these have one, not simulated here
# (xapi: ocaml/idl/datamodel.ml, http_svr.ml: the longest prefix that is known, so `/` at last).
OTHERS = ('/cli', '/json', '/remote_db_access', '/services', '/sm')
PIECE = 0.05                    # seconds of a slow answer that go out at once
PAGE = '<html><body><h1>HTTP %d %s</h1></body></html>'


def xml_call(body):
    """(method, parameters, what puts an answer into bytes) of a call."""
    params, method = xmlrpc.client.loads(body)
    return method, params, response


def json_call(body):
    ident, method, params = from_json(body)
    return method, params, lambda answer: to_json(ident, method, answer)


def response(value):
    return ('<?xml version="1.0"?><methodResponse><params><param>%s</param></params>'
            '</methodResponse>' % to_xml(value)).encode('utf-8')


def success(value):
    return {'Status': 'Success', 'Value': value}


def failure(details):
    return {'Status': 'Failure', 'ErrorDescription': list(details)}


def mismatch(method, expected, received):
    return XapiError('MESSAGE_PARAMETER_COUNT_MISMATCH', method, expected, received)


class Handler(BaseHTTPRequestHandler):
    """One connection: calls one after the other, until a side closes it."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = False

    def setup(self):
        if self.server.tls:
            self.request.do_handshake()
        super().setup()

    def address_string(self):
        return 'client'

    def log_message(self, format, *args):
        """Nothing is written: the journal has the calls."""

    def do_POST(self):
        is_json = self.path.startswith('/jsonrpc')
        if self.path.startswith(OTHERS) and not is_json:
            return self.refuse(404, 'Not Found')
        length = self.headers.get('Content-Length', '')
        if not length.isdigit():
            return self.refuse(411, 'Length Required')
        if int(length) > BODY_LIMIT:
            return self.refuse(413, 'Request Entity Too Large')
        body = self.rfile.read(int(length))
        try:
            method, params, encode = (json_call if is_json else xml_call)(body)
        except Exception:       # whatever the parser says of such a body: xapi answers 500
            return self.refuse(500, 'Internal Error')
        try:
            answer, fault = self.server.answer(method, params, encode, self)
            self.answer(answer, fault, 'application/json' if is_json else 'text/xml')
        except Down:
            self.close_connection = True

    def do_GET(self):
        self.refuse(404, 'Not Found')

    do_PUT = do_HEAD = do_GET

    def refuse(self, status, reason):
        self.close_connection = True
        self.transmit(status, reason, 'text/html', (PAGE % (status, reason)).encode())

    def answer(self, body, fault, kind):
        """Send the body of a response, whole or as its fault wants it."""
        if fault and fault.do == 'die':
            self.close_connection = True
            self.transmit(200, 'OK', kind, body, fault.after or 0)
        else:
            self.transmit(200, 'OK', kind, body, rate=fault.rate if fault else None)

    def transmit(self, status, reason, kind, body, after=None, rate=None):
        version = '1.0' if self.request_version == 'HTTP/1.0' else '1.1'
        keep = not self.close_connection and version == '1.1'
        head = ('HTTP/%s %d %s\r\nConnection: %s\r\nCache-Control: no-cache, no-store\r\n'
                'Content-Type: %s\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: %d\r\n\r\n'
                % (version, status, reason, 'keep-alive' if keep else 'close', kind, len(body)))
        data = head.encode('ascii') + body
        if after is not None:
            data = data[:after]
        if rate is None:
            self.wfile.write(data)
            return
        size = max(1, int(rate * PIECE))
        for start in range(0, len(data), size):
            self.wfile.write(data[start:start + size])
            self.server.pool.sleep(PIECE)

    def is_gone(self):
        if not select.select([self.request], [], [], 0)[0]:
            return False
        try:
            return self.request.recv(1, socket.MSG_PEEK) == b''
        except (OSError, ValueError):       # ValueError: TLS sockets cannot peek
            return True


class XapiDoor(socketserver.TCPServer):
    """One way in, with a thread for each connection; all end when it stops.

    `address` is a path, or a port of ours on loopback; `certificate` (a file with certificate and
    key) makes it TLS. `master_address`: this host is a member of that master's pool. `trusted`: the
    unix socket, where everybody is root and a member forwards.
    """

    request_queue_size = 128

    def __init__(self, pool, address, certificate=None, master_address=None):
        self.pool = pool
        self.trusted = isinstance(address, str)
        self.master_address = None if self.trusted else master_address
        self.tls = None
        if certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certificate)
        self._guard = threading.Lock()
        self._connections = set()
        self._threads = []
        self._stopping = False
        if self.trusted:
            self.address_family = socket.AF_UNIX
        super().__init__(address if self.trusted else ('127.0.0.1', address), Handler)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def server_bind(self):
        """Bind to a port that another socket of ours keeps for us, or to a path."""
        if not self.trusted:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def _accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError as error:
                if isinstance(error, ConnectionAbortedError):       # it went away again
                    continue
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()
            with self._guard:
                self._threads = [each for each in self._threads if each.is_alive()] + [thread]

    def _serve(self, connection):
        try:
            with self._guard:
                if self._stopping:
                    return
                if self.tls:
                    connection = self.tls.wrap_socket(connection, server_side=True,
                                                      do_handshake_on_connect=False)
                self._connections.add(connection)
            self.finish_request(connection, ('client', 0))
        except OSError:
            return              # the client went away, or we are stopping
        finally:
            with self._guard:
                self._connections.discard(connection)
            self.shutdown_request(connection)

    @property
    def is_busy(self):
        return bool(self._connections)

    def refuse(self):
        with contextlib.suppress(OSError):      # it has stopped already
            self.socket.shutdown(socket.SHUT_RDWR)

    def stop(self):
        self.refuse()
        self._acceptor.join()
        with self._guard:
            self._stopping = True
            for connection in self._connections:
                with contextlib.suppress(OSError):      # the client was quicker
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self.server_close()
        if self.trusted and os.path.exists(self.server_address):
            os.unlink(self.server_address)

    def answer(self, method, params, encode, handler):
        """(body of the response, the fault that shapes its sending). Raises Down."""
        pool = self.pool
        pool.check_up()
        fault = pool.arrive('xapi', method, params if method == LOGIN else params[1:])
        agent = handler.headers.get('User-Agent')
        if fault is None:
            return self.perform(method, params, encode, agent), None
        if fault.do == 'down' and not fault.is_amid():
            pool.go_down()
            pool.check_up()
        if fault.do in ('hang', 'stall'):
            pool.sleep(None, handler.is_gone)
            raise Down('the client went away')
        if fault.do == 'refuse' and not fault.is_amid():
            return encode(failure(fault.error)), None
        if fault.do == 'print':
            return fault.body if fault.body is not None else encode(success(fault.value)), None
        if fault.do == 'slow' and not fault.is_amid():
            pool.sleep(fault.seconds)
        with pool.amid(fault):
            body = self.perform(method, params, encode, agent)
        if fault.do in ('down', 'down-after'):
            pool.go_down()
            pool.check_up()
        return body, fault

    def perform(self, method, params, encode, agent):
        """The body of the response to one call, done for real.

        The list of methods comes without a status.
        """
        try:
            value = self.dispatch(method, params, agent)
            return encode(value if method == LIST_METHODS else success(value))
        except XapiError as error:
            return encode(failure(error.details))
        except Down:
            raise
        except Exception as error:      # what nobody foresaw is an internal error, as in xapi
            return encode(failure(['INTERNAL_ERROR', '%s: %s' % (type(error).__name__, error)]))

    def dispatch(self, method, params, agent):
        """The value of a call. Raises XapiError."""
        if self.master_address:
            raise XapiError('HOST_IS_SLAVE', self.master_address)
        if method == LOGIN:
            return self.login(method, params, agent)
        if method == LIST_METHODS:
            return self.pool.methods()
        if method == LOGOUT:
            if len(params) != 1:
                raise mismatch(method, 0, len(params) - 1)
            self.pool.logout(params[0])
            return ''
        self.pool.check_message(method, len(params) - 1)
        self.pool.check_session(params[0])
        return self.pool.call(method, *params[1:])

    def login(self, method, params, agent):
        """A new session's ref. The version, the third parameter, is ignored as in xapi."""
        if not 2 <= len(params) <= 4:
            raise mismatch(method, 2, len(params))
        originator = params[3] if len(params) > 3 else ''
        session = self.pool.login(params[0], params[1], originator, self.trusted)
        self.pool.track(agent)
        return session
