"""The rule document: what a NAT VM's rules are in its metadata, packed, and read back.

- bz2 has one implementation, so packing a document gives the same bytes on any machine; zlib and zlib-ng differ, and
  so may releases of liblzma, which makes a folded document no smaller (8,184 bytes against 8,186 for a full /21).
- base85 is 6 % shorter than base64.  Go's JSON, which the provider sends, writes <, > and & in six bytes each, so
  documents have other signs in their place.
"""

from __future__ import annotations

import base64
import bz2
import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from nat_pod.ipv4 import dotted, number, span

FORMAT = "4"
"""The format of a document.  The agent refuses any other, so a new format needs a new bootstrap."""

_PLAIN = str.maketrans("<>&", ",./")
_BASE85 = str.maketrans(",./", "<>&")
DOCUMENT_LIMIT = 4 << 20
"""Most bytes of a document unpacked, and of its rules unfolded (a full POD: 270 kB).  The agent has the same bound: a
few bytes of metadata must not fill its memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A rule document as the agent gets it.  `hooks` are (table, built-in chain, own chain).

    `vm` is the side whose NAT VMs it is for.  `health` is the TCP port at which they tell their balancer whether they
    are fit, None where nobody asks.
    """

    vm: str
    generation: str
    hooks: tuple[tuple[str, str, str], ...]
    rules: str
    health: int | None = None


def rule_document(
    side: str, hooks: Sequence[tuple[str, str, str]], rules_text: str, health: int | None = None
) -> tuple[str, str]:
    """The value of the `nat-pod-rules` key, and its generation.  health: see `Document`.

    The generation is a hash of the contents: it names what is loaded, and shows when a document is damaged.
    """
    body: dict[str, object] = {
        "vm": side,
        "hooks": [list(hook) for hook in hooks],
        "rules": fold(rules_text),
    }
    if health is not None:
        body["health"] = health
    generation = generation_of(body)
    packed = bz2.compress(canonical(body | {"generation": generation}))
    return f"{FORMAT}:{printable(packed)}", generation


def read_document(value: str) -> Document:
    """Unpack what `rule_document` made.  Raises ValueError with the reason when it is damaged or of another format.

    The rules are not judged here: `iptables.parse` does that, and the agent on the VM.
    """
    head, _, packed = value.partition(":")
    if head != FORMAT:
        raise ValueError(f"rule document: format {head[:20]!r}, expected {FORMAT!r}")
    try:
        unpacker = bz2.BZ2Decompressor()
        text = unpacker.decompress(from_printable(packed), DOCUMENT_LIMIT)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("cut short, too long, or followed by something")
        body = json.loads(text)
    except (ValueError, OSError, EOFError, RecursionError) as error:
        raise ValueError(f"rule document: cannot be unpacked: {error}") from None
    if not isinstance(body, dict) or set(body) | {"health"} != {"vm", "generation", "health", "hooks", "rules"}:
        raise ValueError("rule document: expected exactly the keys vm, generation, hooks and rules, and perhaps health")
    generation = body.pop("generation")
    if generation != generation_of(body):
        raise ValueError(f"rule document: its contents do not match its generation {generation!r}")
    if not isinstance(body["vm"], str) or not isinstance(body["rules"], str):
        raise ValueError("rule document: vm and rules are not texts")
    if type(body.get("health")) not in (int, type(None)):
        raise ValueError("rule document: health is not a port")
    if not isinstance(body["hooks"], list) or not all(map(_is_hook, body["hooks"])):
        raise ValueError("rule document: hooks are not lists of table, chain and own chain")
    try:
        rules = unfold(body["rules"])
    except ValueError as error:
        raise ValueError(f"rule document: {error}") from None
    return Document(
        vm=body["vm"],
        generation=generation,
        hooks=tuple((table, builtin, chain) for table, builtin, chain in body["hooks"]),
        rules=rules,
        health=body.get("health"),
    )


def printable(data: bytes) -> str:
    """Bytes as a metadata value carries them: base85, without the signs that JSON writes at length."""
    return base64.b85encode(data).decode().translate(_PLAIN)


def from_printable(text: str) -> bytes:
    """What `printable` was given.  Raises ValueError for anything else."""
    return base64.b85decode(text.translate(_BASE85))


def _is_hook(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 3 and all(isinstance(word, str) for word in entry)


def fold(rules_text: str) -> str:
    """Rules in the short form of a document, in which each thing is said once; packing alone does not achieve that.

        :NATPOD-V-198.18.0.0/27
        -d 198.18.0.2/32 -m comment --comment "customer1/vm1" -j DNAT --to-destination 10.0.0.100
        -d 198.18.0.3/32 -m comment --comment "customer1/vm2" -j DNAT --to-destination 10.0.0.130
        :NATPOD-H-customer1
        -s 10.0.0.0/24 % -j SNAT --to-source %

    A chain's rules stand below its name.  `-s NETWORK %` stands for one rule for each address in the network that some
    rule translates to, in the order of the addresses.  Its first `%` is that rule's comment, and a second one is the
    address that it translates.  The last line above is two rules:

        -A NATPOD-H-customer1 -s 10.0.0.100/32 -m comment --comment "customer1/vm1" -j SNAT --to-source 198.18.0.2
        -A NATPOD-H-customer1 -s 10.0.0.130/32 -m comment --comment "customer1/vm2" -j SNAT --to-source 198.18.0.3

    And `-s 10.0.0.0/26 >NATPOD-H-` is the way into a branch of a long chain, whose name ends with its network:

        -s 10.0.0.0/26 -g NATPOD-H-10.0.0.0/26

    `--name %` is a mark with the name of the rule's own chain.  `-d +` is a rule for the address behind that of the
    last such rule, and `-d +3` for the third one behind it.  So the second line of the example is

        -d + -m comment --comment "customer1/vm2" -j DNAT --to-destination 10.0.0.130

    A text that would not come back word for word stays as it is.
    """
    known = _Translations(rules_text)
    chains: dict[str, list[str]] = {}
    out: list[str | list[str]] = []
    for line in rules_text.splitlines():
        if line.startswith(":"):
            name = line[1:].partition(" ")[0]
            out += [f":{name}", chains.setdefault(name, [])]
        elif line.startswith("-A "):
            chain, _, rule = line[len("-A ") :].partition(" ")
            chains.setdefault(chain, []).append(rule.replace(f"--name {chain} ", "--name % "))
        else:
            chains = {} if line.startswith("*") else chains
            out.append(line)
    lines = [line for part in out for line in ([part] if isinstance(part, str) else _fold_chain(part, known))]
    short = _counted("".join((_folded_branch(line) if " -g " in line else line) + "\n" for line in lines))
    return short if unfold(short) == rules_text else rules_text


def _counted(text: str) -> str:
    """Each rule for one destination a few addresses behind the one before, by how many: that is the same for most."""
    lines, last = [], -1
    for line in text.split("\n"):
        found = _TO_ONE.match(line)
        if found is not None:
            address, behind = number(found[1]), last
            last = address
            if behind >= 0 and 0 < address - behind < 10:
                line = f"-d +{address - behind if address - behind > 1 else ''} {found[2]}"
        lines.append(line)
    return "\n".join(lines)


def _spelled_out(short: str) -> str:
    """What `_counted` was given."""
    lines, last = [], 0
    for line in short.split("\n"):
        found = _TO_ONE_OR_NEXT.match(line)
        if found is not None:
            last = number(found[2]) if found[2] else last + int(found[1] or 1)
            line = f"-d {dotted(last & 0xFFFFFFFF)}/32 {found[3]}"
        lines.append(line)
    return "\n".join(lines)


def _folded_branch(line: str) -> str:
    return re.sub(r"^(-[sd] (\S+)) -g (\S+?)\2$", r"\1 >\3", line)


_TRANSLATION = re.compile(r'-d (\S{1,15})/32 (-m comment --comment "[^"]{1,99}") -j DNAT --to-destination (\S{1,15})')
_FROM_ONE = re.compile(r'-s (\S+)/32 (-m comment --comment "[^"]*") (.*)')
_FROM_KNOWN = re.compile(r"-s (\S{1,18}) % (.*)")
_TO_ONE = re.compile(r"-d (\S+)/32 (.*)")
_TO_ONE_OR_NEXT = re.compile(r"-d (?:\+([0-9]?)|(\S{1,15})/32) (.*)")


def _fold_chain(rules: Iterable[str], known: _Translations) -> list[str]:
    """A chain's rules, with one line for rules in a row that differ only in what `known` says of their sources."""
    out: list[str] = []
    for said, group in groupby(map(known.fold, rules), key=itemgetter(1)):
        alike = list(group)
        sources = [source for source, _ in alike if source is not None]
        if not sources:
            out += [said for _ in alike]
            continue
        length = 32 - (sources[0] ^ sources[-1]).bit_length()
        hosts = (1 << 32 - length) - 1
        first = sources[0] & ~hosts
        together = known.within(first, first | hosts) == sources
        networks = [f"{dotted(first)}/{length}"] if together else [f"{dotted(source)}/32" for source in sources]
        out += [f"-s {network} % {said}" for network in networks]
    return out


def unfold(short: str) -> str:
    """What `fold` was given; the agent does the same on the NAT VM.

    Raises ValueError when that is more than DOCUMENT_LIMIT bytes, or when something in an address's place is not one.
    """
    short = _spelled_out(short)
    known = _Translations(short)
    out: list[str] = []
    rules: list[str] = []
    chain, room = "", DOCUMENT_LIMIT
    for line in short.split("\n"):
        if line.startswith("-") and not line.startswith("-A "):
            for rule in known.unfold(line):
                rules.append(f"-A {chain} {rule}".replace("--name %", f"--name {chain}"))
                room -= len(rules[-1]) + 1
                if room < 0:
                    raise ValueError(f"its rules have more than {DOCUMENT_LIMIT} bytes")
            continue
        if line.startswith(":") and " " not in line:
            chain = line[1:]
            line += " - [0:0]"
        elif line == "COMMIT":
            out += rules
            rules = []
        out.append(line)
    return "\n".join(out + rules)


class _Translations:
    """By address that rules translate to, as a number: the address that they translate, and their comment."""

    def __init__(self, text: str) -> None:
        self.known = {number(real): (address, comment) for address, comment, real in _TRANSLATION.findall(text)}
        self.order = sorted(self.known)

    def within(self, first: int, last: int) -> list[int]:
        """Those from one address to another one, in order."""
        return self.order[bisect_left(self.order, first) : bisect_right(self.order, last)]

    def fold(self, rule: str) -> tuple[int | None, str]:
        """A rule's source and what it says of it in the short form; (None, the rule) where there is no such form."""
        found = _FROM_ONE.match(rule)
        if found is None:
            return None, rule
        source = number(found[1])
        address, comment = self.known.get(source, ("", ""))
        if comment != found[2]:
            return None, rule
        return source, found[3].replace(f"--to-source {address}", "--to-source %")

    def unfold(self, line: str) -> list[str]:
        """The rules that a line stands for, or the line itself if it stands for no others."""
        found = _FROM_KNOWN.match(line) if " % " in line else None
        if found is None and " >" not in line:
            return [line]
        if found is None:
            return [re.sub(r"^(-[sd] (\S{1,18})) >(\S+)$", r"\1 -g \3\2", line)]
        rules = []
        for source in self.within(*span(found[1])):
            address, comment = self.known[source]
            rules.append(f"-s {dotted(source)}/32 {comment} {found[2].replace('%', address, 1)}")
        return rules or [line]


def canonical(body: Mapping[str, object]) -> bytes:
    """A document's contents as the bytes that are packed."""
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def generation_of(body: Mapping[str, object]) -> str:
    """The hash that names these contents, which do not have it in them yet."""
    return hashlib.sha256(canonical(body)).hexdigest()[:16]
