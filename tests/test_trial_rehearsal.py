"""Trials from zero to destroyed: the real engine by its Automation API, the simulated region, VMs that boot."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import project_with, real_stack
from small_networks import needs_lab
from test_engine import cli

from nat_pod.deployed.trial import Trial, TrialEndedError
from nat_pod.errors import NatPodError
from nat_pod.lab import rehearsal
from nat_pod.lab.rehearsal import PATIENCE, Rehearsal
from nat_pod.lab.wire import sandbox
from nat_pod.trial.assumptions import Verdict
from nat_pod.trial.report import report_text

pytestmark = [
    pytest.mark.engine,
    pytest.mark.lab,
    pytest.mark.runs_commands,
    needs_lab,
    # Pulumi leaves loops open of programs that run in this process; elsewhere they end with it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]

__all__ = ["cli"]

IN_A_PROCESS_OF_ITS_OWN = """
import sys
from pathlib import Path
from nat_pod.deployed.trial import Trial
from nat_pod.errors import NatPodError
from nat_pod.lab.rehearsal import PATIENCE
try:
    Trial(Path.cwd(), "dev", lambda words: print(words, flush=True), patience=PATIENCE).run()
except NatPodError as error:
    sys.exit(str(error))
"""


def silent(_: str) -> None:
    """Nobody listens."""


@pytest.fixture(autouse=True)
def loops_that_pulumi_leaves_open() -> Iterator[None]:
    """What is left of them goes before the next module's tests begin."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The program, with a stack that is no example."""
    directory = tmp_path / "project"
    directory.mkdir()
    return project_with(directory, "dev", real_stack("dev"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everybody makes their temporary files."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


@pytest.fixture
def tenancy(project: Path, cli: Path, temporary: Path) -> Iterator[Rehearsal]:
    with Rehearsal(project, "dev", silent) as found:
        yield found
    gc.collect()
    assert list(temporary.iterdir()) == []


def left(tenancy: Rehearsal) -> list[object]:
    """What there is in the region, in the backend and in the lab."""
    stacks = tenancy.region.path.parent.glob("pulumi/state/.pulumi/stacks/**/*.json")
    things = [record.name for record in tenancy.region.all(*tenancy.region.kinds())]
    return [*things, *stacks]


def interrupted(project: Path, step: str) -> str:
    """A trial that gets ^C, as a terminal sends it, a moment after it has announced a step; what it said in the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if step in line:
            break
    else:
        pytest.fail(f"it never came to {step}: {process.communicate()[1]}")
    time.sleep(0.7)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in said
    return said


POLICY = """  nat-pod:policy:
    - {from: customer1, to: management, allow: [tcp/443, udp/514, icmp]}
    - {from: management, to: customer1/vm2, allow: [tcp/22]}
"""


def test_a_trial_that_is_interrupted_goes_on_where_it_was_and_leaves_nothing(tenancy, project):
    """With a policy, so hosts listen on its ports, too, and on those beside them."""
    with (project / "Pulumi.dev.yaml").open("a", encoding="utf-8") as file:
        file.write(POLICY)
    said = interrupted(project, "neighbours: pulumi up")
    assert "of the neighbours; to go on: python -m nat_pod trial dev; " in said
    assert "to take it down: python -m nat_pod trial dev --destroy" in said
    assert len(left(tenancy)) > 10

    trial = Trial(project, "dev", silent, patience=PATIENCE)
    report = trial.run()
    assert report.passed, report_text(report)
    assert {row.verdict for row in report.rows} == {Verdict.HOLDS}
    assert len(report.flows) == 77
    trial.check_is_there()
    trial.destroy()
    assert left(tenancy) == []
    Trial(project, "dev", silent, patience=PATIENCE).destroy()  # again: there is nothing to do
    with pytest.raises(NatPodError, match="has no stack trial-dev of"):
        Trial(project, "dev", silent, patience=PATIENCE).check_is_there()
    assert left(tenancy) == []


def test_what_the_tenancy_refuses_ends_it_with_the_next_command_and_all_of_it_can_be_taken_down(
    project, cli, monkeypatch
):
    prepare = rehearsal.prepare

    def with_a_small_quota(*arguments: object) -> object:
        plan, region = prepare(*arguments)
        region.limits = replace(region.limits, lpgs=1)
        return plan, region

    monkeypatch.setattr(rehearsal, "prepare", with_a_small_quota)
    with Rehearsal(project, "dev", silent) as tenancy:
        trial = Trial(project, "dev", silent, patience=PATIENCE)
        with pytest.raises(TrialEndedError, match="LimitExceeded") as ended:
            trial.run()
        assert "still up: " in str(ended.value)
        assert "to take it down: python -m nat_pod trial dev --destroy" in str(ended.value)
        assert left(tenancy) != []
        trial.destroy()
        assert left(tenancy) == []


def test_a_backend_that_is_not_there_is_a_sentence(tenancy, project, monkeypatch):
    monkeypatch.setenv("PULUMI_BACKEND_URL", "file:///nowhere/at/all")
    with pytest.raises(NatPodError, match="nowhere") as ended:
        Trial(project, "dev", silent, patience=PATIENCE).run()
    assert "python -m nat_pod trial dev" in str(ended.value)
    assert left(tenancy) == []


def test_a_rehearsal_ends_with_its_block_and_gives_the_environment_back(project, cli, monkeypatch):
    monkeypatch.setenv("PULUMI_HOME", "/my/own")
    with Rehearsal(project, "dev", silent) as tenancy:
        assert os.environ["PULUMI_HOME"] != "/my/own"
        folder, key = tenancy.region.path.parent, tenancy.key
        assert sandbox.find(key) is not None
    assert os.environ["PULUMI_HOME"] == "/my/own"
    assert sandbox.find(key) is None
    assert not folder.exists()
