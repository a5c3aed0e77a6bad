#!/usr/bin/env python3
# VmBackup.py: backs up the VMs of a XenServer or XCP-ng pool from dom0.
# Free software under the GNU General Public License, version 3 or later (see LICENSE).
"""Back up VMs of a XenServer or XCP-ng pool: snapshot, export, verify, clean up, rotate, report.

Do not run this script unless you are comfortable with the commands that it issues for each VM:

    vm-export     xe vm-snapshot, template-param-set, vm-export, vm-uninstall (of the snapshot)
    vdi-export    xe vdi-snapshot, vdi-param-set, vdi-export, vdi-destroy (of the snapshot);
                  of several disks: vm-snapshot, template-param-set, vdi-export, vm-uninstall

before them `xe vm-export metadata=true`, which changes nothing; `xe snapshot-uninstall` where a
snapshot could not be prepared, vm-uninstall failed or an earlier run was killed; `xe vdi-destroy`
for disks of such a snapshot that are left, or are not to be exported; `xe vbd-unplug` and
`vbd-destroy` where dom0 still has them; on request `xe pool-dump-database`, and a program, `hook`.

`stream` does the same as vm-export, to standard output. A restore, which has to be asked for,
issues (the last for what is half done, or was but a test)

    of a VM       xe vm-import, vm-param-remove, vdi-param-remove, network-param-remove, vm-start
    of a disk     xe vdi-create, vdi-import, vbd-create, vbd-plug, vdi-param-set
    taken back    xe vm-destroy, vdi-destroy, vbd-unplug, vbd-destroy, network-destroy

Exit status: 0 all good; 1 warnings only; 2 errors; 128+N ended by signal N; of `status`, as a
plug-in's. Configs, backups and logs of NAUbackup/VmBackup 3.25, for Python 2, go on. Facts about xe
and xapi name their place in the sources of xapi-project/xen-api.

Map of this file, in the order in which a run meets its sections; each uses only those above it:

     1 Defaults      what an administrator may edit
     2 Vocabulary    what can go wrong, how a VM's backup can end
     3 Console       log lines, progress, text and byte forms, the only clock
     4 Settings      what was asked: command line, config file, password files, whose they are
     5 Selection     which VMs, how, keeping how many (pure)
     6 Retention     which backups to delete (pure)
     7 Processes     the only user of subprocess and signals
     8 Pool          the only user of XenAPI
     9 Files         names, all that is done to files on a share, records of what is in progress
    10 Catalogue     what backup_dir holds: it only reads
    11 Store         makes, completes, locks and deletes in backup_dir
    12 Formats       archives, images and dumps: read, verified, rewritten for a restore
    13 Metadata      vm-metadata.xml, vm.cfg, DISK-*/, VIFs/, RESTORE.txt
    14 Verification  a backup verified, file by file
    15 Exporters     snapshots, what is exported from them, how they are removed
    16 Importers     what a restore makes in the pool, and how it is taken back
    17 Reports       status log, report, mail, pings, hooks
    18 One VM        the backup of one VM, from its begin line to its end line
    19 Runs          a night's backup, its preview, a stream
    20 Commands      verify, list, prune, protect
    21 Restores      restore, test-restore
    22 Disks         extract, detach: one disk of a backup
    23 Checks        status, check-config, test-mail, test-ping
    24 Command line  help texts, main
"""

import base64
import fcntl
import functools
import heapq
import io
import itertools
import json
import os
import re
import shlex
import signal
import struct
import sys
import threading
import unicodedata
from collections import Counter, defaultdict, deque
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from errno import (EACCES, EAGAIN, EDQUOT, EEXIST, EFBIG, EINVAL, EIO, ELOOP, EMLINK,
                   ENAMETOOLONG, ENOENT, ENOSPC, ENOSYS, ENOTDIR, ENOTSUP, EPERM, EPIPE, EROFS,
                   ESTALE, EXDEV)
from os import (O_APPEND, O_CREAT, O_DIRECTORY, O_DSYNC, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_PATH,
                O_RDONLY, O_RDWR, O_WRONLY, fstat, getpid, pread)
from os.path import (abspath, basename, dirname, exists, isdir, isfile, join, lexists, normpath,
                     realpath, samestat, split, splitext)
from re import DOTALL, IGNORECASE, MULTILINE, findall, match, search, sub
from signal import (SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGTERM, SIGUSR1, SIG_BLOCK, SIG_IGN,
                    SIG_SETMASK, SIG_UNBLOCK, pthread_sigmask)
from stat import S_ISDIR, S_ISLNK, S_ISREG, S_ISVTX
from subprocess import CompletedProcess, DEVNULL, PIPE, Popen, STDOUT, TimeoutExpired
from threading import Lock, RLock, Thread, get_ident
from time import monotonic, sleep
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple
from xml.parsers.expat import ExpatError, ParserCreate

# What takes long to load (mail, HTTP, XML-RPC, XenAPI.py) is imported where it is used.

VERSION = '5.0.0'

# ----------------------------------------------------------------------------------------------
# 1. Defaults: what an administrator may edit
# ----------------------------------------------------------------------------------------------
# What a config file may say, as `VmBackup.py config` shows it. What is behind = is in effect where
# a config file says nothing else, and whenever a vm-selector takes the place of a config file.
# What is in [] is allowed: numbers from to, or one of some words; any text where nothing is there.
# The first line of a meaning stands for itself; `VmBackup.py help KEY` shows all of it.

KEYS_HELP = """
pool_db_backup=0 [0 to 1]
    1 takes a backup of the pool database too (on the pool master only)
pool_db_max_backups=0 [0 to 1000000]
    How many pool database dumps to keep; 0 keeps all
max_backups=4 [1 to 1000000]
    How many backups to keep for each VM
keep_last= [0 to 1000000]
    In place of max_backups; 0: only the next five count
keep_hourly=0 [0 to 1000000]
    Besides, the newest of each of so many hours
    that have one. A backup that any of these rules keeps stays, and the last good one
    always does
keep_daily=0 [0 to 1000000]
    The same for days
keep_weekly=0 [0 to 1000000]
    The same for weeks, which begin on Monday
keep_monthly=0 [0 to 1000000]
    The same for months
keep_yearly=0 [0 to 1000000]
    The same for years
backup_dir=/snapshots/BACKUPS []
    Directory of all backups; it must exist (mount the share there)
backup_dir_pattern=backup-%Y-%m-%d-(%H:%M:%S) []
    Name of a backup; SMB: backup-%Y-%m-%d-%H%M%S
    because such a share wants one without : ( )
status_log=/snapshots/NAUbackup/status.log []
    Status log file; its directory is made if it is missing
compress=False [true, false, gzip, zstd, none]
    Compression of vm-exports; True: gzip
pre_clean=False [true, false]
    Delete the oldest backups before the export, not after,
    but when the snapshot was taken; never the last good one
vdi_export_format=raw [raw, vhd, auto]
    Format of vdi-exports; auto: vhd if xapi can,
    which it cannot for disks of more than 2040 GiB, or of no whole 2 MiB
vdi_disks=boot []
    Disks of vdi-exports: boot, all, or devices such as xvda,xvdc;
    if it is not boot, each disk gets a file, and all are of one moment
vdi_compress=none [gzip, zstd, none]
    Compression of vdi-exports by this host
honour_nobak=no [yes, no]
    Leave out disks named [NOBAK], VMs tagged xo:no-bak,
    as Xen Orchestra does
large_backup=60 [1 to 1000000]
    More GiB than that mark a backup success_compress,
    and not success
lock_wait=0 [0 to 525600]
    Minutes to wait for a VM that another run has locked
require_mount=auto [yes, no, auto]
    Refuse a backup_dir where nothing is mounted:
    yes one on the root file system, auto one below a mount point of /etc/fstab where nothing
    is mounted; no looks at neither
min_free= []
    Free space that backup_dir needs for a VM (10%, 500M, 2T),
    and, in any case, as much as its last backup took
stall_timeout=30 [0.001 to 525600]
    Minutes until an export that does not move is ended
verify=yes [yes, no]
    Verify each backup before it counts; no: a shorter night
retries=0 [0 to 1]
    1 tries a VM that failed once more at the end of the run
parallel=1 [1 to 64]
    How many VMs to back up side by side; the largest come first
parallel_per_sr=0 [0 to 64]
    How many of them may have disks in one SR; 0: no limit
hook= []
    A program that is run at each phase of a run,
    such as job-start and backup-end
hook_timeout=60 [0.001 to 525600]
    Minutes after which it is ended
report_file= []
    A file that gets a report of each run, as JSON
mail_to= []
    Who gets the mail at the end of a run, separated by commas; nobody: no mail
mail_from= []
    Sender of that mail; empty: root@ this host
mail_smtp_server=localhost []
    Mail server
mail_smtp_port=25 [1 to 65535]
    Port of the mail server
mail_smtp_security=auto [auto, none, starttls, tls]
    Encryption to it; auto is what is usual
    on its port (starttls on 587, tls on 465), and starttls where there is an account
mail_smtp_user= []
    Account on the mail server, if it wants one
mail_smtp_password_file= []
    Password of that account, a file of create-password-file
mail_helo= []
    Name in the greeting (EHLO); empty: the name of this host,
    with the domain of mail_from if it has none
mail_mode=always [always, problems, never]
    When to mail; problems: warnings, errors
ping_url= []
    Address that is told how a run goes; a secret:
    /start, nothing or /fail is appended, or {status} in it becomes start, success or fail,
    {A|B|C} such words of your own
ping_body=none [none, summary]
    What it is sent: nothing, or how all VMs ended,
    with their names
"""

XE_PROGRAM = '/opt/xensource/bin/xe'
XAPI_URL = 'http://localhost/'
XAPI_SOCKET = 'unix:/var/lib/xcp/xapi'
STATE = '/var/lib/VmBackup'        # this host's own notes of what it has made in a pool
XE_TIMEOUT = 9000          # seconds for an xe command without data; xapi itself waits up to 2 h
XAPI_TIMEOUT = 600         # seconds for one XenAPI call and all of its answer
XAPI_PATIENCE = 300        # seconds to wait for an xapi that is gone in mid-run
SHARE_TIMEOUT = 120        # seconds for backup_dir to answer, where waiting would hold up a run
STATUS_TIMEOUT = 50        # seconds for all that `status` reads; Nagios ends a check after 60
DISCARD_PAUSES = (1, 2, 4)  # seconds between the attempts to remove a snapshot
BUSY_PAUSES = (8, 15, 30)  # further ones while it is in use
SNAPSHOT_PAUSES = (0.2, 1, 3, 10, 30)  # seconds, while xapi still is at work on one
SECOND_LOOK = 3            # seconds until what seems left over is looked at again
RESTART_PAUSE = 30         # seconds before VMs are tried again, as xapi may have gone away
FSTAB = '/etc/fstab'
XXHASH = 'libxxhash.so.0'
TELL_EVERY = 600           # seconds between log lines of what takes long
MAIL_ATTEMPTS = 3
MAIL_PAUSE = 3             # seconds between them
MAIL_TIMEOUT = 30          # seconds for each answer of the mail server
MAIL_LIMIT = 120           # seconds for all of one attempt
PING_PAUSES = (0, 2)       # seconds before each attempt to tell ping_url something
PING_LIMIT = 5             # seconds for all of one

# ----------------------------------------------------------------------------------------------
# 2. Vocabulary: what can go wrong, how a VM's backup can end
# ----------------------------------------------------------------------------------------------
# Exceptions go up. One VM's end in Run.attempt, a command's in `perform`, which tell them.

Record = Dict[str, Any]        # an object of xapi, or one of JSON: values by their fields
Records = Dict[str, Record]    # objects of xapi by reference
Texts = Sequence[str]
Strings = Dict[str, str]       # texts by texts
DiskIds = Sequence[Tuple[str, str]]    # uuids and devices
Sizes = Dict[str, int]         # bytes by names
Warned = List[str]             # warnings, to which more may be added
Size = Optional[int]           # bytes, None where nothing tells it
Time = Optional[str]           # as iso() writes it, the same

# Codes of ours, beside xapi's: a command did not end in time; xapi was not there, so that nothing
# was begun; it was not, or ended meanwhile; a disk is somebody else's.
TIMED_OUT, REFUSED, UNREACHABLE = 'TIMED_OUT', 'REFUSED', 'UNREACHABLE'
WENT_AWAY = (REFUSED, UNREACHABLE, 'HANDLE_INVALID')   # the last: it forgot the task
NOT_OURS = 'NOT_OURS'
IN_USE, FULL, HAS_USB = 'VDI_IN_USE', 'SR_FULL', 'VM_HAS_VUSBS'


class VmBackupError(Exception):
    """A sentence for the administrator; `code`, xapi's or ours, says to the program what it was."""
    token = 'BACKUP-FAIL'      # in the status log, if it ended a VM's backup

    def __init__(self, text, code=''):
        super().__init__(text)
        self.code = code


class UsageError(VmBackupError):
    """The command line cannot be understood."""


class ConfigError(VmBackupError):
    """A config file or a password file cannot be used."""


class TargetError(VmBackupError):
    """The backup directory cannot be used."""


class PoolError(VmBackupError):
    """XenAPI refused or could not be reached."""


class CommandFailed(VmBackupError):
    """A program could not be started, failed, or did not do what it claims."""


class Damaged(VmBackupError):
    """A file is not what a good backup has; the text tells where, and what was expected."""


class BackupFailed(VmBackupError):
    """One VM's backup failed, with a word of its own in the status log."""
    def __init__(self, token, text, code=''):
        super().__init__(text, code)
        self.token = token


class Interrupted(BaseException):
    """A signal asked us to end; not an Exception, so that no VM's failure handler takes it."""
    token = 'INTERRUPTED'

    def __init__(self, signum, remark=''):
        super().__init__(f'ended by signal {signum}{remark}')
        self.signum = signum


class Outcome(NamedTuple):
    """How the backup of one VM ended, as the report has it."""
    name: str                  # the VM's name-label
    uuid: Optional[str]        # None if it was not even tried
    method: str                # vm-export or vdi-export
    status: str                # SUCCESS, WARNING, SKIPPED, or what failed
    started: Time = None       # when it began
    seconds: int = 0
    path: Optional[str] = None         # of the dated directory, if it was made; portable
    files: Sizes = {}          # bytes of each file in a complete backup
    size: int = 0              # bytes of what was exported
    warnings: Texts = ()
    error: Optional[str] = None        # why it failed


class Tally(NamedTuple):
    """Counts of a run: VMs backed up, backed up with a warning, not backed up, skipped."""
    successes: int
    warnings: int
    errors: int
    skipped: int

    def __str__(self):
        return 'S:{} W:{} E:{}'.format(*self)


def tally(tokens: Texts, further_errors=0):
    """Count outcomes by their tokens; `further_errors` are those that belong to no VM."""
    good, warned, skipped = map(tokens.count, ('SUCCESS', 'WARNING', 'SKIPPED'))
    return Tally(good, warned, len(tokens) - good - warned - skipped + further_errors, skipped)


def token_of(error: BaseException):
    """Return the word in the status log for what ended a VM's backup."""
    usual = 'BACKUP-FAIL' if isinstance(error, OSError) else 'INTERNAL-ERROR'
    return getattr(error, 'token', usual)


class Verdict(NamedTuple):
    """A run's result: exit status and its words in status log, console and mail."""
    status: int
    token: str
    phrase: str


SUCCESS = Verdict(0, 'SUCCESS', 'Success')
WARNING = Verdict(1, 'WARNING', '**WARNING(s)**')
ERROR = Verdict(2, 'ERROR', '**ERRORS DETECTED**')
SKIPPED = Verdict(0, 'SKIPPED', 'Skipped')


def verdict_of(errors, warnings):
    """Return the result, by whether there are any of these."""
    return ERROR if errors else WARNING if warnings else SUCCESS


class Compression(NamedTuple):
    """How an archive or image is compressed."""
    name: str                  # in a config
    ending: str                # of the file's name
    magic: bytes               # the file's first bytes
    programs: Texts            # the first that this host has compresses and decompresses
    parameters: Strings        # of xe vm-export
    unpack: str                # command of a person for it


COMPRESSIONS = {each.name: each for each in (
    # `true` is understood by every release of xe; zstd since CH 8.1 and XCP-ng 7.6
    Compression('gzip', '.gz', b'\x1f\x8b', ('pigz', 'gzip'), {'compress': 'true'}, 'gzip -dk'),
    Compression('zstd', '.zst', b'\x28\xb5\x2f\xfd', ('zstd',), {'compress': 'zstd'}, 'zstd -dqk'),
    Compression('none', '', b'', (), {}, ''))}         # last, as every name and file has those
IMAGES = tuple(form + each.ending for form in ('.xva', '.raw', '.vhd')
               for each in COMPRESSIONS.values())      # endings of archives and images


def compression_of(name):
    """Return the compression that a file's name tells."""
    return next(each for each in COMPRESSIONS.values() if name.endswith(each.ending))


def plain_name(name):
    """Return a file's name without the ending of its compression."""
    return name[:len(name) - len(compression_of(name).ending)]

# ----------------------------------------------------------------------------------------------
# 3. Console: log lines, progress, text and byte forms, the only clock
# ----------------------------------------------------------------------------------------------
# Text is Unicode inside. Paths may carry surrogates for bytes that the locale cannot decode
# (Python's surrogateescape), which `encoded` turns back, so that LANG=C changes nothing.


MOST_NAMES = 10            # of VMs or such in one text
SHOW_EVERY = 1             # seconds after which a terminal shows anew what goes on
LONGEST_RECORD = 2**20     # bytes of a manifest or a snapshot's record
# What acts on a terminal or is not seen: C0, C1, ends of lines, what Unicode has as
# Default_Ignorable but for forms of emojis and ideographs, bytes out of UTF-8 that could be C1.
HIDDEN = re.compile(
    '[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f'
    '\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3'
    '\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff\udc80-\udc9f]')
# What a line of the log tells of, and the rest of it, unless that only points at others.
LEVEL = re.compile(r'\A\**(ERROR|WARNING|NOTE)(?: -|:)? '
                   r'(?!in configuration settings|.*\(see above\) *\Z)(.*)', re.DOTALL)
QUOTES = {'filename': '"', 'new-name-label': '"', 'name-label': '"', 'file-name': "'"}    # 3.25's
ACTS_WITHIN = {'"': f'["$`\\\\!]|{HIDDEN.pattern}', "'": f"'|{HIDDEN.pattern}"}


def now():
    """Return the local time without a zone, as directory names and logs carry it."""
    return datetime.now()


def iso(moment: datetime):
    """Return a local time as ISO 8601 with its offset: 2026-03-01T00:10:01+01:00."""
    return moment.astimezone().isoformat(timespec='seconds')


def seconds_of(text):
    """Return the seconds since 1970 of a time that iso() wrote after that. Raise ValueError."""
    if not match(r'(19[7-9]|[2-8]\d\d)\d[-\d]{6}T[:\d]{8}[+-]\d\d:\d\d\Z', text, re.ASCII):
        raise ValueError('no time')
    # Python 3.6 knows no colon in %z.
    return datetime.strptime(text[:22] + text[23:], '%Y-%m-%dT%H:%M:%S%z').timestamp()


def human_size(size):
    """Return bytes for a person: 1.5 GiB."""
    if size < 1024:
        return f'{size:.0f} bytes'
    for unit in ('KiB', 'MiB', 'GiB', 'TiB'):
        size /= 1024
        if size < 1024:
            break
    return f'{size:.1f} {unit}'


def utc(seconds):
    """Return the time so many seconds from now, as xapi writes times."""
    return f'{now().astimezone(timezone.utc) + timedelta(seconds=seconds):%Y%m%dT%H:%M:%SZ}'


def seconds_ahead(text):
    """Return the seconds that a clock is ahead which says 20260301T00:10:01Z."""
    there = datetime.strptime(text + '+0000', '%Y%m%dT%H:%M:%SZ%z')
    ahead = int((there - now().astimezone()).total_seconds())
    if abs(ahead) > 10**8:                             # three years
        raise ValueError('no time of this day')
    return ahead


def stopwatch():
    """Return a function that returns the seconds since now, whatever becomes of the clock."""
    begun = monotonic()
    return lambda: monotonic() - begun


def this_host():
    """Return the name of this host."""
    return os.uname().nodename


def encoded(text):
    """Return the UTF-8 bytes of text or of a path, whatever the locale."""
    return text.encode('utf-8', 'surrogateescape')


def native(text):
    """Return the path that the os module turns into the UTF-8 bytes of a text."""
    return os.fsdecode(encoded(text))


def portable(path):
    """Return a path as text that is the same in every locale; `native` turns it back."""
    return encoded(path).decode('utf-8', 'surrogateescape')


def printable(text):
    """Return text for one line: what is HIDDEN in it becomes escapes."""
    def escaped(found):
        return found.group().encode('unicode_escape').decode('ascii')
    lone = '[\ud800-\udc7f\udd00-\udfff]'             # surrogates that stand for no byte
    return HIDDEN.sub(escaped, portable(sub(lone, escaped, text)))


def as_json(value):
    """Return a value as JSON, of ASCII that a terminal shows."""
    return json.dumps(value, indent=1).replace('\x7f', '\\u007f') + '\n'


def as_number(text):
    """Return an integer in JSON. Raise ValueError for others, and where int() would take hours."""
    if len(text) > 20:
        raise ValueError('it has a number that cannot be meant')
    return int(text)


DECODER = json.JSONDecoder(parse_int=as_number, parse_float=as_number, parse_constant=as_number)


def parse_json(data):
    """Return what JSON on a share holds. Raise ValueError for none, or more than we ever write."""
    values = sum(map(data.count, (b',', b'[', b'{')))
    if len(data) > LONGEST_RECORD or values > 2**15:
        raise ValueError(f'{len(data)} bytes with {values} values, more than any of ours has')
    try:
        value = DECODER.decode(data.decode('utf-8'))
        encoded(json.dumps(value, ensure_ascii=False))     # raises for what is no text
    except RecursionError:
        raise ValueError('too many values within each other')
    return value


def abbreviate(texts: Texts):
    """Return the first of these texts, and how many more there are."""
    more = len(texts) - MOST_NAMES
    return ', '.join(texts[:MOST_NAMES]) + (f' and {more} more' if more > 0 else '')


def shell_word(text):
    """Return text as one word for bash, which can be shown and pasted whatever is in it."""
    text = portable(text)
    if not HIDDEN.search(text):
        return shlex.quote(text)
    escaped = sub(rb'[^\w/ .,:=@%+~()-]', lambda found: b'\\x%02x' % ord(found[0]), encoded(text))
    return "$'" + escaped.decode('ascii') + "'"


def quoted(argv: Texts):
    """Return a command as a line for a shell, in 3.25's style where that is safe."""
    words = []
    for text in map(portable, argv):
        key, _, value = text.partition('=')
        quote = QUOTES.get(key)
        if quote and value and not search(ACTS_WITHIN[quote], value):
            words.append(f'{key}={quote}{value}{quote}')
        else:
            words.append(shell_word(text))
    return ' '.join(words)


class Console:
    """The log on standard output, whose lines are kept for the mail; a terminal shows progress."""
    current = None             # type: Console     # that of this process
    terminal = False           # whether it is one that is to show how far all is
    quiet = False              # of the log only what is wrong, and how all ended
    lost = 0                   # why, if what was printed is: a pipe is closed, a disk is full

    def __init__(self, output, errors=None):
        self.output = self.stream = output     # unbuffered; None if it is closed
        self.errors = errors   # the same
        self.document = {}     # type: Record  # what --json prints in the end
        self.passing = {}      # type: Dict[int, str]      # how far each thread is
        self.shown = ''        # what of that stands below the log
        self.lines = deque(maxlen=20000)    # type: deque
        self.lock = RLock()
        self.thread = threading.local()        # `begin` of its lines; `turn`: of what it shows

    def log(self, *lines, loud=False):
        """Print lines with 3.25's time stamp, loud ones also where it is to be quiet."""
        begin = getattr(self.thread, 'begin', '')
        for text in lines:
            for level, found in LEVEL.findall(text) if self.document else ():
                self.document[level.lower() + 's'].append(found)
            line = printable(begin + text)
            with self.lock:
                line = f'{now():%Y-%m-%d-(%H:%M:%S)} - {line}'
                self.lines.append(line)
                self.passing.pop(get_ident(), '')
                if loud or not self.quiet or match(r'\**(ERROR|WARNING)', text):
                    self.draw(line + '\n')

    def tell(self, **more):
        """Take something into the document; return whether there is to be one."""
        if self.document:
            self.document.update(more)
        return bool(self.document)

    def show(self, text):
        """Show how far this thread is, until its next line; on a terminal."""
        with self.lock:
            if self.terminal:
                self.passing[get_ident()] = printable(getattr(self.thread, 'turn', '') + text)
                self.draw('')

    def end(self, *lines):
        """Leave nothing below the log, of which these are the last lines."""
        with self.lock:
            self.terminal = False
            self.passing.clear()
            self.draw('')
        self.log(*lines)

    def draw(self, text):
        """Print text, and below it how far the threads are, each in a line if there are as many."""
        clear, self.shown = self.shown and '\r\x1b[K' + '\x1b[A\x1b[K' * self.shown.count('\n'), ''
        if self.passing:
            import shutil
            width, height = shutil.get_terminal_size()             # 0 on a serial console
            self.shown = '\n'.join(each[:(width or 80) - 1] for each in
                                   list(self.passing.values())[:height or 24])
        self.put(self.stream, clear + text + self.shown)

    def write(self, text):
        """Print text as it is on standard output, whole if there is time (see Signals.watch)."""
        self.end()
        with self.lock:
            self.put(self.output, text)

    def emit(self, data):
        """Write bytes of a stream on standard output. Raise CommandFailed if nobody takes them."""
        view = memoryview(data)
        try:
            while view:
                view = view[self.output.write(view) or 0:]
        except OSError as error:
            raise CommandFailed(f'cannot write to standard output: {error.strerror}')

    def put(self, stream, text):
        """Print text where the cursor stands; a closed or full output is not an error."""
        data = encoded(text)
        try:
            while data and stream:
                data = data[stream.write(data) or len(data):]
        except OSError as error:                       # nobody reads: the backup goes on
            self.lost = error.errno


Console.current = Console(None)


def log(*lines, loud=False):
    """Print lines with 3.25's time stamp, to be mailed too."""
    Console.current.log(*lines, loud=loud)


# ----------------------------------------------------------------------------------------------
# 4. Settings: what was asked: command line, config file, password files, whose they are
# ----------------------------------------------------------------------------------------------
# KEYS is the one source of each key's name, default, range, meaning. Nothing here knows the pool.

EXPORTS = ('vm-export', 'vdi-export')
METHODS = EXPORTS + ('exclude', 'exclude-disk')
NUMBERS = {int: r'[0-9]{1,9}\Z', float: r'[0-9]{1,6}(\.[0-9]{1,6})?\Z'}      # no other of Python's


class Rule(NamedTuple):
    """A line that selects or excludes VMs or disks."""
    method: str                # vm-export, vdi-export, exclude or exclude-disk
    text: str                  # what follows the =
    where: str                 # 'FILE line N' or 'command line'
    kind: str                  # what it is compared with: name, tag or uuid
    word: str                  # the tag or uuid, else the pattern of names
    keep: Optional[int] = None     # the N: how many backups to keep

    def __str__(self):
        return f'{self.method}={self.text}'


def parse_rule(method, text, where):
    """Divide NAME:N at the last colon where digits follow; the N of tag:N and uuid:N is none."""
    kind, word, keep = 'name', text, None
    found = match(r'(tag|uuid):\s*(\S.*)\Z', text, DOTALL)
    if found and method != 'exclude-disk':
        kind, word = found.groups()
    found = match(r'(.*):\s*([0-9]{1,9})\Z', word, DOTALL)
    if found and method in EXPORTS and (kind == 'name' or found.group(1)):
        word, keep = found.group(1), int(found.group(2))
    return Rule(method, text, where, kind, word.lower() if kind == 'uuid' else word, keep)


def unquoted(text, marks='#'):
    """Return a text without quotes around it, or what is before a :N, and without a comment, and
    what these were. A mark behind a blank begins a comment. Raise ValueError for a lone quote."""
    found = match(r'''\s*(["'])((?:(?!\1).)*)\1(:\d+|)\s*([#;].*|)\Z''', text)
    if found:
        return found.group(2) + found.group(3), f'the quotes {found.group(4)}'.rstrip()
    start = search(rf'\s[{marks}]|\Z', ' ' + text).start()
    value = text[:start].strip()
    if value.strip('"\'') != value:
        raise ValueError('has a quote without its other one')
    return value, text[start:].strip()


def nearest(word, known: Iterable[str], remark=', perhaps {}'):
    """Return a remark on what a mistyped word may stand for, '' where nothing is like enough."""
    import difflib
    found = difflib.get_close_matches(word.lower().lstrip('-'), known, 1, 0.75)
    return remark.format(*found) if found else ''


class CommandLine(NamedTuple):
    """The parts of a command line."""
    command: str = ''
    password: str = ''         # 3.25's first word, it or the name of its file; '' for local
    words: Texts = ()          # what it is about: a config file, a directory, a VM
    options: Strings = {}      # all that the command has; '' for those not given
    keys: Strings = {}         # of the config file, in whose place they stand
    only: Texts = ()           # vm-selectors: of what the config selects only these
    doubt: str = ''            # what to tell where the login fails
    wrong: List[UsageError] = []       # what cannot be understood, the first of which is told

    @property
    def word(self):
        """Return the first of them, '' without any."""
        return ''.join(self.words[:1])

    @property
    def path(self):
        """Return that as a path."""
        return native(self.word)


def fitting(text, pattern, expected):
    """Return a text that matches a pattern as it is."""
    if not match(f'({pattern})\\Z', text):
        raise ValueError(f'invalid (expected {expected})')
    return text


def devices(text):
    """Return the word boot or all, or devices separated by commas: xvda,xvdc."""
    device = '(xvd|hd|sd)[a-z]+'
    return fitting(sub(r'\s*,\s*', ',', text.lower()), f'boot|all|{device}(,{device})*',
                   'boot, all, or devices such as xvda,xvdc')


def absolute(text):
    """Return a path; a relative one is taken from the current directory, as 3.25."""
    path = text and abspath(native(text))
    if not path or search('[\x00-\x1f\x7f]', text + path):
        raise ValueError('invalid (expected a path, without control characters)')
    return path


def directory_pattern(text):
    """Return a name for dated directories: each of %Y %m %d %H %M %S once, and no slash."""
    if (sorted(findall('%(.?)', text)) != sorted('YmdHMS') or
            search('^[.]|[/\x00-\x1f\x7f]', text) or len(encoded(text)) > 200):
        raise ValueError('invalid (expected each of %Y %m %d %H %M %S once, no / and no dot '
                         'in front, 200 bytes at most)')
    return native(text)


def ping_address(text):
    """Return the address of ping_url as it is."""
    return fitting(text, r'https?://([\w.-]+|\[[\w:.]+\])(:[0-9]{1,5})?'
                   fr'([/?]([!$-&(-z|~]|\{{status\}}|{PING_WORDS})*)?',
                   'https://host/path, {status} or {start|success|fail} in it if need be')


def public(name, text):
    """Return what anybody may read of a key's value."""
    return '(a secret)' if name == 'ping_url' and text else text


def address(text):
    """Return a mail address as it is."""
    part = r'[^\s\x00-\x1f\x7f<>()"\[\]\\:;@,]+'
    return fitting(text, f'{part}(@{part})?', 'name@host')


class Key(NamedTuple):
    """A key of the config file, or an option of a command."""
    name: str
    default: str
    allowed: str               # '1 to 64': numbers; 'yes, no': words in any case; '': any text
    meaning: str = ''

    def hint(self):
        """Return what is allowed, as the end of an error."""
        return f', allowed: {self.allowed}' if self.allowed else ''

    def comment(self):
        """Return what `config` prints behind its value."""
        allowed = self.allowed and self.allowed + ': '
        return f'# {allowed}{self.meaning.splitlines()[0].strip(" ,;:")}'

    def parse(self, text):
        """Return what a text means. Raise ValueError with a word for what is wrong."""
        if not text and self.name in OPTIONAL:
            return ''
        least, is_number, most = self.allowed.partition(' to ')
        convert = CONVERSIONS.get(self.name, int if is_number else str)
        if is_number:
            if not (match(NUMBERS[convert], text) and float(least) <= float(text) <= float(most)):
                raise ValueError('out of range')
        elif self.allowed:
            text = text.lower()
            if text not in self.allowed.split(', '):
                raise ValueError('invalid')
        return convert(text)


PINGS = {'start': r'\1', 'success': r'\2', 'fail': r'\3'}
PING_WORDS = r'\{([!$-&(-z~]*)\|([!$-&(-z~]*)\|([!$-&(-z~]*)\}'     # in an address
OPTIONAL = 'keep_last min_free hook report_file mail_from mail_smtp_password_file ping_url'.split()
CONVERSIONS = dict(        # raise ValueError with a word for what is wrong
    lock_wait=float, stall_timeout=float, hook_timeout=float, vdi_disks=devices, mail_from=address,
    backup_dir=absolute, status_log=absolute, hook=absolute, report_file=absolute,
    mail_smtp_password_file=absolute, backup_dir_pattern=directory_pattern,
    compress=lambda word: {'true': 'gzip', 'false': 'none'}.get(word, word),   # as 3.25
    pre_clean=lambda word: word == 'true', honour_nobak=lambda word: word == 'yes',
    mail_to=lambda text: tuple(address(part.strip()) for part in text.split(',') if part.strip()),
    min_free=lambda text: fitting(text, '[0-9]{1,6}[KMGT]|[0-9]{1,2}%', '10% or 500M, 50G, 2T'),
    mail_smtp_server=lambda text: text or 'localhost', ping_url=ping_address,
    mail_helo=lambda text: fitting(text, r'|[A-Za-z0-9._-]+|\[[A-Za-z0-9.:]+\]',    # or address
                                   'a name such as xen1.example.com'))
KEYS = [Key(*found) for found in findall(r'(\w+)=(.*) \[(.*)\]\n((?: {4}.*\n)+)', KEYS_HELP)]
DEFAULT_PATTERN = 'backup-%Y-%m-%d-(%H:%M:%S)'    # of 3.25
OF_ALL_VMS = dict(pool_db_backup=('0', 'default'), report_file=('', 'default'),    # with vm=
                  ping_url=('', 'default'))
INVENTORY = '/etc/xensource-inventory'
LOCAL = 'rootfs ext2 ext3 ext4 xfs btrfs zfs tmpfs overlay squashfs vfat'.split()  # to one host
POOL_VERIFIES = '/var/xapi/verify-certificates'        # is there if hosts check each other's,
POOL_CERTIFICATES = '/etc/stunnel/xapi-pool-ca-bundle.pem'     # these (xapi: certificates.ml)
Settings = NamedTuple('Settings', [(key.name, Any) for key in KEYS])       # of a run


class Config(NamedTuple):
    """What a config file says, with everything that is wrong in it."""
    path: str                  # of the file; '' for the defaults of the script's first page
    settings: Settings
    rules: Sequence[Rule]
    given: Dict[str, Tuple[str, str]]      # text and place of each key
    unexpected: Texts          # lines that cannot be understood: nothing can be done
    errors: Strings            # of keys whose values cannot be used: a preview can still go on
    notes: Texts               # what may be meant otherwise

    def asks_for(self, name):
        """Return whether a config file or the command line decides on a key."""
        return bool(self.path) or self.given[name][1] != 'default'


def parse_config(lines: Texts, path='', line: CommandLine = CommandLine()):
    """Read `key=value` lines, over which the command line wins. Raise ConfigError."""
    values, errors = {}, {}    # type: Dict[str, Any], Dict[str, str]
    given = {key.name: (key.default, 'default') for key in KEYS}
    rules, unexpected, notes = [], [], []
    for number, text in enumerate(lines, 1):
        name, equals, text = map(str.strip, text.partition('='))
        place = f'{path} line {number}'
        name = sub('://.*', '://...', name)            # it may be a secret
        if name.startswith(('#', ';')) or not (name or equals):
            continue
        if not equals:
            unexpected.append(f'***ERROR not a key=value line: {name} ({place})')
        elif name in METHODS:
            rules.append(parse_rule(name, text, place))
        elif name in given:
            if given[name][1] != 'default':
                notes.append(f'***NOTE - config {name} is set twice: {place} overrides '
                             f'{given[name][1]}')
            given[name] = text, place
        else:
            remark = f'config key: {name} ({place}){nearest(name, [*given, *METHODS])}'
            if line.options.get('ignore_extra_keys'):
                notes.append('***NOTE - ignored ' + remark)
            else:
                unexpected.append('***ERROR unexpected ' + remark)
    given.update(OF_ALL_VMS if line.only else {})
    given.update((name, (text, 'command line')) for name, text in line.keys.items())
    for key in KEYS:
        name = key.name
        for text, place in ((key.default, 'default'), given[name]):
            try:
                value, dropped = unquoted(text)
                values[name] = key.parse(value)
                text = public(name, value)
                dropped = dropped.replace(key.comment(), '').strip()
                if dropped:
                    notes.append(f'***NOTE - config {name} is {text}, without {dropped} ({place})')
            except ValueError as error:
                text = public(name, text)
                if place == 'default':
                    raise ConfigError(f"default {name} {error} -> {text} (the script's first page)")
                errors[name] = f'ERROR: config {name} {error} -> {text} ({place}){key.hint()}'
            given[name] = text, place
    if values['keep_last'] == '':
        values['keep_last'] = values['max_backups']
    rules += [selector(text)._replace(method='vm', text=text) for text in line.only]
    files = [path, native(line.options.get('password_file') or line.password)] + [
        values[name] for name in ('status_log', 'hook', 'mail_smtp_password_file')]
    if values['report_file'] and values['report_file'] in map(abspath, filter(None, files)):
        values['report_file'] = ''
        errors['report_file'] = ('ERROR: config report_file would replace another file of this run '
                                 '-> {} ({})'.format(*given['report_file']))
    return Config(path, Settings(**values), rules, given, tuple(unexpected), errors, tuple(notes))


def read_config(line: CommandLine):
    """Read the config file, or the defaults for none; log where from. Raise ConfigError."""
    path = line.path
    if not path:
        return parse_config([], '', line)
    try:
        data = read_file(path, 2**20 + 1)
        if len(data) > 2**20 or b'\0' in data:
            raise ConfigError(f'not a config file (binary, or over 1 MiB): {path}')
        text = data.decode('utf-8-sig')
    except OSError as error:
        raise ConfigError(f'cannot read config file {path}: {error.strerror}')
    except UnicodeDecodeError as error:
        number = data[:error.start].count(b'\n') + 1
        raise ConfigError(f'config file {path} line {number} is not UTF-8 text (save it as UTF-8)')
    config = parse_config(re.split('\r\n|\r|\n', text), path, line)
    if line.command not in ('list', 'prune', 'status', 'config'):
        log(f'VmBackup config loaded from: {path}')
    return config


def config_of(line: CommandLine):
    """Read the config of a run, or have the defaults with vm-selectors. Raise VmBackupError."""
    rules = []                 # type: List[Rule]
    for word in line.words:
        if names_file(word) and ('/' in word or not isdir(native(word))):
            if len(line.words) == 1:
                return read_config(line)
            # One of the other words may be a password.
            raise UsageError(f'a config file stands alone: {word} (vm=SELECTOR chooses some of its '
                             'VMs; a password goes into a file, password-file=FILE)')
        rules.append(selector(word))
    config = parse_config([], '', line)
    return config._replace(rules=(*rules, *config.rules))


def refuse_unexpected(config: Config):
    """Log the lines of a config that are not understood; raise ConfigError if there are any."""
    log(*config.unexpected)
    if config.unexpected:
        raise ConfigError('in config_load, consider ignore_extra_keys=true for unexpected keys')


def selector(word):
    """Return the rule of a vm-selector: NAME or REGEX, vm-export=... or vdi-export=..."""
    method, equals, text = word.partition('=')
    if not equals or method.lower() not in EXPORTS:
        method, text = 'vm-export', word
    return parse_rule(method.lower(), text, 'command line')


def names_file(word):
    """Return whether a word names a file or directory."""
    return exists(native(word))


def read_file(path, limit):
    """Return what a file holds, so many bytes at most. Raise OSError, for a pipe and such too."""
    with open(path, 'rb', opener=lambda name, flags: os.open(name, flags | O_NONBLOCK)) as file:
        if not S_ISREG(fstat(file.fileno()).st_mode):
            raise OSError(EINVAL, 'not a file')
        return file.read(limit)


def deepest(points: Iterable[str], path):
    """Return the longest of some directories that a path lies in, or ''."""
    return max((point for point in points
                if (path + '/').startswith(join(point, ''))), key=len, default='')


def mount_points(table='/proc/self/mountinfo', column=4):
    """Return where file systems are mounted, with their types, or with FSTAB and 1 where they
    should be (proc(5), fstab(5)); {} if that is not known. Blanks and such are octal escapes."""
    found = {}
    with suppress(OSError), open(table, 'rb') as stream:
        for words in map(bytes.split, stream):
            if len(words) > column and words[column].startswith(b'/') and words[0][:1] != b'#':
                point = sub(rb'\\([0-7]{3})', lambda code: bytes([int(code[1], 8)]), words[column])
                found[os.fsdecode(point)] = words[-3:][0].decode('ascii', 'replace')
    return found


def is_local(path):
    """Return whether a real path lies on a file system of this host alone, where modes bind."""
    points = mount_points()
    return points.get(deepest(points, path)) in LOCAL


def way(path):
    """Yield path, mode and owner of all on the way to a path, also by links. Raise OSError."""
    here, rest = '/', join('/proc/self/cwd', path).split('/')
    for _ in range(1000):                              # links may lead round
        status = os.lstat(here)
        yield here, status.st_mode, status.st_uid
        if S_ISLNK(status.st_mode):
            target = os.readlink(here)
            here = '/' if target.startswith('/') else dirname(here)
            rest = target.split('/') + rest
        elif rest:
            here = normpath(join(here, rest.pop(0)))
        else:
            return
    raise OSError(ELOOP, 'has too many links')


def changeable(path, shares=True):
    """Return what others than root and this user may change, a file or on the way to it, and what
    to do; '' for nothing. Owners, modes and sticky bits count, not ACLs; on shares nothing does."""
    with suppress(OSError):                            # what is missing, nobody can change
        for here, mode, owner in way(path):
            safe = S_ISLNK(mode) or S_ISDIR(mode) and mode & S_ISVTX
            if owner not in (0, os.geteuid()) or mode & 0o022 and not safe:
                word = shell_word(here)
                return f'others may change {here} (chown root {word}; chmod go-w {word})'
    real = realpath(path)
    if shares and not is_local(real):
        return f'{real} is on a share, where others may change it (move it to this host)'
    return ''


def read_password_file(path, warn):
    """Read a password file, also of 3.25; warn when others may read it. Raise ConfigError."""
    try:
        text = read_file(path, 4097).strip()           # what is cut there is no base64
        if os.stat(path).st_mode & 0o077:
            warn(f'***WARNING - password file {path} can be read by others (chmod 600 {path})')
        wrong = changeable(path)
        if wrong:
            warn(f'***WARNING - password file {path}: {wrong}')
        password = base64.b64decode(text, validate=True).decode('utf-8')
    except OSError as error:
        raise ConfigError(f'cannot read password file {path}: {error.strerror}')
    except ValueError:
        password = ''
    if not password or '\0' in password:
        raise ConfigError(f'no password in password file {path} (use create-password-file)')
    return password


def password_of(line: CommandLine):
    """Return the password that a command line stands for, None for none. Raise ConfigError."""
    file, word = line.options.get('password_file', ''), line.password
    if line.options.get('password_stdin'):
        return password_typed()
    path = native(file or word)
    if file or isfile(path) or '/' in word and exists(path):
        return read_password_file(path, log)
    return word or None


def password_typed():
    """Return a password from standard input; a terminal does not show it. Raise ConfigError."""
    password = ''
    with suppress(EOFError, ValueError):               # nothing was typed; it is no text
        if sys.stdin and sys.stdin.isatty():
            import getpass
            password = portable(getpass.getpass('Password: '))
        elif sys.stdin:
            password = sys.stdin.buffer.readline(4097).decode('utf-8').rstrip('\r\n')
    if not 0 < len(password) <= 4096 or '\0' in password:
        raise ConfigError('no password on standard input')
    return password


def installation_uuid():
    """Return this host's uuid, as its installation wrote it (host-installer: backend.py), or ''."""
    with suppress(OSError), open(INVENTORY, encoding='utf-8', errors='replace') as stream:
        for uuid in findall("^INSTALLATION_UUID='?([-0-9a-f]+)", stream.read(), MULTILINE):
            return uuid
    return ''


# ----------------------------------------------------------------------------------------------
# 5. Selection: which VMs, how, keeping how many
# ----------------------------------------------------------------------------------------------
# Pure: from rules and the pool's VMs to a plan. What 3.25 selected is selected still.

NOBAK = '[NOBAK]'


class Vm(NamedTuple):
    """A VM of the pool, or what of its record a backup needs."""
    ref: str
    uuid: str
    name: str
    record: Record             # those of section 8's FIELDS
    saved: Any = None          # its History, or one Backup, of a VM that is chosen by its backups


class Job(NamedTuple):
    """A VM to be backed up."""
    method: str
    vm: Vm
    keep: int                  # backups to keep
    shown: str                 # NAME or NAME:N as the lists print it


def is_literal(pattern):
    """Return whether a pattern is a plain name: letters, digits, blanks, - and _ only."""
    return bool(match(r'[\w -]+\Z', pattern))


def regex_of(pattern):
    """Return a compiled pattern, None if it is no regular expression, or tag: or uuid: alone."""
    try:
        return None if match(r'(tag|uuid):\s*\Z', pattern) else re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return None


def matches(pattern, name):
    """Return whether a name equals a pattern, or that matches it."""
    regex = None if is_literal(pattern) else regex_of(pattern)     # the re module keeps 512
    return name == pattern or bool(regex and regex.match(name[:1024]))     # or it takes for ever


def is_called(vm: Vm, rule: Rule):
    """Return whether a rule means a VM by its very name or uuid."""
    return rule.kind != 'tag' and rule.word in (vm.name, vm.uuid)


def is_about(rule: Rule, vm: Vm):
    """Return whether a rule is about a VM, by what it compares."""
    if rule.kind == 'tag':
        return rule.word in vm.record.get('tags', ())
    return vm.uuid == rule.word if rule.kind == 'uuid' else matches(rule.word, vm.name)


def chooses(rule: Rule, vm: Vm):
    """Return whether vm=, which has no :N, chooses a VM, one of namesakes by its directory too."""
    return rule.keep is None and is_about(rule, vm) or rule.text in (
        vm.name, f'{vm.name}~{vm.uuid[:8]}', vm.ref.rpartition('/')[2])


class Plan:
    """What a run will do, as its rules say, and `select`; preview prints it, a run executes it."""
    def __init__(self, rules: Sequence[Rule] = (), vms: Sequence[Vm] = (), former={}, saved=False):
        self.rules = rules
        self.vms = vms
        self.former = former   # what became of the VMs that had these names
        self.lacking = 'no backup found' if saved else 'vm not found'
        self.only = [rule for rule in rules if rule.method == 'vm']
        self.wanted = {vm.ref for vm in vms if not self.only or any(
            chooses(rule, vm) for rule in self.only)}
        self.jobs = []         # type: List[Job]       # vdi-exports first, in the order of rules
        self.uncovered = []    # type: List[str]       # names that no rule mentions
        self.out = {}          # type: Dict[str, str]  # names of those that are excluded
        self.winners = {}      # type: Dict[Tuple[str, str], Tuple[Rule, Vm]]
        self.failures = []     # type: List[Outcome]   # of VMs that cannot be backed up
        self.broken = []       # type: List[Rule]      # those that are no regular expressions
        self.invalid = []      # type: List[Rule]      # those with a retention that is no number
        self.messages, self.warnings = [], []      # type: List[str], List[str]
        self.errors = []       # type: List[str]       # with any of these nothing is backed up
        for rule in sorted(rules, key=lambda rule: rule.method in EXPORTS):     # excludes first
            if rule.method == 'exclude-disk' and not (saved or regex_of(rule.word)):
                self.remark('WARNING', f'invalid regex: {rule} ({rule.where}): it can only be '
                                       'the name of a disk')
            if rule.method in ('vm', 'exclude-disk'):
                continue
            found = self.selected(rule)
            for vm in found:
                if vm.ref not in self.wanted:
                    continue
                if rule.method == 'exclude':
                    self.out[vm.ref] = vm.name
                    continue
                key = rule.method, vm.ref      # the last one wins, at the first one's place
                old, _ = self.winners.get(key, (rule, vm))
                if is_called(vm, old) and not is_called(vm, rule) and old.keep != rule.keep:
                    self.remark('NOTE', f'a later regex overrides the retention of {old.text}')
                self.winners[key] = rule, vm
            if not found:
                self.not_found(rule)
        self.excluded = list(dict.fromkeys(self.out.values()))

    def is_concerned(self, method, rule: Rule):
        """Return whether a line of a method is about what another one means that is not there."""
        meant = Vm('', rule.word, rule.word, {'tags': [rule.word]})
        return any(other.method == method and other.text and other.kind == rule.kind
                   and is_about(other, meant) for other in self.rules)

    def remark(self, level, text):
        """Note a line for the log."""
        self.messages.append(f'***{level} - {text}')
        if level == 'WARNING':
            self.warnings.append(text)

    def selected(self, rule: Rule):
        """Return the VMs that a rule is about; an empty vm-export= means every VM."""
        if not rule.text and rule.method != 'vm-export':
            return []
        return [vm for vm in self.vms if is_about(rule, vm)]

    def hint(self, rule: Rule):
        """Return what to write instead of a line, or what became of its VM; '' if nothing helps."""
        if rule.method in EXPORTS and rule.word in self.former:
            return ': ' + self.former[rule.word]
        text = HIDDEN.sub('', sub(r'\s', ' ', rule.text))      # what looks like a blank, or nothing
        remark = '' if text == rule.text else ' (in plain letters and blanks)'
        for parts in [text], text.split(',', 100):
            lines = []         # type: List[Rule]
            with suppress(ValueError):
                for part in parts:
                    line, _ = unquoted(part, '#;')
                    if line:
                        lines.append(parse_rule(rule.method, line, rule.where))
            if any(map(self.selected, lines)):
                return ': write ' + ' and, in a line of its own, '.join(map(str, lines)) + remark
        return ''

    def not_found(self, rule: Rule):
        """Tell of a rule that selects no VM; what is no regular expression ends all, as in 3.25."""
        by_name = rule.kind == 'name'
        hint = self.hint(rule)
        line = f' ({rule.where})'
        if by_name and not (hint or regex_of(rule.word)):
            self.broken.append(rule)
            self.remark('ERROR', f'invalid regex: {rule}{line}')
            return
        is_export = rule.method in EXPORTS
        level = 'WARNING' if hint or is_export else 'NOTE'
        if is_export and by_name and not hint and search(r':\s*[+-]?\w*\Z', rule.word):
            self.invalid.append(rule)              # meant as NAME:N
            self.errors.append(f'ERROR: vm_max_backup is invalid - {rule.text}{line}')
            return
        if self.only and not self.is_concerned('vm', rule):
            return
        if is_export:
            if not rule.text or self.is_concerned('exclude', rule):
                level = 'NOTE'
            elif hint or rule.kind == 'uuid' or by_name and is_literal(rule.word):
                level = 'ERROR'
                name = rule.word if by_name else f'{rule.kind}:{rule.word}'
                if name not in [failure.name for failure in self.failures]:
                    self.failures.append(Outcome(name, None, rule.method, 'VM-NOT-FOUND',
                                                 error='not in the pool' + hint))
        self.remark(level, f'{self.lacking}: {rule}{line}{hint}')


class DiskChoice(NamedTuple):
    """Which disks of a VM are backed up."""
    excludes: Texts = ()       # patterns
    honour_nobak: bool = False
    wanted: str = 'all'        # boot, all, or devices separated by commas

    def reason(self, vm, disk):
        """Return why a Disk of a VM is left out, or '' (xen-orchestra: docs, Exclude disks)."""
        if self.honour_nobak and NOBAK in disk.name:
            return NOBAK
        for pattern in self.excludes:
            if pattern == disk.vdi['uuid'] or matches(pattern, disk.name) or (
                    matches(pattern, f'{vm}/{disk.device}')):
                return f'exclude-disk={pattern}'
        return ''


def select(rules: Sequence[Rule], vms: Sequence[Vm], max_backups, honour_nobak=False,
           former: Strings = {}, saved=False):
    """Choose VMs to back up, or `saved` ones, of which a name may stand for several. Pure."""
    plan = Plan(rules, vms, former, saved)
    namesakes = Counter(vm.name for vm in vms)
    covered = set(plan.out)
    both, doubled = [], Counter()      # type: List[str], Counter
    for rule, vm in sorted(plan.winners.values(), key=lambda each: each[0].method):    # vdi- first
        name = vm.name
        called = is_called(vm, rule)
        tags = vm.record.get('tags', ()) if honour_nobak else ()
        if vm.ref in plan.out:
            if called:
                plan.remark('NOTE', f'forcing exclude of: {name}')
        elif vm.ref in covered:
            both.append(name)
        elif any(match(r'xo:no-bak(=|\Z)', tag) for tag in tags):    # xen-orchestra: Backup tags
            level = 'ERROR' if called else 'NOTE'
            plan.remark(level, f'vm has the tag xo:no-bak: {name} (honour_nobak)')
            if called:
                plan.failures.append(Outcome(name, None, rule.method, 'NOBAK-TAG',
                                             error='it has the tag xo:no-bak'))
        else:
            shown = f'{name}~{vm.uuid[:8]}' if namesakes[name] > 1 else name
            shown += '' if rule.keep is None else f':{rule.keep}'
            plan.jobs.append(Job(rule.method, vm, rule.keep or max_backups, shown))
            doubled[name] += rule.kind == 'name'
        covered.add(vm.ref)
    for name, count in doubled.items():
        if count > 1 and not saved:
            plan.remark('WARNING', f'more than one vm with the name {name}: all are backed up')
    if both:
        plan.remark('NOTE', f'both vm-export and vdi-export (this counts): {abbreviate(both)}')
    if plan.broken:
        plan.errors.append('ERROR regex errors found (see above) ')
    for rule in plan.only:
        if not any(chooses(rule, job.vm) for job in plan.jobs):
            plan.errors.append(f'ERROR {rule} is none of the VMs that are selected and found')
    if not (plan.jobs or plan.errors):
        plan.errors.append('ERROR no VMs loaded')
    plan.uncovered += dict.fromkeys(
        vm.name for vm in vms if vm.ref in plan.wanted and vm.ref not in covered)
    return plan


# ----------------------------------------------------------------------------------------------
# 6. Retention: which backups to delete
# ----------------------------------------------------------------------------------------------
# Pure: from the good backups of one VM, oldest first, and its disks, to why each is kept.


class Aged(NamedTuple):
    """A good backup, as far as retention needs to know it."""
    when: datetime             # local time
    sound: bool = True         # it was not found damaged
    disks: DiskIds = ()        # of those that are in it
    protected: bool = False


PERIODS = {                    # what times in one share; a week begins on Monday (ISO 8601)
    'hourly': '%Y%m%d%H', 'daily': '%Y%m%d', 'weekly': '%G%V', 'monthly': '%Y%m', 'yearly': '%Y'}
PROTECTED = 'protected'        # why a backup is kept; the file in it that says so
ONLY = 'disk '                 # another, with the device: no newer good backup has that disk


def has_disk(held: DiskIds, disk: Tuple[str, str], disks: DiskIds):
    """Return whether a disk of a VM, which has these disks now, is among those that are held: by
    its uuid or by its device, unless that was another one's, as devices are exchanged."""
    others = {uuid for uuid, _ in disks if uuid} - {disk[0]}
    return any(uuid and uuid == disk[0] or device == disk[1] and uuid not in others
               for uuid, device in held)


def reasons(backups: Sequence[Aged], policy: Dict[str, int], disks: DiskIds = ()):
    """Return why each backup, oldest first, is kept; one without a reason may go.

    A rule keeps the newest sound backup of each of its periods, without regard to the other rules.
    The newest sound one always stays; a damaged one, while fewer than `last` are newer. A protected
    one stays and counts for no rule. Of each of the VM's disks the newest sound backup stays."""
    found = [[] for _ in backups]      # type: List[List[str]]
    seen = {name: set() for name in PERIODS}   # type: Dict[str, set]
    newer = 0                  # sound ones
    for why, backup in zip(reversed(found), reversed(backups)):
        if backup.protected:
            why.append(PROTECTED)
            continue
        if newer < policy['last']:
            why.append('last')
        for name, periods in seen.items() if backup.sound else ():
            period = backup.when.strftime(PERIODS[name])
            if period not in periods and len(periods) < policy[name]:
                periods.add(period)
                why.append(name)
        if not (why or newer):
            why.append('newest')
        newer += backup.sound
    for disk in disks:
        holders = [why for why, backup in zip(found, backups)
                   if backup.sound and has_disk(backup.disks, disk, disks)]
        if holders and all(reason.startswith(ONLY) for reason in holders[-1]):
            holders[-1].append(ONLY + disk[1])
    return found


def policy_of(settings, job: Job):
    """Return how many backups of a VM each rule keeps: the newest, and one of each period."""
    return {'last': job.keep, **{name: getattr(settings, 'keep_' + name) for name in PERIODS}}


# ----------------------------------------------------------------------------------------------
# 7. Processes: the only user of subprocess and signals
# ----------------------------------------------------------------------------------------------
# Commands are argument lists. Children run in sessions of their own, so that a Ctrl-C reaches
# this program alone. A first signal cuts at once what reads, waits, mails or exports. What changes
# the pool is finished and taken back, in SIGNAL_GRACE seconds; so long have reports and mail, and
# each hook that ends something. What takes longer hangs, and is cut; what is not gone CUT_GRACE
# seconds later, or at a second signal, ends with the program, as by SIGKILL. Nothing is lost then:
# what may be left in the pool has its record, made before it, on which the next run acts.

SIGNALS = {SIGTERM: 'SIGTERM', SIGINT: 'SIGINT, as by Ctrl-C',
           SIGHUP: 'SIGHUP, as when its terminal is closed'}
CHILD = 'VMBACKUP_CHILD'   # in the environment of the programs that we start, to know them again
SIGNAL_GRACE = 30          # seconds for the pool, and then for reports, to end after a signal
CUT_GRACE = 15             # seconds for what is cut by one to end
TOGETHER = 0.3             # seconds in which a further one is the same: timeout(1) sends two
LOGIN_GRACE = 5            # seconds for login, logout and the share to answer after one
REAP_TIMEOUT = 5           # seconds between asking a child to end and ending it
LAST_WORDS = 1             # seconds for the output of a hook that has ended to be read
LONGEST_LINE = 8192        # bytes of it in one line of the log
LOOK_EVERY = 5             # seconds between a watchdog's checks, at most
WATCH_EVERY = 0.5          # seconds between checks of a file that is read
TASK_AGE = 86400           # seconds; xapi: db_gc_util.ml, timeout_tasks
ENDED = ('xapi ends a task of over 24 hours whose progress, of a disk in whole percents, stands '
         'still for 30 seconds (set a higher pending_task_timeout in /etc/xapi.conf)')
# The codes of what xe says: of a connection (xapi: xe-cli/newcli.ml; recorded from xapi 25.33.2 and
# 26.17.0), or an error of xapi, as its sentence (xapi: datamodel_errors.ml) or else its code.
XE_CODES = {
    REFUSED: 'Connection refused',
    UNREACHABLE: 'Lost connection|Connection reset|Broken pipe|Unable to contact',
    'HANDLE_INVALID': 'HANDLE_INVALID|You gave an invalid object reference',
    'OTHER_OPERATION_IN_PROGRESS': 'currently in progress',
    FULL: 'SR_FULL|The SR is full|SR_BACKEND_FAILURE_44|insufficient space|ENOSPC',
    'IMPORT_INCOMPATIBLE_VERSION': 'IMPORT_INCOMPATIBLE_VERSION|\\(incompatible\\) product version',
    'DUPLICATE_MAC_SEED': 'DUPLICATE_MAC_SEED|MAC seed is already in use',
    'NO_BRIDGE': 'field: bridge', 'NOT_ZEROED': 'unimplemented: prezeroed',
    HAS_USB: 'VM_HAS_VUSBS|has VUSBs', IN_USE: 'in use'}       # the first that fits counts


def send_signal(signum, *children: Popen):
    """Send a signal to children and what they started: VMBACKUP_XE may name a script with ssh."""
    for child in children:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signum)


def bounded(what, function, *arguments, watch=None, every=WATCH_EVERY, limit=0):
    """Return the result of a function that may hang. Raise TargetError after `limit` seconds, or
    SHARE_TIMEOUT; with a `watch`, which is called `every` so many, only what that raises."""
    results, errors = [], []   # type: List[Any], List[Exception]

    def work():
        try:
            results.append(function(*arguments))
        except Exception as error:                     # raised below, where it is awaited
            errors.append(error)

    thread = Thread(target=work, daemon=True)
    waited = stopwatch()
    thread.start()
    thread.join(every)
    while thread.is_alive():
        patience = limit or (LOGIN_GRACE if Signals.current.received else SHARE_TIMEOUT)
        if watch:
            check_signals(True)
            watch()
        elif waited() > patience:
            raise TargetError(f'{what} did not respond within {patience} seconds')
        thread.join(every)
    if errors:
        raise errors[0]
    return results[0]


class Watchdog:
    """Detects a stalled transfer: neither the bytes nor the progress of xapi's tasks change. Shows
    how far it is: always on a terminal, every ten minutes in a log. Feeds a program, too."""
    pieces = None              # type: Any     # for its standard input: a generator of bytes
    done = 0                   # bytes of that
    seen = (-1, {})            # type: Tuple[int, Dict[str, float]]
    logged = 0.0               # seconds until its last line in the log

    def __init__(self, limit, size, verb, path, expected=0, progress=dict):
        self.limit = limit         # seconds
        self.every = min(SHOW_EVERY if Console.current.terminal else LOOK_EVERY, limit / 4)
        self.size = size           # bytes so far
        self.verb = verb
        self.name = basename(path)
        self.expected = expected   # bytes, as far as is known
        self.progress = progress   # shares of what the tasks have to do
        self.seconds = self.standing = stopwatch()

    def check(self):
        """Raise CommandFailed if nothing has moved for too long; TargetError, Interrupted."""
        check_signals()
        size = bounded('the share', self.size)
        seen_size, shares = self.seen
        due = Console.current.terminal or self.seconds() - self.logged > TELL_EVERY
        if due or size == seen_size:
            shares = self.progress()
        self.show(size, max([0, *shares.values()]))
        if self.seen != (size, shares):
            self.seen, self.standing = (size, shares), stopwatch()
        if self.standing() > self.limit:
            raise CommandFailed(f'no progress for {self.limit / 60:g} minutes (stall_timeout), '
                                f'with {human_size(size)} {self.verb}')

    def feed(self, stream):
        """Write all pieces, or until the child ends, and close the stream. Raise what they do."""
        with suppress(BrokenPipeError), stream, closing(self.pieces):
            for piece in map(memoryview, self.pieces):
                while piece:
                    sent = stream.write(piece)
                    piece = piece[sent:]
                    self.done += sent

    def show(self, done, share):
        """Show that so many bytes are done, and that share of all, 0 if it is unknown."""
        seconds = self.seconds()
        done = done or int(share * self.expected)
        text = f'{self.verb} {human_size(done)}'
        if self.expected:
            text += f' of {human_size(self.expected)}'
            share = share or min(done / self.expected, 1)
        text += f', {human_size(done / max(seconds, 0.1))}/s: {self.name}'
        if share > 0.001:
            left = timedelta(seconds=int(seconds / share - seconds))
            text = f'{100 * share:.0f} %, {left} left, {text}'
        Console.current.show(text)
        if seconds - self.logged > TELL_EVERY:
            self.logged = seconds
            log(text)


class Signals:
    """Handles SIGTERM, SIGINT, SIGHUP in a thread, as the main one may hang; cuts that."""
    running = set()            # type: Set[Popen]   # all children
    starting = Lock()          # held until one is among them
    received = 0
    at_once = True             # until something is begun in the pool that must be finished
    logging_in = False         # a login that nobody awaits would stay in xapi
    since = None               # type: Callable[[], float]      # seconds since the signal
    deadline = 0.0             # of them, until which something may be finished
    overdue = False            # it has come
    ended = False              # all is done: what is told of it is not cut

    def __init__(self):
        self.children = set()  # type: Set[Popen]   # those that a signal ends

    @contextmanager
    def handled(self):
        """Handle the signals but for ignored ones (nohup); then ignore all, for the exit status."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        signal.signal(SIGUSR1, lambda *_: self.ended or check_signals(True))
        for signum in SIGNALS:
            if signal.getsignal(signum) != SIG_IGN:
                signal.signal(signum, lambda *_: None)     # the pipe tells of it
        Thread(target=self.watch, args=(reading,), daemon=True).start()
        pthread_sigmask(SIG_BLOCK, SIGNALS)
        Signals.current = self
        try:
            yield
        finally:
            Console.current.end()
            for signum in (*SIGNALS, SIGUSR1):
                signal.signal(signum, SIG_IGN)
            self.kill_children()

    def watch(self, pipe):
        """Act on the first signal; cut the main thread at the deadline; then end all."""
        pthread_sigmask(SIG_UNBLOCK, SIGNALS)
        self.note(os.read(pipe, 1)[0])
        asked_again = self.wait(pipe)
        self.overdue = True
        if not asked_again:
            self.allow(CUT_GRACE)
            signal.pthread_kill(threading.main_thread().ident, SIGUSR1)
            self.wait(pipe)
        with suppress(Interrupted, RuntimeError):              # the log hangs; no more threads
            bounded('', Console.current.end, f'ERROR {self.reason()}', watch=lambda: None)
        Console.current.lock.acquire(timeout=LAST_WORDS)  # nobody has to tell how the children end
        self.kill_children()
        os._exit(128 + self.received)

    def wait(self, pipe):
        """Wait until the deadline; return True as soon as a further signal has come."""
        import select
        while self.since() < self.deadline:
            if (select.select([pipe], [], [], WATCH_EVERY)[0] and
                    os.read(pipe, 1)[0] in SIGNALS and self.since() > TOGETHER):
                return True
        return False

    def kill_children(self):
        """End all programs that still run, also one that a thread is just starting, for good."""
        self.starting.acquire(timeout=LAST_WORDS)      # so that none is started any more
        send_signal(SIGKILL, *self.running)

    def note(self, signum):
        """Act on a signal: end the exports; give a login and the pool their time, and else none."""
        self.since = stopwatch()
        self.received = self.received or signum
        send_signal(SIGTERM, *self.children)
        if self.logging_in or self.children or not self.at_once:
            self.allow(LOGIN_GRACE if self.logging_in else SIGNAL_GRACE)

    def allow(self, seconds):
        """Give what is being finished after a signal at least so many seconds from now."""
        if self.received:
            self.deadline = max(self.deadline, self.since() + seconds)

    def reason(self):
        """Return what tells of the signal, and of what could not be finished."""
        return Interrupted(self.received, f' ({SIGNALS[self.received]})' + (
            ': what may be left in the pool has its record in backup_dir, for the next run'
            if self.overdue and not self.at_once else ''))


Signals.current = Signals()        # those that this process handles


def check_signals(finishing=False):
    """Raise Interrupted after a signal; if `finishing`, once there is no more time for that."""
    if Signals.current.overdue if finishing else Signals.current.received:
        raise Signals.current.reason()


def end_program(number):
    """End a process that is not our child."""
    with suppress(OSError):
        os.kill(number, SIGTERM)


@contextmanager
def started(argv: Texts, **how):
    """Run a program in a session of its own; `how` is Popen's. End it afterwards if it still runs.
    Raise CommandFailed. Who reads its outputs closes them, or might read on from another file."""
    environ = {**os.environ, CHILD: str(getpid())}
    environ.pop('XE_EXTRA_ARGS', None)                 # options that xe would add to every command
    how = {**dict(stdin=DEVNULL, stdout=PIPE, stderr=PIPE, bufsize=0, env=environ), **how}
    mask = pthread_sigmask(SIG_UNBLOCK, SIGNALS)     # a child inherits it
    try:
        with Signals.starting:
            child = Popen(list(map(encoded, argv)), start_new_session=True, **how)
            Signals.running.add(child)
    except (OSError, ValueError) as error:
        raise CommandFailed(f'cannot start {argv[0]}: {getattr(error, "strerror", error)}')
    finally:
        pthread_sigmask(SIG_SETMASK, mask)
    try:
        yield child
    finally:
        for signum in (SIGTERM, SIGKILL):
            if child.poll() is None:
                send_signal(signum, child)
                with suppress(TimeoutExpired):
                    child.wait(REAP_TIMEOUT)
        Signals.running.discard(child)


def decoded(output):
    """Return what a program has written as text."""
    return output.decode('utf-8', 'replace').strip()


def attend(children: Sequence[Popen], work, argv: Texts, limit, cuttable, watchdog=None):
    """Do work that ends with the children, which if `cuttable` a signal ends. Raise CommandFailed
    if it takes over `limit` seconds or, with a watchdog, stalls; Interrupted."""
    signals, waited = Signals.current if cuttable else Signals(), stopwatch()

    def watch():
        if signals.received and signals.since() > REAP_TIMEOUT:        # it was told to end already
            raise signals.reason()
        if watchdog:
            watchdog.check()
        elif waited() >= limit:
            raise CommandFailed(f'still running after {limit:g} seconds: {quoted(argv)}', TIMED_OUT)

    signals.children.update(children)
    if signals.received:
        send_signal(SIGTERM, *children)
    try:
        bounded('', work, watch=watch, every=watchdog.every if watchdog else WATCH_EVERY)
    finally:
        signals.children.difference_update(children)
    if signals.received:
        raise signals.reason()


def run(argv: Texts, timeout, cuttable=False, watchdog=None, packer=None):
    """Run a program to its end, or if `cuttable` to a signal. A packer: a program that compresses
    its output, and the open file for that. Raise CommandFailed if one cannot be started, takes over
    `timeout` seconds or, with a watchdog, stalls, or the packer fails; and what feeding it met."""
    fed = watchdog and watchdog.pieces
    with ExitStack() as stack:
        child = stack.enter_context(started(argv, stdin=PIPE if fed else DEVNULL))
        children = [child]
        stream, child.stdin = child.stdin, None        # else communicate() would close it
        if packer:
            tool, file = packer
            children.append(stack.enter_context(started(tool, stdin=child.stdout, stdout=file)))
            child.stdout.close()                       # the packer has it
            child.stdout = None
        said = []              # type: List[Tuple[bytes, bytes]]       # their outputs and errors

        def converse():    # in a thread of its own, as a child may say much before it reads on
            listening = Thread(daemon=True, target=lambda: said.extend(
                each.communicate() for each in children))
            listening.start()
            try:
                if fed:
                    watchdog.feed(stream)
                    # What xapi writes once it has all shows nowhere: as long as any command.
                    watchdog.limit = max(watchdog.limit, timeout)
            finally:
                listening.join()

        # In a thread, as what is fed may hang where it is read, and as communicate() of Python 3.6
        # fails if it is called again after a time limit and the child has closed one output.
        attend(children, converse, argv, timeout, cuttable, watchdog)
    status = children[-1].returncode
    if packer and status:
        reason = {-SIGPIPE: 'nobody reads its output any more'}.get(status, f'exit status {status}')
        raise CommandFailed(f'{tool[0]} failed: {decoded(said[-1][1]) or reason}')
    output, errors = said[0]
    return CompletedProcess(argv, child.returncode, output or b'', errors)


def run_hook(argv: Texts, own: Dict[str, bytes], timeout, cuttable, tell):
    """Run a program, with `own` in its environment. `tell` is called with each line; if `cuttable`,
    a signal ends it; what it leaves goes on. Raise CommandFailed with its last words, status."""
    last = deque(maxlen=4)     # type: deque

    def listen():
        with child.stdout as stream:
            for line in iter(lambda: stream.readline(LONGEST_LINE), b''):
                last.append(line.decode('utf-8', 'replace').rstrip('\r\n'))
                tell(last[-1])

    with started(argv, bufsize=-1, stderr=STDOUT, env={**os.environ, **own}) as child:
        listener = Thread(target=listen, daemon=True)
        listener.start()
        # It is not reaped, so nobody gets its group's number.
        attend([child], lambda: os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT), argv,
               timeout, cuttable)
        listener.join(LAST_WORDS)
    status = child.returncode
    if status:
        raise CommandFailed(f'exit status {status}: {" / ".join(last)}'.rstrip(': '), str(status))


def packing_command(compression: Compression, undo=False):
    """Return the command that packs its input, or unpacks it; raise CommandFailed for none."""
    import shutil
    for path in filter(None, map(shutil.which, compression.programs)):
        return [path, '-dc' if undo else '-c']
    raise CommandFailed(f'no program {compression.name} on this host (install it)')


class Filter(ExitStack):
    """A program through which a file is read; raise CommandFailed if it cannot be started."""
    def __init__(self, argv: Texts, handle):
        super().__init__()
        self.name = basename(argv[0])
        self.child = self.enter_context(started(argv, stdin=handle))
        self.enter_context(self.child.stdout)
        self.enter_context(self.child.stderr)

    def readinto(self, view):
        """Read what is there, 0 bytes at the end. Raise Damaged for bad input, CommandFailed."""
        got = self.child.stdout.readinto(view)
        if not got and self.child.returncode is None:
            words = decoded(self.child.stderr.read())
            status = self.child.wait()
            if status < 0:
                raise CommandFailed(f'{self.name} was ended by signal {-status}')
            if status:
                raise Damaged(f'{self.name} says: ' + words.replace('\n', ' / '))
        return got


def be_gentle(idle):
    """Let all others have CPUs and disks first; if `idle`, do not even compete for the disks."""
    os.nice(19 if idle else 10)
    with suppress(CommandFailed):                      # the system has no I/O priorities
        run(f'ionice {"-c 3" if idle else "-c 2 -n 7"} -p {getpid()}'.split(), SHARE_TIMEOUT)


class Xe:
    """The xe program; the log numbers the commands for one VM from 1."""
    def __init__(self, numbered=True):
        self.program = os.environ.get('VMBACKUP_XE') or XE_PROGRAM
        self.numbers = itertools.count(1) if numbered else None

    def tell(self, verb, **words):
        """Issue a command; return its output as text. Raise CommandFailed."""
        return decoded(self.issue(verb, **words))

    def issue(self, verb, watchdog=None, packer=None, at='', asking=False, **parameters):
        """Log and run a command, in which new_name becomes new-name; not logged if only `asking`.
        With a watchdog it transfers a file, the one `at` a path if given, with a packer or fed (see
        `run`), and a signal ends it. Return its output; raise CommandFailed with its last words. xe
        says 0 also where an export failed or made no file (xapi: cli_operations.ml)."""
        argv = [self.program, verb]
        given = argv[:]
        for name, value in parameters.items():
            if ':' not in name:                        # else it has a key of a map
                name = name.replace('_', '-')
            argv.append(f'{name}={value}')
            given.append(f'{name}={at if at and name.startswith("file") else value}')
        if search('[\x00-\x1f\x7f]', ''.join(given)):   # where xe would divide a word
            raise CommandFailed(f'xe takes no control character: {quoted(argv)}')
        if not asking:
            log((f'{next(self.numbers)}.cmd: ' if self.numbers else '') + quoted(argv))
        result = run(given, XE_TIMEOUT, bool(asking or watchdog), watchdog, packer)
        words = decoded(result.stderr)
        log(*words.splitlines())
        if result.returncode:
            if not verb.endswith(('-uninstall', '-destroy', '-unplug')):   # which are tried again
                log('ERROR ' + quoted(argv))
            last_words = ' / '.join(words.splitlines()[-4:]) or f'exit status {result.returncode}'
            code = next((code for code, said in XE_CODES.items() if search(said, last_words)), '')
            if watchdog and watchdog.seconds() > TASK_AGE:
                last_words += f'; perhaps as {ENDED}'
            raise CommandFailed(f'xe {verb} failed: {last_words}', code)
        if search('^Export (failed|cancelled)', words, MULTILINE):
            raise CommandFailed(f'xe {verb} failed, with exit status 0')
        return result.stdout


# ----------------------------------------------------------------------------------------------
# 8. Pool: the only user of XenAPI
# ----------------------------------------------------------------------------------------------
# Whole tables are read, not a call per VM. What calls the pool raises PoolError.

NULL = 'OpaqueRef:NULL'
MARK = 'vmbackup_restore'  # key of other_config: made by that restore, which has not ended
MARKED = MARK + ' {}'      # so is called a disk meanwhile
LOOK = 'vmbackup_look'     # another: a disk put on a running VM: its uuid, mode, that VM
OWN = 'vmbackup_snapshot'  # another: a snapshot of ours, by its own uuid, which no copy of it has
FIELDS = {                 # those that are kept
    'VM': 'tags name_description power_state memory_dynamic_max VCPUs_max VCPUs_at_startup VBDs '
          'VIFs VUSBs guest_metrics snapshots resident_on HVM_boot_policy',
    'VM_guest_metrics': 'os_version',
    'VDI': 'uuid name_label name_description type sharable read_only snapshots SR virtual_size',
    'VBD': 'uuid VDI type device userdevice bootable mode unpluggable empty',
    'VIF': 'uuid device network MTU MAC other_config', 'SR': 'uuid', 'network': 'name_label',
    'host': 'uuid name_label software_version', 'pool': 'uuid name_label master default_SR'}


class Disk(NamedTuple):
    """A disk of a VM: its VBD and its VDI."""
    device: str                # xvda and so on
    name: str
    size: int                  # bytes
    vbd_ref: str
    vbd: Record
    vdi_ref: str
    vdi: Record
    sr_uuid: str
    why: str = ''              # it is not exported


class Snapshot(NamedTuple):
    """A snapshot in the pool, of a VM or of a disk."""
    ref: str
    uuid: str
    label: str
    of: str                    # reference of the VM or disk
    when: str                  # UTC: 20260301T00:10:01Z
    vbds: Texts                # without any, a disk's was not made as part of a VM's
    template: bool             # a VM's, as long as nobody has prepared it for an export
    size: int                  # bytes of a disk
    tags: Texts
    marked: bool               # whether it says itself that it is one of ours


class Marked(NamedTuple):
    """What carries the mark of a restore: records by reference."""
    vms: Records
    disks: Records
    networks: Records


@contextmanager
def unless_gone():
    """Allow calls about an object that may be gone from the pool by now."""
    try:
        yield
    except PoolError as error:
        if error.code != 'HANDLE_INVALID':
            raise


def device_name(device, number):
    """Return a VBD's device; a VM that never ran has but its number (xapi: device_number.ml)."""
    if device or not match('[0-9]{1,7}\\Z', number):
        return device or number
    letters, rest = '', int(number) + 1
    while rest:
        rest, letter = divmod(rest - 1, 26)
        letters = chr(ord('a') + letter) + letters
    return 'xvd' + letters


def labelled(record: Record):
    """Return the name and the uuid of an object."""
    return '{name_label} ({uuid})'.format_map(record)


def free_space(sr: Record):
    """Return how much of a storage repository is free."""
    size = int(sr['physical_size'])
    free = human_size(max(0, size - int(sr['physical_utilisation'])))
    return f'{free} of {human_size(size)} free' if size > 0 else 'its size is not known'


class Answer(dict):
    """A record, or records by reference: what is not in it is no bug of ours."""
    def __missing__(self, key):
        raise PoolError(f'XenAPI gave an unexpected answer: there is no {key}')


def checked(method, answer, is_record=True):
    """Return an answer: a record, which has a uuid, or something by reference; raise PoolError."""
    if not isinstance(answer, dict) or is_record and 'uuid' not in answer:
        raise PoolError(f'XenAPI {method} gave an unexpected answer')
    return Answer(answer)


def kept(kind, record: Record):
    """Return of a record what is kept; old pools have not all of it, such as VUSBs."""
    return Answer((field, record[field]) for field in FIELDS[kind].split() if field in record)


class Pool:
    """A logged-in session with the pool."""
    redirected = False         # this host is not the master

    def __init__(self, url, password: Optional[str]):
        """Log in as root at http://..., https://... or unix:/path. Raise PoolError."""
        self.patience = XAPI_PATIENCE      # seconds
        self.shown = sub('//.*@', '//', url)        # without a password
        options = {'timeout': XAPI_TIMEOUT, 'user_agent': 'VmBackup/' + VERSION}
        bundle = POOL_CERTIFICATES if names_file(POOL_VERIFIES) else None
        try:
            import XenAPI
            if url.startswith('unix:/'):
                self.session = XenAPI.xapi_local(native(url[len('unix:'):]), **options)
            elif url.startswith(('http://', 'https://')):
                self.session = XenAPI.Session(url, ignore_ssl=True, bundle=bundle, **options)
            else:
                raise ValueError('http://, https:// or unix:/path')
        except (ImportError, SyntaxError, TypeError):      # the SDK's module has no timeout
            raise PoolError('XenAPI.py is missing or not ours (copy ours beside VmBackup.py)')
        except OSError as error:
            raise PoolError(f'cannot read {bundle}: {error.strerror or error}')
        except ValueError as error:
            raise PoolError(f'not a XenAPI address: {self.shown} ({error})')
        self.lock = RLock()                # a connection carries one call at a time
        self.snapshotting = RLock()        # snapshots are taken one after another
        self.tables = {}                   # type: Dict[str, Records]
        self.names = {}                    # type: Dict[str, str]  # of VMs; '' for templates
        if url.startswith('https:') and not bundle:
            log(f'***NOTE - the certificate of {self.shown} is not checked, as hosts of this pool '
                'do not check theirs (local as the password, or xe pool-enable-tls-verification)')
        self.guarded('login_with_password', 'root', password or '', '1.0', 'VmBackup.py')

    @classmethod
    @contextmanager
    def connect(cls, line: CommandLine):
        """Log in as a command line says, yield a Pool, log out. A pool member answers
        HOST_IS_SLAVE over TCP, with the master's address, before it looks at the password (xapi:
        xapi_session.ml); that then goes over TLS only. Raise PoolError, ConfigError."""
        password = password_of(line)
        url = os.environ.get('VMBACKUP_XAPI_URL') or (XAPI_SOCKET if password is None else XAPI_URL)
        remark = f' ({line.doubt})' if line.doubt and password in (None, line.password) else ''
        if remark and password and url.startswith('unix:'):
            raise PoolError(f'xapi takes any password at {url}, also this word{remark}')
        Signals.current.logging_in = True
        try:
            pool = cls(url, password)
        except PoolError as error:
            if error.code in (UNREACHABLE, 'SESSION_AUTHENTICATION_FAILED'):
                raise PoolError(f'{error}{remark}', error.code)
            if error.code != 'HOST_IS_SLAVE':
                raise
            master = error.__cause__.details[1]
            if master.count(':') > 1 and not master.startswith('['):
                master = f'[{master}]'                 # an IPv6 address
            pool = cls(f'https://{master}/', password)
            pool.redirected = True
        try:
            Signals.current.logging_in = False
            Signals.current.allow(CUT_GRACE)           # LOGIN_GRACE was for the login
            check_signals()
            yield pool
        finally:
            with suppress(PoolError, TargetError):                 # it expires by itself
                pool.session('close')()                # an interrupted call may still be on it
                bounded('xapi', pool.guarded, 'session.logout')
            pool.session('close')()

    def call(self, method, *arguments):
        """Return the result of a call, repeated while xapi is gone; XenAPI.py logs in again."""
        waited = stopwatch()
        for wait in itertools.chain((0, 1, 2), itertools.repeat(5)):
            try:
                with self.lock:
                    result = self.guarded(method, *arguments)
                self.patience = XAPI_PATIENCE
                return result
            except PoolError as error:
                if error.code not in (UNREACHABLE, 'HOST_STILL_BOOTING'):
                    raise
                if waited() >= self.patience:
                    self.patience = 0                  # until a call succeeds
                    raise
                if not wait:
                    log(f'***NOTE - {error}: trying again')
            sleep(wait)

    def guarded(self, method, *arguments):
        """Call; turn everything that XenAPI and its transport raise into a PoolError."""
        import http.client
        import socket
        import ssl
        import xmlrpc.client
        import XenAPI
        cause, code = None, ''     # type: Any, str
        try:
            return self.session.xenapi_request(method, arguments)
        except XenAPI.Failure as failure:
            cause = failure
            words = ' '.join(map(str, failure.details))
            code = str(failure.details[0])
        except xmlrpc.client.ProtocolError as error:   # its text has the password
            words = f'HTTP {error.errcode} {error.errmsg}'
        except (socket.timeout, ssl.SSLError, xmlrpc.client.Error, ValueError,
                ExpatError) as error:
            words = str(error) or type(error).__name__
        except (OSError, http.client.HTTPException) as error:
            words = getattr(error, 'strerror', '') or str(error) or type(error).__name__
            code = UNREACHABLE
        what = 'login at ' + self.shown if method == 'login_with_password' else method
        raise PoolError(f'XenAPI {what} failed: {words[:LONGEST_LINE]}', code) from cause

    def records(self, kind, method='get_all_records', *arguments):
        """Return the records of a class, by reference. One call."""
        method = f'{kind}.{method}'
        found = checked(method, self.call(method, *arguments), is_record=False)
        return Answer((ref, checked(method, record)) for ref, record in found.items())

    def record(self, kind, ref):
        """Return an object's record, as it is now. One call."""
        method = kind + '.get_record'
        return checked(method, self.call(method, ref))

    def where(self, kind, field, values: Iterable[str]):
        """Return the records with one of these values in a field (xapi: db_filter_parse.mly)."""
        if not values:
            return {}
        return self.records(kind, 'get_all_records_where', ' or '.join(
            f'field "{field}" = "{value}"' for value in values))

    def table(self, kind):
        """Return all records of a class by reference, read once."""
        with self.lock:
            if kind not in self.tables:
                self.tables[kind] = Answer((ref, kept(kind, record))
                                           for ref, record in self.records(kind).items())
            return self.tables[kind]

    def vms(self, marks: Texts = ()):
        """Return the real VMs, but for those with a mark of the restores that go on. One call."""
        found = []
        for ref, record in self.records('VM').items():
            if record['is_a_snapshot']:
                continue
            self.names[record['uuid']] = '' if record['is_a_template'] else record['name_label']
            if not (record['is_a_template'] or record['is_control_domain'] or
                    record['other_config'].get(MARK) in marks):
                found.append(Vm(ref, record['uuid'], record['name_label'], kept('VM', record)))
        return found

    def reread(self, vm: Vm):
        """Return the VM as it is now, but for its name; raise BackupFailed if it is gone."""
        with unless_gone():
            return vm._replace(record=kept('VM', self.record('VM', vm.ref)))
        raise BackupFailed('VM-NOT-FOUND', 'the VM is no longer in the pool')

    def known(self, kind, ref, fresh=False):
        """Return an object's record, as the table has it, unless it has to be fresh."""
        return not fresh and self.table(kind).get(ref) or self.record(kind, ref)

    def disks(self, vm: Vm, fresh=False):
        """Return a VM's disks by their devices, no CD drives; two calls for each that is fresh."""
        found = []
        for ref in vm.record['VBDs']:
            vbd = self.known('VBD', ref, fresh)
            if vbd['type'] == 'Disk' and vbd['VDI'] != NULL:
                vdi = self.known('VDI', vbd['VDI'], fresh)
                device = device_name(vbd['device'], vbd['userdevice'])
                found.append(Disk(device, vdi['name_label'], int(vdi['virtual_size']), ref, vbd,
                                  vbd['VDI'], vdi, self.field('SR', vdi['SR'], 'uuid')))
        return sorted(found, key=lambda disk: disk.vbd['userdevice'].zfill(9))

    def vifs(self, vm: Vm):
        """Return a VM's VIFs, in the order of their devices, with the names of their networks."""
        vifs = [self.known('VIF', ref) for ref in vm.record['VIFs']]
        return [{**vif, 'network_name_label': self.field('network', vif['network'])}
                for vif in sorted(vifs, key=lambda vif: vif['device'].zfill(9))]

    def snapshots(self, kind, values: Texts, field='snapshot_of'):
        """Return snapshots of a kind, VM or VDI, with one of the values in a field. One call."""
        return [
            Snapshot(ref, record['uuid'], record['name_label'], record['snapshot_of'],
                     str(record['snapshot_time']), record['VBDs'],
                     record.get('is_a_template', False), int(record.get('virtual_size', 0)),
                     record.get('tags', ()), record['other_config'].get(OWN) == record['uuid'])
            for ref, record in self.where(kind, field, values).items() if record['is_a_snapshot']]

    @staticmethod
    def waiting(what):
        """Yield while xapi may be ending what nobody waits for; raise PoolError after a while."""
        for wait in SNAPSHOT_PAUSES + (0,):
            yield
            sleep(wait)
        raise PoolError(what)

    def wait_for_snapshot(self, kind, ref):
        """Wait until no snapshot of an object is being made; raise PoolError after a while. xapi
        finishes a snapshot whose client is gone (xapi: xapi_cli.ml). While that waits for another
        operation, up to two hours, only a task tells of it (xapi: helpers.ml, retry)."""
        for _ in self.waiting('a snapshot may still be being made'):
            busy = False
            with unless_gone():
                operations = self.record(kind, ref)['current_operations']
                busy = any(each != 'export' for each in operations.values())
            for task in self.records('task').values():
                busy |= task['status'] == 'pending' and task['name_label'].endswith(
                    kind + '.snapshot')
            if not busy:
                return

    def await_exports(self, kind, ref):
        """Wait for a VM snapshot's exports, which may be anybody's; a disk shows its own."""
        for _ in self.waiting('it is still being exported') if kind == 'VM' else ():
            with suppress(PoolError):                  # removing the snapshot will tell
                if 'export' in self.record('VM', ref)['current_operations'].values():
                    continue
            return

    def holds(self, owners: Records, disks: Iterable[str], mode, sure):
        """Return the VBDs of disks of ours that none of their `owners`, VMs by reference, has; what
        uses each, or may do so; and if nothing does (''), whether a transfer has left it, as else
        it is a person's. Four calls where there is one, and two for each."""
        vbds = [vbd for vbd in self.where('VBD', 'VDI', disks).values() if vbd['VM'] not in owners]
        if not vbds:
            return []
        pending = {ref: task['name_label'] for ref, task in self.records('task').items()
                   if task['status'] in ('pending', 'cancelling')}     # labels
        operations, of_owners = {}, []     # type: Dict[str, str], List[str]       # by tasks
        for ref, vm in self.records('VM').items():
            operations.update(vm['current_operations'])
            if ref in owners:
                of_owners += vm['current_operations'].values()
        of_no_vm = [label for ref, label in pending.items() if ref not in operations]
        found = []
        for vbd in vbds:
            user, task = '', vbd['other_config'].get('task_id')
            of_dom0 = self.call('VM.get_is_control_domain', vbd['VM'])
            leaked = of_dom0 and self.is_of_transfer(vbd, mode, sure)
            if task in pending or vbd['current_operations']:
                user = 'a transfer, ' + pending.get(task, 'whose VBD is ' + vbd['uuid'])
            elif task is None and not (leaked and vbd['metrics'] == NULL):
                # It names no task which has ended, nor has xapi itself since it was made: of what
                # goes on, an owner's transfer has it or, perhaps, a disk's, which no VM shows.
                if leaked and of_owners:
                    user = 'a transfer, ' + of_owners[0]
                elif of_dom0 and of_no_vm:
                    user = 'perhaps the task ' + of_no_vm[0]
            found.append((vbd, user, leaked))
        return found

    def is_of_transfer(self, vbd: Record, mode, sure):
        """Return whether a VBD of dom0 is as a transfer makes it (xapi: attach_helpers.ml), in a
        mode (`sure`: nobody else can). It stays if xapi ends meanwhile, or storage keeps the disk.
        Up to xapi 26.15 it names its task; later it shows only, having no metrics, that it is from
        before xapi's last start (recorded from xapi 25.33.2 and 26.17.0)."""
        if vbd['mode'] != mode or vbd['type'] != 'Disk' or vbd['bootable']:
            return False
        if vbd['metrics'] == NULL and len(self.table('host')) > 1:
            host = self.table('host').get(self.call('VM.get_resident_on', vbd['VM']), {})
            if host.get('uuid') != installation_uuid():        # whose vhd-tool may go on
                return False
        if not vbd['other_config']:
            disk = self.record('VDI', vbd['VDI'])['uuid']
            return sure and self.version() >= (26, 16) and bool(match(
                f'(sm/backend/[^/]+/{re.escape(disk)})?\\Z', vbd['device']))
        return list(vbd['other_config']) == ['task_id']

    def progress(self, word, others: Iterable[str] = ()):
        """Return the progress of pending tasks but the others, by reference, that have a word in
        name or description: an exported VM's uuid, `VDI import` (in xapi 25.33.2 and 26.17.0)."""
        with suppress(PoolError):
            return {ref: task['progress'] for ref, task in self.records('task').items()
                    if task['status'] == 'pending' and ref not in others
                    and word in task['name_label'] + task['name_description']}
        return {}

    def is_gone(self, kind, uuid):
        """Return whether the pool says that there is no such object."""
        try:
            self.call(kind + '.get_by_uuid', uuid)
        except PoolError as error:
            return error.code == 'UUID_INVALID'
        return False

    def marked(self, mark):
        """Return the VMs, disks and networks that carry a restore's mark. Three calls."""
        return Marked(*(
            {ref: record for ref, record in self.records(kind).items()
             if record['other_config'].get(MARK) == mark
             or record['name_label'] == MARKED.format(mark)} for kind in ('VM', 'VDI', 'network')))

    def field(self, kind, ref, name='name_label'):
        """Return a text of an object, usually its name, as the table has it, '' for none."""
        return self.table(kind).get(ref, {}).get(name, '')

    def vm_words(self, vm: Vm):
        """Return what tells a VM from its namesakes: uuid, state and host."""
        host = self.field('host', vm.record['resident_on'])
        return f'{vm.uuid} ({vm.record["power_state"]}{host and ", on " + host})'

    def sr_words(self, srs: Records):
        """Return what tells storage repositories from each other: uuid, hosts and free space."""
        words, pbds = [], self.records('PBD').values()
        for ref, sr in srs.items():
            hosts = [self.field('host', pbd['host']) for pbd in pbds
                     if pbd['SR'] == ref and pbd['currently_attached']]
            words.append('{} ({}, on {}): {}'.format(
                sr['name_label'], sr['uuid'], abbreviate(hosts) or 'no host', free_space(sr)))
        return abbreviate(words)

    def own_record(self):
        """Return the pool's own record, as the table has it."""
        for record in self.table('pool').values():
            return record
        raise PoolError('XenAPI names no pool')

    def uuid(self):
        """Return the uuid of the pool."""
        return self.own_record()['uuid']

    def identity(self):
        """Return what a manifest tells of the pool: pool {name, uuid}, and the master's xapi."""
        pool = self.own_record()
        return {'pool': {'name': pool['name_label'], 'uuid': pool['uuid']},
                'xapi': self.table('host')[pool['master']]['software_version'].get('xapi', '')}

    def version(self):
        """Return the numbers in the version of the master's xapi, none if it is unknown."""
        return tuple(map(int, findall('[0-9]+', self.identity()['xapi'])))

    @functools.lru_cache()
    def ahead(self):
        """Return the seconds that the master's clock is ahead of ours, if known. Asked once."""
        with suppress(PoolError, ValueError):
            return seconds_ahead(str(self.call('host.get_servertime', self.own_record()['master'])))
        return 0

    def is_master(self):
        """Return whether this host, or else the one that we logged in at, is the master. A member
        logs nobody in, and its unix socket leads to the master (xapi: xapi_session.ml,
        api_server.ml), so that the installation's uuid is compared."""
        hosts, here = self.table('host'), installation_uuid()
        master = hosts[self.own_record()['master']]
        if here in [record['uuid'] for record in hosts.values()]:
            return master['uuid'] == here
        return not self.redirected


# ----------------------------------------------------------------------------------------------
# 9. Files: names, all that is done to files on a share, records of what is in progress
# ----------------------------------------------------------------------------------------------
# Who can write to a share may put a link, a pipe, or a directory of others where ours was. So all
# below backup_dir is reached from there by handles, part by part, and xe gets such a handle, too.

ROOTS = set()              # type: Set[str]        # backup_dir, or what a command was given as such
HELD = {}                  # type: Dict[str, List[int]]    # handles by path; the first counts
HOLDING = RLock()    # for looking at HELD, or changing it; a generator may end meanwhile
PARTIAL = '.partial'       # ends the name of a file that is long in the writing, until it is whole
HOLE = 1 << 16             # bytes of zeros that a sparse file leaves out
NOTHING = bytes(HOLE)
NEW = '.new'               # ends the name of such a file while it is written
LONGEST_PART = 247         # of a VM's directory, with room for .xva.zst behind it
# Parts of a path that a NAS, a desktop or a client drops: Synology, QNAP, WD, Samba
# (vfs_recycle(8)); macOS, netatalk, Windows, KDE (github/gitignore: Global); freedesktop.org; what
# was deleted while open (Linux: fs/nfs/unlink.c, fs/afs/dir_silly.c; libfuse: lib/fuse.c; macOS).
DROPPED = re.compile(
    r'(^|/)(@eaDir|#recycle|\.@__[^/]*|\.@upload_cache|@Recycle|\.wdmc|\.recycle|'
    r'\.DS_Store|\._[^/]*|\.Apple(Double|DB|Desktop)|Temporary Items|Network Trash Folder|'
    r'(eh)?thumbs(_vista)?\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information|\.directory|'
    r'\.Trash-[0-9]+|\.(nfs|__afs|fuse_hidden|smbdelete)[^/]*)(/|\Z)', IGNORECASE)
OURS = re.compile(             # what we, or 3.25, write into a dated directory beside the images
    r'((success(_compress|_restore|_compressing)?|(backup|snapshot)\.json)(\.[0-9a-f]+\.new)?|'
    r'vm-metadata\.xml|vm\.(cfg|json)|RESTORE\.txt|DISK-[^/.]*/(v[bd][di]\.cfg)?|'
    r'DISK-[xhs]v?d[a-z]+|VIFs(/(vif-[^/]*\.cfg)?)?)\Z', IGNORECASE)  # as a share may list it
INTENT = 'snapshot.json'   # in a dated directory, while a snapshot of ours may be in the pool
UUID = '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'
LACKS = {ENOSPC: 'no space left', EDQUOT: 'quota exceeded',     # where a file cannot be written
         EFBIG: 'file size limit (ulimit -f, or 4 GiB on FAT) reached'}
LACKED = ['', -1e9]        # type: List[Any]       # what was lacking last, and when


def path_part(name):
    """Return a VM name as a part of a path, that of no other: slashes and such are encoded as %2F,
    what looks so or, in front, as a directory of ours, too; one too long is cut, with a digest."""
    safe = label_part(name or '\0', '^[.]|(?<=^[.])[.]\\Z|^M(?=ETADATA_)|~(?=[0-9a-f]{8}\\Z)|'
                                    '[/\x00-\x1f\x7f]|%(?=[0-9A-Fa-f]{2})')
    data = encoded(safe)
    if len(data) > LONGEST_PART:
        import hashlib
        safe = (data[:LONGEST_PART - 9].decode('utf-8', 'ignore') +
                f'~{hashlib.sha256(encoded(name)).hexdigest():.8}')
    return native(safe)


def twin_part(name, uuid):
    """Return that of a VM whose name another one has, or had: that of no VM by its name alone."""
    return sub('%7E(?=[0-9a-f]{8}\\Z)', '~', path_part(f'{name}~{uuid:.8}'))


def folded(name):
    """Return a name without what some shares take for no difference: case (SMB, NTFS, APFS), how
    letters are composed (APFS, HFS+, ZFS), dots and blanks at the end (Windows servers)."""
    text = encoded(name).decode('utf-8', 'replace')
    return unicodedata.normalize('NFD', text.casefold()).rstrip('. ')


def label_part(text, special='[\x00-\x1f\x7f]'):
    """Return text for a snapshot's label: xe would split an argument at a newline and drop a final
    carriage return (xapi: xapi_cli.ml, get_line), so control characters are percent-encoded."""
    return sub(special, lambda found: f'%{ord(found.group()):02X}', text)


@contextmanager
def naming(path):
    """Have an OSError tell a path, where the system was given a handle."""
    try:
        yield
    except OSError as error:
        error.filename = path
        raise


@contextmanager
def allowing(*numbers):
    """Suppress an OSError of one of these numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def step_down(handle, above, path, inside=True):
    """Open a directory below an open one, which is closed: through no link, in its file system."""
    for part in filter(None, path[len(above):].split('/')):
        above = join(above, part)
        try:
            with naming(above):
                status = os.stat(part, dir_fd=handle, follow_symlinks=False)
                if S_ISLNK(status.st_mode):
                    raise OSError(ELOOP, 'is a symbolic link')
                if inside and (status.st_dev != fstat(handle).st_dev or part == '..'):
                    raise OSError(EXDEV, 'is not in the file system of backup_dir')
                below = os.open(part, O_DIRECTORY | O_NOFOLLOW, dir_fd=handle)
        finally:
            os.close(handle)
        handle = below
    return handle


def open_directory(path):
    """Open a directory; links on its path are followed in this host's own file systems."""
    handle = os.open(path, O_DIRECTORY)
    if os.readlink(f'/proc/self/fd/{handle}') == path or path.startswith('/proc/'):
        return handle                                  # there was no link, but in /proc
    os.close(handle)
    with naming(path):
        for here, mode, _ in way(path):
            above, name = split(here)
            if S_ISLNK(mode) and not is_local(above):
                raise OSError(ELOOP, f'is a symbolic link: {name} in {above}')
        return step_down(os.open('/', O_DIRECTORY), '/', here, False)      # through no new link


@contextmanager
def folder(path):
    """Yield a handle of a directory. Below ROOTS no part of its path may be a link, or lie on
    another file system; of one held open, what has its path now does not count. Raise OSError."""
    with HOLDING:
        base = deepest(list(HELD), path)
        held = HELD.get(base)                          # None if a generator has ended meanwhile
        if held:
            handle = os.dup(held[0])
    if not held:
        base = min((root for root in ROOTS if deepest([root], path)), key=len, default=path)
        handle = open_directory(base)
    handle = step_down(handle, base, path)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def place(path):
    """Yield the name of a file and a handle of its directory (see `folder`). Raise OSError."""
    directory, name = split(path)
    with folder(directory) as handle, naming(path):
        yield name, handle


@contextmanager
def handed(path):
    """Yield a path for a program that makes a file, through our handle (Linux: proc(5), fd)."""
    with place(path) as (name, handle):
        yield f'/proc/{getpid()}/fd/{handle}/{name}'


@contextmanager
def hold(path):
    """Hold a directory open: what is done below its path meanwhile is done in it. Raise OSError."""
    with folder(path) as handle:
        with HOLDING:
            HELD.setdefault(path, []).append(handle)
        try:
            yield
        finally:
            with HOLDING:
                HELD[path].remove(handle)
                if not HELD[path]:
                    del HELD[path]


def check_held(path):
    """Raise TargetError if a path, or that above, is not what is held open any more; OSError."""
    for each in (dirname(path), path):
        if each in HELD and not samestat(status_of(each), fstat(HELD[each][0])):
            raise TargetError(f'{each} was replaced by another directory meanwhile')


def status_of(path):
    """Return what lstat(2) tells. Raise OSError."""
    with place(path) as (name, directory):
        return os.stat(name, dir_fd=directory, follow_symlinks=False)


def is_there(path):
    """Tell whether there is a file. Raise OSError, as a share in trouble proves nothing."""
    with suppress(FileNotFoundError):
        status_of(path)
        return True
    return False


def names_in(path):
    """Return the names in a directory, and if each is a directory and no link. Raise OSError."""
    if path.count('/') > 100:                          # we make three below backup_dir
        raise OSError(ELOOP, 'lies too deep in other directories', path)
    with folder(path) as handle, naming(path), \
            os.scandir(f'/proc/self/fd/{handle}') as entries:      # 3.6 takes no handle itself
        return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}


def is_dropped(path):
    """Tell whether a NAS or such dropped that; ._NAME has to be an AppleDouble file, or empty."""
    if not basename(path).startswith('._'):
        return bool(DROPPED.search(basename(path)))
    try:
        return S_ISREG(status_of(path).st_mode) and load(path, 4, 1 << 32) in (
            b'', b'\x00\x05\x16\x07')                 # as that begins (RFC 1740)
    except FileNotFoundError:                          # it has gone again
        return True
    except PermissionError:
        return False


def sift(path, is_ours, part=''):
    """Yield what is in a directory; 'ours' is told by the path from there. Archives and images come
    first, what is in a directory of ours before it; one with something of a person in it counts for
    nothing itself, and nobody looks into others. Raise OSError."""
    found = names_in(f'{path}/{part}'.rstrip('/'))
    for name in sorted(found, key=lambda name: (not name.endswith(IMAGES), name)):
        each = part + name
        inner = []             # type: List[Tuple[str, bool, str]]
        whose = 'person'
        if is_dropped(f'{path}/{each}'):
            whose = 'dropped'
        elif is_ours(each + '/' * found[name]):
            whose = 'ours'
            inner += sift(path, is_ours, each + '/') if found[name] else ()
        yield from inner
        if 'person' not in [owner for _, _, owner in inner]:
            yield each, found[name], whose


def open_file(path, flags=O_RDONLY, mode=0o600, names=1):
    """Open a file, or make it if the flags say so and it is missing. Raise OSError for a link, a
    file with more names (it may be anybody's), a pipe, a device: those are not even opened."""
    with place(path) as (name, directory):
        if flags & O_CREAT:
            try:
                return os.open(name, flags | O_EXCL, mode, dir_fd=directory)
            except FileExistsError:
                if flags & O_EXCL:
                    raise
        handle = os.open(name, O_PATH | O_NOFOLLOW, dir_fd=directory)
        try:
            status = fstat(handle)
            if S_ISLNK(status.st_mode):
                raise OSError(ELOOP, 'is a symbolic link')
            if not S_ISREG(status.st_mode):
                raise OSError(EINVAL, 'is not a regular file')
            if status.st_nlink > names:
                raise OSError(EMLINK, 'has another name, too (a hard link)')
            return os.open(f'/proc/self/fd/{handle}', flags & ~O_CREAT)
        finally:
            os.close(handle)


def create(path):
    """Make a file that only its owner may read; return it, open to be written. Raise OSError."""
    return open(open_file(path, O_WRONLY | O_CREAT | O_EXCL), 'wb')


def reading(path):
    """Return a file, open to be read without a buffer. Raise OSError."""
    return open(open_file(path), 'rb', buffering=0)


def load(path, limit=LONGEST_RECORD, names=1):
    """Return what a file on the share holds, so many bytes at most. Raise OSError."""
    with naming(path), open(open_file(path, names=names), 'rb') as stream:
        return stream.read(limit)


@contextmanager
def new_file(path):
    """Yield a file that is to be written; when all went well it is forced onto stable storage and
    gets its name, if that is still free. Until then its name ends in .partial. Raise OSError."""
    temporary = path + PARTIAL
    if is_there(path):
        raise OSError(EEXIST, 'is there already, and never written over', path)
    with naming(temporary), create(temporary) as stream:
        try:
            yield stream
            stream.flush()
            os.fsync(stream)
            with place(path) as (name, directory), allowing(EPERM, ENOTSUP, EMLINK, ENOSYS):
                os.link(basename(temporary), name, src_dir_fd=directory, dst_dir_fd=directory)
            if not is_there(path):     # it has no links: FAT, some shares
                rename(temporary, basename(path))
            sync_directory(dirname(path))
        finally:
            remove(temporary)


def write_sparse(stream, pieces: Iterable):
    """Write pieces of a disk, each at its place, the last of which is empty and at the disk's end;
    where all is zeros nothing is written. Raise OSError."""
    for begin, data in pieces:
        whole = bytes(data)
        for at in range(0, len(whole), HOLE):
            if not whole.startswith(NOTHING, at) or at + HOLE > len(whole):
                stream.seek(begin + at)
                stream.write(whole[at:at + HOLE])
    stream.truncate(begin)


def make_directory(path, mode=0o700):
    """Make a missing directory, none above, on stable storage; return if it was. Raise OSError."""
    with suppress(FileExistsError), place(path) as (name, directory):
        os.mkdir(name, mode, dir_fd=directory)
        force(directory)
        return True
    return False


def rename(path, name):
    """Give a file or directory another name, on stable storage; return its path. Raise OSError."""
    with place(path) as (old, directory):
        os.rename(old, name, src_dir_fd=directory, dst_dir_fd=directory)
        force(directory)
    return join(dirname(path), name)


def remove(path, is_directory=False):
    """Delete a file, or an empty directory, if no other run has done so. Raise OSError."""
    with suppress(FileNotFoundError), place(path) as (name, directory):
        (os.rmdir if is_directory else os.unlink)(name, dir_fd=directory)


def remove_all(path, is_directory):
    """Delete a file, or a directory with all that is in it, through no link. Raise OSError."""
    with suppress(FileNotFoundError):                  # a NAS tidies up, too
        for name, is_one in names_in(path).items() if is_directory else ():
            remove_all(f'{path}/{name}', is_one)
    remove(path, is_directory)


def room_in(path):
    """Return the bytes of a directory's file system, and those that are free. Raise OSError."""
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def reason_of(error: BaseException, need=''):
    """Return why something failed: where a file found no room, what is used up, and the `need`."""
    lack = LACKS.get(getattr(error, 'errno', 0))
    if lack and error.filename:
        place = deepest(ROOTS, error.filename) or dirname(error.filename)
        with suppress(OSError):                        # else nothing tells how much there is
            total, free = room_in(place)
            files = os.statvfs(place)
            if files.f_files > files.f_favail == 0:
                lack = 'no inodes left'
            return f'{lack} in {place} ({human_size(total)}, {human_size(free)} free{need})'
    return getattr(error, 'strerror', '') or str(error)


def explain(error: BaseException, need=''):
    """Return the sentence for what ended something (see reason_of); log a bug's traceback."""
    if isinstance(error, OSError) and error.filename and error.errno not in LACKS:
        return f'cannot access {error.filename}: {reason_of(error)}'
    if not isinstance(error, (OSError, Interrupted, VmBackupError)):
        import traceback
        log(*traceback.format_exc().splitlines(), loud=True)
        return f'a bug in VmBackup.py, please report it: {error!r}'
    return reason_of(error, need)


def try_growing(path, need):
    """Write more to a file, and remove it. Raise TargetError if that fails: a quota shows so."""
    try:
        with naming(path), open(open_file(path, O_WRONLY | O_CREAT | O_DSYNC), 'ab') as stream:
            stream.write(os.urandom(2**20))            # as storage may make nothing of zeros
    except OSError as error:
        if error.errno != EFBIG:                       # which removing the file may hide
            LACKED[:] = explain(error), monotonic()
        raise TargetError(explain(error, need))
    finally:
        with suppress(OSError):
            remove(path)


@contextmanager
def blaming_room(path, need=''):
    """Have what fails begin with why a file cannot be written, if so, as xe never tells of a full
    disk (recorded from xapi 25.6.0: ECONNRESET, EPIPE, VDI_IO_ERROR). The file is removed."""
    try:
        yield
    except (CommandFailed, Damaged) as error:
        if error.code != REFUSED:                      # else nothing was begun
            try:
                bounded(dirname(path), try_growing, path, need)
                if monotonic() - LACKED[1] < 30:       # seconds: another VM's file took it
                    error.args = (f'{LACKED[0]}, a moment ago: {error}',)
            except TargetError as cause:
                error.args = (f'{cause}: {error}',)
        raise


def size_of(path, on_disk=False):
    """Return the bytes of a file, or those that it takes on disk, where it may be sparse; 0 if
    there is none. Raise OSError, as of a share in trouble."""
    with suppress(FileNotFoundError, NotADirectoryError):
        status = status_of(path)
        if S_ISREG(status.st_mode):
            return min(status.st_size, status.st_blocks * 512) if on_disk else status.st_size
    return 0


def written(path):
    """Return the bytes of a file that a command should have written; else raise CommandFailed."""
    size = size_of(path)
    if not size:
        raise CommandFailed(f'the file is missing or empty: {path}')
    return size


def force(file):
    """Force an open file, or a handle, onto stable storage, as far as its file system can."""
    with allowing(EINVAL, ENOTSUP, EROFS):             # it has no such call, or nothing to write
        os.fsync(file)


def sync(path):
    """Force a file onto stable storage; the system need not keep it in memory. Raise OSError."""
    with naming(path), reading(path) as stream:
        force(stream)
        with suppress(OSError):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_directory(path):
    """Force a directory onto stable storage. Raise OSError."""
    with naming(path), folder(path) as handle:
        force(handle)


def random_digits():
    """Return 32 hex digits that nobody can guess."""
    return os.urandom(16).hex()


def write_whole(path, data, alone=''):
    """Write a file for its owner, whole or not at all, onto stable storage; `alone`: what its name
    has meanwhile where nobody else writes it, so that a kill leaves one at most. Raise OSError."""
    temporary = f'{path}.{alone or random_digits()}{NEW}'
    try:
        if alone:
            remove(temporary)
        with naming(path), create(temporary) as stream:
            os.fchmod(stream.fileno(), 0o600)          # whatever the umask
            stream.write(data)
            stream.flush()
            os.fsync(stream)
            rename(temporary, basename(path))
            if not samestat(status_of(path), fstat(stream.fileno())):
                raise OSError(ESTALE, 'was replaced as it was written')
    except BaseException:
        with suppress(OSError):                        # the first error is the one to tell
            remove(temporary)
        raise


def write_json(path, value, alone=''):
    """Write a value as JSON (see `write_whole`)."""
    write_whole(path, encoded(as_json(value)), alone)


def run_create_password_file(line: CommandLine):
    """Write a password, obscured (base64, as 3.25), for its owner only. Raise ConfigError."""
    path, password = line.path, line.password or password_typed()
    if exists(path) and not isfile(path):
        raise ConfigError(f'not a file: password file {path}')
    try:
        write_whole(abspath(path), base64.b64encode(encoded(password)))
    except OSError as error:
        raise ConfigError(f'cannot write password file {path}: {error.strerror}')
    log(f'password file created: {path}')
    return SUCCESS.status


def refuse_mounts(path):
    """Raise TargetError if another file system is mounted somewhere in a directory."""
    real = realpath(path)
    for point in mount_points():
        if point.startswith(real + '/'):
            raise TargetError(f'another file system is mounted at {point}')


def dated(pattern, when: datetime):
    """Return the name that a pattern of directory_pattern's kind makes of a time."""
    # On 3.6 strftime takes ASCII under LANG=C.
    return sub('%[YmdHMS]', lambda found: when.strftime(found.group()), pattern)


def process(number='self'):
    """Return a process's number, of ours by default, and when it began, '' for none (proc(5))."""
    with suppress(OSError):
        number, _, more = decoded(read_file(f'/proc/{number}/stat', 4096)).partition(' ')
        return '{} {}'.format(number, more.rpartition(')')[2].split()[19])
    return ''


def note_of(path):
    """Return the path of this host's own note of a record. Raise OSError if others can write it."""
    import hashlib
    directory = os.environ.get('VMBACKUP_STATE') or STATE
    found = status_of(directory)
    if not S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise OSError(EPERM, 'no directory that only its owner can change', directory)
    return f'{directory}/{hashlib.sha256(encoded(path)).hexdigest():.32}.json'


def prepare_notes():
    """Make the place of this host's notes, if it is missing. Raise OSError as `note_of`."""
    make_directory(os.environ.get('VMBACKUP_STATE') or STATE)
    note_of('')


def own_pool():
    """Return the uuid of the pool of this host's last run, '' if it is not noted here."""
    with suppress(OSError, ValueError):
        return str(parse_json(load(note_of('pool'))))
    return ''


def programs_with(word, variable=''):
    """Yield processes with a word in their arguments, NAME=TEXT and a NUL in their environment."""
    for number in filter(str.isdigit, os.listdir('/proc')):
        with suppress(OSError):                        # it has ended
            if (encoded(word) in read_file(f'/proc/{number}/cmdline', 2**20) and
                    encoded(variable) in read_file(f'/proc/{number}/environ', 2**20)):
                yield int(number)


REF = re.compile(r'OpaqueRef:[\w-]+\Z').match
SOUND = {                  # by fields of records: what tells that a value can be what we wrote
    'kind': ('VM', 'VDI').count, 'label': re.compile('RESTORE_|SNAP_').match, 'ref': REF,
    'uuid': re.compile(f'({UUID})?\\Z').match, 'mark': re.compile('[0-9a-f]{32}\\Z').match,
    'begun': seconds_of, **dict.fromkeys(['before', 'sources', 'disks'],
                                         lambda refs: all(map(REF, refs)))}


class Intent(NamedTuple):
    """A snapshot of ours, written down before it is made."""
    pool: str                  # uuid of the pool, as several may share a backup_dir
    kind: str                  # VM or VDI
    of: str                    # uuid of the VM or disk
    ref: str                   # its reference
    label: str
    since: str                 # UTC, as xapi writes times: 20260301T00:10:01Z; the time
    until: str                 # in which a disk's snapshot can be the one that was meant,
    latest: str                # and a VM's, which xapi may make later and which has our label
    host: str                  # whose process this is
    process: str               # its number and, against another of that number, its beginning
    before: list               # references of the snapshots that it and its disks had already
    sources: list              # references of a VM's disks
    uuid: str = ''             # of the snapshot, once it is known
    disks: list = []           # references of the disks that came with a VM's snapshot
    names: list = []           # those of the sources, which may be gone by then
    noted: bool = False        # whether this host knows it itself, not only from the share

    damaged = (f'{INTENT}, the record of a snapshot, is damaged (look for the snapshot, then '
               'delete the record)')


class Restoring(NamedTuple):
    """A restore, written down before it makes anything in the pool."""
    mark: str                  # a number that nobody can guess: what it makes carries it
    pool: str                  # uuid
    name: str                  # that a disk gets in the end
    since: str                 # UTC, as xapi writes times
    host: str                  # whose process this is
    process: str               # see Intent
    path: str = ''             # of the record; '' where none could be written
    handle: int = -1           # of it while it is locked
    complete: bool = False     # nothing is to be removed any more
    noted: bool = False        # see Intent

    damaged = (f'the record of a restore is damaged (look for a VM with {MARK} in its '
               'other-config, then delete the record)')


class LastRun(NamedTuple):
    """A run of a config, written down in backup_dir when it begins, and anew when it ends."""
    begun: str                 # as iso() writes it
    host: str                  # whose process this is
    process: str               # see Intent
    ended: str = ''
    result: str = ''           # SUCCESS, WARNING, ERROR or SKIPPED, and counts
    failed: str = ''           # some names of VMs, each with the token of what failed
    warnings: dict = {}        # those of the run and, behind their names, of VMs: since which day

    damaged = 'the record of a run in backup_dir is damaged (delete .run-*.json there)'


def parse_record(kind, data):
    """Return the record of such a kind that a file holds; raise TargetError if it holds none."""
    with suppress(ValueError, TypeError):
        told = parse_json(data.partition(b'\ncomplete')[0])    # see mark_complete
        record = kind(**{name: told[name] for name in kind._fields if name in told})
        if all(map(isinstance, record, kind.__annotations__.values())) and all(
                SOUND[name](getattr(record, name)) for name in kind._fields if name in SOUND):
            return record
    raise TargetError(kind.damaged)


def read_record(kind, path, data):
    """Return what this host noted of a record or else its file holds; raise TargetError if none."""
    with suppress(OSError, TargetError):
        return parse_record(kind, load(note_of(path)))._replace(noted=True)
    return parse_record(kind, data)._replace(noted=False)


def is_in_work(record, elsewhere=lambda record: True):
    """Return whether a record's process may go on; `elsewhere` tells that of another host's."""
    if record.host != this_host():
        return elsewhere(record)
    run = record.process
    return bool(match(r'[0-9]+ [0-9]+\Z', run)) and process(run.split()[0]) == run != process()


# ----------------------------------------------------------------------------------------------
# 10. Catalogue: what backup_dir holds; it only reads
# ----------------------------------------------------------------------------------------------
# backup_dir/<vm>/<dated directory>/. What does not match the name patterns is somebody else's:
# it is neither counted nor touched. A directory is read by read_backup alone.

MARKERS = ('success', 'success_compress', 'success_restore', 'success_compressing')
MANIFEST = 'backup.json'   # in a dated directory that is complete
GUIDE = 'RESTORE.txt'      # in a backup: how to restore it
METADATA = 'vm-metadata.xml'
DELETING = '.deleting-'    # begins the name of a dated directory that is being deleted
LOOK_RECORD = '{}/.look-{}.txt'.format     # of such a disk, in backup_dir: what is attached
RESTORING = '.restore-{}.json'     # in backup_dir, while something half restored may be in the pool
LOCKS = '.locks'           # in backup_dir: a file for each VM
RUN = '.run-{:.60}-{:.8}'  # the lock there, and record in backup_dir, of runs
TWIN = re.compile('~[0-9a-f]{8}\\Z')     # ends the directory of a VM that has a namesake
COMPLETE = ('good', 'damaged')                 # outcomes of backups, and
NO_BACKUP = ('foreign', 'remains', 'being deleted')    # of what is, or will be, none
NOT_CHOSEN = 'vdi_disks='  # begins why a disk of the VM is not in a backup; another may have it
DUMPS = 'METADATA_'        # begins the name of a directory of dumps of the pool database
BACKUP_DIR = 'config backup_dir'
TROUBLE = {                # of a place of backups, and what to do
    ENOENT: ('does not exist', 'is the share mounted?'),
    ENOTDIR: ('is not a directory', 'is it the right one?'),
    ELOOP: ('is or has a symbolic link', 'name what it leads to'),
    EXDEV: ('is not in the file system of backup_dir', 'name it by its own path'),
    EACCES: ('is not readable', 'by this user; does the server of the share let root in?')}
CLAIM = '.vm-'             # begins the name of an empty directory: that VM, a uuid, is to be here
PROVED = {                 # from least to most
    'length': 'readable, but nothing tells its expected size',
    'restorable': 'intact, but xe vm-import refuses it as it is: use the command restore',
    'structure': 'the structure is intact',
    'checksums': 'all checksums match'}
DISK = dict.fromkeys(['uuid', 'device', 'name', 'file', 'why'], str)
FINDING = {'when': seconds_of, 'fault': str, 'proved': str, 'sr': str, 'seconds': int}
SHAPE = {                  # of a manifest: what is read of it, by keys; what else it has may be any
    'number': int, 'started': seconds_of, 'method': str, 'snapshot': str, 'files': dict,
    'vm': {'name': str, 'uuid': str, 'tags': [str]}, 'pool': {'uuid': str}, 'earlier': [str],
    'disks': [DISK], 'left_out': [DISK], 'verified': {**FINDING, 'digests': dict},
    'test_restore': FINDING, 'rate': int}


def as_size(value):
    """Return bytes in a record, also in text; None for what is no number of less than 9 EB."""
    return int(value) if match(r'[0-8]?[0-9]{1,18}\Z', str(value)) else None


def is_sound(value, shape):
    """Return whether a value is of a class, or passes a function, and all in it is as in SHAPE."""
    if isinstance(shape, list):
        return isinstance(value, list) and all(is_sound(each, shape[0]) for each in value)
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            is_sound(value[key], shape[key]) for key in shape if key in value)
    return isinstance(value, shape) if isinstance(shape, type) else shape(value)


def uuid_and_device(disk: Record):
    """Return what a manifest has of a disk, to know it again by."""
    return disk.get('uuid', ''), disk.get('device', '')


class Manifest(NamedTuple):
    """What a backup tells of itself, and whose it is."""
    number: int = 0            # in the order of this VM's backups, whatever the clock; 0: 3.25's
    started: Time = None       # never None if there is a number
    method: str = ''
    name: str = ''             # of the VM, and so on
    uuid: str = ''
    tags: Optional[Texts] = None   # None: not known
    snapshot: Optional[str] = None     # uuid
    files: Sizes = {}          # bytes by name
    disks: List[Record] = []   # that are in it
    left_out: List[Record] = []    # the others of the VM
    pool: str = ''             # uuid
    earlier: Optional[Texts] = None    # uuids of VMs that are gone; None: 3.25 or 5.0.0 made it
    verified: Record = {}      # as FINDING
    test_restore: Record = {}
    digests: Record = {}       # SHA-256 by the names of the files, uncompressed
    known: bool = False        # whether there is one
    rate: int = 0              # bytes of a disk that were exported in a second, the most, if known

    def images(self):
        """Return the names of the archives and images."""
        named = [disk.get('file', '') for disk in self.disks]
        return [name for name in [*self.files, *named] if name.endswith(IMAGES)]

    @property
    def holds(self):
        """Return uuid and device of each disk that is in it."""
        return list(map(uuid_and_device, self.disks))

    @property
    def of_the_vm(self):
        """Return uuid and device of each disk that the VM had, but for those never backed up."""
        return [uuid_and_device(disk) for disk in self.disks + self.left_out
                if disk.get('why', NOT_CHOSEN).startswith(NOT_CHOSEN)]

    def disk(self, name):
        """Return the disk of that image, compressed or not; else the first disk, or {}."""
        for disk in self.disks:
            if folded(plain_name(disk.get('file', ''))) == folded(plain_name(name)):
                return disk
        return self.disks[0] if self.disks else {}

    def other(self, backup: 'Backup'):
        """Return whose a backup is, '' for this VM's; a uuid or pool that it does not tell is."""
        manifest = backup.manifest
        if self.pool and manifest.pool not in ('', self.pool):
            return f'of another pool, {manifest.pool}'
        if manifest.uuid in ('', self.uuid):
            return ''
        if manifest.pool and manifest.uuid in (self.earlier or ()):
            return f'of an earlier VM of this name, {manifest.uuid}'
        return f'of another VM, {manifest.uuid}'

    def rotates(self, backup: 'Backup'):
        """Return whether a backup is rotated with those of this VM."""
        return bool(match(r'of an earlier|\Z', self.other(backup)))


def manifest_of(document: Record):
    """Return what a document of SHAPE tells."""
    vm, verified = document.get('vm', {}), document.get('verified', {})
    told = {key: document[key] for key in Manifest._fields if key in document}
    for key in 'verified', 'test_restore':
        if told.get(key):
            told[key] = {each: told[key].get(each) or None for each in FINDING}
    told.update(
        number=told.get('number', 0) if 'started' in told else 0,
        name=vm.get('name', ''), uuid=vm.get('uuid', ''), tags=vm.get('tags'),
        files={name: size for name, size in told.get('files', {}).items()
               if as_size(size) == size and not DROPPED.search(name)},
        pool=document.get('pool', {}).get('uuid', ''), digests=verified.get('digests', {}),
        known=bool(document))
    return Manifest(**told)


def document_in(directory):
    """Return all that a backup's manifest tells, {} for none or a damaged one. Raise OSError."""
    with allowing(ENOENT, EINVAL), suppress(ValueError, TypeError):    # as of seconds_of
        document = parse_json(load(f'{directory}/{MANIFEST}'))
        if is_sound(document, SHAPE):
            return document
    return {}


class Backup(NamedTuple):
    """A directory in a VM's, as read: with a marker a backup, else a failure's record, or other."""
    path: str
    outcome: str = ''          # of COMPLETE or NO_BACKUP, failed, or unreadable
    when: float = 0            # seconds since 1970
    started: Time = None       # by the manifest or else the name
    manifest: Manifest = Manifest()
    sizes: Sizes = {}          # bytes of its archives and images
    protected: bool = False
    trouble: Optional[OSError] = None  # why it could not be read

    def has_marker(self):
        """Look anew whether it carries a marker. Raise OSError."""
        if any(is_there(self.file(marker)) for marker in MARKERS):
            return True
        status_of(self.path)
        return False

    def file(self, name):
        """Return the path of a file in it."""
        return f'{self.path}/{name}'

    def told(self, file, key):
        """Return a value that a .cfg file in it has, '' if there is none."""
        with suppress(OSError):
            for value in findall(f'^{key}=(.*)$', decoded(load(self.file(file))), MULTILINE):
                return value
        return ''

    def with_devices(self):
        """Return its manifest, with what its files tell: 3.25 wrote none, 5.0.0 no other disks, but
        vm.cfg, and a DISK-xvda for each disk of the VM. Raise OSError."""
        manifest = self.manifest
        found = [name[5:] for name, is_directory in sorted(names_in(self.path).items())
                 if is_directory and name.upper().startswith('DISK-')]
        if not manifest.known:
            whole = any('.xva' in name for name in self.archives())
            manifest = Manifest(
                name=self.told('vm.cfg', 'name_label'), uuid=self.told('vm.cfg', 'orig_uuid'),
                disks=[{'device': each} for each in found if whole or each == 'xvda'])
        held = [disk.get('device') for disk in manifest.disks]
        return manifest._replace(left_out=[{'device': each} for each in found if each not in held])

    def archives(self):
        """Return the names of its archives and images: those in the manifest, packed by now or not;
        without one those with names of ours or, if it was moved, all. Raise OSError."""
        found = sorted(name for name in names_in(self.path)
                       if name.endswith(IMAGES) and not DROPPED.search(name))
        known = [folded(name) for name in self.manifest.images()]
        if known:
            gone = [plain_name(name) for name in known if name not in map(folded, found)]
            return [name for name in found
                    if folded(name) in known or plain_name(folded(name)) in gone]
        bases = basename(dirname(self.path)), path_part(self.told('vm.cfg', 'name_label'))
        stem = '({}|{}|disk-([xhs]v?d[a-z]+|[0-9]+))\\Z'.format(*map(re.escape, map(folded, bases)))
        named = [name for name in found if match(stem, folded(splitext(plain_name(name))[0]))]
        return named or (found if self.has_marker() else [])

    def check_archives(self):
        """Return `archives`; raise Damaged if one in the manifest is missing, or all."""
        found = self.archives()
        if not found:
            raise Damaged('there is no archive or image in it')
        for name in map(plain_name, self.manifest.images()):
            if folded(name) not in map(folded, map(plain_name, found)):
                raise Damaged(f'{name} is missing')
        return found

    def disk_size(self, name):
        """Return the bytes of an image's disk by the manifest or, for 3.25's, vdi.cfg of xvda."""
        return as_size(self.manifest.disk(name).get('virtual_size') if self.manifest.known else
                       self.told('DISK-xvda/vdi.cfg', 'virtual_size'))

    def contents(self):
        """Yield what is in it (see `sift`); ours: what we wrote, also if a person packed images."""
        images = set(map(plain_name, self.archives()))
        return sift(self.path, lambda name: OURS.match(name) or plain_name(name) in images)

    def files(self):
        """Return the names of all files in it that are ours. Raise OSError."""
        return [name for name, is_dir, whose in self.contents() if whose == 'ours' and not is_dir]

    def owners(self):
        """Return whose is what is in it, but for what was dropped; images are a person's here."""
        return {whose for _, _, whose in sift(self.path, OURS.match) if whose != 'dropped'}

    def occupied(self):
        """Return the bytes that its files take on disk. Raise OSError."""
        return sum(size_of(self.file(name), True) for name in self.files())

    def unchanged_for(self):
        """Return the seconds since anything in it changed, by the share's clock. Raise OSError."""
        return now().timestamp() - max(
            status_of(self.file(name)).st_mtime for name in ['.', *names_in(self.path)])

    def intent(self):
        """Return the snapshot that may be in the pool: this host's note, or a record, or None."""
        with suppress(FileNotFoundError):
            return read_record(Intent, self.file(INTENT), load(self.file(INTENT)))
        return None


def read_backup(path, date: Optional[datetime]):
    """Read a directory; `date`: what its name stands for. Raise FileNotFoundError."""
    when = 0.0
    started = None             # type: Time
    sizes = {}                 # type: Sizes
    outcome = 'foreign'
    if date:
        outcome = 'failed'
        started = iso(date)
        if date < now() + timedelta(days=1):           # else it counts as the oldest
            when = date.timestamp()
    try:
        with hold(path):
            manifest = manifest_of(document_in(path))
            seen = Backup(path, manifest=manifest)
            good = seen.has_marker()
            protected = is_there(seen.file(PROTECTED))
            if good or date:
                if manifest.earlier is None:
                    manifest = seen.with_devices()
                sizes = {name: size for name, size in manifest.files.items()
                         if name.endswith(IMAGES)} or {
                    name: size_of(seen.file(name)) for name in seen.archives()}
                if not good and seen.owners() == {'person'}:
                    outcome = 'remains'
    except FileNotFoundError:
        raise
    except OSError as error:
        return Backup(path, 'unreadable' if date else 'foreign', when, started, trouble=error)
    if manifest.number:
        when = seconds_of(manifest.started)
        started = manifest.started
    if good and (date or manifest.number or sizes):
        outcome = 'damaged' if manifest.verified.get('fault') else 'good'
    return Backup(path, outcome, when, started, manifest, sizes, protected)


def disks_in_none(manifests: Iterable[Manifest], disks: DiskIds):
    """Return the devices of those disks of a VM that none of its backups has."""
    held = [disk for manifest in manifests for disk in manifest.holds]
    return ', '.join(disk[1] for disk in disks if not has_disk(held, disk, disks))


def of_own_pool(backups: Sequence[Backup]):
    """Return those of this host's pool or, where there are none, all."""
    pool = own_pool()
    return [backup for backup in backups if pool and backup.manifest.pool in ('', pool)] or backups


def run_name(config, only=''):
    """Return the name, less its ending, of the record of runs of a config on this host."""
    import hashlib
    host = this_host()
    path = realpath(config)
    return RUN.format(         # of what no locale and no share spells in another way
        sub('[^A-Za-z0-9.-]+', '_', f'{host}-{basename(path)}').lower(),
        hashlib.sha256(encoded(host + path + only)).hexdigest())


class History:
    """The directory of one VM, and its backups."""

    def __init__(self, directory, patterns: Texts):
        self.directory = directory
        self.patterns = patterns
        self.listed = None     # type: Optional[List[str]]
        self.known = {}        # type: Dict[str, Backup]
        self.refused = ''      # why it was not looked into

    def as_it_is(self):
        """Return it, to be listed and read anew; else what is in it is looked at once."""
        self.listed = None
        self.known.clear()
        return self

    def names(self):
        """Return the directories in it; none where we may not look."""
        if self.listed is None:
            try:
                self.listed = [name for name, is_directory in names_in(self.directory).items()
                               if is_directory and not DROPPED.search(name)]
            except OSError as error:
                if error.errno in (EXDEV, ELOOP):
                    self.refused = f'{self.directory} {error.strerror}'
                elif error.errno not in (ENOENT, ENOTDIR, EACCES):
                    raise
                self.listed = []
        return self.listed

    def date_of(self, name):
        """Return the time that a directory's name stands for, None if it is not one of ours."""
        for pattern in self.patterns:
            with suppress(ValueError):
                when = datetime.strptime(name, pattern)
                # strptime takes less than two digits, too; a share may list it in another case.
                if 1970 <= when.year < 9000 and dated(pattern, when).lower() == name.lower():
                    return when
        return None

    def backups(self, renamed=False):
        """Read the dated directories, or all; return them, oldest first: by number or by time."""
        dates = {name: self.date_of(name) for name in self.names()}
        names = [name for name in dates if dates[name] or renamed and not name.startswith('.')]
        found = []             # type: List[Backup]
        # Without any, perhaps it cannot be opened.
        with suppress(FileNotFoundError), hold(self.directory) if names else ExitStack():
            for name in names:
                with suppress(FileNotFoundError):
                    if name not in self.known:
                        self.known[name] = read_backup(f'{self.directory}/{name}', dates[name])
                    found.append(self.known[name])
        found.sort(key=lambda each: (each.manifest.number, each.when, each.path))
        numbered = [backup for backup in found if backup.manifest.number]
        others = found[:len(found) - len(numbered)]
        return list(heapq.merge(numbered, others, key=lambda backup: backup.when))

    def completed(self, renamed=False):
        """Return the completed backups of these. What cannot be read is none of them."""
        return [backup for backup in self.backups(renamed) if backup.outcome in COMPLETE]

    def holds_any(self):
        """Return whether there are backups in it, or failures' records."""
        return any(map(self.date_of, self.names())) or bool(self.completed(True))

    def everything(self):
        """Return all directories in it: backups, the newest first, then what is none."""
        half = [Backup(path, 'being deleted') for path in self.half_deleted()]
        return sorted(self.backups(True)[::-1] + half,
                      key=lambda each: each.path if each.outcome in NO_BACKUP else '')

    def judged(self, policy: Dict[str, int], owner: Manifest, disks: DiskIds = (), new=None,
               path=''):
        """Return why each of the owner's backups is kept, also beside a new one at that path. Till
        it has one, the last sound one and what is newer have to stay, and are left out. `disks`:
        those of the VM, by default as its newest backup that tells of any has them."""
        older = [each for each in self.completed() if each.path != path and owner.rotates(each)]
        for each in reversed(older):
            if not (disks or owner.other(each)):
                disks = each.manifest.of_the_vm
        aged = [Aged(datetime.fromtimestamp(backup.when), backup.outcome == 'good',
                     backup.manifest.holds, backup.protected) for backup in older]
        found = list(zip(older, reasons((aged + [new]) if new else aged, policy, disks)))
        if new and not path:
            del found[max((place for place, each in enumerate(aged)
                           if each.sound and not each.protected), default=0):]
        return found

    def last_owner(self):
        """Return whose they are by the newest backup that tells it, one of our pool if any is."""
        found = [backup for backup in self.completed()[::-1] if backup.manifest.uuid]
        return (*of_own_pool(found), Backup(''))[0].manifest

    def vm_name(self):
        """Return its VM's name: the newest manifest's, if the directory is called so, or that."""
        part = basename(self.directory)
        for backup in reversed(self.backups()):
            name = backup.manifest.name
            if name and folded(part) in map(folded, (
                    path_part(name), twin_part(name, backup.manifest.uuid))):
                return name
        return encoded(part).decode('utf-8', 'replace')

    def owner(self):
        """Return the VM that they are of, by the newest that tells it, of our pool if any is; its
        tags by the newest completed one, or a newer one that has them."""
        found = [backup for backup in reversed(self.backups(True)) if backup.manifest.uuid]
        uuid = ''
        record = {}            # type: Record
        for backup in of_own_pool(found):
            if uuid and backup.manifest.uuid != uuid:
                break                                  # it was another VM's before
            uuid = backup.manifest.uuid
            if backup.manifest.tags is not None:
                record = {'tags': backup.manifest.tags}
            if record or backup.outcome in COMPLETE:
                break
        return Vm(self.directory, uuid, self.vm_name(), record, self)

    def user_of(self, uuids: Texts):
        """Return which of some VMs uses it, by the newest record, or else a claim; '' for none."""
        for backup in reversed(self.backups()):
            if backup.manifest.uuid in uuids:
                return backup.manifest.uuid
        return min((uuid for uuid in uuids if CLAIM + uuid in self.names()), default='')

    def last_sizes(self, names: Texts, owner: Manifest):
        """Return the bytes of files of these names, each in the owner's last that has one."""
        sizes = {}             # type: Dict[str, int]
        for backup in self.completed():
            for name in names if owner.rotates(backup) else ():
                with suppress(OSError):
                    sizes[name] = size_of(backup.file(name), True) or sizes.get(name, 0)
        return sizes

    def with_intent(self):
        """Yield those of which a snapshot may still be in the pool, or that cannot be read."""
        for name in self.names():
            backup = Backup(f'{self.directory}/{name}')
            try:
                status_of(backup.file(INTENT))
            except OSError as error:
                if error.errno in (ENOENT, EACCES, EPERM):     # no permission: not ours
                    continue
            yield backup

    def half_deleted(self):
        """Yield the paths of what a run that ended early was deleting, but for a person's, and what
        still records a snapshot (see run_stream)."""
        for name in self.names():
            with suppress(OSError):                    # what may not be read is somebody's
                path = f'{self.directory}/{name}'
                if name.startswith(DELETING) and not is_there(f'{path}/{INTENT}') and (
                        self.date_of(name[len(DELETING):]) or 'ours' in Backup(path).owners()):
                    yield path


def mount_of(path, require_mount, place='path'):
    """Return where what holds a place of backups is mounted. Raise TargetError if nothing is where
    it should be: by FSTAB ('auto'), or at all but for the root file system ('yes')."""
    real = realpath(path)
    mounted = deepest(mount_points(), real)
    wanted = deepest(map(realpath, mount_points(FSTAB, 1) if require_mount == 'auto' else ()), real)
    if wanted not in ('', '/', *mount_points()):
        raise TargetError(f'{place} lies below {wanted}, where nothing is mounted -> {path} (mount '
                          'it, see /etc/fstab)')
    if require_mount == 'yes' and mounted == '/':
        raise TargetError(f'{place} is on the root file system -> {path} (require_mount=yes: is '
                          'the share mounted?)')
    return mounted


@contextmanager
def telling_trouble(path, place='path'):
    """Have an OSError tell what is wrong with a place of backups, and what to do: TargetError."""
    try:
        yield
    except OSError as error:
        real = realpath(path)
        mounted = shell_word(deepest(mount_points(), real))
        wrong, advice = TROUBLE.get(error.errno, (
            f'cannot be read: {error.strerror}', 'see dmesg' if is_local(real) else
            f'is the server of the share up? If so: umount -l {mounted}; mount {mounted}'))
        raise TargetError(f'{place} {wrong} -> {path} ({advice})')


def refuse_missing(word, wanted='file or directory'):
    """Raise UsageError for a path where none is; TargetError if its share is not mounted."""
    mount_of(abspath(native(word)), 'auto')
    raise UsageError(f'no such {wanted}: {word}')


class Catalogue:
    """backup_dir: the directories of all VMs, and what else is in it."""
    root = ''
    mounted = ''               # the mount point that it lies in, once check() has looked
    kind = 'config'            # what was given, or store (all VMs), history (one's), backup, file

    def __init__(self, config: Config):
        self.config = config       # of the config file, or else as the script's first page says
        self.path = config.path    # of what was given
        self.set_root(config.settings.backup_dir)
        self.patterns = [config.settings.backup_dir_pattern, DEFAULT_PATTERN]

    def set_root(self, path):
        """Have a directory as backup_dir: below it, not in its own path, no link is followed."""
        ROOTS.discard(self.root)
        self.root = path
        ROOTS.add(path)

    def check(self, writing=True):
        """Raise TargetError if backups cannot be read or, as far as can be seen, written here."""
        def look():
            self.mounted = mount_of(self.root, self.config.settings.require_mount, BACKUP_DIR)
            with telling_trouble(self.root, BACKUP_DIR), hold(self.root):
                pass                                   # it is a directory that can be opened
            if writing and not os.access(self.root, os.W_OK | os.X_OK):
                raise TargetError(f'{BACKUP_DIR} is not writable -> {self.root}')
        bounded(f'backup_dir {self.root}', look)

    def stocked(self):
        """Return `histories`, or that which was given; raise TargetError if they hold nothing."""
        if self.kind == 'history':
            return [self.history(self.path)]
        found = self.histories()
        if not any(each.holds_any() or f'/{DUMPS}' in each.directory.upper() for each in found):
            raise TargetError(f'backup_dir holds no backup at all -> {self.root} (is it mounted?)')
        return found

    def history(self, directory):
        """Return the backups in a directory, of backup_dir if it is a mere name."""
        return History(join(self.root, directory), self.patterns)

    def histories(self):
        """Return all directories that may be a VM's. Raise TargetError, OSError."""
        with telling_trouble(self.root, BACKUP_DIR):
            found = [self.history(name) for name in sorted(names_in(self.root)) if name[0] != '.']
        return [history for history in found       # a VM may be called #recycle
                if not DROPPED.search(basename(history.directory)) or history.holds_any()]

    def backup(self, path):
        """Read a directory, wherever it is. Raise OSError if it is gone."""
        return read_backup(path, self.history(dirname(path)).date_of(basename(path)))

    def restores(self):
        """Return the paths of the records of restores, by their marks. Raise TargetError."""
        with suppress(OSError):                        # `check` will tell
            names = sorted(bounded(f'backup_dir {self.root}', names_in, self.root))
            return {name[9:-5]: f'{self.root}/{name}' for name in names
                    if match(r'\.restore-[0-9a-f]{32}\.json\Z', name)}
        return {}

    def runs(self):
        """Return the last runs by the names of their records. Raise TargetError, OSError."""
        return {name[:-5]: parse_record(LastRun, load(f'{self.root}/{name}'))
                for name in names_in(self.root) if match(r'\.run-.*\.json\Z', name)}

    def looks(self):
        """Return what the records of attached disks tell. Raise TargetError, OSError."""
        return [decoded(load(f'{self.root}/{name}'))
                for name in names_in(self.root) if match(r'\.look-.*\.txt\Z', name)]

    def leftovers(self, histories: Sequence[History], patience):
        """Return paths of records that are damaged, or whose process has gone (on another host:
        after so many seconds), by what settles them. Lock nothing. Raise TargetError, OSError."""
        records = [(Intent, backup.file(INTENT)) for history in histories
                   for backup in history.with_intent()]    # type: List[Any]
        records += [(Restoring, path) for path in self.restores().values()]
        left = defaultdict(list)       # type: Dict[str, List[str]]
        for kind, path in records:
            remedy = ''
            try:               # it was settled, or is locked (CIFS then lets nobody else read it)
                with suppress(FileNotFoundError, PermissionError):
                    data = load(path)
                    # A restore's has nothing in it before it makes something.
                    if (data or kind is Intent) and not is_in_work(
                            parse_record(kind, data),
                            lambda record: -seconds_ahead(record.since) <= patience):
                        remedy = 'the next run in its pool settles that or says what to do'
            except (OSError, TargetError, ValueError) as error:
                remedy = reason_of(error)
            if remedy:
                left[remedy].append(path)
        return left


def dumps_in(directory, ending=''):
    """Return paths of the pool database's dumps in a directory, oldest first. Raise OSError."""
    return sorted(join(directory, name) for name in names_in(directory)
                  if match(r'pool_db_[0-9]{8}-[0-9]{6}\.dump' + ending + r'\Z', name))


def select_histories(found: Sequence[History], config: Config, keep=1):
    """Choose of those with backups or failures' records; say what was not found."""
    vms = [history.owner() for history in found if history.holds_any()]
    rules = config.rules
    if all(rule.method == 'vm' for rule in rules):
        rules = (selector(''), *rules)                 # of all
    plan = select(rules, vms, keep, saved=True) if vms or config.rules else Plan()
    plan.messages += [f'***NOTE - passed over: {each.refused}' for each in found if each.refused]
    return plan


# ----------------------------------------------------------------------------------------------
# 11. Store: makes, completes, locks and deletes in backup_dir
# ----------------------------------------------------------------------------------------------
# No directory of ours is deleted through a symbolic link, nor what is mounted in it. Before it is
# deleted it gets a name that counts as no backup, so that a kill in the midst leaves none in part.

WRITE_TEST = '00VMbackupWriteTest%20'     # path_part makes no such name of any VM's
# Seconds without a change on a share that cannot lock, after which another host is not taken to be
LONGEST_PAUSE = 900        # at work: where the pool would show it, but for pauses between exports,
LONGEST_SILENCE = 20 * 3600    # and where nothing shows it, as of a verification


def add_to_manifest(backup: Backup, **results: Record):
    """Put results of a verification or test restore into a backup's manifest. Raise OSError."""
    document = document_in(backup.path)          # somebody else may have noted some
    if document:
        write_json(backup.file(MANIFEST), dict(document, **results))


def note(path, record):
    """Note a record on the share, with its path there, on this host, if that can be done."""
    with suppress(OSError):
        prepare_notes()
        write_json(note_of(path), record._asdict())


def drop_record(path):
    """Delete a record, and this host's note of it: nothing of ours is left in the pool."""
    bounded('the share', remove, path)
    with suppress(OSError):
        remove(note_of(path))


def set_intent(backup: Backup, intent: Intent):
    """Record, on stable storage, a snapshot that is about to be made, or now has a uuid."""
    note(backup.file(INTENT), intent)
    bounded('the share', write_json, backup.file(INTENT), intent._asdict())


def finish_deleting(path):
    """Go on deleting. What has something of a person in it gets its own name back, and that is
    told, or what is protected by now, and that is a TargetError. Raise that, OSError."""
    name = basename(path)[len(DELETING):]
    if is_there(join(path, PROTECTED)):
        rename(path, name)
        raise TargetError('it is protected')
    refuse_mounts(path)
    stays = []                 # type: List[str]
    with hold(path):
        backup = Backup(path, manifest=manifest_of(document_in(path)))
        # The manifest goes last: without it an image that is left alone is a person's.
        alone = not backup.manifest.known and backup.owners() == {'person'}
        for each, is_dir, whose in sorted(backup.contents(), key=lambda each: each[0] == MANIFEST):
            if whose == 'person' or alone and whose == 'ours':
                stays.append(each)
            else:
                (remove if whose == 'ours' else remove_all)(backup.file(each), is_dir)
    if stays:
        sync_directory(path)           # else a power failure may bring a marker back
        path = rename(path, name)
        log(f'***NOTE - {path} stays, with what this program did not make: {abbreviate(stays)}')
    else:
        remove(path, True)


class NewBackup(Backup):
    """A backup that is being made."""

    def write(self, text, *parts):
        """Write a text file in it, or in a directory that is made in it; a part may be any name."""
        path = self.file('/'.join(map(path_part, parts)))
        if parts[1:]:
            make_directory(dirname(path))
        with naming(path), create(path) as stream:
            stream.write(encoded(text))

    def complete(self, document: Record, large):
        """Make it count as a backup: sync all, then write the marker, last. Return its files."""
        sizes = {}             # type: Sizes
        for name in sorted({*self.files()} - {INTENT}):
            path = self.file(name)
            sync(path)
            sync_directory(dirname(path))
            sizes[portable(name)] = size_of(path)
        check_held(self.path)
        manifest = dict(document, number=self.manifest.number, files=sizes)
        write_json(self.file(MANIFEST), manifest)
        write_whole(self.file(MARKERS[large]), b'')
        check_held(self.path)
        return sizes


def mark_complete(record: Restoring):
    """Write down that what was restored is whole. Raise OSError."""
    if record.path:
        note(record.path, record)
        os.write(record.handle, b'\ncomplete\n')
        force(record.handle)


class Store(Catalogue):
    """backup_dir: where everything goes."""
    no_locking = None          # type: Optional[str]   # why the share cannot lock; '': it can
    threads = {}               # type: Dict[str, Lock]   # of ours, one after the other

    def directory_of(self, vm: Vm, names: Strings):
        """Return a VM's directory: that of its name or, if another VM, of a name that is folded so,
        uses that, its twin; `names`: of all, by uuid. Raise BackupFailed, TargetError, OSError."""
        part = path_part(vm.name)
        history = self.history(part)
        own = self.history(twin_part(vm.name, vm.uuid))
        alike = [uuid for uuid, name in names.items() if folded(path_part(name)) == folded(part)]
        if own.user_of([vm.uuid]):
            return own
        if len(alike) < 2:
            return history
        with self.locked(CLAIM, 300):                  # seconds; while others look, or claim theirs
            if history.user_of(alike) not in ('', vm.uuid):
                history = own
            make_directory(history.directory)
            make_directory(f'{history.directory}/{CLAIM}{vm.uuid}')
        return history

    def begin(self, history: History, when: datetime, mark=''):
        """Make a new dated directory, a few seconds later where that one exists; `mark`: what its
        name begins with."""
        make_directory(history.directory)
        number = 1 + max((backup.manifest.number for backup in history.backups()), default=0)
        for seconds in range(60):                      # as one may be taken
            name = dated(self.patterns[0], when + timedelta(0, seconds))
            path = f'{history.directory}/{mark}{name}'
            if make_directory(path):
                return NewBackup(path, manifest=Manifest(number=number))
        raise TargetError(f'cannot make a new directory below {history.directory}')

    def delete(self, backup: Backup):
        """Delete what is ours, or was dropped, in a dated directory, which at once counts no more;
        its VM is locked. Raise TargetError if a snapshot, mount or protection forbids it."""
        with hold(backup.path):
            if backup.intent():
                raise TargetError('it records a snapshot that is still to be removed')
            refuse_mounts(backup.path)
            name = basename(backup.path)
            deleting = rename(backup.path, DELETING + name)
            if not samestat(status_of(deleting), fstat(HELD[backup.path][0])):
                rename(deleting, name)
                raise TargetError('it was replaced by another directory meanwhile')
        finish_deleting(deleting)

    def try_writing(self):
        """Make an empty file and remove it again; raise TargetError if that is not possible."""
        path, what = f'{self.root}/{WRITE_TEST}{random_digits()}', f'backup_dir {self.root}'
        try:
            bounded(what, write_whole, path, b'')
            bounded(what, remove, path)
        except OSError as error:
            raise TargetError(f'cannot write in backup_dir {self.root}: {reason_of(error)}')

    def check_mounted(self):
        """Raise TargetError if the share was unmounted since `check` has looked."""
        if self.mounted != deepest(mount_points(), bounded(
                f'backup_dir {self.root}', realpath, self.root)):
            raise TargetError(f'backup_dir {self.root} is no longer mounted at {self.mounted}')

    def check_room(self, least, last, gain):
        """Raise BackupFailed with too little room; `gain`: bytes that pre_clean will delete."""
        total, free = room_in(self.root)
        free += gain
        number = int(least[:-1] or 0)
        wanted = {
            f'min_free={least}': (total * number // 100 if least.endswith('%') else
                                  number << 10 * ' KMGT'.index(least[-1:])),
            f'{human_size(last)} for a backup as large as the last': last}
        if total and free < max(wanted.values()):
            raise BackupFailed('NO-SPACE', '{} free of {} in {}, needed: {}'.format(
                human_size(free), human_size(total), self.root,
                ' and '.join(filter(wanted.get, wanted))))

    def lock_of(self, directory):
        """Return the path of the lock of a directory in backup_dir, or of a run."""
        return '{}/{}/{}.lock'.format(self.root, LOCKS, basename(directory).rstrip('. '))

    @contextmanager
    def locked(self, directory, patience):
        """Hold the lock of a directory in backup_dir. Raise BackupFailed if another run has it."""
        self.check_mounted()
        path = self.lock_of(directory)
        make_directory(dirname(path))
        # Nothing is read or written there: a copy of all by hard links harms no lock.
        with self.threads.setdefault(path, Lock()), self.lockable(path, O_CREAT, 2**32) as handle:
            check_signals()                            # while a thread of ours had it
            waited = stopwatch()
            while not self.lock(path, handle):
                if waited() >= max(patience, 1):       # `list` may look at it
                    raise BackupFailed('VM-LOCKED', 'locked by another run (see lock_wait)')
                check_signals()
                Console.current.show('waiting for another run')
                sleep(1)
            yield

    @contextmanager
    def lockable(self, path, flags=0, names=1):
        """Open a file for `lock`; yield its handle, with which the lock goes. Raise OSError."""
        handle = open_file(path, O_RDWR | flags, names=names)
        try:
            yield handle
        finally:
            with suppress(TargetError, OSError):
                bounded('the share', os.close, handle)

    def lock(self, path, handle):
        """Try to lock a file; False if another has: EAGAIN or, on CIFS and old NFS, EACCES, as if
        forbidden: so we first try one that nobody has (flock(2)). Raise TargetError, OSError."""
        error = None if self.no_locking else self.try_locking(handle)
        number = getattr(error, 'errno', 0)
        if error and self.no_locking is None and number != EAGAIN:
            own = f'{dirname(path)}/.{random_digits()}{NEW}'
            with self.lockable(own, O_CREAT | O_EXCL) as another:
                self.no_locking = str(self.try_locking(another) or '')
                remove(own)
            if self.no_locking:
                log(f'***NOTE - backup_dir {self.root} cannot lock ({self.no_locking}): two runs '
                    'at once would not notice each other')
        if error and not self.no_locking and number not in (EAGAIN, EACCES):
            raise TargetError(f'cannot lock {path}: {reason_of(error)}')
        return not error or bool(self.no_locking)

    def try_locking(self, handle):
        """Lock a file; return why not."""
        try:
            bounded('its lock', fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, TargetError) as error:
            return error
        self.no_locking = ''
        return None

    def write_run(self, name, run: LastRun):
        """Record a run, on stable storage. Raise TargetError, OSError."""
        self.check_mounted()
        bounded('the share', write_json, f'{self.root}/{name}.json', run._asdict(), 'its')

    def is_locked(self, directory):
        """Return whether a run holds that lock, as far as can be seen."""
        with suppress(OSError), self.lockable(self.lock_of(directory)) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextmanager
    def restoring(self, pool, name, since):
        """Record and lock a restore until it is dropped; without a path where that fails."""
        record = Restoring(random_digits(), pool, name, since, this_host(), process())
        path = join(self.root, RESTORING.format(record.mark))
        with ExitStack() as stack:
            try:
                handle = stack.enter_context(self.lockable(path, O_CREAT | O_EXCL))
                locked = self.lock(path, handle)
                os.write(handle, encoded(json.dumps(record._asdict())))
                force(handle)
                sync_directory(self.root)
                if not (locked and fstat(handle).st_nlink):
                    raise BlockingIOError              # a run took it for a killed one's
                record = record._replace(path=path, handle=handle)
                note(path, record)
            except (OSError, TargetError):             # or the share is read-only, or full
                with suppress(OSError):
                    remove(path)
                # Who took the record may look for what carries its mark.
                record = record._replace(mark=random_digits())
            yield record

    @contextmanager
    def taken(self, path):
        """Lock and read a dead restore's record; None if it goes on. Raise TargetError, OSError."""
        with ExitStack() as stack:
            record = None      # type: Optional[Restoring]
            with suppress(FileNotFoundError):
                handle = stack.enter_context(self.lockable(path))
                if self.lock(path, handle):
                    record = self.dead_restore(path, pread(handle, LONGEST_RECORD, 0))
            yield record

    def dead_restore(self, path, data):
        """Return the record of a restore; None if it goes on or has made nothing."""
        try:
            record = read_record(Restoring, path, data)
        except TargetError:
            if data:
                raise
            remove(path)                               # it was killed before it made anything
            return None
        if basename(path) != RESTORING.format(record.mark):
            raise TargetError(Restoring.damaged)       # it is the copy of another
        silence = now().timestamp() - status_of(path).st_mtime
        if (record.noted or self.no_locking) and is_in_work(
                record, lambda _: not record.noted and silence < LONGEST_SILENCE):
            return None                                # of an import, the pool will tell later
        return record._replace(path=path, complete=record.complete if record.noted else
                               b'\n' in data)


def host_store():
    """Return where this host records what has no backup_dir: beside its notes. Raise OSError,
    TargetError."""
    prepare_notes()
    store = Store(parse_config([f'backup_dir={dirname(note_of(""))}', 'require_mount=no']))
    store.check()
    return store


@contextmanager
def new_pool_dump(directory):
    """Yield the path of a new dump of the pool database, to be written under that name with
    PARTIAL, which a failure removes. Raise CommandFailed if it is missing or empty, OSError."""
    make_directory(directory)
    with hold(directory):
        for seconds in range(60):                      # as one may be taken
            path = join(directory, dated('pool_db_%Y%m%d-%H%M%S.dump',
                                         now() + timedelta(0, seconds)))
            if not is_there(path):
                break
        partial = path + PARTIAL
        try:
            with blaming_room(partial):
                yield path
                written(partial)
            sync(partial)
            rename(partial, basename(path))
            check_held(directory)
        finally:
            remove(partial)


def prune_pool_dumps(newest, keep):
    """Delete the oldest dumps beyond `keep` (0: none), return them; delete what kills left."""
    old = sorted(dumps_in(dirname(newest)), key=lambda path: path == newest)[:-keep]
    for path in old + dumps_in(dirname(newest), f'({PARTIAL}|.json.its{NEW})'):
        remove(path + '.json')
        remove(path)
    return old


def kind_of(path):
    """Return what a path is: file, backup, history (one VM's), store (all), ''; or TargetError."""
    with telling_trouble(path), allowing(ENOENT, ENOTDIR, ENAMETOOLONG):
        history = History(path, [DEFAULT_PATTERN])
        if {MANIFEST, *MARKERS}.intersection(names_in(path)) or history.date_of(basename(path)):
            return 'backup'
        return 'history' if history.holds_any() else 'store'
    return 'file' if exists(path) else ''


def root_of(path, kind):
    """Return what counts as backup_dir for a path of that kind, on its file system."""
    if kind == 'file':
        return root_of(dirname(path), kind_of(dirname(path)))
    for _ in range({'history': 1, 'backup': 2}.get(kind, 0)):
        if path not in mount_points() and dirname(path) != '/':
            path = dirname(path)
    return path


def open_config(line: CommandLine):
    """Open backup_dir of a config file, or of the script's first page. Raise ConfigError."""
    config = read_config(line)
    for text in [*config.unexpected, *config.errors.values()]:
        raise ConfigError(text)
    return Store(config)


def open_target(line: CommandLine, is_archive=lambda path: False):
    """Open what a word stands for; any file is a config, but for what `is_archive` finds."""
    path = abspath(line.path)
    kind = kind_of(path)
    if not kind:
        refuse_missing(line.word)
    if kind == 'file' and not is_archive(path):
        store = open_config(line)
        store.check(False)
        return store
    if kind == 'store':
        mount_of(path, 'auto')
    store = open_config(line._replace(words=()))
    store.set_root(root_of(path, kind))
    store.kind, store.path = kind, path
    return store


# ----------------------------------------------------------------------------------------------
# 12. Formats: archives, images and dumps: read, verified, rewritten for a restore
# ----------------------------------------------------------------------------------------------
# A file is read once, in order, a chunk at a time, as its storage has it. The format of archives:
# xapi: export.ml, and stream_vdi.ml, which writes and imports the disks; that of VHD images:
# Microsoft's Virtual Hard Disk Image Format Specification. Reading raises OSError, CommandFailed.

BLOCK = 512                # bytes of a tar header, and of a disk's sector
CHUNK = 1 << 20            # bytes of a disk in one member of an archive
VHD_BLOCK = 1 << 21        # bytes of a disk in one block of a VHD image, as xapi writes them
NOWHERE = 0xffffffff       # in the place of a block of zeros, which is not there
LARGEST_VHD = 1 << 41      # bytes of a disk, but for the rest of its last block
LARGEST_EXPORT = 2040 << 30    # bytes of one that xapi exports as VHD (xapi-consts: constants.ml)
LARGEST_STORED = 2093051 << 20     # bytes of one that an SR has as VHD (sm: vhdutil.py)
QCOW2 = ('sm-config:image-format', 'qcow2')    # for a larger one
LARGEST_OVA = 1 << 22      # bytes of ova.xml; 50 KiB is usual
LARGEST_METADATA = 1 << 24     # bytes of a VM's metadata, which may tell of its snapshots too
DEEPEST = 100              # elements of XML within each other; xapi writes about 15
LAST = '~'                 # begins the id of a disk that is to come after all others
FORMS = ('.xva', '.raw', '.vhd', '.dump', '.xml')
SUMS = {16: '.xxhash', 40: '.checksum'}    # by hex digits: XXH64 since xapi 1.170, SHA-1 before
Located = Iterable[Tuple[int, Any]]    # where on a disk, and the data there; the end, and nothing


class Proof(NamedTuple):
    """What was found true of a file."""
    proved: str                # a key of PROVED
    digest: str                # SHA-256 of the content, of an archive without the disks' data
    size: int                  # bytes, uncompressed
    vm: str = ''               # uuid of an archive's VM, which is a snapshot's


@functools.lru_cache(maxsize=None)
def xxh64_function():
    """Return what computes XXH64 of a writable buffer; None, and a note, without libxxhash."""
    with suppress(ImportError, OSError, AttributeError):
        import ctypes
        function = ctypes.CDLL(XXHASH).XXH64
        function.restype = ctypes.c_uint64
        return lambda data: function((ctypes.c_char * len(data)).from_buffer(data),
                                     ctypes.c_size_t(len(data)), ctypes.c_uint64(0))
    with suppress(ImportError):
        import xxhash
        return xxhash.xxh64_intdigest
    log('***NOTE - this host has no libxxhash: the checksums in archives are not compared (install '
        'xxhash-libs, on Debian libxxhash0)')
    return None


@contextmanager
def damaged_if_malformed():
    """Read XML within this; raise Damaged for what is missing or not as it should be."""
    import xmlrpc.client
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError, ExpatError,
            xmlrpc.client.Error) as error:
        raise Damaged(f'it is not as xapi writes it: {error}')


def parse_xml(pieces: Iterable[bytes], root, unpacker=None):
    """Parse XML with that outermost element; an unpacker gets all of it. Raise Damaged for what
    takes memory or time without end. expat stops only at the end of a piece: those are small."""
    parser = ParserCreate()
    depth, last, size = 0, b'', 0

    def start(name, attributes):
        nonlocal depth, size
        if not depth and name != root:
            raise Damaged(f'its outermost element is {name}, not {root}')
        if depth == DEEPEST:
            raise Damaged(f'more than {DEEPEST} elements within each other')
        depth += 1
        size = 0
        if unpacker:
            unpacker.start(name, attributes)

    def stop(name):
        nonlocal depth
        depth -= 1
        if unpacker:
            unpacker.end(name)
    parser.StartElementHandler, parser.EndElementHandler = start, stop
    parser.CharacterDataHandler = getattr(unpacker, 'data', None)
    for piece in pieces:
        size += len(piece)
        if size > LARGEST_METADATA or search(b'<!DOCTYPE|\0', last + piece):    # NUL: UTF-16
            raise Damaged('it has a declaration, or too large an element, which xapi never writes')
        for at in range(0, len(piece), CHUNK // 4):
            parser.Parse(piece[at:at + CHUNK // 4], False)
        last = piece[-8:]
    parser.Parse(b'', True)


def xmlrpc_value(ova):
    """Return what an ova.xml holds, within damaged_if_malformed; numbers stay text, as in it."""
    import xmlrpc.client
    unpacker = xmlrpc.client.Unmarshaller()    # type: Any
    text = unpacker.dispatch['string']
    unpacker.dispatch = {**unpacker.dispatch, **dict.fromkeys(
        'i1 i2 i4 i8 int biginteger bigdecimal'.split(), text)}
    unpacker.xml(None, None)                           # what the parser gives it is decoded
    parse_xml(iter([ova]), 'value', unpacker)
    unpacker.end('params')                             # which is around a value elsewhere
    return unpacker.close()[0]


def ova_objects(ova):
    """Return an ova.xml's records by class and id, within damaged_if_malformed."""
    objects = defaultdict(dict)            # type: Dict[str, Records]
    for each in xmlrpc_value(ova)['objects']:
        objects[each['class']][each['id']] = each['snapshot']
    return objects


class ArchivedDisk(NamedTuple):
    """A disk that an archive has to hold."""
    id: str                    # the directory of its chunks
    size: int                  # bytes, the virtual size
    device: str                # its user device; '' for a suspend image
    name: str                  # of the device
    title: str                 # its own name
    uuid: str                  # in an archive, which is of a snapshot, that of the snapshot's


class ArchivedVm(NamedTuple):
    """The VM of an archive, as its ova.xml describes it."""
    name: str
    uuid: str
    disks: List[ArchivedDisk]  # in the order of the archive
    vifs: Sequence[Texts]      # device; name, bridge and id of the network
    seed: str                  # of which MAC addresses are made


def archived_vm(ova):
    """Return the VM of an ova.xml, the only one, with what its archive has to hold."""
    with damaged_if_malformed():
        objects = ova_objects(ova)
        vm, = objects['VM'].values()
        places, disks, vifs = {}, [], []   # type: Dict[str, Tuple[str, str]], List[Any], List[Any]
        for vbd in objects['VBD'].values():
            if vbd['type'] != 'CD' and not vbd['empty']:
                device = str(vbd['userdevice'])
                places[vbd['VDI']] = device_name(vbd['device'], device), device
        if vm['power_state'] == 'Suspended':
            places.setdefault(vm['suspend_VDI'], ('suspend-image', ''))
        for ref, (name, device) in sorted(places.items()):
            vdi = objects['VDI'][ref]
            if objects['SR'][vdi['SR']]['content_type'] != 'iso':
                size = as_size(vdi['virtual_size'])
                if size is None:
                    raise ValueError('virtual_size is no number: ' + vdi['virtual_size'][:40])
                disks.append(ArchivedDisk(str(ref), size, device, name, str(vdi['name_label']),
                                          str(vdi['uuid'])))
        for vif in objects['VIF'].values():
            network = objects['network'][vif['network']]
            vifs.append((vif['device'], network['name_label'], network['bridge'], vif['network']))
        return ArchivedVm(str(vm['name_label']), str(vm['uuid']), disks, sorted(vifs),
                          vm['other_config'].get('mac_seed', ''))


class Reader:
    """Reads an open file, an image or a document, decompressed if it begins so and not `plain`."""
    where = ''                 # what is read now
    at = 0                     # bytes so far
    place = 0                  # bytes of the file as it is, when `position` has last looked

    def __init__(self, handle, plain=False):
        import hashlib
        self.handle = handle
        self.digest = hashlib.sha256()
        self.view = memoryview(bytearray(CHUNK))
        begin = b'' if plain else pread(handle, 4, 0)
        compression = next(each for each in COMPRESSIONS.values() if begin.startswith(each.magic))
        self.stream = io.FileIO(handle, closefd=False)         # type: Any
        self.packed = bool(compression.programs)
        if self.packed:
            self.stream = Filter(packing_command(compression, undo=True), handle)

    def more(self, view):
        """Fill a buffer as far as the file goes; return how far. Raise Damaged, CommandFailed."""
        done = 0
        got = 1
        try:
            while got and done < len(view):
                got = self.stream.readinto(view[done:])
                done += got
                self.at += got
        except (Damaged, OSError) as error:
            if getattr(error, 'errno', EIO) != EIO:
                raise
            where = self.where and self.where + ': '
            raise Damaged(f'{where}{reason_of(error)} at byte {self.at} of its content')
        return done

    def fill(self, view):
        """Fill a buffer with what comes next; raise Damaged if the file ends before."""
        if self.more(view) < len(view):
            raise Damaged(f'it ends at byte {self.at}, in {self.where}')
        return view

    def pieces(self):
        """Yield what is still to be read; each piece is gone with the next."""
        for got in iter(lambda: self.more(self.view), 0):
            yield self.view[:got]

    def position(self):
        """Return how far it was read, and let the system forget that; lseek(2) waits for reads."""
        with suppress(OSError):                        # it is not open any more
            # It begins with pos: and that (proc(5)).
            self.place = int(read_file(f'/proc/self/fdinfo/{self.handle}', 80).split()[1])
            os.posix_fadvise(self.handle, 0, self.place, os.POSIX_FADV_DONTNEED)
        return self.place

    def close(self):
        """Stop whoever reads it: a thread that hangs gets a ValueError with its next piece."""
        self.position()
        self.handle = -1
        self.stream.close()

    def proof(self, proved, vm=''):
        """Return the proof that all was read."""
        return Proof(proved, self.digest.hexdigest(), self.at, vm)

    def read_on(self):
        """Return the next bytes, fewer at the end."""
        view = self.view[:self.more(self.view)]
        self.digest.update(view)
        return view

    def take(self, offset, size, what):
        """Read on to where something has to be; return so many bytes of it."""
        if offset < self.at:
            raise Damaged(f'{what}, at byte {offset}, is not behind what xapi writes before it')
        self.where = what
        data = bytearray(size)
        while self.at < offset:
            self.digest.update(self.fill(self.view[:offset - self.at]))
        self.digest.update(self.fill(memoryview(data)))
        return data

    def read_head(self, known: Size = None):
        """Return the bytes of a dynamic VHD's disk, its footer, the table of its blocks."""
        footer = self.take(0, BLOCK, 'its first footer')
        cookie, version, header_at, size, kind, total = struct.unpack_from(
            '>8s4xIQ24xQ4xII', footer)
        if (cookie, version, kind, total) != (b'conectix', 0x10000, 3, inverted(footer, 64)):
            raise Damaged('byte 0: the footer of a dynamic VHD image was expected, or one with '
                          'another checksum')
        wanted = known or size
        if size not in (wanted, rounded_up(wanted, VHD_BLOCK)):
            raise Damaged(f'it is of a disk of {size} bytes, not of {wanted}')
        header = self.take(header_at, 1024, 'its header')
        cookie, table_at, version, count, block, total = struct.unpack_from('>8s8xQ4I', header)
        if (cookie, version, block, total) != (b'cxsparse', 0x10000, VHD_BLOCK,
                                               inverted(header, 36)):
            raise Damaged(f'byte {header_at}: a header was expected, or one with another checksum')
        if not size <= count * VHD_BLOCK <= LARGEST_VHD + VHD_BLOCK:
            raise Damaged(f'a table of {count} blocks does not fit a disk of {size} bytes')
        return size, footer, self.take(table_at, 4 * count, 'its table of blocks')

    def blocks(self, known: Size = None):
        """Read a dynamic VHD image: footer, header, table, blocks in its order with all sectors in
        their bitmaps, as xapi writes it (libs/vhd: f.ml), footer. Yield where each block is on the
        disk, and its data; at last the disk's size, and nothing."""
        size, footer, table = self.read_head(known)
        for number, (sector,) in enumerate(struct.iter_unpack('>I', table)):
            if sector != NOWHERE:
                data = self.take(sector * BLOCK, BLOCK + VHD_BLOCK, f'block {number}')
                if data[:BLOCK].strip(b'\xff'):
                    raise Damaged(f'block {number} is not whole, as xapi writes it')
                begin = number * VHD_BLOCK
                if begin >= size:
                    raise Damaged(f'block {number} is behind the end of its disk, {size}')
                yield begin, data[BLOCK:BLOCK + size - begin]
        end = rounded_up(self.at)
        if self.take(end, BLOCK, 'its last footer') != footer:
            raise Damaged(f'byte {end}: the same footer as at its beginning was expected')
        if self.read_on():
            raise Damaged(f'it goes on after its last footer, at byte {end}')
        yield size, bytearray()


class ArchiveReader(Reader):
    """Reads an XVA archive: a tar of ova.xml and of each disk's chunks, each with its checksum."""
    where = 'ova.xml'
    ova_head = b''             # the header of ova.xml
    head = b''                 # the block that was read last: the header of the next member
    gaps = False               # whether chunks are left out
    hashed = True              # whether every checksum was compared

    def read_block(self):
        """Read a header or the block of a checksum. Raise Damaged."""
        self.head = bytes(self.take(self.at, BLOCK, self.where))
        return self.head

    def read_ova(self):
        """Read ova.xml; return what it holds. Raise Damaged."""
        self.ova_head = self.read_block()
        name, size = self.member()
        if name != 'ova.xml' or not 0 <= size <= LARGEST_OVA:
            raise self.fault(f'it begins with {name} of {size} bytes, not with ova.xml')
        ova = self.take(self.at, rounded_up(size), self.where)
        self.check_padding(ova[size:])
        self.read_block()
        return bytes(ova[:size])

    def read(self):
        """Read all of it; raise Damaged where it is not as it should be."""
        vm = archived_vm(self.read_ova())
        for disk in vm.disks:
            deque(self.chunks(disk), 0)    # to its end
        self.where = 'the end'                         # two blocks of zeros, or as many as tar adds
        name, _ = self.member()
        if name:
            raise self.fault(f'{name} belongs to no disk')
        for piece in itertools.chain([self.fill(self.view[:BLOCK])], self.pieces()):
            more = len(bytes(piece).lstrip(b'\0')) or len(piece) % BLOCK
            if more:
                raise self.fault('something follows the end', more)
        proved = 'checksums' if self.hashed else 'structure'
        # xe vm-import takes the first chunk's length for that of all.
        if self.gaps and next(disk.size for disk in vm.disks if disk.size) < CHUNK:
            proved = 'restorable'
        return self.proof(proved, vm.uuid)

    def fault(self, text, back=BLOCK):
        """Return an error so many bytes before the place where we are."""
        return Damaged(f'{self.where}, byte {self.at - back}: {printable(text)}')

    def check_padding(self, padding):
        """Raise Damaged if what fills up a member, and was read last, is anything but zeros."""
        if any(padding):
            raise self.fault('something between its end and the next header', len(padding))

    def member(self):
        """Return name and size from the last header; ('', 0) at the end. Raise Damaged."""
        import tarfile
        try:
            found = tarfile.TarInfo.frombuf(self.head, 'utf-8', 'replace')
        except tarfile.EOFHeaderError:
            return '', 0
        except tarfile.HeaderError:
            raise self.fault('a header was expected, or one with another checksum')
        if found.type not in (tarfile.AREGTYPE, tarfile.REGTYPE):
            raise self.fault('a member of an unknown kind')
        return found.name, found.size

    def disk(self, wanted, passing=False):
        """Yield the chunks of the disk of that id (see `chunks`), then its size, and nothing. The
        disks in front of it, and if `passing` its own data, are passed over."""
        for disk in archived_vm(self.read_ova()).disks:
            for chunk in self.chunks(disk, passing or disk.id != wanted):
                if disk.id == wanted:
                    yield chunk
            if disk.id == wanted:
                yield disk.size, b''
                break

    def chunks(self, disk: ArchivedDisk, passing=False):
        """Yield where each chunk of a disk is, and its data, if not `passing` read and checked.
        Chunks of zeros are left out, but never the first and the last; an empty one, which keeps a
        connection alive, takes up a number. What is left out counts as whole chunks; an import
        fails as it takes the length of the archive's first chunk for that, if this is of a disk
        below 1 MiB (xapi: stream_vdi.ml, recv_all_vdi)."""
        label = f'disk {disk.name} ({printable(disk.title)}, {disk.id})'
        expected = offset = 0          # number of the next chunk, if none is left out
        while offset < disk.size:
            self.where = f'{label} at {offset} of {disk.size}'
            name, size = self.member()
            digits = match(re.escape(disk.id) + r'/([0-9]{8,})\Z', name)
            number = int(digits.group(1)) if digits else -1
            if number < expected or (not expected and (number or not size)):
                raise self.fault(f'chunk {disk.id}/{expected:08d} was expected, found '
                                 f'{name or "the end"}')
            self.gaps |= number > expected
            offset += (number - expected) * CHUNK
            room = max(0, min(CHUNK, disk.size - offset))
            if size not in (room, 0) or not room:
                raise self.fault(f'chunk {name} of {size} bytes for offset {offset}, where '
                                 f'{room} were expected')
            self.where = f'{label}, chunk {name}'
            self.read_chunk(name, size, passing)
            yield offset, self.view[:size]
            expected = number + 1
            offset += size

    def read_chunk(self, name, size, passing=False):
        """Read a chunk into the buffer, its checksum, whose blocks are returned, and a header; if
        `passing` the data is not looked at and, where the file is not compressed, not read."""
        end = rounded_up(size)
        if self.packed or not passing:
            self.check_padding(self.fill(self.view[:end])[size:])
        else:
            self.at = self.stream.seek(end, io.SEEK_CUR)
        head = self.read_block()
        found, length = self.member()
        if length not in SUMS or found != name + SUMS[length]:
            raise self.fault(f'its checksum was expected, found {found or "the end"}')
        block = self.read_block()
        self.check_padding(block[length:])
        told = right = block[:length].decode('ascii', 'replace')
        data = self.view[:size]
        if passing:
            right = told
        elif SUMS[length] == '.checksum':
            import hashlib
            right = hashlib.sha1(data).hexdigest()
        elif xxh64_function():
            right = f'{xxh64_function()(data):016X}'
        else:
            self.hashed = False
        if told != right:
            raise self.fault(f'the checksum is {told}, that of the data here is {right}',
                             end + 2 * BLOCK)
        self.read_block()
        return head, block


def rounded_up(size, unit=BLOCK):
    """Return the bytes of as many whole units as a size takes."""
    return size + -size % unit


def inverted(data, at):
    """Return the checksum of a VHD's footer or header, whose own field is there."""
    return ~(sum(data) - sum(data[at:at + 4])) & 0xffffffff


def zeros(size):
    """Yield so many bytes of zeros."""
    for offset in range(0, size, CHUNK):
        yield bytes(min(CHUNK, size - offset))


def disk_in(form, reader, size: Size = None, wanted=''):
    """Yield where each piece of a disk is on it, and its data, at last its size and nothing: of an
    image, of such a size if that is known, or of an archive the disk of that id. Raise Damaged."""
    if form == '.xva':
        yield from reader.disk(wanted)
    elif form == '.vhd':
        yield from reader.blocks(size)
    else:
        for piece in iter(reader.read_on, b''):
            if size is None or reader.at <= size:
                yield reader.at - len(piece), piece
            if size and reader.at > size + CHUNK:      # it may go on for ever
                raise Damaged(f'it goes on after byte {reader.at}, its disk ends at {size}')
        if size not in (None, reader.at):
            raise Damaged(f'it has {reader.at} bytes, its disk {size}')
        yield reader.at, b''


def read_form(form, reader, size: Size):
    """Read a file of one of FORMS; `size` is that of its disk, if known. Raise Damaged, OSError."""
    if form == '.xva':
        return reader.read()
    if form in ('.raw', '.vhd'):
        deque(disk_in(form, reader, size), 0)      # to its end
        if form == '.raw' and size is None:
            return reader.proof('length')
    else:
        with damaged_if_malformed():
            parse_xml(map(bytes, iter(reader.read_on, b'')),
                      'database' if form == '.dump' else 'value')
    return reader.proof('structure')


def form_of(name):
    """Return what a file's name tells of its content: one of FORMS, or ''."""
    form = splitext(plain_name(name).replace(PARTIAL, ''))[1]
    return form if form in FORMS else ''


def rewrite_for_import(ova, target, mark, moved: Texts):
    """Return an ova.xml whose VM gets that name, is no template and neither starts by itself nor
    ever did; it, its disks and networks carry the mark, in the field that an import leaves as it is
    (xapi: import.ml). The ids of disks that are moved begin with LAST. Networks become what target
    says; those without a bridge are left out, and VIFs in them. Raise Damaged."""
    import xmlrpc.client
    new = {'VM': {'name_label': target.name, 'ha_restart_priority': '', 'is_a_template': False,
                  'ha_always_run': False},             # an import keeps the next: see check_unused
           'VM_metrics': {'start_time': xmlrpc.client.DateTime('19700101T00:00:00Z')}}
    with damaged_if_malformed():
        document = xmlrpc_value(ova)
        document['objects'] = [each for each in document['objects'] if all(target.networks.get(
            each['snapshot'].get('network', each['id']), {}).values())]
        for each in document['objects']:
            record = each['snapshot']
            for place, field in ((each, 'id'), (record, 'VDI'), (record, 'suspend_VDI')):
                if place.get(field) in moved:
                    place[field] = LAST + place[field]
            if each['class'] in ('VM', 'VDI', 'network'):
                for key in ('auto_poweron', OWN):
                    record['other_config'].pop(key, None)
                record['other_config'][MARK] = mark
            for field, value in (target.networks.get(each['id']) or
                                 new.get(each['class'], {})).items():
                if field in record:                    # not all versions have all of them
                    record[field] = value
        value = search('<value>.*</value>', xmlrpc.client.dumps((document,)), DOTALL).group()
    return encoded(value.replace('\r', '&#13;'))       # XML reads a bare one as a line feed


def tar_header(head):
    """Return a tar header that was changed with its checksum (ocaml-tar: lib/tar.ml)."""
    new = bytearray(head)
    new[148:156] = b' ' * 8
    new[148:156] = b'%06o\0 ' % sum(new)
    return bytes(new)


@contextmanager
def opened(path, form):
    """Yield the Reader of a file, which unpacks all but images."""
    kind = ArchiveReader if form == '.xva' else Reader
    with reading(path) as stream, closing(
            kind(stream.fileno(), path.endswith(('.raw', '.vhd')))) as reader:
        yield reader


def archive_for_import(path, target, mark, readers: List[Reader]):
    """Yield an archive, uncompressed, with its ova.xml rewritten, and first disks below 1 MiB,
    which an import refuses (see `read_disk`), at the end, with ids that say so. Two blocks of
    zeros end it: an import reads none (xapi: stream_vdi.ml, recv_all_vdi)."""
    with opened(path, '.xva') as reader:
        readers.append(reader)                         # whom to ask how far it is
        ova = reader.read_ova()
        small = list(itertools.takewhile(lambda disk: 0 < disk.size < CHUNK,
                                         archived_vm(ova).disks))
        ova = rewrite_for_import(ova, target, mark, [disk.id for disk in small])
        head = reader.ova_head
        head = tar_header(head[:124] + b'%011o\0' % len(ova) + head[136:])
        yield head + ova + bytes(-len(ova) % BLOCK)
        moved = b''
        for disk in small:
            head = reader.head
            checksum_head, checksum = reader.read_chunk(*reader.member())
            data = reader.view[:rounded_up(disk.size)].tobytes()
            for each, content in (head, data), (checksum_head, checksum):
                moved += tar_header((LAST.encode() + each)[:100] + each[100:]) + content
        rest = reader.head
        reader.where = ''
        for piece in reader.pieces():
            rest += piece
            end = rounded_up(len(rest.rstrip(b'\0')))
            yield rest[:end]
            rest = rest[end:]
            if len(rest) > 2 * CHUNK:                  # a chunk is of one at most
                break
        yield moved + rest[:2 * BLOCK]


def continuous(pieces: Located):
    """Yield all bytes of a disk, with zeros where there is nothing."""
    at = 0
    for begin, data in pieces:
        yield from zeros(begin - at)
        yield data
        at = begin + len(data)


def disk_pieces(path, form, size, whole, wanted):
    """Yield disk_in, and zeros up to the new one's size (vhd-tool: impl.ml, serve)."""
    with opened(path, form) as reader:
        yield from continuous(disk_in(form, reader, size, wanted))
        yield from zeros(whole - size)


# ----------------------------------------------------------------------------------------------
# 13. Metadata: vm-metadata.xml, vm.cfg, DISK-*/, VIFs/, RESTORE.txt
# ----------------------------------------------------------------------------------------------
# What a person needs to build the VM again where an import alone will not do.

VM_CFG = ('name_label name_description memory_dynamic_max VCPUs_max VCPUs_at_startup os_version '
          'orig_uuid')
VBD_CFG = 'userdevice bootable mode type unpluggable empty orig_uuid'
VDI_CFG = 'name_label name_description virtual_size type sharable read_only orig_uuid orig_sr_uuid'
VIF_CFG = 'device network_name_label MTU MAC other_config orig_uuid'
# Safe to be pasted into a shell, whatever the names are in it: comments and commands.
GUIDE_HEAD = """\
# How to restore this backup ({manifest[method]}) of the VM {vm}, begun {manifest[started]}.
#
# With VmBackup.py, first to see what would be done, then to do it (README.md, chapter Restore,
# tells of sr=, name=, preserve=True, start=True and attach=):

{program} restore {restore} preview
{program} restore {restore}

# With xe alone, in a shell on a host of the pool; the path is the one where the backup was made.
"""
GUIDE_VM = """\
# The disks go to the default SR of the pool, or where sr-uuid= tells. The VM has new uuids and new
# MAC addresses, unless preserve=true is added. The last command is for a VM that starts with its
# host; others have no such key.

VM=$(xe vm-import {filename})
xe vm-param-set uuid=$VM {name} ha-restart-priority=
xe vm-param-remove uuid=$VM param-name=other-config param-key=vmbackup_snapshot
xe vm-param-remove uuid=$VM param-name=other-config param-key=auto_poweron || true

# It is not started: xe vm-start uuid=$VM
"""
GUIDE_DISK = """\
# sr-uuid= is where the disk was, vm-uuid= its VM, which has to be halted. If that still has a disk
# there, choose another device; if it is gone, vm.cfg and vm-metadata.xml tell how it was made.

{unpack}VDI=$(xe vdi-create sr-uuid={disk.sr_uuid} {name} type=user virtual-size={size})
xe vdi-import uuid=$VDI {filename} format={form}
xe vbd-create vm-uuid={manifest[vm][uuid]} vdi-uuid=$VDI {device} \
bootable={boot} mode=RW type=Disk
{clean}"""


def cfg(keys, record: Record, **further):
    """Return lines of key=value, in 3.25's order; control characters in values are escaped."""
    values = {'orig_uuid': record.get('uuid'), **record, **further}
    return ''.join(f'{key}={printable(str(values[key]))}\n' for key in keys.split())


def write_metadata(backup: NewBackup, vm: Vm, xe: Xe):
    """Write vm-metadata.xml: a line for each element, what is HIDDEN as references. Ask again where
    xapi went away or, before 25.20, somebody takes a snapshot of the VM (recorded from 25.6.0); an
    empty filename= is standard output (xapi: newcli.ml). Raise CommandFailed if it is not whole."""
    from xml.dom import minidom
    for wait in SNAPSHOT_PAUSES + (0,):
        try:
            archive = xe.issue('vm-export', asking=True, metadata='true', uuid=vm.uuid, filename='')
            break
        except CommandFailed as error:
            if not wait or error.code not in WENT_AWAY + ('OTHER_OPERATION_IN_PROGRESS',):
                raise
        sleep(wait)
    # A tar that begins with ova.xml (xapi: export.ml).
    header = match(rb'ova\.xml\0.{116}([0-7]{11})[\0 ]', archive, DOTALL)
    if not header:
        raise CommandFailed('the metadata export holds no ova.xml')
    try:
        document = minidom.parseString(archive[BLOCK:BLOCK + int(header.group(1), 8)])
    except ExpatError as error:
        raise CommandFailed(f'the metadata export is no XML: {error}')
    backup.write(sub(f'(?!\n){HIDDEN.pattern}', lambda found: f'&#{ord(found.group())};',
                     document.toprettyxml('  ')), METADATA)


def write_configuration(backup: NewBackup, vm: Vm, pool: Pool):
    """Write vm.cfg, DISK-*/vbd.cfg and vdi.cfg, VIFs/vif-N.cfg. Raise PoolError, OSError."""
    metrics = pool.table('VM_guest_metrics').get(vm.record['guest_metrics'], {})
    backup.write(cfg(VM_CFG, vm.record, orig_uuid=vm.uuid, name_label=vm.name,
                     os_version=metrics.get('os_version', {}).get('name', '')), 'vm.cfg')
    log('Writing disk info')
    for disk in pool.disks(vm):
        log('vbd: ' + disk.vbd_ref, f'disk: {disk.name} - begin')
        directory = 'DISK-' + disk.device
        backup.write(cfg(VBD_CFG, disk.vbd), directory, 'vbd.cfg')
        backup.write(cfg(VDI_CFG, disk.vdi, orig_sr_uuid=disk.sr_uuid), directory, 'vdi.cfg')
    log('Writing VIF info')
    for vif in pool.vifs(vm):
        log('Writing VIF: ' + vif['device'])
        backup.write(cfg(VIF_CFG, vif), 'VIFs', 'vif-{}.cfg'.format(vif['device']))


class ExportFile(NamedTuple):
    """A file that is exported of a snapshot."""
    name: str
    snapshot: Snapshot
    disk: Optional[Disk] = None    # whose image it is; None for the archive of a VM


def write_guide(backup: NewBackup, files: Sequence[ExportFile], manifest: Record):
    """Write RESTORE.txt: how to restore the files of a backup. Raise OSError."""
    texts = []
    for name, snapshot, disk in files:
        path = portable(backup.file(name))
        way, label = GUIDE_VM, manifest['vm']['name']
        values = {         # type: Record
            'manifest': manifest, 'disk': disk, 'vm': printable(label), 'unpack': '', 'clean': '',
            'program': shell_word(abspath(sys.argv[0])), 'restore': shell_word(path)}
        if manifest.get('verified', {}).get('proved') == 'restorable':
            way = '# It cannot be restored so: xe vm-import refuses this archive.\n'
        if disk:
            way, label = GUIDE_DISK, disk.name
            form = form_of(path)
            size = rounded_up(snapshot.size, VHD_BLOCK) if form == '.vhd' else snapshot.size
            if compression_of(path).ending:
                values['unpack'] = f'{compression_of(path).unpack} {shell_word(path)}\n'
                path = plain_name(path)
                values['clean'] = f'rm {shell_word(path)}\n'
            values.update(
                device=shell_word('device=' + disk.vbd['userdevice']), form=form[1:],
                boot=str(disk.vbd['bootable']).lower(),
                size='{} {}={}'.format(size, *QCOW2) if size > LARGEST_STORED else size)
        texts.append((GUIDE_HEAD + way).format(
            filename=shell_word('filename=' + path),
            name=shell_word('name-label=' + label_part(label)), **values))
    backup.write('\n'.join(texts), GUIDE)


# ----------------------------------------------------------------------------------------------
# 14. Verification: a backup verified, file by file
# ----------------------------------------------------------------------------------------------
# A file is read as its storage has it, not as memory remembers it, and watched, as storage may
# hang. What is found is for the manifest, so that a later verification can compare.


class Verified(NamedTuple):
    """What was found true of a backup."""
    proved: str                # the least that was proved of its archive or images
    digests: Strings           # SHA-256 by the name of the file, without the ending .gz or .zst
    problems: Warned           # with its metadata
    remarks: Warned            # on what else is not as it was, or cannot be known

    def in_manifest(self, known: Record):
        """Return what a manifest is to tell of it; what it told of other files stays."""
        told = {'when': iso(now()), 'proved': self.proved, 'digests': {**known, **self.digests}}
        return told if self.proved else {**told, 'fault': printable(self.problems[0])}


def read_watched(path, limit, verb, read):
    """Return what a function returns of a file's form and Reader, in a thread of its own, as
    storage may hang, for so many seconds at most. Raise what it does, CommandFailed."""
    readers = []               # type: List[Reader]    # once it is open

    def work():
        form = form_of(path)
        sync(path)
        with opened(path, form) as reader:
            readers.append(reader)
            return read(form, reader)
    try:
        return bounded(path, work, watch=Watchdog(
            limit, lambda: sum(each.position() for each in readers), verb, path,
            bounded(path, size_of, path)).check)
    finally:
        for reader in readers:
            reader.close()


def check_digest(backup: Backup, name, digest):
    """Return whether a backup's manifest has the digest of a file; raise Damaged if another one."""
    known = backup.manifest.digests.get(portable(plain_name(name)))
    if known not in (None, digest):
        raise Damaged('intact, but not the file that was verified first')
    return bool(known)


class Verifier(NamedTuple):
    """Reads files under watch, and shows how far it is."""
    limit: float               # seconds in which something has to move

    def prove(self, path, size: Size = None):
        """Read a file; `size`: bytes of an image's disk. Raise Damaged, CommandFailed, OSError."""
        return read_watched(path, self.limit, 'verified',
                            lambda form, reader: read_form(form, reader, size))

    def prove_in(self, backup: Backup, name):
        """Do as `prove` for a file of a backup, which has to be what its manifest tells of it."""
        proof = self.prove(backup.file(name), backup.disk_size(name))
        meant = backup.manifest.snapshot
        if proof.vm and meant not in (None, proof.vm):
            raise Damaged(f'it is of another snapshot: {proof.vm}, not {meant}')
        if check_digest(backup, name, proof.digest) and form_of(name) in ('.raw', '.vhd'):
            return proof._replace(proved='checksums')
        return proof

    def check(self, backup: Backup):
        """Read all of a backup. Raise as `prove` if its archive or image is not what it was."""
        proofs = {}            # type: Dict[str, Proof]
        for name in backup.check_archives():
            try:
                proofs[portable(plain_name(name))] = self.prove_in(backup, name)
            except (Damaged, CommandFailed) as error:
                raise type(error)(f'{name}: {error}')
        least = min((proof.proved for proof in proofs.values()), key=list(PROVED).index)
        found = Verified(least, {name: proofs[name].digest for name in proofs}, [], [])
        if found.proved == 'length':
            found.remarks.append('the size of its disk is not known')
        if not backup.manifest.known and is_there(backup.file(MANIFEST)):
            found.problems.append(f'{MANIFEST} is damaged')
        for name, expected_size in backup.manifest.files.items():
            size = 0
            with suppress(ValueError):                 # no name of a file
                size = size_of(backup.file(native(name)))
            if size != expected_size and (size or plain_name(name) not in found.digests):
                found.remarks.append(f'{name} has {size} bytes, not {expected_size}')
        if is_there(backup.file(METADATA)):
            self.check_metadata(backup, found)
        elif METADATA not in backup.manifest.files:
            found.remarks.append(METADATA + ' is missing')
        return found

    def check_metadata(self, backup: Backup, found: Verified):
        """Note what is wrong with vm-metadata.xml, which has to be whole, and of this VM."""
        try:
            digest = self.prove_in(backup, METADATA).digest
            with damaged_if_malformed():
                objects = ova_objects(load(backup.file(METADATA), LARGEST_METADATA))
                uuids = [str(vm['uuid']) for vm in objects['VM'].values()]
            if backup.manifest.uuid not in ['', *uuids]:
                raise Damaged('it is of another VM: ' + ', '.join(uuids))
            found.digests[METADATA] = digest
        except (Damaged, OSError) as error:
            found.problems.append(f'{METADATA}: {reason_of(error)}')


# ----------------------------------------------------------------------------------------------
# 15. Exporters: snapshots, what is exported from them, how they are removed
# ----------------------------------------------------------------------------------------------
# A snapshot is destroyed when XenAPI says that it is one OF this very VM or disk, and it has our
# mark, its own uuid, in other_config; or this host has noted its uuid or, before it was made, that
# it would be, and it is new and carries our label. Never by its name, nor by what a share says.

SET_PIPE_SIZE = 1031       # F_SETPIPE_SZ (Linux: fcntl.h), which Python has since 3.10
LEFT_OUT = '{0.device} ({0.name}): {0.why}'        # a disk that is not exported
# Recorded from xapi 26.17.0; vhd-tool: channels.ml.
TOO_LARGE = 'xapi exports no disk of more than 2040 GiB as VHD'
# xapi: xapi_vm_lifecycle.ml; running or not. xe's commands for it: cli_frontend.ml, records.ml.
USB = ('xapi takes no snapshot of a VM with a USB device passed through. What works: vdi-export= '
       'of its boot disk (vdi_disks=boot); to take the device off: xe vusb-list vm-uuid={0}, then '
       'vusb-unplug and vusb-destroy; or, while it is off: xe vm-export uuid={0} filename=...')


@contextmanager
def failing_as(token):
    """Give the failure of a step its word in the status log."""
    try:
        yield
    except (CommandFailed, PoolError) as error:
        raise BackupFailed(token, str(error), error.code)


@contextmanager
def tolerating(warnings: Warned, what):
    """Allow a step to fail, and note that, as a warning with which a VM's backup then ends."""
    try:
        yield
    except (VmBackupError, OSError) as error:
        warnings.append(f'{what}: {explain(error)}')


def end_clients(uuids: Texts, run):
    """End each xe of a killed run, a process as in Intent, that still transfers an object."""
    for uuid in uuids:
        for number in programs_with('uuid=' + uuid, f'{CHILD}={run.partition(" ")[0]}\0'):
            log(f'ending a transfer of a run that was killed: process {number}')
            end_program(number)


def in_several_tries(remove, patient=False):
    """Call `remove` with the number of the try until it succeeds. Only what fails in the last one
    is raised. IN_USE usually passes, and gets more tries, as does all where `patient`."""
    pauses = DISCARD_PAUSES + BUSY_PAUSES
    for number in itertools.count():
        try:
            return remove(number)
        except (CommandFailed, PoolError) as error:
            passing = patient or error.code == IN_USE
            if number >= len(pauses if passing else DISCARD_PAUSES) or error.code == NOT_OURS:
                raise
            log(f'***NOTE - {error}: trying again')
        sleep(pauses[number])


class Operator:
    """Changes the pool by commands of xe, of which those for one VM are numbered."""
    def __init__(self, pool: Pool, warnings: Warned, numbered=True):
        self.pool = pool
        self.xe = Xe(numbered)
        self.warnings = warnings

    def drop_leaked_vbds(self, owners: Records, disks: Iterable[str], mode='RO', sure=True):
        """Take the VBDs from disks that transfers have left (Pool.holds). Raise VmBackupError."""
        leaked = []            # type: List[str]
        for pause in (0, SECOND_LOOK):     # nothing keeps xapi from unplugging a VBD that is in use
            sleep(pause)
            held = self.pool.holds(owners, disks, mode, sure)
            if not held:
                return
            for vbd, user, is_leaked in held:
                uuid = vbd['uuid']
                disk = self.pool.record('VDI', vbd['VDI'])['uuid']
                if is_leaked and pause and uuid not in leaked:
                    user = user or 'a transfer'
                if user or any(programs_with('/' + disk)):     # vhd-tool's path
                    raise PoolError(f'the disk {disk} is in use by {user or "vhd-tool"}', IN_USE)
                if pause and not is_leaked:
                    raise VmBackupError(
                        'the disk {0} has the VBD {1} of another VM or of a person (look at it: '
                        'xe vbd-param-list uuid={1}; to remove it: xe vbd-unplug uuid={1}, xe '
                        'vbd-destroy uuid={1})'.format(disk, uuid), NOT_OURS)
                if is_leaked:
                    leaked.append(uuid)
        for vbd, _, _ in held:
            if vbd['currently_attached']:
                self.xe.tell('vbd-unplug', uuid=vbd['uuid'])
            self.xe.tell('vbd-destroy', uuid=vbd['uuid'])


class Remover(Operator):
    """Removes snapshots of ours with their disks, as records (Intent) tell of them."""
    def with_disks(self, intent: Intent, snapshot: Snapshot):
        """Return the record of a snapshot with its uuid, and the disks of a VM's. One call."""
        intent = intent._replace(uuid=snapshot.uuid)
        if intent.kind == 'VDI':
            return intent
        found = {intent.ref: [], snapshot.ref: []}     # type: Dict[str, List[str]]
        for vbd in self.pool.where('VBD', 'VM', found).values():
            if vbd['type'] == 'Disk' and vbd['VDI'] != NULL:
                found[vbd['VM']].append(vbd['VDI'])
        sources, disks = found.values()
        return intent._replace(sources=sources or intent.sources, disks=disks)

    def disks_of(self, intent: Intent):
        """Return which disks are there that came with a snapshot, or that it is. One call."""
        if intent.kind == 'VDI':
            return self.pool.snapshots('VDI', [intent.uuid], 'uuid')
        return [found for found in self.pool.snapshots('VDI', intent.sources)
                if found.ref in intent.disks]

    def remove(self, intent: Intent, prepared=False):
        """Uninstall a VM's snapshot, destroy the disks that are left: xapi removes its record, then
        its disks until one fails (cli_operations.ml, vm_uninstall_common). Raise VmBackupError."""
        def attempt(number):
            uuid = intent.uuid
            disks = self.disks_of(intent)
            if intent.kind == 'VM' and not (number and self.pool.is_gone('VM', uuid)):
                # Disks that something else has would stay (recorded: snapshot-uninstall).
                held = [disk.ref for disk in disks if len(disk.vbds) > 1]
                if held:
                    self.drop_leaked_vbds(self.pool.where('VM', 'uuid', [uuid]), held)
                # snapshot-uninstall does it whether it is still a template or not.
                verb = 'vm-uninstall' if prepared and not number else 'snapshot-uninstall'
                log(*self.xe.tell(verb, uuid=uuid, force='true').splitlines())
                disks = self.disks_of(intent)
                unsure = not intent.disks or any(disk.vbds for disk in disks)
                if unsure and not self.pool.is_gone('VM', uuid):
                    raise CommandFailed(f'the snapshot {uuid} is still there')
            self.destroy(disks)
        in_several_tries(attempt)

    def destroy(self, disks: Sequence[Snapshot]):
        """Destroy disks of no VM; an export of one may still be ending (xapi: xapi_vdi.ml)."""
        wrong = VmBackupError('xe vdi-destroy did nothing')
        for disk in disks:
            try:
                if disk.vbds:
                    self.drop_leaked_vbds({}, [disk.ref])
                self.xe.tell('vdi-destroy', uuid=disk.uuid)
            except VmBackupError as error:
                wrong = error
        left = [disk.uuid for disk in disks if not self.pool.is_gone('VDI', disk.uuid)]
        if left:
            raise CommandFailed(f'{wrong} (still there: {", ".join(left)})', wrong.code)

    def remove_unfinished(self, intent: Intent, backup: Backup):
        """Remove the snapshot of an unfinished backup's record, and what is left of it. Return
        False, with a warning, if it may not be ours: anybody can write what is not noted here."""
        if intent.uuid:
            for found in self.pool.snapshots(intent.kind, [intent.ref]):
                if found.uuid == intent.uuid and found.ref not in intent.before:
                    # The record may be a copy of that of another VM.
                    name = TWIN.sub('', basename(dirname(backup.path)))
                    if not intent.noted and not (found.marked and (
                            found.label.startswith('SNAP_{}_'.format(name.replace(' ', '-'))) or
                            found.label.startswith('RESTORE_') and
                            path_part(found.label[8:]) == name)):
                        return self.doubt(intent.kind, found, backup)
                    self.remove_found(found, intent, backup)
                    return True
            disks = self.disks_of(intent)
            if not intent.noted:
                return all([self.doubt('VDI', disk, backup) for disk in disks])
            if not self.pool.is_gone(intent.kind, intent.uuid):
                raise CommandFailed(f'the snapshot {intent.uuid} is still there')
            self.destroy(disks)
            return True
        if intent.noted:
            self.pool.wait_for_snapshot(intent.kind, intent.ref)
        clear = True
        names = dict(zip(intent.sources, intent.names))
        # Of a VM's half made one the disks come first, yet nobody's (xapi: xapi_vm_clone.ml).
        for kind, refs in {intent.kind: (intent.ref,), 'VDI': intent.sources}.items():
            new = [found for found in self.pool.snapshots(kind, refs)
                   if found.ref not in intent.before]
            halves = []        # type: List[Snapshot]
            for found in new:
                if intent.noted and self.is_ours(kind, found, new, intent):
                    if kind == intent.kind:
                        self.remove_found(found, intent, backup)
                    else:
                        halves.append(found)
                elif kind == 'VDI' and not (found.vbds or found.tags) and (
                        found.when >= intent.since and found.label == names.get(found.of)):
                    # One request of ours may make two where xapi ends (recorded from 26.17.0).
                    clear = self.doubt(kind, found, backup)
                elif found.label == intent.label and (intent.noted or found.when >= intent.since):
                    clear = self.doubt(kind, found, backup)
            self.destroy(halves)
        return clear

    def is_in_use(self, intent: Intent):
        """Return whether a recorded snapshot, or a disk of it, is exported. Raise PoolError."""
        if not intent.uuid:
            self.pool.wait_for_snapshot(intent.kind, intent.ref)
        owners = self.pool.where('VM', 'uuid', [intent.uuid])
        return any('export' in vm['current_operations'].values() for vm in owners.values()) or any(
            user for _, user, _ in self.pool.holds(
                owners, [disk.ref for disk in self.disks_of(intent)], 'RO', True))

    def remove_found(self, found: Snapshot, intent: Intent, backup: Backup):
        """Remove an unfinished backup's snapshot; note its disks, as its own record goes first."""
        log('removing the snapshot of an unfinished backup: ' + found.uuid)
        ours = self.with_disks(intent, found)
        if ours != intent:
            with tolerating(self.warnings, f'cannot write the record in {backup.path}'):
                set_intent(backup, ours)
        end_clients([ours.uuid] + [disk.uuid for disk in self.disks_of(ours)], ours.process)
        self.pool.await_exports(intent.kind, found.ref)
        self.remove(ours)

    def is_ours(self, kind, found: Snapshot, new: Sequence[Snapshot], intent: Intent):
        """Return if it can only be what was meant: of a VM, the only template of then with our
        label; of a disk, the only one of then without VBD, with its label (xapi: xapi_vdi.ml)."""
        until = intent.latest if kind == 'VM' else intent.until
        new = [each for each in new if intent.since <= each.when <= until]
        if kind == 'VM':
            likely = [each for each in new if each.label == intent.label]
            return found.template and likely == [found]
        alone = [each for each in new if each.of == found.of and not each.vbds] == [found]
        return alone and found.label == dict(zip(intent.sources, intent.names)).get(found.of)

    def doubt(self, kind, found: Snapshot, backup: Backup):
        """Warn of a snapshot that may be somebody else's; return False."""
        word, verb = ('vdi', 'destroy') if kind == 'VDI' else ('snapshot', 'uninstall')
        self.warnings.append(
            'the snapshot {0}, called {1}, is left of a backup that did not end, or somebody made '
            'it: not touched (look at it: xe {2}-param-list uuid={0}; to remove it: xe {2}-{3} '
            'uuid={0}; to keep it: delete {4})'.format(found.uuid, found.label, word, verb,
                                                       backup.file(INTENT)))
        return False


class Exporter(Remover):
    """Exports a VM as an archive, or disks as images, from a snapshot of it or of its boot disk."""
    snapshot_may_remain = False        # one of ours, in the pool, for a later attempt
    # Set by choose_source: the VM, the record of its snapshot, disks that are exported, its others,
    # those of them that are excluded, whether xapi leaves the others out of the snapshot.
    vm = intent = None         # type: Any
    disks = others = left_out = ()     # type: Any
    ignoring = False

    def __init__(self, pool: Pool, extension, choice: DiskChoice, warnings: Warned):
        super().__init__(pool, warnings)
        self.extension = extension
        self.archive = '.xva' in extension
        self.choice = choice
        self.kind = 'VDI' if choice.wanted == 'boot' else 'VM'     # of what gets a snapshot
        self.snapshot_token, self.prepare_token, self.export_token = (
            'SNAPSHOT-FAIL', 'TEMPLATE-PARAM-SET-FAIL', 'VM-EXPORT-FAIL') if self.archive else (
            'VDI-SNAPSHOT-FAIL', 'VDI-PARAM-SET-FAIL', 'VDI-EXPORT-FAIL')

    def choose(self, vm: Vm, fresh=False):
        """Choose the disks to export, by the tables unless they have to be fresh; note others."""
        disks = self.pool.disks(vm, fresh)
        wanted = self.choice.wanted
        if wanted == 'boot':
            chosen = []
            for field, value in ('device', 'xvda'), ('bootable', True), ('userdevice', '0'):
                chosen = chosen or [disk for disk in disks if disk.vbd[field] == value][:1]
        else:
            chosen = [disk for disk in disks if wanted == 'all' or disk.device in wanted.split(',')]
        disks = [disk._replace(why=self.choice.reason(vm.name, disk) or (
            '' if disk in chosen else NOT_CHOSEN + wanted)) for disk in disks]
        self.disks = [disk for disk in disks if not disk.why]
        refs = [disk.vdi_ref for disk in self.disks]
        self.others = [disk for disk in disks if disk.vdi_ref not in refs]
        self.left_out = [disk for disk in self.others if not disk.why.startswith(NOT_CHOSEN)]

    def names(self, base, vm: Vm):
        """Return the names of the files; `base`: that of the VM's directory. Raise PoolError."""
        if self.archive:
            return [base + self.extension]
        self.choose(vm)
        return [self.name_of(base, disk) for disk in self.disks]

    def name_of(self, base, disk: Disk):
        """Return the name of a disk's file; `auto` stands for VHD where xapi makes it."""
        if self.kind == 'VM':
            base = path_part(f'DISK-{disk.device}')
        return base + self.extension.replace(
            '.auto', '.raw' if disk.size > LARGEST_EXPORT or disk.size % VHD_BLOCK else '.vhd')

    def remarks(self):
        """Yield ERROR or WARNING, and why disks cannot be exported as VHD, or not for certain."""
        for disk in self.disks if '.vhd' in self.extension else ():
            what = f'{disk.device} of {human_size(disk.size)} (set vdi_export_format=auto or raw)'
            if disk.size > LARGEST_EXPORT:
                yield 'ERROR', f'{TOO_LARGE}: {what}'
            elif disk.size % VHD_BLOCK:
                yield 'WARNING', ('xapi never finishes a VHD export of a disk whose size is no '
                                  f'multiple of 2 MiB: {what}')

    def choose_source(self, vm: Vm):
        """Choose the disks, prepare the record; a disk's later snapshots are known by time."""
        self.vm = vm
        choosy = self.choice != DiskChoice() or not self.archive
        with ExitStack() if choosy else suppress(PoolError):   # of which the metadata step warned
            self.choose(vm, choosy)                    # the night is long: disks may have moved
        if not (self.disks or self.archive):
            raise BackupFailed('NO-BOOT-DISK', 'no disk is to be exported: ' + (
                abbreviate(list(map(LEFT_OUT.format, self.others))) or 'it has none'))
        for level, text in self.remarks():
            if level == 'ERROR':
                raise BackupFailed(self.export_token, text)
            log(f'***NOTE - {text}')
        taken = self.disks
        before = [*vm.record['snapshots']]
        if self.kind == 'VM':
            ref, uuid = vm.ref, vm.uuid
            label = 'RESTORE_' + vm.name
            # From there on vm-snapshot has ignore-vdi-uuids.
            self.ignoring = self.others and self.pool.version() >= (21, 4)
            if not self.ignoring:
                taken = taken + self.others
        else:
            disk, = self.disks
            ref, uuid = disk.vdi_ref, disk.vdi['uuid']
            label = 'SNAP_{}_{}'.format(vm.name, disk.name).replace(' ', '-')
        for disk in taken:
            before += disk.vdi['snapshots']
        self.intent = Intent(
            pool='', kind=self.kind, of=uuid, ref=ref, label=label_part(label), since='', until='',
            latest='', host=this_host(), process=process(),
            before=before, sources=[disk.vdi_ref for disk in taken],
            names=[disk.name for disk in taken], noted=True)

    @contextmanager
    def snapshot(self, backup: Backup, warned_of: Texts):
        """Make and prepare a snapshot, yield it; whatever happens, remove it or keep its record."""
        with self.pool.snapshotting, failing_as(self.snapshot_token):
            snapshot = self.take(backup, warned_of)
        prepared = exported = False
        try:
            with failing_as(self.prepare_token):
                self.prepare()
            prepared = True
            yield snapshot
            exported = True
        finally:
            with tolerating(self.warnings, f'the snapshot {snapshot.uuid} was left in the pool'):
                if not exported:
                    self.pool.await_exports(self.kind, snapshot.ref)
                self.remove(self.intent, prepared)
                self.snapshot_may_remain = False
                with tolerating(self.warnings, f'cannot delete the record in {backup.path}'):
                    drop_record(backup.file(INTENT))

    def take(self, backup: Backup, warned_of: Texts):
        """Record the intent, make the snapshot and identify it; warn of earlier ones."""
        check_signals()
        log(f'check for prev-{self.kind.lower()}-snapshot: {self.intent.label}')
        ahead = self.pool.ahead()
        intent = self.intent._replace(
            pool=self.pool.uuid(), since=utc(ahead - 60), until=utc(ahead + 900),
            latest=utc(ahead + 2 * XE_TIMEOUT + 900))
        self.write_intent(backup, intent)
        words = {'new_name_label': intent.label} if self.kind == 'VM' else {}
        if self.ignoring:
            words['ignore_vdi_uuids'] = ','.join(disk.vdi['uuid'] for disk in self.others)
        try:                   # by uuid=, as vm= also finds a VM that is named so
            uuid = self.xe.tell(self.kind.lower() + '-snapshot', uuid=intent.of, **words)
            log('snap-uuid: ' + uuid)
            made = None        # type: Optional[Snapshot]
            for each in self.pool.snapshots(self.kind, [intent.ref]):
                if each.ref in intent.before:
                    if each.label == intent.label and each.uuid not in warned_of:
                        self.warnings.append(
                            f'the snapshot {each.uuid}, called {each.label}, was not made by this '
                            'program as far as it knows: not touched')
                elif each.uuid == uuid:
                    made = each
            if not made:
                raise CommandFailed('xe printed no uuid of a snapshot that is new')
            self.write_intent(backup, self.with_disks(intent, made))
            return made
        except BaseException as error:                 # whatever it is, a snapshot may be there
            code = getattr(error, 'code', '')
            more = USB.format(self.vm.uuid) if code == HAS_USB else ''
            if code == FULL:
                with suppress(PoolError, ValueError):
                    more = self.pool.sr_words(self.pool.where(
                        'SR', 'uuid', [disk.sr_uuid for disk in self.disks + self.others]))
            with tolerating(self.warnings, 'a snapshot may have been left in the pool'):
                intent = self.intent
                clear = self.remove_unfinished(intent, backup)
                # Recorded: where xapi went away it may make the snapshot when it starts.
                self.snapshot_may_remain = code in WENT_AWAY + (TIMED_OUT,) and not intent.uuid
                if self.snapshot_may_remain:
                    set_intent(backup, intent)         # not that of one that was removed
                    self.warnings.append('a snapshot may still be made and left in the pool')
                elif clear:
                    drop_record(backup.file(INTENT))
            if more:
                raise CommandFailed(f'{error} ({more})')
            raise

    def write_intent(self, backup: Backup, intent: Intent):
        """Write down what is known of the snapshot by now. Raise TargetError, OSError."""
        self.intent = intent
        set_intent(backup, intent)
        self.snapshot_may_remain = True

    def prepare(self):
        """Mark the snapshot; give a disk's our label. Make a VM's no template, as xe's vm-export
        and vm-uninstall see none, which a snapshot is; the archive keeps that (xapi:
        cli_operations.ml, select_vms; export.ml, make_vm). Destroy the disks that are not for the
        archive before, which takes them from the snapshot, too (xapi: xapi_vdi.ml, destroy)."""
        uuid = self.intent.uuid
        mark = {'other-config:' + OWN: uuid}
        if self.kind == 'VDI':
            self.xe.tell('vdi-param-set', uuid=uuid, name_label=self.intent.label, **mark)
            return
        if self.archive and not self.ignoring:
            for found in self.pool.snapshots('VDI', [disk.vdi_ref for disk in self.others]):
                if found.ref in self.intent.disks:
                    self.xe.tell('vdi-destroy', uuid=found.uuid)
        self.xe.tell('template-param-set', is_a_template='false', ha_always_run='false', uuid=uuid,
                     **mark)

    def files(self, base, snapshot: Snapshot):
        """Return the files to export: the archive, or images of the snapshot's disks."""
        if self.archive:
            return [ExportFile(base + self.extension, snapshot)]
        copies = {found.of: found for found in self.disks_of(self.intent)}
        found = []
        for disk in self.disks:
            if disk.vdi_ref not in copies:
                raise CommandFailed(f'the snapshot has no copy of {disk.device}')
            found.append(ExportFile(self.name_of(base, disk), copies[disk.vdi_ref], disk))
        return found

    def export(self, file: ExportFile, path, watchdog: Watchdog):
        """Export an archive, of which xe has to say so, too (see Xe.transfer), or a disk."""
        uuid, size = file.snapshot.uuid, file.snapshot.size
        packing = compression_of(path)
        if self.archive:
            with handed(path) as at:
                lines = self.xe.tell('vm-export', watchdog=watchdog, at=at, uuid=uuid,
                                     filename=path, **packing.parameters).splitlines()
            log(*lines)
            if 'Export succeeded' not in lines:
                raise CommandFailed('xe vm-export did not say that the export succeeded')
            return
        form = form_of(path)
        words = {'format': form[1:], 'uuid': uuid}
        if not packing.ending:
            with handed(path) as at:
                self.xe.tell('vdi-export', watchdog=watchdog, at=at, filename=path, **words)
        else:
            with create(path) as stream:
                self.xe.tell('vdi-export', watchdog=watchdog, filename='', packer=(
                    packing_command(packing), stream.fileno()), **words)
        if form == '.raw' and not packing.ending and size_of(path) != size:
            raise CommandFailed(f'the image has {size_of(path)} bytes, the disk {size}')

    def stream(self, uuid, limit):
        """Export an archive to standard output; tee(1) hands it to us, too, and we verify it on its
        way. It is cut off where it is damaged. Raise CommandFailed."""
        handle, copy = os.pipe()
        with suppress(OSError):                        # it goes on, slower
            fcntl.fcntl(copy, SET_PIPE_SIZE, CHUNK)
        packing = compression_of(self.extension)
        reader = ArchiveReader(handle, plain=True)
        proofs = []            # type: List[Proof]
        wrong = []             # type: List[str]       # first of all what the rest follows from

        def verify():
            # Closed when that is noted, as else tee would go on.
            with io.FileIO(handle), closing(reader), tolerating(wrong, 'the archive is not whole'):
                if packing.programs:
                    reader.stream = Filter(packing_command(packing, undo=True), handle)
                proofs.append(reader.read())

        verifying = Thread(target=verify, daemon=True)
        verifying.start()
        watchdog = Watchdog(limit, lambda: reader.at, 'streamed', self.vm.name,
                            progress=lambda: self.pool.progress(uuid))
        try:
            with tolerating(wrong, 'the export failed'):
                self.xe.tell('vm-export', watchdog=watchdog, uuid=uuid, filename='',
                             packer=(['tee', f'/proc/{getpid()}/fd/{copy}'], 1),
                             **packing.parameters)
        finally:
            os.close(copy)
        verifying.join()
        if wrong or not proofs:
            raise CommandFailed([*wrong, 'the archive was not verified'][0])
        log(f'streamed {self.vm.name}: {human_size(proofs[0].size)}, {PROVED[proofs[0].proved]}',
            loud=True)


# ----------------------------------------------------------------------------------------------
# 16. Importers: what a restore makes in the pool, and how it is taken back
# ----------------------------------------------------------------------------------------------
# What a restore makes carries its mark from the first moment on, a number that nobody can guess.
# That of the VM, or the name that a disk has meanwhile, goes last; what has it when a restore has
# ended is removed. What fails raises CommandFailed, PoolError or, reading, Damaged or OSError.

ADVICE = {                 # what to do, by the code of what went wrong
    'IMPORT_INCOMPATIBLE_VERSION':
        ' (it was exported by a newer release: restore it in a pool that is as new)',
    'NO_BRIDGE': ' (a network of it is not here: choose another, or none, with network=)',
    'NOT_ZEROED': ' (this storage takes no VHD: pack it, gzip -k FILE, and restore FILE.gz as raw)',
    FULL: ' (choose another SR with sr=)',
    REFUSED: ' (xapi does not run: systemctl status xapi)',
    UNREACHABLE: ' (xapi has ended meanwhile: systemctl status xapi)'}


class Chosen(NamedTuple):
    """What is to be restored."""
    path: str                  # of the archive or image
    form: str                  # one of FORMS, or ''
    backup: Backup             # its directory
    disk: Optional[ArchivedDisk] = None    # of all that is in it only this one

    @property
    def whole(self):
        """Return whether it is a whole VM."""
        return self.form == '.xva' and not self.disk

    @property
    def suffix(self):
        """Return what tells from the original, in the name of a copy."""
        return '-restored-' + (self.backup.started or iso(now()))[:10]


class Target(NamedTuple):
    """Where a restore goes, and as what."""
    name: str                  # of the new VM or disk
    sr: Record
    size: int                  # bytes of all disks
    disks: Sizes = {}      # of an archive: bytes, by user device
    preserve: bool = False     # the MAC addresses
    attach: Optional[Vm] = None    # the VM that gets the disk
    device: str = ''           # user device that the disk becomes there
    networks: Record = {}      # what those of an archive become, as rewrite_for_import has
    mode: str = 'RW'           # or RO


def in_words(made: Marked):
    """Return what a restore has made."""
    return abbreviate([f'{kind} {labelled(each)}' for kind, records in zip(
        ('VM', 'disk', 'network'), made) for each in records.values()])


def space_of(sr: Record, size):
    """Return how full an SR is, beside so many bytes that are to go there."""
    return f'{labelled(sr)}: {free_space(sr)}, the disks have {human_size(size)}'


class Importer(Operator):
    """Imports archives and images, and takes back what is partly imported."""
    def __init__(self, pool: Pool, store: Store, warnings: Warned, limit=0):
        super().__init__(pool, warnings, numbered=False)
        self.store = store
        self.limit = limit     # seconds in which an import has to move

    @contextmanager
    def restoring(self, name, keep):
        """Record a restore, and yield the record; remove what it made unless all went well."""
        Signals.current.at_once = False
        with self.store.restoring(self.pool.uuid(), name, utc(self.pool.ahead() - 60)) as record:
            settled = f'the next backup or restore with backup_dir {self.store.root} settles that'
            if not record.path:
                settled = f'look there for {MARKED.format(record.mark)}, in names and other-config'
                log(f'***NOTE - cannot write in {self.store.root}: if this is killed, what it made '
                    f'is left in the pool ({settled})')
            try:
                yield record
                if keep:
                    record = record._replace(complete=True)
                    with tolerating(self.warnings, 'not written down that the restore is whole'):
                        mark_complete(record)
            finally:
                with tolerating(self.warnings, 'what was restored was left in the pool, or its '
                                f'mark ({settled})'):
                    self.end(record, True)

    def end_killed(self):
        """End restores that were killed."""
        with tolerating(self.warnings, 'cannot look for what a restore has left'):
            for path in self.store.restores().values():
                with tolerating(self.warnings, path), self.store.taken(path) as record:
                    if record and record.pool != self.pool.uuid():
                        log(f'***NOTE - {path} records a restore in another pool, '
                            f'{record.pool}: not touched')
                    elif record:
                        self.end(record, False)

    def end(self, record: Restoring, ours):
        """Unmark what a restore made, or remove it if it is not complete; delete the record."""
        made = self.pool.marked(record.mark)
        if record.complete:
            for word, records in zip(('vm', 'vdi', 'network'), made):
                for each in records.values():
                    self.unmark(word, each, record)
        else:
            if not ours:
                log('removing what is left of a restore that was killed')
                end_clients([vdi['uuid'] for vdi in made.disks.values()], record.process)
            in_several_tries(lambda _: self.remove(record, ours), patient=True)
            log('taken back: ' + (in_words(made) or 'nothing, as nothing was made'))
        if record.path:
            drop_record(record.path)

    def unmark(self, word, made: Record, record: Restoring):
        """Take a restore's mark from a VM (word 'vm'), disk ('vdi') or network."""
        if made['name_label'] == MARKED.format(record.mark):
            self.xe.tell('vdi-param-set', uuid=made['uuid'], name_label=label_part(record.name))
        else:
            self.xe.tell(word + '-param-remove', uuid=made['uuid'], param_name='other-config',
                         param_key=MARK)

    def remove(self, record: Restoring, ours):
        """Remove what carries a mark, once nothing imports it; what others use by now loses it."""
        pool = self.pool
        for _ in pool.waiting('it is still being imported'):
            made = pool.marked(record.mark)
            if not any(vm.get('current_operations') for vm in made.vms.values()):
                break
        self.check_unused(made)
        used = [vbd['VDI'] for vbd in pool.where('VBD', 'VDI', made.disks).values() if not (
            vbd['VM'] in made.vms or pool.call('VM.get_is_control_domain', vbd['VM']))]
        self.drop_leaked_vbds(made.vms, [disk for disk in made.disks if disk not in used],
                              'RW', ours)
        for vm in made.vms.values():
            self.xe.tell('vm-destroy', uuid=vm['uuid'])
        made = pool.marked(record.mark)
        used += [vm['suspend_VDI'] for vm in pool.where('VM', 'suspend_VDI', made.disks).values()]
        for word, records in ('vdi', made.disks), ('network', made.networks):
            for ref, each in records.items():
                if ref in used or each.get('VIFs'):
                    self.unmark(word, each, record)
                else:
                    self.xe.tell(word + '-destroy', uuid=each['uuid'])
        left = pool.marked(record.mark)
        if any(left):
            raise CommandFailed('still there: ' + in_words(left))

    def check_unused(self, made: Marked):
        """Raise VmBackupError if somebody has started, copied or snapshotted what was made."""
        used = [each for each in [*made.vms.values(), *made.disks.values()]
                if each['is_a_snapshot'] or each['snapshots']]
        for vm in made.vms.values():
            started = ''
            with unless_gone():
                started = str(self.pool.call('VM_metrics.get_start_time', vm['metrics']))
            if (vm['power_state'] not in ('Halted', 'Suspended') or started > '1971' or
                    len(made.vms) > 1):
                used.append(vm)
        if used:
            raise VmBackupError(f'{used[0]["uuid"]} is partly restored, but in use: not touched '
                                '(it was started or copied, or has a snapshot; remove it: it is '
                                'incomplete)')

    def put(self, chosen: Chosen, target: Target, record: Restoring):
        """Import an archive or an image; return the new uuid."""
        check_signals()
        try:
            if chosen.whole:
                return self.import_vm(chosen.path, target, record.mark)
            return self.import_disk(chosen, target, record)
        except CommandFailed as error:
            text = f'{error}{ADVICE.get(error.code, "")}'
            if error.code == FULL:
                text = f'no space left in SR, at first {space_of(target.sr, target.size)}: {text}'
            raise CommandFailed(text, error.code)

    def import_vm(self, path, target: Target, mark):
        """Import an archive; return the uuid of the VM, which has each disk with all its bytes."""
        readers = []           # type: List[Reader]
        words = {'sr_uuid': target.sr['uuid']}
        if target.preserve:
            words['preserve'] = 'true'
        watchdog = Watchdog(self.limit, lambda: sum(each.position() for each in readers),
                            'restored', path, bounded(path, size_of, path))
        watchdog.pieces = archive_for_import(path, target, mark, readers)
        uuid = self.xe.tell('vm-import', watchdog=watchdog, filename='/dev/stdin', **words)
        made = self.pool.marked(mark)
        if [vm['uuid'] for vm in made.vms.values()] != [uuid]:
            raise CommandFailed('xe vm-import did not print the uuid of the VM that it made')
        found = {}
        for vbd in self.pool.where('VBD', 'VM', made.vms).values():
            disk = made.disks.get(vbd['VDI'])
            if disk:
                found[vbd['userdevice']] = int(disk['virtual_size'])
        for device, size in target.disks.items():
            if found.get(device, 0) < size:
                raise CommandFailed(f'disk {device} has {found.get(device, 0)} bytes, not {size}')
        return uuid

    def import_disk(self, chosen: Chosen, target: Target, record: Restoring):
        """Import an image of one of FORMS; return the uuid of the new disk, named by the mark."""
        path, form, _, disk = chosen
        size = target.size
        uuid = self.xe.tell('vdi-create', sr_uuid=target.sr['uuid'], type='user',
                            name_label=MARKED.format(record.mark), virtual_size=str(size),
                            **dict([QCOW2] if size > LARGEST_STORED else ()))
        made = sum(int(vdi['virtual_size'])
                   for vdi in self.pool.where('VDI', 'uuid', [uuid]).values())
        if made < max(size, 1):
            raise CommandFailed(f'xe vdi-create made no disk of {size} bytes')
        if form == '.vhd' and not compression_of(path).ending:
            # xapi reads it itself, as it takes none without a length, and leaves out zeros
            # (recorded from xapi 25.6.0 to 26.17.0). One percent may take as long as at 1 MB/s.
            others = self.pool.progress('VDI import')
            watchdog = Watchdog(self.limit + size / 10**8, lambda: 0, 'restored', path, size,
                                lambda: self.pool.progress('VDI import', others))
            with reading(path) as stream:
                self.xe.tell('vdi-import', watchdog=watchdog, uuid=uuid, format='vhd',
                             filename=path, at=f'/proc/{getpid()}/fd/{stream.fileno()}')  # `handed`
        else:
            watchdog = Watchdog(self.limit, lambda: watchdog.done, 'restored', path, made)
            watchdog.pieces = disk_pieces(path, form, size, made, disk.id if disk else '')
            self.xe.tell('vdi-import', watchdog=watchdog, filename='/dev/stdin', uuid=uuid,
                         format='raw')
        return uuid


# ----------------------------------------------------------------------------------------------
# 17. Reports: status log, report, mail, pings, hooks
# ----------------------------------------------------------------------------------------------
# The first four cannot harm a backup; a hook can keep one from being made.

BEGINNINGS = ('job-init', 'job-start', 'backup-start')     # phases that can keep it from going on
VARIABLES = 'VM UUID METHOD TARGET FILE SIZE STATUS BACKUP_DIR REPORT'.split()
MOST_RECORDED, LONGEST_RECORDED = 100, 200     # warnings in a run's record, characters of one
AGAIN = 'TRY-AGAIN'        # the word for what failed, and is tried again
RULER = '==========================='
ROW = ('<tr class="VM {0.status}"><td>{1}</td><td>{0.method}</td><td>{0.status}</td><td>{2}</td>'
       '<td>{3}</td></tr>\n<tr class="{0.status}"><td colspan="5">{4}</td></tr>\n')
PAGE = '''<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{}</title>
<style>
:root {{ color-scheme: light dark; font-family: sans-serif }} table {{ border-collapse: collapse }}
tr {{ font-weight: bold; vertical-align: top }}
.SUCCESS, .WARNING, .SKIPPED {{ font-weight: normal }}
td {{ padding: 0.2em 0.5em 0.2em 0 }} .VM > td {{ border-top: 1px solid }}
td:first-child {{ width: 50%; overflow-wrap: anywhere }}
</style>
<p>{}</p>
<table>
<tr><td>VM</td><td>method</td><td>outcome</td><td>size</td><td>time</td></tr>
{}</table>
<pre style="white-space: pre-wrap; overflow-wrap: anywhere">
{}</pre>
</html>
'''


def make_directories(path):
    """Make a directory, and those above it, where they are missing. Raise OSError."""
    if not exists(path):
        make_directories(dirname(path))
        make_directory(path, 0o777)


class StatusLog:
    """The file that 3.25 wrote, line by line; none for /dev/null or a run without a config file."""
    def __init__(self, path, warnings: Warned):
        self.path = '' if path == os.devnull else path
        self.warnings = warnings
        self.lock = Lock()   # its lines are in the order of their times

    def write(self, actor, *words):
        """Append `time,actor,host,words...`; return the time. A problem ends it, with a warning."""
        with self.lock:
            moment = now()
            fields = (f'{moment:%Y/%m/%d %H:%M:%S}', actor, this_host()) + words
            try:
                if self.path:
                    bounded('the file system', self.append, ','.join(fields))
            except (OSError, TargetError) as error:
                self.warnings.append(
                    f'cannot write status_log {portable(self.path)}: {reason_of(error)}')
                self.path = ''
            return iso(moment)

    def append(self, line):
        """Append a line. Raise OSError, for what is no file of its own too."""
        make_directories(dirname(self.path))
        with naming(self.path), open(
                open_file(self.path, O_WRONLY | O_APPEND | O_CREAT, 0o640), 'ab') as stream:
            stream.write(encoded(printable(line)) + b'\n')

    @functools.lru_cache()
    def begin(self):
        """Note, once, that a run begins; return when."""
        return self.write('vmbackup.py', 'begin')


def last_logged(path):
    """Return this host's last run in a status log, also of 3.25, without a process; None without
    any. If the log was rotated meanwhile, it seems to have begun when it ended."""
    host = re.escape(this_host())
    ours = f'^(.{{19}}),vmbackup.py,{host},(?:begin|end,(.*),(.*))$'
    bad = f'^.{{19}},v\\w+-export,{host},end,(?!SUCC|WARN|SKIP|{AGAIN})(.*?) (.*)$'
    with suppress(OSError, ValueError, IndexError):
        log = decoded(load(path, 2**27))                       # bytes
        lines = findall(ours, log, MULTILINE)
        ended, token, counts = lines[-1]
        begun, before, _ = lines[-2:][0]
        if before or not token:
            begun = ended
        begun, ended = [iso(datetime.strptime(at, '%Y/%m/%d %H:%M:%S')) for at in (begun, ended)]
        failed = findall(bad, log.rpartition(',begin\n')[2], MULTILINE)
        return LastRun(begun, '', '', token and ended, f'{token} {counts}',
                       abbreviate([f'{name} ({word})' for word, name in failed]))
    return None


def hook_problem(path):
    """Return the problem with the program that `hook` names, or ''."""
    if path and not (isfile(path) and os.access(path, os.X_OK)):
        return f'ERROR: config hook is not a program -> {path}'
    wrong = path and changeable(path)
    return wrong and f'ERROR: config hook is not safe -> {path}: {wrong}'


def compose(settings: Settings, subject, told: Texts, outcomes: Sequence[Outcome]):
    """Return a mail of a run: a table of VMs in HTML, failed ones first; a long log is attached."""
    from email import contentmanager, header, message, policy, utils
    from html import escape

    def put(how, text, **more):
        """Put text in; ASCII as it is, if no line is too long for that (RFC 5322, 2.1.1)."""
        text = encoded(text).decode('utf-8', 'replace')
        plain = match(r'([ -~\t]{,998}\n)*\Z', text)
        how(text, cte='7bit' if plain else 'quoted-printable',
            content_manager=contentmanager.raw_data_manager, **more)

    # Folding one of 22 letters of Chinese as a newer policy does it never ends in Python 3.6.8.
    mail = message.EmailMessage(policy.compat32)
    subject = encoded(printable(f'VmBackup {this_host()} - {subject}')).decode('utf-8', 'replace')
    mail['Subject'] = header.Header(subject, header_name='Subject')
    mail['From'] = settings.mail_from or (
        'root@' + (sub('[^A-Za-z0-9.-]', '', this_host()) or 'localhost'))
    mail['To'] = ', '.join(settings.mail_to)
    mail['Date'] = utils.format_datetime(now().astimezone())
    mail['Message-ID'] = utils.make_msgid(domain='vmbackup.invalid')
    mail['Auto-Submitted'] = 'auto-generated'          # RFC 3834: no holiday replies
    table = ''
    for outcome in sorted(outcomes, key=lambda each: (not each.error, not each.warnings)):
        name, *words = [escape(printable(text or '')) for text in (
            outcome.name, outcome.error, *outcome.warnings)]
        table += ROW.format(outcome, name, human_size(outcome.size),
                            timedelta(seconds=outcome.seconds), '<br>'.join(filter(None, words)))
    whole = '\n'.join(Console.current.lines) + '\n'
    shown = whole if len(whole) <= 20000 else 'The log is attached.\n'
    put(mail.set_content, '\n'.join([*told, '', shown]))
    put(mail.add_alternative, PAGE.format(escape(subject), '<br>\n'.join(map(escape, told)), table,
                                          escape(shown)), subtype='html')
    if shown != whole:
        put(mail.add_attachment, whole, filename='vmbackup.log.txt')
    return mail


def security_of(settings: Settings):
    """Return how the mail server is talked to: none, starttls or tls."""
    if settings.mail_smtp_security != 'auto':
        return settings.mail_smtp_security
    usual = 'starttls' if settings.mail_smtp_user else 'none'      # no password goes in clear
    return {587: 'starttls', 465: 'tls'}.get(settings.mail_smtp_port, usual)


def greeting(sender, host):
    """Return a name for EHLO that has a dot and is not localhost, or an address. No name server is
    asked, as smtplib would (RFC 5321, 2.3.5, 4.1.4; Postfix: reject_non_fqdn_helo_hostname)."""
    domain = sender.partition('@')[2]
    for name in host, f'{host.partition(".")[0]}.{domain}', domain:
        name = name.replace('_', '-')
        if match(r'(?!(.*\.)?local(host|domain))([A-Za-z0-9-]+\.)+[A-Za-z][A-Za-z0-9-]*$', name):
            return name
    return '[127.0.0.1]'


def deliver(settings: Settings, message, recipients: Texts):
    """Hand a mail over once; return the answers to those refused. Raise OSError, ValueError."""
    import smtplib
    import ssl
    path, security = settings.mail_smtp_password_file, security_of(settings)
    password = read_password_file(path, log) if path else ''
    kind, options = smtplib.SMTP, {}       # type: Any, Record
    if security == 'tls':
        kind, options = smtplib.SMTP_SSL, {'context': ssl.create_default_context()}

    class Client(kind):        # one of smtplib, whose answers could have any number of lines
        def getreply(self):
            if not self.file:
                self.file = self.sock.makefile('rb')
                lines = itertools.repeat(self.file.readline, 1000)
                self.file.readline = lambda limit: next(lines, lambda _: b'')(limit)
            return super().getreply()
    server = Client(settings.mail_smtp_server, settings.mail_smtp_port, settings.mail_helo or
                    greeting(settings.mail_from, this_host()), timeout=MAIL_TIMEOUT, **options)
    with closing(server):
        if security == 'starttls':
            server.starttls(context=ssl.create_default_context())
        if settings.mail_smtp_user:
            try:
                server.login(settings.mail_smtp_user, password)
            except UnicodeEncodeError:                 # its text holds a part of the password
                raise ConfigError('account and password of a mail server must be ASCII') from None
        refused = server.send_message(message, to_addrs=recipients)
        with suppress(OSError):                        # whatever it says now: it has the mail
            server.quit()
    return refused


def send_mail(settings: Settings, subject, told: Texts, outcomes: Sequence[Outcome]):
    """Mail what a run came to; return False if somebody does not get it. It is tried three times,
    but not for whom the server takes it, or refuses it for good (RFC 5321, 4.2.1: 5yz)."""
    waiting, failed = settings.mail_to, False  # type: Texts, bool
    if settings.mail_smtp_user and security_of(settings) == 'none':
        log('***WARNING - mail_smtp_security=none sends the password of mail_smtp_user in clear')
    for attempt in range(1, MAIL_ATTEMPTS + 1):
        sleep(MAIL_PAUSE if attempt > 1 else 0)
        try:
            refused = bounded('the mail server', deliver, settings,
                              compose(settings, subject, told, outcomes), waiting, limit=MAIL_LIMIT)
        except Exception as error:                     # whatever it is, the backup stands
            answer = getattr(error, 'smtp_code', 0), getattr(error, 'smtp_error', reason_of(error))
            refused = getattr(error, 'recipients', dict.fromkeys(waiting, answer))
        taken = [address for address in waiting if address not in refused]
        if taken:
            log('mail sent to ' + ', '.join(taken))
        for address, (code, text) in refused.items():
            words = decoded(text) if isinstance(text, bytes) else text
            words = ' '.join(f'{max(code, 0) or ""} {words}'.split())[:LONGEST_LINE]
            log(f'***WARNING - mail to {address} failed, attempt {attempt} of {MAIL_ATTEMPTS}: '
                f'{settings.mail_smtp_server}: {words}')
        waiting = [address for address, (code, _) in refused.items() if code // 100 != 5]
        failed |= len(waiting) < len(refused)
        if not waiting:
            break
    return not (failed or waiting)


def ping(config: Config, status, told: Texts):
    """Tell ping_url one of PINGS, twice if need be; return whether that failed."""
    from urllib import request
    url, text = config.settings.ping_url.replace('{status}', '{start|success|fail}'), None
    if not config.asks_for('ping_url') or not url or status == 'start' and '{|' in url:
        return False
    url = url if '{' in url else sub(r'(/?)(\?|\Z)', r'{/start|\1|/fail}\2', url, count=1)
    if config.settings.ping_body == 'summary':         # ntfy takes 4096 bytes
        text = encoded('\n'.join([f'VmBackup {this_host()}: {status}', *told])[:3000])
    for pause in PING_PAUSES:
        sleep(pause)
        try:
            asked = request.Request(sub(PING_WORDS, PINGS[status], url), text, {
                'User-Agent': f'VmBackup/{VERSION}', 'Content-Type': 'text/plain; charset=utf-8'})
            bounded('its server', request.urlopen, asked, limit=PING_LIMIT).close()
            log(f'ping_url was told: {status}')
            return False
        except TargetError as error:                   # no answer
            said = str(error)
        except Exception as error:                     # its words may hold a part of the address
            said = (f'HTTP {error.code}' if hasattr(error, 'code') else
                    type(getattr(error, 'reason', error)).__name__)
        log(f'***NOTE - ping_url was not told {status}: {said}')
    return True


class Turn:
    """One VM's turn in a run, so far."""
    skipped = False            # as a hook wants it
    ended = False
    path = ''
    size = 0                   # bytes, once all is done
    need = ''                  # how many it needs, in words

    def __init__(self, job: Job):
        self.job = job
        self.warnings = []     # type: List[str]
        self.files = {}        # type: Dict[str, int]

    @property
    def status(self):
        """Return the word for a turn that did not fail."""
        if self.skipped:
            return 'SKIPPED'
        return 'WARNING' if self.warnings else 'SUCCESS'


class Errors(list):
    """Errors after which a command goes on; what is appended is logged at once."""
    def append(self, text):
        """Log one and keep it."""
        self.tell(text)
        super().append(text)

    def tell(self, text):
        """Log an error."""
        log(f'ERROR {text}')


class Warnings(Errors):
    """Warnings that belong to no VM."""
    known = {}                 # type: Dict[str, str]      # those of the last run, since when

    def __init__(self):
        self.told = {}         # type: Dict[str, str]      # the same of this run

    def tell(self, text):
        """Log a warning."""
        log(f'***WARNING - {text}{self.since(text)}')

    def since(self, text):
        """Return since when there is a warning, a VM's behind its name, if the last run had it."""
        text = text[:LONGEST_RECORDED]
        self.told[text] = self.known.get(text, f'{now():%Y-%m-%d}')
        return f' (since {self.told[text]!s:.10})' if text in self.known else ''


class Run:
    """Does something for VMs: collects how that ends for each, and reports how it all ended."""
    done = 'VmBackup {0.method} {0.name} - ***{1}*** t:{2}'    # logged of each VM
    further_errors = 0         # those that belong to no VM
    skipped = False            # as a hook wants it
    mailed = True              # unless the mail could not be sent
    signum = 0                 # of the signal that ended it
    remark = ''                # on the lines of successes in the status log

    def __init__(self, config: Config):
        self.config = config
        self.settings = config.settings
        logging = config.asks_for('status_log') and 'status_log' not in config.errors
        self.warnings = Warnings()
        self.status_log = StatusLog(self.settings.status_log if logging else '', self.warnings)
        self.outcomes = []     # type: List[Outcome]
        self.errors = Errors()
        self.turns = []        # type: List[Any]           # all that are to be, once it is known
        self.numbers = itertools.count(1)      # of those
        self.left_alone = []   # type: List[str]
        self.started = iso(now())
        self.elapsed = stopwatch()

    def attempt(self, turn: Turn, work):
        """Do something for one VM; its failure becomes that VM's outcome. Raise Interrupted."""
        elapsed = stopwatch()
        method, name = turn.job.method, turn.job.vm.name
        number = f'VM {next(self.numbers)} of {len(self.turns)}'
        failed = self.counts().errors - self.further_errors
        Console.current.thread.turn = number + ': '
        log(f'{number}, {failed} failed', f'*** {method} begin {turn.job.shown}')
        started = self.status_log.write(method, 'begin', name)
        status, reason = 'INTERRUPTED', 'ended by a signal'    # type: str, Optional[str]
        try:
            work()
            status, reason = turn.status, None
        except Exception as error:                     # it must not stop the others
            status, reason = token_of(error), explain(error, turn.need)
            log(f'ERROR {method} {status} {name}: {reason}')
        finally:
            for text in turn.warnings:
                self.warnings.tell(f'{name}: {text}')
            turn.ended = True
            Console.current.thread.turn = ''
            self.add(Outcome(name, turn.job.vm.uuid, method, status, started, int(elapsed()),
                             portable(turn.path) or None, turn.files, turn.size,
                             tuple(turn.warnings), reason))

    def add(self, outcome: Outcome):
        """Count and note how a VM's backup ended; size in GiB and time in minutes, both cut."""
        for each in list(self.outcomes):
            if (each.uuid, each.status) == (outcome.uuid, AGAIN):
                self.outcomes.remove(each)
        self.outcomes.append(outcome)
        status, minutes = outcome.status, outcome.seconds // 60
        words = [f'{status} {outcome.name}']
        if status in ('SUCCESS', 'WARNING'):
            words.append(f'elapse:{minutes} size:{outcome.size >> 30}G{self.remark}')
            log(self.done.format(outcome, status.replace('SUCCESS', 'Success'), minutes))
        self.status_log.write(outcome.method, 'end', *words)

    @contextmanager
    def surviving(self, what=''):
        """Do a step whose error, even a bug of ours, does not end the run."""
        try:
            yield
        except Exception as error:
            self.errors.append(what + explain(error))
            self.further_errors += 1

    @contextmanager
    def until_ended(self):
        """Do all of the run, until an error or a signal ends it."""
        try:
            with self.surviving():
                yield
        except Interrupted as interruption:
            self.signum = interruption.signum
            Signals.current.allow(SIGNAL_GRACE)        # for what tells of it
            self.errors.append(str(interruption))

    def counts(self):
        """Return the counts, as far as they are known."""
        return tally([outcome.status for outcome in self.outcomes], self.further_errors)

    def verdict(self):
        """Return the result, as far as it is known."""
        counts = self.counts()
        verdict = verdict_of(counts.errors or self.signum,
                             counts.warnings or self.warnings or not self.mailed)
        if self.signum:
            return verdict._replace(status=128 + self.signum)
        return SKIPPED if self.skipped and verdict == SUCCESS else verdict

    def summary(self):
        """Return the lines that tell what it came to, first what went wrong."""
        told = [sub(r'^\**(ERROR\W*)?', 'ERROR ', text) for text in self.errors]
        told += ['FAILED {0.name} ({0.status}): {0.error}'.format(each)
                 for each in self.outcomes if each.error]
        of_vms = [f'{each.name}: {text}' for each in self.outcomes for text in each.warnings]
        told += [f'WARNING {text}{self.warnings.since(text)}' for text in of_vms + self.warnings]
        told.append('VMs: {} good, {} with warnings, {} failed, {} skipped; {} in {}'.format(
            *tally([each.status for each in self.outcomes]),
            human_size(sum(each.size for each in self.outcomes)),
            timedelta(seconds=int(self.elapsed()))))
        missing = [turn.job.shown for turn in self.turns if not turn.ended]
        if missing:
            told.append('not begun or not ended: ' + abbreviate(missing))
        return told + self.left_alone

    def report_end(self, words):
        """Log and mail how it ended."""
        verdict, counts = self.verdict(), self.counts()
        told = list(map(printable, self.summary()))
        if self.outcomes:                              # else what is wrong has just been said
            log(RULER)
            log(*told, loud=True)
        log(f'VmBackup {words}ended - {verdict.phrase} - {counts}', loud=True)
        wanted = {'always': True, 'problems': verdict.status > 0, 'never': False}
        if self.settings.mail_to and verdict != SKIPPED and wanted[self.settings.mail_mode]:
            subject = f'{words}{verdict.token} - {counts}'
            if verdict.status:
                subject += ' - ' + told[0].partition(' ')[2][:100]
            Signals.current.at_once = True             # a mail may be cut
            with self.until_ended():
                self.mailed = send_mail(self.settings, subject, told, self.outcomes)


def put_report(path, document: Record):
    """Write it whole or not at all; raise OSError, as for a device, whose place it would take."""
    make_directories(dirname(path))
    if lexists(path) and not S_ISREG(os.lstat(path).st_mode):
        raise OSError(EINVAL, 'not a file')
    write_json(path, document)


# ----------------------------------------------------------------------------------------------
# 18. One VM: the backup of one VM, from its begin line to its end line
# ----------------------------------------------------------------------------------------------
# VmBackup.back_up lists all that is done; what differs between the two methods is in the exporters.
# Until its last step but one the directory has no marker, which makes it the record of a failure.

NO_DISK_LEFT = 'all of its disks are excluded'


def disks_told(exporter: Exporter):
    """Return what a manifest has of a VM's disks, those that are exported and all others."""
    told = {'disks': [], 'left_out': []}   # type: Dict[str, List[Record]]
    for disk in exporter.disks + exporter.others:
        told['left_out' if disk.why else 'disks'].append({
            **({'why': disk.why} if disk.why else {}), 'device': disk.device,
            'uuid': disk.vdi['uuid'], 'name': disk.name, 'virtual_size': disk.size})
    return told


class Shared(Run):
    """A run, as the backups of its VMs share it."""
    pool = None                # type: Any     # once it is logged in
    identity = {'pool': {'name': '', 'uuid': ''}, 'xapi': ''}  # type: Record
    clean_up_at_end = False    # something in the pool that the end of the run may mend

    def __init__(self, config: Config):
        super().__init__(config)
        settings = config.settings
        self.report_file = settings.report_file if config.asks_for('report_file') else ''
        self.store = Store(config)
        self.hook = '' if hook_problem(settings.hook) else settings.hook
        self.verifier = Verifier(settings.stall_timeout * 60)
        self.beginning = Lock()      # one after the other looks at the free space
        self.not_removed = {}  # type: Dict[str, str]      # uuids of snapshots by their directories
        self.doubtful = []     # type: List[str]       # their snapshots: of others, or to come
        self.others = Counter()    # backups in others' directories, by where, whose, what to do
        self.again = []        # type: List[Job]       # to be tried once more
        self.ended = set()     # type: Set[str]        # those of which the run is known to be dead
        self.recorded = ExitStack()    # in backup_dir, once it is so: what its end does there

    def exporter(self, method, warnings: Warned):
        """Return the exporter of a method, with the settings that it needs."""
        settings, wanted = self.settings, 'all'
        extension = '.xva' + COMPRESSIONS[settings.compress].ending
        if method == 'vdi-export':
            wanted = settings.vdi_disks
            extension = f'.{settings.vdi_export_format}{COMPRESSIONS[settings.vdi_compress].ending}'
        return Exporter(self.pool, extension, DiskChoice(tuple(
            rule.text for rule in self.config.rules if rule.method == 'exclude-disk' and rule.text),
            settings.honour_nobak, wanted), warnings)

    def call_hook(self, phase, warnings=None, **known):
        """Run the hook, if any; return True if what begins is to be skipped. A failure then raises
        CommandFailed, and is a warning at any other phase."""
        if not self.hook:
            return False
        signals, begins = Signals.current, phase in BEGINNINGS
        known.update(backup_dir=self.settings.backup_dir, report=self.report_file)
        environ = {f'VMBACKUP_{name}': encoded(known.get(name.lower(), '')) for name in VARIABLES}
        begin = getattr(Console.current.thread, 'begin', '')      # its output is another thread's
        timeout = self.settings.hook_timeout * 60      # seconds
        at_once, signals.at_once = signals.at_once, False
        signals.allow(SIGNAL_GRACE + CUT_GRACE)
        Console.current.show(f'hook {phase}')
        try:
            run_hook([self.hook, phase], environ, min(timeout, SIGNAL_GRACE) if signals.received
                     else timeout, begins, lambda line: log(f'{begin}hook {phase}: {line}'))
        except CommandFailed as error:
            if begins and error.code == '75':          # sysexits.h: EX_TEMPFAIL
                log(f'hook {phase}: {error}: skipped')
                return True
            reason = f'hook {phase} failed: {error}'
            if begins:
                raise CommandFailed(reason)
            warnings.append(reason)
        finally:
            signals.at_once = at_once
        return False

    def remove_leftovers(self, history: History, warnings: Warned):
        """Remove what a dead run left, in the pool and on disk; return snapshots that stay."""
        records = list(history.with_intent())
        for backup in records:
            if backup.path not in {*self.not_removed, *self.doubtful}:
                with tolerating(warnings, f'a snapshot of {backup.path} may be left in the pool'):
                    self.remove_snapshot(backup, warnings)
        for path in history.half_deleted():
            with tolerating(warnings, f'cannot delete {path}'):
                finish_deleting(path)
        return [self.not_removed[each.path] for each in records if each.path in self.not_removed]

    def clear_way(self, history: History, warnings: Warned):
        """Do as `remove_leftovers`; raise BackupFailed where too many stay for one more."""
        left = self.remove_leftovers(history.as_it_is(), warnings)
        if len(left) > 1 or '' in left:                # no more are made then
            raise BackupFailed('SNAPSHOT-FAIL', 'earlier ones cannot be removed from the pool: '
                               + ', '.join(each or 'one of unknown uuid' for each in left))
        return left

    def remove_snapshot(self, backup: Backup, warnings: Warned):
        """Remove the snapshot that a directory has a record of. Raise VmBackupError, OSError."""
        intent, clear = backup.intent(), True
        if intent and intent.pool != self.pool.uuid():
            log(f'***NOTE - {backup.path} records a snapshot in another pool, '
                f'{intent.pool}: not touched')
            clear = False
        elif intent:
            self.not_removed[backup.path] = intent.uuid
            remover = Remover(self.pool, warnings)
            if self.store.no_locking and is_in_work(intent, lambda _: (
                    backup.unchanged_for() < LONGEST_PAUSE or remover.is_in_use(intent))):
                raise TargetError(f'its run on {intent.host} may go on, and backup_dir cannot lock')
            with self.pool.snapshotting:
                clear = remover.remove_unfinished(intent, backup)
            del self.not_removed[backup.path]
        if clear:
            drop_record(backup.file(INTENT))
            self.ended.add(backup.path)
        else:
            self.doubtful.append(backup.path)


class VmBackup(Turn):
    """The backup of one VM."""
    history = backup = began = None    # type: Any     # began: when
    begun = False              # the export: a second try only if xapi refused it, or is wanted
    before = {}                # type: Sizes       # bytes that the files of the last one take
    reserved = 0               # bytes by which the free space shrinks while files are written

    def __init__(self, shared: Shared, job: Job):
        super().__init__(job)
        self.shared = shared
        self.settings = shared.settings
        self.pool = shared.pool
        self.exporter = shared.exporter(job.method, self.warnings)
        self.held = ExitStack()                # its directories, open
        self.manifest = {}     # type: Record
        self.exported = []     # type: List[ExportFile]

    def run(self):
        """Back up; raise VmBackupError, OSError, Interrupted. What failed is tried once more if
        that is wanted, or xapi went away before anything was exported, as that would else cost two
        VMs their backups, unless no call waits for it now (Pool.patience)."""
        shared = self.shared
        try:
            self.back_up_between_hooks()
        except Exception as error:
            code = getattr(error, 'code', '')
            went_away = code in WENT_AWAY and self.pool.patience and (
                code == REFUSED or not self.begun)
            if shared.remark or not (went_away or self.settings.retries):
                raise
            if went_away and self.exporter.snapshot_may_remain:    # made as xapi starts
                shared.doubtful.append(self.path)
            shared.again.append(self.job)
            raise BackupFailed(AGAIN, f'{token_of(error)}: {explain(error, self.need)}')

    def back_up_between_hooks(self):
        """Back up, unless a hook skips it. Raise VmBackupError, OSError, Interrupted."""
        shared, vm, patience = self.shared, self.job.vm, self.settings.lock_wait * 60
        known = {'vm': vm.name, 'uuid': vm.uuid, 'method': self.job.method}
        self.history = shared.store.directory_of(vm, self.pool.names)
        with shared.store.locked(self.history.directory, patience):
            try:
                with failing_as('HOOK-FAIL'):
                    self.skipped = shared.call_hook('backup-start', **known)
                    if self.skipped and shared.remark:
                        raise VmBackupError('the hook skipped the second try: no backup')
                if self.skipped:
                    return
                self.back_up()
            except BaseException as error:
                shared.call_hook('backup-abort', self.warnings, status=token_of(error),
                                 target=self.path, **known)
                raise
            else:
                check_held(self.path)                  # a hook takes a path as it is
                files = sorted(self.backup.file(file.name) for file in self.exported)
                shared.call_hook('backup-end', self.warnings, target=self.path, size=str(self.size),
                                 file='\n'.join(files), status=self.status, **known)
            finally:
                self.held.close()
                self.reserved = 0
                if self.exporter.snapshot_may_remain:
                    shared.clean_up_at_end = True

    def back_up(self):
        """Make the backup, all of it. Raise VmBackupError, OSError, Interrupted."""
        job, exporter = self.job, self.exporter
        self.began = now()
        log('{0.method} - vm_name: {0.vm.name} max_backups: {0.keep}'.format(job))
        vm = self.pool.reread(job.vm)
        warned_of = self.shared.clear_way(self.history, self.warnings)
        self.drop_last_failure()
        self.new_directory(exporter.names(basename(self.history.directory), vm))
        log(f'new backup_dir: {self.path}', 'Exporting VM metadata XML info')
        with tolerating(self.warnings, 'vm-metadata.xml is missing'):
            write_metadata(self.backup, vm, exporter.xe)
        log('*** vm-export metadata end')
        with tolerating(self.warnings, 'metadata is missing'):
            write_configuration(self.backup, vm, self.pool)
        log(f'*** {job.method} begin xe command sequence')
        running = vm.record['power_state'] == 'Running'
        log(*['power-state ( RO): running', 'vm is running'] if running else ['vm is NOT running'])
        exporter.choose_source(vm)
        self.need = '; this VM needs up to ' + human_size(sum(disk.size for disk in exporter.disks))
        if exporter.left_out and not exporter.disks:
            self.warnings.append(NO_DISK_LEFT)
        log(*['left out: ' + LEFT_OUT.format(disk) for disk in exporter.left_out])
        try:
            with exporter.snapshot(self.backup, warned_of) as snapshot:
                check_signals()
                self.manifest = self.describe(snapshot)
                if self.settings.pre_clean:
                    self.prune(self.judged())
                    self.reserved = sum(self.before.values())
                size = self.export(snapshot)
                log(f'{job.method} success')
        except BaseException:
            with suppress(OSError, TargetError):       # others may need the room of its files
                for file in self.exported:
                    bounded('the share', remove, self.backup.file(file.name))
            raise
        log(f'*** {job.method} end')
        self.verify()
        self.finish(size)
        with tolerating(self.warnings, 'cannot look for older backups'):
            self.history.known.clear()                 # somebody may have verified or protected one
            self.tell_what_is_lacking()
            self.prune(self.judged(self.path))

    def drop_last_failure(self):
        """Delete the records of failures, but for one of a snapshot that may be in a pool."""
        shared = self.shared
        log(f'Check for last **unsuccessful** backup: {self.history.directory}')
        for failure in self.history.backups():
            path = failure.path
            if failure.trouble:
                self.warnings.append(f'cannot read {path}, which neither counts nor is deleted: '
                                     f'{failure.trouble.strerror}')
            if failure.outcome == 'failed' and path not in shared.doubtful:
                with tolerating(self.warnings, f'cannot delete {path}'):
                    # While another run verifies what it has made, nothing tells of that.
                    if shared.store.no_locking and path not in {self.path, *shared.ended} and (
                            failure.unchanged_for() < LONGEST_SILENCE):
                        log(f'***NOTE - not deleted: {path} may be a backup that another run is '
                            'making, as backup_dir cannot lock')
                    else:
                        log(f'Deleting last **unsuccessful** backup {path} ')
                        shared.store.delete(failure)

    def new_directory(self, names: Texts):
        """Make the directory, if its files will have free space. Raise VmBackupError, OSError."""
        judged = self.judged() if self.settings.pre_clean else ()
        gain = sum(old.occupied() for old, why in judged if not why)   # bytes
        self.before = self.history.last_sizes(names, self.owner())
        last = sum(self.before.values())
        shared = self.shared
        with shared.beginning:
            shared.store.check_room(self.settings.min_free, last, gain - sum(
                other.unwritten() for other in shared.turns))
            shared.store.check_mounted()
            self.backup = shared.store.begin(self.history, self.began)
            self.path = self.backup.path
            for path in (self.history.directory, self.path):
                self.held.enter_context(hold(path))
            self.reserved = last - gain

    def unwritten(self):
        """Return how many bytes of the free space it will still take."""
        with suppress(OSError):                        # its own thread will meet that, too
            return self.reserved and max(0, self.reserved - self.backup.occupied())
        return 0

    def describe(self, snapshot: Snapshot):
        """Return the manifest, as far as it is known before the export. Raise TargetError if we
        could not read it again."""
        vm = self.job.vm
        told = dict(
            schema=1, version=VERSION, method=self.job.method, host=this_host(),
            vm=dict(name=vm.name, uuid=vm.uuid, tags=vm.record.get('tags', [])),
            started=iso(self.began), earlier=self.owner().earlier, snapshot=snapshot.uuid,
            **disks_told(self.exporter), **self.shared.identity)
        try:
            parse_json(encoded(as_json(told)))
        except ValueError as error:
            raise TargetError(f'its record would be too long: {error} (shorten its tags and names)')
        return told

    def export(self, snapshot: Snapshot):
        """Export the files of a snapshot; return their bytes. Raise BackupFailed, OSError."""
        size = 0               # bytes
        self.begun = True
        with failing_as(self.exporter.export_token):
            self.exported = self.exporter.files(basename(self.history.directory), snapshot)
            for file in self.exported:
                path = self.backup.file(file.name)
                if file.disk:                          # as it is by now
                    self.manifest['disks'][self.exporter.disks.index(file.disk)].update(
                        file=portable(file.name), virtual_size=file.snapshot.size)
                watchdog = Watchdog(
                    self.settings.stall_timeout * 60, lambda: size_of(path), 'exported', path,
                    file.snapshot.size if file.name.endswith('.raw') else
                    self.before.get(file.name, 0), lambda: self.pool.progress(file.snapshot.uuid))
                with blaming_room(path, self.need):
                    self.exporter.export(file, path, watchdog)
                    size += written(path)
                self.manifest['rate'] = max(int(file.snapshot.size / watchdog.seconds()),
                                            self.manifest.get('rate', 0))
        self.reserved = 0
        return size

    def verify(self):
        """Verify the backup, unless verify=no; warn of its metadata. Raise BackupFailed."""
        if self.settings.verify == 'no':
            return
        elapsed = stopwatch()
        try:
            with blaming_room(self.backup.file(MANIFEST), self.need):      # which is not there yet
                verified = self.shared.verifier.check(
                    self.backup._replace(manifest=manifest_of(self.manifest)))
        except (VmBackupError, OSError) as error:
            raise BackupFailed('VERIFY-FAIL', explain(error, self.need))
        log('verified {}: {} ({:.0f} s)'.format(', '.join(
            file.name for file in self.exported), PROVED[verified.proved], elapsed()))
        self.warnings.extend(verified.problems)
        self.manifest['verified'] = verified.in_manifest({})

    def finish(self, size):
        """Write RESTORE.txt, the manifest and, last, the marker. Raise OSError."""
        with tolerating(self.warnings, f'{GUIDE} is missing'):
            write_guide(self.backup, self.exported, self.manifest)
        self.manifest.update(finished=iso(now()), warnings=self.warnings)
        self.files = self.backup.complete(self.manifest, size > self.settings.large_backup << 30)
        self.size = size
        path = self.backup.file(self.exported[0].name) if len(self.exported) == 1 else self.path
        log(f'*** success: {path} : {size >> 30}G')

    def owner(self):
        """Return whose are rotated: its own, and of this pool those of VMs that are gone."""
        pool = self.pool.uuid()
        return Manifest(uuid=self.job.vm.uuid, pool=pool, earlier=sorted(
            {backup.manifest.uuid for backup in self.history.completed()
             if backup.manifest.pool == pool} - set(self.pool.names)))

    def judged(self, path=''):
        """Return why each older backup is kept beside the new one (see History.judged)."""
        told = manifest_of(self.manifest)
        return self.history.judged(policy_of(self.settings, self.job), self.owner(), told.of_the_vm,
                                   Aged(self.began, disks=told.holds if path else ()), path)

    def prune(self, judged: List[Tuple[Backup, Texts]]):
        """Delete older backups that nothing keeps; log what only a disk keeps."""
        for backup, why in judged:
            if not why:
                with tolerating(self.warnings, f'cannot delete {backup.path}'):
                    log(f'Deleting oldest backup {backup.path} ')
                    self.shared.store.delete(backup)
            elif why[0].startswith(ONLY):
                log(f'kept beyond the count: {backup.path}, as no newer good backup has '
                    f'{", ".join(why)} (to let it go: prune {shell_word(backup.path)} preview)')

    def tell_what_is_lacking(self):
        """Log which disks are in no good backup; count the backups of others."""
        owner, told = self.owner(), manifest_of(self.manifest)
        lacking = disks_in_none([told, *(
            backup.manifest for backup in self.history.completed(True)
            if backup.outcome == 'good' and owner.rotates(backup))], told.of_the_vm)
        if lacking:
            log('***NOTE - in no good backup: disk ' + lacking)
        for backup in self.history.completed():
            if not owner.rotates(backup):
                whose, option = owner.other(backup), 'pool=' + backup.manifest.pool
                if backup.manifest.pool in ('', owner.pool):
                    option = 'vm=uuid:' + backup.manifest.uuid
                    now_called = self.pool.names.get(backup.manifest.uuid)
                    whose += f', now called {now_called}' if now_called else ''
                self.shared.others['in {}, {} (to let them go: prune {} {} preview)'.format(
                    self.history.directory, whose,
                    shell_word(self.shared.config.path or 'CONFIG'), option)] += 1


# ----------------------------------------------------------------------------------------------
# 19. Runs: a night's backup, its preview, a stream
# ----------------------------------------------------------------------------------------------

WARNINGS_FOUND = ' - WARNINGS found (see above)'       # after a check, as 3.25
ALWAYS_SHOWN = 'backup_dir status_log compress max_backups vdi_export_format pool_db_backup'.split()


def program_problems(settings: Settings):
    """Return the problems with the programs that the settings need."""
    problems = [hook_problem(settings.hook)]
    # xapi packs vm-exports: only to verify them takes a program.
    unpacked = settings.compress if settings.verify == 'yes' else 'none'
    for name, value in ('compress', unpacked), ('vdi_compress', settings.vdi_compress):
        with tolerating(problems, f'ERROR: config {name} -> {value}'):
            if value != 'none':
                packing_command(COMPRESSIONS[value], undo=name == 'compress')
    return list(filter(None, problems))


class BackupRun(Shared):
    """A night's backup. Whatever happens, `end` reports it."""
    closing = ''               # the phase of the hook that is to follow

    def make_plan(self):
        """Return what is to be done. Raise PoolError."""
        vms = self.pool.vms(tuple(self.store.restores()))
        former = {}            # type: Dict[str, str]
        for name in {rule.word for rule in self.config.rules} - {vm.name for vm in vms}:
            with suppress(OSError, TargetError):
                uuid = self.store.history(path_part(name)).last_owner().uuid
                if uuid:
                    now_called = self.pool.names.get(uuid)
                    state = f'now called {now_called}' if now_called else 'not in this pool'
                    former[name] = f'the VM of the newest backup in {name} is {state}'
        return select(self.config.rules, vms, self.settings.keep_last, self.settings.honour_nobak,
                      former)

    def check(self, plan: Plan):
        """Print settings and lists, as 3.25, and problems; return those that rule out a run."""
        config = self.config
        log(*config.notes, *[each + self.warnings.since(each.partition(' - ')[2])
                             for each in plan.messages], 'VmBackup.py running with these settings:')
        shown = {name: getattr(self.settings, name) for name in ALWAYS_SHOWN}
        shown['compress'] = {'none': 'False', 'gzip': 'True', 'zstd': 'zstd'}[shown['compress']]
        for name, (text, place) in config.given.items():
            if place != 'default':
                shown.setdefault(name, text)
        log(*[f'  {name:17s} = {text}' for name, text in shown.items()])
        lists = {'exclude': plan.excluded, 'vdi-export': [], 'vm-export': []}
        for job in plan.jobs:
            lists[job.method].append(job.shown)
        for name, names in lists.items():
            log(f'  {name} (cnt)= {len(names)}', f'  {name}: ' + ', '.join(sorted(names)))
        problems = list(config.errors.values())
        wrong = config.path and changeable(config.path)
        if wrong:
            log(f'***WARNING - the config {config.path}: {wrong}')
        with tolerating(problems, 'ERROR'):
            self.store.check()
            if self.settings.require_mount == 'auto' and self.store.mounted == '/':
                log(f'***NOTE - backup_dir {self.store.root} is on the root file system of dom0')
        problems += program_problems(self.settings)
        errors = problems + plan.errors
        log(*errors)
        if problems or plan.invalid:
            log('ERROR in configuration settings...')
        return errors

    def look_at_disks(self, plan: Plan):
        """Remark on the disks of a plan's VMs. Raise PoolError."""
        vms = []               # type: List[Record]
        for job in plan.jobs:
            vm = job.vm
            exporter = self.exporter(job.method, [])
            exporter.choose(vm)
            vms.append(dict(name=vm.name, uuid=vm.uuid, method=job.method, keep=job.keep,
                            **disks_told(exporter)))
            for disk in exporter.left_out:
                plan.remark('NOTE', f'left out: {job.shown}/{LEFT_OUT.format(disk)}')
            if '~' + vm.uuid[:8] in job.shown:
                plan.remark('NOTE', f'one of several VMs of its name, {job.shown}: '
                                    f'{job.method}=uuid:{self.pool.vm_words(vm)}')
            if exporter.kind == 'VM' and vm.record.get('VUSBs'):
                plan.remark('ERROR', f'{job.shown}: {USB.format(vm.uuid)}')
            if not (exporter.disks or exporter.archive):
                plan.remark('ERROR', f'no disk to export: vdi-export={job.shown}')
            elif exporter.left_out and not exporter.disks:
                plan.remark('WARNING', f'{job.shown}: {NO_DISK_LEFT}')
            for level, text in exporter.remarks():
                plan.remark(level, f'{job.shown}: {text}')
            with suppress(OSError, TargetError):       # what is wrong with it shows elsewhere
                rate = self.store.history(path_part(vm.name)).last_owner().rate
                for disk in exporter.disks:
                    if 0 < rate < disk.size / TASK_AGE and not exporter.archive:
                        plan.remark('WARNING', f'{job.shown}: {disk.device} takes over 24 hours at '
                                    f'the last rate: {ENDED}')
        Console.current.tell(vms=vms)

    def preview(self, line: CommandLine):
        """Print what a run would do; return the exit status. Raise VmBackupError."""
        Console.current.tell(config=self.config.path, backup_dir=self.settings.backup_dir,
                             settings={name: text for name, (text, _) in self.config.given.items()})
        with Pool.connect(line) as self.pool:
            plan = self.make_plan()
            Console.current.tell(vms=[], excluded=plan.excluded, not_covered=plan.uncovered,
                                 failures=[dict(name=each.name, method=each.method,
                                                error=each.error) for each in plan.failures])
            if not plan.errors:
                self.look_at_disks(plan)
        if self.check(plan):
            return ERROR.status
        log('Checking all VMs for duplicate names ...')
        if plan.uncovered and self.config.path:
            log(f'  not covered by any line (cnt)= {len(plan.uncovered)}',
                '  not covered by any line: ' + ', '.join(sorted(plan.uncovered)))
        failed = plan.failures or any(each.startswith('***ERROR') for each in plan.messages)
        verdict = verdict_of(failed, plan.warnings)
        ending = 'SUCCESS preview of parameters ' + (WARNINGS_FOUND if verdict.status else '')
        if verdict == ERROR:
            ending = 'ERROR preview of parameters - VMs that cannot be backed up (see above)'
        log(ending, loud=True)
        return verdict.status

    def run(self, line: CommandLine):
        """Log in, select, check, back up. Raise VmBackupError, Interrupted."""
        self.closing = 'job-abort'
        if self.call_hook('job-init'):                 # which may mount what holds the status log
            self.closing, self.skipped = '', True
            return
        self.begin()
        with Pool.connect(line) as self.pool:
            plan = self.make_plan()
            wrong = self.check(plan)
            if wrong:
                for failure in plan.failures:
                    self.add(failure)
                self.errors += [f'invalid regex: {rule} ({rule.where})' for rule in plan.broken]
                self.errors.extend(wrong)
                self.further_errors += not plan.failures
                return
            log('SUCCESS check of parameters ' + (WARNINGS_FOUND if plan.warnings else ''))
            self.skipped = self.call_hook('job-start')
            if not self.skipped:
                ping(self.config, 'start', ())
                self.execute(plan)
            self.closing = 'job-end'

    def begin(self):
        """Note that the run begins: in the status log and, if it is usable, in backup_dir."""
        begun = self.status_log.begin()
        if not self.config.path or self.config.errors:
            return
        with suppress(TargetError):                    # `check` will tell
            self.store.check()
            # A run of some VMs only does not take the place of the night's.
            narrowed = any(rule.method == 'vm' for rule in self.config.rules)
            name = run_name(self.config.path, ' vm=' * narrowed)
            try:
                self.recorded.enter_context(self.store.locked(name, 0))
                with suppress(KeyError, TargetError, OSError):     # none, or a damaged one
                    self.warnings.known = self.store.runs()[name].warnings
                this_run = LastRun(begun, this_host(), process(), warnings=self.warnings.known)
                self.store.write_run(name, this_run)
                self.recorded.callback(self.record_end, name, this_run)
            except (VmBackupError, OSError) as error:
                log(f'***NOTE - this run is not recorded in backup_dir: {explain(error)}')

    def record_end(self, name, this_run: LastRun):
        """Record that the run ends."""
        with tolerating(self.warnings, 'the end of this run is not recorded'):
            failed = ['{0.name:.255} ({0.status})'.format(outcome)
                      for outcome in self.outcomes if outcome.error]
            told = dict(list(self.warnings.told.items())[:MOST_RECORDED])
            self.store.write_run(name, this_run._replace(
                ended=iso(now()), result=f'{self.verdict().token} {self.counts()}',
                failed=abbreviate(failed), warnings=told))

    def end(self):
        """Run the last hooks, write report and end lines, mail; return the exit status."""
        Signals.current.at_once = False
        Signals.current.allow(SIGNAL_GRACE)
        self.recorded.close()                          # a hook may unmount the share
        if self.closing:
            with self.until_ended():
                self.call_hook(self.closing, self.warnings, status=self.verdict().token)
        if self.report_file:
            with tolerating(self.warnings, f'cannot write report_file {self.report_file}'):
                bounded('the file system', put_report, self.report_file, dict(
                    schema=1, version=VERSION, host=this_host(),
                    config=portable(self.config.path), started=self.started,
                    backup_dir=portable(self.settings.backup_dir), finished=iso(now()),
                    status=self.verdict().token, signal=self.signum or None,
                    exit_status=self.verdict().status, warnings=self.warnings, errors=self.errors,
                    **self.identity, counts=self.counts()._asdict(),
                    vms=[each._asdict() for each in self.outcomes]))
        self.status_log.begin()
        token = self.verdict().token
        self.status_log.write('vmbackup.py', 'end', token, str(self.counts()))
        if not self.skipped:
            ping(self.config, 'fail' if token == ERROR.token else 'success', self.summary())
        self.report_end('')
        if self.closing or self.skipped:
            self.call_hook('log-end', self.warnings, status=token)
        return self.verdict().status

    def execute(self, plan: Plan):
        """Back up every VM of a plan; raise TargetError, Interrupted."""
        self.warnings.extend(plan.warnings)            # which are logged already
        Signals.current.at_once = False
        be_gentle(False)
        log(RULER, f'VmBackup running on {this_host()} ...', RULER,
            f'Check if backup directory {self.store.root} is writable ...')
        self.store.try_writing()
        log('Success: backup directory area is writable', RULER)
        self.show_space('Space before backups')
        with tolerating(self.warnings, 'cannot tell which pool this is'):
            self.identity = self.pool.identity()
        self.clean_up()
        with suppress(OSError, PoolError):
            write_json(note_of('pool'), self.pool.uuid())
        if self.settings.pool_db_backup:
            with self.surviving('pool database not backed up: '):
                self.back_up_pool_database()
        for failure in plan.failures:
            self.add(failure)
        self.back_up(plan.jobs)
        if self.again:
            waited = stopwatch()
            while waited() < RESTART_PAUSE:
                check_signals()
                sleep(1)
            self.remark = ' try:2'
            self.back_up(self.again)
        check_signals()
        if self.clean_up_at_end or self.not_removed:
            self.clean_up()
        if self.others:
            self.left_alone.append('left alone: backups of others: ' + abbreviate(
                [f'{count} {whose}' for whose, count in self.others.items()]))
        log(RULER)
        self.show_space('Space status')

    def back_up(self, jobs: Sequence[Job]):
        """Back up some VMs. Raise Interrupted."""
        turns = [VmBackup(self, job) for job in jobs]
        self.turns += turns
        if self.settings.parallel > 1:
            return self.side_by_side(turns)
        for method in ('vdi-export', 'vm-export'):
            log(f'************ {method}= ***************')
            for turn in turns:
                if turn.job.method == method:
                    check_signals()
                    self.attempt(turn, turn.run)

    def side_by_side(self, turns: Sequence[VmBackup]):
        """Back up several VMs at once, each in a thread, the largest first."""
        import queue
        log(f'************ parallel= {self.settings.parallel} ***************')
        ended = queue.Queue()  # type: queue.Queue

        def work(backup: VmBackup):
            Console.current.thread.begin = f'[{backup.job.vm.name}] '
            try:
                with self.surviving(), suppress(Interrupted):
                    self.attempt(backup, backup.run)
            finally:
                Console.current.thread.begin = ''
                ended.put(backup)

        srs = {}               # type: Dict[VmBackup, Set[str]]    # uuids of those with its disks
        for backup in turns:
            with suppress(VmBackupError, ValueError):              # its own turn will show that
                backup.exporter.choose(backup.job.vm)
            srs[backup] = {disk.sr_uuid for disk in backup.exporter.disks}
        waiting = sorted(turns, key=lambda backup: -sum(
            disk.size for disk in backup.exporter.disks))
        running = []           # type: List[VmBackup]
        per_sr = self.settings.parallel_per_sr or self.settings.parallel
        while True:
            following = None   # type: Optional[VmBackup]
            if len(running) < self.settings.parallel and not Signals.current.received:
                read = Counter(sr for backup in running for sr in srs[backup])
                following = next((backup for backup in waiting if all(
                    read[sr] < per_sr for sr in srs[backup])), None)
            if following:
                waiting.remove(following)
                running.append(following)
                try:
                    Thread(target=work, args=(following,), daemon=True).start()
                except RuntimeError:                   # the system has no more threads
                    work(following)
            elif running:
                try:
                    running.remove(ended.get())
                except Interrupted:
                    with suppress(queue.Empty):                # those that do not hang end soon
                        [ended.get(timeout=REAP_TIMEOUT) for _ in running]
                    raise
            else:
                return

    def clean_up(self):
        """Remove what runs have left, earlier ones that died or, at its end, this one."""
        self.not_removed.clear()
        del self.doubtful[:]
        stores = [self.store]
        with tolerating(self.warnings, 'snapshots of this run are not noted on this host'):
            stores.append(host_store())
        with self.surviving(), tolerating(self.warnings, 'cannot look for leftovers'):
            for store in stores:
                for history in store.histories():
                    self.clean_up_one(store, history)
            known = len(self.warnings)
            Importer(self.pool, self.store, self.warnings).end_killed()
            self.clean_up_at_end = len(self.warnings) > known

    def clean_up_one(self, store: Store, history: History):
        """Clean up one directory, unless another run is at work there."""
        with tolerating(self.warnings, f'cannot clean up {history.directory}'):
            if any(history.with_intent()) or any(history.half_deleted()):
                check_signals()
                try:
                    with store.locked(history.directory, 0):
                        self.remove_leftovers(history.as_it_is(), self.warnings)
                except BackupFailed as error:
                    log(f'***NOTE - {history.directory}: {error}')

    def show_space(self, title):
        """Log what df says."""
        log(f'{title}: df -Th {self.store.root}')
        try:
            result = run(['df', '-Th', self.store.root], SHARE_TIMEOUT)
            log(*decoded(result.stdout + result.stderr).splitlines())
        except CommandFailed as error:
            log(f'NOTE {error}')

    def back_up_pool_database(self):
        """Dump the pool's database, on its master. Raise VmBackupError, OSError."""
        log('*** begin backup_pool_metadata ***')
        if not self.pool.is_master():
            log('NOTE not the pool master: no backup of the pool database here')
            return
        directory = f'{self.store.root}/{DUMPS}{path_part(this_host())}'
        with self.store.locked(directory, self.settings.lock_wait * 60):
            with new_pool_dump(directory) as path:
                partial = path + PARTIAL
                watchdog = Watchdog(self.settings.stall_timeout * 60, lambda: size_of(partial),
                                    'dumped', path)
                with handed(partial) as at:
                    log(*Xe(numbered=False).tell('pool-dump-database', watchdog=watchdog, at=at,
                                                 file_name=partial).splitlines())
                if self.settings.verify == 'yes':
                    self.verifier.prove(partial)
            with tolerating(self.warnings, 'its version is not recorded'):
                write_json(path + '.json', self.identity, 'its')
                log('only a pool of the same xapi takes it back, ' + self.identity['xapi'])
            with tolerating(self.warnings, 'cannot delete old dumps'):
                for old in prune_pool_dumps(path, self.settings.pool_db_max_backups):
                    log(f'Deleting oldest pool database dump {old}')


def run_backup(line: CommandLine):
    """Make backups, or a preview. The mail on an unreadable config goes as by default."""
    if line.options['preview']:
        config = config_of(line)
        refuse_unexpected(config)
        return BackupRun(config).preview(line)
    if line.options['json']:
        raise UsageError('only a preview prints JSON (of a run, report_file has it)')
    unreadable = None          # type: Optional[Exception]
    try:
        config = config_of(line)
    except ConfigError as error:
        unreadable = error
        config = parse_config([], '', line)
    run_of_tonight = BackupRun(config)
    with run_of_tonight.until_ended():
        if unreadable:
            raise unreadable
        run_of_tonight.errors.extend(config.unexpected)
        refuse_unexpected(config)
        run_of_tonight.run(line)
    return run_of_tonight.end()


def run_stream(line: CommandLine):
    """The command `stream`; return the exit status. The snapshot is recorded in a directory that is
    being deleted from the first: it counts as no backup, and any run that finds it removes both.
    Raise VmBackupError, OSError, Interrupted."""
    if not Console.current.output or os.isatty(1) or samestat(fstat(1), fstat(2)):
        raise UsageError('standard output gets the archive alone: it must not be closed, a '
                         'terminal, or where the log goes (stream VM | PROGRAM, without 2>&1)')
    stream = BackupRun(open_config(line._replace(words=(line.options['from'],))).config)
    if stream.config.asks_for('backup_dir'):
        stream.store.check()
    else:
        stream.store = host_store()
    warnings, settings = Warnings(), stream.settings       # others count for the next backup
    with Pool.connect(line) as stream.pool:
        jobs = select([selector(line.word)], stream.pool.vms(), 1).jobs
        if len(jobs) != 1:
            raise UsageError(f'{line.word} means {len(jobs)} VMs, not one (see uuid:UUID)')
        Signals.current.at_once = False
        be_gentle(False)
        stream.clean_up()
        vm = jobs[0].vm
        exporter = stream.exporter('vm-export', warnings)
        history = stream.store.directory_of(vm, stream.pool.names)
        with stream.store.locked(history.directory, settings.lock_wait * 60):
            warned_of = stream.clear_way(history, stream.warnings)
            try:
                backup = stream.store.begin(history, now(), DELETING)
                exporter.choose_source(stream.pool.reread(vm))
                with exporter.snapshot(backup, warned_of) as snapshot:
                    exporter.stream(snapshot.uuid, settings.stall_timeout * 60)
            finally:
                stream.remove_leftovers(history.as_it_is(), warnings)
    return verdict_of((), warnings).status


# ----------------------------------------------------------------------------------------------
# 20. Commands: verify, list, prune, protect
# ----------------------------------------------------------------------------------------------

LISTED = '{:16}  {:5}  {:10}  {:10}  {:7}  {:28}  {}'     # of a table of `list`


def dumps_of(histories: Sequence[History]):
    """Return paths of the pool database's dumps, by their directories. Raise OSError."""
    found = {}                 # type: Dict[str, Texts]
    for path in sorted(history.directory for history in histories):
        if basename(path).upper().startswith(DUMPS):
            with allowing(ENOENT, ENOTDIR, ELOOP):     # a file or a link may be called so
                found[path] = dumps_in(path)
    return found


class VerifyCommand(NamedTuple):
    """`verify`: proves backups of this program, or of 3.25, whole."""
    verifier: Verifier
    every: bool                # all backups of a VM; else the newest
    results: List[Record]      # as --json prints them

    def verify_vms(self, target: Store, dumps_too):
        """Verify the VMs that a config chooses; return the plan. Raise VmBackupError, OSError."""
        histories = target.stocked()
        plan = select_histories(histories, target.config)
        log(*plan.messages)
        for text in plan.errors:
            raise UsageError(text)
        first = 0 if self.every else -1
        for number, job in enumerate(plan.jobs, 1):
            Console.current.thread.turn = f'VM {number} of {len(plan.jobs)}: '
            paths = [backup.path for backup in job.vm.saved.as_it_is().backups(True)
                     if backup.outcome in COMPLETE + ('unreadable',)][first:]
            for path in reversed(paths or [job.vm.ref]):
                self.verify(path, self.prove_backup, job.vm.name)
        Console.current.thread.turn = ''
        for paths in dumps_of(histories).values() if dumps_too else ():
            for path in paths[first:]:
                self.verify(path, self.prove_file)
        return plan

    def verify(self, path, prove, vm=''):
        """Log and note what is found of a path. What is wrong there keeps no other from that."""
        check_signals()
        try:
            token, text, proved = prove(path)
        except Exception as error:                     # also a bug of ours
            token, text, proved = 'ERROR', explain(error), ''
        with suppress(OSError):
            if token == 'ERROR' and not is_there(path):
                log(f'***NOTE - {path}: it was deleted meanwhile')
                return
        word = {'SUCCESS': 'good', 'WARNING': '***WARNING -'}.get(token, token)
        self.results.append(dict(path=path, vm=vm, result=token, text=text, proved=proved or None))
        log(f'{word} {path}: {text}')

    def prove_file(self, path):
        """Read a file; return the result, a text, and what is proved. Raise as `Verifier.prove`."""
        proof = self.verifier.prove_in(read_backup(dirname(path), None), basename(path))
        return ('WARNING' if proof.proved == 'length' else 'SUCCESS',
                f'{PROVED[proof.proved]}, {human_size(proof.size)}', proof.proved)

    def prove_backup(self, path):
        """Do as `prove_file` for a backup, and put the result into its manifest."""
        backup = read_backup(path, None)
        if backup.trouble:
            raise backup.trouble
        if not backup.has_marker():
            raise Damaged('no good backup (there is no marker in it)')
        try:
            found = self.verifier.check(backup)
        except Damaged as error:
            found = Verified('', {}, [str(error)], [])
        texts = (found.problems or [PROVED[found.proved]]) + found.remarks
        with suppress(OSError):                        # nobody needs them
            used = [PROTECTED, *backup.archives()]
            others = [name for name, _, whose in sift(path, OURS.match)
                      if whose == 'person' and name not in used]
            if others:
                texts.append('also there: ' + abbreviate(others))
        try:
            add_to_manifest(backup, verified=found.in_manifest(backup.manifest.digests))
        except OSError as error:                       # such as a share that is read-only
            log(f'***NOTE - {path}: the result is not recorded: {reason_of(error)}')
        return verdict_of(found.problems, found.remarks).token, '; '.join(texts), found.proved


def run_verify(line: CommandLine):
    """The command `verify`; return the exit status. Raise VmBackupError, OSError."""
    every = line.options['backups'] == 'all'
    be_gentle(True)
    target = open_target(line, form_of)
    if target.kind in ('file', 'backup') and (line.only or every):
        raise UsageError(f'vm= and backups= do not apply to a single backup: {line.word}')
    command = VerifyCommand(Verifier(target.config.settings.stall_timeout * 60), every, [])
    plan = Plan()
    Console.current.tell(results=command.results)
    if target.kind == 'file':
        command.verify(target.path, command.prove_file)
    elif target.kind == 'backup':
        command.verify(target.path, command.prove_backup, target.backup(target.path).manifest.name)
    else:
        plan = command.verify_vms(target, not line.only)
    tokens = [result['result'] for result in command.results] + ['WARNING'] * bool(plan.warnings)
    counts = tally(tokens, len(plan.failures))
    if not any(counts):
        raise UsageError(f'no backups in {line.word}')
    verdict = verdict_of(counts.errors, counts.warnings)
    Console.current.tell(counts=counts._asdict())
    log(f'VmBackup verify ended - {verdict.phrase} - {counts}', loud=True)
    return verdict.status


def age(when: Time):
    """How long ago that was, for a person: 3d, 20h, 10min."""
    if not when:
        return '-'
    passed = max(now().timestamp() - seconds_of(when), 0)
    unit, name = (60, 'min') if passed < 3600 else (3600, 'h') if passed < 172800 else (86400, 'd')
    return f'{passed // unit:.0f}{name}'


def document_of(name, history: History):
    """Return what `list` tells of a VM, of its directory, as the README has its form."""
    owner, told = history.last_owner(), []     # type: Manifest, List[Record]
    for backup in history.everything():
        manifest = backup.manifest
        method = manifest.method or None
        size = compression = None  # type: Any
        if backup.outcome == 'remains':
            with suppress(OSError):
                size = sum(size_of(backup.file(file)) for file, _, _ in sift(backup.path, bool))
        for file in backup.sizes:
            size = sum(backup.sizes.values())
            compression = compression_of(file).name
            # 3.25 has written none down.
            method = method or ('vm-export' if form_of(file) == '.xva' else 'vdi-export')
        told.append(dict(
            path=backup.path, when=backup.started, outcome=backup.outcome, method=method, size=size,
            compression=compression, protected=backup.protected, verified=manifest.verified or None,
            test_restore=manifest.test_restore or None, of=owner.other(backup)))
    return {'name': name, 'path': history.directory,
            'good': sum(backup['outcome'] == 'good' for backup in told),
            'size': sum(backup['size'] or 0 for backup in told), 'backups': told}


def table_of(document: Record):
    """Yield the document's lines for a person."""
    yield LISTED.format(*'when age method size outcome name remarks'.split())
    for vm in document['vms']:
        good = f'{vm["good"]} good, {human_size(vm["size"])}' if vm['good'] else 'NO GOOD BACKUP'
        yield '{name} ({path}): {}'.format(good, **vm)
        for told in vm['backups']:
            remarks = [told['of'], 'protected' if told['protected'] else '',
                       (told['compression'] or '').replace('none', '')]
            for word, found in (('verified', told['verified']), ('restored', told['test_restore'])):
                if found and found['fault']:
                    remarks.append(f'fault when {word}: {found["fault"]}')
                elif found:
                    remarks.append(f'{found["proved"] or word} {age(found["when"])}')
            yield LISTED.format(
                (told['when'] or '-')[:16].replace('T', ' '), age(told['when']),
                told['method'] or '-', '-' if told['size'] is None else human_size(told['size']),
                told['outcome'], basename(told['path']), ', '.join(filter(None, remarks))).rstrip()
    for dumps in document['pool_dumps']:
        yield 'pool database ({path}): {dumps} dumps, newest {newest}'.format(**dumps)
    for path in document['foreign']:
        yield 'foreign: ' + path
    yield 'total of {} VMs: {} good, {}'.format(
        len(document['vms']), document['good'], human_size(document['size']))


def run_list(line: CommandLine):
    """The command `list`; return the exit status. Raise VmBackupError, OSError."""
    target = open_target(line)
    if target.kind == 'backup':
        raise UsageError(f'expected a config-file, a backup_dir, or a VM\'s directory: {line.word}')
    histories = target.stocked()
    plan = select_histories(histories, target.config)
    with tolerating(plan.messages, '***WARNING - cannot tell what is attached'):
        plan.messages += [f'***NOTE - {look}' for look in target.looks()]
    log(*plan.messages, *plan.errors)
    found = [(job.vm.name, job.vm.saved) for job in plan.jobs]
    found += [(failure.name, target.history(path_part(failure.name))) for failure in plan.failures]
    vms = [document_of(*each) for each in sorted(found, key=lambda each: each[0])]
    dumps = [{'path': path, 'dumps': len(paths), 'newest': basename(paths[-1])}
             for path, paths in dumps_of(histories).items() if paths and not line.only]
    newest = [backup for vm in vms for backup in vm['backups'][:1]]
    for backup in newest:
        if backup['outcome'] == 'failed' and target.is_locked(dirname(backup['path'])):
            backup['outcome'] = 'running'
    known = [each['path'] for each in vms + dumps]
    foreign = sorted(history.directory for history in histories if not (
        line.only or history.holds_any() or history.refused or history.directory in known))
    document = dict(backup_dir=target.root, vms=vms, pool_dumps=dumps, foreign=foreign,
                    messages=plan.messages + plan.errors, good=sum(vm['good'] for vm in vms),
                    size=sum(vm['size'] for vm in vms))
    if not Console.current.tell(**document):
        Console.current.write(''.join(printable(row) + '\n' for row in table_of(document)))
    doubtful = plan.warnings or any(each['outcome'] not in ('good', 'running') for each in newest)
    return verdict_of(plan.errors or not all(vm['good'] for vm in vms), doubtful).status


def owner_with_backup(history: History):
    """Return whose a directory is, if a good backup of that VM is in it; else whose nothing is."""
    owner = history.last_owner()
    if any(each.outcome == 'good' and not owner.other(each) for each in history.completed()):
        return owner
    return Manifest()


class Pruning:
    """`prune`: deletes what no rule keeps, and tells of each backup which one does."""
    kept = deleted = freed = 0

    def __init__(self, target: Store, options: Strings):
        self.errors = Errors()
        self.store = target
        self.previewing = options['preview']
        self.pool = options['pool']    # a uuid; its backups are to go from others' directories
        self.vms = set()       # type: Set[str]    # so, of VMs that have a good backup in their own

    def let_go(self, history: History):
        """Return the backups of others that were asked to go; of a pool, beside a good one."""
        found = history.completed()
        if self.pool:
            beside = owner_with_backup(history).pool not in ('', self.pool)
            return [each for each in found if beside and each.manifest.pool == self.pool]
        owner = history.last_owner()
        return [each for each in found if each.manifest.uuid in self.vms
                and each.manifest.pool in ('', owner.pool) and not owner.rotates(each)]

    def prune(self, job: Job, by_rules):
        """Prune the backups of a VM, oldest first; without rules only those of others that are to
        go. Raise TargetError where a line of the config may mean it, and nothing tells; OSError."""
        known = {'name': True, 'uuid': job.vm.uuid, 'tag': 'tags' in job.vm.record}
        for rule in self.store.config.rules if by_rules else ():
            if rule.method != 'vm' and not known[rule.kind]:
                raise TargetError(f'not touched, as its newest backup records no {rule.kind} of it')
        history = job.vm.saved.as_it_is()              # now that it is locked
        log(history.directory)
        for path in () if self.previewing else history.half_deleted():
            with tolerating(self.errors, path):
                finish_deleting(path)
        for backup in history.backups():
            if backup.trouble:
                self.errors.append(f'{backup.path}: {explain(backup.trouble)}')
        owner = history.last_owner()
        let_go = self.let_go(history)
        if owner.pool and own_pool() not in ('', owner.pool):
            log(f'***NOTE - not touched: they are of another pool, {owner.pool}')
            return
        ours = {backup.path: why for backup, why in history.judged(
            policy_of(self.store.config.settings, job), owner)}
        for backup in history.completed():
            if backup.path in ours and not by_rules:
                continue
            why = ours.get(backup.path, [owner.other(backup)])
            if backup in let_go:
                why = [PROTECTED] * backup.protected
            if why:
                log(f'  keep   {basename(backup.path)} ({", ".join(why)})')
                self.kept += 1
            else:
                self.delete(backup)

    def prune_one(self, path, history: History):
        """Delete a backup that a person names; tell what that loses. Raise UsageError, OSError."""
        backup = self.store.backup(path)
        if backup.outcome not in COMPLETE or backup.protected:
            raise UsageError(f'no backup that can be deleted, or it is protected: {path}')
        lost = disks_in_none([each.manifest for each in history.completed(True)
                              if each.path != path and each.outcome == 'good'
                              and not backup.manifest.other(each)], backup.manifest.holds)
        if lost:
            log('***NOTE - no other good backup there has disk ' + lost)
        self.delete(backup)

    def delete(self, backup: Backup):
        """Delete a backup, unless this is a preview."""
        log(f'  delete {basename(backup.path)}')
        with tolerating(self.errors, backup.path):
            size = backup.occupied()
            if not self.previewing:
                self.store.delete(backup)
            self.deleted += 1
            self.freed += size


def to_prune(target: Store, pruning: Pruning):
    """Return the VMs chosen of a config, and whether rules apply, or only others' backups go."""
    config = target.config
    histories = target.stocked()
    only = [rule for rule in config.rules if rule.method == 'vm']
    whole = config._replace(rules=[rule for rule in config.rules if rule not in only])
    plan = select_histories(histories, whole, config.settings.keep_last)
    for text in plan.errors:
        log(*plan.messages)
        raise UsageError(text)
    uuids = {rule.word for rule in only if rule.kind == 'uuid'}
    pruning.vms = uuids.intersection(owner_with_backup(each).uuid for each in histories if uuids)
    for rule in only:
        if rule.word not in pruning.vms and not any(chooses(rule, job.vm) for job in plan.jobs):
            raise UsageError(f'{rule} is none of the VMs that are selected and found')
    for failure in () if only else plan.failures:
        log(f'***NOTE - no backups of {failure.name}')
    found = []
    for job in plan.jobs:
        by_rules = any(chooses(rule, job.vm) for rule in only) or not (only or pruning.pool)
        if by_rules or pruning.let_go(job.vm.saved):
            found.append((job, job.vm.saved, by_rules))
    if not found:
        raise UsageError(f'no backups of that vm= or pool= that may go in {target.root}')
    return found


def run_prune(line: CommandLine):
    """The command `prune`; return the exit status. Raise VmBackupError, OSError."""
    target = open_target(line)
    given = bool(line.only) + bool(line.options['pool'])
    if target.kind not in ('config', 'backup') or given > (target.kind == 'config'):
        raise UsageError('expected a config-file (perhaps vm= or pool=) or a backup: ' + line.word)
    target.check()
    pruning = Pruning(target, line.options)
    done = 'would be deleted' if pruning.previewing else 'deleted'
    found = [(None, target.history(dirname(target.path)), False)]    # type: List[Any]
    if target.kind == 'config':
        found = to_prune(target, pruning)
    for job, history, by_rules in found:
        check_signals()
        lock = suppress() if pruning.previewing else target.locked(
            history.directory, target.config.settings.lock_wait * 60)
        with tolerating(pruning.errors, history.directory), lock:
            if job:
                pruning.prune(job, by_rules)
            else:
                pruning.prune_one(target.path, history)
    verdict = verdict_of(pruning.errors, ())
    log('VmBackup prune ended - {0} - {1.kept} kept, {1.deleted} {2} ({3})'.format(
        verdict.phrase, pruning, done, human_size(pruning.freed)), loud=True)
    return verdict.status


def run_protect(line: CommandLine):
    """Protect or unprotect; return the exit status. Raise VmBackupError, OSError."""
    protecting = line.command == 'protect'
    stores = [open_target(line._replace(words=[word]), bool) for word in line.words]
    for store in stores:
        path = store.path
        if (store.kind != 'backup' or not Backup(path).has_marker() or
                basename(path).startswith(DELETING)):
            raise UsageError(f'no good backup: {path} (expected its dated directory)')
    for path in [store.path for store in stores]:
        file = join(path, PROTECTED)
        if is_there(file) != protecting:
            if protecting:
                create(file).close()
            else:
                remove(file)
            sync_directory(path)
        log(f'{line.command}ed: {path}')
    return SUCCESS.status


# ----------------------------------------------------------------------------------------------
# 21. Restores: restore, test-restore
# ----------------------------------------------------------------------------------------------

NO_NETWORK = {'name_label': 'none', 'uuid': 'left out', 'bridge': ''}


class Sources:
    """Finds what is to be restored, in backup_dir or by its path."""
    def __init__(self, line: CommandLine):
        origin = line.options['from']
        target = (open_target if origin else open_config)(line._replace(words=[origin]))
        if target.kind not in ('config', 'store'):
            raise UsageError(f'no config-file or backup_dir: from={origin}')
        self.config = target.config
        self.store = target
        self.given = origin

    def find(self, word, date):
        """Return the archive or images that a VM's name, a directory or a file stands for. Raise
        UsageError, OSError."""
        path = abspath(native(word))
        kind = kind_of(path)
        missing = kind in ('', 'store')
        uuid = word[-36:] if match(f'(uuid:)?{UUID}\\Z', word) else ''
        # No path for certain.
        if not match(r'\.{0,2}(/|\Z)', word) and (missing or not ('/' in word or form_of(word))):
            if missing:
                self.store.check(False)
                self.store.stocked()
            histories = self.store.histories() if uuid else self.called(word)
            if histories:
                return self.of_backup(self.newest(histories, date, uuid))
        if missing:
            refuse_missing(word, f'backup or file, or VM in {self.store.root} (see from=, and the '
                                 'command list)')
        ROOTS.add(root_of(path, kind))
        if kind == 'history':
            return self.of_backup(self.newest([self.store.history(path)], date, uuid))
        if date:
            raise UsageError(f'date= does not apply to a single backup: {word}')
        if kind == 'file':
            return [self.of_file(path)]
        backup = self.store.backup(path)
        if not backup.has_marker():
            raise TargetError(f'it has no marker: the record of a failure, not a backup: {path}')
        return self.of_backup(backup)

    def of_backup(self, backup: Backup):
        """Return the archive or images of a backup. Raise Damaged without one."""
        return [self.of_file(backup.file(name)) for name in backup.check_archives()]

    def select(self, config: Config):
        """Choose VMs as a config says; log what there is to tell. Raise TargetError, OSError."""
        self.store.check(False)
        plan = select_histories(self.store.stocked(), config)
        log(*plan.messages)
        return plan

    def called(self, word):
        """Return the directories of VMs of that name, or of one that a share takes for it."""
        own = path_part(word)
        found = [self.store.history(own)]
        for each in self.store.histories():
            part = basename(each.directory)
            is_twin = TWIN.search(part) and folded(part[:-9]) == folded(own)
            if is_twin or own != part == native(word):
                found.append(each)
        found = list(filter(History.holds_any, found))
        return [each for each in found if encoded(each.vm_name()) == encoded(word)] or found

    def newest(self, histories: Sequence[History], date='', uuid=''):
        """Return the newest good backup of a time that begins so, or a VM, of this host's pool if
        it has any. Raise UsageError if it may be of one VM or of another; TargetError without."""
        digits = sub('[^0-9]', '', date) or date
        newest = []
        for history in histories:
            good = []          # type: List[Backup]
            for backup in history.backups(True):
                if backup.trouble:
                    log(f'***NOTE - skipped: {explain(backup.trouble)}')
                if backup.outcome == 'damaged':
                    log(f'***NOTE - passed over, as it is damaged: {backup.path}', loud=True)
                when = sub('[^0-9]', '', backup.started or '')
                if (backup.outcome == 'good' and when.startswith(digits)
                        and uuid in ('', backup.manifest.uuid)):
                    good.append(backup)
            newest += of_own_pool(good)[-1:]
        if not newest:
            place = self.store.root if uuid else histories[0].directory
            raise TargetError(f'no good backup of {date or uuid or "this VM"} in {place}')
        if len({backup.manifest.uuid for backup in newest}) > 1:
            raise UsageError('more than one VM of that name (choose one, restore uuid:UUID, or by '
                             'its directory): ' + ', '.join(
                                 '{0.manifest.uuid} ({1}, newest {0.started})'.format(
                                     each, dirname(each.path)) for each in newest))
        return max(newest, key=lambda backup: backup.when)

    def of_file(self, path):
        """Return an archive or image, with what its directory tells of it. Raise UsageError."""
        form = form_of(path)
        if form == '.dump':
            command = quoted([Xe().program, 'pool-restore-database', f'file-name={path}'])
            raise UsageError(f'not restored, a dump of the pool database: {path} (to be checked on '
                             'the pool master, of the same release and hardware as then: '
                             f'{command} dry-run=true; and restored without dry-run=true)')
        if form not in ('.xva', '.raw', '.vhd'):
            raise UsageError(f'no archive or image: {path} (a config file is given as from=)')
        if not self.given:
            self.store.set_root(root_of(path, 'file'))
        return Chosen(path, form, self.store.backup(dirname(path)))


def image_size(chosen: Chosen, reader: Reader):
    """Return the bytes of an image's disk. Raise Damaged, OSError."""
    if chosen.form == '.vhd':
        return reader.read_head()[0]
    told = chosen.backup.disk_size(basename(chosen.path))
    if not (told or reader.packed):
        told = size_of(chosen.path)
    return told or sum(map(len, reader.pieces()))


def disks_in(chosen: Chosen):
    """Return the disks of an archive, or that of an image. Raise Damaged, OSError."""
    path, form, backup, _ = chosen
    with opened(path, form) as reader:
        if form == '.xva':
            told = {device: uuid for uuid, device in backup.manifest.holds}
            found = [disk._replace(uuid=told.get(disk.name, disk.uuid))
                     for disk in archived_vm(reader.read_ova()).disks]
        else:
            disk = backup.manifest.disk(basename(path))
            name, title, uuid = [disk.get(key, '') for key in ('device', 'name', 'uuid')]
            device = next((str(number) for number in range(256)
                           if device_name('', str(number)) == name), '')
            found = [ArchivedDisk('', image_size(chosen, reader), device, name, title, uuid)]
    return [chosen._replace(disk=disk) for disk in found]


def disk_in_words(chosen: Chosen):
    """Return by what a disk can be chosen, and where it is."""
    disk = chosen.disk
    words = disk.name, disk.device and f'position {disk.device}', human_size(disk.size), disk.title
    return ', '.join(filter(None, (*words, disk.uuid, f'in {basename(chosen.path)}')))


def choose_disks(word, disks: List[Chosen]):
    """Return the disk that a device, position, name or uuid means, by default the only one, or all.
    Raise UsageError."""
    found = [each for each in disks if not word or word in (
        'all', device_name('', each.disk.device), *each.disk[2:])]
    if not found or (len(found) > 1 and word != 'all'):
        raise UsageError(f'disk={word} is not one disk of the backup (there are: '
                         f'{"; ".join(map(disk_in_words, disks))})')
    return found


class Restorer(Importer):
    """Plans how a backup comes into the pool, and puts it there: for `restore` to stay."""
    def __init__(self, pool: Pool, sources: Sources, options: Strings):
        super().__init__(pool, sources.store, Warnings(),
                         sources.config.settings.stall_timeout * 60)
        self.sources = sources
        self.options = defaultdict(str, options)   # a test has not all of them

    def run(self, found: List[Chosen]):
        """Plan, verify, restore what a backup has, or the disk of it that is meant."""
        word = self.options['disk']
        if word:
            found = choose_disks(word, [disk for each in found for disk in disks_in(each)])
        for chosen in found:
            unfit = 'attach' if chosen.whole else 'preserve start network'
            if not self.options['attach']:
                unfit += ' mode force'
            for word in unfit.split():
                if self.options[word]:
                    raise UsageError(f'{word}= does not apply to {chosen.path}')
            target = self.plan(chosen, self.options['name'])
            if self.options['preview']:
                log('SUCCESS preview of restore: nothing was changed', loud=True)
                continue
            self.end_killed()
            checked = chosen.disk and chosen.form == '.xva'    # on its way, chunk by chunk
            if self.options['verify'] != 'no' and not checked:
                self.verify(chosen)
            self.restore(chosen, target)

    def plan(self, chosen: Chosen, name):
        """Find out where a restore goes, and log it; `name`: of the new VM or disk, if given."""
        manifest, when = chosen.backup.manifest, chosen.backup.started or ''
        vms = self.pool.records('VM')
        if when:
            when = ' as of ' + when[:19].replace('T', ' ')
        log(f'restore of {manifest.name or "a VM"}{when}: {chosen.path}', loud=True)
        names = {vm['uuid']: vm['name_label'] for vm in vms.values()}
        if manifest.pool not in ('', self.pool.uuid()):
            log(f'***NOTE - this backup is of another pool, {manifest.pool}', loud=True)
        elif manifest.uuid not in ('', *names) and manifest.name in names.values():
            log(f'***NOTE - this backup is of an earlier VM of this name, {manifest.uuid}',
                loud=True)
        if chosen.whole:
            return self.plan_vm(chosen, label_part(name), vms)
        return self.plan_disk(chosen, label_part(name))

    def plan_vm(self, chosen: Chosen, name, vms: Records):
        """Plan the restore of an archive."""
        with opened(chosen.path, chosen.form) as reader:
            found = archived_vm(reader.read_ova())
        original = chosen.backup.manifest.name or sub(r'\ARESTORE_(?=.)', '', found.name)
        taken = [vm['name_label'] for vm in vms.values()]
        if name in taken:
            raise UsageError(f'a VM called {name} is there (choose another name=)')
        name, number = name or original, 1
        while name in taken:
            name = original + chosen.suffix + (f'-{number}' if number > 1 else '')
            number += 1
        preserve = bool(self.options['preserve'])
        if preserve:
            log('***WARNING - preserve=True: the original has the same MAC addresses (it must not '
                'run meanwhile, in no other pool either)')
        for vm in vms.values():                        # xapi would replace one of this uuid
            same = not vm['is_a_snapshot'] and vm['other_config'].get('mac_seed') == found.seed
            if preserve and (same or vm['uuid'] == found.uuid):
                raise UsageError(f'preserve=True: the VM {labelled(vm)} has the same MAC addresses '
                                 'or uuid (remove it, or restore without preserve)')
            if self.options['start'] and self.options['network'] != 'none' and (
                    vm['power_state'] == 'Running') and (
                    original == vm['name_label'] or chosen.backup.manifest.uuid == vm['uuid']):
                log(f'***WARNING - start=True: the original runs, {labelled(vm)} (shut it down '
                    'first, or use network=none: two of one IP address disturb each other)')
        disks = {disk.device: disk.size for disk in found.disks if disk.device}
        total = sum(disks.values())
        sr = self.sr(total, f'  new VM:   {name} (original: {original})')
        for device, size in disks.items():
            log(f'  disk:     {device_name("", device)} of {human_size(size)}')
        return Target(name, sr, total, disks, preserve, networks=self.networks(found.vifs))

    def networks(self, vifs: Sequence[Texts]):
        """Return what network= has the networks of an archive become; log where all VIFs go."""
        known = list(self.pool.records('network').values())
        old, _, new = self.options['network'].rpartition(':')
        chosen = [NO_NETWORK] if new == 'none' else [
            each for each in known if new in (each['uuid'], each['name_label'])]
        if (old or new) and len(chosen) != 1:
            raise UsageError(f'no single network is {new} (choose one, network=UUID): '
                             + abbreviate(list(map(labelled, chosen or known))))
        moved = {}             # type: Dict[str, Strings]
        for device, label, bridge, number in vifs:
            # Any of that name, or else that of the bridge (xapi: import.ml).
            same = ([each for each in known if each['name_label'] == label] or
                    [each for each in known if each['bridge'] == bridge])
            if new and old in ('', label, bridge):
                same = chosen
                moved[number] = {'name_label': same[0]['uuid'], 'bridge': same[0]['bridge']}
            log(f'  network:  VIF {device} in ' + (
                ' or '.join(map(labelled, same)) or f'{label}, which is not here: it will be made'))
        if old and not moved:
            log(f'***WARNING - network=: no VIF is in {old}')
        return moved

    def sr(self, size, title):
        """Return the record of the SR for disks of so many bytes: that of sr=, a name or uuid, or
        else the pool's default one. Log a title, and how full it is."""
        srs = {ref: sr for ref, sr in self.pool.records('SR').items()     # sm: udevSR.py, drives
               if sr['content_type'] != 'iso' and sr['type'] != 'udev'}
        word = self.options['sr'] or self.pool.own_record()['default_SR']
        found = {ref: sr for ref, sr in srs.items() if word in (ref, sr['uuid'], sr['name_label'])}
        if len(found) != 1:
            raise UsageError(f'no single SR is {self.options["sr"] or "the default one"} (choose '
                             f'one, sr=UUID): {self.pool.sr_words(found or srs)}')
        sr, = found.values()
        log(title, '  SR:       ' + space_of(sr, size))
        return sr

    def plan_disk(self, chosen: Chosen, name):
        """Plan the restore of a disk, to the first free user device of a VM if asked."""
        disk = (chosen if chosen.disk else disks_in(chosen)[0]).disk
        name = name or (disk.title or plain_name(basename(chosen.path))) + chosen.suffix
        target = Target(name, self.sr(disk.size, f'  new disk: {name}'), disk.size)
        word = self.options['attach']
        if not word:
            return target
        found = [vm for vm in self.pool.vms() if word in (vm.uuid, vm.name)]
        states = [vm.record['power_state'] for vm in found]
        if states not in (['Halted'], ['Running']):
            raise UsageError(f'attach={word} is not one VM, halted or running (choose its uuid): '
                             + (abbreviate(list(map(self.pool.vm_words, found))) or 'no VM'))
        vm, = found
        mode = self.options['mode'].upper() or ('RO' if states == ['Running'] else 'RW')
        if mode == 'RO' and vm.record['HVM_boot_policy']:    # xapi: xapi_vbd.ml, plug
            raise UsageError(f'the VM {word} is an HVM guest, which takes no read-only disk (say '
                             'mode=rw, then detach keeps the disk; or extract it to a file)')
        if mode == 'RW' and not self.options['force'] and any(
                each.vdi['uuid'] == disk.uuid or each.name == disk.title
                for each in self.pool.disks(vm)):
            raise UsageError(f'the VM {word} has the original of this disk, or one of its name: it '
                             'could confuse their file systems (choose another VM, or force=yes)')
        free = self.pool.call('VM.get_allowed_VBD_devices', vm.ref)
        if not free:
            raise UsageError(f'the VM {word} has no device left for a disk')
        log(f'  attached: to {word} as {device_name("", free[0])}, {mode}')
        return target._replace(attach=vm, device=free[0], mode=mode)

    def verify(self, chosen: Chosen):
        """Verify what is to be restored. Raise Damaged."""
        file = basename(chosen.path)
        proved = Verifier(self.limit).prove_in(chosen.backup, file).proved
        log(f'verified {file}: {PROVED[proved]}')

    def restore(self, chosen: Chosen, target: Target):
        """Restore as planned, and log what was made."""
        xe = self.xe
        with self.restoring(target.name, True) as record:
            uuid = self.put(chosen, target, record)
            check_signals()
            # An import succeeds if storage keeps a disk (recorded from xapi 25.33.2 and 26.17.0).
            with tolerating(self.warnings, 'dom0 may still have what was restored (look at it: xe '
                            'vbd-list vdi-uuid=UUID-OF-THE-DISK)'):
                made = self.pool.marked(record.mark)
                self.drop_leaked_vbds(made.vms, made.disks, 'RW')
            if target.attach:
                self.attach(uuid, target)
        kind = 'VM' if chosen.whole else 'disk'
        log(f'restored: the {kind} {target.name} ({uuid})', loud=True)
        if self.options['start']:
            xe.tell('vm-start', uuid=uuid)
            log(f'started: {target.name}')
        if kind == 'disk' and not target.attach:
            log('next: attach it to a VM that is halted',
                f'  {shell_word(xe.program)} vbd-create vm-uuid=UUID-OF-THE-VM vdi-uuid={uuid} '
                'device=0 bootable=true mode=RW type=Disk', loud=True)

    def attach(self, uuid, target: Target):
        """Put a new disk on a VM; plug it in where that runs, marked and written down."""
        vm, mode, tell = target.attach, target.mode, self.xe.tell
        vbd = tell('vbd-create', vm_uuid=vm.uuid, vdi_uuid=uuid, device=target.device, mode=mode,
                   type='Disk', bootable='false')
        if vm.record['power_state'] == 'Running':
            record = LOOK_RECORD(self.store.root, uuid)
            words = (f'attached: {target.name} ({uuid}), {mode}, to the VM {vm.name} since '
                     f'{now():%Y-%m-%d %H:%M} (to end that: detach {uuid})')
            try:
                tell('vdi-param-set', uuid=uuid,
                     **{'other-config:' + LOOK: f'{uuid} {mode} {vm.ref}'})
                with tolerating(self.warnings, 'not written down that the disk is attached'):
                    write_whole(record, encoded(words))
                tell('vbd-plug', uuid=vbd)
            except CommandFailed:
                tell('vbd-destroy', uuid=vbd)          # so that the disk is taken back
                remove(record)
                raise
            log(words, loud=True)


def run_restore(line: CommandLine):
    """The command `restore`; return the exit status. Raise VmBackupError, OSError, Interrupted."""
    sources = Sources(line)
    if bool(line.word) == bool(line.only):
        raise UsageError('usage: VmBackup.py restore <vm|uuid|backup|file> [options] (or vm= in '
                         'its place)')
    date, plan = line.options['date'], Plan()
    if line.word:
        found = sources.find(selector(line.word).text, date)
    else:
        plan = sources.select(sources.config)
        for text in plan.errors:
            raise UsageError(text)
        if line.options['name'] and len(plan.jobs) > 1:
            raise UsageError(f'{len(plan.jobs)} VMs cannot all get one name (leave out name=)')
    failed = Errors(plan.failures)
    with Pool.connect(line) as pool:
        restorer = Restorer(pool, sources, line.options)
        if line.word:
            restorer.run(found)
        for job in plan.jobs:
            check_signals()
            with tolerating(failed, job.vm.ref):
                restorer.run(sources.of_backup(sources.newest([job.vm.saved], date)))
    return verdict_of(failed, restorer.warnings).status


class TestRestore(Run):
    """`test-restore`: restores backups, proves them and destroys what was restored."""
    done = '{0.method} {0.name} - ***{1}*** t:{2}'

    def run(self, word, restorer: Restorer):
        """Test one backup of each VM chosen, or that of a path. Raise UsageError, OSError."""
        sources = restorer.sources
        if '/' in word and names_file(word):
            backup = sources.find(word, '')[0].backup
            name = backup.manifest.name or basename(dirname(backup.path))
            chosen = [Job('', Vm(backup.path, backup.manifest.uuid, name, {}, backup), 1, name)]
        else:
            rule = selector(word)._replace(method='vm')
            chosen = sources.select(self.config._replace(rules=[rule])).jobs
        if not chosen:
            raise UsageError(f'no backup of a VM {word} in {sources.store.root}')
        restorer.warnings = self.warnings
        restorer.end_killed()
        self.turns = [Turn(job._replace(method='test-restore', shown=job.vm.name))
                      for job in chosen]
        for turn in self.turns:
            check_signals()
            restorer.warnings = turn.warnings
            self.attempt(turn, lambda: self.test(turn, restorer))

    def test(self, turn: Turn, restorer: Restorer):
        """Test the Backup, or the newest good one of the History; record how that ended if it was
        tried and no signal came."""
        elapsed, when, fault = stopwatch(), iso(now()), ''
        result = {}            # type: Record
        try:
            backup = turn.job.vm.saved
            if isinstance(backup, History):
                backup = restorer.sources.newest([backup.as_it_is()])
            for chosen in restorer.sources.of_backup(backup):
                target = restorer.plan(chosen, f'{turn.job.vm.name}-test-{random_digits():.8}')
                result['sr'] = target.sr['name_label']
                if chosen.form != '.xva':              # those checksums xapi compares
                    restorer.verify(chosen)
                with restorer.restoring(target.name, False) as record:
                    restorer.put(chosen, target, record)
                check_signals()
                turn.size += size_of(chosen.path)
                log(f'proved: {chosen.path} can be restored ({elapsed():.0f} s)')
        except (VmBackupError, OSError) as error:
            fault = printable(explain(error))
            if result or isinstance(error, (Damaged, CommandFailed)):
                result['fault'] = fault
        if result:
            with tolerating(turn.warnings, 'the result is not recorded'):
                add_to_manifest(backup, test_restore={
                    **result, 'when': when, 'seconds': int(elapsed())})
        if fault:
            raise BackupFailed('TEST-RESTORE-FAIL', fault)


def run_test_restore(line: CommandLine):
    """The command `test-restore`; return the exit status. Raise VmBackupError, OSError."""
    sources = Sources(line)
    test = TestRestore(sources.config)
    be_gentle(False)
    with test.until_ended(), Pool.connect(line) as pool:
        test.run(line.word, Restorer(pool, sources, dict(line.options, network='none')))
    test.report_end('test-restore ')
    return test.verdict().status


# ----------------------------------------------------------------------------------------------
# 22. Disks: extract, detach: one disk of a backup
# ----------------------------------------------------------------------------------------------
# To extract one no pool is needed. What is on it is looked at, never mounted: MBR and GPT as the
# UEFI specification has them (chapter 5), file systems by what blkid and file(1) know them by.

SYSTEMS = (                # name, where its magic is, that, and what mount needs; None: no mount
    ('ext2/3/4', 1080, b'\x53\xef', ',noload'), ('xfs', 0, b'XFSB', ',norecovery,nouuid'),
    ('NTFS', 3, b'NTFS    ', ''), ('FAT32', 82, b'FAT32', ''), ('LVM', 536, b'LVM2 001', None),
    ('LUKS', 0, b'LUKS', None), ('a partition table', 510, b'\x55\xaa', None),
    ('unknown', 0, b'', None))


def system_at(handle, begin):
    """Return what begins at that byte, and what mount needs for it."""
    return next((name, more) for name, at, magic, more in SYSTEMS
                if pread(handle, len(magic), begin + at) == magic)


def partitions(handle):
    """Return the kind of a disk's partition table, 'no' for none, and begin and bytes of each
    partition in it, and of the tables of further ones, which `losetup -P` finds."""
    head = pread(handle, 2 * BLOCK, 0).ljust(2 * BLOCK, b'\0')
    end = fstat(handle).st_size // BLOCK
    found = []                 # type: List[Tuple[int, int]]   # in sectors
    if head[BLOCK:BLOCK + 8] == b'EFI PART':
        kind = 'GPT'
        table_at, = struct.unpack_from('<Q', head, BLOCK + 72)
        table = pread(handle, 128 * 128, min(end, table_at) * BLOCK)       # entries of bytes
        for begin, last in struct.iter_unpack('<32xQQ80x', table[:len(table) // 128 * 128]):
            if 0 < begin <= last < end:                # else it is not used, or a lie
                found.append((begin, last - begin + 1))
    elif system_at(handle, 0)[0] == 'a partition table':
        kind = 'MBR'
        found = [each for each in struct.iter_unpack('<8xII', head[446:510]) if each[1]]
    else:
        return 'no', [(0, fstat(handle).st_size)]
    return kind, [(begin * BLOCK, size * BLOCK) for begin, size in found]


def tell_partitions(path):
    """Log what is on a disk that was extracted, and how to look inside. Raise OSError."""
    file = shell_word(path)
    with reading(path) as stream:
        handle = stream.fileno()
        kind, found = partitions(handle)
        log(f'  {kind} partition table')
        for number, (begin, size) in enumerate(found, 1):
            name, more = system_at(handle, begin)
            log(f'  {number}: {human_size(size)} at byte {begin}: {name}')
            if more is not None:
                log(f'     mount -o ro,loop,offset={begin},sizelimit={size}{more} {file} /mnt')
    log(f'  all of it: losetup -P -r -f --show {file} (LVM: then vgchange -ay)',
        '  on a workstation only: in dom0 it may attack the kernel, or LVM takes its volume groups')


def allocated(chosen: Chosen):
    """Return the bytes that a disk takes in a sparse file, None where only reading all tells."""
    with opened(chosen.path, chosen.form) as reader:
        if reader.packed:
            return None
        if chosen.form == '.xva':
            return sum(len(data) for _, data in reader.disk(chosen.disk.id, True))
    return min(chosen.disk.size, size_of(chosen.path, True))


def hashing(pieces: Located, digest):
    """Yield pieces of a disk, and have the digest be that of all its bytes."""
    at = 0
    for begin, data in pieces:
        for piece in itertools.chain(zeros(begin - at), [data]):
            digest.update(piece)
        at = begin + len(data)
        yield begin, data


def extract(chosen: Chosen, write: Callable[[Located], None], config: Config, hashed):
    """Have a disk's pieces written as they are checked; return its bytes, and if `hashed` their
    SHA-256, in words. Raise Damaged, CommandFailed, OSError."""
    import hashlib
    path, _, backup, disk = chosen
    digest = hashlib.sha256()

    def read(form, reader):
        pieces = disk_in(form, reader, disk.size, disk.id)
        write(hashing(pieces, digest) if hashed else pieces)
        if form != '.xva':
            check_digest(backup, basename(path), reader.digest.hexdigest())
    read_watched(path, config.settings.stall_timeout * 60, 'extracted', read)
    return f'{disk.size} bytes' + (f', SHA-256 {digest.hexdigest()}' if hashed else '')


def extract_to_file(chosen: Chosen, path, config: Config, hashed):
    """Write a disk to a new file, and log what is on it. Raise as `extract`, and TargetError."""
    Signals.current.at_once = False                    # the new file is to go
    with new_file(path) as stream:
        need, (_, free) = allocated(chosen), room_in(dirname(path))
        if need and need > free:
            raise TargetError(reason_of(OSError(ENOSPC, '', path),
                                        f'; the disk needs {human_size(need)}'))
        told = extract(chosen, lambda pieces: write_sparse(stream, pieces), config, hashed)
    log(f'extracted: {path}, {told}, on disk {human_size(size_of(path, True))}', loud=True)
    tell_partitions(path)


def run_extract(line: CommandLine):
    """The command `extract`; return the exit status. Raise VmBackupError, OSError, Interrupted."""
    sources, options = Sources(line), line.options
    disks = []                 # type: List[Chosen]
    for chosen in sources.find(selector(line.word).text, options['date']):
        disks += disks_in(chosen)
    word, target, hashed = map(options.get, ('disk', 'to', 'sha256'))
    if not (word or target):
        log(*['  disk: ' + disk_in_words(each) for each in disks], loud=True)
        return SUCCESS.status
    if not target or (word, target) == ('all', '-'):
        raise UsageError('where to? (to=FILE, to=- for standard output, of all to=DIRECTORY)')
    disks = choose_disks(word, disks)
    path = abspath(native(target))
    if word == 'all':
        make_directory(path)
    for each in disks:
        if target == '-':
            told = extract(each, lambda pieces: deque(map(
                Console.current.emit, continuous(pieces)), 0), sources.config, hashed)
            log('extracted: ' + told, loud=True)
        else:
            file = f'/{path_part(each.disk.name)}.raw' if word == 'all' else ''
            extract_to_file(each, path + file, sources.config, hashed)
    return SUCCESS.status


def run_detach(line: CommandLine):
    """The command `detach`; return the exit status. Raise VmBackupError, OSError."""
    store, uuid, xe = Sources(line).store, line.word, Xe(numbered=False)
    with Pool.connect(line) as pool:
        disks = {disk['uuid']: disk for disk in pool.records('VDI').values()
                 if disk['other_config'].get(LOOK, '').startswith(uuid)}       # its copies, too
        if uuid not in disks:
            raise UsageError(f'no attached disk has this uuid: {uuid} (list and status tell of '
                             'them, until .look-UUID.txt in backup_dir is deleted)')
        vbds = [pool.record('VBD', ref) for ref in disks[uuid]['VBDs']]
        mark = disks[uuid]['other_config'][LOOK]
        for vbd in vbds:
            if vbd['VM'] in mark and vbd['currently_attached']:
                xe.tell('vbd-unplug', uuid=vbd['uuid'])
        remove(LOOK_RECORD(store.root, uuid))
        uses = [f'{uuid} {vbd["mode"]} {vbd["VM"]}' for vbd in vbds]
        end = 'kept, as it could be written'
        if ' RO ' in mark:
            end = 'kept, as it has another user, a snapshot or a copy'
            if uses == [mark] and len(disks) == 1:
                xe.tell('vdi-destroy', uuid=uuid)      # with its VBD (xapi: xapi_vdi.ml)
                end = 'destroyed'
    log(f'detached: {uuid}, and {end}', loud=True)
    return SUCCESS.status


# ----------------------------------------------------------------------------------------------
# 23. Checks: status, check-config, test-mail, test-ping
# ----------------------------------------------------------------------------------------------

STATES = ('OK', 'WARNING', 'CRITICAL', 'UNKNOWN')      # of a monitoring plug-in, by exit status
FIGURES = ' | vms={vms} good={good} size={size_bytes}B{oldest} leftovers={leftovers}'
OLDEST = ' oldest={oldest_seconds}s;;{max_age_seconds}'    # if there is any good backup


def plugin_line(state, text, figures=''):
    """Return a plug-in's line, which no text can end (Nagios: text | 'label'=value;warn;crit)."""
    clean = encoded(printable(text)).decode('utf-8', 'replace').replace('|', '\\x7c')
    line = encoded(f'VMBACKUP {state} - {clean}')[:3900]       # Nagios takes 4096, with the figures
    return line.decode('utf-8', 'ignore') + figures + '\n'


class StatusCheck:
    """`status`: whether the backups of a config are as they should be. It locks nothing."""
    def __init__(self, max_age):
        self.max_age = max_age     # as the administrator wrote it
        self.moment = now().timestamp()
        if not match(r'[1-9][0-9]{0,5}[mhd]\Z', max_age):
            raise UsageError(f'max_age invalid (expected 90m, 26h or 2d) -> {max_age}')
        self.limit = int(max_age[:-1]) * {'m': 60, 'h': 3600, 'd': 86400}[max_age[-1]]     # seconds
        self.found = {'CRITICAL': [], 'WARNING': [], 'OK': []}     # type: Dict[str, List[str]]
        self.figures = {'max_age_seconds': self.limit, 'size_bytes': 0}
        self.vms = []          # type: List[Record]    # as --json prints them

    def check(self, line: CommandLine):
        """Judge all that there is. Raise VmBackupError, OSError where that cannot be known."""
        store = open_config(line)
        store.check()
        try:
            store.stocked()
        except TargetError as empty:
            self.found['CRITICAL'].append(str(empty))
        histories = store.histories()
        self.check_backups(select_histories(histories, store.config))
        self.check_run(store)
        left = store.leftovers(histories, self.limit)
        self.figures['leftovers'] = sum(map(len, left.values()))
        self.found['WARNING'] += [f'left over: {abbreviate(paths)} ({remedy})'
                                  for remedy, paths in left.items()]

    def check_backups(self, plan: Plan):
        """Judge the newest good backup of each VM, the oldest first."""
        for rule in plan.broken + plan.invalid:
            raise ConfigError(f'invalid regex or retention: {rule} ({rule.where})')
        critical, warnings, fine = self.found.values()
        critical += [text[6:] for text in plan.errors if text.startswith('ERROR vm=')]
        warnings += plan.warnings
        pool = own_pool()
        found = [(Backup(''), Vm(failure.name, '', failure.name, {})) for failure in plan.failures]
        for job in plan.jobs:
            backups = job.vm.saved.everything()        # the newest first
            if backups and backups[0].outcome == 'damaged':
                warnings.append(f'the newest backup of {job.vm.name} is damaged')
            good = [backup for backup in backups if backup.outcome == 'good']
            found.append(((*of_own_pool(good), Backup(''))[0], job.vm))
        found.sort(key=lambda each: (each[0].when, each[1].name))
        # Of a VM that was renamed, the newer one.
        vms = {vm.uuid or vm.ref: (last, vm) for last, vm in found}
        bad = []               # type: List[str]
        for last, vm in vms.values():
            told = last.manifest
            other = Manifest(uuid=vm.uuid or told.uuid, pool=pool or told.pool).other(last)
            if other:
                warnings.append(f'the newest good backup of {vm.name} is {other}')
            self.figures['size_bytes'] += sum(last.sizes.values())
            seconds = self.moment - last.when
            wrong = 'time unknown' if last.path else 'none'
            if last.when and seconds > -86400:         # else it proves nothing
                self.figures['oldest_seconds'] = max(
                    round(seconds), self.figures.get('oldest_seconds', 0))
                wrong = age(last.started) if seconds > self.limit else ''
            if wrong:
                bad.append(f'{vm.name} ({wrong})')
            self.vms.append(dict(name=vm.name, uuid=vm.uuid, state='CRITICAL' if wrong else 'OK',
                                 path=last.path, when=last.started))
        number = len(vms) - len(bad)
        wanted = f'good backup within {self.max_age}'
        if bad or not vms:
            critical.append(f'no {wanted}: ' + (abbreviate(bad) or 'of any VM'))
        fine.append(f'{number} of {len(vms)} VMs have a {wanted}')
        self.figures.update(vms=len(vms), good=number)

    def check_run(self, store: Store):
        """Judge the last run, by its record or, if that is newer, by the status log."""
        name, runs = run_name(store.config.path), {}       # type: str, Dict[str, LastRun]
        with tolerating(self.found['WARNING'], 'cannot tell how runs ended'):
            runs = store.runs()
            self.found['OK'] += store.looks()
        last, logged = runs.pop(name, None), last_logged(store.config.settings.status_log)
        goes_on = last and not last.ended and is_in_work(last)
        # Others may have the same status log, as runs of some of the VMs have.
        others = [run.begun for run in runs.values()]
        if logged and not goes_on and logged.begun not in others:
            last = max(filter(None, (logged, last)), key=lambda run: run.ended or run.begun)
        if not last:
            return
        late = self.moment - seconds_of(last.begun) > self.limit
        since = last.begun[:16].replace('T', ' ')
        state, text = 'OK', f'running since {since}'
        if last.ended:
            state = 'WARNING' if last.result.startswith('ERROR') else 'OK'
            text = f'last run, of {since}: {last.result}'
        elif not goes_on:
            state, text = 'WARNING', f'the last run, of {since}, was interrupted'
        self.found['CRITICAL' if late else state].append(text)
        if last.failed:
            self.found['OK'].append('failed in it: ' + last.failed)


def run_status(line: CommandLine):
    """The command `status`; return the exit status. Raise VmBackupError, OSError, Interrupted."""
    status = StatusCheck(line.options['max_age'] or '26h')
    line.options['ignore_extra_keys'] = 'yes'
    bounded('backup_dir', status.check, line, limit=STATUS_TIMEOUT)
    told = [dict(state=state, text=text) for state, texts in status.found.items() for text in texts]
    worst, figures = told[0]['state'], status.figures
    if not Console.current.tell(state=worst, findings=told, vms=status.vms, figures=figures):
        oldest = OLDEST.format(**figures) if 'oldest_seconds' in figures else ''
        Console.current.write(plugin_line(worst, '; '.join(each['text'] for each in told),
                                          FIGURES.format(oldest=oldest, **figures)))
    return STATES.index(worst)


def run_check_config(line: CommandLine):
    """The command `check-config`; return the exit status. Raise VmBackupError."""
    config = read_config(line)
    settings = config.settings
    for name, (text, place) in config.given.items():
        log(f'  {name:23s} = {text}   ({place})')
    for rule in config.rules:
        log(f'  {rule}   ({rule.where})')
    errors = [*config.unexpected, *config.errors.values()]
    warnings = []              # type: List[str]
    for text in select(config.rules, [], 1).messages:
        if ' - invalid regex: ' in text:
            (errors if text.startswith('***ERROR') else warnings).append(text)
    if not any(rule.method == 'vm-export' or rule.method == 'vdi-export' and rule.text
               for rule in config.rules):
        errors.append('ERROR no line vm-export= or vdi-export=: nothing would be backed up')
    if settings.mail_smtp_password_file:
        with tolerating(errors, 'ERROR: config mail_smtp_password_file'):
            read_password_file(settings.mail_smtp_password_file, warnings.append)
    errors += program_problems(settings)
    for path, shares in (config.path, True), (dirname(settings.status_log), False):
        wrong = bounded('the file system', changeable, path, shares)
        if wrong:
            warnings.append(f'***WARNING - {path}: {wrong}')
    log(*config.notes, *errors, *warnings)
    if settings.vdi_export_format == 'vhd':
        log(f'***NOTE - vdi_export_format=vhd: {TOO_LARGE} (auto takes raw for those)')
    log('***NOTE - only a preview tells which VMs are meant, and tries password and backup_dir')
    if errors:
        log('ERROR check-config: errors found (see above)')
    else:
        log('SUCCESS check-config: no errors' + (WARNINGS_FOUND if warnings else ''))
    return verdict_of(errors, warnings).status


def run_test_mail(line: CommandLine):
    """The command `test-mail`; return the exit status. Raise VmBackupError."""
    line.options['ignore_extra_keys'] = 'yes'
    settings = open_config(line).config.settings
    if not settings.mail_to:
        raise ConfigError(f'mail_to is empty: nobody would get mail (set it in {line.path})')
    log('mail to {1} through {0.mail_smtp_server} port {0.mail_smtp_port}, encryption: {2}, '
        'account: {3}'.format(settings, ', '.join(settings.mail_to), security_of(settings),
                              settings.mail_smtp_user or 'none'))
    if not send_mail(settings, 'test-mail', ['This is a test: nothing was backed up.'], []):
        log('ERROR test-mail: the server did not accept it for every address (see above)')
        return ERROR.status
    log('SUCCESS test-mail: the server accepted it; check that it arrives')
    return SUCCESS.status


def run_test_ping(line: CommandLine):
    """The command `test-ping`; return the exit status. Raise VmBackupError."""
    config = open_config(line).config
    if not config.settings.ping_url:
        raise ConfigError(f'ping_url is empty: nobody would be told (set it in {line.path})')
    if ping(config, 'success', ['This is a test: nothing was backed up.']):
        raise VmBackupError('test-ping: it failed (see above)')
    log('SUCCESS test-ping: check what the service shows')
    return SUCCESS.status


# ----------------------------------------------------------------------------------------------
# 24. Command line: help texts, main
# ----------------------------------------------------------------------------------------------
# COMMANDS_HELP is the one source of every command's words, options and help. A line that begins
# with no blank begins a command: <wanted>, [perhaps], several... Lines of four blanks have its
# options: a flag, NAME=<any text>, NAME=this|that; KEY=<value> stands for all keys of the config.

USAGE = """Usage:
{program}  COMMAND [WORDS] [OPTIONS]
{program}  <password> <config-file|vm-selector> [preview] [other optional params]

Also: VmBackup.py help    - for the commands
  or: VmBackup.py config  - for a config file to begin with, with all its keys
  or: VmBackup.py example - for some simple example usage
"""

MAIN_HELP = """\
VmBackup.py {version}: backs up, verifies and restores VMs of XenServer and XCP-ng.

  VmBackup.py COMMAND [WORDS] [OPTIONS]

{commands}

VmBackup.py COMMAND --help tells all about one. An option is NAME=VALUE,
--NAME=VALUE or --NAME VALUE, a flag NAME or --NAME. 3.25's form works, too:
  VmBackup.py <password|password-file|local> <config-file|vm-selector> [preview]

Examples:
  VmBackup.py config > /root/night.cfg          a config file to begin with
  VmBackup.py preview /root/night.cfg           what a night would do
  VmBackup.py backup /root/night.cfg quiet      a night, as from cron
  VmBackup.py restore web from=/root/night.cfg  the VM web, as a new one

Exit status: 0 all good, 1 warnings only, 2 errors, 128+N ended by signal N.
"""

OPTIONS_HELP = {           # of several commands
    'login': """\
    password-file=<file>   log in with a password file (default: no password,
                           through the socket of this host)
    password-stdin         log in with a password from standard input""",
    'config': """\
    KEY=<value>            a setting of the config file, in its place, such as
                           compress=zstd or backup_dir=/mnt/backups (all, and
                           what they mean: VmBackup.py config)
    ignore_extra_keys      accept a config file with unknown keys""",
    'quiet': """\
    quiet                  print only warnings, errors, and how it ended""",
    'only': """\
    vm=<vm-selector>       of the VMs that are selected only these (default: all):
                           a name, a pattern, tag:TAG or uuid:UUID; may be
                           repeated""",
    'json': """\
    json                   print JSON, also when it fails (see the README)""",
    'from': """\
    from=<config-file|backup_dir>
                           where the backups are
                           (default: {backup_dir})
    sr=<name|uuid>         where the disks go (default: the pool's default SR)"""}

COMMANDS_HELP = """\
backup <config-file|vm-selector>...
  back up the VMs that a config or vm-selectors choose

  A vm-selector is a name, a pattern (a Python regular expression that matches
  from the front of the name), tag:TAG or uuid:UUID. It means vm-export=SELECTOR:
  the whole VM, as an XVA. vdi-export=SELECTOR takes images of its disks instead,
  of the boot disk unless vdi_disks= says which. vm-export=NAME also names a VM
  that is called as a command or an option. Without a config file all settings
  are the defaults, such as backup_dir={{backup_dir}}.

    preview                only show what would be done; changes nothing
    json                   of a preview: print JSON
{only}
{quiet}
{config}
{login}

  VmBackup.py backup /root/night.cfg quiet
  VmBackup.py backup /root/night.cfg vm=web --compress zstd

preview <config-file|vm-selector>...
  show what a backup would do, and what is wrong

{only}
{quiet}
{json}
{config}
{login}

  VmBackup.py preview /root/night.cfg
  VmBackup.py preview 'PROD.*' tag:devel

list <config-file|backup_dir>
  list the backups of each VM, and whether they are good

{only}
{json}
    format=table|json      the same (default: table)
{config}

  VmBackup.py list /root/night.cfg
  VmBackup.py list /mnt/backups vm=web --json

  Exit status: 0 every VM has a good backup, 1 the newest backup of some VM is
  not good, 2 some VM has no good backup.

verify <config-file|backup_dir|backup|file>
  check that backups are whole and unchanged

{only}
    backups=newest|all     of each VM the newest one (the default), or all
{quiet}
{json}
{config}

  VmBackup.py verify /root/night.cfg vm=db
  VmBackup.py verify /mnt/backups backups=all

restore [<vm|uuid|backup|file>]
  bring back a VM or a disk, as a new one

    preview                only show what would be done; changes nothing
    date=<2026-03-01>      the newest backup of that time, whose beginning is
                           enough (default: the newest one)
{from}
    vm=<vm-selector>       in place of a VM's name: the VMs of the config that
                           these choose
    name=<new-name>        of the VM or disk (default: its own, if that is free)
    preserve               keep the MAC addresses; refused while the VM is there
    start                  start the VM
    network=<none|name|uuid|OLD:NEW>
                           where its VIFs go: none (it has none then), or one
                           network for all, or NEW for those in OLD (default:
                           where the backup has them)
    disk=<device|position|name|uuid|all>
                           only this disk of the backup (see extract)
    attach=<vm|uuid>       a disk: put it on this VM, too; one that runs can only
                           read it (see detach), a halted one write it
    mode=ro|rw             of attach=; HVM guests, as most are, take no ro
    force                  write it also beside the original disk
    verify=yes|no          no: do not verify the backup first (default: yes)
{quiet}
{config}
{login}

  VmBackup.py restore web from=/root/night.cfg preview
  VmBackup.py restore /mnt/backups/web/backup-2026-03-01-000000 name=web-old

extract <vm|uuid|backup|file>
  write one disk of a backup to a file, or list its disks

  The disk becomes a raw image, sparse and checked; no pool is needed. Without
  disk= and to= the disks are listed. Space is looked at first. A file that is
  there is never written over; until all is right the name ends in .partial.

    disk=<device|position|name|uuid|all>
                           which disk, or all of them (default: the only one)
    to=<file|directory|->  a new file, with disk=all a directory for them, or -
                           for standard output
    sha256                 tell the SHA-256 of the image
    date=<2026-03-01>      the newest backup of that time (default: the newest)
    from=<config-file|backup_dir>
                           where the backups are
                           (default: {{backup_dir}})
{config}

  VmBackup.py extract web from=/root/night.cfg
  VmBackup.py extract web from=/root/night.cfg disk=xvdb to=/scratch/web-b.raw

detach <uuid>
  take a disk off a running VM that restore has put there

  It is destroyed, too, if it could only be read there, and has no other user,
  snapshot or copy; otherwise it is kept. `list` tells the uuids.

    from=<config-file|backup_dir>
                           where it is recorded (default: {{backup_dir}})
{quiet}
{config}
{login}

  VmBackup.py detach 4d9880f5-76b1-4b26-9676-af535f6e602f
  VmBackup.py detach 4d9880f5-76b1-4b26-9676-af535f6e602f from=/root/night.cfg

test-restore <vm-selector|backup>
  prove that backups can be restored; removes it again

  Of each VM that the selector chooses the newest good backup is restored, under a
  name of its own, verified, and removed again. Nothing is started.

{from}
{quiet}
{config}
{login}

  VmBackup.py test-restore web from=/root/night.cfg
  VmBackup.py test-restore '.*' from=/mnt/backups sr=scratch quiet

stream <vm>
  write a VM's archive to standard output, for a pipe

  It is verified on its way, and cut off where it is damaged. The log goes to
  standard error. What keeps the archive has to heed the exit status, as in the
  README's examples with ssh, restic, borg and rclone.

    from=<config-file>     whose settings count, such as exclude-disk, and whose
                           backup_dir records the snapshot (default: this host)
{quiet}
{config}
{login}

  VmBackup.py stream web quiet > web.xva
  VmBackup.py stream web from=/root/night.cfg compress=zstd > /mnt/usb/web.xva.zst

  Exit status: 0 the archive is whole, 1 its snapshot may be left in the pool,
  2 it is not whole, 128+N ended by signal N.

prune <config-file|backup>
  delete backups that no rule of the config keeps

    preview                only show what would be deleted
{only}
                           (with vm=uuid:UUID also backups of that VM that lie
                           in the directories of others)
    pool=<uuid>            only backups of that pool's VMs that lie in
                           directories of another pool's VMs
{quiet}
{config}

  VmBackup.py prune /root/night.cfg preview
  VmBackup.py prune /root/night.cfg keep_last=2 vm=web

protect <backup>...
  keep backups for ever: no rule counts or deletes them

  VmBackup.py protect /mnt/backups/web/backup-2026-03-01-000000
  VmBackup.py protect /mnt/backups/*/backup-2026-03-01-*

unprotect <backup>...
  let the rules have protected backups again

  VmBackup.py unprotect /mnt/backups/web/backup-2026-03-01-000000
  VmBackup.py unprotect /mnt/backups/*/backup-2026-03-01-*

status <config-file>
  a check for Nagios, Icinga and Checkmk: is all well?

  That is: each VM that the config chooses has a good backup, the last run ended
  well, and nothing is left over.

    max_age=<26h>          how old a backup may be: 90m, 26h or 2d (default: 26h)
{only}
{json}
{config}

  VmBackup.py status /root/night.cfg
  VmBackup.py status /root/night.cfg max_age=8d vm=tag:weekly

  Exit status: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.

check-config <config-file>
  show all settings, and what is wrong with them

  It does not log in: which VMs are meant, and whether backup_dir is there, a
  preview tells.

{config}

  VmBackup.py check-config /root/night.cfg
  VmBackup.py check-config /root/night.cfg parallel=4

test-mail <config-file>
  send a mail as a run would

{config}

  VmBackup.py test-mail /root/night.cfg
  VmBackup.py test-mail /root/night.cfg mail_to=me@example.com

test-ping <config-file>
  tell ping_url that a run ended well
{config}

  VmBackup.py test-ping /root/night.cfg
  VmBackup.py test-ping /root/night.cfg ping_body=summary

create-password-file <file>
  write a password file, which only its owner can read

  The password is asked for on a terminal, or read from standard input. The file
  has it in base64: obscured, not encrypted.

  VmBackup.py create-password-file /root/VmBackup.pass
  VmBackup.py backup /root/night.cfg password-file=/root/VmBackup.pass

config [<config-file>]
  print a config file: all keys, their values and meanings

  Without a file: the defaults, with examples of lines that choose VMs. All about
  one key: VmBackup.py help KEY.

{config}

  VmBackup.py config > /root/night.cfg
  VmBackup.py config /root/night.cfg parallel=2 > /root/new.cfg

example
  print some examples

help [<command>|<key>]
  print this, or all about a command
"""

CONFIG_HEAD = """\
# Usage-config-file: lines are key=value; a # begins a comment line.
# VmBackup.py preview <this file> shows what it means, VmBackup.py help KEY all about a key.
"""

CONFIG_REST = """
#### all other keys: those behind a # have their defaults ####
"""

CONFIG_RULES = """
#### which VMs: a line each; the last definition of a VM wins ####
# A name of letters, digits, blanks, - and _ is that one VM. Anything else is a Python regular
# expression that matches from the front of the name (a VM of exactly that name is meant too).
# NAME:N keeps N backups instead of max_backups. tag:TAG and uuid:UUID stand for names, too.
"""

SAMPLE_RULES = """
# never backed up, whatever other lines say
#exclude=PROD-WinDomainController
#exclude=TEMP-.*

# vm-export: the whole VM
vm-export=my-vm-name
#vm-export=my-third-vm:3
#vm-export=PROD.*
#vm-export=DEV.*:2

# vdi-export: the boot disk only; wins over vm-export lines for the same VM
#vdi-export=my-second-vm

# disks that no backup has
#exclude-disk=.*swap
"""

EXAMPLES = """Usage-examples:

# config file
VmBackup.py backup weekend.cfg

# of its VMs only one, now
VmBackup.py backup weekend.cfg vm=DEV-mySql

# single VM name, which is case sensitive
VmBackup.py backup DEV-mySql

# single VM name using vdi-export instead of vm-export
VmBackup.py backup vdi-export=DEV-mySql

# single VM name with spaces in name
VmBackup.py backup "DEV mySql"

# VM regex - which may be more than one VM
VmBackup.py backup "DEV-my.*"

# all VMs in pool; all but one
VmBackup.py backup ".*"
VmBackup.py backup "(?!DEV-mySql$).*"

# a line of /etc/cron.d, which mails what cron gets
10 1 * * * root /opt/VmBackup/VmBackup.py backup /root/weekend.cfg quiet

# what is there, is it good, is all well, may it be deleted
VmBackup.py list weekend.cfg
VmBackup.py verify weekend.cfg vm=DEV-mySql
VmBackup.py status weekend.cfg
VmBackup.py prune weekend.cfg preview

# a VM back, beside the original
VmBackup.py restore DEV-mySql from=weekend.cfg name=DEV-mySql-2

# create password file; use it, with a config file
VmBackup.py create-password-file /root/VmBackup.pass
VmBackup.py backup monthly.cfg --password-file /root/VmBackup.pass

# the same as in 3.25, with the password of root
VmBackup.py 'PASSWORD' weekend.cfg
VmBackup.py 'PASSWORD' create-password-file=/root/VmBackup.pass
VmBackup.py /root/VmBackup.pass monthly.cfg preview
"""

SHOWN_KEYS = dict(             # the keys that matter most, and their values in an example
    backup_dir='/path/to/backupspace', max_backups='3', compress='False', pool_db_backup='0',
    status_log='/path/to/backupspace/logs/status.log', mail_to='', mail_smtp_server='localhost')
FORMER_COMMANDS = ('restore', 'test-restore', 'create-password-file')    # of 5.0: PASSWORD NAME=...
SWITCH = 'yes, no, true, false'  # what a flag may have behind a =
KEY = {key.name: key for key in KEYS}


class Command(NamedTuple):
    """A command."""
    name: str
    words: str                 # that it takes
    help: str                  # of several lines, the first of which is what it does
    options: Dict[str, Key]    # its own, and those of the config file

    def usage(self):
        """Return its words and options in one line."""
        return f'{self.name} {self.words} [options]'.replace('  ', ' ')

    def error(self, text, remark=''):
        """Return what is wrong, and where help is."""
        return UsageError(f'{text} ({remark}see VmBackup.py help {self.name})')

    def value(self, name, text):
        """Return the value of an option, or of a key of the config file. Raise UsageError."""
        key = self.options[name]
        is_flag = key.allowed == SWITCH
        try:
            value = key.parse(text)
            if not text and name not in KEY:
                raise ValueError('is empty')
        except ValueError as error:                    # a flag's may be a password
            shown = '' if is_flag else public(name, text)
            raise self.error(f'invalid value: {name}={shown}', f'{error}{key.hint()}; ')
        if is_flag:
            return 'yes' if value in ('yes', 'true') else ''
        return text if key is KEY.get(name) else value


def read_commands():
    """Return the commands that COMMANDS_HELP tells of."""
    commands = {}
    for part in re.split(r'\n\n(?=[a-z])', COMMANDS_HELP.strip('\n')):
        head, _, rest = part.partition('\n')
        name, _, words = head.partition(' ')
        rest = rest.format(**OPTIONS_HELP).format(backup_dir=KEY['backup_dir'].default)
        options = {}           # type: Dict[str, Key]
        for option, allowed in findall(r'(?m)^ {4}([a-z][a-z0-9_-]*|KEY)(?:=(\S+))?(?: |$)', rest):
            option = option.replace('-', '_')
            allowed = allowed.replace('|', ', ') or SWITCH
            options[option] = Key(option, '', '' if allowed.startswith('<') else allowed)
        if options.pop('KEY', None):
            options = {**KEY, **options}
        commands[name] = Command(name, words, sub('^ {2}', '', rest, flags=MULTILINE), options)
    return commands


COMMANDS = read_commands()


def value_text(name, config: Config, comment=''):
    """Return how a config file has a key's value, with that comment. Raise ConfigError."""
    value, place = config.given[name]
    if CONVERSIONS.get(name) in (absolute, ping_address):      # as it is, or no secret
        value = portable(getattr(config.settings, name))
    if not search('[\r\n\ud800-\udfff]', value):       # such as a byte that is no UTF-8
        for text in value, f'"{value}"', f"'{value}'":
            with suppress(ValueError):
                if unquoted(text + comment)[0] == value:
                    return text
    raise ConfigError(f'no config file can hold this: {name}={value} ({place})')


def run_config(line: CommandLine):
    """Print the same config, or one to begin with; return the exit status. Raise ConfigError."""
    config, text = open_config(line).config, CONFIG_HEAD
    for name, sample in SHOWN_KEYS.items():
        key, value = KEY[name], value_text(name, config) if config.asks_for(name) else sample
        meaning = sub('^ +', '# ', key.meaning, flags=MULTILINE)
        text += f'\n{meaning}# (default: {key.default or "empty"}{key.hint()})\n{name}={value}\n'
    rules = ''.join(f'{rule.method}={rule.text}\n' for rule in config.rules)
    text += CONFIG_RULES + (rules if config.path else SAMPLE_RULES) + CONFIG_REST
    for key in KEYS:
        if key.name not in SHOWN_KEYS:
            comment = ' ' + key.comment()
            mark = '' if config.asks_for(key.name) else '#'
            setting = f'{mark}{key.name}={value_text(key.name, config, comment)}'
            text += f'{setting:28s}{comment}\n'
    Console.current.write(text)
    return SUCCESS.status


def run_help(line: CommandLine):
    """The commands `help` and `example`; return the exit status. Raise UsageError."""
    word = line.word or line.command
    shown = '\n'.join(f'  {name:22s}{each.help.splitlines()[0]}' for name, each in COMMANDS.items())
    text = dict(help=MAIN_HELP.format(version=VERSION, commands=shown), example=EXAMPLES,
                version=f'VmBackup.py {VERSION}\n').get(word)
    if word in KEY and word not in COMMANDS:
        key = KEY[word]
        text = f'{word}={key.default} ({key.hint()[2:] or "any text"})\n{key.meaning}'
    if not text:
        if word not in COMMANDS:
            raise UsageError(f'no command: {word}{nearest(word, COMMANDS)} (see VmBackup.py help)')
        text = f'Usage: VmBackup.py {COMMANDS[word].usage()}\n\n{COMMANDS[word].help}\n'
        if 'Exit status' not in text:
            text += '\n' + MAIN_HELP.splitlines()[-1] + '\n'
    Console.current.write(text)
    return SUCCESS.status


RUNS = {'backup': run_backup, 'preview': run_backup, 'list': run_list, 'verify': run_verify,
        'restore': run_restore, 'extract': run_extract, 'detach': run_detach,
        'test-restore': run_test_restore, 'stream': run_stream, 'prune': run_prune,
        'protect': run_protect, 'unprotect': run_protect, 'status': run_status,
        'check-config': run_check_config, 'config': run_config, 'test-mail': run_test_mail,
        'test-ping': run_test_ping, 'create-password-file': run_create_password_file,
        'example': run_help, 'help': run_help}


def misplaced(word, line: Texts):
    """Return what tells of a command that does not come first, and of the line that was meant. A
    first word that is neither a command nor there as a file may be a password."""
    command = COMMANDS[word]
    first, *rest = line
    rest.remove(word)
    meant = [word, *map(shell_word, rest)]
    file = shell_word(first) if names_file(first) else ''
    if not parse_command(command, [word, *rest]).words:
        meant.insert(1, file or command.words)
    elif first not in ('local', *COMMANDS) and 'password_file' in command.options:
        meant.append('password-file=' + (file or 'FILE'))
    if first == 'preview' and first in command.options:
        meant.append(first)
    return UsageError(f'{word} is a command and comes first: VmBackup.py '      # less a secret
                      f'{sub("://[^ ]*", "://...", " ".join(meant))} (a VM that is called so is '
                      f'vm-export={word}, a file ./{word})')


def parse_command(command: Command, line: Texts, *about):
    """Return what the words behind a command and what it is about say, and what is wrong there."""
    rest, words = list(line[1 + len(about):]), list(about)
    options = {name: '' for name, key in command.options.items() if key is not KEY.get(name)}
    keys, only, wrong = {}, [], []     # type: Strings, List[str], List[UsageError]
    known = [name + '=' * (key.allowed != SWITCH) for name, key in command.options.items()]
    while rest:
        word = rest.pop(0)
        dashes, typed, equals, value = match(r'(-*)([^=]*)(=?)(.*)', word, DOTALL).groups()
        name = typed.lower().replace('-', '_')
        key, near = command.options.get(name), nearest(name, known)
        try:
            if word == '--':
                words += rest
                break
            if key and key.allowed == SWITCH and not equals:
                options[name] = 'yes'
            elif key and (equals or dashes):
                if not equals and (not rest or rest[0].startswith('--')):
                    raise command.error(f'{word} needs a value')
                value = command.value(name, value if equals else rest.pop(0))
                (options if name in options else keys)[name] = value
                if name == 'vm':
                    only.append(value)
            elif word in COMMANDS and command.name != 'help' and not wrong:
                raise misplaced(word, line)
            elif (dashes and name or words and near or equals and name.isidentifier() and
                  name not in ('vm_export', 'vdi_export')):
                shown = typed[:1] if dashes == '-' else typed      # what follows may be a password
                raise command.error(f'unknown option: {dashes}{shown}{equals}{near}')
            elif not wrong:                            # else only options count
                words.append(word)
        except UsageError as error:
            wrong.append(error)
    if len(words) > command.words.count('<') and (about or not command.words.endswith('...')):
        wrong.append(command.error(f'one word too many behind {command.name} {command.words}'))
    if not all(words) or command.words.startswith('<') and not words:
        wrong.append(UsageError(f'usage: VmBackup.py {command.usage()} (a missing or empty word)'))
    return CommandLine(command.name, '', tuple(words), options, keys, tuple(only),
                       'run it in dom0, or give password-file=FILE', wrong)


def parse_words(words: Texts):
    """Divide a command line into its parts, among which is what is wrong with it."""
    first, second = [*words, ''][:2]
    name, equals, value = second.partition('=')
    if not equals or name.lower() not in FORMER_COMMANDS:
        name, value = 'backup', second
    if first in COMMANDS and name.lower() != 'create-password-file':
        line = parse_command(COMMANDS[first], words)
        line.options.update({'preview': 'yes'} if first == 'preview' else {})
        return line
    line = parse_command(COMMANDS[name.lower()], words, value)
    if second in COMMANDS:
        line.wrong.insert(0, misplaced(second, words))
    elif not first:
        line.wrong.insert(0, UsageError('the first word (a password, its file or local) is empty'))
    if first == 'local':
        return line
    doubt = nearest(first, COMMANDS, 'did you mean `{}`?')
    if search(r'/|\.\w+\Z', first):
        doubt = 'if a password file was meant: there is no such file'
    return line._replace(password=first, doubt=doubt)


def plain_words(words: Texts):
    """Return a command line as it is, or one that asks for help in any way as `help` ..."""
    if len(words) == 1 and words[0].lower() in ('help', 'example', 'config'):
        return [words[0].lower()]
    before = words[:[*words, '--'].index('--')]
    commands = [word for word in before if word in COMMANDS][:1]
    if {'-h', '--help'}.intersection(map(str.lower, before)):
        return ['help', *commands]
    if words[:1] == ['--version'] or words == ['version']:
        return ['help', 'version']
    if commands and words[0].startswith('--'):
        name = words[0][2:].partition('=')[0].lower().replace('-', '_')
        if name in COMMANDS[commands[0]].options:      # it stands before its command
            index = words.index(commands[0])
            return [*commands, *words[:index], *words[index + 1:]]
    return words


def tell_end(reason, console: Console):
    """Log what ended a command; where nobody can read that, tell the system's log."""
    with suppress(TargetError):                        # nobody reads what we print
        bounded('the output', log, reason)
    if console.lost:
        import syslog
        syslog.syslog(syslog.LOG_ERR, ', '.join(list(console.lines)[-2:]))


def heed(line: CommandLine, console: Console):
    """Have the console print as a command line asks for, whatever is wrong with it."""
    command = 'preview' if line.options.get('preview') else line.command
    wanted = line.options.get('json') or line.options.get('format') == 'json'
    if wanted and command != 'backup':
        console.document = dict(
            schema=1, version=VERSION, command=command, host=this_host(), when=iso(now()),
            exit_status=0, error='', errors=[], warnings=[], notes=[])
    data = command in ('config', 'status', 'stream') or line.options.get('to') == '-'
    if console.document or data:                       # which a program reads
        console.stream = console.errors
    console.quiet = line.options.get('quiet') == 'yes'
    console.terminal = console.stream and console.stream.isatty() and not console.quiet


def perform(words: Texts, program, console: Console):
    """Do what a command line asks for, or tell why it cannot be done; return the exit status."""
    Console.current, signals = console, Signals.current
    line, reason = CommandLine(), ''
    try:
        words = plain_words(words)
        if len(words) < 2 and ''.join(words) not in COMMANDS:
            console.write(USAGE.format(program=program))
            return ERROR.status
        line = parse_words(words)
        heed(line, console)
        for error in line.wrong:
            raise error
        status = RUNS[line.command](line)
        signals.ended = True
    except (Interrupted, Exception) as error:
        signals.ended = True
        if isinstance(error, OSError):
            # Where the system names no file, it is none of those that were asked for by name.
            error.filename = error.filename or next(iter(ROOTS), line.word)
        status = 128 + error.signum if isinstance(error, Interrupted) else ERROR.status
        if line.command == 'status':
            status = STATES.index('UNKNOWN')
        reason = sub(r'^\**ERROR\W*', '', explain(error))
        if line.command == 'status' and not console.tell(state='UNKNOWN'):
            console.write(plugin_line('UNKNOWN', reason))
        else:
            tell_end('ERROR ' + reason, console)
    if console.tell(error=reason, exit_status=status):     # paths the same in every locale
        text = portable(json.dumps(console.document, ensure_ascii=False))
        console.write(as_json(json.loads(text)))
    if console.lost not in (0, EPIPE) and (console.document or line.command in ('config', 'list')):
        console.stream, status = console.errors, max(status, ERROR.status)
        tell_end(f'ERROR what was printed is not whole: {os.strerror(console.lost)}', console)
    return status


def main(argv: Texts):
    """Run; return the exit status."""
    buffers = [getattr(stream, 'buffer', None) for stream in (sys.stdout, sys.stderr)]
    streams = [getattr(buffer, 'raw', buffer) for buffer in buffers]
    words = [os.fsencode(word).decode('utf-8', 'surrogateescape') for word in argv]
    with Signals().handled():
        return perform(words[1:], words[0], Console(*streams))


if __name__ == '__main__':
    sys.exit(main(sys.argv))
