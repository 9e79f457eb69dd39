"""The workflows and their scripts: what only GitHub runs has to be right before it gets there.

The scripts are run here, with a `gh` that records what it is told.  What cannot be tried here is GitHub itself.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, git, real_stack

from nat_pod.config.stack_file import read_stack

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
# Each tag's commit, read from the action's own repository.
ACTIONS = {
    "actions/checkout": ("d23441a48e516b6c34aea4fa41551a30e30af803", "v6.1.0"),
    "actions/download-artifact": ("3e5f45b2cfb9172054b4087a40e8e0b5a5461e7c", "v8.0.1"),
    "actions/setup-python": ("ece7cb06caefa5fff74198d8649806c4678c61a1", "v6.3.0"),
    "actions/upload-artifact": ("bbbca2ddaa5d8feaa63e36b76fdaad77386f024f", "v7.0.0"),
    "pulumi/actions": ("8e5e406f4007fca908480587cb9893c07090f58d", "v7.0.0"),
}
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def load(path: Path) -> dict:
    # BaseLoader: YAML 1.1 takes the key `on` for the value true.
    return yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)


def steps(path: Path) -> list[dict]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def test_there_are_four_workflows():
    assert [path.stem for path in WORKFLOWS] == ["deploy", "preview", "release", "test"]


@each_workflow
def test_each_action_is_pinned_by_its_commit_with_the_version_beside_it(path):
    uses = re.findall(r"^\s*-?\s*uses:\s*(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(uses) == sum("uses" in step for step in steps(path)) > 0
    for line in uses:
        found = re.fullmatch(r"([\w./-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", line)
        assert found, f"{line}: expected owner/action@40-hex-commit # vX.Y.Z"
        assert ACTIONS[found[1]] == (found[2], found[3])


# What a job may write.  Those that run the tests or the program of a pull request may write nothing of the repository.
WRITES = {
    ("preview", "flows"): {"pull-requests"},
    ("preview", "preview"): {"pull-requests"},
    ("release", "release"): {"contents"},
    ("release", "pypi"): {"id-token"},
}


@each_workflow
def test_each_job_states_what_its_token_may_do(path):
    workflow = load(path)
    assert workflow["permissions"] in ({}, "", {"contents": "read"})
    for name, job in workflow["jobs"].items():
        granted = job.get("permissions", workflow["permissions"])
        assert granted, f"job {name} has no permissions of its own"
        writes = WRITES.get((path.stem, name), set())
        assert {scope for scope, level in granted.items() if level != "read"} == writes
        assert set(granted) <= {"contents"} | writes


@each_workflow
def test_no_shell_line_has_a_value_of_the_event_pasted_into_it(path):
    """GitHub pastes before the shell reads: a branch name could be a command.  Values come by the environment."""
    for step in steps(path):
        assert "${{" not in step.get("run", "")


@each_workflow
def test_a_checkout_leaves_no_token_behind(path):
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"


@each_workflow
def test_secrets_are_in_the_environment_of_pulumis_steps_only(path):
    text = path.read_text(encoding="utf-8")
    holders = [step for step in steps(path) if "secrets." in json.dumps(step)]
    assert text.count("secrets.") == sum(json.dumps(step).count("secrets.") for step in holders)
    assert len(holders) == (0 if path.stem in ("test", "release") else 2)
    for asks, runs in zip(holders[::2], holders[1::2], strict=True):
        # Who asks for the stacks gets the backend's, and nothing of OCI's.
        assert asks["run"].startswith(".ci/stack-exists ")
        assert [key for key in asks["env"] if "OCI" in asks["env"][key] or "PASSPHRASE" in key] == []
        assert runs["uses"].startswith("pulumi/actions@")
        assert "secrets." not in json.dumps(runs["with"])
    for job in load(path)["jobs"].values():
        if "secrets." in json.dumps(job):
            assert job["environment"] in ("preview", "production")
            assert "PULUMI_BACKEND_URL" in job.get("if", "") or "PULUMI_BACKEND_URL" in json.dumps(load(path)["jobs"])


@each_workflow
def test_each_script_and_command_that_a_workflow_calls_exists(path):
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = " ".join(step.get("run", "") for step in steps(path))
    for script in re.findall(r"(?<![\w/])((?:\.ci|tools)/[\w/-]+)", called):
        assert os.access(REPOSITORY / script, os.X_OK), script
    for target in re.findall(r"\bmake (\S+)", called):
        assert target in targets
    help_text = (REPOSITORY / "tests" / "golden" / "help.txt").read_text(encoding="utf-8")
    scripts = " ".join((REPOSITORY / ".ci" / name).read_text(encoding="utf-8") for name in ("flows", "comment"))
    for command in re.findall(r"-m nat_pod ([a-z]+)", called + scripts):
        assert f"\n    {command} " in help_text


def test_the_pulumi_of_the_workflows_is_the_pinned_one():
    pinned = re.search(r'"pulumi==([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))[1]
    versions = [
        step["with"]["pulumi-version"] for path in WORKFLOWS for step in steps(path) if "pulumi" in step.get("uses", "")
    ]
    assert versions == [pinned] * 4


@each_workflow
def test_each_job_ends_in_time(path):
    """GitHub's own limit is six hours, and `flows` reads stack files of forks."""
    limits = {name: int(job["timeout-minutes"]) for name, job in load(path)["jobs"].items()}
    assert max(limits.values()) <= 120
    assert limits.get("flows", 10) == 10


def test_deploying_is_one_stack_at_a_time_and_protected():
    job = load(REPOSITORY / ".github" / "workflows" / "deploy.yml")["jobs"]["up"]
    assert (job["strategy"]["max-parallel"], job["environment"]) == ("1", "production")
    assert job["strategy"]["fail-fast"] == "false", "one POD that fails must not stop the others"
    assert job["concurrency"] == {"group": "deploy-${{ matrix.stack }}", "cancel-in-progress": "false"}


@pytest.mark.parametrize("name", ["deploy", "preview"])
def test_only_a_stack_that_exists_is_touched(name):
    job = load(REPOSITORY / ".github" / "workflows" / f"{name}.yml")["jobs"][{"deploy": "up"}.get(name, name)]
    *_, install, asks, runs = job["steps"]
    assert "command" not in install["with"]
    assert (asks["id"], asks["run"]) == ("stack", '.ci/stack-exists "$STACK" "$BACKEND" >> "$GITHUB_OUTPUT"')
    assert (runs["if"], runs["with"]["command"]) == (
        "steps.stack.outputs.exists == 'true'",
        {"deploy": "up"}.get(name, name),
    )


@pytest.mark.runs_commands
def test_actionlint_has_nothing_to_say():
    tool = shutil.which("actionlint", path=f"{os.environ.get('PATH', '')}{os.pathsep}{Path.home() / 'go' / 'bin'}")
    if tool is None:
        pytest.skip("no actionlint: .ci/actionlint makes sure there is one")
    result = subprocess.run([tool, "-no-color"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


# --- the scripts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A repository with this project's scripts, two stacks and an example."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    (tmp_path / ".ci").mkdir()
    for name in ("approved-commit", "changed-stacks", "flows", "comment", "release-notes", "stack-exists"):
        shutil.copy2(REPOSITORY / ".ci" / name, tmp_path / ".ci" / name)
    shutil.copy2(REPOSITORY / "Pulumi.yaml", tmp_path / "Pulumi.yaml")
    shutil.copy2(REPOSITORY / "Pulumi.dev.yaml", tmp_path / "Pulumi.example.yaml")
    for name in ("dev", "ten"):
        (tmp_path / f"Pulumi.{name}.yaml").write_text(real_stack(name), encoding="utf-8")
    (tmp_path / "nat_pod" / "rules").mkdir(parents=True)
    (tmp_path / "nat_pod" / "rules" / "compiler.py").write_text("")
    commit(tmp_path)
    return tmp_path


def commit(directory: Path) -> None:
    git(directory, "add", ".")
    git(directory, "commit", "--quiet", "--allow-empty", "-m", "x")


def changed_stacks(directory: Path, base: str = "HEAD^1") -> list[str]:
    command = [directory / ".ci" / "changed-stacks", base]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout)


CHANGES = {
    "a stack file": (["Pulumi.ten.yaml"], ["ten"]),
    "a new stack file": (["Pulumi.a.yaml", "Pulumi.dev.yaml"], ["a", "dev"]),
    "the compiler": (["nat_pod/rules/compiler.py"], ["dev", "ten"]),
    "the project's defaults": (["Pulumi.yaml"], ["dev", "ten"]),
    "a document": (["README.md"], []),
    "nothing": ([], []),
    "an example": (["Pulumi.example.yaml"], []),
    "a name that would be a command": (["Pulumi.$(id).yaml", "Pulumi.a b.yaml", 'Pulumi."x.yaml'], []),
    "a name that would be an option": (["Pulumi.--help.yaml", "Pulumi.-.yaml"], []),
    "a name of two lines": (["x\nPulumi.a.yaml", "Pulumi.b.yaml\nx"], []),
}


@pytest.mark.runs_commands
@pytest.mark.parametrize("name", CHANGES)
def test_the_stacks_that_a_change_concerns(checkout, name):
    files, stacks = CHANGES[name]
    for file in files:
        with (checkout / file).open("a") as stream:
            stream.write("# changed\n")
    commit(checkout)
    assert changed_stacks(checkout) == stacks


@pytest.mark.runs_commands
def test_a_deleted_stack_file_concerns_nothing_and_a_base_that_is_none_everything(checkout):
    (checkout / "Pulumi.ten.yaml").unlink()
    commit(checkout)
    assert changed_stacks(checkout) == []
    assert changed_stacks(checkout, "0" * 40) == ["dev"]


def warnings(directory: Path, base: str = "HEAD^1") -> list[str]:
    command = [directory / ".ci" / "changed-stacks", base]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stderr.splitlines()


@pytest.mark.runs_commands
def test_a_renamed_stack_file_concerns_its_new_name_and_the_pod_of_the_old_one_is_not_forgotten(checkout):
    git(checkout, "mv", "Pulumi.ten.yaml", "Pulumi.north.yaml")
    git(checkout, "rm", "--quiet", "Pulumi.example.yaml")
    commit(checkout)
    assert changed_stacks(checkout) == ["north"]
    assert warnings(checkout) == [
        "::warning::Pulumi.ten.yaml is gone, and a POD that it deployed still stands. To take the POD away: pulumi "
        "destroy --stack ten. To give it the new name of its file: pulumi stack rename NEW --stack ten"
    ]
    commit(checkout)
    assert warnings(checkout) == []


@pytest.mark.runs_commands
def test_a_stack_file_that_is_a_link_changes_with_what_it_leads_to(checkout):
    (checkout / "pods").mkdir()
    (checkout / "pods" / "ten.yaml").write_text(real_stack("ten"))
    (checkout / "Pulumi.ten.yaml").unlink()
    (checkout / "Pulumi.ten.yaml").symlink_to("pods/ten.yaml")
    (checkout / "Pulumi.out.yaml").symlink_to("/etc/hostname")
    (checkout / "Pulumi.lost.yaml").symlink_to("pods/lost.yaml")
    commit(checkout)
    assert changed_stacks(checkout) == ["out", "ten"]
    with (checkout / "pods" / "ten.yaml").open("a") as stream:
        stream.write("# changed\n")
    commit(checkout)
    assert changed_stacks(checkout) == ["ten"]


COMPARTMENTS = {
    "": False,
    "ocid1.compartment.oc1..exampledevpod": True,
    '"ocid1.compartment.oc1..exampledevpod"': True,
    "'ocid1.compartment.oc1.uk-london-1.example'   # a comment": True,
    "ocid1.tenancy.oc1..exampletenancy": True,
    "ocid1.compartment.oc1..aaaaexample": False,
    "ocid1.compartment.example..aaaa": False,
    "aaaa # ocid1.compartment.oc1..example": False,
}


@pytest.mark.runs_commands
@pytest.mark.parametrize("value", COMPARTMENTS)
@pytest.mark.parametrize(
    "key",
    ["nat-pod:compartmentId"]
    + [pytest.param(key, marks=pytest.mark.sweep) for key in ('"nat-pod:compartmentId"', "nat-pod:cidr")],
)
def test_workflows_and_commands_know_the_same_examples(checkout, key, value):
    text = f"# nat-pod:compartmentId: ocid1.compartment.oc1..example\nconfig:\n  {key}: {value}\n"
    (checkout / "Pulumi.x.yaml").write_text(text)
    commit(checkout)
    example = COMPARTMENTS[value] and "compartmentId" in key
    assert read_stack(checkout, "x").example is example
    assert changed_stacks(checkout) == ([] if example else ["x"])


# --- a deployment that was approved late -----------------------------------------------------------------------------


def approve(directory: Path, stack: str, approved: str) -> tuple[int, str, str]:
    """Exit status, what was said, and the commit that is checked out then."""
    command = [directory / ".ci" / "approved-commit", stack, approved]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    return done.returncode, done.stdout + done.stderr, head(directory)


def head(directory: Path) -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.runs_commands
def test_what_was_approved_is_deployed_unless_something_newer_concerns_the_stack(checkout):
    approved = head(checkout)
    assert approve(checkout, "dev", approved) == (0, "", approved)
    git(checkout, "checkout", "--quiet", "main")
    with (checkout / "Pulumi.ten.yaml").open("a") as stream:
        stream.write("# changed\n")
    commit(checkout)
    newest = head(checkout)
    status, said, now = approve(checkout, "ten", approved)
    assert (status, now) == (1, newest)
    assert said == (
        f"::error::main has moved on to {newest[:7]}, which concerns ten too: approve that run, it deploys both "
        "changes. Nothing was deployed.\n"
    )
    # No other run would bring this one: what is newer does not concern it.
    assert approve(checkout, "dev", approved) == (0, "", approved)


@pytest.mark.runs_commands
def test_nothing_is_deployed_of_a_stack_or_a_commit_that_main_no_longer_has(checkout):
    approved = head(checkout)
    (checkout / "Pulumi.ten.yaml").unlink()
    commit(checkout)
    status, said, _ = approve(checkout, "ten", approved)
    assert (status, "which has no Pulumi.ten.yaml. Nothing was deployed." in said) == (1, True)
    git(checkout, "checkout", "--quiet", "--orphan", "other")
    commit(checkout)
    for stray in (approved, "0" * 40):
        status, said, _ = approve(checkout, "dev", stray)
        assert (status, f"main was rewritten: {stray} is no part of it any more" in said) == (1, True)


def test_a_deployment_looks_at_the_newest_main_before_anything_else():
    first, second, *_ = load(REPOSITORY / ".github" / "workflows" / "deploy.yml")["jobs"]["up"]["steps"]
    assert first["with"] == {"ref": "${{ github.ref }}", "fetch-depth": "0", "persist-credentials": "false"}
    assert (second["env"], second["run"]) == ({"COMMIT": "${{ github.sha }}"}, '.ci/approved-commit "$STACK" "$COMMIT"')


# --- a stack file whose stack nobody has made ------------------------------------------------------------------------

PULUMI = """#!/bin/sh
echo "$PWD: $*" >> "$LOG"
case "$1 $2" in
  "login "*) exit "$LOGIN" ;;
  "stack ls") printf '%s' "$STACKS"; exit "$LS" ;;
esac
exit 9
"""
NOTICE = (
    "::notice::Pulumi.ten.yaml has no stack yet, so nothing was done for it. To make it: pulumi stack init ten, commit "
    "what that adds to the file, and run this job again\n"
)


def exists(directory: Path, stacks: str, login: int = 0, ls: int = 0) -> subprocess.CompletedProcess[str]:
    (directory / "bin").mkdir()
    (directory / "bin" / "pulumi").write_text(PULUMI)
    (directory / "bin" / "pulumi").chmod(0o755)
    environment = {
        "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
        "LOG": str(directory / "log"),
        "STACKS": stacks,
        "LOGIN": str(login),
        "LS": str(ls),
    }
    command = [directory / ".ci" / "stack-exists", "ten", "s3://pods"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment)


STACKS = {
    "none at all": ("[]", False),
    "another": ('[{"name": "dev", "current": false}]', False),
    "one that begins like it": ('[{"name": "ten-2", "current": false}]', False),
    "itself": ('[{"name": "dev", "current": false}, {"name": "ten", "current": false}]', True),
    "itself, with its organisation": ('[{"name": "isv/ten", "current": false}]', True),
}


@pytest.mark.runs_commands
@pytest.mark.parametrize("name", STACKS)
def test_a_stack_that_nobody_has_made_is_a_notice_with_what_to_type(checkout, name):
    stacks, there = STACKS[name]
    done = exists(checkout, stacks)
    assert done.returncode == 0
    assert (done.stdout, done.stderr) == (("exists=true\n", "") if there else ("exists=false\n", NOTICE))
    assert (checkout / "log").read_text() == (
        f"{checkout}: login --non-interactive s3://pods\n{checkout}: stack ls --non-interactive --json\n"
    )


@pytest.mark.runs_commands
@pytest.mark.parametrize(("stacks", "login", "ls"), [("[]", 1, 0), ("", 0, 1)], ids=["no login", "no answer"])
def test_a_backend_that_does_not_answer_is_a_failure_and_no_missing_stack(checkout, stacks, login, ls):
    done = exists(checkout, stacks, login, ls)
    assert (done.returncode, done.stdout, "::notice::" in done.stderr) == (1, "", False)


def flows(directory: Path, python: str) -> subprocess.CompletedProcess[str]:
    bin_directory = directory / ".venv" / "bin"
    bin_directory.mkdir(parents=True)
    (bin_directory / "python").write_text(f"#!/bin/sh\n{python}\n")
    (bin_directory / "python").chmod(0o755)
    command = [directory / ".ci" / "flows", "dev", "HEAD^1"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


@pytest.mark.runs_commands
@pytest.mark.parametrize("status", [0, 1])
def test_flows_that_are_lost_are_shown_and_fail_nothing(checkout, status):
    done = flows(checkout, f'echo "$*"; exit {status}')
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "-m nat_pod diff dev --base HEAD^1 --markdown\n"


@pytest.mark.runs_commands
def test_a_stack_file_that_does_not_hold_is_shown_and_fails(checkout):
    done = flows(checkout, 'echo "Pulumi.dev.yaml: 1 problem" >&2; exit 1')
    assert done.returncode == 1
    assert done.stdout == ("### POD `dev`: the flows cannot be compared\n\n```\nPulumi.dev.yaml: 1 problem\n```\n")


GH = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  *--paginate*) printf '%s' "$FOUND" ;;
  *) cat >> "$LOG" ;;
esac
"""


@pytest.mark.runs_commands
@pytest.mark.parametrize(
    ("found", "call"),
    [
        ("", "api --method POST repos/isv/pods/issues/7/comments"),
        ("41\n42\n", "api --method PATCH repos/isv/pods/issues/comments/41"),
    ],
    ids=["first", "again"],
)
def test_a_comment_is_posted_once_and_then_renewed(checkout, tmp_path, found, call):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gh").write_text(GH)
    (tmp_path / "bin" / "gh").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "FOUND": found,
        "GITHUB_REPOSITORY": "isv/pods",
        "PULL_REQUEST": "7",
    }
    subprocess.run([checkout / ".ci" / "comment", "flows dev"], input="text\n", text=True, check=True, env=environment)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0].startswith("api --paginate repos/isv/pods/issues/7/comments --jq ")
    assert lines[1:] == [f"{call} --field body=@- --silent", "<!-- nat-pod: flows dev -->", "text"]


# --- a release -------------------------------------------------------------------------------------------------------

RELEASED = """# Changelog

## Unreleased

Nothing yet.

## 1.10.0 - 2027-02-01

### The next `pulumi up`

- **replaces both NAT VMs**

## 1.1.0 - 2026-12-01

Older.
"""


def release_notes(directory: Path, tag: str, version: str, changelog: str = RELEASED) -> tuple[int, str, str]:
    (directory / "nat_pod" / "__init__.py").write_text(f'"""NAT POD."""\n\n__version__ = "{version}"\n')
    (directory / "CHANGELOG.md").write_text(changelog)
    command = [directory / ".ci" / "release-notes", tag]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    return done.returncode, done.stdout, done.stderr


@pytest.mark.runs_commands
def test_the_notes_of_a_release_are_the_section_of_its_version(checkout):
    status, out, err = release_notes(checkout, "v1.10.0", "1.10.0")
    assert (status, err) == (0, "")
    assert out.strip() == "### The next `pulumi up`\n\n- **replaces both NAT VMs**"
    assert release_notes(checkout, "v1.1.0", "1.1.0") == (0, "\nOlder.\n", "")


@pytest.mark.runs_commands
@pytest.mark.parametrize("tag", ["v1.1.0", "1.10.0", "v1.10.0-rc1", "v1.10.1"])
def test_a_tag_that_is_not_the_version_releases_nothing(checkout, tag):
    status, out, err = release_notes(checkout, tag, "1.10.0")
    assert (status, out) == (1, "")
    assert err == (
        f"::error::the tag is {tag}, and nat_pod/__init__.py says 1.10.0: write the version there first, then tag "
        "v1.10.0\n"
    )


@pytest.mark.runs_commands
@pytest.mark.parametrize(
    "changelog",
    [
        RELEASED.replace("1.10.0 - 2027", "1.9.0 - 2027"),
        RELEASED.replace("## 1.10.0 - 2027-02-01", "## 1.10.0"),
        RELEASED.replace("### The next `pulumi up`\n\n- **replaces both NAT VMs**\n\n", ""),
    ],
    ids=["another version", "no date", "nothing in it"],
)
def test_a_version_that_changelog_says_nothing_of_is_not_released(checkout, changelog):
    status, out, err = release_notes(checkout, "v1.10.0", "1.10.0", changelog)
    assert (status, out) == (1, "")
    assert err == "::error::CHANGELOG.md has no section '## 1.10.0 - YYYY-MM-DD' with anything in it\n"


def test_a_release_is_tested_and_built_before_anything_is_published():
    workflow = load(REPOSITORY / ".github" / "workflows" / "release.yml")
    assert workflow["on"] == {"push": {"tags": ["v[0-9]*"]}}
    jobs = workflow["jobs"]
    runs = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert runs[0] == 'mkdir dist && .ci/release-notes "$TAG" > dist/notes.md'
    assert (runs[-3], runs[-1]) == (".ci/run", "make dist")
    assert runs[-2].startswith(".venv/bin/python -c ")
    assert runs[-2].endswith(">> dist/notes.md")
    assert (jobs["release"]["needs"], jobs["pypi"]["needs"]) == ("build", "release")
    assert (jobs["pypi"]["if"], jobs["pypi"]["environment"]) == ("vars.PYPI == 'true'", "pypi")
