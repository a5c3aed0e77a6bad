"""Faults: the storage changes, cuts or lengthens what xe has written, and says nothing of it."""

import os
import random

from tests.faults.faulting import FaultCase, sample, seed

# What becomes of an exported file, $1. Bytes that an export may hold already change nothing.
CHANGES = {
    'other bytes': 'printf \'\\2\\1\\2\' | dd of="$1" bs=1 seek=%(place)d conv=notrunc status=none',
    'a cut': 'truncate -s %(place)d "$1"',
    'more bytes': 'head -c %(count)d /dev/urandom >> "$1"',
    'more zeros': 'head -c %(count)d /dev/zero >> "$1"',
    'an empty file': ': > "$1"',
    'a block that is gone': 'dd if="$1" of="$1.x" bs=512 count=%(block)d status=none && '
                            'dd if="$1" of="$1.x" bs=512 skip=%(after)d seek=%(block)d '
                            'status=none && mv "$1.x" "$1"'}
IMAGES = ('other bytes',)      # a raw image has nothing by which these are noticed in the run


class DamagedExports(FaultCase):
    """Such a backup has failed, an older one stays, and the other VMs are backed up."""

    kind = 'storage damages an export'

    def setUp(self):
        super().setUp()
        self.prepare()
        self.remember()

    def test_no_damaged_export_becomes_a_backup(self):
        self.save()
        for number in sample(range(60), 3, 'damage'):
            chance = random.Random('damage %d:%s' % (number, seed()))
            names = [name for name in sorted(CHANGES) if number % 2 or name not in IMAGES]
            vm = 'web' if number % 2 else 'db'
            name = names[number // 2 % len(names)]
            place = chance.randrange(100000, 1 << 20)
            numbers = {'place': place, 'count': chance.randrange(1, 5000), 'block': place // 512,
                       'after': place // 512 + 1}
            with self.subTest((vm, name, numbers)):
                self.rewind()
                self.injected('%s, %s: %s' % (vm, name, numbers))
                done = self.backup(VMBACKUP_XE=self.xe_that(
                    'case $1 in */%s.*) %s;; esac' % (vm, CHANGES[name] % numbers)))
                self.assertEqual(2, done.status, done.output)
                self.check(done, True, hit={vm})
                self.assertNotIn(vm, self.renewed(self.good()))
                self.assertFalse([line for line in self.status_lines()[self.told_before:]
                                  if line.endswith('SUCCESS ' + vm) or 'WARNING ' + vm in line])

    def test_the_next_run_mends_it(self):
        self.injected('web is cut, and then not')
        self.backup(VMBACKUP_XE=self.xe_that('truncate -s 700000 "$1"'))
        done = self.backup()
        self.assertIn(done.status, (0, 1), done.output)
        self.check(done, True, hit=())
        self.assertEqual(set(self.configured()), self.renewed(self.good()))
        self.assertFalse(any(os.path.exists(os.path.join(path, 'web.xva.x'))
                             for path in self.marked()['web']))
