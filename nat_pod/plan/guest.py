"""What a NAT VM is given: the bootstrap (user_data) and the rule document, as instance metadata.

Facts this module rests on
- OCI replaces an instance when `user_data` or `ssh_authorized_keys` changes; every other metadata key changes in
  place (OCI Terraform provider, `core_instance_resource.go`).  So user_data is one constant per release, and the
  rules travel in a key of their own.
- All metadata together may have 32,000 bytes (OCI API, LaunchInstanceDetails).
- bz2 has one implementation, so packing a document gives the same bytes on any machine; zlib and zlib-ng differ, and
  so may releases of liblzma, which makes a folded document no smaller (8,184 bytes against 8,186 for a full /21).
- base85 is 6 % shorter than base64.  Go's JSON, which the provider sends, writes <, > and & in six bytes each, so
  documents have other signs in their place.
- user_data must be gzip, the only packing that cloud-init undoes.  Packed again on another machine its bytes would
  differ, and that would replace every NAT VM.  So it is a committed file.  The agent in it is bzip2, which runcmd
  undoes: 700 bytes shorter.  It stands last, in a gzip member of its own, because the code that packs the text before
  it does not suit base64: 300 bytes shorter.  What is local to its functions has short names: 1,400 bytes shorter.

`python -m nat_pod.plan.guest` rebuilds the committed file from `cloud-init/`.
"""

from __future__ import annotations

import ast
import base64
import bz2
import gzip
import hashlib
import io
import json
import re
import string
import sys
import tokenize
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter

from nat_pod.files import TOP_LEVEL
from nat_pod.ipv4 import dotted, number, span
from nat_pod.limits import METADATA_BYTES, METADATA_OVERHEAD_BYTES
from nat_pod.plan.short_names import with_short_names

FORMAT = "4"
"""The format of a document.  The agent refuses any other, so a new format needs a new bootstrap."""

VM_KEY = "nat-pod-vm"
"""The VM's own name, e.g. natVm1, or natVm1a where two VMs play a side."""

SIDE_KEY = "nat-pod-side"
"""Which side's rule document it runs, where that is not its name."""

RULES_KEY = "nat-pod-rules"

_PLAIN = str.maketrans("<>&", ",./")
_BASE85 = str.maketrans(",./", "<>&")
DOCUMENT_LIMIT = 4 << 20
"""Most bytes of a document unpacked, and of its rules unfolded (a full POD: 270 kB).  The agent has the same bound: a
few bytes of metadata must not fill its memory."""

_PACKED_AGENT = base64.b64encode(b"BZh9").decode()[:4]
"""How the agent's content begins in the cloud-config."""

SOURCES = TOP_LEVEL / "cloud-init"
ARTEFACT = SOURCES / "user-data.b64"

# Placeholder in cloud-config.yaml: file in cloud-init/.
_FILES = {
    "agent": "nat_pod_agent.py",
    "agent_service": "nat-pod-agent.service",
    "agent_timer": "nat-pod-agent.timer",
    "restore_service": "nat-pod-restore.service",
    "health_service": "nat-pod-health.service",
    "sysctl": "90-nat-pod.conf",
    "forwarding": "forwarding.conf",
    "networkmanager": "90-nat-pod-networkmanager.conf",
}


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
    generation = _generation(body)
    packed = bz2.compress(_canonical(body | {"generation": generation}))
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
    if generation != _generation(body):
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


def metadata(
    vm: str,
    side: str,
    ssh_key: str,
    hooks: Sequence[tuple[str, str, str]],
    rules_text: str,
    health: int | None = None,
) -> tuple[dict[str, str], str]:
    """All metadata of a NAT VM, and the generation of the rule document in it: the same for all VMs of a side.

    vm: its own name.  health: see `Document`.
    """
    document, generation = rule_document(side, hooks, rules_text, health)
    return {
        "user_data": render_user_data(),
        "ssh_authorized_keys": ssh_key,
        VM_KEY: vm,
        **({} if vm == side else {SIDE_KEY: side}),
        RULES_KEY: document,
    }, generation


def metadata_bytes(values: Mapping[str, str]) -> int:
    """Bytes of all keys and values."""
    return sum(len(key.encode()) + len(value.encode()) for key, value in values.items())


def budget_problem(values: Mapping[str, str]) -> str | None:
    """Why this metadata does not fit an instance, with figures, or None when it fits."""
    used, room = metadata_bytes(values), METADATA_BYTES - METADATA_OVERHEAD_BYTES
    if used <= room:
        return None
    parts = ", ".join(f"{key} {len(value.encode())}" for key, value in values.items())
    return (
        f"{used} bytes ({parts}), {used - room} more than fit: OCI takes {METADATA_BYTES}, of which "
        f"{METADATA_OVERHEAD_BYTES} are kept free; use fewer members, or spread them over two PODs"
    )


def render_user_data() -> str:
    """The bootstrap as it is deployed: base64 of gzip of the cloud-config, as committed."""
    return ARTEFACT.read_text(encoding="ascii").strip()


@cache
def agent_id() -> str:
    """What the agent of the bootstrap calls itself in its report: a hash of its program, as runcmd writes that.

    Not a version: each release would then replace all NAT VMs, though nothing but the number had changed.
    """
    packed = unpack_user_data(render_user_data()).rpartition(f'"{_PACKED_AGENT}')[2].partition('"')[0]
    agent = bz2.decompress(base64.b64decode(_PACKED_AGENT + packed))
    return hashlib.sha256(agent + b"\n").hexdigest()[:12]


def render_cloud_config() -> str:
    """The cloud-config as the sources in `cloud-init/` give it, before packing."""
    values = {name: (SOURCES / file).read_text(encoding="utf-8") for name, file in _FILES.items()}
    agent = without_blanks(without_comments(without_docstrings(with_short_names(values["agent"]))))
    values["agent"] = base64.b64encode(bz2.compress(agent.encode())).decode()
    # A JSON string is a YAML string, whatever is in it.
    quoted = {name: json.dumps(without_comments(value)) for name, value in values.items()}
    template = (SOURCES / "cloud-config.yaml").read_text(encoding="utf-8")
    return without_comments(string.Template(template).substitute(quoted))


def without_comments(text: str) -> str:
    """A file without comment lines and blank lines; `#!` and `#cloud-config` are not comments.

    Comments are a third of the sources' bytes, and the rules need that room.  Besides, a better comment would otherwise
    change user_data and so replace every NAT VM at the next `pulumi up`.
    """
    kept = [
        line
        for line in text.splitlines()
        if line.startswith(("#!", "#cloud-config")) or (line.strip() and not line.lstrip().startswith("#"))
    ]
    return "".join(line + "\n" for line in kept)


def without_docstrings(source: str) -> str:
    """A Python source without docstrings and comments, for the same reasons.

    It is indented by one blank per level, and what stands in brackets is on one line.
    """
    lines = source.splitlines()
    drop: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            docstring = node.body[0]
            rows = range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1)
            drop.update(rows)
            if len(node.body) == 1:  # a body must not become empty
                lines[rows[0] - 1] = " " * docstring.col_offset + "pass"
                drop.remove(rows[0])
    goes_on: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.line.startswith("#!"):
            continue
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column].rstrip()
        if token.type == tokenize.NL and lines[row - 1].strip():  # between brackets, where it means nothing
            goes_on.add(row)
    text = ""
    for row, line in enumerate(lines, 1):
        if row in drop or not line:
            continue
        words = line.lstrip()
        if not text or text.endswith("\n"):
            text += " " * ((len(line) - len(words)) // 4) + words
        elif words[0] in ")]}":
            text = text.removesuffix(",") + words
        else:
            text += words if text[-1] in "([{" else f" {words}"
        text += "" if row in goes_on else "\n"
    return text


def without_blanks(source: str) -> str:
    """A Python source without the blanks between words of a line that mean nothing: `a = b if c else "d"` as
    `a=b if c else"d"`.  There are no comments in it, and no statement has several lines."""
    text, lines = "", source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (row, column), words = token.start, token.string
        if token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER) or not words:
            continue
        if not text or text.endswith("\n"):
            text += lines[row - 1][:column] + words
        else:
            text += f" {words}" if re.match(r"\w\w", text[-1] + words[0]) else words
    return text


def unpack_user_data(value: str) -> str:
    """The cloud-config in a `user_data` value."""
    return gzip.decompress(base64.b64decode(value, validate=True)).decode()


def build() -> bool:
    """Write the committed file if its unpacked contents differ from the sources.  Returns whether it was written."""
    config = render_cloud_config()
    if ARTEFACT.exists() and unpack_user_data(render_user_data()) == config:
        return False
    text, quote, agent = config.rpartition('"' + _PACKED_AGENT)
    packed = _member((text + quote).encode(), zlib.Z_DEFAULT_STRATEGY) + _member(agent.encode(), zlib.Z_HUFFMAN_ONLY)
    ARTEFACT.write_text(base64.b64encode(packed).decode() + "\n", encoding="ascii")
    return True


def _member(data: bytes, strategy: int) -> bytes:
    """A gzip member, without a name or a time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS, 9, strategy)
    return packer.compress(data) + packer.flush()


def _canonical(body: Mapping[str, object]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _generation(body: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()[:16]


def main() -> int:
    """Rebuild `cloud-init/user-data.b64`."""
    written = build()
    print(f"{ARTEFACT}: {'written' if written else 'up to date'}, {len(render_user_data())} bytes")
    if written:
        print("NAT VMs deployed with the former user_data will be replaced by the next `pulumi up`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
