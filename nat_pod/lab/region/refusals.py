"""How the region refuses: OCI's status and code, its text, and the document that has the rule."""

from __future__ import annotations

from netaddr import AddrFormatError, IPNetwork


class OciError(Exception):
    """A refusal of the region: HTTP status, OCI's error code, its text, and the document that has the rule."""

    def __init__(self, status: int, code: str, message: str, source: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.source = source
        super().__init__(f"{status}-{code}, {message}" + f" [{source}]")


def network(text: str, what: str) -> IPNetwork:
    """A CIDR as OCI takes it: with a prefix length and without host bits; 400 otherwise.

    What the API does with host bits is not documented.  Refusing them is the safe choice: a program that passes here
    also passes there.
    """
    try:
        parsed = IPNetwork(text)
    except (AddrFormatError, ValueError):
        parsed = None
    if parsed is None or "/" not in text or parsed.version != 4 or str(parsed) != text:
        raise OciError(400, "InvalidParameter", f"{what} {text!r} is not a CIDR block", "OCI docs, VCNs and Subnets")
    if parsed.ip != parsed.network:
        raise OciError(
            400, "InvalidParameter", f"{what} {text} has host bits set, it is {parsed.cidr}", "strict on purpose"
        )
    return parsed


def conflict(message: str, source: str) -> OciError:
    """409 for an object that something else needs."""
    return OciError(409, "Conflict", message, source)


def invalid(message: str, source: str) -> OciError:
    """400 for a request that contradicts the state of the region."""
    return OciError(400, "InvalidParameter", message, source)


def over_limit(message: str, source: str) -> OciError:
    """400 for one thing too many."""
    return OciError(400, "LimitExceeded", message, source)


def not_simulated(message: str) -> OciError:
    """501 for what OCI has and this region does not."""
    return OciError(501, "NotImplemented", message, "nat_pod/lab/region")
