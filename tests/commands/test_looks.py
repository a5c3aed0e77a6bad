"""Disks of a backup that come back by themselves, onto a VM that runs, too, and off it again."""

import base64
import glob
import json
import os

from tests.commands.test_restore import RestoreCase, resized


class DiskCase(RestoreCase):
    pool_description = {'vms': [
        {'name': 'web', 'disks': ['3 MiB', '2 MiB', '70000'], 'ran': True},
        {'name': 'desk', 'disks': ['1 MiB'], 'power_state': 'Running', 'domain_type': 'pv'},
        {'name': 'hvm', 'disks': ['1 MiB'], 'power_state': 'Running'}]}

    def prepare(self):
        self.ends(0, 'vm-export=web')
        self.ends(0, 'vdi-export=desk')

    def asked(self, status, *words):
        """The command, logged in."""
        secret = self.put_file('secret', base64.b64encode(b'password'))
        return self.command(status, *words, 'from=' + self.config(), 'password-file=' + secret)

    def back(self, status, *words):
        return self.asked(status, 'restore', *words)

    def new_disk(self, work):
        """The record and the content of the disk that came with some work."""
        before = set(self.sim.pool.tables['VDI'])
        work()
        new, = set(self.sim.pool.tables['VDI']) - before
        self.assert_unmarked()
        return self.sim.pool.tables['VDI'][new], self.sim.pool.content[new]

    def disk(self, vm, number):
        return self.drives(vm)[number][4]

    def look(self, *words):
        """A disk of web, on desk as a look: its record."""
        vdi, content = self.new_disk(lambda: self.back(0, 'web', 'disk=xvdb', 'attach=desk',
                                                       *words))
        self.assertEqual(self.disk('web', '1'), content)
        return vdi

    def records(self):
        return glob.glob(os.path.join(self.backups, '.look-*.json'))

    def detach(self, status, *words):
        return self.asked(status, 'detach', *words).lines


class FromAnArchive(DiskCase):
    def test_each_disk_of_a_vm_export_by_each_word_for_it(self):
        for word, number in (('xvda', '0'), ('1', '1'), ('web 2', '2'),
                             (self.disk_of('web', '1'), '1')):
            with self.subTest(word):
                vdi, content = self.new_disk(lambda: self.back(0, 'web', 'disk=' + word))
                disk = self.disk('web', number)
                self.assertEqual(disk, resized(content, disk.virtual_size))
                self.assertRegex(vdi['name_label'], r'web \d-restored-')

    def test_all_of_them_and_what_is_wrong(self):
        before = len(self.sim.pool.content)
        self.back(0, 'web', 'disk=all')
        self.assertEqual(before + 3, len(self.sim.pool.content))
        for words, text in ((('disk=xvdx',), 'no disk xvdx in the backup (there are: xvda, '),
                            (('disk=all', 'name=x'), '3 disks cannot all get one name'),
                            (('disk=xvda', 'start'), 'start= does not apply to /'),
                            (('attach=desk',), 'attach= does not apply to /'),
                            (('disk=0', 'mode=RW'), 'mode= goes with attach='),
                            (('disk=0', 'attach=desk', 'mode=rx'), 'invalid value: mode=rx')):
            with self.subTest(words):
                self.assertIn('ERROR ' + text, self.back(2, 'web', *words).lines[-1])
        self.assertEqual(before + 3, len(self.sim.pool.content))

    def test_damage_of_its_data_takes_the_disk_back(self):
        path = self.newest('web', 'web.xva')
        with open(path, 'r+b') as stream:
            data = stream.read()
            at = data.index(b'/00000001') + 3000
            stream.seek(at)
            stream.write(bytes([data[at] ^ 1]))
        before = len(self.sim.pool.content)
        done = self.back(2, path, 'disk=all')
        self.assertIn('the checksum is', done.output)
        self.assertIn('taken back: disk', done.output)
        whole = done.output.count('restored: the disk')
        self.assertEqual(before + whole, len(self.sim.pool.content))


class OfSeveralImages(DiskCase):
    def prepare(self):
        self.ends(0, 'vdi_disks=all', 'vdi_compress=zstd', 'vdi-export=web')

    def test_all_images_come_back_or_the_one_that_is_meant(self):
        before = set(self.sim.pool.content)
        self.back(0, 'web')
        sizes = {self.sim.pool.content[ref].virtual_size
                 for ref in set(self.sim.pool.content) - before}
        self.assertEqual(3, len(sizes))
        _, content = self.new_disk(lambda: self.back(0, 'web', 'disk=xvdb'))
        self.assertEqual(self.disk('web', '1'), content)


class Looks(DiskCase):
    def test_a_running_vm_reads_it_until_it_is_detached(self):
        before = self.contents()
        vdi = self.look()
        self.assertEqual(('Disk', 'RO'), self.drives('desk')['1'][:2])
        told = json.loads(self.read(*self.records()))
        self.assertEqual([vdi['uuid'], 'desk', 'RO'],
                         [told[key] for key in ('disk', 'vm_name', 'mode')])
        words = 'attached: RO on the VM desk (%s) since ' % self.uuid_of('desk')
        self.assertIn(words, self.command(0, 'list', self.config('vm-export=web')).output)
        self.assertIn(words, self.command(0, 'status', self.config('vm-export=web')).output)
        self.ends(0, 'vm-export=web')                  # a night leaves it where it is
        self.assertEqual(('Disk', 'RO'), self.drives('desk')['1'][:2])
        self.assertIn('destroyed', self.detach(0, vdi['uuid'])[-1])
        self.assertEqual(before, self.contents())
        self.assertEqual([], self.records())

    def test_what_was_to_be_written_or_has_a_snapshot_or_another_user_stays(self):
        for what, words in (('written', ['mode=RW']), ('snapshot', []), ('another VM', [])):
            with self.subTest(what):
                vdi = self.look(*words)
                if what == 'snapshot':
                    self.xe('vdi-snapshot', 'uuid=' + vdi['uuid'])
                if what == 'another VM':
                    self.xe('vbd-create', 'vm-uuid=' + self.uuid_of('web'), 'device=7',
                            'vdi-uuid=' + vdi['uuid'], 'mode=RO', 'type=Disk')
                line = self.detach(0, vdi['name_label'])[-1]
                self.assertIn('and kept, as ', line)
                self.assertIn(what, line)
                self.assertFalse(any(vbd['currently_attached'] for vbd in self.sim.pool.tables[
                    'VBD'].values() if vbd['VDI'] == self.sim.pool.ref_of('VDI', vdi['uuid'])))
                self.assertEqual([], self.records())
                self.assertIn('no disk', self.detach(2, vdi['uuid'])[-1])
                self.xe('vdi-param-set', 'uuid=' + vdi['uuid'], 'name-label=done ' + what)

    def test_what_is_no_look_is_never_detached(self):
        for word in self.disk_of('desk', '0'), self.disk_of('web', '0'), 'desk 0', 'nothing':
            self.assertIn('ERROR no disk %s that restore has attached (there are: none)' % word,
                          self.detach(2, word)[-1])
        vdi = self.look()
        self.assertIn(vdi['uuid'], self.detach(2, 'nothing')[-1])

    def test_the_original_is_not_joined_by_a_copy_that_can_be_written(self):
        for words in ('desk', 'attach=desk', 'mode=RW'), ('web', 'disk=xvdb', 'attach=web'):
            self.assertIn('has the original of this disk', self.back(2, *words).lines[-1])
        self.back(0, 'desk', 'attach=desk')
        self.back(0, 'web', 'disk=xvdb', 'attach=web', 'force=yes')
        self.assertEqual(('Disk', 'RW'), self.drives('web')['3'][:2])

    def test_a_vm_on_hardware_virtualisation_takes_no_disk_to_be_read(self):
        self.assertIn('takes no disk that is read-only (mode=rw, ',
                      self.back(2, 'web', 'disk=xvdb', 'attach=hvm').lines[-1])
        vdi, _ = self.new_disk(lambda: self.back(0, 'web', 'disk=1', 'attach=hvm', 'mode=rw'))
        self.assertEqual(('Disk', 'RW'), self.drives('hvm')['1'][:2])
        self.assertIn('and kept, as it was attached to be written',
                      self.detach(0, vdi['uuid'])[-1])

    def test_a_plug_that_fails_takes_all_back(self):
        before = self.contents()
        self.fault('vbd-plug', 'refuse', error=['INTERNAL_ERROR', 'x'])
        self.back(2, 'web', 'disk=xvdb', 'attach=desk')
        self.assertEqual([before, []], [self.contents(), self.records()])

    def test_the_record_of_one_that_is_gone_goes_with_the_next_run(self):
        vdi = self.look()
        vbd, = [vbd['uuid'] for vbd in self.sim.pool.tables['VBD'].values()
                if vbd['VDI'] == self.sim.pool.ref_of('VDI', vdi['uuid'])]
        for words in ('vbd-unplug', 'uuid=' + vbd), ('vbd-destroy', 'uuid=' + vbd), (
                'vdi-destroy', 'uuid=' + vdi['uuid']):
            self.xe(*words)
        self.ends(0, 'vm-export=web')
        self.assertEqual([], self.records())
