"""Archives and images that are good: none is refused, others read the same, memory is bounded."""

import collections
import gzip
import io
import itertools
import lzma
import os
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
import unittest

import VmBackup
from tests import archives, figures
from tests.archives import KINDS, MIB, SMALL, ArchiveCase
from tests.faulting import full, seed
from tests.simpool import archive
from tests.support import DATA, LIMIT, ROOT

try:
    from dissect.archive.xva import XVA
except ImportError:
    XVA = None

SAMPLES = os.path.join(DATA, 'samples')
MEMORY = 40                    # MiB


def sample(name):
    """The bytes of a file that a real xapi has made."""
    with open(os.path.join(SAMPLES, name), 'rb') as stream:
        return lzma.decompress(stream.read()) if name.endswith('.xz') else stream.read()


class Samples(ArchiveCase):
    """What a real xapi has made."""

    def test_archives(self):
        for name, proved, size in (('sample.xva.gz', 'checksums', 8446464),
                                   ('sample.xva.zst', 'checksums', 8446464),
                                   ('no-disks.xva', 'checksums', 24064),
                                   ('metadata.xva', 'metadata', 42496)):
            if name.endswith('.zst') and not shutil.which('zstd'):
                continue
            with self.subTest(name):               # compression is told by the first bytes
                found = self.proof(sample(name))
                self.assertEqual((proved, size), (found.proved, found.size))

    def test_an_image_and_a_dump(self):
        found = self.proof(sample('sample-root.vhd.xz'), '.vhd', 8 * MIB)
        self.assertEqual('structure', found.proved)
        self.assertEqual('structure', self.proof(sample('pool-database.dump.xz'), '.dump').proved)

    def test_one_whose_export_failed(self):
        self.put(sample('failed-no-disks.xva'))
        self.assertEqual('it ends at byte 44961, in ova.xml: the export failed: '
                         'SR_BACKEND_FAILURE_46: [ ; The VDI is not available; ]',
                         str(self.verdict()))

    def test_metadata_is_no_failed_export(self):
        """What tells them apart is that the VM's state was preserved (xapi: export.ml, make_vm)."""
        data = sample('metadata.xva')
        self.put(data.replace(b'<name>suspend_VDI</name><value>Ref:231</value>',
                              b'<name>suspend_VDI</name><value>OpaqueRef:NULL</value>'))
        self.assertIsInstance(self.verdict(), VmBackup.Damaged)


class Good(ArchiveCase):
    """None of these is refused."""

    def test_every_kind(self):
        for name, make in KINDS.items():
            with self.subTest(name):
                found = self.proof(make())
                self.assertEqual('checksums', found.proved)
                figures.add('good archives', faults=0, checks=1)

    def test_any_shape(self):
        chance = random.Random('shapes:' + seed())
        packers = [bytes, lambda data: gzip.compress(data, 1)]
        if shutil.which('zstd'):
            packers.append(lambda data: subprocess.run(
                ['zstd', '-1qc'], input=data, stdout=subprocess.PIPE, check=True).stdout)
        for number in range((200 if full() else 24) if archives.WITH_LIBRARY else 3):
            text, disks = archives.described(
                sorted((chance.choice((512, SMALL, MIB, 3 * MIB - 512, 4 * MIB, 5 * MIB + 1,
                                       chance.randrange(1, 4 * MIB)))
                        for _ in range(chance.randrange(5))), reverse=True),
                numbers=itertools.count(chance.randrange(200)))
            for _, image in disks:
                for index in range(image.chunk_count):
                    if chance.random() < 0.4:
                        image.write(index * MIB, bytes(image.chunk_size(index)))
            disks.sort(key=lambda disk: -disk[1].virtual_size)     # the first sets the measure
            names = sorted(name for name, _ in disks)
            text, disks = self.renamed(text, disks, names)
            keep = {(name, chance.randrange(6)) for name in names}
            data = chance.choice(packers)(b''.join(archive.xva(
                text, disks, chance.choice(('xxhash', 'checksum')), keep, chance.randrange(2**31))))
            with self.subTest(number):
                self.assertEqual('checksums', self.proof(data).proved)
                figures.add('good archives', faults=0, checks=1)

    @staticmethod
    def renamed(text, disks, names):
        """The disks under these names, also in ova.xml, so that the largest comes first."""
        moves = {old: new for (old, _), new in zip(disks, names)}
        for old in moves:
            text = text.replace(b'>%s<' % old.encode(), b'>@%s<' % old.encode())
        for old, new in moves.items():
            text = text.replace(b'>@%s<' % old.encode(), b'>%s<' % new.encode())
        return text, [(moves[name], image) for name, image in disks]

    def test_vhd_images_of_any_size_and_fill(self):
        chance = random.Random('vhd:' + seed())
        sizes = [512, MIB, 2 * MIB, 2 * MIB + 512, 127 << 30, 128 << 30, 1 << 40, 2040 << 30]
        sizes += [512 * chance.randrange(1, 1 << chance.randrange(1, 32)) for _ in range(60)]
        for size in sizes:
            with self.subTest(size):
                image = archive.Image(size)
                for at in (0, size - 512, chance.randrange(size // 512) * 512):
                    if chance.random() < 0.7:
                        image.write(at, b'x' * 512)
                self.proof(b''.join(archive.vhd_stream(image)), '.vhd', size)
                figures.add('good images', faults=0, checks=1)

    def test_vhd_images_with_every_block_of_a_rounded_disk(self):
        image = archive.Image(4 * MIB)
        data = b''.join(archive.vhd_stream(image, every_block=True))
        self.proof(data, '.vhd', 4 * MIB)
        self.proof(data, '.vhd', 3 * MIB + 512)        # a disk that was rounded up to blocks

    def test_blocks_may_be_in_any_order(self):
        image = archive.Image.sample(8 * MIB, 'x', 1)
        data = bytearray(b''.join(archive.vhd_stream(image)))
        table = data.index(b'\0' * 3 + b'\5', 1536)    # of blocks at the sectors 5, 4102, ...
        data[table:table + 8] = data[table + 4:table + 8] + data[table:table + 4]
        self.proof(bytes(data), '.vhd', 8 * MIB)

    def test_raw_images(self):
        for size in (0, 1, 512, MIB, MIB + 1):
            self.proof(b'x' * size, '.raw', size)

    def test_the_importer_of_the_simulated_pool_agrees(self):
        for name, make in KINDS.items():
            with self.subTest(name):
                data = make()
                found, _ = VmBackup.archived_disks(archives.members(data)[0].data)
                read = archive.read_xva(io.BytesIO(data), lambda _: {
                    disk.id: disk.size for disk in found})
                self.assertEqual([disk.id for disk in found], sorted(read.disks))


class Peers(ArchiveCase):
    """Others read the same bytes."""

    def compare(self, data):
        """Others read the same of each disk, up to its last chunk, which dissect.archive 1.8
        leaves out; return the number of bytes."""
        self.proof(data)
        disks, _ = VmBackup.archived_disks(archives.members(data)[0].data)
        images = archive.read_xva(io.BytesIO(data), lambda _: {
            disk.id: disk.size for disk in disks}).disks
        compared, xva = 0, XVA(io.BytesIO(data))
        for disk in disks:
            size = (disk.size - 1) // MIB * MIB
            if size:
                self.assertEqual(images[disk.id].read(0, size), xva.open(disk.id).read(size))
                compared += size
        return compared

    @unittest.skipUnless(XVA, 'no package dissect.archive')
    def test_dissect_reads_the_same_disks_of_our_archives(self):
        for checksum in ('xxhash', 'checksum'):
            self.assertEqual(5 * MIB, self.compare(archives.plain(
                [2 * MIB, 3 * MIB + SMALL, MIB + 512], checksum)))

    @unittest.skipUnless(XVA, 'no package dissect.archive')
    def test_dissect_reads_the_same_disks_of_the_real_sample(self):
        self.assertEqual(10 * MIB, self.compare(gzip.decompress(sample('sample.xva.gz'))))

    @unittest.skipUnless(shutil.which('qemu-img'), 'no qemu-img')
    def test_qemu_reads_the_same_disk_of_a_vhd_as_of_a_raw_image(self):
        for size in (5 * MIB, 9 * MIB + 512):
            image = archive.Image.sample(size, 'qemu', 0.5)
            raw = os.path.join(self.directory, 'raw')
            with open(raw, 'wb') as stream:
                for piece in archive.raw_stream(image):
                    stream.write(piece)
            self.proof(b''.join(archive.vhd_stream(image)), '.vhd', size)
            opened = 'driver=vpc,force_size_calc=current_size,file.filename=' + self.path
            done = subprocess.run(
                ['qemu-img', 'compare', '--image-opts', opened,
                 'driver=raw,file.filename=' + raw], stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=LIMIT)
            self.assertEqual((0, b'Images are identical.\n'), (done.returncode, done.stdout))


class Long(VmBackup.Source):
    """An archive that never was on any disk: so many chunks, all of the same bytes."""

    def __init__(self, text, name, count):
        self.at, self.packed, self.stopped = 0, '', False
        chunk = b'x' * MIB
        self.digest = b'%016X' % archive.xxh64(chunk)
        self.pieces = self.stream(text, name, count, chunk)
        self.rest = memoryview(b'')

    def stream(self, text, name, count, chunk):
        """The archive, piece by piece."""
        yield archives.Member('ova.xml', text).written()
        for number in range(count):
            part = '%s/%08d' % (name, number)
            yield archive.tar_header(part, MIB)
            yield chunk
            yield archives.Member(part + '.xxhash', self.digest).written()
        yield archives.END

    def fill(self, view):
        """As of a file."""
        done = 0
        while done < len(view):
            self.rest = self.rest or memoryview(next(self.pieces, b''))
            if not self.rest:
                break
            piece = self.rest[:len(view) - done]
            view[done:done + len(piece)] = piece
            self.rest = self.rest[len(piece):]
            done += len(piece)
        self.at += done
        return done


MEASURED = '''
import os, sys
sys.path.insert(0, sys.argv[1])
import VmBackup
handle = os.open(sys.argv[2], os.O_RDONLY)
source = VmBackup.Source(handle)
print(VmBackup.read_form(VmBackup.form_of(sys.argv[2])[0], source, None, None).proved)
source.close()
with open('/proc/self/status') as status:
    print([line.split()[1] for line in status if line.startswith('VmHWM')][0])
'''


@unittest.skipUnless(archives.WITH_LIBRARY, 'no libxxhash: it would take minutes')
class Memory(unittest.TestCase):
    """It does not grow with the archive."""

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='memory-')
        self.addCleanup(shutil.rmtree, self.directory)

    def peak(self, path):
        """The most memory, in MiB, that a process takes which verifies a file."""
        output = subprocess.check_output([sys.executable, '-c', textwrap.dedent(MEASURED), ROOT,
                                          path], timeout=LIMIT).split()
        self.assertEqual(b'checksums', output[0])
        return int(output[1]) / 1024

    def test_of_a_process_for_small_and_large_archives(self):
        peaks = []
        for mib in (1, 200):
            path = os.path.join(self.directory, 'x.xva')
            (name, image), = archives.described([MIB])[1]
            text = archives.described([mib * MIB])[0]
            with open(path, 'wb') as stream:
                source = Long(text, name, mib)
                for piece in source.pieces:
                    stream.write(piece)
            peaks.append(self.peak(path))
            os.unlink(path)
        self.assertLess(max(peaks), MEMORY)
        self.assertLess(peaks[1] - peaks[0], 2)

    def test_nothing_is_kept_of_each_chunk(self):
        import tracemalloc
        count = 100000 if full() else 2000
        text, ((name, _),) = archives.described([count * MIB])
        source = Long(text, name, count)
        reader = VmBackup.ArchiveReader(source, None)
        marks = collections.deque(maxlen=2)
        read_chunk = reader.read_chunk

        def marked(*words):
            if source.at // MIB in (count // 10, count - 10):
                marks.append(tracemalloc.get_traced_memory()[0])
            read_chunk(*words)
        reader.read_chunk = marked
        tracemalloc.start()
        try:
            self.assertEqual('checksums', reader.read().proved)
        finally:
            tracemalloc.stop()
        self.assertEqual(2, len(marks))
        self.assertLess(marks[1] - marks[0], 20000)


if __name__ == '__main__':
    unittest.main()
