"""Members that nothing in the network tells apart: what becomes of one's packets becomes of the other's.

Exchange two members everywhere in a network: their names and all their addresses.  If the result is the same network,
then a flow of one and the same flow of the other meet the same fate, because whatever decides on the way looks only at
the network.  So `diff` traces one server and one host of each group of members that are alike, and the rest follows.

Nothing about the rules is taken for granted.  A member's description is everything in the network that mentions it.  In
the description its addresses are replaced by what they are to it: its real address, its address on NAT VM1, its address
on NAT VM2.  Two members are alike when their descriptions are equal.  A member is like no other if a rule treats it
differently, if somebody else has its address too, or if it shares its slot.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import replace

from netaddr import IPAddress

from nat_pod.names import ANYWHERE
from nat_pod.plan.model import SlotPlan
from nat_pod.rules.netfilter import Chain, Dnat, Match, Netmap, Rule, Snat, Target
from nat_pod.trace.spans import Places, numbers
from nat_pod.trace.topology import Topology

# A member's addresses as rules write them, and what each is to it: {"10.0.0.100/32": "real", "198.18.0.2": "nat_vm1"}
_Words = dict[str, str]


def alike(topology: Topology, members: Sequence[SlotPlan], others: Sequence[SlotPlan]) -> list[list[SlotPlan]]:
    """The members in groups: any two of a group can be exchanged without changing the network or the `others`."""
    words = [_words(member) for member in members]
    descriptions = _surroundings(topology, members, others)
    owners: dict[str | None, list[int]] = {}
    for number, own in enumerate(words):
        for word in own:
            owners.setdefault(word, []).append(number)
    values = sorted((_number(address), number) for number, m in enumerate(members) for address in _addresses(m))
    networks = topology.networks
    for where, chain in _chains(topology):
        for rule, run in zip(chain.rules, _runs(chain), strict=True):
            networks |= {net for net in (rule.match.source, rule.match.destination) if net and not _single(net)}
            said = (rule.match.source, rule.match.destination, getattr(rule.target, "to", None))
            for number in sorted({number for word in said for number in owners.get(word, ())}):
                own = words[number]
                descriptions[number].append((where, run, _match(rule.match, own), _target(rule.target, own)))
            if isinstance(rule.target, Netmap):
                for number in _touched(rule.match, rule.target, values):
                    descriptions[number].append((where, run, *_moved(rule.match, rule.target, words[number])))
    places = Places(numbers(network)[:2] for network in networks)
    groups: dict[tuple[object, ...], list[SlotPlan]] = {}
    for member, description in zip(members, descriptions, strict=True):
        within = [places.number(_number(address)) for address in _addresses(member)]
        groups.setdefault((*within, *description), []).append(member)
    return list(groups.values())


def _addresses(member: SlotPlan) -> tuple[str, str, str]:
    return member.real, member.nat_vm1, member.nat_vm2


def _words(member: SlotPlan) -> _Words:
    names = dict(zip(_addresses(member), ("real", "nat_vm1", "nat_vm2"), strict=True))
    return {**names, **{f"{address}/32": name for address, name in names.items()}}


def _surroundings(topology: Topology, members: Sequence[SlotPlan], others: Sequence[SlotPlan]) -> list[list[object]]:
    """For each member: who has its addresses, who shares its slot, and which machine it is."""
    holders: dict[str, list[tuple[str, bool]]] = {}
    for vnic in topology.vnics.values():
        for position, address in enumerate(vnic.addresses):
            holders.setdefault(address, []).append((vnic.name, position == 0))
    sharing: dict[str, list[str]] = {}
    for one in (*others, *members):
        for address in {*_addresses(one)}:
            sharing.setdefault(address, []).append(one.member)
    tables = [subnet.routes for subnet in topology.subnets.values()]
    tables += [lpg.routes or () for lpg in topology.lpgs.values()]
    next_hops = {route.private_ip for routes in tables for route in routes}
    descriptions = []
    for member in members:
        vm = topology.vms[member.member]
        vnics = [replace(topology.vnics[name], name="", vm="", mac="", addresses=()) for name in vm.vnics]
        description: list[object] = [vm.kind, vm.routes, vm.forwarding, *vnics]
        for address in _addresses(member):
            held = [("own" if name in vm.vnics else name, primary) for name, primary in holders.get(address, ())]
            shared = [name for name in sharing[address] if name != member.member]
            description += [*held, *shared, address if address in next_hops else ""]
        descriptions.append(description)
    return descriptions


def _chains(topology: Topology) -> Iterator[tuple[str, Chain]]:
    for vm in topology.vms.values():
        for table in () if vm.rules is None else vm.rules.tables:
            for chain in table.chains:
                yield f"{vm.name} {table.name} {chain.name}", chain


def _runs(chain: Chain) -> Iterator[int]:
    """For each rule, the index of the first rule of its run.

    A run is rules in a row that each match a single address, all of them the source or all of them the destination.
    They meet different packets, so their order means nothing.  Any other rule is a run by itself.
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
    """The match with words in place of the member's addresses."""
    source, destination = match.source or "", match.destination or ""
    return replace(match, source=own.get(source, source), destination=own.get(destination, destination))


def _target(target: Target, own: _Words) -> tuple[str, object]:
    if isinstance(target, Dnat | Snat):
        return type(target).__name__, own.get(target.to, target.to)
    return type(target).__name__, target


def _touched(match: Match, target: Netmap, values: list[tuple[int, int]]) -> list[int]:
    """The members that a NETMAP may concern.  values: sorted pairs of an address and its member's number."""
    touched: set[int] = set()
    for network in (match.source or match.destination or ANYWHERE, target.to):
        first, last = numbers(network)[:2]
        touched |= {number for _, number in values[bisect(values, (first, -1)) : bisect(values, (last + 1, -1))]}
    return sorted(touched)


def _moved(match: Match, target: Netmap, own: _Words) -> list[object]:
    """What a NETMAP makes of a member's addresses, and what it makes them from."""
    first, last = numbers(target.to)[:2]
    start, end = numbers(match.source or match.destination or ANYWHERE)[:2]
    if end - start != last - first or (match.source and match.destination):
        return [*own]  # not one to one: the member is like no other
    found: list[object] = []
    for address, name in own.items():
        if _single(address):
            continue  # the same address, written as a network
        value = _number(address)
        if start <= value <= end:
            image = str(IPAddress(value - start + first))
            found.append((name, "becomes", own.get(image, image)))
        if first <= value <= last:
            origin = str(IPAddress(value - first + start))
            found.append((name, "comes of", own.get(origin, origin)))
    return found


def _number(address: str) -> int:
    return int(IPAddress(address))
