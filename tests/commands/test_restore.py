"""Getting it back: `restore=` and `test-restore=`, on the simulated pool."""

import contextlib
import fcntl
import glob
import gzip
import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
import unittest
from types import SimpleNamespace
from unittest import mock
import xmlrpc.client

import VmBackup
from tests import DATA
from tests.commands.saved import SavedCase
from tests.runs import test_store
from tests.simpool import archive, pools
from tests.tools.smtp_sink import SmtpSink
from tests.tools.support import HOST, LIMIT

MIB = 1 << 20
FIELDS = ('name_description tags memory_static_max memory_dynamic_max VCPUs_max VCPUs_at_startup'
          ' HVM_boot_policy HVM_boot_params NVRAM platform is_a_template bios_strings').split()


def resized(image, size):
    """The first bytes of a disk: that of a VHD may be larger than it was."""
    cut = archive.Image(size)
    for index, piece in image.chunks():
        offset = index * archive.CHUNK
        if offset < size:
            cut.write(offset, bytes(piece)[:size - offset])
    return cut


class RestoreCase(SavedCase):
    leaves_things_behind = True

    def restore(self, word, *options, command='restore', **environ):
        """Run `restore=`, from this test's backup_dir unless the word is a path."""
        if '/' not in word and not any(option.startswith('from=') for option in options):
            options = ('from=' + self.backups,) + options
        return self.vmbackup('password', '%s=%s' % (command, word), *options, **environ)

    def try_out(self, word, *options, **environ):
        return self.restore(word, *options, command='test-restore', **environ)

    def ok(self, done):
        return self.assert_ends(0, done)

    def refused(self, words, done):
        """It ends with status 2 and one ERROR line with these words, and nothing was changed."""
        self.assert_ends(2, done)
        error, = [line for line in done.lines if line.startswith('ERROR')]
        self.assertIn(words, error)
        self.assertFalse({'vm-import', 'vdi-create', 'vdi-import'} & set(self.verbs()))

    def vms(self):
        """{name: record} of the real VMs."""
        return {vm['name_label']: vm for vm in self.sim.pool.tables['VM'].values()
                if not (vm['is_a_template'] or vm['is_a_snapshot'] or vm['is_control_domain'])}

    def drives(self, name):
        """What a VM has, by user device: how, and the bytes of a disk."""
        tables = self.sim.pool.tables
        return {vbd['userdevice']: (
            vbd['type'], vbd['mode'], vbd['bootable'], vbd['empty'],
            self.sim.pool.content[vbd['VDI']] if vbd['type'] == 'Disk' else vbd['VDI'])
            for vbd in (tables['VBD'][ref] for ref in self.vms()[name]['VBDs'])}

    def networks(self, name):
        tables = self.sim.pool.tables
        return sorted((tables['VIF'][ref]['device'],
                       tables['network'][tables['VIF'][ref]['network']]['name_label'])
                      for ref in self.vms()[name]['VIFs'])

    def macs(self, name):
        return {self.sim.pool.tables['VIF'][ref]['MAC'] for ref in self.vms()[name]['VIFs']}

    def facts(self, name):
        """What a restored VM has to have in common with the one that was backed up. An import adds
        its task and a device model, as a first start does (recorded from xapi 25.33.2)."""
        vm = dict(self.vms()[name])
        other = {key: value for key, value in vm['other_config'].items()
                 if key not in ('mac_seed', 'auto_poweron', 'import_task')}
        vm['platform'] = {key: value for key, value in vm['platform'].items()
                          if key != 'device-model'}
        return [{field: vm[field] for field in FIELDS}, other, self.drives(name),
                self.networks(name)]

    def assert_restored(self, original, name):
        """The VM of that name is a whole copy with new addresses, that does not start by itself."""
        self.assertIn(name, self.vms())
        self.assertEqual(original, self.facts(name))
        vm = self.vms()[name]
        self.assertEqual(['Halted', '', False, False], [vm[key] for key in (
            'power_state', 'ha_restart_priority', 'ha_always_run', 'is_a_template')])
        self.assertNotIn('auto_poweron', vm['other_config'])
        self.assert_unmarked()

    def assert_unmarked(self):
        """Nothing carries the mark of a restore, and no record of one is left."""
        for cls in ('VM', 'VDI', 'network'):
            for record in self.sim.pool.tables[cls].values():
                self.assertNotIn(VmBackup.MARK, record['other_config'])
                self.assertNotIn(VmBackup.MARK, record['name_label'])
        self.assertEqual([], glob.glob(os.path.join(self.backups, '.restore-*')))

    def remove(self, name):
        vm = self.vms()[name]
        if vm['power_state'] != 'Halted':
            self.xe('vm-shutdown', 'uuid=' + vm['uuid'], 'force=true')
        self.xe('vm-uninstall', 'uuid=' + vm['uuid'], 'force=true')

    def remove_with_network(self, name, network):
        self.remove(name)
        self.xe('network-destroy', 'uuid=' + self.xe(
            'network-list', 'name-label=' + network, '--minimal').strip())

    def archive(self, vm):
        path, = [path for path in glob.glob(glob.escape(self.newest(vm)) + '/*')
                 if re.search(r'\.(xva|raw|vhd)(\.gz|\.zst)?$', path)]
        return path

    def damage(self, vm):
        with open(self.archive(vm), 'r+b') as stream:
            stream.seek(100000)
            stream.write(b'XXXX')


class RoundTrips(RestoreCase):
    pool_description = {'vms': [
        {'name': 'web', 'power_state': 'Running', 'ha_restart_priority': 'restart',
         'description': 'the "web" & more', 'tags': ['prod'], 'cd': None,
         'other_config': {'auto_poweron': 'true', 'note<1>': 'a & b'},
         'disks': [3 * MIB + 512, {'size': 2 * MIB + 1024, 'fill': 0.3}, 512]},
        {'name': 'efi', 'firmware': 'uefi', 'vtpm': True, 'disks': ['1 MiB'], 'networks': []},
        {'name': 'diskless', 'disks': []}],
        'networks': [pools.NETWORK, 'backend']}

    def prepare(self):
        self.ok(self.back_up('vm-export=.*'))

    def test_each_compression_with_several_disks_of_odd_sizes_and_an_empty_drive(self):
        original = self.facts('web')
        for compress in ('none', 'gzip', 'zstd'):
            with self.subTest(compress=compress):
                if compress != 'none':
                    self.ok(self.back_up('vm-export=web', compress=compress))
                done = self.ok(self.restore('web', 'name=web ' + compress))
                self.assertIn('all checksums match', done.output)
                self.assert_restored(original, 'web ' + compress)
                self.assertEqual(set(), self.macs('web') & self.macs('web ' + compress))

    def test_uefi_with_nvram_and_no_network_and_a_vm_without_disks(self):
        for name in ('diskless', 'efi'):
            original = self.facts(name)
            self.remove(name)
            self.ok(self.restore(name))
            self.assert_restored(original, name)
        self.assertEqual({'EFI-variables': 'QUFBQQ=='}, self.vms()['efi']['NVRAM'])
        self.assertEqual(1, len(self.vms()['efi']['VTPMs']))

    def test_a_backup_of_325_without_a_manifest(self):
        original = self.facts('web')
        for name in ('backup.json', 'RESTORE.txt'):
            os.unlink(self.newest('web', name))
        self.ok(self.restore('web'))
        name, = set(self.vms()) - {'web', 'efi', 'diskless'}
        self.assertRegex(name, r'^web-restored-\d{4}-\d\d-\d\d$')
        self.assert_restored(original, name)

    def test_a_single_file_elsewhere(self):
        original = self.facts('web')
        path = self.at('usb', 'some archive.xva')
        os.mkdir(os.path.dirname(path))
        subprocess.check_call(['zstd', '-q', self.archive('web'), '-o', path], timeout=LIMIT)
        shutil.rmtree(self.newest('web'))
        self.remove('web')
        self.ok(self.restore(path))
        self.assert_restored(original, 'web')
        self.assertEqual(['some archive.xva'], os.listdir(os.path.dirname(path)))

    def test_a_raw_image_of_an_odd_size_onto_another_vm_as_it_is_and_packed(self):
        self.ok(self.back_up('vdi-export=web'))
        path = self.archive('web')
        for packer in (None, ['gzip'], ['zstd', '--rm']):
            with self.subTest(packer=packer):
                if packer:
                    subprocess.check_call(packer + ['-q', path], timeout=LIMIT)
                before = set(self.drives('efi'))
                self.ok(self.restore('web', 'attach=efi'))
                device, = set(self.drives('efi')) - before
                found, disk = self.drives('efi')[device][4], self.drives('web')['0'][4]
                self.assertEqual(disk, found)
                self.assertFalse(self.drives('efi')[device][2], 'it must not be bootable')
                self.assert_unmarked()
                if packer:
                    subprocess.check_call(packer + ['-q', '-d', self.archive('web')],
                                          timeout=LIMIT)

    def test_a_packed_raw_image_is_filled_up_with_zeros_to_the_size_of_the_disk(self):
        path = self.put_file('disk.raw.gz', gzip.compress(b'x' * 3000))
        self.assertEqual(b'x' * 3000 + bytes((4 << 20) - 3000),
                         b''.join(VmBackup.disk_pieces(path, '.raw', 3000, 4 << 20, '')))


class OddNames(RestoreCase):
    pool_description = {'vms': [
        dict(vm, disks=['64 KiB']) for vm in pools.odd()['vms'] + [{'name': 'büro'}]]}

    def test_of_vms_that_are_gone_under_any_locale(self):
        self.ok(self.back_up('vm-export=.*'))
        originals = {name: self.facts(name) for name in self.vms()}
        paths = {name: os.path.join(self.backups, VmBackup.path_part(name)) for name in originals}
        for name, original in sorted(originals.items()):
            with self.subTest(name=name):
                self.remove(name)
                word = name if '/' not in name and name not in '..' else paths[name]
                odd = not name.isprintable() or max(name) > '~'
                self.ok(self.restore(word, **{'LC_ALL': 'C'} if odd else {}))
                self.assert_restored(original, name)

    def test_of_disks(self):
        names = ('a,b', 'it\'s "x"', 'x$(id)', 'new\nline', '名前')
        self.ok(self.back_up(*['vdi-export=' + name.replace('\nline', '.*') for name in names]))
        for name in names:
            with self.subTest(name=name):
                self.ok(self.restore(name, 'attach=büro'))
                drives = self.drives('büro')
                self.assertEqual(self.drives(name)['0'][4], drives[max(drives, key=int)][4])
        self.assert_unmarked()


class Choosing(RestoreCase):
    pool_description = {'vms': [{'name': 'web', 'disks': ['1 MiB'], 'ran': True}]}

    def prepare(self):
        self.ok(self.back_up('vm-export=web', pool_db_backup=1))
        manifest = self.manifest('web')
        shutil.copytree(self.newest('web'), self.older)
        manifest.update(started='2025-03-01T02:00:00+01:00', number=0)
        self.put_file(os.path.join(self.older, 'backup.json'), json.dumps(manifest))

    @property
    def older(self):
        return os.path.join(self.backups, 'web', 'backup-2025-03-01-(02:00:00)')

    def chosen(self, *options):
        done = self.ok(self.restore('web', 'preview', *options))
        line, = [line for line in done.lines if line.startswith('restore of web as of ')]
        return os.path.dirname(line.partition(': ')[2])

    def test_the_newest_or_that_of_a_date(self):
        newest = self.newest('web')
        self.assertEqual(newest, self.chosen())
        for date in ('2025-03-01', '2025', '2025-03-01-(02:00:00)', '2025-03-01T02:00'):
            self.assertEqual(self.older, self.chosen('date=' + date))
        self.assertEqual(newest, self.chosen('date=20'))
        self.refused('no good backup of 2024', self.restore('web', 'date=2024', 'preview'))
        self.refused('no good backup of x in', self.restore('web', 'date=x', 'preview'))

    def test_one_that_was_found_damaged_is_passed_over(self):
        self.damage('web')
        self.assertEqual(2, self.vmbackup('verify', self.newest('web')).status)
        self.assertEqual(self.older, self.chosen())

    def test_a_damaged_one_is_not_imported_and_leaves_nothing_where_it_is_all_the_same(self):
        self.damage('web')
        self.refused('the checksum is', self.restore('web'))
        before = self.contents()
        self.assertIn('checksum', self.assert_ends(2, self.restore('web', 'verify=no')).output)
        self.assertEqual(before, self.contents())
        self.assert_unmarked()

    def test_what_cannot_be_restored(self):
        failed = self.old_backup('web', 'backup-2026-01-01-(00:00:00)', 'web.xva')
        note = self.put_file('note.txt', 'hello')
        dump, = glob.glob(os.path.join(self.backups, 'METADATA_*', '*.dump'))
        missing = 'no such backup or file, or VM in %s (see from=, and ' % self.backups
        for word, words in (('nobody', missing), (failed, 'it has no marker'),
                            (self.backups, 'no such backup or file'), (note, 'no archive or image'),
                            (dump, "pool-restore-database file-name='%s' dry-run=true" % dump),
                            ('', 'usage: '), ('/nowhere/web.xva', 'no such backup or file')):
            with self.subTest(word=word):
                self.refused(words, self.restore(word))

    def test_options_that_are_none_or_missing(self):
        for option, words in (('colour=red', 'unknown option: colour= (see'),
                              ('sr=', 'invalid value: sr='),
                              ('preserve=perhaps', 'invalid value: preserve= (invalid, allowed: '),
                              ('sr=elsewhere',
                               'no single SR is elsewhere (choose one, sr=UUID): Local storage ('),
                              ('name=web', 'a VM called web is there'),
                              ('attach=web', 'attach= does not apply to /'),
                              ('from=/nowhere', 'no such file or directory: /nowhere')):
            with self.subTest(option=option):
                self.refused(words, self.restore('web', option))
        pool, = self.sim.pool.tables['pool'].values()
        pool['default_SR'] = 'OpaqueRef:NULL'
        self.refused('no single SR is the default one (choose one, sr=UUID): Local storage (',
                     self.restore('web'))
        self.ok(self.restore('web', 'sr=Local storage', 'name=a\x07b'))
        self.assertIn('a%07b', self.vms())

    def test_a_manifest_that_somebody_wrote(self):
        self.ok(self.back_up('vdi-export=web'))
        manifest = self.manifest('web')
        for disks in (5, [3], {'a': 1}, [{'virtual_size': 'x'}]):
            self.put_file(self.newest('web', 'backup.json'),
                          json.dumps(dict(manifest, disks=disks)))
            done = self.ok(self.restore('web', 'preview'))
            self.assertIn('  new disk: web.raw-restored-', done.output)


class Places(RestoreCase):
    pool_description = {
        'vms': [{'name': 'web', 'disks': ['2 MiB'], 'networks': ['backend'], 'ran': True}],
        'networks': [pools.NETWORK, 'backend'],
        'srs': [{'name': 'Local storage', 'size': '1 GiB'},
                {'name': 'small', 'type': 'lvm', 'size': '2 MiB'},
                {'name': 'isos', 'content': 'iso'}]}

    def prepare(self):
        self.ok(self.back_up('vdi-export=web'))
        self.ok(self.back_up('vm-export=web'))

    def setUp(self):
        super().setUp()
        self.original = self.facts('web')

    def test_the_name_is_that_of_the_vm_if_nobody_has_it(self):
        date = os.path.basename(self.newest('web'))[7:17]
        for name in ('web-restored-' + date, 'web-restored-%s-2' % date):
            self.ok(self.restore('web'))
            self.assert_restored(self.original, name)
        self.remove('web')
        self.ok(self.restore('web'))
        self.assert_restored(self.original, 'web')

    def test_the_next_backup_does_not_touch_it(self):
        self.ok(self.restore('web', 'name=again'))
        self.ok(self.back_up('vm-export=.*'))
        self.assert_restored(self.original, 'again')

    def test_what_was_imported_whole_stays_where_a_further_step_fails(self):
        def spoil():
            path, = glob.glob(os.path.join(self.backups, VmBackup.RESTORING.format('*')))
            os.unlink(path)
            os.mkdir(path)
            self.spoilt = path
        self.fault('VM.get_all_records', 'refuse', nth=3, error=['INTERNAL_ERROR', 'x'])
        done = self.assert_ends(1, self.restore('web', 'name=again'))
        self.assertIn('***WARNING - dom0 may still have what was restored', done.output)
        self.assert_restored(self.original, 'again')
        self.at_call('VM.get_all_records', spoil, nth=3)
        done = self.assert_ends(1, self.restore('web', 'name=another'))
        self.assertIn('WARNING - what was restored was left in the pool, or its mark (the next '
                      'backup or restore with backup_dir %s settles that): ' % self.backups,
                      done.output)
        os.rmdir(self.spoilt)
        self.assert_restored(self.original, 'another')

    def test_start(self):
        warning = '***WARNING - start=True: the original runs, web (%s)' % self.uuid_of('web')
        self.assertNotIn(warning, self.ok(self.restore('web', 'name=again', 'start=True')).output)
        self.assertEqual('Running', self.vms()['again']['power_state'])
        self.xe('vm-start', 'uuid=' + self.uuid_of('web'))
        self.assertNotIn(warning, self.ok(self.restore('web', 'preview')).output)
        for more in ['preview'], []:
            self.assertIn(warning, self.ok(self.restore('web', 'start=True', *more)).output)
        self.assertNotIn(warning, self.ok(
            self.restore('web', 'start=True', 'network=none', 'preview')).output)

    def test_a_preview_tells_all_and_changes_nothing(self):
        before = self.contents()
        done = self.ok(self.restore('web', 'sr=small', 'preview'))
        self.assertEqual([], self.verbs())
        self.assertEqual(before, self.contents())
        text = '\n'.join(done.lines)
        for line in (r'  new VM:   web-restored-[\d-]+ \(original: web\)',
                     r'  SR:       small \([-0-9a-f]+\): 2\.0 MiB of 2\.0 MiB free, the disks have '
                     r'2\.0 MiB', '  disk:     xvda of 2.0 MiB',
                     r'  network:  VIF 0 in backend \([-0-9a-f]+\)',
                     'SUCCESS preview of restore: nothing was changed'):
            self.assertRegex(text, '(?m)^%s$' % line)

    def test_preserve_is_refused_while_the_original_is_there(self):
        self.refused('the VM web (%s) has the same MAC addresses' % self.uuid_of('web'),
                     self.restore('web', 'preserve=True'))
        macs = self.macs('web')
        self.remove('web')
        self.sim.pool.journal.clear()
        self.assertIn('***WARNING - preserve=True: the original has the same MAC addresses (it '
                      'must not run', self.ok(self.restore('web', 'preserve=True')).output)
        self.assert_restored(self.original, 'web')
        self.assertEqual(macs, self.macs('web'))

    def test_a_network_that_is_not_here_is_made(self):
        self.remove_with_network('web', 'backend')
        done = self.ok(self.restore('web'))
        self.assertIn('  network:  VIF 0 in backend, which is not here: it will be made',
                      done.lines)
        self.assert_restored(self.original, 'web')

    def test_a_network_that_cannot_be_made_is_told_with_what_to_do(self):
        self.remove_with_network('web', 'backend')
        self.fault('vm-import', 'refuse', error=['INVALID_VALUE', 'bridge', 'xapi1'])
        done = self.assert_ends(2, self.restore('web'))
        self.assertIn(' (a network of it is not here: choose another, or none, with network=)',
                      done.output)
        for word, networks in (('none', []), (pools.NETWORK, [('0', pools.NETWORK)])):
            done = self.ok(self.restore('web', 'network=' + word, 'name=web'))
            self.assertEqual(networks, self.networks('web'))
            self.remove('web')

    def test_network_says_where_the_vifs_go(self):
        uuids = {each['name_label']: each['uuid']
                 for each in self.sim.pool.tables['network'].values()}
        other = self.sim.pool.tables['network'][self.sim.pool.new(
            'network', name_label='Lab: 2', bridge='xenbr7')]['uuid']
        eth0, lab = pools.NETWORK, 'Lab: 2'
        for number, (word, network) in enumerate((
                ('none', None), (eth0, eth0), (uuids[eth0], eth0), (other, lab),
                ('backend:' + eth0, eth0), ('xenbr1:' + uuids[eth0], eth0), ('backend:none', None),
                ('elsewhere:none', 'backend'), ('elsewhere:' + other, 'backend'))):
            with self.subTest(word):
                name = 'web-%d' % number
                done = self.ok(self.restore('web', 'network=' + word, 'name=' + name))
                self.assertIn('  network:  VIF 0 in %s (' % (network or 'none'), done.output)
                self.assertEqual([('0', network)] if network else [], self.networks(name))
                self.assertEqual(word.startswith('elsewhere'),
                                 '***WARNING - network=: no VIF is in elsewhere' in done.output)
                self.assert_unmarked()
        again = self.sim.pool.tables['network'][self.sim.pool.new(
            'network', name_label=eth0, bridge='xenbr8')]['uuid']
        self.ok(self.restore('web', 'network=' + again, 'name=last'))
        vif, = self.vms()['last']['VIFs']
        self.assertEqual(again, self.sim.pool.tables['network'][
            self.sim.pool.tables['VIF'][vif]['network']]['uuid'])
        for word, words in (('nosuch', 'no single network is nosuch (choose one, network=UUID): '),
                            ('backend:nosuch', 'no single network is nosuch (choose one'),
                            ('backend:', 'no single network is  (choose one'),
                            (eth0, 'no single network is %s (choose one, network=UUID): %s (%s), '
                             '%s (%s)' % (eth0, eth0, uuids[eth0], eth0, again))):
            self.sim.pool.journal.clear()
            self.refused(words, self.restore('web', 'network=' + word))
        self.refused('network= does not apply to ',
                     self.restore(self.dated('web')[0], 'network=none'))

    def test_a_full_sr_leaves_nothing_and_one_for_iso_images_is_refused(self):
        small = self.xe('sr-list', 'name-label=small', '--minimal').strip()
        self.refused('small (%s, on host1): 2.0 MiB of 2.0 MiB free' % small,
                     self.restore('web', 'sr=isos'))
        self.xe('vdi-create', 'sr-uuid=' + small, 'name-label=x', 'virtual-size=1MiB')
        before = self.contents()
        done = self.assert_ends(2, self.restore('web', 'sr=small'))
        self.assertRegex(done.output, r'ERROR no space left in SR, at first small \(%s\): \S+ \w+ '
                         r'of \S+ \w+ free, the disks have .*There is insufficient space.*\(choose '
                         r'another SR with sr=\)' % small)
        self.sim.pool.storage_faults['write'] = 3 << 19        # as storage fills up meanwhile
        self.assertRegex(self.assert_ends(2, self.restore('web')).output,
                         'ERROR no space left in SR, .* Local storage .*: xe vm-import failed: .*S')
        self.assertEqual(before, self.contents())
        self.assert_unmarked()

    def test_an_archive_of_a_newer_toolstack(self):
        self.pool_description = dict(self.pool_description, xapi_version='25.6')
        self.use_pool()
        done = self.assert_ends(2, self.restore('web'))
        self.assertIn('(it was exported by a newer release', done.output)

    def test_attach_wants_a_halted_or_running_vm(self):
        shutil.rmtree(self.newest('web'))              # an image is the newest then
        self.xe('vm-start', 'uuid=' + self.uuid_of('web'))
        self.sim.pool.call('VM.suspend', self.sim.pool.ref_of('VM', self.uuid_of('web')))
        self.refused('attach=web is not one VM, halted or running (choose its uuid): %s '
                     '(Suspended' % self.uuid_of('web'), self.restore('web', 'attach=web'))
        self.refused('attach=nobody is not one VM, halted or running (choose its uuid): '
                     'no VM', self.restore('web', 'attach=nobody'))
        self.refused('start= does not apply to ', self.restore('web', 'start=True'))

    def test_without_attach_the_next_commands_are_told(self):
        shutil.rmtree(self.newest('web'))
        done = self.ok(self.restore('web'))
        line, = [line for line in done.lines if 'vbd-create' in line]
        uuid = self.uuid_of('web')
        subprocess.check_call(shlex.split(line.replace('UUID-OF-THE-VM', uuid).replace(
            'device=0', 'device=7')), env=self.environ(), timeout=LIMIT)
        drives = self.drives('web')
        self.assertEqual(drives['0'][4], drives['7'][4])


class Guides(RestoreCase):
    """RESTORE.txt and the metadata, for the person who has only the disk in their hand."""

    pool_description = {'vms': [
        {'name': "it's $(id) web", 'disks': ['2 MiB', '1 MiB'], 'ran': True, 'firmware': 'uefi',
         'vtpm': True}]}
    name = "it's $(id) web"

    def commands(self):
        """The commands in RESTORE.txt: with this program, with xe."""
        lines = self.read(self.newest(self.name, 'RESTORE.txt')).splitlines()
        self.assertEqual([], [line for line in lines if len(line) > 100 and not {*'=/'} & {*line}])
        commands = [line for line in lines if line and not line.startswith('#')]
        return ([line for line in commands if ' restore ' in line],
                [line for line in commands if ' restore ' not in line])

    def run_in_shell(self, lines):
        place = self.at('bin')
        with contextlib.suppress(FileExistsError):
            os.mkdir(place)
            os.symlink(self.sim.xe, os.path.join(place, 'xe'))
        environ = self.environ(PATH=place + ':' + os.environ['PATH'],
                               VMBACKUP_XAPI_URL=self.sim.unix_url)
        done = subprocess.run(['bash', '-euc', '\n'.join(lines)], timeout=LIMIT, env=environ,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(0, done.returncode, done.stdout.decode('utf-8', 'replace'))

    def run_forked(self, lines):
        """Run our own commands with the words that a shell makes of each line."""
        for line in lines:
            words = subprocess.check_output(['bash', '-c', r"printf '%s\0' " + line], timeout=LIMIT)
            _, *words = words.decode('utf-8').split('\0')[:-1]
            self.ok(self.vmbackup(*words, VMBACKUP_XAPI_URL=self.sim.unix_url))

    def test_its_commands_restore_a_vm(self):
        self.ok(self.back_up('vm-export=' + re.escape(self.name)))
        original = self.facts(self.name)
        own, xe = self.commands()
        self.assertEqual(2, len(own))
        for lines in (own, xe):
            self.remove(self.name)
            self.run_in_shell(lines)
            self.assert_restored(original, self.name)

    def test_its_commands_restore_a_disk(self):
        for format in ('raw', 'vhd'):
            with self.subTest(format=format):
                self.ok(self.back_up('vdi-export=' + re.escape(self.name),
                                     vdi_export_format=format))
                own, xe = self.commands()
                before = set(self.sim.pool.content)
                self.run_forked(own)
                wanted = self.drives(self.name)['0'][4]
                new, = set(self.sim.pool.content) - before
                self.assertEqual(wanted, resized(self.sim.pool.content[new], wanted.virtual_size))
                self.run_in_shell([line.replace('device=0', 'device=9') for line in xe])
                drives = self.drives(self.name)
                self.assertEqual(wanted, resized(drives['9'][4], wanted.virtual_size))
                self.xe('vbd-destroy', 'uuid=' + self.xe(
                    'vbd-list', 'vm-uuid=' + self.uuid_of(self.name), 'userdevice=9',
                    '--minimal').strip())

    def test_the_metadata_has_the_records_also_of_a_vtpm_and_nobody_is_warned(self):
        self.ok(self.back_up('vm-export=' + re.escape(self.name)))
        text = self.read(self.newest(self.name, 'vm-metadata.xml'))
        vm, tables = self.vms()[self.name], self.sim.pool.tables
        for cls, refs in (('VM', [tables['VTPM'][vm['VTPMs'][0]]['VM']]), ('VBD', vm['VBDs']),
                          ('VIF', vm['VIFs']), ('VTPM', vm['VTPMs'])):
            for ref in refs:
                self.assertIn('<value>%s</value>' % tables[cls][ref]['uuid'], text)
        for words in ("<name>vTPM'_uuid</name>", '<value>QUFBQQ==</value>'):
            self.assertIn(words, text)


class Testing(RestoreCase):
    """`test-restore=`: a restore that is proved and taken back."""

    pool_description = {
        'vms': [{'name': 'web', 'disks': ['2 MiB', '1 MiB'], 'networks': ['backend'], 'ran': True},
                {'name': 'db', 'disks': ['1 MiB'], 'ran': True}],
        'networks': [pools.NETWORK, 'backend']}
    leaves_things_behind = False

    def prepare(self):
        self.ok(self.back_up('vm-export=web', 'vdi-export=db'))
        os.unlink(self.status_log)

    def noted(self, vm):
        return self.manifest(vm).get('test_restore')

    def test_it_leaves_nothing_and_is_recorded_in_the_backups_the_status_log_and_a_mail(self):
        with SmtpSink() as sink:
            config = self.config('vm-export=web', mail_to='admin@example.org',
                                 mail_smtp_server='127.0.0.1', mail_smtp_port=sink.port)
            done = self.ok(self.try_out('.*', 'from=' + config))
        self.assertIn('VmBackup test-restore ended - Success - S:2 W:0 E:0', done.lines)
        mail, = sink.mails
        self.assertRegex(mail.message['Subject'],
                         r'^VmBackup \S+ - test-restore SUCCESS - S:2 W:0 E:0$')
        end = 'test-restore,end,SUCCESS %s,elapse:0 size:0G'
        self.assertEqual(['test-restore,begin,db', end % 'db', 'test-restore,begin,web',
                          end % 'web'], self.status())
        for vm in ('web', 'db'):
            noted = self.noted(vm)
            self.assertEqual({'when', 'sr', 'seconds'}, set(noted))
            self.assertEqual('Local storage', noted['sr'])
            VmBackup.seconds_of(noted['when'])
        self.assert_unmarked()

    def test_it_is_in_no_network_and_makes_none(self):
        self.remove_with_network('web', 'backend')
        self.before = self.contents()
        self.sim.pool.journal.clear()
        self.assertIn('  network:  VIF 0 in none (left out)', self.ok(self.try_out('web')).lines)
        self.assertEqual(['vm-import', 'vm-destroy', 'vdi-destroy', 'vdi-destroy'], self.verbs())
        self.assertNotIn('backend', [each['name_label'] for each in
                                     self.sim.pool.tables['network'].values()])

    def test_of_a_vm_that_was_started_just_before_leaves_nothing_either(self):
        vm = self.sim.pool.ref_of('VM', self.uuid_of('web'))
        for action in 'start', 'suspend':
            self.sim.pool.call('VM.' + action, vm)
            self.ok(self.back_up('vm-export=web'))
            self.before = self.contents()
            self.ok(self.try_out('web'))

    def test_one_that_fails_is_recorded_and_the_others_are_tested(self):
        self.damage('web')
        done = self.assert_ends(2, self.try_out('.*', 'from=' + self.config('vm-export=web')))
        self.assertIn('ERROR test-restore TEST-RESTORE-FAIL web: ', done.output)
        self.assertIn('checksum', self.noted('web')['fault'])
        self.assertNotIn('fault', self.noted('db'))
        self.assertIn('test-restore,end,TEST-RESTORE-FAIL web', self.status())
        self.assert_unmarked()

    def test_a_disk_that_is_missing_after_the_import(self):
        path = self.program('odd-xe', (
            'case $1 in vm-import) uuid=$(%s "$@") || exit\n'
            'vdi=$(%s vbd-list vm-uuid=$uuid userdevice=1 params=vdi-uuid --minimal)\n'
            '%s vdi-destroy uuid=$vdi; echo $uuid;; *) exec %s "$@";; esac\n'
        ) % ((self.sim.xe,) * 4))
        done = self.assert_ends(2, self.try_out('web', VMBACKUP_XE=path))
        self.assertIn('disk 1 has 0 bytes, not 1048576', done.output)
        self.assert_unmarked()

    def test_what_is_wrong(self):
        for words, text in ((['nobody'], 'no backup of a VM nobody'),
                            (['web', 'sr=nowhere'], 'no single SR is nowhere'),
                            ([''], 'usage: VmBackup.py test-restore <vm-selector|backup>'),
                            (['web', 'date=2026'], 'unknown option: date= (see')):
            self.assertIn(text, self.assert_ends(2, self.try_out(*words)).output)
        self.assertEqual([], self.verbs())
        os.unlink(self.archive('web'))
        self.assert_ends(2, self.try_out('web'))
        self.assertIn('no archive or image', self.noted('web')['fault'])


class Endings(RestoreCase):
    """One that ends early says by what, and what became of what it had made."""

    pool_description = {'vms': [{'name': 'web', 'disks': ['12 MiB'], 'ran': True}]}
    TAKEN = r'taken back: %s [^(]+ \([-0-9a-f]{36}\)'

    def prepare(self):
        self.ok(self.back_up('vdi-export=web'))
        self.ok(self.back_up('vm-export=web'))

    def is_made(self):
        return any(VmBackup.MARK in str(list(record.values())) for cls in ('VM', 'VDI')
                   for record in list(self.sim.pool.tables[cls].values()))

    def assert_taken_back(self):
        self.wait_for(lambda: not self.sim.is_busy)
        self.assert_clean()
        self.assert_unmarked()

    def test_a_signal(self):
        for command, verb, kind, number, words in (
                ('restore=web', 'vm-import', 'VM', signal.SIGINT, 'SIGINT, as by Ctrl-C'),
                ('restore=' + self.dated('web')[0], 'vdi-import', 'disk', signal.SIGTERM, 'SIGT'),
                ('test-restore=web', 'vm-import', 'VM', signal.SIGHUP, 'SIGHUP, as when its t')):
            with self.subTest(command=command):
                self.fault(verb, 'slow', rate=MIB)
                child = self.start('password', command, 'from=' + self.config())
                self.wait_for(self.is_made)
                done = self.signalled(child, number)
                self.assertIn('ERROR ended by signal %d (%s' % (number, words), done.output)
                self.assertRegex(done.output, self.TAKEN % kind)
                self.assert_taken_back()

    @unittest.skipIf(os.geteuid(), 'a /dev of its own takes root')
    def test_a_terminal_that_is_closed_is_told_in_the_log_of_the_system(self):
        place = self.at('dev')
        os.mkdir(place)
        os.symlink('/proc/self/fd/0', place + '/stdin')
        self.put_file('dev/null')
        words = ['unshare', '-m', 'sh', '-c', 'mount --bind /dev/null $0/null && mount --rbind $0 '
                 '/dev && exec "$@"', place, sys.executable, self.script, 'password', 'restore=web',
                 'from=' + self.backups]
        self.fault('vm-import', 'slow', rate=MIB)
        ours, theirs = pty.openpty()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.bind(place + '/log')
            log.settimeout(LIMIT)
            child = subprocess.Popen(
                words, stdin=theirs, stdout=theirs, env=self.environ(), start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
            os.close(theirs)
            self.wait_for(self.is_made)
            os.close(ours)
            self.assertEqual(128 + signal.SIGHUP, child.wait(LIMIT))
            self.assertRegex(log.recv(10000).decode(), 'VmBackup.*%s.*ERROR ended by signal 1 ' % (
                self.TAKEN % 'VM'))
        self.assert_taken_back()

    def test_an_output_that_nobody_reads_ends_nothing(self):
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, 'wb') as stream:
            child = self.start_with(['password', 'restore=web', 'from=' + self.backups],
                                    stdout=stream)
        self.assertEqual(0, child.wait(LIMIT))
        self.assertEqual(2, len(self.vms()))

    def test_xapi_that_is_gone(self):
        self.script = self.changed_script(XAPI_PATIENCE=0.2)
        self.fault('vm-import', 'down', after=1500000)
        done = self.assert_ends(2, self.restore('web'))
        self.assertIn('what was restored was left in the pool, or its mark (the next backup or '
                      'restore with backup_dir %s settles that): ' % self.backups, done.output)
        self.assertRegex(done.lines[-1], '^ERROR xe vm-import failed: .*xapi has ended meanwhile')
        self.sim.restart()
        self.assertRegex(self.ok(self.try_out('web')).output, self.TAKEN % 'VM')
        self.assert_taken_back()

    def test_on_a_terminal_it_tells_how_far_it_is(self):
        self.ok(self.back_up('vm-export=web', compress='gzip'))
        self.ok(self.back_up('vdi-export=web', vdi_export_format='vhd'))
        for name in ('web.xva', 'web.xva.gz', 'web.raw', 'web.vhd'):
            with self.subTest(name):
                path, = glob.glob(os.path.join(self.backups, 'web', '*', name))
                verb = 'vm-import' if 'xva' in name else 'vdi-import'
                self.fault(verb, 'slow', rate=6 * MIB)
                status, text = self.on_terminal(
                    'password', 'restore=' + path, 'verify=no',
                    'from=' + self.config(stall_timeout=0.02))
                self.assertEqual(0, status, text)
                shares = re.findall(r'(\d+) %, 0:00:\d\d left, restored .* of .*/s: ' + name, text)
                self.assertTrue(any(0 < int(share) < 100 or '.gz' in name for share in shares),
                                text)                  # which is read ahead


class Namesakes(RestoreCase):
    """Several things of a name are told apart, and their uuids are taken."""

    pool_description = {
        'hosts': ['a', 'b', 'c'], 'networks': [pools.NETWORK, 'lan'],
        'srs': [{'name': 'Local storage', 'host': host, 'size': size} for host, size in (
            ('a', '1 GiB'), ('b', '2 GiB'), ('c', '3 GiB'))] + [
                {'name': 'shared', 'shared': True, 'size': '4 GiB'},
                {'name': 'DVD drives', 'type': 'udev'}],
        'vms': [{'name': 'web', 'disks': [{'size': '1 MiB', 'sr': 'shared'}], 'networks': ['lan']},
                {'name': 'twin', 'disks': []},
                {'name': 'twin', 'disks': [], 'host': 'b', 'power_state': 'Running'}]}

    def prepare(self):
        self.ok(self.back_up('vdi-export=web'))
        self.ok(self.back_up('vm-export=web'))

    def test_storage(self):
        words = ['%s (%s, on %s): %d.0 GiB of %d.0 GiB free' % (
            sr['name_label'], sr['uuid'], on, size, size) for sr, on, size in zip(
                self.sim.pool.tables['SR'].values(), ('a', 'b', 'c', 'a, b, c'), (1, 2, 3, 4))]
        self.refused('no single SR is Local storage (choose one, sr=UUID): ' +
                     ', '.join(words[:3]), self.restore('web', 'sr=Local storage'))
        pool, = self.sim.pool.tables['pool'].values()
        pool['default_SR'] = 'OpaqueRef:NULL'
        self.refused('no single SR is the default one (choose one, sr=UUID): ' + ', '.join(words),
                     self.restore('web'))
        uuid = re.search('[-0-9a-f]{36}', words[1]).group()
        self.assertIn(uuid, self.ok(self.restore('web', 'sr=' + uuid)).output)

    def test_vms_and_networks(self):
        image = self.dated('web')[0]
        first, second = [vm['uuid'] for vm in self.sim.pool.tables['VM'].values()
                         if vm['name_label'] == 'twin']
        self.refused('attach=twin is not one VM, halted or running (choose its uuid): %s '
                     '(Halted), %s (Running, on b)' % (first, second),
                     self.restore(image, 'attach=twin'))
        self.ok(self.restore(image, 'attach=' + first))
        other = self.sim.pool.new('network', name_label='lan', bridge='xenbr9')
        self.assertRegex(self.ok(self.restore('web', 'preview')).output, r'VIF 0 in lan '
                         r'\([-0-9a-f]{36}\) or lan \(%s\)' %
                         self.sim.pool.tables['network'][other]['uuid'])


class Leftovers(RestoreCase):
    """What a restore that was killed has left is removed by whoever comes next."""

    pool_description = {'vms': [{'name': 'web', 'disks': ['2 MiB'], 'ran': True}]}

    def prepare(self):
        self.ok(self.back_up('vm-export=web'))
        self.before = self.contents()
        self.fault('vm-import', 'down', after=1500000)
        child = self.start('password', 'restore=web', 'from=' + self.backups)
        self.wait_for(lambda: self.sim.pool.tables['VM'] and self.sim.pool.is_down)
        child.kill()
        self.finish(child)
        self.sim.restart()

    def setUp(self):
        super().setUp()
        self.before = self.saved.before
        self.made, = self.half()
        self.record_file, = glob.glob(os.path.join(self.backups, '.restore-*'))

    def half(self):
        return [vm for vm in self.sim.pool.tables['VM'].values()
                if VmBackup.MARK in vm['other_config']]

    def test_by_a_backup_run_that_does_not_back_it_up(self):
        done = self.ok(self.back_up('vm-export=.*'))
        self.assertIn('removing what is left of a restore that was killed', done.lines)
        self.assertIn('  vm-export: web', done.lines)
        self.assert_clean()
        self.assert_unmarked()

    def test_although_its_removal_is_refused_at_first(self):
        self.script = self.changed_script(DISCARD_PAUSES=(0.01,), BUSY_PAUSES=(0.01,))
        self.fault('vm-destroy', 'refuse', nth=1, times=2, error=['VM_BAD_POWER_STATE', 'x'])
        done = self.ok(self.back_up('vm-export=web'))
        self.assertEqual(2, done.output.count(': trying again\n'))
        self.assert_clean()

    def left_alone(self):
        """The next run warns of the half restored VM, and does not touch it."""
        half = self.half()
        done = self.ends(1, 'vm-export=.*', exclude='web-restored.*')
        self.assertIn('is partly restored, but in use: not touched', done.output)
        self.assertEqual(half, self.half())

    def test_unless_somebody_uses_it_or_has_used_it(self):
        for word in 'vbd-unplug', 'vbd-destroy':       # of the transfer that has ended
            self.xe(word, 'uuid=' + self.xe('vbd-list', 'mode=RW', 'vm-name-label=Control domain '
                                            'on host: host1', '--minimal').strip())
        self.xe('vm-start', 'uuid=' + self.made['uuid'])
        self.left_alone()
        self.xe('vm-shutdown', 'uuid=' + self.made['uuid'], 'force=true')
        self.left_alone()

    def test_unless_somebody_has_taken_a_snapshot_of_it(self):
        self.xe('vm-snapshot', 'uuid=' + self.made['uuid'], 'new-name-label=mine')
        self.left_alone()

    def test_a_disk_that_another_vm_has_by_now_stays(self):
        """As one whose restore is killed while it is attached."""
        tables = self.sim.pool.tables
        disk, = [tables['VBD'][ref]['VDI'] for ref in self.made['VBDs']]
        self.xe('vbd-create', 'vm-uuid=' + self.uuid_of('web'), 'device=9', 'mode=RW',
                'vdi-uuid=' + tables['VDI'][disk]['uuid'])
        self.ends(0, 'vdi-export=web')
        self.assertEqual([], self.half())
        self.assertIn(disk, tables['VDI'])
        self.assert_unmarked()

    def test_one_that_is_complete_stays_whatever_becomes_of_its_disks(self):
        self.put_file(self.record_file, self.read(self.record_file) + '\ncomplete\n')
        self.xe('vbd-destroy', 'uuid=' + self.xe('vbd-list', 'vm-uuid=' + self.made['uuid'],
                                                 'type=Disk', '--minimal').strip())
        disks = len(self.sim.pool.tables['VDI'])
        self.ok(self.back_up('vm-export=web'))
        self.assertEqual(disks, len(self.sim.pool.tables['VDI']))
        self.assertIn(self.made['uuid'], [vm['uuid'] for vm in
                                          self.sim.pool.tables['VM'].values()])
        self.assert_unmarked()

    def test_a_damaged_record_is_told_by_a_run_and_a_test_restore(self):
        self.put_file(self.record_file, '{')
        words = '***WARNING - %s: the record of a restore is damaged' % self.record_file
        for run in (lambda: self.back_up('vm-export=web'), lambda: self.try_out('web')):
            self.assertIn(words, self.assert_ends(1, run()).output)
            self.assertEqual(1, len(self.half()))

    def test_a_damaged_record_holds_up_no_other(self):
        self.put_file(os.path.join(self.backups, '.restore-%s.json' % ('0' * 32)), '[1]')
        self.ends(1, 'vm-export=web')
        self.assertEqual([], self.half())

    def assert_left_alone(self, **fields):
        """With other fields in the record the next run, which it returns, touches neither the
        record nor the VM."""
        record = json.loads(self.read(self.record_file))
        self.put_file(self.record_file, json.dumps(dict(record, **fields)))
        done = self.back_up('vdi-export=web')
        self.assertTrue(os.path.exists(self.record_file), done.output)
        self.assertEqual([self.made], self.half())
        return done

    def note(self, **fields):
        """Have this host note the record with other fields."""
        record = VmBackup.Restoring(**dict(json.loads(self.read(self.record_file)), **fields))
        with mock.patch.dict(os.environ, self.environ()):
            VmBackup.note(self.record_file, record)

    def test_the_copy_of_a_record_under_another_name_is_not_acted_upon(self):
        os.rename(self.record_file, os.path.join(self.backups, '.restore-%s.json' % ('0' * 32)))
        self.assertIn(' the record of a restore is damaged', self.ends(1, 'vm-export=web').output)
        self.assertEqual([self.made], self.half())

    def test_a_record_put_in_the_place_of_the_one_that_a_restore_here_has_locked_is_none(self):
        self.note(host=HOST, process=VmBackup.process())
        self.assert_left_alone(host=HOST, process='1 1')

    def test_what_this_host_knows_to_be_complete_stays_whatever_the_share_says(self):
        self.note(complete=True)
        self.ok(self.back_up('vm-export=web'))
        self.assertIn(self.made['uuid'], [vm['uuid'] for vm in
                                          self.sim.pool.tables['VM'].values()])
        self.assert_unmarked()

    def test_one_that_was_started_stays_whenever_the_restore_is_said_to_have_begun(self):
        self.put_file(self.record_file, json.dumps(dict(
            json.loads(self.read(self.record_file)), since='99990101T00:00:00Z')))
        self.test_unless_somebody_uses_it_or_has_used_it()

    def test_one_of_another_pool_is_not_acted_upon(self):
        done = self.assert_left_alone(pool='another')
        self.assertIn('***NOTE - %s records a restore in another pool, another: not touched' %
                      self.record_file, done.lines)

    def test_one_that_may_go_on_elsewhere_is_left_alone_where_nothing_can_be_locked(self):
        test_store.NoLocks.forbid_locks(self)
        for process in '1 1', VmBackup.process():      # another one's of this number
            self.assert_left_alone(host='elsewhere', process=process)
        os.utime(self.record_file, (0, time.time() - VmBackup.LONGEST_SILENCE - 9))
        self.ok(self.back_up('vdi-export=web'))
        self.assert_clean()


def rewritten(ova, name, *more):
    return VmBackup.rewrite_for_import(ova, SimpleNamespace(name=name, networks={}), *more)


class OvaXml(unittest.TestCase):
    """What is changed in an archive on its way in, and what is not."""

    @classmethod
    def setUpClass(cls):
        pool = pools.load({'vms': [{'name': 'web', 'disks': ['1 MiB'], 'ran': True,
                                    'other_config': {'auto_poweron': 'true', 'a&b': '<c>'}}]})
        ref = next(ref for ref, vm in pool.tables['VM'].items() if vm['name_label'] == 'web')
        with pool.export_vm(ref) as stream:
            data = b''.join(stream)
        size = int(data[124:135], 8)
        cls.ova = data[512:512 + size]

    def test_only_names_marks_and_what_starts_a_vm(self):
        changed = rewritten(self.ova, 'new <&> "name"\n', '0' * 32, ())
        before, after = (VmBackup.ova_objects(ova) for ova in (self.ova, changed))
        differences = set()
        for cls, objects in before.items():
            for ref, fields in objects.items():
                differences.update((cls, field) for field, value in fields.items()
                                   if value != after[cls][ref][field])
        self.assertEqual({('VM', 'name_label'), ('VM', 'other_config'), ('VDI', 'other_config'),
                          ('network', 'other_config')},
                         differences - {('VM', 'is_a_template'), ('VM_metrics', 'start_time')})
        vm, = after['VM'].values()
        self.assertEqual('new <&> "name"\n', vm['name_label'])
        other = vm['other_config']
        self.assertEqual(('<c>', '0' * 32), (other['a&b'], other[VmBackup.MARK]))
        self.assertNotIn('auto_poweron', other)

    def test_odd_values_and_keys_come_through(self):
        value, _ = xmlrpc.client.loads(b'<params><param>%s</param></params>' % self.ova)
        odd = {'': 'a\r\nb\rc\t', "vTPM'_VM": ' <&>"\' ', 'number': 1.5, 'when':
               xmlrpc.client.DateTime('20260101T00:00:00Z'), 'bytes': xmlrpc.client.Binary(b'x'),
               'not': False, 'many': [[], {}, ['']], '名前': '\U0001f600'}
        value[0]['objects'][0]['snapshot'].update(odd)
        text = re.search('<value>.*</value>', xmlrpc.client.dumps(value), re.DOTALL).group()
        ova = text.replace('\r', '&#13;').encode('utf-8')
        changed = rewritten(ova, 'x', '0' * 32, ())
        (found,), _ = xmlrpc.client.loads(b'<params><param>%s</param></params>' % changed)
        found = found['objects'][0]['snapshot']
        self.assertEqual(odd, {key: found[key] for key in odd})

    def test_the_samples_of_a_real_xapi(self):
        samples = glob.glob(os.path.join(DATA, 'samples', 'sample.*'))
        self.assertGreater(len(samples), 1)
        for path in samples:
            with self.subTest(path=path):
                with VmBackup.opened(path, '.xva') as reader:
                    ova = reader.read_ova()
                changed = rewritten(ova, 'again', '1' * 32, ())
                self.assertEqual(VmBackup.archived_vm(ova)._replace(name='again'),
                                 VmBackup.archived_vm(changed))

    def test_one_that_another_program_wrote_or_indented_is_read_as_it_is_meant(self):
        """A real xapi imports both (recorded from 26.17.0)."""
        value, _ = xmlrpc.client.loads(b'<params><param>%s</param></params>' % self.ova)
        text = re.search('<value>.*</value>', xmlrpc.client.dumps(value), re.DOTALL).group()
        indented = text.replace('<value><', '<value>\n  <').replace('></value>', '>\n</value>')
        for ova in (text.encode('utf-8'), indented.encode('utf-8')):
            self.assertEqual(VmBackup.archived_vm(self.ova), VmBackup.archived_vm(ova))

    def test_a_number_without_end_is_none(self):
        for new in (b'9' * 3000000, b'-1', b'<int>%s</int>' % (b'9' * 3000000), b'1e9', b''):
            ova = self.ova.replace(b'<value>1048576</value>', b'<value>%s</value>' % new)
            self.assertNotEqual(ova, self.ova)
            with self.assertRaisesRegex(VmBackup.Damaged, 'virtual_size is no number: .{,40}$'):
                VmBackup.archived_vm(ova)
            rewritten(ova, 'x', '0' * 32, ())
