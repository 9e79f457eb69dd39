"""`import`: hand-built PODs read from their rules.

Address plan: the article's (conftest.py).  Good pairs and damaged ones are in data/damaged_pods.yaml, whole outputs in
golden/import-*.  That a POD comes back as it was is tested on what `rules` prints, in both forms.
"""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, stack_mapping

from nat_pod import iptables
from nat_pod.article import article_lines
from nat_pod.cli import main
from nat_pod.config import PodConfig
from nat_pod.pod import plan_pod

DATA = yaml.safe_load((REPOSITORY / "tests" / "data" / "damaged_pods.yaml").read_text(encoding="utf-8"))
GOOD, DAMAGED = DATA["good"], DATA["damaged"]
VMS = ("natVm1", "natVm2")
FILES = ["--vm1", "vm1", "--vm2", "vm2"]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def run(directory: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`run({"natVm1": text, "natVm2": text}, "--json")`: exit status, standard output, standard error."""

    def call(rules: dict[str, str | bytes], *options: str) -> tuple[int, str, str]:
        for number, vm in enumerate(VMS, 1):
            data = rules[vm]
            (directory / f"vm{number}").write_bytes(data.encode() if isinstance(data, str) else data)
        try:
            status = main(["import", *FILES, *options])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def damage(entry: dict) -> dict[str, str]:
    """The files of one damaged POD."""
    files = {}
    for vm in VMS:
        lines = dict(enumerate(GOOD[entry.get("base", "article")][vm].splitlines(), 1))
        lines |= entry.get(vm, {})
        files[vm] = "\n".join(lines[number] for number in sorted(lines)) + "\n"
    return files


# --- the article, and back -------------------------------------------------------------------------------------------


def filled(written: dict, like: dict) -> dict:
    """An imported configuration with the gaps filled from the stack that the rules are of."""
    config = copy.deepcopy(written)
    for key in ("compartmentId", "natVm"):
        config[key] = like[key]
    config["management"]["vrouter"] = like["management"]["vrouter"]
    if "subnets" in config:
        config["subnets"]["vrouter"] = like["subnets"]["vrouter"]
    return config


def renamed(mapping: dict, written: dict) -> dict:
    """A stack's configuration with the names that the import gave: by network, and by address within it."""
    result = copy.deepcopy(mapping)
    servers = {address: name for name, address in written["management"]["servers"].items()}
    names = {f"management/{name}": f"management/{servers[a]}" for name, a in mapping["management"]["servers"].items()}
    server_names = {name: servers[address] for name, address in mapping["management"]["servers"].items()}
    result["management"]["servers"] = {servers[a]: a for a in mapping["management"]["servers"].values()}
    result["customers"] = {}
    for name, entry in mapping["customers"].items():
        new, twin = next((n, c) for n, c in written["customers"].items() if c["cidr"] == entry["cidr"])
        hosts = {address: host for host, address in twin["hosts"].items()}
        names |= {f"{name}/{host}": f"{new}/{hosts[address]}" for host, address in entry["hosts"].items()}
        result["customers"][new] = {**entry, "hosts": {hosts[a]: a for a in entry["hosts"].values()}}
        if "servers" in entry:
            result["customers"][new]["servers"] = [server_names[server] for server in entry["servers"]]
    result["addresses"] = {names[member]: slot for member, slot in mapping["addresses"].items()}
    return result


def printed(mapping: dict, form: str) -> dict[str, str]:
    """What `rules STACK --vm` prints, or with --article."""
    config = PodConfig.from_mapping(mapping, "x")
    plan = plan_pod(config, "x")
    if form == "article":
        return {vm: "\n".join(article_lines(config, vm)) for vm in VMS}
    texts = {}
    for vm in VMS:
        rules = plan.vm(vm).rules
        enters = [f"# {table}: {builtin} enters {chain} first" for table, builtin, chain in iptables.hooks(rules)]
        texts[vm] = "\n".join([*enters, iptables.render(rules)])
    return texts


def as_saved(text: str) -> str:
    """What iptables-save on the VM prints of the same: the built-in chains, their jumps, counters."""
    jumps = re.findall(r"# (\w+): (\w+) enters (\S+) first\n", text)
    for table in ("filter", "nat"):
        own = [f"[7:420] -A {builtin} -j {chain}\n" for name, builtin, chain in jumps if name == table]
        builtins = "".join(f":{builtin} ACCEPT [12:720]\n" for name, builtin, _ in jumps if name == table)
        start, body = text.split(f"*{table}\n", 1)
        chains, rules = body.split("-A ", 1)
        text = f"{start}*{table}\n{builtins}{chains}{''.join(own)}-A {rules}"
    text = re.sub(r"^-A ", "[0:0] -A ", re.sub(r"^# .*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    return f"# Generated by iptables-save v1.8.8 on Wed Nov  5 10:00:00 2025\n{text}# Completed\n"


def full_pod() -> dict:
    """A /21 with all of its 696 slots taken: 8 servers, 688 hosts of 10 customers."""
    mapping = stack_mapping("ten")
    servers = {f"s{number}": f"10.0.200.{10 + number}" for number in range(8)}
    customers = {
        f"c{customer}": {
            "cidr": f"10.0.{customer}.0/24",
            "hosts": {f"h{number}": f"10.0.{customer}.{2 + number}" for number in range(69 if customer < 8 else 68)},
        }
        for customer in range(10)
    }
    members = [f"management/{name}" for name in servers]
    members += [f"{name}/{host}" for name, entry in customers.items() for host in entry["hosts"]]
    offsets = [offset for offset in range(768) if 2 <= offset % 32 <= 30]
    assert len(members) == len(offsets) == 696
    return {
        **mapping,
        "cidr": "198.18.8.0/21",
        "natVm": {**mapping["natVm"], "shape": "VM.Standard2.24"},
        "management": {"cidr": "10.0.0.0/16", "vrouter": "198.18.15.250", "servers": servers},
        "customers": customers,
        "addresses": {
            member: {
                "natVm1": f"198.18.{8 + offset // 256}.{offset % 256}",
                "natVm2": f"198.18.{12 + offset // 256}.{offset % 256}",
            }
            for member, offset in zip(members, offsets, strict=True)
        },
    }


def imported(run, rules: dict[str, str], *options: str) -> dict:
    """The import of a POD that has nothing wrong."""
    status, out, err = run(rules, "--json", *options)
    answer = json.loads(out)
    kinds = {finding["kind"] for finding in answer["findings"]}
    assert (status, err, kinds - {"others"}) == (0, "", set()), answer["findings"][:3]
    return answer


def assert_same_plan(mapping: dict, written: dict) -> None:
    """The imported stack plans the same POD, byte for byte, metadata included, but for the names."""
    twin = plan_pod(PodConfig.from_mapping(filled(written, mapping), "x"), "x")
    assert twin == plan_pod(PodConfig.from_mapping(renamed(mapping, written), "x"), "x")


def test_the_articles_final_tables_are_the_dev_pod(run, dev):
    assert_same_plan(dev, imported(run, GOOD["article"])["config"])


PODS = {
    "dev": lambda: stack_mapping("dev"),
    "dev, static": lambda: {**stack_mapping("dev"), "sourceNat": "static"},
    "ten": lambda: stack_mapping("ten"),
    "ten, masquerade": lambda: {**stack_mapping("ten"), "sourceNat": "masquerade"},
    "a full /21": full_pod,
    "a full /21, masquerade": lambda: {**full_pod(), "sourceNat": "masquerade"},
}


@pytest.mark.parametrize("form", ["rules", "iptables-save", "article"])
@pytest.mark.parametrize("name", PODS)
def test_what_rules_prints_is_imported_as_the_same_plan(run, name, form):
    mapping = PODS[name]()
    mapping.setdefault("subnets", {}) if name.startswith("dev") else mapping.pop("subnets", None)
    texts = printed(mapping, "article" if form == "article" else "rules")
    if form == "iptables-save":
        texts = {vm: as_saved(text) for vm, text in texts.items()}
    written = imported(run, texts)["config"]
    assert_same_plan(mapping, written)
    if form != "article":  # comments have the names
        assert set(written["addresses"]) == set(mapping["addresses"])


# --- one thing wrong -------------------------------------------------------------------------------------------------


def shown(finding: dict) -> str:
    place = "" if finding["line"] is None else f" line {finding['line']}"
    where = f"{finding['vm']}{place}: " if finding["vm"] else ""
    return f"{finding['kind']}: {where}{finding['why']}"


@pytest.mark.parametrize("entry", DAMAGED, ids=lambda entry: entry["what"])
def test_what_is_wrong_with_a_pod_is_what_is_listed(run, directory, entry):
    for name, text in entry.get("files", {}).items():
        (directory / name).write_text(text, encoding="utf-8")
    files = damage(entry)
    status, out, err = run(files, "--json", *entry.get("options", ()))
    found = json.loads(out)["findings"]
    assert [shown(finding) for finding in found] == entry["findings"]
    harmless = all(finding["kind"] in ("unmet", "others", "exchanged") for finding in found)
    assert (status, err) == (0 if harmless else 1, "")
    for finding in found:
        if finding["line"] is not None:
            assert finding["rule"] == files[finding["vm"]].splitlines()[finding["line"] - 1].strip()


def test_there_are_more_than_twenty_damaged_pods_and_each_has_findings():
    assert len(DAMAGED) > 20
    assert all(entry["findings"] for entry in DAMAGED)


@pytest.mark.parametrize("base", GOOD)
def test_the_pods_that_are_damaged_were_good_before(run, base):
    imported(run, GOOD[base])
