import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataloader.samplers import BatchPlan, EpochOrder


def plan(length, batch, world=1, rank=0, training=True, drop_last=True, shuffle=True, epoch=1):
    made = BatchPlan(EpochOrder(length, shuffle, seed=5), batch, drop_last, rank, world, training)
    made.set_epoch(epoch)
    return made


def indices(batches):
    return [[index for _, index in batch] for batch in batches]


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch():
    order = EpochOrder(100, True, seed=1)
    assert sorted(order(3)) == list(range(100))
    assert order(3).tolist() == EpochOrder(100, True, seed=1)(3).tolist()
    assert order(3).tolist() != order(4).tolist()
    assert order(3).tolist() != EpochOrder(100, True, seed=2)(3).tolist()
    assert EpochOrder(9, False)(3).tolist() == list(range(9))


def test_the_order_is_the_same_on_every_machine():
    assert EpochOrder(10, True, seed=0)(1).tolist() == [9, 1, 3, 8, 7, 6, 0, 4, 2, 5]


def test_keys_contain_the_epoch():
    assert {epoch for batch in plan(20, 4, epoch=7) for epoch, _ in batch} == {7}


@given(length=st.integers(1, 60), batch=st.integers(1, 7), start=st.integers(0, 20))
def test_an_epoch_resumed_at_any_batch_is_the_rest_of_the_epoch(length, batch, start):
    whole = list(plan(length, batch, drop_last=False))
    rest = plan(length, batch, drop_last=False)
    rest.set_epoch(1, start)
    assert list(rest) == whole[start:] and len(rest) == len(whole)


@given(length=st.integers(1, 60), batch=st.integers(1, 5), world=st.integers(1, 4))
def test_training_ranks_share_each_global_batch(length, batch, world):
    order = EpochOrder(length, True, seed=5)(1)
    ranks = [indices(plan(length, batch, world, rank)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    for k, parts in enumerate(zip(*ranks, strict=True)):
        expected = order[k * batch * world:(k + 1) * batch * world].tolist()
        assert sorted(sum(parts, [])) == sorted(expected)
        assert parts[0][0] == expected[0]


@given(length=st.integers(1, 60), batch=st.integers(1, 5), world=st.integers(1, 4))
def test_without_drop_last_ranks_have_equal_batches_and_see_every_sample(length, batch, world):
    ranks = [indices(plan(length, batch, world, rank, drop_last=False)) for rank in range(world)]
    sizes = {tuple(map(len, batches)) for batches in ranks}
    assert len(sizes) == 1 and min(min(sizes)) > 0
    seen = [index for batches in ranks for batch in batches for index in batch]
    assert set(seen) == set(range(length)) and len(seen) < length + world


@given(length=st.integers(1, 60), batch=st.integers(1, 5), world=st.integers(1, 4))
def test_evaluation_ranks_take_whole_batches_in_turn_and_no_sample_twice(length, batch, world):
    options = {"training": False, "drop_last": False, "shuffle": False}
    single = indices(plan(length, batch, **options))
    for rank in range(world):
        assert indices(plan(length, batch, world, rank, **options)) == single[rank::world]


def test_a_batch_past_the_end_is_empty():
    assert plan(8, 4).batch(2) == [] and len(plan(8, 4).batch(1)) == 4


def test_indices_are_plain_integers():
    assert {type(index) for _, index in plan(8, 4).batch(0)} == {int}
    assert not isinstance(plan(8, 4).batch(0)[0][1], np.integer)
