"""`whois`: what an address is, in all PODs of the directory."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import assert_never

from netaddr import IPNetwork

from nat_pod.commands.command import (
    FINDINGS,
    OK,
    Subparsers,
    add_json,
    add_parser,
    ipv4_network,
    port_number,
    print_json,
    read_text,
    vm_file,
)
from nat_pod.config.pods import Pod, no_stacks, read_pods
from nat_pod.errors import ConfigError, NatPodError, excerpt, visible
from nat_pod.names import natural
from nat_pod.plan.conntrack import Behind, behind, read_entries
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.plan.whois import Holder, Use, holders
from nat_pod.text import some, table

_HOW_TO_ASK = """\
With `sourceNat: masquerade` many members share one address, and a port says
which of them opened a flow. The NAT VMs' connection tables know it. Without
--conntrack, whois prints the commands that read the tables; with it, whois
names the member.

Exit status 0: a POD knows the address; 1: no POD does, or no table given has
the flow"""

_SHOWN = 4  # names in one cell; the rest is counted


def add(commands: Subparsers) -> None:
    """The command's parser."""
    words = "say who owns an address, in which POD, and who uses it or sees it as a source"
    parser = add_parser(commands, "whois", words, _run)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _HOW_TO_ASK
    words = "an address (198.18.0.66, 10.0.0.100), one with a port (198.18.0.130:40312), or a network, of which every "
    words += "member is listed"
    parser.add_argument("address", metavar="ADDRESS", type=_asked, help=words)
    parser.add_argument(
        "--conntrack",
        metavar="VM=FILE",
        action="append",
        type=vm_file,
        default=[],
        help="what `conntrack -L` printed on a NAT VM, to find who is behind a port; - reads standard input",
    )
    add_json(parser)


@dataclass(frozen=True, slots=True)
class _Asked:
    """An address or a network, and of an address perhaps a port."""

    network: IPNetwork
    port: int | None


def _asked(text: str) -> _Asked:
    address, colon, behind_colon = text.partition(":")
    network = ipv4_network(address)
    if network is None or address.count(".") != 3:
        raise argparse.ArgumentTypeError(
            f"{excerpt(text)} is not an IPv4 address or network, e.g. 198.18.0.66 or 10.0.0.0/24"
        )
    if not colon:
        return _Asked(network, None)
    port = port_number(behind_colon)
    if "/" in address or port is None:
        raise argparse.ArgumentTypeError(f"{excerpt(text)} is not an address and a port, e.g. 198.18.0.130:40312")
    return _Asked(network, port)


def _run(arguments: argparse.Namespace) -> int:
    asked, directory = arguments.address.network, Path.cwd()
    pods = read_pods(directory)
    if not pods:
        raise no_stacks(directory)
    read = {name: _plan(name, pod) for name, pod in pods.items()}
    plans = {name: plan for name, plan in read.items() if plan is not None}
    not_asked = [name for name in read if name not in plans]
    found = {name: holders(plan, asked) for name, plan in plans.items()}
    hidden = _hidden(plans, arguments)
    if arguments.json:
        print_json(
            _dict(found, not_asked) | ({} if arguments.address.port is None else {"behind": _hidden_dict(hidden)})
        )
    else:
        print(_text(asked, plans, found, not_asked))
        for one in hidden.values():
            print("\n" + _hidden_text(one, {vm for vm, _ in arguments.conntrack}))
    if arguments.conntrack and not any(member for one in hidden.values() for _, member in one.links):
        return FINDINGS
    return OK if any(found.values()) else FINDINGS


def _hidden(plans: Mapping[str, PodPlan], arguments: argparse.Namespace) -> dict[str, Behind]:
    """By POD: who is behind the port.  PODs in which the address hides nobody are left out."""
    address, port, files = str(arguments.address.network.ip), arguments.address.port, dict(arguments.conntrack)
    if port is None:
        if files:
            raise NatPodError("--conntrack: needs an address with a port, e.g. whois 198.18.0.130:40312")
        return {}
    if len(files) < len(arguments.conntrack) or list(files.values()).count("-") > 1:
        raise NatPodError("--conntrack: give one for each NAT VM, and read only one of them from standard input")
    hiding = {name: one for name, plan in plans.items() if (one := behind(plan, address, port, {})) is not None}
    for vm in files:
        if not any(vm in (of_pod.key for of_pod in one.vms) for one in hiding.values()):
            names = sorted({of_pod.key for one in hiding.values() for of_pod in one.vms})
            where = f"it is one of {', '.join(names)}" if names else f"nobody is hidden behind {address}"
            raise NatPodError(f"--conntrack {excerpt(vm)}: no such NAT VM; {where}")
    tables = {vm: read_entries(read_text(file)) for vm, file in files.items()}
    return {name: one for name in hiding if (one := behind(plans[name], address, port, tables)) is not None}


def _hidden_dict(hidden: Mapping[str, Behind]) -> dict[str, object]:
    return {
        name: {
            "candidates": list(one.candidates),
            "found": [
                {"member": member, "protocol": entry.protocol, "to": "{}:{}".format(*entry.answered_from)}
                for entry, member in one.links
            ],
            "ask": [{"natVm": vm, "command": command} for vm, command in _commands(one)],
        }
        for name, one in hidden.items()
    }


def _commands(one: Behind) -> list[tuple[str, str]]:
    """What shows the next link on a NAT VM: (VM, command)."""
    holder, other = one.vms
    ports: list[int | str] = [*sorted({entry.source[1] for entry, _ in one.links})] or ["SPORT"]
    return [
        (holder.key, _list(holder.vnics[0].primary, one.port)),
        *((other.key, _list(other.vnics[0].primary, port)) for port in ports),
    ]


def _list(address: str, port: int | str) -> str:
    return f"sudo conntrack -L -p tcp --reply-dst {address} --reply-port-dst {port}"


def _hidden_text(one: Behind, given: set[str]) -> str:
    """Who is behind a port, or what has to be asked to know it."""
    (holder, other), shown = one.vms, f"{one.address}:{one.port}"
    lines = []
    for entry, member in one.links:
        to = f"{entry.protocol} to {entry.answered_from[0]}:{entry.answered_from[1]}"
        whose = visible(member) if member else f"came from {entry.source[0]}:{entry.source[1]}, see below"
        lines.append(f"{shown}, {to}: {whose}")
    lines += [
        f"{shown}, {entry.protocol}: {entry.source[0]}:{entry.source[1]}, not by way of {other.key}"
        for entry in one.foreign
    ]
    if holder.key in given and not lines:
        lines.append(f"{shown}: no such flow in the table of {holder.key}: it has ended, or this is another VM's table")
    if one.links and all(member for _, member in one.links):
        return "\n".join(lines)
    commands = _commands(one)
    lines += [
        f"{shown}: one of {len(one.candidates)}: {_some(tuple(one.candidates))}",
        "`status` does not list single flows. While the flow is open, run (with -p udp for UDP):",
        *(f"  on {vm}: {command}" for vm, command in commands),
    ]
    if not one.links:
        lines.append(f"  SPORT is the first sport= of {holder.key}'s line.")
    files = " ".join(f"--conntrack {vm}={vm}.txt" for vm in (holder.key, other.key))
    lines += [
        "What they print, or all of `sudo conntrack -L`, names the member:",
        f"  python -m nat_pod whois {shown} {files}",
    ]
    return "\n".join(lines)


def _plan(name: str, pod: Pod) -> PodPlan | None:
    """The POD's plan; None where its stack file has problems."""
    if pod.config is None or pod.problems:
        return None
    try:
        return plan_pod(pod.config, name)
    except ConfigError:
        return None


def _dict(found: dict[str, list[Holder]], not_asked: list[str]) -> dict[str, object]:
    """The form of `whois --json`."""
    listed = [{"pod": name, **asdict(one)} for name, all_of in found.items() for one in all_of]
    return {"found": listed, "notAsked": not_asked}


def _text(asked: IPNetwork, plans: dict[str, PodPlan], found: dict[str, list[Holder]], not_asked: list[str]) -> str:
    """`whois` for people."""
    rows = [
        [one.address, visible(name), visible(_who(one)), _words(one, plans[name])]
        for name, all_of in found.items()
        for one in all_of
    ]
    shown = str(asked.ip) if asked.prefixlen == 32 else str(asked)
    lines = [table(["address", "POD", "whose", ""], rows, indent="")] if rows else [f"{shown}: no POD knows it"]
    if not_asked:
        names = ", ".join(f"Pulumi.{visible(name)}.yaml" for name in not_asked)
        lines.append(f"left out, because of problems: {names}; run: python -m nat_pod check")
    return "\n".join(lines)


def _who(one: Holder) -> str:
    match one.use:
        case Use.SOURCE:
            return "every host" if one.who == "customers" else "every server"
        case Use.FREE:
            return "nobody"
        case Use.NETWORK:
            return f"nobody in {one.who}"
        case Use.CALLED | Use.BETWEEN | Use.REAL | Use.NAT_VM | Use.BALANCER | Use.VROUTER | Use.RELEASED:
            return one.who
        case _ as never:
            assert_never(never)


def _words(one: Holder, plan: PodPlan) -> str:
    match one.use:
        case Use.CALLED:
            uses, sees = ("uses", "sees") if len(one.others) == 1 else ("use", "see")
            how = f"{uses} this address" + (f" and {sees} it as a source" if one.seen else "")
            return f"{one.also}; {_some(one.others)} {how}" if one.others else f"{one.also}; nobody may call it"
        case Use.BETWEEN:
            return f"{one.also}; used between NAT VM1 and NAT VM2 only"
        case Use.REAL:
            return f"its own address; {_some(one.others)} {'calls' if len(one.others) == 1 else 'call'} it {one.also}"
        case Use.SOURCE:
            return f"as {_some(one.others)} {'sees' if len(one.others) == 1 else 'see'} it (sourceNat: masquerade)"
        case Use.NAT_VM:
            return "its own address"
        case Use.BALANCER:
            return "its load balancer"
        case Use.VROUTER:
            return "its floating address in the POD"
        case Use.RELEASED:
            return "released, and kept back; `allocate --reuse` gives it to others"
        case Use.NETWORK:
            return f"in {one.also}, but not a member: none of its packets pass the POD"
        case Use.FREE:
            return f"in the POD's range {plan.cidr}"
        case _ as never:
            assert_never(never)


def _some(names: tuple[str, ...]) -> str:
    return some(sorted(names, key=natural), _SHOWN)
