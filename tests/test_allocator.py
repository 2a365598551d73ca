"""What a process frees it keeps, if it was told to."""

import subprocess
import sys

import pytest

REPEATED = """
import resource
import numpy as np
from shared.allocator import keep_freed_memory
{told}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(9):
    if turn == 1:
        before = faults()
    np.ones(5_000_000)  # 40 MB, freed at once
print(faults() - before)
"""


def page_faults(told):
    """Of eight times the same array, after a first one."""
    done = subprocess.run(
        [sys.executable, "-c", REPEATED.format(told=told)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_freed_takes_no_page_faults_again():
    assert page_faults("keep_freed_memory()") < page_faults("") / 4
    assert page_faults("keep_freed_memory(1 << 20)") > page_faults("keep_freed_memory()") * 4
