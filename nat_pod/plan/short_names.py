"""A program with short names for what is local to its functions, and otherwise the same.

A NAT VM's metadata holds the agent and the rules, and names are a twelfth of the packed agent.  What others may see
(functions, arguments that are given by name, attributes) keeps its name, so a traceback still says where it happened.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Iterator
from itertools import product
from string import ascii_lowercase


def with_short_names(source: str) -> str:
    """The source, ASCII, with one or two letters for each parameter and variable of a function; its lines stay.

    What is nested in a function is part of it.  Its names come in the order in which they are first bound, so that
    functions begin alike and pack well.
    """
    tree = ast.parse(source)
    kept = {*dir(builtins), *_seen_by_others(tree)}
    places = [place for function in _functions(tree) for place in _renamed(function, source.splitlines(), kept)]
    lines = source.splitlines(keepends=True)
    for row, column, name, short in sorted(places, reverse=True):
        line = lines[row - 1]
        lines[row - 1] = line[:column] + short + line[column + len(name) :]
    return "".join(lines)


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions of the module and methods of its classes."""
    for node in tree.body:
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef):
                yield inner


def _seen_by_others(tree: ast.Module) -> Iterator[str]:
    """Names of the module itself, of modules, of functions, and those by which arguments are given."""
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    local = {id(node) for function in _functions(tree) for node in ast.walk(function)}
    for node in ast.walk(tree):
        match node:
            case ast.Name() if id(node) not in local:
                yield node.id
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name
            case ast.alias():
                yield (node.asname or node.name).partition(".")[0]
            case ast.Call(func=ast.Name(id=called)) if called in own:
                yield from (given.arg for given in node.keywords if given.arg is not None)
            case ast.Global() | ast.Nonlocal():
                yield from node.names


def _renamed(function: ast.FunctionDef, lines: list[str], kept: set[str]) -> Iterator[tuple[int, int, str, str]]:
    """(row, column, name, short name) of each place where a name of the function stands."""
    found: list[tuple[int, int, str]] = []
    bound: list[tuple[int, int, str]] = []
    for node in ast.walk(function):
        match node:
            case ast.Name():
                found.append((node.lineno, node.col_offset, node.id))
                if not isinstance(node.ctx, ast.Load):
                    bound.append(found[-1])
            case ast.arg():
                found.append((node.lineno, node.col_offset, node.arg))
                bound.append(found[-1])
            case ast.ExceptHandler(name=str() as name):
                as_name = re.search(rf" as ({name}):", lines[node.lineno - 1])
                if as_name is None:
                    raise ValueError(f"line {node.lineno}: `as {name}:` must stand where `except` does")
                found.append((node.lineno, as_name.start(1), name))
                bound.append(found[-1])
    names = dict.fromkeys(name for _, _, name in sorted(bound) if name not in kept)
    taken = kept | {name for _, _, name in found if name not in names}
    letters = ("".join(signs) for length in (1, 2) for signs in product(ascii_lowercase, repeat=length))
    free = (one for one in letters if one not in taken and not keyword.iskeyword(one))
    short = dict(zip(names, free, strict=False))
    for row, column, name in found:
        if name in short:
            yield row, column, name, short[name]
