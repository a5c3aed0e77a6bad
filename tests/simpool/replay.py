"""Recordings of a real toolstack, run again on the simulated pool (recorded/VERSION/*.jsonl).

A recording is a list of calls with their answers. Replay.run makes a pool like the one that was
recorded, makes the same calls in the same order and gives a Difference for each field and each
line of text that is not the same. References, uuids, MAC addresses and times need not be equal but
go together: the first time that a recorded one is met it is bound to the simulated one there.

While transfers run the recorded tables are samples. The simulated transfers go on, state by state,
until a state is like the sample: what the pool never passes through is a difference.
"""
import fnmatch
import functools
import io
import json
import os
import random
import re
import tarfile
import uuid
from typing import Any, NamedTuple
from unittest import mock
from xmlrpc.client import DateTime

from . import pools, xe
from .archive import CHUNK, Image, tar_header
from .database import NULL
from .model import Pool, XapiError
from .stage import Actor, Stage

RECORDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'recorded')
NAME = re.compile('((?:OpaqueRef:)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'
                  '|(?:[0-9a-f]{2}:){5}[0-9a-f]{2})')
TIME = re.compile(r'(?!19700101)\d{8}T\d\d:\d\d:\d\dZ|(?<=Total time: )[\d.:]+|\b[0-9A-F]{16}\b')
SAMPLED = {'task.get_all_records': 'task', 'VBD.get_all_records_where': 'VBD',
           'VDI.get_all_records': 'VDI', 'VM.get_all_records': 'VM'}
RECORDER = 'Python-xmlrpc/3.11'     # what made the recordings' calls
UNITS = {'': 1, 'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30}
SAME = ('uuid', 'name_label', 'VM', 'VDI', 'userdevice', 'type', 'is_a_snapshot', 'snapshot_of',
        'snapshot_time', 'is_control_domain', 'device')      # what a record is known by


# The tasks of transfers by HTTP: xapi's, and the caller's own.
HTTP = {'/export': ('VM.export', ('my export', 'made by the caller')),
        '/export_raw_vdi': ('Exporting raw VDI', ('my own task', '')),
        '/import_raw_vdi': ('Importing raw VDI', ('VmBackup restore', 'a task of my own'))}

# Scenarios of parts, and what was taken away between them.
PARTS = {'09-': ('VM', 'VDI'), '15-': ('VBD', 'VM', 'VDI'), '06-': ('VM', 'VDI')}

# Parts that are about these are skipped.
NOT_SIMULATED = ('vdi-copy', 'vm-copy')

# What storage answers under a fault.
STORAGE = {'attach-fail': ('attach', 'SR_BACKEND_FAILURE_46', '',
                           'The VDI is not available [injected]', ''),
           'delete-fail': ('delete', 'SR_BACKEND_FAILURE_80', '',
                           'Failed to mark VDI hidden [injected]', ''),
           'snapshot-enospc': ('snapshot', 'SR_BACKEND_FAILURE_44', '',
                               'There is insufficient space', '')}

# What all VMs of the recordings have.
OF_VMS = {'memory_target': '0', 'memory_dynamic_min': str(128 << 20), 'generation_id': '',
          'memory_static_min': str(64 << 20), 'hardware_platform_version': '0',
          'has_vendor_device': False}
PLATFORM = {'nx': 'true', 'acpi': '1', 'apic': 'true', 'pae': 'true', 'viridian': 'true'}


class Difference(NamedTuple):
    scenario: str       # version/name
    line: int
    call: str
    path: str           # Class.field..., or rc, stdout..., stderr
    recorded: Any
    simulated: Any

    def __str__(self):
        return '%s:%d %s: %s\n    recorded  %r\n    simulated %r' % self


class Expected:
    """What is known to differ: lines `version/scenario:line | call | path | reason`, each a pattern
    but the reason; without a number, wherever that is in the scenario. `entry` finds and notes
    the line of a difference."""

    def __init__(self, text, version):
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith('#')]
        self.entries = [tuple(part.strip() for part in line.split('|', 3)) for line in lines]
        self.entries = [entry if ':' in entry[0] else (entry[0] + ':*',) + entry[1:]
                        for entry in self.entries]
        self.entries = [entry for entry in self.entries
                        if fnmatch.fnmatchcase(version, entry[0].split('/')[0])]
        self.known = {}
        self.used = set()

    def entry(self, difference):
        key = '%s:%d' % difference[:2], difference.call, difference.path
        if key not in self.known:
            self.known[key] = next((entry for entry in self.entries if all(
                map(fnmatch.fnmatchcase, key, entry))), None)
        self.used.add(self.known[key])
        return self.known[key]

    def unused(self):
        return [' | '.join(entry) for entry in self.entries if entry not in self.used]


@functools.lru_cache(maxsize=4096)
def parts(text):
    """A text cut at the names in it, its times made equal."""
    return NAME.split(TIME.sub('TIME', text))


class Names:
    """Recorded names and the simulated ones that they are bound to."""

    def __init__(self):
        self.there, self.here = {}, {}      # recorded -> simulated, and back

    def bind(self, recorded, simulated):
        self.there[recorded], self.here[simulated] = simulated, recorded

    def agree(self, recorded, simulated):
        """Whether two texts are the same but for names that go together; binds those."""
        if recorded == simulated and not NAME.search(recorded):
            return True
        one, other = parts(recorded), parts(simulated)
        pairs = list(zip(one[1::2], other[1::2]))
        if one[::2] != other[::2] or not all(
                self.there.get(here, there) == there and self.here.get(there, here) == here
                for here, there in pairs):
            return False
        for pair in pairs:
            self.bind(*pair)
        return True

    def translated(self, text):
        return NAME.sub(lambda match: self.there.get(match.group(), match.group()), text)

    def saved(self):
        return dict(self.there), dict(self.here)

    def restore(self, saved):
        self.there, self.here = dict(saved[0]), dict(saved[1])


def plain(value):
    """A simulated value as it is in a recording."""
    if isinstance(value, DateTime):
        return {'dateTime.iso8601': value.value}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


class Comparison:
    """What differs between recorded and simulated values, as [(path, recorded, simulated)]."""

    def __init__(self, names):
        self.names = names
        self.found = []
        self.ref, self.refs = None, []      # which simulated record each of these is about

    def differ(self, path, recorded, simulated):
        self.found.append((path, recorded, simulated))
        self.refs.append(self.ref)

    def values(self, path, recorded, simulated):
        if isinstance(simulated, DateTime):
            simulated = plain(simulated)
        if isinstance(recorded, str) and isinstance(simulated, str):
            self.texts(path, recorded, simulated)
        elif isinstance(recorded, dict) and isinstance(simulated, dict):
            self.maps(path, recorded, simulated)
        elif isinstance(recorded, list) and isinstance(simulated, list):
            self.lists(path, recorded, simulated)
        elif path.endswith('.progress') and 0 < recorded < 1 and 0 < simulated < 1:
            return                      # how far it was just then
        elif recorded != simulated:
            self.differ(path, recorded, simulated)

    def texts(self, path, recorded, simulated):
        if not self.names.agree(recorded, simulated):
            self.differ(path, recorded, simulated)

    def maps(self, path, recorded, simulated):
        left, odd = dict(simulated), []
        for key in sorted(recorded):
            there = self.names.translated(key)
            if there in left:
                self.values('%s.%s' % (path, key), recorded[key], left.pop(there))
            else:
                odd.append(key)
        for key in odd:
            there = next((each for each in left if self.names.agree(key, each)), None)
            if there is None:
                self.differ('%s.%s' % (path, key), recorded[key], None)
            else:
                self.values('%s.%s' % (path, key), recorded[key], left.pop(there))
        for key in left:
            self.differ('%s.%s' % (path, self.names.here.get(key, key)), None, left[key])

    def lists(self, path, recorded, simulated):
        """References and operations are sets, whatever order xapi gives them."""
        if path.endswith('allowed_operations'):
            recorded, simulated = sorted(recorded), sorted(simulated)
        if len(recorded) == len(simulated) and all(
                isinstance(each, str) and NAME.fullmatch(each)
                for each in recorded + simulated):
            there = [self.names.there.get(each) for each in recorded]
            left = [each for each in simulated if each not in there]
            new = [each for each, bound in zip(recorded, there) if bound not in simulated]
            if path.startswith('stdout') and len(new) > 1:      # sorted: nobody knows which is that
                new = left = []
            if any(each in self.names.there for each in new) or not all(
                    map(self.names.agree, new, left)):
                self.differ(path, recorded, simulated)
        elif len(recorded) != len(simulated) or not all(
                isinstance(each, str) for each in recorded):
            if recorded != simulated:
                self.differ(path, recorded, simulated)
        else:
            before = len(self.found)
            for one, other in zip(recorded, simulated):
                self.values(path, one, other)
            if len(self.found) > before:
                del self.found[before:], self.refs[before:]
                self.differ(path, recorded, simulated)

    def lines(self, path, recorded, simulated):
        """Lines whose order does not matter."""
        for line in recorded:
            there = next((each for each in simulated if self.names.agree(line, each)), None)
            if there is None:
                self.differ(path, line, simulated)
            else:
                simulated.remove(there)
        if simulated:
            self.differ(path, None, simulated)

    def records(self, cls, recorded, simulated):
        """Tables, record by record: by what is bound, else by what is most alike."""
        left, pairs = dict(simulated), []
        for ref in sorted(recorded, key=lambda ref: ref not in self.names.there):
            record, bound = recorded[ref], self.names.there.get(ref)
            if bound is None:
                bound = self.likest(cls, record, left, ref)
            if bound not in left:
                self.differ('%s.%s' % (cls, record.get('name_label', '')), record, 'MISSING')
                continue
            del left[bound]
            self.names.bind(ref, bound)
            pairs.append((ref, bound))
            self.ref = bound
            self.fields(cls, record, simulated[bound], SAME)
            self.ref = None
        for ref, self.ref in pairs:
            self.fields(cls, recorded[ref], simulated[self.ref])
        for self.ref, record in left.items():
            self.differ('%s.%s' % (cls, record.get('name_label', '')), 'MISSING', plain(record))

    def likest(self, cls, record, simulated, name=''):
        """The reference of the record that is most like a recorded one, or None."""
        best = min(((self.cost(cls, record, other), ref != name, number, ref)
                    for number, (ref, other) in enumerate(simulated.items())
                    if ref not in self.names.here), default=None)
        return best[3] if best and not best[0][0] else None

    def fields(self, cls, recorded, simulated, names=None):
        for name in recorded:
            if names is None or name in names:
                if name in simulated:
                    self.values('%s.%s' % (cls, name), recorded[name], simulated[name])
                elif names is None:
                    self.differ('%s.%s' % (cls, name), recorded[name], 'MISSING')

    def cost(self, cls, recorded, simulated):
        """(what a record is known by, other fields): how many differ."""
        saved, trial = self.names.saved(), Comparison(self.names)
        trial.fields(cls, recorded, simulated, SAME)
        known = len(trial.found)
        if not known:
            trial.fields(cls, recorded, simulated)
        self.names.restore(saved)
        return known, len(trial.found) - known


def without(table, uuid_):
    """A table without the record of that uuid and what others say of it."""
    gone = next((ref for ref, record in table.items() if record['uuid'] == uuid_), None)
    return {ref: {name: NULL if value == gone else [each for each in value if each != gone]
                  if isinstance(value, list) else value for name, value in record.items()}
            for ref, record in table.items() if ref != gone}


def is_grave(path, recorded, simulated):
    """Whether a difference shows that it is another state altogether."""
    return 'MISSING' in (recorded, simulated) if not isinstance(recorded, dict) else True


@functools.lru_cache(maxsize=None)
def content(name, size, holes=False):
    """Data in each MiB: so transfers take as long as those of the slow disks that were recorded."""
    image, filled = Image(size), hollow(name, size) if holes else None
    for at in range(0, size, CHUNK):
        if filled is None or at // CHUNK in filled:
            image.write(at, (b'%s %d.' % (name.encode(), at)).ljust(512, b'\1'))
    return image


def spoiled(name, data):
    """An archive of 15-import-errors, or None."""
    length = int(data[124:135], 8)
    text, rest = data[512:512 + length], data[512 + -(-length // 512) * 512:]
    last = data.rindex(b'Ref:', 0, data.rindex(b'Ref:'))
    at = data.index(b'/00000003') // 512 * 512 + 1000
    edits = {'net': (b'test network', b'unknown net'),
             'nl': (b'<value>big</value>', b'<value>two\nlines</value>'),
             'field': (b'<name>recommendations<', b'<name>recommendationz<')}
    stem = name.partition('.')[0]
    if stem in edits:
        text = text.replace(*edits[stem])
        if stem == 'net':
            text = text.replace(b'xapi1', b'xenbr99')
        return tar_header('ova.xml', len(text)) + text + bytes(-len(text) % 512) + rest
    return {'cut-half': data[:len(data) // 2], 'cut-ova': data[:4000], 'empty': b'',
            'no-end': data[:-1024],
            'garbage': random.Random(name).getrandbits(1 << 19).to_bytes(1 << 16, 'big'),
            'corrupt': data[:at] + b'\xff' + data[at + 1:],
            'cut-last-chunk': data[:last], 'cut-last-chunk-ended': data[:last] + bytes(1024),
            }.get(stem)


def hollow(name, size):
    """The disks of 11-xva-*: {MiB that has data} of those with holes."""
    if size == 8 << 20:
        return {0, 5} if name.startswith('small') else {0, 2, 5}
    return {0, 60} if size == 64 << 20 else set() if name in ('d 0', 'odd 3') else None


class Likeness(Pool):
    """A pool that gives new records the references and uuids that records like them have in the
    recording: the database is in their order."""

    def __init__(self, *args, known):
        super().__init__(*args)
        self.known, self.made = known, 0
        self.maker, self.makers = lambda: None, {}      # {ref: the client for whom it was made}

    def new_ref(self, table, record):
        ref = self._new_ref(table, record)
        self.makers[ref] = self.maker()
        return ref

    def _new_ref(self, table, record):
        for number, (cls, ref, model) in enumerate(self.known):
            if cls == table and all(model[name] == record[name] for name in SAME[1:]
                                    if name in model and name in record
                                    and name not in ('snapshot_time', 'device')):
                del self.known[number]
                record['uuid'] = record['uuid'] or model['uuid']
                return ref
        self.made += 1
        return 'OpaqueRef:%08x-0000-4000-8000-000000000000' % (0xffffffff - self.made)


def booted(version, spec, known, holes=False):
    """The pool that the recorded scenario began with; `known`: what records it has."""
    vms = []
    for part in spec.split(','):
        body, *flags = part.split(':')
        name, _, disks = body.partition('=')
        sizes = [int(size[:-1]) * UNITS[size[-1]] if size[-1] in UNITS else int(size)
                 for size in disks.split('+') if size]
        vm = {'name': name, 'disks': sizes, 'networks': ['test network'] * ('vif' in flags),
              'power_state': 'Running' if 'running' in flags else
              'Suspended' if 'suspended' in flags else 'Halted'}
        vms.append(dict(vm, cd=None) if 'cd' in flags else vm)
    with mock.patch.object(pools, 'Pool', functools.partial(Likeness, known=known)):
        pool = pools.from_description({
            'name': 'toolstack', 'password': 'toolstack', 'xapi_version': version, 'vms': vms,
            'hosts': ['toolstack'],
            'networks': ['Host internal management network', 'test network'],
            'srs': [{'name': 'Local storage', 'type': 'rawfile', 'size': 270553174016}]})
    for ref, record in list(pool.tables['VM'].items()):
        if record['is_default_template']:
            pool.delete('VM_metrics', record['metrics'])
            pool.delete('VM', ref)
        elif not record['is_control_domain']:
            device = {key: value for key, value in record['platform'].items() if '-' in key}
            pool.put('VM', ref, **dict(OF_VMS, platform=dict(device, **PLATFORM),
                                       memory_overhead=str((6 if version > '26' else 5) << 20)))
    for ref, record in pool.tables['VDI'].items():
        pool.put('VDI', ref, physical_utilisation='0')
        if record['type'] == 'user':
            pool.content[ref] = content(record['name_label'], int(record['virtual_size']),
                                        holes).clone()
    furnish(pool, version)
    task = pool.call('task.create', 'Async.PBD.plug', '')
    pool.finish_task(task, 'success', '<value></value>')
    pool.put('task', task, subtask_of='OpaqueRef:%s' % uuid.uuid4())
    return pool


def drive(pool, version, vm):
    """What storage writes into dom0's other_config up to xapi 25.33 (seen there)."""
    pbd = next(iter(pool.tables['PBD']))
    pool.put('VM', vm, other_config={'storage_driver_domain': pbd, 'is_system_domain': 'true'}
             if version < '26' else {})


def furnish(pool, version):
    """Give the host and what belongs to it the values of the one that was recorded."""
    with open(os.path.join(RECORDED, version, '01-records.jsonl'), encoding='utf-8') as file:
        lines = [json.loads(line) for line in file]
    tables = {line['call'][0].split('.')[0]: line['answer'].get('Value', {}) for line in lines
              if line['call'][0].endswith('.get_all_records')}
    tables['VM'] = {ref: record for ref, record in tables['VM'].items()
                    if record['is_control_domain']}
    operations = 'allowed_operations'
    for cls, left in (('host', operations), ('pool', operations), ('network', ''),
                      ('SR', operations), ('SM', ''), ('VM', operations + ' consoles')):
        for ref, record in pool.tables[cls].items():
            for model in tables[cls].values():
                if cls != 'VM' and model['name_label'] == record['name_label'] or (
                        record.get('is_control_domain')):
                    pool.put(cls, ref, **{
                        name: value for name, value in model.items() if name in record
                        and not NAME.search(json.dumps(value)) and not isinstance(
                            record[name], DateTime) and name not in left.split()})
            if cls == 'VM' and record['bios_strings']:
                cpu = pool.tables['host'][pool.master]['cpu_info']
                pool.put('VM', ref, last_boot_CPU_flags={
                    'vendor': cpu['vendor'], 'features': cpu['features_hvm']})
            if cls == 'VM' and record['is_control_domain']:
                drive(pool, version, ref)
                pool.new('console', VM=ref, protocol='rfb')


def simulated_ones(lines):
    """Lines without the parts that are about a command that is not simulated, and without the
    records that those made."""
    known, made, gone, kept, is_skipped = set(), set(), {}, [], False
    for line in lines:
        if str(line.get('stdout')).startswith('== '):
            is_skipped = line['stdout'][3:] in NOT_SIMULATED
        answer = line.get('answer')
        value = answer.get('Value') if isinstance(answer, dict) else None
        records = value if isinstance(value, dict) else {}
        if is_skipped:
            made.update(set(records) - known)
            gone.setdefault(line['call'][0], []).extend(line.get('gone', ()))
            continue
        if 'while' in line and isinstance(value, dict):
            line['gone'] = line.get('gone', []) + gone.pop(line['call'][0], [])
        known.update(records)
        for ref in made.intersection(records):
            del records[ref]
        kept.append(line)
    return kept


def replay(version, name, expected):
    """The differences of a scenario, or of several in one file: their lines are counted anew."""
    with open(os.path.join(RECORDED, version, name + '.jsonl'), encoding='utf-8') as file:
        lines = simulated_ones([json.loads(line) for line in file])
    starts = [at for at, line in enumerate(lines) if not at or line['n'] < lines[at - 1]['n']]
    return [each for start, end in zip(starts, starts[1:] + [None])
            for each in Replay(version, name, expected, lines[start:end]).run()]


class Replay:
    """One scenario."""

    def __init__(self, version, name, expected, lines):
        self.scenario, self.lines = '%s/%s' % (version, name), lines
        self.version, self.expected = version, expected
        self.names = Names()
        self.files = {'DIR/files/d.raw': bytearray(24 << 20)} if name.startswith('07-short') else {}
        self.clients, self.found, self.mover = {}, [], None
        self.http, self.transfer, self.fresh = '', None, False
        self.tables = {}            # class -> {ref: record}: the last sample
        self.states, self.at = [], 0
        self.known = self._identities()
        self.whole = self._samples()
        spec = next((line['stdout'].split('VMs: ')[1] for line in self.lines
                     if line['call'] == ['boot']), 'big=24M,other=16M')
        self.pool = booted(version, spec, [each for each in self.known.values()
                                           if each[0] not in ('task', 'session')],
                           name.startswith('11-'))
        self.pool.keep_alive_chunks = {             # when they come is the recorded host's timing
            int(number) for line in lines if line['call'][0].startswith('members')
            for number in re.findall(r'/(\d{8}) 0 ', ' '.join(line['stdout']))}
        self.stage = Stage(self.pool, self.remember)
        self.pool.maker = lambda: self.stage.actor.client

    def _identities(self):
        """{uuid: (class, ref, record)} of every record that is recorded."""
        known = {}
        for line in self.lines:
            answer = line.get('answer')
            value = answer.get('Value') if isinstance(answer, dict) else None
            for ref, record in (value.items() if isinstance(value, dict) else ()):
                if isinstance(record, dict) and 'uuid' in record:
                    known.setdefault(record['uuid'], (line['call'][0].split('.')[0], ref, record))
        return known

    def _samples(self):
        """{line: {class: the whole table}} of the samples, which are recorded as changes."""
        tables, last, whole = {}, {}, {}
        for line in self.lines:
            if line['call'][1:2] == ['snapshot-uninstall'] and line.get('rc') == 0:
                tables['VM'] = without(tables.get('VM', {}), line['call'][2].partition('=')[2])
                last.update(tables['VM'])       # the next sample of VMs was cut, mostly
            cls = SAMPLED.get(line['call'][0]) if 'while' in line and 'answer' in line else None
            if cls:
                value, gone = line['answer']['Value'], line.get('gone', ())
                table = dict(tables.get(cls, {}) if value or gone else {})
                for ref, record in value.items():
                    table[ref] = dict(last.get(ref, {}), **record.get('changed', record))
                tables[cls] = {ref: table[ref] for ref in table if ref not in gone}
                last.update(table)
                whole[line['n']] = {cls: tables[cls]}
        return whole

    def run(self):
        """The differences."""
        with self.stage.clock(), mock.patch.object(xe, 'FORGETS', None):
            for line in self.lines:
                self.line = line
                self.stage.come_to(1000.0 + line['t'])
                self.do_http(line['while'] if line.get('while', '').startswith('HTTP') else '')
                getattr(self, 'do_' + line['door'])(line)
        return self.found

    def report(self, found, line=None):
        line = line or self.line
        for path, recorded, simulated in found:
            self.found.append(self.difference(path, recorded, simulated, line))

    def difference(self, path, recorded, simulated, line=None):
        line = line or self.line
        call = ' '.join(map(str, line['call']))
        return Difference(self.scenario, line['n'], call, path, recorded, simulated)

    # States

    def remember(self):
        """Keep what the tables are now, for the samples that follow."""
        tables = self.pool.tables
        self.states.append({cls: {ref: dict(record) for ref, record in tables[cls].items()}
                            for cls in SAMPLED.values()})

    def state(self, cls, number):
        table = self.states[number][cls]
        if cls == 'VBD':
            dom0 = self.pool.tables['host'][self.pool.master]['control_domain']
            table = {ref: record for ref, record in table.items() if record['VM'] == dom0}
        return table

    def match(self, cls):
        """Go on until the state is like the last sample of a table."""
        best, number, steps, trial = None, self.at, 400, None
        if not self.states:
            self.remember()
        start = self.names.saved()
        while True:
            while number >= len(self.states) and steps and self.step_towards(cls, trial):
                steps -= 1
            if number >= len(self.states):
                break
            trial = Comparison(self.names)
            trial.records(cls, self.tables[cls], self.state(cls, number))
            for task, vdi in self.tasks_of_disks() if cls == 'task' else ():
                self.compare_owner(trial, task, vdi, self.state('VDI', number))
            odd = self.odd(trial.found)
            score = sum(map(is_grave, *zip(*odd))) if odd else 0, len(odd)
            if best is None or score < best[0]:
                best = score, number, trial.found, self.names.saved()
            self.names.restore(start)
            if not odd or (best[0][0] == 0 and number > best[1] + 40):
                break
            number += 1
        self.names.restore(best[3])
        self.at = best[1]
        self.report(best[2])

    def tasks_of_disks(self):
        """(task, VDI) of the sampled tasks, as the sample of VDIs that follows has them."""
        later = next((tables for n, tables in self.whole.items()
                      if n > self.line['n'] and ('task' in tables or 'VDI' in tables)), {})
        return [(task, ref) for ref, record in later.get('VDI', {}).items()
                for task in record['current_operations'] if task in self.tables['task']]

    def compare_owner(self, trial, task, vdi, disks):
        record = disks.get(self.names.there.get(vdi))
        if record and self.names.there.get(task) not in record['current_operations']:
            trial.differ('task.current_operations', vdi, None)

    def step_towards(self, cls, trial):
        """A step of the first client whose records are not like the sample yet; one who made what
        no sample has had yet waits, but for a task that none will have."""
        makers, odd, early = self.pool.makers, set(), set()
        met = {makers.get(ref) for ref in self.names.here}
        found = [(ref, each) for ref, each in zip(trial.refs, trial.found)
                 if self.odd([each])] if trial else []
        for ref, (path, recorded, _) in found:
            is_early = recorded == 'MISSING' and makers.get(ref) not in met and (
                cls != 'task' or path[5:] in self.tasks_to_come())
            (early if is_early else odd).add(makers.get(ref))
        early -= odd
        like = {makers.get(ref) for ref in self.pool.tables[cls]} - odd if trial else set()
        clients = sorted(self.stage.clients() - {None}, key=lambda each: each.number)
        new = [each for each in clients if each not in like | odd]
        first = [each for each in new if re.search('-(uninstall|destroy)', each.asked[0])
                 and any(isinstance(one, list) and len(other) > len(one)
                         for _, (_, one, other) in found)]       # they take away
        lacks = any(re.match(r'VBD\.$|task\.(V.. |VM\.[a-z]+$|Export)', path) and
                    simulated == 'MISSING' for _, (path, _, simulated) in found)
        for client in first + [each for each in clients if each in odd] + (
                new + [self.mover] if lacks else [self.mover] + new):
            if client not in early and self.step_of(client):
                self.mover = client
                return True
        return self.step_of(*self.stage.clients() - early) or self.stage.step()

    def tasks_to_come(self):
        """What tasks of later samples are called."""
        return {record['name_label'] for n, tables in self.whole.items() if n > self.line['n']
                for record in tables.get('task', {}).values()}

    def step_of(self, *clients):
        return self.stage.step([each for each in self.stage.actors if each.client in clients])

    def do_sample(self, cls, line):
        for ref in line.get('gone', ()):       # xapi forgets these at some time
            ref = self.names.there.get(ref)
            client = self.pool.makers.get(ref)
            while client and client.actors[0].ended and self.step_of(client):
                pass                           # what it left ends, too
            if self.pool.tables['task'].get(ref, {}).get('status') == 'failure':
                self.pool.delete('task', ref)
        self.tables[cls] = self.whole[line['n']][cls]
        self.match(cls)

    # Calls

    def do_rpc(self, line):
        method, *arguments = line['call']
        if method == 'sample, nothing changed':
            for other in self.lines:
                if other['n'] in line['same_as'] and other['call'][0] in SAMPLED:
                    self.line = dict(other, n=line['n'])
                    self.match(SAMPLED[other['call'][0]])
            return
        if method in SAMPLED and 'while' in line:
            self.fresh = False
            return self.do_sample(SAMPLED[method], line)
        if method in ('session.get_record', 'session.logout', 'VM.get_all'):
            return              # of sessions that nobody noted: test_doors has their likes
        if method == 'session.login_with_password':
            return self.login(line, arguments)
        self.warm()
        self.settle(arguments)
        translated = [self.names.translated(each) for each in arguments]
        saved = self.names.saved()
        if '.get_' in method and self.clients and self.states:      # as when it was sampled
            with mock.patch.object(self.pool, 'tables',
                                   dict(self.pool.tables, **self.states[self.at])):
                if not self.odd(self.compare_call(line, method, translated)):
                    return
            self.names.restore(saved)
        found = self.compare_call(line, method, translated)
        if found and self.clients and '.get_' in method:
            found = self.until_like(saved, found,
                                    lambda: self.compare_call(line, method, translated))
        self.report(found)

    def compare_call(self, line, method, arguments):
        try:
            value = {'Status': 'Success', 'Value': self.pool.call(method, *arguments)}
        except XapiError as error:
            value = {'Status': 'Failure', 'ErrorDescription': error.details}
        comparison, answer = Comparison(self.names), line['answer']
        cls = method.split('.')[0]
        if answer['Status'] != value['Status']:
            comparison.differ(method, answer, plain(value))
        elif 'Value' not in answer:
            comparison.values(method, answer['ErrorDescription'], value['ErrorDescription'])
        elif '.get_all_records' in method:
            comparison.records(cls, answer['Value'], value['Value'])
        elif method.endswith('.get_record'):
            comparison.fields(cls, answer['Value'], value['Value'])
        else:
            comparison.values(method, answer['Value'], value['Value'])
        return comparison.found

    def login(self, line, arguments):
        """Over the url of the line, else the unix socket; answered by the session's record, too."""
        answers = line['answer'] if isinstance(line['answer'], list) else [line['answer']]
        originator = (arguments + [''] * 2)[3 if len(arguments) > 3 else -1]
        comparison = Comparison(self.names)
        try:
            session = self.pool.login(*arguments[:2], originator, trusted='url' not in line)
            self.pool.track(RECORDER)
            comparison.values('login', answers[0].get('Value', ''), session)
            record = {name: value.value if isinstance(value, DateTime) else str(value)
                      for name, value in self.pool.tables['session'][session].items()}
            comparison.fields('session', answers[1] if len(answers) > 1 else {}, record)
        except XapiError as error:
            comparison.values('login', answers[0].get('ErrorDescription'), error.details)
        self.report(comparison.found)

    def settle(self, words):
        """Bind the names in a call that are not bound yet, by what they are names of."""
        for name in [name for word in words for name in NAME.findall(str(word))]:
            if name in self.names.there:
                continue
            cls, ref, record = self.known.get(name) or next(
                (each for each in self.known.values() if each[1] == name), (None, None, None))
            if cls:
                for _ in range(300):
                    if self.settle_record(cls, ref, record) or not self.stage.step():
                        break
            else:
                self.settle_word(name, words)

    def settle_record(self, cls, ref, record):
        comparison = Comparison(self.names)
        best = comparison.likest(cls, record, self.pool.tables[cls])
        if not best and not self.clients:
            best = min(((comparison.cost(cls, record, other), number, each)
                        for number, (each, other) in enumerate(self.pool.tables[cls].items())
                        if each not in self.names.here), default=[None])[-1]
        if best:
            self.names.bind(ref, best)
            self.names.agree(record['uuid'], self.pool.tables[cls][best]['uuid'])
        return best

    def settle_word(self, name, words):
        """A uuid that no recorded table has: by the verb, a file's name, what was made first."""
        text = ' '.join(words)
        cls = {'vdi': 'VDI', 'host': 'host', 'sr': 'SR', 'vbd': 'VBD'}.get(
            words[0].split('-')[0], 'VM') if 'sr-uuid=' + name not in words else 'SR'
        free = [record for record in self.pool.tables[cls].values()
                if record['uuid'] not in self.names.here and not record.get('is_control_domain')]
        if cls == 'VDI':        # not one that is there later, under another name
            later = next((tables['VDI'].values() for n, tables in sorted(self.whole.items())
                          if n > self.line['n'] and 'VDI' in tables), [])
            left = {(record['name_label'], record['is_a_snapshot']) for record in later
                    if record['uuid'] not in self.names.there}
            free = [record for record in free
                    if (record['name_label'], record['is_a_snapshot']) not in left] or free
        if words[0] == 'vbd-unplug':
            free = [record for record in free if record['currently_attached']]
        stem = re.search(r'DIR/files/([a-z]+)\.', text)
        free.sort(key=lambda record: record.get('name_label') != (stem and stem.group(1)))
        if free:
            self.names.bind(name, free[0]['uuid'])

    def do_xe(self, line):
        event = line.get('event')
        if event == 'ended':
            client = self.clients.pop(line['started_at_n'], None)
            if client is None:
                return
        elif 'still running' in str(line.get('rc')):
            return              # a dump of the database: the recorded host has no address for it
        else:
            self.warm()
            self.spoil(line['call'])
            self.settle(line['call'][1:])
            shell = line.get('shell') or ''
            stdin = re.search(r'(?:< |cat )(\S+)', shell)
            client = self.stage.xe([self.names.translated(word) for word in line['call'][1:]],
                                   self.files, stdin and 'DIR/files/' + stdin.group(1),
                                   shell.startswith('cat'))
            self.fail_hole(line['call'])
        if event == 'started':
            self.clients[line['n']] = client
            self.fresh = True
            return
        saved = self.names.saved()
        found = self.compare_run(line, client)
        if found and event is None and ('-list' in line['call'][1] or client.status):
            found = self.until_like(saved, found, lambda: self.compare_run(line, self.stage.xe(
                client.asked, self.files)))
        self.at = max(self.at, len(self.states) - 1)
        self.report(found)

    def compare_run(self, line, client):
        if client.actors[0].killed:
            return []
        status, out, err = self.stage.finish(client)
        comparison = Comparison(self.names)
        if status != line['rc']:
            comparison.differ('rc', line['rc'], status)
        if 'filename=' not in line['call']:
            self.outputs(comparison, 'stdout', line['stdout'], out)
        self.outputs(comparison, 'stderr', line['stderr'], err)
        return comparison.found

    def until_like(self, saved, found, again):
        """Let transfers go on until a question is answered as recorded; what differs at the best
        moment, which is the first if there is no better one."""
        best = found, self.names.saved()
        for _ in range(60):
            if not self.odd(best[0]) or not self.stage.step():
                break
            self.names.restore(saved)
            found = again()
            if len(self.odd(found)) < len(self.odd(best[0])):
                best = found, self.names.saved()
        self.names.restore(best[1])
        return best[0]

    def odd(self, found):
        return [each for each in found if not self.expected.entry(self.difference(*each))]

    def compare_members(self, line, data):
        """Names and sizes of an archive's members, ova.xml's size aside."""
        with tarfile.open(fileobj=io.BytesIO(data), mode='r:*') as archive:
            members = ['%s %d 0o%o /' % (each.name, each.size, each.mode) for each in archive]
        comparison = Comparison(Names())
        comparison.values('members', line['stdout'][1:], members[1:])
        self.report(comparison.found)

    def clean(self, number):
        """Take away what was taken away between two parts without being recorded: what no sample
        has any more, though no call names it."""
        for cls in PARTS.get(self.scenario.split('/')[1][:3], ()):
            calls = ''
            for line in self.lines[number + 1:]:
                if cls in self.whole.get(line['n'], ()):
                    break
                calls += ' '.join(map(str, line['call']))
            later = self.whole.get(line['n'], {}).get(cls)
            for ref, record in self.tables.get(cls, {}).items() if later is not None else ():
                there = self.names.there.get(ref)
                if ref not in later and record['uuid'] not in calls and (
                        there in self.pool.tables[cls]):
                    self.drop(cls, there)

    def drop(self, cls, ref):
        if cls == 'VDI':
            return self.pool.drop_vdi(ref)
        if cls == 'VBD':
            self.pool.mark_detached(ref)
            return self.pool.delete(cls, ref)
        for other in ('VBD', 'VIF', 'VTPM'):
            for each in self.pool.tables['VM'][ref][other + 's']:
                self.pool.delete(other, each)
        for child in self.pool.tables['VM'][ref]['children']:
            self.pool.put('VM', child, parent=NULL)
        self.pool.delete('VM', ref)

    def warm(self):
        """Let transfers that nobody has looked at yet come to where their data flow."""
        end = next((line['n'] for line in self.lines if line['n'] > self.line['n'] and
                    line.get('started_at_n') in self.clients), float('inf'))
        later = next((self.whole[n]['VBD'] for n in sorted(self.whole)
                      if self.line['n'] < n < end and 'VBD' in self.whole[n]), {})
        if any('plug' in each['current_operations'].values() for each in later.values()):
            return              # they are seen before that
        quiet = 0
        while self.fresh and quiet < 6:
            before = len(self.states)
            if not self.stage.step():
                break
            quiet = quiet + 1 if before == len(self.states) else 0
        self.fresh = False

    def spoil(self, call):
        """Make the archive that an import wants, from the whole one."""
        name = call[2].partition('=')[2] if len(call) > 2 else ''
        whole = self.files.get('DIR/files/b.xva')
        if call[1] == 'vm-import' and whole and name not in self.files:
            made = spoiled(os.path.basename(name), bytes(whole))
            if made is not None:
                self.files[name] = bytearray(made)

    def fail_hole(self, call):
        """The recorded storage cannot export a disk that is one hole."""
        uuid = self.names.translated(' '.join(call)).partition('uuid=')[2].split(' ')[0]
        if call[1] == 'vdi-export' and any(is_hole(self.pool.content[ref]) for ref, record in
                                           self.pool.tables['VDI'].items()
                                           if record['uuid'] == uuid):
            self.pool.faults.add('vdi-export', 'refuse', after=0,
                                 error=['VDI_IO_ERROR', 'Device I/O errors'])

    @staticmethod
    def outputs(comparison, path, recorded, simulated):
        """Listings are compared record by record, in any order; a cut one is compared so far."""
        cut = re.search(r'\.\.\. \[\d+ characters in all\]$', recorded)
        if cut:
            recorded = recorded[:cut.start()]
            simulated = simulated[:len(recorded)]
        if recorded.startswith('The following items') and simulated.startswith('The following'):
            return comparison.lines(path, recorded.splitlines(), simulated.splitlines())
        if re.fullmatch(r'[\da-f-]{36}(,[\da-f-]{36})+\n', recorded):       # in no order
            return comparison.lists(path, recorded.strip().split(','), simulated.strip().split(','))
        if not re.match(r'[\w-]+ \([^)]+\) +: ', recorded):
            return comparison.texts(path, recorded, simulated)
        one, other = ([dict(line.split(': ', 1) if ': ' in line else (line, '')
                            for line in re.split(r'\n(?= *[\w-]+ \()', block)) for block
                       in text.split('\n\n\n') if block] for text in (recorded, simulated))
        one, other = ({number: {key.split('(')[0].strip(): (key, value)
                                for key, value in block.items()}
                       for number, block in enumerate(blocks)} for blocks in (one, other))
        left = dict(other)
        for block in one.values():
            def cost(number):
                saved, trial = comparison.names.saved(), Comparison(comparison.names)
                trial.maps(path, as_lists(block), as_lists(left[number]))
                comparison.names.restore(saved)
                return len(trial.found)
            if not left:
                comparison.differ(path + '.record', block, 'MISSING')
                continue
            best = min(left, key=cost)
            comparison.maps(path, as_lists(block), as_lists(left.pop(best)))
        for block in left.values():
            comparison.differ(path + '.record', 'MISSING', block)

    # HTTP by hand: told by what runs `while` samples are taken

    def do_http(self, what):
        """Begin (or go on with) a transfer that no xe makes; '' when none runs."""
        if what == self.http:
            return
        if self.transfer:
            while not self.transfer.ended and self.stage.step([self.transfer]):
                pass
            self.at, self.transfer = len(self.states) - 1, None
        self.http = what
        if not what:
            return
        path = what.split(' ')[2]
        label, own = HTTP[path]
        task = self.pool.make_task(*own if 'task_id' in what else (label, ''))
        work = getattr(self, 'http_' + path[1:].split('_')[0])(what, task)

        def run():
            for _ in work:
                self.stage.give_way()
            if 'task_id' not in what:
                self.pool.drop_task(task)
        self.transfer = Actor(self.stage, run)
        self.stage.actors.append(self.transfer)

    def http_export(self, what, task):
        vm, record = next(item for item in self.pool.tables['VM'].items()
                          if item[1]['is_a_snapshot'])
        disk = self.pool.tables['VBD'][record['VBDs'][0]]['VDI']
        with self.pool.export_vdi(disk, task=task) if 'raw_vdi' in what else (
                self.pool.export_vm(vm, task=task)) as pieces:
            yield from pieces

    def http_import(self, what, task):
        kind = 'vhd' if 'vhd' in what else 'raw'
        data = bytes(self.files['DIR/files/d.' + kind])
        disk = next(ref for ref, record in self.pool.tables['VDI'].items()
                    if record['uuid'] == self.put_into)

        def pieces():
            for at in range(0, len(data), 1 << 20):
                self.stage.give_way()
                yield data[at:at + (1 << 20)]
        self.pool.import_vdi(disk, pieces(), kind, task)
        yield

    # Faults and the rest

    def do_fault(self, line):
        name, _, value = line['call'][0].partition('=')
        if line.get('event') == 'started':
            self.warm()
            return self.end_xapi(name) if name != 'start-xapi' else None
        if name in ('restart-xapi', 'start-xapi'):
            self.pool.come_up()
            self.carry_out()
            self.at = len(self.states) - 1
        elif name == 'clear':
            self.pool.storage_faults.clear()
            self.pool.failing_detaches = 0
        elif name == 'detach-once':
            self.pool.failing_detaches = 1
        elif name in ('read-error', 'write-error'):
            self.pool.storage_faults[name.split('-')[0]] = 4 << 20
        elif name in STORAGE:
            operation, *error = STORAGE[name]
            self.pool.storage_faults[operation] = error

    def carry_out(self):
        """Which of the snapshots that a dead daemon had begun storage still makes is chance: here
        those that were recorded."""
        later = {}
        for line in self.lines[self.lines.index(self.line) + 1:]:
            if line['door'] == 'xe' and line.get('event') != 'ended':
                break
            later = later or self.whole.get(line['n'], {}).get('VDI')
        for ref, record in (later or {}).items():
            disk = self.pool.tables['VDI'].get(self.names.there.get(ref), {'snapshots': []})
            while len(disk['snapshots']) < len(record['snapshots']):
                made = self.pool._snapshot_vdi(self.names.there[ref])
                if any('content_id' in later[each]['other_config'] for each in record['snapshots']):
                    self.pool.put('VDI', made, other_config={'content_id': str(uuid.uuid4())})
            while len(disk['snapshots']) > len(record['snapshots']):
                self.pool.drop_vdi(disk['snapshots'][0])

    def end_xapi(self, name):
        """SIGTERM lets a transfer end that is nearly done, and writes the database."""
        if name == 'restart-xapi':
            for line in self.lines:
                if line.get('started_at_n') in self.clients and line.get('rc') == 0:
                    self.stage.finish(self.clients[line['started_at_n']])
            self.pool.written = None
        self.pool.go_down()
        while self.stage.step():
            pass
        self.at = len(self.states) - 1

    def do_sh(self, line):
        if line['call'] == ['note'] and line['stdout'].startswith('=='):
            self.clean(self.lines.index(line))
        note = line.get('stdout')
        if str(note).startswith(('after', 'worked')):      # what a killed client left is done
            while self.stage.step(self.stage.actors):
                pass
        members = re.match('members of (DIR/files/[^ ]+)', line['call'][0])
        if members and members.group(1) in self.files:
            self.compare_members(line, bytes(self.files[members.group(1)]))
        if line['call'][0].startswith('HTTP') and line.get('event') == 'started':
            name = re.search('vdi=(.{36})', line['call'][1]).group(1)
            self.put_into = self.names.translated(name)
        if line['call'][0].startswith('kill -') or note == 'client killed':
            self.clients[max(self.clients)].kill()
        elif note == '== one MiB of data is at the start, one at the end':
            image = next(image for image in self.pool.content.values() if is_hole(image))
            image.write(0, b'1')
            image.write(image.virtual_size - 1, b'1')


def is_hole(image):
    return not any(image.chunks())


def as_lists(block):
    """{field: its line, or a set's members}; a progress between 0 and 1 is one like another."""
    found = {}
    for name, (label, value) in block.items():
        if '(S' in label:
            found[name], found[name + ' label'] = sorted(value.split('; ')), label
        else:
            found[name] = re.sub(r'(progress.*: 0)\.\d*[1-9]\d*$', r'\1.5', label + ': ' + value)
    return found


def scenarios(version):
    return sorted(name[:-6] for name in os.listdir(os.path.join(RECORDED, version))
                  if name.endswith('.jsonl'))
