"""The health answer of a booted routed POD, as its load balancers and everybody else meet it.

Address plan: Pulumi.routed.yaml, 198.18.8.0/22; the VCN's own range is 198.18.11.192/26 (NAT VM1 .194 and .195, NAT VM2
.202 and .203).
"""

import json
import sys
import time
from collections.abc import Iterator

import pytest
from conftest import project_with, real_stack

from nat_pod.commands.cli import main
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire import sandbox
from nat_pod.lab.wire.probe import Probe
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.plan.model import PodPlan

pytestmark = pytest.mark.lab

ASKS = """
import http.client, sys
try:
    connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=1)
    connection.request("GET", "/")
    print(connection.getresponse().status)
except OSError as error:
    print(type(error).__name__)
"""


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
    answers = {
        (vm, key): lab.call("run", vm=vm, argv=[sys.executable, "-c", ASKS, address, "8198"])["stdout"].strip()
        for vm in asking
        for key, address in addresses(plan).items()
    }
    assert set(answers.values()) == {"TimeoutError"}, answers
    # And beside it one that is answered: the other VM of the side is in the balancer's subnet.
    at = addresses(plan)
    run = lab.call("run", vm="natVm1a", argv=[sys.executable, "-c", ASKS, at["natVm1b"], "8198"])
    assert run["stdout"].strip() == "200"


def test_a_vm_that_does_not_forward_is_left_and_one_that_is_fit_again_stands_by(pod):
    plan, lab = pod
    at = addresses(plan)
    name = "natVm1"
    other = {key: value for key, value in balancers(lab).items() if key != name}
    # No round of its agent may come before the balancer has noticed.
    lab.call("log_in", vm="natVm1a", argv=["systemctl", "disable", "nat-pod-agent.timer"])
    lab.call("run", vm="natVm1a", argv=["sysctl", "-w", "net.ipv4.ip_forward=0"])
    gone = {**other, name: (at["natVm1b"], [at["natVm1b"]])}
    assert becomes(lab, gone) == gone
    # The agent's next round puts it right, and who took over stays.
    lab.call("poll", vm="natVm1a")
    back = {**other, name: (at["natVm1b"], sorted([at["natVm1a"], at["natVm1b"]]))}
    assert becomes(lab, back) == back
    lab.call("log_in", vm="natVm1a", argv=["systemctl", "enable", "--now", "nat-pod-agent.timer"])


def test_an_answer_that_somebody_stopped_is_back_after_a_round(pod):
    plan, lab = pod
    at = addresses(plan)

    def asked(until: str) -> str:
        end = time.monotonic() + 15
        while time.monotonic() < end:
            command = [sys.executable, "-c", ASKS, at["natVm2b"], "8198"]
            if (said := lab.call("run", vm="natVm2a", argv=command)["stdout"].strip()) == until:
                break
            time.sleep(0.2)
        return said

    lab.call("log_in", vm="natVm2b", argv=["systemctl", "stop", "nat-pod-health.service"])
    assert asked("ConnectionRefusedError") == "ConnectionRefusedError"
    lab.call("poll", vm="natVm2b")
    assert asked("200") == "200"


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
