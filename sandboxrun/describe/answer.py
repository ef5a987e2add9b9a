"""A decision as an answer: in words, with the verdict of the operator's policy and the command that would change it. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from sandboxrun.config.permissions import Kind, Permissions, Verdict
from sandboxrun.config.worker import Asked, WorkerConfig
from sandboxrun.describe.decide import Decision, Ruling
from sandboxrun.describe.fields import mask
from sandboxrun.describe.question import Question
from sandboxrun.errors import PolicyError
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.records import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@record
class Answer:
    """A ruling by hash and policy, in words."""

    question: str
    verdict: Ruling
    text: str
    entry: str
    where: str
    policy: str  # why the policy refuses the entry that grants it, or one that would; empty if it does not
    fix: str  # a command, or empty

    @property
    def as_json(self) -> dict[str, Any]:
        names = ("question", "verdict", "text", "entry", "where", "policy", "fix")
        return {"allowed": self.verdict is Ruling.ALLOWED, **{name: getattr(self, name) for name in names}}


def answer(
    question: Question,
    decision: Decision,
    place: str,
    config: WorkerConfig,
    ceiling: Ceiling,
    fields: Mapping[str, str],
) -> Answer:
    """`place`: where the decision's entry stands, with the key of its hash. `fields`: the worker's, as text; its own win over
    those of its type."""
    by = f"{decision.entry} in {place}" if place else decision.entry
    why = f" ({decision.why})" if decision.why and by else decision.why
    kind = question.kind
    if decision.verdict is Ruling.ALLOWED:
        policy = refusal(ceiling, kind, decision.entry, place) if decision.where else ""
        verdict = Ruling.REFUSED if policy else Ruling.ALLOWED
        text = f"granted by {by}{why}, but refused: {policy}" if policy else f"allowed by {by}{why}" if by else why
        return Answer(str(question), verdict, text, decision.entry, place, policy, "")
    field = kind.field(Verdict.DENY if decision.verdict is Ruling.DENIED else Verdict.ALLOW)
    listed = [entry.strip() for entry in fields.get(field, "").split(",") if entry.strip()]
    if decision.verdict is Ruling.DENIED:
        left = [entry for entry in listed if str(kind.parse(entry)) != decision.entry]
        fix = _set(config, field, left) if decision.where == f"field {field} of {config.key}" else ""
        return Answer(str(question), Ruling.DENIED, f"denied by {by}{why}", decision.entry, place, "", fix)
    policy = refusal(ceiling, kind, str(question.target), f"{field} then")
    text = f"not granted: no entry of {kind.field()} covers it{why and f', and {decision.why}'}"
    text += f"; and the policy would refuse one: {policy}" if policy else ""
    return Answer(
        str(question), Ruling.MISSING, text, "", "", policy, _set(config, field, [*listed, str(question.target)])
    )


def _set(config: WorkerConfig, field: str, entries: list[str]) -> str:
    return shlex.join(["sandboxrun", "set", config.type, config.id, f"{field}={','.join(entries)}"])


def refusal(ceiling: Ceiling, kind: Kind, entry: str, where: str) -> str:
    """Why the policy refuses this entry, which stands `where`; empty if it does not."""
    try:
        target = kind.parse(entry)
    except ValueError:  # two entries that grant a half each
        return ""
    asked = Asked(Permissions({str(kind): (target,)}), lists=((Verdict.ALLOW, kind, entry, where),))
    try:
        replace(ceiling, worker=replace(ceiling.worker, asked=asked, sha256=None)).check({})
    except PolicyError as error:
        return mask(str(error))
    return ""
