"""All kinds of objects that the region knows.

A new resource type is one class in one file.  Only a new file has to be named here.
"""

from __future__ import annotations

from collections.abc import Mapping

from nat_pod.lab.region import balancer, console, dns, instance, lpg, private_ip, routes, security, vcn, vnic
from nat_pod.lab.region.refusals import not_simulated
from nat_pod.lab.region.resource import ObjectKind, Query, Resource

_SUBJECTS = (vcn, routes, lpg, security, instance, console, vnic, private_ip, balancer, dns)

KINDS: Mapping[str, ObjectKind] = {kind.kind: kind for subject in _SUBJECTS for kind in subject.KINDS}
"""By kind: resources, and objects that come with them."""

RESOURCES: Mapping[str, Resource] = {name: kind for name, kind in KINDS.items() if isinstance(kind, Resource)}
"""By type token: what the program can ask for."""

QUERIES: Mapping[str, Query] = {token: query for kind in KINDS.values() for token, query in kind.queries().items()}
"""The data sources, by token."""


def resource(type_token: str) -> Resource:
    """A type of resource; 501 for one that the region does not simulate."""
    if type_token not in RESOURCES:
        raise not_simulated(f"this simulated region has no {type_token}")
    return RESOURCES[type_token]
