"""Stack files: `Pulumi.yaml` and `Pulumi.<stack>.yaml` as the Pulumi CLI would hand them to the program.

The commands and the lab read the same two files as the CLI, and merge them in the same way.  So `plan` and `pulumi up`
start from the same configuration.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from nat_pod.config import any_config
from nat_pod.config.any_config import AnyConfig
from nat_pod.config.delivery import SETTINGS, without_foreign_defaults
from nat_pod.config.places import Places
from nat_pod.config.revisions import BASE_BRANCHES, file_at
from nat_pod.errors import ConfigError, NatPodError, Problem, SlotTwice, visible
from nat_pod.names import NAMESPACE, STACK_NAME, natural

_MADE_UP = re.compile(r"ocid1\.[a-z]+\.[^.]*\.[^.]*\.example")


STACK_NAME_RULE = "a stack's name is letters, digits, dots, dashes and underscores, e.g. prod"


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack's files, read.

    `config` has full names ("nat-pod:cidr", "oci:region") and project defaults.  `text` is the stack file's own, "" for
    one of an earlier revision, in which nobody looks for a line.  `beside` has what stands beside `config` in the stack
    file: keys of the Pulumi CLI (secretsprovider, environment), which nat-pod does not read.
    """

    name: str
    path: Path
    config: dict[str, object]
    text: str
    beside: dict[str, object]

    def pod_config(self) -> dict[str, object]:
        """The keys of nat-pod alone, without the prefix: what PodConfig.from_mapping takes."""
        prefix = f"{NAMESPACE}:"
        return {key.removeprefix(prefix): value for key, value in self.config.items() if key.startswith(prefix)}

    @property
    def example(self) -> bool:
        """Whether the POD is an example: it is never deployed, and its range is free for a POD that is.

        An example has a made-up compartment, ocid1.compartment.oc1..example...; the last part of a real one begins
        with aaaa.  A separate mark would be copied with the file, and somebody's POD would silently never be deployed.
        But a copy of an example needs a real compartment before anything else.  `.ci/changed-stacks` reads it in the
        same way.
        """
        return bool(_MADE_UP.match(str(self.config.get(f"{NAMESPACE}:compartmentId"))))

    def checked(self) -> AnyConfig:
        """The POD's configuration.  Raises ConfigError with every problem."""
        config, problems, unsettled = self.draft()
        if problems or unsettled or config is None:
            raise ConfigError(self.path.name, problems + unsettled)
        return config

    def draft(self) -> tuple[AnyConfig | None, list[Problem], list[Problem]]:
        """What `any_config.draft` reads, each problem with its line."""

        def earlier() -> dict[str, object] | None:
            base = self._on_base()
            return None if base is None else base[1].pod_config()

        config, problems, unsettled = any_config.draft(self.pod_config(), self.name, earlier)
        return config, self.located(problems), self.located(unsettled)

    def located(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems with their lines in the stack file; of a slot with two owners also whose it is."""
        if not problems or not self.text:
            return list(problems)
        places = Places(self.text)
        told = [self._owned(problem) if isinstance(problem, SlotTwice) else problem for problem in problems]
        return [replace(problem, line=places.line(problem.path)) for problem in told]

    def _owned(self, twice: SlotTwice) -> SlotTwice:
        """The problem with the member that owns the slot on the base branch, if one of the two does: it keeps it."""
        base = self._on_base()
        if base is None:
            return twice
        branch, stack = base
        book, mine = stack.config.get(f"{NAMESPACE}:addresses"), self.config[f"{NAMESPACE}:addresses"]
        assert isinstance(mine, dict)
        known = [
            name
            for name in (twice.member, twice.other)
            if isinstance(book, dict) and _addresses(book.get(name)) == _addresses(mine.get(name))
        ]
        if len(known) != 1:
            return twice
        newer = twice.other if known == [twice.member] else twice.member
        rule = f"{twice.rule.partition(';')[0]}; on {branch} it is {known[0]}'s: delete the line of {newer}"
        return replace(twice, rule=rule)

    def _on_base(self) -> tuple[str, Stack] | None:
        """The base branch and the stack as it is there; None where there is neither."""
        for branch in BASE_BRANCHES:
            try:
                base = read_stack_at(self.path.parent, self.name, branch)
            except NatPodError:
                continue
            return None if base is None else (branch, base)
        return None


def stack_names(directory: Path) -> list[str]:
    """The stacks that have a file in `directory`, in natural order: pod2 before pod10."""
    names = [path.name[len("Pulumi.") : -len(".yaml")] for path in directory.glob("Pulumi.*.yaml") if path.is_file()]
    return sorted(names, key=natural)


def is_stack_name(name: str) -> bool:
    """Whether Pulumi accepts it as a stack's name, and no command line takes it for an option."""
    return STACK_NAME.fullmatch(name) is not None


def read_stack(directory: Path, name: str) -> Stack:
    """Read a stack's configuration with the project's defaults under it.

    Raises ConfigError for a file that is not YAML, names a key twice, holds an encrypted nat-pod value or belongs to no
    stack that there can be, and NatPodError when there is no such file.
    """
    path = directory / f"Pulumi.{name}.yaml"
    if not _is_file(path):
        known = ", ".join(visible(stack) for stack in stack_names(directory)) or (
            "none; for the examples run: python -m nat_pod new-project --examples"
        )
        raise NatPodError(f"{path.name}: no such stack file in {directory}; stacks here are: {known}")
    if not is_stack_name(name):
        raise ConfigError(path.name, [Problem("file name", name, f"is not a valid stack name; {STACK_NAME_RULE}")])
    project = directory / "Pulumi.yaml"
    defaults = _defaults(_text(project), project.name) if project.is_file() else {}
    text = _text(path)
    return _merge(name, path, text, path.name, defaults, _mapping(text, path.name))


def _is_file(path: Path) -> bool:
    """Whether it is one; a name that is too long for any file is none."""
    try:
        return path.is_file()
    except OSError:
        return False


@lru_cache(4)  # a directory of many stacks has one project
def _defaults(project: str, source: str) -> dict[object, object]:
    return _config_of(_mapping(project, source), source)


def read_stack_at(directory: Path, name: str, revision: str) -> Stack | None:
    """A stack's configuration as it was at a git revision; None when it had no file then.

    Raises what `read_stack` raises, and NatPodError when `directory` is no git checkout or has no such revision.
    """
    path = directory / f"Pulumi.{name}.yaml"
    own = file_at(directory, path.name, revision)
    if own is None:
        return None
    project = file_at(directory, "Pulumi.yaml", revision) or ""
    source = f"{path.name} at {revision}"
    defaults = _config_of(_mapping(project, f"Pulumi.yaml at {revision}"), f"Pulumi.yaml at {revision}")
    return _merge(name, path, "", source, defaults, _mapping(own, source))


def _merge(
    name: str, path: Path, text: str, source: str, defaults: dict[object, object], file: dict[str, Any]
) -> Stack:
    own = _config_of(file, source)
    written = {str(key): value for key, value in own.items()}
    config = without_foreign_defaults(_project_defaults(defaults) | written, f"{NAMESPACE}:", written)
    stack = Stack(name, path, config, text, {key: value for key, value in file.items() if key != "config"})
    problems = [
        Problem(str(key), None, f"has no namespace; write {NAMESPACE}:{key}") for key in own if ":" not in str(key)
    ]
    problems += [
        Problem(str(key), None, f"is in a namespace that nobody reads; did you mean {meant}?")
        for key in own
        if (meant := _misspelt(str(key))) is not None and meant not in own
    ]
    problems += [
        Problem(str(key), None, "is encrypted; nat-pod has no secrets, set it with `pulumi config set --plaintext`")
        for key, value in own.items()
        if str(key).startswith(f"{NAMESPACE}:") and isinstance(value, dict) and "secure" in value
    ]
    if problems:
        raise ConfigError(source, stack.located(problems))
    return stack


def _misspelt(key: str) -> str | None:
    """The setting of nat-pod that a key of a namespace much like its own is meant to be: natpod:cidr, nat_pod:cidr."""
    namespace, _, setting = key.partition(":")
    alike = difflib.SequenceMatcher(None, _bare(namespace), _bare(NAMESPACE)).ratio() > 0.85
    return f"{NAMESPACE}:{setting}" if alike and namespace != NAMESPACE and setting in SETTINGS else None


def _bare(namespace: str) -> str:
    return namespace.lower().replace("-", "").replace("_", "")


def _addresses(entry: object) -> tuple[object, ...] | None:
    """The addresses of an entry in the book: a slot's two, or the alias of a routed POD, in whichever form."""
    if isinstance(entry, str):
        return (entry, None, None)
    return tuple(map(entry.get, ("address", "natVm1", "natVm2"))) if isinstance(entry, dict) else None


def load_text(text: str) -> object:
    """YAML text as plain values.  Raises yaml.YAMLError, also for a key that stands twice."""
    try:
        return yaml.load(text, _Fast)
    except yaml.YAMLError:
        return yaml.load(text, _Plain)  # the same refusal in words that do not depend on what is installed


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping.  Raises ConfigError with line and column, also for a key that stands twice."""
    return _mapping(_text(path), path.name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(path.name, [Problem("file", None, f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(path.name, [Problem(*_where(error))]) from None


def _mapping(text: str, source: str) -> dict[str, Any]:
    if conflicts := list(_conflicts(text)):
        raise ConfigError(source, conflicts)
    try:
        loaded = load_text(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(source, [Problem(*_where(error))]) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(source, [Problem("file", None, "must be a mapping with the key config:")])
    return loaded


def _config_of(file: dict[str, Any], source: str) -> dict[object, object]:
    config = file.get("config")
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ConfigError(source, [Problem("config", config, "must be a mapping of keys to values")])
    return config


def _project_defaults(declared: dict[object, object]) -> dict[str, object]:
    return {
        str(key) if ":" in str(key) else f"{NAMESPACE}:{key}": entry["default"]
        for key, entry in declared.items()
        if isinstance(entry, dict) and "default" in entry
    }


def _conflicts(text: str) -> Iterator[Problem]:
    """Merge conflicts that nobody has solved yet, as git writes them into the file.

    Their marks stand at the beginning of a line, where no stack file can have them.
    """
    start, ours = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("<<<<<<< "):
            start, ours = number, line[8:]
        elif line.startswith(">>>>>>> ") and start:
            rule = (
                f"a merge conflict between {ours} and {line[8:]}: keep the lines that are right, usually the members "
                "of both sides, and delete those that begin with <<<<<<<, |||||||, ======= and >>>>>>>; then check "
                "names any slot that two members have"
            )
            yield Problem(f"lines {start} to {number}", None, rule)
            start = 0
        elif not start and (line.startswith(("||||||| ", ">>>>>>> ")) or line == "======="):
            yield Problem(f"line {number}", line, "is left of a merge conflict: delete this line")
    if start:
        yield Problem(f"line {start}", f"<<<<<<< {ours}", "is left of a merge conflict: delete this line")


def _where(error: Exception) -> tuple[str, None, str]:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else "file"
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return place, None, f"is not YAML that can be read: {reason}"


_TEXT = "tag:yaml.org,2002:str"
_MOST_VALUES = 100_000
"""With aliases followed.  A full /21 POD has some 7,000; ten lines of aliases of aliases can fill any memory."""


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for.  Raises for one that contains itself, and above the limit."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.constructor.ConstructorError(None, None, "this value contains itself", node.start_mark)
        return known[id(node)]
    known[id(node)] = 0  # not known yet
    inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    total = 1
    for part in inner:
        total += _values(part, known)
        if total > _MOST_VALUES:
            rule = f"more than {_MOST_VALUES:,} values, aliases (*name) followed; no POD needs so many"
            raise yaml.constructor.ConstructorError(None, None, rule, part.start_mark)
    known[id(node)] = total
    return total


class _Bounded(yaml.constructor.SafeConstructor):
    """Bounds what a small file can ask for, and refuses a key that is written twice.

    PyYAML keeps the last of two equal keys in silence: a customer written twice would lose its first hosts.
    """

    def construct_document(self, node: yaml.Node) -> object:
        _values(node, {})  # before anything is made of it, because merges (<<) multiply while they are made
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            plain = key_node.tag == _TEXT and isinstance(key_node, yaml.ScalarNode)
            key = key_node.value if plain else self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key} stands here twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


class _Plain(_Bounded, yaml.SafeLoader):
    """PyYAML's own parser."""


class _Fast(_Bounded, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's parser where PyYAML was built with it: a full /21 POD's file in a fifth of the time."""
