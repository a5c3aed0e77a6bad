"""Twenty nights of pools in which people rename, restore and change VMs, and nothing is lost.

Hypothesis makes up the nights, and what has failed becomes simpler until nothing can be left out:
of the nights of a failure that it reports all matter in which somebody is backed up.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
import unittest
from typing import Any, Dict, NamedTuple, Tuple

from tests.faults.faulting import every, full, phase, seed, variants
from tests.simpool import SimPool
from tests.simpool.archive import Image
from tests.tools.oddshare import OddShare
from tests.tools.support import PoolCase

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError:
    hypothesis = None

NAMES = ('Web', 'web', 'caf\xe9', 'cafe\u0301', 'db', 'db.', 'db ', 'twin')
FOREIGN = ('README', 'web/notes.txt', 'db/KEEP-golden/db.xva')
NIGHTS = 20
SIZE = 4096                     # bytes of a disk
DISKS = 3                       # of a VM, at most
VMS = 4                         # of a pool
SHRINKING = 240                 # seconds


class Event(NamedTuple):
    what: str                   # a method of World
    vm: int                     # its number, modulo how many there are
    number: int


class Night(NamedTuple):
    vms: Tuple[int, ...]        # the numbers of those that are backed up, in this order
    whole: int                  # a bit for each of them: all of it, else its boot disk
    fails: int                  # the number of an export that does; 0: none
    pre_clean: bool
    parallel: int
    pool: int
    events: Tuple[Event, ...]   # before it, in that pool


class Kept(NamedTuple):
    """A good backup."""

    directory: str              # of VMs
    pool: str                   # uuid
    vm: str                     # uuid
    night: int                  # in which it was made
    disks: frozenset            # uuids and devices
    content: Dict[str, Any]     # digests by path


class World(PoolCase):
    """Two pools and their backup_dir."""

    pool_description = {}
    leaves_things_behind = True         # each pool is looked at after each night

    def setUp(self):
        super().setUp()
        self.sims = [self.sim]
        self.kept, self.homes, self.night = {}, {}, 0

    @property
    def pool(self):
        return self.sim.pool

    def record(self, cls, ref):
        return self.pool.tables[cls][ref]

    def vms(self):
        """The references of the VMs, in the order in which they were made."""
        return [ref for ref, record in self.pool.tables['VM'].items() if not (
            record['is_a_template'] or record['is_a_snapshot'] or record['is_control_domain'])]

    def vbds(self, vm):
        """{userdevice: reference} of a VM's disks, in order."""
        return dict(sorted((self.record('VBD', ref)['userdevice'], ref)
                           for ref in self.record('VM', vm)['VBDs']))

    # What people do

    def come(self, _, number, name=''):
        if len(self.vms()) < VMS:
            vm = self.pool.add_vm(name_label=name or NAMES[number % len(NAMES)])
            for _ in range(1 + number % DISKS):
                self.plug(vm)

    def plug(self, vm, _=0):
        taken = self.vbds(vm)
        for device in [device for device in '012'[:DISKS] if device not in taken][:1]:
            self.pool.new('VBD', VM=vm, VDI=self.new_disk(device), userdevice=device, mode='RW',
                          bootable=device == '0', other_config={'owner': ''})

    def new_disk(self, name):
        sr = self.record('pool', self.pool.pool_ref)['default_SR']
        return self.pool.make_vdi(sr, SIZE, Image.sample(SIZE, name, 1), name_label=name)

    def unplug(self, vm, number):
        """But never the boot disk."""
        refs = list(self.vbds(vm).values())[1:]
        if refs:
            self.pool.drop_vdi(self.record('VBD', refs[number % len(refs)])['VDI'])

    def migrate(self, vm, number):
        refs = list(self.vbds(vm).values())
        ref = refs[number % len(refs)]
        old = self.record('VBD', ref)['VDI']
        self.pool.put('VBD', ref, VDI=self.new_disk(self.record('VDI', old)['name_label']))
        self.pool.drop_vdi(old)

    def rename(self, vm, number):
        self.pool.call('VM.set_name_label', vm, NAMES[number % len(NAMES)])

    def restore(self, vm, _):
        self.recreate(vm, len(self.vbds(vm)) - 1)

    def recreate(self, vm, number):
        name = self.record('VM', vm)['name_label']
        self.remove(vm)
        self.come(vm, number, name)

    def remove(self, vm, _=0):
        for ref in self.vbds(vm).values():
            self.pool.drop_vdi(self.record('VBD', ref)['VDI'])
        self.pool.vm_destroy(vm)

    # What a night does

    def live(self, keep, names, nights):
        self.keep = keep
        for name in FOREIGN:
            os.makedirs(os.path.dirname(os.path.join(self.backups, name)), exist_ok=True)
            self.put_file(os.path.join(self.backups, name), name)
        for name in names:
            self.come(None, 1, name)
        for night in nights:
            if night.vms:
                self.night += 1
                self.spend(night)

    def spend(self, night):
        if night.pool and not self.sims[1:]:
            self.sims.append(SimPool({}))
            self.addCleanup(self.sims[1].stop)
        self.sim = self.sims[night.pool]
        for event in night.events:
            vms = self.vms()
            if vms or event.what == 'come':
                getattr(self, event.what)(vms and vms[event.vm % len(vms)], event.number)
        if not self.vms():
            self.come(None, 1)
        vms = self.vms()
        chosen = list(dict.fromkeys(vms[number % len(vms)] for number in night.vms))
        for verb in ('vm-export', 'vdi-export') if night.fails else ():
            self.fault(verb, 'refuse', nth=night.fails, error=['VDI_IO_ERROR', 'x'])
        done = self.back_up(*['%s-export=uuid:%s' % (
            'vm' if night.whole >> number & 1 else 'vdi', self.record('VM', vm)['uuid'])
            for number, vm in enumerate(chosen)], max_backups=self.keep, verify='no',
            pre_clean=night.pre_clean, parallel=night.parallel)
        self.pool.faults.clear()
        self.check(done, chosen, night)

    def good(self):
        """{uuid of its snapshot: Kept} of all good backups."""
        found = {}
        for directory in sorted(os.listdir(self.backups)):
            place = os.path.join(self.backups, directory)
            for name in os.listdir(place) if os.path.isdir(place) else ():
                path = os.path.join(place, name)
                if os.path.exists(os.path.join(path, 'success')):
                    told = json.loads(self.read(path, 'backup.json'))
                    old = self.kept.get(told['snapshot'])
                    found[told['snapshot']] = Kept(
                        directory, told['pool']['uuid'], told['vm']['uuid'],
                        old.night if old else self.night, frozenset(
                            disk[key] for disk in told['disks'] for key in ('uuid', 'device')),
                        self.digests(path))
        return found

    def failed_in(self, uuid):
        """[the directory in which a VM's backup has failed last]."""
        found = [directory for directory, _, names in os.walk(self.backups)
                 if 'vm.cfg' in names and 'success' not in names
                 and 'orig_uuid=%s\n' % uuid in self.read(directory, 'vm.cfg')]
        return [path.split('/')[-2] for path in sorted(found, key=os.path.getmtime)[-1:]]

    def digests(self, place):
        paths = [os.path.join(directory, name)
                 for directory, _, names in os.walk(place) for name in names]
        return {path: hashlib.sha1(self.read_bytes(path)).hexdigest() for path in paths}

    # What holds afterwards

    def check(self, done, chosen, night):
        before, self.kept = self.kept, self.good()
        both = dict(before, **self.kept)
        for key in set(before) & set(self.kept):
            self.assertEqual(before[key], self.kept[key], 'it has changed: ' + done.output)
        pool = self.record('pool', self.pool.pool_ref)['uuid']
        living = {self.record('VM', vm)['uuid'] for vm in self.vms()}
        may_go, failed = set(), []
        for vm in chosen:
            name, uuid = (self.record('VM', vm)[key] for key in ('name_label', 'uuid'))
            new = [key for key in set(self.kept) - set(before) if self.kept[key].vm == uuid]
            failed += [] if new else [name]
            home, = [self.kept[key].directory for key in new] or self.failed_in(uuid) or ['']
            self.assertEqual(home, self.homes.setdefault((uuid, name), home) if home else '',
                             'it has moved: ' + done.output)
            ours = sorted((key for key, each in both.items() if each.directory == home and
                           each.pool == pool and (each.vm == uuid or each.vm not in living)),
                          key=lambda key: both[key].night)
            may_go.update(ours if new or night.pre_clean else ())
            self.check_history(vm, bool(new), ours, both, done)
        self.assertEqual(set(), set(before) - set(self.kept) - may_go,
                         "backups of others are gone: " + done.output)
        for name in FOREIGN:
            self.assertEqual(name, self.read(self.backups, name))
        self.assertLessEqual(len(failed), 2 * bool(night.fails), done.output)
        self.assertIn(done.status, [2] if failed else [0, 1] if night.fails else [0], done.output)
        self.assertEqual([], [record['uuid'] for cls in ('VM', 'VDI') for record in
                              self.pool.tables[cls].values() if record['is_a_snapshot']])

    def check_history(self, vm, is_new, ours, both, done):
        """Of a VM's backups in a directory, and those of VMs that are gone, in their order: which
        have to be there yet, and how many may."""
        there = [key for key in ours if key in self.kept]
        words = '%s has %s of %s: %s' % (self.record('VM', vm)['name_label'], there, ours,
                                         done.output)
        least = self.keep if is_new else 1
        self.assertEqual(ours[-least:], there[-least:], words)
        disks = [{'xvd' + 'abc'[int(device)], self.record('VDI', self.record('VBD', ref)['VDI'])[
            'uuid']} for device, ref in self.vbds(vm).items()]
        for disk in disks:
            holders = [key for key in ours if disk & both[key].disks]
            self.assertLessEqual(set(holders[-1:]), set(there), 'the last of a disk: ' + words)
        if is_new:
            self.assertLessEqual(len(there), self.keep + len(disks), words)


class FoldingWorld(OddShare, World):
    modes = ('case', 'form', 'ends', 'inodes')


def lives():
    """Strategies for what World.live takes."""
    event = st.builds(Event, st.sampled_from(('rename', 'restore', 'migrate', 'plug', 'unplug',
                                              'recreate', 'come', 'remove')),
                      st.integers(0, VMS - 1), st.integers(0, len(NAMES) - 1))
    night = st.builds(
        Night, st.sampled_from([vms for number in range(3)
                                for vms in itertools.permutations(range(VMS), number)]),
        st.sampled_from((0, 0, 1, 2, 3)), st.sampled_from((0, 0, 1, 2)), st.booleans(),
        st.sampled_from((1, 4)), st.sampled_from((0, 0, 0, 1)),
        st.lists(event, max_size=1).map(tuple))
    return (st.integers(1, 3), st.lists(st.sampled_from(NAMES), min_size=1, max_size=VMS),
            st.lists(night, min_size=NIGHTS, max_size=NIGHTS))


@unittest.skipUnless(hypothesis, 'no nights were made up: pip install hypothesis')
class Nights(unittest.TestCase):
    """Few of them, always the same, in the usual tests; more with more faults."""

    world = World
    examples = 4, 60            # of the usual tests, of all

    def test_twenty_nights_lose_nothing(self):
        home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, home)
        hypothesis.configuration.set_hypothesis_home_dir(home)
        with self.living():     # or it is skipped
            pass
        known, ends, last = {}, [], []      # errors by what was lived; the end of shrinking

        def live(keep, names, nights):
            life = keep, names, nights
            last[:] = life
            if repr(life) in known:
                raise known[repr(life)]
            if ends and time.monotonic() > ends[0]:
                return
            try:
                with self.living() as world:
                    world.live(*life)
            except Exception as error:
                known[repr(life)] = error
                ends.append(time.monotonic() + SHRINKING)
                raise
        count = self.examples[1] // every() if full() else self.examples[0]
        if sys.version_info < (3, 7):       # Hypothesis of those days begins with much idleness
            count *= 2
        live = hypothesis.given(*lives())(live)
        live = hypothesis.seed('%s %s' % (seed(), phase()))(live)
        try:
            hypothesis.settings(max_examples=count, deadline=None, database=None,
                                suppress_health_check=list(hypothesis.HealthCheck))(live)()
        except Exception:
            print('keep=%d names=%s' % tuple(last[:2]), *[
                night for night in last[2] if night.vms], sep='\n')
            raise

    @contextlib.contextmanager
    def living(self):
        world = self.world('live')
        try:
            world.setUp()
            yield world
        finally:
            world.doCleanups()


globals().update(variants(Nights, NightsOnAShareThatFoldsNames=dict(
    world=FoldingWorld, examples=(2, 20))))
