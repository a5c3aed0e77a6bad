"""What the tests reach in the programs: python3 -m tests coverage.

The package `coverage` measures from before the script is loaded, and in every process that is
forked; one that is ended by SIGKILL leaves no data, nor does one that is started for real.
"""

import sys
import tempfile
import warnings

from tests import ROOT

SETTINGS = """\
[run]
branch = true
parallel = true
patch = _exit
data_file = {directory}/data
source = {top}
omit = {top}/tests/*
[report]
show_missing = true
"""


def report(coverage, settings):
    """Print the table of files with the lines that no test reached, and the total."""
    measured = coverage.Coverage(config_file=settings)
    print('\ncoverage')
    try:
        measured.combine()
        total = measured.report(file=sys.stdout)
    except coverage.CoverageException as error:
        print('nothing was measured: %s' % error)
    else:
        print('coverage of lines and branches: %.1f %%' % total)


def main(argv, prog, **suite):
    """Exit status of the tests, run as ever; 2 where `coverage` is missing."""
    try:
        import coverage
    except ImportError:
        print('coverage needs the package of that name: python3 -m pip install coverage',
              file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as directory:
        settings = directory + '/settings'
        with open(settings, 'w', encoding='utf-8') as stream:
            stream.write(SETTINGS.format(directory=directory, top=ROOT))
        warnings.filterwarnings('ignore', category=coverage.exceptions.CoverageWarning)
        measuring = coverage.Coverage(config_file=settings)
        measuring.start()
        from tests.tools import runner      # it loads the script

        def afterwards():
            measuring.stop()
            measuring.save()
            report(coverage, settings)
        return runner.main(argv, prog, afterwards, **suite)
