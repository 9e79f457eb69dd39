"""Renames: asked about before a slot is released, done by one key, and no flow ends.

Address plan: the article's (conftest.py).  customer2 has one host, vm2, at 10.0.1.100.
"""

import json
from pathlib import Path

import pytest
from conftest import edit, git

CUSTOMER = ("    customer2:\n", "    acme:\n")
HOST = ("hosts: {vm2: 10.0.1.100}", "hosts: {web: 10.0.1.100}")
SERVER = ("      mgmt: 10.0.0.100\n", "      jump: 10.0.0.100\n")
TWO_HOSTS = ("{vm1: 10.0.0.100, vm2: 10.0.0.130}", "{web: 10.0.0.100, db: 10.0.0.130}")

IS_CUSTOMER = """\
Pulumi.dev.yaml: 1 problem
  Pulumi.dev.yaml:20: nat-pod:customers.acme: looks like customer2 under another name. If so, write \
`formerly: customer2` here, and its LPG, its peering and its slot stay. If it is another customer, run the command \
with --not-renamed
    run: python -m nat_pod allocate dev
"""
IS_HOST = """\
Pulumi.dev.yaml: 1 problem
  Pulumi.dev.yaml:22: nat-pod:customers.customer2.hosts: web looks like vm2 under another name. If so, write \
`hostsFormerly: {web: vm2}` beside `hosts`: the slot stays. If not, run the command with --not-renamed
    run: python -m nat_pod allocate dev
"""
IS_SERVER = """\
Pulumi.dev.yaml: 1 problem
  Pulumi.dev.yaml:14: nat-pod:management.servers: jump looks like mgmt under another name. If so, write \
`serversFormerly: {jump: mgmt}` beside `servers`: the slot stays. If not, run the command with --not-renamed
    run: python -m nat_pod allocate dev
"""
ARE_HOSTS = """\
Pulumi.dev.yaml: 1 problem
  Pulumi.dev.yaml:19: nat-pod:customers.customer1.hosts: web, db look like vm1, vm2 under other names. If so, write \
`hostsFormerly: {web: vm1, db: vm2}` beside `hosts`: the slots stay. If not, run the command with --not-renamed
    run: python -m nat_pod allocate dev
"""


@pytest.fixture
def on_main(project: Path) -> Path:
    """The article's POD as main has it; the tests edit it on a branch of their own."""
    edit(project)
    git(project, "init", "--quiet", "--initial-branch=main")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "x")
    git(project, "switch", "--quiet", "-c", "change")
    return project


@pytest.fixture
def no_git(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "/")
    return project


pytestmark = pytest.mark.runs_commands


@pytest.mark.parametrize(
    ("change", "question"), [(CUSTOMER, IS_CUSTOMER), (HOST, IS_HOST), (SERVER, IS_SERVER), (TWO_HOSTS, ARE_HOSTS)]
)
def test_check_asks_once_and_allocate_releases_nothing_until_it_knows(run, on_main, change, question):
    text = edit(on_main, change)
    assert run("check", "dev")[:2] == (1, question)
    assert run("allocate", "dev") == (1, "", question)
    assert (on_main / "Pulumi.dev.yaml").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(("change", "question"), [(CUSTOMER, IS_CUSTOMER), (HOST, IS_HOST), (SERVER, IS_SERVER)])
def test_without_a_base_branch_the_same_hosts_or_a_lone_one_are_asked_about(run, no_git, change, question):
    edit(no_git, change)
    assert run("check", "dev")[:2] == (1, question)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "key", "old", "new"),
    [
        (CUSTOMER, ("    acme:\n", "    acme:\n      formerly: customer2\n"), "customer2/vm2", "acme/vm2"),
        (HOST, (HOST[1], f"{HOST[1]}\n      hostsFormerly: {{web: vm2}}"), "customer2/vm2", "customer2/web"),
        (
            SERVER,
            (SERVER[1], f"{SERVER[1]}    serversFormerly: {{jump: mgmt}}\n"),
            "management/mgmt",
            "management/jump",
        ),
    ],
    ids=["customer", "host", "server"],
)
def test_the_key_moves_the_slot_with_the_name_and_no_flow_ends(run, on_main, change, key, old, new):
    text = edit(on_main, change)
    assert text.count(key[0]) == 1
    text = text.replace(*key)
    (on_main / "Pulumi.dev.yaml").write_text(text, encoding="utf-8")
    status, out, _ = run("check", "dev")
    assert status == 1
    assert f'nat-pod:addresses["{old}"]: "{new}": is the new name of this member; its slot moves with the name' in out
    status, out, _ = run("allocate", "dev")
    assert (status, out.split()[:2], out.count("\n")) == (0, ["renamed", new], 1)
    after = (on_main / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    assert after == text.replace(f"    {old}: ", f"    {new}: ")
    assert run("check", "dev")[0] == 0
    status, out, _ = run("diff", "dev", "--json")
    said = json.loads(out)
    assert (status, said["worst"], said["flowsThatEnd"], said["lost"], said["gained"]) == (0, "none", 0, [], [])
    assert said["slots"] == {"taken": {}, "returned": {}, "released": {}, "freed": {}}
    assert new.removesuffix("/vm2") in said["renamed"].values()
    assert "renamed: " in run("diff", "dev")[1]
    assert run("trace", "dev", "--all")[0] == 0


def test_a_customer_and_its_host_may_be_renamed_at_once(run, on_main):
    text = edit(on_main, CUSTOMER, HOST)
    (on_main / "Pulumi.dev.yaml").write_text(
        text.replace("    acme:\n", "    acme:\n      formerly: customer2\n      hostsFormerly: {web: vm2}\n"), "utf-8"
    )
    assert run("allocate", "dev")[1].split()[:2] == ["renamed", "acme/web"]
    assert json.loads(run("diff", "dev", "--json")[1])["renamed"] == {
        "customer2": "acme",
        "acme/vm2": "acme/web",
    }


@pytest.mark.parametrize(("change", "old", "new"), [(CUSTOMER, "customer2/vm2", "acme/vm2")])
def test_not_renamed_releases_the_old_slot_and_takes_a_new_one(run, on_main, change, old, new):
    edit(on_main, change)
    status, out, _ = run("allocate", "dev", "--not-renamed")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["added", new], ["released", old]]
    status, out, _ = run("diff", "dev")
    assert status == 1
    assert "2 lost, 0 renumbered, 2 gained" in out


@pytest.mark.parametrize(
    "changes",
    [
        # Another range, another address: whoever comes is not who goes.
        (CUSTOMER, ("cidr: 10.0.1.0/24", "cidr: 10.0.2.0/24"), ("{vm2: 10.0.1.100}", "{vm2: 10.0.2.100}")),
        (("hosts: {vm2: 10.0.1.100}", "hosts: {web: 10.0.1.101}"),),
    ],
    ids=["customer", "host"],
)
def test_who_is_somewhere_else_is_somebody_else(run, on_main, changes):
    edit(on_main, *changes)
    assert "under another name" not in run("check", "dev")[1]
    assert run("allocate", "dev")[0] == 0
