"""Which settings are the best: by validation problems where they can tell, else by the test accuracy that is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcot.reporting.settings import Setting


@dataclass(frozen=True)
class Ranking:
    """Settings from the best to the worst.

    Attributes:
        settings: The ranked ones; by validation, those that were trained.
        by_validation: Whether validation accuracy ranks them. Otherwise the test accuracy does, and that of the best is optimistic.
    """

    settings: Sequence[Setting]
    by_validation: bool

    def score(self, setting: Setting) -> float:
        """What ranks it, 0..1."""
        validation = setting.mean("validation_accuracy") if self.by_validation else None
        return setting.accuracy.mean if validation is None else validation


def rank(group: Sequence[Setting]) -> Ranking:
    """The settings of a task and student, by validation where two or more were trained and all of those have validation problems."""
    trained = [setting for setting in group if setting["accuracy_checkpoint"] != "untrained"]
    by_validation = len(trained) > 1 and all(run.get("validation_accuracy") is not None for one in trained for run in one.runs)
    ranking = Ranking(trained if by_validation else group, by_validation)
    return Ranking(sorted(ranking.settings, key=lambda setting: -ranking.score(setting)), by_validation)


def evaluations(setting: Setting, name: str) -> str:
    """How many evaluations an accuracy of the history is the maximum of: ``best of 20 evaluations``; empty where nobody knows."""
    counts = {sum(entry.get(name) is not None for entry in run.get("history") or ()) for run in setting.runs} - {0}
    if not counts:
        return ""
    return f"best of {min(counts)}" + (f" to {max(counts)}" if len(counts) > 1 else "") + f" evaluation{'s' * (max(counts) > 1)}"
