import hashlib
import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from preprocess.config import PackSettings
from preprocess.pack import pack
from shared.errors import ConfigError, FormatError
from shared.format import INDEX_NAME, TOKENIZER_NAME, GoldenVector, read_index, tokens_path, write_index
from shared.locks import LOCK_NAME
from shared.storage import read_sealed, write_sealed
from tests.train_helpers import random_tokens, recipe, write_tokens
from train.checkpoint_directory import MANIFEST_NAME
from train.preflight import prepare, versions
from train.request import RunRequest
from train.run_files import RUN_NAME

SHARDS = [random_tokens(200), random_tokens(333, seed=1)]


@pytest.fixture
def tokens(tmp_path):
    directory = tmp_path / "tokens"
    write_tokens(directory, SHARDS, vocab_size=60)
    return directory


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def prepared(tokens, run, world_size=1, stop_step=None, **changes):
    return prepare(RunRequest(tokens, run, recipe(**changes), stop_step), world_size)


def refused(message, *arguments, kind=ConfigError, **changes):
    with pytest.raises(kind, match=message) as raised:
        prepared(*arguments, **changes)
    assert "\n" not in str(raised.value)


def start(tokens, run, **changes):
    """What a run of this recipe leaves in its directory at once."""
    run.mkdir()
    write_sealed(run / RUN_NAME, {"identity": prepared(tokens, run, **changes).identity})


def test_a_pipeline_under_an_older_torch_is_refused(tokens, run, monkeypatch):
    class ReceivedBefore:
        def __init__(self, input_name, source, buffer): ...

    monkeypatch.setattr("torch.distributed.pipelining.stage._RecvInfo", ReceivedBefore)
    refused(
        r"pipeline needs a newer torch than 2\S+, as 2.13: install it, or use fsdp",
        tokens,
        run,
        2,
        strategy="pipeline",
    )
    assert prepared(tokens, run, strategy="fsdp").layout.dp_size == 1


# what follows from a request


def test_a_checked_request_is_complete_and_leaves_no_trace(tokens, run):
    checked = prepared(tokens, run)
    assert checked.config.model.eos_token_id == 0
    assert checked.order.num_training == 13 + 21 - 4
    assert (checked.layout.dp_size, checked.last_step) == (1, 4)
    assert not run.exists()


def test_the_vocabulary_comes_from_the_dataset(tokens, run):
    assert prepared(tokens, run, model__vocab_size=None).config.model.vocab_size == 64


@pytest.mark.parametrize(("stop_step", "last"), [(None, 4), (1, 1), (4, 4), (9, 4)])
def test_a_run_ends_at_its_stop_step_or_its_schedule(tokens, run, stop_step, last):
    assert prepared(tokens, run, stop_step=stop_step).last_step == last


def test_the_identity_of_a_run_is_plain_data_that_names_recipe_dataset_and_tokenizer(tokens, run):
    checked = prepared(tokens, run)
    identity = json.loads(json.dumps(checked.identity))
    assert identity.keys() == {"recipe", "dataset", "packing", "tokenizer"}
    assert identity["packing"] is None
    assert identity["dataset"] == checked.index.fingerprint
    assert identity["tokenizer"] == checked.index.tokenizer.sha256
    assert identity["recipe"]["model"]["eos_token_id"] == 0


def test_versions_are_those_of_what_computes():
    assert versions().keys() == {"python", "torch", "numpy"}


# the validation split


def with_split(tokens, chunks=8, vocab_size=64):
    return write_tokens(tokens / "validation", [[5] * (16 * chunks + 1)], vocab_size=vocab_size)


def test_a_validation_split_is_part_of_the_identity(tokens, run):
    held_out = with_split(tokens)
    checked = prepared(tokens, run, data__validation="split")
    assert checked.order.num_held_out == 0
    assert checked.identity["validation"] == held_out.fingerprint
    assert prepared(tokens, run, data__validation="split", data__validation_chunks=0).validation is None


def test_a_validation_split_that_is_not_there_or_too_small_is_told(tokens, run):
    asked = {"data__validation": "split"}
    refused("validation not found: a token dataset is wanted", tokens, run, kind=FormatError, **asked)
    with_split(tokens, chunks=3)
    message = r"validation has 3 chunks of 16, data.validation_chunks wants 4: lower it, or tokenize with a larger "
    refused(message, tokens, run, **asked)

    in_units = r"data.validation_chunks wants 4 in whole units of data.shuffle_length 64: lower it"
    refused(in_units, tokens, run, data__shuffle_length=64, **asked)


def test_a_validation_split_of_another_tokenizer_is_told(tokens, run):
    index = with_split(tokens)
    write_index(tokens / "validation", replace(index, tokenizer=replace(index.tokenizer, sha256="ab" * 32)))
    message = r"validation has tokenizer abababababab, .* has [0-9a-f]{12}: tokenize both again, together"
    refused(message, tokens, run, kind=FormatError, data__validation="split")


def test_a_validation_split_cut_short_is_told(tokens, run):
    with_split(tokens)
    path = tokens_path(tokens / "validation", 0)
    path.write_bytes(path.read_bytes()[:-2])
    refused("00000.npy is", tokens, run, kind=FormatError, data__validation="split")


# datasets


def test_a_dataset_that_is_not_there_is_told(tmp_path, run):
    refused("none not found: a token dataset is wanted; make one with", tmp_path / "none", run, kind=FormatError)


def test_a_dataset_still_being_built_is_told(tokens, run):
    (tokens / INDEX_NAME).unlink()
    refused("is still being built .*: wait for `make tokenize`, or run it again", tokens, run, kind=FormatError)


@pytest.mark.parametrize("shard", [0, 1])
def test_a_shard_cut_short_is_told(tokens, run, shard):
    path = tokens_path(tokens, shard)
    path.write_bytes(path.read_bytes()[:-2])
    refused(rf"0000{shard}.npy is [\d,]+ bytes; [\d,]+ are wanted: delete 0000{shard}", tokens, run, kind=FormatError)


def test_a_missing_shard_is_told(tokens, run):
    tokens_path(tokens, 1).unlink()
    refused("00001.npy is missing: delete", tokens, run, kind=FormatError)


def test_a_tokenizer_that_gives_other_ids_than_the_dataset_has_is_told_with_both(tokens, run):
    tokenizer = Tokenizer(WordLevel({"<|end|>": 0, "the": 1, "sea": 2, "[UNK]": 3}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tokens / TOKENIZER_NAME))
    sha256 = hashlib.sha256((tokens / TOKENIZER_NAME).read_bytes()).hexdigest()
    index = read_index(tokens)

    def write_golden(ids):
        golden = [GoldenVector("the sea", [1, 2]), GoldenVector("sea <|end|>", ids)]
        write_index(tokens, replace(index, tokenizer=replace(index.tokenizer, sha256=sha256, golden=golden)))

    write_golden([2, 3, 3, 3])
    prepared(tokens, run)  # a special token in a text is text
    write_golden([2, 0])
    message = (
        r"^tokenizers [0-9.]+ encodes 'sea <\|end\|>' by .*tokenizer.json as \[2, 3, 3, 3\], the dataset has \[2, 0\]: "
        "install the release of tokenizers that made the dataset$"
    )
    refused(message, tokens, run, kind=FormatError)


@pytest.mark.parametrize(("text", "found"), [("other", r"[0-9a-f]{12}"), (None, "absent")])
def test_a_tokenizer_that_did_not_make_the_dataset_is_told(tokens, run, text, found):
    (tokens / TOKENIZER_NAME).unlink()
    if text:
        (tokens / TOKENIZER_NAME).write_text(text)
    message = rf"tokenizer.json is {found}, the dataset was made with [0-9a-f]{{12}}: put that file back"
    refused(message, tokens, run, kind=FormatError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__validation_chunks": 32}, "has 34 chunks of 16, of which data.validation_chunks reserves 32: a global"),
        ({"data__validation_chunks": 400}, "has 34 chunks of 16, of which data.validation_chunks reserves 400"),
        (
            {"data__validation_chunks": 32, "data__shuffle_length": 32},
            "data.validation_chunks reserves 32 in whole units of data.shuffle_length 32: a global batch of 4 must be ",
        ),
        ({"data__global_batch": 40, "data__validation_chunks": 0}, "a global batch of 40 must be left to train on"),
        ({"model__vocab_size": 59}, "model.vocab_size 59 is too small for the dataset"),
        ({"training__microbatch": 3}, "data.global_batch 4 does not divide into microbatches of 3"),
        ({"world_size": 3}, "data.global_batch 4 does not divide into microbatches of 2 on 3 data-parallel ranks"),
        ({"stop_step": 0}, "stop-step 0 is too small: at least 1 is wanted"),
        (
            {"model__hidden_size": 400_000, "model__num_hidden_layers": 100},
            r"a step in the smallest microbatch takes [\d.e+]+ GiB \(weights .*\), .* has [\d.]+ GiB: use more ranks",
        ),
    ],
    ids=str,
)
def test_a_request_that_cannot_work_is_refused(tokens, run, changes, message):
    refused(message, tokens, run, **changes)


# packings


def test_a_packing_is_part_of_a_runs_identity_and_its_rows_are_its_chunks(tokens, run):
    packing = pack(tokens, PackSettings(16))
    checked = prepared(tokens, run, data__packing="best-fit")
    assert checked.identity["packing"] == packing.fingerprint
    assert checked.order.shard_chunks == (13, 21)
    assert checked.order.num_training == 13 + 21 - 4


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"data__packing": "whole"}, "whole-16 .found: best-fit-16"),
        ({"data__packing": "best-fit", "data__sequence_length": 8}, "best-fit-8 .found: best-fit-16"),
    ],
    ids=str,
)
def test_a_packing_that_is_not_there_is_told_with_its_command(tokens, run, changes, found):
    pack(tokens, PackSettings(16))
    method, length = found.split(" ")[0].rsplit("-", 1)
    command = f"make it with `python -m preprocess pack {tokens} --length {length} --method {method}`$"
    refused(rf"tokens has no packing {found}\): {command}", tokens, run, kind=FormatError, **changes)


def test_a_packing_of_another_dataset_is_refused(tokens, run):
    pack(tokens, PackSettings(16))
    write_tokens(tokens, SHARDS[:1], vocab_size=60)
    message = (
        r"index.json is of dataset [0-9a-f]{12}, the one there is [0-9a-f]{12}: run `python -m preprocess pack .*`"
    )
    refused(message, tokens, run, kind=FormatError, data__packing="best-fit")


def test_a_packing_cut_short_is_refused(tokens, run):
    pack(tokens, PackSettings(16))
    path = tokens / "packings/best-fit-16/00001.pieces.npy"
    path.write_bytes(path.read_bytes()[:-1])
    message = (
        r"00001.pieces.npy is [\d,]+ bytes; [\d,]+ are wanted: delete 00001.\* there and run `python -m preprocess pa"
    )
    refused(message, tokens, run, kind=FormatError, data__packing="best-fit")


def test_held_out_chunks_count_those_of_the_packing(tokens, run):
    pack(tokens, PackSettings(16, "whole"))
    message = "tokens has 0 chunks of 16, of which data.validation_chunks reserves 4: a global batch of 4 must be left"
    refused(message, tokens, run, data__packing="whole")


def test_a_run_from_before_there_were_packings_may_be_continued(tokens, run):
    start(tokens, run)
    identity = read_sealed(run / RUN_NAME)["identity"]
    del identity["packing"], identity["recipe"]["data"]["packing"]
    write_sealed(run / RUN_NAME, {"identity": identity})
    prepared(tokens, run)
    pack(tokens, PackSettings(16))
    refused(
        "packing was None, now [0-9a-f]{64}; recipe.data.packing was None, now best-fit",
        tokens,
        run,
        data__packing="best-fit",
    )


@pytest.mark.parametrize(
    ("option", "value"), [("document_mask", True), ("restart_positions", True), ("shuffle_length", 32)]
)
def test_a_run_from_before_an_option_had_its_default(tokens, run, option, value):
    start(tokens, run)
    identity = read_sealed(run / RUN_NAME)["identity"]
    del identity["recipe"]["data"][option]
    write_sealed(run / RUN_NAME, {"identity": identity})
    prepared(tokens, run)
    refused(f"recipe.data.{option} was (False|None), now {value}", tokens, run, **{f"data__{option}": value})


# run directories


def test_a_run_may_be_continued(tokens, run):
    start(tokens, run)
    assert prepared(tokens, run).config == prepared(tokens, run).config


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "pipeline"},
        {"pipeline__stages": 1},
        {"training__microbatch": 4},
        {"training__validate_every": 2},
        {"data__global_batch": 2},
        {"model__max_position_embeddings": 128},
        {"training__total_steps": 9},
        {"checkpoint__every": 2},
        {"checkpoint__keep": 5},
        {"stop_step": 2},
        {"world_size": 2},
    ],
    ids=str,
)
def test_a_run_may_be_continued_otherwise_where_the_order_of_its_data_does_not_depend_on_it(tokens, run, changes):
    start(tokens, run)
    prepared(tokens, run, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__learning_rate": 0.5}, "recipe.optimizer.learning_rate was 0.01, now 0.5"),
        ({"optimizer__name": "muon"}, "recipe.optimizer.name was adamw, now muon"),
        ({"optimizer__warmup_steps": 1}, "recipe.optimizer.warmup_steps was 2, now 1"),
        (
            {"training__total_steps": 9, "training__seed": 9},
            "recipe.training.seed was 0, now 9; recipe.training.total_steps was 4, now 9",
        ),
        ({"data__document_mask": True}, "recipe.data.document_mask was False, now True"),
        ({"data__restart_positions": True}, "recipe.data.restart_positions was False, now True"),
        (
            {"data__sequence_length": 8},
            r"recipe.data.sequence_length was 16, now 8 \(without data.shuffle_length the chunks of 16 are what was "
            r"shuffled\)",
        ),
        ({"data__shuffle_length": 32}, "recipe.data.shuffle_length was None, now 32"),
        ({"training__seed": 9}, "recipe.training.seed was 0, now 9"),
        ({"training__precision": "bf16"}, "recipe.training.precision was fp32, now bf16"),
        ({"model__rope_theta": 5.0}, "recipe.model.rope_theta was 10000.0, now 5.0"),
        (
            {"model__hidden_size": 64, "data__order": "natural"},
            "recipe.data.order was shuffled, now natural; recipe.model.hidden_size was 32, now 64",
        ),
    ],
    ids=str,
)
def test_a_run_of_another_recipe_is_refused_with_the_difference(tokens, run, changes, message):
    start(tokens, run)
    before = (run / RUN_NAME).read_bytes()
    refused(f"run is another run: {message}: name another directory, or give what it had$", tokens, run, **changes)
    assert [path.name for path in run.iterdir()] == [RUN_NAME]
    assert (run / RUN_NAME).read_bytes() == before


WSD = {"optimizer__schedule": "wsd", "optimizer__cooldown_fraction": 0.25, "training__total_steps": 40}


def at_step(tokens, run, step, **changes):
    """A run that has saved a checkpoint, and begun another."""
    start(tokens, run, **changes)
    for number, name in ((step - 1, MANIFEST_NAME), (step, MANIFEST_NAME), (step + 9, "half")):
        path = run / "checkpoints" / f"step-{number:08d}" / name
        path.parent.mkdir(parents=True)
        path.touch()


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"training__total_steps": 80}, 31),  # the cooldown begins after 30 steps; step 31 still has the peak
        ({"training__total_steps": 20}, 16),
        ({"training__total_steps": None, "training__total_tokens": 80 * 64}, 31),
        ({"training__total_steps": None, "training__total_tokens": 40 * 64}, 40),
        ({"optimizer__schedule": "constant"}, 31),
        ({"optimizer__schedule": "cosine"}, 3),
        ({"optimizer__cooldown_fraction": 0.5}, 21),
    ],
    ids=str,
)
def test_a_run_may_be_continued_to_another_end_if_no_step_of_it_changes(tokens, run, changes, step):
    at_step(tokens, run, step, **WSD)
    prepared(tokens, run, **{**WSD, **changes})


@pytest.mark.parametrize(
    ("changes", "step", "difference"),
    [
        ({"training__total_steps": 80}, 32, "recipe.training.total_steps was 40, now 80"),
        ({"training__total_steps": 20}, 17, "recipe.training.total_steps was 40, now 20"),
        ({"optimizer__schedule": "cosine"}, 4, "recipe.optimizer.schedule was wsd, now cosine"),
        ({"optimizer__cooldown_fraction": 0.5}, 22, "recipe.optimizer.cooldown_fraction was 0.25, now 0.5"),
    ],
    ids=str,
)
def test_a_run_whose_steps_would_have_been_others_is_refused_with_the_step(tokens, run, changes, step, difference):
    at_step(tokens, run, step + 1, **WSD)
    message = (
        rf"run is at step {step + 1}, and step {step} would have had another learning rate \({difference}\): give what "
        rf"it had, or continue a copy whose newest checkpoint is of step {step - 1} or earlier$"
    )
    refused(message, tokens, run, **{**WSD, **changes})


def test_a_run_from_before_an_option_existed_had_its_default(tokens, run):
    start(tokens, run)
    identity = read_sealed(run / RUN_NAME)["identity"]
    for name in ("name", "schedule", "momentum"):
        del identity["recipe"]["optimizer"][name]
    write_sealed(run / RUN_NAME, {"identity": identity})
    prepared(tokens, run)
    refused("recipe.optimizer.name was adamw, now muon", tokens, run, optimizer__name="muon")


def test_a_run_of_another_dataset_is_refused(tokens, run, tmp_path):
    start(tokens, run)
    write_tokens(tmp_path / "other", [random_tokens(333, seed=2)], vocab_size=60)
    refused("another run: dataset was [0-9a-f]{64}, now [0-9a-f]{64}: name another", tmp_path / "other", run)


def test_a_directory_of_something_else_is_refused_and_left_alone(tokens, run):
    run.mkdir()
    (run / "thesis.tex").write_text("years of work")
    refused(r"run is not empty and not a run \(no run.json\): name another directory$", tokens, run)
    assert (run / "thesis.tex").read_text() == "years of work"


KILLED_EARLY = [[], [LOCK_NAME], [LOCK_NAME, RUN_NAME + ".tmp"], [RUN_NAME + ".0a1b2c3d.tmp"]]


@pytest.mark.parametrize("names", KILLED_EARLY, ids=str)
def test_a_directory_of_a_run_killed_in_its_first_moment_may_be_used(tokens, run, names):
    run.mkdir()
    for name in names:
        (run / name).touch()
    prepared(tokens, run)


def test_a_damaged_run_file_is_told(tokens, run):
    start(tokens, run)
    text = (run / RUN_NAME).read_text()
    (run / RUN_NAME).write_text(text.replace("shuffled", "natural"))
    refused("run.json does not match its own checksum", tokens, run, kind=FormatError)
