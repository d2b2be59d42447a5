"""Models of pairs where things go wrong, or could: half-made models, figures that are none, sizes, other batches."""

from __future__ import annotations

import os

import numpy as np
import pytest

import fastrnn
from fastrnn import cli
from fastrnn.models import SequenceClassifier, SequenceGenerator, SequenceTagger
from fastrnn.models.pairs_model import PairsModel
from tiny_model import Reporter
from tiny_seq2seq import PAIRS, RUN, tiny

VECTORS = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]] * 4
LINES = ["a b", "b", "a"] * 4
SMALL = {"embedding": 4, "hidden": 5, "seed": 1}
#: A model of each kind, and its pairs.
KINDS = [
    (lambda: fastrnn.Seq2Seq(**SMALL), (LINES, LINES)),
    (lambda: SequenceGenerator(2, **SMALL), (VECTORS, LINES)),
    (lambda: SequenceClassifier(**SMALL), (LINES, ["x", "y", "z"] * 4)),
    (lambda: SequenceTagger(**SMALL), (LINES, LINES)),
]


def test_blanks_within_byte_pair_tokens_count():
    model = fastrnn.Seq2Seq(src_level="word", tgt_level="bpe", vocab_size=258, embedding=16, hidden=32, seed=0)
    model.fit((["p"] * 40, ["a b"] * 40), epochs=40, lr=0.02, batch_size=8, progress=False)
    assert model.translate(["p"]) == ["a b"]
    for target, exact in (("a b", 1.0), ("ab", 0.0)):
        figures = model.evaluate((["p"], [target]), metrics=("exact", "wer"))
        assert (figures["exact"], figures["wer"] == 0.0) == (exact, exact == 1.0)


@pytest.mark.parametrize("attention", ["general", "additive"])
def test_scores_with_coverage_are_those_of_each_line_alone(attention):
    model = tiny(attention=attention)
    model.build(PAIRS)
    lines = ["eins zwei", "zwei eins drei " * 5, "drei"]
    how = {"beam": 3, "n_best": 3, "coverage_penalty": 0.3}
    for line, together in zip(lines, model.translations(lines, **how), strict=True):
        (alone,) = model.translations([line], **how)
        assert [each.text for each in together] == [each.text for each in alone]
        assert [each.score for each in together] == pytest.approx([each.score for each in alone], rel=1e-4)
        assert all(each.attention.shape == (len(each.tokens), len(line.split()) + 1) for each in together)


def test_resume_wants_the_same_valid_pairs():
    model = tiny()
    model.fit(PAIRS, PAIRS, epochs=1, **RUN)
    for valid, got in ((None, "none"), ((PAIRS[0][:-1], PAIRS[1][:-1]), "another")):
        with pytest.raises(ValueError, match=f"^Seq2Seq.fit: resume needs the same valid, .*, got {got}$"):
            model.fit(PAIRS, valid, epochs=2, resume=True, **RUN)
    model.fit(PAIRS, PAIRS, epochs=2, resume=True, **RUN)


def test_validation_keeps_to_max_tokens(monkeypatch):
    model, sizes = tiny(), []
    batch = model._batch

    def recorded(*args):
        made = batch(*args)
        sizes.append(max(made.source.size, made.targets.size))
        return made

    monkeypatch.setattr(model, "_batch", recorded)
    source = ["eins " * length for length in range(1, 12)]
    model.fit((source, source), (source * 3, source * 3), epochs=1, **RUN | {"batch_size": 10**6, "max_tokens": 30})
    assert max(sizes) <= 30
    assert len(sizes) > 11


@pytest.mark.parametrize(("make", "pairs"), KINDS)
def test_a_model_too_large_to_make_is_as_it_was(make, pairs):
    model = make()
    model.hidden = 2**40
    for call in (lambda: model.build(pairs), lambda: model.fit(pairs, progress=False)):
        with pytest.raises((ValueError, MemoryError)):
            call()
        assert model.vocabularies == {}
    model.hidden = 5
    model.fit(pairs, epochs=1, progress=False)


def test_beams_have_a_limit():
    model = tiny()
    model.build(PAIRS)
    with pytest.raises(ValueError, match=r"translate: beam must be an integer from 1 to 65536, got 65537$"):
        model.translate(["eins"], 65537)


def test_a_metric_that_valid_cannot_have_fails_before_the_first_step():
    model = tiny()
    steps = Reporter(lambda done: pytest.fail("a step was taken"))
    with pytest.raises(ValueError, match=r"^Seq2Seq\.fit: valid has no wer: .* must have at least 1 token"):
        model.fit(PAIRS, (["eins"], [""]), metric="wer", **RUN | {"progress": steps})
    model.fit(PAIRS, PAIRS, metric="wer", epochs=1, **RUN)


@pytest.mark.parametrize(("make", "pairs"), KINDS)
def test_weights_that_are_not_finite_have_no_figures(make, pairs):
    model: PairsModel = make()
    model.build(pairs)
    for group in model.parameters:
        for array in group.values():
            array[...] = np.nan
    for call in ("evaluate", "score"):
        with pytest.raises(FloatingPointError, match=rf"^{type(model).__name__}\.{call}: .*not finite"):
            getattr(model, call)(pairs)


def test_no_vectors_give_no_lines():
    model = SequenceGenerator(2, **SMALL)
    model.build((VECTORS, LINES))
    assert model.generate([]) == model.generate(np.empty((0, 2))) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["src", "tgt", "valid-src", "valid-tgt"])
def test_pipes_are_refused_where_files_are_read_twice(tmp_path, capsys, name):
    files = {each: tmp_path / each for each in ("src", "tgt", "valid-src", "valid-tgt")}
    for path in files.values():
        path.write_text("a\n")
    files[name].unlink()
    os.mkfifo(files[name])
    given = [part for each, path in files.items() for part in (f"--{each}", str(path))]
    assert cli.main(["seq2seq", "train", *given, "--out", str(tmp_path / "m")]) == 2
    error = f"--{name} must be a regular file, as it is read more than once, got {files[name]}"
    assert capsys.readouterr().err == f"fastrnn: seq2seq train: {error}\n"
    assert not (tmp_path / "m").exists()


def test_closed_streams(tmp_path, monkeypatch, capsys):
    model = tiny()
    model.build(PAIRS)
    model.save(tmp_path)
    monkeypatch.setattr("sys.stdin", None)
    assert cli.main(["seq2seq", "translate", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "fastrnn: standard input is closed: lines to translate are read there\n"
    monkeypatch.setattr("sys.stdout", None)
    assert cli.main(["info"]) == 0
