"""The inputs of a resource type: which it has, which replace the resource, and how they are compared.

There are two sources, kept apart on purpose.
- Which inputs a type has, which of them are required and of what type they are is read from the installed `pulumi_oci`
  (`InputSpec.of`).  So it is right for the release with which the program really runs.
- What the provider does when an input changes is in no SDK.  The type's `InputRules` say it, taken from the source of
  the provider that pulumi-oci wraps (github.com/oracle/terraform-provider-oci v8.28.0, folder internal/service/core;
  the rules name the file).

An input that the rules do not list is updated in place, and taking it out of the program changes nothing: nearly all
inputs are "Optional, Computed" there, so the server's value stays.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

Value = Any
"""A JSON value."""

Inputs = dict[str, Value]
"""Properties under their wire names (camelCase), as they cross the provider's protocol."""

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""Stands for a value that a preview does not know yet (Pulumi's provider protocol, `UnknownStringValue`)."""


@dataclass(frozen=True, slots=True)
class Diff:
    """What changes between two sets of inputs: paths that force a replacement, and paths that update in place."""

    replace: tuple[str, ...] = ()
    update: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.replace or self.update)


@dataclass(frozen=True, kw_only=True, slots=True)
class InputRules:
    """What the provider does with one type's inputs.  Paths are dotted; `[]` stands for every element of a list.

    replace: a change makes a new resource ("ForceNew").
    removable: taking the input out is a change ("Optional" without "Computed").
    sets: lists whose order means nothing.
    ignore_case: values that differ only in case are equal.
    defaults: values the provider fills in.
    source: the provider's file that says so.
    """

    source: str
    replace: frozenset[str] = frozenset()
    removable: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    ignore_case: frozenset[str] = frozenset()
    defaults: Mapping[str, Value] = field(default_factory=dict)

    def with_defaults(self, inputs: Inputs) -> Inputs:
        """A deep copy of the inputs without nulls and with what the provider fills in."""
        filled: Inputs = _without_nulls(copy.deepcopy(inputs))
        for path, value in self.defaults.items():
            _set_default(filled, path.split("."), value)
        return filled

    def diff(self, old: Inputs, new: Inputs) -> Diff:
        """Compare two sets of inputs of one resource as the provider does."""
        changed = list(_changes(self, "", self.with_defaults(old), self.with_defaults(new)))
        replace = tuple(path for path in changed if _in(path, self.replace))
        return Diff(replace=replace, update=tuple(path for path in changed if path not in replace))


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What `pulumi_oci` says about one value: its kind, and its members when it is an object, list or map.

    kind: string, number, boolean, object, list or map.
    """

    kind: str
    members: Mapping[str, InputSpec] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    element: InputSpec | None = None

    @staticmethod
    @cache
    def of(type_token: str) -> InputSpec:
        """The inputs of a resource type, read from the signature of its Args class.

        A token names module and class: `oci:Core/vcn:Vcn` is `pulumi_oci.core.VcnArgs`.
        """
        if type_token in _WRITTEN_DOWN:
            return _WRITTEN_DOWN[type_token]
        import pulumi_oci  # takes a second, a third of what a provider lives that does without

        _, module, name = type_token.split(":")
        sdk = getattr(pulumi_oci, module.split("/")[0].lower())
        return _object_spec(getattr(sdk, f"{name}Args"))

    def to_json(self) -> Inputs:
        """As `from_json` takes it."""
        members = {name: member.to_json() for name, member in self.members.items()}
        element = self.element.to_json() if self.element else None
        return {"kind": self.kind, "members": members, "required": sorted(self.required), "element": element}

    @classmethod
    def from_json(cls, given: Inputs) -> InputSpec:
        """What `to_json` wrote."""
        return cls(
            given["kind"],
            {name: cls.from_json(member) for name, member in given["members"].items()},
            frozenset(given["required"]),
            cls.from_json(given["element"]) if given["element"] else None,
        )

    def problems(self, inputs: Inputs) -> list[tuple[str, str]]:
        """Unknown, missing and mistyped inputs, as (path, reason).

        It checks no more than that, because the real provider checks no CIDR, address or OCID at plan time either.
        """
        return list(_check_value("", inputs, self))


_WRITTEN_DOWN: dict[str, InputSpec] = {}


def specs_text(type_tokens: Iterable[str]) -> str:
    """The inputs of some types, for another process of the same installation: see `read_specs`."""
    return json.dumps({token: InputSpec.of(token).to_json() for token in type_tokens})


def read_specs(text: str) -> None:
    """From now on take the inputs of these types from what `specs_text` gave, and not from `pulumi_oci`."""
    _WRITTEN_DOWN.update({token: InputSpec.from_json(given) for token, given in json.loads(text).items()})


def in_shape(value: Value, shape: Value) -> Value:
    """`value` with only the keys that `shape` has, at every depth."""
    if isinstance(value, dict) and isinstance(shape, dict):
        return {key: in_shape(value[key], shape[key]) for key in shape if key in value}
    return value


def _object_spec(args_class: type) -> InputSpec:
    sdk = args_class.__module__.rpartition(".")[0]
    parameters = list(inspect.signature(args_class.__init__).parameters.values())[1:]  # type: ignore[misc]
    names = {parameter.name: _wire_name(args_class, parameter.name) for parameter in parameters}
    return InputSpec(
        kind="object",
        members={names[parameter.name]: _spec(parameter.annotation, sdk) for parameter in parameters},
        required=frozenset(names[p.name] for p in parameters if p.default is inspect.Parameter.empty),
    )


def _wire_name(args_class: type, name: str) -> str:
    """The camelCase name that the SDK's own property carries (`ipv4cidr_blocks` is `ipv4cidrBlocks`)."""
    getter = vars(args_class)[name].fget
    return str(getattr(getter, "_pulumi_name", name))


def _spec(annotation: Value, sdk: str) -> InputSpec:
    """The kind behind `Input[Optional[T]]`, which is a union of T, None, an awaitable of T and an Output of T.

    sdk: the module of pulumi_oci that a forward reference is looked up in, `pulumi_oci.core`.
    """
    if isinstance(annotation, typing.ForwardRef):
        annotation = getattr(sys.modules[f"{sdk}._inputs"], annotation.__forward_arg__)
    origin: Value = typing.get_origin(annotation)
    if origin is typing.Union:
        # The plain type comes first: pulumi.Input is defined as Union[T, Awaitable[T], Output[T]].
        return _spec(typing.get_args(annotation)[0], sdk)
    if origin is not None and issubclass(origin, Mapping):
        return InputSpec("map")
    if origin is not None and issubclass(origin, Sequence):
        return InputSpec("list", element=_spec(typing.get_args(annotation)[0], sdk))
    if annotation in (int, float):
        return InputSpec("number")
    if annotation is bool:
        return InputSpec("boolean")
    if annotation is str:
        return InputSpec("string")
    if inspect.isclass(annotation) and annotation.__module__.startswith(sdk):
        return _object_spec(annotation)
    raise TypeError(f"pulumi_oci has an input of a kind unknown here: {annotation!r}")


_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "list": (list,),
    "map": (dict,),
}


def _check_value(path: str, value: Value, spec: InputSpec) -> Iterator[tuple[str, str]]:
    if value is None or value == UNKNOWN:
        return
    mistyped = not isinstance(value, _PYTHON_TYPES[spec.kind])
    if mistyped or (spec.kind == "number" and isinstance(value, bool)):
        yield path, f"expected {spec.kind}, got {value!r}"
        return
    if spec.kind == "list" and spec.element:
        for index, element in enumerate(value):
            yield from _check_value(f"{path}[{index}]", element, spec.element)
    if spec.kind == "object":
        prefix = f"{path}." if path else ""
        for name in sorted(spec.required):
            if value.get(name) is None:
                yield f"{prefix}{name}", "Missing required property"
        for name, member in value.items():
            if name.startswith("__"):  # Pulumi's own bookkeeping, such as `__defaults`
                continue
            if name not in spec.members:
                yield f"{prefix}{name}", "Unknown property"
            else:
                yield from _check_value(f"{prefix}{name}", member, spec.members[name])


def _without_nulls(value: Value) -> Value:
    if isinstance(value, dict):
        return {
            name: _without_nulls(member)
            for name, member in value.items()
            if member is not None and not name.startswith("__")
        }
    if isinstance(value, list):
        return [_without_nulls(member) for member in value]
    return value


def _set_default(target: Value, steps: list[str], value: Value) -> None:
    """Set `value` at a path unless there is a value already; an absent object on the way stays absent."""
    step, rest = steps[0], steps[1:]
    if not isinstance(target, dict):
        return
    if not rest:
        target.setdefault(step, value)
    elif step.endswith("[]"):
        elements = target.get(step[:-2])
        for element in elements if isinstance(elements, list) else ():
            _set_default(element, rest, value)
    else:
        _set_default(target.get(step), rest, value)


_MAPS = frozenset({"metadata", "extendedMetadata", "freeformTags", "definedTags"})


def _changes(rules: InputRules, path: str, old: Value, new: Value) -> Iterator[str]:
    """Paths at which `new` differs from `old`."""
    if isinstance(old, dict) and isinstance(new, dict):
        is_map = path.rsplit(".", 1)[-1] in _MAPS
        for name in [*new, *(name for name in old if name not in new)]:
            inner = f"{path}.{name}" if path else name
            if name not in new:
                if is_map or inner in rules.removable:
                    yield inner
            elif name not in old and name not in _MAPS:
                yield inner
            else:
                yield from _changes(rules, inner, old.get(name, {}), new[name])
        return
    if path in rules.ignore_case and isinstance(old, str) and isinstance(new, str):
        old, new = old.lower(), new.lower()
    if path in rules.sets and isinstance(old, list) and isinstance(new, list):
        old, new = sorted(map(_canonical, old)), sorted(map(_canonical, new))
    if old != new:
        yield path


def _canonical(value: Value) -> str:
    return json.dumps(value, sort_keys=True)


def _in(path: str, paths: frozenset[str]) -> bool:
    """Whether `path` or an object around it is listed."""
    steps = path.split(".")
    return any(".".join(steps[: length + 1]) in paths for length in range(len(steps)))
