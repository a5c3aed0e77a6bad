"""Every fault of the matrices: python3 -m tests faults. The tests alone inject a sample of them.

Runs the modules test_faults*.py, each class in a process of its own, as so many faults take long.
VMBACKUP_TEST_EVERY=N in the environment takes every Nth of them only, VMBACKUP_TEST_SEED=TEXT other
ones.
"""

import os

from tests import faulting, runner

PROGRAM = 'python3 -m tests faults'
LIMIT = 900                     # seconds for one class
JOBS = 2                        # processes per CPU: they wait half of their time


def main(argv):
    """Exit status of the tests that inject faults."""
    os.environ[faulting.FULL] = '1'
    return runner.main(argv, PROGRAM, modules='test_faults*.py', size=1, limit=LIMIT,
                       jobs=JOBS * (os.cpu_count() or 1))
