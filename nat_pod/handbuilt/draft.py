"""The stack file of a hand-built POD: what its rules say, what has to be assumed, and what somebody has to fill in.

Rules know addresses, but neither names nor networks; `member_names.py` and `networks.py` say where these come from.
What is assumed is marked by a comment in the file.  What rules cannot say is FILL-IN there, which `check` refuses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from netaddr import IPNetwork

from nat_pod.config.addressing import default_layout, overlap
from nat_pod.config.model import read_draft
from nat_pod.config.placement import FILL_IN, REGION
from nat_pod.config.stack_text import stack_text
from nat_pod.handbuilt.flows import SavedFlow
from nat_pod.handbuilt.member_names import named
from nat_pod.handbuilt.networks import FoundCustomer, find_customers, management_network, pod_range
from nat_pod.handbuilt.numeric import as_network, dotted
from nat_pod.handbuilt.reconstruct import Handbuilt
from nat_pod.handbuilt.remarks import Remark, RemarkKind
from nat_pod.limits import MAX_VNICS
from nat_pod.names import MANAGEMENT, NAMESPACE, NAT_VM1, NAT_VM2, SIDES, VROUTER, MemberName, Side
from nat_pod.text import count, some

_ASSUMED = "ASSUMED"
_HEAD = [
    "A POD built by hand, read from the nat tables of its two NAT VMs by `python -m nat_pod import`.",
    f"{FILL_IN}: the rules do not say it. {_ASSUMED}: the rules suggest it; check it.",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A stack file to be: nat-pod's keys with FILL_IN where a value is unknown, and comments by path.

    assumed: by path, why the value there is an assumption, which the file says, too; in the order of the paths.
    remarks: those about the rules, and those that come from making a stack file of them.
    """

    config: dict[str, Any]
    comments: Mapping[str, str]
    assumed: Mapping[str, str]
    remarks: tuple[Remark, ...]

    @property
    def to_fill_in(self) -> list[str]:
        """The paths whose value is FILL-IN, including the region's."""
        return [REGION, *_fill_ins(self.config, "")]

    @property
    def without_slot(self) -> list[str]:
        """The members to which `allocate` has to give a slot."""
        realms = {MANAGEMENT: self.config["management"]["servers"]}
        realms |= {name: entry["hosts"] for name, entry in self.config["customers"].items()}
        members = [f"{realm}/{member}" for realm, names in realms.items() for member in names]
        return [member for member in members if member not in self.config["addresses"]]

    def value(self, path: str) -> object:
        """The value at a path."""
        found: Any = self.config
        for key in path.split("."):
            found = found[key]
        return found

    def text(self) -> str:
        """The stack file."""
        assumed = {path: f"{_ASSUMED}: {why}" for path, why in self.assumed.items()}
        return stack_text(_HEAD, {REGION: FILL_IN}, self.config, {**self.comments, **assumed})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """What a hand-built POD becomes.  hosts, servers: names by real address."""

    pod: Handbuilt
    customers: Sequence[FoundCustomer]
    hosts: Mapping[int, MemberName]
    servers: Mapping[int, MemberName]
    management: IPNetwork
    cidr: IPNetwork
    pinned: bool


def draft(pod: Handbuilt, given: Mapping[str, tuple[IPNetwork, ...]], stack: str) -> Draft:
    """The stack file of a hand-built POD.

    given: customers' networks that are known, by name.  stack: the stack's name, for messages.
    """
    customers, unknown = find_customers(pod, given)
    management, why_management = management_network(pod)
    pinned, cidr = pod_range(pod)
    parts = _Parts(
        pod=pod,
        customers=customers,
        hosts={
            address: MemberName(customer.name, name)
            for customer in customers
            for address, name in named(pod, NAT_VM1, customer.hosts, "host").items()
        },
        servers={
            address: MemberName(MANAGEMENT, name)
            for address, name in named(pod, NAT_VM2, pod.servers, "server").items()
        },
        management=management,
        cidr=cidr,
        pinned=pinned,
    )
    config = _config(parts)
    assumed = dict(sorted(_assumed(parts, why_management).items()))
    remarks = [*pod.remarks, *_unknown(pod, unknown), *_gained(parts), *_refused(config, parts, stack)]
    return Draft(config=config, comments=_comments(parts), assumed=assumed, remarks=tuple(remarks))


def _config(parts: _Parts) -> dict[str, Any]:
    pod = parts.pod
    config: dict[str, Any] = {
        "compartmentId": FILL_IN,
        "cidr": str(parts.cidr),
        "natVm": {"shape": FILL_IN, "imageId": FILL_IN, "sshPublicKey": FILL_IN},
        "management": {
            "cidr": str(parts.management),
            "vrouter": FILL_IN,
            "servers": {name.short: dotted(address) for address, name in parts.servers.items()},
        },
        "customers": {customer.name: _customer(parts, customer) for customer in parts.customers},
        "sourceNat": str(pod.source_nat),
    }
    if parts.pinned:
        config["subnets"] = {
            str(side): [str(as_network(pair[number])) for pair in pod.pairs] for number, side in enumerate(SIDES)
        }
        config["subnets"][VROUTER] = FILL_IN
    slots = [(name, pod.servers[address]) for address, name in parts.servers.items()]
    slots += [(name, pod.hosts[address]) for address, name in parts.hosts.items()]
    config["addresses"] = {
        str(name): {str(NAT_VM1): dotted(slot[0]), str(NAT_VM2): dotted(slot[1])}
        for name, slot in slots
        if slot is not None
    }
    return config


def _customer(parts: _Parts, customer: FoundCustomer) -> dict[str, Any]:
    """`servers` is written only if the customer does not reach all of them; all its hosts reach the same ones."""
    cidrs = [str(network) for network in customer.networks]
    entry: dict[str, Any] = {"cidr": cidrs[0] if len(cidrs) == 1 else cidrs}
    reached = sorted(parts.servers[server].short for server in _reached_by(parts, customer))
    if customer.hosts and len(reached) < len(parts.servers):
        entry["servers"] = reached
    entry["hosts"] = {parts.hosts[address].short: dotted(address) for address in customer.hosts}
    return entry


def _assumed(parts: _Parts, why_management: str) -> dict[str, str]:
    return {
        **{f"customers.{customer.name}.cidr": customer.why for customer in parts.customers if customer.why},
        "management.cidr": why_management,
        "cidr": f"the /{parts.cidr.prefixlen} around its addresses",
    }


def _comments(parts: _Parts) -> dict[str, str]:
    comments = {
        "natVm.shape": f"{count(len(parts.pod.pairs), 'VNIC')} of each NAT VM in use",
        "management.vrouter": "the vRouter's floating IP in this POD",
    }
    if parts.pinned:
        comments["subnets.vrouter"] = "the network of the vRouter's floating IP, a /24 to a /29"
    return comments


def _fill_ins(value: object, path: str) -> list[str]:
    if isinstance(value, dict):
        return [
            found
            for key, entry in value.items()
            for found in _fill_ins(entry, f"{path}.{key}" if path else f"{NAMESPACE}:{key}")
        ]
    return [path] if value == FILL_IN else []


# --- what the stack file changes -------------------------------------------------------------------------------------


def _reached(flows: Sequence[SavedFlow], callers: Iterable[int], vm: Side) -> dict[int, set[int]]:
    """Whom each caller reaches today, through its own NAT VM."""
    reached: dict[int, set[int]] = {caller: set() for caller in callers}
    for flow in flows:
        if flow.request.vm is vm and flow.request.caller in reached:
            reached[flow.request.caller].add(flow.receiver)
    return reached


def _reached_by(parts: _Parts, customer: FoundCustomer) -> set[int]:
    """The servers that any host of a customer reaches."""
    return set().union(*_reached(parts.pod.flows, customer.hosts, NAT_VM1).values())


def _gained(parts: _Parts) -> Iterator[Remark]:
    """Flows that the stack file adds: it gives all hosts of a customer the same servers, and each server all hosts."""
    for customer in parts.customers:
        together = _reached_by(parts, customer)
        for host, own in _reached(parts.pod.flows, customer.hosts, NAT_VM1).items():
            if together - own:
                more = [parts.servers[server] for server in sorted(together - own)]
                why = f"others of {customer.name} do, and nat-pod decides by customer"
                yield Remark(kind=RemarkKind.GAINED, why=f"{parts.hosts[host]} will also reach {some(more, 3)}: {why}")
    for server, own in _reached(parts.pod.flows, parts.servers, NAT_VM2).items():
        more = [name for host, name in parts.hosts.items() if host not in own and parts.pod.hosts[host] is not None]
        if more:
            why = "in nat-pod each server reaches each host"
            yield Remark(kind=RemarkKind.GAINED, why=f"{parts.servers[server]} will also reach {some(more, 3)}: {why}")


def _unknown(pod: Handbuilt, hosts: Sequence[int]) -> Iterator[Remark]:
    for host in hosts:
        request = min(
            (flow.request for flow in pod.flows if host in (flow.request.caller, flow.receiver)),
            key=lambda request: (request.vm, request.rule.line),
        )
        why = f"{dotted(host)} is in no network given by --customer"
        yield Remark(kind=RemarkKind.UNKNOWN_NETWORK, vm=request.vm, at=request.rule, why=why)


def _refused(config: Mapping[str, Any], parts: _Parts, stack: str) -> Iterator[Remark]:
    """What `check` will say of this file once the gaps are filled."""
    filled = copy.deepcopy(dict(config))
    filled["compartmentId"] = "ocid1.compartment.oc1..x"
    filled["natVm"] = {"shape": "VM.Standard2.24", "imageId": "ocid1.image.oc1..x", "sshPublicKey": "ssh-ed25519 x"}
    vrouter = default_layout(parts.cidr, MAX_VNICS).vrouter
    if parts.pinned:
        subnets = [IPNetwork(text) for side in SIDES for text in filled["subnets"][side]]
        places = reversed(list(parts.cidr.subnet(29)))
        vrouter = next((net for net in places if not any(overlap(net, other) for other in subnets)), vrouter)
        filled["subnets"][VROUTER] = str(vrouter)
    filled["management"]["vrouter"] = str(vrouter[2])
    for problem in read_draft(filled, stack)[1]:
        yield Remark(kind=RemarkKind.REFUSED, why=str(replace(problem, command="")))
