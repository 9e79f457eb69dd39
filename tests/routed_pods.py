"""Routed PODs for tests: the article's members, each with one alias."""

import copy
import random
from typing import Any

from conftest import stack_mapping
from netaddr import IPAddress

from nat_pod.config import any_config
from nat_pod.config.address_book import as_written, settle
from nat_pod.config.routed import read_draft

ALIASES = {
    "management/mgmt": "198.18.0.2",
    "customer1/vm1": "198.18.2.2",
    "customer1/vm2": "198.18.2.3",
    "customer2/vm2": "198.18.2.4",
}


def small() -> dict[str, Any]:
    """The article's POD with `delivery: routes`: 198.18.0.0/22, the VCN's own 198.18.3.192/26."""
    mapping = stack_mapping("dev")
    del mapping["sourceNat"], mapping["subnets"]
    mapping["management"]["vrouter"] = "198.18.3.250"
    mapping["natVm"]["shape"] = {"shape": "VM.Standard.E5.Flex", "ocpus": 1, "memoryGbs": 4}
    return {**mapping, "delivery": "routes", "addresses": copy.deepcopy(ALIASES)}


def of_size(hosts: int, *, servers: int = 8, customers: int = 10, seed: int = 1, **more: object) -> dict[str, Any]:
    """A routed POD with an address book: hosts at random addresses of each customer's /16, names of every length."""
    dice = random.Random(seed)
    mapping = small() | {"cidr": "198.18.8.0/21", "addresses": {}, **more}
    mapping["management"] = {
        "cidr": "10.0.0.0/16",
        "vrouter": "198.18.15.250",
        "servers": {f"server{number}": f"10.0.200.{number + 10}" for number in range(servers)},
    }
    places = {number: dice.sample(range(2, 2**16 - 2), hosts // customers + 1) for number in range(customers)}
    mapping["customers"] = {
        f"customer{number}": {
            "cidr": f"10.{number + 1}.0.0/16",
            "hosts": {
                f"vm{at}": str(IPAddress(f"10.{number + 1}.0.0") + places[number][at // customers])
                for at in range(number, hosts, customers)
            },
        }
        for number in range(customers)
    }
    config, _, _ = read_draft(mapping, "dev")
    assert config is not None
    mapping["addresses"] = {str(name): str(entry.slot) for name, entry in settle(config).entries.items()}
    return mapping


def allocated(mapping: dict[str, Any]) -> dict[str, Any]:
    """The mapping with the address book that `allocate` makes of it."""
    config, problems, _ = any_config.draft(mapping, "x")
    assert config is not None, problems
    entries = settle(config).entries
    return {**mapping, "addresses": {str(name): as_written(config, entry) for name, entry in entries.items()}}


def one_gateway(mapping: dict[str, Any]) -> dict[str, Any]:
    """Pulumi.routed.yaml with maple in a network of its own, and so with a single customer gateway.

    mapping: with or without `nat-pod:` before each key.
    """
    mapping = copy.deepcopy(mapping)
    prefix = "nat-pod:" if "nat-pod:gateways" in mapping else ""
    del mapping[f"{prefix}gateways"]
    maple = mapping[f"{prefix}customers"]["maple"]
    maple["cidr"] = "10.0.3.0/24"
    maple["hosts"] = {name: address.replace("10.0.0.", "10.0.3.") for name, address in maple["hosts"].items()}
    mapping[f"{prefix}addresses"] |= {f"maple/{name}": f"198.18.10.{31 + at}" for at, name in enumerate(maple["hosts"])}
    return mapping
