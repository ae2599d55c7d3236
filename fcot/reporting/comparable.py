"""Says which settings have other test problems than others, so that nobody compares accuracies on different problems unknowingly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fcot.reporting.settings import SHOWN, Setting, label

_MOST = 3  # sentences for a task and student
_SIZE_KEYS = ("split_mode.subset", "dataset.limit")  # a swept value of these shows the number of train problems already


def other_problems(settings: Sequence[Setting]) -> Iterator[str]:
    """A sentence for each set of test problems that differs from the first one of its task and student, with the number that they share."""
    groups: dict[tuple[object, ...], list[Setting]] = {}
    for setting in settings:
        groups.setdefault(tuple(setting[name] for name in SHOWN), []).append(setting)
    for names, members in groups.items():
        by_problems = {(setting["questions_sha256"], setting.questions): setting for setting in reversed(members)}
        first, *others = sorted(by_problems.values(), key=members.index)
        for other in others[:_MOST]:
            yield f"{', '.join(map(str, names))}: {_difference(first, other, settings)}."
        if len(others) > _MOST:
            yield f"{', '.join(map(str, names))}: {len(others) - _MOST} more sets of test problems differ from these."


def _difference(first: Setting, other: Setting, settings: Sequence[Setting]) -> str:
    shared, sizes = len(first.questions & other.questions), [len(setting.questions) for setting in (first, other)]
    names = " and ".join(label(setting, settings) for setting in (first, other))
    counts = f"{shared} shared of {sizes[0]} and {sizes[1]}"
    if first["questions_sha256"] != other["questions_sha256"]:
        return f"not compared: other test problems ({counts}): {names}"
    return (
        f"compared on the test problems that both answered ({counts}): {names}"
        if shared
        else f"not compared: no shared test problems: {names}"
    )


def train_sizes(settings: Sequence[Setting]) -> list[str] | None:
    """The number of train problems of each setting; None if all are equal, or if they differ only by a swept limit."""
    trained: dict[str, set[int]] = {}
    for setting in settings:
        if setting["n_train_problems"] and not any(key in setting.varied for key in _SIZE_KEYS):
            trained.setdefault(setting["task"], set()).add(setting["n_train_problems"])
    if all(len(sizes) == 1 for sizes in trained.values()):
        return None
    return [f"{setting['n_train_problems']}" if setting["n_train_problems"] else "-" for setting in settings]
