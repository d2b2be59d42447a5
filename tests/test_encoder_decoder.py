"""Encoder and decoder: gradients, padding, dropout, and whether training and decoding agree."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastrnn.models import Seq2Seq
from fastrnn.models.encoder_decoder import Steps
from fastrnn.models.writing_model import _sampled
from pair_models import batch_of, check_gradients, check_padding, gradients, log_softmax

SOURCE = ["a b c d", "b", "c c d a b", "d a", "", "a a"]
TARGET = ["x y", "z z x y x", "y", "w x", "z", ""]
OPTIONS = [
    {"attention": "none", "layers": 2},
    {"attention": "dot", "tie": True, "reverse": True},
    {"attention": "general", "bidirectional": True, "cell": "gru", "layers": 2},
    {"attention": "additive", "bidirectional": True, "input_feeding": True},
    {"attention": "additive", "cell": "rnn", "tie": True, "input_feeding": True},
    {"attention": "dot", "input_feeding": True, "cell": "gru", "layers": 2, "dropout": 0.3},
    {"attention": "general", "bidirectional": True, "layers": 2, "skip": True, "dropout": 0.2},
    {"attention": "none", "bidirectional": True, "cell": "rnn_relu"},
]
every_kind = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))


def made(scale=0.4, **options) -> Seq2Seq:
    model = Seq2Seq(**{"embedding": 5, "hidden": 5, "dtype": "float64", "seed": 3} | options)
    model.build((SOURCE, TARGET))
    rng = np.random.default_rng(0)
    for group in model.parameters:
        for array in group.values():
            array[...] = rng.normal(0, scale, array.shape)
    return model


@every_kind
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients(options, smoothing):
    model = Seq2Seq(embedding=5, hidden=5, dtype="float64", seed=3, **options)
    check_gradients(model, (SOURCE, TARGET), label_smoothing=smoothing)


@every_kind
def test_padding_counts_for_nothing(options):
    model = made(**options)
    batch = batch_of(model, (SOURCE, TARGET))
    loss, grads = gradients(model, batch, np.random.default_rng(1))
    for ids, lengths in ((batch.source, batch.source_lengths), (batch.inputs, batch.target_lengths)):
        past = np.arange(len(ids))[:, None] >= lengths
        ids[past] = np.random.default_rng(2).integers(0, 4, past.sum())
    batch.targets[np.arange(len(batch.targets))[:, None] >= batch.target_lengths] = 2
    again, same = gradients(model, batch, np.random.default_rng(1))
    assert again == loss
    for group, other in zip(grads, same, strict=True):
        for name in group:
            assert_array_equal(group[name], other[name])


@every_kind
def test_a_batch_is_its_rows(options):
    check_padding(made(**options | {"dropout": 0.0}), (SOURCE, TARGET))


def test_label_smoothing_spreads_the_target():
    model, share = made(attention="general"), 0.3
    batch = batch_of(model, (SOURCE, TARGET))
    memory, state = model._encoder(batch.source, batch.source_lengths)
    rows, places = model._decoder(
        batch.inputs, batch.target_lengths, model._decoder.prepare(memory, batch.source_lengths), state
    )
    logits = model._decoder.output.logits(rows)
    log_p = log_softmax(logits)
    q = (1.0 - share) * np.eye(logits.shape[1])[batch.targets.ravel()[places]] + share / logits.shape[1]
    want = -(q * log_p).sum() / len(places)
    assert model.loss_and_grads(batch, label_smoothing=share) == pytest.approx(want, rel=1e-12)


# -- decoding ----------------------------------------------------------------------------------------------------------


@every_kind
def test_training_and_decoding_agree(options):
    """The loss of the forced target is the sum of the decoder's step scores."""
    model = made(**options | {"dropout": 0.0})
    batch = batch_of(model, (SOURCE, TARGET))
    steps, sums, rows = model._steps(batch.source, batch.source_lengths), np.zeros(len(SOURCE)), np.arange(len(SOURCE))
    for t, (inputs, targets) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
        kept = np.flatnonzero(batch.target_lengths[rows] > t)  # sentences that have ended are left out
        if len(kept) < len(rows):
            steps.select(kept)
            rows = rows[kept]
        sums[rows] -= log_softmax(steps.step(inputs[rows]))[np.arange(len(rows)), targets[rows]]
    nats = model._nats(batch)
    assert_allclose(sums, nats, rtol=1e-12)
    assert nats.sum() / batch.target_lengths.sum() == pytest.approx(model.loss_and_grads(batch), rel=1e-12)
    assert_allclose(model.score((SOURCE, TARGET), batch_size=2), -nats, rtol=1e-12)


@every_kind
def test_rows_of_a_beam(options):
    """Two rows for each sentence, which part, change places and leave one out, are as each alone."""
    model = made(**options | {"dropout": 0.0})
    batch = batch_of(model, (SOURCE, TARGET))
    tokens = np.random.default_rng(4).integers(1, 5, (3, 2 * len(SOURCE)))
    steps = model._steps(batch.source, batch.source_lengths)
    steps.step(batch.inputs[0])
    rows = np.repeat(np.arange(len(SOURCE)), 2)
    steps.select(rows)
    steps.step(tokens[0])
    order = np.array([1, 0, 3, 3, 4, 5, 10, 11])  # without sentences 3 and 4, and with one row twice
    steps.select(order)
    got = steps.step(tokens[1][: len(order)])
    for row, place in enumerate(order):
        source = batch_of(model, (SOURCE, TARGET), [rows[place]])
        alone = model._steps(source.source, source.source_lengths)
        for token in (batch.inputs[0][:1], tokens[0][place : place + 1], tokens[1][row : row + 1]):
            want = alone.step(token)
        assert_allclose(got[row], want[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]])
def test_scheduled_sampling(options):
    model = made(**options)
    batch = batch_of(model, (SOURCE, TARGET))

    def inputs(share):
        return _sampled(model._steps(batch.source, batch.source_lengths), batch.inputs, share, np.random.default_rng(0))

    assert_array_equal(inputs(0.0), batch.inputs)
    own, steps = inputs(1.0), model._steps(batch.source, batch.source_lengths)
    assert_array_equal(own[0], batch.inputs[0])
    for before, after in itertools.pairwise(own):
        assert_array_equal(steps.step(before).argmax(axis=1), after)
    assert (own != batch.inputs).any()
    some = inputs(0.5)
    assert_array_equal(some[0], batch.inputs[0])
    assert (some != batch.inputs).any()
    plain = model.loss_and_grads(batch)
    assert model.loss_and_grads(batch, np.random.default_rng(0), sampling=1.0) != plain
    assert model.loss_and_grads(batch, np.random.default_rng(0), sampling=0.0) == plain


def test_dropout():
    model = made(dropout=0.5, attention="general", layers=2)
    batch = batch_of(model, (SOURCE, TARGET))
    losses = [model.loss_and_grads(batch, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    for options in ({}, {"sampling": 0.1}):
        with pytest.raises(ValueError, match=r"Seq2Seq.loss_and_grads: dropout and sampling need rng"):
            model.loss_and_grads(batch, **options)


def test_steps_keep_what_attention_read():
    model = made(attention="dot")
    batch = batch_of(model, (SOURCE, TARGET))
    memory, state = model._encoder(batch.source, batch.source_lengths)
    steps = Steps(model._decoder, model._decoder.prepare(memory, batch.source_lengths), state)
    assert steps.weights is None
    steps.step(batch.inputs[0])
    assert steps.weights.shape == (len(SOURCE), len(batch.source))
    assert_allclose(steps.weights.sum(axis=1), 1.0)
    assert_array_equal(steps.weights[np.arange(len(batch.source)) >= batch.source_lengths[:, None]], 0.0)
