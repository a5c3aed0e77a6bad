"""python3 -m tests [COMMAND] [options]; alone: test."""

import importlib
import os
import sys

from tests import ROOT

SUITES = {      # of tests: folders, and what else runner.main takes
    'test': dict(places=('faults', 'runs', 'papers', 'commands', 'rules')),
    'tools': dict(places=('simpool', 'tools')),
    'faults': dict(places=('faults',), size=1, limit=900, jobs=2 * (os.cpu_count() or 1)),
}
COMMANDS = {
    'test': ('runner', 'run the tests (what happens without a command)'),
    'tools': ('runner', 'run the tests of what tests: the simulated pool, this runner'),
    'faults': ('runner', 'inject every fault of the matrices, not only a sample'),
    'coverage': ('coverage_run', 'run the tests and measure what they reach'),
    'host': ('host', 'try the script out on a real host, before its first backup'),
    'bench': ('bench', 'measure speed and memory'),
    'demo': ('demo', 'VMs backed up, lost and brought back on a simulated pool'),
}


def usage():
    """The commands, a line each."""
    lines = ['usage: python3 -m tests [command] [options]', '']
    lines += ['  %-10s %s' % (name, text) for name, (_, text) in COMMANDS.items()]
    return '\n'.join(lines + ['', 'Each of them takes --help.'])


def main(argv):
    """Exit status of the command that argv names; 2 where there is no such command."""
    command = 'test'
    if argv and not argv[0].startswith('-'):
        command, argv = argv[0], argv[1:]
    if command not in COMMANDS:
        print('no such command: %s\n\n%s' % (command, usage()), file=sys.stderr)
        return 2
    module = importlib.import_module('tests.tools.' + COMMANDS[command][0])
    if COMMANDS[command][0] not in ('runner', 'coverage_run'):
        return module.main(argv)
    if command == 'faults':
        os.environ['VMBACKUP_TEST_FULL'] = '1'
    suite = dict(SUITES.get(command, SUITES['test']))
    suite['places'] = [os.path.join(ROOT, 'tests', place) for place in suite['places']]
    return module.main(argv, 'python3 -m tests ' + command, **suite)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
