"""What was really registered, as a Topology.

Read from the region's state alone, never from a plan: a VNIC whose source/destination check was left on, a route that
is missing or a line that the guest's files lack shows here, and the packet dies in the lab as it would on OCI.

Names are display names.  The POD's own resources carry their component's name in front, which is the display name of
their VCN; it is taken off, so that the names are those of a plan.
"""

from __future__ import annotations

from typing import Any

import yaml
from netaddr import IPAddress

from nat_pod.config.stack_file import load_text
from nat_pod.lab.region import dns
from nat_pod.lab.region.inputs import Inputs
from nat_pod.lab.region.kinds import (
    BACKEND_SET,
    BALANCER,
    DEFAULT_ROUTE_TABLE,
    DEFAULT_SECURITY_LIST,
    INSTANCE,
    LISTENER,
    LPG,
    NSG,
    NSG_RULE,
    PRIVATE_IP,
    ROUTE_TABLE,
    SECURITY_LIST,
    SUBNET,
    VCN,
    VNIC,
    VNIC_ATTACHMENT,
)
from nat_pod.lab.region.region import Region
from nat_pod.names import POD, VROUTER, MemberName, Role
from nat_pod.plan import guest
from nat_pod.plan.bootstrap import unpack_user_data
from nat_pod.plan.document import read_document
from nat_pod.rules import iptables
from nat_pod.rules.netfilter import Ruleset
from nat_pod.trace.topology import (
    VM_HOST,
    VM_NAT,
    VM_ROUTER,
    Backend,
    Balancer,
    CheckProtocol,
    HealthCheck,
    Lpg,
    Route,
    SecurityRule,
    Subnet,
    Topology,
    Vcn,
    Vm,
    Vnic,
)
from nat_pod.trial.neighbours import ROLE, ROUTES

_KINDS = (
    VCN,
    SUBNET,
    ROUTE_TABLE,
    DEFAULT_ROUTE_TABLE,
    LPG,
    INSTANCE,
    VNIC,
    PRIVATE_IP,
    NSG,
    NSG_RULE,
    SECURITY_LIST,
    DEFAULT_SECURITY_LIST,
    BALANCER,
    BACKEND_SET,
    LISTENER,
)
GONE = "0.0.0.0"
"""Stands for the address of a deleted private IP to which a route rule or a backend still points."""


def observe(region: Region) -> Topology:
    """The network that stands in the region.  Raises ValueError when two things of a kind have one name."""
    return _Observer(region).topology()


class _Observer:
    """One look at a region: its objects by OCID, and their names."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._objects: dict[str, dict[str, Inputs]] = {
            kind: {record.ocid: region.read(record.ocid) for record in region.all(kind)} for kind in _KINDS
        }
        attachments = sorted(region.all(VNIC_ATTACHMENT), key=lambda record: int(record.facts["order"]))
        self._vnics_of: dict[str, list[str]] = {}  # VNICs of each instance in attach order, the primary one first
        for record in attachments:
            self._vnics_of.setdefault(record.facts["instanceId"], []).append(record.facts["vnicId"])
        self._pods = self._pod_vcns()

    def topology(self) -> Topology:
        vcns = [self._vcn(vcn) for vcn in self._all(VCN)]
        subnets = [self._subnet(subnet) for subnet in self._all(SUBNET)]
        lpgs = [self._lpg(lpg) for lpg in self._all(LPG)]
        vnics = [self._vnic(vnic) for vnic in self._all(VNIC) if vnic["instanceId"]]
        vms = [self._vm(vm) for vm in self._all(INSTANCE)]
        return Topology(
            vcns=_by_name(vcns),
            subnets=_by_name(subnets),
            lpgs=_by_name(lpgs),
            vnics=_by_name(vnics),
            vms=_by_name(vms),
            balancers=_by_name([self._balancer(listener) for listener in self._all(LISTENER)]),
        )

    # Objects and names

    def _all(self, kind: str) -> list[Inputs]:
        return list(self._objects[kind].values())

    def _get(self, ocid: str, *kinds: str) -> Inputs:
        return next(self._objects[kind][ocid] for kind in kinds if ocid in self._objects[kind])

    def _pod_vcns(self) -> set[str]:
        """The VCNs in which NAT VMs live."""
        return {
            self._get(vm["createVnicDetails"]["subnetId"], SUBNET)["vcnId"]
            for vm in self._all(INSTANCE)
            if _is_nat_vm(vm)
        }

    def _vcn_name(self, vcn: str) -> str:
        return POD if vcn in self._pods else str(self._get(vcn, VCN)["displayName"])

    def _name(self, thing: Inputs, vcn: str) -> str:
        """A thing's display name, without the component's name if it is in a POD's VCN."""
        name = str(thing["displayName"])
        return name.removeprefix(f"{self._get(vcn, VCN)['displayName']}-") if vcn in self._pods else name

    def _lpg_name(self, lpg: Inputs) -> str:
        name = self._name(lpg, lpg["vcnId"])
        return f"{POD}/{name}" if lpg["vcnId"] in self._pods else name

    def _subnet_name(self, ocid: str) -> str:
        subnet = self._get(ocid, SUBNET)
        return self._name(subnet, subnet["vcnId"])

    def _vm_name(self, vm: Inputs) -> str:
        return self._name(vm, self._get(vm["createVnicDetails"]["subnetId"], SUBNET)["vcnId"])

    # Network

    def _vcn(self, vcn: Inputs) -> Vcn:
        answers = dns.answers(self._region, vcn["id"])
        return Vcn(
            name=self._vcn_name(vcn["id"]),
            cidrs=tuple(vcn["cidrBlocks"]),
            zones=tuple(dns.zones(self._region, vcn["id"])),
            names=tuple((name, address) for name, addresses in answers.items() for address in addresses),
        )

    def _subnet(self, subnet: Inputs) -> Subnet:
        rules: list[SecurityRule] = []
        for ocid in subnet["securityListIds"]:
            found = self._get(ocid, SECURITY_LIST, DEFAULT_SECURITY_LIST)
            rules += [self._security_rule("INGRESS", rule) for rule in found["ingressSecurityRules"]]
            rules += [self._security_rule("EGRESS", rule) for rule in found["egressSecurityRules"]]
        return Subnet(
            name=self._subnet_name(subnet["id"]),
            vcn=self._vcn_name(subnet["vcnId"]),
            cidr=subnet["cidrBlock"],
            routes=self._routes(subnet["routeTableId"]),
            security=tuple(rules),
        )

    def _routes(self, table: str) -> tuple[Route, ...]:
        rules = self._get(table, ROUTE_TABLE, DEFAULT_ROUTE_TABLE)["routeRules"]
        routes = [self._route(rule.get("destination") or rule["cidrBlock"], rule["networkEntityId"]) for rule in rules]
        return tuple(sorted(routes, key=lambda route: route.destination))

    def _route(self, destination: str, target: str) -> Route:
        lpg = self._objects[LPG].get(target)
        if lpg is not None:
            return Route(destination=destination, lpg=self._lpg_name(lpg))
        ip = self._objects[PRIVATE_IP].get(target)
        return Route(destination=destination, private_ip=ip["ipAddress"] if ip else GONE)

    def _lpg(self, lpg: Inputs) -> Lpg:
        peer = self._get(lpg["peerId"], LPG) if lpg["peeringStatus"] == "PEERED" else None
        return Lpg(
            name=self._lpg_name(lpg),
            vcn=self._vcn_name(lpg["vcnId"]),
            peer=self._lpg_name(peer) if peer else None,
            routes=self._routes(lpg["routeTableId"]) if lpg["routeTableId"] else None,
        )

    def _security_rule(self, direction: str, rule: Inputs) -> SecurityRule:
        end = "source" if direction == "INGRESS" else "destination"
        is_nsg = rule.get(f"{end}Type") == "NETWORK_SECURITY_GROUP"
        peer = rule[end]
        if is_nsg:
            # A group that is gone matches nobody; its OCID is a name that no VNIC has.
            group = self._objects[NSG].get(peer)
            peer = self._name(group, group["vcnId"]) if group else peer
        icmp = rule.get("icmpOptions") or {}
        options: Inputs = rule.get("tcpOptions") or rule.get("udpOptions") or {}
        ports: Inputs = options.get("destinationPortRange", options)  # NSG rules nest them, list rules do not
        code = icmp.get("code", -1)
        return SecurityRule(
            direction=direction,
            protocol=rule["protocol"],
            peer=peer,
            peer_is_nsg=is_nsg,
            stateless=bool(rule.get("stateless", False)),
            destination_ports=(ports["min"], ports["max"]) if "min" in ports else None,
            icmp_type=icmp.get("type"),
            icmp_code=None if code == -1 else code,
            description=rule.get("description", ""),
        )

    # Machines

    def _vnic(self, vnic: Inputs) -> Vnic:
        ips = [ip for ip in self._all(PRIVATE_IP) if ip.get("vnicId") == vnic["id"]]
        ips.sort(key=lambda ip: (not ip["isPrimary"], int(IPAddress(ip["ipAddress"]))))
        nsgs, security = self._groups(vnic)
        vcn = self._get(vnic["subnetId"], SUBNET)["vcnId"]
        return Vnic(
            name=self._name(vnic, vcn),
            vm=self._vm_name(self._get(vnic["instanceId"], INSTANCE)),
            subnet=self._subnet_name(vnic["subnetId"]),
            mac=vnic["macAddress"],
            addresses=tuple(ip["ipAddress"] for ip in ips),
            skip_source_dest_check=vnic["skipSourceDestCheck"],
            nsgs=nsgs,
            security=security,
        )

    def _groups(self, vnic: Inputs) -> tuple[tuple[str, ...], tuple[SecurityRule, ...]]:
        """The names of a VNIC's NSGs, and their rules."""
        groups = [self._get(ocid, NSG) for ocid in vnic["nsgIds"]]
        rules = [
            self._security_rule(rule["direction"], rule)
            for rule in self._all(NSG_RULE)
            if rule["networkSecurityGroupId"] in vnic["nsgIds"]
        ]
        # Rules are created in any order and matched in any order.
        rules.sort(key=lambda rule: (rule.direction, rule.protocol, rule.peer, repr(rule)))
        return tuple(self._name(group, group["vcnId"]) for group in groups), tuple(rules)

    def _balancer(self, listener: Inputs) -> Balancer:
        """A load balancer, from its one listener.  One without a listener takes no packets, and is not here."""
        balancer = self._get(listener["networkLoadBalancerId"], BALANCER)
        backend_set = next(
            one
            for one in self._all(BACKEND_SET)
            if one["networkLoadBalancerId"] == balancer["id"] and one["name"] == listener["defaultBackendSetName"]
        )
        address = balancer["ipAddresses"][0]["ipAddress"]
        ip = next(
            one
            for one in self._all(PRIVATE_IP)
            if (one["subnetId"], one["ipAddress"]) == (balancer["subnetId"], address)
        )
        vnic, check = self._get(ip["vnicId"], VNIC), backend_set["healthChecker"]
        nsgs, security = self._groups(vnic)
        return Balancer(
            name=self._name(balancer, self._get(balancer["subnetId"], SUBNET)["vcnId"]),
            subnet=self._subnet_name(balancer["subnetId"]),
            address=address,
            mac=vnic["macAddress"],
            nsgs=nsgs,
            security=security,
            backends=tuple(
                Backend(address=self._target(backend["targetId"]), is_backup=backend["isBackup"])
                for backend in backend_set["backends"]
            ),
            check=HealthCheck(
                protocol=CheckProtocol(check["protocol"]),
                port=check["port"],
                path=check.get("urlPath", "/"),
                return_code=check.get("returnCode", 200),
                interval_millis=check["intervalInMillis"],
                timeout_millis=check["timeoutInMillis"],
                retries=check["retries"],
            ),
            is_fail_open=backend_set["isFailOpen"],
            instant_failover=backend_set["isInstantFailoverEnabled"],
            tcp_reset=backend_set["isInstantFailoverTcpResetEnabled"],
            prefers_active=backend_set["areOperationallyActiveBackendsPreferred"],
            tcp_idle=listener["tcpIdleTimeout"],
            udp_idle=listener["udpIdleTimeout"],
            other_idle=listener["l3ipIdleTimeout"],
        )

    def _target(self, target: str) -> str:
        """The address that a backend's targetId means: a private IP, or an instance's primary one."""
        ip, vm = self._objects[PRIVATE_IP].get(target), self._objects[INSTANCE].get(target)
        if ip is not None:
            return str(ip["ipAddress"])
        return GONE if vm is None else str(vm["privateIp"])

    def _vm(self, vm: Inputs) -> Vm:
        vnics = [self._get(ocid, VNIC) for ocid in self._vnics_of[vm["id"]]]
        named = [self._name(vnic, self._get(vnic["subnetId"], SUBNET)["vcnId"]) for vnic in vnics]
        name, metadata = self._vm_name(vm), vm.get("metadata") or {}
        if _is_nat_vm(vm):
            rules = _rules(metadata)
            settings = _sysctl(metadata.get("user_data", ""))
            return Vm(
                name=name,
                kind=VM_NAT,
                role=_role(metadata),
                vnics=tuple(named),
                rules=rules,
                # The agent switches forwarding on once its rules are loaded.
                forwarding=rules is not None and settings.get("net.ipv4.ip_forward") == "1",
                strict_rp_filter=_strict(settings),
                metadata=metadata,
            )
        tags = vm.get("freeformTags") or {}
        if tags.get(ROLE) == VROUTER:
            # The further VNIC leads to the POD's range, aliases included; the default route leaves by the first one.
            routes = tuple((tags[ROUTES], vnic_name) for vnic_name in named[1:])
            return Vm(name=name, kind=VM_ROUTER, vnics=tuple(named), routes=routes, forwarding=True, metadata=metadata)
        return Vm(name=name, kind=VM_HOST, member=_member(name), vnics=tuple(named), metadata=metadata)


def _is_nat_vm(vm: Inputs) -> bool:
    return guest.VM_KEY in (vm.get("metadata") or {})


def _role(metadata: dict[str, str]) -> Role | None:
    """The role of a NAT VM.  A VM without a standby may have the role's own name."""
    return Role.parse(metadata.get(guest.SIDE_KEY, metadata[guest.VM_KEY]))


def _member(name: str) -> MemberName | None:
    """Who a neighbour's machine is; None for one that is called otherwise."""
    try:
        return MemberName.parse(name)
    except ValueError:
        return None


def _rules(metadata: dict[str, str]) -> Ruleset | None:
    """The rules that the VM's agent would load from this metadata; None when it would refuse them."""
    try:
        document = read_document(metadata.get(guest.RULES_KEY, ""))
        if document.vm != metadata.get(guest.SIDE_KEY, metadata[guest.VM_KEY]):
            return None
        return iptables.parse(document.rules, document.hooks)
    except ValueError:
        return None


def _sysctl(user_data: str) -> dict[str, str]:
    """Kernel settings in the files that the user_data writes; empty when it cannot be read."""
    try:
        config = load_text(unpack_user_data(user_data))
    except (OSError, EOFError, ValueError, yaml.YAMLError):
        return {}
    settings = {}
    for file in config.get("write_files", []) if isinstance(config, dict) else []:
        for line in str(file.get("content", "")).splitlines():
            key, equals, value = line.partition("=")
            if equals and key.strip().startswith("net.") and not key.lstrip().startswith("#"):
                settings[key.strip()] = value.strip()
    return settings


def _strict(settings: dict[str, str]) -> bool:
    """Whether the reverse-path filter is on: the larger of `all` and the interface's own value counts.

    Images ship with it on, so a line that is missing leaves it on.
    """
    return any(settings.get(f"net.ipv4.conf.{which}.rp_filter") != "0" for which in ("all", "*"))


def _by_name(things: list[Any]) -> dict[str, Any]:
    named = {thing.name: thing for thing in sorted(things, key=lambda thing: str(thing.name))}
    if len(named) != len(things):
        raise ValueError(f"two of {sorted(thing.name for thing in things)} have the same name")
    return named
