"""`lab apply`: a running network becomes another in place.

Small networks are those of small_networks.py; the POD is the article's.  Under mocks the whole of `up`, `preview`,
`apply`, `check` runs; by the Pulumi engine it is the same code, and one test.
"""

import copy
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY
from small_networks import add, change, needs_lab, network
from test_balancer import network as balanced

from nat_pod.errors import NatPodError
from nat_pod.lab import apply, commands, tenancy
from nat_pod.lab.region.region import Region
from nat_pod.lab.wire import sandbox
from nat_pod.lab.wire.fabric import lay_cables
from nat_pod.lab.wire.netns import LabError
from nat_pod.lab.wire.probe import Probe
from nat_pod.lab.wire.rewiring import Rewiring, rewire
from nat_pod.trace.topology import VM_NAT, VM_ROUTER, Lpg, Topology, Vcn


def rewired(after: Topology, before: Topology | None = None) -> Rewiring:
    before = before or network()
    return rewire(before, lay_cables(before), after)


# --- what goes, what comes -------------------------------------------------------------------------------------------


def test_a_network_that_is_the_same_is_left_alone():
    same = rewired(network())
    assert (same.gone_vms, same.gone, same.gone_vcns, same.new_vcns, same.new_vms) == ((), (), (), (), ())
    assert set(same.batches.values()) == {""}
    assert same.fabric.cables == ""


def test_a_host_that_comes_takes_an_interface_that_nobody_has_and_the_others_keep_theirs():
    after = network()
    add(after, "a0", "a", "10.0.0.4")
    first = replace(after, vms={"a0": after.vms["a0"], **after.vms})  # before those whose places it would take
    change_ = rewired(first)
    assert change_.new_vms == ("a0",)
    assert change_.gone == ()
    standing = lay_cables(network()).ports
    assert {name: change_.fabric.ports[name] for name in standing} == standing
    assert change_.fabric.ports["a0-vnic-1"].link not in {port.link for port in standing.values()}
    assert change_.fabric.cables.count("link add") == 1


def test_a_host_that_goes_takes_its_routes_with_it():
    after = network()
    del after.vms["a1"], after.vnics["a1-vnic-1"]
    gone = rewired(after)
    link = lay_cables(network()).ports["a1-vnic-1"].link
    assert (gone.gone_vms, gone.gone) == (("a1",), (("a", link),))
    assert f"rule del iif {link} lookup 1000 priority 1000" in gone.batches["a"]
    assert "10.0.0.2/32" not in gone.batches["a"], "the kernel took that route with the link"
    assert gone.batches["b"] == ""


def test_an_address_that_moves_is_taken_from_one_vnic_before_the_other_gets_it():
    after = network()
    change(after.vnics, "a2-vnic-1", addresses=("10.0.0.3",))
    change(after.vnics, "a1-vnic-1", addresses=("10.0.0.2", "10.0.0.9"))
    before = copy.deepcopy(after)
    for name, address in (("a1", "10.0.0.2"), ("a2", "10.0.0.3")):  # hosts that change are made anew: NAT VMs are not
        change(before.vms, name, kind=VM_NAT)
        change(after.vms, name, kind=VM_NAT)
        change(before.vnics, f"{name}-vnic-1", addresses=(address, "10.0.0.9") if name == "a2" else (address,))
    moved = rewired(after, before)
    link = moved.fabric.ports["a1-vnic-1"].link
    assert moved.batches["a"] == f"route del 10.0.0.9/32\nroute add 10.0.0.9/32 via 10.0.0.2 dev {link} onlink\n"
    assert (moved.gone_vms, moved.gone) == ((), ())


def test_a_peering_that_loses_an_end_is_gone_at_both():
    after = network()
    del after.lpgs["b/lpg"]
    after.lpgs["a/lpg"] = Lpg(name="a/lpg", vcn="a")
    gone = rewired(after)
    assert len(gone.gone) == 1, "deleting one end of a veth pair deletes both"
    assert gone.fabric.peerings == {}


def test_a_vcn_that_comes_is_made_whole():
    after = network()
    after.vcns["d"] = Vcn(name="d", cidrs=("10.9.0.0/16",))
    new = rewired(after)
    assert new.new_vcns == ("d",)
    assert new.batches["d"] == lay_cables(after).vcns["d"].batch
    assert new.batches["a"] == ""


def test_a_load_balancer_comes_and_goes_and_one_that_stays_keeps_its_links():
    gone, come = rewired(network(), balanced()), rewired(balanced(), network())
    assert (gone.gone_balancers, gone.new_balancers) == (("balancer",), ())
    assert (come.gone_balancers, come.new_balancers) == ((), ("balancer",))
    assert [line.split()[3] for line in come.fabric.cables.splitlines() if " nlb-balancer " in line] == [
        "n0", "n0b0", "n0b1",
    ]  # fmt: skip
    # Another VNIC makes it another one: its links have other names, as the old ones go with its namespace.
    other = balanced()
    other.balancers["balancer"] = replace(other.balancers["balancer"], mac="02:00:17:00:01:99")
    change = rewired(other, balanced())
    assert (change.gone_balancers, change.new_balancers) == (("balancer",), ("balancer",))
    assert change.fabric.balancer_links["balancer"].number == 1
    assert "link set n1 up" in change.batches["a"]
    assert "link set n0 up" not in change.batches["a"]
    grown = balanced()
    add(grown, "a9", "a", "10.0.0.9")
    change = rewired(grown, balanced())
    assert (change.new_vms, change.gone_balancers, change.new_balancers) == (("a9",), (), ())
    assert change.fabric.cables.count("link add") == 1, "the new host's; the balancer's links are there"


def test_a_backend_that_goes_leaves_its_link_and_the_next_one_gets_a_new_one():
    before, after = balanced(), balanced()
    first, second = before.balancers["balancer"].backends
    after.balancers["balancer"] = replace(
        after.balancers["balancer"], backends=(second, replace(first, address="10.0.0.2"))
    )
    change = rewired(after, before)
    assert change.fabric.balancer_links["balancer"].backends == (first.address, second.address, "10.0.0.2")
    assert [line.split()[3] for line in change.fabric.cables.splitlines()] == ["n0b2"]
    assert "link set b2 up" in change.balancer_batches["balancer"]
    back = rewire(after, change.fabric, before)
    assert (back.fabric.balancer_links, back.fabric.cables) == (change.fabric.balancer_links, "")


def test_a_router_may_get_other_routes_while_it_runs():
    before = network()
    add(before, "gate", "a", "10.0.0.5", kind=VM_ROUTER)
    after = copy.deepcopy(before)
    after.vms["gate"] = replace(after.vms["gate"], routes=(("10.9.0.0/16", "gate-vnic-1"),))
    there = rewired(after, before)
    assert (there.new_vms, there.gone_vms) == ((), ())
    assert there.vm_batches == {"gate": "route add 10.9.0.0/16 via 10.0.0.1 dev ens3\n"}
    assert rewired(before, after).vm_batches == {"gate": "route del 10.9.0.0/16\n"}


def test_a_router_that_would_change_is_refused():
    before = network()
    add(before, "gate", "a", "10.0.0.5", kind=VM_ROUTER)
    after = copy.deepcopy(before)
    add(after, "gate", "b", "10.1.0.5", kind=VM_ROUTER)
    with pytest.raises(LabError, match="gate would have other VNICs"):
        rewired(after, before)


@pytest.mark.lab
@needs_lab
def test_a_small_network_in_which_hosts_come_go_and_move():
    after = network()
    del after.vms["a1"], after.vnics["a1-vnic-1"]
    add(after, "a9", "a", "10.0.0.2")  # at the address of the one that goes
    change(after.vnics, "b1-vnic-1", addresses=("10.1.0.7",), mac="02:00:17:00:00:77")
    with sandbox.Lab(network()) as lab:
        assert lab.probe([Probe(source_vm="a2", destination="10.0.0.2")])[0].answered_by == "a1"
        did = lab.call("apply", topology=apply.packed_topology(after))
        assert sorted(did) == ["a1: gone", "a9: new", "b1: made anew"]
        answers = lab.probe(
            [
                Probe(source_vm="a2", destination="10.0.0.2", protocol="http"),
                Probe(source_vm="a9", destination="10.1.0.7", protocol="http"),
                Probe(source_vm="a9", destination="10.1.0.2"),
                Probe(source_vm="c1", destination="10.0.0.3", protocol="udp"),
            ]
        )
        assert [answer.answered_by for answer in answers] == ["a9", "b1", None, "c2"]
        back = lab.call("apply", topology=apply.packed_topology(network()))
        assert sorted(back) == ["a1: new", "a9: gone", "b1: made anew"]
        assert lab.probe([Probe(source_vm="a1", destination="10.1.0.2")])[0].answered_by == "b1"


# --- the POD ---------------------------------------------------------------------------------------------------------

NEW_SLOT = "    customer1/vm9: {natVm1: 198.18.0.5, natVm2: 198.18.0.133}\n"
GROWN = {
    "vm2: 10.0.0.130}": "vm2: 10.0.0.130, vm9: 10.0.0.9}",
    "    customer1/vm2: {": f"{NEW_SLOT}    customer1/vm2: {{",
}
WITHOUT_CUSTOMER2 = {
    "    customer2:\n      cidr: 10.0.1.0/24\n      hosts: {vm2: 10.0.1.100}\n": "",
    "198.18.0.131}": "198.18.0.131, released: true}",
}


NEW_PAIR = {
    "natVm1: [198.18.0.0/27, 198.18.0.32/27]": "natVm1: [198.18.0.0/27, 198.18.0.32/27, 198.18.1.0/27]",
    "natVm2: [198.18.0.128/27, 198.18.0.64/27]": "natVm2: [198.18.0.128/27, 198.18.0.64/27, 198.18.1.32/27]",
    "vm2: 10.0.0.130}": "vm2: 10.0.0.130, vm9: 10.0.0.9}",
    "    customer1/vm2: {": "    customer1/vm9: {natVm1: 198.18.1.5, natVm2: 198.18.1.37}\n    customer1/vm2: {",
}
LOADED = r"{}: runs on; its agent: \d+ rules of generation {} loaded now; {} flows deleted, because .*"


def edit(directory: Path, changes: dict[str, str], stack: str = "dev") -> None:
    path = directory / f"Pulumi.{stack}.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project; no pulumi CLI."""
    monkeypatch.setattr(tenancy, "find_cli", lambda: None)
    return project_copy(tmp_path)


def project_copy(directory: Path) -> Path:
    for name in ("Pulumi.yaml", "Pulumi.dev.yaml", "Pulumi.routed.yaml", "__main__.py"):
        shutil.copy(REPOSITORY / name, directory / name)
    return directory


def bring_up(directory: Path, first: str = "", stack: str = "dev") -> None:
    script = (
        f"from pathlib import Path; from nat_pod.lab import commands, tenancy; {first}commands.up(Path(), {stack!r})"
    )
    subprocess.run([sys.executable, "-c", script], cwd=directory, check=True, capture_output=True, timeout=300)


@pytest.fixture
def up(directory: Path) -> Iterator[Path]:
    """Its lab, brought up by a program that has ended."""
    bring_up(directory, "tenancy.find_cli = lambda: None; ")
    yield directory
    commands.down(directory, "dev")


@pytest.mark.slow
def test_what_the_program_no_longer_has_is_deleted_under_mocks(directory, tmp_path):
    one = tenancy.Tenancy.make(tmp_path / "one", directory, "dev", Region())
    one.up()
    edit(directory, WITHOUT_CUSTOMER2)
    two = tenancy.Tenancy.unpacked(tmp_path / "two", directory, "dev", one.packed())
    before = two.resources()
    two.up()
    gone = {name for _, name in before.keys() - two.resources().keys()}
    assert "nat-pod-dev-customer2" in gone
    assert all("customer2" in name or "198.18.0" in name for name in gone)
    assert one.resources() == before, "a copy has changed, and it alone"


def test_flows_are_counted_and_those_that_did_not_hold_up_are_named():
    flows = (
        apply.WatchedFlow(sender="a", receiver="b", fate=apply.Fate.HELD_UP),
        apply.WatchedFlow(sender="a", receiver="c", fate=apply.Fate.ENDED, why="Connection reset: by peer"),
        apply.WatchedFlow(sender="c", receiver="a", fate=apply.Fate.LOST),
        apply.WatchedFlow(sender="d", receiver="a", fate=apply.Fate.LOST),
    )
    done = apply.Applied(means="x", pod=(), neighbours=(), warnings=(), generations={}, flows=flows)
    assert apply.applied_text(done, "dev", preview=False).splitlines()[-4:] == [
        "Open TCP flows, one for each declared pair: 1 held up, 1 ended, 2 lost",
        "  a to c: ended: Connection reset: by peer",
        "  c to a: lost",
        "  d to a: lost",
    ]


@pytest.mark.lab
@needs_lab
@pytest.mark.runs_commands
class TestApply:
    def test_a_host_comes_and_open_flows_hold(self, up):
        edit(up, GROWN)
        with pytest.raises(NatPodError, match="lab apply dev"):
            commands.check(up, "dev")
        preview = commands.apply(up, "dev", only_preview=True)
        with pytest.raises(NatPodError, match="lab apply dev"):
            commands.check(up, "dev")
        done = commands.apply(up, "dev", watch=True)
        assert (done.pod, done.neighbours, done.generations) == (preview.pod, preview.neighbours, preview.generations)
        assert done.flows is not None
        assert {flow.fate for flow in done.flows} == {"held up"}
        assert [change.name for change in done.neighbours] == ["customer1/vm9"]
        natvm1, new = done.machines
        assert re.fullmatch(LOADED.format("natVm1", done.generations["natVm1"][1], 0), natvm1)
        assert new == "customer1/vm9: new"
        assert commands.check(up, "dev").passed
        text = apply.applied_text(done, "dev", preview=False)
        assert "Open TCP flows, one for each declared pair: 6 held up" in text
        assert re.search(r"natVm2  \w{16}\s+unchanged", text)

    def test_a_customer_goes_and_its_flows_are_lost(self, up):
        edit(up, WITHOUT_CUSTOMER2)
        done = commands.apply(up, "dev", watch=True)
        assert done.flows is not None
        assert {(flow.fate == "held up", "customer2" in flow.sender + flow.receiver) for flow in done.flows} == {
            (True, False),
            (False, True),
        }
        assert {"customer2/vm2: gone", "customer2/stranger: gone"} <= set(done.machines)
        # The flow to customer2 and the one from there: what the agent ended is said.
        assert re.fullmatch(LOADED.format("natVm1", done.generations["natVm1"][1], 2), done.machines[0])
        assert commands.check(up, "dev").passed

    def test_vnics_come_and_go_under_open_flows(self, up):
        """A new pair is attached to VMs that run, serves its host, and goes again; nobody else's flow notices."""
        old = (up / "Pulumi.dev.yaml").read_text(encoding="utf-8")
        edit(up, NEW_PAIR)
        done = commands.apply(up, "dev", watch=True)
        assert {change.name for change in done.pod if change.type.endswith("VnicAttachment")} == {
            "nat-pod-dev-natVm1-vnic-3",
            "nat-pod-dev-natVm2-vnic-3",
        }
        assert done.flows is not None
        assert (len(done.flows), {flow.fate for flow in done.flows}) == (6, {"held up"})
        assert commands.check(up, "dev").passed
        (up / "Pulumi.dev.yaml").write_text(old, encoding="utf-8")
        done = commands.apply(up, "dev", watch=True)
        assert done.flows is not None
        assert [flow.sender for flow in done.flows if flow.fate == "held up"] == [
            flow.sender for flow in done.flows if "customer1/vm9" not in (flow.sender, flow.receiver)
        ]
        assert commands.check(up, "dev").passed

    def test_a_failure_midway_takes_the_lab_down_and_says_so(self, up, monkeypatch):
        """The namespaces change, and then an address is one that the kernel does not take."""
        packed = apply.packed_topology

        def spoilt(topology: Topology) -> str:
            vnic = topology.vnics["natVm1-vnic-1"]
            return packed(
                replace(topology, vnics=topology.vnics | {vnic.name: replace(vnic, addresses=(*vnic.addresses, "x"))})
            )

        monkeypatch.setattr(apply, "packed_topology", spoilt)
        edit(up, GROWN)
        with pytest.raises(
            NatPodError, match=r'(?s)"x/32".*could not be changed in place and is down; run: .* lab up dev'
        ):
            commands.apply(up, "dev")
        assert sandbox.find(sandbox.lab_key("dev", up)) is None
        with pytest.raises(NatPodError, match="the lab of dev is not up"):
            commands.apply(up, "dev")


REFUSED = {
    "another network of management": (
        {"    cidr: 10.0.0.0/16": "    cidr: 10.0.0.0/17"},
        r"nothing was changed.*lab down dev && python -m nat_pod lab up dev",
    ),
    "another region": (
        {"uk-london-1": "uk-cardiff-1"},
        "the lab is in uk-london-1, and the stack file in uk-cardiff-1; run: python -m nat_pod lab down dev",
    ),
    "another address of the vRouter": (
        {"vrouter: 198.18.0.167": "vrouter: 198.18.0.168"},
        r"cannot be updated in place .*\n.*nothing was changed",
    ),
    "a mistake": ({"mgmt: 10.0.0.100": "mgmt: 10.9.0.100"}, r'mgmt: "10\.9\.0\.100": is outside'),
}


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lab that all refusals have in common."""
    directory = project_copy(tmp_path_factory.mktemp("standing"))
    bring_up(directory, "tenancy.find_cli = lambda: None; ")
    yield directory
    commands.down(directory, "dev")


@pytest.mark.lab
@needs_lab
@pytest.mark.runs_commands
class TestRefused:
    """Each beside what is applied, in one lab: it stays as it is."""

    @pytest.fixture
    def unchanged(self, standing: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        monkeypatch.setattr(tenancy, "find_cli", lambda: None)
        text, before = (standing / "Pulumi.dev.yaml").read_text(encoding="utf-8"), topology(standing)
        yield standing
        (standing / "Pulumi.dev.yaml").write_text(text, encoding="utf-8")
        assert topology(standing) == before
        assert commands.apply(standing, "dev").pod == ()

    @pytest.mark.parametrize(("edits", "reason"), REFUSED.values(), ids=REFUSED.keys())
    def test_what_cannot_be_changes_nothing(self, unchanged, edits, reason):
        edit(unchanged, edits)
        with pytest.raises(NatPodError, match=reason):
            commands.apply(unchanged, "dev")

    def test_while_a_nat_vm_is_away_the_lab_stays(self, unchanged):
        commands.fail(unchanged, "dev", "natVm1", hang=True)
        edit(unchanged, GROWN)
        with pytest.raises(
            NatPodError, match=r"^natVm1 hangs \(nothing was changed\); run: .* lab recover dev natVm1$"
        ):
            commands.apply(unchanged, "dev")
        commands.recover(unchanged, "dev", "natVm1")

    def test_it_is_as_it_was(self, unchanged):
        assert commands.check(unchanged, "dev").passed


def topology(directory: Path) -> Topology:
    return apply.topology_of(sandbox.lab_key("dev", directory))


@pytest.mark.lab
@pytest.mark.engine
@needs_lab
@pytest.mark.runs_commands
def test_by_the_engine_a_nat_vm_that_is_replaced_boots_anew(directory, monkeypatch):
    monkeypatch.undo()
    bring_up(directory)
    try:
        edit(directory, {"J1lNZ8": "J1lNZ9", **GROWN})
        done = commands.apply(directory, "dev")
        assert done.means == "pulumi up"
        boots = {f"natVm{n}: a new VM, booted from its user_data; it knows no flow of before" for n in (1, 2)}
        assert boots <= set(done.machines)
        assert commands.check(directory, "dev").passed
    finally:
        commands.down(directory, "dev")


# --- a routed POD ----------------------------------------------------------------------------------------------------


@pytest.fixture
def routed(directory: Path) -> Iterator[Path]:
    """The lab of the routed example, with its load balancers."""
    bring_up(directory, "tenancy.find_cli = lambda: None; ", "routed")
    yield directory
    commands.down(directory, "routed")


ROLES = ("natVm1", "natVm1-2", "natVm2")
MAPLE_GROWN = {
    "        web: 10.0.0.100\n  nat-pod:gateways:": "        web: 10.0.0.100\n        x: 10.0.0.9\n  nat-pod:gateways:",
    "    maple/web: 198.18.10.41\n": "    maple/web: 198.18.10.41\n    maple/x: 198.18.10.42\n",
    "servers: [dns, mgmt]": "servers: [dns]",
}


@pytest.mark.lab
@needs_lab
@pytest.mark.runs_commands
def test_a_routed_pod_changes_under_open_flows_and_its_balancers_do_not_notice(routed, monkeypatch):
    monkeypatch.chdir(routed)  # the key of a lab is its directory's
    key = sandbox.lab_key("routed")
    # The standby acts when the change comes, and goes on acting.
    sandbox.call(key, "fail", vm="natVm1a", hang=False)
    time.sleep(6)
    sandbox.call(key, "recover", vm="natVm1a")
    before = sandbox.call(key, "balancers")
    assert before["natVm1"]["active"] == "198.18.11.195"
    edit(routed, MAPLE_GROWN, "routed")
    done = commands.apply(routed, "routed", watch=True)
    assert done.flows is not None
    # linden may not call mgmt any more; what it has open goes on, since mgmt may call linden (docs/routed.md).
    assert {flow.fate for flow in done.flows} == {"held up"}
    told = {line.split(":")[0]: line for line in done.machines}
    for vm in ("natVm1a", "natVm1b", "natVm1-2a", "natVm1-2b"):
        assert re.fullmatch(LOADED.format(vm, done.generations[vm][1], r"\d+"), told[vm])
    assert done.generations["natVm1a"] == done.generations["natVm1b"]
    assert told["maple/x"] == "maple/x: new"
    assert {name: one["active"] for name, one in sandbox.call(key, "balancers").items()} == {
        name: one["active"] for name, one in before.items()
    }
    assert commands.check(routed, "routed").passed

    # What only the engine can do is refused before anything has changed.
    standing = sandbox.call(key, "topology")
    text = (routed / "Pulumi.routed.yaml").read_text(encoding="utf-8")
    edit(routed, {"ops@example": "other@example"}, "routed")
    with pytest.raises(NatPodError, match=r"natVm1a, natVm1b, .* in turn, which only the Pulumi engine can do"):
        commands.apply(routed, "routed")
    (routed / "Pulumi.routed.yaml").write_text(text, encoding="utf-8")
    assert sandbox.call(key, "topology") == standing

    # The standbys go, and come back, under open flows.
    for changes, machines in (
        ({"standby: true": "standby: false"}, {f"{role}: load balancer, gone" for role in ROLES}),
        ({"standby: false": "standby: true"}, {f"{role}: load balancer, new" for role in ROLES}),
    ):
        edit(routed, changes, "routed")
        done = commands.apply(routed, "routed", watch=True)
        assert done.flows is not None
        assert {flow.fate for flow in done.flows} == {"held up"}
        assert machines <= set(done.machines)
    assert commands.check(routed, "routed").passed
