"""Archives and images that are good: none is refused, others read the same, memory is bounded."""

import contextlib
import gzip
import hashlib
import io
import itertools
import os
import py_compile
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
import unittest.mock

import VmBackup
from tests import ROOT
from tests.commands import archives
from tests.tools import figures
from tests.commands.archives import KINDS, MIB, PACKERS, SMALL, ArchiveCase, Member, sample
from tests.faults.faulting import full, seed
from tests.simpool import archive, ova
from tests.tools.support import LIMIT

try:
    from dissect.archive.xva import XVA
except ImportError:
    XVA = None

MEMORY = 40                    # MiB


def images(data):
    """{directory: Image} of the disks of an archive, as the simulated importer reads them."""
    return archive.read_xva(io.BytesIO(data), ova.disk_sizes).disks


def known_images():
    """The digests of the disks of the samples."""
    return {line.split()[0].decode('ascii') for line in sample('SHA256SUMS.images').splitlines()}


@archives.WITH_XXH64
class Samples(ArchiveCase):
    def test_each_is_proved_whatever_the_name_says_of_its_compression(self):
        before = len(os.listdir('/proc/self/fd'))
        verifier = self.verifier()
        for name, form, proved, size in (('sample.xva.gz', '.xva', 'checksums', 8446464),
                                         ('sample.xva.zst', '.xva', 'checksums', 8446464),
                                         ('no-disks.xva', '.xva', 'checksums', 24064),
                                         ('sample-root.vhd.xz', '.vhd', 'structure', None)):
            if name.endswith('.zst') and 'zstd' not in PACKERS:
                continue
            self.put(sample(name))
            proofs = set()
            for other in ('x' + form, 'x%s.gz' % form, 'x%s.zst' % form):
                with self.subTest((name, other)):
                    path = os.path.join(self.directory, other)
                    os.rename(self.path, path)
                    proofs.add(verifier.prove(path))
                    if form == '.xva':
                        with VmBackup.opened(path, form) as reader:
                            reader.read_ova()
                    os.rename(path, self.path)
            found, = proofs
            self.assertEqual((proved, size or found.size), (found.proved, found.size))
        self.assertEqual(before, len(os.listdir('/proc/self/fd')))

    def test_what_was_read_is_forgotten_by_the_system(self):
        reader = VmBackup.Reader(self.handle)
        with unittest.mock.patch('os.posix_fadvise') as advise:
            for done in (5, 7):
                os.lseek(self.handle, done, os.SEEK_SET)
                reader.position()
            reader.close()
            reader.position()
        self.assertEqual([(0, 5), (0, 7), (0, 7)],
                         [call[0][1:3] for call in advise.call_args_list])

    @contextlib.contextmanager
    def hanging_in(self, name):
        """Yield the readers of a thread which stands still at the call of a function, and goes on
        after this."""
        begun, going, real = threading.Event(), threading.Event(), getattr(VmBackup, name)
        readers = []

        def hang(*arguments):
            readers.extend(each for each in arguments if isinstance(each, VmBackup.Reader))
            begun.set()
            going.wait(LIMIT)
            return real(*arguments)
        self.put(bytes(MIB))
        image = self.path + '.raw'
        os.rename(self.path, image)
        self.path = image
        thread = threading.Thread(target=self.verifier().prove, args=(image, MIB))
        with unittest.mock.patch('VmBackup.' + name, hang):
            thread.start()
            begun.wait(LIMIT)
            try:
                yield readers
            finally:
                going.set()
                thread.join()

    def test_how_far_a_read_is_can_be_told_and_it_be_given_up_while_it_hangs(self):
        """lseek(2) waits until a read(2) of the same file has ended."""
        with unittest.mock.patch('os.lseek', side_effect=AssertionError('it would wait')):
            with self.hanging_in('read_form') as (reader,):
                os.read(reader.handle, 512)
                self.assertEqual(512, reader.position())
                reader.close()
                self.assertEqual(512, reader.position())
        self.assertEqual(-1, reader.handle)

    def test_an_image_of_known_size_and_a_dump(self):
        for name, form, size in (('sample-root.vhd.xz', '.vhd', 8 * MIB),
                                 ('pool-database.dump.xz', '.dump', None)):
            self.assertEqual('structure', self.proof(sample(name), form, size).proved)

    def test_metadata_is_no_backup(self):
        self.put(sample('metadata.xva'))
        self.assertRegex(str(self.verdict()), r"chunk Ref:\d+/00000000 was expected, found the end")


class Checksums(ArchiveCase):
    """XXH64 is what it is by everybody else."""

    @archives.WITH_XXH64
    def test_a_reader_of_archives_without_them_finds_the_structure(self):
        data = archives.plain([MIB + SMALL])
        found = []
        for function in (VmBackup.xxh64_function, lambda: None):
            with unittest.mock.patch('VmBackup.xxh64_function', function):
                self.put(data)
                found.append(self.verdict())
        self.assertEqual(['checksums', 'structure'], [proof.proved for proof in found])
        self.assertEqual(found[0]._replace(proved='structure'), found[1])


@archives.WITH_XXH64
class Good(ArchiveCase):
    def test_every_kind_plain_and_by_each_program_that_decompresses(self):
        for name, make in KINDS.items():
            data = make()
            found = self.proof(data)
            self.assertEqual('checksums', found.proved)
            figures.add('good archives', faults=0, checks=1)
            for program, kind in PACKERS.items():
                with self.subTest((name, program)):
                    self.only(program)
                    self.assertEqual(found, self.proof(archives.packed(data, kind)))
                    figures.add('good archives', faults=0, checks=1)

    def test_disks_come_in_the_order_of_their_names_as_text(self):
        found = archives.members(KINDS['several disks']())
        self.assertEqual(['Ref:12', 'Ref:14', 'Ref:16', 'Ref:9'],
                         [member.name[:-9] for member in found if archives.is_chunk(member)])
        text, chunks = found[:1], found[1:]
        self.proof(archives.joined(text + chunks))
        self.put(archives.joined(text + chunks[-2:] + chunks[:-2]))    # in that of their numbers
        self.assertIsInstance(self.verdict(), VmBackup.Damaged)

    def test_keep_alive_members_anywhere_but_at_the_ends(self):
        text, ((name, image),) = archives.described([3 * MIB + SMALL])
        for numbers in ((1,), (1, 2, 3), (2,), (1, 3), tuple(range(1, 40))):
            data = b''.join(archive.xva(text, [(name, image)], 'xxhash',
                                        {(name, number) for number in numbers}))
            self.assertLess(9, len(archives.members(data)))
            self.assertEqual('checksums', self.proof(data).proved)

    def test_any_shape(self):
        chance = random.Random('shapes:' + seed())
        packers = [bytes, lambda data: gzip.compress(data, 1)]
        if 'zstd' in PACKERS:
            packers.append(lambda data: archives.packed(data, 'zstd'))
        for number in range(200 if full() else 8):
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
        sizes += [512 * chance.randrange(1, 1 << chance.randrange(1, 32))
                  for _ in range(60 if full() else 12)]
        for size in sizes:
            with self.subTest(size):
                image = archive.Image(size)
                for at in (0, size - 512, chance.randrange(size // 512) * 512):
                    if chance.random() < 0.7:
                        image.write(at, b'x' * 512)
                self.proof(archives.vhd(image), '.vhd', size)
                figures.add('good images', faults=0, checks=1)

    def test_vhd_images_may_have_every_block_of_a_rounded_disk(self):
        data = archives.vhd(archive.Image(4 * MIB), every_block=True)
        self.proof(data, '.vhd', 4 * MIB)
        self.proof(data, '.vhd', 3 * MIB + 512)        # a disk that was rounded up to blocks

    def test_large_documents_with_large_values(self):
        """Expat 2.6 looks at a value only when much of it has come."""
        small = [b'<row name="%s"/>' % (b'y' * 1000)] * 1000
        for large in (2 * MIB, 5 * MIB):
            values = [b'<row name="%s"/>' % (b'x' * large)] * 2
            data = b''.join([b'<database>'] + small * 18 + values + small + [b'</database>'])
            self.assertEqual('structure', self.proof(data, '.dump').proved)


@archives.WITH_XXH64
class Peers(ArchiveCase):
    def for_dissect(self, data):
        """An archive for dissect.archive 1.8, which leaves the last member of each disk out: it
        gets one more."""
        changed = []
        for directory, found in itertools.groupby(
                archives.members(data), lambda member: member.name.partition('/')[0]):
            changed += found
            if directory != 'ova.xml':
                changed.append(Member(directory + '/99999999', b''))
        return archives.joined(changed)

    def compare(self, data):
        """Others read the same of each disk; return the digests of the disks."""
        self.assertEqual('checksums', self.proof(data).proved)
        xva, found = XVA(io.BytesIO(self.for_dissect(data))), set()
        for name, image in images(data).items():
            digest = hashlib.sha256(xva.open(name).read(image.virtual_size)).hexdigest()
            self.assertEqual(image.sha256(), digest, name)
            found.add(digest)
        return found

    @unittest.skipUnless(XVA, 'no package dissect.archive')
    def test_dissect_reads_the_same_disks_of_our_archives_and_of_the_real_sample(self):
        self.assertEqual(known_images(), self.compare(gzip.decompress(sample('sample.xva.gz'))))
        for checksum in ('xxhash', 'checksum'):
            self.assertEqual(3, len(self.compare(archives.plain(
                [2 * MIB, 3 * MIB + SMALL, MIB + 512], checksum))))
        for name, make in KINDS.items():
            with self.subTest(name):
                self.compare(make())

    @unittest.skipUnless(shutil.which('qemu-img'), 'no qemu-img')
    def test_images_that_qemu_made_pass(self):
        for size in (MIB, 5 * MIB, 1 << 34, 1 << 40):
            subprocess.check_output(['qemu-img', 'create', '-q', '-f', 'vpc', self.path, str(size)],
                                    timeout=LIMIT)
            self.assertEqual('structure', self.verdict('.vhd').proved)


class Long(VmBackup.ArchiveReader):
    """An archive that never was on any disk: so many chunks, all of the same bytes, each followed
    by so many empty members that keep a connection alive."""

    def __init__(self, count, empty=0):
        super().__init__(0, plain=True)                # of which nothing is read
        self.chunk = b'x' * MIB
        text, ((self.name, _),) = archives.described([MIB])
        self.text = re.sub(b'(<name>virtual_size</name><value>)%d' % MIB,
                           lambda found: found.group(1) + b'%d' % (count * MIB), text)
        self.rows = self.members(count, empty)
        self.rest = memoryview(b'')

    def members(self, count, empty):
        yield Member('ova.xml', self.text).written()
        right, none = (b'%016X' % archive.xxh64(data) for data in (self.chunk, b''))
        for number in range(count * (empty + 1) - empty):
            part = '%s/%08d' % (self.name, number)
            full_one = number % (empty + 1) == 0
            yield archive.tar_header(part, MIB if full_one else 0)
            if full_one:
                yield self.chunk
            yield Member(part + '.xxhash', right if full_one else none).written()
        yield archives.END

    def more(self, view):
        done = 0
        while done < len(view):
            self.rest = self.rest or memoryview(next(self.rows, b''))
            if not self.rest:
                break
            piece = self.rest[:len(view) - done]
            view[done:done + len(piece)] = piece
            self.rest = self.rest[len(piece):]
            done += len(piece)
        self.at += done
        return done


MEASURED = '''
import os, resource, sys
sys.path.insert(0, sys.argv[1])
import VmBackup
handle = os.open(sys.argv[2], os.O_RDONLY)
form = VmBackup.form_of(sys.argv[2])
reader = (VmBackup.ArchiveReader if form == '.xva' else VmBackup.Reader)(handle)
print(VmBackup.read_form(form, reader, None).proved)
reader.close()
with open('/proc/self/status') as status:
    print([line.split()[1] for line in status if line.startswith('VmHWM')][0])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
'''


def resident():
    """The memory, in KiB, that this process has now."""
    with open('/proc/self/statm', encoding='ascii') as stream:
        return int(stream.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') // 1024


@archives.WITH_XXH64
class Memory(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='memory-')
        self.addCleanup(shutil.rmtree, self.directory)
        for name in 'VmBackup.py', 'XenAPI.py':        # compiled: that takes more than it allows
            py_compile.compile(shutil.copy(os.path.join(ROOT, name), self.directory))

    def peak(self, mib, kind='none'):
        """The most memory, in MiB, that a process takes which verifies an archive of such a size;
        a program that decompresses it is another process."""
        path = os.path.join(self.directory, 'x.xva')
        with open(path, 'wb') as stream:
            stream.writelines(archive.compressed(Long(mib).rows, kind))
        environ = {name: value for name, value in os.environ.items()
                   if not name.startswith('COVERAGE')}
        proved, ours, others = subprocess.check_output(
            [sys.executable, '-I', '-c', MEASURED, self.directory, path], env=environ,
            timeout=LIMIT).split()
        self.assertEqual(b'checksums', proved)
        self.assertLess(int(others), MEMORY << 10)
        return int(ours) / 1024

    def test_of_a_process_for_small_and_large_archives(self):
        small, large = self.peak(1), self.peak(300 if full() else 100)
        self.assertLess(max(small, large), MEMORY)
        self.assertLess(large - small, 2)

    def test_of_a_process_for_compressed_archives(self):
        for kind in sorted(set(PACKERS.values())):
            self.assertLess(self.peak(100 if full() else 60, kind), MEMORY, kind)

    def test_nothing_is_kept_of_each_of_many_chunks(self):
        """Most of them are empty, which take no less of what might be kept."""
        count, marks = 1000 if full() else 200, []
        reader = Long(count, 99)
        read_chunk = reader.read_chunk

        def marked(name, size, *more):
            if name.endswith(('/00001000', '/%08d' % ((count - 10) * 100))):
                marks.append((sys.getallocatedblocks(), resident()))
            read_chunk(name, size, *more)
        reader.read_chunk = marked
        self.assertEqual('checksums', reader.read().proved)
        (blocks, memory), (blocks_later, memory_later) = marks
        self.assertLess(blocks_later - blocks, 500)
        self.assertLess(memory_later - memory, 1024)    # KiB: 10 bytes of each of 100,000 chunks
