"""The rules of a routed POD, read off the values: who may open what, what goes on in the middle, what is told.

Address plan: the article's networks with one alias a member (routed_pods.py).  What the rules do to packets is in
test_takeover.py.
"""

import random
from functools import cache
from itertools import product

import pytest
from netaddr import IPAddress, IPNetwork
from routed_pods import of_size, small
from test_agent import agent

from nat_pod.config.routed import RoutedConfig
from nat_pod.config.services import Ports
from nat_pod.names import NAT_VM1, NAT_VM2, SIDES
from nat_pod.plan.document import rule_document
from nat_pod.rules.guard import REFUSED
from nat_pod.rules.iptables import hooks, parse, render
from nat_pod.rules.netfilter import CHAIN_NAME_LIMIT, OPENING, Accept, Drop, Goto, Match, Ruleset
from nat_pod.rules.routed import compile_routed
from nat_pod.rules.tree import BRANCHES


def config_of(mapping: dict) -> RoutedConfig:
    return RoutedConfig.from_mapping(mapping, "dev")


def with_lists() -> dict:
    """The small POD with a second server; customer2 may call that one alone, customer3 nobody."""
    mapping = small()
    mapping["management"]["servers"]["patch"] = "10.0.0.101"
    mapping["customers"]["customer2"]["servers"] = ["patch"]
    mapping["customers"]["customer3"] = {"cidr": "10.0.3.0/24", "hosts": {"vm": "10.0.3.7"}, "servers": []}
    mapping["addresses"] |= {"management/patch": "198.18.0.3", "customer3/vm": "198.18.2.5"}
    return mapping


def nobody_calls_mgmt() -> dict:
    mapping = with_lists()
    mapping["customers"]["customer1"]["servers"] = ["patch"]
    return mapping


PODS = {
    "small": small,
    "lists": with_lists,
    "a server that nobody calls": nobody_calls_mgmt,
    "no servers": lambda: small() | {
        "management": {**small()["management"], "servers": {}},
        "addresses": {name: at for name, at in small()["addresses"].items() if not name.startswith("management")},
    },
    "full": lambda: of_size(700, servers=40),
    "without a standby": lambda: small() | {"standby": False},
}  # fmt: skip


@pytest.fixture(params=PODS)
def config(request) -> RoutedConfig:
    return config_of(PODS[request.param]())


@pytest.mark.parametrize("side", SIDES)
def test_the_whole_text_of_a_small_pod(golden, side):
    golden(f"routed-{side}.rules", render(compile_routed(config_of(with_lists()))[side]))


@pytest.mark.slow
def test_what_is_rendered_is_read_back_and_the_agent_takes_it(config):
    for side, rules in compile_routed(config).items():
        assert parse(render(rules), hooks(rules)) == rules
        assert agent.Document(rule_document(side, hooks(rules), render(rules))[0]).count() == rules.rule_count()


@pytest.mark.slow
def test_nothing_falls_through(config):
    """A goto leads back to nowhere: what a branch does not know must be refused by it, and be counted."""
    for rules in compile_routed(config).values():
        open_ended = [chain.name for chain in rules.filter.chains if chain.rules[-1].match != Match()]
        assert open_ended == ["NATPOD-OUTPUT"]
        assert [type(rule.target) for rule in rules.filter.chain(REFUSED).rules] == [Drop]


# --- who may ---------------------------------------------------------------------------------------------------------

SYN, SEGMENT, DATAGRAM, ECHO = "SYN", "segment", "datagram", "echo"


network = cache(IPNetwork)


def verdict(rules: Ruleset, source: str, destination: str, kind: str, *states: str) -> str:
    """What FORWARD makes of a packet, as netfilter reads the rules."""
    protocol = {SYN: "tcp", SEGMENT: "tcp", DATAGRAM: "udp", ECHO: "icmp"}[kind]

    def meets(match: Match) -> bool:
        assert match.in_interface is match.source_port is match.destination_port is match.icmp_type is None
        assert match.tcp_flags in (None, OPENING)
        return (
            (match.source is None or IPAddress(source) in network(match.source))
            and (match.destination is None or IPAddress(destination) in network(match.destination))
            and match.protocol in (None, protocol)
            and (match.tcp_flags is None or kind is SYN)
            and (not match.ctstate or bool(set(match.ctstate) & set(states)))
        )

    chain = rules.filter.hooked("FORWARD")
    while chain is not None:
        target = next((rule.target for rule in chain.rules if meets(rule.match)), None)
        if isinstance(target, Accept | Drop):
            return type(target).__name__.lower()
        chain = rules.filter.chain(target.chain) if isinstance(target, Goto) else None
    return "falls through"


def passes(rules: Ruleset, *packet: str) -> bool:
    return verdict(rules, *packet) == "accept"


def may(config: RoutedConfig, host, server) -> bool:
    servers = next(customer.servers for customer in config.customers if customer.name == host.realm)
    return servers is None or server.short in servers


def pairs(config: RoutedConfig) -> list:
    every = list(product(config.hosts, config.servers))
    return every if len(every) < 100 else random.Random(3).sample(every, 60)


@pytest.mark.slow
def test_a_host_opens_flows_to_the_servers_of_its_customer_s_list_and_to_no_other(config):
    vm1 = compile_routed(config)[NAT_VM1]
    for host, server in pairs(config):
        wire = (str(host.address), config.alias(server.name))
        allowed = may(config, host.name, server.name)
        for kind in (SYN, DATAGRAM, ECHO):
            assert passes(vm1, *wire, kind, "NEW") is allowed, (host, server, kind)


@pytest.mark.slow
def test_who_opens_a_connection_is_asked_even_in_a_flow_that_exists(config):
    """A segment without SYN has made an entry, and the server has answered it: a SYN in it is refused all the same."""
    rules = compile_routed(config)
    for host, server in pairs(config):
        allowed = may(config, host.name, server.name)
        wire1 = (str(host.address), config.alias(server.name))
        assert passes(rules[NAT_VM1], *wire1, SYN, "ESTABLISHED", "SNAT") is allowed
        for kind in (SEGMENT, DATAGRAM, ECHO):
            assert passes(rules[NAT_VM1], *wire1, kind, "ESTABLISHED", "SNAT")
        assert not passes(rules[NAT_VM1], *wire1, SYN, "INVALID"), "it is not translated"


@pytest.mark.slow
def test_a_segment_without_syn_passes_for_every_declared_pair_whichever_end_may_open(config):
    rules = compile_routed(config)
    for host, server in pairs(config):
        h, s = config.alias(host.name), config.alias(server.name)
        real_h, real_s = str(host.address), str(server.address)
        assert passes(rules[NAT_VM1], real_h, s, SEGMENT, "NEW")
        assert passes(rules[NAT_VM2], h, real_s, SEGMENT, "NEW", "DNAT")
        assert passes(rules[NAT_VM2], real_s, h, SEGMENT, "NEW")
        assert passes(rules[NAT_VM1], s, real_h, SEGMENT, "NEW", "DNAT")
        for side, wire in ((NAT_VM1, (real_h, s)), (NAT_VM2, (h, real_s))):
            assert not passes(rules[side], *wire, SEGMENT, "INVALID"), "a FIN or RST of nothing known, not translated"


@pytest.mark.slow
def test_every_server_opens_flows_to_every_host(config):
    rules = compile_routed(config)
    for host, server in pairs(config):
        for kind, more in product((SYN, SEGMENT, DATAGRAM, ECHO), (("NEW",), ("ESTABLISHED",))):
            assert passes(rules[NAT_VM2], str(server.address), config.alias(host.name), kind, *more)
            # In an entry that a segment of the host's has made it is an answer, and SNAT stands in DNAT's place.
            states = [*more, "DNAT" if more == ("NEW",) else "SNAT"]
            assert passes(rules[NAT_VM1], config.alias(server.name), str(host.address), kind, *states)


@pytest.mark.slow
def test_nat_vm2_takes_from_nat_vm1_what_somebody_may_open(config):
    vm2 = compile_routed(config)[NAT_VM2]
    for server in config.servers:
        called = any(may(config, host.name, server.name) for host in config.hosts)
        host = config.alias(config.hosts[0].name)
        for kind in (SYN, DATAGRAM, ECHO):
            assert passes(vm2, host, str(server.address), kind, "NEW", "DNAT") is called
        assert passes(vm2, host, str(server.address), SYN, "ESTABLISHED", "DNAT") is called


@pytest.mark.slow
def test_strangers_forged_aliases_and_untranslated_packets_are_refused(config):
    rules = compile_routed(config)
    stranger1, stranger2 = "10.0.1.99", "10.0.9.99"
    for host, server in pairs(config):
        h, s = config.alias(host.name), config.alias(server.name)
        real_h, real_s = str(host.address), str(server.address)
        refused = [
            (NAT_VM1, stranger1, s), (NAT_VM1, s, s), (NAT_VM1, h, s), (NAT_VM1, s, h), (NAT_VM1, s, real_h),
            (NAT_VM1, real_h, "198.18.3.194"), (NAT_VM1, real_h, real_s), (NAT_VM1, real_h, h),
            (NAT_VM2, stranger2, h), (NAT_VM2, h, h), (NAT_VM2, h, s), (NAT_VM2, h, real_s), (NAT_VM2, s, h),
            (NAT_VM2, real_s, real_h if real_h != real_s else "10.9.9.9"), (NAT_VM2, real_s, s),
        ]  # fmt: skip
        for side, source, destination in refused:
            for kind in (SYN, SEGMENT, DATAGRAM, ECHO):
                assert verdict(rules[side], source, destination, kind, "NEW") == "drop", (side, source, destination)


# --- what becomes of addresses ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_vm_translates_its_own_members_and_nothing_else(config):
    """By the agent's reading, which decides whose open flows end when a document changes."""
    documents = {
        side: agent.Document(rule_document(side, hooks(rules), render(rules))[0])
        for side, rules in compile_routed(config).items()
    }

    def sent(side, source: str, destination: str) -> tuple[str, str]:
        made = documents[side].translate(agent.number(source), agent.number(destination), set())
        if made is None:
            return source, destination  # it does not pass, and nothing translates it
        return agent.dotted(made[0]), agent.dotted(made[1])

    for host, server in pairs(config):
        h, s = config.alias(host.name), config.alias(server.name)
        real_h, real_s = str(host.address), str(server.address)
        assert sent(NAT_VM1, real_h, s) == (h, s)
        assert sent(NAT_VM2, h, s) == (h, real_s)
        assert sent(NAT_VM2, real_s, h) == (s, h)
        assert sent(NAT_VM1, s, h) == (s, real_h)
        # Not from anywhere else: what a customer sends to an alias of a host's, and management to a server's.
        for side, source, destination in ((NAT_VM1, real_h, h), (NAT_VM2, real_s, s), (NAT_VM1, "10.0.1.99", s)):
            assert sent(side, source, destination) == (source, destination)


# --- shape -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rules_grow_as_hosts_plus_servers_and_none_lies_deep():
    config = config_of(of_size(700, servers=40))
    rules = compile_routed(config)
    leaves = [r for table in rules[NAT_VM1].tables for chain in table.chains for r in chain.rules if r.member]
    assert len(leaves) == 3 * 700 + 2 * 40
    assert rules[NAT_VM1].rule_count() <= 1.3 * len(leaves)
    assert rules[NAT_VM2].rule_count() <= 8 * 40
    for table in (table for own in rules.values() for table in own.tables):
        chains = {chain.name: chain.rules for chain in table.chains}
        longest = {name: len(own) for name, own in chains.items() if name not in ("NATPOD-ERRORS", "NATPOD-OUTPUT")}
        assert max(longest.values()) <= BRANCHES + 3
        depth = dict.fromkeys(chains, 1)
        for _ in range(agent.DEPTH):
            for name, own in chains.items():
                depth[name] = 1 + max((depth[r.target.chain] for r in own if isinstance(r.target, Goto)), default=0)
        assert max(depth.values()) <= 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hosts", "servers"), [(40, 24), *(pytest.param(*case, marks=pytest.mark.sweep) for case in ((150, 24), (700, 40)))]
)
def test_trees_decide_as_flat_lists_do(monkeypatch, hosts, servers):
    config = config_of(of_size(hosts, servers=servers))
    trees = compile_routed(config)
    for module in ("routed", "tree"):
        monkeypatch.setattr(f"nat_pod.rules.{module}.grow", lambda _, rules: (tuple(rules), []))
    flat = compile_routed(config)
    known = [str(member.address) for member in config.members] + [str(alias) for alias in config.book.values()]
    chance = random.Random(2)
    tried = [*chance.sample(known, 30), *(str(IPNetwork(one).ip + 1) for one in chance.sample(known, 10))]
    for side in SIDES:
        assert len(trees[side].filter.chains) > len(flat[side].filter.chains)
        for source, destination in product(tried, tried):
            kind, states = chance.choice((SYN, SEGMENT, DATAGRAM)), chance.choice((["NEW"], ["NEW", "DNAT"]))
            assert verdict(trees[side], source, destination, kind, *states) == verdict(
                flat[side], source, destination, kind, *states
            )


def test_chain_names_fit():
    mapping = with_lists()
    mapping["customers"]["a23456789-123456789"] = {"cidr": "10.9.0.0/24", "hosts": {"vm": "10.9.0.9"}, "servers": []}
    mapping["addresses"]["a23456789-123456789/vm"] = "198.18.2.9"
    for rules in compile_routed(config_of(mapping)).values():
        assert all(len(chain.name) <= CHAIN_NAME_LIMIT for table in rules.tables for chain in table.chains)


def test_the_order_of_the_stack_file_does_not_matter():
    mapping = with_lists()
    turned = {
        **mapping,
        "customers": dict(reversed(mapping["customers"].items())),
        "addresses": dict(reversed(mapping["addresses"].items())),
    }
    assert compile_routed(config_of(turned)) == compile_routed(config_of(mapping))


# --- the VM itself ---------------------------------------------------------------------------------------------------


def let_in(rules: Ruleset, port: int) -> list[str | None]:
    return [
        r.match.source for r in rules.filter.chain("NATPOD-INPUT").rules if r.match.destination_port == Ports.one(port)
    ]


def test_ssh_comes_from_management_and_on_to_nat_vm1_and_the_balancer_asks_from_its_own_subnet():
    with_standby, alone = (compile_routed(config_of(small() | {"standby": one})) for one in (True, False))
    for rules in (with_standby, alone):
        assert let_in(rules[NAT_VM1], 22) == ["198.18.3.200/29"]
        assert let_in(rules[NAT_VM2], 22) == ["10.0.0.0/16"]
    assert let_in(with_standby[NAT_VM1], 8198) == ["198.18.3.192/29"]
    assert let_in(with_standby[NAT_VM2], 8198) == ["198.18.3.200/29"]
    assert let_in(alone[NAT_VM1], 8198) == let_in(alone[NAT_VM2], 8198) == []
