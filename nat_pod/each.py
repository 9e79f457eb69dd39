"""Work on many things that do not depend on one another, on all processors where they are many.

128 stack files take some seconds, nearly all of it in Python, which uses one processor.  A process is forked and not
started anew, so what is loaded need not be loaded again; where there is no fork, or one processor, all is done here.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

MANY = 16
"""With fewer items than this, all are done in this process: that is sooner than a fork."""


def each(act: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """What `act` makes of each item, in their order.

    act: a function of a module, or a partial of one; its results are pickled.  The first item is done in this process,
    so an error that is every item's is raised as it is.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if len(items) < MANY or processors < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return [act(item) for item in items]
    first = act(items[0])
    with ProcessPoolExecutor(processors, multiprocessing.get_context("fork")) as pool:
        return [first, *pool.map(act, items[1:], chunksize=-(-len(items) // (4 * processors)))]
