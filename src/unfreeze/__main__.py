"""`python -m unfreeze`: the command line, also under launchers that want a module."""

import sys

from unfreeze.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
