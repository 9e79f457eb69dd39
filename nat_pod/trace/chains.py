"""A packet's way through the chains of a rule set: the rule that decides, and for which other addresses it decides.

Rules are looked up by prefix instead of being read one after the other.  A chain has one table per prefix length that
its rules match, so a packet costs as many look-ups as the chain has prefix lengths, however many rules there are.

A traced flow's customer is below its bound of open flows, so no rule for what is above it is met.  Such rules only take
the translation away, and then the guard drops the packet: beyond its bound a customer reaches nobody whom it does not
reach below it.

What has no meaning here is refused before the first packet: guessing would make every prediction worthless.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from netaddr import AddrFormatError

from nat_pod.errors import UnknownRuleError
from nat_pod.rules.iptables import render_rule
from nat_pod.rules.netfilter import OPENING, Accept, Chain, Dnat, Drop, Goto, Match, Netmap, Rule, Ruleset, Snat, Table
from nat_pod.trace.spans import LAST_ADDRESS, Header, Places, Segment, Span, number, numbers

_STATES = frozenset(("NEW", "ESTABLISHED", "RELATED", "INVALID", "DNAT", "SNAT"))
_HOOKS = (
    ("nat", "PREROUTING"), ("nat", "POSTROUTING"),
    ("filter", "FORWARD"), ("filter", "INPUT"), ("filter", "OUTPUT"),
)  # fmt: skip
_LOOPBACK = "lo"
PROTOCOLS = ("icmp", "tcp", "udp")
"""What a packet is, and what a rule may ask for."""
OTHER = "another protocol"
"""Any protocol that no rule can name.  Its packets match only the rules that ask for no protocol."""


@dataclass(frozen=True, slots=True)
class RuleKey:
    """One rule's place: table, chain, and its number in it from 0."""

    table: str
    chain: str
    index: int


@dataclass(frozen=True, slots=True)
class DecidingRule:
    """The rule that decides, and its text; for a translation, the first new address and the host bits it keeps."""

    rule: Rule
    text: str
    network: tuple[int, int] | None

    def translate(self, span: Span) -> None:
        """Replace an address the way the rule does."""
        if self.network is None:
            raise UnknownRuleError(self.text, "this is no address translation")
        first, host_bits = self.network
        if host_bits:
            span.move(first, host_bits)
        else:
            span.become(first)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a hook's chains make of a packet: the rule that decides (None: it falls through) and the chains entered."""

    by: DecidingRule | None
    chains: tuple[str, ...]


FALLS_THROUGH = Verdict(None, ())


class PreparedRules:
    """One NAT VM's rules, prepared for many packets.  `used` collects every rule that a packet matched.

    Raises UnknownRuleError for a rule, a hook or a jump that a packet could meet and that has no meaning here.
    """

    def __init__(self, rules: Ruleset) -> None:
        self.used: set[RuleKey] = set()
        self._chains: dict[tuple[str, str], _Indexed] = {}
        tables = {table.name: table for table in rules.tables}
        for table in rules.tables:
            hooked = [(table.name, hook.builtin) for hook in table.hooks]
            for entry in hooked:
                if entry not in _HOOKS or hooked.count(entry) > 1:
                    raise UnknownRuleError(
                        f"chain of ours in {entry[1]} of {entry[0]}",
                        "it follows one in each of PREROUTING and POSTROUTING of nat, and of filter's built-in chains",
                    )
        self._hooks = {(table, builtin): _Hook(tables[table], builtin, self._chain) for table, builtin in _HOOKS}

    def verdict(self, table: str, builtin: str, header: Header, state: frozenset[str]) -> Verdict:
        """What our chains behind a built-in chain do with a packet."""
        hook = self._hooks[table, builtin]
        if hook.entry is None:
            return FALLS_THROUGH
        what: object = state
        if hook.looks_further:
            ports = hook.source_ports.number(header.sport.value), hook.destination_ports.number(header.dport.value)
            what = (state, header.protocol, *ports, header.icmp_type, header.segment)
        if header.ends is not None:
            what = (what, hook.ends(*header.ends))
        key = (what, hook.sources.number(header.src.value), hook.destinations.number(header.dst.value))
        known = hook.known.get(key)
        if known is None:
            alone = header.alone()
            known = hook.known[key] = (self._walk(hook, alone, state), alone)
        verdict, alike = known
        header.narrow(alike)
        return verdict

    def told_apart(self, builtin: str, opened_from: int, answered_from: int, destination: int) -> tuple[int, int, int]:
        """Numbers for a flow's ends and the destination of an error about it; a guard takes what is equal for equal."""
        hook = self._hooks["filter", builtin]
        return (*hook.ends(opened_from, answered_from), hook.errors_to.number(destination))

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
                return Verdict(DecidingRule(rule, render_rule(key.chain, rule), _new_network(rule)), tuple(passed))
            name = rule.target.chain
        return Verdict(None, tuple(passed))

    def _chain(self, table: Table, name: str) -> _Indexed:
        key = (table.name, name)
        if key not in self._chains:
            self._chains[key] = _Indexed(table.chain(name), table.name)
        return self._chains[key]


class _Hook:
    """What is behind a built-in chain: the addresses that its rules tell apart, and the verdicts found so far.

    A verdict is kept for a piece of sources and a piece of destinations, and where rules look at ports, for a piece of
    each port: all packets between them meet the same rules.
    """

    def __init__(self, table: Table, builtin: str, indexed: Callable[[Table, str], _Indexed]) -> None:
        self.table, self.builtin = table, builtin
        self.known: dict[tuple[object, int, int], tuple[Verdict, Header]] = {}
        self.entry = next((hook.chain for hook in table.hooks if hook.builtin == builtin), None)
        reached = _reached(table, self.entry)
        for chain in reached:
            for rule in chain.rules:
                _check_target(chain.name, rule, table.name, builtin)
        tests = [test for chain in reached for test in indexed(table, chain.name).tests]
        self.sources = Places(test.source for test in tests if test.source is not None)
        self.destinations = Places(test.destination for test in tests if test.destination is not None)
        asked_for = [test.rest for test in tests if test.rest is not None]
        self.source_ports = Places(match.source_port for match in asked_for if match.source_port is not None)
        self.destination_ports = Places(
            match.destination_port for match in asked_for if match.destination_port is not None
        )
        ends = [test.ends for test in tests if test.ends is not None]
        self._opened = Places(network for network, _ in ends if network is not None)
        self._answered = Places(network for _, network in ends if network is not None)
        asked = [
            test
            for chain in _reached(table, self.entry, _an_error_may_match)
            for rule, test in zip(chain.rules, indexed(table, chain.name).tests, strict=True)
            if _an_error_may_match(rule)
        ]
        self.errors_to = Places(test.destination for test in asked if test.destination is not None)
        self.looks_further = any(test.beyond_state for test in tests)

    def ends(self, opened_from: int, answered_from: int) -> tuple[int, int]:
        """The pieces that the ends of a flow are in."""
        return self._opened.number(opened_from), self._answered.number(answered_from)


def behind(table: Table, builtin: str) -> list[Chain]:
    """The chains that a packet can get into from a built-in chain."""
    return _reached(table, next((hook.chain for hook in table.hooks if hook.builtin == builtin), None))


def _an_error_may_match(rule: Rule) -> bool:
    """Whether its states are those of an ICMP error about a flow that exists."""
    return not rule.match.ctstate or not {"RELATED", "DNAT", "SNAT"}.isdisjoint(rule.match.ctstate)


def _reached(table: Table, entry: str | None, by: Callable[[Rule], bool] = lambda _: True) -> list[Chain]:
    """The chains that a packet can get into by these rules.

    Raises UnknownRuleError for a jump into nowhere or back.
    """
    chains = {chain.name: chain for chain in table.chains}
    done: dict[str, Chain] = {}
    ahead: list[tuple[str, tuple[str, ...]]] = [] if entry is None else [(entry, ())]
    while ahead:
        name, above = ahead.pop()
        if name not in chains:
            raise UnknownRuleError(f"jump to chain {name} of {table.name}", "there is no such chain")
        if name in above:
            raise UnknownRuleError(f"jump to chain {name} of {table.name}", "it leads round in a circle")
        done[name] = chains[name]
        targets = {rule.target.chain for rule in chains[name].rules if isinstance(rule.target, Goto) and by(rule)}
        ahead += [(target, (*above, name)) for target in sorted(targets)]
    return list(done.values())


@dataclass(slots=True)
class _Group:
    """The rules of one chain whose match on one address has one prefix length: 32 - `shift`."""

    by_source: bool
    shift: int
    blocks: dict[int, list[int]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Test:
    """A rule's match with its networks as numbers; `rest` is None when the match looks at addresses only."""

    source: tuple[int, int] | None
    destination: tuple[int, int] | None
    rest: Match | None
    states: frozenset[str]
    beyond_state: bool
    ends: tuple[tuple[int, int] | None, tuple[int, int] | None] | None  # of the flow: opened from, answered from

    def matches(self, header: Header, state: frozenset[str]) -> bool:
        if self.source is not None and not header.src.inside(*self.source):
            return False
        if self.destination is not None and not header.dst.inside(*self.destination):
            return False
        if self.ends is not None:
            if header.ends is None:
                raise UnknownRuleError("--ctorigsrc or --ctreplsrc", "it follows these for ICMP errors only")
            for value, network in zip(header.ends, self.ends, strict=True):
                if network is not None and not network[0] <= value <= network[1]:
                    return False
        match = self.rest
        return match is None or (
            match.in_interface is None  # lo, or it would have been refused; what comes off the wire is not from lo
            and match.bound is None  # only for a customer that has too many flows open
            and (match.protocol is None or match.protocol == header.protocol)
            and (match.source_port is None or header.sport.inside(*match.source_port))
            and (match.destination_port is None or header.dport.inside(*match.destination_port))
            and (match.icmp_type is None or match.icmp_type == header.icmp_type)
            and (match.tcp_flags is None or header.segment is Segment.OPENS)
            and (not match.ctstate or not self.states.isdisjoint(state))
        )


class _Indexed:
    """A chain whose rules are looked up by prefix."""

    def __init__(self, chain: Chain, table: str) -> None:
        self.rules = chain.rules
        self.keys = [RuleKey(table, chain.name, index) for index in range(len(chain.rules))]
        self.tests = [_test(chain.name, rule) for rule in chain.rules]
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
            # It is between two networks of this length, and every address there matches none of them.
            place = bisect(group.order, block)
            span.narrow(
                (group.order[place - 1] + 1) << group.shift if place else 0,
                (group.order[place] << group.shift) - 1 if place < len(group.order) else LAST_ADDRESS,
            )
        found.sort()
        for index in found:
            if self.tests[index].matches(header, state):
                return index
        return None


def _check_target(chain: str, rule: Rule, table: str, builtin: str) -> None:
    """Raise UnknownRuleError for a target that means nothing behind this built-in chain."""
    match rule.target:
        case Goto():
            known = True
        case Accept():
            known = (table == "filter") is (rule.match.bound is None)
        case Drop():
            known = table == "filter"
        case Dnat():
            known = builtin == "PREROUTING"
        case Snat():
            known = builtin == "POSTROUTING"
        case Netmap():
            known = table == "nat"
        case _:
            assert_never(rule.target)
    if not known:
        raise UnknownRuleError(_line(chain, rule), f"it knows no such target in {builtin} of {table}")
    try:
        _new_network(rule)
    except (AddrFormatError, ValueError):
        raise UnknownRuleError(_line(chain, rule), "it translates to one IPv4 address or network") from None


def _new_network(rule: Rule) -> tuple[int, int] | None:
    """The first new address of a translation, and the host bits that it keeps."""
    match rule.target:
        case Dnat(to) | Snat(to):
            return number(to), 0
        case Netmap(to):
            first, last, _ = numbers(to)
            return first, last - first
    return None


def _test(chain: str, rule: Rule) -> _Test:
    """Raise UnknownRuleError for a condition that a packet's headers and its flow's state do not decide."""
    match = rule.match
    _check_match(chain, rule)
    more = (match.in_interface, match.protocol, match.source_port, match.destination_port, match.icmp_type)
    beyond_state = any(value is not None for value in more)
    try:
        source = None if match.source is None else numbers(match.source)[:2]
        destination = None if match.destination is None else numbers(match.destination)[:2]
        opened = None if match.opened_from is None else numbers(match.opened_from)[:2]
        answered = None if match.answered_from is None else numbers(match.answered_from)[:2]
    except (AddrFormatError, ValueError):
        raise UnknownRuleError(_line(chain, rule), "it knows IPv4 networks") from None
    return _Test(
        source=source,
        destination=destination,
        rest=match if match.ctstate or beyond_state or match.bound is not None else None,
        states=frozenset(match.ctstate),
        beyond_state=beyond_state,
        ends=None if (opened, answered) == (None, None) else (opened, answered),
    )


def _check_match(chain: str, rule: Rule) -> None:
    match = rule.match
    if set(match.ctstate) - _STATES:
        raise UnknownRuleError(_line(chain, rule), f"it knows the states {', '.join(sorted(_STATES))}")
    # Interface names differ from image to image, so nobody can tell which VNIC ens3 is; lo is the machine itself.
    if match.in_interface not in (None, _LOOPBACK):
        raise UnknownRuleError(_line(chain, rule), f"it knows no interface but {_LOOPBACK}")
    if match.protocol not in (None, *PROTOCOLS):
        raise UnknownRuleError(_line(chain, rule), f"it knows the protocols {', '.join(PROTOCOLS)}")
    ports = match.source_port is not None or match.destination_port is not None
    if (ports and match.protocol not in ("tcp", "udp")) or (match.icmp_type is not None and match.protocol != "icmp"):
        raise UnknownRuleError(_line(chain, rule), "a port goes with tcp or udp, an ICMP type with icmp")
    if match.tcp_flags is not None and (match.tcp_flags != OPENING or match.protocol != "tcp"):
        raise UnknownRuleError(_line(chain, rule), f"of TCP flags it knows {OPENING}, which go with tcp")
    if match.bound is not None and not isinstance(rule.target, Accept | Drop):
        raise UnknownRuleError(_line(chain, rule), "what is above a bound is dropped, or in nat left untranslated")


def _line(chain: str, rule: Rule) -> str:
    """The rule as text, or as a value where it has no text."""
    try:
        return render_rule(chain, rule)
    except ValueError:
        return f"{chain}: {rule}"
