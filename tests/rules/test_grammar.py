"""The one grammar of all commands: every one of them in every form, right and wrong."""

import io
import os
import re
import shlex
import termios
import unittest
import unittest.mock
from typing import NamedTuple

import VmBackup
from tests.rules.test_settings import KEYS
from tests.tools.support import PoolCase, parsed


class Row(NamedTuple):
    """A command as it is run here."""
    words: str                 # behind it
    says: str                  # a part of what it prints
    status: int = 0
    former: str = ''           # how a release before it said the same


# {config} selects the VM {vm}, which is called as a command; {backup} is its backup.
ROWS = {
    'backup': Row('{config}', 'VmBackup ended - Success', former='local {config}'),
    'preview': Row('{config}', 'SUCCESS preview', former='local {config} preview'),
    'list': Row('{config} vm={vm}', ' good, '),
    'verify': Row('{config} backups=all', 'all checksums match'),
    'restore': Row('vm-export={vm} from={config} preview', 'SUCCESS preview of restore',
                   former='local restore={vm} from={config} preview=True'),
    'extract': Row('vm-export={vm} from={config}', 'disk: xvda, position 0, '),
    'detach': Row('nothing from={config}', 'no attached disk has this uuid: nothing', 2),
    'test-restore': Row('vm-export={vm} from={config}', 'can be restored',
                        former='local test-restore={vm} from={config}'),
    'stream': Row('vm-export={vm}', 'standard output gets the archive alone', 2),
    'prune': Row('{config} preview',
                 'VmBackup prune ended - Success'),
    'protect': Row('{backup}', 'protected: '),
    'unprotect': Row('{backup}', 'unprotected: '),
    'status': Row('{config} max_age=2d', 'VMBACKUP OK'),
    'check-config': Row('{config}', 'vm-export={vm}'),
    'test-mail': Row('{config}', 'mail_to', 2),
    'test-ping': Row('{config}', 'ping_url', 2),
    'create-password-file': Row('{file}', 'password file created: {file}',
                                former='password create-password-file={file}'),
    'config': Row('{config}', 'vm-export={vm}'),
    'example': Row('', 'Usage-examples:'),
    'help': Row('list', 'Usage: VmBackup.py list ')}


def said(*words):
    """(exit status, output) of a command line that needs no process of its own."""
    stream = io.BytesIO()
    with unittest.mock.patch.dict(os.environ, VMBACKUP_XAPI_URL='unix:/nonexistent/xapi'):
        status = VmBackup.perform(list(words), './VmBackup.py', VmBackup.Console(stream, stream))
    return status, stream.getvalue().decode('utf-8')


def sample(name, allowed):
    """A value that an option, or a key of the config file, can have."""
    if allowed is VmBackup.KEY.get(name):
        return next(text for text in KEYS[name][1] if text)
    return allowed.allowed.split(', ')[0] or 'x'


def spellings(name, value):
    """The same option in many ways, each a list of words."""
    for shown in (name, name.replace('_', '-'), name.upper(), name.title()):
        yield from ([shown + '=' + value], ['--%s=%s' % (shown, value)], ['--' + shown, value])


class FedCase(PoolCase):
    def fed(self, data, words, **environ):
        """A run with this on its standard input."""
        with open(self.put_file('typed', data), 'rb') as stream:
            return self.finish(self.start_with(words, environ, stdin=stream))


class Table(FedCase):
    pool_description = {'vms': [{'name': 'list', 'disks': ['64 KiB']}]}

    def test_each_command_has_a_row_here_and_is_run_in_its_forms(self):
        self.assertEqual(list(VmBackup.COMMANDS), list(ROWS))
        places = dict(vm='list', config=self.config('vm-export=list'), file=self.at('pass'))
        for name, row in ROWS.items():
            for line in (name + ' ' + row.words, row.former):
                if line:
                    with self.subTest(line):
                        done = self.fed(b'password\n', shlex.split(line.format(**places)),
                                        VMBACKUP_XAPI_URL=self.sim.unix_url)
                        self.assert_ends(row.status, done)
                        self.assertIn(row.says.format(**places), done.output)
            if name == 'backup':
                places['backup'] = self.newest('list')
        self.assertEqual('cGFzc3dvcmQ=', self.read('pass'))

    def test_login_is_local_or_with_a_password_from_a_file_or_from_standard_input(self):
        config = self.config('vm-export=list')
        for name in ('local', 'list', 'pass'):         # a word, but not of the options
            self.command(0, 'password', 'create-password-file=' + name)
        for words in (('preview', config, '--password-file', 'local'),
                      ('backup', config, 'preview', 'password-file=list'),
                      ('preview', config, 'password-stdin'), ('./list', config, 'preview'),
                      ('./local', config, 'preview'), ('pass', config, 'preview')):
            self.assert_ends(0, self.fed(b'password\r\nmore', words))
        for words, remark in (
                (('preview', config), '(run it in dom0, or give password-file=FILE)'),
                (('local', config, 'preview'), '(run it in dom0, or give password-file=FILE)'),
                (('lsit', config, 'preview'), '(did you mean `list`?)'),
                (('Preview', config, 'preview'), '(did you mean `preview`?)'),
                (('--config', config, 'preview'), '(did you mean `config`?)'),
                (('no.pass', config, 'preview'), '(if a password file was meant: there is no such '
                                                 'file)'),
                (('s3cret', config, 'preview'), '')):
            line = self.command(2, *words).lines[-1]
            self.assertIn('SESSION_AUTHENTICATION_FAILED', line)
            self.assertIn(remark, line)
            self.assertNotIn('s3cret', line)
            if 'dom0' not in remark and remark:        # where any word would do as the password
                done = self.command(2, *words, VMBACKUP_XAPI_URL=self.sim.unix_url)
                self.assertIn('xapi takes any password at', done.lines[-1])
                self.assertIn(remark, done.lines[-1])


class Spellings(unittest.TestCase):
    def test_an_option_has_many_forms_and_may_stand_anywhere(self):
        for name, command in VmBackup.COMMANDS.items():
            about = ['x'] if '<' in command.words else []
            for option, allowed in command.options.items():
                value = sample(option, allowed)
                if allowed.allowed == VmBackup.SWITCH:
                    value, (first, *others) = 'yes', [
                        [option], ['--' + option], ['--' + option.upper().replace('_', '-')],
                        *spellings(option, 'yes')]
                    others = [words for words in others if len(words) == 1]
                else:
                    first, *others = spellings(option, value)
                with self.subTest(command=name, option=option):
                    line = parsed(name, *about, *first)
                    self.assertEqual((name, tuple(about)), (line.command, line.words))
                    self.assertEqual(value, {**line.keys, **line.options}[option])
                    self.assertEqual((value,) * (option == 'vm'), line.only)
                    for words in others:
                        self.assertEqual(line, parsed(name, *words, *about), words)
                        self.assertEqual(line, parsed(name, *about, *words), words)

    def test_a_flag_can_be_no_and_of_a_repeated_option_the_last_one_counts(self):
        for name, command in VmBackup.COMMANDS.items():
            for option, allowed in command.options.items():
                if allowed.allowed == VmBackup.SWITCH and option != 'preview':
                    for no in ('no', 'False'):
                        line = parsed(name, option, 'x', '--%s=%s' % (option, no))
                        self.assertEqual('', line.options[option])
        line = parsed('backup', 'x', 'vm=a', '--vm', 'b', 'parallel=2', '--parallel', '3')
        self.assertEqual((('a', 'b'), {'parallel': '3'}), (line.only, {
            name: text for name, text in line.keys.items() if name != 'vm'}))

    def test_behind_two_dashes_there_are_no_options(self):
        self.assertEqual(('a', '--help', 'list', 'quiet'),
                         parsed('backup', 'a', '--', '--help', 'list', 'quiet').words)
        self.assertEqual(('-x',), parsed('restore', '--', '-x').words)

    def test_former_forms_say_the_same(self):
        for former, line in (
                ('local x.cfg preview compress=True', 'backup x.cfg preview compress=True'),
                ('local VM-export=db:2 Pre_Clean=true', 'backup VM-export=db:2 pre_clean=true'),
                ('local x.cfg IGNORE_EXTRA_KEYS=True', 'backup x.cfg ignore_extra_keys'),
                ('local x.cfg vm=web', 'backup x.cfg vm=web'),
                ('local Restore=web from=x.cfg', 'restore web from=x.cfg'),
                ('local restore=vm-export=list', 'restore vm-export=list'),
                ('local test-restore=.* sr=x', 'test-restore .* sr=x')):
            self.assertEqual(parsed(*line.split()), parsed(*former.split()))
        for words, command, password, about in (
                ('pass backup=x.cfg', 'backup', 'pass', 'backup=x.cfg'),
                ('h x.cfg', 'backup', 'h', 'x.cfg'), ('pass -x', 'backup', 'pass', '-x'),
                ('pass restore=list', 'restore', 'pass', 'list'),
                ('list create-password-file=p', 'create-password-file', 'list', 'p')):
            self.assertEqual((command, password, (about,)), parsed(*words.split())[:3], words)


class Help(unittest.TestCase):
    def examples(self, text):
        """The command lines in a text, each as its words; all can be understood."""
        text = re.sub(r'\AVmBackup.*', '', text)
        lines = re.findall(r'^ *VmBackup\.py ([^<\n]*?)(?: {2,}.*| >.*)?$', text, re.MULTILINE)
        found = [shlex.split(line) for line in lines if not line.startswith('COMMAND')]
        for words in found:
            self.assertTrue(parsed(*words).command, words)
        return found

    def test_each_command_has_its_page_which_needs_nothing(self):
        for name, command in VmBackup.COMMANDS.items():
            with self.subTest(name):
                status, page = said('help', name)
                self.assertEqual(0, status)
                for words in ((name, '--help'), (name, '-h'), ('--help', name), (
                        name, '/nonexistent', '--colour=red', '-h')):
                    self.assertEqual((0, page), said(*words))
                lines = page.splitlines()
                self.assertLessEqual(len(lines), 50)
                self.assertLessEqual(max(map(len, lines)), 80, max(lines, key=len))
                self.assertNotRegex(page, '[{}]')
                self.assertGreaterEqual(len(self.examples(page)), 2)
                if command.options:
                    self.assertIn('Usage: VmBackup.py %s ' % name, page)
                    self.assertIn('Exit status: 0 ', page)

    def test_each_key_has_its_page_with_all_of_its_meaning(self):
        for key in VmBackup.KEYS:
            if key.name not in VmBackup.COMMANDS:
                status, page = said('help', key.name)
                self.assertEqual(0, status)
                self.assertTrue(page.startswith(f'{key.name}={key.default} ('), page)
                self.assertTrue(page.endswith(key.meaning), page)

    def test_help_alone_is_one_screen_with_a_line_for_each_command(self):
        status, page = said('help')
        for words in (['-h'], ['--help'], ['HELP'], ['--Help'], ['secret', 'x', '--help']):
            self.assertEqual((0, page), said(*words))
        for name, command in VmBackup.COMMANDS.items():
            self.assertIn('\n  %-22s%s\n' % (name, command.help.split('\n')[0]), page)
        self.assertEqual(4, len(self.examples(page)))
        self.assertLessEqual(len(page.splitlines()), 36)
        for words in (['--version'], ['version'], ['--version', 'list']):
            self.assertEqual((0, 'VmBackup.py %s\n' % VmBackup.VERSION), said(*words))
        self.assertEqual('version', parsed('version', 'x.cfg').password)
        for word, start in (('CONFIG', '# Usage-config-file: '), ('Example', 'Usage-examples:')):
            self.assertTrue(said(word)[1].startswith(start))
        self.assertGreater(len(self.examples(said('example')[1])), 8)

    def test_without_words_there_is_the_usage_and_status_2(self):
        for words in ([], ['password'], [''], ['local'], ['list=x.cfg'], ['secret']):
            status, page = said(*words)
            self.assertEqual(2, status)
            self.assertIn('./VmBackup.py  <password> <config-file|vm-selector> [preview]', page)
            self.assertNotIn('secret', page)


class Wrong(PoolCase):
    """What cannot be meant ends with 2, and one line says what to do; nothing is done."""
    pool_description = {'vms': []}

    def refused(self, words, *parts):
        """The line of a command line's error, which has these parts and no password."""
        with self.subTest(words):
            status, text = said(*words)
            self.assertEqual(3 if words[0] == 'status' else 2, status, text)
            self.assertEqual(1, text.count('\n'), text)
            for part in parts:
                self.assertIn(part, text)
            self.assertNotIn('s3cret', text)
            self.assertFalse(os.path.exists(self.status_log))
            return text

    def test_a_command_in_another_place_is_told_with_the_line_that_was_meant(self):
        path = self.config('vm-export=db')
        for name, command in VmBackup.COMMANDS.items():
            other = 'verify' if name == 'list' else 'list'
            login = ' password-file=FILE' if 'password_file' in command.options else ''
            for words, meant in (
                    (['local', name, path], path), ([path, name], path),
                    ([other, name, path], path), (['s3cret', name, path], path + login),
                    (['local', path, name], path), (['s3cret', path, name], path + login),
                    (['local', name], command.words), (['s3cret', name], command.words),
                    ([path, 'vm=web', name], path + ' vm=web'),
                    ([path, name, '--vm', 'web'], path + ' --vm web')):
                if name == 'preview' and words[1] != name:
                    continue                           # it is an option there
                line = self.refused(words, 'ERROR %s is a command and comes first: VmBackup.py '
                                           '%s %s (' % (name, name, meant),
                                    'a VM that is called so is vm-export=' + name)
                pasted = re.search(r'first: VmBackup\.py (.*) \(a VM', line or '')
                if pasted and path in meant and command.words and 'web' not in meant:
                    self.assertEqual(name, parsed(*shlex.split(pasted.group(1))).command)
        self.refused(['backup', '--quiet', 'list'], 'list is a command')
        self.refused([path, 'backup', 'x.cfg'], 'backup x.cfg password-file=%s (' % path)
        self.refused(['preview', 'prune', path], 'VmBackup.py prune %s preview (' % path)

    def test_no_password_is_shown_whatever_follows_it_also_as_json(self):
        path = self.config('vm-export=db')
        for words in (['backup', 's3cret', path], ['backup', 'password=s3cret', path],
                      ['preview', path, '--password=s3cret'], ['preview', path, '-ps3cret'],
                      ['backup', 's3/cret', path], ['list', path, 's3cret'],
                      ['preview', path, '--password-stdin=s3cret'], ['restore', 'web', 's3cret']):
            self.assertNotIn('cret', self.refused(words).replace('a password', ''))
        for words in (['s3cret', path, 'json'], ['s3cret', 'list', path, '--json=yes'],
                      ['s3cret', '--json']):
            status, text = said(*words)
            self.assertEqual(2, status)
            self.assertNotIn('s3cret', text)

    def test_missing_and_further_words(self):
        for name, command in VmBackup.COMMANDS.items():
            usage = 'usage: VmBackup.py %s ' % name
            if command.words.startswith('<'):
                for words in ([], [''], ['--'], ['x', ''][:2 * command.words.endswith('...')]):
                    self.refused([name, *words], usage + command.words)
            if not command.words.endswith('...'):
                about = ['x'] * command.words.count('<')
                self.refused([name, *about, 'y'], 'one word too many behind %s ' % name)
                self.refused([name, *about, '--', 'y'], 'one word too many behind %s ' % name)
        for words in (['restore'], ['restore', ''], ['restore', 'web', 'vm=web'], ['config', '']):
            self.refused(words, 'usage: VmBackup.py ' + words[0])
        self.refused(['help', 'lits'], 'no command: lits, perhaps list')

    def test_unknown_options_have_no_abbreviations_and_the_nearest_is_named(self):
        for name, command in VmBackup.COMMANDS.items():
            about, see = ['x'] * command.words.count('<'), ' (see VmBackup.py help %s)' % name
            for word in ('--colour', '-x', '--colour=red', 'colour=red'):
                self.refused([name, *about, word],
                             'unknown option: %s%s' % (word.replace('red', ''), see))
            for option, allowed in command.options.items():
                if len(option) > 2:
                    for word in ('--' + option[:-1], '--%s=x' % option[:-1].replace('_', '-')):
                        self.refused([name, *about, word], 'unknown option: ', ', perhaps ')
        for word, meant in (('previw', 'preview'), ('compress', 'compress='), (
                '--Parallel-per-srs=2', 'parallel_per_sr='), ('--quit', 'quiet')):
            self.refused(['backup', 'x', word], ', perhaps ' + meant)
            self.refused(['s3cret', 'x', word], ', perhaps ' + meant)
        self.refused(['s3cret', 'x', 'vm-export=y'], 'one word too many behind backup ')

    def test_missing_and_wrong_values(self):
        for name, command in VmBackup.COMMANDS.items():
            for option, allowed in command.options.items():
                see = '; see VmBackup.py help %s)' % name
                if allowed.allowed == VmBackup.SWITCH:
                    for value in ('', 'maybe'):
                        self.refused([name, 'x', '%s=%s' % (option, value)],
                                     'invalid value: %s= (invalid, allowed: ' % option, see)
                    continue
                for words in (['--' + option], ['--' + option, '--colour']):
                    self.refused([name, 'x', *words], '--%s needs a value' % option)
                bad = [text for text in KEYS[option][2] if text.isprintable()][:2] if (
                    allowed is VmBackup.KEY.get(option)) else ['', 'maybe'] if (
                        allowed.allowed) else ['']
                for value in bad:
                    self.refused([name, 'x', '%s=%s' % (option, value)],
                                 'invalid value: %s=%s (' % (
                                     option, VmBackup.public(option, value)), see)

    def test_a_vm_selector_has_many_forms_and_may_be_called_like_a_directory(self):
        os.mkdir(self.at('db'))
        for selector, rule in (('db', 'vm-export=db'), ('web.*', 'vm-export=web.*'),
                               ('VM-EXPORT=db:2', 'vm-export=db:2'),
                               ('Vdi-Export=db', 'vdi-export=db')):
            for words in (['local', selector], ['backup', selector]):
                config = VmBackup.config_of(parsed(*words))
                self.assertEqual([rule], list(map(str, config.rules)))
        line = parsed('preview', 'web', 'vdi-export=db', 'tag:x')
        self.assertEqual(['vm-export=web', 'vdi-export=db', 'vm-export=tag:x'],
                         list(map(str, VmBackup.config_of(line).rules)))
        for words in (['local', ''], ['backup', ''], ['s3cret', '', 'preview']):
            self.refused(words, 'usage: VmBackup.py backup ')


class Typed(FedCase):
    """A password that is typed, or piped."""
    pool_description = {'vms': []}
    # A session of its own, whose terminal is standard input.
    prelude = ('import fcntl, os, termios\nos.setsid()\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)')

    def typed(self, keys):
        """The status of a run on a terminal where somebody types, and all that it shows."""
        keyboard, terminal = os.openpty()
        child = self.start_with(['create-password-file', 'p'], stdin=terminal, stdout=terminal)
        shown = b''
        while b'Password: ' not in shown:
            shown += os.read(keyboard, 1000)
        self.wait_for(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO, 'no echo')
        os.write(keyboard, keys)
        status = child.wait()
        self.assertTrue(termios.tcgetattr(terminal)[3] & termios.ECHO)
        shown += os.read(keyboard, 10000)
        os.close(keyboard)
        os.close(terminal)
        return status, shown.decode('utf-8')

    def test_a_terminal_does_not_show_it(self):
        status, shown = self.typed('geheim ß\n'.encode('utf-8'))
        self.assertEqual(0, status, shown)
        self.assertNotIn('geheim', shown)
        self.assertEqual('geheim ß', VmBackup.read_password_file(self.at('p'), print))

    def test_who_changes_their_mind_leaves_no_file_and_a_terminal_that_shows_again(self):
        for keys, ends in ((b'\n', 2), (b'\x04', 2), (b'half\x03', 130)):
            status, shown = self.typed(keys)
            self.assertEqual(ends, status, shown)
            self.assertNotIn('Traceback', shown)
            self.assertFalse(os.path.exists(self.at('p')))

    def test_a_pipe_may_have_any_bytes(self):
        self.prelude = ''
        for data, status in ((b'pass', 0), (' pä$s \r\nx'.encode('utf-8'), 0), (b'', 2),
                             (b'\nx', 2), (b'a\0b\n', 2), (b'\xff\xfe\n', 2)):
            for environ in ({}, {'LC_ALL': 'C'}):
                done = self.fed(data, ['create-password-file', 'p'], **environ)
                self.assert_ends(status, done)
                if status:
                    self.assertEqual('ERROR no password on standard input', done.lines[-1])
                else:
                    self.assertEqual(data.decode('utf-8').split('\r')[0],
                                     VmBackup.read_password_file(self.at('p'), print))
        self.prelude = 'import sys; sys.stdin = None'
        self.assertIn('ERROR no password', self.command(2, 'create-password-file', 'q').output)
