"""`python -m nat_pod <command> [STACK]`: what an engineer asks without logging in anywhere.

Exit status 0: fine; 1: findings (problems in a stack file, a flow that does not get through, a failed check);
2: the command line was wrong.  A user's mistake prints sentences, never a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from netaddr import INET_PTON, AddrFormatError, IPAddress, IPNetwork

from nat_pod import article, book, guest, iptables, report
from nat_pod.addressing import overlap
from nat_pod.config import MANAGEMENT, PodConfig, read_draft
from nat_pod.diff import compare, with_user_data
from nat_pod.errors import ConfigError, NatPodError, Problem
from nat_pod.expected import expected_topology, with_host
from nat_pod.plan import SIDES, PodPlan
from nat_pod.pod import plan_pod
from nat_pod.stack import file_at, read_stack, read_stack_at, stack_names
from nat_pod.trace import Disposition, Packet, trace

OK, FINDINGS, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = parsed.command
    try:
        status = command(parsed)
        sys.stdout.flush()  # here, where a closed pipe can still be caught
        return status
    except NatPodError as error:
        print(error, file=sys.stderr)
        return FINDINGS
    except BrokenPipeError:
        # `| head` closed our output; that is its business.  Keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nat_pod",
        description="NAT POD on OCI: plan, check and trace a POD from its stack file, or bring it up in the lab.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, function: Callable[[argparse.Namespace], int], words: str, stack: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        sub.set_defaults(command=function)
        if stack:
            sub.add_argument("stack", metavar="STACK", help="the stack's name: `dev` for Pulumi.dev.yaml")
        return sub

    check = add("check", _check, "validate stack files, alone and against each other", stack=False)
    check.add_argument("stacks", metavar="STACK", nargs="*", help="stacks to check (default: all of this directory)")
    allocate = add("allocate", _allocate, "give new members a slot in the address book of the stack file")
    allocate.add_argument("--reuse", action="store_true", help="hand out slots that are kept as released")
    plan = add("plan", _plan, "show addresses, mappings, routes and the capacity left")
    rules = add("rules", _rules, "print the rule set of a NAT VM")
    rules.add_argument("--vm", choices=SIDES, required=True, help="which NAT VM")
    rules.add_argument("--article", action="store_true", help="the same mappings as the article's iptables lines")
    tracing = add("trace", _trace, "follow a packet through both NAT VMs and back, and say where it dies")
    tracing.add_argument("sender", metavar="FROM", help="customer1/vm1, management/mgmt, or customer1/10.0.0.77")
    tracing.add_argument("receiver", metavar="TO", help="the same, or an address to send to: 198.18.0.9")
    tracing.add_argument("--protocol", choices=("icmp", "tcp", "udp"), default="icmp")
    tracing.add_argument("--port", type=_port, default=80, help="destination port for tcp and udp (default 80)")
    words = "show the flows gained, lost and renumbered since a git revision"
    diff = add("diff", _diff, words)
    diff.add_argument("--base", metavar="REV", required=True, help="the git revision to compare with: main, HEAD~1")
    diff.add_argument("--markdown", action="store_true", help="for a pull request")
    for sub in (check, plan, rules, tracing, allocate, diff):
        sub.add_argument("--json", action="store_true", help="for programs")
    _add_lab(commands)
    return parser


def _add_lab(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    words = "bring a stack up on this machine: simulated region, real rules, real packets"
    lab = commands.add_parser("lab", help=words, description=words[0].upper() + words[1:] + ".")
    actions = lab.add_subparsers(required=True, metavar="ACTION")
    for name, help_text in (
        ("up", "deploy the stack into the simulated region and build it from network namespaces"),
        ("check", "send packets for every mapping and every refusal, and compare each hop with the tracer"),
        ("shell", "a shell on one machine of the lab"),
        ("down", "take the lab away"),
        ("demo", "up, check and down in one go"),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        action.add_argument("stack", metavar="STACK")
        if name == "shell":
            action.add_argument("member", metavar="MEMBER", help="customer1/vm1, management/mgmt, natVm1, vrouter, ...")
        if name == "check":
            action.add_argument("--json", action="store_true", help="for programs")
        action.set_defaults(command=_lab, action=name)


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port (1 to 65535)")
    return int(text)


def _load(stack: str) -> tuple[PodConfig, PodPlan]:
    config = read_stack(Path.cwd(), stack).checked()
    return config, plan_pod(config, stack)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


# --- check ---------------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    directory = Path.cwd()
    names = list(dict.fromkeys(arguments.stacks)) or stack_names(directory)
    if not names:
        raise NatPodError(f"there is no Pulumi.<stack>.yaml in {directory}; start from Pulumi.dev.yaml of nat-pod")
    plans: dict[str, PodPlan] = {}
    configs: dict[str, PodConfig] = {}
    findings: dict[str, list[Problem]] = {}
    for name in sorted({*names, *stack_names(directory)}):
        try:
            configs[name], plans[name] = _load(name)
        except ConfigError as error:
            if name in names:
                findings[name] = list(error.problems)
    for name in names:
        findings.setdefault(name, []).extend(_across(name, configs))
    if arguments.json:
        _print_json({name: {"problems": [_problem_dict(p) for p in findings[name]]} for name in names})
    else:
        for name in names:
            if findings[name]:
                print(ConfigError(f"Pulumi.{name}.yaml", findings[name]))
            else:
                capacity = plans[name].capacity
                print(f"Pulumi.{name}.yaml: fine, {capacity.used} of {capacity.slots} slots used")
    return FINDINGS if any(findings[name] for name in names) else OK


def _across(name: str, configs: dict[str, PodConfig]) -> list[Problem]:
    """Ranges that two PODs share: both would answer for the same unique addresses."""
    if name not in configs:
        return []
    mine = configs[name].cidr
    return [
        Problem("nat-pod:cidr", str(mine), f"overlaps {config.cidr} of Pulumi.{other}.yaml; each POD has its own range")
        for other, config in configs.items()
        if other != name and overlap(mine, config.cidr)
    ]


def _problem_dict(problem: Problem) -> dict[str, object]:
    value = problem.value if problem.value is None or isinstance(problem.value, str | int) else repr(problem.value)
    return {"path": problem.path, "value": value, "rule": problem.rule, "command": problem.command or None}


# --- allocate, plan, rules -----------------------------------------------------------------------------------------


def _allocate(arguments: argparse.Namespace) -> int:
    stack = read_stack(Path.cwd(), arguments.stack)
    config, problems, _ = read_draft(stack.pod_config(), arguments.stack)
    if config is None:
        raise ConfigError(stack.path.name, problems)
    settled = book.settle(config, reuse=arguments.reuse)
    if settled.changed:
        book.write(stack.path, book.edit(book.read(stack.path), config, settled))
    changes = {
        "added": settled.added,
        "returned": settled.returned,
        "released": settled.released,
        "reused": settled.reused,
        "renamed": settled.renamed,
    }
    if arguments.json:
        _print_json({word: list(names) for word, names in changes.items()})
        return OK
    for word, names in changes.items():
        for name in names:
            entry = settled.entries.get(name)
            pair = "" if entry is None else " / ".join(config.layout.addresses(entry.slot))
            print(f"{word:9} {name}  {pair}".rstrip())
    if not settled.changed:
        print(f"{stack.path.name}: every member has a slot; nothing to do")
    return OK


def _plan(arguments: argparse.Namespace) -> int:
    _, plan = _load(arguments.stack)
    if arguments.json:
        _print_json(report.plan_dict(plan))
    else:
        print(report.plan_text(plan, arguments.stack))
    return OK


def _rules(arguments: argparse.Namespace) -> int:
    config, plan = _load(arguments.stack)
    vm = plan.vm(arguments.vm)
    hooks = iptables.hooks(vm.rules)
    if arguments.article:
        lines = article.article_lines(config, vm.key)
    else:
        # The jumps are shown as comments: the agent puts them first in the built-in chains, in the same transaction.
        lines = [f"# {table}: {builtin} enters {chain} first" for table, builtin, chain in hooks]
        lines += iptables.render(vm.rules).splitlines()
    if arguments.json:
        _print_json({"vm": vm.key, "generation": vm.generation, "hooks": hooks, "rules": lines})
    else:
        print("\n".join(lines))
    return OK


# --- trace ---------------------------------------------------------------------------------------------------------


def _trace(arguments: argparse.Namespace) -> int:
    _, plan = _load(arguments.stack)
    topology = expected_topology(plan)
    real = {slot.member: slot.real for slot in plan.slots}
    realms = {**plan.customer_cidrs, MANAGEMENT: plan.management_cidr}
    sender = arguments.sender
    source = real.get(sender)
    if source is None:
        source = _unlisted(sender, realms, real)
        topology = with_host(topology, sender, source)
    destination, expected = _destination(arguments.receiver, sender, plan, realms, real)
    if destination is None:
        return _no_address(arguments)
    port = {} if arguments.protocol == "icmp" else {"dport": arguments.port}
    packet = replace(Packet(src=source, dst=destination, protocol=arguments.protocol), **port)
    traced = trace(topology, sender, packet, expected)
    if arguments.json:
        _print_json(traced.to_dict())
    else:
        ports = "" if arguments.protocol == "icmp" else f" port {arguments.port}"
        print(report.trace_text(traced, f"{sender} ({source}) to {arguments.receiver}: {arguments.protocol}{ports}"))
    return OK if traced.disposition is Disposition.DELIVERED else FINDINGS


def _destination(
    receiver: str, sender: str, plan: PodPlan, realms: dict[str, str], real: dict[str, str]
) -> tuple[str | None, str | None]:
    """The address that the sender has to use (None: there is none), and who should answer there."""
    if "/" not in receiver and _is_address(receiver):
        return receiver, None
    slot = next((slot for slot in plan.slots if slot.member == receiver), None)
    if slot is not None:
        return (slot.nat_vm2 if sender.startswith(f"{MANAGEMENT}/") else slot.nat_vm1), receiver
    _unlisted(receiver, realms, real)
    return None, receiver


def _no_address(arguments: argparse.Namespace) -> int:
    """TO is in no address book: there is no packet that could be sent to it."""
    why = (
        f"{arguments.receiver} owns no slot, so the other side has no address for it; "
        f"name it in the stack file and run: python -m nat_pod allocate {arguments.stack}"
    )
    if arguments.json:
        _print_json({"disposition": str(Disposition.NO_MAPPING), "why": why, "request": [], "reply": []})
    else:
        print(f"{Disposition.NO_MAPPING}: {why}")
    return FINDINGS


def _unlisted(name: str, realms: dict[str, str], real: dict[str, str]) -> str:
    """The address in `customer1/10.0.0.77`.  Raises NatPodError with what would be understood."""
    realm, _, address = name.partition("/")
    if realm in realms and _is_address(address):
        owner = next(
            (member for member, own in real.items() if own == address and member.startswith(realm + "/")), None
        )
        if owner is None and IPAddress(address) not in IPNetwork(realms[realm]):
            raise NatPodError(f"{name}: {address} is outside {realms[realm]}, the network of {realm}")
        if owner is None:
            return address
        raise NatPodError(f"{name}: that is {owner}; use its name")
    namesakes = [member for member in real if member.endswith(f"/{name}")]
    if namesakes:
        raise NatPodError(f"{name}: is no member; did you mean {' or '.join(namesakes)}?")
    known = ", ".join(list(real)[:6]) + (" ..." if len(real) > 6 else "")
    raise NatPodError(
        f"{name}: is neither a member ({known}) nor REALM/ADDRESS with a realm of this POD, "
        f"e.g. {next(iter(realms))}/10.0.0.77"
    )


def _is_address(text: str) -> bool:
    try:
        IPAddress(text, version=4, flags=INET_PTON)
    except (AddrFormatError, ValueError):
        return False
    return True


# --- diff ----------------------------------------------------------------------------------------------------------


def _diff(arguments: argparse.Namespace) -> int:
    base = _plan_at(Path.cwd(), arguments.stack, arguments.base)
    _, plan = _load(arguments.stack)
    difference = compare(base, plan)
    if arguments.json:
        _print_json(report.difference_dict(difference))
    elif arguments.markdown:
        print(report.difference_markdown(difference, arguments.stack, arguments.base))
    else:
        print(report.difference_text(difference, arguments.stack, arguments.base))
    return OK if difference.harmless else FINDINGS


def _plan_at(directory: Path, name: str, revision: str) -> PodPlan | None:
    """The plan of the stack file as it was at a git revision, with the bootstrap of then."""
    stack = read_stack_at(directory, name, revision)
    if stack is None:
        return None
    try:
        plan = plan_pod(stack.checked(), name)
    except ConfigError as error:
        # Without the commands: they would change the file of today.
        problems = [replace(problem, command="") for problem in error.problems]
        raise ConfigError(f"{stack.path.name} at {revision}", problems) from None
    checkout = guest.SOURCES.parent
    if directory.resolve() != checkout:
        return plan  # nat-pod is installed elsewhere: its bootstrap has no history here
    user_data = file_at(directory, guest.ARTEFACT.relative_to(checkout).as_posix(), revision)
    return plan if user_data is None else with_user_data(plan, user_data.strip())


# --- lab -----------------------------------------------------------------------------------------------------------


def _lab(arguments: argparse.Namespace) -> int:
    # Imported here: the lab brings Pulumi with it, which takes longer to load than any other command to run.
    from nat_pod.lab import commands

    return commands.run(Path.cwd(), arguments)
