"""fcot: distill the chain-of-thought reasoning of a large teacher into a small student, and measure what helped.

The names below are the Python interface (:mod:`fcot.api`). They are imported on first use, so that ``import fcot`` is fast.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcot.api import Answer as Answer
    from fcot.api import FcotError as FcotError
    from fcot.api import RunResult as RunResult
    from fcot.api import Student as Student
    from fcot.api import SweepResult as SweepResult
    from fcot.api import check_data as check_data
    from fcot.api import load_run as load_run
    from fcot.api import run_experiment as run_experiment
    from fcot.api import run_sweep as run_sweep

__version__ = "0.1.0"
__all__ = ["Answer", "FcotError", "RunResult", "Student", "SweepResult", "check_data", "load_run", "run_experiment", "run_sweep"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fcot' has no attribute {name!r}")
    from fcot import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
