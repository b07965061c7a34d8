"""`python -m processing.commands`: the console command, for launchers that start modules."""

import sys

from .main import main


if __name__ == "__main__":
    sys.exit(main())
