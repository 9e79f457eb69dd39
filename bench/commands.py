"""How long each command takes on a full POD, as a multiple of starting Python and loading: `make bench-commands`.

A command and the floor (`--help`, which loads what every command loads) take turns in the same run, each as its own
process.  User and system time are counted, and not the clock, so that other work on the machine matters less.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import yaml

from bench.pods import full_pod, routed_pod, stack_config

REPOSITORY = Path(__file__).resolve().parent.parent
REPORT = Path(__file__).with_suffix(".md")
FLOOR = ["-m", "nat_pod", "--help"]
COMMANDS = {
    "check": ["check", "full"],
    "allocate": ["allocate", "full"],
    "plan": ["plan", "full"],
    "rules": ["rules", "full", "--vm", "natVm1"],
    "rules --article": ["rules", "full", "--vm", "natVm1", "--article"],
    "trace": ["trace", "full", "customer1/vm1", "management/server1"],
    "trace --steps": ["trace", "full", "customer1/vm1", "management/server1", "--steps"],
    "whois": ["whois", "10.0.0.100"],
    "plan --markdown": ["plan", "full", "--markdown"],
    "plan --svg": ["plan", "full", "--svg", "full.svg"],
    "handover": ["handover", "full", "customer1"],
    "handover management": ["handover", "full", "management"],
    "diff": ["diff", "full", "--base", "HEAD"],
    "import": ["import", "--vm1", "natVm1.save", "--vm2", "natVm2.save"],
    "trace --all": ["trace", "full", "--all"],
    "move": ["move", "full", "routed"],
}
# Of a routed POD `rules` knows no article's lines; nobody builds one by hand or moves it.
NOT_ROUTED = ("rules --article", "import", "move")
KINDS = ("masquerade", "static", "routed")
REPORT_TEXT = """\
# How long each command takes on a full POD

Written by `make bench-commands`. Each figure is the processor time of the command divided by that of
`python -m nat_pod --help` (the *floor*), which loads what every command loads. Both were measured alternately in the
same run. A command loads only what it needs, so it may cost less than 1.0.

| command | masquerade | static | routed |
|---|---|---|---|
{rows}

For a directory of 128 PODs, which fill 198.18.0.0/15, each with ten customers, sixty hosts and five servers:

| command | |
|---|---|
{many}

- Masquerade and static: a /21 of 696 slots, 8 servers, the hosts of 10 customers; {flows} declared flows. Routed: a
  /22 of 936 members, 8 servers, 10 customers, standbys; {routed} declared flows. `diff`: one host was removed.
- Median of {rounds} rounds. The floor took {floor:.2f} s of processor time here.
- `trace --all` covers every destination outside the sender's own network for each member, and every source and
  destination for an unknown sender in each network, by one packet of each class.
- Machine: {machine}.
"""


def main() -> int:
    """Measure, print the table and write it to commands.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    rounds = parser.parse_args().rounds
    many = _many(rounds)
    ratios: dict[str, list[float]] = {}
    floors: list[float] = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory(prefix="nat-pod-bench-") as scratch:
            directory = Path(scratch)
            _prepare(directory, kind)
            commands = {name: words for name, words in COMMANDS.items() if kind != "routed" or name not in NOT_ROUTED}
            measured: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(rounds):
                for name, arguments in commands.items():
                    floor = _seconds(directory, FLOOR)
                    floors.append(floor)
                    measured[name].append(_seconds(directory, ["-m", "nat_pod", *arguments]) / floor)
            for name, values in measured.items():
                ratios.setdefault(name, []).append(median(values))
                print(f"{kind}, {name}: {ratios[name][-1]:.1f}", file=sys.stderr, flush=True)
    text = REPORT_TEXT.format(
        rows="\n".join(f"| `{name}` | {' | '.join(_cells(found))} |" for name, found in ratios.items()),
        many="\n".join(f"| `{name}` | {ratio:.1f} |" for name, ratio in many.items()),
        flows=f"{2 * 8 * 688:,}",
        routed=f"{2 * 8 * 928:,}",
        rounds=rounds,
        floor=median(floors),
        machine=f"{os.cpu_count()} processors, load {os.getloadavg()[1]:.1f}; Python {platform.python_version()}",
    )
    print(text, end="")
    REPORT.write_text(text, encoding="utf-8")
    return 0


def _cells(found: list[float]) -> list[str]:
    return [f"{ratio:.1f}" for ratio in found] + [""] * (len(KINDS) - len(found))


def _prepare(directory: Path, kind: str) -> None:
    """A checkout with the full POD, in which one host is then removed: what `diff` has to find.

    natVm1.save and natVm2.save are what the NAT VMs of that POD run, for `import`.
    """
    shutil.copy(REPOSITORY / "Pulumi.yaml", directory)
    config = stack_config(routed_pod(hosts=928) if kind == "routed" else full_pod(source_nat=kind))
    stack = directory / "Pulumi.full.yaml"
    stack.write_text(yaml.safe_dump({"config": config}), encoding="utf-8")
    git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.com", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "full"]):
        subprocess.run([*git, *arguments], cwd=directory, check=True)
    del config["nat-pod:customers"]["customer0"]["hosts"]["vm0"]
    config["nat-pod:addresses"]["customer0/vm0"]["released"] = True
    stack.write_text(yaml.safe_dump({"config": config}), encoding="utf-8")
    for vm in () if kind == "routed" else ("natVm1", "natVm2"):
        rules = [sys.executable, "-m", "nat_pod", "rules", "full", "--vm", vm]
        with (directory / f"{vm}.save").open("w", encoding="utf-8") as save:
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            subprocess.run(rules, cwd=directory, env=environment, stdout=save, check=True)


def _many(rounds: int) -> dict[str, float]:
    """The commands that read every stack file, on 128 copies of Pulumi.ten.yaml, each with its own range."""
    ten = (REPOSITORY / "Pulumi.ten.yaml").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="nat-pod-bench-") as scratch:
        directory = Path(scratch)
        shutil.copy(REPOSITORY / "Pulumi.yaml", directory)
        for number in range(128):
            (directory / f"Pulumi.pod{number}.yaml").write_text(_moved(ten, number), encoding="utf-8")
        ratios = {}
        for name in ("check", "pods"):
            pairs = [(_seconds(directory, ["-m", "nat_pod", name]), _seconds(directory, FLOOR)) for _ in range(rounds)]
            ratios[name] = median(taken / floor for taken, floor in pairs)
            print(f"128 PODs, {name}: {ratios[name]:.1f}", file=sys.stderr, flush=True)
        return ratios


def _moved(ten: str, number: int) -> str:
    """Pulumi.ten.yaml in the /22 of this number, and no longer an example, because examples take no range."""

    def address(found: re.Match[str]) -> str:
        second, third = divmod(4 * number + int(found[1]) - 4, 256)
        return f"198.{18 + second}.{third}."

    return re.sub(r"198\.18\.([4-7])\.", address, ten).replace("..example", "..aaaa")


def _seconds(directory: Path, arguments: list[str]) -> float:
    """Processor time of one Python process and of the processes that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
