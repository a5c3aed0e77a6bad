"""Signals: SIGTERM, SIGINT and SIGHUP end a run, and nothing is left in the pool; what hangs is
given up, and a second one ends all at once."""

import os
import re
import signal
import socket
import threading
import time

from tests.tools.processes import read_proc
from tests.tools.support import LIMIT, SMALL, PoolCase

# A prelude: from when a file is there, storage hangs for paths with a text in them, heedless of
# signals, as in the kernel; another file tells of it.
HANG = """
import os, signal, time, VmBackup
def hanging(real, begin=os.open):
    def operation(*words, **more):
        path = words[0] if words and isinstance(words[0], (str, bytes)) else ''
        if %r in os.fsdecode(path) and os.access(%r, os.F_OK):
            os.close(begin(%r, os.O_CREAT))
            signal.pthread_sigmask(signal.SIG_BLOCK, list(signal.Signals))
            time.sleep(300)
        return real(*words, **more)
    return operation
for name in ('open', 'stat', 'lstat', 'listdir', 'scandir', 'mkdir', 'statvfs', 'rename'):
    setattr(os, name, hanging(getattr(os, name)))
VmBackup.open = hanging(open)
"""


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
                self.assertIn('ERROR ended by signal %d (SIG' % signum, done.output)
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

    def test_two_signals_at_a_time_as_timeout_sends_are_one(self):
        self.script = self.changed_script(TOGETHER=LIMIT)
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


COMMANDS = [('run.cfg', word) for word in ('check-config', 'test-mail', 'status', 'list')] + [
    ('BACKUPS', word) for word in (
        'list', 'verify', 'prune', 'status', 'restore=web', 'test-restore=web')]
CALLS = [(name, parallel) for parallel in (1, 2) for name in (
    'session.login_with_password', 'VM.get_all_records', 'VM.get_record', 'vm-export',
    'vm-snapshot', 'template-param-set', 'vm-uninstall', 'session.logout')]
BRIEF = dict(SIGNAL_GRACE=0.5, CUT_GRACE=1.5, LOGIN_GRACE=0.2, REAP_TIMEOUT=1, TOGETHER=0)
ENDLESS = dict(SIGNAL_GRACE=9000, CUT_GRACE=9000, LOGIN_GRACE=9000, TOGETHER=0)


class Hanging(PoolCase):
    """Whatever it hangs in, a signal ends it, and a second one does so at once."""

    pool_description = SMALL
    leaves_things_behind = True        # which the next run removes, see assert_recovered

    def storage(self, text, *words, at=None):
        """Start the script; from the start, or from a call to the pool on, storage hangs."""
        self.prelude = HANG % (text, self.at('now'), self.at('hangs'))
        if at:
            self.at_call(at, lambda: self.put_file('now'))
        else:
            self.put_file('now')
        child = self.start(*words)
        self.addCleanup(child.kill)
        self.wait_for(lambda: os.path.exists(self.at('hangs')))
        return child

    def call(self, name, nth, *words):
        """Start the script; a call to the pool is never answered."""
        self.fault(name, 'hang', nth=nth)
        return self.start_until(name, nth, *words)

    def assert_recovered(self):
        """The next run finds its way, and leaves nothing."""
        self.sim.pool.faults.clear()
        self.sim.restart()
        self.sim.pool.tables['session'].clear()
        self.prelude, self.script = '', type(self).script
        self.assertLess(self.ends(0, 'vm-export=web').status, 2)
        self.assert_clean()

    def each(self, cases, constants, work):
        """Do the work for each case."""
        for case in cases:
            with self.subTest(case):
                self.setUp()
                self.script = self.changed_script(**constants)
                work(*case)

    def ended(self, child, *statuses):
        child.send_signal(signal.SIGTERM)
        done = self.finish(child)
        self.assertIn(done.status, statuses or [143], done.output)
        self.assertNotIn('Traceback', done.output)
        if not statuses or 3 in statuses:
            self.assertIn('ended by signal 15 (SIGTERM)', done.output)
        return done

    def hang_in_a_command(self, place, word):
        os.mkdir(os.path.join(self.backups, 'web'))
        config = self.config('vm-export=web', mail_to='x@example.org')
        words = [word, config] if '=' not in word else ['password', word, 'from=' + config]
        return self.storage(place, *words)

    def test_storage_that_hangs_holds_no_command(self):
        self.each(COMMANDS, BRIEF, lambda place, word: self.ended(
            self.hang_in_a_command(place, word), 3 if word == 'status' else 143))

    def hang_in_a_run(self, at):
        return self.storage('BACKUPS', 'password', self.config('vm-export=web'), at=at)

    def test_storage_that_hangs_in_mid_run_holds_no_run(self):
        def end(at):
            self.ended(self.hang_in_a_run(at))
            self.assert_recovered()
        for at in (None, 'VM.get_record', 'vm-snapshot', 'vm-uninstall'):
            self.each([(at,)], BRIEF, end)

    def hang_in_a_call(self, name, parallel):
        return self.call(name, 1, 'password', self.config('vm-export=web', parallel=parallel))

    def test_a_pool_that_never_answers_holds_no_run(self):
        def end(name, parallel):
            done = [0] if name == 'session.logout' else []
            self.ended(self.hang_in_a_call(name, parallel), 143, *done)
            self.assertRegex(self.status()[-1], '^vmbackup.py,end,(ERROR|SUCCESS),S:. W:0 E:.$')
            ends = [line for line in self.status() if line.startswith('vm-export,end,')]
            if (name, parallel) != ('VM.get_record', 2):       # that of a thread in XenAPI is lost
                self.assertEqual(self.status().count('vm-export,begin,web'), len(ends))
            self.assert_recovered()
        self.each(CALLS, BRIEF, end)

    def end_twice(self, hang, case):
        """The second of many signals ends what hangs; all that it has started is gone, too."""
        child = hang(*case)
        while child.poll() is None:
            child.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        done = self.assert_ends(143, self.finish(child))
        self.assertEqual('ERROR ended by signal 15 (SIGTERM)', done.lines[-1].partition(':')[0])
        self.wait_for(lambda: not self.sim.is_busy)
        self.assert_recovered()

    def test_a_second_signal_ends_it_at_once(self):
        for hang, cases in ((self.hang_in_a_command, [('run.cfg', 'list')]),
                            (self.hang_in_a_run, [('vm-snapshot',), ('vm-uninstall',)]),
                            (self.hang_in_a_call, CALLS[2:3] + CALLS[4:7] + CALLS[12:15]),
                            (self.hang_in_a_hook, [('job-end',)])):
            self.each([(hang, case) for case in cases], ENDLESS, self.end_twice)

    def hang_in_a_hook(self, phase):
        hook = self.program('hook', 'trap "" TERM; [ $1 != %s ] || { echo $$ >hook-pid; '
                            'while :; do sleep 0.05; done; }' % phase)
        child = self.start('password', self.config('vm-export=web', hook=hook))
        self.wait_for(lambda: os.path.exists(self.at('hook-pid')) and self.read('hook-pid'))
        return child

    def test_a_hook_that_ends_something_has_its_time_after_a_signal_and_no_more(self):
        def end(phase, *results):
            self.ended(self.hang_in_a_hook(phase))
            self.assertEqual(b'', read_proc(int(self.read('hook-pid')), 'cmdline'))
            self.assertEqual(['vm-export,end,' + results[0], 'vmbackup.py,end,ERROR,' + results[1]],
                             self.status()[-2:])
        self.each([('backup-end', 'INTERRUPTED web', 'S:0 W:0 E:1'),
                   ('job-end', 'SUCCESS web,elapse:0 size:0G', 'S:1 W:0 E:0')], BRIEF, end)

    def test_a_mail_server_that_never_answers_holds_nobody(self):
        self.script = self.changed_script(**BRIEF)
        with socket.socket() as server:
            server.bind(('127.0.0.1', 0))
            server.listen(5)
            config = self.config('vm-export=web', mail_to='x@example.org',
                                 mail_smtp_server='127.0.0.1',
                                 mail_smtp_port=server.getsockname()[1])
            for words in (['password', config], ['test-mail', config]):
                child = self.start(*words)
                with server.accept()[0]:
                    self.ended(child)
        self.assertEqual('vmbackup.py,end,SUCCESS,S:1 W:0 E:0', self.status()[-1])
        self.assert_clean()

    def test_an_output_that_nobody_reads_holds_nobody(self):
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        with open(reading, 'rb'), open(writing, 'wb', 0) as stream:
            while stream.write(bytes(1 << 12)):
                pass
            os.set_blocking(writing, True)
            child = self.start_with(['help'], stdout=stream)
            self.wait_for(lambda: re.search(b'SigBlk:.*[4-7]...$', read_proc(child.pid, 'status'),
                                            re.MULTILINE))
            child.send_signal(signal.SIGTERM)
            self.assertEqual(143, child.wait(LIMIT))
