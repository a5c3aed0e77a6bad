"""Archives and images that are not good any more: each of thousands of changes is found.

What an archive itself cannot tell is told by the digest that the run's verification recorded: bits
of ova.xml, which has no checksum, chunks that are left out as if they were zeros, chunks that come
with a checksum of their own.
"""

import collections
import io
import json
import os
import re
import struct

import VmBackup
from tests.commands import archives
from tests.tools import figures
from tests.commands.archives import (
    BLOCK, KINDS, MIB, PACKERS, ArchiveCase, Member, is_chunk, joined, members, noise)
from tests.faults.faulting import full, seed
from tests.simpool import archive

PAGE = (b'HTTP/1.0 500 Internal Error\r\ncontent-length: 9\r\n\r\n<html><body><h1>HTTP 500</h1>'
        b'SR_BACKEND_FAILURE_46</body></html>')
SIZE = re.compile(rb'(?<=<name>virtual_size</name><value>)\d+')


@archives.WITH_XXH64
class Mutations(ArchiveCase):
    kind = 'changes of archives'

    def setUp(self):
        super().setUp()
        self.chance = archives.chances(seed(), self.id())

    def times(self, count):
        """How often: more of everything in the full run."""
        return count * (40 if full() else 1) // 4 + 1

    def each_kind(self):
        """(the bytes of a good archive, its members, its Proof) of each kind."""
        for name, make in KINDS.items():
            with self.subTest(name):
                yield make(), members(make()), self.proof(make())

    def found(self, what, but=None, **how):
        """A change is found; count it."""
        damaged = self.assert_damaged(what, but=but, **how)
        figures.add(self.kind, faults=1, checks=1)
        return damaged

    def flip(self, at, bit, **how):
        """A flipped bit of what is in the file is found; then it is as it was."""
        old = os.pread(self.handle, 1, at)
        os.pwrite(self.handle, bytes([old[0] ^ 1 << bit]), at)
        self.found('bit %d of byte %d' % (bit, at), **how)
        os.pwrite(self.handle, old, at)

    def flip_some(self, count, places, **how):
        """The same of some bits in these places."""
        for _ in range(self.times(count)):
            self.flip(self.chance.choice(places), self.chance.randrange(8), **how)

    def assert_found(self, what, data, **how):
        self.put(data)
        return self.found(what, **how)

    def assert_ends_are_found(self, data, cuts, more, **how):
        """Data that is cut at some places, or goes on with this or that, is found; what was said
        of the latter."""
        for cut in cuts:
            damaged = self.assert_found('a cut at %d' % cut, data[:cut], **how)
            if how.get('form', '.xva') == '.xva':
                self.assertRegex(str(damaged), r'\d')       # where
        return [str(self.assert_found(each[:20], data + each, **how)) for each in more]


class Bits(Mutations):
    """A bit flips."""

    kind = 'flipped bits in archives'

    def test_of_data_headers_checksums_and_what_is_between(self):
        for data, found, _ in self.each_kind():
            text = range(BLOCK, BLOCK + len(found[0].data))
            self.flip_some(150, list(range(BLOCK)) + list(range(text.stop, len(data))))

    def test_each_of_a_header_a_checksum_and_the_end(self):
        data = KINDS['one small disk']()
        self.proof(data)
        head = len(members(data)[0].written())
        tail = len(data) - 4 * BLOCK                   # checksum header, checksum, end
        bits = [(at, bit) for at in list(range(BLOCK)) + list(range(head, head + BLOCK)) +
                list(range(tail, len(data))) for bit in range(8)]
        for at, bit in archives.some(bits, self.chance, 300):
            self.flip(at, bit)

    def test_of_ova_xml_by_the_digest(self):
        for _, found, proof in self.each_kind():
            self.flip_some(30, range(BLOCK, BLOCK + len(found[0].data)), but=proof)


class Structure(Mutations):
    """Members are dropped, repeated, swapped, shortened, lengthened, renamed."""

    kind = 'changed members of archives'

    @staticmethod
    def changes(found):
        """(what, a place, the members): every change of one of them, and no disks at all."""
        yield 'all disks dropped', 0, found[:1]
        for at, member in enumerate(found):
            before, behind, data, name = found[:at], found[at + 1:], member.data, member.name
            yield 'dropped', at, before + behind
            for changed in (found[:at + 1] + found[at:], found + [member], [member] + found):
                yield 'repeated', at, changed
            for other in range(at + 1, len(found)):
                yield 'swapped', at, (before + [found[other]] + found[at + 1:other] + [member] +
                                      found[other + 1:])
            for new in (data[:-1], data[:len(data) // 2], b'', data + b'\0', data + bytes(BLOCK)):
                yield 'of another size', at, before + [Member(name, new)] + behind
            for new in (name + 'x', 'x', 'ova.xml', './' + name, name.replace('Ref:', 'Ref:1'),
                        name.replace('00000000', '00000009')):
                yield 'renamed', at, before + [Member(new, data)] + behind
            for more in (Member('x', b'x'), Member('Ref:99/00000000', b'x'),
                         Member('checksum.xml', b'<x/>'), Member('ova.xml', found[0].data)):
                yield 'a further one', at, before + [more, member] + behind
                yield 'a further one', at, before + [member, more] + behind

    @staticmethod
    def changes_by_the_digest(found):
        """The same of several members, which look like zeros left out, or like good ones."""
        for gone in {member.name.partition('/')[0] for member in found[1:]}:
            yield 'a disk dropped', 0, [member for member in found
                                        if not member.name.startswith(gone + '/')]
        pairs = [found[at:at + 2] for at in range(1, len(found), 2)]       # chunks, checksums
        for at, pair in enumerate(pairs):
            for changed in (pairs[:at] + pairs[at + 1:], pairs[:at] + [pair] + pairs[at:],
                            pairs[1:at + 1] + pairs[:1] + pairs[at + 1:], pairs[::-1]):
                yield 'pairs', at, found[:1] + sum(changed, [])
            for other in pairs:
                contents = [[Member(mine.name, others.data) for mine, others in zip(pair, other)]]
                yield 'contents of another', at, found[:1] + sum(
                    pairs[:at] + contents + pairs[at + 1:], [])

    def test_of_members(self):
        for changes, by_digest in (self.changes, False), (self.changes_by_the_digest, True):
            for data, found, proof in self.each_kind():
                kinds = collections.defaultdict(list)
                for what, at, changed in changes(found):
                    if joined(changed) != data:
                        kinds[what].append((at, changed))
                for what, several in kinds.items():
                    for at, changed in archives.some(several, self.chance, 8):
                        self.assert_found((what, found[at].name, at), joined(changed),
                                          but=proof if by_digest else None)

    def test_what_begins_as_one_archive_and_goes_on_as_another(self):
        for mine, found, proof in self.each_kind():
            others = [make() for make in KINDS.values()]
            half = len(mine) // 2 // BLOCK * BLOCK
            for other in archives.some([each for each in others if each != mine], self.chance, 3):
                self.assert_found('the disks of another', joined(
                    found[:1] + members(other)[1:]), but=proof)
                self.assert_found('the end of another', mine[:half] + other[half:], but=proof)

    def test_another_virtual_size(self):
        for _, found, _ in self.each_kind():
            text = found[0].data
            for match in SIZE.finditer(text):
                size = int(match.group())
                sizes = (size - 1, size + 1, size * 2, size // 2, 0, -1, size + MIB,
                         self.chance.randrange(1 << 40))
                for new in archives.some(sizes, self.chance, 4):
                    changed = text[:match.start()] + b'%d' % new + text[match.end():]
                    self.assert_found(('virtual_size', size, new), joined(
                        [Member('ova.xml', changed)] + found[1:]))


class Ends(Mutations):
    """A file that is cut, or goes on."""

    kind = 'cut and lengthened archives'

    def test_cut_anywhere_or_longer(self):
        for data, _, _ in self.each_kind():
            size = len(data)
            cuts = [0, 1, 511, 512, 513, size - 1, size - BLOCK, size - 2 * BLOCK]
            cuts += [self.chance.randrange(size) for _ in range(self.times(40))]
            cuts += [BLOCK * self.chance.randrange(size // BLOCK) for _ in range(self.times(20))]
            for words in self.assert_ends_are_found(data, cuts, (
                    b'\0', bytes(BLOCK) + b'x', bytes(10240) + data, b'x', PAGE, data,
                    noise(self.chance, self.chance.randrange(1, 9999)),
                    bytes(2 * self.chance.randrange(1, 9999) + 1))):
                self.assertIn('something follows the end', words)
            for blocks in 1, 18, 5000:                 # tar pads to 10,240 bytes
                self.assertEqual(self.proof(data)[:2], self.proof(data + bytes(blocks * BLOCK))[:2])
            self.assert_found('half an end', data[:-BLOCK] + b'x' * BLOCK)
            for _ in range(self.times(8)):             # with the page of a failed export
                cut = self.chance.randrange(BLOCK, size - 2 * BLOCK)
                self.assert_found(cut, data[:cut] + PAGE)


class Compressed(Mutations):
    """Compressed archives are changed, and each program that may decompress them is asked."""

    kind = 'changes of compressed archives'

    def setUp(self):
        super().setUp()
        if not PACKERS:
            self.skipTest('neither gzip nor zstd')

    def each_packed(self):
        """(a good archive, compressed, and its Proof)."""
        for program, kind in PACKERS.items():
            for what in archives.some(('several disks', 'no disks', 'SHA-1', 'chunks left out'),
                                      self.chance, 2):
                packed = archives.packed(KINDS[what](), kind)
                self.only(program)
                with self.subTest((program, what)):
                    yield packed, self.proof(packed)

    def test_a_bit_of_the_compressed_file(self):
        """Found, or the content is the same: a time in a gzip header is nobody's data, nor are
        the bits that fill up the last byte of a block."""
        for packed, proof in self.each_packed():
            places = archives.some(list(range(20)) + list(range(len(packed) - 12, len(packed))),
                                   self.chance, 16)
            places += [self.chance.randrange(len(packed)) for _ in range(self.times(20))]
            passing = 0
            for at in places:
                bit = self.chance.randrange(8)
                self.put(packed[:at] + bytes([packed[at] ^ 1 << bit]) + packed[at + 1:])
                found = self.verdict()
                if not isinstance(found, VmBackup.Damaged):
                    self.assertEqual(proof, found, (at, bit))
                    passing += 1
                figures.add(self.kind, faults=1, checks=1)
            self.assertLess(passing, 15)               # they are few

    def test_cut(self):
        for packed, _ in self.each_packed():
            size = len(packed)
            cuts = archives.some([0, 1, 2, 3, 5, size - 1, size - 4, size - 8], self.chance, 4)
            cuts += [self.chance.randrange(4, size) for _ in range(self.times(6))]
            for cut in cuts:
                self.assert_found('a cut at %d' % cut, packed[:cut])
            self.assert_found('cut by a failed export', packed[:size // 2] + PAGE)


class Images(Mutations):
    """VHD and raw images; of their data, only the digest tells."""

    kind = 'changes of VHD and raw images'
    size = 5 * MIB

    def setUp(self):
        super().setUp()
        image = archive.Image.sample(self.size, 'vhd', 0.6)
        self.data = archives.vhd(image)
        self.good = self.proof(self.data, '.vhd', self.size)
        self.table, = struct.unpack_from('>Q', self.data, BLOCK + 16)
        self.how = {'form': '.vhd', 'size': self.size}

    def test_bits_of_footers_and_header(self):
        last = len(self.data) - BLOCK
        for at in archives.some(list(range(BLOCK + 1024)) + list(range(last, last + 100)),
                                self.chance, 200):
            self.flip(at, self.chance.randrange(8), **self.how)

    def test_bits_of_table_and_data_by_the_digest(self):
        self.flip_some(60, range(len(self.data)), but=self.good, **self.how)

    def test_blocks_that_overlap_or_are_not_there(self):
        count = -(-self.size // (2 * MIB))
        entries = list(struct.unpack_from('>%dI' % count, self.data, self.table))
        used = [sector for sector in entries if sector != 0xffffffff]
        end = len(self.data) // BLOCK
        for number in range(count):
            for sector in [0, 1, 3, self.table // BLOCK, end - 1, end, end - 4096, end + 1,
                           0xfffffffe, used[0] + 1, used[-1] - 1, used[0] - 1] + [
                               each for each in used if each != entries[number]]:
                changed = entries[:number] + [sector] + entries[number + 1:]
                if len(set(changed) - {0xffffffff}) == 1 and sector == used[0] + 1:
                    continue                           # alone, it may be there
                data = bytearray(self.data)
                struct.pack_into('>%dI' % count, data, self.table, *changed)
                self.assert_found((number, sector), bytes(data), **self.how)

    def test_of_another_disk_cut_and_longer(self):
        for size in (self.size - MIB, self.size + 512, 2 * self.size, 512):
            self.assert_found(('a disk of', size), self.data, form='.vhd', size=size)
        size = len(self.data)
        cuts = [self.chance.randrange(size) for _ in range(20)] + [size - 1, size - BLOCK]
        self.assert_ends_are_found(self.data, cuts, (b'\0', bytes(BLOCK), PAGE, self.data),
                                   **self.how)

    def test_something_between_the_last_block_and_the_footer(self):
        for size in (1, BLOCK, MIB, 2 * MIB, 2 * MIB + BLOCK, 3 * MIB):
            for more in (bytes(size), noise(self.chance, size)):
                self.assert_found(size, self.data[:-BLOCK] + more + self.data[-BLOCK:], **self.how)

    def test_raw_images(self):
        data = self.data[:3 * MIB + 512]
        how = {'form': '.raw', 'size': len(data)}
        self.flip_some(30, range(len(data)), but=self.proof(data, **how), **how)
        self.assert_ends_are_found(data, (len(data) - 1, len(data) - 512, 0), (b'\0', PAGE), **how)


class Documents(Mutations):
    """The dump of a pool's database, and a VM's metadata."""

    kind = 'changes of documents'

    def setUp(self):
        super().setUp()
        self.documents = {
            '.dump': archives.sample('pool-database.dump.xz'),
            '.xml': members(KINDS['several disks']())[0].data}

    def test_changes_of_one(self):
        for form, data in self.documents.items():
            self.flip_some(40, range(len(data)), but=self.proof(data, form), form=form)
            end = len(data.rstrip())
            cuts = [0, 1, end - 1] + [self.chance.randrange(end) for _ in range(20)]
            self.assert_ends_are_found(data, cuts, (
                b'x', b'\0', bytes(BLOCK), PAGE, data, b'<value/>'), form=form)

    def test_one_in_the_place_of_the_other(self):
        for form, other, words in (
                ('.dump', '.xml', 'its outermost element is value, not database'),
                ('.xml', '.dump', 'its outermost element is database, not value')):
            self.assertEqual(words, str(self.assert_found(
                form, self.documents[other], form=form)))


class Recorded(Mutations):
    """What is whole in itself is known by the digest in the manifest."""

    kind = 'whole archives that are others'

    def setUp(self):
        super().setUp()
        self.backup = VmBackup.Backup(os.path.join(self.directory, 'dated'))
        os.mkdir(self.backup.path)
        open(self.backup.file('success'), 'wb').close()
        os.rename(self.path, self.backup.file('vm.xva'))
        self.path = self.backup.file('vm.xva')

    def check(self):
        return self.verifier().check(VmBackup.read_backup(self.backup.path, None))

    def test_it_is_found_by_that_digest_and_by_nothing_else(self):
        for data, found, _ in self.each_kind():
            chunks = [at for at, member in enumerate(found) if is_chunk(member) and member.data]
            if not chunks:
                continue
            at, kind = chunks[0], os.path.splitext(found[2].name)[1]
            new = bytes([found[at].data[0] ^ 1]) + found[at].data[1:]
            checksum = archive.CHECKSUMS[kind](new).encode()
            for what, changed in (
                    ('a chunk with its checksum', found[:at] + [
                        Member(found[at].name, new), Member(found[at].name + kind, checksum)
                    ] + found[at + 2:]),
                    ('a name', [Member('ova.xml', found[0].data.replace(b'>vm<', b'>wm<'))] +
                     found[1:])):
                with self.subTest(what):
                    self.put(data)
                    good = self.check()
                    self.put(joined(changed))
                    self.assertEqual('checksums', self.check().proved)     # whole in itself
                    with open(self.backup.file('backup.json'), 'w', encoding='utf-8') as stream:
                        json.dump({'verified': good.in_manifest({})}, stream)
                    with self.assertRaisesRegex(VmBackup.Damaged, 'not the file that was'):
                        self.check()
                    self.put(data)
                    self.assertEqual(good.digests, self.check().digests)
                    os.unlink(self.backup.file('backup.json'))
                    figures.add(self.kind, faults=1, checks=2)


@archives.WITH_XXH64
class Messages(ArchiveCase):
    """A fault names the disk, the chunk, the offset in the file, and what was expected."""

    def setUp(self):
        super().setUp()
        self.data = archives.plain([MIB + archives.SMALL])
        self.members = members(self.data)
        self.heads, at = [], 0         # where each header is
        for member in self.members:
            self.heads.append(at)
            at += len(member.written())
        self.heads.append(at)

    def says(self, text, data):
        self.put(data)
        with self.subTest(text):
            self.assertEqual(text.replace('DISK', 'disk xvda (vm 0, Ref:9)'), str(self.verdict()))

    def replaced(self, at, *new):
        return joined(self.members[:at] + list(new) + self.members[at + 1:])

    def with_data(self, at, data):
        return self.replaced(at, Member(self.members[at].name, data))

    def with_byte(self, at, byte=b'x'):
        return self.data[:at] + byte + self.data[at + 1:]

    def test_of_chunks_and_checksums(self):
        heads, found, size = self.heads, self.members, MIB + archives.SMALL
        at = heads[3] + BLOCK + 1000
        changed = bytearray(found[3].data)
        changed[1000] ^= 4
        right = '%016X' % archive.xxh64(found[1].data)
        wrong = ('DISK, chunk Ref:9/0000000%d, byte %d: the checksum is %s, that of the data here '
                 'is %s')
        for text, data in (
                (wrong % (1, heads[3] + BLOCK, found[4].data.decode(), '%016X' % archive.xxh64(
                    bytes(changed))), self.with_byte(at, changed[1000:1001])),
                (wrong % (0, heads[1] + BLOCK, '0' * 16, right), self.with_data(2, b'0' * 16)),
                (wrong % (0, heads[1] + BLOCK, right.lower(), right),
                 self.with_data(2, right.lower().encode())),
                ('DISK at 0 of %d, byte %d: chunk Ref:9/00000000 was expected, found '
                 'Ref:9/00000001' % (size, heads[1]), joined(found[:1] + found[3:])),
                ('DISK at 1048576 of %d, byte %d: chunk Ref:9/00000001 was expected, '
                 'found the end' % (size, heads[3]), joined(found[:3])),
                ('DISK, chunk Ref:9/00000000, byte %d: its checksum was expected, found '
                 'Ref:9/00000001' % heads[2], self.replaced(2)),
                ('DISK at 1048576 of %d, byte %d: chunk Ref:9/00000001 of 69999 bytes for offset '
                 '1048576, where 70000 were expected' % (size, heads[3]),
                 self.with_data(3, found[3].data[:-1])),
                ('DISK at 1048576 of %d, byte %d: chunk Ref:9/00000001 was expected, '
                 'found Ref:9/00000000' % (size, heads[3]),
                 joined(found[:3] + found[1:])),
                ('the end, byte %d: notes belongs to no disk' % heads[5],
                 joined(found + [Member('notes', b'x')]))):
            self.says(text, data)

    def test_of_ends_headers_and_what_is_between(self):
        heads, data = self.heads, self.data
        for text, changed in (
                ('it ends at byte %d, in DISK, chunk Ref:9/00000000' % (heads[1] + 1000),
                 data[:heads[1] + 1000]),
                ('it ends at byte 600, in ova.xml', data[:600]),
                ('DISK at 1048576 of %d, byte %d: a header was expected, or one with another '
                 'checksum' % (MIB + 70000, heads[3]), self.with_byte(heads[3])),
                ('ova.xml, byte %d: something between its end and the next header' % (
                    BLOCK + len(self.members[0].data)), self.with_byte(heads[1] - 1)),
                ('the end, byte %d: something follows the end' % len(data), data + PAGE),
                ('the end, byte %d: something follows the end' % len(data), data + data)):
            self.says(text, changed)

    def test_of_ova_xml(self):
        text, head = self.members[0].data, self.heads[3]
        odd = 'it is not as xapi writes it: '
        chunk = ('DISK at 1048576 of {0}, byte %d: chunk Ref:9/00000001 of 70000 bytes for offset '
                 '1048576, where {1} were expected' % head)
        for old, new, words in (
                (b'>1118576<', b'>1118575<', chunk.format(MIB + 69999, 69999)),
                (b'>1118576<', b'>2167152<', chunk.format(2 * MIB + 70000, MIB)),
                (b'>1118576<', b'>1048576<',
                 'the end, byte %d: Ref:9/00000001 belongs to no disk' % head),
                (b'virtual_size', b'virtual_sizE', "%s'virtual_size'" % odd),
                (b'<name>objects</name>', b'<name>object</name>',
                 "%s'objects'" % odd)):
            self.says(words, self.with_data(0, text.replace(old, new)))


class Odd(ArchiveCase):
    """What no chance finds."""

    def test_gaps_are_counted_as_the_exporter_means_them_and_what_the_importer_makes_is_told(self):
        """xapi: stream_vdi.ml, recv_all_vdi: it would put these chunks elsewhere."""
        text, disks = archives.described([archives.SMALL, 3 * MIB])
        for (name, image), keep in zip(disks, (True, False)):
            if image.virtual_size == 3 * MIB:
                image.write(MIB, bytes(MIB))           # a gap
        small_first = disks[0][1].virtual_size == archives.SMALL
        data = b''.join(archive.xva(text, disks))
        self.put(data)
        self.assertEqual('restorable' if small_first else 'checksums', self.verdict().proved)
        with self.assertRaises(archive.ArchiveError) if small_first else self.subTest():
            archive.read_xva(io.BytesIO(data), lambda text: {
                name: image.virtual_size for name, image in disks})
