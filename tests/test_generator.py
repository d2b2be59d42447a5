"""SequenceGenerator: lines from vectors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from errors import params, raised
from fastrnn.models import SequenceGenerator
from fastrnn.models.vectors import Vectors
from pair_models import (
    KERNELS,
    STACKS,
    TOLERANCE,
    batch_of,
    check_files,
    check_gradients,
    check_padding,
    gradients,
    log_softmax,
    recurrent,
)
from tiny_model import Reporter

LINES = ["ab", "", "bca", "c", "abcab", "bb"]
VECTORS = np.random.default_rng(2).standard_normal((len(LINES), 2))
PAIRS = VECTORS, LINES


def tiny(**options):
    given = {"features": 2, "level": "char", "embedding": 3, "hidden": 4, "seed": 3, "dtype": "float64", **options}
    return SequenceGenerator(**given)


def built(**options):
    model = tiny(**options)
    model.build(PAIRS)
    return model


def log_p_of(model, vector, line):
    """The reference's, of each token of a line and its end, whatever the line."""
    x, ids = model._decoder.embed.parameters["weight"], model.vocabularies["target"].encode(f"\n{line}\n")
    first = model._encoder.linear.parameters
    states = np.tanh(first["weight"] @ vector + first["bias"]).reshape(-1, model.layers, 1, model.hidden)
    y, _ = recurrent(model, model._decoder.stack, x[ids[:-1]][:, None], tuple(states) if len(states) > 1 else states[0])
    log_p = log_softmax(y[:, 0] @ model._decoder.output.weight.T + model._decoder.output.parameters["bias"])
    return log_p, log_p[np.arange(len(ids) - 1), ids[1:]]


# -- computation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", STACKS, ids=str)
def test_gradients(options):
    check_gradients(tiny(**options), PAIRS)


def test_gradients_with_label_smoothing():
    check_gradients(tiny(), PAIRS, label_smoothing=0.2)


def test_sampling_reads_the_models_own_tokens():
    model = built()
    inputs = batch_of(model, PAIRS)
    loss, _ = gradients(model, inputs, np.random.default_rng(1), sampling=1.0)
    assert loss != gradients(model, inputs)[0]
    expected = []
    for vector, line in zip(VECTORS, LINES, strict=True):
        written, targets = "", model.vocabularies["target"].encode(line + "\n")
        for target in targets:
            log_p = log_p_of(model, vector, written)[0][len(written)]
            expected.append(-log_p[target])
            written += model.vocabularies["target"].decode([int(log_p.argmax())])
    assert loss == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", KERNELS)
def test_scores_and_outputs_are_those_of_the_equations(cell, layers):
    model = built(cell=cell, layers=layers)
    expected = [log_p_of(model, vector, line)[1].sum() for vector, line in zip(VECTORS, LINES, strict=True)]
    assert_allclose(model.score(PAIRS), expected, **TOLERANCE)
    vocabulary = model.vocabularies["target"]
    for vector, line in zip(VECTORS, model.generate(VECTORS, max_length=7), strict=True):
        log_p, _ = log_p_of(model, vector, line)
        log_p[:, 0] = -np.inf  # the unknown symbol
        best = vocabulary.decode(log_p.argmax(axis=1))
        assert best[: len(line)] == line
        assert len(line) == 7 or best == line + "\n"


@pytest.mark.parametrize("options", STACKS[:3], ids=str)
def test_padding_does_not_matter(options):
    model = built(**options | {"dropout": 0.0})
    check_padding(model, PAIRS)
    found = [model.generate(VECTORS, batch_size=size, max_length=20) for size in (1, 4, 99)]
    assert found[0] == found[1] == found[2]


def test_a_beam_finds_the_most_probable_line():
    """Of all lines of three tokens or less, with a beam that leaves none out."""
    model = built()
    symbols = model.vocabularies["target"].symbols[1:]
    lines = [""]
    for line in lines:
        if len(line) < 2:
            lines += [line + symbol for symbol in symbols]
    (found,) = model.generate(VECTORS[:1], beam=99, length_penalty=0.0, max_length=3)
    scores = model.score((np.repeat(VECTORS[:1], len(lines), axis=0), lines))
    assert model.score((VECTORS[:1], [found]))[0] >= scores.max()


def test_drawing_follows_the_probabilities():
    model = built()
    log_p = log_p_of(model, VECTORS[0], "")[0][0]
    log_p[0] = -np.inf
    p, count = np.exp(log_p) / np.exp(log_p).sum(), 4000
    drawn = model.generate(np.repeat(VECTORS[:1], count, axis=0), temperature=1.0, max_length=1, batch_size=500, seed=1)
    for number, symbol in enumerate(["", *model.vocabularies["target"].symbols[1:]], 1):
        share = drawn.count(symbol) / count
        assert share == pytest.approx(p[number], abs=5 * np.sqrt(p[number] / count))
    vectors = np.repeat(VECTORS[:1], 20, axis=0)
    again = [model.generate(vectors, temperature=1.0, max_length=9, seed=seed) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
    own = [model.generate(vectors, temperature=1.0, max_length=9) for _ in range(2)]
    assert own[0] != own[1]


# -- use ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_it_learns(cell):
    """Which letter, and how often: both stand in the vector alone."""
    rng = np.random.default_rng(1)
    letters, lengths = rng.integers(0, 3, 300), rng.integers(0, 5, 300)
    vectors = np.column_stack([np.eye(3)[letters], lengths / 2 - 1])
    lines = ["abc"[letter] * length for letter, length in zip(letters, lengths, strict=True)]
    model = SequenceGenerator(4, "char", cell, 8, 24, seed=1)
    history = model.fit(
        (vectors, lines), (vectors[:40], lines[:40]), epochs=20, lr=0.02, batch_size=32, metric="exact",
        sampling=0.1, progress=False,
    )  # fmt: skip
    assert model.evaluate((vectors, lines), metrics=["exact"], beam=2)["exact"] > 0.95
    assert history[-1]["valid_exact"] == model.evaluate((vectors[:40], lines[:40]), metrics=["exact"])["exact"]


def test_files(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(LINES) + "\n")
    check_files(
        lambda: tiny(dropout=0.2, layers=2, dtype="float32"), (VECTORS.tolist(), tmp_path / "lines.txt"),
        lambda model: model.generate(VECTORS, beam=2, max_length=9), tmp_path / "model",
    )  # fmt: skip


def test_resume_needs_the_same_vectors():
    model = tiny()
    model.fit(PAIRS, epochs=1, progress=False)
    message = r"^SequenceGenerator\.fit: resume needs the same train pairs: "
    with pytest.raises(ValueError, match=message):
        model.fit((VECTORS + 1.0, LINES), epochs=2, resume=True, progress=False)
    model.fit(PAIRS, epochs=2, resume=True, progress=False)
    assert len(model.history) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_vectors_of_other_types(dtype):
    vectors = (VECTORS * 3).astype(dtype)
    model = built()
    expected = model.generate(vectors.astype(np.float64), max_length=9)
    assert model.generate(vectors, max_length=9) == model.generate(vectors.tolist(), max_length=9) == expected
    assert model.generate(np.asfortranarray(vectors), max_length=9) == expected


def test_samples_are_shown_and_nothing_is_made_of_nothing():
    report, model = Reporter(), tiny(dtype="float32")
    model.fit(([[0.5, -1]] * 6, LINES), epochs=1, sample_every=1, progress=report)
    (shown,) = (message for message in report.messages if "writes" in message)
    assert shown.startswith("step 1 writes:\n(0.5, -1.0)\n-> ")
    assert model.generate(np.empty((0, 2))) == []


def test_unknown_tokens():
    model = tiny(level="word", min_frequency=2)
    model.fit((VECTORS[:3], ["a b", "c a", "d a"]), epochs=30, lr=0.1, progress=False)
    assert all("<unk>" in line for line in model.generate(VECTORS[:3], unknown="keep", max_length=4))
    assert not any("<unk>" in line for line in model.generate(VECTORS[:3], max_length=4))


# -- errors ------------------------------------------------------------------------------------------------------------

CALL = "SequenceGenerator"
NAN = VECTORS.copy()
NAN[3, 1] = np.nan


@pytest.mark.parametrize(
    ("call", "error", "message"),
    params(
        [
            (lambda m: SequenceGenerator(0), ValueError, f"{CALL}: features must be an integer >= 1, got 0"),
            (
                lambda m: SequenceGenerator(2, "words"),
                ValueError,
                f"{CALL}: level must be one of 'char', 'word', 'bpe', got 'words'",
            ),
            (lambda m: SequenceGenerator(2, hidden=0), ValueError, f"{CALL}: hidden must be an integer >= 1, got 0"),
            (
                lambda m: tiny().generate(VECTORS),
                RuntimeError,
                f"{CALL}.generate: the model has no vocabularies yet: call fit (or build) first",
            ),
            (
                lambda m: m.fit(VECTORS),
                TypeError,
                f"{CALL}.fit: train must be two, vectors and lines, got ndarray",
            ),
            (
                lambda m: m.fit((VECTORS,)),
                TypeError,
                f"{CALL}.fit: train must be two, vectors and lines, got 1 of them",
            ),
            (
                lambda m: m.fit((VECTORS[:4], LINES)),
                ValueError,
                f"{CALL}.fit: train[0] and train[1] must have equally many lines, got 4 and 6",
            ),
            (
                lambda m: m.fit((VECTORS[:0], [])),
                ValueError,
                f"{CALL}.fit: train must have at least one pair, got none",
            ),
            (
                lambda m: m.fit(PAIRS, (VECTORS[:, :1], LINES)),
                ValueError,
                f"{CALL}.fit: valid[0] must have shape (n, 2), got (6, 1)",
            ),
            (
                lambda m: m.evaluate((VECTORS, LINES), max_length=4),
                ValueError,
                f"{CALL}.evaluate: pairs[1]: line 5 has 5 tokens, more than max_length=4",
            ),
            (
                lambda m: m.generate(NAN),
                ValueError,
                f"{CALL}.generate: vectors must be finite in float64, got [{NAN[3, 0]}, nan] as row 3",
            ),
            (
                lambda m: m.generate([1.0, 2.0]),
                ValueError,
                f"{CALL}.generate: vectors must have shape (n, 2), got (2,)",
            ),
            (
                lambda m: m.generate([[1.0, 2.0], [3.0]]),
                ValueError,
                f"{CALL}.generate: vectors must have shape (n, 2), got rows of other shapes",
            ),
            (
                lambda m: m.generate([["a", "b"]]),
                TypeError,
                f"{CALL}.generate: vectors must be real numbers (n, 2), got <U1",
            ),
            (
                lambda m: m.generate(VECTORS, beam=0),
                ValueError,
                f"{CALL}.generate: beam must be an integer from 1 to 65536, got 0",
            ),
            (
                lambda m: m.generate(VECTORS, beam=2, temperature=1.0),
                ValueError,
                f"{CALL}.generate: temperature is for beam=1, got temperature=1.0 and beam=2",
            ),
            (
                lambda m: m.generate(VECTORS, unknown="copy"),
                ValueError,
                f"{CALL}.generate: unknown='copy' needs a model with attention, got attention='none'",
            ),
            (
                lambda m: m.generate(VECTORS, max_length=0),
                ValueError,
                f"{CALL}.generate: max_length must be an integer >= 1, got 0",
            ),
            (
                lambda m: m.loss_and_grads(None),
                ValueError,
                f"{CALL}.loss_and_grads: dropout=0.1 needs rng, got None",
            ),
        ]
    ),
)  # fmt: skip
def test_wrong_calls(call, error, message):
    model = built(dropout=0.1)
    raised(lambda: call(model), error, message)


def test_vectors_too_large_for_the_models_numbers():
    raised(
        lambda: built(dtype="float32").generate([[1e300, 0.0]]),
        ValueError,
        f"{CALL}.generate: vectors must be finite in float32, got [1e+300, 0.0] as row 0",
    )


def test_weights_that_are_not_finite():
    model = built()
    model.parameters[0]["weight"][...] = np.nan
    message = r"^SequenceGenerator\.generate: the model's outputs are not finite; check its weights$"
    with pytest.raises(FloatingPointError, match=message):
        model.generate(VECTORS)


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_vectors_are_a_sequence_of_tuples():
    vectors = Vectors.checked("t", "v", VECTORS, 2, "float64")
    assert list(vectors) == [tuple(row) for row in VECTORS.tolist()]
    assert list(vectors[1:3]) == list(vectors)[1:3]
    assert vectors[1:3].crc() == Vectors.checked("t", "v", VECTORS[1:3], 2, "float64").crc() != vectors[:2].crc()
    values, lengths = vectors.batch(np.array([4, 0, 4]))
    assert np.array_equal(values, VECTORS[[4, 0, 4]])
    assert lengths.tolist() == [0, 0, 0]
    kept = VECTORS.copy()
    mine = Vectors.checked("t", "v", kept, 2, "float64")
    kept[...] = 0.0
    assert list(mine) == list(vectors)
