"""The report's charts, made with Altair: interactive on the page, as SVG, PDF or PNG for papers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from fcot.base.errors import FcotError
from fcot.base.files import replacing
from fcot.methods.table import METHODS, title_of
from fcot.reporting.cost import Cost, pareto
from fcot.reporting.document import Chart
from fcot.reporting.published import Published, published
from fcot.reporting.scaling import AXES, Line
from fcot.reporting.settings import Setting, label

COLORS = {  # by method; each is readable on a light and on a dark page
    "zero_shot": "#8f8f8f", "zero_shot_cot": "#b0967a", "few_shot_cot": "#5f9f6b", "fine_tune": "#d99a31", "fine_tune_cot": "#3a82c4",
    "tailored": "#9a6fc0", "on_policy": "#2f9e8f",
}  # fmt: skip
_PRESET_COLORS = {"STaR": "#c2628f", "RFT": "#8c9a3c", "DPO-ST": "#7f86d6"}  # by title (conf/method)
_TITLE_COLORS = {METHODS[name].title: color for name, color in COLORS.items()} | _PRESET_COLORS
_METHOD_SCALE = alt.Scale(domain=list(_TITLE_COLORS), range=list(_TITLE_COLORS.values()))
_LINES = ["#1b9e77", "#d95f02", "#7b77c0", "#e7298a", "#66a61e", "#c79a00", "#a6761d", "#808080"]  # no method has these
_DASHES = [[1, 0], [6, 3], [2, 2], [10, 3, 2, 3], [5, 2, 1, 2, 1, 2]]  # dashes and shapes distinguish lines of the same color
_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross"]
_PAPER = "#c0504d"
_INTERVAL = "95 % interval"
_WIDTH = 520
_LABEL = 480  # maximum width of an axis label in pixels; on a narrow screen the page sets a smaller one
_FORMATS = ("svg", "pdf", "png")
FigureRow = dict[str, Any]


def accuracy_chart(settings: Sequence[Setting]) -> Chart:
    """A bar per setting with its 95 % interval, a panel per task and student; diamonds show paper A's accuracies."""
    panels: dict[tuple[str, str], list[Setting]] = {}
    for setting in settings:
        panels.setdefault((setting["task"], setting["student"]), []).append(setting)
    charts = [_bars(group).properties(title=f"{task}, {student}, {_sizes(group)}") for (task, student), group in panels.items()]
    cells = [setting.published[0] for setting in settings if setting.published is not None]
    paper = "; diamonds: paper A" if cells else ""
    paper += " (its best epochs beside our best epochs, hollow)" if any(cell.best_epoch for cell in cells) else ""
    return _to_chart("accuracy", f"test accuracy, %, with 95 % intervals{paper}", _stacked(charts, 1))


def _bars(group: Sequence[Setting]) -> Any:
    names = [label(setting, group) for setting in group]
    rows = [_measured(setting) | _paper(setting) | {"setting": name} for setting, name in zip(group, names, strict=True)]
    base = alt.Chart(_data(rows)).encode(y=alt.Y("setting:N", sort=names, title=None))
    color = alt.Color("method:N", scale=_METHOD_SCALE, legend=None)
    tooltip = ["setting:N", alt.Tooltip("accuracy:Q", format=".2f"), f"{_INTERVAL}:N", "n:Q", "seeds:Q", "best epoch:Q", "paper A:Q"]
    bars = base.mark_bar(height={"band": 0.7}).encode(x=_percent(alt.X, "accuracy"), color=color, tooltip=tooltip)
    layers = [bars, base.mark_rule().encode(x="low:Q", x2="high:Q")]
    layers.append(base.mark_text(align="left", dx=5).encode(x="high:Q", text=alt.Text("accuracy:Q", format=".1f")))
    if any(row["paper A"] is not None for row in rows):
        layers.append(base.mark_point(shape="diamond", filled=True, size=60, color=_PAPER, opacity=1).encode(x="paper A:Q"))
    if any(row["best epoch"] is not None for row in rows):
        layers.append(base.mark_point(shape="diamond", filled=False, size=60, color=_PAPER, opacity=1).encode(x="best epoch:Q"))
    return alt.layer(*layers).properties(width=_WIDTH, height=alt.Step(26))


def scaling_chart(lines: Sequence[Line]) -> Chart:
    """A panel per axis and task: accuracy along the axis with 95 % intervals, and paper A's curve as a dashed line."""
    panels: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        panels.setdefault((line.axis, line.points[0][1]["task"]), []).append(line)
    charts = [_along(axis, task, group) for (axis, task), group in panels.items()]
    paper = "; dashed: paper A" if any(map(_curve, lines)) else ""
    paper += " (its best epochs; dotted: our best epochs)" if any(map(_best_epochs, lines)) else ""
    return _to_chart("scaling", f"test accuracy along each axis, with 95 % intervals{paper}", _stacked(charts, 2))


def _along(axis: str, task: str, group: Sequence[Line]) -> Any:
    rows, paper, best = [], [], []
    for line in group:
        name = line.label.removeprefix(f"{task}, ")
        rows += [_measured(setting) | {"line": name, "place": place} for place, setting in line.points]
        paper += [{"line": name, "place": place, "accuracy": percent} for place, percent in _curve(line)]
        best += [{"line": name, "place": place, "accuracy": percent} for place, percent in _best_epochs(line)]
    places = sorted({row["place"] for row in (*rows, *paper)})
    powers = places[0] > 0 and places[-1] >= 8 * places[0]
    scale = alt.Scale(type="log", base=2) if powers else alt.Scale(zero=False, padding=12)
    x = alt.X("place:Q", scale=scale, title=AXES.get(axis, axis), axis=alt.Axis(values=places, format="~s"))
    names = list(dict.fromkeys(row["line"] for row in rows))
    color, shape = _line_styles("line", names, "shape", legend=len(names) > 1)
    base = alt.Chart(_data(rows)).encode(x=x, color=color)
    y = _percent(alt.Y, "accuracy", _room([row["high"] for row in rows] + [row["accuracy"] for row in (*paper, *best)]))
    tooltip = ["line:N", "place:Q", alt.Tooltip("accuracy:Q", format=".2f"), f"{_INTERVAL}:N", "n:Q", "seeds:Q"]
    layers = [
        base.mark_line().encode(y=y),
        base.mark_rule().encode(y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=45, opacity=1).encode(y=y, tooltip=tooltip, shape=shape),
    ]
    if paper:
        layers.insert(0, alt.Chart(_data(paper)).mark_line(strokeDash=[5, 4], opacity=0.6).encode(x=x, y=y, color=color))
    if best:
        layers.insert(0, alt.Chart(_data(best)).mark_line(strokeDash=[1, 3], opacity=0.8).encode(x=x, y=y, color=color))
    n = _sizes([setting for line in group for _, setting in line.points])
    return alt.layer(*layers).properties(width=0.75 * _WIDTH, height=260, title=f"{task}, {n}")


def cost_chart(costs: Sequence[Cost]) -> Chart:
    """Accuracy against dollars, a panel per task; a line joins the settings on the Pareto front.

    Dollars count annotation and rationales, or rationales alone if all settings of a task have equally many annotated problems or no
    annotation is counted. Settings of unknown cost are left out.
    """
    tasks = list(dict.fromkeys(cost.setting["task"] for cost in costs if cost.usd is not None))
    charts = [_cost([cost for cost in costs if cost.setting["task"] == task], task) for task in tasks]
    return _to_chart("cost", "test accuracy by cost; line and labels: Pareto front of these test accuracies", _stacked(charts, 1))


def _cost(costs: Sequence[Cost], task: str) -> Any:
    costs = [cost for cost in costs if cost.usd is not None]
    same_problems = len({cost.problems for cost in costs}) == 1 or all(cost.annotation_usd is None for cost in costs)

    def usd(cost: Cost) -> float | None:
        return cost.teacher_usd if same_problems else cost.usd

    rows = []
    for cost, on_front in zip(costs, pareto(costs, usd), strict=True):
        d = f", D={cost.setting['diversity']}" if cost.setting["diversity"] else ", answers only"
        rows.append(_measured(cost.setting) | {"USD": usd(cost), "point": f"{cost.problems} problems{d}", "front": on_front,
                                               "student": cost.setting["student"], "training hours": cost.training_hours})  # fmt: skip
    front = [row for row in rows if row["front"]]
    labeled = list({(row["USD"], row["accuracy"], row["point"]): row for row in front}.values())  # no label twice at one point
    x = alt.X("USD:Q", scale=alt.Scale(domainMin=0), title=f"USD: {'rationales' if same_problems else 'gold answers and rationales'}")
    y = _percent(alt.Y, "accuracy", _room(row["high"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    color = alt.Color("method:N", scale=_METHOD_SCALE, title=None, legend=alt.Legend(orient="bottom", values=methods))
    base = alt.Chart(_data(rows)).encode(x=x)
    tooltip = ["point:N", "student:N", "method:N", alt.Tooltip("USD:Q", format=",.2f"), alt.Tooltip("accuracy:Q", format=".2f"),
               f"{_INTERVAL}:N", alt.Tooltip("training hours:Q", format=".3f")]  # fmt: skip
    layers = [
        alt.Chart(_data(front)).mark_line(color=_PAPER, opacity=0.7, interpolate="step-after").encode(x=x, y=y),
        base.mark_rule().encode(y="low:Q", y2="high:Q", color=color),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, color=color, tooltip=tooltip),
        alt.Chart(_data(labeled)).mark_text(align="left", dx=7, dy=-6, fontSize=9).encode(x=x, y=y, text="point:N"),
    ]
    return alt.layer(*layers).properties(width=_WIDTH, height=280, title=f"{task}, {_sizes([cost.setting for cost in costs])}")


def kept_chart(settings: Sequence[Setting]) -> Chart | None:
    """The percentage of completions that curation kept, by D; None without a teacher."""
    taught = [setting for setting in settings if setting.mean("completions_asked")]
    if not taught:
        return None
    rows = [
        {"line": _task_and_teacher(setting), "D": setting["diversity"], "setting": label(setting, settings),
         "kept": setting.mean("completions_kept"), "asked": setting.mean("completions_asked"),
         "share": 100 * setting.mean("completions_kept") / setting.mean("completions_asked")}  # type: ignore[operator]
        for setting in taught
    ]  # fmt: skip
    color, shape = _line_styles("line", list(dict.fromkeys(row["line"] for row in rows)), "shape")
    chart = alt.Chart(_data(rows)).mark_point(filled=True, size=60, opacity=0.8).encode(
        x=alt.X("D:O", title="rationales per problem (D)", axis=alt.Axis(labelAngle=0)), y=_percent(alt.Y, "share", title="kept, %"),
        color=color, shape=shape,
        tooltip=["setting:N", alt.Tooltip("kept:Q", format=",.0f"), "asked:Q", alt.Tooltip("share:Q", format=".1f")],
    )  # fmt: skip
    return _to_chart("kept", "completions that curation kept, %", chart.properties(width=_WIDTH, height=220))


def _task_and_teacher(setting: Setting) -> str:
    return f"{setting['task']}, {setting['teacher']}" + (", all rounds" if setting["rounds"] else "")


def training_chart(curves: Mapping[str, Sequence[FigureRow]]) -> Chart | None:
    """Training loss and validation accuracy by optimizer step, a line per run; None without training.

    Args:
        curves: By run label: rows of ``step`` with ``train_loss`` or ``validation``.
    """
    rows = [{"run": name} | row for name, curve in curves.items() for row in curve]
    panels: list[Any] = []
    for value, title in (("train_loss", "training loss per token"), ("validation", "validation accuracy, %")):
        points = [{"run": row["run"], "step": row["step"], value: row[value]} for row in rows if row.get(value) is not None]
        if points:
            y = alt.Y(f"{value}:Q", title=title, scale=alt.Scale(zero=value != "train_loss"))
            color, dash = _line_styles("run", list(curves), "strokeDash", legend=not panels)  # one legend for both panels
            line = alt.Chart(_data(points)).mark_line(point=value == "validation", strokeWidth=1.5)
            tooltip = ["run:N", "step:Q", alt.Tooltip(f"{value}:Q", format=".3f")]
            x = alt.X("step:Q", title="optimizer step")
            panels.append(line.encode(x=x, y=y, color=color, strokeDash=dash, tooltip=tooltip).properties(width=0.75 * _WIDTH, height=240))
    return _to_chart("training", "training curves of each run", _stacked(panels, 2)) if panels else None


def histogram_chart(name: str, title: str, panels: Mapping[str, Mapping[str, Sequence[float]]], unit: str) -> Chart:
    """A histogram per panel, its groups stacked.

    Args:
        name: The chart's name.
        title: The chart's title.
        panels: By panel title: the values of each group.
        unit: The title of the x axis.
    """
    charts = []
    for panel, groups in panels.items():
        rows = [{"group": group, "value": value} for group, values in groups.items() for value in values]
        color = alt.Color("group:N", sort=list(groups), scale=alt.Scale(range=["#3a82c4", "#b5b5b5"]), title=None)
        bars = (
            alt.Chart(_data(rows))
            .mark_bar()
            .encode(x=alt.X("value:Q", bin=alt.Bin(maxbins=40), title=unit), y=alt.Y("count()", title=None), color=color)
        )
        charts.append(bars.properties(width=_WIDTH, height=110, title=panel))
    return _to_chart(name, title, _stacked(charts, 1))


def save(chart: Chart, folder: Path) -> list[Path]:
    """Write a chart as SVG, PDF and PNG.

    Raises:
        FcotError: The chart cannot be drawn.
    """
    import vl_convert

    renderers = {
        "svg": lambda: vl_convert.vegalite_to_svg(chart.spec).encode(),
        "pdf": lambda: vl_convert.vegalite_to_pdf(chart.spec),
        "png": lambda: vl_convert.vegalite_to_png(chart.spec, scale=2),
    }
    paths = [folder / f"{chart.name}.{form}" for form in _FORMATS]
    try:
        for path, form in zip(paths, _FORMATS, strict=True):
            with replacing(path) as temporary:
                temporary.write_bytes(renderers[form]())
    except ValueError as error:
        raise FcotError(f"figure {chart.name} cannot be drawn as a file: {error}") from error
    return paths


def _stacked(panels: Sequence[Any], columns: int) -> Any:
    """Arrange panels in columns. A single panel is returned as it is, because the page can shrink only that."""
    return (
        panels[0]
        if len(panels) == 1
        else alt.concat(*panels, columns=columns).resolve_scale(color="independent", shape="independent", strokeDash="independent")
    )


def _to_chart(name: str, title: str, chart: Any) -> Chart:
    chart = chart.configure_view(stroke=None).configure_title(anchor="start", fontSize=12)
    spec = chart.configure_axis(labelLimit=_LABEL).configure_legend(labelLimit=2 * _WIDTH).to_dict()
    return Chart(name, title, spec)


def _data(rows: Sequence[FigureRow]) -> alt.Data:
    return alt.Data(values=list(rows))


def _measured(setting: Setting) -> FigureRow:
    """A setting's accuracy and interval in percent."""
    accuracy = setting.accuracy
    low, high = 100 * accuracy.low, 100 * accuracy.high
    return {
        "method": title_of(setting.runs[0]), "accuracy": 100 * accuracy.mean, "low": low, "high": high,
        _INTERVAL: f"{low:.1f}-{high:.1f}", "n": len(setting.problems), "seeds": len(setting.runs),
    }  # fmt: skip


def _paper(setting: Setting) -> FigureRow:
    """The published accuracy and, if it is that of a best epoch, our best epoch."""
    if setting.published is None:
        return {"paper A": None, "best epoch": None}
    cell, measured = setting.published
    return {"paper A": cell.percent, "best epoch": 100 * measured.mean if cell.best_epoch else None}


def _room(percents: Iterable[float]) -> float:
    """The upper end of an axis of percentages, with some room above the largest."""
    return min(100.0, 1.25 * max(percents) + 2)


def _line_styles(field: str, names: Sequence[str], second: str, legend: bool = True) -> tuple[Any, Any]:
    """Channels that distinguish lines: colors, and dashes or shapes once the colors repeat.

    Args:
        field: The field that names a line.
        names: All lines.
        second: The channel beside the color: ``strokeDash`` or ``shape``.
        legend: Whether the lines are listed below the chart.
    """
    below = alt.Legend(orient="bottom", columns=1, symbolLimit=len(names)) if legend else None
    channel: Any = alt.StrokeDash if second == "strokeDash" else alt.Shape
    values: Sequence[Any] = _DASHES if second == "strokeDash" else _SHAPES
    places = range(len(names))
    colors = alt.Scale(domain=names, range=[_LINES[place % len(_LINES)] for place in places])
    others = alt.Scale(domain=names, range=[values[place // len(_LINES) % len(values)] for place in places])
    return (
        alt.Color(f"{field}:N", sort=names, scale=colors, title=None, legend=below),
        channel(f"{field}:N", sort=names, scale=others, title=None, legend=below),
    )


def _percent(channel: Any, field: str, most: float = 100.0, title: str = "test accuracy, %") -> Any:
    """A channel of percentages."""
    return channel(f"{field}:Q", title=title, scale=alt.Scale(domain=[0, most]))


def _curve(line: Line) -> list[tuple[float, float]]:
    """Paper A's values along a line: at the measured points and, along D and train problems, at all published points."""
    curve = {place: setting.published[0].percent for place, setting in line.points if setting.published is not None}
    if curve and line.axis == "diversity" and line.points[0][1]["subset"] is None:
        curve |= _figure(line, "figure9", lambda cell: cell.diversity or 1)
    if curve and line.axis == "split_mode.subset":
        curve |= _figure(line, "figure4", lambda cell: cell.subset or 0)
    return sorted(curve.items())


def _best_epochs(line: Line) -> list[tuple[float, float]]:
    """Our best epochs along a line, at the points where the paper's accuracy is that of a best epoch."""
    pairs = [(place, setting.published) for place, setting in line.points]
    return sorted((place, 100 * pair[1].mean) for place, pair in pairs if pair is not None and pair[0].best_epoch)


def _figure(line: Line, source: str, place: Callable[[Published], int]) -> dict[float, float]:
    """The curve that paper A published for a line's task, student and method.

    Args:
        line: The line.
        source: The figure in the paper.
        place: A cell's place on the line's axis.
    """
    setting = line.points[0][1]
    wanted = tuple(setting[name] for name in ("task", "student", "method"))
    return {place(cell): cell.percent for cell in published() if cell.source == source and (cell.task, cell.student, cell.method) == wanted}


def _sizes(settings: Sequence[Setting]) -> str:
    sizes = sorted({len(setting.problems) for setting in settings})
    return f"n = {sizes[0]}" if len(sizes) == 1 else f"n = {sizes[0]} to {sizes[-1]}"
