"""The fault matrix of `restore=` and `test-restore=`: at every call to the pool and every file
operation the program is killed or ended, each call is refused, and the daemon dies.

Afterwards (after the next invocation, where the program was killed) the pool holds exactly what
it held before, or that plus what was to be restored, complete; and the backups are as they were.
"""

import contextlib
import copy
import json
import os
import re
import signal
from typing import Any, Dict, NamedTuple

from tests.tools import figures
from tests.faults.faulting import MANIFEST, PASSING, LaunchedCase, MatrixCase, files_in
from tests.faults.faulting import manifest_of, packed, sampled, seed, variants

MARK = 'vmbackup_restore'
SHARE = '.restore-'
INTERNAL = ['INTERNAL_ERROR', 'Not_found']
TRANSFERS = ('vm-import', 'vdi-import')
OF_DISK = ('restore=db', 'attach=db', 'force=yes')     # the words of a command
OF_LOOK = ('restore=gone', 'disk=xvdb', 'attach=desk')
OF_TEST = ('test-restore=.*',)
# Beside what FaultCase lets pass: what a new VM changes in others.
PASSES = dict(PASSING, VM=PASSING['VM'] | {'VBDs'}, network={'VIFs'},
              SR={'VDIs', 'physical_utilisation', 'virtual_allocation'})


class Restored(NamedTuple):
    """What a restore has to make: a VM of that name, or a disk of a VM that is there."""
    name: str                           # a pattern
    disks: Dict[str, Any]               # content, by user device
    networks: Any                       # names, of the VIFs


class RestoreFaults(MatrixCase):
    """A pool that has lost a VM and a network, whose backups are restored with faults.

    `notes` are what has to be restored: a VM and a disk.
    """

    pool_description = {
        'networks': ['Pool-wide network associated with eth0', 'lab'],
        'vms': [{'name': 'gone', 'ha_restart_priority': 'restart', 'power_state': 'Running',
                 'other_config': {'auto_poweron': 'true'}, 'networks': [
                     'Pool-wide network associated with eth0', 'lab'],
                 'disks': [{'size': '2 MiB', 'fill': 0.5}, '1 MiB']},
                {'name': 'db', 'disks': [{'size': '1 MiB', 'fill': 0.5}], 'ran': True},
                {'name': 'desk', 'power_state': 'Running', 'domain_type': 'pv', 'disks': []},
                {'name': 'other', 'disks': ['1 MiB'], 'snapshots': ['RESTORE_other']}]}
    constants = dict(DISCARD_PAUSES=(0.1, 0.2), BUSY_PAUSES=(0.3, 0.5), XAPI_PATIENCE=6,
                     SNAPSHOT_PAUSES=(0.05, 0.2, 0.5, 1.0))
    max_backups = 9
    words = ('restore=gone',)
    rules = ('vdi-export=db',)
    linked = ()

    @property
    def subject(self):
        return self.words[0].partition('=')[0]

    @property
    def of_test(self):
        return self.subject == 'test-restore'

    # What there is

    def prepare(self):
        super().prepare()
        self.configuration = self.config_path()

    def make_history(self):
        self.rules = ('vm-export=gone', 'vdi-export=db')
        self.undisturbed()
        self.notes = [self.as_restored('gone(-restored-[-0-9]+)?', 'gone', True),
                      self.as_restored('db 0-restored-[-0-9]+', 'db', False)]
        self.notes.append(Restored('gone 1-restored-[-0-9]+', {'0': self.notes[0].disks['1']},
                                   None))
        pool = self.sim.pool
        ref = pool.ref_of('VM', self.uuid_of('gone'))
        pool.call('VM.hard_shutdown', ref)
        disks = [pool.tables['VBD'][vbd]['VDI'] for vbd in pool.tables['VM'][ref]['VBDs']]
        pool.call('VM.destroy', ref)
        for disk in disks:
            pool.call('VDI.destroy', disk)
        lab, = [ref for ref, network in pool.tables['network'].items()
                if network['name_label'] == 'lab']
        pool.call('network.destroy', lab)
        self.rules = type(self).rules

    def as_restored(self, name, vm, whole):
        tables = self.sim.pool.tables
        record = tables['VM'][self.sim.pool.ref_of('VM', self.uuid_of(vm))]
        disks = {tables['VBD'][ref]['userdevice']: self.sim.pool.content[
            tables['VBD'][ref]['VDI']].clone() for ref in record['VBDs']}
        return Restored(name, disks, sorted(
            tables['network'][tables['VIF'][vif]['network']]['name_label']
            for vif in record['VIFs']) if whole else None)

    def rewind(self):
        super().rewind()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.status_log)

    def begin(self):
        return self.start('password', *(self.words + (
            'from=' + (self.configuration if self.of_test else self.backups),)))

    def another(self, number):
        """The next invocation: the same again, a test, or a night's backup, as the number tells;
        it has to do well. Return it, and whether it has restored one more thing."""
        kind = number % 3
        if kind == 0:
            done = self.finish(self.begin())
        elif kind == 1:
            done = self.vmbackup('password', 'test-restore=db', 'from=' + self.backups)
        else:
            done = self.backup()
        self.assertIn(done.status, (0, kind // 2),
                      '%s: the next invocation\n%s' % (self.what, done.output))
        return done, kind == 0 and not self.of_test

    # What has to hold

    def made(self, words):
        """What is in the pool and was not: VMs and disks that are complete. Everything else is as
        it was."""
        tables = self.sim.pool.tables
        with self.sim.pool.lock:
            now = copy.deepcopy(tables)
        self.look_at_old(now, words)
        extra = {cls: set(records) - set(self.saved.tables[cls]) for cls, records in now.items()
                 if cls not in ('session', 'task', 'message')}
        found = [self.look_at_vm(now, ref, extra, words) for ref in sorted(extra['VM'])]
        found += [self.look_at_disk(now, ref, extra, words) for ref in sorted(extra['VDI'])]
        self.assertEqual({}, {cls: refs for cls, refs in extra.items() if refs},
                         'left in the pool: ' + words)
        return found

    def look_at_old(self, now, words):
        before, images = self.saved.tables, self.saved.content
        for cls, passing in PASSES.items():
            for ref, record in before[cls].items():
                self.assertIn(ref, now[cls], '%s is gone: %s' % (cls, words))
                self.assertEqual(*[{field: value for field, value in each.items()
                                    if field not in passing} for each in (record, now[cls][ref])],
                                 '%s: %s' % (cls, words))
        for ref, image in images.items():
            self.assertTrue(image == self.sim.pool.content.get(ref), 'a disk: ' + words)
        for ref, sr in before['SR'].items():
            for field, of_disk in (('physical_utilisation', 'physical_utilisation'),
                                   ('virtual_allocation', 'virtual_size')):
                more = sum(int(vdi[of_disk]) for each, vdi in now['VDI'].items()
                           if vdi['SR'] == ref and each not in before['VDI'])
                self.assertEqual(int(sr[field]) + more, int(now['SR'][ref][field]),
                                 'SR %s: %s' % (field, words))
        self.assertEqual({}, {cls: names for cls, names in self.extra().items()
                              if cls in ('session', 'task')}, words)

    def look_at_vm(self, now, ref, extra, words):
        """Assert that a new VM is complete; what is its own is extra no more."""
        vm, wanted = now['VM'][ref], self.notes[0]
        self.assertRegex(vm['name_label'], '^(%s)$' % wanted.name, words)
        self.assertEqual(
            (False, False, '', 'Halted', {}),
            (vm['is_a_template'], vm['is_a_snapshot'], vm['ha_restart_priority'],
             vm['power_state'], vm['current_operations']), words)
        self.assertNotIn('auto_poweron', vm['other_config'], words)
        vbds = [now['VBD'][vbd] for vbd in vm['VBDs']]
        self.assertEqual(set(wanted.disks), {vbd['userdevice'] for vbd in vbds}, words)
        for vbd in vbds:
            self.assertTrue(wanted.disks[vbd['userdevice']] == self.sim.pool.content[vbd['VDI']],
                            'another content: ' + words)
        networks = [now['VIF'][vif]['network'] for vif in vm['VIFs']]
        self.assertEqual(wanted.networks, sorted(now['network'][network]['name_label']
                                                 for network in networks), words)
        for cls, refs in (('VM', [ref]), ('VBD', vm['VBDs']), ('VIF', vm['VIFs']),
                          ('network', networks), ('VDI', [vbd['VDI'] for vbd in vbds]),
                          ('VM_metrics', [vm['metrics']])):
            extra[cls] -= set(refs)
        return 'VM'

    def look_at_disk(self, now, ref, extra, words):
        """Assert that a new disk is complete, and attached; it is extra no more."""
        vdi, wanted = now['VDI'][ref], self.notes[2 if self.words == OF_LOOK else 1]
        self.assertRegex(vdi['name_label'], '^(%s)$' % wanted.name, words)
        self.assertTrue(wanted.disks['0'] == self.sim.pool.content[ref], words)
        holders = [now['VM'][now['VBD'][vbd]['VM']]['name_label'] for vbd in vdi['VBDs']]
        self.assertEqual(['desk' if self.words == OF_LOOK else 'db'], holders, words)
        if any(now['VBD'][vbd]['currently_attached'] for vbd in vdi['VBDs']):
            self.assertIn('.look-%s.txt' % vdi['uuid'], os.listdir(self.backups), words)
        extra['VBD'] -= set(vdi['VBDs'])
        extra['VDI'] -= {ref}
        return 'disk'

    def marks(self):
        """What carries the mark of a restore, and the records of restores."""
        tables = self.sim.pool.tables
        found = ['%s %s' % (cls, record['name_label']) for cls in ('VM', 'VDI', 'network')
                 for record in tables[cls].values()
                 if MARK in record['name_label'] or MARK in record['other_config']]
        return found + [name for name in os.listdir(self.backups) if name.startswith(SHARE)]

    def check_settled(self, done, most):
        """Assert all that has to hold when nothing is to be settled any more; `most`: how many
        things may have been restored."""
        words = '%s; seed %s\n%s' % (self.what, seed(), done.output)
        self.wait_for(self.is_quiet, 'a quiet pool')
        self.assertEqual([], self.marks(), words)
        found = self.made(words)
        self.assertLessEqual(len(found), most, words)
        looks = [name for name in os.listdir(self.backups) if name.startswith('.look-')]
        self.assertLessEqual(len(looks), len(found) if self.words == OF_LOOK else 0, words)
        self.check_backups_on_disk(words)
        figures.add(self.kind, checks=4)
        return len(found)

    def check_backups_on_disk(self, words):
        """Assert that each backup of before is there, with nothing new but a test's result."""
        old, new = [{name: self.without_test(name, data) for name, data in files_in(each).items()
                     if name.startswith(('gone/', 'db/'))}
                    for each in (self.saved.tree, packed(self.backups))]
        places = {os.path.dirname(name) for name in old}
        # A kill may leave what a manifest is called until it is whole: that goes a day later.
        changed = [name for name in sorted(set(old) | set(new))
                   if os.path.dirname(name) in places and old.get(name) != new.get(name)
                   and not re.search(r'/backup\.json\.[0-9a-f]+\.new\Z', name)]
        self.assertEqual([], changed, words)

    @staticmethod
    def without_test(name, data):
        if os.path.basename(name) != MANIFEST:
            return data
        return {key: value for key, value in json.loads(data.decode('utf-8')).items()
                if key != 'test_restore'}

    def proved(self):
        results = [(directory, (manifest_of(directory) or {}).get('test_restore'))
                   for directory, _, _ in os.walk(self.backups)]
        return {os.path.basename(os.path.dirname(directory)) for directory, result in results
                if result and 'fault' not in result}

    def check_words(self, done, found):
        """Assert that what the program said and left behind is what it has done."""
        words = '%s\n%s' % (self.what, done.output)
        self.assertNotIn('Traceback', done.output, words)
        self.assertNotIn('a bug in VmBackup', done.output, words)
        if done.status in (0, 1):
            self.assertEqual(0 if self.of_test else 1, found, words)
        if self.of_test:
            self.assertEqual(set(re.findall(r'(?m) - proved: .*/([^/\n]+)/backup-', done.output)),
                             self.proved(), words)
            if done.status == 0:
                self.assertEqual({'gone', 'db'}, self.proved(), words)
            lines = [line.split(',')[3:] for line in self.status_lines()]
            begun = [line[1] for line in lines if line[0] == 'begin']
            ended = [line[1].split()[1] for line in lines if line[0] == 'end']
            if done.status != -signal.SIGKILL:
                self.assertEqual(begun, ended, words)
        figures.add(self.kind, checks=3)

    def check_after_kill(self, done, number=0):
        """After SIGKILL: what is not complete carries a mark that is written down; the next
        invocation settles it."""
        self.assertEqual(-signal.SIGKILL, done.status, done.output)
        self.assertNotIn('Traceback', done.output, self.what)
        self.settle_pool()
        marks = self.marks()
        if marks:
            self.assertIn(SHARE, ' '.join(marks), 'nothing tells of it: ' + self.what)
        after, more = self.another(number)
        self.check_settled(after, (0 if self.of_test else 1) + more)

    def check_after_signal(self, done, last=False):
        found = self.check_settled(done, 0 if self.of_test else 1)
        self.assertIn(done.status, (143, 0), '%s\n%s' % (self.what, done.output))
        if done.status == 0 and not self.of_test:
            self.assertEqual(1, found, done.output)
        self.check_words(done, found)


class Ended(RestoreFaults):
    """The program is ended when a call comes in at the pool."""

    ways = ('SIGKILL', 'SIGKILL of it and xe', 'SIGTERM')

    def test_ended_at_any_call_it_leaves_all_or_nothing(self):
        self.each(self.points(self.once(self.named_calls)), self.end)

    def points(self, names):
        """The ends at the calls of these numbers and names; there is an xe only in its own."""
        return [(way,) + name for way in self.ways for name in names
                if 'xe' not in way or '.' not in name[1]]

    def end(self, point):
        way, call, name = point
        self.injected('%s at call %d, %s' % point,
                      '%s: %s at a call to the pool' % (self.subject, way))
        if way == 'SIGTERM':
            self.check_after_signal(self.run_at(call, lambda: self.send(signal.SIGTERM)))
        else:
            self.check_after_kill(self.run_at(call, lambda: self.kill(way != 'SIGKILL')), call)


class InterruptedTest(RestoreFaults):
    """A test that does not come to its end."""

    words = OF_TEST
    kind = 'test-restore: SIGTERM at a call to the pool'

    def test_an_interrupted_test_of_a_backup_is_no_result_in_its_manifest(self):
        for verb in TRANSFERS:
            with self.subTest(verb):
                self.start_over()
                self.injected('SIGTERM at ' + verb)
                done = self.run_at(verb, lambda: self.send(signal.SIGTERM))
                self.assertEqual(143, done.status, done.output)
                self.assertEqual({'db'} if verb == 'vm-import' else set(), self.proved())
                self.check_after_signal(done)


class EndedOfSuspended(Ended):
    """The same with an archive of a suspended VM, which brings its memory along as a disk."""

    ways = ('SIGKILL',)

    def prepare(self):
        super().prepare()
        pool = self.sim.pool
        ref = pool.ref_of('VM', self.uuid_of('other'))
        pool.call('VM.start', ref)
        pool.call('VM.suspend', ref)
        self.notes[0] = self.as_restored('other-restored-[-0-9]+', 'other', True)
        path = os.path.join(self.directory, 'sleeper.xva')
        self.xe('vm-export', 'vm=other', 'preserve-power-state=true', 'filename=' + path)
        self.words = ('restore=' + path,)
        self.asleep = pool.content[pool.tables['VM'][ref]['suspend_VDI']].clone()

    def test_a_vm_that_is_complete_keeps_its_memory_when_the_restore_is_killed(self):
        self.start_over()
        self.injected('SIGKILL at vm-param-remove', 'restore: SIGKILL at a call to the pool')
        done = self.run_at('vm-param-remove', lambda: self.send(signal.SIGKILL))
        self.check_after_kill(done, 2)
        self.assertEqual(['VM'], self.made(self.what))

    def points(self, names):
        return super().points(names[[name for _, name in names].index('vm-import'):])

    def look_at_vm(self, now, ref, extra, words):
        vm = now['VM'][ref]
        self.assertIn(vm['suspend_VDI'], extra['VDI'], 'its memory is gone: ' + words)
        extra['VDI'] -= {vm['suspend_VDI']}
        self.assertTrue(self.asleep == self.sim.pool.content[vm['suspend_VDI']], words)
        self.assertEqual('Suspended', vm['power_state'], words)
        vm['power_state'] = 'Halted'
        return super().look_at_vm(now, ref, extra, words)


class AtFileOperations(LaunchedCase, RestoreFaults):
    """The program is ended before or after a file operation."""

    ways = ('SIGKILL', 'SIGTERM')

    def test_ended_at_any_file_operation_it_leaves_all_or_nothing(self):
        moments = self.moments()
        self.each([(way,) + moment for way in self.ways for moment in moments], self.end)

    def end(self, point):
        way, number, when, name = point
        self.injected('%s %s operation %d, %s' % (way, when, number, name),
                      '%s: %s at a file operation' % (self.subject, way))
        done = self.launched(at=number, when=when, signals=[getattr(signal, way)])
        if way == 'SIGKILL':
            self.check_after_kill(done, number)
        else:
            self.check_after_signal(done)


class Refused(RestoreFaults):
    """A call is refused, its connection ends, or the daemon dies."""

    kinds = {'refuse': 'a call is refused', 'die': 'a connection ends',
             'down': 'the daemon dies at a call',
             'down-after': 'the daemon dies before it answers'}
    ways = ('refuse', 'die', 'down', 'down-after')

    def test_with_a_fault_at_any_call_it_leaves_all_or_nothing(self):
        self.each(self.points(self.once(self.named_calls)), self.meet)

    def points(self, names):
        """The faults at the calls of these numbers and names; the two deaths of the daemon take
        turns at those of XenAPI."""
        return [(way, number, name, {}) for way in self.ways for number, name in names
                if '.' not in name or way not in ('down', 'down-after')
                or (way == 'down') == (number % 2 == 0)] + list(self.half_way(names))

    def half_way(self, names):
        for number, name in names:
            moments = [('after', after) for after in (100, 40000, 600000)] * (name in TRANSFERS)
            moments += [('made', made) for made in range(1, 9)] * (name == 'vm-import')
            for what, moment in moments:
                for way in ('die', 'down', 'refuse'):
                    if way in self.ways and (way != 'die' or what == 'after'):
                        yield way, number, name, {what: moment}

    def meet(self, point):
        way, number, name, details = point
        self.injected('%s at call %d, %s %s' % point,
                      '%s: %s' % (self.subject, self.kinds[way]))
        if way == 'refuse':
            details = dict(details, error=INTERNAL)
        self.sim.pool.faults.add('*', way, nth=number, **details)
        done = self.run_with_an_outage()
        self.sim.pool.faults.clear()
        if name.startswith('session'):          # nobody else can end it: it expires
            self.settle_pool()
        settled = done
        if 'left in the pool, or its mark' in done.output:     # it has told: the next one mends it
            self.assertIn(done.status, (1, 2), done.output)
            self.assertIn(SHARE, ' '.join(self.marks()), done.output)
            settled, _ = self.another(1)
        found = self.check_settled(settled, 0 if self.of_test else 1)
        self.check_words(done, found)


# The same with the restore of a disk that is attached, with a compressed archive, with a test of
# both.
globals().update(variants(
    Ended, EndedOfDisk=dict(words=OF_DISK), EndedOfLook=dict(words=OF_LOOK),
    EndedInTest=dict(words=OF_TEST),
    EndedOfCompressed=dict(keys={'compress': 'True'}, ways=('SIGKILL of it and xe',))))
globals().update(variants(
    AtFileOperations, AtFileOperationsOfDisk=dict(words=OF_DISK),
    AtFileOperationsInTest=dict(words=OF_TEST)))
globals().update(variants(
    Refused, RefusedOfDisk=dict(words=OF_DISK), RefusedOfLook=dict(words=OF_LOOK),
    RefusedInTest=dict(words=OF_TEST, ways=('refuse', 'die')),
    DaemonDiesInTest=dict(words=OF_TEST, ways=('down', 'down-after'))))

load_tests = sampled('.Ended.', '.EndedInTest.', '.InterruptedTest.', '.AtFileOperations.',
                     '.Refused.', others=1)
