"""A run from its request to its directory: in this process, and as a user starts it."""

import dataclasses
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch

from preprocess.config import PackSettings
from preprocess.pack import pack
from shared.command import run_command
from shared.cursor import ReadingOrder
from shared.errors import ConfigError, FormatError, UserError
from shared.format import INDEX_NAME, TOKENIZER_NAME, read_index
from shared.locks import exclusive
from shared.packing import PackingName, read_packing, write_packing
from shared.storage import read_sealed
from tests.helpers import REPOSITORY, run_cli
from tests.train_helpers import random_tokens, recipe, unasked, write_tokens
from train.commands import report, run, sample
from train.config import (
    CheckpointConfig,
    DataConfig,
    FullyShardedConfig,
    OptimizerConfig,
    PipelineConfig,
    RecoveryConfig,
    RunConfig,
    TrainingConfig,
)
from train.data import ChunkReader, chain_digest
from train.heartbeat import HEARTBEATS_NAME, read_heartbeat
from train.launch import default_processes, leave_message
from train.loss import IGNORED
from train.preflight import prepare
from train.ranks import ERROR_FILE
from train.records import read_metrics
from train.recovery import StopRequest
from train.request import RunRequest
from train.run import execute
from train.run_files import RUN_NAME
from train.sample import Sampling, load_model
from train.signals import SIGNALS
from train.views import open_view

CPU = torch.device("cpu")
KEYS = {
    *("lr", "lr_matrices", "lr_embeddings", "lr_vectors"),
    *("step", "loss", "grad_norm", "tokens", "tokens_per_s", "data_wait_s", "mfu"),
    *("epoch", "shard", "offset", "data_digest"),
}
TIMES = {"tokens_per_s", "data_wait_s", "mfu", "step_s", "validation_s"}


# in this process


@pytest.fixture
def stop(process_group):
    """Signals are remembered during the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield StopRequest()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokens")
    shards, rows = [random_tokens(400), random_tokens(400, seed=1)], [[10, 3, 7] * 15 + [100], [16, 4] * 15 + [100]]
    write_tokens(directory, shards, vocab_size=64, rows=rows)
    write_tokens(directory / "validation", [random_tokens(200, seed=2)], vocab_size=64)
    for method in ("best-fit", "whole"):
        pack(directory, PackSettings(16, method))
    return directory


def executed(tokens, directory, stop, stop_step=None, **changes):
    """What a run has done and left behind."""
    prepared = prepare(RunRequest(tokens, directory, recipe(**changes), stop_step), 1)
    progress = execute(prepared, CPU, stop)
    records = read_metrics(directory)
    return {
        "progress": progress,
        "records": [{key: value for key, value in record.items() if key not in TIMES} for record in records],
        "checkpoints": sorted(path.name for path in (directory / "checkpoints").iterdir()),
        "events": [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()],
        "total_steps": read_sealed(directory / RUN_NAME)["total_steps"],
        "patience": read_heartbeat(directory / HEARTBEATS_NAME, 0).limit_s,
    }


def column(outcome, key):
    return [record.get(key) for record in outcome["records"]]


def losses(outcome):
    return column(outcome, "loss")


def data(outcome):
    return column(outcome, "data_digest")


def rates(outcome):
    return column(outcome, "lr")


def embedding_rates(outcome):
    return column(outcome, "lr_embeddings")


def validated(outcome):
    return [record["step"] for record in outcome["records"] if "validation_loss" in record]


def validation_losses(outcome):
    return column(outcome, "validation_loss")


def saved(outcome):
    return outcome["checkpoints"]


def copied(outcome):
    return [event["copy_bytes"] for event in outcome["events"] if event["event"] == "save"]


def run_file(outcome):
    return outcome["total_steps"]


def warnings(outcome):
    return [event["problem"] for event in outcome["events"] if event["event"] == "warning"]


def patience(outcome):
    return outcome["patience"]


def layout(outcome):
    return outcome["events"][0]["layout"]


OPTIONS = [
    ("data__sequence_length", 8, data),
    ("data__global_batch", 2, data),
    ("data__order", "natural", data),
    ("data__shuffle_length", 32, data),
    ("data__packing", "best-fit", data),
    ("data__document_mask", True, losses),
    ("data__restart_positions", True, losses),
    ("data__validation_chunks", 8, validation_losses),
    ("data__validation", "split", validation_losses),
    ("data__validation", "split", data),
    ("data__sources", [{"name": "validation", "weight": 1.0}], data),
    ("optimizer__name", "muon", losses),
    ("optimizer__learning_rate", 2e-2, rates),
    ("optimizer__min_learning_rate", 2e-3, rates),
    ("optimizer__warmup_steps", 1, rates),
    ("optimizer__schedule", "constant", rates),
    ("optimizer__schedule", "wsd", rates),
    ("optimizer__embedding_learning_rate_factor", 2.0, losses),
    ("optimizer__embedding_learning_rate_factor", 2.0, embedding_rates),
    ("optimizer__weight_decay", 0.9, losses),
    ("optimizer__decay_embeddings", False, losses),
    ("optimizer__beta1", 0.5, losses),
    ("optimizer__beta2", 0.5, losses),
    ("optimizer__epsilon", 1e-2, losses),
    ("optimizer__max_grad_norm", 1e-3, losses),
    ("training__total_steps", 3, rates),
    ("training__microbatch", 4, layout),
    ("training__precision", "bf16", losses),
    ("training__z_loss", 0.1, losses),
    ("training__seed", 1, losses),
    ("training__seed", 1, data),
    ("training__validate_every", 2, validated),
    ("checkpoint__every", 1, saved),
    ("checkpoint__keep", 1, saved),
    ("checkpoint__asynchronous", False, copied),
    ("recovery__hang_timeout_s", None, patience),
    ("strategy", "pipeline", layout),
]
DEPENDENT_OPTIONS = [
    ({"optimizer__schedule": "wsd"}, "optimizer__cooldown_fraction", 0.5, rates),
    ({"optimizer__name": "muon"}, "optimizer__momentum", 0.5, losses),
    ({"training__total_steps": None, "training__total_tokens": 256}, "training__total_tokens", 129, rates),
    ({"training__total_steps": None, "training__total_tokens": 256}, "training__total_tokens", 129, run_file),
]

ON_SEVERAL_RANKS = {  # tests/test_parallel.py
    *("pipeline__stages", "pipeline__schedule", "pipeline__stages_per_rank", "pipeline__split"),
    *("pipeline__data_parallel", "fsdp__reshard_after_forward", "fsdp__shard_size", "fsdp__prefetch"),
}


TESTED_ELSEWHERE = {
    *("training__activation_checkpointing", "training__checkpoint_stride"),  # tests/test_recompute.py
    "training__compile",  # tests/test_compilation.py
    *("recovery__max_skipped_steps", "recovery__spike_score", "recovery__rollback_steps"),  # tests/test_step.py
    "recovery__deadline_margin_s",  # tests/test_deadline.py
}
REQUEST = {  # what a user asks for beside the recipe, and where that is shown to change something
    "stop_step": "tests/test_run.py",
    "profile": "tests/test_profiling.py",
    "memory_snapshot": "tests/test_profiling.py",
    "deadline": "tests/test_deadline.py",
    "steal": "tests/test_launch.py",
    "output": "tests/test_console.py",
    "begin_from": "tests/test_beginning.py",
    "reset_optimizer": "tests/test_beginning.py",
    "loggers": "tests/test_loggers.py",
}


@pytest.fixture(scope="module")
def default(tokens, tmp_path_factory, process_group):
    """The run that the others differ from."""
    return executed(tokens, tmp_path_factory.mktemp("default") / "run", unasked(), checkpoint__every=2)


@pytest.mark.parametrize(
    ("option", "value", "observe"), OPTIONS, ids=[f"{name}-{observe.__name__}" for name, _, observe in OPTIONS]
)
def test_every_option_of_a_recipe_changes_something_observable(tokens, tmp_path, stop, default, option, value, observe):
    changed = executed(tokens, tmp_path / "run", stop, **{"checkpoint__every": 2, option: value})
    assert observe(changed) != observe(default)


@pytest.mark.parametrize(
    ("others", "option", "value", "observe"),
    DEPENDENT_OPTIONS,
    ids=[f"{name}-{observe.__name__}" for _, name, _, observe in DEPENDENT_OPTIONS],
)
def test_every_option_that_another_one_needs_changes_something(tokens, tmp_path, stop, others, option, value, observe):
    with_it, without = ({**others, option: value}, others)
    one, two = (executed(tokens, tmp_path / str(n), stop, **changes) for n, changes in enumerate((with_it, without)))
    assert observe(one) != observe(two)


def test_the_table_of_options_is_complete():
    sections = {
        "data": DataConfig,
        "optimizer": OptimizerConfig,
        "training": TrainingConfig,
        "checkpoint": CheckpointConfig,
        "pipeline": PipelineConfig,
        "fsdp": FullyShardedConfig,
        "recovery": RecoveryConfig,
    }
    options = {f"{name}__{field.name}" for name, kind in sections.items() for field in dataclasses.fields(kind)}
    tested = {name for name, _, _ in OPTIONS} | {name for _, name, _, _ in DEPENDENT_OPTIONS}
    assert tested | ON_SEVERAL_RANKS | TESTED_ELSEWHERE == options | {"strategy"}
    assert {field.name for field in dataclasses.fields(RunConfig)} == {*sections, "model", "strategy"}
    assert {field.name for field in dataclasses.fields(RunRequest)} == {"tokens", "run", "config", *REQUEST}
    for option, path in REQUEST.items():
        assert re.search(rf"\b{option}\b|--{option.replace('_', '-')}\b", (REPOSITORY / path).read_text()), option


def test_the_same_request_gives_the_same_run(tokens, tmp_path, stop, default):
    again = executed(tokens, tmp_path / "run", stop, checkpoint__every=2)
    assert (again["records"], again["progress"]) == (default["records"], default["progress"])


def test_a_run_validates_at_its_last_step_and_saves_where_it_is_due(default):
    assert validated(default) == [4]
    assert saved(default) == ["step-00000002", "step-00000004"]
    assert [event["event"] for event in default["events"]] == ["start", "save", "save", "finished"]


def test_a_packed_run_counts_its_own_targets_and_continues_bit_for_bit(tokens, tmp_path, stop):
    changes = {"data__packing": "best-fit", "data__validation_chunks": 4}
    straight = executed(tokens, tmp_path / "straight", stop, **changes)
    packed = np.concatenate([np.load(tokens / f"packings/best-fit-16/0000{i}.chunks.npy") for i in (0, 1)])
    order = ReadingOrder((len(packed),), num_held_out=4, seed=0)
    targets = [int(packed["num_targets"][order.chunks(range(4 * i, 4 * i + 4))].sum()) for i in range(4)]
    assert column(straight, "tokens") == np.cumsum(targets).tolist()
    executed(tokens, tmp_path / "run", stop, stop_step=2, **changes)
    continued = executed(tokens, tmp_path / "run", stop, **changes)
    assert (continued["records"], continued["progress"]) == (straight["records"], straight["progress"])


def test_a_run_goes_on_with_another_batch_and_a_later_end_where_it_was_in_its_data(tokens, tmp_path, stop):
    run, order = tmp_path / "run", ReadingOrder((25, 25), num_held_out=4, seed=0)
    executed(tokens, run, stop, stop_step=2)
    changes = {"data__global_batch": 2, "training__total_steps": 5, "training__microbatch": 1}
    outcome = executed(tokens, run, stop, **changes)
    wanted = [tuple(order.cursor(position)) for position in (4, 8, 10, 12, 14)]
    assert [(record["epoch"], record["shard"], record["offset"]) for record in outcome["records"]] == wanted
    rows = [
        digest for start, size in ((0, 4), (4, 4), (8, 2), (10, 2), (12, 2)) for digest in read(tokens, start, size)
    ]
    assert outcome["progress"].tokens == sum(targets for targets, _ in rows)
    chained = ""
    for start, stop_ in ((0, 4), (4, 8), (8, 10), (10, 12), (12, 14)):
        chained = chain_digest(chained, np.stack([digest for _, digest in rows[start:stop_]]))
    assert data(outcome)[-1] == chained
    told = next(event for event in outcome["events"] if event["event"] == "changed")
    assert told["changes"] == [
        "recipe.data.global_batch was 4, now 2",
        "recipe.training.microbatch was 2, now 1",
        "recipe.training.total_steps was 4, now 5",
    ]


def read(tokens, start, size):
    """Targets and digest of each of `size` sequences from position `start` on, read one by one."""
    config = recipe(data__global_batch=1, training__microbatch=1, data__validation_chunks=4)
    reader = ChunkReader(open_view(tokens, read_index(tokens), config), config, 0, 1, CPU)
    batches = [reader.fetch(position)[0] for position in range(start, start + size)]
    reader.close()
    return [(batch.num_targets, batch.row_digests[0]) for batch in batches]


def test_a_run_is_not_continued_with_another_packing(tokens, tmp_path, stop):
    run, copy = tmp_path / "run", shutil.copytree(tokens, tmp_path / "tokens")
    executed(copy, run, stop, stop_step=2, data__packing="best-fit")
    for packing, message in (
        ("whole", "recipe.data.packing was best-fit, now whole"),
        (None, "packing was [0-9a-f]{64}, now None; recipe"),
    ):
        with pytest.raises(ConfigError, match=f"run is another run: .*{message}"):
            executed(copy, run, stop, data__packing=packing)
    name = PackingName(copy, "best-fit", 16)
    packing = read_packing(name, read_index(copy))
    other = dataclasses.replace(packing.shards[1], pieces_sha256="f" * 64)
    write_packing(name, dataclasses.replace(packing, shards=[packing.shards[0], other]))
    with pytest.raises(ConfigError, match=r"run is another run: packing was [0-9a-f]{64}, now [0-9a-f]{64}: name"):
        prepare(RunRequest(copy, run, recipe(data__packing="best-fit")), 1)


def test_a_run_without_held_out_chunks_is_not_validated(tokens, tmp_path, stop):
    assert validated(executed(tokens, tmp_path / "run", stop, data__validation_chunks=0)) == []


def test_the_loss_falls(tokens, tmp_path, stop):
    found = losses(executed(tokens, tmp_path / "run", stop, training__total_steps=25))
    assert found[-1] < found[0] - 0.5


def test_dropout_is_drawn_anew_at_each_step_and_alike_in_each_run(tokens, tmp_path, stop, default):
    one, two = (executed(tokens, tmp_path / name, stop, model__hidden_dropout=0.3) for name in "ab")
    assert losses(one) == losses(two)
    assert losses(one) != losses(default)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_stopped_early_keeps_its_schedule_and_continues_bit_for_bit(tokens, tmp_path, stop, dropout, optimizer):
    changes = {"model__hidden_dropout": dropout, "optimizer__name": optimizer}
    straight = executed(tokens, tmp_path / "straight", stop, **changes)
    stopped = executed(tokens, tmp_path / "run", stop, stop_step=2, **changes)
    assert stopped["records"] == straight["records"][:2]
    assert saved(stopped) == ["step-00000002"]
    assert stopped["events"][-1]["event"] == "stopped"
    continued = executed(tokens, tmp_path / "run", stop, **changes)
    assert continued["records"] == straight["records"]
    assert continued["progress"] == straight["progress"]


# schedules


def test_a_run_that_ends_before_it_annealed_says_so_and_a_whole_one_does_not(tokens, tmp_path, stop, default, capsys):
    assert warnings(default) == []
    stopped = executed(tokens, tmp_path / "stopped", stop, stop_step=3)
    (problem,) = warnings(stopped)
    assert problem.startswith("stop-step 3 is before the horizon of 4 steps: the run ends at a learning rate of 0.0055")
    assert capsys.readouterr().out.count(f"warning: {problem}\n") == 1
    constant = executed(tokens, tmp_path / "constant", stop, optimizer__schedule="constant")
    assert warnings(constant)[0].startswith("the learning rate never falls (schedule constant, 0.01 to the end): a mod")


def test_a_horizon_in_tokens_is_that_in_steps(tokens, tmp_path, stop, default):
    changes = {"training__total_steps": None, "training__total_tokens": 4 * 64 - 1, "checkpoint__every": 2}
    in_tokens = executed(tokens, tmp_path / "run", stop, **changes)
    assert in_tokens["records"] == default["records"]
    assert (in_tokens["total_steps"], in_tokens["events"][-1]["event"]) == (4, "finished")


def test_a_stable_run_is_extended_from_before_its_cooldown_as_if_it_had_been_longer_all_along(tokens, tmp_path, stop):
    planned = {"optimizer__schedule": "wsd", "optimizer__cooldown_fraction": 0.5, "optimizer__warmup_steps": 1}
    longer = executed(tokens, tmp_path / "longer", stop, training__total_steps=8, **planned)
    run = tmp_path / "run"
    stopped = executed(tokens, run, stop, stop_step=3, training__total_steps=4, **planned)
    assert column(stopped, "lr")[2] == 1e-2  # the cooldown begins after step 2, its first step still has the peak
    extended = executed(tokens, run, stop, training__total_steps=8, **planned)
    assert (extended["records"], extended["progress"]) == (longer["records"], longer["progress"])
    assert read_sealed(run / RUN_NAME)["identity"]["recipe"]["training"]["total_steps"] == 8
    message = (
        r"is at step 8, and step 4 would have had another learning rate \(recipe.training.total_steps was 8, now 4"
    )
    with pytest.raises(ConfigError, match=message):
        executed(tokens, run, stop, training__total_steps=4, **planned)


def test_a_run_is_not_continued_with_another_optimizer(tokens, tmp_path, stop):
    executed(tokens, tmp_path / "run", stop, stop_step=2)
    with pytest.raises(ConfigError, match=r"run is another run: recipe.optimizer.name was adamw, now muon: name"):
        executed(tokens, tmp_path / "run", stop, optimizer__name="muon")


def test_a_finished_run_that_is_started_again_changes_nothing(tokens, tmp_path, stop):
    first = executed(tokens, tmp_path / "run", stop)
    again = executed(tokens, tmp_path / "run", stop)
    assert (again["records"], again["checkpoints"]) == (first["records"], first["checkpoints"])


def test_a_damaged_newest_checkpoint_is_told_and_its_steps_run_again(tokens, tmp_path, stop, default):
    directory = tmp_path / "run"
    executed(tokens, directory, stop, checkpoint__every=2)
    next((directory / "checkpoints" / "step-00000004").glob("*.distcp")).write_bytes(b"")
    again = executed(tokens, directory, stop, checkpoint__every=2)
    assert again["records"] == default["records"]
    assert [event["event"] for event in again["events"][4:]] == ["damaged", "start", "save", "finished"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_run_before_its_next_step(tokens, tmp_path, stop, number):
    signal.raise_signal(number)
    assert stop.signals.received == [number]
    progress = execute(prepare(RunRequest(tokens, tmp_path / "run", recipe()), 1), CPU, stop)
    assert progress.step == 0
    assert not (tmp_path / "run" / "loss.png").exists()


def test_a_run_that_is_going_on_is_not_started_twice(tokens, tmp_path, stop):
    directory = tmp_path / "run"
    directory.mkdir()
    prepared = prepare(RunRequest(tokens, directory, recipe()), 1)
    with (
        exclusive(directory, "run"),
        pytest.raises(UserError, match=r"run is in use by another run \(process \d+ on .*\): wait for it"),
    ):
        execute(prepared, CPU, stop)
    assert not (directory / RUN_NAME).exists()


def test_a_model_is_loaded_for_sampling_with_its_step(tokens, tmp_path, stop):
    executed(tokens, tmp_path / "run", stop)
    model, step = load_model(tmp_path / "run")
    assert (step, model.config.eos_token_id) == (4, 0)


def test_a_run_of_another_tokenizer_is_not_sampled(tokens, tmp_path, stop):
    executed(tokens, tmp_path / "run", stop)
    (tmp_path / "run" / TOKENIZER_NAME).write_text("[]")
    with pytest.raises(
        FormatError, match=r"tokenizer.json is not the tokenizer of .*step-00000004: put that file back$"
    ):
        load_model(tmp_path / "run")


def test_a_run_without_a_valid_checkpoint_is_not_sampled(tokens, tmp_path, stop):
    with pytest.raises(FormatError, match=r"run has no checkpoint: name the directory of a run that saved one$"):
        load_model(tmp_path / "run")
    executed(tokens, tmp_path / "run", stop)
    next((tmp_path / "run" / "checkpoints" / "step-00000004").glob("*.distcp")).unlink()
    with pytest.raises(FormatError, match=r"step-00000004 is not used: .*\.distcp is missing$"):
        load_model(tmp_path / "run")


def test_a_rank_leaves_its_message_to_the_launcher(tmp_path, monkeypatch):
    error = UserError("found; wanted: do")
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    leave_message(error)
    assert json.loads((tmp_path / "error.json").read_text())["message"] == "found; wanted: do"
    monkeypatch.delenv(ERROR_FILE)
    with pytest.raises(UserError, match=r"^found; wanted: do$"):
        leave_message(error)


def test_processes_are_as_many_as_there_are_gpus_or_two():
    assert default_processes() == (torch.cuda.device_count() or 2)


# the command line, up to where the ranks would be started

SMALL = [
    *("--model.num-hidden-layers", "2", "--model.hidden-size", "48", "--model.num-attention-heads", "4"),
    *("--model.intermediate-size", "64", "--data.sequence-length", "64", "--data.global-batch", "4"),
    *("--data.validation-chunks", "4", "--training.microbatch", "2", "--training.total-steps", "4"),
    *("--optimizer.warmup-steps", "2"),
]
COMMANDS = {"run": run, "sample": sample, "report": report}


def refused(capsys, *arguments):
    """What is said about a mistake: one line on stderr, exit code 2."""
    assert run_command("train", COMMANDS, [str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "tinny"], "error: recipe 'tinny' not found: one of 125m, 1b, argonne-2.0, tiny"),
        (["--recipe", "none.toml"], "error: none.toml not found: name an existing recipe file"),
        (
            ["--nproc", "3"],
            "error: data.global_batch 4 does not divide into microbatches of 2 on 3 data-parallel ranks",
        ),
        (["--nproc", "0"], "error: NPROC 0 is too small: at least 1 is wanted"),
        (["--strategy", "pipeline", "--nproc", "3"], "error: 3 pipeline stages are too many"),
        (["--stop-step", "0"], "error: stop-step 0 is too small"),
        (["--training.total-tokens", "9"], "error: training.total_steps 4 and training.total_tokens 9 are both given"),
        (["--training.total-steps", "None"], "error: training.total_steps is not set: give it, or training.total_to"),
        (["--model.num-attention-heads", "5"], "error: model.hidden_size 48 is not an even multiple of num_attention"),
        (
            ["--model.num-key-value-heads", "3"],
            "error: model.num_key_value_heads 3 does not divide num_attention_heads 4",
        ),
        (["--data.sequence-length", "4096"], "error: data.sequence_length 4096 is longer than model.max_position"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_makes_no_run(tokens, tmp_path, capsys, arguments, message):
    err = refused(capsys, "run", tokens, tmp_path / "run", *SMALL, *arguments)
    assert err.startswith(message)
    assert not (tmp_path / "run").exists()


def test_no_dataset_is_one_line_and_makes_no_run(tmp_path, capsys):
    err = refused(capsys, "run", tmp_path / "none", tmp_path / "run", *SMALL)
    assert err.startswith(
        f"error: {tmp_path / 'none'} not found: a token dataset is wanted; make one with `make tokenize"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [(INDEX_NAME, "is still being built"), ("00001.npy", "00001.npy is missing: delete 00001.* there and run")],
)
def test_a_dataset_that_is_not_whole_is_one_line(tmp_path, capsys, name, message):
    write_tokens(tmp_path / "tokens", [random_tokens(400), random_tokens(400)], vocab_size=64)
    (tmp_path / "tokens" / name).unlink()
    assert message in refused(capsys, "run", tmp_path / "tokens", tmp_path / "run", *SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("option", "value"), [("--top-k", "0"), ("--temperature", "-1"), ("--max-new-tokens", "0")])
def test_a_sampling_option_that_cannot_work_is_one_line(tmp_path, capsys, option, value):
    assert "are found: " in refused(capsys, "sample", tmp_path, option, value)


@pytest.mark.parametrize("command", ["sample", "report"])
def test_a_directory_without_a_run_is_one_line(tmp_path, capsys, command):
    assert "name the directory of a run" in refused(capsys, command, tmp_path)


@pytest.mark.parametrize("arguments", [["--batch", "3"], ["--data.global-batch", "many"], ["--strategy", "ddp"]])
def test_an_option_that_does_not_exist_ends_with_exit_code_2(tokens, tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        run([str(tokens), str(tmp_path / "run"), *arguments])
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# as a user


@pytest.fixture(scope="module")
def user_run(small_tokens, tmp_path_factory):
    """A run of two processes: half as a pipeline, then continued."""
    directory = tmp_path_factory.mktemp("user") / "run"
    command = ("run", small_tokens, directory, *SMALL)
    stopped = run_cli("train", *command, "--strategy", "pipeline", "--stop-step", "2")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    continued = run_cli("train", *command, "--strategy", "fsdp", "--nproc", "2")
    assert (continued.returncode, continued.stderr) == (0, "")
    return directory, stopped.stdout, continued.stdout


def test_a_run_says_what_it_is_and_where_it_goes(user_run):
    _, stopped, continued = user_run
    assert stopped.startswith("start: step 0, layout pipeline of 2 stages x 1 data-parallel, 2 microbatches, dataset ")
    assert "\nstopped: step 2, tokens 512, data_digest " in stopped
    assert continued.startswith("start: step 2, layout fsdp over 2 ranks, 1 microbatches, dataset ")
    assert "step 4/4  loss " in continued
    assert "\nfinished: step 4, tokens 1024, data_digest " in continued
    assert "\x1b" not in stopped + continued


def test_a_run_leaves_all_that_it_promises(user_run):
    directory = user_run[0]
    records = read_metrics(directory)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(record.keys() >= KEYS for record in records)
    identity = read_sealed(directory / RUN_NAME)["identity"]
    assert identity["recipe"]["model"]["vocab_size"] == 2048
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == [
        *("start", "warning", "save", "stopped", "start", "changed", "save", "finished")
    ]
    assert (directory / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (directory / TOKENIZER_NAME).is_file()
    assert [path.name for path in sorted((directory / "checkpoints").iterdir())] == ["step-00000002", "step-00000004"]


def test_a_run_can_be_sampled_as_a_user(user_run):
    sampled = run_cli("train", "sample", user_run[0], "--prompt", "The", "--max-new-tokens", "8")
    assert (sampled.returncode, sampled.stderr) == (0, "")
    first, text = sampled.stdout.split("\n", 1)
    assert first == f"--- step 4 of {user_run[0]}"
    assert text.startswith("The")


def test_a_run_can_be_drawn_again(user_run, capsys):
    plot = user_run[0] / "loss.png"
    plot.unlink()
    assert run_command("train", COMMANDS, ["report", str(user_run[0]), "--png"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"run         {user_run[0]}\nstate       finished: all steps are done\nsteps       4 of 4, 1,024 "
    )
    assert out.endswith(f"plot        {plot}\npage        {user_run[0] / 'report.html'}\n")
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0)], ids=["drawn", "greedy"])
def test_an_empty_prompt_is_continued(user_run, capsys, sampling):
    arguments = ["sample", str(user_run[0]), "--temperature", str(sampling.temperature), "--max-new-tokens", "5"]
    assert run_command("train", COMMANDS, arguments) == 0
    assert capsys.readouterr().out.startswith("--- step 4 of ")


@pytest.mark.slow
def test_a_packing_is_trained_on_by_two_processes_under_either_strategy(small_tokens, tmp_path):
    tokens = shutil.copytree(small_tokens, tmp_path / "tokens")
    packed = run_cli("preprocess", "pack", tokens, "--length", 64)
    assert (packed.returncode, packed.stderr) == (0, "")
    command = ("run", tokens, tmp_path / "run", *SMALL, "--data.packing", "best-fit", "--nproc", 2)
    for options in (("--strategy", "fsdp", "--stop-step", 2), ("--strategy", "pipeline")):
        done = run_cli("train", *command, *options)
        assert (done.returncode, done.stderr) == (0, "")
    records = read_metrics(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    index = read_index(tokens)
    config = recipe(data__packing="best-fit", data__sequence_length=64)
    reader = ChunkReader(open_view(tokens, index, config), config, 0, 1, CPU)
    digest, count = "", 0
    for record in records:
        batch = reader.fetch(4 * (record["step"] - 1))[0]
        digest, count = chain_digest(digest, batch.row_digests), count + int((batch.targets_BT != IGNORED).sum())
        assert (record["data_digest"], record["tokens"]) == (digest, count)
    reader.close()


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (
            "small_tokens",
            ["--optimizer.learning-rate", "0.5"],
            "is another run: recipe.optimizer.learning_rate was 0.002, now 0.5: name",
        ),
        ("tokens", [], "is another run: dataset was "),
    ],
    ids=["recipe", "dataset"],
)
def test_a_run_of_something_else_is_one_line_and_nothing_is_lost(request, user_run, dataset, options, message):
    before = contents(user_run[0])
    ended = run_cli("train", "run", request.getfixturevalue(dataset), user_run[0], *SMALL, *options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert message in ended.stderr
    assert contents(user_run[0]) == before


def test_what_all_ranks_find_wrong_is_one_line(small_tokens, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    with exclusive(directory, "run"):
        ended = run_cli("train", "run", small_tokens, directory, *SMALL)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith(f"error: {directory} is in use by another run (process {os.getpid()} on ")
    assert contents(directory) == {}


def test_a_finished_run_says_so_and_does_nothing(small_tokens, user_run):
    before = contents(user_run[0])
    ended = run_cli("train", "run", small_tokens, user_run[0], *SMALL)
    message = "finished at step 4 (all steps are done): nothing to do; give a later training.total_steps to go on"
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{user_run[0]} {message}\n", "")
    assert contents(user_run[0]) == before
