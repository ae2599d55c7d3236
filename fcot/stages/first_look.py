"""A look at the first completions of a purchase: what is unusual is told, with the override that helps, before the rest is bought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fcot.curation.filters import Read, Rules, curate
from fcot.curation.outcomes import Outcomes, Remedies, advice
from fcot.progress import say
from fcot.records import Completion
from fcot.runs import Run
from fcot.teacher.purchase import first_problems

_CHAT_PROMPT = "reasoning_chat"
_FORMER_PROMPT = "zero_shot_cot_chat"
_LOOK = "preview=3 shows what the teacher wrote"


@dataclass
class FirstLook:
    """Judges each problem's completions when they are whole, for the progress line, and tells once what is unusual.

    Attributes:
        run: Whose.
        read: The prompt's parser.
        rules: What is kept.
        remedies: What helps against faults.
        diversity: Completions a problem.
    """

    run: Run
    read: Read
    rules: Rules
    remedies: Remedies
    diversity: int
    seen: Outcomes = field(default_factory=Outcomes)
    problems: int = 0
    told: bool = False

    def __call__(self, drawn: Sequence[Completion]) -> int:
        """How many of a problem's completions will be kept."""
        rows = list(curate(drawn, self.run.problems, self.run.task.rule, self.read, self.rules))
        for completion, row in zip(drawn, rows, strict=True):
            self.seen.count(completion, row)
        self.problems += 1
        if self.problems >= first_problems(self.diversity):
            self.tell()
        return sum(row.kept for row in rows)

    def tell(self) -> None:
        """Say what is unusual, unless that was said."""
        if not self.told and (found := advice(self.seen, self.remedies)):
            say("\n".join([f"warning: the first {self.seen}", *(f"  {one}" for one in found)]))
        self.told = True


def stored_under_the_former_prompt(run: Run) -> list[str]:
    """A sentence where a run has bought nothing yet, and rationales of its task and teacher stand under the default prompt of before."""
    here, former = run.store.path, run.store.path.with_name(_FORMER_PROMPT)
    if run.prompt.name != _CHAT_PROMPT or here.exists() or not former.exists():
        return []
    use = f"prompt={_FORMER_PROMPT} uses them"
    return [f"rationales of this task and teacher are stored under prompt={_FORMER_PROMPT}, the default of earlier versions: {use}"]


def remedies_of(run: Run) -> Remedies:
    """What helps a run's own prompt."""
    prompt = run.config.prompt
    if not run.trains:
        cut = ""
    elif "truncated" in run.rules.filters:
        cut = " and are not trained on (curation=answer keeps them)"
    else:
        cut = " and are trained on as they are where the answer is right (curation=complete refuses them)"
    if run.replayed is not None:
        return Remedies(
            f"were cut by the token limit{cut}", f"are an answer without a rationale: {_LOOK}", f"have no readable answer: {_LOOK}"
        )
    limit = "prompt.rationale_tokens"
    longer = f"{limit}={2 * prompt.rationale_tokens} asks for them again, with more room"
    others = {
        "empty": f"prompt={_CHAT_PROMPT} makes a chat model reason before it answers",
        "unanswered": f"prompt={_CHAT_PROMPT} asks a chat model for a closing sentence with the answer",
    }
    if prompt.name == _CHAT_PROMPT:
        others = dict.fromkeys(others, "prompt=custom prompt.path=FILE asks in words of your own")
    return Remedies(
        f"were cut at {limit}={prompt.rationale_tokens}{cut}; {longer}",
        f"are an answer without a rationale: {others['empty']}; {_LOOK}",
        f"have no readable answer: {others['unanswered']}; {_LOOK}",
    )


def remedies_of_feedback(run: Run) -> Remedies:
    """What helps the request for feedback of tailored learning."""
    limit, tokens = "method.feedback.max_tokens", run.config.method.feedback.max_tokens
    own_words = "method.feedback.path=FILE asks in words of your own"
    return Remedies(
        f"were cut at {limit}={tokens}; {limit}={2 * tokens} asks for them again, with more room",
        f"are an answer without a rationale: {own_words}",
        f"have no readable answer: {own_words}",
    )
