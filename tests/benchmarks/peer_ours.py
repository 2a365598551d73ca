"""Our trainer behind the gate: `python -m train run` in this process as the only rank, with the same arguments.

It is the whole loop: reader, schedule, clipping, digest, the line of metrics.
"""

import os
import socket
import sys

from tests.benchmarks.peer_gate import Gate


def main() -> None:
    """Stop where the loop hands its batch to the strategy."""
    import train.run
    from train.commands import run

    gate, build = Gate(), train.run.build_strategy

    def gated(*arguments):
        strategy = build(*arguments)
        gate.check(strategy.model)
        forward_backward = strategy.forward_backward

        def wait_first(batch):
            gate.wait()
            return forward_backward(batch)

        strategy.forward_backward = wait_first
        return strategy

    train.run.build_strategy = gated
    sys.exit(run(sys.argv[1:]))


def _alone() -> dict[str, str]:
    """What torchrun would tell the only rank of a run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return {**names, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


if __name__ == "__main__":
    os.environ.update(_alone())
    main()
