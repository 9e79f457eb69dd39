"""A stack of the current directory, planned: where most commands begin."""

from __future__ import annotations

from pathlib import Path

from nat_pod.config.any_config import AnyConfig
from nat_pod.config.stack_file import read_stack
from nat_pod.errors import ConfigError
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod


def load(stack: str) -> tuple[AnyConfig, PodPlan]:
    """Its config and its plan.

    Raises ConfigError with every problem of the stack file, NatPodError when there is no such file.
    """
    read = read_stack(Path.cwd(), stack)
    config = read.checked()
    try:
        plan = plan_pod(config, stack)
    except ConfigError as error:
        raise ConfigError(error.source, read.located(error.problems)) from None
    return config, plan
