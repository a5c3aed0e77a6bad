"""The start: by real interpreters, from anywhere, in any environment, with any outputs.

Other tests fork the script from a process that has loaded it; these do not.
"""

import os
import select
import shutil
import subprocess
import sys

from tests import ROOT, SCRIPT
from tests.runs.test_login import LoginCase
from tests.tools.processes import drop_rights
from tests.tools.support import LIMIT

SDKS = '''class Failure(Exception):
    pass


class Session:
    def __init__(self, uri, transport=None, encoding=None, verbose=0,
                 allow_none=1, ignore_ssl=False):
        pass


def xapi_local():
    return Session("http://_var_lib_xcp_xapi/")
'''


class StartCase(LoginCase):
    pool_description = {'vms': [{'name': 'dépôt', 'disks': ['64 KiB']}]}

    def setUp(self):
        super().setUp()
        self.selection = self.config('vm-export=.*')

    def environ(self, **more):
        """Outputs are buffered by Python, unless a test says otherwise."""
        environ = super().environ(**more)
        if 'PYTHONUNBUFFERED' not in more:
            environ.pop('PYTHONUNBUFFERED', None)
        return environ

    def begin(self, *program, environ=(), **options):
        return subprocess.Popen([os.fsencode(word) for word in program], **dict(dict(
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=self.directory, env=self.environ(**dict(environ))), **options))

    def does(self, status, *program, **options):
        """Run a program to its end; it has to end so."""
        return self.assert_ends(status, self.finish(self.begin(*program, **options)))

    def shell(self, status, line, *words, **environ):
        return self.does(status, 'sh', '-c', line, 'sh', sys.executable, SCRIPT, *words,
                         environ=environ)

    def assert_previewed(self, done):
        """Its output shows the VM's name in UTF-8."""
        self.assertIn('  vm-export: dépôt', done.lines)

    def assert_backed_up(self, *_):
        """There is a new complete backup, told in the status log."""
        self.assertIn('dépôt/DATED/success', self.tree())
        self.assertEqual('vmbackup.py,end,SUCCESS,S:1 W:0 E:0', self.status()[-1])
        shutil.rmtree(os.path.join(self.backups, 'dépôt'))

    def copies(self, *names, beside='place'):
        place = self.at(beside)
        os.makedirs(place)
        for name in names:
            shutil.copy(os.path.join(ROOT, name), place)
        return place


class Places(StartCase):
    def test_a_path_to_it_or_a_link_to_it_will_do(self):
        os.symlink(ROOT, self.at('there'))
        os.symlink(SCRIPT, self.at('link to it'))
        for path, cwd in (('VmBackup.py', ROOT), ('./VmBackup.py', ROOT), (SCRIPT, '/'),
                          ('there/VmBackup.py', self.directory), ('link to it', self.directory)):
            with self.subTest(path):
                self.assert_previewed(self.does(0, sys.executable, path, 'password',
                                                self.selection, 'preview', cwd=cwd))

    def test_it_is_a_program_also_through_a_link(self):
        os.mkdir(self.at('bin'))
        os.symlink(sys.executable, self.at('bin', 'python3'))
        os.symlink(SCRIPT, self.at('bin', 'backup'))
        path = self.at('bin') + os.pathsep + os.environ['PATH']
        for program in (SCRIPT, 'backup'):
            self.assertIn(program if program == SCRIPT else self.at('bin', 'backup'), self.does(
                2, 'env', program, environ={'PATH': path}).output)

    def test_a_current_directory_that_is_gone_will_do(self):
        self.assert_backed_up(self.shell(0, 'mkdir x && cd x && rmdir ../x && "$@"', 'password',
                                         self.selection))

    def test_a_place_of_any_name_will_do_under_any_locale(self):
        script = os.path.join(self.copies('VmBackup.py', 'XenAPI.py', beside='a b é/%s {x}'),
                              'VmBackup.py')
        for status, *words in ((0, 'password', self.selection, 'preview'), (2,)):
            done = self.does(status, sys.executable, script, *words, environ={'LC_ALL': 'C'})
        self.assertIn(script, done.output)

    def test_a_place_that_cannot_be_written_will_do_and_stays_as_it_is(self):
        place = self.copies('VmBackup.py', 'XenAPI.py')
        os.chmod(place, 0o555)
        self.does(2, 'sh', '-c', ': >x 2>&-', cwd=place, preexec_fn=self.heed_modes)
        done = self.does(0, sys.executable, 'VmBackup.py', 'password', self.selection, 'preview',
                         cwd=place, preexec_fn=self.heed_modes,
                         environ={'PYTHONDONTWRITEBYTECODE': ''})
        self.assert_previewed(done)
        self.assertEqual(['VmBackup.py', 'XenAPI.py'], sorted(os.listdir(place)))

    @staticmethod
    def heed_modes():
        """Be held by modes of files, also as root."""
        drop_rights(1)


class Environments(StartCase):
    def test_the_empty_one_of_cron_will_do(self):
        words = ['VMBACKUP_XE=' + self.sim.xe, 'VMBACKUP_XAPI_URL=' + self.sim.url,
                 'VMBACKUP_STATE=' + self.at('state'), 'PATH=/usr/bin:/bin']
        self.assert_backed_up(self.does(0, 'env', '-i', *words, sys.executable, SCRIPT,
                                        'password', self.selection, cwd='/'))

    def test_ascii_at_its_strictest_without_docstrings_and_assertions_will_do(self):
        self.assert_backed_up(self.shell(
            0, '"$@"', 'password', self.selection, LC_ALL='C', PYTHONUTF8='0',
            PYTHONCOERCECLOCALE='0', PYTHONIOENCODING='ascii', PYTHONOPTIMIZE='2'))

    def test_what_is_said_is_utf_8_whatever_the_locale_and_however_python_is_set(self):
        for environ in (dict(LC_ALL='C'), dict(LC_ALL='C.UTF-8'), dict(LC_ALL='xx_XX.nonsense'),
                        dict(LC_ALL='', LANG='POSIX'), dict(PYTHONIOENCODING='utf-16'),
                        dict(PYTHONUNBUFFERED='1'), dict(PYTHONWARNINGS='error')):
            with self.subTest(environ):
                self.assert_previewed(self.shell(0, '"$@"', 'password', self.selection, 'preview',
                                                 **environ))

    def test_an_odd_time_zone_and_proxies_change_nothing(self):
        for environ in (dict(TZ='rubbish'),
                        dict(http_proxy='http://127.0.0.1:1', https_proxy='http://127.0.0.1:1')):
            self.assert_backed_up(self.command(0, 'password', self.selection, **environ))


class Outputs(StartCase):
    def test_one_that_is_closed_full_or_read_by_nobody_stops_nothing(self):
        for line in ('"$@" >&- 2>&- <&-', '"$@" >/dev/full 2>/dev/full'):
            with self.subTest(line):
                done = self.shell(0, line, 'password', self.selection)
                self.assert_backed_up()
                self.assertEqual('', done.output)
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, 'wb') as stream:
            child = self.begin(sys.executable, SCRIPT, 'password', self.selection, stdout=stream,
                               stderr=None)
        self.assertEqual(0, child.wait(timeout=LIMIT))
        self.assert_backed_up()

    def test_previews_and_texts_need_none_either_and_nothing_is_said_elsewhere(self):
        preview = ['password', self.selection, 'preview']
        for status, line, words, environ in (
                (0, '>&-', preview, {}), (0, '>/dev/full', preview, {}), (0, '>&-', ['help'], {}),
                (2, '>/dev/full', [], {}), (2, '>/dev/full', [], {'PYTHONUNBUFFERED': '1'})):
            self.assertEqual('', self.shell(status, '"$@" ' + line, *words, **environ).output)

    def test_each_line_is_written_when_it_is_said(self):
        self.fault('vm-export', 'hang', nth=2)
        child = self.begin(sys.executable, SCRIPT, 'password', self.selection)
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.kill)
        self.wait_for_call('vm-export', 2)
        said = b''
        if select.select([child.stdout], [], [], 0)[0]:
            said = os.read(child.stdout.fileno(), 1 << 16)
        self.signalled(child)
        self.assertIn(b'3.cmd: ', said.splitlines()[-1])


class OtherXenApis(StartCase):
    def run_beside(self, text, *options, **environ):
        """Preview with a copy of the script, by itself or with a XenAPI.py of this text beside
        it; without the packages of this machine."""
        place = self.copies('VmBackup.py', beside='alone')
        self.addCleanup(shutil.rmtree, place, True)
        if text is not None:
            self.put_file('alone/XenAPI.py', text)
        done = self.finish(self.begin(
            sys.executable, *(options or ('-S', '-E')), os.path.join(place, 'VmBackup.py'),
            'password', self.selection, environ=environ))
        shutil.rmtree(place)
        return done

    def test_a_missing_one_is_one_clear_line_and_help_and_password_files_need_none(self):
        self.assert_refused(self.run_beside(None), 'XenAPI.py is missing')
        script = os.path.join(self.copies('VmBackup.py'), 'VmBackup.py')
        for words in (['help'], ['x', 'create-password-file=p']):
            self.does(0, sys.executable, '-S', '-E', script, *words)

    def test_one_for_python_2_is_one_clear_line(self):
        for text in ('import xmlrpclib\n', 'try:\n    pass\nexcept Exception, error:\n    pass\n'):
            self.assert_refused(self.run_beside(text), 'XenAPI.py is missing or not ours')

    def test_the_sdks_is_one_clear_line(self):
        for url in (self.sim.url, self.sim.unix_url):
            self.assert_refused(self.run_beside(SDKS, VMBACKUP_XAPI_URL=url),
                                'XenAPI.py is missing or not ours')

    def test_an_isolated_interpreter_does_not_see_ours_which_is_one_clear_line(self):
        with open(os.path.join(ROOT, 'XenAPI.py'), encoding='utf-8') as stream:
            self.assert_refused(self.run_beside(stream.read(), '-I', '-S'), 'XenAPI.py is missing')
