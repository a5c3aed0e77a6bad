"""The command `list`: what it tells of backups, and what cannot disturb it."""

import contextlib
import datetime
import io
import json
import os
import shutil
import unicodedata
import unittest
import unittest.mock

import VmBackup
from tests.tools.support import HOST, PoolCase
from tests.runs.test_store import AS_ANYBODY, DAY, RUBBISH, StoreCase, store_at

LATIN = os.fsdecode(b'b\xfcro')            # no UTF-8


class ListCase(StoreCase):
    pool_description = PoolCase.pool_description

    def table(self, status, *words, **environ):
        """The lines of the table; the command has to end with that status."""
        done = self.command(status, 'list', *words, **environ)
        self.assertNotIn('a bug in', done.output)
        return done.output.splitlines()

    def document(self, status, *words, **environ):
        """What it prints as JSON, and nothing else."""
        text = '\n'.join(self.table(status, *(words + ('json',)), **environ))
        return json.loads(text[text.index('{'):])

    def refused(self, *words):
        line, = self.table(2, *words)
        self.assertIn(' - ERROR ', line)
        return line

    def backup(self, vm, day, **manifest):
        """A good backup of that day with a manifest of this; its path."""
        path = self.made(vm, DAY % day, size=100)
        told = dict({'number': day, 'started': '2019-01-%02dT00:00:00+01:00' % day,
                     'files': {vm + '.xva': 5 << 30, 'vm.cfg': 7}}, **manifest)
        self.put_file(os.path.join(path, 'backup.json'), json.dumps(told))
        return path

    def only(self, document):
        vm, = document['vms']
        found, = vm['backups']
        return found

    def outcomes(self, document):
        return [(os.path.basename(backup['path']), backup['outcome'])
                for vm in document['vms'] for backup in vm['backups']]


class WhatIsTold(ListCase):
    def test_every_key_of_a_backup_of_this_night_is_right(self):
        self.ends(0, 'vm-export=web', 'vdi-export=db', compress='gzip')
        for vm, method, packed, proved in (('web', 'vm-export', 'gzip', 'checksums'),
                                           ('db', 'vdi-export', 'none', 'structure')):
            path, = self.dated(vm)
            manifest = self.manifest(vm)
            file, = [name for name in os.listdir(path) if name.startswith(vm)]
            self.assertEqual({
                'path': path, 'when': manifest['started'], 'outcome': 'good', 'method': method,
                'size': os.path.getsize(os.path.join(path, file)), 'compression': packed,
                'verified': {'when': manifest['verified']['when'], 'proved': proved,
                             'fault': None, 'sr': None, 'seconds': None},
                'test_restore': None, 'protected': False, 'of': ''},
                self.only(self.document(0, self.backups, 'vm=' + vm)))
        told = [line.partition('  gzip, ')[2] for line in self.table(0, self.backups)]
        self.assertEqual(['checksums 0min'], list(filter(None, told)))

    def test_the_document_counts_all(self):
        self.backup('web', 1)
        self.backup('web', 2)
        self.backup('db', 3)
        document = self.document(0, self.backups)
        self.assertEqual((1, self.backups, 3, 15 << 30), tuple(
            document[key] for key in ('schema', 'backup_dir', 'good', 'size')))
        self.assertTrue(VmBackup.seconds_of(document['when']))
        self.assertEqual([('db', 1, 5 << 30), ('web', 2, 10 << 30)], [
            (vm['name'], vm['good'], vm['size']) for vm in document['vms']])
        self.assertEqual([self.backups + '/db', self.backups + '/web'],
                         [vm['path'] for vm in document['vms']])

    def test_each_outcome_has_its_word_and_the_newest_comes_first(self):
        self.backup('web', 1, number=9)
        self.backup('web', 2, number=3, verified={'fault': 'it is too short'})
        self.backup('web', 3, number=10)
        os.rename(self.backups + '/web/' + DAY % 3, self.backups + '/web/KEEP-it')
        self.old_backup('web', DAY % 4, 'vm.cfg')
        for name in ('notes', '.snapshot', '.deleting-' + DAY % 5, 'backup-2019-02-31-(00:00:00)'):
            os.mkdir(self.backups + '/web/' + name)
        os.symlink(self.directory, self.backups + '/web/' + DAY % 6)
        self.assertEqual([
            (DAY % 4, 'failed'), ('KEEP-it', 'good'), (DAY % 1, 'good'), (DAY % 2, 'damaged'),
            ('.deleting-' + DAY % 5, 'being deleted'), ('backup-2019-02-31-(00:00:00)', 'foreign'),
            ('notes', 'foreign')],
            self.outcomes(self.document(1, self.backups)))
        lines = self.table(1, self.backups)
        self.assertRegex('\n'.join(lines), r' damaged .*  fault when verified: it is too short\n')
        self.assertRegex('\n'.join(lines), r'\n-( +-)+ +foreign +notes\n')

    def test_backups_of_3_25_are_told_by_their_names(self):
        for day, (vm, method, packed) in enumerate((
                ('a.xva', 'vm-export', 'none'), ('b.xva.gz', 'vm-export', 'gzip'),
                ('c.xva.zst', 'vm-export', 'zstd'), ('d.raw', 'vdi-export', 'none'),
                ('e.vhd', 'vdi-export', 'none')), 1):
            path = self.old_backup(vm[0], DAY % day, 'success_compress', vm)
            os.truncate(os.path.join(path, vm), 1000 + day)
            found = self.only(self.document(0, self.backups, 'vm=' + vm[0]))
            self.assertEqual((method, packed, 1000 + day, None), tuple(
                found[key] for key in ('method', 'compression', 'size', 'verified')))
            self.assertEqual('2019-01-%02dT00:00:00' % day, found['when'][:19])

    def test_verification_protection_and_test_restores_good_or_failed_are_told(self):
        when = '2019-01-02T03:04:05+00:00'
        path = self.backup('web', 1, verified={'when': when, 'proved': 'structure', 'digests': {}},
                           test_restore={'when': when, 'sr': 'Local', 'seconds': 61})
        self.put_file(os.path.join(path, VmBackup.PROTECTED))
        found = self.only(self.document(0, self.backups))
        self.assertEqual({'when': when, 'proved': 'structure', 'fault': None, 'sr': None,
                          'seconds': None}, found['verified'])
        self.assertEqual({'when': when, 'proved': None, 'fault': None, 'sr': 'Local',
                          'seconds': 61}, found['test_restore'])
        self.assertIs(True, found['protected'])
        head, _, row = self.table(0, self.backups)[:3]
        self.assertEqual('when age method size outcome name remarks'.split(),
                         head.split())
        self.assertRegex(row, r' good +backup-.*  protected, structure \d+d, restored \d+d$')
        self.backup('web', 2, test_restore={'fault': 'it did not boot'})
        lines = self.table(0, self.backups)
        self.assertRegex(lines[2], ' good +backup-.*  fault when restored: it did not boot$')

    def test_dumps_and_directories_without_backups_have_their_own_lines(self):
        self.ends(0, 'vm-export=web', pool_db_backup=1)
        for name in ('logs', 'METADATA_empty', 'project/build'):
            os.makedirs(os.path.join(self.backups, name))
        os.symlink(self.directory, self.backups + '/METADATA_link')
        document = self.document(0, self.backups)
        dumps, = document['pool_dumps']
        self.assertEqual((self.backups + '/METADATA_' + HOST, 1),
                         (dumps['path'], dumps['dumps']))
        self.assertRegex(dumps['newest'], r'^pool_db_\d{8}-\d{6}\.dump$')
        self.assertEqual([self.backups + '/' + name for name in (
            'METADATA_empty', 'logs', 'project')], document['foreign'])
        lines = self.table(0, self.backups)
        self.assertRegex(lines[-1], r'^total of 1 VMs: 1 good, \d\.0 MiB$')
        self.assertIn('foreign: %s/logs' % self.backups, lines)
        self.assertRegex('\n'.join(lines), r'\npool database \(.*\): 1 dumps, newest pool_db_')
        only = self.document(0, self.backups, 'vm=web')
        self.assertEqual(([], []), (only['pool_dumps'], only['foreign']))

    def test_ages_are_in_minutes_hours_or_days(self):
        moment = datetime.datetime(2019, 3, 4, 12, 0, 0)
        for seconds, words in ((-50, '0min'), (0, '0min'), (3599, '59min'), (3600, '1h'),
                               (172799, '47h'), (172800, '2d'), (86400 * 1000, '1000d')):
            when = VmBackup.iso(moment - datetime.timedelta(seconds=seconds))
            with unittest.mock.patch.object(VmBackup, 'now', lambda: moment):
                self.assertEqual(words, VmBackup.age(when))
        self.assertEqual('-', VmBackup.age(None))

    def test_a_usual_line_has_about_100_columns_the_pool_is_not_asked_and_nothing_changed(self):
        for days in (3, 10):
            when = VmBackup.now() - datetime.timedelta(days=days)
            self.backup('web', days, started=VmBackup.iso(when), method='vm-export', files={
                'web.xva.zst': 12 << 30}, verified={'when': VmBackup.iso(
                    VmBackup.now() - datetime.timedelta(days=3)), 'proved': 'checksums'})
        before, calls = self.tree(), self.sim.calls()
        self.sim.down()
        for line in self.table(0, self.backups):
            self.assertLessEqual(len(line), 106, line)
        self.assertEqual((before, calls), (self.tree(), self.sim.calls()))


class WhichOnes(ListCase):
    def names(self, document):
        return {vm['name']: vm['good'] for vm in document['vms']}

    def test_a_configured_vm_without_a_good_backup_is_status_2(self):
        self.backup('web', 1)
        self.old_backup('db', DAY % 1, 'vm.cfg')
        os.mkdir(self.backups + '/empty')
        os.symlink('web', self.backups + '/link')
        config = self.config('vm-export=web', 'vdi-export=db', 'vm-export=gone', 'vm-export=empty',
                             'vm-export=link')
        document = self.document(2, config)
        self.assertEqual({'web': 1, 'db': 0, 'gone': 0, 'empty': 0, 'link': 0},
                         self.names(document))
        self.assertEqual([], document['foreign'])
        lines = self.table(2, config)
        for name in ('db', 'gone', 'empty', 'link'):
            self.assertIn('%s (%s/%s): NO GOOD BACKUP' % (name, self.backups, name), lines)

    def test_a_config_chooses_as_in_a_run_and_the_directory_of_a_vm_may_be_given(self):
        for vm in ('web', 'web2', 'db'):
            self.backup(vm, 1)
        for words in ([], ['vm=web']):
            self.assertEqual({'web': 1}, self.names(
                self.document(0, self.backups + '/web/', *words)))
        config = self.config('vm-export=web.*', 'exclude=web2', 'backup_dir_pattern=x-%Y%m%d%H%M%S')
        self.assertEqual({'web': 1}, self.names(self.document(0, config)))
        self.assertEqual({'web': 1}, self.names(self.document(0, config, 'vm=web.*')))
        self.assertEqual({}, self.names(self.document(2, config, 'vm=db')))
        config = self.config()
        self.assertEqual({'web': 1, 'web2': 1, 'db': 1}, self.names(self.document(0, config)))

    def test_a_newest_backup_that_is_not_good_is_status_1(self):
        self.backup('web', 1)
        self.table(0, self.backups)
        bad = self.old_backup('web', DAY % 2, 'vm.cfg')
        self.table(1, self.backups)
        self.assertEqual({'web': 1}, self.names(self.document(1, self.backups)))
        os.rename(bad, bad + '.txt')
        self.table(0, self.backups)
        self.backup('web', 3, verified={'fault': 'x'})
        self.table(1, self.backups)
        self.backup('web', 4)
        self.table(0, self.backups)

    def test_a_backup_that_is_being_made_is_no_failure(self):
        self.backup('web', 1)
        self.old_backup('web', DAY % 2, 'vm.cfg')
        store = store_at(self.backups)
        store.check()
        for locked, outcome, status in (True, 'running', 0), (False, 'failed', 1):
            with store.locked('web', 0) if locked else contextlib.suppress():
                self.assertEqual([(DAY % 2, outcome), (DAY % 1, 'good')],
                                 self.outcomes(self.document(status, self.backups)))

    def test_a_pattern_without_a_match_is_told_and_status_1(self):
        self.backup('web', 1)
        config = self.config('vm-export=web', 'vm-export=nothing.*')
        self.assertEqual(['***WARNING - no backup found: vm-export=nothing.* (%s line 4)' % config],
                         self.document(1, config)['messages'])
        self.assertRegex(self.table(1, config)[0], ' - .+WARNING - no backup found: vm-export=noth')
        self.assertRegex(self.table(2, self.backups, 'vm=w[b')[0],
                         r' - ERROR vm=w\[b is none of the VMs that are selected and found$')

    def test_wrong_words_are_one_line_and_status_2(self):
        path = self.backup('web', 1)
        for words, text in (
                ((), 'usage: VmBackup.py list <config-file|backup_dir>'),
                ((self.backups, 'json=xml'), 'invalid value: json= (invalid, allowed: yes, no'),
                ((self.backups, 'vm'), 'unknown option: vm'),
                ((self.backups, 'backups=all'), 'unknown option: backups= (see'),
                ((path,), "expected a config-file, a backup_dir, or a VM's directory"),
                (('/nosuch',), 'no such file or directory: /nosuch'),
                ((path + '/web.xva',), 'not a config file'),
                ((self.directory,), 'holds no backup at all -> ' + self.directory),
                ((self.config(max_backups='many'),), 'config max_backups out of range')):
            with self.subTest(text):
                self.assertIn(text, self.refused(*words))
        self.assertIn('ERROR unexpected config key: bogus',
                      self.table(2, self.config('bogus=1'))[0])


class Robust(ListCase):
    def test_hostile_manifests_are_no_more_than_unknown(self):
        good, when = self.backup('web', 1), '2019-01-01T00:00:00+00:00'
        odd = [[], {}, None, 7, 'x', True, 1e999, -1, '\ud800', {'when': []}, {'fault': {}},
               {'fault': None},
               {'when': '9999-12-31T23:59:59-23:59', 'seconds': 1e999, 'sr': ['x'], 'proved': []},
               {'when': '0001-01-01T00:00:00+23:59', 'seconds': float('nan'), 'proved': 'x',
                'fault': '\ud800\x1b[2J\udcff'}]
        manifests = [json.dumps({'number': 2, 'started': when, key: value}).encode('ascii')
                     for value in odd for key in (
                         'verified', 'test_restore', 'files', 'method', 'vm', 'number', 'started')]
        manifests += [json.dumps({'files': {'a.xva': size, '\ud800.raw': size}}).encode('ascii')
                      for size in odd]
        manifests += [json.dumps({'files': {name: 0}, 'disks': [{'file': name}]}).encode('ascii')
                      for name in ('a\0.xva', '../a.xva', 'x' * 5000 + '.xva')]
        path = self.old_backup('db', DAY % 2, 'success')
        for manifest in manifests + list(RUBBISH):
            self.put_file(path + '/backup.json', manifest)
            for words, told in ([], os.path.basename(good)), (['json'], good):
                output, status = self.here(self.backups, *words)
                self.assertIn(status, (0, 1, 2), manifest)
                self.assertIn(told, output)
                self.assertNotIn('\x1b', output)
                self.assertNotIn('unreadable', output)
                if words:
                    self.assertEqual(2, len(json.loads(output, parse_constant=self.fail)['vms']))

    def here(self, *words):
        """What the command prints in this process, which is quicker, and its status."""
        stream = io.BytesIO()
        status = VmBackup.perform(['list', *words], '', VmBackup.Console(stream))
        return stream.getvalue().decode('utf-8', 'surrogateescape'), status

    def test_names_of_any_bytes_and_letters_in_any_locale(self):
        names = ['büro', '日本語サーバー', 'a\nb\x1b[2J', 'x' * 300, '..', 'a/b', '%41', 'e\u0301', LATIN]
        for name in names:
            directory = name if name == LATIN else VmBackup.path_part(name)
            told = {} if name == LATIN else {'vm': {'name': name}}
            path = os.path.join(self.backups, directory, DAY % 1)
            os.makedirs(path)
            for file in ('success', 'protected'):
                self.put_file(os.path.join(path, file))
            self.put_file(path + '/backup.json', json.dumps(
                dict(told, number=1, started='2019-01-01T00:00:00+00:00')))
        os.makedirs(os.path.join(self.backups, 'büro', os.fsdecode(b'\xff\n')))
        for environ in ({}, {'LANG': 'C', 'LC_ALL': 'C'}):
            document = self.document(0, self.backups, **environ)
            self.assertEqual(sorted(names[:-1] + ['b\ufffdro']),
                             sorted(vm['name'] for vm in document['vms']))
            self.assertIn(VmBackup.portable(os.path.join(self.backups, LATIN)),
                          [vm['path'] for vm in document['vms']])
            done = self.start('list', self.backups, **environ)
            output, _ = done.communicate()
            lines = output.decode('utf-8', 'surrogateescape').splitlines()
            self.assertEqual(0, done.returncode, lines)
            rows = [line for line in lines if line.startswith('2019-')]
            self.assertEqual((len(names), 1), (len(rows), len(set(rows))))
            self.assertEqual(len(names) * 2 + 3, len(lines))
            self.assertFalse([line for line in lines
                              if 'Cc' in map(unicodedata.category, line)])

    def test_what_cannot_be_read_is_told_and_stops_nothing(self):
        self.backup('web', 1)
        locked = self.backup('db', 1), self.backup('db', 2) and self.backups + '/other'
        os.mkdir(locked[1])
        self.prelude = AS_ANYBODY
        for path in locked:
            os.chmod(path, 0)
            self.addCleanup(os.chmod, path, 0o700)
        self.assertEqual([(DAY % 2, 'good'), (DAY % 1, 'unreadable'), (DAY % 1, 'good')],
                         self.outcomes(self.document(0, self.backups)))
        self.assertEqual([locked[1]], self.document(0, self.backups)['foreign'])
        os.chmod(self.backups, 0)
        self.addCleanup(os.chmod, self.backups, 0o700)
        self.assertIn('path is not readable -> ', self.refused(self.backups))

    def test_what_vanishes_meanwhile_is_left_out(self):
        paths = [self.backup('web', day) for day in (1, 2, 3)]
        paths.append(self.backups + '/web/KEEP')
        os.mkdir(paths[3])
        real = VmBackup.load

        def reading(path, *limits):
            for gone in (paths[1], paths[3]):
                if path == gone + '/backup.json':
                    shutil.rmtree(gone)
            return real(path, *limits)
        with unittest.mock.patch.object(VmBackup, 'load', reading):
            output, status = self.here(self.backups, 'json')
        self.assertEqual(0, status)
        self.assertEqual([(DAY % 3, 'good'), (DAY % 1, 'good')],
                         self.outcomes(json.loads(output)))

    def test_the_ends_of_time_in_a_directorys_name(self):
        for year in ('0001', '0002', '1800', '9999'):
            self.old_backup('web', 'backup-%s-12-31-(23:59:59)' % year, 'success', 'web.xva')
        for zone in ('UTC', 'Europe/Berlin', 'America/New_York', 'XXX+12', 'XXX-14'):
            document = self.document(0, self.backups, TZ=zone)
            self.assertEqual(4, len(document['vms'][0]['backups']))
            self.table(0, self.backups, TZ=zone)
