"""Disks of a backup on a VM that runs, and off it again."""

import glob
import os

from tests.commands.test_disks_back import DiskCase as Saved


class LookCase(Saved):
    pool_description = {'vms': [
        {'name': 'web', 'disks': ['3 MiB', '2 MiB', '70000'], 'ran': True},
        {'name': 'desk', 'disks': ['1 MiB'], 'power_state': 'Running', 'domain_type': 'pv'},
        {'name': 'hvm', 'disks': ['1 MiB'], 'power_state': 'Running'}]}

    def prepare(self):
        self.ends(0, 'vm-export=web')
        self.ends(0, 'vdi-export=desk')

    def look(self, *words):
        """A disk of web, on desk as a look: its record."""
        vdi, content = self.new_disk(lambda: self.back(0, 'web', 'disk=xvdb', 'attach=desk',
                                                       *words))
        self.assertEqual(self.disk('web', '1'), content)
        return vdi

    def records(self):
        return glob.glob(os.path.join(self.backups, '.look-*'))

    def detach(self, status, uuid):
        return self.asked(status, 'detach', uuid).lines[-1]

    def is_plugged(self, vdi):
        ref = self.sim.pool.ref_of('VDI', vdi['uuid'])
        return any(vbd['currently_attached'] for vbd in self.sim.pool.tables['VBD'].values()
                   if vbd['VDI'] == ref)


class Looks(LookCase):
    def test_a_running_vm_reads_it_until_it_is_detached(self):
        before = self.contents()
        vdi = self.look()
        self.assertEqual(('Disk', 'RO'), self.drives('desk')['1'][:2])
        words = 'attached: %s (%s), RO, to the VM desk since ' % (vdi['name_label'], vdi['uuid'])
        for command in 'list', 'status':
            self.assertIn(words, self.command(0, command, self.config('vm-export=web')).output)
        self.ends(0, 'vm-export=web')                  # a night leaves it where it is
        self.assertEqual(('Disk', 'RO'), self.drives('desk')['1'][:2])
        self.assertIn(', and destroyed', self.detach(0, vdi['uuid']))
        self.assertEqual([before, []], [self.contents(), self.records()])

    def test_what_was_to_be_written_or_has_a_snapshot_a_copy_or_another_user_stays(self):
        def snapshot(vdi):
            self.xe('vdi-snapshot', 'uuid=' + vdi['uuid'])

        def clone(vdi):
            pool = self.sim.pool
            pool._clone_vdi(pool.ref_of('VDI', vdi['uuid']))

        def other_vm(vdi):
            self.xe('vbd-create', 'vm-uuid=' + self.uuid_of('web'), 'device=7',
                    'vdi-uuid=' + vdi['uuid'], 'mode=RO', 'type=Disk')

        for what, words in (('written', ['mode=RW']), (snapshot, []), (clone, []), (other_vm, [])):
            with self.subTest(what):
                vdi = self.look(*words)
                self.assertTrue(self.is_plugged(vdi))
                if callable(what):
                    what(vdi)
                self.assertIn(', and kept, as it ', self.detach(0, vdi['uuid']))
                self.assertFalse(self.is_plugged(vdi))
                self.assertEqual([], self.records())

    def test_what_is_no_look_is_never_detached(self):
        vdi = self.look()
        for word in self.disk_of('desk', '0'), self.disk_of('web', '0'), vdi['name_label'], 'no':
            self.assertIn('ERROR no attached disk has this uuid: ' + word, self.detach(2, word))
        self.xe('vdi-snapshot', 'uuid=' + vdi['uuid'])
        copy, = [each['uuid'] for each in self.sim.pool.tables['VDI'].values()
                 if each['is_a_snapshot'] and each['name_label'] == vdi['name_label']]
        self.assertIn('ERROR no attached disk', self.detach(2, copy))
        self.assertTrue(self.is_plugged(vdi))

    def test_the_original_is_not_joined_by_a_copy_that_can_be_written(self):
        for words in ('desk', 'attach=desk', 'mode=RW'), ('web', 'disk=xvdb', 'attach=web'):
            self.assertIn('has the original of this disk', self.back(2, *words).lines[-1])
        self.back(0, 'desk', 'attach=desk')
        self.back(0, 'web', 'disk=xvdb', 'attach=web', 'force=yes')
        self.assertEqual(('Disk', 'RW'), self.drives('web')['3'][:2])
        self.assertEqual(1, len(self.records()))       # that VM is halted

    def test_a_vm_on_hardware_virtualisation_takes_no_disk_to_be_read(self):
        for words in ('web', 'disk=1', 'attach=hvm'), ('desk', 'attach=web', 'mode=ro'):
            self.assertIn('takes no read-only disk (say mode=rw, ',
                          self.back(2, *words).lines[-1])
        vdi, _ = self.new_disk(lambda: self.back(0, 'web', 'disk=1', 'attach=hvm', 'mode=rw'))
        self.assertEqual(('Disk', 'RW'), self.drives('hvm')['1'][:2])
        self.assertIn('and kept, as it could be written', self.detach(0, vdi['uuid']))

    def test_a_plug_that_fails_takes_all_back(self):
        before = self.contents()
        self.fault('vbd-plug', 'refuse', error=['INTERNAL_ERROR', 'x'])
        self.back(2, 'web', 'disk=xvdb', 'attach=desk')
        self.assertEqual([before, []], [self.contents(), self.records()])

    def test_an_odd_record_hides_no_backup(self):
        path = self.backups + '/.look-x.txt'
        os.symlink('/etc/hostname', path)
        for command in 'list', 'status':
            output = self.command(0 if command == 'list' else 1, command,
                                  self.config('vm-export=web')).output
            self.assertIn('cannot tell', output)
            self.assertIn('1 good' if command == 'list' else '1 of 1 VMs have a good', output)
        os.unlink(path)
        self.put_file(path, b'attached: \x1b[2J\xff')
        self.assertNotIn('\x1b', self.command(0, 'list', self.config('vm-export=web')).output)

    def test_words_that_only_attach_has(self):
        for words, text in ((('web', 'mode=rw'), 'mode= does not apply to /'),
                            (('web', 'disk=0', 'mode=rw'), 'mode= does not apply to /'),
                            (('web', 'disk=0', 'force'), 'force= does not apply to /'),
                            (('web', 'disk=0', 'attach=desk', 'mode=rx'),
                             'invalid value: mode=rx')):
            self.assertIn('ERROR ' + text, self.back(2, *words).lines[-1])
