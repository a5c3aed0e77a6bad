"""Runs the tests: all are imported once, then units of them run side by side, each in a forked
process with a session, an empty TMPDIR and a mark in its environment of its own.

A unit (some classes, of about thirty tests) fails when a test of it fails, and also when it
crashes, takes longer than the limit, or leaves a process or a file behind.
"""

import argparse
import collections
import contextlib
import faulthandler
import itertools
import json
import locale
import multiprocessing.context
import os
import random
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
import unittest
import warnings
from typing import NamedTuple

from tests import ROOT
from tests.tools import figures, forked
from tests.tools.processes import end_all, living, name_process

MARK = 'VMBACKUP_TESTS_UNIT'
TESTS_PER_UNIT = 30
LIMIT = 600                 # seconds for one unit
GRACE = 10                  # seconds in which a unit's last processes may still end
OUTPUT = 20000              # bytes of a failed unit's output that are shown, the last ones
SHOWN = 200                 # characters of a failure's line in the list at the end
SHORT = 50                  # bytes of a directory's path that leave room for sockets in it
PASSED, FAILED, SKIPPED = OUTCOMES = ('passed', 'failed', 'skipped')
NOT_OURS = '/snapshots/NAUbackup/status.log'    # where a config names none
NOTES = '/var/lib/VmBackup'     # of a host


class Result(NamedTuple):
    """How one test, or a fixture, or a unit as a whole ended."""
    name: str
    outcome: str
    text: str = ''
    seconds: float = 0.0


class Recorder(unittest.TestResult):
    """Writes each test's one outcome: failed if any part of it failed (subtests, cleanups) or if
    it passed where failure was expected, or if an administrator's log was written; else skipped
    if any part of it was."""

    def __init__(self, report):
        super().__init__()
        self.report = report

    def write(self, *fields):
        self.report.write(json.dumps(fields) + '\n')
        self.report.flush()

    def startTest(self, test):
        self.tell_of_fixtures()
        super().startTest(test)
        self.began = time.perf_counter()
        self.write('start', test.id())

    def stopTest(self, test):
        super().stopTest(test)
        parts = self.parts()
        outcome = parts[0][1] if parts else PASSED
        self.write('end', test.id(), outcome, '\n'.join(
            '%s\n%s' % (part, text) if part is not test and outcome == FAILED else text
            for part, found, text in parts if found == outcome), time.perf_counter() - self.began)

    def tell_of_fixtures(self):
        """Write the outcomes that are not of tests: of setUpClass, setUpModule and the like."""
        for fixture, outcome, text in self.parts():
            self.write('end', fixture.id(), outcome, text, 0)

    def parts(self):
        """[(test or subtest, outcome, text)] since the last call, failures first."""
        found = [(test, FAILED, text) for test, text in self.errors + self.failures]
        found += [(test, FAILED, 'unexpected success: it is marked as an expected failure')
                  for test in self.unexpectedSuccesses]
        found += [(test, SKIPPED, reason) for test, reason in self.skipped]
        for noted in (self.errors, self.failures, self.unexpectedSuccesses, self.skipped):
            noted.clear()
        return found


def cases(suite):
    for test in suite:
        yield from cases(test) if isinstance(test, unittest.TestSuite) else [test]


def find_units(options):
    """Lists of chosen tests, the classes of each together: those that are to run in one process."""
    def chosen(test):       # a module that could not be imported always is
        return type(test).__name__ == '_FailedTest' or not options.patterns or any(
            part in test.id() for part in options.patterns)
    suites = [unittest.TestLoader().discover(place, top_level_dir=options.top)
              for place in options.places]
    units = []
    for kind, tests in itertools.groupby(filter(chosen, cases(suites)), type):
        if not units or len(units[-1]) >= options.size or (
                type(units[-1][0]).__module__ != kind.__module__):
            units.append([])
        units[-1] += tests
    return units


def remove_tree(path):
    """Remove a directory, also where a test has taken the permission to do so away."""
    for directory, names, _ in os.walk(path):
        for name in (os.path.join(directory, name) for name in names):
            if not os.path.islink(name):
                os.chmod(name, stat.S_IRWXU)
    shutil.rmtree(path)


@contextlib.contextmanager
def fresh_directory():
    """A new directory below TMPDIR, removed afterwards; by a link in /tmp where its path is long
    (a socket's whole path has 107 bytes at most) or has odd letters (some tests write shell)."""
    path = name = tempfile.mkdtemp(prefix='vbt')
    try:
        if len(path) > SHORT or not re.match('[A-Za-z0-9/._-]+$', path):
            name = os.path.join('/tmp', os.path.basename(path))
            os.symlink(path, name)
        yield name
    finally:
        if name != path:
            os.unlink(name)
        remove_tree(path)


def state_of(path):
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


class Worker(multiprocessing.context.ForkProcess):
    """A unit at work: started by its making; `done` polls it, then `results` tells."""

    def __init__(self, tests, number, base, options):
        super().__init__(name='%s/%d' % (
            type(tests[0]).__module__.rpartition('tests.')[2], number))
        self.tests, self.limit = tests, options.limit
        self.token = '%s-%d' % (os.path.basename(base), number)
        self.counts = os.path.join(base, 'figures')
        self.tmp = os.path.join(base, str(number))
        self.report, self.output = self.tmp + '.report', self.tmp + '.output'
        os.mkdir(self.tmp)
        self.began, self.overdue = time.monotonic(), False
        self.untouched = state_of(NOT_OURS), state_of(NOTES)
        self.start()

    def run(self):
        """In the process of its own: run the tests."""
        os.setsid()
        name_process(self.token)
        for number in (signal.SIGTERM, signal.SIGHUP):     # also where nohup has us ignore them
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(os.devnull) as null, open(self.output, 'wb') as output:
            for number, stream in enumerate((null, output, output)):
                os.dup2(stream.fileno(), number)
        os.environ.update(dict.fromkeys(('TMPDIR', 'TMP', 'TEMP'), self.tmp), **{
            figures.FILE: self.counts, MARK: '%s:%s' % (os.environ.get(MARK, ''), self.token)})
        tempfile.tempdir = None
        random.seed()
        os.chdir(ROOT)
        forked.begin()
        faulthandler.enable()
        faulthandler.dump_traceback_later(self.limit)
        with open(self.report, 'w', encoding='utf-8') as report, warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter('default')
            recorder = Recorder(report)
            unittest.TestSuite(self.tests).run(recorder)
            recorder.tell_of_fixtures()
            recorder.write('finished')
        forked.end()
        for thread in threading.enumerate():    # as an interpreter's end does (from 3.7: anyway)
            if not thread.daemon and thread is not threading.main_thread():
                thread.join()

    def done(self):
        """Whether it has ended; ends it where it is over its limit."""
        # Half a second for the stacks that the unit writes when its limit is reached.
        if self.exitcode is None and time.monotonic() - self.began > self.limit + 0.5:
            self.overdue = True
            self.kill()
        return self.exitcode is not None

    def kill(self):
        """End it at once, and all that it has started."""
        if self.exitcode is None:
            for send in (os.killpg, os.kill):               # all that we can do without /proc
                with contextlib.suppress(ProcessLookupError):
                    send(self.pid, signal.SIGKILL)
            self.join()
        end_all(MARK, self.token, self.pid)

    def results(self):
        """Results of its tests, and of the unit itself where that did not end properly."""
        found, running, finished = self.read_report()
        deadline = time.monotonic() + GRACE * (not self.overdue)
        left = living(MARK, self.token, self.pid)
        while left and time.monotonic() < deadline:         # its last children are ending
            time.sleep(0.02)
            left = living(MARK, self.token, self.pid)
        self.kill()
        problems = {}
        if left and not self.overdue:
            problems['processes'] = 'left running: ' + ', '.join(
                '%d %s' % item for item in sorted(left.items()))
        if self.overdue:
            problems['unit'] = 'still running after %g s: ended' % self.limit
        elif self.exitcode or not finished:
            problems['unit'] = 'its process ended with %s %d' % (
                'signal' if self.exitcode < 0 else 'exit status', abs(self.exitcode))
        elif os.listdir(self.tmp):
            problems['files'] = 'left behind in TMPDIR: %s' % ascii(sorted(os.listdir(self.tmp)))
        if (state_of(NOT_OURS), state_of(NOTES)) != self.untouched:
            problems['log'] = '%s was written, or %s, by this unit or beside it' % (NOT_OURS, NOTES)
        return found + [Result(running or '%s (%s)' % (self.name, what), FAILED, text)
                        for what, text in problems.items()]

    def read_report(self):
        """(results so far, id of the test that had no end, whether all was run)."""
        found, running, word = [], None, None
        with contextlib.suppress(FileNotFoundError), open(self.report, encoding='utf-8') as report:
            for line in report:
                if line.endswith('\n'):             # else it was killed while it wrote that
                    word, *fields = json.loads(line)
                    running = fields[0] if word == 'start' else None
                    if word == 'end':
                        found.append(Result(*fields))
        return found, running, word == 'finished'

    def last_words(self):
        """The end of what it wrote to stdout and stderr."""
        with open(self.output, 'rb') as output:
            return output.read()[-OUTPUT:].decode('utf-8', 'replace').rstrip('\n')


def tally(results):
    count = collections.Counter(result.outcome for result in results)
    return ', '.join('%d %s' % (count[outcome], outcome) for outcome in OUTCOMES)


def run(options):
    """(results of all units, {kind of fault: (injected, checked)}), as many at a time as options
    say. Shows each unit as it ends."""
    waiting = collections.deque(find_units(options))
    number, running, results = 0, [], []
    with fresh_directory() as base:
        try:
            while waiting or running:
                while waiting and len(running) < options.jobs:
                    number += 1
                    running.append(Worker(waiting.popleft(), number, base, options))
                for worker in [worker for worker in running if worker.done()]:
                    found = worker.results()
                    running.remove(worker)
                    show_unit(worker, found, options)
                    results += found
                time.sleep(0.01)
        finally:
            for worker in running:
                worker.kill()
        return results, figures.read(os.path.join(base, 'figures'))


def show_unit(worker, found, options):
    """A line for a unit, one for each test where asked for, and what it wrote if it failed."""
    failed = any(result.outcome == FAILED for result in found)
    write_line('%-6s  %-36s  %6.1f s  %s' % ('FAILED' if failed else 'ok', worker.name,
                                             time.monotonic() - worker.began, tally(found)))
    for result in found if options.verbose else ():
        write_line('        %-7s  %6.2f s  %s' % (result.outcome, result.seconds, result.name))
    words = worker.last_words() if failed or options.verbose else ''
    if words:
        write_line('--- output of %s\n%s\n---' % (worker.name, words))


def summarize(results, counted):
    """Print failures in full, skipped tests by reason, the slowest tests, and what was counted."""
    failures = [result for result in results if result.outcome == FAILED]
    for result in failures:
        write_line('\n%s\nFAILED %s\n\n%s' % ('=' * 70, result.name, result.text.rstrip('\n')))
    skipped = [result for result in results if result.outcome == SKIPPED]
    for reason in sorted({result.text for result in skipped}):
        names = [result.name for result in skipped if result.text == reason]
        write_line('\nskipped %d: %s\n    %s' % (len(names), reason, '\n    '.join(names)))
    write_line('\nslowest' if results else '\nno test was selected')
    for result in sorted(results, key=lambda result: -result.seconds)[:5]:
        write_line('    %6.2f s  %s' % (result.seconds, result.name))
    if counted:
        write_line('\nfaults injected, and invariants checked after them')
    for line in figures.table(counted):
        write_line(line and '    ' + line)
    write_line('\nwhat failed' if failures else '')
    for result in failures:
        write_line('    failed: %s: %s' % (result.name, in_short(result.text)))


def in_short(text):
    """The line of a failure's text that says most: its last exception, else its last line."""
    lines = [line for line in text.splitlines() if line.strip()] or ['']
    errors = [line for line in lines if re.match(r'[\w.]+(Error|Exception|Expired)\b', line)]
    return (errors or lines)[-1][:SHOWN]


def parse(argv, prog, **defaults):
    """The options; exits with 2 where they are wrong. `defaults` of options, and of three that the
    command line does not have: `places`, the folders whose tests are run, `top`, from where they
    are imported, and `size`, the number of tests in a unit."""
    def positive(text):
        value = float(text)
        if value <= 0:
            raise ValueError(text)
        return value
    parser = argparse.ArgumentParser(prog=prog, description='Runs the tests.')
    parser.add_argument('-k', dest='patterns', metavar='NAME', action='append', default=[],
                        help='only tests whose id contains NAME (several: any of them)')
    parser.add_argument('-v', dest='verbose', action='store_true',
                        help='a line for every test, and what units write')
    parser.add_argument('-j', dest='jobs', metavar='N', type=positive,
                        default=(os.cpu_count() or 1) + 1,      # as each waits now and then
                        help='so many processes at a time (default: %(default)s)')
    parser.add_argument('--limit', metavar='SECONDS', type=positive, default=LIMIT,
                        help='time for one unit of tests (default: %(default)s)')
    parser.set_defaults(**dict({'top': ROOT, 'size': TESTS_PER_UNIT}, **defaults))
    return parser.parse_args(argv)


def write_line(text):
    """Print text and a newline, whatever the locale can show."""
    encoding = sys.stdout.encoding or 'ascii'
    print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)


def in_a_locale_for_tests():
    """Start again in a UTF-8 locale where a Python of 3.6 takes one of ASCII at its word: tests
    name all kinds of files."""
    if sys.getfilesystemencoding() == 'utf-8' or 'VMBACKUP_TESTS_LOCALE' in os.environ:
        return
    for name in ('C.UTF-8', 'en_US.UTF-8'):
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, name)
            os.environ.update(LC_ALL=name, VMBACKUP_TESTS_LOCALE=name)
            os.execv(sys.executable, [sys.executable, '-m', 'tests'] + sys.argv[1:])


def main(argv, prog='python3 -m tests', afterwards=None, **defaults):
    """Exit status of a whole run: 0 when nothing failed and something ran. Signals end it, and all
    that it has started. `afterwards` is called before the closing line is printed."""
    options = parse(argv, prog, **defaults)
    os.umask(0o022)                                    # else others might change a hook
    in_a_locale_for_tests()
    forked.deferred = True

    def stop(number, _):
        for other in before:
            signal.signal(other, signal.SIG_IGN)    # the first one is enough: let us clean up
        raise KeyboardInterrupt(number)
    before = {number: signal.signal(number, stop)
              for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
              if signal.getsignal(number) != signal.SIG_IGN}
    try:
        results, counted = run(options)
    except KeyboardInterrupt as interrupted:
        write_line('interrupted')
        return 128 + interrupted.args[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    summarize(results, counted)
    if afterwards:
        afterwards()
    write_line('\n' + tally(results))
    return int(not results or any(result.outcome == FAILED for result in results))
