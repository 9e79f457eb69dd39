"""The objects of the simulated region by their OCIDs, which all types read and change.

The store knows identities, limits and which instance is busy, and nothing about any type.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from nat_pod.lab.region.inputs import Inputs
from nat_pod.lab.region.kinds import BALANCER
from nat_pod.lab.region.refusals import OciError, conflict, invalid
from nat_pod.limits import BALANCERS_PER_REGION, LPGS_PER_VCN, SECONDARY_IPS_PER_VNIC


@dataclass
class Record:
    """One object: what its owner asked for (`inputs`) and what holds (`facts`, under the provider's output names)."""

    ocid: str
    kind: str
    name: str
    inputs: Inputs = field(default_factory=dict)
    facts: Inputs = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What differs between regions and tenancies.

    attach_seconds: how long an attach or detach lasts, during which the instance accepts no other; also how long a
    change of a network load balancer lasts, during which it accepts no other.
    domain_prefix: what the names of availability domains begin with; OCI gives each tenancy its own prefix.
    avoids_downtime: whether updateOperationConstraint AVOID_DOWNTIME is heeded, as OCI documents it.
    """

    attach_seconds: float = 0.01
    lpgs: int = LPGS_PER_VCN
    secondary_ips: int = SECONDARY_IPS_PER_VNIC
    balancers: int = BALANCERS_PER_REGION
    domain_prefix: str = "nPod"
    avoids_downtime: bool = True


class Store:
    """The objects of one region, and the region's limits.  The caller of a method holds the lock, or takes it here."""

    def __init__(self, name: str, ocid_types: Mapping[str, str], limits: Limits) -> None:
        """ocid_types: by kind, the word that its OCIDs begin with (`vcn` of ocid1.vcn.oc1..)."""
        self.name = name
        self.limits = limits
        self.health: dict[str, dict[str, bool]] = {}
        """What was told of each network load balancer: by its OCID, whether a backend is healthy, by its targetId."""
        self.consoles: dict[str, str] = {}
        """What was told of the serial consoles, by the instance's OCID."""
        self._ocid_types = ocid_types
        self._records: dict[str, Record] = {}
        self._kinds: dict[str, dict[str, Record]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._born: dict[str, int] = {}
        self._busy: set[str] = set()
        self._lock: AbstractContextManager[object] = threading.RLock()

    @property
    def availability_domains(self) -> tuple[str, ...]:
        """The region's availability domains, as the tenancy sees them."""
        return tuple(f"{self.limits.domain_prefix}:{self.name.upper()}-AD-{number}" for number in (1, 2, 3))

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

    def in_vcn(self, vcn: str, *kinds: str) -> list[Record]:
        """All objects of some kinds that belong to this VCN."""
        return [record for record in self.all(*kinds) if record.facts["vcnId"] == vcn]

    def in_subnet(self, subnet: str, kind: str) -> list[Record]:
        """All objects of a kind that lie in this subnet."""
        return [record for record in self.all(kind) if record.facts["subnetId"] == subnet]

    def find(self, kind: str, name: str) -> str | None:
        """The OCID of the object that was created under this kind and name and still exists."""
        with self._lock:
            return self._names.get((kind, name))

    def add(self, kind: str, name: str, facts: Inputs, ocid: str | None = None) -> Record:
        """Store a new object."""
        record = Record(ocid or self._new_ocid(kind, name), kind, name, facts=facts)
        if record.ocid in self._records:
            raise conflict(f"{record.ocid} exists", "an OCID is unique")
        self._keep(record)
        return record

    def adopt(self, record: Record, name: str) -> None:
        """Name an object that came with another one after the resource that manages it from now on."""
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
        """400 for an availability domain of another region.  The prefix is the tenancy's own and is not checked."""
        known = [domain.split(":")[1] for domain in self.availability_domains]
        if name.split(":")[-1].upper() not in known:
            raise invalid(
                f"availability domain {name} is not one of {', '.join(self.availability_domains)}",
                "OCI docs, Regions and Availability Domains",
            )

    def refuse_busy(self, ocid: str) -> None:
        """409 while an attach or detach of this instance, or a change of this network load balancer, is under way."""
        with self._lock:
            if ocid not in self._busy:
                return
            if self.get(ocid).kind == BALANCER:
                raise conflict(
                    "Invalid State Transition of NLB lifeCycle state from Updating to Updating",
                    "terraform-provider-oci issue 1456",
                )
            raise conflict(
                f"instance {ocid} is currently being modified, try again later", "terraform-provider-oci issue 1282"
            )

    def _keep(self, record: Record) -> None:
        self._records[record.ocid] = record
        self._kinds.setdefault(record.kind, {})[record.ocid] = record
        if record.name:
            self._names[record.kind, record.name] = record.ocid

    def _new_ocid(self, kind: str, name: str) -> str:
        identity = f"{kind} {name}"
        self._born[identity] = self._born.get(identity, 0) + 1
        unique = hashlib.sha256(f"{self.name} {identity} {self._born[identity]}".encode()).hexdigest()[:40]
        return f"ocid1.{self._ocid_types[kind]}.oc1.{self.name}.{unique}"


def refuse_other_vcn(record: Record, vcn: str, source: str) -> None:
    """400 for an object that belongs to another VCN."""
    if record.facts["vcnId"] != vcn:
        raise invalid(f"{record.ocid} belongs to VCN {record.facts['vcnId']}, not to {vcn}", source)
