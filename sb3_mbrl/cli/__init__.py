"""
The command line: ``sb3-mbrl train | evaluate | play | plot | plugins | presets | check``. Each command is in the module of its
name.

Exit codes: 0 success; 1 a failed check; 2 a user's mistake, explained in one line; 130 stopped by Ctrl-C with everything
saved.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym

from sb3_mbrl.agent.agent import UpdateRatioWarning
from sb3_mbrl.cli.parser import build_parser
from sb3_mbrl.cli.values import UserError
from sb3_mbrl.plugins import PluginError


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param argv: the command and its arguments (``None``: those of the process)
    :return: the exit code
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        with importable(Path.cwd()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UpdateRatioWarning)  # `train` prints the line
            code = args.run(args)
            sys.stdout.flush()  # so that a reader that has gone is noticed here
            return code
    except BrokenPipeError:
        # The reader, such as `head`, has enough. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, PluginError, gym.error.Error) as error:
        if args.traceback:
            raise
        # Gymnasium and the plugin system break long messages into lines; a mistake gets one line here.
        print(f"sb3-mbrl {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """
    Let environments, plug-ins and parts be imported from a folder, after everything that is installed.

    Python itself does so for scripts and ``python -m``, but not for the installed ``sb3-mbrl``.
    """
    added = str(folder)
    if added in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(added)
    try:
        yield
    finally:
        if added in sys.path:
            sys.path.remove(added)
