"""The life of a POD under the real Pulumi engine, against the simulated region.

Every test starts from a copy of one POD that stands (dev, its neighbours in place), changes one thing and looks at
what the engine plans, what it asks of the region, in which order, and what then stands there.
"""

import ast
import base64
import copy
import gzip
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.pods import SLASH_22, full_pod, stack_config
from nat_pod.config.model import PodConfig
from nat_pod.lab import surroundings
from nat_pod.lab.engine.engine import Engine, EngineError, Run, find_cli
from nat_pod.lab.region.file import RegionFile
from nat_pod.lab.region.kinds import (
    INSTANCE,
    LPG,
    PRIVATE_IP,
    ROUTE_TABLE,
    SUBNET,
    VCN,
    VNIC_ATTACHMENT,
)
from nat_pod.lab.region.region import Region
from nat_pod.lab.region.store import Limits
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.diff import compare

pytestmark = [pytest.mark.engine, pytest.mark.runs_commands]

REPOSITORY = Path(__file__).resolve().parent.parent
REALMS = ("customer1", "customer2", "management")


@pytest.fixture(scope="module")
def cli() -> Path:
    found = find_cli()
    if found is None:
        pytest.skip("no Pulumi CLI: .ci/pulumi/install makes sure there is one")
    return found


@dataclass
class Pod:
    """A stack with its own copy of the stack file, and the region it is in."""

    engine: Engine
    region: RegionFile
    config: dict[str, Any]

    @classmethod
    def new(
        cls, base: Path, cli: Path, stack: str = "dev", directory: Path = REPOSITORY, region: Region | None = None
    ) -> "Pod":
        config = yaml.safe_load((REPOSITORY / f"Pulumi.{stack}.yaml").read_text(encoding="utf-8"))["config"]
        shared = RegionFile.make(base / "region", region or Region("uk-london-1"))
        pod = cls(Engine(directory, stack, shared.path, cli, stack_file=base / "stack.yaml"), shared, config)
        pod.save()
        return pod

    def copy(self, base: Path, cli: Path, directory: Path = REPOSITORY) -> "Pod":
        source = self.region.path.parent
        shutil.copytree(source, base, symlinks=True)
        engine = Engine(directory, self.engine.stack, base / "region", cli, stack_file=base / "stack.yaml")
        return Pod(engine, RegionFile(base / "region"), copy.deepcopy(self.config))

    def save(self) -> None:
        self.engine.stack_file.write_text(yaml.safe_dump({"config": self.config}), encoding="utf-8")

    def change(self, **settings: Any) -> None:
        """Set keys of nat-pod in the stack file; a function gets the value and changes it in place."""
        for key, value in settings.items():
            if callable(value):
                value(self.config[f"nat-pod:{key}"])
            else:
                self.config[f"nat-pod:{key}"] = value
        self.save()

    def plan(self) -> PodPlan:
        """What the stack file as it is now asks for."""
        own = {key.removeprefix("nat-pod:"): value for key, value in self.config.items() if "nat-pod:" in key}
        return plan_pod(PodConfig.from_mapping(own, self.engine.stack), self.engine.stack)

    def neighbours(self) -> None:
        surroundings.build(self.plan(), self.region, self.engine.outputs())

    def find(self, type_token: str, key: str) -> str:
        ocid = self.region.find(type_token, f"nat-pod-{self.engine.stack}-{key}")
        assert ocid is not None, f"no {type_token} {key}"
        return ocid

    def routes(self, key: str) -> list[Any]:
        """The rules of a route table."""
        found: list[Any] = self.region.read(self.find(ROUTE_TABLE, key))["routeRules"]
        return found

    def standing(self) -> set[str]:
        """OCIDs of what carries flows."""
        return {record.ocid for record in self.region.all(VCN, SUBNET, INSTANCE, VNIC_ATTACHMENT, LPG, PRIVATE_IP)}

    def tamper(self, type_token: str, key: str, change: Callable[[Any], Any]) -> None:
        """Change a resource past the program, as somebody would in the console."""
        ocid = self.find(type_token, key)
        inputs = copy.deepcopy(self.region.get(ocid).inputs)
        change(inputs)
        self.region.update(ocid, inputs)

    def after_changes(self, count: int, act: Callable[[], None]) -> None:
        """Act once the region has accepted so many changes."""
        end = time.monotonic() + 60
        while len(self.region.changes()) < count and time.monotonic() < end:
            time.sleep(0.01)
        act()

    def apply(self) -> tuple[Run, list[tuple[str, str]]]:
        """`up`; returns what it planned, and what it did to the region, in order, as (do, name)."""
        names = {record.ocid: record.name for record in self.region.all(*self.region.kinds())}
        before = len(self.region.changes())
        up = self.engine.up()
        changes = self.region.changes()[before:]
        return up, [(change["do"], change.get("name") or names[change["ocid"]]) for change in changes]


ARTICLES, ROUTED = "## What the engine plans", "## What it plans for a routed POD"


def table(heading: str = ARTICLES) -> dict[str, dict[str, int]]:
    """A table of docs/engine.md: change to counts, as the CLI names them."""
    text = (REPOSITORY / "docs" / "engine.md").read_text(encoding="utf-8").split(heading)[1]
    head, _, *rows = (line.strip("| ").split("|") for line in text.split("\n\n")[2].strip().splitlines())
    operations = [cell.strip() for cell in head[1:5]]
    return {
        change.strip(): {op: int(cell) for op, cell in zip(operations, cells, strict=False) if cell.strip()}
        for change, *cells in rows
    }


def documented(change: str, heading: str = ARTICLES) -> dict[str, int]:
    """What the table says of one change."""
    return table(heading)[change]


def held_by(file: Path) -> list[str]:
    """The rows that the tests of a file compare with what the engine planned."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return sorted(
        call.args[0].value
        for compared in ast.walk(tree)
        if isinstance(compared, ast.Compare)
        for call in ast.walk(compared)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == documented.__name__
    )


def test_each_row_of_the_table_is_held_by_a_test() -> None:
    assert held_by(Path(__file__)) == sorted(table())


def planned(run: Run) -> dict[str, list[str]]:
    """Operation to sorted names without the component's prefix; the stack's own outputs do not count."""
    found: dict[str, list[str]] = {}
    for step in run.steps:
        if step.type != "pulumi:pulumi:Stack":
            found.setdefault(step.op, []).append(step.name.split("-", 3)[-1])
    return {op: sorted(names) for op, names in found.items()}


@dataclass
class NewPod:
    """dev from nothing to its second `up`, and what was planned and said on the way."""

    pod: Pod
    first: Run
    routes_after_first: list[Any]
    asked_again: Run
    second: Run


@pytest.fixture(scope="module")
def new_pod(tmp_path_factory: pytest.TempPathFactory, cli: Path) -> NewPod:
    pod = Pod.new(tmp_path_factory.mktemp("engine") / "pod", cli)
    first = pod.engine.up()
    routes, again = pod.routes("natVm2"), pod.engine.preview()
    pod.neighbours()
    return NewPod(pod, first, routes, again, pod.engine.up())


@pytest.fixture(scope="module")
def standing(new_pod: NewPod) -> Pod:
    """dev after the two `up` of a new POD."""
    return new_pod.pod


@dataclass
class Applied:
    """A change of a POD that stood: what `up` planned and did to the region, and what carried flows before."""

    pod: Pod
    before: set[str]
    up: Run
    done: list[tuple[str, str]]

    @classmethod
    def to(cls, pod: Pod, **settings: Any) -> "Applied":
        before = pod.standing()
        pod.change(**settings)
        return cls(pod, before, *pod.apply())


@pytest.fixture
def pod(standing: Pod, tmp_path: Path, cli: Path) -> Pod:
    return standing.copy(tmp_path / "pod", cli)


def test_a_new_pod_is_planned_as_documented(new_pod: NewPod) -> None:
    assert new_pod.first.counts == documented("new POD, first `up`")


def test_the_first_up_says_that_the_vrouter_is_not_there_and_makes_no_route_to_it(new_pod: NewPod) -> None:
    (warning,) = new_pod.first.warnings
    assert "No private IP 198.18.0.167 in subnet nat-pod-dev-vrouter yet" in warning
    assert "then run `pulumi up` again" in warning
    assert new_pod.routes_after_first == []


def test_until_the_vrouter_is_there_every_preview_says_it_again(new_pod: NewPod) -> None:
    (warning,) = new_pod.asked_again.warnings
    assert "then run `pulumi up` again" in warning


def test_the_second_up_makes_the_route_to_the_vrouter_and_nothing_else(new_pod: NewPod) -> None:
    assert new_pod.second.counts == documented("second `up`, once the vRouter is there")
    assert planned(new_pod.second) == {"update": ["natVm2"]}
    assert not new_pod.second.warnings
    (rule,) = new_pod.pod.routes("natVm2")
    assert rule["destination"] == "10.0.0.0/16"
    assert new_pod.pod.region.read(rule["networkEntityId"])["ipAddress"] == "198.18.0.167"


def test_the_route_stays_through_a_fail_over_and_follows_the_address(pod: Pod) -> None:
    """While the address is nowhere, an emptied table would cut the POD off until somebody runs `up` once more."""

    def rules() -> list[Any]:
        found: list[Any] = pod.region.read(pod.find(ROUTE_TABLE, "natVm2"))["routeRules"]
        return found

    before = rules()
    floating = str(pod.region.find(PRIVATE_IP, "vrouter floating, POD"))
    vnic = pod.region.read(floating)["vnicId"]
    pod.region.delete(floating)

    up = pod.engine.up()
    assert (planned(up), rules()) == ({}, before)
    (warning,) = up.warnings
    assert f"NAT VM2 keeps the route that it has, 10.0.0.0/16 to {floating}" in warning
    assert not pod.engine.refresh().counts
    assert not planned(pod.engine.preview())
    # What else changes meanwhile goes through.
    pod.change(sourceNat="static")
    assert planned(pod.engine.up()) == {"update": ["natVm1", "natVm2"]}
    assert rules() == before

    new = pod.region.create(PRIVATE_IP, {"vnicId": vnic, "ipAddress": "198.18.0.167"}, "of the other vRouter")[0]
    second = pod.engine.up()
    assert (planned(second), second.warnings) == ({"update": ["natVm2"]}, ())
    assert [rule["networkEntityId"] for rule in rules()] == [new] != [floating]
    pod.engine.expect_no_changes()


def test_a_route_that_somebody_took_out_is_not_there_to_stay(pod: Pod) -> None:
    pod.region.delete(str(pod.region.find(PRIVATE_IP, "vrouter floating, POD")))
    pod.tamper(ROUTE_TABLE, "natVm2", lambda inputs: inputs.update(routeRules=[]))
    assert planned(pod.engine.refresh()) == {"update": ["natVm2"]}
    preview = pod.engine.preview()
    assert not planned(preview)
    assert "yet, so NAT VM2 has no route to 10.0.0.0/16" in preview.warnings[0]


def test_nothing_changed_is_nothing_to_do(pod: Pod) -> None:
    assert not pod.engine.refresh().counts
    assert pod.engine.preview().counts == documented("no change, with or without `refresh`")


def test_added_host_touches_metadata_and_its_own_addresses(pod: Pod) -> None:
    pod.change(
        customers=lambda customers: customers["customer1"]["hosts"].update(vm3="10.0.0.131"),
        addresses=lambda book: book.update({"customer1/vm3": {"natVm1": "198.18.0.4", "natVm2": "198.18.0.132"}}),
    )
    before = pod.standing()
    up = pod.engine.up()
    assert up.counts == documented("host added")
    # Under masquerade NAT VM2 translates by prefix, so a host is no news to it.
    assert planned(up) == {"update": ["natVm1"], "create": ["198.18.0.132", "198.18.0.4"]}
    assert paths(up) == {"natVm1": {"metadata.nat-pod-rules"}}
    assert before < pod.standing()
    pod.engine.expect_no_changes()


@pytest.fixture(scope="module")
def server_added(standing: Pod, tmp_path_factory: pytest.TempPathFactory, cli: Path) -> Applied:
    return Applied.to(
        standing.copy(tmp_path_factory.mktemp("server") / "pod", cli),
        management=lambda management: management["servers"].update(logs="10.0.0.200"),
        addresses=lambda book: book.update({"management/logs": {"natVm1": "198.18.0.5", "natVm2": "198.18.0.133"}}),
    )


def test_added_server_touches_metadata_and_its_own_addresses(server_added: Applied) -> None:
    assert server_added.up.counts == documented("server added")
    assert planned(server_added.up) == {
        "update": ["natVm1", "natVm2"],
        "create": ["198.18.0.133", "198.18.0.5"],
    }


def test_added_server_leaves_what_stands_and_nothing_to_do(server_added: Applied) -> None:
    assert server_added.before < server_added.pod.standing()
    server_added.pod.engine.expect_no_changes()


def test_removed_server_touches_metadata_and_its_own_addresses(
    server_added: Applied, tmp_path: Path, cli: Path
) -> None:
    removed = Applied.to(
        server_added.pod.copy(tmp_path / "pod", cli),
        management=lambda management: management["servers"].pop("logs"),
        addresses=lambda book: book.pop("management/logs"),
    )
    assert removed.up.counts == documented("server removed")
    assert planned(removed.up) == {"update": ["natVm1", "natVm2"], "delete": ["198.18.0.133", "198.18.0.5"]}
    assert removed.pod.standing() == server_added.before


@pytest.fixture(scope="module")
def pair_filled(standing: Pod, tmp_path_factory: pytest.TempPathFactory, cli: Path) -> Applied:
    """29 hosts more, which take a VNIC pair of their own."""
    hosts = {f"new{number}": number for number in range(29)}
    return Applied.to(
        standing.copy(tmp_path_factory.mktemp("pair") / "pod", cli),
        subnets=lambda subnets: [
            subnets["natVm1"].append("198.18.0.192/27"),
            subnets["natVm2"].append("198.18.0.224/27"),
        ],
        customers=lambda customers: customers["customer1"]["hosts"].update(
            {host: f"10.0.0.{200 + number}" for host, number in hosts.items()}
        ),
        addresses=lambda book: book.update(
            {
                f"customer1/{host}": {"natVm1": f"198.18.0.{194 + number}", "natVm2": f"198.18.0.{226 + number}"}
                for host, number in hosts.items()
            }
        ),
    )


def test_hosts_that_fill_a_vnic_pair_bring_the_pair(pair_filled: Applied) -> None:
    assert pair_filled.up.counts == documented("29 hosts on a new VNIC pair")
    assert pair_filled.before < pair_filled.pod.standing()
    attachment = pair_filled.pod.region.read(pair_filled.pod.find(VNIC_ATTACHMENT, "natVm1-vnic-3"))
    assert attachment["createVnicDetails"]["privateIp"] == "198.18.0.194"
    pair_filled.pod.engine.expect_no_changes()


def test_hosts_that_filled_a_vnic_pair_take_it_along(
    pair_filled: Applied, standing: Pod, tmp_path: Path, cli: Path
) -> None:
    pod = pair_filled.pod.copy(tmp_path / "pod", cli)
    pod.config = copy.deepcopy(standing.config)
    removed = Applied.to(pod)
    assert removed.up.counts == documented("these 29 removed")
    assert pod.standing() == pair_filled.before
    pod.engine.expect_no_changes()


def test_removed_host_takes_only_its_addresses_along(pod: Pod) -> None:
    pod.change(customers=lambda customers: customers["customer2"].update(hosts={}))
    pod.config["nat-pod:addresses"].pop("customer2/vm2")
    pod.save()
    gone = {pod.find(PRIVATE_IP, address) for address in ("198.18.0.3", "198.18.0.131")}
    before = pod.standing()
    up = pod.engine.up()
    assert up.counts == documented("host removed")
    assert planned(up) == {"update": ["natVm1"], "delete": ["198.18.0.131", "198.18.0.3"]}
    assert before - pod.standing() == gone


def test_slot_that_passes_to_another_host_is_left_alone(pod: Pod) -> None:
    """Its addresses stay, so do the flows of everybody else; what it leads to is a matter of the rules."""
    pod.change(
        customers=lambda customers: customers["customer2"].update(hosts={"vm3": "10.0.1.101"}),
        addresses=lambda book: book.update({"customer2/vm3": book.pop("customer2/vm2")}),
    )
    before = pod.standing()
    assert planned(pod.engine.up()) == {"update": ["natVm1"]}
    assert pod.standing() == before


def test_last_host_of_a_vnic_pair_takes_the_pair_along(pod: Pod) -> None:
    pod.change(
        customers=lambda customers: customers["customer1"]["hosts"].pop("vm2"),
        addresses=lambda book: book.pop("customer1/vm2"),
    )
    up, done = pod.apply()
    assert up.counts == documented("last host of a VNIC pair removed")
    # The VNICs go before the subnets they are in, and the rules stop using them before that.
    assert [do for do, _ in done] == ["update"] * 3 + ["delete"] * 5
    assert {name for do, name in done if do == "delete"} == {"nat-pod-dev-natVm1-vnic-2", "nat-pod-dev-natVm2-vnic-2"}
    assert len(pod.region.all(SUBNET)) == len(REALMS) + 3
    pod.engine.expect_no_changes()


@pytest.fixture(scope="module")
def customer_added(standing: Pod, tmp_path_factory: pytest.TempPathFactory, cli: Path) -> Applied:
    return Applied.to(
        standing.copy(tmp_path_factory.mktemp("customer") / "pod", cli),
        customers=lambda customers: customers.update(customer3={"cidr": "10.0.2.0/24", "hosts": {"vm1": "10.0.2.5"}}),
        addresses=lambda book: book.update({"customer3/vm1": {"natVm1": "198.18.0.4", "natVm2": "198.18.0.132"}}),
    )


def test_added_customer_brings_its_gateway_its_rules_and_its_routes(customer_added: Applied) -> None:
    assert customer_added.up.counts == documented("customer added, one host")
    assert planned(customer_added.up) == {
        "create": ["198.18.0.132", "198.18.0.4", "customer3", "natVm1-egress-customer3", "natVm1-ingress-customer3"],
        "update": ["natVm1", "natVm1"],
    }
    assert paths(customer_added.up)["natVm1"] == {"routeRules", "metadata.nat-pod-rules"}


def test_added_customer_leaves_the_others_alone_and_nothing_to_do(customer_added: Applied) -> None:
    assert customer_added.before < customer_added.pod.standing()
    customer_added.pod.engine.expect_no_changes()


def test_removed_customer_leaves_the_others_alone(customer_added: Applied, tmp_path: Path, cli: Path) -> None:
    removed = Applied.to(
        customer_added.pod.copy(tmp_path / "pod", cli),
        customers=lambda customers: customers.pop("customer3"),
        addresses=lambda book: book.pop("customer3/vm1"),
    )
    assert removed.up.counts == documented("customer removed")
    # OCI refuses to delete a gateway while a route points to it.
    done = removed.done
    assert done.index(("update", "nat-pod-dev-natVm1")) < done.index(("delete", "nat-pod-dev-customer3"))
    assert removed.pod.standing() == customer_added.before


def test_removed_customer_whose_gateway_is_peered(pod: Pod) -> None:
    gone = {pod.find(LPG, "customer2")} | {pod.find(PRIVATE_IP, address) for address in ("198.18.0.3", "198.18.0.131")}
    before = pod.standing()
    pod.change(customers=lambda customers: customers.pop("customer2"), addresses=lambda book: book.pop("customer2/vm2"))
    pod.engine.up()
    assert before - pod.standing() == gone
    assert pod.region.read(str(pod.region.find(LPG, "customer2/lpg")))["peeringStatus"] == "REVOKED"


def test_renamed_customer_keeps_its_gateway_and_its_addresses(pod: Pod) -> None:
    """A new gateway would end the peering, and one that was ever peered cannot be peered again."""

    def rename(customers: Any) -> None:
        customers["acme"] = {**customers.pop("customer2"), "formerly": "customer2"}

    before = pod.standing()
    pod.change(customers=rename, addresses=lambda book: book.update({"acme/vm2": book.pop("customer2/vm2")}))
    gateway = pod.find(LPG, "customer2")
    up = pod.engine.up()
    assert up.counts == documented("customer renamed (`formerly`)")
    assert planned(up) == {
        # New rules first, then the old ones go: there is no moment without a rule.
        "create": ["natVm1-egress-acme", "natVm1-ingress-acme"],
        "update": ["acme", "natVm1"],
        "delete": ["natVm1-egress-customer2", "natVm1-ingress-customer2"],
    }
    assert pod.standing() == before
    assert pod.region.read(gateway)["peeringStatus"] == "PEERED"
    assert pod.region.read(gateway)["displayName"] == "nat-pod-dev-acme"
    pod.engine.expect_no_changes()


def test_renamed_host_is_another_note_in_the_rules_and_no_flow_ends(pod: Pod) -> None:
    def rename(customers: Any) -> None:
        customers["customer1"].update(hosts={"web": "10.0.0.100", "vm2": "10.0.0.130"}, hostsFormerly={"web": "vm1"})

    before, old = pod.standing(), pod.plan()
    pod.change(customers=rename, addresses=lambda book: book.update({"customer1/web": book.pop("customer1/vm1")}))
    up = pod.engine.up()
    assert up.counts == documented("host renamed (`hostsFormerly`)")
    assert_only_notes_differ(pod, before, old, up)


def test_renamed_server_is_another_note_in_the_rules_and_no_flow_ends(pod: Pod) -> None:
    def rename(management: Any) -> None:
        management.update(servers={"app": "10.0.0.100"}, serversFormerly={"app": "mgmt"})

    before, old = pod.standing(), pod.plan()
    pod.change(management=rename, addresses=lambda book: book.update({"management/app": book.pop("management/mgmt")}))
    up = pod.engine.up()
    assert up.counts == documented("server renamed (`serversFormerly`)")
    assert_only_notes_differ(pod, before, old, up)


def assert_only_notes_differ(pod: Pod, before: set[str], old: PodPlan, up: Run) -> None:
    difference = compare(old, pod.plan())
    assert difference.before
    assert (difference.ended, difference.gained, len(difference.renamed)) == (frozenset(), (), 1)
    assert set().union(*paths(up).values()) == {"metadata.nat-pod-rules"}
    assert set(planned(up)) == {"update"}
    assert pod.standing() == before


def test_a_range_grows_around_pinned_subnets_and_nothing_that_carries_flows_is_replaced(pod: Pod) -> None:
    before = pod.standing()
    pod.change(cidr="198.18.0.0/21")
    assert pod.engine.up().counts == documented("range grown, `subnets` pinned")
    assert pod.standing() == before

    def pair(subnets: Any) -> None:
        subnets["natVm1"].append("198.18.4.0/27")
        subnets["natVm2"].append("198.18.6.0/27")

    pod.change(
        subnets=pair,
        customers=lambda customers: customers["customer2"]["hosts"].update(far="10.0.1.7"),
        addresses=lambda book: book.update({"customer2/far": {"natVm1": "198.18.4.3", "natVm2": "198.18.6.3"}}),
    )
    assert set(planned(pod.engine.up())) <= {"create", "update"}
    assert before <= pod.standing()
    pod.engine.expect_no_changes()


def test_changed_source_policy_changes_metadata_alone(pod: Pod) -> None:
    pod.change(sourceNat="static")
    before = pod.standing()
    up = pod.engine.up()
    assert up.counts == documented("source policy changed")
    assert planned(up) == {"update": ["natVm1", "natVm2"]}
    assert paths(up) == {"natVm1": {"metadata.nat-pod-rules"}, "natVm2": {"metadata.nat-pod-rules"}}
    assert pod.standing() == before


def test_changed_shape_is_refused_where_it_would_reboot_a_vm(pod: Pod) -> None:
    pod.change(natVm=lambda vm: vm.update(shape="VM.Standard2.16"))
    preview = pod.engine.preview()
    assert preview.counts == documented("shape changed")
    assert planned(preview) == {"update": ["natVm1", "natVm2"]}
    with pytest.raises(EngineError, match=r"nat-pod-dev-natVm1: 409-Conflict, the update of shape needs a reboot"):
        pod.engine.up()


def test_changed_image_is_planned_in_place(pod: Pod) -> None:
    pod.change(natVm=lambda vm: vm.update(imageId="ocid1.image.oc1.uk-london-1.another"))
    preview = pod.engine.preview()
    assert preview.counts == documented("image changed")
    assert paths(preview) == {"natVm1": {"sourceDetails.sourceId"}, "natVm2": {"sourceDetails.sourceId"}}


def test_changed_ssh_key_is_planned_as_a_replacement(pod: Pod) -> None:
    pod.change(natVm=lambda vm: vm.update(sshPublicKey=f"{vm['sshPublicKey']}2"))
    preview = pod.engine.preview()
    assert preview.counts == documented("ssh key changed")
    assert {step.replaced_by for step in preview.steps if step.type == INSTANCE} == {("metadata",)}


def copied_program(directory: Path) -> Path:
    """The program, to be changed."""
    for name in ("nat_pod", "cloud-init", "neighbours"):
        shutil.copytree(REPOSITORY / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__main__.py", "Pulumi.yaml"):
        shutil.copy(REPOSITORY / name, directory / name)
    return directory


def next_release(release: Path) -> Path:
    """The program with a bootstrap of other bytes."""
    copied_program(release)
    artefact = release / "cloud-init" / "user-data.b64"
    config = gzip.decompress(base64.b64decode(artefact.read_text(encoding="ascii")))
    artefact.write_bytes(base64.b64encode(gzip.compress(config + b"# next release\n", mtime=0)))
    return release


def test_new_bootstrap_replaces_one_vm_and_then_the_other(standing: Pod, tmp_path: Path, cli: Path) -> None:
    release = next_release(tmp_path / "release")
    pod = standing.copy(tmp_path / "pod", cli, release)

    preview = pod.engine.preview()
    assert preview.counts == documented("bootstrap changed")
    assert planned(preview) == {
        "replace": ["198.18.0.131", "198.18.0.3", "natVm1", "natVm1-vnic-2", "natVm2", "natVm2-vnic-2"],
        "update": ["lpgs"],  # leads to NAT VM1's primary private IP, which is another one then
    }
    changed = paths(preview)
    assert changed.pop("lpgs")
    assert changed == {"natVm1": {"metadata.user_data"}, "natVm2": {"metadata.user_data"}}
    reasons = {step.name.removeprefix("nat-pod-dev-"): step.replaced_by for step in preview.steps if step.replaced_by}
    assert reasons == {"natVm1": ("metadata",), "natVm2": ("metadata",)}

    addresses = {str(ip.facts["ipAddress"]) for ip in pod.region.all(PRIVATE_IP)}
    _, done = pod.apply()
    order = [done.index((do, f"nat-pod-dev-{vm}")) for vm in ("natVm1", "natVm2") for do in ("delete", "create")]
    assert order == sorted(order), "the second VM was touched before the first had been launched again"
    assert {str(ip.facts["ipAddress"]) for ip in pod.region.all(PRIVATE_IP)} == addresses
    for table in ("natVm1", "natVm2", "lpgs"):
        assert pod.region.read(pod.find(ROUTE_TABLE, table))["routeRules"]
    targets = {rule["networkEntityId"] for rule in pod.region.read(pod.find(ROUTE_TABLE, "lpgs"))["routeRules"]}
    assert {pod.region.read(target)["ipAddress"] for target in targets} == {"198.18.0.2"}
    pod.engine.expect_no_changes()


def test_refresh_finds_what_others_changed_and_up_repairs_it(pod: Pod) -> None:
    region = pod.region
    before = {kind: len(region.all(kind)) for kind in region.kinds()}
    region.delete(pod.find(PRIVATE_IP, "198.18.0.3"))
    pod.tamper(ROUTE_TABLE, "natVm1", lambda inputs: inputs["routeRules"].pop())
    for kind, key in ((INSTANCE, "natVm1"), (VNIC_ATTACHMENT, "natVm2-vnic-2")):
        pod.tamper(kind, key, lambda inputs: inputs["createVnicDetails"].update(skipSourceDestCheck=False))

    assert planned(pod.engine.refresh()) == {
        "delete": ["198.18.0.3"],
        "update": ["natVm1", "natVm1", "natVm2-vnic-2"],
    }
    preview = pod.engine.preview()
    assert preview.counts == documented("drift: a private IP deleted, a route rule taken out, two checks switched on")
    assert planned(preview) == {"create": ["198.18.0.3"], "update": ["natVm1", "natVm1", "natVm2-vnic-2"]}
    assert paths(preview)["natVm2-vnic-2"] == {"createVnicDetails.skipSourceDestCheck"}
    pod.engine.up()
    assert {kind: len(region.all(kind)) for kind in region.kinds()} == before
    for kind, key in ((INSTANCE, "natVm1"), (VNIC_ATTACHMENT, "natVm2-vnic-2")):
        assert region.read(pod.find(kind, key))["createVnicDetails"]["skipSourceDestCheck"] is True
    pod.engine.refresh()
    pod.engine.expect_no_changes()


def test_interrupted_up_is_resumed_by_the_next(tmp_path: Path, cli: Path) -> None:
    pod = Pod.new(tmp_path, cli)
    interrupter = threading.Thread(target=pod.after_changes, args=(15, pod.engine.interrupt))
    interrupter.start()
    with pytest.raises(EngineError, match="update canceled"):
        pod.engine.up()
    interrupter.join()
    made = len(pod.region.changes())
    assert made >= 15

    assert pod.engine.up().counts["create"]
    pod.engine.expect_no_changes()
    assert all(change["do"] == "create" for change in pod.region.changes()), "nothing was made twice"


def test_refused_resource_is_named_and_the_rest_goes_on_later(tmp_path: Path, cli: Path) -> None:
    pod = Pod.new(tmp_path, cli, region=Region(limits=Limits(lpgs=1)))
    with pytest.raises(EngineError, match=r"nat-pod-dev-customer[12]: 400-LimitExceeded"):
        pod.engine.up()
    raised = tmp_path / "region"
    raised.write_text(raised.read_text(encoding="utf-8").replace('"lpgs": 1,', '"lpgs": 2,', 1), encoding="utf-8")
    pod.engine.up()
    pod.engine.expect_no_changes()


def test_destroy_leaves_an_empty_region(tmp_path: Path, cli: Path) -> None:
    pod = Pod.new(tmp_path, cli)
    pod.engine.up()
    made = len(pod.region.changes())
    assert pod.engine.destroy().counts == documented("`destroy`")
    assert len(pod.region.changes()[made:]) == 30, "what dies with its VM is not asked for"
    assert pod.region.kinds() == []
    assert pod.engine.resources() == []


def test_destroy_waits_for_the_vrouters_owner(pod: Pod) -> None:
    with pytest.raises(EngineError, match=r"nat-pod-dev-vrouter: 409-Conflict, The Subnet .* references the VNIC"):
        pod.engine.destroy()
    pod.region.delete(str(pod.region.find(VNIC_ATTACHMENT, "vrouter-vnic-2")))
    pod.engine.destroy()
    assert [record.name for record in pod.region.all(*pod.region.kinds()) if "nat-pod" in record.name] == []


def test_ten_customers_beside_dev_in_one_region(standing: Pod, tmp_path: Path, cli: Path) -> None:
    dev = standing.copy(tmp_path / "pod", cli)
    before = dev.standing()
    config = yaml.safe_load((REPOSITORY / "Pulumi.ten.yaml").read_text(encoding="utf-8"))["config"]
    ten = Pod(Engine(REPOSITORY, "ten", dev.region.path, cli, stack_file=tmp_path / "ten.yaml"), dev.region, config)
    ten.save()
    ten.engine.up()
    assert before < dev.standing()
    dev.engine.expect_no_changes()
    ten.engine.expect_no_changes()


def test_full_pod_comes_up_although_an_instance_takes_one_vnic_at_a_time(tmp_path: Path, cli: Path) -> None:
    """A /22 with all its 435 slots: 946 resources in one `up`, as parallel as the engine is by default."""
    pod = Pod.new(tmp_path, cli, region=Region(limits=Limits(attach_seconds=0.05)))
    pod.config = stack_config(full_pod(SLASH_22))
    pod.save()
    pod.engine.up()
    by_kind = {kind: len(pod.region.all(kind)) for kind in (INSTANCE, VNIC_ATTACHMENT, PRIVATE_IP)}
    # 15 VNICs per VM, of which the instance brings the first; 28 secondary private IPs per VNIC, and the primary one.
    assert by_kind == {INSTANCE: 2, VNIC_ATTACHMENT: 2 * 15, PRIVATE_IP: 2 * 15 * 29}
    pod.engine.expect_no_changes()


def test_wrong_configuration_is_told_without_a_traceback(pod: Pod) -> None:
    pod.change(cidr="10.0.0.0/22")
    with pytest.raises(EngineError) as refused:
        pod.engine.preview()
    assert "nat-pod:cidr" in str(refused.value)
    assert "Traceback" not in str(refused.value)


def test_a_domain_that_the_region_does_not_have_is_refused_before_anything_is_made(tmp_path: Path, cli: Path) -> None:
    pod = Pod.new(tmp_path, cli)
    pod.change(natVm=lambda vm: vm.update(availabilityDomain="nPod:UK-LONDON-1-AD-4"))
    for command in (pod.engine.preview, pod.engine.up):
        with pytest.raises(EngineError, match=r"availabilityDomain: .* your tenancy names them: nPod:UK-LONDON-"):
            command()
    assert pod.region.changes() == []

    pod.change(natVm=lambda vm: vm.update(availabilityDomain="nPod:UK-LONDON-1-AD-3"))
    pod.engine.up()
    assert {vm.facts["availabilityDomain"] for vm in pod.region.all(INSTANCE)} == {"nPod:UK-LONDON-1-AD-3"}
    pod.engine.expect_no_changes()


def test_another_compartment_is_refused_without_a_traceback(pod: Pod) -> None:
    pod.change(compartmentId="ocid1.compartment.oc1..another")
    before = len(pod.region.changes())
    with pytest.raises(EngineError) as refused:
        pod.engine.preview()
    assert (
        'nat-pod:compartmentId: "ocid1.compartment.oc1..another": OCI lists no VNIC of nat-pod-dev-natVm1 in this '
        "compartment, and a POD does not move"
    ) in str(refused.value)
    assert "Traceback" not in str(refused.value)
    assert len(pod.region.changes()) == before


def test_a_vm_that_somebody_terminated_is_told_and_comes_back(pod: Pod) -> None:
    pod.region.delete(pod.find(INSTANCE, "natVm2"))
    with pytest.raises(
        EngineError, match=r"somebody terminated its VM: run `pulumi refresh`, then `pulumi up`"
    ) as said:
        pod.engine.preview()
    assert "Traceback" not in str(said.value)
    pod.engine.refresh()
    pod.engine.up()
    pod.engine.expect_no_changes()


@pytest.mark.parametrize("value", ["static", {"policy": "static"}, None], ids=str)
def test_a_mistyped_key_is_refused_although_it_need_not_be_there(pod: Pod, value: object) -> None:
    """Ignored, it would leave the POD with `masquerade`, the default, and nobody would know."""
    pod.change(sourceNatt=value)
    with pytest.raises(EngineError, match="nat-pod:sourceNatt: is not a setting of nat-pod; did you mean sourceNat"):
        pod.engine.preview()


def test_checkout_and_home_are_left_alone(pod: Pod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def state() -> dict[str, float]:
        return {path.name: path.stat().st_mtime for path in REPOSITORY.glob("Pulumi*")}

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = state()
    pod.engine.preview()
    assert state() == before
    assert not (tmp_path / "home" / ".pulumi").exists()


def paths(run: Run) -> dict[str, set[str]]:
    """Name to the inputs that differ, of everything that has the name."""
    found: dict[str, set[str]] = {}
    for step in run.steps:
        if step.paths:
            found.setdefault(step.name.removeprefix("nat-pod-dev-"), set()).update(step.paths)
    return found
