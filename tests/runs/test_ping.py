"""Pings: what ping_url is told, when, and what a bad server can do: nothing to a backup."""

import os
import time

from tests.tools.http_sink import DRIP, DROP, RUBBISH, SILENCE, HttpSink
from tests.tools.smtp_sink import CERTIFICATE, SmtpSink, deaf_port
from tests.tools.support import HOST, PoolCase

TOKEN = 'S3cr3tT0k3n'


class PingCase(PoolCase):
    pool_description = {'vms': [{'name': 'db', 'disks': ['64 KiB']}]}

    def setUp(self):
        super().setUp()
        self.script = self.changed_script(PING_PAUSES=(0, 0.01), PING_LIMIT=2)

    def sink(self, *answers, **options):
        sink = HttpSink(answers, **options)
        self.addCleanup(sink.stop)
        return sink

    def pinging(self, sink, *lines, ending='', **keys):
        return self.config(*(lines or ('vm-export=db',)),
                           ping_url='%s/%s%s' % (sink.url, TOKEN, ending), **keys)

    def hook(self, phase, status):
        return 'hook=' + self.program('hook', '[ $1 != %s ] || exit %d\n' % (phase, status))

    def pinged(self, sink):
        return [asked.path.replace(TOKEN, 'T') for asked in sink.asked]


class WhatItIsTold(PingCase):
    def test_start_and_how_it_ended(self):
        both, failed = ['/T/start', '/T'], ['/T/fail']
        for status, line, paths in (
                (0, '', both), (2, 'vm-export=missing', ['/T/start', '/T/fail']),
                (2, 'nothing=1', failed), (2, 'max_backups=x', failed),
                (2, ('job-start', 1), failed), (2, ('job-init', 1), failed),
                (2, ('backup-start', 1), ['/T/start', '/T/fail']), (0, ('backup-start', 75), both),
                (0, ('job-start', 75), []), (0, ('job-init', 75), []), (1, ('log-end', 1), both)):
            with self.subTest(line):
                sink = self.sink()
                line = line if isinstance(line, str) else self.hook(*line)
                done = self.command(status, 'password', self.pinging(sink, 'vm-export=db', line))
                self.assertEqual(paths, self.pinged(sink), done.output)

    def test_only_a_whole_run_tells_it(self):
        sink = self.sink()
        config = self.pinging(sink)
        for words in ((config, 'vm=db'), (config, 'preview'),
                      ('test-restore=db', 'from=' + config)):
            self.command(0, 'password', *words)
        script, self.script = self.script, self.with_defaults(
            ping_url=sink.url, backup_dir=self.backups, require_mount='no')
        self.command(0, 'password', 'db')
        self.script = script
        self.assertEqual([], sink.asked)
        self.command(0, 'password', config, 'vm=db', 'ping_url=%s/x?a=b' % sink.url)
        self.assertEqual(['/x/start?a=b', '/x?a=b'], self.pinged(sink))

    def test_words_in_the_address_take_the_place_of_what_is_appended(self):
        for ending, paths in (('/?rid=1', ['/T/start?rid=1', '/T/?rid=1']),
                              ('?s={status}&m={status}', ['/T?s=start&m=start',
                                                          '/T?s=success&m=success']),
                              ('?state={run|complete|fail}', ['/T?state=run', '/T?state=complete']),
                              ('?status={|up|down}&msg={|OK|failed}', ['/T?status=up&msg=OK'])):
            with self.subTest(ending):
                sink = self.sink()
                self.command(0, 'password', self.pinging(sink, ending=ending))
                self.assertEqual(paths, self.pinged(sink))

    def test_a_body_is_sent_only_if_wanted_and_is_the_summary(self):
        lines = 'vm-export=db', self.hook('backup-start', 1)
        for body in ('none', 'summary'):
            sink = self.sink()
            self.command(2, 'password', self.pinging(sink, *lines, ping_body=body))
            start, end = sink.asked
            if body == 'none':
                self.assertEqual([('GET', b'')] * 2, [(a.method, a.body) for a in sink.asked])
                self.assertNotIn(HOST, str(sink.asked))
            else:
                self.assertEqual(('POST', b'VmBackup %s: start' % HOST.encode()),
                                 (start.method, start.body))
                told = end.body.decode('utf-8').split('\n')
                self.assertEqual('VmBackup %s: fail' % HOST, told[0])
                self.assertIn('FAILED db (HOOK-FAIL): hook backup-start failed', told[1])
                self.assertIn('text/plain; charset=utf-8', str(end.headers))
                self.assertNotIn('cmd:', end.body.decode())

    def test_a_run_that_a_signal_ends_is_a_failure(self):
        sink = self.sink()
        self.command(143, 'password', self.pinging(
            sink, 'vm-export=db', 'hook=' + self.program(
                'hook', '[ $1 != backup-start ] || kill -TERM $PPID\n')))
        self.assertEqual(['/T/start', '/T/fail'], self.pinged(sink))

    def test_it_goes_through_a_proxy_of_the_environment(self):
        proxy = self.sink()
        config = self.config('vm-export=db', ping_url='http://far.invalid/' + TOKEN)
        self.command(0, 'test-ping', config, http_proxy=proxy.url)
        self.assertEqual(['http://far.invalid/T'], self.pinged(proxy))
        proxy = self.sink(407, 407)
        done = self.command(2, 'test-ping', config, 'ping_url=https://far.invalid/' + TOKEN,
                            https_proxy=proxy.url)
        self.assertEqual(['far.invalid:443'] * 2, self.pinged(proxy))
        self.assertEqual(2, done.output.count(
            'not told success: OSError\n'), done.output)


class BadServers(PingCase):
    def test_they_are_noted_do_no_harm_and_learn_nothing_they_should_not(self):
        cases = (([500] * 4, 'HTTP 500'), ([404] * 4, 'HTTP 404'),
                 ([DROP] * 4, 'RemoteDisconnected'), ([RUBBISH] * 4, 'BadStatusLine'),
                 ([SILENCE] * 4, 'its server did not respond within 0.3 seconds'),
                 ([DRIP] * 4, 'its server did not respond within 0.3 seconds'))
        self.script = self.changed_script(PING_PAUSES=(0, 0.01), PING_LIMIT=0.3)
        for answers, words in cases:
            with self.subTest(words):
                sink = self.sink(*answers)
                before = time.monotonic()
                done = self.command(0, 'password', self.pinging(sink))
                self.assertLess(time.monotonic() - before, 15)
                said = [line for line in done.lines if 'ping_url' in line]
                noted = ['***NOTE - ping_url was not told %s: ' % status
                         for status in ('start', 'start', 'success', 'success')]
                for line, begin in zip(said[-4:], noted):
                    self.assertTrue(line.startswith(begin), line)
                    self.assertTrue(line.endswith(words), line)
                self.assertNotIn(TOKEN, done.output)

    def test_a_second_attempt_may_succeed_and_a_redirection_is_followed(self):
        sink = self.sink(503, 302, 200, DROP, 200)
        done = self.command(0, 'password', self.pinging(sink))
        self.assertEqual(['/T/start'] * 2 + ['/elsewhere'] + ['/T'] * 2, self.pinged(sink))
        self.assertEqual(2, done.output.count(' - ping_url was told: '))

    def test_a_wrong_certificate_a_closed_port_and_a_name_that_is_none(self):
        sink = self.sink(tls=True)
        config = self.pinging(sink)
        done = self.command(2, 'test-ping', config)
        self.assertIn('told success: SSL', done.output)
        other = self.sink(tls=True, host='127.0.0.2')
        done = self.command(2, 'test-ping', self.pinging(other), SSL_CERT_FILE=CERTIFICATE)
        self.assertRegex(done.output, 'SSLCertVerificationError|CertificateError')
        self.assertNotIn('127.0.0.2', done.output)
        self.assertEqual([], sink.asked + other.asked)
        config = self.pinging(sink)
        self.command(0, 'test-ping', config, SSL_CERT_FILE=CERTIFICATE)
        self.assertEqual(['/T'], self.pinged(sink))
        with deaf_port() as port:
            done = self.command(2, 'test-ping', config, 'ping_url=http://localhost:%d/%s' % (
                port, TOKEN))
        self.assertIn('told success: ConnectionRefusedError', done.output)
        for host in '%s.invalid' % TOKEN, '[%s]' % TOKEN:      # the last is no address at all
            done = self.command(2, 'test-ping', config, 'ping_url=http://%s/' % host)
            self.assertNotIn(TOKEN, done.output)
            self.assertEqual('ERROR test-ping: it failed (see above)', done.lines[-1])
            done = self.command(0, 'password', config, 'ping_url=http://%s/' % host)
            self.assertEqual(2, done.output.count('ping_url was not told start: '))
            self.assertEqual(2, done.output.count('ping_url was not told success: '))


class TheAddress(PingCase):
    def test_it_is_shown_nowhere_but_in_a_config(self):
        sink, smtp, report = self.sink(), SmtpSink(), self.at('report.json')
        self.addCleanup(smtp.stop)
        config = self.pinging(sink, 'vm-export=db', self.hook('backup-start', 1),
                              report_file=report, ping_body='summary', mail_to='a@b',
                              mail_smtp_server='localhost', mail_smtp_port=smtp.port)
        done = [self.command(2, 'password', config)]
        for words in (('check-config', config), ('status', config), ('list', config),
                      ('password', config, 'preview'), ('password', config, 'preview', 'json'),
                      ('test-ping', config)):
            done.append(self.vmbackup(*words))
        for each in done:
            self.assertNotIn(TOKEN, each.output)
        self.assertIn('ping_url                = (a secret)   (%s line 3)' % config,
                      done[1].output)
        for name in report, self.status_log:
            self.assertNotIn(TOKEN, self.read(name))
        self.assertNotIn(TOKEN, smtp.mails[0].text)
        for place, _, names in os.walk(self.backups):
            for name in names:
                self.assertNotIn(TOKEN.encode(), self.read_bytes(place, name))
        printed = self.command(0, 'config', config).output
        self.assertIn('\nping_url=%s/%s # ' % (sink.url, TOKEN), printed)

    def test_neither_is_a_wrong_one(self):
        secret = 'https://hc.example.com/' + TOKEN
        for wrong in ('ftp://hc.example.com/' + TOKEN, TOKEN, 'https://user:%s@host/' % TOKEN,
                      secret + ' x', secret + '{Status}', secret + '{a|b}', secret + '\u00e9',
                      'https://host:%s/' % TOKEN, 'https:///' + TOKEN):
            with self.subTest(wrong):
                config = self.config('vm-export=db', ping_url=wrong)
                for words in (('check-config', config), ('password', config, 'preview'),
                              ('test-ping', config)):
                    done = self.command(2, *words)
                    self.assertIn('ping_url invalid (expected https://host/path, ', done.output)
                    self.assertNotIn(TOKEN, done.output)
                done = self.command(2, 'preview', self.config('vm-export=db'),
                                    'ping_url=' + wrong)
                self.assertIn('invalid value: ping_url=(a secret)', done.output)
                self.assertNotIn(TOKEN, done.output)
        done = self.command(2, self.config('vm-export=db'), 'ping_url=' + secret, 'test-ping')
        self.assertIn(' ping_url=https://... (a VM', done.output)
        self.assertNotIn(TOKEN, done.output)
        script, self.script = self.script, self.with_defaults(ping_url=secret + '#x')
        done = self.command(2, 'password', 'db')
        self.assertIn(' -> (a secret) (the script', done.output)
        self.assertNotIn(TOKEN, done.output)
        self.script = script
        for line in ('ping_url: %s', 'ping_url %s?x=y', 'ping_ulr=%s', 'ping_url="%s" # x'):
            with self.subTest(line):
                done = self.vmbackup('check-config', self.config('vm-export=db', line % secret))
                self.assertIn('ping_u', done.output)
                self.assertNotIn(TOKEN, done.output)


class OnRequest(PingCase):
    def test_it_tells_what_a_good_run_would(self):
        sink = self.sink()
        config = self.pinging(sink, ping_body='summary')
        done = self.command(0, 'test-ping', config)
        self.assertEqual(['ping_url was told: success',
                          'SUCCESS test-ping: check what the service shows'], done.lines[-2:])
        self.assertEqual(['/T'], self.pinged(sink))
        self.assertIn(b'\nThis is a test: nothing was backed up.', sink.asked[0].body)
        self.assertEqual([], self.sim.calls())

    def test_what_is_missing_is_one_clear_line(self):
        config = self.config('vm-export=db')
        self.assertEqual('ERROR ping_url is empty: nobody would be told (set it in %s)' % config,
                         self.command(2, 'test-ping', config).lines[-1])
        sink = self.sink(500, 500)
        done = self.command(2, 'test-ping', self.pinging(sink))
        self.assertEqual('ERROR test-ping: it failed (see above)', done.lines[-1])
