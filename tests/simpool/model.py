"""The one state of a simulated pool, and the XenAPI messages that read and change it.

`Pool.call('VM.snapshot', vm, 'name')` does what xapi does and returns what it returns; it raises
XapiError with xapi's own code and parameters. The getters, setters and queries of every class
come from the fields of its records; everything else stands below as a `@message`.

Records are replaced, never changed inside: a list or a map in a record is a value. So copies are
cheap, new records share the values of their template, and who read a record may keep it.
Sources: xapi: ocaml/xapi/xapi_vm_lifecycle.ml, xapi_vm_clone.ml, xapi_vm_helpers.ml, xapi_vdi.ml,
xapi_vbd_helpers.ml, taskHelper.ml, ocaml/idl/ocaml_backend/gen_server.ml.
"""

import inspect
import random
import re
import threading
import time
import uuid
from contextlib import contextmanager
from typing import Any, Callable, NamedTuple
from xmlrpc.client import DateTime

from . import faults
from .archive import Image
from .database import EPOCH, NULL, TEMPLATES, Query, QueryError, metadata
from .transfer import Transfers

# What may be set through this XenAPI, by class: what its clients set. Maps have add_to_ and
# remove_from_, sets add_ and remove_ besides.
WRITABLE = {cls: set(names.split()) for cls, names in {
    'VM': 'name_label name_description is_a_template other_config ha_always_run'
          ' ha_restart_priority tags blocked_operations',
    'VBD': 'userdevice other_config',
    'VDI': 'name_label name_description other_config on_boot',
    'network': 'name_label name_description other_config tags',
    'task': 'progress other_config',
}.items()}

# The two sides of each relation: setting the field on the left keeps the list on the right.
RELATIONS = {
    'VBD': {'VM': ('VM', 'VBDs'), 'VDI': ('VDI', 'VBDs')},
    'VIF': {'VM': ('VM', 'VIFs'), 'network': ('network', 'VIFs')},
    'VDI': {'SR': ('SR', 'VDIs'), 'snapshot_of': ('VDI', 'snapshots')},
    'VM': {'snapshot_of': ('VM', 'snapshots'), 'parent': ('VM', 'children'),
           'resident_on': ('host', 'resident_VMs')},
    'PBD': {'SR': ('SR', 'PBDs'), 'host': ('host', 'PBDs')},
    'PIF': {'network': ('network', 'PIFs'), 'host': ('host', 'PIFs')},
    'console': {'VM': ('VM', 'consoles')},
    'host_cpu': {'host': ('host', 'host_CPUs')},
    'task': {'subtask_of': ('task', 'subtasks')},
}

POWER_STATES = {operation: states.split() for operation, states in {
    'snapshot': 'Halted Paused Suspended Running',
    'metadata_export': 'Halted Paused Suspended Running',
    'clone': 'Halted', 'export': 'Halted Suspended', 'destroy': 'Halted Suspended',
    'start': 'Halted', 'make_into_template': 'Halted', 'suspend': 'Running', 'pause': 'Running',
    'clean_shutdown': 'Running', 'hard_shutdown': 'Paused Suspended Running',
}.items()}

CONCURRENT = ({'clone', 'copy', 'export'}, {'snapshot', 'checkpoint'})
OF_TEMPLATES = {'clone', 'export', 'metadata_export'}
OF_SNAPSHOTS = {'clone', 'export', 'destroy', 'hard_shutdown', 'metadata_export'}
OF_CONTROL_DOMAINS = {'metadata_export'}

# Recorded lists of allowed operations, by what the VM is.
ALLOWED = {kind: names.split() for kind, names in {
    'Halted': 'create_vtpm destroy metadata_export export make_into_template changing_NVRAM'
              ' changing_shadow_memory changing_static_range changing_dynamic_range migrate_send'
              ' start_on start copy clone snapshot',
    'Running': 'metadata_export changing_VCPUs_live changing_dynamic_range migrate_send'
               ' pool_migrate suspend hard_reboot hard_shutdown clean_reboot clean_shutdown pause'
               ' checkpoint snapshot',
    'Paused': 'metadata_export unpause hard_reboot hard_shutdown checkpoint snapshot',
    'Suspended': 'destroy metadata_export export resume_on resume hard_shutdown checkpoint'
                 ' snapshot',
    'snapshot': 'destroy metadata_export export revert copy clone',
    'template': 'destroy metadata_export export provision changing_shadow_memory'
                ' changing_static_range changing_dynamic_range copy clone',
    'control domain': 'metadata_export changing_static_range changing_dynamic_range',
}.items()}

INTEGER = re.compile(r'-?\d+$')             # int64 is text in a record
NUMBER = re.compile('[-+]?[0-9]{1,18}')
DEVICE = re.compile('(xvd|sd|hd|fd)([a-z]+)([0-9]{0,18})')
VALID_DEVICE = re.compile('((xvd|sd|hd)[a-p]|fd[ab])([-+]?[0-9]{1,18})?|[-+]?[0-9]{1,18}')
MAX_DEVICE = (1 << 20) - 1                  # blkif has room for no greater number
THICK = ('lvm', 'lvmoiscsi', 'lvmohba')     # kinds of SR that give a disk its whole size at once


class XapiError(Exception):
    """An error of XenAPI: `details` is its code and its parameters, all text."""

    def __init__(self, *details):
        self.details = [str(detail) for detail in details]
        super().__init__(*self.details)


class Down(ConnectionError):
    """The daemon is not there (any more): a door closes the connection without an answer."""


class Message(NamedTuple):
    """A message of the API: its function, and how many arguments it takes (no session)."""
    function: Callable[..., Any]
    least: int
    most: int


MESSAGES = {}


def message(name):
    def register(function):
        parameters = list(inspect.signature(function).parameters.values())[1:]
        least = sum(1 for parameter in parameters if parameter.default is parameter.empty)
        MESSAGES[name] = Message(function, least, len(parameters))
        return function
    return register


def stamp(seconds=None):
    return DateTime(time.strftime('%Y%m%dT%H:%M:%SZ', time.gmtime(seconds)))


def new_mac():
    octets = [random.getrandbits(8) for _ in range(6)]
    octets[0] = octets[0] & 0xfc | 0x02
    return ':'.join('%02x' % octet for octet in octets)


def valid_device(name):
    """Whether a VBD may be made with this userdevice.

    It may with any integer: xapi means those below 16, but asks for `n >= 0 || n < 16`.
    """
    return bool(VALID_DEVICE.fullmatch(name))


def devices(name):
    """[(bus, disk, partition)]: what a device's name or number can stand for, if anything.

    A number can mean two buses, by what the VM is, but one name for Linux.
    """
    if NUMBER.fullmatch(name):
        number = int(name)
        buses = ['xvd', 'hd'] if number < 4 else ['xvd']
        return [(bus, number, 0) for bus in buses] if 0 <= number <= MAX_DEVICE else []
    match = DEVICE.fullmatch(name)
    if not match:
        return []
    bus, letters, partition = match.groups()
    disk = 0
    for letter in letters:
        disk = disk * 26 + ord(letter) - ord('a') + 1
    return [(bus, disk - 1, int(partition or 0))]


def linux_name(bus, disk, partition):
    """xvda, ..., xvdz, xvdaa, ... of a device; disks on IDE are named as those of Xen."""
    letters, rest = '', disk + 1
    while rest:
        rest, letter = divmod(rest - 1, 26)
        letters = chr(ord('a') + letter) + letters
    return ('xvd' if bus == 'hd' else bus) + letters + (str(partition) if partition else '')


class Pool(Transfers):
    """A pool: its tables, the bytes of its disks, and what may be done to them.

    tables     {class: {ref: record}}
    content    {VDI ref: archive.Image}
    lock       the condition that guards all of it, notified at every change
    lock_wait  seconds that a message waits for a conflicting one (xapi: two hours)
    faults     what goes wrong on demand; journal: every call of both doors, in order
    """

    def __init__(self, xapi_version='26.1', password='password'):
        self.tables = {cls: {} for cls in TEMPLATES}
        self.content = {}
        self.lock = threading.Condition(threading.RLock())
        self.xapi_version = xapi_version
        self.password = password
        self.faults = faults.Faults()
        self.journal = []
        self.lock_wait = 30.0
        self.bad_password_delay = 0.0
        self.progress_interval = 10.0
        self.keep_alive_chunks = ()
        self.when_down = []
        self.generation = 1
        self._down = False
        self._life = 1
        self._refs = {}
        self._numbers = 0
        self._methods = {}
        self._amid = threading.local()

    @staticmethod
    def error(*details):
        """An XapiError to raise, for those who cannot import it."""
        return XapiError(*details)

    # Up and down

    @property
    def version(self):
        return tuple(int(part) for part in self.xapi_version.split('.')[:2])

    @property
    def is_down(self):
        return self._down

    @property
    def life(self):
        """The number of the daemon's life: who waits in one does not wake up in the next."""
        return self._life

    def check_up(self, life=None):
        """Raise Down if the daemon is dead, or died since that life."""
        if self._down or life not in (None, self._life):
            raise Down('the toolstack is down')

    def go_down(self):
        """The daemon dies: whoever waits in it gets Down, and the doors shut (`when_down`)."""
        with self.lock:
            self._life += not self._down
            self._down = True
            self.lock.notify_all()
            for shut in list(self.when_down):       # within: who sees it down may start it again
                shut()

    def come_up(self):
        """The daemon starts again over the same state.

        No session and no operation survives, no pending task and no VBD with which a transfer had
        attached its disk. What was made half-way stays: disks that were snapshotted for a VM whose
        own record was not made, or whose record is destroyed already.
        """
        with self.lock:
            self._down = False
            self.tables['session'].clear()
            for vm in self.tables['VM']:
                self.put('VM', vm, current_operations={})
                self.settle(vm)
            for vdi in self.tables['VDI']:
                self.put('VDI', vdi, current_operations={})
            for ref, task in list(self.tables['task'].items()):
                if task['status'] == 'pending':
                    self.finish_task(ref, 'cancelled')
            for ref, vbd in list(self.tables['VBD'].items()):
                if 'task_id' in vbd['other_config']:
                    self.mark_detached(ref)
                    self.delete('VBD', ref)

    def arrive(self, door, name, args=()):
        """Note a call in the journal, let its latency pass, and return its fault or None."""
        self.journal.append(faults.Call(door, name, args))
        if self.faults.latency:
            self.sleep(self.faults.latency)
        return self.faults.take(name)

    def sleep(self, seconds, gone=lambda: False):
        """Wait so long (None: for ever); Down ends it, and so does `gone()`, asked often."""
        end = None if seconds is None else time.monotonic() + seconds
        life = self._life
        with self.lock:
            while end is None or time.monotonic() < end:
                self.check_up(life)
                if gone():
                    return
                left = 0.1 if end is None else min(0.1, end - time.monotonic())
                self.lock.wait(max(0, left))

    @contextmanager
    def amid(self, fault):
        """What this thread does in here is the work in the midst of which a fault strikes."""
        self._amid.fault = fault if fault and fault.is_amid() else None
        self._amid.steps = 0
        try:
            yield
        finally:
            self._amid.fault = None

    def step(self, done=1):
        """The work has come further; the fault that has waited for that strikes."""
        fault = getattr(self._amid, 'fault', None)
        if not fault:
            return
        self._amid.steps += done
        if self._amid.steps < fault.after:
            return
        self._amid.fault = None
        if fault.do == 'refuse':
            raise XapiError(*fault.error)
        if fault.do == 'down':
            self.go_down()
            self.check_up()
        self.sleep(fault.seconds)

    # Records

    def new(self, table, **fields):
        """Make a record from the table's template and these fields; its ref."""
        record = dict(TEMPLATES[table])
        unknown = set(fields) - set(record)
        if unknown:
            raise KeyError('%s has no field %s' % (table, ', '.join(sorted(unknown))))
        record.update(fields)
        record['uuid'] = record['uuid'] or str(uuid.uuid4())
        ref = 'OpaqueRef:' + str(uuid.uuid4())
        with self.lock:
            self.tables[table][ref] = record
            self._refs[table, record['uuid']] = ref
            for field, (other, back) in RELATIONS.get(table, {}).items():
                self._link(other, record[field], back, ref)
            self._changed()
        return ref

    def put(self, table, ref, **fields):
        with self.lock:
            record = self.record(table, ref)
            relations = RELATIONS.get(table, {})
            for field, value in fields.items():
                if field in relations and value != record[field]:
                    other, back = relations[field]
                    self._unlink(other, record[field], back, ref)
                    self._link(other, value, back, ref)
                record[field] = value
            self._refs[table, record['uuid']] = ref
            self._changed()

    def delete(self, table, ref):
        """Drop a record. Others may keep a ref to it, as in the real database."""
        with self.lock:
            record = self.tables[table].pop(ref)
            self._refs.pop((table, record['uuid']), None)
            for field, (other, back) in RELATIONS.get(table, {}).items():
                self._unlink(other, record[field], back, ref)
            self._changed()

    def _link(self, cls, ref, field, member):
        record = self.tables[cls].get(ref)
        if record is not None:
            record[field] = [member] + record[field]

    def _unlink(self, cls, ref, field, member):
        record = self.tables[cls].get(ref)
        if record is not None:
            record[field] = [each for each in record[field] if each != member]

    def _changed(self):
        self.generation += 1
        self.lock.notify_all()

    def record(self, cls, ref):
        record = self.tables[cls].get(ref) if isinstance(ref, str) else None
        if record is None:
            raise XapiError('HANDLE_INVALID', cls, ref)
        return record

    def ref_of(self, cls, wanted):
        with self.lock:
            ref = self._refs.get((cls, wanted))
            if ref in self.tables[cls] and self.tables[cls][ref]['uuid'] == wanted:
                return ref
            for ref, record in self.tables[cls].items():
                if record['uuid'] == wanted:
                    return ref
        raise XapiError('UUID_INVALID', cls, wanted)

    @property
    def pool_ref(self):
        return next(iter(self.tables['pool']))

    @property
    def master(self):
        return self.tables['pool'][self.pool_ref]['master']

    # Messages

    def call(self, method, *args):
        """Do a message (without its session argument) and return its value.

        Raises XapiError, and Down when the daemon dies meanwhile.
        """
        self.check_message(method, len(args))
        with self.lock:
            self.check_up()
            return self._methods[method].function(self, *args)

    def check_message(self, method, count):
        found = self._methods.get(method)
        if found is None:
            found = MESSAGES.get(method) or self._generic(method)
            if found is None:
                raise XapiError('MESSAGE_METHOD_UNKNOWN', method)
            self._methods[method] = found
        if not found.least <= count <= found.most:
            raise XapiError('MESSAGE_PARAMETER_COUNT_MISMATCH', method, found.least, count)

    def _generic(self, method):
        """The Message behind a getter, a setter or a query of any class, or None."""
        cls, _, verb = method.partition('.')
        template = TEMPLATES.get(cls)
        if template is None:
            return None
        whole = self._generic_of_class(cls, verb) if cls != 'session' else None
        return whole or self._generic_of_record(cls, verb, template)

    @staticmethod
    def _generic_of_class(cls, verb):
        if verb == 'get_all':
            return Message(lambda pool: list(pool.tables[cls]), 0, 0)
        if verb == 'get_all_records':
            return Message(lambda pool: {ref: dict(record) for ref, record
                                         in pool.tables[cls].items()}, 0, 0)
        if verb == 'get_all_records_where':
            return Message(lambda pool, query: pool.where(cls, query), 1, 1)
        if verb == 'get_by_name_label' and 'name_label' in TEMPLATES[cls] and cls != 'pool':
            return Message(lambda pool, label: [ref for ref, record in pool.tables[cls].items()
                                                if record['name_label'] == label], 1, 1)
        return None

    @staticmethod
    def _generic_of_record(cls, verb, template):
        if verb == 'get_record':
            return Message(lambda pool, ref: dict(pool.record(cls, ref)), 1, 1)
        if verb == 'get_by_uuid':
            return Message(lambda pool, wanted: pool.ref_of(cls, wanted), 1, 1)
        if verb.startswith('get_') and verb[4:] in template:
            return Message(lambda pool, ref: pool.record(cls, ref)[verb[4:]], 1, 1)
        for prefix, kind, change, count in (
                ('set_', object, Pool._set, 2), ('add_to_', dict, Pool._add_pair, 3),
                ('remove_from_', dict, Pool._remove_pair, 2),
                ('add_', list, Pool._add_member, 2), ('remove_', list, Pool._remove_member, 2)):
            field = verb[len(prefix):]
            if (verb.startswith(prefix) and field in WRITABLE.get(cls, ())
                    and isinstance(template[field], kind)):
                return Message(lambda pool, ref, *args: change(pool, cls, ref, field, *args),
                               count, count)
        return None

    def where(self, cls, query):
        """{ref: record} of the records for which a query holds.

        XapiError INVALID_VALUE for bad grammar, INTERNAL_ERROR for a column that is not there.
        """
        try:
            matches = Query(cls, query).matches
            return {ref: dict(record) for ref, record in self.tables[cls].items()
                    if matches(ref, record)}
        except QueryError as error:
            raise XapiError('INVALID_VALUE', query, error)
        except KeyError as error:
            raise XapiError('INTERNAL_ERROR', 'missing field', error.args[0], '')

    def _set(self, cls, ref, field, value):
        self.record(cls, ref)
        self.put(cls, ref, **{field: self._typed(cls, field, value)})
        return ''

    @staticmethod
    def _typed(cls, field, value):
        """The value as the field keeps it; XapiError if it is of another type."""
        template = TEMPLATES[cls][field]
        if type(value) is int:
            if isinstance(template, float):
                value = float(value)
            elif INTEGER.match(str(template)):
                value = str(value)
        if not isinstance(value, type(template)):
            raise XapiError('FIELD_TYPE_ERROR', field)
        return value

    def _add_pair(self, cls, ref, field, key, value):
        pairs = self.record(cls, ref)[field]
        if key in pairs:
            raise XapiError('MAP_DUPLICATE_KEY', cls, field, ref, key)
        self.put(cls, ref, **{field: dict(pairs, **{key: value})})
        return ''

    def _remove_pair(self, cls, ref, field, key):
        pairs = self.record(cls, ref)[field]
        self.put(cls, ref, **{field: {name: pairs[name] for name in pairs if name != key}})
        return ''

    def _add_member(self, cls, ref, field, member):
        members = self.record(cls, ref)[field]
        if member not in members:
            self.put(cls, ref, **{field: members + [member]})
        return ''

    def _remove_member(self, cls, ref, field, member):
        members = self.record(cls, ref)[field]
        self.put(cls, ref, **{field: [each for each in members if each != member]})
        return ''

    # Sessions

    def login(self, uname, password, originator='', trusted=False):
        """Open a session and return its ref; SESSION_AUTHENTICATION_FAILED after the delay.

        Over the unix socket (`trusted`) name and password are not looked at.
        """
        if not trusted and (uname != 'root' or password != self.password):
            self.sleep(self.bad_password_delay)
            raise XapiError('SESSION_AUTHENTICATION_FAILED', uname, 'Authentication failure')
        with self.lock:
            self.check_up()
            user = next(iter(self.tables['user']), NULL)
            return self.new('session', this_host=self.master, this_user=user,
                            originator=originator, last_active=stamp(), validation_time=stamp(),
                            auth_user_name='' if trusted else uname)

    def logout(self, session):
        with self.lock:
            self.check_session(session)
            self.delete('session', session)

    def check_session(self, session):
        if not isinstance(session, str) or session not in self.tables['session']:
            raise XapiError('SESSION_INVALID', '' if session is None else session)

    # Tasks

    def make_task(self, label, description=''):
        """A new pending task as xe makes it, its progress still -1; its ref."""
        task = self.call('task.create', label, description)
        self.put('task', task, progress=-1.0)
        return task

    def finish_task(self, task, status, result='', error=()):
        """End a pending task, for good if somebody destroyed it while it ran.

        One that is gone or finished already is left alone.
        """
        with self.lock:
            record = self.tables['task'].get(task)
            if not record or record['status'] != 'pending':
                return
            if 'destroy' in record['current_operations'].values():
                self.delete('task', task)
            else:
                self.put('task', task, status=status, result=result, error_info=list(error),
                         progress=1.0, finished=stamp(), allowed_operations=[],
                         current_operations={})

    def is_cancelling(self, task):
        record = self.tables['task'].get(task)
        return bool(record) and 'cancel' in record['current_operations'].values()

    @message('task.create')
    def task_create(self, label, description):
        return self.new('task', name_label=label, name_description=description, created=stamp(),
                        resident_on=self.master)

    @message('task.destroy')
    def task_destroy(self, task):
        record = self.record('task', task)
        if record['status'] == 'pending' and record['allowed_operations']:
            self.put('task', task, current_operations={task: 'destroy'})
        else:
            self.delete('task', task)
        return ''

    @message('task.cancel')
    def task_cancel(self, task):
        record = self.record('task', task)
        if record['status'] == 'pending':
            self.put('task', task, current_operations={task: 'cancel'})
        return ''

    # Operations on a VM, and who waits for whom

    def assert_allowed(self, vm, operation):
        """Raise the XapiError with which xapi refuses an operation on this VM now."""
        record = self.record('VM', vm)
        if operation in record['blocked_operations']:
            raise XapiError('OPERATION_BLOCKED', vm, record['blocked_operations'][operation])
        if record['is_control_domain'] and operation not in OF_CONTROL_DOMAINS:
            raise XapiError('OPERATION_NOT_ALLOWED',
                            'This operation is not allowed on a control domain')
        if record['power_state'] not in POWER_STATES[operation]:
            raise XapiError('VM_BAD_POWER_STATE', vm, ', '.join(POWER_STATES[operation]).lower(),
                            record['power_state'].lower())
        self._assert_alone(vm, record, operation)
        if record['is_a_snapshot']:
            if operation not in OF_SNAPSHOTS:
                raise XapiError('VM_IS_SNAPSHOT', vm, operation)
        elif record['is_a_template'] and operation not in OF_TEMPLATES and (
                operation != 'destroy' or record['is_default_template']):
            raise XapiError('VM_IS_TEMPLATE', vm, operation)
        if operation in ('snapshot', 'suspend'):
            self._assert_persistent(record)

    def _assert_alone(self, vm, record, operation):
        current = record['current_operations']
        if not current or any(set(current.values()) | {operation} <= together
                              for together in CONCURRENT):
            return
        names = list(current.values())
        busy = names[0] if len(names) == 1 else '{%s}' % ','.join(names)
        if self.version >= (25, 27):
            raise XapiError('OTHER_OPERATION_IN_PROGRESS', 'VM', vm, busy, next(iter(current)))
        raise XapiError('OTHER_OPERATION_IN_PROGRESS', 'VM.' + busy, vm)

    def _assert_persistent(self, record):
        if any(self.tables['VDI'][vdi]['on_boot'] == 'reset' for vdi in self._disks(record)):
            raise XapiError('VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION')

    @contextmanager
    def operation(self, vm, operation, task=None, patience=None):
        """Hold an operation on a VM: waits for conflicting ones, refuses, and releases at the end.

        Waits for `patience` seconds (default: lock_wait), then OTHER_OPERATION_IN_PROGRESS.
        Without a task there is one while it lasts.
        """
        own = None if task else self.call('task.create', 'VM.' + operation, '')
        end = time.monotonic() + (self.lock_wait if patience is None else patience)
        try:
            with self.lock:
                self._claim(vm, operation, task or own, end)
            self.step(0)
            yield
        finally:
            with self.lock:
                self._release(vm, task or own)
                if own:
                    self.tables['task'].pop(own, None)

    def _claim(self, vm, operation, task, end):
        life = self._life
        while True:
            self.check_up(life)
            try:
                self.assert_allowed(vm, operation)
                break
            except XapiError as refusal:
                left = end - time.monotonic()
                if refusal.details[0] != 'OTHER_OPERATION_IN_PROGRESS' or left <= 0:
                    raise
                self.lock.wait(left)
        current = self.record('VM', vm)['current_operations']
        self.put('VM', vm, current_operations=dict(current, **{task: operation}))
        self.settle(vm)

    def _release(self, vm, task):
        record = self.tables['VM'].get(vm)
        if record and task in record['current_operations']:
            current = record['current_operations']
            self.put('VM', vm, current_operations={each: current[each] for each in current
                                                   if each != task})
            self.settle(vm)

    def settle(self, vm):
        """Bring a VM's allowed_operations into line with its state."""
        record = self.record('VM', vm)
        kind = ('control domain' if record['is_control_domain'] else
                'snapshot' if record['is_a_snapshot'] else
                'template' if record['is_a_template'] else record['power_state'])
        allowed = [name for name in ALLOWED[kind] if name not in record['blocked_operations']]
        if record['is_default_template']:
            allowed.remove('destroy')
        current = set(record['current_operations'].values())
        if current:
            allowed = [name for name in allowed
                       if any(current | {name} <= together for together in CONCURRENT)]
        self.put('VM', vm, allowed_operations=allowed)

    def _disks(self, record):
        """The VDIs of a VM's Disk VBDs, in the VBDs' order."""
        return [self.tables['VBD'][vbd]['VDI'] for vbd in record['VBDs']
                if self.tables['VBD'][vbd]['type'] == 'Disk'
                and self.tables['VBD'][vbd]['VDI'] in self.tables['VDI']]

    # VM

    @message('VM.snapshot')
    def vm_snapshot(self, vm, new_name, ignore_vdis=()):
        with self.operation(vm, 'snapshot'):
            snapshot = self._copy_vm(vm, new_name, self._snapshot_vdi, ignore_vdis)
            self._note('VM_SNAPSHOTTED', vm, 'VM snapshot: ' + new_name)
            return snapshot

    @message('VM.clone')
    def vm_clone(self, vm, new_name):
        with self.operation(vm, 'clone'):
            return self._copy_vm(vm, new_name, self._clone_vdi, snapshot=False)

    def _copy_vm(self, vm, new_name, copy_disk, ignore_vdis=(), snapshot=True):
        """A snapshot or a clone of a VM: its disks first, one by one, then the records."""
        new_name = self._typed('VM', 'name_label', new_name)
        for vdi in ignore_vdis:
            self.record('VDI', vdi)
        record = self.record('VM', vm)
        disks = {}
        try:
            for vdi in reversed(self._disks(record)):
                if vdi not in ignore_vdis and vdi not in disks:
                    disks[vdi] = copy_disk(vdi)
                    self.step()
        except XapiError:
            for vdi in disks.values():
                self.drop_vdi(vdi)
            raise
        copy = self._copy_vm_record(vm, new_name, snapshot)
        self.step()
        for vbd in record['VBDs']:
            vdi = self.tables['VBD'][vbd]['VDI']
            if vdi not in ignore_vdis:
                self._copy_vbd(vbd, copy, disks.get(vdi, vdi))
        for vif in record['VIFs']:
            self._copy_vif(vif, copy, snapshot)
        self.settle(copy)
        return copy

    def _copy_vm_record(self, vm, new_name, snapshot):
        record = self.record('VM', vm)
        config = {key: value for key, value in record['other_config'].items()
                  if key not in ('default_template', 'xensource_internal')}
        fields = dict(
            record, uuid='', name_label=new_name, other_config=config, power_state='Halted',
            is_default_template=False, is_control_domain=False, ha_always_run=False,
            blocked_operations={}, current_operations={}, appliance=NULL, protection_policy=NULL,
            snapshot_schedule=NULL, start_delay='0', shutdown_delay='0', order='0', domid='-1',
            resident_on=NULL, scheduled_to_be_resident_on=NULL, suspend_VDI=NULL,
            guest_metrics=NULL, metrics=self.new('VM_metrics'), memory_target='0',
            bios_strings={}, last_boot_CPU_flags={}, VBDs=[], VIFs=[], VUSBs=[], consoles=[],
            snapshots=[], children=[], blobs={}, crash_dumps=[], attached_PCIs=[],
            generation_id='%d:%d' % (random.getrandbits(63), random.getrandbits(63)))
        if snapshot:
            fields.update(
                is_a_template=True, is_a_snapshot=True, snapshot_of=vm, snapshot_time=stamp(),
                snapshot_info={'disk-snapshot-type': 'crash_consistent',
                               'power-state-at-snapshot': record['power_state']},
                snapshot_metadata=metadata('VM', vm, record), transportable_snapshot_id='')
        else:
            fields.update(is_a_snapshot=False, snapshot_of=NULL, parent=NULL, snapshot_time=EPOCH,
                          snapshot_info={}, snapshot_metadata='')
            config['mac_seed'] = str(uuid.uuid4())
        copy = self.new('VM', **fields)
        if snapshot:
            self.put('VM', vm, parent=copy)
        return copy

    def _copy_vbd(self, vbd, vm, vdi):
        record = self.record('VBD', vbd)
        config = record['other_config']
        if record['type'] == 'Disk':
            config = dict(config, owner='')
        return self.new('VBD', VM=vm, VDI=vdi, other_config=config, **{
            field: record[field] for field in (
                'userdevice', 'bootable', 'mode', 'type', 'unpluggable', 'empty',
                'qos_algorithm_type', 'qos_algorithm_params')})

    def _copy_vif(self, vif, vm, same_mac):
        record = self.record('VIF', vif)
        fields = {field: record[field] for field in (
            'device', 'network', 'MAC', 'MTU', 'MAC_autogenerated', 'other_config',
            'qos_algorithm_type', 'qos_algorithm_params', 'locking_mode', 'ipv4_allowed',
            'ipv6_allowed')}
        if not same_mac:
            fields.update(MAC=new_mac(), MAC_autogenerated=True)
        return self.new('VIF', VM=vm, **fields)

    def add_vm(self, **fields):
        """A new VM with its metrics, and with a MAC seed if it has none; its ref."""
        config = fields.get('other_config', {})
        if 'mac_seed' not in config:
            fields['other_config'] = dict(config, mac_seed=str(uuid.uuid4()))
        vm = self.new('VM', **dict(fields, metrics=self.new('VM_metrics')))
        self.settle(vm)
        return vm

    @message('VM.destroy')
    def vm_destroy(self, vm):
        with self.operation(vm, 'destroy'):
            record = self.record('VM', vm)
            for cls in ('VBD', 'VIF'):
                for ref in record[cls + 's']:
                    self.delete(cls, ref)
            for console in record['consoles']:
                self.delete('console', console)
            for child in record['children']:
                self.put('VM', child, parent=record['parent'])
            for cls, ref in (('VM_metrics', record['metrics']),
                             ('VM_guest_metrics', record['guest_metrics'])):
                if ref in self.tables[cls]:
                    self.delete(cls, ref)
            self.delete('VM', vm)
            self.step()
            return ''

    @message('VM.get_allowed_VBD_devices')
    def vm_get_allowed_vbd_devices(self, vm):
        self.record('VM', vm)
        taken = self.taken_devices(vm)
        return [str(number) for number in range(255) if taken.isdisjoint(devices(str(number)))]

    @message('VM.set_is_a_template')
    def vm_set_is_a_template(self, vm, value):
        value = self._typed('VM', 'is_a_template', value)
        metrics = self.record('VM', vm)['metrics']
        if value:
            with self.operation(vm, 'make_into_template'):
                self.put('VM', vm, is_a_template=True)
        else:
            self.put('VM', vm, is_a_template=False)
            if metrics in self.tables['VM_metrics']:
                self.put('VM_metrics', metrics, install_time=stamp())
        self.settle(vm)
        return ''

    @message('VM.set_ha_restart_priority')
    def vm_set_ha_restart_priority(self, vm, value):
        if value not in ('', 'best-effort', 'restart'):
            raise XapiError('INVALID_VALUE', 'ha_restart_priority', value)
        self.put('VM', vm, ha_restart_priority=value, ha_always_run=value == 'restart')
        return ''

    @message('VM.set_ha_always_run')
    def vm_set_ha_always_run(self, vm, value):
        value = self._typed('VM', 'ha_always_run', value)
        return self.vm_set_ha_restart_priority(vm, 'restart' if value else '')

    @message('VM.set_blocked_operations')
    def vm_set_blocked_operations(self, vm, value):
        self._set('VM', vm, 'blocked_operations', value)
        self.settle(vm)
        return ''

    @message('VM.start')
    def vm_start(self, vm, start_paused=False, force=False):
        with self.operation(vm, 'start'):
            self.power_on(vm, 'Paused' if start_paused else 'Running')
            return ''

    def power_on(self, vm, power_state='Running', host=None):
        """Attach a VM's disks and make it run on a host (default: its affinity, else the master).

        XapiError VDI_IN_USE if a disk is attached elsewhere.
        """
        record = self.record('VM', vm)
        if host is None:
            host = record['affinity'] if record['affinity'] in self.tables['host'] else self.master
        for vbd in record['VBDs']:
            self.assert_device(vbd)
            if self.record('VBD', vbd)['VDI'] != NULL:
                disk = self.tables['VBD'][vbd]
                self.assert_attachable(disk['VDI'], disk['mode'])
        for vbd in record['VBDs']:
            self.mark_attached(vbd)
        for vif in record['VIFs']:
            self.put('VIF', vif, currently_attached=True)
        domid = str(1 + max(int(each['domid']) for each in self.tables['VM'].values()))
        self.put('VM', vm, power_state=power_state, resident_on=host, domid=domid)
        if record['metrics'] in self.tables['VM_metrics']:
            self.put('VM_metrics', record['metrics'], start_time=stamp(), hvm=True,
                     VCPUs_number=record['VCPUs_at_startup'], current_domain_type='hvm')
        self.settle(vm)

    def _power_off(self, vm, power_state='Halted'):
        record = self.record('VM', vm)
        for vbd in record['VBDs']:
            self.mark_detached(vbd)
        for vif in record['VIFs']:
            self.put('VIF', vif, currently_attached=False)
        self.put('VM', vm, power_state=power_state, resident_on=NULL, domid='-1')
        self.settle(vm)

    @message('VM.clean_shutdown')
    def vm_clean_shutdown(self, vm):
        with self.operation(vm, 'clean_shutdown'):
            self._power_off(vm)
            return ''

    @message('VM.hard_shutdown')
    def vm_hard_shutdown(self, vm):
        with self.operation(vm, 'hard_shutdown'):
            memory = self.record('VM', vm)['suspend_VDI']
            self._power_off(vm)
            if memory in self.tables['VDI']:
                self.drop_vdi(memory)
            self.put('VM', vm, suspend_VDI=NULL)
            return ''

    @message('VM.suspend')
    def vm_suspend(self, vm):
        with self.operation(vm, 'suspend'):
            sr = self.tables['pool'][self.pool_ref]['default_SR']
            memory = self.make_vdi(sr, int(self.record('VM', vm)['memory_static_max']),
                                   type='suspend', name_label='Suspend image')
            self._power_off(vm, 'Suspended')
            self.put('VM', vm, suspend_VDI=memory)
            return ''

    @message('VM.pause')
    def vm_pause(self, vm):
        with self.operation(vm, 'pause'):
            self.put('VM', vm, power_state='Paused')
        self.settle(vm)
        return ''

    # VDI

    def make_vdi(self, sr, size, content=None, used=None, **fields):
        """A new disk of `size` bytes in an SR; SR_BACKEND_FAILURE_44 if it does not fit.

        `used` is what it takes there, for SRs that are not thick (default: nothing yet).
        """
        used = size if self.record('SR', sr)['type'] in THICK else used or 0
        self._take_space(sr, used, size)
        vdi = self.new('VDI', SR=sr, virtual_size=str(size), physical_utilisation=str(used),
                       **fields)
        self.put('VDI', vdi, location=self.tables['VDI'][vdi]['uuid'])
        self.content[vdi] = Image(size) if content is None else content
        return vdi

    def _take_space(self, sr, used, size):
        record = self.record('SR', sr)
        total = int(record['physical_utilisation']) + used
        if used > 0 and 0 < int(record['physical_size']) < total:
            raise XapiError('SR_BACKEND_FAILURE_44', '', 'There is insufficient space', '')
        self.put('SR', sr, physical_utilisation=str(total),
                 virtual_allocation=str(int(record['virtual_allocation']) + size))

    def drop_vdi(self, vdi):
        record = self.record('VDI', vdi)
        for vbd in record['VBDs']:
            self.delete('VBD', vbd)
        if record['SR'] in self.tables['SR']:
            self._take_space(record['SR'], -int(record['physical_utilisation']),
                             -int(record['virtual_size']))
        self.content.pop(vdi, None)
        self.delete('VDI', vdi)

    def _clone_vdi(self, vdi, sr=None, **fields):
        record = self.record('VDI', vdi)
        kept = {field: record[field] for field in (
            'name_label', 'name_description', 'type', 'sharable', 'other_config', 'xenstore_data',
            'on_boot', 'tags')}
        return self.make_vdi(sr or record['SR'], int(record['virtual_size']),
                             self.content[vdi].clone(), **dict(kept, **fields))

    def _snapshot_vdi(self, vdi):
        record = self.record('VDI', vdi)
        if record['sharable']:
            raise XapiError('VDI_IS_SHARABLE', vdi)
        if self.record('SR', record['SR'])['content_type'] == 'iso':
            raise XapiError('SR_OPERATION_NOT_SUPPORTED', record['SR'])
        return self._clone_vdi(vdi, is_a_snapshot=True, snapshot_of=vdi, snapshot_time=stamp())

    @message('VDI.snapshot')
    def vdi_snapshot(self, vdi, driver_params=()):
        self.record('VDI', vdi)
        with self._vdi_operation(vdi, 'snapshot'):
            snapshot = self._snapshot_vdi(vdi)
            self.step()
            return snapshot

    @contextmanager
    def _vdi_operation(self, vdi, operation):
        """Say what is being done with a disk, as xapi does: nobody waits for it here."""
        task = self.call('task.create', 'VDI.' + operation, '')
        try:
            current = self.record('VDI', vdi)['current_operations']
            self.put('VDI', vdi, current_operations=dict(current, **{task: operation}))
            self.step(0)
            yield
        finally:
            current = self.tables['VDI'].get(vdi, {}).get('current_operations', {})
            if task in current:
                self.put('VDI', vdi, current_operations={
                    each: current[each] for each in current if each != task})
            self.tables['task'].pop(task, None)

    @message('VDI.create')
    def vdi_create(self, record):
        fields = {field: self._typed('VDI', field, value) for field, value in record.items()
                  if field in TEMPLATES['VDI']}
        size = fields.pop('virtual_size', '')
        if not size.isdigit() or int(size) <= 0:
            raise XapiError('INVALID_VALUE', 'virtual_size', size)
        sr = fields.pop('SR', NULL)
        if self.record('SR', sr)['content_type'] == 'iso':
            raise XapiError('SR_OPERATION_NOT_SUPPORTED', sr)
        return self.make_vdi(sr, int(size), **{
            field: fields[field] for field in fields if field in (
                'name_label', 'name_description', 'type', 'sharable', 'read_only', 'other_config',
                'sm_config', 'xenstore_data', 'tags')})

    @message('VDI.destroy')
    def vdi_destroy(self, vdi):
        record = self.record('VDI', vdi)
        if self._is_attached(vdi):
            raise XapiError('VDI_IN_USE', vdi, 'destroy')
        if self.tables['SR'].get(record['SR'], {}).get('content_type') == 'iso':
            raise XapiError('SR_OPERATION_NOT_SUPPORTED', record['SR'])
        for vm, each in self.tables['VM'].items():
            if each['suspend_VDI'] == vdi:
                self.put('VM', vm, suspend_VDI=NULL)
        with self._vdi_operation(vdi, 'destroy'):
            self.drop_vdi(vdi)
            self.step()
        return ''

    # VBD and VIF

    @message('VBD.create')
    def vbd_create(self, record):
        fields = {field: self._typed('VBD', field, value) for field, value in record.items()
                  if field in TEMPLATES['VBD']}
        vm = self.record('VM', fields.get('VM', NULL))
        name = fields.get('userdevice', 'autodetect')
        if fields.get('type') not in (None, 'Disk', 'CD'):
            raise XapiError('NOT_IMPLEMENTED', 'VBD.create of a ' + fields['type'])
        if name == 'autodetect':
            every = map(str, range(256 if vm['is_control_domain'] else 255))
            name = self.free_device(fields['VM'], every)
        elif not valid_device(name):
            raise XapiError('INVALID_DEVICE', name)
        elif not self.taken_devices(fields['VM']).isdisjoint(devices(name)):
            raise XapiError('DEVICE_ALREADY_EXISTS', name)
        fields['userdevice'] = name
        if fields.get('empty'):
            fields['VDI'] = NULL
        else:
            self.record('VDI', fields.get('VDI', NULL))
        return self.new('VBD', **{field: fields[field] for field in fields if field in (
            'VM', 'VDI', 'userdevice', 'bootable', 'mode', 'type', 'unpluggable', 'empty',
            'other_config', 'qos_algorithm_type', 'qos_algorithm_params')})

    def taken_devices(self, vm):
        """The devices for which a VM has VBDs, under any name: as `devices` gives them."""
        vbds = [self.tables['VBD'][vbd] for vbd in self.record('VM', vm)['VBDs']]
        return {device for vbd in vbds for name in {vbd['userdevice'], vbd['device']}
                for device in devices(name)}

    def free_device(self, vm, names):
        """The first of these that a VM has no VBD for; XapiError INVALID_DEVICE if none is."""
        taken = self.taken_devices(vm)
        for name in names:
            if taken.isdisjoint(devices(name)):
                return name
        raise XapiError('INVALID_DEVICE', 'autodetect')

    def assert_device(self, vbd):
        """Raise XapiError ILLEGAL_VBD_DEVICE if there can be no such device in a VM."""
        name = self.record('VBD', vbd)['userdevice']
        if not devices(name):
            raise XapiError('ILLEGAL_VBD_DEVICE', vbd, name)

    def assert_attachable(self, vdi, mode):
        record = self.record('VDI', vdi)
        modes = [self.tables['VBD'][vbd]['mode'] for vbd in record['VBDs']
                 if self.tables['VBD'][vbd]['currently_attached']]
        if modes and not record['sharable'] and 'RW' in modes + [mode]:
            raise XapiError('VDI_IN_USE', vdi)

    def mark_attached(self, vbd):
        """Say that a VBD is attached, under the name that its number gives it."""
        self.assert_device(vbd)
        record = self.record('VBD', vbd)
        name = linux_name(*devices(record['userdevice'])[0])
        self.put('VBD', vbd, currently_attached=True, device=name,
                 allowed_operations=['attach', 'unpause', 'unplug', 'unplug_force', 'pause'])
        if record['VDI'] in self.tables['VDI']:
            self.put('VDI', record['VDI'], allowed_operations=['snapshot', 'clone'])

    def mark_detached(self, vbd):
        """Say that a VBD is not attached any more; its device keeps the name."""
        self.put('VBD', vbd, currently_attached=False, allowed_operations=['attach'])
        vdi = self.record('VBD', vbd)['VDI']
        if vdi in self.tables['VDI'] and not self._is_attached(vdi):
            allowed = TEMPLATES['VDI']['allowed_operations']
            self.put('VDI', vdi, allowed_operations=allowed)

    def _is_attached(self, vdi):
        return any(self.tables['VBD'][vbd]['currently_attached']
                   for vbd in self.record('VDI', vdi)['VBDs'])

    @message('VBD.plug')
    def vbd_plug(self, vbd):
        record = self.record('VBD', vbd)
        vm = self.record('VM', record['VM'])
        if vm['power_state'] != 'Running':
            raise XapiError('VM_BAD_POWER_STATE', record['VM'], 'running',
                            vm['power_state'].lower())
        if record['currently_attached']:
            raise XapiError('DEVICE_ALREADY_ATTACHED', vbd)
        if record['VDI'] != NULL:
            self.assert_attachable(record['VDI'], record['mode'])
        self.mark_attached(vbd)
        return ''

    @message('VBD.unplug')
    def vbd_unplug(self, vbd):
        if not self.record('VBD', vbd)['currently_attached']:
            raise XapiError('DEVICE_ALREADY_DETACHED', vbd)
        self.mark_detached(vbd)
        return ''

    @message('VBD.destroy')
    def vbd_destroy(self, vbd):
        record = self.record('VBD', vbd)
        if record['currently_attached']:
            raise XapiError('OPERATION_NOT_ALLOWED', "VBD '%s' still attached to '%s'" % (
                record['uuid'], self.record('VM', record['VM'])['uuid']))
        self.delete('VBD', vbd)
        return ''

    @message('VIF.create')
    def vif_create(self, record):
        fields = {field: self._typed('VIF', field, value) for field, value in record.items()
                  if field in TEMPLATES['VIF']}
        self.record('VM', fields.get('VM', NULL))
        self.record('network', fields.get('network', NULL))
        if not fields.get('MAC'):
            fields.update(MAC=new_mac(), MAC_autogenerated=True)
        return self.new('VIF', **{field: fields[field] for field in fields if field in (
            'VM', 'network', 'device', 'MAC', 'MAC_autogenerated', 'MTU', 'other_config',
            'qos_algorithm_type', 'qos_algorithm_params', 'locking_mode', 'ipv4_allowed',
            'ipv6_allowed')})

    @message('VIF.destroy')
    def vif_destroy(self, vif):
        if self.record('VIF', vif)['currently_attached']:
            raise XapiError('OPERATION_NOT_ALLOWED', 'VIF is still attached')
        self.delete('VIF', vif)
        return ''

    # The rest

    @message('network.create')
    def network_create(self, record):
        fields = {field: self._typed('network', field, record[field])
                  for field in ('name_label', 'name_description', 'MTU', 'other_config', 'bridge',
                                'managed', 'tags') if field in record}
        fields.setdefault('bridge', 'xapi%d' % len(self.tables['network']))
        return self.new('network', **fields)

    @message('network.destroy')
    def network_destroy(self, network):
        record = self.record('network', network)
        if record['VIFs']:
            raise XapiError('NETWORK_CONTAINS_VIF', *record['VIFs'])
        self.delete('network', network)
        return ''

    @message('host.get_servertime')
    def host_get_servertime(self, host):
        self.record('host', host)
        return stamp()

    def _note(self, name, vm, body, priority='5'):
        self.new('message', name=name, priority=priority, cls='VM', body=body, timestamp=stamp(),
                 obj_uuid=self.record('VM', vm)['uuid'])
