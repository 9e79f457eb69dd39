"""Local peering gateways."""

from __future__ import annotations

from netaddr import IPNetwork

from nat_pod.lab.region.inputs import InputRules, Inputs
from nat_pod.lab.region.kinds import DEFAULT_ROUTE_TABLE, LPG, ROUTE_TABLE, VCN
from nat_pod.lab.region.refusals import conflict, invalid, over_limit
from nat_pod.lab.region.resource import ObjectKind, Resource
from nat_pod.lab.region.store import Record, Store, refuse_other_vcn
from nat_pod.lab.region.vcn import refuse_overlap

_PEERING = 'OCI docs, "Local VCN Peering"'
_TROUBLE = 'OCI docs, "VCN Troubleshooting"'


class _Lpg(Resource):
    kind = LPG
    ocid_type = "localpeeringgateway"
    rules = InputRules(
        source="core_local_peering_gateway_resource.go",
        replace=frozenset({"vcnId", "peerId"}),
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        vcn = store.get(inputs["vcnId"], VCN)
        table = self._table(store, vcn.ocid, inputs.get("routeTableId"))
        if len(store.in_vcn(vcn.ocid, LPG)) >= store.limits.lpgs:
            raise over_limit(f"VCN {vcn.ocid} has {store.limits.lpgs} local peering gateways", _PEERING)
        peer = store.get(inputs["peerId"], LPG) if "peerId" in inputs else None
        if peer is not None:
            self._refuse_peering(store, vcn, peer)
        facts = {
            "vcnId": vcn.ocid,
            "routeTableId": table,
            "displayName": inputs.get("displayName", name),
            "state": "AVAILABLE",
            "peeringStatus": "NEW",
            "isCrossTenancyPeering": False,
        }
        lpg = store.add(LPG, name, facts, ocid)
        for one, other in ((lpg, peer), (peer, lpg)):
            if one is not None and other is not None:
                cidrs = store.get(other.facts["vcnId"]).facts["cidrBlocks"]
                one.facts.update(
                    peeringStatus="PEERED",
                    peerId=other.ocid,
                    peerAdvertisedCidr=cidrs[0],
                    peerAdvertisedCidrDetails=list(cidrs),
                )
        return lpg

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        if inputs.get("routeTableId") is not None:
            record.facts["routeTableId"] = self._table(store, record.facts["vcnId"], inputs["routeTableId"])
        record.facts["displayName"] = inputs.get("displayName", record.facts["displayName"])

    def delete(self, store: Store, record: Record) -> None:
        for table in store.all(ROUTE_TABLE, DEFAULT_ROUTE_TABLE):
            if any(rule["networkEntityId"] == record.ocid for rule in table.facts["routeRules"]):
                raise conflict(
                    f"Local Peering Gateway {record.ocid} is associated with one or more entities that are in use: "
                    f"{table.ocid}",
                    _TROUBLE,
                )
        store.drop(record)
        for other in store.all(LPG):
            if other.facts.get("peerId") == record.ocid:
                other.facts["peeringStatus"] = "REVOKED"

    def check(self, inputs: Inputs) -> list[tuple[str, str]]:
        empty = [("peerId", "must not be empty")] if inputs.get("peerId") == "" else []
        return [*super().check(inputs), *empty]

    def _table(self, store: Store, vcn: str, ocid: str | None) -> str | None:
        if ocid is None:
            return None
        table = store.get(ocid, ROUTE_TABLE, DEFAULT_ROUTE_TABLE)
        refuse_other_vcn(table, vcn, _PEERING)
        refuse_lpg_targets(ocid, table.facts["routeRules"])
        return ocid

    def _refuse_peering(self, store: Store, vcn: Record, peer: Record) -> None:
        if peer.facts["peeringStatus"] != "NEW":
            raise conflict(f"Local Peering Gateway {peer.ocid} has already been connected", _TROUBLE)
        other = store.get(peer.facts["vcnId"], VCN)
        if other.ocid == vcn.ocid:
            raise invalid(f"Local Peering Gateway {peer.ocid} is in the same VCN", _PEERING)
        for lpg in store.in_vcn(vcn.ocid, LPG):
            if lpg.facts["peeringStatus"] == "PEERED" and store.get(lpg.facts["peerId"]).facts["vcnId"] == other.ocid:
                raise conflict(f"A peering with VCN {other.ocid} has already been established", _TROUBLE)
        refuse_overlap([IPNetwork(cidr) for cidr in vcn.facts["cidrBlocks"]], vcn.ocid, other)


def refuse_lpg_targets(table: str, rules: list[Inputs]) -> None:
    """400 for a route table of an LPG that leads anywhere but to a private IP (or a DRG, which is not simulated)."""
    if any(rule["networkEntityId"].split(".")[1] != "privateip" for rule in rules):
        raise invalid(f"the route table {table} of an LPG may only have private IPs and DRGs as targets", _PEERING)


KINDS: tuple[ObjectKind, ...] = (_Lpg(),)
