"""The project's own files: what Pulumi.yaml declares is what the code reads, and the linters have nothing to say."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from nat_pod.config import any_config
from nat_pod.config.delivery import Delivery, only
from nat_pod.config.model import PodConfig
from nat_pod.config.stack_file import read_stack

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = yaml.safe_load((REPOSITORY / "Pulumi.yaml").read_text(encoding="utf-8"))
DECLARED = PROJECT["config"]

REQUIRED = {"compartmentId", "cidr", "natVm", "management", "customers"}
OPTIONAL = {
    "delivery": "privateIps",
    "sourceNat": "masquerade",
    "lpgLimit": 10,
    "subnets": {},
    "gateways": {},
    "standby": True,
    "vcnCidr": "",
    "balancerLimit": 3,
    "movesFrom": "",
    "names": {},
    "protect": "nothing",
    "policy": [],
    "tags": {},
    "addresses": {},
}
TYPES = {
    "compartmentId": "string",
    "cidr": "string",
    "natVm": "object",
    "management": "object",
    "customers": "object",
    "delivery": "string",
    "sourceNat": "string",
    "lpgLimit": "integer",
    "subnets": "object",
    "gateways": "object",
    "standby": "boolean",
    "vcnCidr": "string",
    "balancerLimit": "integer",
    "movesFrom": "string",
    "names": "object",
    "protect": "string",
    "policy": "array",
    "tags": "object",
    "addresses": "object",
}


# --- Pulumi.yaml -----------------------------------------------------------------------------------------------------


def test_each_setting_that_the_code_reads_is_declared_and_no_other():
    """The code's own list: what it names as known when somebody writes a key it does not know."""
    known = set()
    for delivery in Delivery:
        with pytest.raises(Exception, match="known are") as refused:
            any_config.read({"flavour": 1, "delivery": delivery}, "x")
        rule = next(problem.rule for problem in refused.value.problems if "known are" in problem.rule)
        known |= set(rule.split("known are ")[1].split(", "))
    assert known == set(DECLARED) == REQUIRED | set(OPTIONAL)


def test_each_setting_that_the_code_misses_has_no_default_and_each_other_has_one():
    for delivery in Delivery:
        with pytest.raises(Exception, match="is missing") as refused:
            any_config.read({"delivery": delivery}, "x")
        assert {problem.path.removeprefix("nat-pod:") for problem in refused.value.problems} == REQUIRED
    assert {key: entry["default"] for key, entry in DECLARED.items() if "default" in entry} == OPTIONAL


@pytest.mark.parametrize("key", TYPES)
def test_a_setting_is_declared_with_its_type_and_a_description(key):
    assert DECLARED[key]["type"] == TYPES[key]
    assert len(DECLARED[key]["description"]) > 20
    assert set(DECLARED[key]) <= {"type", "items", "description", "default"}


def test_the_declared_defaults_are_what_the_code_takes_without_them(dev):
    del dev["sourceNat"]
    without = PodConfig.from_mapping(dev, "dev")
    declared = {key: value for key, value in OPTIONAL.items() if key not in dev and key not in only(Delivery.ROUTES)}
    assert declared == {
        "delivery": "privateIps",
        "sourceNat": "masquerade",
        "lpgLimit": 10,
        "names": {},
        "protect": "nothing",
        "policy": [],
        "tags": {},
    }
    assert PodConfig.from_mapping({**dev, **declared}, "dev") == without


def test_the_program_knows_which_settings_are_objects():
    """The CLI hands those over as JSON; the others as they are written."""
    tree = ast.parse((REPOSITORY / "__main__.py").read_text(encoding="utf-8"))
    (objects,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "OBJECTS"
    )
    assert set(objects) == {key for key, kind in TYPES.items() if kind in ("object", "array")}


# --- Pulumi.dev.yaml -------------------------------------------------------------------------------------------------


def test_the_dev_stack_is_the_articles_example():
    config = read_stack(REPOSITORY, "dev").config
    shown = {key: value for key, value in config.items() if key not in ("nat-pod:compartmentId", "nat-pod:natVm")}
    assert shown == {
        "oci:region": "uk-london-1",
        "nat-pod:cidr": "198.18.0.0/22",
        "nat-pod:management": {
            "cidr": "10.0.0.0/16",
            "vrouter": "198.18.0.167",
            "servers": {"mgmt": "10.0.0.100"},
        },
        "nat-pod:customers": {
            "customer1": {"cidr": "10.0.0.0/24", "hosts": {"vm1": "10.0.0.100", "vm2": "10.0.0.130"}},
            "customer2": {"cidr": "10.0.1.0/24", "hosts": {"vm2": "10.0.1.100"}},
        },
        "nat-pod:delivery": "privateIps",
        "nat-pod:sourceNat": "masquerade",
        "nat-pod:lpgLimit": 10,
        "nat-pod:subnets": {
            "natVm1": ["198.18.0.0/27", "198.18.0.32/27"],
            "natVm2": ["198.18.0.128/27", "198.18.0.64/27"],
            "vrouter": "198.18.0.160/28",
        },
        "nat-pod:names": {},
        "nat-pod:protect": "nothing",
        "nat-pod:policy": [],
        "nat-pod:tags": {},
        "nat-pod:addresses": {
            "management/mgmt": {"natVm1": "198.18.0.2", "natVm2": "198.18.0.130"},
            "customer1/vm1": {"natVm1": "198.18.0.2", "natVm2": "198.18.0.130"},
            "customer1/vm2": {"natVm1": "198.18.0.34", "natVm2": "198.18.0.66"},
            "customer2/vm2": {"natVm1": "198.18.0.3", "natVm2": "198.18.0.131"},
        },
    }
    assert config["nat-pod:natVm"]["shape"] == "VM.Standard2.24"


# --- linters ---------------------------------------------------------------------------------------------------------


@pytest.mark.runs_commands
@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], pytest.param(["mypy"], marks=pytest.mark.sweep)],
    ids=" ".join,
)
def test_the_linters_have_nothing_to_say(command):
    """`mypy` is strict by pyproject.toml.  Without the tool the test is skipped, which CI does not allow."""
    beside = str(Path(sys.executable).parent)
    tool = shutil.which(command[0], path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if tool is None:
        pytest.skip(f"{command[0]} is not installed: pip install -e '.[dev]'")
    result = subprocess.run([tool, *command[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_mypy_is_strict_over_the_package_and_the_programs():
    mypy = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert (mypy["strict"], mypy["python_version"]) == (True, "3.11")
    assert mypy["files"] == ["nat_pod", "bench", "neighbours/__main__.py", "__main__.py"]


# --- the tests themselves (conftest.py) ------------------------------------------------------------------------------


def test_the_quick_suite_leaves_out_markers_that_there_are():
    """pytest says nothing of a marker in `-m` that no test has."""
    quick = (REPOSITORY / "tools/quick").read_text(encoding="utf-8")
    left_out = set(re.findall(r"not (\w+)", quick))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {line.split(":")[0] for line in project["tool"]["pytest"]["ini_options"]["markers"]}
    assert left_out == declared - {"vm", "runs_commands"}  # `vm` is not in testpaths


def test_a_test_that_starts_a_program_without_saying_so_fails():
    with pytest.raises(BaseException, match="this test starts a program") as refused:
        subprocess.run(["true"], check=True)
    assert not isinstance(refused.value, Exception)
    with pytest.raises(BaseException, match="this test starts a program"):
        os.system("true")


@pytest.mark.slow
@pytest.mark.runs_commands
def test_processes_that_share_the_test_files_run_each_test_once(tmp_path):
    for number in range(8):
        log = tmp_path / "ran"
        (tmp_path / f"test_{number}.py").write_text(
            f"import time\ndef note(name):\n    time.sleep(0.02)\n    open({str(log)!r}, 'a').write(name + ' ')\n"
            + "".join(f"def test_{name}():\n    note('{number}{name}')\n" for name in "abc")
        )
    (tmp_path / "taken").mkdir()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tools.share_tests"]
    command += [f"--taken={tmp_path / 'taken'}", "--rootdir", str(tmp_path), str(tmp_path)]
    started = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env={**os.environ, "CI": ""})
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    ran = log.read_text().split()
    assert sorted(ran) == sorted(f"{number}{name}" for number in range(8) for name in "abc")
    passed = [int(re.search(r"(\d+) passed|no tests ran", text)[1] or 0) for text in said]
    assert sum(passed) == 24


@pytest.mark.slow
@pytest.mark.runs_commands
@pytest.mark.parametrize(("ci", "status", "summary"), [("", 0, "1 skipped"), ("true", 1, "1 failed")])
def test_a_skipped_test_is_a_failed_one_in_ci_only(tmp_path, ci, status, summary):
    (tmp_path / "conftest.py").write_bytes((REPOSITORY / "tests" / "conftest.py").read_bytes())
    (tmp_path / "test_x.py").write_text("import pytest\ndef test_x():\n    pytest.skip('no such tool')\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    environment = {**os.environ, "CI": ci}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, summary in result.stdout) == (status, True), result.stdout
