"""The real xe, recorded against a real xapi (25.6.0), replayed against the simulated pool.

tests/data/xe/*.json hold every recording of a command line: what was typed, its exit code, stdout
and stderr, and what a look at the files showed after it. A chapter has a pool of its own and runs
from top to bottom, since each command met what those before it had left. Steps that are not
recordings do what the recorder did unseen. Beside what was recorded a step may have

    typed       what is run instead: waiting for what is awaited in place of sleeps, smaller disks,
                `ulimit` in place of a small file system, nothing of file(1) and xmllint
    trouble     what the storage refuses meanwhile
    lines       how many lines of the output are compared (behind them stands noise)
    drop        lines that a tool printed which is not run
    blanks      what else cannot be the same; `any order` for the lines of two commands at once
    or stderr   the other messages that were recorded for the like, where it is a race
    skip        why it is not replayed

A line of `xe` alone is run in this process, others by bash, with `xe` as a program. Compared are
exit code, stdout and stderr, whole; only what cannot be the same is blanked: times,
MAC addresses, Ref numbers, sizes of archives, user names. A uuid of the recording must correspond
to one of ours, always the same. The order of records in a list means nothing (it is that of
random references), so lists are compared sorted.
"""
import collections
import contextlib
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import unittest
from uuid import uuid4

from tests import DATA
from tests.simpool import SimPool, XapiError, pools
from tests.simpool.archive import Image
from tests.simpool.tests.support import MIB, decoded, run_client

RECORDINGS = os.path.join(DATA, 'xe')
UUID = re.compile('[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}')
# A line of xe that asks nothing, writes no file to stdout, and means nothing else to a shell.
PLAIN = re.compile(r"(\S+/)?xe (?!.*(uninstall \S+|name=)$)([^|&;<>$`()\n\\'*~]|'[^']*')*")

# Which recordings are not replayed, how many of each class, and why.
NOT_REPLAYED = {
    'help': (8, 'the simulated one has none'),
    'mount': (1, 'needs root and a mount of a read-only file system'),
    'users': (2, 'needs a second user, to whom the socket is closed'),
    'tools': (4, 'about xmllint or Python scripts; cut archives were recorded from others'),
    'hypervisor': (2, "about the recorder's simulated hypervisor, which attaches no disks"),
    'start': (3, 'about how long a daemon takes to start, and its database on disk'),
    'member': (5, 'a pool member that cannot reach its master hangs; simulated ones reach it'),
    'not simulated': (5, 'a command or an image format that no backup uses'),
    'debug': (1, 'prints the debug log of stunnel'),
}
RECORDED = 307

STORAGE_TROUBLE = {
    'snapshot': ('_snapshot_vdi', ['SR_BACKEND_FAILURE_44', '', 'There is insufficient space', '']),
    'attach': ('assert_attachable', ['SR_BACKEND_FAILURE_46', '', 'The VDI is not available', '']),
    'delete': ('drop_vdi', ['SR_BACKEND_FAILURE_80', '', 'Failed to delete', '']),
}

BLANKS = [(re.compile(pattern, re.M), blank) for pattern, blank in (
    (r'\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b', 'MAC'),
    (r'\b(?!19700101T)\d{8}T\d\d:\d\d:\d\dZ', 'TIME'),
    (r'\b(?!1970-01-01)\d{4}-\d\d-\d\d \d\d:\d\d\b', 'DATE'),
    (r'\b\d\d:\d\d:\d\d\b', 'CLOCK'),
    (r'\bRef:\d+', 'Ref:N'),
    (r'= [0-9A-F]{16}\b', '= HASH'),
    (r' +\d+ (DATE ova\.xml)', r' SIZE \1'),
    (r'^(-[rwx-]{9}) 1 \S+ \S+ +(?!(?:8388608|417)\b)\d+ ', r'\1 SIZE '),
    (r'^(-[rwx-]{9}) 1 \S+ \S+ +(\d+) ', r'\1 \2 '),
    (r'^total \d+', 'total N'),
    (r'(physical-utilisation \( RO\)): \d+', r'\1: N'),
    (r'generation_count" value="\d+"', 'generation_count" value="N"'),
    (r'bash: line \d+: +\d+ ', 'bash: PID '),
    (r'(progress \( RO\)): 0\.\d\d\d', r'\1: PART'),
)]


def blanked(text):
    for pattern, blank in BLANKS:
        text = pattern.sub(blank, text)
    return text


def prepared(text, step):
    lines = text.split('\n')
    if 'drop' in step:
        lines = [line for line in lines if step['drop'] not in line]
    if 'lines' in step:
        lines = lines[:step['lines']]
    if step.get('any order'):
        lines.sort(key=lambda line: UUID.sub('', line))
    text = '\n'.join(lines)
    for pattern in step.get('blanks', []):
        text = re.sub(pattern, '', text, flags=re.M)
    return text


class Words:
    """Which uuid of ours stands for which of the recording."""

    def __init__(self):
        self.ours = {}

    def learn(self, recorded, ours):
        if self.ours.setdefault(recorded, ours) != ours:
            raise AssertionError('%s was %s and is now %s' % (recorded, self.ours[recorded], ours))

    def translated(self, text):
        return UUID.sub(lambda match: self.ours.get(match.group(), match.group()), text)

    def pieces(self, text, command):
        """A text in parts whose order means nothing, each (comparable, its unknown uuids)."""
        known = set(self.ours.values())
        return sorted((blanked(UUID.sub(
            lambda match: match.group() if match.group() in known else '?', part)),
                       [uuid for uuid in UUID.findall(part) if uuid not in known])
                      for part in parts(text, command))

    def compare(self, recorded, ours, command):
        """'' when two texts agree, and learn the uuids; else both, made comparable."""
        recorded, more, _ = self.translated(recorded).partition('\n... [')
        if more:
            ours = blanked(ours)[:len(blanked(recorded))]
            return '' if self.alike(recorded, ours) else difference(blanked(recorded), ours)
        expected, found = self.pieces(recorded, command), self.pieces(ours, command)
        if [text for text, _ in expected] != [text for text, _ in found]:
            return difference('\n'.join(text for text, _ in expected),
                              '\n'.join(text for text, _ in found))
        often = collections.Counter(text for text, _ in expected)
        for (text, theirs), (_, uuids) in zip(expected, found):
            if often[text] == 1:
                for pair in zip(theirs, uuids):
                    self.learn(*pair)
        return ''

    def alike(self, recorded, ours):
        """For a recording that was cut: the uuids in it are not compared."""
        return (UUID.sub('?', blanked(recorded)).split('\n')[:-1]
                == UUID.sub('?', blanked(ours)).split('\n')[:-1])


def parts(text, command):
    """Records of a table, words of --minimal, or lines in which only disks may change places."""
    if '\n\n\n' in text:
        return text.split('\n\n\n')
    if '--minimal' in command:
        return re.findall(r'((?:\\.|[^\\,])*)(?:,|\Z)', text.rstrip('$\n'), re.S)
    lines, disks = [], []
    for line in text.split('\n'):
        if line.startswith('VDI: '):
            disks.append(line)
        else:
            lines += sorted(disks, key=lambda disk: UUID.sub('', disk)) + [line]
            disks = []
    return ['\n'.join(lines + disks)]


def difference(expected, found):
    return '\n--- recorded\n%s\n--- simulated\n%s\n' % (expected, found)


def sparse_image(text):
    """A disk of 8 MiB as the recorder's: noise in the first and the sixth MiB, else zeros."""
    image = Image(8 * MIB)
    noise = Image.sample(MIB, text, 1.0).read(0, MIB)
    for offset in (0, 5):
        image.write(offset * MIB, noise)
    return image


def recorded_pool():
    """The pool of the recordings, with its uuids, no default templates, sparse disks."""
    pool = pools.load(os.path.join(RECORDINGS, 'pool.json'))
    pool.progress_interval = 0.05
    for ref, vm in list(pool.tables['VM'].items()):
        if vm['is_default_template']:
            pool.delete('VM', ref)
            continue
        pool.put('VM', ref, VBDs=vm['VBDs'][::-1])
        if not vm['is_control_domain']:
            pool.put('VM', ref, affinity=pool.master, platform={
                'viridian': 'false', 'apic': 'true', 'acpi': '1', 'pae': 'true', 'nx': 'true'})
    for ref, vdi in pool.tables['VDI'].items():
        pool.content[ref] = sparse_image(vdi['name_label'])
        pool.put('VDI', ref, other_config={'content_id': str(uuid4())})
    for ref in pool.tables['VM_guest_metrics']:
        pool.put('VM_guest_metrics', ref, os_version={})
    host = pool.tables['host'][pool.master]
    pool.put('host', pool.master, address='', software_version=dict(
        host['software_version'], date='20261122T21:23:34Z', product_brand='XenServer',
        product_version='8.4.0', product_version_text='8.4.0'))
    for cls, wanted in (('host', 'fe7c689c-a8c5-474e-8a79-b26fe8fab2e0'),
                        ('SR', '888f8ccb-4972-ccfb-e005-53b3eaeee4df')):
        pool.put(cls, next(iter(pool.tables[cls])), uuid=wanted)
    return pool


@contextlib.contextmanager
def trouble(pool, kind):
    """Storage that fails as the recorder's did when it was told to."""
    name, error = STORAGE_TROUBLE[kind]

    def refuse(*_):
        raise XapiError(*error)
    setattr(pool, name, refuse)
    try:
        yield
    finally:
        delattr(pool, name)


class Replay:
    """One chapter on its way: a pool, a directory, and what is known of uuids."""

    def __init__(self, chapter):
        self.chapter = chapter
        self.words = Words()
        self.failures = []

    def run(self):
        self.directory = tempfile.mkdtemp(prefix='replay')
        self.places = [('/opt/xensource/bin/xe', None), ('/backup/out', self.place('out')),
                       ('/scratch', self.place('scratch')),
                       ('/srv/test-backend/disks', self.place('disks'))]
        try:
            address = self.chapter.get('slave of')
            with SimPool(recorded_pool(), role='slave' if address else 'master',
                         master_address=address) as self.sim:
                self.places[0] = ('/opt/xensource/bin/xe', self.sim.xe)
                self.pool = self.sim.pool
                for cls in ('VM', 'host', 'SR'):
                    for record in self.pool.tables[cls].values():
                        if not record.get('is_control_domain'):
                            self.words.learn(record['uuid'], record['uuid'])
                for step in self.chapter['steps']:
                    self.step(step)
        finally:
            shutil.rmtree(self.directory)
        return self.failures

    def place(self, name):
        path = os.path.join(self.directory, name)
        os.mkdir(path)
        return path

    def step(self, step):
        if 'skip' in step:
            return
        if 'task' in step:
            self.pool.finish_task(self.pool.make_task(step['task']), 'failure')
        elif 'vms' in step:
            for name, uuid in step['vms'].items():
                self.pool.add_vm(name_label=name, uuid=uuid)
                self.words.learn(uuid, uuid)
        elif 'os version' in step:
            for ref in self.pool.tables['VM_guest_metrics']:
                self.pool.put('VM_guest_metrics', ref, os_version=step['os version'])
        elif 'disk' in step:
            self.fill(step['disk'], step['MiB'])
        elif 'setup' in step:
            self.setup(step)
        elif 'trouble' in step:
            with trouble(self.pool, step['trouble']):
                self.replay(step)
        else:
            self.replay(step)

    def fill(self, name, size):
        for ref, vdi in self.pool.tables['VDI'].items():
            if vdi['name_label'] == name:
                self.pool.put('VDI', ref, virtual_size=str(size * MIB))
                self.pool.content[ref] = Image.sample(size * MIB, name, 1.0)

    def setup(self, step):
        """What the recorder did unseen; the uuids that it prints are those of the recording."""
        status, out, err = self.shell(step['setup'])
        if status:
            raise AssertionError('%s: %s' % (step['setup'], err))
        for recorded, ours in zip(step.get('uuids', []), out.split()):
            if recorded != '-':
                self.words.learn(recorded, ours)
        for fault in step.get('faults', []):
            self.pool.faults.add(**fault)

    def replay(self, step):
        command = step.get('typed', step['command'])
        status, out, err = self.shell(command)
        self.check(step, 'exit code', str(step['exit']), str(status), command)
        self.check(step, 'stdout', step['stdout'], out, command, step)
        if err not in step.get('or stderr', []):
            self.check(step, 'stderr', step['stderr'], err, command,
                       {key: step[key] for key in ('blanks', 'any order') if key in step})
        if 'after' in step:
            look = step['after'].get('typed', step['after']['command'])
            self.check(step, 'after it', step['after']['stdout'],
                       self.shell('(%s) 2>&1' % look)[1], look, step['after'])

    def check(self, step, what, recorded, ours, command, how=None):
        recorded, ours = prepared(recorded, how or {}), prepared(self.theirs(ours), how or {})
        problem = self.words.compare(recorded, ours, command)
        if problem:
            self.failures.append('line %s: %s\n%s:%s' % (
                step.get('line'), step['command'], what, problem))

    def theirs(self, text):
        """A text of ours with the recorder's paths and, as it had read them, line ends."""
        for recorded, ours in self.places:
            text = text.replace(ours, recorded)
        return text.replace('\r\n', '\n').replace('\r', '\n')

    def shell(self, command):
        for uuid in UUID.findall(command):
            if uuid not in self.words.ours and not uuid.startswith('00000000-'):
                raise AssertionError('nothing is known of %s in: %s' % (uuid, command))
        self.show_disks(command)
        command = self.words.translated(command)
        for recorded, ours in self.places:
            command = command.replace(recorded, ours)
        if PLAIN.fullmatch(command):
            status, out, err = run_client(self.sim, shlex.split(command)[1:], self.directory)
        else:
            environ = self.sim.environ(TZ='UTC', LC_ALL='C.UTF-8', HOME=self.directory,
                                       TMPDIR=self.directory)
            done = subprocess.run(['bash', '-c', command], env=environ, cwd=self.directory,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE)
            status, out, err = done.returncode, done.stdout, done.stderr
        return status, decoded(out), decoded(err)

    def show_disks(self, command):
        """The recorder could look into the files behind the disks; write those that it names."""
        named = [self.words.ours[uuid]
                 for uuid in re.findall('/disks/(%s)' % UUID.pattern, command)]
        if '/disks/$' in command:
            named = [record['uuid'] for record in self.pool.tables['VDI'].values()]
        for uuid in named:
            image = self.pool.content[self.pool.ref_of('VDI', uuid)]
            with open(os.path.join(self.directory, 'disks', uuid + '.raw'), 'wb') as file:
                file.write(image.read(0, image.virtual_size))


def chapters():
    found = {}
    for path in sorted(glob.glob(os.path.join(RECORDINGS, '*.json'))):
        name = os.path.basename(path)[:-5]
        if name != 'pool':
            with open(path, encoding='utf-8') as file:
                found[name] = json.load(file)
    return found


def tools_are_the_recorders():
    """Whether bash, zstd and GNU's tar and ls are here, whose words are in the recordings."""
    if not all(shutil.which(program) for program in ('bash', 'gzip', 'zstd', 'tar', 'timeout')):
        return False
    return all(b'GNU' in subprocess.run([program, '--version'], stdout=subprocess.PIPE).stdout
               for program in ('tar', 'ls'))


class CountTest(unittest.TestCase):
    def test_every_recording_is_replayed_or_says_why_not(self):
        steps = [step for chapter in chapters().values() for step in chapter['steps']
                 if 'command' in step]
        reasons = collections.Counter(step['skip'] for step in steps if 'skip' in step)
        self.assertEqual(dict(reasons), {name: count for name, (count, _) in NOT_REPLAYED.items()})
        self.assertEqual(len(steps), RECORDED)
        self.assertEqual(len({step['line'] for step in steps}), RECORDED, 'one stands twice')


@unittest.skipUnless(tools_are_the_recorders(), 'needs bash, zstd, and tar and ls of GNU')
class RecordingsTest(unittest.TestCase):
    """A test for each chapter, made below."""


def _chapter_test(chapter):
    def test(self):
        failures = Replay(chapter).run()
        if failures:
            self.fail('%d differ\n%s' % (len(failures), '\n\n'.join(failures)))
    return test


for _name, _chapter in chapters().items():
    setattr(RecordingsTest, 'test_replay_of_' + _name, _chapter_test(_chapter))
