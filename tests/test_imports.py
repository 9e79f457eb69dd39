"""Who may import whom: the arrows of `nat_pod/__init__.py`, read from the sources without running them.

The pure part (configuration, plan, rules, tracer) knows neither Pulumi nor the lab nor programs to start.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "nat_pod"
HANDBUILT = PACKAGE / "handbuilt"
LAB = PACKAGE / "lab"

# Module: what it may import of nat-pod.  A module that is missing here fails the test: say where it belongs.
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "limits": set(),
    "netfilter": set(),
    "tree": {"netfilter"},
    "topology": {"netfilter"},
    "plan": {"netfilter"},
    "addressing": {"limits"},
    "config": {"addressing", "errors", "limits"},
    "stack": {"config", "errors"},
    "book": {"addressing", "config", "errors", "stack"},
    "rules": {"addressing", "config", "limits", "netfilter", "plan", "tree"},
    "iptables": {"netfilter"},
    "guest": {"limits"},
    "pod": {
        "addressing", "config", "errors", "guest", "iptables", "limits", "netfilter", "plan", "rules",
    },
    "args": set(),
    "component": {"args", "config", "errors", "limits", "plan", "pod"},
    "article": {"config", "plan"},
    "expected": {"addressing", "config", "errors", "flows", "plan", "topology"},
    "chains": {"iptables", "netfilter"},
    "trace": {"chains", "netfilter", "topology"},
    "trace_text": {"proof", "trace"},
    "proof": {"chains", "config", "expected", "flows", "iptables", "netfilter", "plan", "topology", "trace"},
    "flows": {"addressing", "config", "plan"},
    "symmetry": {"chains", "netfilter", "plan", "topology"},
    "diff": {"config", "expected", "flows", "plan", "symmetry", "trace"},
    "handbuilt": set(),
    "handbuilt.saved_rules": {"errors"},
    "handbuilt.saved_walk": {"errors", "handbuilt.saved_rules"},
    "handbuilt.vnic_list": {"errors", "handbuilt.saved_rules", "limits"},
    "handbuilt.reconstruct": {
        "addressing", "config", "errors", "handbuilt.saved_rules", "handbuilt.saved_walk", "handbuilt.vnic_list",
        "limits", "plan",
    },
    "handbuilt.draft": {
        "addressing", "config", "handbuilt.reconstruct", "handbuilt.saved_rules", "limits", "plan",
    },
    "status": {"limits", "plan"},
    "report": {"config", "diff", "handbuilt.draft", "handbuilt.reconstruct", "limits", "plan", "rules", "status"},
    "drawing": {"config", "expected", "flows", "plan", "trace"},
    "mermaid": {"config", "drawing", "plan"},
    "handover": {"config", "errors", "expected", "flows", "plan", "report", "topology", "trace"},
    "pods": {"addressing", "config", "errors", "limits", "pod", "report", "stack"},
    "cli": {
        "article", "book", "config", "diff", "drawing", "errors", "expected", "flows", "guest", "handbuilt.draft",
        "handbuilt.reconstruct", "handbuilt.saved_rules", "handbuilt.vnic_list", "handover", "iptables", "mermaid",
        "plan", "pod", "pods", "proof", "report", "stack", "status", "trace", "trace_text",
    },
    "__main__": {"cli"},
}  # fmt: skip

THIRD_PARTY = {"pulumi", "pulumi_oci", "netaddr", "yaml"}
# Speaking the engine's own protocol takes what Pulumi's SDK is made of; it arrives with pulumi.
PULUMI_PARTS = {"grpc", "google"}
SPEAKS_TO_THE_ENGINE = {"language_host", "plugin", "provider", "run_program"}
USES_PULUMI = {"oci_types", "program", "provider", "run_program", "language_host"}
STARTS_GIT = {"stack"}  # `diff` asks git for the stack file at an earlier revision
STARTS_PROGRAMS = {"boot", "engine", "holder", "imds", "language_host", "netns", "sandbox"}


def imports(path: Path, *, only_at_import: bool = False) -> set[str]:
    """Full names of what a file imports: `nat_pod.config`, `pulumi`; of `from nat_pod import x` it is `nat_pod.x`."""
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
    return names


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def modules(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.py"))


OUTSIDE_LAB = [*modules(PACKAGE), *modules(HANDBUILT)]
INSIDE_LAB = modules(LAB)
ALL = [*OUTSIDE_LAB, *INSIDE_LAB, REPOSITORY / "__main__.py", REPOSITORY / "package" / "__main__.py"]


def module_of(path: Path) -> str:
    """Its name inside nat_pod: `plan`, `handbuilt.draft`, `handbuilt` for that folder's __init__."""
    name = str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
    return name.removesuffix(".__init__")


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_the_reader_of_imports_finds_each_form_of_them(tmp_path):
    source = tmp_path / "x.py"
    source.write_text(
        "import a.b as c\nfrom nat_pod import cli\nfrom nat_pod.lab import netns\nfrom nat_pod.plan import SIDES\n"
        "if True:\n    import d\ndef f():\n    import e\n    def g():\n        import h\n"
    )
    at_import = {"a.b", "nat_pod.cli", "nat_pod.lab.netns", "nat_pod.plan", "d"}
    assert imports(source) == at_import | {"e", "h"}
    assert imports(source, only_at_import=True) == at_import


@pytest.mark.parametrize("path", OUTSIDE_LAB, ids=name_of)
def test_a_module_imports_only_what_lies_before_it(path):
    own = {name.removeprefix("nat_pod.") for name in imports(path) if name.startswith("nat_pod")}
    if path.stem == "cli":
        own -= {"lab.commands", "lab.sandbox"}  # see the next test but one
    assert own <= ALLOWED[module_of(path)]


def test_the_allowed_imports_go_round_in_no_circle():
    left = dict(ALLOWED)
    while left:
        ready = {name for name, needs in left.items() if not needs & set(left)}
        assert ready, f"a circle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in ready}


def test_nothing_outside_the_lab_imports_it_but_the_command_line_and_that_only_when_asked_to():
    who = {path.stem for path in OUTSIDE_LAB if any(name.startswith("nat_pod.lab") for name in imports(path))}
    assert who == {"cli"}
    at_import = imports(PACKAGE / "cli.py", only_at_import=True)
    assert not [name for name in at_import if name.startswith("nat_pod.lab")]


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_only_four_packages_come_from_elsewhere(path):
    foreign = tops(imports(path)) - set(sys.stdlib_module_names) - {"nat_pod"} - THIRD_PARTY
    assert foreign <= (PULUMI_PARTS if path.parent == LAB and path.stem in SPEAKS_TO_THE_ENGINE else set())


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_addresses_are_netaddrs(path):
    assert "ipaddress" not in tops(imports(path))


def test_pulumi_is_in_the_component_in_the_program_and_in_the_labs_engine_room_only():
    outside = {path.stem for path in OUTSIDE_LAB if tops(imports(path)) & {"pulumi", "pulumi_oci"}}
    assert outside == {"component"}
    inside = {path.stem for path in INSIDE_LAB if tops(imports(path)) & {"pulumi", "pulumi_oci"}}
    assert inside <= USES_PULUMI
    assert "pulumi" in tops(imports(REPOSITORY / "__main__.py"))


def test_programs_are_started_in_the_lab_only_but_for_git():
    starting = {"subprocess", "pty", "multiprocessing"}
    assert {path.stem for path in OUTSIDE_LAB if tops(imports(path)) & starting} == STARTS_GIT
    runs = re.findall(r"subprocess\.\w+\((\[[^,]+)", (PACKAGE / "stack.py").read_text(encoding="utf-8"))
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


@pytest.mark.parametrize("path", modules(REPOSITORY / "cloud-init"), ids=name_of)
def test_what_runs_in_the_guest_needs_the_standard_library_only(path):
    assert tops(imports(path)) <= set(sys.stdlib_module_names)


def test_there_is_something_that_runs_in_the_guest():
    assert [path.name for path in modules(REPOSITORY / "cloud-init")] == ["nat_pod_agent.py"]


@pytest.mark.runs_commands
def test_the_command_line_starts_without_loading_pulumi_or_the_lab():
    """Pulumi takes more than a second to load; `check` takes a tenth."""
    script = (
        "import sys, nat_pod.cli; "
        "print([n for n in sys.modules if n.split('.')[0] in ('pulumi', 'pulumi_oci', 'grpc') or 'nat_pod.lab' in n])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
