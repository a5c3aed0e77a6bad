"""python3 -m tests [test | faults | bench | demo | coverage] [options]; without a word: test."""

import importlib
import sys

COMMANDS = {
    'test': ('tests.runner', 'run the tests (what happens without a command)'),
    'faults': ('tests.faults', 'inject every fault of the matrices, not only a sample'),
    'coverage': ('tests.coverage_run', 'run the tests and measure what they reach'),
    'bench': ('tests.bench', 'measure speed and memory'),
    'demo': ('tests.demo', 'a backup, seen happening on a simulated pool'),
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
    module = COMMANDS[command][0]
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        if error.name != module:
            raise
        print('%s is not there: no module %s' % (command, module), file=sys.stderr)
        return 2
    return found.main(argv)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
