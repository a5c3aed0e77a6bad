"""The command `status`: a plug-in for Nagios, Icinga and Checkmk. One line."""

import contextlib
import datetime
import errno
import glob
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import unittest
import unittest.mock

import VmBackup
from tests import DATA
from tests.commands.saved import SavedCase
from tests.tools.support import HOST, LIMIT
from tests.runs.test_store import AS_ANYBODY, DAY, FLOCK, WITHOUT_LOCKS, StoreCase

try:
    import pynag.Utils as pynag
except ImportError:
    pynag = None

STATES = ('OK', 'WARNING', 'CRITICAL', 'UNKNOWN')
# Nagios plug-in guidelines, Plugin Output and Performance Data.
LINE = re.compile(r'VMBACKUP (OK|WARNING|CRITICAL|UNKNOWN) - ([^|\n]+?)(?: \| ([^|\n]+))?\n\Z')
RANGE = r'@?(?:~|-?[0-9.]+)?:?(?:-?[0-9.]+)?'
FIGURE = re.compile(r"(?:'((?:[^'=]|'')+)'|([^\s'=]+))=(-?[0-9]+(?:\.[0-9]+)?)"
                    r'(us|ms|s|%%|B|KB|MB|TB|c)?(?:;(%s)(?:;(%s))?)?(?: +|\Z)' % (RANGE, RANGE))
UNITS = {'vms': '', 'good': '', 'oldest': 's', 'leftovers': '', 'size': 'B'}


class Answer:
    """What the plug-in says, taken apart."""

    def __init__(self, case, output):
        found = LINE.match(output)
        case.assertTrue(found, output)
        case.assertLess(len(output.encode('utf-8')), 4096)
        case.assertFalse(re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]', output), output)
        self.state, self.text, figures = found.groups()
        self.figures, self.limits, at = {}, {}, 0
        while at < len(figures or ''):
            one = FIGURE.match(figures, at)
            case.assertTrue(one, figures[at:])
            label = one.group(1) or one.group(2)
            self.figures[label], self.limits[label] = float(one.group(3)), one.group(5, 6)
            case.assertEqual(UNITS[label], one.group(4) or '')
            at = one.end()
        if pynag:
            theirs = pynag.PluginOutput(output)
            case.assertEqual('VMBACKUP %s - %s' % (self.state, self.text), theirs.summary.strip())
            case.assertFalse(theirs.long_output)
            case.assertEqual(self.figures, {
                each.label: float(each.value) for each in theirs.parsed_perfdata.metrics})
            case.assertEqual([''] * len(self.figures), [
                each.uom.replace(UNITS[each.label], '', 1)
                for each in theirs.parsed_perfdata.metrics])


class StatusCase(SavedCase, StoreCase):
    pool_description = {'vms': [{'name': 'web', 'disks': ['64 KiB']},
                                {'name': 'db', 'disks': ['64 KiB']}]}
    both = ('vm-export=web', 'vdi-export=db')

    def prepare(self):
        self.assertEqual(0, self.back_up(*self.both).status)

    def setUp(self):
        super().setUp()
        self.run_config = self.config(*self.both)
        name = VmBackup.run_name(self.run_config)
        self.last, self.lock = self.at(self.backups, name + '.json'), self.at(
            self.backups, '.locks', name + '.lock')
        for place, path in ((self.backups + '/.run-*', self.last),     # of the prepared case
                            (self.backups + '/.locks/.run-*', self.lock)):
            for found in glob.glob(place):
                os.rename(found, path)

    def check(self, state, *words, apart=False, **environ):
        """What `status` answers, which has to be in that state: in this process, which is quicker,
        or in one of its own."""
        if apart or environ or state == 'UNKNOWN':
            status, output = self.vmbackup('status', *words, **environ)
            found = Answer(self, output)
        else:
            found, status = self.here(*words)
        self.assertEqual((state, STATES.index(state)), (found.state, status), found.text)
        if state == 'UNKNOWN':
            self.assertEqual({}, found.figures)
        return found

    def here(self, *words):
        stream = io.BytesIO()
        status = VmBackup.perform(['status', *words], '', VmBackup.Console(stream))
        return Answer(self, stream.getvalue().decode('utf-8')), status

    def aged(self, vm, hours, number=-1, told=()):
        """Let a backup of a VM have begun so many hours ago, and its manifest tell this."""
        path = self.dated(vm)[number] + '/backup.json'
        manifest = json.loads(self.read(path))
        manifest.update(told, started=VmBackup.iso(
            datetime.datetime.now() - datetime.timedelta(hours=hours)))
        self.put_file(path, json.dumps(manifest))

    def older_web(self, hours):
        shutil.copytree(self.dated('web')[0], os.path.join(self.backups, 'web', DAY % 1))
        self.aged('web', hours, 0)
        self.aged('web', 0, told={'number': 2})

    def last_run(self, hours, result='', **fields):
        """Let the last run have begun so many hours ago, and ended so, if it has."""
        when = VmBackup.iso(datetime.datetime.now() - datetime.timedelta(hours=hours))
        self.put_file(self.last, json.dumps(dict(dict(
            begun=when, host=HOST, process='1 1', ended=when if result else '', result=result),
            **fields)))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.status_log)


class TheBackups(StatusCase):
    def test_all_is_well_after_a_run(self):
        found = self.check('OK', self.run_config, apart=True)
        self.assertRegex(found.text, r'^2 of 2 VMs have a good backup within 26h; last run, of '
                         r'\d{4}-\d\d-\d\d \d\d:\d\d: SUCCESS S:2 W:0 E:0$')
        sizes = [os.path.getsize(self.dated(vm)[0] + '/' + file)
                 for vm, file in (('web', 'web.xva'), ('db', 'db.raw'))]
        self.assertLess(found.figures.pop('oldest'), LIMIT)
        self.assertEqual({'vms': 2, 'good': 2, 'leftovers': 0, 'size': sum(sizes)}, found.figures)
        self.assertEqual(('', str(26 * 3600)), found.limits['oldest'])

    def test_one_that_is_too_old_is_critical(self):
        self.aged('db', 25)
        found = self.check('OK', self.run_config)
        self.assertAlmostEqual(25 * 3600, found.figures['oldest'], delta=LIMIT)
        self.aged('db', 27)
        found = self.check('CRITICAL', self.run_config)
        self.assertRegex(found.text, r'^no good backup within 26h: db \(27h\); 1 of 2 VMs ')
        self.assertEqual((2, 1), (found.figures['vms'], found.figures['good']))
        self.assertAlmostEqual(27 * 3600, found.figures['oldest'], delta=LIMIT)
        for max_age, state, seconds in (
                ('28h', 'OK', 100800), ('2d', 'OK', 172800), ('1621m', 'OK', 97260),
                ('1619m', 'CRITICAL', 97140), ('1d', 'CRITICAL', 86400)):
            found = self.check(state, self.run_config, 'max_age=' + max_age)
            self.assertEqual(('', str(seconds)), found.limits['oldest'])
            self.assertIn(' within %s' % max_age, found.text)

    def test_it_is_the_newest_that_counts(self):
        self.older_web(100)
        self.assertEqual(2, self.check('OK', self.run_config).figures['good'])
        self.aged('web', 100)
        self.assertIn('web (4d)', self.check('CRITICAL', self.run_config).text)

    def test_a_vm_without_any_is_critical_and_has_no_age(self):
        found = self.check('CRITICAL', self.config('vm-export=web', 'vdi-export=db',
                                                   'vm-export=gone', 'vm-export=empty'))
        self.assertIn('within 26h: empty (none), gone (none); 2 of 4 VMs', found.text)
        self.assertEqual((4, 2), (found.figures['vms'], found.figures['good']))
        os.unlink(self.dated('web')[0] + '/success')
        found = self.check('CRITICAL', self.config('vm-export=web', 'vdi-export=db'))
        self.assertIn('26h: web (none); 1 of 2', found.text)
        shutil.rmtree(self.backups)
        os.mkdir(self.backups)
        found = self.check('CRITICAL', self.config('vm-export=.*x', 'vm-export=gone'))
        self.assertEqual({'vms': 1, 'good': 0, 'leftovers': 0, 'size': 0}, found.figures)
        found = self.check('CRITICAL', self.config('vm-export=.*'))
        self.assertIn('no good backup within 26h: of any VM', found.text)

    def test_one_that_was_found_damaged_later_does_not_count(self):
        self.older_web(50)
        os.truncate(self.dated('web')[-1] + '/web.xva', 3000)
        self.check('OK', self.run_config)
        self.assertEqual(2, self.vmbackup('verify', self.run_config).status)
        self.assertIn('web (2d)', self.check('CRITICAL', self.run_config).text)
        self.assertIn('the newest backup of web is damaged',
                      self.check('WARNING', self.run_config, 'max_age=3d').text)

    def test_vms_are_those_that_the_rules_choose(self):
        self.aged('db', 99)
        self.assertIn('db', self.check('CRITICAL', self.run_config).text)
        self.assertEqual(1, self.check('OK', self.config('vm-export=w.*')).figures['vms'])
        self.assertEqual(1, self.check('OK', self.config(
            'vm-export=.*', 'exclude=db')).figures['vms'])
        self.assertEqual(2, self.check('CRITICAL', self.config('vm-export=.*')).figures['vms'])
        found = self.check('WARNING', self.config('vm-export=web', 'vm-export=nothing.*'))
        self.assertIn('no backup found: vm-export=nothing.*', found.text)

    def test_a_renamed_backup_counts_and_directories_of_others_do_not(self):
        config = self.config('vm-export=.*')
        os.rename(self.dated('web')[0], self.backups + '/web/KEEP')
        for name in ('logs/old', 'METADATA_host'):
            os.makedirs(os.path.join(self.backups, name))
        self.assertEqual(2, self.check('OK', config).figures['vms'])

    def test_one_that_is_chosen_by_uuid_may_be_renamed(self):
        uuid = self.uuid_of('web')
        config = self.config('vm-export=uuid:' + uuid)
        self.xe('vm-param-set', 'uuid=' + uuid, 'name-label=a new name')
        self.before = self.contents()
        self.fault('vm-export', 'refuse', nth=2, error=['INTERNAL_ERROR', 'x'])
        self.command(2, 'password', config)
        self.assertEqual(1, self.check('WARNING', config).figures['good'])
        self.assertEqual(0, self.vmbackup('password', config).status)
        self.aged('web', 48)
        found = self.check('OK', config)
        self.assertEqual((1, 1), (found.figures['vms'], found.figures['good']))
        self.aged('a new name', 47)
        self.assertIn(': a new name (47h)', self.check('CRITICAL', config).text)

    def test_backups_of_3_25_have_the_time_of_their_names(self):
        when = datetime.datetime.now() - datetime.timedelta(hours=3)
        shutil.rmtree(self.backups + '/web')
        name = VmBackup.dated(VmBackup.DEFAULT_PATTERN, when)
        self.made('web', name, size=77)
        os.unlink(self.last)               # 3.25 kept none
        os.unlink(self.status_log)
        found = self.check('OK', self.config('vm-export=web'))
        self.assertAlmostEqual(3 * 3600, found.figures['oldest'], delta=LIMIT)
        self.assertEqual(77, found.figures['size'])
        self.assertEqual('1 of 1 VMs have a good backup within 26h', found.text)

    def test_one_of_the_future_proves_nothing(self):
        config = self.config('vm-export=web')
        self.aged('web', -23)
        self.assertEqual(0, self.check('OK', config).figures['oldest'])
        self.aged('web', -30)
        self.assertIn('web (time unknown)', self.check('CRITICAL', config).text)


class TheRun(StatusCase):
    both = ('vm-export=web',)

    def test_without_an_end_one_goes_on_if_its_process_does_and_else_was_interrupted(self):
        own = VmBackup.process(str(os.getppid()))      # of another process than the check
        broken = r'^the last run, of 20\S+ \S+, was interrupted;'
        for hours, state, text, process in (
                (1, 'OK', '; running since 20', own), (1, 'WARNING', broken, '1 1'),
                (27, 'CRITICAL', '^running since', own), (27, 'CRITICAL', broken, '1 1')):
            with self.subTest(text, hours=hours):
                self.last_run(hours, process=process)
                self.assertRegex(self.check(state, self.run_config).text, text)

    def running(self):
        self.sim.pool.journal = []
        self.sim.pool.faults.clear()
        self.fault('vm-export', 'hang', nth=2)
        return self.start_until('vm-export', 2, 'password', self.run_config)

    def test_a_run_that_is_at_work_now_also_where_the_share_cannot_lock(self):
        for prelude in ('', WITHOUT_LOCKS % (FLOCK[platform.machine()], errno.ENOLCK)):
            with self.subTest(prelude):
                self.prelude = prelude
                child = self.running()
                found = self.check('OK', self.run_config, apart=True)
                self.assertIn('; running since ', found.text)
                self.signalled(child)
                self.assertRegex(self.check('WARNING', self.run_config, apart=True).text,
                                 r'^last run, of .*: ERROR S:0 W:0 E:1; .*: web \(INTERRUPTED')
                self.sim.pool.faults.clear()

    def test_a_run_that_was_killed_is_told_as_is_what_it_left(self):
        for prelude in ('', WITHOUT_LOCKS % (FLOCK[platform.machine()], errno.ENOLCK)):
            with self.subTest(prelude):
                self.prelude = prelude
                child = self.running()
                child.kill()
                self.finish(child)
                found = self.check('WARNING', self.run_config, apart=True)
                self.assertRegex(found.text, '^the last run, of .*, was interrupted; left over: ')
                self.assertIn('%s/snapshot.json (the next run in its pool settles that or says '
                              'what to do)' % self.dated('web')[-1], found.text)
                self.assertEqual(1, found.figures['leftovers'])
                os.unlink(self.status_log)
                self.check('WARNING', self.run_config)
                self.sim.pool.faults.clear()
                self.sim.pool.tables['session'].clear()
                self.assertEqual(0, self.vmbackup('password', self.run_config).status)
                self.assertEqual(0, self.check('OK', self.run_config).figures['leftovers'])

    def test_one_beside_another_of_the_same_config_leaves_it_its_record(self):
        child = self.running()
        before = self.read(self.last)
        done = self.command(2, 'password', self.run_config)
        self.assertIn('***NOTE - this run is not recorded in backup_dir: locked by another run '
                      '(see lock_wait)', done.lines)
        self.assertEqual(before, self.read(self.last))
        self.assertIn('; running since ', self.check('OK', self.run_config).text)
        self.signalled(child)

    def test_each_config_and_host_has_a_record_of_its_own_beside_the_same_status_log(self):
        other = self.put_file('other.cfg', self.read(self.run_config) + 'vm-export=gone\n')
        self.prelude = ("import os\nreal = os.uname()\n"
                        "os.uname = lambda: os.uname_result((real[0], 'xen2') + tuple(real)[2:])\n")
        self.assertEqual(2, self.vmbackup('password', self.run_config, 'compress=bad').status)
        self.command(2, 'password', other)
        self.prelude = ''
        self.command(2, 'password', other)
        names = glob.glob(self.backups + '/.run-*')
        self.assertEqual(3, len(names), names)
        self.assertIn('SUCCESS S:1 W:0 E:0', self.check('OK', self.run_config).text)
        self.assertIn('failed in it: gone (VM-NOT-FOUND)', self.check('CRITICAL', other).text)

    @unittest.skipUnless(os.path.exists('/usr/sbin/logrotate'), 'no logrotate here')
    def test_logrotate_of_any_kind_leaves_the_record(self):
        for kind in ('create', 'nocreate', 'copytruncate', 'compress'):
            for moment in ('after a run', 'in its midst'):
                with self.subTest(kind, moment=moment):
                    rotation = self.put_file('rotation', '%s {\nrotate 9\nmissingok\n%s\n}\n' % (
                        self.status_log, kind))
                    if moment == 'in its midst':
                        child = self.running()
                    subprocess.check_call(['/usr/sbin/logrotate', '-fs', self.at('at'), rotation])
                    if moment == 'after a run':
                        self.assertRegex(self.check('OK', self.run_config).text,
                                         'last run, of .*: SUCCESS S:1 W:0 E:0$')
                        continue
                    self.assertIn('; running since', self.check('OK', self.run_config).text)
                    self.signalled(child)
                    self.assertRegex(self.check('WARNING', self.run_config).text,
                                     r'^last run, of .*: ERROR S:0 W:0 E:1; .*: web \(INTERRUPTED')
                    self.sim.pool.faults.clear()
                    self.assertEqual(0, self.vmbackup('password', self.run_config).status)

    def test_a_newer_status_log_counts_of_3_25_too(self):
        with open(os.path.join(DATA, 'transcripts-3.25', '05-export-fails.txt')) as stream:
            recorded = re.search('## status.log\n((?:YYYY.*\n)*)', stream.read()).group(1)
        failed = r'^last run, of %s \S+: ERROR S:1 W:0 E:1; .*; failed in it: web1 \(VM-EXPORT-FAIL'
        begun = recorded.splitlines(True)[0]
        for lines, state, text in (
                (recorded, 'WARNING', failed), (begun + recorded, 'WARNING', failed),
                (recorded.replace(begun, ''), 'WARNING', failed),      # it was rotated
                (recorded + begun, 'WARNING', '^the last run, of %s .{5}, was interrupted;'),
                (recorded.replace('ERROR', 'SUCCESS'), 'OK', 'last run, of %s .{5}: SUCCESS S:1'),
                (recorded.replace(',vm,', ',another,'), 'OK', None), ('', 'OK', None),
                ('YYYY/MM/DD HH:MM:SS,vm-export,vm,begin,x,vmbackup.py,vm,begin\n', 'OK', None)):
            for hours in (1, None):
                with self.subTest(lines, hours=hours):
                    when = datetime.datetime.now() - datetime.timedelta(hours=2)
                    self.last_run(3, 'SUCCESS S:9 W:0 E:0')
                    if hours is None:
                        os.unlink(self.last)
                    self.put_file(self.status_log, lines.replace(',vm,', ',%s,' % HOST).replace(
                        'YYYY/MM/DD HH:MM:SS', '{:%Y/%m/%d %H:%M:%S}'.format(when)))
                    found = self.check(state, self.run_config).text
                    if text:
                        self.assertRegex(found, text % '{:%Y-%m-%d}'.format(when))
                    else:
                        self.assertEqual(hours is not None, 'SUCCESS S:9' in found)
                    self.last_run(1, 'SUCCESS S:9 W:0 E:0')
                    self.put_file(self.status_log, lines)
                    self.assertIn('SUCCESS S:9', self.check('OK', self.run_config).text)

    def test_a_night_without_the_share_is_seen_in_the_status_log(self):
        os.rename(self.backups, self.backups + '-away')
        self.command(2, 'password', self.run_config)
        os.rename(self.backups + '-away', self.backups)
        self.assertRegex(self.check('WARNING', self.run_config).text,
                         '^last run, of .*: ERROR S:0 W:0 E:1;')

    def test_a_record_that_cannot_be_written_is_told_and_the_run_goes_on(self):
        os.unlink(self.last)
        os.mkdir(self.last)
        done = self.command(0, 'password', self.run_config)
        self.assertIn('***NOTE - this run is not recorded in backup_dir: cannot access '
                      + self.last, done.output)
        os.rmdir(self.last)
        child = self.running()
        os.unlink(self.last)
        os.mkdir(self.last)
        self.assertIn('***WARNING - the end of this run is not recorded: ',
                      self.signalled(child).output)

    def test_one_that_ended_with_an_error_is_a_warning_with_its_counts_and_vms(self):
        config = self.config('vm-export=web', 'vm-export=gone away')
        self.assertEqual(2, self.vmbackup('password', config).status)
        text = self.check('WARNING', self.config('vm-export=web')).text
        self.assertRegex(text, r'^last run, of .{16}: ERROR S:1 W:0 E:1; 1 of 1 .*; '
                         r'failed in it: gone away \(VM-NOT-FOUND\)$')

    def test_its_record_is_found_under_any_locale_and_as_any_share_spells_it(self):
        config = self.put_file('每天夜里备份所有服务器.cfg', self.read(self.config(
            'vm-export=web', status_log='/dev/null')))
        self.assertEqual(0, self.vmbackup('password', config, LC_ALL='C').status)
        self.assertIn('last run, of ', self.check('OK', config, LC_ALL='C.UTF-8').text)
        self.assertRegex(VmBackup.run_name(config), r'\A\.run-[a-z0-9._-]+-_\.cfg-[0-9a-f]{8}\Z')

    def test_warnings_and_skipped_runs_are_said(self):
        for hours, state, text, result in (
                (1, 'OK', r': WARNING S:1 W:1 E:0$', 'WARNING S:1 W:1 E:0'),
                (1, 'OK', r': SKIPPED S:0 W:0 E:0$', 'SKIPPED S:0 W:0 E:0'),
                (30, 'CRITICAL', r'^last run, of 20\S+ \S+: ERROR S:0 W:0 E:1;',
                 'ERROR S:0 W:0 E:1')):
            with self.subTest(text):
                self.last_run(hours, result)
                self.assertRegex(self.check(state, self.run_config).text, text)

    def test_without_a_record_of_it_nothing_is_said_and_one_that_cannot_be_read_is_a_warning(self):
        damaged = 'the record of a run in backup_dir is damaged (delete .run-*.json there)'
        contents = [b'', b'\0' * 100, b'\xff\n' * 100, b'[' * 10000, b'{}', b'[]', b'null']
        for fields in (dict(process=1), dict(failed=3), dict(failed=['x']), dict(result=None),
                       dict(begun='2026-01-01'), dict(warnings=[])):
            self.last_run(1, **fields)
            contents.append(self.read_bytes(self.last))
        for content in contents:
            self.put_file(self.last, content)
            self.assertIn(damaged, self.check('WARNING', self.run_config).text)
        self.assertEqual(0, self.vmbackup('password', self.run_config).status)
        self.last_run(1, 'SUCCESS', more=1)            # as a later release may write it
        self.assertIn(': SUCCESS', self.check('OK', self.run_config).text)
        os.rename(self.last, self.at('copy'))
        self.assertNotIn('run', self.check('OK', self.run_config).text)
        for make in (lambda _, path: os.mkdir(path), lambda _, path: os.mkfifo(path),
                     os.symlink, os.link):             # which somebody else may have made
            make(self.at('copy'), self.last)
            self.assertIn(self.last, self.check('WARNING', self.run_config).text)
            (os.rmdir if os.path.isdir(self.last) else os.unlink)(self.last)


class LeftOver(StatusCase):
    both = ('vm-export=web',)

    def setUp(self):
        super().setUp()
        self.failed = self.old_backup('db', DAY % 1)

    def left(self, state, number):
        found = self.check(state, self.run_config, apart=True)
        self.assertEqual(number, found.figures['leftovers'], found.text)
        return found.text

    def snapshot(self, **fields):
        self.record(self.failed, self.disk_of('db', '0'), **fields)

    def restore(self, **fields):
        record = dict(dict(mark='a' * 32, pool='x', name='db', since=VmBackup.utc(-60),
                           host=HOST, process='1 1'), **fields)
        path = self.backups + '/.restore-%s.json' % record['mark']
        self.put_file(path, json.dumps(record))
        return path

    def test_a_process_that_is_gone_left_something_and_one_that_is_there_did_not(self):
        own = VmBackup.process(str(os.getpid()))
        self.snapshot(host=HOST)
        path = self.restore()
        text = self.left('WARNING', 2)
        self.assertIn('left over: %s/snapshot.json, %s (the next run in its pool settles '
                      'that or says what to do); ' % (self.failed, path), text)
        self.assertEqual(0, self.vmbackup('password', self.config('vm-export=web')).status)
        path = self.restore()
        self.assertIn('left over: %s (the next run in its pool settles that or says what to do); '
                      % path, self.left('WARNING', 1))
        self.snapshot(host=HOST)
        self.restore(process=own)
        self.left('WARNING', 1)
        self.snapshot(host=HOST, process=own)
        self.left('OK', 0)

    def test_of_another_host_the_age_decides(self):
        for hours, number in ((25, 0), (27, 2)):
            self.snapshot(host='other', since=VmBackup.utc(-hours * 3600))
            self.restore(host='other', since=VmBackup.utc(-hours * 3600))
            self.left('WARNING' if number else 'OK', number)
        self.snapshot(host='other', since='20010101T00:00:00Z')
        self.restore(host='other', since='yesterday')
        self.left('WARNING', 2)

    def test_damaged_records_are_left_and_an_empty_one_of_a_restore_is_not(self):
        for content in (b'', b'{}', b'\xff', b'[' * 10000):
            self.put_file(self.failed + '/snapshot.json', content)
            self.left('WARNING', 1)
        os.unlink(self.failed + '/snapshot.json')
        os.mkfifo(self.failed + '/snapshot.json')
        path = self.restore()
        for content, number in ((b'', 1), (b'{}', 2)):
            self.put_file(path, content)
            self.left('WARNING', number)


class OneLine(StatusCase):
    both = ('vm-export=web',)

    def test_hostile_names_break_neither_line_nor_figures(self):
        shutil.rmtree(self.backups + '/web')
        names = ["a|b=1s 'x'=2", 'two\nlines', "quo'te\"s", 'bell\x07\x1b[2J', 'c1\x9b2J\x85',
                 'büro', '日本語サーバー' * 30, '$(reboot)`;&', '\u2028\u202e', '...', '%41', "'", '|',
                 ' ']
        config = self.config(*['vm-export=x%d' % number for number in range(5)] + ['vm-export=.*'])
        self.last_run(1, 'ERROR', failed=VmBackup.abbreviate([name + ' (X)' for name in names]))
        for name in names:
            os.makedirs(os.path.join(self.backups, VmBackup.path_part(name), DAY % 1))
        os.makedirs(os.path.join(os.fsencode(self.backups), b'b\xfcro', (DAY % 1).encode('ascii')))
        for environ in ({}, dict(LANG='C', LC_ALL='C')):
            found = self.check('CRITICAL', config, **environ)
            self.assertEqual(len(names) + 6, found.figures['vms'])
            self.assertIn('and %d more; ' % (len(names) - 4), found.text)
            self.assertIn('and 4 more', found.text)
        self.assertIn('büro (none)', self.check('CRITICAL', self.config('vm-export=büro')).text)
        self.assertIn('a\\x7cb=1s', self.check('CRITICAL', self.config('vm-export=a.*')).text)

    def test_the_line_is_bounded(self):
        deep = os.path.join(self.backups, 'ü' * 100)
        for number in range(40):
            path = os.path.join(deep, DAY % 1 + '/' if not number else 'k%02d' % number + 'x' * 200)
            os.makedirs(path)
            self.put_file(path + '/snapshot.json')
        self.check('CRITICAL', self.config('vm-export=.*'))
        self.assertIn('語' * 1200, VmBackup.plugin_line(0, '語' * 5000, 'vms=1'))
        line = VmBackup.plugin_line(0, 'x' * 5000, 'x' * 180)
        self.assertLess(len(line), 4096)

    def test_bad_words_are_unknown(self):
        for words, text in (
                ((), 'usage: VmBackup.py status <config-file> [options]'),
                (('',), 'usage: '),
                ((self.run_config, 'max_age'), 'unknown option: max_age'),
                ((self.run_config, 'max_age='), 'invalid value: max_age='),
                ((self.run_config, 'age=3h'), 'unknown option: age= (see'),
                ((self.run_config, 'preview'), 'preview is a command and '),
                ((self.run_config, '--a|b\nc'), 'unknown option: --a\\x7cb\\nc'),
                (('/nosuch',), 'cannot read config file /nosuch: No such file'),
                ((self.backups,), 'cannot read config file ' + self.backups),
                ((sys.executable,), 'not a config file')):
            with self.subTest(text):
                self.assertIn(text, self.check('UNKNOWN', *words).text)
        for max_age in ('26', '0h', '1w', '-1h', '1.5h', 'h', '٣h', '26 h', '99999999d', '26h\n'):
            found, status = self.here(self.run_config, 'max_age=' + max_age)
            self.assertEqual((3, 'UNKNOWN'), (status, found.state))
            self.assertIn('max_age invalid (expected 90m, 26h or 2d) -> ', found.text)

    def test_a_config_that_cannot_be_used_is_unknown_and_other_keys_do_not_matter(self):
        for keys, text in (
                (dict(max_backups='many'), 'config max_backups out of range -> many ('),
                ({'vm-export': 'd[b'}, 'invalid regex or retention: vm-export=d[b'),
                ({'vm-export': 'web:x'}, 'invalid regex or retention: vm-export=web:x')):
            with self.subTest(text):
                found = self.check('UNKNOWN', self.config(**keys))
                self.assertIn(text, found.text)
                self.assertNotRegex(found.text, r'^(\*|ERROR)')
        config = self.config('vm-export')
        self.assertIn('not a key=value line: vm-export', self.check('UNKNOWN', config).text)
        self.put_file(config, self.read_bytes(config) + b'caf\xe9')
        self.assertIn('is not UTF-8 text', self.check('UNKNOWN', config).text)
        self.check('OK', self.config('vm-export=web', other='x'))

    def test_a_share_that_hangs_is_unknown_in_time(self):
        self.script = self.changed_script(STATUS_TIMEOUT=0.2)
        for name in ('Store.check', 'Backup.has_marker'):
            self.prelude = ('import time, VmBackup\n'
                            'VmBackup.%s = lambda *_: time.sleep(%d)\n' % (name, 9 * LIMIT))
            self.assertEqual('backup_dir did not respond within 0.2 seconds',
                             self.check('UNKNOWN', self.run_config).text)

    def test_what_may_not_be_read_is_unknown(self):
        self.prelude = AS_ANYBODY
        os.chmod(self.backups, 0)
        self.addCleanup(os.chmod, self.backups, 0o700)
        self.assertIn('backup_dir is not readable', self.check('UNKNOWN', self.run_config).text)
        os.chmod(self.backups, 0o500)
        self.assertIn('backup_dir is not writable -> ', self.check('UNKNOWN', self.run_config).text)

    def test_a_bug_and_a_signal_are_unknown(self):
        for error, text in ((KeyError('x|\n'), 'a bug in VmBackup.py, please report it: KeyError'),
                            (ValueError('y'), 'please report it: ValueError'),
                            (VmBackup.Interrupted(15), 'ended by signal 15')):
            with unittest.mock.patch.object(VmBackup, 'bounded', side_effect=error):
                found, status = self.here(self.run_config)
            self.assertEqual((3, 'UNKNOWN'), (status, found.state))
            self.assertIn(text, found.text)

    def test_a_closed_output_is_no_error(self):
        command = 'exec "$0" "$1" status "$2" >&-; exit 9'
        done = subprocess.run(['sh', '-c', command, sys.executable, self.script, self.run_config],
                              stderr=subprocess.PIPE, env=self.environ(), timeout=LIMIT)
        self.assertEqual((0, b''), (done.returncode, done.stderr))


class WhatItCosts(StatusCase):
    def test_a_run_that_begins_meanwhile_finds_nothing_locked(self):
        files, calls = self.tree(), self.sim.calls()
        self.sim.down()
        with unittest.mock.patch('fcntl.flock', side_effect=AssertionError('locked')):
            self.check('OK', self.run_config)
        self.check('OK', self.run_config, apart=True)
        self.assertEqual((files, calls), (self.tree(), self.sim.calls()))

    def test_each_manifest_is_read_once(self):
        shutil.rmtree(self.backups)
        for vm in ('web', 'db', 'kept'):
            for number in range(1, 9):
                self.made(vm, DAY % number if vm != 'kept' else 'KEEP-%d' % number, number)
        os.mkdir(self.backups + '/foreign')
        read, real = [], VmBackup.load

        def reading(path, *limits):
            read.append(path)
            return real(path, *limits)
        with unittest.mock.patch.object(VmBackup, 'load', reading):
            self.here(self.config('vm-export=.*'))
        manifests = [path for path in read if path.endswith('backup.json')]
        self.assertEqual((24, 24), (len(manifests), len(set(manifests))))
