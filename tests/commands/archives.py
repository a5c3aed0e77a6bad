"""Good archives of every kind, and what the tests of verification do with them."""

import collections
import functools
import itertools
import lzma
import os
import random
import re
import shutil
import struct
import tempfile
import unittest
from typing import NamedTuple

import VmBackup
from tests import DATA
from tests.faults.faulting import full
from tests.simpool import archive, ova, pools

SAMPLES = os.path.join(DATA, 'samples')
BLOCK = 512
MIB = 1 << 20
SMALL = 70000                  # bytes: a disk of less than a chunk
WITH_XXH64 = unittest.skipUnless(VmBackup.xxh64_function(), 'no XXH64')
PACKERS = {program: kind for program, kind in (('gzip', 'gzip'), ('pigz', 'gzip'), ('zstd', 'zstd'))
           if shutil.which(program)}           # what decompresses, and what it decompresses
COMPRESSIONS = dict(VmBackup.COMPRESSIONS)


class Member(NamedTuple):
    name: str
    data: bytes

    def written(self):
        return b''.join((archive.tar_header(self.name, len(self.data)), self.data,
                         bytes(-len(self.data) % BLOCK)))


END = bytes(2 * BLOCK)


def described(sizes, suspended=False, numbers=None, fill=1):
    """The ova.xml of a VM with disks of these sizes in bytes and an empty CD drive, and the
    disks in the order of the archive: (directory, Image) pairs."""
    pool = pools.load({'vms': [{
        'name': 'vm', 'disks': [{'size': size, 'fill': fill} for size in sizes], 'cd': None,
        'memory': SMALL, 'power_state': 'Suspended' if suspended else 'Halted'}]})
    vm, = [ref for ref, record in pool.tables['VM'].items() if record['name_label'] == 'vm']
    host, = pool.tables['host'].values()
    text, streamed = ova.build(pool.tables, vm, (numbers or itertools.count(4)).__next__,
                               ova.version_info(host, '26.1'), preserve_power_state=suspended)
    return text, sorted((name, pool.content[ref]) for ref, name in streamed.items())


def members(data):
    found, at = [], 0
    while data[at]:
        size = int(data[at + 124:at + 135], 8)
        name = data[at:at + 100].rstrip(b'\0').decode()
        found.append(Member(name, data[at + BLOCK:at + BLOCK + size]))
        at += BLOCK + size + -size % BLOCK
    return found


def joined(found):
    return b''.join(member.written() for member in found) + END


def plain(sizes, checksum='xxhash', keep_alive=False, gaps=(), **how):
    """The bytes of a good archive; of each disk, the chunks that `gaps` numbers are zeros."""
    text, disks = described(sizes, **how)
    for _, image in disks:
        for index in gaps:
            image.write(index * MIB, bytes(image.chunk_size(index)))
    before = [(name, 1) for name, _ in disks] if keep_alive else ()
    return b''.join(archive.xva(text, disks, checksum, before))


def packed(data, kind):
    return b''.join(archive.compressed([data], kind))


KINDS = collections.OrderedDict((name, functools.lru_cache(None)(make)) for name, make in (
    ('one small disk', lambda: plain([SMALL])),
    ('an odd last chunk', lambda: plain([MIB + SMALL + 1])),
    ('SHA-1', lambda: plain([SMALL, SMALL + 512], 'checksum')),
    ('keep-alive members', lambda: plain([2 * MIB + SMALL], keep_alive=True)),
    ('several disks', lambda: plain([SMALL, MIB, 512, SMALL])),
    ('chunks left out', lambda: plain([4 * MIB + SMALL], gaps=(1, 2))),
    ('a disk of zeros', lambda: plain([2 * MIB + 512], fill=0)),
    ('no disks', lambda: plain([])),
    ('a suspend image', lambda: plain([SMALL], suspended=True)),
))


class ArchiveCase(unittest.TestCase):
    """A test with one file, into which archives are put in turn."""

    def setUp(self):
        place = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
        if os.environ.get('TMPDIR'):
            place = None                               # the runner looks for what is left there
        self.directory = tempfile.mkdtemp(prefix='archives-', dir=place)
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = os.path.join(self.directory, 'file')
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self.addCleanup(os.close, self.handle)

    def put(self, data):
        os.ftruncate(self.handle, len(data))
        os.pwrite(self.handle, data, 0)

    def verdict(self, form='.xva', size=None):
        """What is made of the file: a Proof, or the Damaged that was raised. Nothing else may
        come."""
        try:
            with VmBackup.opened(self.path, form) as reader:
                return VmBackup.read_form(form, reader, size)
        except VmBackup.Damaged as damaged:
            self.assertTrue(str(damaged))
            damaged.__context__ = None              # nor keep the frames that it came through
            return damaged.with_traceback(None)

    @staticmethod
    def verifier():
        """One that shows nothing and is never interrupted."""
        return VmBackup.Verifier(60)

    def only(self, program):
        """From now on, what this program decompresses is decompressed by no other one."""
        kind = PACKERS[program]
        self.addCleanup(VmBackup.COMPRESSIONS.update, {kind: COMPRESSIONS[kind]})
        VmBackup.COMPRESSIONS[kind] = COMPRESSIONS[kind]._replace(programs=(program,))

    def proof(self, data, form='.xva', size=None):
        self.put(data)
        found = self.verdict(form, size)
        self.assertIsInstance(found, VmBackup.Proof, found)
        return found

    def assert_damaged(self, what, form='.xva', size=None, but=None):
        """What is in the file is found damaged, or at least not what `but` is the Proof of."""
        found = self.verdict(form, size)
        if not isinstance(found, VmBackup.Damaged):
            self.assertIsNotNone(but, '%s passes' % (what,))
            self.assertNotEqual(but.digest, found.digest, '%s is not noticed' % (what,))
        return found


def sample(name):
    with open(os.path.join(SAMPLES, name), 'rb') as stream:
        return lzma.decompress(stream.read()) if name.endswith('.xz') else stream.read()


def vhd(image, **options):
    return b''.join(archive.vhd_stream(image, **options))


def shuffled(image):
    """A dynamic VHD of the same, the last of its blocks first."""
    data = vhd(image)
    count = -(-image.virtual_size // archive.VHD_BLOCK)
    table = struct.unpack_from('>%dI' % count, data, 2048)
    used = [number for number, sector in enumerate(table) if sector != VmBackup.NOWHERE]
    places = dict(zip(reversed(used), sorted(table[number] for number in used)))
    head = bytearray(data[:min(places.values()) * 512])
    struct.pack_into('>%dI' % count, head, 2048, *[
        places.get(number, VmBackup.NOWHERE) for number in range(count)])
    length = 512 + archive.VHD_BLOCK
    return bytes(head) + b''.join(
        data[table[number] * 512:][:length] for number in reversed(used)) + data[-512:]


def chances(seed, salt):
    return random.Random('%s:%s' % (seed, salt))


def some(things, chance, count):
    """Things of a list in their order: all in the full run, else so many, chosen by chance."""
    things = list(things)
    if full() or count >= len(things):
        return things
    return [things[number] for number in sorted(chance.sample(range(len(things)), count))]


def noise(chance, size):
    return chance.getrandbits(8 * size).to_bytes(size, 'little') if size else b''


def is_chunk(member):
    return re.search(r'/\d+\Z', member.name) is not None
