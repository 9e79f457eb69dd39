"""A simulated OCI region: the resource types that a POD and its neighbours use, and OCI's refusals.

The program under mocks, the provider plugin under the real Pulumi engine, and the neighbours' owners
(`surroundings.py`) all call the same `Region`.  The lab then builds what is in it, and nothing else.

This module has the operations.  The objects are in `store.py`.  What a type is and does is one class in the file of its
subject, which `registry.py` lists.  A refusal has OCI's own text where one was found in its documents or in reports
about its provider, and otherwise OCI's error code with a plain sentence.  Each names the source of its rule.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

from nat_pod.lab.region import registry
from nat_pod.lab.region.balancer import take_health
from nat_pod.lab.region.console import take_console
from nat_pod.lab.region.inputs import Diff, Inputs, Value, in_shape
from nat_pod.lab.region.kinds import BALANCER, INSTANCE
from nat_pod.lab.region.refusals import invalid, not_simulated
from nat_pod.lab.region.store import Limits, Record, Store


class Region(Store):
    """The region.  All methods may be called from several threads at once."""

    def __init__(self, name: str = "uk-london-1", limits: Limits | None = None) -> None:
        """limits: OCI's own if there are none."""
        ocid_types = {name: kind.ocid_type for name, kind in registry.KINDS.items()}
        super().__init__(name, ocid_types, limits or Limits())
        self.version = 0
        """How often something was created, changed or deleted since this object was made."""

    # The provider's operations

    def check(self, type_token: str, inputs: Inputs) -> list[tuple[str, str]]:
        """Problems found before any call, as (path, reason)."""
        return registry.resource(type_token).check(inputs)

    def diff(self, type_token: str, old: Inputs, new: Inputs) -> Diff:
        """What changing a resource's inputs from `old` to `new` does."""
        return registry.resource(type_token).diff(old, new)

    def create(self, type_token: str, inputs: Inputs, name: str = "", *, ocid: str | None = None) -> tuple[str, Inputs]:
        """Make a resource; returns its OCID and its state as the provider reports it.

        name: identity for `find` and for the OCID.  The OCID is a hash of type, name and how often both were used, so a
        journal that is replayed in another order, or by several threads, gives the same OCIDs.
        ocid: given for an object whose OCID is already known elsewhere (an LPG named in a stack file).
        """
        self._refuse_invalid(type_token, inputs)
        resource = registry.resource(type_token)
        full = resource.with_defaults(inputs)
        name = name or str(full.get("displayName", ""))
        with self._modifying(resource.occupies(full)), self._lock:
            record = resource.create(self, full, name, ocid)
            record.inputs = copy.deepcopy(inputs)
            self._done(do="create", type=type_token, inputs=inputs, name=name, ocid=ocid)
            return record.ocid, self.read(record.ocid)

    def read(self, ocid: str) -> Inputs:
        """A resource's state as the provider reports it; 404 when it is gone."""
        with self._lock:
            record = self.get(ocid)
            return registry.KINDS[record.kind].state(self, record)

    def read_inputs(self, ocid: str) -> Inputs:
        """A resource's inputs in the shape in which its owner wrote them, with their current values.

        A refresh compares these with the program's, so a key that the owner never wrote would show as drift.
        """
        with self._lock:
            inputs: Inputs = in_shape(self.read(ocid), self.get(ocid).inputs)
            return inputs

    def update(self, ocid: str, inputs: Inputs) -> Inputs:
        """Change a resource in place; returns its new state."""
        with self._lock:
            record = self.get(ocid)
            self._refuse_invalid(record.kind, inputs)
            resource = registry.resource(record.kind)
            occupied = resource.occupies_to_update(record)
        with self._modifying(occupied), self._lock:
            record = self.get(ocid)
            replace = resource.diff(record.inputs, inputs).replace
            metadata = [path.removeprefix("metadata.") for path in replace if path.startswith("metadata.")]
            if metadata:
                raise invalid(
                    f"The '{metadata[0]}' metadata field cannot be updated and must be provided with the already "
                    "existing value.",
                    "OCI API, UpdateInstanceDetails; terraform-provider-oci issue 673",
                )
            if replace:
                raise invalid(
                    f"{', '.join(replace)} of {ocid} cannot be updated in place",
                    f"terraform-provider-oci, {resource.rules.source}",
                )
            resource.update(self, record, resource.with_defaults(inputs))
            record.inputs = copy.deepcopy(inputs)
            self._done(do="update", ocid=ocid, inputs=inputs)
            return self.read(ocid)

    def delete(self, ocid: str) -> None:
        """Delete a resource; 409 while something needs it."""
        with self._lock:
            record = self.get(ocid)
            resource = registry.resource(record.kind)
            occupied = resource.occupies({"id": ocid, **record.facts})
        with self._modifying(occupied), self._lock:
            resource.delete(self, self.get(ocid))
            self._done(do="delete", ocid=ocid)

    def report_health(self, balancer: str, healthy: Mapping[str, bool] | None) -> None:
        """Say which backends of a load balancer are healthy, for whoever asks the region (getBackendHealth).

        Said by somebody who sees the packets: the lab's balancer, or a test.  healthy: by a backend's targetId, so that
        what was said of a VM does not pass to its successor; None: nobody looks any more.
        """
        with self._lock:
            take_health(self, balancer, healthy)
            self._done(do="health", ocid=balancer, healthy=None if healthy is None else dict(healthy))

    def report_console(self, instance: str, text: str) -> None:
        """Say what an instance's serial console holds, for whoever captures it (ConsoleHistory)."""
        with self._lock:
            take_console(self, instance, text)
            self._done(do="console", ocid=instance, text=text)

    def set_limits(self, limits: Limits) -> None:
        """Raise or lower the region's limits, as Oracle does on request; what is there already stays."""
        with self._lock:
            if limits != self.limits:
                self.limits = limits
                self._done(do="limits", limits=asdict(limits))

    def invoke(self, token: str, args: Inputs) -> Inputs:
        """Answer a data source of the provider."""
        if token not in registry.QUERIES:
            raise not_simulated(f"this simulated region has no {token}")
        with self._lock:
            return registry.QUERIES[token](self, args)

    # State outside the process

    def to_json(self) -> str:
        """The whole region as text; the same state always gives the same bytes."""
        with self._lock:
            document = {
                "name": self.name,
                "limits": asdict(self.limits),
                "born": self._born,
                "consoles": self.consoles,
                "health": self.health,
                "records": sorted((asdict(record) for record in self._records.values()), key=lambda r: str(r["ocid"])),
            }
            return json.dumps(document, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Region:
        """The region that `to_json` wrote."""
        document = json.loads(text)
        region = cls(document["name"], Limits(**document["limits"]))
        region._born = document["born"]
        region.consoles = document["consoles"]
        region.health = document["health"]
        for entry in document["records"]:
            region._keep(Record(**entry))
        return region

    def _done(self, **change: Value) -> None:
        """Called under the lock after each change; a region in a file (`file.py`) writes the change to its journal."""
        if change["do"] not in ("health", "console", "limits"):
            self.version += 1

    def _refuse_invalid(self, type_token: str, inputs: Inputs) -> None:
        problems = self.check(type_token, inputs)
        if problems:
            text = "; ".join(f"{path}: {reason}" for path, reason in problems)
            raise invalid(f"{type_token}: {text}", "pulumi_oci, the type's inputs")

    @contextmanager
    def _modifying(self, ocid: str | None) -> Iterator[None]:
        """Keep an instance or a load balancer busy as long as a change lasts, without holding the region's lock."""
        if ocid is None:
            yield
            return
        with self._lock:
            self.get(ocid, INSTANCE, BALANCER)
            self.refuse_busy(ocid)
            self._busy.add(ocid)
        try:
            time.sleep(self.limits.attach_seconds)
            yield
        finally:
            with self._lock:
                self._busy.discard(ocid)
