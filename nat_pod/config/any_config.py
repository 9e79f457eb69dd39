"""A POD's configuration, whichever its delivery is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_never

from nat_pod.config import model, routed
from nat_pod.config.delivery import Delivery
from nat_pod.config.model import PodConfig
from nat_pod.config.reader import Reader
from nat_pod.config.routed import RoutedConfig
from nat_pod.errors import ConfigError, Problem

AnyConfig = PodConfig | RoutedConfig


def read(mapping: Mapping[str, object], stack: str) -> AnyConfig:
    """Check a stack's configuration, as `PodConfig.from_mapping` does.  Raises ConfigError with every problem."""
    config, problems, unsettled = draft(mapping, stack)
    if problems or unsettled or config is None:
        raise ConfigError(f"Pulumi.{stack}.yaml", problems + unsettled)
    return config


def draft(
    mapping: Mapping[str, object], stack: str, earlier: Callable[[], Mapping[str, object] | None] = lambda: None
) -> tuple[AnyConfig | None, list[Problem], list[Problem]]:
    """Read a configuration whose address book may lag behind its members; see `model.read_draft`."""
    reader = Reader(stack)
    delivery = reader.choice("delivery", mapping.get("delivery") or Delivery.PRIVATE_IPS, Delivery)
    match delivery:
        case None:  # what else is wrong depends on it
            return None, reader.problems, []
        case Delivery.PRIVATE_IPS:
            return model.read_draft(mapping, stack, earlier)
        case Delivery.ROUTES:
            return routed.read_draft(mapping, stack, earlier)
        case _ as never:
            assert_never(never)
