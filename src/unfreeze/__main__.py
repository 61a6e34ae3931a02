"""`python -m unfreeze`: the command line, also for launchers such as `torchrun -m`."""

import sys

from unfreeze.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
