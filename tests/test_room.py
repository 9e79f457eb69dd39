"""What still fits: `pods --fits`, and the room that `plan` says a routed POD has."""

import json

import pytest
from conftest import real_stack
from test_gateways import overlapping, with_book

from nat_pod.config.room import room
from nat_pod.config.routed import RoutedConfig


@pytest.fixture
def pods(project):
    """dev and routed as PODs that stand: dev has two customers in 10.0.0.0/23, routed has 10.0.0.0/24 twice."""
    for name in ("dev", "routed"):
        (project / f"Pulumi.{name}.yaml").write_text(real_stack(name), encoding="utf-8")
    return project


def answers(run, *arguments: str) -> dict:
    status, out, err = run("pods", "--fits", *arguments, "--json")
    found = json.loads(out)
    assert err == ""
    assert status == (0 if any(one and one["fits"] for one in found.values()) else 1)
    return found


def test_a_customer_that_overlaps_nobody_fits_everywhere_and_into_the_first_gateway(run, pods):
    found = answers(run, "10.7.0.0/24", "--hosts", "12")
    assert found["dev"] == {"fits": True, "gateway": None, "newGateway": False, "obstacles": []}
    assert found["routed"] == {"fits": True, "gateway": 1, "newGateway": False, "obstacles": []}


def test_one_that_overlaps_customers_is_told_the_gateway_or_what_it_would_take(run, pods):
    found = answers(run, "10.0.1.0/24")
    assert found["dev"]["obstacles"] == ["customer2 has 10.0.1.0/24, and NAT VM1 has one route table for all customers"]
    # hazel has it behind the first gateway, and maple has something else behind the second.
    assert found["routed"] == {"fits": True, "gateway": 2, "newGateway": False, "obstacles": []}
    found = answers(run, "10.0.0.0/24")
    assert (found["routed"]["gateway"], found["routed"]["newGateway"], found["routed"]["fits"]) == (3, True, False)
    assert found["routed"]["obstacles"] == [
        "a gateway of its own takes a network load balancer, and the region has 3 (balancerLimit), 3 of them taken"
    ]
    text = real_stack("routed").replace("nat-pod:standby: true", "nat-pod:standby: true\n  nat-pod:balancerLimit: 4")
    (pods / "Pulumi.routed.yaml").write_text(text, encoding="utf-8")
    assert answers(run, "10.0.0.0/24")["routed"] == {"fits": True, "gateway": 3, "newGateway": True, "obstacles": []}


def test_hosts_that_have_no_address_left_are_counted(run, pods):
    found = answers(run, "10.7.0.0/16", "--hosts", "2000")
    assert found["dev"]["obstacles"] == ["it has 55 slots left for 2000 hosts"]
    # 960 aliases: five servers hold a block of 32, and 30 and 10 of the hosts two more; maple's is another gateway's.
    assert found["routed"]["obstacles"] == ["it has 866 aliases left for 2000 hosts"]


def test_a_range_of_the_pod_itself_and_a_pod_without_an_lpg_are_said(run, pods):
    assert answers(run, "198.18.8.0/24")["routed"]["obstacles"][0] == (
        "its own range 198.18.8.0/22 overlaps 198.18.8.0/24"
    )
    text = real_stack("routed").replace("nat-pod:standby: true", "nat-pod:standby: true\n  nat-pod:lpgLimit: 4")
    (pods / "Pulumi.routed.yaml").write_text(text, encoding="utf-8")
    assert answers(run, "10.7.0.0/24")["routed"]["obstacles"] == ["all its 4 LPGs are in use"]


def test_the_text_says_where_and_what_to_do_where_there_is_no_place(run, pods):
    status, out, _ = run("pods", "--fits", "10.0.1.0/24", "--hosts", "3")
    assert status == 0
    assert "Where a customer of 10.0.1.0/24 with 3 hosts fits" in out
    assert "yes, in gateway 2" in out
    (pods / "Pulumi.routed.yaml").unlink()
    status, out, _ = run("pods", "--fits", "10.0.1.0/24")
    assert (status, "no POD has room for it as it is; a new one has" in out) == (1, True)
    assert "left out, because they are examples: ten" in out or "ten" not in out


@pytest.mark.parametrize("wrong", ["10.0.0.0", "10.0.0.5/24", "10.0.0.0/7", "fe80::/64", "x/24", "0.0.0.0/0"])
def test_what_is_no_customers_range_is_refused(run, pods, wrong):
    status, out, err = run("pods", "--fits", wrong)
    assert (status, out) == (2, "")
    assert "e.g. 10.0.0.0/24" in err


@pytest.mark.parametrize(
    ("settings", "gateways", "by"),
    [
        ({}, 4, "addresses of the VCN's range"),
        ({"standby": True, "balancerLimit": 4}, 1, "network load balancers"),
        ({"lpgLimit": 4}, 2, "LPGs"),
    ],
)
def test_the_first_limit_of_gateways(settings, gateways, by):
    mapping = with_book({**overlapping(2), "vcnCidr": "198.18.7.192/26", **settings})
    left = room(RoutedConfig.from_mapping(mapping, "x"))
    assert (left.gateways, left.gateways_end_by) == (gateways, by)
    assert left.customers == mapping["lpgLimit"] - 2


def test_blocks_end_by_the_range_of_a_small_pod_and_by_route_rules_in_a_large_one():
    small_one = RoutedConfig.from_mapping(with_book(overlapping(2)), "x")
    assert (room(small_one).blocks, room(small_one).blocks_end_by) == (57, "addresses of the POD's range")
    mapping = {**overlapping(2), "cidr": "198.18.0.0/16", "vcnCidr": "198.18.255.128/25"}
    mapping["management"]["vrouter"] = "198.18.255.250"
    large = RoutedConfig.from_mapping(with_book(mapping), "x")
    assert room(large).blocks_end_by == "route rules"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("10.9.0.0/30", "--hosts", "2"), "2 hosts are more than the 1 usable addresses of 10.9.0.0/30"),
        (("10.9.0.1/32", "10.9.0.3/32", "--hosts", "3"), "3 hosts are more than the 2 usable addresses"),
        (("10.9.0.0/24", "10.9.0.128/25"), "10.9.0.0/24 and 10.9.0.128/25 overlap"),
    ],
)
def test_a_customer_that_no_pod_can_have_is_refused(run, words, why):
    status, _, complaint = run("pods", "--fits", *words)
    assert (status, why in complaint) == (1, True)
    assert run("pods", "--fits", "10.9.0.0/30", "--hosts", "1")[2] == ""
    assert run("pods", "--fits", "10.9.0.1/32", "10.9.0.3/32", "--hosts", "2")[2] == ""
