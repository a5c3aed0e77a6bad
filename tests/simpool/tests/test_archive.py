"""The pool's archives and images: against a real xapi's (25.6.0).

data/samples/ holds exports of that daemon (`sample.xva` has three disks and an empty CD drive; one
export failed and ends in an error page), and records of the same objects, read over XML-RPC.
"""
import contextlib
import copy
import functools
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import unittest
from unittest import mock

from tests import DATA
from tests.simpool import archive, ova
from tests.simpool.archive import ArchiveError, Image
from tests.simpool.database import revived
from tests.simpool.tests.support import MIB

SAMPLES = os.path.join(DATA, 'samples')


@functools.lru_cache(maxsize=None)
def sample(name):
    with open(os.path.join(SAMPLES, name), 'rb') as file:
        return file.read()


@functools.lru_cache(maxsize=None)
def sample_xva():
    return gzip.decompress(sample('sample.xva.gz'))


def sample_vhd():
    return lzma.decompress(sample('sample-root.vhd.xz'))


def sample_sums():
    lines = sample('SHA256SUMS.images').decode().splitlines()
    return {name.replace('-', ' ').replace('.img', ''): digest
            for digest, name in (line.split() for line in lines)}


def read(data, **options):
    return archive.read_xva(io.BytesIO(data), **options)


def disks():
    holes = Image(6 * MIB)
    holes.write(2 * MIB + 5, b'in the third chunk')
    holes.write(4 * MIB - 2, b'over')
    odd = Image.sample(3 * MIB + 1536, 'odd', 1)
    return {'Ref:9': holes, 'Ref:10': Image(3 * MIB), 'Ref:101': odd}


def written(images=None, **options):
    images = disks() if images is None else images
    return b''.join(archive.xva(b'<value>some text</value>', images.items(), **options))


def names(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


@contextlib.contextmanager
def file_of(pieces):
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, 'file')
        with open(path, 'wb') as file:
            for piece in pieces:
                file.write(piece)
        yield path


class TestCase(unittest.TestCase):
    def assert_same_disks(self, found, expected):
        self.assertEqual(list(found), sorted(expected))
        for directory, image in expected.items():
            self.assertEqual(found[directory].sha256(), image.sha256(), directory)
            self.assertEqual(found[directory].virtual_size, image.virtual_size, directory)

    @contextlib.contextmanager
    def refusal(self, *details, note=''):
        with self.assertRaises(ArchiveError) as caught:
            yield
        self.assertEqual(caught.exception.details, list(details))
        self.assertIn(note, str(caught.exception))


class Images(TestCase):
    def test_what_is_written_is_read_across_chunks(self):
        image, model = Image(2 * MIB + 100), bytearray(2 * MIB + 100)
        self.assertEqual((bytes(model), []), (image.read(0, 3 * MIB), list(image.chunks())))
        for offset, data in ((0, b'start'), (MIB - 3, b'across'), (2 * MIB + 90, b'0123456789'),
                             (100, os.urandom(MIB + 50)), (2, b'')):
            image.write(offset, data)
            model[offset:offset + len(data)] = data
        for offset, length in ((0, 3 * MIB), (MIB - 10, 20), (2 * MIB + 95, 50), (5 * MIB, 50)):
            self.assertEqual(bytes(model[offset:offset + length]), image.read(offset, length))
        self.assertEqual(image.sha256(), hashlib.sha256(model).hexdigest())
        image.write(0, bytes(len(model)))      # zeros take no memory
        self.assertEqual([], list(image.chunks()))
        with self.assertRaises(ValueError):
            Image(MIB).write(MIB - 3, b'four')


class Checksums(TestCase):
    def test_they_are_those_of_the_reference_implementation_by_package_or_library(self):
        buffer = bytes.fromhex('0052929bb732a3242d00af950eec')
        for package in {archive.xxhash, None}:
            with mock.patch.object(archive, 'xxhash', package):
                function = archive.xxh64_function.__wrapped__()
            if package or function(b'') == 0xEF46DB3751D8E999:     # else there is no library
                self.assertEqual([0xEF46DB3751D8E999, 0xE934A84ADB052768, 0x9136A0DCA57457EE,
                                  0x8282DCC4994E35C8],
                                 [function(buffer[:length]) for length in (0, 1, 4, 14)])


class WritingXva(TestCase):
    def test_real_archives_are_rewritten_byte_for_byte(self):
        for original, disks_there in ((sample_xva(), 3), (sample('no-disks.xva'), 0),
                                      (sample('metadata.xva'), 0)):
            xva = read(original)
            self.assertEqual(disks_there, len(xva.disks))
            again = archive.xva(xva.ova_xml, xva.disks.items(), mtime=xva.mtime)
            self.assertEqual(b''.join(again), original)

    def test_every_chunk_is_followed_by_its_checksum(self):
        for kind, empty in (('xxhash', 'EF46DB3751D8E999'),
                            ('checksum', 'da39a3ee5e6b4b0d3255bfef95601890afd80709')):
            data = written(checksum=kind, keep_alive_before={('Ref:9', 1)})
            members = names(data)[1:]
            self.assertEqual(members[1::2], [name + '.' + kind for name in members[::2]])
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                checksum = tar.extractfile('Ref:9/00000001.' + kind).read().decode()
            self.assertEqual(checksum, empty)

    def test_keep_alive_takes_a_number_of_its_own(self):
        data = written({'Ref:4': disks()['Ref:9']}, keep_alive_before={
            ('Ref:4', 2), ('Ref:4', 3), ('Ref:5', 1), ('Ref:4', 0), ('Ref:4', 7)})
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            sizes = {member.name[-8:]: member.size for member in tar if member.name[-1].isdigit()}
        self.assertEqual(sizes, {'00000000': MIB, '00000002': 0, '00000003': 0, '00000004': MIB,
                                 '00000005': MIB, '00000006': MIB, '00000007': MIB})


class ReadingXva(TestCase):
    def test_real_samples_are_read(self):
        for name, compression in (('sample.xva.gz', 'gzip'), ('sample.xva.zst', 'zstd')):
            if compression == 'zstd' and not shutil.which('zstd'):
                continue
            xva = read(sample(name), expected=ova.disk_sizes)
            self.assertEqual(xva.compression, compression)
            described = ova.parse(xva.ova_xml)
            found = {described.record(directory)['name_label']: image.sha256()
                     for directory, image in xva.disks.items()}
            self.assertEqual(found, sample_sums())

    def test_what_was_written_is_read_back(self):
        for options in ({}, {'checksum': 'checksum'},
                        {'keep_alive_before': {('Ref:9', 1), ('Ref:9', 4), ('Ref:10', 1)}}):
            xva = read(written(**options))
            self.assert_same_disks(xva.disks, disks())
            self.assertEqual(xva.ova_xml, b'<value>some text</value>')

    def test_unit_of_gaps_is_the_length_of_the_first_chunk(self):
        members = [('Ref:1/00000000', b'a' * 512), ('Ref:1/00000003', b'b' * 512)]
        xva = read(self.made_of(members))
        self.assertEqual(xva.disks['Ref:1'].read(0, 4096), b'a' * 512 + bytes(1024) + b'b' * 512)

    def test_what_is_cut_off_damaged_or_junk_is_a_premature_end(self):
        data, compressed = written(), sample('sample.xva.gz')
        damaged = bytearray(compressed)
        damaged[10] = 7             # the first block: of a type that there is not
        parts = [data[:length] for length in (0, 6, 511, 600, 1024, 5000, MIB, 3 * MIB,
                                              len(data) - 513, len(data) - 1)]
        parts += [b'hello\n', compressed[:len(compressed) // 2], bytes(damaged),
                  sample('failed-no-disks.xva')]
        if shutil.which('zstd'):
            parts.append(sample('sample.xva.zst')[:len(compressed) // 2])
        for part in parts:
            with self.refusal('IMPORT_ERROR_PREMATURE_EOF'):
                read(part)

    def test_wrong_checksum_is_the_recorded_error(self):
        data = bytearray(sample_xva())
        data[200000:200004] = b'XXXX'
        chunk = read(sample_xva()).disks['Ref:193'].chunk(0)
        at = sample_xva().index(chunk)
        changed = bytes(data[at:at + MIB])
        text = ('INTERNAL_ERROR: [ Stream_vdi.Invalid_checksum("Block Ref:193/00000000 checksum'
                ' failed: original = %016X; recomputed = %016X") ]')
        with self.refusal('IMPORT_ERROR', text % (archive.xxh64(chunk), archive.xxh64(changed))):
            read(bytes(data))
        forced = read(bytes(data), force=True)
        self.assertEqual(forced.disks['Ref:193'].chunk(0), changed)

    def made_of(self, members):
        pieces = list(archive._member('ova.xml', b''))
        for name, data in members:
            pieces += archive._member(name, data)
            pieces += archive._member(name + '.xxhash', archive.CHECKSUMS['.xxhash'](data).encode())
        return b''.join(pieces) + bytes(1024)

    def test_what_is_no_series_of_chunks_and_checksums_is_refused(self):
        def bare(*members):
            return b''.join(itertools.chain.from_iterable(
                archive._member(*member) for member in (('ova.xml', b''),) + members)) + bytes(1024)

        def chunks(*suffixes):
            return self.made_of([('Ref:' + suffix, b'x' * 512) for suffix in suffixes])
        invalid = 'INTERNAL_ERROR: [ Stream_vdi.Failure("Invalid XVA file") ]'
        damaged = bytearray(written(disks()))
        damaged[damaged.index(b'/00000000') // 512 * 512 + 130] ^= 1
        for data, failure, note in (
                (chunks('1/00000000', '1/00000001', '1/00000001'), invalid,
                 'Ref:1/00000001 comes after'),
                (chunks('1/00000000', '1/00000002', '1/00000001'), invalid,
                 'Ref:1/00000001 comes after'),
                (chunks('9/00000000', '10/00000000'), invalid, ''),
                (bare(('Ref:1/00000000', b'x'), ('README', b'y')), 'INTERNAL_ERROR: [ Stream_vdi.'
                 'Failure("Found unsupported checksum file: README") ]', ''),
                (bare(('Ref:1/00000000', b'x'), ('Ref:1/00000001.xxhash', b'5C80C09683041123')),
                 mock.ANY, 'Ref:1/00000001.xxhash follows'),
                (bytes(damaged), mock.ANY, 'wrong checksum')):
            with self.refusal('IMPORT_ERROR', failure, note=note):
                read(data)
        other = b''.join(archive._member('README', b'text')) + bytes(1024)
        with self.refusal('IMPORT_ERROR_PREMATURE_EOF'):
            read(other)     # xapi tries gzip next
        with self.refusal('IMPORT_ERROR_UNEXPECTED_FILE', 'ova.xml', 'README'):
            read(gzip.compress(other))

    def test_expected_disks_must_be_there_in_full(self):
        images = disks()
        sizes = {directory: image.virtual_size for directory, image in images.items()}
        data = written(images)
        self.assert_same_disks(read(data, expected=lambda _: sizes).disks, images)
        for change in ({'Ref:9': 7 * MIB}, {'Ref:99': MIB}):
            with self.refusal('IMPORT_ERROR', 'INTERNAL_ERROR: [ Tar.Header.End_of_stream ]'):
                read(data, expected=lambda _, change=change: dict(sizes, **change))
        with self.refusal('IMPORT_ERROR', mock.ANY, note='reaches beyond'):
            read(data, expected=lambda _: dict(sizes, **{'Ref:9': 5 * MIB + 1}))
        endless = data[:-1024]      # the importer does not look behind the last disk
        self.assert_same_disks(read(endless, expected=lambda _: sizes).disks, images)
        with self.refusal('IMPORT_ERROR_PREMATURE_EOF'):
            read(endless)


@unittest.skipUnless(shutil.which('zstd'), 'no program zstd')
class Compression(TestCase):
    def test_what_came_before_a_failure_is_delivered_whole(self):
        def failing():
            yield b'before'
            raise ConnectionError('storage')
        for kind, expand in (('none', bytes), ('gzip', gzip.decompress), ('zstd', self.unzstd)):
            delivered = []
            with self.assertRaisesRegex(ConnectionError, 'storage'):
                for block in archive.compressed(failing(), kind):
                    delivered.append(block)
            self.assertEqual(expand(b''.join(delivered)), b'before', kind)

    def test_abandoned_stream_leaves_no_process(self):
        started, real = [], subprocess.Popen

        def noted(*args, **options):
            started.append(real(*args, **options))
            return started[-1]
        with mock.patch.object(subprocess, 'Popen', noted):
            stream = archive.compressed(itertools.repeat(os.urandom(MIB)), 'zstd')
            next(stream)
            stream.close()
        self.assertEqual(1, len(started))
        self.assertNotIn(None, [process.returncode for process in started])

    @staticmethod
    def unzstd(data):
        return b''.join(archive._unzstd(iter([data])))


class DiskImages(TestCase):
    def read(self, data):
        return archive.read_vhd(io.BytesIO(data))

    def test_an_image_of_another_length_than_the_disk_is_refused(self):
        for data in (bytes(2 * MIB) + b'x', bytes(5 * MIB), bytes(MIB + 513), bytes(MIB + 511)):
            with self.refusal('VDI_IO_ERROR', 'Device I/O errors'):
                archive.read_raw(io.BytesIO(data), MIB + 512)

    def test_real_sample_is_read_and_rewritten_byte_for_byte(self):
        original = sample_vhd()
        image = self.read(original)
        self.assertEqual(image.sha256(), sample_sums()['sample root'])
        again = archive.vhd_stream(image, uuid=original[68:84], every_block=True)
        self.assertEqual(b''.join(again), original)

    def images(self):
        yield from disks().values()
        yield Image(512)
        for size in (5 << 30, (127 << 30) + 512):
            image = Image(size)
            image.write(0, b'first')
            image.write(size // 2 - 3, b'in two')
            image.write(size - 4, b'last')
            yield image

    def test_what_was_written_is_read_back(self):
        for image in self.images():
            self.assertEqual(self.read(b''.join(archive.vhd_stream(image))), image)
        raw = b''.join(archive.raw_stream(disks()['Ref:101']))
        self.assertEqual(archive.read_raw(io.BytesIO(raw), len(raw)), disks()['Ref:101'])

    def test_sectors_outside_the_bitmap_are_zero(self):
        data = bytearray(b''.join(archive.vhd_stream(Image.sample(2 * MIB, 'bits', 1))))
        data[2560] = 0b10111111     # the first sector's bit is the highest
        image = Image.sample(2 * MIB, 'bits', 1)
        image.write(512, bytes(512))
        self.assertEqual(self.read(bytes(data)), image)

    def test_what_is_damaged_cut_off_or_foreign_is_refused(self):
        whole = b''.join(archive.vhd_stream(disks()['Ref:9']))
        differencing = bytearray(next(archive.vhd_stream(Image(MIB))))
        differencing[63] = 4
        cases = [(archive._summed(bytes(differencing), 64) + bytes(4096), 'type 4'),
                 (b''.join(archive.raw_stream(disks()['Ref:9'])), '')]
        for offset, note in ((60, 'no VHD footer'), (512 + 20, 'no dynamic disk header'),
                             (len(whole) - 500, 'too early')):
            data = bytearray(whole)
            data[offset] ^= 1
            cases.append((bytes(data), note))
        cases += [(whole[:length], '') for length in (0, 300, 1000, 100000, -512, -1)]
        for data, note in cases:
            with self.refusal('VDI_IO_ERROR', 'Device I/O errors', note=note):
                self.read(data)


def ova_xml(name):
    data = sample_xva() if name == 'sample.xva' else sample(name)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.extractfile('ova.xml').read()


VM = 'OpaqueRef:478c7762-52b8-e7aa-af3a-0c8621c5d580'           # 'sample vm'
SNAPSHOT = 'OpaqueRef:42018dcc-95cf-1455-bb02-aaa7525a324c'     # its snapshot, RESTORE_sample vm
HOST = 'OpaqueRef:009da11e-599a-326f-bc7c-93fd346c9038'


def real_tables():
    """The real daemon's records; the two VMs' metrics, missing there, are from its archives."""
    tables = json.loads(sample('xapi-records.json').decode(), object_hook=revived)['records']
    for ref, name in ((VM, 'metadata.xva'), (SNAPSHOT, 'sample.xva')):
        metrics = ova.parse(ova_xml(name)).of('VM_metrics')[0].record
        tables['VM_metrics'][tables['VM'][ref]['metrics']] = metrics
    return tables


def built(vm, tables=None, first=7, **options):
    """(Ova, {VDI ref: id}) of an export from the real daemon's records."""
    tables = tables or real_tables()
    version = ova.version_info(tables['host'][HOST], '25.6')
    text, streamed = ova.build(tables, vm, itertools.count(first).__next__, version, **options)
    return ova.parse(text), streamed


def plain(value):
    return json.loads(json.dumps(value, default=str))


class BuildingOva(TestCase):
    def test_spelling_is_that_of_all_real_archives(self):
        for name in ('sample.xva', 'no-disks.xva', 'metadata.xva', 'failed-no-disks.xva'):
            original = ova_xml(name)
            parsed = ova.parse(original)
            objects = [{'class': cls, 'id': identity, 'snapshot': record}
                       for cls, identity, record in parsed.objects]
            again = ova.to_xml({'version': parsed.version, 'objects': objects})
            self.assertEqual(again.encode(), original)

    def test_metadata_of_the_real_records_is_the_real_metadata(self):
        real = ova.parse(ova_xml('metadata.xva'))
        first = min(int(thing.id[4:]) for thing in real.objects)
        mine, _ = built(VM, first=first, preserve_power_state=True)
        self.assertEqual(mine.version, real.version)
        self.assertEqual([thing[:2] for thing in mine.objects],
                         [thing[:2] for thing in real.objects])
        # the records were read later, when another snapshot had been taken and disks had gone
        changed = {'VDI': {'snapshots'}, 'SR': {'VDIs'}}
        for ours, theirs in zip(mine.objects, real.objects):
            self.assertEqual(list(ours.record), list(theirs.record))
            differing = {field for field in theirs.record
                         if plain(ours.record[field]) != plain(theirs.record[field])}
            self.assertEqual(differing, changed.get(theirs.cls, set()), theirs.cls)

    def test_export_of_a_snapshot_differs_from_a_real_one_only_in_what_is_its_own(self):
        real = ova.parse(ova_xml('sample.xva'))
        first = min(int(thing.id[4:]) for thing in real.objects)
        tables = real_tables()
        before = copy.deepcopy(plain(tables))
        mine, streamed = built(SNAPSHOT, tables, first)
        self.assertEqual(plain(tables), before)     # building changes nothing
        self.assertEqual(len(mine.objects), len(real.objects))
        vm = mine.of('VM')[0].record
        self.assertEqual((True, ova.EPOCH), (vm['is_a_template'], vm['snapshot_time']))
        own = {'VM': {'is_a_template', 'snapshot_metadata', 'generation_id', 'VIFs'}}
        elsewhere = {'uuid', 'location', 'snapshot_time', 'VBDs', 'VDIs'}
        for ours in mine.objects:
            theirs = self.counterpart(ours, real)
            differing = {field for field in set(theirs) - elsewhere if
                         self.without_refs(ours.record[field]) != self.without_refs(theirs[field])}
            self.assertLessEqual(differing, own.get(ours.cls, set()), ours.cls)
        sizes = sorted(mine.disks.values())
        self.assertEqual(sizes, sorted(real.disks.values()))
        self.assertEqual(set(streamed.values()), set(mine.disks))

    def without_refs(self, value):
        return re.sub('Ref:[0-9]+', 'Ref:n', json.dumps(plain(value), sort_keys=True))

    def counterpart(self, thing, real):
        """The record of the same device, disk, ... in the other archive."""
        for key in ('userdevice', 'MAC', 'name_label'):
            if key in thing.record:
                return next(other.record for other in real.of(thing.cls)
                            if other.record[key] == thing.record[key])
        return real.of(thing.cls)[0].record

    def test_text_is_escaped_and_control_characters_are_dropped(self):
        self.assertEqual(ova.to_xml('a<b>&"c"\'é\x01\x1f\t\n'),
                         '<value>a&lt;b&gt;&amp;&quot;c&quot;\'é\t\n</value>')
        self.assertEqual(ova.to_xml({'<': [True, 0.5, -1.0, 1.0]}),
                         '<value><struct><member><name>&lt;</name><value><array><data>'
                         '<value><boolean>1</boolean></value><value><double>0.5</double></value>'
                         '<value><double>-1</double></value><value><double>1</double></value>'
                         '</data></array></value></member></struct></value>')
        tables = real_tables()
        tables['VM'][VM]['name_label'] = name = ' a,b $(id) it\'s "x" 名前\n<value>&amp;'
        self.assertEqual(built(VM, tables)[0].of('VM')[0].record['name_label'], name)


class ParsingOva(TestCase):
    def changed(self, change):
        parsed = ova.parse(ova_xml('sample.xva'))
        objects = [{'class': cls, 'id': identity, 'snapshot': record}
                   for cls, identity, record in parsed.objects]
        change(objects)
        return ova.to_xml({'version': parsed.version, 'objects': objects}).encode()

    def test_what_lacks_fields_or_objects_or_is_no_xml_is_refused(self):
        for index, thing in enumerate(ova.parse(ova_xml('sample.xva')).objects):
            field = list(thing.record)[len(thing.record) // 2]
            text = self.changed(lambda objects, index=index, field=field:
                                objects[index]['snapshot'].pop(field))
            with self.refusal('IMPORT_ERROR', 'INTERNAL_ERROR: [ Failure("Field %s not present in'
                              ' rpc") ]' % field):
                ova.parse(text)
        for cls, number in (('network', 'Ref:190'), ('SR', 'Ref:194'), ('VM', 'Ref:188')):
            def without(objects, cls=cls):
                objects[:] = [thing for thing in objects if thing['class'] != cls]
            with self.refusal('IMPORT_ERROR_FAILED_TO_FIND_OBJECT', number):
                ova.parse(self.changed(without))
        for text in (b'', b'<value><struct>', b'hello'):
            with self.refusal('IMPORT_ERROR', mock.ANY):
                ova.parse(text)

    def test_newer_exports_are_incompatible(self):
        version = {'xapi_major': '25', 'xapi_minor': '6'}
        for xapi, verdict in (('25.6', True), ('26.1', True), ('25.5', False), ('24.40', False)):
            self.assertEqual(ova.compatible(version, xapi), verdict, xapi)
        old = {'xapi_major': '0', 'xapi_minor': '2'}
        self.assertEqual([ova.compatible(old, '1.249'), ova.compatible(old, '26.1')], [False, True])
