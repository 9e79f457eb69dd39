"""What holds of the rules by themselves, without a packet: which cannot be meant, and what they tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import StrEnum

from netaddr import IPNetwork

from nat_pod.config.delivery import Delivery
from nat_pod.config.services import TCP
from nat_pod.plan.model import PodPlan
from nat_pod.rules.iptables import render_rule
from nat_pod.rules.netfilter import Accept, Chain, Drop, Goto, Match, Rule
from nat_pod.trace.chains import RuleKey, behind
from nat_pod.trace.counter_examples import DEAD_RULE, HIDDEN_RULE, CounterExample
from nat_pod.trace.flows import PROTOCOLS
from nat_pod.trace.topology import Topology


class Protocols(StrEnum):
    """For which protocols what was found for TCP port 80 holds."""

    ALL = "every protocol and port"
    WITH_PORTS = "ICMP, TCP and UDP, every port; rules drop all other protocols"
    IN_THREE = "every protocol and port: SYNs, other TCP segments, and UDP for everything else were traced"
    EACH = "every protocol and port: a packet of each class that the rules tell apart was traced"
    TRACED = "TCP port 80 only: rules look at protocols or ports"


def unmeant_rules(topology: Topology, used: Mapping[str, frozenset[RuleKey]]) -> Iterator[CounterExample]:
    """Rules that cannot be meant: an earlier one matches all that they match, or no declared flow meets them.

    used: by NAT VM, the rules that some declared flow meets.
    """
    for vm, table, chain in _chains(topology):
        met = used.get(vm, frozenset())
        for index, rule in enumerate(chain.rules):
            if RuleKey(table, chain.name, index) in met:
                continue
            text = render_rule(chain.name, rule)
            hiding = next((earlier for earlier in chain.rules[:index] if covers(earlier.match, rule.match)), None)
            if hiding is not None:
                yield _of_rule(HIDDEN_RULE, vm, f"{text} (behind {render_rule(chain.name, hiding)})")
            elif table == "nat" and not isinstance(rule.target, Goto | Accept):  # those let nobody pass
                yield _of_rule(DEAD_RULE, vm, text)


def holds_for(plan: PodPlan, topology: Topology) -> Protocols:
    """For which protocols the traced packets stand: by what the rules that a forwarded packet meets look at."""
    forward = [vm.rules.filter.hooked("FORWARD") for vm in topology.vms.values() if vm.rules is not None]
    met = _forwarding(topology)
    if plan.access.entries:
        return Protocols.EACH if all(rule.match.icmp_type is None for rule in met) else Protocols.TRACED
    if all(rule.match.protocol is None for rule in met):
        return Protocols.ALL
    if plan.delivery is Delivery.ROUTES and all(_is_one_of_three(rule.match) for rule in met):
        return Protocols.IN_THREE
    alike = [
        [replace(rule, match=replace(rule.match, protocol=None)) for rule in met if rule.match.protocol == protocol]
        for protocol in PROTOCOLS
    ]
    return (
        Protocols.WITH_PORTS
        if alike == [alike[0]] * len(alike) and all(map(_refuses_others, forward))
        else Protocols.TRACED
    )


def _forwarding(topology: Topology) -> list[Rule]:
    """The rules that a forwarded packet may meet."""
    met = [rule for _, table, chain in _chains(topology) if table == "nat" for rule in chain.rules]
    return met + [
        rule
        for vm in topology.vms.values()
        if vm.rules is not None
        for chain in behind(vm.rules.filter, "FORWARD")
        for rule in chain.rules
    ]


def _chains(topology: Topology) -> Iterator[tuple[str, str, Chain]]:
    for vm in topology.vms.values():
        for table in () if vm.rules is None else vm.rules.tables:
            for chain in table.chains:
                yield vm.name, table.name, chain


def _of_rule(kind: str, vm: str, text: str) -> CounterExample:
    return CounterExample(kind=kind, sender=vm, source="", destination="", why=text)


def _is_one_of_three(match: Match) -> bool:
    """Whether a condition is the same for all SYNs, for all other TCP segments, and for all that is not TCP."""
    unasked = (match.source_port, match.destination_port, match.icmp_type)
    return match.protocol in (None, TCP) and unasked == (None, None, None)


def _refuses_others(forward: Chain | None) -> bool:
    """Whether a new, translated packet of a protocol that no rule names is dropped."""
    for rule in () if forward is None else forward.rules:
        states = rule.match.ctstate
        if rule.match.protocol is None and (not states or not {"NEW", "DNAT"}.isdisjoint(states)):
            return isinstance(rule.target, Drop)
    return False


def covers(earlier: Match, later: Match) -> bool:
    """Whether every packet that `later` matches is matched by `earlier` too."""

    def holds(network: str | None, inside: str | None) -> bool:
        return network is None or (inside is not None and IPNetwork(inside) in IPNetwork(network))

    exact = ("in_interface", "protocol", "source_port", "destination_port", "icmp_type", "tcp_flags", "bound")
    return (
        holds(earlier.source, later.source)
        and holds(earlier.destination, later.destination)
        and holds(earlier.opened_from, later.opened_from)
        and holds(earlier.answered_from, later.answered_from)
        and all(getattr(earlier, name) in (None, getattr(later, name)) for name in exact)
        and (not earlier.ctstate or (bool(later.ctstate) and set(later.ctstate) <= set(earlier.ctstate)))
    )
