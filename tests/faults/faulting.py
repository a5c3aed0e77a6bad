"""What the tests that inject faults share: a pool and a history to hit, and the six invariants.

1. A successful backup is only ever deleted by rotation: oldest first, and after enough newer ones.
2. Nothing in the pool and nothing on disk that this program did not make is ever touched.
3. Nothing of ours is left in the pool, nor a record of a snapshot that is no longer there.
4. A directory that counts as a backup is complete and described by its manifest.
5. Exit status 0 means a new good backup of every configured VM; every other end is told.
6. A fault of one VM does not stop the backups of the others.

Which faults are injected, the environment tells:

VMBACKUP_TEST_FULL=1    all of them (python3 -m tests faults sets it), else a small sample
VMBACKUP_TEST_SEED=S    which ones are in the sample, and what is random otherwise
VMBACKUP_TEST_EVERY=N   of all of them every Nth; the seed tells with which one it begins
VMBACKUP_TEST_PHASE=K   exactly those whose number modulo N is that of K: after N successive K's
                        all of them have been injected
"""

import contextlib
import copy
import datetime
import hashlib
import heapq
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
import unittest
import urllib.parse
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from tests import SCRIPT
from tests.tools import figures
from tests.tools.processes import children_of, pids, process_name, read_proc, xe_name
from tests.simpool import archive
from tests.tools.support import LIMIT, Journal, PoolCase

MIB = 1 << 20
MARKERS = ('success', 'success_compress', 'success_restore', 'success_compressing')
MANIFEST = 'backup.json'
RECORD = 'snapshot.json'
LOCKS = '.locks'
RUN = '.run-'
DELETING = '.deleting-'
CLAIM = '.vm-'
FAILED = 'backup-2019-03-09-(02:00:00)'
NOTES = 'notes.txt'         # what people put into a dated directory, and @eaDir/x their NAS
WRITE_TEST = '00VMbackupWriteTest'
BACKUP_NAME = re.compile(r'backup-(\d{4})-(\d\d)-(\d\d)-\((\d\d):(\d\d):(\d\d)\)\Z')
DUMPS = 'METADATA_'
APP = 'abcdef01-2345-6789-9876-543210fedcba'    # uuid of the VM app, which has a namesake,
TWIN = 'app~' + APP[:8]                         # and the name of its directory
EXPORTED = re.compile(r'\.(xva|raw|vhd)(\.gz|\.zst)?\Z')
MANIFEST_KEYS = set('schema version vm method host pool xapi number started finished files disks'
                    ' left_out snapshot verified warnings'.split())
CLASSES = ('VM', 'VBD', 'VDI', 'VIF')
# What a backup may change in the record of somebody else's object, for a while only; a start of
# xapi forgets the metrics of each VBD.
OPERATIONS = {'current_operations', 'allowed_operations'}
PASSING = {'VM': OPERATIONS | {'snapshots', 'children', 'parent'}, 'VBD': OPERATIONS | {'metrics'},
           'VDI': OPERATIONS | {'snapshots', 'VBDs'}, 'VIF': OPERATIONS}

FAILURES = 5                # of a test, after which it does not look for more
OUTAGE = 0.15               # seconds in which there is no daemon

SEED = 'VMBACKUP_TEST_SEED'
FULL = 'VMBACKUP_TEST_FULL'
EVERY = 'VMBACKUP_TEST_EVERY'
PHASE = 'VMBACKUP_TEST_PHASE'

HISTORIES = {}              # type: Dict[Any, State]
COUNTS = {}                 # type: Dict[Any, Any]


def full():
    return os.environ.get(FULL, '') not in ('', '0')


def seed():
    """What samples and random tests begin with; the environment may set it."""
    return os.environ.get(SEED) or '1'


def every():
    """Which part of all faults is wanted in the full run: every so many-th."""
    return int(os.environ.get(EVERY) or 1)


def phase():
    """The number modulo every() of those, or None where the seed tells."""
    return int(os.environ[PHASE]) % every() if os.environ.get(PHASE) else None


def sample(points, count, salt=''):
    """All of the points in the full run, or the part that is wanted, else so many of them, by the
    seed; in their order."""
    points = list(points)
    if not full():
        chosen = random.Random('%s:%s' % (seed(), salt)).sample(
            range(len(points)), min(count, len(points)))
        return [points[number] for number in sorted(chosen)]
    first = phase()
    if first is None:
        first = random.Random('%s/%s' % (seed(), salt)).randrange(every()) % (len(points) or 1)
    return points[first::every()]


def sampled(*always, others=0):
    """A module's load_tests: all tests in the full run; else those whose ids contain such a text,
    and one of each of so many other classes, by the seed."""
    def load_tests(loader, tests, pattern):
        chosen, rest = unittest.TestSuite(), []
        for cases in map(list, tests):
            wanted = [case for case in cases if full() or any(text in case.id() for text in always)]
            chosen.addTests(wanted)
            rest += [cases] if cases and not wanted else []
        chance = random.Random('classes:' + seed())
        chosen.addTests(chance.choice(cases)
                        for cases in chance.sample(rest, min(others, len(rest))))
        return chosen
    return load_tests


def variants(case, **differences):
    """{name: a class of tests like this one, but for these attributes}, for its module."""
    return {name: type(name, (case,), dict(attributes, __module__=case.__module__))
            for name, attributes in differences.items()}


def is_dated(path):
    """Whether a path is that of a dated directory: of that name, a real date, and no link."""
    found = BACKUP_NAME.match(os.path.basename(path))
    if not found or os.path.islink(path) or not os.path.isdir(path):
        return False
    try:
        datetime.datetime(*map(int, found.groups()))
    except ValueError:
        return False
    return True


def is_ours(relative, path):
    """Whether something below backup_dir (relative to that) is this program's to make or remove."""
    parts = os.path.normpath(relative).split(os.sep)
    if len(parts) == 1:
        return parts[0] == LOCKS or parts[0].startswith((WRITE_TEST, DUMPS, RUN))
    return len(parts) == 2 and (is_dated(path) or parts[1].startswith((DELETING, CLAIM)))


def read(path):
    with open(path, 'rb') as stream:
        return stream.read()


def read_backup(path):
    paths = [os.path.join(directory, name) for directory, _, names in os.walk(path)
             for name in names]
    files = [(os.path.relpath(each, path), os.stat(each).st_size,
              hashlib.sha1(read(each)).hexdigest()) for each in paths]
    return Backup(path, manifest_of(path), tuple(sorted(files)))


def in_order(backups):
    """Backups, oldest first: by their manifests' numbers, those of 3.25 among them by time."""
    ours = [backup for backup in backups if backup.manifest]
    others = [backup for backup in backups if not backup.manifest]
    return list(heapq.merge(sorted(ours, key=lambda backup: backup.manifest['number']),
                            sorted(others), key=began))


def began(backup):
    """When a backup began, as text that sorts: by its manifest, else by its name."""
    if backup.manifest:
        return backup.manifest['started'][:19]
    return '%s-%s-%sT%s:%s:%s' % BACKUP_NAME.match(os.path.basename(backup.path)).groups()


def manifest_of(path):
    path = os.path.join(path, MANIFEST)
    return json.loads(read(path).decode('utf-8')) if os.path.exists(path) else None


def packed(place):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w') as tar:
        for name in sorted(os.listdir(place)):
            tar.add(os.path.join(place, name), name)
    return stream.getvalue()


def files_in(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def unpack(data, place):
    if os.listdir(place):
        shutil.rmtree(place)
        os.mkdir(place)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extraction_filter = lambda member, _: member        # links to anywhere are meant
        tar.extractall(place)


@contextlib.contextmanager
def opened(path):
    program = {'.gz': 'gzip', '.zst': 'zstd'}.get(os.path.splitext(path)[1])
    with open(path, 'rb') as stream:
        if not program or '.xva' in path:
            yield stream
            return
        done = subprocess.run([program, '-dc'], stdin=stream, stdout=subprocess.PIPE, timeout=LIMIT)
        yield io.BytesIO(done.stdout)


def read_images(stream, name, virtual_size):
    if '.raw' in name:
        return [archive.read_raw(stream, virtual_size)]
    if '.vhd' in name:
        return [archive.read_vhd(stream)]
    return list(archive.read_xva(stream).disks.values())


class Backup(NamedTuple):
    path: str
    manifest: Optional[Dict[str, Any]]  # None: it has none
    files: Tuple[Tuple[str, int, str], ...]     # (path in it, size, digest) of every file

    @property
    def key(self):
        """What makes it this one: its name may have been another's before."""
        return self.path, self.manifest['number'] if self.manifest else 0


class State(NamedTuple):
    tree: bytes                         # an archive of backup_dir
    tables: Dict[str, Dict[str, Any]]   # of the pool
    content: Dict[str, archive.Image]   # of the pool's disks
    notes: Any                          # see FaultCase


class Memory(NamedTuple):
    good: Dict[str, List[Backup]]       # by VM directory, oldest first
    pool: Dict[str, Dict[str, Dict[str, Any]]]
    disks: Dict[str, archive.Image]
    foreign: Dict[str, Any]             # files of others: path -> bytes, a link's target, None


class FaultCase(PoolCase):
    """A test that injects faults into runs and then asks for the six invariants.

    kind         what is injected: the line of the table that faults and checks are counted for
    rules        the config's lines that select VMs, or disks
    keys         further keys of the config, beside the usual ones
    max_backups  of every VM, but for those that `keep` names
    script       what is run; see changed_script
    patience     seconds in which the daemon may still notice that a client has ended
    notes        what make_history has to tell
    linked       VMs in whose directories there is a link, named like a backup, to files elsewhere
    """

    pool_description = {
        'vms': [
            {'name': 'web', 'power_state': 'Running', 'disks': [{'size': '1 MiB', 'fill': 1}]},
            {'name': 'db', 'disks': [{'size': '1 MiB', 'fill': 1}], 'ran': True},
            {'name': 'app', 'uuid': APP, 'ran': True,
             'disks': [{'size': '1 MiB', 'fill': 1}, '1 MiB']},
            {'name': 'app', 'uuid': 'f' + APP[1:]},
            {'name': 'RESTORE_web', 'disks': ['1 MiB'], 'ran': True},
            {'name': 'other', 'disks': ['1 MiB'], 'snapshots': ['RESTORE_other']}]}
    leaves_things_behind = True         # what may be left is the third invariant's business
    kind = 'other faults'
    rules = ('vm-export=web', 'vdi-export=db', 'vm-export=uuid:' + APP)
    keys = {}                           # type: Dict[str, Any]
    max_backups = 2
    keep = {}                           # type: Dict[str, int]
    script = SCRIPT
    patience = 10
    notes = None
    linked = ('web', 'app')             # type: Tuple[str, ...]

    def setUp(self):
        super().setUp()
        self.outside = os.path.join(self.directory, 'elsewhere')
        self.what = 'nothing yet'
        self.verified = set()
        self.child = None
        self.begin_run()

    def use_pool(self, **options):
        super().use_pool(**options)
        pool = self.sim.pool
        refs = {record['name_label']: ref for ref, record in pool.tables['VM'].items()
                if not record['is_a_snapshot'] and not record['is_a_template']}
        if 'web' in refs:
            pool.call('VM.snapshot', refs['web'], 'RESTORE_web')
        if 'db' in refs:
            disk = pool.tables['VBD'][pool.tables['VM'][refs['db']]['VBDs'][0]]['VDI']
            snapshot = pool.call('VDI.snapshot', disk)
            pool.call('VDI.set_name_label', snapshot, 'SNAP_db_db-0')
        self.before = self.contents()

    # What the runs find

    @property
    def twin(self):
        """The name of the directory of the VM app."""
        return TWIN if APP in str(self.pool_description) else 'app'

    def prepare(self):
        """Have a history; where another test made it in the same circumstances, a copy of that."""
        key = self.circumstances()
        if key in HISTORIES:
            self.saved = HISTORIES[key]
            self.rewind()
        else:
            self.make_history()
            self.save()
            HISTORIES[key] = self.saved
        self.put(os.path.join(self.outside, 'success'), b'')
        self.put(os.path.join(self.outside, 'web.xva'), b'far away')
        for vm in self.linked:
            os.symlink(self.outside, os.path.join(
                self.backups, vm.replace('app', self.twin), 'backup-2018-01-01-(00:00:00)'))

    def circumstances(self):
        """What a history depends on; keys that name this test's files are no matter of it."""
        keys = sorted((key, str(value)) for key, value in self.keys.items()
                      if self.directory not in str(value))
        return (type(self).make_history, str(self.pool_description), self.rules, self.max_backups,
                str(keys))

    def make_history(self):
        for vm, extension in (('web', 'xva'), ('db', 'raw'), (self.twin, 'xva')):
            self.old_backup_of_325(vm, 'backup-2019-03-01-(02:00:00)', extension)
        for vm, uuid in (('app', 'f' + APP[1:]), (TWIN, APP)) if self.twin == TWIN else ():
            self.put(vm + '/backup-2019-03-01-(02:00:00)/success', b'')
            self.put(vm + '/backup-2019-03-01-(02:00:00)/vm.cfg', b'orig_uuid=%s\n' % uuid.encode())
        self.old_backup_of_325('web', 'backup-2019-03-08-(02:00:00)', 'xva')
        self.old_backup('db', 'backup-2019-03-08-(02:00:00)', 'vm.cfg')         # it failed
        self.put('web/KEEP-golden/web.xva', b'golden')
        self.put('web/notes.txt', b'who to call')
        self.put('db/backup-2019-02-30-(02:00:00)/db.raw', b'no such day')
        self.put('app/backup-2019-03-02/success', b'somebody else made that')
        self.put('README', b'mine')
        self.put('web.old/backup-of-web/disk', b'of another program')
        self.undisturbed()
        self.old_backup('db', FAILED, 'vm.cfg')
        for path in self.dated_paths():
            self.put(os.path.join(path, NOTES), b'look here')
            self.put(os.path.join(path, '@eaDir', 'x'), b'')

    def undisturbed(self):
        """A run that meets nothing; it tells of people's snapshots, so that its status may be 1."""
        done = self.backup()
        self.assertIn(done.status, (0, 1), done.output)
        return done

    def put(self, path, data):
        path = os.path.join(self.backups, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.put_file(path, data)

    def old_backup_of_325(self, vm, name, extension):
        path = self.old_backup(vm, name, 'vm.cfg', 'success')
        self.put(os.path.join(path, '%s.%s' % (vm, extension)), b'made by 3.25')
        return path

    def save(self):
        pool = self.sim.pool
        with pool.lock:
            self.saved = State(packed(self.backups), *copy.deepcopy(
                (pool.tables, pool.content, self.notes)))

    def rewind(self):
        unpack(self.saved.tree, self.backups)
        pool = self.sim.pool
        with pool.lock:
            tables, content, self.notes = copy.deepcopy(self.saved[1:])
            for cls, records in tables.items():
                pool.tables[cls].clear()
                pool.tables[cls].update(records)
            pool.content.clear()
            pool.content.update(content)
        pool.faults.clear()
        pool.journal = []
        self.before = self.contents()
        self.begin_run()

    # Runs

    def config_path(self):
        return self.config(*self.rules, **dict({'max_backups': self.max_backups}, **self.keys))

    def configured(self):
        words = [rule.partition('=') for rule in self.rules]
        return {re.sub(r':\d+\Z', '', name.replace('uuid:' + APP, 'app')): method
                for method, _, name in words
                if method in ('vm-export', 'vdi-export')}

    def start(self, *arguments, **environ):
        """Start a run; return the process. What is there now is what this run is measured by."""
        self.begin_run()
        return super().start(*arguments, **environ)

    def begin_run(self):
        self.backups_before = self.named()
        self.told_before = len(self.status_lines())

    def each_of(self, points, work):
        """Do the work for each point, all from the same beginning."""
        failures = 0
        for point in points:
            with self.subTest(point=point):
                try:
                    self.start_over()
                    work(point)
                except BaseException:
                    failures += 1
                    self.doCleanups()
                    self.setUp()
                    raise
            if failures >= FAILURES:
                self.fail('%d points failed: no more are tried' % failures)

    def named(self):
        return {(path, (manifest_of(path) or {'number': 0})['number'])
                for paths in self.marked().values() for path in paths}

    def start_backup(self, **environ):
        return self.start('password', self.config_path(), **environ)

    def backup(self, **environ):
        return self.finish(self.start_backup(**environ))

    def run_with(self, tell, pause=OUTAGE):
        """A run, of whose calls to the pool `tell` is told as they come in: number and call."""
        ready = threading.Event()

        def wait_and_tell(number, call):
            ready.wait(LIMIT)
            tell(number, call)
        self.sim.pool.journal = Journal(wait_and_tell)
        self.child = self.begin()
        ready.set()
        with self.reviving(pause):
            done = self.finish(self.child)
        self.called = len(self.sim.pool.journal)
        self.sim.pool.journal = []
        return done

    def begin(self):
        return self.start_backup()

    def send(self, signum):
        self.child.send_signal(signum)
        if signum == signal.SIGKILL:
            self.child.wait()

    @contextlib.contextmanager
    def reviving(self, pause=OUTAGE):
        """Meanwhile the daemon is started again a moment after it died, and at the end, too."""
        over = threading.Event()

        def watch():
            while not over.wait(0.01):
                if self.sim.pool.is_down:
                    over.wait(pause)
                    self.sim.restart()
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if self.sim.pool.is_down:       # where the run's last call was the deadly one
                self.sim.restart()

    def settle_pool(self):
        """After a SIGKILL: wait until what the dead run asked for is over, then let its session
        expire, as xapi does after a day."""
        self.wait_for(self.is_quiet, 'a quiet pool')
        self.sim.pool.tables['session'].clear()

    def is_quiet(self):
        """Whether no command, task or operation is under way in the pool, and no xe is left that
        has only begun and will ask for one."""
        forked = os.fsencode(xe_name(process_name()) + '\n')
        if any(os.fsencode(self.sim.xe) in read_proc(pid, 'cmdline') or
               read_proc(pid, 'comm') == forked for pid in pids()):
            return False                # asked first: one that has ended since has been served
        pool = self.sim.pool
        with pool.lock:
            return not (any(task['status'] == 'pending' for task in pool.tables['task'].values())
                        or any(vm['current_operations'] for vm in pool.tables['VM'].values())
                        or self.sim.is_busy)

    # What is there

    def vm_directories(self):
        with os.scandir(self.backups) as entries:
            return sorted(entry.name for entry in entries
                          if entry.is_dir(follow_symlinks=False) and entry.name != LOCKS)

    def dated_paths(self):
        found = [os.path.join(self.backups, vm, name) for vm in self.vm_directories()
                 for name in sorted(os.listdir(os.path.join(self.backups, vm)))]
        return [path for path in found if is_dated(path)]

    def marked(self):
        """{VM directory: paths of the dated directories in it that have a marker}."""
        found = {vm: [] for vm in self.vm_directories()}
        for path in self.dated_paths():
            if any(os.path.isfile(os.path.join(path, marker)) for marker in MARKERS):
                found[os.path.basename(os.path.dirname(path))].append(path)
        return found

    def good(self):
        """{VM: its Backups, oldest first}; only those that have any. A directory that could be of
        dumps is no VM's, nor is the one that is called `app` where its namesake has it."""
        found = {}
        for directory, paths in self.marked().items():
            backups = in_order([read_backup(path) for path in paths])
            vm = ('./' + directory if directory.startswith(DUMPS)
                  else urllib.parse.unquote(directory.replace(TWIN, 'app')))
            if directory == 'app' and self.twin == TWIN and not any(
                    backup.manifest and backup.manifest['vm']['uuid'] == APP for backup in backups):
                vm = './app'
            found[vm] = backups
        return {vm: backups for vm, backups in found.items() if backups}

    def foreign(self):
        """{path: content} of everything below backup_dir, and outside, that is not ours."""
        found = {}
        for top in (self.backups, self.outside):
            for directory, names, files in os.walk(top):
                for name in sorted(names) + files:
                    path = os.path.join(directory, name)
                    relative = os.path.relpath(path, top)
                    if top == self.backups and is_ours(relative, path):
                        names[:] = [each for each in names if each != name]
                        notes = os.path.join(path, NOTES)
                        if os.path.isfile(notes):
                            found[notes.replace(DELETING, '')] = read(notes)
                    elif os.path.islink(path):
                        found[path] = os.readlink(path)
                    elif name in files:
                        found[path] = read(path)
                    elif os.sep in relative:
                        found[path] = None
        return found

    def pool_records(self):
        pool = self.sim.pool
        with pool.lock:
            return {cls: {ref: {field: value for field, value in record.items()
                                if field not in PASSING[cls]}
                          for ref, record in pool.tables[cls].items()} for cls in CLASSES}

    def status_lines(self):
        with contextlib.suppress(FileNotFoundError):
            return self.read_bytes(self.status_log).decode('utf-8', 'surrogateescape').splitlines()
        return []

    def remember(self):
        """Note what must survive: good backups, foreign files, the pool's objects."""
        self.before = self.contents()
        disks = {ref: image.clone() for ref, image in self.sim.pool.content.items()}
        self.memory = Memory(self.good(), self.pool_records(), disks, self.foreign())

    # The invariants

    def injected(self, text, kind=None):
        """Count one injected fault, of this kind from now on; failures of what follows tell it."""
        self.what, self.kind = text, kind or self.kind
        figures.add(self.kind, faults=1)

    def check(self, done, settled, hit=None, told=True):
        """Assert the six invariants.

        done     the run that has just ended (None: no run, only what is there is looked at)
        settled  False right after a SIGKILL, or while the pool refuses: the third is not due
        hit      the names of the VMs that the fault may have spoilt; None: any of them
        told     False where the fault spoils the status log too
        """
        words = '%s; seed %s\n%s' % (self.what, seed(), done.output if done else '')
        now = self.good()
        self.check_history(now, words)
        self.check_foreign(words)
        self.check_pool(settled, words)
        self.check_backups(now, words)
        if done is not None:
            self.check_end(done, now, told, words)
            if hit is not None:
                self.check_others(now, hit, words)
        figures.add(self.kind, checks=4 if done is None else 5 if hit is None else 6)

    def check_history(self, now, words):
        """1: what is gone went by rotation, the oldest first, after enough newer ones."""
        for vm, backups in self.memory.good.items():
            there = {backup.key: backup for backup in now.get(vm, [])}
            gone = [backup for backup in backups if backup.key not in there]
            self.assertTrue(there, '1: no backup of %s is left: %s' % (vm, words))
            self.assertEqual(backups[:len(gone)], gone, '1: not the oldest went: ' + words)
            keep = self.keep.get(vm, self.max_backups)
            needed = max(1, keep - (str(self.keys.get('pre_clean', '')).lower() == 'true'))
            if gone:
                self.assertGreaterEqual(len(there), needed, '1: %s went too early: %s' % (
                    [backup.path for backup in gone], words))
            for backup in backups[len(gone):]:
                self.assertEqual(backup, there[backup.key], '1: a backup changed: ' + words)

    def check_foreign(self, words):
        """2: what is not ours is as it was, in the pool and on disk."""
        now = self.pool_records()
        for cls, records in self.memory.pool.items():
            for ref, record in records.items():
                self.assertEqual(record, now[cls].get(ref), '2: %s of the pool: %s' % (cls, words))
        for ref, image in self.memory.disks.items():
            self.assertTrue(image == self.sim.pool.content.get(ref), '2: a disk: ' + words)
        files = self.foreign()
        for path, content in self.memory.foreign.items():
            self.assertIn(path, files, '2: a foreign file is gone: ' + words)
            self.assertEqual(content, files[path], '2: the foreign file %s: %s' % (path, words))
        extra = sorted(set(files) - set(self.memory.foreign))
        self.assertEqual([], extra, '2: files that nobody knows: ' + words)

    def check_pool(self, settled, words):
        """3: nothing of ours is left. Unsettled: what is left was written down before."""
        records = self.open_records()
        if not settled:
            self.assertEqual([], self.unrecorded(records), '3: nothing tells of it: ' + words)
            return
        end = time.monotonic() + self.patience
        while self.extra() and time.monotonic() < end:
            time.sleep(0.02)
        self.assertEqual({}, self.extra(), '3: left in the pool: ' + words)
        stale = [path for path, text in records.items() if not self.tells_of_something(text)]
        self.assertEqual([], stale, '3: records of nothing: ' + words)

    def extra(self):
        now = self.contents()
        extra = {cls: {ref: name for ref, name in now[cls].items() if ref not in objects}
                 for cls, objects in self.before.items()}
        return {cls: objects for cls, objects in extra.items() if objects}

    def tells_of_something(self, text):
        tables, record = self.sim.pool.tables, json.loads(text)
        here = {each['uuid'] for cls in ('VM', 'VDI') for each in tables[cls].values()}
        return bool(({record['uuid']} | set(record['disks'])) & (here | set(tables['VDI'])))

    def open_records(self):
        paths = [os.path.join(directory, RECORD)
                 for directory, _, files in os.walk(self.backups) if RECORD in files]
        return {path: read(path).decode('utf-8') for path in paths}

    def unrecorded(self, records):
        """Snapshots in the pool since remember() of which no record tells."""
        tables, found = self.sim.pool.tables, []
        told = [json.loads(text) for text in records.values()]
        origins = {(record['kind'], record['of']) for record in told}
        known = {uuid for record in told for uuid in record.get('disks', ())}
        for cls in ('VM', 'VDI'):
            for ref, record in list(tables[cls].items()):
                of = tables[cls].get(record['snapshot_of'])
                if ref in self.memory.pool[cls] or of is None:
                    continue
                meant = {(cls, of['uuid'])} | {
                    ('VM', tables['VM'][vm]['uuid']) for vm in self.holders(record['snapshot_of'])}
                if not meant & origins and not {ref, record['uuid']} & known:
                    found.append('%s %s' % (cls, record['uuid']))
        return found

    def holders(self, disk):
        tables = self.sim.pool.tables
        return {vbd['VM'] for vbd in tables['VBD'].values()
                if vbd['VDI'] == disk and vbd['VM'] in tables['VM']}

    def check_backups(self, now, words):
        """4: what counts as a backup is whole, and its manifest describes it."""
        old = {backup.path for backups in self.memory.good.values() for backup in backups
               if backup.manifest is None}
        for vm, backups in now.items():
            for backup in backups:
                key = (backup.path, backup.files)
                if backup.path in old or key in self.verified:
                    continue
                try:
                    self.verify(backup)
                except (AssertionError, archive.ArchiveError, LookupError, TypeError,
                        ValueError, OSError) as error:
                    self.fail('4: %s: %s %s: %s' % (
                        backup.path, type(error).__name__, error, words))
                self.verified.add(key)

    def verify(self, backup):
        manifest, files = backup.manifest, dict(file[:2] for file in backup.files)
        self.assertIsNotNone(manifest, 'no manifest')
        self.assertEqual(set(), MANIFEST_KEYS - set(manifest), 'missing in the manifest')
        self.assertEqual(manifest['files'], {
            name: files.get(name) for name in manifest['files']}, 'sizes')
        exported = [name for name in manifest['files'] if EXPORTED.search(name)]
        disks = {disk.get('file'): disk for disk in manifest['disks']}
        self.assertEqual(sorted(name for name in disks if name) or exported, exported, 'exported')
        self.assertTrue(exported, 'nothing was exported')
        refs = {record['uuid']: ref for ref, record in self.sim.pool.tables['VDI'].items()}
        images = [self.sim.pool.content[refs[disk['uuid']]] for disk in manifest['disks']
                  if disk['uuid'] in refs]
        found = []
        for name in exported:
            with opened(os.path.join(backup.path, name)) as stream:
                found += read_images(stream, name, int(disks.get(
                    name, (manifest['disks'] or [{}])[0]).get('virtual_size', 0)))
        for image in images:
            self.assertIn(image, found, 'a disk is missing, or has another content')
            found.remove(image)
        if len(images) == len(manifest['disks']) > 0:      # else no metadata, which was told
            self.assertEqual([], found, 'disks that the VM does not have')

    def check_end(self, done, now, told, words):
        """5: status 0 (and 1) only with a new backup of every VM; everything else is told."""
        self.assertNotIn('Traceback', done.output, '5: ' + words)
        lacking = sorted(set(self.configured()) - self.renewed(now))
        if done.status in (0, 1):
            self.assertEqual([], lacking, '5: status %d all the same: %s' % (done.status, words))
        if done.status == -signal.SIGKILL or not told:
            return
        lines = self.run_lines()
        word = {0: 'SUCCESS', 1: 'WARNING'}.get(done.status, 'ERROR')
        if lines or done.status in (0, 1):      # else the fault came before the run began
            self.assertEqual([word], [line.split(',')[1] for line in lines if line[:3] == 'end'],
                             '5: status %d, but the status log: %s' % (done.status, words))

    def run_lines(self):
        """What this run's own lines in the status log say: begin, end."""
        fields = [line.split(',', 3) for line in self.status_lines()[self.told_before:]]
        return [words[3] for words in fields if len(words) == 4 and words[1] == 'vmbackup.py']

    def check_others(self, now, hit, words):
        """6: every VM but those that were hit has a new backup."""
        lacking = set(self.configured()) - self.renewed(now) - set(hit)
        self.assertEqual(set(), lacking, '6: others were not backed up: ' + words)

    def renewed(self, now):
        return {vm for vm, backups in now.items()
                if any(backup.key not in self.backups_before for backup in backups)}


class MatrixCase(FaultCase):
    """A history, and a run over it that is disturbed at one point after the other.

    constants   of the script, whose pauses and patience would only be waited for
    words       of the command line, where what is disturbed is no run
    """

    rules = ('vm-export=web', 'vdi-export=db')
    words = ()                          # type: Tuple[str, ...]
    constants = {}                      # type: Dict[str, Any]

    def setUp(self):
        self.script = type(self).script
        super().setUp()
        self.prepare()
        self.prepared = time.time()
        self.failed_before = self.failed()
        self.save()
        self.remember()
        if self.constants:
            self.script = self.changed_script(**self.constants)

    def start_over(self):
        self.rewind()

    def once(self, function):
        """What a function returns, called for the first test only of those that it is the same
        for."""
        key = (function.__func__, type(self).start_over, self.words) + self.circumstances()
        if key not in COUNTS:
            self.start_over()
            COUNTS[key] = function()
        return COUNTS[key]

    def named_calls(self):
        done = self.finish(self.begin())
        self.assertIn(done.status, (0, 1), done.output)
        return [(number, call.name) for number, call in enumerate(self.sim.calls(), 1)]

    def each(self, points, work):
        """Do the work for each point, or for one of each way, which a point begins with."""
        ways = sorted({point[0] for point in points})
        chosen = sample(points, 0, self.id()) if full() else [
            point for way in ways for point in sample(
                [point for point in points if point[0] == way], 1, self.id() + way)]
        self.each_of(chosen, work)

    def run_with_an_outage(self):
        with self.reviving():
            return self.finish(self.begin())

    def run_at(self, call, act):
        """A run; something is done when the call of that number, or name, comes."""
        return self.run_with(lambda number, each: call in (number, each.name) and act())

    def kill(self, children):
        started = children_of(self.child.pid) if children else []
        self.send(signal.SIGKILL)
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def check_the_next_run(self):
        done = self.undisturbed()
        self.check(done, settled=True, hit=())
        half_done = [os.path.join(directory, name)
                     for directory, names, files in os.walk(self.backups) for name in names + files
                     if name.startswith(DELETING) or name.endswith(('.new', '.partial'))]
        self.assertEqual([], half_done, done.output)
        self.assertEqual(set(), self.failed() - self.failed_before, done.output)

    def failed(self):
        there = {path: os.listdir(path) for path in self.dated_paths()}
        return {path for path, names in there.items()
                if not set(MARKERS) & set(names) and names != [NOTES]}

    def check_after_kill(self, done, statuses=(-signal.SIGKILL,)):
        self.assertIn(done.status, statuses, done.output)
        self.settle_pool()
        self.check(done, settled=False, told=done.status in (0, 1))
        self.check_the_next_run()

    def check_after_signal(self, done, last, signals=(signal.SIGTERM,)):
        """The invariants at once, and how the run ended; `last`: it had nothing more to do."""
        expected = [128 + signum for signum in signals] + ([0, 1] if last else [])
        self.assertIn(done.status, expected, done.output)
        self.check(done, settled=True)


class LaunchedCase(MatrixCase):
    """A run whose file operations are watched."""

    def start_over(self):
        """The same, when no run takes a name any more that a backup of the history has."""
        self.wait_for(lambda: time.time() > self.prepared + 1.5)
        super().start_over()

    def launched(self, **spec):
        before = self.prelude
        self.prelude += ('import json\nfrom tests.tools import launcher\n'
                         'launcher.watch(**json.loads(%r))\n' % json.dumps(spec))
        try:
            return self.finish(self.begin())
        finally:
            self.prelude = before

    def operations(self):
        trace = os.path.join(self.directory, 'trace')
        done = self.launched(trace=trace, root=os.path.realpath(self.backups))
        self.assertIn(done.status, (0, 1), done.output)
        found = [json.loads(line) for line in self.read(trace).splitlines()]
        os.unlink(trace)
        return found

    def moments(self):
        """(number, when, name): before and after each operation, but where nothing is different
        from the moment before that: nothing on disk, and nobody was talked to."""
        found, last = [], None
        for each in self.once(self.operations):
            for when in ('before', 'after'):
                now = each[when]
                if now != last or when == 'before' and each['talked'] or (
                        when == 'after' and each['name'] == 'flock'):
                    found.append((each['number'], when, '%s in %s' % (each['name'], each['by'])))
                last = now
        return found
