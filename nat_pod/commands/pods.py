"""`pods`: all PODs of a directory, what is left in each, and the range for a new one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from netaddr import IPNetwork

from nat_pod import limits
from nat_pod.commands.command import FINDINGS, OK, Subparsers, add_json, add_parser, ipv4_network, print_json
from nat_pod.commands.plan_routed import holds
from nat_pod.config.addressing import default_layout, members_at_most, overlap
from nat_pod.config.any_config import AnyConfig
from nat_pod.config.pods import Pod, claimed, move_problems, no_stacks, partners, range_unknown, read_pods
from nat_pod.config.ranges import free_ranges, overlapping
from nat_pod.config.room import Fit, fit
from nat_pod.config.stack_file import is_stack_name
from nat_pod.errors import NatPodError, excerpt, visible
from nat_pod.text import count, table

PREFIXES = (22, 21)
"""The sizes of a POD that docs/reference.md counts: 435 slots, and the 696 of a VM with 24 VNICs."""


def add(commands: Subparsers) -> None:
    """The command's parser."""
    words = "list the PODs of this directory, the capacity left in each, and the next free range"
    parser = add_parser(commands, "pods", words, _run)
    words = "say which PODs have room for a new customer with this network or these networks"
    parser.add_argument("--fits", metavar="CIDR", type=_network, nargs="+", help=words)
    parser.add_argument("--hosts", metavar="N", type=_count, default=1, help="with --fits: how many hosts it has")
    add_json(parser)


def _network(text: str) -> IPNetwork:
    network = ipv4_network(text)
    if network is None or "/" not in text:
        raise argparse.ArgumentTypeError(f"{excerpt(text)} is not an IPv4 network, e.g. 10.0.0.0/24")
    if network.prefixlen not in limits.NETWORK_PREFIXES:
        raise argparse.ArgumentTypeError(
            f"{text} is not a valid customer network; it must be a /8 to a /32, e.g. 10.0.0.0/24"
        )
    return network


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{excerpt(text)} is not a number of hosts, e.g. 12")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    directory = Path.cwd()
    every = read_pods(directory)
    if not every:
        raise no_stacks(directory)
    if arguments.fits is not None:
        return _fits(every, arguments)
    if arguments.json:
        print_json(pods_dict(every))
    else:
        print(pods_text(every))
    return FINDINGS if _wrong(every) else OK


def _fits(pods: Mapping[str, Pod], arguments: argparse.Namespace) -> int:
    """`pods --fits`: each POD with the gateway that the customer would have, or with what keeps it out."""
    cidrs, hosts = tuple(arguments.fits), arguments.hosts
    _check_customer(cidrs, hosts)
    real = [name for name, pod in pods.items() if not pod.example]
    found = {name: fit(name, pods, cidrs, hosts) for name in real}
    if arguments.json:
        print_json({name: None if one is None else _fit_dict(one) for name, one in found.items()})
    else:
        print(_fits_text(found, cidrs, hosts, [name for name in pods if name not in real]))
    return OK if any(one is not None and not one.obstacles for one in found.values()) else FINDINGS


def _check_customer(cidrs: tuple[IPNetwork, ...], hosts: int) -> None:
    """Raises NatPodError for a customer that no POD could have, as `check` would refuse it."""
    for one, other in combinations(cidrs, 2):
        if overlap(one, other):
            raise NatPodError(f"--fits: {one} and {other} overlap; give networks that share no address")
    room = sum(members_at_most(cidr) for cidr in cidrs)
    if hosts > room:
        which = ", ".join(map(str, cidrs))
        raise NatPodError(f"--hosts: {hosts} hosts are more than the {room} usable addresses of {which}")


def _fit_dict(one: Fit) -> dict[str, object]:
    return {
        "fits": not one.obstacles,
        "gateway": one.gateway,
        "newGateway": one.new_gateway,
        "obstacles": list(one.obstacles),
    }


def _fits_text(found: Mapping[str, Fit | None], cidrs: Sequence[IPNetwork], hosts: int, examples: list[str]) -> str:
    who = f"a customer of {', '.join(map(str, cidrs))} with {count(hosts, 'host')}"
    rows = [[visible(name), _fit_words(one)] for name, one in found.items()]
    lines = [f"Where {who} fits", table(["POD", ""], rows)] if rows else [f"{who}: there is no POD yet"]
    if not any(one is not None and not one.obstacles for one in found.values()):
        lines.append("no POD has room for it as it is; a new one has: python -m nat_pod new-pod --routed NAME")
    if examples:
        lines.append(f"left out, because they are examples: {', '.join(map(visible, examples))}")
    return "\n".join(lines)


def _fit_words(one: Fit | None) -> str:
    if one is None:
        return "unknown: its stack file has problems; run: python -m nat_pod check"
    if one.obstacles:
        return f"no: {'; '.join(one.obstacles)}"
    if one.gateway is None:
        return "yes"
    return f"yes, in gateway {one.gateway}{', a new one' if one.new_gateway else ''}"


def pods_dict(pods: Mapping[str, Pod]) -> dict[str, object]:
    """The form of `pods --json`."""
    return {
        "pods": {
            name: {
                "cidr": None if pod.cidr is None else str(pod.cidr),
                **_left(pod.config),
                "overlaps": _overlaps(name, pods),
                "problems": _problems(name, pods),
                "example": pod.example,
                "movesFrom": pod.moves_from,
            }
            for name, pod in pods.items()
        },
        "free": {f"/{prefix}": _free(pods, prefix) for prefix in PREFIXES},
        "rangeUnknown": range_unknown(pods),
    }


def _left(config: AnyConfig | None) -> dict[str, object]:
    if config is None:
        return {"slots": None, "customers": None, "lpgs": None, "vnics": None}
    left = config.capacity
    customers = len(config.customers)
    return {
        "slots": {"slots": left.slots, "used": left.used, "free": left.free},
        "customers": customers,
        "lpgs": {"limit": config.lpg_limit, "free": config.lpg_limit - customers},
        "vnics": {"used": left.vnics_used, "limit": left.vnics_limit},
    }


def _free(pods: Mapping[str, Pod], prefix: int) -> dict[str, object]:
    free = list(free_ranges(claimed(pods).values(), prefix))
    return {"next": str(free[0]) if free else None, "left": len(free)}


def _wrong(pods: Mapping[str, Pod]) -> list[str]:
    """The PODs that have a problem, or share a range."""
    return [name for name in pods if _problems(name, pods) or _overlaps(name, pods)]


def _problems(name: str, pods: Mapping[str, Pod]) -> int:
    return len(pods[name].problems) + len(move_problems(name, pods))


def _overlaps(name: str, pods: Mapping[str, Pod]) -> list[str]:
    return overlapping(name, claimed(pods), partners(name, pods))


def pods_text(pods: Mapping[str, Pod]) -> str:
    """`pods` for people."""
    header = ["POD", "range", "slots used", "free", "customers", "LPGs left", "VNICs", ""]
    lines = [table(header, [_row(name, pods) for name in pods], indent=""), ""]
    for prefix in PREFIXES:
        slots = default_layout(next(IPNetwork(limits.POD_SPACE).subnet(prefix)), limits.MAX_VNICS).capacity
        free = _free(pods, prefix)
        lines.append(
            f"next free /{prefix} ({slots} slots or {holds(prefix):,} aliases): "
            f"{free['next'] or 'none'}, {free['left']} left"
        )
    if examples := [name for name, pod in pods.items() if pod.example]:
        lines.append(f"examples (made-up compartment), whose ranges are free: {', '.join(examples)}")
    if unknown := range_unknown(pods):
        files = ", ".join(f"Pulumi.{visible(name)}.yaml" for name in unknown)
        lines.append(f"not counted, because the range cannot be read: {files}")
    if wrong := _wrong(pods):
        # What is no stack's name is not for a command line; without names, all are checked.
        names = wrong if all(is_stack_name(name) for name in wrong) else []
        lines.append(" ".join(["to see what is wrong, run: python -m nat_pod check", *names]))
    return "\n".join(lines)


def _row(name: str, pods: Mapping[str, Pod]) -> list[object]:
    pod, others, problems = pods[name], _overlaps(name, pods), _problems(name, pods)
    states = [f"overlaps {', '.join(others)}"] if others else []
    states += [count(problems, "problem")] if problems else []
    end = ("example, " if pod.example else "") + ("; ".join(states) or "fine")
    if pod.moves_from is not None:
        end += f", takes the place of {visible(pod.moves_from)}"
    start = [visible(pod.name), "-" if pod.cidr is None else str(pod.cidr)]
    if pod.config is None:
        return [*start, "-", "-", "-", "-", "-", end]
    left = pod.config.capacity
    customers = len(pod.config.customers)
    slots, vnics = f"{left.used} of {left.slots}", f"{left.vnics_used} of {left.vnics_limit}"
    return [*start, slots, left.free, customers, pod.config.lpg_limit - customers, vnics, end]
