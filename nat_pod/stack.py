"""Stack files: `Pulumi.yaml` and `Pulumi.<stack>.yaml` as the Pulumi CLI would hand them to the program.

The commands and the lab read the same two files the CLI reads, and merge them the same way, so that what `plan` says
and what `pulumi up` does start from one configuration.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nat_pod.config import NAMESPACE
from nat_pod.errors import ConfigError, NatPodError, Problem


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack's files, read.  `config` has full names ("nat-pod:cidr", "oci:region") and project defaults."""

    name: str
    path: Path
    config: dict[str, object]

    def pod_config(self) -> dict[str, object]:
        """The keys of nat-pod alone, without the prefix: what PodConfig.from_mapping takes."""
        prefix = f"{NAMESPACE}:"
        return {key.removeprefix(prefix): value for key, value in self.config.items() if key.startswith(prefix)}


def stack_names(directory: Path) -> list[str]:
    """The stacks that have a file in `directory`, sorted."""
    return sorted(
        path.name[len("Pulumi.") : -len(".yaml")] for path in directory.glob("Pulumi.*.yaml") if path.is_file()
    )


def read_stack(directory: Path, name: str) -> Stack:
    """Read a stack's configuration with the project's defaults under it.

    Raises ConfigError for a file that is not YAML, names a key twice or holds an encrypted nat-pod value, and
    NatPodError when there is no such file.
    """
    path = directory / f"Pulumi.{name}.yaml"
    if not path.is_file():
        known = ", ".join(stack_names(directory)) or "none"
        raise NatPodError(f"{path.name}: no such stack file in {directory}; stacks here are: {known}")
    config = _project_defaults(directory / "Pulumi.yaml")
    own = _config_of(path)
    problems = [
        Problem(str(key), None, f"has no namespace; write {NAMESPACE}:{key}") for key in own if ":" not in str(key)
    ]
    problems += [
        Problem(str(key), None, "is encrypted; nat-pod has no secrets, set it with `pulumi config set --plaintext`")
        for key, value in own.items()
        if str(key).startswith(f"{NAMESPACE}:") and isinstance(value, dict) and "secure" in value
    ]
    if problems:
        raise ConfigError(path.name, problems)
    config.update({str(key): value for key, value in own.items()})
    return Stack(name, path, config)


def load_text(text: str) -> object:
    """YAML text as plain values.  Raises yaml.YAMLError, also for a key that stands twice."""
    return yaml.load(text, _UniqueKeys)


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping.  Raises ConfigError with line and column, also for a key that stands twice."""
    try:
        loaded = load_text(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NatPodError(f"{path.name}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(path.name, [Problem(*_where(error))]) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(path.name, [Problem("file", None, "must be a mapping with the key config:")])
    return loaded


def _config_of(path: Path) -> dict[object, object]:
    config = load_yaml(path).get("config")
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ConfigError(path.name, [Problem("config", config, "must be a mapping of keys to values")])
    return config


def _project_defaults(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    return {
        str(key) if ":" in str(key) else f"{NAMESPACE}:{key}": entry["default"]
        for key, entry in _config_of(path).items()
        if isinstance(entry, dict) and "default" in entry
    }


def _where(error: Exception) -> tuple[str, None, str]:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else "file"
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return place, None, f"is not YAML that can be read: {reason}"


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys in silence: a customer written twice would lose its first hosts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key} stands here twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)
