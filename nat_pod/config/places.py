"""Where a setting is in a stack file: the line to which an editor jumps."""

from __future__ import annotations

import re

import yaml

# Parts of a path in the notation of `pulumi config get --path`: ["customer1/vm1"], [0], or a plain key.
_PART = re.compile(r'\["([^"]*)"\]|\[([0-9]+)\]|([^.\[]+)')


class Places:
    """The lines of a stack file, by the settings on them."""

    def __init__(self, text: str) -> None:
        """text: the text of a YAML file with its settings below `config`."""
        self._config = _child(yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), "config")[1]

    def line(self, path: str) -> int | None:
        """The line, from 1, of a setting, or of the section from which it is missing; None when there is neither.

        path: as in `Problem.path`, e.g. nat-pod:customers.customer1.hosts.vm1.
        """
        found, node = None, self._config
        for match in _PART.finditer(path):
            place, node = _child(node, next(part for part in match.groups() if part is not None))
            if place is None:
                break
            found = place
        return None if found is None else found.start_mark.line + 1


def _child(node: yaml.Node | None, part: str) -> tuple[yaml.Node | None, yaml.Node | None]:
    """The key in front of a part of a node, and the part."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == part), (None, None))
    if isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
        return node.value[int(part)], node.value[int(part)]
    return None, None
