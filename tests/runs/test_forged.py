"""Forged: what somebody writes on the share, who may do nothing else, destroys nothing in the pool
and takes no memory or time without end."""

import gzip
import json
import os
import shutil
import unittest
import unittest.mock
import xml.parsers.expat

import VmBackup
from tests.tools.support import PoolCase


class Forged(PoolCase):
    """An administrator's snapshots, and records that call them ours."""

    pool_description = {'vms': [{'name': 'web', 'disks': ['64 KiB', '64 KiB'], 'ran': True},
                                {'name': 'db', 'disks': ['64 KiB'], 'ran': True}]}

    def setUp(self):
        super().setUp()
        self.script = self.changed_script(SNAPSHOT_PAUSES=(), DISCARD_PAUSES=(), BUSY_PAUSES=())
        self.failed = self.old_backup('web', 'backup-2019-01-01-(00:00:00)')
        self.file = os.path.join(self.failed, 'snapshot.json')
        ref = self.sim.pool.ref_of
        self.vm = self.uuid_of('web')
        self.disks = [self.disk_of('web', device) for device in '01']
        self.refs = tuple(ref('VDI', disk) for disk in self.disks)
        self.of_vm = dict(kind='VM', of=self.vm, ref=ref('VM', self.vm), label='RESTORE_web',
                          sources=self.refs)

    def vm_snapshot(self, label='RESTORE_web'):
        return self.xe('vm-snapshot', 'uuid=' + self.vm, 'new-name-label=' + label).strip()

    def disk_snapshot(self):
        return self.xe('vdi-snapshot', 'uuid=' + self.disks[0]).strip()

    def leave(self, known=False, **fields):
        self.record(self.failed, self.disks[0], known, **fields)

    def assert_spoken_of(self, *uuids, **keys):
        """Two runs touch neither the pool nor the record, and tell what is to be done."""
        self.before = self.contents()
        for _ in range(2):
            done = self.ends(1, 'vm-export=db', 'vdi-export=web', **keys)
            for uuid in uuids:
                self.assertRegex(done.output, 'snapshot %s, called .*: not touched .look at it: xe '
                                 '.*-param-list uuid=%s; to remove it: xe .* uuid=%s; to keep it: '
                                 % (uuid, uuid, uuid))
            self.assert_told('vdi-export,end,SUCCESS web,elapse:0 size:0G')
            self.assert_clean()
            self.assertTrue(os.path.exists(self.file))

    def test_a_record_that_only_the_share_has_destroys_nothing_but_what_is_marked(self):
        wide = dict(since='20000101T00:00:00Z', until='99990101T00:00:00Z',
                    latest='99990101T00:00:00Z')
        for what in ('a VM snapshot by its uuid', 'a VM snapshot by its name',
                     'a disk snapshot by its uuid', 'a disk snapshot by its time',
                     'a disk snapshot as what came with a VM snapshot',
                     'a disk snapshot beside a VM snapshot by its time',
                     'one with the mark of another'):
            with self.subTest(what):
                self.setUp()
                if 'disk' in what:
                    uuid = self.disk_snapshot()
                    name = self.sim.pool.tables['VDI'][self.refs[0]]['name_label']
                    fields = dict(wide, names=(name,))
                    if 'beside' in what:
                        fields.update(self.of_vm, names=(name, ''))
                    elif 'came with' in what:
                        fields.update(self.of_vm, uuid='0' * 8 + self.vm[8:],
                                      disks=(self.sim.pool.ref_of('VDI', uuid),))
                else:
                    uuid = self.vm_snapshot()
                    fields = dict(self.of_vm, **wide)
                if 'uuid' in what:
                    fields['uuid'] = uuid
                if 'another' in what:                  # as a copy of a snapshot of ours has it
                    fields['uuid'] = uuid
                    self.xe('snapshot-param-set', 'uuid=' + uuid,
                            'other-config:vmbackup_snapshot=' + self.disks[0])
                self.leave(**fields)
                self.assert_spoken_of(uuid)

    def test_one_of_another_host_is_acted_upon_where_the_pool_has_the_mark(self):
        for kind in 'VM', 'VDI':
            with self.subTest(kind):
                self.setUp()
                mark = 'other-config:vmbackup_snapshot='
                if kind == 'VM':
                    uuid = self.vm_snapshot()
                    self.xe('template-param-set', 'uuid=' + uuid, mark + uuid)
                    self.leave(uuid=uuid, **self.of_vm)
                else:
                    uuid = self.disk_snapshot()
                    self.xe('vdi-param-set', 'uuid=' + uuid, mark + uuid,
                            'name-label=SNAP_web_web-0')
                    self.leave(uuid=uuid)
                done = self.ends(0, 'vm-export=db')
                self.assertIn('removing the snapshot of an unfinished backup: ' + uuid, done.lines)
                self.assertFalse(os.path.exists(self.file))
                self.assert_clean()

    def test_the_copy_of_anothers_record_ends_no_backup_of_that(self):
        uuid = self.disk_snapshot()
        self.xe('vdi-param-set', 'uuid=' + uuid, 'other-config:vmbackup_snapshot=' + uuid,
                'name-label=SNAP_db_web-0')
        self.leave(uuid=uuid)
        self.assert_spoken_of(uuid)

    def test_what_is_gone_or_was_there_before_settles_it(self):
        self.leave(uuid='0' * 8 + self.vm[8:], **self.of_vm)
        self.ends(0, 'vm-export=db')
        self.assertFalse(os.path.exists(self.file))
        self.vm_snapshot()
        self.before = self.contents()
        self.leave(**dict(self.of_vm, since=VmBackup.utc(3600), latest=VmBackup.utc(7200)))
        self.ends(0, 'vm-export=db')
        self.assertFalse(os.path.exists(self.file))

    def test_the_copy_of_a_record_that_was_settled_is_none_of_this_host(self):
        self.leave(True, **self.of_vm)
        copy = self.read_bytes(self.file)
        self.ends(0, 'vm-export=db')
        self.assertFalse(os.path.exists(self.file))
        uuid = self.vm_snapshot()
        self.put_file(self.file, copy)
        self.assert_spoken_of(uuid)

    def test_what_is_changed_in_a_record_that_this_host_has_noted_counts_for_nothing(self):
        theirs = self.vm_snapshot('mine')
        self.before = self.contents()
        ours = self.vm_snapshot()
        self.leave(True, uuid=ours, **self.of_vm)
        self.put_file(self.file, json.dumps(dict(json.loads(self.read(self.file)), uuid=theirs)))
        self.ends(0, 'vm-export=db')
        self.assert_clean()

    def test_a_note_that_others_could_have_written_is_none(self):
        state = self.environ()['VMBACKUP_STATE']
        uuid = self.vm_snapshot()
        self.leave(True, uuid=uuid, **self.of_vm)
        for change in (lambda: os.chmod(state, 0o777),
                       lambda: (os.rename(state, state + '2'), os.chmod(state + '2', 0o700),
                                os.symlink(state + '2', state))):
            change()
            self.assert_spoken_of(uuid)
        self.assert_spoken_of(uuid, VMBACKUP_STATE='/proc/none')

    def test_a_run_that_can_note_nothing_says_so_and_goes_on(self):
        shutil.rmtree(self.failed)
        done = self.ends(1, 'vm-export=web', VMBACKUP_STATE='/proc/none')
        self.assertIn('***WARNING - snapshots of this run are not noted on this host: ',
                      done.output)
        self.assert_clean()

    def test_notes_are_gone_when_snapshots_are(self):
        state = self.environ()['VMBACKUP_STATE']
        self.leave(True, **self.of_vm)
        shutil.rmtree(self.failed)
        note, = os.listdir(state)
        self.assertEqual(0o700, os.stat(state).st_mode & 0o777)
        self.ends(0, 'vm-export=web', 'vdi-export=db')
        self.assertEqual(1, len({*os.listdir(state)} - {note}))        # that of the pool

    def test_a_snapshot_says_itself_that_it_is_ours_and_a_restored_vm_does_not(self):
        seen = {}

        def look():
            for cls in 'VM', 'VDI':
                for record in self.sim.pool.tables[cls].values():
                    if VmBackup.OWN in record['other_config']:
                        seen[cls] = record['uuid'], record['other_config'][VmBackup.OWN]
        for verb, rule in (('vm-export', 'vm-export=web'), ('vdi-export', 'vdi-export=db')):
            self.at_call(verb, look, nth=0)
            self.ends(0, rule)
        for cls in 'VM', 'VDI':
            self.assertEqual(*seen[cls])
        self.leaves_things_behind = True
        self.command(0, 'password', 'restore=' + self.newest('web'))
        seen.clear()
        look()
        self.assertEqual({}, seen)


class Bombs(PoolCase):
    """Files that are small, or of some MiB, and ask for much more."""

    # What is allowed to a whole run; before, each of these took more, or hours.
    prelude = ('import resource\nresource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n'
               'resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n')
    pool_description = {'vms': [{'name': 'web', 'disks': ['64 KiB']}]}
    bombs = {'lists': '[' + '[],' * (16 << 18) + '[]]', 'digits': '{"number": %s}' % ('9' * 2**22),
             'text digits': '{"disks": [{"virtual_size": "%s"}]}' % ('9' * 1000000),
             'depth': '[' * 2**20, 'keys': json.dumps({'k%d' % n: {} for n in range(60000)}),
             'half a character': '{"vm": {"name": "\\ud800"}}', 'no number': '{"number": NaN}',
             'infinite': '{"number": 1e999}', 'space': ' ' * 2**24 + '{}'}

    def test_manifests_and_records_that_are_none_cost_neither_memory_nor_time(self):
        for number, (what, text) in enumerate(sorted(self.bombs.items()) * 2, 1):
            path = self.old_backup('web', 'backup-2019-01-%02d-(00:00:00)' % number, 'success',
                                   'web.raw')
            self.put_file(os.path.join(path, 'backup.json'), text)
            if number <= len(self.bombs):
                self.put_file(os.path.join(path, 'snapshot.json'), text)
        config = self.config('vm-export=web:30')
        self.command(0, 'list', config)
        self.command(1, 'verify', config)
        self.command(2, 'status', config)
        done = self.command(1, 'password', config)
        self.assertEqual(2 * len(self.bombs),          # by the clean-up, and for this VM
                         sum('***WARNING - ' in line and 'of a snapshot, is damaged' in line
                             for line in done.lines))
        self.assertEqual(len(self.bombs) * 2 + 1, len(self.dated('web')))

    def test_numbers_of_a_process_name_no_other_file_of_the_host(self):
        fifo = self.at('stat')
        os.mkfifo(fifo)                                # to open it would wait for ever
        for number in ('../' * 9 + self.directory.strip('/'), '\u00b2', '1' * 5000, ''):
            run = VmBackup.LastRun('', VmBackup.this_host(), number + ' 1')
            self.assertFalse(VmBackup.is_in_work(run))

    def test_a_vm_with_tags_without_end_fails_before_it_is_exported(self):
        ref = self.sim.pool.ref_of('VM', self.uuid_of('web'))
        for tags in (['t%06d' % number for number in range(40000)], ['x' * 2**20]):
            self.sim.pool.put('VM', ref, tags=tags)
            done = self.ends(2, 'vm-export=web')
            self.assertIn('its record would be too long: ', done.output)
            self.assertNotIn('xva', ''.join(self.tree()))
            self.assert_clean()

    def test_what_goes_on_after_the_end_of_a_disk_is_not_read_to_its_end(self):
        path = self.put_file('DISK-xvda.raw.gz', gzip.compress(bytes(64 << 20)))
        with VmBackup.opened(path, '.raw') as reader:
            with self.assertRaisesRegex(VmBackup.Damaged, 'it goes on after byte'):
                VmBackup.read_form('.raw', reader, 65536)
            self.assertLess(reader.at, 8 << 20)
        fed = 0
        with self.assertRaisesRegex(VmBackup.Damaged, 'goes on after byte'):
            for piece in VmBackup.disk_pieces(path, '.raw', 65536, 65536, ''):
                fed += len(piece)
        self.assertLessEqual(fed, 65536)


class Xml(unittest.TestCase):
    def test_expat_is_given_no_declaration_and_little_after_an_error(self):
        """After an exception in a handler it goes on, through entities too, to the end of what it
        was given; releases before 2.4 without a limit."""
        given = []
        make = xml.parsers.expat.ParserCreate

        class Spy:
            def __init__(self):
                super().__setattr__('parser', make())

            def __setattr__(self, name, value):
                setattr(self.parser, name, value)

            def Parse(self, data, last):
                given.append(bytes(data))
                self.parser.Parse(data, last)
        laughs = b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><value>&b;</value>'
        for text in (laughs, b'<?xml version="1.0"?>\n' + laughs, b'<a>' * 2**21,
                     b'<value>' * 2**20, b'<!DOCTYPE a SYSTEM "/etc/passwd"><value/>',
                     *(laughs.decode().encode(encoding) for encoding in (
                         'utf-16', 'utf-16-le', 'utf-16-be', 'utf-8-sig'))):
            with unittest.mock.patch.object(xml.parsers.expat, 'ParserCreate', Spy):
                for read in (VmBackup.ova_objects, lambda data: VmBackup.parse_xml(
                        iter([data[:7], data[7:]]), 'value')):
                    del given[:]
                    with self.assertRaises(VmBackup.Damaged) as caught:
                        read(text)
                    if text == laughs:
                        self.assertIn('it has a declaration, or', str(caught.exception))
                    self.assertNotIn(b'DOCTYPE', b''.join(given))
                    self.assertNotIn(b'\0', b''.join(given))
                    self.assertLess(sum(map(len, given)), 2**19)

    def test_numbers_that_xapi_cannot_have(self):
        for text, number in (('0', 0), (str(9 * 10**18 - 1), 9 * 10**18 - 1), (9 * 10**18, None),
                             (5, 5), ('9' * 10**6, None), (-1, None), (True, None), (1.5, None),
                             ('\u0663', None), ([], None), (2**60, 2**60), (2**64, None)):
            self.assertEqual(number, VmBackup.as_size(text))
