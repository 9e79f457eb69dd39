"""A pytest plugin: processes that run the same tests share the files, so that all of them end at about the same time.

Each takes the next file that no other process has taken: first those with an engine or packets, the largest first, then
those that sweep, and at last the many short ones, which fill whatever gap is left.  `tools/in-processes` starts them.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--taken`, the same for all of the processes."""
    parser.addoption("--taken", type=Path, required=True, help="a directory, empty at first, of who has taken what")


def pytest_configure(config: pytest.Config) -> None:
    """Share from here on."""
    config.pluginmanager.register(_Shared(config.getoption("--taken")))


class _Shared:
    def __init__(self, taken: Path) -> None:
        self._taken = taken
        self._mine: dict[Path, bool] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Whole files, in the order in which they are to be taken."""
        long = [
            {item.path for item in items if any(map(item.get_closest_marker, names))}
            for names in (("engine", "lab"), ("sweep",))
        ]
        items.sort(key=lambda item: (*(item.path not in files for files in long), -item.path.stat().st_size, item.path))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """True for a test whose file another process has taken, so that pytest does not run it here."""
        if item.path not in self._mine:
            try:
                (self._taken / item.path.name).mkdir()  # of two processes one succeeds
                self._mine[item.path] = True
            except FileExistsError:
                self._mine[item.path] = False
        return None if self._mine[item.path] else True
