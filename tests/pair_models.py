"""What the tests of models that learn from pairs share."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fastrnn import reference
from fastrnn.models import load

KERNELS = {"lstm": "lstm", "gru": "gru", "rnn": "rnn_tanh", "rnn_relu": "rnn_relu"}
STACKS = [
    {},
    {"cell": "gru", "layers": 2, "dropout": 0.3},
    {"cell": "lstm", "layers": 2, "skip": True, "embedding": 3, "hidden": 3, "dropout": 0.2},
    {"cell": "rnn", "layers": 2},
    {"cell": "rnn_relu", "skip": True},
]
EPS = np.finfo(np.float64).eps
TOLERANCE = {"rtol": 1e4 * EPS, "atol": 1e3 * EPS}  # of sums of some hundred products, in another order


def batch_of(model, pairs, rows=None):
    """Pairs side by side, all of them or these."""
    ids = model._ids("t", "pairs", pairs, model._read("t", "pairs", pairs), 99)
    return model._batch(*ids, np.arange(len(ids[1])) if rows is None else np.array(rows))


def gradients(model, batch, rng=None, **options):
    model.zero_grad()
    loss = model.loss_and_grads(batch, rng, **options)
    return loss, [{name: grad.copy() for name, grad in group.items()} for group in model.grads]


def check_gradients(model, pairs, **options):
    """In float64, against finite differences, of all numbers of each weight at once; and that they add up, or take the
    place of others."""
    model.build(pairs)
    batch = batch_of(model, pairs)
    _, analytic = gradients(model, batch, np.random.default_rng(5), **options)
    model.loss_and_grads(batch, np.random.default_rng(5), **options)
    for group, grads in zip(model.grads, analytic, strict=True):
        for name, grad in grads.items():
            assert_allclose(group[name], 2 * grad, **TOLERANCE)
    model.loss_and_grads(batch, np.random.default_rng(5), accumulate=False, **options)
    for group, grads in zip(model.grads, analytic, strict=True):
        for name, grad in grads.items():
            assert_allclose(group[name], grad, **TOLERANCE)
    step, rng = 1e-5, np.random.default_rng(6)
    for params, grads in zip(model.parameters, analytic, strict=True):
        for name, param in params.items():
            kept, way, losses = param.copy(), rng.standard_normal(param.shape), []
            for moved in (kept + step * way, kept - step * way):
                param[...] = moved
                losses.append(model.loss_and_grads(batch, np.random.default_rng(5), **options))
            param[...] = kept
            slope = (losses[0] - losses[1]) / (2 * step)
            assert slope == pytest.approx(float((grads[name] * way).sum()), rel=1e-6, abs=1e-9), name
            assert grads[name].any(), name


def check_padding(model, pairs):
    """What is computed of a pair, and what is learned from it, does not depend on those beside it."""
    count = len(pairs[1])
    tokens = batch_of(model, pairs).target_lengths
    loss, together = gradients(model, batch_of(model, pairs))
    mean, sums = 0.0, [{name: np.zeros_like(grad) for name, grad in group.items()} for group in together]
    for row in range(count):
        own, alone = gradients(model, batch_of(model, pairs, [row]))
        share = tokens[row] / tokens.sum()
        mean += own * share
        for total, group in zip(sums, alone, strict=True):
            for name, grad in group.items():
                total[name] += grad * share
    assert loss == pytest.approx(mean, rel=1e-12)
    for total, group in zip(sums, together, strict=True):
        for name, grad in group.items():
            assert_allclose(grad, total[name], **TOLERANCE)
    scores = model.score(pairs)
    for size in (1, 4):
        assert_allclose(model.score(pairs, batch_size=size), scores, **TOLERANCE)
    assert -scores.sum() / tokens.sum() == pytest.approx(loss, rel=1e-12)
    figures = model.evaluate(pairs, batch_size=2)
    assert figures["loss"] == pytest.approx(loss, rel=1e-12)
    assert figures["perplexity"] == pytest.approx(np.exp(loss), rel=1e-12)
    assert figures["tokens"] == tokens.sum()


def check_files(make, pairs, answers, folder):
    """A saved model answers as before, and a run that goes on from it is that of one to the bit."""
    run = {"batch_size": 4, "lr": 0.01, "progress": False, "valid": pairs}
    whole, model = make(), make()
    whole.fit(pairs, epochs=4, **run)
    model.fit(pairs, epochs=2, checkpoint=folder, **run)
    for each in (load(folder), type(model).load(folder)):
        assert type(each) is type(model)
        assert each.config == model.config
        assert each.history == model.history
        assert answers(each) == answers(model)
        each.fit(pairs, epochs=4, resume=True, **run)
        for name, array in whole.state_dict().items():
            assert np.array_equal(each.state_dict()[name], array), name
    assert load(folder / "best").history


def recurrent(model, layer, x, state=None):
    """The reference's outputs and final state for inputs (T, 1, I) of a layer without skip connections."""
    return reference.forward(
        KERNELS[model.cell], x, layer.parameters, state, num_layers=model.layers, bidirectional=layer.bidirectional
    )[:2]


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
