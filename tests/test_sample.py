import dataclasses

import pytest
import torch

from shared.errors import ConfigError
from tests.train_helpers import architecture, lively_model, some_ids
from train.sample import Sampling, choose, generate

GREEDY = Sampling(max_new_tokens=20, temperature=0)
NO_PROMPT = torch.zeros(3, 0, dtype=torch.long)


def model_of(seed=0, **changes):
    return lively_model(architecture(**changes), seed)


def greedy_from_scratch(model, ids, new):
    """The plain way: the whole text through the model for every token."""
    for _ in range(new):
        ids = torch.cat((ids, model(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    return ids


def generator():
    return torch.Generator().manual_seed(0)


# the cache


@pytest.mark.parametrize(
    "changes",
    [{}, {"sliding_window": 3}, {"use_flash_attention": False}, {"num_key_value_heads": 4}, {"num_hidden_layers": 3}],
    ids=str,
)
@pytest.mark.parametrize("prompt_length", [1, 7])
def test_greedy_text_with_a_cache_is_that_without(changes, prompt_length):
    model, prompt = model_of(**changes), some_ids(3, prompt_length)
    assert torch.equal(generate(model, prompt, GREEDY), greedy_from_scratch(model, prompt, 20))


def test_a_text_may_be_as_long_as_the_models_positions():
    model = model_of(max_position_embeddings=20)
    assert generate(model, some_ids(1, 5), Sampling(max_new_tokens=15, temperature=0)).shape == (1, 20)


# how a token is chosen


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}], ids=str)
def test_a_choice_without_alternatives_is_greedy(sampling):
    model = model_of()
    found = generate(model, some_ids(3, 4), Sampling(**{"max_new_tokens": 20, "temperature": 1.0, **sampling}))
    assert torch.equal(found, generate(model, some_ids(3, 4), GREEDY))


LOGITS = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log()


def drawn(**sampling):
    logits = LOGITS.expand(2000, 4)
    return choose(logits, Sampling(**{"temperature": 1.0, **sampling}), generator()).bincount(minlength=4) / 2000


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        ({}, [0.4, 0.1, 0.3, 0.2]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 99}, [0.4, 0.1, 0.3, 0.2]),
        ({"top_p": 0.3}, [1, 0, 0, 0]),  # the first token alone reaches it
        ({"top_p": 0.5}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.8}, [4 / 9, 0, 3 / 9, 2 / 9]),
        ({"top_p": 1.0}, [0.4, 0.1, 0.3, 0.2]),
        ({"top_k": 3, "top_p": 0.5}, [4 / 7, 0, 3 / 7, 0]),  # of 4/9, 3/9, 2/9
        ({"temperature": 0.5}, [16 / 30, 1 / 30, 9 / 30, 4 / 30]),
        ({"temperature": 0}, [1, 0, 0, 0]),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_their_probability(sampling, shares):
    assert drawn(**sampling).tolist() == pytest.approx(shares, abs=0.04)


def test_the_same_seed_gives_the_same_text_and_another_one_another():
    model, sampling = model_of(), Sampling(max_new_tokens=20, temperature=5.0)
    texts = [generate(model, some_ids(), dataclasses.replace(sampling, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_sampling_leaves_the_random_numbers_of_training_alone():
    model, before = model_of(), torch.get_rng_state()
    generate(model, some_ids(), Sampling(max_new_tokens=5))
    assert torch.equal(torch.get_rng_state(), before)


# the end and the beginning


def test_a_text_ends_at_the_end_of_document_and_is_padded_while_others_go_on():
    free = generate(model_of(), some_ids(8, 3), GREEDY)
    end = int(free[0, 8])  # what the first text says sixth is now the end of a document
    padded = generate(model_of(eos_token_id=end, pad_token_id=63), some_ids(8, 3), GREEDY)
    longest = 0
    for row, text in zip(padded.tolist(), free.tolist(), strict=True):
        new = text[3:]
        length = 3 + (new.index(end) + 1 if end in new else len(new))
        assert row[:length] == text[:length]
        assert set(row[length:]) <= {63}
        longest = max(longest, length)
    assert padded.shape[1] == longest
    assert padded[0, -1] == 63 or longest == padded[0].tolist().index(end, 3) + 1


def test_generation_stops_when_all_texts_have_ended():
    model = model_of()
    prompt = some_ids(1, 3)
    free = generate(model, prompt, GREEDY)[0].tolist()
    model.config = dataclasses.replace(model.config, eos_token_id=free[7])
    assert generate(model, prompt, GREEDY)[0].tolist() == free[: free.index(free[7], 3) + 1]


def test_an_end_in_the_prompt_ends_nothing():
    model = model_of(eos_token_id=int(some_ids(1, 3)[0, 1]))
    assert generate(model, some_ids(1, 3), GREEDY).shape[1] > 3


def test_an_empty_prompt_starts_from_the_beginning_of_a_document():
    model = model_of(bos_token_id=9)
    found = generate(model, NO_PROMPT, GREEDY)
    assert torch.equal(found, generate(model, torch.full((3, 1), 9), GREEDY))


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored(training):
    model = model_of(hidden_dropout=0.5).train(training)
    generate(model, some_ids(), GREEDY)
    assert all(module.training is training for module in model.modules())


def test_no_dropout_acts_while_sampling():
    texts = [generate(model_of(hidden_dropout=rate).train(), some_ids(), GREEDY) for rate in (0.0, 0.9)]
    assert torch.equal(*texts)


# messages


def test_a_text_that_is_too_long_is_refused():
    message = r"^a prompt of 12 tokens and 20 new ones do not fit max_position_embeddings 31: shorten one of them$"
    with pytest.raises(ConfigError, match=message):
        generate(model_of(max_position_embeddings=31), some_ids(), GREEDY)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0 and max-new-tokens 100 are found: a temperature of 0 or more"),
        ({"max_new_tokens": 0}, "temperature 0.8 and max-new-tokens 0 are found: .* at least 1 token are wanted"),
        ({"top_k": 0}, "top-k 0 and top-p None are found: at least 1, and above 0 up to 1, are wanted"),
        ({"top_p": 0.0}, r"top-k None and top-p 0.0 are found: at least 1"),
        ({"top_p": 1.5}, r"top-k None and top-p 1.5 are found: at least 1"),
    ],
)
def test_sampling_options_that_cannot_work_are_refused(sampling, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        Sampling(**sampling)
