"""The topic `pool` of python3 -m tests bench: what runs and previews cost, on simulated pools.

What is compared is measured in turn, and the median counts. The pool's daemon is in this process,
its clients are in others. Disks have half of --size each; the targets are for those of 1 GiB.
"""

import gc
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import timeit

import VmBackup
from tests import ROOT, SCRIPT
from tests.simpool import SimPool, archive, pools
from tests.tools.support import policy, store_at

MIB = 1 << 20
MANY = 5000                    # VMs of a large pool
SOME = 2000                    # VMs of the pool that answers late
RULES = 500
HISTORIES, BACKUPS = 500, 60   # VMs with backups, and backups of each
LATENCY = 0.002                # seconds
RATE = 300e6                   # bytes/s of an export, where one goes at a time
SHARED_RATE = 25e6             # bytes/s of each, where four do: one daemon has to send them all
VMS = 4                        # that are exported at once
NIGHT = 8                      # of a run that is timed
FORM = '%-60s %10s %10s %10s %9s %4s'

# What a measured process does. The report is a JSON file: `most` is the most memory, in KiB.
HEAD = '''
import json, os, sys
report, root = sys.argv[1:3]
sys.path.insert(0, root)
words = sys.argv[3:]
count = {}
def told():
    with open('/proc/self/status') as status:
        count['most'] = [int(line.split()[1]) for line in status if line.startswith('VmHWM')][0]
    with open(report, 'w') as stream:
        json.dump(count, stream)
'''
PREVIEW = '''
import VmBackup
status = VmBackup.main(['VmBackup.py'] + words)
told()
sys.exit(status)
'''
BARE = '''
import XenAPI
session = XenAPI.Session(words[0])
session.xenapi.login_with_password('root', 'password', '1.0', 'bench')
session.xenapi.VM.get_all_records()
session.xenapi.logout()
told()
'''
# The same commands of xe, and sync as VmBackup.py does it: $1 is where to, then uuids of VMs.
LOOP = '''
set -e
to=$1
shift
for uuid; do
    "$VMBACKUP_XE" vm-export metadata=true uuid="$uuid" filename= > "$to/$uuid.metadata"
    snapshot=$("$VMBACKUP_XE" vm-snapshot uuid="$uuid" new-name-label="RESTORE_$uuid")
    "$VMBACKUP_XE" template-param-set is-a-template=false ha-always-run=false uuid="$snapshot"
    "$VMBACKUP_XE" vm-export uuid="$snapshot" filename="$to/$uuid.xva"
    sync "$to/$uuid.xva"
    "$VMBACKUP_XE" vm-uninstall uuid="$snapshot" force=true
done > "$to/log"
'''


class Table:
    """Prints rows as they are measured, and keeps what missed its target."""

    def __init__(self):
        self.missed = []
        print(FORM % ('what', 'limit', 'ours', 'figure', 'target', 'met'), flush=True)

    def row(self, what, limit, ours, figure, target='', met=None):
        word = {None: '', True: 'yes', False: 'NO'}[met]
        print((FORM % (what, limit, ours, figure, target, word)).rstrip(), flush=True)
        self.missed += [what] * (met is False)

    def number(self, what, figure, form='%.0f', most=None):
        target = () if most is None else ('<= ' + form % most, figure <= most)
        self.row(what, '', '', form % figure, *target)

    def ratio(self, what, limits, ours, form, most=None):
        figure = statistics.median(b / a for a, b in zip(limits, ours))
        target = () if most is None else ('<= %.2f' % most, figure <= most)
        self.row(what, form % statistics.median(limits), form % statistics.median(ours),
                 '%.3f' % figure, *target)


class Noise(archive.Image):
    content = os.urandom(MIB)

    def chunk(self, index):
        return self.content

    def chunks(self):
        return ((index, self.content) for index in range(self.chunk_count))

    def clone(self):
        return self


class Bench:
    """A pool of VMs with disks and VIFs, and the clients that are measured on it; for `with`.

    Disks of less than a MiB have nothing in them.
    """

    def __init__(self, place, count, disks=1, vifs=1, size='512 KiB'):
        self.place = place
        self.backups = os.path.join(place, 'BACKUPS')
        pool = pools.load({'networks': ['net'], 'vms': [
            {'name': 'vm-{n}', 'count': count, 'networks': ['net'] * vifs,
             'disks': [{'size': size, 'fill': 0}] * disks}]})
        for vdi, image in pool.content.items():
            if image.virtual_size >= MIB:
                pool.content[vdi] = Noise(image.virtual_size)
        self.sim = SimPool(pool)
        self.faults = self.sim.pool.faults
        self.clear()

    def __enter__(self):
        gc.disable()           # it would look through the whole pool again and again
        return self

    def __exit__(self, *exc):
        gc.enable()
        self.sim.stop()
        del self.sim
        gc.collect()

    def clear(self):
        shutil.rmtree(self.backups, ignore_errors=True)
        os.mkdir(self.backups)

    def config(self, rule='vm-export=.*'):
        path = os.path.join(self.place, 'bench.cfg')
        with open(path, 'w', encoding='utf-8') as stream:
            stream.write('backup_dir=%s\nstatus_log=%s/status.log\nrequire_mount=no\nverify=no\n'
                         'max_backups=4\n%s\n' % (self.backups, self.place, rule))
        return path

    def timed(self, *argv):
        """The seconds that a program takes; it has to succeed."""
        begun = time.perf_counter()
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, env=self.sim.environ(HOME=self.place))
        seconds = time.perf_counter() - begun
        if done.returncode:
            lines = done.stdout.decode('utf-8', 'replace').splitlines()
            wrong = [line for line in lines if re.search('ERROR|Error', line)] or lines or ['?']
            raise RuntimeError('exit status %d, %s' % (done.returncode, wrong[0]))
        return seconds

    def vmbackup(self, *words):
        """The seconds that VmBackup.py takes, and the bytes of the archives that it leaves, which
        are removed."""
        seconds = self.timed(sys.executable, SCRIPT, 'password', *words)
        return seconds, self.exported()

    def exported(self):
        size = sum(os.path.getsize(os.path.join(directory, name))
                   for directory, _, names in os.walk(self.backups)
                   for name in names if name.endswith('.xva'))
        self.clear()
        return size

    def child(self, text, *words):
        report = os.path.join(self.place, 'report.json')
        seconds = self.timed(sys.executable, '-c', HEAD + text, report, ROOT, *words)
        with open(report, encoding='utf-8') as stream:
            return seconds, json.load(stream)

    def preview(self):
        before = len(self.sim.calls())
        report = self.child(PREVIEW, 'password', self.config(), 'preview')[1]
        return len(self.sim.calls()) - before, report['most'] / 1024


def bench_preview(table, place, _, runs):
    with Bench(place, SOME) as bench:
        bench.faults.latency = LATENCY
        bare, ours = zip(*[(bench.child(BARE, bench.sim.url)[0],
                            bench.vmbackup(bench.config(), 'preview')[0]) for _ in range(runs)])
        table.ratio('preview of %d VMs over VM.get_all_records, s' % SOME, bare, ours, '%.2f', 1.3)


def selection_seconds(count, rules):
    """How long select() takes: of the processor, as it waits for nothing."""
    found = [VmBackup.Vm('ref %d' % number, 'uuid %d' % number,
                         'group%03d-%d' % (number % RULES, number), {}) for number in range(count)]
    lines = [VmBackup.parse_rule('vm-export', 'group%03d-.*:3' % number, 'line %d' % number)
             for number in range(rules)]
    re.purge()
    begun = time.process_time()
    plan = VmBackup.select(lines, found, 4)
    seconds = time.process_time() - begun
    assert len(plan.jobs) == count * rules // RULES and not plan.errors
    return seconds


def bench_selection(table, _place, _size, runs):
    """Selection in this process: the best time counts, as it waits for nothing."""
    whole, fewer, shorter = (
        min(selection_seconds(*arguments) for _ in range(3 * runs))
        for arguments in ((MANY, RULES), (MANY // 2, RULES), (MANY, RULES // 2)))
    table.number('selection: %d VMs, %d regex rules, s' % (MANY, RULES), whole, '%.2f', 2)
    table.ratio('the same over half of the VMs, s', [fewer], [whole], '%.2f', 2.5)
    table.ratio('the same over half of the rules, s', [shorter], [whole], '%.2f', 2.5)


def bench_run(table, place, size, runs):
    """A run over the commands of xe that it needs, and the bytes that it touches itself."""
    with Bench(place, NIGHT, size='%d MiB' % size) as bench:
        uuids = [record['uuid'] for record in bench.sim.pool.tables['VM'].values()
                 if record['name_label'].startswith('vm-')]
        bare, ours, sizes = [], [], set()
        bench.faults.add('vm-export', 'slow', times=0, rate=RATE)
        for _ in range(runs):
            bare.append(bench.timed('bash', '-c', LOOP, 'bash', bench.backups, *uuids))
            sizes.add(bench.exported())
            seconds, exported = bench.vmbackup(bench.config())
            ours.append(seconds)
            sizes.add(exported)
        assert len(sizes) == 1 and exported >= NIGHT * size * MIB
        table.ratio('%d VMs of %d MiB, over xe in a shell loop, s' % (NIGHT, size), bare, ours,
                    '%.2f', 1.03)
        table.number('MB/s that the loop exported (limit: %.0f)' % (RATE / 1e6),
                     exported / statistics.median(bare) / 1e6)


def bench_parallel(table, place, size, runs):
    with Bench(place, VMS, size='%d MiB' % max(size // 2, 1)) as bench:
        bench.faults.add('vm-export', 'slow', times=0, rate=SHARED_RATE)
        one, four = zip(*[(bench.vmbackup(bench.config('vm-export=vm-0'))[0],
                           bench.vmbackup(bench.config(), 'parallel=%d' % VMS)[0])
                          for _ in range(runs)])
        table.ratio('%d VMs at %.0f MB/s each, parallel=%d, over one alone, s' % (
            VMS, SHARED_RATE / 1e6, VMS), one, four, '%.2f', 1.15)


def bench_stream(table, place, size, runs):
    """A stream over the bare export into the same pipe; wc tells what came."""
    with Bench(place, 1, size='%d MiB' % (2 * size)) as bench:
        uuid, = [record['uuid'] for record in bench.sim.pool.tables['VM'].values()
                 if record['name_label'] == 'vm-0']
        bench.faults.add('vm-export', 'slow', times=0, rate=RATE)
        ours = 'VMBACKUP_XAPI_URL=%s exec %s %s stream vm-0' % (
            bench.sim.unix_url, sys.executable, SCRIPT)
        seconds, sizes = [], set()
        for _ in range(runs):
            for command in ('exec %s vm-export uuid=%s filename=' % (bench.sim.xe, uuid), ours):
                seconds.append(bench.timed('bash', '-c', 'set -o pipefail; %s | wc -c > %s/sent' % (
                    '(%s)' % command, place)))
                with open(os.path.join(place, 'sent')) as sent:
                    sizes.add(int(sent.read()))
        assert min(sizes) > 2 * size * MIB, sizes
        table.ratio('stream of %d MiB, over xe vm-export into a pipe, s' % (2 * size),
                    seconds[::2], seconds[1::2], '%.2f', 1.1)


def bench_large(table, place, _, runs):
    with Bench(place, 10) as bench:
        few = bench.preview()[0]
    with Bench(place, MANY) as bench:
        bare, ours = zip(*[(bench.child(BARE, bench.sim.url)[1]['most'] / 1024, bench.preview())
                           for _ in range(runs)])
        table.number('XenAPI calls of a preview of %d VMs' % MANY, ours[0][0], most=few)
        table.ratio('memory of it over VM.get_all_records, MiB', bare,
                    [memory for _, memory in ours], '%.1f', 1.2)


def make_backups(root):
    for vm in range(HISTORIES):
        for number in range(1, BACKUPS + 1):
            moment = 1577880000 + number * 86400        # seconds since 1970
            path = os.path.join(root, 'vm-%d' % vm, time.strftime(
                VmBackup.DEFAULT_PATTERN, time.localtime(moment)))
            os.makedirs(path)
            manifest = {'schema': 1, 'vm': {'name': 'vm-%d' % vm}, 'method': 'vm-export',
                        'earlier': [],
                        'started': time.strftime('%Y-%m-%dT%H:%M:%S+00:00', time.gmtime(moment)),
                        'number': number, 'files': {'vm-%d.xva' % vm: 1 << 30}}
            for name, text in ((VmBackup.MANIFEST, json.dumps(manifest)),
                               (VmBackup.MARKERS[0], '')):
                with open(os.path.join(path, name), 'w', encoding='utf-8') as stream:
                    stream.write(text)


def rotate(root):
    store = store_at(root)
    for number in range(HISTORIES):
        history = store.history('vm-%d' % number)
        judged = history.judged(policy(last=BACKUPS - 1), VmBackup.Manifest(), (),
                                VmBackup.Aged(VmBackup.now()), 'new')
        assert sum(not why for _, why in judged) == 2


def list_all(root):
    store = store_at(root)
    assert sum(len(history.backups()) for history in store.histories()) == HISTORIES * BACKUPS


def command_list(root):
    assert VmBackup.perform(['list', root], '', VmBackup.Console(None)) == 0


def bench_store(table, place, _, runs):
    root = os.path.join(place, 'store')
    make_backups(root)
    for what, function, most in (('choose what to rotate', rotate, 1), ('list all', list_all, 1),
                                 ('the command list', command_list, 3)):
        seconds = statistics.median(timeit.repeat(lambda: function(root), number=1, repeat=runs))
        table.number('%s, %d VMs x %d backups, s' % (what, HISTORIES, BACKUPS), seconds, '%.2f',
                     most)
    shutil.rmtree(root)


def bench_pool(place, size, runs):
    disk = max(size // 2, 1)
    if shutil.disk_usage(place).free < (NIGHT + 1) * disk * MIB:
        print('there is no room for %d MiB in %s' % ((NIGHT + 1) * disk, place))
        return 1
    print('median of %d runs; disks of %d MiB\n' % (runs, disk))
    table = Table()
    for what, part in (('selection', bench_selection),
                       ('preview', bench_preview), ('run', bench_run),
                       ('stream', bench_stream), ('parallel', bench_parallel),
                       ('large pool', bench_large), ('store', bench_store)):
        try:
            part(table, place, disk, runs)
        except RuntimeError as error:           # what is not possible here
            print('%s: %s' % (what, error), flush=True)
            table.missed.append(what)
    print('\nmissed: ' + ', '.join(table.missed) if table.missed else '\nall targets met')
    return 0
