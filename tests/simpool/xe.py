"""The xe door of the simulated pool: the server side of the CLI.

As in the real thing the client (client.py) knows nothing: everything is decided here. Grammar,
selectors, printers and the end of a transfer follow xapi: ocaml/xapi-cli-server (cli_frontend.ml,
cli_operations.ml, cli_printer.ml, cli_util.ml, xapi_cli.ml), and where it differs, the recordings
from xapi 25.6.0.
"""
import contextlib
import functools
import itertools
import marshal
import os
import select
import shlex
import socket
import struct
import sys
import threading
import time

from . import client, xe_records
from .model import Down, XapiError
from .xe_errors import documented

STANDARD = ('server password port username minimal force multiple all message-priority '
            'trace').split()
SWITCHES = {'-u': 'username', '-pw': 'password', '-s': 'server', '-h': 'server', '-p': 'port'}
UNITS = {'': 0, 'b': 0, 'bytes': 0, 'k': 1, 'kb': 1, 'kib': 1, 'm': 2, 'mb': 2, 'mib': 2,
         'g': 3, 'gb': 3, 'gib': 3, 't': 4, 'tb': 4, 'tib': 4}
STOP_PATIENCE = 10.0       # seconds to wait for a thread when the pool stops
BLOCK = 1 << 16            # how much is read from a client at a time
FORGETS = 0.7              # seconds after which a task whose client has gone is forgotten
NAP = 0.005                # seconds: for less nobody who keeps to a rate sleeps
CATCH_UP = 0.25            # seconds by which one who keeps to a rate may be late and hurry
TRANSFERS = ('vm-export', 'snapshot-export-to-template', 'vdi-export',
             'pool-dump-database', 'vm-import', 'vdi-import')
PROGRAM = '''"""The xe of a simulated pool: tests/simpool/client.py, compiled."""
import marshal
exec(marshal.loads(open(%r, 'rb').read()))
SOCKET = %r
main()
'''
ERROR_PAGE = (
    '<html><body><h1>HTTP 500 internal server error</h1>An unexpected error occurred; please wait '
    'a while and try again. If the problem persists, please contact your support '
    'representative.<h1> Additional information </h1>%s: [ %s ]</body></html>')


class CliFailure(Exception):
    """A failure of the CLI itself: `Error: <text>`."""


class UsageFailure(Exception):
    """A line that cannot be understood: the text, and a hint at the help."""


class Ended(Exception):
    """The command is over, with this exit status, and everything has been said."""


class Gone(Exception):
    """The client is no longer there."""


class Dying(Exception):
    """A fault: the server's end of the connection dies here."""


def bytes_of(text):
    return text.encode('utf-8', 'surrogateescape')


def text_of(data):
    return data.decode('utf-8', 'surrogateescape')


def ocaml_exception(code, parameters):
    return '%s: [ %s ]' % (code, '; '.join(parameters))


def error_page(error):
    """What the HTTP layer writes into a transfer that has failed (recorded from xapi 25.6.0)."""
    body = bytes_of(ERROR_PAGE % (error.details[0], '; '.join(error.details[1:])))
    head = ('HTTP/1.0 500 Internal Error\r\ncontent-length: %d\r\ncontent-type: text/html\r\n'
            'connection: close\r\ncache-control: no-cache, no-store\r\n\r\n' % len(body))
    return head.encode() + body


def install(path, address):
    """Write the program `xe` for the pool that listens at `address`, and beside it its code.

    Compiling the client at each start would take as long as the interpreter itself. One that starts
    meanwhile meets the old program or the new one, whole.
    """
    shebang = '#!%s -IS\n' % sys.executable
    if len(shebang) > 126 or ' ' in sys.executable:
        shebang = "#!/bin/sh\n'''exec' %s -IS \"$0\" \"$@\"\n' '''\n" % shlex.quote(sys.executable)
    program = shebang + PROGRAM % (os.fsencode(path + '.code'), os.fsencode(address))
    for name, data in ((path + '.code', compiled_client()), (path, program.encode('utf-8'))):
        with open(name + '.new', 'wb') as file:
            file.write(data)
        os.chmod(name + '.new', 0o755)
        os.rename(name + '.new', name)


@functools.lru_cache(maxsize=None)
def compiled_client():
    with open(client.__file__, encoding='utf-8') as file:
        return marshal.dumps(compile(file.read(), client.__file__, 'exec'))


def size_in_bytes(field, text):
    """'8MiB' -> 8388608; suffixes are powers of 1024. Raises CliFailure."""
    digits = ''.join(itertools.takewhile(str.isdigit, text))
    suffix = text[len(digits):].strip().lower()
    if not digits or suffix not in UNITS:
        raise CliFailure("Failed to parse field '%s': expecting an integer (possibly with suffix "
                         "KiB, MiB, GiB, TiB), got '%s'" % (field, text))
    return int(digits) << 10 * UNITS[suffix]


# The conversation with one client

class Talk:
    """What is said to the client, and its answers. Raises Gone when it has gone, and Dying when a
    fault lets it hear no more than `limit` bytes; with `mute` it hears nothing."""

    def __init__(self, connection):
        self.connection = connection
        self.reader = connection.makefile('rb')
        self.limit = None
        self.mute = False

    def send(self, kind, payload):
        try:
            self.connection.sendall(kind + struct.pack('>I', len(payload)) + payload)
        except OSError:
            raise Gone

    def _say(self, kind, text):
        payload = bytes_of(text)
        if self.mute:
            return
        if self.limit is not None and len(payload) > self.limit:
            if self.limit:
                self.send(kind, payload[:self.limit])
            raise Dying
        if self.limit is not None:
            self.limit -= len(payload)
        self.send(kind, payload)

    def print(self, text):
        self._say(b'P', text + '\n')

    def complain(self, text):
        self._say(b'E', text + '\n')

    def exit(self, status):
        if self.limit is not None:
            raise Dying
        self.send(b'X', b'%d' % status)

    def answer(self):
        """'OK' or 'Failed', the client's word on a transfer."""
        return self.line().decode()

    def ask(self):
        self.send(b'Q', b'')
        length = int(self.line().split()[1])
        return text_of(self.reader.read(length))

    def line(self):
        try:
            line = self.reader.readline()
        except OSError:
            raise Gone
        if not line.endswith(b'\n'):
            raise Gone
        return line[:-1]

    def hang_up(self):
        """End the connection; whose talk it is closes it, and may be reading just now."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def close(self):
        shut(self.connection)
        self.reader.close()


def shut(connection):
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class Printer:
    def __init__(self, talk, minimal):
        self.talk = talk
        self.minimal = minimal
        self.kept = []

    def records(self, records):
        """Each record is a list of (label, value)."""
        if self.minimal:
            if records and records[0]:
                self.list([record[0][1] for record in records])
            return
        for record in records:
            width = 4 + max([len(label) for label, _ in record] or [0])
            lines = ['%s: %s' % (label.rjust(width) if number else label.ljust(width), value)
                     for number, (label, value) in enumerate(record)]
            self.talk.print('\n'.join(lines) + '\n\n')

    def list(self, values):
        if self.minimal:
            self.kept.insert(0, ','.join(
                value.replace('\\', '\\\\').replace(',', '\\,') for value in values))
            return
        for value in values:
            self.talk.print(value)

    def message(self, text):
        if not self.minimal:
            self.talk.print(text)

    def flush(self):
        if self.minimal:
            self.talk.print(','.join(self.kept))


# The data of a file, over a connection of its own

class Transfer:
    """One file on its way. The thread of the data connection runs `carry`; the command waits."""

    def __init__(self, door, talk, fault, carry, task):
        self.door = door
        self.talk = talk
        self.fault = fault
        self.carry = carry
        self.task = task
        self.token = '%d' % next(door.tokens)
        self.started = False
        self.sized = True       # the client told how long the file is that it sends
        self.done = threading.Event()

    def run(self, data, length=b'0'):
        self.started, self.sized = True, int(length) >= 0
        fault = self.fault if self.fault and self.fault.made is not None else None
        try:
            with self.door.pool.amid(fault and fault._replace(after=fault.made)):
                self.carry(self, data)
        except (Dying, Down):
            self.talk.hang_up()     # first, so that the client's `OK` finds nobody
        finally:
            shut(data)
            self.done.set()

    def shaped(self, chunks, data, sending=True):
        """The chunks as the fault, if there is one, lets them pass.

        A death without a number of bytes comes before the first one that is sent; what is received
        it lets pass, for it comes with the answer.
        """
        fault = self.fault
        rest = fault.after if fault and fault.do not in ('print', 'down-after') else None
        if fault and fault.do == 'die' and rest is None and sending:
            rest = 0
        rate = fault.rate if fault else None
        due = time.monotonic()
        for chunk in chunks:
            view = memoryview(chunk)
            step = max(1, int(rate / 20)) if rate else len(view)
            while view:
                piece = view[:step] if rest is None else view[:min(step, rest)]
                yield piece
                view = view[len(piece):]
                if rate:
                    due = max(due, time.monotonic() - CATCH_UP) + len(piece) / rate
                    if due > time.monotonic() + NAP:
                        self.door.pool.sleep(due - time.monotonic())
                if rest is not None:
                    rest -= len(piece)
                    if not rest:
                        self._strike(data, sending)
                        rest = None

    def _strike(self, data, sending):
        """A sender that hangs ends with the file's connection; a receiver, where the client may
        have closed that after its last byte, with the command's."""
        if self.fault.do in ('hang', 'stall'):
            self._wait_for_the_end(data if sending else self.talk.connection)
            raise BrokenPipeError if sending else ConnectionResetError
        if self.fault.do == 'slow':
            self.door.pool.sleep(self.fault.seconds)
        elif self.fault.do == 'down':
            self.door.die()
            raise Down('the toolstack is down')
        elif self.fault.do == 'die':
            raise Dying
        else:
            raise XapiError(*self.fault.error)

    def _wait_for_the_end(self, end):
        """Until the connection is closed, or XapiError if the task is cancelled and is heeded (the
        real one looks every ten seconds, where it looks at all)."""
        pool = self.door.pool

        def is_cancelled():
            return self.fault.do == 'stall' and pool.is_cancelling(self.task)
        pool.sleep(None, lambda: is_cancelled() or has_closed(end))
        if is_cancelled():
            raise XapiError('TASK_CANCELLED', self.task)


class Command:
    """One command on its way through the server: its parameters, and all verbs as methods."""

    def __init__(self, door, talk, verb, words, fault):
        self.door = door
        self.pool = door.pool
        self.talk = talk
        self.verb = verb
        self.words = words
        self.fault = fault
        self.parameters = parse(words)
        minimal = self.get('minimal', 'false')
        if minimal not in ('true', 'false'):
            raise XapiError('INTERNAL_ERROR', ocaml_exception(
                'INTERNAL_ERROR', ['Invalid_argument("bool_of_string")']))
        self.out = Printer(talk, minimal == 'true')

    def run(self):
        """Do it. Raises what the real one raises; `failed` puts that in words."""
        if self.verb not in COMMANDS:
            raise UsageFailure('Unknown command: ' + self.verb)
        required, work, details = COMMANDS[self.verb]
        for name in required:
            self.need(name)
        work(self, *details)
        self.out.flush()

    def api(self, method, *arguments):
        """A call of the API. Its dispatcher takes no text that is not UTF-8."""
        for argument in arguments:
            if isinstance(argument, str) and bytes_of(argument) != argument.encode(
                    'utf-8', 'replace'):
                raise XapiError('INVALID_VALUE', 'Invalid UTF-8 string in parameter',
                                'S(%s)' % argument)
        return self.pool.call(method, *arguments)

    # Parameters

    def get(self, name, default=None):
        return next((value for key, value in self.parameters if key == name), default)

    def need(self, name):
        value = self.get(name)
        if value is None:
            raise UsageFailure('Required parameter not found: ' + name)
        return value

    def found(self, name):
        """A parameter that nobody checked before; the real one stumbles over its absence too."""
        value = self.get(name)
        if value is None:
            raise XapiError('INTERNAL_ERROR', 'INTERNAL_ERROR: [ Not_found ]')
        return value

    def flag(self, name, default=False):
        text = self.get(name)
        if text is None:
            return default
        if text.lower() in ('true', 't', 'yes', 'y', '1'):
            return True
        if text.lower() in ('false', 'f', 'no', 'n', '0'):
            return False
        raise CliFailure("Failed to parse parameter '%s': Expected 'true','t','yes','y','1',"
                         "'false','f','no','n','0' got %s" % (name, text))

    def pairs(self, name):
        """The map that `name:key=value` parameters make."""
        return {key[len(name) + 1:]: value for key, value in self.parameters
                if key.startswith(name) and len(key) > len(name) + 1}

    def ref(self, cls, name='uuid'):
        return self.api(cls + '.get_by_uuid', self.need(name))

    # Records

    def every(self, cls, expression='true'):
        if expression == 'true':
            return list(self.pool.tables[cls].items())
        return list(self.api(cls + '.get_all_records_where', expression).items())

    def filtered(self, kind, records, filters):
        for key, wanted in filters:
            if not records:
                return []
            records = self._passing(kind, records, key, wanted)
        return records

    def _passing(self, kind, records, key, wanted):
        tables = self.pool.tables
        field, inner = split_key(kind.fields, key)
        if inner is None:
            if 'I' in field.flags:
                return [pair for pair in records
                        if field.text(tables, pair[1]).lower() == wanted.lower()]
            return [pair for pair in records if field.text(tables, pair[1]) == wanted]
        return [pair for pair in records
                if as_map(field.value(tables, pair[1])).get(inner) == wanted]

    def shown(self, kind, record, names):
        """The (label, value) pairs of a record; names in the order of their definition."""
        fields = [field for field in kind.fields.values()
                  if (names is None or field.name in names) and 'H' not in field.flags
                  and ('N' not in field.flags or self.pool.version >= (26, 17))
                  and ('L' not in field.flags or self.pool.version >= (25, 33))]
        return [(field.label, xe_records.EXPENSIVE if 'E' in field.flags
                 else field.text(self.pool.tables, record)) for field in fields]

    def list(self, word):
        kind = KINDS[word]
        with self.pool.lock:
            every = self.every(kind.cls)
            filters = [(key, value) for key, value in self.parameters
                       if key != 'params' and key not in STANDARD
                       and not key.startswith('database:')]
            records = self.filtered(kind, every, kind.filters + filters)
            if self.flag('all'):
                records = every
            chosen = self.get('params', ','.join(kind.columns))
            names = None if chosen == 'all' else chosen.split(',')
            rows = [self.shown(kind, record, names) for _, record in records]
        self.out.records(rows)

    def _one(self, word):
        kind = KINDS[word]
        ref = self.ref(kind.cls)
        return kind, ref, self.pool.tables[kind.cls][ref]

    def _field(self, kind, name):
        if name not in kind.fields:
            raise XapiError('Missing parameter', name)
        return kind.fields[name]

    def param_get(self, word):
        kind, _, record = self._one(word)
        field = self._field(kind, self.need('param-name'))
        key = self.get('param-key')
        if key is None or not field.is_map():
            self.out.list([field.text(self.pool.tables, record)])
            return
        values = as_map(field.value(self.pool.tables, record))
        if key not in values:
            raise CliFailure('Key %s not found in map' % key)
        self.out.list([values[key]])

    def param_set(self, word):
        """Fields are set in the order of the line; what was set stays when a later one fails."""
        kind, ref, record = self._one(word)
        for key, value in self.parameters:
            if key != 'uuid' and key not in STANDARD:
                self._set(kind, ref, record, key, value)

    def _set(self, kind, ref, record, key, value):
        field, inner = split_key(kind.fields, key)
        name = api_name(field)
        if inner is not None:
            if field.access != 'MRW':
                raise CliFailure("Map field '%s' is read-only." % field.name)
            if inner in record[name]:
                self.api('%s.remove_from_%s' % (kind.cls, name), ref, inner)
            self.api('%s.add_to_%s' % (kind.cls, name), ref, inner, value)
            return
        if field.access == 'MRW':
            raise CliFailure("Field '%s' is a map or set. use the 'name:key=value' syntax." % key)
        if field.access != 'RW':
            raise CliFailure("Field '%s' is read-only." % key)
        if isinstance(record[name], bool):
            if value not in ('true', 'false'):
                raise CliFailure("Failed to parse parameter '%s': expecting a boolean (true or "
                                 'false)' % field.name)
            value = value == 'true'
        self.api('%s.set_%s' % (kind.cls, name), ref, value)

    def param_remove(self, word):
        kind, ref, record = self._one(word)
        field = self._field(kind, self.need('param-name'))
        key = self.need('param-key')
        if len(field.access) != 3:
            raise CliFailure('Can only remove from parameters of type Set or Map')
        if not field.access.endswith('RW'):
            raise CliFailure('Cannot remove parameters from read-only map')
        if key not in field.value(self.pool.tables, record):
            raise CliFailure(('Key %s is not in the set' if field.is_set()
                              else 'Key %s is not in map') % key)
        self.api('%s.%s_%s' % (kind.cls, 'remove' if field.is_set() else 'remove_from',
                               api_name(field)), ref, key)

    # Selecting VMs

    def select_vms(self, ignored=()):
        """[(ref, record)] of the VMs that the line selects: never templates or control domains."""
        filters = [('is-a-template', 'false'), ('is-control-domain', 'false')]
        expression = 'true'
        for key, value in self.parameters:
            if key == 'vm' and expression == 'true':
                quoted = value.replace('"', '\\"')
                expression = '(field "uuid"="%s") or (field "name__label"="%s")' % (quoted, quoted)
            elif key.split(':')[0] not in STANDARD and key.split(':')[0] not in ignored:
                filters.append((key, value))
        with self.pool.lock:
            return self.filtered(KINDS['vm'], self.every('VM', expression), filters)

    def each_vm(self, work, ignored=()):
        """Do work(ref) for the one VM selected, or for all of them with --multiple."""
        vms = self.select_vms(ignored)
        if not vms:
            raise CliFailure('No matching VMs found')
        if len(vms) == 1:
            return [work(vms[0][0])]
        if not self.flag('multiple'):
            raise CliFailure('Multiple matches VMs found. --multiple required to complete the '
                             'operation')
        results, failures = [], []
        for ref, record in vms:
            try:
                results.append(work(ref))
            except XapiError as error:
                failures.append((record['uuid'], self.in_words(error)))
            except CliFailure as error:
                failures.append((record['uuid'], ocaml_exception(
                    'INTERNAL_ERROR', ['Cli_util.Cli_failure("%s")' % error])))
        if failures:
            for uuid, text in reversed(failures):
                self.talk.print('operation failed on %s: %s' % (uuid, text))
            raise Ended(1)
        return list(reversed(results))

    def in_words(self, error):
        code, parameters = error.details[0], self.resolved(error)
        known = documented(code, parameters, self.pool.xapi_version)
        if known:
            return '\n'.join([known[0], '\n'.join(known[1])])
        return ocaml_exception(code, error.details[1:])

    def resolved(self, error):
        """The parameters of a failure, references as `uuid (name-label)`."""
        def resolve(text):
            record = xe_records.find(self.pool.tables, text)
            if not record or 'uuid' not in record:
                return text
            name = record.get('name_label')
            return record['uuid'] + (' (%s)' % name if name is not None else '')
        return [resolve(parameter) for parameter in error.details[1:]]

    def uuid(self, cls, ref):
        return self.api(cls + '.get_uuid', ref)

    # VMs

    def vm_copying(self, method):
        """vm-snapshot and its like: prints the uuid of what was made."""
        name = self.need('new-name-label')
        ignored = self.get('ignore-vdi-uuids')
        more = []
        if method == 'VM.snapshot' and ignored is not None:
            more = [[self.api('VDI.get_by_uuid', uuid) for uuid in ignored.split(',')]]
        made = self.each_vm(lambda ref: self.api(method, ref, name, *more),
                            ('new-name-label', 'ignore-vdi-uuids'))
        self.out.list([self.uuid('VM', ref) for ref in made])

    def vm_install(self):
        """A VM from a template without disks (xapi: cli_operations.ml, vm_install)."""
        wanted = self.get('template')
        if wanted is None:
            raise CliFailure("Template must be specified by parameter 'template-uuid', "
                             "'template-name', 'template-name-label' or 'template'")
        found = [ref for ref, vm in self.every('VM') if vm['uuid'] == wanted] or [
            ref for ref, vm in self.every('VM')
            if vm['name_label'] == wanted and vm['is_a_template'] and not vm['is_control_domain']]
        if len(found) != 1:
            raise CliFailure('More than one matching template found' if found else
                             'No templates matched')
        if not self.api('VM.get_is_a_template', found[0]):
            raise CliFailure('Can only install from templates')
        vm = self.api('VM.clone', found[0], self.need('new-name-label'))
        self.api('VM.set_name_description', vm, 'Installed via xe CLI')
        self.api('VM.set_is_a_template', vm, False)
        self.out.list([self.uuid('VM', vm)])

    def no_longer(self):
        raise XapiError('MESSAGE_REMOVED')

    def vm_start(self):
        self.each_vm(lambda ref: self.api('VM.start', ref, self.flag('paused'),
                                          self.flag('force')), ('on', 'paused', 'progress'))

    def vm_shutdown(self):
        method = 'VM.hard_shutdown' if self.flag('force') else 'VM.clean_shutdown'
        self.each_vm(lambda ref: self.api(method, ref), ('progress',))

    def vm_destroy(self):
        ref = self.ref('VM')
        if self.api('VM.get_is_control_domain', ref):
            raise XapiError('OPERATION_NOT_ALLOWED',
                            'You cannot destroy a control domain via the CLI')
        self.api('VM.destroy', ref)

    def vm_uninstall(self):
        vms = self.each_vm(lambda ref: ref)
        self.uninstall(vms + [snapshot for ref in vms
                              for snapshot in self.api('VM.get_snapshots', ref)])

    def snapshot(self):
        uuid = self.get('snapshot-uuid', self.get('uuid'))
        if uuid is None:
            raise CliFailure('Required parameter not found: snapshot-uuid or uuid.')
        ref = self.api('VM.get_by_uuid', uuid)
        if not self.api('VM.get_is_a_snapshot', ref):
            raise CliFailure('This operation can only be performed on a VM snapshot. %s is not a '
                             'VM snapshot.' % uuid)
        return ref

    def snapshot_uninstall(self):
        self.uninstall([self.snapshot()])

    def template_uninstall(self):
        ref = self.ref('VM', 'template-uuid')
        if not self.api('VM.get_is_a_template', ref):
            raise CliFailure('This operation can only be performed on a VM template. %s is not a '
                             'VM template.' % self.need('template-uuid'))
        self.uninstall([ref])

    def uninstall(self, vms):
        """Destroy VMs and the disks whose VBDs say `owner`; the list is printed before."""
        plan = [(vm, self._own_disks(vm)) for vm in vms]
        self.talk.print('The following items are about to be destroyed')
        for vm, disks in plan:
            self.talk.print('VM : %s (%s)' % (self.uuid('VM', vm),
                                              self.api('VM.get_name_label', vm)))
            for disk, _ in disks:
                record = self.api('VDI.get_record', disk)
                self.talk.print('VDI: %s (%s) %s' % (
                    record['uuid'], record['name_label'],
                    ' ** WARNING: disk is shared by other VMs' if len(record['VBDs']) > 1 else ''))
        if not self.flag('force') and not self._says_yes():
            return
        for vm, disks in plan:
            if self.api('VM.get_power_state', vm) != 'Halted':
                self.api('VM.hard_shutdown', vm)
            self.api('VM.destroy', vm)
            for disk, of_suspend in disks:
                with contextlib.suppress(XapiError if of_suspend else ()):
                    self.api('VDI.destroy', disk)
        self.talk.print('All objects destroyed')

    def _own_disks(self, vm):
        """[(VDI, whether it is the suspend image)] that go with a VM."""
        with self.pool.lock:
            tables = self.pool.tables
            vbds = [tables['VBD'][ref] for ref in self.api('VM.get_VBDs', vm)]
            disks = [(vbd['VDI'], False) for vbd in vbds
                     if vbd['VDI'] in tables['VDI'] and 'owner' in vbd['other_config']]
            suspended = self.api('VM.get_suspend_VDI', vm)
            return disks + [(suspended, True)] * (suspended in tables['VDI'])

    def _says_yes(self):
        self.talk.print("Type 'yes' to continue")
        typed = self.talk.ask()
        if typed.strip().lower() == 'yes':
            return True
        self.talk.print("Aborted (you typed: '%s')" % typed)
        return False

    # Exports and imports

    def compression(self):
        """Any word but these means none, and nobody is told."""
        return {'true': 'gzip', 'gzip': 'gzip', 'zstd': 'zstd'}.get(self.get('compress'), 'none')

    def vm_export(self):
        numbers = itertools.count(1)
        self.each_vm(lambda ref: self.export_vm(ref, next(numbers)), (
            'filename', 'metadata', 'compress', 'preserve-power-state', 'excluded-device-types'))

    def snapshot_export(self):
        """By uuid, whatever the selector thinks."""
        self.export_vm(self.snapshot(), 1)

    def export_vm(self, ref, number):
        path = self.need('filename') + (str(number) if number > 1 else '')
        task = self.pool.make_task(*self.pool.names_of_export(ref))
        if self.pool.version < (25, 33):
            self.api('task.set_progress', task, -1.0)

        def opened():
            return self.pool.export_vm(
                ref, compress=self.compression(), metadata=self.flag('metadata'),
                preserve_power_state=self.flag('preserve-power-state'), task=task)
        ok = self.transferred(b'G', path, task, sender(opened), destroy_if_gone=True)
        self.export_ended(task, ok, path)

    def export_ended(self, task, ok, path):
        status, error = self.finished_task(task)
        if status == 'failure' and error:
            raise XapiError(*error)
        if status == 'failure':     # the client never reached us: no exception, so exit 0
            self.talk.complain('Export failed, unknown error')
        elif status == 'cancelled':
            self.talk.complain('Export cancelled')
            raise Ended(1)
        elif not ok:
            self.talk.complain('Export failed, unknown error.')
            raise Ended(1)
        elif path:
            self.talk.print('Export succeeded')

    def finished_task(self, task):
        """(status, error_info) of a task that is over; the task goes."""
        record = self.api('task.get_record', task)
        self.api('task.destroy', task)
        return record['status'], record['error_info']

    def transferred(self, kind, path, task, carry, destroy_if_gone=False):
        """Have a file carried; whether the client is content."""
        transfer = Transfer(self.door, self.talk, self.fault, carry, task)
        self.door.transfers[transfer.token] = transfer
        kept = False
        try:
            self.talk.send(kind, transfer.token.encode() + b'\n' + bytes_of(path))
            answer = self.talk.answer()
            kept = not transfer.started and kind == b'U' and self.pool.version >= (25, 33)
            if kept:        # where there is no such file (recorded from there)
                raise Gone
            if not transfer.started:
                self.pool.finish_task(task, 'failure')
                return False
            transfer.done.wait()
            return answer == 'OK'
        except Gone:        # what becomes of the task is recorded from xapi 25.33.2
            if transfer.started and destroy_if_gone:
                self.api('task.destroy', task)
            if transfer.started:
                transfer.done.wait()
                if not destroy_if_gone:
                    self.pool.sleep(FORGETS)
                    self.api('task.destroy', task)
            elif not kept:
                self.api('task.destroy', task)
            raise
        finally:
            del self.door.transfers[transfer.token]

    def tracked(self, kind, path, task, carry):
        """A transfer whose outcome is its task's. Raises XapiError."""
        ok = self.transferred(kind, path, task, carry)
        status, error = self.finished_task(task)
        unread = not ok and self.pool.version < (26, 17)       # e.g. of metadata, all but ova.xml
        if unread or status != 'success':
            raise XapiError(*(error or ['CLIENT_ERROR']))

    def vdi_export(self):
        ref = self.ref('VDI')
        task = self.pool.make_task('VDI export', '')

        def opened():
            return self.pool.export_vdi(ref, format=self.get('format', 'raw'), task=task,
                                        base=self.get('base'))
        began = time.time()
        self.tracked(b'G', self.need('filename'), task, sender(opened, as_disk=True))
        self.progress(began)

    def progress(self, began):
        if not self.flag('progress'):
            return
        self.talk.complain('\r[-] %s> (100%% ETA 00:00:00) ' % ('#' * 54))
        spent = time.time() - began
        old = time.strftime('%H:%M:%S', time.gmtime(spent))         # recorded from xapi 25.33.2
        self.talk.complain('Total time: ' + (
            '%.2fs' % spent if self.pool.version >= (26, 17) else old))

    def vdi_import(self):
        ref = self.ref('VDI')
        task = self.pool.make_task('VDI import', '')

        def work(pieces, sized):
            self.pool.import_vdi(ref, pieces, self.get('format', 'raw'), task, sized)
        began = time.time()
        self.tracked(b'U', self.need('filename'), task, receiver(work))
        self.progress(began)

    def vm_import(self):
        sr = self._import_sr()
        options = {name: self.flag(name) for name in ('metadata', 'preserve', 'force')}
        if self.flag('dry-run'):
            raise CliFailure('dry-run is not simulated')
        if self.get('url') is not None and self.get('filename') is not None:
            self.talk.complain("Invalid arguments. The 'url' and 'filename' parameters should not "
                               'both be specified.')
            raise Ended(1)
        path = self.found('filename')
        task = self.pool.make_task('VM import', '')
        made = []

        def work(pieces, _):
            made.extend(self.pool.import_vm(pieces, sr=sr, task=task, **options))
        self.tracked(b'U', path, task, receiver(work))
        self.talk.print(','.join(self.uuid('VM', ref) for ref in made))

    def _import_sr(self):
        if self.get('sr-uuid') is not None:
            return self.ref('SR', 'sr-uuid')
        pool = next(iter(self.pool.tables['pool'].values()))
        if pool['default_SR'] not in self.pool.tables['SR']:
            raise CliFailure('No SR specified and Pool default SR is null')
        return pool['default_SR']

    def pool_dump_database(self):
        task = self.pool.make_task('dump database', '')

        @contextlib.contextmanager
        def opened():
            try:
                yield [self.pool.dump_database()]
                self.pool.finish_task(task, 'success')
            except XapiError as error:
                self.pool.finish_task(task, 'failure', error=error.details)
                raise
            except (OSError, Dying):
                self.pool.finish_task(task, 'failure')
                raise
        self.tracked(b'G', self.need('file-name'), task, sender(opened))

    # Disks, drives, tasks

    def vdi_create(self):
        sr = self.ref('SR', 'sr-uuid')
        size = size_in_bytes('virtual-size', self.need('virtual-size'))
        kind = self.get('type', 'user')
        if kind not in ('system', 'user', 'suspend', 'crashdump'):
            raise CliFailure('Unknown vdi type: ' + kind)
        vdi = self.api('VDI.create', {
            'name_label': self.need('name-label'), 'name_description': '', 'SR': sr,
            'virtual_size': str(size), 'type': kind, 'sharable': self.flag('sharable'),
            'read_only': False, 'other_config': {}, 'xenstore_data': {},
            'sm_config': self.pairs('sm-config'), 'tags': list(self.pairs('tags'))})
        self.out.list([self.uuid('VDI', vdi)])

    def vtpm_create(self):
        vtpm = self.api('VTPM.create', self.ref('VM', 'vm-uuid'), self.flag('is-unique'))
        self.out.list([self.uuid('VTPM', vtpm)])

    def vdi_snapshot(self):
        vdi = self.api('VDI.snapshot', self.ref('VDI'))
        self.out.list([self.uuid('VDI', vdi)])

    def vbd_create(self):
        vm = self.ref('VM', 'vm-uuid')
        empty = self.get('vdi-uuid') is None
        vdi = xe_records.NULL if empty else self.ref('VDI', 'vdi-uuid')
        bootable = self.flag('bootable')
        mode = self.get('mode', 'RW')
        if mode.lower() not in ('ro', 'rw'):
            raise CliFailure('Unknown mode: %s (should be "ro" or "rw"' % mode.lower())
        kind = {'cd': 'CD', 'disk': 'Disk'}.get(self.get('type', 'disk').lower())
        if not kind:
            raise CliFailure('"Unknown type: %s (should be "cd", "disk" or "floppy"'
                             % self.get('type').lower())
        unpluggable = self.flag('unpluggable', True)
        if kind == 'Disk' and empty:
            raise CliFailure('Empty VBDs can only be made for type=CD')
        vbd = self.api('VBD.create', {
            'VM': vm, 'VDI': vdi, 'userdevice': self.need('device'), 'bootable': bootable,
            'mode': mode.upper(), 'type': kind, 'unpluggable': unpluggable, 'empty': empty,
            'qos_algorithm_type': '', 'qos_algorithm_params': {}, 'other_config': {}})
        self.out.list([self.uuid('VBD', vbd)])

    def vif_create(self):
        network = self.ref('network', 'network-uuid')
        vif = self.api('VIF.create', {
            'device': self.need('device'), 'network': network, 'VM': self.ref('VM', 'vm-uuid'),
            'MAC': self.get('mac', ''), 'MTU': self.api('network.get_MTU', network),
            'other_config': {}, 'qos_algorithm_type': '', 'qos_algorithm_params': {},
            'locking_mode': 'network_default', 'ipv4_allowed': [], 'ipv6_allowed': []})
        self.out.list([self.uuid('VIF', vif)])

    def simple(self, method):
        """The API's method on the object that `uuid=` names; nothing is printed."""
        self.api(method, self.ref(method.split('.')[0]))


def as_map(value):
    return value if isinstance(value, dict) else {}


def api_name(field):
    return field.source.split('@')[0].split('~')[0].rstrip(',').replace('()', '')


def parse(words):
    parameters = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word.startswith('--'):
            parameters.append((word[2:], 'true'))
        elif word.startswith('-'):
            if word not in SWITCHES or not queue:
                raise UsageFailure('Syntax error: ')
            parameters.append((SWITCHES[word], queue.pop(0)))
        else:
            key, _, value = word.partition('=')
            parameters.append((key, value))
    return parameters


def split_key(fields, key):
    """(Field, None), or for a key into a map (Field, inner key): `other-config:key`. Raises
    CliFailure, also for a key into a set: that is not simulated."""
    name, colon, inner = key.partition(':')
    if name not in fields:
        raise CliFailure("Unknown field '%s'" % key)
    if colon and not fields[name].is_map():
        raise CliFailure("Field '%s' is not a set or map" % name)
    return fields[name], inner if colon else None


def sender(opened, as_disk=False):
    """What a data connection does to send what opened() gives.

    A failure in the middle leaves the server's error page in the file. To the server a client
    that has gone is a failure of the disk when it copies one (`as_disk`; recorded from xapi
    25.6.0: VDI_IO_ERROR), else a broken pipe.
    """
    def carry(transfer, data):
        begun = False
        try:
            with opened() as chunks:
                data.sendall(b'200\n')
                begun = True
                for piece in transfer.shaped(chunks, data):
                    send_piece(data, piece, as_disk)
        except XapiError as error:
            if begun:
                with contextlib.suppress(OSError):
                    data.sendall(error_page(error))
        except (BrokenPipeError, ConnectionResetError):
            return
    return carry


def in_transfer(verb, fault):
    """Whether a fault, if there is one, waits for so many bytes or objects of a transfer."""
    return verb in TRANSFERS and bool(fault) and (
        fault.after is not None or fault.made is not None)


def send_piece(data, piece, as_disk):
    try:
        data.sendall(piece)
    except OSError:
        if as_disk:
            raise XapiError('VDI_IO_ERROR', 'Device I/O errors')
        raise


def receiver(work):
    """What a data connection does to hand what it receives to work(pieces, whether their length is
    known). A failure is in the task, and the words are said from there."""
    def carry(transfer, data):
        data.sendall(b'200\n')
        with data.makefile('rb') as file, contextlib.suppress(XapiError, ConnectionResetError):
            chunks = iter(lambda: file.read(BLOCK), b'')
            work(transfer.shaped(chunks, data, sending=False), transfer.sized)
    return carry


def has_closed(connection):
    if not select.select([connection], [], [], 0)[0]:
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:     # somebody else has read it meanwhile
        return False
    except ConnectionResetError:
        return True


KINDS = xe_records.kinds()
COMMANDS = {
    'vm-snapshot': (['new-name-label'], Command.vm_copying, ['VM.snapshot']),
    'vm-checkpoint': (['new-name-label'], Command.vm_copying, ['VM.checkpoint']),
    'vm-clone': (['new-name-label'], Command.vm_copying, ['VM.clone']),
    'vm-install': (['new-name-label'], Command.vm_install, []),
    'vm-snapshot-with-quiesce': (['new-name-label'], Command.no_longer, []),
    'vm-start': ([], Command.vm_start, []),
    'vm-shutdown': ([], Command.vm_shutdown, []),
    'vm-destroy': (['uuid'], Command.vm_destroy, []),
    'vm-uninstall': ([], Command.vm_uninstall, []),
    'snapshot-uninstall': ([], Command.snapshot_uninstall, []),
    'template-uninstall': (['template-uuid'], Command.template_uninstall, []),
    'vm-export': (['filename'], Command.vm_export, []),
    'snapshot-export-to-template': (['filename', 'snapshot-uuid'], Command.snapshot_export, []),
    'vm-import': ([], Command.vm_import, []),
    'vdi-create': (['sr-uuid', 'name-label', 'virtual-size'], Command.vdi_create, []),
    'vdi-snapshot': (['uuid'], Command.vdi_snapshot, []),
    'vdi-destroy': (['uuid'], Command.simple, ['VDI.destroy']),
    'vdi-export': (['uuid', 'filename'], Command.vdi_export, []),
    'vdi-import': (['uuid', 'filename'], Command.vdi_import, []),
    'vbd-create': (['vm-uuid', 'device'], Command.vbd_create, []),
    'vbd-destroy': (['uuid'], Command.simple, ['VBD.destroy']),
    'vbd-plug': (['uuid'], Command.simple, ['VBD.plug']),
    'vbd-unplug': (['uuid'], Command.simple, ['VBD.unplug']),
    'vif-create': (['device', 'network-uuid', 'vm-uuid'], Command.vif_create, []),
    'vtpm-create': (['vm-uuid'], Command.vtpm_create, []),
    'sr-scan': (['uuid'], Command.simple, ['SR.scan']),
    'vif-destroy': (['uuid'], Command.simple, ['VIF.destroy']),
    'network-destroy': (['uuid'], Command.simple, ['network.destroy']),
    'task-cancel': (['uuid'], Command.simple, ['task.cancel']),
    'pool-dump-database': (['file-name'], Command.pool_dump_database, []),
}
for _word in KINDS:
    COMMANDS.update({
        _word + '-list': ([], Command.list, [_word]),
        _word + '-param-get': (['uuid', 'param-name'], Command.param_get, [_word]),
        _word + '-param-set': (['uuid'], Command.param_set, [_word]),
        _word + '-param-remove': (['uuid', 'param-name', 'param-key'], Command.param_remove,
                                  [_word]),
    })


class XeDoor:
    """Serves the program <directory>/bin/xe, which start() writes, through <directory>/xe.sock.

    `master_address` is given on a pool member: locally xe reaches the master all the same, from
    elsewhere it is refused with this address.
    """

    def __init__(self, pool, directory, master_address=None):
        self.pool = pool
        self.directory = directory
        self.xe_path = os.path.join(directory, 'bin', 'xe')
        self.socket_path = os.path.join(directory, 'xe.sock')
        self.master_address = master_address
        self.transfers = {}
        self.tokens = itertools.count(1)
        self._listener = None
        self._connections = {}      # socket -> whether it carries a command (else data)
        self._threads = set()

    def start(self):
        os.makedirs(os.path.dirname(self.xe_path), exist_ok=True)
        install(self.xe_path, self.socket_path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket_path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.socket_path)
        self._listener.listen(128)
        self._run(self._accept, self._listener)

    @property
    def is_busy(self):
        return bool(self._connections)

    def refuse(self):
        """Refuse connections from now on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def stop(self):
        """Close everything, and wait until no thread of this door runs any more."""
        self._close()
        for thread in self._threads - {threading.current_thread()}:
            thread.join(STOP_PATIENCE)

    def _close(self):
        """End all connections, those of commands first; the socket refuses from now on."""
        shut(self._listener)
        connections = dict(self._connections)
        for connection in sorted(connections, key=connections.get, reverse=True):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def die(self):
        """A fault takes the daemon down: it is gone before the client notices."""
        self.pool.go_down()
        self._close()

    def _run(self, work, argument):
        def run():
            try:
                work(argument)
            finally:
                self._threads.discard(threading.current_thread())
        thread = threading.Thread(target=run, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _accept(self, listener):
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            self._connections[connection] = False
            self._run(self._serve, connection)

    def _serve(self, connection):
        talk = Talk(connection)
        try:
            kind, *details = talk.line().split()
            self._connections[connection] = kind == b'CLI'
            if kind == b'CLI':
                self._converse(talk, details[0] == b'1', talk.reader.read(int(details[1])))
            elif details[0].decode() in self.transfers:
                self.transfers[details[0].decode()].run(connection, *details[1:])
        except (Gone, Dying, Down):
            return
        finally:
            self._connections.pop(connection, None)
            talk.close()

    def _converse(self, talk, trusted, body):
        lines = [line[:-1] if line.endswith('\r') else line for line in text_of(body).split('\n')]
        words, credentials = lines[:-2], [line.partition('=')[2] for line in lines[-2:]]
        verb = words[0]
        self.pool.check_up()
        fault = self.pool.arrive('xe', verb, tuple(words[1:]))
        if self._struck(talk, verb, fault):
            return
        try:
            if '=' in verb:
                raise UsageFailure('Syntax error: ')
            command = Command(self, talk, verb, words[1:], fault)
            if verb in COMMANDS:
                if not trusted:
                    self._login(*credentials)
                self.pool.track('xen-api-libs/' + self.pool.xapi_version)
            if fault and fault.do == 'refuse' and not fault.is_amid():
                raise XapiError(*fault.error)
            with self.pool.amid(None if in_transfer(verb, fault) else fault):
                command.run()
            status = 0
        except Ended as end:
            status = end.args[0]
        except UsageFailure as failure:
            talk.complain(str(failure) + "\nFor usage run: 'xe help'")
            status = 1
        except CliFailure as failure:
            talk.complain('Error: %s' % failure)
            status = 1
        except XapiError as error:
            talk.complain(self._in_words(error))
            status = 1
        except Down:
            self._close()
            raise
        if fault and fault.do in ('down', 'down-after'):
            self.die()
            return
        talk.exit(status)

    def _struck(self, talk, verb, fault):
        """Act out a fault that comes before the work; whether the command ends with it."""
        if not fault:
            return False
        if not fault.is_amid():
            self.pool.sleep(fault.seconds)
        if fault.do == 'print':
            if fault.stdout:
                talk.send(b'P', bytes_of(fault.stdout))
            if fault.stderr:
                talk.send(b'E', bytes_of(fault.stderr))
            talk.exit(fault.exit)
        elif fault.do == 'down' and not fault.is_amid():
            self.die()
        elif fault.do in ('hang', 'stall') and not in_transfer(verb, fault):
            self.pool.sleep(None, lambda: has_closed(talk.connection))
        else:
            talk.limit = (fault.after or 0) if fault.do == 'die' else None
            talk.mute = fault.do in ('down', 'down-after')
            return False
        return True

    def _login(self, username, password):
        if self.master_address:
            raise XapiError('HOST_IS_SLAVE', self.master_address)
        if not username:
            raise UsageFailure('Username/password must be specified')
        if (username, password) != ('root', self.pool.password):
            self.pool.sleep(self.pool.bad_password_delay)
            raise UsageFailure('Authentication failed')

    def _in_words(self, error):
        command = Command(self, None, '', [], None)
        parameters = command.resolved(error)
        known = documented(error.details[0], parameters, self.pool.xapi_version)
        if known:
            return '\n'.join([known[0]] + known[1])
        return 'Error code: %s\nError parameters: %s' % (error.details[0], ', '.join(parameters))
