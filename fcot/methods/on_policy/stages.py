"""The stages that only on-policy distillation has: the training on rationales before it, and the training on the student's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fcot.base.console import say
from fcot.base.files import read_json
from fcot.base.records import TrainingSample
from fcot.decoding.engine import DecodingPrompt, Sampling
from fcot.evaluation import scoring
from fcot.llm.distributions import TopTokens
from fcot.methods.on_policy.config import OnPolicyConfig
from fcot.objectives.config import CompletionConfig
from fcot.prompts.student import StudentFormat
from fcot.runs.run import Run
from fcot.stages.answering import decode_prompts
from fcot.stages.scoring import score_rationales, scoring_usage
from fcot.stages.table import Context, Summary
from fcot.stages.training import TrainingJob, train_job, training_samples
from fcot.student.batching import StepSampler
from fcot.student.checkpoints import gathered
from fcot.student.config import TrainerConfig
from fcot.student.data import TrainingData
from fcot.student.decoding import Decoded
from fcot.student.interface import FILE, read_interface
from fcot.student.own import OwnSamples, RenewedRows, Schedule, Writing


def fine_tune(context: Context) -> Summary:
    """Train the student on rationales: Fine-tune-CoT, whose student is the start of the training after it."""
    run = context.run
    return train_job(context, TrainingJob(run.directory.fine_tuned, training_samples(run), objective=CompletionConfig(), title="fine-tune"))


def train(context: Context) -> Summary:
    """Train the student on its own samples, and on rationales as far as ``method.own_share`` leaves room for them."""
    run, method = context.run, context.run.config.method
    continues = method.start == "fine_tune_cot"
    recipe = recipe_of(run)
    if context.world.rank == 0 and method.warmup_steps is None and recipe.warmup_steps >= method.steps:
        say(f"note: method.warmup_steps={method.steps // 10} sets the warm-up of the training on own samples alone")
    job = TrainingJob(
        run.directory, _samples(run), start=run.directory.fine_tuned.student if continues else None,
        form=None if continues else _own_format(run), recipe=recipe, own=partial(_own_samples, context), title="train on own samples",
    )  # fmt: skip
    summary = train_job(context, job)
    if continues and context.world.rank == 0:
        before = read_json(run.directory.stage("fine_tune"))
        summary |= {"n_reasoning_samples": before["n_reasoning_samples"], "n_steps": before["n_steps"] + summary["n_steps"]}
    if _by_server(run) and context.world.rank == 0:
        summary["scoring_usage"] = scoring_usage(run)
    return summary


def recipe_of(run: Run) -> TrainerConfig:
    """The options of the training on own samples: the run's, with the number of steps, learning rate and warm-up of the method."""
    method, trainer = run.config.method, run.config.trainer
    warmup = trainer.warmup_steps if method.warmup_steps is None else method.warmup_steps
    return replace(trainer, epochs=None, max_steps=method.steps, lr=method.lr or trainer.lr, warmup_steps=warmup)  # type: ignore[no-any-return]


def _by_server(run: Run) -> bool:
    """Whether a server scores what the student writes."""
    return bool(getattr(run.config.objective, "needs_teacher", False))


def _samples(run: Run) -> Sequence[TrainingSample]:
    """The samples for whose problems the student writes: the rationales, or all train problems if no rationale is used."""
    if not run.config.method.own_only:
        return training_samples(run)
    return [TrainingSample(problem.sample_index, problem.question, problem.answer) for problem in run.select(run.split.train)]


def _own_format(run: Run) -> StudentFormat | None:
    """The format of a student that fcot trained; None of another one."""
    path = run.config.student.path
    return read_interface(Path(path)).format if path and (Path(path) / FILE).exists() else None


def _own_samples(context: Context, data: TrainingData, rows: RenewedRows, sampler: StepSampler) -> OwnSamples:
    """How the student of a training writes samples."""
    run, student = context.run, data.student
    method: OnPolicyConfig = run.config.method
    last_share = method.own_share if method.last_own_share is None else method.last_own_share

    def write(prompts: Sequence[DecodingPrompt]) -> list[Decoded]:
        with gathered(student.model):
            return decode_prompts(run, student, prompts, context.world, Sampling(method.temperature, method.top_k))

    def is_right(position: int, answer: Decoded) -> bool | None:
        problem = run.problems[data.samples[position].sample_index]
        if not problem.labelled:
            return None
        return scoring.score(problem, answer.text, answer.complete, answer.n_tokens, data.form, run.task.rule).correct

    def score(own: Sequence[tuple[int, Sequence[int]]]) -> list[TopTokens | None]:
        decode = partial(student.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        rationales = [(data.samples[position].sample_index, data.form.split(str(decode(list(ids))))[0]) for position, ids in own]
        return context.world.first(lambda: score_rationales(run, rationales))

    limit = method.max_new_tokens or run.config.student.max_new_tokens
    return OwnSamples(
        rows, sampler, Schedule(method.own_share, last_share, method.renew_every, method.steps, run.config.seed),
        Writing(limit, write, is_right, method.wrong == "used", student.tokenizer.eos_token_id, method.max_unfinished,
                score if _by_server(run) else None),
    )  # fmt: skip
