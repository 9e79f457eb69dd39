"""Instances: their shapes, their metadata, and where they may stand."""

from __future__ import annotations

from collections.abc import Mapping

from nat_pod import limits
from nat_pod.lab.region.inputs import InputRules, Inputs
from nat_pod.lab.region.kinds import INSTANCE, VNIC_ATTACHMENT
from nat_pod.lab.region.refusals import conflict, invalid, over_limit
from nat_pod.lab.region.resource import ObjectKind, Query, Resource
from nat_pod.lab.region.store import Record, Store
from nat_pod.lab.region.vnic import (
    FIXED_VNIC_INPUTS,
    add_vnic,
    attachments,
    changed_vnic,
    drop_vnic,
    public_ip_problems,
    refuse_vnic,
    vnic_details,
    vnic_limit,
    vnic_of,
)

_VNICS = 'OCI docs, "Managing VNICs"'
_SHAPES = 'OCI docs, "Compute Shapes"'
_LAUNCH = "OCI API, LaunchInstanceDetails"
_UPDATE = "OCI API, UpdateInstanceDetails"
FAULT_DOMAINS = ("FAULT-DOMAIN-1", "FAULT-DOMAIN-2", "FAULT-DOMAIN-3")


class _Instance(Resource):
    kind = INSTANCE
    ocid_type = "instance"
    rules = InputRules(
        # metadata.user_data and .ssh_authorized_keys replace by CustomizeDiff (ForceNewIfChange on `metadata`);
        # every other key of `metadata` updates in place.
        source="core_instance_resource.go",
        replace=FIXED_VNIC_INPUTS
        | {
            "availabilityDomain",
            "clusterPlacementGroupId",
            "computeClusterId",
            "hostnameLabel",
            "image",
            "instanceConfigurationId",
            "ipxeScript",
            "isPvEncryptionInTransitEnabled",
            "launchOptions.firmware",
            "launchOptions.isConsistentVolumeNamingEnabled",
            "launchOptions.remoteDataVolumeType",
            "metadata.ssh_authorized_keys",
            "metadata.user_data",
            "placementConstraintDetails",
            "platformConfig.areVirtualInstructionsEnabled",
            "platformConfig.isAccessControlServiceEnabled",
            "platformConfig.isInputOutputMemoryManagementUnitEnabled",
            "platformConfig.isMeasuredBootEnabled",
            "platformConfig.isMemoryEncryptionEnabled",
            "platformConfig.isSecureBootEnabled",
            "platformConfig.isTrustedPlatformModuleEnabled",
            "platformConfig.numaNodesPerSocket",
            "platformConfig.percentageOfCoresEnabled",
            "preemptibleInstanceConfig",
            "sourceDetails.bootVolumeVpusPerGb",
            "sourceDetails.instanceSourceImageFilterDetails",
            "subnetId",
        },
        removable=frozenset({"updateOperationConstraint"}),
        sets=frozenset({"createVnicDetails.nsgIds"}),
        ignore_case=frozenset(
            {"availabilityDomain", "faultDomain", "hostnameLabel", "createVnicDetails.hostnameLabel"}
        ),
        defaults={"createVnicDetails.assignPublicIp": "true"},
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        store.refuse_unknown_domain(inputs["availabilityDomain"])
        facts = self._facts(inputs)
        if not str((inputs.get("sourceDetails") or {}).get("sourceId") or inputs.get("image")).startswith(
            "ocid1.image."
        ):
            raise invalid("an instance needs sourceDetails.sourceId, the OCID of an image", _LAUNCH)
        details = {"displayName": inputs.get("displayName", name), **(inputs.get("createVnicDetails") or {})}
        details.setdefault("subnetId", inputs.get("subnetId"))
        refuse_vnic(store, details, inputs["availabilityDomain"])
        facts.update(
            availabilityDomain=inputs["availabilityDomain"],
            displayName=inputs.get("displayName", name),
            region=store.name,
            state=self._state(inputs),
            launchMode="PARAVIRTUALIZED",
        )
        instance = store.add(INSTANCE, name, facts, ocid)
        attachment = store.add(VNIC_ATTACHMENT, instance.ocid, {"instanceId": instance.ocid, "isPrimary": True})
        add_vnic(store, instance, attachment, details)
        return instance

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        facts = self._facts(inputs)
        resized = {"shape", "shapeConfig"} & {key for key in facts if facts[key] != record.facts.get(key)}
        if resized and store.limits.avoids_downtime and inputs.get("updateOperationConstraint") == "AVOID_DOWNTIME":
            raise conflict(
                f"the update of {', '.join(sorted(resized))} needs a reboot and updateOperationConstraint is "
                "AVOID_DOWNTIME",
                _UPDATE,
            )
        attached = len(attachments(store, record.ocid))
        if attached > vnic_limit(facts):
            raise over_limit(f"{attached} VNICs are attached, {facts['shape']} has {vnic_limit(facts)}", _VNICS)
        vnic = vnic_of(store, attachments(store, record.ocid)[0])
        details = inputs.get("createVnicDetails") or {}
        changed = changed_vnic(store, vnic, details)
        vnic.facts.update(changed)
        facts["displayName"] = inputs.get("displayName", record.facts["displayName"])
        # Without `state` an instance is left as it is (provider, core_instance_resource.go).
        facts["state"] = self._state(inputs, record.facts["state"])
        record.facts.update(facts)

    def delete(self, store: Store, record: Record) -> None:
        store.refuse_busy(record.ocid)
        for attachment in attachments(store, record.ocid):
            drop_vnic(store, attachment)
        store.drop(record)

    def check(self, inputs: Inputs) -> list[tuple[str, str]]:
        return [*super().check(inputs), *public_ip_problems(inputs)]

    def queries(self) -> Mapping[str, Query]:
        return {
            "oci:Identity/getAvailabilityDomains:getAvailabilityDomains": _availability_domains,
            "oci:Core/getShapes:getShapes": _shapes,
        }

    def view(self, store: Store, record: Record) -> Inputs:
        primary = attachments(store, record.ocid)[0]
        details = vnic_details(store, record, primary)
        return {**record.facts, "createVnicDetails": details, "privateIp": details["privateIp"], "publicIp": ""}

    def _state(self, inputs: Inputs, before: str = "RUNNING") -> str:
        """RUNNING or STOPPED: the provider starts and stops an instance whose `state` says so."""
        state = str(inputs.get("state") or before).upper()
        if state not in ("RUNNING", "STOPPED"):
            raise invalid(f"state {state} is neither RUNNING nor STOPPED", "core_instance_resource.go, state")
        return state

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


def _availability_domains(store: Store, args: Inputs) -> Inputs:
    compartment = args.get("compartmentId")
    domains = [
        {"compartmentId": compartment, "id": f"ocid1.availabilitydomain.oc1..{name}", "name": name}
        for name in store.availability_domains
    ]
    return {**args, "id": store.name, "availabilityDomains": domains}


def _shapes(store: Store, args: Inputs) -> Inputs:  # noqa: ARG001
    shapes = [
        {"name": name, "maxVnicAttachments": limits.vnic_limit(name, None), "isFlexible": limits.is_flex(name)}
        for name in limits.known_shapes()
    ]
    return {**args, "id": "shapes", "shapes": shapes}


KINDS: tuple[ObjectKind, ...] = (_Instance(),)
