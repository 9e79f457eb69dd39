"""Ten customers who are all 10.0.0.0/24, with packets: each behind a customer gateway of its own, none takes another's.

Their hosts have the same addresses, which are also addresses of management's servers.  The customers have done what is
in their hands: every source/destination check is off, and their subnets route all of 198.18.0.0/15 to the POD.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import project_with
from netaddr import IPNetwork
from test_balancer import until
from test_gateways import overlapping, with_book
from test_isolation import PROTOCOLS, arrivals, declared, everybody, hostile, shots

from bench.noise import FILL
from nat_pod.lab.failover import acting
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire.probe import Probe
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.plan.model import PodPlan
from nat_pod.trace.flows import declared_flows, stranger_addresses
from nat_pod.trace.topology import Topology

pytestmark = pytest.mark.lab


@contextmanager
def alike(directory: Path, customers: int, *, standby: bool = False) -> Iterator[tuple[PodPlan, Topology, Lab]]:
    mapping = {**with_book(overlapping(customers, standby=standby)), "compartmentId": "ocid1.compartment.oc1..aaaa"}
    config = {"oci:region": "uk-london-1", **{f"nat-pod:{key}": value for key, value in mapping.items()}}
    region, plan, deployment = stand_up(project_with(directory, "alike", json.dumps({"config": config})), "alike")
    assert deployment.warnings == ()
    topology = hostile(observe(region), plan)
    with Lab(topology) as lab:
        yield plan, topology, lab


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PodPlan, Lab]]:
    with alike(tmp_path_factory.mktemp("ten"), 10) as (plan, _, lab):
        yield plan, lab


def addresses(plan: PodPlan) -> list[str]:
    """Every alias, and every address of the VCN's own range."""
    return [*(slot.nat_vm1 for slot in plan.slots), *map(str, IPNetwork(plan.vcn_cidr))]


def test_everybody_reaches_exactly_whom_the_stack_file_declares_from_one_source_port(ten):
    """All at once, so that flows between two members meet in the middle: addresses alone tell them apart."""
    plan, lab = ten
    assert len(plan.roles) == 11
    wanted = declared(plan)
    flows = shots(everybody(plan), addresses(plan), source_port=4000)
    expected = {
        (flow.source_vm, str(flow.source_address), flow.destination, flow.protocol): wanted[key]
        for flow in flows
        if (key := (flow.source_vm, flow.destination)) in wanted
    }
    assert len(expected) == len(PROTOCOLS) * len(wanted) == 3 * (10 * 2 * 2 * 2)
    assert len(flows) > 10_000
    assert arrivals(lab, flows) == expected


def test_each_is_answered_and_seen_at_its_own_alias(ten):
    plan, lab = ten
    flows = declared_flows(plan)
    probes = [Probe(source_vm=one.sender, destination=one.destination, protocol=p) for one in flows for p in PROTOCOLS]
    alias = {slot.member: slot.nat_vm1 for slot in plan.slots}
    expected = [(True, str(one.receiver), alias[one.sender]) for one in flows for _ in PROTOCOLS]
    assert [(answer.ok, answer.answered_by, answer.seen) for answer in lab.probe(probes, seconds=4.0)] == expected


def test_who_forges_the_alias_of_another_customers_host_is_nobody(ten):
    """The alias of a host behind another gateway, or behind its own: a source that no gateway has translated."""
    plan, lab = ten
    senders = [(vm, host.nat_vm1) for vm in stranger_addresses(plan) for host in plan.hosts]
    flows = shots(senders, [server.nat_vm1 for server in plan.servers] + [plan.hosts[0].nat_vm1])
    assert len(flows) > 1_500
    assert arrivals(lab, flows) == {}


def test_a_customer_that_fills_its_gateways_table_takes_nothing_from_the_others(ten):
    """customer1's gateway has no room for another flow; before and after it is as the stack file says."""
    plan, lab = ten
    noisy, others = [], []
    for one in declared_flows(plan):
        of_noisy = "customer1" in (one.sender.realm, one.receiver.realm if one.receiver else "")
        probe = Probe(source_vm=one.sender, destination=one.destination, protocol="udp")
        (noisy if of_noisy else others).append(probe)
    assert (len(noisy), len(others)) == (8, 72)
    gateway = plan.gateways["customer1"]
    assert gateway.number > 1
    filled = lab.call("run", argv=[sys.executable, "-c", FILL], vm=plan.vms_of(gateway)[0].key)
    assert filled["status"] == 0, filled
    assert [answer.ok for answer in lab.probe(noisy, seconds=1.0)] == [False] * 8
    assert all(answer.ok for answer in lab.probe(others, seconds=4.0))


def test_a_vm_that_is_killed_with_a_full_table_is_followed_by_its_standby(tmp_path):
    """The standby has a table of its own: with it the customer's flows open again."""
    with alike(tmp_path, 2, standby=True) as (plan, topology, lab):
        role = plan.gateways["customer1"]
        own = [
            Probe(source_vm=one.sender, destination=one.destination, protocol="udp")
            for one in declared_flows(plan)
            if "customer1" in (one.sender.realm, one.receiver.realm if one.receiver else "")
        ]
        until(lambda: all(len(state["healthy"]) == 2 for state in lab.call("balancers").values()), 30)
        before = acting(lab.key, topology)[str(role)]
        filled = lab.call("run", argv=[sys.executable, "-c", FILL], vm=before)
        assert filled["status"] == 0, filled
        assert [answer.ok for answer in lab.probe(own, seconds=1.0)] == [False] * len(own)
        lab.call("fail", vm=before, hang=False)
        until(lambda: acting(lab.key, topology)[str(role)] not in (before, "nobody"), 30)
        assert all(answer.ok for answer in lab.probe(own, seconds=4.0))
