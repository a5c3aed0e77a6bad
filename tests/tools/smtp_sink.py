"""A mail server for tests, on loopback: it keeps what it is given and fails where it is told to.

    with SmtpSink(security='starttls', user='backup', password='secret') as sink:
        ...                                     # hand it a mail at sink.port
    assert sink.mails[0].recipients == ['ops@example.org']

SMTP as in RFC 5321, STARTTLS as in RFC 3207, AUTH PLAIN and LOGIN as in RFC 4954.
"""

import base64
import contextlib
import os
import socket
import ssl
import threading
from email import message_from_bytes, policy
from typing import Any, List, NamedTuple

from tests import DATA

CERTIFICATE = os.path.join(DATA, 'selfsigned.pem')

DROP = 'DROP'                  # as a reply: end the connection without one
SILENCE = 'SILENCE'            # as a reply: none, for as long as the client has patience


class Mail(NamedTuple):
    """A mail that was accepted."""

    sender: str
    recipients: List[str]
    data: bytes
    user: str                  # who was logged in, or ''
    encrypted: bool

    @property
    def message(self) -> Any:
        """It, parsed."""
        return message_from_bytes(self.data, policy=policy.default)

    @property
    def text(self) -> str:
        """Its body."""
        return self.message.get_content()


class SmtpSink:
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
        self.lines = []        # all that clients said, but for the mails' data
        self.connections = 0
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(CERTIFICATE)
        self._guard = threading.Lock()
        self._open = set()
        self._threads = []
        self._listener = socket.socket()
        self._listener.bind(('127.0.0.1', 0))
        self._listener.listen(16)
        self.port = self._listener.getsockname()[1]
        self._stopping = False
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()

    @property
    def verbs(self):
        """The verbs of all lines, in order."""
        return [line.split(' ')[0].upper() for line in self.lines]

    def ordered(self, verb):
        """The reply that was ordered for this use of a verb, or None."""
        with self._guard:
            return next(self.replies.get(verb, iter(())), None)

    def stop(self):
        """End all connections and the server. Doing it twice does no harm."""
        with self._guard:
            if self._stopping:
                return
            self._stopping = True
        with contextlib.suppress(OSError):  # wakes the acceptor
            socket.create_connection(('127.0.0.1', self.port), timeout=5).close()
        self._acceptor.join()
        self._listener.close()
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the client was quicker
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self):
        while True:
            connection, _ = self._listener.accept()
            if self._stopping:
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            with self._guard:
                self.connections += 1
                self._open.add(connection)
            thread.start()

    def _serve(self, connection):
        dialogue = Dialogue(self, connection)
        with contextlib.suppress(OSError, EOFError):    # the client is gone, or does not trust us
            dialogue.hold()
        with self._guard:
            self._open.discard(connection)
            self._open.discard(dialogue.connection)
        dialogue.close()

    def encrypt(self, connection):
        """The connection with TLS around it, before the handshake."""
        with self._guard:
            self._open.discard(connection)
            encrypted = self.tls.wrap_socket(connection, server_side=True,
                                             do_handshake_on_connect=False)
            self._open.add(encrypted)
        return encrypted


class Dialogue:
    """One connection. Its methods named after verbs return the usual answer, or None: none."""

    VERBS = ('EHLO', 'HELO', 'STARTTLS', 'AUTH', 'MAIL', 'RCPT', 'DATA', 'RSET', 'NOOP', 'QUIT')

    def __init__(self, sink, connection):
        self.sink = sink
        self.connection = connection
        self.stream = None
        self.encrypted = False
        self.user = ''
        self.ended = False
        self.forget()

    def forget(self):
        """No mail is under way."""
        self.sender = None
        self.recipients = []

    def close(self):
        """End the connection."""
        if self.stream:
            self.stream.close()
        self.connection.close()

    def hold(self):
        """Talk until one side ends it. Raises OSError, EOFError."""
        if self.sink.security == 'tls':
            self.encrypt()
        self.stream = self.connection.makefile('rb')
        self.say(self.sink.ordered('CONNECT') or '220 sink.invalid ESMTP')
        while not self.ended:
            line = self.hear()
            verb = line.split(' ')[0].upper()
            reply = self.sink.ordered(verb)
            if reply is None:
                known = verb in self.VERBS
                reply = getattr(self, verb.lower())(line) if known else '500 what?'
            self.say(reply)
            if verb == 'DATA' and reply.startswith('354'):
                self.say(self.body())
            if verb == 'STARTTLS' and reply.startswith('220'):
                self.encrypt()
                self.stream = self.connection.makefile('rb')

    def hear(self):
        """The client's next line. Raises EOFError at the end of the connection."""
        line = self.stream.readline(4096)
        if not line.endswith(b'\n'):
            raise EOFError
        text = line.decode('utf-8', 'replace').rstrip('\r\n')
        self.sink.lines.append(text)
        return text

    def say(self, reply):
        """Send a reply. Raises EOFError where it is to be none."""
        if reply == SILENCE:
            self.stream.read()
        if reply in (DROP, SILENCE):
            raise EOFError
        self.connection.sendall(reply.encode('utf-8') + b'\r\n')

    def encrypt(self):
        """Go on with TLS."""
        self.connection = self.sink.encrypt(self.connection)
        self.connection.do_handshake()
        self.encrypted = True

    def ehlo(self, _line):
        words = ['sink.invalid', '8BITMIME', 'SMTPUTF8']
        if self.sink.security == 'starttls' and not self.encrypted:
            words.append('STARTTLS')
        if self.sink.user:
            words.append('AUTH PLAIN LOGIN')
        return '\r\n'.join('250%s%s' % ('-' if word != words[-1] else ' ', word)
                           for word in words)

    def helo(self, _line):
        return '250 sink.invalid'

    def starttls(self, _line):
        offered = self.sink.security == 'starttls' and not self.encrypted
        return '220 go ahead' if offered else '502 not offered'

    def auth(self, line):
        words = line.split(' ')
        try:
            if words[1].upper() == 'PLAIN':
                answer = words[2] if len(words) > 2 else self.challenge('')
                _, user, password = decoded(answer).split('\0')
            else:
                user = decoded(words[2] if len(words) > 2 else self.challenge('Username:'))
                password = decoded(self.challenge('Password:'))
        except (IndexError, ValueError):
            return '501 what?'
        if (user, password) != (self.sink.user, self.sink.password):
            return '535 5.7.8 authentication failed'
        self.user = user
        return '235 welcome'

    def challenge(self, text):
        """The client's answer to a question."""
        self.say('334 ' + base64.b64encode(text.encode()).decode())
        return self.hear()

    def mail(self, line):
        if self.sink.user and not self.user:
            return '530 5.7.0 authentication required'
        self.sender = address(line)
        return '250 ok'

    def rcpt(self, line):
        if self.sender is None:
            return '503 MAIL first'
        recipient = address(line)
        if recipient in self.sink.refused:
            return self.sink.refused[recipient]
        self.recipients.append(recipient)
        return '250 ok'

    def data(self, _line):
        return '354 end with a dot' if self.recipients else '503 RCPT first'

    def body(self):
        """Take a mail's data; the answer to it. Raises EOFError."""
        lines = []
        while lines[-1:] != [b'.\r\n']:
            line = self.stream.readline()
            if not line:
                raise EOFError
            lines.append(line)
        data = b''.join(line[1:] if line.startswith(b'.') else line for line in lines[:-1])
        reply = self.sink.ordered('BODY')
        if reply is None:
            reply = '250 accepted'
            self.sink.mails.append(Mail(self.sender, self.recipients, data, self.user,
                                        self.encrypted))
        self.forget()
        return reply

    def rset(self, _line):
        self.forget()
        return '250 ok'

    def noop(self, _line):
        return '250 ok'

    def quit(self, _line):
        self.ended = True
        return '221 bye'


def address(line):
    """What a line has between its angle brackets."""
    return line.partition('<')[2].partition('>')[0]


def decoded(word):
    """Base64 as text. Raises ValueError."""
    return base64.b64decode(word, validate=True).decode('utf-8')


@contextlib.contextmanager
def deaf_port():
    """A port of loopback where connections are refused, ours for as long as the `with` lasts."""
    with socket.socket() as bound:
        bound.bind(('127.0.0.1', 0))
        yield bound.getsockname()[1]
