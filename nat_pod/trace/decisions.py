"""What is decided on a packet's way, as values: by which rule or route, and what the header is afterwards.

A packet's way is a list of decisions, followed by a refusal if the packet dies.  They say what was decided, but not in
words: `explain.py` makes steps, hops and sentences of them when somebody asks.

Addresses are numbers; `src` and `dst` are those of the header after the decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple

from nat_pod.trace.chains import Verdict
from nat_pod.trace.dispositions import Disposition
from nat_pod.trace.topology import Balancer, Lpg, Route, SecurityRule, Subnet, Vm, Vnic


class Direction(StrEnum):
    """Which way a security rule looks, as OCI writes it."""

    EGRESS = "EGRESS"
    INGRESS = "INGRESS"


# --- decisions: the packet goes on -----------------------------------------------------------------------------------


class GuestRouted(NamedTuple):
    """A machine's own routing: it sends by this VNIC.  `by` is the route's network, or "default route"."""

    vm: Vm
    vnic: Vnic
    by: str


class SourceChecked(NamedTuple):
    """The VNIC may send from this source."""

    vnic: Vnic


class VcnRouted(NamedTuple):
    """The way through the VCN to `arrival`, a VNIC of `receiver`: by `route`, or locally where there is none.

    peer: the LPG that it comes out of, None for a way inside the VCN.
    """

    subnet: Subnet
    route: Route | None
    peer: Lpg | None
    arrival: Vnic
    receiver: Vm


class Balanced(NamedTuple):
    """A load balancer sends the packet on, as it came, to `arrival`, the VNIC of the backend `receiver`.

    others: the other backends, each with whether it is healthy.
    """

    balancer: Balancer
    arrival: Vnic
    receiver: Vm
    others: tuple[tuple[Vm, bool], ...]


class Secured(NamedTuple):
    """A security rule lets it pass; None: it is the reply of a flow that a stateful rule let pass."""

    direction: Direction
    rule: SecurityRule | None


class DestinationChecked(NamedTuple):
    """The VNIC accepts packets for this destination."""

    vnic: Vnic
    vm: Vm


class Conntracked(NamedTuple):
    """A NAT VM's conntrack knows the flow and has translated the packet, or does not know it."""

    known: bool
    src: int
    dst: int


class Filtered(NamedTuple):
    """What a NAT VM's own chains behind a built-in chain did with it."""

    builtin: str
    verdict: Verdict
    src: int
    dst: int


class Owned(NamedTuple):
    """A NAT VM's routing: the destination is one of its own addresses."""

    vm: Vm
    address: int


class Delivered(NamedTuple):
    """The machine has the destination, and the packet ends here."""

    vm: Vm
    address: int


Decision = (
    GuestRouted
    | SourceChecked
    | VcnRouted
    | Balanced
    | Secured
    | DestinationChecked
    | Conntracked
    | Filtered
    | Owned
    | Delivered
)


# --- refusals: the packet ends here ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForeignSource:
    """The check is on, and the source is not one of the VNIC's addresses."""

    disposition: ClassVar = Disposition.SOURCE_DEST_CHECK
    vnic: Vnic
    address: int


@dataclass(frozen=True, slots=True)
class ForeignDestination:
    """The check is on, and the destination is not one of the VNIC's addresses."""

    disposition: ClassVar = Disposition.SOURCE_DEST_CHECK
    vnic: Vnic
    address: int


@dataclass(frozen=True, slots=True)
class NoRoute:
    """The route table of a subnet or an LPG has nothing for the address, and it is not in the VCN."""

    disposition: ClassVar = Disposition.NO_ROUTE
    table: Subnet | Lpg
    address: int


@dataclass(frozen=True, slots=True)
class NoTransit:
    """An LPG's route table leads to another LPG."""

    disposition: ClassVar = Disposition.NO_ROUTE
    lpg: Lpg


@dataclass(frozen=True, slots=True)
class OutsideVcn:
    """The LPG has no route table, and the VCN behind it does not have the address."""

    disposition: ClassVar = Disposition.NO_ROUTE
    lpg: Lpg
    address: int


@dataclass(frozen=True, slots=True)
class NotPeered:
    """The route's LPG does not exist, or is not peered."""

    disposition: ClassVar = Disposition.NOT_PEERED
    route: Route


@dataclass(frozen=True, slots=True)
class NoPrivateIp:
    """No VNIC in the VCN has the address."""

    disposition: ClassVar = Disposition.NO_PRIVATE_IP
    vcn: str
    address: int


@dataclass(frozen=True, slots=True)
class NobodyHealthy:
    """No backend of the load balancer is healthy."""

    disposition: ClassVar = Disposition.NOT_BALANCED
    balancer: Balancer


@dataclass(frozen=True, slots=True)
class ForBalancer:
    """The destination is the load balancer's own address, at which it takes nothing."""

    disposition: ClassVar = Disposition.NOT_BALANCED
    balancer: Balancer


@dataclass(frozen=True, slots=True)
class Down:
    """The machine is down, as the caller of the trace assumes (`down`)."""

    disposition: ClassVar = Disposition.NOT_FORWARDING
    vm: Vm


@dataclass(frozen=True, slots=True)
class NotSecured:
    """No security rule lets it pass; `address` is the other end's."""

    disposition: ClassVar = Disposition.SECURITY_RULE
    vnic: Vnic
    direction: Direction
    address: int


@dataclass(frozen=True, slots=True)
class AnswersElsewhere:
    """rp_filter: it came by one VNIC, and the source is reached by another."""

    disposition: ClassVar = Disposition.RP_FILTER
    vm: Vm
    arrival: Vnic
    back: Vnic


@dataclass(frozen=True, slots=True)
class Dropped:
    """A NAT VM's guard drops it: FORWARD or INPUT."""

    disposition: ClassVar = Disposition.NO_MAPPING
    vm: Vm
    builtin: str
    verdict: Verdict
    src: int
    dst: int


@dataclass(frozen=True, slots=True)
class AnsweredByNatVm:
    """The destination is the NAT VM, and its INPUT rules let the packet in."""

    disposition: ClassVar = Disposition.ANSWERED_BY_NAT_VM
    vm: Vm
    address: int


@dataclass(frozen=True, slots=True)
class NotForwarding:
    """The destination is another machine's, and this one does not forward."""

    disposition: ClassVar = Disposition.NOT_FORWARDING
    vm: Vm
    address: int


@dataclass(frozen=True, slots=True)
class Looped:
    """It is still on its way after this many machines."""

    disposition: ClassVar = Disposition.LOOP
    machines: int


Refusal = (
    ForeignSource
    | ForeignDestination
    | NoRoute
    | NoTransit
    | OutsideVcn
    | NotPeered
    | NoPrivateIp
    | NobodyHealthy
    | ForBalancer
    | Down
    | NotSecured
    | AnswersElsewhere
    | Dropped
    | AnsweredByNatVm
    | NotForwarding
    | Looped
)


class RefusedError(Exception):
    """The packet ends here.  Raised only within the tracer: a leg has the refusal as a value."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal
