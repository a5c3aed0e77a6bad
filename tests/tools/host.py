"""python3 -m tests host: an acceptance test on a real host, before the first backup.

It makes small VMs and disks of its own through the host's own xe, backs them up in every way that
VmBackup.py has, kills it at each step, restores everything and compares it byte by byte. What it
makes is called VmBackup-host-test-ID-..., ID being random, and has the key vmbackup_host_test=ID in
other-config. It touches nothing else, and removes all of it at the end; after kill -9 the next
run removes it. Run it on one host of the pool at a time, and not beside backups.
"""

import argparse
import contextlib
import fcntl
import glob
import hashlib
import itertools
import os
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, NamedTuple

import XenAPI
from tests import SCRIPT

PREFIX, KEY = 'VmBackup-host-test-', 'vmbackup_host_test'
OURS = re.compile('(?:RESTORE_|SNAP_)?' + PREFIX + '([0-9a-f]{8})-')
MIB = 1 << 20
ROOM = 1 << 29                 # bytes that target and SR need: each holds a few copies of VMS
# The VMs, and the MiB of their disks: multiples of 4, to which LVM would round them up.
VMS = {'one': (8,), 'many': (8, 4, 4), 'none': ()}
CLASSES = 'VM VDI VBD VIF SR network'.split()
PATIENCE = 60                  # seconds for what a killed program leaves in xapi to go
RUN_LIMIT = 900                # seconds for VmBackup.py, far beyond what VMS need
UP_LIMIT = 300                 # seconds for the toolstack to come back
LAST_LINES = 15
XE, SOCKET = '/opt/xensource/bin/xe', '/var/lib/xcp/xapi'

# The xe that VmBackup.py gets where we interfere: at one call of one verb it waits before, after
# or amid the real command, which amid is stopped. It goes on when the file `reached` is gone.
GATE = r'''#!/bin/sh
real={xe} gate={gate}
case " $* " in *" metadata=true "*) exec "$real" "$@";; esac
[ "$1" = "$(cat "$gate/step" 2>&1)" ] && mv "$gate/step" "$gate/reached" || exec "$real" "$@"
hold() {{
    echo "$1" > "$gate/held"
    while [ -e "$gate/reached" ] && kill -0 {pid}; do sleep 0.05; done
}}
case $(cat "$gate/when") in
before) hold; exec "$real" "$@";;
after) "$real" "$@"; status=$?; hold; exit $status;;
esac
exec 3<&0
"$real" "$@" <&3 3<&- &
child=$! tries=0 file=
exec 3<&-
trap 'kill -CONT $child; kill -TERM $child' TERM
case $1 in
*-export) for word; do case $word in filename=?*) file=${{word#filename=}};; esac; done;;
*-import) most=6;;
esac
until ! kill -0 $child || [ "$(stat -c %s "$file")" -gt 100000 ] || [ $tries = ${{most:-1}} ]; do
    sleep 0.05
    [ -n "$file" ] || tries=$((tries + 1))
done 2> /dev/null
kill -STOP $child 2> /dev/null && hold || hold 'xe had ended by then'
kill -CONT $child 2> /dev/null
wait $child
'''


class Refused(Exception):
    """What makes a test impossible: a line for the user."""


class Broken(Exception):
    """What a scenario found wrong."""


class Interrupted(BaseException):
    """A signal ends the test."""


class Scenario(NamedTuple):
    name: str
    work: Callable[..., Any]       # returns a remark
    details: tuple = ()
    programs: tuple = ()           # without one of them it is skipped


class Row(NamedTuple):
    name: str
    outcome: str                   # passed, FAILED, skipped
    seconds: float
    remark: str
    output: str = ''

    def __str__(self):
        return '%-34s %-8s %6.1f  %.150s' % (self.name, self.outcome, self.seconds, self.remark)


def content(seed, size):
    """Known bytes of a disk: noise and zeros by turns, a MiB each, noise at the end."""
    source = random.Random(seed)
    count = size // MIB
    return b''.join(source.getrandbits(8 * MIB).to_bytes(MIB, 'little')
                    if number % 2 == 0 or number == count - 1 else bytes(MIB)
                    for number in range(count))


class Pool:
    """The pool: looked at through XenAPI, changed through xe."""

    def __init__(self, program, login):
        self.program = program
        self.local = login == 'local'
        self.password = '' if self.local else login

    @contextlib.contextmanager
    def session(self):
        url = os.environ.get('VMBACKUP_XAPI_URL') or (
            'unix:' + SOCKET if self.local else 'http://localhost/')
        session = (XenAPI.xapi_local(url[len('unix:'):], PATIENCE) if url.startswith('unix:') else
                   XenAPI.Session(url, ignore_ssl=True, timeout=PATIENCE))
        session.login_with_password('root', self.password, '1.0', 'VmBackup host test')
        try:
            yield session.xenapi
        finally:
            session.logout()

    def tables(self, classes=CLASSES):
        """{class: {ref: record}}"""
        with self.session() as xenapi:
            return {cls: getattr(xenapi, cls).get_all_records() for cls in classes}

    def xe(self, verb, *words, data=b''):
        """The output of a command that is fed so; raise Broken with its last words."""
        done = subprocess.run([self.program, verb] + list(words), input=data, timeout=RUN_LIMIT,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            raise Broken('xe %s failed: %s' % (
                verb, ' / '.join(done.stderr.decode('utf-8', 'replace').split('\n')[-4:]).strip()))
        return done.stdout.decode('utf-8', 'replace').strip()

    def digest(self, vdi, size):
        """SHA-256 of a disk's first `size` bytes; what an SR has added to them must be zeros."""
        export = subprocess.Popen(
            [self.program, 'vdi-export', 'uuid=' + vdi, 'format=raw', 'filename='],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        found, left, more = hashlib.sha256(), size, False
        with export.stdout as stream:
            for piece in iter(lambda: stream.read(MIB), b''):
                found.update(piece[:left])
                more = more or any(piece[left:])
                left -= min(left, len(piece))
        if export.wait() or left or more:
            raise Broken('the restored disk %s: vdi-export ends with %d, %d bytes are missing%s' % (
                vdi, export.returncode, left, ', more than zeros at its end' * more))
        return found.hexdigest()

    def wait_until_up(self):
        """Wait until both xe and XenAPI answer."""
        end = time.monotonic() + UP_LIMIT
        while True:
            try:
                self.xe('host-list', '--minimal')
                return self.tables(['pool'])
            except (Broken, OSError, XenAPI.Failure, subprocess.SubprocessError) as error:
                if time.monotonic() > end:
                    raise Broken('the toolstack did not respond within %d s: %s' % (
                        UP_LIMIT, error))
                time.sleep(0.5)


def census(tables):
    """{(class, uuid): name} of all there is."""
    def name(cls, record):
        if cls != 'VBD':
            return record.get('name_label', '')
        return 'of %s on %s' % tuple(
            tables[other].get(record[other], {}).get('name_label', record[other])
            for other in ('VM', 'VDI'))
    return {(cls, record['uuid']): name(cls, record)
            for cls, records in tables.items() for record in records.values()}


def id_of(directory):
    return os.path.basename(directory)[len(PREFIX):]


def is_ours(record, recorded):
    """Whether a VM or disk was made for a host test: by its name, and by its mark or because a
    directory proves that this id was ours."""
    found = OURS.match(record['name_label'])
    return bool(found) and (record['other_config'].get(KEY) == found.group(1) or
                            found.group(1) in recorded)


def half_restored(directories):
    """The names of disks that VmBackup.py was restoring for us when it was killed."""
    for directory in directories:
        for path in glob.glob(glob.escape(directory) + '/**/.restore-*.json', recursive=True):
            yield 'vmbackup_restore ' + os.path.basename(path)[len('.restore-'):-len('.json')]


def remove(pool, directories, keep=()):
    """Remove what is ours but for the uuids to keep; return what would not go, a line each."""
    recorded = set(map(id_of, directories))
    halves = set(half_restored(directories))
    end, problems = time.monotonic() + PATIENCE, []
    while True:
        tables = pool.tables()
        vms = [vm for vm in tables['VM'].values() if is_ours(vm, recorded)]
        disks = {ref: vdi for ref, vdi in tables['VDI'].items()
                 if is_ours(vdi, recorded) or vdi['name_label'] in halves}
        dom0 = {ref for ref, vm in tables['VM'].items() if vm['is_control_domain']}
        commands = []
        for vbd in tables['VBD'].values():
            if vbd['VDI'] in disks and vbd['VM'] in dom0 and vbd['uuid'] not in keep:
                commands += [('vbd-unplug', vbd)] * vbd['currently_attached']
                commands += [('vbd-destroy', vbd)]
        commands += [('vm-destroy', vm) for vm in vms if vm['uuid'] not in keep]
        commands += [('vdi-destroy', vdi) for vdi in disks.values() if vdi['uuid'] not in keep]
        if not commands or problems and time.monotonic() > end:
            return problems if commands else []
        problems = []
        for verb, record in commands:
            try:
                pool.xe(verb, 'uuid=' + record['uuid'])
            except Broken as error:
                problems.append('%s (%s): %s' % (record['uuid'], record.get('name_label'), error))
        time.sleep(1 if problems else 0)


class HostTest:
    """One test: what it has made, and the scenarios that use it."""

    def __init__(self, pool, options, sr, directory, lock):
        self.pool, self.options, self.sr = pool, options, sr
        self.directory, self.lock = directory, lock
        self.id = id_of(directory)
        self.numbers = itertools.count(1)
        self.child = None
        self.digests = {}          # (VM, device) -> (bytes, SHA-256)
        self.base = {}             # the census with our VMs made
        self.saved = {}            # method -> directory of a backup to restore
        self.moment = ''           # what there is to say of the last interference
        self.output = ''           # of all of VmBackup.py in this scenario
        self.gate = os.path.join(directory, 'gate')
        os.mkdir(self.gate)
        with open(self.gate + '/xe', 'w') as file:
            file.write(GATE.format(xe=shlex.quote(pool.program), gate=shlex.quote(self.gate),
                                   pid=os.getpid()))
        os.chmod(self.gate + '/xe', 0o700)

    def name(self, word):
        return '%s%s-%s' % (PREFIX, self.id, word)

    # What it makes

    def make(self):
        """The VMs, filled with known bytes."""
        xe, mark = self.pool.xe, 'other-config:%s=%s' % (KEY, self.id)
        template = xe('template-list', 'name-label=Other install media', '--minimal')
        networks = xe('network-list', '--minimal').split(',')
        for word, sizes in VMS.items():
            vm = (xe('vm-install', 'template=' + template.split(',')[0],
                     'new-name-label=' + self.name(word)) if template else
                  xe('vm-create', 'name-label=' + self.name(word)))
            xe('vm-param-set', 'uuid=' + vm, mark)
            for number, size in enumerate(sizes):
                data = content('%s %d' % (word, number), size * MIB)
                vdi = xe('vdi-create', 'sr-uuid=' + self.sr['uuid'], 'type=user',
                         'name-label=%s %d' % (self.name(word), number),
                         'virtual-size=%d' % len(data))
                xe('vdi-param-set', 'uuid=' + vdi, mark)
                xe('vdi-import', 'uuid=' + vdi, 'format=raw', 'filename=/dev/stdin', data=data)
                self.digests[word, str(number)] = len(data), hashlib.sha256(data).hexdigest()
                vbd = xe('vbd-create', 'vm-uuid=' + vm, 'vdi-uuid=' + vdi, 'device=%d' % number,
                         'bootable=%s' % str(number == 0).lower(), 'mode=RW', 'type=Disk')
                xe('vbd-param-set', 'uuid=' + vbd, 'other-config:owner=')
            if word == 'many':
                xe('vbd-create', 'vm-uuid=' + vm, 'device=3', 'mode=RO', 'type=CD')
            elif word == 'one' and networks[0]:
                xe('vif-create', 'vm-uuid=' + vm, 'device=0', 'network-uuid=' + networks[0])
        self.base = self.census()

    def census(self):
        return census(self.pool.tables())

    def check_clean(self, what, told=''):
        """Raise Broken unless the pool is as it was when our VMs were made, or becomes so. What
        `told` names is left to a person; return remarks about it."""
        end = time.monotonic() + PATIENCE / 4
        while True:
            now = self.census()
            left = sorted(set(now) - set(self.base))
            if not left or time.monotonic() > end:
                break
            time.sleep(0.2)
        lost = sorted(set(self.base) - set(now))
        untold = [each for each in left if each[1] not in told]
        if untold or lost:
            raise Broken('%s: %s' % (what, ', '.join(
                ['left is %s %s "%s"' % (each + (now[each],)) for each in untold] +
                ['gone is %s %s "%s"' % (each + (self.base[each],)) for each in lost])))
        return 'a person has to remove %s, as it says' % ', '.join(
            '%s %s' % each for each in left) if left else ''

    # VmBackup.py

    def start(self, words, gated=False, sent=None):
        """Start it; `sent`: the file that its standard output is, else it is that of the log."""
        environ = dict(os.environ, VMBACKUP_XE=self.gate + '/xe' if gated else self.pool.program)
        self.log = open(os.path.join(self.directory, 'log'), 'w+b')
        self.child = subprocess.Popen(
            [sys.executable, SCRIPT] + words, env=environ, stdin=subprocess.DEVNULL,
            stdout=sent or self.log, stderr=self.log, start_new_session=True,
            pass_fds=[self.lock.fileno()])     # so that the next test waits for an orphan

    def finish(self, wanted, what):
        """Wait for its end; return its output. Raise Broken for another status than wanted."""
        try:
            status = self.child.wait(RUN_LIMIT)
        except subprocess.TimeoutExpired:
            self.child.kill()
            status = 'still running after %d s' % RUN_LIMIT
            self.child.wait()
        self.child = None
        with self.log:
            self.log.seek(0)
            output = self.log.read().decode('utf-8', 'replace')
        self.output += '$ VmBackup.py (%s)\n%s' % (what, output)
        if status not in wanted or 'Traceback' in output:
            faults = re.findall('Traceback|(?:ERROR|[*]{3}WARNING).*', output)
            raise Broken('%s: exit status %s: %s' % (what, status, ' / '.join(faults)))
        return output

    def vmbackup(self, *words, wanted=(0,), what=None):
        self.start(list(words))
        return self.finish(wanted, what or re.sub(re.escape(self.directory), '...', words[-1]))

    def config(self, directory, *lines):
        """A config file for a backup_dir of its own, which is made."""
        backups = os.path.join(directory, 'BACKUPS')
        os.makedirs(backups, exist_ok=True)
        with open(os.path.join(directory, 'cfg'), 'w') as file:
            file.write('\n'.join(('backup_dir=' + backups, 'require_mount=no', 'max_backups=1',
                                  'status_log=' + directory + '/status.log') + lines) + '\n')
        return file.name

    def rules(self, method, *words):
        return ['%s=%s' % (method, self.name(word)) for word in words]

    def login(self, *words):
        return [self.options.login] + list(words)

    def back_up(self, config, **expected):
        return self.vmbackup(*self.login(config), **dict(dict(what='backup'), **expected))

    def backup_of(self, config, word):
        """The one backup of a VM; raise Broken if there are more."""
        found = glob.glob(os.path.join(glob.escape(os.path.dirname(config)), 'BACKUPS',
                                       self.name(word), 'backup-*'))
        if len(found) != 1:
            raise Broken('%d backups of %s, not one' % (len(found), word))
        return found[0]

    # Restores

    def restored(self, word, name, device):
        """Compare a VM (or the disk `device` of it) that was restored as `name` with the original,
        and remove it. Return how many disks were equal; raise Broken."""
        tables = self.pool.tables()
        named = [each for each in list(tables['VM'].values()) + list(tables['VDI'].values())
                 if each['name_label'] == name]
        if len(named) != 1:
            raise Broken('%d objects called %s, not one' % (len(named), name))
        disks, devices = {device: named[0]}, []
        if device is None:
            devices = [tables['VBD'][ref] for ref in named[0]['VBDs']]
            disks = {vbd['userdevice']: tables['VDI'][vbd['VDI']]
                     for vbd in devices if vbd['type'] == 'Disk'}
            shape = (sorted(disks), len(devices) - len(disks), len(named[0]['VIFs']))
            wanted = ([str(number) for number in range(len(VMS[word]))], word == 'many',
                      len(self.original(tables, word)['VIFs']))
            if shape != wanted:
                raise Broken('restored with (disks, drives, NICs) %s, not %s' % (shape, wanted))
        for number, vdi in disks.items():
            size, digest = self.digests[word, number]
            if self.pool.digest(vdi['uuid'], size) != digest:
                raise Broken('disk %s of %s has other bytes than before' % (number, word))
        if device is None:
            self.pool.xe('vm-destroy', 'uuid=' + named[0]['uuid'])
        for vdi in disks.values():
            for vbd in vdi['VBDs'] if device is not None else ():
                self.pool.xe('vbd-destroy', 'uuid=' + tables['VBD'][vbd]['uuid'])
            self.pool.xe('vdi-destroy', 'uuid=' + vdi['uuid'])
        return len(disks)

    def original(self, tables, word):
        return next(vm for vm in tables['VM'].values()
                    if vm['name_label'] == self.name(word) and not vm['is_a_snapshot'])

    def restore_words(self, path, name, *more):
        return self.login('restore=' + path, 'name=' + name, 'sr=' + self.sr['uuid'], *more)

    def restore_all(self, config, words):
        """Restore each archive and image of these VMs' backups, then test-restore them. Return how
        many disks were equal."""
        count = 0
        for word in words:
            backup = self.backup_of(config, word)
            for path in sorted(glob.glob(glob.escape(backup) + '/*.*')):
                found = re.match(r'.*?(?:DISK-xvd([a-z]))?\.(xva|raw|vhd)(\.gz|\.zst)?$', path)
                if not found:
                    continue
                device = None if found.group(2) == 'xva' else str(
                    ord(found.group(1) or 'a') - ord('a'))
                name = self.name('restored-%d' % next(self.numbers))
                self.vmbackup(*self.restore_words(path, name),
                              what='restore of ' + os.path.basename(path))
                count += self.restored(word, name, device)
            self.vmbackup(*self.login('test-restore=' + self.name(word), 'from=' + config,
                                      'sr=' + self.sr['uuid']), what='test-restore of ' + word)
        return count

    # Scenarios

    def preview(self, place):
        config = self.config(place, *self.rules('vm-export', *VMS))
        output = self.vmbackup(*self.login(config, 'preview'), what='preview')
        if self.name('many') not in output or os.listdir(os.path.join(place, 'BACKUPS')):
            raise Broken('preview tells nothing of our VMs, or has made something')
        return 'tells our VMs, changes nothing'

    def exported(self, place, method, words, *lines):
        """Back up, prove it, restore it."""
        config = self.config(place, *(lines + tuple(self.rules(method, *words))))
        self.back_up(config)
        self.check_clean('after the backup')
        self.vmbackup('verify', config, what='verify')
        count = self.restore_all(config, words)
        self.check_clean('after the restores')
        return '%d VMs, %d disks restored equal' % (len(words), count)

    def looked_at(self, place):
        """What the commands without a pool say of a backup."""
        config = self.config(place, *self.rules('vm-export', 'one', 'none'))
        self.vmbackup('check-config', config)
        self.vmbackup('status', config, wanted=(2,), what='status before a backup')
        self.back_up(config)
        self.vmbackup('status', config, what='status after it')
        for command in ('verify', 'list', 'prune'):
            if self.name('one') not in self.vmbackup(command, config, what=command):
                raise Broken(command + ' does not tell of the VM')
        return 'verify, list, status, prune, check-config'

    def single_disks(self, place, compress):
        """Each disk of an archive by itself: as a file, a stream, a new disk."""
        config = self.config(place, 'compress=' + compress, *self.rules('vm-export', 'many'))
        self.back_up(config)
        backup = self.backup_of(config, 'many')
        self.vmbackup('extract', backup, 'disk=all', 'to=' + place + '/disks', what='extract')
        for number in range(len(VMS['many'])):
            size, digest = self.digests['many', str(number)]
            stream = subprocess.run(
                [sys.executable, SCRIPT, 'extract', backup, 'disk=%d' % number, 'to=-'],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=RUN_LIMIT)
            with open(place + '/disks/xvd%s.raw' % 'abc'[number], 'rb') as file:
                for what, data in ('the file', file.read()), ('the stream', stream.stdout):
                    if hashlib.sha256(data[:size]).hexdigest() != digest:
                        raise Broken('%s of disk %d has other bytes' % (what, number))
            name = self.name('restored-%d' % next(self.numbers))
            self.vmbackup(*self.restore_words(backup, name, 'disk=%d' % number), what='restore')
            self.restored('many', name, str(number))
        self.check_clean('after the restores')
        return '%d disks as a file, a stream, a disk' % len(VMS['many'])

    def look(self, place):
        """A disk on a VM that runs, and off it: HVM takes none to be read alone, PV does."""
        config = self.config(place, *self.rules('vm-export', 'many'))
        self.back_up(config)
        vm, told = self.original(self.pool.tables(), 'none'), []
        for kind, policy, more, end in (('HVM', 'BIOS order', ['mode=rw'], 'kept'),
                                        ('PV', '', [], 'destroyed')):
            try:
                self.set_policy(policy)
                self.pool.xe('vm-start', 'uuid=' + vm['uuid'])
                told.append(kind + ' ' + end)
            except Broken as error:
                told.append('%s not tried: %s' % (kind, ' '.join(str(error).split())))
            else:
                try:
                    self.looked(config, place, more, end)
                finally:
                    self.pool.xe('vm-shutdown', 'uuid=' + vm['uuid'], '--force')
            self.check_clean('after detach')
        self.set_policy(vm['HVM_boot_policy'])
        return ', '.join(told)

    def set_policy(self, policy):
        vm = self.original(self.pool.tables(), 'none')
        if vm['HVM_boot_policy'] != policy:            # else a simulated pool has it
            self.pool.xe('vm-param-set', 'uuid=' + vm['uuid'], 'HVM-boot-policy=' + policy)

    def looked(self, config, place, more, end):
        """One disk attached, listed, detached; `end`: what becomes of it."""
        name = self.name('look-%d' % next(self.numbers))
        words = self.restore_words(self.backup_of(config, 'many'), name, 'disk=xvdb',
                                   'attach=' + self.name('none'))
        if more and 'HVM' not in self.vmbackup(*words, wanted=(2,), what='attach= of HVM'):
            raise Broken('it is not refused read-only, or not with the reason')
        self.vmbackup(*words, *more, what='attach=')
        tables = self.pool.tables()
        vdi, = [each for each in tables['VDI'].values() if each['name_label'] == name]
        vbd, = [tables['VBD'][ref] for ref in vdi['VBDs']]
        if (vbd['mode'], vbd['currently_attached']) != ('RW' if more else 'RO', True):
            raise Broken('it is attached as %s, %s' % (vbd['mode'], vbd['currently_attached']))
        for command in 'list', 'status':
            if vdi['uuid'] not in self.vmbackup(command, config, what=command):
                raise Broken(command + ' does not name it')
        if ', and ' + end not in self.vmbackup(
                'detach', vdi['uuid'], 'from=' + config, *self.new_login(place), what='detach'):
            raise Broken('it is not ' + end)
        if end == 'kept':
            self.pool.xe('vbd-destroy', 'uuid=' + vbd['uuid'])
            self.pool.xe('vdi-destroy', 'uuid=' + vdi['uuid'])

    def rotated(self, place):
        config = self.config(place, *self.rules('vm-export', 'one'))
        self.back_up(config)
        first = self.backup_of(config, 'one')
        self.back_up(config)
        if self.backup_of(config, 'one') == first:
            raise Broken('the second backup is not there')
        self.check_clean('after the backups')
        return 'the older backup was deleted'

    def interfered(self, place, method, act, step, when):
        """Interfere with a backup at a step; the next one has to end well, with nothing left."""
        config = self.config(place, 'vdi_disks=boot', *self.rules(method, 'one'))
        if self.interfere(self.login(config), act, step, when) == 0 and act == 'SIGTERM':
            raise Broken('the backup says success after SIGTERM')
        restarted = act == 'restart'
        output = self.back_up(config, wanted=(0, 1) if restarted else (0,), what='the next backup')
        remark = self.check_clean('after the next backup', output if restarted else '')
        self.vmbackup('verify', config, what='verify')
        return '; '.join(filter(None, [self.moment, remark]))

    def interfered_restore(self, place, method, act, step, when):
        """The same of a restore: the next one has to be whole, and the first if it is there."""
        names = [self.name('restored-%d' % next(self.numbers)) for _ in range(2)]
        source = self.saved_backup(method)
        more = ['attach=' + self.name('none')] if method == 'vdi-export' else []
        status = self.interfere(self.restore_words(source, names[0], *more), act, step, when)
        restarted = act == 'restart'
        output = self.vmbackup(*self.restore_words(source, names[1], *more),
                               wanted=(0, 1) if restarted else (0,), what='the next restore')
        there = set(self.census().values())
        for name in names:
            if name in there or name == names[1] or status == 0:
                self.restored('one', name, None if method == 'vm-export' else '0')
        remark = self.check_clean('after the next restore', output if restarted else '')
        return '; '.join(filter(None, [self.moment, remark]))

    def stream_words(self, place, word, *more):
        config = self.config(place)
        return ['stream', self.name(word), 'from=' + config, *self.new_login(place), *more]

    def new_login(self, place):
        """The login of a command that comes first."""
        if self.options.login == 'local':
            return []
        login = os.path.join(place, 'password')
        if not os.path.exists(login):
            self.vmbackup(self.options.login, 'create-password-file=' + login)
        return ['password-file=' + login]

    def streamed(self, place, compress):
        """A stream that another program imports as it comes."""
        words = self.stream_words(place, 'many', 'compress=' + compress)
        with subprocess.Popen([self.pool.program, 'vm-import', 'filename=/dev/stdin',
                               'sr-uuid=' + self.sr['uuid']], stdin=subprocess.PIPE,
                              stdout=subprocess.DEVNULL) as importing:
            self.start(words, sent=importing.stdin)
            importing.stdin.close()
            self.finish((0,), 'stream into xe vm-import')
        if importing.returncode:
            raise Broken('xe vm-import: exit status %d' % importing.returncode)
        count = self.restored('many', 'RESTORE_' + self.name('many'), None)
        self.check_clean('after the stream')
        return '%d disks imported equal' % count

    def interfered_stream(self, place, _, act, step, when):
        """The same of a stream: the next one removes what it has left."""
        words = self.stream_words(place, 'one')
        with open(os.path.join(place, 'sent'), 'w+b') as sent:
            self.interfere(words, act, step, when, sent)
            self.start(words, sent=sent)
            self.finish((0,), 'the next stream')
        self.check_clean('after the next stream')
        return self.moment

    def saved_backup(self, method):
        """A backup of VM one, made the first time; its directory."""
        if method not in self.saved:
            config = self.config(os.path.join(self.directory, 'saved-' + method),
                                 *self.rules(method, 'one'))
            self.back_up(config, what='a backup to restore')
            self.saved[method] = self.backup_of(config, 'one')
        return self.saved[method]

    def interfere(self, words, act, step, when, sent=None):
        """Run VmBackup.py until it has got so far with a step, and kill it there, or restart the
        toolstack and let it go on. Return its exit status: 0 after SIGTERM in a restore that only
        had to be finished."""
        for name in os.listdir(self.gate):
            if name != 'xe':
                os.unlink(os.path.join(self.gate, name))
        for name, text in (('when', when), ('step', step)):
            with open(os.path.join(self.gate, name), 'w') as file:
                file.write(text)
        self.start(words, True, sent)
        while not os.path.exists(self.gate + '/held') and self.child.poll() is None:
            time.sleep(0.02)
        if self.child.poll() is not None:
            self.finish((), 'ended without ' + step)
        with open(self.gate + '/held') as file:
            self.moment = file.read().strip()
        if act == 'restart':
            subprocess.run(shlex.split(self.options.restart_toolstack), check=True,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=UP_LIMIT)
            self.pool.wait_until_up()
        else:
            self.child.send_signal(getattr(signal, act))
        if act == 'SIGKILL':
            self.child.wait()
        os.unlink(self.gate + '/reached')
        child = self.child
        self.finish({'SIGKILL': (-9,), 'SIGTERM': (143, 0), 'restart': (0, 1, 2)}[act],
                    '%s %s %s' % (act, when, step))
        if act == 'SIGTERM' and child.returncode:
            self.check_clean('after SIGTERM')
        return child.returncode

    def end(self):
        """Let what runs clean up, then remove all of ours. Raise Broken if something stays."""
        if self.child:
            with contextlib.suppress(OSError):
                os.unlink(self.gate + '/reached')
            self.child.terminate()
            with contextlib.suppress(Broken):
                self.finish(range(-64, 256), 'ended')
        self.pool.wait_until_up()
        problems = remove(self.pool, [self.directory])
        if problems:
            raise Broken('cannot be removed: ' + '; '.join(problems))
        if self.options.keep:
            os.rename(self.directory, os.path.join(os.path.dirname(self.directory),
                                                   PREFIX + 'kept-' + self.id))
        else:
            shutil.rmtree(self.directory)


# Verbs at which a run is interfered with, by method: first those of a backup, then of a restore.
STEPS = {'vm-export': ('vm-snapshot template-param-set vm-export vm-uninstall',
                       'vm-import vm-param-remove vdi-param-remove'),
         'vdi-export': ('vdi-snapshot vdi-param-set vdi-export vdi-destroy',
                        'vdi-create vdi-import vbd-create vdi-param-set')}


def scenarios(restarts):
    """All of them, in order."""
    found = [Scenario('preview', HostTest.preview)]
    for compress, program in (('none', ()), ('gzip', ('gzip',)), ('zstd', ('zstd',))):
        found.append(Scenario('vm-export ' + compress, HostTest.exported,
                              ('vm-export', tuple(VMS), 'compress=' + compress), program))
        found.append(Scenario('stream ' + compress, HostTest.streamed, (compress,), program))
    for form, compress in itertools.product(('raw', 'vhd'), ('none', 'gzip', 'zstd')):
        found.append(Scenario(
            'vdi-export %s %s' % (form, compress), HostTest.exported,
            ('vdi-export', ('one',), 'vdi_export_format=' + form, 'vdi_compress=' + compress),
            () if compress == 'none' else (compress,)))
    found += [Scenario('vdi-export of all disks', HostTest.exported,
                       ('vdi-export', ('many',), 'vdi_disks=all')),
              Scenario('parallel', HostTest.exported,
                       ('vm-export', ('one', 'many'), 'parallel=2')),
              Scenario('single disks', HostTest.single_disks, ('none',)),
              Scenario('single disks zstd', HostTest.single_disks, ('zstd',), ('zstd',)),
              Scenario('a look', HostTest.look), Scenario('commands', HostTest.looked_at),
              Scenario('rotation', HostTest.rotated)]
    for act in ['SIGKILL', 'SIGTERM'] + ['restart'] * restarts:
        for method, steps in STEPS.items():
            works = [('', HostTest.interfered), ('', HostTest.interfered_restore)]
            if method == 'vm-export':
                steps += steps[:1]
                works.append((' of a stream', HostTest.interfered_stream))
            for (of, work), verbs in zip(works, steps):
                for step, when in itertools.product(verbs.split(), ('before', 'amid', 'after')):
                    if when == 'amid' and '-param-' in step:
                        continue           # nothing moves there
                    found.append(Scenario('%s%s %s %s' % (act, of, when, step), work,
                                          (method, act, step, when)))
    return found


def run_scenario(test, scenario):
    """The Row that comes of it; after a failure all that it has left is removed."""
    missing = [program for program in scenario.programs if not shutil.which(program)]
    if missing:
        return Row(scenario.name, 'skipped', 0, 'there is no program ' + missing[0])
    began, test.output = time.monotonic(), ''
    place = os.path.join(test.directory, 'scenario-%d' % next(test.numbers))
    os.mkdir(place)
    try:
        remark, outcome = scenario.work(test, place, *scenario.details), 'passed'
    except (Broken, OSError, XenAPI.Failure, subprocess.SubprocessError) as error:
        remark, outcome = ' '.join(str(error).split()), 'FAILED'
    seconds = time.monotonic() - began
    if outcome == 'FAILED':
        test.pool.wait_until_up()
        for problem in remove(test.pool, [test.directory], {uuid for _, uuid in test.base}):
            remark += '; cannot be removed: ' + problem
    if test.options.keep:
        with open(os.path.join(place, 'output'), 'w', encoding='utf-8') as file:
            file.write('%s: %s\n%s' % (scenario.name, outcome, test.output))
    else:
        shutil.rmtree(place)
    return Row(scenario.name, outcome, seconds, remark or '',
               test.output if outcome == 'FAILED' else '')


def versions(pool, sr):
    """What a bug report has to tell of this host."""
    tables = pool.tables(['host', 'pool'])
    master = next(iter(tables['pool'].values()))['master']
    software = tables['host'].get(master, {}).get('software_version', {})
    script = re.search(r"^VERSION = '(.*)'", read(SCRIPT), re.MULTILINE)
    return ['VmBackup.py %s, Python %s on %s' % (
        script.group(1) if script else '?', platform.python_version(), platform.release()),
        'xapi %s, %s %s' % (
            software.get('xapi_build') or software.get('xapi', '?'),
            software.get('product_brand', '?'), software.get('product_version', '?')),
        'SR of type %s, %s' % (sr['type'], 'shared' if sr['shared'] else 'local')]


def read(path):
    with open(path, encoding='utf-8') as file:
        return file.read()


def summary(rows, facts):
    failed = [row for row in rows if row.outcome == 'FAILED']
    counts = ', '.join('%d %s' % (sum(row.outcome == each for row in rows), each)
                       for each in ('passed', 'FAILED', 'skipped'))
    lines = ['', 'VmBackup host test: ' + counts] + ['  ' + fact for fact in facts]
    for row in failed:
        lines += ['', 'FAILED %s: %s' % (row.name, row.remark)]
        lines += ['    ' + line for line in row.output.splitlines()[-LAST_LINES:]]
    return lines


def parse(argv):
    parser = argparse.ArgumentParser(
        prog='python3 -m tests host', description=__doc__.split('\n\n', 1)[1], allow_abbrev=False)
    add = parser.add_argument
    add('--sr', metavar='UUID', help="where its disks go (default: the pool's default SR)")
    add('--target', metavar='DIR', help='where its backups go, in a directory of their own '
        '(default: the directory for temporary files)')
    add('--login', metavar='WORD', default='local', help="as VmBackup.py's first word: local "
        "(default) or root's password")
    add('--restart-toolstack', metavar='COMMAND', help='restart the toolstack with this command '
        'at each step of a run, too (xe-toolstack-restart): for a host that may be disturbed')
    add('-k', '--only', metavar='TEXT', action='append', help='only scenarios with this in their '
        'names; may stand several times')
    add('--list', action='store_true', help='tell the scenarios, do nothing')
    add('--report', metavar='FILE', help='write the result to this file, too')
    add('--keep', action='store_true', help='keep the backups and what VmBackup.py said')
    add('--yes', action='store_true', help='do not ask before it begins')
    return parser.parse_args(argv)


def find_sr(pool, wanted):
    """The record of the SR to use; raise Refused."""
    tables = pool.tables(['SR', 'pool'])
    ref = next(iter(tables['pool'].values()))['default_SR']
    found = [sr for sr in tables['SR'].values() if sr['uuid'] == wanted] if wanted else [
        tables['SR'][each] for each in [ref] if each in tables['SR']]
    if not found:
        raise Refused('no SR %s' % wanted if wanted else 'the pool has no default SR: tell one '
                      'with --sr UUID (xe sr-list)')
    sr, = found
    size, used = int(sr['physical_size']), int(sr['physical_utilisation'])
    if sr['content_type'] == 'iso' or size > 0 and size - used < ROOM:
        raise Refused('the SR %s (%s) is for ISOs or has less than %d MiB free' % (
            sr['name_label'], sr['uuid'], ROOM / MIB))
    return sr


def find_program():
    program = os.environ.get('VMBACKUP_XE') or (
        XE if os.path.exists(XE) else shutil.which('xe'))
    if not program or not os.access(program, os.X_OK):
        raise Refused('there is no xe: run this in dom0, or tell one in VMBACKUP_XE')
    return program


def lock_host(program):
    """The open xe program, whose lock says that a host test, or what it started, still runs on this
    host. Raise Refused."""
    lock, end = open(program, 'rb'), time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError:
            if time.monotonic() > end:
                lock.close()
                raise Refused('another host test, or what it started, is still running')
            time.sleep(0.2)


def prepare(pool, options, base):
    """Say what will be done, and ask; remove what earlier tests left. Return the SR's record."""
    if not os.path.isdir(base):
        raise Refused('no directory: ' + base)
    if shutil.disk_usage(base).free < ROOM:
        raise Refused('less than %d MiB free in %s' % (ROOM / MIB, base))
    try:
        pool.xe('host-list', '--minimal')
        sr = find_sr(pool, options.sr)
    except (Broken, OSError, XenAPI.Failure, subprocess.SubprocessError) as error:
        raise Refused('xe or xapi does not answer: %s' % error)
    print('This makes %d small VMs with %d MiB of disks in the SR "%s" (%s, %s), called\n'
          '%s..., and copies of them; backups go to %s. Nothing else is touched,\nand all of it '
          'is removed at the end.%s' % (
              len(VMS), sum(map(sum, VMS.values())), sr['name_label'], sr['type'], sr['uuid'],
              PREFIX, base, ' The toolstack is restarted, again and again, with: %s' %
              options.restart_toolstack if options.restart_toolstack else ''), flush=True)
    if not options.yes:
        if not sys.stdin.isatty():
            raise Refused('nobody to ask: add --yes')
        if input('Go on? [y/N] ').lower() not in ('y', 'yes'):
            raise Refused('not wanted')
    return sr


def begin(pool, base):
    """Make the directory of a test and return it. Its name, which has the id, is the record of all
    that carries this id, before that is made; a file in it tells in which pool."""
    directory = os.path.join(base, '%s%08x' % (PREFIX, random.SystemRandom().getrandbits(32)))
    os.mkdir(directory, 0o700)
    with open(os.path.join(directory, 'pool'), 'w') as file:
        file.write(uuid_of_pool(pool))
    return directory


def uuid_of_pool(pool):
    return next(iter(pool.tables(['pool'])['pool'].values()))['uuid']


def leftovers(pool, base):
    """Remove what tests of this pool that were killed have left; raise Refused if it stays."""
    old, here = [], uuid_of_pool(pool)
    for directory in glob.glob(os.path.join(glob.escape(base), PREFIX + '[0-9a-f]' * 8)):
        name = os.path.join(directory, 'pool')
        if not os.path.exists(name) or read(name) in ('', here):
            old.append(directory)
    problems = remove(pool, old)
    if problems:
        raise Refused('what an earlier test left cannot be removed: ' + '; '.join(problems))
    for directory in old:
        print('removed what an earlier test left: ' + directory)
        shutil.rmtree(directory)


def interrupt(number, _frame):
    raise Interrupted('ended by signal %d' % number)


def carry_out(test, chosen, foreign):
    """Make the VMs, run the scenarios, remove it all. Return the rows."""
    rows = []
    try:
        test.make()
        for scenario in chosen:
            rows.append(run_scenario(test, scenario))
            print(rows[-1], flush=True)
    except (Interrupted, Broken) as error:
        rows.append(Row('(the test itself)', 'FAILED', 0, str(error)))
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        try:
            test.end()
            now = census(test.pool.tables())
            changed = ['%s %s' % each for each in sorted(set(now) ^ set(foreign))]
            row = Row('census', 'FAILED' if changed else 'passed', 0, 'came or went: ' + ', '.join(
                changed) if changed else '%d objects, as before' % len(now))
        except Broken as error:
            row = Row('census', 'FAILED', 0, str(error))
        rows.append(row)
        print(row, flush=True)
    return rows


def main(argv):
    """Exit status 0 if all passed, 1 if not, 2 if it could not begin."""
    options = parse(argv)
    chosen = [each for each in scenarios(bool(options.restart_toolstack or options.list))
              if not options.only or any(text in each.name for text in options.only)]
    if options.list:
        print('\n'.join(each.name for each in chosen))
        return 0
    base = os.path.abspath(options.target or tempfile.gettempdir())
    try:
        if not chosen:
            raise Refused('no scenario has that in its name (see --list)')
        pool = Pool(find_program(), options.login)
        sr = prepare(pool, options, base)
        lock = lock_host(pool.program)
        leftovers(pool, base)
        foreign = census(pool.tables())
        directory = begin(pool, base)
    except Refused as error:
        print('host test: %s' % error, file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, interrupt)
    rows = carry_out(HostTest(pool, options, sr, directory, lock), chosen, foreign)
    lines = summary(rows, versions(pool, sr))
    print('\n'.join(lines))
    if options.report:
        with open(options.report, 'w', encoding='utf-8') as file:
            file.write('\n'.join([str(row) for row in rows] + lines) + '\n')
    return 1 if any(row.outcome == 'FAILED' for row in rows) else 0
