"""What a trial's machines have written to their serial consoles (`neighbours/probe.py`), read as values."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nat_pod.errors import excerpt

_LINE = re.compile(r"nat-pod-probe (\d{1,12}) (\d{1,9}) (\d{1,4})/(\d{1,4}) ([0-9a-f]{8}) ([A-Za-z0-9+/=]{1,500})")
_MOST_BYTES = 4 << 20  # of a report, unpacked
_MOST_TEXT = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of one probe.

    ok: it was answered; of flows that are held, that none was lost.  answer: what the far end said, `name` and `seen`.
    """

    ok: bool
    detail: str = ""
    name: str = ""
    seen: str = ""
    mtu: int | None = None
    opened: int = 0
    wanted: int = 0
    lost: int = 0
    pause: float = 0.0
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineReport:
    """One machine's report on one list of probes.

    heard: packets that reached it, as (how, token, source).  saw: when it saw the list, by its own clock.
    forwarded: of a vRouter, by the address of the VNIC at which they came in, packets that it sent on.
    """

    results: dict[int, Result]
    heard: frozenset[tuple[str, str, str]]
    about: dict[str, str]
    saw: float
    forwarded: dict[str, int]


def read_reports(console: str) -> tuple[dict[int, MachineReport], int]:
    """The newest whole report on each list, by its number; and how many reports were damaged."""
    parts: dict[tuple[int, int], dict[int, str]] = {}
    wanted: dict[tuple[int, int], int] = {}
    for number, count, part, of, check, text in _LINE.findall(console):
        key = int(number), int(count)
        parts.setdefault(key, {})
        wanted[key] = int(of)
        if int(check, 16) == zlib.crc32(f"{number} {count} {part}/{of} {text}".encode()):
            parts[key][int(part)] = text
    found: dict[int, MachineReport] = {}
    damaged = 0
    for key in sorted(parts):
        whole = "".join(parts[key].get(part, "?") for part in range(1, wanted[key] + 1))
        try:
            found[key[0]] = _report(json.loads(_unpacked(whole)))
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error, RecursionError):
            damaged += 1
    return found, damaged


def _unpacked(text: str) -> bytes:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(text, validate=True), _MOST_BYTES)
    if not unpacker.eof:
        raise ValueError("cut short, or too long")
    return data


def _report(found: Mapping[str, Any]) -> MachineReport:
    about = {name: _words(value) for name, value in found["about"].items() if name != "saw"}
    return MachineReport(
        results={int(probe): _result(result) for probe, result in found["results"].items()},
        heard=frozenset((_words(how), _words(token), _words(source)) for how, token, source in found["heard"]),
        about=about,
        saw=float(found["about"]["saw"]),
        forwarded={_words(address): int(packets) for address, packets in found["forwarded"].items()},
    )


def _result(found: Mapping[str, Any]) -> Result:
    said = re.match(r"name=(\S+) seen=(\S+)", str(found.get("answer", "")))
    mtu = found.get("mtu")
    return Result(
        ok=found["ok"] is True,
        detail=_words(found.get("detail", "")),
        name=_words(said[1]) if said else "",
        seen=_words(said[2]) if said else "",
        mtu=None if mtu is None else int(mtu),
        opened=int(found.get("opened", 0)),
        wanted=int(found.get("wanted", 0)),
        lost=int(found.get("lost", 0)),
        pause=float(found.get("pause", 0.0)),
        errors=tuple(_words(error) for error in found.get("errors", ())[:10]),
    )


def _words(value: object) -> str:
    """A machine's words, fit for a terminal and with an end."""
    return excerpt(str(value)[:_MOST_TEXT])
