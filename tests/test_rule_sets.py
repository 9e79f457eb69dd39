"""The benchmark's rule sets: the flow that is timed is the one whose first packet meets most rules."""

from dataclasses import replace

import pytest
from netaddr import IPAddress

from bench.rule_sets import KINDS, POLICIES, ROUTED, pod


def test_a_packet_meets_the_rules_of_both_vms():
    """Counted by hand from what `rules` prints of a routed POD of one host and one server.

    To the server, NAT VM1: 1 of PRE; 4 of FORWARD, 2 of WHO-MAY, 1 of SERVERS; 1 of POST, 1 of SOURCES.  NAT VM2: 1 of
    PRE, 1 of FROM-VM1; 4 of FORWARD, 1 of WHO-MAY, 1 of FROM-VM1; 1 of POST.
    """
    one = pod(ROUTED, 1)
    (host, server), _ = one.dearest()
    assert one.met_to_server(host, server) == 10 + 9


@pytest.mark.parametrize("kind", KINDS)
def test_the_dearest_flow_is_one_of_the_pod_and_no_other_meets_more(kind):
    of = pod(kind, 29)
    for met, dearest in zip((of.met_to_server, of.met_to_host), of.dearest(), strict=True):
        assert met(*dearest) == max(met(host, server) for host in of.hosts for server in of.servers)


def test_a_packet_that_does_not_arrive_is_not_timed():
    """It would look fast."""
    one = pod(ROUTED, 1)
    (host, server), _ = one.dearest()
    stranger = replace(host, address=IPAddress("10.99.0.1"))
    with pytest.raises(ValueError, match="does not reach management/server0"):
        one.met_to_server(stranger, server)


def test_the_one_slot_of_the_articles_pod_is_both_ends():
    one = pod(POLICIES[0], 1)
    assert len(one.hosts) == len(one.servers) == 1
    assert one.called(one.hosts[0], "natVm1") == one.called(one.servers[0], "natVm1")
