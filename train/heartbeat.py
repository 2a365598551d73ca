"""Where each rank is: a small file in RUN/heartbeats that it overwrites at every phase of a step, for anybody to read.

A record has three parts, each written by one `pwrite`: who the rank is, what its watchdog thread says each second, and
the beat. Nothing is synced: only processes that live at the same time read it, through the file system that they share.
"""

import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from train.patience import PHASES, SETUP, Patience

HEARTBEATS_NAME = "heartbeats"
OWNER = struct.Struct("<q64s")  # process id, host
PULSE = struct.Struct("<qddd?")  # ticks, wall time, seconds of silence, limit of these, whether it waits
BEAT = struct.Struct("<qqqddd")  # beats, step, phase, wall time, own work and its spread
PULSE_AT, BEAT_AT = OWNER.size, OWNER.size + PULSE.size
SIZE = BEAT_AT + BEAT.size


@dataclass(frozen=True)
class Record:
    """What a rank's file says."""

    rank: int
    pid: int
    host: str
    ticks: int
    """Of its watchdog thread, which counts as long as the process runs."""
    pulse_time: float
    """Wall time of the last tick."""
    silent_s: float
    """For how long it has not beaten, up to that tick."""
    limit_s: float
    """After so many seconds of silence it is hung."""
    waits: bool
    """Whether its main thread is in a function of torch.distributed."""
    beats: int
    """Since the start, equally many on all ranks at one place of the loop: who has fewer is behind."""
    step: int
    phase: str
    time: float
    """Wall time of the last beat."""
    own_s: float
    """Seconds of a step that were this rank's own, lately (stragglers.py); 0 if not known yet."""
    spread_s: float

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.phase} of step {self.step}" if self.step else self.phase


class Heartbeat:
    """The file of this rank. Only the main thread beats, only the watchdog thread gives the pulse."""

    def __init__(self, directory: Path, rank: int, patience: Patience) -> None:
        self.patience = patience
        self.beats, self.step, self.phase = 0, 0, SETUP
        self.own_work = 0.0, 0.0
        self._began = time.monotonic()
        self._file = os.open(path_of(directory, rank), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.pwrite(self._file, OWNER.pack(os.getpid(), socket.gethostname().encode()[:64]), 0)
        self.pulse(0, 0.0, waits=False)
        self._write()

    def beat(self, step: int, phase: str) -> None:
        """This rank begins a phase. Every rank must call it equally often; takes microseconds."""
        now = time.monotonic()
        self.patience.spent(self.step, self.phase, now - self._began)
        self.step, self.phase, self._began = step, phase, now
        self.beats += 1
        self._write()

    def pulse(self, ticks: int, silent_s: float, waits: bool) -> None:
        """The process runs, whatever its main thread does."""
        limit_s = self.patience.limit_s(self.phase)
        os.pwrite(self._file, PULSE.pack(ticks, time.time(), silent_s, limit_s, waits), PULSE_AT)

    def close(self) -> None:
        """Leave the file as it is."""
        os.close(self._file)

    def _write(self) -> None:
        fields = self.beats, self.step, PHASES.index(self.phase), time.time(), *self.own_work
        os.pwrite(self._file, BEAT.pack(*fields), BEAT_AT)


def path_of(directory: Path, rank: int) -> Path:
    """The file of a rank."""
    return directory / f"rank-{rank}"


def read_heartbeat(directory: Path, rank: int) -> Record:
    """What a rank's file says; of a rank that has not written it in full, that it never ticked."""
    path = path_of(directory, rank)
    data = path.read_bytes() if path.exists() else b""
    if len(data) != SIZE:
        return Record(rank, 0, "an unknown host", -1, 0.0, 0.0, 0.0, False, 0, 0, SETUP, 0.0, 0.0, 0.0)
    pid, host = OWNER.unpack_from(data)
    beats, step, phase, began, own_s, spread_s = BEAT.unpack_from(data, BEAT_AT)
    ticks, pulsed, silent_s, limit_s, waits = PULSE.unpack_from(data, PULSE_AT)
    name = host.rstrip(b"\0").decode(errors="replace")
    pulse = ticks, pulsed, silent_s, limit_s, waits
    return Record(rank, pid, name, *pulse, beats, step, PHASES[phase], began, own_s, spread_s)


def read_heartbeats(directory: Path) -> list[Record]:
    """The records of all ranks of the last start, in their order."""
    ranks = sorted(int(path.name.removeprefix("rank-")) for path in directory.glob("rank-*"))
    return [read_heartbeat(directory, rank) for rank in ranks]
