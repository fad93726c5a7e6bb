"""`python -m paper`."""

import sys

from paper.commands import main

if __name__ == "__main__":  # a process that a cell runs in imports this file under another name
    sys.exit(main())
