"""What `lab up | preview | apply | check | shell | fail | recover | down STACK` do, and `lab demo`: most in one go."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nat_pod.config.stack_file import read_stack
from nat_pod.errors import NatPodError
from nat_pod.lab import checks, failover
from nat_pod.lab.apply import Applied, topology_of
from nat_pod.lab.apply import apply as change
from nat_pod.lab.engine.program import Deployment
from nat_pod.lab.observe import observe
from nat_pod.lab.scratch import remove_leftovers, scratch_folder
from nat_pod.lab.surroundings import bring_up, prepare
from nat_pod.lab.tenancy import Tenancy
from nat_pod.lab.wire import sandbox
from nat_pod.names import natural
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.text import Progress
from nat_pod.trace.topology import VM_NAT, Topology

_PROBE_SECONDS = 2.0
"""How long a probe waits for an answer: the slowest declared flow takes milliseconds, a refused one all of it."""

_HELD_TCP, _HELD_UDP, _HELD_APART = 500, 200, 10
"""How many flows `lab demo` holds open while NAT VMs fail, and how many of each kind that is reported apart."""


def up(directory: Path, stack: str) -> None:
    """Deploy the stack and leave its lab running, in place of one that was up."""
    say = Progress()
    reason = sandbox.available()
    if reason is not None:
        raise NatPodError(reason)
    _, deployed, state = _deploy(directory, stack, say)
    key = sandbox.lab_key(stack, directory)
    if sandbox.stop(key):
        say("the earlier lab is down")
    holder = sandbox.start(key, deployed, say)
    sandbox.call(key, "keep", state=state)
    holder.stay()
    say(f"up; next: python -m nat_pod lab check {stack}")


def apply(directory: Path, stack: str, *, watch: bool = False, only_preview: bool = False) -> Applied:
    """Bring the edited stack file into the running lab, or say what that would do."""
    key = sandbox.lab_key(stack, directory)
    _holder(stack, key)
    return change(directory, stack, key, Progress(), watch=watch, only_preview=only_preview)


def check(directory: Path, stack: str) -> checks.Report:
    """Send every probe into the lab.  Raises NatPodError when it is not up, or the stack file has changed since."""
    key = sandbox.lab_key(stack, directory)
    _holder(stack, key)
    deployed = topology_of(key)
    plan = plan_pod(read_stack(directory, stack).checked(), stack)
    there = {name: vm.metadata for name, vm in deployed.vms.items() if vm.kind == VM_NAT}
    if there != {vm.key: vm.metadata for vm in plan.vms}:
        raise NatPodError(
            f"Pulumi.{stack}.yaml has changed since this lab was brought up; run: python -m nat_pod lab apply {stack}"
        )
    return _probe(key, plan, deployed, Progress())


def shell(directory: Path, stack: str, member: str) -> int:
    """A shell on one machine; returns its exit status."""
    key = sandbox.lab_key(stack, directory)
    pid = _holder(stack, key)
    machines = sandbox.call(key, "status")["vms"]
    if member not in machines:
        known = ", ".join(sorted(machines, key=natural))
        raise NatPodError(f"{member} is not a machine of this lab; its machines are {known}")
    command = sandbox.call(key, "command", vm=member, argv=_shell_command(stack, member))
    status = "`nat-pod-agent status`, " if machines[member] == VM_NAT else ""
    print(f"{member}: {status}`ip addr`, `ping 198.18...`, `iptables -t nat -nvL`; leave with exit", file=sys.stderr)
    return sandbox.enter(pid, command)


def fail(directory: Path, stack: str, vm: str, *, hang: bool) -> str:
    """Let a NAT VM fail; returns a sentence on what it is like now."""
    key = _nat_vm(directory, stack, vm)
    sandbox.call(key, "fail", vm=vm, hang=hang)
    gone = "its kernel and its processes stand still" if hang else "its processes and its connections are gone"
    return f"{vm} is cut off and {gone}; next: python -m nat_pod lab check {stack}"


def recover(directory: Path, stack: str, vm: str) -> str:
    """Bring a NAT VM that failed back; returns a sentence on what it is like now."""
    sandbox.call(_nat_vm(directory, stack, vm), "recover", vm=vm)
    return f"{vm} is back; next: python -m nat_pod lab check {stack}"


def _nat_vm(directory: Path, stack: str, vm: str) -> str:
    """The key of the stack's lab; raises NatPodError when it is not up or `vm` is no NAT VM of it."""
    key = sandbox.lab_key(stack, directory)
    _holder(stack, key)
    machines = sandbox.call(key, "status")["vms"]
    if machines.get(vm) != VM_NAT:
        known = ", ".join(sorted((name for name in machines if machines[name] == VM_NAT), key=natural))
        raise NatPodError(f"{vm} is not a NAT VM of this lab; its NAT VMs are {known}")
    return key


def down(directory: Path, stack: str) -> bool:
    """Take the lab away, and what killed commands left; returns whether there was one."""
    remove_leftovers()
    return sandbox.stop(sandbox.lab_key(stack, directory))


def _holder(stack: str, key: str) -> int:
    pid = sandbox.find(key)
    if pid is None:
        raise NatPodError(f"the lab of {stack} is not up; run: python -m nat_pod lab up {stack}")
    return pid


def _shell_command(stack: str, member: str) -> list[str]:
    """A shell whose prompt says that it is in the lab, and on which machine.

    Without the start files of the caller, whose prompt would name the caller's own machine.
    """
    prompt, program = f"[lab {stack}] {member}", ["sh"]
    if shutil.which("bash"):
        prompt, program = f"{prompt}:\\w", ["bash", "--noprofile", "--norc"]
    return ["env", f"PS1={prompt}# ", f"TERM={os.environ.get('TERM', 'dumb')}", *program]


def demo(directory: Path, stack: str) -> bool:
    """Up, check and down; prints the result, and returns whether all was as declared.

    Where the NAT VMs have standbys they then fail while flows are open, of which none may be lost.
    Where no namespaces are to be had it prints what the tracer makes of the deployed network.
    """
    say = Progress()
    plan, deployed, _ = _deploy(directory, stack, say)
    reason = sandbox.available()
    if reason is not None:
        expected = checks.expectations(plan, deployed)
        print(f"{reason}\n\n{checks.prediction_text(expected)}")
        return checks.prediction_holds(expected)
    key = sandbox.lab_key(stack, directory)
    sandbox.stop(key)
    holder = sandbox.start(key, deployed, say)
    try:
        report = _probe(key, plan, deployed, say)
        outcomes = _fail_over(key, plan, deployed, say) if plan.balancers else []
    finally:
        holder.stop()
    say("the lab is down")
    print(f"\n{checks.report_text(report)}")
    if outcomes:
        print(f"\n{failover.outcomes_text(outcomes)}")
    return report.passed and not any(outcome.lost for outcome in outcomes)


def _fail_over(key: str, plan: PodPlan, deployed: Topology, say: Progress) -> list[failover.Outcome]:
    """Let the NAT VMs fail in every way while flows are open, and the first time of each side while some end."""
    flows = failover.held_flows(plan, tcp=_HELD_TCP, udp=_HELD_UDP, unheard=_HELD_APART)
    say(f"{len(flows)} flows are opened, and held while NAT VMs fail")
    outcomes = []
    with failover.Watched(key, plan, deployed, flows) as watched:
        for number, step in enumerate(failover.steps(plan, failover.acting(key, deployed))):
            say(step.what)
            first = number < len(plan.balancers) and plan.vm(step.fail[0]).role.number == 1
            outcomes.append(watched.step(step, ending=_HELD_APART if first else 0))
    return outcomes


def _deploy(directory: Path, stack: str, say: Progress) -> tuple[PodPlan, Topology, str]:
    """Run the Pulumi program against a simulated region, with neighbours, and read the network off the region.

    By the Pulumi engine where there is a CLI, otherwise in this process under Pulumi's mocks: the same program, the
    same region.  The third result is the state from which `apply` goes on.
    """
    plan, region = prepare(directory, stack)
    for name in ("Pulumi.yaml", "__main__.py"):
        if not (directory / name).is_file():
            raise NatPodError(
                f"{directory} has no {name}: the lab runs the Pulumi program of the directory that it is started in; "
                "run: python -m nat_pod new-project"
            )
    with scratch_folder() as scratch:
        tenancy = Tenancy.make(scratch, directory, stack, region)

        def pulumi_up() -> Deployment:
            say(f"Pulumi.{stack}.yaml: {tenancy.means}, against the simulated region")
            deployment = tenancy.up()
            for warning in deployment.warnings:
                say(f"warning: {warning}")
            return deployment

        bring_up(plan, tenancy.region, pulumi_up)
        tenancy.declare(plan)
        return plan, observe(tenancy.region), tenancy.packed()


def _probe(key: str, plan: PodPlan, deployed: Topology, say: Progress) -> checks.Report:
    active = failover.acting(key, deployed)
    idle = {backend.vm for balancer in plan.balancers for backend in balancer.backends} - set(active.values())
    expected: Sequence[checks.Expectation] = checks.expectations(plan, deployed, idle)
    say(f"{len(expected)} probes: every mapping with ICMP, HTTP and UDP, and what must not connect")
    answers = sandbox.probe(key, [one.probe() for one in expected], seconds=_PROBE_SECONDS, capture=True)
    failed = sandbox.call(key, "status")["down"]
    return replace(checks.judge(deployed, expected, answers), down=failed, active=active)
