"""Verification as users meet it: the step in a run, and the command `verify`."""

import gzip
import hashlib
import json
import lzma
import os
import pty
import re
import shutil
import signal
import unittest

import VmBackup
from tests import DATA
from tests.tools.support import LIMIT, PoolCase
from tests.runs.test_store import AS_NO_MORE_THAN_THE_OWNER, StoreCase

SAMPLES = os.path.join(DATA, 'samples')


class VerifyCase(StoreCase):
    """What the tests below share."""

    pool_description = PoolCase.pool_description

    def made(self, *lines, **keys):
        """Run to a good end; the dated directory of the last line's VM."""
        done = self.back_up(*lines, **keys)
        self.assertEqual(0, done.status, done.output)
        return self.dated(lines[-1].partition('=')[2])[-1]

    def verify(self, status, *words):
        """The lines of the command, which has to end with that status."""
        done = self.vmbackup('verify', *words)
        self.assertEqual(status, done.status, done.output)
        self.assertNotIn('Traceback', done.output)
        return done.lines

    def manifest(self, path):
        """The manifest of a backup."""
        with open(os.path.join(path, 'backup.json'), encoding='utf-8') as stream:
            return json.load(stream)

    def change(self, path, offset, data=None):
        """Flip a bit of a file, or put other bytes there; a negative offset is from its end."""
        with open(path, 'r+b') as stream:
            stream.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
            at = stream.tell()
            old = stream.read(1)
            stream.seek(at)
            stream.write(data or bytes([old[0] ^ 1]))


class InARun(VerifyCase):
    """The step between the export and the marker."""

    def broken(self, text, *lines, **keys):
        """A run whose files are damaged behind xe's back, and which ends with an error."""
        done = self.vmbackup('password', self.config(*lines, **keys),
                             VMBACKUP_XE=self.xe_that(text))
        self.assertEqual(2, done.status, done.output)
        return done

    def test_a_damaged_archive_is_an_error_and_no_backup(self):
        done = self.broken('printf x | dd of="$1" bs=1 seek=700000 conv=notrunc 2>/dev/null',
                           'vm-export=web', 'vm-export=db')
        for name in ('web', 'db'):
            self.assertIn('vm-export,end,VERIFY-FAIL ' + name, self.status())
            line, = [line for line in done.lines
                     if line.startswith('ERROR vm-export VERIFY-FAIL %s: %s.xva: disk xvda' % (
                         name, name))]
            self.assertRegex(line, r'chunk Ref:\d+/00000000, byte \d+: the checksum is [0-9A-F]{16}'
                                   ', that of the data here is [0-9A-F]{16}$')
        self.assertFalse(any('success' in path for path in self.tree()))
        self.assertIn('vmbackup.py,end,ERROR,S:0 W:0 E:2', self.status())

    def test_a_damaged_backup_pushes_out_no_good_one(self):
        old = [self.made('vm-export=web', max_backups=2) for _ in range(2)]
        self.broken('truncate -s -1 "$1"', 'vm-export=web', max_backups=2)
        self.assertEqual(old, self.dated('web')[:2])
        self.assertEqual(3, len(self.dated('web')))
        self.made('vm-export=web', max_backups=2)      # and the failure goes then
        self.assertEqual(old[1:], self.dated('web')[:1])
        self.assertEqual(2, len(self.dated('web')))

    def test_the_snapshot_is_gone_before_it_begins(self):
        done = self.broken('truncate -s -1 "$1"', 'vm-export=web')
        lines = [line for line in done.lines if 'VERIFY-FAIL' in line or 'All objects' in line]
        self.assertEqual('All objects destroyed', lines[0])
        self.assertIn('VERIFY-FAIL', lines[1])

    def test_an_image_that_is_too_short_or_too_long_is_an_error(self):
        for method, token in (('raw', 'VDI-EXPORT-FAIL'), ('vhd', 'VERIFY-FAIL')):
            for change in ('truncate -s -512 "$1"', 'printf more >> "$1"'):
                with self.subTest((method, change)):
                    self.broken(change, 'vdi-export=db', vdi_export_format=method)
                    self.assertIn('vdi-export,end,%s db' % token, self.status())

    def test_an_http_answer_at_the_end_is_told(self):
        page = 'HTTP/1.0 500 Internal Error\\r\\n\\r\\n<html><h1>x</h1>SR_BACKEND_FAILURE_46</html>'
        done = self.broken("printf '%s' >> \"$1\"" % page, 'vm-export=web')
        self.assertIn('something follows the end: the export failed: SR_BACKEND_FAILURE_46',
                      done.output)

    def test_verify_no_reads_nothing(self):
        done = self.vmbackup('password', self.config('vm-export=web', verify='no'),
                             VMBACKUP_XE=self.xe_that('truncate -s -1 "$1"'))
        self.assertEqual(0, done.status, done.output)
        self.assertIn('  verify            = no', done.lines)
        self.assertNotIn('verified', self.manifest(self.dated('web')[0]))

    def test_every_compression_and_format_verifies(self):
        for key, value, proved in (
                ('compress', 'gzip', 'checksums'), ('compress', 'zstd', 'checksums'),
                ('vdi_export_format', 'raw', 'structure'),
                ('vdi_export_format', 'vhd', 'structure')):
            if key == 'compress' and not shutil.which(value):
                continue
            with self.subTest(value):
                line = ('vm' if key == 'compress' else 'vdi') + '-export=db'
                verified = self.manifest(self.made(line, **{key: value}))['verified']
                self.assertEqual(proved, verified['proved'])

    def test_a_damaged_dump_of_the_pool_database_is_an_error_and_no_dump(self):
        wrapper = os.path.join(self.directory, 'cutting-xe')
        with open(wrapper, 'w', encoding='utf-8') as stream:
            stream.write('#!/bin/sh\n%s "$@" || exit\nfor word; do case $word in file-name=*) '
                         'truncate -s -1 "${word#file-name=}";; esac; done\n' % self.sim.xe)
        os.chmod(wrapper, 0o755)
        for verify, status in (('yes', 2), ('no', 0)):
            done = self.vmbackup('password', self.config(
                'vm-export=db', pool_db_backup=1, verify=verify), VMBACKUP_XE=wrapper)
            self.assertEqual(status, done.status, done.output)
            found = [path for path in self.tree() if path.endswith(('.dump', '.partial'))]
            self.assertEqual(verify == 'no', bool(found), found)
            self.assertIs(verify == 'yes', any(line.startswith(
                'ERROR pool database not backed up: it is no whole XML') for line in done.lines))

    def test_a_signal_during_verification_ends_the_run(self):
        done = self.vmbackup('password', self.config('vm-export=web', 'vm-export=db'),
                             VMBACKUP_XE=self.xe_that('rm "$1"; mkfifo "$1"; kill -TERM $PPID'))
        self.assertEqual(143, done.status, done.output)
        self.assertIn('vm-export,end,INTERRUPTED web', self.status())

    def test_without_the_library_a_small_archive_is_hashed_in_python(self):
        self.script = self.changed_script(XXHASH=())
        self.assertEqual('checksums', self.manifest(self.made('vm-export=web'))[
            'verified']['proved'])

    def test_without_the_library_of_a_large_archive_the_structure_is_proved_and_that_is_said(self):
        self.script = self.changed_script(XXHASH=(), SLOW_BYTES=1 << 20)
        done = self.back_up('vm-export=web')
        self.assertEqual(0, done.status, done.output)
        path = self.dated('web')[0]
        self.assertEqual('structure', self.manifest(path)['verified']['proved'])
        self.assertTrue(any(line.startswith('***NOTE - this host has no libxxhash')
                            for line in done.lines))
        self.verify(0, path)
        self.assertEqual('checksums', self.manifest(path)['verified']['proved'])

    def test_a_compression_that_cannot_be_read_back_is_an_error_of_the_config(self):
        tools = os.path.join(self.directory, 'bin')
        os.mkdir(tools)
        os.symlink(shutil.which('df'), os.path.join(tools, 'df'))
        config = self.config('vm-export=web', compress='zstd')
        done = self.vmbackup('password', config, 'preview', PATH=tools)
        self.assertEqual(2, done.status, done.output)
        self.assertIn('ERROR: config compress -> zstd: no program zstd to verify it with '
                      '(install it, or set verify=no)', done.lines)
        config = self.config('vm-export=web', compress='zstd', verify='no')
        done = self.vmbackup('password', config, 'preview', PATH=tools)
        self.assertEqual(0, done.status, done.output)

    def test_a_disk_that_grew_since_the_run_began_is_no_fault(self):
        wrapper = os.path.join(self.directory, 'growing-xe')
        with open(wrapper, 'w', encoding='utf-8') as stream:
            stream.write('#!/bin/sh\n[ "$1" = vdi-snapshot ] && %s vdi-resize uuid=%s '
                         'disk-size=4194304\nexec %s "$@"\n'
                         % (self.sim.xe, self.disk_of('db', '0'), self.sim.xe))
        os.chmod(wrapper, 0o755)
        done = self.vmbackup('password', self.config('vdi-export=db'), VMBACKUP_XE=wrapper)
        self.assertEqual(0, done.status, done.output)
        disk, = self.manifest(self.dated('db')[0])['disks']
        with open(os.path.join(self.dated('db')[0], 'db.raw'), 'rb') as stream:
            self.assertEqual(disk['virtual_size'], len(stream.read()))


class TheCommand(VerifyCase):
    """./VmBackup.py verify ..."""

    def test_what_may_be_named(self):
        path = self.made('vdi-export=db', 'vm-export=web')
        config = os.path.join(self.directory, 'run.cfg')
        good = 'good %s: every checksum is right'
        both = [good % self.dated('db')[0], good % path,
                'VmBackup verify ended - Success - S:2 W:0 E:0']
        one = both[1:2] + ['VmBackup verify ended - Success - S:1 W:0 E:0']
        self.assertEqual(both, self.verify(0, config)[1:])
        self.assertEqual(both, self.verify(0, self.backups))
        self.assertEqual(one, self.verify(0, os.path.join(self.backups, 'web')))
        self.assertEqual(one, self.verify(0, path))
        self.assertEqual(one, self.verify(0, path + '/web.xva'))
        copy = os.path.join(self.directory, 'copy.xva')
        shutil.copy(path + '/web.xva', copy)
        self.assertEqual('good %s: every checksum is right, %s' % (
            copy, VmBackup.human_size(os.path.getsize(copy))), self.verify(0, copy)[0])

    def test_the_pool_is_not_asked(self):
        path = self.made('vm-export=web')
        self.sim.stop()
        self.before = None
        self.verify(0, path)

    def test_the_newest_or_all(self):
        paths = [self.made('vm-export=web') for _ in range(3)]
        newest = self.verify(0, self.backups)
        self.assertEqual(['good %s: every checksum is right' % paths[-1]], newest[:-1])
        every = self.verify(0, self.backups, 'backups=all')
        self.assertEqual(['good %s: every checksum is right' % path for path in paths[::-1]],
                         every[:-1])

    def test_a_selector_chooses_vms(self):
        self.made('vm-export=web', 'vm-export=db')
        for word, names in (('vm=web', ['web']), ('vm=.*', ['db', 'web']), ('vm=d.*', ['db'])):
            with self.subTest(word):
                found = [line.split('/')[-2] for line in self.verify(0, self.backups, word)[:-1]]
                self.assertEqual(names, sorted(found))
        lines = self.verify(2, self.backups, 'vm=nobody')
        self.assertIn('***ERROR - vm not found: vm-export=nobody (command line)', lines)

    def test_a_config_chooses_vms_and_misses_those_without_a_backup(self):
        self.made('vm-export=web', 'vm-export=db')
        config = self.config('vm-export=web', 'vm-export=absent', 'exclude=db')
        lines = self.verify(2, config)
        self.assertIn('***ERROR - vm not found: vm-export=absent (%s line 4)' % config, lines)
        self.assertEqual(1, len([line for line in lines if line.startswith('good ')]))
        self.assertEqual('VmBackup verify ended - **ERRORS DETECTED** - S:1 W:0 E:1', lines[-1])

    def test_damage_is_found_later_and_recorded(self):
        for line, name in (('vm-export=web', 'web.xva'), ('vdi-export=db', 'db.raw')):
            with self.subTest(name):
                path = self.made(line)
                self.verify(0, path)
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
        first, second = [self.made('vm-export=web') for _ in range(2)]
        shutil.copy(first + '/web.xva', second + '/web.xva')
        self.assertEqual('ERROR %s: web.xva: it is of another snapshot: %s, not %s' % (
            second, self.manifest(first)['snapshot'], self.manifest(second)['snapshot']),
            self.verify(2, second)[0])

    def test_another_word_in_ova_xml_is_found_by_the_digest(self):
        path = self.made('vm-export=web')
        with open(path + '/web.xva', 'r+b') as stream:
            at = stream.read(100000).index(b'RESTORE_web')
        self.change(path + '/web.xva', at)
        self.assertEqual('ERROR %s: web.xva: it is whole, but not what it was when it was verified '
                         'first' % path, self.verify(2, path)[0])

    def test_a_backup_that_was_compressed_later_is_still_known(self):
        for line, name in (('vm-export=web', 'web.xva'), ('vdi-export=db', 'db.raw')):
            path = self.made(line)
            with open(os.path.join(path, name), 'rb') as stream, gzip.open(
                    os.path.join(path, name + '.gz'), 'wb', 1) as packed:
                shutil.copyfileobj(stream, packed)
            os.unlink(os.path.join(path, name))
            self.assertEqual('good %s: every checksum is right' % path, self.verify(0, path)[0])

    def test_backups_of_3_25_verify_and_stay_as_they_are(self):
        path = self.old_backup('web', 'backup-2019-01-01-(00:00:00)', 'success')
        made = self.made('vm-export=web', 'vdi-export=db')
        self.made('vm-export=web')
        web = self.dated('web')[-1]
        for name in ('web.xva', 'vm-metadata.xml'):
            shutil.copy(os.path.join(web, name), path)
        image = self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'success')
        shutil.copy(made + '/db.raw', image)
        shutil.copytree(made + '/DISK-xvda', image + '/DISK-xvda')
        self.assertEqual('good %s: every checksum is right' % path, self.verify(0, path)[0])
        self.assertEqual('***WARNING - %s: the structure is whole; vm-metadata.xml is missing'
                         % image, self.verify(1, image)[0])
        self.assertEqual([], [name for place in (path, image) for name in os.listdir(place)
                              if 'json' in name])
        os.truncate(image + '/db.raw', 4096)
        self.assertIn('it has 4096 bytes, its disk ', self.verify(2, image)[0])

    def test_metadata_has_to_be_whole_and_of_this_vm(self):
        path = self.made('vm-export=web')
        plain, other = [self.made('vm-export=' + vm, verify='no') for vm in ('web', 'db')]
        name = 'vm-metadata.xml'
        with open(os.path.join(path, name), 'rb') as stream:
            text = stream.read()
        with open(os.path.join(other, name), 'rb') as stream:
            of_another = stream.read()
        for place, content, words in (
                (path, text[:-20], 'it is no whole XML'), (path, b'', 'it is no whole XML'),
                (plain, of_another, 'it is of another VM'),
                (path, text.replace(b'3145728', b'3145729'), 'it is whole, but not what it was')):
            with self.subTest(words):
                with open(os.path.join(place, name), 'wb') as stream:
                    stream.write(content)
                self.assertIn(name + ': ' + words, self.verify(2, place)[0])
        os.unlink(os.path.join(path, name))
        self.assertIn('vm-metadata.xml has 0 bytes, not %d' % len(text), self.verify(1, path)[0])

    def test_a_file_that_is_not_as_the_manifest_tells_is_found(self):
        path = self.made('vm-export=web')
        os.truncate(path + '/vm.cfg', 3)
        self.assertRegex(self.verify(1, path)[0],
                         r'WARNING - .*every checksum is right; vm\.cfg has 3 bytes, not \d+$')
        self.assertNotIn('fault', self.manifest(path)['verified'])

    def test_a_damaged_manifest_is_told_and_kept(self):
        path = self.made('vm-export=web')
        with open(path + '/backup.json', 'w', encoding='utf-8') as stream:
            stream.write('{')
        self.assertEqual('ERROR %s: backup.json is damaged' % path, self.verify(2, path)[0])
        self.assertEqual(1, os.path.getsize(path + '/backup.json'))

    def test_without_a_marker_it_is_no_backup(self):
        path = self.made('vm-export=web')
        os.unlink(path + '/success')
        self.assertEqual('ERROR %s: it has no marker: the record of a failure, not a backup' % path,
                         self.verify(2, path)[0])
        self.assertEqual('ERROR %s/web: no good backup of this VM' % self.backups,
                         self.verify(2, self.backups)[0])

    def test_renamed_backups_are_verified_with_all(self):
        path = self.made('vm-export=web')
        kept = os.path.join(self.backups, 'web', 'KEEP-golden')
        os.rename(path, kept)
        new = self.made('vm-export=web')
        self.assertIn('good %s: ' % new, self.verify(0, self.backups)[0])
        self.assertEqual(['good %s: every checksum is right' % each for each in (new, kept)],
                         self.verify(0, self.backups, 'backups=all')[:-1])

    def test_another_name_pattern_needs_no_config(self):
        path = self.made('vm-export=web', backup_dir_pattern='%Y%m%d-%H%M%S')
        for target in (self.backups, os.path.join(self.backups, 'web')):
            self.assertEqual('good %s: every checksum is right' % path, self.verify(0, target)[0])

    def test_dumps_of_the_pool_database_are_verified(self):
        self.made('vm-export=web', pool_db_backup=1)
        directory = os.path.join(self.backups, 'METADATA_' + os.uname().nodename)
        dump = os.path.join(directory, os.listdir(directory)[0])
        self.assertIn('good %s: ' % dump, self.verify(0, self.backups)[1])
        os.truncate(dump, os.path.getsize(dump) - 1)
        self.assertIn('ERROR %s: it is no whole XML' % dump, self.verify(2, self.backups)[1])
        with open(dump, 'w', encoding='utf-8') as stream:
            stream.write('<html><h1>HTTP 500</h1></html>')
        self.assertIn('ERROR %s: its outermost element is html, not database' % dump,
                      self.verify(2, self.backups)[1])
        self.assertEqual(2, len(self.verify(0, self.backups, 'vm=web')))

    def test_a_manifest_that_cannot_be_written_is_a_warning(self):
        path = self.made('vm-export=web')
        self.prelude = AS_NO_MORE_THAN_THE_OWNER
        os.chmod(path, 0o500)
        self.addCleanup(os.chmod, path, 0o700)
        self.assertEqual(['good %s: every checksum is right' % path,
                          '***WARNING - %s: the result is not recorded: Permission denied' % path,
                          'VmBackup verify ended - **WARNING(s)** - S:1 W:1 E:0'],
                         self.verify(1, path))

    def test_names_of_any_kind(self):
        names = ['a/b', '..', 'x$(id)', 'büro', 'n\nl', 'z' * 255]
        self.pool_description = {'vms': [{'name': name, 'disks': ['1 MiB']} for name in names]}
        self.use_pool()
        self.assertEqual(0, self.back_up('vm-export=').status)
        for locale in ('C', 'C.UTF-8'):
            done = self.vmbackup('verify', self.backups, LANG=locale, LC_ALL=locale)
            self.assertEqual((0, 'VmBackup verify ended - Success - S:6 W:0 E:0'),
                             (done.status, done.lines[-1]), done.output)
        for name in names[:1] + names[2:4]:
            lines = self.verify(0, self.backups, 'vm=' + re.escape(name) + '$')
            self.assertEqual(2, len(lines), (name, lines))

    def test_progress_is_shown_on_a_terminal_only(self):
        path = self.made('vm-export=web')
        main, terminal = pty.openpty()
        try:
            self.assertEqual(0, self.start_with(['verify', path], stdout=terminal).wait(LIMIT))
            shown = os.read(main, 65536).decode('utf-8')
        finally:
            os.close(main)
            os.close(terminal)
        self.assertRegex(shown, r'(^|\x1b\[K)verified \d.*, .*/s: web\.xva\r\x1b\[K')
        self.assertRegex(shown, r'\r\x1b\[K\d{4}-.* - good ')
        self.assertFalse([line for line in self.verify(0, path) if '%' in line])

    def test_a_signal_ends_it(self):
        path = self.made('vm-export=web')
        fifo = os.path.join(self.directory, 'slow')
        os.mkdir(fifo)
        program = os.path.join(fifo, 'gzip')
        with open(program, 'w', encoding='utf-8') as stream:
            stream.write('#!/bin/sh\n: > %s/began\nexec sleep 100\n' % fifo)
        os.chmod(program, 0o755)
        os.symlink('gzip', os.path.join(fifo, 'pigz'))
        with open(path + '/web.xva', 'rb') as stream:
            data = gzip.compress(stream.read(1 << 20), 1)
        with open(path + '/web.xva', 'wb') as stream:
            stream.write(data)
        child = self.start('verify', path, PATH=fifo + ':' + os.environ['PATH'])
        self.wait_for(lambda: os.path.exists(fifo + '/began'))
        child.send_signal(signal.SIGTERM)
        self.assertEqual(143, self.finish(child).status)

    def test_wrong_words_are_one_line_and_status_2(self):
        empty = os.path.join(self.directory, 'empty')
        os.mkdir(empty)
        rubbish = os.path.join(self.directory, 'rubbish')
        with open(rubbish, 'wb') as stream:
            stream.write(b'\0\1\2')
        for words, text in (
                ((), 'wanted: verify <config-file|backup_dir|backup|file>'),
                (('/does/not/exist',), 'no such file or directory: /does/not/exist'),
                ((empty,), 'no backups in ' + empty), ((empty, 'vms=x'), 'unknown option: vms=x'),
                ((empty, 'backups=some'), 'unknown option: backups=some'),
                ((rubbish + '.xva', 'vm=x'), 'no such file'),
                ((self.made('vm-export=web'), 'vm=x'), 'there is nothing to choose from in'),
                ((self.dated('web')[0], 'backups=all'), 'there is nothing to choose from in'),
                ((rubbish,), 'not a config file (binary'),
                ((self.config('x=1'),), 'in config_load')):
            with self.subTest(words):
                lines = self.verify(2, *words)
                self.assertIn('ERROR ' + text, lines[-1])

    def test_a_backup_dir_that_is_not_there_is_named(self):
        lines = self.verify(2, self.config('vm-export=x', backup_dir='/nosuch'))
        self.assertEqual('ERROR backup_dir does not exist: /nosuch (is the share mounted?)',
                         lines[-1])

    def test_a_raw_image_that_nothing_is_known_of_proves_nothing(self):
        path = os.path.join(self.directory, 'some.raw')
        with open(path, 'wb') as stream:
            stream.write(bytes(4096))
        self.assertEqual('***WARNING - %s: it can be read, but nothing tells how long it should '
                         'be, 4.0 KiB' % path, self.verify(1, path)[0])

    def test_samples_of_a_real_pool(self):
        vhd = os.path.join(self.directory, 'root.vhd')
        with lzma.open(os.path.join(SAMPLES, 'sample-root.vhd.xz')) as stream, open(
                vhd, 'wb') as image:
            shutil.copyfileobj(stream, image)
        self.assertIn(': the structure is whole, 8.0 MiB', self.verify(0, vhd)[0])
        for name, text in (('sample.xva.gz', 'every checksum is right, 8.1 MiB'),
                           ('sample.xva.zst', 'every checksum is right, 8.1 MiB'),
                           ('no-disks.xva', 'every checksum is right, 23.5 KiB'),
                           ('metadata.xva', 'whole, but metadata only, without disks, 41.5 KiB')):
            if not name.endswith('zst') or shutil.which('zstd'):
                path = os.path.join(SAMPLES, name)
                self.assertEqual('good %s: %s' % (path, text), self.verify(0, path)[0])
        line = self.verify(2, os.path.join(SAMPLES, 'failed-no-disks.xva'))[0]
        self.assertTrue(line.endswith(': it ends at byte 44961, in ova.xml: the export failed: '
                                      'SR_BACKEND_FAILURE_46: [ ; The VDI is not available; ]'))


class Rotation(VerifyCase):
    """A backup that was found damaged does not count."""

    def test_damaged_backups_push_out_no_sound_one(self):
        paths = [self.made('vm-export=web', max_backups=3) for _ in range(3)]
        for path in paths[1:]:
            self.change(path + '/web.xva', 700000)
            self.verify(2, path)
        paths.append(self.made('vm-export=web', max_backups=3))
        self.assertEqual(paths, self.dated('web'))
        paths.append(self.made('vm-export=web', max_backups=3))
        self.assertEqual(paths, self.dated('web'))
        paths.append(self.made('vm-export=web', max_backups=3))
        self.assertEqual(paths[3:], self.dated('web'))

    def test_pre_clean_leaves_the_last_sound_one(self):
        paths = [self.made('vm-export=web') for _ in range(2)]
        self.change(paths[1] + '/web.xva', 700000)
        self.verify(2, paths[1])
        self.broken_export('vm-export=web', max_backups=1, pre_clean='True')
        self.assertEqual(paths, self.dated('web')[:2])

    def broken_export(self, *lines, **keys):
        """A run whose export fails."""
        self.sim.pool.faults.add('vm-export', 'refuse', nth=2, error=['INTERNAL_ERROR', 'x'])
        self.assertEqual(2, self.back_up(*lines, **keys).status)


class Robust(VerifyCase):
    """What is no damage is not taken for it, and one backup's trouble stops no other."""

    def test_a_missing_program_is_an_error_and_not_recorded(self):
        path = self.made('vm-export=web', compress='gzip')
        before = self.manifest(path)
        done = self.vmbackup('verify', path, PATH='/nosuch')
        self.assertEqual(2, done.status, done.output)
        self.assertIn('no program gzip to verify it with', done.output)
        self.assertEqual(before, self.manifest(path))

    def test_a_decompressor_that_is_killed_is_no_damage(self):
        path = self.made('vm-export=web', compress='gzip')
        before = self.manifest(path)
        for name in ('gzip', 'pigz'):
            program = os.path.join(self.directory, name)
            with open(program, 'w', encoding='utf-8') as stream:
                stream.write('#!/bin/sh\nkill -9 $$\n')
            os.chmod(program, 0o755)
        done = self.vmbackup('verify', path, PATH=self.directory + ':' + os.environ['PATH'])
        self.assertEqual(2, done.status, done.output)
        self.assertIn('was ended by signal 9', done.output)
        self.assertEqual(before, self.manifest(path))

    def test_hostile_manifests_stop_no_other_backup(self):
        good = self.made('vm-export=web', 'vdi-export=db') and self.dated('web')[0]
        path = self.dated('db')[0]
        manifest = self.manifest(path)
        for key, value in (('verified', []), ('verified', {'digests': 'x'}), ('files', []),
                           ('files', {'\ud800': 1, 'a\0b': 2, '../../x': None}), ('disks', {}),
                           ('disks', [{'virtual_size': 1e999}]), ('vm', 7), ('snapshot', [])):
            with self.subTest(key):
                with open(path + '/backup.json', 'w', encoding='ascii') as stream:
                    json.dump(dict(manifest, **{key: value}), stream)
                done = self.vmbackup('verify', self.backups)
                self.assertIn(done.status, (0, 1, 2))
                self.assertNotIn('a bug in', done.output)
                self.assertIn('good %s: every checksum is right' % good, done.lines)
                self.assertTrue(done.lines[-1].startswith('VmBackup verify ended'), done.output)

    def test_odd_things_in_backup_dir_stop_nothing(self):
        path = self.made('vm-export=web')
        shutil.copy(path + '/web.xva', self.backups)
        for name in ('METADATA_notes', 'success.txt'):
            with open(os.path.join(self.backups, name), 'w', encoding='utf-8'):
                pass
        os.makedirs(self.backups + '/project/build')
        with open(self.backups + '/project/build/success', 'w', encoding='utf-8'):
            pass
        self.assertEqual(['good %s: every checksum is right' % path],
                         self.verify(0, self.backups)[:-1])

    def test_an_image_that_looks_compressed_is_an_image(self):
        disk = self.sim.pool.ref_of('VDI', self.disk_of('db', '0'))
        self.sim.pool.content[disk].write(0, b'\x1f\x8b\x08\0')
        self.verify(0, self.made('vdi-export=db'))

    def test_an_archive_without_the_disks_of_the_snapshot_is_no_backup(self):
        good = self.made('vm-export=web', max_backups=1)
        other = os.path.join(SAMPLES, 'no-disks.xva')
        done = self.vmbackup('password', self.config('vm-export=web', max_backups=1),
                             VMBACKUP_XE=self.xe_that('cat %s > "$1"' % other))
        self.assertEqual(2, done.status, done.output)
        self.assertIn('web.xva: it is of another snapshot: ', done.output)
        self.assertEqual(good, self.dated('web')[0])

    def test_a_backup_that_is_deleted_meanwhile_is_a_note(self):
        path = self.made('vm-export=web')
        program = os.path.join(self.directory, 'gzip')
        with open(program, 'w', encoding='utf-8') as stream:
            stream.write('#!/bin/sh\nrm -r "%s"\n' % path)
        os.chmod(program, 0o755)
        os.symlink('gzip', os.path.join(self.directory, 'pigz'))
        other = self.made('vdi-export=db')
        with open(path + '/web.xva', 'rb') as stream:
            data = gzip.compress(stream.read(), 1)
        with open(path + '/web.xva', 'wb') as stream:
            stream.write(data)
        done = self.vmbackup('verify', self.backups,
                             PATH=self.directory + ':' + os.environ['PATH'])
        self.assertEqual(0, done.status, done.output)
        self.assertEqual(['good %s: every checksum is right' % other,
                          '***NOTE - %s: it was deleted meanwhile' % path], done.lines[:2])

    def test_two_at_once_leave_a_whole_manifest(self):
        path = self.made('vm-export=web')
        children = [self.start('verify', path) for _ in range(4)]
        self.assertEqual([0] * 4, [self.finish(child).status for child in children])
        self.assertEqual('checksums', self.manifest(path)['verified']['proved'])
        self.assertEqual([], [name for name in os.listdir(path) if name.endswith('.new')])

    def test_a_pipe_in_the_place_of_the_archive_holds_nothing_up(self):
        path = self.made('vm-export=web')
        os.unlink(path + '/web.xva')
        os.mkfifo(path + '/web.xva')                   # opening it does not wait: O_NONBLOCK
        self.assertIn('web.xva: it is no file', self.verify(2, path)[0])


class CommandWords(PoolCase):
    """A command's name in the first place is a command."""

    def test_a_password_that_is_a_commands_name_comes_from_a_file(self):
        for word in ('list', 'verify', 'prune', 'status', 'protect', 'unprotect', 'check-config',
                     'test-mail', 'help', 'config', 'example'):
            with self.subTest(word):
                path = os.path.join(self.directory, 'pass-' + word)
                done = self.vmbackup(word, 'create-password-file=' + path)
                self.assertEqual(0, done.status, done.output)
                with open(path, 'rb') as stream:
                    self.assertEqual(word, VmBackup.base64.b64decode(stream.read()).decode())

    def test_a_helping_word_with_more_is_an_error(self):
        """It may be root's password in an old cron line, and nothing would be backed up."""
        for word in ('help', 'config', 'example'):
            done = self.vmbackup(word, self.config('vm-export=web'))
            self.assertEqual(2, done.status)
            self.assertIn('ERROR %s is a command (a password' % word, done.output)


class Digests(unittest.TestCase):
    """What is recorded of an archive."""

    def test_an_archives_digest_is_that_of_all_but_the_disks_data(self):
        path = os.path.join(SAMPLES, 'sample.xva.gz')
        verifier = VmBackup.Verifier(VmBackup.Console(None), VmBackup.Signals(), 60)
        with gzip.open(path) as stream:
            content, wanted, at = stream.read(), hashlib.sha256(), 0
        while at < len(content):
            size = int(content[at + 124:at + 135] or b'0', 8) if content[at] else 0
            data = re.match(rb'Ref:\d+/\d+\0', content[at:at + 100])
            wanted.update(content[at:at + 512])
            if not data:
                wanted.update(content[at + 512:at + 512 + size + -size % 512])
            at += 512 + size + -size % 512
            if not content[at]:
                break
        wanted.update(content[at:at + 512])
        self.assertEqual(wanted.hexdigest(), verifier.prove(path).digest)
