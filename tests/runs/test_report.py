"""The report of a run: what is in it, when it is written, and what a bad place for it can do."""

import contextlib
import json
import os
import re
import stat
import unittest
import unittest.mock

import VmBackup
from tests import DATA
from tests.tools.support import HOST, SMALL, PoolCase

try:
    import jsonschema
except ImportError:
    jsonschema = None

TIME = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d\Z')


def schema():
    with open(os.path.join(DATA, 'report-schema.json'), encoding='utf-8') as stream:
        return json.load(stream)


class ReportCase(PoolCase):
    """A test whose runs write a report, and a pool of two small VMs."""

    pool_description = SMALL

    def setUp(self):
        super().setUp()
        self.path = self.at('made', 'for it', 'report.json')

    def reporting(self, *lines, **keys):
        """The path of a config with a report; of db, unless lines say otherwise."""
        return self.config(*(lines or ('vm-export=db',)),
                           **dict({'report_file': self.path}, **keys))

    def run_reporting(self, *lines, **keys):
        return self.vmbackup('password', self.reporting(*lines, **keys))

    def report(self, done):
        """The report of a run that has just ended. It fits the schema, where that can be asked,
        and what can be known from the run's end."""
        with open(self.path, encoding='ascii') as stream:
            found = json.load(stream)
        document = schema()
        if jsonschema:
            jsonschema.Draft7Validator(document).validate(found)
        for keys, each in [(document, found)] + [
                (document['definitions']['vm'], vm) for vm in found['vms']]:
            self.assertEqual(sorted(keys['required']), sorted(each))
        self.assertEqual(0o600, stat.S_IMODE(os.stat(self.path).st_mode))
        self.assertEqual(['report.json'], os.listdir(os.path.dirname(self.path)))
        self.assertEqual(done.status, found['exit_status'], done.output)
        self.assertEqual((1, VmBackup.VERSION, HOST, self.backups), (
            found['schema'], found['version'], found['host'], found['backup_dir']))
        self.assertEqual(os.path.join(self.directory, 'run.cfg'), found['config'])
        self.assertRegex(found['started'], TIME)
        self.assertRegex(found['finished'], TIME)
        counts = found['counts']
        self.assertEqual('vmbackup.py,end,%s,S:%d W:%d E:%d' % (
            found['status'], counts['successes'], counts['warnings'], counts['errors']),
                         self.status()[-1])
        ends = [line.split(',')[2] for line in self.status() if ',end,' in line][:-1]
        self.assertEqual(ends[len(ends) - len(found['vms']):], [
            vm['status'] + ' ' + VmBackup.printable(vm['name']) for vm in found['vms']])
        return found


class Reports(ReportCase):
    def test_a_good_run(self):
        found = self.report(self.run_reporting('vdi-export=web', 'vm-export=db'))
        pool, = self.sim.pool.tables['pool'].values()
        self.assertEqual({'name': pool['name_label'], 'uuid': pool['uuid']}, found['pool'])
        self.assertTrue(found['xapi'])
        self.assertEqual(('SUCCESS', 0, None, [], []), (
            found['status'], found['exit_status'], found['signal'], found['warnings'],
            found['errors']))
        self.assertEqual({'successes': 2, 'warnings': 0, 'errors': 0, 'skipped': 0},
                         found['counts'])
        web, db = found['vms']
        place, = self.dated('db')
        manifest = self.manifest('db')
        self.assertEqual(
            ('db', self.uuid_of('db'), 'vm-export', 'SUCCESS', place, manifest['files'],
             os.path.getsize(os.path.join(place, 'db.xva')), [], None),
            tuple(db[key] for key in ('name', 'uuid', 'method', 'status', 'path', 'files', 'size',
                                      'warnings', 'error')))
        self.assertRegex(db['started'], TIME)
        self.assertEqual(web['size'], web['files']['web.raw'])

    def test_vms_that_fail_or_are_missing(self):
        self.fault('vm-export', 'refuse', error=['INTERNAL_ERROR', 'x'], nth=2)
        found = self.report(self.run_reporting('vm-export=db', 'vm-export=web', 'vm-export=gone'))
        self.assertEqual({'successes': 1, 'warnings': 0, 'errors': 2, 'skipped': 0},
                         found['counts'])
        vms = {vm['name']: vm for vm in found['vms']}
        self.assertEqual('SUCCESS', vms['web']['status'])
        self.assertEqual(('VM-EXPORT-FAIL', self.dated('db')[0], 0, {}), tuple(
            vms['db'][key] for key in ('status', 'path', 'size', 'files')))
        self.assertIn('xe vm-export failed: ', vms['db']['error'])
        self.assertEqual((None, 'VM-NOT-FOUND', None, None, 'not in the pool'), tuple(
            vms['gone'][key] for key in ('uuid', 'status', 'started', 'path', 'error')))
        self.assertEqual([], found['errors'])

    def test_warnings_are_told_of_vm_and_run(self):
        self.fault('vm-export', 'refuse', error=['INTERNAL_ERROR', 'x'])
        found = self.report(self.run_reporting('vm-export=db', 'vm-export=nothing.*'))
        self.assertEqual(('WARNING', 1), (found['status'], found['exit_status']))
        self.assertEqual(['vm not found: vm-export=nothing.* (%s line 5)' % self.at('run.cfg')],
                         found['warnings'])
        warning, = found['vms'][0]['warnings']
        self.assertIn('vm-metadata.xml is missing', warning)
        self.assertEqual('WARNING', found['vms'][0]['status'])
        self.assertTrue(found['vms'][0]['files'])

    def test_a_warning_that_the_last_run_had_says_in_the_log_since_when(self):
        record = os.path.join(self.backups, VmBackup.run_name(self.at('run.cfg')) + '.json')
        rules = ('vm-export=db', 'vm-export=nothing.*')
        for login, refused, words in (
                ('password', True, ''), ('password', True, ' (since 2026-02-11)'),
                ('wrong', False, None), ('password', True, '')):
            self.sim.pool.faults.clear()
            if refused:
                self.fault('vm-export', 'refuse', error=['INTERNAL_ERROR', 'x'])
            done = self.vmbackup(login, self.reporting(*rules[:1 + refused]))
            found = self.report(done)
            if words is not None:
                warning, = found['vms'][0]['warnings']
                self.assertEqual(['vm not found: vm-export=nothing.* (%s line 5)' %
                                  self.at('run.cfg')], found['warnings'])
                for begin in '***WARNING - ', 'WARNING ':      # the latter in the summary
                    self.assertIn('%sdb: %s%s' % (begin, warning, words), done.lines)
                    self.assertIn(begin + found['warnings'][0] + words, done.lines)
                self.put_file(record, re.sub('"20[0-9-]{8}"', '"2026-02-11"', self.read(record)))

    def test_a_run_that_is_skipped_and_a_vm_that_is(self):
        found = self.report(self.run_reporting(hook=self.program(
            'hook', '[ $1 != job-init ] || exit 75\n')))
        self.assertEqual(('SKIPPED', 0, [], [], []), tuple(
            found[key] for key in ('status', 'exit_status', 'vms', 'warnings', 'errors')))
        found = self.report(self.run_reporting('vm-export=.*', parallel=2, hook=self.program(
            'hook', '[ "$1 $VMBACKUP_VM" != "backup-start web" ] || exit 75\n')))
        self.assertEqual({'successes': 1, 'warnings': 0, 'errors': 0, 'skipped': 1},
                         found['counts'])
        db, web = sorted(found['vms'], key=lambda vm: vm['name'])
        self.assertEqual(self.dated('db'), [db['path']])
        self.assertEqual(('SKIPPED', None, 0, None), tuple(
            web[key] for key in ('status', 'path', 'size', 'error')))

    def test_a_failed_login_and_a_wrong_config_are_told(self):
        for password, line, words in (
                ('wrong', 'max_backups=1', 'SESSION_AUTHENTICATION_FAILED'),
                ('password', 'max_backups=x', 'ERROR: config max_backups out of range'),
                ('password', 'vm-export=d[b', 'ERROR regex errors found'),
                ('password', 'hook=/nosuch', 'ERROR: config hook is not a program -> /nosuch'),
                ('password', 'unexpected=x', 'in config_load')):
            with self.subTest(line):
                done = self.vmbackup(password, self.reporting('vm-export=db', line))
                self.assertEqual(2, done.status)
                found = self.report(done)
                self.assertIn(words, '\n'.join(found['errors']))
                self.assertEqual(('ERROR', [], {'name': '', 'uuid': ''}), (
                    found['status'], found['vms'], found['pool']))

    def test_a_pool_database_that_is_not_dumped_is_an_error_of_the_run(self):
        self.fault('pool-dump-database', 'refuse', error=['INTERNAL_ERROR', 'x'])
        found = self.report(self.run_reporting('vm-export=db', 'pool_db_backup=1'))
        self.assertEqual((1, 1), (found['counts']['successes'], found['counts']['errors']))
        self.assertIn('pool database not backed up', found['errors'][0])

    def test_a_run_that_a_signal_ends(self):
        self.fault('vm-export', 'stall', nth=2)
        child = self.start_until('vm-export', 2, 'password',
                                 self.reporting('vm-export=db', 'vm-export=web'))
        found = self.report(self.signalled(child))
        self.assertEqual(('ERROR', 143, 15, ['ended by signal 15 (SIGTERM)']), (
            found['status'], found['exit_status'], found['signal'], found['errors']))
        vm, = found['vms']
        self.assertEqual(('db', 'INTERRUPTED', 'ended by a signal'),
                         (vm['name'], vm['status'], vm['error']))

    def test_a_hook_that_fails_is_told(self):
        found = self.report(self.run_reporting(hook=self.program('hook', '[ $1 != job-start ]\n')))
        self.assertEqual(['hook job-start failed: exit status 1'], found['errors'])
        found = self.report(self.run_reporting(hook=self.program('hook', '[ $1 != job-end ]\n')))
        self.assertEqual(['hook job-end failed: exit status 1'], found['warnings'])
        self.assertEqual('WARNING', found['status'])

    def test_names_of_any_kind_are_in_it_whole_and_may_be_its_own_under_any_locale(self):
        names = ['a\nb"\\', 'Ünï 名前', '</script>x/../y']
        self.pool_description = {'vms': [{'name': name, 'disks': ['64 KiB']} for name in names]}
        for environ in ({'LC_ALL': 'C'}, {}):
            with self.subTest(environ):
                self.setUp()
                self.path = self.at('Bericht ü', 'report.json')
                vms = self.report(self.command(0, 'password', self.reporting('vm-export=.*'),
                                               **environ))['vms']
                self.assertEqual(sorted(names), sorted(vm['name'] for vm in vms))
                for vm in vms:
                    for name, size in vm['files'].items():
                        self.assertEqual(size, os.path.getsize(os.path.join(
                            vm['path'], name).encode('utf-8')))

    def test_a_status_log_that_cannot_be_written_is_a_warning_in_it(self):
        done = self.run_reporting(status_log=self.backups)
        with open(self.path, encoding='ascii') as stream:
            found = json.load(stream)
        self.assertEqual(1, done.status)
        self.assertEqual(('WARNING', 1, [
            'cannot write status_log %s: is not a regular file' % self.backups]), (
            found['status'], found['exit_status'], found['warnings']))


class Documented(unittest.TestCase):
    def test_the_schema_requires_each_key_and_says_what_it_is(self):
        for part in (schema(), schema()['definitions']['vm']):
            self.assertEqual(set(part['required']), set(part['properties']))
            for key, value in part['properties'].items():
                self.assertTrue(value.get('description'), key)

    @unittest.skipUnless(jsonschema, 'needs jsonschema')
    def test_the_schema_is_one_and_refuses_what_is_no_report(self):
        validator = jsonschema.Draft7Validator(schema())
        validator.check_schema(schema())
        for wrong in ({}, [], {'schema': 1}):
            self.assertFalse(validator.is_valid(wrong))


class Places(ReportCase):
    def test_a_bad_place_is_one_warning_and_spoils_no_backup(self):
        file, fifo, link = self.put_file('file'), self.at('fifo'), self.at('link')
        os.mkfifo(fifo)
        os.symlink(file, link)
        for path in (self.backups, file + '/report.json', fifo, link, '/dev/null',
                     '/proc/report.json'):
            with self.subTest(path):
                done = self.assert_ends(1, self.run_reporting(report_file=path))
                self.assertEqual('vmbackup.py,end,WARNING,S:1 W:0 E:0', self.status()[-1])
                self.assertEqual(1, len([line for line in done.lines if line.startswith(
                    '***WARNING - cannot write report_file ' + path)]), done.output)
                self.assertEqual('VmBackup ended - **WARNING(s)** - S:1 W:0 E:0', done.lines[-1])
        self.assertTrue(stat.S_ISCHR(os.stat('/dev/null').st_mode))
        self.assertTrue(os.path.islink(link))

    def test_a_place_that_hangs_is_given_up(self):
        self.script = self.changed_script(SHARE_TIMEOUT=0.3)
        self.prelude = ('import time, VmBackup\n'
                        'VmBackup.put_report = lambda path, document: time.sleep(300)\n')
        done = self.assert_ends(1, self.run_reporting())
        self.assertIn('the file system did not respond within 0.3 seconds', done.output)

    def test_what_cannot_be_written_leaves_the_last_one_as_it_was(self):
        self.run_reporting()
        before = self.read_bytes(self.path)
        with unittest.mock.patch('os.fsync', side_effect=OSError(28, 'No space left on device')):
            with self.assertRaises(OSError):
                VmBackup.put_report(self.path, {'schema': 1})
        self.assertEqual(before, self.read_bytes(self.path))
        self.assertEqual(['report.json'], os.listdir(os.path.dirname(self.path)))

    def test_what_somebody_put_in_the_place_of_its_temporary_file_is_not_written_to(self):
        precious = self.put_file('precious', 'as it was')
        for make in (os.symlink, os.link, os.mkfifo, lambda _, path: self.put_file(path, '')):
            path = self.at('report.json.1' + VmBackup.NEW)
            make(*[precious, path][make is os.mkfifo:])
            with unittest.mock.patch('VmBackup.random_digits', return_value='1'):
                with self.assertRaises(OSError):
                    VmBackup.put_report(self.at('report.json'), {'schema': 1})
            self.assertEqual('as it was', self.read(precious))
            self.assertFalse(os.path.exists(self.at('report.json')))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.assertEqual(2, len({VmBackup.random_digits() for _ in range(2)}))

    def test_a_preview_and_a_run_without_a_config_file_write_none(self):
        self.assertEqual(0, self.vmbackup('password', self.reporting(), 'preview').status)
        self.script = self.with_defaults(
            report_file=self.path, backup_dir=self.backups, require_mount='no')
        self.assertEqual(0, self.vmbackup('password', 'db').status)
        self.assertFalse(os.path.exists(self.path))

    def test_it_replaces_no_other_file_of_the_config(self):
        for key in ('status_log', 'hook', 'mail_smtp_password_file'):
            with self.subTest(key):
                path = self.program('precious', ':')
                done = self.back_up('vm-export=db', report_file=path, **{key: path})
                self.assertEqual(2, done.status, done.output)
                self.assertIn('ERROR: config report_file would replace another file of this run '
                              '-> %s (' % path, done.output)
                self.assertTrue(self.read(path).startswith('#!/bin/sh\n'))

    def test_it_does_not_replace_the_file_of_the_password(self):
        path = os.path.join(self.directory, 'password file')
        self.assertEqual(0, self.vmbackup('password', 'create-password-file=' + path).status)
        for word in (path, os.path.basename(path)):
            done = self.vmbackup(word, self.config('vm-export=db', report_file=path))
            self.assertEqual(2, done.status, done.output)
            self.assertIn('ERROR: config report_file would replace another file of this run -> '
                          '%s (' % path, done.output)
            self.assertEqual(b'cGFzc3dvcmQ=', self.read_bytes(path))
