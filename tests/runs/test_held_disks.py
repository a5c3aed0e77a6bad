"""Disks that dom0 still has, for a transfer that has ended or for one that goes on."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys

from tests.tools.processes import children_of
from tests.tools.support import PoolCase

VERSIONS = '25.33', '26.17'        # a transfer's VBD names its task, or does not
EXPORTS = {'vm-export': {}, 'vdi-export': {}, 'vdi-export of several': {'vdi_disks': 'all'}}
VHD = {'vdi-export of a VHD': {'vdi_export_format': 'vhd'}}
SOON = (0.05, 0.05, 0.05)
BEGUN = 150000                     # bytes: in mid-export


class HeldCase(PoolCase):
    pool_description = {'vms': [{'name': 'web', 'disks': ['300 KiB', '300 KiB'], 'ran': True},
                                {'name': 'db', 'disks': ['3 MiB'], 'ran': True}]}

    def setUp(self):
        super().setUp()
        self.script = self.changed_script(SNAPSHOT_PAUSES=SOON, DISCARD_PAUSES=SOON,
                                          BUSY_PAUSES=SOON, SECOND_LOOK=0.05)

    def each(self, methods):
        """Each method with each version of xapi, in a pool of its own: (rule, keys, verb)."""
        for version, method in itertools.product(VERSIONS, methods):
            self.setUp()
            self.sim.pool.xapi_version = version
            verb = method.split()[0]
            yield verb + '=web', dict(EXPORTS, **VHD).get(method, {}), verb
            self.assert_clean()

    def held(self):
        """The VBDs of dom0, by reference."""
        tables = self.sim.pool.tables
        return {ref: vbd for ref, vbd in list(tables['VBD'].items())
                if tables['VM'][vbd['VM']]['is_control_domain']}

    def attach(self, vdi, **fields):
        """Make a VBD of a disk, for dom0 or for another VM, by XenAPI; its uuid."""
        pool = self.sim.pool
        vm = fields.pop('VM', None)
        vm = vm and pool.ref_of('VM', self.uuid_of(vm))
        ref = pool.call('VBD.create', dict(
            {'VM': vm or pool.tables['host'][pool.master]['control_domain'], 'VDI': vdi,
             'userdevice': 'autodetect', 'mode': 'RO', 'type': 'Disk', 'other_config': {}},
            **fields))
        return pool.tables['VBD'][ref]['uuid']

    def assert_order(self):
        """Nothing was removed before what held it."""
        verbs = self.verbs()
        self.assertLess(verbs.index('vbd-destroy'), min(
            verbs.index(verb) for verb in ('vm-uninstall', 'snapshot-uninstall', 'vdi-destroy')
            if verb in verbs))


class Leaked(HeldCase):
    """A transfer has ended, the VBD is there still: it goes, and what it held."""

    def test_by_an_xapi_that_ends_in_mid_export(self):
        for rule, keys, verb in self.each(EXPORTS):
            self.fault(verb, 'down', nth=2 if verb == 'vm-export' else 1, after=BEGUN)
            child = self.start('password', self.config(rule, **keys))
            self.wait_for(lambda: self.sim.pool.is_down)
            self.sim.restart()
            done = self.assert_ends(2, self.finish(child))
            self.assertNotIn('left in the pool', done.output)
            self.assertNotIn('still being exported', done.output)
            self.assert_order()

    def test_by_storage_that_does_not_let_go_although_the_export_says_success(self):
        for rule, keys, _ in self.each(EXPORTS):
            self.sim.pool.failing_detaches = 1
            done = self.ends(0, rule, **keys)
            self.assertEqual(1, self.verbs().count('vbd-unplug'), done.output)
            self.assert_order()

    def test_by_an_xapi_that_was_killed_before_it_wrote_its_database_until_the_host_restarts(self):
        for rule, keys, _ in self.each(EXPORTS):
            self.sim.pool.stale_devices.add('0')
            for done in self.ends(1, rule, **keys), self.ends(1, 'vdi-export=db'):
                self.assertIn('Expected 0 or 1 VDI with datapath, had 2', done.output)
                self.assertRegex(done.output, 'left in the pool: xe vbd-unplug failed: ')
            self.sim.pool.stale_devices.clear()
            self.ends(0, 'vdi-export=db')

    def test_by_an_earlier_run_that_was_killed_with_its_xapi(self):
        for rule, keys, verb in self.each(EXPORTS):
            self.fault(verb, 'down', nth=2 if verb == 'vm-export' else 1, after=BEGUN)
            child = self.start('password', self.config(rule, **keys))
            self.wait_for(lambda: self.sim.pool.is_down)
            child.kill()
            self.finish(child)
            self.sim.restart()
            self.assertEqual(1, len(self.held()))
            done = self.ends(0, 'vdi-export=db')
            self.assertIn('removing the snapshot of an unfinished backup', done.output)
            self.assert_order()

    def test_and_detached_already(self):
        for rule, keys, _ in self.each(EXPORTS):
            self.sim.pool.failing_detaches = 1

            def detach():
                for ref in self.held():
                    self.sim.pool.mark_detached(ref)
            self.at_call('task.get_all_records', detach, 0)
            self.ends(0, rule, **keys)
            self.assertNotIn('vbd-unplug', self.verbs())
            self.assert_order()

    def test_by_an_import_that_says_success(self):
        for rule, keys, verb in self.each(['vm-export', 'vdi-export', 'vdi-export of a VHD']):
            self.ends(0, rule, **keys)
            self.sim.pool.failing_detaches = 1
            done = self.assert_ends(0, self.vmbackup(
                'password', 'restore=web', 'from=' + self.backups,
                *['start=True'] * (verb == 'vm-export')))
            self.assertEqual({}, self.held(), done.output)
            self.assertEqual(1, self.verbs().count('vbd-unplug'))
            self.before = self.contents()

    def test_a_disk_that_something_else_has_as_well_is_restored_with_a_warning(self):
        self.ends(0, 'vdi-export=web')

        def plug():
            vdi, = [ref for ref, vdi in self.sim.pool.tables['VDI'].items()
                    if 'vmbackup' in vdi['name_label'].lower()]
            made.append(self.attach(vdi))
        made = []
        self.at_call('vdi-import', plug)
        done = self.assert_ends(1, self.vmbackup(
            'password', 'restore=web', 'from=' + self.backups))
        self.assertIn('xe vbd-destroy uuid=' + made[0], done.output)
        self.xe('vbd-destroy', 'uuid=' + made[0])
        self.before = self.contents()

    def test_by_an_import(self):
        for rule, keys, verb in self.each(['vm-export', 'vdi-export']):
            self.ends(0, rule)
            self.fault(verb.replace('export', 'import'), 'down', after=BEGUN)
            child = self.start('password', 'restore=web', 'from=' + self.backups)
            self.wait_for(lambda: self.sim.pool.is_down)
            self.sim.restart()
            done = self.assert_ends(2, self.finish(child))
            self.assertNotIn('left in the pool', done.output)
            verbs = self.verbs()
            self.assertLess(verbs.index('vbd-destroy'), len(verbs) - 1 - verbs[::-1].index(
                'vdi-destroy'))

    def test_what_comes_between_the_two_looks_is_not_cut_and_nothing_is_removed(self):
        for rule, keys, _ in self.each(['vm-export']):
            def plug():
                looks.append(1)
                if len(looks) == 1:
                    vdi = [ref for ref, vdi in pool.tables['VDI'].items() if vdi['is_a_snapshot']]
                    made.append(self.attach(vdi[-1]))
            pool, looks, made = self.sim.pool, [], []
            pool.failing_detaches = 1
            self.at_call('task.get_all_records', plug, 0)
            done = self.back_up(rule, **keys)
            if pool.version < (26,):                   # it names no task: a person's
                self.assertEqual(1, done.status, done.output)
                self.assertNotIn('vm-uninstall', self.verbs())
                self.xe('vbd-destroy', 'uuid=' + made[0])
                done = self.ends(0, 'vdi-export=db')
            self.assertEqual(0, done.status, done.output)
            self.assertIn('vbd-destroy', self.verbs())
            self.assert_order()


class Running(HeldCase):
    """No transfer that goes on is ever cut off, whosever it is."""

    def begin(self, transfer):
        """Begin an export that somebody else has ordered; it goes on when it is read further."""
        self.others = contextlib.ExitStack()
        self.stream = self.others.enter_context(transfer)
        before = len(self.held())
        while len(self.held()) == before:
            next(self.stream)

    def end(self):
        """Read that export to its end, which is a good one."""
        sum(map(len, self.stream))
        self.others.close()
        self.assertTrue(self.stream.complete)

    def during(self, begin, rule, verb, keys):
        """A run in whose export that other one begins, and ends after it: nothing was unplugged,
        and the snapshot is left with its record. The next run removes it."""
        self.at_call(verb, begin, nth=2 if verb == 'vm-export' else 1)
        done = self.ends(1, rule, **keys)
        self.assertRegex(done.output,
                         'web: the snapshot .* was left in the pool: the disk .* is in use by ')
        for cut in 'vbd-unplug', 'vm-uninstall', 'snapshot-uninstall':
            self.assertNotIn(cut, self.verbs())
        self.assertTrue(self.held())
        self.end()
        self.ends(0, 'vdi-export=db')
        return done

    def test_an_export_of_the_disk_of_a_snapshot_of_ours(self):
        for rule, keys, verb in self.each(EXPORTS):
            def begin():
                vdi, = [ref for ref, vdi in self.sim.pool.tables['VDI'].items()
                        if vdi['is_a_snapshot'] and vdi['name_label'] != 'web 1'][:1]
                self.begin(self.sim.pool.export_vdi(vdi))
            self.during(begin, rule, verb, keys)

    def test_an_export_of_a_snapshot_of_ours(self):
        for rule, keys, verb in self.each(['vm-export', 'vdi-export of several']):
            def begin():
                vm, = [ref for ref, vm in self.sim.pool.tables['VM'].items()
                       if vm['is_a_snapshot']]
                self.begin(self.sim.pool.export_vm(vm))
            self.during(begin, rule, verb, keys)

    def test_a_transfer_that_may_have_our_disk_as_no_vbd_names_its_task(self):
        for rule, keys, verb in self.each(EXPORTS):
            def begin():
                self.begin(self.sim.pool.export_vdi(other))
                self.sim.pool.failing_detaches = 1
            other = self.sim.pool.ref_of('VDI', self.disk_of('db', '0'))
            if self.sim.pool.version > (26,):
                done = self.during(begin, rule, verb, keys)
                self.assertIn('in use by perhaps the task VDI export', done.output)
            else:
                self.at_call(verb, begin, nth=2 if verb == 'vm-export' else 1)
                self.ends(0, rule, **keys)
                self.end()

    def test_a_transfer_whose_caller_named_its_task_like_an_export_of_a_vm(self):
        for rule, keys, verb in self.each(EXPORTS):
            def begin():
                vdi = [ref for ref, vdi in self.sim.pool.tables['VDI'].items()
                       if vdi['is_a_snapshot']][0]
                task = self.sim.pool.make_task('Export of VM web, disk 0')
                self.begin(self.sim.pool.export_vdi(vdi, task=task))
            self.during(begin, rule, verb, keys)
            self.sim.pool.tables['task'].clear()

    def test_a_vhd_tool_that_outlived_its_xapi(self):
        for rule, keys, verb in self.each(EXPORTS):
            tools = []

            def read_on():
                vbd, = self.held().values()
                tools.append(subprocess.Popen([sys.executable, '-c', 'input()', '--source',
                                               '/dev/' + vbd['device']], stdin=subprocess.PIPE))
            self.sim.pool.failing_detaches = 1
            self.at_call('task.get_all_records', lambda: tools or read_on(), 0)
            done = self.ends(1, rule, **keys)
            self.assertIn('is in use by vhd-tool', done.output)
            self.assertNotIn('vbd-unplug', self.verbs())
            tools[0].communicate(b'\n')
            self.ends(0, 'vdi-export=db')

    def test_an_import_that_ends_with_its_client_is_waited_for(self):
        for rule, _, verb in self.each(['vdi-export']):
            self.script = self.changed_script(DISCARD_PAUSES=SOON, BUSY_PAUSES=(0.5, 1, 2, 4))
            self.ends(0, rule)
            looked, begun = [], []
            self.at_call('VM.get_is_control_domain', lambda: looked.append(1), 0)
            self.sim.pool.sleep = lambda *_: begun.append(1) or self.wait_for(lambda: looked[1:])
            self.fault('vdi-import', 'slow', after=BEGUN)
            child = self.start('password', 'restore=web', 'from=' + self.backups)
            self.wait_for(lambda: begun)
            children = children_of(child.pid)
            child.kill()
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            self.finish(child)
            self.sim.pool.tables['session'].clear()
            done = self.ends(0, 'vdi-export=db')
            self.assertIn('is in use by', done.output)
            self.assertNotIn('vbd-unplug', self.verbs())

    def test_an_import_by_an_xe_that_outlived_its_restore_is_ended(self):
        self.pool_description = {'vms': [dict(vm, disks=['4 MiB'])
                                         for vm in self.pool_description['vms']]}
        for rule, keys, verb in self.each(['vdi-export of a VHD']):
            self.script = self.changed_script(DISCARD_PAUSES=SOON, BUSY_PAUSES=(0.5, 1, 2, 4),
                                              SECOND_LOOK=0.05)
            self.ends(0, rule, **keys)
            self.fault('vdi-import', 'slow', rate=200000)
            child = self.start('password', 'restore=web', 'from=' + self.backups, LC_ALL='C')
            self.wait_for(self.held)                       # not forked: /proc shows its xe
            child.kill()
            self.finish(child)
            self.sim.pool.tables['session'].clear()
            done = self.ends(0, 'vdi-export=db')
            self.assertIn('ending a transfer of a run that was killed', done.output)

    def test_one_that_may_have_what_an_earlier_run_left_is_looked_at_again_at_the_end(self):
        self.sim.pool.xapi_version = '26.17'
        self.sim.pool.failing_detaches = 1
        self.fault('task.get_all_records', 'hang')
        child = self.start('password', self.config('vdi-export=web'))
        self.wait_for(self.held)
        self.wait_for_call('task.get_all_records')
        child.kill()
        self.finish(child)
        self.sim.pool.tables['session'].clear()
        self.sim.pool.faults.clear()
        self.begin(self.sim.pool.export_vdi(self.sim.pool.ref_of('VDI', self.disk_of('db', '0'))))
        self.at_call('vm-export', self.end, nth=2)
        done = self.ends(1, 'vm-export=web')
        self.assertIn('in use by perhaps the task VDI export', done.output)
        self.assertEqual({}, self.held())

    def test_one_that_may_have_a_restored_disk_is_not_cut_and_told(self):
        for rule, keys, verb in self.each(['vm-export', 'vdi-export', 'vdi-export of a VHD']):
            self.ends(0, rule, **keys)
            other = self.sim.pool.ref_of('VDI', self.disk_of('db', '0'))
            self.begin(self.sim.pool.export_vdi(other))
            self.sim.pool.failing_detaches = 1
            done = self.vmbackup('password', 'restore=web', 'from=' + self.backups)
            if self.sim.pool.version > (26,):
                self.assertEqual(1, done.status, done.output)
                self.assertIn('dom0 may still have what was restored', done.output)
                self.assertNotIn('vbd-unplug', self.verbs())
            else:
                self.assertEqual(0, done.status, done.output)
                self.assertEqual(1, len(self.held()))
            self.end()
            self.before = self.contents()

    def test_an_answer_without_sense_cuts_nothing_and_is_no_traceback(self):
        for name, value in (('VM.get_is_control_domain', []), ('task.get_all_records', 'x'),
                            ('task.get_all_records', {'OpaqueRef:1': {
                                'status': 'pending', 'name_label': 7}})):
            with self.subTest(name, value=value):
                self.setUp()
                self.sim.pool.xapi_version = '26.17'
                self.sim.pool.failing_detaches = 1
                self.fault(name, 'print', times=0, value=value)
                self.ends(1, 'vdi-export=web')
                self.assertNotIn('vbd-unplug', self.verbs())
                self.sim.pool.faults.clear()
                self.ends(0, 'vdi-export=db')


class OfPersons(HeldCase):
    """What cannot be told from a VBD that a person has made stays, and what it holds."""

    def test_on_a_disk_of_a_snapshot_of_ours(self):
        kinds = [{'mode': 'RW'}, {'other_config': {'mine': ''}}, {'bootable': True}, {'VM': 'db'}]
        for number, (rule, keys, verb) in enumerate(self.each(EXPORTS)):
            made = []

            def plug():
                vdi = [ref for ref, vdi in self.sim.pool.tables['VDI'].items()
                       if vdi['is_a_snapshot']][0]
                older = self.sim.pool.version < (26,)      # an attachment of its own has a task_id
                made.append(self.attach(vdi, **([{}] * older + kinds)[number % (4 + older)]))
            self.at_call(verb, plug, nth=2 if verb == 'vm-export' else 1)
            done = self.ends(1, rule, **keys)
            for word in 'param-list', 'unplug', 'destroy':
                self.assertIn('xe vbd-%s uuid=%s' % (word, made[0]), done.output)
            for cut in 'vbd-unplug', 'vm-uninstall', 'snapshot-uninstall':
                self.assertNotIn(cut, self.verbs())
            self.xe('vbd-destroy', 'uuid=' + made[0])
            self.ends(0, 'vdi-export=db')

    def test_of_a_control_domain_of_another_host_from_before_xapis_start(self):
        for here in (False, True):
            self.pool_description = dict(HeldCase.pool_description, hosts=['one', 'two'])
            self.setUp()
            host = self.sim.pool.tables['host'][self.sim.pool.master]['uuid']
            self.script = self.changed_script(
                SNAPSHOT_PAUSES=SOON, DISCARD_PAUSES=SOON, BUSY_PAUSES=SOON, SECOND_LOOK=0.05,
                INVENTORY=self.put_file('inventory', "INSTALLATION_UUID='%s'\n" % (
                    host if here else '12345678-0000-0000-0000-000000000000')))
            self.fault('vdi-export', 'down', after=BEGUN)
            child = self.start('password', self.config('vdi-export=web'))
            self.wait_for(lambda: self.sim.pool.is_down)
            self.sim.restart()
            done = self.assert_ends(2, self.finish(child))
            self.assertEqual(here, not self.held())
            for ref, vbd in self.held().items():
                self.assertIn('xe vbd-unplug uuid=' + vbd['uuid'], done.output)
                self.sim.pool.call('VBD.unplug', ref)
                self.sim.pool.call('VBD.destroy', ref)
                self.ends(0, 'vdi-export=db')
            self.assert_clean()

    def test_on_a_disk_that_was_half_restored_by_a_run_that_was_killed(self):
        for rule, _, verb in self.each(['vdi-export']):
            self.ends(0, rule)
            self.fault('vdi-import', 'down', after=BEGUN)
            child = self.start('password', 'restore=web', 'from=' + self.backups)
            self.wait_for(lambda: self.sim.pool.is_down)
            child.kill()
            self.finish(child)
            self.sim.restart()
            (ref, vbd), = self.held().items()
            if vbd['other_config']:
                self.ends(0, 'vdi-export=db')
                continue
            done = self.ends(1, 'vdi-export=db')
            self.assertIn('xe vbd-unplug uuid=' + vbd['uuid'], done.output)
            self.xe('vbd-unplug', 'uuid=' + vbd['uuid'])
            self.xe('vbd-destroy', 'uuid=' + vbd['uuid'])
            self.ends(0, 'vdi-export=db')
