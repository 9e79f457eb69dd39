"""The compiler, rule by rule.  Whole rule sets are in golden/; what they mean is in test_flows.py and test_trace.py.

Address plan: the article's (see test_trace.py).
"""

import pytest

from nat_pod.config import PodConfig
from nat_pod.iptables import hooks, parse, render
from nat_pod.netfilter import CHAIN_NAME_LIMIT, Goto, Ruleset
from nat_pod.rules import compile_rules


def compiled(mapping: dict, **changes: object) -> dict[str, Ruleset]:
    return compile_rules(PodConfig.from_mapping({**mapping, **changes}, "dev"))


def lines(rules: Ruleset, chain: str) -> list[str]:
    return [line for line in render(rules).splitlines() if line.startswith(f"-A {chain} ")]


def test_masquerade_hides_only_what_a_mapping_translated(dev):
    rules = compiled(dev, sourceNat="masquerade")
    for vm in ("natVm1", "natVm2"):
        assert lines(rules[vm], "NATPOD-POST") == [
            "-A NATPOD-POST -m conntrack --ctstate DNAT "
            '-m comment --comment "hide the source behind the primary address" -j MASQUERADE'
        ]


def test_static_gives_each_host_its_own_address_on_both_vms(dev):
    rules = compiled(dev, sourceNat="static")
    assert lines(rules["natVm1"], "NATPOD-POST") == [
        "-A NATPOD-POST -s 198.18.0.128/27 -j NETMAP --to 198.18.0.0/27",
        '-A NATPOD-POST -s 10.0.0.0/24 -m comment --comment "customer1" -g NATPOD-H-customer1',
        '-A NATPOD-POST -s 10.0.1.0/24 -m comment --comment "customer2" -g NATPOD-H-customer2',
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
    assert lines(vm1, "NATPOD-C-customer1")[0].endswith("-g NATPOD-SERVERS")
    assert lines(vm1, "NATPOD-C-customer2")[0].endswith("-g NATPOD-S-customer2")
    assert len(lines(vm1, "NATPOD-SERVERS")) == 2
    assert lines(vm1, "NATPOD-S-customer2") == [
        '-A NATPOD-S-customer2 -d 198.18.0.4/32 -m comment --comment "management/patch" '
        "-j DNAT --to-destination 198.18.0.132"
    ]


@pytest.mark.parametrize("policy", ["masquerade", "static"])
def test_rules_grow_as_hosts_plus_servers_and_not_as_their_product(dev, policy):
    """8 servers and 240 hosts are 1,920 pairs; the article writes a line for each on both VMs."""
    dev.pop("subnets")
    dev["management"]["vrouter"] = "198.18.3.250"
    dev["management"]["servers"] = {f"s{number}": f"10.0.9.{number}" for number in range(10, 18)}
    dev["customers"] = {"big": {"cidr": "10.0.1.0/24", "hosts": {f"h{n}": f"10.0.1.{n}" for n in range(10, 250)}}}
    members = [f"management/s{number}" for number in range(10, 18)] + [f"big/h{n}" for n in range(10, 250)]
    dev["addresses"] = {
        member: {
            "natVm1": f"198.18.{offset // 256}.{offset % 256}",
            "natVm2": f"198.18.{2 + offset // 256}.{offset % 256}",
        }
        for member, offset in zip(members, (o for o in range(1024) if 2 <= o % 32 <= 30), strict=False)
    }
    rules = compiled(dev, sourceNat=policy)
    per_host = 2 if policy == "masquerade" else 3
    assert rules["natVm1"].rule_count() <= per_host * 240 + 8 + 50
    assert rules["natVm2"].rule_count() <= 3 * 8 + 50


@pytest.mark.parametrize("policy", ["masquerade", "static"])
def test_what_is_rendered_is_read_back_as_the_same_rules(dev, ten, policy):
    for mapping in (dev, ten):
        for rules in compiled(mapping, sourceNat=policy).values():
            assert parse(render(rules), hooks(rules)) == rules


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
        "-A NATPOD-PRE -p tcp -m multiport --dports 1,2 -j DNAT --to-destination 1.2.3.4",
        "-A NATPOD-PRE -j DNAT",
        "-A NATPOD-PRE -j ACCEPT -j DROP",
        "-A NATPOD-PRE -d 1.2.3.4/32 -d 1.2.3.5/32 -j DROP",
        "-A NATPOD-PRE -g NATPOD-NOWHERE",
        "-A PREROUTING -j NATPOD-PRE",
        "-I NATPOD-PRE -j ACCEPT",
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
