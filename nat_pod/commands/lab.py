"""`lab`: a stack on this machine, and the only command that loads the lab.

What needs the lab imports it when it runs: the lab brings Pulumi with it, which takes longer to load than any other
command to run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from nat_pod.commands.command import FINDINGS, OK, Subparsers, add_json, add_parser, add_stack, print_json
from nat_pod.errors import NatPodError


def add(commands: Subparsers) -> None:
    """The command's parser, with one more for each action."""
    words = "run a stack on this machine: simulated region, real rules, real packets"
    actions = add_parser(commands, "lab", words).add_subparsers(required=True, metavar="ACTION")
    for name, run, words in (
        ("up", _up, "deploy the stack into the simulated region and build it from network namespaces"),
        ("preview", _preview, "say what `lab apply` would do, and change nothing"),
        ("apply", _apply, "apply the edited stack file to the running lab in place, as `pulumi up` would"),
        (
            "check",
            _check,
            "send packets for every mapping and every refusal, and compare each hop with what the tracer predicts",
        ),
        ("shell", _shell, "open a shell on one machine of the lab"),
        ("fail", _fail, "power a NAT VM off, or with --hang only stop it; its links are cut in either case"),
        ("recover", _recover, "bring back a NAT VM that failed: it boots from its disk, or goes on if it hung"),
        ("down", _down, "tear the lab down"),
        ("demo", _demo, "up, check and down in one go"),
    ):
        action = add_parser(actions, name, words, run)
        add_stack(action)
        if name == "shell":
            action.add_argument("member", metavar="MEMBER", help="customer1/vm1, management/mgmt, natVm1, vrouter, ...")
        if name == "apply":
            words = "hold a TCP flow of each declared pair open through the change, and say what becomes of it"
            action.add_argument("--watch", action="store_true", help=words)
        if name in ("fail", "recover"):
            action.add_argument("vm", metavar="VM", help="a NAT VM, e.g. natVm1; in a routed POD natVm1a")
        if name == "fail":
            words = "only cut it off and stop its processes; its kernel keeps its connections and rules"
            action.add_argument("--hang", action="store_true", help=words)
        if name == "check":
            add_json(action)


def _up(arguments: argparse.Namespace) -> int:
    from nat_pod.lab import commands

    commands.up(Path.cwd(), arguments.stack)
    return OK


def _preview(arguments: argparse.Namespace) -> int:
    from nat_pod.lab import apply, commands

    print(
        apply.applied_text(
            commands.apply(Path.cwd(), arguments.stack, only_preview=True), arguments.stack, preview=True
        )
    )
    return OK


def _apply(arguments: argparse.Namespace) -> int:
    from nat_pod.lab import apply, commands

    applied = commands.apply(Path.cwd(), arguments.stack, watch=arguments.watch)
    print(apply.applied_text(applied, arguments.stack, preview=False))
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from nat_pod.lab import checks, commands

    report = commands.check(Path.cwd(), arguments.stack)
    if arguments.json:
        print_json(checks.report_dict(report))
    else:
        print(checks.report_text(report))
    return OK if report.passed else FINDINGS


def _shell(arguments: argparse.Namespace) -> int:
    from nat_pod.lab import commands

    return commands.shell(Path.cwd(), arguments.stack, arguments.member)


def _fail(arguments: argparse.Namespace) -> int:
    from nat_pod.lab import commands

    print(commands.fail(Path.cwd(), arguments.stack, arguments.vm, hang=arguments.hang))
    return OK


def _recover(arguments: argparse.Namespace) -> int:
    from nat_pod.lab import commands

    print(commands.recover(Path.cwd(), arguments.stack, arguments.vm))
    return OK


def _down(arguments: argparse.Namespace) -> int:
    from nat_pod.lab import commands

    if not commands.down(Path.cwd(), arguments.stack):
        print(f"the lab of {arguments.stack} is not up", file=sys.stderr)
    return OK


def _demo(arguments: argparse.Namespace) -> int:
    from nat_pod.lab import commands

    return OK if commands.demo(Path.cwd(), arguments.stack) else FINDINGS


def reports(stack: str, vms: Iterable[str]) -> dict[str, str | NatPodError]:
    """What `nat-pod-agent status` prints on these NAT VMs of the stack's lab, or why one of them cannot be asked.

    Raises NatPodError when the lab is not up.
    """
    from nat_pod.lab.wire import sandbox

    key = sandbox.lab_key(stack)
    if sandbox.find(key) is None:
        raise NatPodError(
            f"there is no --report, and the lab of {stack} is not up; run: python -m nat_pod lab up {stack}\n"
            f"or give what the NAT VMs of the tenancy report: python -m nat_pod status --help"
        )

    def asked(vm: str) -> str | NatPodError:
        try:
            answer = sandbox.call(key, "log_in", vm=vm, argv=["nat-pod-agent", "status"])
        except NatPodError as error:
            return error  # it is powered off, or hangs
        return str(answer["stdout"] + answer["stderr"])

    return {vm: asked(vm) for vm in vms}
