"""The command line as a module: ``python -m sb3_mbrl`` is ``sb3-mbrl``."""

import sys

from sb3_mbrl.cli import main

if __name__ == "__main__":
    sys.exit(main())
