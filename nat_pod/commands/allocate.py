"""`allocate`: a slot for each new member, written into the address book of the stack file."""

from __future__ import annotations

import argparse
from pathlib import Path

from nat_pod.commands.command import OK, Subparsers, add_json, add_parser, add_stack, print_json
from nat_pod.config import address_book as book
from nat_pod.config import whole_file
from nat_pod.config.any_config import AnyConfig
from nat_pod.config.stack_file import read_stack
from nat_pod.errors import ConfigError, LooksRenamed, Problem
from nat_pod.names import natural


def add(commands: Subparsers) -> None:
    """The command's parser."""
    words = "give new members a slot in the address book of the stack file"
    parser = add_parser(commands, "allocate", words, _run)
    add_stack(parser)
    parser.add_argument("--reuse", action="store_true", help="also hand out slots that were released and kept back")
    parser.add_argument(
        "--not-renamed",
        action="store_true",
        help="release the slots of members that are gone, even if a new member looks like one of them renamed",
    )
    add_json(parser)


_TRIES = 3


def _allocate(name: str, *, reuse: bool, not_renamed: bool) -> tuple[AnyConfig, book.Settled]:
    """Settle the stack's book and write it.  Raises ChangedError when the file was saved by somebody else meanwhile."""
    stack = read_stack(Path.cwd(), name)
    before = whole_file.read(stack.path)
    config, problems, unsettled = stack.draft()
    if config is None:
        raise ConfigError(stack.path.name, problems)
    questions: list[Problem] = [problem for problem in unsettled if isinstance(problem, LooksRenamed)]
    if questions and not not_renamed:
        raise ConfigError(stack.path.name, questions)
    settled = book.settle(config, reuse=reuse)
    if settled.changed:
        whole_file.replace(stack.path, book.edit(before, config, settled), before)
    return config, settled


def _run(arguments: argparse.Namespace) -> int:
    for left in reversed(range(_TRIES)):
        try:
            config, settled = _allocate(arguments.stack, reuse=arguments.reuse, not_renamed=arguments.not_renamed)
            break
        except whole_file.ChangedError:
            if not left:
                raise
    changes = {
        "added": settled.added,
        "returned": settled.returned,
        "released": settled.released,
        "reused": settled.reused,
        "renamed": settled.renamed,
    }
    if arguments.json:
        placed = {"placed": list(settled.placed)} if settled.placed else {}
        print_json({word: list(members) for word, members in changes.items()} | placed)
        return OK
    for customer in sorted(settled.placed, key=natural):
        print(f"{'placed':9} {customer}  gateway {settled.gateways.get(customer, 1)}")
    for word, members in changes.items():
        for name in sorted(members, key=natural):
            entry = settled.entries.get(name)
            pair = "" if entry is None else book.words(config, entry)
            print(f"{word:9} {name}  {pair}".rstrip())
    if not settled.changed:
        print(f"Pulumi.{arguments.stack}.yaml: nothing to do: every member has a slot")
    return OK
