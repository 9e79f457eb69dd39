"""The Pulumi program: one NAT POD per stack."""

from typing import cast

import pulumi
from pulumi.runtime.config import CONFIG

from nat_pod.component import NatPod
from nat_pod.config.delivery import without_foreign_defaults
from nat_pod.errors import NatPodError
from nat_pod.names import NAMESPACE
from nat_pod.oci.args import NatPodArgs

OBJECTS = ("natVm", "management", "customers", "subnets", "gateways", "policy", "names", "tags", "addresses")

config = pulumi.Config(NAMESPACE)
# Every key that the CLI hands over, even unknown ones.  If keys were read by name, a mistyped sourceNat would silently
# mean masquerade.  The component checks the keys and their values.
keys = [key.removeprefix(f"{NAMESPACE}:") for key in CONFIG.get() if key.startswith(f"{NAMESPACE}:")]
written = {key: config.get_object(key) if key in OBJECTS else config.get(key) for key in keys}
settings = without_foreign_defaults(written)
try:
    pod = NatPod(f"nat-pod-{pulumi.get_stack()}", cast("NatPodArgs", settings))
except NatPodError as error:
    raise pulumi.RunError(str(error)) from None

for name, value in pod.outputs().items():
    pulumi.export(name, value)
