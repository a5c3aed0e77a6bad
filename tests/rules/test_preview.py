"""Preview: shows what a run would do, and changes nothing, anywhere."""

import copy
import os

from tests.runs.test_store import AS_NO_MORE_THAN_THE_OWNER
from tests.tools.support import PoolCase


class Preview(PoolCase):
    def preview(self, *lines, **keys):
        return self.vmbackup('password', self.config(*lines, **keys), 'preview')

    def state_of_disk(self):
        """Every path below the test's directory: what it is, and when it changed."""
        found = {}
        for directory, names, files in os.walk(self.directory):
            for path in (os.path.join(directory, name) for name in names + files):
                info = os.lstat(path)
                found[path] = info.st_ino, info.st_mode, info.st_size, info.st_mtime, info.st_ctime
        return found

    def state_of_pool(self):
        """Every record of the pool but the sessions and what they touch."""
        return copy.deepcopy({cls: dict(records) for cls, records in self.sim.pool.tables.items()
                              if cls not in ('session', 'task')})

    def test_it_changes_nothing(self):
        self.old_backup('db', 'backup-2019-01-01-(00:00:00)', 'db.xva')
        config = self.config('vm-export=.*', pool_db_backup=1, max_backups=1, pre_clean=True,
                             mail_to='admin@localhost', mail_smtp_port=1)
        disk, pool = self.state_of_disk(), self.state_of_pool()
        self.command(0, 'password', config, 'preview')
        self.assertEqual(disk, self.state_of_disk())
        self.assertEqual([], self.sim.calls('xe'))
        self.assertEqual(pool, self.state_of_pool())
        self.assertEqual({'session.login_with_password', 'session.logout'} | {
            cls + '.get_all_records' for cls in ('VM', 'VBD', 'VDI', 'SR')},
                         {call.name for call in self.sim.calls()})

    def test_it_needs_the_same_number_of_calls_for_any_number_of_vms(self):
        counts = []
        for count in (1, 60):
            self.pool_description = {'vms': [{'name': 'vm {n}', 'disks': [], 'count': count}]}
            self.use_pool()
            self.assertEqual(0, self.preview('vm-export=.*').status)
            counts.append(len(self.sim.calls()))
        self.assertEqual(counts[0], counts[1])
        self.assertLessEqual(counts[0], 10)

    def test_its_exit_status_and_what_it_tells_of_lines_and_vms_that_do_not_meet(self):
        success = 'SUCCESS preview of parameters '
        for status, lines, told in (
                (0, ('vm-export=db',), ['  not covered by any line (cnt)= 1',
                                        '  not covered by any line: web', success]),
                (0, ('exclude=nope.*', 'vm-export=db'), [success]),
                (1, ('vm-export=nope.*', 'vm-export=db'), [
                    success + ' - WARNINGS found (see above)']),
                (2, ('vm-export=gone', 'vm-export=db'), [
                    '***ERROR - vm not found: vm-export=gone (%s line 3)' % self.at('run.cfg')])):
            with self.subTest(lines):
                done = self.assert_ends(status, self.preview(*lines))
                self.assertLessEqual(set(told), set(done.lines))
                self.assertEqual(status < 2, 'SUCCESS preview' in done.output)

    def test_two_vms_of_one_name_are_shown(self):
        self.pool_description = {'vms': [{'name': 'twin', 'count': 2}, {'name': 'web'}]}
        self.use_pool()
        done = self.assert_ends(1, self.preview('vm-export=.*'))
        self.assertIn('***WARNING - more than one vm with the name twin: all are backed up',
                      done.lines)
        self.assertRegex(done.output, '  vm-export: twin~[0-9a-f]{8}, twin~[0-9a-f]{8}, web\n')
        uuids = self.uuid_of('twin').split(',')
        for uuid in uuids:
            self.assertIn('***NOTE - one of several VMs of its name, twin~%s: vm-export=uuid:%s '
                          '(Halted)' % (uuid[:8], uuid), done.lines)
        done = self.assert_ends(0, self.preview('vm-export=uuid:' + uuids[1]))
        self.assertIn('  vm-export: twin~' + uuids[1][:8], done.lines)

    def test_a_backup_directory_that_is_missing_or_not_writable_is_shown(self):
        done = self.assert_ends(2, self.preview('vm-export=db', backup_dir='/nonexistent'))
        self.assertIn('config backup_dir does not exist -> /nonexistent', done.output)
        self.prelude = AS_NO_MORE_THAN_THE_OWNER
        os.chmod(self.backups, 0o500)
        self.addCleanup(os.chmod, self.backups, 0o700)
        done = self.assert_ends(2, self.preview('vm-export=db'))
        self.assertIn('config backup_dir is not writable', done.output)

    def test_templates_and_snapshots_are_no_candidates(self):
        self.pool_description = {'vms': [{'name': 'web', 'snapshots': ['before']},
                                         {'name': 'web template', 'template': True}]}
        self.use_pool()
        done = self.preview('vm-export=.*')
        self.assertIn('  vm-export: web', done.lines)
        self.assertIn('  vm-export (cnt)= 1', done.lines)
