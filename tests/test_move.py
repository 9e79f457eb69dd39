"""A POD of the article's delivery moves to `delivery: routes`: its neighbours keep every address they know.

Address plan: dev is the article's (conftest.py), with the vRouter in the middle of the range and a server and a host on
one slot; ten has the planner's own layout; full PODs are those of bench/pods.py.
"""

import copy
import json
import random
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, real_stack
from netaddr import IPAddress, IPNetwork

from bench.pods import allocate, full_pod, shuffle_slots, stack_config
from nat_pod.config import any_config
from nat_pod.config.address_book import settle
from nat_pod.config.aliases import block_of
from nat_pod.config.delivery import SETTINGS, Delivery, only
from nat_pod.config.model import PodConfig
from nat_pod.config.move import known_address, moved, pair_problems
from nat_pod.config.routed import RoutedConfig
from nat_pod.config.stack_file import load_text
from nat_pod.config.stack_text import stack_text
from nat_pod.errors import NatPodError
from nat_pod.names import NAT_VM1, NAT_VM2
from nat_pod.pages.move import MoveSheet, move_sheet
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.flows import declared_flows


def of(mapping: dict) -> tuple[PodConfig, RoutedConfig]:
    """The old POD and the new one, read from the text that would be written."""
    return _of(json.dumps(mapping))


@cache  # each POD is moved by many tests
def _of(text: str) -> tuple[PodConfig, RoutedConfig]:
    mapping = json.loads(text)
    old = PodConfig.from_mapping(mapping, "old")
    made = moved(old, mapping, "old")
    text = stack_text(["x"], {"oci:region": "uk-london-1"}, made.config, made.comments)
    config = load_text(text)["config"]
    keys = {key.removeprefix("nat-pod:"): value for key, value in config.items() if key != "oci:region"}
    assert keys == made.config
    new = any_config.read(keys, "new")
    assert isinstance(new, RoutedConfig)
    return old, new


def scattered() -> dict:
    """A POD of 60 hosts after years: slots anywhere, some members gone and kept as released."""
    pod = full_pod("198.18.16.0/22", servers=3, customers=5, hosts=60)
    shuffle_slots(pod, random.Random(7))
    for customer in pod["customers"].values():
        customer["hosts"].popitem()
    del pod["management"]["servers"]["server1"]
    allocate(pod)
    return pod


PODS = {
    "the article's": lambda dev, ten: dev,
    "ten customers": lambda dev, ten: ten,
    "the smallest": lambda dev, ten: full_pod("198.18.8.0/25", servers=2, customers=2, shape="VM.Standard2.1"),
    "a full /24": lambda dev, ten: full_pod("198.18.8.0/24", servers=2, customers=2),
    "a full /22": lambda dev, ten: full_pod("198.18.8.0/22"),
    "a full /21": lambda dev, ten: full_pod(),
    "a /16": lambda dev, ten: full_pod("198.19.0.0/16", hosts=9),
    "years old": lambda dev, ten: scattered(),
}


@pytest.fixture(params=PODS.keys())
def mapping(request, dev, ten) -> dict:
    return PODS[request.param](dev, ten)


@pytest.mark.slow
def test_every_member_keeps_the_address_its_callers_know(mapping):
    old, new = of(mapping)
    assert new.book.keys() == old.book.keys()
    assert new.released.keys() == old.released.keys()
    for name, alias in {**new.book, **new.released}.items():
        entry = mapping["addresses"][str(name)]
        assert str(alias) == entry["natVm1" if name.is_server else "natVm2"]


def test_the_members_and_their_rights_are_the_same(mapping):
    old, new = of(mapping)
    assert new.members == old.members
    assert new.management.cidrs == old.management.cidrs
    known = [[(one.name, one.cidrs, one.servers) for one in pod.customers] for pod in (new, old)]
    assert known[0] == known[1]
    assert (new.lpg_limit, new.compartment_id, new.nat_vm) == (old.lpg_limit, old.compartment_id, old.nat_vm)


def test_the_new_vcn_has_no_address_of_an_alias_or_a_subnet_of_the_old_one(mapping):
    old, new = of(mapping)
    taken = {int(address) for name in (*old.book, *old.released) for address in block_of(known_address(old, name))}
    taken |= {int(address) for pair in old.pairs for network in (pair.nat_vm1, pair.nat_vm2) for address in network}
    taken |= {int(address) for address in old.layout.vrouter}
    assert not taken & set(range(new.vcn.first, new.vcn.last + 1))
    assert new.vcn in new.cidr == old.cidr
    assert new.management.vrouter in new.layout.vrouter


def test_such_a_pair_holds_and_the_new_pod_can_still_grow(mapping):
    old, new = of(mapping)
    assert (new.moves_from, pair_problems(new, old, "old")) == ("old", [])
    assert settle(new).changed is False


VCNS = {
    "the article's": "198.18.3.192/26",  # the default one: its vRouter is in the middle of the range
    "ten customers": "198.18.7.128/26",
    "the smallest": "198.18.8.32/27",  # opposite the vRouter's /27: the article's layout always leaves that one
    "a full /24": "198.18.8.96/27",
    "a full /22": "198.18.9.224/27",
}


@pytest.mark.parametrize("name", VCNS)
def test_where_the_new_vcn_is(name, dev, ten):
    assert str(of(PODS[name](dev, ten))[1].vcn) == VCNS[name]


def test_a_range_without_room_for_another_vcn_is_refused(dev):
    """Pinned subnets may fill a range to the last /27; the planner's own never do."""
    dev["cidr"] = "198.18.0.0/25"
    dev["subnets"] = {"natVm1": ["198.18.0.0/27"], "natVm2": ["198.18.0.32/27"], "vrouter": "198.18.0.64/26"}
    dev["management"]["vrouter"] = "198.18.0.70"
    dev["addresses"] = {}
    allocate(dev)
    old = PodConfig.from_mapping(dev, "prod")
    with pytest.raises(NatPodError) as refused:
        moved(old, dev, "prod")
    assert str(refused.value) == (
        "Pulumi.prod.yaml: every /27 of 198.18.0.0/25 has an alias or a subnet, and the new VCN needs a free one. "
        "Without one, make a routed POD in another range, which gives every neighbour new addresses: "
        "python -m nat_pod new-pod --routed NAME"
    )
    dev["subnets"]["vrouter"] = "198.18.0.64/28"
    assert str(of(dev)[1].vcn) == "198.18.0.96/27"


def test_what_is_the_old_pods_alone_does_not_move_and_a_host_of_such_a_name_does(dev):
    dev["customers"]["customer1"] |= {
        "peerId": "ocid1.localpeeringgateway.oc1.uk-london-1.aaaa",
        "formerly": "shop",
        "hosts": {"formerly": "10.0.0.100", "vm2": "10.0.0.130"},
        "hostsFormerly": {"formerly": "vm1"},
    }
    dev["management"]["serversFormerly"] = {"mgmt": "box"}
    book = dev["addresses"]
    book["customer1/formerly"] = book.pop("customer1/vm1")
    before = copy.deepcopy(dev)
    made = moved(PodConfig.from_mapping(dev, "old"), dev, "old")
    assert dev == before
    assert made.peers == ("customer1",)
    assert made.config["customers"]["customer1"] == {
        "cidr": "10.0.0.0/24",
        "hosts": {"formerly": "10.0.0.100", "vm2": "10.0.0.130"},
    }
    assert set(made.config["management"]) == {"cidr", "vrouter", "servers"}
    assert made.config["addresses"]["customer1/formerly"] == "198.18.0.130"
    assert not {"sourceNat", "subnets"} & made.config.keys()


# --- a pair that both have been edited ------------------------------------------------------------------------------


def pair(dev, **changes) -> list[str]:
    """The problems of dev and the POD in its place after changes of the new one's keys."""
    old = PodConfig.from_mapping(dev, "dev")
    config = moved(old, dev, "dev").config
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    new = any_config.read(config, "new")
    return [str(problem) for problem in pair_problems(new, old, "dev")]


ADDED = {"customer2": {"cidr": "10.0.1.0/24", "hosts": {"vm2": "10.0.1.100", "vm9": "10.0.1.109"}}}
WRONG_PAIRS = {
    "nothing": ({}, []),
    "a member with another address": (
        {"addresses": {"customer1/vm2": "198.18.0.67"}},
        ['nat-pod:addresses["customer1/vm2"]: "198.18.0.67": must be 198.18.0.66, at which its callers know it by '
         "Pulumi.dev.yaml"],
    ),
    "a new member with an address of its own": (
        {"customers": ADDED, "addresses": {"customer2/vm9": "198.18.0.132"}},
        [],
    ),
    "a member that is gone here, and its address somebody else's": (
        {"customers": {"customer1": {"cidr": "10.0.0.0/24", "hosts": {"vm7": "10.0.0.107", "vm2": "10.0.0.130"}}},
         "addresses": {"customer1/vm1": {"address": "198.18.0.139", "released": True},
                       "customer1/vm7": "198.18.0.130"}},
        ['nat-pod:addresses["customer1/vm1"]: "198.18.0.139": must be 198.18.0.130, at which its callers know it by '
         "Pulumi.dev.yaml",
         'nat-pod:addresses["customer1/vm7"]: "198.18.0.130": is the address of customer1/vm1 in Pulumi.dev.yaml; give '
         "it another one"],
    ),
    "a VCN over the old vRouter": (
        {"vcnCidr": "198.18.0.160/27", "management": {"vrouter": "198.18.0.186"}},
        ['nat-pod:vcnCidr: "198.18.0.160/27": has addresses of the vRouter\'s subnet in Pulumi.dev.yaml, '
         "198.18.0.160/28; the vRouter has a VNIC in both"],
    ),
    "another range": (
        {"cidr": "198.18.0.0/23", "vcnCidr": "198.18.1.192/26", "management": {"vrouter": "198.18.1.250"}},
        ['nat-pod:cidr: "198.18.0.0/23": must be 198.18.0.0/22, the range of Pulumi.dev.yaml, whose neighbours keep '
         "their addresses"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), WRONG_PAIRS.values(), ids=WRONG_PAIRS.keys())
def test_what_a_pair_has_to_hold(dev, changes, expected):
    assert pair(dev, **changes) == expected


def test_a_member_added_to_the_old_pod_inside_the_new_vcn_is_found(dev):
    old = PodConfig.from_mapping(dev, "dev")
    config = moved(old, copy.deepcopy(dev), "dev").config
    dev["subnets"]["natVm2"][1] = "198.18.3.224/27"
    dev["addresses"]["customer1/vm2"]["natVm2"] = "198.18.3.226"
    config["customers"]["customer1"]["hosts"].pop("vm2")
    config["addresses"].pop("customer1/vm2")
    problems = pair_problems(any_config.read(config, "new"), PodConfig.from_mapping(dev, "dev"), "dev")
    assert [str(problem) for problem in problems] == [
        'nat-pod:vcnCidr: "198.18.3.192/26": has the address of customer1/vm2 in Pulumi.dev.yaml, 198.18.3.226; no '
        "alias lies in the VCN's own range"
    ]


# --- check and pods --------------------------------------------------------------------------------------------------


@pytest.fixture
def both(project, dev) -> Path:
    """dev, which is no example, and new in its place."""
    text = real_stack("dev")
    (project / "Pulumi.dev.yaml").write_text(text, encoding="utf-8")
    written = {k.removeprefix("nat-pod:"): v for k, v in yaml.safe_load(text)["config"].items()}
    made = moved(PodConfig.from_mapping(dev, "dev"), written, "dev")
    put(project, "new", made.config)
    return project


def put(project: Path, stack: str, keys: dict) -> None:
    (project / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump({"config": stack_config(keys)}), encoding="utf-8")


def changed(project: Path, stack: str, old: str, new: str) -> None:
    path = project / f"Pulumi.{stack}.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_two_pods_on_one_range_are_fine_as_such_a_pair_only(run, both):
    assert run("check") == (
        0,
        "Pulumi.dev.yaml: fine, 3 of 58 slots used\nPulumi.new.yaml: fine, 4 of 960 slots used\n",
        "",
    )
    assert run("pods")[0] == 0
    assert "fine, takes the place of dev" in run("pods")[1]
    changed(both, "new", "  nat-pod:movesFrom: dev\n", "")
    status, out, _ = run("check")
    assert (status, out.count("overlaps 198.18.0.0/22 of")) == (1, 2)
    assert run("pods")[0] == 1


def test_a_third_pod_on_the_range_overlaps_both(run, both):
    (both / "Pulumi.third.yaml").write_bytes((both / "Pulumi.dev.yaml").read_bytes())
    out = run("check", "dev", "new", "third")[1]
    assert out.count("overlaps 198.18.0.0/22 of Pulumi.third.yaml") == 2
    assert "of Pulumi.new.yaml" in out
    assert run("pods")[1].count("overlaps third") == 2


def test_two_pods_in_the_place_of_one_overlap_each_other(run, both):
    (both / "Pulumi.newer.yaml").write_bytes((both / "Pulumi.new.yaml").read_bytes())
    out = run("check")[1]
    assert ("Pulumi.dev.yaml: fine" in out, out.count("overlaps")) == (True, 2)


GONE = "there is no Pulumi.dve.yaml any more: the move is over, take this line out"


@pytest.mark.parametrize(
    ("former", "rule"),
    [
        ("dve", GONE),
        ("new", "has delivery: routes itself; only a POD with delivery: privateIps can be moved"),
    ],
)
def test_a_pod_in_the_place_of_none_is_found(run, both, former, rule):
    changed(both, "new", "movesFrom: dev", f"movesFrom: {former}")
    status, out, _ = run("check", "new")
    lines = (both / "Pulumi.new.yaml").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "movesFrom" in text)
    assert (status, f'Pulumi.new.yaml:{line}: nat-pod:movesFrom: "{former}": {rule}' in out) == (1, True)
    assert run("pods")[0] == 1


def test_when_the_old_pod_is_gone_the_line_is_to_go_too_and_then_all_is_fine(run, both):
    (both / "Pulumi.dev.yaml").unlink()
    assert run("check")[0] == 1
    changed(both, "new", "  nat-pod:movesFrom: dev\n", "")
    assert run("check")[0] == 0


def test_a_pair_whose_addresses_differ_is_a_finding_of_both_commands(run, both):
    changed(both, "new", "customer1/vm2: 198.18.0.66", "customer1/vm2: 198.18.0.67")
    status, out, _ = run("check")
    assert (status, "must be 198.18.0.66, at which its callers know it" in out) == (1, True)
    assert "1 problem" in run("pods")[1]


# --- the steps -------------------------------------------------------------------------------------------------------


def sheet_of(mapping: dict) -> tuple[MoveSheet, PodPlan, RoutedConfig]:
    old, new = of(mapping)
    plan = plan_pod(old, "old")
    return move_sheet(old, plan, new, ("old", "new")), plan, new


SMALL = [
    "the article's",
    pytest.param("ten customers", marks=pytest.mark.sweep),
    "the smallest",
    pytest.param("years old", marks=pytest.mark.sweep),
]


@pytest.mark.parametrize("name", SMALL)
def test_the_routes_of_a_customer_s_step_lead_its_hosts_and_nobody_else(name, dev, ten):
    sheet, plan, new = sheet_of(PODS[name](dev, ten))
    led = {step.customer: [IPNetwork(route) for route in step.routes] for step in sheet.steps if step.customer}
    assert led.keys() == {customer.name for customer in new.customers}
    elsewhere = [IPAddress(vnic.primary) for vnic in plan.vnics_on(NAT_VM2)] + [IPAddress(a) for a in new.vcn]
    for customer, routes in led.items():
        own = {alias for name, alias in new.book.items() if name.realm == customer}
        others = {*new.book.values(), *new.released.values(), *elsewhere} - own
        assert {alias for alias in own if sum(alias in route for route in routes) == 1} == own
        assert not [(alias, route) for alias in others for route in routes if alias in route]
        assert all(any(own_one in route for own_one in own) for route in routes)


@pytest.mark.slow
def test_nobody_s_route_rule_is_new_it_only_leads_elsewhere(dev, ten):
    for mapping in (dev, ten):
        sheet, plan, new = sheet_of(mapping)
        for step in sheet.steps:
            if step.customer is not None:
                assert f": {', '.join(plan.neighbours[step.customer])} to the LPG of new instead of" in step.do[0]
                ranges = [IPNetwork(cidr) for cidr in plan.neighbours[step.customer]]
                assert all(any(alias in cidr for cidr in ranges) for n, alias in new.book.items() if n.is_server)


@pytest.mark.slow
def test_customers_switch_one_by_one_behind_everything_that_disturbs_nobody(ten):
    sheet, _, new = sheet_of(ten)
    customers = [step.customer for step in sheet.steps]
    assert customers == [None, None, None, *sorted(c.name for c in new.customers), None, None]
    assert all(step.do and step.see and step.back and step.who for step in sheet.steps)


@pytest.mark.parametrize("name", SMALL)
def test_from_static_no_connection_ends(name, dev, ten):
    sheet, plan, _ = sheet_of({**PODS[name](dev, ten), "sourceNat": "static"})
    assert (sheet.ends, sheet.flows) == ((), len(declared_flows(plan)))


@pytest.mark.parametrize("name", SMALL)
def test_from_masquerade_those_end_whose_source_was_the_shared_address(name, dev, ten):
    sheet, plan, new = sheet_of({**PODS[name](dev, ten), "sourceNat": "masquerade"})
    shared = {True: plan.primary(NAT_VM1), False: plan.primary(NAT_VM2)}
    expected = {
        (flow.sender, flow.receiver)
        for flow in declared_flows(plan)
        if str(new.book[flow.sender]) != shared[flow.sender.is_server]
    }
    assert {(end.sender, end.receiver) for end in sheet.ends} == expected
    assert expected
    assert [(e.before, e.after) for e in sheet.ends] == [
        (shared[e.sender.is_server], str(new.book[e.sender])) for e in sheet.ends
    ]
    by_step = [(step.customer, end) for step in sheet.steps for end in step.ends]
    assert by_step
    assert [(c, end) for c, end in by_step if c not in (end.sender.realm, end.receiver.realm)] == []


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", ["dev", pytest.param("ten", marks=pytest.mark.sweep)])
def test_file_and_steps_are_the_golden_ones(run, project, golden, stack):
    (project / "Pulumi.ten.yaml").write_bytes((REPOSITORY / "Pulumi.ten.yaml").read_bytes())
    status, out, err = run("move", stack, "routed")
    assert (status, err, out.isascii(), max(map(len, out.splitlines())) <= 80) == (0, "", True, True)
    golden("cli-move.txt" if stack == "dev" else f"move-{stack}.txt", out)
    golden(f"move-{stack}.yaml", (project / "Pulumi.routed.yaml").read_text(encoding="utf-8"))
    golden(f"move-{stack}.md", run("move", stack, "routed", "--markdown")[1])
    assert run("check", stack, "routed")[0] == 0


def test_every_key_moves_but_those_that_the_new_delivery_does_not_have(dev):
    """A key that is dropped without a word is found when `pulumi up` is refused: tags, in a tenancy that wants them."""
    dev |= {
        "lpgLimit": 12,
        "names": {"zone": "pod1.example.internal"},
        "policy": [{"from": "customer1", "to": "management", "allow": ["tcp/443"]}],
        "protect": "network",
        "tags": {"freeform": {"costCenter": "42"}, "defined": {"Operations.CostCenter": "42"}},
    }
    assert set(dev) == set(SETTINGS) - set(only(Delivery.ROUTES)) - {"delivery"}
    config = moved(PodConfig.from_mapping(dev, "prod"), dev, "prod").config
    kept = set(dev) - {"sourceNat", "subnets"}
    assert kept <= set(config)
    assert {key: config[key] for key in ("lpgLimit", "names", "policy", "tags")} == {
        key: dev[key] for key in ("lpgLimit", "names", "policy", "tags")
    }
    RoutedConfig.from_mapping(config, "routed")


def test_a_file_that_takes_the_place_already_is_left_as_it_is_and_its_steps_are_printed(run, project):
    first = run("move", "dev", "routed")[1]
    changed(project, "routed", "VM.Standard2.24 ", "{shape: VM.Standard.E5.Flex, ocpus: 1, memoryGbs: 4} ")
    before = (project / "Pulumi.routed.yaml").read_bytes()
    status, again, err = run("move", "dev", "routed")
    assert (status, err, (project / "Pulumi.routed.yaml").read_bytes()) == (0, "", before)
    assert again.startswith("as it is Pulumi.routed.yaml: ")
    assert again.splitlines()[2:8] == first.splitlines()[2:8]
    assert "VM.Standard.E5.Flex" in again


def test_what_was_encrypted_for_the_old_stack_is_left_out_and_named(run, project):
    changed(project, "dev", "config:\n", "config:\n  oci:privateKey: {secure: v1:abc}\n  oci:auth: ApiKey\n")
    assert run("move", "dev", "routed")[0] == 0
    text = (project / "Pulumi.routed.yaml").read_text(encoding="utf-8")
    assert "# Encrypted for dev alone, so set them anew: oci:privateKey\n" in text
    assert ("  oci:auth: ApiKey\n" in text, "v1:abc" in text) == (True, False)


def test_a_customer_whose_lpg_has_its_peer_is_named(run, project):
    changed(
        project,
        "dev",
        "      cidr: 10.0.1.0/24\n",
        "      cidr: 10.0.1.0/24\n      peerId: PEER\n".replace(
            "PEER", "ocid1.localpeeringgateway.oc1.uk-london-1.aaaa"
        ),
    )
    out = run("move", "dev", "routed")[1]
    assert "customer2's LPG has its peer: write the peerId of a second LPG" in out
    text = (project / "Pulumi.routed.yaml").read_text(encoding="utf-8")
    assert ("localpeeringgateway" in text, "customer2:                           # its LPG has a peer" in text) == (
        False,
        True,
    )


REFUSED = {
    "no such stack": (["dve", "new"], "Pulumi.dve.yaml: no such stack file in "),
    "a name that is none": (
        ["dev", "a/b"],
        "a/b: is not a valid stack name; a stack's name is letters, digits, dots, dashes and underscores",
    ),
    "a file that is there": (
        ["dev", "dev"],
        "Pulumi.dev.yaml: exists already and does not take the place of dev; move writes new files only (nothing was "
        "changed)\n",
    ),
    "a routed one": (
        ["routed", "new"],
        "Pulumi.routed.yaml: has delivery: routes already; move is for PODs with delivery: privateIps (nothing was "
        "changed)\n",
    ),
    "one in the place of another": (
        ["late", "routed"],
        "Pulumi.routed.yaml: exists already and does not take the place",
    ),
    "one with problems": (["wrong", "new"], "Pulumi.wrong.yaml: 1 problem\n"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_moved_is_refused_and_no_file_is_written(run, project, arguments, message):
    text = (project / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    run("move", "dev", "routed")
    (project / "Pulumi.late.yaml").write_text(text, encoding="utf-8")
    (project / "Pulumi.wrong.yaml").write_text(text.replace("masquerade", "snat"), encoding="utf-8")
    before = {path.name: path.read_bytes() for path in project.iterdir() if path.is_file()}
    status, out, err = run("move", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith(message)
    assert {path.name: path.read_bytes() for path in project.iterdir() if path.is_file()} == before
