"""Runs: a night's backup from end to end, against the simulated pool."""

import datetime
import hashlib
import json
import os
import shutil
import xml.etree.ElementTree

from tests.simpool import archive
from tests.tools.support import HOST, PoolCase, store_at

DAY = 'backup-2019-01-%02d-(00:00:00)'


class RunCase(PoolCase):
    pool_description = {'vms': [
        {'name': 'web', 'power_state': 'Running', 'disks': ['64 KiB', '128 KiB']},
        {'name': 'db', 'disks': ['128 KiB', {'size': '64 KiB', 'fill': 0}], 'ran': True}]}


class ANight(RunCase):
    def test_the_directory_holds_what_3_25_wrote_with_the_bytes_of_the_disks(self):
        self.ends(0, 'vm-export=web', 'vdi-export=db')
        common = ['', '/DATED', '/DATED/DISK-xvda', '/DATED/DISK-xvda/vbd.cfg',
                  '/DATED/DISK-xvda/vdi.cfg', '/DATED/DISK-xvdb', '/DATED/DISK-xvdb/vbd.cfg',
                  '/DATED/DISK-xvdb/vdi.cfg', '/DATED/VIFs', '/DATED/VIFs/vif-0.cfg',
                  '/DATED/backup.json', '/DATED/success', '/DATED/vm-metadata.xml', '/DATED/vm.cfg',
                  '/DATED/RESTORE.txt']
        self.assertEqual(sorted(['db' + part for part in common + ['/DATED/db.raw']] +
                                ['web' + part for part in common + ['/DATED/web.xva']]),
                         self.tree())
        with open(self.newest('web', 'web.xva'), 'rb') as stream:
            found = sorted(image.sha256() for image in archive.read_xva(stream).disks.values())
        self.assertEqual(sorted(self.digest('web', device) for device in '01'), found)
        image = self.read_bytes(self.newest('db', 'db.raw'))       # of the boot disk only
        self.assertEqual(self.digest('db'), hashlib.sha256(image).hexdigest())

    def test_the_four_commands_of_each_method_follow_the_metadata_export(self):
        self.ends(0, 'vdi-export=db', 'vm-export=web')
        calls = self.xe_calls()
        self.assertEqual(['vm-export', 'vdi-snapshot', 'vdi-param-set', 'vdi-export', 'vdi-destroy',
                          'vm-export', 'vm-snapshot', 'template-param-set', 'vm-export',
                          'vm-uninstall'], [verb for verb, _ in calls])
        for number, wanted in {0: {'metadata': 'true', 'filename': ''},
                               2: {'name-label': 'SNAP_db_db-0'}, 3: {'format': 'raw'},
                               5: {'metadata': 'true', 'filename': ''},
                               6: {'new-name-label': 'RESTORE_web'},
                               7: {'is-a-template': 'false', 'ha-always-run': 'false'},
                               9: {'force': 'true'}}.items():
            self.assertEqual(wanted, {key: calls[number][1][key] for key in wanted})

    def test_compression_names_the_file_is_asked_of_xe_and_can_stand_in_the_config(self):
        for config, word, extension, parameter, magic in (
                ('none', 'True', '.xva.gz', 'true', b'\x1f\x8b'),
                ('none', 'gzip', '.xva.gz', 'true', b'\x1f\x8b'),
                ('none', 'zstd', '.xva.zst', 'zstd', b'\x28\xb5\x2f\xfd'),
                ('zstd', None, '.xva.zst', 'zstd', b'\x28\xb5\x2f\xfd'),
                ('zstd', 'none', '.xva', None, b'ova'), ('none', 'FALSE', '.xva', None, b'ova')):
            with self.subTest(config=config, word=word):
                self.command(0, 'password', self.config('vm-export=db', compress=config),
                             *['Compress=' + word] if word else [])
                with open(self.newest('db', 'db' + extension), 'rb') as stream:
                    self.assertEqual(magic, stream.read(len(magic)))
                self.assertEqual(parameter, self.xe_calls()[-2][1].get('compress'))

    def test_relative_paths_are_taken_from_the_current_directory(self):
        self.ends(0, 'vm-export=db', backup_dir='BACKUPS', status_log='logs/status.log')
        self.assertIn('db/DATED/success', self.tree())
        self.assertIn('vmbackup.py,end,SUCCESS,S:1 W:0 E:0', self.status())

    def test_a_vm_selector_takes_the_place_of_a_config_file(self):
        done = self.vmbackup('password', 'vdi-export=db.*', 'preview')
        self.assertIn('  vdi-export: db', done.lines)
        self.assertIn('  backup_dir        = /snapshots/BACKUPS', done.lines)
        self.assertFalse(os.path.exists(self.status_log))

    def test_a_df_that_fails_is_a_note(self):
        df = self.program('df', 'echo df: stale >&2\nexit 1\n')
        path = os.path.dirname(df) + os.pathsep + os.environ['PATH']
        done = self.assert_ends(0, self.vmbackup('password', self.config('vm-export=db'),
                                                 PATH=path))
        self.assertEqual(2, done.lines.count('df: stale'))


class Rotation(RunCase):
    def test_two_backups_of_one_second_get_directories_of_their_own(self):
        store = store_at(self.backups, 'b-%Y%m%d%H%M%S')
        history = store.history('db')
        moment = datetime.datetime(2026, 3, 1, 23, 59, 59, 999999)
        self.assertEqual(['b-20260301235959', 'b-20260302000000'], [
            os.path.basename(store.begin(history, moment).path) for _ in range(2)])

    def test_what_a_new_backup_leaves_of_older_ones(self):
        for what, files, keep, left in (
                ('those of 3.25 count whatever their marker',
                 ['success', 'success_compress', 'success_restore', 'success_compressing'], 2, [4]),
                ('the last failed one goes', ['success', 'db.xva'], 4, [1]),
                ('failed ones older than every good one go too', ['db.xva', 'db.xva', 'success'],
                 2, [3])):
            with self.subTest(what):
                paths = [self.old_backup('db', DAY % day, file, 'vm.cfg')
                         for day, file in enumerate(files, 1)]
                done = self.ends(0, 'vm-export=db:%d' % keep)
                self.assertEqual([paths[day - 1] for day in left], self.dated('db')[:-1])
                self.assertEqual(files[-1] == 'db.xva', 'Deleting last **unsuccessful** backup %s '
                                 % paths[-1] in done.lines)
                shutil.rmtree(os.path.join(self.backups, 'db'))

    def test_what_is_not_ours_is_neither_counted_nor_deleted(self):
        kept = ('KEEP-golden', '.snapshot', 'backup-2019-01-01-(00:00:00).old',
                'backup-2019-02-31-(00:00:00)', 'xbackup-2019-01-01-(00:00:00)')
        for name in kept:
            self.old_backup('db', name, 'success')
        target = self.old_backup('elsewhere', 'precious', 'success')
        os.symlink(target, os.path.join(self.backups, 'db', 'backup-2018-01-01-(00:00:00)'))
        loose = {'0-notes.txt', 'zz', 'backup-2019-03-01-(00:00:00)', '.nfs000001'}
        for name in loose:
            self.put_file('BACKUPS/db/' + name, 'mine')
        for _ in range(2):
            self.ends(0, 'vm-export=db:1')
        names = os.listdir(os.path.join(self.backups, 'db'))
        self.assertEqual(set(kept) | loose | {'backup-2018-01-01-(00:00:00)'},
                         set(names) - {os.path.basename(path) for path in self.dated('db')
                                       if path.endswith(')') and '-202' in path})
        self.assertTrue(os.path.exists(os.path.join(target, 'success')))
        self.assertEqual(1, len([name for name in names if '-202' in name]))
        self.assertEqual({'mine'}, {self.read('BACKUPS/db', name) for name in loose})

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
            self.ends(0, 'vm-export=db:1', backup_dir_pattern=pattern, **environ)
        name, = os.listdir(os.fsencode(os.path.join(self.backups, 'db')))
        self.assertRegex(name.decode('utf-8'), r'^sauvegardé-\d{14}$')

    def test_pre_clean_deletes_after_the_snapshot_and_never_the_last_good_backup(self):
        for verb, nth, days, keep, left in (
                ('vm-export', 2, 3, 3, [2, 3]),        # the snapshot was made, the export fails
                ('vm-export', 2, 2, 1, [2]), ('vm-snapshot', 1, 3, 1, [1, 2, 3])):
            with self.subTest(verb, days=days):
                self.setUp()
                old = [self.old_backup('db', DAY % day, 'success') for day in range(1, days + 1)]
                self.fault(verb, 'refuse', nth=nth, error=['VDI_IO_ERROR', 'x'])
                self.ends(2, 'vm-export=db:%d' % keep, pre_clean=True)
                self.assertEqual(left, [day for day, path in enumerate(old, 1)
                                        if os.path.exists(path)])


class Markers(RunCase):
    def marker_of(self, gib, **keys):
        """The marker of a vdi-export whose file is of that size, sparse."""
        self.ends(0, 'vdi-export=db', vdi_export_format='vhd', verify='no', **keys,
                  VMBACKUP_XE=self.xe_whose('vdi-export', 'exec truncate -s %dG "$1"' % gib))
        self.assertIn('vdi-export,end,SUCCESS db,elapse:0 size:%dG' % gib, self.status())
        return [name for name in os.listdir(self.newest('db')) if name.startswith('success')]

    def test_more_than_60_gib_or_than_is_set_are_marked_success_compress(self):
        for gib, keys, marker in ((60, {}, 'success'), (61, {}, 'success_compress'),
                                  (2, {'large_backup': 1}, 'success_compress'),
                                  (61, {'large_backup': 100}, 'success')):
            self.assertEqual([marker], self.marker_of(gib, **keys))


class Calls(RunCase):
    def counted(self, lines, **pool):
        self.pool_description = pool
        self.use_pool()
        self.ends(0, lines, parallel=2)
        return len(self.sim.calls('xapi')), len(self.sim.calls('xe'))

    def test_their_number_does_not_grow_with_disks_and_interfaces(self):
        one, twelve = (self.counted('vm-export=web', networks=['net'], vms=[
            {'name': 'web', 'disks': ['64 KiB'] * number, 'networks': ['net'] * number}])
            for number in (1, 12))
        self.assertEqual(one, twelve)

    def test_a_vm_costs_at_most_five_calls_and_five_commands(self):
        one, four = (self.counted('vm-export=.*', vms=[
            {'name': 'vm{n}', 'disks': ['64 KiB'], 'count': number}]) for number in (1, 4))
        self.assertEqual((15, 15), (four[0] - one[0], four[1] - one[1]))


class Metadata(PoolCase):
    pool_description = {'vms': [
        {'name': 'dépôt', 'description': 'größer\nals gedacht', 'power_state': 'Running',
         'disks': [{'size': '64 KiB', 'name': 'système', 'description': 'disk of "dépôt"'}],
         'cd': None}]}

    def read(self, *parts):
        return super().read(self.newest('dépôt', *parts))

    def test_cfg_files_and_indented_xml_are_as_3_25_wrote_them_in_utf_8_under_any_locale(self):
        for environ in ({'LC_ALL': 'C'}, {}):
            self.ends(0, 'vm-export=.*', **environ)
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
        text = self.read('vm-metadata.xml')
        values = [element.text for element in xml.etree.ElementTree.fromstring(text).iter('value')]
        self.assertLessEqual({'dépôt', 'größer\nals gedacht'}, set(values))
        self.assertIn('\n  <struct>\n    <member>', text)

    def test_a_metadata_export_that_fails_or_is_cut_off_is_a_warning_and_the_backup_stands(self):
        for do, details in (('refuse', dict(error=['INTERNAL_ERROR', 'Not_found'])),
                            ('print', dict(stdout='')), ('print', dict(stdout='ova.xml\0rub'))):
            with self.subTest(do, **details):
                self.fault('vm-export', do, **details)
                self.ends(1, 'vm-export=.*')
                self.assertEqual('vm-export,end,WARNING dépôt,elapse:0 size:0G', self.status()[-2])
                warning, = self.manifest('dépôt')['warnings']
                self.assertIn('vm-metadata.xml is missing', warning)
                self.assertFalse(os.path.exists(self.newest('dépôt', 'vm-metadata.xml')))
                self.assertTrue(os.path.exists(self.newest('dépôt', 'success')))


class PoolDatabase(RunCase):
    def dumps(self):
        directory = os.path.join(self.backups, 'METADATA_' + HOST)
        return [os.path.join(directory, name) for name in sorted(os.listdir(directory))
                if not name.endswith('.json')]

    def test_dumps_are_for_their_owner_only_and_all_kept_unless_a_number_is_given(self):
        for number in (1, 2):
            self.ends(0, 'vm-export=db', pool_db_backup=1)
            self.assertEqual(number, len(self.dumps()))
        newest = self.dumps()[-1]
        self.assertRegex(os.path.basename(newest), r'^pool_db_\d{8}-\d{6}\.dump$')
        self.assertEqual(0o600, os.stat(newest).st_mode & 0o777)
        foreign = self.put_file(os.path.join(os.path.dirname(newest), 'pool_db_keep.dump'))
        self.put_file(os.path.join(os.path.dirname(newest),
                                   'pool_db_20190101-000000.dump.partial'))    # of a killed run
        self.put_file(os.path.join(os.path.dirname(newest),
                                   'pool_db_20190101-000001.dump.json.its.new'))
        self.ends(0, 'vm-export=db', pool_db_backup=1, pool_db_max_backups=2)
        self.assertEqual([newest, foreign], [self.dumps()[0], self.dumps()[-1]])
        self.assertEqual(3, len(self.dumps()))
        self.assertNotIn('.its.new', ' '.join(os.listdir(os.path.dirname(newest))))

    def test_the_version_that_takes_a_dump_back_is_told_recorded_and_deleted_with_it(self):
        version = self.sim.pool.xapi_version
        words = 'only a pool of the same xapi takes it back, %s' % version
        for _ in range(2):
            done = self.ends(0, 'vm-export=db', pool_db_backup=1, pool_db_max_backups=1)
            self.assertIn(words, done.lines)
            dump, = self.dumps()
            self.assertEqual(version, json.loads(self.read(dump + '.json'))['xapi'])
            self.assertEqual(2, len(os.listdir(os.path.dirname(dump))))

    def test_an_old_dump_that_cannot_be_deleted_is_a_warning_and_the_new_one_stands(self):
        os.makedirs(os.path.join(self.backups, 'METADATA_' + HOST,     # which root cannot unlink
                                 'pool_db_20190101-000000.dump'))
        done = self.ends(1, 'vm-export=db', pool_db_backup=1, pool_db_max_backups=1)
        self.assertIn('***WARNING - cannot delete old dumps', done.output)
        self.assertEqual(2, len(self.dumps()))
        self.assertIn('vmbackup.py,end,WARNING,S:1 W:0 E:0', self.status())

    def test_no_dump_is_made_or_deleted_through_a_link(self):
        elsewhere = self.at('elsewhere')
        os.mkdir(elsewhere)
        os.symlink(elsewhere, os.path.join(self.backups, 'METADATA_' + HOST))
        done = self.ends(2, 'vm-export=db', pool_db_backup=1, pool_db_max_backups=1)
        self.assertIn('METADATA_%s: is a symbolic link' % HOST, done.output)
        self.assertEqual([], os.listdir(elsewhere))

    def test_whether_this_host_is_the_master_is_told_by_its_inventory(self):
        """A session of a member is forwarded, so that it is the master's (api_server.ml)."""
        self.pool_description = dict(self.pool_description, hosts=['xen1', 'xen2'])
        self.use_pool()
        self.script = self.changed_script(INVENTORY=self.at('inventory'))
        master, member = sorted(self.sim.pool.tables['host'].values(),
                                key=lambda host: host['name_label'])
        for host, dumps in ((member, 0), (master, 1)):
            self.put_file('inventory', "A='b'\nINSTALLATION_UUID='%s'\n" % host['uuid'])
            done = self.ends(0, 'vm-export=db', pool_db_backup=1)
            self.assertEqual(dumps, self.verbs().count('pool-dump-database'), done.output)

    def test_a_slave_makes_no_dump(self):
        self.use_pool(role='slave')
        done = self.ends(0, 'vm-export=db', pool_db_backup=1)
        self.assertNotIn('pool-dump-database', [verb for verb, _ in self.xe_calls()])
        self.assertIn('NOTE not the pool master: no backup of the pool database here', done.lines)
