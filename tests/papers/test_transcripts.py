"""Transcripts: whole runs of 3.25, recorded, beside the same runs of ours.

Console, status log, files and what is left in the pool are compared line by line. Every line that
differs must be one of the differences listed here, each of which has a row in differences.txt.
"""

import difflib
import os
import re

from tests import DATA
from tests.tools.support import HOST, PoolCase

NETWORK = 'Pool-wide network associated with eth0'
POOL = {'networks': [NETWORK], 'vms': [
    {'name': 'web1', 'power_state': 'Running', 'networks': [NETWORK, NETWORK], 'disks': [
        {'name': 'web1 root', 'description': 'system disk', 'size': '4 MiB'},
        {'name': 'web1 data', 'size': '6 MiB', 'bootable': False}]},
    {'name': 'db big', 'power_state': 'Running', 'disks': [
        {'name': 'db root', 'size': '4 MiB'}, {'name': 'db data', 'size': '1 MiB'}]},
    {'name': 'old-halted', 'ran': True, 'disks': [{'name': 'old 0', 'size': '1 MiB'}]}]}

# what 3.25 printed and we do not
DROPPED = [
    (r'/bin/touch "/backup/BACKUPS/00VMbackupWriteTest"', 'the write test starts no program'),
    (r'\d\.cmd: .* vdi-list uuid=UUID', 'no vdi-list'),
    (r'(uuid| +name-label|name-description| +sr-uuid| +virtual-size| +sharable| +read-only)'
     r' \( RO\) *:.*', 'no vdi-list'),
    ('', 'no vdi-list'),
    (r'\d\.cmd: .* vdi-(snapshot|param-set|export|destroy) .*', 'numbers of vdi-export commands'),
    (r'1\.cmd: .* vm-snapshot vm=UUID .*', 'uuid= in place of vm='),
    (r'2\.cmd: .* template-param-set .* uuid=UUID', 'the snapshot is marked'),
    (r'/opt/xensource/bin/xe pool-dump-database .*', 'the dump gets its name when complete'),
    (r'snap-uuid:', 'no snapshot, no uuid'),
    (r'Error (code|parameters): .*', 'the stand-in shortened the words'),
    (r'ERROR .* vm-snapshot vm=UUID .*', 'uuid= in place of vm='),
]
# what we print and 3.25 did not
ADDED = [
    (r'\d\.cmd: .* vdi-(snapshot|param-set|export|destroy) .*', 'numbers of vdi-export commands'),
    (r'1\.cmd: .* vm-snapshot uuid=UUID .*', 'uuid= in place of vm='),
    (r'2\.cmd: .* template-param-set .* uuid=UUID other-config:vmbackup_snapshot=UUID',
     'the snapshot is marked'),
    (r'ERROR .* vm-snapshot uuid=UUID .*', 'uuid= in place of vm='),
    (r'/opt/xensource/bin/xe pool-dump-database .*partial.',
     'the dump gets its name when complete'),
    (r'VDI: UUID \(.*\)', 'the real xe lists the disks too'),
    (r'Error (code|parameters): .*', 'the stand-in shortened the words'),
    (r'4\.cmd: .* vm-uninstall uuid=UUID force=true', 'the snapshot goes after a failure too'),
    (r'The following items are about to be destroyed', 'the snapshot goes after a failure too'),
    (r'VM : UUID \(RESTORE_web1\)', 'the snapshot goes after a failure too'),
    (r'All objects destroyed', 'the snapshot goes after a failure too'),
    (r'VM \d of \d, \d failed|=+|VMs: \d good, .*|FAILED web1 .*', 'the outcome, in a summary'),
    (r'ERROR vm-export (VM-EXPORT|SNAPSHOT)-FAIL web1: .*', 'why a VM failed, in one line'),
    (r'  not covered by any line.*', 'VMs that no line covers'),
    (r'  require_mount     = no', 'the share has to be mounted'),
    (r'\*\*\*NOTE - in no good backup: disk xvdb',
     'the newest N stay, of either method: old vm-exports go in time when one changes to '
     'vdi-export'),
    (r'verified (web1|old-halted)\.xva(\.gz)?: all checksums match .*', 'what was proved'),
    (r'verified db big\.(raw|vhd): the structure is intact \(\d+ s\)', 'what was proved'),
    (r'only a pool of the same xapi takes it back, \S+', 'who takes it'),
]
STATUSES = {'05-export-fails': 2, '06-snapshot-fails': 2, '09-preview': 0}


def sections(text):
    return dict(part.split('\n', 1) for part in re.split(r'(?m)^## ', text)[1:])


def normal(text):
    """Times, uuids and what the machine is like are blanked, as in the recordings."""
    for pattern, blank in (
            (r'\d{4}-\d\d-\d\d-\(\d\d:\d\d:\d\d\)', 'YYYY-MM-DD-(HH:MM:SS)'),
            (r'\d{4}/\d\d/\d\d \d\d:\d\d:\d\d', 'YYYY/MM/DD HH:MM:SS'),
            (r'\d{8}-\d{6}\.dump', 'YYYYMMDD-HHMMSS.dump'),
            (r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}', 'UUID'),
            (r'([0-9a-f]{2}:){5}[0-9a-f]{2}', 'MAC'), (r'MAC=02:00:00:00:00:0\d', 'MAC=MAC'),
            (r'(?m)(- )?(/dev/|tmpfs|overlay|none).*%.*$', r'\1DF'),
            (r'(?m)(- )?Filesystem .*Mounted on$', r'\1DF'), (r'(?m) *$', '')):
        text = re.sub(pattern, blank, text)
    return text


NEW = ('/vm.cfg', '/backup.json', '/RESTORE.txt', '.dump.json')    # files that 3.25 did not write


class Transcripts(PoolCase):
    pool_description = POOL

    def recorded(self, name):
        return sections(self.read(DATA, 'transcripts-3.25', name + '.txt'))

    def ours(self, text):
        for mine, theirs in ((self.backups, '/backup/BACKUPS'), (self.sim.xe,
                             '/opt/xensource/bin/xe'), (self.directory + '/run.cfg', 'run.cfg'),
                             (self.status_log, '/backup/status.log'),
                             ('METADATA_' + HOST, 'METADATA_vm'),
                             ('running on %s ...' % HOST, 'running on vm ...')):
            text = text.replace(mine, theirs)
        return normal(text)

    def compare(self, theirs, ours):
        stamp = 'YYYY-MM-DD-(HH:MM:SS) - '
        theirs, ours = ([line.replace(stamp, '').replace(stamp.rstrip(), '')
                         for line in text.splitlines()] for text in (normal(theirs), ours))
        unknown = []
        for line in difflib.ndiff(theirs, ours):
            known = {'-': DROPPED, '+': ADDED}.get(line[0], ())
            if line[0] in '-+' and not any(
                    re.match(pattern + r'\s*\Z', line[2:]) for pattern, _ in known):
                unknown.append(line)
        self.assertEqual([], unknown)

    def play(self, name, *options):
        """Run a scenario as often as recorded; compare everything that was recorded."""
        recorded = self.recorded(name)
        config = self.config(*[line for line in recorded['config file run.cfg'].splitlines()
                               if not line.startswith(('backup_dir=', 'status_log='))])
        for title, console in recorded.items():
            if title.startswith('run '):
                done = self.vmbackup('password', config, *options)
                self.compare(console, self.ours(done.output))
            elif title.startswith('exit status'):
                self.assertEqual(STATUSES.get(name, 0), done.status, done.output)
        if 'status.log' in recorded:
            text = self.read(self.status_log).replace(',%s,' % HOST, ',vm,')
            self.assertEqual(normal(recorded['status.log']).splitlines(),
                             normal(text).splitlines())
        self.compare_files(recorded['files below backup_dir'].splitlines())
        self.assert_clean()
        return recorded

    def compare_files(self, theirs):
        """The same files and directories, but for those that are new, and what a failed export
        left."""
        theirs = sorted(line.rpartition(' ')[0] for line in theirs if line)
        theirs = [path for path in theirs if not path.endswith('.xva') or
                  os.path.dirname(path) + '/success' in theirs]
        ours = [self.ours(path).replace('DATED', 'YYYY-MM-DD-(HH:MM:SS)').replace(
            'YYYY-MM-DD-(HH:MM:SS)', 'backup-YYYY-MM-DD-(HH:MM:SS)') for path in self.tree()]
        self.assertEqual(theirs, sorted(path for path in ours
                                        if not path.endswith(NEW)))

    def test_a_run_three_times(self):
        recorded = self.play('01-config-run-three-times')
        contents = recorded['contents of metadata files']
        for part in re.split('(?m)^### ', contents)[1:]:
            path, _, body = part.partition('\n')
            found = os.path.join(self.dated('web1')[-1], *path.split('/')[2:])
            if path.startswith('web1/'):
                self.assertEqual(normal(body).splitlines(),
                                 normal(self.read(found)).splitlines(), path)

    def test_compression(self):
        self.play('03-compress', 'compress=True')

    def test_vhd(self):
        self.play('04-vhd')

    def test_an_export_that_fails(self):
        self.sim.pool.faults.add('vm-export', 'refuse', nth=2, after=1000,
                                 error=['VDI_IO_ERROR', 'Device I/O errors'])
        self.play('05-export-fails')

    def test_a_snapshot_that_fails(self):
        self.sim.pool.faults.add('vm-snapshot', 'refuse', error=[
            'SR_BACKEND_FAILURE_44', '', 'There is insufficient space', ''])
        self.play('06-snapshot-fails')

    def test_the_pool_database(self):
        self.play('07-pool-db')

    def test_preview(self):
        self.play('09-preview', 'preview')
