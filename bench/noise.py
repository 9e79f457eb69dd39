"""What others notice of a customer that fills the connection table of its gateway: part of `make bench`.

Two customers of one range stand behind a gateway each.  In turns the first one's table is full and empty, and new
connections of the second one are timed.  While it is empty, as many entries are in the tables of machines that carry
nothing: all namespaces of a kernel share the buckets of their tables, which VMs of a tenancy do not.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median

import yaml

from bench.pods import REPOSITORY, overlapping_pod, project_with, stack_config
from nat_pod.errors import NatPodError
from nat_pod.lab.observe import observe
from nat_pod.lab.surroundings import stand_up
from nat_pod.lab.wire.sandbox import Lab
from nat_pod.names import MANAGEMENT
from nat_pod.trace.flows import stranger_addresses

REPORT = Path(__file__).with_suffix(".md")
CONNECTIONS = 1_000
REPORT_TEXT = """\
# What others notice of a customer that fills its gateway's connection table

Written by `make bench`. Two customers of one range behind a gateway each; the table of the first one's gateway is full ({full:,} entries) or
empty, in turns. The second customer's host opens {connections:,} TCP connections to a management server each time, one after the other.

| | |
|---|---|
| time per new connection, table full, as a multiple of table empty | {ratio:.2f} ({least:.2f}-{most:.2f}) |
| connections that failed | {failed} of {tried:,} |
| new connections that the first customer, whose table is full, could open | {own} of {turns} |

- Median of {turns} turns, with the least and the greatest; each turn is compared with the empty ones before and after it.
- While the table is empty, as many entries are put into connection tables of namespaces without traffic, because all namespaces of a kernel share the hash buckets.
- Not measured: the processor time that the flood itself takes; on OCI that is another VM's.
- Machine: {machine}.
"""  # noqa: E501 - the rows of tables cannot be broken

# Established connections, made by hand until the table has no room: nf_conntrack_max holds for each namespace.
# What was in it goes first: it would expire, and leave room, while somebody looks.
FILL = f"""
import socket, struct, sys
sys.path.insert(0, {str(REPOSITORY / "cloud-init")!r})
from nat_pod_agent import attribute, conntrack
NESTED = 0x8000
def ends(kind, source, destination, ports):
    addresses = attribute(1 | NESTED, attribute(1, source) + attribute(2, destination))
    protocol = attribute(1, b"\\x06") + attribute(2, ports[:2]) + attribute(3, ports[2:])
    return attribute(kind | NESTED, addresses + attribute(2 | NESTED, protocol))
rest = attribute(3, struct.pack("!I", 14)) + attribute(7, struct.pack("!I", 3600))  # assured; for an hour
rest += attribute(4 | NESTED, attribute(1 | NESTED, attribute(1, b"\\x03")))  # established
room = int(open("/proc/sys/net/netfilter/nf_conntrack_max").read())
channel, far = conntrack(), socket.inet_aton("11.0.0.0")
channel.send(struct.pack("=IHHIIBBH", 20, 0x102, 0x5, 0, 0, 2, 0, 0))
batch = b""
for number in range(room + 1000):
    near, port = struct.pack("!I", 0x0C000000 + number // 60000), 1024 + number % 60000
    body = struct.pack("=BBH", 2, 0, 0)
    body += ends(1, near, far, struct.pack("!HH", port, 80)) + ends(2, far, near, struct.pack("!HH", 80, port)) + rest
    batch += struct.pack("=IHHII", 16 + len(body), 0x100, 0x601, number, 0) + body
    if number % 100 == 99:  # no answer is asked for; there is one for those that find no room
        channel.send(batch)
        batch = b""
print(room)
"""

_EMPTY = f"""
import struct, sys
sys.path.insert(0, {str(REPOSITORY / "cloud-init")!r})
from nat_pod_agent import conntrack
conntrack().send(struct.pack("=IHHIIBBH", 20, 0x102, 0x5, 0, 0, 2, 0, 0))
"""
_CONNECT = """
import socket, struct, sys, time
failed, began = 0, time.perf_counter()
for _ in range(int(sys.argv[2])):
    try:
        with socket.create_connection((sys.argv[1], 80), float(sys.argv[3])) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        failed += 1
print(time.perf_counter() - began, failed)
"""


def main() -> int:
    """Measure, print the table and write it to noise.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--turns", type=int, default=12, help="how often the table is filled (default: 12)")
    turns = parser.parse_args().turns
    pod = overlapping_pod(customers=2, ranges=1, hosts=2, servers=1)
    pod["compartmentId"] = "ocid1.compartment.oc1..aaaa"
    with tempfile.TemporaryDirectory(prefix="nat-pod-bench-") as scratch:
        directory = project_with(Path(scratch), "noise", yaml.safe_dump({"config": stack_config(pod)}))
        region, plan, _ = stand_up(directory, "noise")
    (first, second), server = plan.hosts, plan.servers[0]
    assert plan.role(first.member) != plan.role(second.member), "each has a gateway of its own"
    assert server.member.realm == MANAGEMENT
    gateways = [vm.key for vm in plan.vms_of(plan.role(first.member))]
    others = [str(name) for name in stranger_addresses(plan)][: len(gateways)]
    with Lab(observe(region)) as lab:

        def run(vm: str, *arguments: str) -> str:
            done = lab.call("run", vm=vm, argv=[sys.executable, "-c", *arguments], seconds=120)
            if done["status"]:
                raise NatPodError(f"{vm}: {done['stderr']}")
            return str(done["stdout"])

        def connected(vm: str, count: int, seconds: float) -> tuple[float, int]:
            taken, failed = run(vm, _CONNECT, server.nat_vm1, str(count), str(seconds)).split()
            return float(taken), int(failed)

        def move(to: list[str], away: list[str]) -> int:
            for vm in away:
                run(vm, _EMPTY)
            return min([int(run(vm, FILL)) for vm in to])

        connected(second.member, CONNECTIONS, 5)  # the first ones find neighbour tables empty
        move(others, gateways)
        empty, full, failures, own, entries = [connected(second.member, CONNECTIONS, 5)[0]], [], 0, 0, 0
        for turn in range(turns):
            entries = move(gateways, others)
            taken, failed = connected(second.member, CONNECTIONS, 5)
            own += 1 - connected(first.member, 1, 1)[1]
            move(others, gateways)
            again, failed_again = connected(second.member, CONNECTIONS, 5)
            empty.append(again)
            full.append(taken)
            failures += failed + failed_again
            print(f"turn {turn + 1}: {2 * taken / (empty[-2] + again):.2f}", file=sys.stderr, flush=True)
    ratios = [2 * taken / (empty[at] + empty[at + 1]) for at, taken in enumerate(full)]
    text = REPORT_TEXT.format(
        full=entries,
        connections=CONNECTIONS,
        ratio=median(ratios),
        least=min(ratios),
        most=max(ratios),
        failed=failures,
        tried=2 * turns * CONNECTIONS,
        own=own,
        turns=turns,
        machine=f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}",
    )
    print(text, end="")
    REPORT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
