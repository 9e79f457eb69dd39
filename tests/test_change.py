"""Mappings change while hundreds of flows go through both NAT VMs; the long form is `make bench-change`."""

import pytest

from bench import change

pytestmark = pytest.mark.lab


def test_a_change_ends_the_flows_that_it_must_and_no_other():
    """Seed 2: two switches of sourceNat, and each other kind of edit at least twice."""
    tally = change.run(16, seed=2, patience=30)  # what is dead stays dead; what is slow may only have had no processor
    assert tally.problems == []
    assert (tally.lost, tally.passing, tally.connected, tally.failed) == (0, 0, 0, 0)
    # And all of it was there to be tried.
    assert len(tally.edits) == 6
    assert min(tally.edits.values()) >= 2
    assert min(tally.open) > 100
    assert tally.kept > 1000
    assert min(tally.ended, tally.refused_tries, tally.opened, tally.packets) > 100
