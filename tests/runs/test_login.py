"""Login: passwords, password files, the unix socket, pool members, addresses, sessions."""

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
import xmlrpc.client

import VmBackup
from tests import ROOT, SCRIPT
from tests.tools.support import LIMIT, PoolCase

HARD_PASSWORD = ' pa$s"w\'ö`rd\\ %s{}名'


class LoginCase(PoolCase):
    """A test with a pool of one small VM."""

    pool_description = {'vms': [{'name': 'db', 'disks': ['64 KiB']}]}

    def preview(self, password, **environ):
        """A preview with that word in the password's place."""
        return self.vmbackup(password, self.config('vm-export=db'), 'preview', **environ)

    def run_program(self, program, *arguments, **environ):
        """Run any program to its end."""
        return self.finish(subprocess.Popen(
            list(program) + [os.fsencode(argument) for argument in arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=self.directory, env=self.environ(**environ)))

    def assert_refused(self, done, *words):
        """One clear line, exit status 2, nothing changed."""
        self.assertEqual(2, done.status, done.output)
        errors = [line for line in done.lines if line.startswith('ERROR')]
        self.assertEqual(1, len(errors), done.output)
        for word in words:
            self.assertIn(word, errors[0])
        self.assertNotIn('Traceback', done.output)
        self.assertNotIn('a bug in', done.output)
        self.assertEqual([], os.listdir(self.backups))
        self.assertEqual([], self.sim.calls('xe'))

    def path(self, *parts):
        """A path in this test's directory."""
        return os.path.join(self.directory, *parts)


class Errors(unittest.TestCase):
    """What is told of an answer that is none."""

    def test_an_http_error_does_not_tell_the_password_in_the_address(self):
        def refuse():
            raise xmlrpc.client.ProtocolError('root:s3cret@host/', 501, 'Not Implemented', {})
        with self.assertRaises(VmBackup.PoolError) as caught:
            VmBackup.Pool.guarded('VM.get_all_records', refuse)
        self.assertEqual('XenAPI VM.get_all_records failed: HTTP 501 Not Implemented',
                         str(caught.exception))


class Passwords(LoginCase):
    """The first word of the command line."""

    def test_a_password_logs_in_over_http(self):
        self.assertEqual(0, self.preview('password').status)
        self.assertEqual(('root', 'password', '1.0', 'VmBackup.py'),
                         tuple(self.sim.calls('xapi')[0].args))

    def test_a_wrong_password_is_one_clear_line(self):
        for arguments in (['preview'], []):
            done = self.vmbackup('wr0ng', self.config('vm-export=db'), *arguments)
            self.assert_refused(done, 'login', 'SESSION_AUTHENTICATION_FAILED')
            self.assertNotIn('wr0ng', done.output)
        self.assertEqual({'session.login_with_password'},
                         {call.name for call in self.sim.calls()})

    def test_any_characters_will_do_under_any_locale(self):
        self.sim.pool.password = HARD_PASSWORD
        for locale in ('C', 'C.UTF-8'):
            done = self.preview(HARD_PASSWORD, LC_ALL=locale)
            self.assertEqual(0, done.status, done.output)

    def test_bytes_that_are_no_text_are_refused_in_one_line(self):
        self.assert_refused(self.preview('pass\udcffword'), 'login')

    def test_local_needs_no_password_on_the_unix_socket(self):
        done = self.vmbackup('local', self.config('vm-export=db'),
                             VMBACKUP_XAPI_URL=self.sim.unix_url)
        self.assertEqual(0, done.status, done.output)

    def test_local_is_the_word_also_where_a_file_has_that_name(self):
        with open(self.path('local'), 'w', encoding='ascii') as stream:
            stream.write('rubbish')
        self.assertEqual(0, self.preview('local', VMBACKUP_XAPI_URL=self.sim.unix_url).status)

    def test_local_over_http_is_refused_as_every_empty_password(self):
        self.assert_refused(self.preview('local'), 'SESSION_AUTHENTICATION_FAILED')

    def test_no_child_and_no_log_ever_sees_the_password(self):
        self.sim.pool.password = 'Tr0ub4dor'
        seen = self.path('seen')
        tools = self.path('tools')
        os.mkdir(tools)
        for name, real in (('xe', self.sim.xe), ('df', shutil.which('df'))):
            with open(os.path.join(tools, name), 'w', encoding='utf-8') as stream:
                stream.write('#!/bin/sh\n{ echo "$0" "$@"; env; } >>"%s"\nexec "%s" "$@"\n' %
                             (seen, real))
            os.chmod(stream.name, 0o755)
        done = self.vmbackup(
            'Tr0ub4dor', self.config('vm-export=db', 'vdi-export=db', pool_db_backup=1),
            VMBACKUP_XE=os.path.join(tools, 'xe'), XE_EXTRA_ARGS='server=evil.example,password=x',
            PATH=tools + os.pathsep + os.environ['PATH'])
        self.assertEqual(0, done.status, done.output)
        with open(seen, encoding='utf-8', errors='replace') as stream:
            children = stream.read()
        self.assertEqual(2, children.count(os.path.join(tools, 'df') + ' '))
        self.assertEqual(6, children.count('/xe ') + children.count('/xe\n') -
                         children.count('VMBACKUP_XE='))
        self.assertNotIn('Tr0ub4dor', children)
        self.assertNotIn('XE_EXTRA_ARGS', children)
        self.assertNotIn('Tr0ub4dor', done.output)
        with open(self.status_log, encoding='utf-8') as stream:
            self.assertNotIn('Tr0ub4dor', stream.read())


class PasswordFiles(LoginCase):
    """create-password-file= and its use."""

    def create(self, password, name, **environ):
        """Make a password file."""
        return self.vmbackup(password, 'create-password-file=' + name, **environ)

    def content(self, name):
        """Bytes of a file."""
        with open(self.path(name), 'rb') as stream:
            return stream.read()

    def mode(self, name):
        """Permissions of a file."""
        return os.stat(self.path(name)).st_mode & 0o7777

    def test_it_holds_what_3_25_wrote(self):
        done = self.create('password', 'p')
        self.assertEqual(0, done.status, done.output)
        self.assertEqual(b'cGFzc3dvcmQ=', self.content('p'))
        self.assertNotIn('password', done.output.replace('password file created', ''))
        self.assertEqual([], self.sim.calls())

    def test_it_logs_in(self):
        self.sim.pool.password = HARD_PASSWORD
        for locale in ('C', 'C.UTF-8'):
            self.assertEqual(0, self.create(HARD_PASSWORD, 'pässword file', LC_ALL=locale).status)
            self.assertEqual(base64.b64encode(HARD_PASSWORD.encode('utf-8')),
                             self.content('pässword file'))
            for name in ('pässword file', self.path('pässword file')):
                done = self.preview(name, LC_ALL=locale)
                self.assertEqual(0, done.status, done.output)
                self.assertNotIn('WARNING', done.output)

    def test_only_its_owner_can_read_it_whatever_the_umask_and_whatever_was_there(self):
        for umask in ('000', '022', '077', '277', '777'):
            with open(self.path('p'), 'w', encoding='ascii') as stream:
                stream.write('old and much longer than the new content')
            os.chmod(self.path('p'), 0o644)
            done = self.run_program(['sh', '-c', 'umask %s; exec "$@"' % umask, 'sh',
                                     sys.executable, SCRIPT], 'x', 'create-password-file=p')
            self.assertEqual(0, done.status, done.output)
            self.assertEqual((umask, 0o600, b'eA=='), (umask, self.mode('p'), self.content('p')))
        self.assertEqual(['p'], [name for name in os.listdir(self.directory)
                                 if name.startswith('p')])

    def test_a_link_is_replaced_and_what_it_pointed_to_is_kept(self):
        with open(self.path('target'), 'w', encoding='ascii') as stream:
            stream.write('precious')
        os.symlink('target', self.path('p'))
        self.assertEqual(0, self.create('x', 'p').status)
        self.assertEqual((b'precious', b'eA=='), (self.content('target'), self.content('p')))
        self.assertFalse(os.path.islink(self.path('p')))

    def test_places_that_cannot_be_are_refused(self):
        os.mkdir(self.path('directory'))
        for name, words in (('directory', 'not a file'), ('none/p', 'No such file'),
                            ('run.cfg/p', 'Not a directory'), ('x' * 300, 'File name too long')):
            self.config()
            done = self.create('x', name)
            self.assert_refused(done, words, name)
        for arguments in (['x', 'create-password-file='], ['', 'create-password-file=p'],
                          ['x', 'create-password-file=p', 'preview']):
            self.assert_refused(self.vmbackup(*arguments), 'wanted: ', 'create-password-file=')
        self.assertFalse(os.path.exists(self.path('p')))
        self.assertEqual([], os.listdir(self.path('directory')))

    def test_the_option_is_known_in_any_case(self):
        self.assertEqual(0, self.vmbackup('x', 'Create-Password-File=p=q').status)
        self.assertEqual(b'eA==', self.content('p=q'))

    def test_a_warning_tells_when_others_can_read_it(self):
        self.create('password', 'p')
        for mode in (0o640, 0o604, 0o620):
            os.chmod(self.path('p'), mode)
            done = self.preview('p')
            self.assertEqual(0, done.status, done.output)
            self.assertIn('***WARNING - password file p can be read by others (chmod 600 p)',
                          done.lines)
        os.chmod(self.path('p'), 0o400)
        self.assertNotIn('WARNING', self.preview('p').output)

    def test_a_file_with_a_final_newline_is_accepted(self):
        with open(self.path('p'), 'wb') as stream:
            stream.write(b'cGFzc3dvcmQ=\r\n')
        os.chmod(self.path('p'), 0o600)
        self.assertEqual(0, self.preview('p').status)

    def test_a_file_without_a_password_is_told_and_not_shown(self):
        for content in (b'', b'\n', b'password', b'cGFzc3dvcmQ', b'cGFz c3dvcmQ=', b'/w==',
                        b'\xff\xfe', b'\0' * 100, b'=' * 70000):
            with open(self.path('p'), 'wb') as stream:
                stream.write(content)
            with self.subTest(content[:20]):
                done = self.preview('p')
                self.assert_refused(done, 'no password in password file p')
                self.assertEqual([], self.sim.calls())


class Addresses(LoginCase):
    """Where we log in."""

    def test_each_of_the_three_forms(self):
        for url in (self.sim.url, self.sim.url + '/', self.sim.https_url, self.sim.unix_url):
            done = self.vmbackup('password', self.config('vm-export=db'), VMBACKUP_XAPI_URL=url)
            self.assertEqual(0, done.status, done.output)

    def test_rubbish_is_one_clear_line(self):
        for url in ('localhost', 'ftp://localhost/', 'unix:relative', 'file:///etc/passwd', '//x',
                    'https://[::1', 'http://localhost:port/', 'http://local host/',
                    'http://localhost\r\nX: y/', 'unix:/' + 'x' * 200, 'unix:/nonexistent/socket',
                    'http://127.0.0.1:99999/'):
            with self.subTest(url):
                self.assert_refused(self.preview('password', VMBACKUP_XAPI_URL=url))
        self.assertEqual([], self.sim.calls())

    def test_a_password_in_the_address_is_not_logged(self):
        url = self.sim.url.replace('//', '//root:s3cret@')
        done = self.vmbackup('wr0ng', self.config('vm-export=db'), VMBACKUP_XAPI_URL=url)
        self.assert_refused(done, 'login at %s failed' % self.sim.url)
        self.assertNotIn('s3cret', done.output)

    def test_a_pool_that_is_down_is_one_clear_line(self):
        self.sim.down()
        self.assert_refused(self.vmbackup('password', self.config('vm-export=db')),
                            'login', 'Connection refused')
        self.assert_refused(self.preview('local', VMBACKUP_XAPI_URL=self.sim.unix_url),
                            self.sim.unix_url, 'No such file')

    def test_an_answer_that_is_none_is_one_clear_line(self):
        self.leaves_things_behind = True               # sessions that nobody was told of
        for fault in (dict(do='die', after=0), dict(do='die', after=90),
                      dict(do='print', body=b'<html>proxy</html>'), dict(do='print', body=b''),
                      dict(do='print', body=b'<?xml version="1.0"?><methodResponse>')):
            with self.subTest(fault):
                self.sim.pool.faults.clear()
                self.sim.pool.faults.add('session.login_with_password', times=0, **fault)
                self.assert_refused(self.preview('password'), 'XenAPI login at http')

    def test_a_daemon_that_never_answers_can_be_left_by_a_signal(self):
        self.sim.pool.faults.add('session.login_with_password', 'hang')
        child = self.start('password', self.config('vm-export=db'), 'preview')
        limit = time.monotonic() + LIMIT
        while not self.sim.calls():
            self.assertLess(time.monotonic(), limit)
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        done = self.finish(child)
        self.assertEqual(143, done.status, done.output)
        self.assertNotIn('Traceback', done.output)


class Members(LoginCase):
    """Pool members that are not the master."""

    def test_a_member_sends_us_to_its_master(self):
        self.use_pool(role='slave')
        done = self.vmbackup('password', self.config('vm-export=db'))
        self.assertEqual(0, done.status, done.output)
        logins = [call for call in self.sim.calls('xapi')
                  if call.name == 'session.login_with_password']
        self.assertEqual(2, len(logins))

    def test_a_wrong_password_is_refused_by_the_master(self):
        self.use_pool(role='slave')
        self.assert_refused(self.preview('wrong'), self.sim.https_url,
                            'SESSION_AUTHENTICATION_FAILED')

    def test_local_works_on_a_member(self):
        self.use_pool(role='slave')
        self.assertEqual(0, self.preview('local', VMBACKUP_XAPI_URL=self.sim.unix_url).status)

    def test_the_password_never_goes_to_another_machine_in_the_clear(self):
        with Eavesdropper() as master:
            self.use_pool(role='slave', master_address='127.0.0.1:%d' % master.port)
            self.assert_refused(self.preview('password'), 'https://127.0.0.1:%d/' % master.port)
        heard = master.heard
        self.assertGreater(len(heard), 0)
        for data in heard:
            self.assertEqual(b'\x16\x03', data[:2])    # a TLS handshake
            self.assertNotIn(b'password', data)

    def test_a_master_that_is_none_is_one_clear_line(self):
        for address in ('', '[::1', ':::', 'a b', 'x/y@z', '127.0.0.1:1', '\x01'):
            with self.subTest(address):
                self.sim.pool.faults.add('session.login_with_password', 'refuse',
                                         error=['HOST_IS_SLAVE', address])
                self.assert_refused(self.preview('password'))
        self.sim.pool.faults.add('session.login_with_password', 'refuse', error=['HOST_IS_SLAVE'])
        self.assert_refused(self.preview('password'), 'HOST_IS_SLAVE')

    def test_members_that_point_at_each_other_are_left(self):
        address = self.sim.https_url[len('https://'):]
        self.sim.pool.faults.add('session.login_with_password', 'refuse', times=0,
                                 error=['HOST_IS_SLAVE', address])
        self.assert_refused(self.preview('password'), 'HOST_IS_SLAVE')
        self.assertEqual(2, len(self.sim.calls('xapi')))


class Eavesdropper:
    """A listener that keeps the first bytes of each connection and hangs up."""

    def __init__(self):
        self.heard = []
        self.listener = socket.socket()
        self.listener.bind(('127.0.0.1', 0))
        self.listener.listen(8)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.listen, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        with socket.create_connection(('127.0.0.1', self.port), timeout=LIMIT) as last:
            last.sendall(b'end')
        self.thread.join()
        self.listener.close()

    def listen(self):
        """Until somebody says `end`."""
        while True:
            connection, _ = self.listener.accept()
            with connection:
                data = connection.recv(65536)
            if data == b'end':
                return
            self.heard.append(data)


class Sessions(LoginCase):
    """What was opened is closed. Every test here, and elsewhere, ends with no session left."""

    def logouts(self):
        """How often a session was closed, and how often opened."""
        names = [call.name for call in self.sim.calls('xapi')]
        return names.count('session.logout'), names.count('session.login_with_password')

    def test_every_way_out_logs_out(self):
        config = self.config('vm-export=db')
        faults = self.sim.pool.faults.add
        ways = (
            (0, lambda: self.vmbackup('password', config)),
            (0, lambda: self.vmbackup('password', config, 'preview')),
            (2, lambda: self.vmbackup('password', 'missing')),
            (2, lambda: self.vmbackup('password', 'missing', 'preview')),
            (2, lambda: self.vmbackup('password', 'vm-export=[', 'preview')),
            (2, lambda: self.back_up('vm-export=db', backup_dir='/nonexistent')))
        for number, (status, way) in enumerate(ways, 1):
            done = way()
            self.assertEqual(status, done.status, done.output)
            self.assertEqual((number, number), self.logouts(), done.output)
        self.sim.pool.journal.clear()
        for arguments in (['preview'], []):
            faults('VM.get_all_records', 'print', value={'OpaqueRef:1': {}})
            self.assertEqual(2, self.vmbackup('password', config, *arguments).status)
            faults('VM.get_all_records', 'refuse', error=['INTERNAL_ERROR', 'x'])
            self.assertEqual(2, self.vmbackup('password', config, *arguments).status)
            faults('VM.get_all_records', 'die', after=100)
            self.assertEqual(2, self.vmbackup('password', config, *arguments).status)
        self.assertEqual((6, 6), self.logouts())

    def test_a_failing_logout_does_not_spoil_the_run(self):
        self.leaves_things_behind = True               # the session
        self.sim.pool.faults.add('session.logout', 'refuse', error=['INTERNAL_ERROR', 'x'])
        done = self.vmbackup('password', self.config('vm-export=db'))
        self.assertEqual(0, done.status, done.output)
        self.sim.pool.faults.add('session.logout', 'die', after=0, times=0)
        self.assertEqual(0, self.vmbackup('password', self.config('vm-export=db')).status)

    def run_without_session(self, config):
        """A run whose session the pool forgets while the snapshot is made."""
        pool = self.sim.pool
        pool.faults.add('vm-snapshot', 'slow', seconds=0.3)
        child = self.start('password', config)
        limit = time.monotonic() + LIMIT
        while 'vm-snapshot' not in [call.name for call in self.sim.calls('xe')]:
            self.assertLess(time.monotonic(), limit)
            time.sleep(0.01)
        with pool.lock:
            for session in list(pool.tables['session']):
                pool.delete('session', session)
        return self.finish(child)

    def test_a_session_that_ends_in_mid_run_is_renewed(self):
        done = self.run_without_session(self.config('vm-export=db'))
        self.assertEqual(0, done.status, done.output)
        self.assertEqual((1, 2), self.logouts())

    def test_where_it_cannot_be_renewed_the_next_run_removes_the_snapshot(self):
        config = self.config('vm-export=db')
        self.sim.pool.faults.add('session.login_with_password', 'refuse', nth=2, times=0,
                                 error=['SESSION_AUTHENTICATION_FAILED', 'root', 'changed'])
        done = self.run_without_session(config)
        self.assertEqual(2, done.status, done.output)
        self.assertIn('SESSION_AUTHENTICATION_FAILED', done.output)
        self.assertNotEqual(self.before['VM'], self.contents()['VM'])
        self.sim.pool.faults.clear()
        self.vmbackup('password', config)
        self.assertEqual(self.before['VM'], self.contents()['VM'])
        self.assertEqual(1, len(self.dated('db')))


class OtherXenApis(LoginCase):
    """What lies beside the script."""

    def run_beside(self, text, **environ):
        """Run a copy of the script, by itself or with a XenAPI.py of this text beside it."""
        directory = self.path('alone')
        os.makedirs(directory, exist_ok=True)
        shutil.copy(SCRIPT, directory)
        module = os.path.join(directory, 'XenAPI.py')
        if text is not None:
            with open(module, 'w', encoding='utf-8') as stream:
                stream.write(text)
        return self.run_program(
            [sys.executable, '-S', '-E', os.path.join(directory, 'VmBackup.py')],
            'password', self.config('vm-export=db'), **environ)

    def test_a_missing_one_is_one_clear_line(self):
        self.assert_refused(self.run_beside(None), 'XenAPI.py is missing')

    def test_one_for_python_2_is_one_clear_line(self):
        for text in ('import xmlrpclib\n', 'try:\n    pass\nexcept Exception, error:\n    pass\n'):
            self.assert_refused(self.run_beside(text), 'XenAPI.py is missing or for Python 2')

    def test_the_sdks_is_one_clear_line(self):
        text = ('class Failure(Exception):\n    pass\n\n\n'
                'class Session:\n'
                '    def __init__(self, uri, transport=None, encoding=None, verbose=0,\n'
                '                 allow_none=1, ignore_ssl=False):\n        pass\n\n\n'
                'def xapi_local():\n    return Session("http://_var_lib_xcp_xapi/")\n')
        for url in (self.sim.url, self.sim.unix_url):
            self.assert_refused(self.run_beside(text, VMBACKUP_XAPI_URL=url),
                                self.path('alone', 'XenAPI.py'), 'is not ours')

    def test_help_and_password_files_need_none(self):
        self.run_beside(None)
        program = [sys.executable, '-S', '-E', self.path('alone', 'VmBackup.py')]
        self.assertEqual(0, self.run_program(program, 'help').status)
        self.assertEqual(0, self.run_program(program, 'x', 'create-password-file=p').status)

    def test_ours_is_found_through_a_link_to_the_script_and_from_any_directory(self):
        os.symlink(os.path.join(ROOT, 'VmBackup.py'), self.path('link to it'))
        done = self.run_program([sys.executable, self.path('link to it')], 'password',
                                self.config('vm-export=db'))
        self.assertEqual(0, done.status, done.output)


if __name__ == '__main__':
    unittest.main()
