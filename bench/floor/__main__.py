"""The floor of `make bench-engine`: so many resources and nothing else, as plainly as a Pulumi program can say it.

One VCN, and then in turn three kinds of resources in it that ask for nothing but the VCN: no component, no options, no
order among them.
"""

import pulumi
import pulumi_oci as oci

COMPARTMENT = "ocid1.compartment.oc1..examplefloor"
count = pulumi.Config().require_int("resources")

vcn = oci.core.Vcn("floor", compartment_id=COMPARTMENT, cidr_blocks=["198.18.0.0/21"], display_name="floor")
for number in range(1, count):
    if number % 300 < 3:
        oci.core.RouteTable(
            f"floor-{number}", compartment_id=COMPARTMENT, vcn_id=vcn.id, display_name=f"floor-{number}", route_rules=[]
        )
    elif number % 2:
        oci.core.NetworkSecurityGroup(
            f"floor-{number}", compartment_id=COMPARTMENT, vcn_id=vcn.id, display_name=f"floor-{number}"
        )
    else:
        oci.core.DhcpOptions
