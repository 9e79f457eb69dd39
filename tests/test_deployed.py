"""What is relied on of Pulumi's SDK, and what its CLI says, as errors of stacks and of a trial.

Whole trials are in test_trial_rehearsal.py.
"""

import asyncio
from types import SimpleNamespace

import pytest
from pulumi.automation import CommandError, ConcurrentUpdateError
from pulumi.runtime._callbacks import _CallbackServicer

from nat_pod.config.model import PodConfig
from nat_pod.deployed.stacks import CliError, LockedError, engine_errors
from nat_pod.deployed.trial import Trial
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod

REFUSED = "409-IncorrectState, the VM would be rebooted: AVOID_DOWNTIME was asked for; see the console"
SAID = f"""
 code: 255
 stderr: error: update failed
 error: {REFUSED}
 error: update failed
"""


@pytest.fixture
def plan(dev) -> PodPlan:
    return plan_pod(PodConfig.from_mapping(dev, "dev"), "dev")


def reshaped(plan: PodPlan, said: str, what: str = "nat-pod-trial, stack trial-dev") -> str | None:
    """What a trial makes of these words when it asks for another shape."""

    def fails(_: object) -> None:
        with engine_errors(what):
            raise CommandError(said)

    return Trial._reshape(SimpleNamespace(plan=plan, _pod_up=fails))


def test_each_thing_that_the_cli_said_is_a_line_of_the_error():
    with pytest.raises(CliError) as told, engine_errors("project: a, stack b"):
        raise CommandError(SAID)
    assert told.value.lines == ("update failed", REFUSED)
    assert str(told.value) == f"project: a, stack b: update failed; {REFUSED}"


def test_a_lock_is_told_apart():
    with pytest.raises(LockedError) as told, engine_errors("a"):
        raise ConcurrentUpdateError("error: the stack is currently locked by 1 lock(s)")
    assert told.value.lines == ("the stack is currently locked by 1 lock(s)",)


def test_a_refused_shape_is_told_in_the_whole_line_that_refuses_it(plan):
    assert reshaped(plan, SAID) == REFUSED


def test_a_refused_shape_is_found_whatever_the_stack_is_called(plan):
    assert reshaped(plan, SAID, "project: reboot, stack x") == REFUSED


def test_an_error_about_something_else_is_no_refusal_of_the_shape_whatever_the_stack_is_called(plan):
    with pytest.raises(CliError, match="out of host capacity"):
        reshaped(plan, "error: out of host capacity", "nat-pod-trial, stack trial-downtime")


def test_pulumi_stops_the_servers_in_the_list_that_a_stack_empties_before_its_program(monkeypatch):
    """The list is not public: an upgrade that has it elsewhere fails here, and not in somebody's second trial."""
    stopped = []

    async def stop(*, grace: float) -> None:
        stopped.append(grace)

    servers = [SimpleNamespace(_server=SimpleNamespace(stop=stop))] * 2
    monkeypatch.setattr(_CallbackServicer, "_servicers", servers)
    asyncio.run(_CallbackServicer.shutdown())
    assert len(stopped) == 2
    servers.clear()
    asyncio.run(_CallbackServicer.shutdown())
    assert len(stopped) == 2
