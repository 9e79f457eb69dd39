"""A POD built by hand: the nat tables of both NAT VMs -> flows, members, slots, and what does not fit the design.

Nothing is concluded from how a rule looks.  Each rule says which packets it may be for; these packets are sent through
both tables (`saved_walk.py`), and a flow is what arrives:

    caller -> DNAT on its own NAT VM -> source hidden -> DNAT on the other NAT VM -> receiver

From the flows follow the members (who calls, who is called), their slots (the address used and the one it becomes) and
the source policy.  A rule of either table that no flow needed is a finding, with the reason: shadowed, dead, unpaired.
Pure; `draft.py` makes a stack file of the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from netaddr import IPAddress, IPNetwork

from nat_pod.config.addressing import reserved_by_oci
from nat_pod.config.check import NEVER_MAPPED
from nat_pod.config.model import SourceNat
from nat_pod.errors import NatPodError
from nat_pod.handbuilt.saved_rules import Action, Range, SavedRule, SavedTable, cidr, dotted, network
from nat_pod.handbuilt.saved_walk import (
    POSTROUTING,
    PREROUTING,
    TRANSLATING,
    Walk,
    owner_of_chain,
    owner_of_rule,
    translated,
    within,
)
from nat_pod.handbuilt.vnic_list import VnicList
from nat_pod.limits import POD_SPACE, RESERVED_LOW, VNIC_SUBNET_PREFIX
from nat_pod.names import MANAGEMENT, NAT_VM1, NAT_VM2, SIDES

_POD = network(POD_SPACE)
_SUBNET_SIZE: int = 2 ** (32 - VNIC_SUBNET_PREFIX)
_MOST_PACKETS = 500_000
_TITLE: dict[str, str] = {NAT_VM1: "NAT VM1", NAT_VM2: "NAT VM2"}
_OTHER: dict[str, str] = {NAT_VM1: NAT_VM2, NAT_VM2: NAT_VM1}
MASQUERADE, STATIC = SourceNat.MASQUERADE, SourceNat.STATIC
_NEVER = tuple((never.first, never.last) for never in NEVER_MAPPED)


class Kind(StrEnum):
    """Why something is listed."""

    UNREAD = "unread"  # a line import does not understand
    PARTIAL = "partial"  # translates one protocol or port only
    WIDE = "wide"  # admits, or maps, more than single addresses
    FORBIDDEN = "forbidden"  # a target that is never a VM in a VCN
    UNKNOWN_NETWORK = "unknown-network"
    DIRECT = "direct"  # does not go through both NAT VMs
    DUPLICATE = "duplicate"
    SHADOWED = "shadowed"  # an earlier rule takes all its packets
    DEAD = "dead"  # translated by one NAT VM, and then by nobody
    UNPAIRED = "unpaired"  # a mapping on one NAT VM that the other never uses
    ONE_WAY = "one-way"
    ASYMMETRIC = "asymmetric"
    RESERVED = "reserved"
    SOURCE = "source"  # the source is not what either policy makes of it
    NO_VNIC = "no-vnic"
    LAYOUT = "layout"
    GAINED = "gained"  # a flow that the stack file adds
    REFUSED = "refused"  # what `check` will say about the stack file
    EXCHANGED = "exchanged"
    UNUSED = "unused"  # private IPs that no mapping needs
    UNMET = "unmet"
    OTHERS = "others"


NOTES = (Kind.EXCHANGED, Kind.UNUSED, Kind.UNMET, Kind.OTHERS)  # said, but nothing to do about them


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that does not fit.  vm, line, rule: where it stands; None and "" when several rules make it so."""

    kind: Kind
    why: str
    vm: str | None = None
    line: int | None = None
    rule: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The first half of a flow: `caller` sends to `used`, and NAT VM `vm`, its own, makes `transit` of that."""

    vm: str
    caller: int
    used: int
    transit: int
    rule: SavedRule


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """A request that arrives at `receiver`.  Its source between the NAT VMs is `hidden`, at the receiver `seen`."""

    request: Request
    receiver: int
    hidden: int
    seen: int
    sources: tuple[SavedRule | None, SavedRule | None]  # what hid the source on the first and the second NAT VM

    @property
    def pair(self) -> tuple[int, int]:
        """The receiver's addresses on NAT VM1 and NAT VM2."""
        request = self.request
        return (request.used, request.transit) if request.vm == NAT_VM1 else (request.transit, request.used)


@dataclass(frozen=True, kw_only=True, slots=True)
class Handbuilt:
    """A hand-built POD.  Members are real addresses; a slot of None: nat-pod has to give it one.

    names: what comments call a member (`customer1/vm1`, or `vm1`), by side (natVm1: hosts) and address.
    networks: those that rules of NAT VM1 test the source for, with their comments.
    rules: how many the nat table of each NAT VM has.
    """

    hosts: dict[int, tuple[int, int] | None]
    servers: dict[int, tuple[int, int] | None]
    flows: tuple[Flow, ...]
    pairs: tuple[tuple[Range, Range], ...]
    source_nat: SourceNat
    names: dict[tuple[str, int], str]
    networks: dict[Range, str]
    rules: dict[str, int]
    findings: tuple[Finding, ...]


def reconstruct(tables: Mapping[str, SavedTable], vnics: Mapping[str, VnicList]) -> Handbuilt:
    """Read a POD out of the nat tables of natVm1 and natVm2; vnics: by the same keys, where there are lists.

    Raises NatPodError when the tables are too tangled to be followed, or are of one and the same VM.
    """
    pod = _Pod(tables, vnics)
    pod.find_requests()
    pod.find_pairs()
    pod.find_flows()
    pod.find_members()
    pod.judge_sources()
    pod.judge_rules()
    return pod.result()


def in_pod_space(address: int) -> bool:
    """Whether an address is one of the unique ones, 198.18.0.0/15, and not somebody's real one."""
    return _POD[0] <= address <= _POD[1]


def subnet_of(address: int) -> Range:
    """The /27 around an address."""
    first = address - address % _SUBNET_SIZE
    return first, first + _SUBNET_SIZE - 1


@dataclass
class _Pod:
    """The reconstruction, step by step: each method uses what the ones before it found."""

    tables: Mapping[str, SavedTable]
    vnics: Mapping[str, VnicList]
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        texts = {vm: [rule.text for _, rule in self.tables[vm].rules()] for vm in SIDES}
        if texts[NAT_VM1] == texts[NAT_VM2]:
            raise NatPodError("--vm1 and --vm2 have the same rules: give the files of two different NAT VMs")
        self.walks: dict[str, Walk] = {vm: Walk(self.tables[vm]) for vm in SIDES}
        self.reals: dict[str, list[int]] = {vm: self._real_addresses(vm) for vm in SIDES}
        self.pool = self._unique_addresses()
        self.ways: dict[str, dict[int, tuple[SavedRule, list[tuple[Range, Range]]]]] = {vm: {} for vm in SIDES}
        self.requests: list[Request] = []
        self.decided: dict[str, dict[tuple[int, int], SavedRule | None]] = {vm: {} for vm in SIDES}
        self.needed: set[int] = set()  # rules, by id(), that a flow needs
        self.listed: set[int] = set()  # rules, by id(), that have a finding of their own
        self.destinations: dict[str, tuple[set[int], list[Range]]] = {}
        self.flows: list[Flow] = []
        self.dead: dict[int, str] = {}  # rules, by id(), whose packets are lost, and why
        self.arrivals: dict[str, dict[int, set[int]]] = {vm: {} for vm in SIDES}  # destination -> sources
        self.hosts: dict[int, tuple[int, int] | None] = {}
        self.servers: dict[int, tuple[int, int] | None] = {}
        self.pairs: list[tuple[Range, Range]] = []
        self.primary: dict[str, int] = {}
        self.source_nat: SourceNat = MASQUERADE

    def add(self, kind: Kind, vm: str | None, rule: SavedRule | None, why: str) -> None:
        """Add a finding, once for a rule and kind."""
        finding = Finding(
            kind=kind,
            why=why,
            vm=vm,
            line=None if rule is None else rule.line,
            rule="" if rule is None else rule.text,
        )
        if rule is not None:
            self.listed.add(id(rule))
            if any((f.kind, f.vm, f.line) == (kind, vm, rule.line) for f in self.findings):
                return
        self.findings.append(finding)

    def _engineers(self, vm: str) -> Iterable[SavedRule]:
        """The rules of a table that are not other programs'."""
        for chain, rule in self.tables[vm].rules():
            if not owner_of_chain(chain) and not owner_of_rule(rule) and chain not in ("INPUT", "OUTPUT"):
                yield rule

    def _real_addresses(self, vm: str) -> list[int]:
        """Single addresses outside 198.18.0.0/15 that call, or are delivered to, on a NAT VM's outer side."""
        found = set()
        for rule in self._engineers(vm):
            for inside in (rule.source, rule.to if rule.action is Action.DNAT else None):
                if inside is not None and inside[0] == inside[1] and not in_pod_space(inside[0]):
                    found.add(inside[0])
        return sorted(address for address in found if not _never(address))

    def _unique_addresses(self) -> list[int]:
        """Single addresses of 198.18.0.0/15 that any rule names, and what NETMAP makes of them, forth and back."""
        found = set()
        netmaps = []
        for vm in SIDES:
            for rule in self._engineers(vm):
                for inside in (rule.source, rule.destination, rule.to):
                    if inside is not None and inside[0] == inside[1] and in_pod_space(inside[0]):
                        found.add(inside[0])
                if rule.action is Action.NETMAP and rule.to is not None:
                    netmaps.append((rule.destination, rule.to))
        for _ in SIDES:
            pool = sorted(found)
            for inside, to in netmaps:
                if inside[1] - inside[0] == to[1] - to[0]:
                    found |= {address - inside[0] + to[0] for address in within(pool, inside)}
                    found |= {address - to[0] + inside[0] for address in within(pool, to)}
        return sorted(found)

    # --- requests: what callers may send, and what their own NAT VM makes of it --------------------------------------

    def find_requests(self) -> None:
        """Send, for each rule that translates, the packets that it may be for."""
        for vm in SIDES:
            for rule, sources, destinations in self.walks[vm].ways():
                self.ways[vm].setdefault(id(rule), (rule, []))[1].append((sources, destinations))
                if rule.action is Action.DNAT and destinations[0] != destinations[1]:
                    what = "every destination" if destinations[1] - destinations[0] > 2**24 else cidr(destinations)
                    self.add(Kind.WIDE, vm, rule, f"maps {what} to one address; a mapping is one address to one")
                    continue
                if sources[0] == sources[1] and in_pod_space(sources[0]):
                    continue  # transit, see find_flows
                for caller in _addresses(sources, self.reals[vm]):
                    for used in _addresses(destinations, self.pool):
                        self._decide(vm, caller, used)
            inside = [way[1] for _, ways in self.ways[vm].values() for way in ways]
            self.destinations[vm] = (
                {one[0] for one in inside if one[0] == one[1]},
                [one for one in set(inside) if one[0] != one[1]],
            )
            for (caller, used), decided in self.decided[vm].items():
                if decided is not None and decided.action in (Action.DNAT, Action.NETMAP):
                    self._request(vm, caller, used, decided)

    def _decide(self, vm: str, source: int, destination: int) -> SavedRule | None:
        known = self.decided[vm]
        if (source, destination) not in known:
            if len(known) >= _MOST_PACKETS:
                raise NatPodError(
                    f"these rules are about more than {_MOST_PACKETS} pairs of addresses; import gives up"
                )
            known[source, destination] = self.walks[vm].decide(PREROUTING, source, destination)
        return known[source, destination]

    def _request(self, vm: str, caller: int, used: int, rule: SavedRule) -> None:
        transit = translated(rule, used, 0)
        if in_pod_space(caller):
            return
        if _never(transit):
            self.add(Kind.FORBIDDEN, vm, rule, _forbidden(transit))
        elif not in_pod_space(used):
            self.add(
                Kind.UNKNOWN_NETWORK, vm, rule, f"{dotted(used)} is no unique address; those of PODs are in {POD_SPACE}"
            )
        elif not in_pod_space(transit):
            if rule.source[0] == rule.source[1]:
                self.add(
                    Kind.DIRECT,
                    vm,
                    rule,
                    f"leads from {dotted(caller)} to {dotted(transit)} on {_TITLE[vm]} alone; nat-pod connects "
                    "customers with management through both NAT VMs, and nobody else",
                )
            else:
                self.add(
                    Kind.DIRECT,
                    vm,
                    rule,
                    f"takes packets from anywhere, {dotted(caller)} too, which so reaches {dotted(transit)} on "
                    f"{_TITLE[vm]} alone; nat-pod takes them from the other NAT VM only",
                )
        else:
            self.requests.append(Request(vm=vm, caller=caller, used=used, transit=transit, rule=rule))

    # --- pairs of /27 ------------------------------------------------------------------------------------------------

    def find_pairs(self) -> None:
        """Which /27 of NAT VM1 goes with which of NAT VM2: what most mappings with equal offsets say."""
        votes: Counter[tuple[Range, Range]] = Counter()
        for request in self.requests:
            if not self._is_translated(_OTHER[request.vm], request.transit):
                continue
            one, two = (request.used, request.transit) if request.vm == NAT_VM1 else (request.transit, request.used)
            # One mapping with equal offsets says more than all others: those do not fit in any case.
            votes[subnet_of(one), subnet_of(two)] += _MOST_PACKETS if one % _SUBNET_SIZE == two % _SUBNET_SIZE else 1
        taken: set[Range] = set()
        for pair, _ in sorted(votes.items(), key=lambda vote: (-vote[1], vote[0])):
            if pair[0] != pair[1] and not taken & set(pair):
                taken |= set(pair)
                self.pairs.append(pair)
        evidence = {vm: self._primary_evidence(vm) for vm in SIDES}
        primaries = [address and subnet_of(address) for address in evidence.values()]
        listed = self.vnics[NAT_VM1].subnets if NAT_VM1 in self.vnics else ()

        def place(pair: tuple[Range, Range]) -> tuple[bool, int, Range]:
            primary = any(one == two for one, two in zip(pair, primaries, strict=True))
            return not primary, listed.index(pair[0]) if pair[0] in listed else len(listed), pair[0]

        self.pairs.sort(key=place)
        if self.requests and not self.pairs:
            why = "no /27 of NAT VM1 translates into one of NAT VM2: there is no layout to pin"
            self.add(Kind.LAYOUT, None, None, why)
        for side, vm in enumerate(SIDES):
            first = self.pairs[0][side][0] + RESERVED_LOW if self.pairs else 0
            self.primary[vm] = evidence[vm] or first
            if self.pairs and self.primary[vm] != first:
                why = (
                    f"the primary address of {_TITLE[vm]} is {dotted(self.primary[vm])}; nat-pod's has {dotted(first)}"
                )
                self.add(Kind.LAYOUT, vm, None, why)
            for subnet in self.vnics[vm].subnets if vm in self.vnics else ():
                if subnet[1] - subnet[0] + 1 != _SUBNET_SIZE:
                    why = f"a VNIC of {_TITLE[vm]} is in {cidr(subnet)}; nat-pod's are in a /{VNIC_SUBNET_PREFIX} each"
                    self.add(Kind.LAYOUT, vm, None, why)

    def _is_translated(self, vm: str, destination: int) -> bool:
        """Whether a NAT VM has any rule for a destination."""
        single, broad = self.destinations[vm]
        return destination in single or any(first <= destination <= last for first, last in broad)

    def _primary_evidence(self, vm: str) -> int | None:
        """The address that MASQUERADE takes: the list of VNICs says it, or the rules of the other NAT VM."""
        if vm in self.vnics and self.vnics[vm].primary is not None:
            return self.vnics[vm].primary
        if not any(rule.action is Action.MASQUERADE for rule in self._applying(vm)):
            return None
        expected = Counter(
            sources[0]
            for _, ways in self.ways[_OTHER[vm]].values()
            for sources, _ in ways
            if sources[0] == sources[1] and in_pod_space(sources[0])
        )
        return min(expected, key=lambda address: (-expected[address], address), default=None)

    def _applying(self, vm: str) -> list[SavedRule]:
        """The translating rules of POSTROUTING, and of the chains it leads to, that packets of the POD can meet."""
        found, left = [], [POSTROUTING]
        entered = set(left)
        while left:
            for rule in self.tables[vm].chains[left.pop()]:
                if not self.walks[vm].applies(rule, POSTROUTING):
                    continue
                if rule.action in TRANSLATING:
                    found.append(rule)
                elif rule.chain and rule.chain not in entered:
                    entered.add(rule.chain)
                    left.append(rule.chain)
        return found

    # --- flows: requests that the other NAT VM delivers --------------------------------------------------------------

    def find_flows(self) -> None:
        """Send each request on: the source hidden, through the other NAT VM, to a receiver."""
        for request in self.requests:
            own, other = request.vm, _OTHER[request.vm]
            hiding = self.walks[own].decide(POSTROUTING, request.caller, request.transit)
            hidden = translated(hiding, request.caller, self.primary[own])
            self.arrivals[other].setdefault(request.transit, set()).add(hidden)
            delivery = self._decide(other, hidden, request.transit)
            receiver = translated(delivery, request.transit, 0)
            if receiver == request.transit or in_pod_space(receiver) or _never(receiver):
                self._lost(request, hiding, hidden, delivery)
                continue
            assert delivery is not None
            showing = self.walks[other].decide(POSTROUTING, hidden, receiver)
            seen = translated(showing, hidden, self.primary[other])
            self.needed |= {id(rule) for rule in (request.rule, hiding, delivery, showing) if rule is not None}
            self.flows.append(
                Flow(request=request, receiver=receiver, hidden=hidden, seen=seen, sources=(hiding, showing))
            )

    def _lost(self, request: Request, hiding: SavedRule | None, hidden: int, delivery: SavedRule | None) -> None:
        other = _TITLE[_OTHER[request.vm]]
        transit = dotted(request.transit)
        if hiding is None and not in_pod_space(hidden):
            why = f"nothing on {_TITLE[request.vm]} hides the source: {other} gets packets from {dotted(hidden)}"
        elif delivery is not None and _never(translated(delivery, request.transit, 0)):
            to = translated(delivery, request.transit, 0)
            self.add(Kind.FORBIDDEN, _OTHER[request.vm], delivery, _forbidden(to))
            why = f"{other} translates {transit} to {dotted(to)}, which is no VM's"
        elif delivery is not None:
            why = f"{other} leads {transit} back into the POD"
        elif self._is_translated(_OTHER[request.vm], request.transit):
            why = f"{other} translates {transit}, but not for packets from {dotted(hidden)}, as they arrive there"
        else:
            why = f"{other} translates {transit} for nobody"
        self.dead.setdefault(id(request.rule), why)

    # --- members and slots -------------------------------------------------------------------------------------------

    def find_members(self) -> None:
        """Who calls and who is called, and the slot of each: the pair of addresses most of its flows use."""
        partner = dict(self.pairs)
        for members, called_by in ((self.servers, NAT_VM1), (self.hosts, NAT_VM2)):
            reached: dict[int, dict[tuple[int, int], list[Flow]]] = {}
            for flow in self.flows:
                if flow.request.vm == called_by:
                    reached.setdefault(flow.receiver, {}).setdefault(flow.pair, []).append(flow)
            owners: dict[tuple[int, int], int] = {}
            for member in sorted(reached):
                members[member] = self._slot(member, reached[member], partner, owners)
            caller_of = {flow.request.caller: flow for flow in self.flows if flow.request.vm != called_by}
            for caller in sorted(set(caller_of) - set(reached)):
                members[caller] = None
                first = min(
                    (f for f in self.flows if f.request.vm != called_by and f.request.caller == caller),
                    key=lambda flow: flow.request.rule.line,
                )
                whom, side = ("customers", "servers") if called_by == NAT_VM1 else ("management", "hosts")
                self.add(
                    Kind.ONE_WAY,
                    first.request.vm,
                    first.request.rule,
                    f"{dotted(caller)} calls, but {whom} cannot call it; every one of nat-pod's {side} has a slot",
                )

        slots = [slot for slot in (*self.hosts.values(), *self.servers.values()) if slot is not None]
        for vm, listed in self.vnics.items():
            used = {slot[SIDES.index(vm)] for slot in slots} | {self.primary[vm]}
            unused = [dotted(address) for address in sorted((listed.addresses or frozenset()) - used)]
            if unused:
                shown = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
                self.add(Kind.UNUSED, vm, None, f"no mapping needs the private IPs {shown}")
        if len(self.servers) > len(self.hosts):
            why = f"{len(self.servers)} servers and {len(self.hosts)} hosts: are --vm1 and --vm2 exchanged?"
            self.add(Kind.EXCHANGED, None, None, why)

    def _slot(
        self,
        member: int,
        reached: dict[tuple[int, int], list[Flow]],
        partner: Mapping[Range, Range],
        owners: dict[tuple[int, int], int],
    ) -> tuple[int, int] | None:
        """The slot of one member, None when none of its pairs can be one."""
        ranked = sorted(reached, key=lambda pair: (-len(reached[pair]), reached[pair][0].request.rule.line))
        slot = None
        for pair in ranked:
            request = reached[pair][0].request
            one, two = pair
            shown = f"{dotted(member)} is reached at {dotted(one)} / {dotted(two)}"
            reserved = _reserved(one) or _reserved(two)
            expected = partner.get(subnet_of(one))
            if reserved:
                self.add(Kind.RESERVED, request.vm, request.rule, f"{shown}; {reserved}")
            elif expected != subnet_of(two):
                where = "no /27 of NAT VM2" if expected is None else cidr(expected)
                why = f"{shown}; {cidr(subnet_of(one))} of NAT VM1 goes with {where}"
                self.add(Kind.ASYMMETRIC, request.vm, request.rule, why)
            elif one % _SUBNET_SIZE != two % _SUBNET_SIZE:
                partner_of_one = dotted(expected[0] + one % _SUBNET_SIZE)
                why = f"{shown}; a slot has the same offset in both /27s: {dotted(one)} goes with {partner_of_one}"
                self.add(Kind.ASYMMETRIC, request.vm, request.rule, why)
            elif slot is not None:
                why = f"{shown}, and at {dotted(slot[0])} / {dotted(slot[1])} too; a member has one slot"
                self.add(Kind.ASYMMETRIC, request.vm, request.rule, why)
            elif owners.setdefault(pair, member) != member:
                why = f"{shown}, as {dotted(owners[pair])} is for others; a slot is one member's for everybody"
                self.add(Kind.ASYMMETRIC, request.vm, request.rule, why)
            else:
                slot = pair
                self._check_vnics(member, pair, request)
        return slot

    def _check_vnics(self, member: int, pair: tuple[int, int], request: Request) -> None:
        for vm, address in zip(SIDES, pair, strict=True):
            if vm not in self.vnics:
                continue
            listed = self.vnics[vm]
            missing = None
            if not any(first <= address <= last for first, last in listed.subnets):
                missing = f"no VNIC of {_TITLE[vm]} is in its subnet"
            elif listed.addresses is not None and address not in listed.addresses:
                missing = f"no VNIC of {_TITLE[vm]} has it as a private IP"
            if missing:
                why = f"{dotted(member)} is mapped to {dotted(address)}, but {missing}"
                self.add(Kind.NO_VNIC, request.vm, request.rule, why)

    # --- sources -----------------------------------------------------------------------------------------------------

    def judge_sources(self) -> None:
        """Which policy the sources follow, and the flows that follow another."""
        expected: dict[SourceNat, list[tuple[int, int]]] = {MASQUERADE: [], STATIC: []}
        for flow in self.flows:
            first, second = self.primary[flow.request.vm], self.primary[_OTHER[flow.request.vm]]
            expected[MASQUERADE].append((first, second))
            callers = self.hosts if flow.request.vm == NAT_VM1 else self.servers
            slot = callers.get(flow.request.caller) or (0, 0)
            expected[STATIC].append(slot if flow.request.vm == NAT_VM1 else (slot[1], slot[0]))
        got = [(flow.hidden, flow.seen) for flow in self.flows]
        score = {
            policy: sum(one == two for one, two in zip(got, wanted, strict=True)) for policy, wanted in expected.items()
        }
        masquerades = any(rule.action is Action.MASQUERADE for vm in SIDES for rule in self._applying(vm))
        if score[STATIC] > score[MASQUERADE] or (score[STATIC] == score[MASQUERADE] and not masquerades):
            self.source_nat = STATIC
        wrong: dict[tuple[str, int], tuple[SavedRule | None, str, int]] = {}
        for flow, wanted, actual in zip(self.flows, expected[self.source_nat], got, strict=True):
            callers = self.hosts if flow.request.vm == NAT_VM1 else self.servers
            if self.source_nat == STATIC and callers[flow.request.caller] is None:
                continue  # it has no slot yet, and a finding that says so
            for vm, rule, is_now, shall in zip(
                (flow.request.vm, _OTHER[flow.request.vm]), flow.sources, actual, wanted, strict=True
            ):
                if is_now == shall:
                    continue
                # One finding a rule; where no rule hides the source, one a NAT VM.
                key = vm, id(rule)
                why = f"{dotted(flow.request.caller)} leaves {_TITLE[vm]} as {dotted(is_now)}; "
                why += f"with {self.source_nat} it leaves as {dotted(shall)}"
                first_rule, first_why, count = wrong.get(key, (rule, why, 0))
                wrong[key] = first_rule, first_why, count + 1
                break  # what the second NAT VM does follows from the first
        for (vm, _), (rule, why, count) in wrong.items():
            self.add(Kind.SOURCE, vm, rule, why if count == 1 else f"{why} ({count} flows)")

    # --- rules that no flow needed -----------------------------------------------------------------------------------

    def judge_rules(self) -> None:
        """List what could not be read, what is other programs', and each rule that no flow needed."""
        for vm in SIDES:
            self._judge_table(vm)
            self._judge_prerouting(vm)
            self._judge_postrouting(vm)

    def _judge_table(self, vm: str) -> None:
        table = self.tables[vm]
        self.findings += [
            Finding(kind=Kind.UNREAD, vm=vm, line=unread.line, rule=unread.text, why=unread.why)
            for unread in table.unread
        ]
        for name, count in sorted(table.other_tables.items()):
            self.add(Kind.OTHERS, vm, None, f"table {name}: {_rules(count)}, not read; nat-pod brings its own guard")
        for chain, rules in table.chains.items():
            owner = owner_of_chain(chain)
            if owner and rules:
                why = f"chain {chain} is of {owner}: {_rules(len(rules))}, not followed"
                self.add(Kind.OTHERS, vm, None, why)
            for rule in () if owner else rules:
                if chain in ("INPUT", "OUTPUT"):
                    if not owner_of_rule(rule):
                        self.add(Kind.UNMET, vm, rule, f"{chain} of the nat table is for the NAT VM's own packets")
                elif owner_of_rule(rule):
                    if rule.action in TRANSLATING:
                        self.add(Kind.OTHERS, vm, rule, f"is of {owner_of_rule(rule)}, by its interface")
                elif rule.narrow and rule.action in (Action.DNAT, Action.NETMAP):
                    why = f"applies to `{rule.narrow}` only; a mapping is for all traffic of an address"
                    self.add(Kind.PARTIAL, vm, rule, why)
                elif rule.narrow and rule.action is not None:
                    self.add(Kind.UNREAD, vm, rule, f"`{rule.narrow}` is a condition that import does not evaluate")

    def _judge_prerouting(self, vm: str) -> None:
        for rule in list(self._engineers(vm)):
            translates = rule.action in (Action.DNAT, Action.NETMAP)
            if not translates or id(rule) in self.needed or id(rule) in self.listed:
                continue
            if id(rule) in self.dead:
                self.add(Kind.DEAD, vm, rule, self.dead[id(rule)])
                continue
            ways = self.ways[vm].get(id(rule), (rule, []))[1]
            if not ways and rule.action is Action.NETMAP:
                continue  # of POSTROUTING
            if not ways:
                self.add(Kind.UNMET, vm, rule, "nothing leads to this rule")
                continue
            packets = [packet for way in ways for packet in self._packets(vm, *way)]
            winners = [self._decide(vm, *packet) for packet in packets]
            if winners and not any(winner is rule for winner in winners):
                self._hidden_by(vm, rule, winners[0])
            else:
                self._unused(vm, rule, ways)

    def _packets(self, vm: str, sources: Range, destinations: Range) -> list[tuple[int, int]]:
        """Packets that a rule may be for: from callers, and those that the other NAT VM really sends."""
        return [
            (source, destination)
            for destination in _addresses(destinations, self.pool)
            for source in (
                *_addresses(sources, self.reals[vm]),
                *(
                    source
                    for source in self.arrivals[vm].get(destination, ())
                    if sources[0] != sources[1] and sources[0] <= source <= sources[1]
                ),
            )
        ]

    def _hidden_by(self, vm: str, rule: SavedRule, winner: SavedRule | None) -> None:
        if winner is None:
            self.add(Kind.SHADOWED, vm, rule, "is never reached: a RETURN or the end of a goto comes before it")
        elif (winner.action, winner.to) == (rule.action, rule.to):
            self.add(Kind.DUPLICATE, vm, rule, f"line {winner.line} does the same before it")
        else:
            self.add(Kind.SHADOWED, vm, rule, f"is never reached: line {winner.line} takes its packets: {winner.text}")

    def _unused(self, vm: str, rule: SavedRule, ways: list[tuple[Range, Range]]) -> None:
        """A rule that would translate, if there were packets for it."""
        sources, destinations = ways[0]
        other = _TITLE[_OTHER[vm]]
        if rule.action is Action.NETMAP:
            self.add(Kind.UNMET, vm, rule, "no flow of the POD needs it")
        elif not in_pod_space(destinations[0]):
            self.add(
                Kind.UNKNOWN_NETWORK,
                vm,
                rule,
                f"{dotted(destinations[0])} is no unique address; those of PODs are in {POD_SPACE}",
            )
        elif rule.to is not None and in_pod_space(rule.to[0]):
            who = "anybody" if sources[1] - sources[0] > 2**24 else cidr(sources)
            self.add(Kind.WIDE, vm, rule, f"admits {who}, of whom no host is known")
        elif destinations[0] in self.arrivals[vm]:
            arriving = ", ".join(dotted(source) for source in sorted(self.arrivals[vm][destinations[0]])[:3])
            self.add(
                Kind.DEAD,
                vm,
                rule,
                f"{other} sends packets for {dotted(destinations[0])} from {arriving}, not from {cidr(sources)}",
            )
        else:
            self.add(Kind.UNPAIRED, vm, rule, f"{other} sends nothing to {dotted(destinations[0])}")

    def _judge_postrouting(self, vm: str) -> None:
        leaving = [(flow.request.caller, flow.request.transit) for flow in self.flows if flow.request.vm == vm]
        leaving += [(flow.hidden, flow.receiver) for flow in self.flows if flow.request.vm != vm]
        by_source = {source: (source, destination) for source, destination in leaving}
        known = sorted(by_source)
        for rule in list(self._engineers(vm)):
            sources_of = (Action.SNAT, Action.MASQUERADE, Action.NETMAP)
            if rule.action not in sources_of or id(rule) in self.needed or id(rule) in self.listed:
                continue
            inside = within(known, rule.source)
            if not self.walks[vm].applies(rule, POSTROUTING) or not inside:
                single = rule.action is Action.SNAT and rule.source[0] == rule.source[1]
                why = (
                    f"no flow leaves {_TITLE[vm]} from {cidr(rule.source)}" if single else "no flow of the POD needs it"
                )
                self.add(Kind.DEAD if single else Kind.UNMET, vm, rule, why)
                continue
            winner = self.walks[vm].decide(POSTROUTING, *by_source[inside[0]])
            self._hidden_by(vm, rule, winner)

    # --- result ------------------------------------------------------------------------------------------------------

    def result(self) -> Handbuilt:
        """Everything that was found, findings in the order of the files."""
        self._judge_admitted()
        names: dict[tuple[str, int], str] = {
            (vm, address): name for vm in SIDES for address, name in self._names(vm).items()
        }
        for (vm, address), name in names.items():
            if vm == NAT_VM1 and name.startswith(f"{MANAGEMENT}/"):
                raise NatPodError(
                    f"--vm1 has {dotted(address)} as {name}: --vm1 and --vm2 are exchanged; NAT VM1 is the one that "
                    "faces the customers"
                )
        order: dict[str | None, int] = {vm: number for number, vm in enumerate((NAT_VM1, NAT_VM2, None))}
        self.findings.sort(key=lambda finding: (order[finding.vm], finding.line or 0))
        return Handbuilt(
            hosts=self.hosts,
            servers=self.servers,
            flows=tuple(self.flows),
            pairs=tuple(self.pairs),
            source_nat=self.source_nat,
            names=names,
            networks=self._networks(),
            rules={vm: sum(rule.text[0] != "#" for _, rule in self.tables[vm].rules()) for vm in SIDES},
            findings=tuple(self.findings),
        )

    def _judge_admitted(self) -> None:
        """Rules that let a whole network call, where nat-pod lets single hosts."""
        callers = {(flow.request.vm, id(flow.request.rule)): flow.request.rule for flow in self.flows}
        for (vm, key), rule in callers.items():
            broad = [sources for sources, _ in self.ways[vm][key][1] if sources[0] != sources[1]]
            if broad:
                number = len({flow.request.caller for flow in self.flows if flow.request.rule is rule})
                who = "anybody" if broad[0][1] - broad[0][0] > 2**24 else f"all of {cidr(broad[0])}"
                why = f"admits {who}; nat-pod admits the hosts that the stack file names, here {number}"
                self.add(Kind.WIDE, vm, rule, why)

    def _names(self, vm: str) -> dict[int, str]:
        """Members' names from comments: of the rule that delivers to one, or that tests for it as a source."""
        names: dict[int, str] = {}
        for rule in self._engineers(vm):
            if rule.action is Action.DNAT and rule.to is not None and rule.comment and not in_pod_space(rule.to[0]):
                names[rule.to[0]] = rule.comment
        for rule in self._engineers(vm):
            single = rule.source[0] == rule.source[1]
            if single and rule.comment and rule.action is not Action.DNAT and not in_pod_space(rule.source[0]):
                names.setdefault(rule.source[0], rule.comment)
        return names

    def _networks(self) -> dict[Range, str]:
        networks: dict[Range, str] = {}
        for rule in self._engineers(NAT_VM1):
            if rule.source[0] != rule.source[1] and not in_pod_space(rule.source[0]) and rule.source[1] < 2**32 - 1:
                networks.setdefault(rule.source, rule.comment)
        return networks


def _addresses(inside: Range, pool: list[int]) -> Iterable[int]:
    """The single address of a range, or those of a pool that lie in it."""
    return (inside[0],) if inside[0] == inside[1] else within(pool, inside)


def _never(address: int) -> bool:
    return any(first <= address <= last for first, last in _NEVER)


def _reserved(address: int) -> str | None:
    return reserved_by_oci(IPAddress(address), IPNetwork((subnet_of(address)[0], VNIC_SUBNET_PREFIX)))


def _forbidden(address: int) -> str:
    return (
        f"{dotted(address)} is never the address of a VM in a VCN; 169.254.169.254 would hand out the NAT VM's metadata"
    )


def _rules(count: int) -> str:
    return "1 rule" if count == 1 else f"{count} rules"
