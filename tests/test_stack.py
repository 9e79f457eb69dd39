"""Stack files as text: what is YAML, what is not, and how the project's defaults come under them.

Address plan: the article's (conftest.py).
"""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import git

from nat_pod.config.stack_file import _Fast, _Plain, load_yaml, read_stack, stack_names
from nat_pod.errors import ConfigError, NatPodError, Problem

REPOSITORY = Path(__file__).resolve().parent.parent


def put(directory: Path, text: str | bytes, name: str = "Pulumi.x.yaml") -> Path:
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(directory: Path) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        read_stack(directory, "x")
    assert refused.value.source == "Pulumi.x.yaml"
    return [str(problem) for problem in refused.value.problems]


TWICE = """\
config:
  nat-pod:customers:
    customer1: {cidr: 10.0.0.0/24, hosts: {vm1: 10.0.0.100}}
    customer2: {cidr: 10.0.1.0/24, hosts: {}}
    customer1: {cidr: 10.0.2.0/24, hosts: {}}
"""


def doubled(form: str) -> str:
    """Two kilobytes in which each of sixty values is the one before it, twice."""
    lines = [f"  nat-pod:a{number}: &a{number} {form.format(f'*a{number - 1}')}" for number in range(1, 61)]
    return "\n".join(["config:", "  nat-pod:a0: &a0 {k: v}", *lines, ""])


UNREADABLE = {
    "a key that stands twice": (
        TWICE,
        "line 5, column 5: is not YAML that can be read: the key customer1 stands here twice",
    ),
    "config that stands twice": (
        "config: {}\nconfig: {}\n",
        "line 2, column 1: is not YAML that can be read: the key config stands here twice",
    ),
    "a list that is not closed": (
        "config:\n  nat-pod:cidr: [198.18.0.0/22\n",
        "line 3, column 1: is not YAML that can be read: expected ',' or ']', but got '<stream end>'",
    ),
    "a tab for an indentation": (
        "config:\n\tnat-pod:cidr: 198.18.0.0/22\n",
        "line 2, column 1: is not YAML that can be read: found character '\\t' that cannot start any token",
    ),
    "an alias for nothing": (
        "config: *nobody\n",
        "line 1, column 9: is not YAML that can be read: found undefined alias 'nobody'",
    ),
    "a tag that makes a Python object": (
        "config: !!python/object/apply:os.getcwd []\n",
        "line 1, column 9: is not YAML that can be read: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.getcwd'",
    ),
    "a key that is a list": (
        "config: {[1, 2]: 3}\n",
        "line 1, column 10: is not YAML that can be read: found unhashable key",
    ),
    "a date that does not exist": (
        "config: 2026-02-30\n",
        "file: is not YAML that can be read: day is out of range for month",
    ),
    "bytes that are no text": (
        b"config: \xff\n",
        "file: is not YAML that can be read: 'utf-8' codec can't decode byte 0xff in position 8: invalid start byte",
    ),
    "a control character": (
        "config: \x07\n",
        "file: is not YAML that can be read: unacceptable character #x0007: special characters are not allowed",
    ),
    "an alias of what it stands in": (
        "config: &all {again: *all}\n",
        "line 1, column 9: is not YAML that can be read: this value contains itself",
    ),
    "aliases that double sixty times": (
        doubled("[{0}, {0}]"),
        "line 16, column 16: is not YAML that can be read: more than 100,000 values, aliases (*name) followed; no POD "
        "needs so many",
    ),
    "merges that double sixty times": (
        doubled("{{<<: [{0}, {0}]}}"),
        "line 16, column 16: is not YAML that can be read: more than 100,000 values, aliases (*name) followed; no POD "
        "needs so many",
    ),
    "a list for a file": ("- config\n", "file: must be a mapping with the key config:"),
    "a word for a file": ("config\n", "file: must be a mapping with the key config:"),
    "two documents": (
        "config: {}\n---\nconfig: {}\n",
        "line 2, column 1: is not YAML that can be read: but found another document",
    ),
    "a list for config": ("config: [1]\n", "config: [1]: must be a mapping of keys to values"),
    "an empty list for config": ("config: []\n", "config: []: must be a mapping of keys to values"),
    "a key without a namespace": (
        "config:\n  cidr: 198.18.0.0/22\n",
        "cidr: has no namespace; write nat-pod:cidr",
    ),
    "an encrypted value": (
        "config:\n  nat-pod:cidr:\n    secure: AAABAKT...\n",
        "nat-pod:cidr: is encrypted; nat-pod has no secrets, set it with `pulumi config set --plaintext`",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_refused_with_the_place_and_the_reason(tmp_path, name):
    text, problem = UNREADABLE[name]
    path = put(tmp_path, text)
    before = path.read_bytes()
    assert problems_of(tmp_path) == [problem]
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["Pulumi.x.yaml"]


@pytest.mark.parametrize("name", ["dev", "ten"])
def test_libyaml_reads_what_python_reads(name):
    """Where PyYAML has no libyaml both are the same, and this says nothing; CI's has it."""
    text = (REPOSITORY / f"Pulumi.{name}.yaml").read_text(encoding="utf-8")
    assert yaml.load(text, _Fast) == yaml.load(text, _Plain)
    with pytest.raises(yaml.YAMLError, match="the key customer1 stands here twice"):
        yaml.load(TWICE, _Fast)


@pytest.mark.slow
def test_a_file_nested_beyond_reason_is_refused_without_a_traceback(tmp_path):
    put(tmp_path, "config: " + "[" * 2000)
    assert problems_of(tmp_path)[0].startswith("file: is not YAML that can be read: ")


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "config:\n", "config: {}\n", "encryptionsalt: v1:x\n"])
def test_a_file_without_configuration_is_empty_and_reported_by_what_is_missing(tmp_path, text):
    put(tmp_path, text)
    stack = read_stack(tmp_path, "x")
    assert stack.pod_config() == {}
    with pytest.raises(ConfigError) as refused:
        stack.checked()
    assert [problem.path for problem in refused.value.problems] == [
        "nat-pod:compartmentId",
        "nat-pod:cidr",
        "nat-pod:natVm",
        "nat-pod:management",
        "nat-pod:customers",
    ]


def test_keys_of_others_are_read_and_left_out_of_the_pods_own(tmp_path):
    put(tmp_path, "config:\n  oci:region: uk-london-1\n  oci:token: {secure: AAAB}\n  nat-pod:cidr: 198.18.0.0/22\n")
    stack = read_stack(tmp_path, "x")
    assert stack.config == {
        "oci:region": "uk-london-1",
        "oci:token": {"secure": "AAAB"},
        "nat-pod:cidr": "198.18.0.0/22",
    }
    assert stack.pod_config() == {"cidr": "198.18.0.0/22"}


def test_the_projects_defaults_come_under_the_stacks_own_values(tmp_path):
    put(tmp_path, "config:\n  nat-pod:lpgLimit: 20\n")
    declared = "lpgLimit: {type: integer, default: 10}, sourceNat: {default: masquerade}, cidr: {type: string}"
    put(tmp_path, f"config: {{{declared}}}\n", "Pulumi.yaml")
    assert read_stack(tmp_path, "x").pod_config() == {"lpgLimit": 20, "sourceNat": "masquerade"}


@pytest.mark.parametrize("project", ["config: []\n", "config: [1]\n", "config: word\n"])
def test_a_project_file_that_is_wrong_is_named(tmp_path, project):
    put(tmp_path, "config: {}\n")
    put(tmp_path, project, "Pulumi.yaml")
    with pytest.raises(
        ConfigError, match=r"^Pulumi\.yaml: 1 problem\n  config: .*: must be a mapping of keys to values$"
    ):
        read_stack(tmp_path, "x")


def test_a_project_file_with_odd_entries_gives_the_defaults_it_has(tmp_path):
    put(tmp_path, "config: {}\n")
    put(tmp_path, "config: {5: {default: 1}, a: word, b: [1], c: {default: 2}, 'x:d': {default: 3}}\n", "Pulumi.yaml")
    assert read_stack(tmp_path, "x").config == {"nat-pod:5": 1, "nat-pod:c": 2, "x:d": 3}


def test_a_stack_that_has_no_file_is_named_with_those_that_do(tmp_path):
    with pytest.raises(NatPodError) as none:
        read_stack(tmp_path, "prod")
    assert str(none.value) == (
        f"Pulumi.prod.yaml: no such stack file in {tmp_path}; stacks here are: none; for the examples run: "
        "python -m nat_pod new-project --examples"
    )
    put(tmp_path, "config: {}\n", "Pulumi.dev.yaml")
    put(tmp_path, "config: {}\n", "Pulumi.a.b.yaml")
    (tmp_path / "Pulumi.prod.yaml").mkdir()
    with pytest.raises(NatPodError) as some:
        read_stack(tmp_path, "prod")
    assert str(some.value) == f"Pulumi.prod.yaml: no such stack file in {tmp_path}; stacks here are: a.b, dev"


def test_a_file_that_may_not_be_read_is_a_sentence(tmp_path, monkeypatch):
    path = put(tmp_path, "config: {}\n")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError) as refused:
        load_yaml(path)
    assert str(refused.value) == "Pulumi.x.yaml: 1 problem\n  file: cannot be read: Permission denied"


def test_the_stacks_of_a_directory_are_its_files_without_the_project_and_without_leftovers(tmp_path):
    for name in ("Pulumi.yaml", "Pulumi.prod.yaml", "Pulumi.dev.yaml", ".Pulumi.dev.yaml.x1", "Pulumi.dev.yaml~"):
        put(tmp_path, "config: {}\n", name)
    assert stack_names(tmp_path) == ["dev", "prod"]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    text = (REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    put(tmp_path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    put(tmp_path, text, "Pulumi.plain.yaml")
    assert read_stack(tmp_path, "x").config == read_stack(tmp_path, "plain").config
    assert read_stack(tmp_path, "x").pod_config()["cidr"] == "198.18.0.0/22"


@pytest.mark.slow
@pytest.mark.parametrize("aliases", [16_000, 17_000])
def test_as_many_values_as_no_pod_has_are_read_and_no_more(tmp_path, aliases):
    """Each alias stands for six values here; a full /21 POD has some 7,000 in all."""
    put(tmp_path, f"config:\n  x: &x [1, 2, 3, 4, 5]\n  y: [{', '.join(['*x'] * aliases)}]\n")
    if aliases == 16_000:
        assert len(load_yaml(tmp_path / "Pulumi.x.yaml")["config"]["y"]) == aliases
    else:
        assert "more than 100,000 values" in problems_of(tmp_path)[0]


NO_NAMES = ["\x1b[31mred", "a\nb", "--help", ".x", "a b", "<b>", "ü", "x" * 101, os.fsdecode(b"\xff")]


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_a_file_of_what_is_no_stacks_name_is_refused_and_hides_nothing(tmp_path, name):
    put(tmp_path, "config: {}\n", f"Pulumi.{name}.yaml")
    with pytest.raises(ConfigError) as refused:
        read_stack(tmp_path, name)
    text = str(refused.value)
    assert "is not a valid stack name; a stack's name is letters, digits, dots, dashes and underscores" in text
    assert all(sign.isprintable() for sign in text.replace("\n  ", ""))
    with pytest.raises(NatPodError) as missing:
        read_stack(tmp_path, "prod")
    assert str(missing.value).isprintable()


# --- merge conflicts -------------------------------------------------------------------------------------------------

CONFLICT = """\
config:
  nat-pod:addresses:
    management/mgmt: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}
<<<<<<< HEAD
    customer1/vm3: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}
=======
    customer2/vm4: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}
>>>>>>> acme
"""


def test_a_merge_conflict_is_called_one_and_has_its_place(tmp_path):
    put(
        tmp_path, CONFLICT + CONFLICT.split("130}\n")[1].replace("HEAD\n", "HEAD\n||||||| base\n").replace("\n", "\r\n")
    )
    rule = (
        ": a merge conflict between HEAD and acme: keep the lines that are right, usually the members of both sides, "
        "and delete those that begin with <<<<<<<, |||||||, ======= and >>>>>>>; then check names any slot that two "
        "members have"
    )
    assert problems_of(tmp_path) == [f"lines 4 to 8{rule}", f"lines 9 to 14{rule}"]


@pytest.mark.parametrize("mark", ["<<<<<<< HEAD", "=======", ">>>>>>> acme", "||||||| base"])
def test_what_is_left_of_a_merge_conflict_is_called_that(tmp_path, mark):
    put(tmp_path, f"config:\n  a:b: 1\n{mark}\n")
    assert problems_of(tmp_path) == [f'line 3: "{mark}": is left of a merge conflict: delete this line']


def test_a_text_in_a_stack_file_may_look_like_a_conflict(tmp_path):
    put(tmp_path, "config:\n  a:b: |\n    <<<<<<< HEAD\n    =======\n    >>>>>>> acme\n")
    assert read_stack(tmp_path, "x").config["a:b"].startswith("<<<<<<<")


def both_sides_kept(directory: Path, *order: str) -> list[Problem]:
    """The problems after two branches took one slot, main's was merged first and both lines were kept."""
    shutil.copy(REPOSITORY / "Pulumi.yaml", directory)
    old = (
        (REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8").replace("vm1: 10.0.0.100,", "vm1: 10.0.0.100, {},")
    )
    hosts = {"acme": "10.0.0.131", "main": "10.0.0.132"}
    line = "    customer1/{}: {{natVm1: 198.18.0.4, natVm2: 198.18.0.132}}\n"

    def file(*names: str) -> str:
        members = ", ".join(f"{name}: {hosts[name]}" for name in sorted(names))
        return old.replace("{},", f"{members},") + "".join(line.format(name) for name in names)

    put(directory, file("main"), "Pulumi.dev.yaml")
    git(directory, "init", "--quiet", "--initial-branch=main")
    git(directory, "add", ".")
    git(directory, "commit", "--quiet", "-m", "x")
    git(directory, "checkout", "--quiet", "-b", "acme")
    put(directory, file(*order), "Pulumi.dev.yaml")
    with pytest.raises(ConfigError) as refused:
        read_stack(directory, "dev").checked()
    return list(refused.value.problems)


@pytest.mark.runs_commands
@pytest.mark.parametrize(("order", "line"), [(["main", "acme"], 34), (["acme", "main"], 34)], ids=["below", "above"])
def test_a_slot_with_two_owners_stays_with_the_one_of_the_base_branch(tmp_path, order, line):
    (problem,) = both_sides_kept(tmp_path, *order)
    assert (problem.line, str(problem)) == (
        line,
        f'nat-pod:addresses["customer1/{order[1]}"]: "198.18.0.4 / 198.18.0.132": is already the slot of '
        f"customer1/{order[0]}; on main it is customer1/main's: delete the line of customer1/acme\n"
        "    run: python -m nat_pod allocate dev",
    )
    # Which is what helps.
    path = tmp_path / "Pulumi.dev.yaml"
    lines = [text for text in path.read_text().splitlines(keepends=True) if "customer1/acme:" not in text]
    path.write_text("".join(lines))
    assert read_stack(tmp_path, "dev").draft()[1] == []


@pytest.mark.runs_commands
def test_without_a_base_branch_that_knows_one_of_the_two_the_newer_one_goes(tmp_path):
    both_sides_kept(tmp_path, "main", "acme")
    git(tmp_path, "commit", "--quiet", "-a", "-m", "both")
    for base in ("both", "none"):
        git(tmp_path, "branch", "--force", "main") if base == "both" else git(tmp_path, "branch", "-D", "main")
        with pytest.raises(ConfigError, match="two hosts cannot share one: delete the line of the newer one"):
            read_stack(tmp_path, "dev").checked()
    shutil.rmtree(tmp_path / ".git")
    with pytest.raises(ConfigError, match="delete the line of the newer one"):
        read_stack(tmp_path, "dev").checked()
