"""Network security groups, their rules, and security lists."""

from __future__ import annotations

from nat_pod import limits
from nat_pod.lab.region.inputs import InputRules, Inputs
from nat_pod.lab.region.kinds import DEFAULT_SECURITY_LIST, NSG, NSG_RULE, SECURITY_LIST, SUBNET, VCN, VNIC
from nat_pod.lab.region.refusals import conflict, invalid, network, over_limit
from nat_pod.lab.region.resource import ObjectKind, Resource
from nat_pod.lab.region.store import Record, Store, refuse_other_vcn

_SECURITY = 'OCI docs, "Security Rules"'
_API = "OCI API, AddSecurityRuleDetails"
LIST_RULES = 200

_SECURITY_LIST_INPUTS = frozenset({"ingressSecurityRules", "egressSecurityRules"})
_SECURITY_LIST_DEFAULTS = {
    "ingressSecurityRules[].sourceType": "CIDR_BLOCK",
    "ingressSecurityRules[].stateless": False,
    "ingressSecurityRules[].icmpOptions.code": -1,
    "egressSecurityRules[].destinationType": "CIDR_BLOCK",
    "egressSecurityRules[].stateless": False,
    "egressSecurityRules[].icmpOptions.code": -1,
}


class _Nsg(Resource):
    kind = NSG
    ocid_type = "networksecuritygroup"
    rules = InputRules(
        source="core_network_security_group_resource.go",
        replace=frozenset({"vcnId"}),
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        vcn = store.get(inputs["vcnId"], VCN)
        facts = {"vcnId": vcn.ocid, "displayName": inputs.get("displayName", name), "state": "AVAILABLE"}
        return store.add(NSG, name, facts, ocid)

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:  # noqa: ARG002
        record.facts["displayName"] = inputs.get("displayName", record.facts["displayName"])

    def delete(self, store: Store, record: Record) -> None:
        users = [vnic for vnic in store.all(VNIC) if record.ocid in vnic.facts["nsgIds"]]
        if users:
            raise conflict(
                f"network security group {record.ocid} cannot be deleted since it still has VNICs attached to it: "
                f"{users[0].ocid}",
                'OCI docs, "Network Security Groups"',
            )
        for rule in _rules_of(store, record.ocid):
            store.drop(rule)
        store.drop(record)


class _NsgRule(Resource):
    kind = NSG_RULE
    ocid_type = "securityrule"
    rules = InputRules(
        source="core_network_security_group_security_rule_resource.go",
        replace=frozenset({"networkSecurityGroupId"}),
        removable=frozenset({"source", "icmpOptions", "tcpOptions", "udpOptions"}),
        defaults={"stateless": False, "icmpOptions.code": -1},
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        nsg = store.get(inputs["networkSecurityGroupId"], NSG)
        _refuse_rule(store, nsg, inputs)
        if len(_rules_of(store, nsg.ocid)) >= limits.NSG_RULES:
            raise over_limit(f"network security group {nsg.ocid} has {limits.NSG_RULES} rules", _SECURITY)
        return store.add(NSG_RULE, name, {**inputs, "isValid": True}, ocid)

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        _refuse_rule(store, store.get(record.facts["networkSecurityGroupId"], NSG), inputs)
        record.facts = {**inputs, "isValid": True}

    def delete(self, store: Store, record: Record) -> None:
        store.drop(record)


class _SecurityList(Resource):
    kind = SECURITY_LIST
    ocid_type = "securitylist"
    rules = InputRules(
        source="core_security_list_resource.go",
        replace=frozenset({"vcnId"}),
        removable=_SECURITY_LIST_INPUTS,
        sets=_SECURITY_LIST_INPUTS,
        defaults=_SECURITY_LIST_DEFAULTS,
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        vcn = store.get(inputs["vcnId"], VCN)
        facts = {"vcnId": vcn.ocid, "displayName": inputs.get("displayName", name), "state": "AVAILABLE"}
        return store.add(SECURITY_LIST, name, {**facts, **_list_rules(inputs)}, ocid)

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:  # noqa: ARG002
        record.facts.update(_list_rules(inputs))
        record.facts["displayName"] = inputs.get("displayName", record.facts["displayName"])

    def delete(self, store: Store, record: Record) -> None:
        for subnet in store.all(SUBNET):
            if record.ocid in subnet.facts["securityListIds"]:
                raise conflict(
                    f"The Security List {record.ocid} is associated with subnet {subnet.ocid}. You must remove the "
                    "reference to proceed with this operation.",
                    'OCI docs, "VCN Troubleshooting"',
                )
        store.drop(record)


class _DefaultSecurityList(Resource):
    """The list that came with the VCN.  Creating it takes it over, and deleting it empties it."""

    kind = DEFAULT_SECURITY_LIST
    ocid_type = "securitylist"
    rules = InputRules(
        source="core_security_list_resource.go by ConvertToDefaultVcnResourceSchema in helpers_core.go",
        replace=frozenset({"manageDefaultResourceId"}),
        removable=_SECURITY_LIST_INPUTS,
        sets=_SECURITY_LIST_INPUTS,
        defaults=_SECURITY_LIST_DEFAULTS,
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:  # noqa: ARG002
        record = store.get(inputs["manageDefaultResourceId"], DEFAULT_SECURITY_LIST)
        rules = _list_rules(inputs)
        store.adopt(record, name)
        record.facts.update(rules, manageDefaultResourceId=record.ocid, state="AVAILABLE")
        return record

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:  # noqa: ARG002
        record.facts.update(_list_rules(inputs))

    def delete(self, store: Store, record: Record) -> None:
        record.inputs = {}
        record.facts.update(_list_rules({}))
        store.adopt(record, record.facts["vcnId"])

    def view(self, store: Store, record: Record) -> Inputs:  # noqa: ARG002
        return {name: value for name, value in record.facts.items() if name != "vcnId"}


def _rules_of(store: Store, nsg: str) -> list[Record]:
    return [rule for rule in store.all(NSG_RULE) if rule.facts["networkSecurityGroupId"] == nsg]


def _list_rules(inputs: Inputs) -> Inputs:
    """The rules of a security list, checked."""
    rules = {name: inputs.get(name, []) for name in ("ingressSecurityRules", "egressSecurityRules")}
    for name, end in (("ingressSecurityRules", "source"), ("egressSecurityRules", "destination")):
        if len(rules[name]) > LIST_RULES:
            raise over_limit(f"{len(rules[name])} {name}, a list has {LIST_RULES}", _SECURITY)
        for rule in rules[name]:
            if rule.get(f"{end}Type", "CIDR_BLOCK") != "CIDR_BLOCK":
                raise invalid(f"{end}Type of a security list's rule must be CIDR_BLOCK here", _SECURITY)
            network(rule[end], end)
            _refuse_options(rule)
    return rules


def _refuse_rule(store: Store, nsg: Record, rule: Inputs) -> None:
    """400 for an NSG rule without the end that its direction needs, or with one that OCI does not know."""
    ends = {"INGRESS": "source", "EGRESS": "destination"}
    if rule["direction"] not in ends:
        raise invalid(f"direction {rule['direction']!r} must be INGRESS or EGRESS", _API)
    end = ends[rule["direction"]]
    if not rule.get(end) or not rule.get(f"{end}Type"):
        raise invalid(f"an {rule['direction']} rule needs {end} and {end}Type", _API)
    if rule[f"{end}Type"] == "NETWORK_SECURITY_GROUP":
        refuse_other_vcn(store.get(rule[end], NSG), nsg.facts["vcnId"], _SECURITY)
    elif rule[f"{end}Type"] == "CIDR_BLOCK":
        network(rule[end], end)
    else:
        raise invalid(f"{end}Type {rule[f'{end}Type']!r} is none of CIDR_BLOCK, NETWORK_SECURITY_GROUP", _API)
    _refuse_options(rule)


_OPTIONS = {"icmpOptions": "1", "tcpOptions": "6", "udpOptions": "17"}


def _refuse_options(rule: Inputs) -> None:
    protocol = rule["protocol"]
    if protocol != "all" and not (protocol.isdecimal() and int(protocol) <= 255):
        raise invalid(f'protocol {protocol!r} must be "all" or an IP protocol number as text, e.g. "6"', _API)
    for option, number in _OPTIONS.items():
        if option in rule and protocol != number:
            raise invalid(f"{option} need protocol {number}, got {protocol}", _API)


KINDS: tuple[ObjectKind, ...] = (_Nsg(), _NsgRule(), _SecurityList(), _DefaultSecurityList())
