"""Attacks of somebody who may write to the share: at an operation of a command, or before it, a
directory or file is replaced by a link, a hard link, a FIFO, a socket, a device, or a directory.

After each one: nothing outside the share has changed or come, and nothing of it is anywhere; the
pool has lost nothing; the command has ended, without success where a backup is spoilt; the backups
of other VMs are good. What was replaced is put back before that is looked at, as whoever owns the
share can do anything to what is there; see README.md, the threat model.
"""

import contextlib
import gzip
import hashlib
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
import zlib

import VmBackup
from tests import ROOT
from tests.commands import archives
from tests.faults.faulting import FaultCase, manifest_of, read, read_backup
from tests.faults.faulting import sample, sampled, seed, variants
from tests.faults.test_disk import Namespace, missing
from tests.simpool import archive
from tests.tools import attacker, figures
from tests.tools.attacker import FILES, IMAGES, MOVES
from tests.tools.processes import children_of

SECRET = b'root:$6$nobody-may-see-this$:19000:0:99999:7:::\n'
SIZE = 64 << 10
PATIENCE = 20                   # seconds in which a command ends that takes a fifth of one
MEMORY = 1 << 30                # bytes
OLD = 'backup-2009-03-0%d-(02:00:00)'
# What is replaced: <* is the first of that name, else it is the last one that counts.
PATHS = {
    'BACKUPS/web': 'the directory of a VM',
    'BACKUPS/db': 'that of another VM',
    'BACKUPS/db/<backup-*': 'its oldest backup',
    'BACKUPS/web/backup-*': 'the newest backup, or the one that is made',
    'BACKUPS/web/<backup-*': 'the oldest backup',
    'BACKUPS/web/.deleting-*': 'what is being deleted',
    'BACKUPS/web/.deleting-*/DISK-*': 'a directory in it',
    'BACKUPS/web/backup-*/web.xva': 'the archive',
    'BACKUPS/db/backup-*/db.raw': 'the image',
    'BACKUPS/web/<backup-*/web.xva': 'an old archive',
    'BACKUPS/db/<backup-*/db.raw': 'an old image, of which nobody has a checksum',
    'BACKUPS/web/backup-*/snapshot.json': 'the record of a snapshot',
    'BACKUPS/web/backup-*/*snapshot.json*new': 'the same while it is written',
    'BACKUPS/web/backup-*/backup.json': 'the manifest',
    'BACKUPS/db/backup-*/*backup.json*new': 'the same while it is written',
    'BACKUPS/web/backup-*/success': 'the marker',
    'BACKUPS/web/backup-*/RESTORE.txt': 'the guide',
    'BACKUPS/web/backup-*/vm.cfg': 'the configuration',
    'BACKUPS/web/backup-*/vm-metadata.xml': 'the metadata',
    'BACKUPS/web/backup-*/DISK-*': 'the directory of a disk',
    'BACKUPS/web/backup-*/DISK-*/vdi.cfg': 'the configuration of a disk',
    'BACKUPS/web/backup-*/VIFs': 'the directory of the VIFs',
    'BACKUPS/.locks': 'the directory of the locks',
    'BACKUPS/.locks/web.lock': 'a lock',
    'BACKUPS/.locks/.run-*.lock': 'the lock of a run',
    'BACKUPS/00VMbackupWriteTest%20*': 'the write test',
    'BACKUPS/METADATA_*': 'the directory of the pool dumps',
    'BACKUPS/METADATA_*/<pool_db*': 'an old pool dump',
    'BACKUPS/METADATA_*/pool_db*': 'a new pool dump',
    'BACKUPS/.restore-*.json': 'the record of a restore',
    'logs/status.log': 'the status log',
    'BACKUPS/.run-*.json': 'the record of the last run',
    'report/report.json': 'the report',
}
VHD_PATHS = {
    'BACKUPS/.restore-*.json': 'the record of a restore',
    'BACKUPS/db/backup-2009-03-02*/db.vhd.gz': 'a packed image',
    'BACKUPS/db/backup-2009-03-03*/db.vhd': 'an image that xe reads',
    'BACKUPS/db/backup-2009-03-03*': 'its directory',
    'BACKUPS/db': 'the directory of that'}
WORDS = {
    'run': ('password', '{config}'),
    'restore': ('password', 'restore=web', 'from={backups}'),
    'restore of a disk': ('password', 'restore=db', 'from={backups}'),
    'restore of an old image': ('password', 'restore={backups}/db/' + OLD % 1),
    'restore of a packed VHD': ('password', 'restore={backups}/db/%s/db.vhd.gz' % (OLD % 2)),
    'restore of a VHD': ('password', 'restore={backups}/db/%s/db.vhd' % (OLD % 3)),
    'restore of an old archive': ('password', 'restore={backups}/web/' + OLD % 1),
    'test-restore': ('password', 'test-restore=.*', 'from={config}'),
    'verify': ('verify', '{backups}', 'backups=all'),
    'list': ('list', '{config}'),
    'status': ('status', '{config}'),
    'prune': ('prune', '{config}'),
    'protect': ('protect', '{backups}/web/' + OLD % 1),
}


def state(path):
    found = os.lstat(path)
    data = os.readlink(path) if os.path.islink(path) else None if os.path.isdir(path) else \
        read(path)
    return found.st_mode, found.st_uid, found.st_size, found.st_mtime_ns, data


def encoded(document):
    return json.dumps(document).encode()


def tree(top):
    """{path: what tells of a change} of a directory."""
    return {path: state(path) for directory, names, files in os.walk(top)
            for path in [directory] + [os.path.join(directory, name) for name in names + files]}


def differences(before, now):
    """{path: what has become of it}"""
    return {path: 'gone' if path not in now else 'changed' if path in before else 'new'
            for path in set(before) | set(now) if before.get(path) != now.get(path)}


class Attacks(FaultCase):
    """A history, and a command over it that is attacked.

    command     one of WORDS
    paths       what is replaced, as `find` of the attacker takes it
    fault_at    what the pool does meanwhile
    """

    pool_description = {'vms': [
        {'name': 'web', 'disks': [SIZE], 'ran': True},
        {'name': 'db', 'disks': [SIZE], 'ran': True},
        {'name': 'other', 'disks': [SIZE], 'snapshots': ['RESTORE_other']}]}
    rules = ('vm-export=web', 'vdi-export=db')
    keys = {'pre_clean': 'True', 'pool_db_backup': 1, 'pool_db_max_backups': 1}
    max_backups = 1
    linked = ()
    kind = 'attacks on files and directories'
    command = 'run'
    paths = PATHS
    fault_at = ()

    def setUp(self):
        super().setUp()
        self.outside = self.at('outside')
        self.struck = self.at('struck')
        self.keys = dict(self.keys, report_file=self.at('report', 'report.json'))
        for place in ('logs', 'report'):
            os.mkdir(self.at(place))
        self.prepare()
        self.prepared = time.time()
        self.make_outside()
        self.script = self.changed_script(
            DISCARD_PAUSES=(0.05,), BUSY_PAUSES=(0.1,), SNAPSHOT_PAUSES=(0.05,), REAP_TIMEOUT=0.5,
            SECOND_LOOK=0.05)

    def circumstances(self):
        return super().circumstances() + ('VHD' in self.command,)

    def make_history(self):
        for vm, extension in (('web', 'xva'), ('db', 'raw')):
            self.old_backup_of_325(vm, OLD % 1, extension)
        self.put('db/%s/db.raw' % (OLD % 1), b'of 3.25'.ljust(SIZE))
        self.put('db/%s/backup.json' % (OLD % 1), encoded({
            'number': 0, 'vm': {'name': 'db'},
            'disks': [{'file': 'db.raw', 'virtual_size': SIZE}]}))
        self.old_backup('web', OLD % 8, 'vm.cfg')                       # it failed
        self.put('web/.deleting-%s/DISK-xvda/vdi.cfg' % (OLD % 2), b'x')
        self.put('web/.deleting-%s/web.xva' % (OLD % 2), b'x')
        if 'VHD' in self.command:
            image = archive.Image.sample(6 << 20, 'order', 1)
            for day, name, data in ((2, 'db.vhd.gz', gzip.compress(archives.vhd(image), 1)),
                                    (3, 'db.vhd', archives.vhd(image))):
                self.put('db/%s/%s' % (OLD % day, name), data)
                self.put('db/%s/success' % (OLD % day), b'')
        self.max_backups = 3
        self.undisturbed()
        self.max_backups = type(self).max_backups

    def make_outside(self):
        """A directory as in a file-based SR, with names as in a backup, and somebody's files."""
        attacker.remove(self.outside)
        image = archive.Image(SIZE)
        image.write(0, (SECRET * (SIZE // 8))[:SIZE])
        text, disks = archives.described([SIZE])
        for _, each in disks:
            each.write(0, (SECRET * (SIZE // 8))[:SIZE])
        raw = image.read(0, SIZE)
        secrets = {
            IMAGES + '/web.xva': b''.join(archive.xva(text, disks)),
            IMAGES + '/db.raw': raw, IMAGES + '/db.raw.gz': gzip.compress(raw),
            IMAGES + '/%s.vhd' % ('5e' * 16): raw, FILES + '/.bashrc': SECRET}
        if 'VHD' in self.command:
            image = archive.Image(6 << 20)
            image.write(0, raw)
            for place in ('/', '/%s/' % (OLD % 3)):
                secrets[IMAGES + place + 'db.vhd'] = archives.vhd(image)
        run = VmBackup.run_name(self.at('run.cfg'))
        names = ('success', 'backup.json', 'snapshot.json', 'RESTORE.txt', 'vm.cfg', 'web.lock',
                 'vm-metadata.xml', 'DISK-xvda/vdi.cfg', 'VIFs/vif-0.cfg', 'report.json',
                 'status.log', run + '.json', run + '.lock', 'pool_db_20190101-000000.dump',
                 'pool_db_20190102-000000.dump', 'pool_db_20190101-000000.dump.partial')
        for place in ('', OLD % 1 + '/', OLD % 3 + '/', '.deleting-' + OLD % 4 + '/'):
            secrets.update({IMAGES + '/' + place + name: SECRET for name in names})
            secrets.update({IMAGES + '/' + place + 'web.xva': secrets[IMAGES + '/web.xva'],
                            IMAGES + '/' + place + 'db.raw': raw})
        name = SECRET.decode().strip()
        secrets[IMAGES + '/vm.cfg'] = b'name_label=' + SECRET
        secrets[IMAGES + '/backup.json'] = encoded({
            'number': 9, 'started': '2026-03-01T02:00:00+00:00', 'vm': {'name': name}})
        secrets[IMAGES + '/%s.json' % run] = encoded({
            'begun': '2026-03-01T02:00:00+00:00', 'ended': '2026-03-01T02:00:00+00:00',
            'host': 'x', 'process': '1 1', 'result': 'ERROR', 'failed': name})
        for name, data in secrets.items():
            path = os.path.join(self.outside, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self.put_file(path, data)
        self.digests = {hashlib.sha256(data).hexdigest().encode() for data in secrets.values()}
        self.watched = tree(self.outside)
        self.inodes = {os.lstat(path).st_ino for path in self.watched}

    def start_over(self):
        """All as it was, when no run takes a name that a backup of the history has."""
        time.sleep(max(0, self.prepared + 1.1 - time.time()))
        self.rewind()
        for place in ('logs', 'report', 'aside'):
            attacker.remove(self.at(place))
        for place in ('logs', 'report'):
            os.mkdir(self.at(place))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.struck)
        self.make_outside()
        if self.command != 'run':
            self.put_file('logs/status.log', '')
        super().remember()

    def good(self):
        """As there, of this year, and without what holds anything but files and directories."""
        found = {}
        for vm in self.configured():
            for name in self.real(os.path.join(self.backups, vm)):
                path = os.path.join(self.backups, vm, name)
                if self.is_whole(path):
                    found.setdefault(vm, []).append(read_backup(path))
        return found

    @staticmethod
    def real(path):
        return sorted(os.listdir(path)) if os.path.isdir(path) and not os.path.islink(path) else []

    def is_whole(self, path):
        if not os.path.basename(path).startswith('backup-202'):
            return False
        files = [os.path.join(directory, name) for directory, _, names in os.walk(path)
                 for name in names]
        needed = {os.path.join(path, name) for name in ('success', 'backup.json')}
        if not needed <= set(files) or not all(
                stat.S_ISREG(os.lstat(file).st_mode) for file in files):
            return False
        with contextlib.suppress(ValueError, LookupError, TypeError, FileNotFoundError):
            return bool(manifest_of(path)['number'])
        return False

    # A command and its end

    def watched_command(self, **spec):
        """Run the command, watched so; how it ended, a hang being None."""
        words = [word.format(config=self.config_path(), backups=self.backups)
                 for word in WORDS[self.command]]
        for name, do, details in self.fault_at:
            self.fault(name, do, **details)
        before = self.prelude
        self.prelude += 'import resource\nresource.setrlimit(resource.RLIMIT_AS, (%d, %d))\n' % (
            MEMORY, MEMORY)
        self.prelude += ('import json\nfrom tests.tools import launcher\n'
                         'launcher.watch(**json.loads(%r))\n' % json.dumps(spec)) if spec else ''
        child = super(FaultCase, self).start(*words)    # what is there may be a FIFO
        self.prelude = before
        try:
            output = child.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            started = children_of(child.pid)
            child.send_signal(signal.SIGKILL)
            for pid in started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            child.wait()
            child.stdout.close()
            return None, b''
        finally:
            self.sim.pool.faults.clear()
        return child.returncode, output

    def operations(self):
        """How many there are in the command if it meets nothing."""
        counted = self.at('counted')
        self.start_over()
        status, output = self.watched_command(counted=counted)
        self.assertIn(status, (0, 1, 2), output)
        return int(self.read('counted'))

    def attack(self, pattern, move, back=0, salt=''):
        return dict(root=self.directory if pattern else self.backups, pattern=pattern, move=move,
                    outside=self.outside, notes=self.struck, back=back, seed=salt)

    # What has to hold

    def judge(self, status, output):
        """Assert that the attack that the notes tell of has not won."""
        note = {'path': None}
        with contextlib.suppress(FileNotFoundError):
            note = json.loads(self.read(self.struck))
        self.injected('%s; done: %s' % (self.what, note), self.kind)
        renewed = self.renewed(self.good()) if self.command == 'run' else ()    # in what was put
        if note['path'] and not note['back']:
            attacker.put_back(note['path'], note['kept'], note['put'])
        words = '%s; seed %s\n%s' % (self.what, seed(), output.decode('utf-8', 'replace'))
        self.assertEqual({}, self.changes(), 'WON: the outside is touched: ' + words)
        self.assertEqual([], sorted(self.leaks(output)), 'WON: a secret is out: ' + words)
        self.assertIsNotNone(status, 'WON: it hangs: ' + words)
        self.assertNotIn('Traceback', words)
        self.wait_for(self.is_quiet, 'a quiet pool')
        self.check_pool_of_others(words)
        if self.command == 'run' and not self.fault_at:
            lacking = set(self.configured()) - set(renewed) - self.renewed(self.good())
            self.check_backups_made(lacking, status, note['path'] or '', words)
        figures.add(self.kind, checks=5)

    def changes(self):
        return differences(self.watched, tree(self.outside))

    def leaks(self, output):
        """Where something of the outside has got to."""
        texts = {'output': output}
        for directory, _, files in os.walk(self.directory):
            if directory.startswith(self.outside):
                continue
            for path in (os.path.join(directory, name) for name in files):
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode) and status.st_ino not in self.inodes:
                    texts[path] = read(path)
        for where, data in texts.items():
            with contextlib.suppress(zlib.error, OSError, EOFError):
                data = gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data
            if SECRET.strip() in data or any(digest in data for digest in self.digests):
                yield where
        for ref, image in list(self.sim.pool.content.items()):
            if any(SECRET in data for _, data in image.chunks()):
                yield 'the pool: ' + ref

    def check_pool_of_others(self, words):
        now = self.pool_records()
        for cls, records in self.memory.pool.items():
            for ref, record in records.items():
                self.assertEqual(record, now[cls].get(ref), 'WON: %s of the pool: %s' % (
                    cls, words))
        for ref, image in self.memory.disks.items():
            self.assertTrue(image == self.sim.pool.content.get(ref), 'WON: a disk: %s' % words)

    def check_backups_made(self, lacking, status, path, words):
        """Every VM has a new backup but the one that was attacked; that is told."""
        parts = os.path.relpath(path, self.backups).split(os.sep) if path else ['']
        hit = {parts[0]} if parts[0] in self.configured() else set(self.configured()) if \
            parts[0] in ('.locks', '.', '..') or parts[0].startswith('00') else set()
        self.assertLessEqual(lacking, hit, 'WON: another VM lacks its backup: ' + words)
        if lacking:
            self.assertEqual(2, status, 'WON: not told: ' + words)
            told = [line for line in words.splitlines()[1:] if re.search('ERR|WARN|ailed', line)]
            self.assertTrue([line for line in told if parts[-1] in line or os.path.dirname(
                path) in line], 'not named: ' + words)

    def each_attack(self, points, attempt):
        """Try the attacks; so many that win are told."""
        def work(point):
            self.what = '%s: %s' % (self.command, point)
            self.judge(*attempt(*point))
        self.each_of(points, work)


class AtOperations(Attacks):
    """Swaps right before an operation on files, or the start of a process, and back or not."""

    few, each_path = 3, 24      # attacks in the sample; and of all, at each path
    counts = {}                 # of operations, by class

    def last_operation(self):
        name = type(self).__name__
        if name not in self.counts:
            self.counts[name] = self.operations()
        return self.counts[name]

    def test_no_swap_at_an_operation_wins(self):
        last = self.last_operation()
        moves, step = sorted(MOVES), -(-last // self.each_path)
        points = [(pattern, moves[(place + number) % len(moves)],
                   1 + place * step + number % step, (0, 2, 1)[place % 3])
                  for number, pattern in enumerate(sorted(self.paths))
                  for place in range(last // step)]
        self.each_attack(sample(points, self.few, self.id()), self.swap)

    def swap(self, pattern, move, at, back):
        return self.watched_command(at=at, attack=self.attack(pattern, move, back))

    def test_no_random_swap_wins(self):
        last = self.last_operation()
        points = [(number, last) for number in range(60)]
        self.each_attack(sample(points, self.few, self.id()), self.swap_anything)

    def swap_anything(self, number, last):
        chance = random.Random('%s %s %d' % (seed(), self.command, number))
        attack = self.attack('', chance.choice(sorted(MOVES)), chance.choice((0, 0, 1, 2, 3, 9)),
                             str(number))
        return self.watched_command(at=chance.randrange(1, last), attack=attack)


class Before(Attacks):
    """The same is there when a command begins."""

    few = 3

    def test_no_swap_before_a_command_wins(self):
        points = [(pattern, move) for pattern in sorted(self.paths) for move in sorted(MOVES)]
        self.each_attack(sample(points, self.few, self.id()), self.swap)

    def swap(self, pattern, move):
        attacker.Attacker(**self.attack(pattern, move)).strike()
        return self.watched_command()


class SideBySide(Attacks):
    """A process of its own swaps, and back, and again, while a command goes on."""

    few = 3
    patterns = tuple(pattern for pattern in PATHS if pattern.startswith('BACKUPS/web/backup-') and
                     'success' not in pattern) + ('BACKUPS/web', 'logs/status.log')

    def test_no_swapping_while_a_command_goes_on_wins(self):
        points = [(number, self.patterns if number % 2 else self.patterns[number % 8::8])
                  for number in range(24)]
        self.each_attack(sample(points, self.few, self.id()), self.swap)

    def swap(self, number, patterns):
        stop = self.at('aside', 'stop')
        os.makedirs(self.at('aside'))
        how = dict(self.attack('', ''), root=self.directory, stop=stop, patterns=patterns,
                   moves=sorted(MOVES), seed=str(number))
        for name in ('pattern', 'move', 'back'):
            del how[name]
        polling = subprocess.Popen([sys.executable, '-c', 'import json, sys\n'
                                    'from tests.tools.attacker import poll\n'
                                    'poll(**json.loads(sys.argv[1]))', json.dumps(how)], cwd=ROOT)
        try:
            self.wait_for(lambda: os.path.exists(self.struck), 'an attack')
            return self.watched_command()
        finally:
            self.put_file(stop)
            polling.wait()
            self.put_file('struck', encoded({
                'path': os.path.join(self.backups, 'web'), 'kept': None, 'back': True}))


globals().update(variants(AtOperations, **{
    'AtOperationsOf' + name: about for name, about in (
        ('FailingRun', dict(fault_at=(('vm-export', 'die', {'after': 20000}),))),
        ('Restore', dict(command='restore')), ('RestoreOfDisk', dict(command='restore of a disk')),
        ('RestoreOfOldImage', dict(command='restore of an old image')),
        ('TestRestore', dict(command='test-restore')),
        ('Verify', dict(command='verify')), ('List', dict(command='list')),
        ('Status', dict(command='status')), ('Prune', dict(command='prune')),
        ('Protect', dict(command='protect')),
        ('RestoreOfVhd', dict(command='restore of a VHD', paths=VHD_PATHS)),
        ('RestoreOfPackedVhd', dict(command='restore of a packed VHD', paths=VHD_PATHS)),
        ('RunWithGzip', dict(keys=dict(Attacks.keys, vdi_compress='gzip', vdi_disks='all'))))}))
globals().update(variants(SideBySide, **{
    'SideBySideWith' + ''.join(map(str.capitalize, command.split())): dict(command=command)
    for command in ('restore', 'verify', 'prune')}))
globals().update(variants(Before, **{
    'Before' + ''.join(map(str.capitalize, command.split())): dict(command=command)
    for command in WORDS if command != 'run' and 'VHD' not in command}))


class OtherFileSystems(Attacks):
    """What is below backup_dir lies on another file system."""

    def test_a_mount_below_backup_dir_is_an_error_and_untouched(self):
        if missing():
            self.skipTest(missing())
        for pattern, lacking in (('BACKUPS/web', {'web'}), ('BACKUPS/.locks', {'web', 'db'}),
                                 ('BACKUPS/web/<backup-*', set())):
            for command in ('run', 'list', 'status', 'prune'):
                with self.subTest(pattern, command=command):
                    self.command = command
                    self.try_mounting(pattern, lacking)

    def try_mounting(self, pattern, lacking):
        self.start_over()
        path = attacker.find(self.directory, pattern)
        with contextlib.closing(Namespace()) as namespace:
            namespace.do('mount', '-t', 'tmpfs', 'tmpfs', path)
            there = namespace.path(path)
            namespace.do('cp', '-a', os.path.join(self.outside, IMAGES, '.'), path)
            before = tree(there)
            self.prelude = namespace.prelude()
            try:
                status, output = self.watched_command()
            finally:
                del self.prelude
            self.assertEqual({}, differences(before, tree(there)), output)
        self.assertEqual(2 if self.command == 'run' and lacking else status or 0, status, output)
        if self.command == 'run':
            self.assertIn(path, output.decode())
            self.assertEqual(set(self.configured()) - lacking, self.renewed(self.good()), output)


class AsItIsWritten(Attacks):
    """A record of ours gets its name when it is whole."""

    def test_what_took_its_place_before_that_is_no_record_and_no_success(self):
        for move in ('a link to nowhere', 'a file', 'a directory', 'a hard link'):
            with self.subTest(move):
                self.start_over()
                self.what = move
                self.judge(*self.watched_command(at=1, attack=self.attack(
                    'BACKUPS/web/backup-*/*backup.json*new', move)))


class Withstood(Attacks):
    """What a file or directory of the share may hold, and has never done any harm."""

    def spoil(self, vm, name, data):
        """Put a file into the oldest backup of a VM, whose manifest somebody writes."""
        self.put(os.path.join(vm, OLD % 1, name), data)

    def ends(self, command, *statuses):
        self.command = command
        status, output = self.watched_command()
        self.assertIn(status, statuses, output)
        self.assertNotIn(b'Traceback', output)
        self.assertNotIn(b'a bug in', output)
        self.assertEqual({}, self.changes(), output)
        self.assertEqual([], sorted(self.leaks(output)), output)
        self.check_pool_of_others(output)
        return output.decode('utf-8', 'replace')

    def test_names_of_a_manifest_lead_nowhere(self):
        far = [os.path.join(self.outside, IMAGES, 'db.raw'), '../../../outside/sr/db.raw',
               'DISK-xvda/../../../../outside/sr/db.raw']
        for command in ('verify', 'restore of an old image', 'list', 'prune', 'run'):
            with self.subTest(command):
                self.start_over()
                self.spoil('db', 'backup.json', encoded({
                    'number': 0, 'vm': {'name': 'db'},
                    'files': dict(dict.fromkeys(far, 7), **{'db.raw': SIZE}),
                    'verified': {'digests': dict.fromkeys(far, '0' * 64)},
                    'disks': [{'file': name, 'virtual_size': SIZE} for name in far]}))
                self.assertNotIn('has %d bytes, not 7' % SIZE, self.ends(command, 0, 1, 2))

    def test_a_backup_of_deep_directories_ends_and_stops_no_other(self):
        self.start_over()
        self.addCleanup(subprocess.call, ['rm', '-rf', self.backups])   # shutil cannot
        handle = os.open(os.path.join(self.backups, 'web', OLD % 1), os.O_RDONLY)
        for _ in range(2100):
            os.mkdir('x', dir_fd=handle)
            deeper = os.open('x', os.O_RDONLY, dir_fd=handle)
            os.close(handle)
            handle = deeper
        os.close(handle)
        for command in ('verify', 'prune', 'run'):
            with self.subTest(command):
                self.command = command
                status, output = self.watched_command()
                self.assertIn(status, (0, 1, 2), output)
                self.assertNotIn(b'Traceback', output)
                self.assertNotIn(b'a bug in', output)
        self.assertIn('db', self.renewed(self.good()), output)

    def test_a_disk_of_an_exbibyte_is_refused(self):
        self.start_over()
        before = self.contents()
        ova, *others = archives.members(archives.plain([SIZE]))
        ova = ova._replace(data=ova.data.replace(b'<value>%d<' % SIZE, b'<value>%d<' % (1 << 60)))
        self.assertIn(b'%d' % (1 << 60), ova.data)
        huge = archives.joined([ova] + others)
        self.spoil('web', 'web.xva', huge)
        self.spoil('db', 'backup.json', encoded({
            'number': 0, 'vm': {'name': 'db'},
            'disks': [{'file': 'db.raw', 'virtual_size': 1 << 60}]}))
        self.assertEqual(2, self.ends('verify', 2).count(' - ERROR '))
        for command in ('restore of an old image', 'restore of an old archive'):
            self.ends(command, 2)
            self.assertEqual(before, self.contents())


load_tests = sampled('.AtOperations.', '.AtOperationsOfRestore', '.Before.', '.BeforeVerify.',
                     '.SideBySide.', '.OtherFile', '.AsItIs', '.Withstood.', others=3)
