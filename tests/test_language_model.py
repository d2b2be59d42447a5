"""LanguageModel: gradients, learning, carried state, scores, vocabulary and every refusal."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import tracemalloc
import types
from dataclasses import replace

import numpy as np
import pytest

import fastrnn
from fastrnn.models import CharVocabulary, LanguageModel, run
from fastrnn.models.nn import Dropout, Embedding, Output
from fastrnn.models.schedules import Options
from fastrnn.models.text_model import cut
from fastrnn.models.training import Streams, Trainer, streams
from tiny_model import QUICK, TEXT, check_gradients, tiny, tiny_trained, weights_equal


@pytest.fixture(scope="module")
def trained() -> LanguageModel:
    return tiny_trained()


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm"},
        {"cell": "gru", "layers": 2},
        {"cell": "rnn"},
        {"cell": "lstm", "layers": 2, "dropout": 0.3},
        {"cell": "gru", "tie": True, "embedding": 5, "hidden": 5, "dropout": 0.2},
        {"cell": "rnn_relu", "layers": 2, "dropout": (0.1, 0.2, 0.4)},
        {"cell": "gru", "layers": 3, "skip": True, "embedding": 5, "dropout": 0.2},
        {"cell": "lstm", "layers": 2, "proj_size": 3, "embedding": 3, "tie": True},
    ],
    ids=str,
)
def test_gradients_of_the_whole_model(options):
    check_gradients(LanguageModel(**{"embedding": 4, "hidden": 5, "seed": 1, "dtype": "float64", **options}))


def test_gradients_are_added():
    model = tiny(dtype="float64")
    model.build(TEXT)
    ids = model.vocabulary.encode(TEXT[:21]).reshape(7, 3)
    model.zero_grad()
    model.loss_and_grads(ids[:-1], ids[1:])
    once = [grad.copy() for group in model.grads for grad in group.values()]
    model.loss_and_grads(ids[:-1], ids[1:])
    for twice, grad in zip((g for group in model.grads for g in group.values()), once, strict=True):
        np.testing.assert_allclose(twice, 2 * grad, rtol=1e-12, atol=1e-15)


def test_tied_weight_is_one_array():
    model = LanguageModel(embedding=8, hidden=8, tie=True, seed=0)
    model.build(TEXT)
    assert model.output.weight is model.embed.parameters["weight"]
    assert "output.weight" not in model.state_dict()
    assert "output.bias" in model.state_dict()
    untied = LanguageModel(embedding=8, hidden=8, seed=0)
    untied.build(TEXT)
    assert untied.num_parameters - model.num_parameters == model.output.weight.size


@pytest.mark.parametrize("tie", [False, True])
def test_gradients_are_added_or_take_the_place_of_others(tie):
    model = tiny(tie=tie, hidden=6)
    ids = model.build(TEXT).encode(TEXT[:41])
    inputs, targets = streams(ids, 4)
    model.loss_and_grads(inputs, targets)
    once = [{name: g.copy() for name, g in group.items()} for group in model.grads]
    for accumulate, times in ((True, 2), (False, 1), (False, 1)):
        model.loss_and_grads(inputs, targets, accumulate=accumulate)
        for group, expected in zip(model.grads, once, strict=True):
            for name, grad in group.items():
                np.testing.assert_allclose(grad, times * expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_layers_alone():
    rng = np.random.default_rng(0)
    embedding = Embedding(5, 3, np.dtype("f8"), rng)
    ids, dy = rng.integers(0, 4, (4, 6)), rng.standard_normal((4, 6, 3))
    embedding.backward(ids, dy)
    embedding.backward(np.zeros((0, 6), int), np.zeros((0, 6, 3)))
    expected = np.zeros((5, 3))
    np.add.at(expected, ids, dy)
    np.testing.assert_allclose(embedding.grads["weight"], expected, rtol=1e-13)

    output = Output(3, 4, np.dtype("f8"), rng)
    assert not output.parameters["bias"].any()
    assert np.abs(output.weight).max() <= 0.1
    output.parameters["bias"][:] = 1.0
    x = rng.standard_normal((7, 3))
    np.testing.assert_allclose(output.logits(x), x @ output.weight.T + 1.0)
    again = pickle.loads(pickle.dumps(output))
    targets = np.zeros(7, np.int32)
    np.testing.assert_array_equal(again.loss(x, targets, 0.5)[0], output.nats(x, targets))

    x = np.ones((200, 50), "f")
    y, mask = Dropout(0.25).forward(x, np.random.default_rng(0))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert np.array_equal(Dropout.backward(mask, x), y)
    assert Dropout(0.25).forward(x, None) == (x, None)
    assert Dropout(0.0).forward(x, rng) == (x, None)
    assert not Dropout(1.0).forward(x, rng)[0].any()


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_learns_a_text(cell):
    model = tiny(cell=cell, hidden=24)
    model.build(TEXT)
    before = model.evaluate(TEXT)["perplexity"]
    history = model.fit(TEXT, TEXT[:100], epochs=25, **QUICK)
    after = model.evaluate(TEXT)
    assert before == pytest.approx(len(model.vocabulary), rel=0.1)
    assert after["perplexity"] < 1.3
    assert history is model.history
    assert [record["epoch"] for record in history] == list(range(1, 26))
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["valid_perplexity"] < 2
    assert history[-1]["steps"] == 25 * -(-(len(TEXT) - 1) // 4 // 16)
    assert 0 <= history[0]["clipped"] <= 1
    assert history[0]["tokens_per_second"] > 0


def test_learns_with_sgd_dropout_and_tied_weights():
    model = LanguageModel(embedding=24, hidden=24, layers=2, dropout=0.05, tie=True, seed=1)
    options = QUICK | {"lr": 1.0, "momentum": 0.5, "clip": 0.5}
    history = model.fit(TEXT, optimizer="sgd", epochs=40, **options)
    assert history[-1]["perplexity"] < 0.5 * history[0]["perplexity"]


def test_one_seed_decides_everything():
    def run(seed):
        model = tiny(seed=seed, layers=2, dropout=0.2)
        model.fit(TEXT, epochs=2, **QUICK)
        return model, model.generate("he", 30), model.history[-1]["loss"]

    (a, text_a, loss_a), (b, text_b, loss_b), (c, _, loss_c) = run(5), run(5), run(6)
    assert weights_equal(a, b)
    assert text_a == text_b
    assert loss_a == loss_b
    assert loss_c != loss_a
    assert not weights_equal(a, c)
    unseeded = LanguageModel(embedding=6, hidden=12)
    again = LanguageModel(embedding=6, hidden=12, seed=unseeded.seed)
    unseeded.build(TEXT), again.build(TEXT)
    assert weights_equal(unseeded, again)


def test_streams_are_contiguous():
    inputs, targets = streams(np.arange(11), 3)
    assert inputs.T.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert targets.T.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_state_is_carried_over():
    model = tiny(dtype="float64", layers=2)
    model.build(TEXT)
    inputs, targets = streams(model.vocabulary.encode(TEXT), 4)
    whole, end = model.loss_and_grads(inputs[:30], targets[:30])
    state, pieces = None, []
    for part in (slice(0, 7), slice(7, 8), slice(8, 30)):
        loss, state = model.loss_and_grads(inputs[part], targets[part], state)
        pieces.append(loss * (part.stop - part.start) / 30)
    assert sum(pieces) == pytest.approx(whole, rel=1e-12)
    for a, b in zip(end, state, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)
    alone, _ = model.loss_and_grads(inputs[8:30], targets[8:30])
    assert alone != pytest.approx(pieces[-1] * 30 / 22, rel=1e-6)


def test_schedules():
    model = tiny()
    model.build(TEXT)
    base = Options.checked("t", lr=0.1, warmup=4)
    trainer = Trainer(model, Streams(model.vocabulary.encode(TEXT), 4, 16), base, epochs=2)
    rates = []
    for _ in range(6):
        trainer.step(0.5)
        rates.append(trainer.optimizer.lr)
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    trainer.options = replace(base, schedule="cosine", warmup=0)
    assert [trainer.lr(done) for done in (0.0, 0.5, 1.0, 1.5)] == pytest.approx([0.1, 0.05, 0.0, 0.0])


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, [1, 1, 1, 1, 1 / 2, 1 / 4, 1 / 8]),  # the small model of Zaremba et al.
        ({"decay": 1 / 1.2, "decay_after": 6}, [1, 1, 1, 1, 1, 1, 1 / 1.2]),  # the medium one
        ({"decay": 0.1, "decay_after": 0}, [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7]),
    ],
)
def test_zaremba_decay(options, rates):
    history = tiny().fit(TEXT, epochs=7, optimizer="sgd", schedule="zaremba", **QUICK | options | {"lr": 0.3})
    assert [record["lr"] for record in history] == pytest.approx([0.3 * rate for rate in rates], rel=1e-14)


def test_stops_when_time_is_up(monkeypatch):
    """On a clock of its own, by which a look at it takes a second."""
    monkeypatch.setattr(run, "time", types.SimpleNamespace(monotonic=itertools.count().__next__))
    model = tiny()
    history = model.fit(TEXT, TEXT, epochs=100_000, seconds=21, schedule="cosine", **QUICK)
    assert history[-1]["steps"] == 11  # two looks a step, from the second 1 on
    assert history[-1]["lr"] == pytest.approx(0.01 * (1 + math.cos(math.pi * 21 / 21)), abs=1e-12)
    assert "valid_loss" in history[-1]


def test_second_fit_starts_a_new_run_on_the_same_weights():
    model = tiny()
    first = model.fit(TEXT, epochs=3, **QUICK)
    second = model.fit(TEXT, epochs=1, **QUICK)
    assert len(second) == 1
    assert second[0]["loss"] < first[0]["loss"]


@pytest.mark.filterwarnings("error")
def test_stops_at_a_loss_that_is_not_finite():
    model = tiny()
    with pytest.raises(
        FloatingPointError, match=r"LanguageModel.fit: step [23] \(epoch 1\) has loss .* try a lower lr"
    ):
        model.fit(TEXT, optimizer="sgd", epochs=1, clip=None, **QUICK | {"lr": 1e38})
    model = tiny()
    model.build(TEXT)
    model.recurrent.parameters["weight_hh_l0"][0, 0] = np.nan
    before = model.state_dict()
    with pytest.raises(FloatingPointError, match="step 1"):
        model.fit(TEXT, epochs=1, **QUICK)
    assert all(np.array_equal(before[name], array, equal_nan=True) for name, array in model.state_dict().items())


# -- use ---------------------------------------------------------------------------------------------------------------


def test_score_is_the_log_of_a_distribution(trained):
    prefix = TEXT[:9]
    everything = [*trained.vocabulary.symbols, "☃"]  # the last is unknown
    last = [trained.score(prefix + symbol)[-1] for symbol in everything]
    assert np.exp(last).sum() == pytest.approx(1.0, rel=1e-5)
    scores = trained.score(TEXT)
    assert scores.dtype == np.float64
    assert scores.shape == (len(TEXT) - 1,)
    np.testing.assert_allclose(trained.score(TEXT[:50]), scores[:49], rtol=1e-4, atol=1e-5)


def test_score_is_the_chain_of_loss_and_grads():
    model = tiny(dtype="float64", cell="gru")
    model.build(TEXT)
    ids = model.vocabulary.encode(TEXT[:40])[:, None]
    loss, _ = model.loss_and_grads(ids[:-1], ids[1:])
    assert -model.score(TEXT[:40]).mean() == pytest.approx(loss, rel=1e-12)


def test_evaluate(trained):
    text = TEXT * 3  # longer than a chunk
    result, scores = trained.evaluate(text), trained.score(text)
    assert set(result) == {"loss", "perplexity", "tokens", "bits_per_character"}
    assert result["tokens"] == len(text) - 1
    assert result["loss"] == pytest.approx(-scores.mean(), rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert result["bits_per_character"] == pytest.approx(result["loss"] / math.log(2))


@pytest.mark.parametrize(("length", "batch_size"), [(2, 1), (2, 5), (6, 4), (101, 3), (102, 3), (1400, 4)])
def test_evaluate_in_streams_is_the_pieces_alone(trained, length, batch_size):
    text = (TEXT * 4)[:length]
    count = length - 1
    size = -(-count // min(batch_size, count))
    pieces = [text[start : start + size + 1] for start in range(0, count, size)]
    expected = -sum(trained.score(piece).sum() for piece in pieces) / count
    result = trained.evaluate(text, batch_size=batch_size)
    assert result["tokens"] == count
    assert result["loss"] == pytest.approx(expected, rel=1e-5)


def test_unknown_symbols_are_one_token(trained):
    assert np.array_equal(trained.score("he☃lo"), trained.score("he☀lo"))


def test_weights_that_are_not_finite_are_not_hidden():
    model = LanguageModel(embedding=4, hidden=5, seed=0)
    model.fit("hello world " * 10, epochs=1, batch_size=2, bptt=8, progress=False)
    model.parameters[0]["weight"][...] = np.nan
    with np.errstate(all="ignore"):
        for call in ("evaluate", "score"):
            with pytest.raises(FloatingPointError, match=rf"^LanguageModel\.{call}: .* not finite"):
                getattr(model, call)("hello world")


# -- vocabulary --------------------------------------------------------------------------------------------------------


def test_vocabulary():
    text = "zebra\n€𝄞\udc80a"
    vocabulary = CharVocabulary.of_text(text)
    assert len(vocabulary) == len(set(text)) + 1
    assert "𝄞" in vocabulary
    assert "q" not in vocabulary
    ids = vocabulary.encode(text + "q")
    assert ids.dtype == np.int32
    assert ids[-1] == 0
    assert (ids[:-1] > 0).all()
    assert vocabulary.decode(ids) == text + "\ufffd"
    assert vocabulary.encode("").shape == (0,)
    again = CharVocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again == vocabulary
    assert again != CharVocabulary("ab")
    for data in ({}, [], {"level": "word", "symbols": "ab"}, {"level": "char", "symbols": 3}, {"level": "char"}):
        with pytest.raises(ValueError, match=r"^CharVocabulary: "):
            CharVocabulary.from_dict(data)
    for symbols in ("", "ba", "aa", ["ab"], [1]):
        with pytest.raises(ValueError, match=r"^CharVocabulary: symbols must be"):
            CharVocabulary(symbols)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"level": "sound"}, ValueError, "level must be one of 'char', 'word', 'bpe', got 'sound'"),
        ({"cell": "mgu"}, ValueError, "cell must be one of 'lstm', 'gru', 'rnn', 'rnn_relu', got 'mgu'"),
        ({"embedding": 0}, ValueError, "embedding must be an integer >= 1, got 0"),
        ({"hidden": 1.5}, TypeError, "hidden must be an integer >= 1, got 1.5"),
        ({"layers": True}, TypeError, "layers must be an integer >= 1, got True"),
        ({"dropout": 1.5}, ValueError, "dropout must be a number between 0 and 1, got 1.5"),
        ({"dropout": math.nan}, ValueError, "dropout must be a number between 0 and 1, got nan"),
        ({"tie": 1}, TypeError, "tie must be True or False, got 1"),
        ({"tie": True}, ValueError, "tie needs embedding == hidden, got embedding=6 and hidden=12"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0, got -1"),
        ({"seed": "x"}, TypeError, "seed must be an integer >= 0, got 'x'"),
        ({"bidirectional": True}, ValueError, "bidirectional must be False, got True: the reverse direction has read"),
        ({"dropout": (0.1, 0.2)}, ValueError, "dropout must be one number or three, got 2"),
        ({"dropout": [0.1, 2, 0]}, ValueError, r"dropout\[1\] must be a number between 0 and 1, got 2"),
        ({"proj_size": 4, "cell": "rnn"}, ValueError, "proj_size is for cell='lstm', got proj_size=4 and cell='rnn'"),
        (
            {"proj_size": 4, "tie": True},
            ValueError,
            "tie needs embedding == proj_size, got embedding=6 and proj_size=4",
        ),
        ({"dtype": "float16"}, ValueError, "dtype must be one of 'float32', 'float64', got 'float16'"),
    ],
)
def test_constructor_refuses(options, kind, message):
    with pytest.raises(kind, match=f"^LanguageModel: {message}"):
        tiny(**options)


@pytest.mark.usefixtures("without_cuda")
def test_a_missing_gpu_is_told():
    with pytest.raises(RuntimeError, match="LanguageModel: device 'cuda' is not available: this fastrnn was built"):
        tiny(device="cuda")


@pytest.mark.parametrize("batch_size", [2, 3])
def test_evaluation_in_chunks_is_that_of_the_whole(trained, batch_size):
    """Streams longer than a chunk by one step, whose targets are then no block of memory."""
    text = (TEXT * 3)[: 257 * batch_size + 1]
    scores = [trained.score(text[257 * b : 257 * (b + 1) + 1]).mean() for b in range(batch_size)]
    assert trained.evaluate(text, batch_size=batch_size)["loss"] == pytest.approx(-np.mean(scores), rel=1e-5)


@pytest.mark.parametrize(("count", "batch_size"), [(2, 1), (4, 3), (8, 8), (10, 4), (97, 7), (100, 9), (12, 11)])
def test_streams_that_a_text_is_cut_into(count, batch_size):
    ids = np.random.default_rng(count).integers(1, 99, count, np.int32)
    inputs, targets, lengths = cut(ids, batch_size)
    length = -(-(count - 1) // batch_size)
    assert inputs.shape == targets.shape == (length, batch_size)
    assert len(inputs) == len(targets) == length
    assert lengths.sum() == count - 1
    for columns, first in ((inputs, 0), (targets, 1)):
        for chunk in (slice(0, length), slice(length // 2, length), slice(1, 1)):
            tokens = columns[chunk]
            assert tokens.shape == (chunk.stop - chunk.start, batch_size)
            for b in range(batch_size):
                expected = ids[first + b * length :][: lengths[b]][chunk]
                np.testing.assert_array_equal(tokens[: len(expected), b], expected)


def test_streams_leave_the_text_where_it_is():
    ids = np.zeros(100_000, np.int32)
    tracemalloc.start()
    try:
        inputs, targets, _ = cut(ids, 64)
        for start in range(0, len(inputs), 16):
            assert not inputs[start : start + 16].any()
            assert not targets[start : start + 16].any()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < ids.nbytes / 4


def test_constructor_leaves_sizes_to_the_layer():
    with pytest.raises(ValueError, match="lstm: "):
        tiny(hidden=10**15)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"train": 3}, TypeError, "train must be a str or the path of a file, got int"),
        ({"train": "abc"}, ValueError, r"train must have at least 5 characters \(batch_size \+ 1\), got 3"),
        ({"train": ""}, ValueError, r"train must have at least 5 characters \(batch_size \+ 1\), got 0"),
        ({"valid": "a"}, ValueError, "valid must have at least 2 characters, got 1"),
        ({"epochs": 0}, ValueError, "epochs must be an integer >= 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1, got 0"),
        ({"bptt": 2.0}, TypeError, "bptt must be an integer >= 1, got 2.0"),
        ({"optimizer": "rmsprop"}, ValueError, "optimizer must be one of 'adam', 'adamw', 'sgd', got 'rmsprop'"),
        ({"lr": 0}, ValueError, "lr must be a finite number > 0, got 0"),
        ({"lr": math.nan}, ValueError, "lr must be a finite number > 0, got nan"),
        ({"momentum": 0.9}, ValueError, "momentum is for optimizer='sgd', got optimizer='adam'"),
        ({"momentum": 2}, ValueError, "momentum must be a number between 0 and 1, got 2"),
        ({"weight_decay": -1}, ValueError, "weight_decay must be a finite number >= 0, got -1"),
        ({"clip": 0.0}, ValueError, "clip must be a finite number > 0, got 0.0"),
        ({"schedule": "plateau"}, ValueError, "schedule='plateau' needs a valid text"),
        (
            {"schedule": "step"},
            ValueError,
            "schedule must be one of 'constant', 'cosine', 'plateau', 'zaremba', got 'step'",
        ),
        ({"decay": 0.5}, ValueError, "decay is for schedule='plateau' and 'zaremba', got schedule='constant'"),
        ({"schedule": "zaremba", "decay": 0}, ValueError, "decay must be above 0 and at most 1, got 0"),
        ({"schedule": "zaremba", "decay": 2}, ValueError, "decay must be a number between 0 and 1, got 2"),
        ({"schedule": "zaremba", "decay_after": -1}, ValueError, "decay_after must be an integer >= 0, got -1"),
        ({"decay_after": 4}, ValueError, "decay_after is for schedule='zaremba', got schedule='constant'"),
        ({"average": 2}, ValueError, "average is for optimizer='sgd', got optimizer='adam'"),
        ({"average": 0}, ValueError, "average must be 'plateau' or an integer >= 1, got 0"),
        ({"average": "swa"}, TypeError, "average must be 'plateau' or an integer >= 1, got 'swa'"),
        ({"optimizer": "sgd", "average": "plateau"}, ValueError, "average='plateau' needs a valid text"),
        ({"patience": 2}, ValueError, "patience needs a valid text"),
        ({"patience": 0, "valid": TEXT}, ValueError, "patience must be an integer >= 1, got 0"),
        ({"sample_every": 0}, ValueError, "sample_every must be an integer >= 1, got 0"),
        ({"warmup": -1}, ValueError, "warmup must be an integer >= 0, got -1"),
        ({"seconds": 0}, ValueError, "seconds must be a finite number > 0, got 0"),
        ({"resume": 1}, TypeError, "resume must be True or False, got 1"),
    ],
)
def test_fit_refuses(options, kind, message):
    model = tiny()
    with pytest.raises(kind, match=f"^LanguageModel.fit: {message}"):
        model.fit(**{"train": TEXT, **QUICK, **options})
    assert model.vocabulary is None


def test_use_refuses(trained):
    fresh = tiny()
    for call in (fresh.evaluate, fresh.score, fresh.generate, fresh.save):
        with pytest.raises(RuntimeError, match="the model has no vocabulary yet: call fit"):
            call("text")
    with pytest.raises(RuntimeError, match="no vocabulary yet"):
        _ = fresh.num_parameters
    with pytest.raises(RuntimeError, match="the vocabulary is there already"):
        trained.build("abc")
    with pytest.raises(ValueError, match=r"LanguageModel\.build: text must have at least 1 characters, got 0"):
        fresh.build("")
    for call, name in ((trained.evaluate, "evaluate"), (trained.score, "score")):
        with pytest.raises(ValueError, match=f"LanguageModel.{name}: text must have at least 2 characters, got 1"):
            call("a")
        with pytest.raises(TypeError, match=f"LanguageModel.{name}: text must be a str or the path of a .*got bytes"):
            call(b"abc")
    with pytest.raises(ValueError, match=r"LanguageModel\.evaluate: batch_size must be an integer >= 1, got 0"):
        trained.evaluate("abc", batch_size=0)
    ids = np.zeros((2, 2), np.int32)
    with pytest.raises(ValueError, match=r"LanguageModel\.loss_and_grads: dropout=0\.1 needs rng, got None"):
        trained.loss_and_grads(ids, ids)


def test_load_state_dict_refuses_and_changes_nothing(trained):
    model = tiny(layers=2)
    model.build(TEXT)
    before, state = model.state_dict(), trained.state_dict()
    for change, kind, message in (
        (lambda s: s.pop("output.bias"), ValueError, "state must have the names"),
        (lambda s: s.update({"output.bias": np.zeros(3, "f")}), ValueError, r"state\['output.bias'\] must have shape"),
        (lambda s: s.update({"output.bias": s["output.bias"].astype("d")}), TypeError, "array of float32, got float64"),
        (lambda s: s.update({"output.bias": [0]}), TypeError, "array of float32, got list"),
    ):
        bad = dict(state)
        change(bad)
        with pytest.raises(kind, match=f"^LanguageModel.load_state_dict: .*{message}"):
            model.load_state_dict(bad)
    with pytest.raises(TypeError, match="state must be a dict of arrays, got list"):
        model.load_state_dict([])
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    model.load_state_dict(state)
    assert weights_equal(model, trained)


def test_is_exported():
    assert fastrnn.LanguageModel is LanguageModel
    assert repr(tiny()).startswith("LanguageModel(level='char', cell='lstm', embedding=6, hidden=12")
