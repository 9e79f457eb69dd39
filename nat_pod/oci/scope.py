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

    def options(self, **options: Any) -> pulumi.ResourceOptions:  # noqa: ANN401 as ResourceOptions takes them
        """Options of a child."""
        return pulumi.ResourceOptions(parent=self.component, **options)

    def asking(self, **options: Any) -> pulumi.InvokeOutputOptions:  # noqa: ANN401 as InvokeOutputOptions takes them
        """Options of a data source."""
        return pulumi.InvokeOutputOptions(parent=self.component, **options)
