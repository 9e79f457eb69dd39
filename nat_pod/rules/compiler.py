"""The rule compiler: mappings -> the rules of NAT VM1 and NAT VM2, as values.

A packet from customer1/vm1 (10.0.0.100) to the server mgmt (10.0.0.100), known to customers as 198.18.0.2:

    customer1/vm1 -> NAT VM1   10.0.0.100   > 198.18.0.2
      PRE   source in customer1's VCN -> NATPOD-C-customer1; source is vm1, who may -> NATPOD-SERVERS;
            destination is mgmt's address here -> DNAT to mgmt's address on NAT VM2
      POST  masquerade: source becomes NAT VM1's primary address;  static: vm1's own address on NAT VM1
    NAT VM1 -> NAT VM2         198.18.0.2   > 198.18.0.130
      PRE   source is NAT VM1 -> NATPOD-FROM-VM1; destination is mgmt's address here -> DNAT to 10.0.0.100
      POST  masquerade: NAT VM2's primary address;  static: same offset in NAT VM2's /27 (one NETMAP for all)
    NAT VM2 -> mgmt            198.18.0.130 > 10.0.0.100
    The reply meets no rule: conntrack undoes both translations on the way back.

A packet from mgmt to customer1/vm1, known to management as 198.18.0.130:

    mgmt -> NAT VM2            10.0.0.100   > 198.18.0.130
      PRE   source is a declared server -> NATPOD-HOSTS; same offset in NAT VM1's /27 (one NETMAP a VNIC pair)
    NAT VM2 -> NAT VM1         198.18.0.130 > 198.18.0.2
      PRE   source is NAT VM2 -> NATPOD-FROM-VM2 -> the chain of the VNIC's /27; vm1's address here -> DNAT
    NAT VM1 -> customer1/vm1   198.18.0.2   > 10.0.0.100

What the shape of the chains buys
- *Who may* (sources) and *what becomes of the address* (mapping) are separate, so rules grow as hosts + servers; the
  article writes one line for each pair of them.
- The source is tested once at the top and every branch is entered with goto: a packet looks at its own customer's
  hosts or at its own VNIC's addresses and at nobody else's.  Where these are many the chain becomes a tree (`tree.py`),
  so a new flow through a full POD costs a few percent more than through a POD of one mapping (bench/results.md).
- Nothing is translated that is not declared, and FORWARD passes only what was translated: a missing rule is a
  refusal.  Without the last FORWARD rule a packet to an unmapped address is sent back to the network that delivers
  it here again (measured: one ping became 36 packets).
- Without the last INPUT rule the NAT VM itself answers at an address whose mapping is missing, which looks fine.
- No interface names: they differ by image (ens3, enp0s5, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

from netaddr import IPAddress, IPNetwork, cidr_merge

from nat_pod.config.addressing import Pair, Slot
from nat_pod.config.model import PodConfig
from nat_pod.config.neighbours import CustomerConfig, Member
from nat_pod.config.policy import access
from nat_pod.config.services import EVERYTHING, Services
from nat_pod.config.source_nat import SourceNat
from nat_pod.limits import BOUND_SAMPLE, BOUND_SECONDS, BOUND_SHARE, FLOWS_PER_ADDRESS, connections
from nat_pod.names import ANYWHERE, MANAGEMENT, NAT_VM1, NAT_VM2, MemberName, Side
from nat_pod.rules.guard import (
    ERRORS,
    FROM_VM1,
    FROM_VM2,
    HOSTS,
    SERVERS,
    about_own,
    about_ssh,
    from_all,
    guard,
    nat_table,
    ssh,
)
from nat_pod.rules.netfilter import (
    AboveBound,
    Accept,
    Chain,
    Dnat,
    Drop,
    Goto,
    Marked,
    Match,
    Netmap,
    Rule,
    Ruleset,
    Snat,
    Table,
)
from nat_pod.rules.passages import PolicyChains, passages
from nat_pod.rules.tree import chain_of, grow, without_dear

# Families of chains; behind it stands a customer's name, a VNIC's /27, or the network of a branch of a long chain.
CUSTOMER = "NATPOD-C-"  # sources of requests: who may
SERVER = "NATPOD-S-"  # servers by their address
VNIC = "NATPOD-V-"  # hosts by their address on the VM
HIDDEN = "NATPOD-H-"  # sources after routing: what they become
SERVER_SOURCE = "NATPOD-M-"  # servers as sources


def compile_rules(config: PodConfig) -> dict[Side, Ruleset]:
    """The rules of each side's NAT VMs.  Sorted throughout, so that equal configurations give equal bytes."""
    mappings = _Mappings(config)
    errors = {NAT_VM1: _errors_vm1(mappings), NAT_VM2: _errors_vm2(mappings)}
    about_login, login_chains = about_ssh(config.management.cidrs, MANAGEMENT)
    return {
        NAT_VM1: Ruleset(
            filter=guard(
                _forward(config.source_nat),
                errors[NAT_VM1][1],
                errors=errors[NAT_VM1][0],
                own_errors=from_all(mappings.subnets_of_vm2, "errors about ssh"),
                let_in=ssh(mappings.subnets_of_vm2, "ssh through NAT VM2"),
                said=_SAID,
            ),
            nat=_nat_table(_customers_to_vm2(mappings), _vm2_to_customers(mappings), _sources(mappings, NAT_VM1)),
        ),
        NAT_VM2: Ruleset(
            filter=guard(
                _forward(config.source_nat),
                [*errors[NAT_VM2][1], *login_chains],
                errors=errors[NAT_VM2][0],
                own_errors=[*from_all(mappings.subnets_of_vm1, "errors about ssh to NAT VM1"), *about_login],
                let_in=ssh(config.management.cidrs, "ssh from management"),
                said=_SAID,
            ),
            nat=_nat_table(_management_to_vm1(mappings), _vm1_to_management(mappings), _sources(mappings, NAT_VM2)),
        ),
    }


class _Mappings:
    """The configuration with the look-ups that the compiler needs more than once."""

    def __init__(self, config: PodConfig) -> None:
        self.config = config
        self.access = access(config.management, config.customers, config.policy)
        self.servers = config.servers
        self.hosts = config.hosts
        self.pairs = config.pairs
        self.subnets_of_vm1 = without_dear(cidr_merge([pair.nat_vm1 for pair in self.pairs]))
        self.subnets_of_vm2 = without_dear(cidr_merge([pair.nat_vm2 for pair in self.pairs]))

        # Hosts that have a declared flow: nothing is translated for others.
        self.callers = [host for host in self.hosts if self.reach(host)]
        self.calling = [server for server in self.servers if self.reach(server)]
        # Who may open everything to everybody across the POD, or to all of its customer's list.
        self.ungoverned = {member.name for member in (*self.servers, *self.hosts) if self._reaches_all(member)}
        called = {name for member in (*self.callers, *self.calling) for name in self.reach(member)}
        self.called = [server for server in self.servers if server.name in called]
        self.answering = [host for host in self.hosts if host.name in called]

    def reach(self, member: Member) -> Mapping[MemberName, Services]:
        """What a member may open, by receiver."""
        return self.access.reach(member.name)

    def _reaches_all(self, member: Member) -> bool:
        name = member.name
        receivers = self.access.hosts if name.is_server else self.access.lists[name.realm]
        return self.reach(member) == dict.fromkeys(receivers, EVERYTHING)

    def on(self, side: Side, member: Member) -> str:
        """The member's address on the NAT VMs of a side."""
        return self.config.layout.address(self.slot(member), side)

    def slot(self, member: Member) -> Slot:
        return self.config.book[member.name]

    @staticmethod
    def of(customer: CustomerConfig, members: Iterable[Member]) -> list[Member]:
        """The members that are hosts of this customer."""
        return [member for member in members if member.name.realm == customer.name]

    def in_pair(self, members: Iterable[Member], pair: Pair) -> list[Member]:
        """The members with a slot in this pair, in the order of their slots."""
        return sorted((m for m in members if self.slot(m).pair == pair.index), key=self.slot)


# Each builder returns (rules for the top of its base chain, chains below it).
_Part = tuple[list[Rule], list[Chain]]


def _part(family: str, top: list[Rule], chains: list[Chain]) -> _Part:
    """The rules of one builder, as a tree where they are many."""
    rules, branches = grow(family, top)
    return list(rules), [*branches, *chains]


def _by_network(name: str, family: str, customer: CustomerConfig, rules: list[Rule]) -> list[Chain]:
    """One chain for a customer's hosts, as a tree for each of its networks in which they are many.

    A branch is named after the network around its hosts.  Between two networks of one customer there may be another
    customer's: two branches around both would have the same name.
    """
    if len(customer.cidrs) == 1:
        return chain_of(name, family, rules)
    at = {rule: IPNetwork(rule.match.source or ANYWHERE).ip for rule in rules}
    trees = [grow(family, [rule for rule in rules if at[rule] in cidr]) for cidr in customer.cidrs]
    top = tuple(rule for rules_of_one, _ in trees for rule in rules_of_one)
    return [Chain(name, top), *(chain for _, branches in trees for chain in branches)]


def _customers_to_vm2(mappings: _Mappings) -> _Part:
    """NAT VM1, packets from customers: who may, then the server's address here -> its address on NAT VM2."""
    top, chains = [], []
    policy = PolicyChains({mappings.access.servers: SERVERS})

    def servers(name: str, receivers: tuple[MemberName, ...]) -> list[Chain]:
        called = [server for server in mappings.servers if server.name in receivers]
        return chain_of(name, f"{name}-", _server_rules(mappings, called))

    for customer in mappings.config.customers:
        hosts = mappings.of(customer, mappings.hosts)
        if not hosts:
            continue
        chain = f"{CUSTOMER}{customer.name}"
        target = SERVERS if customer.servers is None else f"{SERVER}{customer.name}"
        top += _from(customer, chain)
        members = [
            Rule(
                Match(source=_host(host.address)),
                Goto(target if host.name in mappings.ungoverned else _by_policy(mappings, host, policy, servers)),
                member=host.name,
            )
            for host in hosts
            if mappings.reach(host) or host.name in mappings.ungoverned
        ]
        first, *branches = _by_network(chain, CUSTOMER, customer, members)
        chains += [Chain(chain, (*_bound(customer, mappings.config), *first.rules)), *branches]
        if customer.servers is not None and any(host.name in mappings.ungoverned for host in hosts):
            # Flat: two customers' branches would have the same names.
            chains.append(Chain(target, tuple(_server_rules(mappings, _allowed(mappings.servers, customer)))))
    chains += policy.chains
    if any(rule.target == Goto(SERVERS) for chain in chains for rule in chain.rules):
        chains += chain_of(SERVERS, SERVER, _server_rules(mappings, mappings.servers))
    return _part(CUSTOMER, top, chains)


def _by_policy(
    mappings: _Mappings,
    sender: Member,
    policy: PolicyChains,
    to: Callable[[str, tuple[MemberName, ...]], list[Chain]],
) -> str:
    """The chain for what a member may open where a policy governs it.  to: the chains that translate to receivers.

    What fits no passage is not translated, and FORWARD drops it.
    """
    asked = passages(mappings.reach(sender))

    def below(receivers: tuple[MemberName, ...]) -> str:
        return policy.name(receivers, lambda name: to(name, receivers))

    def make(name: str) -> list[Chain]:
        return [Chain(name, tuple(Rule(passage.match, Goto(below(passage.receivers))) for passage in asked))]

    return policy.name(asked, make)


def customer_bounds(config: PodConfig, customer: CustomerConfig) -> dict[bool, int]:
    """How many flows a customer may have open: in all (False), and to one server (True) where all share its ports.

    A bound that the customer cannot reach, because of the bounds to its servers, is left out.
    """
    in_all = connections(config.nat_vm.memory_gbs) // BOUND_SHARE
    match config.source_nat:
        case SourceNat.STATIC:
            return {False: in_all}
        case SourceNat.MASQUERADE:
            to_one = FLOWS_PER_ADDRESS // BOUND_SHARE
            enough = to_one * len(_allowed(config.servers, customer)) <= in_all
            return {True: to_one} if enough else {False: in_all, True: to_one}
        case _ as never:
            assert_never(never)


def _bound(customer: CustomerConfig, config: PodConfig) -> list[Rule]:
    """A customer that has too many flows open opens no more; those that it has live on.

    A flow above the bound leaves the nat table untranslated, and FORWARD drops it.  The bound is tested here, because
    the packet is in its customer's chain already: in the filter table finding the customer again would cost as much as
    the bound itself.  Samples come first, so that a flood renews the mark.  NAT VM2 needs no such rules: what
    customers open there has passed here.  See docs/decisions/connection-bound.md.
    """
    name, bounds = f"{CUSTOMER}{customer.name}", customer_bounds(config, customer)
    above = [
        AboveBound(name=name, above=most // BOUND_SAMPLE, sample=BOUND_SAMPLE, by_destination=by_destination)
        for by_destination, most in bounds.items()
    ]
    marked = [Marked(name=name, seconds=BOUND_SECONDS, by_destination=by_destination) for by_destination in bounds]
    matches = [*(Match(bound=bound) for bound in above), *(Match(bound=bound) for bound in marked)]
    return [Rule(match, Accept()) for match in matches]


def _from(customer: CustomerConfig, chain: str) -> list[Rule]:
    """Packets from a customer's networks."""
    return [
        Rule(Match(source=str(network)), Goto(chain), note=customer.name) for network in without_dear(customer.cidrs)
    ]


def _server_rules(mappings: _Mappings, servers: Iterable[Member]) -> list[Rule]:
    return [
        Rule(
            Match(destination=_host(mappings.on(NAT_VM1, server))),
            Dnat(mappings.on(NAT_VM2, server)),
            member=server.name,
        )
        for server in servers
    ]


def _allowed(servers: Iterable[Member], customer: CustomerConfig) -> list[Member]:
    """The servers that a customer's hosts may reach: those of its list, all without one."""
    return [server for server in servers if customer.servers is None or server.name.short in customer.servers]


def _vm2_to_customers(mappings: _Mappings) -> _Part:
    """NAT VM1, packets from NAT VM2: the chain of the VNIC's /27, then one rule a host."""
    rules, chains = [], []
    for pair in mappings.pairs:
        hosts = mappings.in_pair(mappings.answering, pair)
        if hosts:
            chain = f"{VNIC}{pair.nat_vm1}"
            rules.append(Rule(Match(destination=str(pair.nat_vm1)), Goto(chain)))
            members = [
                Rule(Match(destination=_host(mappings.on(NAT_VM1, host))), Dnat(str(host.address)), member=host.name)
                for host in hosts
            ]
            chains += chain_of(chain, VNIC, members)
    top = [Rule(Match(source=str(network)), Goto(FROM_VM2)) for network in mappings.subnets_of_vm2]
    return top, [*chain_of(FROM_VM2, VNIC, rules), *chains]


def _management_to_vm1(mappings: _Mappings) -> _Part:
    """NAT VM2, packets from declared servers: the same offset in NAT VM1's /27, one rule a VNIC pair.

    Where a policy lets a server call some hosts only, or to some ports, the rules are for those hosts' addresses.
    """
    policy = PolicyChains({mappings.access.hosts: HOSTS})

    def hosts(name: str, receivers: tuple[MemberName, ...]) -> list[Chain]:
        called = [host for host in mappings.hosts if host.name in receivers]
        return chain_of(
            name, f"{name}-", [rule for pair in mappings.pairs for rule in _same_offset(mappings, called, pair)]
        )

    top = [
        Rule(
            Match(source=_host(server.address)),
            Goto(HOSTS if server.name in mappings.ungoverned else _by_policy(mappings, server, policy, hosts)),
            member=server.name,
        )
        for server in mappings.servers
        if server.name in mappings.ungoverned or mappings.reach(server)
    ]
    rules = [
        Rule(Match(destination=str(pair.nat_vm2)), Netmap(str(pair.nat_vm1)))
        for pair in mappings.pairs
        if mappings.in_pair(mappings.answering, pair)
    ]
    everybody = not mappings.servers or any(server.name in mappings.ungoverned for server in mappings.servers)
    chains = chain_of(HOSTS, VNIC, rules) if everybody or policy.leads_to(HOSTS) else []
    return _part(SERVER_SOURCE, top, [*chains, *policy.chains])


def _same_offset(mappings: _Mappings, hosts: Iterable[Member], pair: Pair) -> list[Rule]:
    """The hosts' addresses in NAT VM2's /27, in as few networks as they make up, to the same ones in NAT VM1's."""
    by = pair.nat_vm1.first - pair.nat_vm2.first
    networks = cidr_merge([mappings.on(NAT_VM2, host) for host in mappings.in_pair(hosts, pair)])
    return [
        Rule(Match(destination=str(network)), Netmap(f"{IPAddress(network.first + by)}/{network.prefixlen}"))
        for network in networks
    ]


def _vm1_to_management(mappings: _Mappings) -> _Part:
    """NAT VM2, packets from NAT VM1: the server's address here -> the server."""
    rules = [
        Rule(Match(destination=_host(mappings.on(NAT_VM2, server))), Dnat(str(server.address)), member=server.name)
        for server in mappings.called
    ]
    top = [Rule(Match(source=str(network)), Goto(FROM_VM1)) for network in mappings.subnets_of_vm1]
    return top, chain_of(FROM_VM1, SERVER, rules)


def _sources(mappings: _Mappings, side: Side) -> _Part:
    """The source after the routing decision."""
    match mappings.config.source_nat:
        case SourceNat.MASQUERADE:
            return _masquerade(mappings, side), []
        case SourceNat.STATIC:
            return _own_sources(mappings, side)
        case _ as never:
            assert_never(never)


def _own_sources(mappings: _Mappings, side: Side) -> _Part:
    """Each member keeps an address of its own: members of the other side by offset, this side's by a rule each."""
    match side:
        case Side.NAT_VM1:
            callers = mappings.calling
            top, chains = [], []
            for customer in mappings.config.customers:
                hosts = mappings.of(customer, mappings.callers)
                if hosts:
                    chain = f"{HIDDEN}{customer.name}"
                    top += _from(customer, chain)
                    chains += _by_network(chain, HIDDEN, customer, _own_source_rules(mappings, hosts, side))
        case Side.NAT_VM2:
            callers = mappings.callers
            top, chains = _own_source_rules(mappings, mappings.calling, side), []
        case _ as never:
            assert_never(never)
    transit = [
        Rule(Match(source=str(pair.subnet(side.other))), Netmap(str(pair.subnet(side))))
        for pair in mappings.pairs
        if mappings.in_pair(callers, pair)
    ]
    return _part(HIDDEN, [*transit, *top], chains)


def _own_source_rules(mappings: _Mappings, members: Iterable[Member], side: Side) -> list[Rule]:
    return [
        Rule(Match(source=_host(member.address)), Snat(mappings.on(side, member)), member=member.name)
        for member in members
    ]


def _masquerade(mappings: _Mappings, side: Side) -> list[Rule]:
    if not mappings.called and not mappings.answering:
        return []
    # SNAT: what MASQUERADE would choose, known beforehand and at less cost.
    # Only what PREROUTING translated: the VM's own traffic (metadata, iSCSI boot volume) keeps its source.
    hidden = Snat(mappings.config.primary(side))
    return [Rule(Match(ctstate=("DNAT",)), hidden, note="hide the source behind the primary address")]


def _nat_table(requests: _Part, transit: _Part, sources: _Part) -> Table:
    """The nat table.  Transit comes first: it is one test, and most packets of a busy POD's replies skip it anyway."""
    return nat_table(
        [*transit[0], *requests[0]], sources[0], pre_below=[*transit[1], *requests[1]], post_below=sources[1]
    )


def _errors_vm1(mappings: _Mappings) -> _Part:
    """NAT VM1, errors about flows: from NAT VM2 about any, from a customer's networks about that customer's own."""
    theirs = [
        about_own(customer.cidrs, customer.name)
        for customer in mappings.config.customers
        if mappings.of(customer, mappings.hosts)
    ]
    top = [*from_all(mappings.subnets_of_vm2, "through NAT VM2"), *(rule for rules, _ in theirs for rule in rules)]
    return top, [chain for _, chains in theirs for chain in chains]


def _errors_vm2(mappings: _Mappings) -> _Part:
    """NAT VM2, errors about flows: from NAT VM1, from the vRouter, and from management, about flows of management."""
    theirs, chains = about_own(mappings.config.management.cidrs, MANAGEMENT)
    return [
        *from_all(mappings.subnets_of_vm1, "through NAT VM1"),
        Rule(Match(source=str(mappings.config.layout.vrouter)), Accept(), note="the vRouter"),
        *theirs,
    ], chains


def _translated(source_nat: SourceNat) -> list[Rule]:
    """What becomes of a new flow that a mapping translated.

    Behind one shared address flows are told apart by port, or by the identifier of an echo.  Of a protocol that has
    neither only the first host's packets would find their way, and the others' would be lost without a count.
    """
    match source_nat:
        case SourceNat.STATIC:
            return [Rule(Match(ctstate=("DNAT",)), Accept(), note="a mapping translated it")]
        case SourceNat.MASQUERADE:
            return [
                *(
                    Rule(Match(protocol=protocol, ctstate=("DNAT",)), Accept(), note="a mapping translated it")
                    for protocol in ("tcp", "udp", "icmp")
                ),
                Rule(Match(ctstate=("DNAT",)), Drop(), note="a protocol that masquerade cannot share an address by"),
            ]
        case _ as never:
            assert_never(never)


def _forward(source_nat: SourceNat) -> tuple[Rule, ...]:
    """What may pass the VM: flows that exist, and new ones that a mapping translated."""
    return (
        Rule(Match(ctstate=("ESTABLISHED",)), Accept(), note="flows that exist"),
        Rule(Match(ctstate=("RELATED",)), Goto(ERRORS), note="errors about flows that exist"),
        *_translated(source_nat),
        Rule(Match(), Drop(), note="no mapping translated it"),
    )


_SAID = (Rule(Match(protocol="icmp", ctstate=("DNAT",)), Accept(), note="errors about what a mapping translated"),)
"""The VM's own errors belong to the flow that they are about, its first packet included: it is translated by then."""


def _host(address: object) -> str:
    return f"{address}/32"
