"""The shards still to be written, by processes that may die: each is tried again, and in the end set aside."""

from collections import Counter, deque
from collections.abc import Iterable

from preprocess.plan import Plan
from shared.errors import UserError
from shared.terminal import safe_text

TRIES = 3


class Attempts:
    """`waiting` are the numbers of the shards of `plan` that nobody is on, in the order in which they are to be tried.

    A shard whose process died waits again, behind the others: fewer are at work then. After its third death it is set
    aside, so that the others are written before the build fails.
    """

    def __init__(self, plan: Plan, numbers: Iterable[int]) -> None:
        self.waiting = deque(numbers)
        self._plan = plan
        self._deaths: Counter[int] = Counter()
        self._set_aside: dict[int, str] = {}

    def died(self, number: int, reason: str) -> None:
        """Count a death on shard `number`, and say what becomes of it."""
        self._deaths[number] += 1
        if self._deaths[number] < TRIES:
            self.waiting.append(number)
            then = f"trying it again ({self._deaths[number] + 1} of {TRIES})"
        else:
            self._set_aside[number] = reason
            then = "setting it aside"
        print(f"the worker on shard {number} ended ({reason}): {then}", flush=True)

    def finish(self) -> None:
        """Nothing, if every shard was written.

        Raises: UserError that names those set aside.
        """
        phrases = []
        for number, reason in sorted(self._set_aside.items()):
            shard = self._plan.shards[number]
            groups = f"row groups {shard.first_row_group} to {shard.first_row_group + shard.num_row_groups - 1}"
            source = safe_text(self._plan.sources[shard.source].path)
            phrases.append(f"shard {number} ({source}, {groups}) ended its worker {TRIES} times ({reason})")
        if phrases:
            raise UserError(
                f"{'; '.join(phrases)}: every other shard is written; free some memory or move the file away, "
                "then run again: it continues"
            )
