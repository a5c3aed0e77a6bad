"""Secrets: no password where others can see it, nothing that we write for others to read."""

import base64
import os
import shutil
import stat

from tests.tools.smtp_sink import SmtpSink
from tests.tools.support import LIMIT, SMALL, PoolCase

ROOTS, MAILS = 'R00t-pa$s wörd', 'Ma1l:s3cret'
UMASKS = (0o000, 0o022, 0o027, 0o077)


class SecretCase(PoolCase):
    """A test whose passwords can be told from everything else."""

    pool_description = SMALL

    def use_pool(self, **options):
        super().use_pool(**options)
        self.sim.pool.password = ROOTS

    def password_file(self, password, name):
        self.command(0, password, 'create-password-file=' + name)
        return self.at(name)

    def secrets(self):
        words = [word.encode('utf-8') for word in (ROOTS, MAILS)]
        plain = base64.b64encode(b'\0me\0' + words[1])         # as AUTH PLAIN has it
        return words + [base64.b64encode(word) for word in words] + [plain]

    def assert_no_secret(self, data, where):
        """No password in it, in any of the forms that we have of them."""
        for secret in self.secrets():
            self.assertNotIn(secret, data, where)

    def mailing(self, *lines, **keys):
        """A config that mails through an account."""
        sink = SmtpSink(user='me', password=MAILS)
        self.addCleanup(sink.stop)
        self.sink = sink
        head = dict(mail_to='a@b', mail_smtp_port=sink.port, mail_smtp_security='none',
                    mail_smtp_user='me',
                    mail_smtp_password_file=self.password_file(MAILS, 'mail-password'))
        return self.config(*lines, **dict(head, **keys))

    def files(self, *kept):
        """The bytes of every file in this test's directory, but for those that hold passwords."""
        paths = [os.path.join(directory, name)
                 for directory, _, names in os.walk(self.directory)
                 for name in names if name not in kept]
        return {path: self.read_bytes(path) for path in paths
                if stat.S_ISREG(os.lstat(path).st_mode)}

    def assert_silent(self, done):
        """Neither the output nor any file or mail tells a password."""
        self.assert_no_secret(done.output.encode('utf-8', 'surrogateescape'), 'output')
        files = self.files('mail-password', 'password')
        self.assertTrue(any(path.endswith('status.log') for path in files))
        for path, data in files.items():
            self.assert_no_secret(data, path)
        for mail in self.sink.mails:
            self.assert_no_secret(mail.data, 'mail')
            self.assert_no_secret(mail.text.encode('utf-8'), 'mail')


class Children(SecretCase):
    def watched(self):
        """A PATH on which no program is but some that note what /proc shows of them."""
        os.mkdir(self.at('tools'))
        for name in ('xe', 'df', 'ionice', 'gzip', 'zstd'):
            real = self.sim.xe if name == 'xe' else shutil.which(name)
            if real:
                self.program('tools/' + name, '{ %s /proc/$$/cmdline /proc/$$/environ; echo; } '
                             '>>%s\nexec %s "$@"\n' % (shutil.which('cat'), self.at('seen'), real))
        return self.at('tools')

    def test_no_child_has_a_password_in_its_command_line_or_environment_nor_is_one_written(self):
        path = self.watched()
        config = self.mailing('vm-export=db', 'vdi-export=web', pool_db_backup=1, max_backups=1,
                              compress='gzip')
        for word in (ROOTS, self.password_file(ROOTS, 'password')):
            done = self.command(0, word, config, PATH=path, VMBACKUP_XE=os.path.join(path, 'xe'),
                                TMPDIR=self.directory)
            seen = self.read_bytes('seen')
            for each in ('/df', '/gzip', 'vm-snapshot', 'template-param-set', 'vm-export',
                         'vm-uninstall', 'vdi-snapshot', 'vdi-param-set', 'vdi-export',
                         'vdi-destroy', 'pool-dump-database'):
                self.assertIn(b'%s\0' % each.encode('ascii'), seen)
            self.assert_silent(done)                   # of what was seen too: it is a file here
            os.unlink(self.at('seen'))
        self.assertEqual(2, len(self.sink.mails))
        for call in self.sim.calls('xapi'):
            if call.name != 'session.login_with_password':
                self.assert_no_secret(repr(call.args).encode('utf-8'), call.name)


class Words(SecretCase):
    def test_internal_errors_show_where_and_no_password(self):
        config = self.mailing('vm-export=db', 'vdi-export=web')
        for name, value in (('XAPI_TIMEOUT', 'soon'), ('DISCARD_PAUSES', 5)):
            with self.subTest(name):
                done = self.finish(self.start_with(
                    [ROOTS, config], script=self.changed_script(**{name: value})))
                self.assertEqual(2, done.status, done.output)
                self.assertIn('Traceback', done.output)
                self.assertIn('Traceback', self.sink.mails[-1].text)
                self.assert_silent(done)
        self.leaves_things_behind = True               # snapshots: nothing could remove them

    def test_logins_that_fail_in_any_way_are_one_clear_line_and_show_no_password(self):
        config = self.mailing('vm-export=db')
        self.leaves_things_behind = True               # sessions that nobody was told of
        faults = [dict(do='refuse', error=['SESSION_AUTHENTICATION_FAILED', 'root', 'no']),
                  dict(do='refuse', error=['INTERNAL_ERROR', 'Db_exn']),
                  dict(do='die', after=0), dict(do='die', after=60)]
        faults += [dict(do='print', value=value) for value in (
            '', 5, [], {}, {'Status': 'Success'}, {'Status': 'Failure'}, True)]
        faults += [dict(do='print', body=body) for body in (
            b'', b'<html>', b'<?xml version="1.0"?><methodResponse><fault><value/></fault>')]
        for fault in faults:
            with self.subTest(fault):
                self.sim.pool.faults.clear()
                self.fault('session.login_with_password', times=0, **fault)
                done = self.command(2, ROOTS, config)
                error, = [line for line in done.lines if line.startswith('ERROR')]
                self.assertIn('XenAPI ' if 'value' in fault else 'XenAPI login at http', error)
                self.assert_silent(done)

    def test_a_password_that_cannot_be_sent_is_not_shown_in_part(self):
        config = self.mailing('vm-export=db')
        for word in ('R00t\udcff', 'R00t\n\x01', 'R00t' * 20000, 'R00t%s{0}%(x)s'):
            for preview in ([], ['preview']):
                child = self.start(word, config, *preview)
                output, _ = child.communicate(timeout=LIMIT)       # of any bytes
                self.assertEqual(2, child.returncode)
                self.assertNotIn(b'R00t', output)

    def test_words_in_the_wrong_place_are_shown_but_never_the_first(self):
        config = self.config('vm-export=db')
        for words in ([ROOTS], [ROOTS, ''], [ROOTS, config, 'prevew'], [ROOTS, 'missing.cfg'],
                      [ROOTS, config, 'compress=x'], [ROOTS, 'create-password-file='],
                      [ROOTS, 'create-password-file=/nonexistent/p'], [ROOTS, 'vm-export=['],
                      [ROOTS, config, ROOTS[:3]], [ROOTS, 'create-password-file=p', 'x'],
                      [ROOTS, 'list'], [ROOTS, config, 'list', 'json'], [ROOTS, '--json'],
                      ['backup', ROOTS, config], ['list', config, 'password=' + ROOTS]):
            with self.subTest(words[1:]):
                done = self.command(2, *words)
                self.assert_no_secret(done.output.encode('utf-8'), 'output')


class Modes(SecretCase):
    """Who can read what we write: its owner, whatever the caller's umask is."""

    def run_under(self, umask, *arguments):
        """Run VmBackup.py with that umask to its end."""
        return self.finish(self.start_with(arguments, umask=umask))

    def modes(self, top):
        return {os.path.join(directory, name): stat.S_IMODE(
            os.lstat(os.path.join(directory, name)).st_mode)
            for directory, names, files in os.walk(top) for name in names + files}

    def assert_private(self, *but):
        """Directories are 0700, files 0600."""
        for path, mode in self.modes(self.backups).items():
            if path not in but:
                wanted = 0o700 if os.path.isdir(path) else 0o600
                self.assertEqual('%o' % wanted, '%o' % mode, path)

    def test_the_backup_tree_is_for_its_owner_only_and_the_log_as_the_umask_says(self):
        for umask, compress in zip(UMASKS, ('none', 'zstd', 'gzip', 'none')):
            with self.subTest(umask='%o' % umask, compress=compress):
                self.status_log = self.at('logs %o' % umask, 'new', 'status.log')
                self.assert_ends(0, self.run_under(umask, ROOTS, self.config(
                    'vm-export=db', 'vdi-export=web', compress=compress, pool_db_backup=1,
                    max_backups=1)))
                self.assertGreater(len(self.modes(self.backups)), 20)
                self.assert_private()
                modes = self.modes(self.at('logs %o' % umask))
                self.assertEqual({os.path.dirname(self.status_log): 0o777 & ~umask,
                                  self.status_log: 0o640 & ~umask}, modes)

    def test_what_a_failure_leaves_is_for_its_owner_only_too(self):
        for counts, failing in (
                ('S:0 W:0 E:3', {'vm-export': 3, 'vdi-export': 1, 'pool-dump-database': 1}),
                ('S:1 W:0 E:1', {'vm-snapshot': 1})):
            for verb, nth in failing.items():
                self.fault(verb, 'refuse', nth=nth, error=['VDI_IO_ERROR', 'x'])
            self.assert_ends(2, self.run_under(0o000, ROOTS, self.config(
                'vm-export=db', 'vdi-export=web', pool_db_backup=1)))
            self.assertEqual('vmbackup.py,end,ERROR,' + counts, self.status()[-1])
            self.assert_private()

    def test_a_file_that_is_being_written_is_for_its_owner_only_from_its_first_byte(self):
        for method, number, ending in (('vm-export', 2, '.xva'), ('vdi-export', 1, '.raw'),
                                       ('pool-dump-database', 1, '.partial')):
            with self.subTest(method):
                self.setUp()
                self.fault(method, 'hang', nth=number, after=512)
                child = self.start_with([ROOTS, self.config(
                    (method if method[0] == 'v' else 'vm-export') + '=db', pool_db_backup=1)],
                    umask=0)
                self.wait_for(lambda: any(path.endswith(ending) for path in self.tree()))
                self.assert_private()
                self.signalled(child)
                self.assert_private()

    def test_directories_that_were_there_keep_their_modes(self):
        old = self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'success', 'db.xva')
        os.chmod(self.backups, 0o755)
        os.chmod(os.path.dirname(old), 0o750)
        os.chmod(old, 0o705)
        before = self.modes(self.backups)
        self.assert_ends(0, self.run_under(0o000, ROOTS, self.config('vm-export=db')))
        after = self.modes(self.backups)
        self.assertEqual(before, {path: after[path] for path in before})
        self.assertEqual(0o755, stat.S_IMODE(os.stat(self.backups).st_mode))
        self.assert_private(*before)

    def test_a_status_log_that_is_rotated_away_in_mid_run_is_made_again_with_the_same_mode(self):
        self.at_call('vm-uninstall', lambda: os.rename(self.status_log, self.status_log + '.1'))
        self.assert_ends(0, self.run_under(0o000, ROOTS, self.config('vm-export=db')))
        self.assertEqual(['vm-export,end,SUCCESS db,elapse:0 size:0G',
                          'vmbackup.py,end,SUCCESS,S:1 W:0 E:0'], self.status())
        self.assertEqual('640', '%o' % stat.S_IMODE(os.stat(self.status_log).st_mode))
