"""The words of one iptables rule -> a SavedRule with its conditions and its target.

A rule is either understood in full or refused with the reason; conditions that no mapping has (a port, a mark) stay
with it in `narrow`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nat_pod.handbuilt.numeric import ANY, Range, network
from nat_pod.handbuilt.saved_table import Action, SavedRule

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


def read_rule(line: int, text: str, words: list[str]) -> list[SavedRule]:
    """The rules that these words make: several when `-s` or `-d` lists several networks, as iptables itself does.

    line, text: the line's number and text.  Raises ValueError with the reason.
    """
    options = _options(words)
    narrow = options.narrow
    protocol = options.values.get("-p", ("all", False))
    if protocol not in (("all", False), ("0", False)):
        narrow.insert(0, f"{'! ' if protocol[1] else ''}-p {protocol[0]}")
    rule = _target(SavedRule(line=line, text=text), options.values, narrow)
    state = options.values.get("--ctstate") or options.values.get("--state")
    if state is not None and state[1]:
        narrow.append(f"! --ctstate {state[0]}")
        state = None
    rule = replace(
        rule,
        in_interface=_interface(options.values.get("-i")),
        out_interface=_interface(options.values.get("-o")),
        ctstate=None if state is None else frozenset(state[0].split(",")),
        comment=options.values.get("--comment", ("", False))[0],
        narrow=" ".join(narrow),
    )
    return [
        replace(rule, source=source, not_source=not_from, destination=destination, not_destination=not_to)
        for source, not_from in _networks("-s", options.values.get("-s"))
        for destination, not_to in _networks("-d", options.values.get("-d"))
    ]


@dataclass(slots=True)
class _Options:
    """values: those of known options, and whether a `!` precedes them.  narrow: other options, as written."""

    values: dict[str, tuple[str, bool]] = field(default_factory=dict)
    narrow: list[str] = field(default_factory=list)


def _options(words: list[str]) -> _Options:
    found = _Options()
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
            continue
        if option not in _KNOWN:
            while position < len(words) and not words[position].startswith(("-", "!")):
                position += 1
            found.narrow.append(" ".join(["!"] * negated + words[start:position]))
            continue
        if not equals:
            if position == len(words):
                raise ValueError(f"{option} has no value")
            attached, position = words[position], position + 1
            if attached == "!" and position < len(words):  # `-s ! 10.0.0.1`, the old form
                negated, attached, position = True, words[position], position + 1
        if option == "-m":
            if attached not in _MODULES:
                found.narrow.append(f"-m {attached}")
        elif option in found.values:
            raise ValueError(f"has {option} twice")
        else:
            found.values[option] = (attached, negated)
    return found


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
    if action is None or action is Action.MASQUERADE:
        return _without_address(rule, name, to, narrow)
    wanted = next((option for option, of in _TO.items() if of is action), None)
    if wanted is not None and list(to) == ["--to"]:
        to = {wanted: to["--to"]}  # iptables takes the beginning of a long option for the option
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


def _without_address(rule: SavedRule, name: str, to: dict[str, str], narrow: list[str]) -> SavedRule:
    """MASQUERADE, a target that changes no address, or a jump to a chain."""
    masquerades = name == Action.MASQUERADE
    if name == "REDIRECT":
        raise ValueError("REDIRECT leads to the NAT VM itself; nat-pod has no such rule")
    if set(to) - ({"--to-ports"} if masquerades else set()):
        raise ValueError(f"-j {name} with {next(iter(to))} is not a target that import knows")
    if to:
        narrow.append(f"--to-ports {to['--to-ports']}")
    if masquerades:
        return replace(rule, action=Action.MASQUERADE)
    if name in _LOGGING:
        narrow.clear()  # whatever its conditions, it changes no address
        return replace(rule, action=Action.LOG)
    return replace(rule, action=Action.JUMP, chain=name)


def _interface(value: tuple[str, bool] | None) -> str | None:
    return None if value is None else f"! {value[0]}" if value[1] else value[0]


def _networks(option: str, value: tuple[str, bool] | None) -> list[tuple[Range, Range | None]]:
    """Pairs of (inside, not inside), one for each network of the list."""
    if value is None:
        return [(ANY, None)]
    text, negated = value
    if negated:
        if "," in text:
            raise ValueError(f"iptables does not take a list after ! {option}")
        return [(ANY, network(text))]
    return [(network(part), None) for part in text.split(",")]
