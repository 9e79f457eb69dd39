"""A packet's way through the chains of a rule set: the rule that decides, and for which other addresses it decides.

Rules are looked up by prefix instead of read one after the other: a chain has one table for each prefix length that its
rules match, so a packet costs as many look-ups as the chain has prefix lengths, however many rules there are.

A `Span` is one address of a packet together with the interval around it that nothing has told apart from it so far.
Every test narrows it: what happened to this packet happens to every packet of the interval.  That makes a proof over
all addresses possible without trying each one (`proof.py`).
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from netaddr import IPAddress, IPNetwork

from nat_pod.rules.iptables import render_rule
from nat_pod.rules.netfilter import (
    Accept,
    Chain,
    Dnat,
    Drop,
    Goto,
    Match,
    Netmap,
    Rule,
    Ruleset,
    Snat,
    Table,
)

LAST_ADDRESS = 2**32 - 1
_STATES = frozenset(("NEW", "ESTABLISHED", "RELATED", "INVALID", "DNAT", "SNAT"))


class UnknownRuleError(Exception):
    """A rule the tracer has no meaning for.  Guessing would make the prediction worthless."""


class Span:
    """An address as it is now, and the interval (`low` to `high`) of those that met the same decisions so far."""

    __slots__ = ("_fixed", "_moved", "high", "low", "value")

    def __init__(self, value: int) -> None:
        self.value = value
        self.low, self.high = 0, LAST_ADDRESS
        self._moved = 0
        self._fixed: tuple[int, int] | None = None

    def inside(self, first: int, last: int) -> bool:
        """Whether the address is one of `first` to `last`; the interval is now on one side of that border."""
        if self.value < first:
            self.narrow(0, first - 1)
            return False
        if self.value > last:
            self.narrow(last + 1, LAST_ADDRESS)
            return False
        self.narrow(first, last)
        return True

    def narrow(self, low: int, high: int) -> None:
        """Only `low` to `high`, which the address is in, are treated like it."""
        if low > self.low:
            self.low = low
        if high < self.high:
            self.high = high

    def become(self, value: int) -> None:
        """A translation to one address: from here on all of the interval are the same."""
        if self._fixed is None:
            self._fixed = self.origin()
        self.value = value
        self.low, self.high = 0, LAST_ADDRESS

    def move(self, network: int, host_bits: int) -> None:
        """A translation of a prefix: the host bits are kept, so the interval moves along."""
        block = self.value & ~host_bits
        self.narrow(block, block | host_bits)
        by = network - block
        self.value, self.low, self.high = self.value + by, self.low + by, self.high + by
        self._moved += by

    def pin(self) -> None:
        """This address and no other."""
        self.narrow(self.value, self.value)

    def origin(self) -> tuple[int, int]:
        """The interval in terms of the address that the packet started with."""
        return self._fixed or (self.low - self._moved, self.high - self._moved)


@dataclass(slots=True)
class Header:
    """What a rule can look at.  For ICMP the two ports are the echo identifier."""

    src: Span
    dst: Span
    protocol: str
    sport: int
    dport: int
    icmp_type: int | None

    def alone(self) -> Header:
        """The same header with intervals of its own, that nothing has narrowed yet."""
        src, dst = Span(self.src.value), Span(self.dst.value)
        return Header(src, dst, self.protocol, self.sport, self.dport, self.icmp_type)

    def key(self) -> tuple[str, int, int, int, int]:
        """What conntrack knows a packet by."""
        return (self.protocol, self.src.value, self.dst.value, self.sport, self.dport)

    def reply_key(self) -> tuple[str, int, int, int, int]:
        """What conntrack knows its answer by."""
        return (self.protocol, self.dst.value, self.src.value, self.dport, self.sport)


class Places:
    """Intervals of addresses, numbered: the pieces into which a set of networks cuts the address space.

    Two addresses of one piece are in the same ones of these networks.
    """

    def __init__(self, networks: Iterable[tuple[int, int]]) -> None:
        edges = {0, LAST_ADDRESS + 1}
        for first, last in networks:
            edges |= {first, last + 1}
        self._edges = sorted(edges)
        self._known: dict[int, int] = {}

    def narrow(self, span: Span) -> None:
        """Let an address stand for the piece that it is in, at most."""
        place = self.number(span)
        span.narrow(self._edges[place - 1], self._edges[place] - 1)

    def number(self, span: Span) -> int:
        """The number of the piece that an address is in; what it stands for does not change."""
        place = self._known.get(span.value)
        if place is None:
            place = self._known[span.value] = bisect(self._edges, span.value)
        return place


class Addresses:
    """A set of single addresses."""

    def __init__(self, values: Iterable[int]) -> None:
        self._values = frozenset(values)
        self._order = sorted(self._values)

    def has(self, span: Span) -> bool:
        """Whether the address is one of them; then it stands for itself alone, else for those between two of them."""
        if span.value in self._values:
            span.pin()
            return True
        place = bisect(self._order, span.value)
        span.narrow(
            self._order[place - 1] + 1 if place else 0,
            self._order[place] - 1 if place < len(self._order) else LAST_ADDRESS,
        )
        return False


@dataclass(frozen=True, slots=True)
class RuleKey:
    """One rule's place: table, chain, and its number in it from 0."""

    table: str
    chain: str
    index: int


@dataclass(frozen=True, slots=True)
class Hit:
    """The rule that decides, as text too, and for a translation the first new address and the host bits it keeps."""

    rule: Rule
    text: str
    network: tuple[int, int] | None

    def translate(self, span: Span) -> None:
        """Replace an address the way the rule does."""
        if self.network is None:
            raise UnknownRuleError(f"{self.text} is no address translation")
        first, host_bits = self.network
        if host_bits:
            span.move(first, host_bits)
        else:
            span.become(first)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a hook's chains make of a packet: the rule that decides (None: it falls through) and the chains entered."""

    hit: Hit | None
    chains: tuple[str, ...]


FALLS_THROUGH = Verdict(None, ())


class Walker:
    """One NAT VM's rules, prepared for many packets.  `used` collects every rule that a packet matched."""

    def __init__(self, rules: Ruleset) -> None:
        self.used: set[RuleKey] = set()
        self._tables = {table.name: table for table in rules.tables}
        self._chains: dict[tuple[str, str], _Indexed] = {}
        self._hooks: dict[tuple[str, str], _Hook] = {}

    def verdict(self, table: str, builtin: str, header: Header, state: frozenset[str]) -> Verdict:
        """What becomes of a packet behind a built-in chain.

        Raises UnknownRuleError for a rule that has no meaning where it stands.
        """
        hook = self._hooks.get((table, builtin))
        if hook is None:
            hook = self._hooks[table, builtin] = _Hook(self._tables[table], builtin, self._chain)
        if hook.entry is None:
            return FALLS_THROUGH
        what = (state, header.protocol, header.sport, header.dport, header.icmp_type) if hook.looks_further else state
        key = (what, hook.sources.number(header.src), hook.destinations.number(header.dst))
        known = hook.known.get(key)
        if known is None:
            alone = header.alone()
            verdict = self._walk(hook, alone, state)
            known = hook.known[key] = (verdict, alone.src, alone.dst)
        verdict, src, dst = known
        header.src.narrow(src.low, src.high)
        header.dst.narrow(dst.low, dst.high)
        return verdict

    def _walk(self, hook: _Hook, header: Header, state: frozenset[str]) -> Verdict:
        passed: list[str] = []
        name = hook.entry
        while name is not None:
            chain = self._chain(hook.table, name)
            passed.append(name)
            index = chain.find(header, state)
            if index is None:
                break
            key, rule = chain.keys[index], chain.rules[index]
            self.used.add(key)
            if not isinstance(rule.target, Goto):
                text = render_rule(key.chain, rule)
                if not _terminates(rule, hook.table.name, hook.builtin):
                    raise UnknownRuleError(f"{text} in {hook.builtin} of {hook.table.name}")
                return Verdict(Hit(rule, text, _new_network(rule)), tuple(passed))
            name = rule.target.chain
        return Verdict(None, tuple(passed))

    def _chain(self, table: Table, name: str) -> _Indexed:
        key = (table.name, name)
        if key not in self._chains:
            self._chains[key] = _Indexed(table.chain(name), table.name)
        return self._chains[key]


class _Hook:
    """What is behind a built-in chain: the addresses that its rules tell apart, and the verdicts known already.

    A verdict is kept for a source and a destination piece: whoever is in them meets the same rules.
    """

    def __init__(self, table: Table, builtin: str, indexed: Callable[[Table, str], _Indexed]) -> None:
        entry = table.hooked(builtin)
        self.table, self.builtin = table, builtin
        self.entry = None if entry is None else entry.name
        self.known: dict[tuple[object, int, int], tuple[Verdict, Span, Span]] = {}
        reached: list[str] = []
        ahead = [] if entry is None else [entry.name]
        while ahead:
            name = ahead.pop()
            if name not in reached:
                reached.append(name)
                ahead += [rule.target.chain for rule in table.chain(name).rules if isinstance(rule.target, Goto)]
        tests = [test for name in reached for test in indexed(table, name).tests]
        self.sources = Places(test.source for test in tests if test.source is not None)
        self.destinations = Places(test.destination for test in tests if test.destination is not None)
        self.looks_further = any(test.beyond_state for test in tests)


@dataclass(slots=True)
class _Group:
    """The rules of one chain whose match on one address has one prefix length: 32 - `shift`."""

    by_source: bool
    shift: int
    blocks: dict[int, list[int]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Test:
    """A rule's match with its networks as numbers; `rest` is None when addresses are all it looks at."""

    source: tuple[int, int] | None
    destination: tuple[int, int] | None
    rest: Match | None
    states: frozenset[str]
    beyond_state: bool

    def matches(self, header: Header, state: frozenset[str]) -> bool:
        if self.source is not None and not header.src.inside(*self.source):
            return False
        if self.destination is not None and not header.dst.inside(*self.destination):
            return False
        match = self.rest
        return match is None or (
            match.in_interface is None  # only lo is ever named, and a packet on the wire is not from lo
            and (match.protocol is None or match.protocol == header.protocol)
            and (match.source_port is None or match.source_port == header.sport)
            and (match.destination_port is None or match.destination_port == header.dport)
            and (match.icmp_type is None or match.icmp_type == header.icmp_type)
            and (not match.ctstate or not self.states.isdisjoint(state))
        )


class _Indexed:
    """A chain, by prefix."""

    def __init__(self, chain: Chain, table: str) -> None:
        self.rules = chain.rules
        self.keys = [RuleKey(table, chain.name, index) for index in range(len(chain.rules))]
        self.tests = [_test(rule.match) for rule in chain.rules]
        self.always: list[int] = []
        groups: dict[tuple[bool, int], _Group] = {}
        for index, test in enumerate(self.tests):
            known = [(net, by_source) for net, by_source in ((test.source, True), (test.destination, False)) if net]
            if not known:
                self.always.append(index)
                continue
            (first, last), by_source = min(known, key=lambda entry: entry[0][1] - entry[0][0])
            shift = (last - first).bit_length()
            group = groups.setdefault((by_source, shift), _Group(by_source, shift))
            group.blocks.setdefault(first >> shift, []).append(index)
        self.groups = list(groups.values())
        for group in self.groups:
            group.order = sorted(group.blocks)

    def find(self, header: Header, state: frozenset[str]) -> int | None:
        """The first rule that matches."""
        found = list(self.always)
        for group in self.groups:
            span = header.src if group.by_source else header.dst
            block = span.value >> group.shift
            hit = group.blocks.get(block)
            if hit is not None:
                found += hit
                continue
            # Between two networks of this length: all that is there matches none of them.
            place = bisect(group.order, block)
            span.narrow(
                (group.order[place - 1] + 1) << group.shift if place else 0,
                (group.order[place] << group.shift) - 1 if place < len(group.order) else LAST_ADDRESS,
            )
        found.sort()
        return next((index for index in found if self.tests[index].matches(header, state)), None)


def numbers(cidr: str) -> tuple[int, int, int]:
    """A network's first and last address and its prefix length."""
    network = IPNetwork(cidr)
    return network.first, network.last, network.prefixlen


def _terminates(rule: Rule, table: str, builtin: str) -> bool:
    match rule.target:
        case Accept() | Drop():
            return table == "filter"
        case Dnat():
            return table == "nat" and builtin == "PREROUTING"
        case Snat():
            return table == "nat" and builtin == "POSTROUTING"
        case Netmap():
            return table == "nat"
    return False


def _new_network(rule: Rule) -> tuple[int, int] | None:
    """The first new address of a translation, and the host bits that it keeps."""
    match rule.target:
        case Dnat(to) | Snat(to):
            return int(IPAddress(to)), 0
        case Netmap(to):
            first, last, _ = numbers(to)
            return first, last - first
    return None


def _test(match: Match) -> _Test:
    unknown = set(match.ctstate) - _STATES
    if unknown:
        raise UnknownRuleError(f"ctstate {', '.join(sorted(unknown))}")
    more = (match.in_interface, match.protocol, match.source_port, match.destination_port, match.icmp_type)
    beyond_state = any(value is not None for value in more)
    return _Test(
        source=None if match.source is None else numbers(match.source)[:2],
        destination=None if match.destination is None else numbers(match.destination)[:2],
        rest=match if match.ctstate or beyond_state else None,
        states=frozenset(match.ctstate),
        beyond_state=beyond_state,
    )
