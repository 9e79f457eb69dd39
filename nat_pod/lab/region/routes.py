"""Route tables, and which subnet uses which."""

from __future__ import annotations

from collections.abc import Mapping

from nat_pod import limits
from nat_pod.lab.region.inputs import InputRules, Inputs
from nat_pod.lab.region.kinds import (
    DEFAULT_ROUTE_TABLE,
    LPG,
    PRIVATE_IP,
    ROUTE_TABLE,
    ROUTE_TABLE_ATTACHMENT,
    SUBNET,
    VCN,
    VNIC,
)
from nat_pod.lab.region.lpg import refuse_lpg_targets
from nat_pod.lab.region.refusals import conflict, invalid, network, over_limit
from nat_pod.lab.region.resource import ObjectKind, Query, Resource
from nat_pod.lab.region.store import Record, Store, refuse_other_vcn

_ROUTES = 'OCI docs, "VCN Route Tables"'
_TROUBLE = 'OCI docs, "VCN Troubleshooting"'

ROUTE_TABLES_PER_VCN = 300


class _DefaultRouteTable(ObjectKind):
    """The route table that came with the VCN; the program does not manage it."""

    kind = DEFAULT_ROUTE_TABLE
    ocid_type = "routetable"

    def view(self, store: Store, record: Record) -> Inputs:
        vcn = store.get(record.facts["vcnId"], VCN)
        return {
            **record.facts,
            "compartmentId": vcn.inputs["compartmentId"],
            "displayName": f"Default Route Table for {vcn.facts['displayName']}",
            "state": "AVAILABLE",
        }


class _RouteTable(Resource):
    kind = ROUTE_TABLE
    ocid_type = "routetable"
    rules = InputRules(
        source="core_route_table_resource.go",
        replace=frozenset({"vcnId"}),
        removable=frozenset({"routeRules"}),
        sets=frozenset({"routeRules"}),
        defaults={"routeRules[].destinationType": "CIDR_BLOCK"},
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        vcn = store.get(inputs["vcnId"], VCN)
        if len(store.in_vcn(vcn.ocid, ROUTE_TABLE)) >= ROUTE_TABLES_PER_VCN:
            raise over_limit(f"VCN {vcn.ocid} has {ROUTE_TABLES_PER_VCN} route tables", _ROUTES)
        facts = {
            "vcnId": vcn.ocid,
            "routeRules": self._rules(store, vcn.ocid, inputs),
            "displayName": inputs.get("displayName", name),
            "state": "AVAILABLE",
        }
        return store.add(ROUTE_TABLE, name, facts, ocid)

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        rules = self._rules(store, record.facts["vcnId"], inputs)
        if any(lpg.facts.get("routeTableId") == record.ocid for lpg in store.all(LPG)):
            refuse_lpg_targets(record.ocid, rules)
        record.facts["routeRules"] = rules
        record.facts["displayName"] = inputs.get("displayName", record.facts["displayName"])

    def delete(self, store: Store, record: Record) -> None:
        for user in store.all(SUBNET, LPG):
            if user.facts.get("routeTableId") == record.ocid:
                raise conflict(
                    f"The Route Table {record.ocid} is associated with {user.ocid}. You must remove the reference to "
                    "proceed with this operation.",
                    _TROUBLE,
                )
        store.drop(record)

    def queries(self) -> Mapping[str, Query]:
        return {"oci:Core/getRouteTables:getRouteTables": _list}

    def _rules(self, store: Store, vcn: str, inputs: Inputs) -> list[Inputs]:
        rules = inputs.get("routeRules", [])
        if len(rules) > limits.ROUTE_RULES_PER_TABLE:
            raise over_limit(f"{len(rules)} route rules, a table has {limits.ROUTE_RULES_PER_TABLE}", _ROUTES)
        seen: set[str] = set()
        for rule in rules:
            destination = rule.get("destination") or rule.get("cidrBlock")
            if destination is None or ("destination" in rule and "cidrBlock" in rule):
                raise invalid("a route rule has either a destination or a cidrBlock", "OCI API, RouteRule")
            if rule["destinationType"] != "CIDR_BLOCK":
                raise invalid(f"destination type {rule['destinationType']} is not simulated", "nat_pod/lab")
            network(destination, "route destination")
            if destination in seen:
                raise invalid(f"two route rules have the destination {destination}", f"{_ROUTES}, step 5")
            seen.add(destination)
            self._refuse_target(store, vcn, rule["networkEntityId"])
        return list(rules)

    def _refuse_target(self, store: Store, vcn: str, target: str) -> None:
        if target.split(".")[1:2] not in (["localpeeringgateway"], ["privateip"]):
            raise invalid(
                f"Invalid entity type in Id {target}: a target here is an LPG or a private IP",
                "terraform-provider-oci issue 681",
            )
        record = store.get(target, LPG, PRIVATE_IP)
        if record.kind == LPG:
            refuse_other_vcn(record, vcn, _ROUTES)
            return
        subnet = store.get(record.facts["subnetId"], SUBNET)
        if subnet.facts["vcnId"] != vcn:
            raise invalid(f"PrivateIp {target} is an invalid route target: it is in another VCN", _ROUTES)
        vnic = record.facts.get("vnicId")
        if not vnic:
            raise invalid(
                f"PrivateIp {target} is an invalid route target: it is attached to no VNIC",
                f"{_ROUTES} (whether OCI takes one is not documented; strict on purpose)",
            )
        if not store.get(vnic, VNIC).facts["skipSourceDestCheck"]:
            raise invalid(
                f"PrivateIP {target} is an invalid route target. {{The Private IP is attached to a VNIC whose "
                "SRC/DST check is enabled.}",
                f"{_ROUTES}; terraform-provider-oci issue 319",
            )


class _RouteTableAttachment(Resource):
    """In OCI not an object but a setting of a subnet; at the provider a resource of its own.

    So a route table can lead to something in the very subnet that uses it.
    """

    kind = ROUTE_TABLE_ATTACHMENT
    ocid_type = "routetableattachment"
    rules = InputRules(
        source="core_route_table_attachment_resource.go",
        replace=frozenset({"routeTableId", "subnetId"}),
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        subnet = store.get(inputs["subnetId"], SUBNET)
        table = store.get(inputs["routeTableId"], ROUTE_TABLE, DEFAULT_ROUTE_TABLE)
        refuse_other_vcn(table, subnet.facts["vcnId"], "OCI API, UpdateSubnet")
        subnet.facts["routeTableId"] = table.ocid
        return store.add(
            ROUTE_TABLE_ATTACHMENT,
            name,
            {"subnetId": subnet.ocid, "routeTableId": table.ocid, "displayName": name},
            ocid,
        )

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        """Nothing: each of its inputs forces a replacement."""

    def delete(self, store: Store, record: Record) -> None:
        """The subnet gets its VCN's default table back (core_route_table_attachment_resource.go)."""
        subnet = store.get(record.facts["subnetId"], SUBNET)
        if subnet.facts["routeTableId"] == record.facts["routeTableId"]:
            subnet.facts["routeTableId"] = store.get(subnet.facts["vcnId"], VCN).facts["defaultRouteTableId"]
        store.drop(record)


def _list(store: Store, args: Inputs) -> Inputs:
    """Those of one compartment, including VCNs' default tables, by vcnId, displayName and state (ListRouteTables)."""
    if not args.get("compartmentId"):
        raise invalid("compartmentId is missing", "OCI API, ListRouteTables")
    wanted = {key: args[key] for key in ("compartmentId", "vcnId", "displayName") if args.get(key)}
    if args.get("state"):
        wanted["state"] = str(args["state"]).upper()  # case-insensitive, as the provider documents it
    tables = [
        kind.state(store, record) for kind in (_RouteTable(), _DefaultRouteTable()) for record in store.all(kind.kind)
    ]
    found = [table for table in tables if all(table[key] == value for key, value in wanted.items())]
    return {**args, "id": "routeTables", "routeTables": found}


KINDS: tuple[ObjectKind, ...] = (_RouteTable(), _DefaultRouteTable(), _RouteTableAttachment())
