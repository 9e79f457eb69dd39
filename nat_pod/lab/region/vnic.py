"""VNICs: those that an instance is launched with, and those that are attached to it later."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from nat_pod import limits
from nat_pod.lab.region.inputs import UNKNOWN, InputRules, Inputs
from nat_pod.lab.region.kinds import INSTANCE, NSG, PRIVATE_IP, ROUTE_TABLE, SUBNET, VNIC, VNIC_ATTACHMENT
from nat_pod.lab.region.private_ip import claim, ip_facts
from nat_pod.lab.region.refusals import invalid, not_simulated, over_limit
from nat_pod.lab.region.resource import ObjectKind, Query, Resource
from nat_pod.lab.region.store import Record, Store, refuse_other_vcn

_VNICS = 'OCI docs, "Managing VNICs"'
_SHAPES = 'OCI docs, "Compute Shapes"'
_LAUNCH = "OCI API, LaunchInstanceDetails"
NSGS_PER_VNIC = 5

# The inputs of a VNIC that cannot change while it exists, on instances and attachments alike.
FIXED_VNIC_INPUTS = frozenset(
    f"createVnicDetails.{name}"
    for name in (
        "assignIpv6ip",
        "assignPrivateDnsRecord",
        "ipv6addressIpv6subnetCidrPairDetails",
        "privateIp",
        "privateIpId",
        "securityAttributes",
        "subnetCidr",
        "subnetId",
        "vlanId",
    )
)


class _Vnic(ObjectKind):
    """A VNIC, which comes with its attachment and ends with it."""

    kind = VNIC
    ocid_type = "vnic"

    def queries(self) -> Mapping[str, Query]:
        return {"oci:Core/getVnic:getVnic": _get_vnic}


class _VnicAttachment(Resource):
    kind = VNIC_ATTACHMENT
    ocid_type = "vnicattachment"
    rules = InputRules(
        source="core_vnic_attachment_resource.go",
        replace=FIXED_VNIC_INPUTS | {"createVnicDetails.assignPublicIp", "displayName", "instanceId", "nicIndex"},
        removable=frozenset({"createVnicDetails.nsgIds", "createVnicDetails.routeTableId"}),
        sets=frozenset({"createVnicDetails.nsgIds"}),
        defaults={"createVnicDetails.assignPublicIp": "false"},
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        instance = store.get(inputs["instanceId"], INSTANCE)
        most = vnic_limit(instance.facts)
        if len(attachments(store, instance.ocid)) >= most:
            raise over_limit(
                f"instance {instance.ocid} of shape {instance.facts['shape']} has its {most} VNICs", _SHAPES
            )
        details = {"displayName": inputs.get("displayName", name), **inputs["createVnicDetails"]}
        refuse_vnic(store, details, instance.facts["availabilityDomain"])
        attachment = store.add(VNIC_ATTACHMENT, name, {"instanceId": instance.ocid, "isPrimary": False}, ocid)
        # AttachVnic has no routeTableId, and the provider silently drops it; only UpdateVnic sets it.
        add_vnic(store, instance, attachment, details)
        return attachment

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        vnic = vnic_of(store, record)
        details = inputs["createVnicDetails"]
        changed = changed_vnic(store, vnic, details)
        table = details.get("routeTableId")
        if table is not None:
            subnet = store.get(vnic.facts["subnetId"], SUBNET)
            refuse_other_vcn(store.get(table, ROUTE_TABLE), subnet.facts["vcnId"], _VNICS)
        vnic.facts.update(changed, routeTableId=table)

    def delete(self, store: Store, record: Record) -> None:
        if record.facts["isPrimary"]:
            raise invalid("the primary VNIC of an instance cannot be detached", _VNICS)
        drop_vnic(store, record)

    def queries(self) -> Mapping[str, Query]:
        return {"oci:Core/getVnicAttachments:getVnicAttachments": _list_attachments}

    def view(self, store: Store, record: Record) -> Inputs:
        instance = store.get(record.facts["instanceId"], INSTANCE)
        vnic = vnic_of(store, record)
        return {
            "instanceId": instance.ocid,
            "availabilityDomain": instance.facts["availabilityDomain"],
            "compartmentId": instance.inputs.get("compartmentId"),
            "createVnicDetails": vnic_details(store, record, record),
            "state": "ATTACHED",
            "subnetId": vnic.facts["subnetId"],
            "vnicId": vnic.ocid,
        }

    def check(self, inputs: Inputs) -> list[tuple[str, str]]:
        return [*super().check(inputs), *public_ip_problems(inputs)]

    def occupies(self, inputs: Inputs) -> str | None:
        return str(inputs["instanceId"])


def public_ip_problems(inputs: Inputs) -> list[tuple[str, str]]:
    """What the provider finds wrong, before any call, with `assignPublicIp`, which it takes as text."""
    details = inputs.get("createVnicDetails")
    public_ip = details.get("assignPublicIp") if isinstance(details, dict) else None
    if public_ip in (None, UNKNOWN, "true", "false"):
        return []
    return [("createVnicDetails.assignPublicIp", f'expected "true" or "false", got {public_ip!r}')]


def vnic_limit(facts: Inputs) -> int:
    """How many VNICs an instance of this shape may have."""
    ocpus = facts["shapeConfig"].get("ocpus")
    return limits.vnic_limit(facts["shape"], None if ocpus is None else int(ocpus))


def attachments(store: Store, instance: str) -> list[Record]:
    """An instance's attachments, the primary VNIC's first, then in attach order."""
    found = [record for record in store.all(VNIC_ATTACHMENT) if record.facts["instanceId"] == instance]
    return sorted(found, key=lambda record: (not record.facts["isPrimary"], record.facts["order"]))


def vnic_of(store: Store, attachment: Record) -> Record:
    """The VNIC of an attachment."""
    return store.get(attachment.facts["vnicId"], VNIC)


def refuse_vnic(store: Store, details: Inputs, domain: str) -> None:
    """Refuse a VNIC that its subnet cannot hold."""
    if details.get("privateIpId") or details.get("vlanId"):
        raise not_simulated("privateIpId and vlanId of a VNIC are not simulated")
    if not details.get("subnetId"):
        raise invalid("createVnicDetails.subnetId is missing", _LAUNCH)
    subnet = store.get(details["subnetId"], SUBNET)
    own_domain = subnet.inputs.get("availabilityDomain")
    if own_domain is not None and own_domain.lower() != domain.lower():
        raise invalid(f"subnet {subnet.ocid} is in {own_domain}, the instance in {domain}", _VNICS)
    if details.get("assignPublicIp") == "true" and subnet.facts["prohibitPublicIpOnVnic"]:
        raise invalid(
            f"assignPublicIp cannot be true in subnet {subnet.ocid}, which prohibits public IPs on its VNICs "
            "(assignPublicIp is true on an instance unless it says false)",
            "OCI API, CreateVnicDetails",
        )
    refuse_nsgs(store, subnet, details.get("nsgIds") or [])
    claim(store, subnet, details.get("privateIp"))


def refuse_nsgs(store: Store, subnet: Record, nsgs: list[str]) -> None:
    """Refuse network security groups that a VNIC in this subnet cannot have."""
    if len(nsgs) > NSGS_PER_VNIC:
        raise over_limit(
            f"{len(nsgs)} network security groups, a VNIC has {NSGS_PER_VNIC}", 'OCI docs, "Security Rules"'
        )
    for nsg in nsgs:
        refuse_other_vcn(store.get(nsg, NSG), subnet.facts["vcnId"], "OCI API, CreateVnicDetails")


def add_vnic(store: Store, instance: Record, attachment: Record, details: Inputs) -> None:
    """Make the VNIC of a new attachment, with its primary private IP."""
    subnet = store.get(details["subnetId"], SUBNET)
    vnic = store.add(
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
    vnic.facts["macAddress"] = new_mac(store, vnic.ocid)
    others = [record.facts.get("order", -1) for record in store.all(VNIC_ATTACHMENT)]
    attachment.facts.update(vnicId=vnic.ocid, order=max(others) + 1)
    address = claim(store, subnet, details.get("privateIp"))
    store.add(PRIVATE_IP, vnic.ocid, ip_facts(subnet, vnic, address, primary=True))


def drop_vnic(store: Store, attachment: Record) -> None:
    """A VNIC ends with its attachment, and its private IPs with the VNIC."""
    vnic = vnic_of(store, attachment)
    for ip in [ip for ip in store.all(PRIVATE_IP) if ip.facts.get("vnicId") == vnic.ocid]:
        store.drop(ip)
    store.drop(vnic)
    store.drop(attachment)


def changed_vnic(store: Store, vnic: Record, details: Inputs) -> Inputs:
    """The facts of a VNIC that an update changes, checked."""
    subnet = store.get(vnic.facts["subnetId"], SUBNET)
    if details.get("assignPublicIp") == "true" and subnet.facts["prohibitPublicIpOnVnic"]:
        raise invalid(f"subnet {subnet.ocid} prohibits public IPs on its VNICs", "OCI API, CreateVnicDetails")
    nsgs = details.get("nsgIds")
    if nsgs is not None:
        refuse_nsgs(store, subnet, nsgs)
    plain = ("skipSourceDestCheck", "displayName", "hostnameLabel", "assignPublicIp")
    changed: Inputs = {key: details[key] for key in plain if key in details}
    return changed if nsgs is None else {**changed, "nsgIds": sorted(nsgs)}


def vnic_details(store: Store, owner: Record, attachment: Record) -> Inputs:
    """createVnicDetails as the provider reads them back from the VNIC."""
    vnic = vnic_of(store, attachment)
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
    primary = next(ip for ip in store.all(PRIVATE_IP) if ip.facts["isPrimary"] and ip.facts["vnicId"] == vnic.ocid)
    return {**written, **real, "privateIp": primary.facts["ipAddress"]}


def new_mac(store: Store, vnic: str) -> str:
    """A MAC that nobody in the region has, from the VNIC's OCID: 02:00:17 is OCI's own prefix."""
    taken = {record.facts.get("macAddress") for record in store.all(VNIC)}
    attempt = 0
    while True:
        digest = hashlib.sha256(f"{vnic} {attempt}".encode()).hexdigest()
        mac = f"02:00:17:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"
        if mac not in taken:
            return mac
        attempt += 1


def _list_attachments(store: Store, args: Inputs) -> Inputs:
    """Attachments of one compartment by instanceId or vnicId, the primary VNIC's first."""
    found = []
    for record in sorted(store.all(VNIC_ATTACHMENT), key=lambda record: int(record.facts["order"])):
        state = _VnicAttachment().state(store, record)
        wanted = {key: args[key] for key in ("instanceId", "vnicId", "compartmentId") if args.get(key)}
        if all(state.get(key) == value for key, value in wanted.items()):
            found.append({**state, "createVnicDetails": [state["createVnicDetails"]]})
    return {**args, "id": "vnicAttachments", "vnicAttachments": found}


def _get_vnic(store: Store, args: Inputs) -> Inputs:
    record = store.get(args["vnicId"], VNIC)
    if record.facts["instanceId"] is None:
        raise not_simulated(f"{record.ocid} is the VNIC of a service; what OCI says of it is not documented")
    attachment = next(a for a in store.all(VNIC_ATTACHMENT) if a.facts["vnicId"] == record.ocid)
    primary = next(ip for ip in store.all(PRIVATE_IP) if ip.facts["isPrimary"] and ip.facts["vnicId"] == record.ocid)
    domain = store.get(record.facts["instanceId"], INSTANCE).facts["availabilityDomain"]
    return {
        **args,
        **record.facts,
        "id": record.ocid,
        "availabilityDomain": domain,
        "isPrimary": attachment.facts["isPrimary"],
        "privateIpAddress": primary.facts["ipAddress"],
    }


KINDS: tuple[ObjectKind, ...] = (_Vnic(), _VnicAttachment())
