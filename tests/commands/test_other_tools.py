"""Coming from other tools: what the README promises their users."""

import re
import unittest

import VmBackup
from tests.tools.smtp_sink import SmtpSink
from tests.tools.support import PoolCase
from tests.papers.test_readme import code, section, table


class Tables(unittest.TestCase):
    def test_every_key_that_is_recommended_exists(self):
        known = {key.name for key in VmBackup.KEYS} | set(VmBackup.METHODS)
        rows = table(section('Coming from other tools'))
        self.assertGreater(len(rows), 7)
        for _, here in rows:
            for word in code(here):
                name, equals, value = word.partition('=')
                if re.match('[a-z]+[_-]', name) or equals:
                    self.assertIn(name, known | {'log-end', 'test-restore', 'mail_'})
                if name in known and value and value not in ('UUID', 'NAME'):
                    config = VmBackup.parse_config([word], 'f')
                    self.assertEqual(({}, ()), (config.errors, config.unexpected), word)


class Fork(PoolCase):
    pool_description = {'vms': [
        {'name': 'PROD-web', 'ran': True, 'disks': [
            '1 MiB', {'size': '1 MiB', 'name': '[NOBAK] scratch'}]},
        {'name': 'PROD-old', 'disks': ['1 MiB']}]}

    def test_its_keys_and_words_work_as_they_are(self):
        sink = SmtpSink()
        self.addCleanup(sink.stop)
        config = self.config(
            'compress=zstd', 'vdi_export_format=raw', 'mail_to=backup@example.com',
            'mail_from=host@example.com', 'mail_smtp_server=127.0.0.1',
            'mail_smtp_port=%d' % sink.port, 'mail_mode=always', 'exclude=PROD-old',
            'vm-export=PROD.*:3', max_backups=2, pool_db_backup=0)
        done = self.vmbackup('local', config, VMBACKUP_XAPI_URL=self.sim.unix_url)
        self.assertEqual(0, done.status, done.output)
        self.assertIn('PROD-web/DATED/PROD-web.xva.zst', self.tree())
        self.assertRegex(done.output, r'\*\*\* success: .*/PROD-web.xva.zst : 0G')
        self.assertRegex(done.output, r'VmBackup ended - Success - S:1 W:0 E:0')
        mail, = sink.mails
        self.assertEqual(['backup@example.com'], list(mail.recipients))
