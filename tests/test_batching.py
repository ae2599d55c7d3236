"""Which samples each step has: every sample once per epoch, in whatever order steps are computed; and how ranks share a step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fcot.student.batching import StepSampler, deal


def lengths_of(n, columns=1, seed=0):
    """Token counts with a skewed distribution, like those of rationales."""
    rng = np.random.default_rng(seed)
    return np.stack([np.maximum(1, rng.lognormal(3.5, 0.7, n)).astype(np.int64) for _ in range(columns)], axis=1)


SIZES = [{"batch_size": 8}, {"batch_size": None, "batch_tokens": 500}]


def epochs_of(sampler, n):
    ends = [0, *sampler.epoch_ends(sampler.count(n, None))]
    return [[sampler.step(step) for step in range(start, end)] for start, end in pairwise(ends)]


def padded(batch, lengths):
    return len(batch) * lengths[batch].max(0).sum()


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=["samples", "tokens"])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 203])
def test_every_epoch_sees_every_sample_once_in_its_own_order(n, size, columns):
    epochs = epochs_of(StepSampler(lengths_of(n, columns), 0, **size), 3)
    assert len(epochs) == 3
    for epoch in epochs:
        assert sorted(np.concatenate(epoch)) == list(range(n))
        assert all(len(batch) for batch in epoch)
    if n > 100:
        members = [{tuple(sorted(batch)) for batch in epoch} for epoch in epochs]
        assert len(members[0] & members[1]) < len(members[0]) / 2, "the members of the batches differ, not only the order of the batches"


@pytest.mark.parametrize("size", SIZES, ids=["samples", "tokens"])
def test_a_step_is_a_pure_function_of_seed_and_step(size):
    lengths = lengths_of(101, 2)
    forwards = [StepSampler(lengths, 3, **size).step(step).tolist() for step in range(60)]
    sampler = StepSampler(lengths, 3, **size)
    assert [sampler.step(step).tolist() for step in reversed(range(60))] == forwards[::-1]
    assert [sampler.step(step).tolist() for step in (59, 0, 31, 0, 59)] == [forwards[step] for step in (59, 0, 31, 0, 59)]
    assert [StepSampler(lengths, 4, **size).step(step).tolist() for step in range(60)] != forwards


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("budget", [60, 500])
def test_only_a_batch_of_one_sample_may_exceed_the_token_budget(columns, budget):
    lengths = lengths_of(300, columns)
    batches = [batch for epoch in epochs_of(StepSampler(lengths, 0, None, budget), 2) for batch in epoch]
    assert all(padded(batch, lengths) <= budget or len(batch) == 1 for batch in batches)
    assert any(len(batch) > 1 for batch in batches)
    if budget == 60:
        assert any(padded(batch, lengths) > budget for batch in batches), "some samples exceed the budget"


@pytest.mark.parametrize("columns", [1, 2])
def test_samples_of_similar_length_share_a_batch(columns):
    lengths = lengths_of(2000, columns)
    (epoch,) = epochs_of(StepSampler(lengths, 0, 16), 1)
    efficiency = lengths.sum() / sum(padded(batch, lengths) for batch in epoch)
    order = np.random.default_rng(0).permutation(2000)
    random_efficiency = lengths.sum() / sum(padded(batch, lengths) for batch in np.split(order, 125))
    assert random_efficiency < (0.45, 0.4)[columns - 1]
    assert efficiency > (0.88, 0.65)[columns - 1]


def test_batches_come_in_random_order_of_length():
    lengths = lengths_of(400)
    (epoch,) = epochs_of(StepSampler(lengths, 0, 8), 1)
    means = [lengths[batch].mean() for batch in epoch]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@pytest.mark.parametrize(("epochs", "max_steps", "expected"), [(20, None, 60), (None, 7, 7), (2, 100, 6), (20, 7, 7), (1, 3, 3), (1, 1, 1)])
def test_epochs_or_max_steps_end_training_whichever_comes_first(epochs, max_steps, expected):
    assert StepSampler(lengths_of(10), 0, 4).count(epochs, max_steps) == expected


def test_progress_is_counted_in_fractions_of_an_epoch():
    sampler = StepSampler(lengths_of(10), 0, 4)  # 3 steps per epoch
    assert [sampler.epochs_done(step) for step in (0, 1, 3, 4, 6)] == pytest.approx([0, 1 / 3, 1, 4 / 3, 2])
    assert sampler.epoch_ends(8) == [3, 6]
    assert sampler.epoch_ends(9) == [3, 6, 9]
    assert StepSampler(lengths_of(10), 0, 4).epoch_ends(0) == []
    assert StepSampler(lengths_of(10), 0, 4).epochs_done(5) == pytest.approx(5 / 3)


def test_epochs_of_token_batches_end_where_every_sample_was_seen():
    sampler = StepSampler(lengths_of(150), 1, None, 400)
    ends = sampler.epoch_ends(sampler.count(4, None))
    assert len(ends) == 4
    assert len({end - start for start, end in pairwise([0, *ends])}) > 1, "the epochs have different numbers of steps"
    for epoch, (start, end) in enumerate(pairwise([0, *ends])):
        assert sampler.epochs_done(end) == epoch + 1
        assert epoch < sampler.epochs_done(end - 1) < epoch + 1 or end - start == 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 2, 5, 16, 33])
def test_every_sample_of_a_step_goes_to_exactly_one_micro_batch_and_rank(n, micro_batches, ranks):
    lengths = lengths_of(100, 2)
    ids = np.random.default_rng(n).permutation(100)[:n]
    parts = deal(ids, lengths, micro_batches, ranks)
    assert [len(part) for part in parts] == [ranks] * micro_batches
    assert sorted(sample for part in parts for share in part for sample in share) == sorted(ids)
    for part in parts:
        sizes = [len(share) for share in part]
        assert max(sizes) - min(sizes) <= 1, "every rank has about as many samples"
    merged = [np.concatenate(part) for part in parts]
    assert max(map(len, merged)) - min(map(len, merged)) <= 1
    borders = [(lengths[merged_ids].sum(1).min(), lengths[merged_ids].sum(1).max()) for merged_ids in merged if len(merged_ids)]
    assert all(shorter[1] <= longer[0] for shorter, longer in pairwise(borders)), "micro-batches are sorted by length"
