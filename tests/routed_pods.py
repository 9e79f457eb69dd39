"""Routed PODs for tests: the article's members, each with one alias."""

import copy
from typing import Any

from conftest import stack_mapping

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
