"""The fault matrix of `stream`: at every call to the pool and every file operation it is killed or
ended, and the daemon dies. Afterwards the invariants hold (after the next night, where it was
killed), and it has said 0 only where it has sent a whole archive."""

import os
import signal
import subprocess

from tests.faults.faulting import RECORD, LaunchedCase, MatrixCase, read, sampled, variants
from tests.simpool import archive
from tests.tools.support import LIMIT, Done


class StreamFaults(MatrixCase):
    constants = dict(DISCARD_PAUSES=(0.1, 0.2, 0.4), SNAPSHOT_PAUSES=(0.1, 0.2, 0.4),
                     XAPI_PATIENCE=6)
    rules = ('vm-export=web',)
    recorded = True                     # in backup_dir; else beside this host's notes

    def begin(self):
        self.begin_run()
        origin = ('from=' + self.config_path(),) if self.recorded else ()
        with open(self.at('sent'), 'wb') as sent:
            return self.start_with(('stream', 'web') + origin, dict(
                VMBACKUP_XAPI_URL=self.sim.unix_url), stdout=sent, stderr=subprocess.PIPE)

    def finish(self, child):
        if child.stdout:
            return super().finish(child)
        _, told = child.communicate(timeout=LIMIT)
        done = Done(child.returncode, told.decode('utf-8'))
        self.assertNotIn('Traceback', done.output, self.what)
        if done.status == 0:
            self.assert_whole()
        return done

    def assert_whole(self):
        """What was sent is the archive of the VM."""
        tables = self.sim.pool.tables
        web = tables['VM'][self.sim.pool.ref_of('VM', self.uuid_of('web'))]
        disks = [self.sim.pool.content[tables['VBD'][vbd]['VDI']] for vbd in web['VBDs']]
        with open(self.at('sent'), 'rb') as stream:
            self.assertEqual(disks, list(archive.read_xva(stream).disks.values()), self.what)

    def open_records(self):
        """Those beside the notes, too."""
        return {os.path.join(directory, RECORD): read(os.path.join(directory, RECORD)).decode()
                for place in (self.backups, self.environ()['VMBACKUP_STATE'])
                for directory, _, files in os.walk(place) if RECORD in files}

    def check_ended(self, done, killed):
        """The invariants, and those of a night after it, which removes what a kill left."""
        self.assertIn(done.status, (-signal.SIGKILL,) if killed else (143, 0, 1, 2), done.output)
        if killed:
            self.settle_pool()
        self.check(None, settled=not killed)
        self.check_the_next_run()
        self.assertEqual({}, self.open_records(), done.output)


class Ended(StreamFaults):
    ways = ('SIGKILL', 'SIGKILL of it and xe', 'SIGTERM')

    def test_a_stream_ended_at_any_call_leaves_nothing(self):
        calls = self.once(self.named_calls)
        self.each([(way,) + call for way in self.ways for call in calls], self.end)

    def end(self, point):
        way, call, _ = point
        self.injected('%s at call %d, %s' % point, 'stream: %s at a call to the pool' % way)
        killed = way != 'SIGTERM'
        done = self.run_at(call, lambda: self.kill(' and ' in way) if killed else
                           self.send(signal.SIGTERM))
        self.check_ended(done, killed)


globals().update(variants(Ended, EndedWithoutBackupDir=dict(recorded=False)))


class EndedAtFileOperations(LaunchedCase, StreamFaults):
    ways = ('SIGKILL', 'SIGTERM')

    def test_a_stream_ended_at_any_file_operation_leaves_nothing(self):
        moments = self.moments()
        self.each([(way,) + moment for way in self.ways for moment in moments], self.end)

    def end(self, point):
        way, number, when, _ = point
        self.injected('%s %s operation %d, %s' % (way, when, number, point[3]),
                      'stream: %s at a file operation' % way)
        done = self.launched(at=number, when=when, signals=[getattr(signal, way)])
        self.check_ended(done, way == 'SIGKILL')


class DaemonDies(StreamFaults):
    ways = ('down', 'down-after')

    def test_the_daemon_may_die_at_any_call(self):
        calls = self.once(self.named_calls)
        self.each([(way,) + call for way in self.ways for call in calls], self.die)

    def die(self, point):
        way, call, _ = point
        self.injected('%s at call %d, %s' % point, 'stream: the daemon dies at a call')
        self.sim.pool.faults.add('*', way, nth=call)
        done = self.run_with_an_outage()
        self.sim.pool.faults.clear()
        self.settle_pool()
        self.check(None, settled=False)
        self.check_the_next_run()
        self.assertIn(done.status, (0, 1, 2), done.output)


load_tests = sampled('.Ended.', 'EndedAtFileOperations.', others=1)
