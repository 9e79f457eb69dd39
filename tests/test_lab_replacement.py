"""NAT VMs replaced in one piece: the real engine waits for what the lab's load balancers find out by packets."""

import base64
import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from routed_pods import one_gateway
from small_networks import needs_lab
from test_engine import cli, copied_program
from test_engine_routed import patience
from test_lab_apply import bring_up, edit

from nat_pod.errors import NatPodError
from nat_pod.lab import commands
from nat_pod.lab.apply import Applied, topology_of
from nat_pod.lab.failover import Outcome, Step, Watched, acting, held_flows
from nat_pod.lab.wire import sandbox
from nat_pod.plan.model import PodPlan

pytestmark = [pytest.mark.engine, pytest.mark.lab, pytest.mark.runs_commands, needs_lab]

__all__ = ["cli"]

IN_TURN = ["natVm1b", "natVm1a", "natVm2b", "natVm2a"]

# Seconds that the program waits for a balancer.  A VM of the lab boots in 5 s, and in 25 s beside three other processes
# of tests on two cores.
BOOTED_ON_A_BUSY_MACHINE, NEVER_ANSWERS = 120.0, 15.0


@pytest.fixture
def up(tmp_path: Path, cli: Path) -> Iterator[tuple[Path, str, PodPlan]]:
    """A copy of the program and its lab, with one customer gateway."""
    patience(copied_program(tmp_path), BOOTED_ON_A_BUSY_MACHINE)
    stack = yaml.safe_load((REPOSITORY / "Pulumi.routed.yaml").read_text(encoding="utf-8"))
    stack["config"] = one_gateway(stack["config"])
    (tmp_path / "Pulumi.routed.yaml").write_text(yaml.safe_dump(stack), encoding="utf-8")
    bring_up(tmp_path, stack="routed")
    plan, _ = commands.prepare(tmp_path, "routed")
    yield tmp_path, sandbox.lab_key("routed", tmp_path), plan
    commands.down(tmp_path, "routed")


def applied(directory: Path, key: str, plan: PodPlan) -> tuple[Outcome, Applied | NatPodError]:
    """`lab apply` with 200 TCP and 80 UDP flows open: what became of them, and of it."""
    done: list[Applied | NatPodError] = []

    def act() -> None:
        try:
            done.append(commands.apply(directory, "routed"))
        except NatPodError as error:
            done.append(error)

    with Watched(key, plan, topology_of(key), held_flows(plan, tcp=200, udp=80)) as many:
        outcome = many.step(Step(what="apply"), act=act)
    return outcome, done[0]


def bootstrap_without_a_health_answer(directory: Path) -> None:
    artefact = directory / "cloud-init" / "user-data.b64"
    config = gzip.decompress(base64.b64decode(artefact.read_bytes()))
    assert config.count(b"nat-pod-agent health") == 1
    config = config.replace(b"nat-pod-agent health", b"nat-pod-agent status")
    artefact.write_bytes(base64.b64encode(gzip.compress(config, mtime=0)))


def test_every_nat_vm_is_replaced_and_no_flow_is_lost_and_one_that_gives_no_health_answer_ends_it(up):
    directory, key, plan = up
    before = topology_of(key)
    edit(directory, {"ops@example": "other@example"}, "routed")
    preview = commands.apply(directory, "routed", only_preview=True)
    new = {f"{vm}: a new one, which knows no flow of before" for vm in IN_TURN}
    assert (set(preview.machines), topology_of(key)) == (new, before)

    outcome, done = applied(directory, key, plan)
    assert isinstance(done, Applied), done
    assert done.means == "pulumi up"
    booted = [line.partition(":")[0] for line in done.machines if "a new VM, booted" in line]
    # Of each role the standby first.  Roles need not wait for one another.
    assert sorted(booted) == sorted(IN_TURN)
    for role in plan.roles:
        assert booted.index(f"{role}b") < booted.index(f"{role}a")
    assert (outcome.tcp, outcome.udp, outcome.lost) == (200, 80, ())
    assert acting(key, topology_of(key)) == {str(role): f"{role}b" for role in plan.roles}
    assert commands.check(directory, "routed").passed

    # The next release's NAT VMs boot, and do not answer.
    bootstrap_without_a_health_answer(directory)
    patience(directory, NEVER_ANSWERS)
    outcome, refused = applied(directory, key, plan)
    assert isinstance(refused, NatPodError), refused
    assert "was left alone, because its balancer does not call the other NAT VM of its side healthy" in str(refused)
    assert "to go on: python -m nat_pod lab apply routed" in str(refused)
    assert "Traceback" not in str(refused)
    assert outcome.lost == ()

    # The one after that mends it: who is down is replaced without waiting, and who works when its other one is well.
    shutil.copy(REPOSITORY / "cloud-init" / "user-data.b64", directory / "cloud-init" / "user-data.b64")
    patience(directory, BOOTED_ON_A_BUSY_MACHINE)
    outcome, done = applied(directory, key, plan)
    assert isinstance(done, Applied), done
    assert outcome.lost == ()
    assert commands.check(directory, "routed").passed
