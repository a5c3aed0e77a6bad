"""Settings: config files, and what `config` prints."""

import io
import os
import re
import shutil
import tempfile
import unittest

import VmBackup
from tests import ROOT
from tests.faults.faulting import full
from tests.tools.support import PoolCase

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError:
    hypothesis = None

# Each key: its default, {text: meaning} of what is taken, and what is not.
KEYS = {
    'pool_db_backup': (0, {'1': 1, '0': 0}, ['', 'yes', '2', '-1', 'True']),
    'pool_db_max_backups': (0, {'0': 0, '7': 7, '1000000': 10**6}, ['', '-1', '1000001', 'all']),
    'max_backups': (4, {'1': 1, '007': 7}, ['', '0', '1.5', '4 ; 4', '4#', '"4', '٤', '9' * 5000]),
    'keep_last': (4, {'0': 0, '7': 7, '': 4}, ['-1', 'all', '1000001']),
    'keep_hourly': (0, {'24': 24, '0': 0}, ['', '-1', 'all']),
    'keep_daily': (0, {'7': 7}, ['', '-1', '1.5']),
    'keep_weekly': (0, {'5': 5}, ['', '-1']),
    'keep_monthly': (0, {'12': 12}, ['', '-1']),
    'keep_yearly': (0, {'1000000': 10**6}, ['', '-1', '1000001']),
    'backup_dir': ('/snapshots/BACKUPS', {
        '/a b/é=c': '/a b/é=c', '/': '/', './x': os.path.abspath('x')}, ['', '/a\0b']),
    'backup_dir_pattern': ('backup-%Y-%m-%d-(%H:%M:%S)',
                           {'%S%M%H%d%m%Y': '%S%M%H%d%m%Y', 'é %Y%m%dT%H%M%S': 'é %Y%m%dT%H%M%S'},
                           ['', 'backup', '%Y-%m-%d', '%Y%Y%m%d%H%M%S', '%Y/%m/%d/%H%M%S',
                            '%Y%m%d%H%M%S%', '%Y%m%d%H%M%S%%', '%Y%m%d%H%M%S%y',
                            '../%Y%m%d%H%M%S']),
    'status_log': ('/snapshots/NAUbackup/status.log', {'/x/y.log': '/x/y.log'}, ['']),
    'compress': ('none', {'True': 'gzip', 'false': 'none', 'GZIP': 'gzip', 'zstd': 'zstd',
                          'None': 'none'}, ['', 'yes', '1', 'lz4', 'true,']),
    'pre_clean': (False, {'True': True, 'TRUE': True, 'False': False}, ['', '1', 'yes', 'none']),
    'vdi_export_format': ('raw', {'vhd': 'vhd', 'VHD': 'vhd', 'Raw': 'raw', 'auto': 'auto'},
                          ['', 'qcow2']),
    'vdi_disks': ('boot', {'All': 'all', 'xvda': 'xvda', 'xvda, XVDC': 'xvda,xvdc',
                           'hda,sdb': 'hda,sdb'},
                  ['', 'boot,all', 'all,xvda', 'xvd', '0', 'xvda,', '/dev/xvda']),
    'vdi_compress': ('none', {'GZIP': 'gzip', 'zstd': 'zstd', 'none': 'none'}, ['', 'True', 'xz']),
    'honour_nobak': (False, {'yes': True, 'No': False}, ['', 'True', '1']),
    'large_backup': (60, {'1': 1, '500': 500}, ['', '0', '60G']),
    'lock_wait': (0.0, {'0': 0.0, '1.5': 1.5, '525600': 525600.0},
                  ['', '-1', '525601', '1,5', 'nan', 'inf', '1e3', '.5']),
    'require_mount': ('auto', {'Yes': 'yes', 'no': 'no', 'AUTO': 'auto'}, ['', 'true', '1']),
    'min_free': ('', {'': '', '10%': '10%', '99%': '99%', '50G': '50G', '500M': '500M'},
                 ['100%', '50', '50 G', '1.5G', '-1%', '50g', '5P', '%']),
    'stall_timeout': (30.0, {'30': 30.0, '0.01': 0.01}, ['', '0', '0.0', '-1', '525601', 'no']),
    'verify': ('yes', {'no': 'no', 'Yes': 'yes'}, ['', 'True', '1']),
    'retries': (0, {'0': 0, '1': 1}, ['', '2', '-1', 'yes']),
    'parallel': (1, {'4': 4, '64': 64}, ['', '0', '65', '-1', 'four', '1.5']),
    'parallel_per_sr': (0, {'0': 0, '2': 2}, ['', '65', '-1', 'all']),
    'hook': ('', {'/a b/hook': '/a b/hook', '': ''}, ['/a\0b']),
    'hook_timeout': (60.0, {'0.5': 0.5, '60': 60.0}, ['', '0', '-1', 'no']),
    'report_file': ('', {'/x/report.json': '/x/report.json', '': ''}, ['/a\0b']),
    'mail_to': ((), {'a@b': ('a@b',), 'a, b@c ,': ('a', 'b@c'), '': ()}, ['a b', 'a@b@c']),
    'mail_from': ('', {'a@b': 'a@b', '': ''}, ['A <a@b>', 'a@b, c@d', 'a@b,', ',']),
    'mail_smtp_server': ('localhost', {'mail.example.org': 'mail.example.org'}, []),
    'mail_smtp_port': (25, {'587': 587, '65535': 65535}, ['', '0', '65536', 'smtp']),
    'mail_smtp_security': ('auto', {'STARTTLS': 'starttls', 'tls': 'tls', 'None': 'none'},
                           ['', 'ssl', 'true']),
    'mail_smtp_user': ('', {'a=b c': 'a=b c'}, []),
    'mail_smtp_password_file': ('', {'': '', '/root/p': '/root/p'}, []),
    'mail_helo': ('', {'xen1.example.com': 'xen1.example.com', '[10.0.0.5]': '[10.0.0.5]',
                       '[IPv6:fe80::1]': '[IPv6:fe80::1]'}, ['a b', 'é.example', 'a@b', '<x>']),
    'mail_mode': ('always', {'Problems': 'problems', 'never': 'never'}, ['', 'errors']),
    'ping_url': ('', {'http://h:1/x?y': 'http://h:1/x?y', '': '',
                      'https://[::1]/{|a|}': 'https://[::1]/{|a|}'},
                 ['h', 'ftp://h/', 'https://', 'https://u:p@h/', 'https://h/{x}', 'https://h/ x',
                  'https://h/x#y', 'https://h/{a b|c|d}', 'https://h/{|\u00e9|}']),
    'ping_body': ('none', {'Summary': 'summary'}, ['', 'log']),
}


def parsed(*lines, **keys):
    return VmBackup.parse_config(lines, 'f', VmBackup.CommandLine('backup', 'p', ('f',), {}, keys))


class Keys(unittest.TestCase):
    def test_the_table_here_has_every_key(self):
        self.assertEqual(list(KEYS), [key.name for key in VmBackup.KEYS])
        self.assertEqual(list(KEYS), list(VmBackup.Settings._fields))

    def test_defaults_are_those_of_the_first_page(self):
        settings = parsed().settings
        for name, (default, _, _) in KEYS.items():
            self.assertEqual(default, getattr(settings, name), name)

    def test_values_are_taken_with_blanks_around_them_stripped(self):
        for name, (_, good, _) in KEYS.items():
            for text, value in good.items():
                for line in ('%s=%s', ' %s = %s ', '\t%s\t=\t%s\t'):
                    config = parsed(line % (name, text))
                    self.assertEqual(({}, ()), (config.errors, config.unexpected))
                    self.assertEqual(value, getattr(config.settings, name), line % (name, text))

    def test_wrong_values_are_named_with_file_and_line_and_the_default_stays(self):
        allowed = {key.name: key.allowed for key in VmBackup.KEYS}
        for name, (default, _, bad) in KEYS.items():
            for text in bad:
                with self.subTest(name=name, text=text):
                    config = parsed('# first', '%s=%s' % (name, text))
                    error, = config.errors.values()
                    self.assertRegex(error, 'ERROR: config %s (out of range|invalid|has a)' % name)
                    self.assertIn('-> %s (f line 2)' % VmBackup.public(name, text), error)
                    self.assertEqual(allowed[name], error.partition(', allowed: ')[2])
                    self.assertEqual(default, getattr(config.settings, name))

    def test_all_wrong_values_are_named_together(self):
        config = parsed('max_backups=0', 'compress=x', 'mail_mode=y', 'what', 'nothing=1')
        self.assertEqual((3, 2), (len(config.errors), len(config.unexpected)))

    def test_the_last_line_of_a_key_wins_and_the_command_line_before_all(self):
        self.assertEqual(3, parsed('max_backups=2', 'max_backups=3').settings.max_backups)
        config = parsed('compress=zstd', 'pre_clean=True', compress='False', pre_clean='false')
        self.assertEqual(('none', False), (config.settings.compress, config.settings.pre_clean))


class Lines(unittest.TestCase):
    def test_comments_and_empty_lines_are_passed_over(self):
        config = parsed('', '   ', '#', '; max_backups=2', '\t# indented', '#max_backups=2')
        self.assertEqual(parsed(), config)

    def test_a_line_is_split_at_its_first_equals_sign(self):
        config = parsed('vm-export=a=b.*=', 'exclude==', 'vdi-export=x#y', 'backup_dir=/a=b')
        self.assertEqual([('vm-export', 'a=b.*='), ('exclude', '='), ('vdi-export', 'x#y')],
                         [rule[:2] for rule in config.rules])
        self.assertEqual('/a=b', config.settings.backup_dir)

    def test_rules_keep_their_order_and_place_and_blanks_inside_a_name(self):
        rules = parsed('vm-export =\t DEV  mySql ', '', 'exclude=c', 'vdi-export=a').rules
        self.assertEqual([('vm-export', 'DEV  mySql', 'f line 1'), ('exclude', 'c', 'f line 3'),
                          ('vdi-export', 'a', 'f line 4')], [rule[:3] for rule in rules])

    def test_unknown_keys_are_errors_or_notes_that_name_a_key_which_is_like_it(self):
        for name, meant in (
                ('max_backup', 'max_backups'), ('Max_Backups', 'max_backups'), ('', ''),
                ('Exclude', 'exclude'), ('vm_export', 'vm-export'), ('vm_exports', 'vm-export'),
                ('backup-dir', 'backup_dir'), ('backup', 'backup_dir'),
                ('statuslog', 'status_log'), ('smtp_server', 'mail_smtp_server'),
                ('smtp_port', 'mail_smtp_port'), ('exclude_disk', 'exclude-disk'),
                ('compresion', 'compress'), ('excludes', 'exclude'), ('mailto', 'mail_to'),
                ('name', ''), ('path', ''), ('log', ''), ('vm', ''), ('user', ''), ('retain', ''),
                ('api_token', ''), ('secrets_file', ''), ('share_type', ''), ('host_backup', ''),
                ('timeout', ''), ('keep', ''), ('mail', ''), ('report', ''), ('host', '')):
            with self.subTest(name):
                line = 'config key: ' + name + ' (f line 1)' + (meant and ', perhaps ' + meant)
                self.assertEqual(('***ERROR unexpected ' + line,), parsed(name + '=x').unexpected)
                config = VmBackup.parse_config([name + '=x'], 'f', VmBackup.CommandLine(
                    options={'ignore_extra_keys': 'yes'}))
                self.assertEqual(('***NOTE - ignored ' + line,), config.notes)
                self.assertEqual(parsed(), config._replace(notes=()))

    def test_a_setting_has_no_quotes_around_it_and_no_comment_behind_it_and_a_note_says_so(self):
        for text, value, dropped in (
                ('"/a b"', '/a b', 'the quotes'), ("'/a'", '/a', 'the quotes'),
                ('/a   # the NAS', '/a', '# the NAS'), ('/a\t#', '/a', '#'),
                ('"/a # b"\t# it\'s "x"', '/a # b', 'the quotes # it\'s "x"'),
                ("'/a' ; NAS", '/a', 'the quotes ; NAS'), ('"/it\'s"', "/it's", 'the quotes'),
                ('/a#b', '/a#b', ''), ("/it's a", "/it's a", ''), ('/a ; b', '/a ; b', '')):
            with self.subTest(text):
                config = parsed('backup_dir = ' + text)
                note = '***NOTE - config backup_dir is %s, without %s (f line 1)' % (value, dropped)
                self.assertEqual((value, {}, (note,) if dropped else ()), (
                    config.settings.backup_dir, config.errors, config.notes))
        self.assertEqual((), parsed('mail_to=  # nobody', 'mail_from=""').settings.mail_to)
        for text in ('"/a', "'/a\"", '/a"', '"/a" b', '"/a"/b', '"', '/a" # "', '"a" "b"'):
            self.assertEqual(['ERROR: config backup_dir has a quote without its other one -> %s '
                              '(f line 1)' % text],
                             list(parsed('backup_dir=' + text).errors.values()))

    def test_a_line_without_equals_sign_is_never_ignored(self):
        for ignore in ('', 'true'):
            for line in 'vm-export db', 'max_backups: 3', '[x]':
                self.assertEqual(('***ERROR not a key=value line: %s (f line 1)' % line,),
                                 parsed(line, ignore_extra_keys=ignore).unexpected)


class Files(PoolCase):
    pool_description = {'vms': [{'name': 'db', 'disks': ['64 KiB']},
                                {'name': 'café', 'disks': ['64 KiB']}]}

    def raw_config(self, data):
        """Write a config of these bytes after the usual head; return its path."""
        return self.put_file('run.cfg', self.read_bytes(self.config()) + data)

    def preview(self, *arguments, **environ):
        return self.vmbackup('password', *(arguments + ('preview',)), **environ)

    def test_dos_lines_old_mac_lines_a_byte_order_mark_and_no_final_newline(self):
        head = self.read_bytes(self.raw_config(b''))
        for data in (head.replace(b'\n', b'\r\n') + b'vm-export=db\r\n',
                     head.replace(b'\n', b'\r') + b'vm-export=db',
                     b'\xef\xbb\xbf' + head + b'vm-export=db', head + b'\tvm-export\t=\tdb\t',
                     b'\xef\xbb\xbf' + (head + b'\tvm-export\t =\t db \t\n').replace(
                         b'\n', b' \t\r\n')):
            done = self.assert_ends(0, self.preview(self.put_file('run.cfg', data)))
            self.assertIn('  vm-export: db', done.lines)
            self.assertIn('  backup_dir        = ' + self.backups, done.lines)

    def test_names_in_utf_8_under_any_locale_and_in_the_files_name_too_which_may_be_relative(self):
        path = self.at('wöchentlich.cfg')
        os.rename(self.raw_config('vm-export=café\n'.encode('utf-8')), path)
        for path, environ in ((path, {}), ('wöchentlich.cfg', {'LC_ALL': 'C'})):
            done = self.assert_ends(0, self.preview(path, **environ))
            self.assertIn('  vm-export: café', done.lines)
            self.assertIn('VmBackup config loaded from: ' + path, done.lines)

    def test_lines_that_are_not_understood_end_a_run_before_the_login(self):
        config = self.raw_config(b'vm-export=db\nmax_backup=3\njust words\n')
        for words in ([], ['preview'], ['preview', 'ignore_extra_keys=False']):
            done = self.command(2, 'password', config, *words)
            error, = [line for line in done.lines if line.startswith('ERROR')]
            self.assertIn('ERROR in config_load, consider ignore_extra_keys=true', error)
            for line in ('unexpected config key: max_backup (%s line 5), perhaps max_backups',
                         'not a key=value line: just words (%s line 6)'):
                self.assertIn('***ERROR ' + line % config, done.lines)
        self.assertEqual([], self.sim.calls())
        config = self.raw_config(b'vm-export=db\nmax_backup=3\n')
        done = self.assert_ends(0, self.preview(config, 'Ignore_Extra_Keys=TRUE'))
        note = '***NOTE - ignored config key: max_backup (%s line 5), perhaps max_backups' % config
        self.assertEqual(1, done.lines.count(note))

    def test_wrong_values_end_a_run_and_a_preview_shows_the_rest_too(self):
        config = self.raw_config(b'vm-export=db\nmax_backups=zero\n')
        for preview in ([], ['preview']):
            done = self.command(2, 'password', config, *preview)
            self.assertIn('ERROR: config max_backups out of range -> zero (%s line 5), '
                          'allowed: 1 to 1000000' % config, done.lines)
            self.assertIn('  vm-export: db', done.lines)
            self.assertIn('ERROR in configuration settings...',
                          done.lines[-1:] if preview else done.lines)
        self.assertEqual([], self.sim.calls('xe'))

    def test_a_missing_file_is_taken_for_a_vm_selector(self):
        missing = self.at('weekend')
        os.symlink('nowhere', missing)
        for name, *preview in (('weekend.cfg', 'preview'), (missing,), (missing, 'preview'),
                               ('./weekend',), ('VM-list.txt', 'preview')):
            with self.subTest(name):
                done = self.command(2, 'password', name, *preview)
                self.assertIn('vm not found: vm-export=' + name, done.output)

    def test_the_example_is_what_the_command_prints(self):
        example = self.read(ROOT, 'example.cfg')
        self.assertEqual(example, self.vmbackup('config').output)
        lines = example.splitlines()
        self.assertLessEqual(len(lines), 120)
        self.assertLessEqual(max(map(len, lines)), 100, max(lines, key=len))
        config = parsed(*lines)
        self.assertEqual(({}, (), ()), (config.errors, config.unexpected, config.notes))
        self.assertEqual(['vm-export=my-vm-name'], list(map(str, config.rules)))

    def test_the_example_has_every_key_in_one_line_each_after_the_ten_that_matter_most(self):
        lines = self.read(ROOT, 'example.cfg').splitlines()
        found = [re.match(r'#?([a-z][a-z_-]+)=', line) for line in lines]
        names = [each.group(1) for each in found if each]
        ten = list(VmBackup.SHOWN_KEYS) + ['exclude', 'vm-export', 'vdi-export']
        first = list(dict.fromkeys(name for name in names if name != 'exclude-disk'))
        self.assertEqual((10, ten), (len(ten), first[:10]))
        rest = [key for key in VmBackup.KEYS if key.name not in ten]
        self.assertEqual([key.name for key in rest], first[10:])
        self.assertEqual(['#%s=%s %s' % (key.name, key.default, key.comment()) for key in rest],
                         [re.sub(' +#', ' #', line) for line in lines[-len(rest):]])

    def test_what_stands_behind_a_key_there_is_no_note_and_other_comments_are_one(self):
        lines = self.read(ROOT, 'example.cfg').splitlines()
        config = parsed(*(re.sub('^#(?=[a-z_]+=)', '', line) for line in lines))
        self.assertEqual(({}, ()), (config.errors, config.notes))
        defaults = {key.name: key.parse(key.default) for key in VmBackup.KEYS}
        given = dict(max_backups=3, keep_last=3, backup_dir='/path/to/backupspace',
                     status_log='/path/to/backupspace/logs/status.log')
        self.assertEqual(dict(defaults, **given), config.settings._asdict())
        self.assertEqual(1, len(parsed('parallel=2 # two').notes))


ODD_LINES = {                          # of a config: what a command of it has to mean, too
    'keys': ['keep_last=0', 'keep_daily=7', 'compress=ZSTD', 'min_free=10%',
             'mail_to=a@b, c@d ,', 'mail_helo=[10.0.0.5]', 'vdi_disks= xvda , XVDC'],
    'quotes': ['mail_smtp_user="a \'b\' #c"', "hook='/x \"y\" ;z'", 'mail_smtp_server="x":5 # y',
               'report_file="  "', 'status_log="/a b " ; c', "mail_from='a@b'"],
    'marks': ['mail_smtp_user=a#b;c = d', 'hook=/x;y #z', 'backup_dir=/a=b', 'mail_smtp_server==',
              'backup_dir_pattern="#%Y-%m-%d %H=%M;%S"', 'mail_smtp_user=a"b\'c'],
    'blanks': [' max_backups \t=\xa03\x0b', 'mail_smtp_user="\xa0a\u3000"',
               'mail_smtp_user=\x1b[2J\x7f\x85\u2028', 'mail_smtp_server=" "'],
    'empty': ['min_free=', 'hook=', "mail_to=''", 'mail_smtp_user=', 'keep_last=""'],
    'alphabets': ['backup_dir=/é/e\u0301/名前/\U0001f4be', 'mail_smtp_user=Ωשﺍ\u200e'],
    'relative': ['backup_dir=b k', 'status_log=../x/./s.log', 'hook=~/h', 'report_file=r;#',
                 'mail_smtp_password_file="p #"'],
    'duplicates': ['max_backups=1', 'max_backups=2 # two', 'vm-export=a', 'vm-export=a:2'],
    'rules': ['exclude=#a', 'vm-export=[x]', 'vm-export=; b', 'vdi-export="c" #', 'vm-export==',
              'exclude-disk=[NOBAK]', 'exclude-disk= # d', 'vm-export=tag: t :3', 'exclude=',
              'vm-export=UUID:1', 'vdi-export=uuid:ABCDEF00-0000-4000-8000-000000000000',
              'vm-export=db:2', 'exclude=.*\xa0', 'vm-export=(é|[^a])+$', 'vm-export=max_backups=2',
              "exclude-disk='a' 'b", 'vm-export=', 'vdi-export=a:b:', 'vm-export=\u2028\x0c'],
}


class Printed(unittest.TestCase):
    """`config FILE` prints a config that gives the same night, wherever it is read."""

    def setUp(self):
        self.place = tempfile.mkdtemp(prefix='vmbackup-test-')
        self.addCleanup(shutil.rmtree, self.place)
        self.path = os.path.join(self.place, 'mine.cfg')

    def printed(self, data, *keys):
        """(Config, text printed for it) of a file with such bytes, None for a mistake in it."""
        with open(self.path, 'wb') as stream:
            stream.write(data)
        output, errors = io.BytesIO(), io.BytesIO()
        status = VmBackup.perform(['config', self.path, *keys], 'VmBackup.py',
                                  VmBackup.Console(output, errors))
        if status:
            self.assertEqual((2, b''), (status, output.getvalue()))
            self.assertRegex(errors.getvalue(), b'ERROR')
            return None
        line = VmBackup.parse_words(['config', self.path, *keys])
        return VmBackup.read_config(line), output.getvalue()

    def assert_same(self, data, *keys):
        """What is printed for it means the same, and is printed for itself; return the Config."""
        found = self.printed(data, *keys)
        if found is None:
            return None
        config, text = found
        here = os.getcwd()
        os.chdir('/')                                  # relative paths are no longer
        try:
            again, twice = self.printed(text)
        finally:
            os.chdir(here)
        self.assertEqual((config.settings, text), (again.settings, twice))
        self.assertEqual(*[[rule._replace(where='') for rule in each.rules]
                           for each in (config, again)])
        lines = text.decode('utf-8').split('\n')
        for key in VmBackup.KEYS:
            self.assertEqual(1, len([line for line in lines if line.startswith(key.name + '=')]))
        return config

    def test_a_config_of_every_kind_is_read_back_the_same(self):
        for kind, lines in ODD_LINES.items():
            for end, head in ('\n', ''), ('\r\n', '\ufeff'), ('\r', ''):
                with self.subTest(kind, end=end):
                    config = self.assert_same((head + end.join(lines) + end).encode('utf-8'))
                    self.assertTrue(config)
                    for line in lines if end == '\n' else ():
                        self.assertTrue(self.assert_same(line.encode('utf-8'), 'parallel=2',
                                                         'hook=' + kind))
        config = self.assert_same(b'extra=1\nvm-export=a', 'ignore_extra_keys', 'max_backups=3',
                                  'mail_smtp_user=a b#c')
        self.assertEqual(('3', 'a b#c'), (config.given['max_backups'][0],
                                          config.settings.mail_smtp_user))

    def test_what_no_config_can_say_or_is_wrong_prints_nothing_on_standard_output(self):
        for data, *keys in ((b'max_backups=0',), (b'nothing=1',), (b'[x]',), (b'vm-export=\xff',),
                            (b'hook="x',), (b'', 'mail_smtp_user=a\nb'), (b'', 'parallel=x'),
                            (b'', 'mail_smtp_user=a\rb'), (b'', 'backup_dir=/\udcff')):
            with self.subTest(data, keys=keys):
                self.assertIsNone(self.printed(data, *keys))
        place = os.path.join(self.place, 'x\' #"y')
        os.mkdir(place)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(place)
        self.assertIsNone(self.printed(b'backup_dir=b'))

    @unittest.skipUnless(hypothesis, 'needs the package hypothesis')
    def test_so_are_those_that_hypothesis_makes_up(self):
        hypothesis.configuration.set_hypothesis_home_dir(self.place)
        names = [key.name for key in VmBackup.KEYS] + list(VmBackup.METHODS)
        text = st.text(st.characters(blacklist_categories=['Cs'], blacklist_characters='\0\r\n'),
                       max_size=6)
        pieces = st.sampled_from(['"', "'", ' #', ' ;', '=', ' ', '\xa0', ':3', 'tag:', '/a', '..',
                                  '[', '1', 'yes', 'True', 'a@b', ',', '%Y%m%d%H%M%S', '\\'])
        values = st.lists(pieces | text, max_size=5).map(''.join)
        lines = st.lists(st.tuples(st.sampled_from(names), values), max_size=6)
        hypothesis.settings(deadline=None, database=None, derandomize=not full(),
                            max_examples=3000 if full() else 300)(hypothesis.given(lines)(
                                self.assert_lines_same))()

    def assert_lines_same(self, lines):
        """Those of a config that can be used are printed so that they mean the same."""
        good = ['%s=%s' % each for each in lines if not parsed('%s=%s' % each).errors]
        self.assert_same('\n'.join(good).encode('utf-8'))
