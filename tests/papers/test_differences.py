"""What 3.25 did wrong or otherwise: each row of the README's table is held by tests.

differences.txt beside this file names them: what 3.25 did, as in the first cell of the README's
row, and below it, indented, the tests by their ids below tests/.
"""

import importlib
import unittest
from pathlib import Path

from tests.papers.test_readme import section, table


def entries():
    """[(what 3.25 did, the tests that hold the difference)]."""
    found = []
    for line in Path(__file__).with_name('differences.txt').read_text('utf-8').splitlines():
        if line.startswith(' '):
            found[-1][1].append(line.strip())
        else:
            found.append((line, []))
    return found


class Differences(unittest.TestCase):
    """The README's table, and the tests of each row."""

    maxDiff = None

    def test_every_row_has_its_entry_and_no_entry_is_left_over(self):
        rows = table(section('Differences from 3.25'))
        self.assertGreater(len(rows), 40)
        self.assertEqual({3}, {len(row) for row in rows})
        self.assertEqual([row[0] for row in rows], [words for words, _ in entries()])
        self.assertNotIn('<!--', ''.join(sum(rows, [])))

    def test_every_entry_names_tests_that_exist(self):
        for words, names in entries():
            self.assertTrue(names, 'no test: ' + words)
            for name in names:
                with self.subTest(name):
                    module, group, test = name.rsplit('.', 2)
                    case = getattr(importlib.import_module('tests.' + module), group)
                    self.assertTrue(issubclass(case, unittest.TestCase))
                    self.assertTrue(test.startswith('test_') and hasattr(case, test))
