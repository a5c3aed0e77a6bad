"""python3 -m tests.simpool [--pool FILE] COMMAND...

Runs COMMAND beside a simulated XenServer pool, in the manner of xvfb-run: starts the pool, points
VMBACKUP_XE, VMBACKUP_XAPI_URL, VMBACKUP_STATE and PATH at it, runs the command, takes the pool
down, and exits as the command did. The address is that of a unix socket, as on a host, where the
word `local` is enough; root's password is `password`. Without --pool it is the demo's
pool; the format of the file is described in tests/simpool/pools.py. `python3 -m tests.simpool bash`
is a playground.
"""

import signal
import subprocess
import sys

from . import SimPool, pools

USAGE = 'usage: python3 -m tests.simpool [--pool FILE] COMMAND...'
FROM_TERMINALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class UsageError(Exception):
    """A command line that says nothing, or nothing that we understand."""


def parse(arguments):
    """(the pool's file or None, the command) of a command line."""
    words, file = list(arguments), None
    while words and words[0].startswith('-'):
        option, _, value = words.pop(0).partition('=')
        if option == '--':
            break
        if option != '--pool':
            raise UsageError('unknown option %s; %s' % (option, USAGE))
        file = value or (words.pop(0) if words else '')
        if not file:
            raise UsageError('--pool needs a file; ' + USAGE)
    if not words:
        raise UsageError(USAGE)
    return file, words


def run(command, environ):
    """The exit status of the command, as a shell tells it. SIGTERM is passed on to it; those of a
    terminal it gets itself."""
    try:
        process = subprocess.Popen(command, env=environ)
    except OSError as error:
        print('simpool: %s: %s' % (command[0], error.strerror), file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    for number in FROM_TERMINALS:
        signal.signal(number, signal.SIG_IGN)
    status = process.wait()
    return status if status >= 0 else 128 - status


def main(arguments):
    """The exit status: the command's; 2 if there is none or its pool cannot be made."""
    if arguments[:1] in (['-h'], ['--help']):
        print(__doc__.strip())
        return 0
    try:
        file, command = parse(arguments)
        pool = pools.load(pools.DEMO if file is None else file)
    except (UsageError, pools.DescriptionError) as error:
        print('simpool: %s' % error, file=sys.stderr)
        return 2
    with SimPool(pool) as sim:
        return run(command, sim.environ(VMBACKUP_XAPI_URL=sim.unix_url))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
