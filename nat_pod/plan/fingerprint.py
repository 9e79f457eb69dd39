"""What the kernel of a NAT VM has when its rules are as planned, in the form in which the agent reports them.

Both sides compute it: the plan from the compiled rules and the guard, the agent (`fingerprint` in nat_pod_agent.py)
from what iptables-save prints.  Nothing that the agent has kept of its own work goes into it.

    "nat NATPOD-PRE": "1f0c5f0b0a3e"                                   a hash of the chain's rules
    "filter FORWARD": "1 -j NATPOD-FORWARD, 2 -j NATPOD-CLOSED"        where a built-in chain enters ours
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence

from nat_pod.plan.bootstrap import SOURCES
from nat_pod.rules import iptables
from nat_pod.rules.netfilter import OPENING, OWN_PREFIX, Ruleset

CLOSED = "-j NATPOD-CLOSED"
"""The guard's last rule: a document's chains are entered before it."""

_FLAGS = r"[^ \"]+ --(?:rsource|rdest|connlimit-[sd]addr)"
_WORDS = re.compile(rf'"[^"]*"|! -\S+|--(?:set|rcheck) --\w+|{OPENING}|{_FLAGS}|[^ "]+')


def fingerprint(rules: Ruleset) -> dict[str, str]:
    """{"TABLE CHAIN": what}, see above, for a NAT VM that runs these rules."""
    found = {place: list(rules) for place, rules in _guard().items()}
    for table in rules.tables:
        for chain in table.chains:
            head = f"-A {chain.name} "
            found[table.name, chain.name] = [
                iptables.render_rule(chain.name, rule).removeprefix(head) for rule in chain.rules
            ]
    for name, builtin, hooked in iptables.hooks(rules):
        entries = found.setdefault((name, builtin), [])
        entries.insert(len(entries) - (CLOSED in entries), f"-j {hooked}")
    return {
        f"{name} {chain}": _hash(own) if is_own(f"{name} {chain}") else _places(own)
        for (name, chain), own in found.items()
    }


def guard_names() -> set[str]:
    """The names whose rules come only from the guard, so they are the same with any document."""
    return {name for table, chain in _guard() if is_own(name := f"{table} {chain}") or table == "raw"}


def is_own(name: str) -> bool:
    """Whether `TABLE CHAIN` is a chain of nat-pod's, of which there is a hash."""
    return name.partition(" ")[2].startswith(OWN_PREFIX)


@functools.cache
def _guard() -> Mapping[tuple[str, str], Sequence[str]]:
    """The rules of the agent's own guard, by table and chain, as its source has them."""
    source = (SOURCES / "nat_pod_agent.py").read_text(encoding="utf-8")
    text = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "GUARD"
    )
    found: dict[tuple[str, str], list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            found.setdefault((table, chain), []).append(rule)
    return found


def canonical(rule: str) -> str:
    """A rule in a form that does not depend on who wrote it: its options with their values, sorted, without quotes."""
    words = [word.strip('"') for word in _WORDS.findall(rule)]
    words += [""] * (len(words) % 2)
    pairs = [words[at : at + 2] for at in range(0, len(words), 2)]
    return json.dumps(sorted(pair for pair in pairs if pair[0] != "-m"))


def _hash(rules: list[str]) -> str:
    return hashlib.sha256("\n".join(map(canonical, rules)).encode()).hexdigest()[:12]


def _places(rules: list[str]) -> str:
    return ", ".join(f"{place} {rule}" for place, rule in enumerate(rules, 1))
