"""One disk of a backup, as a file or a stream."""

import gzip
import hashlib
import os
import shutil
import signal
import struct
import subprocess

import VmBackup
from tests.commands.archives import KINDS, SMALL, described, joined, members, packed, plain, vhd
from tests.commands.test_verify import MadeCase
from tests.simpool import archive
from tests.tools.support import PoolCase

MIB = 1 << 20
SIZES = [2 * MIB + SMALL, 3 * MIB + 512, SMALL]
# What is in the archives of KINDS.
DISKS = {
    'one small disk': dict(sizes=[SMALL]), 'an odd last chunk': dict(sizes=[MIB + SMALL + 1]),
    'SHA-1': dict(sizes=[SMALL, SMALL + 512]), 'keep-alive members': dict(sizes=[2 * MIB + SMALL]),
    'several disks': dict(sizes=[SMALL, MIB, 512, SMALL]), 'no disks': dict(sizes=[]),
    'chunks left out': dict(sizes=[4 * MIB + SMALL]), 'several': dict(sizes=SIZES),
    'a disk of zeros': dict(sizes=[2 * MIB + 512], fill=0),
    'a suspend image': dict(sizes=[SMALL], suspended=True)}


def content(image):
    return image.read(0, image.virtual_size)


class ExtractCase(PoolCase):
    def extract(self, status, *words):
        """The lines of the command, which has to end with that status."""
        return self.command(status, 'extract', *words).lines

    def streamed(self, status, *words, **environ):
        """What it writes to standard output, and to standard error."""
        child = self.start_with(('extract', *words, 'to=-'), environ, stderr=subprocess.PIPE)
        data, told = child.communicate(timeout=60)
        self.assertEqual(status, child.returncode, told)
        return data, told.decode()

    def saved(self, name):
        """The bytes of a file that was extracted, and what is beside it is nothing else."""
        with open(self.at('out', name), 'rb') as stream:
            return stream.read()

    def out(self, name=''):
        os.makedirs(self.at('out'), exist_ok=True)
        return self.at('out', name)


class Kinds(ExtractCase):
    """Each disk of each kind of archive and image is, byte for byte, what was backed up."""

    def test_archives(self):
        for kind, make in dict(KINDS, several=lambda: plain(SIZES)).items():
            disks = [image for _, image in described(**DISKS[kind])[1]]
            if kind == 'chunks left out':
                for index in (1, 2):
                    disks[0].write(index * MIB, bytes(MIB))
            for ending in ('', 'gzip', 'zstd'):
                with self.subTest(kind, ending=ending):
                    data = packed(make(), ending) if ending else make()
                    path = self.put_file('some.xva', data)
                    out = self.at('out %s %s' % (kind, ending))
                    if not disks:
                        self.assertEqual([], self.extract(0, path))
                        continue
                    self.extract(0, path, 'disk=all', 'to=' + out)
                    found = {}
                    for name in os.listdir(out):
                        with open(os.path.join(out, name), 'rb') as stream:
                            found[name] = stream.read()
                    self.assertCountEqual(map(content, disks), found.values())
                    self.assertFalse([name for name in found if not name.endswith('.raw')])
                    data, _ = self.streamed(0, path, 'disk=' + min(found)[:-4])
                    self.assertEqual(found[min(found)], data)

    def test_images(self):
        for size in (9 * MIB + 512, SMALL - SMALL % 512, 512):
            image = archive.Image.sample(size, 'extract', 0.6)
            for name, data in (('some.vhd', vhd(image)), ('some.raw', content(image))):
                for ending in ('', '.gz'):
                    with self.subTest(name, size=size, ending=ending):
                        path = self.put_file(name + ending, gzip.compress(data) if ending else data)
                        found, told = self.streamed(0, os.path.basename(path), 'sha256=yes')
                        self.assertEqual(found, self.streamed(0, path)[0])
                        self.assertEqual(content(image), found)
                        self.assertIn(hashlib.sha256(found).hexdigest(), told)

    def test_terabytes_of_nothing(self):
        """A sparse disk takes seconds, and on disk what it has."""
        for size, name in ((40 << 30, 'vhd'), (40 << 30, 'xva'), ((2 << 40) + 512, 'xva')):
            with self.subTest(name, size=size):
                text, disks = described([size], fill=0)
                for place in (5 * MIB, size - 512):
                    disks[0][1].write(place, b'data' * 128)
                data = (vhd(disks[0][1]) if name == 'vhd' else
                        b''.join(archive.xva(text, disks)))
                path = self.put_file('big.' + name, data)
                target = self.out('%s-%d' % (name, size))
                self.extract(0, path, 'to=' + target)
                self.assertEqual(size, os.path.getsize(target))
                self.assertLess(os.stat(target).st_blocks * 512, 3 * MIB)
                with open(target, 'rb') as stream:
                    for place in (5 * MIB, size - 512):
                        stream.seek(place)
                        self.assertEqual(b'data' * 128, stream.read(512))


class Reading(ExtractCase):
    def test_one_disk_of_a_plain_archive_costs_its_own_bytes(self):
        def read():
            with open('/proc/self/io') as stream:
                return int(stream.readline().split()[1])
        path = self.put_file('four.xva', plain([8 * MIB] * 4))
        with VmBackup.opened(path, '.xva') as reader:
            disk = VmBackup.archived_vm(reader.read_ova()).disks[2]
        before = read()
        with VmBackup.opened(path, '.xva') as reader:
            size = sum(len(data) for _, data in VmBackup.disk_in('.xva', reader, None, disk.id))
        self.assertEqual(8 * MIB, size)
        self.assertLess(read() - before, 1.05 * 8 * MIB)

    def test_a_vhd_with_more_blocks_than_its_disk_has_is_damaged(self):
        data = bytearray(vhd(archive.Image.sample(9 * MIB, 'longer', 1)))
        for at in 0, len(data) - 512:
            data[at + 40:at + 56] = struct.pack('>QQ', 5 * MIB, 5 * MIB)
            data[at + 64:at + 68] = bytes(4)
            data[at + 64:at + 68] = struct.pack('>I', ~sum(data[at:at + 512]) & 0xffffffff)
        path = self.put_file('long.vhd', bytes(data))
        _, told = self.streamed(2, path)
        self.assertIn('is behind the end of its disk', told)

    def test_an_unnamed_disk_among_several_is_not_meant_by_no_word(self):
        path = self.put_file('sleeping.xva', plain([SMALL], suspended=True))
        line = self.extract(2, path, 'to=' + self.out('x'))[-1]
        self.assertIn('disk= is not one disk of the backup (there are: ', line)

    def test_damage_is_noticed_wherever_it_is_and_leaves_no_file(self):
        good = plain(SIZES[:1])
        found = members(good)
        chunk = next(index for index, member in enumerate(found) if '/00000001' in member.name)
        at = sum(len(member.written()) for member in found[:chunk])
        for what, offset in (('a name', at), ('the checksum of a header', at + 150),
                             ('the first byte', at + 512), ('the last byte', at + 511 + MIB),
                             ('its checksum', at + MIB + 1024)):
            for ending in ('', 'gzip'):
                with self.subTest(what, ending=ending):
                    data = good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1:]
                    path = self.put_file('bad.xva', packed(data, ending) if ending else data)
                    line = self.extract(2, path, 'disk=0', 'to=' + self.out('bad'))[-1]
                    self.assertRegex(line, 'ERROR .*(chunk|checksum)')
                    self.assertEqual([], os.listdir(self.at('out')))
                    _, told = self.streamed(2, path, 'disk=0')
                    self.assertIn('ERROR', told)
        for what, data in (('cut', good[:at + 512 + 1000]),
                           ('a chunk is missing', joined(found[:chunk] + found[chunk + 4:])),
                           ('gzip is cut', packed(good, 'gzip')[:at])):
            with self.subTest(what):
                path = self.put_file('bad.xva', data)
                self.extract(2, path, 'disk=0', 'to=' + self.out('bad'))
                self.assertEqual([], os.listdir(self.at('out')))


class Words(MadeCase, ExtractCase):
    def test_a_vm_a_backup_an_image_each_word_for_a_disk(self):
        config = self.config()
        device, name, uuid = 'xvda', *[self.manifest(self.web)['disks'][0][key]
                                       for key in ('name', 'uuid')]
        listed = self.extract(0, 'web', 'from=' + config)
        self.assertIn('disk: %s, position 0, ' % device, listed[1])
        self.assertIn(uuid, listed[1])
        for number, (what, word) in enumerate((
                ('web', device), ('web', '0'), (self.web, uuid), (self.web + '/web.xva', name),
                ('db', 'xvda'), (self.db, '0'), ('db', 'all'))):
            target = self.out(str(number))
            line = self.extract(0, what, 'from=' + config, 'disk=' + word, 'to=' + target)[-5]
            target += '/xvda.raw' if word == 'all' else ''
            self.assertIn('extracted: %s, ' % target, line)
            with open(target, 'rb') as stream:
                vm = 'db' if what in ('db', self.db) else 'web'
                self.assertEqual(self.digest(vm), hashlib.sha256(stream.read()).hexdigest())

    def test_what_is_wrong_is_one_line_and_nothing_is_written_over(self):
        there = self.put_file(self.out('there'), 'mine')
        self.put_file(self.out('cut.partial'), 'mine, too')
        config = self.config()
        for words, text in (
                (('web', 'disk=xvdx', 'to=/x'),
                 'disk=xvdx is not one disk of the backup (there are: xvda, '),
                (('web', 'disk=xvda'), 'where to? (to=FILE'),
                (('web', 'to=/x'), 'disk= is not one disk of the backup (there are: xvda, '),
                (('web', 'disk=0', 'to=' + there), there + ': is there already'),
                (('web', 'disk=0', 'to=' + self.out('cut')), 'cut.partial: File exists'),
                (('web', 'disk=0', 'to=' + self.at('missing', 'x')), 'No such file or directory'),
                (('nobody', 'to=' + self.out('x')), 'no such backup or file, or VM in '),
                ((), 'usage: VmBackup.py extract')):
            with self.subTest(words):
                words += ('from=' + config,)
                self.assertIn(text, self.extract(2, *words)[-1])
                self.assertEqual(['cut.partial', 'there'], sorted(os.listdir(self.at('out'))))
                self.assertEqual('mine', self.read(there))

    def test_an_image_that_is_not_what_was_verified_is_an_error(self):
        image = os.path.join(self.db, 'db.raw')
        self.change(image, 4096)
        line = self.extract(2, self.db, 'to=' + self.out('x'))[-1]
        self.assertIn('not the file that was verified first', line)
        self.assertEqual([], os.listdir(self.at('out')))

    def test_a_kill_leaves_a_file_whose_name_says_so_and_a_signal_none(self):
        self.pack(self.web + '/web.xva')
        path = self.in_path('%s "$@" | head -c 1000000; while echo x; do sleep 0.1; done'
                            % shutil.which('gzip'), 'gzip', 'pigz')
        for signum, left in ((signal.SIGTERM, []), (signal.SIGKILL, ['x.partial'])):
            with self.subTest(signum):
                child = self.start('extract', self.web, 'disk=xvda', 'to=' + self.out('x'),
                                   PATH=path)
                self.wait_for(lambda: os.path.exists(self.out('x.partial')))
                child.send_signal(signum)
                self.assertIn(self.finish(child).status, (-signum, 128 + signum))
                self.assertEqual(left, os.listdir(self.at('out')))

    def test_a_closed_pipe_and_a_full_one_end_it_with_an_error(self):
        for target, text in (('/dev/full', 'No space left on device'),):
            with open(target, 'wb') as stream:
                child = self.start_with(('extract', self.web, 'disk=0', 'to=-'), stdout=stream,
                                        stderr=subprocess.PIPE)
                _, told = child.communicate(timeout=60)
            self.assertEqual(2, child.returncode)
            self.assertIn('cannot write to standard output: ' + text, told.decode())


class Partitions(ExtractCase):
    def test_what_an_image_alone_does_not_tell_is_not_listed(self):
        path = self.put_file('disk.raw', bytes(MIB))
        self.assertTrue(self.extract(0, path)[-1].endswith('  disk: 1.0 MiB, in disk.raw'))

    def told(self, data):
        path = self.put_file('disk.raw', bytes(data))
        target = self.out('d%d' % len(os.listdir(self.out())))
        return [line.partition('  ')[2].strip() for line in self.extract(
            0, path, 'to=' + target)[1:-2]], target

    def test_mbr(self):
        disk = bytearray(4 * MIB)
        disk[446:510] = b''.join(struct.pack('<4xB3xII', *entry) for entry in (
            (0x83, 64, 1000), (5, 2048, 4096), (0x8e, 6144, 100), (7, 7000, 500)))
        disk[510:512] = disk[2049 * 512 - 2:2049 * 512] = b'\x55\xaa'
        disk[64 * 512 + 1080:64 * 512 + 1082] = b'\x53\xef'
        disk[6144 * 512 + 536:6144 * 512 + 544] = b'LVM2 001'
        disk[7000 * 512 + 3:7000 * 512 + 11] = b'NTFS    '
        lines, target = self.told(disk)
        mount = 'mount -o ro,loop,offset=%d,sizelimit=%d%s %s /mnt'
        self.assertEqual([
            'MBR partition table', '1: 500.0 KiB at byte 32768: ext2/3/4',
            mount % (32768, 512000, ',noload', target),
            '2: 2.0 MiB at byte 1048576: a partition table',
            '3: 50.0 KiB at byte 3145728: LVM', '4: 250.0 KiB at byte 3584000: NTFS',
            mount % (3584000, 256000, '', target)], lines)

    def test_gpt_a_bare_file_system_and_rubbish(self):
        disk = bytearray(MIB)
        disk[512:520] = b'EFI PART'
        disk[584:600] = struct.pack('<QII', 2, 4, 128)
        disk[1024 + 128:1024 + 128 + 48] = b'k' * 16 + bytes(16) + struct.pack('<QQ', 100, 199)
        disk[51200 + 82:51200 + 87] = b'FAT32'
        bare, endless = bytearray(MIB), bytearray(MIB)
        bare[:4], bare[510:512] = b'XFSB', b'\x55\xaa'
        endless[510:512] = b'\x55\xaa'
        endless[446:462] = struct.pack('<4xB3xII', 5, 0, 7)
        lies = bytearray(disk)
        lies[584:592] = struct.pack('<Q', 1 << 60)
        begins = bytearray(disk)
        begins[1024 + 160:1024 + 176] = struct.pack('<QQ', 1 << 63, (1 << 63) + 9)
        for data, expected in ((lies, ['GPT partition table']), (begins, ['GPT partition table']),
                               (disk[:580], ['GPT partition table']),
                               (disk, ['GPT partition table', '1: 50.0 KiB at byte 51200: FAT32']),
                               (bare, ['no partition table', '1: 1.0 MiB at byte 0: xfs']),
                               (endless, ['MBR partition table']),
                               (bytes(MIB), ['no partition table',
                                             '1: 1.0 MiB at byte 0: unknown']),
                               (b'x', ['no partition table', '1: 1 bytes at byte 0: unknown'])):
            self.assertEqual(expected, self.told(data)[0][:len(expected)])
