"""What `status` finds: known traffic counted exactly, and one thing at a time broken.

Address plan: the article's (conftest.py).  In the lab tests the agents' timers are off, so that a round comes only
where the test says so.
"""

import base64
import bz2
import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_lab import deployed, project

import nat_pod
from nat_pod.commands import status as command
from nat_pod.commands.cli import main
from nat_pod.config.model import PodConfig
from nat_pod.lab.wire import sandbox
from nat_pod.lab.wire.probe import Probe
from nat_pod.plan import guest
from nat_pod.plan.bootstrap import agent_id
from nat_pod.plan.document import read_document, rule_document
from nat_pod.plan.fingerprint import fingerprint
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.status.compare import compare
from nat_pod.status.finding import duration
from nat_pod.status.report import Use, VmReport, VnicState, read_report

NOW = 1_750_000_000.0
CLOCK = "2025-06-15T15:06:40Z"  # the same


@pytest.fixture
def plan(dev) -> PodPlan:
    return plan_pod(PodConfig.from_mapping(dev, "dev"), "dev")


ONE_FLOW = {"flows": 1, "packets": 4, "bytes": 400}
TWO_FLOWS = {"flows": 2, "packets": 20, "bytes": 3000}


def fullest(flows: int, **changes: object) -> dict[str, object]:
    """So many flows of NAT VM1's primary address to a server's HTTPS."""
    return {
        "source": "198.18.0.2",
        "destination": "198.18.0.130",
        "protocol": 6,
        "port": 443,
        "flows": flows,
    } | changes


def reported(plan: PodPlan, vm: str, **changes: object) -> dict:
    """What `nat-pod-agent status` prints on a VM on which all is well."""
    planned = plan.vm(vm)
    counted = {
        "natVm1": {
            "members": {"customer1/vm1": {"goto": 8, "DNAT": 4}, "customer1/vm2": {"goto": 5}},
            "chains": {"NATPOD-FORWARD": {"ACCEPT": 99, "DROP": 7}, "NATPOD-INPUT": {"DROP": 2}},
        },
        "natVm2": {
            "members": {"management/mgmt": {"goto": 6, "DNAT": 13}},
            "chains": {"NATPOD-POST": {"SNAT": 19}},
        },
    }[vm]
    flows = {
        "natVm1": {"from": {"10.0.0.100": TWO_FLOWS}, "to": {"10.0.0.100": ONE_FLOW, "198.18.0.130": TWO_FLOWS}},
        "natVm2": {"from": {"10.0.0.100": ONE_FLOW, "198.18.0.2": TWO_FLOWS}, "to": {"10.0.0.100": TWO_FLOWS}},
    }[vm]
    addresses = {vnic.primary: f"ens{place + 3}" for place, vnic in enumerate(planned.vnics)}
    return {
        "vm": vm,
        "agent": agent_id(),
        "now": CLOCK,
        "time": "2025-06-15T15:06:33Z",
        "reported": NOW - 300,
        "wanted": planned.generation,
        "applied": planned.generation,
        "since": {"wanted": "2025-06-15T14:06:40Z", "applied": "2025-06-15T14:06:41Z"},
        "error": None,
        "notes": [],
        "forwarding": True,
        "vnics": [
            {"address": f"{address}/27", "interface": name, "mac": "02:00:17:00:00:01", "up": True, "mtu": 9000}
            for address, name in addresses.items()
        ],
        "conntrack": {"count": 9, "max": 1048576, "insert_failed": 0, "drop": 0, "early_drop": 0},
        "counted": counted,
        "open": flows,
        "stale": 0,
        "fullest": fullest(2),
        "rules": fingerprint(planned.rules),
        "foreign": [],
        "unread": [],
        "settings": [],
        "repairs": {"count": 0},
        "fragments": 2,
        "passed": {"count": 40, "last": "2025-06-15T15:06:33Z"},
        "health": None,
    } | changes


def on_console(report: dict) -> str:
    """The line that the agent writes, as journald shows it on the console."""
    packed = base64.b64encode(bz2.compress(json.dumps(report).encode())).decode()
    head = json.dumps({"vm": report["vm"], "applied": report["applied"]})
    return f"[   31.337000] nat-pod-agent[812]: nat-pod: {head} report {packed}\r\n"


def parsed(plan: PodPlan, vm: str, **changes: object) -> VmReport:
    return read_report(json.dumps(reported(plan, vm, **changes)))


def findings(plan: PodPlan, vm: str = "natVm2", **changes: object) -> list[tuple[str, str]]:
    """What is found when one VM's report is changed and all else is well."""
    reports = {key: parsed(plan, key, **(changes if key == vm else {})) for key in ("natVm1", "natVm2")}
    found = compare(plan, reports, NOW).findings
    assert {finding.vm for finding in found} <= {vm}
    assert all(finding.next for finding in found)
    return [finding.what for finding in found]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_report_is_read_from_json_and_from_a_console_alike(plan):
    report = reported(plan, "natVm1")
    printed = "Activate the web console with: systemctl enable\n" + json.dumps(report, indent=1) + "\n"
    console = "[    0.0] Linux version\r\n" + on_console(report) + "Oracle Linux Server 9.4\r\n\r\nnatvm1 login: "
    assert read_report(printed) == read_report(console) == parsed(plan, "natVm1")


def test_the_newest_report_of_a_console_counts_and_a_damaged_one_does_not(plan):
    old, new = reported(plan, "natVm1", stale=1), reported(plan, "natVm1", stale=2)
    assert read_report(on_console(old) + on_console(new)).stale == 2
    damaged = on_console(new).replace("report Qlpo", "report Qlpo[ 40.1] kernel: oom\r\n", 1)
    assert read_report(on_console(old) + damaged).stale == 1
    cut = on_console(new)[:-60] + "\r\n"
    assert read_report(on_console(old) + cut).stale == 1


NO_REPORTS = {
    "nothing": ("", "there is no report in it; it ends with: nothing"),
    "a VM whose agent cannot run": (
        "[ 9.1] cloud-init[7]: done\r\n[ 9.2] env[8]: env: 'python3': No such file or directory\r\n\r\n",
        "there is no report in it; it ends with: [ 9.2] env[8]: env: 'python3': No such file or directory",
    ),
    "another JSON": ('{"a": 1}', "it is not the report of a NAT VM: it has no 'vm'"),
    "half of it": ('{"vm": "natVm1", ', "Expecting property name"),
    "a list": ("[1]", "there is no report in it"),
}


@pytest.mark.parametrize(("text", "reason"), NO_REPORTS.values(), ids=NO_REPORTS.keys())
def test_what_is_no_report_is_said_with_its_last_words(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_report(text)


WRONG_SHAPES = [
    ("now", 1), ("now", "x"), ("time", None), ("wanted", []), ("error", {}), ("since", [1]),
    ("since", {"wanted": 1}), ("notes", 1), ("vnics", [7]), ("vnics", {"a": 1}), ("vnics", [{"address": "x"}]),
    ("conntrack", [1]), ("conntrack", {"count": "x"}), ("counted", 1), ("counted", {"members": {}}),
    ("counted", {"members": {"a": 1}, "chains": {}}), ("counted", {"members": {}, "chains": {"a": {"DROP": "x"}}}),
    ("open", []), ("open", {"from": {}}), ("open", {"from": {}, "to": {"1.2.3.4": 1}}),
    ("open", {"from": {"1.2.3.4": {"flows": 1, "packets": 2}}, "to": {}}),
    ("rules", []), ("foreign", 1), ("unread", 1), ("settings", 1), ("repairs", []),
    ("repairs", {"count": 1}), ("repairs", {"count": 1, "last": "x", "what": ""}), ("fragments", []),
    ("fragments", "x"),    ("vnics", [{"address": "x", "interface": None, "up": True, "mtu": "y"}]),
    ("passed", None), ("passed", {"count": "x", "last": None}), ("passed", {"count": 1, "last": 7}),
    ("health", 1), ("health", {"unfit": None}), ("health", {"unfit": 7, "by": []}),
    ("health", {"unfit": None, "by": "198.18.3.193"}), ("health", {"unfit": None, "by": [7]}),
    ("stale", "x"), ("stale", float("inf")), ("fullest", 1), ("fullest", {"flows": 1}), ("fullest", fullest("x")),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG_SHAPES)
def test_a_report_of_the_wrong_shape_is_a_reason_and_no_traceback(plan, key, value):
    with pytest.raises(ValueError, match="it is not the report of a NAT VM"):
        parsed(plan, "natVm1", **{key: value})


# --- findings --------------------------------------------------------------------------------------------------------


def test_where_all_is_well_there_are_no_findings_and_members_are_counted_where_they_are_known(plan):
    found = compare(plan, {vm: parsed(plan, vm) for vm in ("natVm1", "natVm2")}, NOW + 5)
    assert found.findings == ()
    assert {m.name: (m.tried, m.opened, m.received, m.open) for m in found.members} == {
        "management/mgmt": (6, None, 13, Use(3, 24, 3400)),
        "customer1/vm1": (8, None, 4, Use(3, 24, 3400)),
        "customer1/vm2": (5, None, 0, Use()),
        "customer2/vm2": (0, None, 0, Use()),
    }


def test_what_the_rules_of_a_routed_pod_refuse_is_shown_as_dropped_like_what_their_forward_chain_drops(plan):
    chains = {"NATPOD-FORWARD": {"DROP": 7}, "NATPOD-REFUSED": {"DROP": 3}, "NATPOD-INPUT": {"DROP": 2}}
    report = parsed(plan, "natVm1", counted={"members": {}, "chains": chains})
    assert command._through(report) == 10


OTHER = "0123456789abcdef"
CHANGES: dict[str, tuple[dict[str, object], list[str]]] = {
    "an applied generation that is not the wanted one": (
        {"applied": OTHER, "since": {"wanted": "2025-06-15T15:06:00Z"}},
        [f"it still runs generation {OTHER}, wanted GENERATION, for 40 s"],
    ),
    "a deployed generation that is not the plan's": (
        {"applied": OTHER, "wanted": OTHER},
        [f"its metadata has generation {OTHER}, and the stack file makes GENERATION"],
    ),
    "a refused document": (
        {"wanted": None, "error": "document refused, what is loaded stays: x", "since": {"error": CLOCK}},
        ["its agent complains (for 0 s): document refused, what is loaded stays: x"],
    ),
    "a refused document over old rules": (
        {"wanted": None, "applied": OTHER, "error": "document refused"},
        [
            f"it still runs generation {OTHER}, wanted GENERATION",
            "its agent complains: document refused",
        ],
    ),
    "no rules": (
        {"applied": None, "forwarding": False, "error": "no"},
        ["it forwards nothing", "it has no rules loaded", "its agent complains: no"],
    ),
    "an agent that stopped": (
        {"time": "2025-06-15T15:05:05Z"}, ["its agent last ran 95 s ago; it should run every 15 s"]),
    "one missed round": ({"time": "2025-06-15T15:05:45Z"}, []),
    "a report of an hour ago": (
        {"now": "2025-06-15T14:00:00Z", "time": "2025-06-15T14:00:00Z"},
        ["its report is 66 min old; the agent writes one every 15 min"],
    ),
    "the console's report of 15 minutes ago": ({"now": "2025-06-15T14:51:30Z", "time": "2025-06-15T14:51:30Z"}, []),
    "a clock ahead": ({"now": "2025-06-15T15:16:40Z", "time": "2025-06-15T15:16:40Z"},
                      ["its clock is 10 min ahead of this machine's"]),
    "no VNIC listed": (
        {"vnics": []},
        [
            "VNIC natVm2-vnic-1 (198.18.0.130) is planned, and OCI does not list it to the VM",
            "VNIC natVm2-vnic-2 (198.18.0.66) is planned, and OCI does not list it to the VM",
        ],
    ),
    "a table nearly full": (
        {"conntrack": {"count": 800, "max": 1000}},
        ["conntrack has 800 of 1000 flows"],
    ),
    "no table yet": ({"conntrack": {"count": 0, "max": 0}}, []),
    "a table with room": ({"conntrack": {"count": 799, "max": 1000}}, []),
    "lost flows": (
        {"conntrack": {"count": 1, "max": 10, "insert_failed": 3, "drop": 2, "early_drop": 0}},
        ["new flows were lost since it booted: insert_failed 3, drop 2, early_drop 0"],
    ),
    "ports nearly used up": (
        {"fullest": fullest(51610)},
        ["51610 of 64512 ports are in use: 198.18.0.2 > 198.18.0.130 TCP 443"],
    ),
    "identifiers of ICMP nearly used up": (
        {"fullest": fullest(51610, protocol=1, port=0)},
        ["51610 of 64512 ports are in use: 198.18.0.2 > 198.18.0.130 ICMP"],
    ),
    "a protocol without a name": (
        {"fullest": fullest(51610, protocol=132)},
        ["51610 of 64512 ports are in use: 198.18.0.2 > 198.18.0.130 protocol 132 443"],
    ),
    "ports left": ({"fullest": fullest(51609)}, []),
    "nobody there": ({"fullest": None, "open": {"from": {}, "to": {}}}, []),
    "rules of others": (
        {"foreign": ["nat PREROUTING: -j DNAT"] * 5},
        ["rules of others decide about its packets: nat PREROUTING: -j DNAT; nat PREROUTING: -j DNAT; "
         "nat PREROUTING: -j DNAT; and 2 more"],
    ),
    "what could not be read": ({"unread": ["iptables-save: x"]},
                               ["not everything could be looked at: iptables-save: x"]),
    "settings": ({"settings": ["net.ipv4.ip_forward is 0, not 1"]},
                 ["its kernel's settings are changed: net.ipv4.ip_forward is 0, not 1"]),
    "a repair": (
        {"repairs": {"count": 3, "last": "2025-06-15T15:06:00Z", "what": "rules: nat NATPOD-PRE"}},
        ["changed by others and put right 3 times, last 40 s ago: rules: nat NATPOD-PRE"],
    ),
    "a repair of the day before": ({"repairs": {"count": 3, "last": "2025-06-14T15:06:00Z", "what": "x"}}, []),
    "a flood of fragments": (
        {"fragments": 100},
        ["100 packets came in fragments and could not be put together since it booted"],
    ),
    "stale flows": ({"stale": 2}, ["2 open flows are translated otherwise than its rules would translate them now"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("vm", ["natVm2"])
def test_one_thing_at_a_time_is_found_and_nothing_else(plan, vm, changes, expected):
    generation = plan.vm(vm).generation
    assert findings(plan, vm, **changes) == [line.replace("GENERATION", generation) for line in expected]


def test_an_agent_that_this_nat_pod_does_not_bring_is_named(plan):
    assert findings(plan, agent=agent_id()) == []
    known = f"is not the one that nat-pod {nat_pod.__version__} installs"
    assert findings(plan, agent="0123456789ab") == [f"its agent (0123456789ab) {known}"]
    assert findings(plan, agent=None) == [f"its agent (unnamed) {known}"]
    report = reported(plan, "natVm2")
    del report["agent"]  # one that was deployed before agents had names
    assert read_report(json.dumps(report)).agent is None


def test_a_customer_above_its_bound_is_found_by_its_name(plan):
    chains = {"NATPOD-C-customer2": {"ACCEPT": 77}, "NATPOD-C-customer1": {}, "NATPOD-SERVERS": {"ACCEPT": 5}}
    assert findings(plan, "natVm1", counted={"members": {}, "chains": chains}) == [
        "customer2 had too many flows open: 77 packets of new flows were refused since it booted; "
        "it may have 16128 to one server"
    ]


@pytest.mark.parametrize(
    ("flows", "most", "found"),
    [
        (250, 1000, []),  # a quarter is a customer's
        (251, 1000, ["customer2 has 251 of 1000 flows open, more than 1 in 4"]),
        (251, 1_048_576, []),
        (251, 0, []),  # no table yet
    ],
)
def test_a_customer_who_has_more_of_the_table_than_its_part_is_found_by_its_name(plan, flows, most, found):
    many = {"flows": flows - 1, "packets": 1, "bytes": 1}
    # Whoever opened them: one is management's.
    ends = {"from": {"10.0.1.100": many, "198.18.0.130": ONE_FLOW}, "to": {"10.0.1.100": ONE_FLOW}}
    said = findings(plan, "natVm1", open=ends, conntrack={"count": 1, "max": most})
    assert [line.partition(":")[0] for line in said] == found


RULES: dict[str, tuple[dict[str, str | None], list[str]]] = {
    "a chain with other rules": ({"nat NATPOD-POST": "0" * 12}, ["nat NATPOD-POST has other rules"]),
    "a chain that is gone": ({"nat NATPOD-POST": None}, ["nat NATPOD-POST is missing"]),
    "a chain of nobody's": ({"mangle NATPOD-X": "0" * 12}, ["mangle NATPOD-X is not planned"]),
    "a hook that is gone": ({"nat POSTROUTING": None}, ["nat POSTROUTING lacks 1 -j NATPOD-POST"]),
    "a hook behind another rule": (
        {"filter FORWARD": "2 -j NATPOD-FORWARD, 3 -j NATPOD-CLOSED"},
        ["filter FORWARD has 2 -j NATPOD-FORWARD, 3 -j NATPOD-CLOSED, not 1 -j NATPOD-FORWARD, 2 -j NATPOD-CLOSED"],
    ),
    "the guard": (
        {"filter NATPOD-CLOSED": "0" * 12, "raw PREROUTING": None},
        ["filter NATPOD-CLOSED has other rules; raw PREROUTING lacks 1 -s 169.254.0.0/16 -j NATPOD-UNTRACKED"],
    ),
}


@pytest.mark.parametrize(("changes", "expected"), RULES.values(), ids=RULES.keys())
def test_rules_in_the_kernel_are_held_against_the_plan_whatever_the_agent_says(plan, changes, expected):
    rules = fingerprint(plan.vm("natVm2").rules) | changes
    rules = {name: what for name, what in rules.items() if what is not None}
    assert findings(plan, rules=rules) == [f"its rules are not as planned: {line}" for line in expected]


def test_of_another_generation_the_guard_is_still_compared(plan):
    rules = fingerprint(plan.vm("natVm2").rules) | {"nat NATPOD-POST": "0" * 12, "filter NATPOD-OWN": "0" * 12}
    other = {"applied": OTHER, "wanted": OTHER}
    assert findings(plan, rules=rules, **other)[1:] == [
        "its rules are not as planned: filter NATPOD-OWN has other rules"
    ]


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (
            lambda one, two: (replace(one, mtu=1500), two),
            "VNIC natVm1-vnic-1 (198.18.0.2) has MTU 1500, not 9000, on ens3",
        ),
        (lambda one, two: (one, replace(two, up=False)), "VNIC natVm1-vnic-2 (198.18.0.34) is down, interface ens3"),
        (
            lambda one, two: (one, replace(two, interface=None, up=False)),
            "VNIC natVm1-vnic-2 (198.18.0.34) is listed by OCI, and no interface has its MAC",
        ),
        (
            lambda one, two: (one, two, VnicState("198.18.0.98/27", "ens7", True)),
            "a VNIC with 198.18.0.98 is attached, and not planned",
        ),
    ],
    ids=["another MTU", "down", "no interface", "one more"],
)
def test_vnics_are_told_apart(plan, reported, expected):
    planned = (VnicState(f"{vnic.primary}/27", "ens3", True, 9000) for vnic in plan.vm("natVm1").vnics)
    reports = {
        "natVm1": replace(parsed(plan, "natVm1"), vnics=reported(*planned)),
        "natVm2": parsed(plan, "natVm2"),
    }
    assert [finding.what for finding in compare(plan, reports, NOW).findings] == [expected]


def test_with_static_the_ports_are_one_hosts_and_no_policy_has_more(dev):
    plan = plan_pod(PodConfig.from_mapping({**dev, "sourceNat": "static"}, "dev"), "dev")
    reports = {"natVm1": parsed(plan, "natVm1", fullest=fullest(51610)), "natVm2": parsed(plan, "natVm2")}
    (found,) = compare(plan, reports, NOW).findings
    assert found.next == "they are all of one member: see below which, and ask its owner why"


def test_the_stacks_outputs_tell_what_is_deployed(plan):
    reports = {vm: parsed(plan, vm) for vm in ("natVm1", "natVm2")}
    same = {vm.key: vm.generation for vm in plan.vms}
    assert compare(plan, reports, NOW, same).findings == ()
    found = compare(plan, reports, NOW, same | {"natVm1": OTHER}).findings
    assert [(f.vm, f.what, f.next) for f in found] == [
        (
            "natVm1",
            f"generation {OTHER} is deployed, and the stack file makes {same['natVm1']}",
            "pulumi up",
        )
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172800, "2 days")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """`run("status", "dev")` in a project of its own, at NOW, 80 columns wide: exit status, output, errors."""
    for name in ("Pulumi.yaml", "Pulumi.dev.yaml"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("nat_pod.commands.status.time.time", lambda: NOW)

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def files(plan: PodPlan, **changes: object) -> list[str]:
    """Both reports as files: natVm1's captured from its console, natVm2's with changes, printed by the agent."""
    Path("one.log").write_text(on_console(reported(plan, "natVm1")))
    Path("two.json").write_text(json.dumps(reported(plan, "natVm2", **changes)))
    return ["--report", "natVm1=one.log", "--report", "natVm2=two.json"]


BROKEN = {
    "applied": OTHER,
    "since": {"wanted": "2025-06-15T15:06:00Z", "applied": "2025-06-14T15:06:00Z"},
    "error": "generation 0123: iptables-restore --noflush: status 4: Another app is currently holding the xtables lock",
    "notes": ["net.netfilter.nf_conntrack_max = 1048576: [Errno 13] Permission denied"],
}


@pytest.mark.parametrize(("name", "changes", "code"), [("fine", {}, 0), ("broken", BROKEN, 1)])
def test_text_and_json_are_the_golden_ones(run, plan, golden, name, changes, code):
    arguments = files(plan, **changes)
    status_code, out, err = run("status", "dev", *arguments)
    assert (status_code, err) == (code, "")
    assert max(len(line) for line in out.splitlines()) <= 80
    out.encode("ascii")
    golden(f"cli-status-{name}.txt", out)
    status_code, out, err = run("status", "dev", *arguments, "--json")
    assert (status_code, err) == (code, "")
    golden(f"cli-status-{name}.json", out)


def test_the_help_fits_into_80_columns(run):
    code, out, err = run("status", "--help")
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines()) <= 80


def test_a_missing_report_is_a_finding_and_the_rest_is_shown(run, plan):
    code, out, _ = run("status", "dev", *files(plan)[:2])
    assert code == 1
    assert "natVm2: no report: none was given" in out
    assert re.search(r"generation +\w{16} +\?\n", out)
    assert re.search(r"management/mgmt( +\?){6}\n", out)
    assert re.search(r"customer1/vm1 +8 +- +4 +3 +24 +3400\n", out)


def test_a_console_without_a_report_is_a_finding_with_its_last_line(run, plan):
    arguments = files(plan)
    Path("one.log").write_text("[ 9.2] nat-pod-agent: env: 'python3': No such file or directory\r\n")
    code, out, _ = run("status", "dev", *arguments)
    assert code == 1
    assert "natVm1: no report: there is no report in it; it ends with: [ 9.2]" in out


def test_a_file_that_nests_without_end_is_no_report(run, plan):
    arguments = files(plan)
    Path("one.log").write_text('{"a":' * 100_000)
    code, out, err = run("status", "dev", *arguments)
    assert (code, err, "natVm1: no report: " in out) == (1, "", True)


def test_standard_input_is_a_report_too(run, plan, monkeypatch):
    arguments = files(plan)
    with Path("two.json").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert run("status", "dev", *arguments[:3], "natVm2=-")[0] == 0


def test_the_outputs_of_another_generation_are_a_finding(run, plan):
    generations = {vm.key: vm.generation for vm in plan.vms}
    Path("outputs.json").write_text(json.dumps({"generations": generations}))
    assert run("status", "dev", *files(plan), "--outputs", "outputs.json")[0] == 0
    Path("outputs.json").write_text(json.dumps({"generations": generations | {"natVm1": OTHER}}))
    code, out, _ = run("status", "dev", *files(plan), "--outputs", "outputs.json")
    assert (code, f"generation {OTHER} is deployed" in out) == (1, True)


WRONG = {
    "a file that is not there": (
        ["--report", "natVm1=none.json"], 1, "none.json: cannot be read: No such file or directory\n",
    ),
    "the other VM's": (["--report", "natVm1=two.json"], 1, "--report natVm1: this is a report of natVm2\n"),
    "one twice": (
        ["--report", "natVm1=one.log", "--report", "natVm1=one.log"], 1,
        "--report: give one for each NAT VM, and read only one of them from standard input\n"),
    "outputs without generations": (
        ["--report", "natVm1=one.log", "--outputs", "two.json"], 1,
        "--outputs two.json: has no generations of natVm1 and natVm2; `pulumi stack output --json` prints them\n"),
    "no VM": (["--report", "one.log"], 2, None),
    "no file": (["--report", "natVm1="], 2, None),
    "a VM that the POD does not have": (
        ["--report", "natVm1a=one.log"], 1,
        "--report natVm1a: POD dev has no such NAT VM; it has natVm1, natVm2\n"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_on_the_command_line_is_a_sentence(run, plan, arguments, code, message):
    files(plan)
    result = run("status", "dev", *arguments)
    assert (result[0], result[1]) == (code, "")
    assert "Traceback" not in result[2]
    assert message is None or result[2] == message


def test_without_reports_and_without_a_lab_both_ways_are_named(run, monkeypatch):
    monkeypatch.setattr(sandbox, "find", lambda key: None)
    code, out, err = run("status", "dev")
    assert (code, out) == (1, "")
    assert err == (
        "there is no --report, and the lab of dev is not up; run: python -m nat_pod lab up dev\n"
        "or give what the NAT VMs of the tenancy report: python -m nat_pod status --help\n"
    )


# --- real packets ----------------------------------------------------------------------------------------------------

MGMT = "198.18.0.2"  # as customers know it
ONE, TWO, OTHERS = "198.18.0.130", "198.18.0.66", "198.18.0.131"  # hosts as management knows them
DECLARED = [
    # from, to, address, ICMP flows, UDP flows; each is a packet there and one back
    ("customer1/vm1", "management/mgmt", MGMT, 3, 2),
    ("customer1/vm2", "management/mgmt", MGMT, 0, 4),
    ("customer2/vm2", "management/mgmt", MGMT, 1, 0),
    ("management/mgmt", "customer1/vm1", ONE, 0, 1),
    ("management/mgmt", "customer1/vm2", TWO, 2, 0),
    ("management/mgmt", "customer2/vm2", OTHERS, 1, 3),
]
REFUSED = [
    # from, address, ICMP packets, UDP packets
    ("customer1/stranger", MGMT, 2, 1),  # the primary address of NAT VM1: dropped in INPUT
    ("customer1/vm1", "198.18.0.3", 1, 2),  # customer2/vm2's on NAT VM1: customer to customer, dropped in FORWARD
    ("customer1/vm1", "198.18.0.4", 1, 0),  # nobody's: never gets to NAT VM1
    ("management/stranger", OTHERS, 2, 0),  # dropped in FORWARD of NAT VM2
    ("management/stranger", ONE, 0, 1),  # the primary address of NAT VM2: dropped in INPUT
]
TOKEN = 23  # bytes of payload of every probe
SEEN = {  # the source address that the far end sees, and an UDP answer repeats
    "masquerade": {"to management": dict.fromkeys(["customer1/vm1", "customer1/vm2", "customer2/vm2"], ONE)},
    "static": {"to management": {"customer1/vm1": ONE, "customer1/vm2": TWO, "customer2/vm2": OTHERS}},
}


def traffic(policy: str) -> dict[str, Use]:
    """What each member's open flows must have carried, from the tables above."""
    used: dict[str, Use] = {}
    for sender, receiver, _, icmp, udp in DECLARED:
        seen = SEEN[policy]["to management"].get(sender, MGMT)
        answer = len(f"name={receiver} seen={seen} ")
        size = icmp * 2 * (28 + TOKEN) + udp * (2 * (28 + TOKEN) + answer)
        for member in (sender, receiver):
            used[member] = used.get(member, Use()) + Use(icmp + udp, 2 * (icmp + udp), size)
    return used


def probes(vm: str, address: str, icmp: int, udp: int) -> list[Probe]:
    flow = Probe(source_vm=vm, destination=address)
    return [flow] * icmp + [replace(flow, protocol="udp")] * udp


def fullest_udp(source: str, destination: str, flows: int) -> dict[str, object]:
    """What `status --json` says of so many flows to the probes' UDP port."""
    return {"source": source, "destination": destination, "protocol": "UDP", "port": 9, "flows": flows}


class Pod:
    """A lab, its plan, and `status` on it."""

    def __init__(self, lab: sandbox.Lab, plan: PodPlan):
        self.lab, self.plan = lab, plan

    def log_in(self, vm: str, *argv: str) -> str:
        done = self.lab.call("log_in", vm=vm, argv=list(argv))
        assert done["status"] == 0, done
        return done["stdout"]

    def command(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of `status dev`."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = main(["status", "dev", *arguments])
        return code, out.getvalue()

    def status(self) -> dict:
        code, out = self.command("--json")
        found = json.loads(out)
        assert code == (1 if found["findings"] else 0)
        return found

    def findings(self) -> list[tuple[str, str]]:
        return [(finding["vm"], finding["what"]) for finding in self.status()["findings"]]

    def received(self) -> dict[str, int]:
        return {name: member["received"] for name, member in self.status()["members"].items()}

    def poll(self, vm: str) -> int:
        return self.lab.call("poll", vm=vm)["status"]

    def give(self, vm: str, document: str) -> int:
        """Another rule document in the VM's metadata, and a round; returns its exit status."""
        metadata = self.plan.vm(vm).metadata | {guest.RULES_KEY: document}
        self.lab.call("metadata", vm=vm, metadata=metadata)
        return self.poll(vm)


@pytest.fixture(scope="module", params=["masquerade", "static"])
def pod(request, tmp_path_factory) -> Iterator[Pod]:
    directory = project(tmp_path_factory.mktemp(request.param), sourceNat=request.param)
    plan, topology = deployed(directory, "dev")
    with sandbox.Lab(topology) as lab, pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(sandbox, "lab_key", lambda stack: lab.key)
        for vm in ("natVm1", "natVm2"):
            lab.call("log_in", vm=vm, argv=["systemctl", "disable", "nat-pod-agent.timer"])
        yield Pod(lab, plan)


@dataclass(frozen=True)
class Sent:
    """What `status --json` says before any packet, after DECLARED and REFUSED, and after three more of HTTP."""

    before: dict
    found: dict
    kernel: dict[str, dict[str, int]]
    after_http: dict
    crossed: int  # packets of HTTP that NAT VM1's VNICs took in


@pytest.fixture(scope="module")
def sent(pod) -> Sent:
    before = pod.status()
    declared = [probe for sender, _, address, icmp, udp in DECLARED for probe in probes(sender, address, icmp, udp)]
    assert all(answer.ok for answer in pod.lab.probe(declared))
    refused = [probe for sender, address, icmp, udp in REFUSED for probe in probes(sender, address, icmp, udp)]
    assert not any(answer.ok for answer in pod.lab.probe(refused, seconds=0.5))
    found = pod.status()
    folder = "/proc/sys/net/netfilter/nf_conntrack_"
    kernel = {
        vm: {name: int(pod.log_in(vm, "cat", folder + name)) for name in ("count", "max")}
        for vm in ("natVm1", "natVm2")
    }
    http = [Probe(source_vm="customer2/vm2", destination=MGMT, protocol="http")] * 3
    packets = [packet for answer in pod.lab.probe(http, capture=True) for packet in answer.packets]
    crossed = sum((packet.vm, packet.direction) == ("natVm1", "in") for packet in packets)
    return Sent(before, found, kernel, pod.status(), crossed)


@pytest.mark.lab
def test_there_are_no_findings_before_and_after_traffic(sent):
    assert [found["findings"] for found in (sent.before, sent.found, sent.after_http)] == [[], [], []]


@pytest.mark.lab
def test_members_are_counted_as_was_sent(pod, sent):
    static = pod.plan.source_nat == "static"
    assert {name: (m["tried"], m["opened"], m["received"]) for name, m in sent.found["members"].items()} == {
        "management/mgmt": (7, 7 if static else None, 10),
        "customer1/vm1": (8, 5 if static else None, 1),  # three of the eight were refused
        "customer1/vm2": (4, 4 if static else None, 2),
        "customer2/vm2": (1, 1 if static else None, 4),
    }


@pytest.mark.lab
def test_open_flows_have_carried_what_was_sent(pod, sent):
    carried = {name: Use(**member["open"]) for name, member in sent.found["members"].items()}
    assert carried == traffic(pod.plan.source_nat)
    assert [vm["openFlows"] for vm in sent.found["natVms"].values()] == [17, 17]


@pytest.mark.lab
def test_what_was_refused_is_counted_where_it_was_dropped(sent):
    assert {vm: report["dropped"] for vm, report in sent.found["natVms"].items()} == {
        "natVm1": {"FORWARD": 3, "INPUT": 3, "errors": 0},
        "natVm2": {"FORWARD": 2, "INPUT": 1, "errors": 0},
    }


@pytest.mark.lab
def test_the_fullest_source_is_the_one_with_most_flows(pod, sent):
    if pod.plan.source_nat == "static":
        one, two = ("198.18.0.34", "198.18.0.130", 4), ("198.18.0.66", "10.0.0.100", 4)
    else:  # one address for everybody
        one, two = ("198.18.0.2", "198.18.0.130", 6), ("198.18.0.130", "10.0.0.100", 6)
    assert [report["fullest"] for report in sent.found["natVms"].values()] == [fullest_udp(*one), fullest_udp(*two)]


@pytest.mark.lab
@pytest.mark.parametrize("vm", ["natVm1", "natVm2"])
def test_what_a_vm_runs_is_what_is_planned(pod, sent, vm):
    planned, report = pod.plan.vm(vm), sent.found["natVms"][vm]
    assert (report["applied"], report["wanted"], report["planned"]) == (planned.generation,) * 3
    assert [(vnic["address"].split("/")[0], vnic["up"]) for vnic in report["vnics"]] == [
        (vnic.primary, True) for vnic in planned.vnics
    ]
    assert (report["error"], report["forwarding"], report["staleFlows"]) == (None, True, 0)
    assert report["lastRoundSecondsAgo"] >= report["reportedSecondsAgo"]


@pytest.mark.lab
@pytest.mark.parametrize("vm", ["natVm1", "natVm2"])
def test_the_connection_table_is_the_kernel_s(sent, vm):
    table = sent.found["natVms"][vm]["conntrack"]
    # Its own to the metadata service too, and they end.
    assert 17 <= sent.kernel[vm]["count"] <= table["count"]
    assert table == {
        "count": table["count"],
        "max": sent.kernel[vm]["max"],
        "insert_failed": 0,
        "drop": 0,
        "early_drop": 0,
    }


@pytest.mark.lab
def test_http_has_as_many_packets_as_crossed_nat_vm1_in_both_directions(pod, sent):
    before, after = traffic(pod.plan.source_nat)["customer2/vm2"], sent.after_http["members"]["customer2/vm2"]
    assert sent.crossed > 3
    assert (after["tried"], after["open"]["flows"], after["open"]["packets"]) == (4, 8, before.packets + sent.crossed)


@pytest.fixture
def mended(pod) -> Iterator[Pod]:
    """The POD, which is as planned before the test and, once its metadata is, again after it."""
    assert pod.findings() == []
    yield pod
    for vm in pod.plan.vms:
        pod.lab.call("metadata", vm=vm.key, metadata=vm.metadata)
        assert pod.poll(vm.key) == 0
    assert pod.findings() == []


@pytest.mark.lab
def test_a_vnic_that_is_down_is_found_and_the_next_round_brings_it_up(mended):
    mended.log_in("natVm2", "ip", "link", "set", "ens5", "down")
    assert mended.findings() == [("natVm2", "VNIC natVm2-vnic-2 (198.18.0.66) is down, interface ens5")]
    assert mended.poll("natVm2") == 0
    ((vm, what),) = mended.findings()
    assert vm == "natVm2"
    assert re.fullmatch(r"changed by others and put right once, last \d+ s ago: ip link set dev ens5 up", what)
    # Until somebody has taken note of it.
    mended.log_in("natVm2", "rm", "/run/nat-pod/status.json")
    assert mended.poll("natVm2") == 0
    assert mended.findings() == []


@pytest.mark.lab
def test_a_document_that_one_vm_alone_has_is_found_and_counters_of_rules_that_stay_go_on(mended):
    planned, received = mended.plan.vm("natVm1"), mended.received()
    document = read_document(planned.metadata[guest.RULES_KEY])
    lines = document.rules.splitlines(keepends=True)
    fewer = "".join(line for line in lines if "--to-destination 10.0.0.130" not in line)
    smaller, generation = rule_document("natVm1", document.hooks, fewer)
    assert mended.give("natVm1", smaller) == 0
    assert mended.findings() == [
        ("natVm1", f"its metadata has generation {generation}, and the stack file makes {planned.generation}")
    ]
    assert mended.received() == received | {"customer1/vm2": 0}  # without its rule


@pytest.mark.lab
def test_a_vm_whose_kernel_refuses_the_wanted_rules_lags_behind_and_complains(mended):
    planned = mended.plan.vm("natVm1")
    document = read_document(planned.metadata[guest.RULES_KEY])
    dnat, snat = (f"-j {target} 10.0.0.100" for target in ("DNAT --to-destination", "SNAT --to-source"))
    wrong = document.rules.replace(dnat, snat)
    assert wrong != document.rules
    refused, unloaded = rule_document("natVm1", document.hooks, wrong)
    assert mended.give("natVm1", refused) == 1
    metadata, lags, complains = mended.findings()
    assert metadata == (
        "natVm1",
        f"its metadata has generation {unloaded}, and the stack file makes {planned.generation}",
    )
    assert lags[1].startswith(f"it still runs generation {planned.generation}, wanted {unloaded}, for ")
    assert re.match(r"its agent complains \(for \d+ s\): document refused, what is loaded stays: ", complains[1])


@pytest.mark.lab
def test_a_damaged_document_is_complained_of_and_the_console_says_the_same(mended):
    assert mended.give("natVm2", mended.plan.vm("natVm2").metadata[guest.RULES_KEY][:99]) == 1
    ((vm, what),) = mended.findings()
    assert vm == "natVm2"
    assert re.match(r"its agent complains \(for \d+ s\): document refused, what is loaded stays: ", what)
    # Without a way into the VM.
    for name in ("natVm1", "natVm2"):
        Path(f"{name}.log").write_text(mended.lab.call("read", vm=name, path="/var/log/console"))
    assert read_report(Path("natVm2.log").read_text()).error == mended.status()["natVms"]["natVm2"]["error"]
    code, out = mended.command("--report", "natVm1=natVm1.log", "--report", "natVm2=natVm2.log")
    assert (code, "natVm2: its agent complains" in out) == (1, True)


@pytest.mark.lab
def test_an_agent_that_stopped_is_found(mended):
    """Its last round is set back, since nobody wants to wait."""
    mended.log_in(
        "natVm1", "sed", "-i", 's/"time": "[^"]*"/"time": "2020-01-01T00:00:00Z"/', "/run/nat-pod/status.json"
    )
    ((vm, what),) = mended.findings()
    assert vm == "natVm1"
    assert re.fullmatch(r"its agent last ran \d+ days ago; it should run every 15 s", what)
