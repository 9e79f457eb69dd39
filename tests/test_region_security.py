"""Network security groups and security lists of the simulated region: what is refused, and what is not."""

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
    fill,
    nets,
    table,
)


def with_rules(w: World, count: int) -> None:
    fill(count, lambda number: w.rule(source=nets(count)[number]))


REFUSALS: list[Row] = [
    ("NSG: rule 121", lambda w: with_rules(w, 121), OVER_LIMIT, "120 rules", lambda w: with_rules(w, 120)),
    ("NSG: rule without a source", lambda w: w.rule(source=None), INVALID, "needs source", lambda w: w.rule()),
    (
        "NSG: egress rule with a source",
        lambda w: w.rule(direction="EGRESS"),
        INVALID,
        "needs destination",
        lambda w: w.rule(direction="EGRESS", destination=OTHER, destinationType="CIDR_BLOCK"),
    ),
    (
        "NSG: rule without the type of its source",
        lambda w: w.rule(sourceType=None),
        INVALID,
        "sourceType",
        lambda w: w.rule(),
    ),
    ("NSG: direction", lambda w: w.rule(direction="IN"), INVALID, "INGRESS or EGRESS", lambda w: w.rule()),
    (
        "NSG: source with host bits",
        lambda w: w.rule(source="10.0.0.1/24"),
        INVALID,
        "host bits",
        lambda w: w.rule(source="10.0.0.1/32"),
    ),
    (
        "NSG: group of another VCN",
        lambda w: w.rule(source=w.nsg(w.vcn(OTHER)), sourceType="NETWORK_SECURITY_GROUP"),
        INVALID,
        "belongs to VCN",
        lambda w: w.rule(source=w.nsg(w.pod), sourceType="NETWORK_SECURITY_GROUP"),
    ),
    (
        "NSG: unknown group",
        lambda w: w.rule(source=NOWHERE, sourceType="NETWORK_SECURITY_GROUP"),
        UNKNOWN,
        NOWHERE,
        lambda w: w.rule(source=w.group, sourceType="NETWORK_SECURITY_GROUP"),
    ),
    ("NSG: protocol by name", lambda w: w.rule(protocol="tcp"), INVALID, "protocol", lambda w: w.rule(protocol="6")),
    (
        "NSG: ICMP options on TCP",
        lambda w: w.rule(protocol="6", icmpOptions={"type": 3}),
        INVALID,
        "icmpOptions",
        lambda w: w.rule(protocol="1", icmpOptions={"type": 3}),
    ),
    (
        "security list: 201 rules",
        lambda w: w.security_list(w.pod, *nets(201)),
        OVER_LIMIT,
        "200",
        lambda w: w.security_list(w.pod, *nets(200)),
    ),
    (
        "security list: not a CIDR",
        lambda w: w.security_list(w.pod, "10.0.0.0"),
        INVALID,
        "not a CIDR",
        lambda w: w.security_list(w.pod, "10.0.0.0/24"),
    ),
    (
        "delete: NSG with a VNIC",
        lambda w: w.region.delete(w.group) if w.instance(w.b, createVnicDetails={"nsgIds": [w.group]}) else None,
        CONFLICT,
        "VNICs attached",
        lambda w: w.region.delete(w.group),
    ),
    (
        "delete: security list in use",
        lambda w: w.region.delete(
            next(
                iter(
                    w.region.read(w.subnet(w.pod, "198.18.1.0/27", securityListIds=[w.security_list(w.pod)]))[
                        "securityListIds"
                    ]
                )
            )
        ),
        CONFLICT,
        "associated with subnet",
        lambda w: w.region.delete(w.security_list(w.pod)),
    ),
]


@table(REFUSALS)
def test_refused_and_its_twin_accepted(refused: Request, code: str, text: str, accepted: Request) -> None:
    assert_refused(refused, code, text, accepted)
