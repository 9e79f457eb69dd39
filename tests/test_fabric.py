"""The fabric does what OCI does to a packet.  Addresses: small_networks.py; each "must not" is beside a "does"."""

from collections.abc import Iterator

import pytest
from small_networks import ANYTHING, add, change, needs_lab, network

from nat_pod.lab.wire.fabric import dhcp_offer, imds_document, lay_cables
from nat_pod.lab.wire.probe import HTTP, ICMP, UDP, Probe
from nat_pod.lab.wire.router import read_drops
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.lab.wire.space import vcn_namespace, vm_namespace
from nat_pod.trace.topology import VM_NAT, VM_ROUTER, Lpg, Route, SecurityRule, Subnet, Topology, Vcn

# --- texts -----------------------------------------------------------------------------------------------------------


def one_host() -> Topology:
    topology = Topology(vcns={}, subnets={}, lpgs={}, vnics={}, vms={})
    topology.vcns["customer1"] = Vcn(name="customer1", cidrs=("10.0.0.0/24",))
    topology.subnets["customer1"] = Subnet(name="customer1", vcn="customer1", cidr="10.0.0.0/25", security=ANYTHING[:1])
    add(topology, "customer1/vm1", "customer1", "10.0.0.100", "10.0.0.101")
    return topology


def test_the_whole_text_of_a_vcn_with_one_host():
    fabric = lay_cables(one_host())
    assert fabric.cables == (
        "link add name v0 netns vcn-customer1 address 00:00:17:ff:ff:01 mtu 9000 type veth "
        "peer name ens3 netns vm-customer1.vm1 address 02:00:17:00:00:01 mtu 9000\n"
    )
    assert fabric.vms["customer1/vm1"].batch == (
        "link set lo up\n"
        "link set ens3 up\n"
        "addr add 10.0.0.100/25 dev ens3\n"
        "addr add 10.0.0.101/32 dev ens3\n"
        "neigh replace 10.0.0.1 lladdr 00:00:17:ff:ff:01 dev ens3 nud permanent\n"
        "route add default via 10.0.0.1 dev ens3\n"
    )
    router = fabric.vcns["customer1"]
    assert router.batch == (
        "link set lo up\n"
        "link set v0 up\n"
        "neigh replace 10.0.0.100 lladdr 02:00:17:00:00:01 dev v0 nud permanent\n"
        "route add 10.0.0.100/32 via 10.0.0.100 dev v0 onlink\n"
        "route add 10.0.0.101/32 via 10.0.0.100 dev v0 onlink\n"
        "route add default dev lo\n"
        "rule add iif v0 to 10.0.0.0/25 lookup main priority 500\n"
        "rule add iif v0 lookup 1000 priority 1000\n"
        "route add throw 10.0.0.0/24 table 1000\n"
    )
    source = "customer1/vm1-vnic-1: source check, not an address of this VNIC"
    destination = "customer1/vm1-vnic-1: destination check, not an address of this VNIC"
    assert router.rules == (
        "*filter\n"
        ":INPUT DROP [0:0]\n"
        ":FORWARD DROP [0:0]\n"
        ":OUTPUT DROP [0:0]\n"
        ":v0-leave - [0:0]\n"
        ":v0-egress - [0:0]\n"
        ":v0-arrive - [0:0]\n"
        ":v0-ingress - [0:0]\n"
        "-A FORWARD -i v0 -j v0-leave\n"
        '-A FORWARD -i v0 -o lo -m comment --comment "customer1/vm1-vnic-1: no route, or nobody at its end" -j DROP\n'
        "-A FORWARD -o v0 -j v0-arrive\n"
        "-A FORWARD -j ACCEPT\n"
        "-A v0-leave -s 10.0.0.100/32 -g v0-egress\n"
        "-A v0-leave -s 10.0.0.101/32 -g v0-egress\n"
        f'-A v0-leave -m comment --comment "{source}" -j DROP\n'
        "-A v0-arrive -d 10.0.0.100/32 -g v0-ingress\n"
        "-A v0-arrive -d 10.0.0.101/32 -g v0-ingress\n"
        f'-A v0-arrive -m comment --comment "{destination}" -j DROP\n'
        '-A v0-egress -m comment --comment "customer1/vm1-vnic-1: egress, no security rule lets it pass" -j DROP\n'
        "-A v0-ingress -s 0.0.0.0/0 -j RETURN\n"
        '-A v0-ingress -m comment --comment "customer1/vm1-vnic-1: ingress, no security rule lets it pass" -j DROP\n'
        "COMMIT\n"
    )


def test_namespace_names_never_collide():
    names = ["customer1/vm1", "customer1.vm1", "customer1%2evm1", "customer1 vm1", "customer1vm1", "customer1/.vm1"]
    spaces = [vm_namespace(name) for name in names]
    assert spaces[0] == "vm-customer1.vm1"
    assert vcn_namespace("customer1") == "vcn-customer1"
    assert len(set(spaces)) == len(names)
    assert not any("/" in space or " " in space for space in spaces)


def test_nics_are_named_as_on_ocis_images_and_links_fit_into_15_characters():
    topology = network()
    for _ in range(3):
        add(topology, "a1", "a-two", f"10.0.1.{10 + len(topology.vnics)}")
    fabric = lay_cables(topology)
    assert [port.nic for port in fabric.ports.values() if port.vm == "a1"] == ["ens3", "ens5", "ens6", "ens7"]
    links = [(port.vcn, port.link) for port in fabric.ports.values()]
    assert len(set(links)) == len(links)
    assert max(len(link) for _, link in links) <= 15


def test_a_nat_vm_gets_no_address_and_the_sysctls_of_a_fresh_image():
    topology = one_host()
    change(topology.vms, "customer1/vm1", kind=VM_NAT, metadata={"user_data": "abc"})
    space = lay_cables(topology).vms["customer1/vm1"]
    assert space.batch == "link set lo up\naddr add 169.254.169.254/32 dev lo\n"
    assert ("net/ipv4/conf/all/rp_filter", "1") in space.sysctls
    assert ("net/ipv4/ip_forward", "0") in space.sysctls
    assert dhcp_offer(topology, topology.vms["customer1/vm1"]) == {
        "mac": "02:00:17:00:00:01",
        "address": "10.0.0.100",
        "prefix": 25,
        "gateway": "10.0.0.1",
        "mtu": 9000,
    }
    add(topology, "customer1/vm1", "customer1", "10.0.0.102")
    change(topology.vnics, "customer1/vm1-vnic-2", mac="02:00:17:00:00:ab")
    document = imds_document(topology, topology.vms["customer1/vm1"])
    assert document["instance"]["metadata"] == {"user_data": "abc"}
    assert document["vnics"] == [
        {
            "vnicId": "ocid1.vnic.oc1..customer1.vm1-vnic-1",
            "privateIp": "10.0.0.100",
            "vlanTag": 1,
            "macAddr": "02:00:17:00:00:01",
            "virtualRouterIp": "10.0.0.1",
            "subnetCidrBlock": "10.0.0.0/25",
        },
        {
            "vnicId": "ocid1.vnic.oc1..customer1.vm1-vnic-2",
            "privateIp": "10.0.0.102",
            "vlanTag": 2,
            "macAddr": "02:00:17:00:00:AB",
            "virtualRouterIp": "10.0.0.1",
            "subnetCidrBlock": "10.0.0.0/25",
        },
    ]


def test_an_icmp_rule_may_name_type_and_code():
    topology = one_host()
    path_mtu = SecurityRule(direction="INGRESS", protocol="1", peer="1.2.3.4/32", icmp_type=3, icmp_code=4)
    any_code = SecurityRule(direction="INGRESS", protocol="1", peer="1.2.3.5/32", icmp_type=3)
    change(topology.subnets, "customer1", security=(path_mtu, any_code))
    rules = lay_cables(topology).vcns["customer1"].rules
    assert "-A v0-ingress -s 1.2.3.4/32 -p icmp --icmp-type 3/4 -j RETURN\n" in rules
    assert "-A v0-ingress -s 1.2.3.5/32 -p icmp --icmp-type 3 -j RETURN\n" in rules


def test_read_drops_takes_the_rules_that_dropped_something():
    saved = (
        "[3:252] -A FORWARD -i v0 -j v0-leave\n"
        '[2:168] -A v0-leave -m comment --comment "a1: source check" -j DROP\n'
        '[0:0] -A v0-arrive -m comment --comment "a1: destination check" -j DROP\n'
        "[1:84] -A FORWARD -i v1 -o lo -m comment --comment oneword -j DROP\n"
    )
    assert read_drops(saved) == [("a1: source check", 2), ("oneword", 1)]


def test_a_peering_is_one_cable_and_one_sided_peering_is_none():
    assert lay_cables(network()).cables.count("name p0 ") == 1
    topology = network()
    change(topology.lpgs, "b/lpg", peer=None)
    fabric = lay_cables(topology)
    assert "name p" not in fabric.cables
    assert "route add 10.1.0.0/16 dev lo table" in fabric.vcns["a"].batch


# --- packets ---------------------------------------------------------------------------------------------------------


def flow(source: str, destination: str, protocol: str = ICMP, **more: object) -> Probe:
    return Probe(source_vm=source, destination=destination, protocol=protocol, **more)


def who(lab: Lab, *flows: Probe, seconds: float = 0.4) -> list[str | None]:
    """Who answered each flow, None for nobody."""
    return [answer.answered_by if answer.ok else None for answer in lab.probe(flows, seconds)]


PROTOCOLS = (ICMP, HTTP, UDP)


def by_each(lab: Lab, *pairs: tuple[str, str]) -> dict[str, list[str | None]]:
    """Who answers flows of these senders and destinations, by each protocol in turn."""
    return {protocol: who(lab, *(flow(vm, to, protocol) for vm, to in pairs)) for protocol in PROTOCOLS}


def died(lab: Lab, vcn: str) -> set[str]:
    return {comment for comment, _ in lab.drops(vcn)}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(network()) as lab:
        yield lab


@pytest.mark.lab
@needs_lab
class TestDelivery:
    def test_inside_a_subnet_between_subnets_and_over_a_peering(self, lab):
        pairs = [("a1", "10.0.0.3"), ("a1", "10.0.1.2"), ("a1", "10.1.0.2"), ("b1", "10.0.0.9")]
        assert by_each(lab, *pairs) == {protocol: ["a2", "a3", "b1", "a2"] for protocol in PROTOCOLS}

    def test_overlapping_vcns_live_side_by_side(self, lab):
        assert who(lab, flow("a2", "10.0.0.2"), flow("c2", "10.0.0.2")) == ["a1", "c1"]

    def test_nobody_has_the_address(self, lab):
        assert who(lab, flow("a1", "10.0.0.3"), flow("a1", "10.0.0.77"), flow("a1", "8.8.8.8")) == ["a2", None, None]
        assert "a1-vnic-1: no route, or nobody at its end" in died(lab, "a")

    def test_nobody_has_the_address_behind_the_peering(self, lab):
        assert who(lab, flow("a1", "10.1.0.2"), flow("a1", "10.1.0.77")) == ["b1", None]
        assert "b/lpg: nobody in this VCN has the address" in died(lab, "b")

    def test_a_subnet_without_the_route_rule_does_not_get_there(self, lab):
        assert who(lab, flow("a1", "10.1.0.2"), flow("a3", "10.1.0.2")) == ["b1", None]
        assert "a3-vnic-1: no route, or nobody at its end" in died(lab, "a")

    def test_without_the_route_rule_back_the_request_arrives_and_the_reply_dies(self, lab):
        topology = network()
        change(topology.subnets, "b", routes=())
        with Lab(topology) as cut:
            (answer,) = cut.probe([flow("a1", "10.1.0.2")], 0.4, capture=True)
            assert not answer.ok
            assert [(seen.vm, seen.direction) for seen in answer.packets] == [
                ("a1", "out"),
                ("b1", "in"),
                ("b1", "out"),
            ]
            assert died(cut, "b") == {"b1-vnic-1: no route, or nobody at its end"}

    @pytest.mark.parametrize("side", ["a/lpg", "b/lpg"])
    def test_a_peering_needs_both_sides(self, side):
        topology = network()
        change(topology.lpgs, side, peer=None)
        with Lab(topology) as cut:
            assert who(cut, flow("a1", "10.0.0.3"), flow("a1", "10.1.0.2")) == ["a2", None]

    def test_the_fabric_delivers_to_an_address_that_the_guest_has_not_configured(self, lab):
        lab.call("run", vm="a2", argv=["ip", "addr", "del", "10.0.0.9/32", "dev", "ens3"])
        try:
            (answer,) = lab.probe([flow("a1", "10.0.0.9")], 0.4, capture=True)
            assert not answer.ok
            assert ("a2", "in") in [(seen.vm, seen.direction) for seen in answer.packets]
        finally:
            lab.call("run", vm="a2", argv=["ip", "addr", "add", "10.0.0.9/32", "dev", "ens3"])
        assert who(lab, flow("a1", "10.0.0.9")) == ["a2"]

    def test_nobody_takes_an_address_by_configuring_it(self, lab):
        lab.call("run", vm="a2", argv=["ip", "addr", "add", "10.0.0.2/32", "dev", "ens3"])
        try:
            assert who(lab, flow("a3", "10.0.0.2")) == ["a1"]
        finally:
            lab.call("run", vm="a2", argv=["ip", "addr", "del", "10.0.0.2/32", "dev", "ens3"])

    @pytest.mark.parametrize("place", [{"vm": "a1"}, {"vcn": "a"}, {"vcn": "b"}], ids=str)
    def test_mtu_is_9000_everywhere(self, lab, place):
        links = lab.call("run", argv=["ip", "-o", "link"], **place)["stdout"].splitlines()
        links = [line for line in links if ": lo:" not in line]
        assert links
        assert [line for line in links if "mtu 9000" not in line] == []

    def test_the_router_itself_answers_nothing(self, lab):
        assert who(lab, flow("a1", "10.0.0.3"), flow("a1", "10.0.0.1")) == ["a2", None]


def gated(*, check: bool = False, **subnet: object) -> Topology:
    """Network a with a forwarding VM `gate` (10.0.0.5) whose second VNIC is in c's place: VCN d, 192.168.0.0/24."""
    topology = network()
    topology.vcns["d"] = Vcn(name="d", cidrs=("192.168.0.0/24",))
    back = Route(destination="10.0.0.0/16", private_ip="192.168.0.5")
    topology.subnets["d"] = Subnet(name="d", vcn="d", cidr="192.168.0.0/24", routes=(back,), security=ANYTHING)
    add(topology, "d1", "d", "192.168.0.2")
    add(topology, "gate", "a", "10.0.0.5", "10.0.0.6", kind=VM_ROUTER, check=check)
    add(topology, "gate", "d", "192.168.0.5", check=check)
    change(topology.subnets, "a", routes=(Route(destination="192.168.0.0/24", private_ip="10.0.0.6"),))
    change(topology.subnets, "a", **subnet)
    return topology


@pytest.mark.lab
@needs_lab
class TestRouteRules:
    def test_a_private_ip_as_target_delivers_to_the_vnic_that_holds_it(self):
        with Lab(gated()) as lab:
            (answer,) = lab.probe([flow("a1", "192.168.0.2", HTTP)], capture=True)
            assert (answer.answered_by, answer.seen) == ("d1", "10.0.0.2")
            assert [(seen.vm, seen.nic, seen.direction) for seen in answer.hops] == [
                ("a1", "ens3", "out"), ("gate", "ens3", "in"), ("gate", "ens5", "out"), ("d1", "ens3", "in"),
                ("d1", "ens3", "out"), ("gate", "ens5", "in"), ("gate", "ens3", "out"), ("a1", "ens3", "in"),
            ]  # fmt: skip

    def test_a_private_ip_that_nobody_holds_leads_nowhere(self):
        gone = (Route(destination="192.168.0.0/24", private_ip="10.0.0.66"),)
        with Lab(gated(routes=gone)) as lab:
            assert who(lab, flow("a1", "10.0.0.3"), flow("a1", "192.168.0.2")) == ["a2", None]
            assert died(lab, "a") == {"a1-vnic-1: no route, or nobody at its end"}

    def test_a_target_with_the_check_on_takes_nothing(self):
        with Lab(gated(check=True)) as lab:
            assert who(lab, flow("a1", "10.0.0.3"), flow("a1", "192.168.0.2")) == ["a2", None]
            assert died(lab, "a") == {"gate-vnic-1: destination check, not an address of this VNIC"}

    def test_a_target_that_may_receive_but_not_send(self):
        topology = gated()
        change(topology.vnics, "gate-vnic-2", skip_source_dest_check=False)
        with Lab(topology) as lab:
            assert who(lab, flow("a1", "10.0.0.3"), flow("a1", "192.168.0.2")) == ["a2", None]
            assert died(lab, "d") == {"gate-vnic-2: source check, not an address of this VNIC"}

    @pytest.mark.parametrize(
        ("destination", "through"),
        [("0.0.0.0/0", False), ("10.0.0.0/15", False), ("10.0.0.0/16", True), ("10.0.1.0/24", True)],
    )
    def test_local_delivery_beats_a_shorter_route_rule_and_loses_to_an_equal_or_longer_one(self, destination, through):
        topology = gated(routes=(Route(destination=destination, private_ip="10.0.0.6"),))
        # A gate that hands on by its own subnet would meet the same route rule again: it has a third VNIC.
        add(topology, "gate", "a-two", "10.0.1.5", check=False)
        with Lab(topology) as lab:
            (answer,) = lab.probe([flow("a1", "10.0.1.2")], capture=True)
            assert answer.answered_by == "a3"
            assert ("gate" in {seen.vm for seen in answer.packets}) is through
            # Never inside the subnet.
            (answer,) = lab.probe([flow("a1", "10.0.0.3")], capture=True)
            assert answer.answered_by == "a2"
            assert "gate" not in {seen.vm for seen in answer.packets}

    def test_a_route_rule_that_leads_back_to_its_own_subnets_gate_loops_as_on_oci(self):
        with Lab(gated(routes=(Route(destination="10.0.0.0/16", private_ip="10.0.0.6"),))) as lab:
            (answer,) = lab.probe([flow("a1", "10.0.1.2")], 0.4, capture=True)
            assert not answer.ok
            assert sum((seen.vm, seen.direction) == ("gate", "in") for seen in answer.packets) > 10

    def test_a_packet_from_an_lpg_with_a_table_follows_it_and_without_one_it_is_only_delivered(self):
        topology = gated()
        change(topology.subnets, "a", routes=(*topology.subnets["a"].routes, *network().subnets["a"].routes))
        change(topology.subnets, "b", routes=(*topology.subnets["b"].routes, Route(destination="192.168.0.0/24",
                                                                                   lpg="b/lpg")))  # fmt: skip
        change(topology.subnets, "d", routes=(Route(destination="0.0.0.0/0", private_ip="192.168.0.5"),))
        with Lab(topology) as lab:
            assert who(lab, flow("b1", "10.0.0.2"), flow("b1", "192.168.0.2")) == ["a1", None]
            assert died(lab, "a") == {"a/lpg: nobody in this VCN has the address"}
        change(topology.lpgs, "a/lpg", routes=(Route(destination="192.168.0.0/24", private_ip="10.0.0.6"),))
        with Lab(topology) as lab:
            assert who(lab, flow("b1", "10.0.0.2"), flow("b1", "192.168.0.2")) == ["a1", "d1"]

    def test_a_second_peering_is_another_link(self):
        topology = network()
        topology.lpgs["a/lpg-c"] = Lpg(name="a/lpg-c", vcn="a", peer="e/lpg")
        topology.lpgs["e/lpg"] = Lpg(name="e/lpg", vcn="e", peer="a/lpg-c")
        topology.vcns["e"] = Vcn(name="e", cidrs=("10.2.0.0/16",))
        back = Route(destination="10.0.0.0/16", lpg="e/lpg")
        topology.subnets["e"] = Subnet(name="e", vcn="e", cidr="10.2.0.0/24", routes=(back,), security=ANYTHING)
        add(topology, "e1", "e", "10.2.0.2")
        there = Route(destination="10.2.0.0/16", lpg="a/lpg-c")
        change(topology.subnets, "a", routes=(*topology.subnets["a"].routes, there))
        with Lab(topology) as lab:
            # b and e are both a's peers, and OCI does not lead from one peering into another.
            change(topology.subnets, "b", routes=())
            assert who(lab, flow("a1", "10.1.0.2"), flow("a1", "10.2.0.2"), flow("b1", "10.2.0.2")) == [
                "b1", "e1", None,
            ]  # fmt: skip


@pytest.mark.lab
@needs_lab
class TestSourceDestinationCheck:
    def forged(self, source: str) -> Probe:
        return flow("a2", "10.0.1.2", UDP, source_address=source, forged=True)

    def test_on_only_own_addresses_leave(self, lab):
        assert who(lab, self.forged("10.0.0.3"), self.forged("10.0.0.9"), self.forged("10.0.0.2")) == [
            "a3", "a3", None,
        ]  # fmt: skip
        assert "a2-vnic-1: source check, not an address of this VNIC" in died(lab, "a")

    def test_off_anything_leaves(self):
        topology = network()
        change(topology.vnics, "a2-vnic-1", skip_source_dest_check=True)
        with Lab(topology) as lab:
            (answer,) = lab.probe([self.forged("10.0.0.2")])
            assert (answer.ok, answer.answered_by, answer.seen) == (True, "a3", "10.0.0.2")


def rule(direction: str, peer: str, protocol: str = "all", **more: object) -> SecurityRule:
    return SecurityRule(direction=direction, peer=peer, protocol=protocol, **more)


def secured(*rules: SecurityRule, vnic: str = "a1-vnic-1") -> Topology:
    """The network with these rules for one VNIC alone, by an NSG: its subnet's list is empty, others keep theirs."""
    topology = network()
    change(topology.subnets, "a", security=())
    for name in ("a1-vnic-1", "a2-vnic-1"):
        change(topology.vnics, name, security=rules if name == vnic else ANYTHING)
    return topology


@pytest.mark.lab
@needs_lab
class TestSecurityRules:
    def test_no_rule_no_packet(self):
        with Lab(secured()) as lab:
            assert who(lab, flow("a2", "10.0.1.2"), flow("a2", "10.0.0.2"), flow("a1", "10.0.0.3")) == [
                "a3", None, None,
            ]  # fmt: skip
            assert died(lab, "a") == {
                "a1-vnic-1: ingress, no security rule lets it pass",
                "a1-vnic-1: egress, no security rule lets it pass",
            }

    def test_stateful_ingress_lets_the_answer_out_and_nothing_else(self):
        with Lab(secured(rule("INGRESS", "10.0.1.0/24"))) as lab:
            found = by_each(lab, ("a3", "10.0.0.2"), ("a2", "10.0.0.2"), ("a1", "10.0.1.2"))
            assert found == {protocol: ["a1", None, None] for protocol in PROTOCOLS}

    def test_stateful_egress_lets_the_answer_in_and_nothing_else(self):
        with Lab(secured(rule("EGRESS", "10.0.1.0/24"))) as lab:
            found = by_each(lab, ("a1", "10.0.1.2"), ("a1", "10.0.0.3"), ("a3", "10.0.0.2"))
            assert found == {protocol: ["a3", None, None] for protocol in PROTOCOLS}

    def test_stateless_ingress_needs_a_rule_for_the_answer(self):
        ingress, egress = (rule(way, "10.0.1.0/24", stateless=True) for way in ("INGRESS", "EGRESS"))
        with Lab(secured(ingress)) as lab:
            assert who(lab, flow("a3", "10.0.0.2"), flow("a3", "10.0.0.3")) == [None, "a2"]
            assert died(lab, "a") == {"a1-vnic-1: egress, no security rule lets it pass"}
        with Lab(secured(ingress, egress)) as lab:
            assert who(lab, flow("a3", "10.0.0.2")) == ["a1"]

    def test_a_stateful_rule_of_one_vnic_does_not_open_another(self):
        # Out of a2 by a stateless rule; a1 answers, but nothing lets the answer into a2.
        topology = secured(rule("EGRESS", "0.0.0.0/0", stateless=True), rule("INGRESS", "1.2.3.4/32"), vnic="a2-vnic-1")
        change(topology.vnics, "a1-vnic-1", security=(rule("INGRESS", "0.0.0.0/0"),))
        with Lab(topology) as lab:
            assert who(lab, flow("a3", "10.0.0.2"), flow("a2", "10.0.0.2")) == ["a1", None]
            assert died(lab, "a") == {"a2-vnic-1: ingress, no security rule lets it pass"}

    def test_ports_protocols_and_icmp_types(self):
        with Lab(secured(rule("INGRESS", "0.0.0.0/0", "6", destination_ports=(80, 81)))) as lab:
            flows = [flow("a3", "10.0.0.2", HTTP), flow("a3", "10.0.0.2", UDP), flow("a3", "10.0.0.2")]
            assert who(lab, *flows) == ["a1", None, None]
            # The first is let in and refused by the host, which nobody listens on; the second is not let in.
            details = [
                answer.detail
                for answer in lab.probe([flow("a3", "10.0.0.2", HTTP, port=81), flow("a3", "10.0.0.2", HTTP, port=82)],
                                        0.4)
            ]  # fmt: skip
            assert details == ["connection refused", "no answer in 0.4 s"]
        with Lab(secured(rule("INGRESS", "0.0.0.0/0", "17"))) as lab:
            assert who(lab, *flows) == [None, "a1", None]
        with Lab(secured(rule("INGRESS", "0.0.0.0/0", "1", icmp_type=8))) as lab:
            assert who(lab, *flows) == [None, None, "a1"]
        with Lab(secured(rule("INGRESS", "0.0.0.0/0", "1", icmp_type=3, icmp_code=4))) as lab:
            assert who(lab, *flows) == [None, None, None]

    def test_the_subnets_list_and_the_nsgs_add_up(self):
        topology = secured(rule("INGRESS", "0.0.0.0/0", "17"))
        change(topology.subnets, "a", security=(rule("INGRESS", "0.0.0.0/0", "1"),))
        with Lab(topology) as lab:
            flows = [flow("a3", "10.0.0.2", HTTP), flow("a3", "10.0.0.2", UDP), flow("a3", "10.0.0.2")]
            assert who(lab, *flows) == [None, "a1", "a1"]

    @pytest.mark.parametrize("stateless", [True, False])
    def test_an_nsg_as_peer_means_its_vnics_whatever_address_they_use(self, stateless):
        topology = secured(rule("INGRESS", "friends", peer_is_nsg=True, stateless=stateless))
        if stateless:
            answer = rule("EGRESS", "friends", peer_is_nsg=True, stateless=True)
            change(topology.vnics, "a1-vnic-1", security=(*topology.vnics["a1-vnic-1"].security, answer))
        change(topology.vnics, "a3-vnic-1", nsgs=("friends",), skip_source_dest_check=True)
        change(topology.vnics, "a2-vnic-1", skip_source_dest_check=True)
        with Lab(topology) as lab:
            assert who(lab, flow("a3", "10.0.0.2"), flow("a2", "10.0.0.2")) == ["a1", None]
            # A friend with a foreign address gets in, a stranger with a friend's address does not.
            assert who(
                lab,
                flow("a3", "10.0.0.2", UDP, source_address="10.0.0.3", forged=True),
                flow("a2", "10.0.0.2", UDP, source_address="10.0.1.2", forged=True),
            ) == ["a1", None]
