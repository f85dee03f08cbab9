"""``python -m jaxalign`` is the command ``jaxalign``."""

import sys

from jaxalign.cli import main

if __name__ == "__main__":
    sys.exit(main())
