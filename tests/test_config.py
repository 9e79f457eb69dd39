"""PodConfig: which stack files are refused, with which words, and which are not.

Address plan: the article's (conftest.py).  Each row changes Pulumi.dev.yaml in one place; the rows that are refused
stand in data/wrong_stacks.yaml with the whole list of problems.
"""

import copy
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import yaml
from netaddr import IPAddress, IPNetwork

from nat_pod.config.addressing import Slot
from nat_pod.config.model import PodConfig, read_draft
from nat_pod.errors import ConfigError, Problem, shorten
from nat_pod.plan.planner import plan_pod

DATA = Path(__file__).resolve().parent / "data"
WRONG = yaml.safe_load((DATA / "wrong_stacks.yaml").read_text(encoding="utf-8"))

# The planner's own layout of 198.18.0.0/22, for rows that leave `subnets` out.
DEFAULT_LAYOUT = {
    "management.vrouter": "198.18.3.250",
    "addresses": {
        "management/mgmt": {"natVm1": "198.18.0.2", "natVm2": "198.18.2.2"},
        "customer1/vm1": {"natVm1": "198.18.0.2", "natVm2": "198.18.2.2"},
        "customer1/vm2": {"natVm1": "198.18.0.3", "natVm2": "198.18.2.3"},
        "customer2/vm2": {"natVm1": "198.18.0.4", "natVm2": "198.18.2.4"},
    },
}
FLEX = {"shape": "VM.Optimized3.Flex", "ocpus": 12, "memoryGbs": 48}


def changed(mapping: dict, put: dict | None = None, remove: list | tuple = ()) -> dict:
    """A mapping with values put in, or taken out, by path."""
    mapping = copy.deepcopy(mapping)
    for path in [*(put or {}), *remove]:
        *parents, last = path.split(".")
        place = mapping
        for key in parents:
            place = place[key]
        if path in remove:
            del place[last]
        else:
            place[last] = copy.deepcopy(put[path])
    return mapping


def paths_of(value: object, prefix: tuple = ()) -> list[tuple]:
    """All places in a nested value, the outer ones first."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        items = []
    return [place for key, entry in items for place in [(*prefix, key), *paths_of(entry, (*prefix, key))]]


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRONG)
def test_a_stack_file_is_refused_with_every_problem_it_has_and_no_other(dev, name):
    row = WRONG[name]
    before = changed(dev, row.get("set"), row.get("remove", ()))
    mapping = copy.deepcopy(before)
    with pytest.raises(ConfigError) as refused:
        PodConfig.from_mapping(mapping, "dev")
    assert "".join(f"{problem}\n" for problem in refused.value.problems) == row["problems"]
    assert mapping == before  # what it was given is the caller's


def test_there_is_a_row_for_each_required_setting_that_is_missing():
    missing = {
        line.split(": ")[0].removeprefix("nat-pod:")
        for row in WRONG.values()
        for line in row["problems"].splitlines()
        if ": is missing; " in line
    }
    assert missing == {
        "compartmentId",
        "cidr",
        "natVm",
        "natVm.shape",
        "natVm.shape.shape",
        "natVm.shape.ocpus",
        "natVm.shape.memoryGbs",
        "natVm.imageId",
        "natVm.sshPublicKey",
        "management",
        "management.vrouter",
        "management.servers",
        "customers",
        "customers.customer2.cidr",
        "customers.customer2.hosts",
        "subnets.natVm1",
        "subnets.natVm2",
        "subnets.vrouter",
        "names.zone",
        'addresses["customer2/vm2"].natVm1',
        'addresses["customer2/vm2"].natVm2',
    }


WEIRD = [None, True, 0, -1, 1.5, float("nan"), "", "x", "1.2.3.4", "\n", [], [None], [["x"]], {}, {"x": None}, {1: [2]}]


@pytest.mark.slow
def test_any_value_in_any_place_is_refused_or_accepted_but_never_a_traceback(dev):
    """Each place of the example with each of these values: about seven hundred files."""
    places = paths_of(dev)
    assert len(places) == 43
    accepted = []
    for place in places:
        for value in WEIRD:
            mapping = copy.deepcopy(dev)
            inner = mapping
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            try:
                plan_pod(PodConfig.from_mapping(mapping, "dev"), "dev")
            except ConfigError:
                continue
            accepted.append((".".join(map(str, place)), value))
    assert accepted == [("sourceNat", None)]  # the only one that is optional and leaves the rest as it is


def test_a_config_error_names_the_file_and_counts_its_problems(dev):
    with pytest.raises(ConfigError) as one:
        PodConfig.from_mapping(changed(dev, {"sourceNat": "x"}), "dev")
    assert str(one.value) == ('Pulumi.dev.yaml: 1 problem\n  nat-pod:sourceNat: "x": must be masquerade or static')
    with pytest.raises(ConfigError) as two:
        PodConfig.from_mapping(changed(dev, {"sourceNat": "x"}, ["addresses.customer2/vm2"]), "prod")
    assert str(two.value) == (
        "Pulumi.prod.yaml: 2 problems\n"
        '  nat-pod:sourceNat: "x": must be masquerade or static\n'
        '  nat-pod:addresses["customer2/vm2"]: has no slot yet; `pulumi up` never assigns one\n'
        "    run: python -m nat_pod allocate prod"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", '"a"'),
        (True, "true"),
        (["a", 1], '["a", 1]'),
        ("two\nlines", '"two\\nlines"'),
        ("\x1b[31mred", '"\\u001b[31mred"'),
        ("ü", '"ü"'),
        ("x" * 78, '"' + "x" * 78 + '"'),
        ("x" * 79, '"' + "x" * 76 + "..."),
        ({(1, 2): 3}, "{(1, 2): 3}"),
    ],
)
def test_a_problem_shows_the_value_on_one_line_and_never_longer_than_the_rule_can_bear(value, shown):
    assert str(Problem("nat-pod:cidr", value, "rule")) == f"nat-pod:cidr: {shown}: rule"


@pytest.mark.parametrize(("value", "shown"), [(1, "1, 1]..."), ({(1, 2): 3}, "[...]")])
def test_a_problem_writes_no_more_of_a_value_than_it_shows(value, shown):
    """Lists of one list twice, as aliases make them: 60 levels would be 10^18 values."""
    for _ in range(60):
        value = [value, value]
    text = shorten(value)  # not compared as a value: pytest would write all of it
    assert (len(text), text[:6], shown.strip(".") in text) == (80, "[[[[[[", True)


def test_a_problem_without_a_value_shows_none():
    assert str(Problem("nat-pod:cidr", None, "is missing")) == "nat-pod:cidr: is missing"


# --- accepted: the twins of the rows that are refused ----------------------------------------------------------------

RIGHT = {
    "the example": ({}, []),
    "an LPG limit as the number that a person writes": ({"lpgLimit": 20}, []),
    "an LPG limit as the string that pulumi config set writes": ({"lpgLimit": "20"}, []),
    "an LPG limit as the float that JSON may give": ({"lpgLimit": 20.0}, []),
    "ten customers": ({f"customers.c{n}": {"cidr": f"10.{n}.0.0/24", "hosts": {}} for n in range(1, 9)}, []),
    "eleven customers and a raised limit": (
        {"lpgLimit": 20, **{f"customers.c{n}": {"cidr": f"10.{n}.0.0/24", "hosts": {}} for n in range(1, 10)}},
        [],
    ),
    "no customer yet": (
        {"customers": {}, "addresses": {"management/mgmt": {"natVm1": "198.18.0.2", "natVm2": "198.18.0.130"}}},
        [],
    ),
    "the policy static": ({"sourceNat": "static"}, []),
    "no policy": ({}, ["sourceNat"]),
    "a flex shape": ({"natVm.shape": FLEX}, []),
    "a fixed shape as a mapping": ({"natVm.shape": {"shape": "VM.Standard2.24"}}, []),
    "a flex shape in strings": ({"natVm.shape": {**FLEX, "ocpus": "12", "memoryGbs": "48"}}, []),
    "a flex shape with 1 GB per OCPU": ({"natVm.shape": {**FLEX, "memoryGbs": 12}}, []),
    "a flex shape with 64 GB per OCPU": ({"natVm.shape": {**FLEX, "ocpus": 2, "memoryGbs": 128}}, []),
    "a flex shape with the most OCPUs": ({"natVm.shape": {**FLEX, "ocpus": 18}}, []),
    "an availability domain": ({"natVm.availabilityDomain": "Uocm:UK-LONDON-1-AD-1"}, []),
    "an RSA key without a comment": ({"natVm.sshPublicKey": "ssh-rsa AAAA"}, []),
    "an LPG to peer with": ({"customers.customer1.peerId": "ocid1.localpeeringgateway.oc1..x"}, []),
    "two customers with an LPG each": (
        {
            "customers.customer1.peerId": "ocid1.localpeeringgateway.oc1..x",
            "customers.customer2.peerId": "ocid1.localpeeringgateway.oc1..y",
        },
        [],
    ),
    "a tenancy for a compartment": ({"compartmentId": "ocid1.tenancy.oc1..x"}, []),
    "a server list": ({"customers.customer1.servers": ["mgmt"]}, []),
    "a server list without a server": ({"customers.customer1.servers": []}, []),
    "the planner's layout": (DEFAULT_LAYOUT, ["subnets"]),
    "the planner's layout, asked for with {}": ({**DEFAULT_LAYOUT, "subnets": {}}, []),
    "as many subnets as the shape has VNICs": ({"natVm.shape": "VM.Standard2.2"}, []),
    "customers next to one another": ({"customers.customer3": {"cidr": "10.0.2.0/24", "hosts": {}}}, []),
    "a customer over management": ({"customers.customer3": {"cidr": "10.0.128.0/17", "hosts": {}}}, []),
    "a customer right behind the POD": ({"customers.customer3": {"cidr": "198.18.4.0/24", "hosts": {}}}, []),
    "the smallest and the largest VCN": (
        {
            "customers.customer3": {"cidr": "10.3.0.0/30", "hosts": {}},
            "customers.customer4": {"cidr": "10.4.0.0/16", "hosts": {}},
        },
        [],
    ),
    "a customer with a name of 19 characters": ({f"customers.{'c' * 19}": {"cidr": "10.3.0.0/24", "hosts": {}}}, []),
    "a host with a name of 63 characters": (
        {
            f"customers.customer2.hosts.{'h' * 63}": "10.0.1.101",
            f"addresses.customer2/{'h' * 63}": {"natVm1": "198.18.0.4", "natVm2": "198.18.0.132"},
        },
        [],
    ),
    "a host on the third address of its network": ({"customers.customer2.hosts.vm2": "10.0.1.2"}, []),
    "a host on the last but one": ({"customers.customer2.hosts.vm2": "10.0.1.254"}, []),
    "hosts of two customers with one address each": ({"customers.customer2.hosts.vm2": "10.0.1.130"}, []),
    "a released slot": (
        {"addresses.customer1/old": {"natVm1": "198.18.0.4", "natVm2": "198.18.0.132", "released": True}},
        [],
    ),
    "a flag that says nothing": ({"addresses.customer2/vm2.released": False}, []),
    "a slot on the third address of a subnet": (
        {"addresses.customer2/vm2": {"natVm1": "198.18.0.35", "natVm2": "198.18.0.67"}},
        [],
    ),
    "a slot on the last but one": (
        {"addresses.customer2/vm2": {"natVm1": "198.18.0.30", "natVm2": "198.18.0.158"}},
        [],
    ),
    "the vRouter on the last but one address": ({"management.vrouter": "198.18.0.174"}, []),
    "the vRouter in a /29 that has it": (
        {"management.vrouter": "198.18.0.166", "subnets.vrouter": "198.18.0.160/29"},
        [],
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_stack_file_that_is_right_is_accepted(dev, name):
    put, remove = RIGHT[name]
    plan_pod(PodConfig.from_mapping(changed(dev, put, remove), "dev"), "dev")


def test_the_example_reads_as_the_article_has_it(dev):
    config = PodConfig.from_mapping(dev, "dev")
    assert config.cidr == IPNetwork("198.18.0.0/22")
    assert (config.nat_vm.shape, config.nat_vm.ocpus, config.nat_vm.vnic_limit) == ("VM.Standard2.24", None, 24)
    assert config.management.vrouter == IPAddress("198.18.0.167")
    assert [(m.name, str(m.address), m.name.realm) for m in config.members] == [
        ("management/mgmt", "10.0.0.100", "management"),
        ("customer1/vm1", "10.0.0.100", "customer1"),
        ("customer1/vm2", "10.0.0.130", "customer1"),
        ("customer2/vm2", "10.0.1.100", "customer2"),
    ]
    assert config.book == {
        "management/mgmt": Slot(1, 2),
        "customer1/vm1": Slot(1, 2),
        "customer1/vm2": Slot(2, 2),
        "customer2/vm2": Slot(1, 3),
    }
    assert (config.released, config.source_nat, config.lpg_limit) == ({}, "masquerade", 10)
    assert config.layout.pinned


def test_what_is_optional_has_the_documented_default(dev):
    config = PodConfig.from_mapping(changed(dev, DEFAULT_LAYOUT, ["subnets", "sourceNat"]), "dev")
    assert (config.source_nat, config.lpg_limit, config.nat_vm.availability_domain) == ("masquerade", 10, None)
    assert [(customer.servers, customer.peer_id) for customer in config.customers] == [(None, None)] * 2
    assert not config.layout.pinned
    assert config.layout.capacity == 435


def test_the_order_of_the_file_makes_no_difference(dev):
    backwards = {key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in dev.items()}
    backwards = dict(reversed(backwards.items()))
    one, other = PodConfig.from_mapping(dev, "dev"), PodConfig.from_mapping(backwards, "dev")
    assert list(backwards["customers"]) == ["customer2", "customer1"]
    assert one == other
    assert plan_pod(one, "dev") == plan_pod(other, "dev")


def test_a_configuration_cannot_be_changed(dev):
    config = PodConfig.from_mapping(dev, "dev")
    with pytest.raises(FrozenInstanceError):
        config.source_nat = "static"


def test_a_draft_tells_what_allocate_settles_from_what_a_person_must(dev):
    config, problems, unsettled = read_draft(changed(dev, None, ["addresses.customer1/vm2"]), "dev")
    assert (config is None, problems, [problem.path for problem in unsettled]) == (
        False,
        [],
        ['nat-pod:addresses["customer1/vm2"]'],
    )
    config, problems, unsettled = read_draft(changed(dev, {"sourceNat": "x"}, ["addresses.customer1/vm2"]), "dev")
    assert (config, [problem.path for problem in problems], len(unsettled)) == (None, ["nat-pod:sourceNat"], 1)
