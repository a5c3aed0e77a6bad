"""Runs the tests: units of every test module side by side, each in a process of its own.

A unit (a few classes of one module) gets its own session, its own empty TMPDIR and a mark in its
environment. It fails when a test of it fails, and also when it crashes, takes longer than the
limit, or leaves a process or a file behind. Only the standard library is needed, and nothing is
written but below TMPDIR, where nothing stays. What the units count (figures.py) is added up.
"""

import argparse
import ast
import collections
import contextlib
import glob
import json
import locale
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from typing import Dict, NamedTuple

from tests import figures
from tests.worker import FAILED, PASSED, SKIPPED

HERE = os.path.dirname(os.path.abspath(__file__))
MARK = 'VMBACKUP_TESTS_UNIT'
TESTS_PER_UNIT = 12         # a unit costs an interpreter and the module's import
LIMIT = 300                 # seconds for one unit
GRACE = 2                   # seconds in which a unit's last processes may still end
OUTPUT = 20000              # characters of a failed unit's output that are shown, the last ones
SHOWN = 200                 # characters of a failure's line in the list at the end
SLOWEST = 5
SHORT = 50                  # bytes of a directory's path that leave room for sockets in it
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asks us to stop."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


class Result(NamedTuple):
    """How one test (or fixture, or unit as a whole) ended."""
    name: str
    outcome: str
    text: str = ''
    seconds: float = 0.0
    fixture: bool = False


class Tally(NamedTuple):
    """All results; truth and counts of a whole run."""
    results: list
    figures: dict = {}

    def count(self, outcome):
        """How many ended so."""
        return sum(result.outcome == outcome for result in self.results)

    def __str__(self):
        return ', '.join('%d %s' % (self.count(o), o) for o in (PASSED, FAILED, SKIPPED))

    @property
    def status(self):
        """Exit status: 0 when nothing failed and something ran."""
        return 1 if self.count(FAILED) or not self.results else 0


class Unit(NamedTuple):
    """Some of a module's classes: those whose number is `shard` in owners; unknown ones are 0."""
    top: str
    module: str
    shard: int = 0
    owners: Dict[str, int] = {}

    def __str__(self):
        return '%s/%d' % (self.module, self.shard + 1) if self.owners else self.module


def owners(source, size=TESTS_PER_UNIT):
    """{class: number of its unit} of a module's source; empty where one unit is enough.

    A unit has about `size` tests; a class without any of its own has some of its bases', maybe.
    """
    numbers, unit, filled = {}, 0, 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            if filled >= size:
                unit, filled = unit + 1, 0
            numbers[node.name] = unit
            filled += sum(getattr(part, 'name', '').startswith('test')
                          for part in node.body) or 1
    return numbers if unit else {}


def find_units(directory, size, modules):
    """The units, of such a size, of the modules in a package's directory that match `modules`.

    Size 0 leaves them undivided.
    """
    top, package = os.path.split(os.path.abspath(directory))
    units = []
    for path in sorted(glob.glob(os.path.join(glob.escape(directory), modules))):
        module = '%s.%s' % (package, os.path.basename(path)[:-3])
        with open(path, 'rb') as file:
            source = file.read()
        try:
            numbers = owners(source, size) if size else {}
        except (SyntaxError, ValueError):
            numbers = {}            # importing it will tell
        for shard in range(max(numbers.values(), default=0) + 1):
            units.append(Unit(top, module, shard, numbers))
    return units


# Processes that a unit has started: found by the mark that they inherit, or by their session.

def living(token, session=-1):
    """{pid: command line} of the processes with a mark, or of a session. Empty without /proc."""
    found = {}
    for pid in filter(str.isdigit, os.listdir('/proc') if os.path.isdir('/proc/self') else []):
        state, _, _, group = (read_proc(pid, 'stat').rpartition(b')')[2].split() + [b'X'] * 4)[:4]
        marks = [line.partition(b'=')[2] for line in read_proc(pid, 'environ').split(b'\0')
                 if line.startswith(MARK.encode() + b'=')]
        ours = group == b'%d' % session or any(token.encode() in m.split(b':') for m in marks)
        if ours and state not in b'ZX':
            command = read_proc(pid, 'cmdline').replace(b'\0', b' ')
            found[int(pid)] = command.decode('utf-8', 'replace').strip()
    return found


def read_proc(pid, name):
    """The bytes of /proc/PID/NAME; empty where the process is gone, or another user's."""
    try:
        with open('/proc/%s/%s' % (pid, name), 'rb') as file:
            return file.read()
    except OSError:
        return b''


def end_all(token, session=-1):
    """Kill all of them, children that they still make meanwhile included."""
    for _ in range(100):
        pids = living(token, session)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            break
        time.sleep(0.02)


def remove_tree(path):
    """Remove a directory, also where a test has taken the permission to do so away."""
    for directory, names, _ in os.walk(path):
        for name in (os.path.join(directory, name) for name in names):
            if not os.path.islink(name):
                os.chmod(name, stat.S_IRWXU)
    shutil.rmtree(path)


@contextlib.contextmanager
def fresh_directory():
    """A new directory below TMPDIR, removed afterwards."""
    path = tempfile.mkdtemp(prefix='vbt')
    try:
        with short_name(path) as name:
            yield name
    finally:
        remove_tree(path)


@contextlib.contextmanager
def short_name(path):
    """The path, or a link in /tmp where it is long or has odd letters: a socket's whole path has
    107 bytes at most, and some tests write paths into shell lines."""
    plain = re.match('[A-Za-z0-9/._-]+$', path)
    if plain and len(path) <= SHORT or not os.access('/tmp', os.W_OK):
        yield path
        return
    link = os.path.join('/tmp', os.path.basename(path))
    os.symlink(path, link)
    try:
        yield link
    finally:
        os.unlink(link)


def locale_for_tests():
    """Variables with which a Python of 3.6 too can name any file: it takes the locale at its word.

    What the tests start gets the locales that they are about.
    """
    if sys.getfilesystemencoding() == 'utf-8':
        return {}
    current = locale.setlocale(locale.LC_ALL)
    try:
        for name in ('C.UTF-8', 'en_US.UTF-8'):
            with contextlib.suppress(locale.Error):
                locale.setlocale(locale.LC_ALL, name)
                return {'LC_ALL': name}
    finally:
        locale.setlocale(locale.LC_ALL, current)
    return {}


def figures_of(base):
    """The file to which the units of a run append what they count."""
    return os.path.join(base, 'figures')


class Worker:
    """A unit at work: started by its making; `done` polls it, then `results` tells."""

    def __init__(self, unit, number, base, options):
        self.unit = unit
        self.limit = options.limit
        run = os.path.basename(base)
        self.token = '%s-%d' % (run, number)
        self.tmp = os.path.join(base, str(number))
        self.report, self.output = self.tmp + '.report', self.tmp + '.output'
        os.mkdir(self.tmp)
        spec = dict(unit._asdict(), patterns=options.patterns, limit=options.limit)
        environ = dict(os.environ, TMPDIR=self.tmp, TMP=self.tmp, TEMP=self.tmp)
        environ.update(locale_for_tests())
        environ[MARK] = '%s:%s:%s' % (os.environ.get(MARK, ''), run, self.token)
        environ[figures.FILE] = figures_of(base)
        self.began = time.monotonic()
        self.overdue = False
        with open(self.output, 'wb') as output:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'tests.worker', self.report, json.dumps(spec)],
                cwd=os.path.dirname(HERE), env=environ, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    def done(self):
        """Whether it has ended; ends it where it is over its limit."""
        if self.process.poll() is not None:
            return True
        # Half a second for the stacks that the worker writes when its limit is reached.
        self.overdue = time.monotonic() - self.began > self.limit + 0.5
        if self.overdue:
            self.kill()
        return self.overdue

    def kill(self):
        """End it at once, and all that it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)     # all that we can do without /proc
        end_all(self.token, self.process.pid)
        self.process.wait()

    def results(self):
        """Results of its tests, and of the unit itself where that did not end properly."""
        found, running, finished = self.read_report()
        left = self.left_processes()
        self.kill()
        files = sorted(os.listdir(self.tmp))
        if not finished:
            found.append(self.failed('unit', self.how_it_ended(), running))
        elif self.process.returncode:
            found.append(self.failed('exit', self.how_it_ended()))
        elif files:
            found.append(self.failed(
                'files', 'left behind in TMPDIR: %s' % ', '.join(map(ascii, files))))
        if left:
            found.append(self.failed('processes', '\n'.join(
                'left running: %d %s' % item for item in sorted(left.items()))))
        return found

    def failed(self, what, text, test=None):
        """A failure of the unit itself, or of the test that is to blame for it."""
        return Result(test or '%s (%s)' % (self.unit, what), FAILED, text)

    def read_report(self):
        """(results so far, id of the test that had no end, whether all was run)."""
        found, running, finished = [], None, False
        with contextlib.suppress(FileNotFoundError):
            with open(self.report, encoding='utf-8') as report:
                for line in report:
                    if not line.endswith('\n'):
                        break               # it was killed while it wrote that
                    event = json.loads(line)
                    finished = finished or 'finished' in event
                    running = event.get('start')
                    if 'end' in event:
                        found.append(Result(event['end'], event['outcome'], event['text'],
                                            event['seconds'], event['fixture']))
        return found, running, finished

    def left_processes(self):
        """{pid: command} of what outlives the unit, its last children's end awaited."""
        if self.overdue:
            return {}
        deadline = time.monotonic() + GRACE
        left = living(self.token, self.process.pid)
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = living(self.token, self.process.pid)
        return left

    def how_it_ended(self):
        """Words for an end that should not have been."""
        if self.overdue:
            return 'still running after %g s: ended' % self.limit
        code = self.process.returncode
        how = 'exit status %d' % code if code >= 0 else 'signal %d' % -code
        return 'the process of %s ended with %s' % (self.unit, how)

    def last_words(self):
        """The end of what it wrote to stdout and stderr."""
        with open(self.output, 'rb') as output:
            text = output.read().decode('utf-8', 'replace')
        return text if len(text) <= OUTPUT else '[...]\n' + text[-OUTPUT:]


def run(options, show):
    """Tally of all units, as many at a time as options say. `show` prints a line."""
    waiting = collections.deque(find_units(options.directory, options.size, options.modules))
    running, results, fixtures = [], [], set()
    width = max((len(str(unit)) for unit in waiting), default=0)
    number = 0
    with fresh_directory() as base:
        try:
            while waiting or running:
                while waiting and len(running) < options.jobs:
                    number += 1
                    running.append(Worker(waiting.popleft(), number, base, options))
                for worker in [worker for worker in running if worker.done()]:
                    found = [r for r in worker.results()
                             if not (r.fixture and r.name in fixtures)]
                    running.remove(worker)
                    fixtures.update(r.name for r in found if r.fixture)
                    results += found
                    show_unit(worker, found, width, options, show)
                time.sleep(0.01)
        finally:
            end_all(os.path.basename(base))
            for worker in running:
                worker.kill()
        return Tally(results, figures.read(figures_of(base)))


def show_unit(worker, found, width, options, show):
    """A line for a unit, one for each test where asked for, and what it wrote if it failed."""
    if not found:
        return              # none selected, or a unit of helpers only
    tally = Tally(found)
    word = 'FAILED' if tally.count(FAILED) else 'ok'
    seconds = time.monotonic() - worker.began
    show('%-6s  %-*s  %6.1f s  %s' % (word, width, worker.unit, seconds, tally))
    if options.verbose:
        for result in found:
            show('        %-7s  %6.2f s  %s' % (result.outcome, result.seconds, result.name))
    words = worker.last_words()
    if words and (tally.count(FAILED) or options.verbose):
        show('--- output of %s\n%s\n---' % (worker.unit, words.rstrip('\n')))


def summarize(tally, show):
    """Print failures in full, skipped tests by reason, the slowest tests, and what was counted."""
    for result in tally.results:
        if result.outcome == FAILED:
            show('\n%s\nFAILED %s\n\n%s' % ('=' * 70, result.name, result.text.rstrip('\n')))
    reasons = collections.OrderedDict()
    for result in tally.results:
        if result.outcome == SKIPPED:
            reasons.setdefault(result.text, []).append(result.name)
    for reason, names in reasons.items():
        show('\nskipped %d: %s' % (len(names), reason))
        for name in names:
            show('    %s' % name)
    if not tally.results:
        show('\nno test was selected')
        return
    slow = sorted(tally.results, key=lambda result: -result.seconds)[:SLOWEST]
    show('\nslowest')
    for result in slow:
        show('    %6.2f s  %s' % (result.seconds, result.name))
    if tally.figures:
        show('\nfaults injected, and invariants checked after them')
    for line in figures.table(tally.figures):
        show('    ' + line)
    if tally.count(FAILED):
        show('\nwhat failed')
    for result in tally.results:
        if result.outcome == FAILED:
            show('    failed: %s: %s' % (result.name, in_short(result.text)))


def in_short(text):
    """The line of a failure's text that says most: its last exception, else its last line."""
    lines = [line for line in text.splitlines() if line.strip()] or ['']
    errors = [line for line in lines if re.match(r'[\w.]+(Error|Exception|Expired)\b', line)]
    return (errors or lines)[-1][:SHOWN]


def parse(argv, prog, **defaults):
    """The options, as argparse gives them; exits with 2 where they are wrong.

    `defaults` of options, and of two that the command line does not have: `modules`, the pattern
    of the modules that are run, and `size`, the number of tests in a unit.
    """
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
    parser.add_argument('-j', dest='jobs', metavar='N', type=positive, default=os.cpu_count() or 1,
                        help='so many processes at a time (default: one per CPU)')
    parser.add_argument('--limit', metavar='SECONDS', type=positive, default=LIMIT,
                        help='time for one unit of tests (default: %(default)s)')
    parser.add_argument('--directory', metavar='DIR', default=HERE,
                        help='the package whose test_*.py are run (default: this one)')
    parser.set_defaults(**dict({'modules': 'test_*.py', 'size': None}, **defaults))
    options = parser.parse_args(argv)
    if options.size is None:
        options.size = 0 if options.patterns else TESTS_PER_UNIT
    return options


def write_line(text):
    """Print text and a newline, whatever the locale can show."""
    encoding = sys.stdout.encoding or 'ascii'
    print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)


def test_run(options):
    """Tally of a run, its details printed. Signals end it, and all that it has started."""
    def stop(number, _):
        for other in before:
            signal.signal(other, signal.SIG_IGN)    # the first one is enough: let us clean up
        raise Interrupted(number)
    before = {number: signal.signal(number, stop) for number in STOPPING
              if signal.getsignal(number) != signal.SIG_IGN}
    try:
        tally = run(options, write_line)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    summarize(tally, write_line)
    return tally


def main(argv, prog='python3 -m tests', afterwards=None, **defaults):
    """Exit status of a whole run. `afterwards` is called before the closing line is printed.

    `defaults` are those of `parse`.
    """
    options = parse(argv, prog, **defaults)
    try:
        tally = test_run(options)
    except Interrupted as interrupted:
        write_line('interrupted')
        return 128 + interrupted.number
    if afterwards:
        afterwards()
    write_line('')
    write_line(str(tally))
    return tally.status
