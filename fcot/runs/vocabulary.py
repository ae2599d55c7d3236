"""Whether a student's vocabulary can write a text. Curation rejects rationales that it cannot write."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from fcot.config.schema import Config

_SPECIAL = re.compile(r"<[^\s<>]{1,40}>|<\||\[[A-Za-z_]{1,20}\]")  # the forms of special tokens' names, for any tokenizer


def writable(config: Config) -> Callable[[str], bool] | None:
    """The check of texts against a pretrained student's vocabulary; None for other students, which can write any text.

    The check loads the tokenizer when it meets the first text that may contain a special token.
    """
    student = config.student
    if not student.pretrained:
        return None  # the server handles such texts, or the tokenizer is trained on them

    def check(text: str) -> bool:
        if not _SPECIAL.search(unicodedata.normalize("NFKC", text)):
            return True
        from fcot.decoding.encoding import encoder_of
        from fcot.student.loading import load_tokenizer

        return encoder_of(load_tokenizer(student.path or str(student.hub_id), student.revision)).representable(text)

    return check
