"""Rules as people keep them, for `import`: `iptables-save` output (`-c` too), or `iptables -t nat ...` commands.

`rules/iptables.py` reads exactly what nat-pod writes and refuses everything else.  But a hand-built NAT VM has other
people's rules, and one odd line must not hide the mappings around it.  Here a line is either understood in full or kept
in `unread` with the reason.  Nothing is skipped silently.
"""

from __future__ import annotations

import re
import shlex

from nat_pod.errors import NatPodError
from nat_pod.handbuilt.rule_words import read_rule
from nat_pod.handbuilt.saved_table import Action, SavedRule, SavedTable, Unread

MOST_BYTES = 16_000_000
MOST_RULES = 100_000  # a POD of 696 hosts in the article's form has some 11,000
_DEEPEST = 100
_LONGEST = 2_000  # a comment has 256 characters at most; address lists of this length make some 10,000 rules

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

    source: the file's name, for messages.  Raises NatPodError for what is not a rule set, or only a part of one.
    """
    reader = _Reader(source)
    for number, raw in enumerate(_text(data, source).split("\n"), 1):  # not splitlines(): editors count line feeds
        line = _COUNTERS.sub("", raw.strip(), count=1) if raw.startswith("[") else raw.strip()
        if line:
            reader.take(number, line)
    return reader.finish()


class _Reader:
    """The file so far, line by line."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.table = SavedTable()
        self.inside: str | None = None  # the table that a `*` has begun
        self.hooks: list[tuple[str, SavedRule]] = []
        self.rules = 0

    def refuse(self, number: int, why: str) -> NatPodError:
        return NatPodError(f"{self.source}: line {number}: {why}")

    def take(self, number: int, line: str) -> None:
        """One line."""
        if line.startswith("#"):
            self.comment(number, line)
        elif line.startswith("*"):
            if self.inside is not None:
                raise self.refuse(number, f"{line} stands inside table {self.inside}; is a COMMIT missing?")
            self.inside = line[1:]
            if self.inside == "nat" and any(rules for rules in self.table.chains.values()):
                raise self.refuse(number, "begins a second nat table; give one file per VM")
        elif line == "COMMIT" and self.inside is not None:
            self.inside = None
        elif line.startswith(":") and self.inside is not None:
            if self.inside == "nat":
                self.table.chains.setdefault(line[1:].split(" ")[0], [])
        else:
            self.rule(number, line)

    def comment(self, number: int, line: str) -> None:
        own = _OWN_HOOK.fullmatch(line)
        if own is not None and own[1] == "nat":
            self.hooks.append((own[2], SavedRule(line=number, text=line, action=Action.JUMP, chain=own[3])))
        elif "incompatible" in line:
            raise self.refuse(number, f"iptables says that it cannot show all rules: {line}")

    def rule(self, number: int, line: str) -> None:
        """One line that is a rule, or should be one."""
        made = 1
        try:
            if len(line) > _LONGEST:
                line = f"{line[:77]}..."
                raise ValueError("is longer than any rule")
            name, words = _command(line, self.inside)
            if name != "nat":
                self.table.other_tables[name] = self.table.other_tables.get(name, 0) + 1
            else:
                made = _apply(self.table, number, line, words)
        except ValueError as error:
            self.table.unread.append(Unread(number, line, str(error)))
        self.rules += max(made, 1)
        if self.rules > MOST_RULES:
            lists = f", {made} of them on line {number}, which lists addresses" if made > 1 else ""
            raise NatPodError(
                f"{self.source}: has more than {MOST_RULES} rules{lists}; "
                "a full POD in the article's form has some 11000"
            )

    def finish(self) -> SavedTable:
        """The table, if it is whole."""
        if self.inside is not None:
            raise NatPodError(
                f"{self.source}: ends inside table {self.inside}, before its COMMIT: a part of the file is missing"
            )
        for builtin, hook in reversed(self.hooks):
            self.table.chains.setdefault(builtin, []).insert(0, hook)
        if not any(rules for rules in self.table.chains.values()):
            raise NatPodError(f"{self.source}: has no rules in a nat table; {_HOW}")
        _resolve(self.table, self.source)
        return self.table


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
    if _CONTROL.search(text):  # control characters too: they would command the terminal when the rule is shown
        raise NatPodError(f"{source}: is not text; {_HOW}")
    head = text[:20_000]
    for pattern, what in _FOREIGN:
        if pattern.match(text) or (pattern.flags & re.MULTILINE and pattern.search(head)):
            raise NatPodError(f"{source}: {what}; {_HOW}")
    return text


def _command(line: str, inside: str | None) -> tuple[str, list[str]]:
    """The table that a line belongs to, and the line's words."""
    command = _COMMAND.fullmatch(line) if inside is None else None
    if command is not None:
        return _table_of(_words(command[1], shell=True))
    if inside is not None:
        return inside, _words(line)
    if line.startswith(("-P ", "-N ", "-A ")):  # `iptables -t nat -S`
        return "nat", _words(line)
    raise ValueError("is neither iptables-save output nor an iptables command")


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


_SHORT = {"--append": "-A", "--insert": "-I", "--new-chain": "-N", "--new": "-N", "--flush": "-F"}


def _apply(table: SavedTable, number: int, text: str, words: list[str]) -> int:
    """One iptables command on the nat table; iptables-save writes `-A` only.  Returns how many rules it makes."""
    while words and words[0] in ("-w", "--wait", "-v", "--verbose"):
        words = words[1:]
    command = _SHORT.get(words[0], words[0]) if words else ""
    if command == "-F":
        for chain in words[1:2] or list(table.chains):
            table.chains[chain] = []
        return 0
    if command in ("-P", "-X", "-Z"):
        return 0  # policies of the nat table, empty chains and counters translate nothing
    if command not in ("-A", "-I", "-N") or len(words) < 2:
        raise ValueError("is a command that import does not follow; give the output of iptables-save")
    chain, rest = words[1], words[2:]
    if command == "-N":
        table.chains.setdefault(chain, [])
        return 0
    if chain not in table.chains:
        raise ValueError(f"the nat table has no chain {chain}")
    place = len(table.chains[chain])
    if command == "-I":
        place = 0
        if rest and rest[0].isdigit():
            place, rest = max(0, int(rest[0]) - 1), rest[1:]
    rules = read_rule(number, text, rest)
    table.chains[chain][place:place] = rules
    return len(rules)


# --- chains --------------------------------------------------------------------------------------------------------


def _resolve(table: SavedTable, source: str) -> None:
    """Take out jumps to what does not exist; refuse chains that lead back to themselves, or too deep."""
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
    if max(_depths(table, source).values()) > _DEEPEST:
        raise NatPodError(f"{source}: its chains are nested more than {_DEEPEST} deep; import gives up")


def _depths(table: SavedTable, source: str) -> dict[str, int]:
    """How many chains are below each chain, itself included."""
    depth: dict[str, int] = {}
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
    return depth


def _jumps(table: SavedTable, chain: str) -> list[str]:
    return sorted({rule.chain for rule in table.chains[chain] if rule.action in (Action.JUMP, Action.GOTO)})
