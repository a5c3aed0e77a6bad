"""Two runs at once, on the same VMs and on different ones: neither spoils the other's work."""

import contextlib
import os
import random
import re
import threading
import time

from tests.faults.faulting import FaultCase, sample, seed
from tests.tools.support import LIMIT, Journal

LOCKED = 'VM-LOCKED'


class TwoRuns(FaultCase):
    """What the tests below share: a second config, and what is asked after both runs."""

    def setUp(self):
        super().setUp()
        self.chance = random.Random('two runs:' + seed())
        self.prepare()

    def start_one(self, number, *rules, **keys):
        self.status_log = self.log_of(number)
        path = self.config(*(rules or self.rules), **dict(
            {'max_backups': self.max_backups}, **dict(self.keys, **keys)))
        own = self.at('run-%d.cfg' % number)
        os.rename(path, own)
        self.put(self.status_log, b'')
        return self.start('password', own)

    def log_of(self, number):
        return self.at('logs', 'status-%d.log' % number)

    def told(self, number):
        return self.read(self.log_of(number))

    def outcomes(self, number):
        ends = re.findall(',v(?:m|di)-export,[^,]*,end,([A-Z-]+) (\\w+)', self.told(number))
        return {vm: word for word, vm in ends}

    def side_by_side(self, offset, first, second):
        self.remember()
        before = self.named()
        children = [self.start_one(1, *first)]
        time.sleep(offset)
        children.append(self.start_one(2, *second))
        self.backups_before = before
        return [self.finish(child) for child in children]

    def check_both(self, runs):
        """The invariants after both. Each run's end is told in its own log."""
        both = '\n'.join('-- run %d\n%s' % pair for pair in enumerate(
            (done.output for done in runs), 1))
        for number, done in enumerate(runs, 1):
            self.assertNotIn('Traceback', done.output)
            words = self.outcomes(number)
            good = [vm for vm in words if words[vm] in ('SUCCESS', 'WARNING')]
            self.assertEqual(done.status in (0, 1), len(good) == len(words), both)
            self.assertLessEqual(set(words.values()), {'SUCCESS', 'WARNING', LOCKED}, both)
            self.assertIn(['SUCCESS', 'WARNING', 'ERROR'][done.status],
                          self.told(number).splitlines()[-1], both)
        self.check(None, settled=True)
        return both

    def offsets(self):
        """Seconds after which the second run starts, at most a whole run's time."""
        began = time.monotonic()
        self.assertIn(self.backup().status, (0, 1))
        whole = time.monotonic() - began
        return sample([self.chance.uniform(0, whole) for _ in range(20)], 1)


class SideBySide(TwoRuns):
    """The one starts a while after the other."""

    def go(self, second, most):
        """The second has these rules, the first has the others, if any. A run ends with this
        status at most, and each VM is backed up."""
        first = [rule for rule in self.rules if rule not in second] or self.rules
        for offset in self.offsets():
            with self.subTest(offset):
                self.injected('a second run %.3f s later' % offset)
                runs = self.side_by_side(offset, first, second)
                both = self.check_both(runs)
                for vm in self.configured():
                    words = [self.outcomes(number).get(vm) for number in (1, 2)]
                    self.assertTrue({'SUCCESS', 'WARNING'} & set(words), both)
                self.assertEqual([], [done for done in runs if done.status > most], both)
                self.assertEqual(set(self.configured()), self.renewed(self.good()), both)

    def test_on_the_same_vms_each_is_backed_up_by_one_of_them_at_least(self):
        self.kind = 'two runs, the same VMs'
        self.go(self.rules, 2)

    def test_on_different_vms_both_succeed(self):
        self.kind = 'two runs, different VMs'
        self.go(self.rules[1:], 1)


class Busy(TwoRuns):
    """The one run waits in the midst of an export when the other comes."""

    kind = 'a run that finds another'

    @contextlib.contextmanager
    def exporting(self):
        """A run whose export of web comes to its end when this one does."""
        self.remember()
        come, go = threading.Event(), threading.Event()

        def wait(_, call):
            if call.name == 'vm-export' and not call.args[0].startswith('metadata') and (
                    not come.is_set()):
                come.set()
                go.wait(LIMIT)
        self.sim.pool.journal = Journal(wait)
        child = self.start_one(1, 'vm-export=web')
        try:
            self.wait_for(come.is_set, 'an export')
            yield child
        finally:
            go.set()

    def test_it_reports_the_lock_and_touches_nothing_of_that_vm(self):
        self.injected('another run exports the VM')
        with self.exporting() as child:
            before = sorted(os.listdir(os.path.join(self.backups, 'web')))
            second = self.finish(self.start_one(2, 'vm-export=web', self.rules[2]))
            self.assertIsNone(child.poll(), second.output)
        self.assertEqual(before, sorted(os.listdir(os.path.join(self.backups, 'web'))))
        self.assertEqual(2, second.status, second.output)
        self.assertEqual(LOCKED, self.outcomes(2)['web'])
        self.assertIn('ERROR vm-export VM-LOCKED web: locked by another run (see lock_wait)',
                      second.lines)
        self.assertIn(self.outcomes(2)['app'], ('SUCCESS', 'WARNING'))
        first = self.finish(child)
        self.check_both([first, second])
        self.assertIn(first.status, (0, 1), first.output)

    def waiting(self, words):
        self.injected('another run exports the VM, ' + words)
        second = self.start_one(2, 'vm-export=web', lock_wait=1)
        self.wait_for(lambda: ',begin,web' in self.told(2))
        return second

    def test_with_lock_wait_it_waits_and_succeeds(self):
        with self.exporting() as child:
            second = self.waiting('lock_wait=1')
        runs = [self.finish(child), self.finish(second)]
        self.check_both(runs)
        for done in runs:
            self.assertIn(done.status, (0, 1), done.output)

    def test_a_signal_ends_the_wait(self):
        with self.exporting() as child:
            self.signalled(self.waiting('SIGTERM meanwhile'))
        first = self.finish(child)
        self.assertIn(first.status, (0, 1), first.output)
        self.check(None, settled=True)
