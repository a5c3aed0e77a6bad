"""XML-RPC and JSON-RPC as xapi spells them: in XML, strings and integers are bare.

Sources: ocaml-rpc: src/lib/xmlrpc.ml, jsonrpc.ml; xapi: ocaml/xapi/api_server.ml.
"""

import json
import xmlrpc.client
from functools import lru_cache

from .database import INTEGER, TEMPLATES

NUMBERED = ('userdevice', 'device')     # fields of text that look like integers

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


def from_json(body):
    """(id, method, parameters) of a call of JSON-RPC 2.0; ValueError if it is none."""
    call = json.loads(body.decode('utf-8'))
    if not isinstance(call, dict) or call.get('jsonrpc') != '2.0':
        raise ValueError('version 1 is not simulated')
    ident, method, params = call.get('id'), call.get('method'), call.get('params')
    if type(ident) not in (int, str) or type(method) is not str or type(params) is not list:
        raise ValueError('malformed')
    return ident, method, params


def to_json(ident, method, answer):
    """The answer to a call of JSON-RPC 2.0: its value, or the error's code and parameters."""
    if isinstance(answer, dict) and answer['Status'] == 'Failure':
        code, *parameters = answer['ErrorDescription']
        outcome = {'error': {'code': 1, 'message': code, 'data': parameters}}
    else:
        value = answer if isinstance(answer, list) else _typed(method, answer['Value'])
        outcome = {'result': value}
    return json.dumps(dict({'jsonrpc': '2.0'}, **outcome, id=ident), ensure_ascii=False,
                      separators=(',', ':'), default=lambda date: date.value).encode('utf-8')


def _typed(method, value):
    """The value of a getter, with numbers where its fields are integers."""
    cls, _, verb = method.partition('.')
    template = TEMPLATES.get(cls, {})

    def number(name, field):
        kept = template.get(name)
        is_number = isinstance(kept, str) and INTEGER.match(kept) and name not in NUMBERED
        return int(field) if is_number else field
    if verb == 'get_record':
        return {name: number(name, field) for name, field in value.items()}
    if verb.startswith('get_all_records'):
        return {ref: {name: number(name, field) for name, field in record.items()}
                for ref, record in value.items()}
    return number(verb[len('get_'):], value) if verb.startswith('get_') else value
