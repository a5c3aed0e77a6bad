"""What the tests reach in the programs: python3 -m tests coverage. Children are measured too.

The package `coverage` measures; a child process is measured from its start because PYTHONPATH
names a directory whose sitecustomize.py asks `coverage` to begin, and COVERAGE_PROCESS_START its
settings. A process that is ended by SIGKILL or os._exit leaves no data.
"""

import os
import sys

from tests.tools import runner

PROGRAM = 'python3 -m tests coverage'
SETTINGS = """\
[run]
branch = true
parallel = true
data_file = {directory}/data
source = {top}
omit = {top}/tests/*
{sigterm}
[report]
show_missing = true
"""
HOOK = 'import coverage\ncoverage.process_startup()\n'


def prepare(directory, version, top=os.path.dirname(runner.HERE)):
    """Write settings and hook into the directory; the environment that makes children obey.

    Measured is what lies below `top`, never executed files too; version is that of `coverage`.
    """
    settings = os.path.join(directory, 'settings')
    with open(settings, 'w', encoding='utf-8') as file:
        file.write(SETTINGS.format(
            directory=directory, top=top,
            sigterm='sigterm = true' if version >= (6, 4) else ''))
    with open(os.path.join(directory, 'sitecustomize.py'), 'w', encoding='utf-8') as file:
        file.write(HOOK)
    path = os.environ.get('PYTHONPATH')
    return {'COVERAGE_PROCESS_START': settings,
            'PYTHONPATH': os.pathsep.join([directory] + ([path] if path else []))}


def report(coverage, settings):
    """Print the table of files with the lines that no test reached, and the total."""
    measured = coverage.Coverage(config_file=settings)
    runner.write_line('\ncoverage')
    try:
        measured.combine()
        total = measured.report(file=sys.stdout)
    except coverage.CoverageException as error:
        runner.write_line('nothing was measured: %s' % error)
    else:
        runner.write_line('coverage of lines and branches: %.1f %%' % total)


def main(argv):
    """Exit status of the tests, run as ever; 2 where `coverage` is missing."""
    try:
        import coverage
    except ImportError:
        print('coverage needs the package of that name: python3 -m pip install coverage',
              file=sys.stderr)
        return 2
    with runner.fresh_directory() as directory:
        environ = prepare(directory, coverage.version_info)
        os.environ.update(environ)
        return runner.main(argv, PROGRAM, lambda: report(
            coverage, environ['COVERAGE_PROCESS_START']))
