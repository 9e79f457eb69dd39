"""The lab's commands where no packet can be sent, and when there is no lab."""

from dataclasses import replace

import pytest
from conftest import REPOSITORY, project_with

from nat_pod.commands.cli import main
from nat_pod.lab import checks, commands, tenancy
from nat_pod.lab.wire import sandbox

WHY = "this machine gives ordinary users no network namespaces"


@pytest.fixture
def powerless(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sandbox, "available", lambda: WHY)
    monkeypatch.setattr(tenancy, "find_cli", lambda: None)


@pytest.mark.slow
def test_demo_says_why_in_one_sentence_and_shows_the_prediction_over_the_deployed_state(powerless, capsys):
    assert main(["lab", "demo", "dev"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == WHY
    assert lines[2] == "PREDICTED (no packet was sent)"
    predicted = [line.split() for line in lines[4:]]
    delivered = {(words[0], words[1]) for words in predicted if words[3] == "delivered"}
    assert delivered == {
        ("customer1/vm1", "198.18.0.2"),
        ("customer1/vm2", "198.18.0.2"),
        ("customer2/vm2", "198.18.0.2"),
        ("management/mgmt", "198.18.0.130"),
        ("management/mgmt", "198.18.0.131"),
        ("management/mgmt", "198.18.0.66"),
    }
    refused = {words[3] for words in predicted} - {"delivered"}
    # no-route: customer2's own table has no way to 198.18.0.32/27, where customer1/vm2's address is.
    assert refused == {"no-mapping", "no-private-ip", "security-rule", "no-route"}


@pytest.mark.slow
def test_demo_fails_when_the_prediction_is_not_what_is_declared(powerless, monkeypatch, capsys):
    """The deployed network is what is traced: take a route rule out of it and the prediction no longer holds."""
    observe = commands.observe

    def without_routes(region):
        topology = observe(region)
        table = replace(topology.subnets["natVm1-vnic-1"], routes=())
        return replace(topology, subnets={**topology.subnets, "natVm1-vnic-1": table})

    monkeypatch.setattr(commands, "observe", without_routes)
    assert main(["lab", "demo", "dev"]) == 1
    assert "no-route (WRONG)" in capsys.readouterr().out


def test_up_needs_namespaces_and_says_so(powerless, capsys):
    assert main(["lab", "up", "dev"]) == 1
    assert capsys.readouterr().err == WHY + "\n"


@pytest.mark.parametrize("missing", ["Pulumi.yaml", "__main__.py"])
@pytest.mark.parametrize("action", ["up", "demo"])
def test_a_directory_without_the_program_is_said(tmp_path, monkeypatch, capsys, action, missing):
    project_with(tmp_path, "dev", (REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8"))
    (tmp_path / missing).unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sandbox, "available", lambda: None)
    assert main(["lab", action, "dev"]) == 1
    assert capsys.readouterr().err == (
        f"{tmp_path} has no {missing}: the lab runs the Pulumi program of the directory that it is started in; run: "
        "python -m nat_pod new-project\n"
    )


@pytest.mark.parametrize("action", [["check", "dev"], ["shell", "dev", "natVm1"]])
def test_without_a_lab_the_next_command_is_named(monkeypatch, capsys, action):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sandbox, "find", lambda key: None)
    assert main(["lab", *action]) == 1
    assert capsys.readouterr().err == "the lab of dev is not up; run: python -m nat_pod lab up dev\n"


def test_a_report_without_probes_in_both_lists_does_not_pass():
    """No probe is no proof: an empty run must not look like a good one."""
    assert not checks.Report().passed
