"""A configuration as the text of a stack file, with comments at the end of the lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nat_pod.config.stack_file import load_text
from nat_pod.names import NAMESPACE, SIDES

_COMMENTS_BEGIN = 41  # column


_ENTRY = {*SIDES, "address", "released"}
"""The keys of an entry in the address book, which stays on one line."""


def stack_text(
    head: list[str], others: Mapping[str, object], config: Mapping[str, object], comments: Mapping[str, str]
) -> str:
    """The stack file.

    head: comment lines.  others: keys of other namespaces (`oci:region`).  config: keys without `nat-pod:`.
    comments: by path (`natVm.shape`).
    """
    lines = [*(f"# {line}" for line in head), "config:"]
    for key, value in others.items():
        lines += _lines(f"  {key}", key, value, comments)
    for key, value in config.items():
        lines += _lines(f"  {NAMESPACE}:{key}", key, value, comments)
    return "\n".join(lines) + "\n"


def _lines(start: str, path: str, value: object, comments: Mapping[str, str]) -> Iterator[str]:
    comment = comments.get(path, "")
    if isinstance(value, dict) and value and not set(value) <= _ENTRY:
        indent = " " * (len(start) - len(start.lstrip()) + 2)
        yield _with_comment(f"{start}:", comment)
        for key, entry in value.items():
            yield from _lines(f"{indent}{_scalar(key)}", f"{path}.{key}", entry, comments)
    else:
        yield _with_comment(f"{start}: {_flow_style(value)}", comment)


def _flow_style(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow_style(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow_style, value)) + "]"
    return _scalar(value)


def _scalar(value: object) -> str:
    """A plain scalar; a string in quotes where YAML would take it for something else: a host called `on`."""
    if isinstance(value, bool | int | float):
        return str(value).lower()
    text = str(value)
    return text if load_text(text) == text else f'"{text}"'


def _with_comment(line: str, comment: str) -> str:
    if not comment:
        return line
    return f"{line:<{_COMMENTS_BEGIN}}# {comment}" if len(line) < _COMMENTS_BEGIN else f"{line}  # {comment}"
