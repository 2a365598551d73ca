"""Whether a recipe fits on GPUs that are not here, how long it takes on them, and what it leaves on a disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shared.errors import ConfigError
from train.architecture import at_least
from train.config import RunConfig
from train.estimate import Duration, Speed, duration, stated_speed
from train.layout import Layout, lay_out
from train.memory import computed_split, most_kept, saved_bytes
from train.microbatch import largest
from train.peak import ACCURACY, GIB, Holding, dearest, stage_peaks
from train.traffic import Traffic, step_traffic

RUNTIME_BYTES = 2 * GIB
"""That CUDA, NCCL and cuBLAS take of a GPU for themselves: supposed, there being none to measure it on."""
MOST_RANKS = 512


@dataclass(frozen=True)
class Hardware:
    """What a run is planned for."""

    gpus: int
    memory_bytes: int
    """Of each."""
    gpu: str = "h100"
    mfu: float = 0.4
    measured: Path | None = None
    """A run whose speed is taken instead."""
    walltime_s: float | None = None


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it begins."""

    config: RunConfig
    hardware: Hardware
    layout: Layout
    parts: Sequence[range]
    stages: list[Holding]
    """The dearest moment of a rank of each stage."""
    largest_microbatch: int
    speed: Speed
    duration: Duration
    sent: Traffic
    """Bytes by kind, in a step, of the rank that sends the most."""
    driven: "Driven | None" = None

    @property
    def saved_bytes(self) -> int:
        """Of a checkpoint."""
        return saved_bytes(self.config)

    @property
    def disk_bytes(self) -> int:
        """Of all that are kept, and the one being written."""
        return most_kept(self.config) * self.saved_bytes


@dataclass(frozen=True)
class Driven:
    """What a rank that does not exist held at once, of the dearest stage, and what the formula says of it."""

    stage: int
    bytes: int
    formula_bytes: int


def make_plan(config: RunConfig, hardware: Hardware) -> Plan:
    """The plan of `config`, in the microbatch that it says, or else the largest that fits.

    Raises: ConfigError if it cannot be laid out, does not fit, or its jobs are too short.
    """
    at_least("gpus", hardware.gpus, 1)
    layout = lay_out(config.with_microbatch(1), hardware.gpus) if config.training.microbatch is None else None
    if layout is None:
        layout = lay_out(config, hardware.gpus)
    most = largest_that_fits(config, hardware)
    if most is None or (config.training.microbatch or 0) > most:
        raise ConfigError(does_not_fit(config, layout, hardware))
    config = config.with_microbatch(config.training.microbatch or most)
    layout = lay_out(config, hardware.gpus)
    speed = _speed(config, hardware)
    parts = computed_split(config, layout)
    traffic = [step_traffic(config, layout, parts, stage) for stage in range(layout.num_stages)]
    return Plan(
        config=config,
        hardware=hardware,
        layout=layout,
        parts=parts,
        stages=stage_peaks(config, layout),
        largest_microbatch=most,
        speed=speed,
        duration=duration(config, speed, hardware.walltime_s),
        sent=max(traffic, key=lambda sent: sent.total()),
    )


def _speed(config: RunConfig, hardware: Hardware) -> Speed:
    if hardware.measured is None:
        return stated_speed(config, hardware.gpus, hardware.gpu, hardware.mfu)
    from train.measured import measured_speed

    return measured_speed(config, hardware.gpus, hardware.measured)


def needed_bytes(held: Holding) -> int:
    """Of a GPU, for a rank that holds so much: with what the runtime takes, and the plan's own inaccuracy."""
    return int((1 + ACCURACY) * held.total) + RUNTIME_BYTES


def largest_that_fits(config: RunConfig, hardware: Hardware) -> int | None:
    """The largest microbatch that divides a rank's share, can be laid out and fits; None if there is none."""
    at_most = config.data.global_batch
    while found := largest(config, hardware.gpus, at_most):
        microbatch, layout = found
        if fits(config.with_microbatch(microbatch), layout, hardware):
            return microbatch
        at_most = microbatch - 1
    return None


def fits(config: RunConfig, layout: Layout, hardware: Hardware) -> bool:
    """Whether a rank of every stage has room."""
    return needed_bytes(dearest(config, layout)[1]) <= hardware.memory_bytes


def does_not_fit(config: RunConfig, layout: Layout, hardware: Hardware) -> str:
    """What a rank would hold, part by part, and which single change would do."""
    stage, held = dearest(config, layout)
    would = [f"{name} (microbatch {found})" for name, found in remedies(config, hardware)]
    return (
        f"{layout} with a microbatch of {config.microbatch} does not fit: a rank of stage {stage} holds {held}, which "
        f"with {ACCURACY:.0%} for what is not known and {RUNTIME_BYTES / GIB:g} GiB for the runtime is "
        f"{needed_bytes(held) / GIB:.1f} of {hardware.memory_bytes / GIB:.1f} GiB: "
        f"{'; or '.join(would) + ' would' if would else 'a smaller model is wanted'}"
    )


def remedies(config: RunConfig, hardware: Hardware) -> Iterator[tuple[str, int]]:
    """Changes of one thing with which it would fit, and the largest microbatch then."""
    free = replace(config, training=replace(config.training, microbatch=None))
    for name, changed, gpus in _changes(free, hardware.gpus):
        found = largest_that_fits(changed, replace(hardware, gpus=gpus))
        if found is not None:
            yield name, found


def _changes(config: RunConfig, gpus: int) -> Iterator[tuple[str, RunConfig, int]]:
    yield "--training.microbatch None", config, gpus
    full = replace(config, training=replace(config.training, activation_checkpointing="full", checkpoint_stride=1))
    yield "--training.activation-checkpointing full", full, gpus
    if config.strategy == "pipeline":
        yield "--strategy fsdp", replace(config, strategy="fsdp"), gpus
        sharded = replace(config.pipeline, data_parallel="sharded")
        yield "--pipeline.data-parallel sharded", replace(config, pipeline=sharded), gpus
    more = 2 * gpus
    while more <= MOST_RANKS:
        if largest(full, more, config.data.global_batch):
            yield f"--gpus {more}", config, more
            yield f"--gpus {more} --training.activation-checkpointing full", full, more
        more *= 2


def drive_dearest(plan: Plan) -> Driven:
    """One step of the dearest stage on ranks that do not exist, in as few microbatches as hold all there is."""
    from train.dry_run import drive

    config, layout = plan.config, plan.layout
    if config.training.precision == "float8":  # takes a GPU; what is kept of it is in bf16 as well
        config = replace(config, training=replace(config.training, precision="bf16"))
    few = replace(layout, microbatches=min(2 * layout.num_stages, layout.microbatches))
    held = stage_peaks(config, few, "cpu")
    stage = max(range(len(held)), key=lambda number: held[number].total)
    return Driven(stage, drive(config, few, stage).peak_bytes, held[stage].total)
