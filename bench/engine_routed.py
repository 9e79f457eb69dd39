"""How long the engine takes for a routed POD, as a part of what the article's takes: part of `make bench-engine`.

Both have the same 435 members and take turns in the same run, each time with a new stack and an empty region.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

from bench.engine import FLOOR, REPOSITORY, STEPS, machine, measure
from bench.pods import REGION, SLASH_22, full_pod, routed_pod, stack_config
from nat_pod.lab.engine.engine import find_cli

_LEAST = 3
REPORT = Path(__file__).with_suffix(".md")
REPORT_TEXT = """\
# How long the engine takes for a routed POD

Written by `make bench-engine`. A POD of 8 servers and 427 hosts of 10 customers with `delivery: routes` and standbys,
beside the article's with the same members, in a /22 each. Each figure is a time divided by that of the article's POD.

| delivery | resources of OCI |
|---|---|
| `privateIps` | {article} |
| `routes`, with standbys | {routed} |

| step | routed, median | from, to | a program of {least} resources | from, to |
|---|---|---|---|---|
{rows}

- The program of {least} resources is a bare one (`floor/`): what Pulumi's CLI, its SDK and the plugin take to start.
- Rounds: {rounds}. Time is that of the whole `pulumi` command, against the simulated region.
- Not measured: OCI. There the article's POD attaches 28 VNICs, one after the other on each VM, and the routed one
  launches four VMs one after the other.
- Machine: {machine}.
"""


def main() -> int:
    """Measure, print the tables and write them to engine_routed.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=2, help="how often both are measured (default: 2)")
    rounds = parser.parse_args().rounds
    cli = find_cli()
    if rounds < 1 or cli is None:
        print("--rounds is 1 or more" if cli else "no Pulumi CLI: .ci/pulumi/install builds one", file=sys.stderr)
        return 1
    programs = {
        "article": (REPOSITORY, stack_config(full_pod(SLASH_22))),
        "least": (FLOOR, {"oci:region": REGION, "nat-pod-floor:resources": _LEAST}),
        "routed": (REPOSITORY, stack_config(routed_pod())),
    }
    resources: dict[str, int] = {}
    ratios: dict[tuple[str, str], list[float]] = {(step, of): [] for step in STEPS for of in ("routed", "least")}
    for number in range(rounds):
        seconds: dict[str, dict[str, float]] = {}
        for name in sorted(programs, reverse=number % 2 == 1):
            resources[name], seconds[name] = measure(*programs[name], cli)
        for step, of in ratios:
            ratios[step, of].append(seconds[of][step] / seconds["article"][step])
            print(f"{step}, {of}: {ratios[step, of][-1]:.2f}", file=sys.stderr, flush=True)
    rows = "\n".join(f"| {step} | {_cell(ratios[step, 'routed'])} | {_cell(ratios[step, 'least'])} |" for step in STEPS)
    text = REPORT_TEXT.format(rows=rows, rounds=rounds, machine=machine(), **resources)
    print(text, end="")
    REPORT.write_text(text, encoding="utf-8")
    return 0


def _cell(found: list[float]) -> str:
    return f"{median(found):.2f} | {min(found):.2f} to {max(found):.2f}"


if __name__ == "__main__":
    sys.exit(main())
