"""Private DNS: views, their zones and records, and the resolver of each VCN, which answers from the views attached."""

from __future__ import annotations

import re
from collections.abc import Mapping

from netaddr import INET_PTON, AddrFormatError, IPAddress

from nat_pod.lab.region.inputs import InputRules, Inputs
from nat_pod.lab.region.kinds import DNS_RESOLVER, DNS_RRSET, DNS_VIEW, DNS_ZONE, VCN
from nat_pod.lab.region.refusals import conflict, invalid
from nat_pod.lab.region.resource import ObjectKind, Query, Resource
from nat_pod.lab.region.store import Record, Store

_VIEWS = 'OCI docs, "Private Views"'
_ZONE = "OCI API, CreateZone"
_RRSET = "OCI API, UpdateRRSet"
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)


class _View(Resource):
    kind = DNS_VIEW
    ocid_type = "dnsview"
    rules = InputRules(source="dns_view_resource.go", replace=frozenset({"scope"}))

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        _refuse_public(inputs, "a view", "OCI API, CreateView: PRIVATE when creating a view for private zones")
        facts = {"displayName": inputs.get("displayName", name), "isProtected": False, "state": "ACTIVE"}
        return store.add(DNS_VIEW, name, facts, ocid)

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:  # noqa: ARG002
        record.facts["displayName"] = inputs.get("displayName", record.facts["displayName"])

    def delete(self, store: Store, record: Record) -> None:
        users = [zone for zone in store.all(DNS_ZONE) if zone.facts["viewId"] == record.ocid]
        users += [one for one in store.all(DNS_RESOLVER) if record.ocid in _attached(one)]
        if users:
            raise conflict(
                f"View {record.ocid} is referenced by {users[0].ocid}",
                "OCI API, DeleteView: not while zones or resolvers refer to it",
            )
        store.drop(record)


class _Zone(Resource):
    kind = DNS_ZONE
    ocid_type = "dnszone"
    rules = InputRules(
        source="dns_zone_resource.go",
        replace=frozenset({"name", "zoneType", "scope", "viewId"}),
        ignore_case=frozenset({"name"}),
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        _refuse_public(inputs, "a zone", "nat_pod/lab/region: there are no public zones here")
        zone = str(inputs.get("name", "")).removesuffix(".").lower()
        _refuse_no_name(zone, _ZONE)
        if inputs["zoneType"] != "PRIMARY":
            raise invalid(f"zoneType {inputs['zoneType']}: private zones must be PRIMARY", _ZONE)
        if "viewId" not in inputs:
            raise invalid("a private zone needs the viewId of its view", _ZONE)
        view = store.get(inputs["viewId"], DNS_VIEW)
        if any((one.facts["viewId"], one.facts["name"]) == (view.ocid, zone) for one in store.all(DNS_ZONE)):
            raise conflict(f"zone {zone} exists in view {view.ocid}: a name is unique within a view", _VIEWS)
        facts = {"name": zone, "viewId": view.ocid, "isProtected": False, "state": "ACTIVE", "serial": 1}
        return store.add(DNS_ZONE, name, facts, ocid)

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        """Its compartment and its tags."""

    def delete(self, store: Store, record: Record) -> None:
        for rrset in store.all(DNS_RRSET):
            if rrset.facts["zone"] == record.ocid:
                store.drop(rrset)
        store.drop(record)


class _Rrset(Resource):
    kind = DNS_RRSET
    ocid_type = "dnsrrset"
    rules = InputRules(
        source="dns_rrset_resource.go",
        replace=frozenset({"zoneNameOrId", "domain", "rtype", "scope", "viewId"}),
        ignore_case=frozenset({"domain", "rtype"}),
        sets=frozenset({"items"}),
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        zone = self._zone(store, inputs)
        facts = _rrset(zone, inputs)
        for one in store.all(DNS_RRSET):
            if all(one.facts[key] == facts[key] for key in ("zone", "domain", "rtype")):
                # UpdateRRSet would replace the records of the other resource without a word, and each `up` again.
                raise conflict(f"{facts['domain']} {facts['rtype']} is managed as {one.name}", "strict on purpose")
        return store.add(DNS_RRSET, name, facts, ocid)

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        record.facts.update(_rrset(self._zone(store, inputs), inputs))

    def delete(self, store: Store, record: Record) -> None:
        store.drop(record)

    def view(self, store: Store, record: Record) -> Inputs:  # noqa: ARG002
        return {}

    def _zone(self, store: Store, inputs: Inputs) -> Record:
        named = inputs["zoneNameOrId"]
        if not named.startswith("ocid1."):
            if "viewId" not in inputs:
                raise invalid(f"zone {named}: a private zone that is given by its name needs viewId", _RRSET)
            view = store.get(inputs["viewId"], DNS_VIEW)
            zones = [one for one in store.all(DNS_ZONE) if one.facts["viewId"] == view.ocid]
            return store.get(next((one.ocid for one in zones if one.facts["name"] == named.lower()), named))
        zone = store.get(named, DNS_ZONE)
        if inputs.get("viewId", zone.facts["viewId"]) != zone.facts["viewId"]:
            raise invalid(f"zone {zone.ocid} is in view {zone.facts['viewId']}, not in {inputs['viewId']}", _RRSET)
        _refuse_public({"scope": inputs.get("scope", "PRIVATE")}, "the zone's record", _RRSET)
        return zone


class _Resolver(Resource):
    """It comes with its VCN, and goes with it: the resource of the program only changes it."""

    kind = DNS_RESOLVER
    ocid_type = "dnsresolver"
    rules = InputRules(source="dns_resolver_resource.go", replace=frozenset({"resolverId", "scope"}))

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:  # noqa: ARG002
        record = store.get(inputs["resolverId"], DNS_RESOLVER)
        views = self._views(store, inputs)
        store.adopt(record, name)
        record.facts["attachedViews"] = views
        return record

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        record.facts["attachedViews"] = self._views(store, inputs)

    def delete(self, store: Store, record: Record) -> None:
        """The provider has no Delete, so its views stay attached (dns_resolver, "no support for Delete")."""
        record.inputs = {}
        store.adopt(record, record.facts["attachedVcnId"])

    def queries(self) -> Mapping[str, Query]:
        # So pulumi-oci spells getVcnDnsResolverAssociation.
        return {"oci:Core/getCnvDnsResolverAssociation:getCnvDnsResolverAssociation": _resolver_of}

    def _views(self, store: Store, inputs: Inputs) -> list[Inputs]:
        wanted = [one["viewId"] for one in inputs.get("attachedViews", [])]
        if len(set(wanted)) < len(wanted):
            raise invalid("a view is attached twice", "OCI API, UpdateResolver")
        return [{"viewId": store.get(view, DNS_VIEW).ocid} for view in wanted]


def answers(store: Store, vcn: str) -> dict[str, list[str]]:
    """What the resolver of a VCN answers from its views: the addresses of each name; the first view that has a zone
    for it decides.  Zones without any record are there with no name (see `zones`)."""
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for zone in _zones(store, vcn):
        if zone.facts["name"] in taken:
            continue
        taken.add(zone.facts["name"])
        for rrset in store.all(DNS_RRSET):
            if rrset.facts["zone"] == zone.ocid and rrset.facts["rtype"] == "A":
                found[rrset.facts["domain"]] = [item["rdata"] for item in rrset.facts["items"]]
    return found


def zones(store: Store, vcn: str) -> list[str]:
    """The zones for which the resolver of a VCN answers by itself: a name that is not in them does not exist."""
    return list(dict.fromkeys(zone.facts["name"] for zone in _zones(store, vcn)))


def _zones(store: Store, vcn: str) -> list[Record]:
    resolver = next(one for one in store.all(DNS_RESOLVER) if one.facts["attachedVcnId"] == vcn)
    return [zone for view in _attached(resolver) for zone in store.all(DNS_ZONE) if zone.facts["viewId"] == view]


def _attached(resolver: Record) -> list[str]:
    return [str(view["viewId"]) for view in resolver.facts["attachedViews"]]


def _resolver_of(store: Store, args: Inputs) -> Inputs:
    vcn = store.get(args["vcnId"], VCN)
    resolver = next(one for one in store.all(DNS_RESOLVER) if one.facts["attachedVcnId"] == vcn.ocid)
    return {**args, "id": vcn.ocid, "dnsResolverId": resolver.ocid, "state": "AVAILABLE"}


def _rrset(zone: Record, inputs: Inputs) -> Inputs:
    domain, rtype = inputs["domain"].removesuffix(".").lower(), inputs["rtype"].upper()
    name = zone.facts["name"]
    _refuse_no_name(domain, _RRSET)
    if domain != name and not domain.endswith(f".{name}"):
        raise invalid(f"domain {domain} is not in zone {name}", _RRSET)
    if rtype != "A":
        raise invalid(f"rtype {rtype}: this region knows A records only", "nat_pod/lab/region")
    items = inputs.get("items", [])
    if not items:
        raise invalid(f"{domain} has no items: that would delete its records", "terraform-provider-oci, dns_rrset")
    for item in items:
        if (item["domain"].removesuffix(".").lower(), item["rtype"].upper()) != (domain, rtype):
            raise invalid(f"item {item['domain']} {item['rtype']} is not of {domain} {rtype}", _RRSET)
        if not 1 <= item["ttl"] <= 604_800:
            raise invalid(f"ttl {item['ttl']} is none from 1 to 604800", "OCI docs, Supported Resource Records")
        try:
            IPAddress(item["rdata"], flags=INET_PTON)
        except (AddrFormatError, ValueError):
            raise invalid(f"rdata {item['rdata']} is no IPv4 address", "RFC 1035, section 3.4.1") from None
    return {"zone": zone.ocid, "domain": domain, "rtype": rtype, "items": [dict(item) for item in items]}


def _refuse_no_name(name: str, source: str) -> None:
    if not 1 <= len(name) <= 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise invalid(f"{name!r} is not a domain name", f"{source}; RFC 1035, section 2.3.4")


def _refuse_public(inputs: Inputs, what: str, source: str) -> None:
    if inputs.get("scope") != "PRIVATE":
        raise invalid(f"scope of {what} is {inputs.get('scope')}, not PRIVATE", source)


KINDS: tuple[ObjectKind, ...] = (_View(), _Zone(), _Rrset(), _Resolver())
