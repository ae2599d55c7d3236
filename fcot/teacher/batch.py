from typing import Any


class BatchTeacher: ...


def buy_in_batches(*a: Any) -> None: ...
