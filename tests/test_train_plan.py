"""Whether a recipe fits, and how long it takes: the arithmetic, what is said where it does not, and the command."""

import json
from dataclasses import replace

import pytest

from shared.command import run_command
from shared.config import unstructure
from shared.duration import walltime
from shared.errors import ConfigError, UserError
from shared.storage import write_sealed
from tests.helpers import run_cli
from tests.train_helpers import random_tokens, recipe, write_tokens
from train.commands import COMMANDS
from train.config import RunConfig, load_recipe
from train.deadline import SAVE_BYTES_PER_S
from train.estimate import START_S, Speed, duration, peak_flops, stated_speed, validation_s, waiting_s
from train.layout import flops_per_token, lay_out
from train.measured import measured_speed
from train.memory import saved_bytes
from train.peak import GIB, Holding, dearest
from train.plan import RUNTIME_BYTES, Hardware, drive_dearest, fits, largest_that_fits, make_plan, needed_bytes
from train.run_files import RUN_NAME

SHAPE = {
    "model__vocab_size": 2048,
    "model__max_position_embeddings": 512,
    "data__sequence_length": 256,
    "data__global_batch": 64,
    "data__validation_chunks": 0,
    "training__microbatch": None,
    "training__total_steps": 1000,
}
SLOW = Speed(64 * 256, "a second a step")


def planned(gpus=2, memory_bytes=80 * GIB, hardware=None, **changes):
    return make_plan(
        recipe(**{**SHAPE, **changes}), replace(hardware or Hardware(1, 1), gpus=gpus, memory_bytes=memory_bytes)
    )


def argonne() -> RunConfig:
    config = load_recipe("argonne-2.0")
    return replace(config, model=config.model.resolved(151_665, 0))


# what fits


def test_the_largest_microbatch_fits_and_the_next_one_that_divides_does_not():
    config = recipe(**SHAPE)
    for microbatch in (1, 4, 16):
        given = config.with_microbatch(microbatch)
        memory = needed_bytes(dearest(given, lay_out(given, 2))[1])
        assert largest_that_fits(config, Hardware(2, memory)) == microbatch
        assert (largest_that_fits(config, Hardware(2, memory - 1)) or 0) < microbatch
        assert planned(memory_bytes=memory).config.microbatch == microbatch


def test_a_gpu_has_room_for_what_the_runtime_takes_and_for_what_the_formula_may_miss():
    held = Holding(weights=10 * GIB)
    assert needed_bytes(held) == 11 * GIB + RUNTIME_BYTES


def test_the_recipes_microbatch_is_planned_where_it_says_one():
    plan = planned(training__microbatch=4)
    assert (plan.config.microbatch, plan.largest_microbatch, plan.layout.microbatches) == (4, 32, 8)


def test_what_does_not_fit_is_told_part_by_part_with_what_would():
    config = replace(argonne(), strategy="fsdp")
    with pytest.raises(ConfigError) as raised:
        make_plan(config, Hardware(8, 24 * GIB))
    said = str(raised.value)
    assert "\n" not in said
    assert said.startswith(
        "fsdp over 8 ranks, 64 microbatches with a microbatch of 1 does not fit: a rank of stage 0 holds "
    )
    for part in ("weights", "gathered", "gradients", "optimizer", "activations"):
        assert f"{part} " in said
    assert " of 24.0 GiB: " in said
    name = next(word for word in said.split("24.0 GiB: ")[1].split("; or ") if word.startswith("--gpus"))
    gpus = int(name.split()[1])
    assert largest_that_fits(config, Hardware(gpus, 24 * GIB)) is not None


def test_a_microbatch_that_is_too_large_is_told_with_the_one_that_fits():
    memory = needed_bytes(dearest(recipe(**{**SHAPE, "training__microbatch": 8}), lay_out(recipe(**SHAPE), 2))[1])
    with pytest.raises(ConfigError, match=r"--training.microbatch None \(microbatch 8\)"):
        planned(memory_bytes=memory, training__microbatch=32)


def test_what_no_change_makes_fit_wants_a_smaller_model():
    with pytest.raises(ConfigError, match=r"of 0\.0 GiB: a smaller model is wanted"):
        planned(memory_bytes=1)


def test_what_would_fit_fits():
    from train.plan import remedies

    config, hardware = argonne(), Hardware(8, 40 * GIB)
    found = list(remedies(config, hardware))
    assert found
    for name, microbatch in found:
        if name.startswith("--gpus") and name.endswith(" full"):
            gpus = int(name.split()[1])
            assert fits(config.with_microbatch(microbatch), lay_out(config.with_microbatch(microbatch), gpus), hardware)


# ranks that do not exist


@pytest.mark.parametrize("strategy", ["fsdp", "pipeline"])
def test_five_hundred_and_twelve_ranks_that_do_not_exist_hold_what_is_planned(strategy):
    changes = {"pipeline__stages": 2, "data__global_batch": 1024, "data__sequence_length": 64}
    plan = planned(512, strategy=strategy, **changes)
    assert plan.layout.num_stages * plan.layout.dp_size == 512
    driven = drive_dearest(plan)
    assert driven.formula_bytes == pytest.approx(driven.bytes, rel=0.1)


# how long it takes


@pytest.mark.parametrize(
    ("gpu", "precision", "message"),
    [
        ("abacus", "bf16", "gpu 'abacus' is not known: one of a100, h100"),
        ("a100", "float8", "gpu a100 does not multiply in float8: fp32, bf16 is wanted"),
    ],
)
def test_a_gpu_that_is_not_known_is_told(gpu, precision, message):
    with pytest.raises(ConfigError, match=message):
        peak_flops(gpu, precision)


def test_a_stated_share_of_the_peak_is_that_many_operations():
    config = recipe(training__precision="bf16")
    speed = stated_speed(config, 8, "h100", 0.5)
    assert speed.tokens_per_s * flops_per_token(config.model, 16) == pytest.approx(8 * 0.5 * 989e12)
    for wrong in (0.0, 1.5):
        with pytest.raises(ConfigError, match=f"mfu {wrong} is out of range: more than 0 and at most 1 is wanted"):
            stated_speed(config, 8, "h100", wrong)


@pytest.mark.parametrize(
    ("every", "is_asynchronous", "seconds"),
    [
        (10, False, 2.0),  # of each of ten steps, for a save of 20
        (10, True, 1.0),  # ten steps take 10
        (100, True, 0.0),  # it ends before the next begins
    ],
)
def test_a_save_holds_up_the_steps_until_the_next(every, is_asynchronous, seconds):
    config = recipe(checkpoint__every=every, checkpoint__asynchronous=is_asynchronous)
    assert waiting_s(config, 1.0, 20.0) == pytest.approx(seconds)


def test_validation_is_a_forward_pass_now_and_then():
    config = recipe(**{**SHAPE, "data__validation_chunks": 64, "training__validate_every": 10})
    assert validation_s(config, SLOW) == pytest.approx(1 / 3 / 10)


def test_jobs_begin_anew_and_stop_in_time():
    config = recipe(**SHAPE)
    whole = duration(config, SLOW, None)
    assert (whole.step_s, whole.total_s, whole.jobs) == (1.0, pytest.approx(1000.0), None)
    saves_s = 2 * (10 + saved_bytes(config) / SAVE_BYTES_PER_S)
    kept_s = saves_s + 1 + config.recovery.deadline_margin_s
    cut = duration(config, SLOW, START_S + kept_s + 300)
    assert (cut.kept_s, cut.job_s, cut.jobs) == (pytest.approx(kept_s), pytest.approx(300.0), 4)


def test_a_job_too_short_for_a_step_is_told():
    with pytest.raises(
        ConfigError, match=r"walltime of 60 s is too short: 120 s to start, .* at least \d+ s are wanted"
    ):
        duration(recipe(**SHAPE), SLOW, 60.0)


@pytest.mark.parametrize("text", ["8", "8h", "8:00:00:00", "2026-11-30T18:00:00"])
def test_a_walltime_that_is_none_is_told(text):
    with pytest.raises(ConfigError, match=f"walltime '{text}' is no duration: hours:minutes or hours:minutes:seconds"):
        walltime(text)


# from a run that was measured


def write_run(directory, speeds, **start):
    directory.mkdir()
    write_sealed(directory / RUN_NAME, {"identity": {"recipe": unstructure(recipe(**SHAPE))}})
    events = [{"event": "start", "step": 0, **start}, {"event": "save", "size_bytes": 500, "save_s": 2.0}]
    (directory / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    records = [{"step": step, "tokens_per_s": speed} for step, speed in enumerate(speeds, start=1)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


def test_as_many_operations_are_done_as_a_run_has_done_but_for_its_first_step(tmp_path):
    run = write_run(tmp_path / "run", [1.0, 100.0, 300.0, 200.0], ranks=4)
    same, larger = recipe(**SHAPE), recipe(**SHAPE, model__num_hidden_layers=8)
    assert measured_speed(same, 8, run).tokens_per_s == pytest.approx(400.0)
    assert measured_speed(same, 8, run).save_bytes_per_s == 250.0
    ratio = flops_per_token(same.model, 256) / flops_per_token(larger.model, 256)
    assert measured_speed(larger, 4, run).tokens_per_s == pytest.approx(200.0 * ratio)
    assert planned(hardware=Hardware(1, 1, measured=run)).speed == measured_speed(recipe(**SHAPE), 2, run)


@pytest.mark.parametrize(
    ("speeds", "start", "message"),
    [
        ([1.0, 2.0], {}, "does not tell of how many ranks its last start was"),
        ([1.0], {"ranks": 2}, "has done no two steps since its last start: let it do some more, or give --mfu"),
    ],
)
def test_a_run_that_does_not_tell_its_speed_is_told(tmp_path, speeds, start, message):
    with pytest.raises(UserError, match=message):
        measured_speed(recipe(**SHAPE), 2, write_run(tmp_path / "run", speeds, **start))


def test_a_directory_that_is_no_run_is_told(tmp_path):
    with pytest.raises(UserError, match=r"is not a run \(no run.json\): name the directory of one"):
        measured_speed(recipe(**SHAPE), 2, tmp_path)


# the command


def said(capsys, *arguments):
    code = run_command("train", COMMANDS, ["plan", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_command_says_everything_for_people_and_for_programs(tmp_path, capsys):
    tokens = tmp_path / "tokens"
    index = write_tokens(tokens, [random_tokens(400)], vocab_size=2048)
    options = ("tiny", "--gpus", 2, "--gpu-memory", 40, "--walltime", "1:00", "--tokens", tokens)
    code, text, _ = said(capsys, *options, "--mfu", 0.3, "--gpu", "a100")
    assert code == 0
    starts = [
        "3M parameters on 2 GPUs of 40 GiB: fsdp over 2 ranks, 2 microbatches",
        "GiB at the peak",
        "a rank",
        "fits: ",
    ]
    starts += [
        "driven: ",
        "microbatch: 4; the largest that fits is 8",
        "speed: ",
        "target: ",
        "time: ",
        "disk: ",
        "network",
    ]
    assert [line.strip().startswith(start) for line, start in zip(text.splitlines(), starts, strict=True)] == 11 * [
        True
    ]
    assert "an MFU of 30% of 19.5 TFLOP/s (a100, fp32)" in text
    assert f"{200 * 16 * 256 / index.num_tokens:.2f} times the dataset" in text
    code, text, _ = said(capsys, *options, "--json")
    found = json.loads(text)
    assert code == 0
    assert found["stages"][0]["total"] == sum(found["stages"][0][part] for part in vars(Holding()))
    assert (found["microbatch"], found["jobs"], found["steps"]) == (4, 1, 200)


def test_an_option_of_the_recipe_reaches_the_plan(capsys):
    found = {}
    for strategy in ("fsdp", "pipeline"):
        options = ("--strategy", strategy, "--training.microbatch", 2, "--vocabulary", 512)
        found[strategy] = json.loads(said(capsys, "tiny", "--gpus", 2, *options, "--json")[1])
    assert [len(plan["stages"]) for plan in found.values()] == [1, 2]
    assert {plan["microbatch"] for plan in found.values()} == {2}


def test_a_run_that_was_measured_tells_the_speed(tmp_path, capsys):
    run = write_run(tmp_path / "run", [1.0, 100.0, 300.0], ranks=2)
    code, text, _ = said(capsys, "tiny", "--gpus", 2, "--vocabulary", 512, "--measured", run)
    assert code == 0
    assert f"TFLOP/s of each of the 2 ranks of {run}\n" in text


def test_a_mistake_is_one_line(capsys):
    code, _, error = said(capsys, "tiny", "--gpus", 3)
    assert code == 2
    assert error.startswith("error: data.global_batch 16 does not divide")


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf"])
def test_a_memory_that_is_no_size_is_told(capsys, size):
    code, _, error = said(capsys, "tiny", "--gpus", 4, "--gpu-memory", size)
    assert code == 2
    assert error == f"error: gpu_memory {float(size)} is no size: GiB of a GPU, more than 0, are wanted\n"


@pytest.mark.slow
def test_argonne_is_planned_in_a_process_of_its_own():
    done = run_cli("train", "plan", "argonne-2.0", "--gpus", 64, "--pipeline.stages", 8, "--walltime", "8:00")
    assert done.returncode == 0, done.stderr
    assert "parameters on 64 GPUs of 80 GiB: pipeline of 8 stages x 8 data-parallel" in done.stdout
