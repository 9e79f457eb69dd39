"""`python -m nat_pod`."""

import gc
import sys

from nat_pod.cli import main

if __name__ == "__main__":
    # A command is over in seconds and what it builds has no cycles: looking for them is a tenth of what `diff` takes.
    gc.disable()
    sys.exit(main())
