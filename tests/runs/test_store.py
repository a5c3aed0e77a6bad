"""The store: manifests, the order of backups, deletion, locks, and the share that all lies on."""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest.mock

import VmBackup
from tests import ROOT
from tests.faults import test_disk as test_faults_disk
from tests.tools.support import HOST, LIMIT, PoolCase, hanging, store_at

DAY = 'backup-2019-01-%02d-(00:00:00)'
NAME = 'backup-%Y-%m-%d-(%H:%M:%S)'
RUBBISH = (b'', b'[]', b'{}', b'null', b'7', b'\xff', b'[' * 100000, b'{"number": 1}',
           b'{"number": "x", "started": "2030-01-01T00:00:00+00:00"}',
           b'{"number": 9, "started": "the day before yesterday"}',
           b'{"number": 1e400, "started": "2030-01-01T00:00:00+00:00"}')
FLOCK = {'x86_64': 73, 'aarch64': 32}      # the number of that system call

# What we write into a dated directory, the markers last; what is dropped there, and what may look
# like either and is a person's.
MARKED = ('vm-metadata.xml', 'RESTORE.txt', 'success', 'success_compress')
DROPPED = '''@eaDir/x/y #recycle/x.xva @Recycle/x .recycle/x .DS_Store ._db.xva .AppleDouble/x
    Thumbs.db thumbs.DB desktop.ini .nfs00000000000000f500000001 .fuse_hidden0000000500000001
    .smbdeleteAAA1 .Trash-1000/files/x .directory
    DISK-xvda/@eaDir/x VIFs/.DS_Store'''.split()
PERSONS = '''notes.txt mine/web.xva mine/.DS_Store other.xva db.xva.sha256 DISK-old.vhd VIFs.txt
    DISK-xvda/notes.txt DISK-xvda/db.xva VIFs/x Thumbs.db.bak success_story @eaDirs/x
    my.json/success'''.split()

# What a program does before it becomes the script.
AS_NO_MORE_THAN_THE_OWNER = (
    'from tests.tools.processes import drop_rights\ndrop_rights(1)\n')
AS_ANYBODY = AS_NO_MORE_THAN_THE_OWNER.replace('(1)', '(1, 2)')
WITHOUT_LOCKS = '''
# flock() fails, with ENOLCK as on NFS without a lock daemon: a filter of system calls (seccomp)
import ctypes, struct
libc = ctypes.CDLL(None)
program = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in (
    (0x20, 0, 0, 0),                  # load the number of the call
    (0x15, 0, 1, %d),                 # if it is flock
    (0x06, 0, 0, 0x00050000 | %d),    # fail
    (0x06, 0, 0, 0x7fff0000))))       # else go on
head = ctypes.create_string_buffer(struct.pack('HP', 4, ctypes.addressof(program)))
libc.prctl(38, 1, 0, 0, 0)            # PR_SET_NO_NEW_PRIVS
libc.prctl(22, 2, head, 0, 0)         # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
'''
# A lock that somebody else has is EACCES, as on CIFS and old NFS; one of a file of that name fails
# otherwise.
FORBIDDEN = '''
import errno, fcntl, os
real = fcntl.flock
def flock(handle, how):
    if os.readlink('/proc/self/fd/%%d' %% handle).endswith(%r):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    try:
        return real(handle, how)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
fcntl.flock = flock
'''
BESIDE_A_MOUNT = '''
# a file system of its own is mounted in one place; what lies in it has to live on
import os, sys
os.execvp(%r, %r + ['sh', '-c', 'mount -t tmpfs tmpfs "$0" && mkdir "$0/BACKUPS" && '
                    '"$@"; status=$?; test -d "$0/BACKUPS" && exit $status', %r,
                    sys.executable, %r] + sys.argv[1:])
'''


class StoreCase(PoolCase):
    pool_description = {'name': 'the pool', 'vms': [
        {'name': 'web', 'power_state': 'Running', 'disks': ['128 KiB', '64 KiB']},
        {'name': 'db', 'disks': ['128 KiB', {'size': '64 KiB', 'fill': 0}], 'ran': True}]}

    def made(self, vm, name, number=0, started='2019-01-01T00:00:00+00:00', size=0):
        """A good backup of earlier, with a manifest if it has a number; its path."""
        path = self.old_backup(vm, name, 'success', vm + '.xva')
        os.truncate(os.path.join(path, vm + '.xva'), size)
        if number:
            self.put_file(os.path.join(path, 'backup.json'),
                          json.dumps({'number': number, 'started': started}))
        return path

    def numbers(self, vm):
        """The number of each backup of a VM, by the name of its directory; 0 for 3.25's."""
        return {os.path.basename(backup.path): backup.manifest.number
                for backup in self.history(vm).completed()}

    def history(self, vm):
        return store_at(self.backups, NAME).history(vm)

    def through(self, text):
        """From now on the script is started by a program that ends with `start`."""
        self.script = self.put_file('through.py', text)

    def mount(self, place):
        """From now on a small file system, which nobody else sees, is mounted in a place."""
        if test_faults_disk.missing():
            self.skipTest(test_faults_disk.missing())
        words = test_faults_disk.unshare()
        self.through(BESIDE_A_MOUNT % (words[0], words, place, self.script))


class Manifests(StoreCase):
    """backup.json: what a backup tells of itself."""

    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))

    def disk(self, vm, device):
        """What a manifest tells of a VM's disk, as xe knows it."""
        uuid = self.disk_of(vm, device)
        words = [self.xe('vdi-param-get', 'uuid=' + uuid, 'param-name=' + name).strip()
                 for name in ('name-label', 'virtual-size')]
        return {'device': 'xvd' + 'ab'[int(device)], 'uuid': uuid, 'name': words[0],
                'virtual_size': int(words[1])}

    def times(self, manifest):
        """Take the times out of a manifest; they have the offset of our zone."""
        times = []
        for key in ('started', 'finished'):
            text = manifest.pop(key)
            self.assertRegex(text, r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+05:30$')
            times.append(datetime.datetime.strptime(text[:-6], '%Y-%m-%dT%H:%M:%S').replace(
                tzinfo=self.zone).timestamp())
        return times

    def check_manifest(self, method, vm, *devices):
        """Back up a VM and compare every key with what the pool and the disk tell."""
        begun = int(time.time())
        done = self.ends(0, '%s=%s' % (method, vm), TZ='XST-5:30')
        manifest, path = self.manifest(vm), self.dated(vm)[0]
        times = [begun] + self.times(manifest) + [time.time()]
        self.assertEqual(sorted(times), times)
        files = {os.path.relpath(os.path.join(directory, name), path):
                 os.stat(os.path.join(directory, name)).st_size
                 for directory, _, names in os.walk(path) for name in names}
        self.assertEqual((True, 0), (files.pop('backup.json') > 0, files.pop('success')))
        self.assertEqual(method == 'vdi-export', manifest.pop('rate') > 0)
        host, = self.sim.pool.tables['host'].values()
        self.check_verified(manifest.pop('verified'), method, path, vm)
        made = {'vm-export': 'vm-snapshot', 'vdi-export': 'vdi-snapshot'}[method]
        file = {'file': vm + '.raw'} if method == 'vdi-export' else {}
        self.assertIn('snap-uuid: ' + manifest.pop('snapshot'), done.lines, made)
        left_out = [dict(self.disk(vm, device), why='vdi_disks=boot')
                    for device in '01' if device not in devices]
        self.assertEqual({
            'schema': 1, 'version': VmBackup.VERSION, 'method': method, 'number': 1,
            'vm': {'name': vm, 'uuid': self.uuid_of(vm), 'tags': []}, 'left_out': left_out,
            'earlier': [],
            'host': HOST,
            'pool': {'name': 'the pool', 'uuid': self.xe('pool-list', '--minimal').strip()},
            'xapi': host['software_version']['xapi'], 'files': files, 'warnings': [],
            'disks': [dict(self.disk(vm, device), **file) for device in devices]}, manifest)
        return files

    def check_verified(self, verified, method, path, vm):
        """What a manifest tells of the verification: digests that sha256sum would tell too, but for
        an archive, of which they leave out the disks' data."""
        self.assertRegex(verified.pop('when'), r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+05:30$')
        name = vm + ('.xva' if method == 'vm-export' else '.raw')
        digests = verified['digests']
        for each in {'vm-metadata.xml', name} - {vm + '.xva'}:
            with open(os.path.join(path, each), 'rb') as stream:
                self.assertEqual(hashlib.sha256(stream.read()).hexdigest(), digests[each])
        self.assertRegex(digests[name], '^[0-9a-f]{64}$')
        proved = 'checksums' if method == 'vm-export' else 'structure'
        self.assertEqual((proved, {name, 'vm-metadata.xml'}), (verified['proved'], set(digests)))

    def test_every_key_of_a_vm_export_is_right(self):
        files = self.check_manifest('vm-export', 'web', '0', '1')
        self.assertGreater(files['web.xva'], 128 << 10)
        self.assertIn('DISK-xvdb/vdi.cfg', files)

    def test_every_key_of_a_vdi_export_is_right(self):
        self.assertEqual(128 << 10, self.check_manifest('vdi-export', 'db', '0')['db.raw'])


class Belongings(StoreCase):
    """What of the files in a dated directory is the backup."""

    def test_the_images_of_a_backup_are_those_that_are_named_so(self):
        apple = '._db.xva'
        manifest = {'files': {'db.raw.gz': 7, apple: 9}}
        disks = {'disks': [{'file': 'DISK-xvda.vhd'}, {'file': 'DISK-xvdb.vhd.zst'}]}
        for what, document, files, wanted in (
                ('a manifest', manifest, 'db.raw.gz db.xva', 'db.raw.gz'),
                ('its twin, unpacked', manifest, 'db.raw db.raw.gz', 'db.raw.gz'),
                ('unpacked by a person', manifest, 'db.raw x.raw', 'db.raw'),
                ('packed by a person', disks, 'DISK-xvda.vhd.gz DISK-xvdb.vhd.zst DISK-xvdc.vhd',
                 'DISK-xvda.vhd.gz DISK-xvdb.vhd.zst'),
                ('a way out', {'files': {'../x.xva': 1, '/db.xva': 1}}, 'x.xva db.xva', ''),
                ('no manifest', {}, 'db.xva.gz web.xva.gz x.raw', 'db.xva.gz'),
                ('a spoilt one', [], 'DISK-xvda.raw x.raw', 'DISK-xvda.raw'),
                ('moved, with vm.cfg', {}, 'old.xva x.xva', 'old.xva'),
                ('moved', {}, 'x.xva y.raw', 'x.xva y.raw')):
            with self.subTest(what):
                path = self.old_backup('db', DAY % 1, 'success', apple, *files.split())
                if document != {}:
                    self.put_file(path + '/backup.json', json.dumps(document))
                if 'old.xva' in files:
                    self.put_file(path + '/vm.cfg', 'name_label=old\n')
                backup = VmBackup.read_backup(path, None)
                self.assertEqual(wanted.split(), backup.archives())
                self.assertNotIn(apple, backup.manifest.files)
                shutil.rmtree(path)


class Order(StoreCase):
    def rotated(self, keep):
        """The names of db's backups after a run that keeps so many, but for the new one."""
        before = set(self.numbers('db'))
        self.ends(0, 'vm-export=db:%d' % keep)
        now = set(self.numbers('db'))
        self.assertEqual((keep, 1), (len(now), len(now - before)), now)
        return sorted(now & before)

    def test_numbers_decide_and_names_where_there_are_none(self):
        year = 'backup-%d-06-01-(00:00:00)'
        for what, backups, keep, kept in (
                ('names go backwards', [(DAY % 3, 1), (DAY % 2, 2), (DAY % 1, 3)], 2, [DAY % 1]),
                ('times go backwards', [
                    (DAY % number, number, '20%d-01-01T00:00:00+00:00' % (40 - number))
                    for number in (1, 2, 3)], 3, [DAY % 2, DAY % 3]),
                ('the repeated hour at the end of summer time', [
                    ('backup-2019-10-27-(02:50:00)', 1, '2019-10-27T02:50:00+02:00'),
                    ('backup-2019-10-27-(02:10:00)', 2, '2019-10-27T02:10:00+01:00')], 2,
                 ['backup-2019-10-27-(02:10:00)']),
                ('those of 3.25 carry later dates than the new one', [(DAY % 1, 0), (
                    'backup-2099-01-01-(00:00:00)', 0)], 1, []),
                ('those of 3.25 stand among ours', [
                    (year % 2018, 0), (year % 2019, 1, '2019-06-01T00:00:00+00:00'),
                    (year % 2020, 0), (year % 2021, 2, '2021-06-01T00:00:00+00:00')], 3,
                 [year % 2020, year % 2021])):
            with self.subTest(what):
                for backup in backups:
                    self.made('db', *backup)
                self.assertEqual([backup[1] for backup in backups],
                                 [each.manifest.number for each in self.history('db').completed()])
                self.assertEqual(kept, self.rotated(keep))
                shutil.rmtree(os.path.join(self.backups, 'db'))

    def test_a_backup_with_a_spoilt_manifest_counts_as_one_of_3_25(self):
        manifest = os.path.join(self.made('db', DAY % 1), 'backup.json')
        self.made('db', DAY % 2, 1, '2019-01-02T00:00:00+00:00')
        huge = b'{"number": 9, %s "started": "2030-01-01T00:00:00+00:00"}' % (
            b' ' * VmBackup.LONGEST_RECORD)
        for spoil in RUBBISH + (huge, os.mkfifo, os.mkdir):
            with self.subTest(str(spoil)[:60]):
                if callable(spoil):
                    os.unlink(manifest)
                    spoil(manifest)
                else:
                    self.put_file(manifest, spoil)
                self.assertEqual([(DAY % 1, 0), (DAY % 2, 1)], list(self.numbers('db').items()))

    def test_a_copy_of_a_backup_harms_nothing(self):
        self.ends(0, 'vm-export=db')
        shutil.copytree(self.dated('db')[0], os.path.join(self.backups, 'db', DAY % 1))
        shutil.copytree(self.dated('db')[0], os.path.join(
            self.backups, 'db', 'backup-2038-01-01-(00:00:00)'))
        self.rotated(3)
        self.assertEqual([1, 1, 2], sorted(self.numbers('db').values()))
        self.rotated(1)
        self.assertEqual([3], list(self.numbers('db').values()))

    def test_the_new_backup_is_kept_where_names_of_the_next_seconds_are_taken(self):
        now = datetime.datetime.now()
        for number in range(1, 31):
            when = now + datetime.timedelta(seconds=number)
            self.made('db', when.strftime(NAME), number, VmBackup.iso(now))
        self.rotated(1)
        self.assertEqual([31], list(self.numbers('db').values()))


class Deletion(StoreCase):
    def precious(self, *parts):
        """Somebody's directory with a file in it; the directory's path."""
        path = os.path.join(self.directory, *parts)
        os.makedirs(path)
        self.put_file(os.path.join(path, 'notes.txt'), 'precious')
        self.addCleanup(self.assert_precious, path)
        return path

    def assert_precious(self, path):
        self.assertEqual('precious', self.read(os.path.join(path, 'notes.txt')))

    def needs_heeded_modes(self):
        """Have the script, also as root, heed the modes of directories; else skip the test."""
        held = tempfile.mkdtemp(dir=self.directory)
        os.chmod(held, 0o500)
        probe = AS_NO_MORE_THAN_THE_OWNER + 'import os\nos.mkdir(%r)'
        if not subprocess.call([sys.executable, '-c', probe % os.path.join(held, 'x')],
                               cwd=ROOT, stderr=subprocess.DEVNULL):
            self.skipTest('this root may not drop a capability')
        self.prelude = AS_NO_MORE_THAN_THE_OWNER

    def test_one_that_fails_is_a_warning_and_is_finished_by_the_next_run_of_any_vm(self):
        self.needs_heeded_modes()
        held = os.path.join(self.made('db', DAY % 1), 'DISK-xvda')
        os.makedirs(held)
        self.put_file(held + '/vbd.cfg')
        self.made('db', DAY % 2)
        os.chmod(held, 0o500)
        done = self.ends(1, 'vm-export=db:1')
        self.assertIn('cannot delete %s: ' % os.path.dirname(held), done.output)
        self.assertIn('vm-export,end,WARNING db,elapse:0 size:0G', self.status())
        self.assertEqual([1], list(self.numbers('db').values()))
        held = os.path.join(self.backups, 'db', '.deleting-' + DAY % 1, 'DISK-xvda')
        done = self.ends(1, 'vm-export=web')
        self.assertIn('cannot delete ' + os.path.dirname(held), done.output)
        self.made('db', DAY % 3)
        done = self.command(2, 'prune', self.config('vm-export=db:1'))
        self.assertIn('ERROR %s: ' % os.path.dirname(held), done.output)
        self.assertIn('1 kept, 1 deleted', done.output)
        os.chmod(held, 0o700)
        self.ends(0, 'vm-export=web')
        self.assertFalse(os.path.lexists(os.path.dirname(held)))

    def test_what_a_run_began_to_delete_is_finished_and_what_looks_like_it_stays(self):
        half = self.made('old', '.deleting-' + DAY % 1)
        os.symlink(self.precious('elsewhere'), os.path.join(half, 'DISK-xvda'))
        self.precious('BACKUPS', 'old', '.deleting-notes')
        self.precious('BACKUPS', 'old', '.deleting-backup-2019-02-30-(00:00:00)')
        os.symlink(self.precious('linked'),
                   os.path.join(self.backups, 'old', '.deleting-' + DAY % 2))
        self.ends(0, 'vm-export=db')
        self.assertFalse(os.path.lexists(half))
        self.assertEqual(3, len(os.listdir(os.path.join(self.backups, 'old'))))

    def test_nothing_is_deleted_through_a_link_to_a_vms_directory(self):
        elsewhere = [self.made('elsewhere', name) for name in (
            DAY % 1, DAY % 2, '.deleting-' + DAY % 3)]
        elsewhere.append(self.old_backup('elsewhere', DAY % 4, 'vm.cfg'))
        os.rename(os.path.join(self.backups, 'elsewhere'), self.at('db'))
        os.symlink(self.at('db'), os.path.join(self.backups, 'db'))
        done = self.ends(2, 'vm-export=db:1')
        self.assertIn('BACKUP-FAIL db: cannot access %s/db: is a symbolic link' % self.backups,
                      done.output)
        self.assertEqual(sorted(map(os.path.basename, elsewhere)),
                         sorted(os.listdir(self.at('db'))))

    def test_links_in_a_backup_are_deleted_and_not_what_they_lead_to(self):
        old = self.made('db', DAY % 1)
        os.symlink(self.precious('elsewhere'), os.path.join(old, 'DISK-xvda'))
        os.symlink(self.at('elsewhere', 'notes.txt'), os.path.join(old, 'vm.cfg'))
        self.ends(0, 'vm-export=db:1')
        self.assertFalse(os.path.lexists(old))

    def filled(self, vm, name, marked):
        """A dated directory with what we write, what is dropped there, and what a person put
        there; its path, and what is a person's."""
        path = self.old_backup(vm, name, *MARKED[:None if marked else -2], vm + '.xva.gz',
                               vm + '.xva', vm + '.raw', 'DISK-xvdb.vhd', 'snapshot.json.0af.new')
        for each in ('DISK-xvda/vbd.cfg', 'VIFs/vif-0.cfg', *DROPPED, *PERSONS):
            os.makedirs(os.path.dirname(os.path.join(path, each)), exist_ok=True)
            self.put_file(os.path.join(path, each), b'\0\5\26\7Mac' if '._' in each else 'x')
        self.put_file(path + '/._notes', 'no magic')
        self.put_file(path + '/._empty')
        os.makedirs(path + '/._directory/x')
        os.mkdir(path + '/DISK-xvdc')
        for place, link in (('@eaDir/link', 'x'), ('.@__thumb', 'x'), ('vm.cfg', 'notes.txt'),
                            ('DISK-xvdd', ''), ('link.raw', 'notes.txt')):
            os.symlink(self.at('elsewhere', link), os.path.join(path, place))
        self.put_file(path + '/backup.json', json.dumps({'files': {
            name: 1 for name in (vm + '.xva.gz', 'DISK-xvdb.vhd.gz', vm + '.raw', 'notes.txt',
                                 'mine/notes.raw', '../../../elsewhere/notes.txt')}}))
        return path, sorted((*PERSONS, '._notes', '._directory/x', 'link.raw'))

    def in_it(self, path):
        """The files, links and empty directories in a directory."""
        return sorted(os.path.relpath(os.path.join(directory, name), path)
                      for directory, names, files in os.walk(path)
                      for name in files + [each for each in names if (
                          os.path.islink(os.path.join(directory, each)) or
                          not os.listdir(os.path.join(directory, each)))])

    def test_what_was_dropped_goes_with_a_backup_and_what_a_person_put_there_stays(self):
        self.precious('elsewhere', 'x')
        for vm in ('db', 'web'):
            self.made(vm, DAY % 7)
        failed, persons = self.filled('db', DAY % 8, False)
        good, _ = self.filled('web', DAY % 1, True)
        half, _ = self.filled('web', '.deleting-' + DAY % 2, True)
        done = self.ends(0, 'vm-export=db:2', 'vm-export=web:2')
        left = [failed, good, half.replace('.deleting-', '')]
        for path in left:
            self.assertEqual(persons, self.in_it(path))
            self.assertIn('***NOTE - %s stays, with what this program did not make: ' % path,
                          done.output)
        done = self.ends(0, 'vm-export=db:2', 'vm-export=web:1')
        self.assertNotIn('this program did not make', done.output)
        self.assertNotIn('**unsuccessful** backup ' + failed, done.output)
        self.assertIn('1 kept, 0 deleted', self.command(
            0, 'prune', self.config('vm-export=web', max_backups=1)).output)
        listed = json.loads(self.command(0, 'list', self.backups, 'json').output)
        self.assertEqual({(path, 'remains', None, len(PERSONS) + 8) for path in left}, {
            (each['path'], each['outcome'], each['method'], each['size'])
            for vm in listed['vms'] for each in vm['backups'] if each['outcome'] != 'good'})
        self.assertIn(' remains ', self.command(0, 'list', self.backups).output)
        self.command(0, 'verify', self.backups, 'backups=all')
        self.assertEqual([persons] * 3, list(map(self.in_it, left)))

    def test_a_failures_record_that_is_empty_or_has_only_what_was_dropped_goes(self):
        paths = [self.old_backup('db', DAY % day) for day in (1, 2)]
        os.mkdir(paths[1] + '/@eaDir')
        self.put_file(paths[1] + '/@eaDir/x')
        self.ends(0, 'vm-export=db')
        self.assertEqual(1, len(self.dated('db')))

    def test_what_is_dropped_beside_backups_is_no_directory_of_anybodys(self):
        self.made('db', DAY % 1)
        self.made('#recycle', DAY % 1)                 # a VM may be called so
        for place in ('@eaDir', '$RECYCLE.BIN', 'db/@eaDir', 'db/#recycle'):
            os.makedirs(os.path.join(self.backups, place, 'x'))
        listed = json.loads(self.command(0, 'list', self.backups, 'json').output)
        self.assertEqual([('#recycle', 1), ('db', 1)],
                         [(vm['name'], len(vm['backups'])) for vm in listed['vms']])
        self.assertEqual([], listed['foreign'])

    def test_what_is_dropped_or_put_into_a_directory_that_is_being_written_does_not_matter(self):
        drop = ('d="${1%/*}"; mkdir "$d/@eaDir" "$d/DISK-xvda/@eaDir" && cp "$1" "$d/._db.xva" && '
                'cp "$1" "$d/other.xva" && : > "$d/._.xva" && chmod 0 "$d/@eaDir"')
        self.prelude = AS_NO_MORE_THAN_THE_OWNER
        for line in ('vm-export=db', 'vdi-export=db'):
            self.ends(0, line, VMBACKUP_XE=self.xe_that(drop))
            manifest, path = self.manifest('db'), self.dated('db')[-1]
            self.assertFalse([name for name in manifest['files']
                              if '@' in name or '._' in name or 'other' in name])
            self.put_file(os.path.join(path, VmBackup.PROTECTED))
            twin, = [name for name in manifest['files'] if name.startswith('db.')]
            self.put_file('%s/%s.gz' % (path, twin))
            done = self.command(0, 'verify', path)
            self.assertRegex(done.lines[0], '^good .*; also there: [.]_db.xva, %s.gz, other.xva$'
                             % twin)
            os.chmod(path + '/@eaDir', 0o700)

    def test_a_file_system_that_is_mounted_in_a_backup_or_half_of_one_is_not_entered(self):
        for vm, name, counted in (('db', DAY % 1, [0, 1]), ('old', '.deleting-' + DAY % 1, [1])):
            with self.subTest(vm):
                self.setUp()
                self.script = type(self).script
                place = os.path.join(self.made(vm, name), 'DISK-xvda')
                os.mkdir(place)
                self.mount(place)
                done = self.ends(1, 'vm-export=db:1')
                self.assertIn('another file system is mounted at ' + place, done.output)
                self.assertTrue(os.path.isdir(place))
                self.assertEqual(counted, sorted(self.numbers('db').values()))


class Locks(StoreCase):
    def hold(self, name):
        os.makedirs(os.path.join(self.backups, '.locks'), exist_ok=True)
        stream = open(os.path.join(self.backups, '.locks', name + '.lock'), 'w', encoding='ascii')
        self.addCleanup(stream.close)
        fcntl.flock(stream, fcntl.LOCK_EX)

    def test_one_that_is_held_elsewhere_may_answer_eacces(self):
        half = self.made('old', '.deleting-' + DAY % 1)
        for name in 'db', 'old':
            self.hold(name)
        self.prelude = FORBIDDEN % 'no such file'
        done = self.ends(2, 'vm-export=db', 'vm-export=web')
        self.assertNotIn('cannot lock', done.output)
        self.assertIn('ERROR vm-export VM-LOCKED db: locked by another run (see lock_wait)',
                      done.lines)
        self.assertIn('***NOTE - %s: locked by another run (see lock_wait)'
                      % os.path.dirname(half), done.lines)
        self.assertIn('ended - **ERRORS DETECTED** - S:1 W:0 E:1', done.output)
        self.assertLess({'db.lock', 'old.lock', 'web.lock'},
                        set(os.listdir(os.path.join(self.backups, '.locks'))))

    def test_one_that_fails_where_others_do_not_is_an_error_of_that_vm(self):
        for name, rules in (('db', ('vm-export=db', 'vm-export=web')),     # before one is known
                            ('web', ('vdi-export=db', 'vm-export=web'))):
            with self.subTest(name):
                self.prelude = FORBIDDEN % ('/%s.lock' % name)
                done = self.ends(2, *rules)
                self.assertIn(' %s: cannot lock %s/.locks/%s.lock: Input/output error'
                              % (name, self.backups, name), done.output)
                self.assertIn('S:1 W:0 E:1', done.output)

    def test_a_record_that_another_host_has_locked_is_not_taken_for_one_that_was_left(self):
        """On CIFS nobody else can read it, either."""
        self.put_file(self.backups + '/' + VmBackup.RESTORING.format('0' * 32), '{}')
        for error, left in ((PermissionError(errno.EACCES, 'x'), 0), (OSError(errno.EIO, 'x'), 1)):
            with unittest.mock.patch('VmBackup.load', side_effect=error):
                self.assertEqual(left, len(store_at(self.backups, NAME).leftovers([], 0)))

    def test_names_that_a_windows_server_takes_for_one_have_one_and_threads_wait_for_theirs(self):
        for prelude in ('', 'no locks'):
            with self.subTest(prelude), contextlib.ExitStack() as stack:
                stores = [store_at(self.backups, NAME) for _ in range(2)]
                for store in stores:
                    store.check()
                if prelude:
                    stack.enter_context(unittest.mock.patch(
                        'fcntl.flock', side_effect=OSError(errno.ENOLCK, 'No locks')))
                waiting, order = threading.Event(), []
                stack.enter_context(unittest.mock.patch.object(
                    VmBackup, 'check_signals', waiting.set))
                with stores[0].locked('db', 0):
                    def wait():
                        with stores[1].locked('db. .', 0):
                            order.append('second')
                    thread = threading.Thread(target=wait)
                    thread.start()
                    self.assertTrue(waiting.wait(LIMIT))
                    order.append('first')
                thread.join()
                self.assertEqual(['first', 'second'], order)
                self.assertEqual(['db.lock'], os.listdir(self.backups + '/.locks'))
        with stores[1].locked('...', 0):               # what is left is no name
            self.assertEqual({'db.lock', '.lock'}, set(os.listdir(self.backups + '/.locks')))

    def test_the_dump_of_the_pool_is_locked_too(self):
        self.hold('METADATA_' + HOST)
        done = self.ends(2, 'vm-export=db', pool_db_backup=1)
        self.assertIn('ERROR pool database not backed up: locked by another run '
                      '(see lock_wait)', done.lines)
        self.assertNotIn('pool-dump-database', self.verbs())
        self.assertIn('vmbackup.py,end,ERROR,S:1 W:0 E:1', self.status())

    def test_leftovers_that_another_run_is_at_work_on_are_left_to_it(self):
        half = self.made('old', '.deleting-' + DAY % 1)
        self.hold('old')
        done = self.ends(0, 'vm-export=db')
        self.assertIn('***NOTE - %s: locked by another run (see lock_wait)'
                      % os.path.dirname(half), done.lines)
        self.assertTrue(os.path.exists(half))


class NoLocks(StoreCase):
    def setUp(self):
        super().setUp()
        self.forbid_locks()

    def forbid_locks(self, number=errno.ENOLCK):
        """The script cannot lock; a test is skipped where that cannot be had."""
        if platform.machine() not in FLOCK:
            self.skipTest('the number of flock() on %s is not known here' % platform.machine())
        without = WITHOUT_LOCKS % (FLOCK[platform.machine()], number)
        probe = without + 'import fcntl\nfcntl.flock(0, fcntl.LOCK_SH)\n'
        if not subprocess.call([sys.executable, '-c', probe], stdin=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL):
            self.skipTest('no filter of system calls can be set here')
        self.prelude = without

    def left_behind(self, host, process):
        """A disk's snapshot, and its open record by such a run."""
        self.setUp()
        failed = self.old_backup('db', DAY % 1)
        self.record(failed, self.disk_of('db', '0'), host=host, process=process)
        uuid = self.xe('vdi-snapshot', 'uuid=' + self.disk_of('db', '0')).strip()
        return failed, uuid

    def test_it_is_told_once_and_the_run_goes_on(self):
        for number in errno.ENOLCK, errno.EACCES:
            self.forbid_locks(number)
            done = self.ends(0, 'vm-export=web', 'vm-export=db', pool_db_backup=1)
            notes = [line for line in done.lines if 'cannot lock' in line]
            self.assertEqual(1, len(notes), done.output)
            self.assertIn('***NOTE - backup_dir %s cannot lock (' % self.backups, notes[0])
            self.assertIn(os.strerror(number), notes[0])
        done = self.vmbackup('prune', self.config('vm-export=web', 'vm-export=db'))
        self.assertEqual(1, done.output.count(' cannot lock ('), done.output)

    def test_an_open_record_is_settled_only_if_its_run_was_on_this_host_and_died(self):
        child = subprocess.Popen(['true'])
        child.wait()
        for host, process, died in (
                ('elsewhere', '1 1', False), (HOST, VmBackup.process(str(os.getpid())), False),
                (HOST, '%d 1' % child.pid, True), (HOST, '%d 1' % os.getpid(), True)):
            with self.subTest(host, process=process):
                failed, uuid = self.left_behind(host, process)
                if not died:
                    self.before = self.contents()
                done = self.ends(0 if died else 1, 'vm-export=web')
                self.assertIn('removing the snapshot of an unfinished backup: ' + uuid if died else
                              'a snapshot of %s may be left in the pool: its run on %s may '
                              'go on, and backup_dir cannot lock' % (failed, host),
                              done.output)
                self.assert_clean()
                self.assertEqual(not died, os.path.exists(os.path.join(failed, 'snapshot.json')))

    def age(self, path, seconds):
        """As if nothing in a directory, or no file, had changed for so long."""
        for each in [path] + [os.path.join(path, name) for name in VmBackup.names_in(path)]:
            os.utime(each, (0, time.time() - seconds))

    def test_one_of_another_host_is_settled_when_pool_and_directory_have_been_quiet(self):
        """Its snapshot of a VM, or of a disk, is being exported, or between two exports, or not."""
        quiet = VmBackup.LONGEST_PAUSE + 9
        for kind, label in (('VM', 'RESTORE_db'), ('VDI', 'SNAP_db_db-0')):
            with self.subTest(kind):
                self.setUp()
                self.script = self.changed_script(SECOND_LOOK=0.05)
                tables = self.sim.pool.tables
                of = self.uuid_of('db') if kind == 'VM' else self.disk_of('db', '0')
                verb = kind.lower()
                uuid = self.xe(verb + '-snapshot', 'uuid=' + of,
                               *['new-name-label=' + label] * (kind == 'VM')).strip()
                self.xe(verb + '-param-set', 'uuid=' + uuid, 'name-label=' + label,
                        'other-config:vmbackup_snapshot=' + uuid)
                ref = self.sim.pool.ref_of(kind, uuid)
                used = tables['VM'][ref] if kind == 'VM' else tables['VBD'][self.sim.pool.call(
                    'VBD.create', {'VM': tables['host'][self.sim.pool.master]['control_domain'],
                                   'VDI': ref, 'userdevice': 'autodetect', 'mode': 'RO',
                                   'type': 'Disk', 'other_config': {}})]
                failed = self.old_backup('db', DAY % 1)
                self.record(failed, self.disk_of('db', '0'), known=False, host='elsewhere',
                            kind=kind, of=of, ref=self.sim.pool.ref_of(kind, of), label=label,
                            uuid=uuid)
                before = self.contents()
                for operation, seconds in (('export', 0), ('export', quiet), ('', quiet - 60)):
                    used['current_operations'] = {'OpaqueRef:1': operation} if operation else {}
                    self.age(failed, seconds)
                    done = self.ends(1, 'vm-export=db')
                    self.assertIn('a snapshot of %s may be left in the pool: its run on elsewhere '
                                  'may go on, and backup_dir cannot lock' % failed,
                                  done.output)
                    self.assertIn('***NOTE - not deleted: %s may be a backup that another run is '
                                  'making, as backup_dir cannot lock' % failed, done.lines)
                    self.assertNotIn('cannot delete', done.output)
                    self.assertEqual(before, self.contents())
                if kind == 'VDI':
                    self.xe('vbd-destroy', 'uuid=' + used['uuid'])
                self.age(failed, quiet)
                done = self.ends(0, 'vm-export=db')
                self.assertIn('removing the snapshot of an unfinished backup', done.output)
                self.assertIn('Deleting last **unsuccessful** backup %s ' % failed, done.lines)
                self.assert_clean()

    def test_what_another_host_may_be_verifying_is_left_alone_for_a_day(self):
        """Its snapshot is gone, and its record with that."""
        for seconds, stays in ((0, True), (VmBackup.LONGEST_SILENCE - 60, True),
                               (VmBackup.LONGEST_SILENCE + 9, False)):
            path = self.old_backup('db', DAY % 1, 'db.xva', 'vm.cfg')
            self.age(path, seconds)
            done = self.ends(0, 'vm-export=db')
            self.assertEqual(stays, 'not deleted: %s may be a backup' % path in done.output)
            self.assertEqual(stays, os.path.exists(path))
            shutil.rmtree(path, ignore_errors=True)


class Target(StoreCase):
    def needs_root_file_system(self):
        """Skip a test where temporary files are not on the root file system."""
        if VmBackup.deepest(VmBackup.mount_points(), os.path.realpath(self.backups)) != '/':
            self.skipTest('temporary files are not on the root file system')

    def fstab(self, *lines):
        self.script = self.changed_script(FSTAB=self.put_file('fstab', '\n'.join(lines) + '\n'))

    def refused(self, words, **keys):
        """A run and a preview are refused in these words, and change nothing."""
        line = 'ERROR: config backup_dir %s' % (words % keys.get('backup_dir', self.backups))
        before = self.tree()
        for more in ([], ['preview']):
            done = self.vmbackup('password', self.config('vm-export=db', **keys), *more)
            self.assertIn(line, self.assert_ends(2, done).lines)
        self.assertEqual([], self.verbs())
        self.assertEqual(before, self.tree())
        self.assertFalse(os.path.exists(os.path.join(self.backups, '.locks')))
        self.assertEqual(['vmbackup.py,begin', 'vmbackup.py,end,ERROR,S:0 W:0 E:1'], self.status())

    def test_a_share_that_does_not_answer_ends_the_run_in_one_line(self):
        self.prelude = hanging(VmBackup.WRITE_TEST)
        self.script = self.changed_script(SHARE_TIMEOUT=0.3)
        done = self.ends(2, 'vm-export=db')
        self.assertEqual(['ERROR backup_dir %s did not respond within 0.3 seconds' % self.backups],
                         [line for line in done.lines if line.startswith('ERROR')])
        self.assertIn('vmbackup.py,end,ERROR,S:0 W:0 E:1', self.status())
        self.assertEqual([], self.verbs())

    def test_the_root_file_system_is_refused_where_a_mount_is_required(self):
        self.needs_root_file_system()
        self.refused('is on the root file system -> %s (require_mount=yes: is the share mounted?)',
                     require_mount='yes')

    def test_the_root_file_system_is_noted_by_default(self):
        self.needs_root_file_system()
        self.fstab()
        note = '***NOTE - backup_dir %s is on the root file system of dom0' % self.backups
        for count, status, keys in ((1, 0, {'require_mount': 'auto'}), (0, 0, {}), (
                0, 2, {'require_mount': 'auto', 'backup_dir': self.at('none')})):
            for words in ([], ['preview']):
                done = self.command(status, 'password', self.config('vm-export=db', **keys), *words)
                self.assertEqual(count, done.output.count(note.partition(self.backups)[2]))

    def test_a_mounted_share_passes_also_below_one_that_is_not(self):
        share = self.at('share')
        os.mkdir(share)
        lines = ['server:/x %s nfs defaults 0 0' % share, 'server:/y %s nfs' % self.directory]
        for number, require in ((1, 'yes'), (1, 'auto'), (2, 'auto')):
            self.fstab(*lines[:number])
            self.mount(share)
            done = self.ends(0, 'vm-export=db', require_mount=require,
                             backup_dir=os.path.join(share, 'BACKUPS'))
            self.assertNotIn('NOTE', done.output)

    def test_a_share_of_fstab_that_is_not_mounted_is_refused(self):
        target, link = self.at('my share'), self.at('link')
        os.mkdir(target)
        os.symlink(target, link)
        spelt = target.replace(' ', '\\040')
        for lines, point, keys in (
                (['# comment', 'server:/x\t%s\tnfs defaults 0 0' % self.directory],
                 self.directory, {}),
                (['server:/x %s nfs noauto,user' % self.backups], self.backups, {}),
                (['//server/my\\040share %s cifs' % spelt], target, {'backup_dir': target}),
                (['server:/x %s nfs' % spelt], target, {'backup_dir': link}),
                (['server:/y %s nfs' % self.backups, 'LABEL=root / ext4 defaults 1 1',
                  'server:/x %s nfs' % self.directory], self.backups, {})):      # the deepest
            with self.subTest(lines):
                self.fstab(*lines)
                self.refused('lies below %s, where nothing is mounted -> %%s (mount it, see '
                             '/etc/fstab)' % point, require_mount='auto', **keys)
                os.unlink(self.status_log)

    def test_a_backup_dir_that_is_a_link_works(self):
        link = self.at('link')
        os.symlink(self.backups, link)
        self.ends(0, 'vm-export=db', backup_dir=link, pool_db_backup=1)
        self.assertEqual([1], list(self.numbers('db').values()))

    def test_on_a_share_neither_backup_dir_nor_a_directory_of_logs_is_a_link(self):
        """The file system of the tests is taken for a share: who writes there replaces them."""
        self.script = self.changed_script(LOCAL=())
        other = self.made('db', DAY % 1, 1)
        os.rename(self.backups, self.at('other'))
        os.symlink(self.at('other'), self.backups)
        done = self.ends(2, 'vm-export=db:1')
        self.assertIn('config backup_dir is or has a symbolic link -> ' + self.backups,
                      done.output)
        self.assertEqual(['db'], os.listdir(self.at('other')))
        self.assertTrue(os.path.exists(other.replace(self.backups, self.at('other'))))
        os.unlink(self.backups)
        os.rename(self.at('other'), self.backups)
        os.rename(os.path.dirname(self.status_log), self.at('elsewhere'))
        os.symlink(self.at('elsewhere'), os.path.dirname(self.status_log))
        before = os.listdir(self.at('elsewhere'))
        done = self.ends(1, 'vm-export=db', report_file=os.path.join(
            os.path.dirname(self.status_log), 'report.json'))
        for what in 'status_log', 'report_file':
            self.assertRegex(done.output, 'WARNING - cannot write %s .*is a symbolic link' % what)
        self.assertEqual(before, os.listdir(self.at('elsewhere')))

    def test_a_link_in_the_place_of_a_vm_is_told_by_list_and_verify(self):
        self.made('web', DAY % 1, 1)
        os.symlink(self.backups + '/web', self.backups + '/db')
        config = self.config('vm-export=.*')
        for command in 'list', 'verify':
            self.assertIn('***NOTE - passed over: %s/db is a symbolic link' % self.backups,
                          self.vmbackup(command, config).output)

    def test_copies_of_everything_by_hard_links_stop_no_backup(self):
        self.ends(0, 'vm-export=db')
        os.link(self.backups + '/.locks/db.lock', self.at('copy'))
        self.ends(0, 'vm-export=db')

    def test_lines_of_fstab_that_are_about_something_else_do_not_count(self):
        self.fstab('#server:/x %s nfs' % self.backups, '  # server:/x %s nfs' % self.backups,
                   '/swap none swap sw 0 0', '/swap swap swap sw 0 0', '', 'rubbish',
                   'server:/x %s nfs' % self.backups[:-1], 'server:/y %s/db nfs' % self.backups,
                   'LABEL=root / ext4 defaults 1 1', '\xff\\777 \\000 \\9')
        self.ends(0, 'vm-export=db', require_mount='auto')
        self.fstab('server:/x %s nfs' % self.backups)
        self.ends(0, 'vm-export=db', require_mount='no')

    def test_a_share_that_was_unmounted_since_is_noticed(self):
        store = store_at(self.backups, NAME)
        store.check()
        store.check_mounted()
        store.mounted = self.backups                   # where the test found it a moment ago
        with self.assertRaises(VmBackup.TargetError) as caught:
            store.check_mounted()
        self.assertEqual('backup_dir {0} is no longer mounted at {0}'.format(self.backups),
                         str(caught.exception))


class RoomCase(StoreCase):
    """Too little room is noticed before a snapshot is made."""

    def refused(self, wanted, *lines, **keys):
        """The VM of that line, or both, fail for want of room, with the numbers, and nothing has
        been begun."""
        done = self.ends(2, *(lines or ('vm-export=web', 'vm-export=db')), **keys)
        self.assertIn('vmbackup.py,end,ERROR,S:0 W:0 E:%d' % (len(lines) or 2), self.status())
        for vm in ['db'] if lines else ['web', 'db']:
            self.assertRegex(done.output, r'ERROR vm-export NO-SPACE %s: [0-9.]+ \w+ free of '
                             r'[0-9.]+ \w+ in \S+/BACKUPS, needed: %s\n' % (vm, wanted))
            self.assertIn('vm-export,end,NO-SPACE ' + vm, self.status())
        self.assertEqual([], self.verbs())


class MinFree(RoomCase):
    def test_less_than_a_size_or_a_percentage_fails_every_vm(self):
        self.refused('min_free=9999T', min_free='9999T')
        self.assertEqual([], self.tree())
        found = os.statvfs(self.backups)
        if found.f_bavail > 0.98 * found.f_blocks:
            self.skipTest('almost all of the file system is free here')
        self.refused('min_free=99%', min_free='99%')

    def test_enough_is_enough(self):
        for least in ('1K', '0%'):
            self.ends(0, 'vm-export=db:1', min_free=least)


class RoomOfTheLastBackup(test_faults_disk.SmallShare, RoomCase):
    """What the last comparable backup took, on a share of 16 MiB."""

    def took(self, day, mebibytes):
        """A backup of db, of that day, has taken so much."""
        path = self.made('db', DAY % day)
        self.put_file(os.path.join(path, 'db.xva'), bytes(mebibytes << 20))

    def test_less_than_that_fails_that_vm_and_both_limits_are_told(self):
        self.took(1, 9)
        self.refused('9.0 MiB for a backup as large as the last', 'vm-export=db')
        self.refused('min_free=1K and 9.0 MiB for a backup as large as the last', 'vm-export=db',
                     min_free='1K')
        self.ends(0, 'vm-export=web')
        self.assertEqual([0], list(self.numbers('db').values()))

    def test_a_backup_of_another_kind_tells_nothing(self):
        self.took(1, 9)
        self.ends(0, 'vdi-export=db')
        self.ends(0, 'vm-export=db', compress='gzip')

    def test_only_the_last_good_backup_of_that_kind_counts(self):
        self.took(1, 9)
        self.took(2, 1)
        failed = self.old_backup('db', DAY % 3)
        os.link(os.path.join(self.backups, 'db', DAY % 1, 'db.xva'), os.path.join(failed, 'db.xva'))
        self.ends(0, 'vm-export=db')

    def test_a_sparse_file_counts_with_what_it_takes(self):
        self.made('db', DAY % 1, size=1 << 40)
        self.ends(0, 'vm-export=db')

    def test_what_pre_clean_will_delete_counts_as_free(self):
        for day in (1, 2):
            self.took(day, 6)
        self.refused('6.0 MiB for a backup as large as the last', 'vm-export=db', max_backups=1)
        self.ends(0, 'vm-export=db', max_backups=1, pre_clean='True')
        self.assertEqual([1], list(self.numbers('db').values()))


class RoomForASnapshot(StoreCase):
    pool_description = {
        'srs': [{'name': 'small', 'type': 'ext', 'size': '3 MiB'},
                {'name': 'other', 'type': 'ext', 'size': '9 MiB'}],
        'vms': [{'name': 'db', 'disks': [{'size': '2 MiB', 'fill': 1}], 'ran': True}]}

    def test_the_sr_is_named_with_its_size_and_what_is_used(self):
        uuid = self.xe('sr-list', 'name-label=small', '--minimal').strip()
        for method, token in (('vm-export', 'SNAPSHOT-FAIL'), ('vdi-export', 'VDI-SNAPSHOT-FAIL')):
            self.fault(method[:-6] + 'snapshot', 'refuse', error=[
                'SR_BACKEND_FAILURE_44', '', 'There is insufficient space', ''])
            done = self.ends(2, method + '=db')
            self.assertIn('ERROR %s %s db: ' % (method, token), done.output)
            self.assertIn('(small (%s, on host1): 1.0 MiB of 3.0 MiB free)\n' % uuid, done.output)
            self.assert_clean()
