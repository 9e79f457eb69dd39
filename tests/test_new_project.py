"""`new-project`: the files of a directory in which nat-pod and `pulumi` run; what is there is never written over."""

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY

import nat_pod
from nat_pod.commands.cli import main

PROGRAM = ["Pulumi.yaml", "__main__.py"]
EXAMPLES = ["Pulumi.dev.yaml", "Pulumi.routed.yaml", "Pulumi.ten.yaml"]
COMPONENT = ["PulumiPlugin.yaml", "__main__.py"]
MADE = ["requirements.txt"]
KINDS = {
    "program": ([], PROGRAM, "", "python -m nat_pod new-pod NAME\n"),
    "with examples": (["--examples"], [*PROGRAM, *EXAMPLES], "", "python -m nat_pod lab demo dev\n"),
    "component": (["--component"], COMPONENT, "package", "pulumi package add "),
}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_directory_gets_the_repositorys_files_and_this_version(directory, capsys, kind):
    options, names, folder, then = KINDS[kind]
    assert main(["new-project", *options]) == 0
    *lines, last = capsys.readouterr().out.splitlines(keepends=True)
    assert lines == [f"written  {name}\n" for name in [*names, *MADE]]
    assert last.startswith(f"then     {then}")
    found = contents(directory)
    requirements = found.pop("requirements.txt").decode().splitlines()
    assert requirements[1:] == [f"nat-pod=={nat_pod.__version__}"]
    assert found == {name: (REPOSITORY / folder / name).read_bytes() for name in names}


@pytest.mark.slow
def test_the_examples_can_be_checked_and_a_pod_begun(directory, capsys):
    main(["new-project", "--examples"])
    for arguments in (["check"], ["trace", "dev", "--all"], ["new-pod", "prod"]):
        assert main(arguments) == 0
    assert "new-project" not in capsys.readouterr().out  # it is one


def test_again_it_names_what_is_there_and_what_differs_and_writes_over_nothing(directory, capsys):
    main(["new-project"])
    (directory / "Pulumi.yaml").write_text("name: pods\nruntime: python\n", encoding="utf-8")
    (directory / "__main__.py").unlink()
    before = contents(directory)
    capsys.readouterr()
    assert main(["new-project", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == {"written": ["__main__.py"], "there": ["requirements.txt"], "differ": ["Pulumi.yaml"]}
    assert contents(directory) == before | {"__main__.py": (REPOSITORY / "__main__.py").read_bytes()}
    assert main(["new-project"]) == 1
    assert capsys.readouterr().out == (
        "there    __main__.py\n"
        "there    requirements.txt\n"
        f"differs  Pulumi.yaml from the one in nat-pod {nat_pod.__version__} and was left as it is; "
        "to get the new one, delete it and run this again\n"
        "then     python -m nat_pod new-pod NAME\n"
    )


def test_a_link_that_leads_nowhere_is_not_written_through(directory, capsys):
    (directory / "Pulumi.yaml").symlink_to(directory / "elsewhere")
    assert main(["new-project"]) == 1
    assert capsys.readouterr().err == "Pulumi.yaml: cannot be read: No such file or directory\n"
    assert not (directory / "elsewhere").exists()


def test_the_checkout_is_left_alone(directory, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert main(["new-project"]) == 1
    said = f"{REPOSITORY} is nat-pod's own checkout, which has all of it (nothing was changed)\n"
    assert capsys.readouterr().err == said


def test_a_pod_that_is_begun_before_its_project_is_told_so(directory, capsys):
    assert main(["new-pod", "prod"]) == 0
    assert "then     python -m nat_pod new-project     # the Pulumi project that" in capsys.readouterr().out
