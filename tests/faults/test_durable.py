"""What a power failure can leave of a backup."""

import os
import unittest

from tests.faults.faulting import MARKERS, LaunchedCase, manifest_of, number_of


class BeforeTheMarker(LaunchedCase):
    """A marker says that all of a backup is on stable storage."""

    def test_every_file_of_a_backup_is_forced_to_the_disk_after_it_is_made_and_before_that(self):
        operations = self.operations()
        new = [os.path.relpath(path, self.backups) for paths in self.marked().values()
               for path in paths if (path, number_of(path)) not in self.backups_before]
        self.assertEqual(2, len(new))
        for directory in new:
            files = manifest_of(os.path.join(self.backups, directory))['files']
            self.assertGreater(len(files), 2)
            marker = min(each['number'] for each in operations
                         if os.path.join(directory, MARKERS[0]) in each['new'])
            for name in files:
                with self.subTest(name):
                    path = os.path.join(directory, name)
                    made = [each['number'] for each in operations if path in each['new']]
                    forced = [each['number'] for each in operations if path in each['synced']]
                    self.assertTrue([number for number in forced
                                     if max(made, default=0) < number < marker], (made, forced))
