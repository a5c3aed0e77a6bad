"""The xe door of the simulated pool: what it prints, refuses, and does when things go wrong.

The numbers in the names' comments are those of the list of what a naive fake gets wrong; what was
recorded word by word is in test_faithful.
"""
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from unittest import mock

from tests.simpool import SimPool, xe
from tests.simpool.database import TEMPLATES

NOBODY = '00000000-0000-4000-8000-000000000000'
POOL = {
    'xapi_version': '26.1', 'hosts': ['xen1'], 'networks': ['net0'],
    'srs': [{'name': 'disks', 'type': 'ext', 'size': '100 GiB'}],
    'vms': [{'name': 'web', 'disks': ['3 MiB'], 'tags': ['a,b', 'c'], 'cd': None,
             'other_config': {'role': 'front'}},
            {'name': 'db, "x"\\', 'disks': ['1 MiB'], 'power_state': 'Running'},
            {'name': 'twin'}, {'name': 'twin'}],
}


class XeTest(unittest.TestCase):
    """A pool of four VMs, and `xe` run in a directory of its own."""

    description = POOL

    def setUp(self):
        self.work = tempfile.mkdtemp(prefix='xe')
        self.addCleanup(shutil.rmtree, self.work)
        self.sim = SimPool(self.description)
        self.addCleanup(self.sim.stop)
        self.pool = self.sim.pool
        self.pool.progress_interval = 0.02

    def start(self, *arguments, **options):
        options = dict({'cwd': self.work, 'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE,
                        'stderr': subprocess.PIPE}, **options)
        options['env'] = dict({'HOME': self.work, 'LANG': 'C'}, **options.get('env', {}))
        process = subprocess.Popen([self.sim.xe] + list(arguments), **options)
        self.addCleanup(end, process)
        return process

    def run_xe(self, *arguments, **options):
        """(exit status, stdout, stderr), the texts as str."""
        said = options.pop('says', None)
        if said is not None:
            options['stdin'] = subprocess.PIPE
        process = self.start(*arguments, **options)
        out, err = process.communicate(said, timeout=30)
        return process.returncode, text(out), text(err)

    def ask(self, *arguments):
        """stdout of a command that must succeed, without its last newline."""
        status, out, err = self.run_xe(*arguments)
        self.assertEqual((status, err), (0, ''), arguments)
        return out[:-1]

    def refused(self, *arguments, **options):
        """stderr of a command that must fail with exit 1 and nothing on stdout."""
        status, out, err = self.run_xe(*arguments, **options)
        self.assertEqual((status, out), (1, ''), (arguments, err))
        return err

    def uuid(self, name):
        return self.ask('vm-list', 'name-label=' + name, '--minimal')

    def snapshot(self, name='web', as_vm=True):
        made = self.ask('vm-snapshot', 'uuid=' + self.uuid(name), 'new-name-label=RESTORE_' + name)
        if as_vm:
            self.ask('template-param-set', 'is-a-template=false', 'uuid=' + made)
        return made

    def vdi(self, vm='web'):
        """The uuid of the only disk of a VM."""
        return self.ask('vbd-list', 'vm-name-label=' + vm, 'type=Disk', 'params=vdi-uuid',
                        '--minimal')

    def path(self, name):
        return os.path.join(self.work, name)

    def read(self, name):
        with open(self.path(name), 'rb') as file:
            return file.read()

    def wait_for(self, what):
        for _ in range(400):
            if what():
                return
            time.sleep(0.02)
        self.fail('waited in vain')

    def exporting(self):
        return any(vm['current_operations'] for vm in list(self.pool.tables['VM'].values()))


def text(data):
    return data.decode('utf-8', 'backslashreplace') if data is not None else None


def end(process):
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


class PrintingTest(XeTest):

    def test_errors_go_to_stderr_and_no_match_is_no_error(self):                            # 1
        self.assertEqual(self.run_xe('vm-list', 'name-label=nobody'), (0, '', ''))
        self.assertEqual(self.run_xe('vm-list', 'name-label=nobody', '--minimal'), (0, '\n', ''))
        self.assertEqual(self.run_xe('vm-list', 'uuid=garbage'), (0, '', ''))
        self.assertEqual(self.refused('vm-list', 'colour=red'), "Error: Unknown field 'colour'\n")

    def test_an_unknown_field_is_overlooked_once_nothing_is_left(self):
        self.assertEqual(self.run_xe('vm-list', 'name-label=nobody', 'colour=red'), (0, '', ''))

    def test_records_end_in_two_empty_lines_and_labels_are_right_aligned(self):             # 2
        web = self.uuid('web')
        self.assertEqual(self.run_xe('vm-list', 'name-label=web')[1],
                         'uuid ( RO)           : %s\n'
                         '     name-label ( RW): web\n'
                         '    power-state ( RO): halted\n\n\n' % web)
        self.assertEqual(self.run_xe('vm-list', 'name-label=web', 'params=tags,other-config')[1],
                         'other-config (MRW)    : role: front; mac_seed: %s\n'
                         '            tags (SRW): a,b, c\n\n\n' % self.ask(
                             'vm-param-get', 'uuid=' + web, 'param-name=other-config',
                             'param-key=mac_seed'))

    def test_minimal_gives_the_first_defined_field_and_escapes(self):                       # 3
        web = self.uuid('web')
        self.assertEqual(self.ask('vm-list', 'name-label=web', 'params=name-label,uuid',
                                  '--minimal'), web)
        self.assertEqual(self.ask('vm-list', 'power-state=running', 'is-control-domain=false',
                                  'params=name-label', '--minimal'), 'db\\, "x"\\\\')
        self.assertEqual(self.ask('vm-list', 'name-label=web', 'params=nothing', '--minimal'), '')

    def test_vm_list_has_the_control_domain_and_snapshots_made_vms(self):                   # 4
        names = self.ask('vm-list', 'params=name-label', '--minimal')
        self.assertIn('Control domain on host: xen1', names)
        made = self.snapshot(as_vm=False)
        self.assertEqual(self.ask('vm-list', 'uuid=' + made, '--minimal'), '')
        self.assertEqual(self.ask('snapshot-list', '--minimal'), made)
        self.assertEqual(self.ask('template-list', 'uuid=' + made, '--minimal'), '')
        self.ask('template-param-set', 'is-a-template=false', 'ha-always-run=false',
                 'uuid=' + made)
        self.assertEqual(self.ask('vm-list', 'uuid=' + made, '--minimal'), made)
        self.assertEqual(self.ask('snapshot-list', '--minimal'), made)

    def test_filters_are_exact_but_for_mac_addresses(self):
        for label in ('we', 'WEB', 'web ', 'we*'):
            self.assertEqual(self.ask('vm-list', 'name-label=' + label, '--minimal'), '')
        mac = self.ask('vif-list', 'vm-name-label=web', 'params=MAC', '--minimal')
        self.assertEqual(self.ask('vif-list', 'MAC=' + mac.upper(), 'params=MAC', '--minimal'), mac)

    def test_filters_look_into_maps_and_sets(self):
        web = self.uuid('web')
        for key in ('other-config:role=front', 'other-config-role=front', 'tags:contains=a,b'):
            self.assertEqual(self.ask('vm-list', key, '--minimal'), web)
        self.assertEqual(self.ask('vm-list', 'other-config:role=back', '--minimal'), '')
        self.assertIn('should be set-param:contains=key', self.refused('vm-list', 'tags:has=c'))
        self.assertEqual(self.refused('vm-list', 'uuid:x=c'),
                         "Error: Field 'uuid' is not a set or map\n")

    def test_each_list_has_its_default_columns(self):
        expected = {'vm': 3, 'template': 3, 'snapshot': 4, 'vdi': 7, 'sr': 6, 'host': 3, 'pool': 5,
                    'network': 4, 'vbd': 6, 'vif': 4, 'pbd': 5}
        self.snapshot(as_vm=False)
        found = {kind: len((self.ask(kind + '-list') + '\n').split('\n\n\n')[0].split('\n'))
                 for kind in expected}
        self.assertEqual(found, expected)

    def test_every_field_of_the_tables_is_one_of_the_records(self):
        through = {'metrics': {'VM': 'VM_metrics', 'host': 'host_metrics'},
                   'guest_metrics': {'VM': 'VM_guest_metrics'}}
        for kind in xe.KINDS.values():
            for field in kind.fields.values():
                source = xe.api_name(field)
                path, _, name = source.rpartition('.')
                cls = through[path][kind.cls] if path else kind.cls
                if not source.startswith('!') and 'E' not in field.flags and (
                        field.name != 'health-check-config'):
                    self.assertIn(name, TEMPLATES[cls], field.name)

    def test_all_parameters_of_every_kind_can_be_shown(self):
        for kind in ('vm', 'vdi', 'vbd', 'vif', 'sr', 'pbd', 'network', 'host', 'pool'):
            uuid = self.ask(kind + '-list', '--minimal').split(',')[0]
            self.assertIn('<expensive field>' if kind in ('vm', 'vbd', 'vif', 'host', 'pool')
                          else 'uuid', self.ask(kind + '-list', 'params=all'), kind)
            self.assertIn('uuid ( RO)', self.ask(kind + '-param-list', 'uuid=' + uuid))

    def test_a_dangling_reference_is_not_in_the_database(self):
        self.assertEqual(self.ask('vbd-list', 'vm-name-label=web', 'type=CD',
                                  'params=vdi-uuid', '--minimal'), '<not in database>')
        self.assertEqual(self.ask('vbd-list', 'vm-name-label=web', 'type=CD',
                                  'params=vdi-name-label', '--minimal'), '<EMPTY>')

    def test_each_command_prints_what_the_real_one_does(self):                              # 7
        made = self.snapshot()
        self.assertEqual(self.run_xe('vm-export', 'uuid=' + made, 'filename=a.xva'),
                         (0, 'Export succeeded\n', ''))
        disk = self.ask('vdi-snapshot', 'uuid=' + self.vdi())
        for arguments in (['vdi-param-set', 'uuid=' + disk, 'name-label=SNAP'],
                          ['vdi-export', 'uuid=' + disk, 'filename=d.raw'],
                          ['pool-dump-database', 'file-name=p.db'],
                          ['vdi-destroy', 'uuid=' + disk]):
            self.assertEqual(self.run_xe(*arguments), (0, '', ''), arguments)
        self.assertEqual(len(self.ask('vm-import', 'filename=a.xva')), 36)

    def test_what_is_printed_directly_does_not_care_for_minimal(self):
        made = self.snapshot()
        self.assertEqual(self.run_xe('vm-export', 'uuid=' + made, 'filename=a.xva', '--minimal'),
                         (0, 'Export succeeded\n\n', ''))
        self.assertEqual(self.run_xe('vdi-destroy', 'uuid=' + self.vdi(), '--minimal'),
                         (0, '\n', ''))


class GrammarTest(XeTest):

    def test_the_client_takes_its_options_out_from_anywhere(self):
        web = self.uuid('web')
        self.assertEqual(self.ask('vm-list', '-u', 'x', '-pw', 'y', 'name-label=web', 'nossl=true',
                                  'username=z', '--minimal', '--traceparent', '0-1'), web)

    def test_a_password_is_asked_for_by_tcp_only(self):
        web = self.uuid('web')
        line = ['vm-list', 'name-label=web', '--minimal']
        denied = "Authentication failed\nFor usage run: 'xe help'\n"
        self.assertEqual(self.ask('-s', '127.0.0.1', '-pw', 'wrong', *line), web)
        self.assertEqual(self.ask('-s', 'localhost', '-pw', 'password', *line), web)
        self.assertEqual(self.refused('-s', 'localhost', '-pw', 'wrong', *line), denied)
        self.assertEqual(self.refused('-s', 'localhost', *line), denied)
        self.assertEqual(self.refused('-s', 'localhost', '-u', '', *line),
                         "Username/password must be specified\nFor usage run: 'xe help'\n")

    def test_other_hosts_are_out_of_reach(self):
        self.assertEqual(
            self.refused('-s', 'far.invalid', 'vm-list'),
            'Unable to contact server. Please check server and port settings.\n')
        self.assertIn("Host 'far.invalid' not found.\n",
                      self.refused('-s', 'far.invalid', '--nossl', 'vm-list'))

    def test_a_member_refuses_what_comes_by_tcp(self):                                      # 12
        sim = SimPool(POOL, role='slave', master_address='10.9.8.7')
        self.addCleanup(sim.stop)
        self.sim = sim
        self.assertEqual(self.refused('-s', 'localhost', '-pw', 'password', 'vm-list'),
                         'You cannot make regular API calls directly on a supporter. Please pass '
                         'API calls via the coordinator host.\nMaster IP address: 10.9.8.7\n')
        self.assertEqual(len(self.uuid('web')), 36)

    def test_options_come_from_the_environment_and_a_file_too(self):
        line = ['vm-list', 'name-label=web', '--minimal']
        web = self.ask(*line)
        extra = {'XE_EXTRA_ARGS': 'server=localhost,password=pass\\,word'}
        self.assertIn('Authentication failed', self.refused(*line, env=extra))
        self.pool.password = 'pass,word'
        self.assertEqual(self.run_xe(*line, env=extra), (0, web + '\n', ''))
        with open(self.path('.xe'), 'w') as file:
            file.write('server=localhost\n\npassword=wrong\n')
        self.assertIn('Authentication failed', self.refused(*line))
        self.assertEqual(self.run_xe(*line, env=extra), (0, web + '\n', ''))
        with open(self.path('.xe'), 'a') as file:
            file.write('nonsense\n')
        self.assertEqual(self.run_xe(*line), (
            0, web + '\n', 'Error parsing rc file. No defaults loaded\n'))

    def test_a_password_file_has_two_lines(self):
        with open(self.path('pw'), 'w') as file:
            file.write('root\npassword\n')
        line = ['-s', 'localhost', '-pwf', self.path('pw'), 'vm-list', 'name-label=web']
        self.assertIn('web', self.ask(*line))
        with open(self.path('pw'), 'w') as file:
            file.write('root\n')
        self.assertIn('password file format', self.refused(*line))
        os.unlink(self.path('pw'))
        self.assertIn('Error opening password file', self.refused(*line))

    def test_usage_and_version_end_well(self):
        for arguments in ([], ['--help'], ['vm-list', '-help'], ['-p', 'x', 'vm-list']):
            status, out, err = self.run_xe(*arguments)
            self.assertEqual((status, out), (0, ''))
            self.assertIn('Usage: xe <cmd> [-s server]', err)
        self.assertEqual(self.run_xe('-version'), (0, 'ThinCLI protocol: 0.2\n', ''))

    def test_a_line_that_makes_no_sense_is_refused(self):
        hint = "\nFor usage run: 'xe help'\n"
        for arguments, words in (
                (['--minimal', 'vm-list'], 'Unknown command: --minimal'),
                (['vm-lisst'], 'Unknown command: vm-lisst'),
                (['uuid=x', 'vm-list'], 'Syntax error: '),
                (['vm-list', '-x', 'y'], 'Syntax error: '),
                (['vm-export'], 'Required parameter not found: filename'),
                (['vdi-destroy'], 'Required parameter not found: uuid'),
                (['help', 'nonsense'], 'Unknown command: nonsense')):
            self.assertEqual(self.refused(*arguments), words + hint)

    def test_help_lists_what_there_is(self):
        self.assertIn('vm-export', self.ask('help'))
        self.assertIn('reqd params     : uuid, filename', self.ask('help', 'vdi-export'))

    def test_a_newline_splits_an_argument_and_a_carriage_return_is_dropped(self):
        self.assertEqual(self.uuid('web'), self.ask('vm-list\nname-label=web\r\n--minimal\r'))
        status, _, err = self.run_xe('vm-snapshot', 'uuid=' + self.uuid('web'),
                                     'new-name-label=two\nlines')
        self.assertEqual((status, err), (1, "Error: Unknown field 'lines'\n"))

    def test_values_keep_their_equals_signs_and_odd_letters(self):
        made = self.ask('vm-snapshot', 'uuid=' + self.uuid('web'),
                        'new-name-label=a=b,c"d\' $(id) 名前')
        self.assertEqual(self.ask('snapshot-list', 'uuid=' + made, 'params=name-label'),
                         'name-label ( RW)    : a=b,c"d\' $(id) 名前\n\n')

    def test_what_is_not_utf_8_is_refused_by_the_api_only(self):
        web = self.uuid('web')
        bad = b'bad\xff'
        self.assertEqual(self.run_xe('vm-list', b'name-label=' + bad), (0, '', ''))
        for line in ([b'vm-param-set', b'uuid=' + web.encode(), b'name-label=' + bad],
                     [b'vm-snapshot', b'uuid=' + web.encode(), b'new-name-label=' + bad],
                     [b'vdi-destroy', b'uuid=' + bad]):
            self.assertEqual(self.refused(*line), 'The value given is invalid\n'
                             'field: Invalid UTF-8 string in parameter\nvalue: S(bad\\xff)\n')

    def test_booleans_have_many_spellings_but_minimal_has_two(self):
        made = self.snapshot()
        self.assertIn('All objects destroyed',
                      self.ask('vm-uninstall', 'uuid=' + made, 'force=Y'))
        line = ['vm-uninstall', 'uuid=' + self.uuid('web'), 'force=maybe']
        self.assertEqual(self.run_xe(*line)[2],
                         "Error: Failed to parse parameter 'force': Expected 'true','t','yes','y',"
                         "'1','false','f','no','n','0' got maybe\n")
        self.assertIn('Invalid_argument("bool_of_string")', self.refused('vm-list', 'minimal=yes'))


class ParametersTest(XeTest):

    def test_param_set_goes_through_the_line_and_keeps_what_it_did(self):
        web = 'uuid=' + self.uuid('web')
        self.assertEqual(self.refused('vm-param-set', web, 'name-description=new', 'colour=red'),
                         "Error: Unknown field 'colour'\n")
        self.assertEqual(self.ask('vm-param-get', web, 'param-name=name-description'), 'new')

    def test_param_set_refuses_in_the_words_of_the_real_one(self):
        web = 'uuid=' + self.uuid('web')
        for change, words in (
                ('power-state=running', "Field 'power-state' is read-only."),
                ('tags=x', "Field 'tags' is read-only."),
                ('tags:contains=x', 'Cannot param-set on set fields'),
                ('other-config=x',
                 "Field 'other-config' is a map or set. use the 'name:key=value' syntax."),
                ('bios-strings:x=y', "Map field 'bios-strings' is read-only."),
                ('is-a-template=yes', "Failed to parse parameter 'is-a-template': expecting a "
                                      'boolean (true or false)'),
                ('ha-always-run=yes',
                 'Parameter ha-always-run must be a boolean (true or false)'),
                ('user-version=x', "Failed to parse parameter 'user-version': expecting an "
                                   'integer'),
                ('HVM-shadow-multiplier=x',
                 'Parameter HVM-shadow-multiplier must be a floating-point number')):
            self.assertEqual(self.refused('vm-param-set', web, change), 'Error: %s\n' % words)

    def test_params_are_set_added_removed_and_cleared(self):
        web = 'uuid=' + self.uuid('web')
        for arguments in (['set', 'other-config:a=1', 'other-config:role=back', 'user-version=7',
                           'HVM-shadow-multiplier=2'],
                          ['add', 'param-name=tags', 'param-key=new'],
                          ['add', 'param-name=other-config', 'b=2'],
                          ['remove', 'param-name=tags', 'param-key=c'],
                          ['remove', 'param-name=other-config', 'param-key=mac_seed'],
                          ['clear', 'param-name=name-label']):
            self.assertEqual(self.ask('vm-param-' + arguments[0], web, *arguments[1:]), '')
        for name, value in (('tags', 'a,b, new'), ('user-version', '7'), ('name-label', ''),
                            ('other-config', 'role: back; a: 1; b: 2'),
                            ('HVM-shadow-multiplier', '2.000')):
            found = self.ask('vm-param-get', web, 'param-name=' + name)
            self.assertEqual(sorted(found.split('; ')), sorted(value.split('; ')))
        self.ask('vm-param-clear', web, 'param-name=tags')
        self.assertEqual(self.ask('vm-param-get', web, 'param-name=tags'), '')

    def test_params_that_are_not_there_are_refused(self):
        web = 'uuid=' + self.uuid('web')
        for arguments, words in (
                (['get', 'param-name=colour'],
                 'Error code: Missing parameter\nError parameters: colour\n'),
                (['get', 'param-name=other-config', 'param-key=x'],
                 'Error: Key x not found in map\n'),
                (['remove', 'param-name=tags', 'param-key=x'],
                 'Error: Key x is not in the set\n'),
                (['add', 'param-name=name-label', 'param-key=x'],
                 'Error: Can only add to parameters of type Set or Map\n'),
                (['add', 'param-name=VBDs', 'param-key=x'], 'Error: Parameter is read-only\n'),
                (['clear', 'param-name=uuid'], 'Error: Can only clear RW parameters\n')):
            self.assertEqual(self.refused('vm-param-' + arguments[0], web, *arguments[1:]), words)
        self.assertEqual(self.refused('vm-param-list', 'uuid=' + NOBODY),
                         'The uuid you supplied was invalid.\ntype: VM\nuuid: %s\n' % NOBODY)

    def test_references_are_set_by_uuid(self):
        disks = self.ask('sr-list', 'name-label=disks', '--minimal')
        pool = 'uuid=' + self.ask('pool-list', '--minimal')
        self.ask('pool-param-set', pool, 'default-SR=')
        self.assertEqual(self.ask('pool-list', 'params=default-SR', '--minimal'),
                         '<not in database>')
        self.assertEqual(self.refused('vm-import', 'filename=x'),
                         'Error: No SR specified and Pool default SR is null\n')
        self.ask('pool-param-set', pool, 'default-SR=' + disks)
        self.assertEqual(self.ask('pool-list', 'params=default-SR', '--minimal'), disks)


class SelectorTest(XeTest):

    NONE = 'Error: No matching VMs found\n'
    MANY = 'Error: Multiple matches VMs found. --multiple required to complete the operation\n'

    def test_templates_and_snapshots_and_strangers_are_no_matching_vms(self):               # 5
        template = self.ask('template-list', '--minimal').split(',')[0]
        snapshot = self.snapshot(as_vm=False)
        dom0 = self.ask('vm-list', 'is-control-domain=true', '--minimal')
        for uuid in (template, snapshot, dom0, NOBODY, 'garbage', ''):
            self.assertEqual(self.refused('vm-export', 'uuid=' + uuid, 'filename=x.xva'),
                             self.NONE)
            self.assertEqual(self.refused('vm-uninstall', 'uuid=' + uuid, 'force=true'), self.NONE)
        self.assertEqual(os.listdir(self.work), [])

    def test_several_matches_need_multiple(self):
        for selector in ([], ['vm=twin'], ['name-label=twin']):
            self.assertEqual(self.refused('vm-snapshot', 'new-name-label=s', *selector), self.MANY)
        self.assertEqual(len(self.ask('vm-snapshot', 'vm=twin', '--multiple',
                                      'new-name-label=s').split('\n')), 2)

    def test_multiple_reports_each_failure_on_stdout(self):
        status, out, err = self.run_xe('vm-start', 'name-label=twin', '--multiple')
        self.assertEqual((status, out, err), (0, '', ''))
        status, out, err = self.run_xe('vm-start', 'name-label=twin', '--multiple')
        self.assertEqual((status, err), (1, ''))
        self.assertEqual(out.count('operation failed on '), 2)
        self.assertIn('expected: halted\nactual: running', out)

    def test_a_quote_breaks_vm_but_not_name_label(self):
        name = 'db, "x"\\'
        self.assertIn('The value given is invalid',
                      self.refused('vm-snapshot', 'vm=' + name, 'new-name-label=s'))
        self.ask('vm-snapshot', 'name-label=' + name, 'new-name-label=s')

    def test_selectors_are_filters(self):
        web = self.uuid('web')
        self.ask('vm-snapshot', 'other-config:role=front', 'new-name-label=s')
        self.assertEqual(self.ask('snapshot-list', 'params=snapshot-of', '--minimal'),
                         self.ask('snapshot-list', 'snapshot-of=' + web, 'params=snapshot-of',
                                  '--minimal'))
        self.assertEqual(self.refused('vm-snapshot', 'colour=red', 'new-name-label=s'),
                         "Error: Unknown field 'colour'\n")
        self.assertEqual(self.refused('vm-export', 'task-uuid=x', 'filename=x'),
                         "Error: Unknown field 'task-uuid'\n")


class FilesTest(XeTest):

    def test_files_are_new_private_and_never_overwritten(self):                             # 6
        made = self.snapshot()
        disk = self.vdi()
        for arguments in (['vm-export', 'uuid=' + made, 'filename='],
                          ['vdi-export', 'uuid=' + disk, 'filename='],
                          ['pool-dump-database', 'file-name=']):
            arguments[-1] += self.path('out')
            self.assertEqual(self.run_xe(*arguments)[0], 0)
            self.assertEqual(os.stat(self.path('out')).st_mode & 0o777, 0o600)
            before = self.read('out')
            self.assertEqual(
                self.refused(*arguments), 'Operation failed. Error: Sys_error("%s: File exists")\n'
                % self.path('out'))
            self.assertEqual(self.read('out'), before)
            os.unlink(self.path('out'))

    def test_a_name_in_an_error_is_written_as_ocaml_writes_it(self):
        made = self.snapshot()
        os.mkdir(self.path('"名'))
        self.assertEqual(self.refused('vm-export', 'uuid=' + made, 'filename="名'),
                         'Operation failed. Error: Sys_error("\\"\\229\\144\\141: File exists")\n')

    def test_a_running_vm_leaves_no_file(self):                                             # 9
        err = self.refused('vm-export', 'power-state=running', 'filename=x.xva')
        self.assertIn('not in an appropriate power state', err)
        self.assertIn('\nexpected: halted, suspended\nactual: running\n', err)
        self.assertEqual(os.listdir(self.work), [])
        self.assertEqual(self.ask('vm-export', 'power-state=running', 'metadata=true',
                                  'filename=x.xva'), 'Export succeeded')

    def test_an_empty_filename_is_stdout(self):
        made = self.snapshot()
        process = self.start('vm-export', 'uuid=' + made, 'filename=')
        out, err = process.communicate(timeout=30)
        self.assertEqual((process.returncode, err, out[:7], out[-1024:]),
                         (0, b'', b'ova.xml', bytes(1024)))

    def test_compression_is_by_the_word_not_by_the_name(self):
        made = self.snapshot()
        magic = {'gzip': b'\x1f\x8b', 'true': b'\x1f\x8b', 'zstd': b'\x28\xb5\x2f\xfd',
                 'false': b'ova.xml', 'yes': b'ova.xml'}
        for word, start in magic.items():
            self.ask('vm-export', 'uuid=' + made, 'filename=%s.xva.gz' % word, 'compress=' + word)
            self.assertTrue(self.read(word + '.xva.gz').startswith(start), word)

    def test_a_failure_in_mid_transfer_leaves_a_file_that_ends_in_a_page(self):             # 17
        made = self.snapshot()
        self.pool.faults.add('vm-export', 'refuse', after=500000,
                             error=['SR_BACKEND_FAILURE_46', '', 'The VDI is not available', ''])
        self.assertEqual(self.refused('vm-export', 'uuid=' + made, 'filename=x.xva'),
                         'Error code: SR_BACKEND_FAILURE_46\n'
                         'Error parameters: , The VDI is not available, \n')
        data = self.read('x.xva')
        self.assertTrue(data.endswith(b'SR_BACKEND_FAILURE_46: [ ; The VDI is not available;  ]'
                                      b'</body></html>'))
        self.assertEqual(data.index(b'HTTP/1.0 500 Internal Error'), 500000)
        self.assertEqual(self.ask('task-list'), '')
        self.ask('vm-uninstall', 'uuid=' + made, 'force=true')

    def test_a_client_that_cannot_begin_is_a_success_without_a_file(self):                  # 17
        status, said = self.by_hand('vm-export', 'uuid=' + self.snapshot(), 'filename=x')
        self.assertEqual((status, said), (0, {'E': 'Export failed, unknown error\n'}))
        self.assertEqual(self.ask('task-list'), '')

    def by_hand(self, *arguments):
        """Be a client that answers `Failed` to every transfer: (status, what was said)."""
        body = '\n'.join(arguments + ('username=root', 'password=')).encode()
        said = {}
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
            server.settimeout(30)
            server.connect(os.path.join(self.sim.directory, 'xe.sock'))
            server.sendall(b'CLI 1 %d\n' % len(body) + body)
            reader = server.makefile('rb')
            with reader:
                while True:
                    kind, length = struct.unpack('>cI', reader.read(5))
                    payload = reader.read(length).decode()
                    if kind == b'X':
                        return int(payload), said
                    if kind == b'G':
                        server.sendall(b'Failed\n')
                    else:
                        said[kind.decode()] = said.get(kind.decode(), '') + payload

    def test_a_full_disk_is_an_error_with_a_partial_file(self):
        made = self.snapshot()
        for arguments in (['vm-export', 'uuid=' + made, 'filename=x'],
                          ['vdi-export', 'uuid=' + self.vdi(), 'filename=x'],
                          ['pool-dump-database', 'file-name=x']):
            line = 'ulimit -f 16; exec "$0" "$@"'
            done = subprocess.run(['bash', '-c', line, self.sim.xe] + arguments, cwd=self.work,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30)
            self.assertEqual((done.returncode, done.stdout), (1, b''), done.stderr)
            self.assertRegex(done.stderr, b'^(Export failed, unknown error[.]|Error code: )')
            self.assertEqual(len(self.read('x')), 16384)
            os.unlink(self.path('x'))
        self.wait_for(lambda: not self.exporting())

    def test_a_server_asks_only_for_files_of_the_line(self):
        made = [self.ask('vm-clone', 'uuid=' + self.uuid('web'), 'new-name-label=pair')
                for _ in '12']
        self.assertEqual(len(set(made)), 2)
        status, out, err = self.run_xe('vm-export', 'name-label=pair', '--multiple', 'filename=x')
        self.assertEqual((status, out), (1, 'Export succeeded\n'))
        self.assertIn('File not permitted: Blocked upload/download of the file x2', err)
        self.assertEqual(os.listdir(self.work), ['x'])

    def test_a_missing_file_cannot_be_imported(self):
        disk = self.vdi()
        for line in (['vm-import', 'filename=no'], ['vdi-import', 'uuid=' + disk, 'filename=no']):
            self.assertEqual(self.refused(*line),
                             "Operation failed. Error: file 'no' does not exist\n")

    def test_what_was_exported_can_be_imported(self):
        made = self.snapshot()
        content = {self.content_of('web').sha256()}
        for word in ('none', 'gzip', 'zstd'):
            self.ask('vm-export', 'uuid=' + made, 'filename=' + word, 'compress=' + word)
            vm = self.ask('vm-import', 'filename=' + word)
            self.ask('vm-param-set', 'uuid=' + vm, 'name-label=from ' + word)
            content.add(self.content_of('from ' + word).sha256())
        self.assertEqual(len(content), 1)

    def content_of(self, vm):
        return self.pool.content[self.pool.ref_of('VDI', self.vdi(vm))]

    def test_disks_go_out_and_come_in_as_raw_and_vhd(self):
        disk = self.vdi()
        sr = self.ask('sr-list', 'name-label=disks', '--minimal')
        for kind in ('raw', 'vhd', 'VHD'):
            self.ask('vdi-export', 'uuid=' + disk, 'filename=' + kind, 'format=' + kind)
            new = self.ask('vdi-create', 'sr-uuid=' + sr, 'name-label=new', 'virtual-size=3MiB')
            self.ask('vdi-import', 'uuid=' + new, 'filename=' + kind, 'format=' + kind)
            self.assertEqual(self.pool.content[self.pool.ref_of('VDI', new)].sha256(),
                             self.content_of('web').sha256(), kind)
        self.assertEqual(len(self.read('raw')), 3 << 20)

    def test_progress_is_drawn_on_stderr_if_wanted(self):
        status, out, err = self.run_xe('vdi-export', 'uuid=' + self.vdi(), 'filename=x',
                                       '--progress')
        self.assertEqual((status, out), (0, ''))
        self.assertRegex(err, r'^\r\[-\] #+> \(100% ETA 00:00:00\) \nTotal time: 00:00:0\d\n$')

    def test_a_part_that_ends_with_a_member_imports_as_the_real_one_does(self):
        made = self.snapshot()
        self.ask('vm-export', 'uuid=' + made, 'filename=x')
        whole = self.read('x')
        for length, fails in ((len(whole) - 1024, False), (2 << 20, True), (20000, True)):
            with open(self.path('cut'), 'wb') as file:
                file.write(whole[:length])
            status, _, err = self.run_xe('vm-import', 'filename=cut')
            self.assertEqual((status, 'reached prematurely' in err), (int(fails), fails), length)

    def test_a_dry_run_is_for_metadata(self):
        self.ask('vm-export', 'uuid=' + self.uuid('web'), 'metadata=true', 'filename=m')
        self.assertEqual(self.ask('vm-import', 'filename=m', 'metadata=true', 'dry-run=true'),
                         'xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx')
        self.assertEqual(self.refused('vm-import', 'filename=m', 'dry-run=true'),
                         'Only metadata import function support dry-run\n')


class DestroyingTest(XeTest):

    def test_vm_uninstall_lists_first_and_wants_force(self):                                # 8
        made = self.snapshot()
        disk = self.ask('vdi-list', 'is-a-snapshot=true', '--minimal')
        listing = ('The following items are about to be destroyed\nVM : %s (RESTORE_web)\n'
                   'VDI: %s (web 0) \n' % (made, disk))
        asked = listing + "Type 'yes' to continue\n"
        line = ['vm-uninstall', 'uuid=' + made]
        self.assertEqual(self.run_xe(*line), (1, asked, 'Lost connection to the server.\n'))
        self.assertEqual(self.run_xe(*line, says=b'No!\n'),
                         (0, asked + "Aborted (you typed: 'No!')\n", ''))
        self.assertEqual(self.run_xe(*line, says=b' YES \n'),
                         (0, asked + 'All objects destroyed\n', ''))
        self.assertEqual(self.ask('vdi-list', 'is-a-snapshot=true', '--minimal'), '')

    def test_vm_uninstall_takes_running_vms_snapshots_and_own_disks(self):                  # 8
        running = self.ask('vm-list', 'power-state=running', 'is-control-domain=false',
                           '--minimal')
        self.ask('vm-snapshot', 'uuid=' + running, 'new-name-label=s')
        out = self.ask('vm-uninstall', 'uuid=' + running, '--force')
        self.assertEqual([out.count('\nVM :'), out.count('\nVDI:')], [2, 2])
        self.assertEqual(self.ask('vm-list', 'uuid=' + running), '')
        self.assertEqual(self.ask('snapshot-list'), '')

    def test_disks_of_others_stay(self):                                                    # 8
        vm, disk = self.uuid('twin').split(',')[0], self.vdi()
        vbd = self.ask('vbd-create', 'vm-uuid=' + vm, 'vdi-uuid=' + disk, 'device=0')
        self.assertEqual(len(vbd), 36)
        out = self.ask('vm-uninstall', 'uuid=' + vm, '--force')
        self.assertNotIn('VDI:', out)
        self.ask('vbd-create', 'vm-uuid=' + self.uuid('twin'), 'vdi-uuid=' + disk, 'device=0')
        self.assertIn(' (web 0)  ** WARNING: disk is shared by other VMs\n',
                      self.ask('vm-uninstall', 'vm=web', '--force') + '\n')

    def test_snapshot_uninstall_sees_templates_but_only_snapshots(self):
        made = self.snapshot(as_vm=False)
        self.assertIn('All objects destroyed',
                      self.ask('snapshot-uninstall', 'snapshot-uuid=' + made, 'force=true'))
        web = self.uuid('web')
        self.assertEqual(self.refused('snapshot-uninstall', 'uuid=' + web, 'force=true'),
                         'Error: This operation can only be performed on a VM snapshot. %s is not '
                         'a VM snapshot.\n' % web)
        self.assertEqual(self.refused('snapshot-uninstall'),
                         'Error: Required parameter not found: snapshot-uuid or uuid.\n')

    def test_vm_destroy_leaves_the_disks(self):
        disk = self.vdi()
        self.ask('vm-destroy', 'uuid=' + self.uuid('web'))
        self.assertEqual(self.ask('vdi-list', 'uuid=' + disk, '--minimal'), disk)

    def test_illegal_moves_are_refused_with_the_real_words(self):
        template = self.ask('template-list', '--minimal').split(',')[0]
        dom0 = self.ask('vm-list', 'is-control-domain=true', '--minimal')
        running = self.ask('vm-list', 'power-state=running', 'is-control-domain=false',
                           '--minimal')
        attached = self.vdi('db, "x"\\')
        snapshot = self.snapshot()
        plugged = self.ask('vbd-list', 'vm-uuid=' + running, '--minimal')
        web = self.uuid('web')
        for line, words in (
                (['vm-destroy', 'uuid=' + template], 'not valid for a template VM'),
                (['vm-destroy', 'uuid=' + dom0], 'destroy a control domain via the CLI'),
                (['vm-destroy', 'uuid=' + running], 'actual: running'),
                (['vm-start', 'uuid=' + snapshot], 'Error code: VM_IS_SNAPSHOT'),
                (['vm-start', 'uuid=' + running], 'expected: halted\nactual: running'),
                (['vm-shutdown', 'uuid=' + web], 'expected: running\nactual: halted'),
                (['vdi-destroy', 'uuid=' + attached], 'operation: destroy'),
                (['vdi-snapshot', 'uuid=' + NOBODY], 'type: VDI\nuuid: ' + NOBODY),
                (['vbd-destroy', 'uuid=' + plugged], 'still attached'),
                (['vbd-create', 'vm-uuid=' + web, 'device=0', 'vdi-uuid=' + attached],
                 'A device with the name given already exists'),
                (['vbd-create', 'vm-uuid=' + web, 'device=9'],
                 'Empty VBDs can only be made for type=CD'),
                (['vdi-create', 'sr-uuid=' + NOBODY, 'name-label=x', 'virtual-size=1'],
                 'type: SR'),
                (['snapshot-export-to-template', 'snapshot-uuid=' + web, 'filename=x'],
                 'is not a VM snapshot.'),
                (['template-uninstall', 'template-uuid=' + web], 'is not a VM template.'),
                (['vm-snapshot', 'uuid=' + snapshot, 'new-name-label=x'], 'VM_IS_SNAPSHOT'),
                (['vm-snapshot-with-quiesce', 'uuid=' + web, 'new-name-label=x'],
                 'This function is no longer available.')):
            self.assertIn(words, self.refused(*line), line)


class GoneClientsTest(XeTest):

    description = dict(POOL, vms=[{'name': 'web', 'disks': ['4 MiB']}])

    def begin_export(self, **fault):
        made = self.snapshot()
        self.pool.faults.add('vm-export', **fault)
        process = self.start('vm-export', 'uuid=' + made, 'filename=x.xva')
        self.wait_for(lambda: os.path.exists(self.path('x.xva'))
                      and os.path.getsize(self.path('x.xva')) >= fault.get('after', 1))
        return made, process

    def test_signals_end_the_client_as_they_end_the_real_one(self):
        for number, status in ((signal.SIGTERM, -15), (signal.SIGHUP, -1), (signal.SIGKILL, -9),
                               (signal.SIGINT, 1)):
            _, process = self.begin_export(do='hang', after=1500000)
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
            self.assertEqual((process.returncode, out, err), (status, b'', b''))
            self.wait_for(lambda: not self.exporting())
            self.assertEqual(len(self.read('x.xva')), 1500000)
            os.unlink(self.path('x.xva'))
        tasks = self.ask('task-list', 'params=status', '--minimal')
        self.assertEqual(tasks, 'failure,failure,failure,failure')
        self.assertEqual(self.ask('vbd-list', 'currently-attached=true', '--minimal'), '')

    def test_what_conflicts_waits_and_a_disk_in_use_does_not(self):                         # 14
        made, process = self.begin_export(do='slow', rate=4 << 20)
        disk = self.ask('vdi-list', 'is-a-snapshot=true', '--minimal')
        self.assertIn('VDI is in use', self.refused('vdi-destroy', 'uuid=' + disk))
        self.assertIsNone(process.poll())
        self.assertIn('All objects destroyed',
                      self.ask('vm-uninstall', 'uuid=' + made, 'force=true'))
        self.assertEqual(process.wait(timeout=30), 0)

    def test_a_conflict_that_lasts_too_long_is_an_error(self):                              # 14
        made, _ = self.begin_export(do='hang', after=1500000)
        self.pool.lock_wait = 0.1
        status, _, err = self.run_xe('vm-uninstall', 'uuid=' + made, 'force=true')
        self.assertEqual(status, 1)
        task = self.ask('task-list', '--minimal')
        self.assertEqual(err, 'Another operation involving the object is currently in progress\n'
                         'class: VM\nobject: %s (RESTORE_web)\noperation_type: export\n'
                         'operation_ref: %s (Export of VM)\n' % (made, task))

    def test_the_task_tells_of_the_export(self):                                            # 13
        made, process = self.begin_export(do='hang', after=2500000)
        self.assertEqual(self.ask('task-list', 'params=name-label,name-description,status'),
                         'name-label ( RO)          : Export of VM\n'
                         '    name-description ( RO): %s\n'
                         '              status ( RO): pending\n\n' % made)
        self.assertEqual(self.ask('vm-list', 'uuid=' + made, 'params=current-operations',
                                  '--minimal'), 'export')
        end(process)

    def test_an_old_pool_labels_its_task_otherwise(self):                                   # 13
        self.pool.xapi_version = '1.249'
        made, process = self.begin_export(do='hang', after=2500000)
        self.assertEqual(self.ask('task-list', 'params=name-label', '--minimal'),
                         'Export of VM: ' + made)
        end(process)

    def test_a_cancelled_task_ends_the_export(self):
        _, process = self.begin_export(do='slow', rate=1 << 20)
        self.ask('task-cancel', 'uuid=' + self.ask('task-list', '--minimal'))
        out, err = process.communicate(timeout=30)
        self.assertEqual((process.returncode, out, err), (1, b'', b'Export cancelled\n'))
        self.assertEqual(self.ask('task-list'), '')

    def stalled_exports(self, **fault):
        """(uuid of the disk, of the task, process) of exports that have stalled."""
        self.pool.progress_interval = 0.0
        for verb in ('vm-export', 'vdi-export'):
            made = self.snapshot()
            disk = self.ask('vdi-list', 'is-a-snapshot=true', '--minimal')
            self.pool.faults.add(verb, after=2500000, **fault)
            process = self.start(verb, 'uuid=' + (made if verb == 'vm-export' else disk),
                                 'filename=x')
            self.wait_for(lambda: os.path.exists(self.path('x'))
                          and os.path.getsize(self.path('x')) == 2500000)
            yield disk, self.ask('task-list', 'params=uuid', '--minimal'), process
            os.unlink(self.path('x'))
            self.ask('snapshot-uninstall', 'uuid=' + made, 'force=true')
            for task in self.ask('task-list', 'params=uuid', '--minimal').split(','):
                if task:
                    self.pool.call('task.destroy', self.pool.ref_of('task', task))

    def test_a_stalled_export_stands_still_and_holds_its_disk(self):
        for disk, task, process in self.stalled_exports(do='stall'):
            progress = self.ask('task-list', 'uuid=' + task, 'params=progress', '--minimal')
            self.assertTrue(0 < float(progress) < 1, progress)
            time.sleep(0.2)
            self.assertEqual(progress, self.ask('task-list', 'params=progress', '--minimal'))
            self.assertEqual(2500000, os.path.getsize(self.path('x')))
            ref = self.pool.ref_of('task', task)
            self.assertEqual([{'task_id': ref}], [
                vbd['other_config'] for vbd in self.pool.tables['VBD'].values()
                if vbd['currently_attached']])
            self.assertIn('VDI is in use', self.refused('vdi-destroy', 'uuid=' + disk))
            end(process)
            self.wait_for(lambda: self.ask('vbd-list', 'currently-attached=true',
                                           '--minimal') == '')

    def test_a_stalled_export_ends_when_its_task_is_cancelled(self):
        for _, task, process in self.stalled_exports(do='stall'):
            self.ask('task-cancel', 'uuid=' + task)
            out, err = process.communicate(timeout=30)
            self.assertEqual((1, b''), (process.returncode, out))
            self.assertRegex(text(err), '^(Export cancelled|The request was asynchronously '
                             'canceled.\ntask: OpaqueRef:[-0-9a-f]+)\n$')
            self.assertEqual('', self.ask('vbd-list', 'currently-attached=true', '--minimal'))

    def test_an_export_that_storage_blocks_heeds_neither_cancelling_nor_its_clients_end(self):
        for disk, task, process in self.stalled_exports(do='slow', seconds=1):
            self.ask('task-cancel', 'uuid=' + task)
            end(process)
            time.sleep(0.3)
            self.assertEqual('pending', self.ask('task-list', 'uuid=' + task, 'params=status',
                                                 '--minimal'))
            self.assertIn('VDI is in use', self.refused('vdi-destroy', 'uuid=' + disk))
            self.wait_for(lambda: self.ask('vbd-list', 'currently-attached=true',
                                           '--minimal') == '')
            self.assertNotIn('pending', self.ask('task-list', 'params=status', '--minimal'))

    def test_a_daemon_that_dies_in_mid_export_holds_nothing_when_it_is_back(self):
        for verb in ('vm-export', 'vdi-export'):
            made = self.snapshot()
            uuid = made if verb == 'vm-export' else self.ask('vdi-list', 'is-a-snapshot=true',
                                                             '--minimal')
            self.pool.faults.add(verb, 'down', after=1500000)
            self.assertEqual(self.refused(verb, 'uuid=' + uuid, 'filename=x'),
                             'Error: Broken pipe (calling single_write )\n')
            self.assertEqual(len(self.read('x')), 1500000)
            os.unlink(self.path('x'))
            self.sim.restart()
            self.assertEqual('', self.ask('vbd-list', 'currently-attached=true', '--minimal'))
            self.assertEqual('', self.ask('task-list', 'status=pending', '--minimal'))
            self.ask('snapshot-uninstall', 'uuid=' + made, 'force=true')

    def test_a_daemon_that_dies_while_it_uninstalls_leaves_the_disks_that_come_later(self):
        for after, vms, disks in ((0, 1, 1), (1, 0, 1), (2, 0, 0), (3, 0, 0)):
            made = self.snapshot()
            self.pool.faults.add('snapshot-uninstall', 'down', after=after)
            self.assertEqual('Lost connection to the server.\n', self.refused(
                'snapshot-uninstall', 'uuid=' + made, 'force=true'))
            self.assertEqual('Error: Connection refused (calling connect )\n',
                             self.refused('vm-list'))
            self.sim.restart()
            left = self.ask('vdi-list', 'is-a-snapshot=true', '--minimal')
            self.assertEqual((vms, disks), (
                self.ask('snapshot-list', '--minimal').count('-') // 4, left.count('-') // 4))
            for uuid in self.ask('snapshot-list', '--minimal').split(','):
                if uuid:
                    self.ask('snapshot-uninstall', 'uuid=' + uuid, 'force=true')
            for uuid in self.ask('vdi-list', 'is-a-snapshot=true', '--minimal').split(','):
                if uuid:
                    self.assertEqual('', self.ask('vbd-list', 'vdi-uuid=' + uuid, '--minimal'))
                    self.ask('vdi-destroy', 'uuid=' + uuid)

    def test_a_stdout_that_takes_nothing_is_fatal(self):
        for shell, words in (('"$0" vm-list >/dev/full', 'No space left on device'),
                             ('"$0" vm-list >&-', 'Bad file descriptor')):
            done = subprocess.run(['bash', '-c', shell, self.sim.xe], stderr=subprocess.PIPE,
                                  timeout=30)
            self.assertEqual((done.returncode, text(done.stderr)), (
                2, 'Unhandled exception\nSys_error("%s")\nFatal error: exception Sys_error("%s")\n'
                % (words, words)))

    def test_a_reader_that_goes_away_fails_the_export(self):
        made = self.snapshot()
        process = self.start('vm-export', 'uuid=' + made, 'filename=')
        process.stdout.read(1000)
        process.stdout.close()
        err = process.stderr.read()
        self.assertEqual(process.wait(timeout=30), 1)
        self.assertRegex(text(err), r'^Error code: CLIENT_ERROR\nError parameters: INTERNAL_ERROR: '
                         r'\[ Unix.Unix_error\(Unix.(EPIPE|ECONNRESET), "write", ""\) \]\n$')
        self.wait_for(lambda: not self.exporting())


class FaultsTest(XeTest):

    def test_every_command_is_in_the_journal(self):
        self.uuid('web')
        self.run_xe('nonsense', 'x=y', '--minimal')
        self.assertEqual([tuple(call) for call in self.sim.calls('xe')], [
            ('xe', 'vm-list', ('name-label=web', '--minimal')),
            ('xe', 'nonsense', ('x=y', '--minimal'))])

    def test_a_verb_can_be_refused_at_its_nth_call(self):
        self.pool.faults.add('vm-list', 'refuse', nth=2, error=['HOST_STILL_BOOTING'])
        self.uuid('web')
        self.assertEqual(self.refused('vm-list'),
                         'The host toolstack is still initialising. Please wait.\n')
        self.uuid('web')

    def test_codes_known_unknown_and_of_a_wrong_length_have_their_shapes(self):
        ref = next(ref for ref, vm in self.pool.tables['VM'].items() if vm['name_label'] == 'web')
        named = '%s (web)' % self.uuid('web')
        for error, words in (
                (['VM_IS_TEMPLATE', ref], 'The operation attempted is not valid for a template VM\n'
                                          'vm: %s\n' % named),
                (['UUID_INVALID', 'VM'], 'The uuid you supplied was invalid.\ntype: VM\n'
                                         'uuid: <unknown>\n'),
                (['TASK_CANCELLED', 'a', 'b'], 'The request was asynchronously canceled.\n'
                                               'task: a\n<extra>: b\n'),
                (['SR_BACKEND_FAILURE_47', '', ref, ''],
                 'Error code: SR_BACKEND_FAILURE_47\nError parameters: , %s, \n' % named),
                (['OTHER_OPERATION_IN_PROGRESS', 'VM', ref],
                 'Another operation involving the object is currently in progress\nclass: VM\n'
                 'object: %s\noperation_type: <unknown>\noperation_ref: <unknown>\n' % named)):
            self.pool.faults.add('vm-list', 'refuse', error=error)
            self.assertEqual(self.refused('vm-list'), words)
        self.pool.xapi_version = '1.249'
        self.pool.faults.add('vm-list', 'refuse', error=['OTHER_OPERATION_IN_PROGRESS', 'x', 'y'])
        self.assertTrue(self.refused('vm-list').endswith('class: x\nobject: y\n'))

    def test_a_verb_can_say_something_else(self):
        self.pool.faults.add('vm-snapshot', 'print', stdout='not a uuid', stderr='oh\n', exit=7)
        self.assertEqual(self.run_xe('vm-snapshot', 'vm=web', 'new-name-label=s'),
                         (7, 'not a uuid', 'oh\n'))
        self.assertEqual(self.ask('snapshot-list'), '')

    def test_a_server_can_die_in_the_middle_of_its_words(self):
        self.pool.faults.add('vm-list', 'die', after=10)
        self.assertEqual(self.run_xe('vm-list', 'name-label=web'),
                         (1, 'uuid ( RO)', 'Lost connection to the server.\n'))
        self.pool.faults.add('vdi-destroy', 'die')
        disk = self.vdi()
        self.assertEqual(self.refused('vdi-destroy', 'uuid=' + disk),
                         'Lost connection to the server.\n')
        self.assertEqual(self.ask('vdi-list', 'uuid=' + disk), '')

    def test_a_server_can_die_in_the_middle_of_a_file(self):
        made = self.snapshot()
        self.pool.faults.add('vm-export', 'die', after=123456)
        self.assertEqual(self.refused('vm-export', 'uuid=' + made, 'filename=x'),
                         'Error: Broken pipe (calling single_write )\n')
        self.assertEqual(len(self.read('x')), 123456)
        self.ask('vm-uninstall', 'uuid=' + made, 'force=true')

    def test_a_daemon_that_is_down_refuses_until_it_is_back(self):
        self.pool.faults.add('vm-list', 'down')
        self.assertEqual(self.refused('vm-list'), 'Lost connection to the server.\n')
        self.assertEqual(self.refused('vm-list'), 'Error: Connection refused (calling connect )\n')
        self.assertEqual(self.refused('-s', 'localhost', '-pw', 'password', 'vm-list'),
                         'Unable to contact server. Please check server and port settings.\n')
        self.sim.restart()
        self.assertEqual(len(self.uuid('web')), 36)

    def test_a_daemon_can_go_down_after_its_work(self):
        web = self.uuid('web')
        self.pool.faults.add('vm-snapshot', 'down-after')
        self.assertEqual(self.refused('vm-snapshot', 'uuid=' + web, 'new-name-label=s'),
                         'Lost connection to the server.\n')
        self.sim.restart()
        self.assertEqual(self.ask('snapshot-list', 'params=name-label', '--minimal'), 's')

    def test_a_verb_can_hang_until_its_client_goes(self):
        self.pool.faults.add('vm-snapshot', 'hang')
        before = threading.active_count()
        process = self.start('vm-snapshot', 'vm=web', 'new-name-label=s')
        self.wait_for(lambda: self.sim.calls('xe'))
        self.assertIsNone(process.poll())
        process.kill()
        self.wait_for(lambda: threading.active_count() <= before)
        self.assertEqual(self.ask('snapshot-list'), '')

    def test_an_import_can_be_refused_too(self):
        self.ask('vm-export', 'uuid=' + self.snapshot(), 'filename=x')
        self.pool.faults.add('vm-import', 'refuse', error=['IMPORT_ERROR_PREMATURE_EOF'], after=9)
        self.assertIn('reached prematurely', self.refused('vm-import', 'filename=x'))
        self.pool.faults.add('vm-import', 'die')
        self.assertEqual(self.refused('vm-import', 'filename=x'),
                         'Lost connection to the server.\n')

    def importing(self):
        """The lines that import into a pool with room for it: a VM, a disk from raw and from VHD.

        And what the pool is like before, as `remains` tells it.
        """
        self.ask('vm-export', 'uuid=' + self.snapshot(), 'filename=x.xva')
        self.ask('vm-export', 'uuid=' + self.snapshot(), 'filename=x.zst', 'compress=zstd')
        lines = [['vm-import', 'filename=x.xva'], ['vm-import', 'filename=x.zst']]
        for kind in ('raw', 'vhd'):
            self.ask('vdi-export', 'uuid=' + self.vdi(), 'filename=x.' + kind, 'format=' + kind)
            disk = self.ask('vdi-create', 'name-label=new', 'virtual-size=3MiB',
                            'sr-uuid=' + self.ask('sr-list', 'name-label=disks', '--minimal'))
            lines.append(['vdi-import', 'uuid=' + disk, 'filename=x.' + kind, 'format=' + kind])
        return lines, self.remains()

    def remains(self):
        """The records that there are, the room they take, and what is on the disks."""
        with self.pool.lock:
            tables = self.pool.tables
            return ({cls: sorted(tables[cls]) for cls in tables},
                    [sr['physical_utilisation'] for sr in tables['SR'].values()],
                    {ref: image.sha256() for ref, image in self.pool.content.items()})

    def receiving(self):
        """Whether a VM or a disk is being filled."""
        with self.pool.lock:
            return any('import' in vm['current_operations'].values()
                       for vm in self.pool.tables['VM'].values()) or any(
                vbd['currently_attached'] and 'task_id' in vbd['other_config']
                for vbd in self.pool.tables['VBD'].values())

    def test_a_server_that_dies_in_the_middle_of_an_import_leaves_nothing_of_it(self):
        lines, before = self.importing()
        for line in lines:
            self.pool.faults.add(line[0], 'die', after=1500000)
            self.assertEqual(self.refused(*line),
                             'Error: Broken pipe (calling single_write )\n', line)
            self.wait_for(lambda: self.remains() == before)

    def test_an_import_can_be_refused_in_the_middle_and_leaves_nothing(self):
        full = ['SR_BACKEND_FAILURE_44', '', 'There is insufficient space', '']
        lines, before = self.importing()
        for line in lines:
            self.pool.faults.add(line[0], 'refuse', error=full, after=1500000)
            self.assertEqual(self.refused(*line), 'Error code: SR_BACKEND_FAILURE_44\nError '
                             'parameters: , There is insufficient space, \n', line)
            self.assertEqual(self.remains(), before, line)
        for line in lines:
            self.pool.faults.add(line[0], 'refuse', error=full, after=1 << 30)
            self.ask(*line)

    def test_an_import_that_hangs_or_is_slow_ends_with_its_client(self):
        lines, before = self.importing()
        for fault in ({'do': 'hang', 'after': 1500000}, {'do': 'slow', 'rate': 400000}):
            for line in lines:
                self.pool.faults.add(line[0], **fault)
                process = self.start(*line)
                self.wait_for(self.receiving)
                self.assertIsNone(process.poll())
                self.assertEqual(self.uuid('nobody'), '')       # nobody else has to wait
                end(process)
                self.wait_for(lambda: self.remains() == before)

    def test_an_import_that_hangs_after_all_was_sent_ends_with_its_client(self):
        self.ask('vdi-export', 'uuid=' + self.vdi(), 'filename=x')
        with open(self.path('x'), 'r+b') as file:
            file.truncate(40000)
        before = self.remains()
        self.pool.faults.add('vdi-import', 'hang', after=30000)
        process = self.start('vdi-import', 'uuid=' + self.vdi(), 'filename=x', '--debug')
        self.wait_for(self.receiving)
        time.sleep(0.3)                                         # now it waits for the last word
        self.assertIsNone(process.poll())
        self.uuid('web')
        end(process)
        self.wait_for(lambda: self.remains() == before)

    def test_a_slow_import_comes_to_its_end(self):
        for line in self.importing()[0]:
            self.pool.faults.add(line[0], 'slow', rate=32 << 20)
            self.ask(*line)

    def test_an_import_whose_answer_dies_was_done(self):
        line = self.importing()[0][0]
        self.pool.faults.add('vm-import', 'die')
        self.assertEqual(self.refused(*line), 'Lost connection to the server.\n')
        self.assertEqual(self.uuid('RESTORE_web').count(','), 2)

    def test_a_server_that_dies_before_a_dump_leaves_no_task(self):
        answer = xe.Talk.answer

        def late(talk):
            time.sleep(0.2)         # so the connection is gone before anybody listens to it
            return answer(talk)
        for listen in (answer, late):
            for details in ({}, {'after': 1000}):
                self.pool.faults.add('pool-dump-database', 'die', **details)
                with mock.patch.object(xe.Talk, 'answer', listen):
                    self.assertEqual(self.refused('pool-dump-database', 'file-name=x'),
                                     'Error: Broken pipe (calling single_write )\n')
                    self.wait_for(lambda: not self.pool.tables['task'])
                os.unlink(self.path('x'))

    def test_a_fault_of_the_api_does_not_strike_xe(self):
        self.pool.faults.add('VM.snapshot', 'refuse', error=['INTERNAL_ERROR', 'x'])
        self.assertEqual(len(self.ask('vm-snapshot', 'vm=web', 'new-name-label=s')), 36)

    def test_the_program_can_be_started_by_a_shell_where_the_path_has_a_blank(self):
        program = self.path('with blank')
        os.mkdir(program)
        os.symlink(sys.executable, os.path.join(program, 'python'))
        true = sys.executable
        try:
            sys.executable = os.path.join(program, 'python')
            xe.install(os.path.join(program, 'xe'), os.path.join(self.sim.directory, 'xe.sock'))
        finally:
            sys.executable = true
        with open(os.path.join(program, 'xe')) as file:
            self.assertEqual(file.readline(), '#!/bin/sh\n')
        done = subprocess.run([os.path.join(program, 'xe'), 'vm-list', 'name-label=web',
                               'params=name-label', '--minimal'], stdout=subprocess.PIPE,
                              timeout=30)
        self.assertEqual((done.returncode, done.stdout), (0, b'web\n'))


if __name__ == '__main__':
    unittest.main()
