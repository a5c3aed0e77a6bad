"""The thin client `xe`: XeDoor installs it, with the socket's path in it, as <directory>/bin/xe.

It knows no command. It takes its own options out of the line, sends the rest to the server, one
argument per line, and then does what the server says: print, open a file and fill it, send a
file, ask, exit (xapi: ocaml/xe-cli/newcli.ml). Thousands of these are started in a test run, so
it lives on C modules alone: `os` and `socket` would double its start.

Wire (ours; the real one is HTTP and marshalled OCaml): `CLI <0|1> <length>\\n` and the arguments,
where 1 means that the server need not look at the password; then frames of a type byte, a length
in 4 bytes and a payload: P stdout, E stderr, Q ask, G and U `token\\npath` for a file to get and
to put, X exit. Answers are the lines `OK`, `Failed` and `Line <length>\\n...`. The data of a file
go over a connection of their own, `GET <token>\\n` or `PUT <token> <length>\\n`, answered by
`200\\n`: so a full disk or a killed client looks to the server as it does to xapi. What is no
regular file has the length -1.
"""
import _signal
import _socket
import errno
import posix
import sys

SOCKET = b''                    # of the pool: the program that XeDoor installs sets it
BLOCK = 1 << 20

OPTIONS = {b'-s': b'server', b'-h': b'server', b'-p': b'port', b'-u': b'username',
           b'-pw': b'password', b'-pwf': b'passwordfile', b'--traceparent': b'traceparent'}
FLAGS = {b'--nossl': b'nossl', b'--debug': b'debug', b'--debug-on-fail': b'debugonfail'}
USAGE = (b'Usage: xe <cmd> [-s server] [-p port] ([-u username] [-pw password] or '
         b'[-pwf <password file>]) [--traceparent traceparent] <other arguments>\n\n'
         b'A full list of commands can be obtained by running \n'
         b'\txe help -s <server> -p <port>\n')


class Quit(Exception):
    """The end: an exit status, and the last words for stderr."""

    def __init__(self, status, text=b''):
        Exception.__init__(self)
        self.status = status
        self.text = text


# Small things

def write(fd, data):
    view = memoryview(data)
    while view:
        view = view[posix.write(fd, view):]


def complain(text):
    """Write to stderr. One that is closed or full changes nothing."""
    try:
        write(2, text)
    except OSError:
        return


def words(error):
    return posix.strerror(error.errno).encode()


def literal(text):
    """A string as OCaml's %S prints it: what is not printable ASCII becomes \\ddd, in decimal."""
    names = {10: b'\\n', 9: b'\\t', 8: b'\\b', 13: b'\\r', 34: b'\\"', 92: b'\\\\'}
    return b'"' + b''.join(
        names.get(byte) or (b'%c' % byte if 32 <= byte < 127 else b'\\%03d' % byte)
        for byte in text) + b'"'


def boolean(text):
    if text not in (b'true', b'false'):
        raise Quit(1, b'Unhandled exception\nInvalid_argument("bool_of_string")\n')
    return text == b'true'


# What belongs to the client on the command line (in ~/.xe, in XE_EXTRA_ARGS)

def resources(environ):
    """The pairs of ~/.xe, the last line first; one bad line and none of them counts."""
    try:
        fd = posix.open(environ[b'HOME'] + b'/.xe', posix.O_RDONLY)
    except (KeyError, OSError):
        return []
    lines = posix.read(fd, BLOCK).split(b'\n')
    posix.close(fd)
    if all(b'=' in line for line in lines if line):
        return [tuple(line.split(b'=', 1)) for line in reversed(lines) if line]
    complain(b'Error parsing rc file. No defaults loaded\n')
    return []


def extra_arguments(text):
    """XE_EXTRA_ARGS at its commas, but those behind a backslash; backslashes go."""
    hidden = text.replace(b'\\,', b'\0')
    return [part.replace(b'\0', b',').replace(b'\\', b'') for part in hidden.split(b',') if part]


def take_options(arguments, options):
    """Put the client's options into `options`; what is left is the server's."""
    rest = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        key, equals, value = argument.partition(b'=')
        if argument in OPTIONS and queue:
            options[OPTIONS[argument]] = queue.pop(0)
        elif argument in FLAGS:
            options[FLAGS[argument]] = b'true'
        elif equals and key in options:
            options[key] = value
        else:
            rest.append(argument)
    return rest


def read_password_file(options):
    try:
        fd = posix.open(options[b'passwordfile'], posix.O_RDONLY)
    except OSError:
        raise Quit(1, b"Error opening password file '%s'\n" % options[b'passwordfile'])
    lines = posix.read(fd, BLOCK).split(b'\n')
    posix.close(fd)
    if len(lines) < 2 or not lines[1] and len(lines) == 2:
        raise Quit(1, b'Error: password file format: expecting username on the first line, '
                      b'password on the second line\n')
    options[b'username'], options[b'password'] = lines[:2]


def parse(arguments, environ):
    """(options, the arguments for the server), by rising priority ~/.xe, environment, line."""
    options = dict.fromkeys(set(OPTIONS.values()) | set(FLAGS.values()), b'')
    options.update({b'server': b'127.0.0.1', b'username': b'root', b'password': b'null'})
    leftover = take_options([b'%s=%s' % pair for pair in resources(environ)], options)
    leftover = take_options(extra_arguments(environ.get(b'XE_EXTRA_ARGS', b'')),
                            options) + leftover
    wanted = [word for word in arguments if word not in (b'-help', b'--help')]
    rest = take_options(arguments, options) + leftover
    if options[b'port'] and not (options[b'port'].isdigit() and int(options[b'port']) < 65536):
        raise Quit(0, b'Port number must be an integer (0-65535)\n' + USAGE)
    if len(wanted) < len(arguments) or not rest:
        raise Quit(0, USAGE)
    if options[b'passwordfile']:
        read_password_file(options)
    return options, rest


# The server

def trusted(options):
    """Whether the server takes us for root. Only the literal 127.0.0.1 is its unix socket; any
    other name goes by TCP, where a password is asked for."""
    server, port = options[b'server'], options[b'port'] or b'0'
    plain = options[b'nossl'] and boolean(options[b'nossl'])
    if server == b'127.0.0.1':
        return True
    if server != b'localhost' and plain:
        raise Quit(1, b"No addrinfo found for host: %s, port: %sHost '%s' not found.\n"
                   % (server, options[b'port'] or b'80', server))
    if server != b'localhost' or int(port) not in ((0, 80) if plain else (0, 443)):
        raise Quit(1, b'Unable to contact server. Please check server and port settings.\n')
    return False


def connect():
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        server.connect(SOCKET)
    except OSError:
        server.close()
        raise
    return server


def send(server, data):
    try:
        server.sendall(data)
    except OSError as error:
        raise Quit(1, b'Error: %s (calling single_write )\n' % words(error))


def receive(server, length):
    parts = []
    while length:
        part = server.recv(min(length, BLOCK))
        if not part:
            raise Quit(1, b'Lost connection to the server.\n')
        parts.append(part)
        length -= len(part)
    return b''.join(parts)


def data_connection(verb, token):
    """A connection for a file's data, or None when the server has refused."""
    data = connect()
    data.sendall(b'%s %s\n' % (verb, token))
    answer = b''
    while not answer.endswith(b'\n'):
        byte = data.recv(1)
        if not byte:
            return None
        answer += byte
    return data if answer == b'200\n' else None


# What the server may ask for

def show(text):
    try:
        write(1, text)
    except OSError as error:
        reason = b'Sys_error(%s)' % literal(words(error))
        raise Quit(2, b'Unhandled exception\n%s\nFatal error: exception %s\n' % (reason, reason))


def permitted(path, arguments):
    """A server may only touch files whose names stand on the command line."""
    if any(argument.partition(b'=')[2].strip() == path.strip() for argument in arguments):
        return
    raise Quit(1, b'File not permitted: Blocked upload/download of the file %s, which was '
                  b'requested by the server. The file name was not present on the command line\n'
                  b'.\n' % path)


def download(server, token, path, arguments):
    """Fill a new file, mode 0600, never one that exists; '' is stdout."""
    data = None
    try:
        data = data_connection(b'GET', token)
        if not data:
            send(server, b'Failed\n')
            return
        fd = 1
        if path:
            permitted(path, arguments)
            try:
                fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL, 0o600)
            except OSError as error:
                send(server, b'Failed\n')
                raise Quit(1, b'Operation failed. Error: Sys_error(%s)\n'
                           % literal(path + b': ' + words(error)))
        buffer = bytearray(BLOCK)
        view = memoryview(buffer)
        length = data.recv_into(buffer)
        while length:
            write(fd, view[:length])
            length = data.recv_into(buffer)
        if path:
            posix.close(fd)
        answer = b'OK\n'
    except OSError:
        if data:
            data.close()
        answer = b'Failed\n'
    send(server, answer)


def size_of(fd):
    """The bytes of a regular file; of anything else the real xe tells no length either."""
    status = posix.fstat(fd)
    return status.st_size if status.st_mode & 0o170000 == 0o100000 else -1


def upload(server, token, path, arguments):
    if not path:
        raise Quit(1, b'Unhandled exception\nInvalid_argument("\\"\\": invalid path")\n')
    permitted(path, arguments)
    try:
        fd = posix.open(path, posix.O_RDONLY)
    except OSError as error:
        send(server, b'Failed\n')
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise Quit(1, b"Operation failed. Error: file '%s' does not exist\n" % path)
        return
    try:
        length = size_of(fd)
        data = data_connection(b'PUT', b'%s %d' % (token, length))
        block = data and posix.read(fd, BLOCK)
        while block:
            data.sendall(block)
            block = posix.read(fd, BLOCK)
        answer = b'OK\n' if data else b'Failed\n'
        if data:
            data.close()
    except OSError:
        answer = b'Failed\n'
    send(server, answer)


def ask(server):
    """Send one line of stdin. Its end is the end of us, with words that blame the server."""
    line = b''
    byte = posix.read(0, 1)
    while byte and byte != b'\n':
        line += byte
        byte = posix.read(0, 1)
    if not byte and not line:
        raise Quit(1, b'Lost connection to the server.\n')
    send(server, b'Line %d\n%s' % (len(line), line))


def converse(server, arguments, debug):
    names = {b'P': b'Print ', b'E': b'PrintStderr ', b'X': b'Exit ', b'Q': b'Prompt',
             b'G': b'HttpGet ', b'U': b'HttpPut '}
    if debug:
        complain(b'Server has protocol version 0.2. Client has 0.2\n')
    while True:
        head = receive(server, 5)
        kind, payload = head[:1], receive(server, int.from_bytes(head[1:], 'big'))
        if debug:
            complain(b'Read: Command %s%s\n' % (names[kind], payload.rstrip(b'\n')))
        if kind == b'X':
            raise Quit(int(payload))
        if kind == b'P':
            show(payload)
        elif kind == b'E':
            complain(payload)
        elif kind == b'Q':
            ask(server)
        else:
            token, path = payload.split(b'\n', 1)
            (download if kind == b'G' else upload)(server, token, path, arguments)


def run(arguments, environ):
    if b'-version' in arguments:
        show(b'ThinCLI protocol: 0.2\n')
        raise Quit(0)
    options, rest = parse(arguments, environ)
    trust = trusted(options)
    body = b'\n'.join(rest + [b'username=' + options[b'username'],
                              b'password=' + options[b'password']])
    try:
        server = connect()
    except OSError as error:
        if not trust:
            raise Quit(1, b'Unable to contact server. Please check server and port settings.\n')
        if error.errno == errno.ENOENT:
            error.errno = errno.ECONNREFUSED    # the real one goes on to TCP and ends there
        raise Quit(1, b'Error: %s (calling connect )\n' % words(error))
    send(server, b'CLI %d %d\n%s' % (trust, len(body), body))
    try:
        converse(server, rest, options[b'debug'] == b'true')
    except OSError as error:
        raise Quit(1, b'Error: %s (calling read )\n' % words(error))


def main():
    _signal.signal(_signal.SIGINT, lambda number, frame: posix._exit(1))
    for fd in (0, 1, 2):        # a closed one must not become the connection's number
        try:
            posix.fstat(fd)
        except OSError:
            posix.open('/dev/null', posix.O_RDONLY)
    encoding = sys.getfilesystemencoding()
    try:
        run([word.encode(encoding, 'surrogateescape') for word in sys.argv[1:]], posix.environ)
    except Quit as end:
        complain(end.text)
        posix._exit(end.status)
