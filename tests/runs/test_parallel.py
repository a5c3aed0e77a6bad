"""VMs that are backed up side by side: what runs at once, what does not, and what is told of it."""

import collections
import contextlib
import io
import os
import re
import signal
import threading
import time
import unittest
import unittest.mock

import VmBackup
from tests.tools.support import RUBBISH, SMALL, PoolCase, parsed, screen, shared_without_pool

NAMES = ('one', 'two', 'three', 'four')
PREFIX = re.compile(r'\[([^]]*)\] ')
# An xe that notes when it begins and ends in a file, a line each. An export into a file first
# waits until as many as are wanted have begun, at most half a minute, then fails.
NOTING_XE = '''verb=$1 file= tries=0
for word; do case $word in filename=) verb=metadata;; filename=*) file=${word##*/};; esac; done
echo "begin $verb $file" >>%(notes)s
case $verb in
v*-export) until [ $(grep -c "^begin $verb " %(notes)s) -ge %(wanted)d ]; do
    tries=$((tries + 1)); [ $tries -lt 1000 ] || exit 9; sleep 0.03; done;;
*snapshot) sleep 0.05;;
esac
%(xe)s "$@"
status=$?
echo "end $verb $file" >>%(notes)s
exit $status
'''


class ParallelCase(PoolCase):
    """A pool of four VMs, and an xe that notes what runs at once."""

    pool_description = {
        'srs': [{'name': 'a'}, {'name': 'b'}],
        'vms': [{'name': name, 'ran': True, 'disks': [{'size': '64 KiB', 'sr': sr}]}
                for name, sr in zip(NAMES, 'aabb')]}

    def noting_xe(self, wanted=1):
        """Its path; an export waits for so many to have begun."""
        self.notes = self.at('notes')
        return self.program('noting-xe', NOTING_XE % dict(notes=self.notes, wanted=wanted,
                                                          xe=self.sim.xe))

    def noted(self):
        with open(self.notes, encoding='utf-8') as stream:
            return [line.rstrip('\n').split(' ', 2) for line in stream]

    def most(self, *verbs, of=None):
        """The largest number of such commands that ran at once; of these VMs only."""
        now = most = 0
        for moment, verb, file in self.noted():
            if verb in verbs and (of is None or os.path.splitext(file)[0] in of):
                now += 1 if moment == 'begin' else -1
                most = max(most, now)
        return most

    def side_by_side(self, *lines, status=0, wanted=1, **keys):
        """A run of all four VMs, unless the lines say others; it ends so."""
        return self.ends(status, *(lines or ['vm-export=.*']), **dict({'parallel': 4}, **keys),
                         VMBACKUP_XE=self.noting_xe(wanted))


class AtOnce(ParallelCase):
    def test_as_many_exports_run_at_once_as_are_wanted_and_snapshots_never(self):
        for method in ('vdi', 'vm'):
            done = self.side_by_side(method + '-export=.*', wanted=4)
            self.assertIn('VmBackup ended - Success - S:4 W:0 E:0', done.lines)
            self.assertEqual(4, self.most(method + '-export'))
        self.assertEqual(1, self.most('vm-snapshot', 'vdi-snapshot'))

    def test_no_more_than_that_of_all_or_of_an_sr(self):
        for keys, of in (({'parallel': 2}, [NAMES]),
                         ({'parallel_per_sr': 1}, [NAMES[:2], NAMES[2:]])):
            with self.subTest(keys):
                self.side_by_side(wanted=2, **keys)
                self.assertEqual(2, self.most('vm-export'))
                self.assertEqual([2 // len(of)] * len(of),
                                 [self.most('vm-export', of=names) for names in of])
                os.unlink(self.notes)

    def test_the_command_line_may_ask(self):
        config = self.config('vm-export=.*')
        done = self.command(0, 'password', config, 'parallel=4', 'parallel_per_sr=2',
                            VMBACKUP_XE=self.noting_xe(4))
        self.assertIn('  parallel          = 4', done.lines)
        for key, text, allowed in ('parallel', '0', '1 to 64'), ('parallel_per_sr', 'x', '0 to 64'):
            done = self.command(2, 'password', config, key + '=' + text)
            self.assertIn('ERROR invalid value: {}={} (out of range, allowed: {}; see VmBackup.py '
                          'help backup)'.format(key, text, allowed), done.lines)


class Told(ParallelCase):
    def test_lines_of_a_vm_have_its_name_and_are_those_of_a_run_of_one_after_another(self):
        alone = self.side_by_side(parallel=1)
        self.assertEqual(1, self.most('vm-export'))
        self.assertFalse([line for line in alone.lines if PREFIX.match(line)])
        os.unlink(self.status_log)
        together = self.side_by_side(wanted=4)
        found = collections.defaultdict(list)
        for line in together.lines:
            match = PREFIX.match(line)
            if match:
                found[match.group(1)].append(line[match.end():])
        for name in NAMES:
            first, last = (next(number for number, line in enumerate(alone.lines)
                                if line.startswith(words % name))
                           for words in ('*** vm-export begin %s', 'VmBackup vm-export %s - '))
            self.assertEqual(self.blank(alone.lines[first - 1:last + 1]), self.blank(found[name]),
                             name)
            told = self.status()
            self.assertLess(told.index('vm-export,begin,' + name),
                            told.index('vm-export,end,SUCCESS %s,elapse:0 size:0G' % name))
        self.assertEqual(('vmbackup.py,begin', 'vmbackup.py,end,SUCCESS,S:4 W:0 E:0', 10),
                         (told[0], told[-1], len(told)))

    @staticmethod
    def blank(lines):
        """Lines, what differs each time blanked."""
        return [re.sub(
            r'^VM \d|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|OpaqueRef:[0-9a-f-]+|'
            r'backup-\d{4}-\d\d-\d\d-\(\d\d:\d\d:\d\d\)|\(\d+ s\)', '#', line)
                for line in lines]

    def test_a_failure_or_a_bug_in_one_does_not_stop_the_others(self):
        self.fault('vm-snapshot', 'refuse', nth=2, error=['SR_FULL'])
        self.fault('VM.get_record', 'print', nth=3, value=dict(RUBBISH, name_label=[[]]))
        done = self.back_up('vm-export=.*', parallel=4)
        self.assertEqual(2, done.status, done.output)
        self.assertRegex(done.output, r'\[(\w+)\] ERROR vm-export INTERNAL-ERROR \1: a bug in '
                         r'VmBackup\.py, please report it: \w+Error')
        self.assertIn('VmBackup ended - **ERRORS DETECTED** - S:2 W:0 E:2', done.lines)
        self.assertEqual(2, sum(path.endswith('/success') for path in self.tree()))

    def test_a_vm_whose_attempt_does_not_even_begin_is_an_error_and_no_thread_need_start(self):
        def broken(log, *words, **more):
            if words[1:] == ('begin', 'two'):
                raise ValueError('x', 'y')
            return real(log, *words, **more)
        real = VmBackup.StatusLog.write
        start, started = threading.Thread.start, []

        def scarce(thread):
            if thread.name.startswith('Thread') and 'work' in repr(thread._target) and (
                    'side_by_side' in repr(thread._target)):
                started.append(thread)
                if len(started) == 3:
                    raise RuntimeError("can't start new thread")
            start(thread)
        with unittest.mock.patch.object(VmBackup.StatusLog, 'write', broken), (
                unittest.mock.patch.object(threading.Thread, 'start', scarce)):
            status, text = self.run_here('vm-export=.*', parallel=4)
        self.assertEqual((2, 4), (status, len(started)), text)
        self.assertIn("a bug in VmBackup.py, please report it: ValueError('x', 'y')", text)
        self.assertIn('S:3 W:0 E:1', text)
        self.assertLess(text.index('[four] VmBackup vm-export four'), text.index('Space status'))

    def test_a_signal_ends_all_exports_and_begins_no_more(self):
        child = self.start('password', self.config(
            'vm-export=.*', parallel=3), VMBACKUP_XE=self.noting_xe(99))
        self.wait_for(lambda: os.path.exists(self.notes) and self.most('vm-export') == 3)
        self.signalled(child)
        ended = [line for line in self.status() if ',end,INTERRUPTED' in line]
        self.assertEqual(3, len(ended), self.status())
        self.assertEqual('vmbackup.py,end,ERROR,S:0 W:0 E:3', self.status()[-1])


class Order(ParallelCase):
    @staticmethod
    def backup(name):
        return VmBackup.VmBackup(shared_without_pool('/nowhere'), VmBackup.Job(
            'vm-export', VmBackup.Vm(name, name, name, {}), 1, name))

    def test_a_run_begins_with_the_largest_disks(self):
        sizes = ('64 KiB',), ('512 KiB',), ('96 KiB', '96 KiB'), ('256 KiB',)
        self.pool_description = {'vms': [{'name': name, 'ran': True, 'disks': list(disks)}
                                         for name, disks in zip(NAMES, sizes)]}
        self.use_pool()
        self.ends(0, 'vm-export=.*', parallel=2)
        begun = [line.split(',')[-1] for line in self.status() if ',begin,' in line]
        self.assertEqual(['four', 'two'], sorted(begun[:2]))
        self.assertEqual('three', begun[2])


class Room(ParallelCase):
    """What is being written counts as written."""

    def test_room_that_another_vm_needs_is_not_free(self):
        shared = shared_without_pool(self.backups)
        histories = {}
        for name in NAMES[:2]:
            path = self.old_backup(name, 'backup-2026-01-01-(00:00:00)', 'success')
            self.put_file(os.path.join(path, name + '.xva'), bytes(1 << 20))
            histories[name] = shared.store.history(name)
        shared.store.check()
        found = unittest.mock.Mock(f_blocks=1000, f_frsize=1 << 20, f_bavail=0, f_bfree=0,
                                   f_files=0, f_favail=0)

        def begin(name, free):
            found.f_bavail = free
            backup = VmBackup.VmBackup(shared, Order.backup(name).job)
            shared.turns.append(backup)
            backup.history = histories[name]
            backup.began = VmBackup.now()
            with unittest.mock.patch('os.statvfs', return_value=found):
                backup.new_directory([name + '.xva'])
            return backup
        first = begin('one', 1)
        with self.assertRaises(VmBackup.BackupFailed) as caught:
            begin('two', 1)
        self.assertEqual('NO-SPACE', caught.exception.token)
        self.put_file(first.backup.file('one.xva'), bytes(1 << 20))
        self.assertTrue(begin('two', 1).path)

    def test_a_file_that_is_renamed_meanwhile_hides_no_room_that_is_needed(self):
        shared = shared_without_pool(self.backups)
        shared.store.check()
        backup = VmBackup.VmBackup(shared, Order.backup('one').job)
        backup.history = shared.store.history('one')
        backup.began = VmBackup.now()
        backup.new_directory(['one.xva'])
        backup.reserved, listed, calls = 1 << 20, VmBackup.names_in, []
        self.put_file(backup.backup.file('one.xva'), bytes(1 << 10))
        self.put_file(backup.backup.file('snapshot.json.1.new'), b'{}')

        def list_then_rename(path):
            found = listed(path)
            calls.append(path)
            if len(calls) == 2:
                os.rename(*map(backup.backup.file, ('snapshot.json.1.new', 'snapshot.json')))
            return found
        with unittest.mock.patch.object(VmBackup, 'names_in', list_then_rename):
            self.assertEqual((1 << 20) - (1 << 10), backup.unwritten())

    def test_what_has_failed_leaves_its_room_to_the_next_try(self):
        path = self.old_backup('one', 'backup-2026-01-01-(00:00:00)', 'success')
        self.put_file(os.path.join(path, 'one.xva'), bytes(1 << 20))
        found = unittest.mock.Mock(f_blocks=1000, f_frsize=1 << 20, f_bavail=1, f_bfree=1,
                                   f_files=0, f_favail=0)
        shared = shared_without_pool(self.backups)
        shared.store.check()
        backup = VmBackup.VmBackup(shared, Order.backup('one').job)
        backup.history = shared.store.history('one')
        backup.began = VmBackup.now()
        shared.turns.append(backup)
        with unittest.mock.patch('os.statvfs', return_value=found):
            backup.new_directory(['one.xva'])
            backup.reserved = 0
            backup.new_directory(['one.xva'])
        self.assertEqual(1 << 20, backup.unwritten())


class Held(ParallelCase):
    def test_a_directory_may_be_let_go_while_another_is_looked_for(self):
        """As by a generator that the garbage collector ends in the midst of it."""
        ends = contextlib.ExitStack()

        class Path(str):
            def __add__(self, other):
                ends.close()
                return str.__add__(self, other)
        os.makedirs(self.at('one/two'))
        with VmBackup.hold(self.at('one')):
            for place in (self.at('one/two'), self.directory):
                ends.enter_context(VmBackup.hold(place))
            with VmBackup.folder(Path(self.at('one/two'))):
                self.assertEqual([self.at('one')], list(VmBackup.HELD))


class Gentle(ParallelCase):
    """What dom0 does for its VMs comes first."""

    def test_what_a_run_starts_lets_others_go_first(self):
        place = self.at('priorities')
        xe = self.xe_that('{ ps -o ni= -p $$; ionice -p $$; } >%s' % place)
        self.ends(0, 'vm-export=one', VMBACKUP_XE=xe)
        nice, disks = self.read(place).split('\n')[:2]
        self.assertGreaterEqual(int(nice), min(19, os.nice(0) + 10))
        self.assertEqual('best-effort: prio 7', disks)


class Terminal(io.BytesIO):
    def isatty(self):
        return True


class Live(PoolCase):
    """Progress on a terminal and in a log."""

    pool_description = SMALL

    def terminal(self):
        """A Console on a terminal, and a function that returns the lines there."""
        stream = Terminal()
        console = VmBackup.Console(stream)
        console.terminal = True
        return console, lambda: screen(stream.getvalue().decode())

    def test_a_line_for_each_vm_that_runs_below_the_log_and_nothing_in_the_end(self):
        console, shown = self.terminal()
        barriers = [threading.Barrier(3), threading.Barrier(3)]

        def work(name):
            console.thread.begin, console.thread.turn = '[%s] ' % name, 'VM %s of 2: ' % name
            console.show('exported 1')
            for barrier in barriers:
                barrier.wait()
            console.log('done ' + name)
        threads = [threading.Thread(target=work, args=(name,)) for name in 'ab']
        for thread in threads:
            thread.start()
        barriers[0].wait()
        console.log('main')
        self.assertRegex(shown()[0], ' - main$')
        self.assertEqual(['VM a of 2: exported 1', 'VM b of 2: exported 1'],
                         sorted(shown()[1:]))
        barriers[1].wait()
        for thread in threads:
            thread.join()
        console.end()
        lines = shown()
        self.assertEqual(['', '[a] done a', '[b] done b', 'main'],
                         sorted(line.partition(' - ')[2] for line in lines))

    def test_the_lines_are_no_wider_than_the_terminal_and_no_more_than_it_has(self):
        for columns, rows, threads, told in (
                (80, 24, 1, ['x' * 79]), (0, 0, 1, ['x' * 79]), (0, 0, 200, ['x' * 79] * 24),
                (20, 5, 3, ['x' * 19] * 3), (20, 5, 200, ['x' * 19] * 5)):
            console, shown = self.terminal()
            console.passing = {number: 'x' * 500 for number in range(threads - 1)}
            with unittest.mock.patch('shutil.get_terminal_size',
                                     return_value=os.terminal_size((columns, rows))):
                console.show('x' * 500)
                self.assertEqual(told, shown())
                console.write('document')
                console.show('nothing more')
            self.assertEqual(['document'], [line for line in shown() if line])

    def test_what_matters_of_several_at_once_is_in_80_columns(self):
        console, shown = self.terminal()
        for number in range(4):
            console.passing[number] = (
                'VM %d of 12: 45 %%, 0:12:34 left, exported 512.3 GiB of 999.0 GiB, 98.2 MiB/s: '
                'web.xva' % number)
        with unittest.mock.patch('shutil.get_terminal_size',
                                 return_value=os.terminal_size((80, 24))):
            console.draw('')
        for number, line in enumerate(shown()):
            self.assertRegex(line, r'^VM %d of 12: 45 %%, 0:12:34 left, .* 98.2 MiB/s' % number)

    def test_beside_a_document_it_is_on_the_terminal_of_the_log_and_with_quiet_nowhere(self):
        for words, told in ((['json'], 'x'), (['json', 'quiet'], '')):
            output, errors = io.BytesIO(), Terminal()
            console = VmBackup.Console(output, errors)
            VmBackup.heed(parsed('verify', 'f', *words), console)
            console.show('x')
            self.assertEqual([told], screen(errors.getvalue().decode()))
            console.write('{}')
            self.assertEqual((b'{}', ['']),
                             (output.getvalue(), screen(errors.getvalue().decode())))

    def test_lines_of_many_threads_are_whole(self):
        reader, writer = os.pipe()
        with open(reader, 'rb') as stream, open(writer, 'wb', buffering=0) as out:
            console = VmBackup.Console(out)

            def work(name):
                console.thread.begin = '[%s] ' % name
                for number in range(50):
                    console.log('%s %d ' % (name, number) + name * 200)
            threads = [threading.Thread(target=work, args=(name,)) for name in 'abcd']
            for thread in threads:
                thread.start()
            lines = [stream.readline().decode() for _ in range(200)]
            for thread in threads:
                thread.join()
        for line in lines:
            self.assertRegex(line, r'^\S+ - \[(.)\] \1 \d+ \1{200}\n$')

    def test_exports_are_seen_on_a_terminal_and_leave_no_trace_there(self):
        self.ends(0, 'vm-export=.*')                           # their sizes are known then
        seen = [r'VM . of 2: \d+ %, 0:00:\d\d left, exported .*B of .*B, \S+ \w+/s: \w+\.xva\r?\n'
                r'VM . of 2: \d+ %, 0:00', 'vm-uninstall']
        for signals in 0, 1, 2:
            with self.subTest(signals=signals):
                self.fault('vm-export', 'slow', nth=3, times=2, rate=40000)
                if signals == 2:                       # it does not end by itself
                    self.fault('vm-uninstall', 'hang', times=2)
                    self.leaves_things_behind = True
                sent = []

                def meanwhile(child, text):
                    if len(sent) < signals and re.search(seen[len(sent)], text):
                        time.sleep(0.5)                # else both are one
                        sent.append(child.send_signal(signal.SIGTERM))
                status, text = self.on_terminal(
                    'password', self.config('vm-export=.*', parallel=2, stall_timeout=0.04),
                    columns=200, meanwhile=meanwhile)
                self.assertEqual(143 if signals else 0, status, text)
                self.assertRegex(text, seen[0])
                self.assertEqual({''}, {line for line in screen(text) if line[:2] != '20'},
                                 screen(text))

    def test_a_log_gets_a_line_now_and_then_of_an_export_that_takes_long(self):
        self.fault('vm-export', 'slow', nth=2, rate=60000)
        self.script = self.changed_script(TELL_EVERY=0.2, LOOK_EVERY=0.05)
        done = self.ends(0, 'vm-export=web')
        told = [line for line in done.lines if 'exported ' in line]
        self.assertGreater(len(told), 2, done.output)
        self.assertNotIn('\r', done.output)

    def shown(self, seconds, done, share, expected):
        """What is shown when so many seconds have passed, and bytes are done."""
        console = VmBackup.Console(None)
        console.terminal = True
        with unittest.mock.patch.object(VmBackup.Console, 'current', console):
            meter = VmBackup.Watchdog(60, None, 'exported', 'x', expected, lambda: {'task': share})
            meter.seconds, meter.logged, meter.size = lambda: seconds, seconds, lambda: done
            meter.check()
        return console.passing[threading.get_ident()]

    def test_what_is_told(self):
        for done, share, expected, seconds, told in (
                (0, 0, 0, 0, 'exported 0 bytes, 0 bytes/s: x'),
                (3 << 20, 0, 12 << 20, 30,
                 '25 %, 0:01:30 left, exported 3.0 MiB of 12.0 MiB, 102.4 KiB/s: x'),
                (3 << 20, 0.5, 12 << 20, 7200,
                 '50 %, 2:00:00 left, exported 3.0 MiB of 12.0 MiB, 437 bytes/s: x'),
                (3 << 20, 0.5, 0, 60, '50 %, 0:01:00 left, exported 3.0 MiB, 51.2 KiB/s: x'),
                (3 << 20, -1.0, 1 << 20, 60,
                 '100 %, 0:00:00 left, exported 3.0 MiB of 1.0 MiB, 51.2 KiB/s: x')):
            self.assertEqual(told, self.shown(seconds, done, share, expected))
