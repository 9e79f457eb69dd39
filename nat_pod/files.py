"""Where the project's files are that are no modules of this package: a checkout's top level, or a copy in the wheel.

`pyproject.toml` (package-dir) puts into a wheel what stands at the top level of the repository: the Pulumi project with
its examples, the guest's sources and its bootstrap, the neighbours' program and the component for other programs.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_IN_A_WHEEL = _PACKAGE / "project"

INSTALLED = _IN_A_WHEEL.is_dir()
"""Whether this is nat-pod from a wheel, and no checkout."""

TOP_LEVEL = _IN_A_WHEEL if INSTALLED else _PACKAGE.parent
"""The folder with Pulumi.yaml, __main__.py, cloud-init/, neighbours/ and package/."""
