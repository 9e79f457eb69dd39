"""Which hosts make a customer, and networks for them: what rules do not say and a stack file needs.

A customer's network comes from `--customer`, from a rule that tests for it, or is the /24 around its hosts
(management's: the /16), as in the article.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork, spanning_cidr

from nat_pod.config.addressing import default_layout, overlap, reserved_by_oci
from nat_pod.config.neighbours import is_customer_name
from nat_pod.handbuilt.member_names import comment_name
from nat_pod.handbuilt.numeric import Range, as_network
from nat_pod.handbuilt.reconstruct import Handbuilt
from nat_pod.limits import MAX_VNICS, VCN_PREFIXES
from nat_pod.names import NAT_VM1
from nat_pod.text import count

POD_PREFIX = 22  # the article's POD
_CUSTOMER_PREFIX = 24
_MANAGEMENT_PREFIX = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundCustomer:
    """A customer to be.  hosts: real addresses.  why: what its network is assumed from; "" if they were given."""

    name: str
    networks: tuple[IPNetwork, ...]
    hosts: tuple[int, ...]
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Group:
    """Hosts that make a customer.  tested: the network that a rule tests for and by which they are grouped."""

    name: str
    hosts: list[int]
    tested: Range | None


def find_customers(pod: Handbuilt, given: Mapping[str, tuple[IPNetwork, ...]]) -> tuple[list[FoundCustomer], list[int]]:
    """The hosts by customer, and the hosts that are in none of the given networks.

    Hosts are grouped by the given networks, then by names in comments, by networks in rules, and by /24.
    """
    customers = [
        FoundCustomer(
            name=name,
            networks=networks,
            hosts=tuple(host for host in pod.hosts if any(host in _span(network) for network in networks)),
        )
        for name, networks in given.items()
    ]
    placed = {host for customer in customers for host in customer.hosts}
    left = [host for host in pod.hosts if host not in placed]
    groups = _groups_by_comment(pod, left, given)
    by_comment = {host for group in groups for host in group.hosts}
    taken = {*given, *(group.name for group in groups)}
    groups += _groups_by_network(pod, [host for host in left if host not in by_comment], taken)
    for group in groups:
        others = [host for host in pod.hosts if host not in group.hosts]
        taken_by = [network for customer in customers for network in customer.networks]
        network, why = _customer_network(group, others, taken_by)
        customers.append(FoundCustomer(name=group.name, networks=(network,), hosts=tuple(group.hosts), why=why))
    return customers, left if given else []


def _groups_by_comment(pod: Handbuilt, hosts: list[int], given: Container[str]) -> list[_Group]:
    found: dict[str, list[int]] = {}
    for host in sorted(hosts):
        realm = comment_name(pod, NAT_VM1, host)[0]
        if realm and is_customer_name(realm) and realm not in given:
            found.setdefault(realm, []).append(host)
    # A network stands for a customer only if its comment says so: nat-pod's own chains test for parts of networks too.
    named = {comment: inside for inside, comment in pod.networks.items()}
    return [_Group(realm, members, named.get(realm)) for realm, members in sorted(found.items())]


def _groups_by_network(pod: Handbuilt, hosts: list[int], taken: set[str]) -> list[_Group]:
    """taken: names of customers; the names given here are added."""
    tested = _tested(pod)
    found: dict[Range, list[int]] = {}
    for host in hosts:
        around = next((inside for inside in tested if inside[0] <= host <= inside[1]), None)
        first = host & ~255
        found.setdefault(around or (first, first + 255), []).append(host)
    groups = []
    for inside, members in sorted(found.items()):
        comment = pod.networks.get(inside, "")
        name = comment if is_customer_name(comment) and comment not in taken else _next_customer(taken)
        taken.add(name)
        groups.append(_Group(name, members, inside if inside in tested else None))
    return groups


def _next_customer(taken: set[str]) -> str:
    return next(name for number in range(1, len(taken) + 2) if (name := f"customer{number}") not in taken)


def _customer_network(group: _Group, others: Sequence[int], networks: Sequence[IPNetwork]) -> tuple[IPNetwork, str]:
    """A network for a customer of which only hosts are known, and where it comes from.

    others: hosts that may not lie in it.  networks: the networks that it may not overlap.
    """

    def fits(network: IPNetwork) -> bool:
        inside = _span(network)
        return (
            all(h in inside and not reserved_by_oci(IPAddress(h), network) for h in group.hosts)
            and not any(h in inside for h in others)
            and not any(overlap(network, other) for other in networks)
        )

    if group.tested is not None and fits(as_network(group.tested)):
        return as_network(group.tested), "a rule tests for it"
    around = _around(group.hosts, _CUSTOMER_PREFIX)
    hosts = count(len(group.hosts), "host")
    for prefix in range(around.prefixlen, VCN_PREFIXES.stop):
        network = IPNetwork((group.hosts[0], prefix)).cidr
        if fits(network):
            return network, f"the /{prefix} around its {hosts}"
    return around, f"the /{around.prefixlen} around its {hosts}"


def management_network(pod: Handbuilt) -> tuple[IPNetwork, str]:
    """Management's network, and what it is assumed from."""
    around = _around(list(pod.servers), _MANAGEMENT_PREFIX)
    return around, f"the /{around.prefixlen} around its {count(len(pod.servers), 'server')}"


def _tested(pod: Handbuilt) -> list[Range]:
    """Networks for which rules of NAT VM1 test the source and that can be a VCN's, the largest first."""
    found = [inside for inside in pod.networks if as_network(inside).prefixlen in VCN_PREFIXES]
    return sorted(found, key=lambda inside: (inside[0] - inside[1], inside))


def pod_range(pod: Handbuilt) -> tuple[bool, IPNetwork]:
    """Whether the layout has to be pinned, and the POD's range.  A layout as the planner makes it is not pinned."""
    spanned = _around([end for pair in pod.pairs for inside in pair for end in inside], 32)
    if 16 <= spanned.prefixlen <= POD_PREFIX:
        planned = [(pair.nat_vm1, pair.nat_vm2) for pair in default_layout(spanned, MAX_VNICS).pairs[: len(pod.pairs)]]
        if planned == [(as_network(one), as_network(two)) for one, two in pod.pairs]:
            return False, spanned
    return True, spanned if spanned.prefixlen <= POD_PREFIX else spanned.supernet(POD_PREFIX)[0]


def _around(addresses: list[int], prefix: int) -> IPNetwork:
    """The smallest network around addresses, or the one of this prefix if that is larger."""
    ends = [IPNetwork((min(addresses), prefix)).cidr, IPNetwork((max(addresses), prefix)).cidr]
    return ends[0] if ends[0] == ends[1] else spanning_cidr(ends)


def _span(network: IPNetwork) -> range:
    return range(network.first, network.last + 1)
