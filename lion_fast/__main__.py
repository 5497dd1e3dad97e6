"""`python -m lion_fast` is the command `lion-fast`."""

import sys

from lion_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
