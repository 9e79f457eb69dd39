"""`status --fetch`: reports from serial consoles, by Pulumi's Automation API, the real engine and the region."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import project_with, real_stack
from test_engine import Pod, cli
from test_status import on_console, reported

from nat_pod.commands.cli import main
from nat_pod.lab.region.kinds import CONSOLE_HISTORY, INSTANCE

pytestmark = [pytest.mark.engine, pytest.mark.runs_commands]

__all__ = ["cli"]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, cli: Path) -> Pod:
    """dev after its first `up`; its consoles hold reports."""
    base = tmp_path_factory.mktemp("fetch")
    project = project_with(tmp_path_factory.mktemp("project"), "dev", real_stack("dev"))
    pod = Pod.new(base, cli, directory=project)
    pod.config = yaml.safe_load(real_stack("dev"))["config"]
    pod.save()
    pod.engine.up()
    return pod


@pytest.fixture
def pod(deployed: Pod, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    """The engineer's own shell, where `pulumi` finds the backend, the plugins and the tenancy."""
    for name, value in deployed.engine._environment().items():
        if name.startswith(("PULUMI_", "NAT_POD_")):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(deployed.engine._cli).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(deployed.region.path.parent / "pulumi" / "project")
    report_all(deployed)
    yield deployed
    assert deployed.region.all(CONSOLE_HISTORY) == [], "captures are left"


def report_all(pod: Pod, **changes: object) -> None:
    plan = pod.plan()
    for vm in plan.vms:
        console = "[    0.1] Linux version\r\n" + on_console({**reported(plan, vm.key), **changes})
        pod.region.report_console(pod.find(INSTANCE, vm.key), console)


def status(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = main(["status", "dev", *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_consoles_are_captured_read_and_gone_again(pod, capsys):
    code, out, err = status(capsys, "--fetch")
    assert "capturing the serial consoles of natVm1, natVm2\nremoving the captures\n" in err
    assert re.search(r"^ *open flows +2 +3$", out, re.MULTILINE), out
    assert code == 1, "a report of 2025 is old"
    # Again: what was captured the first time is not what is read now.
    report_all(pod, applied="0123456789abcdef")
    code, out, _ = status(capsys, "--fetch")
    assert code == 1
    assert "0123456789abcdef" in out


def test_a_console_without_a_report_is_told(pod, capsys):
    pod.region.report_console(pod.find(INSTANCE, "natVm2"), "cloud-init: runcmd failed\r\n")
    code, out, _ = status(capsys, "--fetch")
    assert code == 1
    assert "natVm2: " in out
    assert "Traceback" not in out


def test_captures_of_a_call_that_was_killed_go_with_the_next(pod, capsys, monkeypatch):
    from nat_pod.deployed import consoles

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(consoles.automation.Stack, "destroy", killed)
        with pytest.raises(Killed):
            main(["status", "dev", "--fetch"])
    capsys.readouterr()
    assert len(pod.region.all(CONSOLE_HISTORY)) == 2
    _, _, err = status(capsys, "--fetch")
    assert "removing the captures of a call that was cut short\n" in err


def test_what_the_tenancy_refuses_is_said_in_its_words(pod, capsys, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setenv("PULUMI_BACKEND_URL", f"file://{tmp_path}")
        code, _, err = status(capsys, "--fetch")
    assert code == 1
    assert "has no stack dev of this project; next: pulumi stack ls" in err
    code, _, err = status(capsys, "--fetch", "--report", "natVm1=x")
    assert code == 1
    assert "leave out --report and --outputs" in err


def test_without_a_cli_it_says_where_to_get_one(pod, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = status(capsys, "--fetch")
    assert code == 1
    assert "no pulumi CLI; install it from" in err
