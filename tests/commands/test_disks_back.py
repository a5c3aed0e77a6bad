"""Disks of a backup that come back by themselves."""

import base64

from tests.commands.test_restore import RestoreCase, resized


class DiskCase(RestoreCase):
    pool_description = {'vms': [
        {'name': 'web', 'disks': ['3 MiB', '2 MiB', '70000'], 'ran': True}]}

    def prepare(self):
        self.ends(0, 'vm-export=web')

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
        for words, text in ((('disk=xvdx',),
                             'disk=xvdx is not one disk of the backup (there are: xvda, '),
                            (('disk=xvda', 'start'), 'start= does not apply to /'),
                            (('attach=web',), 'attach= does not apply to /')):
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
