"""What a student's vocabulary can write: curation rejects the rest."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from fcot.config.schema import Config

_SPECIAL = re.compile(r"<[^\s<>]{1,40}>|<\||\[[A-Za-z_]{1,20}\]")  # what special tokens are called, whatever the tokenizer


def writable(config: Config) -> Callable[[str], bool] | None:
    """Whether a local student's vocabulary can write a text that names special tokens; the tokenizer is loaded for the first of these."""
    student = config.student
    if not student.pretrained:
        return None  # the server knows, or the tokenizer is trained on the texts

    def check(text: str) -> bool:
        if not _SPECIAL.search(unicodedata.normalize("NFKC", text)):
            return True
        from fcot.decoding.encoding import encoder_of
        from fcot.student.loading import load_tokenizer

        return encoder_of(load_tokenizer(student.path or str(student.hub_id), student.revision)).representable(text)

    return check
