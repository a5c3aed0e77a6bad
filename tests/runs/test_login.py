"""Login: passwords, password files, the unix socket, pool members, addresses, sessions."""

import base64
import os
import socketserver
import threading
import unittest
import unittest.mock
import xmlrpc.client

import VmBackup
import XenAPI
from tests import DATA
from tests.rules import test_xenapi
from tests.simpool import CERTIFICATE, XapiError
from tests.tools.support import PoolCase

HARD_PASSWORD = ' pa$s"w\'ö`rd\\ %s{}名'


class LoginCase(PoolCase):
    pool_description = {'vms': [{'name': 'db', 'disks': ['64 KiB']}]}

    def preview(self, password, **environ):
        return self.vmbackup(password, self.config('vm-export=db'), 'preview', **environ)

    def assert_refused(self, done, *words):
        """One clear line, exit status 2, nothing changed."""
        self.assertEqual(2, done.status, done.output)
        errors = [line for line in done.lines if line.startswith('ERROR')]
        self.assertEqual(1, len(errors), done.output)
        for word in words:
            self.assertIn(word, errors[0])
        self.assertNotIn('Traceback', done.output)
        self.assertNotIn('a bug in', done.output)
        self.assertEqual([], self.entries())
        self.assertEqual([], self.sim.calls('xe'))


class Errors(unittest.TestCase):
    def refusal(self, error):
        """What a call tells that ends in this error."""
        with unittest.mock.patch.object(VmBackup.Pool, 'guarded'):     # it logs in
            pool = VmBackup.Pool('http://localhost/', '')
        with unittest.mock.patch.object(pool.session, 'xenapi_request', side_effect=error), \
                self.assertRaises(VmBackup.PoolError) as caught:
            pool.guarded('VM.get_all_records')
        return str(caught.exception)

    def test_an_http_error_does_not_tell_the_password_in_the_address(self):
        self.assertEqual('XenAPI VM.get_all_records failed: HTTP 501 Not Implemented', self.refusal(
            xmlrpc.client.ProtocolError('root:s3cret@host/', 501, 'Not Implemented', {})))

    def test_a_refusal_of_any_length_is_a_line_of_some(self):
        self.assertLess(len(self.refusal(XenAPI.Failure(['X', 'y' * 10**6]))), 10000)


class Passwords(LoginCase):
    def test_a_refused_password_that_looks_like_a_path_is_told_to_be_no_file_and_not_shown(self):
        for word, looks in (('/root/VmBackup.pass', True), ('VmBackup.pass', True),
                            ('x/secret', True), ('secret', False), ('s3.cret!', False)):
            line = self.assert_ends(2, self.preview(word)).lines[-1]
            self.assertIn('SESSION_AUTHENTICATION_FAILED', line)
            self.assertEqual(looks, line.endswith('(if a password file was meant: there is no such '
                                                  'file)'), line)
            self.assertNotIn(word, line)
        held = self.put_file('held.pass', base64.b64encode(b'a/b.c').decode())
        os.chmod(held, 0o600)
        self.assertNotIn('no such file', self.preview(held).output)

    def test_a_password_logs_in_over_http(self):
        self.assertEqual(0, self.preview('password').status)
        self.assertEqual(('root', 'password', '1.0', 'VmBackup.py'),
                         tuple(self.sim.calls('xapi')[0].args))

    def test_a_host_knows_the_version_of_the_script_that_logged_in(self):
        for version in '26.17.0', '25.33.2':
            self.pool_description = dict(self.pool_description, xapi_version=version)
            self.use_pool()
            for password, url in (('password', self.sim.url), ('local', self.sim.unix_url)):
                self.sim.pool.user_agents.clear()
                self.command(0, password, self.config('vm-export=db'), VMBACKUP_XAPI_URL=url)
                tracked = {'VmBackup': VmBackup.VERSION, 'xen-api-libs': version}
                self.assertEqual(tracked, self.sim.pool.user_agents)
        with self.assertRaises(XapiError) as caught:
            self.tracked()
        self.assertEqual(['MESSAGE_METHOD_UNKNOWN', 'host.get_tracked_user_agents'],
                         caught.exception.details)
        self.sim.pool.xapi_version = '26.17.0'
        self.assertEqual(tracked, self.tracked())

    def tracked(self):
        return self.sim.pool.call('host.get_tracked_user_agents', self.sim.pool.master)

    def test_bytes_that_are_no_text_are_refused_in_one_line(self):
        self.assert_refused(self.preview('pass\udcffword'), 'login')

    def test_local_needs_no_password_on_the_unix_socket(self):
        self.put_file('local', 'rubbish')              # of which it is not the name
        self.command(0, 'local', self.config('vm-export=db'), VMBACKUP_XAPI_URL=self.sim.unix_url)

    def test_local_over_http_is_refused_as_every_empty_password(self):
        self.assert_refused(self.preview('local'), 'SESSION_AUTHENTICATION_FAILED')


class PasswordFiles(LoginCase):
    def create(self, password, name, **environ):
        return self.vmbackup(password, 'create-password-file=' + name, **environ)

    def mode(self, name):
        return os.stat(self.at(name)).st_mode & 0o7777

    def test_it_holds_what_3_25_wrote(self):
        for option, name in (('create-password-file=', 'p'), ('Create-Password-File=', 'p=q')):
            done = self.command(0, 'password', option + name)
            self.assertEqual(b'cGFzc3dvcmQ=', self.read_bytes(name))
            self.assertNotIn('password', done.output.replace('password file created', ''))
        self.assertEqual([], self.sim.calls())

    def test_it_logs_in(self):
        self.sim.pool.password = HARD_PASSWORD
        for environ, name in (({'LC_ALL': 'C'}, 'pässword file'),
                              ({}, self.at('pässword file'))):
            self.assert_ends(0, self.create(HARD_PASSWORD, 'pässword file', **environ))
            self.assertEqual(base64.b64encode(HARD_PASSWORD.encode('utf-8')),
                             self.read_bytes('pässword file'))
            done = self.assert_ends(0, self.preview(name, **environ))
            self.assertNotIn('WARNING', done.output)

    def test_only_its_owner_can_read_it_whatever_the_umask_and_whatever_was_there(self):
        os.mkdir(self.at('place'))
        for umask in (0o000, 0o022, 0o077, 0o277, 0o777):
            self.put_file('place/p', 'old and much longer than the new content')
            os.chmod(self.at('place/p'), 0o644)
            self.assert_ends(0, self.finish(self.start_with(
                ['x', 'create-password-file=place/p'], umask=umask)))
            self.assertEqual((umask, 0o600, b'eA=='),
                             (umask, self.mode('place/p'), self.read_bytes('place/p')))
            self.assertEqual(['p'], os.listdir(self.at('place')))

    def test_a_link_is_replaced_and_what_it_pointed_to_is_kept(self):
        self.put_file('target', 'precious')
        os.symlink('target', self.at('p'))
        self.assertEqual(0, self.create('x', 'p').status)
        self.assertEqual((b'precious', b'eA=='), (self.read_bytes('target'), self.read_bytes('p')))
        self.assertFalse(os.path.islink(self.at('p')))

    def test_places_that_cannot_be_are_refused(self):
        os.mkdir(self.at('directory'))
        self.config()
        before = sorted(os.listdir(self.directory))
        for name, words in (('directory', 'not a file'), ('none/p', 'No such file'),
                            ('run.cfg/p', 'Not a directory'), ('x' * 300, 'File name too long')):
            self.assert_refused(self.create('x', name), words, name)
        self.assert_refused(self.vmbackup('x', 'create-password-file='),
                            'usage: VmBackup.py create-password-file <file>')
        self.assert_refused(self.vmbackup('', 'create-password-file=p'), 'is empty')
        self.assert_refused(self.vmbackup('x', 'create-password-file=p', 'preview'),
                            'preview is a command and comes first: VmBackup.py preview ')
        self.assertEqual(before, sorted(os.listdir(self.directory)))
        self.assertEqual([], os.listdir(self.at('directory')))

    def test_a_warning_tells_when_others_can_read_it(self):
        for mode in (0o640, 0o604, 0o620, 0o400):
            os.chmod(self.put_file('p', b'cGFzc3dvcmQ=\r\n'), mode)       # as an editor leaves it
            done = self.assert_ends(0, self.preview('p'))
            warning = '***WARNING - password file p can be read by others (chmod 600 p)'
            others = '***WARNING - password file p: others may change ' + self.at('p')
            self.assertEqual([warning] * (mode != 0o400) + [others] * (mode == 0o620),
                             [line.partition(' (chown')[0] for line in done.lines
                              if 'WARNING' in line])


class Addresses(LoginCase):
    def test_each_of_the_three_forms(self):
        for url in (self.sim.url, self.sim.url + '/', self.sim.https_url, self.sim.unix_url):
            self.assert_ends(0, self.preview('password', VMBACKUP_XAPI_URL=url))

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
        done = self.preview('wr0ng', VMBACKUP_XAPI_URL=url)
        self.assert_refused(done, 'login at %s failed' % self.sim.url)
        self.assertNotIn('s3cret', done.output)

    def test_a_pool_that_answers_a_byte_now_and_then_is_one_clear_line(self):
        self.script = self.changed_script(XAPI_TIMEOUT=0.5)
        slow = test_xenapi.success('OpaqueRef:A')._replace(then='drip')
        with test_xenapi.ScriptedServer('tcp', [slow]) as server:
            self.assert_refused(self.preview('password', VMBACKUP_XAPI_URL=server.uri),
                                'login at %s failed: timed out' % server.uri)

    def test_a_pool_that_is_down_is_one_clear_line(self):
        self.sim.down()
        self.assert_refused(self.back_up('vm-export=db'), 'login', 'Connection refused')
        self.assert_refused(self.preview('local', VMBACKUP_XAPI_URL=self.sim.unix_url),
                            self.sim.unix_url, 'No such file')


class Members(LoginCase):
    def test_a_member_sends_us_to_its_master_unless_no_password_is_needed(self):
        self.use_pool(role='slave')
        self.ends(0, 'vm-export=db')
        names = [call.name for call in self.sim.calls('xapi')]
        self.assertEqual(2, names.count('session.login_with_password'))
        self.assert_ends(0, self.preview('local', VMBACKUP_XAPI_URL=self.sim.unix_url))

    def test_a_wrong_password_is_refused_by_the_master(self):
        self.use_pool(role='slave')
        self.assert_refused(self.preview('wrong'), self.sim.https_url,
                            'SESSION_AUTHENTICATION_FAILED')

    def test_the_password_never_goes_to_another_machine_in_the_clear(self):
        master = socketserver.TCPServer(('127.0.0.1', 0), Eavesdropper)
        self.addCleanup(master.server_close)
        self.addCleanup(master.shutdown)
        master.heard, address = [], '127.0.0.1:%d' % master.server_address[1]
        threading.Thread(target=master.serve_forever, args=(0.01,), daemon=True).start()
        self.use_pool(role='slave', master_address=address)
        self.assert_refused(self.preview('password'), 'https://%s/' % address)
        self.assertGreater(len(master.heard), 0)
        for data in master.heard:
            self.assertEqual(b'\x16\x03', data[:2])    # a TLS handshake
            self.assertNotIn(b'password', data)

    def test_the_master_shows_a_certificate_of_the_pool_where_its_hosts_check_them(self):
        self.use_pool(role='slave')
        verifies, of_pool = self.put_file('verifies'), os.path.join(DATA, 'pool.pem')
        for verifies, bundle, words in (
                (verifies, of_pool, 'CERTIFICATE_VERIFY_FAILED'),
                (verifies, verifies, 'cannot read ' + verifies),
                (verifies, '/nosuch', 'cannot read /nosuch: '), (verifies, CERTIFICATE, None),
                ('/nosuch', of_pool, None)):
            with self.subTest(verifies, bundle=bundle):
                self.script = self.changed_script(POOL_VERIFIES=verifies, POOL_CERTIFICATES=bundle)
                del self.sim.pool.journal[:]
                if words:
                    self.assert_refused(self.preview('password'), words)
                    self.assertEqual(1, len(self.sim.calls()))     # by the member
                    continue
                done = self.assert_ends(0, self.preview('password'))
                self.assertEqual(verifies == '/nosuch', '***NOTE - the certificate of %s/ is not '
                                 'checked' % self.sim.https_url in done.output)
                self.assertLessEqual(done.output.count('is not checked'), 1)
                self.assertNotIn('is not checked', self.preview(
                    'local', VMBACKUP_XAPI_URL=self.sim.unix_url).output)

    def test_a_master_that_is_none_is_one_clear_line(self):
        for address in ('', '[::1', ':::', 'a b', 'x/y@z', '127.0.0.1:1', '\x01',
                        '127.0.0.1:1\r\nERROR x', '127.0.0.1\r\nX: y:1', 'a\nb', '%s' * 9):
            with self.subTest(address):
                self.fault('session.login_with_password', 'refuse',
                           error=['HOST_IS_SLAVE', address])
                self.assert_refused(self.preview('password'))

    def test_members_that_point_at_each_other_are_left(self):
        address = self.sim.https_url[len('https://'):]
        self.fault('session.login_with_password', 'refuse', times=0,
                   error=['HOST_IS_SLAVE', address])
        self.assert_refused(self.preview('password'), 'HOST_IS_SLAVE')
        self.assertEqual(2, len(self.sim.calls('xapi')))


class Eavesdropper(socketserver.BaseRequestHandler):
    """Keeps the first bytes of each connection and hangs up."""

    def handle(self):
        self.server.heard.append(self.request.recv(65536))


class Sessions(LoginCase):
    """What was opened is closed. Every test here, and elsewhere, ends with no session left."""

    def logouts(self):
        """How often a session was closed, and how often opened."""
        names = [call.name for call in self.sim.calls('xapi')]
        return names.count('session.logout'), names.count('session.login_with_password')

    def test_every_way_out_logs_out(self):
        config = self.config('vm-export=db')
        for number, (status, fault, *words) in enumerate((
                (0, {}, config), (0, {}, config, 'preview'), (2, {}, 'missing'),
                (2, {}, 'vm-export=[', 'preview'),
                (2, dict(do='refuse', error=['INTERNAL_ERROR', 'x']), config),
                (2, dict(do='die', after=100), config, 'preview')), 1):
            if fault:
                self.fault('VM.get_all_records', **fault)
            done = self.command(status, 'password', *words)
            self.assertEqual((number, number), self.logouts(), done.output)

    def test_a_failing_logout_does_not_spoil_the_run(self):
        self.leaves_things_behind = True               # the session
        self.fault('session.logout', 'refuse', error=['INTERNAL_ERROR', 'x'])
        self.ends(0, 'vm-export=db')
        self.fault('session.logout', 'die', after=0, times=0)
        self.ends(0, 'vm-export=db')

    def test_a_session_that_ends_in_mid_run_is_renewed(self):
        for verb in ('vm-snapshot', 'vm-uninstall'):
            self.at_call(verb, self.sim.pool.tables['session'].clear)
            self.ends(0, 'vm-export=db')
            self.assertEqual((1, 2), self.logouts())

    def test_where_it_cannot_be_renewed_the_next_run_removes_the_snapshot(self):
        self.script = self.changed_script(DISCARD_PAUSES=(0.1,), BUSY_PAUSES=())
        self.fault('session.login_with_password', 'refuse', nth=2, times=0,
                   error=['SESSION_AUTHENTICATION_FAILED', 'root', 'changed'])
        self.at_call('vm-snapshot', self.sim.pool.tables['session'].clear)
        done = self.ends(2, 'vm-export=db')
        self.assertIn('SESSION_AUTHENTICATION_FAILED', done.output)
        self.assertNotEqual(self.before['VM'], self.contents()['VM'])
        self.sim.pool.faults.clear()
        self.back_up('vm-export=db')
        self.assertEqual(self.before['VM'], self.contents()['VM'])
        self.assertEqual(1, len(self.dated('db')))
