"""Mail: what is sent, when, and what a bad mail server can do: nothing to a backup."""

import base64
import html
import os
import re
import unittest
import unittest.mock
from email import message_from_bytes, policy

import VmBackup
from tests.tools.smtp_sink import (CERTIFICATE, DRIP, DROP, FLOOD, SILENCE, SmtpSink,
                                   deaf_port)
from tests.tools.support import HOST, RUBBISH, PoolCase

try:
    import aiosmtpd.controller
except ImportError:
    aiosmtpd = None

PATIENCE = 0.3                 # seconds for a mail server that says nothing
TEMPORARY = '451 4.3.0 later'


class MailCase(PoolCase):
    pool_description = {'vms': [{'name': 'db', 'disks': ['64 KiB']}]}

    def sink(self, **options):
        sink = SmtpSink(**options)
        self.addCleanup(sink.stop)
        return sink

    def mailing(self, sink, *lines, **keys):
        head = dict(mail_to='ops@example.org', mail_smtp_server='localhost',
                    mail_smtp_port=sink.port)
        return self.config(*(lines or ('vm-export=db',)), **dict(head, **keys))

    def nothing(self):
        """Lines of a config whose one VM a hook has skipped."""
        return 'vm-export=db', 'hook=' + self.program('hook', '[ $1 != backup-start ] || exit 75\n')

    def mailed(self, status, sink, *lines, **keys):
        """A run with such a config that ends so."""
        return self.command(status, 'password', self.mailing(sink, *lines, **keys))

    def mailed_in_vain(self, config, attempts=3, timeout=30, status=1, **environ):
        """A run without pauses between its attempts to mail, of which so many fail; those."""
        self.script = self.changed_script(MAIL_PAUSE=0, MAIL_TIMEOUT=timeout)
        done = self.command(status, 'password', config, **environ)
        self.said = done.output
        failed = self.failed_attempts(done)
        self.assertEqual(attempts, len(failed), done.output)
        return failed

    def password_file(self, password, mode=0o600):
        path = self.put_file('mail password', base64.b64encode(password.encode()).decode())
        os.chmod(path, mode)
        return path

    def message(self, subject='SUCCESS', lines=('line',), host='xen1'):
        """A mail as it is sent, and as it arrives."""
        settings = VmBackup.parse_config(['mail_to=a@b']).settings
        console = VmBackup.Console(None)
        console.lines.extend(lines)
        with unittest.mock.patch('VmBackup.Console.current', console), (
                unittest.mock.patch('VmBackup.this_host', lambda: host)):
            data = VmBackup.compose(settings, subject, ['VMs: 1 good'], []).as_bytes()
        return data, message_from_bytes(data, policy=policy.default)

    def failed_attempts(self, done):
        return [line for line in done.lines if 'WARNING - mail to' in line]


class TheMail(MailCase):
    def test_its_subject_tells_the_outcome_its_headers_are_in_order_and_its_body_is_the_log(self):
        sink = self.sink()
        done = self.mailed(0, sink)
        mail, = sink.mails
        self.assertEqual('VmBackup %s - SUCCESS - S:1 W:0 E:0' % HOST, mail.message['Subject'])
        self.assertEqual('ops@example.org', mail.message['To'])
        self.assertRegex(mail.message['From'], r'^root@[\w.-]+$')
        self.assertEqual(mail.message['From'], mail.sender)
        for header in ('Date', 'Message-ID', 'Auto-Submitted'):
            self.assertEqual(1, len(mail.message.get_all(header)), header)
        told, _, log = mail.text.partition('\n\n')
        self.assertRegex(told, '^VMs: 1 good, 0 with warnings, 0 failed, 0 skipped; .* KiB in 0:')
        self.assertEqual(done.output.splitlines()[:-1], log.splitlines())
        self.assertEqual(['VmBackup ended - Success - S:1 W:0 E:0',
                          'mail sent to ops@example.org'], done.lines[-2:])

    def test_names_arrive_in_utf_8_under_any_locale(self):
        self.pool_description = {'vms': [{'name': '名前', 'disks': ['64 KiB']}]}
        self.use_pool()
        sink = self.sink()
        for environ in ({'LC_ALL': 'C'}, {}):
            self.command(0, 'password', self.mailing(sink, 'vm-export=名前'), **environ)
            self.assertIn('VmBackup vm-export 名前 - ***Success***', sink.mails[-1].text)
        self.assertEqual(2, len(sink.mails))

    def test_each_recipient_gets_it_once_in_one_go(self):
        sink = self.sink()
        self.mailed(0, sink, mail_to='a@example.org,b@example.org , root',
                    mail_from='xen@example.org')
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
        done = self.mailed(0, sink, 'vm-export=.*')
        mail, = sink.mails
        self.assertEqual(['ops@example.org'], mail.recipients)
        self.assertNotIn('Bcc', mail.message)
        self.assertIn('VmBackup ended', mail.text.splitlines()[-1])
        self.assertEqual(done.output.splitlines()[:-1], mail.text.partition('\n\n')[2].splitlines())

    def test_a_host_name_cannot_add_headers(self):
        plain = self.message()[1].keys()
        for host in ('h\nBcc: evil@example.org', 'h\r\n\r\nbody', '(none)', '', 'h h', '<h>', 'h;',
                     'é', '"', 'h,evil@example.org', '[', '\udcff', '\0'):
            with self.subTest(host):
                _, message = self.message(host=host)
                self.assertEqual(plain, message.keys())
                self.assertRegex(message['From'], r'^root@[A-Za-z0-9.-]+$')
                self.assertEqual('VMs: 1 good\n\nline\n',
                                 message.get_body(('plain',)).get_content())

    def test_addresses_that_no_header_can_hold_are_refused_in_the_config(self):
        for address in ('a@', '@b', 'a@b@c', 'a b@c', '<a@b>', 'A <a@b>', '"a"@b', 'a@[b', '(', ':',
                        'a;b', 'a\x7f@b', 'a\\b'):
            with self.subTest(address):
                self.assertRaises(ValueError, VmBackup.address, address)
        self.assertEqual(('root', 'a.b+c@d-e.example'), VmBackup.parse_config(
            ['mail_to= root,, a.b+c@d-e.example,']).settings.mail_to)


class TheSummary(MailCase):
    pool_description = {'vms': [{'name': name, 'disks': ['64 KiB']}
                                for name in ('fine', '<i>&"', 'warned')]}

    def test_it_tells_first_what_went_wrong_in_log_text_and_html(self):
        for number, code in (4, 'VDI_IO_ERROR'), (5, 'INTERNAL_ERROR'):    # 5: of its metadata
            self.fault('vm-export', 'refuse', error=[code, 'oops'], nth=number)
        sink = self.sink()
        done = self.mailed(2, sink, *['vm-export=' + name for name in (
            'fine', '<i>&"', 'warned', 'gone')])
        ended = done.lines.index('VmBackup ended - **ERRORS DETECTED** - S:1 W:1 E:2')
        space, *told = done.lines[ended - 6:ended]
        self.assertIn('%', space)                      # of df
        for line, begin in zip(told, (
                VmBackup.RULER, 'FAILED gone (VM-NOT-FOUND): not in the pool',
                'FAILED <i>&" (VM-EXPORT-FAIL): xe vm-export failed: ',
                'WARNING warned: vm-metadata.xml is missing: ',
                'VMs: 1 good, 1 with warnings, 2 failed, 0 skipped; ')):
            self.assertTrue(line.startswith(begin), told)
        mail, = sink.mails
        self.assertEqual(told[1:] + [''], mail.text.splitlines()[:5])
        self.assertEqual('VmBackup %s - ERROR - S:1 W:1 E:2 - gone (VM-NOT-FOUND): not in the pool'
                         % HOST, mail.message['Subject'])
        page = mail.message.get_body(('html',)).get_content()
        self.assertNotRegex(page, '(?i)<i>|<(img|link|script)|(src|href|background|bgcolor)=')
        cells = list(map(html.unescape, re.findall('<(?:td[^>]*|br)>(.*?)(?=</td>|<br>)', page)))
        rows = [cells.index(name) for name in ('gone', '<i>&"', 'warned', 'fine')]
        self.assertEqual(sorted(rows), rows)
        self.assertEqual(['vm-export', 'VM-EXPORT-FAIL', '0 bytes', told[2].partition('): ')[2]],
                         cells[rows[1] + 1:rows[1] + 4] + cells[rows[1] + 5:rows[1] + 6])
        self.assertIn('<p>' + '<br>\n'.join(map(html.escape, told[1:])) + '</p>',
                      page.replace('\r\n', '\n'))
        self.assertEqual(['VM %d of 3, %d failed' % each for each in ((1, 1), (2, 1), (3, 2))], [
            line for line in done.lines if re.match(r'VM \d', line)])

    def test_a_run_that_a_signal_ends_tells_what_it_did_not_do(self):
        sink = self.sink()
        self.fault('vm-export', 'hang', nth=2)
        self.signalled(self.start_until('vm-export', 2, 'password', self.mailing(
            sink, 'vm-export=fine', 'vm-export=warned')))
        told = sink.mails[0].text.splitlines()[:4]
        self.assertEqual(['ERROR ended by signal 15 (SIGTERM)',
                          'FAILED fine (INTERRUPTED): ended by a signal'], told[:2])
        self.assertEqual('not begun or not ended: warned', told[-1])

    def test_an_error_of_the_run_comes_before_what_a_vm_warns_of(self):
        sink = self.sink()
        self.fault('pool-dump-database', 'refuse', error=['INTERNAL_ERROR', 'oops'])
        self.fault('vm-export', 'refuse', error=['INTERNAL_ERROR', 'oops'])    # of metadata
        self.mailed(2, sink, 'vm-export=warned', pool_db_backup=1)
        cause = 'pool database not backed up: xe pool-dump-database failed: '
        self.assertTrue(sink.mails[0].text.startswith('ERROR ' + cause), sink.mails[0].text)
        self.assertIn(' E:1 - ' + cause, sink.mails[0].message['Subject'])

    def test_ascii_goes_as_it_is_and_a_long_log_is_attached(self):
        for lines, how, attached in ((['a' * 998], '7bit', False),
                                     (['a' * 999], 'quoted-printable', False),
                                     (['büro', '名前'], 'quoted-printable', False),
                                     (['b\udcfc'], 'quoted-printable', False),
                                     (['a' * 100] * 300, '7bit', True)):
            with self.subTest(lines[0][:9], how=how, attached=attached):
                data, message = self.message(lines=lines)
                self.assertLessEqual(max(map(len, data.split(b'\n'))), 998)
                texts = [part for part in message.walk() if part.get_content_type() == 'text/plain']
                self.assertEqual(how, texts[-1]['Content-Transfer-Encoding'])
                wanted = '\n'.join(lines).replace('\udcfc', '\ufffd') + '\n'
                self.assertTrue(texts[-1].get_content().endswith(wanted))
                self.assertEqual([None, 'vmbackup.log.txt'][:1 + attached],
                                 [part.get_filename() for part in texts])
                self.assertEqual(attached, 'The log is attached.' in texts[0].get_content())

    def test_a_subject_is_folded_and_has_no_more_of_the_reason_than_fits(self):
        for name in ('名' * 200, 'Ж' * 200, 'x' * 200, 'a b\r\nBcc: evil@example.org ' * 20):
            run = VmBackup.Run(VmBackup.parse_config(['mail_to=a@b']))
            run.add(VmBackup.Outcome(name, '', 'vm-export', 'X-FAIL', error='x'))
            with self.subTest(name[:9]), unittest.mock.patch.multiple(
                    VmBackup, send_mail=unittest.mock.DEFAULT) as put, unittest.mock.patch(
                        'VmBackup.Signals.current', VmBackup.Signals()):
                run.report_end('')
                data, message = self.message(put['send_mail'].call_args[0][1])
                self.assertIn('E:1 - ' + VmBackup.printable(name)[:40], message['Subject'])
                self.assertLess(len(message['Subject']), 150)
                self.assertNotIn('Bcc', message)
                self.assertLess(max(map(len, data.split(b'\n')[:3])), 79 if name[0] != 'x' else 150)


class WhenItIsSent(MailCase):
    def test_mail_mode_decides_for_good_runs_warnings_and_errors(self):
        self.pool_description = {'vms': [{'name': 'db', 'disks': []}]}
        self.use_pool()
        sink = self.sink()
        lines = {0: ['vm-export=db'], 1: ['vm-export=db', 'vm-export=none.*'], 2: ['vm-export=no']}
        for mode, statuses in {'always': [0, 1, 2], 'problems': [1, 2], 'Never': []}.items():
            for status, selection in lines.items():
                with self.subTest(mode=mode, status=status):
                    del sink.mails[:]
                    self.mailed(status, sink, *selection, mail_mode=mode)
                    self.assertEqual([('SUCCESS', 'WARNING', 'ERROR')[status]] *
                                     (status in statuses),
                                     [mail.message['Subject'].split(' - ')[1]
                                      for mail in sink.mails])

    def test_without_anybody_to_get_it_no_server_is_asked(self):
        sink = self.sink()
        self.mailed(0, sink, mail_to='')
        self.mailed(2, sink, 'vm-export=missing', mail_to='', mail_smtp_user='me')
        self.assertEqual(0, sink.connections)

    def test_a_preview_sends_nothing(self):
        sink = self.sink()
        config = self.mailing(sink, 'vm-export=missing')
        self.assertEqual(2, self.vmbackup('password', config, 'preview').status)
        self.assertEqual(2, self.vmbackup('wrong', config, 'preview').status)
        self.assertEqual(0, sink.connections)

    def early_end(self, reason, *lines, password='password', **keys):
        """Assert that a run that dies early mails the reason."""
        with self.subTest(reason):
            sink = self.sink()
            done = self.vmbackup(password, self.mailing(sink, *lines, **keys))
            self.assertEqual(2, done.status, done.output)
            mail, = sink.mails
            self.assertIn(' - ERROR - S:0 W:0 E:1 - ', mail.message['Subject'])
            first = mail.text.splitlines()[0]
            self.assertRegex(first, '^ERROR [A-Za-z]')
            self.assertIn(reason, first)
            self.assertIn('VmBackup ended - **ERRORS DETECTED** - S:0 W:0 E:1', mail.text)
            self.assertEqual('vmbackup.py,end,ERROR,S:0 W:0 E:1', self.status()[-1])
            return mail.text

    def test_a_run_that_dies_early_is_told_by_mail(self):
        self.early_end('config backup_dir does not exist', backup_dir='/nonexistent/BACKUPS')
        self.early_end('SESSION_AUTHENTICATION_FAILED', password='wrong')
        self.early_end('config max_backups out of range -> none', max_backups='none')
        self.early_end('unexpected config key: max_backup ', max_backup=3)
        self.early_end('not a key=value line: vm-export', 'vm-export')
        self.early_end('invalid regex: vm-export=[', 'vm-export=[')
        self.fault('VM.get_all_records', 'refuse', error=['INTERNAL_ERROR', 'oops'])
        self.early_end('XenAPI VM.get_all_records failed: INTERNAL_ERROR oops')
        self.fault('VM.get_all_records', 'print', value={'OpaqueRef:1': {}})
        self.early_end('XenAPI VM.get_all_records gave an unexpected answer')
        self.fault('VM.get_all_records', 'print', value={'OpaqueRef:1': RUBBISH})
        text = self.early_end('a bug in VmBackup.py, please report it: TypeError')
        self.assertIn('Traceback (most recent call last):', text)
        self.assertRegex(text, r'File ".*VmBackup.py", line \d+, in vms')
        self.sim.down()
        self.early_end('Connection refused')

    def test_a_run_that_a_signal_ends_is_told_by_mail(self):
        self.script = self.changed_script(LOGIN_GRACE=1)
        for verb, number in (('vm-export', 2), ('session.login_with_password', 1)):
            with self.subTest(verb):
                sink = self.sink()
                self.sim.pool.journal.clear()
                self.fault(verb, 'hang', nth=number)
                self.signalled(self.start_until(verb, number, 'password', self.mailing(sink)))
                mail, = sink.mails
                self.assertIn(' - ERROR - ', mail.message['Subject'])
                self.assertIn('ERROR ended by signal 15', mail.text)


class TheFirstPage(MailCase):
    """What the script's first page says of the config's keys is their default."""

    def setUp(self):
        super().setUp()
        self.server = self.sink()

    def run_edited(self, status, *words, **more):
        self.script = self.with_defaults(**dict(dict(
            mail_to='page-one@example.org', backup_dir=self.backups,
            mail_smtp_port=self.server.port), **more))
        return self.command(status, *words)

    def test_they_hold_for_a_vm_selector(self):
        self.run_edited(0, 'password', 'db', mail_from='x@y', max_backups=4, compress=False,
                        pool_db_backup=0, large_backup=100,
                        pre_clean=True)
        mail, = self.server.mails
        self.assertEqual((['page-one@example.org'], 'x@y'), (mail.recipients, mail.sender))

    def test_they_hold_for_a_config_that_says_nothing_else(self):
        for status, password, keys, recipients in (
                (0, 'password', {}, []),
                (2, 'wrong', {}, [['page-one@example.org']]),
                (0, 'password', dict(mail_to='config@example.org', mail_mode='always'),
                 [['config@example.org']]),
                (2, 'wrong', dict(mail_to=''), [])):
            del self.server.mails[:]
            self.run_edited(status, password, self.config('vm-export=db', **keys),
                            mail_mode='problems')
            self.assertEqual(recipients, [mail.recipients for mail in self.server.mails])

    def test_they_hold_where_the_config_cannot_be_read(self):
        config = self.config('vm-export=db')
        self.put_file(config, self.read_bytes(config) + b'# caf\xe9\n')
        self.run_edited(2, 'password', config)
        self.assertIn('run.cfg line 5 is not UTF-8 text', self.server.mails[0].text)
        self.assertEqual([], self.sim.calls())

    def test_a_wrong_one_is_named(self):
        self.script = self.with_defaults(max_backups='many')
        for words in (['db', 'preview'], [self.config('vm-export=db')]):
            done = self.command(2, 'password', *words)
            self.assertEqual(["ERROR default max_backups out of range -> many (the script's "
                              'first page)'], done.lines)


class SecureServers(MailCase):
    secret = 's3cret:pass word'

    def account(self, **options):
        return self.sink(**dict(dict(user='backup', password=self.secret), **options))

    def with_account(self, sink, *lines, password=secret, **keys):
        """The path of a config that mails to it with the account's password, or another."""
        return self.mailing(sink, *lines, **dict(dict(
            mail_smtp_security='none', mail_smtp_user='backup',
            mail_smtp_password_file=self.password_file(password)), **keys))

    def test_starttls_and_tls_are_used_before_anything_is_said(self):
        for security in ('starttls', 'tls'):
            with self.subTest(security):
                sink = self.account(security=security)
                done = self.command(0, 'password', self.with_account(
                    sink, mail_smtp_security=security), SSL_CERT_FILE=CERTIFICATE)
                mail, = sink.mails
                self.assertEqual(('backup', True), (mail.user, mail.encrypted))
                for secret in (self.secret, base64.b64encode(self.secret.encode()).decode()):
                    self.assertNotIn(secret, done.output + mail.text)

    def test_a_certificate_that_is_unknown_or_anothers_is_refused_and_no_secret_is_sent(self):
        unknown = dict(SSL_CERT_FILE=os.devnull, SSL_CERT_DIR=self.directory)
        for security, name, environ, words in (
                ('starttls', 'localhost', unknown, 'certificate verify failed'),
                ('tls', 'localhost', unknown, 'certificate verify failed'),
                ('starttls', '127.1', dict(SSL_CERT_FILE=CERTIFICATE), 'match')):
            with self.subTest(security, name=name):
                sink = self.account(security=security)
                failed = self.mailed_in_vain(self.with_account(
                    sink, *self.nothing(), mail_smtp_server=name, mail_smtp_security=security),
                    **environ)
                self.assertIn(words, failed[0])
                self.assertNotIn('AUTH', sink.verbs)
                self.assertEqual([], sink.mails)

    def test_a_server_without_starttls_gets_neither_password_nor_mail(self):
        for security in 'starttls', 'auto':
            sink = self.account(security='none')
            failed = self.mailed_in_vain(self.with_account(
                sink, *self.nothing(), mail_smtp_security=security))
            self.assertIn('STARTTLS', failed[0])
            self.assertEqual({'EHLO'}, set(sink.verbs) - {'QUIT', 'RSET'})

    def test_a_wrong_password_or_one_that_smtp_cannot_carry_is_a_warning_without_any_of_it(self):
        for password, attempts, words, parts in (
                ('wr0ng', 1, 'localhost: 535 5.7.8 authentication failed',
                 ['wr0ng', base64.b64encode(b'wr0ng').decode()]),
                ('pâßé', 3, 'must be ASCII', ['â', 'ß', 'é', '\\xe2', '\\xdf', '\\xe9'])):
            failed = self.mailed_in_vain(self.with_account(
                self.account(), *self.nothing(), password=password), attempts)
            self.assertIn(words, failed[-1])
            for part in parts:
                self.assertNotIn(part, self.said)

    def test_a_password_file_that_others_can_read_is_told(self):
        sink, path = self.account(), self.password_file(self.secret, 0o644)
        done = self.mailed(0, sink, mail_smtp_security='none', mail_smtp_user='backup',
                           mail_smtp_password_file=path)
        self.assertIn('***WARNING - password file %s can be read by others (chmod 600 %s)' %
                      (path, path), done.lines)
        self.assertEqual('backup', sink.mails[0].user)

    def test_a_password_goes_in_clear_only_where_the_config_says_so_and_that_is_told(self):
        for word in 'password', 'test-mail':
            sink = self.account()
            done = self.command(0, word, self.with_account(sink, *self.nothing()))
            self.assertIn('***WARNING - mail_smtp_security=none sends the password of '
                          'mail_smtp_user in clear', done.lines)
            self.assertEqual('backup', sink.mails[0].user)


class BadServers(MailCase):
    """Three attempts, but one where it is refused for good, a warning, and the backup stands."""

    def test_two_failures_are_forgiven(self):
        for verb, reply in (('CONNECT', DROP), ('CONNECT', TEMPORARY), ('EHLO', TEMPORARY),
                            ('MAIL', DROP), ('RCPT', TEMPORARY), ('DATA', DROP),
                            ('BODY', TEMPORARY), ('BODY', DROP)):
            with self.subTest(verb=verb, reply=reply):
                replies = {verb: [reply] * 2}
                if verb == 'EHLO':                 # a client goes on with HELO
                    replies['HELO'] = [reply] * 2
                sink = self.sink(replies=replies)
                self.mailed_in_vain(self.mailing(sink, *self.nothing()), attempts=2, status=0)
                self.assertEqual((3, 1), (sink.connections, len(sink.mails)))

    def test_three_failures_or_answers_that_never_come_are_a_warning(self):
        for verb, reply in (('CONNECT', DROP), ('MAIL', '550 5.7.1 no'), ('RCPT', '550 5.1.1 no'),
                            ('DATA', '554 5.7.1 no'), ('BODY', '552 5.3.4 too big'),
                            ('CONNECT', '554 5.3.2 no'), ('CONNECT', SILENCE),
                            ('BODY', SILENCE), ('CONNECT', 'SSH-2.0-OpenSSH_9.6'),
                            ('EHLO', '250-\xff' + 'x' * 20000), ('DATA', '999')):
            with self.subTest(verb=verb, reply=reply[:20]):
                sink = self.sink(replies={verb: [reply] * 3, 'HELO': [reply] * 3})
                attempts = 1 if reply.startswith('55') or reply.endswith('x') else 3
                failed = self.mailed_in_vain(self.mailing(sink), attempts, timeout=(
                    PATIENCE if reply == SILENCE else 30))
                for number, line in enumerate(failed, 1):
                    self.assertIn('***WARNING - mail to ops@example.org failed, attempt %d of 3: '
                                  % number, line)
                    if reply.endswith('x'):            # a line without end is not told
                        self.assertIn('localhost: 500 Line too long.', line)
                    elif attempts == 1:
                        self.assertTrue(line.endswith('localhost: ' + reply), line)
                    else:
                        self.assertIn('timed out' if reply == SILENCE else reply[10:], line)
                    self.assertNotRegex(line, r"[{]|b'|Errno")
                self.assertEqual(([], attempts), (sink.mails, sink.connections))
                self.assertEqual('vmbackup.py,end,SUCCESS,S:1 W:0 E:0', self.status()[-1])
                self.assertTrue(os.path.exists(self.newest('db', 'success')))

    def test_a_failed_run_stays_a_failed_run(self):
        with deaf_port() as port:
            self.mailed_in_vain(self.config('vm-export=no', mail_to='a@b', mail_smtp_port=port),
                                status=2)

    def test_a_refused_recipient_costs_the_others_neither_mail_nor_a_second_one(self):
        sink = self.sink(refused={'gone@example.org': '550 5.1.1 no such user',
                                  'full@example.org': '452-4.2.2\r\n452 full'})
        failed = self.mailed_in_vain(self.mailing(sink, *self.nothing(), mail_to=(
            'a@example.org,gone@example.org,b@example.org,full@example.org')), attempts=4)
        self.assertEqual([['a@example.org', 'b@example.org']],
                         [mail.recipients for mail in sink.mails])
        self.assertIn('mail sent to a@example.org, b@example.org\n', self.said)
        full = 'mail to full@example.org failed, attempt %d of 3: localhost: 452 4.2.2 full'
        for line, words in zip(failed, (
                'mail to gone@example.org failed, attempt 1 of 3: localhost: 550 5.1.1 no such '
                'user', full % 1, full % 2, full % 3)):
            self.assertTrue(line.endswith(words), line)

    def test_a_recipient_that_is_accepted_later_gets_it_then(self):
        sink = self.sink(replies={'RCPT': [None, '450 4.2.0 greylisted']})
        self.mailed_in_vain(self.mailing(
            sink, *self.nothing(), mail_to='a@example.org,b@example.org'), attempts=1, status=0)
        self.assertEqual([['a@example.org'], ['b@example.org']],
                         [mail.recipients for mail in sink.mails])

    def test_an_accepted_mail_is_not_sent_again_whatever_the_goodbye(self):
        for reply in (TEMPORARY, DROP, SILENCE):
            with self.subTest(reply):
                sink = self.sink(replies={'QUIT': [reply]})
                self.mailed_in_vain(self.mailing(sink, *self.nothing()), attempts=0, status=0,
                                    timeout=PATIENCE)
                self.assertEqual((1, 1), (sink.connections, len(sink.mails)))

    def test_a_server_that_cannot_be_reached_or_named_is_a_warning(self):
        for name in ('localhost', '', '..', 'x' * 70 + '.example'):
            with self.subTest(name), deaf_port() as port:
                failed = self.mailed_in_vain(self.config(
                    *self.nothing(), mail_to='a@b', mail_smtp_server=name, mail_smtp_port=port))
                self.assertIn('Connection refused' if name in ('localhost', '') else 'label',
                              failed[0])

    def test_answers_without_end_are_a_warning(self):
        long, slow = 'Connection unexpectedly closed', 'the mail server did not respond within'
        for security, verb, reply, limit, words in (
                ('none', 'CONNECT', FLOOD, 60, long), ('starttls', 'EHLO', FLOOD, 60, long),
                ('tls', 'MAIL', FLOOD, 60, long), ('none', 'CONNECT', DRIP, 0.5, slow),
                ('tls', 'EHLO', DRIP, 0.5, slow), ('starttls', 'BODY', DRIP, 0.5, slow)):
            with self.subTest(security=security, verb=verb, reply=reply):
                replies = {verb: [reply] * 3, 'HELO': [reply] * 3}
                sink = self.sink(security=security, replies=replies)
                self.script = self.changed_script(MAIL_PAUSE=0, MAIL_LIMIT=limit)
                done = self.command(1, 'password', self.mailing(
                    sink, *self.nothing(), mail_smtp_security=security), SSL_CERT_FILE=CERTIFICATE)
                failed = self.failed_attempts(done)
                self.assertEqual(3, len(failed), done.output)
                self.assertEqual([], [line for line in failed if words not in line])


class OnRequest(MailCase):
    def asked(self, status, *words, **environ):
        """What it does; it has to end with that status."""
        self.script = self.changed_script(MAIL_PAUSE=0)
        done = self.command(status, 'test-mail', *words, **environ)
        self.assertEqual([], self.sim.calls())
        return done

    def test_it_says_what_it_does_and_sends_that(self):
        sink = self.sink()
        config = self.mailing(sink, mail_to='a@example.org,b@example.org')
        lines = self.asked(0, config).lines
        self.assertEqual([
            'VmBackup config loaded from: ' + config,
            'mail to a@example.org, b@example.org through localhost port %d, encryption: none, '
            'account: none' % sink.port, 'mail sent to a@example.org, b@example.org',
            'SUCCESS test-mail: the server accepted it; check that it arrives'], lines)
        mail, = sink.mails
        self.assertEqual('VmBackup %s - test-mail' % HOST, mail.message['Subject'])
        for kind in ('plain', 'html'):
            self.assertIn('This is a test: nothing was backed up.',
                          mail.message.get_body((kind,)).get_content())
        self.assertEqual(['a@example.org', 'b@example.org'], mail.recipients)
        self.assertIn('encryption: none', mail.text)
        self.assertFalse(os.path.exists(self.status_log))

    def test_account_and_encryption_are_told_and_the_password_is_not(self):
        sink = self.sink(user='backup', password='s3cret:pass word', security='tls')
        done = self.asked(0, self.mailing(
            sink, mail_smtp_security='tls', mail_smtp_user='backup',
            mail_smtp_password_file=self.password_file('s3cret:pass word')),
            SSL_CERT_FILE=CERTIFICATE)
        self.assertIn('encryption: tls, account: backup', done.output)
        for text in (done.output, sink.mails[0].text):
            self.assertNotIn('s3cret', text)
            self.assertNotIn(base64.b64encode(b's3cret:pass word').decode(), text)

    def test_mail_mode_does_not_matter(self):
        for mode in ('always', 'problems', 'never'):
            sink = self.sink()
            done = self.asked(0, self.mailing(sink, mail_mode=mode, mail_smtp_server='127.0.0.1'))
            self.assertIn(' through 127.0.0.1 port ', done.output)
            self.assertEqual(1, len(sink.mails))

    def test_a_server_that_does_not_take_it_for_everybody_is_an_error(self):
        sink = self.sink(refused={'gone@example.org': '550 5.1.1 no such user'})
        done = self.asked(2, self.mailing(sink, mail_to='a@example.org,gone@example.org'))
        self.assertEqual(1, len(self.failed_attempts(done)))
        self.assertTrue(done.lines[-1].startswith('ERROR test-mail: '), done.output)
        with deaf_port() as port:
            done = self.asked(2, self.config(mail_to='a@b', mail_smtp_port=port))
        self.assertIn('Connection refused', done.output)

    def test_what_is_missing_is_one_clear_line(self):
        config = self.config('vm-export=db')
        self.assertIn('ERROR mail_to is empty: nobody would get mail (set it in %s)' % config,
                      self.asked(2, config).lines)
        for words, text in (((), 'usage: VmBackup.py test-mail <config-file>'), (('',), 'usage: '),
                            ((config, 'x=y'), 'unknown option: x= (see'),
                            (('/nosuch',), 'cannot read')):
            self.assertIn(text, self.asked(2, *words).lines[-1])
        self.assertIn('ERROR config mail_to invalid', self.asked(
            2, self.config(mail_to='a b')).lines[-1])


class Greeting(MailCase):
    def test_it_is_a_name_with_a_dot_found_without_a_name_server(self):
        sender, literal = 'xen@example.com', '[127.0.0.1]'
        for host, mail_from, wanted in (
                ('xen1.example.org', sender, 'xen1.example.org'),
                ('XEN_1.example.org', sender, 'XEN-1.example.org'),
                ('xen1', sender, 'xen1.example.com'),
                ('xen1.localdomain', sender, 'xen1.example.com'),
                ('localhost.localdomain', sender, 'example.com'),
                ('localhost', sender, 'example.com'),
                ('10.0.0.5', sender, '10.example.com'), ('xen1', 'root', literal),
                ('xen1', 'root@localhost', literal), ('localhost', '', literal)):
            with self.subTest(host, mail_from=mail_from):
                self.assertEqual(wanted, VmBackup.greeting(mail_from, host))
        for host, keys, wanted in (('xen1', dict(mail_from=sender), 'xen1.example.com'),
                                   ('xen1', {}, literal), ('xen1', dict(mail_helo='a.b'), 'a.b')):
            self.prelude = (
                'import ctypes, os, socket\n'
                'assert not ctypes.CDLL(None).unshare(0x04000000 | bool(os.getuid()) << 28)\n'
                'socket.sethostname(%r)\nsocket.getfqdn = socket.gethostbyaddr = None\n' % host)
            with self.subTest(host, **keys):
                sink = self.sink()
                done = self.command(0, 'test-mail', self.mailing(
                    sink, mail_smtp_server='127.0.0.1', **keys))
                self.assertEqual([wanted], sink.greetings, done.output)


class Automatic(MailCase):
    def test_it_is_the_default_and_the_port_decides(self):
        self.assertIn('mail_smtp_security=auto [', VmBackup.KEYS_HELP)
        for port, user, wanted in ((25, '', 'none'), (587, '', 'starttls'), (465, 'me', 'tls'),
                                   (2525, '', 'none'), (25, 'me', 'starttls')):
            for security in ('auto', 'AUTO', 'none', 'starttls', 'tls'):
                settings = VmBackup.parse_config([
                    'mail_smtp_port=%d' % port, 'mail_smtp_security=' + security,
                    'mail_smtp_user=' + user]).settings
                self.assertEqual(wanted if security.lower() == 'auto' else security,
                                 VmBackup.security_of(settings))


@unittest.skipUnless(aiosmtpd, 'needs the package aiosmtpd')
class AThirdPartyServer(MailCase):
    def test_it_takes_the_mail(self):
        received = []

        class Handler:
            async def handle_DATA(self, _server, _session, envelope):
                received.append(envelope)
                return '250 ok'

        with deaf_port() as port:      # aiosmtpd for Python 3.6 cannot choose one that is free
            pass
        controller = aiosmtpd.controller.Controller(Handler(), hostname='127.0.0.1', port=port)
        controller.start()
        self.addCleanup(controller.stop)
        self.ends(0, 'vm-export=db', mail_to='a@example.org,b@example.org',
                  mail_from='x@example.org', mail_smtp_server='127.0.0.1',
                  mail_smtp_port=controller.port)
        envelope, = received
        self.assertEqual('x@example.org', envelope.mail_from)
        self.assertEqual(['a@example.org', 'b@example.org'], envelope.rcpt_tos)
        self.assertIn(b'Subject: VmBackup', envelope.content)
