"""Every key of a stack file has a row that says what its change does to flows, and no row says less than happens.

Two judges of their own are asked: the tracer, for every single setting of three stack files, and the simulated region,
which knows the provider's inputs that force a replacement, for one setting of each key.
"""

import copy
import functools
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, project_with, stack_mapping
from routed_pods import small

from nat_pod.config import any_config
from nat_pod.config.delivery import SETTINGS
from nat_pod.config.model import PodConfig
from nat_pod.config.settings import Value, changed, settings
from nat_pod.lab.engine.program import Registration, deploy
from nat_pod.lab.region.inputs import Diff
from nat_pod.lab.region.kinds import INSTANCE, LPG, NSG_RULE, PRIVATE_IP, ROUTE_TABLE, VCN, VNIC_ATTACHMENT
from nat_pod.lab.region.region import Region
from nat_pod.lab.region.store import Limits
from nat_pod.names import MANAGEMENT, SIDES
from nat_pod.oci import args
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trace import diff
from nat_pod.trace.diff import compare
from nat_pod.trace.effects import EFFECTS, Effect, Outcome, account, row_of

Key = tuple[str, ...]


def keys_of(arguments: type, *above: str) -> Iterator[Key]:
    """The keys of the component's arguments, "*" for a name that people choose."""
    for key, hint in typing.get_type_hints(arguments).items():
        yield from keys_in(hint, (*above, key))


def keys_in(hint: object, path: Key) -> Iterator[Key]:
    if typing.is_typeddict(hint):
        yield from keys_of(hint, *path)
    elif path == ("policy",):
        yield (*path, "*", "*")  # by its two ends
    elif typing.get_origin(hint) is dict:
        yield from keys_in(typing.get_args(hint)[1], (*path, "*"))
    else:
        yield path


def test_each_key_of_the_stack_file_has_a_row_and_no_other_has() -> None:
    assert set(EFFECTS) == set(keys_of(args.NatPodArgs))
    assert {key[0] for key in EFFECTS} == set(SETTINGS)
    declared = yaml.safe_load((REPOSITORY / "Pulumi.yaml").read_text(encoding="utf-8"))["config"]
    assert {key[0] for key in EFFECTS} == set(declared)


# --- each setting of three stack files -------------------------------------------------------------------------------


def static() -> dict:
    """dev with the other source policy, a customer that may reach one of two servers, and every optional key."""
    mapping = stack_mapping("dev")
    mapping["sourceNat"] = "static"
    mapping["management"]["servers"]["dns"] = "10.0.3.53"
    mapping["customers"]["customer1"].update(servers=["mgmt"], formerly="acme", hostsFormerly={"vm1": "web"})
    mapping["management"]["serversFormerly"] = {"dns": "ns"}
    mapping["customers"]["customer1"]["peerId"] = "ocid1.localpeeringgateway.oc1.uk-london-1.one"
    mapping["natVm"]["availabilityDomain"] = "nPod:UK-LONDON-1-AD-1"
    mapping["lpgLimit"] = 10
    mapping["policy"] = [{"from": "management/mgmt", "to": "customer1", "allow": ["tcp/22", "icmp"]}]
    mapping["protect"] = "network"
    mapping["names"] = {"zone": "pod1.example.internal"}
    mapping["tags"] = {"freeform": {"owner": "network-team"}, "defined": {"Operations.CostCenter": "42"}}
    mapping["addresses"]["management/dns"] = {"natVm1": "198.18.0.6", "natVm2": "198.18.0.134"}
    mapping["addresses"]["customer2/old"] = {"natVm1": "198.18.0.7", "natVm2": "198.18.0.135", "released": True}
    return mapping


def routed() -> dict:
    """A routed POD with every key that it can have, and a second server."""
    mapping = small()
    mapping["management"]["servers"]["dns"] = "10.0.3.53"
    mapping["customers"]["customer1"].update(servers=["mgmt"], formerly="acme", hostsFormerly={"vm1": "web"})
    mapping["management"]["serversFormerly"] = {"dns": "ns"}
    mapping["natVm"]["availabilityDomain"] = "nPod:UK-LONDON-1-AD-1"
    mapping["addresses"]["management/dns"] = "198.18.0.6"
    mapping["customers"]["customer2"]["gateway"] = "own"
    mapping["gateways"] = {"customer2": 2}
    mapping["addresses"]["customer2/vm2"] = "198.18.2.36"
    mapping["addresses"]["customer2/old"] = {"address": "198.18.2.39", "released": True}
    mapping["movesFrom"] = "old"
    mapping["policy"] = [
        {"from": "customer1", "to": "management", "allow": ["tcp/443"]},
        {"from": "management", "to": "customer1/vm1", "allow": ["tcp/22"]},
    ]
    mapping["protect"] = "all"
    mapping["names"] = {"zone": "pod1.example.internal"}
    mapping["tags"] = {"freeform": {"owner": "network-team"}}
    return {**mapping, "standby": True, "vcnCidr": "198.18.3.192/26", "balancerLimit": 3, "lpgLimit": 10}


STACKS: dict[str, Callable[[], dict]] = {
    "routed": routed,
    "dev": lambda: stack_mapping("dev"),
    "ten": lambda: stack_mapping("ten"),
    "static": static,
}


def free_alias(mapping: dict, member: str) -> str:
    taken = {entry["address"] if isinstance(entry, dict) else entry for entry in mapping["addresses"].values()}
    block = "198.18.0" if member.startswith(MANAGEMENT) else "198.18.2"
    numbers = range(40, 63) if member.startswith("customer2/") else range(8, 31)  # it has a gateway of its own
    return next(f"{block}.{last}" for last in numbers if f"{block}.{last}" not in taken)


def free_slot(mapping: dict) -> dict[str, str]:
    config = PodConfig.from_mapping(mapping, "x")
    taken = {*config.book.values(), *config.released.values()}
    slot = next(slot for slot in config.layout.slots() if slot not in taken)
    return dict(zip(("natVm1", "natVm2"), config.layout.addresses(slot), strict=True))


def next_address(mapping: dict, realm: str) -> str:
    section = mapping["management"] if realm == MANAGEMENT else mapping["customers"][realm]
    used = set((section["servers"] if realm == MANAGEMENT else section["hosts"]).values())
    first = ".".join(section["cidr"].split(".")[:3])
    return next(f"{first}.{last}" for last in range(200, 250) if f"{first}.{last}" not in used)


def put(mapping: dict, path: Key, value: object) -> None:
    for part in path[:-1]:
        mapping = mapping[part]
    mapping[path[-1]] = value


def other(path: Key, value: Value) -> Callable[[dict], None]:
    """An edit of a stack file that changes this setting, and of others only what then has to follow."""

    def put_new(mapping: dict) -> None:
        put(mapping, path[:1] if path[0] == "policy" else path, new(mapping))

    def new(mapping: dict) -> object:
        match path:
            case ("compartmentId",) | ("natVm", "imageId") | ("customers", _, "peerId"):
                return f"{str(value).rsplit('.', 1)[0]}.another"
            case ("natVm", "sshPublicKey"):
                return "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEother ops"
            case ("natVm", "availabilityDomain"):
                return "nPod:UK-LONDON-1-AD-2"
            case ("natVm", "shape", "ocpus" | "memoryGbs"):
                return int(value) + 2
            case ("management", "vrouter"):
                return f"{str(value).rsplit('.', 1)[0]}.{int(str(value).rsplit('.', 1)[1]) + 1}"
            case ("management", "servers", _):
                return next_address(mapping, MANAGEMENT)
            case ("customers", customer, "hosts", _):
                return next_address(mapping, customer)
            case ("customers", _, "servers"):
                return list(value[1:])
            case ("customers", _, "formerly") | (_, _, "hostsFormerly", _) | ("management", "serversFormerly", _):
                return "somebody-else"
            case ("sourceNat",):
                return "static" if value == "masquerade" else "masquerade"
            case ("lpgLimit",):
                return 20
            case ("tags", _, _):
                return "another"
            case ("policy", sender, receiver):
                entries = [dict(entry) for entry in mapping["policy"]]
                next(e for e in entries if (e["from"], e["to"]) == (sender, receiver))["allow"] = ["udp/514"]
                return entries
            case ("balancerLimit",):
                return 5
            case ("names", "zone"):
                return "other.example.internal"
            case ("protect",):
                return "nothing"
            case ("standby",):
                return False
            case ("subnets", "vrouter"):
                return "198.18.0.160/27"
        raise AssertionError(f"no edit for {path}")

    def edit(mapping: dict) -> None:
        match path:
            case ("cidr",):
                # A range of its own cannot be changed alone where the planner lays it out.
                if "subnets" in mapping or "vcnCidr" in mapping:
                    mapping["cidr"] = "198.18.0.0/21"
                else:
                    mapping["cidr"] = "198.18.8.0/22"
                    mapping["management"]["vrouter"] = "198.18.11.250"
                    for pair in mapping["addresses"].values():
                        for side in ("natVm1", "natVm2"):
                            first, second, third, last = pair[side].split(".")
                            pair[side] = f"{first}.{second}.{int(third) + 4}.{last}"
            case ("delivery",):
                mapping.clear()
                mapping.update(stack_mapping("dev") if value == "routes" else small())
            case ("movesFrom",):
                mapping["movesFrom"] = "older"
            case ("gateways", _):
                mapping["gateways"] = {"customer2": 3}
            case ("customers", name, "gateway"):
                del mapping["customers"][name]["gateway"]
            case ("vcnCidr",):
                mapping["vcnCidr"] = "198.18.1.0/26"
                mapping["management"]["vrouter"] = "198.18.1.58"
            case ("management", "cidr"):
                mapping["management"]["cidr"] = "10.0.0.0/17"
                if "dns" in mapping["management"]["servers"]:
                    mapping["management"]["servers"]["dns"] = "10.0.100.53"  # where the narrower range has it
            case ("natVm", "shape", "shape"):
                if isinstance(mapping["natVm"]["shape"], str):
                    mapping["natVm"]["shape"] = "VM.Standard2.16"
                else:
                    mapping["natVm"]["shape"]["shape"] = "VM.Standard3.Flex"
            case ("customers", customer, "cidr"):
                section = mapping["customers"][customer]
                if customer == "customer2":  # narrower; the others' neighbours are customers too
                    section["cidr"] = "10.0.1.0/25"
                else:
                    section["cidr"] = f"{str(value).split('/', maxsplit=1)[0]}/25"
                    half = {int(address.rsplit(".", 1)[1]) for address in section["hosts"].values()}
                    for name, address in section["hosts"].items():
                        stem, last = address.rsplit(".", 1)
                        if int(last) > 126:
                            section["hosts"][name] = f"{stem}.{next(n for n in range(3, 126) if n not in half)}"
            case ("subnets", "natVm1" | "natVm2"):
                mapping["subnets"]["natVm1"].append("198.18.1.0/27")
                mapping["subnets"]["natVm2"].append("198.18.1.32/27")
            case ("addresses", member, "natVm1" | "natVm2"):
                released = mapping["addresses"][member].get("released")
                mapping["addresses"][member] = free_slot(mapping) | ({"released": True} if released else {})
            case ("addresses", member, "address"):
                entry = mapping["addresses"][member]
                alias = free_alias(mapping, member)
                mapping["addresses"][member] = {**entry, "address": alias} if isinstance(entry, dict) else alias
            case ("addresses", member, "released"):
                del mapping["addresses"][member]
            case _:
                put_new(mapping)

    return edit


def keyed(mapping: dict) -> dict[Key, Value]:
    return settings({f"nat-pod:{key}": value for key, value in mapping.items()})


@functools.cache
def planned(stack: str) -> PodPlan:
    return plan_pod(any_config.read(STACKS[stack](), stack), stack)


@pytest.fixture(autouse=True, scope="module")
def what_is_compared_with_is_traced_once() -> Iterator[None]:
    """Hundreds of changes are compared with the same plans, those that `planned` keeps."""
    trace = diff.delivered

    @functools.cache
    def of(stack: str) -> dict:
        return trace(planned(stack))

    def delivered(plan: PodPlan) -> dict:
        known = [stack for stack in STACKS if plan is planned(stack)]
        return of(known[0]) if known else trace(plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diff, "delivered", delivered)
        yield


def judged(stack: str, new: dict) -> tuple[Outcome, PodPlan]:
    plan = plan_pod(any_config.read(copy.deepcopy(new), stack), stack)
    outcome = account(compare(planned(stack), plan), planned(stack), plan, keyed(STACKS[stack]()), keyed(new))
    return outcome, plan


def edited(stack: str, path: Key, value: Value) -> dict:
    mapping = STACKS[stack]()
    other(path, value)(mapping)
    return mapping


def every_setting() -> Iterator[object]:
    """The rows of dev; with the sweeps those of the larger two."""
    for stack, make in STACKS.items():
        for path, value in keyed(make()).items():
            # Of sixty hosts alike in ten, each customer's first and the servers are enough.
            if stack == "ten" and not alone(path):
                continue
            marks = [] if stack == "dev" else [pytest.mark.sweep]
            yield pytest.param(stack, path, value, marks=marks, id=f"{stack}-{'.'.join(path)}")


def alone(path: Key) -> bool:
    match path:
        case ("customers", customer, "hosts", host):
            return host == "web" or customer == "amber"
        case ("addresses", member, _):
            return member.startswith(MANAGEMENT) or member == "amber/web"
    return True


@pytest.mark.parametrize(("stack", "path", "value"), list(every_setting()))
def test_a_changed_setting_is_accounted_for_and_nothing_that_ends_is_called_harmless(
    stack: str, path: Key, value: Value
) -> None:
    new = edited(stack, path, value)
    outcome, plan = judged(stack, new)
    difference = outcome.difference
    differing = changed(keyed(STACKS[stack]()), keyed(new))
    assert path in [one.path for one in differing]
    assert len(outcome.changes) == len(differing)
    # Each flow that the tracer finds another one is the doing of a setting.
    blamed = frozenset().union(*(change.judgement.flows for change in outcome.changes))
    assert difference.ended <= blamed
    assert difference.ended <= outcome.ending
    worse = outcome.ending | outcome.at_risk | difference.outlived
    assert outcome.harmless == (not worse and outcome.worst is Effect.NONE)
    if outcome.harmless:
        assert not difference.ended
        assert standing(plan) >= standing(planned(stack))
    for change in outcome.changes:
        assert change.judgement.why
        assert bool(change.judgement.until) == (change.effect is Effect.AT_RISK)
        assert change.judgement.flows <= difference.before
        assert bool(change.judgement.flows) or change.effect in (Effect.NONE, Effect.REFUSED, Effect.IN_TURN)


def standing(plan: PodPlan) -> set[object]:
    """What flows stand on besides the rules: machines, subnets, peerings, and the way to both neighbours."""
    return {
        ("vm", plan.shape, plan.ocpus, plan.memory_gbs, plan.image_id, plan.availability_domain),
        ("where", plan.compartment_id, plan.cidr),
        *(("ssh", vm.metadata["ssh_authorized_keys"]) for vm in plan.vms),
        *(("subnet", subnet.key, subnet.cidr) for subnet in plan.subnets),
        *(("lpg", lpg.customer, lpg.peer_id) for lpg in plan.lpgs),
        *(("route", rule) for table in SIDES for rule in plan.routes[table]),
        *(("security", table, rule) for table in SIDES for rule in plan.security[table]),
    }


# --- one setting of each key, against the provider's rules -----------------------------------------------------------


def one_of_each_key() -> dict[Key, tuple[str, Key, Value]]:
    """A setting of each key that one of the stacks has, static first: it has the most."""
    found: dict[Key, tuple[str, Key, Value]] = {}
    for stack in ("static", "ten", "routed"):
        for path, value in keyed(STACKS[stack]()).items():
            key = row_of(path)
            assert key is not None
            found.setdefault(key, (stack, path, value))
    return found


def test_each_key_is_tried() -> None:
    assert set(one_of_each_key()) == set(EFFECTS)


def registrations(directory: Path, mapping: dict) -> dict[tuple[str, str], Registration]:
    directory.mkdir()
    config = {f"nat-pod:{key}": value for key, value in mapping.items()}
    project_with(directory, "pod", yaml.safe_dump({"config": {"oci:region": "uk-london-1", **config}}))
    region = Region(limits=Limits(attach_seconds=0))
    compartment = {"compartmentId": "ocid1.compartment.oc1..customer"}
    for customer in mapping["customers"].values():
        if "peerId" in customer:
            vcn, _ = region.create(VCN, {**compartment, "cidrBlocks": [customer["cidr"]]}, "customer")
            region.create(LPG, {**compartment, "vcnId": vcn}, "customer", ocid=customer["peerId"])
    return {(one.type, one.name): one for one in deploy(directory, "pod", region).registrations}


@functools.cache
def registered_before(stack: str, directory: Path) -> dict[tuple[str, str], Registration]:
    return registrations(directory / stack, STACKS[stack]())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("before")


MET: dict[Key, set[str]] = {
    ("compartmentId",): {"a NAT VM is changed", "a route or a security rule", "what others stand on"},
    ("cidr",): {"what others stand on"},
    ("natVm", "shape", "shape"): {"a NAT VM is changed"},
    ("natVm", "shape", "ocpus"): {"a NAT VM is changed"},
    ("natVm", "shape", "memoryGbs"): {"a NAT VM is changed"},
    ("natVm", "imageId"): {"a NAT VM is changed"},
    ("natVm", "sshPublicKey"): {"a NAT VM is replaced"},
    ("natVm", "availabilityDomain"): {"a NAT VM is replaced"},
    ("management", "cidr"): {"a route or a security rule", "what others stand on"},
    ("customers", "*", "cidr"): {"a route or a security rule"},
    ("customers", "*", "peerId"): {"an LPG goes"},
    ("delivery",): {"a VNIC goes", "an address goes", "a route or a security rule", "what others stand on"},
    ("standby",): {"a route or a security rule"},
    ("vcnCidr",): {"a NAT VM is replaced", "a route or a security rule", "what others stand on"},
    ("names", "zone"): {"what others stand on"},
    ("subnets", "vrouter"): {"a route or a security rule", "what others stand on"},
    ("addresses", "*", "natVm1"): {"what others stand on"},
    ("addresses", "*", "natVm2"): {"what others stand on"},
    ("addresses", "*", "address"): {"what others stand on"},
}
"""What the engine finds to do after a change of each key, by which the test below asks; nothing after the others'."""


def each_key() -> Iterator[object]:
    """A machine that is replaced, and a gateway; the rest with the sweeps."""
    few = {("natVm", "sshPublicKey"), ("customers", "*", "peerId")}
    assert few <= EFFECTS.keys()
    for key in EFFECTS:
        yield pytest.param(key, marks=[] if key in few else [pytest.mark.sweep], id=".".join(key))


@pytest.mark.slow
@pytest.mark.parametrize("key", list(each_key()))
def test_what_the_provider_replaces_or_stops_is_never_called_harmless(key: Key, tmp_path: Path, base: Path) -> None:
    stack, path, value = one_of_each_key()[key]
    new = edited(stack, path, value)
    outcome, _ = judged(stack, new)
    old, now = registered_before(stack, base), registrations(tmp_path / "new", new)
    region = Region()
    diffs: dict[str, list[tuple[str, Diff]]] = {}
    for (token, name), one in old.items():
        if token.startswith("oci:") and (token, name) in now:
            diff = region.diff(token, one.inputs, now[token, name].inputs)
            if diff:
                diffs.setdefault(token, []).append((name, diff))
    gone = {token: {name for kind, name in old if kind == token and (token, name) not in now} for token, _ in old}
    if (
        key[0] == "tags"
    ):  # of everything, and nothing but them, in place (OCI API, UpdateInstanceDetails and the others)
        paths = {path for found in diffs.values() for _, diff in found for path in (*diff.replace, *diff.update)}
        assert paths
        assert all("freeformTags." in path or "definedTags." in path for path in paths)
        assert not any(diff.replace for found in diffs.values() for _, diff in found)
        assert not any(gone.values())
        return

    quiet = {INSTANCE, PRIVATE_IP, NSG_RULE, LPG, ROUTE_TABLE}
    in_place = {path for _, diff in diffs.get(INSTANCE, []) for path in diff.update}
    # What carries flows and is replaced, goes or is changed: VNICs, their addresses, subnets, the VCN.  The private IP
    # of a slot that moves goes with its flows.
    met = {
        "a NAT VM is replaced": any(diff.replace for _, diff in diffs.get(INSTANCE, [])),
        "a NAT VM is changed": bool(in_place - {"metadata.nat-pod-rules"}),
        "an LPG goes": bool(gone.get(LPG)) or any(diff.replace for _, diff in diffs.get(LPG, [])),
        "a VNIC goes": bool(gone.get(VNIC_ATTACHMENT))
        or any(diff.replace for _, diff in diffs.get(VNIC_ATTACHMENT, [])),
        "an address goes": bool(gone.get(PRIVATE_IP)),
        "what others stand on": bool(diffs.keys() - quiet),
        "a route or a security rule": bool(diffs.get(NSG_RULE))
        or any(name.endswith("natVm1") for name, _ in diffs.get(ROUTE_TABLE, [])),
    }
    assert {what for what, is_so in met.items() if is_so} == MET.get(key, set())
    if met["a NAT VM is replaced"]:
        assert outcome.replaces_vms
        assert outcome.ending == outcome.difference.before
    if met["a NAT VM is changed"]:
        assert outcome.worst is not Effect.NONE, in_place
    if met["an LPG goes"] or met["a VNIC goes"] or met["an address goes"]:
        assert outcome.ending
    if met["what others stand on"] or met["a route or a security rule"]:
        assert not outcome.harmless, diffs.keys()


def test_a_key_that_nat_pod_does_not_read_is_not_called_harmless() -> None:
    plan = planned("dev")
    before = settings({"oci:region": "uk-london-1", "other:key": "a"}, {"environment": ["one"]})
    after = settings({"oci:region": "uk-london-1", "other:key": "b"}, {"environment": ["two"]})
    outcome = account(compare(plan, plan), plan, plan, before, after)
    assert [(change.path, change.effect) for change in outcome.changes] == [
        ("beside config.environment", Effect.UNKNOWN),
        ("other:key", Effect.UNKNOWN),
    ]
    assert not outcome.harmless


def test_another_region_puts_every_flow_at_risk_and_another_user_none() -> None:
    plan = planned("dev")
    before = settings({"oci:region": "uk-london-1", "oci:userOcid": "a"})
    after = settings({"oci:region": "eu-frankfurt-1", "oci:userOcid": "b"})
    outcome = account(compare(plan, plan), plan, plan, before, after)
    assert [(change.path, change.effect) for change in outcome.changes] == [
        ("oci:region", Effect.AT_RISK),
        ("oci:userOcid", Effect.NONE),
    ]
    assert len(outcome.at_risk) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        ("natVm", "sshPublicKey"),
        ("natVm", "imageId"),
        ("natVm", "availabilityDomain"),
        ("natVm", "shape", "shape"),
        ("natVm", "shape", "ocpus"),
    ],
    ids=".".join,
)
def test_nat_vms_with_a_standby_are_replaced_in_turn_and_no_flow_has_to_end(path: Key) -> None:
    new = edited("routed", path, keyed(routed())[path])
    outcome, _ = judged("routed", new)
    assert [change.effect for change in outcome.changes] == [Effect.IN_TURN]
    assert not outcome.ending
    assert not outcome.at_risk
    assert not outcome.replaces_vms
    assert not outcome.harmless  # whoever merges it should know
    alone = plan_pod(any_config.read({**routed(), "standby": False}, "routed"), "routed")
    now = plan_pod(any_config.read({**new, "standby": False}, "routed"), "routed")
    without = account(compare(alone, now), alone, now, keyed(routed()), keyed(new))
    assert without.changes[0].effect in (Effect.REPLACES, Effect.AT_RISK, Effect.REFUSED)
