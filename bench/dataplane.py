"""What a NAT POD costs a packet, as a multiple of plain routing: `make bench`.

Each rule set has its own line of namespaces (`line.py`).  All lines exist at once and are timed in turns, in slices of
a few milliseconds whose order is shuffled each round.  Between any two slices the line without rules is timed, and a
slice counts as a multiple of its two neighbours.  So if the machine changes its speed, both change.  A slice does not
count if another process had the core meanwhile, or if its neighbours differ by more than an eighth.  The report has the
median, and the least and the greatest median of five parts of the run.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from statistics import median

from bench.engine import processor
from bench.line import Batch, Line, Side, Way, udp_packet
from bench.rule_sets import ARTICLE, DIRECTIONS, FULL, KINDS, POLICIES, SIZES, Pod, articles, loaded, pod, policed
from nat_pod.config.source_nat import SourceNat
from nat_pod.lab.wire import netns, sandbox
from nat_pod.names import NAT_VM1, SIDES

REPORT = Path(__file__).resolve().parent / "results.md"
NEW = ("udp_new", "echo_new", "connect")
ESTABLISHED = ("udp_same", "udp_unanswered", "echo_same", "throughput")
PLAIN = "plain routing"
CONNTRACK = "conntrack, no NAT"
_SWING = 1 / 8  # most that two neighbours may differ
_PARTS = 5
_NOISY = 0.05
_LEAST = 2 * _PARTS  # slices of everything
_OFFERED = 80_000  # flows of the full flow limit
_FEW_PORTS = 100
_MARKS = (40_000, 50_000, 60_000)


def main() -> int:
    """Measure in our own namespaces, print the tables and write them to results.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=int, default=240, help="how long the rule sets are timed (default: 240)")
    parser.add_argument("--only", default="", help="some rule sets, as a regular expression; results.md stays as it is")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        flags, why = sandbox.way_in()
        if sentence := sandbox.available():
            print(sentence or why, file=sys.stderr)
            return 1
        command = ["unshare", *flags, sys.executable, "-m", "bench.dataplane", "--inside"]
        command += ["--seconds", str(arguments.seconds), "--only", arguments.only]
        return subprocess.run(command, check=False).returncode
    netns.run(["mount", "-t", "tmpfs", "tmpfs", str(netns.NAMESPACES.parent)])
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    random.seed(1)
    try:
        text = _some(arguments.seconds, re.compile(arguments.only)) if arguments.only else _report(arguments.seconds)
    except netns.LabError as error:
        print(error, file=sys.stderr)
        return 1
    print(text, end="")
    if not arguments.only:
        REPORT.write_text(text, encoding="utf-8")
    return 0


# --- the rule sets ---------------------------------------------------------------------------------------------------


_HOST, _SERVER = "10.64.0.1", "10.128.0.1"  # ends of the lines without a POD
_AT_VM1, _AT_VM2 = "10.129.0.1", "10.130.0.1"  # what the server is called before NAT VM1, and between the two


def _bare_line(name: str, texts: Sequence[str], target: str = _SERVER) -> Way:
    """A line without a POD: addresses that do not overlap, and rules written by hand."""
    line = Line(
        name,
        [_HOST],
        [_SERVER],
        Side("10.65.0.1", ("10.128.0.0/9",), texts[0]),
        Side("10.66.0.1", ("10.0.0.0/9",), texts[1]),
    )
    return Way(line, _HOST, target, from_customer=True)


def _by_hand(
    *,
    tests: int = 0,
    test: str = "1.2.3.{}/32",
    depth: int = 0,
    source: str | None = "SNAT --to-source {}",
    guard: bool = False,
) -> list[str]:
    """Hand-written rules for both VMs: DNAT and SNAT, and before the DNAT so many tests, or chains that lead to it."""
    texts = []
    for before, after, hidden in ((_AT_VM1, _AT_VM2, "10.67.0.1"), (_AT_VM2, _SERVER, "10.68.0.1")):
        chains = [f"NATPOD-{level}" for level in range(depth)]
        lines = ["*nat", *(f":{chain} - [0:0]" for chain in chains)]
        lines += [f"-A PREROUTING -s {test.format(count)} -j ACCEPT" for count in range(tests)]
        entered = "PREROUTING"
        for chain in chains:
            lines.append(f"-A {entered} -d {before}/32 -g {chain}")
            entered = chain
        lines.append(f"-A {entered} -d {before}/32 -j DNAT --to-destination {after}")
        if source:
            lines.append(f"-A POSTROUTING -d {after}/32 -j {source.format(hidden)}")
        lines.append("COMMIT")
        if guard:
            lines += [
                "*filter",
                "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT",
                "-A FORWARD -j DROP",
                "COMMIT",
            ]
        texts.append("\n".join([*lines, ""]))
    return texts


# --- timing ----------------------------------------------------------------------------------------------------------


class Stopwatch:
    """All ways, and what was measured on each: multiples of plain routing's new flow, and seconds."""

    def __init__(self, plain: Way) -> None:
        self.plain = plain
        self.jobs: list[tuple[str, str, Callable[[], float]]] = []
        self.multiples: dict[tuple[str, str], list[float]] = {}
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.rounds = self.slices = self.counted = 0

    def add(self, name: str, way: Way, kinds: Sequence[str]) -> None:
        """Have these things timed on a way.  Raises LabError if packets do not get through, which would look fast."""
        way.check()
        for kind in kinds:
            self.jobs.append((name, kind, getattr(way, kind)))
            self.multiples[name, kind], self.seconds[name, kind] = [], []

    def run(self, seconds: float) -> None:
        """Time everything in turns, for so long, or up to twice as long until each has been timed often enough."""
        end = time.monotonic() + seconds
        gc.disable()
        before = self.plain.udp_new()
        while (now := time.monotonic()) < end or min(map(len, self.multiples.values())) < _LEAST:
            if now > end + seconds:
                few = [f"{name} {kind}" for (name, kind), found in self.multiples.items() if len(found) < _LEAST]
                raise netns.LabError(f"too few undisturbed slices of {', '.join(few)}: this machine is too busy")
            random.shuffle(self.jobs)
            for name, kind, measure in self.jobs:
                taken, after = measure(), self.plain.udp_new()
                self.slices += 1
                if math.isfinite(before + taken + after) and abs(after - before) < _SWING * before:
                    self.counted += 1
                    self.multiples[name, kind].append(2 * taken / (before + after))
                    self.seconds[name, kind].append(taken)
                before = after
            self.rounds += 1
        gc.enable()

    def ratio(self, name: str, kind: str, base: str) -> tuple[float, float, float]:
        """How many times as long as `base` a thing takes: median, and least and greatest median of the run's parts."""
        mine, other = self.multiples[name, kind], self.multiples[base, kind]
        parts = [
            median(islice(mine, part, None, _PARTS)) / median(islice(other, part, None, _PARTS))
            for part in range(_PARTS)
        ]
        return median(mine) / median(other), min(parts), max(parts)

    def microseconds(self, name: str, kind: str) -> float:
        """Median time."""
        return median(self.seconds[name, kind]) * 1e6

    def cell(self, name: str, kind: str, base: str) -> str:
        """`1.05 (1.04-1.06)`."""
        middle, least, most = self.ratio(name, kind, base)
        return f"{middle:.2f} ({least:.2f}-{most:.2f})"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


STEPS = {
    "DNAT": _by_hand(source=None),
    "DNAT and SNAT": _by_hand(),
    "DNAT, SNAT, guard": _by_hand(guard=True),
    "DNAT and MASQUERADE": _by_hand(source="MASQUERADE"),
    "DNAT and MASQUERADE --random-fully": _by_hand(source="MASQUERADE --random-fully"),
    "DNAT and SNAT --random-fully": _by_hand(source="SNAT --to-source {} --random-fully"),
    "40 tests of a /32": _by_hand(tests=40),
    "40 tests of a /24": _by_hand(tests=40, test="1.2.{}.0/24"),
    "12 chains": _by_hand(depth=12),
}


def _laid(only: re.Pattern[str]) -> tuple[Stopwatch, dict[tuple[str, int], Pod]]:
    """All lines, each with what is timed on it, and the PODs.  only: those whose name has it, and plain routing."""
    _tell("laying the lines")
    plain = _bare_line("plain", ["", ""])
    watch = Stopwatch(plain)
    watch.add(PLAIN, plain, (*NEW, *ESTABLISHED))
    if only.search(CONNTRACK):
        tracked = "*filter\n-A FORWARD -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
        watch.add(CONNTRACK, _bare_line("ct", [tracked, tracked]), (*NEW, *ESTABLISHED))
    pods = {}
    for kind in (*KINDS, ARTICLE):
        for slots in SIZES[kind]:
            if not only.search(f"{kind} {slots}"):
                continue
            if kind == ARTICLE:
                of = pod(SourceNat.MASQUERADE, slots)
                last = of.hosts[-1], of.servers[-1]
                ways = of.ways(f"a{slots}", last, last, {vm: articles(of, vm) for vm in SIDES})
                more: tuple[str, ...] = ESTABLISHED[:3] if slots == FULL[kind] else ()
            else:
                of = pod(kind, slots)
                ways = of.ways(f"{kind[0]}{slots}", *of.dearest(), {vm: loaded(of.rules[vm]) for vm in SIDES})
                more = ESTABLISHED if slots in (1, FULL[kind]) else ()
            pods[kind, slots] = of
            for direction, way in zip(DIRECTIONS, ways, strict=True):
                watch.add(f"{kind} {slots} {direction}", way, (*NEW, *more))
    for kind in KINDS:
        name, slots = f"{kind} {FULL[kind]} policy", FULL[kind]
        if only.search(name):
            of = policed(kind, slots)
            ways = of.ways(f"p{kind[0]}", *of.dearest(), {vm: loaded(of.rules[vm]) for vm in SIDES})
            for direction, way in zip(DIRECTIONS, ways, strict=True):
                watch.add(f"{name} {direction}", way, NEW)
    for name, texts in STEPS.items():
        if only.search(name):
            watch.add(name, _bare_line(f"s{len(watch.jobs)}", texts, _AT_VM1), ("udp_new",))
    return watch, pods


def _some(seconds: int, only: re.Pattern[str]) -> str:
    """The two tables of ratios for some of the rule sets."""
    watch, _ = _laid(only)
    watch.run(seconds)
    return f"{_new_rows(watch)}\n\n{_established_rows(watch)}\n\n{_spread(watch)}\n"


def _report(seconds: int) -> str:
    watch, pods = _laid(re.compile(""))
    _tell(f"timing {len(watch.jobs)} things for {seconds} seconds")
    watch.run(seconds)
    _tell("loading")
    loads = _load_times(pods)
    _tell("flow limits")
    flows = _flow_limits()
    return TEXT.format(
        new=_new_rows(watch),
        established=_established_rows(watch),
        steps=_step_rows(watch),
        prices=_prices(watch),
        loads=loads,
        flows=flows,
        seconds=seconds,
        rounds=watch.rounds,
        share=f"{watch.counted / watch.slices:.0%}",
        spread=_spread(watch),
        machine=_machine(),
    )


def _spread(watch: Stopwatch) -> str:
    """How far the parts of the run are from one another."""
    spreads = []
    for name, kind in watch.multiples:
        _, least, most = watch.ratio(name, kind, PLAIN)
        spreads.append(most / least - 1)
    wide = sum(spread > _NOISY for spread in spreads)
    return (
        f"The five parts of the run differ by {median(spreads):.1%} in the median, and by more than {_NOISY:.0%} in "
        f"{wide} of {len(spreads)} ratios to plain routing"
    )


def _new_rows(watch: Stopwatch) -> str:
    rows = []
    for name, base in [
        (PLAIN, None),
        (CONNTRACK, None),
        *(
            (f"{kind} {slots} {direction}", f"{kind} 1 {direction}")
            for kind in (*KINDS, ARTICLE)
            for direction in DIRECTIONS
            for slots in (*SIZES[kind], *([] if kind == ARTICLE else [f"{FULL[kind]} policy"]))
        ),
    ]:
        if (name, NEW[0]) not in watch.seconds:
            continue
        base = base if (base, NEW[0]) in watch.seconds else None
        cells = [name]
        for kind in NEW:
            taken = watch.microseconds(name, kind)
            cells.append(f"{1e6 / taken:,.0f}" if kind == "connect" else f"{taken:.2f}")
            cells.append(watch.cell(name, kind, PLAIN))
            cells.append(watch.cell(name, kind, base) if base else "")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _established_rows(watch: Stopwatch) -> str:
    rows = []
    for name in dict.fromkeys(
        name for name, kind, _ in sorted(watch.jobs, key=lambda job: job[:2]) if kind == "echo_same"
    ):
        cells = [name]
        for kind in ESTABLISHED:
            timed = (name, kind) in watch.seconds
            cells.append(watch.cell(name, kind, PLAIN) if timed else "")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _step_rows(watch: Stopwatch) -> str:
    full = FULL[SourceNat.STATIC]
    ways = [
        PLAIN,
        CONNTRACK,
        "DNAT",
        "DNAT and SNAT",
        "DNAT, SNAT, guard",
        "static 1 to host",
        f"static {full} to host",
    ]
    rows, before = [], 0.0
    for name in ways:
        taken = watch.ratio(name, "udp_new", PLAIN)[0] * watch.microseconds(PLAIN, "udp_new")
        rows.append(
            f"| {name} | {watch.cell(name, 'udp_new', PLAIN)} | {taken - before:+.2f} |"
            if before
            else f"| {name} | 1.00 | {taken:.2f} |"
        )
        before = taken
    return "\n".join(rows)


def _prices(watch: Stopwatch) -> str:
    """What one thing costs one VM, in nanoseconds: a difference between two lines, divided."""
    unit = watch.microseconds(PLAIN, "udp_new") * 1000

    def price(name: str, base: str, times: int) -> str:
        ours, theirs = (watch.ratio(of, "udp_new", PLAIN)[0] for of in (name, base))
        return f"{(ours - theirs) * unit / 2 / times:.0f}"

    lines = [
        ("a rule that tests a /32 and does not match", "40 tests of a /32", "DNAT and SNAT", 40),
        ("the same of a /24", "40 tests of a /24", "DNAT and SNAT", 40),
        ("a chain entered with `-g`, its rule included", "12 chains", "DNAT and SNAT", 12),
        ("MASQUERADE instead of SNAT", "DNAT and MASQUERADE", "DNAT and SNAT", 1),
        ("SNAT with `--random-fully`", "DNAT and SNAT --random-fully", "DNAT and SNAT", 1),
        ("MASQUERADE with `--random-fully`", "DNAT and MASQUERADE --random-fully", "DNAT and MASQUERADE", 1),
    ]
    return "\n".join(f"| {what} | {price(name, base, times)} |" for what, name, base, times in lines)


# --- loading ---------------------------------------------------------------------------------------------------------


def _load_times(pods: dict[tuple[str, int], Pod]) -> str:
    """Rows of NAT VM1, the larger one: in one transaction, and the article's lines one by one."""
    rows = []
    for slots in sorted({slots for sizes in SIZES.values() for slots in sizes}):
        for name in (*KINDS, ARTICLE):
            if slots not in SIZES[name]:
                continue
            article, of = name == ARTICLE, pods[name, slots]
            text = articles(of, NAT_VM1) if article else loaded(of.rules[NAT_VM1])
            rules = text.count("\n-A ")
            once = median(_load(["iptables-restore"], text) for _ in range(5)) * 1000
            again = median(_load(["iptables-restore"], text, twice=True) for _ in range(5)) * 1000
            single = ""
            if article:
                some = [line for line in text.splitlines() if line.startswith("-A ")][:200]
                script = "".join(f"iptables -t nat {line}\n" for line in some)
                single = f"{_load(['sh', '-e'], script) * 1000 / len(some):.1f} ms each"
            rows.append(f"| {name} {slots} | {rules} | {once:.0f} | {again:.0f} | {single} |")
    return "\n".join(rows)


def _load(command: list[str], text: str, *, twice: bool = False) -> float:
    netns.ip_batch("netns add load\n")
    try:
        if twice:
            netns.run(command, "load", text)
        before = time.perf_counter()
        netns.run(command, "load", text)
        return time.perf_counter() - before
    finally:
        netns.ip_batch("netns del load\n")


# --- flow limits -----------------------------------------------------------------------------------------------------


def _flow_limits() -> str:
    """Rows: flows of 8 hosts to one server and port, with 100 ports an address, and with all of them."""
    rows = []
    for policy in POLICIES:
        for ports, offered in ((_FEW_PORTS, 12 * _FEW_PORTS), (None, _OFFERED)):
            for random_ports in (False, True) if policy == SourceNat.MASQUERADE else (False,):
                _tell(f"flow limits: {policy}, {ports or 'all'} ports{', --random-fully' if random_ports else ''}")
                rows.append(_flow_limit(policy, ports, offered, random_ports=random_ports))
    return "\n".join(rows)


def _flow_limit(policy: str, ports: int | None, offered: int, *, random_ports: bool) -> str:
    of = pod(policy, 29)
    limit = "" if ports is None else f":40000-{40000 + ports - 1}"
    texts = []
    for vm in SIDES:
        text = loaded(of.rules[vm])
        if limit:
            text = re.sub(r"-j SNAT (--to-source \S+)", rf"-p udp -j SNAT \1{limit}", text)
        texts.append(re.sub(r"(-j SNAT .*)", r"\1 --random-fully", text) if random_ports else text)
    # One host a customer: of more than one they would reach their customer's bound of open flows.
    hosts, server = list({host.name.realm: host for host in of.hosts}.values())[:8], of.servers[-1]
    name = f"f{policy[0]}{ports or 'a'}{'r' if random_ports else ''}"
    line = of.line(name, hosts, [server], dict(zip(SIDES, texts, strict=True)))
    channel = netns.open_socket(line.customer, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    channel.setblocking(True)
    target = of.called(server, NAT_VM1)
    # Ports as Linux hands them out: any of 32768 to 60999, no two of a host the same.
    each = offered // len(hosts)
    flows = [(str(host.address), port) for host in hosts for port in random.sample(range(32768, 61000), each)]
    random.shuffle(flows)
    first, lost, step = None, {}, max(len(flows) // 80, 1)
    for at in range(0, len(flows), step):
        Batch([((target, 0), udp_packet(source, target, port, 5000)) for source, port in flows[at : at + step]]).send(
            channel
        )
        sent = min(at + step, len(flows))
        lost[sent] = sent - line.arrived(line.management)
        first = first or (sent if lost[sent] else None)
    arrived = line.arrived(line.management)
    line.forget_flows()
    name = f"{policy}, {ports or 'all'} ports an address{', --random-fully' if random_ports else ''}"
    shares = [f"{lost[mark] / mark:.1%}" if mark in lost else "" for mark in _MARKS]
    cells = [name, f"{len(flows):,}", f"{arrived:,}", f"before {first:,}" if first else "none", *shares]
    return f"| {' | '.join(cells)} |"


def _machine() -> str:
    tool = netns.run(["iptables", "--version"]).strip()
    return (
        f"{processor()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} over the last minute (1.0 is this "
        f"benchmark); {platform.system()} {platform.release()}, {tool}, Python {platform.python_version()}"
    )


TEXT = """\
# What a NAT POD costs a packet

Written by `make bench`. Two NAT VMs in series between a customer's host and a management server, four network
namespaces in a row, everything on one core. All figures are medians; `1.05 (1.04-1.06)` is a ratio with the least and the greatest
median of five parts of the run. Absolute times include both ends, both VMs and the system calls, so compare the ratios.

## New flows

*UDP*: the first packet, one way. *Ping*: the first echo request and its reply. *TCP*: socket, connect, accept, close. With the compiled
rules, the flow measured is the one that meets the most rules; with the article's lines, it is the one that matches the last line. *x one slot* compares a POD with a POD of one
host and one server.

| rules, slots, direction | UDP us | x plain | x one slot | ping us | x plain | x one slot | TCP a second | x plain | x one slot |
|---|---|---|---|---|---|---|---|---|---|
{new}

## Flows that exist

Only a flow's first packet meets the nat table. Time as a multiple of plain routing. *Unanswered*: nothing has come back yet, so
that to conntrack each packet is new, and meets the rules of FORWARD again.

| rules, slots, direction | UDP packet | unanswered | ping, round trip | TCP, 1 MB sent and read |
|---|---|---|---|---|
{established}

## What lies between plain routing and a POD

UDP, first packet. `static 1` is a POD of one slot, `static {full}` a full one.

| rules on both VMs | x plain | us added to the row above |
|---|---|---|
{steps}

What one thing costs on one VM, first packet of a flow, in nanoseconds:

| thing | ns |
|---|---|
{prices}

## Loading the rules of NAT VM1

Milliseconds, in a new namespace, median of 5; *again* is a reload over the same rules. *one by one* is one `iptables` command per line, for the first 200 of the article's lines.

| rules, slots | rules | iptables-restore | again | one by one |
|---|---|---|---|---|
{loads}

## How many flows at a time to one server and port

8 hosts of 8 customers, UDP, source ports as Linux hands them out. *Few ports* are the benchmark's own `--to-source ADDRESS:PORTS`; NETMAP has none.

| source policy, ports per source address | flows offered | arrived | first drop | lost of 40,000 | lost of 50,000 | lost of 60,000 |
|---|---|---|---|---|---|---|
{flows}

## How it was measured

- Rule sets take turns in slices of a few milliseconds, {rounds} shuffled rounds in {seconds} seconds. Each slice is a multiple of plain routing just
  before and just after it. {share} of the slices counted; the others had another process on their core, or neighbours that differ by more
  than an eighth.
- {spread}.
- UDP and ping: one `sendmmsg` sends 256 packets, each a flow of its own, and returns when all have gone their whole way. TCP: one by one.
- Where it may, the benchmark takes its core with real-time priority for the length of a slice.
- Not measured: OCI's network and VNICs, Oracle's kernels, a second core working in parallel. Flowtables: where this kernel has none, `nft`
  refuses them.
- Machine: {machine}.
""".replace("{full}", str(FULL[SourceNat.STATIC]))  # noqa: E501 - the rows of tables cannot be broken


if __name__ == "__main__":
    sys.exit(main())
