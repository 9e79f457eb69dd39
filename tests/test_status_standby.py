"""`status` of a POD with standbys: who is active, whether the other one could take over, and what keeps it from that.

The POD is the article's members with `delivery: routes` (routed_pods.py), 198.18.0.0/22.
"""

import json
from pathlib import Path

import pytest
from conftest import project_with
from routed_pods import small
from test_status import NOW, OTHER

from nat_pod.commands.cli import main
from nat_pod.config.routed import RoutedConfig
from nat_pod.plan.bootstrap import agent_id
from nat_pod.plan.fingerprint import fingerprint
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.status.compare import NOT_LOOKED_AT, Status, compare
from nat_pod.status.report import Use, read_report

BALANCER = {"natVm1": "198.18.3.196", "natVm2": "198.18.3.204"}
NEVER = {"count": 0, "last": None}
STACK_FILE = json.dumps({"config": {f"nat-pod:{key}": value for key, value in small().items()}})  # YAML, too
FLOW = {"flows": 1, "packets": 4, "bytes": 400}
VMS = ["natVm1a", "natVm1b", "natVm2a", "natVm2b"]


@pytest.fixture
def plan() -> PodPlan:
    return plan_pod(RoutedConfig.from_mapping(small(), "dev"), "dev")


def reported(plan: PodPlan, vm: str, **changes: object) -> dict:
    """What `nat-pod-agent status` prints where all is well: the VMs with an `a` are active."""
    planned = plan.vm(vm)
    at = planned.vnics[0].primary
    active = vm.endswith("a")
    return {
        "vm": vm,
        "agent": agent_id(),
        "now": "2025-06-15T15:06:40Z",
        "time": "2025-06-15T15:06:33Z",
        "wanted": planned.generation,
        "applied": planned.generation,
        "since": {},
        "error": None,
        "notes": [],
        "forwarding": True,
        "vnics": [{"address": f"{at}/29", "interface": "ens3", "mac": "02:00:17:00:00:01", "up": True, "mtu": 9000}],
        "conntrack": {"count": 9, "max": 1048576},
        "counted": {"members": {"management/mgmt": {"DNAT": 3}} if vm.startswith("natVm2") else {}, "chains": {}},
        "open": {"from": {}, "to": {"10.0.0.100": FLOW}},
        "stale": 0,
        "fullest": None,
        "rules": fingerprint(planned.rules),
        "foreign": [],
        "unread": [],
        "settings": [],
        "repairs": {"count": 0},
        "fragments": 0,
        "passed": {"count": 40, "last": "2025-06-15T15:06:33Z"} if active else NEVER,
        "health": {"unfit": None, "by": [BALANCER[planned.side]]},
    } | changes


def status(plan: PodPlan, **changes: dict | str) -> Status:
    """With one or more VMs' reports changed; in place of the changes may stand why there is no report."""
    reports = {
        vm: change
        if isinstance(change := changes.get(vm, {}), str)
        else read_report(json.dumps(reported(plan, vm, **change)))
        for vm in VMS
    }
    return compare(plan, reports, NOW)


def test_where_all_is_well_nothing_is_found_and_the_active_vms_are_named(plan):
    found = status(plan)
    assert found.findings == ()
    assert {pair.role: pair.active for pair in found.pairs} == {"natVm1": ("natVm1a",), "natVm2": ("natVm2a",)}
    # What the article's PODs do not have to say.
    assert set(found.not_looked_at) > set(NOT_LOOKED_AT)


def test_the_one_that_forwards_is_the_active_one_whatever_its_letter(plan):
    forwards = {"passed": {"count": 1, "last": "2025-06-15T15:06:20Z"}}
    found = status(plan, natVm1a={"passed": {"count": 9, "last": "2025-06-15T15:04:00Z"}}, natVm1b=forwards)
    assert (found.pairs[0].active, found.findings) == (("natVm1b",), ())
    found = status(plan, natVm1a="it is off", natVm1b=forwards)
    assert (found.pairs[0].active, [f.vm for f in found.findings]) == (("natVm1b",), ["natVm1a"])


def test_where_nothing_passes_nobody_is_called_active(plan):
    found = status(plan, natVm1a={"passed": NEVER})
    assert (found.pairs[0].active, found.pairs[1].active, found.findings) == ((), ("natVm2a",), ())


def test_a_report_from_before_a_switch_is_not_taken_for_a_second_active_vm(plan):
    """natVm1a's is from its console, 12 minutes old; natVm1b has taken over since."""
    before = "2025-06-15T14:54:40Z"
    late = {
        "now": before,
        "time": before,
        "passed": {"count": 9, "last": before},
    }
    found = status(plan, natVm1a=late, natVm1b={"passed": {"count": 5, "last": "2025-06-15T15:06:33Z"}})
    assert (found.pairs[0].active, found.findings) == (("natVm1b",), ())


def test_what_is_open_is_counted_on_the_active_vm_and_what_was_opened_on_both(plan):
    """The VM that was active before still has entries of flows that the other has taken over."""
    taken_over = {
        "natVm2a": {"passed": {"count": 9, "last": "2025-06-15T15:04:00Z"}},
        "natVm2b": {"passed": {"count": 5, "last": "2025-06-15T15:06:33Z"}},
    }
    mgmt = next(member for member in status(plan, **taken_over).members if member.name == "management/mgmt")
    assert (mgmt.received, mgmt.open) == (6, Use(1, 4, 400))
    # And where nobody can tell, what all of them have.
    idle = {"natVm2a": {"passed": NEVER}}
    mgmt = next(member for member in status(plan, **idle).members if member.name == "management/mgmt")
    assert mgmt.open == Use(2, 8, 800)


BOTH = {"passed": {"count": 3, "last": "2025-06-15T15:06:30Z"}}
UNFIT = {"health": {"unfit": "it does not forward", "by": [BALANCER["natVm1"]]}}
FOUND: dict[str, tuple[dict[str, dict | str], list[tuple[str, str]]]] = {
    "a standby that is not fit": (
        {"natVm1b": UNFIT},
        [("natVm1b", "it tells its balancer that it is not fit: it does not forward")],
    ),
    "neither is fit": (
        {"natVm1a": UNFIT, "natVm1b": UNFIT},
        [
            ("natVm1a", "it tells its balancer that it is not fit: it does not forward"),
            ("natVm1b", "it tells its balancer that it is not fit: it does not forward"),
            (
                "natVm1",
                "no NAT VM of natVm1a, natVm1b is known to be fit: unless one is, their balancer forwards nothing",
            ),
        ],
    ),
    "one is silent, and the other is not fit": (
        {"natVm1a": "it is off", "natVm1b": UNFIT},
        [
            ("natVm1a", "no report: it is off"),
            ("natVm1b", "it tells its balancer that it is not fit: it does not forward"),
            (
                "natVm1",
                "no NAT VM of natVm1a, natVm1b is known to be fit: unless one is, their balancer forwards nothing",
            ),
        ],
    ),
    "one is silent": ({"natVm1a": "it is off"}, [("natVm1a", "no report: it is off")]),
    "no balancer asks": (
        {"natVm2b": {"health": {"unfit": None, "by": []}}},
        [("natVm2b", "its balancer has not asked for two minutes whether it is fit")],
    ),
    "only the other VM asks": (
        {"natVm2b": {"health": {"unfit": None, "by": ["198.18.3.202"]}}},
        [("natVm2b", "its balancer has not asked for two minutes whether it is fit; only natVm2a has")],
    ),
    "the other VM asks, too": ({"natVm2b": {"health": {"unfit": None, "by": ["198.18.3.202", "198.18.3.204"]}}}, []),
    "no answer at all": (
        {"natVm2a": {"health": None}},
        [("natVm2a", "it does not answer a balancer's health checks, so it gets no packets")],
    ),
    "both forward": (
        {"natVm1b": BOTH},
        [
            (
                "natVm1",
                "natVm1a and natVm1b both forward packets; a new TCP flow that is answered by the other one fails",
            )
        ],
    ),
    "the standby forwarded before": ({"natVm1b": {"passed": {"count": 3, "last": "2025-06-15T15:05:00Z"}}}, []),
    "be_liberal off": (
        {"natVm1b": {"settings": ["net.netfilter.nf_conntrack_tcp_be_liberal is 0, not 1"]}},
        [
            (
                "natVm1b",
                "its kernel's settings are changed: net.netfilter.nf_conntrack_tcp_be_liberal is 0, not 1",
            )
        ],
    ),
}


@pytest.mark.parametrize(("changes", "expected"), FOUND.values(), ids=FOUND.keys())
def test_one_thing_at_a_time_is_found_and_nothing_else(plan, changes, expected):
    found = status(plan, **changes).findings
    assert [(finding.vm, finding.what, bool(finding.next)) for finding in found] == [(*one, True) for one in expected]


def test_generations_that_differ_within_a_side_are_found_as_such(plan):
    planned = plan.vm("natVm1a").generation
    found = status(plan, natVm1b={"applied": OTHER, "wanted": OTHER}).findings
    assert [(finding.vm, finding.what) for finding in found] == [
        ("natVm1b", f"its metadata has generation {OTHER}, and the stack file makes {planned}"),
        (
            "natVm1",
            f"natVm1a runs generation {planned} and natVm1b runs generation {OTHER}: "
            "after a switch flows meet other rules",
        ),
    ]


def test_without_standbys_there_are_no_balancers_to_speak_of():
    alone = plan_pod(RoutedConfig.from_mapping({**small(), "standby": False}, "dev"), "dev")
    reports = {vm.key: read_report(json.dumps(reported(alone, vm.key, health=None))) for vm in alone.vms}
    found = compare(alone, reports, NOW)
    assert (found.findings, found.pairs, found.not_looked_at) == ((), (), NOT_LOOKED_AT)


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [("fine", {}, 0), ("broken", {"natVm1a": UNFIT, "natVm1b": BOTH}, 1)],
)
def test_text_and_json_are_the_golden_ones(plan, golden, tmp_path, monkeypatch, capsys, name, changes, code):
    monkeypatch.chdir(project_with(tmp_path, "dev", STACK_FILE))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("nat_pod.commands.status.time.time", lambda: NOW)
    arguments = ["status", "dev"]
    for vm in VMS:
        Path(f"{vm}.json").write_text(json.dumps(reported(plan, vm, **changes.get(vm, {}))))
        arguments += ["--report", f"{vm}={vm}.json"]
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert err == ""
    assert max(len(line) for line in out.splitlines()) <= 100
    golden(f"cli-status-routed-{name}.txt", out)
    assert main([*arguments, "--json"]) == code
    golden(f"cli-status-routed-{name}.json", capsys.readouterr().out)


def test_a_customer_that_fills_the_table_of_its_gateway_is_found_on_each_vm_that_has_its_flows(plan):
    """A routed POD has no bound; `status` tells who is about to take everybody's room."""
    full = {"open": {"from": {"10.0.0.130": FLOW | {"flows": 300}}, "to": {}}, "conntrack": {"count": 300, "max": 1000}}
    found = status(plan, natVm1a=full, natVm2a={"conntrack": {"count": 300, "max": 1000}}).findings
    assert [(one.vm, one.what.partition(",")[0]) for one in found] == [
        ("natVm1a", "customer1 has 300 of 1000 flows open")
    ]
