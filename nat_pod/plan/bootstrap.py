"""The bootstrap of a NAT VM, its `user_data`: made of the sources in `cloud-init/`, and committed.

user_data must be gzip, the only packing that cloud-init undoes.  Packed again on another machine its bytes would
differ, and that would replace every NAT VM.  So it is a committed file.  The agent in it is bzip2, which runcmd undoes:
700 bytes shorter.  It stands last, in a gzip member of its own, because a Huffman code made for the text before it
does not suit base64: that saves 300 bytes.  Names local to the agent's functions are shortened: 1,400 bytes less.

`python -m nat_pod.plan.bootstrap` rebuilds the committed file from `cloud-init/`.
"""

from __future__ import annotations

import ast
import base64
import bz2
import gzip
import hashlib
import io
import json
import re
import string
import sys
import tokenize
import zlib
from functools import cache

from nat_pod.files import TOP_LEVEL
from nat_pod.plan.short_names import with_short_names

_PACKED_AGENT = base64.b64encode(b"BZh9").decode()[:4]
"""How the agent's content begins in the cloud-config."""

SOURCES = TOP_LEVEL / "cloud-init"
ARTEFACT = SOURCES / "user-data.b64"

# Placeholder in cloud-config.yaml: file in cloud-init/.
_FILES = {
    "agent": "nat_pod_agent.py",
    "agent_service": "nat-pod-agent.service",
    "agent_timer": "nat-pod-agent.timer",
    "restore_service": "nat-pod-restore.service",
    "health_service": "nat-pod-health.service",
    "sysctl": "90-nat-pod.conf",
    "forwarding": "forwarding.conf",
    "networkmanager": "90-nat-pod-networkmanager.conf",
}


def render_user_data() -> str:
    """The bootstrap as it is deployed: base64 of gzip of the cloud-config, as committed."""
    return ARTEFACT.read_text(encoding="ascii").strip()


@cache
def agent_id() -> str:
    """What the agent of the bootstrap calls itself in its report: a hash of its program, as runcmd writes that.

    Not a version: each release would then replace all NAT VMs, though nothing but the number had changed.
    """
    agent = agent_of(unpack_user_data(render_user_data()))
    return hashlib.sha256(agent + b"\n").hexdigest()[:12]


def agent_of(config: str) -> bytes:
    """The agent's program in a cloud-config, unpacked."""
    # The content is a JSON string that ends with the two characters of an escaped newline: base64 read from the text as
    # it is would take the `n` for its own, and fail where no padding stands before it.
    content, _ = json.JSONDecoder().raw_decode(config, config.rindex('"' + _PACKED_AGENT))
    return bz2.decompress(base64.b64decode(content, validate=False))


def render_cloud_config() -> str:
    """The cloud-config as the sources in `cloud-init/` give it, before packing."""
    values = {name: (SOURCES / file).read_text(encoding="utf-8") for name, file in _FILES.items()}
    agent = without_blanks(without_comments(without_docstrings(with_short_names(values["agent"]))))
    values["agent"] = base64.b64encode(bz2.compress(agent.encode())).decode()
    # A JSON string is a YAML string, whatever is in it.
    quoted = {name: json.dumps(without_comments(value)) for name, value in values.items()}
    template = (SOURCES / "cloud-config.yaml").read_text(encoding="utf-8")
    return without_comments(string.Template(template).substitute(quoted))


def without_comments(text: str) -> str:
    """A file without comment lines and blank lines; `#!` and `#cloud-config` are not comments.

    Comments are a third of the sources' bytes, and the rules need that room.  Besides, a better comment would otherwise
    change user_data and so replace every NAT VM at the next `pulumi up`.
    """
    kept = [
        line
        for line in text.splitlines()
        if line.startswith(("#!", "#cloud-config")) or (line.strip() and not line.lstrip().startswith("#"))
    ]
    return "".join(line + "\n" for line in kept)


def without_docstrings(source: str) -> str:
    """A Python source without docstrings and comments, for the same reasons.

    It is indented by one blank per level, and what stands in brackets is on one line.
    """
    lines = source.splitlines()
    drop: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            docstring = node.body[0]
            rows = range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1)
            drop.update(rows)
            if len(node.body) == 1:  # a body must not become empty
                lines[rows[0] - 1] = " " * docstring.col_offset + "pass"
                drop.remove(rows[0])
    goes_on: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.line.startswith("#!"):
            continue
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column].rstrip()
        if token.type == tokenize.NL and lines[row - 1].strip():  # between brackets, where it means nothing
            goes_on.add(row)
    text = ""
    for row, line in enumerate(lines, 1):
        if row in drop or not line:
            continue
        words = line.lstrip()
        if not text or text.endswith("\n"):
            text += " " * ((len(line) - len(words)) // 4) + words
        elif words[0] in ")]}":
            text = text.removesuffix(",") + words
        else:
            text += words if text[-1] in "([{" else f" {words}"
        text += "" if row in goes_on else "\n"
    return text


def without_blanks(source: str) -> str:
    """A Python source without the blanks between words of a line that mean nothing: `a = b if c else "d"` as
    `a=b if c else"d"`.  There are no comments in it, and no statement has several lines."""
    text, lines = "", source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (row, column), words = token.start, token.string
        if token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER) or not words:
            continue
        if not text or text.endswith("\n"):
            text += lines[row - 1][:column] + words
        else:
            text += f" {words}" if re.match(r"\w\w", text[-1] + words[0]) else words
    return text


def unpack_user_data(value: str) -> str:
    """The cloud-config in a `user_data` value."""
    return gzip.decompress(base64.b64decode(value, validate=True)).decode()


def build() -> bool:
    """Write the committed file if its unpacked contents differ from the sources.  Returns whether it was written."""
    config = render_cloud_config()
    if ARTEFACT.exists() and unpack_user_data(render_user_data()) == config:
        return False
    text, quote, agent = config.rpartition('"' + _PACKED_AGENT)
    packed = _member((text + quote).encode(), zlib.Z_DEFAULT_STRATEGY) + _member(agent.encode(), zlib.Z_HUFFMAN_ONLY)
    ARTEFACT.write_text(base64.b64encode(packed).decode() + "\n", encoding="ascii")
    return True


def _member(data: bytes, strategy: int) -> bytes:
    """A gzip member, without a name or a time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS, 9, strategy)
    return packer.compress(data) + packer.flush()


def main() -> int:
    """Rebuild `cloud-init/user-data.b64`."""
    written = build()
    print(f"{ARTEFACT}: {'written' if written else 'up to date'}, {len(render_user_data())} bytes")
    if written:
        print("NAT VMs deployed with the former user_data will be replaced by the next `pulumi up`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
