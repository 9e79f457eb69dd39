"""How long the engine takes for a full POD, as a multiple of the floor: `make bench-engine`.

The floor (bench/floor) is a bare Pulumi program that registers as many resources on the same plugin.  What it takes is
Pulumi's own: the CLI, its Python SDK, the plugin.  So the ratio says what the component adds, on any machine.  POD and
floor take turns, in the same run, each time with a new stack and an empty region.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from netaddr import IPNetwork

from nat_pod.book import settle
from nat_pod.config import PodConfig
from nat_pod.lab.engine import Engine, find_cli
from nat_pod.lab.region import Region
from nat_pod.lab.region_file import RegionFile

REPOSITORY = Path(__file__).resolve().parent.parent
REPORT = Path(__file__).with_suffix(".md")
REGION = "uk-london-1"
SERVERS, CUSTOMERS = 8, 10
STEPS = ("preview of a new POD", "up", "preview, nothing changed")
LIMIT_MINUTES = 9


@dataclass(frozen=True)
class Project:
    """A program and the stack file it runs with."""

    directory: Path
    config: dict[str, Any]


def main() -> int:
    """Measure, print the table and write it to engine.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    rounds = parser.parse_args().rounds
    cli = find_cli()
    if cli is None:
        print("no Pulumi CLI: .ci/pulumi/install makes sure there is one", file=sys.stderr)
        return 1
    started = time.monotonic()
    rows = []
    for cidr, what in (("198.18.0.0/22", "full /22"), ("198.18.8.0/21", "full /21")):
        rows += _compare(cidr, what, rounds, cli, started)
    text = _report(rows)
    print(text)
    REPORT.write_text(text, encoding="utf-8")
    return 0


def full_pod(cidr: str) -> dict[str, Any]:
    """A stack's configuration that uses every slot of its range: 8 servers, and the hosts of 10 customers."""
    pod: dict[str, Any] = {
        "compartmentId": "ocid1.compartment.oc1..examplebenchpod",
        "cidr": cidr,
        "natVm": {
            "shape": "VM.Standard2.24",
            "imageId": f"ocid1.image.oc1.{REGION}.exampleoraclelinux9",
            "sshPublicKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1lNZ8dvHqYbJ0yQm3m0x8sVt8o5n1s4m3y9r0P2aQd ops@example",
        },
        "management": {
            "cidr": "10.0.0.0/16",
            "vrouter": str(IPNetwork(cidr)[-6]),
            "servers": {f"server{number}": f"10.0.200.{number + 10}" for number in range(SERVERS)},
        },
        "customers": {f"customer{number}": {"cidr": f"10.0.{number}.0/24", "hosts": {}} for number in range(CUSTOMERS)},
    }
    for number in range(PodConfig.from_mapping(pod, "bench").layout.capacity - SERVERS):
        host, customer = divmod(number, CUSTOMERS)
        pod["customers"][f"customer{customer}"]["hosts"][f"vm{host}"] = f"10.0.{customer}.{host + 10}"
    config = PodConfig.from_mapping(pod, "bench")
    book = {name: config.layout.addresses(entry.slot) for name, entry in settle(config).entries.items()}
    pod["addresses"] = {name: {"natVm1": one, "natVm2": two} for name, (one, two) in book.items()}
    return {"oci:region": REGION, **{f"nat-pod:{key}": value for key, value in pod.items()}}


def _compare(cidr: str, what: str, rounds: int, cli: Path, started: float) -> list[tuple[str, ...]]:
    """Rows of the table for one POD.  Ends early rather than take more than the minutes allowed."""
    config = full_pod(cidr)
    pod = Project(REPOSITORY, config)
    seconds: dict[str, list[tuple[float, float]]] = {step: [] for step in STEPS}
    count = 0
    for _ in range(rounds):
        count, of_pod = _measure(pod, cli)
        floor = Project(REPOSITORY / "bench" / "floor", {"oci:region": REGION, "nat-pod-floor:resources": count})
        same, of_floor = _measure(floor, cli)
        if same != count:
            raise SystemExit(f"the floor registers {same} resources, the POD {count}")
        for step in STEPS:
            seconds[step].append((of_pod[step], of_floor[step]))
    slots = len(config["nat-pod:addresses"])
    return [_row(f"{what}, {slots} slots, {count} resources", step, seconds[step]) for step in STEPS]


def _row(what: str, step: str, seconds: list[tuple[float, float]]) -> tuple[str, ...]:
    ratios = [pod / floor for pod, floor in seconds]
    return what, step, f"{median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"


def _measure(project: Project, cli: Path) -> tuple[int, dict[str, float]]:
    """Number of resources, and seconds that each step takes from an empty region on."""
    with tempfile.TemporaryDirectory(prefix="nat-pod-bench-") as scratch:
        base = Path(scratch)
        stack_file = base / "stack.yaml"
        stack_file.write_text(yaml.safe_dump({"config": project.config}), encoding="utf-8")
        RegionFile.make(base / "region", Region(REGION, attach_seconds=0)).close()
        engine = Engine(project.directory, "bench", base / "region", cli, stack_file=stack_file)
        engine.outputs()  # makes the stack, which is not to be measured
        seconds = {
            step: _time(action) for step, action in zip(STEPS, (engine.preview, engine.up, engine.preview), strict=True)
        }
        return sum(1 for resource in engine.resources() if resource["type"].startswith("oci:")), seconds


def _time(action: Callable[[], object]) -> float:
    before = time.perf_counter()
    action()
    taken = time.perf_counter() - before
    print(f"  {taken:6.1f} s", file=sys.stderr, flush=True)
    return taken


def _report(rows: list[tuple[str, ...]]) -> str:
    return str(rows)


if __name__ == "__main__":
    sys.exit(main())
