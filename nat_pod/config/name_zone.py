"""The zone in which a POD's members have names in OCI's private DNS (`names`)."""

from __future__ import annotations

import re

from nat_pod.config.reader import Reader

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL_RULE = "is not the name of a zone; labels are letters, digits and dashes, e.g. pod1.example.internal"
_LONGEST = 160  # leaves room for the longest name of a member in the 253 characters that a domain name has
_OF_OCI = "oraclevcn.com"


def read_names(reader: Reader, value: object) -> str | None:
    """The section `names`: its zone in lower case without the last dot, None where there is none."""
    if value is None or value == {}:  # {} is Pulumi.yaml's "no names"
        return None
    zone = reader.section("names", value, required=("zone",)).get("zone")
    if zone is None:
        return None
    path = "names.zone"
    if not isinstance(zone, str) or not is_zone(zone):
        reader.add(path, zone, LABEL_RULE)
        return None
    name = normal(zone)
    if len(name) > _LONGEST:
        reader.add(path, zone, f"has {len(name)} characters; at most {_LONGEST}, so that members' names fit before it")
        return None
    if name == _OF_OCI or name.endswith(f".{_OF_OCI}"):
        # A private zone there would hide what OCI itself answers in a VCN that attaches the view.
        reader.add(
            path,
            zone,
            "is in oraclevcn.com, where OCI names the VNICs of a VCN; take another zone, e.g. pod1.example.internal",
        )
        return None
    return name


def normal(zone: str) -> str:
    """Lower case, without the last dot."""
    return zone.removesuffix(".").lower()


def is_zone(zone: str) -> bool:
    """Whether it can be the name of a zone."""
    return all(LABEL.fullmatch(label) for label in normal(zone).split("."))
