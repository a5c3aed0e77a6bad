import glob
import gzip
import json
import os
import unittest

import VmBackup
from tests.commands.test_restore import RestoreCase
from tests.runs import test_store
from tests.runs.test_store import DAY, StoreCase


class Prune(StoreCase):
    def test_a_preview_finishes_no_deletion(self):
        self.made('db', DAY % 1, 1)
        half = self.made('db', '.deleting-' + DAY % 2)
        before = self.tree()
        done = self.vmbackup('prune', self.config('vm-export=db'), 'preview')
        self.assertEqual((0, before), (done.status, self.tree()), done.output)
        self.assertEqual(0, self.vmbackup('prune', self.config('vm-export=db')).status)
        self.assertFalse(os.path.exists(half))


class Gone(StoreCase):
    def test_what_the_pool_does_not_tell_is_not_gone(self):
        for rule, verb, method in (('vm-export=db', 'vm-uninstall', 'VM.get_by_uuid'),
                                   ('vdi-export=db', 'vdi-destroy', 'VDI.get_by_uuid')):
            with self.subTest(verb):
                self.sim.pool.faults.add(verb, 'refuse', error=['SR_BACKEND_FAILURE_1', 'no'])
                self.sim.pool.faults.add(method, 'refuse', error=['INTERNAL_ERROR', 'no'], times=0)
                self.script = self.changed_script(DISCARD_PAUSES=(0, 0), BUSY_PAUSES=())
                self.before = self.contents()
                done = self.back_up(rule)
                self.sim.pool.faults.clear()
                self.assertEqual(1, done.status, done.output)
                self.assert_clean()


class Report(StoreCase):
    def test_a_report_that_would_replace_another_file_of_the_config_is_refused(self):
        for key in ('status_log', 'hook', 'mail_smtp_password_file'):
            with self.subTest(key):
                path = os.path.join(self.directory, 'precious')
                with open(path, 'wb') as stream:
                    stream.write(b'#!/bin/sh\n')
                os.chmod(path, 0o700)
                done = self.back_up('vm-export=db', report_file=path, **{key: path})
                self.assertEqual(2, done.status, done.output)
                self.assertIn('ERROR: config report_file would replace %s -> %s (' % (key, path),
                              done.output)
                with open(path, 'rb') as stream:
                    self.assertTrue(stream.read().startswith(b'#!/bin/sh\n'))
                os.unlink(path)

    def test_nor_does_it_replace_the_file_of_the_password(self):
        path = os.path.join(self.directory, 'password file')
        self.assertEqual(0, self.vmbackup('password', 'create-password-file=' + path).status)
        for word in (path, os.path.basename(path)):
            done = self.vmbackup(word, self.config('vm-export=db', report_file=path))
            self.assertEqual(2, done.status, done.output)
            self.assertIn('ERROR: config report_file would replace the password file -> %s (' % path,
                          done.output)
            with open(path, 'rb') as stream:
                self.assertEqual(b'cGFzc3dvcmQ=', stream.read())


class Images(unittest.TestCase):
    def test_a_packed_raw_image_is_filled_up_with_zeros_to_the_size_of_the_disk(self):
        import tempfile
        with tempfile.NamedTemporaryFile(suffix='.raw.gz') as stream:
            stream.write(gzip.compress(b'x' * 3000))
            stream.flush()
            pieces = VmBackup.image_pieces(stream.name, 3000, 4 << 20)
            self.assertEqual(b'x' * 3000 + bytes((4 << 20) - 3000), b''.join(pieces))


class Records(RestoreCase):
    pool_description = {'vms': [{'name': 'web', 'disks': ['2 MiB'], 'ran': True}]}

    def half_restored(self, **fields):
        """A record with these fields of a restore that was killed; its path."""
        self.ok(self.back_up('vm-export=web'))
        self.sim.pool.faults.add('vm-import', 'down', after=1500000)
        child = self.start('password', 'restore=web', 'from=' + self.backups)
        self.wait_for(lambda: self.sim.pool.is_down)
        child.kill()
        self.finish(child)
        self.sim.restart()
        path, = glob.glob(os.path.join(self.backups, '.restore-*'))
        with open(path, encoding='utf-8') as stream:
            record = json.load(stream)
        with open(path, 'w', encoding='utf-8') as stream:
            json.dump(dict(record, **fields), stream)
        return path

    def assert_left_alone(self, path, *words):
        """The next run says so, and touches neither the record nor the VM."""
        vms = self.vms()
        done = self.back_up('vdi-export=web')
        for word in words:
            self.assertIn(word, done.output)
        self.assertTrue(os.path.exists(path))
        self.assertEqual(vms, self.vms())
        self.assertEqual(2, len(vms))

    def test_one_of_another_pool_is_not_acted_upon(self):
        path = self.half_restored(pool='another')
        self.assert_left_alone(path, '***NOTE - %s tells of a restore in another pool, another: '
                               'not touched' % path)

    def test_one_that_may_go_on_elsewhere_is_left_alone_where_nothing_can_be_locked(self):
        path = self.half_restored(host='elsewhere')
        test_store.NoLocks.forbid_locks(self)
        self.assert_left_alone(path)
