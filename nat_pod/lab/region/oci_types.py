"""The resource types of the simulated region: which inputs they know, what replaces them, how they are compared.

Two sources, kept apart on purpose.
- Which inputs a type knows, which are required and of what type they are is read from the installed `pulumi_oci`
  (`InputSpec.of`), so it is right for the release that the program really runs with.
- What the provider does when an input changes is in no SDK.  It stands in `TYPES`, one row a type, taken from
  the source of the provider that pulumi-oci wraps (github.com/oracle/terraform-provider-oci v8.28.0, folder
  internal/service/core; the row names its file).

An input that is in no list of its row updates in place, and taking it out of the program changes nothing: nearly
all inputs are "Optional, Computed" there, so the server's value stays.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pulumi_oci as oci

Value = Any
"""A JSON value."""

Inputs = dict[str, Value]
"""Properties under their wire names (camelCase), as they cross the provider's protocol."""

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""Stands for a value that a preview does not know yet (Pulumi's provider protocol, `UnknownStringValue`)."""

VCN = "oci:Core/vcn:Vcn"
SUBNET = "oci:Core/subnet:Subnet"
ROUTE_TABLE = "oci:Core/routeTable:RouteTable"
ROUTE_TABLE_ATTACHMENT = "oci:Core/routeTableAttachment:RouteTableAttachment"
LPG = "oci:Core/localPeeringGateway:LocalPeeringGateway"
INSTANCE = "oci:Core/instance:Instance"
VNIC_ATTACHMENT = "oci:Core/vnicAttachment:VnicAttachment"
PRIVATE_IP = "oci:Core/privateIp:PrivateIp"
NSG = "oci:Core/networkSecurityGroup:NetworkSecurityGroup"
NSG_RULE = "oci:Core/networkSecurityGroupSecurityRule:NetworkSecurityGroupSecurityRule"
SECURITY_LIST = "oci:Core/securityList:SecurityList"
DEFAULT_SECURITY_LIST = "oci:Core/defaultSecurityList:DefaultSecurityList"

# Objects of OCI that come into being with others and are no resource of the program.
VNIC = "vnic"
DEFAULT_ROUTE_TABLE = "default route table"


class OciError(Exception):
    """A refusal of the region: HTTP status, OCI's error code, its text, and the document that has the rule."""

    def __init__(self, status: int, code: str, message: str, source: str = "") -> None:
        self.status = status
        self.code = code
        self.message = message
        self.source = source
        super().__init__(f"{status}-{code}, {message}" + (f" [{source}]" if source else ""))


@dataclass(frozen=True, slots=True)
class Diff:
    """What changes between two sets of inputs: paths that force a replacement, and paths that update in place."""

    replace: tuple[str, ...] = ()
    update: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.replace or self.update)


@dataclass(frozen=True, kw_only=True, slots=True)
class TypeRow:
    """What the provider does with one type's inputs.  Paths are dotted; `[]` stands for every element of a list.

    replace: a change makes a new resource ("ForceNew").
    removable: taking the input away is a change ("Optional" without "Computed").
    sets: lists whose order means nothing.
    ignore_case: values that differ only in case are equal.
    defaults: values the provider fills in.
    """

    sdk_class: str
    source: str
    replace: frozenset[str] = frozenset()
    removable: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    ignore_case: frozenset[str] = frozenset()
    defaults: Mapping[str, Value] = field(default_factory=dict)


# The inputs of a VNIC that cannot change while it exists, on instances and attachments alike.
_FIXED_VNIC_INPUTS = frozenset(
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
_SECURITY_LIST_INPUTS = frozenset({"ingressSecurityRules", "egressSecurityRules"})
_SECURITY_LIST_DEFAULTS = {
    "ingressSecurityRules[].sourceType": "CIDR_BLOCK",
    "ingressSecurityRules[].stateless": False,
    "ingressSecurityRules[].icmpOptions.code": -1,
    "egressSecurityRules[].destinationType": "CIDR_BLOCK",
    "egressSecurityRules[].stateless": False,
    "egressSecurityRules[].icmpOptions.code": -1,
}

TYPES: dict[str, TypeRow] = {
    VCN: TypeRow(
        sdk_class="Vcn",
        source="core_vcn_resource.go",
        replace=frozenset({"cidrBlock", "dnsLabel"}),
        ignore_case=frozenset({"dnsLabel"}),
    ),
    SUBNET: TypeRow(
        sdk_class="Subnet",
        source="core_subnet_resource.go",
        replace=frozenset(
            {"vcnId", "availabilityDomain", "dnsLabel", "prohibitInternetIngress", "prohibitPublicIpOnVnic"}
        ),
        sets=frozenset({"securityListIds"}),
        ignore_case=frozenset({"availabilityDomain", "dnsLabel"}),
    ),
    ROUTE_TABLE: TypeRow(
        sdk_class="RouteTable",
        source="core_route_table_resource.go",
        replace=frozenset({"vcnId"}),
        removable=frozenset({"routeRules"}),
        sets=frozenset({"routeRules"}),
        defaults={"routeRules[].destinationType": "CIDR_BLOCK"},
    ),
    ROUTE_TABLE_ATTACHMENT: TypeRow(
        sdk_class="RouteTableAttachment",
        source="core_route_table_attachment_resource.go",
        replace=frozenset({"routeTableId", "subnetId"}),
    ),
    LPG: TypeRow(
        sdk_class="LocalPeeringGateway",
        source="core_local_peering_gateway_resource.go",
        replace=frozenset({"vcnId", "peerId"}),
    ),
    INSTANCE: TypeRow(
        # metadata.user_data and .ssh_authorized_keys replace by CustomizeDiff (ForceNewIfChange on `metadata`);
        # every other key of `metadata` updates in place.
        sdk_class="Instance",
        source="core_instance_resource.go",
        replace=_FIXED_VNIC_INPUTS
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
    ),
    VNIC_ATTACHMENT: TypeRow(
        sdk_class="VnicAttachment",
        source="core_vnic_attachment_resource.go",
        replace=_FIXED_VNIC_INPUTS | {"createVnicDetails.assignPublicIp", "displayName", "instanceId", "nicIndex"},
        removable=frozenset({"createVnicDetails.nsgIds", "createVnicDetails.routeTableId"}),
        sets=frozenset({"createVnicDetails.nsgIds"}),
        defaults={"createVnicDetails.assignPublicIp": "false"},
    ),
    PRIVATE_IP: TypeRow(
        # vnicId is *not* here: after a replaced VNIC the provider updates a dead OCID and gets 404 (its issue #613).
        sdk_class="PrivateIp",
        source="core_private_ip_resource.go",
        replace=frozenset({"cidrPrefixLength", "ipAddress", "ipv4subnetCidrAtCreation", "subnetId", "vlanId"}),
        removable=frozenset({"vnicId", "routeTableId"}),
        ignore_case=frozenset({"hostnameLabel"}),
    ),
    NSG: TypeRow(
        sdk_class="NetworkSecurityGroup",
        source="core_network_security_group_resource.go",
        replace=frozenset({"vcnId"}),
    ),
    NSG_RULE: TypeRow(
        sdk_class="NetworkSecurityGroupSecurityRule",
        source="core_network_security_group_security_rule_resource.go",
        replace=frozenset({"networkSecurityGroupId"}),
        removable=frozenset({"source", "icmpOptions", "tcpOptions", "udpOptions"}),
        defaults={"stateless": False, "icmpOptions.code": -1},
    ),
    SECURITY_LIST: TypeRow(
        sdk_class="SecurityList",
        source="core_security_list_resource.go",
        replace=frozenset({"vcnId"}),
        removable=_SECURITY_LIST_INPUTS,
        sets=_SECURITY_LIST_INPUTS,
        defaults=_SECURITY_LIST_DEFAULTS,
    ),
    DEFAULT_SECURITY_LIST: TypeRow(
        sdk_class="DefaultSecurityList",
        source="core_security_list_resource.go by ConvertToDefaultVcnResourceSchema in helpers_core.go",
        replace=frozenset({"manageDefaultResourceId"}),
        removable=_SECURITY_LIST_INPUTS,
        sets=_SECURITY_LIST_INPUTS,
        defaults=_SECURITY_LIST_DEFAULTS,
    ),
}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What `pulumi_oci` says about one value: its kind, and its members when it is an object, list or map.

    kind: string, number, boolean, object, list or map.
    """

    kind: str
    members: Mapping[str, InputSpec] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    element: InputSpec | None = None

    @staticmethod
    @cache
    def of(type_token: str) -> InputSpec:
        """The inputs of a resource type, read from the signature of its Args class."""
        return _object_spec(getattr(oci.core, f"{row(type_token).sdk_class}Args"))


def row(type_token: str) -> TypeRow:
    """The row of a type; an OciError for one that the region does not simulate."""
    if type_token not in TYPES:
        raise OciError(
            501, "NotImplemented", f"this simulated region has no {type_token}", "nat_pod/lab/region/oci_types.py"
        )
    return TYPES[type_token]


def check(type_token: str, inputs: Inputs) -> list[tuple[str, str]]:
    """Problems a provider finds before any call, as (path, reason): unknown, missing and mistyped inputs.

    Nothing more, as with the real provider, which checks no CIDR, address or OCID at plan time.
    """
    problems = list(_check_value("", inputs, InputSpec.of(type_token)))
    details = inputs.get("createVnicDetails")
    public_ip = details.get("assignPublicIp") if isinstance(details, dict) else None
    if public_ip not in (None, UNKNOWN, "true", "false"):
        problems.append(("createVnicDetails.assignPublicIp", f'expected "true" or "false", got {public_ip!r}'))
    if type_token == LPG and inputs.get("peerId") == "":
        problems.append(("peerId", "must not be empty"))
    return problems


def with_defaults(type_token: str, inputs: Inputs) -> Inputs:
    """A deep copy of the inputs without nulls and with what the provider fills in."""
    filled: Inputs = _without_nulls(copy.deepcopy(inputs))
    for path, value in row(type_token).defaults.items():
        _set_default(filled, path.split("."), value)
    return filled


def diff(type_token: str, old: Inputs, new: Inputs) -> Diff:
    """Compare two sets of inputs of one resource as the provider does."""
    kind = row(type_token)
    changed = list(_changes(kind, "", with_defaults(type_token, old), with_defaults(type_token, new)))
    replace = tuple(path for path in changed if _in(path, kind.replace))
    return Diff(replace=replace, update=tuple(path for path in changed if path not in replace))


def _object_spec(args_class: type) -> InputSpec:
    parameters = list(inspect.signature(args_class.__init__).parameters.values())[1:]  # type: ignore[misc]
    names = {parameter.name: _wire_name(args_class, parameter.name) for parameter in parameters}
    return InputSpec(
        kind="object",
        members={names[parameter.name]: _spec(parameter.annotation) for parameter in parameters},
        required=frozenset(names[p.name] for p in parameters if p.default is inspect.Parameter.empty),
    )


def _wire_name(args_class: type, name: str) -> str:
    """The camelCase name that the SDK's own property carries (`ipv4cidr_blocks` is `ipv4cidrBlocks`)."""
    getter = vars(args_class)[name].fget
    return str(getattr(getter, "_pulumi_name", name))


def _spec(annotation: Value) -> InputSpec:
    """The kind behind `Input[Optional[T]]`, which is a union of T, None, an awaitable of T and an Output of T."""
    if isinstance(annotation, typing.ForwardRef):
        annotation = getattr(sys.modules["pulumi_oci.core._inputs"], annotation.__forward_arg__)
    origin: Value = typing.get_origin(annotation)
    if origin is typing.Union:
        # The plain type comes first: pulumi.Input is defined as Union[T, Awaitable[T], Output[T]].
        return _spec(typing.get_args(annotation)[0])
    if origin is not None and issubclass(origin, Mapping):
        return InputSpec("map")
    if origin is not None and issubclass(origin, Sequence):
        return InputSpec("list", element=_spec(typing.get_args(annotation)[0]))
    if annotation in (int, float):
        return InputSpec("number")
    if annotation is bool:
        return InputSpec("boolean")
    if annotation is str:
        return InputSpec("string")
    if inspect.isclass(annotation) and annotation.__module__.startswith(oci.core.__name__):
        return _object_spec(annotation)
    raise TypeError(f"pulumi_oci has an input of a kind unknown here: {annotation!r}")


_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "list": (list,),
    "map": (dict,),
}


def _check_value(path: str, value: Value, spec: InputSpec) -> Iterator[tuple[str, str]]:
    if value is None or value == UNKNOWN:
        return
    mistyped = not isinstance(value, _PYTHON_TYPES[spec.kind])
    if mistyped or (spec.kind == "number" and isinstance(value, bool)):
        yield path, f"expected {spec.kind}, got {value!r}"
        return
    if spec.kind == "list" and spec.element:
        for index, element in enumerate(value):
            yield from _check_value(f"{path}[{index}]", element, spec.element)
    if spec.kind == "object":
        prefix = f"{path}." if path else ""
        for name in sorted(spec.required):
            if value.get(name) is None:
                yield f"{prefix}{name}", "Missing required property"
        for name, member in value.items():
            if name.startswith("__"):  # Pulumi's own book-keeping, `__defaults` for one
                continue
            if name not in spec.members:
                yield f"{prefix}{name}", "Unknown property"
            else:
                yield from _check_value(f"{prefix}{name}", member, spec.members[name])


def _without_nulls(value: Value) -> Value:
    if isinstance(value, dict):
        return {
            name: _without_nulls(member)
            for name, member in value.items()
            if member is not None and not name.startswith("__")
        }
    if isinstance(value, list):
        return [_without_nulls(member) for member in value]
    return value


def _set_default(target: Value, steps: list[str], value: Value) -> None:
    """Set `value` at a path unless something stands there; an absent object on the way is left absent."""
    step, rest = steps[0], steps[1:]
    if not isinstance(target, dict):
        return
    if not rest:
        target.setdefault(step, value)
    elif step.endswith("[]"):
        elements = target.get(step[:-2])
        for element in elements if isinstance(elements, list) else ():
            _set_default(element, rest, value)
    else:
        _set_default(target.get(step), rest, value)


_MAPS = frozenset({"metadata", "extendedMetadata", "freeformTags", "definedTags"})


def _changes(kind: TypeRow, path: str, old: Value, new: Value) -> Iterator[str]:
    """Paths at which `new` differs from `old`."""
    if isinstance(old, dict) and isinstance(new, dict):
        is_map = path.rsplit(".", 1)[-1] in _MAPS
        for name in [*new, *(name for name in old if name not in new)]:
            inner = f"{path}.{name}" if path else name
            if name not in new:
                if is_map or inner in kind.removable:
                    yield inner
            elif name not in old and name not in _MAPS:
                yield inner
            else:
                yield from _changes(kind, inner, old.get(name, {}), new[name])
        return
    if path in kind.ignore_case and isinstance(old, str) and isinstance(new, str):
        old, new = old.lower(), new.lower()
    if path in kind.sets and isinstance(old, list) and isinstance(new, list):
        old, new = sorted(map(_canonical, old)), sorted(map(_canonical, new))
    if old != new:
        yield path


def _canonical(value: Value) -> str:
    return json.dumps(value, sort_keys=True)


def _in(path: str, paths: frozenset[str]) -> bool:
    """Whether `path` or an object around it is listed."""
    steps = path.split(".")
    return any(".".join(steps[: length + 1]) in paths for length in range(len(steps)))
