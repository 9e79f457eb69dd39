"""Hand-built PODs for the tests of `import`: good pairs of files, damaged ones, and how they are read.

Address plan: the article's (conftest.py).  Good pairs and damaged ones are in data/damaged_pods.yaml.
"""

import json

import yaml
from conftest import REPOSITORY

from nat_pod.config.model import PodConfig
from nat_pod.names import Side
from nat_pod.plan.planner import plan_pod
from nat_pod.rules import iptables
from nat_pod.rules.article import article_lines

DATA = yaml.safe_load((REPOSITORY / "tests" / "data" / "damaged_pods.yaml").read_text(encoding="utf-8"))
GOOD, DAMAGED = DATA["good"], DATA["damaged"]
VMS = ("natVm1", "natVm2")
FILES = ["--vm1", "vm1", "--vm2", "vm2"]
ARTICLE = GOOD["article"]["natVm1"]
DNAT = "-j DNAT --to-destination"


def damage(entry: dict) -> dict[str, str]:
    """The files of one damaged POD."""
    files = {}
    for vm in VMS:
        lines = dict(enumerate(GOOD[entry.get("base", "article")][vm].splitlines(), 1))
        lines |= entry.get(vm, {})
        files[vm] = "\n".join(lines[number] for number in sorted(lines)) + "\n"
    return files


def mapped(*hosts: str, comments: tuple[str, ...] = ()) -> dict[str, str]:
    """A POD of one server and these hosts, each with the next slot."""
    vm1, vm2 = [], [f"iptables -t nat -A PREROUTING -s 198.18.0.2 -d 198.18.0.130 {DNAT} 10.200.0.9"]
    for number, host in enumerate(hosts):
        comment = f"-m comment --comment {comments[number]} " if comments else ""
        one, two = f"198.18.0.{3 + number}", f"198.18.0.{131 + number}"
        vm1.append(f"iptables -t nat -A PREROUTING -s {host} -d 198.18.0.2 {DNAT} 198.18.0.130")
        vm1.append(f"iptables -t nat -A PREROUTING -s 198.18.0.130 -d {one} {comment}{DNAT} {host}")
        vm2.append(f"iptables -t nat -A PREROUTING -s 10.200.0.9 -d {two} {DNAT} {one}")
    hide = "iptables -t nat -A POSTROUTING -o ens3 -j MASQUERADE"
    return {"natVm1": "\n".join([*vm1, hide]), "natVm2": "\n".join([*vm2, hide])}


def printed(mapping: dict, form: str) -> dict[str, str]:
    """What `rules STACK --vm` prints, or with --article."""
    config = PodConfig.from_mapping(mapping, "x")
    plan = plan_pod(config, "x")
    if form == "article":
        return {vm: "\n".join(article_lines(config, Side(vm))) for vm in VMS}
    texts = {}
    for vm in VMS:
        rules = plan.vm(vm).rules
        enters = [f"# {table}: {builtin} enters {chain} first" for table, builtin, chain in iptables.hooks(rules)]
        texts[vm] = "\n".join([*enters, iptables.render(rules)])
    return texts


def imported(run, rules: dict[str, str], *options: str) -> dict:
    """The import of a POD that has nothing wrong."""
    status, out, err = run(rules, "--json", *options)
    answer = json.loads(out)
    kinds = {finding["kind"] for finding in answer["findings"]}
    assert (status, err, kinds - {"others"}) == (0, "", set()), answer["findings"][:3]
    return answer


def shown(finding: dict) -> str:
    place = "" if finding["line"] is None else f" line {finding['line']}"
    where = f"{finding['vm']}{place}: " if finding["vm"] else ""
    return f"{finding['kind']}: {where}{finding['why']}"
