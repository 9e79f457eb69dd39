"""What still fits into a POD: customers, and with `delivery: routes` gateways and blocks of aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import assert_never

from netaddr import IPNetwork

from nat_pod import limits
from nat_pod.config.addressing import clash
from nat_pod.config.aliases import BLOCK_PREFIX, block_of, free_aliases, owners
from nat_pod.config.any_config import AnyConfig
from nat_pod.config.gateways import place
from nat_pod.config.model import PodConfig
from nat_pod.config.neighbours import CustomerConfig
from nat_pod.config.pods import Pod, balancers_of_region
from nat_pod.config.routed import RoutedConfig
from nat_pod.names import NAT_VM1, Role

_NEW = "a new customer"
"""The name of the customer that is tried.  A blank keeps it from being a customer's own name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What a routed POD can still take, each with the limit that is met first, in words."""

    customers: int
    gateways: int
    gateways_end_by: str
    blocks: int
    blocks_end_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Whether a new customer fits into a POD: what keeps it out, nothing where it fits.

    gateway: the one that it would have in a routed POD, and whether that is a new one.
    """

    pod: str
    obstacles: tuple[str, ...]
    gateway: int | None = None
    new_gateway: bool = False


def room(config: RoutedConfig) -> Room:
    """What is left; the network load balancers that other PODs of the region take are not counted."""
    gateways = {
        "addresses of the VCN's range": config.layout.gateways - (len(config.roles) - 1),
        "LPGs": config.lpg_limit - len(config.customers),
    }
    if config.standby:
        gateways["network load balancers"] = config.balancer_limit - config.balancers
    blocks = {int(block_of(alias).first) for alias in (*config.book.values(), *config.released.values())}
    of_block = 2 ** (32 - BLOCK_PREFIX)
    ranges = {
        "addresses of the POD's range": (config.cidr.size - config.vcn.size) // of_block - len(blocks),
        # NAT VM2's table, if each further block is a rule of its own.
        "route rules": limits.ROUTE_RULES_PER_TABLE - len(config.host_ranges) - len(config.management.cidrs),
    }
    return Room(
        customers=config.lpg_limit - len(config.customers),
        gateways=max(0, min(gateways.values())),
        gateways_end_by=min(gateways, key=lambda what: gateways[what]),
        blocks=max(0, min(ranges.values())),
        blocks_end_by=min(ranges, key=lambda what: ranges[what]),
    )


def fit(name: str, pods: Mapping[str, Pod], cidrs: tuple[IPNetwork, ...], hosts: int) -> Fit | None:
    """Whether a customer with these networks and so many hosts fits into a POD; None where its file cannot be read."""
    config = pods[name].config
    if config is None:
        return None
    obstacles = [] if len(config.customers) < config.lpg_limit else [f"all its {config.lpg_limit} LPGs are in use"]
    if found := clash(cidrs, [config.cidr]):
        obstacles.append(f"its own range {config.cidr} overlaps {found[0]}")
    match config:
        case PodConfig():
            return Fit(pod=name, obstacles=(*obstacles, *_in_slots(config, cidrs, hosts)))
        case RoutedConfig():
            return _in_gateway(name, pods, config, cidrs, hosts, obstacles)
        case _ as never:
            assert_never(never)


def _in_slots(config: AnyConfig, cidrs: tuple[IPNetwork, ...], hosts: int) -> list[str]:
    found = [
        f"{other.name} has {shared[1]}, and NAT VM1 has one route table for all customers"
        for other in config.customers
        if (shared := clash(cidrs, other.cidrs))
    ]
    if config.capacity.free < hosts:
        found.append(f"it has {config.capacity.free} slots left for {hosts} hosts")
    return found


def _in_gateway(
    name: str,
    pods: Mapping[str, Pod],
    config: RoutedConfig,
    cidrs: tuple[IPNetwork, ...],
    hosts: int,
    obstacles: list[str],
) -> Fit:
    new = CustomerConfig(name=_NEW, cidrs=cidrs, hosts={}, servers=None, peer_id=None, formerly=None, hosts_formerly={})
    number = place([*config.customers, new], config.gateways, config.layout.gateways)[_NEW]
    if number is None:
        most = config.layout.gateways
        return Fit(
            pod=name, obstacles=(*obstacles, f"the customer fits none of {most} gateways; a larger vcnCidr has more")
        )
    role = Role(NAT_VM1, number)
    is_new = role not in config.roles
    elsewhere = balancers_of_region(name, pods)
    if is_new and config.standby and config.balancers + elsewhere >= config.balancer_limit:
        obstacles.append(
            f"a gateway of its own takes a network load balancer, and the region has {config.balancer_limit} "
            f"(balancerLimit), {config.balancers + elsewhere} of them taken"
        )
    owned = owners({**config.released, **config.book}, config.role_if_any)
    taken = {*config.book.values(), *config.released.values()}
    free = free_aliases(config.cidr, config.vcn, role=role, owned=owned, taken=taken)
    left = len(list(islice(free, hosts)))
    if left < hosts:
        obstacles.append(f"it has {left} aliases left for {hosts} hosts")
    return Fit(pod=name, obstacles=tuple(obstacles), gateway=number, new_gateway=is_new)
