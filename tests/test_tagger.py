"""SequenceTagger: a tag for each token of a line."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from errors import params, raised
from fastrnn.models import SequenceTagger
from pair_models import KERNELS, STACKS, TOLERANCE, check_files, check_gradients, check_padding, log_softmax, recurrent
from tiny_model import Reporter

LINES = ["a b", "", "b c a a", "c", "  ", "a c b c b"]
TAGS = ["x y", "", "y z x x", "z", "", "x z y z y"]
PAIRS = LINES, TAGS


def tiny(**options):
    return SequenceTagger(**{"embedding": 3, "hidden": 4, "seed": 3, "dtype": "float64", **options})


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
def test_scores_and_tags_are_those_of_the_equations(cell, bidirectional):
    model = built(cell=cell, layers=2, bidirectional=bidirectional)
    ids, scores, tagged, right = model.vocabularies["source"], model.score(PAIRS), model.tag(LINES), []
    assert model.labels == ["x", "y", "z"]
    for line, tags, score, got in zip(LINES, TAGS, scores, tagged, strict=True):
        x = model._encoder.embed.parameters["weight"][ids.encode(line + "\n")][:, None]
        y, _ = recurrent(model, model._encoder.stack, x)
        log_p = log_softmax(y[:-1, 0] @ model._output.weight.T + model._output.parameters["bias"])
        numbers = [model.labels.index(tag) for tag in tags.split()]
        assert score == pytest.approx(sum(log_p[t, number] for t, number in enumerate(numbers)), rel=1e-12)
        best = log_p.argmax(axis=1)
        assert got == [model.labels[number] for number in best]
        right += (best == numbers).tolist()
    assert model.evaluate(PAIRS)["accuracy"] == np.mean(right)
    assert model.evaluate(PAIRS)["tokens"] == len(right) == 12


@pytest.mark.parametrize("options", STACKS[:3], ids=str)
def test_padding_does_not_matter(options):
    model = built(**options | {"dropout": 0.0})
    kept = [0, 2, 3, 5]  # an empty line has no loss of its own
    check_padding(model, ([LINES[i] for i in kept], [TAGS[i] for i in kept]))
    scores = model.score(PAIRS)
    assert_allclose(scores[kept], model.score(([LINES[i] for i in kept], [TAGS[i] for i in kept])), **TOLERANCE)
    assert (scores[[1, 4]] == 0.0).all()
    assert model.tag(LINES, batch_size=1) == model.tag(LINES, batch_size=99) == model.tag(LINES)


# -- use ---------------------------------------------------------------------------------------------------------------


def test_it_learns_from_both_sides(tmp_path):
    """A tag names the tokens at both sides, of which one direction alone sees one."""
    rng, lines, tags = np.random.default_rng(1), [], []
    for _ in range(300):
        line = rng.choice(["a", "b"], rng.integers(0, 9))
        sides = zip(["a", *line[:-1]], [*line[1:], "a"], strict=True)
        lines.append("".join(line))
        tags.append(" ".join(before + after for before, after in sides) if len(line) else "")
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "tags.txt").write_text("\n".join(tags) + "\n")
    figures = []
    for bidirectional in (False, True):
        model = SequenceTagger("char", "gru", 8, 16, bidirectional=bidirectional, seed=1)
        model.fit(
            (tmp_path / "lines.txt", tmp_path / "tags.txt"), (lines[:50], tags[:50]), epochs=8, lr=0.02, batch_size=16,
            metric="accuracy", progress=False,
        )  # fmt: skip
        figures.append(model.evaluate((lines, tags))["accuracy"])
    assert figures[0] < 0.8 < 0.98 < figures[1]
    assert SequenceTagger().bidirectional
    assert model.tag(tmp_path / "lines.txt") == model.tag(lines)


def test_lines_without_tokens_are_learned_nothing_from():
    """Also where a step has nothing else."""
    model, alone = tiny(), tiny()
    pairs = ["", "", "a b", "b"], ["", "", "x y", "y"]
    history = model.fit(pairs, epochs=2, batch_size=2, optimizer="sgd", lr=0.1, progress=False)
    alone.fit((pairs[0][2:], pairs[1][2:]), epochs=2, batch_size=2, optimizer="sgd", lr=0.1, progress=False)
    assert [record["loss"] for record in history] == [record["loss"] for record in alone.history]
    for name, array in model.state_dict().items():
        assert np.array_equal(array, alone.state_dict()[name]), name
    assert model.tag([]) == []
    assert model.tag(["", " "]) == [[], []]


@pytest.mark.parametrize("level", ["char", "bpe"])
def test_tokens_of_other_levels(level):
    if level == "bpe":
        pytest.importorskip("tokenizers")
    lines = ["ab ab", "c", "ab c"]
    model = tiny(level=level, min_frequency=3 if level == "bpe" else 1)
    counts = [5, 1, 4] if level == "char" else [3, 1, 3]  # "ab", " ", "ab"; the other merge is too rare
    tags = [" ".join(["t"] * count) for count in counts]
    model.fit((lines, tags), epochs=1, progress=False)
    assert [len(found) for found in model.tag(lines)] == counts


def test_files(tmp_path):
    check_files(lambda: tiny(dropout=0.2, layers=2, dtype="float32"), PAIRS, lambda model: model.tag(LINES), tmp_path)


def test_samples_are_shown():
    report = Reporter()
    tiny().fit(PAIRS, epochs=1, sample_every=1, progress=report)
    shown = [message for message in report.messages if "writes" in message]
    assert len(shown) == 1
    assert shown[0].startswith("step 1 writes:\na b\n-> ")


# -- errors ------------------------------------------------------------------------------------------------------------

CALL = "SequenceTagger"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    params(
        [
            (
                lambda m: m.fit((LINES, [*TAGS[:2], "y z x", *TAGS[3:]])),
                ValueError,
                f"{CALL}.fit: train[1]: line 3 must have one tag for each of the 4 tokens of its source, got 3",
            ),
            (
                lambda m: m.evaluate((LINES, [TAGS[0], "x", *TAGS[2:]])),
                ValueError,
                f"{CALL}.evaluate: pairs[1]: line 2 must have one tag for each of the 0 tokens of its source, got 1",
            ),
            (
                lambda m: m.score((LINES, [*TAGS[:2], "y w x <unk>", *TAGS[3:]])),
                ValueError,
                f"{CALL}.score: pairs[1]: line 3 has the label 'w', which is none of the 3 that the model was "
                "built with",
            ),
            (
                lambda m: m.evaluate((["", " "], ["", ""])),
                ValueError,
                f"{CALL}.evaluate: pairs[1] must have at least one label, got none",
            ),
            (
                lambda m: m.tag([1]),
                TypeError,
                f"{CALL}.tag: lines must be a list of str, got int as line 1",
            ),
            (
                lambda m: m.tag(["a b a"], max_length=2),
                ValueError,
                f"{CALL}.tag: lines: line 1 has 3 tokens, more than max_length=2",
            ),
            (
                lambda m: SequenceTagger(hidden=0),
                ValueError,
                f"{CALL}: hidden must be an integer >= 1, got 0",
            ),
            (
                lambda m: tiny().tag(LINES),
                RuntimeError,
                f"{CALL}.tag: the model has no vocabularies yet: call fit (or build) first",
            ),
        ]
    ),
)  # fmt: skip
def test_wrong_calls(call, error, message):
    model = built()
    raised(lambda: call(model), error, message)


def test_a_file_is_named_by_its_line_and_both_counts(tmp_path):
    (tmp_path / "tags.txt").write_text("\n".join([*TAGS[:5], "x z y z"]))
    raised(
        lambda: tiny().fit((LINES, tmp_path / "tags.txt")),
        ValueError,
        f"{tmp_path / 'tags.txt'}: line 6 must have one tag for each of the 5 tokens of its source, got 4",
    )


def test_tags_are_needed():
    model = tiny()
    message = r"^SequenceTagger\.fit: train\[1\] must have at least one label, got none$"
    with pytest.raises(ValueError, match=message):
        model.fit((["", ""], ["", ""]))
    assert model.vocabularies == {}


def test_weights_that_are_not_finite():
    model = built()
    model.parameters[-1]["bias"][...] = np.inf
    with pytest.raises(FloatingPointError, match=r"^SequenceTagger\.tag: the model's outputs are not finite"):
        model.tag(LINES)


def test_lines_without_tokens_teach_nothing():
    """A run that ends after any step has learned from tokens."""
    for seed in range(6):
        model = tiny(seed=seed)
        history = model.fit((["", "", "a"], ["", "", "x"]), epochs=1, batch_size=1, seconds=1e-9, progress=False)
        assert (history[0]["steps"], history[0]["epoch"]) == (1, 1)
