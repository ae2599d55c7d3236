"""Rank settings by validation accuracy if all of them have it, else by test accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcot.reporting.settings import Setting


@dataclass(frozen=True)
class Ranking:
    """Settings from the best to the worst.

    Attributes:
        settings: The ranked settings; a ranking by validation has trained settings only.
        by_validation: Whether validation accuracy ranks them. Otherwise test accuracy does, and the best one's is optimistic.
    """

    settings: Sequence[Setting]
    by_validation: bool

    def score(self, setting: Setting) -> float:
        """The accuracy that ranks a setting, 0 to 1."""
        validation = setting.mean("validation_accuracy") if self.by_validation else None
        return setting.accuracy.mean if validation is None else validation


def rank(group: Sequence[Setting]) -> Ranking:
    """Rank settings of one task and student: by validation if at least two were trained and all of those have validation problems."""
    trained = [setting for setting in group if setting["accuracy_checkpoint"] != "untrained"]
    by_validation = len(trained) > 1 and all(run.get("validation_accuracy") is not None for setting in trained for run in setting.runs)
    ranking = Ranking(trained if by_validation else group, by_validation)
    return Ranking(sorted(ranking.settings, key=lambda setting: -ranking.score(setting)), by_validation)


def evaluations(setting: Setting, name: str) -> str:
    """The number of evaluations of which an accuracy is the maximum: ``best of 20 evaluations``; empty if it is unknown.

    Args:
        setting: The setting.
        name: The accuracy's name in the history: ``validation_accuracy`` or ``test_accuracy``.
    """
    counts = {sum(entry.get(name) is not None for entry in run.get("history") or ()) for run in setting.runs} - {0}
    if not counts:
        return ""
    return f"best of {min(counts)}" + (f" to {max(counts)}" if len(counts) > 1 else "") + f" evaluation{'s' * (max(counts) > 1)}"
