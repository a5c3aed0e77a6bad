"""Random walks: one pool and one backup directory live through faults, people, and time.

A walk is a number of steps. Each is a run of VmBackup.py, undisturbed or with a fault at a random
call, or something that people do meanwhile: they rename, add and remove VMs, make snapshots with
names like ours, put files of their own among the backups, change the config, set the clock. After
each run the six invariants of faulting.py are asked for. A failure tells the seed and the steps
so far, which the same seed takes again: VMBACKUP_TEST_SEED=<seed> python3 -m unittest <test id>
"""

import contextlib
import os
import random
import shutil
import signal
import time
import unittest
import unittest.mock

from tests.faults.faulting import CLASSES, NOTES, RECORD, FaultCase, every, full, phase, sampled
from tests.faults.faulting import seed, variants
from tests.faults.test_matrix import (
    BLOCKED, BOOTING, BUSY, FULL_SR, IN_USE, INTERNAL, NO_HANDLE, NO_REF, NO_VDI)
from tests.simpool import model
from tests.tools.support import LIMIT

STEPS_FULL, STEPS_SAMPLE = 250, 6
BACK = (0.02, 0.2, 0.6)        # seconds until a daemon that died is back
NAMES = ('web', 'db', 'app', 'web 2', 'RESTORE_web', 'RESTORE_RESTORE_web', 'SNAP_db_db-0',
         'METADATA_x', 'büro', 'backup')
SIZE = '64 KiB'
CODES = (FULL_SR, NO_VDI, BUSY, IN_USE, NO_HANDLE, INTERNAL, BOOTING, BLOCKED,
         ['SESSION_INVALID', NO_REF])
OF_ONE_VM = ('vm-snapshot', 'vdi-snapshot', 'template-param-set', 'vdi-param-set', 'vm-export',
             'vdi-export', 'vm-uninstall', 'snapshot-uninstall', 'vdi-destroy')
CONSTANTS = dict(XE_TIMEOUT=2, XAPI_TIMEOUT=2, XAPI_PATIENCE=4, DISCARD_PAUSES=(0.05, 0.1, 0.2),
                 BUSY_PAUSES=(0.3, 0.6, 1.2), SNAPSHOT_PAUSES=(0.05, 0.1, 0.3, 0.6, 1.2))
AT_ANOTHER_TIME = """
import datetime
import VmBackup
now = VmBackup.now
VmBackup.now = lambda: now() + datetime.timedelta(seconds=%d)
"""
DAY = 86400


def uuid_of(backup):
    """Of the VM that it is of; '' if 3.25 made it."""
    return backup.manifest['vm']['uuid'] if backup.manifest else ''


def disks_of(backup):
    """The uuids of the disks that it holds."""
    return {disk['uuid'] for disk in (backup.manifest or {'disks': ()})['disks']}


class Walk(FaultCase):
    """A walk of which the seed, the phase, and the test's class decide all but the timing.

    first   the steps with which it begins
    runs    {what a run meets: how often, by comparison}
    """

    kind = 'any fault, in a random walk'
    methods_there_are = ('vm-export', 'vdi-export')
    pool_description = {'vms': [
        {'name': 'web', 'disks': [SIZE], 'ran': True},
        {'name': 'db', 'disks': [SIZE, {'size': SIZE, 'fill': 0}], 'ran': True},
        {'name': 'RESTORE_web', 'disks': [SIZE], 'snapshots': ['before']},
        {'name': 'SNAP_db_db-0', 'disks': [{'size': SIZE, 'name': 'SNAP_db_db-0'}]}]}

    def setUp(self):
        self.people = {cls: set() for cls in CLASSES}
        super().setUp()
        self.script = self.changed_script(TOGETHER=LIMIT, **CONSTANTS)
        self.chance = random.Random(' '.join(
            (seed(), type(self).__name__) + (() if phase() is None else (str(phase()),))))
        self.told_steps, self.clock, self.links = [], 0, 0
        self.seen = ['vm-snapshot', 'vm-export', 'VM.get_record']
        self.methods = {}              # the method that a VM has, once chosen
        patch = unittest.mock.patch.object(model, 'stamp', self.stamp)
        patch.start()
        self.addCleanup(patch.stop)
        self.keys = dict(self.keys, stall_timeout='0.01')
        self.people = {cls: set(self.sim.pool.tables[cls]) for cls in CLASSES}
        self.remember()

    def use_pool(self, **options):
        super(FaultCase, self).use_pool(**options)

    @property
    def prelude(self):
        return AT_ANOTHER_TIME % self.clock

    def stamp(self, seconds=None, original=model.stamp):
        return original((time.time() if seconds is None else seconds) + self.clock)

    # What belongs to people

    @contextlib.contextmanager
    def by_people(self):
        """What comes and goes in the pool meanwhile does so by people's hands."""
        before = {cls: set(self.sim.pool.tables[cls]) for cls in CLASSES}
        yield
        for cls in CLASSES:
            after = set(self.sim.pool.tables[cls])
            self.people[cls] = (self.people[cls] | (after - before[cls])) & after

    def remember(self):
        """Note what must survive; what a killed run has left in the pool is not of that kind."""
        super().remember()
        pool = {cls: {ref: record for ref, record in records.items() if ref in self.people[cls]}
                for cls, records in self.memory.pool.items()}
        disks = {ref: image for ref, image in self.memory.disks.items() if ref in pool['VDI']}
        self.memory = self.memory._replace(pool=pool, disks=disks)
        self.before = {cls: {ref: name for ref, name in objects.items()
                             if ref in self.people.get(cls, ())}
                       for cls, objects in self.before.items()}

    def check_history(self, now, words):
        """1, of each VM whose backups lie in a directory. Of those that are gone no other has to
        stay, but the last with a disk."""
        living = {record['uuid'] for record in self.sim.pool.tables['VM'].values()}
        for directory, backups in self.memory.good.items():
            there = {backup.key: backup for backup in now.get(directory, [])}
            self.assertTrue(there, '1: no backup is left in %s: %s' % (directory, words))
            for owner in {uuid_of(backup) for backup in backups}:
                own = [backup for backup in backups if uuid_of(backup) == owner]
                left = [backup for backup in there.values()
                        if owner not in living or uuid_of(backup) == owner]
                gone = [backup for backup in own if backup.key not in there]
                if gone:
                    self.assertGreaterEqual(len(left), max(1, self.max_backups - (
                        self.keys.get('pre_clean') == 'True')), '1: %s went too early: %s' % (
                            [backup.path for backup in gone], words))
                for number, backup in enumerate(own):
                    if backup not in gone:
                        self.assertEqual(backup, there[backup.key], '1: a backup changed: ' + words)
                    if backup not in gone and any(each in gone for each in own[number:]):
                        held = [disks_of(each) for each in there.values() if each not in
                                own[:number + 1] and uuid_of(each) == owner]
                        self.assertFalse(disks_of(backup) <= set().union(*held),
                                         '1: not the oldest went: ' + words)

    def vms(self, halted=False):
        return dict(sorted((record['name_label'], ref)
                           for ref, record in self.sim.pool.tables['VM'].items()
                           if not (record['is_a_snapshot'] or record['is_a_template'] or
                                   record['is_control_domain'] or ref not in self.people['VM'])
                           and (not halted or record['power_state'] == 'Halted')))

    def new_name(self):
        free = [name for name in NAMES if name not in self.vms()]
        return self.chance.choice(free) if free else None

    def is_settled(self):
        return not self.open_records()

    # What people do in the pool; each returns words for what it did, or None if it did nothing

    def people_rename_a_vm(self):
        old, new = self.chance.choice(list(self.vms())), self.new_name()
        if not new:
            return None
        self.sim.pool.call('VM.set_name_label', self.vms()[old], new)
        return '%s becomes %s' % (old, new)

    def people_add_a_vm(self):
        new, vms = self.new_name(), self.vms(halted=True)
        if not new or len(vms) > 4:
            return None
        old = self.chance.choice(list(vms))
        self.sim.pool.call('VM.clone', vms[old], new)
        return '%s, a clone of %s' % (new, old)

    def people_remove_a_vm(self):
        vms = self.vms()
        name = self.chance.choice(list(vms))
        if len(vms) < 3:
            return None
        self.xe('vm-uninstall', 'uuid=' + self.sim.pool.tables['VM'][vms[name]]['uuid'],
                'force=true')
        return name

    def people_snapshot_a_vm(self):
        """With a name like ours, unless a killed run's could not be told from it."""
        name = self.chance.choice(list(self.vms()))
        label = 'RESTORE_' + name if self.is_settled() else 'of ' + name
        self.sim.pool.call('VM.snapshot', self.vms()[name], label)
        return label

    def people_snapshot_a_disk(self):
        if not self.is_settled():
            return None
        tables = self.sim.pool.tables
        name = self.chance.choice(list(self.vms()))
        vbds = tables['VM'][self.vms()[name]]['VBDs']
        disk = tables['VBD'][self.chance.choice(sorted(vbds))]['VDI'] if vbds else None
        if disk not in tables['VDI']:
            return None
        snapshot = self.sim.pool.call('VDI.snapshot', disk)
        label = 'SNAP_%s_%s' % (name, tables['VDI'][disk]['name_label'].replace(' ', '-'))
        if self.chance.randrange(2):
            self.sim.pool.call('VDI.set_name_label', snapshot, label)
        return label

    def people_remove_a_snapshot(self):
        tables = self.sim.pool.tables['VM']
        refs = sorted(ref for ref in self.people['VM'] if tables[ref]['is_a_snapshot'])
        if not refs:
            return None
        record = tables[self.chance.choice(refs)]
        self.xe('snapshot-uninstall', 'uuid=' + record['uuid'], 'force=true')
        return record['name_label']

    # What people do among the backups

    def a_directory(self):
        return self.chance.choice(self.vm_directories() + list(self.vms()))

    def people_put_a_file_there(self):
        name = self.chance.choice((
            'KEEP-golden/disk', 'notes.txt', 'backup-2019-02-30-(02:00:00)/success', '.snapshot/x',
            'backup-2019-01-01/success', 'backup-2019-03-01-(02:00:00).old/success', 'success',
            'zz', '0', 'backup.json', 'snapshot.txt'))
        path = os.path.join(self.a_directory(), name)
        self.put(path, str(self.chance.random()).encode('ascii'))
        return path

    def people_put_a_file_where_ours_are(self):
        """Into a backup, the record of a failure, or a directory named as if it was being
        deleted."""
        failures = [path for path in self.dated_paths() if path not in self.good_paths()]
        place = os.path.join(self.backups, self.a_directory(), self.chance.choice((
            '.deleting-mine', '.deleting-backup-2019-02-30-(02:00:00)')))
        path = os.path.join(self.chance.choice(self.dated_paths() + failures + [place]), NOTES)
        self.put(path, b'mine')
        return path

    def good_paths(self):
        return {path for paths in self.marked().values() for path in paths}

    def people_make_a_link(self):
        self.put(os.path.join(self.outside, 'success'), b'')
        self.put(os.path.join(self.outside, 'disk'), b'precious')
        self.links += 1
        path = os.path.join(self.backups, self.a_directory(),
                            'backup-2018-01-01-(00:%02d:%02d)' % divmod(self.links, 60))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(self.outside, path)
        return path

    def people_bring_backups_of_325(self):
        vm, day = self.a_directory(), self.chance.randrange(1, 29)
        name = 'backup-2019-%02d-%02d-(02:00:00)' % (self.chance.randrange(1, 13), day)
        if os.path.lexists(os.path.join(self.backups, vm, name)):
            return None
        if self.chance.randrange(3):
            self.old_backup_of_325(vm, name, 'xva')
        else:
            self.old_backup(vm, name, 'vm.cfg')
        return os.path.join(vm, name)

    def people_put_a_backup_aside(self):
        paths = [path for path in self.dated_paths()
                 if not os.path.exists(os.path.join(path, RECORD))]
        if not paths:
            return None
        path = self.chance.choice(paths)
        aside = os.path.join(os.path.dirname(path), 'KEEP-%d' % len(self.told_steps))
        if self.chance.randrange(2):
            os.rename(path, aside)
            return '%s is %s now' % (path, aside)
        shutil.rmtree(path)
        return '%s is deleted' % path

    def people_change_the_config(self):
        key, values = self.chance.choice((
            ('max_backups', (1, 1, 2, 3)), ('pre_clean', ('True', 'False')),
            ('compress', ('none', 'gzip', 'none')), ('vdi_export_format', ('raw', 'auto')),
            ('pool_db_backup', ('0', '1')), ('lock_wait', ('0', '0.01')), ('methods', ({},)),
            ('parallel', ('1', '4'))))
        value = self.chance.choice(values)
        if key in ('max_backups', 'methods'):
            setattr(self, key, dict(value) if key == 'methods' else value)
        else:
            self.keys = dict(self.keys, **{key: value})
        return '%s=%s' % (key, value)

    def people_set_the_clock(self):
        jump = self.chance.choice((1, -1, 60, -60, 3600, -3600, DAY, -DAY, 30 * DAY, -30 * DAY))
        if not -400 * DAY < self.clock + jump < 400 * DAY:
            return None
        self.clock += jump
        return '%+d seconds' % jump

    # Runs

    def choose_vms(self):
        vms = list(self.vms())
        chosen = self.chance.sample(vms, min(len(vms), self.chance.choice((1, 1, 2, 3))))
        for name in chosen:
            self.methods.setdefault(name, self.chance.choice(self.methods_there_are))
        self.rules = tuple('%s=%s' % (self.methods[name], name) for name in chosen)

    def come_to_rest(self):
        """After a run: no fault waits any more, and the daemon is there and has nothing to do."""
        self.seen = sorted(set(self.seen) | {call.name for call in self.sim.calls()})
        self.sim.pool.faults.clear()
        self.sim.pool.journal = []
        self.wait_for(self.is_quiet, 'a quiet pool')

    def ended(self, done, settled=False, expire=False, **how):
        """The invariants after a run; words for how it ended. Sessions may be left only by runs
        that were killed, or that could not reach the daemon: they expire."""
        self.check(done, settled, **how)
        if expire:
            self.sim.pool.tables['session'].clear()
        return 'status %d' % done.status

    def undisturbed_run(self):
        done = self.finish(self.start_backup())
        self.come_to_rest()
        self.assertIn(done.status, (0, 1), done.output)
        return self.ended(done, settled=True, hit=())

    def run_with_a_fault(self):
        name = self.chance.choice(self.seen)
        fault = self.fault_for(name)
        nth, times = self.chance.choice((1, 1, 2, 3)), self.chance.choice((1, 1, 1, 2, 4))
        self.tell('%s, call %d, %d times: %s' % (name, nth, times, fault))
        self.sim.pool.faults.add(name, nth=nth, times=times, **fault)
        with self.reviving(self.chance.choice(BACK)):
            done = self.finish(self.start_backup())
        self.come_to_rest()
        words = self.ended(done, expire=True)
        if name in OF_ONE_VM and times == 1 and fault['do'] not in ('down', 'down-after'):
            lacking = set(self.configured()) - self.renewed(self.good())
            self.assertLessEqual(len(lacking), 1, '6: one fault, several VMs: ' + done.output)
        return words

    def fault_for(self, name):
        do = self.chance.choice(('refuse', 'refuse', 'print', 'die', 'slow', 'down', 'down-after',
                                 'hang' if self.chance.randrange(3) == 0 else 'refuse',
                                 'stall' if name.endswith('-export') else 'die'))
        details = {'do': do}
        if do == 'refuse':
            details['error'] = self.chance.choice(CODES)
        if do == 'print':
            details.update({'body': self.chance.choice((b'', b'<html/>'))} if '.' in name else
                           {'stdout': self.chance.choice(('', 'rubbish\n', 'Export succeeded\n')),
                            'exit': self.chance.randrange(2)})
        if do == 'slow':
            details['seconds'] = self.chance.choice((0.05, 0.3))
        if do in ('die', 'stall') or do in ('refuse', 'down') and self.chance.randrange(2):
            details['after'] = self.chance.choice((0, 1, 2, 500, 20000))
        return details

    def disturbed(self, act):
        number = self.chance.randrange(1, 8 + 12 * len(self.rules))
        self.tell('at call %d' % number)
        done = self.run_with(lambda count, _: count == number and act(), self.chance.choice(BACK))
        self.come_to_rest()
        return done

    def run_that_is_killed(self):
        done = self.disturbed(lambda: self.send(signal.SIGKILL))
        self.settle_pool()
        return self.ended(done)

    def run_that_gets_signals(self):
        signals = self.chance.choice(((signal.SIGTERM,), (signal.SIGINT,), (signal.SIGHUP,),
                                      (signal.SIGTERM, signal.SIGINT)))

        def send():
            for signum in signals:
                self.send(signum)
                time.sleep(0.02)
        settled = self.is_settled()        # else it may end before it has come to that
        done = self.disturbed(send)
        self.assertIn(done.status, [0, 1] + [128 + signum for signum in signals], done.output)
        return self.ended(done, settled)

    def run_without_a_pool_for_a_while(self):
        return self.ended(self.disturbed(self.sim.pool.go_down), expire=True)

    # Steps

    first = ('undisturbed_run', 'people_bring_backups_of_325')
    runs = dict(undisturbed_run=6, run_with_a_fault=6, run_that_is_killed=4,
                run_that_gets_signals=3, run_without_a_pool_for_a_while=2)
    people_do = dict(
        people_rename_a_vm=2, people_add_a_vm=2, people_remove_a_vm=1, people_snapshot_a_vm=4,
        people_snapshot_a_disk=3, people_remove_a_snapshot=3, people_put_a_file_there=5,
        people_put_a_file_where_ours_are=2, people_make_a_link=2, people_bring_backups_of_325=5,
        people_put_a_backup_aside=3, people_change_the_config=6, people_set_the_clock=4)

    def tell(self, words):
        self.told_steps[-1] += ' ' + str(words)
        self.what = self.told_steps[-1]

    def step(self, name):
        self.told_steps.append('%d. %s:' % (len(self.told_steps) + 1, name))
        if name.startswith('people_'):
            with self.by_people():
                self.tell(getattr(self, name)())
            self.remember()
            return
        self.choose_vms()
        self.remember()
        self.tell('%s keep %d %s' % (', '.join(self.rules), self.max_backups, self.keys))
        if name != 'undisturbed_run':
            self.injected(self.told_steps[-1])
        self.tell(getattr(self, name)())

    def test_a_random_walk_harms_nothing(self):
        steps = list(self.first)
        while len(steps) < (STEPS_FULL // every() if full() else STEPS_SAMPLE):
            kinds = self.runs if self.chance.randrange(3) == 0 else self.people_do
            steps.append(self.chance.choice([name for name in sorted(kinds)
                                             for _ in range(kinds[name])]))
        try:
            for name in steps + ['undisturbed_run']:
                self.step(name)
        except Exception as error:
            raise AssertionError('%s: %s\nseed %s, %s\n%s' % (
                type(error).__name__, error, seed(), self.id(), '\n'.join(self.told_steps)))


globals().update(variants(
    Walk,
    FromNothing=dict(first=('run_with_a_fault',)),
    WithOneBackupEach=dict(keys={'pre_clean': 'True'}, max_backups=1),
    OfKills=dict(first=('undisturbed_run', 'run_that_is_killed'),
                 runs=dict(undisturbed_run=3, run_that_is_killed=9, run_with_a_fault=1)),
    OfSignals=dict(first=('run_that_gets_signals',),
                   runs=dict(undisturbed_run=2, run_that_gets_signals=9, run_that_is_killed=1)),
    OfOutages=dict(first=('run_without_a_pool_for_a_while',), runs=dict(
        undisturbed_run=2, run_without_a_pool_for_a_while=6, run_that_is_killed=2)),
    OfFaults=dict(first=('people_bring_backups_of_325', 'run_with_a_fault'),
                  runs=dict(undisturbed_run=2, run_with_a_fault=12)),
    SideBySide=dict(keys={'parallel': '4'},
                    first=('undisturbed_run', 'run_that_is_killed', 'run_with_a_fault')),
    OfDisksOnly=dict(methods_there_are=('vdi-export',), keys={
        'vdi_export_format': 'auto', 'pool_db_backup': '1', 'pool_db_max_backups': '2'}),
    OfSeveralDisks=dict(methods_there_are=('vdi-export', 'vdi-export', 'vm-export'),
                        keys={'vdi_disks': 'all', 'vdi_compress': 'gzip'})))
load_tests = sampled('.OfKills.', '.OfFaults.', others=2)
