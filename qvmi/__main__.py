"""Lets ``python -m qvmi`` be the ``qvmi`` command."""

import sys

from qvmi.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
