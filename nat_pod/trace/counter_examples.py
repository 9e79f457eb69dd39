"""What `trace --all` can find: the kinds of counter-examples, and one as a value."""

from __future__ import annotations

from dataclasses import dataclass

NOT_DELIVERED = "declared, and not delivered"
NOT_DECLARED = "delivered, and not declared"
CUSTOMER_TO_CUSTOMER = "one customer reaches another"
NOT_BIJECTIVE = "two members share one address"
WRONG_MEMBER = "an address leads to the wrong member"
NO_WAY_BACK = "the address seen does not lead back"
NO_GUARD = "a NAT VM passes on a packet that no rule translated"
ERROR_LOST = "an ICMP error about a declared flow does not arrive"
FOREIGN_ERROR = "an ICMP error about somebody else's flow passes"
BELIEVED_ERROR = "a NAT VM believes a stranger's ICMP error"
OPEN_PORT = "a NAT VM answers somebody it should not"
NO_WAY_IN = "the way in to a NAT VM is closed"
HIDDEN_RULE = "a rule that an earlier one shadows"
DEAD_RULE = "a rule that no declared flow uses"
KINDS = (
    NOT_DELIVERED,
    NOT_DECLARED,
    CUSTOMER_TO_CUSTOMER,
    WRONG_MEMBER,
    NOT_BIJECTIVE,
    NO_WAY_BACK,
    NO_GUARD,
    ERROR_LOST,
    FOREIGN_ERROR,
    BELIEVED_ERROR,
    OPEN_PORT,
    NO_WAY_IN,
    HIDDEN_RULE,
    DEAD_RULE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CounterExample:
    """Something that is not as declared.  `kind` is one of KINDS.

    Of a packet: `sender` sends `source` > `destination`, and `alike` more packets meet the same fate.  Of a rule:
    `sender` is the NAT VM, and source and destination are empty.  `why` is a sentence, or the rule.
    """

    kind: str
    sender: str
    source: str
    destination: str
    why: str
    alike: int = 0
