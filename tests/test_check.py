"""`check`: problems, their places, and ranges of PODs against one another."""

import json

import pytest
from conftest import edit


def test_check_reports_problems_on_standard_output_and_ends_with_1(run, project):
    edit(project, ("sourceNat: masquerade", "sourceNat: snat"))
    problem = '  Pulumi.dev.yaml:23: nat-pod:sourceNat: "snat": must be masquerade or static\n'
    assert run("check", "dev") == (1, f"Pulumi.dev.yaml: 1 problem\n{problem}", "")
    status, out, err = run("check", "--json")
    assert (status, err) == (1, "")
    assert json.loads(out) == {
        "dev": {
            "problems": [
                {
                    "path": "nat-pod:sourceNat",
                    "line": 23,
                    "value": "snat",
                    "rule": "must be masquerade or static",
                    "command": None,
                }
            ],
            "example": False,
        }
    }


def test_check_reports_a_file_that_is_not_yaml_beside_one_that_is_fine(run, project):
    (project / "Pulumi.torn.yaml").write_text("config: [\n")
    status, out, err = run("check")
    assert (status, err) == (1, "")
    assert out == (
        "Pulumi.dev.yaml: fine, 3 of 58 slots used\n"
        "Pulumi.torn.yaml: 1 problem\n"
        "  line 2, column 1: is not YAML that can be read: expected the node content, but found '<stream end>'\n"
    )


# The lines of Pulumi.dev.yaml, by what is wrong in which.
PLACES = [
    (("shape: VM.Standard2.24", "shape: VM.Standard2.99"), 8, "nat-pod:natVm.shape:"),
    (("    shape: VM.Standard2.24\n", ""), 7, "nat-pod:natVm.shape: is missing"),
    (("vm2: 10.0.0.130", "vm2: 10.0.9.9"), 19, "nat-pod:customers.customer1.hosts.vm2:"),
    (("198.18.0.128/27, 198.18.0.64/27", "198.18.0.128/27, 198.18.0.65/27"), 26, "nat-pod:subnets.natVm2[1]:"),
    (
        ("    customer1/vm1: {natVm1: 198.18.0.2,", "    customer1/vm1: {natVm1: x,"),
        30,
        'nat-pod:addresses["customer1/vm1"].',
    ),
    (
        ("    customer1/vm1: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}\n", ""),
        28,
        'nat-pod:addresses["customer1/vm1"]: has no',
    ),
    (("  nat-pod:sourceNat: masquerade", "  sourceNat: masquerade"), 23, "sourceNat: has no namespace"),
    (
        ("  nat-pod:sourceNat: masquerade", "  natpod:sourceNat: masquerade"),
        23,
        "natpod:sourceNat: is in a namespace that nobody reads",
    ),
]


@pytest.mark.parametrize(("change", "line", "start"), PLACES, ids=[start for _, _, start in PLACES])
def test_a_problem_says_in_which_line_of_the_file_it_is(run, project, change, line, start):
    edit(project, change)
    status, out, _ = run("check", "dev")
    assert (status, f"  Pulumi.dev.yaml:{line}: {start}" in out) == (1, True), out
    assert json.loads(run("check", "dev", "--json")[1])["dev"]["problems"][0]["line"] == line


def test_a_setting_that_is_nowhere_is_in_no_line(run, project):
    edit(project, ("  nat-pod:cidr: 198.18.0.0/22              # this POD's own range, from 198.18.0.0/15\n", ""))
    assert "\n  nat-pod:cidr: is missing; " in run("check", "dev")[1]


@pytest.mark.parametrize("namespace", ["natpod", "nat_pod", "NAT-Pod", "nat-pods"])
def test_a_namespace_that_is_misspelt_is_asked_about(run, project, namespace):
    edit(project, ("  nat-pod:sourceNat: masquerade", f"  {namespace}:sourceNat: static"))
    asked = f"{namespace}:sourceNat: is in a namespace that nobody reads; did you mean nat-pod:sourceNat?"
    assert asked in run("check", "dev")[1]


@pytest.mark.parametrize(
    "theirs", ["natpod:labels: 1", "network:cidr: 10.0.0.0/8", "nat-pod-lab:cidr: x", "natpod:cidr: 10.0.0.0/8"]
)
def test_a_key_in_a_namespace_of_others_is_theirs(run, project, theirs):
    edit(project, ("  nat-pod:sourceNat: masquerade", f"  nat-pod:sourceNat: masquerade\n  {theirs}"))
    assert run("check", "dev")[0] == 0


def test_check_finds_a_range_that_two_pods_share_and_says_so_for_both(run, project):
    edit(project, stack="prod")
    clash = (
        "Pulumi.{0}.yaml: 1 problem\n"
        '  Pulumi.{0}.yaml:6: nat-pod:cidr: "198.18.0.0/22": overlaps 198.18.0.0/22 of Pulumi.{1}.yaml; each POD '
        "has its own range\n"
    )
    assert run("check") == (1, clash.format("dev", "prod") + clash.format("prod", "dev"), "")
    assert run("check", "prod") == (1, clash.format("prod", "dev"), "")


def test_check_finds_a_range_inside_that_of_another_pod(run, project):
    edit(project, ("198.18.0.0/22 ", "198.18.0.0/21 "), stack="large")
    status, out, _ = run("check", "dev")
    assert status == 1
    assert 'nat-pod:cidr: "198.18.0.0/22": overlaps 198.18.0.0/21 of Pulumi.large.yaml' in out


def test_check_finds_nothing_when_the_pods_have_ranges_of_their_own(run, project):
    text = edit(project).replace("198.18.0.", "198.18.4.")
    (project / "Pulumi.prod.yaml").write_text(text, encoding="utf-8")
    fine = "Pulumi.dev.yaml: fine, 3 of 58 slots used\nPulumi.prod.yaml: fine, 3 of 58 slots used\n"
    assert run("check") == (0, fine, "")
    assert run("check", "prod", "prod") == (0, "Pulumi.prod.yaml: fine, 3 of 58 slots used\n", "")


def test_check_without_any_stack_file_says_where_it_looked(run, project):
    (project / "Pulumi.dev.yaml").unlink()
    sentence = f"there is no Pulumi.<stack>.yaml in {project}; run: python -m nat_pod new-pod NAME, or for the "
    sentence += "examples: python -m nat_pod new-project --examples\n"
    assert run("check") == (1, "", sentence)


def test_check_lists_stacks_in_natural_order(run, project):
    for name in ("dev10", "dev9"):
        edit(project, stack=name)
    shown = [line.split(":")[0] for line in run("check")[1].splitlines() if line.startswith("Pulumi.")]
    assert shown == ["Pulumi.dev.yaml", "Pulumi.dev9.yaml", "Pulumi.dev10.yaml"]


# --- many problems ---------------------------------------------------------------------------------------------------

MANY = ", ".join(f"h{n}: 10.0.1.{n}" for n in range(2, 90))
OF_ONE_KIND = (
    "    and 85 more of this kind; `python -m nat_pod check --json` lists all\n"
    "    run: python -m nat_pod allocate dev\n"
)


def test_many_problems_of_one_kind_are_a_few_lines_and_their_number(run, project):
    """A new POD: every host is without a slot."""
    edit(project, ("hosts: {vm2: 10.0.1.100}", f"hosts: {{vm2: 10.0.1.100, {MANY}}}"))
    slots = [
        f'  Pulumi.dev.yaml:28: nat-pod:addresses["customer2/h{n}"]: has no slot yet; `pulumi up` never assigns one\n'
        for n in (2, 3, 4)
    ]
    assert run("check", "dev") == (1, "".join(["Pulumi.dev.yaml: 88 problems\n", *slots, OF_ONE_KIND]), "")
    assert run("plan", "dev") == (1, "", "".join(["Pulumi.dev.yaml: 88 problems\n", *slots, OF_ONE_KIND]))
    assert len(json.loads(run("check", "dev", "--json")[1])["dev"]["problems"]) == 88


def test_mistakes_come_before_what_allocate_settles(run, project):
    edit(project, stack="other")
    edit(project, ("hosts: {vm2: 10.0.1.100}", f"hosts: {{vm2: 10.0.1.100, {MANY}}}"))
    lines = run("check", "dev")[1].splitlines()
    assert lines[0] == "Pulumi.dev.yaml: 89 problems"
    assert "overlaps 198.18.0.0/22 of Pulumi.other.yaml" in lines[1]
    assert len(lines) == 7


def test_problems_that_differ_in_more_than_figures_are_all_written_out(run, project):
    wrong = ", ".join(f"h{n}: 10.0.9.{n}" for n in range(2, 90))
    edit(
        project,
        ("hosts: {vm2: 10.0.1.100}", f"hosts: {{vm2: 10.0.1.100, {wrong}}}"),
        ("sourceNat: masquerade", "sourceNat: x"),
    )
    out = run("check", "dev")[1]
    assert out.count("is outside") == 3
    assert out.count("    and 85 more of this kind; ") == 2
    assert out.count("must be masquerade or static") == 1


# --- another range under a book that stands --------------------------------------------------------------------------

DEFAULT_LAYOUT = [
    (
        "  nat-pod:subnets:                         # the article's own layout; new PODs leave this out\n"
        "    natVm1: [198.18.0.0/27, 198.18.0.32/27]\n"
        "    natVm2: [198.18.0.128/27, 198.18.0.64/27]\n"
        "    vrouter: 198.18.0.160/28\n",
        "",
    ),
    ("    vrouter: 198.18.0.167 ", "    vrouter: 198.18.3.250 "),
    (
        "    management/mgmt: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}\n"
        "    customer1/vm1: {natVm1: 198.18.0.2, natVm2: 198.18.0.130}\n"
        "    customer1/vm2: {natVm1: 198.18.0.34, natVm2: 198.18.0.66}\n"
        "    customer2/vm2: {natVm1: 198.18.0.3, natVm2: 198.18.0.131}\n",
        "",
    ),
]


@pytest.mark.parametrize(
    "range_", ["198.18.0.0/21", "198.18.0.0/16", "198.18.0.0/23", "198.18.0.0/25", "198.19.0.0/22"]
)
def test_another_range_under_a_book_is_one_problem_that_says_the_way(run, project, range_):
    edit(project, *DEFAULT_LAYOUT)
    assert (run("allocate", "dev")[0], run("check", "dev")[0]) == (0, 0)
    path = project / "Pulumi.dev.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace("cidr: 198.18.0.0/22 ", f"cidr: {range_} "), encoding="utf-8"
    )
    assert run("check", "dev") == (
        1,
        "Pulumi.dev.yaml: 1 problem\n"
        f'  Pulumi.dev.yaml:6: nat-pod:cidr: "{range_}": the address book is that of 198.18.0.0/22. In another range '
        "NAT VM2's subnets and the vRouter's lie elsewhere, and every address would change: a POD that stands keeps "
        "its range. Put 198.18.0.0/22 back; more members go into a second POD (python -m nat_pod new-pod NAME), or "
        'this one grows with its subnets pinned (docs/operate.md, "Grow"). In a POD that is still to be made, delete '
        "nat-pod:addresses, and give nat-pod:management.vrouter an address of this range\n",
        "",
    )


def test_a_range_grows_around_pinned_subnets(run, project):
    edit(project, ("cidr: 198.18.0.0/22 ", "cidr: 198.18.0.0/21 "))
    assert run("check", "dev") == (0, "Pulumi.dev.yaml: fine, 3 of 58 slots used\n", "")
