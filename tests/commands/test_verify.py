"""Verification as users meet it: the step in a run, and the command `verify`."""

import gzip
import hashlib
import json
import os
import re
import shutil

import VmBackup
from tests import SCRIPT
from tests.commands.archives import SAMPLES, WITH_XXH64, ArchiveCase, sample
from tests.commands.saved import SavedCase
from tests.tools.support import HOST, NO_XXHASH, PoolCase, hanging, screen
from tests.runs.test_store import AS_NO_MORE_THAN_THE_OWNER, StoreCase


@WITH_XXH64
class VerifyCase(StoreCase):
    pool_description = PoolCase.pool_description

    def made(self, *lines, **keys):
        """Run to a good end; the dated directory of the last line's VM."""
        self.ends(0, *lines, **keys)
        return self.dated(lines[-1].partition('=')[2])[-1]

    def verify(self, status, *words):
        """The lines of the command, which has to end with that status."""
        return self.command(status, 'verify', *words).lines

    def assert_good(self, *paths):
        """Each of these, verified, is good and all its checksums are right."""
        for path in paths:
            self.assertEqual('good %s: all checksums match' % path, self.verify(0, path)[0])

    def manifest(self, path):
        return json.loads(self.read(path, 'backup.json'))

    def proved(self, path):
        return self.manifest(path)['verified']['proved']

    def change(self, path, offset):
        with open(path, 'r+b') as stream:
            old = os.pread(stream.fileno(), 1, offset)
            os.pwrite(stream.fileno(), bytes([old[0] ^ 1]), offset)

    def in_path(self, text, *names):
        """From now on these programs are this script of sh; return what a child's PATH is."""
        os.mkdir(self.at('bin'))
        for name in names:
            self.program(self.at('bin', name), text + '\n')
        return self.at('bin') + os.pathsep + os.environ['PATH']

    def pack(self, path):
        self.put_file(path, gzip.compress(self.read_bytes(path), 1))


class MadeCase(SavedCase, VerifyCase):
    """A test of backups that are there: of web as a whole, `web`, and of a disk of db, `db`."""

    def prepare(self):
        self.made('vdi-export=db', 'vm-export=web')

    def setUp(self):
        super().setUp()
        self.web, self.db = self.dated('web')[0], self.dated('db')[0]

    def older(self, day):
        """One more backup of web, from before: a copy of the newest one; its path."""
        path = os.path.join(self.backups, 'web', 'backup-2026-01-0%d-(00:00:00)' % day)
        shutil.copytree(self.web, path)
        told = dict(self.manifest(path), number=0, started='2026-01-0%dT00:00:00+00:00' % day)
        self.put_file(path + '/backup.json', json.dumps(told))
        return path


class InARun(VerifyCase):
    def ends_with_xe(self, status, text, *lines, **keys):
        """A run whose files are changed behind xe's back."""
        return self.ends(status, *lines, **keys, VMBACKUP_XE=self.xe_that(text))

    def test_a_damaged_archive_is_an_error_and_no_backup(self):
        """The snapshot is gone before the verification begins."""
        done = self.ends_with_xe(
            2, 'printf x | dd of="$1" bs=1 seek=700000 conv=notrunc 2>/dev/null', 'vm-export=web',
            'vm-export=db')
        for name in ('web', 'db'):
            self.assertIn('vm-export,end,VERIFY-FAIL ' + name, self.status())
            line, = [line for line in done.lines if line.startswith(
                'ERROR vm-export VERIFY-FAIL {0}: {0}.xva: disk xvda'.format(name))]
            self.assertRegex(line, r'chunk Ref:\d+/00000000, byte \d+: the checksum is [0-9A-F]{16}'
                                   ', that of the data here is [0-9A-F]{16}$')
        lines = [line for line in done.lines if 'VERIFY-FAIL' in line or 'All objects' in line]
        self.assertEqual('All objects destroyed', lines[0])
        self.assertIn('VERIFY-FAIL', lines[1])
        self.assertFalse(any('success' in path for path in self.tree()))
        self.assertIn('vmbackup.py,end,ERROR,S:0 W:0 E:2', self.status())

    def test_a_damaged_backup_pushes_out_no_good_one(self):
        old = [self.old_backup('web', 'backup-2026-01-0%d-(00:00:00)' % day, 'success', 'web.xva')
               for day in (1, 2)]
        self.ends_with_xe(2, 'truncate -s -1 "$1"', 'vm-export=web', max_backups=2)
        self.assertEqual(old, self.dated('web')[:2])
        self.assertEqual(3, len(self.dated('web')))
        self.made('vm-export=web', max_backups=2)      # and the failure goes then
        self.assertEqual(old[1:], self.dated('web')[:1])
        self.assertEqual(2, len(self.dated('web')))

    def test_an_image_that_is_too_short_or_too_long_is_an_error(self):
        for method, token in (('raw', 'VDI-EXPORT-FAIL'), ('vhd', 'VERIFY-FAIL')):
            for change in ('truncate -s -512 "$1"', 'printf more >> "$1"'):
                with self.subTest((method, change)):
                    self.ends_with_xe(2, change, 'vdi-export=db', vdi_export_format=method)
                    self.assertIn('vdi-export,end,%s db' % token, self.status())

    def test_verify_no_reads_nothing(self):
        done = self.ends_with_xe(0, 'truncate -s -1 "$1"', 'vm-export=web', verify='no')
        self.assertIn('  verify            = no', done.lines)
        self.assertNotIn('verified', self.manifest(self.dated('web')[0]))

    def test_a_damaged_dump_of_the_pool_database_is_an_error_and_no_dump(self):
        self.in_path('%s "$@" || exit; for word; do case $word in file-name=*) truncate -s -1 '
                     '"${word#file-name=}";; esac; done' % self.sim.xe, 'xe')
        for verify, status in (('yes', 2), ('no', 0)):
            config = self.config('vm-export=db', pool_db_backup=1, verify=verify)
            done = self.vmbackup('password', config, VMBACKUP_XE=self.directory + '/bin/xe')
            self.assertEqual(status, done.status, done.output)
            found = [path for path in self.tree() if path.endswith(('.dump', '.partial'))]
            self.assertEqual(verify == 'no', bool(found), found)
            self.assertIs(verify == 'yes', any(line.startswith(
                'ERROR pool database not backed up: it is not as xapi writes it')
                for line in done.lines))

    def test_a_signal_during_verification_ends_the_run(self):
        self.prelude = hanging('web.xva')              # until then nothing opens it
        self.ends_with_xe(143, 'kill -TERM $PPID', 'vm-export=web', 'vm-export=db')
        self.assertIn('vm-export,end,INTERRUPTED web', self.status())

    def test_without_the_library_checksums_are_not_compared_and_one_note_names_the_package(self):
        self.script, self.prelude = self.changed_script(XXHASH='none'), NO_XXHASH
        note = ('***NOTE - this host has no libxxhash: the checksums in archives are not compared '
                '(install xxhash-libs, on Debian libxxhash0)')
        done = self.ends(0, 'vm-export=web', 'vm-export=db')
        self.assertEqual(1, done.lines.count(note))
        path = self.newest('web')
        self.assertEqual('structure', self.proved(path))
        self.assertEqual(1, self.verify(0, self.backups).count(note))
        self.assertEqual('structure', self.proved(path))
        self.script, self.prelude = SCRIPT, ''
        self.assertNotIn(note, self.verify(0, path))
        self.assertEqual('checksums', self.proved(path))

    def test_a_disk_that_grew_since_the_run_began_is_no_fault(self):
        self.in_path('[ "$1" = vdi-snapshot ] && %s vdi-resize uuid=%s disk-size=4194304\n'
                     'exec %s "$@"' % (self.sim.xe, self.disk_of('db', '0'), self.sim.xe), 'xe')
        self.ends(0, 'vdi-export=db', VMBACKUP_XE=self.directory + '/bin/xe')
        disk, = self.manifest(self.dated('db')[0])['disks']
        self.assertEqual(disk['virtual_size'], os.path.getsize(self.newest('db', 'db.raw')))


class TheCommand(MadeCase):
    def test_what_may_be_named_and_the_pool_is_not_asked(self):
        self.sim.down()
        config = self.config('vdi-export=db', 'vm-export=web')
        good = 'good %s: all checksums match'
        both = [good % self.db, good % self.web, 'VmBackup verify ended - Success - S:2 W:0 E:0']
        one = both[1:2] + ['VmBackup verify ended - Success - S:1 W:0 E:0']
        self.assertEqual(both, self.verify(0, config)[1:])
        self.assertEqual(both, self.verify(0, self.backups))
        for path in (os.path.join(self.backups, 'web'), self.web):
            self.assertEqual(one, self.verify(0, path))
        copy = shutil.copy(self.web + '/web.xva', self.at('copy.xva'))
        for path in copy, self.web + '/web.xva':
            self.assertEqual('good %s: all checksums match, %s' % (
                path, VmBackup.human_size(os.path.getsize(copy))), self.verify(0, path)[0])
        self.assertEqual([], self.sim.calls())

    def test_the_newest_or_all_renamed_ones_too(self):
        kept = os.path.join(self.backups, 'web', 'KEEP-golden')
        os.rename(self.older(1), kept)
        paths, good = [self.web, self.older(2), kept], 'good %s: all checksums match'
        shutil.rmtree(self.backups + '/db')
        self.assertEqual([good % self.web], self.verify(0, self.backups)[:-1])
        self.assertEqual([good % path for path in paths],
                         self.verify(0, self.backups, 'backups=all')[:-1])

    def test_a_selector_chooses_vms(self):
        for word, names in (('vm=web', ['web']), ('vm=.*', ['db', 'web']), ('vm=d.*', ['db'])):
            with self.subTest(word):
                found = [line.split(':')[0].split('/')[-2]
                         for line in self.verify(0, self.backups, word)[:-1]]
                self.assertEqual(names, sorted(found))
        lines = self.verify(2, self.backups, 'vm=nobody')
        self.assertIn('ERROR vm=nobody is none of the VMs that are selected and found', lines)

    def test_a_config_chooses_vms_and_misses_those_without_a_backup(self):
        config = self.config('vm-export=web', 'vm-export=absent', 'exclude=db')
        lines = self.verify(2, config)
        self.assertIn('***ERROR - no backup found: vm-export=absent (%s line 4)' % config, lines)
        self.assertEqual(1, len([line for line in lines if line.startswith('good ')]))
        self.assertEqual('VmBackup verify ended - **ERRORS DETECTED** - S:1 W:0 E:1', lines[-1])

    def test_damage_is_found_later_and_recorded(self):
        for path, name in ((self.web, 'web.xva'), (self.db, 'db.raw')):
            with self.subTest(name):
                digests = self.manifest(path)['verified']['digests']
                self.change(os.path.join(path, name), 700000)
                line = self.verify(2, path)[0]
                self.assertTrue(line.startswith('ERROR %s: %s: ' % (path, name)), line)
                verified = self.manifest(path)['verified']
                self.assertEqual(('', digests), (verified['proved'], verified['digests']))
                self.assertIn(verified['fault'], line)
                self.change(os.path.join(path, name), 700000)
                self.verify(0, path)
                self.assertNotIn('fault', self.manifest(path)['verified'])

    def test_an_archive_of_another_snapshot_is_found(self):
        other = self.made('vm-export=web')
        shutil.copy(self.web + '/web.xva', other + '/web.xva')
        self.assertEqual('ERROR %s: web.xva: it is of another snapshot: %s, not %s' % (
            other, self.manifest(self.web)['snapshot'], self.manifest(other)['snapshot']),
            self.verify(2, other)[0])

    def test_a_backup_that_was_compressed_later_is_still_known(self):
        for path, name in ((self.web, '/web.xva'), (self.db, '/db.raw')):
            self.pack(path + name)
            os.rename(path + name, path + name + '.gz')
            self.assert_good(path)

    def test_backups_of_3_25_verify_and_stay_as_they_are(self):
        path, image = [self.old_backup(vm, 'backup-2019-01-01-(00:00:00)', 'success')
                       for vm in ('web', 'db')]
        for name in ('web.xva', 'vm-metadata.xml'):
            shutil.copy(os.path.join(self.web, name), path)
        shutil.copy(self.db + '/db.raw', image)
        shutil.copytree(self.db + '/DISK-xvda', image + '/DISK-xvda')
        self.assert_good(path)
        self.assertEqual('***WARNING - %s: the structure is intact; vm-metadata.xml is missing'
                         % image, self.verify(1, image)[0])
        self.assertEqual([], [name for place in (path, image) for name in os.listdir(place)
                              if 'json' in name])
        os.truncate(image + '/db.raw', 4096)
        self.assertIn('it has 4096 bytes, its disk ', self.verify(2, image)[0])

    def test_metadata_has_to_be_whole_and_of_this_vm(self):
        path, name = self.web, 'vm-metadata.xml'
        plain = self.made('vm-export=web', verify='no')
        text, of_another = self.read_bytes(path, name), self.read_bytes(self.db, name)
        for place, content, words in (
                (path, text[:-20], 'it is not as xapi writes it'),
                (path, b'', 'it is not as xapi writes it'),
                (plain, of_another, 'it is of another VM'),
                (path, text.replace(b'3145728', b'3145729'),
                 'intact, but not the file that was verified first')):
            with self.subTest(words):
                self.put_file(os.path.join(place, name), content)
                self.assertIn(name + ': ' + words, self.verify(2, place)[0])
        os.unlink(os.path.join(path, name))
        self.assertIn('vm-metadata.xml has 0 bytes, not %d' % len(text), self.verify(1, path)[0])

    def test_a_file_that_is_not_as_the_manifest_tells_is_found(self):
        os.truncate(self.web + '/vm.cfg', 3)
        self.assertRegex(self.verify(1, self.web)[0],
                         r'WARNING - .*all checksums match; vm\.cfg has 3 bytes, not \d+$')
        self.assertNotIn('fault', self.manifest(self.web)['verified'])

    def test_a_damaged_manifest_is_told_and_kept_and_without_a_marker_it_is_no_backup(self):
        self.put_file(self.web + '/backup.json', '{')
        self.assertEqual('ERROR %s: backup.json is damaged' % self.web, self.verify(2, self.web)[0])
        self.assertEqual(1, os.path.getsize(self.web + '/backup.json'))
        os.unlink(self.web + '/success')
        self.assertEqual('ERROR %s: no good backup (there is no marker in it)' % self.web,
                         self.verify(2, self.web)[0])
        self.assertIn('ERROR %s/web: no good backup (there is no marker in it)' % self.backups,
                      self.verify(2, self.backups))

    def test_another_name_pattern_needs_no_config(self):
        shutil.rmtree(self.backups + '/db')
        path = self.backups + '/web/20260301-020000'
        os.rename(self.web, path)
        for target in (self.backups, os.path.join(self.backups, 'web')):
            self.assertEqual('good %s: all checksums match' % path, self.verify(0, target)[0])

    def test_dumps_of_the_pool_database_are_verified(self):
        directory = os.path.join(self.backups, 'METADATA_' + HOST)
        dump = os.path.join(directory, 'pool_db_20260301-020000.dump')
        os.mkdir(directory)
        for content, status, told in (
                (b'<database/>\n', 0, 'good %s: ' % dump),
                (b'<database/', 2, 'ERROR %s: it is not as xapi writes it' % dump),
                (b'<html><h1>HTTP 500</h1></html>', 2,
                 'ERROR %s: its outermost element is html, not database' % dump)):
            self.put_file(dump, content)
            self.assertIn(told, self.verify(status, self.backups)[2])
        self.assertEqual(2, len(self.verify(0, self.backups, 'vm=web')))

    def test_a_manifest_that_cannot_be_written_is_a_note(self):
        path = self.web
        self.prelude = AS_NO_MORE_THAN_THE_OWNER
        os.chmod(path, 0o500)
        self.addCleanup(os.chmod, path, 0o700)
        self.assertEqual(['***NOTE - %s: the result is not recorded: Permission denied' % path,
                          'good %s: all checksums match' % path,
                          'VmBackup verify ended - Success - S:1 W:0 E:0'],
                         self.verify(0, path))

    def test_progress_is_shown_on_a_terminal_only(self):
        self.pack(self.web + '/web.xva')
        path = self.in_path('sleep 0.8; exec %s "$@"' % shutil.which('gzip'), 'gzip', 'pigz')
        for words, turn in (((self.web,), ''),
                            ((self.backups, 'backups=all'), 'VM 2 of 2: ')):
            status, text = self.on_terminal('verify', *words, PATH=path)
            self.assertEqual(1, status)                # it has another size now
            self.assertRegex(text, r'(?m)(^|\x1b\[K)%sverified \d.*, .*/s: web\.xva\r\x1b' % turn)
            self.assertFalse([line for line in screen(text) if '/s: ' in line], text)
        self.assertFalse([line for line in self.verify(1, self.web) if '/s: ' in line])

    def test_a_signal_ends_it(self):
        began = self.at('began')
        path = self.in_path(': > %s; exec sleep 100' % began, 'gzip', 'pigz')
        self.pack(self.web + '/web.xva')
        child = self.start('verify', self.web, PATH=path)
        self.wait_for(lambda: os.path.exists(began))
        self.signalled(child)

    def test_wrong_words_are_one_line_and_status_2(self):
        empty, rubbish = self.at('empty'), self.put_file('rubbish', '\0\1\2')
        os.mkdir(empty)
        for words, text in (
                ((), 'usage: VmBackup.py verify <config-file|backup_dir|backup|file>'),
                (('/does/not/exist',), 'no such file or directory: /does/not/exist'),
                ((empty,), 'backup_dir holds no backup at all -> ' + empty),
                ((empty, 'vms=x'), 'unknown option: vms='),
                ((empty, 'backups=some'), 'invalid value: backups=some'),
                ((rubbish + '.xva', 'vm=x'), 'no such file'),
                ((self.web, 'vm=x'), 'vm= and backups= do not apply to a single backup'),
                ((self.web, 'backups=all'), 'vm= and backups= do not apply to a single backup'),
                ((rubbish,), 'not a config file (binary'),
                ((self.config('x=1'),), 'unexpected config key: x')):
            with self.subTest(words):
                self.assertIn('ERROR ' + text, self.verify(2, *words)[-1])

    def test_a_raw_image_that_nothing_is_known_of_proves_nothing(self):
        path = self.put_file('some.raw', '\0' * 4096)
        self.assertEqual('***WARNING - %s: readable, but nothing tells its expected size, 4.0 KiB'
                         % path, self.verify(1, path)[0])

    def test_samples_of_a_real_pool(self):
        vhd = self.put_file('root.vhd', sample('sample-root.vhd.xz'))
        self.assertIn(': the structure is intact, 8.0 MiB', self.verify(0, vhd)[0])
        line = self.verify(2, os.path.join(SAMPLES, 'failed-no-disks.xva'))[0]
        self.assertTrue(line.endswith(': it ends at byte 44961, in ova.xml'))


class Robust(MadeCase):
    """What is no damage is not taken for it, and one backup's trouble stops no other."""

    def test_a_decompressor_that_is_missing_or_killed_is_an_error_and_not_recorded(self):
        self.pack(self.web + '/web.xva')
        before = self.manifest(self.web)
        for path, words in (('/nosuch', 'no program gzip on this host'),
                            (self.in_path('kill -9 $$', 'gzip', 'pigz'),
                             'was ended by signal 9')):
            done = self.command(2, 'verify', self.web, PATH=path)
            self.assertIn(words, done.output)
            self.assertEqual(before, self.manifest(self.web))

    def test_odd_things_in_backup_dir_stop_nothing(self):
        shutil.copy(self.web + '/web.xva', self.backups)
        os.makedirs(self.backups + '/project/build')
        for name in ('METADATA_notes', 'success.txt', 'project/build/success'):
            self.put_file(os.path.join(self.backups, name))
        self.assertEqual(['good %s: all checksums match' % path
                          for path in (self.db, self.web)], self.verify(0, self.backups)[:-1])

    def test_an_image_that_looks_compressed_is_an_image(self):
        disk = self.sim.pool.ref_of('VDI', self.disk_of('db', '0'))
        self.sim.pool.content[disk].write(0, b'\x1f\x8b\x08\0')
        self.verify(0, self.made('vdi-export=db'))

    def test_an_archive_without_the_disks_of_the_snapshot_is_no_backup(self):
        other = os.path.join(SAMPLES, 'no-disks.xva')
        done = self.ends(2, 'vm-export=web', max_backups=1,
                         VMBACKUP_XE=self.xe_that('cat %s > "$1"' % other))
        self.assertIn('web.xva: it is of another snapshot: ', done.output)
        self.assertEqual(self.web, self.dated('web')[0])

    def test_a_backup_that_is_deleted_meanwhile_is_a_note(self):
        self.pack(self.web + '/web.xva')
        done = self.command(0, 'verify', self.backups,
                            PATH=self.in_path('rm -r "%s"' % self.web, 'gzip', 'pigz'))
        self.assertEqual(['good %s: all checksums match' % self.db,
                          '***NOTE - %s: it was deleted meanwhile' % self.web], done.lines[:2])

    def test_four_at_once_leave_a_whole_manifest(self):
        children = [self.start('verify', self.web) for _ in range(4)]
        self.assertEqual([0] * 4, [self.finish(child).status for child in children])
        self.assertEqual('checksums', self.proved(self.web))
        self.assertEqual([], [name for name in os.listdir(self.web) if name.endswith('.new')])

    def test_a_pipe_in_the_place_of_the_archive_holds_nothing_up(self):
        os.unlink(self.web + '/web.xva')
        os.mkfifo(self.web + '/web.xva')
        self.assertIn('web.xva: is not a regular file', self.verify(2, self.web)[0])


class Digests(ArchiveCase):
    def test_an_archives_digest_is_that_of_all_but_the_disks_data(self):
        self.put(sample('sample.xva.gz'))
        content, wanted, at = gzip.decompress(sample('sample.xva.gz')), hashlib.sha256(), 0
        while content[at]:
            size = int(content[at + 124:at + 135], 8)
            end = at + 512 + size + -size % 512
            is_data = re.match(rb'Ref:\d+/\d+\0', content[at:at + 100])
            wanted.update(content[at:at + 512 if is_data else end])
            at = end
        wanted.update(content[at:at + 512])
        self.assertEqual(wanted.hexdigest(), self.verdict().digest)
