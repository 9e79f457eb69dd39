"""Every setting of a stack file, one by one: path -> value, the same wherever two files mean the same.

`diff` accounts for each of them.  They are read from plain values and not from PodConfig: a key that PodConfig does not
keep would otherwise be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nat_pod import limits
from nat_pod.config.delivery import defaults, written
from nat_pod.config.renames import Renames
from nat_pod.names import MANAGEMENT, NAMESPACE, MemberName

Path = tuple[str, ...]
"""A setting's place: ("customers", "customer1", "hosts", "vm1"); of another namespace its full key, ("oci:region",)."""

BESIDE = "beside config"
"""First part of the place of a setting that stands beside `config` in a stack file."""

Value = str | tuple[str, ...]
"""A setting's value: scalars as people read them, and lists."""

_SHAPE: Path = ("natVm", "shape")


@dataclass(frozen=True, slots=True)
class Changed:
    """A setting that differs; None where it is not written."""

    path: Path
    old: Value | None
    new: Value | None


def settings(config: Mapping[str, object], beside: Mapping[str, object] | None = None) -> dict[Path, Value]:
    """Every setting of a stack file.

    config: its keys with their namespaces, beside: what stands beside them, as a `Stack` has both.  A shape that is
    written as a name alone, the order of a customer's servers or of a policy, a list of one CIDR, `released: false`, a
    number in quotes and an omitted default make no difference, nor does `address:` before an alias.
    """
    delivery = written(config.get(f"{NAMESPACE}:delivery"))
    found: dict[Path, Value] = {("delivery",): str(delivery), ("lpgLimit",): str(limits.LPGS_PER_VCN)}
    found |= {(key,): _text(value) for key, value in defaults(delivery).items() if value not in ("", {})}
    for key, value in (beside or {}).items():
        found.update(_leaves((BESIDE, str(key)), value))
    for key, value in config.items():
        namespace, _, name = key.partition(":")
        found.update(_leaves((name,) if namespace == NAMESPACE else (key,), value))
    if _SHAPE in found:
        found[(*_SHAPE, "shape")] = found.pop(_SHAPE)
    # An alias may be written without `address:`, and an empty vcnCidr or movesFrom means the same as none.
    return {
        (*path, "address") if len(path) == 2 and path[0] == "addresses" else path: value
        for path, value in found.items()
        if value or path not in (("vcnCidr",), ("movesFrom",))
    }


def renamed(old: Mapping[Path, Value], renames: Renames) -> dict[Path, Value]:
    """The settings with renamed customers and members under their new names."""
    return dict(_renamed(path, value, renames) for path, value in old.items())


def _renamed(path: Path, value: Value, renames: Renames) -> tuple[Path, Value]:
    match path:
        case ("customers", customer, "hosts", host):
            member = renames.member(MemberName(customer, host))
            return ("customers", member.realm, "hosts", member.short), value
        case ("customers", customer, "servers"):
            servers = (renames.member(MemberName(MANAGEMENT, name)).short for name in value)
            return ("customers", renames.realm(customer), "servers"), tuple(sorted(servers))
        case ("customers", customer, *rest):
            return ("customers", renames.realm(customer), *rest), value
        case ("management", "servers", server):
            return ("management", "servers", renames.member(MemberName(MANAGEMENT, server)).short), value
        case ("gateways", customer):
            return ("gateways", renames.realm(customer)), value
        case ("policy", *ends):
            return ("policy", *(_renamed_end(end, renames) for end in ends)), value
        case ("addresses", member, *rest):
            return ("addresses", renames.member(MemberName.parse(member)), *rest), value
    return path, value


def _renamed_end(end: str, renames: Renames) -> str:
    """An end of a policy's entry: a member's name, or a realm's."""
    return renames.member(MemberName.parse(end)) if "/" in end else renames.realm(end)


def changed(old: Mapping[Path, Value], new: Mapping[Path, Value]) -> tuple[Changed, ...]:
    """The settings that differ, in the order of the new file and then of the old one."""
    paths = [*new, *(path for path in old if path not in new)]
    return tuple(Changed(path, old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path))


def _leaves(path: Path, value: object) -> Iterator[tuple[Path, Value]]:
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield from _leaves((*path, str(key)), member)
    elif path == ("policy",) and isinstance(value, list):
        for entry in value:
            allowed = tuple(sorted(map(_text, entry["allow"])))
            yield ("policy", _text(entry["from"]), _text(entry["to"])), allowed or "nothing"
    elif isinstance(value, list):
        texts = [_text(member) for member in value]
        if path[-1] == "cidr" and len(texts) == 1:
            yield path, texts[0]
        else:
            yield path, tuple(sorted(texts) if path[-1] == "servers" else texts)
    elif value is not None and not (path[-1] == "released" and value is False):
        yield path, _text(value)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)
