"""How a run or one of its ranks ends, as exit codes."""

OUT_OF_MEMORY = 71
"""Of a rank: start all of them again, with the smaller microbatch that was written down."""
HUNG = 72
"""Of a rank: some rank did not move; start all of them again."""
REQUEUE = 75
"""Of the command: stopped early and saved; the same command continues (EX_TEMPFAIL of sysexits.h)."""
