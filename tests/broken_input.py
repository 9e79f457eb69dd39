"""A seeded generator of input that is nearly right: stack files, rule documents, answers of IMDS.

Each case starts from something good and is damaged in one to three places, so that most of it still is what the reader
expects; noise alone is refused at the first byte and shows nothing.  The same seed gives the same cases.
"""

from __future__ import annotations

import base64
import bz2
import copy
import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

from nat_pod.plan.document import from_printable, printable

# What people paste, mistype or leave behind, and what an attacker would try.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 27, 2**31, 2**63, 10**400, 1.5, float("nan"), float("inf"), "", " ", "~", "no", "\x00",
    "é", "\u202e", "a" * 300, "../../etc/passwd", "$(reboot)", "'; DROP", "{{ x }}", "-j ACCEPT", "10.0.0.100\n",
    "10.0.0.100", "10.0.0.0/24", "10.0.0.1/24", "10.0.0.0/33", "10.0.0", "010.0.0.1", "256.0.0.1", "1", "::1",
    "fe80::/10",
    "0.0.0.0", "0.0.0.0/0", "127.0.0.1", "169.254.169.254", "169.254.0.0/16", "224.0.0.1", "255.255.255.255",
    "198.18.0.0/15", "198.18.0.0/22", "198.18.0.0/27", "198.18.0.2", "198.18.0.31", "198.18.3.250", "198.19.255.255",
    "VM.Standard2.1", "VM.Standard2.24", "VM.Optimized3.Flex", "masquerade", "static", "management/mgmt",
    "customer1/vm1",
    "management", "pod", "vrouter", "stranger", [], {}, [None], [[]], {"": None}, {"a": {"b": []}}, ["10.0.0.100"],
    {"vm1": "10.0.0.100"}, {"natVm1": "198.18.0.2", "natVm2": "198.18.0.130"}, ["198.18.0.0/27", "198.18.0.32/27"],
)  # fmt: skip
KEYS: tuple[Any, ...] = (
    "", "x", "hosts", "cidr", "Cidr", "server", "servers", "formerly", "peerId", "released", "natVm1", "natVm3", "vm1",
    "customer1", "management", "pod", 0, True, None, 1.5, "a" * 80, "é", "a/b", "a.b", "__proto__", "nat-pod:cidr",
)  # fmt: skip


def places(value: object, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a nested value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, entry in items for found in [(*prefix, key), *places(entry, (*prefix, key))]]


def damaged(good: object, chance: random.Random) -> Any:
    """A copy of a nested value with one to three places changed."""
    value = copy.deepcopy(good)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        found = places(value)
        if not found:
            break
        *path, last = chance.choice(found)
        parent: Any = value
        for key in path:
            parent = parent[key]
        match chance.randrange(6):
            case 0 | 1:
                parent[last] = copy.deepcopy(chance.choice(VALUES))
            case 2:
                del parent[last]
            case 3 if isinstance(parent, dict):
                parent[chance.choice(KEYS)] = parent.pop(last)
            case 3 | 4 if isinstance(parent, dict):
                parent[chance.choice(KEYS)] = copy.deepcopy(chance.choice([*VALUES, parent[last]]))
            case 5:  # what stands elsewhere in the same file: the right form at the wrong place
                *other, name = chance.choice(found)
                source: Any = value
                try:
                    for key in other:
                        source = source[key]
                    parent[last] = copy.deepcopy(source[name])
                except (KeyError, IndexError, TypeError):
                    parent[last] = None
            case _:
                parent[last] = _garbled(str(parent[last]), chance)
    return value


def _garbled(text: str, chance: random.Random) -> str:
    """A text with a piece of it lost, doubled, exchanged or followed by something."""
    if not text:
        return chance.choice("x0\n\t\0")
    at, to = sorted((chance.randrange(len(text) + 1), chance.randrange(len(text) + 1)))
    match chance.randrange(5):
        case 0:
            return text[:at] + text[to:]
        case 1:
            return text[:to] + text[at:]
        case 2:
            return text[:at] + chance.choice("\0\t\n\r \"'#&*!|>%@`{}[]:,-?é\ufeff\u2028\U0001f600") + text[at:]
        case 3:
            return text[:at] + text[at:to][::-1] + text[to:]
    return text[:at]


def stack_files(good: str, count: int, seed: int) -> Iterator[bytes]:
    """Stack files made from the text of a good one: three of four with another content, one as a broken text."""
    chance = random.Random(seed)
    content = yaml.safe_load(good)
    for _ in range(count):
        if chance.randrange(4):
            text = yaml.safe_dump(damaged(content, chance), allow_unicode=True, sort_keys=False)
        else:
            text = good
            for _ in range(chance.choice((1, 2, 5))):
                text = _garbled(text, chance) if chance.randrange(8) == 0 else _line_damaged(text, chance)
        raw = text.encode("utf-8", errors="surrogatepass")
        if chance.randrange(40) == 0:
            at = chance.randrange(len(raw) + 1)
            raw = raw[:at] + bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9))) + raw[at:]
        yield raw


def _line_damaged(text: str, chance: random.Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    at = chance.randrange(len(lines))
    match chance.randrange(5):
        case 0:
            lines.insert(chance.randrange(len(lines)), lines[at])
        case 1:
            del lines[at]
        case 2:
            lines[at] = " " * chance.randrange(1, 5) + lines[at]
        case 3:
            lines[at] = lines[at].replace(chance.choice(":{}[],. "), chance.choice((":", "{", "}", "[", ",", "", " ")))
        case _:
            lines[at] = _garbled(lines[at].rstrip("\n"), chance) + "\n"
    return "".join(lines)


# Words for rules: what belongs there, what belongs elsewhere, and what must never get in.
_WORDS = (
    "-A", "-I", "-D", "-N", "-X", "-j", "-g", "-s", "-d", "-i", "-o", "-p", "-m", "!", "--to", "--to-source",
    "--comment",
    "--to-destination", "--ctstate", "--dport", "ACCEPT", "DROP", "REJECT", "RETURN", "DNAT", "SNAT", "NETMAP", "LOG",
    "MASQUERADE", "NFQUEUE", "NATPOD-PRE", "NATPOD-POST", "NATPOD-FORWARD", "NATPOD-X", "PREROUTING", "INPUT",
    "FORWARD",
    "OUTPUT", "InstanceServices", "conntrack", "comment", "tcp", "udp", "icmp", "NEW", "DNAT,SNAT", "22", "65536", "-1",
    "--tcp-flags", "FIN,SYN,RST,ACK",
    "169.254.169.254", "127.0.0.1", "0.0.0.0/0", "0.0.0.0/1", "10.0.0.100", "10.0.0.100/32", "10.0.0.100:22",
    "224.0.0.0/4",
    "160.0.0.0/3", "10.0.0.1-10.0.0.9", "10.0.0.0/33", "::1", '"', '"a b"', "'a'", "\\", "$(reboot)", ";reboot", "",
    " ",
    "\t", "\n", "COMMIT", "*nat", "*filter", "*raw", ":NATPOD-PRE - [0:0]", ":FORWARD ACCEPT [0:0]", "# x", "\0", "é",
)  # fmt: skip


def rule_documents(good: str, count: int, seed: int) -> Iterator[str]:
    """Documents made from a good one: broken while packed, in what is packed or in its rules, mostly rightly hashed."""
    chance = random.Random(seed)
    head, _, packed = good.partition(":")
    body = json.loads(bz2.decompress(from_printable(packed)))
    for _ in range(count):
        kind = chance.randrange(10)
        if kind == 0:
            yield _garbled(good, chance)
        elif kind == 1:
            raw = bytearray(bz2.decompress(from_printable(packed)))
            raw[chance.randrange(len(raw))] = chance.randrange(256)
            yield _packed(head, bytes(raw), chance)
        elif kind <= 3:
            changed = damaged(body, chance)
            yield _packed(head, _sealed(changed, chance), chance)
        else:
            changed = {**body, "rules": _rules_damaged(body["rules"], chance)}
            yield _packed(head, _sealed(changed, chance), chance)


def _rules_damaged(text: str, chance: random.Random) -> str:
    lines = text.split("\n")
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(lines))
        words = lines[at].split(" ")
        match chance.randrange(8):
            case 0:
                del lines[at]
                lines = lines or [""]
            case 1:
                lines.insert(chance.randrange(len(lines) + 1), lines[at])
            case 2:
                other = chance.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3 | 4:
                words[chance.randrange(len(words))] = chance.choice(_WORDS)
                lines[at] = " ".join(words)
            case 5:
                words.insert(chance.randrange(len(words) + 1), chance.choice(_WORDS))
                lines[at] = " ".join(words)
            case 6:
                words[chance.randrange(len(words))] = chance.choice(chance.choice(lines).split(" "))
                lines[at] = " ".join(words)
            case _:
                lines[at] = _garbled(lines[at], chance)
    return "\n".join(lines)


def _sealed(body: object, chance: random.Random) -> bytes:
    """A document's JSON with the hash that it claims: usually the right one, or only the hash would be tested."""
    if isinstance(body, dict) and chance.randrange(20):
        written = json.loads(json.dumps(body, default=str, skipkeys=True))  # all keys are texts now
        plain = {key: value for key, value in written.items() if key != "generation"}
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        body = {**plain, "generation": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]}
    return json.dumps(body, default=str, skipkeys=True).encode(errors="surrogatepass")


def _packed(head: str, raw: bytes, chance: random.Random) -> str:
    text = printable(bz2.compress(raw, 1))
    return f"{head if chance.randrange(50) else chance.choice(('2', '', '01', 'x' * 99))}:{text}"


# What somebody who owns a NAT VM, or writes to its console, would put into a report.
_STRANGE: tuple[Any, ...] = (
    "\x1b]0;owned\x07\x1b[2J", "\x9b31m", "a\r\nfine", "\u202eenif", "\ud800", "w" * 100_000, ["\x1b[2J"] * 1000,
    10**400, 10**4000, 2**64 - 1, 2**64, "1e400", [{"address": "10.0.0.1", "interface": None, "up": True}] * 300,
    "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59-14:00", "2025-06-15T15:06:40", "[" * 5000,
)  # fmt: skip


def reports(good: dict[str, object], count: int, seed: int) -> Iterator[str]:
    """Reports made from a good one, as JSON or as a console shows them: damaged in their values, or as texts."""
    chance = random.Random(seed)
    for _ in range(count):
        report = damaged(good, chance)
        if isinstance(report, dict) and chance.randrange(2):
            *path, last = chance.choice(places(report) or [("x",)])
            parent: Any = report
            for key in path:
                parent = parent[key]
            parent[last] = copy.deepcopy(chance.choice(_STRANGE))
        text = json.dumps(report, skipkeys=True)
        if chance.randrange(5) == 0:
            text = _garbled(text, chance).replace('"stale": 0', f'"stale": {chance.choice(("1e400", "NaN", "-0"))}')
        if chance.randrange(2):
            packed = base64.b64encode(bz2.compress(text.encode(errors="surrogatepass"), 1)).decode()
            packed = _garbled(packed, chance) if chance.randrange(8) == 0 else packed
            text = "".join(
                f"\x1b[0m[ 9.{at}] nat-pod: {{}} report {packed}\r\n" for at in range(chance.randrange(1, 4))
            )
        yield text


def vnic_lists(good: list[dict[str, object]], count: int, seed: int) -> Iterator[str]:
    """VNIC lists made from a good one."""
    chance = random.Random(seed)
    for _ in range(count):
        text = json.dumps(damaged(good, chance), skipkeys=True)
        yield _garbled(text, chance) if chance.randrange(5) == 0 else text


_STATUSES = (
    "200 OK", "200", "404 Not Found", "429 Too Many Requests", "500 x", "301 Moved", "099 ?", "99999 x", "abc", "",
    "204 No Content", "100 Continue", "206 Partial",
)  # fmt: skip


def http_answers(good: str, count: int, seed: int) -> Iterator[bytes]:
    """Answers of a web server, as bytes: a good body under broken heads, broken bodies under good ones, and halves."""
    chance = random.Random(seed)
    for _ in range(count):
        body = good if chance.randrange(2) else _garbled(good, chance)
        raw = body.encode("utf-8", errors="surrogatepass")
        if chance.randrange(10) == 0:
            raw = bytes(chance.randrange(256) for _ in range(chance.randrange(200)))
        status = chance.choice(_STATUSES)
        length = chance.choice((len(raw), len(raw) - 1, len(raw) + 9, -1, 10**12, "x", ""))
        heads = chance.sample(
            [f"Content-Length: {length}", "Transfer-Encoding: chunked", "Connection: close", "Content-Encoding: gzip",
             f"X: {'y' * chance.choice((1, 100, 70000))}", "no colon", ": empty", "Content-Type: text/html",
    "\x00: \x01"],
            chance.randrange(5),
        )  # fmt: skip
        version = chance.choice(("HTTP/1.1", "HTTP/1.0", "HTTP/1.1", "HTTP/1.1", "HTTP/9", "SSH-2.0-x", ""))
        answer = "\r\n".join([f"{version} {status}", *heads, "", ""]).encode("latin-1") + raw
        yield answer[: chance.randrange(len(answer) + 1)] if chance.randrange(6) == 0 else answer
