from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from tests.train_helpers import architecture
from train.layout import Layout, block_parameters
from train.split import Costs, computed_costs, split_layers


def pipeline(stages, parts=1):
    return Layout("pipeline", stages, 1, 1, 1, parts)


def part_costs(split, costs):
    """The plain way: what each part costs."""
    of_part = [costs.block * len(layers) for layers in split]
    of_part[0] += costs.embedding
    of_part[-1] += costs.head
    return of_part


def dearest(split, costs, stages):
    of_part = part_costs(split, costs)
    return max(sum(of_part[stage::stages]) for stage in range(stages))


def all_splits(num_layers, num_parts):
    for cuts in combinations(range(1, num_layers), num_parts - 1):
        yield [range(first, end) for first, end in pairwise((0, *cuts, num_layers))]


@settings(deadline=None, max_examples=100)
@given(
    layers=st.integers(1, 9),
    data=st.data(),
    block=st.integers(1, 9),
    embedding=st.integers(0, 30),
    head=st.integers(0, 60),
)
def test_no_other_split_has_a_cheaper_dearest_stage(layers, data, block, embedding, head):
    stages = data.draw(st.integers(1, layers))
    parts = 1 if stages == 1 else data.draw(st.integers(1, layers // stages))
    costs = Costs(block, embedding, head)
    split = split_layers(layers, pipeline(stages, parts), costs)
    assert [layer for part in split for layer in part] == list(range(layers))
    assert len(split) == stages * parts
    assert all(split)
    best = min(dearest(other, costs, stages) for other in all_splits(layers, stages * parts))
    assert dearest(split, costs, stages) == best


@pytest.mark.parametrize(("vocab", "last"), [(1, 4), (600, 3), (5000, 1)])
def test_a_wider_head_takes_layers_from_the_last_stage(vocab, last):
    costs = computed_costs(architecture(num_hidden_layers=8, vocab_size=vocab), 16)
    assert len(split_layers(8, pipeline(2), costs)[-1]) == last


def test_the_computed_costs_are_multiplications_of_a_token():
    config = architecture()
    costs = computed_costs(config, 16)
    assert costs == Costs(block_parameters(config) + 32 * 16, 32, 64 * 32)


def test_the_parts_of_a_stage_are_balanced_too():
    split = split_layers(8, pipeline(2, 2), Costs(block=2, embedding=3, head=3))
    assert part_costs(split, Costs(2, 3, 3)) == [5, 6, 6, 5]


def test_equally_dear_stages_give_the_last_one_more_for_it_holds_the_fewest_activations():
    assert [len(part) for part in split_layers(5, pipeline(2), Costs(1, 0, 0))] == [2, 3]


@pytest.mark.parametrize(("most", "lengths"), [([8, 8], [4, 4]), ([3, 8], [3, 5]), ([8, 2], [6, 2])])
def test_a_stage_gets_no_more_layers_than_it_has_memory_for(most, lengths):
    split = split_layers(8, pipeline(2), Costs(1, 0, 0), most)
    assert [len(part) for part in split] == lengths


def test_layers_that_fit_nowhere_are_refused():
    with pytest.raises(ConfigError, match=r"^8 layers do not fit in the memory of 2 pipeline stages: use more stages,"):
        split_layers(8, pipeline(2), Costs(1, 0, 0), [3, 3])
