"""Excludes, with which 3.25 left VMs out by accident, or told of it as if something were wrong."""

import unittest

from tests.rules.test_selection import select


class Excludes(unittest.TestCase):
    """What an exclude line does, and what is said of it."""

    def test_one_may_stand_below_the_lines_that_it_concerns(self):
        for lines in (['vm-export=.*', 'exclude=we.*'], ['exclude=we.*', 'vm-export=.*']):
            plan = select(lines, 'web', 'db')
            self.assertEqual(['db'], [job.vm.name for job in plan.jobs])

    def test_one_of_a_vm_that_is_chosen_by_name_is_a_note(self):
        plan = select(['vm-export=db', 'vm-export=web', 'exclude=web'], 'web', 'db')
        self.assertEqual(['***NOTE - forcing exclude of: web'], list(plan.messages))
        self.assertEqual((False, (), ()), (plan.warnings, plan.failures, plan.errors))

    def test_all_that_a_dot_catches_is_shown(self):
        names = ('db1.example.com', 'db1.example.com-replica', 'db1xexample.com')
        for line, excluded in (('exclude=db1.example.com', names),
                               (r'exclude=db1\.example\.com$', names[:1])):
            plan = select(['vm-export=.*', line], 'web', *names)
            self.assertEqual(excluded, tuple(sorted(plan.excluded)))
