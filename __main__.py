"""The Pulumi program: one NAT POD per stack."""

from typing import cast

import pulumi

from nat_pod.args import NatPodArgs
from nat_pod.component import NatPod
from nat_pod.config import NAMESPACE
from nat_pod.errors import NatPodError

TEXTS = ("compartmentId", "cidr", "sourceNat", "lpgLimit")
OBJECTS = ("natVm", "management", "customers", "subnets", "addresses")

config = pulumi.Config(NAMESPACE)
settings = {key: config.get(key) for key in TEXTS} | {key: config.get_object(key) for key in OBJECTS}
# What the stack file says is checked by the component, whatever its types.
args = cast("NatPodArgs", {key: value for key, value in settings.items() if value is not None})
try:
    pod = NatPod(f"nat-pod-{pulumi.get_stack()}", args)
except NatPodError as error:
    raise pulumi.RunError(str(error)) from None

for name, value in pod.outputs().items():
    pulumi.export(name, value)
