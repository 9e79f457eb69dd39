"""The rules of a routed POD: one translation a VM and flow, and who may open a flow.

A member has one alias: a server `s`, a host `h`.  NAT VM1 translates hosts and nothing else, NAT VM2 servers:

    customer1/vm1 H opens a flow to the server S     H > s    NAT VM1    h > s    NAT VM2    h > S
      NAT VM1  FORWARD: may H open a flow to s?  POST: H -> h
      NAT VM2  PRE: s -> S                       FORWARD: does anybody open flows to S?
    S opens a flow to H                              S > h    NAT VM2    s > h    NAT VM1    s > H
      NAT VM2  FORWARD: is S a server, h a host's range?  POST: S -> s
      NAT VM1  PRE: h -> H                       FORWARD: is s a server?

So on each wire two members have one pair of addresses, whoever opened the flow, and a VM with the same rules takes over
any flow in its middle.  It has not seen the beginning of those flows, and three rules of FORWARD come from that:

- A TCP segment without SYN begins an entry like any first packet, and may come from the end that may not open flows:
  it passes for every declared pair, whichever side may open (NATPOD-ANSWERS).
- That alone would be a hole: a segment without SYN makes an entry, and a SYN in it would pass as part of a flow that
  exists.  So who opens a connection is asked before flows that exist pass.
- UDP has no such flag.  The next datagram of the end that may open the flow makes the entry; until then those of the
  other end are refused.

What conntrack calls INVALID is not translated and meets the last rule: among it the FIN or RST of a flow that this VM
has not seen anything else of.  The far end's next own segment makes the entry by which a repeated FIN then passes.

Only NAT VM2's subnet has routes to hosts' aliases, and only NAT VM1's to servers' (docs: trust by route).  The rules
check sources as well: a packet whose source is an alias passes only if it was translated, and that only from there.

NAT VM1 may be several customer gateways, each with rules of its own for its own customers: to one another they are
customers' networks like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import assert_never

from netaddr import IPNetwork, cidr_merge

from nat_pod.config.neighbours import Member
from nat_pod.config.policy import access
from nat_pod.config.routed import RoutedConfig
from nat_pod.config.services import TCP, Ports
from nat_pod.names import HEALTH_PORT, INNER, MANAGEMENT, MemberName, Role, Side
from nat_pod.rules.guard import (
    ERRORS,
    FROM_VM1,
    FROM_VM2,
    HOSTS,
    REFUSED,
    SERVERS,
    about_own,
    about_ssh,
    from_all,
    guard,
    nat_table,
    ssh,
)
from nat_pod.rules.netfilter import (
    OPENING,
    Accept,
    Chain,
    Dnat,
    Drop,
    Goto,
    Match,
    Rule,
    Ruleset,
    Snat,
    Table,
)
from nat_pod.rules.passages import Passage, PolicyChains, passages
from nat_pod.rules.tree import chain_of, grow, without_dear

WHO_MAY = "NATPOD-WHO-MAY"
ANSWERS = "NATPOD-ANSWERS"
SOURCES = "NATPOD-SOURCES"
# Families of chains; behind it stands the network of a branch of a long chain.
SENDER = "NATPOD-C-"  # members as sources: who may; no ACCEPT in them, which `status` takes for a bound's refusal
RECEIVER = "NATPOD-S-"  # servers as destinations; with a customer's name: those of its list
ANSWERING = "NATPOD-A-"  # servers as destinations, whoever opened the flow
TRANSIT = "NATPOD-M-"  # aliases as sources
ALIAS = "NATPOD-V-"  # aliases as destinations: whose they are
HIDDEN = "NATPOD-H-"  # members as sources, after routing: their aliases
RANGE = "NATPOD-R-"  # ranges of aliases

_TRANSLATED = ("SNAT", "DNAT")
_REFUSE = Rule(Match(), Goto(REFUSED))


def compile_routed(config: RoutedConfig) -> dict[Role, Ruleset]:
    """The rules of each role's NAT VMs, the same for both of a pair.  Equal configurations give equal bytes."""
    return {
        here.role: Ruleset(filter=_filter(here), nat=_nat(here)) for here in (_Here(config, r) for r in config.roles)
    }


class _Here:
    """What the configuration says of one role: `own` members are translated here, `far` ones on the other side.

    `customers` are the ones that it serves: a gateway's own, and all of them behind NAT VM2.
    """

    def __init__(self, config: RoutedConfig, role: Role) -> None:
        self.config, self.role, self.side = config, role, role.side
        match role.side:
            case Side.NAT_VM1:
                self.customers, self.transit = config.customers_of(role), FROM_VM2
            case Side.NAT_VM2:
                self.customers, self.transit = config.customers, FROM_VM1
            case _ as never:
                assert_never(never)
        self.access = access(config.management, self.customers, config.policy)
        names = {customer.name for customer in self.customers}
        hosts = [host for host in config.hosts if host.name.realm in names]
        # Nothing is compiled for a member that has no flow, in which it calls or is called.
        self.servers = [server for server in config.servers if self._has_flow(server, hosts)]
        self.hosts = [host for host in hosts if self._has_flow(host, config.servers)]
        declared = bool(self.servers)
        match role.side:
            case Side.NAT_VM1:
                self.own, far = self.hosts, config.server_ranges
            case Side.NAT_VM2:
                self.own, far = self.servers, config.host_ranges
            case _ as never:
                assert_never(never)
        self.far_ranges = without_dear(far) if declared else []

    def _has_flow(self, member: Member, others: Iterable[Member]) -> bool:
        may = self.access.services
        return any(may(member.name, other.name) or may(other.name, member.name) for other in others)

    @property
    def called(self) -> list[Member]:
        """The servers that somebody may open flows to."""
        called = {name for host in self.hosts for name in self.access.reach(host.name)}
        return [server for server in self.servers if server.name in called]

    def is_governed(self, member: Member) -> bool:
        """Whether a policy governs what a member may open, or what may be opened to it."""
        return any(entry.sender.has(member.name) or entry.receiver.has(member.name) for entry in self.access.entries)


# --- nat: one translation a VM and flow ------------------------------------------------------------------------------


def _nat(here: _Here) -> Table:
    """A member's alias as a destination, from the other side; a member as a source, to there."""
    alias = here.config.alias
    pre, pre_below = _by_range("source", here.far_ranges, here.transit)
    post, post_below = _by_range("destination", here.far_ranges, SOURCES)
    destinations = [
        Rule(Match(destination=f"{alias(member.name)}/32"), Dnat(str(member.address)), member=member.name)
        for member in here.own
    ]
    sources = [
        Rule(Match(source=f"{member.address}/32"), Snat(alias(member.name)), member=member.name) for member in here.own
    ]
    return nat_table(
        pre,
        post,
        pre_below=[*pre_below, *chain_of(here.transit, ALIAS, destinations)],
        post_below=[*post_below, *chain_of(SOURCES, HIDDEN, sources)],
    )


# --- filter: who may -------------------------------------------------------------------------------------------------


def _filter(here: _Here) -> Table:
    layout = here.config.layout
    match here.side:
        case Side.NAT_VM1:
            who_may, (errors, below) = _who_may_vm1(here), _errors_vm1(here)
            own_errors: list[Rule] = []
            # Not from management: where customers have its addresses, the answer would go to one of them.
            let_in = ssh([layout.subnet(INNER)], "ssh through NAT VM2")
        case Side.NAT_VM2:
            who_may, (errors, below) = _who_may_vm2(here), _errors_vm2(here)
            own_errors, login_chains = about_ssh(here.config.management.cidrs, MANAGEMENT)
            below = [*below, *login_chains]
            let_in = ssh(here.config.management.cidrs, "ssh from management")
        case _ as never:
            assert_never(never)
    if here.config.standby:
        let_in.append(_health_check(layout.subnet(here.role)))
    return guard(
        _FORWARD,
        [*who_may, Chain(REFUSED, (Rule(Match(), Drop(), note="may not open it"),)), *below],
        errors=errors,
        own_errors=own_errors,
        let_in=let_in,
        said=_said(here),
    )


_FORWARD = (
    # With the state: a SYN that conntrack calls INVALID is not translated.
    Rule(
        Match(protocol="tcp", tcp_flags=OPENING, ctstate=("NEW", "ESTABLISHED")),
        Goto(WHO_MAY),
        note="who opens a connection, also where one exists",
    ),
    Rule(Match(ctstate=("ESTABLISHED",)), Accept(), note="flows that exist"),
    Rule(Match(ctstate=("RELATED",)), Goto(ERRORS), note="errors about flows that exist"),
    Rule(Match(ctstate=("NEW",)), Goto(WHO_MAY), note="who opens a flow, or goes on in one that began elsewhere"),
    Rule(Match(), Drop(), note="of no flow"),
)


def _who_may_vm1(here: _Here) -> list[Chain]:
    """From NAT VM2 what a server sends; from customers what a host sends to a server that it may call."""
    alias = here.config.alias
    transit, below = _transit(here)
    from_servers = [
        Rule(Match(source=f"{alias(server.name)}/32"), Accept(), member=server.name) for server in here.servers
    ]
    to_server = {
        server.name.short: Rule(Match(destination=f"{alias(server.name)}/32"), Accept(), member=server.name)
        for server in here.servers
    }
    # A list stays one chain: two customers' branches would have the same names.
    lists = {
        customer.name: Chain(
            f"{RECEIVER}{customer.name}",
            (*(to_server[name] for name in customer.servers), Rule(Match(), Goto(ANSWERS))),
        )
        for customer in here.customers
        if customer.servers is not None
        and any(host.name.realm == customer.name and not here.is_governed(host) for host in here.hosts)
    }
    policy = _Policy(here, SERVERS, lambda receivers: [to_server[server.short] for server in receivers])

    def target(host: Member) -> str:
        if here.is_governed(host):
            return policy.chain(host)
        return lists[host.name.realm].name if host.name.realm in lists else SERVERS

    from_hosts = [Rule(Match(source=f"{host.address}/32"), Goto(target(host)), member=host.name) for host in here.hosts]
    return _needed(
        [
            *_closed(WHO_MAY, SENDER, from_hosts, transit),
            *below,
            *_closed(here.transit, TRANSIT, from_servers, []),
            *lists.values(),
            *policy.chains,
            *(_answers() if lists else []),
        ],
        SERVERS,
        _closed(SERVERS, RECEIVER, list(to_server.values()), []),
    )


def _who_may_vm2(here: _Here) -> list[Chain]:
    """From NAT VM1 what a host sends to a server that hosts may call; from management what a server sends to hosts."""
    transit, below = _transit(here)

    def to(servers: Iterable[Member]) -> list[Rule]:
        return [Rule(Match(destination=f"{s.address}/32"), Accept(), member=s.name) for s in servers]

    def networks(hosts: tuple[MemberName, ...]) -> list[Rule]:
        aliases = cidr_merge([here.config.alias(host) for host in hosts])
        return [Rule(Match(destination=str(network)), Accept(), note="a host") for network in aliases]

    policy = _Policy(here, HOSTS, networks)
    from_servers = [
        Rule(
            Match(source=f"{s.address}/32"),
            Goto(policy.chain(s) if here.is_governed(s) else HOSTS),
            member=s.name,
        )
        for s in here.servers
    ]
    to_hosts = [Rule(Match(destination=str(network)), Accept(), note="a host") for network in here.far_ranges]
    all_called = here.called == here.servers
    otherwise = _REFUSE if all_called else Rule(Match(), Goto(ANSWERS))
    return _needed(
        [
            *_closed(WHO_MAY, SENDER, from_servers, transit),
            *below,
            *_closed(here.transit, RECEIVER, to(here.called), [], otherwise),
            *([] if all_called else [*_answers(), *_closed(SERVERS, ANSWERING, to(here.servers), [])]),
            *policy.chains,
        ],
        HOSTS,
        _closed(HOSTS, ALIAS, to_hosts, []),
    )


class _Policy:
    """The chains for members that a policy governs: what a member may open, and the answers that it may give.

    everybody: the chain that accepts all receivers.  accept: the rules that accept some of them.
    """

    def __init__(self, here: _Here, everybody: str, accept: Callable[[tuple[MemberName, ...]], list[Rule]]) -> None:
        self._access, self._everybody, self._accept = here.access, everybody, accept
        match here.side:
            case Side.NAT_VM1:
                self._all = {server.name for server in here.servers}
            case Side.NAT_VM2:
                self._all = {host.name for host in here.hosts}
            case _ as never:
                assert_never(never)
        self._numbered = PolicyChains({})

    @property
    def chains(self) -> list[Chain]:
        """All that were asked for, with those below them."""
        return self._numbered.chains

    def chain(self, member: Member) -> str:
        """The chain for what a member sends.

        A TCP segment that opens nothing belongs to a flow that the member opened, and is on its way to a port that it
        may open, or to one that the other end opened, and comes from a port that this end may.  Nothing else of TCP
        passes, so a flow that the policy does not let anybody open any more ends on either NAT VM.
        """
        asked = passages(self._access.reach(member.name))
        opened = passages(self._access.opened_by(member.name))
        answers = tuple(passage for passage in opened if passage.protocol == TCP)
        if all(passage.ports is not None for passage in answers):  # else all of TCP has been asked
            answers += tuple(passage for passage in opened if passage.protocol is None)
        otherwise = Rule(Match(), Goto(self._answers(answers))) if answers else _REFUSE
        return self._numbered.name(
            (asked, otherwise),
            lambda name: [
                Chain(
                    name,
                    (
                        *(Rule(one.match, Goto(self._receivers(one.receivers, otherwise))) for one in asked),
                        *([] if any(one.match == Match() for one in asked) else [otherwise]),
                    ),
                )
            ],
        )

    def _answers(self, answers: tuple[Passage, ...]) -> str:
        return self._numbered.name(
            answers,
            lambda name: [
                Chain(
                    name,
                    (
                        Rule(Match(protocol="tcp", tcp_flags=OPENING), Goto(REFUSED), note="may not open it"),
                        *(
                            Rule(
                                Match(protocol=TCP, source_port=one.ports),
                                Goto(self._receivers(one.receivers, _REFUSE)),
                            )
                            for one in answers
                        ),
                        _REFUSE,
                    ),
                )
            ],
        )

    def _receivers(self, receivers: tuple[MemberName, ...], otherwise: Rule) -> str:
        """Accepts packets to these; what goes to somebody else is not theirs, and may be an answer."""
        if self._all <= set(receivers):
            return self._everybody
        return self._numbered.name(
            (receivers, otherwise),
            lambda name: _closed(name, f"{name}-", self._accept(receivers), [], otherwise),
        )


def _needed(chains: list[Chain], name: str, more: list[Chain]) -> list[Chain]:
    """The chains, and the one called `name` with those below it where something leads there."""
    return [*chains, *(more if any(rule.target == Goto(name) for chain in chains for rule in chain.rules) else [])]


def _transit(here: _Here) -> tuple[list[Rule], list[Chain]]:
    """Packets from the other side: their source is an alias, and they have been translated, or are answers to such."""
    top, branches = _by_range("source", here.far_ranges, here.transit, _TRANSLATED)
    return top, [Chain(chain.name, (*chain.rules, _REFUSE)) for chain in branches]


def _answers() -> list[Chain]:
    """What passes where only the other end may open: TCP segments, but for those that open a connection."""
    return [
        Chain(
            ANSWERS,
            (
                Rule(Match(protocol="tcp", tcp_flags=OPENING), Goto(REFUSED), note="only the server may open it"),
                Rule(Match(protocol="tcp"), Goto(SERVERS), note="goes on in what the server opened"),
                _REFUSE,
            ),
        )
    ]


# --- filter: errors, and the VM itself -------------------------------------------------------------------------------


def _errors_vm1(here: _Here) -> tuple[list[Rule], list[Chain]]:
    """From NAT VM2 towards customers; from a customer's networks about that customer's own flows.

    NAT VM2 gives each error that it passes on the source that its flow has, a server's alias.  A customer may forge
    that source, and then sends towards servers.
    """
    customers = [c for c in here.customers if any(host.name.realm == c.name for host in here.hosts)]
    through = [
        Rule(Match(source=str(network), destination=str(cidr)), Accept(), note="through NAT VM2")
        for customer in customers
        for cidr in customer.cidrs
        for network in here.far_ranges
    ]
    theirs = [about_own(customer.cidrs, customer.name) for customer in customers]
    return [*through, *(rule for rules, _ in theirs for rule in rules)], [c for _, chains in theirs for c in chains]


def _errors_vm2(here: _Here) -> tuple[list[Rule], list[Chain]]:
    """From NAT VM1 and the vRouter towards management; from management about its own flows."""
    management = here.config.management
    through = [
        Rule(Match(source=str(network), destination=str(cidr)), Accept(), note="through NAT VM1")
        for cidr in management.cidrs
        for network in here.far_ranges
    ]
    theirs, chains = about_own(management.cidrs, MANAGEMENT)
    return [*through, *from_all([here.config.layout.vrouter], "the vRouter"), *theirs], chains


def _said(here: _Here) -> list[Rule]:
    """The VM's own errors that may go out.

    A flow of the other side is translated before the VM judges its first packet, as is every flow that exists.  The
    first packet of a flow from this side is not yet, so its sender has to be a member.  Servers are told; hosts are
    not, since a rule for each would take a third of the room that metadata has: their traceroute, which begins a new
    flow with each packet, does not show NAT VM1, and their ping of one flow does.
    """
    translated = Rule(Match(protocol="icmp", ctstate=_TRANSLATED), Accept(), note="errors about what was translated")
    match here.side:
        case Side.NAT_VM1:
            return [translated]
        case Side.NAT_VM2:
            began = [
                Rule(
                    Match(destination=f"{server.address}/32", protocol="icmp", ctstate=("RELATED",)),
                    Accept(),
                    member=server.name,
                )
                for server in here.servers
            ]
            return [translated, *began]
        case _ as never:
            assert_never(never)


def _health_check(subnet: IPNetwork) -> Rule:
    """The balancer asks from the subnet that it shares with the VMs."""
    return Rule(
        Match(source=str(subnet), protocol="tcp", destination_port=Ports.one(HEALTH_PORT)),
        Accept(),
        note="the balancer asks",
    )


# --- chains ----------------------------------------------------------------------------------------------------------


def _by_range(
    side: str, ranges: list[IPNetwork], chain: str, ctstate: tuple[str, ...] = ()
) -> tuple[list[Rule], list[Chain]]:
    """Rules that lead packets from (or to) any of these ranges into a chain, as a tree where they are many."""
    matches = [
        Match(source=str(network), ctstate=ctstate) if side == "source" else Match(destination=str(network))
        for network in ranges
    ]
    top, branches = grow(RANGE, [Rule(match, Goto(chain)) for match in matches])
    return list(top), branches


def _closed(name: str, family: str, rules: list[Rule], first: list[Rule], otherwise: Rule = _REFUSE) -> list[Chain]:
    """One chain that begins with `first`, as a tree where its rules are many, in which nothing falls through.

    A goto leads back to nowhere: without its last rule a packet that a branch does not know would leave the POD's
    chains, and meet whatever other rules the image has.
    """
    top, branches = grow(family, rules)
    return [Chain(chain.name, (*chain.rules, otherwise)) for chain in (Chain(name, (*first, *top)), *branches)]
