"""How hand-built rules are read, and what they do to a packet.

Each row is a nat table and the number of its rule that decides what becomes of a packet from A to B; 0 when none does.
"""

import pytest

from nat_pod.errors import NatPodError
from nat_pod.handbuilt.numeric import dotted, network
from nat_pod.handbuilt.saved_rules import read_saved
from nat_pod.handbuilt.saved_walk import SavedWalk, translated

A, B = "10.0.0.100", "198.18.0.2"
CHAINS = ":ONE - [0:0]\n:TWO - [0:0]\n"


def table(*rules: str):
    lines = "".join(f"-A {rule}\n" for rule in rules)
    return read_saved(f"*nat\n{CHAINS}{lines}COMMIT\n".encode(), "x")


WALKS = {
    "the first that matches": (["PREROUTING -s 10.0.0.9 -j ACCEPT", f"PREROUTING -s {A} -j ACCEPT"], 2),
    "the first of two": ([f"PREROUTING -d {B} -j ACCEPT", f"PREROUTING -s {A} -d {B} -j ACCEPT"], 1),
    "a network before an address": (["PREROUTING -s 10.0.0.0/8 -j ACCEPT", f"PREROUTING -s {A} -j ACCEPT"], 1),
    "none": (["PREROUTING -s 10.0.0.9 -j ACCEPT"], 0),
    "a source it must not be": ([f"PREROUTING ! -s {A} -j ACCEPT"], 0),
    "a source it is not": (["PREROUTING ! -s 10.0.0.9 -j ACCEPT"], 1),
    "a destination it must not be": (["PREROUTING ! -d 198.18.0.0/27 -j ACCEPT"], 0),
    "a destination it is not": (["PREROUTING ! -d 198.18.0.32/27 -j ACCEPT"], 1),
    "the old place of !": ([f"PREROUTING -s ! {A} -j ACCEPT", f"PREROUTING -d ! {A} -j ACCEPT"], 2),
    "new connections": (["PREROUTING -m conntrack --ctstate NEW -j ACCEPT"], 1),
    "connections that exist": (["PREROUTING -m conntrack --ctstate ESTABLISHED -j ACCEPT"], 0),
    "what was translated, before it is": (["PREROUTING -m conntrack --ctstate DNAT -j ACCEPT"], 0),
    "states that it is not in": (["PREROUTING -m conntrack ! --ctstate NEW -j ACCEPT"], 0),
    "from the VM itself": (["PREROUTING -i lo -j ACCEPT"], 0),
    "from any interface": (["PREROUTING -i ens5 -j ACCEPT"], 1),
    "a port": (["PREROUTING -p tcp --dport 80 -j ACCEPT"], 0),
    "a protocol": (["PREROUTING -p udp -j ACCEPT"], 0),
    "all protocols": (["PREROUTING -p all -j ACCEPT"], 1),
    "a rule without a target": (["PREROUTING", "PREROUTING -j ACCEPT"], 2),
    "LOG goes on": (['PREROUTING -j LOG --log-prefix "x y"', "PREROUTING -j ACCEPT"], 2),
    "a jump comes back": (["PREROUTING -j ONE", "PREROUTING -j ACCEPT", "ONE -d 10.0.0.9 -j ACCEPT"], 2),
    "a return comes back": (["PREROUTING -j ONE", "PREROUTING -j ACCEPT", "ONE -j RETURN", "ONE -j ACCEPT"], 2),
    "a return that does not match": (["PREROUTING -j ONE", "ONE -s 10.0.0.9 -j RETURN", "ONE -j ACCEPT"], 3),
    "a goto does not come back": (["PREROUTING -g ONE", "PREROUTING -j ACCEPT", "ONE -d 10.0.0.9 -j ACCEPT"], 0),
    "a goto returns to the caller's caller": (
        ["PREROUTING -j ONE", "PREROUTING -j ACCEPT", "ONE -g TWO", "ONE -j ACCEPT", "TWO -j RETURN"],
        2,
    ),
    "a return from a goto": (["PREROUTING -g ONE", "PREROUTING -j ACCEPT", "ONE -j RETURN"], 0),
    "a chain entered twice": (["PREROUTING -j ONE", "PREROUTING -j ONE", "PREROUTING -j ACCEPT", "ONE -j TWO"], 3),
}


@pytest.mark.parametrize("name", WALKS)
def test_the_rule_that_decides_is(name):
    rules, number = WALKS[name]
    walked = table(*rules)
    decided = SavedWalk(walked).decide("PREROUTING", network(A)[0], network(B)[0])
    before = 3  # *nat and the two chains
    assert (0 if decided is None else decided.line - before) == number


@pytest.mark.parametrize(
    ("interface", "number"),
    [("ens3", 1), ("ens+", 1), ("lo", 2), ("! ens3", 1), ("! lo", 1)],
)
def test_a_packet_leaves_by_the_interface_that_is_named_first(interface, number):
    word = f"! -o {interface[2:]}" if interface.startswith("! ") else f"-o {interface}"
    walked = table(f"POSTROUTING {word} -j MASQUERADE", "POSTROUTING -o ens3 -j ACCEPT")
    decided = SavedWalk(walked).decide("POSTROUTING", network(A)[0], network(B)[0])
    expected = 2 if interface == "! ens3" else number
    assert decided is not None
    assert decided.line - 3 == expected


@pytest.mark.parametrize(
    ("target", "address", "expected"),
    [
        ("DNAT --to-destination 10.0.0.1", B, "10.0.0.1"),
        ("SNAT --to-source 10.0.0.1-10.0.0.1 --persistent", B, "10.0.0.1"),
        ("NETMAP --to 10.0.0.32/27", B, "10.0.0.34"),
        ("MASQUERADE --random-fully", B, "198.18.0.9"),
        ("ACCEPT", B, B),
    ],
)
def test_a_target_makes_of_an_address(target, address, expected):
    rule = table(f"PREROUTING -j {target}").chains["PREROUTING"][0]
    assert dotted(translated(rule, network(address)[0], network("198.18.0.9")[0])) == expected
    assert translated(None, network(address)[0], 0) == network(address)[0]


UNREAD = {
    "PREROUTING ! -s 10.0.0.1,10.0.0.2 -j ACCEPT": "iptables does not take a list after ! -s",
    "PREROUTING -s 10.0.0.0/255.0.255.0 -j ACCEPT": "10.0.0.0/255.0.255.0 has a mask with holes",
    "PREROUTING -s 10.0.0.256 -j ACCEPT": "10.0.0.256 is not an IPv4 address or network",
    "PREROUTING -s 10.0.0.0/33 -j ACCEPT": "10.0.0.0/33 is not an IPv4 network",
    "PREROUTING -s mgmt.example.com -j ACCEPT": "mgmt.example.com is not an IPv4 address or network",
    "PREROUTING -s 10.0.0.1 -s 10.0.0.2 -j ACCEPT": "has -s twice",
    "PREROUTING -s": "-s has no value",
    "PREROUTING !": "ends with !",
    "PREROUTING -j DNAT": "-j DNAT takes --to-destination",
    "PREROUTING -j ACCEPT --to-destination 10.0.0.1": "-j ACCEPT takes no address",
    "PREROUTING -j SNAT --to-destination 10.0.0.1": "-j SNAT takes --to-source",
    "PREROUTING --to-destination 10.0.0.1": "--to-destination without -j",
    "PREROUTING -g ONE -j ACCEPT": "has two targets",
    "PREROUTING -j REDIRECT --to-ports 80": "REDIRECT leads to the NAT VM itself; nat-pod has no such rule",
    "PREROUTING -j THREE": "THREE is neither a chain of this nat table nor a target that import knows",
    "THREE -j ACCEPT": "the nat table has no chain THREE",
    'PREROUTING -m comment --comment "half': "No closing quotation",
    f"PREROUTING -s {'1' * 2000}": "is longer than any rule",
}


@pytest.mark.parametrize("rule", UNREAD, ids=lambda rule: rule[:60])
def test_a_rule_that_is_not_understood_is_kept_with_the_reason(rule):
    read = table("PREROUTING -j ACCEPT", rule)
    assert [(unread.line, unread.why) for unread in read.unread] == [(5, UNREAD[rule])]
    assert len(read.chains["PREROUTING"]) == 1


def test_conditions_that_no_mapping_has_are_kept_as_written():
    rule = table("PREROUTING -p tcp -m tcp ! --dport 80:90 -m mark --mark 0x1 -j DNAT --to-destination 10.0.0.1:8080")
    assert rule.chains["PREROUTING"][0].narrow == (
        "-p tcp -m tcp ! --dport 80:90 -m mark --mark 0x1 --to-destination 10.0.0.1:8080"
    )


def test_inserted_rules_stand_where_they_were_inserted():
    commands = ["-A PREROUTING -s 10.0.0.1", "-I PREROUTING -s 10.0.0.2", "-I PREROUTING 2 -s 10.0.0.3"]
    read = read_saved("\n".join(f"iptables -t nat {command}" for command in commands).encode(), "x")
    assert [rule.line for rule in read.chains["PREROUTING"]] == [2, 3, 1]


def test_flushed_rules_are_gone():
    text = (
        "iptables -t nat -A PREROUTING -s 10.0.0.1\niptables -t nat -F\niptables -t nat -A POSTROUTING -j MASQUERADE\n"
    )
    assert [rule.line for _, rule in read_saved(text.encode(), "x").rules()] == [3]


def test_jumps_to_docker_are_not_followed():
    read = read_saved(
        b"*nat\n:DOCKER - [0:0]\n-A PREROUTING -j DOCKER\n-A PREROUTING -j ACCEPT\n-A DOCKER -j ACCEPT\nCOMMIT\n", "x"
    )
    decided = SavedWalk(read).decide("PREROUTING", network(A)[0], network(B)[0])
    assert decided is not None
    assert decided.line == 4


def test_a_file_without_end_is_not_read_to_its_end():
    with pytest.raises(NatPodError, match="more than 16 MB"):
        read_saved(b"x" * 16_000_001, "x")
