"""The agent's own decisions, without a kernel: what it accepts, what it writes, what it would delete."""

import ast
import bz2
import hashlib
import http.client
import importlib.util
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from nat_pod.config.model import PodConfig
from nat_pod.lab.wire import imds
from nat_pod.plan.document import fold, from_printable, printable, read_document, rule_document, unfold
from nat_pod.plan.fingerprint import fingerprint
from nat_pod.plan.planner import plan_pod

SOURCE = Path(__file__).resolve().parent.parent / "cloud-init/nat_pod_agent.py"
spec = importlib.util.spec_from_file_location("nat_pod_agent", SOURCE)
agent = importlib.util.module_from_spec(spec)
spec.loader.exec_module(agent)

HOOKS = [
    ("filter", "FORWARD", "NATPOD-FORWARD"),
    ("nat", "PREROUTING", "NATPOD-PRE"),
    ("nat", "POSTROUTING", "NATPOD-POST"),
]
CHAINS = {"filter": ["NATPOD-FORWARD"], "nat": ["NATPOD-PRE", "NATPOD-POST", "NATPOD-V-198.18.0.0/27"]}


def text_of(filter_rules=(), nat_rules=(), chains=CHAINS) -> str:
    lines = []
    for table, rules in (("filter", filter_rules), ("nat", nat_rules)):
        lines += [f"*{table}", *(f":{chain} - [0:0]" for chain in chains[table]), *rules, "COMMIT"]
    return "\n".join(lines) + "\n"


def document(text, hooks=HOOKS, vm="natVm1"):
    return agent.Document(rule_document(vm, hooks, text)[0], "natVm1")


def number(address: str) -> int:
    return agent.number(address)


# --- the file itself -------------------------------------------------------------------------------------------------


def test_it_is_python_3_6_and_imports_the_standard_library_only():
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 6))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."])
    }
    assert imported <= sys.stdlib_module_names
    assert "ipaddress" not in imported
    # What the syntax check does not see: things that the libraries of 3.6 did not have yet.
    words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    words |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    later = {"capture_output", "text", "removeprefix", "removesuffix", "fromisoformat", "missing_ok", "dirs_exist_ok",
             "is_relative_to", "strict", "bit_count", "cached_property"}  # fmt: skip
    assert not words & later


def interpreters() -> list[str]:
    """Every Python from 3.6 on this machine: on PATH, and pyenv's."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders += (Path.home() / ".pyenv/versions").glob("3.*/bin")
    found = [sys.executable, "/usr/libexec/platform-python"]
    found += [str(path) for folder in folders for path in folder.glob("python3.*") if path.suffix[1:].isdecimal()]
    by_version = {}
    for path in filter(os.path.exists, found):
        asked = subprocess.run([path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True)
        if asked.returncode == 0:
            by_version.setdefault(asked.stdout.decode().strip(), path)
    return sorted(by_version.values())


PURE_PART = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("nat_pod_agent", sys.argv[1])
agent = importlib.util.module_from_spec(spec)
spec.loader.exec_module(agent)
given, found = json.load(sys.stdin), []
for value in given["documents"]:
    document = agent.Document(value)
    found.append([document.generation, document.count(), agent.transaction(document, {})])
    found += [document.translate(agent.number(a), agent.number(b), set()) for a, b in given["flows"]]
found.append(agent.read_vnics(given["vnics"]))
for wrong in given["documents"][0][:-40], given["documents"][0].replace("4:", "1:", 1):
    try:
        agent.Document(wrong)
    except agent.AgentError as problem:
        found.append(type(problem).__name__)
found.append(agent.main(["no", "such"]))
print(json.dumps(found))
"""


@pytest.mark.sweep
@pytest.mark.runs_commands
def test_it_does_the_same_under_each_python_of_this_machine(dev, ten):
    """Oracle Linux 8 has 3.6, 9 has 3.9, Ubuntu 3.10 and 3.12."""
    plans = [plan_pod(PodConfig.from_mapping(config, name), name) for config, name in ((dev, "dev"), (ten, "ten"))]
    given = {
        "documents": [vm.metadata["nat-pod-rules"] for plan in plans for vm in plan.vms],
        "flows": [("10.0.0.100", "198.18.0.2"), ("198.18.0.130", "198.18.0.3"), ("10.9.9.9", "198.18.0.2")],
        "vnics": json.dumps(VNICS),
    }
    answers = {}
    for path in interpreters():
        command = [path, "-I", "-X", "utf8", "-W", "error", "-c", PURE_PART, str(SOURCE)]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{path}: {done.stderr}"
        answers[path] = done.stdout
    expected = json.loads(answers[sys.executable])
    assert expected[-3:] == ["AgentError", "AgentError", 2]
    assert {path for path, answer in answers.items() if json.loads(answer) != expected} == set()
    print("the agent ran under", ", ".join(answers))


def test_it_talks_to_nobody_but_the_metadata_service():
    assert "environ.get" not in SOURCE.read_text()
    assert agent.IMDS == "169.254.169.254"


# --- what it accepts -------------------------------------------------------------------------------------------------

V = "NATPOD-V-198.18.0.0/27"
TWINS = {
    # name: (table, refused rule, accepted twin)
    "a chain that is not ours": ("nat", "-A PREROUTING -j ACCEPT", "-A NATPOD-PRE -j ACCEPT"),
    "a chain not declared": ("nat", "-A NATPOD-NO -j ACCEPT", "-A NATPOD-PRE -j ACCEPT"),
    "a way into a chain not declared": ("nat", "-A NATPOD-PRE -g NATPOD-NO", f"-A NATPOD-PRE -g {V}"),
    "a way into a chain of the other table": ("nat", "-A NATPOD-PRE -g NATPOD-FORWARD", f"-A NATPOD-PRE -g {V}"),
    "a way into a foreign chain": ("filter", "-A NATPOD-FORWARD -g DOCKER", "-A NATPOD-FORWARD -j DROP"),
    "a jump instead of a goto": ("nat", f"-A NATPOD-PRE -j {V}", f"-A NATPOD-PRE -g {V}"),
    "no target": ("nat", "-A NATPOD-PRE -s 10.0.0.0/8", "-A NATPOD-PRE -s 10.0.0.0/8 -j ACCEPT"),
    "two targets": ("nat", f"-A NATPOD-PRE -j ACCEPT -g {V}", "-A NATPOD-PRE -j ACCEPT"),
    "a target of the other table": (
        "filter", "-A NATPOD-FORWARD -j SNAT --to-source 10.0.0.1", "-A NATPOD-FORWARD -j ACCEPT"),
    "MASQUERADE, whose choice nobody knows beforehand": (
        "nat", "-A NATPOD-PRE -j MASQUERADE", "-A NATPOD-PRE -j SNAT --to-source 10.0.0.1"),
    "drop in nat": ("nat", "-A NATPOD-PRE -j DROP", "-A NATPOD-PRE -j ACCEPT"),
    "an interface in nat": ("nat", "-A NATPOD-PRE -i ens3 -j ACCEPT", "-A NATPOD-PRE -j ACCEPT"),
    "an interface name with more": (
        "filter", "-A NATPOD-FORWARD -i ens3;reboot -j DROP", "-A NATPOD-FORWARD -i ens3 -j DROP"),
    "an interface called like an option": (
        "filter", "-A NATPOD-FORWARD -i -g -j DROP", "-A NATPOD-FORWARD -i g- -j DROP"),
    "a comment called like an option": (
        "nat", "-A NATPOD-PRE -m comment --comment -j -j ACCEPT", "-A NATPOD-PRE -m comment --comment j- -j ACCEPT"),
    "an option nobody knows": ("filter", "-A NATPOD-FORWARD -o ens3 -j DROP", "-A NATPOD-FORWARD -i ens3 -j DROP"),
    "a module nobody knows": (
        "filter", "-A NATPOD-FORWARD -m u32 -j DROP", "-A NATPOD-FORWARD -m conntrack --ctstate NEW -j DROP"),
    "other TCP flags": (
        "filter", "-A NATPOD-FORWARD -p tcp -m tcp --tcp-flags SYN SYN -j DROP",
        "-A NATPOD-FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP"),
    "a negation of TCP flags": (
        "filter", "-A NATPOD-FORWARD -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP",
        "-A NATPOD-FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP"),
    "TCP flags in nat": (
        "nat", "-A NATPOD-PRE -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT", "-A NATPOD-PRE -j ACCEPT"),
    "a negation": ("nat", "-A NATPOD-PRE ! -s 10.0.0.0/8 -j ACCEPT", "-A NATPOD-PRE -s 10.0.0.0/8 -j ACCEPT"),
    "an option twice": (
        "nat", "-A NATPOD-PRE -s 10.0.0.0/8 -s 10.0.0.0/8 -j ACCEPT", "-A NATPOD-PRE -s 10.0.0.0/8 -j ACCEPT"),
    "an address with 256": (
        "nat", "-A NATPOD-PRE -s 10.0.0.256/32 -j ACCEPT", "-A NATPOD-PRE -s 10.0.0.255/32 -j ACCEPT"),
    "an address with a leading zero": (
        "nat", "-A NATPOD-PRE -s 10.0.0.010/32 -j ACCEPT", "-A NATPOD-PRE -s 10.0.0.10/32 -j ACCEPT"),
    "a prefix of 33": ("nat", "-A NATPOD-PRE -s 10.0.0.1/33 -j ACCEPT", "-A NATPOD-PRE -s 10.0.0.1/32 -j ACCEPT"),
    "bits behind the prefix": (
        "nat", "-A NATPOD-PRE -s 10.0.0.1/24 -j ACCEPT", "-A NATPOD-PRE -s 10.0.0.0/24 -j ACCEPT"),
    "a host name": ("nat", "-A NATPOD-PRE -s mgmt -j ACCEPT", "-A NATPOD-PRE -s 10.0.0.1 -j ACCEPT"),
    "DNAT without an address": (
        "nat", "-A NATPOD-PRE -j DNAT", "-A NATPOD-PRE -j DNAT --to-destination 10.0.0.1"),
    "DNAT with the other option": (
        "nat", "-A NATPOD-PRE -j DNAT --to-source 10.0.0.1", "-A NATPOD-PRE -j SNAT --to-source 10.0.0.1"),
    "DNAT to a network": (
        "nat", "-A NATPOD-PRE -j DNAT --to-destination 10.0.0.0/24", "-A NATPOD-PRE -j NETMAP --to 10.0.0.0/24"),
    "DNAT with a port": (
        "nat", "-A NATPOD-PRE -j DNAT --to-destination 10.0.0.1:22", "-A NATPOD-PRE -j DNAT --to-destination 10.0.0.1"),
    "ACCEPT with an address": ("nat", "-A NATPOD-PRE -j ACCEPT --to 10.0.0.0/24", "-A NATPOD-PRE -j ACCEPT"),
    "a comment that ends early": (
        "nat", '-A NATPOD-PRE -m comment --comment "a" b" -j ACCEPT',
        '-A NATPOD-PRE -m comment --comment "a b" -j ACCEPT'),
    "a comment with a backslash": (
        "nat", '-A NATPOD-PRE -m comment --comment "a\\" -j ACCEPT',
        '-A NATPOD-PRE -m comment --comment "a/" -j ACCEPT'),
    "a comment of 256 characters": (
        "nat", f'-A NATPOD-PRE --comment "{"a" * 256}" -j ACCEPT', f'-A NATPOD-PRE --comment "{"a" * 255}" -j ACCEPT'),
    "two spaces": ("nat", "-A NATPOD-PRE  -j ACCEPT", "-A NATPOD-PRE -j ACCEPT"),
    "a space at the end": ("nat", "-A NATPOD-PRE -j ACCEPT ", "-A NATPOD-PRE -j ACCEPT"),
    "a carriage return": ("nat", "-A NATPOD-PRE -j ACCEPT\r", "-A NATPOD-PRE -j ACCEPT"),
    "an insertion": ("nat", "-I NATPOD-PRE 1 -j ACCEPT", "-A NATPOD-PRE -j ACCEPT"),
    "a policy": ("filter", ":FORWARD ACCEPT [0:0]", "-A NATPOD-FORWARD -j ACCEPT"),
    "a chain declared twice": ("filter", ":NATPOD-FORWARD - [0:0]", ":NATPOD-OTHER - [0:0]"),
    "a chain name of 29 characters": ("nat", f":NATPOD-{'x' * 22} - [0:0]", f":NATPOD-{'x' * 21} - [0:0]"),
    "a chain with counters": ("nat", ":NATPOD-OTHER - [1:1]", ":NATPOD-OTHER - [0:0]"),
    "a comment line": ("nat", "# hello", "-A NATPOD-PRE -j ACCEPT"),
    "an empty line": ("nat", "", "-A NATPOD-PRE -j ACCEPT"),
    "another table": ("nat", "COMMIT\n*mangle", "-A NATPOD-PRE -j ACCEPT"),
    "a circle of chains": (
        "nat", f"-A NATPOD-PRE -g {V}\n-A {V} -g NATPOD-PRE", f"-A NATPOD-PRE -g {V}\n-A {V} -g NATPOD-POST"),
}  # fmt: skip


@pytest.mark.parametrize(("table", "refused", "accepted"), TWINS.values(), ids=TWINS.keys())
def test_the_grammar_refuses_and_accepts_the_twin(table, refused, accepted):
    with pytest.raises(agent.AgentError):
        document(text_of(**{f"{table}_rules": refused.split("\n")}))
    assert document(text_of(**{f"{table}_rules": accepted.split("\n")})).generation


def one_behind_the_other(count: int) -> str:
    names = ["NATPOD-PRE", *(f"NATPOD-{number}" for number in range(1, count))]
    gotos = [f"-A {one} -g {next_one}" for one, next_one in itertools.pairwise(names)]
    return text_of(nat_rules=gotos, chains=CHAINS | {"nat": [*names, "NATPOD-POST"]})


@pytest.mark.parametrize("count", [16, 3600])
def test_more_chains_in_one_another_than_the_kernel_takes_are_refused(count):
    assert document(one_behind_the_other(15)).count() == 14
    with pytest.raises(agent.AgentError, match="chains form a loop, or are nested more than 15 deep: NATPOD-"):
        document(one_behind_the_other(count))


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("0.1.2.3", "1.1.2.3"),
        ("127.0.0.1", "128.0.0.1"),
        ("169.254.169.254", "169.253.169.254"),
        ("169.254.0.2", "169.255.0.2"),
        ("224.0.0.1", "223.255.255.254"),
        ("239.255.255.255", "100.64.0.1"),
        ("255.255.255.255", "198.18.0.255"),
    ],
)
@pytest.mark.parametrize("option", ["DNAT --to-destination {}", "SNAT --to-source {}", "NETMAP --to {}/32"])
def test_targets_that_would_hand_out_the_vm_itself(option, bad, good):
    with pytest.raises(agent.AgentError, match="is not an address to translate to"):
        document(text_of(nat_rules=[f"-A NATPOD-PRE -j {option.format(bad)}"]))
    document(text_of(nat_rules=[f"-A NATPOD-PRE -j {option.format(good)}"]))


def test_a_network_that_contains_a_forbidden_one_is_refused_too():
    with pytest.raises(agent.AgentError):
        document(text_of(nat_rules=["-A NATPOD-PRE -j NETMAP --to 160.0.0.0/4"]))
    with pytest.raises(agent.AgentError):
        document(text_of(nat_rules=["-A NATPOD-PRE -j NETMAP --to 0.0.0.0/0"]))


HOOK_TWINS = {
    "a built-in chain we do not hook": ("filter", "PREROUTING", "NATPOD-FORWARD"),
    "the wrong table": ("nat", "FORWARD", "NATPOD-PRE"),
    "no such table": ("mangle", "FORWARD", "NATPOD-PRE"),
    "a chain not declared": ("nat", "PREROUTING", "NATPOD-NO"),
    "a foreign chain": ("filter", "FORWARD", "DOCKER"),
}


@pytest.mark.parametrize("hook", HOOK_TWINS.values(), ids=HOOK_TWINS.keys())
def test_hooks(hook):
    with pytest.raises(agent.AgentError, match="hook"):
        document(text_of(), [hook])
    assert document(text_of(), [("filter", "INPUT", "NATPOD-FORWARD")]).hooks["filter"] == {"INPUT": "NATPOD-FORWARD"}


@pytest.mark.parametrize(
    "rule",
    [
        "-A NATPOD-SAID -j DROP",
        "-A NATPOD-SAID -p tcp -m tcp --dport 80 -j DROP",
        "-A NATPOD-SAID -p icmp -g NATPOD-FORWARD",
    ],
)
def test_a_document_cannot_cut_the_vm_off_from_its_metadata(rule):
    """What is entered from OUTPUT may match ICMP only: the agent's requests to IMDS leave by it."""
    chains = {**CHAINS, "filter": ["NATPOD-FORWARD", "NATPOD-SAID"]}
    hook = ("filter", "OUTPUT", "NATPOD-SAID")
    with pytest.raises(agent.AgentError, match="entered from OUTPUT may match ICMP only"):
        document(text_of([rule], chains=chains), [hook])
    kept = document(text_of(["-A NATPOD-SAID -p icmp -j DROP"], chains=chains), [hook])
    assert kept.hooks["filter"] == {"OUTPUT": "NATPOD-SAID"}


def test_a_hook_twice_is_refused():
    with pytest.raises(agent.AgentError, match="hook"):
        document(text_of(), [HOOKS[0], HOOKS[0]])


@pytest.mark.parametrize(
    "text",
    ["", "*filter\nCOMMIT\n",
     "*nat\nCOMMIT\n*filter\nCOMMIT\n", "*filter\nCOMMIT\n*nat\nCOMMIT", "*filter\n*nat\nCOMMIT\n",
     "*filter\nCOMMIT\n*nat\n", "*filter\nCOMMIT\n*nat\nCOMMIT\n*nat\nCOMMIT\n", "-A X\n"],
)  # fmt: skip
def test_blocks(text):
    with pytest.raises(agent.AgentError):
        document(text, [])
    # An empty rule set is fine when it says so.
    assert document("*filter\nCOMMIT\n*nat\nCOMMIT\n", []).count() == 0


def packed(body, head="4:") -> str:
    text = body if isinstance(body, bytes) else json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return head + printable(bz2.compress(text))


def signed(**changes) -> str:
    body = {"vm": "natVm1", "hooks": [list(hook) for hook in HOOKS], "rules": text_of()} | changes
    plain = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return packed(body | {"generation": hashlib.sha256(plain).hexdigest()[:16]})


ENVELOPES = {
    "nothing": "",
    "another format": packed({}, "1:"),
    "not base85": '3:~~~~"',
    "a sign that JSON writes at length": signed()[:20] + "<" + signed()[20:],
    "base85 with a space": signed()[:20] + " " + signed()[20:],
    "not bz2": "4:" + printable(b"hello"),
    "cut short": signed()[: len(signed()) // 8 * 4 + 2],
    "something behind it": "4:" + printable(from_printable(signed()[2:]) + b"x"),
    "a bomb": packed(b" " * (agent.DOCUMENT_LIMIT + 1)),
    "not JSON": packed(b"hello"),
    "JSON nested without end": packed(b"[" * 200_000),
    "a list": packed([]),
    "a key too many": signed(extra=1),
    "a health port of the system's": signed(health=80),
    "a health port that is no number": signed(health="8198"),
    "a health port that is a yes": signed(health=True),
    "a wrong generation": packed(json.loads(bz2.decompress(from_printable(signed()[2:]))) | {"vm": "natVm2"}),
    "a generation that is no text": packed({"vm": "x", "hooks": [], "rules": "", "generation": 1}),
    "another VM": signed(vm="natVm2"),
    "rules that are no text": signed(rules=1),
    "hooks that are no list": signed(hooks={}),
    "a hook that is not a list": signed(hooks=["FORWARD"]),
    "a hook of wrong things": signed(hooks=[[1, [], {}]]),
    "a hook into a chain that is no text": signed(hooks=[["filter", "FORWARD", {}]]),
}


@pytest.mark.parametrize("value", ENVELOPES.values(), ids=ENVELOPES.keys())
def test_documents_that_are_refused_whole(value):
    with pytest.raises(agent.AgentError):
        agent.Document(value, "natVm1")
    assert agent.Document(signed(), "natVm1").generation


def test_what_guest_writes_the_agent_reads():
    value, generation = rule_document("natVm1", HOOKS, text_of())
    assert agent.Document(value, "natVm1").generation == generation == read_document(value).generation


@pytest.mark.parametrize("policy", ["masquerade", "static"])
def test_what_the_compiler_writes_the_agent_reads_and_understands(dev, policy):
    plan = plan_pod(PodConfig.from_mapping(dev | {"sourceNat": policy}, "dev"), "dev")
    one, two = (agent.Document(vm.metadata["nat-pod-rules"], vm.key) for vm in plan.vms)
    assert [one.count(), two.count()] == [vm.rules.rule_count() for vm in plan.vms]
    # customer1/vm1 to the server mgmt, hop by hop (article, case 1), and back to the host (case 2).  vm1 and mgmt have
    # the slot of the primary addresses, so under either policy they are what the other side sees.
    for vm, source, destination, expected in (
        (one, "10.0.0.100", "198.18.0.2", ("198.18.0.2", "198.18.0.130")),
        (two, "198.18.0.2", "198.18.0.130", ("198.18.0.130", "10.0.0.100")),
        (two, "10.0.0.100", "198.18.0.131", ("198.18.0.130", "198.18.0.3")),
        (one, "198.18.0.130", "198.18.0.3", ("198.18.0.2", "10.0.1.100")),
    ):
        assert vm.translate(number(source), number(destination), set()) == tuple(map(number, expected))


SHORT = """*filter
:NATPOD-FORWARD
-j DROP
COMMIT
*nat
:NATPOD-PRE
-s 10.0.0.0/25 -g NATPOD-C-a
-d 198.18.0.0/27 >NATPOD-V-
-s 198.18.0.0/27 -m comment --comment "x" -g NATPOD-V-198.18.0.0/27
:NATPOD-V-198.18.0.0/27
-d 198.18.0.2/32 -m comment --comment "a/vm1" -j DNAT --to-destination 10.0.0.100
-d +2 -m comment --comment "a/vm3" -j DNAT --to-destination 10.0.0.103
-d +5 -m comment --comment "a/vm4" -j DNAT --to-destination 10.0.0.120
-d 198.18.0.5/32 -m comment --comment "b/vm1" -j DNAT --to-destination 10.0.0.128
:NATPOD-C-a
-s 10.0.0.96/27 % -g NATPOD-SERVERS
:NATPOD-H-a
-s 10.0.0.103/32 % -j SNAT --to-source %
-s 10.0.0.100/32 % -j SNAT --to-source %
-s 10.0.0.101/32 -m comment --comment "a/vm2" -j SNAT --to-source 198.18.0.3
-s 10.0.0.120/32 -m comment --comment "not its name" -j SNAT --to-source 198.18.0.9
:NATPOD-SERVERS
COMMIT
"""
LONG = """*filter
:NATPOD-FORWARD - [0:0]
-A NATPOD-FORWARD -j DROP
COMMIT
*nat
:NATPOD-PRE - [0:0]
:NATPOD-V-198.18.0.0/27 - [0:0]
:NATPOD-C-a - [0:0]
:NATPOD-H-a - [0:0]
:NATPOD-SERVERS - [0:0]
-A NATPOD-PRE -s 10.0.0.0/25 -g NATPOD-C-a
-A NATPOD-PRE -d 198.18.0.0/27 -g NATPOD-V-198.18.0.0/27
-A NATPOD-PRE -s 198.18.0.0/27 -m comment --comment "x" -g NATPOD-V-198.18.0.0/27
-A NATPOD-V-198.18.0.0/27 -d 198.18.0.2/32 -m comment --comment "a/vm1" -j DNAT --to-destination 10.0.0.100
-A NATPOD-V-198.18.0.0/27 -d 198.18.0.4/32 -m comment --comment "a/vm3" -j DNAT --to-destination 10.0.0.103
-A NATPOD-V-198.18.0.0/27 -d 198.18.0.9/32 -m comment --comment "a/vm4" -j DNAT --to-destination 10.0.0.120
-A NATPOD-V-198.18.0.0/27 -d 198.18.0.5/32 -m comment --comment "b/vm1" -j DNAT --to-destination 10.0.0.128
-A NATPOD-C-a -s 10.0.0.100/32 -m comment --comment "a/vm1" -g NATPOD-SERVERS
-A NATPOD-C-a -s 10.0.0.103/32 -m comment --comment "a/vm3" -g NATPOD-SERVERS
-A NATPOD-C-a -s 10.0.0.120/32 -m comment --comment "a/vm4" -g NATPOD-SERVERS
-A NATPOD-H-a -s 10.0.0.103/32 -m comment --comment "a/vm3" -j SNAT --to-source 198.18.0.4
-A NATPOD-H-a -s 10.0.0.100/32 -m comment --comment "a/vm1" -j SNAT --to-source 198.18.0.2
-A NATPOD-H-a -s 10.0.0.101/32 -m comment --comment "a/vm2" -j SNAT --to-source 198.18.0.3
-A NATPOD-H-a -s 10.0.0.120/32 -m comment --comment "not its name" -j SNAT --to-source 198.18.0.9
COMMIT
"""


def test_a_document_says_each_thing_once_and_the_agent_and_the_plan_read_the_same():
    """Together only what is a whole network's, in order, and says the same."""
    assert fold(LONG) == SHORT
    assert agent.unfold(SHORT) == unfold(SHORT) == LONG
    assert agent.unfold(LONG) == unfold(LONG) == LONG, "what is not short stays as it is"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("short", "reason"),
    [
        # Nothing translates to 10.0.1.0/24: the sign stands for nothing.
        (SHORT.replace("10.0.0.96/27 % -g", "10.0.1.0/24 % -g"), "not a list of options and values"),
        (SHORT.replace("10.0.0.96/27 % -g", "10.0.0.100/27 % -g"), "has host bits set"),
        (SHORT.replace("10.0.0.96/27 % -g", "vm1 % -g"), "'vm1' is not an IPv4 address"),
        (SHORT.replace("--to-destination 10.0.0.103", "--to-destination 10.0.0.256"), "is not an IPv4 address"),
        (SHORT.replace("*nat\n:NATPOD-PRE\n", "*nat\n"), "chain NATPOD-FORWARD is not declared above"),
        (SHORT.replace(">NATPOD-V-", ">NATPOD-X-"), "chain NATPOD-X-198.18.0.0/27 is not declared above"),
        (SHORT.replace("-d 198.18.0.0/27 >", "-d 198.18.0.1/27 >"), "has host bits set"),
        (SHORT.replace(">NATPOD-V-", "> NATPOD-V-"), "'>' does not belong in table nat"),
        (SHORT + "-j DROP\n", r"no further table is expected"),
        # Short things that would become long: 4 MB of them would be more memory than the VM has.
        (SHORT.replace(":NATPOD-C-a\n", f":NATPOD-{'a' * 1000}\n"), "does not match NATPOD-"),
        (
            SHORT.replace(":NATPOD-C-a\n", ":NATPOD-C-a\n-m statistic --mode random --probability -g -j DROP\n"),
            "'-g' does not match",
        ),
        (SHORT.replace('"a/vm1"', f'"{"a" * 100}"'), "not a list of options and values"),
        (SHORT.replace("--to-source %", "--to-source %%"), "is not an IPv4 address"),
        (SHORT.replace(":NATPOD-SERVERS\n", "-s 0.0.0.0/0 % -j ACCEPT\n" * 20_000 + ":NATPOD-SERVERS\n"),
         "its rules have more than 4194304 bytes"),
    ],
)  # fmt: skip
def test_a_short_form_that_leaves_something_open_is_refused(short, reason):
    hooks = [["filter", "FORWARD", "NATPOD-FORWARD"]]
    assert agent.Document(signed(rules=SHORT, hooks=hooks)).count() == 15
    with pytest.raises(agent.AgentError, match=reason):
        agent.Document(signed(rules=short, hooks=hooks))


# --- what it writes --------------------------------------------------------------------------------------------------

DROP = '-A NATPOD-FORWARD -m comment --comment "nothing else" -j DROP'


def rule(text, counters="[0:0]"):
    return (text, counters)


OWN_RULES = [  # what the VM lives by, with or without a document
    "[0:0] -A NATPOD-OWN -i lo -j ACCEPT",
    "[0:0] -A NATPOD-OWN -s 169.254.0.0/16 -p tcp -m multiport --sports 53,80,3260 -m tcp"
    " ! --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT",
    "[0:0] -A NATPOD-OWN -s 169.254.0.0/16 -p udp -m multiport --sports 53,67,123 -j ACCEPT",
    "[0:0] -A NATPOD-OWN -m conntrack --ctstate ESTABLISHED -j ACCEPT",
    "[0:0] -A NATPOD-CLOSED -j DROP",
]
UNTRACKED = [
    "*raw",
    ":NATPOD-UNTRACKED - [0:0]",
    "[0:0] -A NATPOD-UNTRACKED -j CT --notrack",
    "-I OUTPUT 1 -d 169.254.0.0/16 -j NATPOD-UNTRACKED",
    "-I PREROUTING 1 -s 169.254.0.0/16 -j NATPOD-UNTRACKED",
    "COMMIT",
]


def test_the_transaction_for_an_empty_kernel():
    made = agent.transaction(document(text_of([DROP], [f"-A NATPOD-PRE -g {V}"])), {})
    assert made.splitlines() == [
        "*filter",
        ":NATPOD-OWN - [0:0]",
        ":NATPOD-CLOSED - [0:0]",
        ":NATPOD-FORWARD - [0:0]",
        *OWN_RULES,
        "[0:0] " + DROP,
        "-I FORWARD 1 -j NATPOD-FORWARD",
        "-I FORWARD 2 -j NATPOD-CLOSED",
        "-I INPUT 1 -j NATPOD-OWN",
        "-I INPUT 2 -j NATPOD-CLOSED",
        "COMMIT",
        "*nat",
        ":NATPOD-PRE - [0:0]",
        ":NATPOD-POST - [0:0]",
        f":{V} - [0:0]",
        f"[0:0] -A NATPOD-PRE -g {V}",
        "-I POSTROUTING 1 -j NATPOD-POST",
        "-I PREROUTING 1 -j NATPOD-PRE",
        "COMMIT",
        *UNTRACKED,
    ]


FORWARD = ["-I FORWARD 1 -j NATPOD-FORWARD", "-I FORWARD 2 -j NATPOD-CLOSED"]


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (["-j NATPOD-FORWARD", "-j NATPOD-CLOSED", "-j REJECT"], []),
        (["-j REJECT"], FORWARD),
        (["-j REJECT", "-j NATPOD-FORWARD"], ["-D FORWARD -j NATPOD-FORWARD", *FORWARD]),
        (["-j NATPOD-FORWARD", "-j ACCEPT", "-j NATPOD-CLOSED"],
         ["-D FORWARD -j NATPOD-CLOSED", "-D FORWARD -j NATPOD-FORWARD", *FORWARD]),
        (["-j NATPOD-CLOSED", "-j NATPOD-FORWARD"],
         ["-D FORWARD -j NATPOD-FORWARD", "-D FORWARD -j NATPOD-CLOSED", *FORWARD]),
        (["-j NATPOD-FORWARD", "-j NATPOD-FORWARD"],
         ["-D FORWARD -j NATPOD-FORWARD", "-D FORWARD -j NATPOD-FORWARD", *FORWARD]),
        (["-j NATPOD-OLD"], ["-D FORWARD -j NATPOD-OLD", *FORWARD]),
        (["-s 10.0.0.0/8 -g NATPOD-FORWARD"], ["-D FORWARD -s 10.0.0.0/8 -g NATPOD-FORWARD", *FORWARD]),
        # A newline cannot be said to iptables-restore: then by its place.
        (["-j ACCEPT", '-m comment --comment "a\nb" -j NATPOD-OLD'], ["-D FORWARD 2", *FORWARD]),
    ],
)  # fmt: skip
def test_hooks_are_first_and_once_and_left_alone_when_they_are(forward, expected):
    live = {"filter": {"FORWARD": [rule(text) for text in forward], "NATPOD-FORWARD": []}}
    lines = agent.transaction(document(text_of([DROP])), live).split("*nat")[0].splitlines()
    assert [line for line in lines if line[:2] in ("-I", "-D") and "INPUT" not in line] == expected


def test_the_guard_stands_without_a_document_and_leaves_those_chains_alone_that_one_has_loaded():
    live = {"filter": {"FORWARD": [rule("-j ACCEPT"), rule("-j NATPOD-FORWARD")], "NATPOD-FORWARD": [rule("-j DROP")]}}
    assert agent.transaction(None, live).splitlines() == [
        "*filter",
        ":NATPOD-OWN - [0:0]",
        ":NATPOD-CLOSED - [0:0]",
        *OWN_RULES,
        "-D FORWARD -j NATPOD-FORWARD",
        *FORWARD,
        "-I INPUT 1 -j NATPOD-OWN",
        "-I INPUT 2 -j NATPOD-CLOSED",
        "COMMIT",
        "*nat",
        "COMMIT",
        *UNTRACKED,
    ]


@pytest.mark.parametrize("hooks", [(), HOOKS], ids=["no hooks", "hooks"])
@pytest.mark.parametrize("chain", ["NATPOD-OWN", "NATPOD-CLOSED", "NATPOD-UNTRACKED"])
def test_no_document_can_take_the_guard_away(chain, hooks):
    with pytest.raises(agent.AgentError, match=f"chain {chain} is the agent's own"):
        document(text_of().replace("COMMIT", f":{chain} - [0:0]\nCOMMIT", 1))
    made = agent.transaction(document(text_of(), hooks), {})
    assert [line for line in OWN_RULES if line not in made.splitlines()] == []
    assert re.findall("-I FORWARD . (.*)", made)[-1] == "-j NATPOD-CLOSED"


def test_chains_of_an_older_release_go_after_the_last_way_into_them():
    live = {"filter": {"OUTPUT": [rule("-j NATPOD-OLD")], "NATPOD-OLD": [rule("-j DROP")], "DOCKER": []}}
    lines = agent.transaction(document(text_of([DROP])), live).splitlines()
    assert lines.index("-D OUTPUT -j NATPOD-OLD") < lines.index("-F NATPOD-OLD") < lines.index("-X NATPOD-OLD")
    assert not any("DOCKER" in line for line in lines)


def kernel_of(restore: str) -> dict:
    """What iptables-save would show after this input to an empty kernel."""
    lines = [re.sub(r"-I (\S+) \d+ ", r"[0:0] -A \1 ", line) for line in restore.splitlines()]
    return agent.read_saved("\n".join(lines))


@pytest.mark.parametrize("policy", ["masquerade", "static"])
@pytest.mark.parametrize("stack", ["dev", "ten"])
def test_the_plan_and_the_agent_know_the_same_rules_by_the_same_fingerprint(request, stack, policy):
    config = request.getfixturevalue(stack) | {"sourceNat": policy}
    for vm in plan_pod(PodConfig.from_mapping(config, stack), stack).vms:
        live, planned = (
            kernel_of(agent.transaction(agent.Document(vm.metadata["nat-pod-rules"]), {})),
            fingerprint(vm.rules),
        )
        assert agent.fingerprint(live) == planned
        # And each single rule counts, its place, and which of its two networks is which.
        for table, chains in live.items():
            for chain, rules in chains.items():
                of_chain = {name: what for name, what in planned.items() if name == f"{table} {chain}"}
                assert agent.fingerprint({table: {chain: rules}}) == of_chain
                if len(rules) > 1:
                    assert agent.fingerprint({table: {chain: rules[::-1]}}) != of_chain, chain
                if rules:
                    assert agent.fingerprint({table: {chain: rules[1:]}}) != of_chain, chain
    assert agent.canonical("-s 10.0.0.1/32 -d 10.0.0.2/32 -j DROP") != agent.canonical(
        "-d 10.0.0.1/32 -s 10.0.0.2/32 -j DROP"
    )


def test_counters_stay_with_a_rule_however_iptables_quotes_it():
    live = {
        "filter": {"NATPOD-FORWARD": [rule("-m comment --comment x -j DROP", "[7:700]"), rule("-j ACCEPT", "[1:1]")]}
    }
    made = agent.transaction(document(text_of(['-A NATPOD-FORWARD -m comment --comment "x" -j DROP'])), live)
    assert '[7:700] -A NATPOD-FORWARD -m comment --comment "x" -j DROP' in made.splitlines()


def test_a_rule_of_somebody_else_s_may_be_empty(monkeypatch):
    monkeypatch.setattr(agent, "run", lambda command: "*filter\n:FORWARD ACCEPT [0:0]\n[7:700] -A FORWARD\nCOMMIT\n")
    assert agent.live_rules() == {"filter": {"FORWARD": [("", "[7:700]")]}}


def test_a_rule_of_somebody_else_s_may_have_anything_in_its_comment():
    """A newline, another rule behind it, quotes, bytes that are no UTF-8."""
    comment = r'"a' + "\n" + r"[0:0] -A FORWARD -j NATPOD-FORWARD\" \\ " + '\udcff"'
    saved = f"*filter\n:FORWARD DROP [0:0]\n[1:2] -A FORWARD -m comment --comment {comment} -j ACCEPT\nCOMMIT\n"
    assert agent.read_saved(saved) == {
        "filter": {"FORWARD": [(f"-m comment --comment {comment} -j ACCEPT", "[1:2]"), ("-P DROP", "[0:0]")]}
    }
    shown = agent.foreign(agent.read_saved(saved))
    assert len(shown) == 2
    assert all(line.isascii() and line.isprintable() for line in shown)


# --- what it would translate -----------------------------------------------------------------------------------------

NAT = [
    f"-A NATPOD-PRE -s 198.18.0.128/27 -g {V}",
    "-A NATPOD-PRE -s 10.0.0.0/24 -d 198.18.0.2/32 -j DNAT --to-destination 198.18.0.130",
    "-A NATPOD-PRE -d 198.18.0.64/27 -j NETMAP --to 198.18.0.32/27",
    "-A NATPOD-PRE -d 198.18.0.99/32 -j ACCEPT",
    "-A NATPOD-PRE -d 198.18.0.96/27 -j DNAT --to-destination 10.9.9.9",
    f"-A {V} -d 198.18.0.2/32 -j DNAT --to-destination 10.0.0.100",
    "-A NATPOD-POST -s 198.18.0.128/27 -j NETMAP --to 198.18.0.0/27",
    "-A NATPOD-POST -s 10.0.0.100/32 -j SNAT --to-source 198.18.0.2",
    "-A NATPOD-POST -m conntrack --ctstate DNAT -j SNAT --to-source 198.18.0.9",
]
FLOWS = {
    "into a chain, DNAT and NETMAP of the source": ("198.18.0.131", "198.18.0.2", "198.18.0.3", "10.0.0.100"),
    "a chain entered by goto is the last one looked at": ("198.18.0.131", "198.18.0.66", "198.18.0.3", "198.18.0.66"),
    "DNAT and SNAT": ("10.0.0.100", "198.18.0.2", "198.18.0.2", "198.18.0.130"),
    "DNAT and one source for all": ("10.0.0.7", "198.18.0.2", "198.18.0.9", "198.18.0.130"),
    "NETMAP keeps the host bits": ("10.1.1.1", "198.18.0.66", "198.18.0.9", "198.18.0.34"),
    "ACCEPT ends the table: no DNAT, no SNAT": ("10.1.1.1", "198.18.0.99", "10.1.1.1", "198.18.0.99"),
    "the first rule that matches": ("10.1.1.1", "198.18.0.100", "198.18.0.9", "10.9.9.9"),
    "no rule at all": ("10.1.1.1", "8.8.8.8", "10.1.1.1", "8.8.8.8"),
    "to the VM itself: POSTROUTING never sees it": ("10.0.0.100", "198.18.0.5", "10.0.0.100", "198.18.0.5"),
}


@pytest.mark.parametrize(("source", "destination", "new_source", "new_destination"), FLOWS.values(), ids=FLOWS.keys())
def test_translation_of_a_new_flow(source, destination, new_source, new_destination):
    made = document(text_of(nat_rules=NAT)).translate(number(source), number(destination), {number("198.18.0.5")})
    assert made == (number(new_source), number(new_destination))


@pytest.mark.parametrize(
    ("original", "reply", "right"),
    [
        (("10.0.0.100", "198.18.0.2"), ("198.18.0.130", "198.18.0.2"), True),
        (("10.0.0.100", "198.18.0.2"), ("198.18.0.131", "198.18.0.2"), False),  # translated to somebody else
        (("10.0.0.100", "198.18.0.2"), ("198.18.0.130", "198.18.0.9"), False),  # hidden behind another source
        (("198.18.0.5", "198.18.0.2"), ("198.18.0.2", "198.18.0.5"), True),  # the VM's own: no rule concerns it
    ],
)
def test_a_flow_is_as_the_rules_give_it_only_if_both_its_addresses_are(original, reply, right):
    made, own = document(text_of(nat_rules=NAT)), {number("198.18.0.5")}
    assert made.gives(tuple(map(number, original)), tuple(map(number, reply)), own) is right


# --- IMDS ------------------------------------------------------------------------------------------------------------

VNICS = [
    {"vnicId": "a", "macAddr": "02:00:17:00:00:0A", "privateIp": "198.18.0.2", "subnetCidrBlock": "198.18.0.0/27"},
    {"vnicId": "b", "macAddr": "02:00:17:00:00:0B", "privateIp": "198.18.0.34", "subnetCidrBlock": "198.18.0.32/27"},
]


def test_vnics_are_read_in_order_with_small_macs():
    assert agent.read_vnics(json.dumps(VNICS)) == [
        ("02:00:17:00:00:0a", "198.18.0.2/27"),
        ("02:00:17:00:00:0b", "198.18.0.34/27"),
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "[{}]", "[1]", json.dumps([VNICS[0] | {"privateIp": "x"}]),
             json.dumps([VNICS[0] | {"subnetCidrBlock": "<null>"}]), json.dumps([VNICS[0] | {"macAddr": None}])],
)  # fmt: skip
def test_a_vnic_list_that_is_none_is_refused(text):
    with pytest.raises(agent.AgentError, match="VNIC list"):
        agent.read_vnics(text)


@pytest.mark.parametrize("network_manager", [True, False])
def test_only_secondary_vnics_are_configured_and_only_what_is_missing(monkeypatch, tmp_path, network_manager):
    """The primary VNIC is DHCP's, whatever it looks like."""
    done, problems, mended = [], [], []

    def link(name, last, mtu, flags, address):
        info = [{"family": "inet", "local": address, "prefixlen": 27}] if address else []
        return {"ifname": name, "link_type": "ether", "address": f"02:00:17:00:00:{last}", "mtu": mtu, "flags": flags,
                "addr_info": info}  # fmt: skip

    monkeypatch.setattr(agent, "interfaces", lambda: [link("p", "0a", 1500, [], ""), link("s", "0b", 1500, [], "")])
    monkeypatch.setattr(agent, "run", done.append)
    monkeypatch.setattr(agent, "NETWORK_MANAGER", str(tmp_path if network_manager else tmp_path / "nothing"))
    vnics = agent.read_vnics(json.dumps(VNICS))
    report = agent.bring_up(vnics, problems, mended)
    assert [" ".join(command) for command in done] == [
        "ip link set dev s mtu 9000",
        "ip link set dev s up",
        *(["nmcli device set s managed no"] if network_manager else []),
        "ip address replace 198.18.0.34/27 dev s",
    ]
    assert [entry["interface"] for entry in report] == ["p", "s"]
    assert mended == [("s", " ".join(command)) for command in done]
    done.clear()
    monkeypatch.setattr(agent, "interfaces", lambda: [link("s", "0b", 9000, ["UP"], "198.18.0.34")])
    agent.bring_up(vnics, problems, mended)
    assert done == []
    assert problems == ["VNIC 198.18.0.2/27 (02:00:17:00:00:0a): no interface has this MAC yet"]


@pytest.fixture
def service(tmp_path, monkeypatch):
    """The lab's metadata service on a port of this machine; returns its state file."""
    state = tmp_path / "state.json"
    server = imds.Server(("127.0.0.1", 0), state)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    # http.client takes host:port; the agent itself has no way to be sent elsewhere.
    monkeypatch.setattr(agent, "IMDS", f"127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_agent_reads_the_metadata_service(service):
    service.write_text(json.dumps({"instance": {"metadata": {"nat-pod-vm": "natVm1"}}, "vnics": VNICS}))
    assert agent.imds("instance/metadata/nat-pod-vm") == "natVm1"
    assert agent.imds("instance/metadata/nat-pod-rules") is None
    assert json.loads(agent.imds("vnics/")) == VNICS
    service.write_text("{")
    with pytest.raises(agent.AgentError, match="status 503"):
        agent.imds("vnics/")
    service.write_text("{}")
    assert agent.imds("vnics/") is None


def test_a_metadata_service_that_is_down_is_a_sentence(monkeypatch):
    pauses = []
    monkeypatch.setattr(agent, "IMDS", "127.0.0.1:1")
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(agent.AgentError, match=r"http://127.0.0.1:1/opc/v2/vnics/: .*refused"):
        agent.imds("vnics/")
    assert pauses == [1, 2, 0]


STATE = {"instance": {"metadata": {"a/b": "x"}, "id": "ocid1", "count": 3}, "vnics": VNICS}
PATHS = [
    ("/opc/v2/instance/id", "ocid1"),
    ("/opc/v2/instance/metadata/", {"a/b": "x"}),
    ("/opc/v2/vnics/1/privateIp", "198.18.0.34"),
    ("/opc/v2/vnics/", VNICS),
    ("/opc/v2/instance/count", 3),
]
NO_PATHS = [
    "/", "/opc/v1/instance/id", "/opc/v2/instance/no", "/opc/v2/vnics/2", "/opc/v2/vnics/-1", "/opc/v2/instance/id/x",
]  # fmt: skip


@pytest.mark.parametrize(("path", "found"), PATHS)
def test_imds_walks_keys_and_indexes(path, found):
    assert imds.find(STATE, path) == found


@pytest.mark.parametrize("path", NO_PATHS)
def test_imds_has_nothing_else(path):
    with pytest.raises(KeyError):
        imds.find(STATE, path)


def test_imds_wants_the_header(service):
    service.write_text(json.dumps(STATE))
    connection = agent.http.client.HTTPConnection(agent.IMDS)
    given = []
    for headers in ({}, {"Authorization": "Bearer Other"}, {"Authorization": "Bearer Oracle"}):
        connection.request("GET", "/opc/v2/instance/id", headers=headers)
        answer = connection.getresponse()
        answer.read()
        given.append(answer.status)
    connection.close()
    assert given == [401, 401, 200]


# --- a round -------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The agent with its folders in `tmp_path` and a kernel that takes everything; returns what it was asked to do."""
    done = []
    for name, file in (("GOOD_RULES", "rules"), ("LOADED", "loaded.json"), ("SETTINGS", "settings"),
                       ("FORWARDING", "forwarding"), ("PLATFORM", "platform")):  # fmt: skip
        monkeypatch.setattr(agent, name, str(tmp_path / file))
    monkeypatch.setattr(agent, "live_rules", dict)
    monkeypatch.setattr(agent, "interfaces", list)
    monkeypatch.setattr(agent, "rehearse", lambda document: done.append("rehearse"))
    monkeypatch.setattr(agent, "apply", lambda document: done.append("apply") or {})
    monkeypatch.setattr(agent, "delete_stale_flows", lambda document, own: done.append("flows") or 0)
    monkeypatch.setattr(agent, "stand_guard", lambda: done.append("guard"))
    monkeypatch.setattr(agent, "apply_settings", lambda path, notes, mended: done.append(Path(path).name))
    monkeypatch.setattr(agent, "size_conntrack", lambda notes: None)
    monkeypatch.setattr(agent, "set_kernel", lambda name, value, notes: done.append(f"{Path(name).name}={value}"))
    return done


def settle(*candidates):
    problems = []
    agent.settle(candidates, problems, [], [])
    return problems


def test_a_round_goes_from_the_guard_to_forwarding(world):
    good = agent.Document(signed())
    assert settle(good) == []
    assert world == ["rehearse", "apply", "flows", "settings", "forwarding"]
    assert agent.load(agent.GOOD_RULES) == good.value
    world.clear()
    assert settle(good) == []
    assert world == ["settings", "forwarding"]


def test_without_rules_nothing_is_forwarded(world):
    assert settle() == ["no rules are loaded: nothing is forwarded"]
    assert world == ["settings", "guard", "ip_forward=0"]


def test_rules_that_are_there_from_before_go_on_forwarding_when_no_document_works(world, monkeypatch):
    monkeypatch.setattr(agent, "live_rules", lambda: {"filter": {"FORWARD": [rule("-j NATPOD-FORWARD")]}})
    assert settle() == []
    assert world == ["settings", "guard"]
    # The guard alone has nothing to forward.
    live = {"filter": {"FORWARD": [rule("-j NATPOD-CLOSED")]}}
    monkeypatch.setattr(agent, "live_rules", lambda: live)
    assert settle() == ["no rules are loaded: nothing is forwarded"]


def test_flows_that_cannot_be_deleted_do_not_keep_the_rules_from_working_and_are_tried_again(world, monkeypatch):
    def refuse(document, own):
        raise OSError(1, "no")

    with monkeypatch.context() as broken:
        broken.setattr(agent, "delete_stale_flows", refuse)
        problems = settle(agent.Document(signed()))
    assert len(problems) == 1
    assert "could not be deleted, next round tries again" in problems[0]
    assert world[-1] == "forwarding"
    world.clear()
    assert settle(agent.Document(signed())) == []
    assert "flows" in world


def test_an_agent_that_dies_while_it_repairs_drift_deletes_the_flows_next_time(world, monkeypatch):
    def die(document, own):
        raise KeyboardInterrupt

    good = agent.Document(signed())
    settle(good)
    with monkeypatch.context() as broken:
        broken.setattr(agent, "live_rules", lambda: {"filter": {"NATPOD-OLD": []}})
        broken.setattr(agent, "delete_stale_flows", die)
        with pytest.raises(KeyboardInterrupt):
            settle(good)
    # The kernel has the right rules again, so only the missing record tells that something is left to do.
    world.clear()
    settle(good)
    assert "flows" in world


def test_a_document_that_fails_half_way_is_replaced_by_the_last_good_one(world, monkeypatch):
    good, bad = agent.Document(signed()), agent.Document(signed(hooks=[]))
    settle(good)
    world.clear()

    def apply(document):
        world.append(document.generation)
        if document is bad:
            raise agent.AgentError("no")
        return "x"

    monkeypatch.setattr(agent, "apply", apply)
    problems = settle(bad, good)
    assert [problem.split(":")[0] for problem in problems] == [f"generation {bad.generation}"]
    assert [entry for entry in world if len(entry) == 16] == [bad.generation, good.generation]
    assert agent.load(agent.GOOD_RULES) == good.value
    assert agent.load_json(agent.LOADED)["generation"] == good.generation


@pytest.mark.parametrize(
    ("meminfo", "flows"),
    [
        ("MemTotal:       49152000 kB\n", 1_048_576),
        ("MemTotal:        8388608 kB\n", 1_048_576),
        ("MemTotal:        8388000 kB\n", 1_048_064),
        ("MemTotal:         983040 kB\nMemFree: 1 kB\n", 122_880),
        (None, 131_072),
    ],
)
def test_the_connection_table_takes_a_sixteenth_of_the_memory_at_most(monkeypatch, meminfo, flows):
    """At 512 bytes a flow; in steps of 512, which the kernel does not round."""
    written = {}
    monkeypatch.setattr(agent, "load", {"/proc/meminfo": meminfo}.get)
    monkeypatch.setattr(agent, "set_kernel", lambda name, value, notes: written.update({name: value}))
    agent.size_conntrack([])
    prefix = "/proc/sys/net/netfilter/nf_conntrack_"
    assert written == {prefix + "max": str(flows), prefix + "buckets": str(flows)}
    assert flows % 512 == 0


def test_nothing_but_the_status_reads_the_clock():
    source = SOURCE.read_text()
    rules, _, reports = source.partition("\ndef finish(")
    assert "time.time" not in rules
    assert "gmtime" not in rules
    assert "time.time" in reports


SAVED = r"""# Generated by iptables-save
*nat
:PREROUTING ACCEPT [17:1428]
:NATPOD-PRE - [0:0]
:NATPOD-C-customer1 - [0:0]
:NATPOD-V-198.18.0.0/27 - [0:0]
:NATPOD-X-j - [0:0]
:NATPOD-POST - [0:0]
[5:420] -A PREROUTING -j NATPOD-PRE
[3:252] -A NATPOD-PRE -s 10.0.0.0/24 -m comment --comment customer1 -g NATPOD-C-customer1
[2:168] -A NATPOD-C-customer1 -s 10.0.0.100/32 -m comment --comment "customer1/vm-j" -g NATPOD-SERVERS
[1:84] -A NATPOD-V-198.18.0.0/27 -d 198.18.0.2/32 -m comment --comment customer1/vm-j -j DNAT --to-destination 10.0.0.1
[4:336] -A NATPOD-X-j -d 198.18.0.2/32 -m comment --comment "customer1/vm-j" -j DNAT --to-destination 10.0.0.1
[9:756] -A NATPOD-POST -m comment --comment "hide the source -j x" -j SNAT --to-source 198.18.0.2
COMMIT
*filter
:INPUT ACCEPT [8:756]
:NATPOD-FORWARD - [0:0]
[7:588] -A NATPOD-FORWARD -m comment --comment "no mapping translated it" -j DROP
[2:168] -A NATPOD-FORWARD -i ens3 -j DROP
[8:672] -A INPUT -j DROP
COMMIT
"""
# As Linux 5.4 and 6.1 have it: columns come and go, one line a CPU, hexadecimal.
STAT = """entries  searched found new invalid ignore delete delete_list insert insert_failed drop early_drop icmp_error
00000010  00000000 00000000 00000000 00000004 00000a20 00000000 00000000 00000000 0000000a 00000001 00000000 00000003
00000010  00000000 00000000 00000000 00000000 000009a0 00000000 00000000 00000000 00000002 00000000 00000020 00000000
"""


def test_a_report_adds_up_rules_by_member_or_chain_and_drops_of_all_cpus(monkeypatch):
    monkeypatch.setattr(agent, "interfaces", list)
    files = {
        str(SOURCE): "the agent",
        "/proc/net/stat/nf_conntrack": STAT,
        "/proc/sys/net/netfilter/nf_conntrack_max": "1048576\n",
    }
    monkeypatch.setattr(agent, "load", files.get)
    monkeypatch.setattr(agent, "run", lambda command: SAVED)
    monkeypatch.setattr(agent, "flows", list)
    report = agent.report()
    assert report["counted"] == {
        "members": {"customer1/vm-j": {"goto": 2, "DNAT": 5}},
        "chains": {"NATPOD-PRE": {"goto": 3}, "NATPOD-POST": {"SNAT": 9}, "NATPOD-FORWARD": {"DROP": 9}},
    }
    assert report["agent"] == hashlib.sha256(b"the agent").hexdigest()[:12]
    assert report["conntrack"] == {"count": 0, "max": 1048576, "insert_failed": 12, "drop": 1, "early_drop": 32}
    monkeypatch.setattr(agent, "load", lambda path: None)  # connection tracking is not loaded yet
    assert set(agent.report()["conntrack"].values()) == {0}


# --- files -----------------------------------------------------------------------------------------------------------


# --- the balancer's question -----------------------------------------------------------------------------------------

FIT = {"applied": "a", "wanted": "a", "behind": False, "uptime": 1000.0}


@pytest.mark.parametrize(
    ("status", "forwarding", "reason"),
    [
        (FIT, "1\n", None),
        (FIT | {"uptime": 911.0}, "1\n", None),
        (FIT | {"uptime": 909.0}, "1\n", "the last round was 91 seconds ago"),
        (FIT | {"applied": None}, "1\n", "no rules are loaded"),
        ({}, "1\n", "no rules are loaded"),
        (FIT, "0\n", "it does not forward"),
        (FIT, None, "it does not forward"),
        # What the kernel refused in a namespace of its own, the other VM's will refuse, too: both go on as they were.
        (FIT | {"wanted": "b"}, "1\n", None),
        (FIT | {"wanted": None}, "1\n", None),
        (FIT | {"wanted": "b", "behind": True}, "1\n", "generation b could not be loaded"),
        ({"applied": "a"}, "1\n", "KeyError: 'behind'"),
        (FIT | {"uptime": "soon"}, "1\n", "TypeError: "),
    ],
)
def test_a_vm_is_fit_if_it_runs_its_rules_forwards_and_had_a_round_lately(monkeypatch, status, forwarding, reason):
    monkeypatch.setattr(agent, "load_json", {agent.STATUS: status}.get)
    monkeypatch.setattr(agent, "load", {"/proc/sys/net/ipv4/ip_forward": forwarding}.get)
    monkeypatch.setattr(agent, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    assert agent.unfit() == reason or (reason.endswith(": ") and agent.unfit().startswith(reason))


def test_a_vm_whose_status_cannot_be_read_is_not_fit(monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(agent, "load_json", fails)
    assert agent.unfit() == "OSError: [Errno 5] Input/output error"


def test_the_door_is_opened_by_the_document_alone_and_at_the_primary_address(monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(agent, "run", done.append)
    monkeypatch.setattr(agent, "DOOR", str(tmp_path / "health"))
    vnics = [("02:00:17:00:00:01", "198.18.3.194/29"), ("02:00:17:00:00:02", "198.18.0.34/27")]
    asked, other, silent = (agent.Document(signed(**more)) for more in ({"health": 8198}, {"health": 8199}, {}))

    def opened(document, vnics) -> tuple[str | None, list]:
        done.clear()
        problems: list = []
        agent.open_door(document, vnics, problems)
        assert problems == []
        return agent.load(agent.DOOR), [command[1] for command in done]

    assert opened(silent, vnics) == (None, []), "the article's PODs never start it"
    assert opened(asked, []) == (None, []), "no address is known yet"
    assert opened(asked, vnics) == ("198.18.3.194 8198", ["restart"])
    assert opened(asked, vnics) == ("198.18.3.194 8198", ["start"]), "or one that somebody stopped stays so"
    assert opened(None, vnics) == ("198.18.3.194 8198", []), "nothing is known, so nothing changes"
    assert opened(other, vnics) == ("198.18.3.194 8199", ["restart"])
    assert opened(silent, vnics) == (None, ["stop"])


def test_the_answer_is_http_and_a_caller_that_says_nothing_does_not_keep_others_waiting(monkeypatch, tmp_path):
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    (tmp_path / "health").write_text(f"127.0.0.1 {port}")
    monkeypatch.setattr(agent, "DOOR", str(tmp_path / "health"))
    said = iter((None, "it does not forward"))
    monkeypatch.setattr(agent, "unfit", lambda: next(said))
    threading.Thread(target=agent.health, daemon=True).start()

    def ask() -> tuple[int, bytes]:
        for _ in range(100):
            with suppress(ConnectionRefusedError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/")
                answer = connection.getresponse()
                return answer.status, answer.read()
            time.sleep(0.05)
        raise AssertionError("nobody listens")

    assert ask() == (200, b"fit\n")
    with socket.create_connection(("127.0.0.1", port)):
        assert ask() == (503, b"it does not forward\n")


def test_saving_replaces_a_file_whole(tmp_path):
    path = str(tmp_path / "rules")
    agent.save(path, "one")
    agent.save(path, "two")
    assert agent.load(path) == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["rules"]
    assert agent.load(str(tmp_path / "none")) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_spoiled_record_counts_as_none(tmp_path, content):
    (tmp_path / "loaded.json").write_bytes(content)
    assert agent.load_json(str(tmp_path / "loaded.json")) == {}


def test_spoiled_saved_rules_are_reported_and_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "GOOD_RULES", str(tmp_path / "rules"))
    (tmp_path / "rules").write_bytes(b"4:\xff\xfe")
    problems = []
    assert agent.good_rules(problems) is None
    assert len(problems) == 1
    assert problems[0].startswith("saved rules: ")


def test_a_usage_error_touches_nothing(capsys):
    assert agent.main([]) == agent.main(["start"]) == agent.main(["poll", "now"]) == 2
    assert "usage" in capsys.readouterr().err
