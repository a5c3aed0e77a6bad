"""Disk full, read-only, unmounted, gone: on real small file systems, in the midst of runs.

The simulated pool runs in this process; VmBackup.py, and with it xe, runs in a mount namespace of
its own, where backup_dir is a tmpfs. This process sees into it through /proc/PID/root.
"""

import functools
import os
import shutil
import subprocess
import unittest

from tests.faults.faulting import TWIN, FaultCase, sample, sampled
from tests.simpool.archive import Image

KIB = 1 << 10
AMPLE = 64 << 20            # bytes: room for everything
MANY = 4096                 # files: the same
TOOLS = ('unshare', 'nsenter', 'mount', 'umount', 'sh', 'cat')


def unshare():
    return ['unshare', '-m'] if os.geteuid() == 0 else ['unshare', '-r', '-m']


@functools.lru_cache(None)
def missing():
    tools = [tool for tool in TOOLS if not shutil.which(tool)]
    if tools:
        return 'small file systems need ' + ', '.join(tools)
    try:
        done = subprocess.run(unshare() + ['mount', '-t', 'tmpfs', 'tmpfs', '/tmp'],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return 'no mount namespace: %s' % error
    words = done.stdout.decode('utf-8', 'replace').strip()
    return 'neither root nor a user namespace may mount here: ' + words if done.returncode else ''


class Namespace:
    """A mount namespace that lasts until it is closed: a process in it waits for the end of its
    input."""

    def __init__(self):
        self.holder = subprocess.Popen(unshare() + ['sh', '-c', 'echo ready; exec cat'],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.holder.stdout.readline()

    def words(self):
        options = ['-m'] if os.geteuid() == 0 else ['-U', '-m', '--preserve-credentials']
        return ['nsenter'] + options + ['-t', str(self.holder.pid), '--']

    def prelude(self):
        return 'from tests.tools.processes import enter\nenter(%d)\n' % self.holder.pid

    def do(self, *words):
        done = subprocess.run(self.words() + list(words), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError('%s: %s' % (' '.join(words), done.stdout.decode('utf-8')))

    def path(self, path):
        return '/proc/%d/root%s' % (self.holder.pid, path)

    def close(self):
        self.holder.communicate()


class SmallShare:
    """A case whose backup_dir is a mount of so much, in a namespace of its own."""

    share_size = '16m'

    def setUp(self):
        super().setUp()
        if missing():
            self.skipTest(missing())
        namespace = Namespace()
        self.addCleanup(namespace.close)
        namespace.do('mount', '-t', 'tmpfs', '-o', 'mode=755,size=' + self.share_size, 'tmpfs',
                     self.backups)
        self.share, self.backups = self.backups, namespace.path(self.backups)
        self.prelude = namespace.prelude()

    def config(self, *lines, **keys):
        """The script sees the share where it is mounted, and this process elsewhere."""
        return super().config(*lines, **dict(keys, backup_dir=self.share))


class DiskCase(FaultCase):
    """A test whose backup_dir is a mount of a small file system of its own.

    The file system stays at `disk` when it is unmounted from backup_dir, which is `mounted`.
    """

    pool_description = dict(FaultCase.pool_description, vms=[
        dict(vm, disks=[{'size': '1 MiB', 'fill': 0}] * len(vm.get('disks', ())))
        for vm in FaultCase.pool_description['vms']])

    @classmethod
    def setUpClass(cls):
        if missing():
            raise unittest.SkipTest(missing())

    def setUp(self):
        super().setUp()
        self.namespace = Namespace()
        self.addCleanup(self.namespace.close)
        self.prelude = self.namespace.prelude()
        self.mounted, self.disk = self.backups, os.path.join(self.directory, 'disk')
        os.mkdir(self.disk)
        self.namespace.do('mount', '-t', 'tmpfs', '-o', 'mode=755,size=%d,nr_inodes=%d' % (
            AMPLE, MANY), 'tmpfs', self.disk)
        self.mount()
        self.backups = self.namespace.path(self.mounted)
        self.keys = dict(self.keys, backup_dir=self.mounted)
        self.prepare()
        self.remember()
        self.check(None, settled=True)

    def make_history(self):
        super().make_history()
        self.undisturbed()

    def room(self, size=AMPLE, files=MANY):
        """Give the file system so much room. (With its source and type told, mount does not add
        options that a user namespace may not set.)"""
        self.namespace.do('mount', '-n', '-i', '-t', 'tmpfs', '-o',
                          'remount,size=%d,nr_inodes=%d' % (size, files), 'tmpfs', self.disk)

    def used(self):
        found = os.statvfs(self.namespace.path(self.disk))
        return ((found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree)

    def mount(self):
        self.namespace.do('mount', '--bind', self.disk, self.mounted)

    def unmount(self):
        self.namespace.do('umount', '-l', self.mounted)

    def fill_disks(self, fill):
        """Let the disks of VMs hold so much data: a backup of zeros is a small one."""
        with self.sim.pool.lock:
            for ref, image in list(self.sim.pool.content.items()):
                if not self.sim.pool.tables['VDI'][ref]['is_a_snapshot']:
                    self.sim.pool.content[ref] = Image.sample(
                        image.virtual_size, ref, fill) if fill else Image(image.virtual_size)

    def checked(self):
        self.remember()
        self.check(self.undisturbed(), settled=True, hit=())


class DiskFull(DiskCase):
    """There is room for a part of a run only."""

    kind = 'disk full'
    step = 256 * KIB

    def with_room(self, size, files=MANY, fill=1):
        self.fill_disks(fill)
        self.remember()
        self.injected('room for %d bytes, %d files' % (size, files))
        used = self.used()
        self.room(used[0] + size, min(MANY, used[1] + files))
        done = self.backup()
        self.room()
        self.check(done, settled=True)
        self.fill_disks(0)
        self.checked()
        return done

    def needed(self, fill):
        keep, self.max_backups = self.max_backups, 99
        self.fill_disks(fill)
        before = self.used()
        self.checked()
        after = self.used()
        self.max_backups = keep
        self.fill_disks(0)
        self.checked()
        return after[0] - before[0], after[1] - before[1]

    def at_each(self, rooms):
        for room in sample(rooms, 1, self.id()):
            with self.subTest(room):
                self.with_room(*room)

    def test_at_every_size_up_to_all_that_is_needed(self):
        size, _ = self.needed(1)
        self.at_each([(room,) for room in range(0, size + self.step, self.step)])

    def test_at_every_page_for_the_small_files(self):
        self.at_each([(room,) for room in range(0, 160 * KIB, self.step // 32)])

    def test_at_every_number_of_files_up_to_all_that_are_needed(self):
        _, files = self.needed(1)
        self.at_each([(AMPLE // 2, room) for room in range(0, files + 1, 2)])

    def test_with_a_little_more_than_it_needs_all_is_well(self):
        size, files = self.needed(1)
        done = self.with_room(size + 64 * KIB, files + 4)
        self.assertIn(done.status, (0, 1), done.output)

    def test_less_than_the_last_backup_took_fails_before_any_snapshot(self):
        self.fill_disks(1)
        self.checked()
        for room in sample(range(64 * KIB, 1 << 20, 64 * KIB), 1, 'known'):
            self.remember()
            self.injected('%d bytes less than is known to be needed' % room)
            self.room(self.used()[0] + room)
            calls = len(self.xe_calls())
            done = self.backup()
            self.room()
            self.assertEqual([], [verb for verb, _ in self.xe_calls()[calls:]
                                  if verb in ('vm-snapshot', 'vdi-snapshot')], done.output)
            self.assertEqual(2, done.status)
            self.assertEqual(3, '\n'.join(self.status()).count('NO-SPACE '), done.output)
            self.check(done, settled=True)
            os.unlink(self.status_log)


class FullForEverything(DiskFull):
    kind = 'disk full, status log too'
    step = 512 * KIB

    def setUp(self):
        super().setUp()
        self.put('logs/old.log', b'')
        self.status_log = os.path.join(self.mounted, 'logs', 'status.log')

    def foreign(self):
        logs = os.path.join(self.backups, 'logs')
        return {path: content for path, content in super().foreign().items()
                if not path.startswith(logs)}

    def check(self, done, settled, **options):
        super().check(done, settled, told=False, **options)

    test_less_than_the_last_backup_took_fails_before_any_snapshot = None
    test_with_a_little_more_than_it_needs_all_is_well = None
    test_at_every_number_of_files_up_to_all_that_are_needed = None


class AtCalls(FaultCase):
    """Something happens to backup_dir when the k-th call reaches the pool."""

    def numbers(self, first, step):
        self.sim.pool.journal = []
        self.undisturbed()
        return sample(range(first, len(self.sim.pool.journal) + 1, step), 1, self.id())

    def at_each(self, first, step, *event, **how):
        for number in self.numbers(first, step):
            with self.subTest(number):
                self.remember()
                self.strike(number, *event, **how)

    def strike(self, number, what, happens, mended, settled=False):
        """One such event, and a run after it was mended. (The run, at its k-th call.)"""
        self.injected('%s at call %d' % (what, number))
        failures = []

        def strike(count, _):
            if count == number:
                with self.sim.pool.lock:
                    try:
                        happens()
                    except Exception as error:      # for the test, not for the pool
                        failures.append(error)
        done = self.run_with(strike)
        self.assertEqual([], failures)
        self.assertGreaterEqual(self.called, number, done.output)
        self.wait_for(lambda: self.is_quiet() and not self.extra(),
                      'the end of all that was in the pool: %s\n%s' % (self.what, done.output))
        mended()
        self.check(done, settled)
        self.check(self.undisturbed(), settled=True, hit=())


class AtACall(DiskCase, AtCalls):
    """The file system is taken away, or cannot be written any more."""

    kind = 'file system taken away'
    keys = {'pool_db_backup': 1, 'require_mount': 'auto'}

    def prepare(self):
        fstab = self.put_file('fstab', 'server:/backups %s nfs defaults 0 0\n' % self.mounted)
        self.script = self.changed_script(FSTAB=fstab)
        super().prepare()

    def test_read_only(self):
        """What is open for writing would not let it be remounted, so the same is mounted over it
        once more, read-only."""
        readable = os.path.join(self.directory, 'readable')
        os.mkdir(readable)
        self.namespace.do('mount', '--bind', self.disk, readable)
        self.namespace.do('mount', '-o', 'remount,bind,ro', readable)
        self.at_each(2, 2, 'read-only', lambda: self.namespace.do(
            'mount', '--bind', readable, self.mounted), self.unmount)

    def test_unmounted(self):
        def mended():
            below = os.listdir(self.backups)
            for name in below:
                shutil.rmtree(os.path.join(self.backups, name), ignore_errors=True)
            self.mount()
            self.assertEqual([], below, 'written below the mount: ' + self.what)
        self.at_each(1, 2, 'unmounted', self.unmount, mended)

    def test_unmounted_and_mounted_again_before_the_next_vm(self):
        def flap():
            self.unmount()
            self.mount()
        self.at_each(2, 4, 'unmounted and mounted', flap, lambda: None)


class Vanishing(AtCalls):
    """A directory vanishes: it is renamed, or removed."""

    kind = 'a directory vanishes'

    def setUp(self):
        super().setUp()
        self.prepare()

    def test_backup_dir_is_renamed(self):
        away = self.backups + '.away'

        def mended():
            self.assertFalse(os.path.exists(self.backups), self.what)
            put_back()

        def put_back():
            if os.path.exists(away):
                shutil.rmtree(self.backups, ignore_errors=True)
                os.rename(away, self.backups)
        self.addCleanup(put_back)
        self.at_each(2, 3, 'backup_dir renamed', lambda: os.rename(self.backups, away), mended)

    def test_backup_dir_is_removed(self):
        self.removed(2, '', lambda: shutil.rmtree(self.backups))

    def test_the_directory_of_a_vm_is_removed(self):
        self.removed(3, 'app', lambda: shutil.rmtree(os.path.join(self.backups, TWIN)))

    def test_the_new_directory_is_removed(self):
        def remove_new():
            for directory in {os.path.dirname(path) for path in self.open_records()}:
                shutil.rmtree(directory)
        self.removed(1, None, remove_new)

    def removed(self, first, vm, happens):
        """Somebody removes something at each call: the directory of a VM, all (''), or what the
        run has begun (None). What is gone by that is not missed; a backup that is removed after
        its run has recorded it is not the run's business."""
        def event():
            if not self.renewed(self.good()) >= ({vm} if vm else set(self.configured())):
                happens()
                self.backups_before = {key for key in self.backups_before
                                       if os.path.exists(key[0])}

        def mended():
            os.makedirs(self.backups, exist_ok=True)
        for number in self.numbers(first, 3):
            with self.subTest(number):
                self.remember()
                if vm is not None:
                    self.memory = self.memory._replace(
                        good={name: backups for name, backups in self.memory.good.items()
                              if vm and name != vm},
                        foreign={path: content for path, content in self.memory.foreign.items()
                                 if not path.startswith(os.path.join(
                                     self.backups, vm.replace('app', TWIN)))})
                self.strike(number, '%s removed' % (vm or 'backup_dir'), event, mended,
                            settled=True)


load_tests = sampled('.DiskFull.test_at_every_size', others=2)
