"""The program: `nat-pod`, or `python -m nat_pod`."""

import gc
import sys

_FROM_PYPI = ("google", "grpc", "netaddr", "pulumi", "pulumi_oci", "yaml")
_INTERRUPTED = 130


def program() -> int:
    """Carry out the command line of this process; returns its exit status."""
    # A command lives for seconds and needs what it builds until then.  Collecting garbage would be a tenth of `diff`.
    gc.disable()
    try:
        # Here, because most of the first tenth of a second goes into it: an interruption is no traceback then either.
        from nat_pod.commands.cli import main

        return main()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _FROM_PYPI:
            raise
        from nat_pod.files import INSTALLED

        what_helps = "type `make venv`, then `. .venv/bin/activate`"
        if INSTALLED:
            what_helps = "install nat-pod again with pip, and without --no-deps"
        print(f"{sys.executable} has no {error.name}, which nat-pod needs: {what_helps}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(program())
