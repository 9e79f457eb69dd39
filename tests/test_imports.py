"""Who may import whom: the arrows of `nat_pod/__init__.py`, read from the sources without running them.

The pure part (configuration, plan, rules, tracer) knows neither Pulumi nor the lab nor programs to start.
"""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from nat_pod.commands import cli

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "nat_pod"
LAB = PACKAGE / "lab"

# Package (or module at the top level): what it may import of nat-pod, itself apart.  One that is missing here fails the
# test: say where it belongs.  A later row may import earlier ones only, so the list is the flow, from top to bottom.
ALLOWED = {
    "each": set(),
    "errors": set(),
    "files": set(),
    "ipv4": set(),
    "limits": set(),
    "names": set(),
    "text": set(),
    "config": {"each", "errors", "ipv4", "limits", "names", "text"},
    "rules": {"config", "errors", "ipv4", "limits", "names"},
    "plan": {"config", "errors", "files", "ipv4", "limits", "names", "rules"},
    "oci": {"config", "errors", "limits", "names", "plan"},
    "component": {"oci"},
    "trace": {"config", "errors", "ipv4", "names", "plan", "rules", "text"},
    "status": {"config", "errors", "limits", "names", "plan"},
    "trial": {"config", "errors", "files", "limits", "names", "plan", "status", "text", "trace"},
    "deployed": {"config", "errors", "limits", "names", "plan", "status", "text", "trial"},
    "handbuilt": {"config", "errors", "limits", "names", "text"},
    "pages": {"config", "errors", "names", "plan", "text", "trace"},
    "lab.region": {"config", "errors", "limits", "names"},
    "lab.wire": {"errors", "names", "trace"},
    "lab.engine": {"config", "errors", "lab.region", "names"},
    "lab": {
        "config", "errors", "lab.engine", "lab.region", "lab.wire", "names", "plan", "rules", "text", "trace", "trial",
    },
    "commands": {
        "config", "deployed", "each", "errors", "files", "handbuilt", "limits", "names", "pages", "plan", "rules",
        "status", "text", "trace", "trial",
    },
    "__main__": {"commands", "files"},
}  # fmt: skip

# Commands, when they are asked to.
MAY_LOAD_THE_LAB = {"commands.lab", "commands.trial"}

THIRD_PARTY = {"pulumi", "pulumi_oci", "netaddr", "yaml"}
# Speaking the engine's own protocol takes what Pulumi's SDK is made of; it arrives with pulumi.
PULUMI_PARTS = {"grpc", "google"}
SPEAKS_TO_THE_ENGINE = {"language_host", "plugin", "provider", "run_program"}
USES_PULUMI = {"inputs", "program", "provider", "run_program", "language_host"}
STARTS_GIT = {"revisions"}  # `diff` asks git for the stack file at an earlier revision
STARTS_PROGRAMS = {"balancer", "boot", "engine", "holder", "imds", "language_host", "netns", "processes", "sandbox"}


@functools.cache
def imports(path: Path, *, only_at_import: bool = False) -> frozenset[str]:
    """Full names of what a file imports: `nat_pod.names`, `pulumi`; of `from nat_pod import x` it is `nat_pod.x`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if only_at_import:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports here name the whole module"
            inside = (PACKAGE.parent / str(node.module).replace(".", "/")).is_dir()
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if inside else {str(node.module)}
    return frozenset(names)


def tops(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def modules(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.py"))


INSIDE = sorted(PACKAGE.rglob("*.py"))
INSIDE_LAB = [path for path in INSIDE if path.is_relative_to(LAB)]
OUTSIDE_LAB = [path for path in INSIDE if path not in INSIDE_LAB]
NEIGHBOURS = REPOSITORY / "neighbours"
PROGRAMS = [REPOSITORY / "__main__.py", REPOSITORY / "package" / "__main__.py", NEIGHBOURS / "__main__.py"]
ALL = [*INSIDE, *PROGRAMS]


def module_of(path: Path) -> str:
    """Its name inside nat_pod: `plan.model`, `lab.wire.netns`; `config` for that folder's __init__."""
    name = str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
    return name.removesuffix(".__init__")


def package_of(module: str) -> str:
    """The row of ALLOWED that a module belongs to."""
    return max((row for row in ALLOWED if f"{module}.".startswith(f"{row}.")), key=len, default=module)


def own_imports(path: Path) -> set[str]:
    """What a module imports of nat-pod, without `nat_pod.`"""
    return {name.removeprefix("nat_pod.") for name in imports(path) if name.startswith("nat_pod.")}


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_the_reader_of_imports_finds_each_form_of_them(tmp_path):
    source = tmp_path / "x.py"
    source.write_text(
        "import a.b as c\nfrom nat_pod.commands import cli\nfrom nat_pod.lab.wire import netns\n"
        "from nat_pod.plan.model import x\n"
        "if True:\n    import d\ndef f():\n    import e\n    def g():\n        import h\n"
    )
    at_import = {"a.b", "nat_pod.commands.cli", "nat_pod.lab.wire.netns", "nat_pod.plan.model", "d"}
    assert imports(source) == at_import | {"e", "h"}
    assert imports(source, only_at_import=True) == at_import


@pytest.mark.parametrize("path", [path for path in INSIDE if path != PACKAGE / "__init__.py"], ids=name_of)
def test_a_module_imports_only_packages_that_lie_before_its_own(path):
    package = package_of(module_of(path))
    others = {package_of(name) for name in own_imports(path)} - {package}
    if module_of(path) in MAY_LOAD_THE_LAB:
        others -= {"lab", "lab.wire"}  # when it is asked to: the tests below
    assert others <= ALLOWED[package]


def test_the_packages_are_in_the_order_of_the_flow():
    for at, (package, needs) in enumerate(ALLOWED.items()):
        assert needs <= set(list(ALLOWED)[:at]), f"{package} may import only what stands above it"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, or wait for such; none when there is no circle."""
    left = dict(graph)
    while left:
        ready = {name for name, needs in left.items() if not needs & set(left)}
        if not ready:
            return sorted(left)
        left = {name: needs for name, needs in left.items() if name not in ready}
    return []


def test_a_circle_of_imports_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_no_module_imports_itself_by_way_of_others_the_lab_included():
    graph = {module_of(path): own_imports(path) for path in INSIDE}
    assert circle({name: needs & set(graph) for name, needs in graph.items()}) == []


def test_nothing_outside_the_lab_imports_it_but_two_commands_and_those_only_when_asked_to():
    who = {module_of(path) for path in OUTSIDE_LAB if any(name.startswith("nat_pod.lab") for name in imports(path))}
    assert who == MAY_LOAD_THE_LAB
    for module in ("lab", "trial"):
        at_import = imports(PACKAGE / "commands" / f"{module}.py", only_at_import=True)
        assert not [name for name in at_import if name.startswith(("nat_pod.lab", "nat_pod.deployed"))]


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_only_four_packages_come_from_elsewhere(path):
    foreign = tops(imports(path)) - set(sys.stdlib_module_names) - {"nat_pod"} - THIRD_PARTY
    assert foreign <= (PULUMI_PARTS if path.parent == LAB / "engine" and path.stem in SPEAKS_TO_THE_ENGINE else set())


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_addresses_are_netaddrs(path):
    assert "ipaddress" not in tops(imports(path))


def test_pulumi_is_where_a_tenancy_is_asked_or_changed_and_in_the_labs_engine_room_only():
    outside = {path.parent.name for path in OUTSIDE_LAB if tops(imports(path)) & {"pulumi", "pulumi_oci"}}
    assert outside == {"oci", "deployed"}
    inside = {path.stem for path in INSIDE_LAB if tops(imports(path)) & {"pulumi", "pulumi_oci"}}
    assert inside <= USES_PULUMI
    assert "pulumi" in tops(imports(REPOSITORY / "__main__.py"))


@pytest.mark.slow
def test_programs_are_started_in_the_lab_only_but_for_git():
    starting = {"subprocess", "pty", "multiprocessing"}
    forks = {"each"}  # itself, and starts no program
    assert {path.stem for path in OUTSIDE_LAB if tops(imports(path)) & starting} == STARTS_GIT | forks
    runs = re.findall(r"subprocess\.\w+\((\[[^,]+)", (PACKAGE / "config" / "revisions.py").read_text(encoding="utf-8"))
    assert runs == ['["git"']
    assert {path.stem for path in INSIDE_LAB if tops(imports(path)) & starting} <= STARTS_PROGRAMS
    calls = [
        f"{name_of(path)}:{node.lineno}"
        for path in OUTSIDE_LAB
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr.startswith(("system", "popen", "exec", "spawn", "posix_spawn", "fork"))
    ]
    assert calls == []


def test_the_neighbours_program_knows_nothing_of_nat_pods_code():
    assert tops(imports(NEIGHBOURS / "__main__.py")) <= {"importlib", "typing", "pulumi", "pulumi_oci"}


@pytest.mark.parametrize("path", [*modules(REPOSITORY / "cloud-init"), NEIGHBOURS / "probe.py"], ids=name_of)
def test_what_runs_in_the_guest_needs_the_standard_library_only(path):
    assert tops(imports(path)) <= set(sys.stdlib_module_names)


def test_there_is_something_that_runs_in_the_guest():
    assert [path.name for path in modules(REPOSITORY / "cloud-init")] == ["nat_pod_agent.py"]


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a process has loaded when it has carried out a command."""
    script = (
        "import sys\nfrom nat_pod.commands.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(result.stderr.split())


@pytest.mark.slow
@pytest.mark.runs_commands
def test_the_command_line_starts_without_loading_pulumi_or_the_lab():
    """Pulumi takes more than a second to load; `check` takes a tenth.  --help loads what every command does."""
    loaded = loaded_by("--help")
    assert loaded >= {f"nat_pod.commands.{module}" for module in cli.COMMANDS.values()}
    assert not tops(loaded) & {"pulumi", "pulumi_oci", "grpc"}
    assert not [name for name in loaded if name.startswith("nat_pod.lab")]


@pytest.mark.slow
@pytest.mark.runs_commands
def test_a_command_loads_no_other_and_not_what_the_others_need():
    loaded = loaded_by("check", "dev")
    assert {name for name in loaded if name.startswith("nat_pod.commands.")} == {
        "nat_pod.commands.cli", "nat_pod.commands.command", "nat_pod.commands.check",
    }  # fmt: skip
    assert not {package_of(name.removeprefix("nat_pod.")) for name in loaded} & {"handbuilt", "pages", "trace"}


def test_each_module_of_a_command_is_in_the_list_of_commands():
    shared = {"__init__", "cli", "command", "plan_routed", "stack"}
    assert {path.stem for path in modules(PACKAGE / "commands")} - shared == set(cli.COMMANDS.values())
