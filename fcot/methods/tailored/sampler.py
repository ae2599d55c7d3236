"""The sampler of DPO-ST (Wang, Li, Lu 2024): a student that only writes own answers, and is never evaluated or trained further.

It is a copy of the previous round's student, trained by a preference loss on the right and wrong answers of the round's exam.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fcot.base.console import progress, say
from fcot.base.files import write_folder, write_jsonl
from fcot.base.records import ExamResult, TrainingSample, to_row
from fcot.decoding.engine import Sampling
from fcot.methods.tailored import exam as exams
from fcot.methods.tailored.config import SamplerConfig, TailoredConfig
from fcot.methods.tailored.feedback import exam_results
from fcot.methods.tailored.self_reflection import add_answers
from fcot.objectives.pairs import Texts, build_pairs
from fcot.objectives.preference import preference_loss
from fcot.prompts.student import StudentFormat
from fcot.stages.answering import SamplingParameters, answer_problems
from fcot.stages.table import Context, Summary
from fcot.stages.training import TrainingJob, load_trained, train_job
from fcot.student.data import TrainingData
from fcot.student.interface import read_interface
from fcot.student.objective import Objective


@dataclass(frozen=True)
class _PreferenceOnly:
    """The objective of the sampler: a preference loss on the pairs of an exam, and nothing else."""

    options: SamplerConfig
    results: Sequence[ExamResult]

    def build(self, data: TrainingData) -> Sequence[Objective]:
        """Build the one term."""
        options, right, wrong, unfinished = self.options, Texts(), Texts(), Texts()
        add_answers(data.form, self.results, right, wrong, unfinished)
        pairs = build_pairs(data, right, wrong, nearest=False, max_tokens=options.max_tokens, unfinished=unfinished)
        loss = preference_loss(
            data, pairs, options.objective, beta=options.beta, gamma=options.gamma, nll=options.nll, weight=1.0, name="sampler"
        )
        return [replace(loss, main=True)]


def tune(context: Context) -> Summary:
    """Train the sampler on the exam's pairs. Without a pair it is the previous round's student."""
    run, number = context.run, context.round
    method: TailoredConfig = run.config.method
    options = method.sampler
    previous, directory = run.directory.round(number - 1), run.directory.round(number).sampler
    paired = [result for result in exam_results(run, number) if result.right and set(result.mistakes) - set(result.right)]
    if not paired:
        say(f"round {number}: no problem has both right and wrong answers in the exam: the student samples as it is")
        if context.world.rank == 0:
            write_folder(directory.student, lambda folder: shutil.copytree(previous.student, folder, dirs_exist_ok=True))
        return {"n_pairs_of_problems": 0, "n_steps": 0}
    interface = read_interface(previous.student)
    recipe = replace(
        run.config.trainer, epochs=None, max_steps=options.steps, lr=options.lr, warmup_steps=options.steps // 10,
        evaluate_every_steps=None, evaluate_every_epochs=None, best_epoch=False,
    )  # fmt: skip
    job = TrainingJob(
        directory, [_sample(result, interface.format) for result in paired], interface.format.demonstrations, start=previous.student,
        recipe=recipe, objective=_PreferenceOnly(options, paired), title=f"sampler {number}",
    )  # fmt: skip
    return train_job(context, job) | {"n_pairs_of_problems": len(paired)}


def sample(context: Context) -> Summary:
    """Let the sampler answer the problems of the exam; its right answers become the round's own answers."""
    run, number, world = context.run, context.round, context.world
    options: SamplerConfig = run.config.method.sampler
    directory = run.directory.round(number)
    student, form = load_trained(run, directory.sampler), read_interface(directory.sampler.student).format
    limit = run.config.method.exam.max_new_tokens
    purpose = (number, exams.SAMPLER_NOISE)
    parameters = SamplingParameters(options.samples, Sampling(options.temperature, options.top_k), purpose, limit)
    indices = [result.sample_index for result in exam_results(run, number)]
    with progress(f"own answers {number}", len(indices) * options.samples, "answers") as bar:
        scored, facts = answer_problems(run, student, form, indices, world, parameters, bar.advance)
    if world.rank > 0:
        return {}
    results = [exams.examine(answers) for answers in scored]
    write_jsonl(directory.own, map(to_row, results))
    return exams.summarize(results) | facts


def _sample(result: ExamResult, form: StudentFormat) -> TrainingSample:
    """The training sample of a problem with pairs. The preference loss uses only its prompt; the completions are those of the pairs."""
    rationale, answer = form.split(result.right[0])
    return TrainingSample(result.sample_index, result.question, answer, rationale)
