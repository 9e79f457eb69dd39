"""The floor of `make bench-engine`: so many resources and nothing else, as plainly as a Pulumi program can say it.

One VCN, network security groups in it, and their rules: no component, no options, no order but by reference.
A security rule has about as many properties as a private IP, which is what most of a POD is.

One data source is asked at once, which gets the calls under way before the program ends.  Without it Pulumi's SDK waits
for each Output in rounds over all of them, and a floor that pays for that would flatter the POD, which does not.
"""

from importlib.metadata import version

import pulumi
import pulumi_oci as oci

COMPARTMENT = "ocid1.compartment.oc1..examplefloor"
RULES_PER_GROUP = 100

left = pulumi.Config().require_int("resources") - 1
vcn = oci.core.Vcn("floor", compartment_id=COMPARTMENT, cidr_blocks=["198.18.0.0/21"], display_name="floor")
pulumi.runtime.invoke(
    "oci:Identity/getAvailabilityDomains:getAvailabilityDomains",
    {"compartmentId": COMPARTMENT},
    pulumi.InvokeOptions(version=version("pulumi-oci")),
)
while left > 0:
    name = f"floor-{left}"
    group = oci.core.NetworkSecurityGroup(name, compartment_id=COMPARTMENT, vcn_id=vcn.id, display_name=name)
    rules = min(RULES_PER_GROUP, left - 1)
    for number in range(rules):
        oci.core.NetworkSecurityGroupSecurityRule(
            f"{name}-{number}",
            network_security_group_id=group.id,
            direction="INGRESS",
            protocol="all",
            source=f"10.0.{number}.0/24",
            source_type="CIDR_BLOCK",
            stateless=True,
        )
    left -= rules + 1
