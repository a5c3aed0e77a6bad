"""Signals: SIGTERM, SIGINT and SIGHUP end a run, and nothing is left in the pool."""

import os
import signal
import unittest

from tests.tools.support import PoolCase

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals(PoolCase):
    """A signal in the midst of a run."""

    def signalled_in(self, verb, nth, signum, *lines):
        """Run until the nth call of an xe verb is under way, send a signal, see it end."""
        child = self.start('password', self.config(*lines))
        self.wait_for(lambda: [name for name, _ in self.xe_calls()].count(verb) >= nth)
        child.send_signal(signum)
        return self.finish(child)

    def test_a_signal_in_mid_export_ends_it_and_removes_the_snapshot(self):
        for signum in SIGNALS:
            for method in ('vm-export', 'vdi-export'):
                with self.subTest((signum, method)):
                    self.setUp()
                    nth = 2 if method == 'vm-export' else 1
                    self.sim.pool.faults.add(method, 'slow', nth=nth, rate=50000)
                    done = self.signalled_in(method, nth, signum, method + '=web',
                                             method + '=db')
                    self.assertEqual(128 + signum, done.status, done.output)
                    self.wait_for(lambda: not self.contents()['task'])
                    self.assert_clean()
                    self.assertIn(method + ',end,INTERRUPTED web', self.status())
                    self.assertIn('vmbackup.py,end,ERROR,S:0 W:0 E:1', self.status())
                    self.assertNotIn(method + ',begin,db', self.status())
                    self.assertIn('ERROR ended by signal %d' % signum, done.lines)
                    self.assertFalse(any('success' in path for path in self.tree()))

    def test_a_signal_while_the_snapshot_is_made_waits_for_it_and_removes_it(self):
        for method in ('vm', 'vdi'):
            with self.subTest(method):
                self.setUp()
                self.sim.pool.faults.add(method + '-snapshot', 'slow', seconds=0.5)
                done = self.signalled_in(method + '-snapshot', 1, signal.SIGTERM,
                                         method + '-export=web')
                self.assertEqual(143, done.status, done.output)
                self.assert_clean()
                self.assertNotIn('success', ' '.join(self.tree()))

    def test_a_metadata_export_that_hangs_is_ended(self):
        self.sim.pool.faults.add('vm-export', 'hang')
        done = self.signalled_in('vm-export', 1, signal.SIGTERM, 'vm-export=web')
        self.assertEqual(143, done.status, done.output)
        self.assertIn('vm-export,end,INTERRUPTED web', self.status())
        self.assertNotIn('vm-snapshot', self.verbs())

    def test_a_second_signal_does_not_break_the_cleanup(self):
        self.sim.pool.faults.add('vm-export', 'slow', nth=2, rate=50000)
        self.sim.pool.faults.add('vm-uninstall', 'slow', seconds=0.5)
        child = self.start('password', self.config('vm-export=web'))
        self.wait_for(lambda: [name for name, _ in self.xe_calls()].count('vm-export') >= 2)
        child.send_signal(signal.SIGINT)
        self.wait_for(lambda: 'vm-uninstall' in [name for name, _ in self.xe_calls()])
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGINT)
        done = self.finish(child)
        self.assertEqual(130, done.status, done.output)
        self.wait_for(lambda: not self.contents()['task'])
        self.assert_clean()

    def test_a_signal_between_two_vms_ends_the_run_before_the_second(self):
        self.sim.pool.faults.add('vm-uninstall', 'slow', seconds=0.5)
        done = self.signalled_in('vm-uninstall', 1, signal.SIGTERM, 'verify=no',
                                 'vm-export=web', 'vm-export=db')
        self.assertEqual(143, done.status)
        self.assertIn('vm-export,end,SUCCESS web,elapse:0 size:0G', self.status())
        self.assertNotIn('vm-export,begin,db', self.status())

    def test_a_signal_before_the_first_vm_ends_the_run_at_once(self):
        self.sim.pool.faults.add('VM.get_all_records', 'hang')
        child = self.start('password', self.config('vm-export=web'))
        self.wait_for(lambda: any(call.name == 'VM.get_all_records' for call in self.sim.calls()))
        child.send_signal(signal.SIGTERM)
        done = self.finish(child)
        self.assertEqual(143, done.status, done.output)
        self.assertEqual(['vmbackup.py,begin', 'vmbackup.py,end,ERROR,S:0 W:0 E:0'],
                         self.status())

    def test_a_preview_can_be_interrupted(self):
        self.sim.pool.faults.add('VM.get_all_records', 'hang')
        child = self.start('password', self.config('vm-export=web'), 'preview')
        self.wait_for(lambda: any(call.name == 'VM.get_all_records' for call in self.sim.calls()))
        child.send_signal(signal.SIGINT)
        done = self.finish(child)
        self.assertEqual(130, done.status, done.output)
        self.assertNotIn('Traceback', done.output)

    def test_what_was_ignored_stays_ignored(self):
        previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            self.sim.pool.faults.add('vm-export', 'slow', nth=2, seconds=0.5)
            done = self.signalled_in('vm-export', 2, signal.SIGHUP, 'vm-export=web')
        finally:
            signal.signal(signal.SIGHUP, previous)
        self.assertEqual(0, done.status, done.output)

    def test_a_run_that_was_killed_is_cleaned_up_by_the_next(self):
        for method in ('vm-export', 'vdi-export'):
            with self.subTest(method):
                self.setUp()
                nth = 2 if method == 'vm-export' else 1
                self.sim.pool.faults.add(method, 'slow', nth=nth, rate=2000000)
                child = self.start('password', self.config(method + '=web'))
                self.wait_for(lambda: [name for name, _ in self.xe_calls()].count(method) >= nth)
                os.kill(child.pid, signal.SIGKILL)
                child.communicate()
                self.wait_for(lambda: not self.contents()['task'])     # its xe lives on
                self.assertNotEqual(self.before['VDI'], self.contents()['VDI'])
                self.sim.pool.tables['session'].clear()        # xapi's own time-out: a day
                done = self.back_up(method + '=web')
                self.assertEqual(0, done.status, done.output)
                self.assertIn('removing the snapshot of an unfinished backup', done.output)
                self.assert_clean()
                self.assertEqual(1, len(self.dated('web')))


if __name__ == '__main__':
    unittest.main()
