"""`trace`: a packet through both NAT VMs and back, or every packet."""

from __future__ import annotations

import argparse
from dataclasses import replace

from netaddr import INET_PTON, AddrFormatError, IPAddress, IPNetwork

from nat_pod.commands.command import (
    FINDINGS,
    OK,
    Subparsers,
    add_json,
    add_parser,
    add_stack,
    port_number,
    print_json,
    width,
)
from nat_pod.commands.stack import load
from nat_pod.config.services import LAST_PORT
from nat_pod.errors import NatPodError, excerpt
from nat_pod.names import MemberName
from nat_pod.plan.model import PodPlan
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.expected import expected_topology, with_host
from nat_pod.trace.flows import PORT
from nat_pod.trace.proof import prove
from nat_pod.trace.proof_text import proof_dict, proof_text
from nat_pod.trace.trace_text import trace_text, verdict_text
from nat_pod.trace.walk import Packet, trace


def add(commands: Subparsers) -> None:
    """The command's parser."""
    words = "follow a packet through both NAT VMs and back, and say where it dies"
    parser = add_parser(commands, "trace", words, _run)
    add_stack(parser)
    parser.add_argument("sender", metavar="FROM", nargs="?", help="the sender: customer1/vm1, or customer1/10.0.0.77")
    parser.add_argument(
        "receiver", metavar="TO", nargs="?", help="the receiver in the same form, or an address to send to: 198.18.0.9"
    )
    parser.add_argument("--steps", action="store_true", help="show every step, as a firewall's packet-tracer does")
    parser.add_argument(
        "--all", action="store_true", help="trace every packet instead of one, and list what is not as declared"
    )
    parser.add_argument(
        "--down", metavar="VM", action="append", default=[], help="treat this NAT VM as dead; repeat it for several"
    )
    parser.add_argument("--protocol", choices=("icmp", "tcp", "udp"), help="protocol of the packet (default: icmp)")
    parser.add_argument("--port", type=_port, help="destination port for tcp and udp (default: 80)")
    add_json(parser)
    parser.set_defaults(wrong=parser.error)


def _port(text: str) -> int:
    number = port_number(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"{excerpt(text)} is not a port (1 to {LAST_PORT})")
    return number


def _run(arguments: argparse.Namespace) -> int:
    one = arguments.sender is not None or arguments.steps or arguments.down or arguments.protocol or arguments.port
    if arguments.all and one:
        words = "no FROM, no TO, no --steps, no --down, no --protocol and no --port"
        arguments.wrong(f"--all traces every packet: it takes {words}")
    if not arguments.all and arguments.receiver is None:
        arguments.wrong("FROM and TO are missing; give both, or --all")
    protocol = arguments.protocol or "icmp"
    if arguments.port is not None and protocol == "icmp":
        arguments.wrong("argument --port: a ping has no port; add --protocol tcp or --protocol udp")
    _, plan = load(arguments.stack)
    if arguments.all:
        return _trace_all(plan, arguments)
    topology = expected_topology(plan)
    _check_vms(arguments.down, plan)
    slot = plan.slot(arguments.sender)
    if slot is None:
        sender, source = _unlisted(arguments.sender, plan)
        topology = with_host(topology, sender, source)
    else:
        sender, source = slot.member, slot.real
    destination, expected = _destination(arguments.receiver, sender, plan)
    if destination is None:
        return _no_address(arguments)
    number: int = arguments.port or PORT
    packet = Packet(src=source, dst=destination, protocol=protocol)
    if protocol != "icmp":
        packet = replace(packet, dport=number)
    traced = trace(topology, sender, packet, expected, arguments.down)
    if arguments.json:
        print_json(traced.to_dict(steps=arguments.steps))
    else:
        ports = "" if protocol == "icmp" else f" port {number}"
        title = f"{sender} ({source}) to {arguments.receiver}: {protocol}{ports}"
        print(trace_text(traced, title, every_step=arguments.steps, width=width()))
    return OK if traced.disposition is Disposition.DELIVERED else FINDINGS


def _trace_all(plan: PodPlan, arguments: argparse.Namespace) -> int:
    proof = prove(plan)
    if arguments.json:
        print_json(proof_dict(proof))
    else:
        print(proof_text(proof, arguments.stack, width()))
    return FINDINGS if proof.counter_examples else OK


def _check_vms(names: list[str], plan: PodPlan) -> None:
    known = [vm.key for vm in plan.vms]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise NatPodError(f"--down {unknown[0]}: is not a NAT VM of this POD ({', '.join(known)})")


def _destination(receiver: str, sender: MemberName, plan: PodPlan) -> tuple[str | None, str | None]:
    """The address that the sender has to use (None: there is none), and who should answer there."""
    if "/" not in receiver and _is_address(receiver):
        return receiver, None
    slot = plan.slot(receiver)
    if slot is not None:
        return slot.address(sender.side), receiver
    _unlisted(receiver, plan)
    return None, receiver


def _no_address(arguments: argparse.Namespace) -> int:
    """TO is in no address book: there is no packet that could be sent to it."""
    why = (
        f"{arguments.receiver} has no slot, so the other side has no address for it; "
        f"name it in the stack file and run: python -m nat_pod allocate {arguments.stack}"
    )
    if arguments.json:
        print_json({"disposition": str(Disposition.NO_MAPPING), "why": why, "request": [], "reply": []})
    else:
        print(verdict_text(Disposition.NO_MAPPING, why, width()))
    return FINDINGS


def _unlisted(name: str, plan: PodPlan) -> tuple[MemberName, str]:
    """The host and the address in `customer1/10.0.0.77`.  Raises NatPodError with what would be understood."""
    members, realms = [slot.member for slot in plan.slots], plan.realms
    realm, _, address = name.partition("/")
    if realm in realms and _is_address(address):
        owner = next((slot.member for slot in plan.slots if (slot.member.realm, slot.real) == (realm, address)), None)
        if owner is None and not any(IPAddress(address) in IPNetwork(cidr) for cidr in realms[realm]):
            what = "network" if len(realms[realm]) == 1 else "networks"
            raise NatPodError(f"{name}: {address} is outside {', '.join(realms[realm])}, the {what} of {realm}")
        if owner is None:
            return MemberName(realm, address), address
        raise NatPodError(f"{name}: that is {owner}; use its name")
    namesakes = [member for member in members if member.short == name]
    if namesakes:
        raise NatPodError(f"{name}: is not a member; did you mean {' or '.join(namesakes)}?")
    known = ", ".join(members[:6]) + (" ..." if len(members) > 6 else "")
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
