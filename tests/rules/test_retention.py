"""Retention: which backups are kept, and by which rule; prune, protect."""

import datetime
import errno
import os
import random
import re
import shutil
import unittest
import unittest.mock

import VmBackup
from tests.commands.saved import SavedCase
from tests.faults.faulting import full
from tests.tools.support import PoolCase, policy, store_at

RULES = ['last', *VmBackup.PERIODS]
PERIOD = {'hourly': '%Y-%m-%d %H', 'daily': '%Y-%m-%d', 'weekly': '%G-W%V', 'monthly': '%Y-%m',
          'yearly': '%Y'}


def aged(*texts):
    """Sound backups of these times; one with a ! was found damaged."""
    return [VmBackup.Aged(datetime.datetime.strptime(text.rstrip('!'), '%Y-%m-%d %H:%M'),
                          not text.endswith('!')) for text in texts]


class Reasons(unittest.TestCase):
    def why(self, texts, **counts):
        """{time: reasons} of the backups that have any."""
        found = VmBackup.reasons(aged(*texts), policy(**counts))
        return {text: ' '.join(why) for text, why in zip(texts, found) if why}

    def test_rules_count_for_themselves_and_what_any_keeps_stays(self):
        days = ['2026-03-%02d 01:00' % day for day in range(1, 32)]
        self.assertEqual({
            '2026-03-31 01:00': 'last daily weekly monthly', '2026-03-30 01:00': 'daily',
            '2026-03-29 01:00': 'daily weekly', '2026-03-22 01:00': 'weekly'},
            self.why(days, last=1, daily=3, weekly=3, monthly=2))

    def test_damaged_ones_do_not_count(self):
        texts = ['2026-03-01 01:00', '2026-03-02 01:00', '2026-03-03 01:00!', '2026-03-03 02:00!']
        self.assertEqual({texts[0]: 'daily', texts[1]: 'daily', texts[2]: 'newest',
                          texts[3]: 'newest'}, self.why(texts, daily=2))
        self.assertEqual({texts[1]: 'last', texts[2]: 'last', texts[3]: 'last'},
                         self.why(texts, last=1))


class Properties(unittest.TestCase):
    def setUp(self):
        self.random = random.Random(7)

    def history(self):
        """Random times in order, some damaged, some protected, each with some of three disks."""
        start, span = datetime.datetime(2024, 2, 28), self.random.choice((3, 60, 1000, 30000))
        times = sorted(start + datetime.timedelta(hours=self.random.uniform(0, span))
                       for _ in range(self.random.randrange(40)))
        a, b, c, d = ('a', 'xvda'), ('b', 'xvda'), ('c', 'xvdb'), ('d', '')
        return [VmBackup.Aged(when, self.random.random() < 0.9, self.random.choice(
            ([a], [b, c], [d], [])), self.random.random() < 0.05) for when in times]

    def policy(self):
        return {name: self.random.choice((0, 0, 1, 2, 5, 100)) for name in RULES}

    def test_what_holds_of_all(self):
        """Among it: more rules never keep less, and pruning twice is pruning once."""
        for _ in range(300 * (10 if full() else 1)):
            backups, rules = self.history(), self.policy()
            disks = self.random.sample((('a', 'xvda'), ('c', 'xvdb'), ('d', 'xvdc'), ('e', 'xvde')),
                                       self.random.randrange(5))
            found = VmBackup.reasons(backups, rules, disks)
            with self.subTest(backups=backups, rules=rules, disks=disks):
                self.check_rules(backups, rules)
                self.check_disks(backups, disks, found, VmBackup.reasons(backups, rules))
                kept = [each for each, why in zip(backups, found) if why]
                self.assertTrue(all(VmBackup.reasons(kept, rules, disks)))
                name = self.random.choice(RULES)
                more = dict(rules, **{name: rules[name] + self.random.randrange(1, 5)})
                for why, still in zip(found, VmBackup.reasons(backups, more, disks)):
                    self.assertTrue(still or not why, more)

    def check_rules(self, backups, rules):
        found = list(zip(backups, VmBackup.reasons(backups, rules)))
        self.assertEqual([each.protected for each in backups],
                         [why == [VmBackup.PROTECTED] for _, why in found])
        counted = [(each, why) for each, why in found if not each.protected]
        sound = [(each, why) for each, why in counted if each.sound]
        self.check_last(sound, rules['last'])
        for name, form in PERIOD.items():
            self.check_period(sound, name, form, rules[name])
        for number, (each, why) in enumerate(counted):
            if not each.sound:
                newer = sum(later.sound for later, _ in counted[number + 1:])
                self.assertEqual(newer < max(rules['last'], 1), bool(why))

    def check_disks(self, backups, disks, found, by_rules):
        """What rules keep they keep for the same reasons; beyond it stays at most one backup a
        disk, the newest sound one that has it."""
        last = {max((number for number, each in enumerate(backups) if each.sound and
                     VmBackup.has_disk(each.disks, disk, disks)), default=None): disk[1]
                for disk in disks[::-1]}
        last.pop(None, None)
        self.assertEqual([why for why in by_rules if why],
                         [why for why, rule in zip(found, by_rules) if rule])
        extra = {number: why for number, why in enumerate(found) if why != by_rules[number]}
        self.assertLessEqual(len(extra), len(disks))
        self.assertEqual({number: VmBackup.ONLY + device for number, device in last.items()
                          if not by_rules[number]},
                         {number: why[0] for number, why in extra.items()})

    def check_last(self, sound, count):
        kept = [why for _, why in sound if 'last' in why]
        self.assertEqual(min(count, len(sound)), len(kept))
        self.assertEqual(kept, [why for _, why in sound][len(sound) - len(kept):])
        self.assertTrue(not sound or sound[-1][1])

    def check_period(self, sound, name, form, count):
        newest = {}
        for each, _ in sound:
            newest[each.when.strftime(form)] = each
        wanted = sorted(each.when for each in newest.values())
        self.assertEqual(wanted[max(0, len(wanted) - count):] if count else [],
                         [each.when for each, why in sound if name in why])


class SameDisk(unittest.TestCase):
    def test_a_disk_is_known_by_uuid_or_device_but_not_by_a_device_that_was_anothers(self):
        now = [('a', 'xvda'), ('b', 'xvdc'), ('c', 'xvdb')]    # b and c have changed places
        for held, devices in (
                ([('a', 'xvda'), ('b', 'xvdb')], 'xvda xvdc'),
                ([('moved', 'xvda'), ('', 'xvdb')], 'xvda xvdb'), ([('c', 'xvdz')], 'xvdb'),
                ([('b', '')], 'xvdc'), ([], '')):
            self.assertEqual(devices.split(), [disk[1] for disk in now
                                               if VmBackup.has_disk(held, disk, now)], held)


class Candidates(unittest.TestCase):
    """What a run may delete: the history is named by letters, oldest first."""

    def history(self, letters, damaged):
        """A History that has these backups, each a day after the one before."""
        history = VmBackup.History('/nowhere', [VmBackup.DEFAULT_PATTERN])
        history.completed = lambda: [
            VmBackup.Backup('/nowhere/' + letter, 'damaged' if letter in damaged else 'good',
                            86400.0 * number)
            for number, letter in enumerate(letters, 1)]
        return history

    def expendable(self, history, keep, *path):
        new = VmBackup.Aged(datetime.datetime(2026, 3, 1))
        return self.names(backup for backup, why in history.judged(
            policy(last=keep), VmBackup.Manifest(), (), new, *path) if not why)

    def names(self, backups):
        return ''.join(backup.path[-1] for backup in backups)

    def test_what_may_go_is_older_than_the_sound_ones_that_stay(self):
        for letters, keep, damaged, gone in (
                ('abcd', 3, '', 'ab'), ('abcd', 3, 'd', 'a'), ('abcd', 3, 'cd', ''),
                ('abcd', 3, 'abc', ''), ('abcd', 1, 'b', 'abcd'), ('abcd', 2, 'cd', 'a'),
                ('abcd', 2, 'd', 'ab'), ('', 3, '', ''), ('ab', 3, '', '')):
            self.assertEqual(gone, self.expendable(self.history(letters, damaged), keep,
                                                   '/nowhere/new'), (letters, keep, damaged))

    def test_pre_clean_leaves_the_last_sound_one_and_what_is_newer(self):
        for letters, keep, damaged, gone in (
                ('abcd', 1, 'd', 'ab'), ('abcd', 1, 'abcd', ''), ('abcd', 1, '', 'abc'),
                ('abcd', 2, '', 'abc'), ('abcd', 3, '', 'ab'), ('a', 1, '', ''), ('', 1, '', '')):
            self.assertEqual(gone, self.expendable(self.history(letters, damaged), keep),
                             (letters, keep, damaged))


class RetentionCase(PoolCase):
    """A history of empty backups of web and db, one a day from 2026-01-01 on."""

    pool_description = {'vms': [{'name': 'web', 'disks': ['64 KiB']},
                                {'name': 'db', 'disks': ['64 KiB']}]}

    def made(self, vm, *days):
        return [self.old_backup(vm, 'backup-2026-01-%02d-(03:00:00)' % day, 'success', vm + '.xva')
                for day in days]

    def days(self, vm):
        return [int(re.search(r'2026-01-(\d\d)', path).group(1)) for path in self.dated(vm)
                if '2026-01' in path]


class Prune(RetentionCase):
    def test_each_backup_is_told_with_the_rules_that_keep_it(self):
        self.made('web', *range(1, 15))
        self.made('db', 1, 2)
        config = self.config('vm-export=web', keep_last=2, keep_daily=3, keep_weekly=2)
        before = self.tree()
        done = self.command(0, 'prune', config, 'preview')
        self.assertEqual(before, self.tree())
        self.assertEqual([os.path.join(self.backups, 'web')] + [
            '  delete backup-2026-01-%02d-(03:00:00)' % day for day in range(1, 11)] + [
            '  keep   backup-2026-01-11-(03:00:00) (weekly)',
            '  keep   backup-2026-01-12-(03:00:00) (daily)',
            '  keep   backup-2026-01-13-(03:00:00) (last, daily)',
            '  keep   backup-2026-01-14-(03:00:00) (last, daily, weekly)',
            'VmBackup prune ended - Success - 4 kept, 10 would be deleted (0 bytes)'],
            done.lines)
        done = self.command(0, 'prune', config)
        self.assertIn('VmBackup prune ended - Success - 4 kept, 10 deleted (0 bytes)', done.lines)
        self.assertEqual(([11, 12, 13, 14], [1, 2]), (self.days('web'), self.days('db')))
        self.assertEqual([], self.sim.calls())
        self.assertEqual(self.command(0, 'prune', config).lines[1:-1],
                         [line for line in done.lines if line.startswith('  keep')])

    def test_the_number_of_a_line_takes_the_place_of_keep_last_and_the_last_good_one_stays(self):
        for vm in ('web', 'db'):
            self.made(vm, 1, 2, 3, 4)
        lines = 'vm-export=.*', 'vm-export=web:2'
        for words, keys, left in (
                (['vm=web'], dict(max_backups=1), ([3, 4], [1, 2, 3, 4])),
                ([], dict(max_backups=3), ([3, 4], [2, 3, 4])),
                ([], dict(keep_last=0), ([3, 4], [4]))):
            self.command(0, 'prune', self.config(*lines, **keys), *words)
            self.assertEqual(left, (self.days('web'), self.days('db')))
        done = self.command(2, 'prune', self.config('vm-export=web'), 'vm=db')
        self.assertIn('ERROR vm=db is none of the VMs that are selected and found', done.lines)

    def test_failures_and_what_is_not_ours_stay(self):
        self.made('web', 1, 2)
        self.old_backup('web', 'backup-2026-01-09-(03:00:00)', 'vm.cfg')
        self.old_backup('web', 'KEEP-golden', 'success', 'web.xva')
        self.command(0, 'prune', self.config('vm-export=web', max_backups=1))
        self.assertEqual([2, 9], self.days('web'))
        self.assertIn('web/KEEP-golden/success', self.tree())

    def test_what_cannot_be_done_is_told_and_the_others_are_pruned(self):
        first, _ = self.made('web', 1, 2)
        self.made('db', 1, 2)
        config = self.config('vm-export=.*', max_backups=1)
        store = store_at(self.backups)
        store.check()
        with store.locked('web', 0):
            done = self.command(2, 'prune', config)
        self.assertIn('ERROR %s/web: locked by another run (see lock_wait)' % self.backups,
                      done.lines)
        self.assertEqual(([1, 2], [2]), (self.days('web'), self.days('db')))
        self.made('db', 1)
        self.record(first, self.disk_of('web', '0'))
        done = self.command(2, 'prune', config)
        self.assertIn('ERROR %s: it records a snapshot that is still to be removed' % first,
                      done.lines)
        self.assertEqual(([1, 2], [2]), (self.days('web'), self.days('db')))

    def test_lines_by_tag_are_not_for_backups_that_tell_no_tags(self):
        self.made('web', 1, 2, 3)
        for line in ('vm-export=tag:prod:5', 'exclude=tag:prod', 'vm-export=uuid:' + '0' * 8):
            done = self.command(2, 'prune', self.config('vm-export=.*:1', line))
            self.assertRegex(done.output, 'ERROR .*/web: not touched, as its newest backup records '
                             'no (tag|uuid) of it')
        self.assertEqual([1, 2, 3], self.days('web'))

    def test_bad_input_deletes_nothing(self):
        self.made('web', 1, 2, 3)
        good = self.config('vm-export=web', max_backups=1)
        for words in ([], [good, 'vm='], [good, 'keep=1'], [good, 'preview', 'x'], ['/none'],
                      [self.backups]):
            self.assertRegex(self.command(2, 'prune', *words).lines[-1], '^ERROR ')
        for line in ('keep_daily=x', 'nonsense=1', 'vm-export=(', 'exclude=('):
            self.command(2, 'prune', self.config('vm-export=web', line, max_backups=1))
        self.assertEqual([1, 2, 3], self.days('web'))

    def test_a_preview_finishes_no_deletion(self):
        self.made('db', 1)
        half = self.old_backup('db', '.deleting-backup-2026-01-02-(03:00:00)', 'success')
        before = self.tree()
        self.command(0, 'prune', self.config('vm-export=db'), 'preview')
        self.assertEqual(before, self.tree())
        self.command(0, 'prune', self.config('vm-export=db'))
        self.assertFalse(os.path.exists(half))


class Runs(RetentionCase):
    def test_a_run_keeps_what_the_rules_keep(self):
        self.made('web', *range(1, 15))
        self.ends(0, 'vm-export=web', keep_last=1, keep_weekly=3)
        self.assertEqual([11, 14], self.days('web'))
        self.assertEqual(3, len(self.dated('web')))

    def test_pre_clean_deletes_before_the_export_what_will_not_be_kept(self):
        self.made('web', *range(1, 6))
        self.fault('vm-export', 'refuse', nth=2, error=['INTERNAL_ERROR', 'x'])
        self.ends(2, 'vm-export=web', keep_last=1, keep_daily=3, pre_clean='True')
        self.assertEqual([4, 5], self.days('web'))


class Protected(RetentionCase):
    def test_what_is_protected_is_neither_counted_nor_deleted(self):
        paths = self.made('web', 1, 2, 3, 4, 5)
        self.command(0, 'protect', paths[0], paths[4])
        self.assertTrue(os.path.exists(os.path.join(paths[0], 'protected')))
        config = self.config('vm-export=web', max_backups=2)
        done = self.command(0, 'prune', config)
        self.assertIn('  keep   backup-2026-01-01-(03:00:00) (protected)', done.lines)
        self.assertEqual([1, 3, 4, 5], self.days('web'))
        self.vmbackup('password', config)
        self.assertEqual([1, 4, 5], self.days('web'))
        self.assertIn('  protected\n', self.vmbackup('list', self.backups).output)
        self.command(0, 'unprotect', os.path.relpath(paths[0], self.directory))
        self.command(0, 'prune', config)
        self.assertEqual([4, 5], self.days('web'))

    def test_a_share_in_trouble_makes_it_neither_unprotected_nor_empty_nor_settled(self):
        path, = self.made('web', 1)
        backup = VmBackup.Backup(path)
        self.put_file(backup.file(VmBackup.PROTECTED))
        error = OSError(errno.ESTALE, 'Stale file handle')
        look = os.stat

        def stale(path, **how):
            if path in ('protected', 'snapshot.json'):
                raise error
            return look(path, **how)
        with unittest.mock.patch('os.stat', stale), self.assertRaises(OSError):
            VmBackup.is_there(backup.file('protected'))
        with unittest.mock.patch('os.stat', stale):
            found = list(store_at(self.backups).history('web').with_intent())
        self.assertEqual([path], [backup.path for backup in found])
        with unittest.mock.patch('os.scandir', side_effect=error), self.assertRaises(OSError):
            backup.files()

    def test_twice_is_once(self):
        path, = self.made('web', 1)
        for word in ('protect', 'protect', 'unprotect', 'unprotect'):
            self.assertEqual(['%sed: %s' % (word, path)], self.command(0, word, path).lines)

    def test_what_is_no_good_backup_is_refused_and_nothing_is_changed(self):
        good, = self.made('web', 1)
        self.ends(0, 'vm-export=web')
        path, name = os.path.split(self.newest('web'))
        half = os.path.join(path, '.deleting-' + name)
        os.rename(os.path.join(path, name), half)
        os.unlink(os.path.join(half, 'web.xva'))
        failed = self.old_backup('web', 'backup-2026-01-02-(03:00:00)', 'vm.cfg')
        before = self.tree()
        for words in ([], [good, failed], [self.backups], ['web'], [good + '/web.xva'], [''],
                      [half]):
            self.assertRegex(self.command(2, 'protect', *words).lines[-1], '^ERROR ')
        self.assertEqual(before, self.tree())

    def test_one_that_somebody_protects_while_it_is_deleted_gets_its_name_again(self):
        path, newer = self.made('web', 1, 2)
        store = store_at(self.backups)
        self.put_file(os.path.join(path, VmBackup.PROTECTED))
        with self.assertRaisesRegex(VmBackup.TargetError, 'it is protected'):
            store.delete(VmBackup.Backup(path))
        self.assertEqual([path, newer], self.dated('web'))
        os.rename(path, os.path.join(self.backups, 'web', '.deleting-' + os.path.basename(path)))
        self.assertIn('it is protected', self.ends(1, 'vm-export=web').output)
        self.assertEqual(path, self.dated('web')[0])


class HistoryCase(SavedCase):
    def fails(self, *lines):
        self.fault('vm-export', 'refuse', nth=2, error=['INTERNAL_ERROR', 'x'])
        self.ends(2, *lines)

    def finds(self, *lines, **told):
        """Of that config each of the commands tells this."""
        config = self.config(*lines)
        for command, words in told.items():
            self.assertIn(words, self.vmbackup(command, config).output)


class Tags(HistoryCase):
    pool_description = {'vms': [{'name': name, 'tags': ['prod'], 'disks': ['64 KiB']}
                                for name in ('db', 'web')]}

    def prepare(self):
        self.assertEqual(0, self.back_up('vm-export=tag:prod').status)

    def test_a_vm_whose_last_backup_failed_is_there_still(self):
        self.fails('vm-export=tag:prod')
        self.finds('vm-export=tag:prod', 'vm-export=.*:1', status='2 of 2 VMs have a good backup',
                   list='total of 2 VMs: 3 good', prune='1 deleted')

    def test_a_backup_that_is_being_made_hides_no_others(self):
        new = os.path.join(self.backups, 'web', 'backup-2030-01-01-(00:00:00)')
        os.mkdir(new)
        shutil.copy(os.path.join(self.dated('web')[0], 'vm.cfg'), new)
        self.finds('vm-export=tag:prod', status='VMBACKUP OK - 2 of 2 VMs')


class Twins(HistoryCase):
    pool_description = {'vms': [{'name': 'twin', 'disks': ['64 KiB']}]}

    def prepare(self):
        self.first = self.uuid_of('twin')
        self.ends(0, 'vm-export=twin')
        self.sim.pool.add_vm(name_label='twin')
        self.second, = set(self.uuid_of('twin').split(',')) - {self.first}
        self.other = 'twin~' + self.second[:8]         # the name of its directory

    def setUp(self):
        super().setUp()
        self.first, self.second, self.other = (
            self.saved.first, self.saved.second, self.saved.other)

    def add_vm(self, name):
        self.sim.pool.add_vm(name_label=name)
        self.before = self.contents()

    def counts(self, good=False):
        return tuple(sum(not good or os.path.exists(path + '/success')
                         for path in self.dated(name)) for name in ('twin', self.other))

    def test_the_one_that_owns_the_history_keeps_its_directory(self):
        self.ends(0, 'vm-export=uuid:' + self.second, 'vm-export=uuid:' + self.first)
        self.assertEqual((2, 1), self.counts())
        self.assertIn(self.other + '/DATED/%s.xva' % self.other, self.tree())
        self.finds('vm-export=uuid:' + self.second, 'vm-export=uuid:' + self.first,
                   list='total of 2 VMs: 3 good')

    def test_the_other_one_keeps_its_directory_when_the_first_is_gone(self):
        """Else its backups would push out those of a VM that cannot be backed up again."""
        self.ends(0, 'vm-export=uuid:' + self.second)
        self.xe('vm-uninstall', 'uuid=' + self.first, 'force=true')
        self.before = self.contents()
        for _ in range(2):
            self.ends(0, 'vm-export=twin:1')
        self.assertEqual((1, 1), self.counts())

    def test_prune_takes_the_lines_as_a_run_does(self):
        both = ['vm-export=uuid:' + uuid for uuid in (self.first, self.second)]
        self.ends(0, *both)
        for name in ('twin', self.other):
            for day in (1, 2):
                shutil.copytree(self.dated(name)[-1], os.path.join(
                    self.backups, name, 'backup-2026-01-%02d-(03:00:00)' % day))
        self.assertEqual((4, 3), self.counts())
        for lines, counts in (
                (['vm-export=.*:1', 'vm-export=twin:9', 'exclude=uuid:' + self.first], (4, 3)),
                (['vm-export=.*:1', 'exclude=uuid:' + self.second], (1, 3))):
            self.command(0, 'prune', self.config(*lines))
            self.assertEqual(counts, self.counts())
        self.command(2, 'prune', self.config('vm-export=.*:1', 'exclude=twin'))
        self.assertEqual((1, 3), self.counts())
        done = self.vmbackup('prune', self.config(*both), 'vm=' + self.other, 'preview')
        self.assertIn('3 kept, 0 would be deleted', done.output)
        self.finds('vm-export=twin', 'exclude=uuid:' + self.first,
                   status='VMBACKUP OK - 1 of 1 VMs')

    def test_one_that_is_called_like_the_directory_stops_and_rotates_nobody(self):
        """It came first, and kept the second one from its backup."""
        self.add_vm(self.other)
        self.ends(0, 'vm-export=%s:1' % self.other)
        for count, parallel in (1, 1), (2, 2):
            self.ends(1, 'vm-export=%s:1' % self.other, 'vm-export=twin', parallel=parallel)
            self.assertEqual((1 + count, count), self.counts())
            self.assertEqual(1, len(self.dated(self.other.replace('~', '%7E'))))

    def test_a_directory_that_is_another_ones_by_name_locks_nobody_out(self):
        self.xe('vm-uninstall', 'uuid=' + self.second, 'force=true')
        self.add_vm('twin~' + self.first[:8])
        for count in 2, 3:
            self.ends(0, 'vm-export=.*')
            self.assertEqual(count, len(self.dated('twin')))

    def test_a_failure_that_came_last_hides_no_backups(self):
        lines = 'vm-export=twin:1', 'exclude=uuid:' + self.first
        self.ends(0, *lines)
        self.fails(*lines)
        self.finds(*lines, status='1 of 1 VMs have a good backup', list='total of 1 VMs: 1 good',
                   prune='1 kept, 0 deleted')

    def test_a_backup_of_3_25_tells_whose_it_is_by_its_vm_cfg(self):
        os.unlink(os.path.join(self.dated('twin')[0], 'backup.json'))
        self.ends(0, 'vm-export=uuid:' + self.second)
        self.assertEqual((1, 1), self.counts())
        self.ends(0, 'vm-export=uuid:' + self.first)
        self.assertEqual((2, 1), self.counts())

    def test_where_nobody_owns_a_history_the_next_one_gets_it(self):
        self.ends(0, 'vm-export=uuid:%s' % self.second)
        os.rename(os.path.join(self.backups, 'twin'), os.path.join(self.directory, 'away'))
        self.ends(0, 'vm-export=uuid:%s' % self.first)
        self.assertEqual(['twin', self.other], self.entries())

    def test_lines_by_tag_choose_backups_without_the_pool(self):
        ref = self.sim.pool.ref_of('VM', self.second)
        self.sim.pool.call('VM.add_tags', ref, 'nightly')
        self.ends(0, 'vm-export=tag:nightly')
        for words in (self.other, 'total of 1 VMs'):
            self.finds('vm-export=tag:nightly', list=words)
