"""How long the engine takes for a full POD, as a multiple of the floor: `make bench-engine`.

The floor (bench/floor) is a bare Pulumi program that registers as many resources on the same plugin.  The time it takes
is Pulumi's own: the CLI, its Python SDK, the plugin.  So the ratio shows what the component adds, on any machine.  POD
and floor take turns in the same run, each time with a new stack and an empty region.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from bench.pods import REGION, SLASH_21, SLASH_22, full_pod, stack_config
from nat_pod.lab.engine.engine import Engine, find_cli
from nat_pod.lab.region.file import RegionFile
from nat_pod.lab.region.region import Region

REPOSITORY = Path(__file__).resolve().parent.parent
FLOOR = REPOSITORY / "bench" / "floor"
REPORT = Path(__file__).with_suffix(".md")
STEPS = ("preview, nothing there yet", "up", "preview, nothing changed")
LIMIT_SECONDS = 9 * 60
REPORT_TEXT = """\
# How long the engine takes for a full POD

Written by `make bench-engine`. Time of the POD divided by time of the floor, a bare Pulumi program (`floor/`) that
registers as many resources on the same plugin, measured in the same run. 1.00: the component costs nothing.

| POD | slots | resources | step | median | from, to |
|---|---|---|---|---|---|
{rows}

- Rounds: {rounds}. In each, POD and floor run one after the other, taking turns to be first. Each has a new stack and
  an empty simulated region. Time is that of the whole `pulumi` command.
- POD: 8 servers and the hosts of 10 customers take all slots of the range; VM.Standard2.24, layout not pinned, the
  availability domain looked up.
- Floor: one VCN, network security groups and their rules. A rule has about as many properties as a private IP, which is
  what most of a POD is. It asks one data source, as the POD does. It is flat; the POD has two chains of attachments.
- Not measured: OCI. The simulated region takes milliseconds, and answers a data source at once.
- Machine: {machine}.
"""


@dataclass
class Pod:
    """A POD's configuration, and what was measured."""

    name: str
    config: dict[str, Any]
    resources: int = 0
    ratios: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})


def main() -> int:
    """Measure, print the table and write it to engine.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured, at most (default: 3)")
    rounds = parser.parse_args().rounds
    cli = find_cli()
    if rounds < 1 or cli is None:
        print("--rounds is 1 or more" if cli else "no Pulumi CLI: .ci/pulumi/install builds one", file=sys.stderr)
        return 1
    pods = [Pod("/22", stack_config(full_pod(SLASH_22))), Pod("/21", stack_config(full_pod(SLASH_21)))]
    done, started, longest = 0, time.monotonic(), 0.0
    while done < rounds and time.monotonic() - started + longest < LIMIT_SECONDS:
        before = time.monotonic()
        for pod in pods:
            _compare(pod, cli, floor_first=done % 2 == 1)
        longest = max(longest, time.monotonic() - before)
        done += 1
    text = _report(pods, done)
    print(text, end="")
    REPORT.write_text(text, encoding="utf-8")
    return 0


def _compare(pod: Pod, cli: Path, *, floor_first: bool) -> None:
    """One round: POD and floor, one after the other."""
    floor, of_floor = _measure_floor(pod.resources, cli) if floor_first else (0, {})
    pod.resources, of_pod = measure(REPOSITORY, pod.config, cli)
    if not floor_first:
        floor, of_floor = _measure_floor(pod.resources, cli)
    if floor != pod.resources:
        raise SystemExit(f"the floor registers {floor} resources, the POD {pod.resources}")
    for step in STEPS:
        pod.ratios[step].append(of_pod[step] / of_floor[step])
        print(f"{pod.name}, {step}: {pod.ratios[step][-1]:.2f}", file=sys.stderr, flush=True)


def _measure_floor(resources: int, cli: Path) -> tuple[int, dict[str, float]]:
    return measure(FLOOR, {"oci:region": REGION, "nat-pod-floor:resources": resources}, cli)


def measure(directory: Path, config: dict[str, Any], cli: Path) -> tuple[int, dict[str, float]]:
    """Number of resources, and the seconds that each step takes, from an empty region on."""
    with tempfile.TemporaryDirectory(prefix="nat-pod-bench-") as scratch:
        base = Path(scratch)
        stack_file = base / "stack.yaml"
        stack_file.write_text(yaml.safe_dump({"config": config}), encoding="utf-8")
        RegionFile.make(base / "region", Region(REGION)).close()
        engine = Engine(directory, "bench", base / "region", cli, stack_file=stack_file)
        engine.outputs()  # makes the stack, which is not to be measured
        actions = (engine.preview, engine.up, engine.expect_no_changes)
        seconds = {step: _time(action) for step, action in zip(STEPS, actions, strict=True)}
        return sum(1 for resource in engine.resources() if resource["type"].startswith("oci:")), seconds


def _time(action: Callable[[], object]) -> float:
    before = time.perf_counter()
    action()
    return time.perf_counter() - before


def _report(pods: list[Pod], rounds: int) -> str:
    rows = [
        f"| {pod.name} | {len(pod.config['nat-pod:addresses'])} | {pod.resources} | {step} "
        f"| {median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        for pod in pods
        for step, ratios in pod.ratios.items()
    ]
    return REPORT_TEXT.format(rows="\n".join(rows), rounds=rounds, machine=machine())


def machine() -> str:
    """What was measured on, and how busy it was."""
    return (
        f"{processor()}, {os.cpu_count()} processors, load {os.getloadavg()[2]:.1f} over the last 15 minutes; "
        f"{platform.system()}, Python {platform.python_version()}, "
        f"pulumi {version('pulumi')}, pulumi-oci {version('pulumi-oci')}"
    )


def processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
