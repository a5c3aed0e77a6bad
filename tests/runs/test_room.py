"""What fails for want of room says that first: of bytes, of inodes, of a quota, of a file size."""

import errno
import os
import re

from tests.faults.test_disk import Namespace, missing
from tests.runs.test_store import DAY
from tests.tools.oddshare import OddShare
from tests.tools.support import PoolCase

LINES = (('vm-export=web', {}), ('vm-export=web', {'compress': 'zstd'}), ('vdi-export=web', {}),
         ('vdi-export=web', {'vdi_export_format': 'vhd'}),
         ('vdi-export=web', {'vdi_compress': 'gzip'}))
FIGURES = r' \([0-9.]+ [KMGT]iB, [0-9.]+ \w+ free'


class RoomCase(PoolCase):
    pool_description = {'vms': [{'name': name, 'disks': [{'size': '8 MiB', 'fill': 1}]}
                                for name in ('web', 'db')]}

    def assert_blamed(self, words, lines=LINES):
        """The VM's error begins so, and its partial file is gone."""
        for line, keys in lines:
            with self.subTest(line, **keys):
                done = self.ends(2, line, **keys)
                self.assertRegex(done.output, r'ERROR \S+ (VM|VDI)-EXPORT-FAIL web: %s; this VM '
                                 r'needs up to 8.0 MiB\): .*failed' % (words + FIGURES))
                self.assertNotRegex('\n'.join(os.listdir(self.newest('web')) + self.tree()[:1]),
                                    r'\.(xva|raw|vhd|new)|WriteTest')

    def test_a_limit_of_the_size_of_files(self):
        self.prelude = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, [1 << 20] * 2)'
        self.assert_blamed(r'file size limit \(ulimit -f, or 4 GiB on FAT\) reached in '
                           + self.backups)

    def test_a_failure_that_has_another_cause_blames_nothing(self):
        self.fault('vm-export', 'refuse', nth=2, after=100000,
                   error=['VDI_IO_ERROR', 'Device I/O errors'])
        self.assertIn('VM-EXPORT-FAIL web: xe vm-export failed', self.ends(
            2, 'vm-export=web').output)


class Quota(OddShare, RoomCase):
    def test_of_a_quota(self):
        self.put_file('behind.trouble', 'EDQUOT')
        self.assert_blamed('quota exceeded in ' + self.backups, LINES[:3])

    def test_a_share_that_goes_away_in_mid_run_does_not_hide_how_the_run_ended(self):
        for name in 'ESTALE', 'EIO':
            self.at_call('vm-snapshot', lambda: self.put_file('behind.trouble', name))
            done = self.ends(2, 'vm-export=web')
            os.unlink(self.behind + '.trouble')
            self.assertRegex(done.output, r'FAILED web \(BACKUP-FAIL\): cannot access %s.*: %s' % (
                self.backups, os.strerror(getattr(errno, name))))
            self.assertIn('VmBackup ended - **ERRORS DETECTED** - S:0 W:0 E:1', done.output)
            self.assertIn(',end,ERROR,S:0 W:0 E:1\n', self.read(self.status_log))

    test_a_limit_of_the_size_of_files = test_a_failure_that_has_another_cause_blames_nothing = None


class FullDisk(RoomCase):
    def setUp(self):
        super().setUp()
        if missing():
            self.skipTest(missing())
        self.namespace = Namespace()
        self.addCleanup(self.namespace.close)
        self.share, self.prelude = self.backups, self.namespace.prelude()
        self.fill = 'cat /dev/zero > %s/filler 2> /dev/null || true' % self.share
        self.mount(self.share, 'size=2m')

    def mount(self, place, options):
        self.namespace.do('mount', '-t', 'tmpfs', '-o', 'mode=755,' + options, 'tmpfs', place)
        self.backups = self.namespace.path(self.share)

    def config(self, *lines, **keys):
        return super().config(*lines, **dict(keys, backup_dir=self.share))

    def lack(self, size='2.0 MiB'):
        return r'no space left in %s \(%s, 0 bytes free' % (self.share, size)

    def test_a_full_disk(self):
        self.assert_blamed('no space left in ' + self.share)

    def test_of_two_at_once_the_second_is_told_too_that_the_file_of_the_first_took_the_room(self):
        done = self.ends(2, 'vm-export=web', 'vm-export=db', parallel=2, VMBACKUP_XE=self.xe_that(
            'true', 'case "$*" in */web.xva*) touch %s; until grep -q "FAIL db" %s; do sleep 0.1; '
            'done; exit 1;; */db.xva*) until [ -e %s ]; do sleep 0.1; done; esac; %%s "$@" || exit'
            % (self.at('begun'), self.status_log, self.at('begun'))))
        for vm, end in ('db', '; this VM needs up to 8.0 MiB): '), ('web', '), a moment ago: '):
            self.assertRegex(done.output, r'FAILED %s \(VM-EXPORT-FAIL\): %s%s' % (
                vm, self.lack(), re.escape(end)))

    def test_before_and_after_the_export(self):
        """The record of the snapshot, metadata, dump; what is cut off, guide, manifest."""
        self.namespace.do('mount', '-o', 'remount,size=64m', self.share)
        size = '64.0 MiB'
        for change, words in (
                ('truncate -s 5000 "$1"; ' + self.fill, 'VERIFY-FAIL web: ' + self.lack(size)),
                (self.fill, 'BACKUP-FAIL web: ' + self.lack(size))):
            done = self.ends(2, 'vm-export=web', VMBACKUP_XE=self.xe_that(change))
            self.assertRegex(done.output, 'ERROR vm-export ' + words)
            os.unlink(self.backups + '/filler')
        self.namespace.do('sh', '-c', 'rm -r %s/web; %s' % (self.share, self.fill))
        done = self.ends(2, 'vm-export=web', pool_db_backup=1)
        for words in ('ERROR pool database not backed up: ', 'WARNING - web: metadata is missing: ',
                      'WARNING - web: vm-metadata.xml is missing: ',
                      'ERROR vm-export BACKUP-FAIL web: '):
            self.assertRegex(done.output, words + self.lack(size))

    def test_the_place_of_the_status_log_and_of_the_report(self):
        logs = os.path.dirname(self.status_log)
        os.mkdir(logs)
        self.mount(logs, 'size=64k')
        self.namespace.do('sh', '-c', 'cat /dev/zero > %s/filler; true' % logs)
        self.namespace.do('mount', '-o', 'remount,size=64m', self.share)
        done = self.ends(1, 'vm-export=web', report_file=logs + '/report.json')
        for name in 'status_log', 'report_file':
            self.assertRegex(done.output, r'cannot write %s \S+: no space left in %s \(64.0 KiB, 0 '
                             'bytes free' % (name, logs))

    def test_no_inodes(self):
        backup = os.path.join(self.share, 'web', DAY % 1)
        self.mount(self.share, 'size=2m,nr_inodes=5')
        self.old_backup('web', DAY % 1, 'web.xva', 'success')
        lack = 'no inodes left in %s (2.0 MiB, 2.0 MiB free' % self.share
        self.assertIn('ERROR ' + lack, self.command(2, 'protect', backup).output)
        self.assertIn('ERROR cannot write in backup_dir %s: %s' % (self.share, lack),
                      self.ends(2, 'vm-export=web').output)

    test_a_limit_of_the_size_of_files = test_a_failure_that_has_another_cause_blames_nothing = None
