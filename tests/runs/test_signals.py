"""Signals: SIGTERM, SIGINT and SIGHUP end a run, and nothing is left in the pool."""

import signal
import threading

from tests.tools.support import LIMIT, SMALL, PoolCase


class Signals(PoolCase):
    pool_description = SMALL

    def signalled_in(self, verb, nth, signum, *lines):
        """Send a run a signal when the nth call of an xe verb comes, before the pool acts."""
        started = threading.Event()
        self.at_call(verb, lambda: started.wait(LIMIT) and child.send_signal(signum), nth)
        child = self.start('password', self.config(*lines))
        started.set()
        return self.assert_ends(128 + signum, self.finish(child))

    def test_a_signal_in_mid_export_ends_it_and_removes_the_snapshot(self):
        for signum, method, nth in ((signal.SIGTERM, 'vm-export', 2),
                                    (signal.SIGINT, 'vdi-export', 1),
                                    (signal.SIGHUP, 'vm-export', 2)):
            with self.subTest((signum, method)):
                self.setUp()
                self.fault(method, 'stall', nth=nth, after=1000)
                done = self.signalled_in(method, nth, signum, method + '=web', method + '=db')
                self.assert_clean()
                self.assert_told(method + ',end,INTERRUPTED web',
                                 'vmbackup.py,end,ERROR,S:0 W:0 E:1')
                self.assertNotIn(method + ',begin,db', self.status())
                self.assertIn('ERROR ended by signal %d' % signum, done.lines)
                self.assertFalse(any('success' in path for path in self.tree()))

    def test_a_signal_while_the_snapshot_is_made_waits_for_it_and_removes_it(self):
        for method in ('vm', 'vdi'):
            with self.subTest(method):
                self.setUp()
                self.signalled_in(method + '-snapshot', 1, signal.SIGTERM, method + '-export=web')
                self.assert_clean()
                self.assertNotIn('success', ' '.join(self.tree()))

    def test_a_metadata_export_that_hangs_is_ended(self):
        self.fault('vm-export', 'hang')
        self.signalled_in('vm-export', 1, signal.SIGTERM, 'vm-export=web')
        self.assertIn('vm-export,end,INTERRUPTED web', self.status())
        self.assertNotIn('vm-snapshot', self.verbs())

    def test_a_second_signal_does_not_break_the_cleanup(self):
        self.fault('vm-export', 'stall', nth=2, after=1000)
        self.fault('vm-uninstall', 'slow', seconds=0.3)
        child = self.start_until('vm-export', 2, 'password', self.config('vm-export=web'))
        child.send_signal(signal.SIGINT)
        self.wait_for_call('vm-uninstall')
        child.send_signal(signal.SIGTERM)
        self.signalled(child, signal.SIGINT)
        self.assert_clean()

    def test_a_signal_between_two_vms_ends_the_run_before_the_second(self):
        self.signalled_in('vm-uninstall', 1, signal.SIGTERM, 'verify=no', 'vm-export=web',
                          'vm-export=db')
        self.assertIn('vm-export,end,SUCCESS web,elapse:0 size:0G', self.status())
        self.assertNotIn('vm-export,begin,db', self.status())

    def test_a_signal_before_the_first_vm_ends_run_and_preview_at_once(self):
        for nth, words in ((1, []), (2, ['preview'])):
            self.fault('VM.get_all_records', 'hang')
            self.signalled(self.start_until('VM.get_all_records', nth, 'password',
                                            self.config('vm-export=web'), *words))
            self.assertEqual(['vmbackup.py,begin', 'vmbackup.py,end,ERROR,S:0 W:0 E:0'],
                             self.status())            # nothing of the preview

    def test_what_was_ignored_stays_ignored(self):
        previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            self.fault('vm-export', 'slow', nth=2, seconds=0.3)
            child = self.start_until('vm-export', 2, 'password', self.config('vm-export=web'))
            child.send_signal(signal.SIGHUP)
            self.assert_ends(0, self.finish(child))
        finally:
            signal.signal(signal.SIGHUP, previous)
