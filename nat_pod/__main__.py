"""`python -m nat_pod`."""

import sys

from nat_pod.cli import main

if __name__ == "__main__":
    sys.exit(main())
