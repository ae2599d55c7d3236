"""Where runs, sweeps and the completion store are: the defaults from the environment, and folders by their names."""

from __future__ import annotations

import os
from pathlib import Path

OUTPUT_DIR, STORE = "FCOT_OUTPUT_DIR", "FCOT_STORE"  # environment variables


def output_dir() -> Path:
    """The output folder of commands that get no ``output_dir``: ``$FCOT_OUTPUT_DIR``, else ``outputs``."""
    return Path(os.environ.get(OUTPUT_DIR) or "outputs")


def store_dir() -> Path:
    """The completion store of commands that get no ``store_dir``: ``$FCOT_STORE``, else ``store`` in the output folder."""
    return Path(os.environ.get(STORE) or output_dir() / "store")


def locate(folder: Path) -> Path:
    """The folder itself if it exists, else the folder of that name in the output folder: a run, a sweep or another folder.

    A folder that is in none of these places is returned as it is, for the caller's message.
    """
    if folder.exists() or folder.is_absolute():
        return folder
    places = (output_dir() / part / folder for part in ("runs", "sweeps", ""))
    return next((place for place in places if place.exists()), folder)
