"""An HTTP server for tests, on loopback: it keeps what it is asked and fails where it is told to.

    with HttpSink([500, 200]) as sink:
        ...                                     # ask it something at sink.url
    assert sink.asked == [Asked('GET', '/ping', {...}, b'')]
"""

import contextlib
import http.server
import socketserver
import ssl
import threading
from typing import Any, Dict, NamedTuple

from tests.tools.smtp_sink import CERTIFICATE

DROP, SILENCE, DRIP, RUBBISH = 'DROP', 'SILENCE', 'DRIP', 'RUBBISH'    # in a status's place


class Asked(NamedTuple):
    """A request."""

    method: str
    path: str                  # and what follows it; all of an address, for a proxy
    headers: Dict[str, str]
    body: bytes


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    def answer(self):
        sink, path = self.server.sink, self.path
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        sink.asked.append(Asked(self.command, path, dict(self.headers), body))
        status = sink.answers.pop(0) if sink.answers else 200
        self.close_connection = True
        if status == SILENCE:
            sink.ended.wait(60)
        elif status == DRIP:
            with contextlib.suppress(OSError):
                while not sink.ended.wait(0.05):
                    self.wfile.write(b'HTTP/1.1 200 OK\r\n' if not body else b'X: y\r\n')
                    body = b'.'
        elif status == RUBBISH:
            self.wfile.write(b'%s \r\n' % path.encode())
        elif status != DROP:
            self.send_response(status, path)           # as one that says it again
            self.send_header('Content-Length', '0')
            if 300 <= status < 400:
                self.send_header('Location', sink.url + '/elsewhere')
            self.end_headers()

    do_GET = do_POST = do_CONNECT = answer

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


class HttpSink(contextlib.AbstractContextManager):
    """A running server, for `with`. The answers, one a request, are statuses or what fails."""

    def __init__(self, answers=(), tls=False, host='127.0.0.1'):
        self.answers = list(answers)
        self.asked = []
        self.ended = threading.Event()
        self.server = type('Server', (socketserver.ThreadingMixIn, http.server.HTTPServer), dict(
            daemon_threads=True, handle_error=lambda *_: None))((host, 0), Handler)
        self.server.sink = self
        name = host.replace('127.0.0.1', 'localhost')
        self.url = '%s://%s:%d' % ('https' if tls else 'http', name, self.server.server_port)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def __exit__(self, *exc):
        self.stop()

    def stop(self):
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
