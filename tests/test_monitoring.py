"""Metrics, alerts and the dashboard: the agent's text and status's are one, and a real Prometheus understands them.

Prometheus is the one on PATH or in the cache (`.ci/prometheus`); it runs on loopback for some seconds.
"""

import http.server
import json
import os
import re
import shutil
import stat
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, project_with, real_stack
from test_agent import agent
from test_status import NOW, OTHER, parsed, reported
from test_status_standby import plan as routed_plan  # noqa: F401 # a fixture
from test_status_standby import status as standby_status

from nat_pod.commands.cli import main
from nat_pod.config.model import PodConfig
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire import sandbox
from nat_pod.lab.wire.probe import Probe
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.status.compare import compare
from nat_pod.status.metrics import METRICS, metrics_text

MONITORING = REPOSITORY / "monitoring"
ALERTS = {
    rule["alert"]: rule for rule in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
}
LOCAL = {"nat_pod_up", "nat_pod_report_timestamp_seconds", "nat_pod_findings"}  # what no VM can know


@pytest.fixture
def plan(dev) -> PodPlan:
    return plan_pod(PodConfig.from_mapping(dev, "dev"), "dev")


def series(text: str) -> dict[str, str]:
    """{metric with its labels: value}."""
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


# --- one text ---------------------------------------------------------------------------------------------------------


AWKWARD = {'a"b\\c\nd/é\udcff': {"DNAT": 1}, "customer1/vm1": {"goto": 8, "DNAT": 4}}
REPORTS = {
    "all is well": {},
    "no rules, and nothing is wanted": {
        "applied": None,
        "wanted": None,
        "error": "no",
        "forwarding": False,
        "since": {},
    },
    "another generation": {"applied": OTHER},
    "nothing is known of the wanted one": {"wanted": None},
    "a customer above its bound, and drops": {
        "counted": {
            "members": AWKWARD,
            "chains": {
                "NATPOD-C-customer1": {"ACCEPT": 0},
                "NATPOD-C-customer2": {"ACCEPT": 77, "goto": 1},
                "NATPOD-C-10.0.0.0/26": {"goto": 3},
                "NATPOD-FORWARD": {"ACCEPT": 99, "DROP": 7},
            },
        }
    },
    "lost": {"conntrack": {"count": 7, "max": 9, "insert_failed": 1, "drop": 2, "early_drop": 3}, "fragments": 12},
    "a fit one": {"health": {"unfit": None, "by": []}, "passed": {"count": 3, "last": "2025-06-15T15:06:33Z"}},
    "an unfit one": {"health": {"unfit": "it does not forward", "by": []}, "passed": {"count": 0, "last": None}},
    "repaired": {"repairs": {"count": 3, "last": "2025-06-15T15:06:00Z", "what": "x"}},
}


@pytest.mark.parametrize("changes", REPORTS.values(), ids=REPORTS.keys())
def test_the_agent_and_status_write_one_text(plan, monkeypatch, changes):
    """But for `stack` and `vm`, which a scraper gives to what it finds on a VM."""
    report = reported(plan, "natVm1", **changes)
    health = report["health"]
    monkeypatch.setattr(agent, "conntrack_use", lambda: report["conntrack"])
    monkeypatch.setattr(agent, "live_rules", dict)
    monkeypatch.setattr(agent, "counted", lambda live: report["counted"])
    monkeypatch.setattr(agent, "ip_counter", lambda name: report["fragments"])
    monkeypatch.setattr(agent, "load", {agent.DOOR: health and "198.18.3.194 8198"}.get)
    monkeypatch.setattr(agent, "unfit", lambda found: health["unfit"])
    own = agent.metrics(report)
    text = metrics_text("dev", compare(plan, {"natVm1": parsed(plan, "natVm1", **changes), "natVm2": "off"}, NOW))
    assert 'nat_pod_up{stack="dev",vm="natVm2"} 0\n' in text
    of_both = [line for line in text.splitlines() if not any(name in line for name in LOCAL)]
    bare = "\n".join(of_both).replace('stack="dev",vm="natVm1",', "").replace('{stack="dev",vm="natVm1"}', "") + "\n"
    assert own == bare
    assert own.count("# HELP ") == own.count("# TYPE ") >= 13


def test_the_figures_of_one_vm(plan, monkeypatch):
    changes = REPORTS["a customer above its bound, and drops"] | {"since": {"applied": "1970-01-01T00:01:00Z"}}
    text = metrics_text("dev", compare(plan, {"natVm1": parsed(plan, "natVm1", **changes), "natVm2": "off"}, NOW))
    found = {key.replace('stack="dev",vm="natVm1"', "*"): value for key, value in series(text).items()}
    assert {key: found[key] for key in found if "refused" in key or "dropped" in key} == {
        'nat_pod_customer_refused_packets_total{*,customer="customer1"}': "0",
        'nat_pod_customer_refused_packets_total{*,customer="customer2"}': "77",
        'nat_pod_dropped_packets_total{*,chain="NATPOD-FORWARD"}': "7",
    }
    assert found["nat_pod_generation_applied_timestamp_seconds{*}"] == "60"
    assert found["nat_pod_report_timestamp_seconds{*}"] == str(int(NOW))
    assert found["nat_pod_findings{*}"] == "1", "the customer"
    generation = plan.vm("natVm1").generation
    assert found[f'nat_pod_generation_info{{*,applied="{generation}",wanted="{generation}"}}'] == "1"


def test_of_standbys_each_says_whether_it_is_fit_and_findings_of_a_side_are_the_side_s(routed_plan):  # noqa: F811
    text = metrics_text("dev", standby_status(routed_plan, natVm1b={"applied": OTHER, "wanted": OTHER}))
    fit = {key: value for key, value in series(text).items() if key.startswith("nat_pod_fit")}
    assert fit == {f'nat_pod_fit{{stack="dev",vm="{vm}"}}': "1" for vm in ("natVm1a", "natVm1b", "natVm2a", "natVm2b")}
    assert series(text)['nat_pod_findings{stack="dev",vm="natVm1"}'] == "1", "the two run different generations"
    assert series(text)['nat_pod_findings{stack="dev",vm="natVm2"}'] == "0"


# --- the file on a VM -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(agent, "TEXTFILES", (str(tmp_path / "debian"), str(tmp_path / "epel")))
    monkeypatch.setattr(agent, "metrics", lambda state: f"nat_pod_x {state}\n")
    return tmp_path


def published(state: int) -> list[str]:
    """A round's notes."""
    notes: list[str] = []
    before = os.umask(0o077)  # the agent's
    try:
        agent.publish(state, notes)
    finally:
        os.umask(before)
    return notes


def test_metrics_are_written_where_a_node_exporter_looks_and_nowhere_else(folder):
    assert published(1) == []
    assert list(folder.iterdir()) == [], "no folder, no file, and no work"
    (folder / "epel").mkdir()
    assert published(2) == []
    (file,) = (folder / "epel").iterdir()
    assert (file.name, file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("nat-pod.prom", "nat_pod_x 2\n", 0o644)
    with file.open() as reader:  # who is reading goes on in the old one
        assert published(3) == []
        assert (reader.read(), file.read_text()) == ("nat_pod_x 2\n", "nat_pod_x 3\n")


def test_whoever_owns_the_folder_cannot_lead_the_agent_to_another_file(folder):
    (folder / "debian").mkdir()
    (folder / "precious").write_text("precious")
    (folder / "debian/nat-pod.prom.new").symlink_to(folder / "precious")
    (note,) = published(1)
    assert re.match(r"metrics: \[Errno 40\] Too many levels of symbolic links", note)
    assert (folder / "precious").read_text() == "precious"
    (folder / "debian/nat-pod.prom.new").unlink()
    assert published(2) == []


def test_rules_that_cannot_be_read_are_a_note_and_no_failed_round(folder, monkeypatch):
    def fails(state):
        raise agent.AgentError("iptables-save: status 1")

    monkeypatch.setattr(agent, "metrics", fails)
    (folder / "epel").mkdir()
    assert published(1) == ["metrics: iptables-save: status 1"]


# --- Prometheus -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tools() -> Path:
    """Where prometheus and promtool are."""
    found = shutil.which("promtool")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nat-pod"
    folders = [Path(found).parent] if found else [path / "usr/bin" for path in cache.glob("prometheus-*-*[0-9]")]
    for folder in folders:
        if all((folder / name).exists() for name in ("promtool", "prometheus")):
            return folder
    pytest.skip("no Prometheus: .ci/prometheus makes sure there is one")


@pytest.fixture
def promtool(tools) -> Callable[..., tuple[int, str]]:
    def run(*arguments: object, text: str | None = None) -> tuple[int, str]:
        done = subprocess.run(
            [tools / "promtool", *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.runs_commands
@pytest.mark.parametrize("changes", REPORTS.values(), ids=REPORTS.keys())
def test_promtool_has_nothing_to_say_about_the_metrics(promtool, plan, changes):
    reports = {"natVm1": parsed(plan, "natVm1", **changes), "natVm2": parsed(plan, "natVm2")}
    text = metrics_text('d"ev', compare(plan, reports, NOW))
    assert promtool("check", "metrics", text=text) == (0, "")
    assert promtool("check", "metrics", text=text.replace("_packets_total", "_packets"))[0] == 3
    assert promtool("check", "metrics", text=text.replace(r"\"", '"'))[0] == 1
    assert len(series(text)) == sum(not line.startswith("#") for line in text.splitlines()), "none is there twice"


@pytest.mark.slow
@pytest.mark.runs_commands
def test_each_alert_fires_for_what_is_broken_and_for_nothing_else(promtool):
    assert promtool("check", "rules", MONITORING / "alerts.yaml")[0] == 0
    status, said = promtool("test", "rules", MONITORING / "alerts_test.yaml")
    assert status == 0, said


def test_each_alert_has_series_with_which_it_fires_and_others_with_which_it_does_not():
    tried: dict[str, set[bool]] = {}
    for case in yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]:
        for one in case["alert_rule_test"]:
            tried.setdefault(one["alertname"], set()).add(bool(one["exp_alerts"]))
    assert tried == {alert: {True, False} for alert in ALERTS}


@pytest.mark.sweep
@pytest.mark.runs_commands
@pytest.mark.parametrize("alert", ALERTS)
def test_the_alerts_tests_notice_an_alert_that_always_fires_and_one_that_never_does(promtool, tmp_path, alert):
    tests = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())
    for case in tests["tests"]:
        case["alert_rule_test"] = [one for one in case["alert_rule_test"] if one["alertname"] == alert]
    tests["tests"] = [case for case in tests["tests"] if case["alert_rule_test"]]
    (tmp_path / "alerts_test.yaml").write_text(yaml.safe_dump(tests))
    for other in ("vector(1)", "vector(1) == 0"):
        rules = [rule | ({"expr": other} if rule["alert"] == alert else {}) for rule in ALERTS.values()]
        (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
        status, said = promtool("test", "rules", tmp_path / "alerts_test.yaml")
        assert (status, alert in said) == (1, True)


def expressions() -> dict[str, str]:
    """Those of the dashboard's panels and variables, with something in their variables' place."""
    board = json.loads((MONITORING / "dashboard.json").read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found[variable["name"]] = re.fullmatch(r"label_values\((.*), \w+\)", variable["definition"])[1]
    known = {variable["name"] for variable in board["templating"]["list"]}
    assert {name for text in found.values() for name in re.findall(r"\$(\w+)", text)} <= known
    return {title: re.sub(r"\$\w+", "x", text) for title, text in found.items()}


@pytest.mark.runs_commands
def test_the_dashboard_asks_prometheus_what_it_understands(promtool, tmp_path):
    rules = [{"record": f"panel:{place}", "expr": text} for place, text in enumerate(expressions().values())]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
    assert promtool("check", "rules", tmp_path / "panels.yaml")[0] == 0
    (tmp_path / "panels.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "x", "rules": [*rules, {"record": "y", "expr": rules[0]["expr"] + "}"}]}]})
    )
    assert promtool("check", "rules", tmp_path / "panels.yaml")[0] == 1


def test_dashboard_and_alerts_name_metrics_that_exist_and_the_document_all_of_them():
    asked = " ".join([*expressions().values(), *(rule["expr"] for rule in ALERTS.values())])
    assert set(re.findall(r"\bnat_pod_\w+", asked)) <= set(METRICS)
    about = (REPOSITORY / "docs/monitoring.md").read_text()
    assert set(re.findall(r"^\| `(nat_pod_\w+)`", about, re.MULTILINE)) == set(METRICS)
    assert set(re.findall(r"^\| `(NatPod\w+)`", about, re.MULTILINE)) == set(ALERTS)


@contextmanager
def serving(text: str) -> Iterator[int]:
    """The port of a server on loopback that answers everybody with `text`, as a node_exporter would."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.runs_commands
def test_a_real_prometheus_scrapes_the_metrics_and_sees_the_alerts_coming(tools, plan, tmp_path):
    broken = {"applied": OTHER, "forwarding": False, "conntrack": {"count": 900, "max": 1000}}
    reports = {"natVm1": parsed(plan, "natVm1", **broken), "natVm2": parsed(plan, "natVm2")}
    text = metrics_text("dev", compare(plan, reports, NOW))
    with serving(text) as port, serving("") as own:
        pass  # a port that is free: Prometheus's own
    with serving(text) as port:
        (tmp_path / "prometheus.yml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(MONITORING / "alerts.yaml")],
                    "scrape_configs": [
                        {
                            "job_name": "pods",
                            "honor_labels": True,
                            "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
                        }
                    ],
                }
            )
        )
        with (tmp_path / "log").open("w") as log:
            prometheus = subprocess.Popen(
                [
                    tools / "prometheus",
                    f"--config.file={tmp_path}/prometheus.yml",
                    f"--storage.tsdb.path={tmp_path}/data",
                    f"--web.listen-address=127.0.0.1:{own}",
                ],
                stdout=log,
                stderr=log,
            )
        try:

            def ask(path: str) -> list | dict:
                with urllib.request.urlopen(f"http://127.0.0.1:{own}/api/v1/{path}", timeout=5) as answer:
                    return json.load(answer)["data"]

            coming: set[tuple[str, str]] = set()
            until = time.monotonic() + 60
            while len(coming) < 6 and prometheus.poll() is None and time.monotonic() < until:
                time.sleep(0.5)
                try:
                    alerts = ask("alerts")["alerts"]
                except OSError:
                    continue
                coming = {(alert["labels"]["alertname"], alert["labels"].get("vm", "")) for alert in alerts}
            assert coming == {
                ("NatPodNoReport", "natVm1"),  # its time is of 2025
                ("NatPodNoReport", "natVm2"),
                ("NatPodRulesNotApplied", "natVm1"),
                ("NatPodNotForwarding", "natVm1"),
                ("NatPodConnectionTableNearlyFull", "natVm1"),
                ("NatPodFinding", "natVm1"),
            }, (tmp_path / "log").read_text()
            names = set(ask("label/__name__/values"))
            assert {name for name in names if name.startswith("nat_pod_")} == {
                line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")
            }
            for query in expressions().values():
                found = ask("query?" + urllib.parse.urlencode({"query": query.replace('"x"', '".*"')}))
                assert found["resultType"] == "vector"
        finally:
            prometheus.terminate()
            prometheus.wait(20)


# --- a booted VM ------------------------------------------------------------------------------------------------------


@pytest.mark.lab
@pytest.mark.parametrize("stack", ["dev", "routed"])
def test_a_booted_vm_s_file_says_what_status_says(promtool, tmp_path, stack, capsys, monkeypatch):
    directory = project_with(tmp_path, stack, real_stack(stack))
    region, _, _ = stand_up(directory, stack)
    vm, sender, server = {
        "dev": ("natVm1", "customer1/vm1", "198.18.0.2"),
        "routed": ("natVm1a", "fern/web", "198.18.8.4"),
    }[stack]
    path = "/var/lib/prometheus/node-exporter"
    with sandbox.Lab(observe(region)) as lab:
        monkeypatch.chdir(directory)
        monkeypatch.setattr(sandbox, "lab_key", lambda _: lab.key)
        lab.call("log_in", vm=vm, argv=["systemctl", "disable", "nat-pod-agent.timer"])
        assert lab.call("log_in", vm=vm, argv=["mkdir", "-p", path])["status"] == 0
        assert all(one.ok for one in lab.probe([Probe(source_vm=sender, destination=server, protocol="http")] * 3))
        assert lab.call("poll", vm=vm)["status"] == 0
        own = lab.call("read", vm=vm, path=f"{path}/nat-pod.prom")
        main(["status", stack, "--prometheus"])
    text = capsys.readouterr().out
    assert promtool("check", "metrics", text=own) == promtool("check", "metrics", text=text) == (0, "")
    labels = f'stack="{stack}",vm="{vm}"'
    of_vm = {
        key.replace(f"{labels},", "").replace(f"{{{labels}}}", ""): value
        for key, value in series(text).items()
        if labels in key and not any(name in key for name in LOCAL)
    }
    assert of_vm.keys() == series(own).keys()
    # The round's own questions to the metadata service come and go.
    different = {key for key in of_vm if of_vm[key] != series(own)[key]}
    assert different <= {"nat_pod_conntrack_entries", "nat_pod_last_round_timestamp_seconds"}
    assert sum(int(value) for key, value in of_vm.items() if f'member="{sender}"' in key) >= 3
    assert of_vm["nat_pod_generation_applied"] == of_vm["nat_pod_forwarding"] == "1"
    assert of_vm.get("nat_pod_fit") == {"dev": None, "routed": "1"}[stack]
