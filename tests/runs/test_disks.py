"""Which disks are backed up: [NOBAK], exclude-disk, vdi_disks, vdi_compress."""

import os
import subprocess
import threading
import time

import VmBackup
from tests.faults.faulting import opened, read_images
from tests.simpool import archive, model
from tests.tools.support import LIMIT, PoolCase

OLD = '21.3'                       # the last xapi whose vm-snapshot cannot leave out disks


class DiskCase(PoolCase):
    """A VM with three disks, of which one is marked as not to be backed up."""

    pool_description = {'vms': [
        {'name': 'web', 'ran': True, 'disks': [
            {'size': '64 KiB', 'name': 'system', 'fill': 1},
            {'size': '128 KiB', 'name': 'swap [NOBAK]'}, {'size': '192 KiB', 'name': 'data'}]},
        {'name': 'db', 'ran': True, 'disks': [{'size': '64 KiB', 'name': '[NOBAK] all'}]},
        {'name': 'old', 'tags': ['xo:no-bak=replaced'], 'disks': ['2 MiB']}]}

    def exported(self, name, vm='web'):
        """The SHA-256 of the disks in a file of a VM's newest backup."""
        disks = {disk.get('file'): disk['virtual_size'] for disk in self.manifest(vm)['disks']}
        with opened(self.newest(vm, name)) as stream:
            return [image.sha256() for image in read_images(stream, name, disks.get(name))]

    def archived(self):
        """The sizes of the disks in the newest archive of web, sorted, in 64 KiB."""
        with open(self.newest('web', 'web.xva'), 'rb') as stream:
            return sorted(image.virtual_size >> 16
                          for image in archive.read_xva(stream).disks.values())

    def hook(self, work):
        """Have this done when the backup of a VM begins, after the tables were read."""
        done, asked = self.at('done'), self.at('asked')
        self.path = self.program('hook', '[ $1 = backup-start ] || exit 0\ntouch %s\n'
                                 'until [ -e %s ]; do sleep 0.02; done\n' % (asked, done))

        def wait():
            self.wait_for(lambda: os.path.exists(asked))
            work()
            open(done, 'w', encoding='utf-8').close()
        thread = threading.Thread(target=wait)
        thread.start()
        self.addCleanup(thread.join)


class Many(DiskCase):
    """Disks beyond the 26th, of a VM that ran and of one that never did: that has only numbers."""

    pool_description = {'vms': [{'name': name, 'ran': name == 'ran', 'disks': ['64 KiB'] * 28}
                                for name in ('ran', 'new')]}

    def test_a_number_is_named_as_xapi_names_it(self):
        for number, device in ((0, 'xvda'), (25, 'xvdz'), (26, 'xvdaa'), (27, 'xvdab'),
                               (51, 'xvdaz'), (52, 'xvdba'), (701, 'xvdzz'), (702, 'xvdaaa'),
                               (model.MAX_DEVICE, 'xvdbgqcv')):
            self.assertEqual(device, VmBackup.device_name('', str(number)))
            self.assertEqual(device, model.linux_name('xvd', number, 0))
        for number in '', 'xvdaa', '9' * 5000:
            self.assertEqual(number, VmBackup.device_name('', number))

    def test_are_exported_named_chosen_excluded_and_restored_whether_it_ran_or_not(self):
        for vm in 'ran', 'new':
            exclude = 'exclude-disk=%s/xvdab' % vm
            done = self.ends(0, 'vdi-export=' + vm, exclude, vdi_disks='all')
            self.assertIn('left out: xvdab (%s 27): %s' % (vm, exclude), done.lines)
            manifest = self.manifest(vm)
            self.assertEqual(['xvda', 'xvdy', 'xvdz', 'xvdaa'],
                             [disk['device'] for disk in manifest['disks']][:1] +
                             [disk['device'] for disk in manifest['disks']][-3:])
            self.assertEqual('DISK-xvdaa.raw', manifest['disks'][26]['file'])
            self.assertEqual(['xvdab'], [disk['device'] for disk in manifest['left_out']])
            self.assertIn('DISK-xvdaa', os.listdir(self.newest(vm)))
            self.assertIn('device=26 ', self.read(self.newest(vm, 'RESTORE.txt')))
            time.sleep(1)
            self.ends(0, 'vdi-export=' + vm, vdi_disks='xvdaa,xvdz,xvdb')
            self.assertEqual({'DISK-xvdb.raw', 'DISK-xvdz.raw', 'DISK-xvdaa.raw'}, {
                name for name in os.listdir(self.newest(vm)) if name.endswith('.raw')})
            done = self.command(0, 'password', 'restore=' + self.newest(vm, 'DISK-xvdaa.raw'),
                                'attach=' + vm, 'force=yes')
            self.assertIn('  attached: to %s as xvdac' % vm, done.output)
            self.assertEqual(self.digest(vm, '26'), self.digest(vm, '28'))
            self.before = self.contents()


class LeftOut(DiskCase):
    def test_nobak_is_backed_up_unless_it_is_honoured(self):
        self.ends(0, 'vm-export=web')
        self.assertEqual([1, 2, 3], self.archived())

    def test_a_nobak_disk_never_gets_into_the_snapshot(self):
        done = self.ends(0, 'vm-export=web', honour_nobak='yes')
        self.assertEqual([1, 3], self.archived())
        self.assertIn('left out: xvdb (swap [NOBAK]): [NOBAK]', done.lines)
        snapshot, = [words for verb, words in self.xe_calls() if verb == 'vm-snapshot']
        self.assertEqual(self.disk_of('web', '1'), snapshot['ignore-vdi-uuids'])
        self.assertNotIn('vdi-destroy', self.verbs())
        manifest = self.manifest('web')
        self.assertEqual(['xvda', 'xvdc'], [disk['device'] for disk in manifest['disks']])
        self.assertEqual([{'device': 'xvdb', 'uuid': self.disk_of('web', '1'),
                           'name': 'swap [NOBAK]', 'why': '[NOBAK]',
                           'virtual_size': 128 << 10}], manifest['left_out'])
        self.command(0, 'password', 'restore=web', 'from=' + self.backups, 'name=again')
        self.assertEqual(self.digest('web', '2'), self.digest('again', '2'))
        self.assertEqual('', self.disk_of('again', '1'))
        self.before = self.contents()

    def test_by_name_by_device_and_by_regex_in_lines_anywhere_in_the_file(self):
        for patterns, left in ((['data'], [1, 2]), (['web/xvda'], [2, 3]),
                               (['(?i).*SWAP'], [1, 3]), (['dat', 'db/.*', ''], [1, 2, 3]),
                               ([self.disk_of('web', '1')], [1, 3]), (['data', 'web/xvdb'], [1])):
            with self.subTest(patterns):
                first, *others = ['exclude-disk=' + each for each in patterns]
                self.ends(0, first, 'vm-export=web', *others)
                self.assertEqual(left, self.archived())
        self.assertEqual(['exclude-disk=web/xvdb', 'exclude-disk=data'],
                         [disk['why'] for disk in self.manifest('web')['left_out']])

    def test_a_vm_without_a_disk_that_is_left_is_backed_up_with_a_warning(self):
        done = self.ends(1, 'vm-export=db', honour_nobak='yes')
        self.assertIn('***WARNING - db: all of its disks are excluded', done.lines)
        self.assertEqual([], self.exported('db.xva', 'db'))

    def test_a_disk_that_was_moved_meanwhile_is_left_out_where_it_is_now(self):
        for version in (OLD, '26.1'):
            with self.subTest(version):
                self.pool_description = dict(self.pool_description, xapi_version=version)
                self.setUp()
                pool = self.sim.pool
                old = pool.ref_of('VDI', self.disk_of('web', '1'))

                def move(pool=pool, old=old):
                    new = pool.make_vdi(pool.record('VDI', old)['SR'], 2 << 16,
                                        name_label='swap [NOBAK]')
                    for ref in pool.record('VDI', old)['VBDs']:
                        pool.put('VBD', ref, VDI=new)
                    pool.put('VDI', new, VBDs=pool.record('VDI', old)['VBDs'])
                    pool.put('VDI', old, VBDs=[])
                self.hook(move)
                self.ends(0, 'vm-export=web', honour_nobak='yes', hook=self.path)
                self.assertEqual([1, 3], self.archived())
                self.before = self.contents()


class LeftOutByHand(DiskCase):
    """An older toolstack: the snapshot's copy is destroyed before the export."""

    def use_pool(self, **options):
        self.pool_description = dict(self.pool_description, xapi_version=OLD)
        super().use_pool(**options)

    def test_the_copy_is_destroyed_and_nothing_else(self):
        self.ends(0, 'vm-export=web', honour_nobak='yes')
        self.assertEqual(['vm-export', 'vm-snapshot', 'vdi-destroy', 'template-param-set',
                          'vm-export', 'vm-uninstall'], self.verbs())
        self.assertEqual([1, 3], self.archived())
        self.assertNotIn('ignore-vdi-uuids', dict(self.xe_calls())['vm-snapshot'])

    def test_if_it_cannot_be_destroyed_the_backup_fails_and_nothing_is_left(self):
        self.fault('vdi-destroy', 'refuse', error=['VDI_IN_USE', 'x', 'destroy'])
        done = self.ends(2, 'vm-export=web', honour_nobak='yes')
        self.assertIn('ERROR vm-export TEMPLATE-PARAM-SET-FAIL web', done.output)

    def test_several_disks_by_vdi_export(self):
        self.ends(0, 'vdi-export=web', vdi_disks='xvda,xvdc')
        self.assertEqual([self.digest('web', '2')], self.exported('DISK-xvdc.raw'))
        self.assertNotIn('vdi-destroy', self.verbs())


class Tagged(DiskCase):
    def test_the_tag_counts_only_where_it_is_honoured(self):
        self.ends(0, 'vm-export=old')
        done = self.ends(0, 'vm-export=.*', 'exclude=db', honour_nobak='yes')
        self.assertIn('***NOTE - vm has the tag xo:no-bak: old (honour_nobak)', done.lines)
        self.assertEqual(1, len(self.dated('old')))


class Preview(DiskCase):
    def preview(self, *lines, **keys):
        return self.vmbackup('password', self.config(*lines, **keys), 'preview')

    def test_it_tells_what_is_left_out_with_a_constant_number_of_calls(self):
        done = self.preview('vm-export=web', 'vm-export=db', 'exclude-disk=web/xvdc',
                            honour_nobak='yes')
        self.assertEqual(1, done.status, done.output)
        self.assertIn('***WARNING - db: all of its disks are excluded', done.lines)
        self.assertEqual(['***NOTE - left out: web/xvdb (swap [NOBAK]): [NOBAK]',
                          '***NOTE - left out: web/xvdc (data): exclude-disk=web/xvdc',
                          '***NOTE - left out: db/xvda ([NOBAK] all): [NOBAK]'],
                         [line for line in done.lines if 'left out' in line])
        self.assertEqual(6, len(self.sim.calls('xapi')), self.sim.calls('xapi'))

    def test_a_line_that_is_no_regex_is_told_of_and_stops_no_backup(self):
        config = self.config('vm-export=web', 'exclude-disk=x(')
        lines = self.assert_ends(1, self.vmbackup('password', config, 'preview')).lines
        self.assertIn('***WARNING - invalid regex: exclude-disk=x( (%s line 4): it can only be the '
                      'name of a disk' % config, lines)
        self.ends(1, 'vm-export=web', 'exclude-disk=x(')
        self.assertEqual([1, 2, 3], self.archived())

    def test_a_boot_disk_that_is_left_out_is_an_error(self):
        for keys in ({'honour_nobak': 'yes'}, {'honour_nobak': 'yes', 'vdi_disks': 'all'}):
            done = self.assert_ends(2, self.preview('vdi-export=db', **keys))
            self.assertIn('***ERROR - no disk to export: vdi-export=db', done.lines)
            run = self.ends(2, 'vdi-export=db', **keys)
            self.assertIn('ERROR vdi-export NO-BOOT-DISK db', run.output)


class Images(DiskCase):
    def restored(self, status, command):
        return self.command(status, 'password', command, 'from=' + self.backups)

    def test_all_disks_are_of_one_snapshot(self):
        done = self.ends(0, 'vdi-export=web', vdi_disks='all')
        self.assertEqual(['vm-export', 'vm-snapshot', 'template-param-set', 'vdi-export',
                          'vdi-export', 'vdi-export', 'vm-uninstall'], self.verbs())
        for number, device in enumerate(('xvda', 'xvdb', 'xvdc')):
            self.assertEqual([self.digest('web', str(number))],
                             self.exported('DISK-%s.raw' % device))
        manifest = self.manifest('web')
        self.assertEqual([('DISK-xvda.raw', 1 << 16), ('DISK-xvdb.raw', 2 << 16),
                          ('DISK-xvdc.raw', 3 << 16)],
                         [(disk['file'], disk['virtual_size']) for disk in manifest['disks']])
        self.assertIn('*** success: %s : 0G' % self.dated('web')[0], done.lines)
        self.assertIn('size:0G', ' '.join(self.status()))

    def test_those_that_are_listed_and_not_left_out(self):
        self.ends(0, 'vdi-export=web', vdi_disks='xvdc,xvdb,xvdz', honour_nobak='yes')
        self.assertEqual(['DISK-xvdc.raw'], [name for name in os.listdir(self.dated('web')[0])
                                             if name.endswith('.raw')])
        snapshot, = [words for verb, words in self.xe_calls() if verb == 'vm-snapshot']
        self.assertEqual({self.disk_of('web', '0'), self.disk_of('web', '1')},
                         set(snapshot['ignore-vdi-uuids'].split(',')))

    def test_one_that_fails_leaves_no_file_and_nothing_in_the_pool(self):
        self.fault('vdi-export', 'refuse', nth=2, error=['VDI_IO_ERROR', 'x'])
        done = self.ends(2, 'vdi-export=web', vdi_disks='all')
        self.assertIn('vdi-export,end,VDI-EXPORT-FAIL web', self.status())
        self.assertEqual([], [path for path in self.tree() if path.endswith('.raw')], done.output)
        self.ends(0, 'vdi-export=web', vdi_disks='all')        # the failure's record is ours
        self.assertEqual(1, len(self.dated('web')))

    def test_compressed_by_the_systems_programs(self):
        for packing, ending, form, vm in (
                ('zstd', '.zst', 'raw', 'web'), ('gzip', '.gz', 'vhd', 'old'),
                ('gzip', '.gz', 'raw', 'web')):
            with self.subTest(packing + form):
                self.ends(0, 'vdi-export=' + vm, vdi_compress=packing, vdi_export_format=form)
                name = '%s.%s%s' % (vm, form, ending)
                if form == 'raw':
                    self.assertEqual([self.digest('web')], self.exported(name))
                path = self.newest(vm, name)
                self.assertEqual(0, subprocess.call([packing, '-tq', path]))
                self.assertEqual(0o600, os.stat(path).st_mode & 0o777)
                self.assertEqual('structure', self.manifest(vm)['verified']['proved'])
                self.command(0, 'verify', self.newest(vm))

    def test_a_compressor_that_fails_is_a_failed_export(self):
        os.mkdir(self.at('bin'))
        for body, words in (('cat >/dev/null; exit 3', 'zstd failed: exit status 3'),
                            ('head -c 1000 >/dev/null; echo full >&2; exit 1', 'failed: full'),
                            ('kill -9 $$', 'failed: exit status -9')):
            self.program('bin/zstd', body + '\n')
            done = self.ends(2, 'vdi-export=web', vdi_compress='zstd',
                             PATH=self.at('bin') + ':' + os.environ['PATH'])
            self.assertRegex(done.output, 'ERROR vdi-export VDI-EXPORT-FAIL web: .*' + words)
            self.assertEqual([], [path for path in self.tree() if '.zst' in path])

    def test_an_export_that_fails_is_seen_whatever_the_compressor_says(self):
        for kind, details in (('refuse', {'error': ['VDI_IO_ERROR', 'x']}),
                              ('refuse', {'error': ['VDI_IO_ERROR', 'x'], 'after': 30000}),
                              ('die', {'after': 30000})):
            self.fault('vdi-export', kind, **details)
            done = self.ends(2, 'vdi-export=web', vdi_compress='zstd')
            self.assertIn('ERROR vdi-export VDI-EXPORT-FAIL web', done.output)
            self.assertEqual([], [path for path in self.tree() if '.zst' in path])

    def test_a_test_restore_takes_each_of_them(self):
        self.ends(0, 'vdi-export=web', vdi_disks='all', vdi_compress='gzip')
        before = len(self.xe_calls())
        self.restored(0, 'test-restore=web')
        self.assertEqual(3, [verb for verb, _ in self.xe_calls()[before:]].count('vdi-import'))
        self.assertNotIn('fault', self.manifest('web')['test_restore'])

    def test_a_backup_that_lacks_one_of_its_files_is_damaged(self):
        self.ends(0, 'vdi-export=web', vdi_disks='all', vdi_compress='gzip')
        path = self.dated('web')[0]
        subprocess.check_call(['gzip', '-d', os.path.join(path, 'DISK-xvda.raw.gz')])
        self.assertEqual(0, self.vmbackup('verify', path).status)      # it is there
        os.unlink(os.path.join(path, 'DISK-xvdb.raw.gz'))
        for words in (['password', 'test-restore=web', 'from=' + self.backups], ['verify', path]):
            done = self.command(2, *words)
            self.assertIn('DISK-xvdb.raw is missing', done.output)
        self.assertIn('fault', self.manifest('web')['test_restore'])
        self.assertIn('damaged', self.vmbackup('list', self.backups).output)

    def test_a_test_restore_without_any_file_proves_nothing(self):
        self.ends(0, 'vm-export=web')
        os.unlink(self.newest('web', 'web.xva'))
        done = self.restored(2, 'test-restore=web')
        self.assertIn('there is no archive or image in it', done.output)
        self.assertIn('fault', self.manifest('web')['test_restore'])

    def test_the_guide_restores_each_disk(self):
        self.ends(0, 'vdi-export=web', vdi_disks='xvda,xvdc', vdi_compress='zstd')
        lines = [line for line in self.read(self.newest('web', 'RESTORE.txt')).splitlines()
                 if ' restore ' not in line and not line.startswith('xe vbd-create')]
        place = os.path.join(self.directory, 'bin')
        os.mkdir(place)
        os.symlink(self.sim.xe, os.path.join(place, 'xe'))
        done = subprocess.run(['bash', '-euc', '\n'.join(lines)], timeout=LIMIT, env=dict(
            self.environ(), PATH=place + ':' + os.environ['PATH']), stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE)
        self.assertEqual(0, done.returncode, done.stdout)
        self.assertEqual([], [path for path in self.tree() if path.endswith('.raw')])
        pool = self.sim.pool
        for name, device in (('system', '0'), ('data', '2')):
            digests = {pool.content[ref].sha256() for ref, vdi in pool.tables['VDI'].items()
                       if vdi['name_label'] == name}
            self.assertEqual({self.digest('web', device)}, digests)
            self.assertEqual(2, len([vdi for vdi in pool.tables['VDI'].values()
                                     if vdi['name_label'] == name]))
        self.before = self.contents()
