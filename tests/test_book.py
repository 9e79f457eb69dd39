"""The address book as a lock file: who gets which slot, and which lines of the stack file change.

Address plan: the article's (conftest.py).  Free slots of its layout begin with .4/.132, then .5/.133.
"""

import difflib
import os
from dataclasses import replace as with_other
from pathlib import Path

import pytest
import yaml
from test_config import changed

from nat_pod import limits
from nat_pod.config.address_book import Entry, edit, settle
from nat_pod.config.addressing import Slot
from nat_pod.config.model import PodConfig, read_draft
from nat_pod.config.whole_file import ChangedError, read, replace
from nat_pod.errors import NatPodError

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLE = (REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8")
HOSTS = "      hosts: {vm2: 10.0.1.100}\n"
ODD_FORM = (
    "nat-pod:addresses: this block is written in a form that cannot be edited in place; "
    "write it as one `member: {natVm1: ..., natVm2: ...}` a line and try again (nothing was changed)"
)


def draft(mapping: dict) -> PodConfig:
    config, problems, _ = read_draft(mapping, "dev")
    assert config is not None, problems
    return config


def draft_of(text: str) -> PodConfig:
    config = yaml.safe_load(text)["config"]
    prefix = "nat-pod:"
    return draft({key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)})


def allocated(text: str, *, reuse: bool = False) -> str:
    config = draft_of(text)
    return edit(text, config, settle(config, reuse=reuse))


def difference(before: str, after: str) -> list[str]:
    """The changed lines alone, in the order of the file."""
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))[2:]
    return [line for line in lines if not line.startswith("@@")]


def adding(*hosts: str) -> str:
    """The example with more hosts at customer2, from 10.0.1.11 on."""
    more = "".join(f", {host}: 10.0.1.{11 + number}" for number, host in enumerate(hosts))
    return EXAMPLE.replace(HOSTS, f"      hosts: {{vm2: 10.0.1.100{more}}}\n")


# --- settle ----------------------------------------------------------------------------------------------------------


def test_a_book_that_fits_stays_as_it_is(dev):
    settled = settle(draft(dev))
    assert not settled.changed
    assert settled.entries == {
        "management/mgmt": Entry(Slot(1, 2)),
        "customer1/vm1": Entry(Slot(1, 2)),
        "customer1/vm2": Entry(Slot(2, 2)),
        "customer2/vm2": Entry(Slot(1, 3)),
    }


def test_a_new_member_gets_the_first_slot_that_is_free(dev):
    settled = settle(draft(changed(dev, {"customers.customer2.hosts.web": "10.0.1.11"})))
    assert (settled.added, settled.returned, settled.released, settled.reused) == (("customer2/web",), (), (), ())
    assert settled.entries["customer2/web"] == Entry(Slot(1, 4))


def test_servers_come_first_and_hosts_in_the_order_of_their_names(dev):
    settled = settle(
        draft(
            changed(
                dev,
                {
                    "customers.customer2.hosts.web": "10.0.1.11",
                    "customers.customer1.hosts.zoo": "10.0.0.12",
                    "customers.customer2.hosts.app": "10.0.1.13",
                    "management.servers.ntp": "10.0.0.14",
                },
            )
        )
    )
    assert {name: settled.entries[name].slot for name in settled.added} == {
        "management/ntp": Slot(1, 4),
        "customer1/zoo": Slot(1, 5),
        "customer2/app": Slot(1, 6),
        "customer2/web": Slot(1, 7),
    }


def test_the_slot_of_a_member_that_is_gone_is_kept_as_released_and_not_handed_out(dev):
    settled = settle(
        draft(changed(dev, {"customers.customer2.hosts.web": "10.0.1.11"}, ["customers.customer1.hosts.vm2"]))
    )
    assert (settled.added, settled.released) == (("customer2/web",), ("customer1/vm2",))
    assert settled.entries["customer1/vm2"] == Entry(Slot(2, 2), released=True)
    assert settled.entries["customer2/web"] == Entry(Slot(1, 4))


def test_the_whole_of_a_customer_that_is_gone_is_released(dev):
    settled = settle(draft(changed(dev, None, ["customers.customer1"])))
    assert settled.released == ("customer1/vm1", "customer1/vm2")
    assert not settled.entries["management/mgmt"].released  # it shares a slot with one of them


def test_a_member_that_comes_back_gets_its_old_slot(dev):
    settled = settle(draft(changed(dev, {"addresses.customer1/vm2.released": True})))
    assert (settled.added, settled.returned) == ((), ("customer1/vm2",))
    assert settled.entries["customer1/vm2"] == Entry(Slot(2, 2))


RELEASED = {
    "addresses.customer1/old": {"natVm1": "198.18.0.4", "natVm2": "198.18.0.132", "released": True},
    "customers.customer2.hosts.web": "10.0.1.11",
}


def test_a_released_slot_is_handed_out_only_when_asked_for(dev):
    kept = settle(draft(changed(dev, RELEASED)))
    assert kept.entries["customer2/web"] == Entry(Slot(1, 5))
    assert kept.entries["customer1/old"] == Entry(Slot(1, 4), released=True)
    asked = settle(draft(changed(dev, RELEASED)), reuse=True)
    assert asked.entries["customer2/web"] == Entry(Slot(1, 4))
    assert "customer1/old" not in asked.entries
    assert (asked.added, asked.reused) == (("customer2/web",), ("customer1/old",))


def test_reuse_with_no_new_member_changes_nothing(dev):
    released = {"addresses.customer1/old": RELEASED["addresses.customer1/old"]}
    assert not settle(draft(changed(dev, released)), reuse=True).changed


@pytest.mark.parametrize("first", ["management/old", "customer1/old"])
def test_a_slot_that_a_server_and_a_host_shared_is_reused_from_both(dev, first):
    """Otherwise the former host would stand in the book beside the new one, and the file would be refused."""
    both = dict.fromkeys((first, "management/old", "customer1/old"), RELEASED["addresses.customer1/old"])
    mapping = changed(dev, {"customers.customer2.hosts.web": "10.0.1.11"})
    mapping["addresses"] |= both
    settled = settle(draft(mapping), reuse=True)
    assert settled.entries["customer2/web"] == Entry(Slot(1, 4))
    assert sorted(settled.reused) == ["customer1/old", "management/old"]
    assert not {"customer1/old", "management/old"} & set(settled.entries)


def test_a_released_slot_whose_other_owner_lives_is_not_handed_out(dev):
    """The article's 198.18.0.2 / 198.18.0.130 is mgmt's as well as vm1's."""
    mapping = changed(dev, {"customers.customer2.hosts.web": "10.0.1.11"}, ["customers.customer1.hosts.vm1"])
    settled = settle(draft(mapping), reuse=True)
    assert settled.entries["customer1/vm1"] == Entry(Slot(1, 2), released=True)
    assert settled.entries["customer2/web"] == Entry(Slot(1, 4))


def full(dev: dict, hosts: int, **more: object) -> dict:
    """The example's 58 slots, 3 of them taken, with this many new hosts."""
    return changed(dev, {**{f"customers.customer2.hosts.h{n}": f"10.0.1.{n}" for n in range(2, 2 + hosts)}, **more})


def test_a_pod_takes_as_many_members_as_it_has_slots_and_not_one_more(dev):
    assert len(settle(draft(full(dev, 55))).added) == 55
    with pytest.raises(NatPodError) as refused:
        settle(draft(full(dev, 57)))
    assert str(refused.value) == (
        "nat-pod:addresses: no slot left for 2 more from customer2/h8 on: all 58 are taken, 29 per VNIC pair\n"
        "    nat-pod:subnets has 2 of the 24 pairs that VM.Standard2.24 can have: one more /27 in natVm1 and one "
        "in natVm2 bring 29 slots\n"
        "    a second POD takes more: python -m nat_pod new-pod NAME"
    )


def test_the_slot_of_the_primary_addresses_is_the_last_of_the_whole_pod(dev):
    """A host that owns it gets the ssh that is meant for NAT VM1."""
    mapping = full(dev, 54, addresses={})  # 58 slots, 58 members
    settled = settle(draft(mapping))
    assert [name for name in settled.added if settled.entries[name].slot == Slot(1, 2)] == [settled.added[-1]]
    last_but_one = changed(mapping, {}, ["customers.customer2.hosts.vm2"])
    assert Slot(1, 2) not in {entry.slot for entry in settle(draft(last_but_one)).entries.values()}


def test_a_full_pod_says_how_many_slots_are_kept_as_released(dev):
    released = {"addresses.customer1/old": RELEASED["addresses.customer1/old"]}
    mapping = full(dev, 55, **released)
    with pytest.raises(NatPodError) as refused:
        settle(draft(mapping))
    assert str(refused.value) == (
        "nat-pod:addresses: no slot left for 1 more from customer2/h9 on: all 58 are taken, 29 per VNIC pair\n"
        "    kept as released, and handed out by allocate --reuse: 1 of them\n"
        "    nat-pod:subnets has 2 of the 24 pairs that VM.Standard2.24 can have: one more /27 in natVm1 and one "
        "in natVm2 bring 29 slots\n"
        "    a second POD takes more: python -m nat_pod new-pod NAME"
    )
    assert settle(draft(mapping), reuse=True).reused == ("customer1/old",)
    with pytest.raises(NatPodError) as still:
        settle(draft(full(dev, 56, **released)), reuse=True)
    assert "--reuse" not in str(still.value)


FULL = {  # shape, the members' number, what the shape has and which larger one brings how much
    "OCPUs for the members": (
        {"shape": "VM.Standard.E4.Flex", "ocpus": 4, "memoryGbs": 16},
        130,
        "VM.Standard.E4.Flex with 4 OCPUs has 4 VNICs; VM.Standard.E4.Flex with 5 OCPUs has 5: 145 slots",
    ),
    "two VNICs per OCPU": (
        {"shape": "VM.Optimized3.Flex", "ocpus": 1, "memoryGbs": 16},
        130,
        "VM.Optimized3.Flex with 1 OCPU has 2 VNICs; VM.Optimized3.Flex with 3 OCPUs has 6: 174 slots",
    ),
    "as many as the range holds": (
        {"shape": "VM.Standard.E4.Flex", "ocpus": 14, "memoryGbs": 16},
        500,
        "VM.Standard.E4.Flex with 14 OCPUs has 14 VNICs; VM.Standard.E4.Flex with 15 OCPUs has 15: 435 slots",
    ),
    "a larger fixed shape": ("VM.Standard2.2", 130, "VM.Standard2.2 has 2 VNICs; VM.Standard2.8 has 8: 232 slots"),
    "the range is full": ("VM.Standard2.24", 500, None),
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_pod_says_which_shape_has_more_slots(dev, name):
    shape, members, larger = FULL[name]
    hosts = {f"h{n}": f"10.1.{n // 200}.{n % 200 + 10}" for n in range(members - 1)}
    changes = {
        "natVm.shape": shape,
        "addresses": {},
        "management.vrouter": "198.18.3.250",
        "customers": {"customer1": {"cidr": "10.1.0.0/16", "hosts": hosts}},
    }
    with pytest.raises(NatPodError) as refused:
        settle(draft(changed(dev, changes, ["subnets"])))
    *_, last = lines = str(refused.value).split("\n    ")[1:]
    assert lines[:-1] == ([] if larger is None else [larger])
    assert last == "a second POD takes more: python -m nat_pod new-pod NAME"


def test_the_larger_shape_that_is_named_has_room_for_all(dev):
    """Every shape with a choice, and every number of members: enough, and one OCPU less would not be."""
    base = draft(dev).nat_vm
    for shape in limits.known_shapes():
        one = with_other(base, shape=shape, ocpus=1 if limits.is_flex(shape) else None)
        for vnics in range(one.vnic_limit + 1, limits.MAX_VNICS + 1):
            larger = one.larger(vnics)
            if larger is None:
                assert shape == "VM.Standard2.24"
            elif larger.vnic_limit < vnics:
                assert larger.larger(vnics) is None
            elif larger.ocpus is not None:
                assert with_other(larger, ocpus=larger.ocpus - 1).vnic_limit < vnics


def test_whoever_has_a_slot_keeps_it_whatever_comes_and_goes_before(dev):
    one = settle(draft(changed(dev, {"customers.customer2.hosts.web": "10.0.1.11"}, ["customers.customer1.hosts.vm2"])))
    other = settle(draft(changed(dev, {"customers.customer1.hosts.app": "10.0.0.11"})))
    stay = {
        "management/mgmt": Entry(Slot(1, 2)),
        "customer1/vm1": Entry(Slot(1, 2)),
        "customer2/vm2": Entry(Slot(1, 3)),
    }
    assert [{name: book.entries[name] for name in stay} for book in (one, other)] == [stay, stay]


def test_members_added_and_removed_in_either_order_leave_those_who_stay_where_they_are():
    """First web then app, or first app then web, with allocate in between: the others' lines are the same."""
    web = allocated(adding("web"))
    web_app = allocated(web.replace("web: 10.0.1.11}", "web: 10.0.1.11, app: 10.0.1.12}"))
    app = allocated(adding("app"))
    app_web = allocated(app.replace("app: 10.0.1.11}", "app: 10.0.1.11, web: 10.0.1.12}"))
    books = [yaml.safe_load(text)["config"]["nat-pod:addresses"] for text in (web_app, app_web)]
    stayed = yaml.safe_load(EXAMPLE)["config"]["nat-pod:addresses"]
    assert all({name: book[name] for name in stayed} == stayed for book in books)
    assert [book["customer2/web"]["natVm1"] for book in books] == ["198.18.0.4", "198.18.0.5"]
    gone = allocated(web_app.replace(", app: 10.0.1.12", ""))
    assert difference(web_app, gone)[2:] == [
        "-    customer2/app: {natVm1: 198.18.0.5, natVm2: 198.18.0.133}",
        "+    customer2/app: {natVm1: 198.18.0.5, natVm2: 198.18.0.133, released: true}",
    ]


# --- edit ------------------------------------------------------------------------------------------------------------


def test_a_new_member_is_one_new_line_at_the_end_of_the_book():
    before = adding("web")
    assert difference(before, allocated(before)) == ["+    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}"]


def test_a_member_that_is_gone_is_one_changed_line():
    before = EXAMPLE.replace("{vm1: 10.0.0.100, vm2: 10.0.0.130}", "{vm1: 10.0.0.100}")
    assert difference(before, allocated(before)) == [
        "-    customer1/vm2: {natVm1: 198.18.0.34, natVm2: 198.18.0.66}",
        "+    customer1/vm2: {natVm1: 198.18.0.34, natVm2: 198.18.0.66, released: true}",
    ]


def test_a_member_that_comes_back_is_one_changed_line():
    gone = "customer1/vm2: {natVm1: 198.18.0.34, natVm2: 198.18.0.66, released: true}"
    before = EXAMPLE.replace("customer1/vm2: {natVm1: 198.18.0.34, natVm2: 198.18.0.66}", gone)
    assert allocated(before) == EXAMPLE


def test_a_reused_slot_is_a_line_that_goes_and_one_that_comes():
    before = adding("web") + "    customer1/old: {natVm1: 198.18.0.4, natVm2: 198.18.0.132, released: true}\n"
    assert difference(before, allocated(before, reuse=True)) == [
        "-    customer1/old: {natVm1: 198.18.0.4, natVm2: 198.18.0.132, released: true}",
        "+    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}",
    ]


def test_what_was_written_is_what_the_next_run_finds_in_order():
    after = allocated(adding("web", "app"))
    assert not settle(draft_of(after)).changed
    assert allocated(after) == after


COMMENTED = EXAMPLE.replace(
    "    customer1/vm1: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}\n"
    "    customer1/vm2: {natVm1: 198.18.0.34, natVm2: 198.18.0.66}\n",
    "    customer1/vm1:   {natVm1: 198.18.0.2,  natVm2: 198.18.0.130}   # the article's first\n"
    "\n"
    "    # asked for by the customer\n"
    '    "customer1/vm2":\n'
    "      natVm2: 198.18.0.66  # first this one\n"
    "      natVm1: 198.18.0.34\n",
)


def test_comments_blank_lines_and_columns_of_other_entries_stay():
    before = COMMENTED.replace(HOSTS, "      hosts: {vm2: 10.0.1.100, web: 10.0.1.11}\n")
    assert difference(before, allocated(before)) == ["+    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}"]


def test_the_comment_behind_an_entry_stays_when_it_is_released():
    before = COMMENTED.replace("{vm1: 10.0.0.100, vm2: 10.0.0.130}", "{vm2: 10.0.0.130}")
    assert difference(before, allocated(before)) == [
        "-    customer1/vm1:   {natVm1: 198.18.0.2,  natVm2: 198.18.0.130}   # the article's first",
        "+    customer1/vm1: {natVm1: 198.18.0.2, natVm2: 198.18.0.130, released: true}   # the article's first",
    ]


def test_an_entry_over_several_lines_becomes_one_when_it_changes():
    before = COMMENTED.replace("{vm1: 10.0.0.100, vm2: 10.0.0.130}", "{vm1: 10.0.0.100}")
    assert difference(before, allocated(before)) == [
        '-    "customer1/vm2":',
        "-      natVm2: 198.18.0.66  # first this one",
        "-      natVm1: 198.18.0.34",
        "+    customer1/vm2: {natVm1: 198.18.0.34, natVm2: 198.18.0.66, released: true}",
    ]


def test_a_comment_behind_the_book_and_what_follows_it_stay_behind_it():
    before = adding("web") + "\n# the end\n  oci:tenancy: x  # not ours\n"
    assert difference(before, allocated(before)) == ["+    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}"]


def test_a_flag_that_says_nothing_keeps_its_line():
    before = adding("web").replace("natVm2: 198.18.0.66}", "natVm2: 198.18.0.66, released: false}")
    assert difference(before, allocated(before)) == ["+    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}"]


def without_book(text: str) -> str:
    return text[: text.index("  nat-pod:addresses:")]


WHOLE_BOOK = [  # .2/.130 are the primary addresses, and come last
    "+    management/mgmt: {natVm1: 198.18.0.3, natVm2: 198.18.0.131}",
    "+    customer1/vm1: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}",
    "+    customer1/vm2: {natVm1: 198.18.0.5, natVm2: 198.18.0.133}",
    "+    customer2/vm2: {natVm1: 198.18.0.6, natVm2: 198.18.0.134}",
]


def test_a_file_without_a_book_gets_one_at_the_end_of_config():
    before = without_book(EXAMPLE) + "# the end\n"
    after = allocated(before)
    assert difference(before, after) == ["+  nat-pod:addresses:", *WHOLE_BOOK]
    assert after.endswith("# the end\n")


@pytest.mark.parametrize("value", ["", " {}", " null", " ~"])
def test_an_empty_book_is_written_where_its_key_stands(value):
    key = f"  nat-pod:addresses:{value}   # by allocate"
    before = EXAMPLE.replace(EXAMPLE[EXAMPLE.index("  nat-pod:addresses:") :], "") + "  oci:tenancy: x\n"
    before = before.replace("  nat-pod:sourceNat: masquerade\n", f"{key}\n  nat-pod:sourceNat: masquerade\n")
    after = ["+  nat-pod:addresses:   # by allocate", *WHOLE_BOOK]
    changes = difference(before, allocated(before))
    assert changes == ([f"-{key}", *after] if value else after[1:])


def test_a_book_in_one_line_is_written_anew_one_member_a_line():
    flow = (
        "  nat-pod:addresses: {management/mgmt: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}, "
        "customer1/vm1: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}, customer1/vm2: {natVm1: 198.18.0.34, "
        "natVm2: 198.18.0.66},\n    customer2/vm2: {natVm1: 198.18.0.3, natVm2: 198.18.0.131}}\n"
    )
    before = without_book(adding("web")) + flow
    assert difference(before, allocated(before)) == [
        *[f"-{line}" for line in flow.splitlines()],
        "+  nat-pod:addresses:",
        "+    management/mgmt: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}",
        "+    customer1/vm1: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}",
        "+    customer1/vm2: {natVm1: 198.18.0.34, natVm2: 198.18.0.66}",
        "+    customer2/vm2: {natVm1: 198.18.0.3, natVm2: 198.18.0.131}",
        "+    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}",
    ]


def test_a_quoted_key_is_found():
    before = adding("web").replace("  nat-pod:addresses: ", '  "nat-pod:addresses": ')
    assert difference(before, allocated(before)) == ["+    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}"]


def test_windows_line_ends_stay_and_new_lines_get_them():
    before = adding("web").replace("\n", "\r\n")
    after = allocated(before)
    line = "    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}\r\n"
    assert after == before + line


def test_a_file_without_a_last_line_end_gets_one():
    before = adding("web").rstrip("\n")
    assert allocated(before) == before + "\n    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}\n"


def test_a_deeper_indentation_is_followed():
    lines = adding("web").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  nat-pod:addresses:"))
    before = "\n".join(lines[: start + 1] + [f"    {line}" for line in lines[start + 1 :]]) + "\n"
    assert difference(before, allocated(before)) == [
        "+        customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}"
    ]


ODD = {
    "the whole of config in one line": lambda text: yaml.safe_dump(yaml.safe_load(text), default_flow_style=True),
    "a book that is an alias": lambda text: (
        "x: &book\n"
        + "\n".join(text[text.index("    management/mgmt") :].splitlines())
        + "\n"
        + without_book(text)
        + "  nat-pod:addresses: *book\n"
    ),
    "an entry whose line others refer to": lambda text: text.replace(
        "customer1/vm1: {natVm1: 198.18.0.2,", "customer1/vm1: &one {natVm1: 198.18.0.2,"
    ).replace(
        "customer2/vm2: {natVm1: 198.18.0.3, natVm2: 198.18.0.131}",
        "customer2/vm2: {natVm1: 198.18.0.3, natVm2: 198.18.0.131}\n  oci:x: *one",
    ),
}


@pytest.mark.parametrize("name", ["the whole of config in one line", "a book that is an alias"])
def test_a_form_that_cannot_be_edited_line_by_line_is_refused(name):
    text = ODD[name](adding("web"))
    with pytest.raises(NatPodError) as refused:
        allocated(text)
    assert str(refused.value) == ODD_FORM


def test_an_entry_that_others_refer_to_is_kept_but_not_rewritten():
    make = ODD["an entry whose line others refer to"]
    kept = make(adding("web"))
    assert difference(kept, allocated(kept)) == ["+    customer2/web: {natVm1: 198.18.0.4, natVm2: 198.18.0.132}"]
    with pytest.raises(NatPodError) as refused:
        allocated(make(EXAMPLE.replace("{vm1: 10.0.0.100, vm2: 10.0.0.130}", "{vm2: 10.0.0.130}")))
    assert str(refused.value) == ODD_FORM


@pytest.mark.parametrize("text", ["# all in Pulumi.yaml\n", "config: {}\n", "config:\n", "encryptionsalt: x\n"])
def test_a_file_whose_configuration_stands_elsewhere_is_refused(dev, text):
    config = draft(changed(dev, {"customers.customer2.hosts.web": "10.0.1.11"}))
    with pytest.raises(NatPodError) as refused:
        edit(text, config, settle(config))
    assert str(refused.value) == ODD_FORM


# --- write -----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_with_its_permissions_and_line_ends(tmp_path):
    path = tmp_path / "Pulumi.x.yaml"
    path.write_bytes(b"old\r\n")
    path.chmod(0o640)
    replace(path, read(path) + "new\r\n", "old\r\n")
    assert path.read_bytes() == b"old\r\nnew\r\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["Pulumi.x.yaml"]


def test_a_link_stays_a_link(tmp_path):
    real = tmp_path / "real.yaml"
    real.write_text("old\n")
    link = tmp_path / "Pulumi.x.yaml"
    link.symlink_to(real)
    replace(link, "new\n", "old\n")
    assert link.is_symlink()
    assert real.read_text() == "new\n"


def test_what_was_saved_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "Pulumi.x.yaml"
    path.write_text("somebody's\n")
    with pytest.raises(ChangedError) as refused:
        replace(path, "new\n", "old\n")
    assert str(refused.value) == (
        "Pulumi.x.yaml: somebody else changed it in the meantime; try again (this command changed nothing)"
    )
    assert path.read_text() == "somebody's\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["Pulumi.x.yaml"]


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod", "mkstemp"])
def test_a_failure_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "Pulumi.x.yaml"
    path.write_text("old\n")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "mkstemp": ("tempfile.mkstemp",)}.get(step, (Path, step)), fail)
    with pytest.raises(NatPodError) as refused:
        replace(path, "new\n", "old\n")
    monkeypatch.undo()
    assert str(refused.value) == ("Pulumi.x.yaml: cannot be written: No space left on device (nothing was changed)")
    assert path.read_text() == "old\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["Pulumi.x.yaml"]


def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "Pulumi.x.yaml"
    path.write_text("old\n")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace(path, "new\n", "old\n")
    assert path.read_text() == "old\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["Pulumi.x.yaml"]


def test_a_renamed_customer_keeps_its_slots_and_only_its_lines_change():
    new = EXAMPLE.replace("    customer2:\n", "    acme:\n      formerly: customer2\n")
    result = allocated(new)
    assert list(difflib.unified_diff(new.splitlines(), result.splitlines(), n=0, lineterm=""))[3:] == [
        "-    customer2/vm2: {natVm1: 198.18.0.3, natVm2: 198.18.0.131}",
        "+    acme/vm2: {natVm1: 198.18.0.3, natVm2: 198.18.0.131}",
    ]
    assert settle(draft_of(new)).renamed == ("acme/vm2",)
    assert not settle(draft_of(result)).changed


def test_without_formerly_the_same_edit_releases_the_old_slots_and_takes_new_ones():
    settled = settle(draft_of(EXAMPLE.replace("    customer2:\n", "    acme:\n")))
    assert (settled.added, settled.released, settled.renamed) == (("acme/vm2",), ("customer2/vm2",), ())
