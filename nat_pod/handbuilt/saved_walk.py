"""What a hand-built nat table does to a packet: the first rule that ends its walk, through jumps, gotos and returns.

The tracer (`trace/`) walks nat-pod's own rules and understands every one of them.  This walks other people's rules, as
netfilter does.  Rules are looked up by the addresses they name, so a chain of thousands of rules costs
little more than one with few.

A packet here is two addresses, and the first packet of its flow.  What else would matter is assumed: it leaves by the
interface that POSTROUTING names first (the primary VNIC, where the default route leads), and it may come in by any
interface but `lo`.  A rule with other conditions (`narrow`) is passed over, and import lists it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from nat_pod.errors import NatPodError
from nat_pod.handbuilt.numeric import ANY, Range
from nat_pod.handbuilt.saved_table import Action, SavedRule, SavedTable

PREROUTING, POSTROUTING = "PREROUTING", "POSTROUTING"
TRANSLATING = frozenset({Action.DNAT, Action.SNAT, Action.NETMAP, Action.MASQUERADE})
_FOLLOWED = (Action.JUMP, Action.GOTO)
_MOST_PACKETS = 500_000
_MOST_LOOKED_AT = 1_000_000  # rules looked at, on all ways; a full POD needs some 10,000
# Chains that other programs own, in the nat table: they come and go with these programs.
_OTHERS = (
    (re.compile(r"DOCKER.*"), "Docker"),
    (re.compile(r"(KUBE|CNI|FLANNEL|CILIUM|cali|WEAVE)[-_].*"), "Kubernetes"),
    (re.compile(r"NETAVARK.*"), "Podman"),
    (re.compile(r"LIBVIRT_.*"), "libvirt"),
    (re.compile(r"(BareMetal)?InstanceServices"), "the platform"),
)
_OTHERS_INTERFACE = re.compile(r"(! )?(docker|br-|virbr|cni|podman|flannel|lxdbr)\S*")


def owner_of_chain(name: str) -> str | None:
    """The program that a chain belongs to; None for the engineer's own chain."""
    return next((owner for pattern, owner in _OTHERS if pattern.fullmatch(name)), None)


class SavedWalk:
    """One VM's nat table, prepared for many packets."""

    def __init__(self, table: SavedTable) -> None:
        self._chains = {name: _Chain(rules) for name, rules in table.chains.items()}
        self._leaves_by = next(_interfaces(table, POSTROUTING), None)
        self._looked_at = 0
        self._asked: dict[tuple[int, int], SavedRule | None] = {}

    def prerouting(self, source: int, destination: int) -> SavedRule | None:
        """`decide` for PREROUTING, which is asked about the same packets again and again.  Raises NatPodError."""
        if (source, destination) not in self._asked:
            if len(self._asked) >= _MOST_PACKETS:
                raise NatPodError(f"these rules match more than {_MOST_PACKETS} pairs of addresses; import gives up")
            self._asked[source, destination] = self.decide(PREROUTING, source, destination)
        return self._asked[source, destination]

    def postrouting(self, source: int, destination: int) -> SavedRule | None:
        """`decide` for POSTROUTING."""
        return self.decide(POSTROUTING, source, destination)

    def decide(self, builtin: str, source: int, destination: int) -> SavedRule | None:
        """The rule that ends the walk of a packet in a built-in chain; None when it falls through."""
        return self._decide(builtin, builtin, source, destination, set())

    def _decide(self, chain: str, builtin: str, source: int, destination: int, passed: set[str]) -> SavedRule | None:
        """passed: chains that are known to decide nothing for this packet, so that no chain is walked twice."""
        for rule in self._chains[chain].candidates(source, destination):
            if not self._matches(rule, builtin, source, destination):
                continue
            if rule.action is Action.RETURN:
                break
            if rule.action in _FOLLOWED:
                end = None
                if rule.chain not in passed:
                    end = self._decide(rule.chain, builtin, source, destination, passed)
                if end is not None or rule.action is Action.GOTO:
                    return end
            elif rule.action in TRANSLATING or rule.action is Action.ACCEPT:
                return rule
        passed.add(chain)
        return None

    def _matches(self, rule: SavedRule, builtin: str, source: int, destination: int) -> bool:
        if not rule.source[0] <= source <= rule.source[1]:
            return False
        if not rule.destination[0] <= destination <= rule.destination[1]:
            return False
        if rule.not_source is not None and rule.not_source[0] <= source <= rule.not_source[1]:
            return False
        if rule.not_destination is not None and rule.not_destination[0] <= destination <= rule.not_destination[1]:
            return False
        return self.applies(rule, builtin)

    def applies(self, rule: SavedRule, builtin: str) -> bool:
        """Whether a packet of the POD can match a rule, its addresses left aside."""
        if rule.narrow or (rule.action in _FOLLOWED and owner_of_chain(rule.chain)):
            return False
        if rule.in_interface == "lo" or (rule.out_interface and not self._leaves(rule.out_interface)):
            return False
        return rule.ctstate is None or bool(rule.ctstate & _FIRST_PACKET[builtin])

    def _leaves(self, interface: str) -> bool:
        if interface.startswith("! "):
            return interface[2:] != self._leaves_by
        return interface.rstrip("+") == (self._leaves_by or "").rstrip("+")

    def ways(self) -> Iterator[tuple[SavedRule, Range, Range]]:
        """Each way through PREROUTING to a rule that translates, with the sources and destinations that fit its tests.

        Tests behind a `!` and the order of rules are left to `decide`.
        """
        yield from self._ways_from(PREROUTING, ANY, ANY, set())

    def _ways_from(
        self, chain: str, sources: Range, destinations: Range, gone: set[tuple[str, Range, Range]]
    ) -> Iterator[tuple[SavedRule, Range, Range]]:
        if (chain, sources, destinations) in gone:
            return
        gone.add((chain, sources, destinations))
        rules = self._chains[chain].rules
        self._looked_at += len(rules)
        if self._looked_at > _MOST_LOOKED_AT:
            raise NatPodError("there are too many ways through these chains; import gives up")
        for rule in rules:
            source = max(sources[0], rule.source[0]), min(sources[1], rule.source[1])
            destination = max(destinations[0], rule.destination[0]), min(destinations[1], rule.destination[1])
            if source[0] > source[1] or destination[0] > destination[1] or not self.applies(rule, PREROUTING):
                continue
            if rule.action in _FOLLOWED:
                yield from self._ways_from(rule.chain, source, destination, gone)
            elif rule.action in TRANSLATING:
                yield rule, source, destination


_FIRST_PACKET = {PREROUTING: {"NEW", "RELATED"}, POSTROUTING: {"NEW", "RELATED", "DNAT"}}


def _interfaces(table: SavedTable, chain: str) -> Iterator[str]:
    """The interfaces that rules of a chain, and of the chains below it, ask for, in order."""
    for rule in table.chains[chain]:
        if owner_of_rule(rule) is None:
            if rule.out_interface and rule.out_interface != "lo" and not rule.out_interface.startswith("! "):
                yield rule.out_interface
            if rule.action in _FOLLOWED:
                yield from _interfaces(table, rule.chain)


def _of_others(rule: SavedRule) -> bool:
    return any(_OTHERS_INTERFACE.fullmatch(name) for name in (rule.in_interface, rule.out_interface) if name)


def owner_of_rule(rule: SavedRule) -> str | None:
    """The program that a rule of a built-in chain belongs to, when its interface or its jump says so."""
    if rule.action in _FOLLOWED:
        return owner_of_chain(rule.chain)
    return "a container or VM host" if _of_others(rule) else None


def translated(rule: SavedRule | None, address: int, primary: int) -> int:
    """What a rule makes of the address that it translates.  primary: the address that MASQUERADE uses."""
    if rule is None or rule.action is Action.ACCEPT:
        return address
    if rule.action is Action.MASQUERADE:
        return primary
    assert rule.to is not None  # of every DNAT, SNAT and NETMAP
    if rule.action is Action.NETMAP:
        return rule.to[0] | (address & (rule.to[1] - rule.to[0]))
    return rule.to[0]


class _Chain:
    """The rules of a chain, found by the addresses they name."""

    def __init__(self, rules: list[SavedRule]) -> None:
        self.rules = rules
        self._by_both: dict[tuple[int, int], list[int]] = {}
        self._by_source: dict[int, list[int]] = {}
        self._by_destination: dict[int, list[int]] = {}
        self._broad: list[int] = []
        for position, rule in enumerate(rules):
            one_source = rule.source[0] == rule.source[1]
            one_destination = rule.destination[0] == rule.destination[1]
            if one_source and one_destination:
                self._by_both.setdefault((rule.source[0], rule.destination[0]), []).append(position)
            elif one_source:
                self._by_source.setdefault(rule.source[0], []).append(position)
            elif one_destination:
                self._by_destination.setdefault(rule.destination[0], []).append(position)
            else:
                self._broad.append(position)

    def candidates(self, source: int, destination: int) -> list[SavedRule]:
        """The rules that may match, in their order."""
        found = [
            *self._by_both.get((source, destination), ()),
            *self._by_source.get(source, ()),
            *self._by_destination.get(destination, ()),
            *self._broad,
        ]
        found.sort()
        return [self.rules[position] for position in found]
