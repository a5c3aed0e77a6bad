"""The topic `pool` of python3 -m tests bench: what runs and previews cost, on simulated pools.

What is compared is measured in turn, and the median counts. The pool's daemon is in this process,
its clients are in others. Disks have half of --size each; the targets are for those of 1 GiB.
"""

import contextlib
import gc
import http.client
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import xmlrpc.client

import VmBackup
import XenAPI
from tests import ROOT, SCRIPT
from tests.simpool import SimPool, archive, pools
from tests.tools.support import TIME_STAMP

MIB = 1 << 20
MANY = 5000                    # VMs of a large pool
SOME = 2000                    # VMs of the pool that answers late
RULES = 500
HISTORIES, BACKUPS = 500, 60   # VMs with backups, and backups of each
LATENCY = 0.002                # seconds
SLOW_CALLS = 200               # VMs for which 3.25's calls are made; the rest is reckoned
RATE = 300e6                   # bytes/s of an export, where one goes at a time
SHARED_RATE = 25e6             # bytes/s of each, where four do: one daemon has to send them all
VMS = 4                        # that are exported at once
NIGHT = 8                      # of a run that is timed
FORM = '%-60s %10s %10s %10s %9s %4s'

# What a measured process does. The report is a JSON file: `io` is what read and write moved in the
# threads of this process alone (proc(5): the io of a process has that of its children, the io of a
# thread has not) and what sockets moved; `most` is the most memory that it took, in KiB.
HEAD = '''
import gc, json, os, socket, sys, threading
report, root = sys.argv[1:3]
sys.path.insert(0, root)
words = sys.argv[3:]
count = dict(processes=0, received=0, io=0, most=0)
def most():
    with open('/proc/self/status') as status:
        return [int(line.split()[1]) for line in status if line.startswith('VmHWM')][0]
def told():
    with open(report, 'w') as stream:
        json.dump(dict(count, most=most()), stream)
'''
COUNTING = '''
STARTS = ('fork_exec', 'fork', 'forkpty', 'posix_spawn', 'posix_spawnp', 'system')
def watch(frame, event, function):
    if event == 'c_call' and getattr(function, '__name__', '') in STARTS:
        count['processes'] += 1
def moved():
    with open('/proc/thread-self/io') as stream:
        return sum(int(line.split()[1]) for line in stream if line[1:5] == 'char')
def reading(self, buffer, real=socket.SocketIO.readinto):
    size = real(self, buffer) or 0
    count['received'] += size
    count['io'] += size
    return size
def sending(self, data, *flags, real=socket.socket.sendall):
    count['io'] += len(data)
    return real(self, data, *flags)
def running(self, real=threading.Thread.run):
    try:
        real(self)
    finally:
        count['io'] += moved()
import VmBackup
socket.SocketIO.readinto = reading
socket.socket.sendall = sending
threading.Thread.run = running
begun = moved()
threading.setprofile(watch)
sys.setprofile(watch)
status = VmBackup.main(['VmBackup.py'] + words)
sys.setprofile(None)
count['io'] += moved() - begun
told()
sys.exit(status)
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
KEPT = '''
import tracemalloc
import VmBackup
os.environ['VMBACKUP_XAPI_URL'] = words[0]
console = VmBackup.Console(getattr(sys.stdout.buffer, 'raw', sys.stdout.buffer))
tracemalloc.start()
with VmBackup.Pool.connect('password', console, VmBackup.Signals()) as pool:
    vms = pool.vms()
    for name in ('VBD', 'VDI', 'VIF', 'SR', 'network', 'host', 'pool'):
        pool.table(name)
    gc.collect()
    count['kept'] = tracemalloc.get_traced_memory()[0]
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
        """Print the head."""
        self.missed = []
        print(FORM % ('what', 'limit', 'ours', 'figure', 'target', 'met'), flush=True)

    def row(self, what, limit, ours, figure, target='', met=None):
        """A row; `met` is None where there is no target."""
        word = {None: '', True: 'yes', False: 'NO'}[met]
        print((FORM % (what, limit, ours, figure, target, word)).rstrip(), flush=True)
        self.missed += [what] * (met is False)

    def number(self, what, figure, form='%.0f', most=None, exactly=None):
        """A row of one number."""
        wanted = most if exactly is None else exactly
        target = '' if wanted is None else ('' if exactly is not None else '<= ') + form % wanted
        met = None if wanted is None else figure <= most if exactly is None else figure == exactly
        self.row(what, '', '', form % figure, target, met)

    def ratio(self, what, limits, ours, form, most=None):
        """A row of two figures, each measured several times in turn: ours over the limit."""
        figure = statistics.median(b / a for a, b in zip(limits, ours))
        self.row(what, form % statistics.median(limits), form % statistics.median(ours),
                 '%.3f' % figure, '' if most is None else '<= %.2f' % most,
                 None if most is None else figure <= most)

    @contextlib.contextmanager
    def attempt(self, what):
        """Rows that may turn out to be impossible, which the table then says."""
        try:
            yield
        except RuntimeError as error:
            print('%s: %s' % (what, error), flush=True)
            self.missed.append(what)


class Noise(archive.Image):
    """A disk full of the same noise, which takes no memory."""

    content = os.urandom(MIB)

    def chunk(self, index):
        """The bytes of one chunk."""
        return self.content

    def chunks(self):
        """(index, bytes) of every chunk."""
        return ((index, self.content) for index in range(self.chunk_count))

    def clone(self):
        """Itself, as nobody writes to it."""
        return self


class Bench:
    """A pool, and the clients that are measured on it; for `with`."""

    def __init__(self, place, vms, **more):
        """Start the pool."""
        self.place = place
        self.backups = os.path.join(place, 'BACKUPS')
        pool = pools.load(dict(more, vms=vms))
        for vdi, image in pool.content.items():
            if image.virtual_size >= MIB:
                pool.content[vdi] = Noise(image.virtual_size)
        self.sim = SimPool(pool)
        self.clear()

    def __enter__(self):
        """Begin."""
        gc.disable()           # it would look through the whole pool again and again
        return self

    def __exit__(self, *exc):
        """Stop the pool and forget it."""
        gc.enable()
        self.sim.stop()
        del self.sim
        gc.collect()

    def clear(self):
        """An empty backup directory."""
        shutil.rmtree(self.backups, ignore_errors=True)
        os.mkdir(self.backups)

    def config(self, rule='vm-export=.*'):
        """The path of a config file."""
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
            lines = [TIME_STAMP.sub('', line)
                     for line in done.stdout.decode('utf-8', 'replace').splitlines()]
            wrong = [line for line in lines if re.search('ERROR|Error', line)] or lines or ['?']
            raise RuntimeError('exit status %d, %s' % (done.returncode, wrong[0]))
        return seconds

    def vmbackup(self, *words):
        """The seconds that VmBackup.py takes."""
        return self.timed(sys.executable, SCRIPT, 'password', *words)

    def child(self, text, *words):
        """Run a piece of Python; return its seconds and its report."""
        report = os.path.join(self.place, 'report.json')
        seconds = self.timed(sys.executable, '-c', HEAD + text, report, ROOT, *words)
        with open(report, encoding='utf-8') as stream:
            return seconds, json.load(stream)

    def bare(self):
        """One VM.get_all_records, with login and logout."""
        return self.child(BARE, self.sim.url)

    def preview(self):
        """The calls of a preview, and its report."""
        before = len(self.sim.calls())
        report = self.child(PREVIEW, 'password', self.config(), 'preview')[1]
        return len(self.sim.calls()) - before, report

    def exported(self):
        """The bytes of all archives."""
        return sum(os.path.getsize(os.path.join(directory, name))
                   for directory, _, names in os.walk(self.backups)
                   for name in names if name.endswith('.xva'))

    def run(self, *words):
        """A run into an empty directory, with what it cost."""
        self.clear()
        before = len(self.sim.calls('xapi')), len(self.sim.calls('xe'))
        _, report = self.child(COUNTING, 'password', self.config(), *words)
        report['calls'] = len(self.sim.calls('xapi')) - before[0]
        report['xe'] = len(self.sim.calls('xe')) - before[1]
        report['exported'] = self.exported()
        self.clear()
        return report


def vms(count, disks=1, vifs=1, size='512 KiB'):
    """The description of VMs; disks of less than a MiB have nothing in them."""
    return [{'name': 'vm-{n}', 'count': count, 'networks': ['net'] * vifs,
             'disks': [{'size': size, 'fill': 0}] * disks}]


def pool_of(place, *arguments, **more):
    """A Bench of that many VMs."""
    return Bench(place, vms(*arguments, **more), networks=['net'])


def bench_calls(table, place):
    """Calls of a preview; calls, processes and bytes of a run."""
    with pool_of(place, 10) as bench:
        table.number('XenAPI calls of a preview of 10 VMs', bench.preview()[0], most=10)
    runs = {}
    for count in (10, 20, 40):
        with pool_of(place, count, 2) as bench:
            runs[count] = bench.run()
    large = []
    for count in (10, 20):
        with pool_of(place, count, 8, 4) as bench:
            large.append(bench.run())

    def each(what):
        """Of one VM, what grows with their number."""
        return (runs[20][what] - runs[10][what]) / 10
    many = (large[1]['calls'] - large[0]['calls']) / 10
    table.number('XenAPI calls per VM in a run, 2 disks and 1 VIF', each('calls'), '%.1f', 4)
    table.number('the same, 8 disks and 4 VIFs', many, '%.1f', exactly=each('calls'))
    table.number('xe commands per VM', each('xe'), '%.1f', 5)
    table.number('processes that VmBackup.py starts per VM', each('processes'), '%.1f', 5)
    table.number('bytes from XenAPI per VM, 10 to 20 VMs', each('received'))
    table.ratio('bytes from XenAPI: 20 to 40 VMs, over twice 10 to 20',
                [2 * (runs[20]['received'] - runs[10]['received'])],
                [runs[40]['received'] - runs[20]['received']], '%.0f', 1.1)


def bench_preview(table, place, runs):
    """Previews of a pool that answers late, over the one call that they need."""
    with pool_of(place, SOME) as bench:
        bench.sim.pool.faults.latency = LATENCY
        config = bench.config()
        bare, ours = [], []
        for _ in range(runs):
            bare.append(bench.bare()[0])
            ours.append(bench.vmbackup(config, 'preview'))
        table.ratio('preview of %d VMs over VM.get_all_records, s' % SOME, bare, ours, '%.2f', 1.3)
        session = XenAPI.Session(bench.sim.url)
        session.xenapi.login_with_password('root', 'password', '1.0', 'bench')
        refs = session.xenapi.VM.get_all()[:SLOW_CALLS]
        begun = time.perf_counter()
        for ref in refs * 3:
            session.xenapi.VM.get_uuid(ref)
        seconds = (time.perf_counter() - begun) * SOME / len(refs)
        session.xenapi.logout()
        session('close')()
        table.ratio("3.25's 3 calls per VM (%d VMs, scaled) over the same" % len(refs), bare,
                    [seconds] * runs, '%.2f')


def selection_seconds(count, rules):
    """How long select() takes: of the processor, as it waits for nothing."""
    found = [VmBackup.Vm('ref %d' % number, 'uuid %d' % number,
                         'group%03d-%d' % (number % RULES, number), {}) for number in range(count)]
    lines = [VmBackup.Rule('vm-export', 'group%03d-.*:3' % number, 'line %d' % number)
             for number in range(rules)]
    re.purge()
    begun = time.process_time()
    plan = VmBackup.select(lines, found, 4)
    seconds = time.process_time() - begun
    assert len(plan.jobs) == count * rules // RULES and not plan.errors
    return seconds


def bench_selection(table, runs):
    """Selection in this process: the best time counts, as it waits for nothing."""
    whole, fewer, shorter = [], [], []
    for _ in range(3 * runs):
        whole.append(selection_seconds(MANY, RULES))
        fewer.append(selection_seconds(MANY // 2, RULES))
        shorter.append(selection_seconds(MANY, RULES // 2))
    table.number('selection: %d VMs, %d regex rules, s' % (MANY, RULES), min(whole), '%.2f', 2)
    table.ratio('the same over half of the VMs, s', [min(fewer)], [min(whole)], '%.2f', 2.5)
    table.ratio('the same over half of the rules, s', [min(shorter)], [min(whole)], '%.2f', 2.5)


def bench_run(table, place, size, runs):
    """A run over the commands of xe that it needs, and the bytes that it touches itself."""
    with pool_of(place, NIGHT, size='%d MiB' % size) as bench:
        uuids = [record['uuid'] for record in bench.sim.pool.tables['VM'].values()
                 if record['name_label'].startswith('vm-')]
        config, bare, ours, bytes_of = bench.config(), [], [], []
        bench.sim.pool.faults.add('vm-export', 'slow', times=0, rate=RATE)
        for _ in range(runs):
            bare.append(bench.timed('bash', '-c', LOOP, 'bash', bench.backups, *uuids))
            bytes_of.append(bench.exported())
            bench.clear()
            ours.append(bench.vmbackup(config))
            bytes_of.append(bench.exported())
            bench.clear()
        assert min(bytes_of) == max(bytes_of) >= NIGHT * size * MIB
        table.ratio('%d VMs of %d MiB, over xe in a shell loop, s' % (NIGHT, size), bare, ours,
                    '%.2f', 1.03)
        table.number('MB/s that the loop exported (limit: %.0f)' % (RATE / 1e6),
                     bytes_of[0] / statistics.median(bare) / 1e6)
        bench.sim.pool.faults.clear()
        report = bench.run()
        table.row('bytes through Python over bytes exported', '%d' % report['exported'],
                  '%d' % report['io'], '%.4f%%' % (100 * report['io'] / report['exported']),
                  '< 0.1%', report['io'] < report['exported'] / 1000)


def bench_parallel(table, place, size, runs):
    """Four VMs at once over one of them."""
    with pool_of(place, VMS, size='%d MiB' % size) as bench:
        bench.sim.pool.faults.add('vm-export', 'slow', times=0, rate=SHARED_RATE)
        one, four = [], []
        for _ in range(runs):
            one.append(bench.vmbackup(bench.config('vm-export=vm-0')))
            bench.clear()
            four.append(bench.vmbackup(bench.config(), 'parallel=%d' % VMS))
            bench.clear()
        table.ratio('%d VMs at %.0f MB/s each, parallel=%d, over one alone, s' % (
            VMS, SHARED_RATE / 1e6, VMS), one, four, '%.2f', 1.15)


def answer_seconds(sim):
    """How long the daemon needs for VM.get_all_records, and its bytes; nobody parses them."""
    connection = http.client.HTTPConnection(sim.url[len('http://'):])
    session = sim.pool.login('root', 'password', 'bench', True)
    begun = time.perf_counter()
    connection.request('POST', '/', xmlrpc.client.dumps((session,), 'VM.get_all_records'))
    size = len(connection.getresponse().read())
    seconds = time.perf_counter() - begun
    connection.close()
    sim.pool.logout(session)
    return seconds, size


def bench_large(table, place, runs):
    """A large pool: calls, memory, and the simulated daemon itself."""
    with pool_of(place, 10) as bench:
        few = bench.preview()[0]
    begun = time.perf_counter()
    with pool_of(place, MANY) as bench:
        table.number('the simulated pool: start with %d VMs, s' % MANY,
                     time.perf_counter() - begun, '%.2f')
        seconds, size = answer_seconds(bench.sim)
        table.number('the simulated pool: answer to VM.get_all_records, s', seconds, '%.2f')
        table.number('the simulated pool: MiB of that answer', size / MIB, '%.1f')
        bare, ours = [], []
        for _ in range(runs):
            bare.append(bench.bare()[1]['most'] / 1024)
            calls, report = bench.preview()
            ours.append(report['most'] / 1024)
        table.number('XenAPI calls of a preview of %d VMs' % MANY, calls, exactly=few)
        table.ratio('memory of it over VM.get_all_records, MiB', bare, ours, '%.1f', 1.2)
        kept = bench.child(KEPT, bench.sim.url)[1]['kept'] / MIB
        table.number('kept of all tables, %d VMs, MiB' % MANY, kept, '%.1f', 40)


def make_backups(root):
    """Directories as runs would have left them, with what is read of them."""
    start = 1577880000         # seconds since 1970
    for vm in range(HISTORIES):
        for number in range(1, BACKUPS + 1):
            name = time.strftime(VmBackup.DEFAULT_BACKUP_DIR_PATTERN,
                                 time.localtime(start + number * 86400))
            path = os.path.join(root, 'vm-%d' % vm, name)
            os.makedirs(path)
            moment = time.strftime('%Y-%m-%dT%H:%M:%S+00:00', time.gmtime(start + number * 86400))
            manifest = {'schema': 1, 'vm': {'name': 'vm-%d' % vm}, 'method': 'vm-export',
                        'started': moment, 'number': number, 'files': {'vm-%d.xva' % vm: 1 << 30}}
            with open(os.path.join(path, VmBackup.MANIFEST), 'w', encoding='utf-8') as stream:
                json.dump(manifest, stream)
            with open(os.path.join(path, VmBackup.MARKERS[0]), 'w', encoding='utf-8'):
                pass


@contextlib.contextmanager
def listings():
    """A list of the directories that are listed meanwhile."""
    seen, real = [], (os.scandir, os.listdir)

    def watched(function):
        """A function that lists, and tells."""
        def call(path='.'):
            """Tell, and list."""
            seen.append(path)
            return function(path)
        return call
    os.scandir, os.listdir = map(watched, real)
    try:
        yield seen
    finally:
        os.scandir, os.listdir = real


def rotate(root):
    """What a run does to choose surplus backups, after the newest one of each VM was made."""
    store = VmBackup.BackupStore(root, VmBackup.DEFAULT_BACKUP_DIR_PATTERN)
    for number in range(HISTORIES):
        history = store.history('vm-%d' % number)
        new = VmBackup.BackupDir(os.path.join(history.directory, 'new'), 0)
        assert len(history.surplus(new, VmBackup.Policy(BACKUPS - 1))) == 2


def list_all(root):
    """All backups of all VMs."""
    store = VmBackup.BackupStore(root, VmBackup.DEFAULT_BACKUP_DIR_PATTERN)
    assert sum(len(history.backups()) for history in store.histories()) == HISTORIES * BACKUPS


def command_list(root):
    """The command `list`, printed to nowhere."""
    assert VmBackup.run_list([root], VmBackup.Console(None)) == 0


def bench_store(table, place, runs):
    """Rotation and listing of many backups."""
    root = os.path.join(place, 'store')
    make_backups(root)
    rotating, listing, telling = [], [], []
    for _ in range(runs):
        for function, seconds in ((rotate, rotating), (list_all, listing),
                                  (command_list, telling)):
            begun = time.perf_counter()
            function(root)
            seconds.append(time.perf_counter() - begun)
    what = '%d VMs x %d backups, s' % (HISTORIES, BACKUPS)
    table.number('choose what to rotate, ' + what, statistics.median(rotating), '%.2f', 1)
    table.number('list all, ' + what, statistics.median(listing), '%.2f', 1)
    table.number('the command list, ' + what, statistics.median(telling), '%.2f', 3)
    for name, function in (('choose', rotate), ('list', list_all), ('tell', command_list)):
        with listings() as seen:
            function(root)
        own = [path for path in seen if os.path.dirname(path) == root]
        below = [path for path in seen if os.path.dirname(os.path.dirname(path)) == root]
        table.number('listings of a VM directory, to %s' % name, len(own) / HISTORIES, '%.1f', 1)
        table.number('listings below a VM directory, to %s' % name, len(below) / HISTORIES, '%.1f')
    shutil.rmtree(root)


def bench_pool(place, size, runs):
    """Runs and previews on simulated pools; the exit status."""
    disk = max(size // 2, 1)
    if shutil.disk_usage(place).free < (NIGHT + 1) * disk * MIB:
        print('there is no room for %d MiB in %s' % ((NIGHT + 1) * disk, place))
        return 1
    print('median of %d runs; disks of %d MiB\n' % (runs, disk))
    table = Table()
    for what, part, arguments in (
            ('selection', bench_selection, (runs,)),
            ('calls', bench_calls, (place,)),
            ('preview', bench_preview, (place, runs)),
            ('run', bench_run, (place, disk, runs)),
            ('parallel', bench_parallel, (place, max(disk // 2, 1), runs)),
            ('large pool', bench_large, (place, runs)),
            ('store', bench_store, (place, runs))):
        with table.attempt(what):
            part(table, *arguments)
    print('\nmissed: ' + ', '.join(table.missed) if table.missed else '\nall targets met')
    return 0
