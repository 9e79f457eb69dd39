"""Private network load balancers in transparent mode: what a route rule may lead to when a VM has a standby.

A balancer, its backend sets, their backends and its listeners are resources of their own, and the service changes one
of them at a time.  Only what a next hop needs is simulated: one listener for all ports of all protocols, in front of
backends that are VNICs of the VCN.
"""

from __future__ import annotations

from collections.abc import Mapping

from nat_pod.lab.region.inputs import InputRules, Inputs
from nat_pod.lab.region.kinds import (
    BACKEND,
    BACKEND_SET,
    BALANCER,
    INSTANCE,
    LISTENER,
    PRIVATE_IP,
    SUBNET,
    VNIC,
)
from nat_pod.lab.region.private_ip import claim, ip_facts
from nat_pod.lab.region.refusals import conflict, invalid, not_simulated, over_limit
from nat_pod.lab.region.resource import ObjectKind, Query, Resource
from nat_pod.lab.region.store import Record, Store
from nat_pod.lab.region.vnic import attachments, new_mac, refuse_nsgs, vnic_of

_CREATE = "OCI API, CreateNetworkLoadBalancerDetails"
_SET = "OCI API, CreateBackendSetDetails"
_CHECK = "OCI API, HealthCheckerDetails"
_BACKEND = "OCI API, CreateBackendDetails"
_LISTENER = "OCI API, CreateListenerDetails"
_TRANSPARENT = 'OCI docs, "Network Load Balancer", source and destination IP preservation'

_POLICIES = ("FIVE_TUPLE", "THREE_TUPLE", "TWO_TUPLE")
_INTERVAL_MILLIS = range(1_000, 1_800_001)


class _Part(Resource):
    """A backend set, backend or listener: part of one balancer, which it keeps busy while it changes."""

    def occupies(self, inputs: Inputs) -> str | None:
        return str(inputs["networkLoadBalancerId"])

    def occupies_to_update(self, record: Record) -> str | None:
        return str(record.facts["networkLoadBalancerId"])


class _Balancer(Resource):
    kind = BALANCER
    ocid_type = "networkloadbalancer"
    rules = InputRules(
        # reservedIps by CustomizeDiff (forceNewReservedIps).
        source="internal/service/network_load_balancer/network_load_balancer_network_load_balancer_resource.go",
        replace=frozenset(
            {"subnetId", "assignedIpv6", "assignedPrivateIpv4", "isPrivate", "reservedIps", "subnetIpv6cidr"}
        ),
        removable=frozenset(
            {"assignedIpv6", "assignedPrivateIpv4", "networkSecurityGroupIds", "reservedIps", "subnetIpv6cidr"}
        ),
        sets=frozenset({"networkSecurityGroupIds"}),
        defaults={"isPrivate": True, "isPreserveSourceDestination": False},
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        subnet = store.get(inputs["subnetId"], SUBNET)
        _refuse_balancer(store, subnet, inputs)
        if len(store.all(BALANCER)) >= store.limits.balancers:
            raise over_limit(
                f"the region {store.name} has {store.limits.balancers} network load balancers",
                'OCI docs, "Service Limits", Network Load Balancer',
            )
        address = claim(store, subnet, inputs.get("assignedPrivateIpv4"))
        facts = {"subnetId": subnet.ocid, "state": "ACTIVE", **_plain(inputs)}
        balancer = store.add(BALANCER, name, facts, ocid)
        # The service's own VNIC: it belongs to no instance, and the service switches its check off.
        vnic = store.add(
            VNIC,
            balancer.ocid,
            {
                "instanceId": None,
                "subnetId": subnet.ocid,
                "skipSourceDestCheck": True,
                "nsgIds": sorted(inputs.get("networkSecurityGroupIds") or []),
                "displayName": inputs["displayName"],
                "routeTableId": None,
                "state": "AVAILABLE",
            },
        )
        vnic.facts["macAddress"] = new_mac(store, vnic.ocid)
        store.add(PRIVATE_IP, vnic.ocid, ip_facts(subnet, vnic, address, primary=True))
        balancer.facts["ipAddresses"] = [{"ipAddress": address, "ipVersion": "IPV4", "isPublic": False}]
        return balancer

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        _refuse_balancer(store, store.get(record.facts["subnetId"], SUBNET), inputs)
        record.facts.update(_plain(inputs))
        vnic = balancer_vnic(store, record.ocid)
        vnic.facts.update(nsgIds=sorted(inputs.get("networkSecurityGroupIds") or []), displayName=inputs["displayName"])

    def delete(self, store: Store, record: Record) -> None:
        """Its parts and its address go with it; a route rule to the address becomes a blackhole, as with any other."""
        for part in _parts(store, record.ocid, BACKEND, BACKEND_SET, LISTENER):
            store.drop(part)
        vnic = balancer_vnic(store, record.ocid)
        for ip in [ip for ip in store.all(PRIVATE_IP) if ip.facts.get("vnicId") == vnic.ocid]:
            store.drop(ip)
        store.drop(vnic)
        store.drop(record)
        store.health.pop(record.ocid, None)

    def occupies(self, inputs: Inputs) -> str | None:
        return inputs.get("id")  # nothing is busy with a balancer that is being made: nobody knows it yet

    def occupies_to_update(self, record: Record) -> str | None:
        return record.ocid

    def queries(self) -> Mapping[str, Query]:
        return {"oci:NetworkLoadBalancer/getNetworkLoadBalancers:getNetworkLoadBalancers": _list}


class _BackendSet(_Part):
    kind = BACKEND_SET
    ocid_type = "backendset"
    rules = InputRules(
        source="internal/service/network_load_balancer/network_load_balancer_backend_set_resource.go",
        replace=frozenset({"name", "networkLoadBalancerId"}),
        defaults={
            "areOperationallyActiveBackendsPreferred": False,
            "isFailOpen": False,
            "isInstantFailoverEnabled": False,
            "isInstantFailoverTcpResetEnabled": True,
            "isPreserveSource": True,
            "healthChecker.intervalInMillis": 10_000,
            "healthChecker.retries": 3,
            "healthChecker.timeoutInMillis": 3_000,
        },
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:  # noqa: ARG002
        balancer = store.get(inputs["networkLoadBalancerId"], BALANCER)
        _refuse_set(inputs)
        return store.add(BACKEND_SET, name, dict(inputs), part_id(balancer.ocid, "backendSets", _name(inputs)))

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        _refuse_set(inputs)
        _refuse_policy(store, record.facts["networkLoadBalancerId"], {record.facts["name"]: inputs["policy"]})
        record.facts = dict(inputs)

    def delete(self, store: Store, record: Record) -> None:
        for listener in _parts(store, record.facts["networkLoadBalancerId"], LISTENER):
            if listener.facts["defaultBackendSetName"] == record.facts["name"]:
                raise conflict(
                    f"backend set {record.facts['name']} is used by listener {listener.facts['name']}",
                    'OCI docs, "Network Load Balancer", deleting a backend set',
                )
        for backend in _parts(store, record.facts["networkLoadBalancerId"], BACKEND):
            if backend.facts["backendSetName"] == record.facts["name"]:
                store.drop(backend)
        store.drop(record)

    def view(self, store: Store, record: Record) -> Inputs:
        return {**record.facts, "backends": [backend.facts for backend in backends_of(store, record)]}


class _Backend(_Part):
    kind = BACKEND
    ocid_type = "backend"
    rules = InputRules(
        source="internal/service/network_load_balancer/network_load_balancer_backend_resource.go",
        replace=frozenset({"backendSetName", "networkLoadBalancerId", "port", "ipAddress", "name", "targetId"}),
        defaults={"isBackup": False, "isDrain": False, "isOffline": False, "weight": 1},
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:  # noqa: ARG002
        balancer = store.get(inputs["networkLoadBalancerId"], BALANCER)
        backend_set = store.get(part_id(balancer.ocid, "backendSets", inputs["backendSetName"]), BACKEND_SET)
        self._refuse(inputs)
        ip = target_ip(store, inputs["targetId"])
        if ip is None:
            raise invalid(f"Invalid backend OCID {inputs['targetId']}", "terraform-provider-oci issue 2267")
        vcn = _vcn(store, balancer.facts["subnetId"])
        if _vcn(store, ip.facts["subnetId"]) != vcn:
            raise invalid(f"backend {inputs['targetId']} is in another VCN than its load balancer", _BACKEND)
        vnic = ip.facts.get("vnicId")
        if not vnic or not store.get(vnic, VNIC).facts["skipSourceDestCheck"]:
            raise invalid(
                f"backend {inputs['targetId']} has no VNIC that skips the source/destination check, and gets packets "
                "for other addresses than its own",
                f"{_TRANSPARENT} (OCI may find it out by the packets that die; strict on purpose)",
            )
        for other in backends_of(store, backend_set):
            held = target_ip(store, other.facts["targetId"])
            if held is not None and held.ocid == ip.ocid:
                raise conflict(
                    f"Duplicate backend IP/id + port combinations not allowed: {inputs['targetId']}",
                    "terraform-provider-oci issue 1593",
                )
        own = inputs.get("name") or f"{inputs['targetId']}.{inputs['port']}"
        facts = {**inputs, "name": own, "ipAddress": ip.facts["ipAddress"]}
        return store.add(BACKEND, name, facts, f"{backend_set.ocid}/backends/{own}")

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:  # noqa: ARG002
        self._refuse(inputs)
        record.facts["isBackup"] = inputs["isBackup"]

    def delete(self, store: Store, record: Record) -> None:
        store.drop(record)

    def queries(self) -> Mapping[str, Query]:
        return {
            "oci:NetworkLoadBalancer/getBackendHealth:getBackendHealth": _health,
            "oci:NetworkLoadBalancer/getBackends:getBackends": _list_backends,
        }

    def _refuse(self, inputs: Inputs) -> None:
        if inputs.get("ipAddress") or not inputs.get("targetId"):
            raise invalid(
                "a backend of a load balancer that preserves source and destination is given by targetId, the OCID "
                "of a private IP or an instance",
                _TRANSPARENT,
            )
        if inputs["port"] != 0:
            raise invalid(f"a listener of port 0 needs backends of port 0, not {inputs['port']}", _BACKEND)
        if inputs["isDrain"] or inputs["isOffline"] or inputs["weight"] != 1:
            raise not_simulated("isDrain, isOffline and a weight other than 1 are not simulated")


class _Listener(_Part):
    kind = LISTENER
    ocid_type = "listener"
    rules = InputRules(
        source="internal/service/network_load_balancer/network_load_balancer_listener_resource.go",
        replace=frozenset({"name", "networkLoadBalancerId"}),
        defaults={"tcpIdleTimeout": 360, "udpIdleTimeout": 120, "l3ipIdleTimeout": 120},
    )

    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:  # noqa: ARG002
        balancer = store.get(inputs["networkLoadBalancerId"], BALANCER)
        self._refuse(store, inputs)
        if _parts(store, balancer.ocid, LISTENER):
            raise invalid(
                f"load balancer {balancer.ocid} has its listener for all ports, and can have no second one",
                f"{_LISTENER} (one L3IP listener; strict for ANY)",
            )
        return store.add(LISTENER, name, dict(inputs), part_id(balancer.ocid, "listeners", _name(inputs)))

    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        self._refuse(store, inputs)
        record.facts = dict(inputs)

    def delete(self, store: Store, record: Record) -> None:
        store.drop(record)

    def _refuse(self, store: Store, inputs: Inputs) -> None:
        balancer = inputs["networkLoadBalancerId"]
        if inputs["protocol"] not in ("L3IP", "ANY"):
            raise not_simulated(f"a listener of protocol {inputs['protocol']} is not simulated: L3IP or ANY")
        if inputs["port"] != 0:
            raise invalid(f"a listener of protocol {inputs['protocol']} has port 0, not {inputs['port']}", _LISTENER)
        if inputs.get("isPpv2enabled"):
            raise invalid("isPpv2enabled and preserved source and destination exclude each other", _TRANSPARENT)
        chosen = store.get(part_id(balancer, "backendSets", inputs["defaultBackendSetName"]), BACKEND_SET)
        _refuse_l3ip_policy(inputs["protocol"], chosen.facts["policy"])


def part_id(balancer: str, folder: str, name: str) -> str:
    """The provider's id of a backend set (folder backendSets) or listener (folder listeners)."""
    return f"networkLoadBalancers/{balancer}/{folder}/{name}"


def balancer_vnic(store: Store, balancer: str) -> Record:
    """The service's VNIC of a balancer."""
    ocid = store.find(VNIC, balancer)
    assert ocid is not None, "a balancer has its VNIC as long as it stands"
    return store.get(ocid, VNIC)


def backends_of(store: Store, backend_set: Record) -> list[Record]:
    """The backends of a backend set, in the order they were made."""
    return [
        backend
        for backend in _parts(store, backend_set.facts["networkLoadBalancerId"], BACKEND)
        if backend.facts["backendSetName"] == backend_set.facts["name"]
    ]


def target_ip(store: Store, target: str) -> Record | None:
    """The private IP that a backend's targetId means, None when it is gone.

    An instance's OCID means the primary address of its primary VNIC.
    """
    ips = {ip.ocid: ip for ip in store.all(PRIVATE_IP)}
    if target in ips:
        return ips[target]
    if target not in {record.ocid for record in store.all(INSTANCE)}:
        return None
    vnic = vnic_of(store, attachments(store, target)[0])
    return next(ip for ip in ips.values() if ip.facts.get("vnicId") == vnic.ocid and ip.facts["isPrimary"])


def _parts(store: Store, balancer: str, *kinds: str) -> list[Record]:
    return [record for record in store.all(*kinds) if record.facts["networkLoadBalancerId"] == balancer]


def _vcn(store: Store, subnet: str) -> str:
    return str(store.get(subnet, SUBNET).facts["vcnId"])


def _name(inputs: Inputs) -> str:
    if not inputs.get("name"):
        raise not_simulated("a backend set or listener without a name, which the provider would make up")
    return str(inputs["name"])


def _plain(inputs: Inputs) -> Inputs:
    names = ("displayName", "isPrivate", "isPreserveSourceDestination", "networkSecurityGroupIds")
    return {name: inputs[name] for name in names if name in inputs}


def _refuse_balancer(store: Store, subnet: Record, inputs: Inputs) -> None:
    for name in ("assignedIpv6", "reservedIps", "subnetIpv6cidr", "isSymmetricHashEnabled"):
        if inputs.get(name):
            raise not_simulated(f"{name} of a network load balancer is not simulated")
    if not inputs["isPrivate"]:
        if inputs["isPreserveSourceDestination"]:
            raise invalid("isPreserveSourceDestination is for private network load balancers only", _CREATE)
        raise not_simulated("public network load balancers are not simulated")
    if not inputs["isPreserveSourceDestination"]:
        raise not_simulated("a load balancer with isPreserveSourceDestination false is no next hop, and not simulated")
    refuse_nsgs(store, subnet, inputs.get("networkSecurityGroupIds") or [])


def _refuse_set(inputs: Inputs) -> None:
    if inputs["policy"] not in _POLICIES:
        raise invalid(f"policy {inputs['policy']!r} is none of {', '.join(_POLICIES)}", _SET)
    if not inputs["isPreserveSource"]:
        raise invalid("isPreserveSource cannot be false where source and destination are preserved", _TRANSPARENT)
    check = inputs["healthChecker"]
    if check["protocol"] not in ("HTTP", "TCP"):
        raise not_simulated(f"a health check by {check['protocol']} is not simulated: HTTP or TCP")
    if check["protocol"] == "HTTP" and not check.get("urlPath"):
        raise invalid("a health check by HTTP needs urlPath", _CHECK)
    for option in ("requestData", "responseData", "responseBodyRegex"):
        if check.get(option):
            raise not_simulated(f"{option} of a health check is not simulated")
    if not check.get("port"):
        raise invalid("a health check of backends of port 0 needs a port of its own", _CHECK)
    if check["intervalInMillis"] not in _INTERVAL_MILLIS:
        raise invalid(f"intervalInMillis {check['intervalInMillis']} is not from 1000 to 1800000", _CHECK)
    if check["retries"] < 1 or check["timeoutInMillis"] < 1:
        raise invalid("retries and timeoutInMillis are at least 1", f"{_CHECK} (the bounds are strict on purpose)")


def _refuse_policy(store: Store, balancer: str, policies: Mapping[str, str]) -> None:
    """400 for a policy that the listener in front of the set excludes.  policies: by the name of the set."""
    for listener in _parts(store, balancer, LISTENER):
        policy = policies.get(listener.facts["defaultBackendSetName"])
        if policy is not None:
            _refuse_l3ip_policy(listener.facts["protocol"], policy)


def _refuse_l3ip_policy(protocol: str, policy: str) -> None:
    if protocol == "L3IP" and policy == "FIVE_TUPLE":
        raise invalid("an L3IP listener takes a backend set of policy TWO_TUPLE or THREE_TUPLE", _LISTENER)


def _list(store: Store, args: Inputs) -> Inputs:
    """Of one compartment, by displayName and state (ListNetworkLoadBalancers)."""
    if not args.get("compartmentId"):
        raise invalid("compartmentId is missing", "OCI API, ListNetworkLoadBalancers")
    wanted = {key: args[key] for key in ("compartmentId", "displayName") if args.get(key)}
    if args.get("state"):
        wanted["state"] = str(args["state"]).upper()
    found = [_Balancer().state(store, record) for record in store.all(BALANCER)]
    items = [one for one in found if all(one[key] == value for key, value in wanted.items())]
    return {**args, "id": "networkLoadBalancers", "networkLoadBalancerCollections": [{"items": items}]}


def take_health(store: Store, balancer: str, healthy: Mapping[str, bool] | None) -> None:
    """What somebody who sees the packets says of a balancer's backends.

    healthy: by a backend's targetId; None takes back whatever was said.
    """
    ocid = store.get(balancer, BALANCER).ocid
    if healthy is None:
        store.health.pop(ocid, None)
    else:
        store.health[ocid] = dict(healthy)


def _health(store: Store, args: Inputs) -> Inputs:
    """The status of one backend (GetBackendHealth).

    No packets flow in a region.  It says what it was told last of this balancer (`Region.report_health`); a backend
    that was made since then is UNKNOWN, because nobody has asked it yet.  When nobody looks at the balancer, a VM that
    is there counts as healthy.
    """
    backend_set = part_id(args["networkLoadBalancerId"], "backendSets", args["backendSetName"])
    record = store.get(f"{backend_set}/backends/{args['backendName']}", BACKEND)
    ip = target_ip(store, record.facts["targetId"])
    told = store.health.get(args["networkLoadBalancerId"])
    if ip is None or not ip.facts.get("vnicId"):
        status = "CRITICAL"
    elif told is None:
        status = "OK"
    else:
        status = {True: "OK", False: "CRITICAL", None: "UNKNOWN"}[told.get(record.facts["targetId"])]
    return {**args, "id": f"{record.ocid}/health", "status": status, "healthCheckResults": []}


def _list_backends(store: Store, args: Inputs) -> Inputs:
    """Those of one backend set (ListBackends)."""
    backend_set = store.get(part_id(args["networkLoadBalancerId"], "backendSets", args["backendSetName"]), BACKEND_SET)
    items = [_Backend().state(store, backend) for backend in backends_of(store, backend_set)]
    return {**args, "id": f"{backend_set.ocid}/backends", "backendCollections": [{"items": items}]}


KINDS: tuple[ObjectKind, ...] = (_Balancer(), _BackendSet(), _Backend(), _Listener())
