"""What is held open while NAT VMs fail, in which order they fail, and what is said of it: no packets here."""

from collections import Counter
from dataclasses import replace

import pytest
from conftest import REPOSITORY

from nat_pod.config.stack_file import read_stack
from nat_pod.lab.failover import Ended, Ending, Held, Outcome, ending_flows, held_flows, outcomes_text, steps
from nat_pod.lab.wire.held_flow import Kind
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod


@pytest.fixture(scope="module")
def plan() -> PodPlan:
    return plan_pod(read_stack(REPOSITORY, "routed").checked(), "routed")


def test_flows_of_every_kind_are_held_in_both_directions_and_where_one_may_open(plan):
    held = held_flows(plan, tcp=500, udp=200, unheard=10)
    assert [one.number for one in held] == list(range(710))
    counted = Counter((one.protocol, one.goes_on) for one in held)
    assert counted == {("tcp", True): 500, ("udp", True): 200, ("udp", False): 10}
    kinds = Counter((one.kind, one.by_server) for one in held if one.protocol == "tcp")
    assert kinds == {
        (Kind.ECHO, False): 102,
        (Kind.PUSH, False): 101,
        (Kind.PULL, False): 99,
        (Kind.IDLE, False): 99,
        (Kind.IDLE, True): 99,
    }
    # linden may call dns and mgmt only; every server may call every host.
    one_way = [one for one in held if one.one_way]
    assert len(one_way) > 200
    assert {str(one.flow.receiver).partition("/")[0] for one in one_way} == {"linden"}
    assert {one.flow.sender for one in one_way} == {"management/backup", "management/logs", "management/patch"}
    assert any(not one.flow.sender.is_server for one in held)


def test_only_udp_flows_in_which_the_end_speaks_that_may_not_open_are_unheard(plan):
    held = held_flows(plan, tcp=50, udp=50, unheard=3)
    assert {(one.protocol, one.kind, one.one_way) for one in held if one.unheard} == {("udp", Kind.PULL, True)}
    assert ("tcp", Kind.PULL, True) in {(one.protocol, one.kind, one.one_way) for one in held if one.goes_on}


def test_flows_that_end_do_so_in_each_way(plan):
    ending = ending_flows(plan, 3)
    assert Counter(one.ends for one in ending) == {
        "FIN of the client": 3,
        "FIN of the server": 3,
        "RST of the client": 3,
        "RST of the server": 3,
    }
    assert {(str(one), one.resets, one.by_server) for one in Ending} == {
        ("FIN of the client", False, False),
        ("FIN of the server", False, True),
        ("RST of the client", True, False),
        ("RST of the server", True, True),
    }
    assert not any(one.goes_on for one in ending)
    assert not {one.number for one in ending} & {one.number for one in held_flows(plan, tcp=500, udp=200)}


def test_each_nat_vm_fails_and_each_takes_over_whoever_acts_at_first(plan):
    turned = steps(plan, {"natVm1": "natVm1b", "natVm1-2": "natVm1-2a", "natVm2": "natVm2a"})
    assert [step.fail for step in turned if step.fail] == [
        ("natVm1b",),
        ("natVm1-2a",),
        ("natVm2a",),
        ("natVm1a", "natVm1-2b", "natVm2b"),
        ("natVm1b",),
        ("natVm1a",),
    ]
    first = steps(plan, {"natVm1": "natVm1a", "natVm1-2": "natVm1-2a", "natVm2": "natVm2a"})
    assert [(step.fail, step.hang, step.recover) for step in first] == [
        (("natVm1a",), False, ()),
        (("natVm1-2a",), False, ()),
        (("natVm2a",), False, ()),
        ((), False, ("natVm1a", "natVm1-2a", "natVm2a")),
        (("natVm1b", "natVm1-2b", "natVm2b"), False, ()),
        ((), False, ("natVm1b", "natVm1-2b", "natVm2b")),
        (("natVm1a",), True, ()),
        ((), False, ("natVm1a",)),
        (("natVm1b",), True, ()),
        ((), False, ("natVm1b",)),
    ]


def test_the_table_says_what_was_lost_and_how(plan):
    held: Held = held_flows(plan, tcp=1, udp=0)[0]
    fine = Outcome(what="natVm1a off", active={"natVm1": "natVm1b"}, tcp=500, udp=200, lost=(), pause=6.88)
    bad = replace(
        fine,
        what="natVm2a hangs",
        lost=((held, "stands still"),),
        unheard=(10, 10, 9),
        ended=(Ended(how=Ending.CLIENTS_FIN, flows=10, learned=0, learned_later=10),),
    )
    assert outcomes_text([fine, bad]) == (
        "Failover, with open flows\n"
        "  what failed    acts now  TCP open  UDP open  lost  longest pause\n"
        "  natVm1a off    natVm1b   500       200       0     6.9 s\n"
        "  natVm2a hangs  natVm1b   500       200       1     6.9 s\n"
        "LOST natVm2a hangs: fern/app to 198.18.8.1, tcp echo, both may open: stands still\n"
        "\n"
        "UDP flows in which only the end sends that may not open them\n"
        "  what failed    flows  stood still  went on after the other end's next datagram\n"
        "  natVm2a hangs  10     10           9\n"
        "\n"
        "TCP flows whose first segment after the switch is a FIN or a RST: no data is lost\n"
        "  what failed    first segment      flows  far end learns  after its own next segment\n"
        "  natVm2a hangs  FIN of the client  10     0               10"
    )
