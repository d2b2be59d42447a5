"""Interpolation: mixtures of probabilities, weights by EM, decoding, files and every refusal."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import params, raised
from fastrnn.models import LanguageModel, checkpoint, interpolation, kinds
from fastrnn.models.interpolation import Interpolation
from fastrnn.models.ngram_language_model import NgramLanguageModel
from model_files import edit
from tiny_model import TEXT, tiny, tiny_trained

HELD_OUT = "how well are you? hello, hello, well, are you world? you are well. " * 5


def ngram(order=3, text=TEXT, **options) -> NgramLanguageModel:
    model = NgramLanguageModel("char", order, seed=2, **options)
    model.fit(text, progress=False)
    return model


@pytest.fixture(scope="module")
def parts():
    return [tiny_trained(), ngram(), ngram(1, smoothing="add_k")]


@pytest.fixture
def mixture(parts):
    return Interpolation(parts, [0.5, 0.3, 0.2], seed=4)


def mixed(model, text):
    return np.log(sum(w * np.exp(part.score(text)) for w, part in zip(model.weights, model.models, strict=True)))


# -- prediction --------------------------------------------------------------------------------------------------------


def test_score_is_the_log_of_the_mixture(mixture):
    text = TEXT * 2 + HELD_OUT + "☃"  # longer than a chunk
    scores = mixture.score(text)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, mixed(mixture, text), rtol=1e-12)
    everything = [*mixture.vocabulary.symbols, "☃"]
    assert np.exp([mixture.score("how " + symbol)[-1] for symbol in everything]).sum() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(("length", "batch_size"), [(2, 1), (6, 4), (700, 1), (1400, 4)])
def test_evaluate(mixture, length, batch_size):
    text = (TEXT * 4)[:length]
    size = -(-(length - 1) // batch_size)
    pieces = [text[start : start + size + 1] for start in range(0, length - 1, size)]
    result = mixture.evaluate(text, batch_size=batch_size)
    assert result["tokens"] == length - 1
    assert result["loss"] == pytest.approx(
        -sum(mixed(mixture, piece).sum() for piece in pieces) / (length - 1), rel=1e-5
    )


@given(st.data())
def test_chunks_of_different_lengths(data):
    steps = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(steps)
    nats, valid = rng.standard_normal((3, steps, 2)), rng.random((steps, 2)) < 0.7

    def chunks(k):
        cuts = data.draw(st.lists(st.integers(1, steps - 1), unique=True, max_size=4).map(sorted)) if steps > 1 else []
        for start, end in itertools.pairwise([0, *cuts, steps]):
            yield nats[k, start:end], valid[start:end]

    got = list(interpolation._aligned([chunks(k) for k in range(3)]))
    np.testing.assert_array_equal(np.concatenate([part for part, _ in got], axis=1), nats)
    np.testing.assert_array_equal(np.concatenate([part for _, part in got]), valid)


def test_one_model_alone(parts):
    for i, part in enumerate(parts):
        weights = [0.0] * len(parts)
        weights[i] = 1.0
        np.testing.assert_array_equal(Interpolation(parts, weights).score(HELD_OUT), part.score(HELD_OUT))
    np.testing.assert_array_equal(Interpolation(parts[:1]).score(HELD_OUT), parts[0].score(HELD_OUT))


def test_the_most_probable_text_is_that_of_the_mixture(mixture):
    prompt = "hello wor"
    text = prompt + mixture.generate(prompt, 12, temperature=0.0)
    for end in range(len(prompt), len(text)):
        assert text[end] == max(mixture.vocabulary.symbols, key=lambda symbol: mixture.score(text[:end] + symbol)[-1])
    assert mixture.generate(prompt, 9, seed=1) == "".join(mixture.generate(prompt, 9, seed=1, stream=True))
    assert mixture.generate(prompt, 9) != mixture.generate(prompt, 9)


def test_beams_of_a_mixture():
    text = "abcabacbcab" * 9
    rnn = tiny(dtype="float64")
    rnn.build(text)
    rng = np.random.default_rng(0)
    for group in rnn.parameters:
        for array in group.values():
            array[...] = rng.standard_normal(array.shape)
    model = Interpolation([rnn, ngram(2, text)], [0.4, 0.6])
    texts = ["".join(symbols) for symbols in itertools.product("abc", repeat=4)]
    best = max(texts, key=lambda one: model.score("ab" + one)[1:].sum())
    assert model.generate("ab", 4, beam_size=81) == best


def test_sizes(mixture, parts):
    assert mixture.num_parameters == sum(part.num_parameters for part in parts) + 3
    assert mixture.nbytes == sum(part.nbytes for part in parts) + 24
    assert mixture.models == tuple(parts)
    assert mixture.normalized
    assert repr(mixture).startswith("Interpolation([LanguageModel(level='char'")
    assert repr(mixture).endswith("weights=[0.5, 0.3, 0.2], seed=4)")


# -- weights -----------------------------------------------------------------------------------------------------------


def test_em_raises_the_likelihood_to_its_maximum(parts):
    model = Interpolation(parts, [0.0, 0.0, 1.0])
    history = model.fit(HELD_OUT, TEXT[:100], progress=False)
    losses = [record["loss"] for record in history]
    assert len(losses) > 5
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert history is model.history
    assert [record["epoch"] for record in history] == list(range(1, len(history) + 1))
    assert history[0]["weights"] == [1 / 3] * 3
    assert history[-1]["weights"] == model.weights
    assert sum(model.weights) == pytest.approx(1.0, rel=1e-12)
    for name, text in (("", HELD_OUT), ("valid_", TEXT[:100])):
        result = model.evaluate(text)
        assert history[-1][f"{name}loss"] == pytest.approx(result["loss"], rel=1e-12)
        assert history[-1][f"{name}perplexity"] == pytest.approx(result["perplexity"], rel=1e-12)
    best = model.evaluate(HELD_OUT)["loss"]
    assert best < min(part.evaluate(HELD_OUT)["loss"] for part in parts)
    p = np.exp([part.score(HELD_OUT) for part in parts])
    steps = np.arange(21) / 20
    for a, b in itertools.product(steps, steps):
        if a + b <= 1:
            assert best <= -np.log(np.array([a, b, 1 - a - b]) @ p).mean() + 1e-6  # the tolerance


def test_em_step_by_step(parts):
    p = np.exp([part.score(HELD_OUT) for part in parts])
    weights = np.full(3, 1 / 3)
    model = Interpolation(parts)
    for record in model.fit(HELD_OUT, epochs=5, progress=False):
        np.testing.assert_allclose(record["weights"], weights, rtol=1e-10)
        assert record["loss"] == pytest.approx(-np.log(weights @ p).mean(), rel=1e-12)
        responsibilities = weights[:, None] * p / (weights @ p)
        weights = responsibilities.mean(axis=1)
    assert len(model.history) == 5


def test_em_drops_a_model_that_never_helps(parts):
    model = Interpolation(parts)
    model.fit(TEXT, progress=False)  # which the n-gram knows by heart
    assert model.weights[1] > 0.99
    same = Interpolation([parts[0], parts[0]])
    assert len(same.fit(HELD_OUT, progress=False)) == 1
    assert same.weights == [0.5, 0.5]


def test_em_reads_in_streams(parts):
    model = Interpolation(parts)
    loss = model.fit(HELD_OUT, batch_size=3, progress=False)[-1]["loss"]
    assert loss == pytest.approx(model.evaluate(HELD_OUT, batch_size=3)["loss"], rel=1e-12)
    assert len(Interpolation(parts).fit("he", batch_size=8, progress=False)) > 0


def test_fit_tells_and_saves(parts, tmp_path, capsys):
    model = Interpolation(parts)
    model.fit(HELD_OUT, checkpoint=tmp_path / "model")
    assert f", {len(model.history)} steps" in capsys.readouterr().err
    assert Interpolation.load(tmp_path / "model").weights == model.weights


# -- files -------------------------------------------------------------------------------------------------------------


def folders(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_save_and_load(mixture, tmp_path):
    mixture.history = [{"epoch": 1}]
    outer = Interpolation([mixture, mixture.models[1]], [0.25, 0.75], seed=9)
    outer.save(tmp_path)
    again = kinds.load(tmp_path)
    assert isinstance(again, Interpolation)
    assert again.config == outer.config
    assert again.models[0].config == mixture.config
    assert again.models[0].history == mixture.history
    np.testing.assert_array_equal(again.score(HELD_OUT), outer.score(HELD_OUT))
    assert again.generate("how", 20, seed=3) == outer.generate("how", 20, seed=3)
    assert again.generate("how", 20) == outer.generate("how", 20)
    with pytest.raises(ValueError, match=r"LanguageModel\.load: .*model\.json is not a fastrnn\.LanguageModel"):
        LanguageModel.load(tmp_path)


def test_a_save_takes_the_place_of_the_old_one(mixture, parts, tmp_path):
    mixture.save(tmp_path)
    (tmp_path / "part-mine").mkdir()
    old = folders(tmp_path)
    Interpolation(parts[:2]).save(tmp_path)
    new = folders(tmp_path)
    assert len(new) == 4  # model.json, two parts, what was not ours
    assert set(new) & set(old) == {"model.json", "part-mine"}
    assert Interpolation.load(tmp_path).weights == [0.5, 0.5]


@pytest.mark.parametrize("written", [0, 1, 2])  # parts before the disk is full
def test_a_save_that_fails_leaves_the_old_one(mixture, parts, tmp_path, monkeypatch, written):
    mixture.save(tmp_path)
    old, write, calls = folders(tmp_path), checkpoint.write, itertools.count()

    def until_full(*args):
        if next(calls) == written:
            raise OSError("disk full")
        write(*args)

    monkeypatch.setattr(checkpoint, "write", until_full)
    with pytest.raises(OSError, match="disk full"):
        Interpolation(parts[:2]).save(tmp_path)
    assert folders(tmp_path) == old
    assert Interpolation.load(tmp_path).weights == mixture.weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": None}, r"config must have the keys \['seed', 'weights'\]"),
        ({"config": {"weights": [1.0]}}, r"config must have the keys \['seed', 'weights'\]"),
        ({"config": {"weights": [0.5, 0.6, 0.1], "seed": 1}}, "Interpolation: weights must have the sum 1"),
        ({"config": {"weights": [0.5, 0.5], "seed": 1}}, "weights must have a number for each of the 3 models, got 2"),
        ({"config": {"weights": None, "seed": -1}}, "seed must be an integer >= 0"),
        ({"parts": None}, "parts must be names of folders, got None"),
        ({"parts": ["../other"]}, r"parts must be names of folders, got \['\.\./other'\]"),
        ({"parts": []}, "models must have at least 1 language model, got 0"),
        ({"history": 3}, "history must be a list of records"),
    ],
)
def test_damaged_files(mixture, tmp_path, change, message):
    mixture.save(tmp_path)
    edit(tmp_path, lambda data: data.update(change))
    with pytest.raises(ValueError, match=rf"^Interpolation\.load: .* is damaged: .*{message}"):
        Interpolation.load(tmp_path)


def test_a_part_is_missing(mixture, tmp_path):
    mixture.save(tmp_path)
    shutil.rmtree(next(tmp_path.glob("part-*")))
    with pytest.raises(FileNotFoundError, match=r"model\.json is missing"):
        Interpolation.load(tmp_path)


# -- refusals ----------------------------------------------------------------------------------------------------------

ONE, OTHER, WORDS = ngram(2), ngram(2, "abc"), NgramLanguageModel("word", 2)
WORDS.fit("some words", progress=False)
UNTRAINED = NgramLanguageModel("char", 2)
BACKOFF = ngram(2, smoothing="stupid_backoff")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    params(
        [
            (
                lambda: Interpolation(ONE),
                TypeError,
                "Interpolation: models must be a list of language models, got NgramLanguageModel",
            ),
            (lambda: Interpolation([]), ValueError, "Interpolation: models must have at least 1 language model, got 0"),
            (
                lambda: Interpolation([ONE, ONE.ngrams]),
                TypeError,
                "Interpolation: models[1] must be a language model, got NgramModel",
            ),
            (
                lambda: Interpolation([ONE, UNTRAINED]),
                RuntimeError,
                "Interpolation: models[1] has no vocabulary yet: call fit (or build) first",
            ),
            (
                lambda: Interpolation([BACKOFF, ONE]),
                ValueError,
                f"Interpolation: models[0] must have probabilities that sum to 1, got {BACKOFF!r}",
            ),
            (
                lambda: Interpolation([ONE, ONE, OTHER, WORDS]),
                ValueError,
                "Interpolation: models must have the same vocabulary, but the tokens of models[0] (15 of level 'char') "
                "and models[2] (4 of level 'char') differ",
            ),
            (
                lambda: Interpolation([ONE, WORDS]),
                ValueError,
                "Interpolation: models must have the same vocabulary, but the tokens of models[0] (15 of level 'char') "
                "and models[1] (4 of level 'word') differ",
            ),
            (
                lambda: Interpolation([ONE, ONE], 0.5),
                TypeError,
                "Interpolation: weights must be a list of 2 numbers, got float",
            ),
            (
                lambda: Interpolation([ONE, ONE], [1.0]),
                ValueError,
                "Interpolation: weights must have a number for each of the 2 models, got 1",
            ),
            (
                lambda: Interpolation([ONE, ONE], [1.5, -0.5]),
                ValueError,
                "Interpolation: weights[0] must be a number between 0 and 1, got 1.5",
            ),
            (
                lambda: Interpolation([ONE, ONE], ["1", 0]),
                TypeError,
                "Interpolation: weights[0] must be a number between 0 and 1, got '1'",
            ),
            (
                lambda: setattr(Interpolation([ONE, ONE]), "weights", np.array([0.5, 0.25])),
                ValueError,
                "Interpolation: weights must have the sum 1, got 0.75",
            ),
            (
                lambda: Interpolation([ONE], seed=-1),
                ValueError,
                "Interpolation: seed must be an integer >= 0, got -1",
            ),
            (
                lambda: Interpolation([ONE]).build("text"),
                RuntimeError,
                "Interpolation.build: the vocabulary is there already; make a new model for another one",
            ),
            (
                lambda: Interpolation([ONE]).fit(3),
                TypeError,
                "Interpolation.fit: train must be a str or the path of a file, got int",
            ),
            (
                lambda: Interpolation([ONE]).fit("a"),
                ValueError,
                "Interpolation.fit: train must have at least 2 characters, got 1",
            ),
            (
                lambda: Interpolation([ONE]).fit(TEXT, "a"),
                ValueError,
                "Interpolation.fit: valid must have at least 2 characters, got 1",
            ),
            (
                lambda: Interpolation([ONE]).fit(TEXT, epochs=0),
                ValueError,
                "Interpolation.fit: epochs must be an integer >= 1, got 0",
            ),
            (
                lambda: Interpolation([ONE]).fit(TEXT, tolerance=-1),
                ValueError,
                "Interpolation.fit: tolerance must be a finite number >= 0, got -1",
            ),
            (
                lambda: Interpolation([ONE]).fit(TEXT, batch_size=0),
                ValueError,
                "Interpolation.fit: batch_size must be an integer >= 1, got 0",
            ),
            (
                lambda: Interpolation([ONE]).fit(TEXT, progress=3),
                TypeError,
                "Interpolation.fit: progress must be True, False or an object with start, update, message, close, "
                "got 3",
            ),
        ]
    ),
)
def test_refusals(call, error, message):
    raised(call, error, message)


def test_weights_that_are_not_finite_are_not_hidden(parts):
    broken = tiny()
    broken.build(TEXT)
    broken.parameters[0]["weight"][...] = np.nan
    model = Interpolation([broken, parts[1]])
    with np.errstate(all="ignore"):
        for call in ("evaluate", "score"):
            with pytest.raises(FloatingPointError, match=rf"^Interpolation\.{call}: .* not finite"):
                getattr(model, call)(TEXT)
        with pytest.raises(FloatingPointError, match=r"^Interpolation\.fit: the models' log p of token 1 are \[ *nan"):
            model.fit(TEXT, progress=False)
        with pytest.raises(FloatingPointError, match=r"^Interpolation\.generate: .* not finite"):
            model.generate("he", 3)
    assert model.weights == [0.5, 0.5]
