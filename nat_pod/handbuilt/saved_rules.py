"""Rules as people keep them, for `import`: `iptables-save` output (`-c` too), or `iptables -t nat ...` commands.

It stands beside `iptables.py`, which reads exactly what nat-pod writes and refuses the rest: a hand-built NAT VM has
other people's rules, and one odd line must not hide the mappings around it.  Here a line is either understood in full
or kept in `unread` with the reason; a rule with conditions that no mapping has (a port, a mark) keeps them in `narrow`.
Nothing is skipped in silence.

Addresses are ints here and networks (first, last): one import compares some hundred thousand of them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from nat_pod.errors import NatPodError

Range = tuple[int, int]
ANY: Range = (0, 2**32 - 1)
_BUILT_IN = ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")
MOST_BYTES = 16_000_000
_DEEPEST = 100
_LONGEST = 2_000  # a comment has 256 characters at most
MOST_RULES = 100_000  # a POD of 696 hosts in the article's form has some 11,000


class Action(StrEnum):
    """What a rule does.  `LOG` stands for all that look at a packet and let it go on."""

    DNAT = "DNAT"
    SNAT = "SNAT"
    NETMAP = "NETMAP"
    MASQUERADE = "MASQUERADE"
    ACCEPT = "ACCEPT"
    RETURN = "RETURN"
    JUMP = "jump"
    GOTO = "goto"
    LOG = "LOG"


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedRule:
    """One rule of the nat table.

    line, text: where it stands and how, without counters.  not_source, not_destination: networks behind a `!`.
    to: the new address or network.  chain: the one it jumps to.  narrow: conditions that are not evaluated, as written;
    such a rule applies to a part of the packets only.
    """

    line: int
    text: str
    source: Range = ANY
    destination: Range = ANY
    not_source: Range | None = None
    not_destination: Range | None = None
    in_interface: str | None = None  # "! docker0" when negated
    out_interface: str | None = None
    ctstate: frozenset[str] | None = None
    comment: str = ""
    narrow: str = ""
    action: Action | None = None  # None: it only counts
    to: Range | None = None
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Unread:
    """A line that is not understood, and why."""

    line: int
    text: str
    why: str


@dataclass(slots=True)
class SavedTable:
    """The nat table of one VM: its chains, what could not be read, how many rules stand in other tables."""

    chains: dict[str, list[SavedRule]] = field(default_factory=lambda: {name: [] for name in _BUILT_IN})
    unread: list[Unread] = field(default_factory=list)
    other_tables: dict[str, int] = field(default_factory=dict)

    def rules(self) -> Iterator[tuple[str, SavedRule]]:
        """All rules with the chain each stands in."""
        for name, rules in self.chains.items():
            for rule in rules:
                yield name, rule


# What `rules STACK --vm` prints above the rules: the agent enters our chains from the built-in ones.
_OWN_HOOK = re.compile(r"# (\w+): (\w+) enters (\S+) first")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]")
_COUNTERS = re.compile(r"\[\d+:\d+\] ")
_COMMAND = re.compile(r"(?:sudo\s+)?(?:/\S*/)?(?:iptables|iptables-nft|iptables-legacy)\s+(.*)")
_FOREIGN = (
    (re.compile(r"\s*<(!doctype|html|\?xml)", re.IGNORECASE), "is a web page"),
    (re.compile(r"\s*[{\[]"), "is JSON"),
    (re.compile(r"table (ip|ip6|inet|arp|bridge|netdev) \S+ \{", re.MULTILINE), "is the output of `nft list ruleset`"),
    (
        re.compile(r"^(Chain|num) .*", re.MULTILINE),
        "is a listing (`iptables -nvL`), which leaves out parts of the rules",
    ),
)


def read_saved(data: bytes, source: str) -> SavedTable:
    """Read one VM's nat table.

    source: the file's name, for messages.  Raises NatPodError for what is no rule set at all, or only a part of one.
    """
    text = _text(data, source)
    table = SavedTable()
    current: str | None = None
    hooks: list[tuple[str, SavedRule]] = []
    count = 0
    for number, raw in enumerate(text.split("\n"), 1):  # not splitlines(): editors count line feeds
        line = _COUNTERS.sub("", raw.strip(), count=1) if raw.startswith("[") else raw.strip()
        if not line:
            continue
        if line.startswith("#"):
            own = _OWN_HOOK.fullmatch(line)
            if own is not None and own[1] == "nat":
                hooks.append((own[2], SavedRule(line=number, text=line, action=Action.JUMP, chain=own[3])))
            elif "incompatible" in line:
                raise NatPodError(f"{source}: line {number}: iptables says that it cannot show all rules: {line}")
        elif line.startswith("*"):
            if current is not None:
                raise NatPodError(
                    f"{source}: line {number}: {line} stands inside table {current}; is a COMMIT missing?"
                )
            current = line[1:]
            if current == "nat" and any(rules for rules in table.chains.values()):
                raise NatPodError(f"{source}: line {number}: a second nat table; give one file of one VM")
        elif line == "COMMIT" and current is not None:
            current = None
        elif line.startswith(":") and current is not None:
            if current == "nat":
                table.chains.setdefault(line[1:].split(" ")[0], [])
        else:
            count += 1
            if count > MOST_RULES:
                raise NatPodError(f"{source}: has more than {MOST_RULES} rules; a POD has some thousands")
            _take(table, number, line, current)
    if current is not None:
        raise NatPodError(f"{source}: ends inside table {current}, before its COMMIT: a part of the file is missing")
    for builtin, hook in reversed(hooks):
        table.chains.setdefault(builtin, []).insert(0, hook)
    if not any(rules for rules in table.chains.values()):
        raise NatPodError(f"{source}: has no rule of a nat table; {_HOW}")
    _resolve(table, source)
    return table


_HOW = "on the NAT VM, run: sudo iptables-save > vm1.save"


def _text(data: bytes, source: str) -> str:
    if len(data) > MOST_BYTES:
        raise NatPodError(f"{source}: has more than {MOST_BYTES // 1_000_000} MB; a POD's rules have less than one")
    if not data.strip():
        raise NatPodError(f"{source}: is empty; {_HOW}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if _CONTROL.search(text):  # also what would command a terminal when the rule is shown
        raise NatPodError(f"{source}: is not text; {_HOW}")
    head = text[:20_000]
    for pattern, what in _FOREIGN:
        if pattern.match(text) or (pattern.flags & re.MULTILINE and pattern.search(head)):
            raise NatPodError(f"{source}: {what}; {_HOW}")
    return text


def _take(table: SavedTable, number: int, line: str, current: str | None) -> None:
    """One line that is a rule, or should be one."""
    try:
        if len(line) > _LONGEST:
            line = f"{line[:77]}..."
            raise ValueError("is longer than any rule")
        command = _COMMAND.fullmatch(line) if current is None else None
        if command is not None:
            name, words = _table_of(_words(command[1], shell=True))
        elif current is not None:
            name, words = current, _words(line)
        elif line.startswith(("-P ", "-N ", "-A ")):  # `iptables -t nat -S`
            name, words = "nat", _words(line)
        else:
            raise ValueError("is neither iptables-save output nor an iptables command")
        if name != "nat":
            table.other_tables[name] = table.other_tables.get(name, 0) + 1
            return
        _apply(table, number, line, words)
    except ValueError as error:
        table.unread.append(Unread(number, line, str(error)))


def _words(text: str, *, shell: bool = False) -> list[str]:
    if not set(text) & set("\"'\\#"):
        return text.split()  # shlex takes a hundred times as long
    return shlex.split(text, comments=shell)


def _table_of(words: list[str]) -> tuple[str, list[str]]:
    for option in ("-t", "--table"):
        if option in words[:-1]:
            at = words.index(option)
            return words[at + 1], words[:at] + words[at + 2 :]
    return "filter", words


def _apply(table: SavedTable, number: int, text: str, words: list[str]) -> None:
    """One iptables command on the nat table; iptables-save writes `-A` only."""
    while words and words[0] in ("-w", "--wait", "-v", "--verbose"):
        words = words[1:]
    command = {"--append": "-A", "--insert": "-I", "--new-chain": "-N", "--new": "-N", "--flush": "-F"}.get(
        words[0] if words else "", words[0] if words else ""
    )
    if command == "-F":
        for chain in words[1:2] or list(table.chains):
            table.chains[chain] = []
        return
    if command in ("-P", "-X", "-Z"):
        return  # policies of the nat table, empty chains and counters translate nothing
    if command not in ("-A", "-I", "-N") or len(words) < 2:
        raise ValueError("is a command that import does not follow; give the output of iptables-save")
    chain, rest = words[1], words[2:]
    if command == "-N":
        table.chains.setdefault(chain, [])
        return
    if chain not in table.chains:
        raise ValueError(f"the nat table has no chain {chain}")
    place = len(table.chains[chain])
    if command == "-I":
        place = 0
        if rest and rest[0].isdigit():
            place, rest = max(0, int(rest[0]) - 1), rest[1:]
    table.chains[chain][place:place] = _rules(SavedRule(line=number, text=text), rest)


# --- one rule ------------------------------------------------------------------------------------------------------

_LONG = {
    "--source": "-s", "--src": "-s", "--destination": "-d", "--dst": "-d", "--jump": "-j", "--goto": "-g",
    "--in-interface": "-i", "--out-interface": "-o", "--protocol": "-p", "--proto": "-p", "--match": "-m",
}  # fmt: skip
_FLAGS = ("--random", "--random-fully", "--persistent")  # how a port is chosen: nothing a mapping says
_TO = {"--to-destination": Action.DNAT, "--to-source": Action.SNAT, "--to": Action.NETMAP, "--to-ports": None}
_PLAIN = {action.value: action for action in (Action.DNAT, Action.SNAT, Action.NETMAP, Action.MASQUERADE)}
_PLAIN |= {"ACCEPT": Action.ACCEPT, "RETURN": Action.RETURN}
_LOGGING = ("LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "TRACE", "SET", "AUDIT", "TOS", "DSCP")
_MODULES = ("comment", "conntrack", "state")


def _rules(rule: SavedRule, words: list[str]) -> list[SavedRule]:
    """The rule of these words: several when `-s` or `-d` lists several networks, as iptables itself makes of it."""
    values: dict[str, tuple[str, bool]] = {}
    narrow: list[str] = []
    flags = []
    position = 0
    while position < len(words):
        negated = words[position] == "!"
        position += negated
        if position == len(words):
            raise ValueError("ends with !")
        option, equals, attached = words[position].partition("=")
        option = _LONG.get(option, option)
        start, position = position, position + 1
        if option in _FLAGS:
            flags.append(option)
        elif option in _KNOWN:
            if not equals:
                if position == len(words):
                    raise ValueError(f"{option} has no value")
                attached, position = words[position], position + 1
                if attached == "!" and position < len(words):  # `-s ! 10.0.0.1`, the old form
                    negated, attached, position = True, words[position], position + 1
            if option == "-m":
                if attached not in _MODULES:
                    narrow.append(f"-m {attached}")
                continue
            if option in values:
                raise ValueError(f"{option} stands here twice")
            values[option] = (attached, negated)
        else:
            while position < len(words) and not words[position].startswith(("-", "!")):
                position += 1
            narrow.append(" ".join(["!"] * negated + words[start:position]))
    if "-p" in values and values["-p"] not in (("all", False), ("0", False)):
        protocol, negated = values["-p"]
        narrow.insert(0, f"{'! ' if negated else ''}-p {protocol}")
    rule = _target(rule, values, narrow)
    state = values.get("--ctstate") or values.get("--state")
    if state is not None and state[1]:
        narrow.append(f"! --ctstate {state[0]}")
        state = None
    rule = replace(
        rule,
        in_interface=_interface(values.get("-i")),
        out_interface=_interface(values.get("-o")),
        ctstate=None if state is None else frozenset(state[0].split(",")),
        comment=values.get("--comment", ("", False))[0],
        narrow=" ".join(narrow),
    )
    return [
        replace(rule, source=source, not_source=not_source, destination=destination, not_destination=not_destination)
        for source, not_source in _networks("-s", values.get("-s"))
        for destination, not_destination in _networks("-d", values.get("-d"))
    ]


_KNOWN = {"-s", "-d", "-i", "-o", "-p", "-m", "-j", "-g", "--comment", "--ctstate", "--state", *_TO}


def _target(rule: SavedRule, values: dict[str, tuple[str, bool]], narrow: list[str]) -> SavedRule:
    """The rule with its target; ports are conditions and go to `narrow`."""
    to = {option: values[option][0] for option in _TO if option in values}
    if "-g" in values:
        if "-j" in values or to:
            raise ValueError("has two targets")
        return replace(rule, action=Action.GOTO, chain=values["-g"][0])
    if "-j" not in values:
        if to:
            raise ValueError(f"{next(iter(to))} without -j")
        return rule
    name = values["-j"][0]
    action = _PLAIN.get(name)
    wanted = next((option for option, of in _TO.items() if of is action and of is not None), None)
    if action is None or action is Action.MASQUERADE:
        if name == "REDIRECT":
            raise ValueError("REDIRECT leads to the NAT VM itself; nat-pod has no such rule")
        if set(to) - ({"--to-ports"} if action is Action.MASQUERADE else set()):
            raise ValueError(f"-j {name} with {next(iter(to))} is no target that import knows")
        if to:
            narrow.append(f"--to-ports {to['--to-ports']}")
        if action is not None:
            return replace(rule, action=action)
        if name in _LOGGING:
            narrow.clear()  # whatever the conditions: it changes no address
            return replace(rule, action=Action.LOG)
        return replace(rule, action=Action.JUMP, chain=name)
    if wanted is not None and list(to) == ["--to"]:
        to = {wanted: to["--to"]}  # iptables takes a long option's beginning for the option
    if list(to) != ([] if wanted is None else [wanted]):
        raise ValueError(f"-j {name} takes {wanted or 'no address'}")
    if wanted is None:
        return replace(rule, action=action)
    address, colon, _ = to[wanted].partition(":")
    if colon:
        narrow.append(f"{wanted} {to[wanted]}")
    first, dash, last = address.partition("-")
    if dash and first != last:
        raise ValueError(f"translates to a range of addresses, {address}; a mapping is one address")
    return replace(rule, action=action, to=network(first))


def _interface(value: tuple[str, bool] | None) -> str | None:
    return None if value is None else f"! {value[0]}" if value[1] else value[0]


def _networks(option: str, value: tuple[str, bool] | None) -> list[tuple[Range, Range | None]]:
    """Pairs of (inside, not inside), one for each network of the list."""
    if value is None:
        return [(ANY, None)]
    text, negated = value
    if negated:
        if "," in text:
            raise ValueError(f"! {option} with a list is none that iptables takes")
        return [(ANY, network(text))]
    return [(network(part), None) for part in text.split(",")]


def network(text: str) -> Range:
    """`10.0.0.100`, `10.0.0.0/24` or `10.0.0.0/255.255.255.0` as (first, last).  Raises ValueError."""
    address, slash, prefix = text.partition("/")
    value = _address(address, text)
    if not slash:
        return value, value
    if "." in prefix:
        mask = _address(prefix, text)
        host_bits = (2**32 - 1) ^ mask
        if host_bits & (host_bits + 1):
            raise ValueError(f"{text} has a mask with holes")
    else:
        if not re.fullmatch(r"[0-9]{1,2}", prefix) or int(prefix) > 32:
            raise ValueError(f"{text} is no IPv4 network")
        host_bits = 2 ** (32 - int(prefix)) - 1
    return value & ~host_bits, value | host_bits


def dotted(address: int) -> str:
    """An address as people write it."""
    return ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))


def cidr(inside: Range) -> str:
    """A network as people write it, without /32."""
    size = inside[1] - inside[0] + 1
    return dotted(inside[0]) if size == 1 else f"{dotted(inside[0])}/{32 - size.bit_length() + 1}"


def _address(text: str, whole: str) -> int:
    parts = text.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts):
        raise ValueError(f"{whole} is no IPv4 address or network")
    first, second, third, fourth = map(int, parts)
    return first << 24 | second << 16 | third << 8 | fourth


# --- chains --------------------------------------------------------------------------------------------------------


def _resolve(table: SavedTable, source: str) -> None:
    """Take out jumps to what is not there; refuse chains that lead back to themselves."""
    for name, rules in table.chains.items():
        kept = []
        for rule in rules:
            if rule.action in (Action.JUMP, Action.GOTO) and rule.chain not in table.chains:
                why = f"{rule.chain} is neither a chain of this nat table nor a target that import knows"
                table.unread.append(Unread(rule.line, rule.text, why))
            else:
                kept.append(rule)
        table.chains[name] = kept
    table.unread.sort(key=lambda unread: unread.line)
    depth: dict[str, int] = {}  # of each chain, once all chains below it are known
    for start in table.chains:
        trail = [start] if start not in depth else []
        while trail:
            below = _jumps(table, trail[-1])
            following = next((chain for chain in below if chain not in depth), None)
            if following in trail:
                raise NatPodError(f"{source}: chain {following} leads back to itself; no kernel has such rules")
            if following is not None:
                trail.append(following)
                continue
            depth[trail[-1]] = 1 + max((depth[chain] for chain in below), default=0)
            trail.pop()
    if max(depth.values()) > _DEEPEST:
        raise NatPodError(f"{source}: its chains lead more than {_DEEPEST} deep; import gives up")


def _jumps(table: SavedTable, chain: str) -> list[str]:
    return sorted({rule.chain for rule in table.chains[chain] if rule.action in (Action.JUMP, Action.GOTO)})
