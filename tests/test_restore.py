"""Getting it back: `restore=` and `test-restore=`, on the simulated pool."""

import json
import os
import re
import shutil
import subprocess
import unittest

from tests.support import LIMIT, PoolCase

MIB = 1 << 20


class RestoreCase(PoolCase):
    """A test that restores something, which may stay."""

    leaves_things_behind = True

    def restore(self, word, *options, **environ):
        """Run `restore=`, with this test's backup_dir unless told otherwise."""
        origin = [] if any(option.startswith('from=') for option in options) or '/' in word else [
            'from=' + self.backups]
        return self.vmbackup('password', 'restore=' + word, *(origin + list(options)), **environ)

    def try_restore(self, word, *options, **environ):
        """Run `test-restore=`."""
        origin = [] if any(option.startswith('from=') for option in options) else [
            'from=' + self.backups]
        return self.vmbackup('password', 'test-restore=' + word, *(origin + list(options)),
                             **environ)

    def ok(self, done):
        """It has to have succeeded."""
        self.assertEqual(0, done.status, done.output)
        return done

    def vms(self):
        """{name: record} of the real VMs."""
        return {vm['name_label']: vm for vm in self.sim.pool.tables['VM'].values()
                if not (vm['is_a_template'] or vm['is_a_snapshot'] or vm['is_control_domain'])}

    def disks(self, name):
        """{user device: (VDI record, content)} of a VM."""
        tables, found = self.sim.pool.tables, {}
        for ref in self.vms()[name]['VBDs']:
            vbd = tables['VBD'][ref]
            if vbd['type'] == 'Disk':
                found[vbd['userdevice']] = (tables['VDI'][vbd['VDI']],
                                            self.sim.pool.content[vbd['VDI']])
        return found

    def assert_same_disks(self, one, other):
        """The disks of two VMs hold the same bytes, in the same places."""
        first, second = self.disks(one), self.disks(other)
        self.assertEqual(set(first), set(second))
        for device in first:
            self.assertTrue(first[device][1] == second[device][1], device)

    def assert_unmarked(self):
        """Nothing carries the mark of a restore, and no record of one is left."""
        for cls in ('VM', 'VDI', 'network'):
            for record in self.sim.pool.tables[cls].values():
                self.assertNotIn('vmbackup_restore', record['other_config'])
        self.assertEqual([], [name for name in os.listdir(self.backups)
                              if name.startswith('.restore-')])


class Restoring(RestoreCase):
    """`restore=` of a whole VM."""

    pool_description = {'vms': [
        {'name': 'web', 'power_state': 'Running', 'ha_restart_priority': 'restart',
         'other_config': {'auto_poweron': 'true'}, 'disks': ['3 MiB', '2 MiB']},
        {'name': 'db', 'disks': ['2 MiB', {'size': '3 MiB', 'fill': 0}], 'ran': True}]}

    def test_it(self):
        self.ok(self.back_up('vm-export=web', 'vdi-export=db'))
        done = self.ok(self.restore('web', 'preview'))
        print(done.output)
        done = self.ok(self.restore('web'))
        print(done.output)
        done = self.ok(self.restore('db', 'attach=db'))
        print(done.output)
        done = self.ok(self.restore('db'))
        print(done.output)
        done = self.ok(self.try_restore('.*'))
        print(done.output)
        print(self.vms().keys())
        self.fail()


if __name__ == '__main__':
    unittest.main()
