"""A trial, apart from what carries it out: who is asked what, what machines report, and what follows from that."""

import ast
import base64
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest
import yaml
from conftest import REPOSITORY, edit
from test_status import parsed

from nat_pod.config.delivery import Delivery
from nat_pod.config.stack_file import read_stack
from nat_pod.limits import METADATA_BYTES
from nat_pod.names import VROUTER
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.trial import probes
from nat_pod.trial.assumptions import METADATA_SECONDS, Assumption, Evidence, Row, Verdict, rows
from nat_pod.trial.costs import hourly, what_it_makes
from nat_pod.trial.neighbours import Shape, neighbours_of
from nat_pod.trial.outcome import outcomes
from nat_pod.trial.probes import NARROW, PAST_NAT_VM1, Asked, Extra
from nat_pod.trial.report import Mask, TrialReport, report_dict, report_page, report_text
from nat_pod.trial.results import MachineReport, Result, read_reports

TRIAL = 1_790_000_000
HIDDEN_BEHIND = {True: "198.18.0.2", False: "198.18.0.130"}  # as whom masquerade shows servers, and hosts


def planned(stack: str) -> PodPlan:
    return plan_pod(read_stack(REPOSITORY, stack).checked(), f"trial-{stack}")


@pytest.fixture(scope="module")
def plan() -> PodPlan:
    return planned("dev")


@pytest.fixture(scope="module")
def asked(plan: PodPlan) -> list[Asked]:
    return probes.asked(plan, probes.chosen(plan), TRIAL)


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    """The program of the neighbours' machines."""
    spec = spec_from_file_location("probe", REPOSITORY / "neighbours" / "probe.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- who is asked what -----------------------------------------------------------------------------------------------


def test_of_each_customer_one_host_per_vnic_stands_for_the_others_and_one_server_per_set_of_callers():
    assert sorted(probes.chosen(planned("dev"))) == [
        "customer1/vm1",
        "customer1/vm2",
        "customer2/vm2",
        "management/mgmt",
    ]
    assert sorted(probes.chosen(planned("routed"))) == [
        "fern/app", "hazel/app", "linden/app", "management/backup", "management/dns", "maple/app",
    ]  # fmt: skip
    assert len(probes.chosen(planned("routed"), everyone=True)) == 45


@pytest.mark.parametrize("stack", ["dev", "ten", "routed"])
def test_every_kind_of_flow_is_tried_both_those_that_must_arrive_and_those_that_must_not(stack):
    plan = planned(stack)
    flows = probes.asked(plan, probes.chosen(plan), TRIAL)
    assert [one.number for one in flows] == list(range(len(flows)))
    assert len({one.token for one in flows} | {one.sequence for one in flows}) == 2 * len(flows)
    senders = {(one.flow.sender.is_server, one.flow.receiver is not None) for one in flows}
    assert senders == {(True, True), (False, True), (True, False), (False, False)}
    machines = {machine.name for machine in neighbours_of(plan, stack, only=probes.chosen(plan)).machines}
    assert {one.flow.sender for one in flows} <= machines
    assert {one.flow.receiver for one in flows} - {None} <= machines


def told(values: dict[str, str], machine: str) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(values[machine])))


def test_a_machine_is_told_its_own_probes_and_all_the_forged_syns_that_it_may_hear(plan, asked):
    members = probes.chosen(plan)
    neighbours = neighbours_of(plan, "dev", only=members)
    values = probes.lists(neighbours, 7, asked, probes.long_packets(plan, members, len(asked)))
    vm1 = told(values, "customer1/vm1")
    assert (vm1["name"], vm1["list"], vm1["vnics"], vm1["narrow"]) == ("customer1/vm1", 7, {}, {})
    assert vm1["probes"][0] == {"id": 0, "to": "198.18.0.2", "token": f"np-{TRIAL}-0", "kind": "icmp"}
    assert vm1["probes"][-1]["kind"] == "big"
    stranger = told(values, "customer1/stranger")
    forged = [one for one in stranger["probes"] if one["kind"] == "forge"]
    assert {one["from"] for one in forged} == {"198.18.0.130", "10.0.0.100"}
    assert [one["port"] for one in stranger["probes"] if "port" in one] == [22]
    syns = {one["sequence"] for one in forged if one["protocol"] == "tcp"}
    assert syns <= set(vm1["forged"])
    # Before anything is sent they are known, too.
    assert told(probes.lists(neighbours, 6, expected=asked), "customer1/vm1")["forged"] == vm1["forged"]


def test_the_vrouter_is_told_what_its_guest_sets_up(plan):
    members = probes.chosen(plan)
    neighbours = neighbours_of(plan, "dev", only=members)
    router = told(probes.lists(neighbours, 1, narrow=probes.narrowed(plan, members)), VROUTER)
    assert router["vnics"] == {
        "10.0.255.252": {"addresses": ["10.0.255.254"], "routes": []},
        "198.18.0.174": {"addresses": ["198.18.0.167"], "routes": ["198.18.0.0/22"]},
    }
    assert router["narrow"] == {"10.0.0.100": NARROW}


@pytest.mark.parametrize("stack", ["dev", "ten", "routed"])
def test_what_a_machine_is_told_fits_its_metadata(stack):
    plan = planned(stack)
    members = probes.chosen(plan, everyone=True)
    neighbours = neighbours_of(plan, stack, only=members)
    flows = probes.asked(plan, members, TRIAL)
    names = [machine.name for machine in neighbours.machines]
    metadata = probes.metadata(names, probes.lists(neighbours, 1, flows))
    assert max(sum(map(len, one.values())) for one in metadata.values()) < METADATA_BYTES


def test_the_probe_runs_on_python_36_and_its_cloud_config_writes_it():
    source = (REPOSITORY / "neighbours" / "probe.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    config = yaml.safe_load(gzip.decompress(base64.b64decode(probes.user_data())))
    program = next(file["content"] for file in config["write_files"] if file["path"].endswith("/nat-pod-probe"))
    compile(program, "nat-pod-probe", "exec")
    assert '"""' not in program
    assert probes.user_data() == probes.user_data(), "another one would replace every machine"


# --- what machines report --------------------------------------------------------------------------------------------


def written(probe: ModuleType, report: dict, *, number: int = 7, count: int = 1) -> list[str]:
    return list(probe.report_lines(number, count, report))


REPORT = {
    "name": "customer1/vm1",
    "about": {
        "image": "Oracle Linux Server 9.4",
        "kernel": "5.15",
        "python": "3.9.18",
        "iptables": "v1.8.10",
        "saw": 5.5,
    },
    "heard": [["icmp", "np-1-9", "198.18.0.2"]],
    "results": {
        "0": {"ok": True, "answer": "name=management/mgmt seen=198.18.0.130\n"},
        "1": {"ok": False, "detail": "timed out\x1b[2J"},
        "2": {"ok": True, "opened": 40, "wanted": 40, "lost": 0, "pause": 3.25, "errors": []},
    },
    "forwarded": {"10.0.0.5": 12},
}


def test_a_report_is_read_as_it_was_written(probe):
    found, damaged = read_reports("\r\n".join(["[    0.1] Linux", *written(probe, REPORT), "login:"]))
    assert damaged == 0
    report = found[7]
    assert (report.saw, report.about["python"]) == (5.5, "3.9.18")
    assert report.heard == {("icmp", "np-1-9", "198.18.0.2")}
    assert report.results[0] == Result(ok=True, name="management/mgmt", seen="198.18.0.130")
    assert "\x1b" not in report.results[1].detail
    assert (report.results[2].opened, report.results[2].pause) == (40, 3.25)
    assert report.forwarded == {"10.0.0.5": 12}


def long(report: dict) -> dict:
    return {**report, "heard": [["udp", f"np-1-{number * 7919 % 10007}", "198.18.0.2"] for number in range(300)]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:-1],
        lambda lines: [lines[0][:-9] + "AAAAAAAAA", *lines[1:]],
        lambda lines: [line.replace(" ", " [ 12.3] eth0: link up ", 4) for line in lines],
        lambda lines: [lines[0].replace("1/", "9/", 1), *lines[1:]],
    ],
    ids=["cut off", "another text", "the kernel in between", "another part"],
)
def test_a_damaged_report_is_none_and_the_one_before_counts(probe, damage: Callable[[list[str]], list[str]]):
    first, second = written(probe, REPORT), written(probe, long(REPORT), count=2)
    assert len(second) > 1
    assert len(read_reports("\n".join(second))[0][7].heard) == 300
    found, _ = read_reports("\n".join([*first, *damage(second)]))
    assert found[7].heard == {("icmp", "np-1-9", "198.18.0.2")}
    assert read_reports("\n".join(damage(second)))[0] == {}


@pytest.mark.parametrize(
    "report",
    [{}, {**REPORT, "results": {"x": {}}}, {**REPORT, "heard": [["icmp"]]}, {**REPORT, "about": []}, [], 5, None],
)
def test_what_no_probe_writes_is_damage_and_no_traceback(probe, report):
    assert read_reports("\n".join(written(probe, report))) == ({}, 1)


# --- what became of the flows ----------------------------------------------------------------------------------------


def as_declared(plan: PodPlan, asked: list[Asked], machines: list[str]) -> dict[str, MachineReport]:
    """Reports of machines on which all is well."""
    results: dict[str, dict[int, Result]] = {machine: {} for machine in machines}
    heard: dict[str, set[tuple[str, str, str]]] = {machine: set() for machine in machines}
    for one in asked:
        flow = one.flow
        if flow.receiver is None:
            result = Result(ok=False, detail="sent" if flow.forged else "timed out")
        else:
            own = plan.slot(flow.sender)
            assert own is not None
            source = own.nat_vm1 if plan.delivery is Delivery.ROUTES else HIDDEN_BEHIND[flow.sender.is_server]
            result = Result(ok=True, name="" if one.protocol == "icmp" else flow.receiver, seen=source)
            heard[flow.receiver].add((one.protocol, one.token, source))
        results[flow.sender][one.number] = result
    return {
        machine: MachineReport(
            results=results[machine],
            heard=frozenset(heard[machine]),
            about={"image": "Oracle Linux Server 9.4", "kernel": "5.15", "python": "3.9.18", "iptables": "v1.8.10"},
            saw=TRIAL + 42.0,
            forwarded={"10.0.255.252": 99} if machine == VROUTER else {},
        )
        for machine in machines
    }


@pytest.fixture
def machines(plan: PodPlan) -> list[str]:
    return [machine.name for machine in neighbours_of(plan, "dev").machines]


@pytest.fixture
def reports(asked: list[Asked], machines: list[str]) -> dict[str, MachineReport]:
    return as_declared(planned("dev"), asked, machines)


def problems(plan: PodPlan, asked: list[Asked], reports: dict[str, MachineReport]) -> list[str]:
    return [problem for outcome in outcomes(plan, asked, reports) for problem in outcome.tried.problems]


def test_all_as_declared_is_no_problem(plan, asked, reports):
    found = outcomes(plan, asked, reports)
    assert [outcome.tried.problems for outcome in found] == [()] * len(asked)
    assert {outcome.tried.seen for outcome in found if outcome.asked.flow.receiver} == {"198.18.0.2", "198.18.0.130"}


def test_what_is_not_as_declared_is_a_problem_of_that_flow(plan, asked, reports):
    declared = next(one for one in asked if one.flow.receiver == "management/mgmt" and one.protocol == "udp")
    refused = next(one for one in asked if one.flow.why == "customer to customer" and one.protocol == "udp")
    forged = next(one for one in asked if one.flow.why == PAST_NAT_VM1 and one.protocol == "tcp")

    def changed(machine: str, number: int, result: Result | None) -> dict[str, MachineReport]:
        results = {key: value for key, value in reports[machine].results.items() if key != number}
        if result is not None:
            results[number] = result
        return {**reports, machine: replace(reports[machine], results=results)}

    def heard(machine: str, *more: tuple[str, str, str]) -> dict[str, MachineReport]:
        return {**reports, machine: replace(reports[machine], heard=reports[machine].heard | set(more))}

    sender = declared.flow.sender
    for broken, said in (
        (changed(sender, declared.number, Result(ok=False, detail="timed out")), "no answer: timed out"),
        (
            changed(sender, declared.number, Result(ok=True, name="customer2/vm2")),
            "customer2/vm2 answers, not management/mgmt",
        ),
        (changed(sender, declared.number, None), f"{sender} has not reported on it"),
        (
            heard("management/mgmt", ("udp", declared.token, "10.9.9.9")),
            "the far end saw 10.9.9.9, 198.18.0.130; the tracer predicts 198.18.0.130",
        ),
        (heard("customer2/vm2", ("udp", declared.token, "198.18.0.130")), "customer2/vm2 heard it, too"),
        (
            heard("customer2/vm2", ("udp", refused.token, "198.18.0.2")),
            "must not connect, and customer2/vm2 heard it from 198.18.0.2",
        ),
        (
            heard("customer2/vm2", ("tcp", str(forged.sequence), "198.18.0.2")),
            "must not connect, and customer2/vm2 heard it from 198.18.0.2",
        ),
        (changed(refused.flow.sender, refused.number, Result(ok=True, name="x")), "must not connect, and x answers"),
        (
            changed(forged.flow.sender, forged.number, Result(ok=False, detail="could not be sent")),
            "it was not tried: could not be sent",
        ),
    ):
        assert problems(plan, asked, broken) == [said]


def test_a_packet_of_another_trial_is_not_heard(plan, asked, reports):
    refused = next(one for one in asked if one.flow.why == "customer to customer" and one.protocol == "udp")
    other = replace(refused, trial=TRIAL - 1)
    mine = replace(
        reports["customer2/vm2"], heard=reports["customer2/vm2"].heard | {("udp", other.token, "198.18.0.2")}
    )
    assert problems(plan, asked, {**reports, "customer2/vm2": mine}) == []


# --- assumptions -----------------------------------------------------------------------------------------------------


def big(sender: str, to: str, **settings: int) -> Extra:
    return Extra(number=900, sender=sender, kind="big", to=to, settings={"size": 9000, **settings})


@pytest.fixture
def evidence(plan: PodPlan, asked: list[Asked], reports: dict[str, MachineReport]) -> Evidence:
    """Of a trial of dev in which everything holds."""
    return Evidence(
        plan=plan,
        neighbours=neighbours_of(plan, "dev"),
        flows=outcomes(plan, asked, reports),
        nat_vms={vm.key: parsed(plan, vm.key) for vm in plan.vms},
        machines={name: {TRIAL + 1: report} for name, report in reports.items()},
        latencies=dict.fromkeys(reports, 42.0),
        long=[(big("customer1/vm1", "198.18.0.2"), Result(ok=True, mtu=9000))],
        narrow=[
            (big("customer1/vm1", "198.18.0.2", until=NARROW), Result(ok=False, detail="Message too long", mtu=NARROW))
        ],
        shape="409-Conflict",
    )


def verdicts(evidence: Evidence) -> dict[Assumption, Verdict]:
    return {row.assumption: row.verdict for row in rows(evidence)}


def with_packets(
    evidence: Evidence, asked: list[Asked], arrives: Callable[[Asked], bool], into_pod: int = 99
) -> Evidence:
    """The evidence when packets of only some declared flows arrive, and the vRouter sends so many on."""
    whole = as_declared(evidence.plan, asked, list(evidence.machines))
    gone = {one.token for one in asked if one.flow.receiver is not None and not arrives(one)}
    reports = {
        name: replace(
            report,
            heard=frozenset(one for one in report.heard if one[1] not in gone),
            forwarded={"10.0.255.252": into_pod} if name == VROUTER else {},
        )
        for name, report in whole.items()
    }
    machines = {name: {TRIAL + 1: report} for name, report in reports.items()}
    return replace(evidence, flows=outcomes(evidence.plan, asked, reports), machines=machines)


def test_where_all_is_well_every_assumption_of_the_pod_holds(evidence):
    assert verdicts(evidence) == {
        assumption: Verdict.HOLDS for assumption in Assumption if assumption not in ("balancer", "idle")
    }


def test_every_assumption_says_what_it_is_and_what_it_means_when_it_does_not_hold():
    assert len({one.what for one in Assumption} | {one.otherwise for one in Assumption}) == 2 * len(Assumption)


SOURCE, NSG, LPG = Assumption.SOURCE_DEST_CHECK, Assumption.NSG_BY_VNIC, Assumption.LPG_TABLE
HOLDS, FAILS, NOT_SEEN = Verdict.HOLDS, Verdict.FAILS, Verdict.NOT_SEEN


def test_packets_that_die_tell_where(evidence, asked):
    """What arrives, and what the vRouter sends on: each pattern means one thing."""
    nothing = with_packets(evidence, asked, lambda _: False)
    assert {key: verdicts(nothing)[key] for key in (SOURCE, NSG, LPG)} == {SOURCE: NOT_SEEN, NSG: FAILS, LPG: NOT_SEEN}
    mute = replace(nothing, nat_vms=dict.fromkeys(nothing.nat_vms, "there is no report in it"))
    assert verdicts(mute)[NSG] is NOT_SEEN
    router = with_packets(evidence, asked, lambda _: False, into_pod=0)
    assert {key: verdicts(router)[key] for key in (SOURCE, NSG)} == {SOURCE: FAILS, NSG: NOT_SEEN}
    assert verdicts(nothing)[Assumption.MTU] is verdicts(nothing)[Assumption.PATH_MTU] is NOT_SEEN


def test_a_customer_who_gets_past_nat_vm1_is_a_broken_lpg_table(evidence, asked, reports):
    forged = next(one for one in asked if one.flow.why == PAST_NAT_VM1 and one.protocol == "udp")
    hears = replace(
        reports["customer2/vm2"], heard=reports["customer2/vm2"].heard | {("udp", forged.token, "198.18.0.2")}
    )
    flows = outcomes(evidence.plan, asked, {**reports, "customer2/vm2": hears})
    row = {row.assumption: row for row in rows(replace(evidence, flows=flows))}[LPG]
    assert (row.verdict, row.seen) == (
        FAILS,
        "past NAT VM1, with a server's address: customer1/stranger reached customer2/vm2",
    )


@pytest.mark.slow
def test_in_a_routed_pod_the_lpg_table_carries_what_customers_send():
    plan = planned("routed")
    asked = probes.asked(plan, probes.chosen(plan), TRIAL)
    booted = {vm.key: replace(parsed(planned("dev"), "natVm1"), applied=vm.generation) for vm in plan.vms}
    neighbours = neighbours_of(plan, "routed", only=probes.chosen(plan))
    base = Evidence(plan=plan, neighbours=neighbours, nat_vms=booted)

    def seen(*sides: bool) -> Verdict:
        """Packets arrive that servers send (True), and that customers send (False)."""
        reports = {
            str(flow.receiver): MachineReport(
                results={}, about={}, saw=0.0, forwarded={},
                heard=frozenset((one.protocol, one.token, "x") for one in asked if one.flow.receiver == flow.receiver),
            )
            for flow in (one.flow for one in asked)
            if flow.receiver is not None and (not flow.receiver.is_server) in sides
        }  # fmt: skip
        return verdicts(replace(base, flows=outcomes(plan, asked, reports)))[LPG]

    assert [seen(True, False), seen(False), seen(True), seen()] == [HOLDS, HOLDS, FAILS, NOT_SEEN]
    assert NSG not in verdicts(base)
    base = replace(base, nat_vms={**booted, "natVm1b": "there is no report in it"})
    assert [seen(True, False), seen(True)] == [HOLDS, NOT_SEEN]


@pytest.mark.parametrize(
    ("assumption", "change", "verdict", "seen"),
    [
        (
            "boot",
            lambda e: {"nat_vms": {**e.nat_vms, "natVm1": "there is no report in it"}},
            FAILS,
            "natVm1: there is no report in it",
        ),
        (
            "boot",
            lambda e: {"nat_vms": {vm: replace(report, applied=None) for vm, report in e.nat_vms.items()}},
            FAILS,
            "natVm1: runs no rules, not ",
        ),
        ("boot", lambda e: {"nat_vms": {}, "machines": {}}, NOT_SEEN, "no console could be read"),
        (
            "boot",
            lambda e: {"nat_vms": dict.fromkeys(e.nat_vms, "it ends with: nothing"), "machines": {}},
            NOT_SEEN,
            "no console could be read",
        ),
        ("console", lambda _: {"machines": {}}, FAILS, "0 of 8 machines of the neighbours have reported"),
        ("console", lambda _: {"damaged": 3}, HOLDS, "3 reports were damaged"),
        ("metadata", lambda _: {"latencies": {}}, FAILS, "no machine has seen a changed list"),
        (
            "metadata",
            lambda e: {"latencies": {**e.latencies, VROUTER: METADATA_SECONDS + 1}},
            FAILS,
            "after 42 to 91 s",
        ),
        (
            "metadata",
            lambda e: {"latencies": {k: v for k, v in e.latencies.items() if k != VROUTER}},
            FAILS,
            "vrouter did not see it",
        ),
        ("metadata", lambda _: {"machines": {}, "latencies": {}}, NOT_SEEN, "no machine has reported"),
        ("source-dest-check", lambda _: {"machines": {}}, NOT_SEEN, "the vRouter has not reported"),
        ("source-dest-check", lambda _: {"flows": ()}, NOT_SEEN, "no server has sent anything"),
        (
            "mtu",
            lambda e: {"long": [(e.long[0][0], Result(ok=False, detail="timed out", mtu=9000))]},
            FAILS,
            "customer1/vm1 to 198.18.0.2 (timed out, MTU 9000)",
        ),
        (
            "mtu",
            lambda _: {"long": [(big("customer1/vm1", "198.18.0.2"), None)]},
            NOT_SEEN,
            "not all declared flows arrive",
        ),
        (
            "path-mtu",
            lambda e: {"narrow": [(e.narrow[0][0], Result(ok=False, detail="timed out", mtu=9000))]},
            FAILS,
            "the sender still sends 9000 bytes, and only 1400 pass",
        ),
        ("avoid-downtime", lambda _: {"shape": ""}, FAILS, "it took the new shape"),
        ("avoid-downtime", lambda _: {"shape": None}, NOT_SEEN, "nobody asked"),
    ],
)
def test_what_does_not_hold_is_said_and_what_was_not_seen_is_no_all_clear(evidence, assumption, change, verdict, seen):
    row = next(row for row in rows(replace(evidence, **change(evidence))) if row.assumption == assumption)
    assert row.verdict is verdict
    assert seen in row.seen


def test_where_long_packets_die_nothing_is_said_of_errors_about_them(evidence):
    assert verdicts(evidence)[Assumption.PATH_MTU] is HOLDS
    died = replace(evidence, long=[(evidence.long[0][0], Result(ok=False, detail="timed out", mtu=9000))])
    assert verdicts(died)[Assumption.PATH_MTU] is NOT_SEEN


HELD = Extra(number=901, sender="fern/app", kind="hold", to="198.18.8.1", settings={"flows": 20})
SILENT = Extra(number=902, sender="fern/app", kind="idle", to="198.18.8.1", settings={"seconds": 400})


@pytest.mark.parametrize(
    ("changes", "balancer", "idle"),
    [
        ({}, HOLDS, HOLDS),
        ({"held": [(HELD, Result(ok=False, opened=40, wanted=40, lost=1, pause=3.0))]}, FAILS, HOLDS),
        ({"held": [(HELD, Result(ok=True, opened=39, wanted=40, pause=3.0))]}, FAILS, HOLDS),
        ({"held": [(HELD, Result(ok=False, opened=0, wanted=40))]}, NOT_SEEN, HOLDS),
        ({"held": [(HELD, None)]}, NOT_SEEN, HOLDS),
        ({"stopped": {}}, NOT_SEEN, HOLDS),
        ({"held": [(HELD, Result(ok=True, opened=40, wanted=40, pause=60.0))]}, FAILS, HOLDS),
        ({"idle": [(SILENT, Result(ok=False, detail="timed out"))]}, HOLDS, FAILS),
        ({"idle": [(SILENT, None)]}, HOLDS, NOT_SEEN),
        ({"flows": ()}, NOT_SEEN, NOT_SEEN),
    ],
)
def test_flows_that_are_held_and_one_that_is_silent(changes, balancer, idle):
    found = verdicts(replace(with_held_flows(), **changes))
    assert (found[Assumption.BALANCER], found[Assumption.IDLE]) == (balancer, idle)


def with_held_flows() -> Evidence:
    """Of a routed POD whose NAT VMs are stopped in turn, and all is well."""
    plan = planned("routed")
    neighbours = neighbours_of(plan, "routed")
    asked = probes.asked(plan, probes.chosen(plan), TRIAL)
    return Evidence(
        plan=plan,
        neighbours=neighbours,
        flows=outcomes(plan, asked, as_declared(plan, asked, [machine.name for machine in neighbours.machines])),
        held=[(HELD, Result(ok=True, opened=40, wanted=40, pause=3.0))],
        idle=[(SILENT, Result(ok=True))],
        stopped={"natVm1a": 60.0, "natVm2a": 61.0},
    )


def test_of_lost_flows_it_is_said_how_they_ended():
    held = [(HELD, Result(ok=False, opened=20, wanted=20, lost=2, pause=3.0, errors=("reset", "timed out")))] * 2
    row = next(row for row in rows(replace(with_held_flows(), held=held)) if row.assumption is Assumption.BALANCER)
    assert row.seen.startswith("natVm1a, natVm2a stopped in turn: 40 flows held, 4 lost (reset, timed out), longest")


# --- the report ------------------------------------------------------------------------------------------------------


def trial_report(evidence: Evidence, found: list[Row] | None = None) -> TrialReport:
    return TrialReport(
        stack="dev",
        where="uk-london-1",
        rehearsed=False,
        about={"shape": "VM.Standard2.24"},
        flows=evidence.flows,
        rows=rows(evidence) if found is None else found,
        seconds=1500.0,
    )


def test_the_report_as_text_and_as_a_page(evidence, golden):
    report = trial_report(replace(evidence, shape=""))
    golden("trial-dev.txt", report_text(report) + "\n")
    golden("trial-dev.md", report_page(report))


def test_it_has_passed_only_when_something_was_tried_in_both_lists_and_nothing_is_known_to_fail(evidence):
    report = trial_report(evidence)
    assert report.passed
    assert not trial_report(replace(evidence, shape="")).passed
    declared = [one for one in report.flows if one.asked.flow.receiver is not None]
    assert not replace(report, flows=declared).passed
    assert not replace(report, flows=[]).passed
    # What was not seen is said, and is no failure of the POD's.
    assert trial_report(replace(evidence, shape=None)).passed
    assert "8 holds, 0 does NOT hold, 1 not seen" in trial_report(replace(evidence, shape=None)).summary


def test_a_masked_report_has_no_ocids_and_no_addresses_but_the_pods(evidence):
    found = report_dict(
        trial_report(
            replace(
                evidence, shape="409 of ocid1.instance.oc1.uk-london-1.aaaa, again ocid1.instance.oc1.uk-london-1.aaaa"
            )
        )
    )
    assert "10.0.0.100" in json.dumps(found)
    masked = json.dumps(Mask().value(found))
    assert not re.search(r"\b10\.\d+\.\d+\.\d+", masked)
    assert not re.search(r"ocid1\.", masked)
    assert masked.count("ocid-instance-1") == 2
    assert "198.18.0.130" in masked


# --- before it begins ------------------------------------------------------------------------------------------------


def test_what_it_makes_is_said_with_a_price(plan):
    neighbours = neighbours_of(plan, "trial-dev", shape=Shape(shape="VM.Standard.E4.Flex", ocpus=1, memory_gbs=4))
    said = what_it_makes(plan, neighbours, 20)
    assert "2 NAT VMs of VM.Standard2.24\n" in said
    assert "8 VMs of VM.Standard.E4.Flex (1 OCPU, 4 GB) as neighbours, for 4 of 4 members" in said
    assert "4 VCNs, 4 local peering gateways" in said
    # 2 x 24 x 0.065 + 8 x (0.025 + 4 x 0.0015)
    assert "An hour of it costs about 3.37 US dollars" in said


def test_a_price_that_is_not_known_is_not_made_up():
    assert hourly([Shape(shape="VM.GPU3.1")]) is None
    assert hourly([Shape(shape="VM.Standard.A1.Flex", ocpus=2, memory_gbs=12)]) == pytest.approx(0.038)


def test_a_trial_of_an_example_is_refused_and_a_rehearsal_is_offered(run, project, monkeypatch):
    (project / "__main__.py").touch()
    edit(project, ("oc1..aaaa", "oc1..example"))
    status, out, err = run("trial", "dev")
    assert (status, out) == (1, "")
    assert err == (
        "Pulumi.dev.yaml: is an example with a made-up compartment; make a stack of your own "
        "(python -m nat_pod new-pod NAME), or: python -m nat_pod trial dev --rehearse\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dev",), "standard input is not a terminal, so nobody can answer; add --yes (nothing was made)"),
        (("dev", "--break", "mtu"), "--break is for a rehearsal; add --rehearse"),
        (("dev", "--rehearse", "--keep"), "--keep: a rehearsal's region ends with the command"),
        (("other",), "Pulumi.other.yaml"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(run, project, monkeypatch, arguments, said):
    (project / "__main__.py").touch()
    status, _, err = run("trial", *arguments)
    assert status == 1
    assert said in err
    assert "Traceback" not in err


def test_a_stack_file_with_problems_is_refused_as_a_whole(run, project):
    (project / "__main__.py").touch()
    edit(project, ("cidr: 10.0.1.0/24", "cidr: 10.0.0.0/24"))
    status, _, err = run("trial", "dev", "--yes")
    assert status == 1
    assert "overlaps" in err


def test_it_runs_in_a_checkout_only(run, project):
    status, _, err = run("trial", "dev")
    assert status == 1
    assert "has no __main__.py: a trial runs the Pulumi program of the directory that it is started in; run: " in err
