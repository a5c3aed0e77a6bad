"""What xe shows of a record: the fields of each class, in the order in which they are defined.

A line of xe_fields.txt is `name access [source]`. The access is what stands behind the name in a
listing, RO or RW with S for a set and M for a map, then H for a field that only filters and
selections know, D for a deprecated one, E for one that is too expensive for a list, I where a
filter ignores case, L and N for those that xapi before 25.33 and 26.17 has not. The source is the
field of the API's record (the name with `_`, if none is given); through a reference,
`metrics.hvm`; `@` shows the uuid of what it refers to, `@name` its name-label; `~kind` translates;
`,` joins with commas instead of semicolons; `()` takes the values
of a map; `!word` computes.

Order, names and access are those recorded from xapi 25.6.0 (`vm-list params=all`), and for the
classes not recorded those of ocaml/xapi-cli-server/records.ml.
"""
import os
from typing import Any, Callable, NamedTuple

from .database import NULL

ABSENT = '<not in database>'
EXPENSIVE = '<expensive field>'
UNKNOWN = '<unknown>'

TRANSLATE = {
    'lower': str.lower,
    'capital': str.capitalize,
    'dashes': lambda word: word.replace('_', '-'),
    'action': lambda word: word.capitalize().replace('_', ' ').replace('Coredump', 'Core dump'),
    'tristate': lambda word: {'yes': 'true', 'no': 'false'}.get(word, word),
    'vdi': lambda word: word.capitalize().replace('_', ' '),
    'sr': lambda word: word.replace('vdi_', 'VDI.').replace('pbd_', 'PBD.'),
}


class Field(NamedTuple):
    """One field of a class. `value` takes (tables, record) and gives what the API has."""
    name: str
    access: str
    flags: str
    source: str
    comma: bool
    value: Callable[[Any, Any], Any]

    @property
    def label(self):
        kind = self.access if len(self.access) == 3 else ' ' + self.access
        return '%s (%s)%s' % (self.name, kind, ' [DEPRECATED]' if 'D' in self.flags else '')

    def is_set(self):
        return self.access[0] == 'S'

    def is_map(self):
        return self.access[0] == 'M'

    def text(self, tables, record):
        value = self.value(tables, record)
        if isinstance(value, list):
            return (', ' if self.comma else '; ').join(value)
        if isinstance(value, dict):
            return '; '.join('%s: %s' % pair for pair in value.items())
        return value


def plain(value):
    """A value of the API in the words of xe; lists and maps stay what they are."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, float):
        return '%.3f' % value
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value if isinstance(value, str) else value.value


def find(tables, ref):
    if ref == NULL:
        return None
    return next((table[ref] for table in tables.values() if ref in table), None)


def uuid_of(tables, ref):
    record = find(tables, ref)
    return record['uuid'] if record else ABSENT


def name_of(tables, ref):
    record = find(tables, ref)
    return record.get('name_label', ABSENT) if record else ABSENT


def disk_name(tables, vbd):
    return '<EMPTY>' if vbd['empty'] else name_of(tables, vbd['VDI'])


def only_host(tables, sr):
    if len(sr['PBDs']) > 1:
        return '<shared>'
    return name_of(tables, tables['PBD'][sr['PBDs'][0]]['host']) if sr['PBDs'] else ABSENT


def secret(tables, vtpm):
    return 'MD5=d41d8cd98f00b204e9800998ecf8427e size=0 bytes'       # an empty one


COMPUTED = {'disk_name': disk_name, 'only_host': only_host, 'secret': secret}


def reader(source, default=None):
    """The function that reads what a source of xe_fields.txt describes. With a default the
    API's record may lack the field."""
    if source.startswith('!'):
        return COMPUTED[source[1:]]
    source = source.rstrip(',')
    path, _, kind = source.partition('~')
    path, at, what = path.partition('@')
    values, path = path.endswith('()'), path.replace('()', '')
    through, _, name = path.rpartition('.')
    translate = TRANSLATE.get(kind, lambda word: word)
    refer = name_of if what == 'name' else uuid_of

    def read(tables, record):
        if through:
            record = find(tables, record[through])
            if record is None:
                return 'false' if name == 'hvm' else ABSENT
        value = record[name] if default is None else record.get(name, default)
        if at:
            refs = value if isinstance(value, list) else [value]
            shown = [refer(tables, ref) for ref in refs]
            return shown if isinstance(value, list) else shown[0]
        value = plain(list(value.values()) if values else value)
        return [translate(word) for word in value] if isinstance(value, list) else (
            translate(value) if isinstance(value, str) else value)

    return read


def table(name):
    """{heading: its indented lines} of a file beside this one."""
    found, lines = {}, []
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name)) as file:
        for line in file:
            if line.startswith(' '):
                lines.append(line.strip())
            elif line.strip():
                lines = found[line.strip()] = []
    return found


def fields(lines):
    found = {}
    for line in lines:
        name, access, source = (line.split() + [''])[:3]
        source = source or name.replace('-', '_')
        width = 3 if access[0] in 'SM' else 2
        found[name] = Field(name, access[:width], access[width:], source, source.endswith(','),
                            reader(source, UNKNOWN if 'E' in access else None))
    return found


class Kind(NamedTuple):
    """A class of records as xe knows it: `xe <kind>-list` and the others."""
    cls: str
    fields: Any
    filters: Any
    columns: Any


def kinds():
    """{the word before `-list`: Kind}. A snapshot's columns `snapshot_of` and `snapshot_time`
    are no names of fields, so the real one does not show them either."""
    of = {cls: fields(lines) for cls, lines in table('xe_fields.txt').items()}
    vm = [('is-a-template', 'false')]
    template = [('is-a-template', 'true'), ('is-a-snapshot', 'false')]
    snapshot = [('is-a-snapshot', 'true')]
    label = 'uuid name-label name-description'
    return {word: Kind(cls, of[cls], filters, columns.split()) for word, cls, filters, columns in (
        ('vm', 'VM', vm, 'uuid name-label power-state'),
        ('template', 'VM', template, label),
        ('snapshot', 'VM', snapshot, label + ' snapshot_of snapshot_time is-vmss-snapshot'),
        ('vdi', 'VDI', [], label + ' sr-uuid virtual-size sharable read-only'),
        ('vbd', 'VBD', [], 'uuid vm-uuid vm-name-label vdi-uuid device empty'),
        ('vif', 'VIF', [], 'uuid device vm-uuid network-uuid'),
        ('sr', 'SR', [], label + ' host type content-type'),
        ('vtpm', 'VTPM', [], 'uuid vm-uuid'),
        ('pbd', 'PBD', [], 'uuid host-uuid sr-uuid device-config currently-attached'),
        ('network', 'network', [], label + ' bridge'),
        ('host', 'host', [], label),
        ('pool', 'pool', [], label + ' master default-SR'),
        ('task', 'task', [], label + ' status progress'))}
