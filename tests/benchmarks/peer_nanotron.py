"""nanotron's first step on any machine, its process groups; on a CPU it is also the last."""

import os

if __name__ == "__main__":
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    from nanotron.parallel.context import ParallelContext

    ParallelContext(tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1)
