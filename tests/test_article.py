"""The article's own lines and cases: what its iptables lines are here, and the way of its six packets.

The article's rules and hops are literal, here and in data/article_cases.json.
"""

import json

import pytest
from conftest import REPOSITORY, edit

CASES = json.loads((REPOSITORY / "tests" / "data" / "article_cases.json").read_text(encoding="utf-8"))


# The article, section 4.2, word for word.
ARTICLE_RULES = {
    "natVm1": {
        "iptables -t nat -A PREROUTING -s 10.0.0.100 -d 198.18.0.2 -j DNAT --to-destination 198.18.0.130",
        "iptables -t nat -A PREROUTING -s 10.0.1.100 -d 198.18.0.2 -j DNAT --to-destination 198.18.0.130",
        "iptables -t nat -A PREROUTING -s 10.0.0.130 -d 198.18.0.2 -j DNAT --to-destination 198.18.0.130",
        "iptables -t nat -A PREROUTING -s 198.18.0.130 -d 198.18.0.2 -j DNAT --to-destination 10.0.0.100",
        "iptables -t nat -A PREROUTING -s 198.18.0.130 -d 198.18.0.3 -j DNAT --to-destination 10.0.1.100",
        "iptables -t nat -A PREROUTING -s 198.18.0.130 -d 198.18.0.34 -j DNAT --to-destination 10.0.0.130",
        "iptables -t nat -A POSTROUTING -o ens3 -j MASQUERADE",
    },
    "natVm2": {
        "iptables -t nat -A PREROUTING -s 198.18.0.2 -d 198.18.0.130 -j DNAT --to-destination 10.0.0.100",
        "iptables -t nat -A PREROUTING -s 10.0.0.100 -d 198.18.0.130 -j DNAT --to-destination 198.18.0.2",
        "iptables -t nat -A PREROUTING -s 10.0.0.100 -d 198.18.0.131 -j DNAT --to-destination 198.18.0.3",
        "iptables -t nat -A PREROUTING -s 10.0.0.100 -d 198.18.0.66 -j DNAT --to-destination 198.18.0.34",
        "iptables -t nat -A POSTROUTING -o ens3 -j MASQUERADE",
    },
}


@pytest.mark.parametrize(("vm", "count"), [("natVm1", 7), ("natVm2", 5)])
def test_the_article_lines_are_the_articles(run, vm, count):
    status, out, _ = run("rules", "dev", "--vm", vm, "--article")
    lines = out.splitlines()
    assert (status, len(lines)) == (0, count)
    assert set(lines) == ARTICLE_RULES[vm]


def hops(trace: dict) -> list[dict]:
    return [{key: hop[key] for key in ("at", "src", "dst")} for hop in trace["request"] + trace["reply"]]


def member(name: str) -> str:
    return f"management/{name}" if name == "mgmt" else name


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case {case['case']}")
@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_the_six_cases_go_the_way_of_the_article(run, case, protocol):
    status, out, _ = run("trace", "dev", member(case["from"]), member(case["to"]), "--protocol", protocol, "--json")
    traced = json.loads(out)
    assert (status, traced["disposition"]) == (0, "delivered")
    assert hops(traced) == case["hops"]
    assert len(traced["request"]) == len(traced["reply"]) == 3


def test_there_are_six_cases():
    assert [case["case"] for case in CASES] == [1, 2, 3, 4, 5, 6]


# Each host keeps its own pair: the server sees the very address that it would use to call the host back.
STATIC = {
    ("customer1/vm1", "management/mgmt"): [
        ("customer1/vm1 -> nat_vm1", "10.0.0.100", "198.18.0.2"),
        ("nat_vm1 -> nat_vm2", "198.18.0.2", "198.18.0.130"),
        ("nat_vm2 -> mgmt", "198.18.0.130", "10.0.0.100"),
        ("mgmt -> nat_vm2", "10.0.0.100", "198.18.0.130"),
        ("nat_vm2 -> nat_vm1", "198.18.0.130", "198.18.0.2"),
        ("nat_vm1 -> customer1/vm1", "198.18.0.2", "10.0.0.100"),
    ],
    ("customer2/vm2", "management/mgmt"): [
        ("customer2/vm2 -> nat_vm1", "10.0.1.100", "198.18.0.2"),
        ("nat_vm1 -> nat_vm2", "198.18.0.3", "198.18.0.130"),
        ("nat_vm2 -> mgmt", "198.18.0.131", "10.0.0.100"),
        ("mgmt -> nat_vm2", "10.0.0.100", "198.18.0.131"),
        ("nat_vm2 -> nat_vm1", "198.18.0.130", "198.18.0.3"),
        ("nat_vm1 -> customer2/vm2", "198.18.0.2", "10.0.1.100"),
    ],
    ("customer1/vm2", "management/mgmt"): [
        ("customer1/vm2 -> nat_vm1", "10.0.0.130", "198.18.0.2"),
        ("nat_vm1 -> nat_vm2", "198.18.0.34", "198.18.0.130"),
        ("nat_vm2 -> mgmt", "198.18.0.66", "10.0.0.100"),
        ("mgmt -> nat_vm2", "10.0.0.100", "198.18.0.66"),
        ("nat_vm2 -> nat_vm1", "198.18.0.130", "198.18.0.34"),
        ("nat_vm1 -> customer1/vm2", "198.18.0.2", "10.0.0.130"),
    ],
    ("management/mgmt", "customer2/vm2"): [
        ("mgmt -> nat_vm2", "10.0.0.100", "198.18.0.131"),
        ("nat_vm2 -> nat_vm1", "198.18.0.130", "198.18.0.3"),
        ("nat_vm1 -> customer2/vm2", "198.18.0.2", "10.0.1.100"),
        ("customer2/vm2 -> nat_vm1", "10.0.1.100", "198.18.0.2"),
        ("nat_vm1 -> nat_vm2", "198.18.0.3", "198.18.0.130"),
        ("nat_vm2 -> mgmt", "198.18.0.131", "10.0.0.100"),
    ],
}


@pytest.mark.parametrize(("sender", "receiver"), STATIC, ids=" to ".join)
def test_with_the_policy_static_each_host_keeps_its_own_address(run, project, sender, receiver):
    edit(project, ("sourceNat: masquerade", "sourceNat: static"))
    status, out, _ = run("trace", "dev", sender, receiver, "--json")
    assert status == 0
    expected = [{"at": at, "src": src, "dst": dst} for at, src, dst in STATIC[sender, receiver]]
    assert hops(json.loads(out)) == expected
