"""XML-RPC as xapi spells it: strings and integers bare (ocaml-rpc: src/lib/xmlrpc.ml)."""

import xmlrpc.client
from functools import lru_cache

# Control characters but tab, line feed and carriage return are dropped.
_ESCAPES = {code: None for code in range(32) if code not in (9, 10, 13)}
_ESCAPES.update({ord('&'): '&amp;', ord('<'): '&lt;', ord('>'): '&gt;', ord('"'): '&quot;'})


@lru_cache(maxsize=1 << 16)
def _text(string):
    return '<value>%s</value>' % string.translate(_ESCAPES)


@lru_cache(maxsize=1 << 16)
def _member(name):
    return '<member><name>%s</name>' % name.translate(_ESCAPES)


def _struct(value):
    parts = []
    for name, member in value.items():
        parts.append(_member(name))
        parts.append(to_xml(member))
        parts.append('</member>')
    return '<value><struct>%s</struct></value>' % ''.join(parts)


def _array(value):
    return '<value><array><data>%s</data></array></value>' % ''.join(map(to_xml, value))


_WIRE = {
    str: _text,
    int: lambda value: '<value>%d</value>' % value,
    bool: lambda value: '<value><boolean>%d</boolean></value>' % value,
    float: lambda value: '<value><double>%.16g</double></value>' % value,
    dict: _struct,
    list: _array,
    tuple: _array,
    xmlrpc.client.DateTime: lambda value: (
        '<value><dateTime.iso8601>%s</dateTime.iso8601></value>' % value.value),
}


def to_xml(value):
    """A value on the wire: structs, arrays, booleans, doubles, dates; all else bare text."""
    return _WIRE[type(value)](value)
