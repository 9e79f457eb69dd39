"""Tags that every resource of a POD gets, and how the stack file says them (`tags`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from nat_pod import limits
from nat_pod.config.reader import Reader, join

# OCI docs, "Tags and Tag Namespace Concepts": of a key, printable ASCII without periods and spaces; a value has at most
# 256 characters.
_KEY = re.compile(r"[!-\-/-~]{1,100}")
_DEFINED_KEY = re.compile(rf"{_KEY.pattern}\.{_KEY.pattern}")
_VALUE = re.compile(r"[^\x00-\x1f\x7f]{0,256}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tags:
    """freeform: by key.  defined: by namespace and key, `Operations.CostCenter`."""

    freeform: Mapping[str, str] = field(default_factory=dict)
    defined: Mapping[str, str] = field(default_factory=dict)


def read_tags(reader: Reader, value: object) -> Tags | None:
    """The section `tags`."""
    before = len(reader.problems)
    section = reader.section("tags", value, optional=("freeform", "defined"))
    freeform = _read(reader, "tags.freeform", section.get("freeform"), _KEY, limits.FREEFORM_TAGS, "owner")
    defined = _read(reader, "tags.defined", section.get("defined"), _DEFINED_KEY, limits.DEFINED_TAGS, "Ops.CostCenter")
    return None if len(reader.problems) > before else Tags(freeform=freeform, defined=defined)


def _read(
    reader: Reader, path: str, value: object, pattern: re.Pattern[str], most: int, example: str
) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        reader.add(path, value, f"must be a mapping of tags, e.g. {{{example}: network-team}}")
        return {}
    good: dict[str, str] = {}
    for key, tag in value.items():
        if not isinstance(key, str) or not pattern.fullmatch(key):
            reader.add(join(path, key), None, f"is not the key of a tag; e.g. {example}, without spaces")
        elif not isinstance(tag, str) or not _VALUE.fullmatch(tag):
            reader.add(join(path, key), tag, 'must be a text of at most 256 characters; quote numbers, e.g. "42"')
        else:
            good[key] = tag
    # OCI knows no difference between upper and lower case in keys.
    folded = {key.casefold() for key in good}
    if len(folded) < len(good):
        twice = sorted(key for key in good if sum(other.casefold() == key.casefold() for other in good) > 1)
        reader.add(path, ", ".join(twice), "are one key to OCI, which ignores case in the keys of tags; leave one")
    if len(good) > most:
        reader.add(path, f"{len(good)} tags", f"OCI takes at most {most} on a resource")
    return dict(sorted(good.items()))
