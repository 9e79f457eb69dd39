"""`new-project`: the Pulumi project that the stack files belong to, where nat-pod was installed and not checked out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import nat_pod
from nat_pod.commands.command import FINDINGS, OK, Subparsers, add_json, add_parser, print_json
from nat_pod.config import whole_file
from nat_pod.errors import NatPodError
from nat_pod.files import TOP_LEVEL

_PROGRAM = ("Pulumi.yaml", "__main__.py")
_EXAMPLES = ("Pulumi.dev.yaml", "Pulumi.routed.yaml", "Pulumi.ten.yaml")
_COMPONENT = ("package/PulumiPlugin.yaml", "package/__main__.py")
_REQUIREMENTS = f"""\
# For `pulumi install`.  If nat-pod is in no package index, write the path or URL of its wheel here instead.
nat-pod=={nat_pod.__version__}
"""


def add(commands: Subparsers) -> None:
    """The command's parser."""
    words = "write nat-pod's Pulumi project files into this directory, or, after an update, list those that differ"
    parser = add_parser(commands, "new-project", words, _run)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--examples", action="store_true", help="also write the example stack files: dev, routed, ten")
    what.add_argument(
        "--component",
        action="store_true",
        help="write the component package, for Pulumi programs of your own, instead of the project",
    )
    add_json(parser)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """Names of the project's files: those just written, those that were there already, and those that differ."""

    written: tuple[str, ...]
    there: tuple[str, ...]
    differ: tuple[str, ...]


def project_files(*, examples: bool = False, component: bool = False) -> dict[str, str]:
    """By name: the files of a directory in which nat-pod's commands and `pulumi` run, or of its component's."""
    names = _COMPONENT if component else (*_PROGRAM, *(_EXAMPLES if examples else ()))
    files = {Path(name).name: (TOP_LEVEL / name).read_text(encoding="utf-8") for name in names}
    return files | {"requirements.txt": _REQUIREMENTS}


def write(directory: Path, files: Mapping[str, str]) -> Written:
    """Write what is missing.  A file that is there stays as it is.

    Raises NatPodError for the checkout, whose own files these are, and when a file cannot be read or written.
    """
    if directory.resolve() == TOP_LEVEL:
        raise NatPodError(f"{directory} is nat-pod's own checkout, which has all of it (nothing was changed)")
    found: dict[str, list[str]] = {"written": [], "there": [], "differ": []}
    with whole_file.alone(directory):
        for name, text in files.items():
            path = directory / name
            if not (path.exists() or path.is_symlink()):
                whole_file.create(path, text)
                found["written"].append(name)
            else:
                found["there" if _has(path, text) else "differ"].append(name)
    return Written(**{key: tuple(names) for key, names in found.items()})


def _has(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError as error:
        raise NatPodError(f"{path.name}: cannot be read: {error.strerror}") from None


def _run(arguments: argparse.Namespace) -> int:
    found = write(Path.cwd(), project_files(examples=arguments.examples, component=arguments.component))
    if arguments.json:
        print_json(asdict(found))
        return FINDINGS if found.differ else OK
    for name in found.written:
        print(f"written  {name}")
    for name in found.there:
        print(f"there    {name}")
    for name in found.differ:
        whose = f"from the one in nat-pod {nat_pod.__version__}"
        print(f"differs  {name} {whose} and was left as it is; to get the new one, delete it and run this again")
    if arguments.component:
        print(f"then     pulumi package add {Path.cwd()}     # in the directory of the program that uses it")
    elif arguments.examples:
        print("then     python -m nat_pod lab demo dev")
    else:
        print("then     python -m nat_pod new-pod NAME")
    return FINDINGS if found.differ else OK
