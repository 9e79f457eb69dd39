"""Addresses as numbers: what netaddr says of the same text, and a refusal of everything else."""

import pytest
from netaddr import IPAddress, IPNetwork

from nat_pod.ipv4 import dotted, number, span

NUMBERS = [0, 1, 0x0A000064, 0x7FFFFFFF, 0x80000000, 0xC6120002, 0xFFFFFFFF]


@pytest.mark.parametrize("value", NUMBERS)
def test_a_number_and_its_text_are_one_another_s(value):
    assert (dotted(value), number(dotted(value))) == (str(IPAddress(value)), value)


@pytest.mark.parametrize("length", range(33))
@pytest.mark.parametrize("value", NUMBERS)
def test_a_network_is_its_first_and_last_address_whatever_stands_in_its_host_bits(value, length):
    network = IPNetwork(f"{dotted(value)}/{length}")
    assert span(f"{dotted(value)}/{length}") == (network.first, network.last)


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.256", "10.0.0.01", " 10.0.0.1", "10.0.0.1\n", "::1", "10.0.0.1\0"]
)
def test_what_is_no_address_is_refused_alone_and_in_a_network(text):
    for act, said in ((number, text), (span, f"{text}/24")):
        with pytest.raises(ValueError, match="is not an IPv4 address"):
            act(said)


@pytest.mark.parametrize("length", ["", "/", "/33", "/-1", "/+1", "/²", "/٣", "/ 8", "/24/24"])
def test_what_is_no_prefix_length_is_refused(length):
    assert span("10.0.0.0/8") == (10 << 24, (11 << 24) - 1)
    with pytest.raises(ValueError, match="is not an IPv4 network"):
        span(f"10.0.0.0{length}")
