"""Rules as text: iptables-restore input from a Ruleset, and back.

`render` writes each rule the way `iptables-save` prints it, `parse` reads exactly what `render` writes.  Anything
else is refused: a reader that skips what it does not know would let the tracer predict a packet's way through rules
that say something else.

A line has one comment, which says whom or what the rule is for.  With a slash it is a member's full name, without one
it is a note:

    -A NATPOD-V-198.18.0.0/27 -d 198.18.0.2/32 -m comment --comment "customer1/vm1" -j DNAT --to-destination 10.0.0.100
    -A NATPOD-FORWARD -m comment --comment "no mapping translated it" -j DROP

`_comment` writes it and `_read_comment` reads it.  Where only text is at hand, others read the same form: the rule
document says each member's comment once (`fold` in plan/document.py, undone by the agent), the agent adds up what the
kernel counted for each member, and `handbuilt/` takes members' names from saved rules.

One restore input has both tables, so each table is loaded in one transaction and never in pieces.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from nat_pod.config.services import LAST_PORT, Ports
from nat_pod.rules.netfilter import (
    CHAIN_NAME_LIMIT,
    OWN_PREFIX,
    AboveBound,
    Accept,
    Chain,
    Dnat,
    Drop,
    Goto,
    Hook,
    Marked,
    Match,
    Netmap,
    Rule,
    Ruleset,
    Snat,
    Table,
    Target,
)

_MEMBER = re.compile(r"[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}")
_NOTE = re.compile(r"[A-Za-z0-9 ._:,()>-]{1,200}")
_RECENT = r"--name (?P<name>\S{1,28}) --mask (?P<mask>[0-9.]{7,15}) --\w{1,9} "
_ABOVE = re.compile(
    r"-m statistic --mode random --probability (?P<share>0\.0*[1-9][0-9]*) "
    r"-m connlimit --connlimit-above (?P<above>[0-9]{1,9}) --connlimit-mask [0-9]{1,2} --connlimit-\w{1,9} "
    rf"-m recent --set {_RECENT}"
)
_MARKED = re.compile(rf"-m recent --rcheck --seconds (?P<seconds>[0-9]{{1,9}}) {_RECENT}")
_CHAIN = re.compile(rf"{OWN_PREFIX}[A-Za-z0-9./-]{{1,{CHAIN_NAME_LIMIT - len(OWN_PREFIX)}}}")


def render(rules: Ruleset) -> str:
    """A Ruleset as iptables-restore input for `--noflush`: our chains only, filter before nat.

    Raises ValueError for a chain name or comment that iptables would not take: a bug in the compiler.
    """
    lines = []
    for table in rules.tables:
        lines.append(f"*{table.name}")
        for chain in table.chains:
            if not _CHAIN.fullmatch(chain.name):
                raise ValueError(f"chain name {chain.name!r} is not {_CHAIN.pattern}")
            lines.append(f":{chain.name} - [0:0]")
        lines.extend(render_rule(chain.name, rule) for chain in table.chains for rule in chain.rules)
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def hooks(rules: Ruleset) -> list[tuple[str, str, str]]:
    """Where our chains are entered: (table, built-in chain, our chain), each by the first rule there."""
    return [(table.name, hook.builtin, hook.chain) for table in rules.tables for hook in table.hooks]


def render_rule(chain: str, rule: Rule) -> str:
    """One rule as a line of iptables-restore input."""
    match = rule.match
    words = [f"-A {chain}"]
    if match.source is not None:
        words.append(f"-s {match.source}")
    if match.destination is not None:
        words.append(f"-d {match.destination}")
    if match.in_interface is not None:
        words.append(f"-i {match.in_interface}")
    if match.protocol is not None:
        words.append(f"-p {match.protocol}")
        if match.icmp_type is not None:
            words.append(f"-m icmp --icmp-type {match.icmp_type}")
        if any(value is not None for value in (match.source_port, match.destination_port, match.tcp_flags)):
            words.append(f"-m {match.protocol}")
        if match.source_port is not None:
            words.append(f"--sport {_ports_text(match.source_port)}")
        if match.destination_port is not None:
            words.append(f"--dport {_ports_text(match.destination_port)}")
        if match.tcp_flags is not None:
            words.append(f"--tcp-flags {match.tcp_flags}")
    if match.ctstate or match.opened_from is not None or match.answered_from is not None:
        words.append("-m conntrack")
    if match.ctstate:
        words.append(f"--ctstate {','.join(match.ctstate)}")
    if match.opened_from is not None:
        words.append(f"--ctorigsrc {match.opened_from}")
    if match.answered_from is not None:
        words.append(f"--ctreplsrc {match.answered_from}")
    if match.bound is not None:
        words.append(_bound_text(match.bound))
    if comment := _comment(rule):
        words.append(f'-m comment --comment "{comment}"')
    words.append(_target_text(rule.target))
    return " ".join(words)


def parse(text: str, own_hooks: Sequence[tuple[str, str, str]]) -> Ruleset:
    """Read what `render` and `hooks` made.

    Raises ValueError with the line for anything that `render` does not write, and for a jump to a chain that the
    table does not have.
    """
    found: dict[str, dict[str, list[Rule]]] = {}
    table: dict[str, list[Rule]] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.startswith("*") and table is None and line[1:] not in found:
                table = found.setdefault(line[1:], {})
            elif line == "COMMIT" and table is not None:
                table = None
            elif line.startswith(":") and table is not None:
                name, policy, counters = line[1:].split(" ")
                if (policy, counters) != ("-", "[0:0]") or not _CHAIN.fullmatch(name) or name in table:
                    raise ValueError("a chain of ours stands here once, as `:NATPOD-NAME - [0:0]`")
                table[name] = []
            elif line.startswith("-A ") and table is not None:
                rest, bound = _take_bound(line)
                words = shlex.split(rest)
                table[words[1]].append(_read_rule(words[2:], bound))
            else:
                raise ValueError("is none of *table, :chain, -A rule, COMMIT in its place")
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f"line {number}: {line!r}: {error}") from None
    if sorted(found) != ["filter", "nat"] or table is not None:
        raise ValueError(f"tables are {sorted(found)}, each closed by COMMIT; expected filter and nat")
    for name, chains in found.items():
        targets = {rule.target.chain for rules in chains.values() for rule in rules if isinstance(rule.target, Goto)}
        targets |= {chain for hooked, _, chain in own_hooks if hooked == name}
        if targets - set(chains):
            raise ValueError(f"table {name} has no chain {', '.join(sorted(targets - set(chains)))}")
    tables = {
        name: Table(
            name,
            tuple(Hook(builtin, chain) for hooked, builtin, chain in own_hooks if hooked == name),
            tuple(Chain(chain, tuple(rules)) for chain, rules in chains.items()),
        )
        for name, chains in found.items()
    }
    return Ruleset(filter=tables["filter"], nat=tables["nat"])


def _comment(rule: Rule) -> str:
    """The comment that says whom or what a rule is for; "" for none.  Raises ValueError if it has another form."""
    for form, said in ((_MEMBER, rule.member), (_NOTE, rule.note)):
        if said and not form.fullmatch(said):
            raise ValueError(f"comment {said!r} is not {form.pattern}")
    return rule.member or rule.note


def _read_comment(comment: str) -> tuple[str, str]:
    """The member and the note of a comment that `_comment` wrote.  Raises ValueError for any other."""
    form = _MEMBER if "/" in comment else _NOTE
    if comment and not form.fullmatch(comment):
        raise ValueError(f"comment {comment!r} is not {form.pattern}")
    return (comment, "") if form is _MEMBER else ("", comment)


def _bound_text(bound: AboveBound | Marked) -> str:
    recent = "--mask 255.255.255.255 --rdest" if bound.by_destination else "--mask 0.0.0.0 --rsource"
    match bound:
        case AboveBound():
            connlimit = "32 --connlimit-daddr" if bound.by_destination else "0 --connlimit-saddr"
            return (
                f"-m statistic --mode random --probability {1 / bound.sample:.11f} "
                f"-m connlimit --connlimit-above {bound.above} --connlimit-mask {connlimit} "
                f"-m recent --set --name {bound.name} {recent}"
            )
        case Marked():
            return f"-m recent --rcheck --seconds {bound.seconds} --name {bound.name} {recent}"


def _take_bound(line: str) -> tuple[str, AboveBound | Marked | None]:
    """A line without its words about a bound, and what they say.  Raises ValueError for words in another form."""
    found = _ABOVE.search(line) or _MARKED.search(line)
    if found is None or '"' in line[: found.start()]:
        return line, None
    said = found.groupdict()
    by_destination = said["mask"] != "0.0.0.0"
    bound: AboveBound | Marked
    if "seconds" in said:
        bound = Marked(name=said["name"], seconds=int(said["seconds"]), by_destination=by_destination)
    else:
        bound = AboveBound(
            name=said["name"],
            above=int(said["above"]),
            sample=round(1 / float(said["share"])),
            by_destination=by_destination,
        )
    if found.group() != f"{_bound_text(bound)} ":
        raise ValueError(f"{found.group()!r} is not how nat-pod writes a bound")
    return line.replace(found.group(), "", 1), bound


def _target_text(target: Target) -> str:
    match target:
        case Accept():
            return "-j ACCEPT"
        case Drop():
            return "-j DROP"
        case Goto(chain):
            return f"-g {chain}"
        case Dnat(to):
            return f"-j DNAT --to-destination {to}"
        case Snat(to):
            return f"-j SNAT --to-source {to}"
        case Netmap(to):
            return f"-j NETMAP --to {to}"


def _read_rule(words: list[str], bound: AboveBound | Marked | None) -> Rule:
    """The words behind `-A CHAIN`, but for those about the bound."""
    values: dict[str, str] = {}
    modules = set()
    rest = list(words)
    while rest:
        option = rest.pop(0)
        if option == "-m":
            modules.add(rest.pop(0))
        elif option == "--tcp-flags" and option not in values:
            values[option] = f"{rest.pop(0)} {rest.pop(0)}"  # which are looked at, and which of them are set
        elif option in _OPTIONS and option not in values:
            values[option] = rest.pop(0)
        else:
            raise ValueError(f"{option} is not an option nat-pod writes, or stands here twice")
    if not modules <= {"conntrack", "comment", values.get("-p")}:
        raise ValueError(f"match modules {sorted(modules)} are not ones nat-pod writes")
    ctstate = values.get("--ctstate")
    match = Match(
        in_interface=values.get("-i"),
        source=values.get("-s"),
        destination=values.get("-d"),
        protocol=values.get("-p"),
        source_port=_ports(values.get("--sport")),
        destination_port=_ports(values.get("--dport")),
        icmp_type=_number(values.get("--icmp-type")),
        tcp_flags=values.get("--tcp-flags"),
        ctstate=tuple(ctstate.split(",")) if ctstate else (),
        opened_from=values.get("--ctorigsrc"),
        answered_from=values.get("--ctreplsrc"),
        bound=bound,
    )
    member, note = _read_comment(values.get("--comment", ""))
    return Rule(match, _read_target(values), member=member, note=note)


_OPTIONS = {
    "-s", "-d", "-i", "-p", "--sport", "--dport", "--icmp-type", "--ctstate",
    "--ctorigsrc", "--ctreplsrc", "--comment",
    "-j", "-g", "--to-destination", "--to-source", "--to",
}  # fmt: skip


def _read_target(values: dict[str, str]) -> Target:
    jump, to = (
        values.get("-j"),
        {key: values[key] for key in ("--to-destination", "--to-source", "--to") if key in values},
    )
    match (jump, values.get("-g"), list(to.items())):
        case (None, str(chain), []):
            return Goto(chain)
        case ("ACCEPT", None, []):
            return Accept()
        case ("DROP", None, []):
            return Drop()
        case ("DNAT", None, [("--to-destination", address)]):
            return Dnat(address)
        case ("SNAT", None, [("--to-source", address)]):
            return Snat(address)
        case ("NETMAP", None, [("--to", network)]):
            return Netmap(network)
    raise ValueError(f"target {jump or values.get('-g')} with {to} is not one nat-pod writes")


def _ports_text(ports: Ports) -> str:
    return str(ports.first) if ports.first == ports.last else f"{ports.first}:{ports.last}"


def _ports(text: str | None) -> Ports | None:
    if text is None:
        return None
    first, colon, last = text.partition(":")
    ports = Ports(int(first), int(last if colon else first))
    if text != _ports_text(ports) or not 0 <= ports.first <= ports.last <= LAST_PORT:
        raise ValueError(f"{text} is not how nat-pod writes ports")
    return ports


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
