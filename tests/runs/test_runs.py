"""Runs: a night's backup from end to end, against the simulated pool."""

import datetime
import hashlib
import os
import xml.etree.ElementTree

import VmBackup
from tests.simpool import archive
from tests.tools.support import HOST, PoolCase


class RunCase(PoolCase):
    pool_description = {'vms': [
        {'name': 'web', 'power_state': 'Running', 'disks': ['64 KiB', '128 KiB']},
        {'name': 'db', 'disks': ['128 KiB', {'size': '64 KiB', 'fill': 0}], 'ran': True}]}


class ANight(RunCase):
    def test_vm_export_writes_an_archive_with_the_bytes_of_the_disks(self):
        self.ends(0, 'vm-export=web')
        with open(self.newest('web', 'web.xva'), 'rb') as stream:
            found = sorted(image.sha256() for image in archive.read_xva(stream).disks.values())
        self.assertEqual(sorted(self.digest('web', device) for device in '01'), found)

    def test_vdi_export_writes_the_boot_disk_only(self):
        self.ends(0, 'vdi-export=db')
        with open(self.newest('db', 'db.raw'), 'rb') as stream:
            self.assertEqual(self.digest('db'), hashlib.sha256(stream.read()).hexdigest())

    def test_the_directory_holds_what_3_25_wrote(self):
        self.ends(0, 'vm-export=web', 'vdi-export=db')
        common = ['', '/DATED', '/DATED/DISK-xvda', '/DATED/DISK-xvda/vbd.cfg',
                  '/DATED/DISK-xvda/vdi.cfg', '/DATED/DISK-xvdb', '/DATED/DISK-xvdb/vbd.cfg',
                  '/DATED/DISK-xvdb/vdi.cfg', '/DATED/VIFs', '/DATED/VIFs/vif-0.cfg',
                  '/DATED/backup.json', '/DATED/success', '/DATED/vm-metadata.xml', '/DATED/vm.cfg',
                  '/DATED/vm.json', '/DATED/RESTORE.txt']
        self.assertEqual(sorted(['db' + part for part in common + ['/DATED/db.raw']] +
                                ['web' + part for part in common + ['/DATED/web.xva']]),
                         self.tree())

    def test_the_four_commands_of_vm_export_follow_the_metadata_export(self):
        self.back_up('vm-export=web')
        calls = self.xe_calls()
        self.assertEqual(['vm-export', 'vm-snapshot', 'template-param-set', 'vm-export',
                          'vm-uninstall'], [verb for verb, _ in calls])
        self.assertEqual({'metadata': 'true', 'filename': ''},
                         {key: calls[0][1][key] for key in ('metadata', 'filename')})
        self.assertEqual('RESTORE_web', calls[1][1]['new-name-label'])
        self.assertEqual(('false', 'false'),
                         (calls[2][1]['is-a-template'], calls[2][1]['ha-always-run']))
        self.assertEqual('true', calls[4][1]['force'])

    def test_the_four_commands_of_vdi_export_follow_the_metadata_export(self):
        self.back_up('vdi-export=db')
        calls = self.xe_calls()
        self.assertEqual(['vm-export', 'vdi-snapshot', 'vdi-param-set', 'vdi-export',
                          'vdi-destroy'], [verb for verb, _ in calls])
        self.assertEqual('SNAP_db_db-0', calls[2][1]['name-label'])
        self.assertEqual('raw', calls[3][1]['format'])

    def test_the_archive_restores_as_a_vm_with_the_same_disks(self):
        self.leaves_things_behind = True
        self.back_up('vm-export=web')
        uuid = self.xe('vm-import', 'filename=' + self.newest('web', 'web.xva')).strip()
        pool = self.sim.pool
        vm = pool.tables['VM'][pool.ref_of('VM', uuid)]
        self.assertEqual((False, False), (vm['is_a_template'], vm['is_a_snapshot']))
        restored = sorted(pool.content[pool.tables['VBD'][vbd]['VDI']].sha256()
                          for vbd in vm['VBDs'])
        original = sorted(pool.content[vdi].sha256() for vdi, name in self.before['VDI'].items()
                          if name.startswith('web'))
        self.assertEqual(original, restored)

    def test_compression_names_the_file_and_is_asked_of_xe(self):
        for word, extension, parameter, magic in (
                ('True', '.xva.gz', 'true', b'\x1f\x8b'), ('gzip', '.xva.gz', 'true', b'\x1f\x8b'),
                ('zstd', '.xva.zst', 'zstd', b'\x28\xb5\x2f\xfd'), ('none', '.xva', None, b'ova'),
                ('FALSE', '.xva', None, b'ova')):
            with self.subTest(word):
                self.assert_ends(0, self.vmbackup('password', self.config('vm-export=db'),
                                                  'Compress=' + word))
                with open(self.newest('db', 'db' + extension), 'rb') as stream:
                    self.assertEqual(magic, stream.read(len(magic)))
                exports = [call for call in self.xe_calls()
                           if call[0] == 'vm-export' and 'metadata' not in call[1]]
                self.assertEqual(parameter, exports[-1][1].get('compress'))

    def test_compress_can_stand_in_the_config_and_the_command_line_wins(self):
        config = self.config('vm-export=db', compress='zstd')
        for words, name in (((), 'db.xva.zst'), (('compress=none',), 'db.xva')):
            self.assert_ends(0, self.vmbackup('password', config, *words))
            self.assertIn('db/DATED/' + name, self.tree())

    def test_vhd_is_written_as_vhd(self):
        self.ends(0, 'vdi-export=db', vdi_export_format='vhd')
        with open(self.newest('db', 'db.vhd'), 'rb') as stream:
            image = archive.read_vhd(stream)
        self.assertEqual(128 << 10, image.virtual_size)

    def test_relative_paths_are_taken_from_the_current_directory(self):
        self.ends(0, 'vm-export=db', backup_dir='BACKUPS', status_log='logs/status.log')
        self.assertIn('db/DATED/success', self.tree())
        self.assertIn('vmbackup.py,end,SUCCESS,S:1 W:0 E:0', self.status())

    def test_a_directory_of_the_name_of_a_vm_is_no_config_file(self):
        os.mkdir(self.at('db'))
        self.assertIn('  vm-export: db', self.vmbackup('password', 'db', 'preview').lines)

    def test_a_vm_selector_takes_the_place_of_a_config_file(self):
        done = self.vmbackup('password', 'vdi-export=db.*', 'preview')
        self.assertIn('  vdi-export: db', done.lines)
        self.assertIn('  backup_dir        = /snapshots/BACKUPS', done.lines)
        self.assertFalse(os.path.exists(self.status_log))


class Rotation(RunCase):
    def test_backups_are_numbered_and_the_oldest_goes_when_a_new_one_is_complete(self):
        for number in (1, 2, 3):
            self.ends(0, 'vm-export=db', max_backups=2)
            self.assertEqual(number, self.manifest('db')['number'])
            self.assertEqual(min(number, 2), len(self.dated('db')))

    def test_two_backups_of_one_second_get_directories_of_their_own(self):
        history = VmBackup.BackupStore(self.backups, 'b-%Y%m%d%H%M%S').history('db')
        moment = datetime.datetime(2026, 3, 1, 23, 59, 59, 999999)
        self.assertEqual(['b-20260301235959', 'b-20260302000000'], [
            os.path.basename(history.begin(moment).path) for _ in range(2)])

    def test_backups_of_3_25_count_whatever_their_marker(self):
        for number, marker in enumerate(('success', 'success_compress', 'success_restore',
                                         'success_compressing')):
            self.old_backup('db', 'backup-2019-01-0%d-(00:00:00)' % (number + 1), marker)
        self.ends(0, 'vm-export=db:2')
        self.assertEqual(['backup-2019-01-04-(00:00:00)'],
                         [os.path.basename(path) for path in self.dated('db')][:-1])

    def test_what_is_not_ours_is_neither_counted_nor_deleted(self):
        kept = ('KEEP-golden', '.snapshot', 'backup-2019-01-01-(00:00:00).old',
                'backup-2019-02-31-(00:00:00)', 'xbackup-2019-01-01-(00:00:00)')
        for name in kept:
            self.old_backup('db', name, 'success')
        target = self.old_backup('elsewhere', 'precious', 'success')
        os.symlink(target, os.path.join(self.backups, 'db', 'backup-2018-01-01-(00:00:00)'))
        self.put_file('BACKUPS/db/notes.txt')
        for _ in range(2):
            self.ends(0, 'vm-export=db:1')
        names = os.listdir(os.path.join(self.backups, 'db'))
        self.assertEqual(set(kept) | {'notes.txt', 'backup-2018-01-01-(00:00:00)'},
                         set(names) - {os.path.basename(path) for path in self.dated('db')
                                       if path.endswith(')') and '-202' in path})
        self.assertTrue(os.path.exists(os.path.join(target, 'success')))
        self.assertEqual(1, len([name for name in names if '-202' in name]))

    def test_the_last_failed_backup_is_removed_at_the_start(self):
        self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'success')
        failed = self.old_backup('db', 'backup-2019-01-02-(00:00:00)', 'db.xva')
        done = self.back_up('vm-export=db')
        self.assertFalse(os.path.exists(failed))
        self.assertIn('Deleting last **unsuccessful** backup %s ' % failed, done.lines)
        self.assertEqual(2, len(self.dated('db')))

    def test_failed_backups_older_than_every_good_one_go_too(self):
        for day in (1, 2):
            self.old_backup('db', 'backup-2019-01-0%d-(00:00:00)' % day, 'db.xva')
        kept = self.old_backup('db', 'backup-2019-01-03-(00:00:00)', 'success')
        self.ends(0, 'vm-export=db:2')
        self.assertEqual(kept, self.dated('db')[0])
        self.assertEqual(2, len(self.dated('db')))

    def test_failed_backups_never_push_out_good_ones(self):
        good = self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'success')
        for _ in range(3):
            self.fault('vm-export', 'refuse', nth=2, error=['VDI_IO_ERROR', 'x'])
            self.ends(2, 'vm-export=db:1')
        self.assertTrue(os.path.exists(good))

    def test_another_name_pattern_and_the_default_one_are_both_known(self):
        self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'success')
        pattern = 'backup-%Y-%m-%d-%H%M%S'
        for _ in range(2):
            self.ends(0, 'vm-export=db:2', backup_dir_pattern=pattern)
        for path in self.dated('db'):
            self.assertRegex(os.path.basename(path), r'^backup-\d{4}-\d\d-\d\d-\d{6}$')
        self.assertEqual(2, len(self.dated('db')))

    def test_a_name_pattern_of_any_alphabet_works_under_any_locale(self):
        pattern = 'sauvegardé-%Y%m%d%H%M%S'
        for environ in ({'LC_ALL': 'C'}, {}):
            self.assert_ends(0, self.vmbackup('password', self.config(
                'vm-export=db:1', backup_dir_pattern=pattern), **environ))
        name, = os.listdir(os.fsencode(os.path.join(self.backups, 'db')))
        self.assertRegex(name.decode('utf-8'), r'^sauvegardé-\d{14}$')

    def test_half_a_deleted_backup_is_none(self):
        old = self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'success', 'success_compress')
        os.rename(old, os.path.join(os.path.dirname(old), '.deleting-' + os.path.basename(old)))
        self.ends(0, 'vm-export=db')
        self.assertEqual(1, len(self.dated('db')))

    def test_the_new_backup_stays_when_older_ones_carry_later_dates(self):
        for year in (2098, 2099):
            self.old_backup('db', 'backup-%d-01-01-(00:00:00)' % year, 'success')
        self.ends(0, 'vm-export=db:1')
        self.assertEqual(1, len(self.dated('db')))
        self.assertTrue(os.path.exists(os.path.join(self.dated('db')[0], 'db.xva')))

    def test_pre_clean_deletes_before_the_export_but_after_the_snapshot(self):
        old = [self.old_backup('db', 'backup-2019-01-0%d-(00:00:00)' % day, 'success')
               for day in (1, 2, 3)]
        self.fault('vm-export', 'refuse', nth=2, error=['VDI_IO_ERROR', 'x'])
        self.ends(2, 'vm-export=db:3', pre_clean=True)
        self.assertEqual([False, True, True], [os.path.exists(path) for path in old])

    def test_pre_clean_deletes_nothing_when_the_snapshot_fails(self):
        old = [self.old_backup('db', 'backup-2019-01-0%d-(00:00:00)' % day, 'success')
               for day in (1, 2, 3)]
        self.fault('vm-snapshot', 'refuse', error=['SR_BACKEND_FAILURE_44', '', '', ''])
        self.ends(2, 'vm-export=db:1', pre_clean=True)
        self.assertEqual([True] * 3, [os.path.exists(path) for path in old])

    def test_pre_clean_never_deletes_the_last_good_backup(self):
        old = [self.old_backup('db', 'backup-2019-01-0%d-(00:00:00)' % day, 'success')
               for day in (1, 2)]
        self.fault('vm-export', 'refuse', nth=2, error=['VDI_IO_ERROR', 'x'])
        self.assert_ends(2, self.vmbackup('password', self.config('vm-export=db:1'),
                                          'PRE_CLEAN=True'))
        self.assertEqual([False, True], [os.path.exists(path) for path in old])


class Markers(RunCase):
    def marker_of(self, gib, **keys):
        """The marker of a vdi-export whose file is of that size, sparse."""
        self.assert_ends(0, self.vmbackup('password', self.config(
            'vdi-export=db', vdi_export_format='vhd', verify='no', **keys),
            VMBACKUP_XE=self.xe_whose('vdi-export', 'exec truncate -s %dG "$1"' % gib)))
        self.assertIn('vdi-export,end,SUCCESS db,elapse:0 size:%dG' % gib, self.status())
        return [name for name in os.listdir(self.newest('db')) if name.startswith('success')]

    def test_more_than_60_gib_are_marked_success_compress(self):
        self.assertEqual(['success'], self.marker_of(60))
        self.assertEqual(['success_compress'], self.marker_of(61))

    def test_the_limit_can_be_set(self):
        self.assertEqual(['success_compress'], self.marker_of(2, large_backup=1))
        self.assertEqual(['success'], self.marker_of(61, large_backup=100))


class Calls(RunCase):
    def test_the_number_of_calls_does_not_grow_with_disks_and_interfaces(self):
        counts = []
        for number in (1, 12):
            self.pool_description = {'networks': ['net'], 'vms': [
                {'name': 'web', 'disks': ['64 KiB'] * number, 'networks': ['net'] * number}]}
            self.use_pool()
            self.ends(0, 'vm-export=web')
            counts.append(len(self.sim.calls('xapi')))
        self.assertEqual(counts[0], counts[1])

    def test_a_vm_costs_at_most_four_calls_and_five_commands(self):
        counts = []
        for number in (1, 4):
            self.pool_description = {'vms': [{'name': 'vm{n}', 'disks': ['64 KiB'],
                                              'count': number}]}
            self.use_pool()
            self.ends(0, 'vm-export=.*')
            counts.append((len(self.sim.calls('xapi')), len(self.sim.calls('xe'))))
        self.assertEqual((12, 15), tuple(b - a for a, b in zip(*counts)))


class Metadata(PoolCase):
    pool_description = {'vms': [
        {'name': 'dépôt', 'description': 'größer\nals gedacht', 'power_state': 'Running',
         'disks': [{'size': '64 KiB', 'name': 'système', 'description': 'disk of "dépôt"'}],
         'cd': None}]}

    def read(self, *parts):
        return super().read(self.newest('dépôt', *parts))

    def test_cfg_files_have_the_keys_of_3_25_in_utf_8_under_any_locale(self):
        for environ in ({'LC_ALL': 'C'}, {}):
            self.assert_ends(0, self.vmbackup('password', self.config('vm-export=.*'), **environ))
            self.assertEqual(
                ['name_label=dépôt', 'name_description=größer\\nals gedacht',
                 'memory_dynamic_max=268435456', 'VCPUs_max=1', 'VCPUs_at_startup=1'],
                self.read('vm.cfg').splitlines()[:5])
            self.assertEqual(['os_version', 'orig_uuid'], [
                line.partition('=')[0] for line in self.read('vm.cfg').splitlines()[5:]])
            self.assertEqual(
                ['userdevice=0', 'bootable=True', 'mode=RW', 'type=Disk', 'unpluggable=True',
                 'empty=False'], self.read('DISK-xvda', 'vbd.cfg').splitlines()[:6])
            self.assertEqual(
                ['name_label=système', 'name_description=disk of "dépôt"', 'virtual_size=65536',
                 'type=user', 'sharable=False', 'read_only=False'],
                self.read('DISK-xvda', 'vdi.cfg').splitlines()[:6])
            vif = self.read('VIFs', 'vif-0.cfg').splitlines()
            self.assertEqual(['device', 'network_name_label', 'MTU', 'MAC', 'other_config',
                              'orig_uuid'], [line.partition('=')[0] for line in vif])
            self.assertIn('other_config={}', vif)

    def test_vm_metadata_is_indented_xml_of_this_vm(self):
        self.ends(0, 'vm-export=.*')
        text = self.read('vm-metadata.xml')
        root = xml.etree.ElementTree.fromstring(text)
        self.assertIn('dépôt', [element.text for element in root.iter('value')])
        self.assertIn('größer\nals gedacht', [element.text for element in root.iter('value')])
        self.assertIn('\n  <struct>\n    <member>', text)

    def test_a_failing_metadata_export_is_a_warning_and_the_backup_stands(self):
        self.fault('vm-export', 'refuse', error=['INTERNAL_ERROR', 'Not_found'])
        self.ends(1, 'vm-export=.*')
        self.assertIn('vm-export,end,WARNING dépôt,elapse:0 size:0G', self.status())
        warning, = self.manifest('dépôt')['warnings']
        self.assertIn('vm-metadata.xml is missing', warning)
        self.assertFalse(os.path.exists(self.newest('dépôt', 'vm-metadata.xml')))
        self.assertTrue(os.path.exists(self.newest('dépôt', 'success')))

    def test_a_metadata_export_that_is_cut_off_or_empty_is_noticed(self):
        self.fault('vm-export', 'print', stdout='', exit=0)
        self.ends(1, 'vm-export=.*')
        self.fault('vm-export', 'print', stdout='ova.xml\0rubbish', exit=0)
        self.ends(1, 'vm-export=.*')


class PoolDatabase(RunCase):
    def dumps(self):
        """The dumps, oldest first."""
        directory = os.path.join(self.backups, 'METADATA_' + HOST)
        return [os.path.join(directory, name) for name in sorted(os.listdir(directory))]

    def test_a_dump_is_made_for_its_owner_only(self):
        self.ends(0, 'vm-export=db', pool_db_backup=1)
        self.assertEqual(1, len(self.dumps()))
        self.assertRegex(os.path.basename(self.dumps()[0]), r'^pool_db_\d{8}-\d{6}\.dump$')
        self.assertEqual(0o600, os.stat(self.dumps()[0]).st_mode & 0o777)

    def test_dumps_are_all_kept_unless_a_number_is_given(self):
        for _ in range(2):
            self.back_up('vm-export=db', pool_db_backup=1)
        self.assertEqual(2, len(self.dumps()))
        newest = self.dumps()[-1]
        foreign = self.put_file(os.path.join(os.path.dirname(newest), 'pool_db_keep.dump'))
        self.back_up('vm-export=db', pool_db_backup=1, pool_db_max_backups=2)
        self.assertIn(newest, self.dumps())
        self.assertEqual(2, len(self.dumps()) - 1)
        self.assertTrue(os.path.exists(foreign))

    def test_an_old_dump_that_cannot_be_deleted_is_a_warning_and_the_new_one_stands(self):
        self.back_up('vm-export=db', pool_db_backup=1)
        old = os.path.join(os.path.dirname(self.dumps()[0]), 'pool_db_20190101-000000.dump')
        os.mkdir(old)                          # not even root can unlink a directory
        done = self.ends(1, 'vm-export=db', pool_db_backup=1, pool_db_max_backups=2)
        self.assertIn('***WARNING - cannot delete old dumps', done.output)
        self.assertEqual(3, len(self.dumps()))
        self.assertIn('vmbackup.py,end,WARNING,S:1 W:0 E:0', self.status())

    def test_no_dump_is_deleted_through_a_link(self):
        elsewhere = self.at('elsewhere')
        os.mkdir(elsewhere)
        os.symlink(elsewhere, os.path.join(self.backups, 'METADATA_' + HOST))
        for status in (0, 1):
            self.ends(status, 'vm-export=db', pool_db_backup=1, pool_db_max_backups=1)
        self.assertEqual(2, len(self.dumps()))

    def test_a_partial_dump_of_a_killed_run_goes_with_the_next(self):
        self.back_up('vm-export=db', pool_db_backup=1)
        partial = os.path.join(os.path.dirname(self.dumps()[0]),
                               'pool_db_20190101-000000.dump.partial')
        self.put_file(partial)
        self.back_up('vm-export=db', pool_db_backup=1)
        self.assertFalse(os.path.exists(partial))
        self.assertEqual(2, len(self.dumps()))

    def test_a_slave_makes_no_dump(self):
        self.use_pool(role='slave')
        done = self.ends(0, 'vm-export=db', pool_db_backup=1)
        self.assertNotIn('pool-dump-database', [verb for verb, _ in self.xe_calls()])
        self.assertIn('NOTE not the pool master: no backup of the pool database here', done.lines)
