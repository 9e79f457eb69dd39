"""Names for the addresses at which members are called: /etc/hosts lines, and a zone file (RFC 1035, section 5).

What the names are, and who calls whom, is in `plan/name_views.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nat_pod.config.name_zone import LABEL_RULE, is_zone, normal
from nat_pod.errors import NatPodError
from nat_pod.names import MemberName, servers_first
from nat_pod.plan.model import PodPlan
from nat_pod.plan.name_views import TTL, host_name, whom_it_calls

_LONGEST_NAME = 253


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """Members by the addresses at which they are called, and a line that says for whom this is."""

    about: str
    addresses: tuple[tuple[MemberName, str], ...]


def names_of_pod(plan: PodPlan, stack: str) -> Names:
    """All members of a POD."""
    return _names(
        f"POD {stack}: every member, at the address where its callers reach it",
        ((s.member, s.called) for s in plan.slots),
    )


def names_for(plan: PodPlan, stack: str, realm: str) -> Names:
    """Those whom somebody in a neighbour's network may call."""
    return _names(f"POD {stack}: whom {realm} may call", whom_it_calls(plan, realm))


def _names(about: str, addresses: Iterable[tuple[MemberName, str]]) -> Names:
    return Names(about=about, addresses=tuple(sorted(addresses, key=lambda one: servers_first(one[0]))))


def hosts_lines(names: Names) -> str:
    """For /etc/hosts."""
    width = max((len(address) for _, address in names.addresses), default=0)
    lines = [f"{address.ljust(width)}  {host_name(member)}" for member, address in names.addresses]
    return "\n".join([f"# {names.about}", *lines])


def zone_file(names: Names, zone: str) -> str:
    """For a name server, or for a private zone of OCI DNS.  Raises NatPodError for what is not a zone's name."""
    origin = normal(zone)
    _refuse_bad(origin, [host_name(member) for member, _ in names.addresses])
    width = max((len(host_name(member)) for member, _ in names.addresses), default=0)
    return "\n".join(
        [
            f"; {names.about}",
            f"$ORIGIN {origin}.",
            f"$TTL {TTL}",
            # Whoever serves the zone puts its own name and serial number here.
            f"@ IN SOA ns.{origin}. hostmaster.{origin}. 1 3600 600 86400 {TTL}",
            f"@ IN NS ns.{origin}.",
            *(f"{host_name(member).ljust(width)} IN A {address}" for member, address in names.addresses),
        ]
    )


def _refuse_bad(origin: str, hosts: Sequence[str]) -> None:
    if not is_zone(origin):
        raise NatPodError(f"{origin or 'nothing'}: {LABEL_RULE}")
    longest = max((f"{host}.{origin}" for host in hosts), key=len, default=origin)
    if len(longest) > _LONGEST_NAME:
        raise NatPodError(f"{longest}: has {len(longest)} characters; a name may have at most {_LONGEST_NAME}")
