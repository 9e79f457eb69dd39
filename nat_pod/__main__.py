"""`python -m nat_pod`."""

import gc
import sys

from nat_pod.commands.cli import main

if __name__ == "__main__":
    # A command needs what it builds to its end, which is near: looking for garbage is a tenth of what `diff` takes.
    gc.disable()
    sys.exit(main())
