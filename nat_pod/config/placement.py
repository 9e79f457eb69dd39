"""Where a POD is made: region, OCIDs and availability domain must agree, as far as their names tell.

`check` has no tenancy to ask.  But an OCID contains its realm and region, and OCI would refuse an image of another
region only after half of the POD is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from nat_pod.errors import Problem
from nat_pod.names import NAMESPACE

REGION = "oci:region"
FILL_IN = "FILL-IN"
"""What `import` writes for a value that rules do not say."""

_REGION_NAME = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]{1,2}")
# The first two regions are older than the form; Ashburn's and Phoenix' OCIDs and availability domains show it (OCI
# docs, "Resource Identifiers").
_OLDER = {"iad": "us-ashburn-1", "us-ashburn": "us-ashburn-1", "phx": "us-phoenix-1"}
_OCID = re.compile(r"ocid1\.[a-z0-9]+\.(?P<realm>[a-z0-9]+)\.(?P<region>[a-z0-9-]*)\..+")
_AVAILABILITY_DOMAIN = re.compile(r"[^:]*:(?P<region>.+)-AD-[0-9]", re.IGNORECASE)


def placement_problems(config: Mapping[str, object]) -> list[Problem]:
    """What in `config`, which has full names, contradicts itself about the place.

    A missing region is not a problem: the provider then takes the one of its own configuration.
    """
    problems = [*_left_to_fill_in(config), *_not_a_region(config)]
    region = config.get(REGION)
    if not isinstance(region, str) or not _REGION_NAME.fullmatch(region):
        region = None
    return [*problems, *_domain_elsewhere(config, region), *_ocids_elsewhere(config, region)]


def _left_to_fill_in(config: Mapping[str, object]) -> Iterator[Problem]:
    """Keys of other namespaces that are FILL-IN.  nat-pod's own have forms that FILL-IN does not fit."""
    for key, value in config.items():
        if value == FILL_IN and not key.startswith(f"{NAMESPACE}:"):
            example = f", e.g. {REGION}: uk-london-1" if key == REGION else ""
            yield Problem(key, value, f"is still to be filled in{example}")


def _not_a_region(config: Mapping[str, object]) -> Iterator[Problem]:
    region = config.get(REGION, "uk-london-1")
    if region == FILL_IN or isinstance(region, Mapping):  # said above, an encrypted one
        return
    if not region:  # what `pulumi stack init` makes of an empty key
        yield Problem(REGION, None, f"is empty; write a region, e.g. {REGION}: uk-london-1")
    elif not isinstance(region, str) or not _REGION_NAME.fullmatch(region):
        yield Problem(REGION, region, f"is not the name of a region, e.g. {REGION}: uk-london-1")


def _domain_elsewhere(config: Mapping[str, object], region: str | None) -> Iterator[Problem]:
    nat_vm = config.get(f"{NAMESPACE}:natVm")
    domain = nat_vm.get("availabilityDomain") if isinstance(nat_vm, Mapping) else None
    found = _AVAILABILITY_DOMAIN.fullmatch(domain) if isinstance(domain, str) else None
    there = None if found is None else _region_of(found["region"])
    if region and there and there != region:
        rule = f"is in region {there}; {REGION} is {region}"
        yield Problem(f"{NAMESPACE}:natVm.availabilityDomain", domain, rule)


def _ocids_elsewhere(config: Mapping[str, object], region: str | None) -> Iterator[Problem]:
    compartment = config.get(f"{NAMESPACE}:compartmentId")
    home = _OCID.fullmatch(compartment) if isinstance(compartment, str) else None
    for path, value in _regional_ocids(config):
        ocid = _OCID.fullmatch(value)
        if ocid is None:
            continue  # said elsewhere
        there = _region_of(ocid["region"])
        if region and there and there != region:
            yield Problem(path, value, f"is in region {there}; {REGION} is {region}")
        elif home is not None and home["realm"] != ocid["realm"]:
            rule = f"is in realm {ocid['realm']}; {NAMESPACE}:compartmentId is in {home['realm']}"
            yield Problem(path, value, rule)


def _regional_ocids(config: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    nat_vm = config.get(f"{NAMESPACE}:natVm")
    if isinstance(nat_vm, Mapping) and isinstance(image := nat_vm.get("imageId"), str):
        yield f"{NAMESPACE}:natVm.imageId", image
    customers = config.get(f"{NAMESPACE}:customers")
    for name, customer in customers.items() if isinstance(customers, Mapping) else ():
        if isinstance(customer, Mapping) and isinstance(peer := customer.get("peerId"), str):
            yield f"{NAMESPACE}:customers.{name}.peerId", peer


def _region_of(written: str) -> str | None:
    """The region that part of an OCID or of an availability domain's name stands for; None where it says none."""
    name = written.lower()
    return _OLDER.get(name, name if _REGION_NAME.fullmatch(name) else None)
