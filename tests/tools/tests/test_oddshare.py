"""The odd shares are as odd as they say, and nothing of them is left."""

import os
import shutil
import tempfile
import unittest

from tests.tools.oddshare import OddShare
from tests.tools.processes import pids, read_proc


class Directory(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        self.backups = self.at('share')
        os.mkdir(self.backups)

    def at(self, *parts):
        return os.path.join(self.directory, *parts)


class Shares(OddShare, Directory):
    modes = ()

    def one(self, modes, made, other, listed, kept=None):
        """A directory that is made under a name is there under another, and so is what is in it."""
        with self.subTest(modes):
            case = type('Share', (Shares,), {'modes': modes})('one')
            case.setUp()
            self.addCleanup(case.doCleanups)
            paths = [os.path.join(case.backups, name) for name in (made, other)]
            os.mkdir(paths[0])
            self.assertRaises(FileExistsError, os.mkdir, paths[1])
            self.assertEqual(([listed], [kept or made]),
                             (os.listdir(case.backups), os.listdir(case.behind)))
            with open(paths[1] + '/x', 'wb') as stream:
                stream.write(bytes(1 << 20))
            os.rename(paths[0] + '/x', paths[1] + '/y')
            self.assertEqual(1 << 20, os.stat(paths[0] + '/y').st_size)
            self.assertEqual('inodes' not in modes, os.path.samefile(*paths))
            os.unlink(paths[0] + '/y')
            os.rmdir(paths[1])

    def test_each_mode_takes_its_names_for_one_and_lists_them_in_its_way(self):
        self.one(('case',), 'Web', 'wEB', 'Web')
        self.one(('case', 'inodes', 'lower'), 'Web', 'wEB', 'web')
        self.one(('form',), 'caf\xe9', 'cafe\u0301', 'cafe\u0301')
        self.one(('ends',), 'db. ', 'db', 'db', 'db')

    def test_others_tell_names_apart(self):
        for name in ('Web', 'web', 'caf\xe9', 'cafe\u0301', 'db', 'db.', 'db '):
            os.mkdir(os.path.join(self.backups, name))
        self.assertEqual(sorted(os.listdir(self.behind)), sorted(os.listdir(self.backups)))

    def test_at_the_end_it_is_unmounted_and_its_server_has_ended(self):
        self.mount(self.at('behind'), self.at('another'))
        self._cleanups.pop()[0]()
        self.assertFalse(os.path.ismount(self.at('behind')))
        self.assertFalse([pid for pid in pids()
                          if os.fsencode(self.at('another')) in read_proc(pid, 'cmdline')])
