"""Entry point of `python -m processing.commands`, for launchers that start a module."""

import sys

from .main import main


if __name__ == "__main__":
    sys.exit(main())
