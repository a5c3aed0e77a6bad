"""Any input ends with a verdict, in bounded memory: never a crash, never a file that hangs."""

import errno
import gzip
import io
import json
import os
import re
import resource
import shutil
import struct
import unittest
import unittest.mock
import zlib

import VmBackup
from tests.commands import archives
from tests.tools import figures
from tests.commands.archives import (
    BLOCK, KINDS, PACKERS, ArchiveCase, Member, joined, members)
from tests.faults.faulting import full, seed
from tests.simpool import archive
from tests.tools.processes import children_of

FORMS = VmBackup.FORMS
ROOM = 300                     # MiB of address space beyond what is in use: far less is needed


class FuzzCase(ArchiveCase):
    def setUp(self):
        super().setUp()
        self.chance = archives.chances(seed(), self.id())
        limits = resource.getrlimit(resource.RLIMIT_AS)
        with open('/proc/self/statm', encoding='ascii') as stream:
            used = int(stream.read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
        resource.setrlimit(resource.RLIMIT_AS, (used + (ROOM << 20), limits[1]))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_AS, limits)

    def times(self, count):
        return count * (40 if full() else 1) // 2

    def end(self, data, forms=FORMS):
        self.put(data)
        for form in forms:
            with self.subTest(form=form, bytes=len(data), begin=data[:60]):
                found = self.verdict(form, self.chance.choice((None, len(data), 1 << 20)))
                self.assertIsInstance(found, (VmBackup.Proof, VmBackup.Damaged))
                self.assertNotIn('out of memory', str(found))
                figures.add('odd inputs', faults=1, checks=1)

    def replaced(self, text, word, new, to=None):
        """A text with something else in one of the places of a word, up to where `to` tells."""
        at = self.chance.choice([found.start() for found in re.finditer(re.escape(word), text)])
        end = at + len(word)
        return text[:at] + new + text[to(end) if to else end:]

    def noise(self, most=3000):
        return archives.noise(self.chance, self.chance.randrange(most))


class Noise(FuzzCase):
    """Bytes, and bytes behind what looks good."""

    def test_of_any_kind_and_behind_the_first_bytes_of_something(self):
        for begin in (b'', b'\x1f\x8b', b'\x1f\x8b\x08\x00', b'\x28\xb5\x2f\xfd', b'conectix',
                      b'ova.xml\0', b'<?xml version="1.0"?><database>', b'<value>'):
            for _ in range(self.times(8)):
                self.end(begin + self.noise())
        for data in (b'', b'\0', bytes(BLOCK), bytes(4096), b'\xff' * 4096):
            self.end(data)
        for _ in range(self.times(3)):
            self.end(zlib.compress(self.noise()))

    def test_fields_of_a_header(self):
        for at, length in ((124, 12), (148, 8), (0, 100), (156, 1)):
            for _ in range(self.times(12)):
                head = bytearray(archive.tar_header('ova.xml', 100))
                head[at:at + length] = self.chance.choice((
                    archives.noise(self.chance, length), b'-1'.ljust(length),
                    b'\x80' + bytes(length - 1), b'9' * length, b' ' * length, bytes(length)))
                if at != 148 and self.chance.random() < 0.7:
                    head[148:156] = b' ' * 8
                    head[148:156] = b'%07o\0' % sum(head)
                self.end(bytes(head) + bytes(2048), ['.xva'])


class Documents(FuzzCase):
    """ova.xml and the other documents."""

    def setUp(self):
        super().setUp()
        self.first, *self.rest = members(KINDS['several disks']())

    def archive(self, text):
        """An archive of disks with that ova.xml."""
        return joined([Member('ova.xml', text)] + self.rest)

    def ova(self, text):
        """That text as an ova.xml without disks, and as a document."""
        self.end(joined([Member('ova.xml', text)]), ['.xva'])
        self.end(text, ['.xml', '.dump'])

    def test_deep_and_wide(self):
        for text in (b'<a>' * 100000 + b'</a>' * 100000, b'<a>' * 100000,
                     b'<value>' * 50000 + b'</value>' * 50000,
                     b'<value><struct>' + b'<member></member>' * 50000 + b'</struct></value>',
                     b'<value a="' + b'x' * 1000000 + b'"/>'):
            self.ova(text)

    def test_anything_left_out_or_of_another_type(self):
        text = self.first.data
        words = (b'virtual_size', b'<struct>', b'</struct>', b'<value>', b'Ref:9', b'userdevice',
                 b'content_type', b'<name>class</name>', b'VBD', b'VDI', b'power_state', b'<name>')
        for _ in range(self.times(60)):
            word = self.chance.choice(words)
            new = self.chance.choice((b'', b'x', word * 2, self.noise(20), b'\0', b'-'))
            self.end(self.archive(self.replaced(text, word, new)), ['.xva'])
        for size in (b'-1', b'', b'x', b'9' * 5000, b'1.5', b' 7 ', b'1_0', '٣'.encode('utf-8')):
            self.end(self.archive(text.replace(b'>70000<', b'>%s<' % size)), ['.xva'])

    def test_encodings_that_nobody_knows(self):
        for encoding in ('nonsense', 'hex', 'zlib', 'utf-7', 'utf-16', 'idna', 'undefined', 'mbcs',
                         'punycode', 'shift_jis', 'cp037', 'latin-1', 'rot13', 'x' * 50, '\xe9'):
            self.ova(b'<?xml version="1.0" encoding="%s"?><value/>' % encoding.encode('utf-8'))

    def test_a_value_without_an_end_takes_no_memory_without_end(self):
        for begin in archives.some((b'<value a="', b'<value><!--', b'<value><?x ', b'<value a',
                                    b'<value>'), self.chance, 2):
            pieces = [begin] + [b'x' * archives.MIB] * 100
            self.end(b''.join(archive.compressed(pieces, 'gzip')), ['.xml'])

    def test_an_ova_xml_that_claims_to_be_huge(self):
        for size in (0o77777777777, VmBackup.LARGEST_OVA):
            self.end(archive.tar_header('ova.xml', size) + bytes(5000), ['.xva'])


class Images(FuzzCase):
    """VHD images that tell nonsense, with right checksums."""

    def test_any_numbers(self):
        data = archives.vhd(archive.Image.sample(5 << 20, 'x', 0.5))
        for _ in range(self.times(60)):
            changed = bytearray(data[:self.chance.choice((len(data), 4096, 60000))])
            for start, length, total in ((0, 512, 64), (512, 1024, 36)):
                for _ in range(self.chance.randrange(3)):
                    at = start + 4 * self.chance.randrange(2, 20)
                    struct.pack_into('>I', changed, at, self.chance.choice((
                        0, 1, 3, 512, 0x10000, 1 << 21, 0xffffffff, self.chance.getrandbits(32))))
                struct.pack_into('>I', changed, start + total, VmBackup.inverted(
                    bytes(changed[start:start + length]), total))
            changed[-BLOCK:] = changed[:BLOCK]
            self.end(bytes(changed), ['.vhd'])


class Decompressors(FuzzCase):
    """A program that could not do its work tells nothing of a file."""

    def setUp(self):
        super().setUp()
        self.put(gzip.compress(KINDS['one small disk']()))

    def instead(self, *lines, program='/bin/sh'):
        """Have this script decompress; the verdict."""
        path = os.path.join(self.directory, 'gzip')
        with open(path, 'w', encoding='utf-8') as stream:
            stream.write('\n'.join(('#!' + program,) + lines) + '\n')
        os.chmod(path, 0o755)
        self.only('gzip')
        with unittest.mock.patch.dict(
                os.environ, PATH=self.directory + os.pathsep + os.environ['PATH']):
            return self.verdict()

    @unittest.skipUnless('gzip' in PACKERS, 'no gzip')
    def test_one_that_was_killed_is_no_damage(self):
        work = 'head -c 30000 | %s -dc 2>/dev/null' % shutil.which('gzip')
        for signal in ('KILL', 'TERM', 'SEGV'):
            for before in ('', work):
                with self.assertRaises(VmBackup.CommandFailed):
                    self.instead(before, 'kill -%s $$' % signal)

    @unittest.skipUnless('gzip' in PACKERS, 'no gzip')
    def test_one_that_cannot_be_started_is_no_damage(self):
        with self.assertRaisesRegex(VmBackup.CommandFailed, 'cannot start .*/gzip: No such file'):
            self.instead(program='/nowhere')

    @unittest.skipUnless('gzip' in PACKERS, 'no gzip')
    def test_one_that_complains_or_ends_early_is_damage(self):
        self.assertIn('gzip says: no / good', str(self.instead(
            'echo no >&2', 'echo good >&2', 'exit 1')))
        for line in ('exit 0', 'head -c 1', 'exit 2', 'yes no | head -c 60000 >&2; exit 1'):
            self.assertIsInstance(self.instead(line), VmBackup.Damaged)

    def test_none_stays(self):
        before, children = len(os.listdir('/proc/self/fd')), children_of(os.getpid())
        for kind in sorted(set(PACKERS.values())):
            for data in (KINDS['an odd last chunk'](), bytes(1 << 22), b'x' * (1 << 22)):
                packed = archives.packed(data, kind)
                for cut in (len(packed), len(packed) - 9):
                    self.put(packed[:cut])
                    self.verdict()
        self.assertEqual(before, len(os.listdir('/proc/self/fd')))
        self.assertEqual(children, children_of(os.getpid()))


class Storage(FuzzCase):
    """What a file system says of a file that it cannot read."""

    def told(self, number):
        stream = io.BytesIO(KINDS['one small disk']()[:30000])

        def readinto(view):
            got = stream.readinto(view)
            if not got:
                raise OSError(number, os.strerror(number))
            return got
        self.put(b'x')
        reader = VmBackup.ArchiveReader(self.handle)
        self.addCleanup(reader.close)
        fails = unittest.mock.Mock(readinto=readinto)
        with unittest.mock.patch.object(reader, 'stream', fails):
            return reader.read()

    def test_a_sector_that_cannot_be_read_is_damage_and_a_share_in_trouble_is_none(self):
        with self.assertRaisesRegex(VmBackup.Damaged, 'Input/output error at byte 30000'):
            self.told(errno.EIO)
        for number in (errno.ESTALE, errno.ETIMEDOUT, errno.EACCES):
            with self.assertRaises(OSError):
                self.told(number)


class Backups(FuzzCase):
    """A backup whose manifest or metadata tell nonsense."""

    def setUp(self):
        super().setUp()
        self.backup = VmBackup.Backup(os.path.join(self.directory, 'dated'))
        os.mkdir(self.backup.path)
        data = KINDS['one small disk']()
        self.text = members(data)[0].data
        for name, content in (('vm.xva', data), ('success', b'')):
            self.leave(name, content)

    def leave(self, name, data):
        with open(self.backup.file(name), 'wb') as stream:
            stream.write(data)

    def check_with(self, name, data):
        """What is made of it with a file that holds this."""
        with self.subTest(name, begin=data[:2000]):
            self.leave(name, data)
            return self.check()

    def check(self):
        """What is made of the backup: Verified, or the Damaged that was raised."""
        verifier = self.verifier()
        figures.add('odd backups', faults=1, checks=1)
        try:
            found = verifier.check(VmBackup.read_backup(self.backup.path, None))
        except VmBackup.Damaged as damaged:
            return damaged
        self.assertIsInstance(found, VmBackup.Verified)
        for line in found.problems + found[3]:
            VmBackup.encoded(VmBackup.printable(line))         # it can be told
        json.dumps(found.in_manifest({}))
        return found

    def test_manifests(self):
        odd = [None, 0, -1, 1.5, float('inf'), float('nan'), '', 'x', '\0', '\ud800', 'x' * 5000,
               'x/' * 3000, '/', '..', [], [1], {}, {'a': 1}, True, 10 ** 400]
        keys = ('files', 'vm', 'verified', 'disks', 'method', 'schema', 'number', 'snapshot')
        inner = ('vm.xva', 'uuid', 'digests', 'virtual_size', '\0', '\ud800', '', '/', 'success')
        for _ in range(self.times(60)):
            manifest = {}
            for key in self.chance.sample(keys, 3):
                value = self.chance.choice(odd)
                if self.chance.random() < 0.6:
                    value = {self.chance.choice(inner): value}
                if self.chance.random() < 0.3:
                    value = [value]
                manifest[key] = value
            if self.chance.random() < 0.1:
                manifest['verified'] = {'digests': {'vm.xva': self.chance.choice(odd)}}
            self.check_with('backup.json', json.dumps(manifest).encode('ascii'))
        for data in (b'', b'\0', b'{', b'[' * 100000, b'{"a":' * 100000, b'\xff', b'null', b'[]',
                     b'{"disks": [{"virtual_size": 1e999}]}', self.noise()):
            self.check_with('backup.json', data)

    def test_metadata(self):
        text = self.text
        words = (b'<name>uuid</name>', b'<value>VM</value>', b'name_label', b'<struct>', b'<value>',
                 b'</value>', b'export_vsn', b'<name>snapshot</name>', b'<name>class</name>')
        for _ in range(self.times(60)):
            word = self.chance.choice(words)
            with_value = self.chance.random() < 0.3
            self.check_with('vm-metadata.xml', self.replaced(
                text, word, self.chance.choice((b'', b'x', word * 2, b'<value/>')),
                (lambda end: text.find(b'</value>', end) + 8) if with_value else None))
        at = text.index(b'<name>uuid</name>', text.index(b'<value>VM</value>'))
        without = text[:at] + b'<name>uuid</name>' + text[text.index(b'</member>', at):]
        for changed in (without, b'', self.noise(), b'<a>' * 100000, text[:-1], text * 2,
                        b'<?xml version="1.0" encoding="nonsense"?>' + text):
            found = self.check_with('vm-metadata.xml', changed)
            self.assertTrue(isinstance(found, VmBackup.Damaged) or found.problems, found)
        self.assertEqual([], self.check_with('vm-metadata.xml', text).problems)
