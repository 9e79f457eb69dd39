"""What each changed setting does to flows: two stack files and their plans -> Outcome.

What becomes of packets is traced (`diff.py`).  What becomes of machines, routes and peerings while `pulumi up` runs is
not in any packet; it is in `EFFECTS`, one row for every key that a stack file can have.  A test holds the rows against
the keys of the component's arguments, so that a new key cannot be forgotten.

Where a row's sentence comes from: docs/engine.md, "What the engine plans" (held by tests under the real engine);
which input replaces a resource: the types' rows in nat_pod/lab/region, taken from the provider's source.  What OCI
itself does then has not been tried in a tenancy, and such a row says "may".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from nat_pod.config.placement import REGION
from nat_pod.config.settings import BESIDE, Changed, Path, Value, changed, renamed
from nat_pod.names import SIDES, VROUTER, MemberName
from nat_pod.plan.model import PodPlan
from nat_pod.text import some
from nat_pod.trace.diff import Difference, FlowChange, Pair, new_names


class Effect(StrEnum):
    """What a changed setting does to flows, the worst first."""

    REPLACES = "replaced"
    """OCI replaces all NAT VMs, and every flow ends."""

    ENDS = "ends"
    """Flows end, as traced."""

    AT_RISK = "at risk"
    """Flows may stop, until something happens that nat-pod does not see."""

    REFUSED = "refused"
    """`pulumi up` fails; what it did before it failed stays done."""

    UNKNOWN = "unknown"
    """nat-pod does not read this key."""

    IN_TURN = "replaced in turn"
    """OCI replaces each NAT VM while the other one of its side carries its flows."""

    NONE = "none"
    """No effect on flows, for the reason given."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a row of the table says of one changed setting: the flows that end or are at risk, why, and until when."""

    effect: Effect
    why: str
    flows: frozenset[Pair] = frozenset()
    until: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs, and what that does to flows.  `path` is in `pulumi config`'s own notation."""

    path: str
    old: Value | None
    new: Value | None
    member: MemberName | None
    """Whose setting it is, where it is one member's."""
    judgement: Judgement
    hidden: bool = False
    """Whether its values say nothing to a reader, or are not for everybody's eyes."""

    @property
    def effect(self) -> Effect:
        """What it does."""
        return self.judgement.effect


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A change of a POD: what becomes of packets, and every setting that differs with its effect, the worst first."""

    difference: Difference
    changes: tuple[Change, ...]
    new_pod: bool
    other_text: bool = False
    """No setting differs, and the stack files do all the same: in comments, order or spelling."""

    @property
    def replaces_vms(self) -> bool:
        """Whether OCI makes all NAT VMs anew, and flows end with it."""
        return any(change.effect is Effect.REPLACES for change in self.changes)

    @property
    def ending(self) -> frozenset[Pair]:
        """The flows whose open connections end."""
        return self.difference.ended | self._flows(Effect.REPLACES, Effect.ENDS)

    @property
    def at_risk(self) -> frozenset[Pair]:
        """The other flows that may stop."""
        return self._flows(Effect.AT_RISK) - self.ending

    @property
    def worst(self) -> Effect:
        """The worst effect; NONE when no setting differs."""
        return min((change.effect for change in self.changes), key=list(Effect).index, default=Effect.NONE)

    @property
    def harmless(self) -> bool:
        """No flow ends or may end, `pulumi up` is not refused, and all that is declared gets through."""
        mistakes = self.difference.not_delivered or self.difference.not_declared
        return not (self.ending or self.at_risk or self.difference.outlived or mistakes) and self.worst is Effect.NONE

    def _flows(self, *effects: Effect) -> frozenset[Pair]:
        return frozenset().union(*(change.judgement.flows for change in self.changes if change.effect in effects))


@dataclass(frozen=True, slots=True)
class _Pods:
    """Both plans, and which flows a setting concerns."""

    old: PodPlan
    new: PodPlan
    difference: Difference

    @property
    def all(self) -> frozenset[Pair]:
        return self.difference.before

    def of_realm(self, realm: str) -> frozenset[Pair]:
        return frozenset(pair for pair in self.all if realm in (pair[0].realm, pair[1].realm))

    def traced(self, concerned: Callable[[Pair], bool], otherwise: str) -> Judgement:
        """What the tracer found for some flows."""
        lists = (
            ("lost", self.difference.lost),
            ("renumbered", self.difference.renumbered),
            ("rerouted", self.difference.rerouted),
            ("narrowed", self.difference.narrowed),
        )
        kinds = {word: [pair for pair in map(_pair, changes) if concerned(pair)] for word, changes in lists}
        more = (*self.difference.gained, *self.difference.widened)
        gained = sum(1 for change in more if concerned(_pair(change)))
        changed = frozenset(pair for pairs in kinds.values() for pair in pairs)
        ended = changed - self.difference.outlived
        words = [f"{len(pairs)} {word}" for word, pairs in kinds.items() if pairs]
        if outlived := len(changed - ended):
            words.append(f"open connections of {outlived} go on")
        words += [f"{gained} gained or widened" if self.difference.widened else f"{gained} gained"] if gained else []
        return Judgement(Effect.ENDS if ended else Effect.NONE, ", ".join(words) or otherwise, ended)


def _pair(change: FlowChange) -> Pair:
    return change.sender, change.receiver


_Row = Callable[[Changed, _Pods], Judgement]


def account(
    difference: Difference,
    old: PodPlan | None,
    new: PodPlan,
    before: Mapping[Path, Value],
    after: Mapping[Path, Value],
) -> Outcome:
    """Every setting that differs between two stack files, with its effect.

    difference: of the two plans.  before, after: what `config.settings.settings` reads from the files.
    """
    if old is None:
        return Outcome(difference=difference, changes=(), new_pod=True)
    pods = _Pods(old, new, difference)
    names = new_names(old, new)
    changes = [_judged(one, pods) for one in changed(renamed(before, names), after)]
    if old.vms[0].metadata["user_data"] != new.vms[0].metadata["user_data"]:  # every NAT VM has the same
        changes.append(Change("the bootstrap (user_data)", None, None, None, _made_anew(pods)))
    changes.sort(key=lambda change: list(Effect).index(change.effect))
    return Outcome(difference=difference, changes=tuple(changes), new_pod=False)


def row_of(path: Path) -> Path | None:
    """The key of the row that a setting belongs to, "*" for a name; None where there is none."""
    return next((key for key in EFFECTS if _fits(key, path)), None)


def _fits(key: Path, path: Path) -> bool:
    return len(key) == len(path) and all(part in ("*", own) for part, own in zip(key, path, strict=True))


def _judged(one: Changed, pods: _Pods) -> Change:
    key = row_of(one.path)
    judgement = _of_another_namespace(one, pods) if key is None else EFFECTS[key](one, pods)
    return Change(_written(one.path), one.old, one.new, _member_of(one.path), judgement, _hidden(one.path))


def _hidden(path: Path) -> bool:
    return path == ("natVm", "sshPublicKey") or path[0] == BESIDE or path[0].startswith("oci:private")


def _written(path: Path) -> str:
    """A path as people write it: customers.customer1.cidr, addresses["customer1/vm1"].natVm1."""
    if path[0] == "policy":
        return f"policy, {' to '.join(path[1:])}"
    text = path[0]
    for part in path[1:]:
        text += f'["{part}"]' if "/" in part else f".{part}"
    return text


def _member_of(path: Path) -> MemberName | None:
    match path:
        case ("management" as realm, "servers", name) | ("customers", realm, "hosts", name):
            return MemberName(realm, name)
        case ("addresses", name, _):
            return MemberName.parse(name)
    return None


# --- machines --------------------------------------------------------------------------------------------------------

_ONE_BY_ONE = (
    "OCI replaces the NAT VMs, one after the other: every flow of the POD stops twice, each time while a VM launches"
)


_IN_TURN = (
    "OCI replaces all NAT VMs, the standby of each side first: a VM only while its balancer calls the other one "
    "healthy, and that one goes on with the flows"
)


def _replaced(pods: _Pods, why: str) -> Judgement:
    """All NAT VMs of a POD are replaced, none carrying the flows of another: addresses or subnets change."""
    return Judgement(Effect.REPLACES, f"{_ONE_BY_ONE}{why}{_kept_vms(pods)}", pods.all)


def _made_anew(pods: _Pods, why: str = "") -> Judgement:
    """NAT VMs that come back as they were: with a standby no flow has to end."""
    if _has_standby(pods):
        return Judgement(Effect.IN_TURN, f"{_IN_TURN}{why}{_kept_vms(pods)}")
    return _replaced(pods, why)


def _kept_vms(pods: _Pods) -> str:
    """What comes before a replacement of protected NAT VMs: the engine refuses it while file and state protect them."""
    if not (pods.old.protect.nat_vms and pods.new.protect.nat_vms):
        return ""
    return "; `pulumi up` refuses it until the stack file says protect: network (docs/operate.md)"


def _kept_network(pods: _Pods, what: str) -> str:
    """What to do before a protected resource can be deleted.  Only its state tells the engine that it is protected."""
    if not pods.old.protect.network:
        return ""
    return f"; `pulumi up` refuses it until `pulumi state unprotect` was run for {what} (docs/operate.md)"


def _has_standby(pods: _Pods) -> bool:
    return bool(pods.old.balancers and pods.new.balancers)


def _ssh_key(_: Changed, pods: _Pods) -> Judgement:
    return _made_anew(pods)


def _availability_domain(one: Changed, pods: _Pods) -> Judgement:
    if str(one.old).casefold() == str(one.new).casefold():  # OCI ignores case here
        return Judgement(Effect.NONE, "the same availability domain")
    if one.old is None or one.new is None:
        return _made_anew(pods, "; this does not happen if it names the region's first one, which is the default")
    return _made_anew(pods)


def _shape(_: Changed, pods: _Pods) -> Judgement:
    if _has_standby(pods):
        return _made_anew(pods)
    why = (
        "`pulumi up` is refused (409), because it would reboot both NAT VMs; "
        "change the VMs one after the other in the console, then run: pulumi refresh"
    )
    return Judgement(Effect.REFUSED, why)


def _image(_: Changed, pods: _Pods) -> Judgement:
    if _has_standby(pods):
        return _made_anew(pods)
    why = "no new VM: OCI exchanges the boot volume, which stops the VM, or refuses to (not tried in a tenancy)"
    return Judgement(Effect.AT_RISK, why, pods.all, "until both NAT VMs run the new image")


# --- where the POD is ------------------------------------------------------------------------------------------------


def _compartment(_: Changed, pods: _Pods) -> Judgement:
    why = (
        "`pulumi up` fails at its preview, because it looks for the NAT VMs' VNICs in the new compartment while they "
        "are in the old one; move nothing, or make a new POD there"
    )
    return Judgement(Effect.REFUSED, why, pods.all)


def _region(one: Changed, pods: _Pods) -> Judgement:
    why = (
        "a POD does not move: `pulumi up` would look for its resources there, find none, and may forget those in "
        f"{one.old} (not tried in a tenancy); make a new POD there, and take this one down when nobody uses it"
    )
    return Judgement(Effect.AT_RISK, why, pods.all, f"until the stack file says {one.old} again")


def _pod_range(one: Changed, pods: _Pods) -> Judgement:
    moved = _layout(one, pods)
    if moved.effect is not Effect.NONE:
        return moved
    if pods.old.vcn_cidr == pods.new.vcn_cidr:
        why = "the VCN's range stays what it is; the security rules for aliases are replaced by ones for the new range"
        return Judgement(Effect.AT_RISK, why, pods.all, "until the security rules are replaced")
    why = "OCI changes the CIDR block of the POD's VCN in place, or refuses to (not tried in a tenancy)"
    return Judgement(Effect.AT_RISK, why, pods.all, f"until the VCN has {one.new}")


def _layout(_: Changed, pods: _Pods) -> Judgement:
    """The subnets of VNICs changed: some that are in use, or only unused ones."""
    for side in SIDES:
        if pods.old.primary(side) != pods.new.primary(side):
            moved = f"{side.prose}'s primary address {pods.old.primary(side)} becomes {pods.new.primary(side)}"
            return _replaced(pods, f": {moved}, which OCI may refuse halfway; a new POD is safer")
    was, now = _subnets(pods.old), _subnets(pods.new)
    changed_subnets = sorted(key for key in was.keys() & now.keys() if was[key] != now[key] and key != VROUTER)
    if changed_subnets:
        why = f"OCI changes the CIDR of subnet {changed_subnets[0]}, or refuses to while it has private IPs"
        return Judgement(
            Effect.AT_RISK, why, pods.all, f"until the VNICs in {', '.join(changed_subnets)} are made anew"
        )
    return pods.traced(lambda _: True, "only VNIC pairs that nobody uses are concerned")


def _subnets(plan: PodPlan) -> dict[str, str]:
    return {subnet.key: subnet.cidr for subnet in plan.subnets}


# --- the vRouter and management --------------------------------------------------------------------------------------


def _vrouter(one: Changed, pods: _Pods) -> Judgement:
    why = (
        f"NAT VM2 keeps its route to {one.old}, and flows go through as long as a vRouter has that; "
        f"the first `pulumi up` after {one.new} is there moves the route"
    )
    return Judgement(Effect.AT_RISK, why, pods.all, f"until the vRouter's owner adds {one.new}")


def _vrouter_subnet(_: Changed, pods: _Pods) -> Judgement:
    if _subnets(pods.old)[VROUTER] == _subnets(pods.new)[VROUTER]:  # the planner's own, written down or not any more
        return Judgement(Effect.NONE, "the subnet stays what it is")
    why = (
        "OCI changes the CIDR of the vRouter's subnet in place, or refuses to while an address outside the new one is "
        "in use (not tried in a tenancy)"
    )
    until = f"until the subnet is {_subnets(pods.new)[VROUTER]} and the vRouter's owner has {pods.new.vrouter_ip} in it"
    return Judgement(Effect.AT_RISK, why, pods.all, until)


def _management_range(one: Changed, pods: _Pods) -> Judgement:
    known = _only_more(one, pods.all)
    if known is not None:
        return known
    old, new = _named(one.old), _named(one.new)
    why = (
        f"NAT VM2's route to {old} is replaced by one to {new}, and the security rules with it; "
        "nat-pod does not see what management's VCN has, nor what the vRouter routes"
    )
    until = f"until management's VCN has {new} and the vRouter routes it"
    return Judgement(Effect.AT_RISK, why, pods.all, until)


def _networks(value: Value | None) -> tuple[str, ...]:
    """A neighbour's networks, of which a file may have one or a list."""
    return (value,) if isinstance(value, str) else value or ()


def _named(value: Value | None) -> str:
    """The first few of a neighbour's networks, and how many more."""
    return some(_networks(value), 4)


def _only_more(one: Changed, flows: frozenset[Pair]) -> Judgement | None:
    """The effect when a neighbour keeps all its networks, and perhaps gets more; None when it loses some."""
    old, new = _networks(one.old), _networks(one.new)
    if not set(old) <= set(new):
        return None
    if old[0] == new[0]:
        more = tuple(network for network in new if network not in old)
        added = f"routes and rules for {_named(more)} come in addition, and the others' stay"
        return Judgement(Effect.NONE, added if more else "the same networks")
    why = f"the security rules of the first network have the neighbour's name alone: {new[0]} gets those of {old[0]}"
    return Judgement(
        Effect.AT_RISK, why, flows, f"until {old[0]} has new ones; put new networks at the end of the list"
    )


# --- customers -------------------------------------------------------------------------------------------------------


def _customer_range(one: Changed, pods: _Pods) -> Judgement:
    customer = one.path[1]
    flows = pods.of_realm(customer)
    if one.old is None:
        return Judgement(Effect.NONE, "a new customer gets an LPG")
    if one.new is None:
        why = "its LPG is deleted, and the customer's own LPG is of no more use to it afterwards"
        return Judgement(Effect.ENDS, f"{why}{_kept_network(pods, 'that LPG')}", flows)
    known = _only_more(one, flows)
    if known is not None:
        return known
    old, new = _named(one.old), _named(one.new)
    why = (
        f"NAT VM1's route to {old} is replaced by one to {new}, and the security rules with it; "
        "nat-pod does not see what the customer's VCN has"
    )
    return Judgement(Effect.AT_RISK, why, flows, f"until {customer}'s VCN has {new}")


def _peer(one: Changed, pods: _Pods) -> Judgement:
    customer = one.path[1]
    if customer not in pods.old.customer_cidrs or customer not in pods.new.customer_cidrs:
        return Judgement(Effect.NONE, "the customer comes or goes: see its cidr")
    why = (
        "its LPG is replaced. An LPG that was peered cannot be peered again, so the customer makes a new one too, and "
        "peers it"
    )
    if pods.new.protect.network:
        why += _kept_network(pods, "that LPG")
    return Judgement(Effect.ENDS, why, pods.of_realm(customer))


def _servers_of_customer(one: Changed, pods: _Pods) -> Judgement:
    customer = one.path[1]
    return pods.traced(lambda pair: pair[0].realm == customer, "the same servers")


def _policy(one: Changed, pods: _Pods) -> Judgement:
    _, sender, receiver = one.path
    return pods.traced(
        lambda pair: _is_end(pair[0], sender) and _is_end(pair[1], receiver), "no flow may begin with more or less"
    )


def _is_end(member: MemberName, end: str) -> bool:
    return end in (member, member.realm)


def _gateway(one: Changed, pods: _Pods) -> Judgement:
    customer = one.path[1]
    was, now = pods.old.gateways.get(customer), pods.new.gateways.get(customer)
    if was is None or now is None:
        return Judgement(Effect.NONE, "the customer comes or goes: see its cidr")
    if was == now:
        return Judgement(Effect.NONE, "its gateway stays what it is")
    why = f"it moves from {was.prose} to {now.prose}, whose hosts have their aliases in other blocks"
    return Judgement(Effect.ENDS, why, pods.of_realm(customer))


# --- members ---------------------------------------------------------------------------------------------------------


def _member(one: Changed, pods: _Pods) -> Judgement:
    member = _member_of(one.path)
    return pods.traced(lambda pair: member in pair, "no flow of its changes")


def _formerly(_: Changed, __: _Pods) -> Judgement:
    return Judgement(Effect.NONE, "a former name: LPG, peering and slots stay")


# --- the rest --------------------------------------------------------------------------------------------------------


def _source_nat(_: Changed, pods: _Pods) -> Judgement:
    addresses = (*pods.difference.renumbered, *pods.difference.rerouted)
    return pods.traced(set(map(_pair, addresses)).__contains__, "no flow has another address")


def _delivery(_: Changed, pods: _Pods) -> Judgement:
    why = (
        "a POD does not change its delivery: `pulumi up` would delete its NAT VMs and make others in other subnets; "
        "make a new POD beside this one"
    )
    return Judgement(Effect.REPLACES, why, pods.all)


def _standby(one: Changed, pods: _Pods) -> Judgement:
    if one.new is None or one.old is None:
        return Judgement(Effect.NONE, "the delivery changes: see delivery")
    if one.new == "true":
        why = "the route rules lead to balancers, and these forward nothing until they call a NAT VM healthy"
        return Judgement(Effect.AT_RISK, why, pods.all, "until each balancer calls its NAT VM healthy")
    why = "the route rules lead to the first NAT VM of each side, and the second one is deleted with its balancer"
    why += _kept_network(pods, "those" if pods.old.protect.nat_vms else "that balancer")
    return Judgement(Effect.AT_RISK, why, pods.all, "until the route rules have changed, if a second NAT VM is active")


def _vcn(_: Changed, pods: _Pods) -> Judgement:
    if pods.old.vcn_cidr == pods.new.vcn_cidr:
        return Judgement(Effect.NONE, "the VCN's range stays what it is")
    moved = f"the VCN's range {pods.old.vcn_cidr} becomes {pods.new.vcn_cidr}"
    return _replaced(pods, f": {moved}, which OCI may refuse halfway; a new POD is safer")


def _moves_from(_: Changed, __: _Pods) -> Judgement:
    return Judgement(Effect.NONE, "it only says which other POD `check` compares this one with")


def _limit(_: Changed, __: _Pods) -> Judgement:
    return Judgement(Effect.NONE, "it says what `check` allows; Oracle's limit stays what it is")


def _names(one: Changed, pods: _Pods) -> Judgement:
    if one.old is None:
        return Judgement(Effect.NONE, "private views are made; a VCN resolves these names once its owner attaches one")
    why = "open connections go on; the names in it are gone for every VCN that attached the view"
    if one.new is None:
        why += ", and OCI refuses to delete the view before it is detached everywhere"
    return Judgement(Effect.AT_RISK, why, pods.all, "where hosts use these names, until they use others")


def _protect(_: Changed, __: _Pods) -> Judgement:
    return Judgement(Effect.NONE, "it says what the engine refuses to delete or replace, and touches no resource")


def _tag(_: Changed, __: _Pods) -> Judgement:
    return Judgement(Effect.NONE, "tags change in place, on every resource")


EFFECTS: dict[Path, _Row] = {
    ("compartmentId",): _compartment,
    ("cidr",): _pod_range,
    ("natVm", "shape", "shape"): _shape,
    ("natVm", "shape", "ocpus"): _shape,
    ("natVm", "shape", "memoryGbs"): _shape,
    ("natVm", "imageId"): _image,
    ("natVm", "sshPublicKey"): _ssh_key,
    ("natVm", "availabilityDomain"): _availability_domain,
    ("management", "cidr"): _management_range,
    ("management", "vrouter"): _vrouter,
    ("management", "servers", "*"): _member,
    ("management", "serversFormerly", "*"): _formerly,
    ("customers", "*", "cidr"): _customer_range,
    ("customers", "*", "hosts", "*"): _member,
    ("customers", "*", "servers"): _servers_of_customer,
    ("customers", "*", "peerId"): _peer,
    ("customers", "*", "formerly"): _formerly,
    ("customers", "*", "gateway"): _gateway,
    ("customers", "*", "hostsFormerly", "*"): _formerly,
    ("sourceNat",): _source_nat,
    ("lpgLimit",): _limit,
    ("balancerLimit",): _limit,
    ("delivery",): _delivery,
    ("standby",): _standby,
    ("vcnCidr",): _vcn,
    ("movesFrom",): _moves_from,
    ("gateways", "*"): _gateway,
    ("policy", "*", "*"): _policy,
    ("names", "zone"): _names,
    ("protect",): _protect,
    ("tags", "freeform", "*"): _tag,
    ("tags", "defined", "*"): _tag,
    ("subnets", "natVm1"): _layout,
    ("subnets", "natVm2"): _layout,
    ("subnets", "vrouter"): _vrouter_subnet,
    ("addresses", "*", "natVm1"): _member,
    ("addresses", "*", "natVm2"): _member,
    ("addresses", "*", "address"): _member,
    ("addresses", "*", "released"): _member,
}
"""Every key below `nat-pod:`; "*" stands for a name."""

_WHO_ASKS = ("oci:userOcid", "oci:fingerprint", "oci:privateKey", "oci:privateKeyPath", "oci:privateKeyPassword")


def _of_another_namespace(one: Changed, pods: _Pods) -> Judgement:
    key = one.path[0]
    if key == BESIDE:
        return Judgement(Effect.UNKNOWN, "a key of the Pulumi CLI's, which nat-pod does not read")
    if key == REGION:
        return _region(one, pods)
    if key in _WHO_ASKS:
        return Judgement(Effect.NONE, "credentials: they say who asks OCI, not what is deployed")
    return Judgement(Effect.UNKNOWN, "nat-pod does not read this key, and does not know who does")
