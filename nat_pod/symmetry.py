"""Members that nothing in the network tells apart: what becomes of one's packets becomes of the other's.

Exchange two servers, names and all addresses, everywhere in a network.  If the same network comes out, a flow of the
one and the same flow of the other have one fate, names and addresses exchanged: whatever decides on the way looks at
the network and at nothing else.  So `diff` traces one of them, and the rest follows.

Nothing is taken for granted of the rules.  A member is described by all that the network has of it, its own addresses
written as what they are of it; two are alike when their descriptions are equal.  One that a rule treats in another way,
whose address somebody else has too, or whose slot is shared is like no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from netaddr import IPAddress

from nat_pod.chains import Places, Span, numbers
from nat_pod.netfilter import Chain, Dnat, Match, Netmap, Rule, Snat, Target
from nat_pod.plan import SlotPlan
from nat_pod.topology import Topology

_Description = list[object]
# A member's addresses as rules write them: {"10.0.0.100/32": "real", "198.18.0.2": "nat_vm1", ...}
_Words = dict[str, str]


def alike(topology: Topology, members: Sequence[SlotPlan], others: Sequence[SlotPlan]) -> list[list[SlotPlan]]:
    """The members in groups: any two of a group can be exchanged, and the network and the `others` stay as they are."""
    words = [_words(member) for member in members]
    descriptions = [_surroundings(topology, member, others) for member in members]
    networks = topology.networks
    for where, chain in _chains(topology):
        for rule, run in zip(chain.rules, _runs(chain), strict=True):
            networks |= {net for net in (rule.match.source, rule.match.destination) if net and not _single(net)}
            said = {rule.match.source, rule.match.destination, getattr(rule.target, "to", None)}
            for own, description in zip(words, descriptions, strict=True):
                if not said.isdisjoint(own):
                    description.append((where, run, _match(rule.match, own), _target(rule.target, own)))
                if isinstance(rule.target, Netmap):
                    description.append((where, run, *_moved(rule.match, rule.target, own)))
    places = Places(numbers(network)[:2] for network in networks)
    groups: dict[tuple[object, ...], list[SlotPlan]] = {}
    for member, description in zip(members, descriptions, strict=True):
        within = [places.number(Span(_number(address))) for address in _addresses(member)]
        groups.setdefault((*within, *description), []).append(member)
    return list(groups.values())


def exchange(one: SlotPlan, other: SlotPlan) -> dict[str, str]:
    """{address of the one: the same of the other}: for saying of the other what is known of the one."""
    return dict(zip(_addresses(one), _addresses(other), strict=True))


def _addresses(member: SlotPlan) -> tuple[str, str, str]:
    return member.real, member.nat_vm1, member.nat_vm2


def _words(member: SlotPlan) -> _Words:
    names = dict(zip(_addresses(member), ("real", "nat_vm1", "nat_vm2"), strict=True))
    return {**names, **{f"{address}/32": name for address, name in names.items()}}


def _surroundings(topology: Topology, member: SlotPlan, others: Sequence[SlotPlan]) -> _Description:
    """Who has a member's addresses, who shares its slot, and what machine it is."""
    own = _words(member)
    description: _Description = [other.member for other in others if other.nat_vm1 in own or other.nat_vm2 in own]
    for vnic in topology.vnics.values():
        for position, address in enumerate(vnic.addresses):
            if address in own:
                name = "own" if vnic.vm == member.member else vnic.name
                description.append((own[address], name, position == 0))
    vm = topology.vms[member.member]
    vnics = [replace(topology.vnics[name], name="", vm="", mac="", addresses=()) for name in vm.vnics]
    description.append((vm.kind, vm.routes, vm.forwarding, *vnics))
    tables = [subnet.routes for subnet in topology.subnets.values()]
    tables += [lpg.routes or () for lpg in topology.lpgs.values()]
    description += [route for routes in tables for route in routes if route.private_ip in own]
    return description


def _chains(topology: Topology) -> Iterator[tuple[str, Chain]]:
    for vm in topology.vms.values():
        for table in () if vm.rules is None else vm.rules.tables:
            for chain in table.chains:
                yield f"{vm.name} {table.name} {chain.name}", chain


def _runs(chain: Chain) -> Iterator[int]:
    """For each rule the first of the run it is in: neighbours that match one address each, at the same side.

    They meet different packets, so their order means nothing; any other rule is a run by itself.
    """
    start, before = 0, None
    for index, rule in enumerate(chain.rules):
        side = _side(rule)
        if side is None or side != before:
            start = index
        before = side
        yield start


def _side(rule: Rule) -> str | None:
    match rule.match.source, rule.match.destination:
        case str(source), None if _single(source):
            return "source"
        case None, str(destination) if _single(destination):
            return "destination"
    return None


def _single(network: str) -> bool:
    return network.endswith("/32")


def _match(match: Match, own: _Words) -> Match:
    """The match with the member's addresses as words."""
    source, destination = match.source or "", match.destination or ""
    return replace(match, source=own.get(source, source), destination=own.get(destination, destination))


def _target(target: Target, own: _Words) -> tuple[str, object]:
    if isinstance(target, Dnat | Snat):
        return type(target).__name__, own.get(target.to, target.to)
    return type(target).__name__, target


def _moved(match: Match, target: Netmap, own: _Words) -> list[object]:
    """What a NETMAP makes of a member's addresses, and of what it makes them."""
    first, last = numbers(target.to)[:2]
    found: list[object] = []
    for network in (match.source, match.destination):
        if network is None:
            continue
        start, end = numbers(network)[:2]
        for address, name in own.items():
            if "/" in address:
                continue
            value = _number(address)
            if end - start != last - first:
                found.append(address)  # not one to one: nothing is said of it
            if start <= value <= end:
                image = str(IPAddress(value - start + first))
                found.append((name, "becomes", own.get(image, image)))
            if first <= value <= last:
                origin = str(IPAddress(value - first + start))
                found.append((name, "comes of", own.get(origin, origin)))
    if match.source is None and match.destination is None:
        found += own
    return found


def _number(address: str) -> int:
    return int(IPAddress(address))
