"""What the commands have in common: the form of a parser, exit statuses, JSON, files that are read.

Each command is a module of this package.  It has its parser (`add`), what it does, its text and its --json.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from netaddr import AddrFormatError, IPNetwork

from nat_pod.config.services import LAST_PORT
from nat_pod.errors import NatPodError, excerpt

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

OK, FINDINGS = 0, 1
"""Exit statuses: fine; something was found.  2 is argparse's, for a wrong command line."""


def add_parser(
    commands: Subparsers, name: str, words: str, run: Callable[[argparse.Namespace], int] | None = None
) -> argparse.ArgumentParser:
    """The parser of one command.

    words: what --help says, in the list of commands and in its own.  run: returns the exit status;
    None where the parsers below have theirs.
    """
    parser = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    if run is not None:
        parser.set_defaults(command=run)
    return parser


def add_stack(parser: argparse.ArgumentParser) -> None:
    """The argument STACK."""
    words = "the stack's name: `dev` for Pulumi.dev.yaml"
    parser.add_argument("stack", metavar="STACK", type=stack_name, help=words)


def stack_name(text: str) -> str:
    """The stack that is meant by its name, or by the name of its file in this directory, as a shell completes it."""
    found = re.fullmatch(r"(?:\./)?Pulumi\.(.+)\.yaml", text)
    return text if found is None else found[1]


def add_json(parser: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup) -> None:
    """The option --json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_names(form: argparse._MutuallyExclusiveGroup, whose: str) -> None:
    """The options --hosts-file and --zone-file."""
    form.add_argument("--hosts-file", action="store_true", help=f"print lines for /etc/hosts: names of {whose}")
    words = f"print a zone file of this domain with names of {whose}, e.g. vm1.customer1.pod1.example.internal"
    form.add_argument("--zone-file", metavar="DOMAIN", help=words)


def ipv4_network(text: str) -> IPNetwork | None:
    """What was typed, as an IPv4 network or address; None for anything else, and for one with host bits."""
    try:
        network = IPNetwork(text)
    except (AddrFormatError, ValueError):
        return None
    return network if network.version == 4 and network.ip == network.network else None


def port_number(text: str) -> int | None:
    """What was typed, as a port; None for anything else."""
    return int(text) if re.fullmatch("[0-9]{1,5}", text) and 1 <= int(text) <= LAST_PORT else None


def vm_file(text: str) -> tuple[str, str]:
    """A NAT VM and the file that came from it, typed as VM=FILE."""
    vm, _, file = text.partition("=")
    if not vm or not file:
        raise argparse.ArgumentTypeError(f"{excerpt(text)} is not VM=FILE, e.g. natVm2=two.txt")
    return vm, file


def width() -> int:
    """Columns to write for: the terminal's, 80 where there is none (COLUMNS says otherwise), and never too few."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def print_json(value: object) -> None:
    """Write a value as all --json do."""
    print(json.dumps(value, indent=2))


MOST_MEGABYTES = 8
"""The most that a command reads of a file.  A serial console's history has one megabyte, a full POD's outputs 0.01."""


def read_bytes(name: str, most: int) -> bytes:
    """A file that the user names; a pipe will do: <(ssh nat-vm1 sudo iptables-save).  Raises NatPodError.

    most: how many bytes to read.
    """
    try:
        with Path(name).open("rb") as stream:
            return stream.read(most)
    except OSError as error:
        raise NatPodError(f"{excerpt(name)}: cannot be read: {error.strerror}") from None
    except ValueError:  # a zero byte in it
        raise NatPodError(f"{excerpt(name)}: is not a valid file name") from None


def read_text(name: str) -> str:
    """A file that the user names; - is standard input.  Bytes that are not UTF-8 are replaced.

    Raises NatPodError, also for more than MOST_MEGABYTES: what is read takes many times its size.
    """
    most = MOST_MEGABYTES << 20
    try:
        data = read_bytes(name, most + 1) if name != "-" else sys.stdin.buffer.read(most + 1)
    except OSError as error:
        raise NatPodError(f"standard input: cannot be read: {error.strerror}") from None
    if len(data) > most:
        shown = "standard input" if name == "-" else excerpt(name)
        raise NatPodError(
            f"{shown}: has more than {MOST_MEGABYTES} MB, and nothing that this command reads is so large"
        )
    return data.decode(errors="replace")


def add_outputs(parser: argparse.ArgumentParser, words: str) -> None:
    """The option --outputs.  words: what the command does with the file."""
    parser.add_argument("--outputs", metavar="FILE", help=f"output of `pulumi stack output --json`; {words}")


def read_outputs(name: str) -> dict[str, object]:
    """What `pulumi stack output --json` printed.  Raises NatPodError for what is not such a file."""
    what = "give the output of `pulumi stack output --json`"
    text = read_text(name)
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NatPodError(f"--outputs {excerpt(name)}: is not JSON: {excerpt(str(error))}; {what}") from None
    if not isinstance(loaded, dict):
        raise NatPodError(f"--outputs {excerpt(name)}: is not a JSON object; {what}")
    return loaded
