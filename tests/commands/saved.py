"""Backups that are made once for all tests of a class."""

import copy
import os
import shutil

from tests.simpool import Pool, SimPool
from tests.tools.support import PoolCase


def copied(pool):
    """Another pool in the same state, without its sessions."""
    other = Pool(pool.xapi_version, pool.password)
    other.tables = copy.deepcopy(dict(pool.tables, session={}))
    other.content = copy.deepcopy(pool.content)
    other._refs = dict(pool._refs)
    return other


class SavedCase(PoolCase):
    """A test that begins where `prepare` ended, with copies of the pool and of the files that were
    made there once for the class."""

    saved = None                       # the case that was prepared

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.saved = None
        made = cls('prepare')
        made.leaves_things_behind = True
        try:
            PoolCase.setUp(made)
            made.prepare()
        except BaseException:
            made.doCleanups()
            raise
        cls.saved = made

    @classmethod
    def tearDownClass(cls):
        cls.saved.doCleanups()
        super().tearDownClass()

    def prepare(self):
        """Make what the tests of this class begin with."""

    def setUp(self):
        super().setUp()
        for place in (self.backups, os.path.dirname(self.status_log)):
            there = place.replace(self.directory, self.saved.directory)
            if os.path.isdir(place):
                os.rmdir(place)
            if os.path.isdir(there):
                shutil.copytree(there, place, symlinks=True)

    def use_pool(self, **options):
        """Begin with the prepared pool, unless this test describes another one."""
        saved = self.saved
        if saved is None or options or self.pool_description != saved.pool_description:
            super().use_pool(**options)
        else:
            self.sim = SimPool(copied(saved.sim.pool))
            self.addCleanup(self.sim.stop)
            self.before = self.contents()
