"""The address book as a lock file: `allocate` gives new members a slot and edits its own block of the stack file.

`pulumi up` never invents or moves an address.  Only `allocate` gives out addresses, and it only adds.  A member that is
gone keeps its pair as `released`, because somebody may still send to it.  A member that comes back gets its old pair.
Every other line of the file stays as it is, comments included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import yaml
from netaddr import IPAddress

from nat_pod import limits
from nat_pod.config.addressing import Slot, default_layout
from nat_pod.config.aliases import block_of, free_aliases, owners
from nat_pod.config.any_config import AnyConfig
from nat_pod.config.model import PodConfig
from nat_pod.config.routed import RoutedConfig
from nat_pod.config.stack_file import load_text
from nat_pod.errors import NatPodError
from nat_pod.names import GATEWAY, INNER, MemberName, Role

KEY = "nat-pod:addresses"
GATEWAYS_KEY = "nat-pod:gateways"

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
    gateways: dict[str, int]
    """The lines of `gateways`: customers of a routed POD that are not in the first one, and those that have a line."""
    placed: tuple[str, ...]
    """The customers whose line there is new, or another one, or gone."""

    @property
    def changed(self) -> bool:
        """Whether the file has to be written."""
        return bool(self.added or self.returned or self.released or self.reused or self.renamed or self.placed)


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
    for name in _displaced(config, entries, back):
        del entries[name]
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
        slot = next(free[_kind(config, name)], None)
        if slot is None:
            missing = sum(1 for other in names if other not in entries)
            raise NatPodError(_none_left(config, name, missing, 0 if reuse else len(kept_back)))
        for former in kept_back.get(slot, ()):
            reused.append(former)
            del entries[former]
        entries[name] = Entry(slot)
        added.append(name)
    gateways, placed = _gateways(config)
    return Settled(
        entries=entries,
        added=tuple(added),
        returned=tuple(name for name in back if name not in added),
        released=gone,
        reused=tuple(reused),
        renamed=renamed,
        gateways=gateways,
        placed=placed,
    )


def _gateways(config: AnyConfig) -> tuple[dict[str, int], tuple[str, ...]]:
    """The lines of `gateways` as they have to be, and the customers whose line changes."""
    if not isinstance(config, RoutedConfig):
        return {}, ()
    before = config.gateway_lines
    wanted = {name: number for name, number in config.gateways.items() if number > 1 or name in before}
    return wanted, tuple(name for name in {**before, **wanted} if before.get(name) != wanted.get(name))


def _displaced(config: AnyConfig, entries: Mapping[MemberName, Entry], back: Iterable[MemberName]) -> list[MemberName]:
    """Members that come back, and whose alias is in a block that is another gateway's by now: they need a new one."""
    if not isinstance(config, RoutedConfig):
        return []
    others = {name: entry.slot for name, entry in entries.items() if isinstance(entry.slot, IPAddress)}
    returned = {name: others.pop(name) for name in back if name in others}
    owned = owners(others, config.role_if_any)
    return [
        name
        for name, alias in returned.items()
        if owned.get(int(block_of(alias).first), config.role(name)) != config.role(name)
    ]


def _kind(config: AnyConfig, name: MemberName) -> Role:
    """Whose aliases a member gets one of: in a routed POD its role's; slots are everybody's."""
    match config:
        case PodConfig():
            return Role(name.side)
        case RoutedConfig():
            return config.role(name)
        case _ as never:
            assert_never(never)


def _free(
    config: AnyConfig, entries: Mapping[MemberName, Entry], unavailable: Iterable[Place]
) -> dict[Role, Iterator[Place]]:
    """What the members of each role may get, in the order in which it is handed out."""
    taken = set(unavailable)
    match config:
        case PodConfig():
            slots: Iterator[Place] = iter([slot for slot in config.layout.slots() if slot not in taken])
            return dict.fromkeys((GATEWAY, INNER), slots)
        case RoutedConfig():
            aliases = {name: entry.slot for name, entry in entries.items() if isinstance(entry.slot, IPAddress)}
            owned = owners(aliases, config.role_if_any)
            return {
                role: free_aliases(config.cidr, config.vcn, role=role, owned=owned, taken=taken)
                for role in config.roles
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
    if not first.is_server and len(config.roles) > 2:
        mine, others = f"hosts of {config.role(first).prose}", "servers' or another gateway"
    lines = [
        f"{KEY}: no alias left for {missing} more from {first} on: every block of {config.cidr} outside the VCN's "
        f"{config.vcn} is full or is for the {others}"
    ]
    if kept_back:
        lines.append(f"kept as released: {kept_back}; `allocate --reuse` hands out those in blocks of the {mine}")
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
            f"nat-pod:subnets has {pairs} of the {nat_vm.vnic_limit} pairs that {nat_vm.words} can have: one more /27 "
            f"in natVm1 and one in natVm2 bring {each} slots"
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """A mapping below `config` as it has to be: what stands for each name, and the line that says so.

    former: present names by the ones that are written, of whoever was renamed.  read: a value as it is in the file, in
    the form of `values`.
    """

    key: str
    form: str
    values: dict[str, object]
    lines: dict[str, str]
    former: Callable[[str], str]
    read: Callable[[object], object]


def _book_block(config: AnyConfig, settled: Settled) -> _Block:
    def former(written: str) -> str:
        new = config.renames.member(MemberName.parse(written))
        return new if written not in settled.entries and new in settled.renamed else written

    return _Block(
        key=KEY,
        form=_form(config),
        values={name: as_written(config, entry) for name, entry in settled.entries.items()},
        lines={name: _line(name, entry, config) for name, entry in settled.entries.items()},
        former=former,
        read=_read,
    )


def _gateway_block(config: AnyConfig, settled: Settled) -> _Block:
    return _Block(
        key=GATEWAYS_KEY,
        form="customer: number",
        values=dict(settled.gateways),
        lines={name: f"{name}: {number}" for name, number in settled.gateways.items()},
        former=config.renames.realm,
        read=lambda value: int(str(value)),
    )


def edit(text: str, config: AnyConfig, settled: Settled) -> str:
    """The stack file's text with the blocks of the book, and of the gateways, brought up to date.

    Unchanged entries keep their lines and so their comments.  A changed entry is rewritten in place, and a new one is
    added at the end.  Line ends stay as they are.  The result is read back, and must be the same file with another
    book.  Raises NatPodError when the file has a form that cannot be edited line by line.
    """
    if settled.placed:
        text = _with_block(text, _gateway_block(config, settled))
    return _with_block(text, _book_block(config, settled))


def _with_block(text: str, block: _Block) -> str:
    before: Any = load_text(text)
    try:
        result = _edited_text(text, before, block)
        after: Any = load_text(result)
        found = {name: block.read(entry) for name, entry in (after["config"].pop(block.key, None) or {}).items()}
        before["config"].pop(block.key, None)
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError):
        after, found = None, {}
    if after != before or found != block.values:
        raise NatPodError(
            f"{block.key}: this block is written in a form that cannot be edited in place; "
            f"write it as one `{block.form}` a line and try again (nothing was changed)"
        )
    return result


def _edited_text(text: str, loaded: dict[str, Any], block: _Block) -> str:
    lines = text.splitlines(keepends=True)
    newline = "\r\n" if lines[0].endswith("\r\n") else "\n"
    if not lines[-1].endswith(("\n", "\r")):
        lines[-1] += newline
    config_node, node = _nodes(text, block.key)
    if not isinstance(node, yaml.MappingNode) or node.flow_style or not node.value or not block.lines:
        new_lines = _rewritten(lines, config_node, node, block)
    else:
        new_lines = _edited(lines, node, loaded["config"][block.key], block)
    return "".join(line if line.endswith(("\n", "\r")) else f"{line}{newline}" for line in new_lines)


def _nodes(text: str, wanted: str) -> tuple[yaml.MappingNode, yaml.Node | None]:
    """The `config` mapping and a block in it: a mapping, an empty scalar, or None when there is no such key."""
    root = yaml.compose(text, yaml.SafeLoader)
    config_node = next((value for key, value in root.value if key.value == "config"), None) if root else None
    if not isinstance(config_node, yaml.MappingNode) or not config_node.value:
        raise LookupError("config")  # everything stands in Pulumi.yaml
    for key, value in config_node.value:
        if key.value == wanted:
            # A new block goes where the key is; an empty value is a scalar behind the key.
            found: yaml.Node = value
            found.start_mark = key.start_mark
            return config_node, found
    return config_node, None


def _rewritten(lines: list[str], config_node: yaml.MappingNode, node: yaml.Node | None, block: _Block) -> list[str]:
    """The whole block, in place of an empty block or one on a single line, or new.

    A new one stands at the end of `config`, but above the address book, which is long.
    """
    indent = " " * config_node.value[0][0].start_mark.column
    body = [f"{indent}  {line}" for line in block.lines.values()]
    if node is None:
        book = next((key.start_mark.line for key, _ in config_node.value if key.value == KEY), None)
        last = max(_last_line(lines, value) for _, value in config_node.value)
        place = last + 1 if book is None else book
        return [*lines[:place], f"{indent}{block.key}:", *body, *lines[place:]]
    first, last = node.start_mark.line, _last_line(lines, node)
    head = [f"{indent}{block.key}:{_comment(lines, node)}"] if body or block.key == KEY else []
    return [*lines[:first], *head, *body, *lines[last + 1 :]]


def _edited(lines: list[str], node: yaml.MappingNode, loaded: dict[str, Any], block: _Block) -> list[str]:
    """Line by line: keep, rewrite or drop each entry, and add the new ones behind the last; a renamed one stays put."""
    written = {key.value for key, _ in node.value}
    names = {name: new if (new := block.former(name)) not in written else name for name in written}
    indent = " " * node.value[0][0].start_mark.column
    result = list(lines[: node.value[0][0].start_mark.line])
    for index, (key, value) in enumerate(node.value):
        start, end = key.start_mark.line, _last_line(lines, value)
        following = node.value[index + 1][0].start_mark.line if index + 1 < len(node.value) else end + 1
        name = names[key.value]
        if name in block.lines:
            kept = name == key.value and block.read(loaded[key.value]) == block.values[name]
            rewritten = f"{indent}{block.lines[name]}{_comment(lines, value)}"
            result += lines[start : end + 1] if kept else [rewritten]
        result += lines[end + 1 : following]  # comments between two entries
    present = set(names.values())
    result += [f"{indent}{line}" for name, line in block.lines.items() if name not in present]
    last = _last_line(lines, node.value[-1][1])
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
