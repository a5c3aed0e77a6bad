"""README.md and example.cfg say what is so: their commands are run, their tables compared."""

import array
import contextlib
import difflib
import errno
import fcntl
import glob
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import unittest
import unittest.mock
from pathlib import Path
from typing import List, NamedTuple

import VmBackup
from tests import ROOT, SCRIPT
from tests.__main__ import COMMANDS
from tests.simpool import SimPool, pools
from tests.tools import forked
from tests.tools.demo import make_python3
from tests.tools.smtp_sink import deaf_port
from tests.tools.support import (
    LIMIT, NO_XXHASH, PoolCase, hanging, parsed, shared_without_pool, store_at)

MARK = '@@@'                   # between the outputs of commands
HOST = os.uname().nodename
# Directories of a host that are below a directory of the test instead.
MOVED = ('/tmp',)
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
    (r'(iB|bytes) in \d:\d\d:\d\d$', r'\1 in 0:00:01'),
    (r'\bRef:\d+\b', 'Ref:1'),
    (r'\bbyte \d+\b', 'byte 1'),
    (r'\boldest=\d+s', 'oldest=4s'),
    (r'\bsize=\d+B', 'size=11566080B'),
    (r'\b[0-9A-F]{16}\b', 'CHECKSUM'),
    (r'\S*/simpool-[0-9a-f]{8}/bin/xe\b', '/opt/xensource/bin/xe'),
    (r',%s,(begin|end)\b' % re.escape(HOST), r',xen1,\1'),
    (r'^.* - \*\*\*NOTE - backup_dir \S+ is on the root file system of dom0\n', ''),
    (r'\bMETADATA_%s\b' % re.escape(HOST), 'METADATA_xen1'),
    (r'running on %s \.\.\.' % re.escape(HOST), 'running on xen1 ...'),
    (r'\.run-%.30s-([\w.]+)-[0-9a-f]{8}' % re.escape(HOST), r'.run-xen1-\1-1f0c9a27'),
    (r'[ \t]+$', ''),
)


class Block(NamedTuple):
    kind: str                  # what follows the fence
    section: str               # the heading above it, of level 2
    lines: List[str]


class Command(NamedTuple):
    text: str
    output: List[str]


def readme():
    return Path(ROOT, 'README.md').read_text('utf-8')


def blocks(*kinds):
    found, title = [], ''
    for heading, kind, text in re.findall(r'(?ms)^## (.*?)$|^ *```(\w*)$\n(.*?)^ *```$', readme()):
        title = heading or title
        if kind in kinds:
            found.append(Block(kind, title, text.splitlines()))
    return found


def section(title):
    """The text below a heading, to the next one of its level."""
    level = re.search('^(#+) %s$' % re.escape(title), readme(), re.MULTILINE).group(1)
    text = readme().split('\n%s %s\n' % (level, title))[1]
    return re.split('^#{1,%d} ' % len(level), text, flags=re.MULTILINE)[0]


def table(text):
    """The rows of a text's first table, without its head; cells without blanks around them."""
    text = re.sub('(?ms)^ *```.*?^ *```$', '', text)
    lines = re.search(r'(?:^\|.*\n)+', text, re.MULTILINE).group().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines]


def code(text):
    return [piece.replace('\\|', '|') for piece in re.findall('`([^`]+)`', text)]


def session():
    """All commands whose output is shown: those of a console block behind their prompts, or a block
    of sh as a whole, of which an `output` block is what it prints."""
    found, before = [], None
    for block in blocks('console', 'sh', 'output'):
        if block.kind == 'output':
            found.append(Command('\n'.join(before.lines), block.lines))
        elif block.kind == 'console':
            found += commands(block)
        before = block
    return found


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
        script = Path(self.home, 'VmBackup.py')
        script.write_text(LAUNCHER % self.path('/door'), 'utf-8')
        script.chmod(0o755)
        make_python3(self.path('/bin'))

    def path(self, path):
        return self.directory + path

    def moved(self, text):
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
                    environ.update(forked.environ_at_start(os.environ))
                    child = forked.start(words[1:], environ, cwd, forked.Script(words[0]),
                                         stdin=streams[0], stdout=streams[1], stderr=streams[2])
                    for handle in streams:
                        os.close(handle)
                    asking.sendall(b'%d' % child.wait())

    def run(self, wanted, cwd, environ):
        """Run commands in one sh; return the lines that each of them prints."""
        script = self.path('/script')
        Path(script).write_text(''.join(
            '%s\nstatus=$?; echo; echo %s; (exit $status)\n' % (self.moved(command.text), MARK)
            for command in wanted), 'utf-8')
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
    """All console blocks, in one shell: their commands print what stands below them."""

    def test_what_is_shown_is_what_it_prints_and_what_is_drawn_is_there(self):
        machine = Machine(self)
        wanted = session()
        with SimPool(pools.DEMO) as sim:        # as tests.simpool does, which has tests
            outputs = machine.run(wanted, machine.home,
                                  sim.environ(VMBACKUP_XAPI_URL=sim.unix_url))
        self.assertEqual(len(wanted), len(outputs), 'the shell ended early')
        for command, output in zip(wanted, outputs):
            expected, actual = uniform(command.output), uniform(output)
            while expected and not expected[-1]:
                expected.pop()
            with self.subTest(command.text):
                if not agrees(expected, actual):
                    self.fail('\n'.join(difflib.unified_diff(
                        expected, actual, 'README.md', 'printed', lineterm='')))
        there = {'/'.join(uniform([path]))[len(machine.path('/tmp')):]
                 for path in glob.glob(machine.path('/tmp/snapshots/BACKUPS/*/*/*'))}
        drawn = drawn_paths(section('What lies on disk'))
        self.assertEqual(9, len(drawn))
        self.assertLessEqual(drawn, there)


def drawn_paths(text):
    """What a drawn tree has in the directories of backups."""
    lines = re.search('```text\n(.*?)```', text, re.DOTALL).group(1).splitlines()
    above, found = [lines[0]], set()
    for line in lines[1:]:
        depth, name = re.match(r'((?:[|`]?[ -]{3} ?)+)(\S+)', line).groups()
        del above[len(depth) // 4:]
        above.append(name.rstrip('/'))
        found.add('/'.join(above))
    return {path for path in found if path.count('/') > 4 and '...' not in path}


class Tables(unittest.TestCase):
    """Tables name all that there is, and nothing else."""

    def test_keys_have_the_defaults_that_are_said_and_are_ten(self):
        rows = {code(row[0])[0]: ''.join(code(row[1])) for row in table(section('Configuration'))}
        self.assertEqual(10, len(rows))
        known = {key.name: key.default for key in VmBackup.KEYS}
        known.update({method: '' for method in VmBackup.METHODS})
        self.assertEqual({name: known[name] for name in rows}, rows)

    def test_every_token_of_the_status_log_is_documented(self):
        documented = [token for row in table(section('Status log')) for token in code(row[0])]
        tokens = set(re.findall("'([A-Z]+(?:-[A-Z]+)+)'", Path(SCRIPT).read_text('utf-8')))
        self.assertEqual(sorted(tokens | {'SUCCESS', 'WARNING', 'SKIPPED', 'INTERRUPTED'}),
                         sorted(documented))

    def test_it_is_short_and_tells_of_restoring_early(self):
        lines = readme().splitlines()
        self.assertLessEqual(len(lines), 900)
        self.assertLessEqual(len(readme().split()), 9000)
        self.assertIn('## The first restore', lines[:150])

    def test_addresses_are_reserved_ones(self):
        for address in re.findall(r'\b\d+\.\d+\.\d+\.\d+\b', readme()):
            self.assertTrue(address.startswith('192.0.2.'), address)
        for domain in re.findall(r'[\w.+-]+@([\w.-]+\w)', readme()):
            self.assertTrue(domain.endswith('example.com'), domain)

    def test_every_marker_is_documented(self):
        for marker in VmBackup.MARKERS:
            self.assertIn('`%s`' % marker, section('What lies on disk'))

    def test_every_key_of_the_cfg_files_is_documented(self):
        rows = {code(row[0])[0]: row[1] for row in table(section('What lies on disk'))}
        for name, keys in (('vm.cfg', VmBackup.VM_CFG), ('VIFs/vif-<n>.cfg', VmBackup.VIF_CFG),
                           ('DISK-<device>/vbd.cfg', VmBackup.VBD_CFG),
                           ('DISK-<device>/vdi.cfg', VmBackup.VDI_CFG)):
            self.assertEqual(', '.join(keys.split()), rows[name])

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
        config = VmBackup.parse_config(lines, 'README.md')
        self.assertEqual(((), {}), (config.unexpected, config.errors))
        return config

    def test_every_config_file_shown_is_understood(self):
        found = blocks('ini')
        self.assertTrue(found)
        for block in found:
            self.assertTrue(self.parse(block.lines).rules, block.section)

    def test_every_line_that_calls_the_script_is_one_that_it_takes(self):
        text = re.sub(r'(?ms)^ *```.*?^ *```$', '', readme())
        shown = [line for block in blocks('cron', 'sh', 'console', 'text') for line in block.lines]
        found = [words for line in shown + re.findall('`([^`]+)`', text) for words in re.findall(
            r'^(?:.* )?[./\w]*VmBackup\.py ([^|>;"<]+)', line)]
        self.assertGreater(len(found), 20)
        for line in found:
            with self.subTest(line):
                words = shlex.split(line.replace('$vm', 'web'))
                if not set(words) & {'COMMAND', '*', 'help', 'config', '-'}:
                    parsed(*words)

    def test_every_command_of_the_tests_that_is_named_is_there(self):
        named = re.findall(r'python3 -m tests ([a-z]\w*)', readme())
        self.assertGreater(len(named), 4)
        self.assertLessEqual(set(named), set(COMMANDS))

    def test_shell_blocks_are_shell(self):
        for block in blocks('sh', 'console'):
            lines = block.lines if block.kind == 'sh' else [
                command.text for command in commands(block)]
            done = subprocess.run(['bash', '-n'], input='\n'.join(lines).encode(),
                                  stderr=subprocess.PIPE)
            self.assertEqual((0, b''), (done.returncode, done.stderr), lines)

    def test_worked_examples_of_choosing_vms_are_right(self):
        text = section('Choosing VMs')
        names = code(re.search('Examples, for a pool with the VMs (.*?):\n', text,
                               re.DOTALL).group(1))
        vms = [VmBackup.Vm('ref-' + name, 'uuid-' + name, name, {}) for name in names]
        rows = table(text)
        self.assertGreater(len(rows), 8)
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
                self.assertEqual([], plan.errors)
                self.assertEqual(sorted(wanted),
                                 sorted((job.method, job.shown) for job in plan.jobs))

    def test_regex_of_the_status_log_takes_lines_apart(self):
        expression = re.compile('\n'.join(blocks('regex')[0].lines))
        for line, wanted in (
                ('T,vmbackup.py,h,begin', ('T', 'vmbackup.py', 'h', 'begin', None, None)),
                ('T,vm-export,h,begin,a,b', ('T', 'vm-export', 'h', 'begin', 'a,b', None)),
                ('T,vm-export,h,end,SUCCESS a,elapse:3 size:10G try:2',
                 ('T', 'vm-export', 'h', 'end', 'SUCCESS a', 'elapse:3 size:10G try:2')),
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


def prints(*headings):
    def mark(case):
        case.headings = headings
        return case
    return mark


class Troubles(PoolCase):
    """The messages in the table of what goes wrong are what is really printed."""

    pool_description = {'vms': [{'name': 'web', 'disks': ['64 KiB']},
                                {'name': 'db', 'disks': ['64 KiB']}]}
    leaves_things_behind = True

    def test_every_message_is_printed_in_its_case(self):
        cases = [case for case in vars(Troubles).values() if hasattr(case, 'headings')]
        headings = [words for row in table(section('When something goes wrong'))
                    for words in code(row[0])]
        self.assertEqual(sorted(set(headings) - set(PYTHON_2)),
                         sorted(heading for case in cases for heading in case.headings))
        for number, case in enumerate(cases):
            with self.subTest(case.__name__):
                self.script, self.prelude = SCRIPT, ''
                self.backups = self.at('BACKUPS %d' % number)
                os.mkdir(self.backups)
                printed = case(self).replace('/nosuch/xe', '/opt/xensource/bin/xe')
                self.sim.pool.faults.clear()
                for heading in case.headings:
                    self.assertIn(heading, printed)

    def says(self, *lines, **keys):
        return self.back_up(*lines, **keys).output

    def previews(self, *words, **environ):
        return self.vmbackup('password', *words + ('preview',), **environ).output

    @prints('ERROR no VMs loaded', '***ERROR unexpected config key',
            'ERROR: config backup_dir does not exist', 'is on the root file system', 'NO-SPACE',
            'config hook is not a program', 'config hook is not safe')
    def configs_cannot_be_followed(self):
        return ''.join(self.says(line, **keys) for line, keys in (
            ('vm-export=nothing.*', {}), ('vm-export=db', dict(maxbackups=3)),
            ('vm-export=db', dict(backup_dir='/nosuch')),
            ('vm-export=db', dict(backup_dir='/', require_mount='yes')),
            ('vm-export=db', dict(min_free='9999T')),
            ('vm-export=db', dict(hook=self.put_file('text', 'hello'))),
            ('vm-export=db', dict(hook=self.shared_hook()))))

    def shared_hook(self):
        path = self.program('hook', 'exit 1')
        os.chmod(path, 0o777)
        return path

    @prints('***ERROR - vm not found', '***WARNING - vm not found', 'VUSBs',
            '***WARNING - more than one vm with the name', '***ERROR - invalid regex',
            'ERROR: vm_max_backup is invalid')
    def lines_choose_what_is_not_there(self):
        for _ in range(2):
            self.sim.pool.add_vm(name_label='twin')
        self.fault('vm-snapshot', 'refuse', error=['VM_HAS_VUSBS', 'OpaqueRef:x'])
        return self.says('vm-export=db') + self.previews(self.config(
            'vm-export=gone', 'vm-export=nothing.*', 'vm-export=twin', 'vm-export=d[b',
            'vm-export=db:x'))

    @prints('ERROR unknown option', 'SESSION_AUTHENTICATION_FAILED',
            'no password in password file', 'can be read by others', 'is not UTF-8 text')
    def words_and_files_are_not_what_they_should_be(self):
        empty, shared = self.put_file('empty', '\n'), self.put_file('pass', 'cGFzc3dvcmQ=\n')
        os.chmod(empty, 0o600)
        os.chmod(shared, 0o644)
        latin = self.put_file('latin.cfg', 'vm-export=büro\n'.encode('latin1'))
        return ''.join(self.vmbackup(*words).output for words in (
            ('password', 'db', 'prevew'), ('wrong', 'db', 'preview'), (empty, 'db', 'preview'),
            (shared, 'db', 'preview'), ('password', latin, 'preview')))

    @prints('ERROR: config backup_dir is not writable')
    def backup_dir_is_not_writable(self):
        with unittest.mock.patch('os.access', return_value=False), (   # root may write anywhere
                self.assertRaises(VmBackup.TargetError)) as raised:
            store_at(self.backups).check()
        return 'ERROR: %s' % raised.exception

    @prints('no space left in')
    def the_share_is_full(self):           # for real in runs/test_room.py
        return VmBackup.explain(OSError(errno.ENOSPC, '', self.backups + '/x'))

    @prints('where nothing is mounted')
    def the_share_is_not_mounted(self):
        self.script = self.changed_script(FSTAB=self.put_file(
            'fstab', 'server:/share %s nfs defaults 0 0\n' % self.backups.replace(' ', r'\040')))
        return self.says('vm-export=db', require_mount='auto')

    @prints('did not respond within')
    def the_share_hangs(self):
        self.prelude = hanging(VmBackup.WRITE_TEST)
        self.script = self.changed_script(SHARE_TIMEOUT=0.2)
        return self.says('vm-export=db')

    @prints('locked by another run')
    def another_run_is_at_work(self):
        os.mkdir(os.path.join(self.backups, '.locks'))
        with open(os.path.join(self.backups, '.locks', 'db.lock'), 'w') as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            return self.says('vm-export=db')

    @prints('cannot lock')
    def the_share_knows_no_locks(self):
        shared = shared_without_pool(self.backups)
        shared.store.check()
        with unittest.mock.patch('fcntl.flock', side_effect=OSError(errno.ENOLCK, 'No locks')):
            with shared.store.locked(self.backups + '/db', 0):
                return VmBackup.Console.current.lines[-1]

    @prints('no progress for')
    def an_export_stands_still(self):
        self.fault('vm-export', 'hang', nth=2)
        return self.says('vm-export=db', stall_timeout=0.003)

    @prints('VERIFY-FAIL')
    def an_archive_is_damaged(self):
        return self.back_up('vm-export=db', VMBACKUP_XE=self.xe_that(
            'printf "HTTP/1.0 500 x</h1>y" >> "$1"')).output

    @prints('this host has no libxxhash', 'intact, but not the file that was verified first',
            'it is of another snapshot')
    def the_library_for_checksums_is_missing_and_then_backups_are_changed(self):
        self.script, self.prelude = self.changed_script(XXHASH='none'), NO_XXHASH
        before = self.says('vm-export=db', 'vm-export=web')
        self.script, self.prelude = SCRIPT, ''
        self.says('vm-export=web')
        shutil.copy(*[path + '/web.xva' for path in self.dated('web')])
        path = self.newest('db', 'db.xva')
        self.put_file(path, self.read_bytes(path).replace(b'RESTORE_db', b'RESTORE_xx'))
        return before + self.vmbackup('verify', self.backups).output

    @prints('the record of a snapshot, is damaged', 'what this program did not make',
            'was not made by this program as far as it knows: not touched')
    def somebody_elses_things_are_in_the_way(self):
        self.old_backup('web', 'backup-2019-01-01-(00:00:00)', 'snapshot.json')
        self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'vm.cfg', 'thesis.odt')
        self.xe('vm-snapshot', 'vm=db', 'new-name-label=RESTORE_db')
        return self.says('vm-export=db', 'vm-export=web')

    @prints('is left of a backup that did not end, or somebody made it')
    def snapshots_may_be_anybodys(self):
        disk = self.disk_of('web', '0')
        for _ in range(2):
            self.xe('vdi-snapshot', 'uuid=' + disk)
        self.record(self.old_backup('web', 'backup-2019-01-01-(00:00:00)'), disk)
        return self.says('vm-export=db')

    @prints('earlier ones cannot be removed from the pool')
    def snapshots_pile_up(self):
        self.script = self.changed_script(DISCARD_PAUSES=())
        for verb in ('vm-uninstall', 'snapshot-uninstall'):
            self.fault(verb, 'refuse', times=0, error=['SR_BACKEND_FAILURE_46', '', '', ''])
        return [self.says('vm-export=db') for _ in range(3)][-1]

    @prints('no program', 'cannot start /opt/xensource/bin/xe', 'XenAPI.py is missing')
    def programs_and_modules_are_missing(self):
        before = self.previews(self.config('vm-export=db', compress='zstd'), PATH='/nosuch')
        before += self.back_up('vm-export=db', VMBACKUP_XE='/nosuch/xe').output
        self.prelude = 'import sys; sys.modules["XenAPI"] = None'
        return before + self.previews('db')

    @prints('SR_BACKEND_FAILURE_44', 'was left in the pool')
    def storage_is_full_and_a_snapshot_stays_in_use(self):
        self.script = self.changed_script(DISCARD_PAUSES=(), BUSY_PAUSES=())
        self.fault('vm-snapshot', 'refuse', error=[
            'SR_BACKEND_FAILURE_44', '', 'There is insufficient space', ''])
        self.fault('vdi-destroy', 'refuse', times=0,
                   error=['VDI_IN_USE', 'OpaqueRef:NULL', 'destroy'])
        return self.says('vm-export=web', 'vdi-export=db')

    @prints('HOOK-FAIL', 'still running after')
    def a_hook_hangs(self):
        hook = self.program('hook', '[ $1 != backup-start ] || exec sleep 60')
        return self.says('vm-export=db', hook=hook, hook_timeout=0.005)

    @prints('***WARNING - mail to', '***WARNING - cannot write status_log',
            '***WARNING - cannot write report_file')
    def nothing_can_be_reported(self):
        self.script = self.changed_script(MAIL_PAUSE=0)
        with deaf_port() as port:
            return self.says('vm-export=db', min_free='9999T', mail_to='a@example.com',
                             mail_smtp_server='127.0.0.1', mail_smtp_port=port,
                             status_log=self.backups, report_file=self.directory)

    @prints('ERROR ended by signal')
    def a_signal_comes(self):
        self.fault('vm-export', 'stall', nth=2, after=1000)
        before = self.verbs().count('vm-export')
        child = self.start('password', self.config('vm-export=web'))
        self.wait_for(lambda: self.verbs().count('vm-export') == before + 2)
        child.terminate()
        return self.finish(child).output

    @prints('NOTE not the pool master', 'HOST_IS_SLAVE', 'XenAPI login at')
    def this_host_is_a_member_and_then_the_master_and_then_the_pool_is_down(self):
        self.use_pool(role='slave')
        printed = self.says('vm-export=db', min_free='9999T', pool_db_backup=1)
        self.fault('session.login_with_password', 'refuse', times=0, error=[
            'HOST_IS_SLAVE', self.sim.https_url[len('https://'):]])
        printed += self.previews('db')
        self.sim.down()
        return printed + self.previews('db')
