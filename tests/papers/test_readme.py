"""README.md and example.cfg say what is so: their commands are run, their tables compared."""

import array
import contextlib
import difflib
import errno
import fcntl
import glob
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
import unittest.mock
from typing import List, NamedTuple

import VmBackup
from tests import ROOT, SCRIPT
from tests.simpool import SimPool, pools
from tests.tools import forked
from tests.tools.demo import make_python3
from tests.tools.smtp_sink import SmtpSink, deaf_port
from tests.tools.support import LIMIT, PoolCase

MARK = '@@@'                   # between the outputs of commands
HOST = os.uname().nodename
PLAYGROUND = '$ python3 -m tests.simpool bash'
# Directories of a host that are below a directory of the test instead.
MOVED = ('/snapshots', '/opt/VmBackup', '/root/VmBackup', '/tmp/try')
PYTHON_2 = ('SyntaxError: invalid syntax',)      # what it says of our grammar
# In the place of the script: has Machine fork it with these words, streams and surroundings.
LAUNCHER = '''#!/usr/bin/env python3
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
    door.connect(%r)
    door.sendmsg([json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()],
                 [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0, 1, 2]))])
    sys.exit(int(door.recv(9)))
'''
DATED = '2026-03-01-(00:10:01)'
UNIFORM = (
    (r'\d{4}-\d\d-\d\d-\(\d\d:\d\d:\d\d\)', DATED),
    (r'\d{4}/\d\d/\d\d \d\d:\d\d:\d\d', '2026/03/01 00:10:01'),
    (r'\b\d{4}-\d\d-\d\d \d\d:\d\d\b', '2026-03-01 00:10'),
    (r'\b\dmin\b', '0min'),
    (r'\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b', 'UUID'),
    (r'\bas of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b', 'as of 2026-03-01 00:10:01'),
    (r'\brestored-\d{4}-\d\d-\d\d\b', 'restored-2026-03-01'),
    (r'\b(\w+-test)-[0-9a-f]{8}\b', r'\1-5c0ffee5'),
    (r'\bvmbackup_restore [0-9a-f]{32}\b', 'vmbackup_restore 5c0ffee5'),
    (r'\(\d+ s\)$', '(1 s)'),
    (r'\bRef:\d+\b', 'Ref:1'),
    (r'\bbyte \d+\b', 'byte 1'),
    (r'\boldest=\d+s', 'oldest=4s'),
    (r'\bsize=\d+B', 'size=11566080B'),
    (r'\b[0-9A-F]{16}\b', 'CHECKSUM'),
    (r'\S*/simpool-[0-9a-f]{8}/bin/xe\b', '/opt/xensource/bin/xe'),
    (r',%s,(begin|end)\b' % re.escape(HOST), r',xen1,\1'),
    (r'^.* - \*\*\*NOTE - backup_dir \S+ is on the root file system of this host\n', ''),
    (r'\bMETADATA_%s\b' % re.escape(HOST), 'METADATA_xen1'),
    (r'running on %s \.\.\.' % re.escape(HOST), 'running on xen1 ...'),
    (r'[ \t]+$', ''),
)


class Block(NamedTuple):
    """A fenced block of the README."""

    kind: str                  # what follows the fence
    section: str               # the heading above it, of level 2
    lines: List[str]


class Command(NamedTuple):
    """A command of a console block, and what it prints."""

    text: str
    output: List[str]


def readme():
    """The text of the README."""
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as stream:
        return stream.read()


def blocks(*kinds):
    """The fenced blocks of these kinds, in order."""
    found, section, inside, fence = [], '', None, ''
    for line in readme().split('\n'):
        opening = re.match(r'( *)```(\w*)$', line)
        if inside is not None:
            if line.strip() == '```':
                found.append(Block(fence, section, inside))
                inside = None
            else:
                inside.append(line)
        elif opening:
            inside, fence = [], opening.group(2)
        elif line.startswith('## '):
            section = line[3:]
    return [block for block in found if block.kind in kinds]


def section(title):
    """The text below a heading, to the next one of its level."""
    level = re.search('^(#+) %s$' % re.escape(title), readme(), re.MULTILINE).group(1)
    text = readme().split('\n%s %s\n' % (level, title))[1]
    return re.split('^#{1,%d} ' % len(level), text, flags=re.MULTILINE)[0]


def table(text):
    """The rows of a text's first table, without its head; cells without blanks around them."""
    lines = re.search(r'(?:^\|.*\n)+', text, re.MULTILINE).group().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines]


def code(text):
    """The pieces of a text that stand between backticks."""
    return [piece.replace('\\|', '|') for piece in re.findall('`([^`]+)`', text)]


def commands(block):
    """The commands of a console block; `> ` continues one, as a shell's second prompt."""
    found = []
    for line in block.lines:
        if line.startswith('$ '):
            found.append(Command(line[2:], []))
        elif line.startswith('> ') and not found[-1].output:
            found[-1] = found[-1]._replace(text=found[-1].text + '\n' + line[2:])
        else:
            found[-1].output.append(line)
    return found


def uniform(lines):
    """Lines without what differs from run to run and from host to host."""
    text = '\n'.join(lines)
    for pattern, replacement in UNIFORM:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text.split('\n') if text else []


def agrees(expected, actual):
    """Whether outputs are the same; a line `...` stands for any lines."""
    pattern = ''.join('(?:.*\n)*' if line == '...' else re.escape(line) + '\n'
                      for line in expected)
    return re.fullmatch(pattern, ''.join(line + '\n' for line in actual)) is not None


class Machine:
    """A directory in which commands for a host can be run, beside a simulated pool."""

    def __init__(self, case):
        self.directory = tempfile.mkdtemp(prefix='readme-')
        case.addCleanup(shutil.rmtree, self.directory)
        self.home = self.path('/opt/VmBackup')
        for name in ('/opt/VmBackup', '/snapshots/BACKUPS', '/root', '/tmp', '/bin'):
            os.makedirs(self.path(name))
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.door.bind(self.path('/door'))
        self.door.listen(1)
        case.addCleanup(self.door.close)
        case.addCleanup(self.door.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=self.serve, daemon=True).start()
        with open(self.home + '/VmBackup.py', 'w', encoding='utf-8') as stream:
            stream.write(LAUNCHER % self.path('/door'))
        os.chmod(stream.name, 0o755)
        make_python3(self.path('/bin'))

    def path(self, path):
        """Where a path of the host is."""
        return self.directory + path

    def moved(self, text):
        """A text with paths of the host, for this machine."""
        for prefix in MOVED:
            text = re.sub(r'(?<![\w/])' + prefix, self.path(prefix), text)
        return text

    def serve(self):
        """Fork the script for one LAUNCHER after the other, until the door is shut."""
        with contextlib.suppress(OSError):
            while True:
                with self.door.accept()[0] as asking:
                    data, ancillary, _, _ = asking.recvmsg(1 << 20, socket.CMSG_SPACE(3 * 4))
                    streams = array.array('i', ancillary[0][2])
                    words, cwd, environ = json.loads(data.decode())
                    environ = {name: value for name, value in environ.items()
                               if not forked.DECIDED_AT_START.match(name)}
                    child = forked.start(
                        words[1:], dict(environ, **forked.environ_at_start(os.environ)), cwd,
                        forked.Script(words[0]), **dict(zip(('stdin', 'stdout', 'stderr'), streams)))
                    for handle in streams:
                        os.close(handle)
                    asking.sendall(b'%d' % child.wait())

    def run(self, wanted, cwd, environ):
        """Run commands in one sh; return the lines that each of them prints."""
        script = self.path('/script')
        with open(script, 'w', encoding='utf-8') as stream:
            for command in wanted:
                stream.write('%s\nstatus=$?; echo; echo %s; (exit $status)\n' % (
                    self.moved(command.text), MARK))
        environ = dict(environ, PATH=self.path('/bin') + os.pathsep + environ['PATH'],
                       LC_ALL='C')
        done = subprocess.run(['sh', script], cwd=cwd, env=environ, timeout=LIMIT,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        text = done.stdout.decode('utf-8').replace(self.directory, '')
        outputs = text.split('\n%s\n' % MARK)[:-1]
        return [output.rstrip('\n').split('\n') if output.strip('\n') else []
                for output in outputs]


class Shown(unittest.TestCase):
    """Every console block: its commands print what stands below them."""

    def compare(self, wanted, outputs):
        """Fail with a diff where an output is another one than the README's."""
        self.assertEqual(len(wanted), len(outputs), 'the shell ended early')
        for command, output in zip(wanted, outputs):
            expected, actual = uniform(command.output), uniform(output)
            while expected and not expected[-1]:
                expected.pop()
            if not agrees(expected, actual):
                self.fail('$ %s\n%s' % (command.text, '\n'.join(
                    difflib.unified_diff(expected, actual, 'README.md', 'printed', lineterm=''))))

    def test_quick_start_works_as_printed_in_the_playground(self):
        machine = Machine(self)
        wanted = [command for block in blocks('console') if block.section == 'Quick start'
                  for command in commands(block)]
        self.assertEqual([PLAYGROUND[2:], 'exit'], [wanted[0].text, wanted[-1].text])
        with SimPool(pools.DEMO) as sim:        # as tests.simpool does, which has tests
            outputs = machine.run(wanted[1:-1], machine.home, sim.environ())
        self.compare(wanted[1:-1], outputs)

    def test_what_is_shown_of_a_host_is_what_it_prints(self):
        machine = Machine(self)
        with SimPool(pools.DEMO) as sim:
            environ = dict(sim.environ(), VMBACKUP_XAPI_URL=sim.unix_url)
            for block in blocks('console'):
                if block.section == 'Quick start':
                    continue
                if block.section == 'Restore':
                    self.prepare_restore(machine, sim)
                wanted = commands(block)
                with self.subTest(block.section):
                    self.compare(wanted, machine.run(wanted, machine.home, environ))

    def test_what_is_shown_of_a_test_mail_is_what_it_prints(self):
        machine, sink = Machine(self), SmtpSink()
        self.addCleanup(sink.stop)
        with open(machine.home + '/mail.cfg', 'w', encoding='utf-8') as stream:
            stream.write('mail_to=admin@example.com\nmail_smtp_port=%d\n' % sink.port)
        block, = [block for block in blocks('text') if block.section == 'Mail']
        output, = machine.run(commands(block), machine.home, dict(os.environ))
        self.compare(commands(block), [[line.replace('port %d' % sink.port, 'port 25')
                                        for line in output]])
        self.assertEqual(1, len(sink.mails))

    @staticmethod
    def prepare_restore(machine, sim):
        """The backups get the date that the README shows, and there is a VM without disks."""
        for path in glob.glob(machine.path('/snapshots/BACKUPS/*/backup-*')):
            os.rename(path, os.path.join(os.path.dirname(path), 'backup-' + DATED))
        if not [vm for vm in sim.pool.tables['VM'].values()
                if vm['name_label'] == 'db restored']:
            sim.pool.add_vm(name_label='db restored')


class Tables(unittest.TestCase):
    """Tables name all that there is, and nothing else."""

    def test_every_key_is_documented_with_its_default(self):
        rows = {code(row[0])[0]: ''.join(code(row[1])) for row in table(section('Config file'))}
        wanted = {key.name: key.default for key in VmBackup.KEYS}
        wanted.update({method: '' for method in VmBackup.METHODS})
        self.assertEqual(wanted, rows)

    def test_every_token_of_the_status_log_is_documented(self):
        documented = [code(row[0])[0] for row in table(section('Status log'))]
        with open(VmBackup.__file__, encoding='utf-8') as stream:
            tokens = set(re.findall("'([A-Z]+(?:-[A-Z]+)+)'", stream.read()))
        self.assertEqual(sorted(tokens | {'SUCCESS', 'WARNING', 'SKIPPED', 'INTERRUPTED'}),
                         sorted(documented))

    def test_every_marker_is_documented(self):
        for marker in VmBackup.MARKERS:
            self.assertIn('`%s`' % marker, section('Backup directories'))

    def test_every_key_of_the_cfg_files_is_documented(self):
        rows = {code(row[0])[0]: row[1] for row in table(section('Backup directories'))}
        for name, keys in (('vm.cfg', VmBackup.VM_CFG), ('VIFs/vif-<n>.cfg', VmBackup.VIF_CFG),
                           ('DISK-<device>/vbd.cfg', VmBackup.VBD_CFG),
                           ('DISK-<device>/vdi.cfg', VmBackup.VDI_CFG)):
            self.assertEqual(', '.join(keys), rows[name])

    def test_links_lead_to_headings_and_files(self):
        headings = re.findall('^#+ (.*)$', readme(), re.MULTILINE)
        anchors = {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')
                   for heading in headings}
        for target in re.findall(r'\]\(([^)]+)\)', readme()):
            if target.startswith('#'):
                self.assertIn(target[1:], anchors)
            elif not target.startswith('https://'):
                self.assertTrue(os.path.exists(os.path.join(ROOT, target)), target)

    def test_lines_outside_of_tables_and_blocks_are_at_most_100_columns(self):
        text = re.sub('^ *```.*?^ *```$', '', readme(), flags=re.MULTILINE | re.DOTALL)
        self.assertEqual([], [line for line in text.split('\n')
                              if len(line) > 100 and not line.startswith('|')])


class Examples(unittest.TestCase):
    """Config files, cron lines, selections."""

    def parse(self, lines):
        """A config's settings and rules; it has no mistakes."""
        config = VmBackup.parse_config(lines, 'README.md', VmBackup.Invocation(
            '', '', (), False, False, {}))
        self.assertEqual(((), ()), (config.unexpected, config.errors))
        return config

    def test_every_config_file_shown_is_understood(self):
        found = blocks('ini')
        self.assertGreater(len(found), 2)
        for block in found:
            self.assertTrue(self.parse(block.lines).rules, block.section)

    def test_example_cfg_is_what_the_command_config_prints(self):
        done = subprocess.run([sys.executable, 'VmBackup.py', 'config'], cwd=ROOT,
                              stdout=subprocess.PIPE, timeout=LIMIT)
        head, text = done.stdout.decode('utf-8').split('\n\n', 1)
        self.assertEqual((0, '\nUsage-config-file:'), (done.returncode, head))
        with open(os.path.join(ROOT, 'example.cfg'), encoding='utf-8') as stream:
            self.assertEqual(text.rstrip('\n') + '\n', stream.read())

    def test_example_cfg_has_every_key_and_is_understood(self):
        with open(os.path.join(ROOT, 'example.cfg'), encoding='utf-8') as stream:
            lines = stream.read().split('\n')
        self.parse(lines)
        settings = [re.sub('^#', '', line) for line in lines if re.match(r'#?\w+=', line)]
        config = self.parse(settings)
        self.assertEqual([key.name for key in VmBackup.KEYS],
                         [line.partition('=')[0] for line in settings if '_' in line[:5] or
                          line.partition('=')[0] in {key.name for key in VmBackup.KEYS}])
        given = {'max_backups': 3, 'backup_dir': '/path/to/backupspace',
                 'status_log': '/path/to/backupspace/logs/status.log'}
        defaults = {key.name: key.parse(key.default) for key in VmBackup.KEYS}
        self.assertEqual(dict(defaults, **given), config.settings._asdict())

    def test_cron_lines_call_the_script_as_it_can_be_called(self):
        lines = [line for block in blocks('cron') for line in block.lines]
        self.assertGreater(len(lines), 1)
        for line in lines:
            words = shlex.split(line.split(' >> ')[0])[5:]
            if words[0].endswith('python3'):
                words.pop(0)
            self.assertEqual('/opt/VmBackup/VmBackup.py', words[0])
            if words[1] == 'verify' or words[2].startswith('test-restore='):   # they have tests
                continue
            rules = VmBackup.parse_arguments(words[1:]).rules
            self.assertEqual([words[2]], [rule.text for rule in rules])

    def test_worked_examples_of_choosing_vms_are_right(self):
        text = section('Choosing VMs')
        names = code(re.search('Examples, for a pool with the VMs (.*?):\n', text,
                               re.DOTALL).group(1))
        vms = [VmBackup.Vm('ref-' + name, 'uuid-' + name, name, {}) for name in names]
        rows = table(text)
        self.assertGreater(len(rows), 10)
        for lines, result in rows:
            with self.subTest(lines):
                rules = self.parse(code(lines)).rules
                plan = VmBackup.select(rules, vms, 4)
                if result.startswith('an error'):
                    self.assertTrue(plan.failures)
                    self.assertFalse(plan.jobs)
                    continue
                wanted = []
                for part in result.split('; '):
                    method, _, shown = part.partition(' of ')
                    wanted += [(method, name) for name in code(shown)]
                self.assertEqual((), plan.errors)
                self.assertEqual(sorted(wanted),
                                 sorted((job.method, job.shown) for job in plan.jobs))

    def test_regex_of_the_status_log_takes_lines_apart(self):
        expression = re.compile('\n'.join(blocks('regex')[0].lines))
        for line, wanted in (
                ('T,vmbackup.py,h,begin', ('T', 'vmbackup.py', 'h', 'begin', None, None)),
                ('T,vm-export,h,begin,a,b', ('T', 'vm-export', 'h', 'begin', 'a,b', None)),
                ('T,vm-export,h,end,SUCCESS a,b,elapse:3 size:10G',
                 ('T', 'vm-export', 'h', 'end', 'SUCCESS a,b', 'elapse:3 size:10G')),
                ('T,vdi-export,h,end,NO-BOOT-DISK a,b',
                 ('T', 'vdi-export', 'h', 'end', 'NO-BOOT-DISK a,b', None)),
                ('T,vmbackup.py,h,end,ERROR,S:1 W:0 E:1',
                 ('T', 'vmbackup.py', 'h', 'end', 'ERROR', 'S:1 W:0 E:1'))):
            self.assertEqual(wanted, expression.fullmatch(line).groups())
        for block in blocks('console'):
            for line in block.lines:
                if re.match(r'\d{4}/\d\d/\d\d ', line):
                    self.assertTrue(expression.fullmatch(line), line)


class Troubles(PoolCase):
    """The headings of the troubleshooting section are what is really printed."""

    def fault(self, name, *error, **details):
        """Let a call be refused."""
        self.sim.pool.faults.add(name, 'refuse', error=list(error), **details)

    def printed(self, heading):
        """What VmBackup.py prints in the case of a heading."""
        return getattr(self, 'provoke_' + re.sub(r'\W+', '_', heading).strip('_').lower())()

    def test_every_heading_is_printed_in_its_case(self):
        headings = re.findall('^### `(.*)`$', section('Troubleshooting'), re.MULTILINE)
        self.assertEqual(len(re.findall('^###', section('Troubleshooting'), re.MULTILINE)),
                         len(headings))
        self.assertGreater(len(headings), 20)
        self.leaves_things_behind = True
        for heading in headings:
            if heading in PYTHON_2:
                continue
            with self.subTest(heading):
                self.setUp()
                self.script = SCRIPT
                self.leaves_things_behind = True
                self.assertIn(heading.replace('/opt/xensource/bin/xe', self.sim.xe),
                              self.printed(heading).replace('/nosuch/xe', self.sim.xe))

    def provoke_error_no_vms_loaded(self):
        return self.back_up('vm-export=nothing.*').output

    def provoke_note_no_file(self):
        return self.vmbackup('password', 'weekend.cfg', 'preview').output

    def provoke_error_config_backup_dir_does_not_exist(self):
        return self.back_up('vm-export=db', backup_dir='/nosuch').output

    def provoke_error_config_backup_dir_is_not_writable(self):
        with unittest.mock.patch('os.access', return_value=False):     # root may write anywhere
            return VmBackup.BackupStore(self.backups, 'x').problem('no')

    def provoke_cannot_write_in_backup_dir(self):
        os.mkdir(os.path.join(self.backups, VmBackup.WRITE_TEST))
        return self.back_up('vm-export=db').output

    def provoke_where_nothing_is_mounted(self):
        table = os.path.join(self.directory, 'fstab')
        with open(table, 'w', encoding='utf-8') as stream:
            stream.write('server:/share %s nfs defaults 0 0\n' % self.backups)
        self.script = self.changed_script(FSTAB=table)
        return self.back_up('vm-export=db', require_mount='auto').output

    def provoke_is_on_the_root_file_system(self):
        return self.back_up('vm-export=db', require_mount='yes', backup_dir='/').output

    def provoke_does_not_answer_within(self):
        os.mkfifo(os.path.join(self.backups, VmBackup.WRITE_TEST))
        self.script = self.changed_script(SHARE_TIMEOUT=0.5)
        return self.back_up('vm-export=db').output

    def provoke_another_run_is_at_work_on_it(self):
        os.mkdir(os.path.join(self.backups, '.locks'))
        with open(os.path.join(self.backups, '.locks', 'db.lock'), 'w') as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            return self.back_up('vm-export=db').output

    def provoke_cannot_lock(self):
        run = VmBackup.BackupRun(VmBackup.parse_config(
            ['backup_dir=' + self.backups], 'f', VmBackup.Invocation('', '', (), False, False, {})),
            VmBackup.Console(io.BytesIO()), None, VmBackup.Signals())
        run.store.problem('no')
        with unittest.mock.patch('fcntl.flock', side_effect=OSError(errno.ENOLCK, 'No locks')):
            with run.locked(self.backups + '/db', 0):
                return run.console.lines[-1]

    def provoke_no_space(self):
        return self.back_up('vm-export=db', min_free='9999T').output

    def provoke_no_progress_for(self):
        self.sim.pool.faults.add('vm-export', 'hang', nth=2)
        return self.back_up('vm-export=db', stall_timeout=0.01).output

    def damaged(self, change, *lines, **keys):
        """What is printed if a new archive is changed by a shell command before it is verified."""
        return self.vmbackup('password', self.config(*lines, **keys),
                             VMBACKUP_XE=self.xe_that(change)).output

    def provoke_verify_fail(self):
        output = self.damaged('printf "HTTP/1.0 500 x</h1>y" >> "$1"', 'vm-export=db')
        self.assertIn('the export failed: y', output)
        return output

    def provoke_to_verify_it_with(self):
        return self.vmbackup('password', self.config('vm-export=db', compress='zstd'), 'preview',
                             PATH='/nosuch').output

    def provoke_this_host_has_no_libxxhash(self):
        self.script = self.changed_script(XXHASH=(), SLOW_BYTES=0)
        return self.back_up('vm-export=db').output

    def provoke_it_is_whole_but_not_what_it_was(self):
        self.back_up('vm-export=db')
        path = self.dated('db')[0] + '/db.xva'
        with open(path, 'r+b') as stream:
            data = stream.read()
            stream.seek(0)
            stream.write(data.replace(b'RESTORE_db', b'RESTORE_xx'))
        return self.vmbackup('verify', self.backups).output

    def provoke_it_is_of_another_snapshot(self):
        for _ in range(2):
            self.back_up('vm-export=db')
        first, second = [path + '/db.xva' for path in self.dated('db')]
        shutil.copy(first, second)
        return self.vmbackup('verify', self.backups).output

    def provoke_earlier_ones_cannot_be_removed_from_the_pool(self):
        self.script = self.changed_script(DISCARD_PAUSES=())
        for verb in ('vm-uninstall', 'snapshot-uninstall'):
            self.fault(verb, 'SR_BACKEND_FAILURE_46', '', '', '', times=0)
        return [self.back_up('vm-export=db').output for _ in range(3)][-1]

    def provoke_the_record_of_a_snapshot_is_damaged(self):
        self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'snapshot.json')
        return self.back_up('vm-export=db').output

    def provoke_which_this_program_did_not_make(self):
        self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'thesis.odt')
        return self.back_up('vm-export=db').output

    def provoke_error_vm_not_found(self):
        return self.back_up('vm-export=db', 'vm-export=nothing').output

    def provoke_warning_vm_not_found(self):
        return self.back_up('vm-export=db', 'vm-export=nothing.*').output

    def provoke_note_vm_not_found(self):
        return self.back_up('vm-export=db', 'exclude=nothing').output

    def provoke_error_more_than_one_vm_with_the_name(self):
        self.sim.pool.add_vm(name_label='db')
        return self.back_up('vm-export=db').output

    def provoke_error_invalid_regex(self):
        return self.back_up('vm-export=d[b').output

    def provoke_error_vm_max_backup_is_invalid(self):
        return self.back_up('vm-export=db:x').output

    def provoke_error_unexpected_config_key(self):
        return self.back_up('vm-export=db', maxbackups=3).output

    def provoke_error_unknown_option(self):
        return self.vmbackup('password', 'db', 'prevew').output

    def provoke_session_authentication_failed(self):
        return self.vmbackup('wrong', 'db', 'preview').output

    def provoke_host_is_slave(self):
        self.use_pool(role='slave')
        self.fault('session.login_with_password', 'HOST_IS_SLAVE',
                   self.sim.https_url[len('https://'):], times=0)
        return self.vmbackup('password', 'db', 'preview').output

    def provoke_xenapi_login_at(self):
        self.sim.down()
        return self.vmbackup('password', 'db', 'preview').output

    def provoke_xenapi_py_is_missing(self):
        shutil.copy(os.path.join(ROOT, 'VmBackup.py'), self.directory)
        return subprocess.run([sys.executable, '-S', 'VmBackup.py', 'password', 'db', 'preview'],
                              cwd=self.directory, stdout=subprocess.PIPE, timeout=LIMIT,
                              env=self.environ(PYTHONPATH='')).stdout.decode('utf-8')

    def provoke_cannot_start_opt_xensource_bin_xe(self):
        return self.vmbackup('password', self.config('vm-export=db'),
                             VMBACKUP_XE='/nosuch/xe').output

    def provoke_sr_backend_failure_44(self):
        self.fault('vm-snapshot', 'SR_BACKEND_FAILURE_44', '', 'There is insufficient space', '')
        return self.back_up('vm-export=db').output

    def provoke_was_left_in_the_pool(self):
        self.script = self.changed_script(DISCARD_PAUSES=(), BUSY_PAUSES=())
        self.fault('vdi-destroy', 'VDI_IN_USE', 'OpaqueRef:NULL', 'destroy', times=0)
        return self.back_up('vdi-export=db').output

    def provoke_was_not_made_by_this_program_as_far_as_it_knows_not_touched(self):
        self.xe('vm-snapshot', 'vm=db', 'new-name-label=RESTORE_db')
        return self.back_up('vm-export=db').output

    def provoke_no_password_in_password_file(self):
        path = os.path.join(self.directory, 'empty')
        with open(path, 'w', encoding='utf-8'):
            pass
        return self.vmbackup(path, 'db', 'preview').output

    def provoke_can_be_read_by_others(self):
        path = os.path.join(self.directory, 'pass')
        self.vmbackup('password', 'create-password-file=' + path)
        os.chmod(path, 0o644)
        return self.vmbackup(path, 'db', 'preview').output

    def provoke_note_not_the_pool_master(self):
        self.use_pool(role='slave')
        return self.back_up('vm-export=db', pool_db_backup=1).output

    def provoke_warning_mail_to(self):
        with deaf_port() as port:
            return self.back_up('vm-export=db', mail_to='a@example.com',
                                mail_smtp_server='127.0.0.1', mail_smtp_port=port).output

    def provoke_warning_cannot_write_status_log(self):
        return self.back_up('vm-export=db', status_log=self.backups).output

    def provoke_warning_cannot_write_report_file(self):
        return self.back_up('vm-export=db', report_file=self.backups).output

    def with_hook(self, text):
        """What a run prints that has a hook with this text in sh."""
        path = os.path.join(self.directory, 'hook')
        with open(path, 'w', encoding='utf-8') as stream:
            stream.write('#!/bin/sh\n' + text)
        os.chmod(path, 0o755)
        return self.back_up('vm-export=db', 'hook_timeout=0.01', hook=path).output

    def provoke_hook_fail(self):
        return self.with_hook('[ $1 != backup-start ]\n')

    def provoke_no_end_within(self):
        return self.with_hook('exec sleep 60\n')

    def provoke_config_hook_is_not_a_program(self):
        return self.back_up('vm-export=db', hook=self.config('vm-export=db')).output

    def provoke_is_not_utf_8_text(self):
        path = self.config('vm-export=db')
        with open(path, 'ab') as stream:
            stream.write('vm-export=büro\n'.encode('latin1'))
        return self.vmbackup('password', path, 'preview').output

    def provoke_error_ended_by_signal(self):
        self.sim.pool.faults.add('vm-export', 'slow', nth=2, rate=50000)
        child = self.start('password', self.config('vm-export=web'))
        while [name for name, _ in self.xe_calls()].count('vm-export') < 2:
            self.assertIsNone(child.poll())
        child.terminate()
        return self.finish(child).output


if __name__ == '__main__':
    unittest.main()
