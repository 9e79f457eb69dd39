"""Errors for people: what is wrong where, the rule with an example, and the next command.

A user's mistake ends with these sentences and exit status 1 or 2; a traceback always means a bug in nat-pod.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    `path` is the place in Pulumi's own notation (`nat-pod:customers.customer1.cidr`, usable with
    `pulumi config get --path`), `value` what stands there (None: nothing does), `rule` what must hold, with an
    example, and `command` what to type next, when there is such a command.  `line` is the place in the stack file, from
    1; None when the problem is in no line of it.
    """

    path: str
    value: object
    rule: str
    command: str = ""
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.sentence}\n    run: {self.command}" if self.command else self.sentence

    @property
    def sentence(self) -> str:
        """What is wrong, without the command."""
        shown = "" if self.value is None else f": {shorten(self.value)}"
        return visible(f"{self.path}{shown}: {self.rule}")

    @property
    def kind(self) -> tuple[str, str]:
        """Equal for problems that differ in place, addresses and figures alone: one mistake, made in many lines."""
        return _FIGURES.sub("#", self.rule), self.command


_FIGURES = re.compile(r"[0-9][0-9./]*")


@dataclass(frozen=True, slots=True)
class Unsettled(Problem):
    """No mistake: what `allocate` has not brought up to date yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotTwice(Problem):
    """Two members own one slot, as after a merge that kept both sides; `member` is written below `other`."""

    member: str
    other: str


@dataclass(frozen=True, slots=True)
class LooksRenamed(Problem):
    """A member is gone, and another one without a slot looks like it: `allocate` asks before it releases the slot."""


class NatPodError(Exception):
    """Something the user can put right; str() is the whole message."""


NO_CLI = "no pulumi CLI; install it from https://www.pulumi.com/docs/install/"


class ConfigError(NatPodError):
    """A stack file that does not hold.  `problems` has every one of them, in the order of the file's sections."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        source = visible(source)
        super().__init__("\n".join([f"{source}: {count}", *_lines(source, problems)]))


_FEW = 3
"""How many problems of one kind are written out when there are more."""


def _lines(source: str, problems: Sequence[Problem]) -> Iterator[str]:
    """The problems in their order; of a kind that many are of, the first ones, and how many more there are.

    A new POD of 435 hosts has 435 members without a slot, and among them the one mistake that somebody has to find.
    """
    total, seen = Counter(problem.kind for problem in problems), Counter[tuple[str, str]]()
    for problem in problems:
        place = "" if problem.line is None else f"{source}:{problem.line}: "
        seen[problem.kind] += 1
        if total[problem.kind] <= _FEW + 1:
            yield f"  {place}{problem}"
        elif seen[problem.kind] <= _FEW:
            yield f"  {place}{problem.sentence}"
            if seen[problem.kind] == _FEW:
                more = f"{total[problem.kind] - _FEW} more of this kind"
                yield f"    and {more}; `python -m nat_pod check --json` lists all"
                yield from [f"    run: {problem.command}"] if problem.command else []


class UnknownRuleError(NatPodError):
    """A rule of the NAT VMs or of the network that the tracer does not know.  The tracer does not guess.

    rule: as its owner would write it; known: what it would have to be.
    """

    def __init__(self, rule: str, known: str) -> None:
        super().__init__(f"{rule}: the tracer cannot follow this rule and predicts nothing; {known}")


def visible(text: str) -> str:
    """One line in which nothing hides: a line separator or a right-to-left mark pasted into a file shows as \\u2028.

    For what comes from outside and goes to a terminal: values of a stack file, and the names of files.
    """
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def excerpt(text: str, most: int = 400) -> str:
    """`visible` text of at most `most` characters, for what somebody else's machine wrote."""
    shown = visible(text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


_LONGEST = 80


def shorten(value: object) -> str:
    """`value` in YAML's own flow style, on one line, cut where it would hide the rule behind it.

    No more is written than is shown: a few aliases in a stack file make a value of gigabytes.
    """
    text = ""
    try:
        for piece in json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value):
            text += piece
            if len(text) > _LONGEST:
                break
    except (TypeError, ValueError):  # keys that JSON does not have, a value that contains itself
        text = reprlib.repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
