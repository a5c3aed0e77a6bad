"""A mail server for tests, on loopback: it keeps what it is given and fails where it is told to.

    with SmtpSink(security='starttls', user='backup', password='secret') as sink:
        ...                                     # hand it a mail at sink.port
    assert sink.mails[0].recipients == ['ops@example.org']

SMTP as in RFC 5321, STARTTLS as in RFC 3207, AUTH PLAIN as in RFC 4954 and 4616.
"""

import base64
import contextlib
import os
import re
import socket
import ssl
import threading
import time
from email import message_from_bytes, policy
from typing import Any, List, NamedTuple

from tests import DATA

CERTIFICATE = os.path.join(DATA, 'selfsigned.pem')

DROP = 'DROP'                  # as a reply: end the connection without one
SILENCE = 'SILENCE'            # as a reply: none, for as long as the client has patience
DRIP = 'DRIP'                  # as a reply: one without end, a byte now and then
FLOOD = 'FLOOD'                # as a reply: lines without end
USUAL = {'HELO': '250 sink.invalid', 'QUIT': '221 bye'}
ADDRESS = re.compile('<(.*?)>')
VERBS = ('EHLO', 'STARTTLS', 'AUTH', 'MAIL', 'RCPT', 'DATA', 'RSET')


class Mail(NamedTuple):
    """A mail that was accepted."""

    sender: str
    recipients: List[str]
    data: bytes
    user: str                  # who was logged in, or ''
    encrypted: bool

    @property
    def message(self) -> Any:
        return message_from_bytes(self.data, policy=policy.default)

    @property
    def text(self) -> str:
        """What a client without HTML shows."""
        return self.message.get_body(('plain',)).get_content().replace('\r\n', '\n')


class SmtpSink(contextlib.AbstractContextManager):
    """A running server, for `with`; it ends with all its connections.

    security    'none', 'starttls' (offered) or 'tls' (from the first byte)
    user        with `password`: a login is offered, and wanted before any mail
    refused     {recipient: reply} for those who are not accepted
    replies     {verb: replies}: what the first, second, ... use of a verb gets in the place of the
                usual answer, counted over all connections; None is the usual one. 'CONNECT' is the
                greeting, 'BODY' the end of a mail's data.
    """

    def __init__(self, security='none', user='', password='', refused=None, replies=None):
        self.security = security
        self.user = user
        self.password = password
        self.refused = refused or {}
        self.replies = {verb: iter(given) for verb, given in (replies or {}).items()}
        self.mails = []
        self.verbs = []        # of all that clients said, but for the mails' data
        self.greetings = []    # the names in their EHLO
        self.connections = 0
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(CERTIFICATE)
        self._guard = threading.Lock()
        self._dialogues = []
        self._listener = socket.socket()
        self._listener.bind(('127.0.0.1', 0))
        self._listener.listen(16)
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __exit__(self, *exc):
        self.stop()

    def ordered(self, verb):
        with self._guard:
            return next(self.replies.get(verb, iter(())), None)

    def stop(self):
        """End all connections and the server. Doing it twice does no harm."""
        if self._listener.fileno() < 0:
            return
        self._listener.shutdown(socket.SHUT_RDWR)       # wakes the acceptor
        self._acceptor.join()
        self._listener.close()
        for dialogue in self._dialogues:
            dialogue.stop()

    def _accept(self):
        with contextlib.suppress(OSError):              # stopped
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._dialogues.append(Dialogue(self, connection))
                self._dialogues[-1].start()


class Dialogue(threading.Thread):
    """One connection. Its methods that are named after VERBS return the usual answer."""

    def __init__(self, sink, connection):
        super().__init__(daemon=True)
        self.sink = sink
        self.connection = connection
        self.handle = connection.dup()      # of the same connection, whatever is around it by then
        self.stream = connection.makefile('rb')
        self.encrypted = False
        self.user = ''
        self.rset('')

    def stop(self):
        """End it, from another thread."""
        with contextlib.suppress(OSError):              # the client was quicker
            self.handle.shutdown(socket.SHUT_RDWR)
        self.join()

    def run(self):
        with self.handle, contextlib.suppress(OSError, EOFError):   # it is gone, or distrusts us
            self.hold()
        self.stream.close()
        self.connection.close()

    def hold(self):
        """Talk until one side ends it. Raises OSError, EOFError."""
        if self.sink.security == 'tls':
            self.encrypt()
        self.say(self.sink.ordered('CONNECT') or '220 sink.invalid ESMTP')
        verb = None
        while verb != 'QUIT':
            line = self.stream.readline(4096).decode('utf-8', 'replace')
            if not line.endswith('\n'):
                raise EOFError
            verb = line.rstrip().partition(' ')[0].upper()
            self.sink.verbs.append(verb)
            reply = self.sink.ordered(verb)
            if reply is None:
                reply = (getattr(self, verb.lower())(line) if verb in VERBS else
                         USUAL.get(verb, '500 what?'))
            self.say(reply)
            if verb == 'DATA' and reply.startswith('354'):
                self.say(self.body())
            if verb == 'STARTTLS' and reply.startswith('220'):
                self.encrypt()

    def say(self, reply):
        """Send a reply. Raises EOFError where it is to be none."""
        if reply == SILENCE:
            self.stream.read()
        if reply in (DROP, SILENCE):
            raise EOFError
        while reply == DRIP:
            self.connection.sendall(b'2')
            time.sleep(0.05)
        while reply == FLOOD:
            self.connection.sendall(b'250-more\r\n' * 1000)
        self.connection.sendall(reply.encode('utf-8') + b'\r\n')

    def encrypt(self):
        self.connection = self.sink.tls.wrap_socket(self.connection, server_side=True)
        self.stream = self.connection.makefile('rb')
        self.encrypted = True

    def ehlo(self, line):
        self.sink.greetings.append(line.split()[-1])
        words = ['sink.invalid', '8BITMIME', 'SMTPUTF8']
        words += ['STARTTLS'] * (self.sink.security == 'starttls' and not self.encrypted)
        words += ['AUTH PLAIN'] * bool(self.sink.user)
        return '\r\n'.join(['250-' + word for word in words[:-1]] + ['250 ' + words[-1]])

    def starttls(self, _line):
        offered = self.sink.security == 'starttls' and not self.encrypted
        return '220 go ahead' if offered else '502 not offered'

    def auth(self, line):
        account = base64.b64decode(line.split()[2], validate=True).decode('utf-8')
        if account != '\0%s\0%s' % (self.sink.user, self.sink.password):
            return '535 5.7.8 authentication failed'
        self.user = self.sink.user
        return '235 welcome'

    def mail(self, line):
        if self.sink.user and not self.user:
            return '530 5.7.0 authentication required'
        self.sender = ADDRESS.search(line).group(1)
        return '250 ok'

    def rcpt(self, line):
        if self.sender is None:
            return '503 MAIL first'
        recipient = ADDRESS.search(line).group(1)
        refusal = self.sink.refused.get(recipient)
        self.recipients += [recipient] * (not refusal)
        return refusal or '250 ok'

    def data(self, _line):
        return '354 end with a dot' if self.recipients else '503 RCPT first'

    def rset(self, _line):
        self.sender, self.recipients = None, []
        return '250 ok'

    def body(self):
        lines = []
        while lines[-1:] != [b'.\r\n']:
            lines.append(self.stream.readline())
            if not lines[-1]:
                raise EOFError
        data = b''.join(line[1:] if line.startswith(b'.') else line for line in lines[:-1])
        mail = Mail(self.sender, self.recipients, data, self.user, self.encrypted)
        reply = self.sink.ordered('BODY')
        if reply is None:
            self.sink.mails.append(mail)
        self.rset('')
        return reply or '250 accepted'


@contextlib.contextmanager
def deaf_port():
    """A port of loopback where connections are refused, ours for as long as the `with` lasts."""
    with socket.socket() as bound:
        bound.bind(('127.0.0.1', 0))
        yield bound.getsockname()[1]
