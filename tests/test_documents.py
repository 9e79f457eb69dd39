"""The documents: what they show is what the commands print, what they name exists, and their tables are the code's.

One sentence per line, so that a diff shows sentences.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import yaml
from conftest import stack_mapping

import nat_pod
from bench import plot
from bench.pods import full_pod
from bench.rule_sets import FULL, SIZES
from nat_pod.commands import cli
from nat_pod.config.model import PodConfig
from nat_pod.plan.bootstrap import render_user_data
from nat_pod.plan.guest import RULES_KEY, metadata_bytes
from nat_pod.plan.planner import plan_pod
from nat_pod.trace.dispositions import Disposition
from nat_pod.trial.assumptions import Assumption

REPOSITORY = Path(__file__).resolve().parent.parent
# Without what a trial has written there.
DOCUMENTS = sorted(
    [
        *(path for path in REPOSITORY.glob("*.md") if not path.name.startswith("trial-")),
        *(REPOSITORY / "docs").rglob("*.md"),
    ]
)
TEXTS = {str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
SOURCES = [
    path
    for pattern in ("nat_pod/**/*.py", "cloud-init/*", "bench/*.py", ".github/**/*.yml", ".ci/*", "package/*.py")
    for path in sorted(REPOSITORY.glob(pattern))
    if path.is_file()
]
EVERY = pytest.mark.parametrize("name", TEXTS)


def prose(text: str) -> Iterator[str]:
    """Lines that are neither code, table nor heading."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith(("    ", "|", "#")):
            yield line


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    assert f"\n{heading}\n" in text, f"no heading {heading}"
    below = text.split(f"\n{heading}\n")[1].splitlines()
    table = itertools.takewhile(lambda line: line.startswith("|"), itertools.dropwhile(lambda x: x[:1] != "|", below))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in list(table)[2:]]


# --- what they show --------------------------------------------------------------------------------------------------

# What needs nothing but the stack files of this repository.
REPEATABLE = r"    \$ python -m nat_pod ((?:trace|plan|rules|check) dev\b.*)\n"


def shown() -> dict[str, str]:
    """Each repeatable command of the documents with the output that stands below it."""
    found = {}
    for text in TEXTS.values():
        for block in re.finditer(f"^{REPEATABLE}", text, re.MULTILINE):
            # Empty lines in an output have no indentation.
            lines = itertools.takewhile(
                lambda line: not line or line.startswith("    "), text[block.end() :].split("\n")
            )
            found[block[1]] = "\n".join(line.removeprefix("    ") for line in lines).rstrip("\n") + "\n"
    return found


@pytest.mark.parametrize(("command", "output"), shown().items(), ids=shown().keys())
def test_the_documents_show_what_the_command_prints(command, output, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("COLUMNS", "80")
    cli.main(command.split())
    assert capsys.readouterr().out == output


def block(name: str, command: str) -> str:
    """The output that a document shows below one command."""
    text = TEXTS[name].split(f"    $ python -m nat_pod {command}\n")[1]
    lines = itertools.takewhile(lambda line: not line or line.startswith("    "), text.split("\n"))
    return "\n".join(line.removeprefix("    ") for line in lines).rstrip("\n") + "\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The project file and both stacks of the repository, as the current directory."""
    for path in REPOSITORY.glob("Pulumi*.yaml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_deploy_shows_what_pods_says_beside_a_new_pod(project, capsys):
    cli.main(["new-pod", "prod"])
    capsys.readouterr()
    cli.main(["pods"])
    assert capsys.readouterr().out == block("docs/deploy.md", "pods")


def test_import_shows_what_it_says_of_damaged_rules(project, capsys):
    """The article's lines without the one that leads to customer2/vm2, and the first one twice."""
    for vm in ("1", "2"):
        cli.main(["rules", "dev", "--vm", f"natVm{vm}", "--article"])
        lines = capsys.readouterr().out.splitlines(keepends=True)
        if vm == "1":
            lines = [line for line in lines if "-d 198.18.0.3 " not in line] + lines[:1]
        (project / f"vm{vm}.save").write_text("".join(lines), encoding="utf-8")
    cli.main(["import", "--vm1", "vm1.save", "--vm2", "vm2.save", "--stack", "old"])
    said = capsys.readouterr().out
    first, rest = block("docs/import.md", "import --vm1 vm1.save --vm2 vm2.save --stack old").split("...\n")
    assert said.startswith(first)
    assert said.endswith(rest)


def test_pull_requests_shows_the_golden_diff():
    golden = REPOSITORY / "tests" / "golden" / "diff-renumber_host.txt"
    assert block("docs/pull-requests.md", "diff dev --base main") == golden.read_text(encoding="utf-8")


def test_they_show_a_flow_that_arrives_one_that_dies_and_the_proof():
    assert {command.split()[-1] for command in shown()} == {"customer1/vm2", "customer2/vm2", "--all"}


# --- what they name --------------------------------------------------------------------------------------------------

FOLDERS = ("nat_pod", "tests", "bench", "docs", "cloud-init", "package", "tools", ".ci", ".github")


@EVERY
def test_each_path_in_backticks_is_in_the_repository(name):
    words = [word for span in re.findall(r"`([^`\n]+)`", TEXTS[name]) for word in span.split()]
    paths = [
        word for word in words if re.fullmatch(r"[\w.*/-]+", word) and word.split("/")[0] in FOLDERS and "/" in word
    ]
    assert [path for path in paths if not any(REPOSITORY.glob(path.rstrip("/")))] == []


@EVERY
def test_a_module_is_named_with_its_folder(name):
    """`chains.py` alone would not be found by the test above, nor by a reader."""
    assert re.findall(r"`[\w]+\.py`", TEXTS[name]) == []


def anchor(heading: str) -> str:
    """As GitHub makes it: lower case, letters and digits, blanks to dashes."""
    return re.sub(r"[^\w -]", "", heading.lower().strip()).replace(" ", "-")


def headings(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    return {anchor(match[1].replace("`", "")) for match in re.finditer(r"^#+ (.*)$", text, re.MULTILINE)}


@EVERY
def test_each_link_leads_somewhere(name):
    here = REPOSITORY / name
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if target.startswith("https://"):
            continue
        file, _, section = target.partition("#")
        path = (here.parent / file).resolve() if file else here
        if not path.exists() or (section and section not in headings(path)):
            broken.append(target)
    assert broken == []


def test_the_page_on_trials_has_every_assumption():
    page = (REPOSITORY / "docs" / "trial.md").read_text(encoding="utf-8")
    switches = re.findall(r"^\| `([a-z-]+)` \|", page.partition("## Rehearse it")[2], re.MULTILINE)
    assert switches == list(Assumption)
    looked_at = page.partition("## What it looks at")[2].partition("\n## ")[0]
    assert looked_at.count("\n| ") == 1 + len(Assumption)
    assert len(Assumption) == 11
    assert "(eight to ten of eleven)" in TEXTS["README.md"]


def test_each_document_is_reached_from_readme():
    reached, waiting = set(), [REPOSITORY / "README.md"]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            links = re.findall(r"\]\(([^)#\s]+\.md)", path.read_text(encoding="utf-8"))
            waiting += [(path.parent / link).resolve() for link in links if "://" not in link]
    assert set(DOCUMENTS) <= reached


def test_what_the_sources_cite_is_there():
    """`README, "Pull requests"` in a comment: the document and its section."""
    cited = [
        (path, document, section)
        for path in SOURCES
        for document, section in re.findall(
            r"\b(README|ARCHITECTURE|CONTRIBUTING|docs/[\w/-]+)(?:\.md)?,\s(?:# )?\"([^\"]+)\"",
            path.read_text(encoding="utf-8", errors="replace"),
        )
    ]
    assert cited
    missing = [
        f"{path.relative_to(REPOSITORY)}: {document}, {section}"
        for path, document, section in cited
        if not (REPOSITORY / f"{document}.md").exists()
        or anchor(section) not in headings(REPOSITORY / f"{document}.md")
    ]
    assert missing == []


def test_each_target_of_make_that_they_name_exists():
    made = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        target for text in TEXTS.values() for target in re.findall(r"(?:`|^    )make ([\w-]+)", text, re.MULTILINE)
    }
    assert named <= made


def test_the_wheel_that_they_install_is_of_this_version():
    named = [version for text in TEXTS.values() for version in re.findall(r"nat_pod-([\d.]+)-py3", text)]
    assert set(named) == {nat_pod.__version__}


def test_each_command_that_they_name_is_one(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    known = set(re.findall(r"^    ([a-z-]+) ", capsys.readouterr().out, re.MULTILINE))
    named = {command for text in TEXTS.values() for command in re.findall(r"python -m nat_pod ([a-z-]+)", text)}
    in_readme = {
        cell.split()[0] for cell in re.findall(r"^\| [^|]* \| .*?`([a-z-]+ ?[^`]*)`", TEXTS["README.md"], re.MULTILINE)
    }
    assert named - known == set()
    assert known <= in_readme, "README's table of commands"


# --- their tables are the code's -------------------------------------------------------------------------------------


def test_the_reference_has_each_end_of_a_flow_as_trace_says_it():
    table = dict(rows(TEXTS["docs/reference.md"], "## What becomes of a flow"))
    assert table == {f"`{end}`": end.meaning for end in Disposition}


def test_troubleshooting_says_what_to_do_about_each_end_of_a_flow():
    table = rows(TEXTS["docs/troubleshooting.md"], "## A flow does not work")
    assert {end for ends, *_ in table for end in re.findall(r"`([a-z-]+)`", ends)} == set(Disposition)


def test_the_reference_has_each_key_of_the_stack_file_and_its_default():
    project = yaml.safe_load((REPOSITORY / "Pulumi.yaml").read_text(encoding="utf-8"))["config"]
    table = {
        key.strip("`"): default.strip("`") for key, default, _ in rows(TEXTS["docs/reference.md"], "## The stack file")
    }
    said = {"planned": "{}", "empty": "{}", "everything": "[]", "none": ""}  # what {} means for subnets and gateways
    assert {key: said.get(default, default) for key, default in table.items()} == {
        key: str(entry.get("default", "required")) for key, entry in project.items()
    }


def test_each_example_of_a_slot_is_the_articles():
    """The glossary's and the reference's addresses are those of the dev stack: nobody has to learn two sets."""
    book = yaml.safe_load((REPOSITORY / "Pulumi.dev.yaml").read_text(encoding="utf-8"))["config"]["nat-pod:addresses"]
    for name in ("README.md", "docs/reference.md"):
        for member, pair in re.findall(r"^ +([\w]+/[\w]+): \{(natVm1: .*)\}$", TEXTS[name], re.MULTILINE):
            assert pair == ", ".join(f"{vm}: {address}" for vm, address in book[member].items())


@pytest.mark.slow
def test_the_reference_says_what_fits_into_the_metadata():
    """Within 3 %, so that not each edit of the agent is one of the document."""

    def bytes_of(pod: dict[str, object]) -> dict[str, int]:
        vm = plan_pod(PodConfig.from_mapping(pod, "x"), "x").vms[0]
        return {"all": metadata_bytes(vm.metadata), "rules": len(vm.metadata[RULES_KEY])}

    table = rows(TEXTS["docs/reference.md"], "### What fits into the metadata")
    said = [int(figure.replace(",", "")) for _, figure in table]
    full = [bytes_of(full_pod(source_nat=policy, scattered=Random(4)))["all"] for policy in ("masquerade", "static")]
    assert said == pytest.approx([len(render_user_data()), bytes_of(stack_mapping("ten"))["rules"], *full], rel=0.03)


def test_architecture_has_each_package():
    inside = REPOSITORY / "nat_pod"
    packages = {str(path.parent.relative_to(inside)) for path in inside.rglob("__init__.py")} - {"."}
    assert {name.strip("`") for name, _ in rows(TEXTS["ARCHITECTURE.md"], "## Packages")} == packages


# --- the plot --------------------------------------------------------------------------------------------------------

RESULTS = (REPOSITORY / "bench" / "results.md").read_text(encoding="utf-8")


def test_the_plot_is_the_one_of_the_results():
    assert plot.PLOT.read_text(encoding="utf-8") == plot.draw(plot.costs(RESULTS)), "run: python -m bench.plot"


def test_each_point_of_the_plot_lies_where_the_table_says():
    """Read off the axes as a person does: by the numbers beside the ticks, not by the generator's own scale."""
    picture = plot.PLOT.read_text(encoding="utf-8")
    ticks = [(int(text), float(y) - 6) for y, text in re.findall(r'y-tick" x="[^"]*" y="([^"]*)"[^>]*>(\d+)<', picture)]
    (low, bottom), (high, top) = min(ticks), max(ticks)
    positions = {int(text): float(x) for x, text in re.findall(r'x-tick" x="([^"]*)"[^>]*>(\d+)<', picture)}
    points = re.findall(
        r'<circle class="\w+" cx="([^"]*)" cy="([^"]*)" r="4"><title>(\w+ (\d+) to \w+): ([\d.]+)', picture
    )
    table = dict(re.findall(r"^\| (\w+ \d+ to \w+) \| [\d.]+ \| ([\d.]+) ", RESULTS, re.MULTILINE))
    assert len(points) == len(table) == 2 * sum(map(len, SIZES.values()))
    for x, y, row, slots, said in points:
        assert said == table[row]
        assert low + (bottom - float(y)) / (bottom - top) * (high - low) == pytest.approx(float(said), abs=0.03)
        assert float(x) == pytest.approx(positions[int(slots)], abs=5), "the tick of this number of mappings"


def test_results_without_the_table_are_refused():
    with pytest.raises(ValueError, match=r"results\.md has no row like"):
        plot.costs("# What a NAT POD costs a packet\n\n## New flows\n\nnothing yet\n")


def test_the_figures_of_performance_are_those_of_the_results():
    row = r"^\| (\w+) (\d+) to (\w+) \| [\d.]+ \| [^|]* \| ([\d.]+) "  # microseconds, x plain, x one slot
    ratios = {
        (towards, kind): ratio
        for kind, size, towards, ratio in re.findall(row, RESULTS, re.MULTILINE)
        if int(size) == FULL[kind]
    }
    kinds = {"the article's lines": "article", "`masquerade`": "masquerade", "`static`": "static", "routed": "routed"}
    said = {
        (towards.removesuffix("s"), kinds[policy]): ratio
        for towards, policy, ratio in rows(TEXTS["docs/performance.md"], "## A new flow, by the number of mappings")
    }
    assert said == ratios
    # Its own steps, to the digit.
    steps = dict(re.findall(r"^\| ([\w ,]+) \| ([\d.]+)(?: \([^)]*\))? \| [+\d.]+ \|$", RESULTS, re.MULTILINE))
    table = rows(TEXTS["docs/performance.md"], "## What lies between plain routing and a POD")
    measured = [steps[name] for name in ("conntrack, no NAT", "DNAT", "DNAT and SNAT", "DNAT, SNAT, guard")]
    assert [figure for _, figure in table[1:5]] == measured


def test_the_figures_of_commands_engine_and_changes_are_those_of_their_benchmarks():
    text = TEXTS["docs/performance.md"]
    bench = {
        name: (REPOSITORY / "bench" / f"{name}.md").read_text(encoding="utf-8")
        for name in ("commands", "engine", "change")
    }
    times = {
        command: sorted(float(ratio) for ratio in found if ratio)
        for command, *found in re.findall(
            r"^\| `([a-z -]+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]*) \|$", bench["commands"], re.MULTILINE
        )
    }
    least, _, most = times.pop("trace --all")
    every = [time for found in times.values() for time in found]
    assert f"takes {min(every)} to {max(every):g} times what Python takes" in text
    assert f"`trace --all` {least} to {most} times" in text
    medians = re.findall(r"\| ([\d.]+) \| [\d.]+ to [\d.]+ \|$", bench["engine"], re.MULTILINE)
    assert f"take {min(medians)} to {max(medians)} times what a bare program" in text
    counts = dict(re.findall(r"^\| ([^|]+) \| (\d+)\b[^|]* \|$", bench["change"], re.MULTILINE))
    for what in ("flows that no change may end", "flows that a change may end"):
        assert f"- {int(counts[what]):,} {what}" in text
    assert f"{counts['changes']} changes of mappings" in text


# --- form ---------------------------------------------------------------------------------------------------------


@EVERY
def test_a_table_ends_with_an_empty_line(name):
    """Otherwise the sentence below becomes its last row."""
    pairs = itertools.pairwise([*TEXTS[name].splitlines(), ""])
    assert [below for line, below in pairs if line.startswith("|") and below and not below.startswith("|")] == []


@EVERY
def test_a_line_has_one_sentence(name):
    abbreviations = r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!\d)"
    long = [line for line in prose(TEXTS[name]) if re.search(rf"\w{abbreviations}[.!?]\)? [A-Z`*\[]", line)]
    assert [line for line in long if not re.match(r"\s*(\d+\.|-) \*\*[^*]+\.\*\*$", line)] == []


@EVERY
def test_words_that_a_native_reader_stumbles_over_stay_out(name):
    """From reviews: "a" for "per", "he" of a customer or a host."""
    assert re.findall(r"\b(?:he|his|him)\b", TEXTS[name]) == []
    assert re.findall(r"\b(?:one|two|a) (?:rule|route|page|file|list) a (?:VM|VNIC|POD|customer)\b", TEXTS[name]) == []
