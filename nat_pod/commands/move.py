"""`move`: from a POD of the article's delivery to a routed one with the same addresses."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nat_pod.commands.command import OK, Subparsers, add_json, add_parser, print_json, stack_name
from nat_pod.config import any_config, whole_file
from nat_pod.config.model import PodConfig
from nat_pod.config.move import Moved, moved
from nat_pod.config.routed import RoutedConfig
from nat_pod.config.stack_file import STACK_NAME_RULE, Stack, is_stack_name, load_text, read_stack
from nat_pod.config.stack_text import stack_text
from nat_pod.errors import NatPodError
from nat_pod.names import NAMESPACE
from nat_pod.pages.move import NOT_LOOKED_AT, MoveSheet, Step, move_sheet
from nat_pod.pages.move_page import sheet_page, sheet_text
from nat_pod.plan.planner import plan_pod


def add(commands: Subparsers) -> None:
    """The command's parser."""
    words = "write the stack file of a routed POD that replaces a POD with delivery: privateIps, and print the steps"
    parser = add_parser(commands, "move", words, _run)
    parser.add_argument("old", metavar="OLD", type=stack_name, help="the stack to move; its file stays as it is")
    words = "the stack to write; one that takes OLD's place already is left as it is, and only its steps are printed"
    parser.add_argument("new", metavar="NEW", type=stack_name, help=words)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the steps as a page in Markdown")
    add_json(form)


def _run(arguments: argparse.Namespace) -> int:
    directory = Path.cwd()
    stack = read_stack(directory, arguments.old)
    old = stack.checked()
    if not isinstance(old, PodConfig):
        raise NatPodError(
            f"{stack.path.name}: has delivery: routes already; move is for PODs with delivery: privateIps "
            "(nothing was changed)"
        )
    plan = plan_pod(old, arguments.old)
    path = directory / f"Pulumi.{arguments.new}.yaml"
    new = _standing(directory, arguments.old, arguments.new)
    written = None
    if new is None:
        new, text = _written(stack, old, arguments.new)
        with whole_file.alone(directory):
            whole_file.create(path, text)
        written = path.name
    sheet = move_sheet(old, plan, new, (arguments.old, arguments.new))
    if arguments.json:
        print_json(sheet_dict(sheet, written))
    elif arguments.markdown:
        print(sheet_page(sheet))
    else:
        said = f"written  {written}" if written else f"as it is {path.name}"
        print(f"{said}: {new.cidr}, the VCN's own {new.vcn}\n\n{sheet_text(sheet)}")
    return OK


def _standing(directory: Path, old: str, name: str) -> RoutedConfig | None:
    """The new stack as it stands already, None where there is no such file yet.

    Raises NatPodError for a name that no stack can have, and for a file that does not take the old stack's place.
    """
    if not is_stack_name(name):
        raise NatPodError(f"{name}: is not a valid stack name; {STACK_NAME_RULE}")
    path = directory / f"Pulumi.{name}.yaml"
    if not path.exists() and not path.is_symlink():
        return None
    config = read_stack(directory, name).checked()
    if isinstance(config, RoutedConfig) and config.moves_from == old:
        return config
    raise NatPodError(
        f"{path.name}: exists already and does not take the place of {old}; move writes new files only "
        "(nothing was changed)"
    )


def _written(stack: Stack, old: PodConfig, name: str) -> tuple[RoutedConfig, str]:
    """The new stack and its file's text.  Raises ConfigError for what a routed POD cannot have."""
    loaded: Any = load_text(stack.text)
    own = {str(key): value for key, value in loaded["config"].items()}
    prefix = f"{NAMESPACE}:"
    made = moved(old, {k.removeprefix(prefix): v for k, v in own.items() if k.startswith(prefix)}, stack.name)
    config = any_config.read(made.config, name)
    assert isinstance(config, RoutedConfig)
    others = {key: value for key, value in own.items() if not key.startswith(prefix)}
    return config, _text(stack.name, name, others, made)


def _text(old: str, new: str, others: Mapping[str, object], made: Moved) -> str:
    secrets = [key for key, value in others.items() if isinstance(value, dict) and "secure" in value]
    head = [
        f"POD {new}: the members of Pulumi.{old}.yaml at the same addresses, delivered by routes, with a standby for",
        f"each NAT VM. `python -m nat_pod move {old} {new}` prints the steps.",
    ]
    if secrets:
        head.append(f"Encrypted for {old} alone, so set them anew: {', '.join(secrets)}")
    return stack_text(head, {k: v for k, v in others.items() if k not in secrets}, made.config, made.comments)


def sheet_dict(sheet: MoveSheet, written: str | None) -> dict[str, object]:
    """The form of `move --json`.  written: the file, None when it stood already."""
    return {
        "written": written,
        "old": sheet.old,
        "new": sheet.new,
        "sourceNat": str(sheet.policy),
        "flows": sheet.flows,
        "flowsThatEnd": len(sheet.ends),
        "steps": [_step_dict(step) for step in sheet.steps],
        "notLookedAt": list(NOT_LOOKED_AT),
    }


def _step_dict(step: Step) -> dict[str, object]:
    return {
        "title": step.title,
        "who": list(step.who),
        "do": list(step.do),
        "see": list(step.see),
        "back": list(step.back),
        "customer": step.customer,
        "vrouterRoutes": list(step.routes),
        "ends": [{"from": e.sender, "to": e.receiver, "seenBefore": e.before, "seenAfter": e.after} for e in step.ends],
    }
