"""`trace`: a packet that dies, names that are nobody's, and the command line around them.

Whole outputs are test_cli.py's; every packet is test_proof.py's.
"""

import json
from dataclasses import replace

import pytest

from nat_pod.config.model import PodConfig
from nat_pod.names import Side
from nat_pod.rules.compiler import compile_rules
from nat_pod.rules.netfilter import Accept, Match, Rule, Ruleset

DEAD = {
    "a host that is in no book to a server": (
        ("customer1/10.0.0.77", "management/mgmt"),
        ("no-mapping", "nat_vm1 drops 10.0.0.77 > 198.18.0.2 in INPUT: no mapping translated it"),
    ),
    "a management host that is in no book to a host": (
        ("management/10.0.0.77", "customer1/vm1"),
        ("no-mapping", "nat_vm2 drops 10.0.0.77 > 198.18.0.130 in INPUT: no mapping translated it"),
    ),
    "one customer to another": (
        ("customer1/vm1", "customer2/vm2"),
        ("no-mapping", "nat_vm1 drops 10.0.0.100 > 198.18.0.3 in FORWARD: no mapping translated it"),
    ),
    "one customer to another who shares a server's slot": (
        ("customer2/vm2", "customer1/vm1"),
        ("wrong-machine", "mgmt has that address too and answers, not customer1/vm1"),
    ),
    "a customer to an address that nobody has": (
        ("customer1/vm1", "198.18.0.9"),
        ("no-private-ip", "no VNIC in VCN pod has the private IP 198.18.0.9"),
    ),
    "a customer to the other customer's real address": (
        ("customer1/vm1", "10.0.1.100"),
        ("no-route", "subnet customer1 has no route rule for 10.0.1.100"),
    ),
    "management to a host that is in no book": (
        ("management/mgmt", "customer1/10.0.0.77"),
        (
            "no-mapping",
            "customer1/10.0.0.77 has no slot, so the other side has no address for it; "
            "name it in the stack file and run: python -m nat_pod allocate dev",
        ),
    ),
}


@pytest.mark.parametrize("name", DEAD)
def test_a_packet_that_dies_says_where_and_why_and_ends_with_1(run, name):
    (sender, receiver), (disposition, why) = DEAD[name]
    status, out, err = run("trace", "dev", sender, receiver)
    assert (status, err) == (1, "")
    said, meaning = (" ".join(part.split()) for part in out.split("=> ")[1].rsplit("(", 1))
    assert said == f"{disposition}: {why}"
    assert meaning
    status, out, err = run("trace", "dev", sender, receiver, "--json")
    assert (status, err) == (1, "")
    traced = json.loads(out)
    assert (traced["disposition"], traced["why"], traced["reply"]) == (disposition, why, [])


def test_a_packet_that_dies_shows_the_steps_of_the_machine_where_it_does(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("trace", "dev", "customer1/vm1", "customer2/vm2")
    assert out == (
        "customer1/vm1 (10.0.0.100) to customer2/vm2: icmp\n"
        "  request\n"
        "    1. customer1/vm1 -> nat_vm1: 10.0.0.100 > 198.18.0.3\n"
        "    at nat_vm1: 10.0.0.100 > 198.18.0.3\n"
        "    2. security ingress      VNIC natVm1-vnic-1: 10.0.0.0/24 stateless (from\n"
        "                               customer1)\n"
        "    3. destination check     VNIC natVm1-vnic-1: skipped\n"
        "    4. conntrack             new flow\n"
        "    5. PREROUTING            NATPOD-PRE > NATPOD-C-customer1 > NATPOD-SERVERS\n"
        "                             no rule matches\n"
        "    6. routing decision      198.18.0.0/27 by VNIC natVm1-vnic-1\n"
        "    7. FORWARD               NATPOD-FORWARD\n"
        "                             DROPPED: nat_vm1 drops 10.0.0.100 > 198.18.0.3 in\n"
        "                               FORWARD: no mapping translated it\n"
        "=> no-mapping: nat_vm1 drops 10.0.0.100 > 198.18.0.3 in FORWARD: no mapping\n"
        "   translated it\n"
        "   (a NAT VM's guard drops it: no rule translates this source and destination)\n"
    )


def test_an_address_instead_of_a_member_is_traced_to_whoever_answers(run):
    status, out, _ = run("trace", "dev", "management/mgmt", "198.18.0.131", "--json")
    assert (status, json.loads(out)["request"][-1]["at"]) == (0, "nat_vm1 -> customer2/vm2")


MEMBERS = "management/mgmt, customer1/vm1, customer1/vm2, customer2/vm2"


@pytest.mark.parametrize(
    ("sender", "receiver", "sentence"),
    [
        ("mgmt", "customer1/vm1", "mgmt: is not a member; did you mean management/mgmt?"),
        ("customer1/vm1", "vm2", "vm2: is not a member; did you mean customer1/vm2 or customer2/vm2?"),
        (
            "customer3/vm1",
            "management/mgmt",
            f"customer3/vm1: is neither a member ({MEMBERS}) nor REALM/ADDRESS with a realm of this POD, "
            "e.g. customer1/10.0.0.77",
        ),
        (
            "customer1/vm1",
            "::1",
            f"::1: is neither a member ({MEMBERS}) nor REALM/ADDRESS with a realm of this POD, "
            "e.g. customer1/10.0.0.77",
        ),
        (
            "customer1/::1",
            "management/mgmt",
            f"customer1/::1: is neither a member ({MEMBERS}) nor REALM/ADDRESS with a realm of this POD, "
            "e.g. customer1/10.0.0.77",
        ),
        ("customer1/10.0.0.100", "management/mgmt", "customer1/10.0.0.100: that is customer1/vm1; use its name"),
        (
            "customer1/10.0.9.9",
            "management/mgmt",
            "customer1/10.0.9.9: 10.0.9.9 is outside 10.0.0.0/24, the network of customer1",
        ),
    ],
)
def test_a_name_that_is_nobodys_is_answered_with_those_that_are(run, sender, receiver, sentence):
    assert run("trace", "dev", sender, receiver) == (1, "", f"{sentence}\n")


@pytest.mark.parametrize("port", ["1", "65535"])
def test_the_first_and_the_last_port_are_ports(run, port):
    assert run("trace", "dev", "customer1/vm1", "management/mgmt", "--protocol", "tcp", "--port", port)[0] == 0


@pytest.mark.parametrize("arguments", [("customer1/vm1", "management/mgmt"), ("--all",)])
def test_a_rule_that_the_tracer_does_not_know_ends_with_a_sentence(run, monkeypatch, arguments):
    """`-i ens3` could be any VNIC: passing over it in silence would say that a packet dies which gets through."""
    compiled = compile_rules

    def compile_another(config: PodConfig) -> dict[Side, Ruleset]:
        made = compiled(config)
        guard = made[Side.NAT_VM1].filter
        ens3 = Rule(Match(in_interface="ens3"), Accept())
        chains = tuple(replace(chain, rules=(ens3, *chain.rules)) for chain in guard.chains)
        return {**made, Side.NAT_VM1: replace(made[Side.NAT_VM1], filter=replace(guard, chains=chains))}

    assert run("trace", "dev", *arguments)[0] == 0
    monkeypatch.setattr("nat_pod.plan.planner.compile_rules", compile_another)
    assert run("trace", "dev", *arguments) == (
        1,
        "",
        "-A NATPOD-FORWARD -i ens3 -j ACCEPT: the tracer cannot follow this rule and predicts nothing; "
        "it knows no interface but lo\n",
    )


def test_a_nat_vm_that_is_down_stops_the_pod(run):
    status, said, _ = run("trace", "dev", "customer1/vm1", "management/mgmt", "--down", "natVm2")
    assert status == 1
    assert said.endswith(
        "=> not-forwarding: nat_vm2 is down\n"
        "   (it reaches a machine that is not its destination and does not forward)\n"
    )


def test_only_a_nat_vm_of_the_pod_can_be_down(run):
    said = "--down natVm3: is not a NAT VM of this POD (natVm1, natVm2)\n"
    assert run("trace", "dev", "customer1/vm1", "management/mgmt", "--down", "natVm3") == (1, "", said)


def test_all_is_a_question_about_a_pod_that_is_up(run):
    status, _, said = run("trace", "dev", "--all", "--down", "natVm1")
    assert status == 2
    assert (
        "--all traces every packet: it takes no FROM, no TO, no --steps, no --down, no --protocol and no --port" in said
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("customer1/vm1", "management/mgmt", "--port", "22"), "a ping has no port"),
        (("customer1/vm1", "management/mgmt", "--port", "22", "--protocol", "icmp"), "a ping has no port"),
        (("--all", "--protocol", "tcp"), "it takes no FROM"),
        (("--all", "--port", "22"), "it takes no FROM"),
    ],
)
def test_a_port_that_would_not_be_looked_at_is_refused(run, words, why):
    """A ping that arrives says nothing of port 22."""
    status, _, complaint = run("trace", "dev", *words)
    assert (status, why in " ".join(complaint.split())) == (2, True)
