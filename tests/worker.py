"""One unit of the tests in a process of its own: python3 -m tests.worker REPORT SPEC.

SPEC is JSON: top (the directory that imports start from), module, shard and owners (which of the
module's classes this unit runs, see runner.Unit), patterns (substrings of a test's id, any of
them selects it; none select all) and limit (seconds after which the stacks of all threads are
written to stderr; the runner then ends us).

REPORT gets a JSON object a line, so that whatever happens to us, what was done before is told:
{"start": id}, {"end": id, "outcome": ..., "text": ..., "seconds": ..., "fixture": bool} and, as
the last one, {"finished": true}.
"""

import faulthandler
import importlib
import json
import signal
import sys
import time
import traceback
import unittest
import warnings

PASSED, FAILED, SKIPPED = 'passed', 'failed', 'skipped'


class Recorder(unittest.TestResult):
    """Writes each test's one outcome to the report, failures with their whole traceback.

    A test fails if any part of it fails (subtests, cleanups) or if it passes where failure was
    expected; otherwise it is skipped if any part of it was.
    """

    def __init__(self, report):
        super().__init__()
        self._report = report
        self._test = None

    def write(self, **event):
        """Add one line to the report."""
        self._report.write(json.dumps(event) + '\n')
        self._report.flush()

    def fixture(self, name, outcome, text):
        """Tell of something that is no test: an import, a setUpClass."""
        self.write(end=name, outcome=outcome, text=text, seconds=0, fixture=True)

    def startTest(self, test):
        """A test begins."""
        super().startTest(test)
        self._test, self._failures, self._skips = test, [], []
        self._began = time.perf_counter()
        self.write(start=test.id())

    def stopTest(self, test):
        """A test is over: its outcome is known now."""
        super().stopTest(test)
        parts = self._failures or self._skips
        outcome = FAILED if self._failures else SKIPPED if self._skips else PASSED
        self.write(end=test.id(), outcome=outcome, text='\n'.join(parts), fixture=False,
                   seconds=time.perf_counter() - self._began)
        self._test = None

    def addError(self, test, err):
        """Anything but a failed assertion; outside of any test: from setUpClass and the like."""
        text = self._exc_info_to_string(err, test)
        if self._test is None:
            self.fixture(test.id(), FAILED, text)
        else:
            self._failures.append(text)

    def addFailure(self, test, err):
        """A failed assertion."""
        self.addError(test, err)

    def addSubTest(self, test, subtest, err):
        """A part of a test is over; err is None where it passed."""
        if err is not None:
            self._failures.append('%s\n%s' % (subtest, self._exc_info_to_string(err, test)))

    def addSkip(self, test, reason):
        """A test, a part of one, or a whole class does not apply here."""
        if self._test is None:
            self.fixture(test.id(), SKIPPED, reason)
        else:
            self._skips.append(reason)

    def addUnexpectedSuccess(self, test):
        """A test that is marked as an expected failure passed."""
        self._failures.append('unexpected success: it is marked as an expected failure')


def cases(suite):
    """Every single test in a suite, in order."""
    for test in suite:
        if isinstance(test, unittest.BaseTestSuite):
            yield from cases(test)
        else:
            yield test


def chosen(spec):
    """The suite of the unit's tests that the patterns select. Imports the module."""
    module = importlib.import_module(spec['module'])
    return unittest.TestSuite(
        test for test in cases(unittest.defaultTestLoader.loadTestsFromModule(module))
        if spec['owners'].get(type(test).__name__, 0) == spec['shard']
        and (not spec['patterns'] or any(part in test.id() for part in spec['patterns'])))


def heed_signals():
    """Undo what nohup or a background job has us ignore: tests send these signals to children."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler),
                            (signal.SIGTERM, signal.SIG_DFL), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def main(report, spec):
    """Run one unit; all that is to be told goes to the report."""
    heed_signals()
    faulthandler.enable()
    faulthandler.dump_traceback_later(spec['limit'])
    sys.path.insert(0, spec['top'])
    recorder = Recorder(report)
    name = '%s (import)' % spec['module']
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter('default')
        try:
            suite = chosen(spec)
        except unittest.SkipTest as skip:
            recorder.fixture(name, SKIPPED, str(skip))
        except BaseException:       # SystemExit too: a module that exits has not been tested
            recorder.fixture(name, FAILED, traceback.format_exc())
        else:
            suite.run(recorder)
    recorder.write(finished=True)


if __name__ == '__main__':
    with open(sys.argv[1], 'w', encoding='utf-8') as REPORT:
        main(REPORT, json.loads(sys.argv[2]))
