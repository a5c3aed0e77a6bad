"""The xe door of the simulated pool, where nothing was recorded (what was is in test_faithful)."""

import os
import subprocess
import sys
import threading
import time
from unittest import mock

from tests.simpool import xe
from tests.simpool.tests.support import NOBODY, Case, end, wait_until
from tests.simpool.tests.test_doors import BROKEN

POOL = {
    'xapi_version': '26.1', 'hosts': ['xen1'], 'networks': ['net0'],
    'srs': [{'name': 'disks', 'type': 'ext', 'size': '100 GiB'}],
    'vms': [{'name': 'web', 'disks': ['4 MiB'], 'tags': ['a,b', 'c'], 'cd': None,
             'other_config': {'role': 'front'}},
            {'name': 'db, "x"\\', 'disks': ['1 MiB'], 'power_state': 'Running'},
            {'name': 'twin'}, {'name': 'twin'}],
}
HINT = "\nFor usage run: 'xe help'\n"


class XeCase(Case):
    description = POOL

    def setUp(self):
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.work)
        self.pool.progress_interval = 0.0
        self.web = self.uuid('web')

    def uuid(self, name):
        return self.ask('vm-list', 'name-label=' + name, '--minimal')

    def snapshot(self):
        made = self.ask('vm-snapshot', 'uuid=' + self.web, 'new-name-label=RESTORE_web')
        self.ask('template-param-set', 'is-a-template=false', 'uuid=' + made)
        return made

    def vdi(self):
        return self.ask('vbd-list', 'vm-name-label=web', 'type=Disk', 'params=vdi-uuid',
                        '--minimal')

    def write(self, name, content):
        with open(self.path(name), 'w') as file:
            file.write(content)


class Printing(XeCase):
    def test_filters_look_into_maps_and_know_mac_addresses(self):
        mac = self.ask('vif-list', 'vm-name-label=web', 'params=MAC', '--minimal')
        self.assertEqual(mac, self.ask('vif-list', 'MAC=' + mac.upper(), 'params=MAC', '--minimal'))
        self.assertEqual(self.web, self.ask('vm-list', 'other-config:role=front', '--minimal'))
        self.assertEqual('', self.ask('vm-list', 'other-config:role=back', '--minimal'))
        self.assertEqual((0, '', ''), self.xe('vm-list', 'name-label=nobody', 'colour=red'))
        for key, words in (('tags:contains=c', "Error: Field 'tags' is not a set or map\n"),
                           ('uuid:x=c', "Error: Field 'uuid' is not a set or map\n"),
                           ('colour=red', "Error: Unknown field 'colour'\n")):
            self.assertIn(words, self.refused('vm-list', key))

    def test_each_list_has_its_columns_and_can_show_all_parameters(self):
        columns = {'vm': 3, 'template': 3, 'snapshot': 4, 'vdi': 7, 'sr': 6, 'host': 3, 'pool': 5,
                   'network': 4, 'vbd': 6, 'vif': 4, 'pbd': 5}
        self.ask('vm-snapshot', 'uuid=' + self.web, 'new-name-label=s')
        for kind, count in columns.items():
            first = (self.ask(kind + '-list') + '\n').split('\n\n\n')[0]
            self.assertEqual(count, len(first.split('\n')), kind)
            self.assertIn('uuid', self.ask(kind + '-list', 'params=all'))
        for kind in ('vm', 'vbd', 'vif', 'host', 'pool'):
            self.assertIn('<expensive field>', self.ask(kind + '-list', 'params=all'))


class Grammar(XeCase):
    def test_a_line_that_makes_no_sense_is_refused(self):
        for words, *line in (
                ('Unknown command: --minimal' + HINT, '--minimal', 'vm-list'),
                ('Syntax error: ' + HINT, 'uuid=x', 'vm-list'),
                ('Syntax error: ' + HINT, 'vm-list', '-x', 'y'),
                ('Required parameter not found: uuid' + HINT, 'vdi-destroy'),
                ('Error: Required parameter not found: snapshot-uuid or uuid.\n',
                 'snapshot-uninstall'),
                ('Username/password must be specified' + HINT,
                 '-s', 'localhost', '-u', '', 'vm-list'),
                ('Unable to contact server. Please check server and port settings.\n',
                 '-s', 'far.invalid', 'vm-list'),
                ("No addrinfo found for host: far.invalid, port: 80Host 'far.invalid' not found.\n",
                 '-s', 'far.invalid', '--nossl', 'vm-list'),
                ("Unhandled exception\nInvalid_argument(\"bool_of_string\")\n",
                 '-s', 'localhost', 'vm-list', 'nossl=yes')):
            self.assertEqual(words, self.refused(*line), line)
        self.assertIn('Invalid_argument("bool_of_string")', self.refused('vm-list', 'minimal=yes'))
        for line in (['vm-list', '-help'], ['-p', 'x', 'vm-list']):
            status, out, err = self.xe(*line)
            self.assertEqual((0, ''), (status, out))
            self.assertIn('Usage: xe <cmd> [-s server]', err)
        self.assertEqual((0, 'ThinCLI protocol: 0.2\n', ''), self.xe('-version'))

    def test_options_come_from_the_environment_and_files_too(self):
        line = ['vm-list', 'name-label=web', '--minimal']
        extra = {'XE_EXTRA_ARGS': 'server=localhost,password=pass\\,word'}
        self.assertIn('Authentication failed', self.refused(*line, **extra))
        self.pool.password = 'pass,word'
        found = (0, self.web + '\n', '')
        self.assertEqual(found, self.xe(*line, **extra))
        self.write('.xe', 'server=localhost\n\npassword=wrong\n')
        self.assertIn('Authentication failed', self.refused(*line))
        self.assertEqual(found, self.xe(*line, **extra))
        self.write('.xe', 'server=localhost\n\npassword=wrong\nnonsense\n')
        self.assertEqual(found[:2] + ('Error parsing rc file. No defaults loaded\n',),
                         self.xe(*line))
        os.unlink(self.path('.xe'))
        line = ['-s', 'localhost', '-pwf', self.path('pw')] + line
        self.assertIn('Error opening password file', self.refused(*line))
        self.write('pw', 'root\n')
        self.assertIn('password file format', self.refused(*line))
        self.write('pw', 'root\npass,word\n')
        self.assertEqual(found, self.xe(*line))

    def test_arguments_are_lines(self):
        self.assertEqual(self.web, self.ask('vm-list\nname-label=web\r\n--minimal\r'))

    def test_booleans_have_many_spellings(self):
        self.assertIn('All objects destroyed',
                      self.ask('vm-uninstall', 'uuid=' + self.snapshot(), 'force=Y'))
        self.assertEqual("Error: Failed to parse parameter 'force': Expected 'true','t','yes','y',"
                         "'1','false','f','no','n','0' got maybe\n",
                         self.xe('vm-uninstall', 'uuid=' + self.web, 'force=maybe')[2])


class Parameters(XeCase):
    def test_params_are_set_and_removed(self):
        for verb, *words in (
                ('set', 'other-config:a=1', 'other-config:role=back', 'name-label='),
                ('remove', 'param-name=tags', 'param-key=c'),
                ('remove', 'param-name=other-config', 'param-key=mac_seed')):
            self.assertEqual('', self.ask('vm-param-' + verb, 'uuid=' + self.web, *words))
        for name, value in (('tags', 'a,b'), ('name-label', ''),
                            ('other-config', 'a: 1; role: back')):
            found = self.ask('vm-param-get', 'uuid=' + self.web, 'param-name=' + name)
            self.assertEqual(value, '; '.join(sorted(found.split('; '))))

    def test_what_params_cannot_do_is_refused_in_the_words_of_the_real_one(self):
        for words, verb, *line in (
                ("Error: Field 'power-state' is read-only.\n", 'set', 'power-state=running'),
                ("Error: Field 'tags' is read-only.\n", 'set', 'tags=x'),
                ("Error: Field 'tags' is not a set or map\n", 'set', 'tags:contains=x'),
                ("Error: Field 'other-config' is a map or set. use the 'name:key=value' syntax.\n",
                 'set', 'other-config=x'),
                ("Error: Map field 'bios-strings' is read-only.\n", 'set', 'bios-strings:x=y'),
                ("Error: Failed to parse parameter 'is-a-template': expecting a boolean (true or "
                 'false)\n', 'set', 'is-a-template=yes'),
                ('You tried to call a method that does not exist. The method name that you used '
                 'is echoed.\nmethod: VM.set_user_version\n', 'set', 'user-version=7'),
                ("Error: Unknown field 'colour'\n", 'set', 'name-description=new', 'colour=red'),
                ('Error code: Missing parameter\nError parameters: colour\n',
                 'get', 'param-name=colour'),
                ('Error: Key x not found in map\n', 'get', 'param-name=other-config',
                 'param-key=x'),
                ('Error: Key x is not in the set\n', 'remove', 'param-name=tags', 'param-key=x'),
                ('Error: Can only remove from parameters of type Set or Map\n',
                 'remove', 'param-name=name-label', 'param-key=x')):
            self.assertEqual(words, self.refused('vm-param-' + verb, 'uuid=' + self.web, *line))
        self.assertEqual('new', self.ask('vm-param-get', 'uuid=' + self.web,
                                         'param-name=name-description'))    # it was set before
        self.assertEqual('The uuid you supplied was invalid.\ntype: VM\nuuid: %s\n' % NOBODY,
                         self.refused('vm-param-get', 'uuid=' + NOBODY, 'param-name=tags'))

    def test_an_import_needs_an_sr(self):
        self.pool.put('pool', self.pool.pool_ref, default_SR='OpaqueRef:NULL')
        self.assertEqual('<not in database>',
                         self.ask('pool-list', 'params=default-SR', '--minimal'))
        self.assertEqual('Error: No SR specified and Pool default SR is null\n',
                         self.refused('vm-import', 'filename=x'))


class Selectors(XeCase):
    def test_several_matches_need_multiple_which_reports_each_failure_on_stdout(self):
        many = ('Error: Multiple matches VMs found. --multiple required to complete the '
                'operation\n')
        for selector in ([], ['vm=twin'], ['name-label=twin']):
            self.assertEqual(many, self.refused('vm-snapshot', 'new-name-label=s', *selector))
        self.assertEqual(2, len(self.ask('vm-snapshot', 'vm=twin', '--multiple',
                                         'new-name-label=s').split('\n')))
        self.assertEqual((0, '', ''), self.xe('vm-start', 'name-label=twin', '--multiple'))
        status, out, err = self.xe('vm-start', 'name-label=twin', '--multiple')
        self.assertEqual((1, '', 2), (status, err, out.count('operation failed on ')))
        self.assertIn('expected: halted\nactual: running', out)

    def test_selectors_are_filters_and_a_quote_breaks_only_vm(self):
        name = 'db, "x"\\'
        self.assertIn('The value given is invalid',
                      self.refused('vm-snapshot', 'vm=' + name, 'new-name-label=s'))
        self.ask('vm-snapshot', 'name-label=' + name, 'new-name-label=s')
        self.ask('vm-snapshot', 'other-config:role=front', 'new-name-label=s')
        self.assertEqual(self.web, self.ask('snapshot-list', 'snapshot-of=' + self.web,
                                            'params=snapshot-of', '--minimal'))
        for line in (['vm-snapshot', 'colour=red', 'new-name-label=s'],
                     ['vm-export', 'task-uuid=x', 'filename=x']):
            self.assertEqual("Error: Unknown field '%s'\n" % line[1].split('=')[0],
                             self.refused(*line))


class Files(XeCase):
    def test_a_name_in_an_error_is_written_as_ocaml_writes_it(self):
        os.mkdir(self.path('"名'))
        self.assertEqual('Operation failed. Error: Sys_error("\\"\\229\\144\\141: File exists")\n',
                         self.refused('vm-export', 'uuid=' + self.web, 'filename="名'))

    def test_a_server_asks_only_for_files_of_the_line(self):
        for _ in range(2):
            self.ask('vm-clone', 'uuid=' + self.web, 'new-name-label=pair')
        status, out, err = self.xe('vm-export', 'name-label=pair', '--multiple', 'filename=x')
        self.assertEqual((1, 'Export succeeded\n'), (status, out))
        self.assertIn('File not permitted: Blocked upload/download of the file x2', err)
        self.assertEqual(['x'], os.listdir(self.work))

    def test_a_dry_run_is_refused(self):
        self.assertEqual('Error: dry-run is not simulated\n',
                         self.refused('vm-import', 'filename=m', 'dry-run=true'))

    def test_a_server_that_dies_before_a_dump_leaves_no_task(self):
        answer, gone = xe.Talk.answer, threading.Event()

        def late(talk):
            gone.wait(10)           # so the connection is gone before anybody listens to it
            return answer(talk)
        for listen in (answer, late):
            for details in ({}, {'after': 1000}):
                gone.clear()
                self.pool.faults.add('pool-dump-database', 'die', **details)
                with mock.patch.object(xe.Talk, 'answer', listen):
                    self.assertEqual(BROKEN, self.refused('pool-dump-database', 'file-name=x'))
                    gone.set()
                    wait_until(lambda: not self.pool.tables['task'])
                os.unlink(self.path('x'))

    def held(self):
        """The VBDs of dom0: (reference, record)."""
        return [(ref, vbd) for ref, vbd in self.pool.tables['VBD'].items()
                if self.pool.tables['VM'][vbd['VM']]['is_control_domain']]

    def pending(self):
        return [ref for ref, task in self.pool.tables['task'].items()
                if task['status'] == 'pending']

    def stalled_exports(self, **fault):
        """(uuid of the disk, ref of the task, process) of exports that have stalled."""
        for verb, uuid in (('vm-export', self.web), ('vdi-export', self.vdi())):
            self.pool.faults.add(verb, after=2500000, **fault)
            process = self.start(verb, 'uuid=' + uuid, 'filename=x')
            wait_until(lambda: os.path.exists('x') and os.path.getsize('x') == 2500000)
            task, = self.pending()
            yield self.vdi(), task, process
            os.unlink('x')

    def test_an_export_that_storage_blocks_heeds_neither_cancelling_nor_its_clients_end(self):
        sleep, over = self.pool.sleep, threading.Event()
        self.pool.sleep = lambda seconds, *_: sleep(None, over.is_set)
        for disk, task, process in self.stalled_exports(do='slow', seconds=1):
            self.ask('task-cancel', 'uuid=' + self.get('task', task))
            end(process)
            time.sleep(0.2)             # longer than those who look need
            self.assertEqual([task], self.pending())
            self.assertIn('VDI is in use', self.refused('vdi-destroy', 'uuid=' + disk))
            over.set()
            wait_until(lambda: not self.pending())
            self.assertEqual([], self.held())
            over.clear()


class TheProgram(XeCase):
    def test_it_can_be_started_by_a_shell_where_the_path_has_a_blank(self):
        program = self.path('with blank')
        os.mkdir(program)
        os.symlink(sys.executable, os.path.join(program, 'python'))
        with mock.patch.object(sys, 'executable', os.path.join(program, 'python')):
            xe.install(os.path.join(program, 'xe'), os.path.join(self.sim.directory, 'xe.sock'))
        with open(os.path.join(program, 'xe')) as file:
            self.assertEqual('#!/bin/sh\n', file.readline())
        self.assertEqual(b'web\n', subprocess.check_output(
            [os.path.join(program, 'xe'), 'vm-list', 'name-label=web', 'params=name-label',
             '--minimal']))
