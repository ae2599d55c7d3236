"""Write the report's first paragraph from the numbers: what was run, and what the results are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fcot.evaluation.statistics import Comparison, holm
from fcot.reporting.comparable import other_problems
from fcot.reporting.numbers import equal_to, signed, signed_interval
from fcot.reporting.ranking import evaluations, rank
from fcot.reporting.scaling import AXES, Line
from fcot.reporting.settings import Setting, label
from fcot.reporting.tables import Compared

# By the run ids of two settings: their comparison, and its p-value after Holm's correction.
Pairs = Mapping[tuple[str, str], tuple[Comparison, float | None]]
_SIGNIFICANT = 0.05
_HOLM = " after Holm's correction"
_THESE = "Among these trained students (one training per value; new trainings may differ), accuracy"
_CHOSEN_BY_IT = "chosen by this test accuracy, which is therefore optimistic"
_SHOWN_LINES = 4
_MOST_EQUAL = 3  # settings listed when several share the highest validation accuracy
_SHOWN_GROUPS = 4  # pairs of task and student in the paragraph


def answer(settings: Sequence[Setting], scaling: Sequence[Line], compared: Sequence[Compared]) -> str:
    """The report's first paragraph: the best setting of each task and student against the next one, then trends and caveats."""
    n_runs = sum(len(setting.runs) for setting in settings)
    sentences = [f"{n_runs} run{'s' if n_runs != 1 else ''} of {len(settings)} setting{'s' if len(settings) != 1 else ''}."]
    groups: dict[tuple[str, str, str], list[Setting]] = {}  # accuracies on different questions cannot be compared
    for setting in settings:
        groups.setdefault((setting["task"], setting["student"], setting["questions_sha256"]), []).append(setting)
    adjusted = zip(compared, holm([result.p for _, _, result in compared]), strict=True)
    pairs = {(first["run_id"], second["run_id"]): (result, p) for (first, second, result), p in adjusted}
    sentences += [_highest(group, settings, pairs) for group in list(groups.values())[:_SHOWN_GROUPS]]
    if len(groups) > _SHOWN_GROUPS:
        sentences.append(f"{len(groups) - _SHOWN_GROUPS} more pairs of task and student are in the table.")
    sentences += other_problems(settings)
    if len(compared) > 1:
        sentences += _significant([p for _, p in pairs.values()])
    sentences += _trends(scaling)
    trained = [setting for setting in settings if setting["accuracy_checkpoint"] != "untrained"]
    once = sum(len(setting.runs) == 1 for setting in trained)
    if once:
        fraction = f"{once} of {len(trained)} trained settings {'was' if once == 1 else 'were'}"
        which = "Every trained setting was" if once == len(trained) else fraction
        sentences.append(f"{which} trained once; another seed may differ by more than these intervals.")
    return " ".join(sentences)


def _significant(p_values: Sequence[float | None]) -> Iterator[str]:
    """How many comparisons are significant, and how many have no test."""
    tested = [p for p in p_values if p is not None]
    if tested:
        n = sum(p < _SIGNIFICANT for p in tested)
        which = f"{n or 'None'} of {len(tested)} comparisons on the same problems {'is' if n == 1 else 'are'}"
        yield f"{which} significant (p < 0.05{_HOLM})."
    if untested := len(p_values) - len(tested):
        yield f"No test in {untested} of {len(p_values)} comparisons: one training on one side, several on the other."


def _highest(group: Sequence[Setting], settings: Sequence[Setting], pairs: Pairs) -> str:
    """A sentence on the best setting of a task and student: its accuracy, the baselines, and the difference to the next setting."""
    who = f"{group[0]['task']}, {group[0]['student']}"
    if len(group) == 1:
        figure, guessed = _figure(group), _guessed(group[0])
        return f"{who}: {label(group[0], settings)} answers {figure} of the test problems{guessed}."
    ranking = rank(group)
    ranked = ranking.settings
    names = [label(setting, settings) for setting in ranked]
    equal = [setting for setting in ranked if ranking.score(setting) == ranking.score(ranked[0])]
    if ranking.by_validation:
        best = f"{who}: {_listed_best(names, equal)} the highest validation accuracy{_of_evaluations(ranked[0])}, "
        best += f"{100 * ranking.score(ranked[0]):.1f} %, which chooses among trained settings"
        clauses = [f"{name} answers {_figure([setting])} of the test problems" for name, setting in zip(names, equal, strict=False)]
        if len(equal) > 1:
            return f"{best}; {'; '.join(clauses[:_MOST_EQUAL])}."
        return f"{best}; it answers {_figure(equal)} of the test problems{_guessed(equal[0])}; {_next(ranked, names, pairs)}."
    figure, guessed = _figure(equal), _guessed(equal[0])
    if len(equal) == len(group):
        return f"{who}: all settings have {figure}{guessed}."
    if len(equal) > 1:
        return f"{who}: {listed(names[: len(equal)])} have {figure}, the highest accuracy{guessed}; {_CHOSEN_BY_IT}."
    return f"{who}: {names[0]} has the highest accuracy, {figure}{guessed}; {_next(ranked, names, pairs)}; {_CHOSEN_BY_IT}."


def _listed_best(names: Sequence[str], equal: Sequence[Setting]) -> str:
    return f"{listed(names[: len(equal)])} {'has' if len(equal) == 1 else 'have'}"


def _of_evaluations(setting: Setting) -> str:
    times = evaluations(setting, "validation_accuracy")
    return f" ({times})" if times else ""


def _next(ranked: Sequence[Setting], names: Sequence[str], pairs: Pairs) -> str:
    return f"the next, {names[1]}, has {100 * ranked[1].accuracy.mean:.1f} %{_against(ranked[0], ranked[1], pairs)}"


def _figure(equal: Sequence[Setting]) -> str:
    """The accuracy that some settings share, with its interval if they share that too: intervals depend on the number of trainings."""
    accuracy = equal[0].accuracy
    interval = f" (95 % interval {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}, n = {len(equal[0].problems)})"
    same_interval = len({(setting.accuracy.low, setting.accuracy.high) for setting in equal}) == 1
    return f"{100 * accuracy.mean:.1f} %{interval if same_interval else ''}"


def _guessed(setting: Setting) -> str:
    """A clause on the better baseline (guessing, or train's most frequent answer); empty if it is below the accuracy's interval."""
    accuracy, guess, majority = setting.accuracy, setting["random_guess"] or 0.0, setting["majority_accuracy"] or 0.0
    baseline, source = (
        (majority, "always giving the most frequent answer of train gives") if majority > guess else (guess, "guessing gives")
    )
    if not baseline or accuracy.low > baseline:
        return ""
    verdict = "which the interval does not exclude" if baseline <= accuracy.high else "which is more"
    return f"; {source} {100 * baseline:.1f} %, {verdict}"


def _against(first: Setting, second: Setting, pairs: Pairs) -> str:
    """The difference of the best setting to the next with its test; empty if they were not compared."""
    sign = 1 if (second["run_id"], first["run_id"]) in pairs else -1
    comparison = pairs.get((second["run_id"], first["run_id"])) or pairs.get((first["run_id"], second["run_id"]))
    if comparison is None:
        return ""
    result, p = comparison
    points = f": a difference of {signed(sign * result.difference)} points"
    if p is None or result.low is None or result.high is None:
        return f"{points} (one training against several: no test)"
    low, high = sorted((sign * result.low, sign * result.high))
    test = f"{equal_to(p)}{_HOLM if len(pairs) > 1 else ''}" + ("" if p < _SIGNIFICANT else ": not significant")
    return f"{points} ({signed_interval(low, high)}, {test})"


def _trends(scaling: Sequence[Line]) -> Iterator[str]:
    """The axes along which accuracy changes significantly, and how many lines show no trend."""
    adjusted = holm([line.trend.p for line in scaling])
    significant = [line for line, p in zip(scaling, adjusted, strict=True) if p is not None and p < _SIGNIFICANT and line.trend.direction]
    for line in significant[:_SHOWN_LINES]:
        moves = "rises" if line.trend.direction > 0 else "falls"
        who = "Accuracy" if line.trend.over == "runs" or all(setting.fixed for _, setting in line.points) else _THESE
        yield f"{who} {moves} with {AXES.get(line.axis, line.axis)} ({line.label})."
    if len(significant) > _SHOWN_LINES:
        yield f"{len(significant) - _SHOWN_LINES} more lines of the scaling table have a significant trend."
    if untested := sum(line.trend.p is None for line in scaling):
        yield f"{untested} of {len(scaling)} scaling lines mix single and repeated trainings: no test."
    if n := len(scaling) - len(significant) - untested:
        yield f"{n} of {len(scaling)} scaling lines {'show' if n > 1 else 'shows'} no significant trend."


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join names with commas; of more than ``most``, the rest is counted."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"
