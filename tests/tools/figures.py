"""Figures: how many faults the tests injected, and how many invariants they checked after them.

Every test process appends to the file that the environment names, if it names one; the runner
adds up.
"""

import collections
import contextlib
import json
import os

FILE = 'VMBACKUP_TEST_FIGURES'


def add(kind, faults=0, checks=0):
    """Count faults of a kind, and invariants checked after them."""
    path = os.environ.get(FILE)
    if path:
        with open(path, 'ab', buffering=0) as file:     # one write: others append, too
            file.write(json.dumps([kind, faults, checks]).encode('ascii') + b'\n')


def read(path):
    """{kind: (faults, checks)} of a file, in the order of kinds; empty where there is none."""
    sums = collections.defaultdict(lambda: (0, 0))
    with contextlib.suppress(FileNotFoundError), open(path, encoding='ascii') as file:
        for kind, faults, checks in map(json.loads, file):
            sums[kind] = (sums[kind][0] + faults, sums[kind][1] + checks)
    return dict(sorted(sums.items()))


def table(sums):
    """The lines of a table of such sums, the last one for all of them; none where all is none."""
    if not sums:
        return []
    rows = [(kind,) + sums[kind] for kind in sums]
    rows.append(('in all',) + tuple(sum(row[column] for row in rows) for column in (1, 2)))
    width = max(len(row[0]) for row in rows)
    head = '%-*s  %8s  %8s' % (width, 'kind of fault', 'injected', 'checked')
    return [head] + ['%-*s  %8d  %8d' % ((width,) + row) for row in rows]
