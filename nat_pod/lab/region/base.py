"""What the types of the simulated region are written with: records, the interface of a type, common refusals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from netaddr import AddrFormatError, IPNetwork

from nat_pod.lab.region.oci_types import Inputs, OciError

if TYPE_CHECKING:
    from nat_pod.lab.region.region import Region


@dataclass
class Record:
    """One object: what its owner asked for (`inputs`) and what holds (`facts`, under the provider's output names)."""

    ocid: str
    kind: str
    name: str
    inputs: Inputs = field(default_factory=dict)
    facts: Inputs = field(default_factory=dict)


class Behaviour(ABC):
    """What one type does.  Every method either refuses before it has changed anything, or succeeds."""

    @abstractmethod
    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        """Make the object.  `inputs` have their defaults."""

    @abstractmethod
    def update(self, region: Region, record: Record, inputs: Inputs) -> None:
        """Change the object in place to `inputs`, none of which forces a replacement."""

    @abstractmethod
    def delete(self, region: Region, record: Record) -> None:
        """Remove the object and what dies with it."""

    def view(self, region: Region, record: Record) -> Inputs:  # noqa: ARG002
        """What the provider reports beside the inputs: facts, and what follows from other objects."""
        return record.facts

    def occupies(self, inputs: Inputs) -> str | None:  # noqa: ARG002
        """The instance that a create or delete keeps busy while it lasts, if any."""
        return None


def network(text: str, what: str) -> IPNetwork:
    """A CIDR as OCI takes it: with a prefix length and without host bits; 400 otherwise.

    What the API does with host bits is not documented.  Refusing is the safe side: a program that passes here passes
    there.
    """
    try:
        parsed = IPNetwork(text)
    except (AddrFormatError, ValueError):
        parsed = None
    if parsed is None or "/" not in text or parsed.version != 4 or str(parsed) != text:
        raise OciError(400, "InvalidParameter", f"{what} {text!r} is not a CIDR block", "OCI docs, VCNs and Subnets")
    if parsed.ip != parsed.network:
        raise OciError(
            400, "InvalidParameter", f"{what} {text} has host bits set, it is {parsed.cidr}", "strict on purpose"
        )
    return parsed


def conflict(message: str, source: str) -> OciError:
    """409 for an object that something else needs."""
    return OciError(409, "Conflict", message, source)


def invalid(message: str, source: str) -> OciError:
    """400 for a request that contradicts the state of the region."""
    return OciError(400, "InvalidParameter", message, source)


def over_limit(message: str, source: str) -> OciError:
    """400 for one thing too many."""
    return OciError(400, "LimitExceeded", message, source)
