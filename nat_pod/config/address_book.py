"""The address book as a lock file: `allocate` gives new members a slot and edits its own block of the stack file.

`pulumi up` never invents or moves an address.  Only `allocate` gives out addresses, and it only adds.  A member that is
gone keeps its pair as `released`, because somebody may still send to it.  A member that comes back gets its old pair.
Every other line of the file stays as it is, comments included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import yaml
from netaddr import IPAddress

from nat_pod import limits
from nat_pod.config.addressing import Slot, default_layout
from nat_pod.config.aliases import free_aliases, owners
from nat_pod.config.any_config import AnyConfig
from nat_pod.config.model import PodConfig
from nat_pod.config.routed import RoutedConfig
from nat_pod.config.stack_file import load_text
from nat_pod.errors import NatPodError
from nat_pod.names import MemberName

KEY = "nat-pod:addresses"

Place = Slot | IPAddress
"""What a member owns: a slot, or with `delivery: routes` an alias."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the book."""

    slot: Place
    released: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """An address book that fits the members, and what was changed: member names by kind of change."""

    entries: dict[MemberName, Entry]
    added: tuple[MemberName, ...]
    returned: tuple[MemberName, ...]
    released: tuple[MemberName, ...]
    reused: tuple[MemberName, ...]
    renamed: tuple[MemberName, ...]

    @property
    def changed(self) -> bool:
        """Whether the file has to be written."""
        return bool(self.added or self.returned or self.released or self.reused or self.renamed)


def settle(config: AnyConfig, *, reuse: bool = False) -> Settled:
    """Give each member a slot (or an alias) and release those of members that are gone.  Pure.

    reuse: those kept as released count as free.  Raises NatPodError when the slots do not suffice.
    """
    names = [member.name for member in config.members]
    entries = {name: Entry(slot) for name, slot in config.book.items()}
    entries |= {name: Entry(slot, released=True) for name, slot in config.released.items()}
    entries, renamed = _renamed(entries, config)
    gone = tuple(name for name in entries if name not in names and not entries[name].released)
    back = tuple(name for name in names if name in entries and entries[name].released)
    for name in gone:
        entries[name] = Entry(entries[name].slot, released=True)
    for name in back:
        entries[name] = Entry(entries[name].slot)
    kept_back: dict[Place, list[MemberName]] = {}  # a server and a host may have shared it
    for name, entry in entries.items():
        if entry.released:
            kept_back.setdefault(entry.slot, []).append(name)
    taken = {entry.slot for entry in entries.values() if not entry.released}
    unavailable = taken if reuse else taken | kept_back.keys()
    free = _free(config, entries, unavailable)
    added, reused = [], []
    for name in names:
        if name in entries:
            continue
        slot = next(free[name.is_server], None)
        if slot is None:
            missing = sum(1 for other in names if other not in entries)
            raise NatPodError(_none_left(config, name, missing, 0 if reuse else len(kept_back)))
        for former in kept_back.get(slot, ()):
            reused.append(former)
            del entries[former]
        entries[name] = Entry(slot)
        added.append(name)
    return Settled(
        entries=entries, added=tuple(added), returned=back, released=gone, reused=tuple(reused), renamed=renamed
    )


def _free(
    config: AnyConfig, entries: Mapping[MemberName, Entry], unavailable: Iterable[Place]
) -> dict[bool, Iterator[Place]]:
    """What servers (True) and hosts (False) may get, in the order in which it is handed out."""
    taken = set(unavailable)
    match config:
        case PodConfig():
            slots: Iterator[Place] = iter([slot for slot in config.layout.slots() if slot not in taken])
            return dict.fromkeys((True, False), slots)
        case RoutedConfig():
            owned = owners({name: entry.slot for name, entry in entries.items() if isinstance(entry.slot, IPAddress)})
            return {
                servers: free_aliases(config.cidr, config.vcn, servers=servers, owned=owned, taken=taken)
                for servers in (True, False)
            }
        case _ as never:
            assert_never(never)


def _none_left(config: AnyConfig, first: MemberName, missing: int, kept_back: int) -> str:
    """What is full, and the ways to more room, a line each.  kept_back: released ones that --reuse may hand out."""
    match config:
        case PodConfig():
            return _no_slot_left(config, first, missing, kept_back)
        case RoutedConfig():
            return _no_alias_left(config, first, missing, kept_back)
        case _ as never:
            assert_never(never)


def _no_alias_left(config: RoutedConfig, first: MemberName, missing: int, kept_back: int) -> str:
    mine, others = ("servers", "hosts") if first.is_server else ("hosts", "servers")
    lines = [
        f"{KEY}: no alias left for {missing} more from {first} on: every block of {config.cidr} outside the VCN's "
        f"{config.vcn} is full or the {others}'"
    ]
    if kept_back:
        lines.append(f"kept as released, and handed out by allocate --reuse where they are the {mine}': {kept_back}")
    lines.append("a second POD takes more: python -m nat_pod new-pod --routed NAME")
    return "\n    ".join(lines)


def _no_slot_left(config: PodConfig, first: MemberName, missing: int, kept_back: int) -> str:
    layout, nat_vm, each = config.layout, config.nat_vm, limits.SLOTS_PER_PAIR
    pairs = len(layout.pairs)
    lines = [
        f"{KEY}: no slot left for {missing} more from {first} on: all {layout.capacity} are taken, {each} per VNIC pair"
    ]
    if kept_back:
        lines.append(f"kept as released, and handed out by allocate --reuse: {kept_back} of them")
    if layout.pinned and pairs < nat_vm.vnic_limit:
        lines.append(
            f"nat-pod:subnets has {pairs} of the {nat_vm.vnic_limit} pairs that {nat_vm.words} can have: a /27 more in "
            f"natVm1 and in natVm2 brings {each}"
        )
    most = limits.MAX_VNICS if layout.pinned else len(default_layout(config.cidr, limits.MAX_VNICS).pairs)
    larger = None
    if pairs == nat_vm.vnic_limit < most:
        larger = nat_vm.larger(min(most, -(-(layout.capacity + missing) // each)))
    if larger is not None:
        lines.append(
            f"{nat_vm.words} has {nat_vm.vnic_limit} VNICs; {larger.words} has {larger.vnic_limit}: "
            f"{each * min(most, larger.vnic_limit)} slots"
        )
    lines.append("a second POD takes more: python -m nat_pod new-pod NAME")
    return "\n    ".join(lines)


def _renamed(
    entries: dict[MemberName, Entry], config: AnyConfig
) -> tuple[dict[MemberName, Entry], tuple[MemberName, ...]]:
    """The entries with those of renamed customers and members under their new names, and these: slots do not move."""
    result, renamed = {}, []
    for name, entry in entries.items():
        new = config.renames.member(name)
        if new != name and new not in entries:
            renamed.append(new)
            result[new] = entry
        else:
            result[name] = entry
    return result, tuple(renamed)


def edit(text: str, config: AnyConfig, settled: Settled) -> str:
    """The stack file's text with the book's block brought up to date.

    Unchanged entries keep their lines and so their comments.  A changed entry is rewritten in place, and a new one is
    added at the end.  Line ends stay as they are.  The result is read back, and must be the same file with another
    book.  Raises NatPodError when the file has a form that cannot be edited line by line.
    """
    before: Any = load_text(text)
    wanted = {name: as_written(config, entry) for name, entry in settled.entries.items()}
    try:
        result = _edited_text(text, before, config, settled)
        after: Any = load_text(result)
        book = {name: _read(entry) for name, entry in (after["config"].pop(KEY, None) or {}).items()}
        before["config"].pop(KEY, None)
    except (yaml.YAMLError, AttributeError, LookupError, TypeError):
        after, book = None, {}
    if after != before or book != wanted:
        raise NatPodError(
            f"{KEY}: this block is written in a form that cannot be edited in place; "
            f"write it as one `{_form(config)}` a line and try again (nothing was changed)"
        )
    return result


def _edited_text(text: str, loaded: dict[str, Any], config: AnyConfig, settled: Settled) -> str:
    lines = text.splitlines(keepends=True)
    newline = "\r\n" if lines[0].endswith("\r\n") else "\n"
    if not lines[-1].endswith(("\n", "\r")):
        lines[-1] += newline
    config_node, block = _nodes(text)
    if not isinstance(block, yaml.MappingNode) or block.flow_style or not block.value:
        new_lines = _rewritten(lines, config_node, block, config, settled)
    else:
        new_lines = _edited(lines, block, loaded["config"][KEY], config, settled)
    return "".join(line if line.endswith(("\n", "\r")) else f"{line}{newline}" for line in new_lines)


def _nodes(text: str) -> tuple[yaml.MappingNode, yaml.Node | None]:
    """The `config` mapping and the book in it: a mapping, an empty scalar, or None when there is no such key."""
    root = yaml.compose(text, yaml.SafeLoader)
    config_node = next((value for key, value in root.value if key.value == "config"), None) if root else None
    if not isinstance(config_node, yaml.MappingNode) or not config_node.value:
        raise LookupError("config")  # everything stands in Pulumi.yaml
    for key, value in config_node.value:
        if key.value == KEY:
            # A new block goes where the key is; an empty value is a scalar behind the key.
            found: yaml.Node = value
            found.start_mark = key.start_mark
            return config_node, found
    return config_node, None


def _rewritten(
    lines: list[str],
    config_node: yaml.MappingNode,
    block: yaml.Node | None,
    config: AnyConfig,
    settled: Settled,
) -> list[str]:
    """The whole block, in place of an empty block or one on a single line, or at the end of `config`."""
    indent = " " * config_node.value[0][0].start_mark.column
    body = [f"{indent}  {_line(name, entry, config)}" for name, entry in settled.entries.items()]
    if block is None:
        last = max(_last_line(lines, value) for _, value in config_node.value)
        return [*lines[: last + 1], f"{indent}{KEY}:", *body, *lines[last + 1 :]]
    first, last = block.start_mark.line, _last_line(lines, block)
    return [*lines[:first], f"{indent}{KEY}:{_comment(lines, block)}", *body, *lines[last + 1 :]]


def _edited(
    lines: list[str], block: yaml.MappingNode, loaded: dict[str, Any], config: AnyConfig, settled: Settled
) -> list[str]:
    """Line by line: keep, rewrite or drop each entry, and add the new ones behind the last; a renamed one stays put."""
    names = {key.value: key.value for key, _ in block.value}
    for former in names.keys() - settled.entries.keys():
        new = config.renames.member(MemberName.parse(former))
        if new in settled.renamed and new not in names:
            names[former] = new
    indent = " " * block.value[0][0].start_mark.column
    result = list(lines[: block.value[0][0].start_mark.line])
    for index, (key, value) in enumerate(block.value):
        start, end = key.start_mark.line, _last_line(lines, value)
        following = block.value[index + 1][0].start_mark.line if index + 1 < len(block.value) else end + 1
        name = names[key.value]
        entry = settled.entries.get(name)
        if entry is not None:
            kept = name == key.value and _read(loaded[key.value]) == as_written(config, entry)
            written = f"{indent}{_line(name, entry, config)}{_comment(lines, value)}"
            result += lines[start : end + 1] if kept else [written]
        result += lines[end + 1 : following]  # comments between two entries
    present = set(names.values())
    result += [
        f"{indent}{_line(name, entry, config)}" for name, entry in settled.entries.items() if name not in present
    ]
    last = _last_line(lines, block.value[-1][1])
    return result + lines[last + 1 :]


def _last_line(lines: list[str], node: yaml.Node) -> int:
    """The last line that belongs to a node.  A block's end mark is at the next token, so its last child decides."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(lines, last[1] if isinstance(last, tuple) else last)
    line = int(node.end_mark.line) - (
        1 if node.end_mark.column == 0 and node.end_mark.line > node.start_mark.line else 0
    )
    line = min(line, len(lines) - 1)
    while line > node.start_mark.line and (not lines[line].strip() or lines[line].lstrip().startswith("#")):
        line -= 1
    return line


def _comment(lines: list[str], node: yaml.Node) -> str:
    """The comment behind a one-line node, with the blanks before it."""
    mark = node.end_mark
    rest = lines[mark.line][mark.column :].rstrip() if mark.line < len(lines) and mark.column else ""
    return rest if rest.lstrip().startswith("#") else ""


def words(config: AnyConfig, entry: Entry) -> str:
    """What a member owns, for people: both addresses of a slot, or an alias."""
    return " / ".join(_addresses(config, entry).values())


def _form(config: AnyConfig) -> str:
    match config:
        case PodConfig():
            return "member: {natVm1: ..., natVm2: ...}"
        case RoutedConfig():
            return "member: address"
        case _ as never:
            assert_never(never)


def _line(name: str, entry: Entry, config: AnyConfig) -> str:
    addresses = _addresses(config, entry)
    if not entry.released and [*addresses] == ["address"]:
        return f"{name}: {addresses['address']}"
    parts = [f"{key}: {value}" for key, value in addresses.items()] + ["released: true"] * entry.released
    return f"{name}: {{{', '.join(parts)}}}"


def _addresses(config: AnyConfig, entry: Entry) -> dict[str, str]:
    if isinstance(entry.slot, Slot):
        assert isinstance(config, PodConfig)
        nat_vm1, nat_vm2 = config.layout.addresses(entry.slot)
        return {"natVm1": nat_vm1, "natVm2": nat_vm2}
    return {"address": str(entry.slot)}


def as_written(config: AnyConfig, entry: Entry) -> dict[str, object]:
    """An entry as a mapping; in a stack file an alias may stand alone."""
    value: dict[str, object] = {**_addresses(config, entry)}
    return {**value, "released": True} if entry.released else value


def _read(entry: object) -> dict[str, object]:
    """An entry as it is written in a file; `released: false` is left out, and an alias may stand alone."""
    if not isinstance(entry, dict):
        return {"address": entry}
    return {key: value for key, value in entry.items() if key != "released" or value is True}
