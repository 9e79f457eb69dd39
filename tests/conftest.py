"""What all tests share.

Conventions
- Addresses are the article's, from Pulumi.dev.yaml: the POD is 198.18.0.0/22; customer1 is 10.0.0.0/24 (vm1 .100,
  vm2 .130), customer2 is 10.0.1.0/24 (vm2 .100), management is 10.0.0.0/16 (mgmt 10.0.0.100).
- Expected values are literals.  Whole outputs are files in golden/; `--update-golden` rewrites them: read the diff.
- Tests start no programs, unless they say so with the marker `runs_commands` or `lab`.
- In CI (environment variable CI) a skipped test is a failed one.
"""

import copy
import difflib
import gc
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from nat_pod.commands.cli import main

if TYPE_CHECKING:
    from region_world import World

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
MAY_RUN_COMMANDS = ("lab", "runs_commands", "vm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing with them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --update-golden only tests that have such files: `make golden` takes seconds instead of the whole suite."""
    if config.getoption("--update-golden"):
        items[:] = [item for item in items if "golden" in getattr(item, "fixturenames", ())]


def pytest_collection_finish() -> None:
    """What is there when the tests begin stays; looking through it again and again took a tenth of their time."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    return _no_skips_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    return _no_skips_in_ci((yield))


def _no_skips_in_ci(report: pytest.TestReport | pytest.CollectReport) -> pytest.TestReport | pytest.CollectReport:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report


class CommandInTestError(BaseException):
    """Not an Exception, so that no `except Exception` in the code under test can hide it."""


@pytest.fixture(autouse=True)
def no_commands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a program raises.  The pure part of nat-pod stays pure by force of habit."""
    if any(request.node.get_closest_marker(name) for name in MAY_RUN_COMMANDS):
        return

    def refuse(*arguments: object, **_: object) -> None:
        raise CommandInTestError(f"this test starts a program; mark it runs_commands if it must: {arguments[-1:]}")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    # A Popen that was never made is still finalised.
    monkeypatch.setattr(subprocess.Popen, "__del__", lambda _: None)
    monkeypatch.setattr(os, "system", refuse)


@pytest.fixture
def dev() -> dict[str, object]:
    """Pulumi.dev.yaml without the prefix, the caller's own copy: what PodConfig.from_mapping takes."""
    return stack_mapping("dev")


@pytest.fixture
def ten() -> dict[str, object]:
    """Pulumi.ten.yaml in the same form: ten customers, sixty hosts, five servers, the planner's own layout."""
    return stack_mapping("ten")


@pytest.fixture
def world() -> "World":
    """A small network in the simulated region, which most tests do without: it takes as long to load as all else."""
    from region_world import World

    return World()


def project_with(directory: Path, stack: str, text: str) -> Path:
    """A project with one stack file of its own; the program, the package and the guest are the real ones."""
    for name in ("Pulumi.yaml", "__main__.py", "nat_pod", "cloud-init"):
        (directory / name).symlink_to(REPOSITORY / name)
    (directory / f"Pulumi.{stack}.yaml").write_text(text, encoding="utf-8")
    return directory


def real_stack(name: str) -> str:
    """A stack file of the repository as that of a POD which is no example: its compartment might exist."""
    text = (REPOSITORY / f"Pulumi.{name}.yaml").read_text(encoding="utf-8")
    assert text.count("oc1..example") == 1
    return text.replace("oc1..example", "oc1..aaaa")


def stack_mapping(name: str) -> dict[str, object]:
    prefix = "nat-pod:"
    config = _config(name)
    return copy.deepcopy({key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)})


@cache  # a thousand tests begin with it
def _config(stack: str) -> dict[str, object]:
    return yaml.safe_load((REPOSITORY / f"Pulumi.{stack}.yaml").read_text(encoding="utf-8"))["config"]


def git(directory: Path, *arguments: str) -> None:
    """A git command as somebody who has a name and signs nothing, whatever this machine's settings say."""
    who = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=directory, check=True, capture_output=True)


def eventually(condition: Callable[[], object], seconds: float = 5) -> bool:
    """Whether it is so in the end: a busy machine is given the time that it takes."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs: empty, on a terminal of 100 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def run_import(directory: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`run_import({"natVm1": text, "natVm2": text}, "--json")`: exit status, standard output, standard error."""

    def call(rules: dict[str, str | bytes], *options: str) -> tuple[int, str, str]:
        for number, vm in enumerate(("natVm1", "natVm2"), 1):
            data = rules[vm]
            (directory / f"vm{number}").write_bytes(data.encode() if isinstance(data, str) else data)
        try:
            status = main(["import", "--vm1", "vm1", "--vm2", "vm2", *options])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("plan-dev.txt", text)`: the text is what the file has, or with --update-golden becomes it."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.is_file(), f"there is no {path}; make it with --update-golden and read it"
        expected = path.read_text(encoding="utf-8")
        difference = difflib.unified_diff(
            expected.splitlines(), text.splitlines(), f"golden/{name}", "this run", lineterm=""
        )
        assert text == expected, "\n".join(difference)

    return compare


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the project file and the article's POD, no example here, as the current one."""
    (tmp_path / "Pulumi.yaml").write_bytes((REPOSITORY / "Pulumi.yaml").read_bytes())
    (tmp_path / "Pulumi.dev.yaml").write_text(real_stack("dev"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def run(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`run("check", "dev")`: exit status, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse: --help, or a wrong command line
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def edit(project: Path, *changes: tuple[str, str], stack: str = "dev") -> str:
    """Replace text in a copy of the article's POD; each piece stands there exactly once."""
    text = real_stack("dev")
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (project / f"Pulumi.{stack}.yaml").write_text(text, encoding="utf-8")
    return text
