"""The fault matrix: every xe verb and XenAPI method in use meets whatever can go wrong with it.

Which verbs and methods that are is read from the journal of a run in the same circumstances, so a
new call of the script is in the matrix as soon as it is made. Each point of it is one run with one
fault; the invariants are asked for after it and, where the run did not come to a good end, after
an undisturbed one. (Else the next point's run is that.)

`python3 -m tests faults` goes through the whole matrix, `python3 -m tests` through a sample.
"""

import collections
import contextlib
import json
import os
import random
import unittest
from typing import Any, Dict, NamedTuple, Tuple

from tests.faults.faulting import FaultCase, full, sample, seed, variants

DEADLINE = 1.5              # seconds that the script gives xe and XenAPI here
LATE = DEADLINE + 0.5
BACK = 0.3                  # seconds until a daemon that died is back
NOBODY = '00000000-0000-4000-8000-000000000000'
NO_REF = 'OpaqueRef:' + NOBODY
LOGIN, LOGOUT = 'session.login_with_password', 'session.logout'
OF_SESSIONS = (LOGIN, LOGOUT)

# Codes with the parameters that xapi gives them.
FULL_SR = ['SR_BACKEND_FAILURE_44', '', 'There is insufficient space', '']
NO_VDI = ['SR_BACKEND_FAILURE_46', '', 'The VDI is not available', '']
NO_SNAPSHOT = ['SR_BACKEND_FAILURE_82', '', 'Failed to snapshot VDI', '']
LONG_CHAIN = ['SR_BACKEND_FAILURE_109', '', 'The snapshot chain is too long', '']
IO_ERROR = ['SR_BACKEND_FAILURE_200', '', 'General IO error', '']
BUSY_SR = ['SR_BACKEND_FAILURE_201', '', 'Currently unavailable, try again', '']
BLOCKED = ['OPERATION_BLOCKED', NO_REF, 'not tonight']
IN_USE = ['VDI_IN_USE', NO_REF, 'destroy']
DISK_ERROR = ['VDI_IO_ERROR', 'Device I/O errors']
BUSY = ['OTHER_OPERATION_IN_PROGRESS', 'VM', NO_REF, 'export', NO_REF]
INTERNAL = ['INTERNAL_ERROR', 'Not_found']
BOOTING = ['HOST_STILL_BOOTING']
NO_HANDLE = ['HANDLE_INVALID', 'VM', NO_REF]
NO_UUID = ['UUID_INVALID', 'VM', NOBODY]
UNKNOWN = ['MESSAGE_METHOD_UNKNOWN', 'VM.get_this']
NO_MASTER = ['NO_HOSTS_AVAILABLE']
REFUSALS = {
    'vm-snapshot': [FULL_SR, NO_VDI, NO_SNAPSHOT, LONG_CHAIN, BLOCKED, BUSY, NO_MASTER,
                    ['VM_HAS_VUSBS', NO_REF], ['VDI_IS_SHARABLE', NO_REF]],
    'vdi-snapshot': [FULL_SR, NO_SNAPSHOT, LONG_CHAIN, BUSY_SR, NO_UUID,
                     ['SR_OPERATION_NOT_SUPPORTED', NO_REF]],
    'template-param-set': [NO_UUID, NO_HANDLE, INTERNAL],
    'vdi-param-set': [NO_UUID, NO_HANDLE, INTERNAL],
    'vm-export': [BUSY, IN_USE, INTERNAL, ['VM_BAD_POWER_STATE', NO_REF, 'halted', 'running']],
    'vdi-export': [NO_UUID, IN_USE, INTERNAL],
    'vm-uninstall': [BUSY, BLOCKED, NO_VDI, NO_HANDLE],
    'snapshot-uninstall': [BUSY, NO_VDI, NO_UUID],
    'vdi-destroy': [IN_USE, NO_VDI, IO_ERROR, NO_UUID, BUSY_SR],
    'pool-dump-database': [INTERNAL, BOOTING],
}                           # type: Dict[str, Any]
# In the midst of the work: (code, steps or bytes until then).
HALF_DONE = dict.fromkeys(('vm-uninstall', 'snapshot-uninstall'), [(NO_VDI, 1), (IO_ERROR, 2)])
HALF_DONE.update({
    'vm-snapshot': [(FULL_SR, 1), (NO_SNAPSHOT, 1)],
    'vm-export': [(DISK_ERROR, 500000), (NO_VDI, 900000)],
    'vdi-export': [(DISK_ERROR, 500000), (IO_ERROR, 1 << 20)]})
OF_ANY_VERB = [INTERNAL, BOOTING]
OF_ANY_METHOD = [INTERNAL, BOOTING, UNKNOWN, NO_HANDLE]
OF_GETTERS = {'get_by_uuid': [NO_UUID], 'get_all_records_where': [['INVALID_VALUE', 'field', 'x']]}
# What xe says although it has done nothing.
LIES = dict.fromkeys(('vm-snapshot', 'vdi-snapshot'), [NOBODY + '\n'])   # type: Dict[str, Any]
LIES.update({
    'vm-export': ['Export succeeded\n'], 'snapshot-uninstall': ['All objects destroyed\n'],
    'vm-uninstall': ['The following items are about to be destroyed\nAll objects destroyed\n']})
WORKERS = {'vm-snapshot': 4, 'vdi-snapshot': 1, 'vm-uninstall': 3, 'snapshot-uninstall': 3,
           'vdi-destroy': 1}            # verbs with steps, and how many at most
CUT_SHORT = b'<?xml version="1.0"?><methodResponse><params/>'
EXPORTS = ('vm-export', 'vdi-export', 'pool-dump-database')


class Circumstances(NamedTuple):
    """What a run finds, besides the fault that it meets."""
    name: str
    faults: Tuple[Tuple[str, Dict[str, Any]], ...] = ()     # (call, fault) that it meets as well
    spoils: Tuple[str, ...] = ()        # VMs that fail by those alone
    leftovers: bool = False             # an earlier run's snapshots are in the pool


NIGHT = Circumstances('an ordinary night')
REMOVALS = Circumstances('removals that are refused at first', (
    ('vm-uninstall', {'do': 'refuse', 'error': BUSY}),
    ('vdi-destroy', {'do': 'refuse', 'error': IN_USE})))
SNAPSHOTS = Circumstances('snapshots whose client dies', (
    ('vm-snapshot', {'do': 'die'}), ('vdi-snapshot', {'do': 'die'})), spoils=('web', 'db'))
LEFTOVERS = Circumstances('snapshots that an earlier run left', leftovers=True)
STALLS = Circumstances('exports that stall', (
    ('vm-export', {'do': 'stall', 'after': 500000, 'nth': 3}),
    ('vdi-export', {'do': 'stall', 'after': 500000})), spoils=('web', 'db'))
ALL = (NIGHT, REMOVALS, SNAPSHOTS, LEFTOVERS, STALLS)


class Point(NamedTuple):
    """One point of the matrix: the nth call of a name meets a fault."""
    circumstances: Circumstances
    name: str
    nth: int
    fault: Dict[str, Any]               # as faults.add() takes it; do='expire': all sessions do

    @property
    def settled(self):
        """Whether nothing may be left right after it. Where one thing after the other goes wrong,
        the next run may have to put it in order; so it may after an answer that was a lie, a
        daemon's death, and what xe has done too late."""
        do = self.fault['do']
        return (self.circumstances is NIGHT and do not in ('print', 'down', 'down-after') and
                self.fault.get('times') != 0 and not (do == 'slow' and '.' not in self.name))

    def __str__(self):
        return '%s: call %d of %s: %s' % (self.circumstances.name, self.nth, self.name, self.fault)


PLACES = {}                 # type: Dict[str, Dict[str, Any]]
HOOK = 'set -u\necho "$1 $VMBACKUP_METHOD" >> %s\n'


class Matrix(FaultCase):
    """What the parts of the matrix share: runs with a hook and a report."""

    def setUp(self):
        super().setUp()
        self.noted, self.report = self.at('noted'), self.at('report.json')
        self.keys = {'pool_db_backup': 1, 'stall_timeout': '0.01', 'report_file': self.report,
                     'hook': self.program('hook', HOOK % self.noted)}
        self.sim.pool.lock_wait = 0.5
        self.script = self.changed_script(
            XE_TIMEOUT=DEADLINE, XAPI_TIMEOUT=DEADLINE, XAPI_PATIENCE=6, DISCARD_PAUSES=(0.1, 0.2),
            BUSY_PAUSES=(0.3, 0.5), SNAPSHOT_PAUSES=(0.05, 0.2, 0.5, 1.0, 1.5))
        self.prepare()

    def begin_run(self):
        super().begin_run()
        for path in (self.noted, self.report) if self.keys else ():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def check_end(self, done, now, told, words):
        """5: the report tells what the exit status does, and each begin at the hook has its end."""
        super().check_end(done, now, told, words)
        report = json.loads(self.read(self.report))
        self.assertEqual(done.status, report['exit_status'], '5: the report: ' + words)
        renewed = {vm['name'] for vm in report['vms'] if vm['status'] in ('SUCCESS', 'WARNING')}
        self.assertEqual(self.renewed(now), renewed, '5: the report: ' + words)
        phases = [line.split()[0] for line in self.read(self.noted).splitlines()]
        self.assertEqual(('job-init', 'log-end'), (phases[0], phases[-1]), '5: hooks: ' + words)
        self.assertEqual(1, phases.count('job-end') + phases.count('job-abort'), '5: ' + words)
        self.assertEqual(phases.count('backup-start'), phases.count('backup-end') +
                         phases.count('backup-abort'), '5: hooks: ' + words)

    def vm_at_hand(self):
        """The VM whose backup has begun, by the status log; '' between two of them."""
        lines = [line.split(',', 4) for line in self.status_lines()[self.told_before:]]
        words = [line for line in lines if line[1] in ('vm-export', 'vdi-export')][-1:]
        return words[0][4] if words and words[0][3] == 'begin' else ''

    def note(self, _, call):
        """Note for which VM a call is made; at one of them, every session expires."""
        with self.sim.pool.lock:
            self.seen[call.name].append(self.vm_at_hand())
            if (call.name, len(self.seen[call.name])) == self.expiry:
                self.sim.pool.tables['session'].clear()

    def meet(self, circumstances, expiry=None):
        """Arrange the circumstances of the next run, to whose calls `note` listens; `expiry` is
        (name, number) of the call at which every session expires."""
        pool = self.sim.pool
        self.seen, self.expiry = collections.defaultdict(list), expiry
        if circumstances.leftovers:
            self.leave_things()
        pool.faults.clear()
        for name, fault in circumstances.faults:
            pool.faults.add(name, **fault)

    def leave_things(self):
        for verb in ('vm-uninstall', 'snapshot-uninstall', 'vdi-destroy'):
            self.sim.pool.faults.add(verb, 'refuse', error=NO_VDI, times=0)
        done = self.backup()
        self.assertNotEqual({}, self.open_records(), done.output)

    def places(self, circumstances):
        """{name: the VM at hand at each call} of a run in these circumstances."""
        if circumstances.name not in PLACES:
            self.remember()
            self.meet(circumstances)
            self.run_with(self.note, BACK)
            PLACES[circumstances.name] = dict(self.seen)
            self.sim.pool.faults.clear()
            self.check(self.backup(), settled=True)
        return PLACES[circumstances.name]

    def calls(self, circumstances, door):
        """{name: numbers of its calls}: each of a door's names, at one of its calls for each VM;
        where the circumstances are not those of every night, only the calls that they cause."""
        places = self.places(circumstances)
        usual = {} if circumstances is NIGHT else self.places(NIGHT)
        found = collections.OrderedDict()
        for name in sorted(places):
            more = len(places[name]) - len(usual.get(name, ()))
            if ('.' in name) == (door == 'xapi') and more > 0:
                found[name] = (self.caused(circumstances, places[name], more) if usual else
                               sorted({vm: nth for nth, vm in reversed(list(enumerate(
                                   places[name], 1)))}.values()))
        return found

    @staticmethod
    def caused(circumstances, vms, more):
        """Which of the calls of a name, for these VMs, the circumstances may have caused."""
        spoilt = [nth for nth, vm in enumerate(vms, 1) if vm in ('web', 'db')]
        if circumstances.leftovers:
            return sorted({1, more})
        return spoilt[-more:][:1] or [len(vms)]

    def points(self, circumstances, door, faults):
        """The points in some circumstances: each name of a door, with all of faults(name, number),
        which take turns at its calls. Of XenAPI, where something went wrong already, the names
        take turns at the faults."""
        found = []
        for number, (name, calls) in enumerate(self.calls(circumstances, door).items()):
            chosen = list(faults(name, number))
            if door == 'xapi' and circumstances is not NIGHT:
                chosen = turns(chosen, number, min(1, len(chosen)))
            found += [Point(circumstances, name, calls[(number + turn) % len(calls)], fault)
                      for turn, fault in enumerate(chosen)]
        return found

    def hit(self, point):
        fault = dict(point.fault)
        expiry = (point.name, point.nth) if fault['do'] == 'expire' else None
        self.sim.pool.faults.clear()
        self.remember()
        self.meet(point.circumstances, expiry)
        if not expiry:
            self.sim.pool.faults.add(point.name, nth=point.nth, **fault)
        self.injected(str(point))
        done = self.run_with(self.note, BACK)
        self.sim.pool.faults.clear()
        self.assertGreaterEqual(len(self.seen[point.name]), point.nth,
                                'it met no fault: %s\n%s' % (str(point), done.output))
        self.wait_for(self.is_quiet, 'a quiet pool')
        if point.name in OF_SESSIONS or fault['do'] == 'expire':
            self.sim.pool.tables['session'].clear()     # nobody else can: they expire
        self.check(done, point.settled, self.may_be_spoilt(point))
        if done.status not in (0, 1) or not point.settled:
            self.check(self.backup(), settled=True, hit=())

    def may_be_spoilt(self, point):
        """The VMs whose backups the fault may spoil; None: any of them."""
        if point.name == LOGIN or point.name == 'VM.get_all_records' or (
                point.fault.get('times') == 0):
            return None
        vm = self.seen[point.name][point.nth - 1]
        return {vm}.union(point.circumstances.spoils) - {''}


def turns(things, number, count):
    return [things[(number * count + turn) % len(things)] for turn in range(count)]


class All(Matrix):
    """All points of a part of the matrix.

    door    whose calls meet faults
    faults  what a verb or method meets, by its name and number
    after   circumstances in which something went wrong already
    """

    door = 'xe'
    after = (REMOVALS, SNAPSHOTS, LEFTOVERS)

    def go_through(self, *several):
        for circumstances in several:
            points = self.points(circumstances, self.door, self.faults)
            self.assertTrue(points)
            for point in sample(points, 0, self.id()):
                with self.subTest(str(point)):
                    self.hit(point)

    def test_on_an_ordinary_night(self):
        self.go_through(NIGHT)

    def test_where_something_went_wrong_already(self):
        self.go_through(*self.after)


def refused(name, number):
    """Refusals with the codes that a verb really gives, at once and in the midst of its work."""
    at_once = REFUSALS.get(name, []) + turns(OF_ANY_VERB, number, 1)
    return [{'do': 'refuse', 'error': error} for error in at_once] + [
        {'do': 'refuse', 'error': error, 'after': after}
        for error, after in HALF_DONE.get(name, [])]


def refused_methods(name, number):
    """Refusals with the codes that a method really gives."""
    errors = turns(OF_ANY_METHOD, number, 2) + OF_GETTERS.get(name.partition('.')[2], [])
    if name == LOGIN:
        errors = [BOOTING, INTERNAL, ['SESSION_AUTHENTICATION_FAILED', 'root', 'x']]
    return [{'do': 'refuse', 'error': error} for error in errors]


def dying(name, number):
    """The daemon dies: at the call or after it, and in its midst. It is back a little later."""
    points = list(range(WORKERS.get(name, -1) + 1)) + [700000] * (name in EXPORTS)
    return [{'do': 'down-after' if number % 2 else 'down'}] + [
        {'do': 'down', 'after': after} for after in points]


def late(name, number):
    """No answer at all, one that comes too late, and work that is done too late."""
    if name in EXPORTS:
        more = {'do': 'stall' if number % 2 else 'hang', 'after': 700000}
    elif name in WORKERS:
        more = {'do': 'slow', 'seconds': LATE, 'after': number % 3}
    else:
        more = {'do': 'slow', 'seconds': LATE}
    return [{'do': 'hang'}, more]


def part(kind, faults, **attributes):
    return dict(attributes, kind=kind, faults=staticmethod(faults))


PARTS = variants(
    All,
    RefusedVerbs=part('xe refuses', refused),
    RefusedVerbsForEver=part('xe refuses', lambda name, number: [
        {'do': 'refuse', 'error': REFUSALS.get(name, OF_ANY_VERB)[0], 'times': 0}],
        test_where_something_went_wrong_already=None),
    RefusedMethods=part('XenAPI refuses', refused_methods, door='xapi', after=ALL[1:]),
    # Whatever may be said, and nothing done.
    WrongWords=part('xe lies', lambda name, number: [
        {'do': 'print', 'stdout': text, 'exit': 0}
        for text in ['', 'rubbish\n'] + LIES.get(name, [])] + [{'do': 'print', 'exit': 1}]),
    # Before the work or in a file, and when all but the answer is done.
    BrokenConnections=part('xe dies half-way', lambda name, number: [{'do': 'die'}] + [
        {'do': 'die', 'after': 700000 if number % 2 else 1000}] * (name in EXPORTS)),
    DyingDaemons=part('the daemon dies half-way', dying),
    NoEnd=part('xe hangs or is late', late),
    # What is no answer, or another one than was asked for.
    WrongAnswers=part('XenAPI answers wrongly', lambda name, number: [
        dict(answer, do='print') for answer in turns([
            {'value': ''}, {'body': b''}, {'value': []}, {'body': b'<html>'},
            {'value': {NO_REF: {}}}, {'body': CUT_SHORT}], number, 2)], door='xapi'),
    # Without an answer, or in the middle of one, or by the daemon's death.
    BrokenAnswers=part('XenAPI breaks off', lambda name, number: (
        [{'do': 'die', 'after': 150}, {'do': 'down'}] if number % 2 else
        [{'do': 'die'}, {'do': 'down-after'}]), door='xapi', after=(SNAPSHOTS, LEFTOVERS, STALLS)),
    NoAnswers=part('XenAPI hangs or is late', lambda name, number: [
        {'do': 'hang'} if number % 2 else {'do': 'slow', 'seconds': LATE}],
        door='xapi', after=(SNAPSHOTS, LEFTOVERS)),
    ExpiredSessions=part('the session has expired', lambda name, number: [
        {'do': 'expire'}] * (name not in OF_SESSIONS), door='xapi'))
globals().update(PARTS)


class Sample(Matrix):
    """Some points of all of this, each by xe or XenAPI: a refusal, a wrong answer, a broken
    connection, and anything else where something went wrong already."""

    kind = 'a call meets a fault'

    def test_some_points_of_the_matrix(self):
        chance = random.Random('matrix:' + seed())
        for names, circumstances in (
                (('RefusedVerbs', 'RefusedMethods'), NIGHT),
                (('WrongWords', 'WrongAnswers'), NIGHT),
                (('BrokenConnections', 'BrokenAnswers'), NIGHT),
                (('RefusedVerbsForEver', 'DyingDaemons', 'NoEnd', 'NoAnswers', 'ExpiredSessions'),
                 chance.choice(ALL[1:]))):
            each = PARTS[chance.choice(names)]
            points = self.points(circumstances, each.door, each.faults) or self.points(
                NIGHT, each.door, each.faults)
            point = chance.choice(points)
            with self.subTest(str(point)):
                self.kind = each.kind
                self.hit(point)


def load_tests(loader, tests, pattern):
    chosen = unittest.TestSuite()
    for suite in tests:
        chosen.addTests(test for test in suite
                        if type(test) is not All and isinstance(test, Sample) != full())
    return chosen
