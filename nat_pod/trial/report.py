"""What a trial has found: as text, as a page, as JSON; and without what is nobody else's business."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netaddr import IPAddress, IPNetwork

from nat_pod.limits import POD_SPACE
from nat_pod.text import markdown_table, table
from nat_pod.trial.assumptions import Row, Verdict
from nat_pod.trial.flow_table import flow_tables
from nat_pod.trial.outcome import Outcome

SEND_IN = (
    "Please send this file in as an issue of nat-pod: what one tenancy shows, others need not find out again. "
    "`--mask` writes it without OCIDs and without addresses that are not the POD's."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialReport:
    """One trial.

    where: the region.  rehearsed: it was the simulated one.  about: shape, image, versions.  seconds: how long it took.
    """

    stack: str
    where: str
    rehearsed: bool
    about: Mapping[str, str]
    flows: Sequence[Outcome]
    rows: Sequence[Row]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every flow is as declared, in both lists, and nothing that was assumed is known not to hold."""
        kinds = {outcome.asked.flow.receiver is not None for outcome in self.flows}
        problems = any(outcome.tried.problems for outcome in self.flows)
        return kinds == {True, False} and not problems and not any(row.verdict is Verdict.FAILS for row in self.rows)

    @property
    def summary(self) -> str:
        """One sentence."""
        wrong = sum(1 for outcome in self.flows if outcome.tried.problems)
        said = f"{len(self.flows)} probes: " + (f"{wrong} NOT as declared" if wrong else "all as declared")
        if not self.flows:
            said = "no probe was sent"
        counted = {verdict: sum(row.verdict is verdict for row in self.rows) for verdict in Verdict}
        return f"{said}; assumptions: " + ", ".join(f"{number} {verdict}" for verdict, number in counted.items())


def report_text(report: TrialReport) -> str:
    """For a terminal."""
    lines = [*flow_tables([outcome.tried for outcome in report.flows]), "Assumptions"]
    lines.append(
        table(["assumption", "verdict", "seen"], [[r.assumption.what, r.verdict, r.seen] for r in report.rows])
    )
    fails = [row for row in report.rows if row.verdict is Verdict.FAILS]
    lines += ["", *(f"{row.assumption}: does not hold, so {row.assumption.otherwise}" for row in fails)]
    lines += [*([""] if fails else []), report.summary]
    return "\n".join(lines)


def report_page(report: TrialReport) -> str:
    """A page in Markdown, to keep."""
    place = (
        f"the simulated region {report.where}: a rehearsal, which shows nothing of OCI"
        if report.rehearsed
        else report.where
    )
    flows = [
        [
            one.asked.flow.why or "declared",
            one.asked.flow.sender,
            one.asked.flow.source,
            one.asked.flow.destination,
            one.asked.protocol,
            one.tried.seen or "",
            "; ".join(one.tried.problems) or ("arrived" if one.asked.flow.receiver is not None else "refused"),
        ]
        for one in report.flows
    ]
    return "\n".join(
        [
            f"# Trial of {report.stack} in {place}",
            "",
            report.summary,
            "",
            *(f"- {key}: {value}" for key, value in report.about.items()),
            f"- took {report.seconds:.0f} s",
            "",
            "## Assumptions",
            "",
            markdown_table(
                ["assumption", "verdict", "seen", "if it does not hold"],
                [[r.assumption.what, str(r.verdict), r.seen, r.assumption.otherwise] for r in report.rows],
            ),
            "",
            "## Flows",
            "",
            markdown_table(["what", "from", "source", "to", "protocol", "the far end saw", "result"], flows),
            "",
            SEND_IN,
            "",
        ]
    )


def report_dict(report: TrialReport) -> dict[str, Any]:
    """The form of `trial-STACK.json`."""
    return {
        "format": 1,
        "stack": report.stack,
        "where": report.where,
        "rehearsed": report.rehearsed,
        "passed": report.passed,
        "seconds": round(report.seconds),
        "about": dict(report.about),
        "assumptions": [
            {"name": row.assumption, "what": row.assumption.what, "verdict": row.verdict, "seen": row.seen}
            for row in report.rows
        ],
        "flows": [
            {
                "what": one.asked.flow.why or "declared",
                "from": one.asked.flow.sender,
                "source": one.asked.flow.source,
                "to": one.asked.flow.destination,
                "receiver": one.asked.flow.receiver,
                "protocol": one.asked.protocol,
                "heardBy": [{"machine": machine, "source": source} for machine, source in one.heard_by],
                "seen": one.tried.seen,
                "predicted": one.tried.dies_of,
                "problems": list(one.tried.problems),
            }
            for one in report.flows
        ],
        "next": SEND_IN,
    }


class Mask:
    """Words for OCIDs and for addresses that are not a POD's: the same word for the same thing."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def text(self, text: str) -> str:
        """The text with such words."""
        text = re.sub(
            r"ocid1\.([a-z0-9]+)\.[A-Za-z0-9._-]+", lambda found: self._word(found[0], f"ocid-{found[1]}"), text
        )
        return re.sub(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", self._address, text)

    def value(self, value: Any) -> Any:  # noqa: ANN401 - JSON
        """A JSON value with such words."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.value(member) for key, member in value.items()}
        return [self.value(member) for member in value] if isinstance(value, list) else value

    def _address(self, found: re.Match[str]) -> str:
        text = found[0]
        if any(int(part) > 255 for part in text.split(".")) or IPAddress(text) in IPNetwork(POD_SPACE):
            return text
        return self._word(text, "address")

    def _word(self, text: str, kind: str) -> str:
        return self._known.setdefault(
            text, f"{kind}-{sum(word.startswith(f'{kind}-') for word in self._known.values()) + 1}"
        )
