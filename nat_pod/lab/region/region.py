"""A simulated OCI region: the state of the resource types that a POD and its neighbours use, and OCI's refusals.

The program under mocks, the provider plugin under the real Pulumi engine, and the neighbours' owners
(`surroundings.py`) all call the same `Region`; the lab then builds what stands in it and nothing else.

This module keeps objects, identities and locks.  What a type does is in `region_network.py`, `region_compute.py`
and `region_security.py`, the data sources are in `region_queries.py`.  The texts of refusals are OCI's own where
one was found in its documents or in reports of its provider; otherwise OCI's error code with a plain sentence.
Each carries the source of the rule.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict

from nat_pod import limits
from nat_pod.lab.region import compute as region_compute
from nat_pod.lab.region import network as region_network
from nat_pod.lab.region import oci_types
from nat_pod.lab.region import security as region_security
from nat_pod.lab.region.base import Behaviour, Record
from nat_pod.lab.region.oci_types import (
    DEFAULT_ROUTE_TABLE,
    DEFAULT_SECURITY_LIST,
    INSTANCE,
    LPG,
    NSG,
    NSG_RULE,
    PRIVATE_IP,
    ROUTE_TABLE,
    ROUTE_TABLE_ATTACHMENT,
    SECURITY_LIST,
    SUBNET,
    VCN,
    VNIC,
    VNIC_ATTACHMENT,
    Diff,
    Inputs,
    OciError,
    Value,
)
from nat_pod.lab.region.queries import QUERIES

_OCID_KIND = {
    VCN: "vcn",
    SUBNET: "subnet",
    ROUTE_TABLE: "routetable",
    DEFAULT_ROUTE_TABLE: "routetable",
    ROUTE_TABLE_ATTACHMENT: "routetableattachment",
    LPG: "localpeeringgateway",
    INSTANCE: "instance",
    VNIC: "vnic",
    VNIC_ATTACHMENT: "vnicattachment",
    PRIVATE_IP: "privateip",
    NSG: "networksecuritygroup",
    NSG_RULE: "securityrule",
    SECURITY_LIST: "securitylist",
    DEFAULT_SECURITY_LIST: "securitylist",
}

_BEHAVIOURS = {**region_network.BEHAVIOURS, **region_compute.BEHAVIOURS, **region_security.BEHAVIOURS}


class Region:
    """The region.  All methods may be called from several threads at once."""

    def __init__(
        self,
        name: str = "uk-london-1",
        *,
        attach_seconds: float = 0.01,
        lpg_limit: int = limits.LPGS_PER_VCN,
        secondary_ip_limit: int = limits.SECONDARY_IPS_PER_VNIC,
        domain_prefix: str = "nPod",
    ) -> None:
        """attach_seconds: how long an attach or detach lasts, in which its instance takes no other one.

        domain_prefix: what the names of availability domains begin with in this tenancy; OCI gives each one its own.
        """
        self.name = name
        self.domain_prefix = domain_prefix
        self.attach_seconds = attach_seconds
        self.lpg_limit = lpg_limit
        self.secondary_ip_limit = secondary_ip_limit
        self._records: dict[str, Record] = {}
        self._kinds: dict[str, dict[str, Record]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._born: dict[str, int] = {}
        self._busy: set[str] = set()
        self._lock: AbstractContextManager[object] = threading.RLock()

    # The provider's operations

    def check(self, type_token: str, inputs: Inputs) -> list[tuple[str, str]]:
        """Problems found before any call, as (path, reason)."""
        return oci_types.check(type_token, inputs)

    def diff(self, type_token: str, old: Inputs, new: Inputs) -> Diff:
        """What changing a resource's inputs from `old` to `new` does."""
        return oci_types.diff(type_token, old, new)

    def create(self, type_token: str, inputs: Inputs, name: str = "", *, ocid: str | None = None) -> tuple[str, Inputs]:
        """Make a resource; returns its OCID and its state as the provider reports it.

        name: identity for `find` and for the OCID, which is a hash of type, name and how often both were used: a
        journal replayed in another order, or by several threads, gives the same OCIDs.
        ocid: for an object whose OCID is already known elsewhere (an LPG named in a stack file).
        """
        self._refuse_invalid(type_token, inputs)
        full = oci_types.with_defaults(type_token, inputs)
        name = name or str(full.get("displayName", ""))
        behaviour = self._behaviour(type_token)
        with self._modifying(behaviour.occupies(full)), self._lock:
            record = behaviour.create(self, full, name, ocid)
            record.inputs = copy.deepcopy(inputs)
            self._done(do="create", type=type_token, inputs=inputs, name=name, ocid=ocid)
            return record.ocid, self.read(record.ocid)

    def read(self, ocid: str) -> Inputs:
        """A resource's state as the provider reports it; 404 when it is gone."""
        with self._lock:
            record = self.get(ocid)
            full = oci_types.with_defaults(record.kind, record.inputs) if record.kind in oci_types.TYPES else {}
            behaviour = _BEHAVIOURS.get(record.kind)
            view = behaviour.view(self, record) if behaviour else record.facts
            return {**full, **copy.deepcopy(view), "id": ocid}

    def read_inputs(self, ocid: str) -> Inputs:
        """A resource's inputs in the shape its owner wrote, with the values that hold now.

        A refresh compares these with the program's, so a key that the owner never wrote would show as drift.
        """
        with self._lock:
            inputs: Inputs = _in_shape(self.read(ocid), self.get(ocid).inputs)
            return inputs

    def update(self, ocid: str, inputs: Inputs) -> Inputs:
        """Change a resource in place; returns its new state."""
        with self._lock:
            record = self.get(ocid)
            self._refuse_invalid(record.kind, inputs)
            replace = self.diff(record.kind, record.inputs, inputs).replace
            metadata = [path.removeprefix("metadata.") for path in replace if path.startswith("metadata.")]
            if metadata:
                raise OciError(
                    400,
                    "InvalidParameter",
                    f"The '{metadata[0]}' metadata field cannot be updated and must be provided with the already "
                    "existing value.",
                    "OCI API, UpdateInstanceDetails; terraform-provider-oci issue 673",
                )
            if replace:
                raise OciError(
                    400,
                    "InvalidParameter",
                    f"{', '.join(replace)} of {ocid} cannot be updated in place",
                    f"terraform-provider-oci, {oci_types.row(record.kind).source}",
                )
            self._behaviour(record.kind).update(self, record, oci_types.with_defaults(record.kind, inputs))
            record.inputs = copy.deepcopy(inputs)
            self._done(do="update", ocid=ocid, inputs=inputs)
            return self.read(ocid)

    def delete(self, ocid: str) -> None:
        """Delete a resource; 409 while something needs it."""
        with self._lock:
            record = self.get(ocid)
            behaviour = self._behaviour(record.kind)
        with self._modifying(behaviour.occupies(record.facts)), self._lock:
            behaviour.delete(self, self.get(ocid))
            self._done(do="delete", ocid=ocid)

    def invoke(self, token: str, args: Inputs) -> Inputs:
        """Answer a data source of the provider."""
        if token not in QUERIES:
            raise OciError(501, "NotImplemented", f"this simulated region has no {token}", "nat_pod/lab")
        with self._lock:
            return QUERIES[token](self, args)

    def find(self, type_token: str, name: str) -> str | None:
        """The OCID of the resource that was created under this type and name and still stands."""
        with self._lock:
            return self._names.get((type_token, name))

    # State outside the process

    def to_json(self) -> str:
        """The whole region as text: the same state gives the same bytes."""
        with self._lock:
            document = {
                "name": self.name,
                "domainPrefix": self.domain_prefix,
                "attachSeconds": self.attach_seconds,
                "lpgLimit": self.lpg_limit,
                "secondaryIpLimit": self.secondary_ip_limit,
                "born": self._born,
                "records": sorted((asdict(record) for record in self._records.values()), key=lambda r: str(r["ocid"])),
            }
            return json.dumps(document, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Region:
        """The region that `to_json` wrote."""
        document = json.loads(text)
        region = cls(
            document["name"],
            attach_seconds=document["attachSeconds"],
            lpg_limit=document["lpgLimit"],
            secondary_ip_limit=document["secondaryIpLimit"],
            domain_prefix=document["domainPrefix"],
        )
        region._born = document["born"]
        for entry in document["records"]:
            region._keep(Record(**entry))
        return region

    @property
    def availability_domains(self) -> tuple[str, ...]:
        """The region's availability domains, as the tenancy sees them."""
        return tuple(f"{self.domain_prefix}:{self.name.upper()}-AD-{number}" for number in (1, 2, 3))

    # For the behaviours and for those who look at the region, under its lock

    def get(self, ocid: str, *kinds: str) -> Record:
        """The object with this OCID, of one of `kinds` if given; 404 in OCI's words otherwise."""
        with self._lock:
            record = self._records.get(ocid)
        if record is None or (kinds and record.kind not in kinds):
            # OCI does not say whether a thing is absent, of another kind, or merely not yours.
            raise OciError(
                404,
                "NotAuthorizedOrNotFound",
                f"Authorization failed or requested resource not found: {ocid}",
                "OCI docs, API Errors",
            )
        return record

    def all(self, *kinds: str) -> list[Record]:
        """All objects of some kinds, by OCID kind and age."""
        with self._lock:
            return [record for kind in kinds for record in self._kinds.get(kind, {}).values()]

    def kinds(self) -> list[str]:
        """The kinds of which there are objects."""
        with self._lock:
            return [kind for kind, records in self._kinds.items() if records]

    def add(self, kind: str, name: str, facts: Inputs, ocid: str | None = None) -> Record:
        """Store a new object."""
        record = Record(ocid or self._new_ocid(kind, name), kind, name, facts=facts)
        if record.ocid in self._records:
            raise OciError(409, "Conflict", f"{record.ocid} exists", "an OCID is unique")
        self._keep(record)
        return record

    def adopt(self, record: Record, name: str) -> None:
        """Give an object that came with another one the name of the resource that manages it from now on."""
        self._names.pop((record.kind, record.name), None)
        record.name = name
        self._names[record.kind, name] = record.ocid

    def drop(self, record: Record) -> None:
        """Remove an object."""
        del self._records[record.ocid]
        del self._kinds[record.kind][record.ocid]
        if self._names.get((record.kind, record.name)) == record.ocid:
            del self._names[record.kind, record.name]

    def refuse_unknown_domain(self, name: str) -> None:
        """400 for an availability domain of another region; the prefix is each tenancy's own and not looked at."""
        known = [domain.split(":")[1] for domain in self.availability_domains]
        if name.split(":")[-1].upper() not in known:
            raise OciError(
                400,
                "InvalidParameter",
                f"availability domain {name} is not one of {', '.join(self.availability_domains)}",
                "OCI docs, Regions and Availability Domains",
            )

    def refuse_busy(self, instance: str) -> None:
        """409 while an attach or detach of this instance is under way."""
        with self._lock:
            if instance in self._busy:
                raise OciError(
                    409,
                    "Conflict",
                    f"instance {instance} is currently being modified, try again later",
                    "terraform-provider-oci issue 1282",
                )

    def _done(self, **change: Value) -> None:
        """Called under the lock after each change; a region in a file (`region_file.py`) writes it down there."""

    def _keep(self, record: Record) -> None:
        self._records[record.ocid] = record
        self._kinds.setdefault(record.kind, {})[record.ocid] = record
        if record.name:
            self._names[record.kind, record.name] = record.ocid

    def _new_ocid(self, kind: str, name: str) -> str:
        identity = f"{kind} {name}"
        self._born[identity] = self._born.get(identity, 0) + 1
        unique = hashlib.sha256(f"{self.name} {identity} {self._born[identity]}".encode()).hexdigest()[:40]
        return f"ocid1.{_OCID_KIND[kind]}.oc1.{self.name}.{unique}"

    def _behaviour(self, kind: str) -> Behaviour:
        if kind not in _BEHAVIOURS:
            raise OciError(
                501, "NotImplemented", f"this simulated region has no {kind}", "nat_pod/lab/region/region.py"
            )
        return _BEHAVIOURS[kind]

    def _refuse_invalid(self, type_token: str, inputs: Inputs) -> None:
        problems = self.check(type_token, inputs)
        if problems:
            text = "; ".join(f"{path}: {reason}" for path, reason in problems)
            raise OciError(400, "InvalidParameter", f"{type_token}: {text}", "pulumi_oci, the type's inputs")

    @contextmanager
    def _modifying(self, instance: str | None) -> Iterator[None]:
        """Keep an instance busy for as long as an attach or detach lasts, without holding the region's lock."""
        if instance is None:
            yield
            return
        with self._lock:
            self.get(instance, INSTANCE)
            self.refuse_busy(instance)
            self._busy.add(instance)
        try:
            time.sleep(self.attach_seconds)
            yield
        finally:
            with self._lock:
                self._busy.discard(instance)


def _in_shape(value: Value, shape: Value) -> Value:
    if isinstance(value, dict) and isinstance(shape, dict):
        return {key: _in_shape(value[key], shape[key]) for key in shape if key in value}
    return value
