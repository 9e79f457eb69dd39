"""Every command's output in the terminals people have: 80 columns, narrow, piped, without colour, without UTF-8.

A command is one row of COMMANDS.  Whatever the terminal, all words are there; only white space between them differs.
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nat_pod.commands.cli import main
from nat_pod.config.stack_file import read_stack
from nat_pod.text import Progress, markdown_table

REPOSITORY = Path(__file__).resolve().parent.parent

# Name: (command line, whether its lines fit into 80 columns: what is wider is meant for a program or a file).
COMMANDS: dict[str, tuple[list[str], bool]] = {
    "check": (["check", "dev"], True),
    "allocate": (["allocate", "dev"], True),
    "plan": (["plan", "dev"], False),
    "rules": (["rules", "dev", "--vm", "natVm1"], False),
    "trace": (["trace", "dev", "customer1/vm1", "management/mgmt"], True),
    "trace, dead": (["trace", "dev", "customer1/vm1", "customer2/vm2"], True),
    "trace, no address": (["trace", "dev", "management/mgmt", "customer1/10.0.0.77"], True),
    "trace --steps": (["trace", "dev", "customer1/vm1", "management/mgmt", "--steps"], True),
    "diff": (["diff", "dev", "--base", "main"], True),
    "trace --all": (["trace", "dev", "--all"], True),
    "whois": (["whois", "10.0.0.100"], False),
    "move": (["move", "dev", "routed"], True),
}


@pytest.fixture
def output(tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """`output("trace", "80")`: the lines a command writes to a pipe, with COLUMNS and an encoding."""
    for name in ("Pulumi.yaml", "Pulumi.dev.yaml"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    # What git would find at the revision; the command must not start it here.
    monkeypatch.setattr("nat_pod.commands.diff.read_stack_at", lambda directory, stack, _: read_stack(directory, stack))
    monkeypatch.setattr("nat_pod.commands.diff.file_at", lambda directory, name, _: (directory / name).read_text())

    def run(name: str, columns: str | None, encoding: str = "utf-8") -> list[str]:
        if columns is None:
            monkeypatch.delenv("COLUMNS", raising=False)
        else:
            monkeypatch.setenv("COLUMNS", columns)
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", stream)
        (tmp_path / "Pulumi.routed.yaml").unlink(missing_ok=True)  # `move` says whether it wrote it
        assert main(COMMANDS[name][0]) in (0, 1)
        stream.flush()
        return raw.getvalue().decode(encoding).splitlines()

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_plain_lines_that_fit(output, name):
    lines = output(name, "80")
    assert lines
    assert not [line for line in lines if "\x1b" in line or line != line.rstrip()]
    if COMMANDS[name][1]:
        assert [line for line in lines if len(line) > 80] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_is_80_columns_wide(output, name, monkeypatch):
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())
    assert output(name, None) == output(name, "80")


@pytest.mark.slow
@pytest.mark.parametrize(
    "columns", ["20", "200", *(pytest.param(columns, marks=pytest.mark.sweep) for columns in ("40", "53", "54"))]
)
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_lost_in_a_narrow_or_a_wide_terminal(output, name, columns):
    def words(lines: list[str]) -> list[str]:
        return " ".join(lines).split()

    assert words(output(name, columns)) == words(output(name, "80"))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_without_utf_8_gets_the_same_text(output, name):
    assert output(name, "80", "ascii") == output(name, "80")


def test_a_value_that_the_terminal_cannot_show_is_escaped_and_no_traceback(output, tmp_path):
    text = (tmp_path / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    changed = text.replace("sourceNat: masquerade", "sourceNat: n\u00e4t")
    assert changed != text
    (tmp_path / "Pulumi.dev.yaml").write_text(changed, encoding="utf-8")
    assert (
        output("check", "80", "ascii")[1]
        == '  Pulumi.dev.yaml:23: nat-pod:sourceNat: "n\\xe4t": must be masquerade or static'
    )
    assert (
        output("check", "80")[1] == '  Pulumi.dev.yaml:23: nat-pod:sourceNat: "n\u00e4t": must be masquerade or static'
    )


def test_a_cell_of_a_markdown_table_stays_one_cell() -> None:
    assert markdown_table(["a", "b"], [["x|y", "z"]]) == "| a | b |\n| --- | --- |\n| x\\|y | z |"


def test_progress_has_a_clock_of_seconds_or_of_minutes_which_has_no_sixtieth_second(capsys, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    short, long = Progress(), Progress(minutes=True)
    for passed in (59.94, 59.96, 725.0):
        monkeypatch.setattr(time, "monotonic", lambda passed=passed: passed)
        short("a step")
        long("a step")
    assert capsys.readouterr().err.splitlines() == [
        f"[{clock}] a step" for clock in (" 59.9 s", "  0:59", " 60.0 s", "  0:59", "725.0 s", " 12:05")
    ]
