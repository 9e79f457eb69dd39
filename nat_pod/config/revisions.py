"""Files as they were at a git revision, and the revision that a branch started from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from nat_pod.errors import NatPodError

BASE_BRANCHES = ("origin/HEAD", "main", "master")
"""The branch that records who has which address; the first of these that exists."""


def base_of(directory: Path) -> tuple[str, str]:
    """The commit at which the branch in `directory` left the default one, and that branch's name.

    On the default branch itself that is its last commit.  Raises NatPodError where there is no such branch.
    """
    for branch in BASE_BRANCHES:
        commit = _git(directory, "merge-base", "HEAD", branch)
        if commit is not None:
            short = _git(directory, "rev-parse", "--short", commit.strip()) or commit
            name = _git(directory, "rev-parse", "--abbrev-ref", branch) or branch
            return short.strip(), name.strip()
    if _git(directory, "rev-parse", "--git-dir") is None:
        raise NatPodError(f"{directory} is not a git checkout, so there is nothing to compare with")
    raise NatPodError(
        f"--base: this checkout has no commit in common with {', '.join(BASE_BRANCHES[:-1])} or {BASE_BRANCHES[-1]}; "
        "name a revision, e.g. --base HEAD~1; in a shallow clone, run: git fetch --unshallow"
    )


def file_at(directory: Path, name: str, revision: str) -> str | None:
    """The text of `directory/name` at a git revision; None when there was no such file."""
    commit = _git(directory, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit is None:
        if _git(directory, "rev-parse", "--git-dir") is None:
            raise NatPodError(f"{directory} is not a git checkout, so there is no {revision} to compare with")
        raise NatPodError(
            f"--base: {revision}: is not a revision of this checkout, e.g. main, HEAD~1 or v1.0; "
            "in a shallow clone, run: git fetch --unshallow"
        )
    return _git(directory, "show", f"{commit.strip()}:./{name}")


def _git(directory: Path, *arguments: str) -> str | None:
    """What git prints, None when it fails.  It only reads; this is the one program nat_pod starts outside the lab."""
    # Variables that a hook or an alias exports would lead git to another repository than that of `directory`.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(["git", *arguments], cwd=directory, env=environment, capture_output=True, check=False)
    except FileNotFoundError:
        raise NatPodError("git is not installed; `diff` reads the earlier stack file with it") from None
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None
