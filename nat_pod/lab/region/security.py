"""Network security groups and security lists of the simulated region."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nat_pod import limits
from nat_pod.lab.region.base import Behaviour, Record, conflict, invalid, network, over_limit
from nat_pod.lab.region.network import refuse_other_vcn
from nat_pod.lab.region.oci_types import (
    DEFAULT_SECURITY_LIST,
    NSG,
    NSG_RULE,
    SECURITY_LIST,
    SUBNET,
    VCN,
    VNIC,
    Inputs,
)

if TYPE_CHECKING:
    from nat_pod.lab.region.region import Region

_SECURITY = 'OCI docs, "Security Rules"'
_API = "OCI API, AddSecurityRuleDetails"
LIST_RULES = 200


class _Nsg(Behaviour):
    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        vcn = region.get(inputs["vcnId"], VCN)
        facts = {"vcnId": vcn.ocid, "displayName": inputs.get("displayName", name), "state": "AVAILABLE"}
        return region.add(NSG, name, facts, ocid)

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:  # noqa: ARG002
        record.facts["displayName"] = inputs.get("displayName", record.facts["displayName"])

    def delete(self, region: Region, record: Record) -> None:
        users = [vnic for vnic in region.all(VNIC) if record.ocid in vnic.facts["nsgIds"]]
        if users:
            raise conflict(
                f"network security group {record.ocid} cannot be deleted since it still has VNICs attached to it: "
                f"{users[0].ocid}",
                'OCI docs, "Network Security Groups"',
            )
        for rule in _rules_of(region, record.ocid):
            region.drop(rule)
        region.drop(record)


class _NsgRule(Behaviour):
    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        nsg = region.get(inputs["networkSecurityGroupId"], NSG)
        _refuse_rule(region, nsg, inputs)
        if len(_rules_of(region, nsg.ocid)) >= limits.NSG_RULES:
            raise over_limit(f"network security group {nsg.ocid} has {limits.NSG_RULES} rules", _SECURITY)
        return region.add(NSG_RULE, name, {**inputs, "isValid": True}, ocid)

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:
        _refuse_rule(region, region.get(record.facts["networkSecurityGroupId"], NSG), inputs)
        record.facts = {**inputs, "isValid": True}

    def delete(self, region: Region, record: Record) -> None:
        region.drop(record)


class _SecurityList(Behaviour):
    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:
        vcn = region.get(inputs["vcnId"], VCN)
        facts = {"vcnId": vcn.ocid, "displayName": inputs.get("displayName", name), "state": "AVAILABLE"}
        return region.add(SECURITY_LIST, name, {**facts, **_list_rules(inputs)}, ocid)

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:  # noqa: ARG002
        record.facts.update(_list_rules(inputs))
        record.facts["displayName"] = inputs.get("displayName", record.facts["displayName"])

    def delete(self, region: Region, record: Record) -> None:
        for subnet in region.all(SUBNET):
            if record.ocid in subnet.facts["securityListIds"]:
                raise conflict(
                    f"The Security List {record.ocid} is associated with subnet {subnet.ocid}. You must remove the "
                    "reference to proceed with this operation.",
                    'OCI docs, "VCN Troubleshooting"',
                )
        region.drop(record)


class _DefaultSecurityList(Behaviour):
    """The list that came with the VCN: to create it means to take it over, to delete it means to empty it."""

    def create(self, region: Region, inputs: Inputs, name: str, ocid: str | None) -> Record:  # noqa: ARG002
        record = region.get(inputs["manageDefaultResourceId"], DEFAULT_SECURITY_LIST)
        rules = _list_rules(inputs)
        region.adopt(record, name)
        record.facts.update(rules, manageDefaultResourceId=record.ocid, state="AVAILABLE")
        return record

    def update(self, region: Region, record: Record, inputs: Inputs) -> None:  # noqa: ARG002
        record.facts.update(_list_rules(inputs))

    def delete(self, region: Region, record: Record) -> None:
        record.inputs = {}
        record.facts.update(_list_rules({}))
        region.adopt(record, record.facts["vcnId"])

    def view(self, region: Region, record: Record) -> Inputs:  # noqa: ARG002
        return {name: value for name, value in record.facts.items() if name != "vcnId"}


def _rules_of(region: Region, nsg: str) -> list[Record]:
    return [rule for rule in region.all(NSG_RULE) if rule.facts["networkSecurityGroupId"] == nsg]


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


def _refuse_rule(region: Region, nsg: Record, rule: Inputs) -> None:
    """400 for an NSG rule without the end its direction needs, or with one that OCI does not know."""
    ends = {"INGRESS": "source", "EGRESS": "destination"}
    if rule["direction"] not in ends:
        raise invalid(f"direction {rule['direction']!r} must be INGRESS or EGRESS", _API)
    end = ends[rule["direction"]]
    if not rule.get(end) or not rule.get(f"{end}Type"):
        raise invalid(f"an {rule['direction']} rule needs {end} and {end}Type", _API)
    if rule[f"{end}Type"] == "NETWORK_SECURITY_GROUP":
        refuse_other_vcn(region.get(rule[end], NSG), nsg.facts["vcnId"], _SECURITY)
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


BEHAVIOURS: dict[str, Behaviour] = {
    NSG: _Nsg(),
    NSG_RULE: _NsgRule(),
    SECURITY_LIST: _SecurityList(),
    DEFAULT_SECURITY_LIST: _DefaultSecurityList(),
}
