"""The simulated pool against recordings of real toolstacks: recorded/, replayed by replay.py.

What differs stands in recorded/differences.txt, with a reason each. The list can only shrink: a
difference that it lacks fails, and a line that is not needed any more does, too.
"""
import os
import unittest

from .. import replay


class Recordings(unittest.TestCase):
    def assert_replayed(self, version):
        with open(os.path.join(replay.RECORDED, 'differences.txt'), encoding='utf-8') as file:
            expected = replay.Expected(file.read(), version)
        for name in replay.scenarios(version):
            odd = [each for each in replay.replay(version, name, expected)
                   if not expected.entry(each)]
            with self.subTest(name):
                self.assertFalse(odd, '%d differences:\n%s' % (
                    len(odd), '\n'.join(map(str, odd[:10]))))
        self.assertEqual([], expected.unused(), 'these differ no more')

    def test_xapi_25_33_2_answers_what_was_recorded(self):
        self.assert_replayed('25.33.2')

    def test_xapi_26_17_0_answers_what_was_recorded(self):
        self.assert_replayed('26.17.0')
