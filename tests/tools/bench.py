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
from typing import NamedTuple

import VmBackup
from tests import ROOT
from tests.simpool import archive, ova, pools
from tests.tools.bench_pool import MIB, Noise, bench_pool

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
OURS = '''
form = VmBackup.form_of(sys.argv[2])
reader = (VmBackup.ArchiveReader if form == '.xva' else VmBackup.Reader)(handle)
size = os.fstat(handle).st_size if form == '.raw' else None
VmBackup.read_form(form, reader, size)
reader.close()
'''
EXTRACT = '''
with VmBackup.opened(sys.argv[2], '.xva') as reader:
    disk = VmBackup.archived_vm(reader.read_ova()).disks[1]
with VmBackup.opened(sys.argv[2], '.xva') as reader, open(os.devnull, 'wb', 0) as stream:
    for piece in VmBackup.continuous(VmBackup.disk_in('.xva', reader, disk.size, disk.id)):
        stream.write(piece)
'''
COMMAND = "VmBackup.main(['VmBackup.py', 'verify', sys.argv[2]])"
LIMIT = '''
import hashlib
buffer = bytearray(1 << 20)
xxh64, sha256 = VmBackup.xxh64_function(), hashlib.sha256()
digest = {'xxh64': lambda: xxh64(buffer),
          'sha256': lambda: sha256.update(buffer),
          'sha1': lambda: hashlib.sha1(buffer).digest()}[sys.argv[3]]
stream = open(handle, 'rb', buffering=0)
left = int(sys.argv[4])
while left and stream.readinto(buffer):
    digest()
    left -= 1
'''


class Figure(NamedTuple):
    seconds: float
    memory: float = 0          # MiB


def child(text, *words):
    output = subprocess.check_output([sys.executable, '-c', HEAD + text + TAIL, ROOT, *words])
    seconds, kib = output.split()[-2:]
    return Figure(float(seconds), int(kib) / 1024)


def through_wc(*argv):
    begun = os.times().elapsed
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as program:
        counter = subprocess.Popen(['wc', '-c'], stdin=program.stdout, stdout=subprocess.DEVNULL)
        program.stdout.close()
        if counter.wait() or program.wait():
            raise RuntimeError('%s failed' % argv[0])
    return Figure(os.times().elapsed - begun)


class Disk(Noise):
    """A disk, each chunk of which is half noise, another one each time, and half text."""

    def chunk(self, index):
        return (os.urandom(MIB // 2) + TEXT)[:MIB]


class Zeros(Noise):
    content = bytes(MIB)


def xva(disk, checksum='xxhash', count=1):
    pool = pools.load({'vms': [{'name': 'bench', 'disks': [
        {'size': '%d MiB' % disk.chunk_count, 'fill': 0}] * count}]})
    vm, = [ref for ref, record in pool.tables['VM'].items() if record['name_label'] == 'bench']
    host, = pool.tables['host'].values()
    text, disks = ova.build(pool.tables, vm, itertools.count(1).__next__,
                            ova.version_info(host, '26.1'))
    return archive.xva(text, [(name, disk) for name in disks.values()], checksum)


def write(path, pieces, program):
    with open(path, 'wb') as stream:
        packer = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=stream)
        for piece in pieces:
            packer.stdin.write(piece)
        packer.stdin.close()
        if packer.wait():
            raise RuntimeError('%s failed' % program[0])
    with open(path, 'rb') as stream:
        while stream.read(MIB):
            pass


def verify_rows(size):
    """What is measured of verification: name of a file, MiB, its bytes, a program that packs them;
    what that is, what any program needs for it, what we do, the target of limit over ours."""
    many = MANY * size // 2048
    raw = map(Disk(size * MIB).chunk, range(size))

    def hashed(what, most=-1):
        return lambda path: child(LIMIT, path, what, str(most))

    def unpacked(program):
        return lambda path: through_wc(program, '-dc', path)
    return [
        ('xxh64.xva', size, xva(Disk(size * MIB)), None,
         'plain XVA, XXH64', hashed('xxh64'), OURS, 0.85),
        ('part.xva', size // 8, xva(Disk(size // 8 * MIB)), None,
         'the same, only a part of it', None, OURS, None),
        ('whole.xva', size, xva(Disk(size * MIB)), None,
         'the same, as a command, from storage', None, COMMAND, None),
        ('four.xva', size // 4, xva(Disk(size // 4 * MIB), count=4), None,
         'one of four disks of it, extracted', hashed('xxh64', size // 4), EXTRACT, 0.8),
        ('sha1.xva', size, xva(Disk(size * MIB), 'checksum'), None,
         'plain XVA, SHA-1', hashed('sha1'), OURS, 0.85),
        ('zstd.xva.zst', size, xva(Disk(size * MIB)), ['zstd', '-qc'],
         'XVA, zstd', unpacked('zstd'), OURS, 0.9),
        ('gzip.xva.gz', size // 4, xva(Disk(size // 4 * MIB)), ['gzip', '-1c'],
         'XVA, gzip', unpacked('gzip'), OURS, 0.9),
        ('image.raw', size, raw, None, 'raw image, SHA-256', hashed('sha256'), OURS, None),
        ('image.vhd', size, archive.vhd_stream(Disk(size * MIB)), None,
         'VHD image, SHA-256', hashed('sha256'), OURS, None),
        ('many.xva.zst', many, xva(Zeros(many * MIB)), ['zstd', '-qc'],
         'XVA of %d chunks of zeros, zstd' % many, None, OURS, None)]


def measured(path, mib, runs, what, limit, ours, target):
    pairs = [(limit(path) if limit else None, child(ours, path)) for _ in range(runs)]
    memory = max(figure.memory for _, figure in pairs)
    speed = mib / statistics.median(figure.seconds for _, figure in pairs)
    if not limit:
        return (what, '', '%.0f' % speed, '', '', '%.1f' % memory), memory > MEMORY
    ratio = statistics.median(bare.seconds / figure.seconds for bare, figure in pairs)
    fastest = mib / statistics.median(bare.seconds for bare, _ in pairs)
    return (what, '%.0f' % fastest, '%.0f' % speed, '%.2f' % ratio,
            '%.2f' % target if target else '', '%.1f' % memory), (
                memory > MEMORY or ratio < (target or 0))


def machine():
    with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as stream:
        names = [line.split(':', 1)[1].strip() for line in stream if line.startswith('model name')]
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30)
    yield '%d x %s, %.0f GiB of memory, Linux %s, Python %s' % (
        os.cpu_count(), (names + [platform.machine()])[0], memory, platform.release(),
        platform.python_version())
    for program in filter(shutil.which, ('gzip', 'pigz', 'zstd')):
        output = subprocess.run([program, '--version'], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT).stdout.decode('utf-8', 'replace')
        yield output.splitlines()[0].strip('* ')


def bench_verify(place, size, runs):
    if not VmBackup.xxh64_function() or not shutil.which('zstd'):
        print('libxxhash and zstd are needed (Debian: libxxhash0, zstd)')
        return 1
    if shutil.disk_usage(place).free < 3 * size * MIB:
        print('there is no room for %d MiB in %s' % (3 * size, place))
        return 1
    form = '%-40s %11s %11s %6s %6s %11s'
    print('%d MiB of content, median of %d runs; memory: target %d MiB\n' % (size, runs, MEMORY))
    print(form % ('what', 'limit MiB/s', 'ours MiB/s', 'ratio', 'target', 'memory MiB'))
    missed = []
    for name, mib, pieces, program, *row in verify_rows(size):
        path = os.path.join(place, name)
        write(path, pieces, program or ['cat'])
        cells, is_missed = measured(path, mib, runs, *row)
        print((form % cells).rstrip(), flush=True)
        missed += [row[0]] * is_missed
        os.unlink(path)
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
