"""The tests of VmBackup.py, the simulated pool that they run on, and its demo: see README.md."""

import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))      # of the checkout
SCRIPT = os.path.join(ROOT, 'VmBackup.py')
DATA = os.path.join(ROOT, 'tests', 'data')
