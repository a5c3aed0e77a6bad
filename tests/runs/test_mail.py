"""Mail: what is sent, when, and what a bad mail server can do: nothing to a backup."""

import base64
import os
import re
import signal
import time
import unittest

import VmBackup
from tests.tools.smtp_sink import CERTIFICATE, DROP, SILENCE, SmtpSink, deaf_port
from tests.tools.support import LIMIT, PoolCase

try:
    import aiosmtpd.controller
except ImportError:
    aiosmtpd = None

HOST = os.uname().nodename
TEMPORARY = '451 4.3.0 later'
RUBBISH = {'OpaqueRef:1': dict.fromkeys(VmBackup.FIELDS['VM'], [])}


class MailCase(PoolCase):
    """A test with a mail server, and a pool of one small VM."""

    pool_description = {'vms': [{'name': 'db', 'disks': ['64 KiB']}]}

    def sink(self, **options):
        """Start a mail server that lives as long as the test."""
        sink = SmtpSink(**options)
        self.addCleanup(sink.stop)
        return sink

    def mailing(self, sink, *lines, **keys):
        """The path of a config that mails to it."""
        head = dict(mail_to='ops@example.org', mail_smtp_server='localhost',
                    mail_smtp_port=sink.port)
        return self.config(*(lines or ('vm-export=db',)), **dict(head, **keys))

    def run_copy(self, script, *arguments, **environ):
        """Run such a copy to its end."""
        return self.finish(self.start_with(arguments, environ, script=script))

    def run_impatient(self, config, timeout=30, **environ):
        """A run that does not pause between its attempts to mail."""
        script = self.changed_script(MAIL_PAUSE=0, MAIL_TIMEOUT=timeout)
        return self.run_copy(script, 'password', config, **environ)

    def password_file(self, password, mode=0o600):
        """A file as create-password-file makes it."""
        path = os.path.join(self.directory, 'mail password')
        with open(path, 'wb') as stream:
            stream.write(base64.b64encode(password.encode('utf-8')))
        os.chmod(path, mode)
        return path

    def assert_backed_up(self):
        """The newest backup of db is complete."""
        self.assertTrue(os.path.exists(os.path.join(self.dated('db')[-1], 'success')))

    def failed_attempts(self, done):
        """The log's lines about attempts to mail that failed."""
        return [line for line in done.lines if 'WARNING - mail to' in line]


class TheMail(MailCase):
    """What is in it."""

    def test_its_subject_has_host_outcome_and_counts_and_its_headers_are_in_order(self):
        sink = self.sink()
        done = self.vmbackup('password', self.mailing(sink))
        self.assertEqual(0, done.status, done.output)
        mail, = sink.mails
        self.assertEqual('VmBackup %s - SUCCESS - S:1 W:0 E:0' % HOST, mail.message['Subject'])
        self.assertEqual('ops@example.org', mail.message['To'])
        self.assertRegex(mail.message['From'], r'^root@[\w.-]+$')
        self.assertEqual(mail.message['From'], mail.sender)
        for header in ('Date', 'Message-ID', 'Auto-Submitted'):
            self.assertEqual(1, len(mail.message.get_all(header)), header)
        self.assertIn('mail sent to ops@example.org', done.lines)

    def test_its_body_is_the_log_of_this_run(self):
        sink = self.sink()
        done = self.vmbackup('password', self.mailing(sink))
        log = done.output.splitlines()
        self.assertEqual(log[:-1], sink.mails[0].text.splitlines())
        self.assertTrue(log[-2].endswith('VmBackup ended - Success - S:1 W:0 E:0'), log[-2])

    def test_names_arrive_in_utf_8_under_any_locale(self):
        self.pool_description = {'vms': [{'name': '名前', 'disks': ['64 KiB']}]}
        self.use_pool()
        sink = self.sink()
        for locale in ('C', 'C.UTF-8'):
            done = self.vmbackup('password', self.mailing(sink, 'vm-export=名前'), LC_ALL=locale)
            self.assertEqual(0, done.status, done.output)
            self.assertIn('VmBackup vm-export 名前 - ***Success***', sink.mails[-1].text)
        self.assertEqual(2, len(sink.mails))

    def test_each_recipient_gets_it_once_in_one_go(self):
        sink = self.sink()
        done = self.vmbackup('password', self.mailing(
            sink, mail_to='a@example.org,b@example.org , root', mail_from='xen@example.org'))
        self.assertEqual(0, done.status, done.output)
        mail, = sink.mails
        self.assertEqual(['a@example.org', 'b@example.org', 'root'], mail.recipients)
        self.assertEqual('a@example.org, b@example.org, root', mail.message['To'])
        self.assertEqual('xen@example.org', mail.message['From'])
        self.assertEqual('xen@example.org', mail.sender)

    def test_a_vm_name_cannot_add_headers_or_end_the_mail(self):
        name = 'x\r\n.\r\nBcc: evil@example.org\r\n\r\n.'
        self.pool_description = {'vms': [{'name': name, 'disks': ['64 KiB']}]}
        self.use_pool()
        sink = self.sink()
        done = self.vmbackup('password', self.mailing(sink, 'vm-export=.*'))
        self.assertEqual(0, done.status, done.output)
        mail, = sink.mails
        self.assertEqual(['ops@example.org'], mail.recipients)
        self.assertNotIn('Bcc', mail.message)
        self.assertIn('VmBackup ended', mail.text.splitlines()[-1])
        self.assertEqual(done.output.splitlines()[:-1], mail.text.splitlines())

    def test_a_host_name_cannot_add_headers(self):
        invocation = VmBackup.Invocation('', '', (), False, False, {})
        settings = VmBackup.parse_config(['mail_to=a@b'], 'test', invocation).settings
        plain = VmBackup.compose(settings, 'xen1', 'SUCCESS', ['line']).keys()
        for host in ('h\nBcc: evil@example.org', 'h\r\n\r\nbody', '(none)', '', 'h h', '<h>', 'h;',
                     'é', '"', 'h,evil@example.org', '[', '\udcff', '\0'):
            with self.subTest(host):
                message = VmBackup.compose(settings, host, 'SUCCESS', ['line'])
                self.assertEqual(plain, message.keys())
                self.assertRegex(message['From'], r'^root@[A-Za-z0-9.-]+$')
                self.assertEqual('line\n', message.get_content())
                self.assertEqual(1, len(re.findall(rb'\n\r?\n', bytes(message).rstrip())))

    def test_addresses_that_no_header_can_hold_are_refused_in_the_config(self):
        for address in ('a@', '@b', 'a@b@c', 'a b@c', '<a@b>', 'A <a@b>', '"a"@b', 'a@[b', '(', ':',
                        'a;b', 'a\x7f@b', 'a\\b'):
            with self.subTest(address):
                self.assertRaises(ValueError, VmBackup.addresses, address)
        self.assertEqual(('root', 'a.b+c@d-e.example'),
                         VmBackup.addresses(' root,, a.b+c@d-e.example,'))


class WhenItIsSent(MailCase):
    """mail_mode, and runs that end early."""

    def test_mail_mode_decides_for_good_runs_warnings_and_errors(self):
        wanted = {'always': [0, 1, 2], 'problems': [1, 2], 'Never': []}
        lines = {0: ['vm-export=db'], 1: ['vm-export=db', 'vm-export=none.*'], 2: ['vm-export=no']}
        for mode, statuses in wanted.items():
            for status, selection in lines.items():
                with self.subTest(mode=mode, status=status):
                    sink = self.sink()
                    done = self.vmbackup('password', self.mailing(sink, *selection,
                                                                  mail_mode=mode))
                    self.assertEqual(status, done.status, done.output)
                    self.assertEqual([('SUCCESS', 'WARNING', 'ERROR')[status]] *
                                     (status in statuses),
                                     [mail.message['Subject'].split(' - ')[1]
                                      for mail in sink.mails])

    def test_nobody_is_mailed_unless_somebody_is_named(self):
        sink = self.sink()
        done = self.vmbackup('password', self.mailing(sink, mail_to=''))
        self.assertEqual(0, done.status)
        self.assertEqual(0, sink.connections)
        self.assertNotIn('mail', done.output.replace('mail_', ''))

    def test_a_preview_sends_nothing(self):
        sink = self.sink()
        config = self.mailing(sink, 'vm-export=missing')
        self.assertEqual(2, self.vmbackup('password', config, 'preview').status)
        self.assertEqual(2, self.vmbackup('wrong', config, 'preview').status)
        self.assertEqual(0, sink.connections)

    def early_end(self, reason, *lines, password='password', status=2, **keys):
        """Assert that a run that dies early mails the reason."""
        with self.subTest(reason):
            sink = self.sink()
            done = self.vmbackup(password, self.mailing(sink, *lines, **keys))
            self.assertEqual(status, done.status, done.output)
            mail, = sink.mails
            self.assertRegex(mail.message['Subject'], ' - ERROR - S:0 W:0 E:1$')
            self.assertIn(reason, mail.text)
            self.assertIn('VmBackup ended - **ERRORS DETECTED** - S:0 W:0 E:1', mail.text)
            self.assertEqual('vmbackup.py,end,ERROR,S:0 W:0 E:1', self.status()[-1])

    def test_a_run_that_dies_early_is_told_by_mail(self):
        self.early_end('config backup_dir does not exist', backup_dir='/nonexistent/BACKUPS')
        self.early_end('SESSION_AUTHENTICATION_FAILED', password='wrong')
        self.early_end('config max_backups out of range -> none', max_backups='none')
        self.early_end('unexpected config key: max_backup ', max_backup=3)
        self.early_end('not a key=value line: vm-export', 'vm-export')
        self.early_end('invalid regex: vm-export=[', 'vm-export=[')
        self.sim.pool.faults.add('VM.get_all_records', 'refuse', error=['INTERNAL_ERROR', 'oops'])
        self.early_end('XenAPI VM.get_all_records failed: INTERNAL_ERROR oops')
        self.sim.pool.faults.add('VM.get_all_records', 'print', value={'OpaqueRef:1': {}})
        self.early_end('XenAPI VM.get_all_records gave no sensible answer')
        self.sim.pool.faults.add('VM.get_all_records', 'print', value=RUBBISH)
        self.early_end('a bug in VmBackup.py, please report it: TypeError')
        self.sim.down()
        self.early_end('Connection refused')

    def test_a_crash_tells_where_it_happened(self):
        sink = self.sink()
        self.sim.pool.faults.add('VM.get_all_records', 'print', value=RUBBISH)
        self.vmbackup('password', self.mailing(sink))
        self.assertIn('Traceback (most recent call last):', sink.mails[0].text)
        self.assertRegex(sink.mails[0].text, r'File ".*VmBackup.py", line \d+, in select')

    def test_a_run_that_a_signal_ends_is_told_by_mail(self):
        for verb, number in (('vm-export', 2), ('session.login_with_password', 1)):
            with self.subTest(verb):
                sink = self.sink()
                self.sim.pool.journal.clear()
                self.sim.pool.faults.add(verb, 'hang', nth=number)
                child = self.start('password', self.mailing(sink))
                self.wait_for_call(verb, number)
                child.send_signal(signal.SIGTERM)
                done = self.finish(child)
                self.assertEqual(128 + signal.SIGTERM, done.status, done.output)
                mail, = sink.mails
                self.assertIn(' - ERROR - ', mail.message['Subject'])
                self.assertIn('ERROR ended by signal %d' % signal.SIGTERM, mail.text)

    def wait_for_call(self, name, number):
        """Wait until the pool has got so many calls of that name."""
        limit = time.monotonic() + LIMIT
        while [call.name for call in self.sim.calls()].count(name) < number:
            self.assertLess(time.monotonic(), limit, 'no call of ' + name)
            time.sleep(0.01)


class TheFirstPage(MailCase):
    """The constants on the script's first page are the defaults of the config's keys."""

    def edited(self, sink, **more):
        """A copy of the script that mails to the sink."""
        return self.changed_script(**dict(dict(
            DEFAULT_MAIL_TO='page-one@example.org', DEFAULT_MAIL_SMTP_PORT=str(sink.port),
            DEFAULT_BACKUP_DIR=self.backups), **more))

    def test_they_hold_for_a_vm_selector(self):
        sink = self.sink()
        done = self.run_copy(self.edited(sink, DEFAULT_MAIL_FROM='x@y'), 'password', 'db')
        self.assertEqual(0, done.status, done.output)
        self.assertEqual(['page-one@example.org'], sink.mails[0].recipients)
        self.assertEqual('x@y', sink.mails[0].sender)

    def test_they_hold_for_a_config_that_says_nothing_else(self):
        sink = self.sink()
        script = self.edited(sink, DEFAULT_MAIL_MODE='problems')
        self.assertEqual(0, self.run_copy(script, 'password', self.config('vm-export=db')).status)
        self.assertEqual(2, self.run_copy(script, 'wrong', self.config('vm-export=db')).status)
        self.assertEqual(1, len(sink.mails))
        config = self.config('vm-export=db', mail_to='config@example.org', mail_mode='always')
        self.assertEqual(0, self.run_copy(script, 'password', config).status)
        self.assertEqual(['config@example.org'], sink.mails[1].recipients)
        config = self.config('vm-export=db', mail_to='')
        self.assertEqual(2, self.run_copy(script, 'wrong', config).status)
        self.assertEqual(2, len(sink.mails))

    def test_they_hold_where_the_config_cannot_be_read(self):
        sink = self.sink()
        config = self.config('vm-export=db')
        with open(config, 'ab') as stream:
            stream.write(b'# caf\xe9\n')
        done = self.run_copy(self.edited(sink), 'password', config)
        self.assertEqual(2, done.status, done.output)
        self.assertIn('run.cfg line 5 is not UTF-8 text', sink.mails[0].text)
        self.assertEqual([], self.sim.calls())

    def test_numbers_without_quotes_will_do(self):
        sink = self.sink()
        script = self.edited(sink, DEFAULT_MAIL_SMTP_PORT=sink.port, DEFAULT_MAX_BACKUPS=4,
                             DEFAULT_COMPRESS=False, DEFAULT_POOL_DB_BACKUP=0,
                             DEFAULT_LARGE_BACKUP=100, DEFAULT_PRE_CLEAN=True)
        done = self.run_copy(script, 'password', 'db')
        self.assertEqual(0, done.status, done.output)
        self.assertEqual(1, len(sink.mails))

    def test_a_wrong_one_is_named(self):
        script = self.changed_script(DEFAULT_MAX_BACKUPS='many')
        for arguments in (['db'], ['db', 'preview'], [self.config('vm-export=db')]):
            done = self.run_copy(script, 'password', *arguments)
            self.assertEqual(2, done.status)
            self.assertEqual(["ERROR DEFAULT_MAX_BACKUPS out of range -> many (this script's "
                              'first page)'], done.lines)


class SecureServers(MailCase):
    """TLS and accounts."""

    def account(self, **options):
        """A mail server with an account."""
        return self.sink(**dict(dict(user='backup', password='s3cret:pass word'), **options))

    def test_starttls_and_tls_are_used_before_anything_is_said(self):
        for security in ('starttls', 'tls'):
            with self.subTest(security):
                sink = self.account(security=security)
                done = self.vmbackup('password', self.mailing(
                    sink, mail_smtp_security=security, mail_smtp_user='backup',
                    mail_smtp_password_file=self.password_file('s3cret:pass word')),
                    SSL_CERT_FILE=CERTIFICATE)
                self.assertEqual(0, done.status, done.output)
                mail, = sink.mails
                self.assertEqual(('backup', True), (mail.user, mail.encrypted))
                self.assertNotIn('s3cret', done.output + mail.text)
                self.assertNotIn(self.password_base64(), done.output + mail.text)

    @staticmethod
    def password_base64():
        """The password as its file has it."""
        return base64.b64encode(b's3cret:pass word').decode()

    def test_an_unknown_certificate_is_refused_and_no_secret_is_sent(self):
        for security in ('starttls', 'tls'):
            with self.subTest(security):
                sink = self.account(security=security)
                done = self.run_impatient(self.mailing(
                    sink, mail_smtp_security=security, mail_smtp_user='backup',
                    mail_smtp_password_file=self.password_file('s3cret:pass word')),
                    SSL_CERT_FILE=os.devnull, SSL_CERT_DIR=self.directory)
                self.assertEqual(1, done.status, done.output)
                self.assertEqual(3, len(self.failed_attempts(done)))
                self.assertIn('certificate verify failed', self.failed_attempts(done)[0])
                self.assertNotIn('AUTH', sink.verbs)
                self.assertEqual([], sink.mails)
                self.assert_backed_up()

    def test_a_certificate_for_another_name_is_refused(self):
        sink = self.account(security='starttls')
        done = self.run_impatient(self.mailing(
            sink, mail_smtp_server='127.0.0.2', mail_smtp_security='starttls',
            mail_smtp_user='backup'), SSL_CERT_FILE=CERTIFICATE)
        self.assertEqual(1, done.status, done.output)
        self.assertNotIn('AUTH', sink.verbs)

    def test_a_server_without_starttls_gets_neither_password_nor_mail(self):
        sink = self.account(security='none')
        done = self.run_impatient(self.mailing(
            sink, mail_smtp_security='starttls', mail_smtp_user='backup',
            mail_smtp_password_file=self.password_file('s3cret:pass word')))
        self.assertEqual(1, done.status, done.output)
        self.assertIn('STARTTLS', self.failed_attempts(done)[0])
        self.assertEqual({'EHLO'}, set(sink.verbs) - {'QUIT', 'RSET'})

    def test_a_wrong_password_is_a_warning_without_the_password(self):
        sink = self.account()
        done = self.run_impatient(self.mailing(
            sink, mail_smtp_user='backup', mail_smtp_password_file=self.password_file('wr0ng')))
        self.assertEqual(1, done.status, done.output)
        self.assertIn('authentication failed', self.failed_attempts(done)[2])
        self.assertNotIn('wr0ng', done.output)
        self.assertNotIn(base64.b64encode(b'wr0ng').decode(), done.output)
        self.assert_backed_up()

    def test_a_password_that_smtp_cannot_carry_is_not_shown_in_part(self):
        sink = self.account()
        done = self.run_impatient(self.mailing(
            sink, mail_smtp_user='backup', mail_smtp_password_file=self.password_file('pâßé')))
        self.assertEqual(1, done.status, done.output)
        self.assertIn('must be ASCII', self.failed_attempts(done)[0])
        for letter in 'âßé':
            self.assertNotIn(letter, done.output)
            self.assertNotIn('\\x%x' % ord(letter), done.output)

    def test_a_missing_password_file_is_a_warning(self):
        sink = self.account()
        path = os.path.join(self.directory, 'missing')
        done = self.run_impatient(self.mailing(sink, mail_smtp_user='backup',
                                               mail_smtp_password_file=path))
        self.assertEqual(1, done.status, done.output)
        self.assertIn('cannot read password file %s' % path, self.failed_attempts(done)[0])
        self.assert_backed_up()

    def test_a_password_file_that_others_can_read_is_told(self):
        sink = self.account()
        path = self.password_file('s3cret:pass word', 0o644)
        done = self.vmbackup('password', self.mailing(sink, mail_smtp_user='backup',
                                                      mail_smtp_password_file=path))
        self.assertEqual(0, done.status, done.output)
        self.assertIn('***WARNING - password file %s can be read by others (chmod 600 %s)' %
                      (path, path), done.lines)
        self.assertEqual('backup', sink.mails[0].user)


class BadServers(MailCase):
    """Three attempts, a warning, and the backup stands."""

    def test_two_failures_are_forgiven(self):
        for verb in ('CONNECT', 'EHLO', 'MAIL', 'RCPT', 'DATA', 'BODY'):
            for reply in (TEMPORARY, DROP):
                with self.subTest(verb=verb, reply=reply):
                    replies = {verb: [reply] * 2}
                    if verb == 'EHLO':                 # a client goes on with HELO
                        replies['HELO'] = [reply] * 2
                    sink = self.sink(replies=replies)
                    done = self.run_impatient(self.mailing(sink))
                    self.assertEqual(0, done.status, done.output)
                    self.assertEqual(2, len(self.failed_attempts(done)), done.output)
                    self.assertEqual(3, sink.connections)
                    self.assertEqual(1, len(sink.mails))

    def test_three_failures_are_a_warning(self):
        for verb, reply in (('CONNECT', DROP), ('MAIL', '550 5.7.1 no'), ('RCPT', '550 5.1.1 no'),
                            ('DATA', '554 5.7.1 no'), ('BODY', '552 5.3.4 too big'),
                            ('CONNECT', '554 5.3.2 no')):
            with self.subTest(verb=verb, reply=reply):
                sink = self.sink(replies={verb: [reply] * 3})
                done = self.run_impatient(self.mailing(sink))
                self.assertEqual(1, done.status, done.output)
                attempts = self.failed_attempts(done)
                self.assertEqual(3, len(attempts))
                for number, line in enumerate(attempts, 1):
                    self.assertIn('***WARNING - mail to ops@example.org failed, attempt %d of 3: '
                                  % number, line)
                    self.assertIn(reply[10:], line)
                self.assertEqual(([], 3), (sink.mails, sink.connections))
                self.assertEqual('vmbackup.py,end,SUCCESS,S:1 W:0 E:0', self.status()[-1])
                self.assert_backed_up()

    def test_a_failed_run_stays_a_failed_run(self):
        with deaf_port() as port:
            done = self.run_impatient(self.config('vm-export=no', mail_to='a@b',
                                                  mail_smtp_port=port))
        self.assertEqual(2, done.status, done.output)
        self.assertEqual(3, len(self.failed_attempts(done)))

    def test_a_refused_recipient_costs_the_others_neither_mail_nor_a_second_one(self):
        sink = self.sink(refused={'gone@example.org': '550 5.1.1 no such user'})
        done = self.run_impatient(self.mailing(
            sink, mail_to='a@example.org,gone@example.org,b@example.org'))
        self.assertEqual(1, done.status, done.output)
        self.assertEqual([['a@example.org', 'b@example.org']],
                         [mail.recipients for mail in sink.mails])
        attempts = self.failed_attempts(done)
        self.assertEqual(3, len(attempts))
        for line in attempts:
            self.assertIn('mail to gone@example.org failed', line)
            self.assertIn('no such user', line)

    def test_a_recipient_that_is_accepted_later_gets_it_then(self):
        sink = self.sink(replies={'RCPT': [None, '450 4.2.0 greylisted']})
        done = self.run_impatient(self.mailing(sink, mail_to='a@example.org,b@example.org'))
        self.assertEqual(0, done.status, done.output)
        self.assertEqual([['a@example.org'], ['b@example.org']],
                         [mail.recipients for mail in sink.mails])

    def test_an_accepted_mail_is_not_sent_again_whatever_the_goodbye(self):
        for reply in (TEMPORARY, DROP, SILENCE):
            with self.subTest(reply):
                sink = self.sink(replies={'QUIT': [reply]})
                done = self.run_impatient(self.mailing(sink), timeout=1)
                self.assertEqual(0, done.status, done.output)
                self.assertEqual((1, 1), (sink.connections, len(sink.mails)))

    def test_a_server_that_never_answers_is_given_up(self):
        for verb in ('CONNECT', 'BODY'):
            with self.subTest(verb):
                sink = self.sink(replies={verb: [SILENCE] * 3})
                done = self.run_impatient(self.mailing(sink), timeout=0.3)
                self.assertEqual(1, done.status, done.output)
                self.assertEqual((3, []), (sink.connections, sink.mails))
                self.assertIn('timed out', self.failed_attempts(done)[0])
                self.assert_backed_up()

    def test_a_server_that_cannot_be_reached_or_named_is_a_warning(self):
        for name in ('localhost', '', '..', 'x' * 70 + '.example'):
            with self.subTest(name), deaf_port() as port:
                done = self.run_impatient(self.config(
                    'vm-export=db', mail_to='a@b', mail_smtp_server=name, mail_smtp_port=port))
                self.assertEqual(1, done.status, done.output)
                attempts = self.failed_attempts(done)
                self.assertEqual(3, len(attempts))
                self.assertIn('Connection refused' if name in ('localhost', '') else 'label',
                              attempts[0])
                self.assertNotIn('Traceback', done.output)

    def test_rubbish_in_the_place_of_answers_is_a_warning(self):
        for verb, reply in (('CONNECT', 'SSH-2.0-OpenSSH_9.6'), ('CONNECT', '2x0 ?'),
                            ('EHLO', '250-\xff' + 'x' * 20000), ('DATA', '999')):
            with self.subTest(verb=verb, reply=reply[:20]):
                sink = self.sink(replies={verb: [reply] * 3, 'HELO': [reply] * 3})
                done = self.run_impatient(self.mailing(sink))
                self.assertEqual(1, done.status, done.output)
                self.assertEqual(3, len(self.failed_attempts(done)))
                self.assertNotIn('Traceback', done.output)
                self.assert_backed_up()


class OnRequest(MailCase):
    """The command `test-mail`."""

    def mailed(self, status, *words, **environ):
        """What it prints; it has to end with that status."""
        done = self.run_copy(self.changed_script(MAIL_PAUSE=0), 'test-mail', *words, **environ)
        self.assertEqual(status, done.status, done.output)
        self.assertNotIn('Traceback', done.output)
        self.assertEqual([], self.sim.calls())
        return done

    def test_it_says_what_it_does_and_sends_that(self):
        sink = self.sink()
        config = self.mailing(sink, mail_to='a@example.org,b@example.org')
        lines = self.mailed(0, config).lines
        self.assertEqual([
            'VmBackup config loaded from: ' + config,
            'mail to a@example.org, b@example.org through localhost port %d, encryption: none, '
            'account: none' % sink.port, 'mail sent to a@example.org, b@example.org',
            'SUCCESS test-mail: the server has taken it; look whether it arrives'], lines)
        mail, = sink.mails
        self.assertEqual('VmBackup %s - test-mail' % HOST, mail.message['Subject'])
        self.assertEqual(['a@example.org', 'b@example.org'], mail.recipients)
        self.assertIn('encryption: none', mail.text)
        self.assertFalse(os.path.exists(self.status_log))

    def test_account_and_encryption_are_told_and_the_password_is_not(self):
        for security in ('starttls', 'tls'):
            sink = self.sink(user='backup', password='s3cret:pass word', security=security)
            done = self.mailed(0, self.mailing(
                sink, mail_smtp_security=security, mail_smtp_user='backup',
                mail_smtp_password_file=self.password_file('s3cret:pass word')),
                SSL_CERT_FILE=CERTIFICATE)
            self.assertIn('encryption: %s, account: backup' % security, done.output)
            for text in (done.output, sink.mails[0].text):
                self.assertNotIn('s3cret', text)
                self.assertNotIn(base64.b64encode(b's3cret:pass word').decode(), text)

    def test_mail_mode_does_not_matter_and_never_is_told(self):
        for mode in ('always', 'problems', 'never'):
            sink = self.sink()
            done = self.mailed(0, self.mailing(sink, mail_mode=mode))
            self.assertEqual(mode == 'never', '***NOTE - mail_mode=never: a run sends no mail'
                             in done.lines)
            self.assertEqual(1, len(sink.mails))

    def test_a_server_that_does_not_take_it_for_everybody_is_an_error(self):
        sink = self.sink(refused={'gone@example.org': '550 5.1.1 no such user'})
        done = self.mailed(2, self.mailing(sink, mail_to='a@example.org,gone@example.org'))
        self.assertEqual(3, len(self.failed_attempts(done)))
        self.assertTrue(done.lines[-1].startswith('ERROR test-mail: '), done.output)
        with deaf_port() as port:
            done = self.mailed(2, self.config(mail_to='a@b', mail_smtp_port=port))
        self.assertIn('Connection refused', done.output)

    def test_what_is_missing_is_one_clear_line(self):
        config = self.config('vm-export=db')
        self.assertIn('ERROR mail_to is empty: nobody would get mail (set it in %s)' % config,
                      self.mailed(2, config).lines)
        for words, text in (((), 'wanted: test-mail <config-file>'), (('',), 'wanted: '),
                            ((config, 'x=y'), 'wanted: '), (('/nosuch',), 'cannot read config')):
            self.assertIn(text, self.mailed(2, *words).lines[-1])
        self.assertIn('ERROR config mail_to invalid', self.mailed(
            2, self.config(mail_to='a b')).lines[-1])


class Automatic(MailCase):
    """mail_smtp_security=auto, the default."""

    def test_the_port_decides(self):
        for port, wanted in ((25, 'none'), (587, 'starttls'), (465, 'tls'), (2525, 'none')):
            for security in ('auto', 'AUTO', 'none', 'starttls', 'tls'):
                settings = VmBackup.parse_config(
                    ['mail_smtp_port=%d' % port, 'mail_smtp_security=' + security], 'test',
                    VmBackup.Invocation('', '', (), False, False, {})).settings
                self.assertEqual(wanted if security.lower() == 'auto' else security,
                                 VmBackup.security_of(settings))

    def test_it_is_the_default(self):
        self.assertEqual('auto', VmBackup.DEFAULT_MAIL_SMTP_SECURITY)

    def test_another_port_gets_plain_mail_and_says_nothing_of_tls(self):
        sink = self.sink(security='starttls')
        done = self.vmbackup('password', self.mailing(sink, mail_smtp_security='auto'))
        self.assertEqual(0, done.status, done.output)
        self.assertNotIn('STARTTLS', sink.verbs)
        self.assertFalse(sink.mails[0].encrypted)
        self.assertNotIn('TLS', done.output.upper())


@unittest.skipUnless(aiosmtpd, 'needs the package aiosmtpd')
class AThirdPartyServer(MailCase):
    """aiosmtpd instead of ours."""

    def test_it_takes_the_mail(self):
        received = []

        class Handler:
            """Keeps what it is given."""

            async def handle_DATA(self, _server, _session, envelope):
                received.append(envelope)
                return '250 ok'

        controller = aiosmtpd.controller.Controller(
            Handler(), hostname='127.0.0.1', port=self.free_port())
        controller.start()
        self.addCleanup(controller.stop)
        done = self.vmbackup('password', self.config(
            'vm-export=db', mail_to='a@example.org,b@example.org', mail_from='x@example.org',
            mail_smtp_server='127.0.0.1', mail_smtp_port=controller.port))
        self.assertEqual(0, done.status, done.output)
        envelope, = received
        self.assertEqual('x@example.org', envelope.mail_from)
        self.assertEqual(['a@example.org', 'b@example.org'], envelope.rcpt_tos)
        self.assertIn(b'Subject: VmBackup', envelope.content)

    @staticmethod
    def free_port():
        """A port that was free a moment ago: aiosmtpd for Python 3.6 cannot choose one."""
        with deaf_port() as port:
            return port


if __name__ == '__main__':
    unittest.main()
