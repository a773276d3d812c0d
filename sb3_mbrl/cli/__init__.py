"""The command line: ``sb3-mbrl train | evaluate | plot | plugins | check``.

Exit codes: 0 fine; 1 a check failed; 2 a mistake of the user's, in one line; 130 stopped by Ctrl-C, everything saved.
"""

import sys
from collections.abc import Sequence

import gymnasium as gym

from sb3_mbrl.cli.parser import build_parser
from sb3_mbrl.cli.values import UserError
from sb3_mbrl.plugins import PluginError


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param argv: its arguments (``None``: those of the process)
    :return: the exit code
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        return args.run(args)
    except (UserError, PluginError, gym.error.Error) as error:
        if args.traceback:
            raise
        # Gymnasium and the plugin system break long messages into lines.
        print(f"sb3-mbrl {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
