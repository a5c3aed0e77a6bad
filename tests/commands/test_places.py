"""A backup_dir that cannot be used, or holds nothing, is called that by every command."""

import os
import signal
import subprocess

from tests.runs.test_store import AS_ANYBODY, DAY
from tests.tools import oddshare
from tests.tools.support import SMALL, PoolCase

GONE = (r'cannot be read: %s -> %s\S* \(is the server of the share up\? If so: umount -l \S+; '
        r'mount \S+\)')
NEVER = ('good backup', 'GOOD BACKUP', 'not found', 'no backup of', 'cannot read', 'Errno',
         'run.cfg:', 'a bug in')


class Places(PoolCase):
    pool_description = SMALL

    def setUp(self):
        super().setUp()
        self.root = self.at('root')

    def stock(self, root):
        """A backup in a backup_dir, and the path of its directory."""
        path = os.path.join(root, 'web', DAY % 1)
        os.makedirs(path)
        for name in ('web.xva', 'success'):
            self.put_file(os.path.join(path, name), 'x')
        return path

    def assert_told(self, words, by_path='', **keys):
        """Every command says so, with what to do, and nothing else; `by_path`: what it says of a
        path that is given instead of a config, '' where it is not asked."""
        config = self.config('vm-export=web', backup_dir=self.root, **keys)
        backup = os.path.join(self.root, 'web', DAY % 1)
        asked = [(words, each) for each in (
            ('list', config), ('list', config, 'json'), ('list', config, 'vm=web'),
            ('verify', config), ('prune', config), ('prune', config, 'preview'),
            ('status', config), ('password', 'restore=web', 'from=' + config, 'preview'),
            ('password', 'test-restore=web', 'from=' + config), ('password', config, 'preview'),
            ('password', config))]
        asked += [(by_path, each) for each in (
            ('list', self.root), ('verify', self.root), ('prune', backup), ('protect', backup),
            ('unprotect', backup), ('password', 'restore=' + backup, 'preview'),
            ('password', 'restore=web', 'from=' + self.root, 'preview')) if by_path]
        for told, line in asked:
            with self.subTest(told, line=line):
                done = self.command(3 if line[0] == 'status' else 2, *line)
                self.assertRegex(done.output, '(?m)(ERROR:? |UNKNOWN - )(config )?' + told)
                for never in NEVER:
                    self.assertNotIn(never, done.output.replace(self.directory, ''))

    def test_missing_or_no_directory_or_not_readable(self):
        missing = 'backup_dir does not exist -> %s \\(is the share mounted' % self.root
        self.assert_told(missing, 'no such .*: ' + self.root)
        self.put_file(self.root)
        self.assert_told('backup_dir is not a directory -> ' + self.root)
        file, self.root = self.root, self.root + '/BACKUPS'
        self.assert_told('backup_dir is not a directory -> ' + self.root,
                         'no such .*: ' + self.root)
        os.unlink(file)
        self.root, self.prelude = file, AS_ANYBODY
        self.stock(self.root)
        self.addCleanup(os.chmod, self.root, 0o700)
        os.chmod(self.root, 0)
        self.assert_told('backup_dir is not readable -> ' + self.root, 'path is not readable -> ')

    def test_not_mounted(self):
        self.script = self.changed_script(FSTAB=self.put_file(
            'fstab', 'server:/share %s nfs defaults 0 0\n' % self.root))
        os.mkdir(self.root)
        told = r'lies below %s, where nothing is mounted -> \S+ \(mount it' % self.root
        self.assert_told('backup_dir ' + told, 'path ' + told, require_mount='auto')
        self.stock(self.root)          # below the mount point, which is not it
        self.assert_told('backup_dir ' + told, require_mount='auto')
        self.root = '/'
        self.assert_told('backup_dir is on the root file system -> / ', require_mount='yes')

    def test_a_share_in_trouble(self):
        if oddshare.missing():
            self.skipTest(oddshare.missing())
        os.mkdir(self.root)
        self.stock(self.at('behind'))
        server = oddshare.serve(self.at('behind'), self.root)
        self.addCleanup(subprocess.call, ['fusermount', '-u', '-z', self.root])
        self.addCleanup(server.communicate)
        for name, words in (('ESTALE', 'Stale file handle'), ('EIO', 'Input/output error'),
                            ('EHOSTDOWN', 'Host is down')):
            self.put_file('behind.trouble', name)
            self.assert_told('backup_dir ' + GONE % (words, self.root),
                             'path ' + GONE % (words, self.root))
        self.script = self.changed_script(LOCAL=['fuse'])
        self.assertIn('path cannot be read: Host is down -> %s (see dmesg)' % self.root,
                      self.command(2, 'list', self.root).output)
        del self.script
        server.send_signal(signal.SIGKILL)         # the server of the share has died
        server.wait()
        words = 'Transport endpoint is not connected'
        self.assert_told('backup_dir ' + GONE % (words, self.root), 'path ' + GONE % (
            words, self.root))

    def test_a_name_that_no_file_can_have_is_no_fault_of_a_share(self):
        name = 'a' * 300
        for line in (('list', name), ('verify', '/%s/b' % name)):
            self.assertIn('ERROR no such file or directory: ', self.command(2, *line).output)
        self.assertIn('backup_dir holds no backup at all', self.command(
            2, 'password', 'restore=' + name, 'from=' + self.config('vm-export=x')).output)

    def test_empty(self):
        os.makedirs(self.root + '/lost+found')
        config = self.config('vm-export=web', backup_dir=self.root)
        for line in (('list', config), ('verify', config), ('prune', config), ('list', self.root),
                     ('password', 'restore=web', 'from=' + config),
                     ('password', 'test-restore=web', 'from=' + config), ('status', config)):
            with self.subTest(line):
                self.assertIn('backup_dir holds no backup at all -> ' + self.root,
                              self.command(2, *line).output)
        self.command(0, 'password', config)        # the first run
        self.command(0, 'list', config)
