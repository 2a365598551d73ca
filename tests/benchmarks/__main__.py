"""`make bench`: what this machine does, each against a bare loop in the same run."""

import os
import platform

from rich.console import Console
from rich.table import Table

from tests.benchmarks import learning, reading, tokenizing, training


def main() -> None:
    """Measure everything and print one table."""
    trained, share = training.measure()
    rows = [*tokenizing.measure(), learning.measure(), reading.measure(), trained]
    table = Table("what", "ours", "bare loop", "unit", "ratio", title=f"{os.cpu_count()} cores, {platform.machine()}")
    for row in rows:
        table.add_row(*row.row())
    Console().print(table)
    print(f"training multiplies at {share:.0%} of the measured matrix product peak")


if __name__ == "__main__":
    main()
