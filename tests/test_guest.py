"""The bootstrap and the rule document as values: bytes, sizes, refusals."""

import ast
import base64
import builtins
import bz2
import gzip
import json
import random
import re
import string

import pytest
import yaml

from bench.pods import full_pod
from nat_pod.config.model import PodConfig
from nat_pod.errors import ConfigError
from nat_pod.limits import METADATA_BYTES, METADATA_OVERHEAD_BYTES
from nat_pod.plan import guest
from nat_pod.plan.bootstrap import (
    SOURCES,
    agent_of,
    build,
    render_cloud_config,
    render_user_data,
    unpack_user_data,
    without_blanks,
    without_comments,
    without_docstrings,
)
from nat_pod.plan.document import (
    DOCUMENT_LIMIT,
    canonical,
    from_printable,
    generation_of,
    printable,
    read_document,
    rule_document,
)
from nat_pod.plan.model import PodPlan
from nat_pod.plan.planner import plan_pod
from nat_pod.plan.short_names import with_short_names
from nat_pod.rules import iptables

HOOKS = [("filter", "FORWARD", "NATPOD-FORWARD"), ("nat", "PREROUTING", "NATPOD-PRE")]
RULES = "*filter\n:NATPOD-FORWARD - [0:0]\n-A NATPOD-FORWARD -j DROP\nCOMMIT\n*nat\n:NATPOD-PRE - [0:0]\nCOMMIT\n"


@pytest.mark.slow
def test_the_committed_user_data_is_what_the_sources_give():
    assert unpack_user_data(render_user_data()) == render_cloud_config(), (
        "cloud-init/ has changed: run `python -m nat_pod.plan.bootstrap`; deployed NAT VMs will be replaced"
    )


@pytest.mark.slow
def test_user_data_is_left_alone_when_only_its_packing_would_differ(tmp_path, monkeypatch):
    other = tmp_path / "user-data.b64"
    packed = base64.b64encode(gzip.compress(render_cloud_config().encode(), 1, mtime=0)).decode()
    other.write_text(packed + "\n")
    monkeypatch.setattr("nat_pod.plan.bootstrap.ARTEFACT", other)
    assert build() is False
    assert render_user_data() == packed
    other.write_text(base64.b64encode(gzip.compress(b"#cloud-config\n")).decode())
    assert build() is True
    assert base64.b64decode(render_user_data())[4:8] == bytes(4), "a time of packing would differ each time"
    assert unpack_user_data(render_user_data()) == render_cloud_config()


@pytest.mark.slow
def test_the_cloud_config_is_yaml_with_nothing_left_to_fill_in():
    text = render_cloud_config()
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    assert sorted(config) == ["runcmd", "write_files"]
    files = {entry["path"]: entry["content"] for entry in config["write_files"]}
    assert not any(content.startswith("$") for content in files.values())
    assert files["/etc/sysctl.d/90-nat-pod.conf"].count("rp_filter = 0") == 3
    # Forwarding is the agent's to switch on: nothing that runs at boot by itself may do it.
    assert [path for path, content in files.items() if "ip_forward =" in content] == ["/etc/nat-pod/forwarding.conf"]
    commands = config["runcmd"]
    masked = commands.index("systemctl mask firewalld.service || true")
    assert masked < commands.index("systemctl start nat-pod-agent.service || true")


def code(text: str) -> ast.Module:
    """A program without its docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def renamed(one: ast.AST, other: ast.AST) -> dict[str, str]:
    """What local names of one function are called in the other; all else must be equal, and no two become one."""
    names: dict[str, str] = {}

    def compare(first: object, second: object, named: bool = False) -> None:
        assert type(first) is type(second)
        if isinstance(first, ast.AST):
            for field in first._fields:
                name = (type(first), field) in {(ast.Name, "id"), (ast.arg, "arg"), (ast.ExceptHandler, "name")}
                compare(getattr(first, field), getattr(second, field), name)
        elif isinstance(first, list):
            for pair in zip(first, second, strict=True):
                compare(*pair)
        elif named and isinstance(first, str):
            assert names.setdefault(first, second) == second
        else:
            assert first == second

    compare(one, other)
    assert len(set(names.values())) == len(names), "two names became one"
    return {name: short for name, short in names.items() if name != short}


def functions(tree: ast.Module) -> list[ast.AST]:
    """The module's functions and its classes' methods, and last what is left without them."""
    found = []
    for body in (tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))):
        found += [node for node in body if isinstance(node, ast.FunctionDef)]
        body[:] = [node for node in body if not isinstance(node, ast.FunctionDef)] or [ast.Pass()]
    return [*found, tree]


@pytest.mark.slow
def test_the_deployed_agent_is_the_source_without_comments_and_with_short_names():
    source = (SOURCES / "nat_pod_agent.py").read_text()
    files = {file["path"]: file["content"] for file in yaml.safe_load(render_cloud_config())["write_files"]}
    deployed = bz2.decompress(base64.b64decode(files["/etc/nat-pod/agent"])).decode()
    assert deployed.startswith("#!/usr/bin/env python3\n")
    known = {
        *vars(builtins),
        *(node.id for node in ast.walk(functions(code(source))[-1]) if isinstance(node, ast.Name)),
    }
    known |= {node.name for node in code(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    changed = []
    for one, other in zip(functions(code(source)), functions(code(deployed)), strict=True):
        changed.append(renamed(one, other))
        assert not set(changed[-1].values()) & known, "a local name hides what the function calls"
    assert changed.pop() == {}, "outside functions every name stays"
    assert sum(map(len, changed)) > 400


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(one, two=b):\n    return one + two + c\n", "def f(a, d=b):\n    return a + d + c\n"),
        # What others may see: functions, names of the module, attributes, arguments that are given by name.
        (
            "MOST = 1\nfor name in ():\n    pass\ndef f(one, two):\n    name = one.two + MOST\n    f(one, two=name)\n",
            "MOST = 1\nfor name in ():\n    pass\ndef f(a, two):\n    name = a.two + MOST\n    f(a, two=name)\n",
        ),
        ("def f(one):\n    dict(one=one)\n", "def f(a):\n    dict(one=a)\n"),
        (
            "class C:\n    def m(self, one):\n        self.one = one\n",
            "class C:\n    def m(a, b):\n        a.one = b\n",
        ),
        # A function within a function is part of it.
        (
            "def f(one):\n    def g(two):\n        return one, two\n    return g, [lambda x: x for one in one]\n",
            "def f(a):\n    def g(b):\n        return a, b\n    return g, [lambda c: c for a in a]\n",
        ),
        (
            "def f(one):\n    try:\n        pass\n    except (E, F) as error:\n        print('error', error)\n",
            "def f(a):\n    try:\n        pass\n    except (E, F) as b:\n        print('error', b)\n",
        ),
    ],
)
def test_short_names(source, expected):
    assert with_short_names(source) == expected
    ast.parse(expected)


def test_a_function_of_many_names_gets_no_keyword_for_one():
    names = [f"name{number}" for number in range(300)]
    short = with_short_names(f"def f({', '.join(names)}):\n    pass\n")
    given = [argument.arg for argument in ast.parse(short).body[0].args.args]
    assert len(set(given)) == 300
    assert max(map(len, given)) == 2


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('#!/bin/x\n"""Doc."""\nx = 1\n', "#!/bin/x\nx = 1\n"),
        (
            'def f():\n    """Doc\n    more."""\n    # why\n    return "# stays"  # why\n',
            'def f():\n return "# stays"\n',
        ),
        ('class E(Exception):\n    """All there is."""\n', "class E(Exception):\n pass\n"),
        (
            "f(\n    a,  # why\n    [b, c],\n)\nd = (\n    e\n    if g\n    else h\n)\n",
            "f(a, [b, c])\nd = (e if g else h)\n",
        ),
    ],
)
def test_without_comments_and_docstrings(source, expected):
    assert without_comments(without_docstrings(source)) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('#!/bin/x\na = b if c else "d  e"\n', '#!/bin/x\na=b if c else"d  e"\n'),
        ("if a:\n b = 1 or - 2\nf(a, *b, c = [])\n", "if a:\n b=1 or-2\nf(a,*b,c=[])\n"),
        ('A = """x = 1\n y\n"""\nfor a in (b): pass\n', 'A="""x = 1\n y\n"""\nfor a in(b):pass\n'),
    ],
)
def test_without_blanks(source, expected):
    assert without_blanks(source) == expected
    assert ast.dump(ast.parse(expected)) == ast.dump(ast.parse(source))


def test_a_document_survives_the_round_trip_and_is_the_same_bytes_each_time():
    value, generation = rule_document("natVm1", HOOKS, RULES)
    assert rule_document("natVm1", HOOKS, RULES) == (value, generation)
    document = read_document(value)
    assert (document.vm, document.generation, document.rules) == ("natVm1", generation, RULES)
    assert list(document.hooks) == HOOKS


def test_the_bytes_of_a_document_are_pinned():
    """Other bytes for the same rules mean an update of every NAT VM: that must be a decision, not an accident."""
    value, generation = rule_document("natVm1", HOOKS, RULES)
    assert generation == "08f56dde982f7270"
    assert value == (
        "4:LRx4!F+o`-Q(0~Pj5`1TXdi%37IW|~qt}in|DOsV0E/i@G*2nyPgB$nP-yiu(dr(fPf!G+rk,LfPyjLj(d7UcsOx49(KX.z/*="
        "4lm*4dVNyD3r#3ExT3N;~ze4g{{bexYDs#FsYIflzYKH_-58Z%0)A`l-GR|VUKS3*f^;DU`HFi~.K5N/~X;$?7X(p5%7!i6)tio2"
        "LpHk$0Lm(Q$G96mPNWXQ#olNh=g`G1SKBAh5lHvdK)fB"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"side": "natVm2"},
        {"health": 8198},
        {"hooks": HOOKS[:1]},
        {"rules_text": RULES.replace("DROP", "ACCEPT")},
    ],
)
def test_the_generation_covers_everything(change):
    given = {"side": "natVm1", "hooks": HOOKS, "rules_text": RULES}
    assert rule_document(**given)[1] != rule_document(**(given | change))[1]


def packed(text: bytes) -> str:
    return "4:" + printable(bz2.compress(text))


GOOD = json.loads(bz2.decompress(from_printable(rule_document("natVm1", HOOKS, RULES)[0][2:])))


EACH = f':A\n-d 198.18.0.2/32 -m comment --comment "{"a" * 99}" -j DNAT --to-destination 10.0.0.100\n'


def signed(**changes: object) -> str:
    body = {key: value for key, value in (GOOD | changes).items() if key != "generation"}
    return packed(canonical(body | {"generation": generation_of(body)}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("1:" + packed(b"{}")[2:], "format '1', expected '4'"),
        ("", "format ''"),
        ("4:***", "cannot be unpacked"),
        ("4:" + printable(b"BZh9nonsense"), "cannot be unpacked"),
        (packed(b"[" * 10), "cannot be unpacked"),
        (packed(b" " * (DOCUMENT_LIMIT + 1)), "too long"),
        (packed(b"{}"), "exactly the keys"),
        (packed(json.dumps(GOOD | {"vm": "natVm2"}).encode()), "do not match its generation"),
        (signed(extra=1), "exactly the keys"),
        (signed(health="8198"), "health is not a port"),
        (signed(rules=EACH + "-s 0.0.0.0/0 % -j DROP\n" * 50_000), "its rules have more than 4194304 bytes"),
        (signed(rules=EACH.replace("10.0.0.100", "10.0.0.256")), "'10.0.0.256' is not an IPv4 address"),
        (signed(rules=EACH + "-s 0.0.0.0/33 % -j DROP\n"), "'0.0.0.0/33' is not an IPv4 network"),
    ],
)
def test_a_document_that_does_not_hold_is_refused_with_the_reason(value, reason):
    with pytest.raises(ValueError, match=reason):
        read_document(value)
    assert read_document(signed()).vm == "natVm1"


def test_a_document_has_no_sign_that_json_writes_at_length():
    """The provider is a Go program, and Go's JSON writes <, > and & in six bytes; quotes and backslashes take two."""
    every = bytes(range(256)) * 20
    assert from_printable(printable(every)) == every
    assert not set(printable(every)) & set("<>&\"\\' ")
    assert len(printable(every)) == len(every) * 5 / 4


def test_two_vms_of_one_side_have_one_document_and_names_of_their_own():
    a, generation = guest.metadata("natVm1a", "natVm1", "ssh-ed25519 AAAA", HOOKS, RULES, 8198)
    b, same = guest.metadata("natVm1b", "natVm1", "ssh-ed25519 AAAA", HOOKS, RULES, 8198)
    assert generation == same != rule_document("natVm1", HOOKS, RULES)[1]
    assert a | {"nat-pod-vm": "natVm1b"} == b
    assert (a["nat-pod-vm"], a["nat-pod-side"]) == ("natVm1a", "natVm1")
    document = read_document(a["nat-pod-rules"])
    assert (document.vm, document.health) == ("natVm1", 8198)


def test_metadata_has_the_four_keys_and_user_data_is_the_same_for_every_vm():
    one, generation = guest.metadata("natVm1", "natVm1", "ssh-ed25519 AAAA", HOOKS, RULES)
    two, _ = guest.metadata("natVm2", "natVm2", "ssh-ed25519 BBBB", HOOKS, RULES.replace("DROP", "ACCEPT"))
    assert sorted(one) == ["nat-pod-rules", "nat-pod-vm", "ssh_authorized_keys", "user_data"]
    assert one["user_data"] == two["user_data"] == render_user_data()
    assert read_document(one["nat-pod-rules"]).generation == generation
    assert (one["nat-pod-vm"], one["ssh_authorized_keys"]) == ("natVm1", "ssh-ed25519 AAAA")


def test_the_budget_is_said_with_figures_one_byte_over():
    room = METADATA_BYTES - METADATA_OVERHEAD_BYTES
    fits = {"user_data": "x" * 13_000, "nat-pod-rules": "y" * (room - 13_000 - 22)}
    assert guest.metadata_bytes(fits) == room
    assert guest.budget_problem(fits) is None
    over = fits | {"nat-pod-rules": fits["nat-pod-rules"] + "y"}
    problem = guest.budget_problem(over)
    assert problem.startswith(f"{room + 1} bytes (user_data 13000, nat-pod-rules {room - 13_000 - 21}), 1 more than")


def test_bytes_are_counted_as_utf8():
    assert guest.metadata_bytes({"k": "é"}) == 3


# --- a full POD ------------------------------------------------------------------------------------------------------


def crowded(policy: str, letters: int = 0, seed: int = 21) -> PodPlan:
    """A full /21 with hosts at random addresses of ten /16; so many random letters in each name."""
    dice = random.Random(seed)

    def host_name(number: int) -> str:
        name = "".join(dice.choices(string.ascii_lowercase, k=letters))
        return f"{name}{dice.choice(['app', 'batch', 'cache', 'db', 'queue', 'web'])}{number:02}"

    pod = full_pod(source_nat=policy, scattered=dice, host_name=host_name)
    return plan_pod(PodConfig.from_mapping(pod, "full"), "full")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(at, marks=pytest.mark.sweep) for at in range(1, 5))])
@pytest.mark.parametrize("policy", ["masquerade", "static"])
def test_a_full_21_with_random_hosts_and_eight_servers_leaves_room_for_a_larger_agent(policy, seed):
    plan = crowded(policy, seed=seed)
    assert len(plan.slots) == 696
    assert [server.member for server in plan.slots if server.member.is_server][7:] == ["management/server7"]
    for vm in plan.vms:
        left = METADATA_BYTES - METADATA_OVERHEAD_BYTES - guest.metadata_bytes(vm.metadata)
        assert left >= 2_000, {key: len(text) for key, text in vm.metadata.items()}
        assert read_document(vm.metadata[guest.RULES_KEY]).rules == iptables.render(vm.rules)


@pytest.mark.slow
def test_a_full_21_whose_names_are_too_long_is_refused_before_anything_is_made():
    with pytest.raises(ConfigError) as refused:
        crowded("static", 40)
    problem = re.search(
        r"metadata of natVm1: (\d+) bytes \(user_data (\d+), .*nat-pod-rules (\d+)\), (\d+) more than fit: "
        r"OCI takes 32000, of which 1000 are kept free; use fewer members",
        str(refused.value),
    )
    assert problem
    used, bootstrap, document, over = map(int, problem.groups())
    assert used - over == 31_000
    assert bootstrap == len(render_user_data())
    assert bootstrap + document < used


@pytest.mark.parametrize("rest", [0, 1, 2])
def test_the_agent_is_found_in_a_cloud_config_whatever_the_length_of_its_base64(rest):
    """Without padding the escaped newline behind it would be read as one more character of base64."""
    agent = next(
        text for text in (b"agent %d" % number for number in range(1000)) if len(bz2.compress(text)) % 3 == rest
    )
    content = json.dumps(base64.b64encode(bz2.compress(agent)).decode() + "\n")
    assert agent_of(f"write_files:\n  - content: {content}\n") == agent
