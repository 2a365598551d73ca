"""What run.py wires together for the loop, a step and what recovers them."""

from dataclasses import dataclass

from torch.optim import Optimizer

from train.backoff import Backoff
from train.checkpoint import Checkpoints
from train.config import RunConfig
from train.data import ChunkReader
from train.heartbeat import Heartbeat
from train.metrics import RunLog
from train.provenance import Provenance
from train.recovery import StopRequest
from train.source_losses import SourceLosses
from train.spikes import Spikes
from train.stragglers import OwnWork
from train.strategy import Strategy


@dataclass(frozen=True)
class Parts:
    """The parts of a run on one rank."""

    config: RunConfig
    strategy: Strategy
    backoff: Backoff
    optimizer: Optimizer
    reader: ChunkReader
    checkpoints: Checkpoints
    log: RunLog
    stop: StopRequest
    heartbeat: Heartbeat
    own_work: OwnWork
    source_losses: SourceLosses
    spikes: Spikes
    provenance: Provenance
    least_token_s: float  # what a token would take if all ranks did nothing but multiply, at their measured peak
