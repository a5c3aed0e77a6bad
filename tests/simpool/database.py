"""The shape of the pool's database: templates of records, queries, and the dump.

Values are kept as XenAPI shows them (int64 as text). The database itself knows text alone, with
sets and maps as s-expressions, and calls its columns a little differently; both show in queries
(`get_all_records_where`), in `snapshot_metadata` and in the dump.
Sources: xapi: ocaml/database/db_filter_parse.mly, db_filter_lex.mll, db_filter.ml; a dump and
snapshot_metadata recorded from xapi 25.6.0.
"""

import json
import os
import re
from xml.sax.saxutils import quoteattr
from xmlrpc.client import DateTime

NULL = 'OpaqueRef:NULL'
EPOCH = DateTime('19700101T00:00:00Z')
INTEGER = re.compile(r'-?\d+$')             # int64 is text in a record

_NESTED = re.compile('(API_version|HVM|PV|VCPUs|actions|io|memory|name|qos)_')
_FLAT = ('pool', 'VM_guest_metrics')

# Tables that a dump has besides those of the templates; sessions, tasks and messages are not kept.
_EMPTY_TABLES = (
    'Bond Certificate Cluster Cluster_host DR_task Diagnostics Driver_variant Feature GPU_group'
    ' Host_driver LVHD Observer PCI PGPU PUSB PVS_cache_storage PVS_proxy PVS_server PVS_site'
    ' Repository SDN_controller SM USB_group VGPU VGPU_type VLAN VMPP VMSS VM_appliance VM_group'
    ' VUSB auth blob crashdump data_source event host_crashdump host_patch message'
    ' network_sriov pool_patch pool_update probe_result role session sr_stat subject task tunnel'
    ' vdi_nbd_server_info').split()


def revived(value):
    """An object of JSON, or the date that it stands for, as in recordings."""
    return DateTime(value['dateTime.iso8601']) if 'dateTime.iso8601' in value else value


def _templates():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'records.json')
    with open(path, encoding='utf-8') as file:
        return json.load(file, object_hook=revived)


TEMPLATES = _templates()    # class -> a record with every field, its values neutral

# Fields that older versions have not, by class: in which they were seen first, and their values.
NEWER = {cls: {name: (version, value) for version, fields in versions
               for name, value in fields.items()} for cls, versions in {
    'host': [((25, 33), {'ssh_enabled': True, 'ssh_enabled_timeout': '0', 'ssh_expiry': EPOCH,
                         'console_idle_timeout': '0', 'ssh_auto_mode': True,
                         'secure_boot': False}),
             ((26, 17), {'max_cstate': '', 'ntp_mode': 'Factory', 'ntp_custom_servers': [],
                         'timezone': 'Etc/UTC'})],
    'pool': [((25, 33), {'ha_reboot_vm_on_internal_shutdown': True}),
             ((26, 17), {'limit_console_sessions': False, 'vm_console_idle_timeout': '0',
                         'auto_update_vm_secureboot_certificates': False})],
    'SM': [((26, 17), {'supported_image_formats': []})],
    'VIF': [((26, 17), {'trunks': []})],
    'VM': [((26, 17), {'secureboot_certificates_state': 'ok'})],
    'VM_guest_metrics': [((25, 33), {'services': {}})],
    'VM_metrics': [((26, 17), {'numa_optimised': False, 'numa_nodes': '0',
                               'numa_node_memory': {}})],
}.items()}
for _cls, _fields in NEWER.items():
    TEMPLATES[_cls].update({name: value for name, (_, value) in _fields.items()})


def column(cls, field):
    if cls in _FLAT or not _NESTED.match(field):
        return field
    return _NESTED.sub(r'\1__', field, 1)


def text(value):
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, float):
        return '%.16g' % value
    if isinstance(value, DateTime):
        return value.value
    if isinstance(value, dict):
        return '(%s)' % ' '.join('(%s %s)' % (_quoted(key), _quoted(text(value[key])))
                                 for key in value)
    return '(%s)' % ' '.join(_quoted(text(item)) for item in value)


def _quoted(string):
    for char in '\\\'"':
        string = string.replace(char, '\\' + char)
    return "'%s'" % string


def row(cls, ref, record):
    """A record as a database row: {column: text}, in the order of the columns."""
    fields = {column(cls, field): text(value) for field, value in record.items()}
    fields['_ref'] = ref
    return {name: fields[name] for name in sorted(fields)}


def metadata(cls, ref, record):
    """A record as text, as `snapshot_metadata` carries it (recorded: the last column first)."""
    cells = row(cls, ref, record)
    return '(%s)' % ' '.join('(%s %s)' % (_quoted(name), _quoted(cells[name]))
                             for name in reversed(list(cells)))


def _protected(string):
    for char, escape in ('%', '%%'), (' ', '%.'), ('\t', '%t'), ('\n', '%n'), ('\r', '%r'):
        string = string.replace(char, escape)
    return string


def dump(tables, generation):
    parts = ['<?xml version="1.0" encoding="UTF-8"?>\n<database><manifest>']
    for key, value in (('schema_major_vsn', 5), ('schema_minor_vsn', 786),
                       ('generation_count', generation)):
        parts.append('<pair key="%s" value="%s"/>' % (key, value))
    parts.append('</manifest>')
    for cls in sorted(set(tables).union(_EMPTY_TABLES)):
        rows = {} if cls in _EMPTY_TABLES else tables[cls]
        if not rows:
            parts.append('<table name="%s"/>' % cls)
            continue
        parts.append('<table name="%s">' % cls)
        for ref in sorted(rows):
            cells = row(cls, ref, rows[ref])
            parts.append('<row ref="%s" __ctime="1" __mtime="%s" %s/>' % (
                ref, generation,
                ' '.join('%s=%s' % (name, quoteattr(_protected(cell)))
                         for name, cell in cells.items())))
        parts.append('</table>')
    parts.append('</database>')
    return ''.join(parts).encode('utf-8')


# Queries: comparisons of a field with a literal, in parentheses or bare, joined by `and` and `or`,
# which bind alike, from the left. What else the real ones may have is refused.

_COMPARISON = re.compile(r'\s*(\()?\s*field\s*"([^"]*)"\s*=\s*"([^"]*)"\s*(?(1)\)\s*)(and\b|or\b)?')


class QueryError(ValueError):
    """A query that the database's parser refuses."""


def matcher(cls, query):
    """The function of (ref, record) that tells whether a query holds.

    Raises QueryError for bad grammar; the function KeyError for a column that is not there.
    """
    fields = {column(cls, field): field for field in TEMPLATES[cls]}
    terms, word, at = [], 'or', 0
    while word:
        found = _COMPARISON.match(query, at)
        if not found:
            raise QueryError('Stdlib.Parsing.Parse_error')
        terms.append((word, found.group(2), found.group(3)))
        word, at = found.group(4), found.end()
    if at < len(query):
        raise QueryError('Stdlib.Parsing.Parse_error')

    def matches(ref, record):
        holds = False
        for word, name, wanted in terms:
            alike = wanted == (ref if name == '_ref' else text(record[fields[name]]))
            holds = holds and alike if word == 'and' else holds or alike
        return holds

    return matches
