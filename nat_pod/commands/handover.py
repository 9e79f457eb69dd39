"""`handover`: the page for a neighbour's own engineer."""

from __future__ import annotations

import argparse
from pathlib import Path

from nat_pod.commands.command import OK, Subparsers, add_json, add_parser, add_stack, print_json
from nat_pod.commands.stack import load
from nat_pod.pages import handover


def add(commands: Subparsers) -> None:
    """The command's parser."""
    words = "print what a customer's (or management's) own engineer must set up, and the addresses to use"
    parser = add_parser(commands, "handover", words, _run)
    add_stack(parser)
    parser.add_argument("neighbour", metavar="CUSTOMER", help="a customer of the stack file, or `management`")
    parser.add_argument("--outputs", metavar="FILE", type=Path, help="what `pulumi stack output --json` printed: OCIDs")
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    _, plan = load(arguments.stack)
    sheet = handover.handover(plan, arguments.stack, arguments.neighbour)
    if arguments.outputs is not None:
        sheet = handover.with_outputs(sheet, plan, arguments.outputs)
    if arguments.json:
        print_json(handover.sheet_dict(sheet))
    else:
        print(handover.sheet_markdown(sheet))
    return OK
