"""Whose a backup is: of the VM and of the pool whose uuids it tells, whatever its directory is
called; and that the last one that has a disk stays."""

import itertools
import json
import os
import shutil

import VmBackup

from tests.tools.support import PoolCase, store_at

OTHER_POOL = '99999999-9999-4999-8999-999999999999'


class IdentityCase(PoolCase):
    pool_description = {'vms': [{'name': 'web', 'disks': ['64 KiB', '64 KiB']}]}

    def setUp(self):
        super().setUp()
        self.days = itertools.count(1)
        self.first = self.uuid_of('web')

    def backed_up(self, vm='web', lines=('vm-export=.*',), status=0, **keys):
        """Back up; move what was made to a day of its own, so that nights follow one another."""
        known = self.names(vm)
        done = self.ends(status, *lines, **dict({'max_backups': 2}, **keys))
        for name in set(self.names(vm)) - set(known):
            os.rename(*(os.path.join(self.backups, vm, each) for each in (
                name, 'backup-2026-01-%02d-(03:00:00)' % next(self.days))))
        return done

    def names(self, vm):
        return [os.path.basename(path) for path in self.dated(vm)] if os.path.exists(
            os.path.join(self.backups, vm)) else []

    def kept(self, vm='web'):
        return [int(name[15:17]) for name in self.names(vm)]

    def edit(self, path, change):
        path = os.path.join(path, 'backup.json')
        manifest = json.loads(self.read(path))
        change(manifest)
        self.put_file(path, json.dumps(manifest))

    def new_vm(self):
        """Another VM called web; its uuid."""
        known = set(self.uuid_of('web').split(','))
        self.sim.pool.add_vm(name_label='web')
        self.before = self.contents()
        return (set(self.uuid_of('web').split(',')) - known).pop()

    def of_another_pool(self, number):
        self.edit(self.dated('web')[number], lambda told: told['pool'].update(uuid=OTHER_POOL))


class Rotation(IdentityCase):
    def test_backups_of_a_vm_that_lives_under_another_name_stay_and_a_note_says_so(self):
        for _ in range(2):
            self.backed_up()
        self.xe('vm-param-set', 'uuid=' + self.first, 'name-label=db')
        self.new_vm()
        for _ in range(3):
            done = self.backed_up()
        self.assertEqual(([1, 2, 4, 5], 2), (self.kept(), len(self.dated('db'))))
        self.assertEqual(1, done.output.count('left alone: backups of others'))
        whose = ': 2 in %s/web, of another VM, %s, now called db (to let them go: prune ' % (
            self.backups, self.first)
        line, = [line for line in done.lines if whose in line]
        *words, preview = line.partition('go: ')[2].rstrip(')').split()
        self.assertEqual(('vm=uuid:' + self.first, 'preview'), (words[-1], preview))
        self.assertIn('  of another VM, ' + self.first,
                      self.vmbackup('list', self.backups).output)
        self.assertIn('2 kept, 2 would be deleted', self.command(0, *words, 'preview').output)
        self.command(0, *words)
        self.assertEqual(([4, 5], 2), (self.kept(), len(self.dated('db'))))

    def test_what_a_vm_of_the_config_is_now_called_is_told_and_others_are_backed_up(self):
        for name in ('web', 'c++', 'web:old'):      # which may be no regex
            self.xe('vm-param-set', 'uuid=' + self.first, 'name-label=' + name)
            self.ends(0, 'vm-export=uuid:' + self.first)
            self.xe('vm-param-set', 'uuid=' + self.first, 'name-label=db')
            for words in ([], ['preview'])[:2 if name == 'c++' else 1]:
                config = self.config('vm-export=' + name, 'vdi-export=uuid:' + self.first)
                lines = self.command(2, 'password', config, *words).lines
                self.assertIn('***ERROR - vm not found: vm-export=%s (%s line 3): the VM of the '
                              'newest backup in %s is now called db' % (name, config, name), lines)
                self.assertEqual(not words, 'VmBackup vdi-export db - ***Success*** t:0' in lines)
            self.assert_told('vm-export,end,VM-NOT-FOUND ' + name)
        self.xe('vm-uninstall', 'uuid=' + self.first, 'force=true')
        done = self.vmbackup('password', self.config('vm-export=web', 'vm-export=.*'))
        self.assertIn('newest backup in web is not in this pool', done.output)
        self.before = self.contents()

    def test_those_of_a_vm_that_is_gone_are_rotated_with_those_of_its_successor(self):
        for _ in range(2):
            self.backed_up()
        self.xe('vm-uninstall', 'uuid=' + self.first, 'force=true')
        self.new_vm()
        done = self.backed_up()
        self.assertEqual([2, 3], self.kept())
        self.assertNotIn('left alone', done.output)
        self.assertEqual([self.first], self.manifest('web')['earlier'])
        self.assertIn('  of an earlier VM of this name, ' + self.first,
                      self.vmbackup('list', self.backups).output)
        self.command(0, 'prune', self.config('vm-export=web', max_backups=1))
        self.assertEqual([3], self.kept())

    def test_those_of_another_pool_are_touched_only_when_that_is_asked(self):
        for number in range(4):
            self.backed_up(max_backups=4)
            if number < 3:
                self.of_another_pool(number)
        done = self.backed_up(max_backups=1, pre_clean='True')
        self.assertEqual([1, 2, 3, 5], self.kept())
        self.assertIn('3 in %s/web, of another pool, %s (to let them go: prune %s pool=%s '
                      'preview)' % (self.backups, OTHER_POOL, self.at('run.cfg'), OTHER_POOL),
                      done.output)
        config = self.config('vm-export=web', max_backups=1)
        self.assertIn('4 kept, 0 deleted', self.command(0, 'prune', config).output)
        self.command(2, 'prune', config, 'pool=' + self.first)
        self.put_file(os.path.join(self.dated('web')[1], VmBackup.PROTECTED))
        self.assertIn('1 kept, 2 deleted',
                      self.command(0, 'prune', config, 'pool=' + OTHER_POOL).output)
        self.assertEqual([2, 5], self.kept())

    def test_where_nothing_tells_the_pool_only_the_vms_own_are_rotated(self):
        """Of 3.25, of which vm.cfg tells the VM's uuid; of none, those are the directory's."""
        for day, text in (1, 'orig_uuid=%s\n' % OTHER_POOL), (2, ''), (3, 'orig_uuid=%s\n'):
            path = self.old_backup('web', 'backup-2025-01-%02d-(03:00:00)' % day, 'success',
                                   'web.xva')
            self.put_file(os.path.join(path, 'vm.cfg'), text.replace('%s', self.first))
        done = self.ends(0, 'vm-export=web', max_backups=1)
        self.assertEqual(['backup-2025-01-01-(03:00:00)'], self.names('web')[:-1])
        self.assertIn('of another VM, ' + OTHER_POOL, done.output)

    def test_names_that_the_share_tells_apart_keep_their_directories(self):
        for name in ('Web', 'web.', 'we\u0301b', 'w\u00e9b'):
            self.sim.pool.add_vm(name_label=name)
        self.before = self.contents()
        for parallel in (1, 4):
            self.ends(0, 'vm-export=.*', parallel=parallel)
        self.assertEqual(sorted(['Web', 'web', 'web.', 'we\u0301b', 'w\u00e9b']), self.entries())
        for name in ('Web', 'web', 'web.', 'w\u00e9b'):
            self.assertEqual(2, len(self.dated(name)))


class Told(IdentityCase):
    def test_a_restore_tells_of_whom_the_backup_is(self):
        self.backed_up()
        restore = 'password', 'restore=web', 'from=' + self.backups, 'preview'
        self.assertNotIn('NOTE - this backup', self.command(0, *restore).output)
        self.xe('vm-uninstall', 'uuid=' + self.first, 'force=true')
        self.new_vm()
        self.assertIn('NOTE - this backup is of an earlier VM of this name, ' + self.first,
                      self.command(0, *restore).output)
        self.of_another_pool(0)
        self.assertIn('NOTE - this backup is of another pool, ' + OTHER_POOL,
                      self.command(0, *restore).output)

    def test_commands_look_at_the_pool_of_this_hosts_last_run(self):
        for _ in range(3):
            self.backed_up(max_backups=9)
        for number in (1, 2):
            self.of_another_pool(number)
            self.edit(self.dated('web')[number], lambda told: told['vm'].update(uuid=OTHER_POOL))
        self.edit(self.dated('web')[0], lambda told: told.update(
            started='2026-01-01T03:00:00+00:00'))
        config = self.config('vm-export=uuid:' + self.first, max_backups=1)
        self.assertIn('no good backup within 26h: web (', self.command(2, 'status', config).output)
        self.assertIn('3 kept, 0 deleted', self.command(0, 'prune', config).output)
        self.assertIn(self.dated('web')[0], self.command(
            0, 'password', 'restore=web', 'from=' + config, 'preview').output)
        shutil.move(self.dated('web')[0], self.directory)
        done = self.command(0, 'prune', self.config('vm-export=web', max_backups=1))
        self.assertIn('NOTE - not touched: they are of another pool, ' + OTHER_POOL, done.output)
        self.assertEqual(2, len(self.dated('web')))
        shutil.rmtree(os.path.join(self.sim.directory, 'state'))
        self.config('vm-export=uuid:' + self.first)
        self.assertIn('(none)', self.command(2, 'status', config).output)
        self.assertIn(self.dated('web')[1], self.command(
            0, 'password', 'restore=web', 'from=' + config, 'preview').output)

    def test_status_tells_that_the_newest_good_one_is_of_an_earlier_vm(self):
        self.backed_up()
        self.xe('vm-uninstall', 'uuid=' + self.first, 'force=true')
        self.new_vm()
        self.fault('vm-export', 'refuse', nth=2, error=['INTERNAL_ERROR', 'x'])
        self.ends(2, 'vm-export=web')
        self.assertIn('the newest good backup of web is of another VM, ' + self.first,
                      self.vmbackup('status', self.config('vm-export=web')).output)

    def test_a_restore_by_a_name_that_two_vms_had_asks_for_the_directory(self):
        self.backed_up()
        second = self.new_vm()
        self.ends(0, 'vm-export=uuid:' + second)
        restore = 'from=' + self.backups, 'preview'
        twin = 'web~' + second[:8]
        done = self.command(2, 'password', 'restore=web', *restore)
        self.assertRegex(done.output, 'more than one VM of that name .choose one, restore uuid:UUID'
                         ', or by its directory.: %s .%s/web, newest .*, %s .%s/%s, newest ' % (
                             self.first, self.backups, second, self.backups, twin))
        for word, name in ((twin, twin), (self.backups + '/web', 'web'), (self.first, 'web'),
                           ('uuid:' + second, twin)):
            self.assertIn(self.dated(name)[0],
                          self.command(0, 'password', 'restore=' + word, *restore).output)
        os.unlink(os.path.join(self.dated('web')[0], 'success'))
        self.assertIn(self.dated(twin)[0],
                      self.command(0, 'password', 'restore=web', *restore).output)


class LettingGo(IdentityCase):
    """What prune deletes of others, when that is asked."""

    def setUp(self):
        super().setUp()
        for _ in range(3):
            self.backed_up(max_backups=9)
        self.config_file = self.config('vm-export=web', max_backups=9)

    def lets_go(self, status, word, days):
        done = self.command(status, 'prune', self.config_file, word)
        self.assertEqual(days, self.kept())
        return done

    def test_not_the_backups_of_a_vm_that_has_no_good_one_in_a_directory_of_its_own(self):
        """The newest one there is another pool's, or a VM's with which 5.0.0 mixed it."""
        for change in (lambda told: (told['pool'].update(uuid=OTHER_POOL),
                                     told['vm'].update(uuid=OTHER_POOL)),
                       lambda told: told['vm'].update(uuid=OTHER_POOL)):
            shutil.rmtree(os.path.join(self.sim.directory, 'state'), ignore_errors=True)
            self.edit(self.dated('web')[2], change)
            self.lets_go(2, 'vm=uuid:' + self.first, [1, 2, 3])

    def test_not_those_of_this_very_pool_nor_any_by_the_word_of_a_backup_without_a_pool(self):
        """Nor does one of 3.25 decide whose the others are where this host has noted no pool."""
        pool = self.manifest('web')['pool']['uuid']
        self.edit(self.dated('web')[0], lambda told: told['vm'].update(uuid=OTHER_POOL))
        self.lets_go(2, 'pool=' + pool, [1, 2, 3])
        os.unlink(os.path.join(self.dated('web')[0], 'backup.json'))
        self.put_file(os.path.join(self.dated('web')[0], 'vm.cfg'), 'orig_uuid=%s\n' % OTHER_POOL)
        shutil.rmtree(os.path.join(self.sim.directory, 'state'))
        self.lets_go(2, 'pool=' + pool, [1, 2, 3])
        self.assertIn(self.dated('web')[2], self.command(
            0, 'password', 'restore=web', 'from=' + self.backups, 'preview').output)

    def test_not_those_of_a_pool_while_the_owner_has_no_good_one(self):
        for number in (0, 1):
            self.of_another_pool(number)
        marker = 'verified', {'fault': 'x', 'when': '2026-01-01T03:00:00+00:00'}
        self.edit(self.dated('web')[2], lambda told: told.update([marker]))
        self.lets_go(2, 'pool=' + OTHER_POOL, [1, 2, 3])
        self.edit(self.dated('web')[2], lambda told: told.pop('verified'))
        self.command(2, 'prune', self.config_file, 'pool=' + OTHER_POOL, 'vm=web')
        self.lets_go(0, 'pool=' + OTHER_POOL, [3])


class Needless(IdentityCase):
    """What failures others must not cause."""

    def test_the_large_backup_of_another_vm_is_no_measure_of_the_space_that_is_needed(self):
        self.backed_up()
        history = store_at(self.backups).history('web')
        for uuid in (self.first, OTHER_POOL):
            owner = VmBackup.Manifest(uuid=uuid, pool=self.manifest('web')['pool']['uuid'])
            self.assertEqual(uuid == self.first, history.last_sizes(['web.xva'], owner) != {})

    def test_the_record_of_another_pools_snapshot_is_a_note_and_no_warning(self):
        path = self.old_backup('web', 'backup-2025-01-01-(03:00:00)', 'vm.cfg')
        self.record(path, self.disk_of('web', '0'), pool=OTHER_POOL)
        done = self.ends(0, 'vm-export=web')
        self.assertIn('records a snapshot in another pool', done.output)
        self.assertTrue(os.path.exists(path))


class LastWithADisk(IdentityCase):
    def week(self, **keys):
        """The whole VM once, then its boot disk, each night moved to a day of its own."""
        self.backed_up(**keys)
        return [self.backed_up(lines=['vdi-export=web'], **keys) for _ in range(4)]

    def test_boot_disk_exports_do_not_push_out_the_last_whole_backup(self):
        for pre_clean in ('False', 'True'):
            done = self.week(pre_clean=pre_clean)[-1]
            self.assertEqual(3, len(self.kept()))
            whole = self.dated('web')[0]
            self.assertTrue(os.path.exists(os.path.join(whole, 'web.xva')))
            self.assertIn('kept beyond the count: %s, as no newer good backup has disk xvdb (to '
                          "let it go: prune '%s' preview)" % (whole, whole), done.output)
        listed = self.command(0, 'prune', self.config('vm-export=web', max_backups=1))
        self.assertIn(' (disk xvdb)', listed.output)
        self.assertEqual(2, len(self.kept()))

    def test_a_disk_is_the_same_by_uuid_or_device_and_one_that_is_never_backed_up_exempts(self):
        for change in (
                lambda disk: disk.update(uuid=OTHER_POOL), lambda disk: disk.update(device='xvdz')):
            self.week()
            self.edit(self.dated('web')[0], lambda told: change(told['disks'][1]))
            self.backed_up(lines=['vdi-export=web'])
            self.assertEqual(3, len(self.kept()))
        self.backed_up(lines=['vdi-export=web', 'exclude-disk=web/xvdb'])
        self.assertEqual(2, len(self.kept()))
        done = self.backed_up(lines=['vdi-export=web'])
        self.assertIn('NOTE - in no good backup: disk xvdb', done.output)

    def test_a_whole_backup_of_3_25_holds_the_disks_of_which_it_has_directories(self):
        path = self.old_backup('web', 'backup-2025-01-01-(03:00:00)', 'success', 'web.xva')
        for device in ('xvda', 'xvdb'):
            os.mkdir(os.path.join(path, 'DISK-' + device))
        self.old_backup('web', 'backup-2025-01-02-(03:00:00)', 'success', 'web.raw')
        self.backed_up(lines=['vdi-export=web'], max_backups=1)
        self.assertEqual(['backup-2025-01-01-(03:00:00)'], self.names('web')[:-1])

    def test_after_release_5_0_0_which_recorded_no_unchosen_disks_the_last_whole_one_stays(self):
        self.week()
        for path in self.dated('web'):
            self.edit(path, lambda told: (told.pop('earlier'), told.update(left_out=[])))
        self.command(0, 'prune', self.config('vm-export=web', max_backups=1))
        self.assertEqual(2, len(self.kept()))

    def test_prune_lets_one_go_that_is_named_and_says_what_that_loses(self):
        self.week()
        whole = self.dated('web')[0]
        for words, status, count in ((['preview'], 0, 3), (['vm=web'], 2, 3), ([], 0, 2)):
            done = self.command(status, 'prune', whole, *words)
            self.assertEqual(count, len(self.kept()))
        self.assertIn('NOTE - no other good backup there has disk xvdb', done.output)
        self.command(2, 'prune', whole)
        self.put_file(os.path.join(self.dated('web')[0], VmBackup.PROTECTED))
        self.assertIn('it is protected', self.command(2, 'prune', self.dated('web')[0]).output)
        self.command(2, 'prune', os.path.join(self.backups, 'web'))
