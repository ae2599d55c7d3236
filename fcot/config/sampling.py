"""How a run's rationales are sampled: the teacher's temperature, and the D slots of the store that the run uses."""

from __future__ import annotations

from collections.abc import Iterator

from fcot.config.schema import SAMPLING_TEMPERATURE, Config


def first_slot(config: Config) -> int:
    """The first of a run's D slots. With ``redraw_rationales=true`` each seed has its own block of slots."""
    return config.seed * config.diversity if config.redraw_rationales else 0


def redraw_faults(config: Config) -> Iterator[str]:
    """Options that cannot be combined with ``redraw_rationales=true``."""
    if not config.redraw_rationales:
        return
    temperature = getattr(config.teacher, "temperature", None)
    if temperature == 0 or (temperature is None and config.diversity == 1 and config.teacher.generates):
        yield "redraw_rationales=true: at temperature 0 all rationales of a problem are the same; add teacher.temperature=0.7"
    if getattr(config.teacher, "resample_identical", False):
        yield "redraw_rationales=true and teacher.resample_identical=true: both use the slots behind the first D; set only one of them"
    if config.method.draws_beyond_diversity:
        yield "redraw_rationales=true and method.feedback.source=plain: both use the slots behind the first D; set only one of them"
    if config.seed * config.diversity >= 1 << 19:
        yield f"redraw_rationales=true: seed={config.seed} is too large; use 0, 1, 2...: seed n takes the n-th block of D rationales"


def temperature_of(config: Config) -> float:
    """The teacher's temperature: as set, else 0 for one rationale per problem (paper A, section 3.1) and 0.7 for several."""
    temperature = getattr(config.teacher, "temperature", None)
    if temperature is not None:
        return float(temperature)
    if config.student.is_teacher:
        return SAMPLING_TEMPERATURE if config.student.self_consistency > 1 else 0.0
    return SAMPLING_TEMPERATURE if config.diversity > 1 else 0.0
