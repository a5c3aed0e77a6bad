"""The state of the simulated pool: its records, and what calls make of them.

Expected texts, counts and orders are from recordings of xapi 25.6.0, or from its source as the
modules of tests/simpool name it.
"""

import io
import json
import os
import xml.etree.ElementTree as ElementTree

from tests import DATA
from tests.simpool import Down, archive, pools
from tests.simpool.database import NEWER, NULL, TEMPLATES, column
from tests.simpool.tests.support import MIB, NOBODY, Case

TWO_DISKS = {'vms': [
    {'name': 'box', 'description': 'a "box" & <more>', 'tags': ['prod'], 'ran': True,
     'ha_restart_priority': 'restart', 'cd': 'tools.iso',
     'disks': [{'size': '3 MiB', 'name': 'root'}, {'size': 1500 * 512, 'name': 'data'}]},
    {'name': 'busy', 'power_state': 'Running', 'disks': ['2 MiB'], 'cd': None}],
    'srs': [{'name': 'Local storage', 'type': 'ext'},
            {'name': 'ISOs', 'content': 'iso', 'isos': ['tools.iso']}]}


def recorded_columns():
    with open(os.path.join(DATA, 'simpool', 'columns.json')) as file:
        return json.load(file)


class ModelCase(Case):
    description = TWO_DISKS

    def setUp(self):
        super().setUp()
        self.box, self.busy = self.vm('box'), self.vm('busy')
        self.iso = self.pool.call('VDI.get_by_name_label', 'tools.iso')[0]
        self.sr = self.pool.call('SR.get_by_name_label', 'Local storage')[0]


class Queries(ModelCase):
    def test_a_record_has_the_fields_that_were_recorded(self):
        internal = {'_ref', 'reserved', 'reserved_pci', 'recommended_guidances', 'wlb_password',
                    'boot_free_mem', 'port', 'default_vdi_visibility', 'host_pending_features'}
        recorded = recorded_columns()
        for cls, template in TEMPLATES.items():
            if recorded[cls]:
                self.assertEqual(set(recorded[cls]) - internal,
                                 {column(cls, field) for field in template
                                  if field not in NEWER.get(cls, ())}, cls)

    def test_what_there_is_not_is_refused(self):
        disk = self.disks(self.box)['0']
        for details, method, *params in (
                (['UUID_INVALID', 'VM', NOBODY], 'VM.get_by_uuid', NOBODY),
                (['HANDLE_INVALID', 'VDI', NULL], 'VDI.get_record', NULL),
                (['HANDLE_INVALID', 'VM', disk], 'VM.get_name_label', disk),
                (['FIELD_TYPE_ERROR', 'is_a_template'], 'VM.set_is_a_template', self.box, 'x'),
                (['FIELD_TYPE_ERROR', 'name_label'], 'VM.set_name_label', self.box, ['x']),
                (['FIELD_TYPE_ERROR', 'name_label'], 'VM.snapshot', self.box, 5),
                (['MESSAGE_METHOD_UNKNOWN', 'VM.set_uuid'], 'VM.set_uuid', self.box, '')):
            self.assert_refused(details, method, *params)
        self.assertEqual('INTERNAL_ERROR',
                         self.x('VM.snapshot', self.box, 'x', 7)['ErrorDescription'][0])
        self.assertEqual([], self.get('VM', self.box, 'snapshots'))

    def test_maps_sets_and_numbers_change_and_nothing_is_shared(self):
        before = dict(TEMPLATES['VM']['other_config'])
        self.value('VM.add_to_other_config', self.box, 'key', 'value')
        self.assert_refused(['MAP_DUPLICATE_KEY', 'VM', 'other_config', self.box, 'key'],
                            'VM.add_to_other_config', self.box, 'key', 'again')
        self.assertEqual('value', self.value('VM.get_other_config', self.box)['key'])
        self.assertNotIn('key', self.value('VM.get_other_config', self.busy))
        self.assertEqual(before, TEMPLATES['VM']['other_config'])
        for method, *values in (('remove_from_other_config', 'key'),
                                ('remove_from_other_config', 'key'), ('add_tags', 'new'),
                                ('remove_tags', 'prod'), ('set_ha_always_run', False)):
            self.value('VM.' + method, self.box, *values)
        record = self.pool.record('VM', self.box)
        self.assertNotIn('key', record['other_config'])
        self.assertEqual((['new'], ''), (record['tags'], record['ha_restart_priority']))

    def test_where_knows_columns_refs_and_texts_of_all_kinds(self):
        for query, found in (
                ('field "is_a_template"="false" and (field "is_control_domain" = "false")',
                 {self.box, self.busy}),
                ('field "_ref"="%s"' % self.box, {self.box}),
                ('field "tags"="(\'prod\')"', {self.box}),
                ('field "uuid"="x" or field "_ref"="{0}" and field "_ref"="{0}"'.format(self.box),
                 {self.box}),
                ('field "_ref"="%s" or field "uuid"="x" and field "uuid"="x"' % self.box, set()),
                ('field "HVM__shadow_multiplier"="1" and field "name__label"="box"', {self.box}),
                ('field "snapshot_time"="19700101T00:00:00Z" and field "VCPUs__max"="1"'
                 ' and field "ha_restart_priority"="restart"', {self.box})):
            self.assertEqual(found, set(self.value('VM.get_all_records_where', query)), query)
        vdis = list(self.disks(self.box).values())
        made = {self.pool.call('VDI.snapshot', vdi) for vdi in vdis + vdis[:1]}
        self.pool.call('VM.snapshot', self.busy, 'of another')
        self.assertEqual(made, set(self.value('VDI.get_all_records_where', ' or '.join(
            'field "snapshot_of" = "%s"' % vdi for vdi in vdis))))
        for query in ('', 'field "uuid"', 'true', 'field "uuid"="x" and', '(field "uuid"="x"',
                      'field "uuid"="x" or field', 'field "uuid"="x")', 'field "uuid" = "b'):
            answer = self.x('VM.get_all_records_where', query)['ErrorDescription']
            self.assertEqual(['INVALID_VALUE', query], answer[:2])
        self.assert_refused(['INTERNAL_ERROR', 'missing field', 'name_label', ''],
                            'VM.get_all_records_where', 'field "name_label"="box"')


class Snapshots(ModelCase):
    def snapshot(self, vm=None):
        return self.pool.record('VM', self.value('VM.snapshot', vm or self.box, 'RESTORE_box'))

    def test_a_snapshot_has_the_fields_of_its_vm_and_some_of_its_own(self):
        self.value('VM.set_blocked_operations', self.box, {'destroy': 'mine'})
        snapshot, original = self.snapshot(), self.pool.record('VM', self.box)
        expected = {'ha_always_run': False, 'ha_restart_priority': 'restart', 'tags': ['prod'],
                    'blocked_operations': {}, 'name_description': 'a "box" & <more>'}
        self.assertEqual(expected, {field: snapshot[field] for field in expected})
        self.assertIn("('name__label' 'box')", snapshot['snapshot_metadata'])
        self.assertIn("('tags' '(\\'prod\\')')", snapshot['snapshot_metadata'])
        self.assertEqual(*[[self.get('VIF', vif, 'MAC') for vif in record['VIFs']]
                           for record in (original, snapshot)])
        message, = self.value('message.get_all_records').values()
        self.assertEqual(('VM_SNAPSHOTTED', '5', original['uuid']), (
            message['name'], message['priority'], message['obj_uuid']))

    def test_disks_may_be_left_out_and_a_cd_stays_the_same_iso(self):
        originals = self.disks(self.box)
        made = self.value('VM.snapshot', self.box, 'x')
        for vm, drive in ((made, (self.iso, False)),
                          (self.value('VM.snapshot', self.busy, 'y'), (NULL, True))):
            self.assertEqual([drive], [(vbd['VDI'], vbd['empty'])
                                       for _, vbd in self.vbds(vm, 'CD')])
        left_out = self.value('VM.snapshot', self.box, 'z', [originals['1']])
        self.assertEqual(['0'], list(self.disks(left_out)))
        self.assertEqual([left_out, {made, left_out}], [
            self.get('VM', self.box, 'parent'), set(self.get('VM', self.box, 'snapshots'))])
        self.assertEqual(made, self.get('VM', left_out, 'parent'))
        self.pool.content[originals['0']].write(0, b'later')
        self.assertNotEqual(self.sums(self.box)['0'], self.sums(made)['0'])

    def test_no_room_leaves_nothing(self):
        pool = pools.load({'vms': [{'name': 'box', 'disks': ['4 MiB', '4 MiB']}],
                           'srs': [{'name': 'tight', 'type': 'lvm', 'size': '13 MiB'}]})
        before = {cls: set(pool.tables[cls]) for cls in ('VM', 'VDI', 'VBD', 'VIF', 'task')}
        with self.refusal('SR_BACKEND_FAILURE_44', '', 'There is insufficient space', ''):
            pool.call('VM.snapshot', pool.call('VM.get_by_name_label', 'box')[0], 'x')
        (failed,) = pool.tables['task']         # it stays in the table
        pool.call('task.destroy', failed)
        self.assertEqual(before, {cls: set(pool.tables[cls]) for cls in before})
        sr = pool.call('SR.get_by_name_label', 'tight')[0]
        self.assertEqual(str(8 * MIB), pool.record('SR', sr)['physical_utilisation'])


class LifeAndDeath(ModelCase):
    def test_illegal_moves_are_refused_at_both_doors(self):
        box, busy, dom0 = self.box, self.busy, self.dom0()
        snapshot = self.pool.call('VM.snapshot', box, 'x')
        self.pool.call('VM.set_is_a_template', snapshot, False)
        template, = self.pool.call('VM.get_by_name_label', 'Other install media')
        (plugged, vbd), = self.vbds(busy)
        attached, halted = vbd['VDI'], self.vbds(box)[0][0]
        vif = self.get('VM', busy, 'VIFs')[0]
        names = {ref: 'uuid=' + self.get(cls, ref) for cls, refs in (
            ('VM', (box, busy, dom0, snapshot, template)), ('VDI', (attached,)),
            ('VBD', (plugged,))) for ref in refs}
        box_is, used = 'vm-' + names[box], 'vdi-' + names[attached]
        for details, method, params, words, *line in (
                (['VM_IS_SNAPSHOT', snapshot, 'snapshot'], 'VM.snapshot', [snapshot, 'y'],
                 'Error code: VM_IS_SNAPSHOT', 'vm-snapshot', snapshot, 'new-name-label=y'),
                (['VM_IS_TEMPLATE', template, 'snapshot'], 'VM.snapshot', [template, 'y'],
                 'No matching VMs found', 'vm-snapshot', template, 'new-name-label=y'),
                (['OPERATION_NOT_ALLOWED', 'This operation is not allowed on a control domain'],
                 'VM.snapshot', [dom0, 'y'],
                 'No matching VMs found', 'vm-snapshot', dom0, 'new-name-label=y'),
                (['VM_IS_TEMPLATE', template, 'destroy'], 'VM.destroy', [template],
                 'not valid for a template VM', 'vm-destroy', template),
                (['OPERATION_NOT_ALLOWED'], 'VM.destroy', [dom0],
                 'destroy a control domain via the CLI', 'vm-destroy', dom0),
                (['VM_BAD_POWER_STATE', busy, 'halted, suspended', 'running'], 'VM.destroy', [busy],
                 'expected: halted, suspended\nactual: running', 'vm-destroy', busy),
                (['VM_BAD_POWER_STATE', busy, 'halted', 'running'], 'VM.set_is_a_template',
                 [busy, True], ''),
                (['VM_IS_SNAPSHOT', snapshot, 'start'], 'VM.start', [snapshot, False, False],
                 'Error code: VM_IS_SNAPSHOT', 'vm-start', snapshot),
                (['VM_BAD_POWER_STATE', busy, 'halted', 'running'], 'VM.start',
                 [busy, False, False], 'expected: halted\nactual: running', 'vm-start', busy),
                (['VM_BAD_POWER_STATE', box, 'running', 'halted'], 'VM.clean_shutdown', [box],
                 'expected: running\nactual: halted', 'vm-shutdown', box),
                (['VDI_IN_USE', attached, 'destroy'], 'VDI.destroy', [attached],
                 'operation: destroy', 'vdi-destroy', attached),
                (['SR_OPERATION_NOT_SUPPORTED', self.get('VDI', self.iso, 'SR')], 'VDI.snapshot',
                 [self.iso], ''),
                (['OPERATION_NOT_ALLOWED'], 'VBD.destroy', [plugged],
                 'still attached', 'vbd-destroy', plugged),
                (['DEVICE_ALREADY_ATTACHED', plugged], 'VBD.plug', [plugged], ''),
                (['VM_BAD_POWER_STATE', box, 'running', 'halted'], 'VBD.plug', [halted], ''),
                (['OPERATION_NOT_ALLOWED'], 'VIF.destroy', [vif], ''),
                (None, '', [], 'A device with the name given already exists',
                 'vbd-create', box_is, 'device=0', used),
                (None, '', [], 'Empty VBDs can only be made for type=CD',
                 'vbd-create', box_is, 'device=9'),
                (None, '', [], 'type: VDI\nuuid: ' + NOBODY, 'vdi-snapshot', 'uuid=' + NOBODY),
                (None, '', [], 'is not a VM snapshot.', 'snapshot-export-to-template',
                 'snapshot-' + names[box], 'filename=x'),
                (None, '', [], 'is not a VM snapshot.', 'snapshot-uninstall',
                 'snapshot-' + names[box]),
                (None, '', [], 'is not a VM template.', 'template-uninstall',
                 'template-' + names[box])):
            if details:
                answer = self.x(method, *params).get('ErrorDescription')
                self.assertEqual(details, answer if details[1:] else answer[:1], method)
            if line:
                self.assertIn(words, self.refused(*[names.get(word, word) for word in line]), line)
        self.value('VM.add_to_blocked_operations', box, 'snapshot', 'no')
        self.assert_refused(['OPERATION_BLOCKED', box, 'no'], 'VM.snapshot', box, 'y')
        self.value('VM.remove_from_blocked_operations', box, 'snapshot')
        self.pool.put('VM', box, VUSBs=['OpaqueRef:usb'])
        self.assert_refused(['VM_HAS_VUSBS', box], 'VM.snapshot', box, 'x')
        self.pool.settle(box)
        self.assertNotIn('snapshot', self.value('VM.get_allowed_operations', box))
        self.pool.put('VM', box, VUSBs=[])
        self.pool.settle(box)
        self.value('VDI.set_on_boot', self.disks(box)['1'], 'reset')
        self.assert_refused(['VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION'],
                            'VM.snapshot', box, 'x')

    def test_power_moves(self):
        for method, state, *more in (
                ('VM.suspend', 'Suspended'), ('VM.hard_shutdown', 'Halted'),
                ('VM.start', 'Running', False, False), ('VM.pause', 'Paused'),
                ('VM.hard_shutdown', 'Halted'), ('VM.start', 'Running', False, False),
                ('VM.clean_shutdown', 'Halted')):
            self.value(method, self.busy, *more)
            self.assertEqual(state, self.value('VM.get_power_state', self.busy))
        self.assertEqual(0, sum(vdi['type'] == 'suspend'
                                for vdi in self.pool.tables['VDI'].values()))

    def test_a_disk_that_is_attached_elsewhere_stops_a_start(self):
        disk = self.disks(self.busy)['0']
        self.value('VBD.create', {'VM': self.box, 'VDI': disk, 'userdevice': 'autodetect',
                                  'mode': 'RW', 'type': 'Disk', 'bootable': False, 'empty': False})
        self.assert_refused(['VDI_IN_USE', disk], 'VM.start', self.box, False, False)
        self.assertEqual('Halted', self.value('VM.get_power_state', self.box))

    def new_vbd(self, device, kind='Disk'):
        return {'VM': self.busy, 'userdevice': device, 'mode': 'RW', 'type': kind,
                'VDI': self.pool.call('VDI.create', {'SR': self.sr, 'virtual_size': '512'})}

    def test_disks_and_vbds_come_and_go(self):
        disk = self.value('VDI.create', {'SR': self.sr, 'virtual_size': str(5 * MIB),
                                         'name_label': 'more', 'type': 'user', 'sharable': False})
        vbd = {'VM': self.box, 'VDI': disk, 'userdevice': '7', 'mode': 'RW', 'type': 'Disk'}
        ref = self.value('VBD.create', vbd)
        self.assertEqual(disk, self.disks(self.box)['7'])
        self.assert_refused(['DEVICE_ALREADY_EXISTS', '7'], 'VBD.create', vbd)
        self.assertEqual(5 * MIB, self.pool.content[disk].virtual_size)
        self.value('VBD.destroy', ref)
        self.assert_refused(['HANDLE_INVALID', 'SR', NULL], 'VDI.create', {'virtual_size': '1'})
        (vbd, record), = self.vbds(self.busy)
        self.value('VBD.unplug', vbd)
        self.assert_refused(['DEVICE_ALREADY_DETACHED', vbd], 'VBD.unplug', vbd)
        self.value('VDI.destroy', record['VDI'])
        self.assertEqual([], self.vbds(self.busy))
        vbd = self.value('VBD.create', self.new_vbd('7'))
        self.value('VBD.set_userdevice', vbd, 'zz')
        self.assert_refused(['ILLEGAL_VBD_DEVICE', vbd, 'zz'], 'VBD.plug', vbd)

    def test_a_device_is_one_that_there_can_be_and_is_taken_once(self):
        for device, name in (('autodetect', 'xvdb'), ('xvdc', 'xvdc'), ('hde', 'xvde'),
                             ('sda1', 'sda1'), ('fda', 'fda'), ('15', 'xvdp'), ('26', 'xvdaa'),
                             ('701', 'xvdzz'), ('702', 'xvdaaa')):
            vbd = self.pool.call('VBD.create', self.new_vbd(device))
            self.pool.call('VBD.plug', vbd)
            self.assertEqual(name, self.get('VBD', vbd, 'device'), device)
        taken = ['0', 'xvda', 'hda', 'xvdb', '4']       # the first three are one device
        for code, devices in (
                ('INVALID_DEVICE', ['', 'zz', 'xvdq', 'hdz', '1.5', '1\n', '\u0661']),
                ('DEVICE_ALREADY_EXISTS', taken)):
            for device in devices:
                with self.refusal(code, device):
                    self.pool.call('VBD.create', self.new_vbd(device))
        with self.refusal('NOT_IMPLEMENTED'):
            self.pool.call('VBD.create', self.new_vbd('9', kind='Floppy'))

    def test_networks_and_vifs(self):
        network = self.value('network.create', {'name_label': 'lab', 'MTU': 9000})
        vif = self.value('VIF.create', {'VM': self.box, 'network': network, 'device': '5',
                                        'MAC': '', 'MTU': '9000'})
        self.assertRegex(self.value('VIF.get_MAC', vif), '^([0-9a-f]{2}:){5}[0-9a-f]{2}$')
        self.assertEqual([vif], self.value('network.get_VIFs', network))
        self.assert_refused(['NETWORK_CONTAINS_VIF', vif], 'network.destroy', network)
        self.value('VIF.destroy', vif)
        self.assertNotIn(vif, self.value('VM.get_VIFs', self.box))
        self.value('network.destroy', network)


class Conflicts(ModelCase):
    def test_waiting_ends_with_an_error_that_names_the_operation_and_tasks_have_names(self):
        self.pool.lock_wait = 0
        uuid = self.get('VM', self.box)
        for version, expected, count, label, described in (
                ('26.1', ['VM', self.box, 'export'], 5, 'Export of VM', uuid),
                ('1.249', ['VM.export', self.box], 3, 'Export of VM: ' + uuid, '')):
            self.pool.xapi_version = version
            with self.pool.export_vm(self.box) as stream:
                answer = self.x('VM.snapshot', self.box, 'during')['ErrorDescription']
                self.assertEqual(['OTHER_OPERATION_IN_PROGRESS'] + expected,
                                 answer[:1 + len(expected)])
                self.assertEqual(count, len(answer))
                task, = self.value('task.get_all_records').values()
                self.assertEqual((label, described, 'pending'), (
                    task['name_label'], task['name_description'], task['status']))
                words = self.xe('vm-uninstall', 'uuid=' + uuid, 'force=true')
                if version == '26.1':
                    self.assertEqual((1, 'Another operation involving the object is currently in '
                                         'progress\nclass: VM\nobject: %s (box)\noperation_type: '
                                         'export\noperation_ref: %s (Export of VM)\n' % (
                                             uuid, task['uuid'])), (words[0], words[2]))
                b''.join(stream)
            self.assertEqual({}, self.pool.tables['task'])


class Transfers(ModelCase):
    def imported(self, data, **options):
        return self.pool.import_vm(io.BytesIO(data), **options)

    def test_what_was_exported_comes_back_with_the_same_bytes(self):
        for version, compress in (('26.1', 'none'), ('26.1', 'gzip'), ('26.1', 'zstd'),
                                  ('1.160', 'none')):
            self.pool.xapi_version = version
            data = self.exported(self.pool.call('VM.snapshot', self.box, 'x'), compress=compress)
            read = archive.read_xva(io.BytesIO(data))
            self.assertEqual((compress, 'checksum' if version == '1.160' else 'xxhash'),
                             (read.compression, read.members[2].split('.')[1]))
            vm, = self.imported(data)
            self.assertEqual(self.sums(self.box), self.sums(vm))
        plain = self.exported(self.box)
        self.pool.keep_alive_chunks = (1,)
        longer = self.exported(self.box)
        self.assertGreater(len(longer), len(plain))
        self.assertEqual(self.sums(self.box), self.sums(self.imported(longer)[0]))

    def test_preserve_keeps_uuid_and_mac_but_not_beside_the_original(self):
        data, old = self.exported(self.box), dict(self.pool.record('VM', self.box))
        mac = self.get('VIF', old['VIFs'][0], 'MAC')
        networks = set(self.pool.tables['network'])
        with self.refusal('VM_TO_IMPORT_IS_NOT_NEWER_VERSION', self.box):
            self.imported(data, preserve=True)
        twin = self.value('VM.clone', self.box, 'twin')
        self.assertNotEqual(*[self.get('VM', vm, 'other_config')['mac_seed']
                              for vm in (self.box, twin)])
        self.value('VM.destroy', self.box)
        self.pool.put('VM', twin, other_config=old['other_config'])
        with self.refusal('DUPLICATE_MAC_SEED', old['other_config']['mac_seed']):
            self.imported(data, preserve=True)
        self.assertEqual(networks, set(self.pool.tables['network']))
        self.pool.put('VM', twin, other_config={})
        new, = self.imported(data, preserve=True)
        record = self.pool.record('VM', new)
        self.assertEqual((old['uuid'], mac, new), (
            record['uuid'], self.get('VIF', record['VIFs'][0], 'MAC'),
            self.pool.ref_of('VM', old['uuid'])))

    def test_force_replaces_a_halted_vm_of_the_same_uuid(self):
        data = self.exported(self.box)
        self.value('VM.start', self.box, False, False)
        with self.refusal('VM_BAD_POWER_STATE', self.box, 'Halted', 'Running'):
            self.imported(data, preserve=True, force=True)
        self.value('VM.hard_shutdown', self.box)
        new, = self.imported(data, preserve=True, force=True)
        self.assertEqual([new], self.pool.call('VM.get_by_name_label', 'box'))

    def test_a_failed_import_leaves_nothing(self):
        data = self.exported(self.box)
        rotten = bytearray(data)
        rotten[len(data) // 2] ^= 1
        isos = self.pool.call('SR.get_by_name_label', 'ISOs')[0]
        tight = pools.load({'srs': [{'name': 'tight', 'type': 'lvm', 'size': '3500 KiB'}]})
        for pool, bad, details, options in (
                (self.pool, data[:len(data) // 2], ['IMPORT_ERROR_PREMATURE_EOF'], {}),
                (self.pool, bytes(rotten), ['IMPORT_ERROR'], {}),
                (self.pool, b'', ['IMPORT_ERROR_PREMATURE_EOF'], {}),
                (self.pool, data, ['SR_OPERATION_NOT_SUPPORTED', isos], {'sr': isos}),
                (tight, data, ['SR_BACKEND_FAILURE_44'], {})):
            before = {cls: dict(rows) for cls, rows in pool.tables.items() if cls != 'SR'}
            with self.refusal(*details):
                pool.import_vm(io.BytesIO(bad), **options)
            self.assertEqual(before, {cls: rows for cls, rows in pool.tables.items()
                                      if cls != 'SR'})
        self.pool.xapi_version = '25.33'
        with self.refusal('IMPORT_INCOMPATIBLE_VERSION'):
            self.imported(data)

    def test_a_daemon_that_dies_in_an_import_leaves_what_there_is(self):
        data = self.exported(self.box)

        class Dying(io.BytesIO):
            def read(reader, *size):
                if reader.tell() > len(data) // 2:
                    self.sim.down()
                return super().read(*size)
        with self.assertRaises(Down):
            self.pool.import_vm(Dying(data))
        self.sim.restart()
        half, = set(self.pool.call('VM.get_by_name_label', 'box')) - {self.box}
        record = self.pool.record('VM', half)
        self.assertEqual({}, record['current_operations'])
        self.assertIn('destroy', record['allowed_operations'])
        self.assertNotEqual(self.sums(self.box), self.sums(half))

    def test_metadata_refers_to_disks_that_are_here(self):
        data = self.exported(self.busy, metadata=True)
        vm, = self.imported(data, metadata=True)
        self.assertEqual(self.disks(self.busy), self.disks(vm))
        self.value('VM.hard_shutdown', self.busy)
        self.value('VDI.destroy', self.disks(vm)['0'])
        with self.refusal('VDI_LOCATION_MISSING'):
            self.imported(data, metadata=True)

    def test_another_pool_gets_the_network_and_an_empty_drive(self):
        other = pools.load({'networks': ['elsewhere']})
        other.tables['network'][next(iter(other.tables['network']))]['bridge'] = 'xenbr7'
        vm, = other.import_vm(io.BytesIO(self.exported(self.box)))
        network, = [other.record('VIF', vif)['network'] for vif in other.record('VM', vm)['VIFs']]
        self.assertEqual(pools.NETWORK, other.record('network', network)['name_label'])
        drive, = [vbd for vbd in other.tables['VBD'].values()
                  if vbd['VM'] == vm and vbd['type'] == 'CD']
        self.assertEqual((NULL, True), (drive['VDI'], drive['empty']))

    def test_a_disk_in_use_fails_after_the_description(self):
        disk = self.disks(self.box)['0']
        vbd = self.value('VBD.create', {'VM': self.dom0(), 'VDI': disk, 'userdevice': '0',
                                        'mode': 'RW', 'type': 'Disk'})
        self.value('VBD.plug', vbd)
        for exporting, least in ((self.pool.export_vm(self.box), 1),
                                 (self.pool.export_vdi(disk), 0)):
            pieces = []
            with self.refusal('VDI_IN_USE', disk), exporting as stream:
                pieces.extend(stream)
            self.assertEqual(least, len(pieces))

    def image(self, disk, format):
        with self.pool.export_vdi(disk, format) as stream:
            return b''.join(stream)

    def test_disks_of_odd_sizes_go_out_and_come_in(self):
        large, small = (self.disks(self.box)[device] for device in '01')
        content = self.pool.content

        def image(vdi, format):
            if format == 'vhd':                        # xapi would never end such an export
                return b''.join(archive.vhd_stream(content[vdi]))
            return self.image(vdi, format)
        for format in ('raw', 'vhd'):
            copy = self.value('VDI.create', {'SR': self.sr, 'virtual_size': str(1500 * 512)})
            self.pool.import_vdi(copy, io.BytesIO(image(small, format)), format)
            self.assertEqual(content[small], content[copy])
            before = content[small].sha256()
            with self.refusal('VDI_IO_ERROR'):
                self.pool.import_vdi(small, io.BytesIO(image(large, format)), format)
            self.assertEqual(before, content[small].sha256())
        self.pool.import_vdi(large, io.BytesIO(image(small, 'vhd')), 'vhd')
        self.assertEqual(content[small].read(0, 1500 * 512), content[large].read(0, 1500 * 512))
        self.assertEqual(3 * MIB, content[large].virtual_size)

    def test_a_running_task_that_is_destroyed_goes_when_it_ends(self):
        task = self.pool.make_task('Export of VM')
        with self.pool.export_vm(self.box, task=task) as stream:
            next(stream)
            self.value('task.destroy', task)
            self.assertEqual('pending', self.value('task.get_status', task))
            b''.join(stream)
        self.assert_refused(['HANDLE_INVALID', 'task', task], 'task.get_status', task)

    def test_the_database_dump_has_every_table_and_value(self):
        root = ElementTree.fromstring(self.pool.dump_database())
        self.assertEqual(list(recorded_columns()),
                         [table.get('name') for table in root.iter('table')])
        rows = {row.get('_ref'): row for row in root.iter('row')}
        self.assertEqual(('a%."box"%.&%.<more>', "('prod')"), (
            rows[self.box].get('name__description'), rows[self.box].get('tags')))
        self.assertEqual("(('owner'%.''))",
                         rows[self.get('VM', self.box, 'VBDs')[-1]].get('other_config'))
