"""The training loop. It does not know which strategy it drives, and it holds no state but `Progress`."""

from train.checkpoint import Progress
from train.parts import Parts
from train.patience import AGREE, SAVE, VALIDATE
from train.rollback import after_spike
from train.step import take_step
from train.validation import validation_record


def train(parts: Parts, progress: Progress, last_step: int) -> Progress:
    """Train until `last_step` steps are done or a signal asks to stop; what was reached is saved.

    Raises: UserError if more steps were not finite than the recipe puts up with; SaveError if the end of it cannot be
    saved.
    """
    config, checkpoints = parts.config, parts.checkpoints
    while progress.step < last_step and not parts.stop.agreed():
        progress, record = take_step(parts, progress)
        checkpoints.check()
        if progress.step == config.total_steps or _is_due(progress.step, config.training.validate_every):
            parts.heartbeat.beat(progress.step, VALIDATE)
            record |= validation_record(parts.strategy, parts.reader)
        parts.log.step(record, is_last=progress.step == last_step)
        if (scores := parts.spikes.seen(record)) and (earlier := after_spike(parts, progress, scores)):
            progress = earlier
        elif _is_due(progress.step, config.checkpoint.every):
            parts.heartbeat.beat(progress.step, SAVE)
            checkpoints.save(parts.strategy.model, parts.optimizer, progress)
        parts.heartbeat.beat(progress.step, AGREE)
    parts.heartbeat.beat(progress.step, SAVE)
    checkpoints.finish(parts.strategy.model, parts.optimizer, progress)
    return progress


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
