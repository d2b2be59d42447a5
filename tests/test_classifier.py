"""SequenceClassifier: labels of lines."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from errors import params, raised
from fastrnn.models import LanguageModel, SequenceClassifier, load
from pair_models import KERNELS, STACKS, TOLERANCE, check_files, check_gradients, check_padding, log_softmax, recurrent
from tiny_model import Reporter

LINES = ["ab", "", "bca", "c", "abcab", "bb"]
LABELS = ["x", "y", "x", "z", "x", "y"]
PAIRS = LINES, LABELS


def tiny(**options):
    given = {"level": "char", "embedding": 3, "hidden": 4, "seed": 3, "dtype": "float64", **options}
    return SequenceClassifier(**given)


def built(**options):
    model = tiny(**options)
    model.build(PAIRS)
    return model


# -- computation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("options", STACKS, ids=str)
def test_gradients(options, bidirectional):
    check_gradients(tiny(bidirectional=bidirectional, **options), PAIRS)


def test_gradients_with_label_smoothing():
    check_gradients(tiny(), PAIRS, label_smoothing=0.2)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", KERNELS)
def test_probabilities_are_those_of_the_equations(cell, bidirectional):
    model = built(cell=cell, layers=2, bidirectional=bidirectional)
    ids = model.vocabularies["source"]
    got = model.probabilities(LINES)
    assert got.dtype == np.float64
    assert model.labels == ["x", "y", "z"]
    for line, row in zip(LINES, got, strict=True):
        x = model._encoder.embed.parameters["weight"][ids.encode(line + "\n")][:, None]
        _, state = recurrent(model, model._encoder.stack, x)
        h = (state[0] if cell == "lstm" else state)[-1 - bidirectional :].ravel()
        log_p = log_softmax(model._output.weight @ h + model._output.parameters["bias"])
        assert_allclose(row, np.exp(log_p), **TOLERANCE)
    assert_allclose(got.sum(axis=1), 1.0, **TOLERANCE)
    assert model.predict(LINES) == [model.labels[best] for best in got.argmax(axis=1)]
    own = [model.labels.index(label) for label in LABELS]
    assert_allclose(model.score(PAIRS), np.log(got[np.arange(len(own)), own]), **TOLERANCE)
    assert model.evaluate(PAIRS)["accuracy"] == np.mean(got.argmax(axis=1) == own)


@pytest.mark.parametrize("options", STACKS[:3], ids=str)
def test_padding_does_not_matter(options):
    model = built(**options | {"dropout": 0.0})
    check_padding(model, PAIRS)
    for size in (1, 4, 99):
        assert_allclose(model.probabilities(LINES, batch_size=size), model.probabilities(LINES), **TOLERANCE)


# -- use ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["char", "word"])
def test_it_learns(level, tmp_path):
    """Whether a line has more a than b: only a state that counts can tell."""
    rng = np.random.default_rng(1)
    drawn = [rng.choice(["a", "b"], 2 * rng.integers(0, 5) + 1) for _ in range(400)]
    lines = [("" if level == "char" else " ").join(line) for line in drawn]
    labels = ["a" if np.mean(line == "a") > 0.5 else "b" for line in drawn]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    (tmp_path / "labels.txt").write_text("\n".join(labels) + "\n")
    model = SequenceClassifier(level, embedding=8, hidden=16, seed=1)
    history = model.fit(
        (tmp_path / "lines.txt", tmp_path / "labels.txt"), (lines[:50], labels[:50]), epochs=12, lr=0.02,
        batch_size=32, metric="accuracy", patience=12, progress=False,
    )  # fmt: skip
    assert history[-1]["valid_accuracy"] == model.evaluate((lines[:50], labels[:50]))["accuracy"]
    assert model.evaluate((lines, labels), metrics=["accuracy"])["accuracy"] > 0.95
    assert model.predict(tmp_path / "lines.txt") == model.predict(lines)


def test_files(tmp_path):
    check_files(
        lambda: tiny(dropout=0.2, layers=2, dtype="float32"), PAIRS,
        lambda model: (model.predict(LINES), model.probabilities(LINES).tolist(), model.labels), tmp_path,
    )  # fmt: skip


def test_load_reads_every_kind(tmp_path):
    model = LanguageModel(embedding=3, hidden=3)
    model.build("abc")
    model.save(tmp_path)
    assert type(load(tmp_path)) is LanguageModel


def test_samples_are_shown_and_no_lines_have_no_labels():
    report, model = Reporter(), tiny()
    model.fit(PAIRS, epochs=1, batch_size=2, sample_every=2, progress=report)
    shown = [message for message in report.messages if "writes" in message]
    assert len(shown) == 1
    assert shown[0].startswith("step 2 writes:\nab\n-> ")
    assert model.predict([]) == []
    assert model.probabilities([]).shape == (0, 3)
    assert model.vocabularies["source"].encode("q") == 0
    assert len(model.predict(["qqq"])) == 1


def test_rare_labels_are_labels():
    model = built(min_frequency=3)
    assert model.labels == ["x", "y", "z"]
    assert model.vocabularies["source"].symbols == ["\n", "a", "b", "c"]
    assert "c" not in built(min_frequency=4).vocabularies["source"]


# -- errors ------------------------------------------------------------------------------------------------------------

CALL = "SequenceClassifier"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    params(
        [
            ({"level": "byte"}, ValueError, f"{CALL}: level must be one of 'char', 'word', 'bpe', got 'byte'"),
            ({"cell": "mlp"}, ValueError, f"{CALL}: cell must be one of 'lstm', 'gru', 'rnn', 'rnn_relu', got 'mlp'"),
            ({"embedding": 0}, ValueError, f"{CALL}: embedding must be an integer >= 1, got 0"),
            ({"hidden": 2.0}, TypeError, f"{CALL}: hidden must be an integer >= 1, got 2.0"),
            ({"layers": 0}, ValueError, f"{CALL}: layers must be an integer >= 1, got 0"),
            ({"dropout": 2}, ValueError, f"{CALL}: dropout must be a number between 0 and 1, got 2"),
            ({"bidirectional": 1}, TypeError, f"{CALL}: bidirectional must be True or False, got 1"),
            ({"skip": "no"}, TypeError, f"{CALL}: skip must be True or False, got 'no'"),
            ({"min_frequency": 0}, ValueError, f"{CALL}: min_frequency must be an integer >= 1, got 0"),
            ({"vocab_size": 256}, ValueError, f"{CALL}: vocab_size must be an integer >= 257, got 256"),
            ({"dtype": "half"}, ValueError, f"{CALL}: dtype must be one of 'float32', 'float64', got 'half'"),
            ({"seed": -1}, ValueError, f"{CALL}: seed must be an integer >= 0, got -1"),
        ]
    ),
)
def test_wrong_options(options, error, message):
    raised(lambda: SequenceClassifier(**options), error, message)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    params(
        [
            (
                lambda m: m.fit((LINES, [*LABELS[:-1], "y y"])),
                ValueError,
                f"{CALL}.fit: train[1]: line 6 must have one label, got 2",
            ),
            (
                lambda m: m.evaluate((LINES, ["", *LABELS[1:]])),
                ValueError,
                f"{CALL}.evaluate: pairs[1]: line 1 must have one label, got 0",
            ),
            (
                lambda m: m.score((LINES, [*LABELS[:2], "w", *LABELS[3:]])),
                ValueError,
                f"{CALL}.score: pairs[1]: line 3 has the label 'w', which is none of the 3 that the model was "
                "built with",
            ),
            (
                lambda m: m.evaluate((LINES, [*LABELS[:5], "<eos>"])),
                ValueError,
                f"{CALL}.evaluate: pairs[1]: line 6 has the label '<eos>', which is none of the 3 that the model was "
                "built with",
            ),
            (
                lambda m: m.fit((LINES, LABELS[1:])),
                ValueError,
                f"{CALL}.fit: train[0] and train[1] must have equally many lines, got 6 and 5",
            ),
            (
                lambda m: m.fit(PAIRS, metric="bleu"),
                ValueError,
                f"{CALL}.fit: metric must be one of 'loss', 'accuracy', got 'bleu'",
            ),
            (
                lambda m: m.fit(PAIRS, metric="accuracy"),
                ValueError,
                f"{CALL}.fit: metric='accuracy' needs valid pairs",
            ),
            (
                lambda m: m.fit(PAIRS, sampling=0.5),
                ValueError,
                f"{CALL}.fit: sampling is for models that write, got 0.5",
            ),
            (
                lambda m: m.evaluate(PAIRS, beam=2),
                ValueError,
                f"{CALL}.evaluate: beam is for models that write, got 2",
            ),
            (
                lambda m: m.evaluate(PAIRS, metrics=["wer"]),
                ValueError,
                f"{CALL}.evaluate: metrics must be 'accuracy', got 'wer'",
            ),
            (
                lambda m: m.predict("ab"),
                TypeError,
                f"{CALL}.predict: lines must be a list of lines or the path of a file, got str; a file is given as a "
                "pathlib.Path",
            ),
            (
                lambda m: m.predict(["a", "abc"], max_length=2),
                ValueError,
                f"{CALL}.predict: lines: line 2 has 3 tokens, more than max_length=2",
            ),
            (
                lambda m: m.probabilities(LINES, batch_size=0),
                ValueError,
                f"{CALL}.probabilities: batch_size must be an integer >= 1, got 0",
            ),
            (
                lambda m: m.loss_and_grads(None),
                ValueError,
                f"{CALL}.loss_and_grads: dropout=0.5 needs rng, got None",
            ),
            (
                lambda m: m.build(PAIRS),
                RuntimeError,
                f"{CALL}.build: the vocabularies are there already; make a new model for other ones",
            ),
        ]
    ),
)  # fmt: skip
def test_wrong_calls(call, error, message):
    model = built(dropout=0.5)
    raised(lambda: call(model), error, message)


@pytest.mark.parametrize("call", ["predict", "probabilities", "evaluate", "score", "save"])
def test_before_there_are_labels(call, tmp_path):
    given = tmp_path if call == "save" else PAIRS if call in ("evaluate", "score") else LINES
    message = f"{CALL}.{call}: the model has no vocabularies yet: call fit (or build) first"
    raised(lambda: getattr(tiny(), call)(given), RuntimeError, message)
    raised(lambda: tiny().labels, RuntimeError, message.replace(call, "labels"))


def test_a_file_is_named_by_its_line(tmp_path):
    (tmp_path / "labels.txt").write_text("x\ny\nx\nz\nx y\ny\n")
    raised(
        lambda: tiny().fit((LINES, tmp_path / "labels.txt")),
        ValueError,
        f"{tmp_path / 'labels.txt'}: line 5 must have one label, got 2",
    )


def test_labels_of_lines_that_are_wrong_are_forgotten():
    model = tiny()
    for wrong, valid in (([*LABELS[:-1], "very good"], None), (LABELS, (["a"], ["w"]))):
        with pytest.raises(ValueError, match="line"):
            model.fit((LINES, wrong), valid, progress=False)
        assert model.vocabularies == {}
    model.fit(PAIRS, epochs=1, progress=False)
    assert model.labels == ["x", "y", "z"]


def test_weights_that_are_not_finite():
    model = built()
    model.parameters[0]["weight"][...] = np.nan
    message = r"^SequenceClassifier\.predict: the model's outputs are not finite; check its weights$"
    with pytest.raises(FloatingPointError, match=message):
        model.predict(LINES)


def test_skip_connections_reach_the_label():
    models = [built(skip=skip, embedding=8, bidirectional=True) for skip in (False, True)]
    one, other = (model.probabilities(LINES) for model in models)
    assert (np.abs(one - other).max(axis=1) > 1e-6).all()
