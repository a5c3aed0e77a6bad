"""`stream`: a VM's archive on standard output, and nothing else there; whatever happens its
snapshot goes, now or with the next run of anything."""

import glob
import io
import os
import pty
import signal
import subprocess

import VmBackup
from tests.commands.archives import PACKERS, WITH_XXH64
from tests.simpool import archive
from tests.tools.support import LIMIT, PoolCase

# In the place of an export by xe: what a program makes of it.
THROUGH = '[ "$1" = vm-export ] || exec %s "$@"\n%s "$@" | %s'
CLOSED = 'ERROR the export failed: tee failed: nobody reads its output any more'


class StreamCase(PoolCase):
    pool_description = {'vms': [
        {'name': 'web', 'power_state': 'Running', 'disks': [
            {'size': '3 MiB', 'fill': 1}, {'size': 2 << 20, 'fill': 0.5}, 70000]},
        {'name': 'db', 'disks': ['64 KiB'], 'ran': True}]}

    def begin(self, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environ):
        return self.start_with(('stream',) + words, dict(
            environ, VMBACKUP_XAPI_URL=self.sim.unix_url), stdout=stdout, stderr=stderr)

    def stream(self, *words, **environ):
        """(exit status, what was sent, the log)."""
        child = self.begin(*words, **environ)
        sent, told = child.communicate(timeout=LIMIT)
        told = told.decode('utf-8')
        self.assertNotIn('Traceback', told)
        return child.returncode, sent, told

    def here(self):
        return 'from=' + self.config()

    def fails(self, reason, *words, status=2, **environ):
        """A stream that ends so, for that reason, of which one line tells, and leaves nothing."""
        found, sent, told = self.stream(*words, **environ)
        self.assertEqual(status, found, told)
        self.assertEqual(1, sum(reason in line for line in told.splitlines()), told)
        self.assert_clean()
        self.assertEqual([], self.left())
        return sent

    def left(self):
        """The records of snapshots, and their directories."""
        places = (self.backups, self.environ()['VMBACKUP_STATE'])
        return [path for place in places for path in glob.glob(place + '/*/.deleting-*')]

    def disks(self, vm='web'):
        """What the disks of a VM hold, by user device."""
        tables = self.sim.pool.tables
        return {vbd['userdevice']: self.sim.pool.content[vbd['VDI']].sha256()
                for vbd in tables['VBD'].values() if vbd['VDI'] in self.sim.pool.content
                and tables['VM'][vbd['VM']]['name_label'] == vm}


class Streams(StreamCase):
    @WITH_XXH64
    def test_standard_output_gets_the_archive_and_nothing_else(self):
        for compress in ['none', *set(PACKERS.values())]:
            with self.subTest(compress):
                status, sent, told = self.stream('web', 'compress=' + compress)
                self.assertEqual(0, status, told)
                self.assertIn(' - streamed web: 5.1 MiB, all checksums match\n', told)
                self.assertTrue(sent.startswith(VmBackup.COMPRESSIONS[compress].magic))
                read = archive.read_xva(io.BytesIO(sent))
                self.assertEqual(sorted(self.disks().values()),
                                 sorted(image.sha256() for image in read.disks.values()))
                self.assertEqual((0, []), self.tree_and_notes())
                self.assert_clean()

    def tree_and_notes(self):
        """What is left of records: files below backup_dir, and this host's notes."""
        return len(self.tree()), glob.glob(self.environ()['VMBACKUP_STATE'] + '/*.json')

    def test_quiet_says_how_it_ended(self):
        status, sent, told = self.stream('db', 'quiet')
        self.assertEqual((0, 1), (status, len(told.splitlines())), told)
        self.assertIn('streamed db', told)

    def test_it_is_imported_again_by_another_program(self):
        reading, writing = os.pipe()
        child = self.begin('web', stdout=writing)
        os.close(writing)
        self.xe_reads(reading)
        self.assertEqual((0, None), (child.wait(LIMIT), child.stdout), child.stderr.read())
        child.stderr.close()
        again, = [record['uuid'] for record in self.sim.pool.tables['VM'].values()
                  if record['name_label'] == 'RESTORE_web']
        self.assertEqual(self.disks(), self.disks('RESTORE_web'))
        self.xe('vm-uninstall', 'uuid=' + again, 'force=true')

    def xe_reads(self, handle):
        """Import what comes through a pipe."""
        with open(handle, 'rb') as stream:
            done = subprocess.run([self.sim.xe, 'vm-import', 'filename=/dev/stdin'], stdin=stream,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT,
                                  env=self.environ())
        self.assertEqual(0, done.returncode, done.stdout)

    def test_settings_come_from_a_config_file_and_the_line(self):
        config = self.config('exclude-disk=web/xvd[bc]', 'vm-export=db', compress='gzip')
        status, sent, told = self.stream('web', 'from=' + config, 'compress=none')
        self.assertEqual(0, status, told)
        self.assertEqual([3 << 20], [image.virtual_size for image in archive.read_xva(
            io.BytesIO(sent)).disks.values()])
        self.assertEqual([], self.left())
        self.assertFalse(os.path.exists(self.status_log))

    def test_what_cannot_be_streamed_changes_nothing(self):
        for reason, words in (
                ('nobody means 0 VMs, not one', ('nobody',)),
                ('.* means 2 VMs, not one', ('.*',)),
                ('usage: VmBackup.py stream <vm>', ()),
                ('invalid value: compress=rar', ('web', 'compress=rar')),
                ('cannot read config file', ('web', 'from=' + self.at('none.cfg'))),
                ('does not exist', ('web', 'backup_dir=' + self.at('none')))):
            with self.subTest(words):
                self.assertEqual(b'', self.fails(reason, *words))
        self.assertNotIn('vm-snapshot', self.verbs())

    def test_an_output_that_is_not_for_the_archive_alone_is_refused(self):
        main, terminal = pty.openpty()
        for stdout, stderr in ((terminal, subprocess.PIPE),
                               (subprocess.PIPE, subprocess.STDOUT)):
            child = self.begin('web', stdout=stdout, stderr=stderr)
            told = (child.stderr or child.stdout).read().decode('utf-8')
            self.assertEqual(2, child.wait(LIMIT), told)
            self.assertIn('ERROR standard output gets the archive alone', told)
            (child.stderr or child.stdout).close()
        os.close(main)
        os.close(terminal)
        self.assertEqual([], self.verbs())


class Failures(StreamCase):
    """The snapshot goes, and the exit status is not 0."""

    def through(self, program):
        """The path of an xe whose exports a program changes."""
        return self.program('odd-xe', THROUGH % (self.sim.xe, self.sim.xe, program))

    @WITH_XXH64
    def test_a_damaged_archive_is_cut_off(self):
        for reason, program, most in (
                ('disk xvda (web 0, Ref:', "LC_ALL=C sed 's/\\x00\\xff/\\xff\\x00/'", 5 << 20),
                ('it ends at byte 3000320, in ', 'head -c 3000320', 3000320),
                ('ova.xml, byte 0: ', 'tail -c +2', 5 << 20),
                ('the end, byte ', 'cat; echo more', 6 << 20)):
            for words in ((), (self.here(),)):
                with self.subTest((reason, words)):
                    sent = self.fails('ERROR the archive is not whole: ' + reason, 'web', *words,
                                      VMBACKUP_XE=self.through(program))
                    self.assertLessEqual(len(sent), most)
        for compress in set(PACKERS.values()):
            with self.subTest(compress):
                self.fails('ERROR ', 'web', 'compress=' + compress,
                           VMBACKUP_XE=self.through('head -c 1000000'))

    def test_what_xe_says_is_told(self):
        for error, after in ((['SR_BACKEND_FAILURE_46', '', 'not available', ''], 0),
                             (['SR_BACKEND_FAILURE_46', '', 'not available', ''], 2000000)):
            with self.subTest(after):
                self.fault('vm-export', 'refuse', error=error, after=after)
                self.fails('ERROR the export failed: xe vm-export failed: ', 'web')
                self.sim.pool.faults.clear()

    def test_the_death_of_what_reads_it_leaves_no_snapshot(self):
        for size, compress in (0, 'none'), (1 << 20, 'none'), (1 << 20, 'zstd'):
            if compress == 'none' or compress in PACKERS.values():
                with self.subTest((size, compress)):
                    child = self.begin('web', 'compress=' + compress, self.here())
                    child.stdout.read(size)
                    child.stdout.close()
                    told = child.stderr.read().decode('utf-8')
                    child.stderr.close()
                    self.assertEqual(2, child.wait(LIMIT), told)
                    self.assertEqual(1, told.count('ERROR '), told)
                    self.assertIn(CLOSED, told)
                    self.assert_clean()
                    self.assertEqual([], self.left())

    def test_one_that_does_not_read_on_ends_it(self):
        child = self.begin('web', 'stall_timeout=0.01')
        told = child.stderr.read().decode('utf-8')
        self.assertEqual(2, child.wait(LIMIT), told)
        self.assertIn('ERROR the export failed: no progress for 0.01 minutes (stall', told)
        child.stdout.close()
        child.stderr.close()
        self.assert_clean()

    def test_a_signal_removes_the_snapshot(self):
        for signum in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            for how in 'export', 'pipe':
                with self.subTest((signum, how)):
                    if how == 'export':
                        self.fault('vm-export', 'stall', after=2000000)
                    child = self.begin('web')
                    child.stdout.read(1 << 16)         # and no more: then the pipe is full
                    child.send_signal(signum)
                    told = child.stderr.read().decode('utf-8')
                    self.assertEqual(128 + signum, child.wait(LIMIT), told)
                    child.stdout.close()
                    child.stderr.close()
                    self.assertIn('ERROR ended by signal %d (' % signum, told)
                    self.sim.pool.faults.clear()
                    self.assert_clean()
                    self.assertEqual([], self.left())

    def test_what_kill_9_leaves_goes_with_the_next_run_of_anything(self):
        runs = {'stream': lambda: self.stream('db')[::2],
                'backup': lambda: self.back_up('vm-export=db'),
                'here': lambda: self.stream('db', self.here())[::2]}
        for words, after in (((), 'stream'), ((), 'backup'), ((), 'here'),
                             ((self.here(),), 'backup'), ((self.here(),), 'here')):
            with self.subTest((words, after)):
                self.fault('vm-export', 'slow', rate=1 << 20)   # tee writes, and so ends
                child = self.begin('web', *words)
                child.stdout.read(1 << 16)
                self.assertTrue(os.path.exists(self.left()[0] + '/snapshot.json'))
                child.kill()
                child.communicate(timeout=LIMIT)
                self.sim.pool.faults.clear()
                self.sim.pool.tables['session'].clear()        # as one expires after a day
                status, told = runs[after]()
                self.assertEqual((0, 1), (status, told.count('taken back: ') or told.count(
                    'removing the snapshot of an unfinished backup: ')), told)
                self.assert_clean()
                self.assertEqual([], self.left())
