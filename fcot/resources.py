"""Files that come with the package."""

from __future__ import annotations

from pathlib import Path

# Beside the package in a wheel, beside it in the repository.
CONF = next(folder for folder in (Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf") if folder.is_dir())
PRICES = CONF / "prices.yaml"
