"""The command `check-config`: the settings in effect, and what is wrong, without the pool."""

import base64
import os
import re
import unittest
import unittest.mock

import VmBackup
from tests.tools.support import PoolCase

PLACE = re.compile(r'(.*?) *= ?(.*)   \((.*)\)$')


class CheckCase(PoolCase):
    pool_description = {'vms': [{'name': 'db', 'disks': ['64 KiB']}]}

    def check(self, status, *words, **environ):
        """The lines it prints; it has to end with that status, the pool not asked."""
        self.sim.down()
        done = self.command(status, 'check-config', *words, **environ)
        self.assertEqual([], self.sim.calls())
        self.assertTrue(done.lines[-1].startswith(
            'ERROR ' if status == 2 else 'SUCCESS check-config: '), done.output)
        self.assertEqual(status == 1, done.lines[-1].endswith(' - WARNINGS found (see above)'))
        return done.lines

    def written(self, *lines):
        return self.put_file('own.cfg', '\n'.join(lines) + '\n')

    def told(self, status, *lines):
        """What it says of these lines, beside the settings and the rules."""
        found = self.check(status, self.written(*lines))
        return [line.replace(self.directory + '/', '') for line in found[1:-2]
                if not line.startswith('  ')]


class WhatItShows(CheckCase):
    def settings(self, lines):
        """{key: (value, origin)} as printed."""
        found = [PLACE.match(line[2:]) for line in lines if line.startswith('  ') and ' = ' in line]
        return {each.group(1): each.group(2, 3) for each in found}

    def test_every_key_has_its_value_and_its_origin(self):
        path = self.written('max_backups=7', 'mail_to=a@b,c@d', '', '# x', 'compress=TRUE',
                            'honour_nobak=YES', 'status_log=here/log', 'lock_wait=1.5',
                            'vm-export=db')
        found = self.settings(self.check(0, path))
        wanted = {key.name: (key.default, 'default') for key in VmBackup.KEYS}
        wanted.update(max_backups=('7', path + ' line 1'), mail_to=('a@b,c@d', path + ' line 2'),
                      compress=('TRUE', path + ' line 5'), honour_nobak=('YES', path + ' line 6'),
                      status_log=('here/log', path + ' line 7'),
                      lock_wait=('1.5', path + ' line 8'))
        self.assertEqual(wanted, found)

    def test_rules_are_shown_with_their_places_and_values_as_a_config_has_them(self):
        path = self.written('exclude=a.*', '', 'vm-export=db:3', 'vdi-export=x')
        lines = self.check(0, path)
        for line in ('exclude=a.*   (%s line 1)', 'vm-export=db:3   (%s line 3)',
                     'vdi-export=x   (%s line 4)'):
            self.assertIn('  ' + line % path, lines)
        self.assertIn('only a preview tells', lines[-2])
        found = self.settings(lines)
        for key in VmBackup.KEYS:
            self.assertEqual(key.parse(key.default), key.parse(found[key.name][0]), key.name)

    def test_nothing_below_backup_dir_is_looked_at_and_nothing_is_made(self):
        path = self.written('vm-export=db', 'backup_dir=' + self.backups,
                            'status_log=' + self.status_log)
        os.mkfifo(self.backups + '/db')
        real, seen = os.stat, []
        with unittest.mock.patch('os.stat', lambda path, **more: (
                seen.append(path), real(path, **more))[1]):
            status = VmBackup.perform(['check-config', path], '', VmBackup.Console(None))
        self.assertEqual(0, status)
        self.assertFalse([each for each in seen if str(each).startswith(self.backups)])
        self.assertEqual(['db'], os.listdir(self.backups))
        self.assertFalse(os.path.exists(os.path.dirname(self.status_log)))


class WhatIsWrong(CheckCase):
    def test_what_is_said_of_the_lines_of_a_config(self):
        log = self.at('log')
        for status, lines, said in (
                (0, ('vm-export=db', 'exclude=[ab].*'), []),
                (2, ('vm-export=db', 'rubbish', 'bogus=secret'), [
                    '***ERROR not a key=value line: rubbish (own.cfg line 2)',
                    '***ERROR unexpected config key: bogus (own.cfg line 3)']),
                (2, ('vm-export=db', 'max_backups=0', 'mail_mode=often'), [
                    'ERROR: config max_backups out of range -> 0 (own.cfg line 2), allowed: 1 to '
                    '1000000', 'ERROR: config mail_mode invalid -> often (own.cfg line 3), '
                    'allowed: always, problems, never']),
                (0, ('max_backups=2', 'vm-export=db', 'max_backups=3', 'max_backups=3'), [
                    '***NOTE - config max_backups is set twice: own.cfg line %d overrides own.cfg '
                    'line %d' % both for both in ((3, 1), (4, 3))]),
                (2, ('vm-export=db', 'status_log=' + log,
                     'report_file={}/./log'.format(self.directory)), [
                         'ERROR: config report_file would replace another file of this run -> '
                         './log (own.cfg line 3)']),
                (0, ('vm-export=db', 'status_log=' + log, 'report_file=' + log + '.report'), []),
                (0, ('vm-export=tag:db', 'exclude=tag:d('), [])):
            with self.subTest(lines):
                self.assertEqual(said, self.told(status, *lines))

    def test_unknown_keys_may_be_ignored(self):
        path = self.written('vm-export=db', 'bogus=1')
        self.check(0, path, 'ignore_extra_keys=True')
        self.check(2, path, 'ignore_extra_keys=False')

    def test_patterns_that_are_none(self):
        lines = ('vm-export=(:4', 'vm-export=d[b', 'vdi-export=d[b', 'exclude=d[b',
                 'exclude-disk=d[b')
        self.assertLessEqual({'***ERROR - invalid regex: %s (own.cfg line %d)' % (line, number)
                              for number, line in enumerate(lines[:4], 1)},
                             set(self.told(2, *lines)))
        self.assertIn('invalid regex: exclude-disk=d[b', self.told(1, *lines[4:], 'vm-export=')[0])

    def test_a_config_that_chooses_nothing(self):
        for lines in ((), ('exclude=a',), ('vdi-export=',)):
            self.assertIn('ERROR no line vm-export= or vdi-export=: nothing would be backed up',
                          self.told(2, *lines))

    def test_a_hook_that_cannot_be_executed(self):
        path = self.at('hook')
        line = ['ERROR: config hook is not a program -> hook']
        self.assertEqual(line, self.told(2, 'vm-export=db', 'hook=' + path))
        self.put_file(path, '#!/bin/sh\ntouch "$0".ran\n')
        self.assertEqual(line, self.told(2, 'vm-export=db', 'hook=' + path))
        os.chmod(path, 0o700)
        self.assertEqual([], self.told(0, 'vm-export=db', 'hook=' + path))
        self.assertFalse(os.path.exists(path + '.ran'))
        os.unlink(path)
        os.mkdir(path)
        self.assertEqual(line, self.told(2, 'vm-export=db', 'hook=' + path))

    def places(self):
        """(path of a file, what others may change on the way to it, '' for nothing)."""
        def place(name, mode=0o700, owner=0):
            os.mkdir(self.at(name))
            file = self.program(name + '/file', 'exit 0')
            os.chmod(self.at(name), mode)
            if owner:
                os.chown(self.at(name), owner, -1)
            return file
        yield place('ours', 0o755), ''
        for name, mode in (('all', 0o757), ('group', 0o770)):
            yield place(name, mode), self.at(name)
        yield place('sticky', 0o1777), ''
        os.chmod(place('file'), 0o775)
        yield self.at('file/file'), self.at('file/file')
        os.chmod(self.at('ours'), 0o755)
        for name, target in (('good', 'ours/file'), ('to all', self.at('all/file')),
                             ('round', 'to all/../../ours/file'), ('all/link', '../ours/file'),
                             ('ours/two', '../all/link')):
            os.symlink(target, self.at(name))
        yield self.at('good'), ''
        yield self.at('to all'), self.at('all')
        yield self.at('ours/two'), self.at('all')      # although it ends at what is ours
        if not os.geteuid():
            yield place('theirs', owner=1), self.at('theirs')
            os.symlink(self.at('ours/file'), self.at('sticky/link'))
            os.lchown(self.at('sticky/link'), 1, -1)
            yield self.at('sticky/link'), self.at('sticky/link')
            os.chown(self.at('sticky/file'), 1, -1)
            yield self.at('sticky/file'), self.at('sticky/file')

    def test_what_others_may_change_is_found_on_the_way_to_a_file_and_at_its_end(self):
        for path, found in self.places():
            with self.subTest(path):
                word = VmBackup.shell_word(found)
                wanted = 'others may change {} (chown root {}; chmod go-w {})'
                self.assertEqual(wanted.format(found, word, word) if found else '',
                                 VmBackup.changeable(path))
        os.symlink('loop', self.at('loop'))
        for path in ('loop', 'no such file', 'ours/file/x'):
            self.assertEqual('', VmBackup.changeable(self.at(path)))

    def test_a_hook_that_others_may_change_is_refused_and_other_files_are_warned_of(self):
        os.mkdir(self.at('all'))
        hook, secret = self.program('all/hook', 'exit'), base64.b64encode(b's3cret')
        os.chmod(self.put_file('all/pass', secret), 0o600)
        for mode in 0o700, 0o777:
            os.chmod(self.at('all'), mode)
            for status, line, told in (
                    (2, 'hook=' + hook, 'ERROR: config hook is not safe -> all/hook'),
                    (1, 'mail_smtp_password_file=' + self.at('all/pass'),
                     '***WARNING - password file all/pass'),
                    (1, 'status_log=' + self.at('all/log'), '***WARNING - all')):
                said = self.told(status if mode == 0o777 else 0, 'vm-export=db', line)
                self.assertEqual([told + ': others may change all (chown root all; chmod go-w all)'
                                  ] if mode == 0o777 else [], said)
            path = self.put_file('all/cfg', 'vm-export=db\n')
            lines = self.check(mode == 0o777, path)
            self.assertEqual(mode == 0o777, any('***WARNING - %s: others' % path in line
                                                for line in lines))

    def test_a_program_to_compress_with_that_is_not_here(self):
        os.environ['PATH'], path = self.directory, os.environ['PATH']
        self.addCleanup(os.environ.update, PATH=path)
        self.assertEqual(
            ['ERROR: config compress -> zstd: no program zstd on this host (install it)'],
            self.told(2, 'vm-export=db', 'compress=zstd'))
        self.assertEqual(
            ['ERROR: config vdi_compress -> gzip: no program gzip on this host (install it)'],
            self.told(2, 'vdi-export=db', 'vdi_compress=gzip'))
        self.assertEqual([], self.told(0, 'vm-export=db', 'compress=zstd', 'verify=no'))

    def test_the_file_of_the_mail_password(self):
        path = self.at('pass')
        lines = ('vm-export=db', 'mail_smtp_password_file=' + path)
        self.assertEqual(['ERROR: config mail_smtp_password_file: cannot read password file pass: '
                          'No such file or directory'], self.told(2, *lines))
        secret = base64.b64encode(b's3cret').decode('ascii')
        for content, mode, status, text in (
                ('x', 0o600, 2, 'no password in password file pass'), (secret, 0o600, 0, None),
                (secret, 0o644, 1, '***WARNING - password file pass can be read by others')):
            self.put_file(path, content)
            os.chmod(path, mode)
            told = self.told(status, *lines)
            self.assertEqual(bool(text), len(told) == 1, told)
            self.assertIn(text or '', ''.join(told))
            output = '\n'.join(self.check(status, self.written(*lines)))
            self.assertNotIn('s3cret', output)
            self.assertNotIn(secret, output)

    def test_files_that_are_no_config(self):
        for words, text in (((), 'usage: VmBackup.py check-config <config-file>'),
                            (('',), 'usage: '),
                            (('/nosuch',), 'cannot read config file /nosuch: No such file'),
                            ((self.backups,), 'cannot read config file'),
                            ((self.written('vm-export=db'), 'compress=7z'), 'invalid value'),
                            ((self.written('vm-export=db'), 'x'), 'one word too many')):
            with self.subTest(text):
                self.assertIn(text, self.check(2, *words)[-1])

    def test_names_of_all_letters_in_any_locale(self):
        path = self.written('vm-export=büro', 'vm-export=日本\x07')
        for environ in ({}, {'LC_ALL': 'C'}):
            lines = self.check(0, path, **environ)
            self.assertIn('  vm-export=büro   (%s line 1)' % path, lines)
            self.assertIn('  vm-export=日本\\x07   (%s line 2)' % path, lines)

    def test_the_example_is_without_a_mistake(self):
        self.check(0, os.path.join(os.path.dirname(self.script), 'example.cfg'))
