"""Looking inside a model: activations, gates, units that follow a predicate, and every refusal."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from fastrnn import reference
from fastrnn.models import LanguageModel, NgramModel, gradients, inspection, predicates
from fastrnn.models.inspect_command import inspect
from inspected import PROSE, built, kernels

# -- activations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@kernels
def test_activations_and_saturation_against_a_plain_loop(kernel, options, dtype):
    model = built(layers=2, dtype=dtype, **options)
    cell = model.cell
    if cell != "rnn_relu":  # whose states would grow without bound
        for array in model.recurrent.parameters.values():
            array *= 4.0  # so that some gates saturate
    ids = model.vocabulary.encode(PROSE)
    assert len(ids) > 600  # more than two chunks
    x = model.embed.parameters["weight"][ids[:, None]]
    _, _, tape = reference.forward(kernel, x, model.recurrent.parameters, num_layers=2, proj_size=model.proj_size)
    names = {"gru": ("r", "z", "n"), "lstm": ("i", "f", "g", "o")}.get(cell, ("h",))
    close = {"rtol": 0, "atol": 1e-10 if dtype == "float64" else 1e-4}  # the states' rounding, over a stable recurrence
    gates = {(gate.layer, gate.name): gate for gate in inspection.gate_saturation(model, PROSE)}
    assert list(gates) == [(layer, name) for layer in range(2) for name in names]
    for layer, (_, weights, steps) in enumerate(tape.scans):
        h = np.stack([step.cell_output[0] for step in steps])
        want = {"h": h if weights.w_hr is None else h @ weights.w_hr.T}
        for place, name in enumerate(names):
            want[name] = np.stack([step.saved[place][0] for step in steps])
        if cell == "lstm":
            # A step keeps the cell before it.
            got = inspection.activations(model, PROSE, layer, of="c")
            np.testing.assert_allclose(got[:-1], np.stack([step.saved[4][0] for step in steps])[1:], **close)
        for name, values in want.items():
            got = inspection.activations(model, PROSE, layer, of=name)
            assert got.dtype == dtype
            np.testing.assert_allclose(got, values, **close, err_msg=name)
        for name in names:
            values, gate = inspection.activations(model, PROSE, layer, of=name), gates[layer, name]
            low, high = (-0.9 if name in ("g", "n", "h") else 0.1), 0.9
            if cell == "rnn_relu":
                low = high = 0.0
                assert (gate.low + gate.high).tolist() == pytest.approx([1.0] * 5)
            assert gate.thresholds == (low, high)
            for unit in range(5):
                assert gate.low[unit] == sum(value <= low for value in values[:, unit]) / len(ids)
                assert gate.high[unit] == sum(value > high for value in values[:, unit]) / len(ids)
    y, _ = model.recurrent(x)
    np.testing.assert_allclose(inspection.activations(model, PROSE), y[:, 0], **close)
    assert sum(gate.high.sum() + gate.low.sum() for gate in gates.values()) > 0


@kernels
def test_activations_of_a_model_with_skip_connections(kernel, options):
    model = built(layers=2, skip=True, **options)  # sizes 4 and 5: the first layer has none
    layers = [inspection.activations(model, PROSE, layer) for layer in range(2)]
    y, _ = model.recurrent(model.embed.parameters["weight"][model.vocabulary.encode(PROSE)[:, None]])
    np.testing.assert_allclose(sum(layers), y[:, 0], rtol=0, atol=1e-10)


def test_predicates():
    def marks(function, text):
        return "".join(str(int(each)) for each in function(list(text)))

    assert marks(predicates.inside_quotes, 'a"bc"d“e”"f') == "01110011000"
    assert marks(predicates.inside_quotes, 'x"y\n\nz"w"') == "000000110"
    assert marks(predicates.inside_parentheses, ")a(b(c)d)e)(f") == "0011111100011"
    assert marks(predicates.line_position, "ab\n\nc") == "12001"
    assert marks(predicates.upper_case, "aBÉ1") == "0110"
    assert marks(predicates.digit, "a1 ") == "010"
    assert marks(predicates.space, "a \n") == "011"
    parts = ["a", "", "é", "\n", "", ""]  # the first bytes of a character are an empty token
    assert predicates.line_position(parts).tolist() == [1, 1, 2, 0, 0, 0]
    words = ["He", ' "no', ' way"', " (x", " y)", "\n"]
    assert predicates.inside_quotes(words).tolist() == [False, True, False, False, False, False]
    assert predicates.inside_parentheses(words).tolist() == [False, False, False, True, False, False]
    assert predicates.line_position(words).tolist() == [2, 6, 11, 14, 17, 0]
    assert set(predicates.PREDICATES) >= {"inside_quotes", "inside_parentheses", "line_position", "upper_case", "space"}


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_best_units_finds_the_planted_one(sign):
    model = built(cell="gru", layers=2)
    vocabulary, weight = model.vocabulary, model.embed.parameters["weight"]
    weight[:, 0] = [1.0 if symbol.isupper() else -1.0 for symbol in ["", *vocabulary.symbols]]
    own = model.recurrent.parameters
    own["weight_ih_l0"][5 + 3] = own["weight_hh_l0"][5 + 3] = own["weight_hh_l0"][10 + 3] = 0.0
    own["bias_ih_l0"][5 + 3] = -50.0  # z = 0: h is the candidate
    own["weight_ih_l0"][10 + 3] = [3.0 * sign, 0.0, 0.0, 0.0]
    first, *_ = inspection.best_units(model, PROSE, "upper_case")
    assert (first.layer, first.unit) == (0, 3)
    assert first.correlation == pytest.approx(sign, abs=1e-3)


@pytest.mark.parametrize(("of", "proj_size", "size"), [("h", 0, 5), ("c", 0, 5), ("h", 3, 3), ("c", 3, 5), ("i", 3, 5)])
def test_correlations_of_all_units(of, proj_size, size):
    model = built(layers=2, proj_size=proj_size)
    for name in ("weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
        model.recurrent.parameters[name][10 + 2] = 0.0  # g = 0: c of unit 2 never moves
    if proj_size:
        model.recurrent.parameters["weight_hr_l1"][2] = 0.0
    still = [] if of == "i" else [(1, 2)]
    wanted = np.random.default_rng(0).standard_normal(len(PROSE))
    units = inspection.best_units(model, PROSE, lambda tokens: wanted, of=of, top=99)
    assert sorted((each.layer, each.unit) for each in units) == [(i, j) for i in range(2) for j in range(size)]
    for each in units:
        values = inspection.activations(model, PROSE, each.layer, of)[:, each.unit]
        want = 0.0 if (each.layer, each.unit) in still else np.corrcoef(values, wanted)[0, 1]
        assert each.correlation == pytest.approx(want, abs=1e-10)
    sizes = [abs(each.correlation) for each in units]
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(ValueError, match=f"unit must be an integer from 0 to {size - 1}, got {size}"):
        inspection.unit_heat_map(model, PROSE, size, of=of)
    only = inspection.best_units(model, PROSE, lambda tokens: wanted, -1, of=of, top=99)
    assert only == [each for each in units if each.layer == 1]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: gradients.gradient_flow(m, "abc", 3), ValueError, "gradient_flow: text must have at least 4 charac"),
        (lambda m: gradients.gradient_flow(m, PROSE, 0), ValueError, "steps must be an integer >= 1, got 0"),
        (lambda m: gradients.gradient_flow(m, PROSE, windows=1.5), TypeError, "windows must be an integer >= 1"),
        (lambda m: gradients.gradient_flow(m, PROSE, loss="sum"), ValueError, "loss must be one of 'last', 'mean'"),
        (lambda m: gradients.gradient_flow(m, b"abc"), TypeError, "gradient_flow: text must be a str, got bytes"),
        (lambda m: gradients.gradient_norms(m, "abc"), ValueError, "gradient_norms: text must have at least 9 charac"),
        (lambda m: gradients.gradient_norms(m, PROSE, lr=0.0), ValueError, "lr must be a finite number > 0"),
        (lambda m: gradients.gradient_norms(m, PROSE, clip=-1.0), ValueError, "clip must be a finite number > 0"),
        (lambda m: gradients.gradient_norms(m, PROSE, bptt=0), ValueError, "bptt must be an integer >= 1"),
        (lambda m: inspection.activations(m, ""), ValueError, "activations: text must have at least 1 characters"),
        (lambda m: inspection.activations(m, "a", 2), ValueError, "layer must be an integer from -2 to 1, got 2"),
        (lambda m: inspection.activations(m, "a", of="x"), ValueError, "of must be one of 'h', 'c', 'i', 'f', 'g', 'o"),
        (lambda m: inspection.gate_saturation(m, 3), TypeError, "gate_saturation: text must be a str, got int"),
        (
            lambda m: inspection.unit_heat_map(m, "a", 5),
            ValueError,
            "heat_map: unit must be an integer from 0 to 4, got",
        ),
        (lambda m: inspection.best_units(m, "ab", "vowel"), ValueError, "predicate must be one of 'inside_quotes', "),
        (
            lambda m: inspection.best_units(m, "ab", 7),
            TypeError,
            "predicate must be a name or a function of the tokens",
        ),
        (lambda m: inspection.best_units(m, "ab", "digit"), ValueError, "'digit' is False at all 2 tokens"),
        (lambda m: inspection.best_units(m, "ab", len), ValueError, r"for each of 2 tokens, got int64 \(\)"),
        (
            lambda m: inspection.best_units(m, "ab", lambda t: [0.0, math.nan]),
            ValueError,
            "truth value or finite number",
        ),
        (lambda m: inspection.best_units(m, "ab", "space", top=0), ValueError, "top must be an integer >= 1"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(built(layers=2))


def test_models_that_cannot_be_looked_into(tmp_path):
    for call in (gradients.gradient_flow, inspection.gate_saturation, lambda *args: inspect(*args, tmp_path)):
        with pytest.raises(ValueError, match="NgramModel has no recurrent layer"):
            call(NgramModel(2), PROSE)
        with pytest.raises(RuntimeError, match="the model has no vocabulary yet"):
            call(LanguageModel(seed=0), PROSE)
        elsewhere = SimpleNamespace(recurrent=SimpleNamespace(device="cuda:0"))
        with pytest.raises(ValueError, match="model must be on the CPU, got one on 'cuda:0'"):
            call(elsewhere, PROSE)
    broken = built()
    broken.recurrent.parameters["weight_hh_l0"][0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="gradient_flow: a gradient is not finite"):
        gradients.gradient_flow(broken, PROSE, 5)
