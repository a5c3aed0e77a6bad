"""Names: what VMs may be called, and that no name does harm."""

import json
import os
import re
import subprocess
import sys
import unicodedata
import unittest

import VmBackup
from tests.simpool import pools
from tests.tools.smtp_sink import SmtpSink
from tests.tools.support import LIMIT, PoolCase

# All that xapi takes in a name (xapi-stdext: encodings.ml) and a person is not to see as it is,
# with what a shell and Nagios act on; 255 bytes long.
UNSEEN = ''.join(chr(code) for code in range(32, sys.maxunicode) if unicodedata.category(
    chr(code)) in ('Cc', 'Cf', 'Zl', 'Zp') and unicodedata.name(chr(code), '')[:6] not in (
        'ARABIC', 'SYRIAC', 'KAITHI', 'EGYPTI', 'SHORTH'))
NAME = ('.$(touch pwned) "\'`;\\|\n# \t\x9b31m\x85\x7f\u200b\u200d\u202e\u2066\u2028\ufeff\xad'
        '\U000e0041' + '\u061c' * 120)
while len(NAME.encode('utf-8')) > 255:
    NAME = NAME[:-1]


def seen(text):
    """What of a text a person would not see as it is."""
    return {character for character in text if character in UNSEEN or character < ' '} - {'\n'}


class OneHostileName(PoolCase):
    """A pool and all in it of that name, through all that gets to a person, or to a shell."""

    pool_description = {'name': NAME, 'hosts': [NAME], 'networks': [NAME], 'vms': [
        {'name': NAME, 'description': NAME, 'networks': [NAME], 'ran': True, 'tags': [NAME],
         'other_config': {NAME: NAME},
         'disks': [{'size': '64 KiB', 'name': NAME, 'description': NAME}]}]}

    def told(self, status, *words, **environ):
        done = self.command(status, *words, **environ)
        self.assertEqual(set(), seen(done.output), words)
        return done.output

    def test_it_is_masked_in_every_place(self):
        sink = SmtpSink()
        self.addCleanup(sink.stop)
        keys = dict(report_file=self.at('report.json'), mail_to='a@example.org',
                    mail_smtp_server='localhost', mail_smtp_port=sink.port, LC_ALL='C')
        for method in 'vm-export', 'vdi-export':
            done = self.ends(0, method + '=.*', **keys)
            self.assertEqual(set(), seen(done.output))
            directory, = self.entries()
            self.assertRegex(directory, '^%2E.*~[0-9a-f]{8}$')
            self.check_guide(directory, method)
        text = sink.mails[-1].text + sink.mails[-1].message['Subject']
        self.assertEqual(set(), seen(text))
        self.assertIn('\\u202e', text)
        config = self.config('vm-export=.*', 'exclude=' + NAME.replace('\n', ''))
        self.told(0, 'check-config', config)
        config = self.config('vm-export=.*')
        for words in (['password', config, 'preview'], ['verify', config, 'backups=all'],
                      ['list', config], ['list', config, 'json'], ['prune', config],
                      ['password', 'restore=' + NAME, 'from=' + config, 'preview'],
                      ['password', 'restore=' + self.newest(directory), 'from=' + config],
                      ['password', 'test-restore=.*', 'from=' + config]):
            self.told(0, *words)
        self.before = self.contents()                  # what was restored
        self.fault('vm-snapshot', 'refuse', times=0, error=['VDI_IO_ERROR', NAME])
        self.told(2, 'password', config)
        self.assertRegex(self.told(1, 'status', config), r'^VMBACKUP WARNING [^|]*\\x7c[^|]* [|] ')
        for words in (['list', NAME], ['list', config, NAME], [NAME, NAME, NAME],
                      ['password', NAME], ['protect', NAME], ['password', 'restore=/' + NAME],
                      ['password', 'create-password-file=/' + NAME]):
            self.told(2, *words)
        for directory, _, names in os.walk(self.directory):
            for name in names:
                if re.search('[.](log|json|txt|cfg|xml)$', name) and name != 'run.cfg':
                    self.assertEqual(set(), seen(self.read(directory, name)), name)

    def test_a_disk_at_a_device_of_that_name(self):
        """Whoever may change a VM may set the user device of a VBD to any text."""
        for device in '²', '0; touch pwned\n\x9b$(touch pwned)':
            for vbd in self.sim.pool.tables['VBD'].values():
                vbd.update(userdevice=device, device='')
            done = self.ends(0, 'vdi-export=.*', vdi_disks='all')
            self.assertEqual(set(), seen(done.output))
            directory, = self.entries()
            lines = self.read(self.newest(directory), 'RESTORE.txt').splitlines()
            line, = [line for line in lines if 'device=' in line and line[0] != '#']
            words = subprocess.check_output(['bash', '-c', "printf '%s\\0' " + line],
                                            cwd=self.directory, timeout=LIMIT)
            self.assertIn('device=' + device, words.decode('utf-8').split('\0'))
        self.assertFalse(os.path.exists(self.at('pwned')))

    def check_guide(self, directory, method):
        """Whoever pastes the lines of RESTORE.txt into a shell gives xe and us the very words."""
        path = self.newest(directory)
        file = [os.path.join(path, name) for name in os.listdir(path)
                if name.endswith(('.xva', '.raw'))][0]
        text = self.read(path, 'RESTORE.txt')
        words = []
        for line in re.sub(r'=\$\((xe .*)\)', r' \1', text).splitlines():
            if line and not line.startswith('#'):
                words += subprocess.run(
                    ['bash', '-c', "printf '%s\\0' " + line.replace('||', '')], timeout=LIMIT,
                    stdout=subprocess.PIPE, check=True, cwd=self.directory
                ).stdout.decode('utf-8').split('\0')
        for word in (file, 'filename=' + file,
                     'name-label=' + VmBackup.label_part(NAME)):
            self.assertIn(word, words)
        self.assertFalse(os.path.exists(self.at('pwned')))

    def test_json_and_live_lines_too(self):
        text = VmBackup.as_json({NAME + '\ud800': [NAME]})
        self.assertTrue(text.isprintable() or not seen(text))
        self.assertEqual({NAME + '\ud800': [NAME]}, json.loads(text))
        self.assertEqual(set(), seen(VmBackup.printable(NAME + '\ud800')))
        for raw in (b'\xc2\x9b31m', b'\x9b31m', '\u202e'.encode('utf-8')):     # as LANG=C has them
            masked = VmBackup.encoded(VmBackup.printable(raw.decode('ascii', 'surrogateescape')))
            self.assertTrue(masked.isascii() if hasattr(masked, 'isascii') else True, masked)
            self.assertNotIn(raw, masked)
        for text in ('büro', '名前', '❤\ufe0f', 'caf\udce9', 'नमस्ते', 'a\u0301'):
            self.assertEqual(text, VmBackup.printable(text))

    def test_xe_never_gets_a_control_character(self):
        xe = VmBackup.Xe()
        for text in ('a\nuuid=x', 'a\r', '\x1b[201~', 'a\x7f'):
            with self.assertRaisesRegex(VmBackup.CommandFailed, 'takes no control character'):
                xe.tell('vm-import', filename=text)
        for key in 'backup_dir=a\tb', 'status_log=/a\x1b', 'hook=/a\x7f':
            self.assertIn('without control characters', self.told(2, 'check-config', self.put_file(
                'odd.cfg', key + '\nvm-export=.*\n')))


class OddNames(PoolCase):
    """VMs with the names that scripts stumble over, under LANG=C."""

    pool_description = {'vms': [dict(vm, disks=['64 KiB']) for vm in pools.odd()['vms']]}

    def check(self, method):
        """A run of everything: backed up, rotated, below backup_dir, nothing executed."""
        names = pools.odd_names()
        before = set(os.listdir(self.directory)) | {'run.cfg', 'logs'}
        for name in names:
            self.old_backup(VmBackup.path_part(name), 'backup-2019-01-01-(00:00:00)', 'success')
        done = self.back_up(method + '=.*', max_backups=1, LC_ALL='C', LANG='C')
        self.assertEqual(0, done.status, done.output)
        self.assertEqual(before, set(os.listdir(self.directory)))
        directories = [name for name in os.listdir(os.fsencode(self.backups)) if name[:1] != b'.']
        self.assertEqual({VmBackup.encoded(VmBackup.path_part(name)) for name in names},
                         set(directories))
        self.assertEqual(len(names), len(directories))
        for directory in directories:
            path = os.path.join(os.fsencode(self.backups), directory)
            dated, = os.listdir(path)
            self.assertNotIn(b'2019', dated)
            self.assertIn(b'success', os.listdir(os.path.join(path, dated)))
        lines = [line for line in self.status() if ',end,SUCCESS' in line and method in line]
        self.assertEqual(sorted(
            '%s,end,SUCCESS %s,elapse:0 size:0G' % (method, VmBackup.printable(name))
            for name in names), sorted(lines))
        self.assertEqual(2 * len(names) + 2, len(self.status()))
        self.assertNotIn('uid=%d(' % os.getuid(), done.output)

    def test_whole_vms_of_any_name_are_backed_up_and_rotated(self):
        self.check('vm-export')
        self.assertIn(('vm-snapshot', 'RESTORE_new%0Aline'), [
            (verb, words.get('new-name-label')) for verb, words in self.xe_calls()])

    def test_disks_of_vms_of_any_name_are_backed_up_and_rotated(self):
        self.check('vdi-export')


class PathParts(unittest.TestCase):
    def test_ordinary_names_stay_as_they_are(self):
        for name in ('web', 'DEV mySql', 'a,b', "it's \"x\"", '-dash', ' lead', 'trail ', '100%',
                     '%zz', 'x$(id)', 'a.', '~', 'C:', 'n' * 247, 'a~1234567'):
            self.assertEqual(name, VmBackup.path_part(name))

    def test_what_cannot_be_a_path_part_is_percent_encoded(self):
        self.assertEqual(['%2E', '%2E%2E', 'a%2Fb', 'a%0Ab', '%252F', '%7F', '%00'], [
            VmBackup.path_part(name) for name in ('.', '..', 'a/b', 'a\nb', '%2F', '\x7f', '')])

    def test_none_looks_like_a_directory_of_ours(self):
        names = {'.locks': '%2Elocks', '.deleting-backup-2026-01-01-(00:00:00)':
                 '%2Edeleting-backup-2026-01-01-(00:00:00)', '...': '%2E..',
                 'METADATA_host1': '%4DETADATA_host1', 'a~1234abcd': 'a%7E1234abcd',
                 '00VMbackupWriteTest%20': '00VMbackupWriteTest%2520'}
        for name, part in names.items():
            self.assertEqual(part, VmBackup.path_part(name))
        self.assertEqual('a~1234abcd', VmBackup.twin_part('a', '1234abcd-0000'))

    def test_long_names_are_cut_with_room_for_the_extension_and_told_apart(self):
        for letter in ('n', '名', '/'):
            one, other = (VmBackup.path_part(letter * 300 + end) for end in 'ab')
            self.assertNotEqual(one, other)
            for part in (one, other):
                self.assertLessEqual(len(VmBackup.encoded(part + '.xva.zst')), 255)
                self.assertRegex(part, '~[0-9a-f]{8}$')

    def test_different_names_give_different_parts(self):
        names = ['a/b', 'a%2Fb', 'a%252Fb', '.', '%2E', '..', '%2E%2E', '', '%00', 'n\n', 'n%0A',
                 'n' * 300, 'n' * 301, 'n' * 255, VmBackup.path_part('n' * 300)]
        self.assertEqual(len(names), len({VmBackup.path_part(name) for name in names}))

    def test_a_line_of_the_log_is_one_line_for_any_name(self):
        for character in UNSEEN + ''.join(map(chr, range(32))) + '\u3164\u115f\u034f':
            masked = VmBackup.printable('a%sb' % character)
            self.assertRegex(masked, r'\Aa\\[0-9a-zA-Z]+b\Z')
