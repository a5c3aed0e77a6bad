"""JSON of list, status, verify and preview: one shape, which is documented, whatever happens."""

import json
import os
import signal
import subprocess
import unittest

import VmBackup
from tests import DATA
from tests.commands.archives import WITH_XXH64
from tests.commands.saved import SavedCase
from tests.tools.support import HOST, LIMIT, SMALL, Done, hanging

try:
    import jsonschema
except ImportError:
    jsonschema = None

DOCUMENTS = ('list', 'status', 'verify', 'preview')     # commands that can print one
with open(os.path.join(DATA, 'commands-schema.json'), encoding='utf-8') as file:
    SCHEMA = json.load(file)
COMMON = SCHEMA['required']
OF_COMMANDS = {name: [key for key in SCHEMA['definitions'][name]['properties'] if key != 'command']
               for name in DOCUMENTS}
LIST_OF_5_0 = 'schema when backup_dir vms pool_dumps foreign messages good size'.split()
BUG = 'import VmBackup\nVmBackup.%s = None\n'      # a prelude: what this would do is a bug


@WITH_XXH64
class Documents(SavedCase):
    pool_description = SMALL
    both = ('vm-export=web', 'vdi-export=db')

    def prepare(self):
        self.ends(0, *self.both)

    def told(self, status, *words, **options):
        """The document, which is all that standard output gets, and fits the schema; the log."""
        child = self.start_with(words, **dict(dict(
            stdout=subprocess.PIPE, stderr=subprocess.PIPE), **options))
        output, errors = child.communicate(timeout=LIMIT)
        log = Done(child.returncode, errors.decode('utf-8'))
        self.assertEqual(status, log.status, log.output)
        document = json.loads(output.decode('ascii'), parse_constant=self.fail)
        if jsonschema:
            jsonschema.Draft7Validator(SCHEMA).validate(document)
        self.assertEqual(COMMON, list(document)[:len(COMMON)])
        self.assertLessEqual(set(document) - set(COMMON), set(OF_COMMANDS[document['command']]))
        self.assertEqual((1, VmBackup.VERSION, HOST, status), tuple(
            document[key] for key in ('schema', 'version', 'host', 'exit_status')))
        self.assertEqual(log.lines[-1:] == ['ERROR ' + document['error']],
                         bool(document['error']), log.output)
        return document, log

    def damage(self, vm='web'):
        path = self.newest(vm, vm + ('.xva' if vm == 'web' else '.raw'))
        os.truncate(path, os.path.getsize(path) // 2)

    def test_good_and_bad_ends_of_all_four(self):
        good = self.config(*self.both)
        missing = self.put_file('missing.cfg', self.read(good) + 'vm-export=gone\n')
        pattern = self.put_file('pattern.cfg', self.read(good) + 'vm-export=nothing.*\n')
        broken = self.put_file('broken.cfg', self.read(good) + 'vm-export=*\n')
        strange = self.put_file('strange.cfg', self.read(good) + 'keeplast=3\n')
        nowhere = self.put_file('nowhere.cfg', 'vm-export=web\nbackup_dir=/nowhere\n')
        for status, words, error, kind, text in (
                (0, 'list %s json' % good, '', '', ''),
                (0, 'list %s --json=yes' % self.backups, '', '', ''),
                (0, 'list %s --format json' % self.backups, '', '', ''),
                (2, 'list %s format=json' % missing, '', 'errors', 'no backup found: vm-export=g'),
                (1, 'list %s --json' % pattern, '', 'warnings', 'no backup found: vm-export=noth'),
                (2, 'list %s json' % missing, '', 'errors', 'no backup found: vm-export=g'),
                (2, 'list %s json' % strange, 'unexpected config key', 'errors', 'unexpected'),
                (2, 'list --json', 'usage: VmBackup.py list', 'errors', 'usage: '),
                (2, 'list %s --jason --json' % good, 'unknown option: --jason', 'errors', ''),
                (2, 'list %s json' % nowhere, 'config backup_dir does not exist', 'errors', ''),
                (0, 'status %s --json' % good, '', '', ''),
                (1, 'status %s json=yes' % pattern, '', '', ''),
                (2, 'status --JSON %s' % missing, '', '', ''),
                (3, 'status %s json' % nowhere, 'config backup_dir does not exist', 'errors', ''),
                (3, 'status %s json max_age=1' % good, 'max_age invalid', 'errors', ''),
                (3, 'status json', 'usage: VmBackup.py status', 'errors', ''),
                (0, 'verify %s json' % good, '', '', ''),
                (1, 'verify %s json' % pattern, '', 'warnings', 'no backup found: vm-export=noth'),
                (2, 'verify %s json quiet' % missing, '', 'errors', 'no backup found: vm-export=g'),
                (2, 'verify /nowhere json', 'no such file or directory', 'errors', ''),
                (0, 'preview %s json password-file=' % good, '', '', ''),
                (0, 'backup %s --preview --json password-file=' % good, '', '', ''),
                (0, 'password %s preview --json' % good, '', '', ''),
                (1, 'password %s json preview=yes' % pattern, '', 'warnings', 'vm not found: '),
                (2, 'password %s preview json' % missing, '', 'errors', 'vm not found: vm-exp'),
                (2, 'password %s preview json' % broken, '', 'errors', 'invalid regex: vm-e'),
                (2, 'password %s preview json' % strange, 'in config_load', 'errors', 'unexp'),
                (2, 'password %s preview json' % nowhere, '', 'errors', 'config backup_dir d'),
                (2, 'pass-word %s json preview' % good, 'XenAPI login at ', 'errors', ''),
                (2, 'preview /nowhere json jsn', 'unknown option: jsn', 'errors', '')):
            words = words.replace('password-file=', 'password-file=' + self.put_file(
                'pass', 'cGFzc3dvcmQ=')).split()
            with self.subTest(words):
                document, log = self.told(status, *words)
                self.assertEqual(error, document['error'][:len(error) or None])
                self.assertNotIn('pass-word', json.dumps(document))
                self.assertEqual(document['command'], words[0] if words[0] in DOCUMENTS
                                 else 'preview')
                if kind:
                    self.assertTrue([line for line in document[kind] if text in line], document)
                if not error:
                    self.assertLessEqual(set(OF_COMMANDS[document['command']]), set(document))
                self.assertEqual([], [line for line in document['errors'] if '(see above)' in line])

    def test_json_is_refused_in_words_where_there_is_none(self):
        for words, told in (
                (('backup', self.config(*self.both), 'json'), 'ERROR only a preview prints JSON ('),
                (('prune', self.config(*self.both), '--json'), 'ERROR unknown option: --json (')):
            line, = self.command(2, *words).lines
            self.assertTrue(line.startswith(told), line)

    def test_a_vm_or_a_value_that_is_called_so_asks_for_none(self):
        for words in (('list', self.backups, '--vm', 'json'), ('preview', '--', 'json')):
            self.assertIn('ERROR', self.command(2, *words).lines[-1][:40] + 'ERROR')
            self.assertNotIn('"schema"', self.command(2, *words).output)

    def test_help_is_text(self):
        for words in (['list', '--json', '--help'], ['help', 'list']):
            self.assertIn('Usage: VmBackup.py list', self.command(0, *words).output)

    def test_list_has_all_keys_that_it_had(self):
        document, _ = self.told(0, 'list', self.backups, 'json')
        self.assertLessEqual(set(LIST_OF_5_0), set(document))
        self.assertEqual([2, self.backups, ['db', 'web']], [
            document['good'], document['backup_dir'], [vm['name'] for vm in document['vms']]])
        self.assertTrue(VmBackup.seconds_of(document['when']))

    def test_status_has_each_vm_and_figures_in_units(self):
        document, _ = self.told(2, 'status', self.config(*self.both, 'vm-export=gone'), 'json')
        self.assertEqual('CRITICAL', document['state'])
        self.assertEqual(['CRITICAL', 'OK'], [each['state'] for each in document['findings']])
        self.assertEqual('no good backup within 26h: gone (none)', document['findings'][0]['text'])
        self.assertEqual({
            'gone': ('CRITICAL', '', None, ''),
            **{vm: ('OK', self.dated(vm)[0], self.manifest(vm)['started'], self.uuid_of(vm))
               for vm in ('db', 'web')}}, {
            vm['name']: (vm['state'], vm['path'], vm['when'], vm['uuid'])
            for vm in document['vms']})
        figures = document['figures']
        self.assertEqual([3, 2, 93600, 0], [figures[key] for key in (
            'vms', 'good', 'max_age_seconds', 'leftovers')])
        self.assertEqual(sum(size for vm in ('db', 'web')
                             for name, size in self.manifest(vm)['files'].items()
                             if name.endswith(VmBackup.IMAGES)), figures['size_bytes'])

    def test_verify_has_each_result_and_what_was_proved(self):
        self.damage('web')
        document, log = self.told(2, 'verify', self.backups, 'json')
        db, web = document['results']
        self.assertEqual((self.dated('db')[0], 'db', 'SUCCESS', 'all checksums match', 'checksums'),
                         tuple(db.values()))
        self.assertEqual((self.dated('web')[0], 'web', 'ERROR', None), tuple(
            web[key] for key in ('path', 'vm', 'result', 'proved')))
        self.assertEqual(['%s: %s' % (web['path'], web['text'])], document['errors'])
        self.assertEqual({'successes': 1, 'warnings': 0, 'errors': 1, 'skipped': 0},
                         document['counts'])
        self.assertIn('good %s: all checksums match' % db['path'], log.lines)
        for path, vm in (self.dated('db')[0], 'db'), (self.newest('db', 'vm-metadata.xml'), ''):
            result, = self.told(0, 'verify', path, 'json')[0]['results']
            self.assertEqual((path, vm), (result['path'], result['vm']))

    def test_preview_has_what_would_be_done(self):
        self.pool_description = {'vms': [
            {'name': 'web\n', 'disks': ['64 KiB', {'size': '64 KiB', 'name': '[NOBAK] x'}]},
            {'name': 'db', 'disks': ['64 KiB', '64 KiB']}, {'name': 'test'}, {'name': 'other'}]}
        self.use_pool()
        config = self.config('vm-export=w.*:2', 'vdi-export=db', 'exclude=test',
                             'exclude-disk=w[^/]*/xvdb', keep_daily=3)
        document, _ = self.told(0, 'password', config, 'preview', 'json')
        db, web = document['vms']
        self.assertEqual(['db', 'vdi-export', 4, 'web\n', 'vm-export', 2], [
            vm[key] for vm in (db, web) for key in ('name', 'method', 'keep')])
        for vm in db, web:
            self.assertEqual([['xvda'], ['xvdb']], [[disk['device'] for disk in vm[key]]
                                                    for key in ('disks', 'left_out')])
        self.assertEqual('vdi_disks=boot', db['left_out'][0]['why'])
        self.assertEqual([config, self.backups, '3', ['test'], ['other'], []], [
            document['config'], document['backup_dir'], document['settings']['keep_daily'],
            document['excluded'], document['not_covered'], document['failures']])
        self.assertEqual([key.name for key in VmBackup.KEYS], list(document['settings']))

    def test_a_bug_is_told(self):
        for status, words, name in (
                (2, ('list', self.backups), 'table_of'), (2, ('list', self.backups), 'document_of'),
                (3, ('status', self.config(*self.both)), 'select_histories'),
                (2, ('verify', self.backups), 'select_histories'),
                (2, ('password', self.config(*self.both), 'preview'), 'program_problems')):
            if name == 'table_of':                 # which prints no JSON
                self.assertIn('"schema"', self.vmbackup(*words, 'json').output)
                continue
            with self.subTest(name):
                self.prelude = BUG % name
                document, log = self.told(status, *words, 'json')
                self.assertIn('a bug in VmBackup.py, please report it: ', document['error'])
                self.assertIn('Traceback (most recent call last):', log.lines)

    def test_a_signal_in_mid_verify_leaves_a_whole_document(self):
        self.prelude = hanging(self.newest('web', 'web.xva'))
        for signum in (signal.SIGTERM, signal.SIGINT):
            child = self.start_with(['verify', self.backups, 'json'], stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE)
            while b'good ' not in child.stderr.readline():
                pass                           # until db is verified
            child.send_signal(signum)
            output, errors = child.communicate(timeout=LIMIT)
            self.assertEqual(128 + signum, child.returncode, errors)
            document = json.loads(output.decode('ascii'))
            self.assertEqual((128 + signum, 'db'), (
                document['exit_status'], document['results'][0]['vm']))
            self.assertRegex(document['error'], r'^ended by signal %d \(SIG' % signum)

    def test_a_reader_that_reads_late_gets_all_of_it_or_the_signal_ends_it(self):
        for day in range(1, 29):
            for hour in range(9):
                self.old_backup('web', 'backup-2019-01-%02d-(%02d:00:00)' % (day, hour), 'success',
                                'web.xva')
        self.script = self.changed_script(CUT_GRACE=0.5)
        for reads in True, False:
            child = self.start_with(['list', self.backups, 'json'], stdout=subprocess.PIPE)
            self.wait_for(lambda: self.waits_in_write(child), 'a full pipe')
            child.send_signal(signal.SIGTERM)
            if reads:
                output, _ = child.communicate(timeout=LIMIT)
                self.assertEqual(0, child.returncode)
                self.assertEqual(2, len(json.loads(output.decode('ascii'))['vms']))
            else:
                self.assertEqual(128 + signal.SIGTERM, child.wait(LIMIT))
                child.stdout.close()

    @staticmethod
    def waits_in_write(child):
        with open('/proc/%d/wchan' % child.pid, encoding='ascii') as stream:
            return 'pipe' in stream.read()

    def test_a_full_output_is_an_error_and_a_closed_one_is_none(self):
        config = self.config(*self.both)
        for words in (['list', config], ['status', config], ['verify', config],
                      ['password', config, 'preview']):
            for output in '/dev/full', '':
                with self.subTest((words, output)), open(output or os.devnull, 'wb') as stream:
                    prelude = '' if output else 'import os, sys\nos.close(1)\nsys.stdout = None\n'
                    self.prelude = prelude
                    child = self.start_with([*words, 'json'], stdout=stream,
                                            stderr=subprocess.PIPE)
                    _, errors = child.communicate(timeout=LIMIT)
                    self.assertEqual(2 if output else 0, child.returncode, errors)
                    self.assertEqual(bool(output), b'is not whole: No space left' in errors)
                    self.assertNotIn(b'Traceback', errors)
                    self.assertNotIn(b'"schema"', errors)


class Documented(unittest.TestCase):
    def test_the_schema_says_what_each_key_is(self):
        for keys in [SCHEMA['properties']] + [
                SCHEMA['definitions'][name]['properties'] for name in (*DOCUMENTS, 'backup')]:
            for key, value in keys.items():
                self.assertTrue(value.get('description'), key)

    @unittest.skipUnless(jsonschema, 'no jsonschema')
    def test_the_schema_refuses_what_is_wrong(self):
        jsonschema.Draft7Validator.check_schema(SCHEMA)
        good = dict(schema=1, version='5.0.0', command='verify', host='h', notes=[], warnings=[],
                    when='2026-03-01T00:00:00+00:00', exit_status=0, error='', errors=[],
                    results=[], counts=dict(successes=0, warnings=0, errors=0, skipped=0))
        validator = jsonschema.Draft7Validator(SCHEMA)
        self.assertTrue(validator.is_valid(good))
        for wrong in (dict(schema=2), dict(when='now'), dict(command='prune'), dict(error='x'),
                      dict(exit_status=None), dict(results=[{}]), dict(errors=['']),
                      dict(command='status')):
            self.assertFalse(validator.is_valid(dict(good, **wrong)), wrong)
