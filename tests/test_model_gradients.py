"""Gradients inside a model: how far they reach back, and what clipping does to them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fastrnn import reference
from fastrnn.models import LanguageModel, gradients, inspection
from inspected import PROSE, built, kernels
from tiny_model import QUICK, TEXT


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def everything(model) -> list[np.ndarray]:
    return [array.copy() for groups in (model.parameters, model.grads) for group in groups for array in group.values()]


@pytest.mark.parametrize("loss", ["last", "mean"])
@pytest.mark.parametrize("layers", [1, 2])
@kernels
def test_flow_is_the_gradient_by_the_state_from_which_the_reference_starts_again(kernel, options, layers, loss):
    model, steps = built(layers=layers, **options), 9
    flow = gradients.gradient_flow(model, PROSE, steps, windows=3, loss=loss)
    assert flow.steps_back.tolist() == list(range(1, steps + 1))
    assert list(flow.norms) == ["h", "c"][: 1 + (kernel == "lstm")]

    ids = model.vocabulary.encode(PROSE)
    starts = [0, (len(ids) - steps - 1) // 2, len(ids) - steps - 1]
    rows = np.stack([ids[start : start + steps + 1] for start in starts], axis=1)
    weights = model.recurrent.parameters
    sizes = {"num_layers": layers, "proj_size": model.proj_size}
    for back in range(1, steps + 1):
        cut = steps - back
        x = model.embed.parameters["weight"][rows]
        _, state, _ = reference.forward(kernel, x[:cut], weights, **sizes)
        y, _, tape = reference.forward(kernel, x[cut:-1], weights, state, **sizes)
        logits = y @ model.output.weight.T + model.output.parameters["bias"]
        p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        dy = (p - np.eye(len(model.vocabulary))[rows[cut + 1 :]]) @ model.output.weight
        if loss == "last":
            dy[:-1] = 0.0
        else:
            dy /= steps
        _, dstate, _ = reference.backward(tape, dy)
        for name, want in zip(flow.norms, parts(dstate), strict=True):
            np.testing.assert_allclose(flow.norms[name][:, back - 1], np.linalg.norm(want, axis=-1), rtol=1e-9)


@pytest.mark.parametrize("skip", [False, True])
def test_flow_is_the_slope_of_the_loss(skip):
    model, steps, back, step = built(layers=2, skip=skip), 6, 4, 1e-6
    flow = gradients.gradient_flow(model, PROSE, steps, windows=1)
    ids = model.vocabulary.encode(PROSE[: steps + 1])
    x = model.embed.forward(ids[:, None])
    _, state = model.recurrent(x[: steps - back])

    def loss() -> float:
        y, _ = model.recurrent(x[steps - back : -1], state)
        return float(model.output.nats(y[-1], ids[-1:])[0])

    state = tuple(np.array(part) for part in state)
    for name, part in zip(("h", "c"), state, strict=True):
        slopes = np.zeros_like(part)
        for index in np.ndindex(part.shape):
            kept = part[index]
            part[index] = kept + step
            above = loss()
            part[index] = kept - step
            slopes[index] = (above - loss()) / (2 * step)
            part[index] = kept
        np.testing.assert_allclose(
            flow.norms[name][:, back - 1, 0], np.linalg.norm(slopes[:, 0], axis=-1), rtol=1e-5, atol=1e-9
        )


@pytest.mark.parametrize("factor", [1e-3, 1.0, 30.0])
def test_flow_keeps_the_orders_of_magnitude(factor):
    model, steps = built(cell="rnn", dtype="float32"), 80
    for name, array in model.recurrent.parameters.items():
        array[...] = np.eye(5) * factor if name == "weight_hh_l0" else 0.0  # h stays 0, where tanh' is 1
    norms = gradients.gradient_flow(model, PROSE, steps, windows=2).norms["h"][0]
    rate = float(np.float32(factor))
    want = norms[0] * rate ** np.arange(steps)[:, None]
    np.testing.assert_allclose(norms, want, rtol=1e-12)
    assert (norms > 0).all()


def test_flow_of_single_precision_and_what_it_leaves():
    model = built(cell="gru", layers=2, dtype="float32", dropout=0.4)
    wide = built(cell="gru", layers=2, dropout=0.4)
    for group, wider in zip(model.parameters, wide.parameters, strict=True):
        for name, array in group.items():
            wider[name][...] = array
    for each in model.grads:
        for array in each.values():
            array.fill(7.0)
    before, generator = everything(model), model.recurrent._rng.bit_generator.state
    got = gradients.gradient_flow(model, PROSE, 12).norms["h"]
    norms = gradients.gradient_norms(model, PROSE, 2).norms
    inspection.gate_saturation(model, PROSE)
    inspection.best_units(model, PROSE, "digit")
    for now, then in zip(everything(model), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert model.recurrent._rng.bit_generator.state == generator
    model.zero_grad()
    np.testing.assert_array_equal(gradients.gradient_norms(model, PROSE, 2).norms, norms)
    # Only the gradient of the softmax layer, by which all are multiplied, is of single precision.
    want = gradients.gradient_flow(wide, PROSE, 12).norms["h"]
    np.testing.assert_allclose(got, want, rtol=len(model.vocabulary) * np.finfo(np.float32).eps)


def test_windows_of_a_short_text():
    model = built()
    assert gradients.gradient_flow(model, PROSE[:11], 10).norms["c"].shape == (1, 10, 1)
    flow = gradients.gradient_flow(model, PROSE[:13], 10)
    assert flow.norms["h"].shape == (1, 10, 3)
    np.testing.assert_array_equal(flow.quartiles("h")[1], np.median(flow.norms["h"], axis=2))
    data = flow.to_dict()
    assert (data["steps"], data["windows"]) == (10, 3)
    np.testing.assert_allclose(data["norms"]["c"]["median"], flow.quartiles("c")[1], rtol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_gradient_norms_are_those_of_fit(clip, dropout):
    model, text = built(dropout=dropout), PROSE * 2
    options = {"batch_size": 4, "bptt": 16, "lr": 2.0, "clip": clip}
    steps = -(-((len(text) - 1) // 4) // 16)
    run = gradients.gradient_norms(model, text, steps + 2, **options)
    (record,) = model.fit(text, epochs=1, optimizer="sgd", progress=False, **options)
    weights = np.full(steps, 16.0)
    weights[-1] = (len(text) - 1) // 4 - 16 * (steps - 1)
    assert np.average(run.losses[:steps], weights=weights) == pytest.approx(record["loss"], rel=1e-12)
    assert np.mean(run.norms[:steps]) == pytest.approx(record["grad_norm"], rel=1e-12)
    assert record["clipped"] == (0.0 if clip is None else np.mean(run.norms[:steps] > clip))
    assert run.norms.shape == run.losses.shape == (steps + 2,)
    assert run.losses[steps] < run.losses[0]  # the text begins anew
    assert run.clipped.max() == (run.norms.max() if clip is None else clip)
    assert (run.cell, run.clip, run.diverged) == ("lstm", clip, False)


def test_a_run_that_diverges_ends():
    run = gradients.gradient_norms(built(cell="rnn", dtype="float32"), PROSE, 20, lr=1e38)
    assert run.diverged
    assert len(run.norms) == len(run.losses) < 20
    assert np.isfinite(run.norms).all()
    assert json.loads(json.dumps(run.to_dict(), allow_nan=False))["diverged"]


def test_clipping_history():
    model = LanguageModel(embedding=6, hidden=12, seed=3)
    assert gradients.clipping_history(model).epoch.shape == (0,)
    model.history = [{"epoch": 1, "clipped": 0.5}, {"epoch": 2, "clipped": 0.25, "grad_norm": 2.0}, {"loss": 1.0}]
    history = gradients.clipping_history(model)
    assert history.epoch.tolist() == [1, 2]
    assert history.clipped.tolist() == [0.5, 0.25]
    assert math.isnan(history.grad_norm[0])
    assert history.to_dict() == {"epoch": [1, 2], "clipped": [0.5, 0.25], "grad_norm": [None, 2.0]}
    model.fit(TEXT, epochs=2, **QUICK)
    assert gradients.clipping_history(model).clipped.tolist() == [record["clipped"] for record in model.history]
