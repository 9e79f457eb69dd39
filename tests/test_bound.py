"""A customer opens more flows than it may have: its bound holds, and nobody else notices.

The bound is that of the compiler, with smaller numbers: so the kernel counts, marks and refuses by the same rules.
"""

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, project_with

from bench.noise import FILL
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire.packets import HTTP, ICMP, UDP
from nat_pod.lab.wire.probe import Probe
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.plan.model import PodPlan
from nat_pod.rules import compiler
from nat_pod.status.compare import compare
from nat_pod.status.report import read_report
from nat_pod.trace.topology import Topology

pytestmark = pytest.mark.lab

MOST, SAMPLE, SECONDS = 128, 2, 3
OFFERED = 600
SERVER = "198.18.0.2"  # mgmt, as customers know it

# Flows that were there before, then the flood: as many handshakes as the bound lets through are kept until END exists.
FLOOD = f"""
import json, os, select, socket, sys, time
OFFERED, END = sys.argv[1:]
def opened():
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(("{SERVER}", 80))
    return one
before = [opened() for _ in range(5)]
time.sleep(0.5)
flood = []
for _ in range({OFFERED}):
    flood.append(opened())
    time.sleep(0.002)
waiting = select.poll()
for one in flood:
    waiting.register(one, select.POLLOUT)
for _ in range(200):
    time.sleep(0.1)
    done = sum(bool(event & select.POLLOUT and not event & select.POLLERR) for _, event in waiting.poll(0))
    if done == len(flood) or os.path.exists(END):
        break
    open(OFFERED, "w").close()
answers = 0
for one in before:
    one.setblocking(True)
    one.settimeout(20)
    one.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    answers += bool(one.recv(1))
print(json.dumps({{"done": done, "before": answers}}))
"""


@pytest.fixture(params=["masquerade", "static"])
def policy(request, monkeypatch) -> str:
    def bounds(config: object, customer: object) -> dict[bool, int]:
        return {request.param == "masquerade": MOST}

    monkeypatch.setattr(compiler, "customer_bounds", bounds)
    monkeypatch.setattr(compiler, "BOUND_SAMPLE", SAMPLE)
    monkeypatch.setattr(compiler, "BOUND_SECONDS", SECONDS)
    return request.param


@pytest.fixture
def deployed(policy, tmp_path) -> tuple[Topology, PodPlan]:
    stack = yaml.safe_load((REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8"))
    stack["config"]["nat-pod:sourceNat"] = policy
    region, plan, _ = stand_up(project_with(tmp_path, "dev", yaml.safe_dump(stack)), "dev")
    return observe(region), plan


@pytest.fixture
def lab(deployed) -> Iterator[Lab]:
    with Lab(deployed[0]) as running:
        yield running


@pytest.fixture
def plan(deployed) -> PodPlan:
    return deployed[1]


def flood(lab: Lab, found: dict, offered: Path, end: Path) -> None:
    done = lab.call("run", argv=["python3", "-c", FLOOD, str(offered), str(end)], vm="customer2/vm2")
    assert done["status"] == 0, done
    found.update(json.loads(done["stdout"]))


def arrived(lab: Lab, sender: str, count: int, seconds: float = 20) -> dict[str, int]:
    return {
        protocol: sum(
            answer.ok
            for answer in lab.probe(
                [Probe(source_vm=sender, destination=SERVER, protocol=protocol) for _ in range(count)], seconds
            )
        )
        for protocol in (HTTP, UDP, ICMP)
    }


def above_bound(lab: Lab, plan: PodPlan) -> list[str]:
    """The customers whom `status` finds above their bounds, by what NAT VM1 reports; it finds nothing else there."""
    asked = lab.call("log_in", vm="natVm1", argv=["nat-pod-agent", "status"])
    reports = {"natVm1": read_report(asked["stdout"]), "natVm2": "not asked"}
    found = [finding.what for finding in compare(plan, reports, time.time()).findings if finding.vm == "natVm1"]
    said = [
        re.fullmatch(r"(\S+) had too many flows open: (\d+) packets of new flows were refused .*", what)
        for what in found
    ]
    assert all(said), found
    assert all(int(one[2]) > OFFERED // 2 for one in said)
    return [one[1] for one in said]


def test_a_customer_beyond_its_bound_starves_nobody_and_comes_back_by_itself(lab, plan, tmp_path):
    found: dict = {}
    assert above_bound(lab, plan) == []
    offered, end = tmp_path / "offered", tmp_path / "end"
    attack = threading.Thread(target=flood, args=(lab, found, offered, end))
    attack.start()
    try:
        until = time.monotonic() + 60
        while not offered.exists() and attack.is_alive() and time.monotonic() < until:
            time.sleep(0.1)
        others, own = arrived(lab, "customer1/vm1", 20), arrived(lab, "customer2/vm2", 20, seconds=2)
    finally:
        end.touch()
        attack.join()
    assert others == {HTTP: 20, UDP: 20, ICMP: 20}
    assert max(own.values()) < 20
    assert MOST // 2 < found["done"] < 2 * MOST
    assert found["before"] == 5, "what a customer has open lives on"
    chain = "NATPOD-C-customer2"
    rules = [
        line for line in lab.call("rules", vm="natVm1").splitlines() if f"-A {chain} " in line and "-m recent" in line
    ]
    assert sum(int(line[1:].partition(":")[0]) for line in rules) > OFFERED // 2, "refusals are counted, by customer"
    assert above_bound(lab, plan) == ["customer2"], "and status says whose they are"
    time.sleep(SECONDS + 1)
    assert arrived(lab, "customer2/vm2", 20) == {HTTP: 20, UDP: 20, ICMP: 20}


def test_without_the_bound_the_same_flood_gets_through(lab_without_bound, tmp_path):
    found: dict = {}
    flood(lab_without_bound, found, tmp_path / "offered", tmp_path / "end")
    assert found["done"] == OFFERED


@pytest.fixture
def lab_without_bound(monkeypatch, tmp_path) -> Iterator[Lab]:
    monkeypatch.setattr(compiler, "_bound", lambda *_: [])
    stack = (REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8")
    region, _, _ = stand_up(project_with(tmp_path, "dev", stack), "dev")
    with Lab(observe(region)) as running:
        yield running


def test_a_full_table_does_not_keep_the_document_out_that_is_the_cure(tmp_path):
    stack = yaml.safe_load((REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8"))
    for folder in ("now", "cure"):
        (tmp_path / folder).mkdir()
    region, _, _ = stand_up(project_with(tmp_path / "now", "dev", yaml.safe_dump(stack)), "dev")
    stack["config"]["nat-pod:sourceNat"] = "static"
    _, cure, _ = stand_up(project_with(tmp_path / "cure", "dev", yaml.safe_dump(stack)), "dev")
    with Lab(observe(region)) as lab:
        assert arrived(lab, "customer1/vm1", 5) == {HTTP: 5, UDP: 5, ICMP: 5}
        filled = lab.call("run", argv=[sys.executable, "-c", FILL], vm="natVm1")
        assert filled["status"] == 0, filled
        assert arrived(lab, "customer1/vm1", 5, seconds=2) == {HTTP: 0, UDP: 0, ICMP: 0}
        assert "-j NETMAP" not in lab.call("rules", vm="natVm1")
        lab.call("metadata", vm="natVm1", metadata=cure.vm("natVm1").metadata)
        done = lab.call("poll", vm="natVm1")
        assert "-j NETMAP" in lab.call("rules", vm="natVm1"), done
