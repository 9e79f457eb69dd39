"""Small networks for the tests of the lab, by hand: no plan, no POD, no NAT VM.

    a  10.0.0.0/16  a1 .0.2  a2 .0.3 and .0.9  a3 .1.2 (second subnet)       peered with b
    b  10.1.0.0/16  b1 .0.2                                                  peered with a; gate's second VNIC .0.5
    c  10.0.0.0/16  c1 .0.2  c2 .0.3                                         same addresses as a, peered with nobody

Everything may talk to everything (stateless) unless a test says otherwise.
"""

from dataclasses import replace
from typing import Any

import pytest

from nat_pod.lab.wire.sandbox import available
from nat_pod.trace.topology import VM_HOST, Lpg, Route, SecurityRule, Subnet, Topology, Vcn, Vm, Vnic

needs_lab = pytest.mark.skipif(available() is not None, reason=str(available()))

ANYTHING = (
    SecurityRule(direction="INGRESS", protocol="all", peer="0.0.0.0/0", stateless=True),
    SecurityRule(direction="EGRESS", protocol="all", peer="0.0.0.0/0", stateless=True),
)


def network() -> Topology:
    """The network above."""
    topology = Topology(vcns={}, subnets={}, lpgs={}, vnics={}, vms={})
    for name, cidr in (("a", "10.0.0.0/16"), ("b", "10.1.0.0/16"), ("c", "10.0.0.0/16")):
        topology.vcns[name] = Vcn(name=name, cidrs=(cidr,))
    to_b, to_a = Route(destination="10.1.0.0/16", lpg="a/lpg"), Route(destination="10.0.0.0/16", lpg="b/lpg")
    for name, vcn, cidr, routes in (
        ("a", "a", "10.0.0.0/24", (to_b,)),
        ("a-two", "a", "10.0.1.0/24", ()),
        ("b", "b", "10.1.0.0/24", (to_a,)),
        ("c", "c", "10.0.0.0/24", ()),
    ):
        topology.subnets[name] = Subnet(name=name, vcn=vcn, cidr=cidr, routes=routes, security=ANYTHING)
    topology.lpgs["a/lpg"] = Lpg(name="a/lpg", vcn="a", peer="b/lpg")
    topology.lpgs["b/lpg"] = Lpg(name="b/lpg", vcn="b", peer="a/lpg")
    add(topology, "a1", "a", "10.0.0.2")
    add(topology, "a2", "a", "10.0.0.3", "10.0.0.9")
    add(topology, "a3", "a-two", "10.0.1.2")
    add(topology, "b1", "b", "10.1.0.2")
    add(topology, "c1", "c", "10.0.0.2")
    add(topology, "c2", "c", "10.0.0.3")
    return topology


def add(topology: Topology, vm: str, subnet: str, *addresses: str, kind: str = VM_HOST, check: bool = True) -> None:
    """Attach a VNIC, called `<vm>-vnic-<n>`, and add the VM when it is its first."""
    known = topology.vms.get(vm)
    vnic = f"{vm}-vnic-{len(known.vnics) + 1 if known else 1}"
    topology.vnics[vnic] = Vnic(
        name=vnic,
        vm=vm,
        subnet=subnet,
        mac=f"02:00:17:00:00:{len(topology.vnics) + 1:02x}",
        addresses=addresses,
        skip_source_dest_check=not check,
    )
    topology.vms[vm] = replace(known, vnics=(*known.vnics, vnic)) if known else Vm(name=vm, kind=kind, vnics=(vnic,))


def change(things: dict[str, Any], name: str, **values: object) -> None:
    """Replace fields of one named thing."""
    things[name] = replace(things[name], **values)
