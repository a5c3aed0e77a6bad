"""python3 -m tests bench [topic] [--size MIB] [--runs N]: speed and memory.

A speed is told as a ratio to what any program would need for the same, measured in the same run,
the two in turn: machines differ, and so do their moods. Nothing here fails because of a number; the
last line says which of the targets were met.
"""

import argparse
import itertools
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from typing import Callable, NamedTuple, Optional

import VmBackup
from tests import ROOT
from tests.tools.bench_pool import bench_pool
from tests.simpool import archive, ova, pools

MIB = 1 << 20
TEXT = b'The quick brown fox jumps over the lazy dog. ' * 12000
MEMORY = 40                    # MiB that a verification may take
MANY = 100000                  # chunks

# What a measured process does: it prints seconds, and the most memory that it took, in KiB
# (Linux: proc(5), VmHWM; what getrusage tells may be that of the process that started it).
HEAD = '''
import os, sys, time
sys.path.insert(0, sys.argv[1])
import VmBackup
handle = os.open(sys.argv[2], os.O_RDONLY)
begun = time.perf_counter()
'''
TAIL = '''
with open('/proc/self/status') as status:
    most = [line.split()[1] for line in status if line.startswith('VmHWM')][0]
print(time.perf_counter() - begun, most)
'''
OURS = HEAD + '''
form = VmBackup.form_of(sys.argv[2])[0]
source = VmBackup.Source(handle)
size = os.fstat(handle).st_size if form == '.raw' else None
VmBackup.read_form(form, source, size, None)
source.close()
''' + TAIL
COMMAND = HEAD + "VmBackup.main(['VmBackup.py', 'verify', sys.argv[2]])" + TAIL
IN_PYTHON = HEAD + 'VmBackup.XXHASH = ()\n' + OURS[len(HEAD):]
LIMIT = HEAD + '''
import ctypes, hashlib
buffer = bytearray(1 << 20)
address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
if sys.argv[3] == 'xxh64':
    library = VmBackup.xxhash_library()
    digest = lambda: library(address, len(buffer), 0)
elif sys.argv[3] == 'nothing':
    digest = lambda: None
elif sys.argv[3] == 'sha1':
    digest = lambda: hashlib.sha1(buffer).digest()
else:
    digest = hashlib.sha256().update
    digest = lambda update=digest: update(buffer)
stream = open(handle, 'rb', buffering=0)
while stream.readinto(buffer):
    digest()
''' + TAIL


class Figure(NamedTuple):
    """One measurement."""

    seconds: float
    memory: float              # MiB


class Row(NamedTuple):
    """A line of the table."""

    what: str
    mib: float                 # of content
    limit: Optional[Callable[[], Figure]]
    ours: Callable[[], Figure]
    target: Optional[float]    # of limit / ours, in time


def child(text, *words):
    """Run a piece of Python on a file, in a process of its own."""
    output = subprocess.check_output([sys.executable, '-c', text, ROOT] + list(words))
    seconds, kib = output.split()[-2:]
    return Figure(float(seconds), int(kib) / 1024)


def through_wc(*argv):
    """How long a program needs to decompress into `wc -c`."""
    begun = os.times().elapsed
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as program:
        counter = subprocess.Popen(['wc', '-c'], stdin=program.stdout, stdout=subprocess.DEVNULL)
        program.stdout.close()
        if counter.wait() or program.wait():
            raise RuntimeError('%s failed' % argv[0])
    return Figure(os.times().elapsed - begun, 0)


class Disk:
    """A virtual disk, each chunk of which is half noise and half text."""

    def __init__(self, mib):
        self.virtual_size = mib * MIB
        self.chunk_count = mib

    def chunks(self):
        """The numbers of the chunks that are not zero: all."""
        return ((number, b'') for number in range(self.chunk_count))

    @staticmethod
    def chunk(_number):
        """The content of a chunk."""
        return (os.urandom(MIB // 2) + TEXT)[:MIB]


class Zeros(Disk):
    """One that is all zeros, each chunk of which is written all the same."""

    content = bytes(MIB)

    def chunk(self, _number):
        """The content of a chunk."""
        return self.content


def write(path, pieces, program=None):
    """Write a file, through a program if it is to be compressed."""
    with open(path, 'wb') as stream:
        if program is None:
            for piece in pieces:
                stream.write(piece)
            return
        packer = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=stream)
        for piece in pieces:
            packer.stdin.write(piece)
        packer.stdin.close()
        if packer.wait():
            raise RuntimeError('%s failed' % program[0])


def xva(disk, checksum='xxhash'):
    """The bytes of an archive with one disk, and a whole ova.xml."""
    pool = pools.load({'vms': [{'name': 'bench', 'disks': [
        {'size': '%d MiB' % disk.chunk_count, 'fill': 0}]}]})
    vm, = [ref for ref, record in pool.tables['VM'].items() if record['name_label'] == 'bench']
    host, = pool.tables['host'].values()
    text, disks = ova.build(pool.tables, vm, itertools.count(1).__next__,
                            ova.version_info(host, '26.1'))
    return archive.xva(text, [(name, disk) for name in disks.values()], checksum)


def raw(disk):
    """The bytes of a raw image."""
    return (disk.chunk(number) for number in range(disk.chunk_count))


class Vhd(Disk):
    """A disk as vhd_stream wants it."""

    def read(self, offset, length):
        """Some of it."""
        return b''.join(self.chunk(offset // MIB + number) for number in range(length // MIB))


def in_cache(path):
    """Read a file, so that its content is in memory."""
    with open(path, 'rb') as stream:
        while stream.read(MIB):
            pass
    return path


def verify_rows(place, size):
    """What is measured of verification: a generator, so that each file is made when it is due."""
    def path(name):
        return os.path.join(place, name)

    def file(name, *arguments):
        write(path(name), *arguments)
        return in_cache(path(name))

    plain = file('xxh64.xva', xva(Disk(size)))
    yield Row('plain XVA, XXH64', size, lambda: child(LIMIT, plain, 'xxh64'),
              lambda: child(OURS, plain), 0.85)
    yield Row('the same, only a part of it', size // 8, None,
              lambda: child(OURS, file('part.xva', xva(Disk(size // 8)))), None)
    yield Row('the same, as a command, from storage', size, None,
              lambda: child(COMMAND, plain), None)
    os.unlink(plain)
    old = file('sha1.xva', xva(Disk(size), 'checksum'))
    yield Row('plain XVA, SHA-1', size, lambda: child(LIMIT, old, 'sha1'),
              lambda: child(OURS, old), 0.85)
    os.unlink(old)
    zstd = file('zstd.xva.zst', xva(Disk(size)), ['zstd', '-qc'])
    yield Row('XVA, zstd', size, lambda: through_wc('zstd', '-dc', zstd),
              lambda: child(OURS, zstd), 0.9)
    os.unlink(zstd)
    gzip = file('gzip.xva.gz', xva(Disk(size // 4)), ['gzip', '-1c'])
    yield Row('XVA, gzip', size // 4, lambda: through_wc('gzip', '-dc', gzip),
              lambda: child(OURS, gzip), 0.9)
    image = file('image.raw', raw(Disk(size)))
    yield Row('raw image, SHA-256', size, lambda: child(LIMIT, image, 'sha256'),
              lambda: child(OURS, image), None)
    os.unlink(image)
    vhd = file('image.vhd', archive.vhd_stream(Vhd(size)))
    yield Row('VHD image, SHA-256', size, lambda: child(LIMIT, vhd, 'sha256'),
              lambda: child(OURS, vhd), None)
    os.unlink(vhd)
    many = file('many.xva.zst', xva(Zeros(MANY * size // 2048)), ['zstd', '-qc'])
    yield Row('XVA of %d chunks of zeros, zstd' % (MANY * size // 2048), MANY * size // 2048,
              None, lambda: child(OURS, many), None)
    small = file('python.xva', xva(Disk(min(size, 64))))
    yield Row('plain XVA, XXH64 in Python', min(size, 64), None,
              lambda: child(IN_PYTHON, small), None)


def measured(row, runs):
    """A row's cells, and whether it missed a target."""
    pairs = [(row.limit() if row.limit else None, row.ours()) for _ in range(runs)]
    ours = [figure for _, figure in pairs]
    memory = max(figure.memory for figure in ours)
    cells = [row.what, '', '%.0f' % (row.mib / statistics.median(
        figure.seconds for figure in ours)), '', '', '%.1f' % memory]
    missed = memory > MEMORY
    if row.limit:
        cells[1] = '%.0f' % (row.mib / statistics.median(limit.seconds for limit, _ in pairs))
        ratio = statistics.median(limit.seconds / figure.seconds for limit, figure in pairs)
        cells[3] = '%.2f' % ratio
        if row.target:
            cells[4] = '%.2f' % row.target
            missed = missed or ratio < row.target
    return cells, missed


def machine():
    """What this was measured on."""
    with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as stream:
        names = [line.split(':', 1)[1].strip() for line in stream if line.startswith('model name')]
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30)
    lines = ['%d x %s, %.0f GiB of memory, Linux %s, Python %s' % (
        os.cpu_count(), names[0] if names else platform.machine(), memory, platform.release(),
        platform.python_version())]
    for program in ('gzip', 'pigz', 'zstd'):
        if shutil.which(program):
            output = subprocess.run([program, '--version'], stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT).stdout.decode('utf-8', 'replace')
            lines.append(output.splitlines()[0].strip('* '))
    return lines


def bench_verify(place, size, runs):
    """Verification of archives and images; how many targets were missed."""
    if not VmBackup.xxhash_library() or not shutil.which('zstd'):
        print('libxxhash and zstd are needed (Debian: libxxhash0, zstd)')
        return 1
    free = shutil.disk_usage(place).free
    if free < 3 * size * MIB:
        print('there is no room for %d MiB in %s' % (3 * size, place))
        return 1
    head = ('what', 'limit MiB/s', 'ours MiB/s', 'ratio', 'target', 'memory MiB')
    form = '%-40s %11s %11s %6s %6s %11s'
    print('%d MiB of content, median of %d runs; memory: target %d MiB\n' % (size, runs, MEMORY))
    print(form % head)
    missed = []
    for row in verify_rows(place, size):
        cells, is_missed = measured(row, runs)
        print((form % tuple(cells)).rstrip(), flush=True)
        missed += [row.what] * is_missed
    print('\nmissed: ' + ', '.join(missed) if missed else '\nall targets met')
    return 0


TOPICS = {'verify': bench_verify, 'pool': bench_pool}


def main(argv):
    """Measure; the exit status tells whether that could be done, not how it went."""
    parser = argparse.ArgumentParser(prog='python3 -m tests bench', description=__doc__.split(
        '\n\n')[1])
    parser.add_argument('topics', nargs='*', metavar='topic', help='of: ' + ', '.join(TOPICS))
    parser.add_argument('--size', type=int, default=2048, help='MiB of content (default: 2048)')
    parser.add_argument('--runs', type=int, default=3, help='of each (default: 3)')
    options = parser.parse_args(argv)
    wrong = [topic for topic in options.topics if topic not in TOPICS]
    if wrong or options.size < 16 or options.runs < 1:
        parser.error('no topic %s' % wrong[0] if wrong else 'too small a size or number of runs')
    status = 0
    print('\n'.join(machine()), flush=True)
    for topic in options.topics or TOPICS:
        with tempfile.TemporaryDirectory(prefix='bench-') as place:
            status = max(status, TOPICS[topic](place, options.size, options.runs))
    return status
