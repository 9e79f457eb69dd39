"""Runs a plugin with the messages of Pulumi's protocol alone: `python -m nat_pod.lab.engine.bare MODULE ARGUMENTS`.

The messages come with the SDK, whose packages load all of it when imported: a fifth of a second, and the engine
starts three plugins for each command.  So here the packages around the messages are empty.
"""

from __future__ import annotations

import gc
import runpy
import sys
from importlib.machinery import PathFinder
from types import ModuleType

_PACKAGES = ("pulumi", "pulumi.runtime")


def _without_their_contents(packages: tuple[str, ...]) -> None:
    """Make these packages empty: their modules can be imported, but their own code does not run."""
    path = None
    for name in packages:
        found = PathFinder.find_spec(name, path)
        if found is None or found.submodule_search_locations is None:
            return  # the plugin itself will say what is missing
        module = ModuleType(name)
        module.__path__ = path = list(found.submodule_search_locations)
        sys.modules[name] = module


if __name__ == "__main__":
    gc.disable()  # a plugin lives for a second
    _without_their_contents(_PACKAGES)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
