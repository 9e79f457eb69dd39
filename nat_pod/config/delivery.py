"""How a POD delivers packets to its NAT VMs (`delivery`), and which settings each way has.

`privateIps` is the article's: an alias is a private IP of a NAT VM.  With `routes` the aliases lie outside the VCN's
range, and route tables lead them to the NAT VM that translates; a second VM of each role may stand by.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from enum import StrEnum
from typing import assert_never

from nat_pod import limits
from nat_pod.config.reader import Reader
from nat_pod.config.source_nat import SourceNat


class Delivery(StrEnum):
    """How packets for an alias reach the NAT VM that translates it (`delivery`)."""

    PRIVATE_IPS = "privateIps"
    """An alias is a private IP of a NAT VM; a member has two of them, a slot."""

    ROUTES = "routes"
    """An alias is the destination of a route; a member has one."""


_REQUIRED = ("compartmentId", "cidr", "natVm", "management", "customers")
_OPTIONAL = (
    "delivery",
    "sourceNat",
    "standby",
    "vcnCidr",
    "lpgLimit",
    "balancerLimit",
    "subnets",
    "movesFrom",
    "gateways",
    "policy",
    "names",
    "protect",
    "tags",
    "addresses",
)
SETTINGS = (*_REQUIRED, *_OPTIONAL)
"""The keys of a stack file below `nat-pod:`, those of one delivery alone among them."""

_DEFAULTS: dict[Delivery, dict[str, object]] = {
    Delivery.PRIVATE_IPS: {"sourceNat": SourceNat.MASQUERADE, "subnets": {}},
    Delivery.ROUTES: {
        "standby": True,
        "vcnCidr": "",
        "balancerLimit": limits.BALANCERS_PER_REGION,
        "movesFrom": "",
        "gateways": {},
    },
}
"""The settings that only one delivery has, with their defaults in `Pulumi.yaml`."""


def defaults(delivery: Delivery) -> Mapping[str, object]:
    """The settings that no other delivery has, with their defaults."""
    return _DEFAULTS[delivery]


def only(delivery: Delivery) -> tuple[str, ...]:
    """The settings that no other delivery has."""
    return tuple(_DEFAULTS[delivery])


def foreign(delivery: Delivery) -> dict[str, str]:
    """The settings that this delivery does not have, each with the reason and what to do."""
    match delivery:
        case Delivery.PRIVATE_IPS:
            why = "is a setting of delivery: routes; take it out, or write delivery: routes"
            return dict.fromkeys(only(Delivery.ROUTES), why)
        case Delivery.ROUTES:
            return {
                "sourceNat": (
                    "does not exist with delivery: routes: each member keeps an alias of its own at the far end, as "
                    "with static; take it out"
                ),
                "subnets": (
                    "does not exist with delivery: routes: aliases lie in no subnet, and the VCN's range is laid out "
                    "by nat-pod; take it out (vcnCidr says where that range is)"
                ),
            }
        case _ as never:
            assert_never(never)


def read_root(reader: Reader, mapping: Mapping[str, object], delivery: Delivery) -> dict[str, object]:
    """A configuration's top level without the settings that its delivery does not have; those written are problems."""
    unknown = foreign(delivery)
    for key, why in unknown.items():
        if mapping.get(key) is not None:
            reader.add(key, mapping[key], why)
    known = {key: value for key, value in mapping.items() if key not in unknown}
    optional = tuple(key for key in _OPTIONAL if key not in unknown)
    return reader.section("", known, required=_REQUIRED, optional=optional)


def written(value: object) -> Delivery:
    """The delivery of a value that may be missing or wrong: what is not `routes` is read as the article's."""
    return Delivery.ROUTES if value == Delivery.ROUTES else Delivery.PRIVATE_IPS


def without_foreign_defaults(
    config: Mapping[str, object], prefix: str = "", said: Container[str] = ()
) -> dict[str, object]:
    """A configuration without what only `Pulumi.yaml` says of settings that its delivery does not have.

    The Pulumi CLI gives every stack every default of the project, so `sourceNat: masquerade` says nothing there.
    prefix: of the keys, e.g. `nat-pod:`.  said: the keys that the stack file itself has, where that is known; they stay
    and are refused.
    """
    delivery = written(config.get(f"{prefix}delivery"))
    unsaid = {
        f"{prefix}{key}": value for other in Delivery if other is not delivery for key, value in defaults(other).items()
    }
    return {
        key: value for key, value in config.items() if key not in unsaid or key in said or not _same(value, unsaid[key])
    }


def _same(value: object, default: object) -> bool:
    # The CLI hands scalars over as strings: "3", "true".
    return value == default or (isinstance(value, str) and value.lower() == str(default).lower())
