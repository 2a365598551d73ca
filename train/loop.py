"""The training loop. It does not know which strategy it drives, and it holds no state but `Progress`."""

from train.checkpoint import Progress
from train.parts import Parts
from train.patience import AGREE, SAVE, VALIDATE
from train.rollback import after_spike
from train.step import take_step
from train.validation import is_validated, validation_record


def train(parts: Parts, progress: Progress, last_step: int) -> Progress:
    """Train until `last_step` steps are done or a signal asks to stop; what was reached is saved.

    Raises: UserError if more steps were not finite than the recipe puts up with; SaveError if the end of it cannot be
    saved.
    """
    config, checkpoints = parts.config, parts.checkpoints
    while progress.step < last_step and not parts.stop.agreed():
        progress, record = take_step(parts, progress)
        checkpoints.check()
        parts.stop.pace.stepped(record["step_s"])
        if is_validated(config, progress.step):
            parts.heartbeat.beat(progress.step, VALIDATE)
            record |= validation_record(parts.backoff, parts.reader, parts.stop.agreed)
        parts.log.step(record, is_last=progress.step == last_step)
        if (scores := parts.spikes.seen(record)) and (earlier := after_spike(parts, progress, scores)):
            progress = earlier
        elif config.checkpoint.every is not None and progress.step % config.checkpoint.every == 0:
            parts.heartbeat.beat(progress.step, SAVE)
            checkpoints.save(parts.strategy.model, parts.optimizer, progress)
        parts.heartbeat.beat(progress.step, AGREE)
    parts.heartbeat.beat(progress.step, SAVE)
    checkpoints.finish(parts.strategy.model, parts.optimizer, progress)
    return progress
