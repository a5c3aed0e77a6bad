"""A directory mounted as a share that treats names as other systems do (FUSE).

    python3 oddshare.py DIRECTORY MOUNTPOINT MODE...        until its input ends

case    names that differ in case only are one, listed as it was made (SMB, NTFS, APFS, casefold)
form    those with composed and decomposed letters are one, listed decomposed (HFS+, ZFS, APFS)
ends    dots and blanks at the end of a name are dropped (Windows servers)
lower   names are listed in lower case, however they were made
inodes  each spelling of a name has an inode of its own

While there is a file DIRECTORY.trouble, all fails as the errno that it names, such as ESTALE;
with EDQUOT only what makes a file larger than QUOTA.
"""

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata

try:
    import fuse
except (ImportError, OSError) as error:     # no fusepy, or no libfuse
    fuse, NO_FUSE = None, str(error)

LIMIT = 30                      # seconds in which it is mounted
QUOTA = 1 << 18                 # bytes


class Names:
    """What a share makes of names: which are one, which it keeps, how it lists them."""

    def __init__(self, modes):
        self.modes = modes

    def kept(self, name):
        return name.rstrip('. ') or name if 'ends' in self.modes else name

    def listed(self, name):
        name = unicodedata.normalize('NFD', name) if 'form' in self.modes else name
        return name.lower() if 'lower' in self.modes else name

    def key(self, name):
        name = self.listed(self.kept(name))
        return name.casefold() if 'case' in self.modes else name


class Share(fuse.Operations if fuse else object):
    """The operations, on the directory that is behind it."""

    def __init__(self, root, modes):
        self.root, self.names = root, Names(modes)

    def __call__(self, operation, path, *rest):
        with contextlib.suppress(FileNotFoundError), open(self.root + '.trouble') as file:
            name = file.read()
            if name != 'EDQUOT' or operation == 'write' and rest[1] > QUOTA:
                raise fuse.FuseOSError(getattr(errno, name))
        if operation == 'rename':
            rest = self.renamed(path, *rest),
        return super().__call__(operation, self.real(path), *rest)

    def real(self, path):
        """The path of what a path stands for, or of what would be made for it."""
        found = self.root
        for name in path.strip('/').split('/') if path != '/' else ():
            if not os.path.lexists(os.path.join(found, name)):
                here = os.listdir(found) if os.path.isdir(found) else ()
                name = next((each for each in here if self.names.key(each) == self.names.key(name)),
                            self.names.kept(name))
            found = os.path.join(found, name)
        return found

    def renamed(self, old, new):
        place = self.real(new)
        if place == self.real(old):         # another spelling of itself
            place = os.path.join(os.path.dirname(place), self.names.kept(os.path.basename(new)))
        return place

    def init(self, path):
        pass

    destroy = init

    def getattr(self, path, handle=None):
        found = os.lstat(path)
        return {name: getattr(found, name) for name in dir(found) if name.startswith('st_')}

    def readdir(self, path, handle):
        return ['.', '..'] + [self.names.listed(name) for name in os.listdir(path)]

    def statfs(self, path):
        found = os.statvfs(path)
        return {name: getattr(found, name) for name in dir(found) if name.startswith('f_')}

    def open(self, path, flags):
        return os.open(path, flags)

    def create(self, path, mode):
        return os.open(path, os.O_RDWR | os.O_CREAT, mode)

    def read(self, path, size, offset, handle):
        return os.pread(handle, size, offset)

    def write(self, path, data, offset, handle):
        return os.pwrite(handle, data, offset)

    def truncate(self, path, length, handle=None):
        os.truncate(path, length)

    def release(self, path, handle):
        os.close(handle)

    def symlink(self, path, target):
        os.symlink(target, path)

    def utimens(self, path, times=None):
        os.utime(path, times)

    chmod, chown, mkdir, rmdir, unlink, rename, readlink = map(
        staticmethod, (os.chmod, os.chown, os.mkdir, os.rmdir, os.unlink, os.rename, os.readlink))


@functools.lru_cache(None)
def missing():
    """Why there is no such share here, in words, or ''."""
    if not fuse:
        return 'odd shares need fusepy and libfuse2: ' + NO_FUSE
    if not (shutil.which('fusermount') and os.access('/dev/fuse', os.R_OK | os.W_OK)):
        return 'odd shares need fusermount and /dev/fuse'
    with tempfile.TemporaryDirectory() as behind, tempfile.TemporaryDirectory() as place:
        try:
            serve(behind, place).communicate()
        except RuntimeError as error:
            return str(error)
    return ''


def serve(behind, place, *modes):
    """The process of a share that is mounted. It ends with its input; of no session and no mark of
    the runner's, it is there to unmount when all others are killed."""
    server = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), behind, place] + list(modes),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, env={'PATH': os.environ['PATH'], 'LC_ALL': 'C.UTF-8'})
    end = time.monotonic() + LIMIT
    while not os.path.ismount(place):
        if server.poll() is not None or time.monotonic() > end:
            words = server.communicate()[0].decode('utf-8', 'replace')
            raise RuntimeError('an odd share cannot be mounted here: ' + words)
        time.sleep(0.01)
    return server


class OddShare:
    """A PoolCase whose backup_dir is such a share, of these modes; `behind` is the directory."""

    modes = ('case',)

    def setUp(self):
        super().setUp()
        self.behind = self.at('behind')
        self.mount(self.backups, self.behind, *self.modes)

    def mount(self, place, behind, *modes):
        if missing():
            self.skipTest(missing())
        os.makedirs(behind, exist_ok=True)
        self.addCleanup(serve(behind, place, *modes).communicate)


def main(behind, place, *modes):
    def unmount():
        os.read(0, 1)           # until its end
        subprocess.call(['fusermount', '-u', '-z', place])
    threading.Thread(target=unmount, daemon=True).start()
    fuse.FUSE(Share(behind, modes), place, foreground=True, nothreads=True, big_writes=True,
              use_ino='inodes' not in modes, attr_timeout=0, entry_timeout=0, fsname='oddshare')


if __name__ == '__main__':
    main(*sys.argv[1:])
