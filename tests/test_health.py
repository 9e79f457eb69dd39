"""The health answer of a booted routed POD, as its load balancers and everybody else meet it.

Address plan: Pulumi.routed.yaml, 198.18.8.0/22; the VCN's own range is 198.18.11.192/26 (NAT VM1 .194 and .195, NAT VM2
.202 and .203).
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest
from conftest import project_with, real_stack

from nat_pod.commands.cli import main
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire import sandbox
from nat_pod.lab.wire.probe import Probe
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.names import HEALTH_PORT
from nat_pod.plan.model import PodPlan

pytestmark = pytest.mark.lab

# What each of some addresses answers within so many seconds, all asked at the same time.
ASKS = f"""
import http.client, sys
from concurrent.futures import ThreadPoolExecutor
def asked(address):
    try:
        connection = http.client.HTTPConnection(address, {HEALTH_PORT}, timeout=float(sys.argv[1]))
        connection.request("GET", "/")
        return connection.getresponse().status
    except OSError as error:
        return type(error).__name__
print(*ThreadPoolExecutor(20).map(asked, sys.argv[2:]))
"""


def asked(lab: Lab, vm: str, to: Iterable[str], seconds: float = 20) -> list[str]:
    command = [sys.executable, "-c", ASKS, str(seconds), *to]
    return str(lab.call("run", vm=vm, argv=command)["stdout"]).split()


@pytest.fixture(scope="module")
def pod(tmp_path_factory) -> Iterator[tuple[PodPlan, Lab]]:
    directory = project_with(tmp_path_factory.mktemp("health"), "routed", real_stack("routed"))
    region, plan, _ = stand_up(directory, "routed")
    with Lab(observe(region)) as lab, pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(sandbox, "lab_key", lambda stack: lab.key)
        yield plan, lab


def addresses(plan: PodPlan) -> dict[str, str]:
    return {vm.key: vm.vnics[0].primary for vm in plan.vms}


def balancers(lab: Lab) -> dict[str, tuple[str | None, list[str]]]:
    return {name: (one["active"], sorted(one["healthy"])) for name, one in lab.call("balancers").items()}


def becomes(lab: Lab, expected: object) -> object:
    """What the balancers make of the NAT VMs, as soon as it is this."""
    end = time.monotonic() + 30
    while (found := balancers(lab)) != expected and time.monotonic() < end:
        time.sleep(0.2)
    return found


@contextmanager
def no_rounds(lab: Lab, vm: str) -> Iterator[None]:
    """The agent of a VM starts no round by itself, so it mends nothing meanwhile; what answers the balancer goes on."""
    lab.call("log_in", vm=vm, argv=["systemctl", "disable", "nat-pod-agent.timer"])
    try:
        lab.call("poll", vm=vm)  # waits for one that runs
        yield
    finally:
        lab.call("log_in", vm=vm, argv=["systemctl", "enable", "--now", "nat-pod-agent.timer"])


def test_all_are_fit_and_the_first_of_each_role_acts(pod):
    plan, lab = pod
    at = addresses(plan)
    found = becomes(lab, expected := {
        role: (at[f"{role}a"], sorted([at[f"{role}a"], at[f"{role}b"]])) for role in plan.roles
    })  # fmt: skip
    assert found == expected
    assert len(found) == 3


def test_nobody_else_is_answered_in_any_vcn(pod):
    """LPGs reach the VCN's own range by local routing, so the NSGs and INPUT have to refuse."""
    plan, lab = pod
    asking = [f"{customer}/{next(s.member.short for s in plan.hosts if s.member.realm == customer)}"
              for customer in plan.customer_cidrs]  # fmt: skip
    asking += [plan.servers[0].member]
    at = addresses(plan)
    answers = {str(vm): asked(lab, vm, at.values(), seconds=1) for vm in asking}
    assert answers == {str(vm): ["TimeoutError"] * len(at) for vm in asking}
    # And beside it one that is answered: the other VM of the side is in the balancer's subnet.
    assert asked(lab, "natVm1a", [at["natVm1b"]]) == ["200"]


def test_a_vm_that_does_not_forward_is_left_and_one_that_is_fit_again_stands_by(pod):
    plan, lab = pod
    at = addresses(plan)
    name = "natVm1"
    other = {key: value for key, value in balancers(lab).items() if key != name}
    gone = {**other, name: (at["natVm1b"], [at["natVm1b"]])}
    with no_rounds(lab, "natVm1a"):
        lab.call("run", vm="natVm1a", argv=["sysctl", "-w", "net.ipv4.ip_forward=0"])
        assert becomes(lab, gone) == gone
        # The agent's next round puts it right, and who took over stays.
        lab.call("poll", vm="natVm1a")
    back = {**other, name: (at["natVm1b"], sorted([at["natVm1a"], at["natVm1b"]]))}
    assert becomes(lab, back) == back


def test_an_answer_that_somebody_stopped_is_back_after_a_round(pod):
    plan, lab = pod
    at = addresses(plan)

    def says(wanted: str, act: Callable[[], object]) -> str:
        """What it answers in the end, with an act before each question."""
        end = time.monotonic() + 30
        said = ""
        while said != wanted and time.monotonic() < end:
            act()
            time.sleep(0.3)
            said = " ".join(asked(lab, "natVm2a", [at["natVm2b"]]))
        return said

    # Again each time: a round of the agent may come in between, and start it.
    stop = ["systemctl", "stop", "nat-pod-health.service"]
    refused = "ConnectionRefusedError"
    assert says(refused, lambda: lab.call("log_in", vm="natVm2b", argv=stop)) == refused
    lab.call("poll", vm="natVm2b")
    assert says("200", lambda: None) == "200"


def status(plan: PodPlan, lab: Lab, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, list[str]], list[list[str]]]:
    """Which VMs `status` calls active, by role, after some packets and a round of each VM; and its findings."""
    senders = {plan.role(host.member): host.member for host in plan.hosts}
    to = plan.servers[1].nat_vm1  # dns, which all may call
    answers = lab.probe([Probe(source_vm=sender, destination=to, protocol="udp") for sender in senders.values()] * 3)
    assert all(answer.ok for answer in answers)
    for vm in plan.vms:
        if vm.key not in DOWN:
            lab.call("poll", vm=vm.key)
    code = main(["status", "routed", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == bool(found["findings"])
    return (
        {side: pair["active"] for side, pair in found["roles"].items()},
        [[finding["vm"], finding["what"]] for finding in found["findings"]],
    )


DOWN: set[str] = set()


def test_status_calls_that_vm_active_which_its_balancer_has_chosen_and_follows_a_switch(pod, capsys):
    plan, lab = pod
    names = {address: key for key, address in addresses(plan).items()}

    def chosen() -> dict[str, list[str]]:
        return {role: [names[active]] for role, (active, _) in balancers(lab).items() if active is not None}

    # An earlier test had changed something that the agent put right; this is how one takes note of it.
    lab.call("log_in", vm="natVm1a", argv=["rm", "/run/nat-pod/status.json"])
    lab.call("poll", vm="natVm1a")
    active, findings = status(plan, lab, capsys)
    assert (active, findings) == (chosen(), [])
    (gone,) = active["natVm1"]
    (other,) = {"natVm1a", "natVm1b"} - {gone}
    lab.call("fail", vm=gone, hang=True)
    DOWN.add(gone)
    try:
        end = time.monotonic() + 30
        while chosen()["natVm1"] != [other] and time.monotonic() < end:
            time.sleep(0.2)
        active, findings = status(plan, lab, capsys)
        assert (active, active["natVm1"]) == (chosen(), [other])
        assert findings == [[gone, f"no report: {gone} hangs; `lab recover` brings it back"]]
    finally:
        DOWN.discard(gone)
        lab.call("recover", vm=gone)
