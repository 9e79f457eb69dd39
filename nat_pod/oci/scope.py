"""What every resource of a POD is made with: its plan, its name and its parent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi

from nat_pod.plan.model import PodPlan


@dataclass(frozen=True, slots=True)
class Scope:
    """One POD's component, for the modules that make its children.

    A child's Pulumi name is its identity: the component's name and a key that stays with the thing (`natVm1-vnic-2`,
    `customer1`, `198.18.0.3`).  So adding a customer creates that customer's resources and touches nothing else.
    The display name is the same, because an engineer in the console sees several PODs.
    """

    name: str
    plan: PodPlan
    component: pulumi.Resource

    def child(self, key: str) -> str:
        """The name of a child."""
        return f"{self.name}-{key}"

    @property
    def tags(self) -> dict[str, Any]:
        """The tags of every resource that can have some; nothing at all where the stack file says none.

        Then what OCI itself puts on a resource (tag defaults) is not touched.
        """
        tags = self.plan.tags
        return {
            **({"freeform_tags": dict(tags.freeform)} if tags.freeform else {}),
            **({"defined_tags": dict(tags.defined)} if tags.defined else {}),
        }

    @property
    def guarded_network(self) -> bool | None:
        """`protect` of what neighbours' peerings and routes lead to; None leaves it to the component's own option."""
        return self.plan.protect.network or None

    @property
    def guarded_nat_vms(self) -> bool | None:
        """`protect` of the NAT VMs."""
        return self.plan.protect.nat_vms or None

    def options(self, **options: Any) -> pulumi.ResourceOptions:  # noqa: ANN401 as ResourceOptions takes them
        """Options of a child."""
        return pulumi.ResourceOptions(parent=self.component, **options)

    def asking(self, **options: Any) -> pulumi.InvokeOutputOptions:  # noqa: ANN401 as InvokeOutputOptions takes them
        """Options of a data source."""
        return pulumi.InvokeOutputOptions(parent=self.component, **options)
