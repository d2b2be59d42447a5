"""Encoder and decoder: gradients, padding, dropout, and whether training and decoding agree."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastrnn.models import Seq2Seq
from fastrnn.models.encoder_decoder import Bridge, Steps
from fastrnn.models.nn import Embedding, Output
from fastrnn.models.reading import Combine
from fastrnn.models.writing_model import _sampled
from pair_models import TOLERANCE, batch_of, check_gradients, check_padding, gradients, log_softmax

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
FLAGS = ("bidirectional", "input_feeding", "tie", "reverse", "skip")
#: Every combination that there may be.
ALL = [
    {"cell": cell, "attention": attention, "layers": layers, **dict(zip(FLAGS, flags, strict=True))}
    for cell, attention, layers, *flags in itertools.product(
        ("lstm", "gru", "rnn", "rnn_relu"), ("none", "dot", "general", "additive"), (1, 2), *[(False, True)] * 5
    )
    if not (attention == "dot" and flags[0]) and not (attention == "none" and flags[1])
]


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


@pytest.mark.parametrize("seed", range(12))
def test_gradients_with_any_options(seed):
    rng = np.random.default_rng(seed)
    options = ALL[rng.integers(len(ALL))] | {"dropout": float(rng.choice([0.0, 0.3]))}
    learned = {"label_smoothing": float(rng.choice([0.0, 0.2])), "sampling": float(rng.choice([0.0, 0.6]))}
    model = Seq2Seq(embedding=5, hidden=5, dtype="float64", seed=seed, **options)
    check_gradients(model, (SOURCE, TARGET), **learned)


@pytest.mark.parametrize("tie", [False, True])
def test_gradients_of_another_batch_do_not_stay(tie):
    model = made(tie=tie, attention="additive", bidirectional=True)
    whole, rest = batch_of(model, (SOURCE, TARGET)), batch_of(model, (SOURCE, TARGET), [1, 4])
    loss, want = gradients(model, rest, label_smoothing=0.1)
    for _ in range(2):
        model.loss_and_grads(whole, accumulate=False)
    assert model.loss_and_grads(rest, label_smoothing=0.1, accumulate=False) == loss
    for group, grads in zip(model.grads, want, strict=True):
        for name, grad in grads.items():
            assert_allclose(group[name], grad, **TOLERANCE)


@pytest.mark.parametrize("states", [1, 2])
def test_bridge(states):
    """Each layer's two directions, side by side, become its first state in the decoder."""
    layers, rows, hidden = 3, 2, 4
    rng = np.random.default_rng(0)
    bridge = Bridge(layers, hidden, states, np.dtype("float64"), rng)
    state = tuple(rng.standard_normal((2 * layers, rows, hidden)) for _ in range(states))
    found, tape = bridge.forward(state if states == 2 else state[0])
    found = found if states == 2 else (found,)
    slopes = [rng.standard_normal(part.shape) for part in found]
    dstate = bridge.backward(tape, tuple(slopes) if states == 2 else slopes[0])
    dstate = dstate if states == 2 else (dstate,)
    for name, part, got, slope, dpart in zip("hc", state, found, slopes, dstate, strict=False):
        weight, bias = bridge.parameters[f"weight_{name}"], bridge.parameters[f"bias_{name}"]
        for layer, row in itertools.product(range(layers), range(rows)):
            both = np.concatenate([part[2 * layer, row], part[2 * layer + 1, row]])
            y = weight[layer] @ both + bias[layer, 0]
            inner = np.ones(hidden) if name == "c" else 1.0 - np.tanh(y) ** 2
            assert_allclose(got[layer, row], y if name == "c" else np.tanh(y), **TOLERANCE)
            dboth = weight[layer].T @ (inner * slope[layer, row])
            assert_allclose(np.concatenate([dpart[2 * layer, row], dpart[2 * layer + 1, row]]), dboth, **TOLERANCE)


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


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_smoothed_loss_of_the_output_layer(tie, accumulate):
    """Against all (N, V) numbers."""
    rng, share, scale = np.random.default_rng(0), 0.25, 0.125
    embed = Embedding(6, 4, np.dtype("float64"), rng)
    output = Output(4, 6, np.dtype("float64"), rng, embed if tie else None)
    output.parameters["bias"][...] = rng.standard_normal(6)
    output.weight[...] = rng.standard_normal((6, 4))
    dweight, dbias = (embed if tie else output).grads["weight"], output.grads["bias"]
    dweight[...], dbias[...] = 7.0, 7.0
    x, targets = rng.standard_normal((9, 4)), rng.integers(0, 4, 9).astype(np.int32)  # some twice, some not at all
    nats, dx = output.loss(x, targets, scale, accumulate, smoothing=share)
    log_p = log_softmax(x @ output.weight.T + output.parameters["bias"])
    q = (1.0 - share) * np.eye(6)[targets] + share / 6
    d = scale * (np.exp(log_p) - q)
    there = 7.0 if accumulate else 0.0
    assert_allclose(nats, -(q * log_p).sum(axis=1), **TOLERANCE)
    assert_allclose(dx, d @ output.weight, **TOLERANCE)
    assert_allclose(dweight - there, d.T @ x, **TOLERANCE)
    assert_allclose(dbias - there, d.sum(axis=0), **TOLERANCE)


# -- decoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
def test_training_and_decoding_agree(part):
    """The loss of the forced target is the sum of the decoder's step scores, whatever the options are."""
    for options in ALL[part::4]:
        model = made(**options)
        batch = batch_of(model, (SOURCE, TARGET))
        steps, sums, rows = model._steps(batch.source, batch.source_lengths), np.zeros(len(SOURCE)), np.arange(6)
        for t, (inputs, targets) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
            kept = np.flatnonzero(batch.target_lengths[rows] > t)  # sentences that have ended are left out
            kept = np.random.default_rng(t).permutation(kept)
            steps.select(kept)
            rows = rows[kept]
            sums[rows] -= log_softmax(steps.step(inputs[rows]))[np.arange(len(rows)), targets[rows]]
        nats = model._nats(batch)
        assert_allclose(sums, nats, rtol=1e-12, err_msg=str(options))
        assert nats.sum() / batch.target_lengths.sum() == pytest.approx(model.loss_and_grads(batch), rel=1e-12), options
        steps.select(rows[:0])
        assert steps.step(np.empty(0, np.int32)).shape == (0, len(model.vocabularies["target"]))


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
    order = np.array([10, 11, 1, 0, 3, 3, 4, 5])  # without sentences 3 and 4, and with one row twice
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
    some, steps = inputs(0.5), model._steps(batch.source, batch.source_lengths)
    assert_array_equal(some[0], batch.inputs[0])
    taken = np.random.default_rng(0).random(some.shape) < 0.5
    for t, before in enumerate(some[:-1], 1):
        assert_array_equal(some[t], np.where(taken[t], steps.step(before).argmax(axis=1), batch.inputs[t]))
    assert (some != batch.inputs).any()
    plain = model.loss_and_grads(batch)
    assert model.loss_and_grads(batch, np.random.default_rng(0), sampling=1.0) != plain
    assert model.loss_and_grads(batch, np.random.default_rng(0), sampling=0.0) == plain


def test_dropout():
    model = made(dropout=0.5, attention="general", layers=2)
    batch = batch_of(model, (SOURCE, TARGET))
    losses = [model.loss_and_grads(batch, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    with_all = made(dropout=1.0, attention="general", layers=2)  # what is left is the bias
    loss, grads = gradients(with_all, batch, np.random.default_rng(1))
    bias = with_all.parameters[-1]["bias"]
    targets = np.concatenate(
        [target[:length] for target, length in zip(batch.targets.T, batch.target_lengths, strict=True)]
    )
    assert loss == pytest.approx(-log_softmax(bias)[targets].mean(), rel=1e-12)
    assert [name for group in grads for name, grad in group.items() if grad.any()] == ["bias"]
    for each, name in ((with_all, "dropout=1.0"), (made(), "sampling=0.1")):
        with pytest.raises(ValueError, match=rf"Seq2Seq\.loss_and_grads: {name} needs rng, got None"):
            each.loss_and_grads(batch, sampling=0.1)


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


@every_kind
@pytest.mark.parametrize(("count", "sentences"), [(1, 6), (4, 6), (100, 6), (3, 12)])
def test_the_best_tokens_are_those_of_the_logits(options, count, sentences):
    """Packed weights or not, also after a selection."""
    model = made(**options)
    batch, never = batch_of(model, (SOURCE * 2, TARGET * 2), range(sentences)), np.array([3, 0], np.int32)
    one, other = (model._steps(batch.source, batch.source_lengths) for _ in range(2))
    for t in range(3):
        tokens = batch.inputs[t % len(batch.inputs)][: 2 * sentences // 3 if t else None]
        log_p = log_softmax(one.step(tokens))
        log_p[:, never] = -np.inf
        ids, got = other.best(tokens, count, never)
        want = np.argsort(-log_p, axis=1, kind="stable")[:, :count]
        inside = got > -np.inf
        assert inside.sum(axis=1).tolist() == [min(count, log_p.shape[1] - len(never))] * len(tokens)
        assert_array_equal(ids[inside], want[inside])
        assert_allclose(got[inside], np.take_along_axis(log_p, want, axis=1)[inside], rtol=0, atol=1e-12)
        if not t:
            for steps in (one, other):
                steps.select(np.arange(2 * sentences // 3))


def test_contexts_and_outputs_are_combined():
    """As one product of both side by side."""
    rng = np.random.default_rng(5)
    combine = Combine(3, 4, np.dtype("float64"), rng)
    weight, bias = combine.parameters["weight"], combine.parameters["bias"]
    contexts, outputs = rng.standard_normal((2, 5, 3)).swapaxes(0, 1), rng.standard_normal((5, 2, 4))
    a = combine.forward(contexts, outputs)
    joined = np.concatenate([contexts, outputs], axis=2)
    assert_allclose(a, np.tanh(joined @ weight.T + bias), rtol=0, atol=1e-14)
    da = rng.standard_normal(a.shape)
    dcontexts, doutputs = combine.backward(contexts, outputs, a, da)
    dsums = da * (1 - a**2)
    assert_allclose(np.concatenate([dcontexts, doutputs], axis=2), dsums @ weight, rtol=0, atol=1e-14)
    assert_allclose(combine.grads["weight"], np.einsum("tbo,tbi->oi", dsums, joined), rtol=0, atol=1e-13)
    assert_allclose(combine.grads["bias"], dsums.sum(axis=(0, 1)), rtol=0, atol=1e-13)
