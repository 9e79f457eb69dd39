"""`nat-pod <command> [STACK]`, or `python -m nat_pod`: what an engineer asks without logging in anywhere.

Exit status 0: fine; 1: findings (problems in a stack file, a flow that does not get through, a failed check);
2: the command line was wrong.  A user's mistake prints sentences, never a traceback.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import nat_pod
from nat_pod.commands.command import FINDINGS, OK
from nat_pod.errors import NatPodError, visible

COMMANDS = {
    "check": "check",
    "pods": "pods",
    "whois": "whois",
    "new-project": "new_project",
    "new-pod": "new_pod",
    "move": "move",
    "allocate": "allocate",
    "plan": "plan",
    "rules": "rules",
    "trace": "trace",
    "handover": "handover",
    "diff": "diff",
    "import": "import_",
    "status": "status",
    "lab": "lab",
    "trial": "trial",
}
"""Each command's module in this package, in the order of --help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.  arguments: those of the process without it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A value from a stack file may hold what a terminal without UTF-8 cannot show: \xe4 instead of a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        try:
            parsed = _parser(arguments[0] if arguments else "").parse_args(arguments)
            command: Callable[[argparse.Namespace], int] = parsed.command
            return command(parsed)
        finally:
            sys.stdout.flush()  # here, where a closed pipe or a full disk can still be caught
    except NatPodError as error:
        # Line by line: what was typed, or what a file is called, may hold a terminal's escape sequences.
        print("\n".join(visible(line) for line in str(error).split("\n")), file=sys.stderr)
        return FINDINGS
    except BrokenPipeError:
        _drop_output()  # `| head` closed it; that is its business
        return OK
    except OSError as error:
        # Code that opens a file by name reports its own errors.  Here is left what concerns standard output.
        if error.filename is not None or error.errno not in _CANNOT_WRITE:
            raise
        _drop_output()
        print(f"standard output cannot be written: {error.strerror}", file=sys.stderr)
        return FINDINGS
    except KeyboardInterrupt:
        return 130


_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _drop_output() -> None:
    """What is still in the buffer goes nowhere; the interpreter would complain of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(first: str) -> argparse.ArgumentParser:
    """The parser of the whole command line, or as much of it as its first word needs.

    What a command imports is loaded when it is the one that was typed: `new-pod` does without the tracer.
    """
    parser = argparse.ArgumentParser(
        prog="nat-pod" if Path(sys.argv[0]).name == "nat-pod" else "python -m nat_pod",
        description="NAT POD on OCI: plan, check and trace a POD from its stack file, or bring it up in the lab.",
    )
    parser.add_argument("--version", action="version", version=f"nat-pod {nat_pod.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in (first,) if first in COMMANDS else COMMANDS:
        import_module(f"nat_pod.commands.{COMMANDS[name]}").add(commands)
    return parser
