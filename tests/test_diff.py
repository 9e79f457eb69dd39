"""`diff`: small edits of a stack file, each with exactly the flows it gains, loses, renumbers and reroutes.

Address plan: the article's (conftest.py).  Flows are written "sender > receiver".
"""

import copy
import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY, git, stack_mapping

from nat_pod.commands import diff as report
from nat_pod.commands.cli import main
from nat_pod.config import any_config
from nat_pod.config.model import PodConfig
from nat_pod.config.settings import settings
from nat_pod.config.stack_file import read_stack
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.rules.compiler import compile_rules
from nat_pod.trace.diff import FlowChange, compare, delivered, with_user_data
from nat_pod.trace.effects import Effect, Outcome, account

MGMT = "management/mgmt"
BOTH = "{0} > management/mgmt, management/mgmt > {0}"
BOOK = {
    "customer3/db": {"natVm1": "198.18.0.4", "natVm2": "198.18.0.132"},
    "customer1/vm9": {"natVm1": "198.18.0.5", "natVm2": "198.18.0.133"},
    "management/dns": {"natVm1": "198.18.0.6", "natVm2": "198.18.0.134"},
}


def plan(mapping: dict) -> PodPlan:
    return plan_pod(PodConfig.from_mapping(mapping, "dev"), "dev")


def judged(old: dict, new: dict) -> Outcome:
    """What `diff` says of two stack files, from plan to effect."""
    before, after = plan(old), plan(new)
    return account(compare(before, after), before, after, keys(old), keys(new))


def keys(mapping: dict) -> dict[tuple[str, ...], object]:
    return settings({f"nat-pod:{key}": value for key, value in mapping.items()})


def flows(text: str) -> set[tuple[str, str]]:
    return {tuple(pair.split(" > ")) for pair in text.split(", ") if pair}


def names(changes: tuple[FlowChange, ...]) -> set[tuple[str, str]]:
    assert [(c.sender, c.receiver) for c in changes] == sorted((c.sender, c.receiver) for c in changes)
    return {(change.sender, change.receiver) for change in changes}


# --- the edits -------------------------------------------------------------------------------------------------------


def same(m: dict) -> None:
    pass


def other_order(m: dict) -> None:
    m["customers"] = dict(reversed(m["customers"].items()))
    m["addresses"] = dict(reversed(m["addresses"].items()))


def add_host(m: dict) -> None:
    m["customers"]["customer1"]["hosts"]["vm9"] = "10.0.0.9"
    m["addresses"]["customer1/vm9"] = BOOK["customer1/vm9"]


def remove_host(m: dict) -> None:
    del m["customers"]["customer2"]["hosts"]["vm2"]
    m["customers"]["customer2"]["hosts"]["vm9"] = "10.0.1.9"
    m["addresses"]["customer2/vm9"] = BOOK["customer1/vm9"]
    m["addresses"]["customer2/vm2"]["released"] = True


def give_slot_away(m: dict) -> None:
    del m["customers"]["customer1"]["hosts"]["vm1"]
    del m["addresses"]["customer1/vm1"]


def add_server(m: dict) -> None:
    m["management"]["servers"]["dns"] = "10.0.3.53"
    m["addresses"]["management/dns"] = BOOK["management/dns"]


def real_address(m: dict) -> None:
    m["customers"]["customer1"]["hosts"]["vm1"] = "10.0.0.77"


def renumber_host(m: dict) -> None:
    m["addresses"]["customer1/vm1"] = BOOK["customer1/vm9"]


def renumber_server(m: dict) -> None:
    m["addresses"][MGMT] = BOOK["management/dns"]


def to_static(m: dict) -> None:
    m["sourceNat"] = "static"


def no_server(m: dict) -> None:
    add_server(m)
    m["customers"]["customer1"]["servers"] = ["dns"]


def new_customer(m: dict) -> None:
    m["customers"]["customer3"] = {"cidr": "10.0.2.0/24", "hosts": {"db": "10.0.2.5"}}
    m["addresses"]["customer3/db"] = BOOK["customer3/db"]


def remove_customer(m: dict) -> None:
    del m["customers"]["customer2"]
    del m["addresses"]["customer2/vm2"]


def rename_customer(m: dict) -> None:
    m["customers"]["acme"] = {**m["customers"].pop("customer2"), "formerly": "customer2"}
    m["addresses"]["acme/vm2"] = m["addresses"].pop("customer2/vm2")


ALL = ", ".join(BOTH.format(host) for host in ("customer1/vm1", "customer1/vm2", "customer2/vm2"))
HOSTS_SEEN = "customer1/vm2 > management/mgmt, customer2/vm2 > management/mgmt"
# Edit: gained, lost, renumbered, rerouted.
EDITS: dict[Callable[[dict], None], tuple[str, str, str, str]] = {
    same: ("", "", "", ""),
    other_order: ("", "", "", ""),
    add_host: (BOTH.format("customer1/vm9"), "", "", ""),
    remove_host: (BOTH.format("customer2/vm9"), BOTH.format("customer2/vm2"), "", ""),
    give_slot_away: ("", BOTH.format("customer1/vm1"), "", ""),
    add_server: (
        ", ".join(
            f"{host} > management/dns, management/dns > {host}"
            for host in ("customer1/vm1", "customer1/vm2", "customer2/vm2")
        ),
        "",
        "",
        "",
    ),
    real_address: ("", "", "", BOTH.format("customer1/vm1")),
    # Masquerade: what the server sees of a host does not depend on the host's slot.
    renumber_host: ("", "", "management/mgmt > customer1/vm1", ""),
    # Hosts use another address.  What they see of the server is NAT VM1's own address, as before.
    renumber_server: ("", "", "customer1/vm1 > management/mgmt, " + HOSTS_SEEN, ""),
    # vm1 has the primary addresses' slot, so its own address is what masquerade showed.
    to_static: ("", "", HOSTS_SEEN, ""),
    no_server: (
        "customer1/vm1 > management/dns, customer1/vm2 > management/dns, customer2/vm2 > management/dns, "
        "management/dns > customer1/vm1, management/dns > customer1/vm2, management/dns > customer2/vm2",
        "customer1/vm1 > management/mgmt, customer1/vm2 > management/mgmt",
        "",
        "",
    ),
    new_customer: (BOTH.format("customer3/db"), "", "", ""),
    remove_customer: ("", BOTH.format("customer2/vm2"), "", ""),
    rename_customer: ("", "", "", ""),
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_changes_exactly_its_flows(dev, edit):
    old = plan(copy.deepcopy(dev))
    edit(dev)
    difference = compare(old, plan(dev))
    gained, lost, renumbered, rerouted = (flows(text) for text in EDITS[edit])
    assert names(difference.gained) == gained
    assert names(difference.lost) == lost
    assert names(difference.renumbered) == renumbered
    assert names(difference.rerouted) == rerouted
    assert difference.ended == lost | renumbered | rerouted
    assert difference.not_delivered == difference.not_declared == ()


def test_the_way_back_swaps_gained_and_lost(dev):
    old = plan(copy.deepcopy(dev))
    new_customer(dev)
    new = plan(dev)
    there, back = compare(old, new), compare(new, old)
    assert names(there.gained) == names(back.lost)
    assert names(there.lost) == names(back.gained) == set()


def test_a_pod_that_was_not_there_gains_everything_and_ends_nothing(dev):
    difference = compare(None, plan(dev))
    outcome = account(difference, None, plan(dev), {}, keys(dev))
    assert names(difference.gained) == flows(ALL)
    assert (outcome.ending, outcome.harmless, outcome.changes) == (set(), True, ())
    assert report.headline(outcome) == "a new POD: no flow ends"
    assert [slot.member for slot in difference.taken] == ["customer1/vm1", "customer1/vm2", "customer2/vm2", MGMT]


def test_a_renumbered_flow_says_what_its_sender_used_and_has_to_use(dev):
    old = plan(copy.deepcopy(dev))
    renumber_host(dev)
    (change,) = compare(old, plan(dev)).renumbered
    assert (change.before.address, change.after.address) == ("198.18.0.130", "198.18.0.133")
    assert change.before.seen == change.after.seen == "198.18.0.2"


def test_a_flow_with_the_same_ends_and_another_way_is_rerouted_not_renumbered(dev):
    """Nobody has to be told; but NAT VM1 translates to another machine, and open connections end."""
    old = plan(copy.deepcopy(dev))
    real_address(dev)
    out, back = compare(old, plan(dev)).rerouted
    assert out.before.hops[0] == ("customer1/vm1", "nat_vm1", "10.0.0.100", "198.18.0.2")
    assert out.after.hops[0] == ("customer1/vm1", "nat_vm1", "10.0.0.77", "198.18.0.2")
    assert (back.before.hops[-1].dst, back.after.hops[-1].dst) == ("10.0.0.100", "10.0.0.77")


# --- a mistake in the rules ------------------------------------------------------------------------------------------


def test_a_rule_set_that_lets_an_undeclared_flow_pass_shows_as_a_mistake(dev):
    """Pairs that nobody declared are traced as well: a fault of the compiler is not hidden by the stack file."""
    dev["customers"]["customer1"]["servers"] = []
    good = plan(dev)
    open_config = copy.deepcopy(dev)
    del open_config["customers"]["customer1"]["servers"]
    rules = compile_rules(PodConfig.from_mapping(open_config, "dev"))
    wrong = replace(good, vms=tuple(replace(vm, rules=rules[vm.key]) for vm in good.vms))
    difference = compare(good, wrong)
    assert set(difference.not_declared) == {("customer1/vm1", MGMT), ("customer1/vm2", MGMT)}
    outcome = account(difference, good, wrong, keys(dev), keys(dev))
    assert not outcome.harmless
    text = report.outcome_text(outcome, "dev", report.Base("main"))
    assert text.splitlines()[1] == "  risk: nat-pod compiled wrong rules, which is a bug: do not deploy this"
    assert "BUG IN NAT-POD'S RULES: delivered, and not declared: customer1/vm1 to management/mgmt" in " ".join(
        text.split()
    )
    back = compare(wrong, replace(good, access=plan(open_config).access))
    assert set(back.not_delivered) == set(difference.not_declared)
    assert not account(back, wrong, good, keys(dev), keys(dev)).harmless


# --- slots and capacity ----------------------------------------------------------------------------------------------


def slot_lists(old: PodPlan, new: PodPlan) -> dict[str, list[str]]:
    difference = compare(old, new)
    return {
        name: [slot.member for slot in getattr(difference, name)] for name in ("taken", "returned", "released", "freed")
    }


def test_a_removed_hosts_slot_is_released_and_comes_back_with_it(dev):
    before = plan(copy.deepcopy(dev))
    remove_host(dev)
    after = plan(dev)
    assert slot_lists(before, after) == {
        "taken": ["customer2/vm9"], "returned": [], "released": ["customer2/vm2"], "freed": [],
    }  # fmt: skip
    assert slot_lists(after, before) == {
        "taken": [], "returned": ["customer2/vm2"], "released": [], "freed": ["customer2/vm9"],
    }  # fmt: skip


def test_a_slot_that_is_shared_is_not_free_when_one_of_two_goes(dev):
    before = plan(copy.deepcopy(dev))
    give_slot_away(dev)
    after = plan(dev)
    assert slot_lists(before, after)["freed"] == []
    assert [capacity.used for capacity in compare(before, after).capacity] == [3, 3]


def test_a_renamed_customer_takes_and_frees_no_slot(dev):
    before = plan(copy.deepcopy(dev))
    rename_customer(dev)
    assert slot_lists(before, plan(dev)) == {"taken": [], "returned": [], "released": [], "freed": []}


# --- the machines ----------------------------------------------------------------------------------------------------


def vm_edit(**values: object) -> Callable[[dict], None]:
    return lambda m: m["natVm"].update(values)


def test_a_new_bootstrap_replaces_both_vms_and_ends_every_flow_but_loses_none(dev):
    new = plan(dev)
    old = with_user_data(new, "H4sIother")
    outcome = account(compare(old, new), old, new, keys(dev), keys(dev))
    assert (len(outcome.ending), outcome.difference.ended, outcome.replaces_vms) == (6, set(), True)
    assert [(change.path, change.effect) for change in outcome.changes] == [
        ("the bootstrap (user_data)", Effect.REPLACES)
    ]
    assert report.headline(outcome) == "risk: 6 of 6 flows end; all NAT VMs are replaced"


def test_a_rename_of_long_ago_is_none(dev):
    rename_customer(dev)
    old = plan(copy.deepcopy(dev))
    add_host(dev)
    assert names(compare(old, plan(dev)).gained) == flows(BOTH.format("customer1/vm9"))
    assert compare(old, plan(dev)).lost == ()


def test_a_name_that_was_somebodys_already_is_no_rename(dev):
    old = plan(copy.deepcopy(dev))
    remove_customer(dev)
    dev["customers"]["customer1"]["formerly"] = "customer2"
    assert names(compare(old, plan(dev)).lost) == flows(BOTH.format("customer2/vm2"))


def test_a_renamed_customer_keeps_its_peering_and_its_flows(dev):
    old = copy.deepcopy(dev)
    rename_customer(dev)
    outcome = judged(old, dev)
    assert [change.path for change in outcome.changes] == ["customers.acme.formerly"]
    assert outcome.harmless


# --- what is printed -------------------------------------------------------------------------------------------------


def much(mapping: dict) -> None:
    """One pull request with everything in it."""
    remove_host(mapping)
    new_customer(mapping)
    mapping["addresses"]["customer1/vm2"] = {"natVm1": "198.18.0.35", "natVm2": "198.18.0.67"}
    real_address(mapping)
    to_static(mapping)
    vm_edit(sshPublicKey="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEother ops")(mapping)


def another_vrouter(mapping: dict) -> None:
    mapping["management"]["vrouter"] = "198.18.0.168"


@pytest.mark.parametrize("edit", [same, much, renumber_host, another_vrouter], ids=lambda edit: edit.__name__)
def test_the_three_forms_are_the_golden_ones(dev, golden, edit):
    old = copy.deepcopy(dev)
    edit(dev)
    outcome = judged(old, dev)
    golden(f"diff-{edit.__name__}.txt", report.outcome_text(outcome, "dev", report.Base("main")) + "\n")
    golden(f"diff-{edit.__name__}.md", report.outcome_markdown(outcome, "dev", report.Base("main")) + "\n")
    golden(f"diff-{edit.__name__}.json", json.dumps(report.outcome_dict(outcome), indent=2) + "\n")


def host_and_key(mapping: dict) -> None:
    del mapping["customers"]["hazel"]["hosts"]["db"]
    mapping["customers"]["fern"]["hosts"]["late"] = "10.0.0.77"
    mapping["addresses"]["hazel/db"] = {"address": mapping["addresses"]["hazel/db"], "released": True}
    mapping["addresses"]["fern/late"] = "198.18.10.31"
    mapping["natVm"]["sshPublicKey"] = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEother ops"


def servers_of_a_customer(mapping: dict) -> None:
    mapping["customers"]["linden"]["servers"].remove("dns")


@pytest.mark.slow
@pytest.mark.parametrize("edit", [host_and_key, servers_of_a_customer], ids=lambda edit: edit.__name__)
def test_the_difference_of_a_routed_pod_is_the_golden_one(golden, edit):
    old, new = stack_mapping("routed"), stack_mapping("routed")
    edit(new)
    plans = [plan_pod(any_config.read(mapping, "routed"), "routed") for mapping in (old, new)]
    outcome = account(compare(*plans), *plans, keys(old), keys(new))
    golden(f"diff-routed-{edit.__name__}.txt", report.outcome_text(outcome, "routed", report.Base("main")) + "\n")


@pytest.mark.slow
def test_the_markdown_of_a_large_difference_fits_into_a_comment(ten):
    """GitHub takes 65,536 characters; the text form has every member."""
    difference = compare(None, plan(ten))
    assert len(difference.gained) == 558
    outcome = account(difference, None, plan(ten), {}, keys(ten))
    assert len(report.outcome_markdown(outcome, "ten", report.Base("main"))) < 12_000
    assert "Gained: 558 flows of 65 members" in report.outcome_markdown(outcome, "ten", report.Base("main"))
    assert "and 5 more" in report.outcome_markdown(outcome, "ten", report.Base("main"))
    assert report.outcome_text(outcome, "ten", report.Base("main")).count("\n") < 2 * 65 + 15


def test_the_flows_of_ten_customers_are_found_in_seconds(ten):
    start = time.process_time()
    assert len(delivered(plan(ten))) == 558
    assert time.process_time() - start < 3


# --- git -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository whose first commit, tagged `first`, has the project and the article's example."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    for name in ("Pulumi.yaml", "Pulumi.dev.yaml"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    commit(tmp_path, "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commit(directory: Path, tag: str) -> None:
    git(directory, "add", ".")
    git(directory, "commit", "--quiet", "-m", tag)
    git(directory, "tag", tag)


def change(directory: Path, old: str, new: str, name: str = "Pulumi.dev.yaml") -> None:
    text = (directory / name).read_text()
    assert text.count(old) == 1
    (directory / name).write_text(text.replace(old, new))


def diff(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["diff", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.slow
@pytest.mark.runs_commands
def test_the_working_tree_is_compared_with_the_revision(checkout, capsys):
    assert diff(capsys, "dev", "--base", "first")[0] == 0
    change(checkout, "vm1: 10.0.0.100, ", "vm1: 10.0.0.101, ")
    status, out, _ = diff(capsys, "dev", "--base", "HEAD")
    assert (status, "0 lost, 0 renumbered, 0 gained, 2 rerouted (of 6)" in out) == (1, True)
    commit(checkout, "second")
    assert "0 rerouted" in diff(capsys, "dev", "--base", "HEAD")[1]
    assert "2 rerouted" in diff(capsys, "dev", "--base", "first")[1]


@pytest.mark.runs_commands
def test_without_a_base_it_is_where_the_branch_left_the_default_one(checkout, capsys):
    short = subprocess.run(["git", "rev-parse", "--short", "main"], cwd=checkout, capture_output=True, text=True).stdout
    git(checkout, "switch", "--quiet", "-c", "change")
    change(checkout, "vm1: 10.0.0.100, ", "vm1: 10.0.0.101, ")
    commit(checkout, "mine")
    git(checkout, "switch", "--quiet", "main")
    change(checkout, "vm2: 10.0.1.100", "vm2: 10.0.1.200")
    commit(checkout, "theirs")
    git(checkout, "switch", "--quiet", "change")
    status, out, _ = diff(capsys, "dev")
    assert (status, out.splitlines()[0]) == (1, f"POD dev since {short.strip()} (the last commit shared with main)")
    assert "0 gained, 2 rerouted" in out  # what main did meanwhile is not this branch's doing
    markdown = diff(capsys, "dev", "--markdown")[1]
    assert markdown.splitlines()[0] == f"### POD `dev` since `{short.strip()}` (the last commit shared with main)"


@pytest.mark.runs_commands
def test_the_remotes_default_branch_comes_first(checkout, capsys):
    git(checkout, "update-ref", "refs/remotes/origin/trunk", "HEAD")
    git(checkout, "symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk")
    assert "(the last commit shared with origin/trunk)" in diff(capsys, "dev")[1]


@pytest.mark.runs_commands
def test_no_default_branch_is_one_sentence(checkout, capsys):
    git(checkout, "branch", "--quiet", "-m", "main", "work")
    assert diff(capsys, "dev") == (
        1,
        "",
        "--base: this checkout has no commit in common with origin/HEAD, main or master; name a revision, e.g. "
        "--base HEAD~1; in a shallow clone, run: git fetch --unshallow\n",
    )


@pytest.mark.runs_commands
def test_a_file_that_differs_in_form_alone_says_so(checkout, capsys):
    change(checkout, "shape: VM.Standard2.24", "shape: {shape: VM.Standard2.24} # as before")
    status, out, _ = diff(capsys, "dev")
    assert status == 0
    assert out.splitlines()[1:3] == [
        "  no flow ends, and no VM is replaced; the stack file differs only in comments,",
        "    order or spelling",
    ]
    change(checkout, "config:\n", "environment: [other]\nconfig:\n")
    status, out, _ = diff(capsys, "dev")
    assert status == 1
    assert out.splitlines()[1:4] == [
        "  risk: the effect of 1 setting is not known",
        "  beside config.environment",
        "    effect not known: a key of the Pulumi CLI's, which nat-pod does not read",
    ]


@pytest.mark.slow
@pytest.mark.runs_commands
def test_a_flow_that_ends_is_exit_status_1_in_every_form(checkout, capsys):
    change(checkout, "natVm1: 198.18.0.3, natVm2: 198.18.0.131", "natVm1: 198.18.0.9, natVm2: 198.18.0.137")
    for form in ([], ["--markdown"], ["--json"]):
        assert diff(capsys, "dev", "--base", "main", *form)[0] == 1
    changed = json.loads(diff(capsys, "dev", "--base", "main", "--json")[1])
    assert [(flow["from"], flow["to"]) for flow in changed["renumbered"]] == [(MGMT, "customer2/vm2")]


@pytest.mark.runs_commands
def test_the_projects_defaults_are_those_of_the_revision(checkout, capsys):
    change(checkout, "  nat-pod:sourceNat: masquerade\n", "")
    commit(checkout, "default")
    assert "sourceNat" not in diff(capsys, "dev", "--base", "first")[1]
    change(checkout, "default: masquerade", "default: static", "Pulumi.yaml")
    assert "sourceNat: masquerade -> static" in diff(capsys, "dev", "--base", "default")[1]


@pytest.mark.runs_commands
def test_a_stack_file_that_was_not_there_is_all_gained(checkout, capsys):
    (checkout / "Pulumi.new.yaml").write_bytes((checkout / "Pulumi.dev.yaml").read_bytes())
    status, out, err = diff(capsys, "new", "--base", "first")
    assert (status, err) == (0, "")
    assert "0 lost, 0 renumbered, 6 gained, 0 rerouted (of 0)" in out


@pytest.mark.runs_commands
def test_a_directory_below_the_top_of_the_checkout_works_too(checkout, capsys, monkeypatch):
    (checkout / "pods").mkdir()
    (checkout / "Pulumi.dev.yaml").rename(checkout / "pods" / "Pulumi.dev.yaml")
    commit(checkout, "moved")
    monkeypatch.chdir(checkout / "pods")
    assert "(of 6)" in diff(capsys, "dev", "--base", "moved")[1]
    assert "6 gained" in diff(capsys, "dev", "--base", "first")[1]


@pytest.mark.runs_commands
def test_a_hooks_environment_does_not_lead_to_another_repository(checkout, capsys, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(REPOSITORY / ".git"))
    assert "(of 6)" in diff(capsys, "dev", "--base", "first")[1]


@pytest.mark.runs_commands
@pytest.mark.parametrize("revision", ["nowhere", "--help", "-1", "first:Pulumi.yaml", "", "a b"])
def test_a_revision_that_is_none_is_one_sentence(checkout, capsys, revision):
    status = main(["diff", "dev", f"--base={revision}"])
    assert status == 1
    assert capsys.readouterr().err == (
        f"--base: {revision}: is not a revision of this checkout, e.g. main, HEAD~1 or v1.0; "
        "in a shallow clone, run: git fetch --unshallow\n"
    )


@pytest.mark.runs_commands
def test_no_checkout_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "/")
    (tmp_path / "Pulumi.dev.yaml").write_bytes((REPOSITORY / "Pulumi.dev.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    status, out, err = diff(capsys, "dev", "--base", "main")
    assert (status, out) == (1, "")
    assert err == f"{tmp_path} is not a git checkout, so there is no main to compare with\n"


@pytest.mark.runs_commands
def test_no_git_is_one_sentence(checkout, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(checkout))
    assert diff(capsys, "dev", "--base", "main") == (
        1, "", "git is not installed; `diff` reads the earlier stack file with it\n",
    )  # fmt: skip


@pytest.mark.runs_commands
def test_a_stack_file_that_did_not_hold_then_is_named_with_its_revision(checkout, capsys):
    good = (checkout / "Pulumi.dev.yaml").read_bytes()
    change(checkout, "vm2: 10.0.1.100", "vm2: 10.0.9.100")
    commit(checkout, "bad")
    (checkout / "Pulumi.dev.yaml").write_text("config: [")
    commit(checkout, "broken")
    (checkout / "Pulumi.dev.yaml").write_bytes(good)
    status, out, err = diff(capsys, "dev", "--base", "bad")
    assert (status, out, err.splitlines()[0]) == (1, "", "Pulumi.dev.yaml at bad: 1 problem")
    assert "10.0.9.100" in err
    status, out, err = diff(capsys, "dev", "--base", "broken")
    assert (status, out, err.splitlines()[0]) == (1, "", "Pulumi.dev.yaml at broken: 1 problem")


@pytest.mark.runs_commands
def test_this_checkout_knows_the_bootstrap_of_the_revision(monkeypatch, capsys):
    """nat-pod's own directory: what was deployed from that revision is what the VMs run."""
    asked = []

    def file_at(directory: Path, name: str, revision: str) -> str:
        asked.append(name)
        return "H4sIother"

    stack = read_stack(REPOSITORY, "dev")
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("nat_pod.commands.diff.read_stack_at", lambda directory, name, revision: stack)
    monkeypatch.setattr("nat_pod.commands.diff.file_at", file_at)
    status, out, _ = diff(capsys, "dev", "--base", "main")
    assert (status, asked) == (1, ["cloud-init/user-data.b64"])
    assert "the bootstrap (user_data)" in out


@pytest.mark.runs_commands
def test_what_somebody_wrote_into_a_stack_file_is_nothing_but_text_in_a_comment(checkout, capsys):
    """GitHub makes HTML, pictures and @names of a comment, which is posted with the project's own token."""
    hostile = "'<img src=x> `@all` | \\e[2J'"
    change(checkout, "  nat-pod:sourceNat:", f'  oci:note: "{hostile}"\n  nat-pod:sourceNat:')
    out = diff(capsys, "dev", "--base", "first", "--markdown")[1]
    assert "`oci:note`: `" in out
    assert "@all" in out
    outside = re.sub("`[^`]*`", "", out)
    assert ("<img" in outside, "@all" in outside, "\x1b" in out) == (False, False, False)
