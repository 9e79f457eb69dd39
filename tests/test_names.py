"""The names that every stage shares: what a member's name is made of, and what is not one."""

import copy
import json
import pickle
from itertools import permutations

import pytest

from nat_pod.names import MANAGEMENT, SIDES, MemberName, Side, natural, servers_first

GOOD = ("management/mgmt", "customer1/vm1", "a/b", "a-b/c", "a/b-c", "customer-2/stranger")
WRONG = (
    "", "/", "vm1", "customer1/", "/vm1", "customer1/vm1/x", "customer1//vm1", "Customer1/vm1", "customer1/VM1",
    "1customer/vm1", "customer1/1", "customer1/10.0.0.7", " customer1/vm1", "customer1/vm1\n", "customer1 /vm1", "-a/b",
)  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_a_members_name_reads_back_as_what_it_was_written_from(text):
    name = MemberName.parse(text)
    assert str(name) == f"{name}" == text
    assert MemberName(name.realm, name.short) == name
    assert json.loads(json.dumps({name: name})) == {text: text}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_members_name_is_refused_with_the_rule(text):
    with pytest.raises(ValueError, match=r"write realm/name, e\.g\. customer1/vm1 or management/mgmt$"):
        MemberName.parse(text)


@pytest.mark.parametrize("parts", [("", "vm1"), ("customer1", ""), ("customer1", "vm1/x"), ("a/b", "c"), ("/", "")])
def test_two_parts_that_would_not_come_apart_again_make_no_name(parts):
    with pytest.raises(ValueError, match="must be a realm and a name"):
        MemberName(*parts)


def test_names_sort_as_the_stack_file_lists_them():
    """Not by realm first: `a-b/c` stands before `a/b`, as text does."""
    names = [MemberName.parse(text) for text in GOOD]
    assert sorted(names) == sorted(GOOD)
    assert [str(name) for name in sorted([MemberName("a", "b"), MemberName("a-b", "c")])] == ["a-b/c", "a/b"]


def test_a_name_is_found_by_its_text_and_keeps_its_parts_when_copied():
    name = MemberName("customer1", "vm1")
    assert {name: 1}["customer1/vm1"] == 1
    for other in (copy.copy(name), copy.deepcopy(name), pickle.loads(pickle.dumps(name))):
        assert (other, other.realm, other.short) == ("customer1/vm1", "customer1", "vm1")


def test_management_has_the_servers_and_each_member_its_side_and_label():
    server, host = MemberName(MANAGEMENT, "mgmt"), MemberName("customer1", "vm1")
    assert (server.is_server, server.side, server.label) == (True, Side.NAT_VM2, "mgmt")
    assert (host.is_server, host.side, host.label) == (False, Side.NAT_VM1, "customer1/vm1")
    assert not MemberName("management2", "mgmt").is_server


def test_a_nat_vm_has_one_name_for_sentences_one_for_keys_one_for_traces():
    assert [(side.prose, side, side.label, side.other) for side in SIDES] == [
        ("NAT VM1", "natVm1", "nat_vm1", "natVm2"),
        ("NAT VM2", "natVm2", "nat_vm2", "natVm1"),
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["n1", "n2", "n10", "n11", "n100"],
        ["customer2/vm1", "customer2/vm9", "customer2/vm10", "customer10/vm1"],
        ["a", "a1", "a1b", "a2", "b"],
        ["", "dev", "prod"],
        ["pod-2", "pod-02x", "pod-10"],
    ],
)
def test_natural_order_is_that_of_people(names):
    for order in permutations(names):
        assert sorted(order, key=natural) == names


def test_servers_come_first_then_hosts_each_in_natural_order():
    names = ["management/s2", "management/s10", "acme/n2", "acme/n10", "zeta/n1"]
    members = [MemberName.parse(name) for name in reversed(names)]
    assert sorted(members, key=servers_first) == names
