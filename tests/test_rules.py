"""The compiler, rule by rule.  Whole rule sets are in golden/; what they mean is in test_flows.py and test_trace.py.

Address plan: the article's (see test_trace.py).
"""

import random
from functools import cache

import pytest
from netaddr import IPAddress, IPNetwork

from bench.pods import full_pod, shuffle_slots
from nat_pod.config.model import PodConfig
from nat_pod.limits import METADATA_BYTES, METADATA_OVERHEAD_BYTES, connections
from nat_pod.plan.document import read_document
from nat_pod.plan.guest import metadata_bytes
from nat_pod.plan.planner import plan_pod
from nat_pod.rules.compiler import compile_rules, customer_bounds
from nat_pod.rules.iptables import hooks, parse, render, render_rule
from nat_pod.rules.netfilter import CHAIN_NAME_LIMIT, Drop, Goto, Match, Rule, Ruleset
from nat_pod.rules.tree import BRANCHES


def compiled(mapping: dict, **changes: object) -> dict[str, Ruleset]:
    return compile_rules(PodConfig.from_mapping({**mapping, **changes}, "dev"))


def lines(rules: Ruleset, chain: str) -> list[str]:
    return [line for line in render(rules).splitlines() if line.startswith(f"-A {chain} ")]


@pytest.mark.parametrize(("vm", "primary"), [("natVm1", "198.18.0.2"), ("natVm2", "198.18.0.130")])
def test_masquerade_hides_only_what_a_mapping_translated(dev, vm, primary):
    assert lines(compiled(dev, sourceNat="masquerade")[vm], "NATPOD-POST") == [
        "-A NATPOD-POST -m conntrack --ctstate DNAT "
        f'-m comment --comment "hide the source behind the primary address" -j SNAT --to-source {primary}'
    ]


def test_static_gives_each_host_its_own_address_on_both_vms(dev):
    rules = compiled(dev, sourceNat="static")
    assert lines(rules["natVm1"], "NATPOD-POST") == [
        "-A NATPOD-POST -s 198.18.0.128/27 -j NETMAP --to 198.18.0.0/27",
        '-A NATPOD-POST -s 10.0.0.0/25 -m comment --comment "customer1" -g NATPOD-H-customer1',
        '-A NATPOD-POST -s 10.0.0.128/25 -m comment --comment "customer1" -g NATPOD-H-customer1',
        '-A NATPOD-POST -s 10.0.1.0/25 -m comment --comment "customer2" -g NATPOD-H-customer2',
        '-A NATPOD-POST -s 10.0.1.128/25 -m comment --comment "customer2" -g NATPOD-H-customer2',
    ]
    assert lines(rules["natVm1"], "NATPOD-H-customer1") == [
        '-A NATPOD-H-customer1 -s 10.0.0.100/32 -m comment --comment "customer1/vm1" -j SNAT --to-source 198.18.0.2',
        '-A NATPOD-H-customer1 -s 10.0.0.130/32 -m comment --comment "customer1/vm2" -j SNAT --to-source 198.18.0.34',
    ]
    assert lines(rules["natVm2"], "NATPOD-POST") == [
        "-A NATPOD-POST -s 198.18.0.0/27 -j NETMAP --to 198.18.0.128/27",
        "-A NATPOD-POST -s 198.18.0.32/27 -j NETMAP --to 198.18.0.64/27",
        '-A NATPOD-POST -s 10.0.0.100/32 -m comment --comment "management/mgmt" -j SNAT --to-source 198.18.0.130',
    ]


def test_a_server_list_gets_a_chain_of_its_own_and_the_others_share_one(dev):
    dev["management"]["servers"]["patch"] = "10.0.0.101"
    dev["addresses"]["management/patch"] = {"natVm1": "198.18.0.4", "natVm2": "198.18.0.132"}
    dev["customers"]["customer2"]["servers"] = ["patch"]
    vm1 = compiled(dev)["natVm1"]
    assert lines(vm1, "NATPOD-C-customer1")[-1].endswith("-g NATPOD-SERVERS")
    assert lines(vm1, "NATPOD-C-customer2")[-1].endswith("-g NATPOD-S-customer2")
    assert len(lines(vm1, "NATPOD-SERVERS")) == 2
    assert lines(vm1, "NATPOD-S-customer2") == [
        '-A NATPOD-S-customer2 -d 198.18.0.4/32 -m comment --comment "management/patch" '
        "-j DNAT --to-destination 198.18.0.132"
    ]


def full(policy: str, customers: int = 10) -> PodConfig:
    """A full /21 as it is after years: hosts at random addresses of each customer's /16, in no order of slots."""
    dice = random.Random(1)
    pod = full_pod(source_nat=policy, customers=customers, scattered=dice)
    shuffle_slots(pod, dice)
    return PodConfig.from_mapping(pod, "dev")


@pytest.mark.parametrize("policy", ["masquerade", "static"])
def test_rules_grow_as_hosts_plus_servers_and_not_as_their_product(policy):
    """8 servers and 688 hosts are 5,504 pairs; the article writes a line for each on both VMs."""
    rules = compile_rules(full(policy))
    leaves = [rule for chain in rules["natVm1"].nat.chains for rule in chain.rules if rule.member]
    per_host = 2 if policy == "masquerade" else 3
    assert len(leaves) == per_host * 688 + 8
    bounds = [rule for chain in rules["natVm1"].nat.chains for rule in chain.rules if rule.match.bound]
    assert len(bounds) == 2 * 10, "a customer has two"
    assert rules["natVm1"].rule_count() - len(bounds) <= 1.2 * len(leaves)
    assert rules["natVm2"].rule_count() <= 8 * 3 + 100


MOST = 1_048_576 // 4
TO_ONE = 64_512 // 4


@pytest.mark.parametrize(
    ("policy", "shape", "servers", "bounds"),
    [
        ("static", "VM.Standard2.24", 8, {False: MOST}),
        ("static", {"shape": "VM.Standard.E4.Flex", "ocpus": 24, "memoryGbs": 24}, 8, {False: MOST}),
        ("masquerade", "VM.Standard2.24", 16, {True: TO_ONE}),
        ("masquerade", "VM.Standard2.24", 17, {False: MOST, True: TO_ONE}),
    ],
)
def test_a_customer_s_bound_is_a_quarter_of_the_table_and_of_a_shared_address_s_ports(policy, shape, servers, bounds):
    pod = full_pod(source_nat=policy, servers=servers, hosts=10, shape="VM.Standard2.24")
    pod["natVm"]["shape"] = shape
    config = PodConfig.from_mapping(pod, "dev")
    assert customer_bounds(config, config.customers[0]) == bounds
    chain = lines(compile_rules(config)["natVm1"], "NATPOD-C-customer0")
    assert [line for line in chain if "--connlimit-above" in line] == chain[: len(bounds)]
    assert all(f"--connlimit-above {most // 64} " in line for line, most in zip(chain, bounds.values(), strict=False))
    assert all("--rcheck --seconds 60 " in line for line in chain[len(bounds) : 2 * len(bounds)])


def test_a_small_vm_s_table_is_what_its_memory_allows():
    assert (connections(1), connections(7), connections(8), connections(None)) == (131_072, 917_504, 1 << 20, 1 << 20)


@pytest.mark.parametrize("policy", ["masquerade", "static"])
@pytest.mark.parametrize("customers", [1, *(pytest.param(many, marks=pytest.mark.sweep) for many in (10, 20))])
def test_a_packet_through_a_full_pod_meets_few_rules(policy, customers):
    """What a new flow costs, without a clock: no list is long, and none lies deep."""
    for rules in compile_rules(full(policy, customers)).values():
        chains = {chain.name: chain.rules for chain in rules.nat.chains}
        assert (
            max(map(len, chains.values())) <= BRANCHES + 3
        )  # a customer's has its bound on top, and NATPOD-PRE has the transit rules on top
        depth = dict.fromkeys(chains, 1)
        for name in reversed(chains):
            below = [depth[rule.target.chain] for rule in chains[name] if isinstance(rule.target, Goto)]
            depth[name] += max(below, default=0)
        assert max(depth.values()) <= 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "customers"), [("static", 1), pytest.param("masquerade", 20, marks=pytest.mark.sweep)]
)
def test_trees_decide_each_flow_of_a_full_pod_as_the_flat_lists_do(policy, customers, monkeypatch):
    config = full(policy, customers)
    trees = compile_rules(config)
    for module in ("compiler", "tree"):
        monkeypatch.setattr(f"nat_pod.rules.{module}.grow", lambda _, rules: (tuple(rules), []))
    flat = compile_rules(config)
    for vm in ("natVm1", "natVm2"):
        assert len(trees[vm].nat.chains) > len(flat[vm].nat.chains)
        addresses = [str(member.address) for member in config.members]
        addresses += [address for slot in config.book.values() for address in config.layout.addresses(slot)]
        strangers = [str(IPAddress(address) + 1) for address in addresses]
        chance = random.Random(2)
        tried = [*chance.sample(addresses, 100), *chance.sample(strangers, 50)]
        others = [*chance.sample(addresses, 3), chance.choice(strangers)]
        for builtin in ("PREROUTING", "POSTROUTING"):
            for address in tried:
                for other in others:
                    for flow in ((address, other), (other, address)):
                        assert decided(trees[vm], builtin, *flow) == decided(flat[vm], builtin, *flow)


@cache
def span(network: str) -> tuple[int, int]:
    return IPNetwork(network).first, IPNetwork(network).last


def decided(rules: Ruleset, builtin: str, source: str, destination: str) -> Rule | None:
    """The rule that decides a new flow's packet, read off the values."""
    chain = rules.nat.hooked(builtin)
    ends = number(source), number(destination)
    while chain is not None:
        entered, chain = chain, None
        for rule in entered.rules:
            wanted = (rule.match.source, rule.match.destination)
            if all(net is None or span(net)[0] <= end <= span(net)[1] for net, end in zip(wanted, ends, strict=True)):
                if not isinstance(rule.target, Goto):
                    return rule
                chain = rules.nat.chain(rule.target.chain)
                break
    return None


@cache
def number(address: str) -> int:
    return int(IPAddress(address))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["masquerade", "static"])
def test_a_full_pod_fits_the_metadata_of_its_vms(policy):
    for vm in plan_pod(full(policy), "dev").vms:
        left = METADATA_BYTES - METADATA_OVERHEAD_BYTES - metadata_bytes(vm.metadata)
        assert left >= 2000
        assert read_document(vm.metadata["nat-pod-rules"]).rules == render(vm.rules)


@pytest.mark.parametrize("policy", ["masquerade", "static"])
def test_what_is_rendered_is_read_back_as_the_same_rules(dev, ten, policy):
    for mapping in (dev, ten):
        for rules in compiled(mapping, sourceNat=policy).values():
            assert parse(render(rules), hooks(rules)) == rules


@pytest.mark.parametrize(
    ("said", "comment"),
    [
        ({}, ""),
        ({"member": "customer1/vm1"}, '-m comment --comment "customer1/vm1" '),
        ({"note": "ssh through NAT VM2"}, '-m comment --comment "ssh through NAT VM2" '),
        ({"note": "customer1"}, '-m comment --comment "customer1" '),
    ],
)
def test_whom_a_rule_is_for_and_what_is_one_comment_and_comes_back_in_its_own_field(dev, said, comment):
    rules = compiled(dev)["natVm1"]
    rule = Rule(Match(), Drop(), **said)
    line = render_rule("NATPOD-PRE", rule)
    assert line == f"-A NATPOD-PRE {comment}-j DROP"
    text = render(rules)
    at = text.index("-A NATPOD-PRE")
    assert parse(text[:at] + line + "\n" + text[at:], hooks(rules)).nat.chain("NATPOD-PRE").rules[0] == rule


@pytest.mark.parametrize("said", [{"member": "vm1"}, {"member": "a/b/c"}, {"note": "customer1/vm1"}, {"note": 'a "b"'}])
def test_a_member_without_its_realm_and_a_note_that_would_be_read_as_a_member_are_not_written(said):
    with pytest.raises(ValueError, match="is not"):
        render_rule("NATPOD-PRE", Rule(Match(), Drop(), **said))


def test_a_rule_is_for_a_member_or_has_a_note():
    with pytest.raises(ValueError, match="a rule for customer1/vm1 cannot have the note 'x', too"):
        Rule(Match(), Drop(), member="customer1/vm1", note="x")


def test_chain_names_fit_and_each_goto_has_its_chain(dev, ten):
    dev["customers"]["a23456789-123456789"] = {"cidr": "10.9.0.0/24", "hosts": {"vm": "10.9.0.9"}}
    dev["addresses"]["a23456789-123456789/vm"] = {"natVm1": "198.18.0.9", "natVm2": "198.18.0.137"}
    for mapping in (dev, ten):
        for rules in compiled(mapping, sourceNat="static").values():
            for table in rules.tables:
                names = {chain.name for chain in table.chains}
                assert all(len(name) <= CHAIN_NAME_LIMIT for name in names)
                jumps = {r.target.chain for c in table.chains for r in c.rules if isinstance(r.target, Goto)}
                assert jumps <= names


def test_the_order_of_the_stack_file_does_not_matter(dev):
    turned = {
        **dev,
        "customers": dict(reversed(dev["customers"].items())),
        "addresses": dict(reversed(dev["addresses"].items())),
    }
    assert compiled(turned) == compiled(dev)


def test_the_guard_is_the_last_word_in_both_directions(dev):
    for rules in compiled(dev).values():
        for chain in ("NATPOD-FORWARD", "NATPOD-INPUT"):
            assert lines(rules, chain)[-1] == (f'-A {chain} -m comment --comment "no mapping translated it" -j DROP')


@pytest.mark.parametrize(
    "broken",
    [
        "-A NATPOD-PRE -j REDIRECT",
        "-A NATPOD-PRE -j MASQUERADE",
        "-A NATPOD-PRE -p tcp -m multiport --dports 1,2 -j DNAT --to-destination 1.2.3.4",
        "-A NATPOD-PRE -j DNAT",
        "-A NATPOD-PRE -j ACCEPT -j DROP",
        "-A NATPOD-PRE -d 1.2.3.4/32 -d 1.2.3.5/32 -j DROP",
        "-A NATPOD-PRE -g NATPOD-NOWHERE",
        "-A PREROUTING -j NATPOD-PRE",
        "-I NATPOD-PRE -j ACCEPT",
        '-A NATPOD-PRE -m comment --comment "customer1/vm1 and more" -j DROP',
        '-A NATPOD-PRE -m comment --comment "a/b/c" -j DROP',
        "-A NATPOD-PRE -m comment --comment 'five $' -j DROP",
        ":INPUT ACCEPT [0:0]",
        "*mangle",
        "nonsense",
    ],
)
def test_text_that_the_compiler_does_not_write_is_refused_by_the_reader(dev, broken):
    rules = compiled(dev)["natVm1"]
    text = render(rules)
    at = text.index("-A NATPOD-PRE")
    assert parse(text, hooks(rules)) == rules
    with pytest.raises(ValueError, match=r"line \d+|has no chain"):
        parse(text[:at] + broken + "\n" + text[at:], hooks(rules))
