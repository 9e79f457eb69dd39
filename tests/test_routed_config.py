"""RoutedConfig: which stack files with `delivery: routes` are refused, with which words, and which are not.

Address plan: the article's networks; the POD is 198.18.0.0/22, its VCN 198.18.3.192/26 (NAT VM1 .192/29, NAT VM2
.200/29, vRouter .248/29), the server's alias 198.18.0.2 and the hosts' from 198.18.2.2.
"""

import copy
import random
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from conftest import stack_mapping
from netaddr import IPAddress, IPNetwork, IPSet
from routed_pods import small
from test_config import changed, paths_of

from nat_pod.config import aliases, any_config
from nat_pod.config.address_book import settle
from nat_pod.config.addressing import reserved_by_oci
from nat_pod.config.aliases import VcnLayout, block_of, default_vcn, free_aliases
from nat_pod.config.delivery import SETTINGS, Delivery, foreign, only, without_foreign_defaults
from nat_pod.config.model import PodConfig
from nat_pod.config.routed import RoutedConfig
from nat_pod.errors import ConfigError, NatPodError
from nat_pod.names import GATEWAY, INNER, NAT_VM1, MemberName, Role

DATA = Path(__file__).resolve().parent / "data"
WRONG = yaml.safe_load((DATA / "wrong_routed_stacks.yaml").read_text(encoding="utf-8"))
PROJECT = yaml.safe_load((DATA.parents[1] / "Pulumi.yaml").read_text(encoding="utf-8"))["config"]


def read(mapping: dict) -> RoutedConfig:
    config = any_config.read(mapping, "dev")
    assert isinstance(config, RoutedConfig)
    return config


def draft(mapping: dict) -> RoutedConfig:
    config, problems, _ = any_config.draft(mapping, "dev")
    assert not problems
    assert isinstance(config, RoutedConfig)
    return config


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRONG)
def test_a_routed_stack_file_is_refused_with_every_problem_it_has_and_no_other(name):
    row = WRONG[name]
    before = changed(small(), row.get("set"), row.get("remove", ()))
    mapping = copy.deepcopy(before)
    with pytest.raises(ConfigError) as refused:
        any_config.read(mapping, "dev")
    assert "".join(f"{problem}\n" for problem in refused.value.problems) == row["problems"]
    assert mapping == before  # what it was given is the caller's


def test_what_one_delivery_alone_has_is_refused_in_the_other_with_the_reason(dev):
    for delivery, mapping in ((Delivery.PRIVATE_IPS, dev), (Delivery.ROUTES, small())):
        assert foreign(delivery).keys() == {key for other in Delivery if other is not delivery for key in only(other)}
        for key in foreign(delivery):
            with pytest.raises(ConfigError) as refused:
                any_config.read({**mapping, key: PROJECT[key]["default"]}, "dev")
            assert [problem.path for problem in refused.value.problems] == [f"nat-pod:{key}"]
            assert "delivery: routes" in refused.value.problems[0].rule


WEIRD = [None, True, 0, -1, 1.5, float("nan"), "", "x", "1.2.3.4", "\n", [], [None], [["x"]], {}, {"x": None}, {1: [2]}]


@pytest.mark.slow
def test_any_value_in_any_place_is_refused_or_accepted_but_never_a_traceback():
    base = {**small(), "standby": True, "vcnCidr": "198.18.3.192/26", "balancerLimit": 3, "movesFrom": "dev"}
    base["addresses"]["customer1/old"] = {"address": "198.18.2.9", "released": True}
    for path in paths_of(base):
        for value in WEIRD:
            mapping = copy.deepcopy(base)
            place = mapping
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            with suppress(ConfigError):
                assert isinstance(any_config.read(mapping, "dev"), PodConfig | RoutedConfig)


# --- accepted --------------------------------------------------------------------------------------------------------


def test_what_follows_from_a_routed_stack_file():
    config = read(small())
    assert (str(config.cidr), str(config.vcn)) == ("198.18.0.0/22", "198.18.3.192/26")
    assert (config.standby, config.balancers, config.balancer_limit) == (True, 2, 3)
    assert config.alias(MemberName("customer1", "vm2")) == "198.18.2.3"
    assert [str(network) for network in config.server_ranges] == ["198.18.0.0/27"]
    assert [str(network) for network in config.host_ranges] == ["198.18.2.0/27"]
    assert (config.capacity.slots, config.capacity.used, config.capacity.free) == (960, 4, 956)
    assert [member.name for member in config.servers] == ["management/mgmt"]
    assert len(config.hosts) == 3


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"standby": False}, (False, 0)),
        ({"standby": "false"}, (False, 0)),  # as `pulumi config set` writes it
        ({"standby": "true"}, (True, 2)),
        ({"standby": False, "balancerLimit": 0}, (False, 0)),
        ({"balancerLimit": "2"}, (True, 2)),
        ({"vcnCidr": ""}, (True, 2)),
    ],
)
def test_the_standby_can_be_left_out_and_then_needs_no_balancer(change, shown):
    config = read({**small(), **change})
    assert (config.standby, config.balancers) == shown


@pytest.mark.parametrize("vcn", ["198.18.3.224/27", "198.18.0.128/25", "198.18.1.0/26"])
def test_the_range_of_the_vcn_can_be_put_elsewhere(vcn):
    mapping = {**small(), "vcnCidr": vcn}
    mapping["management"]["vrouter"] = str(IPNetwork(vcn)[-6])
    config = read(mapping)
    assert str(config.vcn) == vcn
    assert config.capacity.slots == 1024 - IPNetwork(vcn).size


@pytest.mark.parametrize(
    "form", ["198.18.2.2", {"address": "198.18.2.2"}, {"address": "198.18.2.2", "released": False}]
)
def test_an_alias_may_stand_alone(form):
    assert read(changed(small(), {"addresses.customer1/vm1": form})).book == read(small()).book


# --- the arithmetic, enumerated --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "held"), [(25, 64), (24, 192), (23, 448), (22, 960), (21, 1984), (20, 4032)])
def test_every_address_outside_of_the_vcn_is_an_alias(prefix, held):
    cidr = IPNetwork(f"198.18.0.0/{prefix}")
    vcn = default_vcn(cidr)
    assert aliases.capacity(cidr, vcn) == held
    for role in (GATEWAY, Role(NAT_VM1, 2), INNER):
        given = list(free_aliases(cidr, vcn, role=role, owned={}, taken=set()))
        assert len(given) == len(set(given)) == held
        assert IPSet(given) == IPSet(cidr) - IPSet(vcn)
        assert [int(one) % 256 in (0, 255) for one in given] == sorted(int(one) % 256 in (0, 255) for one in given)


@pytest.mark.parametrize(
    "vcn", ["198.18.3.192/26", "198.18.3.224/27", "198.18.3.128/25", "198.18.3.0/24", "198.18.0.0/27"]
)
def test_the_subnets_of_a_vcn_are_apart_and_the_machines_at_addresses_that_oci_gives(vcn):
    layout = VcnLayout(IPNetwork(vcn))
    roles = [INNER, *(Role(NAT_VM1, number) for number in range(1, layout.gateways + 1))]
    subnets = [*(layout.subnet(role) for role in roles), layout.vrouter]
    assert sum(subnet.size for subnet in subnets) == IPSet(subnets).size == layout.vcn.size
    assert all(subnet in layout.vcn and subnet.prefixlen == 29 for subnet in subnets)
    assert layout.vrouter.last == layout.vcn.last
    for role in roles:
        machines = [layout.vm(role, 0), layout.vm(role, 1), layout.balancer(role)]
        assert len(set(machines)) == 3
        for address in map(IPAddress, machines):
            assert address in layout.subnet(role)
            assert reserved_by_oci(address, layout.subnet(role)) is None


def test_servers_get_the_lower_half_and_hosts_the_upper_one_and_then_the_lower_from_its_end():
    cidr, vcn = IPNetwork("198.18.0.0/22"), IPNetwork("198.18.3.192/26")

    def first_of_blocks(role: Role) -> list[str]:
        given = free_aliases(cidr, vcn, role=role, owned={}, taken=set())
        return list(dict.fromkeys(str(block_of(one)) for one in given))

    servers, hosts = first_of_blocks(INNER), first_of_blocks(GATEWAY)
    assert servers[:2] == ["198.18.0.0/27", "198.18.0.32/27"]
    assert hosts[:2] == ["198.18.2.0/27", "198.18.2.32/27"]
    assert hosts[13:16] == ["198.18.3.160/27", "198.18.1.224/27", "198.18.1.192/27"]
    assert servers[15:17] == ["198.18.1.224/27", "198.18.2.0/27"]
    assert len(servers) == len(hosts) == 30


# --- the address book ------------------------------------------------------------------------------------------------


def book_of(mapping: dict, *, reuse: bool = False) -> dict:
    """What `allocate` makes of the book, in the form of a stack file."""
    config = draft(mapping)
    entries = settle(config, reuse=reuse).entries
    return {
        str(name): {"address": str(entry.slot), "released": True} if entry.released else str(entry.slot)
        for name, entry in entries.items()
    }


def test_new_members_get_the_first_alias_that_is_free_in_a_block_of_their_own_kind():
    mapping = small()
    mapping["management"]["servers"]["dns"] = "10.0.3.53"
    mapping["customers"]["customer2"]["hosts"]["app"] = "10.0.1.7"
    assert book_of(mapping) == {**small()["addresses"], "management/dns": "198.18.0.1", "customer2/app": "198.18.2.1"}


def test_a_released_alias_is_handed_out_only_when_asked_for_and_only_to_the_same_kind():
    mapping = small()
    mapping["addresses"] = {"customer1/old": {"address": "198.18.2.1", "released": True}, **mapping["addresses"]}
    mapping["management"]["servers"]["dns"] = "10.0.3.53"
    mapping["customers"]["customer2"]["hosts"]["app"] = "10.0.1.7"
    kept, reused = book_of(mapping), book_of(mapping, reuse=True)
    assert kept["customer2/app"] == "198.18.2.5"
    assert kept["customer1/old"] == {"address": "198.18.2.1", "released": True}
    assert reused["customer2/app"] == "198.18.2.1"
    assert "customer1/old" not in reused
    assert kept["management/dns"] == reused["management/dns"] == "198.18.0.1"


def test_a_pod_whose_blocks_are_all_taken_says_by_whom():
    mapping = small()
    mapping["cidr"] = "198.18.0.0/25"  # 64 aliases: a block of the servers', a block of the hosts'
    mapping["management"]["vrouter"] = "198.18.0.122"
    mapping["addresses"] = {}
    mapping["customers"]["customer1"]["hosts"] = {f"h{n}": f"10.0.0.{n}" for n in range(2, 34)}
    with pytest.raises(NatPodError) as refused:
        settle(draft(mapping))
    assert str(refused.value) == (
        "nat-pod:addresses: no alias left for 1 more from customer2/vm2 on: every block of 198.18.0.0/25 outside the "
        "VCN's 198.18.0.64/26 is full or is for the servers\n"
        "    a second POD takes more: python -m nat_pod new-pod --routed NAME"
    )
    del mapping["customers"]["customer1"]["hosts"]["h2"]
    assert len(book_of(mapping)) == 33


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(at, marks=pytest.mark.sweep) for at in range(3, 12))])
def test_whatever_is_edited_nobody_moves_and_blocks_never_mix(seed):
    dice = random.Random(seed)
    mapping = small()
    mapping["cidr"] = dice.choice(["198.18.0.0/22", "198.18.0.0/24"])
    mapping["management"]["vrouter"] = str(IPNetwork(mapping["cidr"])[-6])
    mapping["addresses"] = {}
    mapping["addresses"] = book_of(mapping)
    for _ in range(30):
        before = copy.deepcopy(mapping["addresses"])
        realm = dice.choice([mapping["management"]["servers"], mapping["customers"]["customer1"]["hosts"]])
        if dice.random() < 0.7 or len(realm) < 2:
            number = dice.randrange(2, 100)
            if f"10.0.0.{number}" not in realm.values():
                realm[f"n{number}"] = f"10.0.0.{number}"
        else:
            del realm[dice.choice(list(realm))]
        reuse = dice.random() < 0.2
        after = book_of(mapping, reuse=reuse)
        mapping["addresses"] = after
        config = read(mapping)  # settled, nobody twice, no block with both kinds
        assert book_of(mapping, reuse=reuse) == after  # once more changes nothing

        def alias(entry: object) -> object:
            return entry["address"] if isinstance(entry, dict) else entry

        for name, entry in before.items():
            if name in after:
                assert alias(after[name]) == alias(entry)
            else:  # a released one, handed out again
                assert reuse
                assert entry["released"]
        assert len({str(alias) for alias in [*config.book.values(), *config.released.values()]}) == len(after)


# --- the project's defaults ------------------------------------------------------------------------------------------


def test_what_only_the_project_file_says_of_the_other_delivery_is_not_the_stacks(dev):
    defaults = {key: entry["default"] for key, entry in PROJECT.items() if "default" in entry}
    assert {key: defaults[key] for delivery in Delivery for key in only(delivery)} == {
        "sourceNat": "masquerade",
        "subnets": {},
        "standby": True,
        "vcnCidr": "",
        "balancerLimit": 3,
        "movesFrom": "",
        "gateways": {},
    }
    as_text = {key: str(value).lower() if isinstance(value, bool | int) else value for key, value in defaults.items()}
    for merged in (defaults, as_text):  # as a YAML file has them, and as the CLI hands them over
        assert read(without_foreign_defaults({**merged, **small()})) == read(small())
        assert any_config.read(without_foreign_defaults({**merged, **dev}), "dev") == any_config.read(dev, "dev")
    explicit = without_foreign_defaults({**defaults, **small(), "sourceNat": "static"})
    with pytest.raises(ConfigError, match="sourceNat"):
        read(explicit)
    said = without_foreign_defaults({**defaults, **small()}, said=["sourceNat"])
    with pytest.raises(ConfigError, match="sourceNat"):
        read(said)


@pytest.mark.parametrize(
    ("delivery", "key"),
    [
        (delivery, key)
        for delivery in Delivery
        for key in SETTINGS
        if key not in foreign(delivery) and key != "delivery"
    ],
)
def test_each_delivery_reads_each_of_its_keys(delivery, key):
    """The keys are one list for both: one that only one reader parses would be accepted, unread, by the other."""
    good = stack_mapping("dev") if delivery is Delivery.PRIVATE_IPS else small()
    any_config.read(good, "x")
    with pytest.raises(ConfigError) as refused:
        any_config.read({**good, key: [object]}, "x")
    assert any(problem.path.startswith(f"nat-pod:{key}") for problem in refused.value.problems)
