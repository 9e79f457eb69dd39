"""One NAT VM of a side after the other: a VM is replaced only while its balancer calls the other one healthy.

The engine replaces a VM in this order: its backend is taken out of the balancer, the old VM is terminated, the new one
launched and put behind the balancer.  So the wait is a hook that the engine runs before it deletes a backend.  It runs
in `up` alone, never in a preview, and its failure stops the engine before it has touched anything of that VM.

A program cannot wait otherwise.  `depends_on` knows resources and not whether they are well, and an Output that waits
would do so in every `up`, also where only the metadata of a VM with a dead standby changes.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pulumi
import pulumi_oci as oci

from nat_pod.oci.scope import Scope

PATIENCE_SECONDS = 600.0
"""How long a new VM may take from its launch until its balancer calls it healthy; two minutes are usual."""

_PAUSE_SECONDS = 5.0
_PROGRESS_SECONDS = 30.0


class Replacement:
    """The hook of all backends of a POD.

    The name of the hook is written into the stack's state, so it is registered whatever the plan is, and must never
    change.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        # A planned backend that is deleted before it has been registered is being replaced.  Any other is
        # deleted with its balancer (`standby: false`, one gateway less, `destroy`).  No route leads to it any more, and
        # the other backend is deleted at the same time, so waiting for it would never end.
        self._to_register = {
            scope.child(backend.vm) for balancer in scope.plan.balancers for backend in balancer.backends
        }
        self.hooks = pulumi.ResourceHookBinding(
            before_delete=[pulumi.ResourceHook(f"{scope.name}-other-nat-vm-is-healthy", self._wait)]
        )

    def watch(self, name: str, backend: oci.networkloadbalancer.Backend) -> None:
        """Note when the backend of this name has been registered."""
        backend.id.apply(lambda _: self._to_register.discard(name))

    async def _wait(self, args: pulumi.ResourceHookArgs) -> None:
        if args.name not in self._to_register or args.old_inputs is None:
            return
        own = str(args.old_inputs["name"])
        place = {
            "network_load_balancer_id": args.old_inputs["networkLoadBalancerId"],
            "backend_set_name": args.old_inputs["backendSetName"],
        }
        began, told = time.monotonic(), 0.0
        while True:
            health = await self._health(place)
            others = {name: status for name, status in health.items() if name != own}
            # A VM that is down carries nothing, and the only one of its side has nobody to wait for.
            if not others or health.get(own) == "CRITICAL" or "OK" in others.values():
                return
            waited = time.monotonic() - began
            said = ", ".join(f"{name} {status}" for name, status in sorted(others.items()))
            if waited > PATIENCE_SECONDS:
                raise pulumi.RunError(self._given_up(own, said))
            if waited >= told:
                self._tell(
                    f"{own} is replaced as soon as its balancer calls the other NAT VM healthy: {said}, {waited:.0f} s"
                )
                told += _PROGRESS_SECONDS
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _health(self, place: dict[str, Any]) -> dict[str, str]:
        """What the balancer says of each of its NAT VMs: OK, WARNING, CRITICAL or UNKNOWN (OCI API, BackendHealth)."""
        nlb = oci.networkloadbalancer
        listed = await nlb.get_backends_output(**place, opts=self._scope.asking()).future()
        assert listed is not None
        health = {}
        for backend in [one for collection in listed.backend_collections for one in collection.items]:
            answer = nlb.get_backend_health_output(**place, backend_name=backend.name, opts=self._scope.asking())
            found = await answer.future()
            assert found is not None
            health[str(backend.name)] = str(found.status)
        return health

    def _tell(self, text: str) -> None:
        pulumi.log.info(text, resource=self._scope.component)

    def _given_up(self, own: str, said: str) -> str:
        stack = pulumi.get_stack()
        return (
            f"{own} was left alone, because its balancer does not call the other NAT VM of its side healthy: {said}, "
            f"after {PATIENCE_SECONDS / 60:.0f} minutes. Look at the other one: `python -m nat_pod status {stack}`, "
            "then its serial console (docs/operate.md). When it is healthy, run `pulumi up` again. If it is dead, "
            f"replace it first: `pulumi up --target '**{self._scope.name}-NAME'`, with its name"
        )
