"""`rules`: the rule set of a NAT VM."""

from __future__ import annotations

import argparse

from nat_pod.commands.command import OK, Subparsers, add_json, add_parser, add_stack, print_json
from nat_pod.commands.stack import load
from nat_pod.config.model import PodConfig
from nat_pod.errors import NatPodError, excerpt
from nat_pod.rules import article, iptables


def add(commands: Subparsers) -> None:
    """The command's parser."""
    parser = add_parser(commands, "rules", "print the rule set of a NAT VM", _run)
    add_stack(parser)
    parser.add_argument(
        "--vm",
        metavar="VM",
        required=True,
        help="which NAT VM: natVm1 or natVm2; in a routed POD also a gateway (natVm1-2) or one VM (natVm1b)",
    )
    parser.add_argument(
        "--article",
        action="store_true",
        help="print the same mappings as the article writes them, as iptables commands",
    )
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    config, plan = load(arguments.stack)
    # By its name, or by what it does: in a routed POD both VMs of a role have the same rules.
    vm = next((vm for vm in plan.vms if arguments.vm in (vm.role, vm.key)), None)
    if vm is None:
        known = ", ".join(dict.fromkeys(name for vm in plan.vms for name in (vm.role, vm.key)))
        raise NatPodError(
            f"rules --vm {excerpt(arguments.vm)}: POD {arguments.stack} has no such NAT VM; it has {known}"
        )
    hooks = iptables.hooks(vm.rules)
    if arguments.article:
        if not isinstance(config, PodConfig):
            raise NatPodError("rules --article: the article has no PODs with delivery: routes; leave out --article")
        lines = article.article_lines(config, vm.side)
    else:
        # The jumps are shown as comments: the agent puts them first in the built-in chains, in the same transaction.
        lines = [f"# {table}: {builtin} enters {chain} first" for table, builtin, chain in hooks]
        lines += iptables.render(vm.rules).splitlines()
    if arguments.json:
        print_json({"vm": vm.key, "generation": vm.generation, "hooks": hooks, "rules": lines})
    else:
        print("\n".join(lines))
    return OK
