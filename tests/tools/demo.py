"""python3 -m tests demo: a night's backup, seen happening on a simulated pool.

Everything that is shown is done: each line after a `$` is given to sh in a directory of its own
below TMPDIR, beside a simulated pool of six VMs, and what follows is what it printed. Nothing else
on this machine is touched. Exit status: 0 when all went as expected, 1 when not, 2 for a command
line that cannot be understood.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, NamedTuple

from tests import ROOT
from tests.simpool import SimPool, pools
from tests.tools.processes import children_of
from tests.tools.smtp_sink import SmtpSink

CONFIG = """\
backup_dir={directory}/BACKUPS
status_log={directory}/logs/status.log
max_backups=1
pool_db_backup=1
exclude=old-.*
vdi-export=db
vm-export=web
vm-export=mail.*:2
vm-export=büro
"""
PREVIEW = './VmBackup.py VmBackup.pass demo.cfg preview'
RUN = './VmBackup.py VmBackup.pass demo.cfg'
NIGHTLY = RUN + ' > VmBackup.log 2>&1'
LEFT = ('xe snapshot-list params=uuid,name-label',
        'xe vdi-list is-a-snapshot=true params=uuid,name-label')
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
        description="A night's backup, seen happening on a simulated pool.")
    parser.add_argument('--fail', metavar='VERB', choices=FAILURES,
                        help='let this xe command fail once, and see what comes of it')
    parser.add_argument('--shell', action='store_true',
                        help='open a shell in it before the pool is taken down')
    return parser.parse_args(argv)


def say(*lines):
    """Print lines; paths in them keep their bytes, whatever the locale."""
    for line in lines:
        sys.stdout.buffer.write(line.encode('utf-8', 'surrogateescape') + b'\n')
    sys.stdout.buffer.flush()


def make_python3(directory):
    path = os.path.join(directory, 'python3')
    Path(path).write_bytes(b'#!/bin/sh\nexec %s "$@"\n' % os.fsencode(shlex.quote(sys.executable)))
    os.chmod(path, 0o700)


class Demo:
    """The pool, the directory, and the commands that are run there."""

    def __init__(self, sim, directory):
        self.sim = sim
        self.directory = directory
        self.steps = 0
        make_python3(os.path.dirname(sim.xe))
        self.environ = sim.environ()

    def headline(self, *lines):
        self.steps += 1
        say('', '-- %d. %s' % (self.steps, lines[0]), *('--    ' + line for line in lines[1:]))

    def run(self, line, status=0):
        """Show a command line, give it to sh, show what it prints and return that.

        Raise Unexpected if it ends with another exit status.
        """
        say('', '$ ' + line)
        child = subprocess.Popen(['sh', '-c', line], cwd=self.directory, env=self.environ,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, start_new_session=True)
        try:
            output = child.communicate()[0]
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            child.communicate()
            raise
        sys.stdout.buffer.write(output)
        if line.startswith('./VmBackup.py'):
            say('[exit status %d]' % child.returncode)
        if child.returncode != status:
            raise Unexpected('exit status %d, not %d, of: %s' % (child.returncode, status, line))
        return output.decode('utf-8', 'replace')

    def left(self):
        return [self.run(line) for line in LEFT]

    def dated(self, name):
        return sorted(os.listdir(os.path.join(self.directory, 'BACKUPS', name)))


def expect(fact, text):
    if not fact:
        raise Unexpected(text)


def prepare(demo):
    demo.headline('Installing it is copying two files into one directory.')
    demo.run('cp %s .' % ' '.join(shlex.quote(os.path.join(ROOT, name))
                                  for name in ('VmBackup.py', 'XenAPI.py')))
    demo.headline('The config file says where to, which VMs, how and how many backups to keep:',
                  'the boot disk of db; web, büro and all that begins with mail as a whole.')
    Path(demo.directory, 'demo.cfg').write_bytes(
        CONFIG.encode('utf-8').replace(b'{directory}', os.fsencode(demo.directory)))
    os.mkdir(os.path.join(demo.directory, 'BACKUPS'))
    demo.run('cat demo.cfg')
    demo.headline("Root's password goes into a file, so that no crontab shows it.")
    demo.run('./VmBackup.py password create-password-file=VmBackup.pass')
    demo.run('ls -l VmBackup.pass')
    demo.headline('A preview changes nothing and tells what a run would do,',
                  'also which VMs no line of the config mentions.')
    demo.run(PREVIEW)


def two_nights(demo):
    demo.headline('A night: the run. Every command that changes the pool is shown, numbered.')
    demo.run(RUN)
    demo.headline('What it wrote. A directory without its success file is no backup.')
    demo.run('find BACKUPS | sort')
    first = demo.dated('web')
    demo.headline('The next night, as cron would run it: into a log.',
                  'The oldest backup goes when the new one is complete;',
                  'mail.*:2 keeps two, all others one.')
    demo.run(NIGHTLY)
    demo.run("grep -e Deleting -e Success VmBackup.log")
    demo.run('ls -1 BACKUPS/*')
    expect(len(demo.dated('web')) == 1 and demo.dated('web') != first, 'web was not rotated')
    expect(len(demo.dated('mail server')) == 2, 'mail server has not two backups')
    demo.headline('The status log: a line for each begin and end.')
    demo.run('cat logs/status.log')
    demo.headline("What is left in the pool: nothing of ours. This snapshot was web's before.")
    demo.left()


def failure(demo, verb, server):
    wanted = FAILURES[verb]
    with open(os.path.join(demo.directory, 'demo.cfg'), 'a') as stream:
        stream.write('mail_to=admin@example.com\nmail_from=xen1@example.com\n'
                     'mail_smtp_port=%d\nmail_mode=problems\n' % server.port)
    demo.headline('A first night, as cron would run it.')
    demo.run(NIGHTLY)
    demo.run('tail -n 1 VmBackup.log')
    demo.headline('The snapshots in the pool now, all of them made by somebody else:')
    before = demo.left()
    demo.headline('The second night: xe %s fails.' % verb)
    demo.sim.pool.faults.add(verb, nth=wanted.nth, **wanted.fault)
    log = demo.run(RUN, wanted.status)
    expect(wanted.line in log, 'the log does not say: ' + wanted.line)
    if wanted.status:
        demo.headline('It is told: by the exit status, in the log, and in the status log.')
        demo.run('grep -e WARNING -e ERROR -e FAIL logs/status.log')
        mail, = server.mails
        for name, text in (('mail.txt', 'Subject: %s\n\n%s' % (mail.message['Subject'], mail.text)),
                           ('mail.html', mail.message.get_body(('html',)).get_content())):
            Path(demo.directory, name).write_text(text, 'utf-8')
        demo.headline('The mail that it sent, as a client without HTML shows it: the summary, then',
                      'the log, or that it is attached. A browser shows mail.html (with --shell).')
        shown = demo.run('head -n 12 mail.txt').splitlines()
        expect(shown[2].partition(' ')[2][:50] in shown[0], 'the mail begins without the cause')
    demo.headline('Nothing is left in the pool: the same snapshots as before.')
    expect(demo.left() == before, 'there are other snapshots than before')
    demo.headline('The third night: all is well, and the record of the failure is gone.')
    demo.run(NIGHTLY)
    demo.run('grep -e Deleting -e Success VmBackup.log')
    expect(demo.left() == before, 'there are other snapshots than before')


def open_shell(demo):
    shell = os.environ.get('SHELL') or 'sh'
    demo.headline('A shell in %s. The pool runs; root\'s password is: password' % demo.directory,
                  PREVIEW, RUN, 'xe vm-list', 'exit ends it.')
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


def main(argv):
    options = parse(argv)
    for number in STOPPING:            # ends the demo as an exception does: all is taken down
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix='vmbackup-demo-'))
        demo, status = Demo(stack.enter_context(SimPool(pools.DEMO)), directory), 0
        stack.callback(end_children)
        try:
            say("A night's backup on a simulated pool of six VMs. All of it happens in",
                directory + ' and nowhere else on this machine.')
            prepare(demo)
            if options.fail:
                failure(demo, options.fail, stack.enter_context(SmtpSink()))
            else:
                two_nights(demo)
            say('', 'All of that went as expected.')
        except Unexpected as error:
            say('', 'NOT AS EXPECTED: %s' % error)
            status = 1
        if options.shell:
            open_shell(demo)
        return status
