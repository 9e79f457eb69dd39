"""The Pulumi program: one NAT POD per stack."""

import pulumi

from nat_pod.component import NatPod, NatPodArgs
from nat_pod.config import NAMESPACE, PodConfig
from nat_pod.errors import NatPodError
from nat_pod.pod import plan_pod

TEXTS = ("compartmentId", "cidr", "sourceNat", "lpgLimit")
OBJECTS = ("natVm", "management", "customers", "subnets", "addresses")

config = pulumi.Config(NAMESPACE)
settings = {key: config.get(key) for key in TEXTS} | {key: config.get_object(key) for key in OBJECTS}
stack = pulumi.get_stack()
try:
    plan = plan_pod(
        PodConfig.from_mapping({key: value for key, value in settings.items() if value is not None}, stack), stack
    )
except NatPodError as error:
    raise pulumi.RunError(str(error)) from None

pod = NatPod(f"nat-pod-{stack}", NatPodArgs(plan=plan))
for name, value in pod.outputs().items():
    pulumi.export(name, value)
