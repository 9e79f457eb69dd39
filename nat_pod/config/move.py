"""From the article's delivery to `delivery: routes`: the new POD's configuration, and what such a pair has to hold.

Neighbours keep every address that they know: customers call a server at its address of NAT VM1, which becomes the
server's alias, and management calls a host at its address of NAT VM2, which becomes the host's.  Both PODs stand for a
while, so the new VCN's own range has to be where neither an alias nor a subnet of the old POD is.  The old vRouter's
subnet is one of those: the vRouter has a VNIC in both, and in its operating system one network would hide the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from nat_pod.config.addressing import overlap
from nat_pod.config.aliases import VCN_PREFIX, VcnLayout, block_of
from nat_pod.config.delivery import SETTINGS, Delivery, foreign
from nat_pod.config.model import PodConfig
from nat_pod.config.protect import Protect
from nat_pod.config.routed import RoutedConfig
from nat_pod.errors import NatPodError, Problem
from nat_pod.limits import RESERVED_LOW
from nat_pod.names import NAMESPACE, MemberName

_SMALLEST_VCN = 27  # three /29s and one to spare
_WRITTEN_ANEW = ("delivery", "protect", "addresses")
_OF_THE_OLD_POD = ("formerly", "hostsFormerly", "peerId")


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """The new stack file's keys without `nat-pod:`, and comments by path.

    `peers`: the customers whose peering the old POD asks for; their LPG has a peer, so the new POD needs another one.
    """

    config: dict[str, object]
    comments: dict[str, str]
    peers: tuple[str, ...]


def known_address(old: PodConfig, name: MemberName) -> IPAddress:
    """The address at which a member's callers know it: customers a server, management a host."""
    slot = {**old.released, **old.book}[name]
    return IPAddress(old.layout.address(slot, name.side.other))


def moved(old: PodConfig, written: Mapping[str, object], stack: str) -> Moved:
    """The routed POD in the place of one of the article's delivery.

    written: the old stack's keys as its file has them, without `nat-pod:`.  stack: its name.
    Raises NatPodError when the range has no room for the new VCN's own.
    """
    vcn = _vcn_beside(old, stack)
    vrouter = VcnLayout(vcn).vrouter
    config: dict[str, object] = {"delivery": str(Delivery.ROUTES), "movesFrom": stack}
    left_out = {*foreign(Delivery.ROUTES), *_WRITTEN_ANEW}
    for key in SETTINGS:
        if key in written and key not in left_out:
            config[key] = written[key]
        if key == "cidr":
            config["vcnCidr"] = str(vcn)
    management = _without(written["management"], ("serversFormerly",))
    config["management"] = management | {"vrouter": str(IPAddress(vrouter.first + RESERVED_LOW))}
    customers = _without(written["customers"], ())
    config["customers"] = {name: _without(customer, _OF_THE_OLD_POD) for name, customer in customers.items()}
    config["protect"] = str(Protect.ALL)
    config["addresses"] = {
        **{str(name): str(known_address(old, name)) for name in old.book},
        **{str(name): {"address": str(known_address(old, name)), "released": True} for name in old.released},
    }
    comments = {
        "movesFrom": "take this line out when that POD is gone",
        "cidr": "that POD's range: every neighbour keeps the addresses it knows",
        "vcnCidr": "where that POD has neither an alias nor a subnet",
        "natVm.shape": "a routed NAT VM has one VNIC: the smallest flex shape may do",
        "management.vrouter": f"another address than in that POD: the vRouter's subnet is {vrouter} here",
        "protect": "pulumi refuses to delete or replace VCN, LPGs, balancers, NAT VMs (docs/operate.md)",
        "addresses": "a server's address of NAT VM1, a host's of NAT VM2",
    }
    peers = tuple(customer.name for customer in old.customers if customer.peer_id is not None)
    for name in peers:
        comments[f"customers.{name}"] = (
            "its LPG has a peer: write the peerId of another LPG, or it asks for the peering"
        )
    return Moved(config=config, comments=comments, peers=peers)


def _without(section: object, keys: Collection[str]) -> dict[str, object]:
    """A section without what is the old POD's alone: peers of its LPGs, and names that its resources had."""
    assert isinstance(section, Mapping)  # a PodConfig was read from it
    return {key: value for key, value in section.items() if key not in keys}


def _vcn_beside(old: PodConfig, stack: str) -> IPNetwork:
    """The last /26 of the range, or failing that /27, in which the old POD has neither an alias nor a subnet."""
    taken = [*_subnets(old), *(block_of(known_address(old, name)) for name in (*old.book, *old.released))]
    for prefix in range(VCN_PREFIX, _SMALLEST_VCN + 1):
        for network in reversed(list(old.cidr.subnet(prefix))):
            if not any(overlap(network, other) for other in taken):
                return IPNetwork(network)
    raise NatPodError(
        f"Pulumi.{stack}.yaml: every /{_SMALLEST_VCN} of {old.cidr} has an alias or a subnet, and the new VCN needs a "
        "free one. Without one, make a routed POD in another range, which gives every neighbour new addresses: "
        "python -m nat_pod new-pod --routed NAME"
    )


def _subnets(old: PodConfig) -> Iterator[IPNetwork]:
    for pair in old.pairs:
        yield from (pair.nat_vm1, pair.nat_vm2)
    yield old.layout.vrouter


def pair_problems(new: RoutedConfig, old: PodConfig, stack: str) -> list[Problem]:
    """What keeps a routed POD from taking the place of `old`, whose stack file is that of `stack`.

    Both are edited while they stand: each address must be the same member's in both, whoever was added since.
    """
    file, problems = f"Pulumi.{stack}.yaml", []
    if new.cidr != old.cidr:
        rule = f"must be {old.cidr}, the range of {file}, whose neighbours keep their addresses"
        problems.append(_problem("cidr", new.cidr, rule))
    if overlap(new.vcn, old.layout.vrouter):
        rule = f"has addresses of the vRouter's subnet in {file}, {old.layout.vrouter}; the vRouter has a VNIC in both"
        problems.append(_problem("vcnCidr", new.vcn, rule))
    known = {name: known_address(old, name) for name in (*old.book, *old.released)}
    inside = next((name for name, address in known.items() if address in new.vcn), None)
    if inside is not None:
        rule = f"has the address of {inside} in {file}, {known[inside]}; no alias lies in the VCN's own range"
        problems.append(_problem("vcnCidr", new.vcn, rule))
    owners = {address: name for name, address in known.items()}
    for name, alias in {**new.released, **new.book}.items():
        path = f'addresses["{name}"]'
        if name in known and known[name] != alias:
            rule = f"must be {known[name]}, at which its callers know it by {file}"
            problems.append(_problem(path, alias, rule))
        elif owners.get(alias, name) != name:
            problems.append(_problem(path, alias, f"is the address of {owners[alias]} in {file}; give it another one"))
    return problems


def _problem(path: str, value: object, rule: str) -> Problem:
    return Problem(f"{NAMESPACE}:{path}", str(value), rule)
