"""Work on many things at once gives what it would give one after the other."""

import os

import pytest

from nat_pod.each import MANY, each
from nat_pod.errors import NatPodError

TWO = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one processor"
)


def where(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def refused(number: int) -> int:
    if number == MANY // 2:
        raise NatPodError(f"{number} is refused")
    return number


def test_few_are_done_here():
    assert each(where, range(MANY - 1)) == [(n * n, os.getpid()) for n in range(MANY - 1)]
    assert each(where, []) == []


@TWO
def test_many_are_done_in_other_processes_and_come_back_in_order():
    found = each(where, range(3 * MANY))
    assert [square for square, _ in found] == [n * n for n in range(3 * MANY)]
    assert found[0][1] == os.getpid()
    assert os.getpid() not in {process for _, process in found[1:]}


@pytest.mark.parametrize("count", [MANY - 1, pytest.param(3 * MANY, marks=TWO)])
def test_an_error_of_one_is_raised_as_it_is(count):
    with pytest.raises(NatPodError, match="8 is refused"):
        each(refused, range(count))
