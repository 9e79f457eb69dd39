"""A POD of 20 customers whose networks overlap, with 1,000 hosts, from stack file to packets: `make bench-large`.

Each step is timed for it and for the example `Pulumi.routed.yaml` (4 customers, 40 hosts), by the clock, as the
engineer waits for it.  So the machine must be idle.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from bench.pods import REPOSITORY, overlapping_pod, project_with, stack_config
from nat_pod.config.stack_file import read_stack
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod

REPORT = Path(__file__).with_suffix(".md")
EXAMPLE, LARGE = "routed", "large"
STEPS = {
    "check": ["check", "{}"],
    "plan": ["plan", "{}"],
    "trace --all": ["trace", "{}", "--all"],
    "lab up": ["lab", "up", "{}"],
    "lab check": ["lab", "check", "{}"],
    "lab down": ["lab", "down", "{}"],
}
REPORT_TEXT = """\
# A POD of 20 customers whose networks overlap, with 1,000 hosts

Written by `make bench-large`. The 20 customers use only five ranges, and in each range the hosts have the same addresses, so that
four customers' hosts cannot be told apart by address. `delivery: routes`, with standbys, {servers} servers, in a /21. Beside it
`Pulumi.routed.yaml`.

| | the example | this POD |
|---|---|---|
| customers | {example[customers]} | {large[customers]} |
| hosts | {example[hosts]} | {large[hosts]} |
| customer gateways | {example[gateways]} | {large[gateways]} |
| NAT VMs | {example[vms]} | {large[vms]} |
| probes of `lab check` | {example[probes]} | {large[probes]} |
| of which as declared, every hop as the tracer predicted | {example[probes]} | {large[probes]} |

| step | time, as a multiple of the example's |
|---|---|
{rows}

- Wall-clock time, measured once. `lab up` includes all its parts: {means}, the neighbours, the namespaces, the NAT VMs' boots.
- `trace --all` finds no packet of this POD that does not fare as declared. It covers every destination outside the sender's
  own network for all members, and every source and destination for an unknown sender in each network.
- Machine: {machine}.
"""  # noqa: E501 - the rows of tables cannot be broken


def main() -> int:
    """Measure, print the tables and write them to large.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--hosts", type=int, default=1_000, help="of all customers together (default: 1000)")
    hosts = parser.parse_args().hosts
    pod = overlapping_pod(hosts=hosts)
    with tempfile.TemporaryDirectory(prefix="nat-pod-bench-") as scratch:
        directory = project_with(Path(scratch), LARGE, yaml.safe_dump({"config": stack_config(pod)}))
        shutil.copy(REPOSITORY / f"Pulumi.{EXAMPLE}.yaml", directory)
        plans = {stack: plan_pod(read_stack(directory, stack).checked(), stack) for stack in (EXAMPLE, LARGE)}
        seconds: dict[str, dict[str, float]] = {}
        said: dict[str, dict[str, str]] = {EXAMPLE: {}, LARGE: {}}
        try:
            for step, arguments in STEPS.items():
                seconds[step] = {}
                for stack in (EXAMPLE, LARGE):
                    began = time.monotonic()
                    said[stack][step] = _run(directory, [word.format(stack) for word in arguments])
                    seconds[step][stack] = time.monotonic() - began
                    print(f"{step} {stack}: {seconds[step][stack]:.1f} s", file=sys.stderr, flush=True)
        finally:
            for stack in (EXAMPLE, LARGE):
                _run(directory, ["lab", "down", stack])
    text = REPORT_TEXT.format(
        servers=len(plans[LARGE].servers),
        example=_about(plans[EXAMPLE], said[EXAMPLE]),
        large=_about(plans[LARGE], said[LARGE]),
        rows="\n".join(f"| `{step}` | {of[LARGE] / of[EXAMPLE]:.1f} |" for step, of in seconds.items()),
        means=re.findall(r"Pulumi\.large\.yaml: (.*?), against", said[LARGE]["lab up"])[0],
        machine=f"{os.cpu_count()} processors, load {os.getloadavg()[1]:.1f}; Python {platform.python_version()}",
    )
    print(text, end="")
    if hosts == 1_000:
        REPORT.write_text(text, encoding="utf-8")
    return 0


def _about(plan: PodPlan, said: dict[str, str]) -> dict[str, str]:
    """What is in a POD, and what its `lab check` counted: it fails unless all of that is as declared."""
    count = re.findall(r", (\d+) probes: all as declared, every hop as the tracer predicted", said["lab check"])
    return {
        "customers": str(len(plan.customer_cidrs)),
        "hosts": f"{len(plan.hosts):,}",
        "gateways": str(len(plan.roles) - 1),
        "vms": str(len(plan.vms)),
        "probes": f"{int(count[0]):,}",
    }


def _run(directory: Path, arguments: list[str]) -> str:
    """One command of the engineer's; what it said.  Raises SystemExit when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "nat_pod", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
