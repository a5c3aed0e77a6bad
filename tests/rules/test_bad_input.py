"""Bad input: whatever stands in the place of a config, a value, a word or a password file.

The answer is one clear line, exit status 2, and nothing touched: no call that changes the pool,
and the backup directory as it was. test_settings.py and test_login.py have the usual mistakes.
"""

import os
import random
import re
import shutil
import socket
import tempfile
import unittest

import VmBackup
from tests.faults.faulting import full, seed
from tests.runs import test_store
from tests.runs.test_store import AS_ANYBODY
from tests.tools.support import LIMIT, Done, PoolCase, parsed

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError:
    hypothesis = None

READING = re.compile(r'session\.(login_with_password|logout|get_\w+)$|\w+\.get_\w+$')
# What is no number, number of anything, date, word or path, in any key that wants one.
RUBBISH = ('', '-1', '+1', '--', '1_000', '1e3', '1e400', '0x10', 'nan', 'inf', '٤', '１０', '1,5',
           '1 2', '9' * 400, 'true false', 'yes,no', '$(id)', '%', '%%', '%d%%', '\\', '"',
           "'", '{}', '\x00', '\x1b[31m', '\x7f', '\u2028', '\x85', '\ufeff', '=', '=1', '#',
           'x' * 70000, '*', '[', '..', '-5G', '101%', '-1%', '5X', 'None none', '50 percent')


class BadInputCase(PoolCase):
    """A test with a pool of one small VM and an old backup of it."""

    pool_description = {'vms': [{'name': 'db', 'disks': ['64 KiB'], 'ran': True}]}

    def setUp(self):
        super().setUp()
        self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'success', 'db.xva')
        self.found = self.on_disk()

    def finish(self, child):
        """Wait for VmBackup.py; bytes that are no text may come back as they were given."""
        output, _ = child.communicate(timeout=LIMIT)
        return Done(child.returncode, output.decode('utf-8', 'surrogateescape'))

    def place(self, path, start=b''):
        """`FILE line N` of a config's last line that starts so."""
        lines = self.read_bytes(path).rstrip(b'\n').split(b'\n')
        number = max(number for number, line in enumerate(lines, 1) if line.startswith(start))
        return '%s line %d' % (path, number)

    def on_disk(self):
        """{path: mode, size} of everything below the backup directory but the records of runs."""
        found = {}
        for directory, names, files in os.walk(self.backups):
            for name in names + files:
                status = os.lstat(os.path.join(directory, name))
                if not name.startswith(('.run-', '.locks')):
                    found[os.path.join(directory, name)] = (status.st_mode, status.st_size)
        return found

    def assert_untouched(self, output=''):
        """Nothing was changed, on disk or in the pool; nothing was even asked of xe."""
        self.assertEqual(self.found, self.on_disk(), output)
        self.assertEqual([], self.sim.calls('xe'), output)
        changing = [call.name for call in self.sim.calls('xapi') if not READING.match(call.name)]
        self.assertEqual([], changing, output)

    def assert_refused(self, done, *words):
        """One line says what is wrong, where; exit status 2; nothing touched."""
        self.assert_ends(2, done)
        self.assertNotIn('a bug in', done.output)
        lines = [line for line in done.lines if all(word in line for word in words)]
        self.assertTrue(lines, '%s: %s' % (words, done.output[-2000:]))
        self.assert_untouched(done.output)
        return lines[0]

    def run_without_rights(self, *arguments):
        """Run VmBackup.py as somebody who may not read and write every file."""
        return self.finish(self.start_with(arguments, prelude=AS_ANYBODY))


class NoConfigs(BadInputCase):
    def refuse(self, path, *words, only_preview=False):
        """Neither a run nor a preview takes this for a config."""
        for preview in [['preview'], []][:1 if only_preview else 2]:
            with self.subTest(path=path, preview=preview):
                self.assert_refused(self.vmbackup('password', path, *preview), *words)

    def test_an_archive_a_program_an_image(self):
        for name, data in (('a.xva', b'ova.xml\0' + b'\0' * 504), ('b', b'\x7fELF\x02\x01\x01\0'),
                           ('c.png', b'\x89PNG\r\n\x1a\n\0'), ('d.gz', b'\x1f\x8b\x08\0'),
                           ('e.txt', 'vm-export=db\n'.encode('utf-16')),
                           ('f.txt', 'vm-export=db\n'.encode('utf-32-be'))):
            self.put_file(name, data)
            self.refuse(self.at(name), 'ERROR', self.at(name))

    def test_a_file_of_100_megabytes_is_not_read_to_its_end(self):
        for name, head in (('zeros', b''), ('text', b'# comment\n' * 200000)):
            with open(self.at(name), 'wb') as stream:
                stream.write(head)
                stream.truncate(100 << 20)
            self.refuse(self.at(name), 'ERROR', 'over 1 MiB', self.at(name))
        self.assertEqual([], self.sim.calls())

    def test_directories_devices_sockets_and_pipes(self):
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(self.at('socket'))
        os.mkfifo(self.at('pipe.cfg'))
        os.symlink('pipe.cfg', self.at('link.cfg'))
        self.refuse(self.at('socket'), 'ERROR', 'config file', self.at('socket'))
        self.refuse(self.backups, 'cannot read config file %s: Is a directory' % self.backups)
        for path in (self.at('pipe.cfg'), self.at('link.cfg'), '/dev/zero', '/dev/null',
                     '/dev/urandom', '/dev/stdin'):
            self.refuse(path, 'ERROR', 'not a file', path)
        self.assertEqual([], self.sim.calls())

    def test_links_that_lead_nowhere_or_round(self):
        os.symlink('nowhere', self.at('dangling.cfg'))
        os.symlink('round.cfg', self.at('round.cfg'))
        for name in ('dangling.cfg', 'round.cfg'):
            self.refuse(self.at(name), 'vm not found: vm-export=' + self.at(name))

    def test_a_file_that_may_not_be_read_or_not_be_reached(self):
        config = self.config('vm-export=db')
        os.chmod(config, 0)
        for preview in ([], ['preview']):
            done = self.run_without_rights('password', config, *preview)
            self.assert_refused(done, 'ERROR', 'cannot read config file ' + config,
                                'Permission denied')
        os.mkdir(self.at('closed'))
        config = shutil.move(config, self.at('closed'))
        os.chmod(self.at('closed'), 0)
        self.addCleanup(os.chmod, self.at('closed'), 0o700)
        self.assert_refused(self.run_without_rights('password', config), config)

    def test_files_of_the_kernel_end_at_their_end(self):
        for path in ('/proc/self/status', '/proc/self/environ', '/proc/self/mem'):
            if os.path.exists(path):                   # a run of text tells the default status_log
                self.refuse(path, 'ERROR', path, only_preview=True)

    def test_an_empty_config_backs_up_nothing_and_says_so(self):
        for data in (b'', b'\n', b'\xef\xbb\xbf', b'# nothing\n', b'\r\n\t \r\n'):
            path = self.at('empty.cfg')
            self.put_file(path, data + os.fsencode('\nstatus_log=%s\nbackup_dir=%s\n' % (
                self.status_log, self.backups)))
            self.refuse(path, 'ERROR no VMs loaded')


class Spellings(BadInputCase):
    def preview_of(self, data, *words):
        """A preview of a config with these bytes after its head, or in its head's place."""
        config = self.config()
        head = self.read_bytes(config)
        self.put_file(config, data(head) if callable(data) else head + data)
        return self.vmbackup('password', config, 'preview', *words)

    def test_what_is_not_utf_8_is_told_with_its_line_wherever_it_stands(self):
        for data, line in (
                (b'# caf\xe9\nvm-export=db\n', b'# caf'), (b'caf\xe9=1\n', b'caf'),
                (b'vm-export=db\nexclude=caf\xe9\n', b'exclude'), (b'\xa0vm-export=db\n', b'\xa0'),
                (b'vm-export=db\n\xe9', b'\xe9'), (b'vm-export=\xc3', b'vm'),
                (b'vm-export=\xed\xa0\x80', b'vm'), (b'vm-export=\xf5\x80\x80\x80', b'vm'),
                (b'vm-export=\xc0\xaf', b'vm')):
            done = self.preview_of(data)
            self.assert_refused(done, self.place(self.at('run.cfg'), line) +
                                ' is not UTF-8 text', 'save it as UTF-8')

    def test_only_line_ends_end_a_line(self):
        for letter in ('\x0b', '\x0c', '\x1c', '\x85', '\u2028', '\u2029'):
            done = self.preview_of(('# comment%svm-export=nothing\nvm-export=db\n' %
                                    letter).encode('utf-8'))
            self.assertEqual(0, done.status, done.output)
            self.assertIn('  vm-export: db', done.lines)

    def test_a_mark_in_the_midst_is_part_of_no_key_and_a_very_long_line_is_one_of_the_log(self):
        for data, words in ((b'\xef\xbb\xbfvm-export=db\n', 'unexpected config key'),
                            (b'x' * 300000 + b'=1\n', 'unexpected config key'),
                            (b'vm-export=' + b'(' * 100000 + b'\n', 'invalid regex')):
            self.assert_refused(self.preview_of(data), words, self.place(self.at('run.cfg')))

    def test_control_characters_never_reach_the_terminal(self):
        for data in (b'\x1b]0;title\x07=1\n', b'max_backups=\x1b[2J\n', b'vm-export=\x1b[2J\n',
                     b'\x08\x08x\n'):
            done = self.assert_ends(2, self.preview_of(data))
            self.assertNotRegex(done.output.replace('\n', ''), '[\x00-\x1f\x7f]')


class Values(BadInputCase):
    @staticmethod
    def parsed(name, text):
        """The Config of one line, read as from a file."""
        return VmBackup.parse_config(['%s=%s' % (name, text)], 'f')

    def test_no_value_of_any_key_is_anything_but_taken_or_named(self):
        default = VmBackup.parse_config([]).settings
        for key in VmBackup.KEYS:
            for text in RUBBISH:
                with self.subTest(key=key.name, text=text[:20]):
                    config = self.parsed(key.name, text)
                    self.assertEqual((), config.unexpected)
                    if config.errors:
                        error, = config.errors.values()
                        self.assertRegex(error, r'^ERROR: config %s ' % key.name)
                        self.assertIn('(f line 1)', error)
                        self.assertEqual(default, config.settings)

    def test_targets_that_cannot_be_backup_directories(self):
        self.put_file('file', 'precious')
        os.mkfifo(self.at('pipe'))
        os.symlink('loop', self.at('loop'))
        for target in (self.at('file'), self.at('file', 'x'), self.at('pipe'),
                       self.at('loop'), '/dev/null', '/proc', '/proc/self', '/' + 'x' * 300,
                       '/x' * 3000):
            with self.subTest(target[:40]):
                self.assert_refused(self.back_up('vm-export=db', backup_dir=target), 'ERROR',
                                    'backup_dir', target[:200])
        self.assertEqual('precious', self.read('file'))

    def test_a_name_pattern_that_no_directory_can_have_is_refused_before_anything_is_done(self):
        for pattern in ('x' * 250 + '%Y%m%d%H%M%S', '%Y%m%d%H%M%S' + 'é' * 130,
                        '.deleting-%Y%m%d%H%M%S', '.deleting-backup-%Y-%m-%d-(%H:%M:%S)'):
            with self.subTest(pattern[:20]):
                done = self.back_up('vm-export=db', backup_dir_pattern=pattern)
                self.assert_refused(done, 'ERROR', 'backup_dir_pattern')

    def test_a_text_that_only_the_mail_uses_spoils_only_the_mail(self):
        self.script = self.changed_script(MAIL_PAUSE=0)
        for name, text in (('mail_smtp_server', '\x01 $(id)'), ('mail_smtp_user', 'x' * 5000)):
            with self.subTest(name):
                self.ends(1, 'vm-export=db', mail_to='a@b', mail_smtp_port='1',
                          mail_smtp_security='none', **{name: text})
                self.assertIn('vmbackup.py,end,SUCCESS,S:1 W:0 E:0', self.status())


class Words(BadInputCase):
    def refused(self, *arguments):
        with self.subTest(arguments):
            done = self.vmbackup(*arguments)
            self.assert_refused(done, 'ERROR')
            self.assertLess(len(done.lines), 30, done.output)
            return done

    def test_further_words_that_mean_nothing(self):
        config = self.config('vm-export=db')
        for word in ('=', '=x', ' ', 'preview ', ' preview', 'preview=', 'preview,compress=zstd',
                     'compress==zstd', 'compress=zstd=', 'compress =zstd', 'pre_clean=True ',
                     '-n', '--help', '*', '$(id)', 'compress=٤', 'max_backups=0',
                     'backup_dir=', 'vm-export=db', 'exclude=db'):
            for words in ([word], ['preview', word], [word, 'preview']):
                with self.subTest(words), self.assertRaises(VmBackup.UsageError):
                    parsed('password', config, *words)
        for words in (['compress=zstd', 'preview', '=x'], ['\udcff'], ['compress=\udcff'],
                      ['x' * 100000], ['create-password-file=' + self.at('p')]):
            self.refused('password', config, *words)
        self.assertFalse(os.path.exists(self.at('p')))
        done = self.refused('password', config, 'a\nERROR faked\r\x1b[31m')
        self.assertEqual(1, len(done.lines))
        self.assertNotRegex(done.output.rstrip('\n'), '[\x00-\x1f\x7f]')
        self.assertEqual([], self.sim.calls())

    def test_selectors_that_select_nothing(self):
        for word in ('[', '*', '(?P<', '(', 'db:x', 'db:-1', 'nope', 'vm-export=nope',
                     'vdi-export=nope', 'vdi-export=', 'vm-export=[', '\udcff', 'a\nb', ':', '=',
                     'exclude=db', '-', 'x' * 100000, '(a' * 5000, 'nope{99999}'):
            self.refused('password', word, 'preview')
        self.assertEqual([], self.sim.calls('xe'))

    def test_words_in_any_number_and_order_never_raise(self):
        chance = random.Random(seed())
        words = ['', 'password', 'preview', '=', 'compress=', 'compress=zstd', 'db', '[',
                 'vm-export=db', 'vdi-export=', 'pre_clean=true', 'ignore_extra_keys=x', '\udcff',
                 'create-password-file=', 'local', 'a=b', '-', '.', '..', '/', '/dev/null', '*:3']
        for _ in range(2000):
            chosen = [chance.choice(words) for _ in range(chance.randrange(2, 6))]
            try:
                config = VmBackup.config_of(parsed(*chosen))
            except VmBackup.UsageError as error:
                self.assertRegex(str(error), 'see VmBackup.py help|^usage: VmBackup.py |'
                                             'comes first: VmBackup.py|is empty$|stands alone: ')
            except VmBackup.ConfigError as error:
                self.assertIn(str(error), ('cannot read config file /dev/null: not a file',
                                           'cannot read config file /: Is a directory'))
            else:
                self.assertEqual('', config.path)
                self.assertTrue(config.rules)


class PasswordFiles(BadInputCase):
    def bad_files(self):
        os.mkdir(self.at('directory'))
        os.mkfifo(self.at('pipe'))
        contents = {'empty': b'', 'blank': b' \n', 'plain': b'password', 'zeros': b'\0' * 64,
                    'binary': bytes(range(256)), 'half': b'cGFzc3dvcmQ', 'lines': b'cGFz\nc3dv',
                    'not-text': b'/w==', 'huge': b'A' * (2 << 20)}
        for name, data in contents.items():
            self.put_file(name, data)
            os.chmod(self.at(name), 0o600)
        return sorted(self.at(name) for name in contents)

    def test_each_is_told_in_one_line_and_nobody_is_asked_for_a_login(self):
        config = self.config('vm-export=db')
        for number, path in enumerate(self.bad_files()):
            with self.subTest(path=path):
                done = self.vmbackup(path, config, *['preview'] * (number % 2))
                self.assert_refused(done, 'ERROR', 'password file ' + path,
                                    'create-password-file')
        for path in (self.at('pipe'), self.at('directory')):
            with self.subTest(path):
                self.assert_refused(self.vmbackup(path, config), 'ERROR', 'password file ' + path)
        path = self.at('p')
        self.assertEqual(0, self.vmbackup('password', 'create-password-file=p').status)
        os.chmod(path, 0)
        done = self.run_without_rights(path, config)
        self.assert_refused(done, 'ERROR', 'cannot read password file ' + path)
        self.assertEqual([], self.sim.calls())

    def test_one_of_the_mail_account_costs_the_mail_only_and_makes_nobody_wait(self):
        self.script = self.changed_script(MAIL_PAUSE=0)
        for path in self.bad_files():
            with self.assertRaisesRegex(VmBackup.ConfigError, 'password file ' + path):
                VmBackup.read_password_file(path, print)
        for path in [self.at('huge'), self.at('pipe'), self.at('directory'),
                     self.at('missing'), '/dev/zero']:
            with self.subTest(path):
                done = self.ends(
                    1, 'vm-export=db', mail_to='a@b', mail_smtp_port='465', mail_smtp_user='me',
                    mail_smtp_password_file=path)
                self.assertIn('vmbackup.py,end,SUCCESS,S:1 W:0 E:0', self.status())
                self.assertIn('password file ' + path, done.output)

    def test_a_full_disk_leaves_the_old_one(self):
        self.command(0, 'old', 'create-password-file=p')
        before = self.read_bytes(self.at('p'))
        self.prelude = ('import resource\n'            # a file may have three bytes: EFBIG
                        'resource.setrlimit(resource.RLIMIT_FSIZE, (3, 3))')
        done = self.vmbackup('new', 'create-password-file=p')
        self.assert_refused(done, 'ERROR', 'cannot write password file')
        self.assertEqual(before, self.read_bytes(self.at('p')))
        self.assertEqual(['p'], [name for name in os.listdir(self.directory) if name[0] == 'p'])


class RubbishOnDisk(BadInputCase):
    def spoil(self, path, data):
        """Put bytes, or something that is no file, in the place of a file."""
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        elif os.path.lexists(path):
            os.unlink(path)
        if data is os.symlink:
            os.symlink(self.at('nowhere'), path)
        elif isinstance(data, bytes):
            self.put_file(path, data)
        else:
            data(path)

    def test_spoilt_manifests_and_records_end_no_run_and_make_nobody_wait(self):
        config = self.config('vm-export=db', max_backups=100)
        things = test_store.RUBBISH + (os.mkfifo, os.mkdir, os.symlink)
        for name in ('backup.json', 'snapshot.json'):
            for day, thing in enumerate(things, 1):
                for month, marker in ((2, 'success'), (3, 'vm.cfg')):      # a backup, a failure
                    path = self.old_backup('db', 'backup-2019-%02d-%02d-(00:00:00)' % (
                        month, day), marker)
                    self.spoil(os.path.join(path, name), thing)
            for _ in range(2):
                done = self.vmbackup('password', config)
                self.assertIn(done.status, (0, 1), done.output)
                self.assertNotIn('Traceback', done.output)
                self.assertRegex(self.status()[-1], '^vmbackup.py,end,(SUCCESS|WARNING),')
            good = [path for path in self.dated('db')
                    if os.path.exists(os.path.join(path, 'success'))]
            self.assertEqual(1 + len(things) + 2, len(good), 'whatever stands in them')
            shutil.rmtree(os.path.join(self.backups, 'db'))
            self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'success')

    def test_directories_of_ours_that_are_something_else_fail_that_vm_only_and_never_hang(self):
        for name in ('.locks', 'db'):
            for kind in (os.mkfifo, os.symlink, b'precious'):
                with self.subTest(name=name, kind=kind):
                    self.setUp()
                    path = os.path.join(self.backups, name)
                    shutil.rmtree(path, ignore_errors=True)
                    self.spoil(path, kind)
                    before = os.lstat(path)
                    done = self.back_up('vm-export=db')
                    self.assertIn(done.status, (0, 1, 2), done.output)
                    self.assertNotIn('Traceback', done.output)
                    self.assertEqual(before.st_mode, os.lstat(path).st_mode)
                    self.assertIn('vmbackup.py,end,', self.status()[-1])
                    self.assertFalse(os.path.exists(self.at('nowhere')))


@unittest.skipUnless(hypothesis, 'needs the package hypothesis')
class AnyConfig(unittest.TestCase):
    """Lines and bytes of any kind, which Hypothesis makes up."""

    PIECES = (b'# nightly\n', b'max_backups=3\n', b'compress=zstd\n', b'exclude=TEMP-.*\n', b'\n',
              b'vm-export=db:2\n', b'vdi-export=.*\n', b'=', b'\r', b'\0', b'\xff', b'\xef\xbb\xbf',
              b' ', b':', b'%', b'(', b'[', b'\\', b'*', b'{9999}', b'9' * 30, b'-', b'\xc3\xa9')

    def test_it_is_read_or_refused_with_its_place(self):
        vms = [VmBackup.Vm(name, name, name, {}) for name in ('db', 'PROD 1', 'TEMP-x', 'é')]
        with tempfile.TemporaryDirectory() as place:
            path = os.path.join(place, 'run.cfg')
            hypothesis.configuration.set_hypothesis_home_dir(place)

            def read(data):
                with open(path, 'wb') as stream:
                    stream.write(data)
                try:
                    config = VmBackup.read_config(VmBackup.CommandLine(words=[path]))
                except VmBackup.ConfigError as error:
                    return self.assertIn(path, str(error))
                for line in [*config.errors.values(), *config.unexpected]:
                    self.assertIn('run.cfg line ', line)
                plan = VmBackup.select(config.rules, vms, config.settings.max_backups)
                self.assertLessEqual(len(plan.jobs), len(vms))
                return self.assertTrue(all(job.keep > 0 for job in plan.jobs))
            pieces = st.lists(st.sampled_from(self.PIECES) | st.binary(max_size=5)).map(b''.join)
            hypothesis.settings(deadline=None, database=None, derandomize=not full(),
                                max_examples=3000 if full() else 200)(
                hypothesis.given(pieces)(read))()
