"""Two nodes that meet by rendezvous are one run: two torchrun agents, each with a process of its own."""

import os
import socket
import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY, run_cli
from tests.train_helpers import random_tokens, write_tokens
from train.records import read_metrics

OPTIONS = {
    "model.hidden-size": 32,
    "model.num-hidden-layers": 2,
    "model.num-attention-heads": 2,
    "model.num-key-value-heads": 1,
    "model.intermediate-size": 48,
    "data.sequence-length": 16,
    "data.global-batch": 4,
    "data.validation-chunks": 4,
    "training.microbatch": 1,
    "training.total-steps": 3,
    "optimizer.warmup-steps": 1,
}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_that_meet_by_rendezvous_train_as_one(tmp_path):
    tokens = tmp_path / "tokens"
    write_tokens(tokens, [random_tokens(600)], vocab_size=64)
    options = [str(word) for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=test"]
    agent = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--local-addr=127.0.0.1", *meeting]
    command = [sys.executable, *agent, "-m", "train", "run", tokens, tmp_path / "nodes", *options]
    nodes = [
        subprocess.Popen(
            [*command, "--strategy", "pipeline"],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    messages = [node.communicate(timeout=120)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], messages
    alone = run_cli("train", "run", tokens, tmp_path / "alone", *options, "--nproc", 1, "--strategy", "fsdp")
    assert alone.returncode == 0, alone.stderr
    together, apart = (read_metrics(tmp_path / name) for name in ("nodes", "alone"))
    assert [record["data_digest"] for record in together] == [record["data_digest"] for record in apart]
    for key in ("loss", "grad_norm"):
        assert [record[key] for record in together] == pytest.approx([record[key] for record in apart], rel=1e-5)
    assert "bubble" in together[0]
