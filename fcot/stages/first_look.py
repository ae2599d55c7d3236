"""Checks the first completions of a purchase: before the rest is bought, it warns of unusual shares and names the override that helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.records import Completion
from fcot.curation.filters import Read, Rules, curate
from fcot.curation.outcomes import Outcomes, Remedies, advice
from fcot.llm.meter import first_problems
from fcot.runs.run import Run
from fcot.runs.splitting import former_split_note

_CHAT_PROMPT = "reasoning_chat"
_FORMER_PROMPT = "zero_shot_cot_chat"
_MANY_REPEATS = 0.5  # report repeated completions from this share on
_PREVIEW = "preview=3 shows what the teacher wrote"


@dataclass
class FirstLook:
    """Curates each problem's completions as they are bought, and reports once on the first ones if their shares are unusual.

    Attributes:
        run: The run that buys the completions; its problems hold the gold answers.
        read: The parser of the prompt that elicits the completions.
        rules: The curation rules, for the kept rate of the progress line.
        remedies: The advice for each fault.
        diversity: Completions per problem.
        outcomes: Counts of the completions checked so far.
        repeats: Number of completions that repeat an earlier one of their problem.
        problems: Number of problems checked so far.
        reported: Whether the report was made; there is one per purchase.
    """

    run: Run
    read: Read
    rules: Rules
    remedies: Remedies
    diversity: int
    outcomes: Outcomes = field(default_factory=Outcomes)
    repeats: int = 0
    problems: int = 0
    reported: bool = False

    def __call__(self, completions: Sequence[Completion]) -> int:
        """Count a problem's completions; returns how many of them curation keeps."""
        rows = list(curate(completions, self.run.problems, self.run.task.rule, self.read, self.rules))
        for completion, row in zip(completions, rows, strict=True):
            problem = self.run.problems[row.sample_index]
            self.outcomes.count(completion, row, problem.answer if problem.labelled else None)
        texts = [(completion.thought, completion.rationale, completion.answer_text) for completion in completions]
        given = [parts for parts in texts if any(parts)]
        self.repeats += len(given) - len(set(given))
        self.problems += 1
        if self.problems >= first_problems(self.diversity):
            self._stop_without_replies()
            self.report()
        return sum(row.kept for row in rows)

    def report(self) -> None:
        """Report unusual shares, unless this purchase was reported on already."""
        if not self.reported and (sentences := [*advice(self.outcomes, self.remedies), *self._on_repeats()]):
            say("\n".join([f"warning: the first {self.outcomes}", *(f"  {sentence}" for sentence in sentences)]))
        self.reported = True

    def _stop_without_replies(self) -> None:
        """End the purchase if none of the first completions has a reply: the rest would be wasted. A batch is bought as a whole.

        Raises:
            FcotError: No completion has a reply.
        """
        n, in_batches = self.outcomes.total, getattr(self.run.config.teacher, "batch", False)
        if not (self.reported or in_batches) and self.outcomes.faults["no_reply"] == n:
            raise FcotError(f"stopped before the rest was bought: the first {n:,} completions all {self.remedies.no_reply}")

    def _on_repeats(self) -> list[str]:
        """A sentence of advice if most completions after a problem's first one repeat an earlier one."""
        further = self.outcomes.total - self.problems
        if self.repeats < max(2, _MANY_REPEATS * further):
            return []
        option = "student.self_consistency" if self.run.is_teacher else "diversity"
        return [
            f"{self.repeats:,} of {further:,} completions repeat another one of their problem word for word, at full price: the server "
            f"may not sample (transformers serve does only if the model's generation_config.json says do_sample): {option}=1 buys one"
        ]


def former_notes(run: Run) -> list[str]:
    """Notes about completions of earlier runs that this run does not use because a default has changed."""
    return [*former_prompt_notes(run), *former_split_note(run)]


def former_prompt_notes(run: Run) -> list[str]:
    """A note for a run with the default prompt that has no completions stored, while the former default prompt has some.

    Returns:
        A list with one sentence, or an empty list.
    """
    here, former = run.store.path, run.store.path.with_name(_FORMER_PROMPT)
    if run.prompt.name != _CHAT_PROMPT or here.exists() or not former.exists():
        return []
    use = f"prompt={_FORMER_PROMPT} uses them"
    return [f"rationales of this task and teacher are stored under prompt={_FORMER_PROMPT}, the default of earlier versions: {use}"]


def remedies_of(run: Run) -> Remedies:
    """The advice for the run's own prompt."""
    prompt = run.config.prompt
    if not run.trains:
        cut = ""
    elif "truncated" in run.rules.filters:
        cut = " and are not trained on (curation=answer keeps them)"
    else:
        cut = " and are trained on as they are where the answer is right (curation=complete rejects them)"
    if run.replayed is not None:
        return Remedies(
            f"were cut by the token limit{cut}", f"are an answer without a rationale: {_PREVIEW}", f"have no readable answer: {_PREVIEW}"
        )
    limit = "prompt.rationale_tokens"
    longer = f"{limit}={2 * prompt.rationale_tokens} buys them again, with more room"
    prompts = {
        "empty": f"prompt={_CHAT_PROMPT} makes a chat model reason before it answers",
        "unanswered": f"prompt={_CHAT_PROMPT} makes a chat model end with a sentence that states the answer",
    }
    if prompt.name == _CHAT_PROMPT:
        prompts = dict.fromkeys(prompts, "prompt=custom prompt.path=FILE uses your own prompt")
    return Remedies(
        f"were cut at {limit}={prompt.rationale_tokens}{cut}; {longer}",
        f"are an answer without a rationale: {prompts['empty']}; {_PREVIEW}",
        f"have no readable answer: {prompts['unanswered']}; {_PREVIEW}",
    )


def remedies_of_feedback(run: Run) -> Remedies:
    """The advice for the feedback requests of tailored learning."""
    limit, tokens = "method.feedback.max_tokens", run.config.method.feedback.max_tokens
    own_template = "method.feedback.path=FILE uses your own template"
    return Remedies(
        f"were cut at {limit}={tokens}; {limit}={2 * tokens} buys them again, with more room",
        f"are an answer without a rationale: {own_template}",
        f"have no readable answer: {own_template}",
        wrong=None,  # the answer of a critique is a step
    )
