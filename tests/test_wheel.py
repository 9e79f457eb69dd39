"""What one installs: a wheel with everything that nat-pod reads or hands out, and an sdist with all of the checkout.

Built once by tools/build, as a release is.  What is run here sees nothing of the checkout: pip has put the wheel into
an environment of its own, and the current directory is another one.
"""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pulumi
import pytest
import yaml
from conftest import GOLDEN, REPOSITORY, real_stack, stack_mapping
from test_package import CONSUMER

import nat_pod
from nat_pod.commands import cli
from nat_pod.lab.engine.engine import find_cli
from nat_pod.plan.bootstrap import render_cloud_config, render_user_data
from nat_pod.trial import neighbours

pytestmark = [pytest.mark.runs_commands, pytest.mark.sweep]

# What stands at the top level of a checkout and is in the wheel as nat_pod/project/...
FOLDERS = {
    "cloud-init": [
        "90-nat-pod-networkmanager.conf",
        "90-nat-pod.conf",
        "cloud-config.yaml",
        "forwarding.conf",
        "nat-pod-agent.service",
        "nat-pod-agent.timer",
        "nat-pod-health.service",
        "nat-pod-restore.service",
        "nat_pod_agent.py",
        "user-data.b64",
    ],
    "neighbours": ["Pulumi.yaml", "__main__.py", "cloud-config.yaml", "probe.py"],
    "package": ["PulumiPlugin.yaml", "__main__.py", "requirements.txt"],
}
PROJECT = [
    *("Pulumi.yaml", "__main__.py", "Pulumi.dev.yaml", "Pulumi.routed.yaml", "Pulumi.ten.yaml"),
    *(f"{folder}/{name}" for folder, names in FOLDERS.items() for name in names),
]
ABOUT = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"]
# What setuptools adds to an sdist.
MADE_FOR_IT = ("PKG-INFO", "setup.cfg", "nat_pod.egg-info/")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([REPOSITORY / "tools" / "build", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"nat_pod-{nat_pod.__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of an environment with the wheel, installed by pip, and the packages that nat-pod needs.

    These are the ones of this interpreter, by a .pth file; nobody reads theirs, which lead to the checkout.
    """
    environment = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(environment, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet"]
    # Where PYTHONPATH has a checkout, pip would take that for an installed nat-pod.
    options = ["--disable-pip-version-check", "--no-compile", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, *options, wheel], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "needed.pth").write_text(f"{Path(pulumi.__file__).parent.parent}\n", encoding="utf-8")
    return environment / "bin"


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run("nat-pod", "check")`: a program of that environment, in a directory outside the checkout."""
    environment = {**os.environ, "COLUMNS": "100"}
    environment.pop("PYTHONPATH", None)

    def call(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [installed / program, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return call


def checkout() -> set[str]:
    """The files of the checkout, or of the sdist that these tests are run in."""
    if (REPOSITORY / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        return set(listed.split("\0")) - {""}
    names = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith((".venv/", *MADE_FOR_IT)) and "cache" not in name}


def test_the_wheel_has_each_file_that_it_needs_and_no_other(wheel):
    code = {name for name in checkout() if name.startswith("nat_pod/")}
    project = {f"nat_pod/project/{name}" for name in PROJECT}
    about = {f"nat_pod-{nat_pod.__version__}.dist-info/{name}" for name in ABOUT}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == code | project | about
        for name in code:
            assert archive.read(name) == (REPOSITORY / name).read_bytes(), name
        for name in PROJECT:
            assert archive.read(f"nat_pod/project/{name}") == (REPOSITORY / name).read_bytes(), name


def test_the_folders_of_the_project_are_in_the_wheel_whole():
    """FOLDERS is written by hand: a file that is new in one of them belongs there."""
    there = {name for name in checkout() if name.partition("/")[0] in FOLDERS}
    assert there == {name for name in PROJECT if "/" in name}


def test_the_sdist_has_all_that_the_checkout_has(built):
    with tarfile.open(built / f"nat_pod-{nat_pod.__version__}.tar.gz") as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert {name for name in names if not name.startswith(MADE_FOR_IT)} == checkout()


EACH_COMMAND = """
import contextlib, io, sys
import nat_pod
from nat_pod.commands import cli
from nat_pod.lab.engine.engine import find_cli
print(nat_pod.__file__)
for command in cli.COMMANDS:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    print(command, said.getvalue().split()[0])
"""


def test_each_command_starts(run, installed):
    done = run("python", "-c", EACH_COMMAND)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert Path(first).is_relative_to(installed.parent)
    assert rest == [f"{command} usage:" for command in cli.COMMANDS]


def test_each_module_can_be_imported(run):
    """What a command imports only when it comes to it, too."""
    names = sorted(name[:-3].replace("/", ".") for name in checkout() if name.startswith("nat_pod/"))
    modules = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    done = run("python", "-c", f"import importlib\nfor name in {modules}: importlib.import_module(name)")
    assert (done.returncode, done.stderr) == (0, "")


COMMANDS = {
    "plan": ["plan", "dev"],
    "rules-natVm2": ["rules", "dev", "--vm", "natVm2"],
    "trace-case-6-steps": ["trace", "dev", "management/mgmt", "customer1/vm2", "--steps"],
    "check": ["check", "dev"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_says_in_a_checkout(run, tmp_path, name):
    (tmp_path / "Pulumi.dev.yaml").write_text(real_stack("dev"), encoding="utf-8")
    done = run("nat-pod", *COMMANDS[name])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (GOLDEN / f"cli-{name}.txt").read_text(encoding="utf-8")


def test_the_guests_sources_and_the_neighbours_program_are_found(run):
    """What a trial boots, and what `make bootstrap` packs: from the wheel, the same as here."""
    show = (
        "from nat_pod.plan import bootstrap; from nat_pod.trial import neighbours\n"
        "print(bootstrap.render_user_data(), bootstrap.render_cloud_config(), sep='')\n"
        "print((neighbours.PROGRAM / 'probe.py').read_text(encoding='utf-8'))"
    )
    done = run("python", "-c", show)
    assert (done.returncode, done.stderr) == (0, "")
    probe = (neighbours.PROGRAM / "probe.py").read_text(encoding="utf-8")
    assert done.stdout == f"{render_user_data()}{render_cloud_config()}\n{probe}\n"


def test_an_environment_without_the_packages_is_told_what_helps_a_wheel(run):
    show = f"""
import sys
sys.path.remove({str(Path(pulumi.__file__).parent.parent)!r})
sys.argv = ["nat-pod", "check"]
from nat_pod.__main__ import program
sys.exit(program())
"""
    done = run("python", "-c", show)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(" which nat-pod needs: install nat-pod again with pip, and without --no-deps\n")


# --- a directory that is begun with it -------------------------------------------------------------------------------


@pytest.mark.lab
@pytest.mark.engine
def test_the_demo_runs_in_a_directory_that_new_project_made(run):
    """The program by the engine, in the environment of the wheel; its guests, its neighbours, and packets."""
    if find_cli() is None:
        pytest.skip("no Pulumi CLI: .ci/pulumi/install makes sure there is one")
    assert run("nat-pod", "new-project", "--examples").returncode == 0
    done = run("nat-pod", "lab", "demo", "dev")
    assert done.returncode == 0, done.stderr
    assert "pulumi up, against the simulated region" in done.stderr
    assert done.stdout.splitlines()[-1].endswith("all as declared, every hop as the tracer predicted")


COMPONENT = """
import json, sys
from pathlib import Path
from nat_pod.lab.engine.engine import Engine, find_cli
from nat_pod.lab.region.file import RegionFile
from nat_pod.lab.region.region import Region
region = RegionFile.make(Path("region").resolve(), Region("uk-london-1"))
engine = Engine(Path("other"), "test", region.path, find_cli())
engine.up()
print(json.dumps(engine.outputs()))
engine.expect_no_changes()
engine.destroy()
print(len(engine.resources()))
"""


@pytest.mark.engine
def test_the_component_serves_a_program_of_another_directory(run, installed, tmp_path):
    """As `pulumi install` leaves it: its folder has an environment with the wheel, and the program's has none."""
    if find_cli() is None:
        pytest.skip("no Pulumi CLI: .ci/pulumi/install makes sure there is one")
    component, program = tmp_path / "component", tmp_path / "other"
    component.mkdir()
    program.mkdir()
    made = run(
        "python",
        "-c",
        "import os; os.chdir('component'); from nat_pod.commands.cli import main; main(['new-project', '--component'])",
    )
    assert made.returncode == 0, made.stderr
    (component / "venv").symlink_to(installed.parent)
    (program / "__main__.py").write_text(CONSUMER, encoding="utf-8")
    document = {"name": "other", "runtime": "python"}
    document["plugins"] = {"providers": [{"name": "nat-pod", "path": str(component)}]}
    (program / "Pulumi.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    (program / "Pulumi.test.yaml").write_text("config: {oci:region: uk-london-1}\n", encoding="utf-8")
    arguments = stack_mapping("dev")
    arguments["natVm"]["shape"] = {"shape": "VM.Standard2.24"}
    (program / "args.json").write_text(json.dumps(arguments), encoding="utf-8")
    done = run("python", "-c", COMPONENT)
    assert done.returncode == 0, done.stderr
    outputs, left = map(json.loads, done.stdout.splitlines())
    assert outputs["routes"]["customer1"]["destinations"] == ["198.18.0.0/27"]
    assert sorted(outputs["vms"]) == ["natVm1", "natVm2"]
    assert left == 0
