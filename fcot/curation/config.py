"""The options of ``curation``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from fcot.base.fields import Bounds, Why, absent_at, bounded, neutral, resolved
from fcot.curation.choice import CHOICES, RANDOM

if TYPE_CHECKING:
    from fcot.stages.table import Stage


@dataclass
class CurationConfig:
    """Which completions become reasoning samples."""

    name: str = neutral(MISSING, Why.NAMED)
    # answer, truncated, duplicate, near_copy, same_equations, length, repetition, arithmetic, golden, concise, or your own filter as
    # module.function
    filters: list[str] = field(default_factory=list)
    # values of filters' settings that have no option below, by the setting's name
    settings: dict[str, Any] = resolved({}, "the settings that each filter reads")
    # gold: the data's answers; vote: the majority of a problem's completions if it has no gold answer; vote_all: the majority always
    labels: str = bounded("gold", one_of=("gold", "vote", "vote_all"))
    max_words: int = bounded(300, at_least=1)  # length filter: the most words of a rationale
    max_repeats: int = bounded(2, at_least=1)  # repetition filter: how often a rationale may contain the same sentence
    # file: rows of curated.jsonl, [sample index, ...] or {"sample index": [completion index, ...]}
    golden: str | None = resolved(None, "the ids in the file", file=True)
    max_samples: int | None = bounded(None, at_least=1)  # keep at most this many completions, drawn at random
    # train on at most this many kept completions of each problem, the best by choose_by; null: all
    max_per_problem: int | None = absent_at(None, at_least=1)
    # the order of max_per_problem. random; rsr: the lowest ratio of the student's ranks to its surprisal (arXiv 2601.14249);
    # surprisal: the lowest mean surprisal. For the latter two the student, before training, reads every kept completion once
    choose_by: str = bounded(RANDOM, one_of=CHOICES)
    # the teacher judges each kept rationale: does each step follow? filter: reject those with a wrong step; record: only note the verdicts
    judge: str = absent_at("none", one_of=("none", "filter", "record"))
    judge_path: str | None = resolved(None, "the text", file=True)  # file with the judge's request; null: fcot/prompts/judge.yaml
    judge_tokens: int = bounded(512, at_least=1)  # limit of the judge's reply, in tokens
    match_golden: bool = False  # keep as many completions as curation.golden names, drawn at random

    def filter_settings(self, name: str) -> dict[str, Any]:
        """The values of the settings that a filter reads, by name. The value of ``golden`` is the path of the file.

        Raises:
            FcotError: There is no such filter, or a setting without a default has no value.
        """
        from fcot.base.errors import FcotError
        from fcot.curation.filters import REQUIRED, settings_of

        options = {option.name for option in fields(self)}
        values = {
            setting: getattr(self, setting) if setting in options else self.settings.get(setting, default)
            for setting, default in settings_of(name).items()
        }
        if missing := [setting for setting, value in values.items() if value is REQUIRED]:
            raise FcotError(f"curation.filters={name} needs curation.settings.{missing[0]}=...")
        return values

    @property
    def golden_unread(self) -> bool:
        """Whether there is a file of golden ids that nothing reads. It is no fault: a sweep over filters sets it for all of its runs."""
        read_by_filter = any("golden" in self.filter_settings(name) for name in self.filters)
        return self.golden is not None and not self.match_golden and not read_by_filter

    def faults(self) -> Iterator[str]:
        """Faults of the options together: unknown filters, settings without a filter, missing files."""
        from fcot.base.errors import FcotError
        from fcot.curation.filters import CONCISE, FILTERS

        settings_read: set[str] = set()
        for name in self.filters:
            fault = Bounds(one_of=(*FILTERS, CONCISE)).fault(name)
            if fault and "." not in name:
                yield f"curation.filters={name}: {fault}, or name your own filter as module.function"
                continue
            try:
                settings_read |= set(self.filter_settings(name))
            except FcotError as error:
                yield str(error)
        for name in sorted(set(self.settings) - (settings_read - {option.name for option in fields(self)})):
            yield f"curation.settings.{name}: none of the filters reads it; check its name and curation.filters"
        if ("golden" in self.filters or self.match_golden) and self.golden is None:
            yield f"curation={self.name} needs curation.golden=FILE"
        if self.match_golden and self.max_samples is not None:
            yield "curation.match_golden and curation.max_samples: both limit the number of samples; set one of them"
        if self.max_per_problem is not None and (self.match_golden or self.max_samples is not None):
            other = "match_golden" if self.match_golden else "max_samples"
            yield f"curation.max_per_problem and curation.{other}: both limit the number of samples; set one of them"
        if self.judge != "none":
            yield from self._judge_faults()

    def _judge_faults(self) -> Iterator[str]:
        from fcot.curation.filters import CONCISE
        from fcot.prompts.judge import faults

        if self.judge_path is not None and Bounds(file=True).fault(self.judge_path) is None:
            yield from faults(self.judge_request, f"curation.judge_path={self.judge_path}")
        limits = {
            "the filter concise": CONCISE in self.filters,
            "curation.max_samples": self.max_samples,
            "curation.match_golden": self.match_golden,
        }
        for limit in (name for name, is_set in limits.items() if is_set and self.judge == "filter"):
            yield f"curation.judge=filter may reject what {limit} leaves; use curation.max_per_problem, which chooses after the judge"

    @property
    def judge_request(self) -> str:
        """The template of the judge's request."""
        from fcot.prompts.judge import default_request

        return default_request() if self.judge_path is None else Path(self.judge_path).read_text(encoding="utf-8-sig", errors="replace")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that change the verdicts of the filters."""
        from fcot.stages.table import CHOOSE, JUDGE

        return (*((JUDGE,) if self.judge != "none" else ()), *((CHOOSE,) if self.max_per_problem is not None else ()))

    def conflicts(self, config: Any) -> Iterator[str]:
        """Messages about ``max_per_problem`` and ``judge`` with a student, method or teacher that cannot use them."""
        if config.method.name == "tailored":
            for stage in self.stages:
                option = {"choose": "max_per_problem", "judge": "judge"}[stage.name]
                yield f"curation.{option}: not with method=tailored, which learns each round's completions; use method=fine_tune_cot"
        if self.judge != "none" and not config.teacher.generates:
            yield f"curation.judge={self.judge}: teacher={config.teacher.name} answers no requests; use a teacher that does"
        elif self.judge != "none" and getattr(config.teacher, "endpoint", "chat") != "chat":
            yield f"curation.judge={self.judge} needs a chat model: teacher.endpoint=chat"
        if self.scores and config.student.remote:
            yield (
                f"curation.choose_by={self.choose_by}: student={config.student.name} runs at a server that gives no probabilities of the "
                "teacher's text; use curation.choose_by=random"
            )

    @property
    def scores(self) -> bool:
        """Whether the student scores the kept completions."""
        return self.max_per_problem is not None and self.choose_by != RANDOM


SCHEMAS = {
    ("curation", "curation"): CurationConfig,
}
