"""All PODs of a directory, and the stack file of a new one.

Address plan: dev has 198.18.0.0/22 (the article's, conftest.py), ten has 198.18.4.0/22.
"""

import json
import os
import threading
from pathlib import Path

import pytest
from conftest import REPOSITORY, real_stack
from netaddr import IPNetwork

from nat_pod.commands import new_pod
from nat_pod.commands.cli import main
from nat_pod.config.pods import read_pods
from nat_pod.config.ranges import free_ranges

DEV = real_stack("dev")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A directory with the project file and both stacks of the repository, no examples here, as the current one."""
    (tmp_path / "Pulumi.yaml").write_bytes((REPOSITORY / "Pulumi.yaml").read_bytes())
    for name in ("dev", "ten"):
        put(tmp_path, name, real_stack(name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def run(project, capsys):
    """`run("pods")`: exit status, standard output, standard error."""

    def call(*arguments):
        status = main(arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def put(directory: Path, name: str, text: str) -> None:
    (directory / f"Pulumi.{name}.yaml").write_text(text, encoding="utf-8")


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- pods ------------------------------------------------------------------------------------------------------------


def test_the_pods_of_this_repository_are_the_golden_ones(run, golden):
    status, out, err = run("pods")
    assert (status, err, out.isascii(), max(map(len, out.splitlines())) <= 80) == (0, "", True, True)
    golden("pods.txt", out)
    status, out, err = run("pods", "--json")
    assert (status, err) == (0, "")
    golden("pods.json", out)


def test_stack_files_that_do_not_hold_are_listed_beside_those_that_do(run, project, golden):
    put(project, "clash", DEV)
    put(project, "empty", "encryptionsalt: v1:xxxx\n")
    put(project, "far", DEV.replace("198.18.0.0/22 ", "198.18.0.0/33 "))
    put(project, "late", DEV.replace("198.18.0.", "198.18.8.").replace("{vm2: 10", "{web: 10.0.1.9, vm2: 10"))
    put(project, "torn", "config: [\n")
    status, out, err = run("pods")
    assert (status, err) == (1, "")
    golden("pods-problems.txt", out)
    status, out, err = run("pods", "--json")
    assert (status, err) == (1, "")
    golden("pods-problems.json", out)


def test_each_pod_that_pods_calls_fine_check_calls_fine_and_no_other(run, project):
    put(project, "clash", DEV)
    put(project, "late", DEV.replace("198.18.0.", "198.18.8.").replace("{vm2: 10", "{web: 10.0.1.9, vm2: 10"))
    put(project, "torn", "config: [\n")
    pods = json.loads(run("pods", "--json")[1])["pods"]
    check = json.loads(run("check", "--json")[1])
    assert {name: pod["problems"] + len(pod["overlaps"]) for name, pod in pods.items()} == {
        name: len(entry["problems"]) for name, entry in check.items()
    }
    assert {name for name, entry in check.items() if entry["problems"]} == {"clash", "dev", "late", "torn"}


def test_a_file_that_does_not_hold_claims_its_range_all_the_same(run, project):
    put(project, "late", DEV.replace("sourceNat: masquerade", "sourceNat: snat"))
    clash = "overlaps 198.18.0.0/22 of Pulumi.late.yaml"
    status, out, _ = run("check", "dev")
    assert (status, clash in out) == (1, True)


def test_a_project_file_that_is_wrong_is_said_once_and_by_its_own_name(run, project):
    (project / "Pulumi.yaml").write_text("config: [1]\n", encoding="utf-8")
    sentence = "Pulumi.yaml: 1 problem\n  config: [1]: must be a mapping of keys to values\n"
    assert run("pods") == (1, "", sentence)
    assert run("check") == (1, "", sentence)
    assert run("new-pod", "prod") == (1, "", sentence)


def test_pods_without_any_stack_file_says_where_it_looked(run, project):
    for path in project.glob("Pulumi.*.yaml"):
        path.unlink()
    assert run("pods") == (
        1,
        "",
        f"there is no Pulumi.<stack>.yaml in {project}; run: python -m nat_pod new-pod NAME, or for the examples: "
        "python -m nat_pod new-project --examples\n",
    )


# --- examples --------------------------------------------------------------------------------------------------------


@pytest.fixture
def examples(project):
    """The same directory with all stacks as the repository has them: examples."""
    for name in ("Pulumi.dev.yaml", "Pulumi.routed.yaml", "Pulumi.ten.yaml"):
        (project / name).write_bytes((REPOSITORY / name).read_bytes())
    return project


def test_the_examples_are_known_and_leave_their_ranges_to_pods(run, examples, golden):
    put(examples, "prod", DEV)
    status, out, err = run("pods")
    assert (status, err) == (0, "")
    golden("pods-examples.txt", out)
    found = json.loads(run("pods", "--json")[1])
    assert {name: (pod["example"], pod["overlaps"]) for name, pod in found["pods"].items()} == {
        "dev": (True, []),
        "prod": (False, []),
        "routed": (True, []),
        "ten": (True, []),
    }
    assert found["free"]["/22"] == {"next": "198.18.4.0/22", "left": 127}
    (examples / "Pulumi.prod.yaml").unlink()
    assert json.loads(run("new-pod", "prod", "--json")[1])["cidr"] == "198.18.0.0/22"


def test_an_example_is_checked_alone_and_called_one(run, examples):
    put(examples, "prod", DEV)
    assert run("check") == (
        0,
        "Pulumi.dev.yaml: fine, an example, 3 of 58 slots used\n"
        "Pulumi.prod.yaml: fine, 3 of 58 slots used\n"
        "Pulumi.routed.yaml: fine, an example, 45 of 960 slots used\n"
        "Pulumi.ten.yaml: fine, an example, 65 of 435 slots used\n",
        "",
    )


def test_check_json_says_which_pods_are_examples(run, examples):
    put(examples, "prod", DEV)
    check = json.loads(run("check", "--json")[1])
    assert {name: entry["example"] for name, entry in check.items()} == {
        "dev": True,
        "prod": False,
        "routed": True,
        "ten": True,
    }


def test_an_example_whose_range_cannot_be_read_puts_nobodys_range_in_doubt(run, examples):
    text = (examples / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    put(examples, "dev", text.replace("198.18.0.0/22 ", "198.18.0.0/33 "))
    assert [run("check", "dev")[0], run("pods")[0], run("new-pod", "next")[0]] == [1, 1, 0]


def test_a_copy_of_an_example_is_a_pod_as_soon_as_it_has_a_compartment(run, examples):
    text = (examples / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    put(examples, "prod", text)
    assert "prod" in run("pods")[1].split("examples (")[1]
    put(examples, "prod", text.replace("..exampledevpod", "..aaaaaaaaexample"))
    assert "prod" not in run("pods")[1].split("examples (")[1]


# --- free ranges -----------------------------------------------------------------------------------------------------


FREE = [
    ([], 22, "198.18.0.0/22", 128),
    ([], 21, "198.18.0.0/21", 64),
    (["198.18.0.0/22"], 22, "198.18.4.0/22", 127),
    (["198.18.0.0/22"], 21, "198.18.8.0/21", 63),
    (["198.18.4.0/22"], 22, "198.18.0.0/22", 127),
    (["198.18.4.0/22"], 21, "198.18.8.0/21", 63),
    (["198.18.0.0/25"], 22, "198.18.4.0/22", 127),
    (["198.18.3.128/25"], 22, "198.18.4.0/22", 127),
    (["198.18.0.0/22", "198.18.8.0/22"], 22, "198.18.4.0/22", 126),
    (["198.18.0.0/22", "198.18.8.0/22"], 21, "198.18.16.0/21", 62),
    (["198.18.0.0/16"], 22, "198.19.0.0/22", 64),
    (["198.19.252.0/22"], 21, "198.18.0.0/21", 63),
    (["198.18.0.0/22", "198.18.0.0/22"], 22, "198.18.4.0/22", 127),
    (["198.18.0.0/16", "198.19.0.0/17", "198.19.128.0/18", "198.19.192.0/19", "198.19.224.0/20", "198.19.240.0/21",
      "198.19.248.0/22"], 22, "198.19.252.0/22", 1),
    (["198.18.0.0/16", "198.19.0.0/16"], 22, None, 0),
]  # fmt: skip


@pytest.mark.parametrize(("taken", "prefix", "first", "count"), FREE)
def test_the_next_range_is_the_lowest_in_which_nobody_has_an_address(taken, prefix, first, count):
    free = [str(cidr) for cidr in free_ranges(map(IPNetwork, taken), prefix)]
    assert (free[0] if free else None, len(free)) == (first, count)


# --- new-pod ---------------------------------------------------------------------------------------------------------

FILLED_IN = [
    ("oci:region: ", "oci:region: uk-london-1"),
    ("nat-pod:compartmentId: ", "nat-pod:compartmentId: ocid1.compartment.oc1..prod"),
    ("shape: ", "shape: VM.Standard2.24"),
    ("imageId: ", "imageId: ocid1.image.oc1.uk-london-1.ol9"),
    ("sshPublicKey: ", "sshPublicKey: ssh-ed25519 AAAA ops"),
    ("    cidr: ", "    cidr: 10.0.0.0/16"),
    ("servers: ", "servers: {mgmt: 10.0.0.100}"),
    ("nat-pod:customers: ", "nat-pod:customers: {customer1: {cidr: 10.0.0.0/24, hosts: {vm1: 10.0.0.100}}}"),
]


def filled_in(text: str) -> str:
    """The file of new-pod, as somebody fills it in: in each line with the mark, a value before the comment."""
    lines = text.splitlines(keepends=True)
    for key, value in FILLED_IN:
        found = [
            index for index, line in enumerate(lines) if "FILL IN" in line and line.lstrip().startswith(key.lstrip())
        ]
        assert len(found) == 1, key
        comment = lines[found[0]].index("#")
        before = lines[found[0]][:comment]
        indent = before[: len(before) - len(before.lstrip())]
        lines[found[0]] = f"{indent}{value.lstrip()} {lines[found[0]][comment:]}"
    return "".join(lines)


def test_a_new_pod_gets_the_next_range_and_a_commented_file(run, project, golden):
    before = files(project)
    status, out, err = run("new-pod", "prod")
    assert (status, err) == (0, "")
    golden("new-pod.txt", out)
    written = (project / "Pulumi.prod.yaml").read_text(encoding="utf-8")
    golden("new-pod.yaml", written)
    assert files(project) == {**before, "Pulumi.prod.yaml": written.encode()}
    assert max(len(line) for line in written.splitlines()) <= 120


def test_a_new_routed_pod_gets_the_next_range_and_a_commented_file(run, project, golden):
    status, out, err = run("new-pod", "--routed", "prod")
    assert (status, err) == (0, "")
    golden("new-pod-routed.txt", out)
    written = (project / "Pulumi.prod.yaml").read_text(encoding="utf-8")
    golden("new-pod-routed.yaml", written)
    assert max(len(line) for line in written.splitlines()) <= 120
    (project / "Pulumi.prod.yaml").write_text(filled_in(written), encoding="utf-8")
    assert run("check", "prod")[1].count("has no alias") == 2
    assert run("allocate", "prod")[0] == 0
    assert run("check", "prod") == (0, "Pulumi.prod.yaml: fine, 2 of 960 slots used\n", "")


@pytest.mark.parametrize("kind", [(), ("--routed",)])
def test_check_names_all_that_is_to_be_filled_in_and_nothing_else(run, project, kind):
    marked = json.loads(run("new-pod", "prod", "--json", *kind)[1])["fillIn"]
    problems = json.loads(run("check", "prod", "--json")[1])["prod"]["problems"]
    assert sorted(problem["path"] for problem in problems) == sorted(marked)
    assert all("e.g. " in problem["rule"] for problem in problems)
    text = (project / "Pulumi.prod.yaml").read_text(encoding="utf-8")
    assert text.count("FILL IN") == len(marked) + 1  # the first line says what the mark means


def test_check_names_the_same_after_pulumi_has_been_over_the_file(run, project):
    """`pulumi stack init` writes "" and null for what is empty (seen with 3.259.0), and its salt at the end."""
    marked = json.loads(run("new-pod", "prod", "--json")[1])["fillIn"]
    path = project / "Pulumi.prod.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    for index, line in enumerate(lines):
        key, mark, comment = line.partition(" # FILL IN")
        if mark:
            lines[index] = f"{key.rstrip()} {'null' if line.startswith('    ') else chr(34) * 2}{mark}{comment}"
    path.write_text("\n".join([*lines, "encryptionsalt: v1:xxxx", ""]), encoding="utf-8")
    problems = json.loads(run("check", "prod", "--json")[1])["prod"]["problems"]
    assert sorted(problem["path"] for problem in problems) == sorted(marked)
    assert all("e.g. " in problem["rule"] for problem in problems)


@pytest.fixture
def filled(run, project) -> Path:
    """The file of new-pod with a value wherever one is to be filled in."""
    run("new-pod", "prod")
    path = project / "Pulumi.prod.yaml"
    path.write_text(filled_in(path.read_text(encoding="utf-8")), encoding="utf-8")
    return path


def test_a_new_file_filled_in_lacks_nothing_but_slots(run, filled):
    status, out, _ = run("check", "prod")
    assert (status, out.count("has no slot"), out.count("\n  nat-pod:")) == (1, 2, 2)


def test_a_new_file_filled_in_and_allocated_is_fine(run, filled):
    assert run("allocate", "prod")[0] == 0
    assert run("check", "prod") == (0, "Pulumi.prod.yaml: fine, 2 of 435 slots used\n", "")
    assert run("trace", "prod", "customer1/vm1", "management/mgmt")[0] == 0


def test_allocate_leaves_the_comments_of_a_new_file(run, filled):
    assert run("allocate", "prod")[0] == 0
    assert "FILL IN: the OCID of the compartment" in filled.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [(), ("--routed",)])
@pytest.mark.parametrize("size", range(16, 26))
def test_a_new_pod_of_each_size_is_fine_when_filled_in(run, project, size, kind):
    status, out, _ = run("new-pod", "prod", "--size", str(size), "--json", *kind)
    assert status == 0
    assert IPNetwork(json.loads(out)["cidr"]).prefixlen == size
    path = project / "Pulumi.prod.yaml"
    path.write_text(filled_in(path.read_text(encoding="utf-8")), encoding="utf-8")
    assert run("allocate", "prod")[0] == 0
    assert run("check", "prod") == (0, f"Pulumi.prod.yaml: fine, 2 of {json.loads(out)['slots']} slots used\n", "")


def test_the_next_new_pod_gets_the_range_behind_one_that_is_not_filled_in_yet(run):
    ranges = [json.loads(run("new-pod", name, "--json")[1])["cidr"] for name in ("a", "b", "c")]
    assert ranges == ["198.18.8.0/22", "198.18.12.0/22", "198.18.16.0/22"]
    assert json.loads(run("new-pod", "d", "--size", "21", "--json")[1])["cidr"] == "198.18.24.0/21"


REFUSED = {
    "a name that is taken": (
        ["dev"],
        "Pulumi.dev.yaml: exists already; new-pod writes new files only (nothing was changed)",
    ),
    "a name that leads elsewhere": (
        ["../dev"],
        "../dev: is not a valid stack name; a stack's name is letters, digits, dots, dashes and underscores, e.g. prod",
    ),
    "a name that is empty": (
        [""],
        ": is not a valid stack name; a stack's name is letters, digits, dots, dashes and underscores, e.g. prod",
    ),
    "a name that begins with a dot": (
        [".x"],
        ".x: is not a valid stack name; a stack's name is letters, digits, dots, dashes and underscores, e.g. prod",
    ),
    "a size of which nothing is free": (
        ["prod", "--size", "16"],
        "no /16 of 198.18.0.0/15 is free; `python -m nat_pod pods` lists who has what",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_new_pod_that_is_refused_leaves_everything_as_it_was(run, project, name):
    put(project, "high", DEV.replace("198.18.0.", "198.19.0."))
    before = files(project)
    arguments, sentence = REFUSED[name]
    assert run("new-pod", *arguments) == (1, "", f"{sentence}\n")
    assert files(project) == before


@pytest.mark.parametrize("text", ["config: [\n", DEV.replace("198.18.0.0/22 ", "198.18.0.0/33 ")])
def test_while_a_range_cannot_be_read_none_is_handed_out(run, project, text):
    put(project, "torn", text)
    before = files(project)
    assert run("new-pod", "prod") == (
        1,
        "",
        "the range of Pulumi.torn.yaml cannot be read, and it might be the next free one; "
        "correct that first; to see what is wrong, run: python -m nat_pod check\n",
    )
    assert files(project) == before
    put(project, "torn", "encryptionsalt: v1:xxxx\n")  # what `pulumi stack init` writes claims no range
    assert run("new-pod", "prod")[0] == 0


def test_a_file_that_cannot_be_written_is_a_sentence_and_no_half_file(run, project, monkeypatch):
    before = files(project)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, out, err = run("new-pod", "prod")
    assert (status, out) == (1, "")
    assert err == "Pulumi.prod.yaml: cannot be written: No space left on device (nothing was changed)\n"
    monkeypatch.undo()
    assert files(project) == before


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_has_the_permissions_of_any_new_file(run, project, mask):
    before = os.umask(mask)
    try:
        run("new-pod", "prod")
    finally:
        os.umask(before)
    assert (project / "Pulumi.prod.yaml").stat().st_mode & 0o777 == 0o666 & ~mask


def test_two_new_pods_at_once_get_a_range_each(project, monkeypatch):
    """The second begins while the first has looked at the directory and not written yet."""
    second = threading.Thread(target=main, args=(["new-pod", "b"],))

    def slowly(directory):
        found = read_pods(directory)
        if not second.ident:
            second.start()
            second.join(0.5)
        return found

    monkeypatch.setattr(new_pod, "read_pods", slowly)
    assert main(["new-pod", "a"]) == 0
    second.join()
    pods = read_pods(project)
    assert [str(pods[name].cidr) for name in ("a", "b")] == ["198.18.8.0/22", "198.18.12.0/22"]
