"""Names in OCI's private DNS: private views, each with a zone and its records.

A view does nothing by itself.  The owner of a VCN attaches it to the VCN's resolver, and only then its hosts get these
answers.  OCI deletes no view that a resolver refers to (OCI API, DeleteView).
"""

from __future__ import annotations

import pulumi
import pulumi_oci as oci

from nat_pod.oci.scope import Scope
from nat_pod.plan.name_views import TTL, NameViewPlan, name_views


def make_name_views(scope: Scope) -> dict[str, pulumi.Output[str]]:
    """Make the views; returns the OCID of each neighbour's, and nothing without `names`."""
    found: dict[str, pulumi.Output[str]] = {}
    for plan in name_views(scope.plan):
        view = _view(scope, plan)
        found |= dict.fromkeys(plan.realms, view.id)
    return found


def _view(scope: Scope, plan: NameViewPlan) -> oci.dns.View:
    name = scope.child(plan.key)
    aliases = [] if plan.formerly is None else [pulumi.Alias(name=scope.child(plan.formerly))]
    view = oci.dns.View(
        name,
        compartment_id=scope.plan.compartment_id,
        display_name=name,
        scope="PRIVATE",
        **scope.tags,
        opts=scope.options(aliases=aliases),
    )
    zone = oci.dns.Zone(
        name,
        compartment_id=scope.plan.compartment_id,
        name=plan.zone,
        zone_type="PRIMARY",
        scope="PRIVATE",
        view_id=view.id,
        **scope.tags,
        opts=scope.options(aliases=aliases),
    )
    for record in plan.records:
        former = [] if plan.formerly is None else [pulumi.Alias(name=scope.child(f"{plan.formerly}-{record.member}"))]
        oci.dns.Rrset(
            scope.child(f"{plan.key}-{record.member}"),
            # By the zone's OCID, which says scope and view as well.
            zone_name_or_id=zone.id,
            domain=record.domain,
            rtype="A",
            items=[
                oci.dns.RrsetItemArgs(domain=record.domain, rtype="A", rdata=record.address, ttl=TTL),
            ],
            opts=scope.options(aliases=former),
        )
    return view
