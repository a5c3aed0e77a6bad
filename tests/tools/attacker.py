"""Somebody who may write to a share, and no more: puts things in the place of others there.

`poll` does so in a process of its own, as fast as it can look; `tests/tools/launcher.py` has an
Attacker do it at an operation of a run, in its process.
"""

import contextlib
import fnmatch
import json
import os
import random
import shutil
import socket
import stat
import time

IMAGES, FILES = 'sr', 'home'    # what is outside: a directory of images, and somebody's files


def like(outside, path):
    """The file outside that is most like one of the share: of the same name, else a secret."""
    name = os.path.join(outside, IMAGES, os.path.basename(path))
    return name if os.path.isfile(name) else os.path.join(outside, FILES, '.bashrc')


def bind(path):
    """A unix socket of that path, which may be longer than such a path."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
        handle = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            end.bind('/proc/self/fd/%d/%s' % (handle, os.path.basename(path)))
        finally:
            os.close(handle)


def full_of_links(path, outside, names=()):
    """A directory in which each name is a link, of one kind or the other, to something outside."""
    os.mkdir(path)
    for number, name in enumerate(names):
        place, file = os.path.join(path, name), like(outside, name)
        if '.' not in name and name.isupper():
            os.symlink(os.path.join(outside, IMAGES), place)
        else:
            (os.symlink if number % 2 else os.link)(file, place)


MOVES = {
    'a link to a directory': lambda path, outside, names: os.symlink(
        os.path.join(outside, IMAGES), path),
    'a link to a file': lambda path, outside, names: os.symlink(like(outside, path), path),
    'a link to nowhere': lambda path, outside, names: os.symlink(
        os.path.join(outside, FILES, 'new'), path),
    'a hard link': lambda path, outside, names: os.link(like(outside, path), path),
    'a FIFO': lambda path, outside, names: os.mkfifo(path),
    'a socket': lambda path, outside, names: bind(path),
    'a device': lambda path, outside, names: os.mknod(
        path, 0o666 | stat.S_IFCHR, os.makedev(1, 5)),          # mem.rst: /dev/zero
    'a file': lambda path, outside, names: os.close(os.open(path, os.O_CREAT | os.O_EXCL)),
    'a directory': lambda path, outside, names: os.mkdir(path),
    'a directory of links': full_of_links}


def find(root, pattern):
    """The last path that fits a pattern, in which * also stands for a dot at the beginning, and <*
    for the first one; or what could be made if only its last part is missing; >.x is the same name
    with another ending. None."""
    found = root
    pattern, _, ending = pattern.partition('>')
    parts = pattern.split('/')
    for number, part in enumerate(parts):
        first = part.startswith('<')
        part = part.lstrip('<')
        try:
            names = sorted(fnmatch.filter(os.listdir(found), part)) if '*' in part else [part]
        except OSError:
            return None
        if not names:
            return None
        found = os.path.join(found, names[0 if first else -1])
        if os.path.islink(found) and number < len(parts) - 1:
            return None
    return os.path.splitext(found)[0] + ending if ending else found


def any_path(top, chance):
    """Any file or directory below a directory, a link's targets excluded."""
    found = []
    for directory, names, files in os.walk(top):
        found += [os.path.join(directory, name) for name in names + files]
    return chance.choice(sorted(found)) if found else None


class Attacker:
    """Makes one move, as soon as it can be made, and takes it back so many operations later.

    root, pattern   what is replaced (see `find`); without a pattern anything below root
    move            one of MOVES
    outside         what links lead to
    back            operations until what was replaced is put back; 0: never
    notes           a file into which the move is written
    """

    def __init__(self, root, pattern, move, outside, notes, back=0, seed=''):
        self.root = root
        self.pattern = pattern
        self.move = move
        self.outside = outside
        self.notes = notes
        self.back = back
        self.chance = random.Random(seed)
        self.aside = os.path.join(os.path.dirname(notes), 'aside')
        self.path = None        # of what was replaced
        self.kept = None        # of what was there
        self.put = None         # inode of what took its place
        self.left = back

    def at_operation(self, what=''):
        """Do what is due before an operation of the run."""
        if not self.path:
            self.strike(what)
        elif self.back:
            self.left -= 1
            if not self.left:
                self.put_back()

    def strike(self, what=''):
        """Make the move if there is something to replace."""
        path = find(self.root, self.pattern) if self.pattern else any_path(self.root, self.chance)
        if not path or not os.path.isdir(os.path.dirname(path)):
            return False
        there = os.path.lexists(path)
        names = sorted(os.listdir(path)) if os.path.isdir(path) else ()
        if there:
            os.makedirs(self.aside, exist_ok=True)
            self.kept = os.path.join(self.aside, '%d-%s' % (
                len(os.listdir(self.aside)), os.path.basename(path)))
            os.rename(path, self.kept)
        try:
            MOVES[self.move](path, self.outside, names)
        except OSError:         # somebody was faster, or only root may
            if there and not os.path.lexists(path):
                os.rename(self.kept, path)
            return False
        self.path, self.put = path, number_of(path)
        self.note(what)
        return True

    def note(self, what, back=False):
        with open(self.notes, 'w') as file:
            json.dump({'path': self.path, 'kept': self.kept, 'put': self.put, 'what': what,
                       'back': back}, file)

    def put_back(self):
        """Have again what was replaced."""
        put_back(self.path, self.kept, self.put)
        self.note('', True)


def number_of(path):
    """The inode of what is at a path, or None."""
    with contextlib.suppress(OSError):
        return os.lstat(path).st_ino


def put_back(path, kept, put):
    """Remove what was put at a path, and have there again what was kept; if there is something
    else by now, leave it."""
    if number_of(path) not in (put, None):
        return
    remove(path)
    if kept and os.path.lexists(kept):
        with contextlib.suppress(OSError):
            os.rename(kept, path)


def remove(path):
    """Remove whatever is at a path, through no link."""
    with contextlib.suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def poll(stop, patterns, moves, seed, **how):
    """Swap, a millisecond after there is something to swap, and back, until that file is there; at
    the end all is back."""
    chance = random.Random(seed)
    Attacker(pattern='', move='', **how).note('ready', True)
    while not os.path.exists(stop):
        attacker = Attacker(pattern=chance.choice(patterns), move=chance.choice(moves), **how)
        with contextlib.suppress(OSError):
            attacker.strike()
        time.sleep(0.001)
        if attacker.path:
            attacker.put_back()
        time.sleep(chance.choice((0.001, 0.001, 0.02)))
