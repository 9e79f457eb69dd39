"""The rules of a routed POD with packets: a NAT VM is lost, and its twin goes on (takeover_world.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab
TESTS = Path(__file__).resolve().parent
EACH = 4
KINDS = {
    f"{opened}, {mode} from the {speaker}"
    for opened in ("opened by the host", "opened by the server", "only the server may open")
    for mode in ("idle", "push")
    for speaker in ("host", "server")
}
# Rules that are left out, by their text.
SYN_FIRST = "-A NATPOD-FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"
SYN_OF_THE_OTHER = '"only the server may open it"'
GOES_ON = '"goes on in what the server opened"'


def run(scenario: str, **arguments: object) -> dict:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        [
            "unshare", *user, "--net", "--mount", "--propagation", "private", sys.executable,
            str(TESTS / "takeover_world.py"), scenario, json.dumps(arguments),
        ],
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("roles", "gap"), [(["vm1"], 1.0), (["vm2"], 1.0), (["vm1", "vm2"], 0.0), (["vm1", "vm2"], 3.0)], ids=str
)
def test_every_flow_goes_on_through_the_twin(roles, gap):
    """Idle ones and one-way pushes, in both directions, whoever opened them; also where only the server may."""
    found = run("takeover", roles=roles, each=EACH, gap=gap)
    assert found["living"] == dict.fromkeys(KINDS, EACH)


def test_without_loose_none_does():
    assert run("takeover", roles=["vm1"], each=1, loose=0)["living"] == {}


def test_without_the_rule_for_segments_exactly_those_flows_stand_still_that_the_host_goes_on_with():
    found = run("takeover", roles=["vm1", "vm2"], each=1, drop=GOES_ON)
    stalled = {kind for kind in KINDS if kind.startswith("only the server") and kind.endswith("from the host")}
    assert found["living"] == dict.fromkeys(KINDS - stalled, 1)


def test_flows_come_back_to_a_vm_with_old_sequence_numbers_and_without_be_liberal_they_do_not():
    found = {liberal: run("to_and_fro", megabytes=4, count=10, be_liberal=liberal)["living"] for liberal in (1, 0)}
    assert found == {1: 10, 0: 0}


def test_datagrams_of_who_may_open_go_on_and_the_others_wait_for_one_of_them():
    assert run("datagrams", count=10) == {
        "host, host speaks": 10,
        "host, then server": 10,
        "server, host speaks": 10,
        "server, then server": 10,
        "only the server, host speaks": 0,
        "only the server, then server": 10,
        "only the server, host again": 10,
    }


def test_an_end_that_the_twin_sees_first_waits_until_the_far_end_says_something_of_its_own():
    """FIN and RST begin no entry, and no data is lost: what stood in the FIN's own segment arrives with it."""
    assert run("ends_first", count=10) == {
        "before": {"FIN": 0, "RST": 0, "data and FIN": 0},
        "after": {"FIN": 10, "RST": 10, "data and FIN": 10},
    }


@pytest.mark.parametrize(
    ("answered", "drop", "opened"),
    [
        (False, "", 0),
        (True, "", 0),
        # conntrack calls a flow new as long as nobody has answered, so the SYN is asked all the same.
        (False, SYN_FIRST, 0),
        (True, SYN_FIRST, 20),
        (False, SYN_OF_THE_OTHER, 20),
        (True, SYN_OF_THE_OTHER, 20),
    ],
)
def test_a_segment_without_syn_is_no_way_to_open_a_connection(answered, drop, opened):
    found = run("ack_then_syn", count=20, answered=answered, drop=drop)
    assert found == {"opened": opened, "refused": 20 - opened}


def test_errors_pass_about_the_sender_s_own_flows_only_whatever_source_they_have():
    found = run("errors")
    assert found["arrived"] == {
        "the host itself": True,
        "a router in its network": True,
        "another customer": False,
        "another customer, with the server's alias": False,
        "another customer, with the host's alias": False,
        "the server itself": True,
        "a router in management": True,
        "a stranger behind management, with the host's alias": False,
        "somebody else's network behind management": False,
    }
    assert found["dropped"] == {"vm1a": 3, "vm2a": 2}


def test_traceroute_shows_the_nat_vms_to_members_and_nothing_to_a_stranger():
    """In each flow that exists.  In new ones NAT VM1 is silent towards hosts (docs/decisions/)."""
    nat_vm1, nat_vm2, alias_of_mgmt, alias_of_host = "198.18.3.194", "198.18.3.202", "198.18.0.2", "198.18.2.2"
    assert run("told") == {
        "host, a flow that exists": [nat_vm1, alias_of_mgmt],
        "host, new flows": ["-", alias_of_mgmt],
        "server, a flow that exists": [nat_vm2, alias_of_host],
        "server, new flows": [nat_vm2, alias_of_host],
        "stranger, new flows": ["-", "-"],
    }


def test_members_and_refusals_are_counted_as_status_reads_them():
    found = run("counts")
    members, chains = found["vm1a"]["members"], found["vm1a"]["chains"]
    assert members["customer1/vm1"] == {"goto": 3, "SNAT": 3, "DNAT": 2}
    assert members["customer2/vm2"] == {"goto": 4, "SNAT": 0, "DNAT": 0}, "tried, and refused"
    assert chains["NATPOD-REFUSED"] == {"DROP": 9}, "and a stranger's"
    members, chains = found["vm2a"]["members"], found["vm2a"]["chains"]
    assert {name: members["management/mgmt"][name] for name in ("goto", "SNAT", "DNAT")} == {
        "goto": 2, "SNAT": 2, "DNAT": 3,
    }  # fmt: skip
    assert chains["NATPOD-REFUSED"] == {"DROP": 0}


@pytest.mark.parametrize("tcp", [False, True])
def test_first_packets_from_both_ends_at_once_arrive_and_those_of_tcp_keep_their_ports(tcp):
    """UDP may get another port in that moment (docs/decisions say how often); none is lost.

    A SYN that meets the other one may be dropped; it arrives when it is sent again.
    """
    found = run("both_at_once", flows=3000, rate=3000, tcp=tcp)
    assert [found[end]["heard"] for end in ("cust", "mgmt")] == [3000, 3000]
    if tcp:
        assert [found[end]["other port"] for end in ("cust", "mgmt")] == [0, 0]
