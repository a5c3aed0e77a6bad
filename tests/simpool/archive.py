"""What a XenServer writes and reads when it exports and imports: XVA archives, raw and VHD images.

    Image                       the content of a virtual disk, sparse, cheap to clone
    xxh64                       the checksum of xapi 1.170 and later
    xva, compressed, read_xva   whole VMs
    raw_stream, read_raw        disks, byte for byte
    vhd_stream, read_vhd        disks as dynamic VHD images

Everything here is bytes: nothing is known of pools and records (ova.py reads and writes `ova.xml`).
All writers are iterators of bytes and hold about 1 MiB (VHD: 2 MiB) at a time.
"""
import contextlib
import ctypes
import functools
import hashlib
import os
import random
import selectors
import struct
import subprocess
import uuid as uuids
import zlib
from typing import Dict, List, NamedTuple

try:
    import xxhash
except ImportError:
    xxhash = None

CHUNK = 1048576
SECTOR = 512
PIECE = 65536                       # how much is read from files and pipes at a time


class ArchiveError(Exception):
    """An archive or image that cannot be read.

    `details` is what XenAPI answers, a code and its parameters; `note` says more for people. Codes
    and texts: recorded from xapi 25.6.0 (truncated and corrupted archives, junk), else from xapi:
    ocaml/xapi/import.ml, stream_vdi.ml and exnHelper.ml.
    """

    def __init__(self, details, note=''):
        super().__init__(details, note)
        self.details = list(details)
        self.note = note

    def __str__(self):
        return ': '.join(self.details + [self.note] if self.note else self.details)


def import_error(exception, note=''):
    """The ArchiveError for what xapi did not foresee: `exception` as OCaml prints it."""
    return ArchiveError(['IMPORT_ERROR', 'INTERNAL_ERROR: [ %s ]' % exception], note)


def _io_error(note):
    """What vdi-import says of any bad image (recorded from xapi 25.6.0)."""
    return ArchiveError(['VDI_IO_ERROR', 'Device I/O errors'], note)


# Images

@functools.lru_cache(maxsize=64)
def _noise(seed, size):
    return hashlib.shake_128(seed.encode()).digest(size)


class Image:
    """The content of a virtual disk: `virtual_size` bytes, all zero until written.

    Only chunks of 1 MiB with data in them take memory, and clones share them: chunks are never
    changed, only replaced.
    """

    def __init__(self, virtual_size):
        self.virtual_size = virtual_size
        self._chunks = {}

    @classmethod
    def sample(cls, virtual_size, seed, fill=0.5):
        """A new image with noise in `fill` (0 to 1) of its chunks; same arguments, same noise."""
        image = cls(virtual_size)
        count = image.chunk_count
        for index in random.Random(str(seed)).sample(range(count), round(count * fill)):
            image._put(index, _noise('%s:%d' % (seed, index), image.chunk_size(index)))
        return image

    @property
    def chunk_count(self):
        return -(-self.virtual_size // CHUNK)

    def chunk_size(self, index):
        return min(CHUNK, self.virtual_size - index * CHUNK)

    def chunk(self, index):
        """The bytes of one chunk, zeros as well."""
        return self._chunks.get(index) or bytes(self.chunk_size(index))

    def chunks(self):
        for index in sorted(self._chunks):
            yield index, self._chunks[index]

    def read(self, offset, length):
        """Up to `length` bytes from `offset`; fewer at the end of the disk."""
        length = max(0, min(length, self.virtual_size - offset))
        first, skip = divmod(offset, CHUNK)
        pieces = [self.chunk(index) for index in range(first, -(-(offset + length) // CHUNK))]
        return b''.join(pieces)[skip:skip + length]

    def write(self, offset, data):
        if offset < 0 or offset + len(data) > self.virtual_size:
            raise ValueError('%d bytes at %d in a disk of %d'
                             % (len(data), offset, self.virtual_size))
        view = memoryview(data)
        while view:
            index, start = divmod(offset, CHUNK)
            piece = view[:self.chunk_size(index) - start]
            old = self.chunk(index)
            self._put(index, b''.join((old[:start], piece, old[start + len(piece):])))
            offset += len(piece)
            view = view[len(piece):]

    def _put(self, index, data):
        if data.count(0) == len(data):
            self._chunks.pop(index, None)
        else:
            self._chunks[index] = data

    def clone(self):
        image = Image(self.virtual_size)
        image._chunks = dict(self._chunks)
        return image

    def sha256(self):
        digest = hashlib.sha256()
        for piece in raw_stream(self):
            digest.update(piece)
        return digest.hexdigest()

    def __eq__(self, other):
        return (self.virtual_size, self._chunks) == (other.virtual_size, other._chunks)

    __hash__ = None


# Checksums

@functools.lru_cache(maxsize=None)
def xxh64_function():
    """The function from bytes to their XXH64, with seed 0, as an int: of the module or the library
    xxhash. With neither nobody here can compare checksums, and any digest of that length will do.
    """
    if xxhash:
        return xxhash.xxh64_intdigest
    try:
        library = ctypes.CDLL('libxxhash.so.0').XXH64
    except (OSError, AttributeError):
        return lambda data: int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'big')
    library.restype = ctypes.c_uint64
    library.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64)
    return lambda data: library(bytes(data), len(data), 0)


def xxh64(data):
    return xxh64_function()(data)


CHECKSUMS = {
    '.xxhash': lambda data: '%016X' % xxh64(data),
    '.checksum': lambda data: hashlib.sha1(data).hexdigest(),
}


# XVA archives: writing

def xva(ova_xml, disks, checksum='xxhash', keep_alive_before=(), mtime=0):
    """The archive of a VM (of its metadata where `disks` is empty): a tar stream.

    disks              (directory, Image) pairs, the directory being the disk's id in ova.xml
    checksum           'xxhash', or 'checksum' (SHA-1) for xapi before 1.170
    keep_alive_before  (directory, number) pairs: an empty member takes this number and the chunk
                       whose turn it was gets the next; xapi does so when it wrote nothing for five
                       seconds, but never in place of the first or last chunk
    mtime              of ova.xml, seconds since 1970; 0 before xapi 24.13

    First and last chunk are always there, zero chunks between are left out. Source: xapi:
    ocaml/xapi/stream_vdi.ml, send_one; compared with an archive made by xapi 25.6.0.
    """
    yield from _member('ova.xml', ova_xml, mtime)
    for directory, image in sorted(disks, key=lambda disk: disk[0]):
        yield from xva_disk(directory, image, checksum, keep_alive_before)
    yield bytes(2 * SECTOR)


def xva_disk(directory, image, checksum='xxhash', keep_alive_before=()):
    """The members of one disk in an archive (see `xva`)."""
    suffix = '.' + checksum
    digest = CHECKSUMS[suffix]
    for number, data in _numbered_chunks(directory, image, keep_alive_before):
        name = '%s/%08d' % (directory, number)
        yield from _member(name, data)
        yield from _member(name + suffix, digest(data).encode())


def _numbered_chunks(directory, image, keep_alive_before):
    """(number, bytes) of each member of a disk."""
    filled = dict.fromkeys(index for index, _ in image.chunks())
    number, last = 0, image.chunk_count - 1
    for index in range(image.chunk_count):
        while 0 < index < last and (directory, number) in keep_alive_before:
            yield number, b''
            number += 1
        if index in filled or index in (0, last):
            yield number, image.chunk(index)
        number += 1


def _member(name, data, mtime=0):
    yield tar_header(name, len(data), mtime)
    if data:
        yield data
        yield bytes(-len(data) % SECTOR)


def tar_header(name, size, mtime=0):
    """The 512 bytes before a member: V7 style, as ocaml-tar writes them."""
    fields = '%07o\0%07o\0%07o\0%011o\0%011o\0' % (0o400, 0, 0, size, mtime)
    head = name.encode().ljust(100, b'\0') + fields.encode()
    return (head + b'%07o\0' % (sum(head) + 8 * ord(' '))).ljust(SECTOR, b'\0')


def compressed(stream, kind):
    """`stream` compressed: 'none', 'gzip' or 'zstd'.

    When `stream` fails, what came before the failure is still delivered as a whole, as by xapi,
    which pipes the archive through gzip or zstd; then the failure follows.
    """
    compress = {'none': iter, 'gzip': _gzip, 'zstd': _zstd}[kind]
    return _then_raise(compress, stream)


def _then_raise(compress, stream):
    failures = []
    yield from compress(_until_failure(stream, failures))
    for failure in failures:
        raise failure


def _until_failure(stream, failures):
    try:
        yield from stream
    except Exception as failure:    # any: raised again by _then_raise
        failures.append(failure)


def _gzip(stream):
    squeeze = zlib.compressobj(6, zlib.DEFLATED, 31)
    for block in stream:
        yield squeeze.compress(block)
    yield squeeze.flush()


def _zstd(stream):
    return _through(['zstd', '-q', '-c'], stream)


def _through(argv, stream):
    """What the program prints when `stream` is its input; CalledProcessError when it fails."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, bufsize=0)
    try:
        with contextlib.suppress(BrokenPipeError):      # when it has ended; its status says why
            yield from _pumped(process, stream)
        process.stdin.close()
        yield from iter(lambda: process.stdout.read(PIECE), b'')
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, argv)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdin.close()
        process.stdout.close()


def _pumped(process, stream):
    """Feed the process, and give what it has ready meanwhile; BrokenPipeError when it has ended."""
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        for block in stream:
            view = memoryview(block)
            while view:
                ready = [key.fileobj for key, _ in selector.select()]
                if process.stdout in ready:
                    yield os.read(process.stdout.fileno(), PIECE)
                if process.stdin in ready:
                    view = view[os.write(process.stdin.fileno(), view):]


def _regrouped(stream, size):
    """The same bytes in blocks of `size`, the last one of what remains."""
    source = _Source(stream)
    while True:
        block = source.take_up_to(size)
        if not block:
            return
        yield block


# XVA archives: reading

class Xva(NamedTuple):
    ova_xml: bytes
    disks: Dict[str, Image]         # by directory, in the archive's order
    members: List[str]              # all names, in order
    mtime: int                      # of ova.xml
    compression: str                # none, gzip or zstd


def read_xva(source, expected=None, force=False, attached=None, watched=None):
    """Read an archive, compressed or not, from a file or from pieces of bytes -> Xva.

    `expected` tells which disks must come: called with the bytes of ova.xml, it returns
    {directory: virtual size}, and the archive is taken as xapi's importer takes it: exactly these,
    in string order, each up to its size, and no look at what follows. Without it every disk is
    taken as it comes and the archive must end with two zero blocks.
    `force`: wrong checksums are let pass. `attached(directory)`: a context in which a disk is read;
    `watched(blocks)`: gives the same blocks of the tar stream, as they are read.

    Raises ArchiveError. Note that a wrong inline checksum is IMPORT_ERROR with a text, as recorded;
    IMPORT_ERROR_SOME_CHECKSUMS_FAILED belongs to a table of checksums at the archive's end, which
    nothing has written for many years.
    """
    sent = iter(pieces_of(source))
    try:
        return _XvaReader(sent, expected, force, attached, watched).read()
    except (EOFError, ArchiveError) as error:
        for _ in sent:
            pass                    # who sends it gets rid of it all
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(['IMPORT_ERROR_PREMATURE_EOF']) from error


class _XvaReader:
    def __init__(self, sent, expected, force, attached, watched):
        self.expected = expected
        self.attached = attached
        self.force = force
        self.compression, tar = _decompressed(sent)
        self.source = _Source(watched(tar) if watched else tar)
        self.members = []
        self.first_length = None    # of the first chunk in the archive: the unit of gaps
        self.pending = None         # a header that was read ahead

    def read(self):
        with self.taking_for_gzip():
            name, size, mtime = self.header()
        if name != 'ova.xml':
            if self.compression == 'none':
                raise EOFError      # xapi goes on to try gzip, which finds nothing
            raise ArchiveError(['IMPORT_ERROR_UNEXPECTED_FILE', 'ova.xml', name])
        ova_xml = self.content(size)
        if self.expected:
            sizes = self.expected(ova_xml)
            disks = {}
            for directory in sorted(sizes):
                with self.attached(directory) if self.attached else contextlib.ExitStack():
                    disks[directory] = self.disk(directory, sizes[directory])
        else:
            disks = self.all_disks()
        return Xva(ova_xml, disks, self.members, mtime, self.compression)

    @contextlib.contextmanager
    def taking_for_gzip(self):
        """What does not begin like an archive xapi takes for a gzipped one, and finds nothing."""
        try:
            yield
        except ArchiveError as error:
            raise error if self.compression != 'none' else EOFError

    def all_disks(self):
        disks = {}
        while self.next_name():
            directory = self.next_name().split('/')[0]
            if disks and directory <= max(disks):
                raise _invalid('disk %s comes after %s' % (directory, max(disks)))
            disks[directory] = self.disk(directory)
        if any(self.source.take(SECTOR)):
            raise _invalid('a single zero block')
        return disks

    def disk(self, directory, size=None):
        """Read a disk of `size` bytes (None: as many as there are) -> Image.

        The number in a name is not the offset: an empty member takes up a number too, so offsets
        accumulate (xapi: ocaml/xapi/stream_vdi.ml, recv_all_vdi).
        """
        pieces, previous, offset = [], '-1', 0
        while offset < size if size is not None else self.belongs(directory):
            name, length, _ = self.header()
            suffix = _suffix(name, directory, previous)
            data = self.content(length)
            self.verify(name, data)
            if self.first_length is None:
                self.first_length = length
            offset += (int(suffix) - int(previous) - 1) * self.first_length
            pieces.append((offset, data))
            offset += length
            previous = suffix
            if size is not None and offset > size:
                raise _invalid('%s reaches beyond its disk' % name)
        image = Image(offset)
        for piece in pieces:
            image.write(*piece)
        return image

    def belongs(self, directory):
        return (self.next_name() or '').startswith(directory + '/')

    def verify(self, name, data):
        checksum_name, length, _ = self.header()
        suffix = os.path.splitext(checksum_name)[1]
        if suffix not in CHECKSUMS:
            raise _invalid('', 'Found unsupported checksum file: ' + checksum_name)
        original = self.content(length).decode('ascii', 'replace')
        recomputed = CHECKSUMS[suffix](data)
        if checksum_name != name + suffix:
            raise _invalid('%s follows %s' % (checksum_name, name))
        if original != recomputed and not self.force:
            raise import_error('Stream_vdi.Invalid_checksum("Block %s checksum failed: original = '
                               '%s; recomputed = %s")' % (name, original, recomputed))

    def next_name(self):
        """The name of the next member, '' at the end of the archive; it is not consumed."""
        if self.pending is None:
            self.pending = _tar_fields(self.source.take(SECTOR))
        return self.pending[0]

    def header(self):
        """(name, size, mtime) of the next member. The end of the archive is another failure to the
        importer than the end of the file (recorded from xapi 25.33.2)."""
        name = self.next_name()
        if not name:
            raise import_error('Tar.Header.End_of_stream') if self.members else EOFError
        header, self.pending = self.pending, None
        self.members.append(name)
        return header

    def content(self, size):
        data = self.source.take(size)
        self.source.take(-size % SECTOR)
        return data


def _suffix(name, directory, previous):
    """The number, as text, in a chunk's name; numbers must grow, compared as strings."""
    if not name.startswith(directory + '/'):
        raise _invalid('a chunk of %s expected, found %s' % (directory, name))
    suffix = name[len(directory) + 1:]
    if suffix <= previous:
        raise _invalid('%s comes after number %s' % (name, previous))
    if not suffix.isdigit():
        raise import_error('Failure("int_of_string")', name)
    return suffix


def _invalid(note, failure='Invalid XVA file'):
    return import_error('Stream_vdi.Failure("%s")' % failure, note)


def _tar_fields(block):
    """(name, size, mtime) in a tar header; ('', 0, 0) for a zero block."""
    if not any(block):
        return '', 0, 0
    try:
        size, mtime, checksum = (int(block[start:end].strip(b' \0') or b'0', 8)
                                 for start, end in ((124, 136), (136, 148), (148, 156)))
    except ValueError:
        raise _invalid('no tar header: %r...' % block[:32])
    if checksum != sum(block[:148]) + 8 * ord(' ') + sum(block[156:]):
        raise _invalid('tar header with a wrong checksum: %r...' % block[:32])
    return block[:100].rstrip(b'\0').decode('utf-8', 'replace'), size, mtime


def pieces_of(source):
    """The pieces of a file, or of what is in pieces already."""
    return iter(lambda: source.read(PIECE), b'') if hasattr(source, 'read') else source


class _Source:
    """Exact amounts out of an iterator of bytes."""

    def __init__(self, blocks):
        self._blocks = iter(blocks)
        self._rest = memoryview(b'')
        self.position = 0

    def take_up_to(self, size):
        pieces = []
        while size:
            while not self._rest:
                block = next(self._blocks, None)
                if block is None:
                    return b''.join(pieces)
                self._rest = memoryview(block)
            piece, self._rest = self._rest[:size], self._rest[size:]
            pieces.append(piece)
            size -= len(piece)
            self.position += len(piece)
        return b''.join(pieces)

    def take(self, size):
        data = self.take_up_to(size)
        if len(data) < size:
            raise EOFError
        return data

    def skip_to(self, position):
        """Go forward; EOFError where that is backward or beyond the end."""
        if position < self.position:
            raise EOFError
        while self.position < position:
            self.take(min(CHUNK, position - self.position))


def _decompressed(blocks):
    """(kind, blocks) of a stream that may be compressed; what is no gzip passes as it is."""
    source = _Source(blocks)
    magic = source.take_up_to(4)
    rest = _joined(magic, source)
    if magic == b'\x28\xb5\x2f\xfd':
        return 'zstd', _unzstd(rest)
    if magic[:2] == b'\x1f\x8b':
        return 'gzip', _gunzip(rest)
    return 'none', rest


def _joined(magic, source):
    yield magic
    yield from iter(lambda: source.take_up_to(PIECE), b'')


def _gunzip(blocks):
    """The content of a gzip stream; it just ends where it is damaged, as a pipe from gzip does."""
    expand = zlib.decompressobj(31)
    for block in blocks:
        while block and not expand.eof:
            try:
                yield expand.decompress(block, CHUNK)
            except zlib.error:
                return
            block = expand.unconsumed_tail


def _unzstd(blocks):
    """The content of a zstd stream; it just ends where it is damaged, as a pipe from zstd does."""
    try:
        yield from _through(['zstd', '-q', '-d', '-c'], blocks)
    except subprocess.CalledProcessError:
        return


# Raw images

def raw_stream(image):
    for index in range(image.chunk_count):
        yield image.chunk(index)


def read_raw(source, virtual_size):
    """Read a raw image into a disk of `virtual_size` bytes -> Image.

    More bytes than that (recorded from xapi 25.6.0, with zeros), or fewer, raise ArchiveError.
    """
    image = Image(virtual_size)
    offset = 0
    for block in _regrouped(pieces_of(source), CHUNK):
        if offset + len(block) > virtual_size:
            raise _io_error('the image is larger than the disk')
        image.write(offset, block)
        offset += len(block)
    if offset < virtual_size:
        raise _io_error('the image ends after %d of %d bytes' % (offset, virtual_size))
    return image


# VHD images
# Source: Microsoft's Virtual Hard Disk Image Format Specification; what is left to the writer
# (creator, versions, layout, bitmaps) is as in an image made by xapi 25.6.0.

VHD_BLOCK = 2 * CHUNK
_FOOTER = struct.Struct('>8sIIQI4sI4sQQHBBII16sB427x')
_HEADER = struct.Struct('>8sQQIIII16sII512s192s256x')
_FOOTER_CHECKSUM, _HEADER_CHECKSUM = 64, 36     # offsets of these fields
_DYNAMIC = 3
_NOWHERE = 0xFFFFFFFF


def vhd_geometry(virtual_size):
    """(cylinders, heads, sectors per track): the specification's appendix.

    They often stand for a little less than the disk. The size itself is in the footer's current
    size; qemu-img takes it from there only when told to (`force_size_calc=current_size`), as xapi's
    creator 'caml' is not among those that it trusts.
    """
    sectors = min(virtual_size // SECTOR, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    cylinder_heads, heads = sectors // 17, max(4, -(-(sectors // 17) // 1024))
    if cylinder_heads < heads * 1024 and heads <= 16:
        return cylinder_heads // heads, heads, 17
    cylinder_heads = sectors // 31
    if cylinder_heads < 16 * 1024:
        return cylinder_heads // 16, 16, 31
    return sectors // 63 // 16, 16, 63


def vhd_stream(image, uuid=None, timestamp=0, every_block=False):
    """A dynamic VHD image of the disk.

    uuid         16 bytes or its text; default: a new one
    timestamp    seconds since 2000
    every_block  also those of zeros, as xapi writes them when the storage cannot tell

    ValueError for a size that is not of whole sectors.
    """
    if image.virtual_size % SECTOR:
        raise ValueError('%d bytes are no whole sectors' % image.virtual_size)
    count = -(-image.virtual_size // VHD_BLOCK)
    blocks = range(count) if every_block else sorted({index // 2 for index, _ in image.chunks()})
    footer = _vhd_footer(image.virtual_size, _uuid_bytes(uuid), timestamp)
    table = _vhd_table(count, blocks)
    yield footer
    yield _vhd_header(count)
    yield bytes(SECTOR)             # the table begins at 2048
    yield table
    for block in blocks:
        yield b'\xff' * SECTOR
        yield image.read(block * VHD_BLOCK, VHD_BLOCK).ljust(VHD_BLOCK, b'\0')
    yield footer


def _uuid_bytes(uuid):
    if uuid is None:
        return uuids.uuid4().bytes
    return uuid if isinstance(uuid, bytes) else uuids.UUID(uuid).bytes


def _vhd_footer(virtual_size, uuid, timestamp):
    cylinders, heads, sectors = vhd_geometry(virtual_size)
    footer = _FOOTER.pack(b'conectix', 2, 0x10000, SECTOR, timestamp, b'caml', 1, bytes(4),
                          virtual_size, virtual_size, cylinders, heads, sectors, _DYNAMIC, 0,
                          uuid, 0)
    return _summed(footer, _FOOTER_CHECKSUM)


def _vhd_header(count):
    header = _HEADER.pack(b'cxsparse', (1 << 64) - 1, 4 * SECTOR, 0x10000, count, VHD_BLOCK, 0,
                          bytes(16), 0, 0, b'', b'')
    return _summed(header, _HEADER_CHECKSUM)


def _vhd_table(count, blocks):
    """The table of where each block is, in sectors, filled up to whole sectors."""
    size = -(-4 * count // SECTOR) * SECTOR
    sector = 4 + size // SECTOR
    table = [_NOWHERE] * (size // 4)
    for block in blocks:
        table[block] = sector
        sector += 1 + VHD_BLOCK // SECTOR
    return struct.pack('>%dI' % len(table), *table)


def _vhd_sum(data, offset):
    """The checksum of a footer or header whose checksum field is at `offset`."""
    return ~(sum(data) - sum(data[offset:offset + 4])) & 0xFFFFFFFF


def _summed(data, offset):
    return data[:offset] + struct.pack('>I', _vhd_sum(data, offset)) + data[offset + 4:]


def read_vhd(source):
    """Read a dynamic VHD image from a file or from pieces of bytes -> Image.

    Its size is the footer's current size. ArchiveError for anything that is damaged, cut off or no
    dynamic VHD.
    """
    try:
        return _read_vhd(_Source(pieces_of(source)))
    except EOFError:
        raise _io_error('the VHD image ends too early')


def _read_vhd(source):
    footer = source.take(SECTOR)
    fields = _FOOTER.unpack(footer)
    if fields[0] != b'conectix' or fields[14] != _vhd_sum(footer, _FOOTER_CHECKSUM):
        raise _io_error('no VHD footer at the start')
    if fields[13] != _DYNAMIC:
        raise _io_error('a VHD image of type %d, not a dynamic one' % fields[13])
    source.skip_to(fields[3])
    header = source.take(1024)
    _, _, table_offset, _, count, block_size, checksum = _HEADER.unpack(header)[:7]
    if header[:8] != b'cxsparse' or checksum != _vhd_sum(header, _HEADER_CHECKSUM):
        raise _io_error('no dynamic disk header where the footer tells')
    source.skip_to(table_offset)
    table = struct.unpack('>%dI' % count, source.take(4 * count))
    image = Image(fields[9])
    for sector, block in sorted(zip(table, range(count))):
        if sector != _NOWHERE and block * block_size < image.virtual_size:
            source.skip_to(sector * SECTOR)
            _read_vhd_block(source, image, block * block_size, block_size)
    _expect_footer(source, footer)
    return image


def _read_vhd_block(source, image, offset, block_size):
    """Sectors whose bit is not set are zero."""
    bits = block_size // SECTOR
    bitmap = source.take(-(-bits // 8 // SECTOR) * SECTOR)[:-(-bits // 8)]
    data = source.take(block_size)
    if bitmap != b'\xff' * len(bitmap):
        data = b''.join(data[at * SECTOR:(at + 1) * SECTOR] if bitmap[at // 8] << at % 8 & 0x80
                        else bytes(SECTOR) for at in range(bits))
    image.write(offset, data[:image.virtual_size - offset])


def _expect_footer(source, footer):
    rest = b''
    for block in iter(lambda: source.take_up_to(PIECE), b''):
        rest = (rest + block)[-SECTOR:]
    if rest != footer:
        raise EOFError
