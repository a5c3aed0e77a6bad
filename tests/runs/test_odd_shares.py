"""Shares that cannot tell some names apart, or list them otherwise than they were made."""

import bisect
import json
import os
import shutil
import unicodedata

from tests.faults.faulting import variants
from tests.tools.oddshare import Names, OddShare
from tests.tools.support import PoolCase

KEEP = 2
DECOMPOSED = unicodedata.normalize('NFD', 'café')
UUIDS = ['%d' % digit * 8 + '-1111-4111-8111-' + '%d' % digit * 12 for digit in (1, 2)]
SIZES = 64, 128                    # KiB of their disks
ON_ANOTHER_HOST = """
import os
uname = os.uname
os.uname = lambda: os.uname_result(uname()[:1] + ('host2',) + uname()[2:])
os.environ['VMBACKUP_STATE'] += '2'
"""


class ShareCase(OddShare, PoolCase):
    names = ('Web', 'web')             # of the VMs, in the order of their uuids

    @property
    def pool_description(self):
        return {'vms': [{'name': name, 'uuid': uuid, 'disks': ['%d KiB' % size], 'ran': True}
                        for name, uuid, size in zip(self.names, UUIDS, SIZES)]}

    def night(self, *numbers, method='vm-export', **keys):
        """A run that backs up the VMs of these numbers, without a warning."""
        done = self.ends(0, *['%s=uuid:%s' % (method, UUIDS[number]) for number in numbers],
                         max_backups=KEEP, **keys)
        self.assertNotIn('WARNING', done.output)
        return done

    def numbers(self):
        """{VM's uuid: {directory of VMs: the numbers of its backups there}}, by the manifests."""
        found = {uuid: {} for uuid in UUIDS}
        for directory, _, files in os.walk(self.behind):
            if 'success' in files:
                told = json.loads(self.read(directory, 'backup.json'))
                numbers = found[told['vm']['uuid']].setdefault(directory.split('/')[-2], [])
                bisect.insort(numbers, told['number'])
        return found

    def kept(self, number, twin=False):
        """The name of a VM's directory as the share keeps it."""
        ending = '~' + UUIDS[number][:8] if twin else ''
        return Names(self.modes).kept(self.names[number] + ending)

    def assert_found(self, number, count):
        """Each command finds so many good backups of a VM by its name, in whatever directory."""
        name = self.names[number]
        config = self.config('vm-export=uuid:' + UUIDS[number], max_backups=KEEP)
        for words, told in (
                (('list', config, 'vm=' + name), 'total of 1 VMs: %d good' % count),
                (('verify', config, 'vm=' + name, 'backups=all'), 'S:%d W:0 E:0' % count),
                (('status', config), 'VMBACKUP OK - 1 of 1 VMs'),
                (('prune', config, 'vm=' + name, 'preview'), '%d kept, 0 would be' % count),
                (('password', 'restore=' + name, 'from=' + config, 'preview'),
                 'xvda of %d.0 KiB' % SIZES[number])):
            output = self.command(0, *words).output
            self.assertIn(told, output, words)
            self.assertNotIn('remains', output)


class Twins(ShareCase):
    """Two VMs whose names are one to the share."""

    def test_each_has_its_directory_and_its_backups_whichever_comes_first(self):
        self.night(0, 1)
        home = {uuid: list(found) for uuid, found in self.numbers().items()}
        for night in ((1, 0), (0,), (1,)):
            self.night(*night, parallel=4)
        self.assertEqual(
            [{self.kept(0): [2, 3]}, {self.kept(1, twin=True): [2, 3]}],
            list(self.numbers().values()))
        self.assertEqual(home, {uuid: list(found) for uuid, found in self.numbers().items()})
        for number in (0, 1):
            self.assert_found(number, KEEP)


globals().update(variants(
    Twins,
    TwinsInCaseThatHaveInodes=dict(modes=('case', 'inodes')),
    TwinsInCaseListedInLowerCase=dict(modes=('case', 'lower', 'inodes'), names=('WEB', 'web')),
    TwinsInForm=dict(modes=('form',), names=('café', DECOMPOSED)),
    TwinsInADotAtTheEnd=dict(modes=('ends',), names=('db', 'db.')),
    TwinsInABlankAtTheEnd=dict(modes=('ends', 'case', 'inodes'), names=('db ', 'DB'))))


class ClaimedTwins(ShareCase):
    def test_from_two_hosts_at_once_each_claims_a_directory_of_its_own(self):
        for night in (1, 2):
            children = []
            for number in (0, 1):
                config = self.config('vm-export=uuid:' + UUIDS[number], max_backups=KEEP)
                children.append(self.start_with(
                    ['password', shutil.copy(config, config + str(number))],
                    prelude=ON_ANOTHER_HOST * number))
            for child in children:
                self.assertNotIn('WARNING', self.assert_ends(0, self.finish(child)).output)
        directories = [list(found) for found in self.numbers().values()]
        self.assertIn(directories, [
            [[self.kept(0, twin=first)], [self.kept(1, twin=not first)]] for first in (0, 1)])

    def test_what_5_0_0_mixed_in_one_directory_stays(self):
        """By turns, the first one's first; what is not in its owner's way is never touched."""
        mixed = self.at('behind', self.kept(0))
        os.mkdir(mixed)
        for turn in range(4):
            other = self.at('elsewhere-%d' % turn)
            os.mkdir(other)
            self.night(turn % 2, backup_dir=other)
            found, = [os.path.join(other, vm) for vm in os.listdir(other) if vm[0] != '.']
            found, = [os.path.join(found, name) for name in os.listdir(found) if name[0] != '.']
            told = json.loads(self.read(found, 'backup.json'))
            self.put_file(os.path.join(found, 'backup.json'),
                          json.dumps(dict(told, number=turn + 1)))
            os.rename(found, os.path.join(mixed, 'backup-2026-01-0%d-(03:00:00)' % (turn + 1)))
        before = self.numbers()
        for night in ((0, 1), (1, 0), (0, 1)):
            note, = [line for line in self.night(*night).lines if 'left alone' in line]
            for word in (' 2 in ' + os.path.join(self.backups, self.names[1]), ' prune ',
                         ' vm=uuid:%s preview' % UUIDS[0]):
                self.assertIn(word, note)
        now = self.numbers()
        self.assertEqual([1, 3], before[UUIDS[0]][self.kept(0)])
        self.assertEqual({self.kept(0): [1, 3], self.kept(0, twin=True): [2, 3]}, now[UUIDS[0]])
        self.assertEqual({self.kept(0): [6, 7]}, now[UUIDS[1]])


globals().update(variants(
    ClaimedTwins,
    ClaimedTwinsInForm=dict(modes=('form', 'inodes'), names=(DECOMPOSED, 'café'))))


class Single(ShareCase):
    """One VM of a name that the share lists otherwise than it was made."""

    names = ('café',)
    modes = ('form',)

    def test_it_has_the_directory_of_its_name_and_every_command_finds_it(self):
        for method in ('vdi-export', 'vm-export') * 2:
            self.night(0, method=method)
        self.assertEqual({self.kept(0): [3, 4]}, self.numbers()[UUIDS[0]])
        self.assert_found(0, KEEP)


globals().update(variants(
    Single,
    SingleWithInodes=dict(modes=('form', 'inodes')),
    SingleInLowerCase=dict(modes=('case', 'lower', 'inodes'), names=('Web',)),
    SingleWithADot=dict(modes=('ends',), names=('db.',)),
    SingleWithABlank=dict(modes=('ends', 'inodes'), names=('db ',))))
