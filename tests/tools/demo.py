"""python3 -m tests demo: VMs are backed up, lost and brought back, on a simulated pool.

Everything that is shown is done: each line after a `$` is given to sh in a directory of its own
below TMPDIR, beside a simulated pool of six VMs, and what follows is what it printed. Nothing else
on this machine is touched. Exit status: 0 when all went as expected, 1 when not, 2 for a command
line that cannot be understood.
"""

import argparse
import contextlib
import html
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any, Dict, NamedTuple

from tests import ROOT
from tests.simpool import SimPool, pools
from tests.tools.http_sink import HttpSink
from tests.tools.processes import children_of
from tests.tools.smtp_sink import SmtpSink

CONFIG = """\
backup_dir={directory}/BACKUPS
status_log={directory}/status.log
max_backups=1
pool_db_backup=1
mail_to=admin@example.com
mail_smtp_port={port}
mail_mode=problems
vm-export=web
vm-export=mail.*:2
vdi-export=db
"""
VMBACKUP = './VmBackup.py '
NIGHT = VMBACKUP + 'backup night.cfg'
LEFT = 'xe vdi-list is-a-snapshot=true params=name-label --minimal'
STOPPING = (signal.SIGTERM, signal.SIGHUP)


class Failure(NamedTuple):
    """What --fail VERB does: which call of that verb fails how, and what has to come of it."""

    nth: int
    fault: Dict[str, Any]
    status: int                # exit status of the run
    line: str                  # of the log


def refusal(*error, **details):
    return dict(do='refuse', error=list(error), **details)


FULL = refusal('SR_BACKEND_FAILURE_44', '', 'There is insufficient space', '')
BUSY = refusal('INTERNAL_ERROR', 'Xapi_database.Db_exn.DBCache_NotFound("missing row")')
BROKEN = refusal('VDI_IO_ERROR', 'Device I/O errors', after=700000)
KEPT = refusal('SR_BACKEND_FAILURE_80', '', 'Failed to mark VDI hidden', '')
# The third vm-export is that of web: db's and its own metadata come before it.
FAILURES = {
    'vm-snapshot': Failure(1, FULL, 2, 'ERROR vm-export SNAPSHOT-FAIL web: '),
    'template-param-set': Failure(1, BUSY, 2, 'ERROR vm-export TEMPLATE-PARAM-SET-FAIL web: '),
    'vm-export': Failure(3, BROKEN, 2, 'ERROR vm-export VM-EXPORT-FAIL web: '),
    'vm-uninstall': Failure(1, KEPT, 0, '***NOTE - xe vm-uninstall failed: '),
    'vdi-snapshot': Failure(1, FULL, 2, 'ERROR vdi-export VDI-SNAPSHOT-FAIL db: '),
    'vdi-param-set': Failure(1, BUSY, 2, 'ERROR vdi-export VDI-PARAM-SET-FAIL db: '),
    'vdi-export': Failure(1, BROKEN, 2, 'ERROR vdi-export VDI-EXPORT-FAIL db: '),
    'vdi-destroy': Failure(1, KEPT, 0, '***NOTE - xe vdi-destroy failed: '),
    'pool-dump-database': Failure(1, refusal('INTERNAL_ERROR', 'dump'), 2,
                                  'ERROR pool database not backed up: '),
}


class Unexpected(Exception):
    """Something did not go as it has to."""


def parse(argv):
    parser = argparse.ArgumentParser(
        prog='python3 -m tests demo', epilog='Verbs: ' + ', '.join(FAILURES),
        description='VMs are backed up, lost and brought back, on a simulated pool.')
    parser.add_argument('--full', action='store_true',
                        help='whole outputs, and further scenes')
    parser.add_argument('--fail', metavar='VERB', choices=FAILURES, default='vm-export',
                        help='the xe command that fails in the bad night (default: vm-export)')
    parser.add_argument('--shell', action='store_true',
                        help='open a shell in it before the pool is taken down')
    parser.add_argument('--record', metavar='FILE', help='draw what is printed, as an SVG')
    return parser.parse_args(argv)


def make_python3(directory):
    path = os.path.join(directory, 'python3')
    Path(path).write_bytes(b'#!/bin/sh\nexec %s "$@"\n' % os.fsencode(shlex.quote(sys.executable)))
    os.chmod(path, 0o700)


class Demo:
    """The pool, the directory, the commands that are run there, and what was printed."""

    def __init__(self, sim, directory, is_full):
        self.sim, self.directory, self.is_full = sim, directory, is_full
        self.scenes, self.said = 0, []
        make_python3(os.path.dirname(sim.xe))
        self.environ = sim.environ(VMBACKUP_XAPI_URL=sim.unix_url)

    def say(self, *lines):
        """Print lines; paths in them keep their bytes, whatever the locale."""
        for line in lines:
            sys.stdout.buffer.write(line.encode('utf-8', 'surrogateescape') + b'\n')
        sys.stdout.buffer.flush()
        self.said += lines

    def scene(self, text):
        self.scenes += 1
        self.say('', '== %d. %s' % (self.scenes, text))

    def output(self, line, status=0):
        """What sh prints for a command line. Raise Unexpected for another exit status."""
        child = subprocess.Popen(['sh', '-c', line], cwd=self.directory, env=self.environ,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, start_new_session=True)
        try:
            output = child.communicate()[0].decode('utf-8', 'surrogateescape')
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            child.communicate()
            raise
        if child.returncode != status:
            self.say(*output.splitlines())
            raise Unexpected('exit status %d, not %d, of: %s' % (child.returncode, status, line))
        return output

    def run(self, line, *wanted, show='', status=0):
        """Show a command line and what it prints: of that only lines with `show`, without --full.

        Return it. Raise Unexpected if it does not hold each text that is wanted.
        """
        self.say('$ ' + line)
        output = self.output(line, status)
        lines = output.rstrip('\n').split('\n') if output.strip() else []
        shown = lines if self.is_full else [text for text in lines if re.search(show, text)]
        more = len(lines) - len(shown)
        self.say(*(shown + ['[%d lines more]' % more] if more > 1 else lines))
        if status:
            self.say('[exit status %d]' % status)
        for text in wanted:
            expect(text in output, 'this is not printed: ' + text)
        return output

    def disk_of(self, vm):
        """The uuid of a VM's one disk."""
        return self.output('xe vbd-list type=Disk params=vdi-uuid --minimal vm-uuid='
                           '$(xe vm-list params=uuid --minimal name-label=%s)'
                           % shlex.quote(vm)).strip()


def expect(fact, text):
    if not fact:
        raise Unexpected(text)


def partition(image):
    """Put a partition table onto a disk, and into its one partition what tells ext4."""
    image.write(0, bytes(510) + b'\x55\xaa')
    image.write(446, struct.pack('<B3xB3xII', 0x80, 0x83, 2048, image.virtual_size // 512 - 2048))
    image.write((1 << 20) + 1024, bytes(56) + struct.pack('<H38xI', 0xef53, 0x40) + bytes(924))


# The scenes of the story.

def preview(demo):
    demo.scene('A config says where to, which VMs and how many backups; a preview changes nothing')
    demo.run('cat night.cfg', 'vm-export=web')
    demo.run(VMBACKUP + 'preview night.cfg', 'vm-export: mail server:2, web', 'SUCCESS preview',
             show='-export: |covered by any line: ')


def a_night(demo):
    demo.scene('A night: snapshots are exported; what was written is read again and verified')
    demo.run(NIGHT, 'Success - S:3 W:0 E:0', show='verified|VMs: | ended ')


def on_disk(demo):
    demo.scene('What is on disk: without its file `success` it is no backup')
    demo.run('find BACKUPS/web -type f | sort', '/web.xva\n', '/success\n', '/RESTORE.txt\n')


def verify(demo):
    demo.scene('Are they still whole? Every block is read and its checksum compared')
    demo.run(VMBACKUP + 'verify night.cfg', '- good %s/BACKUPS/web/' % demo.directory)


def listing(demo):
    demo.scene('Which backups are there?')
    demo.run(VMBACKUP + 'list night.cfg', 'total of 3 VMs: 3 good')


def lost(demo):
    demo.scene('A VM is lost')
    demo.run("xe vm-shutdown vm='mail server' force=true")
    demo.run('xe vdi-export uuid=%s format=raw filename=lost.raw' % demo.disk_of('mail server'))
    demo.run("xe vm-uninstall vm='mail server' force=true", 'All objects destroyed')


def restored(demo):
    demo.scene('It is restored')
    demo.run(VMBACKUP + "restore 'mail server' from=night.cfg", 'restored: the VM mail server (',
             show='restore of|verified|restored: ')


def compared(demo):
    demo.scene('Its disk is the same, byte for byte')
    demo.run('xe vdi-export uuid=%s format=raw filename=back.raw' % demo.disk_of('mail server'))
    demo.run('cmp lost.raw back.raw && sha256sum back.raw', '  back.raw\n')


def extracted(demo):
    demo.scene('One file is wanted: the disk that has it, out of the archive')
    demo.run(VMBACKUP + 'extract web from=night.cfg disk=xvda to=web.raw',
             'extracted: %s/web.raw, 8388608 bytes' % demo.directory, 'ext2/3/4',
             show='extracted|table|at byte|mount|only')


def a_bad_night(demo, verb, server):
    wanted = FAILURES[verb]
    demo.scene('A bad night: xe %s fails. The summary, and the mail that was sent' % verb)
    before = demo.output(LEFT)
    demo.sim.pool.faults.add(verb, nth=wanted.nth, **wanted.fault)
    demo.run(NIGHT, wanted.line, status=wanted.status,
             show='- FAILED |NOTE.*failed|- ERROR pool|VMs: | ended ')
    if wanted.status:
        mail = server.mails[-1]
        text = 'To: %s\nSubject: %s\n\n%s' % (
            ', '.join(mail.recipients), mail.message['Subject'], mail.text)
        Path(demo.directory, 'mail.txt').write_text(text, 'utf-8')
        Path(demo.directory, 'mail.html').write_text(
            mail.message.get_body(('html',)).get_content(), 'utf-8')
        demo.run('head -n 5 mail.txt', 'To: admin@example.com\nSubject: VmBackup ', ' - ERROR - S:')
    expect(demo.output(LEFT) == before, 'there are other snapshots than before')


def status(demo, verb):
    demo.scene('What monitoring is told, until a night is good again')
    is_bad = FAILURES[verb].status > 0
    demo.run(VMBACKUP + 'status night.cfg', 'VMBACKUP ' + ('WARNING' if is_bad else 'OK'),
             status=int(is_bad))
    demo.run(NIGHT + ' quiet', 'Success - S:3 W:0 E:0')
    demo.run(VMBACKUP + 'status night.cfg', 'VMBACKUP OK - 3 of 3 VMs have a good backup')


# What --full shows besides.

def installing(demo):
    demo.scene('Installing is copying two files; a password goes into a file, or is not needed')
    demo.run('ls VmBackup.py XenAPI.py')
    demo.run('echo password | %screate-password-file VmBackup.pass' % VMBACKUP,
             'password file created')
    demo.run('ls -l VmBackup.pass', '-rw------- ')


def rotated(demo):
    demo.scene('What the nights left: a backup of each VM, two of mail server; nothing in the pool')
    demo.run('ls -1 BACKUPS/*')
    expect([1, 2] == [len(os.listdir('%s/BACKUPS/%s' % (demo.directory, name)))
                      for name in ('web', 'mail server')], 'the backups were not rotated')
    demo.run('cat status.log', ',vmbackup.py,', ',end,SUCCESS web,')
    demo.run(LEFT, 'web 0\n')


def one_disk(demo):
    demo.scene('One disk comes back as a new one')
    demo.run(VMBACKUP + 'restore db from=night.cfg disk=xvda', 'restored: ')


def looked_into(demo):
    demo.scene('A look into a disk from a VM that runs: it is named until that ends')
    output = demo.run(VMBACKUP + 'restore web from=night.cfg disk=xvda attach=db mode=rw',
                      'attached: web 0-restored-')
    uuid = UUID.findall(output)[-1]
    demo.run(VMBACKUP + 'status night.cfg', 'attached: web 0-restored-')
    demo.run(VMBACKUP + 'detach %s from=night.cfg' % uuid, 'detached: ' + uuid)


def without_network(demo):
    demo.scene('A VM comes back beside the original, without a network')
    demo.run(VMBACKUP + 'restore web from=night.cfg name=web-2 network=none', 'the VM web-2 (')
    vifs = demo.run('xe vif-list vm-name-label=web-2')
    expect(not vifs.strip(), 'it has a network')


def streamed(demo):
    demo.scene('A stream, to wherever copies are kept; here into a file')
    demo.run(VMBACKUP + 'stream desktop from=night.cfg quiet | cat > desktop.xva && ' +
             VMBACKUP + 'verify desktop.xva', '- good ', '/desktop.xva: ')


def tried_again(demo):
    demo.scene('A second try, at the end of the run, for a VM that failed')
    demo.run("sed -i 's/^RESTART_PAUSE = 30 /RESTART_PAUSE = 0.1 /' VmBackup.py")
    demo.sim.pool.faults.add('vm-snapshot', **FULL)
    demo.run(NIGHT + ' retries=1 quiet', 'TRY-AGAIN web: SNAPSHOT-FAIL', 'S:3 W:0 E:0')
    demo.run('grep web status.log | tail -n 4', ',end,TRY-AGAIN web\n', ' try:2\n')


def pinged(demo):
    demo.scene('A service that misses what does not come is told of each run')
    with HttpSink() as service:
        demo.run('echo ping_url=%s/secret >> night.cfg' % service.url)
        demo.run(VMBACKUP + 'test-ping night.cfg', 'ping_url was told: success')
        demo.run(NIGHT + ' quiet')
        Path(demo.directory, 'asked').write_text(''.join(
            '%s %s\n' % each[:2] for each in service.asked))
        demo.run('cat asked', 'GET /secret\nGET /secret/start\nGET /secret\n')


# A recording.

UNIFORM = (                    # what differs from run to run, and what is drawn in its place
    (r'\d{4}-\d\d-\d\d-\(\d\d:\d\d:\d\d\)', '2026-03-01-(00:10:01)'),
    (r'\b\d{4}([-/])\d\d[-/]\d\d \d\d:\d\d', r'2026\g<1>03\g<1>01 00:10'),
    (r'\b(00:10):\d\d\b', r'\1:01'),
    (r'(?<=pool_db_)\d{8}-\d{6}', '20260301-001001'),
    (r'\brestored-\d{4}-\d\d-\d\d\b', 'restored-2026-03-01'),
    (r'\bin \d:\d\d:\d\d\b', 'in 0:00:01'),
    (r'\b\d+min\b', '0min'),
    (r'\(\d+ s\)|(?<= t:)\d+', lambda found: re.sub('[0-9]+', '1', found.group())),
    (r'\boldest=\d+s', 'oldest=4s'),
    (r'\bsize=\d+B', 'size=11566080B'),
    (r'\bon disk [0-9.]+ MiB', 'on disk 4.1 MiB'),
    (r'\[\d+ lines more\]', '[more lines]'),         # some tell of this host's file systems
    (r'\bmail_smtp_port=\d+', 'mail_smtp_port=25'),
    (r'\S*/simpool-[0-9a-f]{8}/bin/xe\b', 'xe'),
)
UUID = re.compile(r'\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b')
ROW, COLUMN, COLUMNS = 18, 8.43, 112
KINDS = (('head', '== '), ('typed', r'\$ '),
         ('bad', r'.*(\bERROR|\bFAILED|VMBACKUP [CW]|^\[exit status)'), ('', ''))
DRAWING = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">
<style>
text {{ font: 14px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
       fill: #d0d7de; white-space: pre }}
.head {{ fill: #e3b341; font-weight: bold }} .typed {{ fill: #7ee787 }} .bad {{ fill: #ff7b72 }}
</style>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
{rows}
</svg>
"""


def uniform(lines, directory):
    """The lines of a demo as any other run prints them, too."""
    text = '\n'.join(lines).replace(directory, '/tmp/demo')
    for pattern, replacement in UNIFORM:
        text = re.sub(pattern, replacement, text)
    host = re.escape(os.uname().nodename)
    text = re.sub(r'((?<=Subject: VmBackup )|(?<=\bMETADATA_)|(?<=,))%s\b' % host, 'xen1', text)
    text = re.sub('(?m)^(Subject: .{92}).+', r'\1...', text)      # cut off by the host's name
    known = {}
    for uuid in UUID.findall(text):
        known.setdefault(uuid, '5c0ffee5-0000-4000-8000-%012d' % (len(known) + 1))
    return UUID.sub(lambda found: known[found.group()], text).split('\n')


def drawing(lines):
    """A picture, SVG, of lines on a terminal."""
    rows = []
    for line in lines:
        kind = next(name for name, pattern in KINDS if re.match(pattern, line))
        for part in textwrap.wrap(line, COLUMNS, subsequent_indent=' ' * 8,
                                  break_on_hyphens=False) or ['']:
            rows.append('<text x="16" y="%d"%s>%s</text>' % (
                ROW * len(rows) + 26, kind and ' class="%s"' % kind, html.escape(part, False)))
    return DRAWING.format(width=round(COLUMNS * COLUMN) + 32, height=ROW * len(rows) + 24,
                          rows='\n'.join(rows))


def open_shell(demo):
    shell = os.environ.get('SHELL') or 'sh'
    demo.scene("A shell in %s. The pool runs, root's password is: password; exit ends it"
               % demo.directory)
    demo.say(*('   ' + line for line in (VMBACKUP + 'preview night.cfg', NIGHT, 'xe vm-list')))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)      # Ctrl-C is meant for the shell
    try:
        subprocess.call([shell if shutil.which(shell) else 'sh'], cwd=demo.directory,
                        env=demo.environ,
                        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    finally:
        signal.signal(signal.SIGINT, before)


def end_children():
    """End what a signal found just as it was started."""
    for pid in children_of(os.getpid()):
        for send in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                send(pid, signal.SIGTERM)


def prepare(demo, server):
    """What is there before the first scene."""
    os.mkdir(os.path.join(demo.directory, 'BACKUPS'))
    for name in ('VmBackup.py', 'XenAPI.py'):
        shutil.copy(os.path.join(ROOT, name), demo.directory)
    Path(demo.directory, 'night.cfg').write_bytes(
        CONFIG.replace('{port}', str(server.port)).encode('utf-8').replace(
            b'{directory}', os.fsencode(demo.directory)))
    pool = demo.sim.pool
    partition(pool.content[pool.ref_of('VDI', demo.disk_of('web'))])


def story(demo, verb, server):
    demo.say('On a simulated pool of six VMs, in ' + demo.directory + '.',
             'Each line after a $ is run by sh. --full shows whole outputs, and more scenes.')
    further = demo.is_full
    for scene in [installing] * further + [preview, a_night, on_disk, verify, listing, lost,
                                           restored, compared, extracted]:
        scene(demo)
    a_bad_night(demo, verb, server)
    status(demo, verb)
    for scene in [rotated, one_disk, looked_into, without_network, streamed,
                  tried_again, pinged] * further:
        scene(demo)
    demo.say('', 'All of that went as expected.')


def main(argv):
    options = parse(argv)
    for number in STOPPING:            # ends the demo as an exception does: all is taken down
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix='demo-'))
        demo, ending = Demo(stack.enter_context(SimPool(pools.DEMO)), directory, options.full), 0
        stack.callback(end_children)
        server = stack.enter_context(SmtpSink())
        try:
            prepare(demo, server)
            story(demo, options.fail, server)
            if options.record:
                Path(options.record).write_text(drawing(uniform(demo.said, directory)), 'utf-8')
        except Unexpected as error:
            demo.say('', 'NOT AS EXPECTED: %s' % error)
            ending = 1
        if options.shell:
            open_shell(demo)
        return ending
