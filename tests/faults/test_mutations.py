"""Archives and images that are not good any more: each of thousands of changes is found.

What an archive itself cannot tell is told by the digest that the run's verification recorded: bits
of ova.xml, which has no checksum, chunks that are left out as if they were zeros, chunks that come
with a checksum of their own.
"""

import gzip
import io
import json
import os
import re
import struct
import zlib

import VmBackup
from tests.commands import archives
from tests.tools import figures
from tests.commands.archives import (
    BLOCK, END, KINDS, MIB, PACKERS, ArchiveCase, Member, is_chunk, joined, members, noise)
from tests.faults.faulting import full, seed
from tests.simpool import archive

PAGE = (b'HTTP/1.0 500 Internal Error\r\ncontent-length: 9\r\n\r\n<html><body><h1>HTTP 500</h1>'
        b'SR_BACKEND_FAILURE_46</body></html>')
SIZE = re.compile(rb'(<name>virtual_size</name><value>)(\d+)')


class Mutations(ArchiveCase):
    """What the tests below share."""

    kind = 'changes of archives'

    def times(self, count):
        """How often: more of everything in the full run, less where XXH64 takes long."""
        return count * (40 if full() else 1) // (4 if archives.WITH_LIBRARY else 32) + 1

    def each_kind(self):
        for name, make in KINDS.items():
            data = make()
            with self.subTest(name):
                yield archives.chances(seed(), self.id() + name), data, self.proof(data)

    def found(self, what, but=None, **how):
        damaged = self.assert_damaged(what, but=but, **how)
        figures.add(self.kind, faults=1, checks=1)
        return damaged

    def flip(self, at, bit, **how):
        old = os.pread(self.handle, 1, at)
        os.pwrite(self.handle, bytes([old[0] ^ 1 << bit]), at)
        damaged = self.found('bit %d of byte %d' % (bit, at), **how)
        os.pwrite(self.handle, old, at)
        return damaged

    def assert_found(self, what, data, **how):
        self.put(data)
        return self.found(what, **how)


class Bits(Mutations):
    """A bit flips."""

    kind = 'flipped bits in archives'

    def test_of_data_headers_checksums_and_what_is_between(self):
        for chance, data, _ in self.each_kind():
            text = range(BLOCK, BLOCK + len(members(data)[0].data))
            for _ in range(self.times(150)):
                at = chance.randrange(len(data) - len(text))
                self.flip(at + len(text) * (at >= BLOCK), chance.randrange(8))

    def test_each_of_a_header_a_checksum_and_the_end(self):
        data = KINDS['one small disk']()
        self.proof(data)
        head = BLOCK + len(members(data)[0].data)
        head += -head % BLOCK
        tail = len(data) - 4 * BLOCK                   # checksum header, checksum, end
        bits = [(at, bit) for at in list(range(BLOCK)) + list(range(head, head + BLOCK)) +
                list(range(tail, len(data))) for bit in range(8)]
        chance = archives.chances(seed(), self.id())
        for at, bit in archives.some(bits, chance, 300 if archives.WITH_LIBRARY else 50):
            self.flip(at, bit)

    def test_of_ova_xml_by_the_digest(self):
        for chance, data, proof in self.each_kind():
            for _ in range(self.times(30)):
                at = BLOCK + chance.randrange(len(members(data)[0].data))
                self.flip(at, chance.randrange(8), but=proof)


class Blocks(Mutations):
    """Storage that mixes up what it was given: a place is zeros, noise, or what another has; what
    follows is moved."""

    kind = 'changed blocks of archives'

    def changes(self, chance, data):
        size = chance.choice((1, 16, BLOCK, BLOCK, 4096, 65536))
        unit = 1 if size < BLOCK else BLOCK
        at, other = (unit * chance.randrange((len(data) - 1) // unit) for _ in range(2))
        size = min(size, len(data) - max(at, other))
        here, there, rest = data[at:at + size], data[other:other + size], data[at + size:]
        yield 'zeros', data[:at] + bytes(size) + rest
        yield 'noise', data[:at] + noise(chance, size) + rest
        yield 'what is elsewhere', data[:at] + there + rest
        yield 'gone', data[:at] + rest
        yield 'twice', data[:at] + here + here + rest
        yield 'zeros come in between', data[:at] + bytes(size) + here + rest
        if abs(at - other) >= size:
            first, second = sorted((at, other))
            yield 'swapped', b''.join((
                data[:first], data[second:second + size], data[first + size:second],
                data[first:first + size], data[second + size:]))

    def test_of_storage_that_mixes_them_up(self):
        for chance, data, proof in self.each_kind():
            for _ in range(self.times(12)):
                for what, changed in self.changes(chance, data):
                    if changed != data:
                        self.assert_found(what, changed, but=proof)


class Structure(Mutations):
    """Members are dropped, repeated, swapped, shortened, lengthened, renamed."""

    kind = 'changed members of archives'

    def check_each(self, change):
        """A change of each single member, by its place, is found."""
        for chance, data, _ in self.each_kind():
            found = members(data)
            changes = [(number, changed) for number in range(len(found))
                       for changed in change(found, number) if changed != found]
            for number, changed in archives.some(changes, chance, 8):
                self.assert_found((found[number].name, number), joined(changed))

    def test_dropped(self):
        self.check_each(lambda found, at: [found[:at] + found[at + 1:]])

    def test_all_of_a_disk_or_of_all_disks_dropped(self):
        for _, data, proof in self.each_kind():
            found = members(data)
            for gone in {member.name.partition('/')[0] for member in found[1:]}:
                self.assert_found(gone, joined([
                    member for member in found if not member.name.startswith(gone + '/')]),
                    but=proof)
            if len(found) > 1:
                verdict = self.assert_found('all', joined(found[:1]), but=proof)
                self.assertNotEqual('checksums', getattr(verdict, 'proved', ''))

    def test_of_two_archives(self):
        for chance, mine, proof in self.each_kind():
            others = [make() for make in KINDS.values()]
            for other in archives.some([each for each in others if each != mine], chance, 3):
                self.assert_found('the disks of another', joined(
                    members(mine)[:1] + members(other)[1:]), but=proof)
                half = len(mine) // 2 // BLOCK * BLOCK
                self.assert_found('the end of another', mine[:half] + other[half:], but=proof)

    def test_repeated(self):
        self.check_each(lambda found, at: [
            found[:at + 1] + found[at:], found + [found[at]], [found[at]] + found])

    def test_swapped(self):
        def swap(found, at):
            for other in range(at + 1, len(found)):
                changed = list(found)
                changed[at], changed[other] = found[other], found[at]
                yield changed
        self.check_each(swap)

    def test_shortened_and_lengthened(self):
        def resize(found, at):
            data = found[at].data
            for new in (data[:-1], data[:len(data) // 2], b'', data + b'\0', data + bytes(BLOCK)):
                yield found[:at] + [found[at]._replace(data=new)] + found[at + 1:]
        self.check_each(resize)

    def test_renamed(self):
        def rename(found, at):
            for name in (found[at].name + 'x', 'x', 'ova.xml', './' + found[at].name,
                         found[at].name.replace('00000000', '00000009'),
                         found[at].name.replace('Ref:', 'Ref:1')):
                yield found[:at] + [found[at]._replace(name=name)] + found[at + 1:]
        self.check_each(rename)

    def test_further_ones(self):
        def insert(found, at):
            for member in (Member('x', b'x'), Member('Ref:99/00000000', b'x'),
                           Member('checksum.xml', b'<x/>'), Member('ova.xml', found[0].data)):
                yield found[:at] + [member] + found[at:]
                yield found[:at + 1] + [member] + found[at + 1:]
        self.check_each(insert)

    def test_pairs_dropped_repeated_and_swapped(self):
        """A chunk in the middle that goes with its checksum looks like zeros left out."""
        for _, data, proof in self.each_kind():
            found = members(data)
            pairs = [found[at:at + 2] for at in range(1, len(found), 2)]
            for at, pair in enumerate(pairs):
                for changed in (pairs[:at] + pairs[at + 1:], pairs[:at] + [pair] + pairs[at:],
                                pairs[1:at + 1] + pairs[:1] + pairs[at + 1:],
                                pairs[::-1]):
                    if changed != pairs:
                        self.assert_found((pair[0].name, len(changed)), joined(
                            found[:1] + sum(changed, [])), but=proof)

    def test_replaced_by_another_with_its_checksum(self):
        """With their names they are out of order; only their contents are known by the digest."""
        for chance, data, proof in self.each_kind():
            found = members(data)
            places = range(1, len(found), 2)
            for at, other in archives.some([
                    (at, other) for at in places for other in places
                    if found[at].data != found[other].data], chance, 4):
                self.assert_found((at, other), joined(
                    found[:at] + found[other:other + 2] + found[at + 2:]))
                contents = [mine._replace(data=others.data) for mine, others in zip(
                    found[at:at + 2], found[other:other + 2])]
                self.assert_found((at, other, 'contents'), joined(
                    found[:at] + contents + found[at + 2:]), but=proof)

    def test_another_virtual_size(self):
        for chance, data, _ in self.each_kind():
            text, rest = members(data)[0].data, members(data)[1:]
            for number in range(len(SIZE.findall(text))):
                size = int(SIZE.findall(text)[number][1])
                for new in archives.some((size - 1, size + 1, size * 2, size // 2, 0, -1,
                                          size + MIB, chance.randrange(1 << 40)), chance, 4):
                    seen = []

                    def change(match, number=number, new=new, seen=seen):
                        seen.append(match)
                        return match.group() if len(seen) - 1 != number else (
                            match.group(1) + str(new).encode())
                    self.assert_found(('virtual_size', size, new), joined(
                        [Member('ova.xml', SIZE.sub(change, text))] + rest))


class Ends(Mutations):
    """A file that is cut, or goes on."""

    kind = 'cut and lengthened archives'

    def test_cut_anywhere(self):
        for chance, data, _ in self.each_kind():
            cuts = [0, 1, 511, 512, 513, len(data) - 1, len(data) - BLOCK, len(data) - 2 * BLOCK]
            cuts += [chance.randrange(len(data)) for _ in range(self.times(40))]
            cuts += [BLOCK * chance.randrange(len(data) // BLOCK) for _ in range(self.times(20))]
            for cut in cuts:
                self.put(data)
                os.ftruncate(self.handle, cut)
                damaged = self.found('a cut at %d' % cut)
                self.assertRegex(str(damaged), r'\d')

    def test_cut_with_the_page_of_a_failed_export(self):
        for chance, data, _ in self.each_kind():
            for _ in range(self.times(8)):
                cut = chance.randrange(BLOCK, len(data) - 2 * BLOCK)
                damaged = self.assert_found(cut, data[:cut] + PAGE)
                self.assertIn('the export failed: SR_BACKEND_FAILURE_46', str(damaged))

    def test_more_at_the_end(self):
        for chance, data, _ in self.each_kind():
            for more in (b'\0', bytes(BLOCK), bytes(10240), b'x', PAGE, data,
                         noise(chance, chance.randrange(1, 9999)),
                         bytes(chance.randrange(1, 9999))):
                damaged = self.assert_found(more[:20], data + more)
                self.assertIn('something follows the end', str(damaged))

    def test_without_one_of_the_blocks_at_the_end(self):
        for _, data, _ in self.each_kind():
            self.assert_found('no end', data[:-len(END)])
            self.assert_found('half an end', data[:-BLOCK])
            self.assert_found('half an end', data[:-BLOCK] + b'x' * BLOCK)


class Compressed(Mutations):
    """The same in compressed archives, before and after compression, by each program that may
    decompress them."""

    kind = 'changes of compressed archives'

    def setUp(self):
        super().setUp()
        if not PACKERS:
            self.skipTest('neither gzip nor zstd')

    def each_packed(self):
        """(chance, a good archive, compressed, its Proof, how it was compressed)."""
        for program, kind in PACKERS.items():
            begin = archives.chances(seed(), self.id() + program)
            for what in archives.some(('several disks', 'no disks', 'SHA-1', 'chunks left out'),
                                      begin, 2):
                data = KINDS[what]()
                packed = archives.packed(data, kind)
                self.only(program)
                with self.subTest((program, what)):
                    chance = archives.chances(seed(), self.id() + program + what)
                    yield chance, data, packed, self.proof(packed), kind

    def test_changed_before_compression(self):
        for chance, data, _, proof, kind in self.each_packed():
            for _ in range(self.times(8)):
                at, bit = chance.randrange(len(data)), chance.randrange(8)
                self.assert_found((at, bit), archives.packed(
                    data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:], kind), but=proof)
                self.assert_found(at, archives.packed(data[:at], kind))
            for more in archives.some((b'\0', bytes(BLOCK), PAGE, data), chance, 2):
                self.assert_found('more', archives.packed(data + more, kind))

    def test_members_dropped_and_repeated_before_compression(self):
        for chance, data, _, _, kind in self.each_packed():
            found = members(data)
            for at in archives.some(range(len(found)), chance, 4):
                self.assert_found(at, archives.packed(joined(found[:at] + found[at + 1:]), kind))
                self.assert_found(at, archives.packed(joined(found[:at] + found[at:at + 1] +
                                                             found[at:]), kind))

    def test_a_bit_of_the_compressed_file(self):
        """Found, or the content is the same: a time in a gzip header is nobody's data, nor are
        the bits that fill up the last byte of a block."""
        for chance, _, packed, proof, _ in self.each_packed():
            self.put(packed)
            places = archives.some(list(range(20)) + list(range(len(packed) - 12, len(packed))),
                                   chance, 16)
            places += [chance.randrange(len(packed)) for _ in range(self.times(20))]
            passing = 0
            for at in places:
                bit = chance.randrange(8)
                os.pwrite(self.handle, bytes([packed[at] ^ 1 << bit]), at)
                found = self.verdict()
                if not isinstance(found, VmBackup.Damaged):
                    self.assertEqual(proof, found, (at, bit))
                    passing += 1
                os.pwrite(self.handle, packed[at:at + 1], at)
                figures.add(self.kind, faults=1, checks=1)
            self.assertLess(passing, 15)               # they are few

    def test_cut_or_longer(self):
        for chance, _, packed, _, _ in self.each_packed():
            for cut in archives.some([0, 1, 2, 3, 5, len(packed) - 1, len(packed) - 4,
                                      len(packed) - 8], chance, 4) + [
                    chance.randrange(4, len(packed)) for _ in range(self.times(6))]:
                self.assert_found('a cut at %d' % cut, packed[:cut])
            for more in archives.some((b'\0', bytes(4), bytes(7), bytes(8), bytes(5000), b'x',
                                       noise(chance, 300), packed), chance, 4) + [PAGE]:
                damaged = self.assert_found(more[:9], packed + more)
            self.assertIn('the export failed: SR_BACKEND_FAILURE_46', str(damaged))


class Vhd(Mutations):
    """VHD images; of their data, only the digest tells."""

    kind = 'changes of VHD and raw images'
    size = 5 * MIB

    def setUp(self):
        super().setUp()
        image = archive.Image.sample(self.size, 'vhd', 0.6)
        self.data = b''.join(archive.vhd_stream(image))
        self.good = self.proof(self.data, '.vhd', self.size)
        self.table, = struct.unpack_from('>Q', self.data, BLOCK + 16)
        self.how = {'form': '.vhd', 'size': self.size}
        self.chance = archives.chances(seed(), self.id())

    def test_bits_of_footers_and_header(self):
        last = len(self.data) - BLOCK
        for at in archives.some(list(range(BLOCK + 1024)) + list(range(last, last + 100)),
                                self.chance, 200):
            self.flip(at, self.chance.randrange(8), **self.how)

    def test_bits_of_table_and_data_by_the_digest(self):
        for _ in range(self.times(60)):
            self.flip(self.chance.randrange(len(self.data)), self.chance.randrange(8),
                      but=self.good, **self.how)

    def test_blocks_that_overlap_or_are_not_there(self):
        count = -(-self.size // (2 * MIB))
        entries = list(struct.unpack_from('>%dI' % count, self.data, self.table))
        used = [sector for sector in entries if sector != 0xffffffff]
        end = len(self.data) // BLOCK
        for number in range(count):
            for sector in (0, 1, 3, self.table // BLOCK, end - 1, end, end - 4096, end + 1,
                           0xfffffffe, used[0] + 1, used[-1] - 1, used[0] - 1) + tuple(
                               each for each in used if each != entries[number]):
                changed = entries[:number] + [sector] + entries[number + 1:]
                if len(set(changed) - {0xffffffff}) == 1 and sector in (used[0] + 1,):
                    continue                           # alone, it may be there
                data = bytearray(self.data)
                struct.pack_into('>%dI' % count, data, self.table, *changed)
                self.assert_found((number, sector), bytes(data), **self.how)

    def test_cut_and_longer(self):
        for cut in [self.chance.randrange(len(self.data)) for _ in range(20)] + [
                len(self.data) - 1, len(self.data) - BLOCK]:
            self.assert_found('a cut at %d' % cut, self.data[:cut], **self.how)
        for more in (b'\0', bytes(BLOCK), PAGE, self.data):
            self.assert_found(more[:20], self.data + more, **self.how)

    def test_something_between_the_last_block_and_the_footer(self):
        for size in (1, BLOCK, MIB, 2 * MIB, 2 * MIB + BLOCK, 3 * MIB):
            for more in (bytes(size), noise(self.chance, size)):
                self.assert_found(size, self.data[:-BLOCK] + more + self.data[-BLOCK:], **self.how)

    def test_of_another_disk(self):
        for size in (self.size - MIB, self.size + 512, 2 * self.size, 512):
            self.put(self.data)
            self.found(('a disk of', size), form='.vhd', size=size)

    def test_a_geometry_that_does_not_fit(self):
        for at, value in ((56, 1), (57, 200), (58, 1), (59, 1), (59, 255), (58, 0)):
            data = bytearray(self.data)
            data[at] = value
            struct.pack_into('>I', data, 64, VmBackup.inverted(bytes(data[:BLOCK]), 64))
            data[-BLOCK:] = data[:BLOCK]
            self.assert_found((at, value), bytes(data), **self.how)

    def test_raw_images(self):
        data = self.data[:3 * MIB + 512]
        good = self.proof(data, '.raw', len(data))
        for _ in range(self.times(30)):
            self.flip(self.chance.randrange(len(data)), self.chance.randrange(8), but=good,
                      form='.raw', size=len(data))
        for changed in (data[:-1], data[:-512], data + b'\0', b'', data + PAGE):
            self.assert_found(len(changed), changed, form='.raw', size=len(data))


class Documents(Mutations):
    """The dump of a pool's database, and a VM's metadata."""

    kind = 'changes of documents'

    def setUp(self):
        super().setUp()
        self.chance = archives.chances(seed(), self.id())
        self.documents = {
            '.dump': archives.sample('pool-database.dump.xz'),
            '.xml': members(KINDS['several disks']())[0].data}

    def test_bits_by_the_digest(self):
        for form, data in self.documents.items():
            good = self.proof(data, form)
            for _ in range(self.times(40)):
                self.flip(self.chance.randrange(len(data)), self.chance.randrange(8), but=good,
                          form=form)

    def test_cut_and_longer(self):
        for form, data in self.documents.items():
            end = len(data.rstrip())
            for cut in [0, 1, end - 1] + [self.chance.randrange(end) for _ in range(20)]:
                self.assert_found(cut, data[:cut], form=form)
            for more in (b'x', b'\0', bytes(BLOCK), PAGE, data, b'<value/>'):
                self.assert_found(more[:20], data + more, form=form)

    def test_one_in_the_place_of_the_other(self):
        dump, metadata = self.documents['.dump'], self.documents['.xml']
        for form, data, words in (
                ('.dump', metadata, 'its outermost element is value, not database'),
                ('.xml', dump, 'its outermost element is database, not value')):
            self.assertEqual(words, str(self.assert_found(form, data, form=form)))


class Recorded(Mutations):
    """What is whole in itself is known by the digest in the manifest."""

    kind = 'whole archives that are others'

    def setUp(self):
        super().setUp()
        self.backup = VmBackup.BackupDir(os.path.join(self.directory, 'dated'), 0)
        os.mkdir(self.backup.path)
        os.link(self.path, self.backup.file('vm.xva'))
        self.verifier = VmBackup.Verifier(archives.Watch(), archives.Watch(), 60)

    def check(self):
        return self.verifier.check(self.backup, self.backup.manifest())

    def test_it_is_found_by_that_digest_and_by_nothing_else(self):
        for name, make in KINDS.items():
            data = make()
            found = members(data)
            chunks = [at for at, member in enumerate(found) if is_chunk(member) and member.data]
            if not chunks:
                continue
            at, (kind, form) = chunks[0], (
                ('.checksum', '%s') if found[2].name.endswith('.checksum') else ('.xxhash', '%s'))
            new = bytes([found[at].data[0] ^ 1]) + found[at].data[1:]
            others = {
                'a chunk with its checksum': found[:at] + [
                    Member(found[at].name, new),
                    Member(found[at].name + kind, (form % archive.CHECKSUMS[kind](new)).encode())
                ] + found[at + 2:],
                'a name': [Member('ova.xml', found[0].data.replace(b'>vm<', b'>wm<'))] + found[1:]}
            for what, changed in others.items():
                with self.subTest((name, what)):
                    self.put(data)
                    good = self.check()
                    manifest = {'verified': good.record()}
                    self.put(joined(changed))
                    self.assertEqual('checksums', self.check().proved)     # whole in itself
                    with open(self.backup.file('backup.json'), 'w', encoding='utf-8') as stream:
                        json.dump(manifest, stream)
                    with self.assertRaisesRegex(VmBackup.Damaged, 'not what it was when'):
                        self.check()
                    self.put(data)
                    self.assertEqual(good.digests, self.check().digests)
                    os.unlink(self.backup.file('backup.json'))
                    figures.add(self.kind, faults=1, checks=2)

    def test_an_archive_of_metadata_is_no_backup(self):
        self.put(joined(members(KINDS['a suspend image']())[:1]))
        with self.assertRaisesRegex(VmBackup.Damaged, 'there are no disks in it'):
            self.check()


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
        """What is said of it, the names of the disk and its chunks being as they are."""
        self.put(data)
        with self.subTest(text):
            self.assertEqual(text.replace('DISK', 'disk xvda (vm 0, Ref:9)'), str(self.verdict()))

    def replaced(self, at, *new):
        return joined(self.members[:at] + list(new) + self.members[at + 1:])

    def with_data(self, at, data):
        return self.replaced(at, self.members[at]._replace(data=data))

    def with_byte(self, at, byte=b'x'):
        return self.data[:at] + byte + self.data[at + 1:]

    def test_of_chunks_and_checksums(self):
        heads, found, size = self.heads, self.members, MIB + archives.SMALL
        at = heads[3] + BLOCK + 1000
        changed = bytearray(found[3].data)
        changed[1000] ^= 4
        right = '%016X' % VmBackup.xxh64(found[1].data)
        wrong = ('DISK, chunk Ref:9/0000000%d, byte %d: the checksum is %s, that of the data here '
                 'is %s')
        for text, data in (
                (wrong % (1, heads[3] + BLOCK, found[4].data.decode(), '%016X' % VmBackup.xxh64(
                    bytes(changed))), self.with_byte(at, changed[1000:1001])),
                (wrong % (0, heads[1] + BLOCK, '0' * 16, right), self.with_data(2, b'0' * 16)),
                (wrong % (0, heads[1] + BLOCK, right.lower(), right),
                 self.with_data(2, right.lower().encode())),
                ('DISK at 0 of %d, byte %d: its first chunk, Ref:9/00000000, was expected, found '
                 'Ref:9/00000001 of 70000 bytes' % (size, heads[1]), joined(found[:1] + found[3:])),
                ('DISK at 1048576 of %d, byte %d: a chunk Ref:9/00000001 or later was expected, '
                 'found the end' % (size, heads[3]), joined(found[:3])),
                ('DISK, chunk Ref:9/00000000, byte %d: its checksum was expected, found '
                 'Ref:9/00000001' % heads[2], self.replaced(2)),
                ('DISK at 1048576 of %d, byte %d: chunk Ref:9/00000001 of 69999 bytes for offset '
                 '1048576, where 70000 were expected' % (size, heads[3]),
                 self.with_data(3, found[3].data[:-1])),
                ('DISK at 1048576 of %d, byte %d: chunk Ref:9/00000000 comes after number 0' % (
                    size, heads[3]), joined(found[:3] + found[1:])),
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
                ('the end, byte %d: something follows the end: the export failed: '
                 'SR_BACKEND_FAILURE_46' % len(data), data + PAGE),
                ('the end, byte %d: something follows the end' % len(data), data + data)):
            self.says(text, changed)

    def test_of_ova_xml(self):
        text, head = self.members[0].data, self.heads[3]
        chunk = ('DISK at 1048576 of {0}, byte %d: chunk Ref:9/00000001 of 70000 bytes for offset '
                 '1048576, where {1} were expected' % head)
        for old, new, words in (
                (b'>1118576<', b'>1118575<', chunk.format(MIB + 69999, 69999)),
                (b'>1118576<', b'>2167152<', chunk.format(2 * MIB + 70000, MIB)),
                (b'>1118576<', b'>1048576<',
                 'the end, byte %d: Ref:9/00000001 belongs to no disk' % head),
                (b'virtual_size', b'virtual_sizE', "ova.xml: 'virtual_size' is missing"),
                (b'export_vsn</name><value>2', b'export_vsn</name><value>3',
                 'ova.xml: unknown version of the format: 3'),
                (b'<name>objects</name>', b'<name>object</name>',
                 "ova.xml: 'objects' is missing")):
            self.says(words, self.with_data(0, text.replace(old, new)))


class Odd(ArchiveCase):
    """What no chance finds."""

    def test_a_stream_of_gzip_members_is_not_what_gzip_made(self):
        data = archives.plain([archives.SMALL])
        self.put(gzip.compress(data[:9999]) + gzip.compress(data[9999:]))
        self.assertIsInstance(self.verdict(), VmBackup.Damaged)

    def test_the_first_chunk_of_all_sets_the_measure_of_gaps_as_for_the_importer(self):
        """xapi: stream_vdi.ml, recv_all_vdi: it would put these chunks elsewhere."""
        text, disks = archives.described([archives.SMALL, 3 * MIB])
        for (name, image), keep in zip(disks, (True, False)):
            if image.virtual_size == 3 * MIB:
                image.write(MIB, bytes(MIB))           # a gap
        small_first = disks[0][1].virtual_size == archives.SMALL
        data = b''.join(archive.xva(text, disks))
        self.put(data)
        self.assertIsInstance(self.verdict(),
                              VmBackup.Damaged if small_first else VmBackup.Proof)
        with self.assertRaises(archive.ArchiveError) if small_first else self.subTest():
            archive.read_xva(io.BytesIO(data), lambda text: {
                name: image.virtual_size for name, image in disks})

    def test_zlib_is_no_gzip(self):
        self.put(zlib.compress(archives.plain([])))
        self.assertIsInstance(self.verdict(), VmBackup.Damaged)
