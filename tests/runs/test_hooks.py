"""Hooks: a program that is run at each phase of a run, what it is told, and what it can do."""

import contextlib
import fcntl
import os
import signal
import sys

import VmBackup
from tests.papers.test_readme import blocks
from tests.tools.smtp_sink import SmtpSink
from tests.tools.support import HOST, SMALL, PoolCase

# It notes its phase and the VMBACKUP_ variables in one write, then does as it is told.
HOOK = '''env -i -0 PHASE="$1" %s >>%s
case $1 in
%s
esac
'''
FAILURES = {'exit 1': 'exit status 1', 'exit 255': 'exit status 255',
            'kill -9 $$': 'exit status -9'}
PHASES = ('job-init', 'job-start', 'backup-start', 'backup-end', 'job-end', 'log-end')
STUBBORN = 'trap "" TERM; sleep 300 & echo child $!; : >stubborn; wait'
UNTIL = 'until [ -e go-%s ]; do sleep 0.02; done; echo to the end'


def lives(pid):
    """Whether a process is there, and no zombie."""
    with contextlib.suppress(OSError), open('/proc/%d/stat' % pid) as stream:
        return stream.read().rpartition(')')[2].split()[0] not in ('Z', 'X')
    return False


class HookCase(PoolCase):
    pool_description = SMALL

    def setUp(self):
        super().setUp()
        self.notes = self.at('notes')

    def hook(self, **answers):
        """Write a hook that does something, in sh, at phases; return its path."""
        return self.program('my hook', HOOK % (
            ' '.join('{0}="$VMBACKUP_{0}"'.format(name) for name in VmBackup.VARIABLES),
            self.notes, '\n'.join('%s) %s;;' % (phase.replace('_', '-'), answer)
                                  for phase, answer in answers.items())))

    def hooked(self, *lines, **answers):
        """The path of a config with such a hook; of db, unless lines say otherwise."""
        return self.config(*(lines or ('vm-export=db',)), hook=self.hook(**answers))

    def run_hooked(self, *lines, **answers):
        return self.vmbackup('password', self.hooked(*lines, **answers))

    def noted(self):
        if not os.path.exists(self.notes):
            return []
        words = [word.partition('=')[::2] for word in self.read(self.notes).split('\0')]
        count = len(VmBackup.VARIABLES) + 1
        whole = [dict(words[place:place + count]) for place in range(0, len(words) - count, count)]
        return [(known.pop('PHASE'), known) for known in whole]

    def phases(self):
        return [(phase + ' ' + known['VM']).strip() for phase, known in self.noted()]

    def assert_phases(self, *wanted):
        self.assertEqual(list(wanted), self.phases())

    def known_at(self, wanted):
        """The variables at a phase that was run once, without those that were empty."""
        known, = [known for phase, known in self.noted() if phase == wanted]
        return {name: value for name, value in known.items() if value}

    def assert_ended(self, done, status, result):
        """A run's exit status, and what the status log says of it."""
        self.assert_ends(status, done)
        self.assertEqual('vmbackup.py,end,' + result, self.status()[-1])

    def ends_hooked(self, status, result, *lines, **answers):
        """A run with such a hook, which ends so."""
        done = self.run_hooked(*lines, **answers)
        self.assert_ended(done, status, result)
        return done

    def start_hooked(self, phase, *lines, **answers):
        """Start a run; return its process once the hook is at a phase."""
        child = self.start('password', self.hooked(*lines, **answers))
        self.wait_for(lambda: phase in [noted for noted, _ in self.noted()])
        return child

    @staticmethod
    def child_in(done):
        return int([line for line in done.lines if ': child ' in line][0].split()[-1])

    def go_on(self, phase):
        self.put_file('go-' + phase)


class Phases(HookCase):
    def test_it_is_told_what_is_known_at_the_phase(self):
        report = self.at('report.json')
        done = self.ends(0, 'vm-export=db', report_file=report,
                         hook=self.hook(backup_end='ls "$VMBACKUP_TARGET"'))
        for name in ('db.xva', 'success'):             # the backup counts
            self.assertIn('hook backup-end: ' + name, done.lines)
        run = {'BACKUP_DIR': self.backups, 'REPORT': report}
        vm = dict(run, VM='db', UUID=self.uuid_of('db'), METHOD='vm-export')
        path = self.newest('db', 'db.xva')
        for phase, known in (
                ('job-init', run), ('job-start', run), ('backup-start', vm),
                ('backup-end', dict(vm, TARGET=os.path.dirname(path), FILE=path,
                                    SIZE=str(os.path.getsize(path)), STATUS='SUCCESS')),
                ('job-end', dict(run, STATUS='SUCCESS')), ('log-end', dict(run, STATUS='SUCCESS'))):
            self.assertEqual(known, self.known_at(phase))

    def test_what_failed_is_told_with_its_token(self):
        self.fault('vm-snapshot', 'refuse', error=['SR_FULL', '1', '2'], times=0)
        self.ends_hooked(2, 'ERROR,S:0 W:0 E:1')
        self.assert_phases('job-init', 'job-start', 'backup-start db', 'backup-abort db', 'job-end',
                           'log-end')
        place, = self.dated('db')
        self.assertEqual({'VM': 'db', 'UUID': self.uuid_of('db'), 'METHOD': 'vm-export',
                          'TARGET': place, 'BACKUP_DIR': self.backups,
                          'STATUS': 'SNAPSHOT-FAIL'}, self.known_at('backup-abort'))
        self.assertEqual('ERROR', self.known_at('job-end')['STATUS'])
        self.assertEqual('ERROR', self.known_at('log-end')['STATUS'])

    def test_its_variables_are_always_set_its_argument_is_the_phase_and_its_input_is_empty(self):
        hook = self.program('hook', 'set -eu\nread line || echo "%s" "$OTHER" "$XE_EXTRA_ARGS" $# '
                            '"$1"\n' % ' '.join('$VMBACKUP_' + name for name in VmBackup.VARIABLES))
        done = self.back_up('vm-export=db', hook=hook, OTHER='other', XE_EXTRA_ARGS='debug=1')
        self.assert_ended(done, 0, 'SUCCESS,S:1 W:0 E:0')
        said = [line for line in done.lines if line.startswith('hook ')]
        self.assertEqual(len(PHASES), len(said), done.output)
        for phase, line in zip(PHASES, said):
            self.assertTrue(line.startswith('hook %s: ' % phase), line)
            self.assertTrue(line.endswith(' other debug=1 1 ' + phase), line)

    def test_its_output_is_in_the_log_line_by_line_as_it_comes(self):
        child = self.start('password', self.hooked(
            job_start="printf 'one\\ntwo\\n'; " + UNTIL % 'job-start'))
        for line in child.stdout:
            if b'hook job-start: two' in line:
                self.go_on('job-start')
        self.assertTrue(os.path.exists(self.at('go-job-start')))
        self.assert_ends(0, self.finish(child))
        done = self.run_hooked(job_start=(
            r"printf 'one\ntwo\n'; printf 'three\r\n' >&2; printf '\377 \033[1m\n\nno end'"))
        begin = 'hook job-start: '
        self.assertEqual([begin + text for text in (
            'one', 'two', 'three', '\ufffd \\x1b[1m', '', 'no end')],
                         [line for line in done.lines if line.startswith(begin)])

    def test_one_that_others_may_change_is_not_run_and_ends_the_run(self):
        os.chmod(self.hook(), 0o722)
        for options in [], ['preview']:
            config = self.config('vm-export=db', hook=self.at('my hook'))
            done = self.command(2, 'password', config, *options)
            self.assertIn('ERROR: config hook is not safe -> ' + self.at('my hook'), done.output)
        self.assert_phases()
        self.assertEqual([], self.verbs())
        os.chmod(config, 0o666)
        os.chmod(self.at('my hook'), 0o700)
        done = self.command(0, 'password', config)
        self.assertEqual(1, done.output.count('***WARNING - the config %s: others may' % config))

    def test_job_init_comes_before_login_and_status_log_and_can_mount_backup_dir(self):
        os.rmdir(self.backups)
        done = self.run_hooked(
            job_init='mkdir "$VMBACKUP_BACKUP_DIR"; [ ! -e %s ]' % self.status_log)
        self.assert_ended(done, 0, 'SUCCESS,S:1 W:0 E:0')
        self.sim.pool.journal = []
        self.run_hooked(job_init='exit 1')
        self.assertEqual([], self.sim.calls())

    def test_job_end_is_run_before_and_log_end_after_status_log_report_and_mail(self):
        sink = SmtpSink()
        self.addCleanup(sink.stop)
        report = self.at('report.json')
        look = ('grep -q vmbackup.py,%s,end %s && ended="it has ended" || ended="it runs"; '
                'test -e %s && echo "$ended, a report" || echo "$ended"'
                % (HOST, self.status_log, report))
        done = self.ends(
            0, 'vm-export=db', hook=self.hook(job_end=look, log_end=look), report_file=report,
            mail_to='a@example.org', mail_smtp_server='localhost', mail_smtp_port=sink.port)
        self.assertIn('hook job-end: it runs', done.lines)
        self.assertEqual(['mail sent to a@example.org', 'hook log-end: it has ended, a report'],
                         done.lines[-2:])

    def test_the_vm_is_locked_at_its_phases(self):
        tell = ("%s -IS -c 'import fcntl, os; fcntl.flock(open(os.environ["
                '"VMBACKUP_BACKUP_DIR"] + "/.locks/db.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)'
                "' 2>&1 | grep -o BlockingIOError" % sys.executable)
        done = self.run_hooked(backup_start=tell, backup_end=tell)
        for phase in ('start', 'end'):
            self.assertIn('hook backup-%s: BlockingIOError' % phase, done.lines)
        done = self.run_hooked(backup_start='exit 1', backup_abort=tell)
        self.assertIn('hook backup-abort: BlockingIOError', done.lines)

    def test_a_vm_that_another_run_works_on_or_that_is_missing_has_no_phases(self):
        os.mkdir(os.path.join(self.backups, '.locks'))
        with open(os.path.join(self.backups, '.locks', 'db.lock'), 'w') as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            done = self.run_hooked('vm-export=db', 'vm-export=nothing')
        self.assert_ended(done, 2, 'ERROR,S:0 W:0 E:2')
        self.assert_phases('job-init', 'job-start', 'job-end', 'log-end')

    def test_vms_side_by_side_have_theirs_side_by_side(self):
        wait = (': >"at-$VMBACKUP_VM"; tries=0; until [ -e at-web -a -e at-db ]; do '
                'tries=$((tries+1)); [ $tries -lt 3000 ] || exit 9; sleep 0.01; done; echo both')
        done = self.ends_hooked(0, 'SUCCESS,S:2 W:0 E:0', 'vm-export=.*', 'parallel=2',
                                backup_start=wait)
        for name in ('web', 'db'):
            self.assertIn('[%s] hook backup-start: both' % name, done.lines)
            self.assertLess(self.phases().index('backup-start ' + name),
                            self.phases().index('backup-end ' + name))
        self.assertEqual(['job-init', 'job-start'], self.phases()[:2])
        self.assertEqual(['job-end', 'log-end'], self.phases()[-2:])

    def test_names_of_any_kind_arrive_byte_by_byte_under_any_locale(self):
        names = ['a\nb $(touch pwned) "\'`;\\', 'Ünïcode 名前', '-rf * x/../y %s{0}', '~x' * 120]
        self.pool_description = {'vms': [{'name': name, 'disks': ['64 KiB']} for name in names]}
        for environ in ({'LC_ALL': 'C'}, {}):
            with self.subTest(environ):
                self.setUp()
                done = self.vmbackup('password', self.hooked('vm-export=.*'), **environ)
                self.assert_ended(done, 0, 'SUCCESS,S:%d W:0 E:0' % len(names))
                ends = [known for phase, known in self.noted() if phase == 'backup-end']
                self.assertEqual(sorted(names), sorted(known['VM'] for known in ends))
                for known in ends:
                    self.assertEqual(int(known['SIZE']), os.path.getsize(os.fsencode(
                        known['FILE'].encode('utf-8'))))
                    self.assertEqual(known['TARGET'], os.path.dirname(known['FILE']))
                self.assertFalse(os.path.exists(self.at('pwned')))

    def test_a_preview_runs_none(self):
        done = self.command(0, 'password', self.hooked(), 'preview')
        self.assertEqual([], self.noted())
        self.assertIn('  hook              = ' + self.at('my hook'), done.lines)


class Skips(HookCase):
    def test_job_init_skips_the_run_quietly(self):
        sink = SmtpSink()
        self.addCleanup(sink.stop)
        done = self.ends_hooked(0, 'SKIPPED,S:0 W:0 E:0', 'vm-export=db', 'mail_to=a@b',
                                'mail_smtp_server=localhost', 'mail_smtp_port=%d' % sink.port,
                                job_init='exit 75')
        self.assertIn('hook job-init: exit status 75: skipped', done.lines)
        self.assertEqual('VmBackup ended - Skipped - S:0 W:0 E:0', done.lines[-1])
        self.assert_phases('job-init', 'log-end')
        self.assertEqual('SKIPPED', self.known_at('log-end')['STATUS'])
        self.assertEqual(([], [], []), (self.sim.calls(), sink.mails, self.tree()))

    def test_job_start_skips_the_run_and_job_end_ends_what_job_init_began(self):
        self.ends_hooked(0, 'SKIPPED,S:0 W:0 E:0', 'vm-export=db', 'vm-export=missing',
                         'vm-export=nothing.*', job_start='exit 75')
        self.assert_phases('job-init', 'job-start', 'job-end', 'log-end')
        self.assertEqual('SKIPPED', self.known_at('job-end')['STATUS'])
        self.assertEqual(([], []), (self.tree(), self.verbs()))

    def test_backup_start_skips_its_vm_and_no_other(self):
        self.ends_hooked(0, 'SUCCESS,S:1 W:0 E:0', 'vm-export=.*',
                         backup_start='[ "$VMBACKUP_VM" != web ] || exit 75')
        self.assertIn('vm-export,end,SKIPPED web', self.status())
        self.assertEqual({'job-init', 'job-start', 'backup-start web', 'backup-start db',
                          'backup-end db', 'job-end', 'log-end'}, set(self.phases()))
        self.assertEqual(7, len(self.phases()))
        self.assertNotIn('web', self.tree())

    def test_a_failure_beside_it_is_told(self):
        self.ends_hooked(1, 'WARNING,S:0 W:0 E:0', job_start='exit 75', job_end='exit 3')
        self.ends_hooked(1, 'SKIPPED,S:0 W:0 E:0', job_init='exit 75', log_end='exit 3')


class Failures(HookCase):
    def test_job_init_and_job_start_end_the_run(self):
        for number, phase in ((1, 'job_init'), (2, 'job_start')):
            for answer, words in FAILURES.items():
                with self.subTest(phase, answer=answer):
                    self.setUp()
                    done = self.ends_hooked(2, 'ERROR,S:0 W:0 E:1', job_abort='exit 3',
                                            log_end='exit 4', **{phase: answer})
                    for told in ('ERROR hook %s failed: %s' % (PHASES[number - 1], words),
                                 '***WARNING - hook job-abort failed: exit status 3',
                                 '***WARNING - hook log-end failed: exit status 4'):
                        self.assertIn(told, done.lines)
                    self.assert_phases(*PHASES[:number] + ('job-abort', 'log-end'))
                    self.assertEqual('ERROR', self.known_at('job-abort')['STATUS'])
                    self.assertEqual(([], [], number == 1),
                                     (self.verbs(), self.tree(), not self.sim.calls()))

    def test_backup_start_fails_its_vm_and_no_other(self):
        done = self.ends_hooked(2, 'ERROR,S:1 W:0 E:1', 'vdi-export=web', 'vm-export=db',
                                backup_start='[ "$VMBACKUP_VM" != web ] || kill -9 $$')
        self.assertIn('ERROR vdi-export HOOK-FAIL web: hook backup-start failed: exit status -9',
                      done.lines)
        self.assertIn('vdi-export,end,HOOK-FAIL web', self.status())
        self.assert_phases('job-init', 'job-start', 'backup-start web', 'backup-abort web',
                           'backup-start db', 'backup-end db', 'job-end', 'log-end')
        self.assertEqual('HOOK-FAIL', self.known_at('backup-abort')['STATUS'])
        self.assertNotIn('TARGET', self.known_at('backup-abort'))
        self.assertNotIn('vdi-snapshot', self.verbs())

    def test_backup_end_is_a_warning_of_its_vm(self):
        done = self.ends_hooked(1, 'WARNING,S:1 W:1 E:0', 'vm-export=web', 'vm-export=db',
                                backup_end='[ "$VMBACKUP_VM" != db ] || exit 75')
        self.assertIn('***WARNING - db: hook backup-end failed: exit status 75', done.lines)
        self.assertEqual('WARNING', self.known_at('job-end')['STATUS'])
        self.assertTrue(os.path.exists(os.path.join(self.dated('db')[0], 'success')))
        self.assertNotIn('backup-abort db', self.phases())

    def test_backup_abort_is_a_warning_beside_the_error_and_keeps_no_snapshot(self):
        for method, nth in (('vm-export', 2), ('vdi-export', 1)):
            self.fault(method, 'refuse', error=['INTERNAL_ERROR', 'x'], nth=nth)
            done = self.ends_hooked(2, 'ERROR,S:0 W:0 E:1', method + '=db', backup_abort='exit 1')
            self.assertIn('***WARNING - db: hook backup-abort failed: exit status 1', done.output)
            self.assertIn('%s,end,%s-FAIL db' % (method, method.upper()), self.status())
            self.assert_clean()

    def test_job_end_and_log_end_are_warnings(self):
        for phase, status in (('job-end', 'WARNING'), ('log-end', 'SUCCESS')):
            done = self.ends_hooked(1, status + ',S:1 W:0 E:0',
                                    **{phase.replace('-', '_'): 'exit 75'})
            self.assertIn('***WARNING - hook %s failed: exit status 75' % phase, done.lines)
            self.assertEqual(status, self.known_at('log-end')['STATUS'])
            os.unlink(self.notes)

    def test_a_login_that_fails_a_wrong_config_and_a_share_in_trouble_abort_the_job(self):
        for password, line, *more in (
                ('wrong', 'vm-export=db'), ('password', 'max_backups=x'),
                ('password', 'vm-export=missing'), ('password', 'backup_dir=/nosuch'),
                ('password', 'vm-export=db', 'job-start')):
            if more:
                self.script = self.changed_script(WRITE_TEST='missing/')
            self.assert_ended(self.vmbackup(password, self.hooked(line)), 2, 'ERROR,S:0 W:0 E:1')
            self.assert_phases('job-init', *more + ['job-abort', 'log-end'])
            os.unlink(self.notes)

    def test_a_config_that_is_not_understood_runs_none(self):
        for line in ('maxbackups=3', 'nonsense'):
            self.ends_hooked(2, 'ERROR,S:0 W:0 E:1', 'vm-export=db', line)
        self.assertEqual([], self.noted())

    def test_a_hook_that_cannot_be_started_is_told_with_the_reason(self):
        hook = self.program('hook', '#!/nosuch/interpreter\n')
        done = self.back_up('vm-export=db', hook=hook)
        self.assert_ended(done, 2, 'ERROR,S:0 W:0 E:1')
        self.assertIn('ERROR hook job-init failed: cannot start %s: No such file or directory'
                      % hook, done.output)
        self.assertIn('***WARNING - hook job-abort failed: cannot start', done.output)

    def test_a_hook_that_vanishes_in_mid_run_spoils_no_backup(self):
        done = self.ends_hooked(1, 'WARNING,S:0 W:1 E:0', backup_start='rm "$0"')
        self.assertIn('***WARNING - db: hook backup-end failed: cannot start', done.output)

    def test_a_hook_that_deletes_the_backup_spoils_nothing_else(self):
        self.ends_hooked(0, 'SUCCESS,S:2 W:0 E:0', 'vm-export=web', 'vm-export=db',
                         backup_end='rm -r "$VMBACKUP_TARGET"')


class Timeouts(HookCase):
    def test_one_that_does_not_end_is_ended_with_all_that_it_started(self):
        self.script = self.changed_script(REAP_TIMEOUT=0.2)
        for phase, text, status, result in (
                ('job_init', STUBBORN, 2, 'ERROR,S:0 W:0 E:1'),
                ('backup_end', STUBBORN, 1, 'WARNING,S:0 W:1 E:0')):
            with self.subTest((phase, text)):
                done = self.run_hooked('vm-export=db', 'hook_timeout=0.005', **{phase: text})
                self.assert_ended(done, status, result)
                self.assertIn('hook %s failed: still running after 0.3 seconds: '
                              % phase.replace('_', '-'), done.output)
                self.assertFalse(lives(self.child_in(done)))

    def test_what_it_leaves_in_the_background_is_neither_waited_for_nor_ended(self):
        self.script = self.changed_script(LAST_WORDS=0.2)
        done = self.ends_hooked(0, 'SUCCESS,S:1 W:0 E:0', job_init='sleep 300 & echo child $!')
        self.assertTrue(lives(self.child_in(done)))
        os.kill(self.child_in(done), signal.SIGKILL)


class Interruptions(HookCase):
    def test_a_signal_ends_a_hook_that_begins_something(self):
        aborts = {'job-init': [], 'job-start': ['job-start'],
                  'backup-start': ['job-start', 'backup-start db', 'backup-abort db']}
        for (phase, more), signum in zip(aborts.items(), (signal.SIGTERM, signal.SIGINT) * 2):
            with self.subTest((phase, signum)):
                self.setUp()
                child = self.start_hooked(phase, **{phase.replace('-', '_'): 'sleep 300'})
                child.send_signal(signum)
                self.assert_ended(self.finish(child), 128 + signum, 'ERROR,S:0 W:0 E:%d' % (
                    phase == 'backup-start'))
                self.assertEqual(['job-init'] + more + ['job-abort', 'log-end'], self.phases())
                self.assertEqual([], self.verbs())
                self.assert_clean()
        self.assertEqual('INTERRUPTED', self.known_at('backup-abort')['STATUS'])

    def test_a_hook_that_ignores_the_signal_is_ended_too_with_all_that_it_started(self):
        self.script = self.changed_script(REAP_TIMEOUT=0.2)
        child = self.start_hooked('job-start', job_start=STUBBORN)
        self.wait_for(lambda: os.path.exists(self.at('stubborn')))
        child.send_signal(signal.SIGTERM)
        done = self.finish(child)
        self.assert_ended(done, 143, 'ERROR,S:0 W:0 E:0')
        self.assertFalse(lives(self.child_in(done)))

    def test_a_signal_in_mid_export_is_followed_by_the_aborts_which_it_does_not_end(self):
        aborts = ('backup-abort', 'job-abort', 'log-end')
        self.fault('vm-export', 'stall', nth=2)
        child = self.start_until('vm-export', 2, 'password', self.hooked(
            'vm-export=db', 'vm-export=web',
            **{phase.replace('-', '_'): UNTIL % phase for phase in aborts}))
        child.send_signal(signal.SIGTERM)
        for phase in aborts:
            self.wait_for(lambda: phase in [noted for noted, _ in self.noted()])
            self.go_on(phase)
        done = self.finish(child)
        self.assert_ended(done, 143, 'ERROR,S:0 W:0 E:1')
        self.assert_phases('job-init', 'job-start', 'backup-start db', 'backup-abort db',
                           'job-abort', 'log-end')
        self.assertEqual('INTERRUPTED', self.known_at('backup-abort')['STATUS'])
        self.assertEqual('ERROR', self.known_at('job-abort')['STATUS'])
        for phase in aborts:
            self.assertIn('hook %s: to the end' % phase, done.lines)

    def test_a_signal_during_backup_end_lets_it_end_and_the_backup_counts(self):
        child = self.start_hooked('backup-end', 'vm-export=db', 'vm-export=web',
                                  backup_end=UNTIL % 'backup-end')
        child.send_signal(signal.SIGTERM)
        self.go_on('backup-end')
        done = self.finish(child)
        self.assert_ended(done, 143, 'ERROR,S:1 W:0 E:0')
        self.assertIn('hook backup-end: to the end', done.lines)
        self.assert_phases('job-init', 'job-start', 'backup-start db', 'backup-end db', 'job-abort',
                           'log-end')


class Examples(HookCase):
    def example(self, number, **paths):
        found = [block.lines for block in blocks('sh') if block.section == 'Hooks']
        text = '\n'.join(found[number])
        for word, path in paths.items():
            text = text.replace(word, path)
        return self.program('hook', text + '\n')

    def programs(self, **texts):
        os.makedirs(self.at('bin'), exist_ok=True)
        for name, text in texts.items():
            self.program('bin/' + name, text)
        return self.at('bin') + os.pathsep + os.environ['PATH']

    def test_the_one_that_mounts_backs_up_onto_the_share_or_not_at_all(self):
        config = self.config('vm-export=db', hook=self.example(0))
        mark = self.at('mounted')
        path = self.programs(mountpoint='exec test -e %s\n' % mark, umount='rm %s\n' % mark,
                             mount='echo server is away >&2\nexit 32\n')
        done = self.vmbackup('password', config, PATH=path)
        self.assert_ended(done, 0, 'SKIPPED,S:0 W:0 E:0')
        self.assertIn('hook job-init: server is away', done.lines)
        self.programs(mount='echo mounting "$1"\n: > %s\n' % mark)
        done = self.vmbackup('password', config, PATH=path)
        self.assert_ended(done, 0, 'SUCCESS,S:1 W:0 E:0')
        self.assertIn('hook job-init: mounting ' + self.backups, done.lines)
        self.assertFalse(os.path.exists(mark))

    def test_the_one_that_copies_keeps_the_newest_backup(self):
        copies = self.at('copies')
        config = self.config('vm-export=db', hook=self.example(1, **{'/mnt/copies': copies}))
        for _ in range(2):
            done = self.vmbackup('password', config)
            self.assert_ended(done, 0, 'SUCCESS,S:1 W:0 E:0')
            self.assertEqual([self.uuid_of('db')], os.listdir(copies))
            copy = os.path.join(copies, self.uuid_of('db'))
            self.assertEqual(sorted(os.listdir(self.dated('db')[-1])), sorted(os.listdir(copy)))
