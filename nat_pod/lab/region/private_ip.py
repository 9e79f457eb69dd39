"""Private IPs."""

from __future__ import annotations

from collections.abc import Mapping

from netaddr import AddrFormatError, IPAddress, IPNetwork

from nat_pod.config.addressing import reserved_by_oci
from nat_pod.lab.region.inputs import InputRules, Inputs
from nat_pod.lab.region.kinds import PRIVATE_IP, ROUTE_TABLE, SUBNET, VNIC
from nat_pod.lab.region.refusals import invalid, not_simulated, over_limit
from nat_pod.lab.region.resource import ObjectKind, Query, Resource
from nat_pod.lab.region.store import Record, Store, refuse_other_vcn

_IPS = 'OCI docs, "Private IP Addresses"'


class _PrivateIp(Resource):
    kind = PRIVATE_IP
    ocid_type = "privateip"
    rules = InputRules(
        # vnicId is *not* here: after a replaced VNIC the provider updates a dead OCID and gets 404 (its issue #613).
        source="core_private_ip_resource.go",
        replace=frozenset({"cidrPrefixLength", "ipAddress", "ipv4subnetCidrAtCreation", "subnetId", "vlanId"}),
        removable=frozenset({"vnicId", "routeTableId"}),
        ignore_case=frozenset({"hostnameLabel"}),
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        if "cidrPrefixLength" in inputs or "vlanId" in inputs:
            raise not_simulated("cidrPrefixLength and vlanId are not simulated")
        vnic = store.get(inputs["vnicId"], VNIC) if inputs.get("vnicId") else None
        lifetime = inputs.get("lifetime", "EPHEMERAL")
        if vnic is None and (lifetime != "RESERVED" or "subnetId" not in inputs):
            raise invalid(
                "a private IP without vnicId needs subnetId and lifetime RESERVED", "OCI API, CreatePrivateIp"
            )
        subnet = store.get(vnic.facts["subnetId"] if vnic else inputs["subnetId"], SUBNET)
        if vnic is not None:
            if inputs.get("subnetId", subnet.ocid) != subnet.ocid:
                raise invalid(f"VNIC {vnic.ocid} is not in subnet {inputs['subnetId']}", _IPS)
            _refuse_more_ips(store, vnic)
        address = claim(store, subnet, inputs.get("ipAddress"))
        facts = ip_facts(subnet, vnic, address, primary=False)
        facts.update(lifetime=lifetime, isReserved=lifetime == "RESERVED", displayName=inputs.get("displayName", name))
        facts.update(self._table(store, subnet, inputs))
        return store.add(PRIVATE_IP, name, facts, ocid)

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        vnic = store.get(inputs["vnicId"], VNIC) if inputs.get("vnicId") else None
        lifetime = inputs.get("lifetime", record.facts["lifetime"])
        if vnic is None and lifetime != "RESERVED":
            raise invalid("only a private IP of lifetime RESERVED can be without a VNIC", "OCI API, UpdatePrivateIp")
        if vnic is not None and vnic.ocid != record.facts.get("vnicId"):
            if record.facts["isPrimary"]:
                raise invalid("a primary private IP cannot be moved", _IPS)
            if vnic.facts["subnetId"] != record.facts["subnetId"]:
                raise invalid("a private IP can only be moved to a VNIC of the same subnet", _IPS)
            _refuse_more_ips(store, vnic)
        table = self._table(store, store.get(record.facts["subnetId"]), inputs)
        record.facts.update(
            table,
            vnicId=vnic.ocid if vnic else None,
            ipState="ASSIGNED" if vnic else "AVAILABLE",
            lifetime=lifetime,
            isReserved=lifetime == "RESERVED",
            displayName=inputs.get("displayName", record.facts["displayName"]),
        )

    def delete(self, store: Store, record: Record) -> None:
        if record.facts["isPrimary"]:
            raise invalid(f"{record.ocid} is a primary private IP, which cannot be deleted", _IPS)
        store.drop(record)  # a route rule to it becomes a blackhole; that is not refused (OCI docs, "Route Tables")

    def queries(self) -> Mapping[str, Query]:
        return {"oci:Core/getPrivateIps:getPrivateIps": _list}

    def _table(self, store: Store, subnet: Record, inputs: Inputs) -> Inputs:
        table = inputs.get("routeTableId")
        if table is not None:
            refuse_other_vcn(store.get(table, ROUTE_TABLE), subnet.facts["vcnId"], _IPS)
        return {"routeTableId": table}


def _refuse_more_ips(store: Store, vnic: Record) -> None:
    held = [ip for ip in store.all(PRIVATE_IP) if ip.facts.get("vnicId") == vnic.ocid and not ip.facts["isPrimary"]]
    if len(held) >= store.limits.secondary_ips:
        raise over_limit(f"VNIC {vnic.ocid} has {store.limits.secondary_ips} secondary private IPs", _IPS)


def claim(store: Store, subnet: Record, wanted: str | None) -> str:
    """The address that a new private IP of `subnet` gets; 400 when it cannot have it."""
    cidr = IPNetwork(subnet.facts["cidrBlock"])
    taken = {ip.facts["ipAddress"] for ip in store.all(PRIVATE_IP) if ip.facts["subnetId"] == subnet.ocid}
    if wanted is None:
        for address in cidr:
            if reserved_by_oci(address, cidr) is None and str(address) not in taken:
                return str(address)
        raise over_limit(f"subnet {subnet.ocid} {cidr} has no free address", 'OCI docs, "VCNs and Subnets"')
    try:
        address = IPAddress(wanted)
    except (AddrFormatError, ValueError):
        raise invalid(f"{wanted!r} is not an IP address", "OCI API, CreatePrivateIp") from None
    if address not in cidr:
        raise invalid(f"Private IP address {wanted} is not within the subnet {cidr}", _IPS)
    reason = reserved_by_oci(address, cidr)
    if reason is not None:
        raise invalid(reason, 'OCI docs, "VCNs and Subnets"')
    if wanted in taken:
        raise invalid(f"Private IP address {wanted} is already in use", _IPS)
    return wanted


def ip_facts(subnet: Record, vnic: Record | None, address: str, *, primary: bool) -> Inputs:
    """The facts of a new private IP."""
    return {
        "ipAddress": address,
        "subnetId": subnet.ocid,
        "vnicId": vnic.ocid if vnic else None,
        "isPrimary": primary,
        "ipState": "ASSIGNED" if vnic else "AVAILABLE",
        "isReserved": False,
        "lifetime": "EPHEMERAL",
        "routeTableId": None,
    }


def _list(store: Store, args: Inputs) -> Inputs:
    """By subnetId, vnicId, or subnetId and ipAddress; an address without its subnet says nothing (ListPrivateIps)."""
    if args.get("ipAddress") and not args.get("subnetId"):
        raise invalid("ipAddress needs subnetId", "OCI API, ListPrivateIps")
    if not (args.get("subnetId") or args.get("vnicId")):
        raise invalid("give subnetId or vnicId", "OCI API, ListPrivateIps")
    wanted = {key: args[key] for key in ("subnetId", "ipAddress", "vnicId") if args.get(key)}
    found = [
        _PrivateIp().state(store, record)
        for record in store.all(PRIVATE_IP)
        if all(record.facts.get(key) == value for key, value in wanted.items())
    ]
    return {**args, "id": "privateIps", "privateIps": sorted(found, key=lambda ip: str(ip["ipAddress"]))}


KINDS: tuple[ObjectKind, ...] = (_PrivateIp(),)
