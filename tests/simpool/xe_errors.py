"""How xe words a failure of the API (xapi: ocaml/idl/datamodel_errors.ml, cli_util.ml).

A code that the data model documents, in xe_errors.txt, is printed as its sentence and a line per
parameter, any other (every SR_BACKEND_FAILURE_n, CLIENT_ERROR, VDI_IO_ERROR, ...) as the code and
the parameters.
"""
from .xe_records import table

ERRORS = {}         # code -> (sentence, labels)
for _head, _lines in table('xe_errors.txt').items():
    _code, _, _labels = _head.partition(': ')
    ERRORS[_code] = ' '.join(_lines), _labels.split(', ') if _labels else []


def documented(code, parameters, version):
    """(sentence, lines 'label: value') of a documented code, else None. `version` is xapi's,
    'major.minor': a newer one names four parameters of OTHER_OPERATION_IN_PROGRESS (25.27)."""
    if code not in ERRORS:
        return None
    sentence, names = ERRORS[code]
    if code == 'OTHER_OPERATION_IN_PROGRESS' and tuple(map(int, version.split('.')[:2])) < (25, 27):
        names = names[:2]
    lines = ['%s: %s' % pair for pair in zip(names, parameters)]
    lines += ['%s: <unknown>' % name for name in names[len(parameters):]]
    lines += ['<extra>: %s' % value for value in parameters[len(names):]]
    return sentence, lines
