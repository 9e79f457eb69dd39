"""VCNs and subnets in the simulated region: what is refused, and what is not."""

from collections.abc import Callable

from region_world import (
    CONFLICT,
    INVALID,
    NOWHERE,
    OTHER,
    OVER_LIMIT,
    UNKNOWN,
    Request,
    Row,
    World,
    assert_refused,
    nets,
    table,
)

from nat_pod.lab.region import kinds as oci


def vcn_with(w: World, make: Callable[[str], str]) -> str:
    vcn = w.vcn(OTHER)
    make(vcn)
    return vcn


REFUSALS: list[Row] = [
    ("VCN: not a CIDR", lambda w: w.vcn("10.0.0/24"), INVALID, "not a CIDR", lambda w: w.vcn("10.0.0.0/24")),
    ("VCN: a bare address", lambda w: w.vcn("10.0.0.0"), INVALID, "not a CIDR", lambda w: w.vcn("10.0.0.0/30")),
    ("VCN: host bits", lambda w: w.vcn("10.0.0.5/24"), INVALID, "host bits", lambda w: w.vcn("10.0.0.0/24")),
    ("VCN: larger than /16", lambda w: w.vcn("10.0.0.0/15"), INVALID, "/16 to a /30", lambda w: w.vcn("10.0.0.0/16")),
    ("VCN: smaller than /30", lambda w: w.vcn("10.0.0.0/31"), INVALID, "/16 to a /30", lambda w: w.vcn("10.0.0.0/30")),
    ("VCN: no CIDR", lambda w: w.vcn(), INVALID, "1 to 16", lambda w: w.vcn("10.0.0.0/16")),
    (
        "VCN: both ways to write a CIDR",
        lambda w: w.vcn("10.0.0.0/16", cidrBlock="10.0.0.0/16"),
        INVALID,
        "not both",
        lambda w: w.make(oci.VCN, {"cidrBlock": "10.0.0.0/16"}),
    ),
    (
        "VCN: its CIDRs overlap",
        lambda w: w.vcn("10.0.0.0/16", "10.0.1.0/24"),
        INVALID,
        "overlaps",
        lambda w: w.vcn("10.0.0.0/16", "10.1.0.0/24"),
    ),
    (
        "VCN: two CIDRs added at once",
        lambda w: w.update(w.pod, cidrBlocks=["198.18.0.0/22", *nets(2)]),
        INVALID,
        "only one",
        lambda w: w.update(w.pod, cidrBlocks=["198.18.0.0/22", *nets(1)]),
    ),
    (
        "VCN: a CIDR taken away under a subnet",
        lambda w: w.update(w.pod, cidrBlocks=["198.18.4.0/22"]),
        CONFLICT,
        "taken from its VCN",
        lambda w: w.update(w.pod, cidrBlocks=["198.18.0.0/23"]),
    ),
    (
        "VCN: unknown input",
        lambda w: w.vcn("10.0.0.0/16", cidr="10.0.0.0/16"),
        INVALID,
        "Unknown property",
        lambda w: w.vcn("10.0.0.0/16", dnsLabel="pod"),
    ),
    (
        "VCN: no compartment",
        lambda w: w.region.create(oci.VCN, {"cidrBlocks": ["10.0.0.0/16"]}),
        INVALID,
        "compartmentId: Missing",
        lambda w: w.vcn("10.0.0.0/16"),
    ),
    (
        "subnet: outside its VCN",
        lambda w: w.subnet(w.pod, "198.18.4.0/27"),
        INVALID,
        "contained in its VCN",
        lambda w: w.subnet(w.pod, "198.18.3.224/27"),
    ),
    (
        "subnet: overlaps another",
        lambda w: w.subnet(w.pod, "198.18.0.0/26"),
        INVALID,
        "overlaps",
        lambda w: w.subnet(w.pod, "198.18.0.64/26"),
    ),
    (
        "subnet: host bits",
        lambda w: w.subnet(w.pod, "198.18.1.1/27"),
        INVALID,
        "host bits",
        lambda w: w.subnet(w.pod, "198.18.1.0/27"),
    ),
    (
        "subnet: smaller than /30",
        lambda w: w.subnet(w.pod, "198.18.1.0/31"),
        INVALID,
        "/30",
        lambda w: w.subnet(w.pod, "198.18.1.0/30"),
    ),
    (
        "subnet: unknown VCN",
        lambda w: w.subnet(NOWHERE, "10.0.0.0/24"),
        UNKNOWN,
        NOWHERE,
        lambda w: w.subnet(w.vcn("10.0.0.0/24"), "10.0.0.0/24"),
    ),
    (
        "subnet: VCN OCID of another kind",
        lambda w: w.subnet(w.a, "198.18.1.0/27"),
        UNKNOWN,
        "subnet",
        lambda w: w.subnet(w.pod, "198.18.1.0/27"),
    ),
    (
        "subnet: another VCN's route table",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", routeTableId=w.table(w.vcn(OTHER))),
        INVALID,
        "belongs to VCN",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", routeTableId=w.table(w.pod)),
    ),
    (
        "subnet: another VCN's security list",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", securityListIds=[w.security_list(w.vcn(OTHER))]),
        INVALID,
        "belongs to VCN",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", securityListIds=[w.security_list(w.pod)]),
    ),
    (
        "subnet: six security lists",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", securityListIds=[w.security_list(w.pod) for _ in range(6)]),
        OVER_LIMIT,
        "5 security lists",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", securityListIds=[w.security_list(w.pod) for _ in range(5)]),
    ),
    (
        "subnet: availability domain of another region",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", availabilityDomain="x:US-ASHBURN-AD-1"),
        INVALID,
        "availability domain",
        lambda w: w.subnet(w.pod, "198.18.1.0/27", availabilityDomain="x:uk-london-1-AD-2"),
    ),
    (
        "subnet: shrunk under an address",
        lambda w: w.update(w.b, cidrBlock="198.18.0.64/27") if w.ip(w.vnic_of(w.instance(w.b))) else None,
        CONFLICT,
        "in use outside",
        lambda w: w.update(w.b, cidrBlock="198.18.0.32/28"),
    ),
    (
        "delete: VCN with a subnet",
        lambda w: w.region.delete(w.pod),
        CONFLICT,
        "associated with",
        lambda w: w.region.delete(w.vcn(OTHER)),
    ),
    (
        "delete: VCN with an LPG",
        lambda w: w.region.delete(vcn_with(w, w.lpg)),
        CONFLICT,
        "localpeeringgateway",
        lambda w: w.region.delete(w.vcn(OTHER)),
    ),
    (
        "delete: VCN with a route table",
        lambda w: w.region.delete(vcn_with(w, w.table)),
        CONFLICT,
        "routetable",
        lambda w: w.region.delete(w.vcn(OTHER)),
    ),
    (
        "delete: VCN with an NSG",
        lambda w: w.region.delete(vcn_with(w, w.nsg)),
        CONFLICT,
        "networksecuritygroup",
        lambda w: w.region.delete(w.vcn(OTHER)),
    ),
    (
        "delete: subnet with a VNIC",
        lambda w: w.region.delete(w.a),
        CONFLICT,
        "references the VNIC",
        lambda w: w.region.delete(w.b),
    ),
]


@table(REFUSALS)
def test_refused_and_its_twin_accepted(refused: Request, code: str, text: str, accepted: Request) -> None:
    assert_refused(refused, code, text, accepted)


def test_a_subnet_without_lists_has_the_default_list_with_ssh_open_until_it_is_emptied(world: World) -> None:
    default = world.region.read(world.pod)["defaultSecurityListId"]
    assert world.region.read(world.a)["securityListIds"] == [default]
    assert world.region.read(default)["ingressSecurityRules"][0]["tcpOptions"] == {"min": 22, "max": 22}
    managed, state = world.region.create(
        oci.DEFAULT_SECURITY_LIST,
        {"manageDefaultResourceId": default, "ingressSecurityRules": [], "egressSecurityRules": []},
        "empty",
    )
    assert managed == default
    assert state["ingressSecurityRules"] == state["egressSecurityRules"] == []
    assert world.region.find(oci.DEFAULT_SECURITY_LIST, "empty") == default
    world.region.delete(managed)
    assert world.region.read(default)["egressSecurityRules"] == []
