"""The base classes for kinds of objects: one class holds everything that the region knows of a kind.

A new resource type is a class in the file of its subject.  It has the type's token, the word in its OCIDs, the
provider's rules for its inputs, what it does, and the data sources that find it.  `registry.py` imports the file.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from nat_pod.lab.region.inputs import Diff, InputRules, Inputs, InputSpec
from nat_pod.lab.region.store import Record, Store

Query = Callable[[Store, Inputs], Inputs]
"""A data source of the provider: from its arguments to what it finds."""


class ObjectKind:
    """A kind of object that is created along with others.

    kind: its name, at the provider if it has one there.
    ocid_type: the word that its OCIDs begin with.
    """

    kind: ClassVar[str]
    ocid_type: ClassVar[str]

    def view(self, store: Store, record: Record) -> Inputs:  # noqa: ARG002
        """What the provider reports in addition to the inputs: facts, and what follows from other objects."""
        return record.facts

    def state(self, store: Store, record: Record) -> Inputs:
        """The object as the provider reports it."""
        return {**copy.deepcopy(self.view(store, record)), "id": record.ocid}

    def queries(self) -> Mapping[str, Query]:
        """The data sources that find such objects, by token."""
        return {}


class Resource(ObjectKind, ABC):
    """A type of resource.  Every method either refuses before it has changed anything, or succeeds.

    `kind` is its type token.  Inputs that arrive here have their defaults.
    """

    rules: ClassVar[InputRules]

    @property
    def spec(self) -> InputSpec:
        """Its inputs, as `pulumi_oci` declares them."""
        return InputSpec.of(self.kind)

    def check(self, inputs: Inputs) -> list[tuple[str, str]]:
        """Problems that the provider finds before any call, as (path, reason)."""
        return self.spec.problems(inputs)

    def with_defaults(self, inputs: Inputs) -> Inputs:
        """A deep copy of the inputs without nulls and with what the provider fills in."""
        return self.rules.with_defaults(inputs)

    def diff(self, old: Inputs, new: Inputs) -> Diff:
        """What changing the inputs from `old` to `new` does."""
        return self.rules.diff(old, new)

    @abstractmethod
    def create(self, store: Store, inputs: Inputs, name: str, ocid: str | None) -> Record:
        """Make the object."""

    @abstractmethod
    def update(self, store: Store, record: Record, inputs: Inputs) -> None:
        """Change the object in place to `inputs`, none of which forces a replacement."""

    @abstractmethod
    def delete(self, store: Store, record: Record) -> None:
        """Remove the object and what dies with it."""

    def occupies(self, inputs: Inputs) -> str | None:  # noqa: ARG002
        """The instance or load balancer that a create or delete keeps busy while it lasts, if any.

        inputs: those of a create; before a delete, the facts with the object's own `id`.
        """
        return None

    def occupies_to_update(self, record: Record) -> str | None:  # noqa: ARG002
        """The same of an update."""
        return None

    def state(self, store: Store, record: Record) -> Inputs:
        """The object as the provider reports it, inputs included."""
        return {**self.with_defaults(record.inputs), **super().state(store, record)}
