"""The report's pictures: a bar a setting, and curves along scaling axes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fcot.artifacts import replacing
from fcot.prompts.student import METHODS
from fcot.reporting.cost import Cost, pareto
from fcot.reporting.published import find, published
from fcot.reporting.scaling import AXES, Line
from fcot.reporting.settings import Setting, label

COLOURS = {
    "zero_shot": "#9a9a9a", "zero_shot_cot": "#7a7a7a", "few_shot_cot": "#5f8f6b", "fine_tune": "#d9a441", "fine_tune_cot": "#2f6fa8",
    "tailored": "#7a5195",
}  # fmt: skip
_LINES = ("#2f6fa8", "#d9a441", "#5f8f6b", "#b0413e", "#7a5195", "#3a3a3a", "#00a0a0", "#a05000")


@contextlib.contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float], **layout: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, (rows, columns); written at the end as PNG or SVG, by the suffix of ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **layout)
    try:
        yield drawn, axes
        with replacing(path) as temporary:
            drawn.savefig(temporary, dpi=150, format=path.suffix[1:])
    finally:
        pyplot.close(drawn)


def accuracy_figure(settings: Sequence[Setting], path: Path) -> None:
    """A bar a setting with its 95 % interval, one panel per task and student; what paper A published is a diamond."""
    panels: dict[tuple[str, str], list[Setting]] = {}
    for setting in settings:
        panels.setdefault((setting["task"], setting["student"]), []).append(setting)
    heights = [0.7 + 0.42 * len(group) for group in panels.values()]
    with figure(path, len(panels), 1, (7.5, sum(heights) + 0.5), height_ratios=heights) as (_, axes):
        for axis, ((task, student), group) in zip(axes[:, 0], panels.items(), strict=True):
            for position, setting in enumerate(group):
                value, high = 100 * setting.accuracy.mean, 100 * setting.accuracy.high
                axis.barh(position, value, color=COLOURS[setting["method"]], height=0.65)
                axis.errorbar(value, position, xerr=_bars(setting), color="#222222", capsize=3, lw=1.2)
                axis.text(max(high, value) + 1.5, position, f"{value:.1f}", va="center", fontsize=9)
                if cell := find(setting.runs[0]):
                    axis.plot(cell.percent, position, "D", color="#b0413e", ms=4)
            axis.set_yticks(range(len(group)), [label(setting, group) for setting in group])
            axis.invert_yaxis()
            axis.set_xlim(0, 112)
            axis.set_xticks(range(0, 101, 20))
            _headed(axis, f"{task}, {student}, {_sizes(group)}")
        axes[-1, 0].set_xlabel("test accuracy, %, with 95 % interval")


def scaling_figure(lines: Sequence[Line], path: Path) -> None:
    """A panel per axis and task: accuracy along the axis with 95 % intervals, and paper A's curve over D dashed behind it."""
    panels: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        panels.setdefault((line.axis, line.points[0][1]["task"]), []).append(line)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with figure(path, rows, columns, (6.0 * columns, 4.2 * rows)) as (_, axes):
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, ((name, task), group) in zip(axes.flat, panels.items(), strict=False):
            for colour, line in zip(_LINES * (1 + len(group) // len(_LINES)), group, strict=False):
                places, settings = zip(*line.points, strict=True)
                values = [100 * setting.accuracy.mean for setting in settings]
                bars = [list(side) for side in zip(*(_flat(setting) for setting in settings), strict=True)]
                name_of_line = line.label.removeprefix(f"{task}, ")
                axis.errorbar(places, values, yerr=bars, marker="o", ms=4, capsize=2.5, lw=1.4, color=colour, label=name_of_line)
                if curve := _curve(line):
                    label_once = None if any("paper A" in str(one.get_label()) for one in axis.lines) else "paper A, dashed"
                    axis.plot(*zip(*curve, strict=True), "--", color=colour, lw=1, alpha=0.6, label=label_once)
            _scale(axis, sorted({place for line in group for place, _ in line.points}))
            axis.set_xlabel(AXES.get(name, name))
            axis.set_ylabel("test accuracy, %")
            _headed(axis, f"{task}, {_sizes([setting for line in group for _, setting in line.points])}")
            highest = max(setting.accuracy.high for line in group for _, setting in line.points)
            axis.set_ylim(0, min(103, 130 * highest + 2))
            axis.legend(fontsize=7.5, frameon=False)


def cost_figure(costs: Sequence[Cost], path: Path) -> None:
    """Accuracy against dollars, a panel a task; what is on the Pareto front is joined.

    Dollars are for annotation and rationales; for rationales alone where all settings of a task have the same problems annotated.
    """
    tasks = list(dict.fromkeys(cost.setting["task"] for cost in costs))
    with figure(path, len(tasks), 1, (7.5, 4.2 * len(tasks))) as (_, axes):
        for axis, task in zip(axes[:, 0], tasks, strict=True):
            here = [cost for cost in costs if cost.setting["task"] == task]
            alike = len({cost.problems for cost in here}) == 1

            def usd(cost: Cost, alike: bool = alike) -> float:
                return cost.teacher_usd if alike else cost.usd

            front = sorted((cost for cost, on in zip(here, pareto(here, usd), strict=True) if on), key=usd)
            axis.plot([usd(one) for one in front], [100 * one.setting.accuracy.mean for one in front], "-", color="#b0413e", lw=1)
            for cost in here:
                accuracy, color = 100 * cost.setting.accuracy.mean, COLOURS[cost.setting["method"]]
                title = METHODS[cost.setting["method"]].title
                named = title if title not in axis.get_legend_handles_labels()[1] else None
                axis.errorbar(usd(cost), accuracy, yerr=_bars(cost.setting), fmt="o", ms=4, capsize=2, color=color, label=named)
                name = f"{cost.problems}" + (f", D={cost.setting['diversity']}" if cost.setting["diversity"] else ", answers only")
                axis.annotate(name, (usd(cost), accuracy), xytext=(5, 4), textcoords="offset points", fontsize=7)
            axis.set_xlim(0, 1.2 * max(map(usd, here)) or 1)
            axis.legend(frameon=False, fontsize=8, loc="lower right")
            axis.set_xlabel(f"USD: {'rationales' if alike else 'gold answers and rationales'} (labels: annotated problems, D)")
            axis.set_ylabel("test accuracy, %")
            _headed(axis, f"{task}, {_sizes([cost.setting for cost in here])}; line: Pareto front")


def _headed(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _scale(axis: Any, places: Sequence[float]) -> None:
    """Powers of two are as far from each other as they are; ticks stand where something was measured."""
    from matplotlib.ticker import EngFormatter

    many = EngFormatter(sep="")  # 60M
    if places[0] > 0 and places[-1] >= 8 * places[0]:
        axis.set_xscale("log", base=2)
    axis.set_xticks(places, [many(place) if place >= 10_000 else f"{place:g}" for place in places])
    axis.minorticks_off()


def _curve(line: Line) -> list[tuple[int, float]]:
    """Paper A's values along D for this line's task and student."""
    if line.axis != "diversity":
        return []
    setting = line.points[0][1]
    return [
        (one.diversity or 1, one.percent) for one in published()
        if one.source == "figure9" and (one.task, one.student) == (setting["task"], setting["student"])
    ]  # fmt: skip


def _flat(setting: Setting) -> tuple[float, float]:
    """How far the interval reaches below and above the mean, in percent."""
    accuracy = setting.accuracy
    return 100 * max(0.0, accuracy.mean - accuracy.low), 100 * max(0.0, accuracy.high - accuracy.mean)


def _bars(setting: Setting) -> list[list[float]]:
    below, above = _flat(setting)
    return [[below], [above]]


def _sizes(settings: Sequence[Setting]) -> str:
    sizes = sorted({len(setting.problems) for setting in settings})
    return f"n = {sizes[0]}" if len(sizes) == 1 else f"n = {sizes[0]} to {sizes[-1]}"
