"""Instances, VNIC attachments and private IPs of the simulated region, and the VNICs that come with them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from netaddr import AddrFormatError, IPAddress, IPNetwork

from nat_pod import limits
from nat_pod.config.addressing import reserved_by_oci
from nat_pod.lab.region.base import Behaviour, Record, conflict, invalid, over_limit
from nat_pod.lab.region.network import refuse_other_vcn
from nat_pod.lab.region.oci_types import (
    INSTANCE,
    NSG,
    PRIVATE_IP,
    ROUTE_TABLE,
    SUBNET,
    VNIC,
    VNIC_ATTACHMENT,
    Inputs,
    OciError,
)

if TYPE_CHECKING:
    from nat_pod.lab.region.region import Region

_VNICS = 'OCI docs, "Managing VNICs"'
_IPS = 'OCI docs, "Private IP Addresses"'
_SHAPES = 'OCI docs, "Compute Shapes"'
_LAUNCH = "OCI API, LaunchInstanceDetails"
_UPDATE = "OCI API, UpdateInstanceDetails"
NSGS_PER_VNIC = 5
_VNIC_INPUTS = (
    "subnetId",
    "skipSourceDestCheck",
    "nsgIds",
    "displayName",
    "hostnameLabel",
    "assignPublicIp",
    "routeTableId",
)
FAULT_DOMAINS = ("FAULT-DOMAIN-1", "FAULT-DOMAIN-2", "FAULT-DOMAIN-3")


class _Instance(Behaviour):
    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        region.refuse_unknown_domain(inputs["availabilityDomain"])
        facts = self._facts(inputs)
        if not str((inputs.get("sourceDetails") or {}).get("sourceId") or inputs.get("image")).startswith(
            "ocid1.image."
        ):
            raise invalid("an instance needs sourceDetails.sourceId, the OCID of an image", _LAUNCH)
        details = {"displayName": inputs.get("displayName", name), **(inputs.get("createVnicDetails") or {})}
        details.setdefault("subnetId", inputs.get("subnetId"))
        _refuse_vnic(region, details, inputs["availabilityDomain"])
        facts.update(
            availabilityDomain=inputs["availabilityDomain"],
            displayName=inputs.get("displayName", name),
            region=region.name,
            state="RUNNING",
            launchMode="PARAVIRTUALIZED",
        )
        instance = region.add(INSTANCE, name, facts, ocid)
        attachment = region.add(VNIC_ATTACHMENT, instance.ocid, {"instanceId": instance.ocid, "isPrimary": True})
        _add_vnic(region, instance, attachment, details)
        return instance

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:
        facts = self._facts(inputs)
        resized = {"shape", "shapeConfig"} & {key for key in facts if facts[key] != record.facts.get(key)}
        if resized and inputs.get("updateOperationConstraint") == "AVOID_DOWNTIME":
            raise conflict(
                f"the update of {', '.join(sorted(resized))} needs a reboot and updateOperationConstraint is "
                "AVOID_DOWNTIME",
                _UPDATE,
            )
        attached = len(_attachments(region, record.ocid))
        if attached > _vnic_limit(facts):
            raise over_limit(f"{attached} VNICs are attached, {facts['shape']} has {_vnic_limit(facts)}", _VNICS)
        vnic = _vnic_of(region, _attachments(region, record.ocid)[0])
        details = inputs.get("createVnicDetails") or {}
        changed = _changed_vnic(region, vnic, details)
        vnic.facts.update(changed)
        record.facts.update(facts, displayName=inputs.get("displayName", record.facts["displayName"]))

    def delete(self, region: Region, record: Record) -> None:
        region.refuse_busy(record.ocid)
        for attachment in _attachments(region, record.ocid):
            _drop_vnic(region, attachment)
        region.drop(record)

    def view(self, region: Region, record: Record) -> Inputs:
        primary = _attachments(region, record.ocid)[0]
        details = _details(region, record, primary)
        return {**record.facts, "createVnicDetails": details, "privateIp": details["privateIp"], "publicIp": ""}

    def _facts(self, inputs: Inputs) -> Inputs:
        """What launch and update check alike."""
        shape = inputs.get("shape")
        if shape not in limits.known_shapes():
            raise invalid(f"shape {shape!r} is not one of {', '.join(limits.known_shapes())}", _SHAPES)
        config = inputs.get("shapeConfig") or {}
        if limits.is_flex(shape) and not 1 <= config.get("ocpus", 0) <= limits.max_ocpus(shape):
            raise invalid(f"{shape} needs shapeConfig.ocpus from 1 to {limits.max_ocpus(shape)}", _SHAPES)
        domain = str(inputs.get("faultDomain", FAULT_DOMAINS[0])).upper()
        if domain not in FAULT_DOMAINS:
            raise invalid(f"fault domain {domain} is not one of {', '.join(FAULT_DOMAINS)}", _LAUNCH)
        metadata, extended = inputs.get("metadata") or {}, inputs.get("extendedMetadata") or {}
        size = sum(len(f"{key}{value}".encode()) for part in (metadata, extended) for key, value in part.items())
        if size > limits.METADATA_BYTES:
            raise invalid(f"metadata and extendedMetadata have {size} bytes, at most {limits.METADATA_BYTES}", _LAUNCH)
        both = set(metadata) & set(extended)
        if both:
            raise invalid(f"{min(both)} is in metadata and in extendedMetadata", _UPDATE)
        return {"shape": shape, "shapeConfig": config, "faultDomain": domain, "metadata": metadata}


class _VnicAttachment(Behaviour):
    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        instance = region.get(inputs["instanceId"], INSTANCE)
        most = _vnic_limit(instance.facts)
        if len(_attachments(region, instance.ocid)) >= most:
            raise over_limit(
                f"instance {instance.ocid} of shape {instance.facts['shape']} has its {most} VNICs", _SHAPES
            )
        details = {"displayName": inputs.get("displayName", name), **inputs["createVnicDetails"]}
        _refuse_vnic(region, details, instance.facts["availabilityDomain"])
        attachment = region.add(VNIC_ATTACHMENT, name, {"instanceId": instance.ocid, "isPrimary": False}, ocid)
        # AttachVnic has no routeTableId and the provider drops it in silence; only UpdateVnic sets it.
        _add_vnic(region, instance, attachment, details)
        return attachment

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:
        vnic = _vnic_of(region, record)
        details = inputs["createVnicDetails"]
        changed = _changed_vnic(region, vnic, details)
        table = details.get("routeTableId")
        if table is not None:
            subnet = region.get(vnic.facts["subnetId"], SUBNET)
            refuse_other_vcn(region.get(table, ROUTE_TABLE), subnet.facts["vcnId"], _VNICS)
        vnic.facts.update(changed, routeTableId=table)

    def delete(self, region: Region, record: Record) -> None:
        if record.facts["isPrimary"]:
            raise invalid("the primary VNIC of an instance cannot be detached", _VNICS)
        _drop_vnic(region, record)

    def view(self, region: Region, record: Record) -> Inputs:
        instance = region.get(record.facts["instanceId"], INSTANCE)
        vnic = _vnic_of(region, record)
        return {
            "instanceId": instance.ocid,
            "availabilityDomain": instance.facts["availabilityDomain"],
            "compartmentId": instance.inputs.get("compartmentId"),
            "createVnicDetails": _details(region, record, record),
            "state": "ATTACHED",
            "subnetId": vnic.facts["subnetId"],
            "vnicId": vnic.ocid,
        }

    def occupies(self, inputs: Inputs) -> str | None:
        return str(inputs["instanceId"])


class _PrivateIp(Behaviour):
    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        if "cidrPrefixLength" in inputs or "vlanId" in inputs:
            raise OciError(501, "NotImplemented", "cidrPrefixLength and vlanId are not simulated", "nat_pod/lab")
        vnic = region.get(inputs["vnicId"], VNIC) if inputs.get("vnicId") else None
        lifetime = inputs.get("lifetime", "EPHEMERAL")
        if vnic is None and (lifetime != "RESERVED" or "subnetId" not in inputs):
            raise invalid(
                "a private IP without vnicId needs subnetId and lifetime RESERVED", "OCI API, CreatePrivateIp"
            )
        subnet = region.get(vnic.facts["subnetId"] if vnic else inputs["subnetId"], SUBNET)
        if vnic is not None:
            if inputs.get("subnetId", subnet.ocid) != subnet.ocid:
                raise invalid(f"VNIC {vnic.ocid} is not in subnet {inputs['subnetId']}", _IPS)
            _refuse_more_ips(region, vnic)
        address = _claim(region, subnet, inputs.get("ipAddress"))
        facts = _ip_facts(subnet, vnic, address, primary=False)
        facts.update(lifetime=lifetime, isReserved=lifetime == "RESERVED", displayName=inputs.get("displayName", name))
        facts.update(self._table(region, subnet, inputs))
        return region.add(PRIVATE_IP, name, facts, ocid)

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:
        vnic = region.get(inputs["vnicId"], VNIC) if inputs.get("vnicId") else None
        lifetime = inputs.get("lifetime", record.facts["lifetime"])
        if vnic is None and lifetime != "RESERVED":
            raise invalid("only a private IP of lifetime RESERVED can be without a VNIC", "OCI API, UpdatePrivateIp")
        if vnic is not None and vnic.ocid != record.facts.get("vnicId"):
            if record.facts["isPrimary"]:
                raise invalid("a primary private IP cannot be moved", _IPS)
            if vnic.facts["subnetId"] != record.facts["subnetId"]:
                raise invalid("a private IP can only be moved to a VNIC of the same subnet", _IPS)
            _refuse_more_ips(region, vnic)
        table = self._table(region, region.get(record.facts["subnetId"]), inputs)
        record.facts.update(
            table,
            vnicId=vnic.ocid if vnic else None,
            ipState="ASSIGNED" if vnic else "AVAILABLE",
            lifetime=lifetime,
            isReserved=lifetime == "RESERVED",
            displayName=inputs.get("displayName", record.facts["displayName"]),
        )

    def delete(self, region: Region, record: Record) -> None:
        if record.facts["isPrimary"]:
            raise invalid(f"{record.ocid} is a primary private IP, which cannot be deleted", _IPS)
        region.drop(record)  # a route rule to it becomes a blackhole; that is not refused (OCI docs, "Route Tables")

    def _table(self, region: Region, subnet: Record, inputs: Inputs) -> Inputs:
        table = inputs.get("routeTableId")
        if table is not None:
            refuse_other_vcn(region.get(table, ROUTE_TABLE), subnet.facts["vcnId"], _IPS)
        return {"routeTableId": table}


def _vnic_limit(facts: Inputs) -> int:
    ocpus = facts["shapeConfig"].get("ocpus")
    return limits.vnic_limit(facts["shape"], None if ocpus is None else int(ocpus))


def _attachments(region: Region, instance: str) -> list[Record]:
    """An instance's attachments, the primary VNIC's first, then in attach order."""
    found = [record for record in region.all(VNIC_ATTACHMENT) if record.facts["instanceId"] == instance]
    return sorted(found, key=lambda record: (not record.facts["isPrimary"], record.facts["order"]))


def _vnic_of(region: Region, attachment: Record) -> Record:
    return region.get(attachment.facts["vnicId"], VNIC)


def _refuse_vnic(region: Region, details: Inputs, domain: str) -> None:
    """Refuse a VNIC that its subnet cannot hold."""
    if details.get("privateIpId") or details.get("vlanId"):
        raise OciError(501, "NotImplemented", "privateIpId and vlanId of a VNIC are not simulated", "nat_pod/lab")
    if not details.get("subnetId"):
        raise invalid("createVnicDetails.subnetId is missing", _LAUNCH)
    subnet = region.get(details["subnetId"], SUBNET)
    own_domain = subnet.inputs.get("availabilityDomain")
    if own_domain is not None and own_domain.lower() != domain.lower():
        raise invalid(f"subnet {subnet.ocid} is in {own_domain}, the instance in {domain}", _VNICS)
    if details.get("assignPublicIp") == "true" and subnet.facts["prohibitPublicIpOnVnic"]:
        raise invalid(
            f"assignPublicIp cannot be true in subnet {subnet.ocid}, which prohibits public IPs on its VNICs "
            "(assignPublicIp is true on an instance unless it says false)",
            "OCI API, CreateVnicDetails",
        )
    _refuse_nsgs(region, subnet, details.get("nsgIds") or [])
    _claim(region, subnet, details.get("privateIp"))


def _refuse_nsgs(region: Region, subnet: Record, nsgs: list[str]) -> None:
    if len(nsgs) > NSGS_PER_VNIC:
        raise over_limit(
            f"{len(nsgs)} network security groups, a VNIC has {NSGS_PER_VNIC}", 'OCI docs, "Security Rules"'
        )
    for nsg in nsgs:
        refuse_other_vcn(region.get(nsg, NSG), subnet.facts["vcnId"], "OCI API, CreateVnicDetails")


def _add_vnic(region: Region, instance: Record, attachment: Record, details: Inputs) -> None:
    subnet = region.get(details["subnetId"], SUBNET)
    vnic = region.add(
        VNIC,
        attachment.ocid,
        {
            "instanceId": instance.ocid,
            "subnetId": subnet.ocid,
            "skipSourceDestCheck": bool(details.get("skipSourceDestCheck", False)),
            "nsgIds": sorted(details.get("nsgIds") or []),
            "displayName": details["displayName"],
            "hostnameLabel": details.get("hostnameLabel"),
            "assignPublicIp": details.get("assignPublicIp", "false"),
            "routeTableId": None,
            "state": "AVAILABLE",
        },
    )
    vnic.facts["macAddress"] = _mac(region, vnic.ocid)
    others = [record.facts.get("order", -1) for record in region.all(VNIC_ATTACHMENT)]
    attachment.facts.update(vnicId=vnic.ocid, order=max(others) + 1)
    address = _claim(region, subnet, details.get("privateIp"))
    region.add(PRIVATE_IP, vnic.ocid, _ip_facts(subnet, vnic, address, primary=True))


def _drop_vnic(region: Region, attachment: Record) -> None:
    """A VNIC ends with its attachment, and its private IPs with the VNIC."""
    vnic = _vnic_of(region, attachment)
    for ip in [ip for ip in region.all(PRIVATE_IP) if ip.facts.get("vnicId") == vnic.ocid]:
        region.drop(ip)
    region.drop(vnic)
    region.drop(attachment)


def _changed_vnic(region: Region, vnic: Record, details: Inputs) -> Inputs:
    """The facts of a VNIC that an update changes, checked."""
    subnet = region.get(vnic.facts["subnetId"], SUBNET)
    if details.get("assignPublicIp") == "true" and subnet.facts["prohibitPublicIpOnVnic"]:
        raise invalid(f"subnet {subnet.ocid} prohibits public IPs on its VNICs", "OCI API, CreateVnicDetails")
    nsgs = details.get("nsgIds")
    if nsgs is not None:
        _refuse_nsgs(region, subnet, nsgs)
    plain = ("skipSourceDestCheck", "displayName", "hostnameLabel", "assignPublicIp")
    changed: Inputs = {key: details[key] for key in plain if key in details}
    return changed if nsgs is None else {**changed, "nsgIds": sorted(nsgs)}


def _details(region: Region, owner: Record, attachment: Record) -> Inputs:
    """createVnicDetails as the provider reads it back from the VNIC."""
    vnic = _vnic_of(region, attachment)
    written: dict[str, Any] = dict(owner.inputs.get("createVnicDetails") or {})
    written.pop("routeTableId", None)
    names = (
        "subnetId",
        "skipSourceDestCheck",
        "nsgIds",
        "displayName",
        "hostnameLabel",
        "assignPublicIp",
        "routeTableId",
    )
    real = {name: vnic.facts[name] for name in names if vnic.facts[name] is not None}
    primary = next(ip for ip in region.all(PRIVATE_IP) if ip.facts["isPrimary"] and ip.facts["vnicId"] == vnic.ocid)
    return {**written, **real, "privateIp": primary.facts["ipAddress"]}


def _refuse_more_ips(region: Region, vnic: Record) -> None:
    held = [ip for ip in region.all(PRIVATE_IP) if ip.facts.get("vnicId") == vnic.ocid and not ip.facts["isPrimary"]]
    if len(held) >= region.secondary_ip_limit:
        raise over_limit(f"VNIC {vnic.ocid} has {region.secondary_ip_limit} secondary private IPs", _IPS)


def _claim(region: Region, subnet: Record, wanted: str | None) -> str:
    """The address that a new private IP of `subnet` gets; 400 when it cannot have it."""
    cidr = IPNetwork(subnet.facts["cidrBlock"])
    taken = {ip.facts["ipAddress"] for ip in region.all(PRIVATE_IP) if ip.facts["subnetId"] == subnet.ocid}
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


def _ip_facts(subnet: Record, vnic: Record | None, address: str, *, primary: bool) -> Inputs:
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


def _mac(region: Region, vnic: str) -> str:
    """A MAC that nobody in the region has, from the VNIC's OCID: 02:00:17 is OCI's own prefix."""
    taken = {record.facts.get("macAddress") for record in region.all(VNIC)}
    attempt = 0
    while True:
        digest = hashlib.sha256(f"{vnic} {attempt}".encode()).hexdigest()
        mac = f"02:00:17:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"
        if mac not in taken:
            return mac
        attempt += 1


BEHAVIOURS: dict[str, Behaviour] = {
    INSTANCE: _Instance(),
    VNIC_ATTACHMENT: _VnicAttachment(),
    PRIVATE_IP: _PrivateIp(),
}
