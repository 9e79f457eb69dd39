"""The program: `nat-pod`, or `python -m nat_pod`."""

import gc
import sys

from nat_pod.commands.cli import main


def program() -> int:
    """Carry out the command line of this process; returns its exit status."""
    # A command needs what it builds to its end, which is near: looking for garbage is a tenth of what `diff` takes.
    gc.disable()
    return main()


if __name__ == "__main__":
    sys.exit(program())
