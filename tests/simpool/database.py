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

_NESTED = re.compile('(API_version|HVM|PV|VCPUs|actions|io|memory|name|qos)_')
_FLAT = ('pool', 'VM_guest_metrics')

# Tables that a dump has besides those of the templates; sessions, tasks and messages are not kept.
_EMPTY_TABLES = (
    'Bond Certificate Cluster Cluster_host DR_task Diagnostics Driver_variant Feature GPU_group'
    ' Host_driver LVHD Observer PCI PGPU PUSB PVS_cache_storage PVS_proxy PVS_server PVS_site'
    ' Repository SDN_controller SM USB_group VGPU VGPU_type VLAN VMPP VMSS VM_appliance VM_group'
    ' VTPM VUSB auth blob crashdump data_source event host_crashdump host_patch message'
    ' network_sriov pool_patch pool_update probe_result role session sr_stat subject task tunnel'
    ' vdi_nbd_server_info').split()


def _templates():
    def revive(value):
        return DateTime(value['dateTime.iso8601']) if 'dateTime.iso8601' in value else value
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'records.json')
    with open(path, encoding='utf-8') as file:
        return json.load(file, object_hook=revive)


TEMPLATES = _templates()    # class -> a record with every field, its values neutral


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


# Queries: true | false | value = value | not e | e and e | e or e | ( e ), where a value is
# field "name" or "literal". `and` and `or` bind alike, from the left; `not` takes all that follows.

_TOKEN = re.compile(r'[ \t\n]*(?:"([^"]*)"|(true|false|field|and|or|not|[=()]))')


class QueryError(ValueError):
    """A query that the database's parser refuses."""


class Query:
    """A parsed query: `Query(cls, text).matches(ref, record)` is true or false.

    Raises QueryError for bad grammar; `matches` KeyError for a column that is not there.
    """

    def __init__(self, cls, expression):
        self._fields = {column(cls, field): field for field in TEMPLATES[cls]}
        self._tokens = self._scan(expression)
        self._at = 0
        self.matches = self._chain()
        if self._at < len(self._tokens):
            raise QueryError('Stdlib.Parsing.Parse_error')

    @staticmethod
    def _scan(expression):
        tokens, at, expression = [], 0, expression.rstrip(' \t\n')
        while at < len(expression):
            found = _TOKEN.match(expression, at)
            if not found:
                raise QueryError('Failure("lexing: empty token")')
            literal, word = found.groups()
            tokens.append((word, literal))
            at = found.end()
        return tokens

    def _next(self, *words):
        """The next token if it is one of these words ('' stands for a literal), else None."""
        if self._at < len(self._tokens):
            word, literal = self._tokens[self._at]
            if (word or '') in words:
                self._at += 1
                return word or ('literal', literal)
        return None

    def _chain(self):
        left = self._unary()
        while True:
            word = self._next('and', 'or')
            if not word:
                return left
            left = self._joined(word, left, self._unary())

    @staticmethod
    def _joined(word, left, right):
        if word == 'and':
            return lambda ref, record: left(ref, record) and right(ref, record)
        return lambda ref, record: left(ref, record) or right(ref, record)

    def _unary(self):
        if self._next('not'):
            inner = self._chain()
            return lambda ref, record: not inner(ref, record)
        constant = self._next('true', 'false')
        if constant:
            return lambda ref, record: constant == 'true'
        if self._next('('):
            inner = self._chain()
            if not self._next(')'):
                raise QueryError('Stdlib.Parsing.Parse_error')
            return inner
        left = self._value()
        if not self._next('='):
            raise QueryError('Stdlib.Parsing.Parse_error')
        right = self._value()
        return lambda ref, record: left(ref, record) == right(ref, record)

    def _value(self):
        named = self._next('field')
        literal = self._next('')
        if not literal:
            raise QueryError('Stdlib.Parsing.Parse_error')
        name = literal[1]
        if not named:
            return lambda ref, record: name
        if name == '_ref':
            return lambda ref, record: ref
        return lambda ref, record: text(record[self._fields[name]])
