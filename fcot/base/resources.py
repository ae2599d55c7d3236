"""Files that come with the package."""

from __future__ import annotations

from pathlib import Path

# In a wheel, conf/ is inside the package; in the repository, it is next to the package.
_PACKAGE = Path(__file__).parent.parent
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
PRICES = CONF / "prices.yaml"
