"""Images of disks on their way into a pool: of each kind and size, watched, and what is refused."""

import gzip
import os
import shutil
import struct
import subprocess
import tarfile

import VmBackup
from tests.commands.archives import shuffled, vhd
from tests.commands.test_restore import RestoreCase
from tests.simpool import archive
from tests.tools.support import LIMIT

MIB = 1 << 20
SHORT = 0.01                   # minutes without progress after which an import is ended


class ImageCase(RestoreCase):
    pool_description = {'vms': [{'name': 'web', 'disks': ['4 MiB', '1 MiB'], 'ran': True}]}

    def brought(self, name, data, *options, **environ):
        """Restore a file of these bytes; the content of the new disk."""
        before = set(self.sim.pool.content)
        path = self.put_file(name, data)
        self.done = self.ok(self.restore(path, 'from=' + self.config(), *options, **environ))
        self.assert_unmarked()
        new, = set(self.sim.pool.content) - before
        return self.sim.pool.content[new]

    def packed(self, kind, data):
        if kind == 'gz':
            return gzip.compress(data, 1)
        return subprocess.run(['zstd', '-qc'], input=data, stdout=subprocess.PIPE, check=True,
                              timeout=LIMIT).stdout


class Kinds(ImageCase):
    def test_vhd_images_of_each_size_plain_and_packed(self):
        """Blocks that are there, that are not, at both ends; sizes that are whole blocks or not."""
        for size, chunks, endings in (
                (6 * MIB, (0, 3, 5), ('', 'gz')), (9 * MIB + 512, (2, 3, 9), ('', 'zst')),
                (4 * MIB, (), ['gz']), (512, (0,), ['gz']), (3 * MIB, (2,), ['zst'])):
            image = archive.Image(size)
            for index in chunks:
                image.write(index * MIB, os.urandom(image.chunk_size(index)))
            for ending in endings:
                with self.subTest(size=size, ending=ending):
                    data = self.packed(ending, vhd(image)) if ending else vhd(image)
                    self.assertEqual(image, self.brought(
                        'disk.vhd' + ('.' + ending if ending else ''), data))

    def test_images_that_xapi_does_not_write_are_refused_by_us_and_taken_by_it(self):
        """Blocks in another order than the table's, or with sectors that a bitmap does not name."""
        image = archive.Image.sample(9 * MIB, 'order', 0.7)
        bits = bytearray(vhd(image))
        bits[2560] = 0x7f                              # of the first block
        for what, data, words in (('order', shuffled(image), 'is not behind what xapi writes'),
                                  ('bits', bytes(bits), 'is not whole, as xapi writes it')):
            for name, content in ('disk.vhd', data), ('disk.vhd.gz', gzip.compress(data)):
                with self.subTest(what, name=name):
                    path = self.put_file(name, content)
                    before = self.contents()
                    done = self.assert_ends(2, self.restore(path, 'from=' + self.config()))
                    self.assertIn(words, done.output)
                    self.assertEqual(before, self.contents())
        self.assertEqual(image, self.brought('disk.vhd', shuffled(image), 'verify=no'))


class Forms(ImageCase):
    """Which disks can be exported as VHD, and which SRs have to have them otherwise."""

    def sized(self, size, fill=0.0):
        self.pool_description = {'srs': [{'name': 'Local storage', 'type': 'ext'}], 'vms': [
            {'name': 'web', 'disks': [{'size': size, 'fill': fill}], 'ran': True}]}
        self.setUp()

    def test_a_vhd_backup_is_restored_plain_and_packed(self):
        disk = self.drives('web')['0'][4]
        for compress in ('none', 'gzip'):
            self.ok(self.back_up('vdi-export=web', vdi_export_format='auto',
                                 vdi_compress=compress))
            path = self.archive('web')
            self.assertIn('/web.vhd', path)
            with open(path, 'rb') as stream:
                self.assertEqual(disk, self.brought(os.path.basename(path), stream.read()))

    def test_vhd_is_refused_by_preview_and_run_for_disks_that_xapi_does_not_export_so(self):
        self.sized('3 TiB')
        words = ('xapi exports no disk of more than 2040 GiB as VHD: xvda of 3.0 TiB (set '
                 'vdi_export_format=auto or raw)')
        for disks in ('boot', 'all'):
            keys = {'vdi_export_format': 'vhd', 'vdi_disks': disks}
            done = self.assert_ends(2, self.vmbackup('password', self.config(
                'vdi-export=web', **keys), 'preview'))
            self.assertIn('***ERROR - web: ' + words, done.lines)
            done = self.ends(2, 'vdi-export=web', **keys)
            self.assertIn('ERROR vdi-export VDI-EXPORT-FAIL web: ' + words, done.lines)
            self.assertFalse({'vm-snapshot', 'vdi-snapshot'} & set(self.verbs()))
        self.ok(self.vmbackup('password', self.config('vdi-export=web', vdi_export_format='auto'),
                              'preview'))

    def test_images_that_xapi_neither_writes_nor_takes_are_refused_packed_or_not(self):
        """A fixed one has its footer at its end only; one of differences is of another disk."""
        whole = vhd(archive.Image.sample(2 * MIB, 'odd', 1))
        fixed, differing = bytearray(whole[:512]), bytearray(whole)
        for footer, kind in ((fixed, 2), (differing, 4)):
            footer[60:64] = struct.pack('>I', kind)
            footer[64:68] = struct.pack('>I', VmBackup.inverted(bytes(footer[:512]), 64))
        differing[-512:] = differing[:512]
        for data in bytes(2 * MIB) + fixed, differing:
            for name in ('disk.vhd', 'disk.vhd.gz'):
                path = self.put_file(name, gzip.compress(data) if '.gz' in name else bytes(data))
                self.refused('the footer of a dynamic VHD image was expected',
                             self.restore(path, 'from=' + self.config()))

    def test_auto_is_raw_for_a_disk_of_no_whole_blocks_and_vhd_for_another(self):
        self.ok(self.back_up('vdi-export=web', vdi_export_format='auto', vdi_disks='all'))
        self.assertEqual({'DISK-xvda.vhd', 'DISK-xvdb.raw'}, {
            name for name in os.listdir(self.newest('web')) if name.endswith(('.vhd', '.raw'))})

    def test_a_preview_warns_of_an_export_that_never_ends_and_that_is_ended_with_the_reason(self):
        self.sized('3 MiB', 1)
        words = 'xapi never finishes a VHD export of a disk whose size is no multiple of 2 MiB'
        done = self.assert_ends(1, self.vmbackup('password', self.config(
            'vdi-export=web', vdi_export_format='vhd'), 'preview'))
        self.assertIn('***WARNING - web: %s: xvda of 3.0 MiB (set vdi_export_format=auto or raw)'
                      % words, done.lines)
        self.script = self.changed_script(SNAPSHOT_PAUSES=(0.05,), DISCARD_PAUSES=(0.05,),
                                          BUSY_PAUSES=(0.05,))
        for compress in ('none', 'gzip'):
            done = self.ends(2, 'vdi-export=web', vdi_export_format='vhd', stall_timeout=SHORT,
                             vdi_compress=compress)
            self.assertRegex(done.output, r'VDI-EXPORT-FAIL web: no progress for 0.01 minutes '
                             r'\(stall_timeout\), with \S+ MiB exported\n')
            self.assertIn('***NOTE - %s: xvda of 3.0 MiB ' % words, done.output)
            self.sim.restart()

    def test_a_disk_that_no_vhd_can_hold_is_made_as_qcow2(self):
        self.sized('2 MiB')
        path = self.put_file('disk.raw')
        for size, qcow2 in ((2093051 << 20, False), ((2093051 << 20) + 512, True)):
            os.truncate(path, size)
            self.fault('vdi-import', 'refuse', error=['VDI_IO_ERROR', 'enough'])
            done = self.assert_ends(2, self.restore(path, 'from=' + self.config(), 'verify=no'))
            self.assertIn('enough', done.output)
            self.assertEqual(qcow2, 'sm-config:image-format=qcow2' in done.output)


class Watched(ImageCase):
    """An import that moves goes on, one that stands still is ended, whatever xapi tells of it."""

    images = {'disk.raw': lambda image: b''.join(archive.raw_stream(image)),
              'disk.raw.gz': lambda image: gzip.compress(b''.join(archive.raw_stream(image)), 1),
              'disk.vhd': vhd, 'disk.vhd.gz': lambda image: gzip.compress(vhd(image), 1)}

    def each(self):
        image = archive.Image.sample(6 * MIB, 'slow', 1)
        for version, names in (('25.6', ['disk.vhd']), ('26.17', self.images)):
            for name in names:
                with self.subTest(version=version, name=name):
                    self.setUp()
                    self.sim.pool.xapi_version = version
                    yield name, self.images[name](image)

    def restored(self, name, data, timeout=SHORT):
        return self.restore(self.put_file(name, data),
                            'from=' + self.config(stall_timeout=timeout))

    def test_a_slow_one_that_takes_longer_than_stall_timeout(self):
        for name, data in self.each():
            self.fault('vdi-import', 'slow', rate=6 * MIB)
            self.ok(self.restored(name, data))

    def test_one_that_stands_still_is_ended_and_leaves_nothing(self):
        for name, data in self.each():
            before = self.contents()
            self.fault('vdi-import', 'stall', after=MIB)
            done = self.assert_ends(2, self.restored(name, data))
            self.assertIn('minutes (stall_timeout), with ', done.output)
            self.wait_for(lambda: not self.sim.is_busy)
            self.assertEqual(before['VDI'], self.contents()['VDI'])
            self.assert_unmarked()

    def test_what_xapi_writes_after_the_last_byte_is_no_stall_but_has_an_end(self):
        image = archive.Image.sample(2 * MIB, 'slow', 1)
        for words, timeout in ((None, 60), ('no progress for 0.02 minutes', 1.2)):
            self.script = self.changed_script(XE_TIMEOUT=timeout)
            self.fault('vdi-import', 'slow', after=2 * MIB, seconds=2)
            done = self.restored('disk.raw', b''.join(archive.raw_stream(image)))
            self.assert_ends(2 if words else 0, done)
            self.assertIn(words or 'restored: the disk', done.output)

    def test_an_archive_after_its_last_byte(self):
        self.ok(self.back_up('vm-export=web'))
        size = os.path.getsize(self.archive('web'))
        self.fault('vm-import', 'slow', after=size - 4096, seconds=1.5)
        self.ok(self.restore('web', 'from=' + self.config(stall_timeout=SHORT)))


class SmallDisks(RestoreCase):
    """Archives with disks below 1 MiB. If such a one comes first, the importer miscounts what is
    left out of others, and refuses the archive."""

    ORDERS = ((512 << 10, 8 * MIB), (8 * MIB, 512 << 10), (8 * MIB, MIB),
              (512, 1000 * 512, 5 * MIB), (4 * MIB, 512, 6 * MIB), (512, 512 << 10))
    pool_description = {'srs': [{'name': 'Local storage', 'type': 'ext'}], 'vms': [
        {'name': 'vm%d' % number, 'ran': True, 'disks': [
            {'size': size, 'fill': 1 if size < MIB else 0} for size in sizes]}
        for number, sizes in enumerate(ORDERS)]}

    def setUp(self):
        """The large disks have data here and there, and holes."""
        super().setUp()
        for image in self.sim.pool.content.values():
            if image.virtual_size > 2 * MIB:
                image.write(2 * MIB, b'some')
                image.write(image.virtual_size - 1, b'z')

    def imported(self, path):
        """What xe alone says of an archive."""
        done = subprocess.run([self.sim.xe, 'vm-import', 'filename=' + path], timeout=LIMIT,
                              env=self.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return done.stderr.decode()

    def test_each_order_is_backed_up_verified_as_what_it_is_and_restored(self):
        refused = 0
        for first in (8, 95):                          # names are sorted as text
            self.sim.pool._numbers = first
            self.ok(self.back_up(r'vm-export=vm\d$'))
            told = self.ok(self.vmbackup('verify', self.backups)).output
            for number, sizes in enumerate(self.ORDERS):
                name = 'vm%d' % number
                with self.subTest(first=first, sizes=sizes):
                    path, original = self.archive(name), self.facts(name)
                    words = self.imported(path)
                    self.assertEqual(bool(words), '%s: intact, but xe vm-import refuses it' % (
                        os.path.dirname(path)) in told, words)
                    guide = self.read(self.newest(name, 'RESTORE.txt'))
                    self.assertEqual(bool(words), 'xe vm-import refuses this archive' in guide)
                    self.assertEqual(not words, 'VM=$(xe vm-import' in guide)
                    if words:
                        refused += 1
                        self.assertRegex(words, r'^The VM could not be imported\.\nmsg: '
                                         r'INTERNAL_ERROR: \[ (Tar\.Header\.End_of_stream|'
                                         r'Stream_vdi\.Failure\("Invalid XVA file"\)) \]\n$')
                    if words or first == 8:
                        copy = '%s of %d' % (name, first)
                        self.ok(self.restore(name, 'name=' + copy, 'verify=no'))
                        self.assert_restored(original, copy)
        self.assertGreater(refused, 2)
        self.ok(self.try_out('vm0'))

    def test_one_that_tar_has_padded_with_blocks_of_zeros_is_verified_and_restored(self):
        self.sim.pool._numbers = 8
        self.ok(self.back_up('vm-export=vm[03]$'))
        for name, blocks, pack in (('vm0', 18, ''), ('vm3', 9000, ''), ('vm3', 18, 'gzip')):
            with self.subTest(name, blocks=blocks, pack=pack):
                path = self.archive(name)
                with open(path, 'ab') as stream:
                    stream.write(bytes(blocks * 512))
                copy = self.at('copy.xva')
                shutil.copy(path, copy)
                if pack:
                    subprocess.check_call([pack, copy])
                    copy += '.gz'
                self.ok(self.vmbackup('verify', copy))
                self.ok(self.restore(copy, 'name=copy %s%s' % (blocks, pack), 'verify=no'))
                self.assert_restored(self.facts(name), 'copy %s%s' % (blocks, pack))

    def test_a_description_that_looks_like_an_id_stays_as_it_is(self):
        disk = self.sim.pool.ref_of('VDI', self.disk_of('vm0', '0'))
        for _ in range(2):
            self.sim.pool._numbers = 8
            self.ok(self.back_up('vm-export=vm0'))
            with tarfile.open(self.newest('vm0', 'vm0.xva')) as archive:
                identity = os.path.dirname(archive.getnames()[1])
            self.sim.pool.put('VDI', disk, name_description=identity)
        self.ok(self.restore('vm0', 'name=copy', 'verify=no'))
        self.assertEqual(identity + '\n', self.xe(
            'vdi-param-get', 'uuid=' + self.disk_of('copy', '0'), 'param-name=name-description'))
