"""vm= in every command that has it: of what a config selects, only some, each with its settings."""

import glob
import json
import os

import VmBackup
from tests.commands.saved import SavedCase
from tests.runs.test_store import DAY
from tests.tools.support import HOST

DISK = {'disks': ['64 KiB'], 'ran': True}
LINES = ('vm-export=.*', 'vm-export=web:2', 'exclude=secret', 'vm-export=gone', 'vdi-export=db',
         'honour_nobak=yes')
COMMANDS = {                           # how each is called, and what tells of which VMs it was
    'backup': ('preview',), 'preview': ('json',), 'list': ('json',), 'verify': ('json',),
    'prune': ('preview',), 'status': ('json',), 'restore': ('preview',)}


class Only(SavedCase):
    pool_description = {'vms': [
        dict(DISK, name='web', tags=['nightly']), dict(DISK, name='db', tags=['nightly']),
        dict(DISK, name='webshop'), dict(DISK, name='twin'), dict(DISK, name='twin'),
        dict(DISK, name='secret', tags=['nightly']), dict(DISK, name='left', tags=['xo:no-bak'])]}

    def prepare(self):
        self.ends(2, *LINES)

    def setUp(self):
        super().setUp()
        self.config_file = self.config(*LINES)

    def environ(self, **more):
        return super().environ(**dict({'VMBACKUP_XAPI_URL': self.sim.unix_url}, **more))

    def run_only(self, command, *only, status=None):
        """Run a command so; return its exit status and the directories of the VMs that it told
        of."""
        words = [self.config_file] if command != 'restore' else ['from=' + self.config_file]
        words = [command, *words, *['vm=' + word for word in only], *COMMANDS[command]]
        done = self.vmbackup(*words)
        self.assertNotIn('a bug in', done.output)
        found = []
        if 'json' in words:
            text = done.output[done.output.index('{'):]
            document, _ = json.JSONDecoder().raw_decode(text)
            for each in document.get('vms', document.get('results', [])):
                found.append(each.get('path') or each['name'])
            if command == 'status':
                found = [int(document.get('figures', {}).get('vms', 0))]
        for line in done.lines:
            if line.startswith('restore of '):
                found.append(os.path.dirname(line.partition(': ')[2]))
            elif command == 'prune' and line.startswith('/'):
                found.append(line)
            elif command == 'backup' and line.startswith(('  vm-export: ', '  vdi-export: ')):
                found += filter(None, line.partition(': ')[2].split(', '))
        if status is not None:
            self.assertEqual(status, done.status, done.output)
        return done, sorted(each if isinstance(each, int) else os.path.basename(
            each.partition(self.backups + '/')[2].partition('/backup-')[0] or each.partition(
                ':')[0]) for each in found)

    def test_every_command_that_has_it_takes_every_selector_for_the_same_vms(self):
        self.assertEqual(set(COMMANDS), {name for name, command in VmBackup.COMMANDS.items()
                                         if 'vm' in command.options})
        twins = sorted(uuid for uuid in self.xe('vm-list', 'name-label=twin', 'params=uuid',
                                                '--minimal').strip().split(','))
        second, = [name for name in os.listdir(self.backups) if name.startswith('twin~')]
        uuid, = [uuid for uuid in twins if uuid.startswith(second[5:])]
        for only, wanted in (
                (['web'], ['web']), (['we.$'], ['web']),
                (['vdi-export=web'], ['web']), (['vm-export=db'], ['db']),
                (['uuid:' + self.uuid_of('web').upper()], ['web']),
                (['tag:nightly'], ['db', 'web']), (['vm-export=tag:nightly'], ['db', 'web']),
                (['db', 'web.*'], ['db', 'web', 'webshop']), (['twin'], ['twin', second]),
                ([second], [second]), (['uuid:' + uuid], [second])):
            for command in COMMANDS:
                with self.subTest(command, only=only):
                    done, found = self.run_only(command, *only)
                    names = wanted
                    if command in ('backup', 'preview'):
                        pool = [name.partition('~')[0] for name in found]
                        names = [name.partition('~')[0] for name in wanted]
                        found = pool
                    self.assertEqual([len(wanted)] if command == 'status' else names, found,
                                     done.output)
                    doubt = only == ['twin'] and command in ('backup', 'preview')
                    self.assertEqual(int(doubt), done.status, done.output)

    def test_one_that_leaves_nothing_is_an_error_before_anything_is_begun(self):
        before, calls = self.tree(), len(self.sim.calls('xe'))
        for only in (['nobody'], ['web', 'nobody'], ['secret'], ['left'], ['gone'], ['tag:x'],
                     ['web', 'w['], ['*'], ['web:7'], ['tag:nightly:3']):
            for command in COMMANDS:
                with self.subTest(command, only=only):
                    done, _ = self.run_only(command, *only, status=2)
                    self.assertIn('vm=' + only[-1], done.output)
        self.command(2, 'backup', self.config_file, 'vm=web', 'vm=nobody')
        self.command(2, 'verify', self.config_file, 'vm=')
        self.assertEqual((before, calls), (self.tree(), len(self.sim.calls('xe'))))

    def test_a_mistake_in_the_config_is_one_whatever_is_wanted(self):
        for line in ('exclude=[', 'vm-export=web:x', 'vm-export=*'):
            config = self.config(*LINES, line)
            for words in (['preview'], ['local', config, 'vm=db']):
                with self.subTest(line, words=words):
                    self.command(2, *(words if words[1:] else words + [config, 'vm=db']))
            self.assertIn(line.partition('=')[2], self.command(
                3, 'status', config, 'vm=db').output)

    def test_what_is_missing_of_the_chosen_ones_is_told_and_of_no_others(self):
        self.config_file = self.config('vm-export=web', 'vm-export=webcam', 'vm-export=other')
        for command in COMMANDS:
            with self.subTest(command):
                done, _ = self.run_only(command, 'web.*', status=0 if command == 'prune' else 2)
                self.assertEqual(command != 'prune', 'webcam' in done.output)
                self.assertNotIn('other', done.output)

    def test_a_run_leaves_what_is_of_all_vms_or_of_others_as_it_is(self):
        report = self.at('report.json')
        dumps = os.path.join(self.backups, VmBackup.DUMPS + HOST)
        self.config_file = self.config(*LINES, report_file=report, pool_db_backup=1)
        self.command(2, 'local', self.config_file)
        night, told = self.tree(), self.read(report)
        for word in 'backup', 'local':
            self.command(0, word, self.config_file, 'vm=web', 'max_backups=1')
            self.assertEqual(night, self.tree(), 'but for dates: a third one went')
            self.assertEqual((2, told), (len(self.dated('web')), self.read(report)))
            self.assertRegex(self.command(2, 'status', self.config_file).output,
                             'last run, of [-0-9: ]+: ERROR S:5 W:0 E:1')
        self.command(0, 'backup', self.config_file, 'vm=web', 'pool_db_backup=1',
                     'report_file=' + self.at('mine.json'))
        self.assertEqual(['web'], [vm['name'] for vm in json.loads(self.read('mine.json'))['vms']])
        self.assertEqual(2, len(glob.glob(dumps + '/*.dump')))

    def test_a_restore_of_several_goes_on_when_one_fails(self):
        self.leaves_things_behind = True
        with open(self.newest('web', 'web.xva'), 'r+b') as stream:
            stream.truncate(20000)
        done = self.command(2, 'restore', 'from=' + self.config_file, 'vm=web.*', 'vm=tag:nightly')
        self.assertRegex(done.output, 'ERROR %s/web: ' % self.backups)
        self.assertEqual({'db', 'webshop'}, {line.split()[3].partition('-restored')[0]
                                             for line in done.lines
                                             if line.startswith('restored: ')}, done.output)
        for words, text in ((['web', 'vm=db'], 'usage: VmBackup.py restore <vm|uuid'),
                            ([], 'usage: VmBackup.py restore <vm|uuid'),
                            (['vm=web.*', 'name=x'], '2 VMs cannot all get one name')):
            self.assertIn('ERROR ' + text, self.command(
                2, 'restore', 'from=' + self.config_file, *words).output)

    def test_prune_touches_no_other_and_no_earlier_backup_keeps_one_from_that(self):
        for name in ('web', 'db', 'webshop'):
            for day in range(1, 5):
                self.old_backup(name, DAY % day, 'success', name + '.xva')
        before = len(self.tree())
        self.command(0, 'prune', self.config_file, 'vm=web', 'vm=uuid:' + self.uuid_of('db'))
        self.assertEqual([2, 5], [len(self.dated(name)) for name in ('web', 'webshop')])
        self.assertEqual(4, len(self.dated('db')))
        self.assertLess(len(self.tree()), before)
