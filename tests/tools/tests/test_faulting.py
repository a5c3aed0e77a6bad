"""The six invariants themselves: what breaks one is found."""

import glob
import json
import os
import shutil
import unittest
import unittest.mock

from tests.faults.faulting import EVERY, FULL, MANIFEST, NOTES, PHASE, RECORD, SEED
from tests.faults.faulting import FaultCase, sample
from tests.tools.support import Done


class Samples(unittest.TestCase):
    """Which of all faults are injected."""

    def chosen(self, **environ):
        with unittest.mock.patch.dict(os.environ, environ):
            return sample(range(10), 2)

    def test_successive_phases_inject_each_fault_once(self):
        parts = [self.chosen(**{FULL: '1', EVERY: '3', PHASE: str(phase)}) for phase in (7, 8, 9)]
        self.assertEqual([[1, 4, 7], [2, 5, 8], [0, 3, 6, 9]], parts)

    def test_without_a_phase_the_seed_tells_which(self):
        parts = {tuple(self.chosen(**{FULL: '1', EVERY: '3', PHASE: '', SEED: str(number)}))
                 for number in range(20)}
        self.assertEqual({(0, 3, 6, 9), (1, 4, 7), (2, 5, 8)}, parts)


class Invariants(FaultCase):
    """Each is broken in every way that it is about, and complains."""

    patience = 0.1

    def setUp(self):
        super().setUp()
        self.prepare()
        self.save()
        self.remember()

    def assert_found(self, number, settled=True, done=None, hit=None):
        """The check complains of that invariant; put back what was broken."""
        with self.assertRaises(AssertionError) as caught:
            self.check(done, settled, hit)
        self.assertRegex(str(caught.exception), r'(^|: |\n)%d: ' % number)
        self.rewind()

    def newest(self, vm, name=''):
        return os.path.join(self.good()[vm][-1].path, name)

    def ref(self, cls, name):
        return next(ref for ref, record in self.sim.pool.tables[cls].items()
                    if record['name_label'] == name and not record['is_a_snapshot'])

    def test_nothing_is_said_while_they_hold(self):
        self.check(None, settled=True)
        self.check(self.backup(), settled=True, hit=())

    def test_the_first_finds_a_backup_that_went_out_of_turn_or_too_early(self):
        shutil.rmtree(self.newest('web'))
        self.assert_found(1)
        shutil.rmtree(self.good()['web'][0].path)
        self.assert_found(1)
        for backup in self.good()['app']:
            shutil.rmtree(backup.path)
        self.assert_found(1)
        os.unlink(self.newest('db', 'success'))
        self.assert_found(1)
        self.put(self.newest('db', 'db.raw'), b'changed')
        self.assert_found(1)

    def test_the_second_finds_what_was_done_to_the_things_of_others(self):
        self.put('web/notes.txt', b'other words')
        self.assert_found(2)
        os.unlink(os.path.join(self.outside, 'web.xva'))
        self.assert_found(2)
        self.put(os.path.join(self.outside, 'web.xva'), b'far away')
        link = os.path.join(self.backups, self.twin, 'backup-2018-01-01-(00:00:00)')
        os.unlink(link)
        os.mkdir(link)
        self.assert_found(2)
        self.put('web.tmp', b'whose is this?')
        self.assert_found(2)
        pool, vm = self.sim.pool, self.ref('VM', 'other')
        pool.put('VM', vm, name_label='another')
        self.assert_found(2)
        pool.content[self.ref('VDI', 'other 0')].write(0, b'new')
        self.assert_found(2)
        pool.drop_vdi(next(ref for ref, record in pool.tables['VDI'].items()
                           if record['name_label'] == 'SNAP_db_db-0'))
        self.assert_found(2)

    def test_the_third_finds_what_is_left(self):
        pool, disk = self.sim.pool, self.ref('VDI', 'db 0')
        for settled in (True, False):
            pool.call('VDI.snapshot', disk)
            self.assert_found(3, settled)
        left = pool.call('VDI.snapshot', disk)
        record = dict(kind='VDI', of=pool.tables['VDI'][disk]['uuid'],
                      uuid=pool.tables['VDI'][left]['uuid'], disks=[])
        self.put(self.newest('db', RECORD), json.dumps(record).encode())
        self.remember_less()
        self.check(None, settled=False)
        pool.drop_vdi(left)
        self.assert_found(3)

    def remember_less(self):
        self.memory = self.memory._replace(good=self.good())

    def test_the_third_finds_a_session_that_is_left(self):
        self.sim.pool.login('root', 'password')
        self.assert_found(3)

    def test_the_fourth_finds_a_backup_that_is_not_what_it_seems(self):
        def cut(path):
            with open(path, 'r+b') as stream:
                stream.truncate(os.stat(path).st_size - 1500)

        def turn_over(path):
            with open(path, 'r+b') as stream:
                stream.seek(-600000, os.SEEK_END)
                byte = stream.read(1)
                stream.seek(-1, os.SEEK_CUR)
                stream.write(bytes([byte[0] ^ 1]))

        def lie_of_the_size(path):
            cut(path)
            manifest = os.path.join(os.path.dirname(path), MANIFEST)
            told = json.loads(self.read(manifest))
            told['files'][os.path.basename(path)] = os.stat(path).st_size
            self.put(manifest, json.dumps(told).encode())
        for vm, name in (('web', 'web.xva'), ('db', 'db.raw')):
            for spoil in (cut, turn_over, lie_of_the_size, os.unlink):
                with self.subTest((vm, spoil.__name__)):
                    self.spoil_a_new_one(vm, name, spoil)
        self.spoil_a_new_one('app', MANIFEST, os.unlink)
        self.spoil_a_new_one('app', MANIFEST, lambda path: self.put(path, b'{"number": 9}'))

    def spoil_a_new_one(self, vm, name, spoil):
        newest = self.newest(vm)
        new = os.path.join(os.path.dirname(newest.rstrip('/')), 'backup-2030-01-01-(00:00:00)')
        shutil.copytree(newest, new, ignore=shutil.ignore_patterns(NOTES, '@eaDir'))
        self.verified.clear()
        spoil(os.path.join(new, name))
        self.assert_found(4)

    def test_the_fifth_finds_a_false_success_and_a_silent_failure(self):
        self.assert_found(5, done=Done(0, ''))
        self.assert_found(5, done=Done(1, ''))
        self.check(Done(2, ''), settled=True)
        self.assert_found(5, done=Done(2, 'Traceback (most recent call last):'))
        done = self.backup()
        self.assert_found(5, done=done._replace(status=2))
        done = self.backup()
        os.unlink(self.status_log)
        self.assert_found(5, done=done)

    def test_the_sixth_finds_a_vm_that_was_not_backed_up(self):
        self.rules = ('vm-export=web', 'vdi-export=db', 'vm-export=nobody')
        done = self.backup()
        self.check(done, settled=True, hit=('nobody',))
        shutil.rmtree(self.newest('web'))
        self.remember_less()
        self.assert_found(6, done=done, hit=('nobody',))
        self.assertEqual([], glob.glob(os.path.join(self.backups, 'nobody')))
