"""Names: what VMs may be called, and that no name does harm."""

import os
import re
import unittest

import VmBackup
from tests.simpool import pools
from tests.tools.support import PoolCase


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
        directories = os.listdir(os.fsencode(self.backups))
        directories.remove(b'.locks')
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
                     '%zz', 'x$(id)', '~', 'C:', 'n' * 247):
            self.assertEqual(name, VmBackup.path_part(name))

    def test_what_cannot_be_a_path_part_is_percent_encoded(self):
        self.assertEqual(['%2E', '%2E%2E', 'a%2Fb', 'a%0Ab', '%252F', '%7F', '%00'], [
            VmBackup.path_part(name) for name in ('.', '..', 'a/b', 'a\nb', '%2F', '\x7f', '')])

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
        for name in ('a\nb', 'a\rb', 'a\x1b[31mb', 'a\u2028b', 'a\x85b', 'a\x0bb'):
            self.assertEqual(1, len(VmBackup.printable(name).splitlines()))
            self.assertFalse(re.search('[\x00-\x1f]', VmBackup.printable(name)))
