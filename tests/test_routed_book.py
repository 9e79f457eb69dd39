"""`allocate` in the stack file of a routed POD: which lines it writes, and which it leaves alone."""

import pytest
import yaml
from conftest import REPOSITORY

TEXT = (REPOSITORY / "Pulumi.routed.yaml").read_text(encoding="utf-8")
BOOK = "    maple/web: 198.18.10.41\n"
BEHIND = "  nat-pod:gateways:\n"
WEB = f"        web: 10.0.0.100\n{BEHIND}"  # maple's: fern has one with the same address


@pytest.fixture
def stack(project):
    """Write the example with some lines replaced; each stands there once."""

    def put(*changes: tuple[str, str]) -> str:
        text = TEXT
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (project / "Pulumi.routed.yaml").write_text(text, encoding="utf-8")
        return text

    return put


def written(project) -> str:
    return (project / "Pulumi.routed.yaml").read_text(encoding="utf-8")


def test_nothing_to_do_writes_nothing(run, project, stack):
    stack()
    assert run("allocate", "routed") == (0, "Pulumi.routed.yaml: nothing to do: every member has a slot\n", "")
    assert written(project) == TEXT


def test_a_new_member_gets_a_line_at_the_end_and_every_other_line_stays(run, project, stack):
    before = stack(
        (WEB, f"        web: 10.0.0.100\n        x: 10.0.0.9\n{BEHIND}"),
        (BOOK, "    maple/web: 198.18.10.41 # since 2024\n"),
    )
    assert run("allocate", "routed") == (0, "added     maple/x  198.18.10.42\n", "")
    assert written(project) == before + "    maple/x: 198.18.10.42\n"


def test_a_member_that_is_gone_is_kept_as_released_in_place_and_comes_back_to_its_alias(run, project, stack):
    before = stack((WEB, BEHIND), (BOOK, "    maple/web: 198.18.10.41 # since 2024\n"))
    assert run("allocate", "routed") == (0, "released  maple/web  198.18.10.41\n", "")
    kept = written(project)
    assert kept == before.replace(
        "maple/web: 198.18.10.41 # since", "maple/web: {address: 198.18.10.41, released: true} # since"
    )
    assert run("check", "routed")[0] == 0
    (project / "Pulumi.routed.yaml").write_text(kept.replace(BEHIND, WEB))
    assert run("allocate", "routed") == (0, "returned  maple/web  198.18.10.41\n", "")
    assert yaml.safe_load(written(project)) == yaml.safe_load(TEXT)
    assert "maple/web: 198.18.10.41 # since 2024\n" in written(project)


def test_a_released_alias_is_handed_out_again_when_asked_for(run, project, stack):
    stack(
        (WEB, f"        x: 10.0.0.9\n{BEHIND}"),
        (BOOK, "    maple/web: {address: 198.18.10.41, released: true}\n"),
    )
    status, out, _ = run("allocate", "routed", "--reuse")
    assert (status, out) == (0, "added     maple/x  198.18.10.41\nreused    maple/web\n")
    assert written(project).endswith("    maple/search: 198.18.10.40\n    maple/x: 198.18.10.41\n")


def test_a_renamed_customer_keeps_its_aliases_in_their_lines(run, project, stack):
    stack(("    maple:\n      cidr: 10.0.0.0/24\n", "    rowan:\n      cidr: 10.0.0.0/24\n      formerly: maple\n"))
    status, out, _ = run("allocate", "routed")
    assert status == 0
    assert out.count("renamed   rowan/") == 10
    assert written(project).split(BEHIND)[1] == TEXT.split(BEHIND)[1].replace("maple", "rowan")


def test_a_book_that_is_not_there_yet_is_written_whole(run, project, stack):
    text = TEXT.split("  nat-pod:addresses:")[0]
    (project / "Pulumi.routed.yaml").write_text(text, encoding="utf-8")
    assert run("allocate", "routed")[0] == 0
    assert written(project) == TEXT


def test_an_alias_may_be_written_as_a_mapping_and_stays_one(run, project, stack):
    before = stack(
        (BOOK, "    maple/web: {address: 198.18.10.41}\n"),
        (WEB, f"        web: 10.0.0.100\n        x: 10.0.0.9\n{BEHIND}"),
    )
    assert run("allocate", "routed")[0] == 0
    assert written(project) == before + "    maple/x: 198.18.10.42\n"
