"""With `quiet` only what is wrong is printed, and how all ended; the mail has all lines."""

import os
import re
import signal

from tests.commands.archives import WITH_XXH64
from tests.commands.saved import SavedCase
from tests.tools.smtp_sink import SmtpSink
from tests.tools.support import SMALL, PoolCase

REFUSED = dict(do='refuse', error=['INTERNAL_ERROR', 'x'])
SUM = 'VMs: %d good, %d with warnings, %d failed, 0 skipped; .*'
END = r'VmBackup ended - .* - S:%d W:%d E:%d'
FAILED = [r'ERROR \S+xe vm-export .*', 'ERROR vm-export VM-EXPORT-FAIL db: xe vm-export failed.*']
HOOKED = 'hook %s failed: exit status 3: said'
TRACE = ['Traceback .*', '(?:  .*\n)*TypeError: .*']


def warning(text):
    return r'\*\*\*WARNING - ' + text


def summed(good, warned, failed):
    return [SUM % (good, warned, failed), END % (good, warned, failed)]


class QuietCase(PoolCase):
    pool_description = SMALL

    def printed(self, expected, status, *words):
        """With `quiet` a command prints these lines, by patterns; its output."""
        done = self.vmbackup(*words, 'quiet')
        self.assertEqual(status, done.status, done.output)
        text = '\n'.join(done.lines) + '\n'
        if not re.match(''.join('(?:%s)\n' % line for line in expected) + r'\Z', text):
            self.fail('\n'.join(['printed:', text, 'expected:', *expected]))
        return done


class Nights(QuietCase):
    def test_what_is_wrong_and_the_sum_are_printed(self):
        mail = ['mail_to=a', 'mail_smtp_port=1']
        for status, lines, hook, fault, expected in (
                (0, [], '', (), summed(2, 0, 0)),
                (0, ['parallel=2'], '', (), summed(2, 0, 0)),
                (0, [], 'log-end 0', (), summed(2, 0, 0)),
                (0, [], 'job-init 75', (), [END % (0, 0, 0)]),
                (2, ['vm-export=gone'], '', (), [
                    r'\*\*\*ERROR - vm not found: vm-export=gone .*', 'FAILED gone .*',
                    *summed(2, 0, 1)]),
                (1, ['vm-export=no.*'], '', (), [
                    warning('vm not found: vm-export=no.*'), 'WARNING vm not found: .*',
                    *summed(2, 0, 0)]),
                (2, [], '', ('vm-export', 2), [*FAILED, 'FAILED db .*', *summed(1, 0, 1)]),
                (1, [], '', ('vm-export', 1), [
                    FAILED[0], warning('db: vm-metadata.xml is missing: .*'), 'WARNING db: .*',
                    *summed(1, 1, 0)]),
                (1, [], 'backup-end 3', (), [
                    *[warning('%s: ' % vm + HOOKED % 'backup-end') for vm in ('db', 'web')],
                    'WARNING db: hook .*', 'WARNING web: hook .*', *summed(0, 2, 0)]),
                (2, [], 'job-start 3', (), [
                    'ERROR ' + HOOKED % 'job-start', END % (0, 0, 1)]),
                (1, [], 'log-end 3', (), [*summed(2, 0, 0), warning(HOOKED % 'log-end')]),
                (1, ['status_log=/dev/full'], '', (), [
                    warning('cannot write status_log .*'), 'WARNING .*', *summed(2, 0, 0)]),
                (2, ['keeplast=3'], '', (), [
                    r'\*\*\*ERROR unexpected config key.*', 'ERROR in config_load.*',
                    END % (0, 0, 1)]),
                (2, ['max_backups=0'], '', (), [
                    'ERROR: config max_backups out of range.*', 'ERROR in configuration settings.*',
                    END % (0, 0, 1)]),
                (1, mail, '', (), [*summed(2, 0, 0), warning('mail to a failed, attempt .*')] +
                 [warning('mail to a failed, .*')] * 2)):
            with self.subTest(lines=lines, hook=hook, fault=fault):
                self.setUp()
                self.script = type(self).script
                if lines == mail:
                    self.script = self.changed_script(MAIL_PAUSE=0)
                if hook:
                    phase, number = hook.split()
                    lines = lines + ['hook=' + self.program('hook', 'echo said\n[ $1 != %s ] || '
                                                            'exit %s\n' % (phase, number))]
                if fault:
                    self.fault(fault[0], nth=fault[1], **REFUSED)
                self.printed(expected, status, 'password', self.config(
                    'vm-export=db', 'vm-export=web', *lines))

    def test_lines_of_failures_side_by_side_have_the_vms_name(self):
        self.fault('vm-export', times=9, **REFUSED)
        done = self.vmbackup('password', self.config('vm-export=.*', parallel=2), 'quiet')
        self.assertEqual(2, done.status)
        for vm in 'db', 'web':
            self.assertRegex(done.output, r' - \[%s\] ERROR \S+xe vm-export ' % vm)
            self.assertIn('[%s] ERROR vm-export VM-EXPORT-FAIL %s: ' % (vm, vm), done.output)
            self.assertIn('[%s] ***WARNING - %s: vm-metadata.xml' % (vm, vm), done.output)
        self.assertEqual([], [line for line in done.lines if not re.search(
            'ERROR|WARNING|FAILED|VMs: ', line)])

    def test_a_bug_and_a_signal_are_told_in_full(self):
        self.prelude = ('import VmBackup\n'
                        'VmBackup.write_metadata = VmBackup.program_problems = None\n')
        self.printed([*TRACE, 'ERROR a bug in VmBackup.py, please report it: .*', END % (0, 0, 1)],
                     2, 'password', self.config('vm-export=db'))
        self.prelude = ''
        self.fault('vm-export', 'stall', nth=2, after=1000)
        done = self.signalled(self.start_until(
            'vm-export', 2, 'password', self.config('vm-export=db'), 'quiet'), signal.SIGTERM)
        self.assertIn('ERROR ended by signal 15 (SIGTERM)', done.lines)
        self.assertTrue(done.lines[-1].startswith('VmBackup ended - **ERRORS DETECTED**'))

    def test_the_mail_has_all_lines(self):
        with SmtpSink() as sink:
            self.printed(summed(1, 0, 0), 0, 'password', self.config(
                'vm-export=db', mail_to='a', mail_smtp_port=sink.port))
        self.assertIn(b'*** vm-export begin db', sink.mails[0].data)
        self.assertIn(b'VmBackup.py running with these settings:', sink.mails[0].data)


@WITH_XXH64
class Commands(SavedCase, QuietCase):
    def prepare(self):
        self.ends(0, 'vm-export=web', 'vdi-export=db')

    def test_of_other_commands_too(self):
        good = self.config('vm-export=web', 'vdi-export=db')
        missing = self.put_file('missing.cfg', self.read(good) + 'vm-export=gone\n')
        login = 'password-file=' + self.put_file('pass', 'cGFzc3dvcmQ=')
        os.chmod(self.at('pass'), 0o600)
        from_ = 'from=' + self.backups
        end, restored = 'VmBackup %s ended - .*', r'restored: the %s \S+ \([0-9a-f-]+\)'
        for status, words, expected in (
                (0, ['verify', good], [end % 'verify']),
                (2, ['verify', missing], [r'\*\*\*ERROR - no backup found: .*', end % 'verify']),
                (0, ['prune', good], [end % 'prune']),
                (0, ['prune', good, 'preview'], [end % 'prune']),
                (2, ['prune', missing, 'vm=x'], ['ERROR vm=x is none of .*']),
                (0, ['preview', good, login], ['SUCCESS preview of parameters ']),
                (2, ['preview', missing, login], [
                    r'\*\*\*ERROR - vm not found: .*', 'ERROR preview of parameters .*']),
                (0, ['restore', 'web', 'preview', from_, login], [
                    'restore of web .*', 'SUCCESS preview of restore: nothing was changed']),
                (2, ['restore', 'gone', from_, login], ['ERROR .*']),
                (0, ['test-restore', 'web', from_, login], [
                    'restore of web .*', SUM % (1, 0, 0), end % 'test-restore']),
                (0, ['restore', 'web', 'name=w2', from_, login], [
                    'restore of web .*', restored % 'VM']),
                (0, ['restore', 'db', 'name=d2', from_, login], [
                    'restore of db .*', restored % 'disk', 'next: attach it .*',
                    '  .*vbd-create.*'])):
            with self.subTest(words):
                self.printed(expected, status, *words)
        path = self.newest('web', 'web.xva')
        os.truncate(path, os.path.getsize(path) // 2)
        self.printed(['ERROR %s: .*' % re.escape(os.path.dirname(path)), end % 'verify'],
                     2, 'verify', good)
        self.leaves_things_behind = True
