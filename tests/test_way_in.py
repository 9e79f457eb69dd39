"""The way in to NAT VM1 as `plan` shows it; tests/test_lab.py tries it."""

import json

import pytest
from conftest import edit

NO_BOOK = (
    "    management/mgmt: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}\n"
    "    customer1/vm1: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}\n"
    "    customer1/vm2: {natVm1: 198.18.0.34, natVm2: 198.18.0.66}\n"
    "    customer2/vm2: {natVm1: 198.18.0.3, natVm2: 198.18.0.131}\n",
    "",
)
GONE_PAIR = (
    "customer1/vm2: {natVm1: 198.18.0.34, natVm2: 198.18.0.66}",
    "customer1/vm2: {natVm1: 198.18.0.5, natVm2: 198.18.0.133}",
)
WAYS_IN = {
    "the article's book": ([], None, "no ssh to NAT VM1: customer1/vm1 has 198.18.0.2, customer1/vm2 has 198.18.0.34"),
    "one VNIC, a host's": ([GONE_PAIR], None, "no ssh to NAT VM1: customer1/vm1 has 198.18.0.2"),
    "the second VNIC": (
        [("{natVm1: 198.18.0.34, natVm2: 198.18.0.66}", "{natVm1: 198.18.0.35, natVm2: 198.18.0.67}")],
        "198.18.0.34",
        "ssh to NAT VM1 at 198.18.0.34, through NAT VM2",
    ),
    "a new book": ([NO_BOOK], "198.18.0.2", "ssh to NAT VM1 at 198.18.0.2, through NAT VM2"),
    "a server's slot": (
        [
            (
                "customer1/vm1: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}",
                "customer1/vm1: {natVm1: 198.18.0.9, natVm2: 198.18.0.137}",
            )
        ],
        "198.18.0.2",
        "ssh to NAT VM1 at 198.18.0.2, through NAT VM2",
    ),
}


@pytest.mark.parametrize("name", WAYS_IN)
def test_plan_says_how_nat_vm1_is_reached_or_whose_its_addresses_are_and_check_is_fine(run, project, name):
    changes, address, sentence = WAYS_IN[name]
    edit(project, *changes)
    assert run("allocate", "dev")[0] == 0
    lines = run("plan", "dev")[1].splitlines()
    assert lines[lines.index("  way in  ssh to NAT VM2 at 198.18.0.130") + 1] == f"          {sentence}"
    assert json.loads(run("plan", "dev", "--json")[1])["wayIn"] == {"natVm1": address, "natVm2": "198.18.0.130"}
    assert run("check", "dev")[0] == 0
