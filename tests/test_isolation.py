"""Who reaches whom on a POD of ten customers, with packets: everybody tries everything, then the hostile ones try more.

A hundred hosts, eight servers and a stranger in every network.  The customers have done what is in their hands: every
source/destination check is off, and every subnet has routes to all of 198.18.0.0/15 and 10.0.0.0/8 by the LPG.

A packet is written whole, with a token in it, and is watched for on every host.  No answer is waited for: what arrives
has leaked, whether or not anybody gets an answer.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import yaml
from conftest import REPOSITORY
from netaddr import IPNetwork

from nat_pod import cli
from nat_pod.flows import STRANGER, declared_flows, stranger_addresses
from nat_pod.lab.observe import observe
from nat_pod.lab.packets import FRAGMENTS, HTTP, ICMP, REDIRECT, REPLY, TAIL, UDP
from nat_pod.lab.probe import Flow
from nat_pod.lab.sandbox import Lab
from nat_pod.lab.surroundings import stand_up
from nat_pod.plan import PodPlan
from nat_pod.topology import Route, Topology

pytestmark = pytest.mark.lab

PROTOCOLS = (ICMP, HTTP, UDP)


@pytest.fixture(scope="module", params=["static", "masquerade"])
def pod(request, tmp_path_factory) -> Iterator[tuple[PodPlan, Topology, Lab]]:
    directory = tmp_path_factory.mktemp("isolation")
    for name in ("Pulumi.yaml", "__main__.py", "nat_pod", "cloud-init"):
        (directory / name).symlink_to(REPOSITORY / name)
    (directory / "Pulumi.ten.yaml").write_text(yaml.safe_dump(hundred_hosts(request.param)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert cli.main(["allocate", "ten"]) == cli.OK
    region, plan, _ = stand_up(directory, "ten")
    topology = hostile(observe(region), plan)
    with Lab(topology) as lab:
        yield plan, topology, lab


def hundred_hosts(policy: str) -> dict[str, object]:
    """Pulumi.ten.yaml with ten hosts a customer and eight servers; some have one another's addresses, as there."""
    stack = yaml.safe_load((REPOSITORY / "Pulumi.ten.yaml").read_text(encoding="utf-8"))
    config = stack["config"]
    config["nat-pod:sourceNat"] = policy
    for customer in config["nat-pod:customers"].values():
        for number in range(10 - len(customer["hosts"])):
            customer["hosts"][f"extra{number}"] = str(IPNetwork(customer["cidr"])[40 + number])
    servers = config["nat-pod:management"]["servers"]
    for number in range(8 - len(servers)):
        servers[f"extra{number}"] = f"10.0.{number}.41"
    return stack


def hostile(topology: Topology, plan: PodPlan) -> Topology:
    """The same POD with customers who route everything to it and have switched every check off."""
    subnets, vnics = dict(topology.subnets), dict(topology.vnics)
    for customer in plan.customer_cidrs:
        lpg = f"{customer}/lpg"
        routes = (Route(destination="198.18.0.0/15", lpg=lpg), Route(destination="10.0.0.0/8", lpg=lpg))
        subnets[customer] = replace(subnets[customer], routes=routes)
    for name, vnic in vnics.items():
        if vnic.subnet in plan.customer_cidrs:
            vnics[name] = replace(vnic, skip_source_dest_check=True)
    return replace(topology, subnets=subnets, vnics=vnics)


def shots(
    senders: Iterable[tuple[str, str]],
    destinations: Iterable[str],
    protocols: Iterable[str] = PROTOCOLS,
    **more: object,
) -> list[Flow]:
    """A packet from each (machine, source address) to each destination, by each protocol."""
    return [
        Flow(source_vm=vm, source_address=source, destination=to, protocol=protocol, forged=True, **more)
        for (vm, source), to, protocol in itertools.product(senders, destinations, protocols)
        if source != to
    ]


def arrivals(lab: Lab, flows: list[Flow]) -> dict[tuple[str, str, str, str], str]:
    """(machine, source address, destination, protocol) of what arrived anywhere, and where."""
    answers = lab.probe(flows, seconds=1.0)
    return {
        (flow.source_vm, str(flow.source_address), flow.destination, flow.protocol): str(answer.answered_by)
        for flow, answer in zip(flows, answers, strict=True)
        if answer.ok
    }


def declared(plan: PodPlan) -> dict[tuple[str, str], str]:
    """(machine, address it uses) of every flow in the stack file, and who answers."""
    return {(flow.sender, flow.destination): str(flow.receiver) for flow in declared_flows(plan)}


def everybody(plan: PodPlan) -> list[tuple[str, str]]:
    """Every machine of the neighbours with its own address, strangers included."""
    return [*((slot.member, slot.real) for slot in plan.slots), *stranger_addresses(plan).items()]


def strangers(plan: PodPlan) -> list[tuple[str, str]]:
    """Those of the customers."""
    return [(name, address) for name, address in stranger_addresses(plan).items() if not name.startswith("management")]


def pod_addresses(plan: PodPlan) -> list[str]:
    """Every address that the POD has."""
    held = [address for vm in plan.vms for vnic in vm.vnics for address in (vnic.primary, *vnic.secondaries)]
    return [*held, plan.vrouter_ip]


def test_everybody_reaches_exactly_whom_the_stack_file_declares(pod):
    plan, _, lab = pod
    wanted = declared(plan)
    senders = everybody(plan)
    assert len(plan.slots) == 108
    assert len(senders) == 119
    flows = shots(senders, pod_addresses(plan))
    found = arrivals(lab, flows)
    expected = {
        (flow.source_vm, str(flow.source_address), flow.destination, flow.protocol): wanted[key]
        for flow in flows
        if (key := (flow.source_vm, flow.destination)) in wanted
    }
    assert {key: found[key] for key in found.keys() - expected.keys()} == {}
    assert sorted(expected.keys() - found.keys()) == []
    assert found == expected
    assert len(expected) == 3 * len(wanted)
