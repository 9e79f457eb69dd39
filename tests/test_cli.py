"""The command line: what each command prints, word for word, and its exit status.

Address plan: the article's (conftest.py).  Whole outputs are in golden/.  What belongs to one command is in a file
of its own: test_check.py, test_allocate.py, test_trace_command.py, test_pods.py, test_handover.py, test_diff.py, ...
"""

import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from conftest import REPOSITORY, edit

import nat_pod

# --- whole outputs ---------------------------------------------------------------------------------------------------

COMMANDS = {
    "check": ["check", "dev"],
    "plan": ["plan", "dev"],
    "rules-natVm1": ["rules", "dev", "--vm", "natVm1"],
    "rules-natVm2": ["rules", "dev", "--vm", "natVm2"],
    "rules-natVm1-article": ["rules", "dev", "--vm", "natVm1", "--article"],
    "rules-natVm2-article": ["rules", "dev", "--vm", "natVm2", "--article"],
    "trace-case-1": ["trace", "dev", "customer1/vm1", "management/mgmt"],
    "trace-case-6-tcp": ["trace", "dev", "management/mgmt", "customer1/vm2", "--protocol", "tcp", "--port", "443"],
    "trace-case-6-steps": ["trace", "dev", "management/mgmt", "customer1/vm2", "--steps"],
    "trace-all": ["trace", "dev", "--all"],
    "allocate": ["allocate", "dev"],
    "move": ["move", "dev", "routed"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_text_of_a_command_is_the_golden_one(run, golden, name):
    status, out, err = run(*COMMANDS[name])
    assert (status, err) == (0, "")
    golden(f"cli-{name}.txt", out)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_json_of_a_command_is_the_golden_one(run, golden, name):
    status, out, err = run(*COMMANDS[name], "--json")
    assert (status, err) == (0, "")
    json.loads(out)
    golden(f"cli-{name}.json", out)


HELP = [
    [],
    ["check"],
    ["pods"],
    ["whois"],
    ["new-project"],
    ["new-pod"],
    ["move"],
    ["allocate"],
    ["plan"],
    ["rules"],
    ["trace"],
    ["handover"],
    ["diff"],
    ["import"],
    ["status"],
    ["trial"],
    ["lab"],
    ["lab", "up"],
    ["lab", "preview"],
    ["lab", "apply"],
    ["lab", "check"],
    ["lab", "shell"],
    ["lab", "fail"],
    ["lab", "recover"],
    ["lab", "down"],
]


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_the_help_of_a_command_is_the_golden_one(run, golden, command):
    status, out, err = run(*command, "--help")
    assert (status, err) == (0, "")
    golden(f"help{''.join(f'-{word}' for word in command)}.txt", out)


def test_each_command_has_its_help_among_the_golden_ones(run):
    _, out, _ = run("--help")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("    ") and line[4] != " "]
    assert sorted(set(listed) - {"COMMAND"}) == sorted({command[0] for command in HELP if command})


# --- the program's name and version ----------------------------------------------------------------------------------


def test_the_version_is_said_and_nothing_else(run):
    assert run("--version") == (0, f"nat-pod {nat_pod.__version__}\n", "")


def test_the_version_is_written_once():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "nat_pod.__version__"}


@pytest.mark.parametrize(
    ("started_as", "name"),
    [("/home/ops/.venv/bin/nat-pod", "nat-pod"), ("/work/nat_pod/__main__.py", "python -m nat_pod")],
)
def test_the_usage_has_the_name_that_was_typed(run, monkeypatch, started_as, name):
    monkeypatch.setattr("sys.argv", [started_as])
    assert run("plan")[2].startswith(f"usage: {name} plan ")


def test_the_installed_program_takes_the_command_line_and_passes_the_status_on(project, monkeypatch, capsys):
    """What pip makes of the entry point is `sys.exit(program())`."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert list(declared) == ["nat-pod"]
    module, _, function = declared["nat-pod"].partition(":")
    monkeypatch.setattr("gc.disable", lambda: None)  # these tests go on after it
    monkeypatch.setattr("sys.argv", ["nat-pod", "check", "dve"])
    assert getattr(import_module(module), function)() == 1
    assert capsys.readouterr().err.startswith("Pulumi.dve.yaml: no such stack file")


# --- exit statuses and where things are printed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["chekc"],
        ["plan"],
        ["plan", "dev", "prod"],
        ["plan", "dev", "--jsno"],
        ["rules", "dev"],
        ["trace", "dev"],
        ["trace", "dev", "customer1/vm1"],
        ["trace", "dev", "customer1/vm1", "--all"],
        ["trace", "dev", "--all", "--steps"],
        ["trace", "dev", "customer1/vm1", "management/mgmt", "--protocol", "sctp"],
        ["trace", "dev", "customer1/vm1", "management/mgmt", "--port", "0"],
        ["trace", "dev", "customer1/vm1", "management/mgmt", "--port", "65536"],
        ["trace", "dev", "customer1/vm1", "management/mgmt", "--port", "http"],
        ["handover", "dev"],
        ["pods", "dev"],
        ["new-pod"],
        ["new-pod", "prod", "--size", "26"],
        ["new-pod", "prod", "--size", "15"],
        ["new-pod", "prod", "--size", "large"],
        ["lab"],
        ["lab", "pu", "dev"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_2_and_says_so_on_standard_error(run, arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: python -m nat_pod")
    assert ": error: " in err.splitlines()[-1]


STACK_COMMANDS = [
    ["check", "dve"],
    ["allocate", "dve"],
    ["plan", "dve"],
    ["rules", "dve", "--vm", "natVm1"],
    ["trace", "dve", "customer1/vm1", "management/mgmt"],
    ["handover", "dve", "customer1"],
]


@pytest.mark.parametrize("arguments", STACK_COMMANDS, ids=lambda arguments: arguments[0])
def test_a_stack_that_does_not_exist_is_one_sentence(run, project, arguments):
    sentence = f"Pulumi.dve.yaml: no such stack file in {project}; stacks here are: dev\n"
    assert run(*arguments) == (1, "", sentence)


@pytest.mark.parametrize("arguments", STACK_COMMANDS[1:], ids=lambda arguments: arguments[0])
def test_a_stack_file_with_problems_is_reported_by_each_command(run, project, arguments):
    before = edit(project, ("sourceNat: masquerade", "sourceNat: snat"), ("/22 ", "/33 "), stack="dve")
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert err == (
        "Pulumi.dve.yaml: 2 problems\n"
        '  Pulumi.dve.yaml:6: nat-pod:cidr: "198.18.0.0/33": must be an IPv4 network in CIDR form, e.g. 198.18.0.0/22\n'
        '  Pulumi.dve.yaml:23: nat-pod:sourceNat: "snat": must be masquerade or static\n'
    )
    assert (project / "Pulumi.dve.yaml").read_text(encoding="utf-8") == before
    assert sorted(path.name for path in project.iterdir()) == ["Pulumi.dev.yaml", "Pulumi.dve.yaml", "Pulumi.yaml"]


# --- check -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "pods"])
def test_a_file_whose_name_is_an_escape_sequence_reaches_no_terminal(run, project, command):
    edit(project, stack="\x1b[2J\n")
    status, out, err = run(command)
    assert (status, "\x1b" in out + err, "\\x1b[2J\\n" in out) == (1, False, True)
    for arguments in (
        ["plan", "\x1b[2J\n", "--svg", "pod.svg"],
        ["new-pod", "prod"],
        ["trace", "dev", "\x1b[31m", "x"],
    ):
        status, out, err = run(*arguments)
        assert (status, out, "\x1b" in err, "\\x1b" in err) == (1, "", False, True)
    assert not (project / "pod.svg").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Pulumi.dev.yaml", "./Pulumi.dev.yaml"])
@pytest.mark.parametrize(
    "arguments", [["check", "STACK"], ["plan", "STACK"], ["trace", "STACK", "--all"]], ids=" ".join
)
def test_the_file_of_a_stack_means_the_stack(run, name, arguments):
    def named(stack: str) -> list[str]:
        return [stack if argument == "STACK" else argument for argument in arguments]

    assert run(*named(name)) == run(*named("dev"))


def test_the_file_of_a_new_stack_means_the_stack(run):
    assert run("new-pod", "Pulumi.prod.yaml")[1].startswith("written  Pulumi.prod.yaml: ")


def test_a_file_of_another_directory_is_not_the_one_here(run):
    status, out, err = run("check", "pods/Pulumi.dev.yaml")
    assert (status, out, "no such stack file" in err) == (1, "", True)


# --- the process -----------------------------------------------------------------------------------------------------


def test_an_interruption_ends_with_130(run, monkeypatch):
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nat_pod.commands.check.stack_names", interrupt)
    assert run("check") == (130, "", "")


@pytest.mark.slow
@pytest.mark.runs_commands
@pytest.mark.parametrize("arguments", [["plan", "dev"], ["check"], ["plan", "dev", "--json"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(project, arguments):
    """`| head`: nothing on standard error, whether the output is larger than a buffer or not."""
    with subprocess.Popen(
        [sys.executable, "-m", "nat_pod", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=project,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def run_program(project: Path, *arguments: str, options: tuple[str, ...] = (), **environment: str) -> tuple[int, str]:
    """Exit status and standard error of a process whose standard output is a full disk."""
    command = [sys.executable, *options, "-m", "nat_pod", *arguments]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "", **environment}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=project, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.runs_commands
@pytest.mark.parametrize("unbuffered", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["plan", "dev"], ["check", "--json"], ["pods"]], ids=" ".join)
def test_a_full_disk_is_one_line(project, arguments, unbuffered):
    sentence = "standard output cannot be written: No space left on device\n"
    assert run_program(project, *arguments, **unbuffered) == (1, sentence)


@pytest.mark.runs_commands
@pytest.mark.parametrize("module", ["argparse", "netaddr", "yaml"])
def test_an_interruption_of_what_is_loaded_first_is_no_traceback(project, tmp_path, module):
    """Ctrl-C in the first tenth of a second, which goes into imports."""
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / f"{module}.py").write_text("raise KeyboardInterrupt\n")
    path = f"{tmp_path / 'early'}{os.pathsep}{REPOSITORY}"
    assert run_program(project, "check", PYTHONPATH=path) == (130, "")


@pytest.mark.runs_commands
def test_a_python_without_what_nat_pod_needs_is_told_how_to_get_it(project):
    status, err = run_program(project, "check", options=("-S",))
    assert status == 1
    assert err == (
        f"{sys.executable} has no netaddr, which nat-pod needs: type `make venv`, then `. .venv/bin/activate`\n"
    )


@pytest.mark.slow
@pytest.mark.runs_commands
def test_the_module_runs_as_a_program_and_passes_its_status_on(project):
    def status(*arguments: str) -> int:
        command = [sys.executable, "-m", "nat_pod", *arguments]
        environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, check=False).returncode

    assert [status("check"), status("check", "dve"), status("chekc")] == [0, 1, 2]
