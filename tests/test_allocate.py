"""`allocate`: what it writes, what it prints, and what it leaves alone."""

import json

import pytest
from conftest import edit

from nat_pod.config import address_book

NEW_HOST = ("hosts: {vm2: 10.0.1.100}", "hosts: {vm2: 10.0.1.100, web: 10.0.1.11}")
GONE_HOST = ("{vm1: 10.0.0.100, vm2: 10.0.0.130}", "{vm1: 10.0.0.100}")


@pytest.fixture
def changed(run, project):
    """A new host and one that is gone: the text before, and what allocate answered."""
    before = edit(project, NEW_HOST, GONE_HOST)
    assert run("plan", "dev")[0] == 1
    return before, run("allocate", "dev")


def test_allocate_prints_what_became_of_each_slot(changed):
    assert changed[1] == (
        0,
        "added     customer2/web  198.18.0.4 / 198.18.0.132\nreleased  customer1/vm2  198.18.0.34 / 198.18.0.66\n",
        "",
    )


def test_allocate_changes_the_lines_of_these_slots_and_no_other(project, changed):
    assert (project / "Pulumi.dev.yaml").read_text(encoding="utf-8") == (
        changed[0].replace("natVm2: 198.18.0.66}", "natVm2: 198.18.0.66, released: true}")
        + "    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}\n"
    )


def test_after_allocate_there_is_a_plan(run, changed):
    assert run("plan", "dev")[0] == 0


def test_the_second_time_allocate_has_nothing_to_do_and_touches_nothing(run, project, changed):
    after = (project / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    assert run("allocate", "dev") == (0, "Pulumi.dev.yaml: nothing to do: every member has a slot\n", "")
    assert (project / "Pulumi.dev.yaml").read_text(encoding="utf-8") == after


@pytest.mark.parametrize("saves", [1, 2, 3])
def test_an_edit_that_is_saved_while_allocate_runs_is_not_lost(run, project, monkeypatch, saves):
    """Somebody saves the file after it was read and before it is replaced, so often; the third time it gives up."""
    text = edit(project, ("{vm2: 10.0.1.100}", "{vm2: 10.0.1.100, web: 10.0.1.9}"))
    path = project / "Pulumi.dev.yaml"
    settle, saved = address_book.settle, []

    def meanwhile(*arguments, **options):
        if len(saved) < saves:
            saved.append(f"# note {len(saved)}\n")
            path.write_text(text + saved[-1], encoding="utf-8")
        return settle(*arguments, **options)

    monkeypatch.setattr(address_book, "settle", meanwhile)
    status, out, err = run("allocate", "dev")
    after = path.read_text(encoding="utf-8")
    assert saved[-1] in after
    if saves < 3:
        assert (status, err) == (0, "")
        assert "    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}\n" in after
        assert run("check", "dev")[0] == 0
    else:
        sentence = (
            "Pulumi.dev.yaml: somebody else changed it in the meantime; try again (this command changed nothing)\n"
        )
        assert (status, out, err, after) == (1, "", sentence, text + saved[-1])
    assert sorted(entry.name for entry in project.iterdir()) == ["Pulumi.dev.yaml", "Pulumi.yaml"]


def test_allocate_json_lists_the_changes(run, project):
    edit(project, NEW_HOST, GONE_HOST)
    status, out, _ = run("allocate", "dev", "--json")
    assert (status, json.loads(out)) == (
        0,
        {"added": ["customer2/web"], "returned": [], "released": ["customer1/vm2"], "reused": [], "renamed": []},
    )


def test_allocate_hands_out_a_released_slot_only_with_reuse(run, project):
    book = "    customer1/old: {natVm1: 198.18.0.4, natVm2: 198.18.0.132, released: true}\n"
    text = edit(project, NEW_HOST) + book
    (project / "Pulumi.dev.yaml").write_text(text, encoding="utf-8")
    assert run("allocate", "dev", "--reuse")[1] == (
        "added     customer2/web  198.18.0.4 / 198.18.0.132\nreused    customer1/old\n"
    )
    (project / "Pulumi.dev.yaml").write_text(text, encoding="utf-8")
    assert run("allocate", "dev")[1] == "added     customer2/web  198.18.0.5 / 198.18.0.133\n"


def test_allocate_keeps_windows_line_ends(run, project):
    text = edit(project, NEW_HOST).replace("\n", "\r\n")
    (project / "Pulumi.dev.yaml").write_bytes(text.encode())
    assert run("allocate", "dev")[0] == 0
    line = "    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}\r\n"
    assert (project / "Pulumi.dev.yaml").read_bytes() == (text + line).encode()


def test_what_plan_tells_to_run_is_what_helps(run, project):
    edit(project, NEW_HOST)
    _, _, err = run("plan", "dev")
    command = err.splitlines()[-1].removeprefix("    run: python -m nat_pod ")
    assert run(*command.split())[0] == 0
    assert run("plan", "dev")[0] == 0


MANY_HOSTS = ("hosts: {vm2: 10.0.1.100}", "hosts: {vm2: 10.0.1.100, n10: 10.0.1.10, n9: 10.0.1.9, n1: 10.0.1.8}")
IN_ORDER = ["customer2/n1", "customer2/n9", "customer2/n10"]


@pytest.fixture
def many(run, project):
    """Names whose order by letters is not the one that people expect, allocated."""
    edit(project, MANY_HOSTS)
    status, out, _ = run("allocate", "dev")
    assert status == 0
    return out


def test_allocate_lists_new_members_in_natural_order(many):
    assert [line.split()[1] for line in many.splitlines()] == IN_ORDER


def test_plan_lists_members_in_natural_order(run, many):
    members = [line.split()[0] for line in run("plan", "dev")[1].splitlines() if line.startswith("  customer2/")]
    assert members == [*IN_ORDER, "customer2/vm2"]


def test_the_order_of_a_text_changes_neither_slots_nor_rules(run, many):
    """They are in the order of the plan, and a rule that moves is a change on both VMs."""
    slots = list(json.loads(run("plan", "dev", "--json")[1])["slots"])
    assert slots[-4:] == ["customer2/n1", "customer2/n10", "customer2/n9", "customer2/vm2"]
