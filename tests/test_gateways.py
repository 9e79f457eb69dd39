"""Customer gateways: who is placed where, what stays where it is, and that customers who overlap are kept apart."""

import copy
import random
from dataclasses import replace
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from netaddr import IPNetwork
from routed_pods import allocated, small
from test_routed_book import BEHIND, TEXT

from nat_pod.config import any_config
from nat_pod.config.address_book import as_written, edit, settle
from nat_pod.config.addressing import clash
from nat_pod.config.aliases import block_of
from nat_pod.config.gateways import fits, place
from nat_pod.config.neighbours import CustomerConfig
from nat_pod.config.routed import RoutedConfig, read_draft
from nat_pod.names import GATEWAY, INNER, NAT_VM1, NAT_VM2, Role
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.counter_examples import WRONG_MEMBER
from nat_pod.trace.proof import prove

# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "name", "prose", "lpgs"),
    [
        (GATEWAY, "natVm1", "NAT VM1", "lpgs"),
        (Role(NAT_VM1, 2), "natVm1-2", "NAT VM1-2", "lpgs-2"),
        (Role(NAT_VM1, 30), "natVm1-30", "NAT VM1-30", "lpgs-30"),
        (INNER, "natVm2", "NAT VM2", "lpgs"),
    ],
)
def test_a_role_is_its_name(role, name, prose, lpgs):
    assert (str(role), role.prose, role.lpgs) == (name, prose, lpgs)
    assert Role.parse(name) == role == copy.deepcopy(role)
    assert copy.deepcopy(role).side is role.side


@pytest.mark.parametrize("name", ["natVm1-1", "natVm1-02", "natVm1-0", "natVm1a", "natVm3", "natvm1", "", "natVm1-100"])
def test_what_is_called_otherwise_is_no_role(name):
    assert Role.parse(name) is None


def test_the_first_role_of_a_side_is_the_side_wherever_a_key_is_looked_up():
    assert (GATEWAY, INNER) == (NAT_VM1, NAT_VM2)
    assert {GATEWAY: 1, INNER: 2}[NAT_VM2] == {NAT_VM1: 1, NAT_VM2: 2}[INNER] == 2


# --- placement, at random --------------------------------------------------------------------------------------------


def customer(name: str, cidr: str, *, own: bool = False) -> CustomerConfig:
    return CustomerConfig(
        name=name, cidrs=(IPNetwork(cidr),), hosts={}, servers=None, peer_id=None, formerly=None, hosts_formerly={},
        own_gateway=own,
    )  # fmt: skip


def some_customers(dice: random.Random, count: int) -> list[CustomerConfig]:
    """Customers in few networks of several sizes, so that many overlap, and here and there one that wants its own."""
    found = []
    for number in range(count):
        prefix = dice.choice((16, 20, 24, 24, 24, 28))
        network = IPNetwork(f"10.{dice.randrange(3)}.{dice.randrange(4)}.{dice.randrange(256)}/{prefix}").cidr
        found.append(customer(f"c{number}", str(network), own=dice.random() < 0.08))
    return found


def by_gateway(customers: list[CustomerConfig], placed: dict[str, int | None]) -> dict[int, list[CustomerConfig]]:
    groups: dict[int, list[CustomerConfig]] = {}
    for one in customers:
        number = placed[one.name]
        assert number is not None
        groups.setdefault(number, []).append(one)
    return groups


def check_apart(customers: list[CustomerConfig], placed: dict[str, int | None]) -> None:
    for group in by_gateway(customers, placed).values():
        for index, one in enumerate(group):
            assert not any(clash(one.cidrs, other.cidrs) for other in group[:index])
        assert len(group) == 1 or not any(one.own_gateway for one in group)


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(at, marks=pytest.mark.sweep) for at in range(20, 200))])
def test_nobody_shares_a_gateway_with_whom_it_overlaps_and_none_is_opened_without_need(seed):
    dice = random.Random(seed)
    customers = some_customers(dice, dice.randrange(1, 20))
    placed = place(customers, {}, 30)
    check_apart(customers, placed)
    # Each is in the first one where it fits beside those that were placed before it: no gateway is left out.
    for index, one in enumerate(customers):
        before = by_gateway(customers[:index], placed)
        number = placed[one.name]
        assert number is not None
        assert [lower for lower in range(1, number) if fits(one, before.get(lower, []))] == []
    assert {number for number in placed.values() if number} == set(range(1, len(set(placed.values())) + 1))


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(at, marks=pytest.mark.sweep) for at in range(5, 40))])
def test_whoever_comes_and_goes_the_others_stay_where_they_are(seed):
    dice = random.Random(1000 + seed)
    customers = some_customers(dice, 8)
    standing = {name: number for name, number in place(customers, {}, 30).items() if number}
    for step in range(50):
        if customers and dice.random() < 0.5:
            gone = dice.choice(customers)
            customers.remove(gone)
            del standing[gone.name]
        else:
            new = some_customers(dice, 1)[0]
            customers.insert(
                dice.randrange(len(customers) + 1), customer(f"n{step}", str(new.cidrs[0]), own=new.own_gateway)
            )
        placed = place(customers, standing, 30)
        assert {name: placed[name] for name in standing} == standing
        check_apart(customers, placed)
        standing = {name: number for name, number in placed.items() if number}


def test_where_no_gateway_is_left_a_customer_has_none():
    customers = [customer(f"c{number}", "10.0.0.0/24") for number in range(4)]
    assert place(customers, {}, 3) == {"c0": 1, "c1": 2, "c2": 3, "c3": None}


# --- the whole stack file, step by step ------------------------------------------------------------------------------


def overlapping(customers: int, *, standby: bool = False, hosts: int = 2) -> dict[str, Any]:
    """A POD of customers who are all 10.0.0.0/24, with the same hosts, which have servers' addresses; no book yet."""
    mapping = small()
    mapping["cidr"], mapping["vcnCidr"] = "198.18.0.0/21", "198.18.7.128/25"
    mapping["lpgLimit"] = 20
    mapping["management"] = {
        "cidr": "10.0.0.0/16",
        "vrouter": "198.18.7.250",
        "servers": {"mgmt": "10.0.0.100", "dns": "10.0.0.101"},
    }
    mapping["customers"] = {
        f"customer{number}": {
            "cidr": "10.0.0.0/24",
            "hosts": {f"vm{host}": f"10.0.0.{100 + host}" for host in range(hosts)},
        }
        for number in range(customers)
    }
    return {**mapping, "addresses": {}, "standby": standby, "balancerLimit": 40}


def with_book(mapping: dict[str, Any]) -> dict[str, Any]:
    """The mapping with what `allocate` writes."""
    config, problems, _ = read_draft(mapping, "x")
    assert config is not None, problems
    settled = settle(config)
    book = {str(name): as_written(config, entry) for name, entry in settled.entries.items()}
    return {**mapping, "addresses": book, "gateways": settled.gateways}


def aliases_of(config: RoutedConfig) -> dict[str, tuple[str, int]]:
    return {
        str(name): (str(alias), config.gateways[name.realm])
        for name, alias in config.book.items()
        if not name.is_server
    }


@pytest.mark.slow
def test_each_block_of_aliases_is_one_gateways_and_the_tables_are_as_short_as_the_blocks():
    plan = plan_pod(RoutedConfig.from_mapping(with_book(overlapping(10, hosts=40)), "x"), "x")
    assert len(plan.roles) == 11
    blocks: dict[object, set[str]] = {}
    for host in plan.hosts:
        blocks.setdefault(block_of(IPNetwork(host.nat_vm2).ip), set()).add(plan.role(host.member))
    assert all(len(roles) == 1 for roles in blocks.values())
    assert len(blocks) == 10 * 2  # 40 hosts need two blocks each
    assert len(plan.routes[NAT_VM2]) <= len(blocks) + 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(at, marks=pytest.mark.sweep) for at in range(1, 8))])
def test_fifty_comings_and_goings_leave_every_other_alias_and_gateway_as_it_was(seed):
    dice = random.Random(seed)
    mapping = with_book(overlapping(3))
    for step in range(50):
        before = aliases_of(RoutedConfig.from_mapping(mapping, "x"))
        names = list(mapping["customers"])
        gone = dice.choice(names) if (len(names) > 1 and dice.random() < 0.5) or len(names) > 12 else None
        if gone is not None:
            del mapping["customers"][gone]
        else:
            third = dice.randrange(2)
            mapping["customers"][f"new{step}"] = {
                "cidr": f"10.0.{third}.0/24",
                "hosts": {f"vm{host}": f"10.0.{third}.{100 + host}" for host in range(dice.randrange(1, 4))},
            }
        mapping = with_book(mapping)
        after = aliases_of(RoutedConfig.from_mapping(mapping, "x"))
        assert {name: place for name, place in after.items() if name in before} == {
            name: place for name, place in before.items() if not name.startswith(f"{gone}/")
        }
        assert with_book(mapping) == mapping, "and a second allocate has nothing to do"


def test_a_customer_that_comes_back_to_another_gateway_gets_other_aliases():
    """Its released aliases are in a block that is another gateway's by now."""
    mapping = with_book(overlapping(2))
    config = RoutedConfig.from_mapping(mapping, "x")
    assert config.gateways == {"customer0": 1, "customer1": 2}
    gone = copy.deepcopy(mapping)
    back = gone["customers"].pop("customer1")
    gone["customers"]["other"] = copy.deepcopy(back)
    gone = with_book(gone)
    assert gone["gateways"] == {"other": 2}
    gone["customers"]["customer1"] = back
    again = RoutedConfig.from_mapping(with_book(gone), "x")
    assert again.gateways == {"customer0": 1, "customer1": 3, "other": 2}
    assert plan_pod(again, "x").gateways["customer1"] == Role(NAT_VM1, 3)


def test_a_wish_for_a_gateway_of_its_own_keeps_others_out():
    mapping = allocated(small())
    mapping["customers"]["acme"] = {"cidr": "10.9.0.0/24", "hosts": {"vm1": "10.9.0.5"}, "gateway": "own"}
    mapping["customers"]["zeta"] = {"cidr": "10.9.1.0/24", "hosts": {"vm1": "10.9.1.5"}}
    config = RoutedConfig.from_mapping(with_book(mapping), "x")
    assert config.gateways == {"customer1": 1, "customer2": 1, "acme": 2, "zeta": 1}


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(project):
    def put(text: str) -> None:
        (project / "Pulumi.routed.yaml").write_text(text, encoding="utf-8")

    def get() -> str:
        return (project / "Pulumi.routed.yaml").read_text(encoding="utf-8")

    put(TEXT)
    return put, get


NEW = "    oak:\n      cidr: 10.0.0.0/24\n      hosts:\n        web: 10.0.0.100\n"


def test_allocate_writes_the_gateway_of_a_new_customer_and_keeps_the_other_lines(run, written):
    put, get = written
    put(TEXT.replace(BEHIND, NEW + BEHIND))
    status, out, _ = run("check", "routed")
    assert status == 1
    assert "nat-pod:gateways.oak: needs gateway 3: it does not fit beside the customers of gateways 1 to 2" in out
    put(get().replace("standby: true", "standby: false"))
    assert run("allocate", "routed") == (0, "placed    oak  gateway 3\nadded     oak/web  198.18.10.64\n", "")
    line = next(line for line in TEXT.splitlines() if line.startswith("    maple: 2"))
    assert f"{BEHIND}{line}\n    oak: 3\n  nat-pod:addresses:\n" in get()
    assert run("allocate", "routed")[1] == "Pulumi.routed.yaml: nothing to do: every member has a slot\n"


def test_a_customer_that_goes_takes_its_line_with_it_and_the_last_one_the_block(run, written):
    put, get = written
    loaded = yaml.safe_load(TEXT)
    del loaded["config"]["nat-pod:customers"]["maple"]
    at = TEXT.index("    maple:\n")
    put(TEXT[:at] + TEXT[TEXT.index(BEHIND) :])
    assert yaml.safe_load(get()) == loaded
    status, out, _ = run("allocate", "routed")
    assert status == 0
    assert out.startswith("placed    maple  gateway 1\n") or "released  maple/app" in out
    assert "nat-pod:gateways" not in get()
    assert run("check", "routed")[0] == 0


def test_the_first_gateway_that_has_to_be_written_gets_a_block_above_the_addresses():
    text = (REPOSITORY / "Pulumi.routed.yaml").read_text(encoding="utf-8")
    before, after = text.split(BEHIND)
    bare = before + after.split("\n", 1)[1]
    mapping = {
        key.removeprefix("nat-pod:"): value
        for key, value in yaml.safe_load(bare)["config"].items()
        if key.startswith("nat-pod:")
    }
    mapping["addresses"] = {name: alias for name, alias in mapping["addresses"].items() if not name.startswith("maple")}
    book = "".join(line for line in bare.splitlines(keepends=True) if not line.startswith("    maple/"))
    config, problems, _ = any_config.draft(mapping, "routed")
    assert config is not None, problems
    result = edit(book, config, settle(config))
    assert yaml.safe_load(result) == yaml.safe_load(text)
    assert "  nat-pod:gateways:\n    maple: 2\n  nat-pod:addresses:\n" in result


# --- every packet ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_packet_of_customers_who_are_all_alike_has_the_declared_fate():
    plan = plan_pod(RoutedConfig.from_mapping(with_book(overlapping(3, standby=True)), "x"), "x")
    assert [str(role) for role in plan.roles] == ["natVm1", "natVm1-2", "natVm1-3", "natVm2"]
    assert prove(plan).counter_examples == ()


@pytest.mark.slow
def test_a_customer_in_the_routes_of_another_gateway_is_found():
    """The second gateway has the routes of the first one: answers to customer1 go to customer0's host."""
    plan = plan_pod(RoutedConfig.from_mapping(with_book(overlapping(2)), "x"), "x")
    wrong = {**plan.routes, "natVm1-2": plan.routes["natVm1"]}
    found = {(one.kind, str(one.sender).split("/")[0]) for one in prove(replace(plan, routes=wrong)).counter_examples}
    assert found == {(WRONG_MEMBER, "customer1"), (WRONG_MEMBER, "management")}


@pytest.mark.sweep
def test_twenty_customers_of_five_ranges_take_four_gateways_and_every_packet_has_the_declared_fate():
    mapping = overlapping(20, standby=True, hosts=6)
    mapping["cidr"], mapping["vcnCidr"] = "198.18.0.0/21", "198.18.7.192/26"
    for number, one in enumerate(mapping["customers"].values()):
        one["cidr"] = f"10.{number % 5}.0.0/24"
        one["hosts"] = {name: f"10.{number % 5}.0.{10 + at}" for at, name in enumerate(one["hosts"])}
    plan = plan_pod(RoutedConfig.from_mapping(with_book(mapping), "x"), "x")
    assert [str(role) for role in plan.roles] == ["natVm1", "natVm1-2", "natVm1-3", "natVm1-4", "natVm2"]
    assert all(len(plan.routes[role]) == 5 + 1 for role in plan.roles[:-1])
    assert prove(plan).counter_examples == ()
