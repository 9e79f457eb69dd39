"""The plan of a routed POD: routes that decide who may send what, two NAT VMs a side, next hops.

Address plan: `small` of routed_pods.py: 198.18.0.0/22, the VCN's own 198.18.3.192/26 (NAT VM1 .192/29: VMs .194 and
.195, balancer .196; NAT VM2 .200/29: .202, .203, .204; vRouter .248/29), server 198.18.0.2, hosts from 198.18.2.2.
"""

import dataclasses
import random
from itertools import pairwise
from typing import Any

import pytest
from conftest import REPOSITORY, stack_mapping
from netaddr import IPAddress, IPNetwork, IPSet
from routed_pods import allocated, small

from nat_pod.config import any_config
from nat_pod.config.neighbours import is_customer_name
from nat_pod.errors import ConfigError
from nat_pod.limits import NSG_RULES
from nat_pod.names import INNER, LPGS, NAME, NAT_VM1, NAT_VM2, VROUTER, Role
from nat_pod.plan.document import read_document
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.rules import iptables


def plan_of(mapping: dict[str, Any]) -> PodPlan:
    return plan_pod(any_config.read(mapping, "x"), "x")


def with_hosts(count: int, **changes: Any) -> dict[str, Any]:
    """`small` with so many hosts in customer1, whose network is a /20."""
    mapping = {**small(), "addresses": {}, **changes}
    mapping["customers"]["customer1"] = {
        "cidr": "10.1.0.0/20",
        "hosts": {f"h{n}": str(IPNetwork("10.1.0.0/20")[n + 2]) for n in range(count)},
    }
    return allocated(mapping)


def scattered(seed: int) -> dict[str, Any]:
    """A POD whose servers and hosts have aliases all over the range, as one that was moved from a pinned layout."""
    dice = random.Random(seed)
    mapping = with_hosts(60)
    for number in range(8):
        mapping["management"]["servers"][f"s{number}"] = f"10.0.3.{number + 10}"
    blocks = [int(block.first) for block in IPNetwork("198.18.0.0/22").subnet(27)][:-2]
    dice.shuffle(blocks)
    of_servers, of_hosts = blocks[:4], blocks[4:16]
    taken: set[int] = set()

    def alias(choices: list[int]) -> str:
        found = next(a for a in iter(lambda: dice.choice(choices) + dice.randrange(32), None) if a not in taken)
        taken.add(found)
        return str(IPAddress(found))

    config, _, _ = any_config.draft({**mapping, "addresses": {}}, "x")
    assert config is not None
    mapping["addresses"] = {
        str(member.name): alias(of_servers if member.name.is_server else of_hosts) for member in config.members
    }
    return mapping


PODS = {
    "small": small,
    "no standby": lambda: {**small(), "standby": False},
    "routed": lambda: stack_mapping("routed"),
    "300 hosts": lambda: with_hosts(300),
    "the VCN elsewhere": lambda: allocated(
        {
            **small(),
            "vcnCidr": "198.18.1.0/25",
            "addresses": {},
            "management": {**small()["management"], "vrouter": "198.18.1.122"},
        }
    ),
    **{f"scattered {seed}": lambda seed=seed: scattered(seed) for seed in range(4)},
}


@pytest.fixture(params=PODS)
def plan(request: pytest.FixtureRequest) -> PodPlan:
    return plan_of(PODS[request.param]())


# --- routes: trust by route ------------------------------------------------------------------------------------------


def ways(plan: PodPlan, table: str, address: str) -> list[str]:
    """Where a table sends an address: next hops or customers."""
    return [
        str(rule.private_ip or rule.customer)
        for rule in plan.routes[table]
        if IPAddress(address) in IPNetwork(rule.destination)
    ]


def next_hop(plan: PodPlan, role: Role) -> str:
    by_balancer = [balancer.address for balancer in plan.balancers if balancer.role == role]
    return by_balancer[0] if by_balancer else plan.vms_of(role)[0].vnics[0].primary


def test_an_alias_has_a_route_in_just_the_tables_of_those_who_may_send_to_it(plan: PodPlan) -> None:
    to = {role: [next_hop(plan, role)] for role in plan.roles}
    nowhere: dict[str, list[str]] = {role: [] for one in plan.gateway_roles for role in (one, one.lpgs)}
    for server in plan.servers:
        found = {table: ways(plan, table, server.nat_vm1) for table in plan.routes}
        expected = {
            **dict.fromkeys(plan.gateway_roles, to[INNER]),
            **{role.lpgs: to[role] for role in plan.gateway_roles},
        }
        assert found == {**expected, NAT_VM2: [], VROUTER: []}
    for host in plan.hosts:
        found = {table: ways(plan, table, host.nat_vm2) for table in plan.routes}
        assert found == {**nowhere, NAT_VM2: to[plan.role(host.member)], VROUTER: to[INNER]}


def test_real_networks_are_led_to_by_one_table_each(plan: PodPlan) -> None:
    for customer in plan.customer_cidrs:
        tables = [table for table, rules in plan.routes.items() if customer in {rule.customer for rule in rules}]
        assert tables == [plan.gateways[customer]]
    for role in plan.gateway_roles:
        led = {rule.destination: rule.customer for rule in plan.routes[role] if rule.customer is not None}
        # Customers of two gateways may have the same network.
        own = {name: cidrs for name, cidrs in plan.customer_cidrs.items() if plan.gateways[name] == role}
        assert led == {cidr: name for name, cidrs in own.items() for cidr in cidrs}
    rules = {
        table: [r.private_ip for r in plan.routes[table] if r.destination in plan.management_cidrs]
        for table in plan.routes
    }
    assert {table: hops for table, hops in rules.items() if hops} == {NAT_VM2: [plan.vrouter_ip]}


def test_no_route_leads_into_the_range_of_the_vcn_or_overlaps_another_of_its_table(plan: PodPlan) -> None:
    for table in plan.routes.values():
        networks = sorted(IPNetwork(rule.destination) for rule in table if rule.customer is None)
        assert not any(IPSet([network]) & IPSet([plan.vcn_cidr]) for network in networks)
        assert all(one.last < other.first for one, other in pairwise(networks))


def test_neighbours_send_every_alias_that_is_theirs_and_management_the_vcn(plan: PodPlan) -> None:
    for customer in plan.customer_cidrs:
        assert {server.nat_vm1 for server in plan.servers} <= _covered(plan.neighbours[customer], plan.servers)
    management = IPSet(plan.neighbours["management"])
    assert all(host.nat_vm2 in management for host in plan.hosts)
    assert IPSet([plan.vcn_cidr]).issubset(management)


def _covered(networks: tuple[str, ...], slots: tuple) -> set[str]:
    space = IPSet(networks)
    return {slot.nat_vm1 for slot in slots if slot.nat_vm1 in space}


def test_a_block_that_is_begun_changes_route_tables_alone_and_nothing_that_neighbours_have() -> None:
    before, after = plan_of(with_hosts(29)), plan_of(with_hosts(40))
    assert before.neighbours == after.neighbours
    assert before.security == after.security
    assert before.subnets == after.subnets
    assert [rule.destination for rule in before.routes[VROUTER]] == ["198.18.2.0/27"]
    assert [rule.destination for rule in after.routes[VROUTER]] == ["198.18.2.0/26"]


# --- machines --------------------------------------------------------------------------------------------------------


def test_both_nat_vms_of_a_role_have_one_rule_document(plan: PodPlan) -> None:
    for role in plan.roles:
        vms = plan.vms_of(role)
        assert [vm.key for vm in vms] == [f"{role}a", f"{role}b"][: len(vms)]
        assert len({(vm.generation, vm.metadata["nat-pod-rules"], iptables.render(vm.rules)) for vm in vms}) == 1
        assert [vm.fault_domain for vm in vms] == ["FAULT-DOMAIN-1", "FAULT-DOMAIN-2"][: len(vms)]
        assert all(len(vm.vnics) == 1 and vm.vnics[0].secondaries == () for vm in vms)
    assert len({vm.generation for vm in plan.vms}) == len(plan.roles)


def test_every_address_of_the_pod_itself_is_apart_and_none_is_an_alias(plan: PodPlan) -> None:
    own = [vm.vnics[0].primary for vm in plan.vms] + [balancer.address for balancer in plan.balancers]
    own.append(plan.vrouter_ip)
    assert len(set(own)) == len(own)
    assert IPSet(own).issubset(IPSet([plan.vcn_cidr]))
    aliases = [slot.nat_vm1 for slot in plan.slots]
    assert len(set(aliases)) == len(aliases)
    assert not IPSet(aliases) & IPSet([plan.vcn_cidr])
    assert plan.way_in == plan.primary(NAT_VM1)


def test_a_side_with_a_standby_has_a_balancer_of_which_the_first_nat_vm_is_the_active_one() -> None:
    plan = plan_of(small())
    assert [vm.vnics[0].primary for vm in plan.vms] == ["198.18.3.194", "198.18.3.195", "198.18.3.202", "198.18.3.203"]
    one, two = plan.balancers
    assert (one.key, one.subnet, one.address) == ("natVm1", "natVm1", "198.18.3.196")
    assert (two.key, two.subnet, two.address) == ("natVm2", "natVm2", "198.18.3.204")
    assert [dataclasses.astuple(backend) for backend in two.backends] == [
        ("natVm2a", "198.18.3.202", False),
        ("natVm2b", "198.18.3.203", True),
    ]
    assert dataclasses.astuple(one.check) == (8198, "/", 1_000, 1_000, 3)
    flags = (one.preserves_addresses, one.instant_failover, one.tcp_reset, one.prefers_active, one.fail_open)
    assert flags == (True, True, False, True, False)
    assert (one.protocol, one.port, one.policy) == ("L3IP", 0, "THREE_TUPLE")


def test_without_a_standby_routes_lead_to_the_nat_vms_and_nothing_asks_them() -> None:
    plan = plan_of({**small(), "standby": False})
    assert [vm.key for vm in plan.vms] == ["natVm1a", "natVm2a"]
    assert plan.balancers == ()
    assert {rule.private_ip for rule in plan.routes[LPGS]} == {"198.18.3.194"}
    assert {rule.private_ip for rule in plan.routes[VROUTER]} == {"198.18.3.202"}
    assert not [rule for role in plan.roles for rule in plan.security[role] if rule.key.endswith("health")]


# --- security rules --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_security_rules_let_in_who_may_send_and_their_number_does_not_grow_with_hosts() -> None:
    plan = plan_of(small())
    table = {
        name: [(rule.direction.lower(), rule.protocol, rule.peer) for rule in rules if rule.direction == "INGRESS"]
        for name, rules in plan.security.items()
    }
    assert table == {
        NAT_VM1: [
            ("ingress", "all", "10.0.0.0/24"),
            ("ingress", "all", "10.0.1.0/24"),
            ("ingress", "all", "198.18.0.0/23"),  # servers' aliases, from NAT VM2
            ("ingress", "all", "198.18.3.200/29"),  # NAT VM2 itself: ssh, errors
            ("ingress", "6", "198.18.3.192/29"),  # the balancer's question
        ],
        NAT_VM2: [
            ("ingress", "all", "10.0.0.0/16"),
            ("ingress", "all", "198.18.2.0/23"),  # hosts' aliases, from NAT VM1
            ("ingress", "all", "198.18.3.192/29"),
            ("ingress", "6", "198.18.3.200/29"),
            ("ingress", "1", "198.18.3.248/29"),  # errors of the vRouter
        ],
        VROUTER: [
            ("ingress", "all", "198.18.2.0/23"),
            ("ingress", "all", "198.18.3.200/29"),
            ("ingress", "1", "0.0.0.0/0"),
        ],
    }
    few, many = plan_of(with_hosts(3)), plan_of(with_hosts(400))
    assert {key: len(rules) for key, rules in few.security.items()} == {
        key: len(rules) for key, rules in many.security.items()
    }
    assert len(few.subnets) == len(many.subnets) == 3
    assert len(few.vms) == len(many.vms) == 4


def test_each_rule_of_a_list_has_a_key_of_its_own_and_no_rule_names_an_nsg(plan: PodPlan) -> None:
    for rules in plan.security.values():
        assert len({rule.key for rule in rules}) == len(rules) <= NSG_RULES
        assert not any(rule.peer_is_nsg for rule in rules)


@pytest.mark.parametrize(("stack", "own"), [("dev", {"transit"}), ("routed", {"transit", "health"})])
def test_no_customer_can_be_called_as_a_rule_beside_its_own(stack: str, own: set[str]) -> None:
    mapping = stack_mapping(stack)
    plan, names = plan_of(mapping), set()
    for rules in plan.security.values():
        keys = {rule.key.removeprefix(f"{rule.direction.lower()}-") for rule in rules}
        if keys & plan.gateways.keys():
            names |= {key for key in keys - plan.gateways.keys() if NAME.fullmatch(key)}
    assert names == own
    customer = next(iter(mapping["customers"].values()))
    for name in own:
        assert not is_customer_name(name)
        with pytest.raises(ConfigError) as refused:
            plan_of({**mapping, "customers": {**mapping["customers"], name: customer}})
        assert f"nat-pod:customers.{name}: {name} is reserved by nat-pod; give the customer another name" in map(
            str, refused.value.problems
        )


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("standby", "port"), [(True, 8198), (False, None)])
def test_each_vm_knows_its_name_and_its_side_and_answers_where_a_balancer_asks(standby: bool, port: int | None) -> None:
    for vm in plan_of(small() | {"standby": standby}).vms:
        assert (vm.metadata["nat-pod-vm"], vm.metadata["nat-pod-side"]) == (vm.key, vm.role)
        document = read_document(vm.metadata["nat-pod-rules"])
        assert (document.vm, document.health) == (vm.role, port)


@pytest.mark.sweep
def test_more_hosts_than_fit_into_the_metadata_are_refused_with_figures() -> None:
    assert len(plan_of(with_hosts(1050, cidr="198.18.0.0/21", management=_vrouter("198.18.7.250"))).hosts) == 1051
    with pytest.raises(ConfigError) as refused:
        plan_of(with_hosts(1900, cidr="198.18.0.0/21", management=_vrouter("198.18.7.250")))
    assert "metadata of natVm1a: " in str(refused.value)
    assert "more than fit: OCI takes 32000" in str(refused.value)


def _vrouter(address: str) -> dict[str, Any]:
    return {**small()["management"], "vrouter": address}


@pytest.mark.slow
def test_more_blocks_apart_than_a_route_table_has_rules_are_refused() -> None:
    mapping = with_hosts(210, cidr="198.18.0.0/16", management=_vrouter("198.18.255.250"))
    for number in range(210):  # every other block
        mapping["addresses"][f"customer1/h{number}"] = str(IPAddress("198.18.128.1") + 64 * number)
    with pytest.raises(ConfigError) as refused:
        plan_of(mapping)
    assert [problem.rule for problem in refused.value.problems] == [
        "natVm2 needs 211 route rules; a table has 200",
        "vrouter needs 210 route rules; a table has 200",
    ]


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def routed(project):
    (project / "Pulumi.routed.yaml").write_bytes((REPOSITORY / "Pulumi.routed.yaml").read_bytes())
    return project


@pytest.mark.parametrize(("options", "name"), [((), "plan-routed.txt"), (("--json",), "plan-routed.json")])
def test_what_plan_says_of_the_example(routed, run, golden, options, name):
    status, out, err = run("plan", "routed", *options)
    assert (status, err) == (0, "")
    golden(name, out)


def test_plan_without_a_standby_says_what_that_means(routed, run):
    text = (routed / "Pulumi.routed.yaml").read_text(encoding="utf-8")
    (routed / "Pulumi.routed.yaml").write_text(text.replace("standby: true", "standby: false"), encoding="utf-8")
    _, out, _ = run("plan", "routed")
    assert "3 x VM.Standard.E5.Flex, 1 OCPU, 8 GB" in out
    assert "standby none: a NAT VM that stops takes every flow with it" in out
    assert "NAT VM1 198.18.11.194" in out
    assert "balancer" not in out


@pytest.mark.slow
def test_check_counts_the_balancers_of_all_pods_of_a_region(project, run):
    text = (REPOSITORY / "Pulumi.routed.yaml").read_text(encoding="utf-8").replace("oc1..example", "oc1..aaaa")
    second = text
    for number in range(8, 12):
        second = second.replace(f"198.18.{number}.", f"198.18.{number + 20}.")
    (project / "Pulumi.north.yaml").write_text(text, encoding="utf-8")
    (project / "Pulumi.south.yaml").write_text(second, encoding="utf-8")
    status, out, _ = run("check", "north", "south")
    assert status == 1
    assert out.count("the PODs of its region (north, south) take 6 network load balancers together; ask Oracle") == 2
    for changed in (
        text.replace("standby: true", "standby: false"),
        text.replace("standby: true", "balancerLimit: 6"),
        text.replace("uk-london-1", "eu-frankfurt-1"),
        text.replace("oc1..aaaa", "oc1..example"),
    ):
        (project / "Pulumi.north.yaml").write_text(changed, encoding="utf-8")
        status, out, _ = run("check", "north", "south")
        south = out.split("Pulumi.south.yaml")[1]
        assert ("take 6" in south) == ("balancerLimit: 6" in changed)
        assert "take 6" not in out.split("Pulumi.south.yaml")[0]


def test_the_article_has_no_lines_for_a_routed_pod(routed, run):
    assert run("rules", "routed", "--vm", "natVm1", "--article") == (
        1,
        "",
        "rules --article: the article has no PODs with delivery: routes; leave out --article\n",
    )
    status, out, _ = run("rules", "routed", "--vm", "natVm2")
    assert status == 0
    assert "--to-destination 10.0.0.100" in out


@pytest.mark.slow
def test_rules_are_printed_of_each_role_and_of_each_vm(routed, run):
    texts = {
        vm: run("rules", "routed", "--vm", vm)[1] for vm in ("natVm1", "natVm1b", "natVm1-2", "natVm1-2a", "natVm2")
    }
    assert texts["natVm1"] == texts["natVm1b"]
    assert texts["natVm1-2"] == texts["natVm1-2a"]
    assert len(set(texts.values())) == 3
    assert "maple/web" in texts["natVm1-2"]
    assert "maple/web" not in texts["natVm1"]
    status, out, err = run("rules", "routed", "--vm", "natVm3")
    assert (status, out) == (1, "")
    assert err.startswith(
        "rules --vm natVm3: POD routed has no such NAT VM; it has natVm1, natVm1a, natVm1b, natVm1-2,"
    )
