"""The stack file of a hand-built POD: what its rules say, what has to be assumed, and what somebody has to fill in.

Rules know addresses, not names and not networks.  Names come from comments; a customer's network from `--customer`,
from a rule that tests for it, or as the /24 around its hosts (management's: the /16), as in the article.  Whatever is
assumed says so in a comment of the file, whatever rules cannot say stands there as FILL-IN, which `check` refuses.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from netaddr import IPAddress, IPNetwork, spanning_cidr

from nat_pod.config.addressing import default_layout, overlap, reserved_by_oci
from nat_pod.config.model import read_draft
from nat_pod.config.neighbours import is_customer_name, is_member_name
from nat_pod.handbuilt.reconstruct import Finding, Handbuilt, Kind
from nat_pod.handbuilt.saved_rules import Range, dotted
from nat_pod.limits import MAX_VNICS, VCN_PREFIXES
from nat_pod.names import MANAGEMENT, NAMESPACE, NAT_VM1, NAT_VM2, VROUTER, MemberName

FILL_IN = "FILL-IN"
ASSUMED = "ASSUMED"
_POD_PREFIX = 22  # the article's POD
_CUSTOMER_PREFIX = 24
_MANAGEMENT_PREFIX = 16
_REGION = "oci:region"


@dataclass(kw_only=True, slots=True)
class Draft:
    """A stack file to be: nat-pod's keys with FILL_IN where a value is unknown, and comments by path.

    findings: those of the rules, and what follows from making a stack file of them.
    """

    config: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def to_fill_in(self) -> list[str]:
        """The paths that read FILL-IN, the region's too."""
        return [_REGION, *_fill_ins(self.config, "")]

    @property
    def without_slot(self) -> list[str]:
        """The members that `allocate` has to give a slot."""
        realms = {MANAGEMENT: self.config["management"]["servers"]}
        realms |= {name: entry["hosts"] for name, entry in self.config["customers"].items()}
        members = [f"{realm}/{member}" for realm, names in realms.items() for member in names]
        return [member for member in members if member not in self.config["addresses"]]

    @property
    def assumed(self) -> list[str]:
        """The paths whose value is an assumption."""
        return [path for path, comment in sorted(self.comments.items()) if comment.startswith(ASSUMED)]

    def value(self, path: str) -> object:
        """What stands at a path."""
        found: Any = self.config
        for key in path.split("."):
            found = found[key]
        return found

    def text(self) -> str:
        """The stack file."""
        lines = [
            "# A POD built by hand, read from the nat tables of its two NAT VMs by `python -m nat_pod import`.",
            f"# {FILL_IN}: the rules do not say it. {ASSUMED}: the rules suggest it; look at it.",
            "config:",
            f"  {_REGION}: {FILL_IN}",
        ]
        for key, value in self.config.items():
            lines += self._lines(f"  {NAMESPACE}:{key}", key, value)
        return "\n".join(lines) + "\n"

    def _lines(self, start: str, path: str, value: object) -> list[str]:
        comment = self.comments.get(path, "")
        if isinstance(value, dict) and value and not set(value) <= {NAT_VM1, NAT_VM2}:
            indent = " " * (len(start) - len(start.lstrip()) + 2)
            lines = [_with_comment(f"{start}:", comment)]
            for key, entry in value.items():
                lines += self._lines(f"{indent}{_scalar(key)}", f"{path}.{key}", entry)
            return lines
        return [_with_comment(f"{start}: {_flow(value)}", comment)]


def draft(pod: Handbuilt, customers: Mapping[str, IPNetwork], stack: str) -> Draft:
    """The stack file of a hand-built POD.

    customers: networks that are known, by name.  stack: the stack's name, for messages.
    """
    result = Draft(findings=list(pod.findings))
    groups = _groups(pod, customers, result)
    servers = {
        address: MemberName(MANAGEMENT, name) for address, name in _named(pod, NAT_VM2, pod.servers, "server").items()
    }
    hosts = {
        address: MemberName(group.name, name)
        for group in groups
        for address, name in _named(pod, NAT_VM1, group.hosts, "host").items()
    }
    every_server = sorted(server.short for server in servers.values())
    pinned, cidr = _range(pod)
    reached = {group.name: _reached(pod, group, servers, result, hosts) for group in groups}
    _judge_gained(pod, servers, hosts, result)
    result.config = {
        "compartmentId": FILL_IN,
        "cidr": str(cidr),
        "natVm": {"shape": FILL_IN, "imageId": FILL_IN, "sshPublicKey": FILL_IN},
        "management": {
            "cidr": str(_management(pod, result)),
            "vrouter": FILL_IN,
            "servers": {name.short: dotted(address) for address, name in servers.items()},
        },
        "customers": {
            group.name: {
                "cidr": str(group.network),
                **({} if reached[group.name] in (None, every_server) else {"servers": reached[group.name]}),
                "hosts": {hosts[address].short: dotted(address) for address in group.hosts},
            }
            for group in groups
        },
        "sourceNat": pod.source_nat,
    }
    result.comments["cidr"] = f"{ASSUMED}: the /{cidr.prefixlen} around its addresses"
    result.comments["natVm.shape"] = f"{_count(len(pod.pairs), 'VNIC')} of each NAT VM in use"
    result.comments["management.vrouter"] = "the vRouter's floating IP in this POD"
    if pinned:
        result.config["subnets"] = {
            NAT_VM1: [_network(pair[0]) for pair in pod.pairs],
            NAT_VM2: [_network(pair[1]) for pair in pod.pairs],
            VROUTER: FILL_IN,
        }
        result.comments["subnets.vrouter"] = "the network of the vRouter's floating IP, a /24 to a /29"
    result.config["addresses"] = {
        str(name): {NAT_VM1: dotted(slot[0]), NAT_VM2: dotted(slot[1])}
        for members, names in ((pod.servers, servers), (pod.hosts, hosts))
        for address, name in names.items()
        if (slot := members[address]) is not None
    }
    _judge_config(result, cidr, pinned, stack)
    return result


# --- networks --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    """A customer to be."""

    name: str
    network: IPNetwork | None
    hosts: list[int]
    tested: Range | None = None  # the network that a rule tests for, and that makes a group of these hosts


def _groups(pod: Handbuilt, given: Mapping[str, IPNetwork], result: Draft) -> list[_Group]:
    """The hosts by customer: as given, then by the comments' names, by networks in rules, by /24."""
    groups = [_Group(name, network, [h for h in pod.hosts if h in _span(network)]) for name, network in given.items()]
    left = [host for host in pod.hosts if not any(host in group.hosts for group in groups)]
    if given:
        _judge_unknown(pod, left, result)
    sources: dict[str, list[int]] = {}  # by what makes a group of them
    for host in sorted(left):
        realm = _comment_name(pod, NAT_VM1, host)[0]
        if realm and is_customer_name(realm) and realm not in given:
            sources.setdefault(realm, []).append(host)
    by_comment = {host for hosts in sources.values() for host in hosts}
    # A network stands for a customer only if its comment says so: nat-pod's own chains test for parts of networks too.
    named = {comment: inside for inside, comment in pod.networks.items()}
    groups += [_Group(realm, None, hosts, named.get(realm)) for realm, hosts in sorted(sources.items())]
    tested = _tested(pod)
    unnamed: dict[Range, list[int]] = {}
    for host in left:
        if host not in by_comment:
            around = next((inside for inside in tested if inside[0] <= host <= inside[1]), None)
            first = host & ~255
            unnamed.setdefault(around or (first, first + 255), []).append(host)
    taken = {group.name for group in groups}
    for inside, hosts in sorted(unnamed.items()):
        comment = pod.networks.get(inside, "")
        name = comment if is_customer_name(comment) and comment not in taken else _next_customer(taken)
        taken.add(name)
        groups.append(_Group(name, None, hosts, inside if inside in tested else None))
    for group in groups:
        if group.network is None:
            group.network, why = _customer_network(group, groups)
            result.comments[f"customers.{group.name}.cidr"] = f"{ASSUMED}: {why}"
    return groups


def _next_customer(taken: set[str]) -> str:
    return next(name for number in range(1, len(taken) + 2) if (name := f"customer{number}") not in taken)


def _customer_network(group: _Group, groups: list[_Group]) -> tuple[IPNetwork, str]:
    """A network for a customer of whom only hosts are known, and where it comes from."""
    others = [host for other in groups if other is not group for host in other.hosts]
    networks = [other.network for other in groups if other.network is not None]

    def fits(network: IPNetwork) -> bool:
        inside = _span(network)
        return (
            all(h in inside and not reserved_by_oci(IPAddress(h), network) for h in group.hosts)
            and not any(h in inside for h in others)
            and not any(overlap(network, other) for other in networks)
        )

    if group.tested is not None and fits(_as_network(group.tested)):
        return _as_network(group.tested), "a rule tests for it"
    around = _around(group.hosts, _CUSTOMER_PREFIX)
    for prefix in range(around.prefixlen, VCN_PREFIXES.stop):
        network = IPNetwork((group.hosts[0], prefix)).cidr
        if fits(network):
            return network, f"the /{prefix} around its {_count(len(group.hosts), 'host')}"
    return around, f"the /{around.prefixlen} around its {_count(len(group.hosts), 'host')}"


def _management(pod: Handbuilt, result: Draft) -> IPNetwork:
    servers = sorted(pod.servers)
    around = _around(servers, _MANAGEMENT_PREFIX)
    why = f"the /{around.prefixlen} around its {_count(len(servers), 'server')}"
    result.comments["management.cidr"] = f"{ASSUMED}: {why}"
    return around


def _tested(pod: Handbuilt) -> list[Range]:
    """Networks that rules of NAT VM1 test the source for, and that can be a VCN's: the largest first."""
    found = [inside for inside in pod.networks if _as_network(inside).prefixlen in VCN_PREFIXES]
    return sorted(found, key=lambda inside: (inside[0] - inside[1], inside))


def _range(pod: Handbuilt) -> tuple[bool, IPNetwork]:
    """Whether the layout has to be pinned, and the POD's range: the planner's own layout is left to the planner."""
    spanned = _around([end for pair in pod.pairs for inside in pair for end in inside], 32)
    if 16 <= spanned.prefixlen <= _POD_PREFIX:
        planned = [(pair.nat_vm1, pair.nat_vm2) for pair in default_layout(spanned, MAX_VNICS).pairs[: len(pod.pairs)]]
        if planned == [(_as_network(one), _as_network(two)) for one, two in pod.pairs]:
            return False, spanned
    return True, spanned if spanned.prefixlen <= _POD_PREFIX else spanned.supernet(_POD_PREFIX)[0]


def _around(addresses: list[int], prefix: int) -> IPNetwork:
    """The smallest network around addresses, or the one of this prefix if that is larger."""
    ends = [IPNetwork((min(addresses), prefix)).cidr, IPNetwork((max(addresses), prefix)).cidr]
    return ends[0] if ends[0] == ends[1] else spanning_cidr(ends)


def _span(network: IPNetwork) -> range:
    return range(network.first, network.last + 1)


def _as_network(inside: Range) -> IPNetwork:
    return IPNetwork((inside[0], 33 - (inside[1] - inside[0] + 1).bit_length()))


def _network(inside: Range) -> str:
    return str(_as_network(inside))


# --- names -----------------------------------------------------------------------------------------------------------


def _comment_name(pod: Handbuilt, vm: str, address: int) -> tuple[str, str]:
    """(realm, member) of a comment such as `customer1/vm1` or `vm1`; "" for what it does not say."""
    realm, slash, member = pod.names.get((vm, address), "").rpartition("/")
    return (realm, member) if is_member_name(member) and (realm or not slash) else ("", "")


def _named(pod: Handbuilt, vm: str, addresses: Iterable[int], word: str) -> dict[int, str]:
    """A name for each address: its comment's, if nobody else has it, else one made of the address."""
    made = {address: f"{word}-{dotted(address).replace('.', '-')}" for address in sorted(addresses)}
    wanted = {address: _comment_name(pod, vm, address)[1] or name for address, name in made.items()}
    used = Counter(wanted.values()) + Counter(name for address, name in made.items() if wanted[address] != name)
    return {address: name if used[name] == 1 else made[address] for address, name in wanted.items()}


# --- what the stack file changes -------------------------------------------------------------------------------------


def _reached(
    pod: Handbuilt, group: _Group, servers: dict[int, MemberName], result: Draft, hosts: dict[int, MemberName]
) -> list[str] | None:
    """The servers that a customer reaches; nat-pod lets all its hosts reach them.  None: it has no hosts yet."""
    if not group.hosts:
        return None
    reached: dict[int, set[int]] = {host: set() for host in group.hosts}
    for flow in pod.flows:
        if flow.request.vm == NAT_VM1 and flow.request.caller in reached:
            reached[flow.request.caller].add(flow.receiver)
    together = set().union(*reached.values())
    for host, own in reached.items():
        if together - own:
            more = [servers[server] for server in sorted(together - own)]
            why = (
                f"{hosts[host]} gets to reach {_some(more)}: others of {group.name} do, and nat-pod decides by customer"
            )
            result.findings.append(Finding(kind=Kind.GAINED, why=why))
    return sorted(servers[server].short for server in together)


def _judge_gained(pod: Handbuilt, servers: dict[int, MemberName], hosts: dict[int, MemberName], result: Draft) -> None:
    """Hosts that a server does not reach today: nat-pod lets each server reach each host."""
    reached: dict[int, set[int]] = {server: set() for server in servers}
    for flow in pod.flows:
        if flow.request.vm == NAT_VM2:
            reached[flow.request.caller].add(flow.receiver)
    for server, own in reached.items():
        more = [hosts[host] for host in hosts if host not in own and pod.hosts[host] is not None]
        if more:
            why = f"{servers[server]} gets to reach {_some(more)}: in nat-pod each server reaches each host"
            result.findings.append(Finding(kind=Kind.GAINED, why=why))


def _judge_unknown(pod: Handbuilt, left: list[int], result: Draft) -> None:
    for host in left:
        flow = min(
            (flow for flow in pod.flows if host in (flow.request.caller, flow.receiver)),
            key=lambda flow: (flow.request.vm, flow.request.rule.line),
        )
        result.findings.append(
            Finding(
                kind=Kind.UNKNOWN_NETWORK,
                why=f"{dotted(host)} is in the network of no --customer",
                vm=flow.request.vm,
                line=flow.request.rule.line,
                rule=flow.request.rule.text,
            )
        )


def _judge_config(result: Draft, cidr: IPNetwork, pinned: bool, stack: str) -> None:
    """What `check` will say of this file once the gaps are filled."""
    filled = copy.deepcopy(result.config)
    filled["compartmentId"] = "ocid1.compartment.oc1..x"
    filled["natVm"] = {"shape": "VM.Standard2.24", "imageId": "ocid1.image.oc1..x", "sshPublicKey": "ssh-ed25519 x"}
    vrouter = default_layout(cidr, MAX_VNICS).vrouter
    if pinned:
        subnets = [IPNetwork(text) for side in (NAT_VM1, NAT_VM2) for text in filled["subnets"][side]]
        free = (net for net in reversed(list(cidr.subnet(29))) if not any(overlap(net, other) for other in subnets))
        vrouter = next(free, vrouter)
        filled["subnets"][VROUTER] = str(vrouter)
    filled["management"]["vrouter"] = str(vrouter[2])
    for problem in read_draft(filled, stack)[1]:
        result.findings.append(Finding(kind=Kind.REFUSED, why=str(replace(problem, command=""))))


# --- text ------------------------------------------------------------------------------------------------------------


def _fill_ins(value: object, path: str) -> list[str]:
    if isinstance(value, dict):
        return [
            found
            for key, entry in value.items()
            for found in _fill_ins(entry, f"{path}.{key}" if path else f"{NAMESPACE}:{key}")
        ]
    return [path] if value == FILL_IN else []


def _flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: object) -> str:
    """A plain scalar, in quotes where YAML would take it for something else: a host called `on`."""
    text = str(value)
    return text if yaml.safe_load(text) == text else f'"{text}"'


def _with_comment(line: str, comment: str) -> str:
    return f"{line:<41}# {comment}" if comment and len(line) < 41 else f"{line}  # {comment}" if comment else line


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
