"""What 3.25 did wrong or otherwise: each difference is held by tests.

differences.txt beside this file has them all, and below each one, indented, the tests by their
ids below tests/. Of those that an administrator meets it has only the first cell of the README's
row; of the others all three cells: what 3.25 did, what is so now, and why.
"""

import importlib
import unittest
from pathlib import Path

from tests.papers.test_readme import section, table


def entries():
    """[(3.25, now, why), the tests that hold it]; now and why are '' where the README has them."""
    found = []
    for line in Path(__file__).with_name('differences.txt').read_text('utf-8').splitlines():
        if line.startswith(' '):
            found[-1][1].append(line.strip())
        else:
            cells = line.split(' | ')
            found.append((tuple(cells if len(cells) > 1 else [line, '', '']), []))
    return found


class Differences(unittest.TestCase):
    """The README's table, the others, and the tests of each."""

    maxDiff = None

    def test_every_row_of_the_readme_has_its_entry_and_the_others_are_whole(self):
        rows = table(section('Differences from 3.25'))
        self.assertTrue(35 <= len(rows) <= 45, len(rows))
        self.assertEqual({3}, {len(row) for row in rows})
        cells = [each for each, _ in entries()]
        self.assertEqual({3}, {len(each) for each in cells})
        self.assertEqual([row[0] for row in rows], [was for was, now, _ in cells if not now])
        self.assertEqual(len(cells), len({was for was, _, _ in cells}))

    def test_every_entry_names_tests_that_exist(self):
        for words, names in entries():
            self.assertTrue(names, words)
            for name in names:
                with self.subTest(name):
                    module, group, test = name.rsplit('.', 2)
                    case = getattr(importlib.import_module('tests.' + module), group)
                    self.assertTrue(issubclass(case, unittest.TestCase))
                    self.assertTrue(test.startswith('test_') and hasattr(case, test))
