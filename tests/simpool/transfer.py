"""Exports and imports of a simulated pool: what they lock, attach, refuse and leave behind.

Sources: xapi: ocaml/xapi/export.ml, import.ml, importexport.ml, stream_vdi.ml, export_raw_vdi.ml,
import_raw_vdi.ml, attach_helpers.ml, taskHelper.ml.
"""

import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from xmlrpc.client import DateTime

from . import archive, ova
from .database import EPOCH, NULL, TEMPLATES, dump

MIB = 1 << 20
LARGEST_VHD_EXPORT = 2040 << 30     # bytes of a disk (recorded from xapi 26.17.0)
SECONDS_TO_2000 = 946684800     # from 1970, where a VHD's time begins

# What a new VM has, whatever it was made from.
NEW_VM = dict(
    uuid='', VBDs=[], VIFs=[], VUSBs=[], consoles=[], snapshots=[], children=[], crash_dumps=[],
    attached_PCIs=[], blobs={}, current_operations={}, resident_on=NULL, domid='-1',
    scheduled_to_be_resident_on=NULL, guest_metrics=NULL, appliance=NULL, protection_policy=NULL,
    snapshot_schedule=NULL, is_default_template=False, is_control_domain=False)


class Stream:
    """An iterator of bytes that knows whether it was read to its end."""

    def __init__(self, pieces):
        self._pieces = pieces
        self.complete = False

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return next(self._pieces)
        except StopIteration:
            self.complete = True
            raise

    def close(self):
        self._pieces.close()


class Transfers:
    def next_number(self):
        with self.lock:
            self._numbers += 1
            return self._numbers

    @contextmanager
    def _following(self, task, label, description=''):
        """A task (or an own one) that tells how the work in here goes and ends.

        A client that went away (OSError) is a CLIENT_ERROR, as recorded from xapi 25.6.0.
        """
        own = None if task else self.make_task(label, description)
        ref = task or own
        self._advance(ref, progress=0.0, allowed_operations=['cancel'] * label.startswith('Export'))
        try:
            yield ref
            self.finish_task(ref, 'success')
        except BaseException as error:
            self._fail(ref, error)
            raise
        finally:
            if own:
                self.drop_task(own)

    def _fail(self, task, error):
        details = getattr(error, 'details', None)
        if details is None and isinstance(error, OSError):
            name = 'ECONNRESET' if isinstance(error, ConnectionResetError) else 'EPIPE'
            details = ['CLIENT_ERROR',
                       'INTERNAL_ERROR: [ Unix.Unix_error(Unix.%s, "write", "") ]' % name]
        elif details is None:
            details = ['INTERNAL_ERROR', '%s: %s' % (type(error).__name__, error)]
        cancelled = details[0] == 'TASK_CANCELLED'
        self.finish_task(task, 'cancelled' if cancelled else 'failure', error=details)

    def _advance(self, task, **fields):
        """Change a task that may be gone by now."""
        with self.lock:
            if task in self.tables['task']:
                self.put('task', task, **fields)

    @contextmanager
    def _attached(self, vdi, mode, task, plug_of=NULL):
        """A disk attached to dom0 by a VBD of its own, while it lasts. Raises VDI_IN_USE.

        The VBD stays where the daemon ends meanwhile, and where storage cannot detach the disk, of
        which nobody is told (recorded from xapi 25.33.2 and 26.17.0). Up to xapi 26.15 it names its
        task (xapi: attach_helpers.ml).
        """
        life = self.life
        with ExitStack() as plugging:
            with self.lock:
                self.assert_attachable(vdi, mode)
                vbd = self.call('VBD.create', {
                    'VM': self.tables['host'][self.master]['control_domain'], 'VDI': vdi,
                    'userdevice': 'autodetect', 'mode': mode, 'type': 'Disk',
                    'other_config': {'task_id': task} if self.version < (26, 16) else {}})
                plugging.enter_context(self._working(vbd, 'plug', plug_of))
            if 'attach' in self.storage_faults:
                self.delete('VBD', vbd)
            self.ask_storage('attach')
            self.put('VDI', vdi, sm_config=dict(
                self.record('VDI', vdi)['sm_config'], **{self._caching: 'true'}))
            self.mark_attached(vbd)
        try:
            yield
        finally:
            if life == self.life and vbd in self.tables['VBD']:
                with self._working(vbd, 'unplug', task):
                    self._detach(vdi, vbd)

    @property
    def _caching(self):
        """The key of sm_config that says that a host reads a disk."""
        return 'read-caching-enabled-on-' + self.tables['host'][self.master]['uuid']

    @contextmanager
    def _working(self, vbd, operation, parent):
        """A task that plugs or unplugs a VBD, and says so there."""
        with self.subtask('VBD.' + operation, parent) as task:
            allowed = self.tables['VBD'][vbd]['allowed_operations']
            self.put('VBD', vbd, current_operations={task: operation}, allowed_operations=[])
            try:
                yield
            finally:
                if vbd in self.tables['VBD']:
                    now = self.tables['VBD'][vbd]['allowed_operations']
                    self.put('VBD', vbd, current_operations={}, allowed_operations=now or allowed)

    def _detach(self, vdi, vbd):
        record = self.tables['VDI'].get(vdi)
        if record:
            self.put('VDI', vdi, other_config=dict(
                {'content_id': str(uuid.uuid4())}, **record['other_config']))
        with self.lock:
            if vbd not in self.tables['VBD'] or not self._detaches(vbd):
                return
            self.mark_detached(vbd)
            self.delete('VBD', vbd)

    def _detaches(self, vbd):
        """Whether storage lets go of a disk: see `failing_detaches` and `stale_devices`."""
        if self.tables['VBD'][vbd]['userdevice'] in self.stale_devices:
            return False
        if self.failing_detaches:
            self.failing_detaches -= 1
            return False
        return True

    def _watched(self, pieces, task, total):
        """The same pieces; the task's progress follows them, and cancelling it ends them.

        Progress counts whole MiB, and moves with the first one and then at intervals. `total()`
        is how many bytes there will be.
        """
        done, due, life = 0, 0.0, self.life
        for piece in pieces:
            self.check_up(life)
            done += len(piece)
            if time.monotonic() >= due:
                if self.is_cancelling(task):
                    raise self.error('TASK_CANCELLED', task)
                if min(done, total()) >= MIB:
                    due = time.monotonic() + self.progress_interval
                    self._advance(task, progress=min(1.0, (done // MIB) / (total() // MIB)))
            yield piece

    def _written(self, pieces):
        """The same pieces, until storage fails to write more (`storage_faults`)."""
        bad, done = self.storage_faults.get('write'), 0
        for piece in pieces:
            done += len(piece)
            if bad is not None and done > bad:
                raise archive.import_error('Unix.Unix_error(Unix.ENOSPC, "write", "")')
            yield piece

    def _in_percent(self, pieces, task, total):
        """The same pieces; progress is in whole percents, as vhd-tool tells it every 2 MiB."""
        done, told, life = 0, 0, self.life
        for piece in pieces:
            self.check_up(life)
            done += len(piece)
            if min(done, total) >= told + 2 * MIB or done >= total > told:
                told = done
                self._advance(task, progress=min(1.0, 100 * done // total / 100))
            yield piece

    def _total(self, vdis):
        return sum(self.content[vdi].virtual_size for vdi in vdis)

    # Out

    def names_of_export(self, vm):
        """The label and the description of its task."""
        uuid_ = self.record('VM', vm)['uuid']
        return ('Export of VM', uuid_) if self.version >= (23, 32) else (
            'Export of VM: ' + uuid_, '')

    @contextmanager
    def export_vm(self, vm, compress='none', metadata=False, preserve_power_state=False, task=None):
        """Give an iterator of the bytes of a VM's archive.

        Entering takes the VM's lock, or raises XapiError before any byte. Disks are attached to
        dom0 once ova.xml is out (so VDI_IN_USE comes in mid-stream). Whatever way it is left, lock
        and disks are free again and the task tells how it went.
        """
        operation = 'metadata_export' if metadata else 'export'
        patience = min(self.lock_wait, 120) if self.version >= (25, 20) else 0
        with ExitStack() as stack:
            task = stack.enter_context(self._following(task, *self.names_of_export(vm)))
            stack.enter_context(self.operation(vm, operation, task, patience))
            with self.lock:
                host = self.tables['host'][self.master]
                text, disks = ova.build(
                    self.tables, vm, self.next_number, ova.version_info(host, self.xapi_version),
                    preserve_power_state or metadata)
            pieces = self._archive(text, {} if metadata else disks, task)
            stream = Stream(archive.compressed(pieces, compress))
            stack.callback(stream.close)
            yield stream
            if not stream.complete:
                raise BrokenPipeError('the client left before the end')

    def _archive(self, text, disks, task):
        """The tar stream; each disk is attached for as long as it is read."""
        checksum = 'xxhash' if self.version >= (1, 170) else 'checksum'
        mtime = int(time.time()) if self.version >= (24, 13) else 0
        empty = b''.join(archive.xva(text, [], checksum, mtime=mtime))
        yield empty[:-2 * archive.SECTOR]
        yield from self._watched(self._archived(disks, task, checksum), task,
                                 lambda: self._total(disks))
        yield empty[-2 * archive.SECTOR:]

    def _archived(self, disks, task, checksum):
        for vdi, directory in sorted(disks.items(), key=lambda disk: disk[1]):
            keep_alive = {(directory, number) for number in self.keep_alive_chunks}
            with self._attached(vdi, 'RO', task, plug_of=task):
                image = self._readable(vdi, 'INTERNAL_ERROR',
                                       'Unix.Unix_error(Unix.EIO, "read", "")')
                yield from archive.xva_disk(directory, image, checksum, keep_alive)

    def _readable(self, vdi, *error):
        """What a disk holds; reading it fails so where storage does (`storage_faults`)."""
        image = self.content[vdi].clone()
        bad, read = self.storage_faults.get('read'), image.chunk

        def chunk(index):
            if index * MIB >= bad:
                raise self.error(*error)
            return read(index)
        if bad is not None:
            image.chunk = chunk
        return image

    @contextmanager
    def export_vdi(self, vdi, format='raw', task=None, base=None):
        """Give an iterator of the bytes of a disk's image: 'raw' or 'vhd'.

        Entering only looks for the disk; it is attached when the first piece is asked for.
        """
        self.record('VDI', vdi)
        with ExitStack() as stack:
            task = stack.enter_context(self._following(task, 'VDI export'))
            if format == 'qcow2' and self.version >= (25, 33):      # its tool is not installed
                with self._attached(vdi, 'RO', task):
                    yield Stream(iter([b'']))
                return
            if format.lower() not in ('raw', 'vhd'):
                raise self.error('INTERNAL_ERROR', 'Unknown format ' + format)
            if base:
                raise self.error('INTERNAL_ERROR',
                                 'Failure("Cannot compute differences on non-VHD images")')
            stream = Stream(self._image(vdi, format.lower(), task, stack))
            stack.callback(stream.close)
            yield stream
            if not stream.complete:
                raise BrokenPipeError('the client left before the end')

    def _image(self, vdi, format, task, stack):
        if format == 'vhd' and self.content[vdi].virtual_size > LARGEST_VHD_EXPORT:
            raise self.error('VDI_TOO_LARGE', vdi, LARGEST_VHD_EXPORT)
        stack.enter_context(self._attached(vdi, 'RO', task))
        image = self._readable(vdi, 'VDI_IO_ERROR', 'Device I/O errors')
        if format == 'raw':
            pieces = archive.raw_stream(image)
        else:
            pieces = self._whole_blocks(image, self.record('VDI', vdi)['uuid'])
        try:        # of a raw one the progress is 0 until the end (recorded from xapi 26.17.0)
            yield from pieces if format == 'raw' else self._in_percent(
                pieces, task, image.virtual_size)
            self._advance(task, progress=1.0)
        except ValueError as error:
            raise self.error('VDI_IO_ERROR', 'Device I/O errors: %s' % error)

    def _whole_blocks(self, image, uuid_):
        """A VHD image, whose size is one of whole blocks. Where the disk's is not and it has data
        in the last of them, vhd-tool waits for ever for what lacks there, and heeds nobody (xapi:
        libs/vhd: f.ml, vhd_from_raw; vhd-tool: channels.ml, direct_copy)."""
        size = image.virtual_size + -image.virtual_size % archive.VHD_BLOCK
        whole = image if size == image.virtual_size else self._fitted(image, size)
        pieces = archive.vhd_stream(whole, uuid_, int(time.time()) - SECONDS_TO_2000)
        held = next(pieces)
        for piece in pieces:
            yield held
            held = piece
        last = size // archive.CHUNK - 2
        if size != image.virtual_size and any(index >= last for index, _ in image.chunks()):
            self.sleep(None)
        yield held

    def dump_database(self):
        with self.lock:
            self.check_up()
            return dump(self.tables, self.generation)

    # In

    def import_vdi(self, vdi, source, format='raw', task=None, sized=True):
        """Fill a disk from an image; XapiError (VDI_IO_ERROR) leaves its content as it was.

        sized: the sender tells the length of what it sends. Without that, a VHD image is written,
        and refused all the same (recorded from xapi 25.6.0 to 26.17.0).
        """
        size = int(self.record('VDI', vdi)['virtual_size'])
        with self._following(task, 'VDI import') as task:
            if format.lower() not in ('raw', 'vhd'):
                raise self.error('INTERNAL_ERROR', 'Unknown format ' + format)
            with self._attached(vdi, 'RW', task), self._reading():
                source = self._in_percent(archive.pieces_of(source), task, size)
                if format.lower() == 'raw':
                    image = archive.read_raw(source, size)
                else:
                    image = self._fitted(archive.read_vhd(source), size)
                self._advance(task, progress=1.0)
            self.content[vdi] = image
            if format.lower() == 'vhd' and not sized:
                raise self.error('VDI_IO_ERROR', 'Device I/O errors')
            self.finish_task(task, 'success', '<value>%s</value>' % vdi)

    @staticmethod
    def _fitted(image, size):
        if image.virtual_size > size:
            raise archive.ArchiveError(['VDI_IO_ERROR', 'Device I/O errors'],
                                       'the image is larger than the disk')
        fitted = archive.Image(size)
        for index, piece in image.chunks():
            fitted.write(index * archive.CHUNK, piece)
        return fitted

    @contextmanager
    def _reading(self):
        """An unreadable archive becomes the error that xapi answers."""
        try:
            yield
        except archive.ArchiveError as error:
            raise self.error(*error.details)

    def import_vm(self, source, sr=None, preserve=False, force=False, metadata=False, task=None):
        """Bring in the VMs of an archive and return their refs.

        sr        where the disks go (default: the pool's default SR)
        preserve  keep uuids and MAC addresses; refused while a VM is in the way
        force     overlook wrong checksums, replace a halted VM of the same uuid, and leave what
                  was made when it fails
        metadata  the archive has no disks, and those it speaks of must be here
        Raises XapiError, after removing all that was made; Down, if the daemon dies, which leaves a
        VM whose disks are not filled.
        """
        sr = sr or self.tables['pool'][self.pool_ref]['default_SR']
        self.record('SR', sr)
        with self._following(task, 'VM import') as task:
            work = _Import(self, sr, preserve, force, metadata, task)
            try:
                with self._reading():
                    read = archive.read_xva(
                        source, work.begin, force, work.attached,
                        lambda blocks: self._watched(self._written(blocks), task, work.total))
                vms = work.end(read.disks)
            except BaseException:
                if self.life == work.life:
                    work.undo(keep=force)
                raise
            array = ''.join('<value>%s</value>' % vm for vm in vms)
            self.finish_task(task, 'success',
                             '<value><array><data>%s</data></array></value>' % array)
            return vms


class _Import:
    """One import: `begin` with ova.xml makes the records, `end` gives the disks their bytes."""

    def __init__(self, pool, sr, preserve, force, metadata, task):
        self.pool = pool
        self.sr = sr
        self.preserve = preserve
        self.force = force
        self.metadata = metadata
        self.task = task
        self.life = pool.life
        self.here = {}          # id in the archive -> ref in this pool
        self.made = []          # (class, ref), in the order of making
        self.vms = []

    def begin(self, text):
        contents = ova.parse(text)
        pool = self.pool
        if not ova.compatible(contents.version, pool.xapi_version):
            raise pool.error('IMPORT_INCOMPATIBLE_VERSION')
        with pool.lock:
            for vm in contents.of('VM'):
                self.check(vm.record)
            for vdi in contents.of('VDI'):
                self.here[vdi.id] = self.find_or_make_vdi(contents, vdi)
            for network in contents.of('network'):
                self.here[network.id] = self.find_or_make_network(network.record)
            self.metrics = {each.id: {'start_time': each.record['start_time']}
                            for each in contents.of('VM_metrics')}
            for cls, make in (('VM', self.make_vm), ('VBD', self.make_vbd),
                              ('VIF', self.make_vif), ('VTPM', self.make_vtpm)):
                for thing in contents.of(cls):
                    self.here[thing.id] = make(thing.record)
            pool._advance(self.task, allowed_operations=['cancel'],
                          other_config={'object_creation': 'complete'})
        return {} if self.metadata else contents.disks

    def total(self):
        """How many bytes the disks have, once they are known."""
        return sum(int(self.pool.tables['VDI'][ref]['virtual_size'])
                   for cls, ref in list(self.made) if cls == 'VDI' and ref in self.pool.tables[cls])

    def attached(self, directory):
        """A context in which a disk's bytes are read."""
        return self.pool._attached(self.here[directory], 'RW', self.task)

    def end(self, disks):
        """Store the disks' bytes and release the VMs; their refs."""
        pool = self.pool
        with pool.lock:
            pool.check_up(self.life)
            for identity, image in disks.items():
                pool.content[self.here[identity]] = image
            for vm in self.vms:
                pool.put('VM', vm, current_operations={})
                pool.settle(vm)
        return self.vms

    def undo(self, keep):
        """Remove what was made (or keep it, but without the mark of an import)."""
        pool = self.pool
        with pool.lock, pool.subtask('VM.import (cleanup)') as task:
            pool.put('task', task, allowed_operations=[])
            for vm in self.vms:
                if vm in pool.tables['VM']:
                    pool.put('VM', vm, current_operations={})
            for cls, ref in [] if keep else reversed(self.made):
                if ref not in pool.tables[cls]:
                    continue
                if cls == 'VDI':
                    with suppress(pool.failure), pool._vdi_operation(ref, 'destroy', parent=task):
                        pool.ask_storage('delete')
                        pool.drop_vdi(ref)
                else:
                    pool.delete(cls, ref)

    def note(self, cls, ref):
        self.made.append((cls, ref))
        self.pool.step()

    def check(self, record):
        """What stands in the way of keeping uuid and MAC seed. Raises XapiError."""
        if not self.preserve:
            return
        pool, seed = self.pool, record['other_config'].get('mac_seed')
        for ref, other in list(pool.tables['VM'].items()):
            if other['uuid'] == record['uuid']:
                self.replace(ref, other, record)
            elif seed and not other['is_a_snapshot'] and (
                    other['other_config'].get('mac_seed') == seed):
                raise pool.error('DUPLICATE_MAC_SEED', seed)

    def replace(self, ref, existing, record):
        if existing['power_state'] != 'Halted':
            raise self.pool.error('VM_BAD_POWER_STATE', ref, 'Halted', existing['power_state'])
        if not self.force and int(existing['version']) >= int(record['version']):
            raise self.pool.error('VM_TO_IMPORT_IS_NOT_NEWER_VERSION', ref, existing['version'],
                                  record['version'])
        self.pool.call('VM.destroy', ref)

    def find_or_make_vdi(self, contents, vdi):
        """ISO images are looked up by location, else left out; so are the disks of metadata."""
        record, pool = vdi.record, self.pool
        if vdi.id in contents.disks and not self.metadata:
            fields = dict(pool.given('VDI', record), on_boot=record['on_boot'])
            del fields['SR']
            if pool.tables['SR'][self.sr]['content_type'] == 'iso':
                raise pool.error('SR_OPERATION_NOT_SUPPORTED', self.sr)
            pool.check_size(self.sr, int(record['virtual_size']), fields['sm_config'])
            fields['sm_config'] = dict(fields['sm_config'], import_task=self.task)
            fields['other_config'] = {key: value for key, value in fields['other_config'].items()
                                      if key != 'content_id'}
            with pool.subtask('VDI.create'):
                ref = pool.make_vdi(self.sr, int(fields.pop('virtual_size')), **fields)
            self.note('VDI', ref)
            return ref
        is_iso = vdi.id not in contents.disks
        for ref, other in pool.tables['VDI'].items():
            home = pool.tables['SR'][other['SR']]
            if (other['location'], home['content_type'] == 'iso') == (record['location'], is_iso):
                return ref
        if is_iso:
            return NULL
        raise pool.error('VDI_LOCATION_MISSING', self.sr, record['location'])

    def find_or_make_network(self, record):
        for field in 'name_label', 'bridge':
            for ref, other in self.pool.tables['network'].items():
                if other[field] == record[field]:
                    return ref
        fields = {field: record[field] for field in (
            'name_label', 'name_description', 'MTU', 'bridge')}
        fields['other_config'] = dict(record['other_config'], import_task=self.task)
        ref = self.pool.call('network.create', fields)
        self.note('network', ref)
        return ref

    def make_vm(self, record):
        pool = self.pool
        fields = {field: value for field, value in record.items() if field in TEMPLATES['VM']}
        metrics = pool.new('VM_metrics', **self.metrics.get(record['metrics'], {}))
        self.made.append(('VM_metrics', metrics))      # one object with the VM, as it were
        fields.update(dict(
            NEW_VM, metrics=metrics, platform=dict(
                {'device-model': 'qemu-upstream-compat'}, **record['platform']),
            VTPMs=[], VGPUs=[], groups=[], affinity=NULL, parent=NULL,
            snapshot_of=NULL, suspend_VDI=self.here.get(record['suspend_VDI'], NULL),
            suspend_SR=NULL, allowed_operations=[], current_operations={self.task: 'import'},
            snapshot_time=DateTime(getattr(record['snapshot_time'], 'value', EPOCH.value))))
        if fields['power_state'] != 'Suspended' or fields['suspend_VDI'] == NULL:
            fields['power_state'] = 'Halted'
        config = dict({'import_task': self.task}, **record['other_config'])
        if self.preserve:
            fields['uuid'] = record['uuid']
        else:
            config['mac_seed'] = str(uuid.uuid4())
        fields['other_config'] = config
        ref = pool.new('VM', **fields)
        self.note('VM', ref)
        self.vms.append(ref)
        return ref

    def make_vbd(self, record):
        vdi = self.here.get(record['VDI'], NULL)
        ref = self.pool.new('VBD', **dict(
            self.pool.given('VBD', record), uuid=record['uuid'] if self.preserve else '',
            VM=self.here[record['VM']], VDI=vdi, empty=vdi == NULL))
        self.note('VBD', ref)
        return ref

    def make_vtpm(self, record):
        ref = self.pool.new('VTPM', VM=self.here[record["vTPM'_VM"]])
        self.note('VTPM', ref)
        return ref

    def make_vif(self, record):
        fields = dict(record, VM=self.here[record['VM']], network=self.here[record['network']])
        if not self.preserve:
            fields.update(MAC='', MAC_autogenerated=True)
        ref = self.pool.call('VIF.create', fields)
        if self.preserve:
            self.pool.put('VIF', ref, uuid=record['uuid'])
        self.note('VIF', ref)
        return ref
