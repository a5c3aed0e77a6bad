"""The kill matrix: a run is ended at every single call to the pool and file operation, and the
pool's daemon dies at every call; afterwards the six invariants of faulting.py hold."""

import os
import signal
import time

from tests.faults.faulting import DELETING, FAILED, LOCKS, MANIFEST, MARKERS, RECORD, WRITE_TEST
from tests.faults.faulting import FaultCase, LaunchedCase, MatrixCase, began, sampled, variants
from tests.tools.support import LIMIT

FEW = ('vm-export=web', 'vdi-export=db')
PRE_CLEAN = {'pre_clean': 'True', 'pool_db_backup': 1, 'pool_db_max_backups': 1}
FOUR = FaultCase.rules + ('vm-export=other',)


class AtPoolCalls(MatrixCase):
    """A signal comes when a call comes in at the pool; the call itself goes on there."""

    rules = FaultCase.rules
    ways = ('SIGKILL', 'SIGTERM', 'SIGTERM, and more')
    constants = dict(TOGETHER=LIMIT)

    def test_a_run_ended_at_any_call_harms_nothing(self):
        calls = self.once(self.named_calls)
        self.each([(way, number) for way in self.ways for number, _ in calls], self.end)

    def end(self, point):
        way, call = point
        self.injected('%s at call %d' % point, way + ' at a call to the pool')
        if way.startswith('SIGKILL'):
            self.check_after_kill(self.run_at(call, lambda: self.kill(way != 'SIGKILL')))
        elif way == 'SIGTERM twice':
            self.check_after_kill(self.run_at(call, lambda: self.terminate(0, True)),
                                  (143, 130, 0))
        else:
            done = self.run_with(
                lambda number, _: self.terminate(number - call, way != 'SIGTERM'))
            if call == 1 and way != 'SIGTERM':
                self.settle_pool()      # a second signal does not wait for the answer to a login
            signals = [signal.SIGTERM]
            if way != 'SIGTERM':
                signals.append(signal.SIGINT)       # if both come before the first is seen
            self.check_after_signal(done, self.called == call, signals)

    def terminate(self, distance, further):
        if not distance or further and distance == 1:
            self.send(signal.SIGTERM)
        if not distance and further:
            time.sleep(0.005)
            self.send(signal.SIGINT)


class OverLeftovers(AtPoolCalls):
    """The same where an earlier run was killed in mid-export."""

    verb = 'vm-export'
    rules = FEW[:1]
    ways = ('SIGKILL',)

    def start_over(self):
        super().start_over()
        self.run_with(lambda _, call: call.name == self.verb and call.args[0] != 'metadata=true'
                      and self.send(signal.SIGKILL))
        self.settle_pool()
        self.assertTrue(self.extra(), 'the earlier run left nothing')


THREE_DISKS = {'vms': [
    {'name': 'web', 'disks': ['1 MiB']}, {'name': 'db', 'disks': ['1 MiB'], 'ran': True},
    {'name': 'app', 'ran': True, 'disks': [{'size': '1 MiB', 'fill': 1}, '1 MiB', '1 MiB']}]}
# The same where old backups go before the export, and the pool's database is dumped; while four
# VMs are at work; where all disks but one are exported, and compressed; where a copy of a disk has
# to be destroyed before a whole VM is exported.
globals().update(variants(
    AtPoolCalls,
    AtPoolCallsWithPreClean=dict(
        keys=PRE_CLEAN, rules=FEW, ways=('SIGKILL', 'SIGKILL of run and xe', 'SIGTERM')),
    AtPoolCallsSideBySide=dict(keys={'parallel': 4}, rules=FOUR),
    AtPoolCallsOfDisks=dict(
        keys={'vdi_disks': 'all', 'vdi_compress': 'gzip'}, pool_description=THREE_DISKS,
        rules=('vdi-export=app', 'exclude-disk=app/xvdc')),
    AtPoolCallsOfOldToolstack=dict(
        rules=('vm-export=app', 'exclude-disk=app/xvdc'),
        pool_description=dict(THREE_DISKS, xapi_version='21.3'))))
globals().update(variants(AtPoolCalls, EndedHardAtPoolCalls=dict(
    keys={'parallel': 2}, rules=FEW, ways=('SIGTERM twice',), constants=dict(TOGETHER=0))))
globals().update(variants(
    OverLeftovers, OverLeftoversOfDisks=dict(verb='vdi-export', rules=FEW[1:])))


class AtPoolCallsWithPeriods(AtPoolCalls):
    """The same where the newest backup of each year is kept besides."""

    keys = {'pre_clean': 'True', 'keep_last': 1, 'keep_yearly': 9}
    rules = FEW
    ways = ('SIGKILL', 'SIGTERM')

    def check_history(self, now, words):
        """1: the newest of each year stays, as does what is the newest of all; nothing changes."""
        for vm, backups in self.memory.good.items():
            there = {backup.key: backup for backup in now.get(vm, [])}
            for number, backup in enumerate(backups):
                if backup.key in there:
                    self.assertEqual(backup, there[backup.key], '1: a backup changed: ' + words)
                else:
                    newer = backups[number + 1:] + [each for each in there.values()
                                                    if each not in backups]
                    self.assertIn(began(backup)[:4], [began(each)[:4] for each in newer],
                                  '1: %s was the newest of its year: %s' % (backup.path, words))


class AtFileOperations(LaunchedCase):
    """SIGKILL comes before or after a file operation."""

    ways = ('SIGKILL',)

    def test_a_run_ended_at_any_file_operation_harms_nothing(self):
        self.operations_made = self.moments()
        self.each([(way,) + moment for way in self.ways for moment in self.operations_made],
                  self.end)

    def end(self, point):
        way, number, when, name = point
        self.injected('%s %s operation %d, %s' % (way, when, number, name),
                      way + ' at a file operation')
        done = self.launched(at=number, when=when, signals=[getattr(signal, way)])
        if way == 'SIGKILL':
            self.check_after_kill(done)
        else:
            # All is done but the record of the run's end, which is written from there on.
            end = self.operations_made[-1][0]
            record = [each[0] for each in self.operations_made
                      if each[2] == 'open in mount_points' and each[0] > end - 40]
            self.check_after_signal(done, last=number >= (record + [end])[0])


globals().update(variants(AtFileOperations, EndedAtFileOperations=dict(ways=('SIGTERM',))))


class AtFileOperationsSideBySide(AtFileOperations):
    """A signal comes then while four VMs are at work."""

    keys = {'parallel': 4}
    rules = FOUR
    ways = ('SIGKILL', 'SIGTERM')

    def moments(self):
        """Some of those of the same VMs one after another: what is done is the same, but nobody
        knows the order."""
        self.keys = {}
        found = super().moments()[::8]
        self.keys = type(self).keys
        return found


class AtFileOperationsWithPreClean(AtFileOperations):
    """The same where old backups go before the export, after failures, with a pool dump."""

    keys = PRE_CLEAN
    rules = FEW[:1]
    ways = ('SIGKILL', 'SIGTERM')

    def make_history(self):
        super().make_history()
        self.old_backup('web', 'backup-2020-01-01-(00:00:00)', 'vm.cfg', 'web.xva')
        self.old_backup('web', 'backup-2039-01-01-(00:00:00)', 'vm.cfg', 'web.xva')


class DaemonDies(MatrixCase):
    """The pool's daemon dies and comes back after a moment, while the run goes on."""

    rules = FaultCase.rules
    ways = {'down': 'the daemon dies at a call to the pool',
            'down-after': 'the daemon dies before it answers a call'}
    constants = dict(DISCARD_PAUSES=(0.1, 0.2, 0.4, 0.8), SNAPSHOT_PAUSES=(0.1, 0.2, 0.4))
    all_may_lack = False                # as where all wait for the daemon

    def die(self, point):
        way, call = point
        self.injected('%s at call %d' % point, self.ways[way])
        self.sim.pool.faults.add('*', way, nth=call)
        done = self.run_with_an_outage()
        self.sim.pool.faults.clear()
        self.settle_pool()
        self.check(done, settled=False, hit=self.hit(call))
        self.check_the_next_run()

    def hit(self, call):
        """The VMs that may be without a new backup: any one; all if nobody could log in."""
        lacking = set(self.configured()) - self.renewed(self.good())
        return lacking if self.all_may_lack or len(lacking) < 2 or call == 1 else ()

    def test_the_daemon_may_die_at_any_call(self):
        calls = self.once(self.named_calls)
        self.each([(way, number) for way in self.ways for number, _ in calls], self.die)


globals().update(variants(DaemonDies, DaemonDiesSideBySide=dict(
    keys={'parallel': 4}, rules=FOUR, all_may_lack=True,
    ways={'down-after': 'the daemon dies before it answers a call'})))


class DaemonStaysAway(DaemonDies):
    """The daemon dies and does not come back before the run has ended."""

    ways = {'down': 'the daemon dies at a call, and stays away'}
    all_may_lack = True
    constants = dict(XAPI_PATIENCE=0.2, DISCARD_PAUSES=(0.01,), SNAPSHOT_PAUSES=(0.01,))

    def run_with_an_outage(self):
        done = self.backup()
        self.sim.restart()
        return done


class OrderOfOperations(LaunchedCase):
    """What a power failure can leave, told by the order in which things reach the disk."""

    def setUp(self):
        super().setUp()
        self.seen = self.once(self.operations)
        self.made = {os.path.dirname(path): path.split(os.sep)[0] for each in self.seen
                     for path in each['new'] if os.path.basename(path) == MARKERS[0]
                     and DELETING not in path}
        self.assertEqual({'web', 'db'}, set(self.made.values()))

    def first(self, holds, what):
        for each in self.seen:
            if each['success'] and holds(each):
                return each['number']
        return self.fail('never: ' + what)

    def appears(self, path):
        return self.first(lambda each: path in each['new'], path + ' is there')

    def synced(self, path, after=0):
        return self.first(lambda each: path in each['synced'] and each['number'] > after,
                          '%s is forced to the disk after operation %d' % (path, after))

    def written(self, directory, name):
        """When a file that is renamed when it is whole was forced to the disk before that."""
        begins = tuple(os.path.join(directory, each) for each in (name, '.' + name))
        return self.first(lambda each: any(path.startswith(begins) for path in each['synced']),
                          name + ' is forced to the disk')

    def test_the_marker_comes_after_everything_else_is_on_the_disk(self):
        for directory, vm in self.made.items():
            with self.subTest(directory):
                exported = os.path.join(directory, vm + ('.raw' if vm == 'db' else '.xva'))
                renamed = self.appears(os.path.join(directory, MANIFEST))
                steps = [self.synced(exported), self.written(directory, MANIFEST), renamed,
                         self.synced(directory, after=renamed),
                         self.appears(os.path.join(directory, MARKERS[0]))]
                self.assertEqual(sorted(steps), steps)

    def test_every_file_is_on_the_disk_before_the_marker(self):
        for directory in self.made:
            marker = self.appears(os.path.join(directory, MARKERS[0]))
            before = [each for each in self.seen if each['number'] < marker]
            gone = {path for each in before for path in each['gone']}
            there = {path: each['number'] for each in before for path in each['new']
                     if path.startswith(directory + os.sep) and path not in gone
                     and os.path.basename(path) != MARKERS[0]}
            self.assertGreater(len(there), 4)
            for path, made in there.items():
                with self.subTest(path):
                    # Of the manifest, it is what had another name until it was on the disk.
                    forced = self.written(directory, MANIFEST) if path.endswith(MANIFEST) else \
                        self.synced(path, after=made)
                    self.assertLess(forced, marker)

    def test_old_backups_go_after_the_new_one_is_on_the_disk(self):
        for directory, vm in self.made.items():
            with self.subTest(directory):
                marker = self.appears(os.path.join(directory, MARKERS[0]))
                rotated = self.first(
                    lambda each: any(path.startswith(os.path.join(vm, DELETING))
                                     and FAILED not in path for path in each['new']), 'a rotation')
                self.assertLess(self.synced(directory, after=marker), rotated)
                self.assertLess(self.synced(vm), rotated)

    def test_what_is_removed_was_renamed_before(self):
        gone = [path.split(os.sep) for each in self.seen for path in each['gone']
                if each['name'] in ('unlink', 'remove', 'rmdir')]
        for parts in gone:
            self.assertTrue(len(parts) > 1 and parts[1].startswith(DELETING)
                            or parts[-1] == RECORD
                            or parts[0].startswith((WRITE_TEST, LOCKS)), parts)
        self.assertGreater(sum(len(parts) > 2 for parts in gone), 3)

    def test_a_record_of_a_snapshot_is_on_the_disk_before_the_snapshot_is_made(self):
        for directory in self.made:
            made = self.appears(os.path.join(directory, RECORD))
            self.assertLess(self.written(directory, RECORD), made)
            self.synced(directory, after=made)


load_tests = sampled('.AtPoolCalls.', 'AtFileOperations.', '.OrderOfOperations.', '.DaemonDies.',
                     others=2)
