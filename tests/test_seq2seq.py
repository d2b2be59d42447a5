"""Seq2Seq as its users see it: what it learns, and its answers to lines of any kind."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fastrnn.models import CharVocabulary, Seq2Seq, Translation, WordVocabulary
from fastrnn.models.search import Hypothesis
from fastrnn.models.translation import translation_of
from tiny_seq2seq import PAIRS, RUN, SOURCE, TARGET, WORDS, tiny


@pytest.fixture(scope="module")
def trained() -> Seq2Seq:
    model = tiny(bidirectional=True)
    model.fit(PAIRS, epochs=40, **RUN)
    return model


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "none", "reverse": True, "layers": 2, "hidden": 48},
        {"attention": "dot", "cell": "gru", "tie": True, "embedding": 24},
        {"attention": "additive", "input_feeding": True},
        {"attention": "general", "bidirectional": True, "skip": True, "layers": 2},
        {"src_level": "char", "tgt_level": "word", "bidirectional": True},
    ],
    ids=str,
)
def test_learns_a_task(options):
    model = tiny(**options)
    history = model.fit(PAIRS, PAIRS, epochs=40, metric="exact", **RUN)
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    assert max(record["valid_exact"] for record in history) > 0.9
    assert [record["epoch"] for record in history] == list(range(1, 41))
    assert model.num_parameters == sum(array.size for group in model.parameters for array in group.values())


def test_options_of_training():
    model = tiny(dropout=0.1)
    history = model.fit(
        PAIRS, PAIRS, epochs=3, label_smoothing=0.1, sampling=0.5, max_tokens=20, optimizer="sgd", momentum=0.5,
        average=2, schedule="plateau", patience=9, sample_every=5, **RUN,
    )  # fmt: skip
    assert len(history) == 3
    assert {"valid_loss", "valid_perplexity", "clipped", "tokens_per_second"} <= set(history[0])


def test_parts_of_words():
    pytest.importorskip("tokenizers")
    read = tiny(src_level="bpe", tgt_level="word", vocab_size=300, bidirectional=True, hidden=32)
    read.fit(PAIRS, epochs=40, **RUN)
    assert read.evaluate(PAIRS, metrics=["exact"])["exact"] > 0.9
    (found,) = read.translations(["eins fünf"], beam=2)[0]
    assert found.text == " ".join(found.tokens) == "one five"
    assert "".join(found.source) == "einsfünf"  # without the blanks between words
    assert found.attention.shape == (len(found.tokens), len(found.source) + 1)
    written = tiny(level="bpe", vocab_size=300)
    written.fit(PAIRS, epochs=20, **RUN)
    for (each,) in written.translations(SOURCE):
        assert each.text == "".join(each.tokens)
        assert set(each.text) <= set("".join(TARGET))


def test_every_epoch_has_every_pair_once_in_an_order_of_its_own(monkeypatch):
    model, seen = tiny(), []
    monkeypatch.setattr(
        model, "_batch", lambda source, target, rows, real=model._batch: seen.append(rows) or real(source, target, rows)
    )
    history = model.fit(PAIRS, epochs=3, **RUN | {"batch_size": 6, "max_tokens": 12})
    steps = history[0]["steps"]
    epochs = [np.concatenate(seen[begin : begin + steps]).tolist() for begin in range(0, 3 * steps, steps)]
    assert len(seen) == 3 * steps
    assert all(sorted(epoch) == list(range(len(SOURCE))) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    lengths = np.array([len(line.split()) + 1 for line in SOURCE])
    for rows in seen:
        assert len(rows) <= 6
        assert len(rows) * lengths[rows].max() <= 12


def test_the_seed_decides():
    models = [tiny(seed=seed, dropout=0.2) for seed in (5, 5, 6)]
    for model in models:
        model.fit(PAIRS, epochs=2, sampling=0.3, **RUN)
    one, same, other = (model.state_dict() for model in models)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    drawn = [models[0].translate(SOURCE, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_files_and_lists_are_the_same(tmp_path):
    paths = tuple(tmp_path / name for name in ("source", "target"))
    for path, lines in zip(paths, PAIRS, strict=True):
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    models = [tiny(), tiny()]
    models[0].fit(PAIRS, epochs=1, **RUN)
    models[1].fit(paths, epochs=1, **RUN)
    one, other = (model.state_dict() for model in models)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert models[0].evaluate(PAIRS) == models[1].evaluate(paths)


# -- answers -----------------------------------------------------------------------------------------------------------


def test_translations(trained):
    lines = ["zwei drei", "", "vier", "  ", "eins fünf"]
    for beam in (1, 4):
        assert trained.translate(lines, beam) == ["two three", "", "four", "", "one five"]
    found = trained.translations(lines, beam=4, n_best=3)
    for line, each in zip(lines, found, strict=True):
        assert all(isinstance(one, Translation) for one in each)
        assert [one.score for one in each] == sorted((one.score for one in each), reverse=True)
        for one in each:
            assert one.source == line.split()
            assert one.text == " ".join(one.tokens)
            if one.source:
                assert one.attention.shape == (len(one.tokens), len(one.source) + 1)
                assert_allclose(one.attention.sum(axis=1), 1.0, rtol=1e-5)
                assert one.score == pytest.approx(one.log_p / (len(one.tokens) + 1), rel=1e-5)
                assert trained.score(([line], [one.text])) == pytest.approx(one.log_p, rel=1e-4)
    assert found[1] == [Translation("", [], [], 0.0, 0.0, None)]
    assert trained.translate([]) == []
    for size in (1, 2):
        assert trained.translate(SOURCE, 2, batch_size=size) == trained.translate(SOURCE, 2)


def test_evaluate_and_score(trained):
    scores = trained.score(PAIRS)
    figures = trained.evaluate(PAIRS, metrics=["wer", "exact"], beam=2)
    tokens = sum(len(line.split()) + 1 for line in TARGET)
    assert figures["tokens"] == tokens
    assert figures["loss"] == pytest.approx(-scores.sum() / tokens)
    assert figures["exact"] > 0.9
    assert figures["wer"] < 0.1
    assert trained.evaluate((SOURCE, TARGET[::-1]), metrics=["exact"])["exact"] < 0.5


def test_attention_is_in_the_order_of_the_line():
    """A model that reads from the end attends to the same words."""
    model = tiny(reverse=True)
    model.fit(PAIRS, epochs=40, **RUN)
    lines = [f"{a} {b}" for a in WORDS for b in WORDS if a != b]
    first = [each[0].attention[0, :2].argmax() for each in model.translations(lines)]
    steps = model._steps(*model._sentences("t", "lines", "source", lines, lines, 9).batch(np.arange(len(lines))))
    steps.step(np.full(len(lines), model._ends["target"]))
    assert first == [1 - place for place in steps.weights[:, :2].argmax(axis=1)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("vocabulary", [WordVocabulary.of_text("x y z"), CharVocabulary.of_text("xyz")])
def test_what_an_output_is_made_of(vocabulary, reverse):
    """Unknown tokens are those of the source that were read most, its end aside; the model read three."""
    place = {symbol: int(vocabulary.encode(symbol)[0]) for symbol in "xyz"}
    tokens = np.array([place["x"], 0, place["z"], 0], np.int32)
    attention = np.random.default_rng(0).dirichlet(np.ones(4), 4)
    attention[1] = [0.1, 0.2, 0.3, 0.4]  # most from the end
    found = Hypothesis(tokens, -3.0, -0.6, attention)
    read = ["a", "b", "c"]
    order = [2, 1, 0, 3] if reverse else [0, 1, 2, 3]
    for copy in (False, True):
        got = translation_of(found, read, vocabulary, reverse, copy)
        np.testing.assert_array_equal(got.attention, attention[:, order])
        assert (got.source, got.log_p, got.score) == (read, -3.0, -0.6)
        copied = [read[int(attention[t, order][:3].argmax())] for t in (1, 3)] if copy else [vocabulary.decode([0])] * 2
        assert got.tokens == ["x", copied[0], "z", copied[1]]
        assert got.text == (" " if isinstance(vocabulary, WordVocabulary) else "").join(got.tokens)
    assert copied[0] == ("a" if reverse else "c")


def test_lines_of_characters():
    model = tiny(level="char")
    model.fit((["ab", "b a", "a"] * 4, ["AB", "B A", "A"] * 4), epochs=2, **RUN)
    lines = ["a b", "", " ", "a☃b", "\u2028a\r"]
    for line, (found,) in zip(lines, model.translations(lines), strict=True):
        assert found.source == (list(line) if line.strip() else [])
        assert found.text == "".join(found.tokens)
        assert not set(found.text) - set("AB ")
        assert (found.attention is None) == (not line.strip())


def test_how_long_an_output_may_be(trained):
    endless = tiny()
    endless.fit(PAIRS, epochs=1, **RUN)
    endless.parameters[-1]["bias"][endless._ends["target"]] = -1e3
    for ratio, tokens in ((0.0, [10, 10]), (0.75, [11, 10]), (2.0, [14, 12])):
        found = endless.translations(["eins zwei", "drei"], max_ratio=ratio)
        assert [len(each[0].tokens) for each in found] == tokens
    assert trained.translate(["eins zwei"], max_ratio=1e300) == ["one two"]


def test_outputs_that_are_drawn(trained):
    lines = ["eins zwei", "drei", "neun"] * 9
    for options in ({"temperature": 1e-4}, {"temperature": 2.0, "top_k": 1}, {"temperature": 2.0, "top_p": 1e-9}):
        assert trained.translate(lines, **options) == trained.translate(lines)
    one, other = (trained.translate(lines, temperature=3.0) for _ in range(2))
    assert one != other  # the model's generator goes on
    for line, (each,) in zip(lines, trained.translations(lines, temperature=3.0), strict=True):
        assert set(each.tokens) <= set(WORDS.values())
        assert trained.score(([line], [each.text])) == pytest.approx(each.log_p, rel=1e-4) or len(each.tokens) > 12


def test_unknown_tokens(trained):
    rare = (["a b", "b a", "b", "a"] * 8 + ["c"], ["x y", "y x", "y", "x"] * 8 + ["z"])
    model = tiny(min_frequency=2, attention="dot")
    model.fit(rare, epochs=30, **RUN)
    bias = model.parameters[-1]["bias"]
    bias[0] += 50.0  # the model wants to write nothing else
    limit = {"max_ratio": 0.0}
    assert model.translate(["a b"], unknown="keep", **limit) == [" ".join(["<unk>"] * 10)]
    assert "<unk>" not in model.translate(["a b"], **limit)[0]
    (copied,) = model.translations(["b c a"], unknown="copy", **limit)[0]
    assert copied.tokens == [["b", "c", "a"][place] for place in copied.attention[:, :-1].argmax(axis=1)]
    assert copied.text == " ".join(copied.tokens)
    assert copied.source == ["b", "c", "a"]


def test_what_is_not_written_keeps_its_probability():
    """An output without unknown tokens has the log p that the model gives it, also where it wants one."""
    model = tiny(min_frequency=3)
    model.fit((["a", "b", "a b"] * 3 + ["c"] * 2, ["x", "y", "x y"] * 3 + ["z", "w"]), epochs=15, **RUN)
    model.parameters[-1]["bias"][0] += 3.0
    for beam in (1, 3):
        for line, each in zip(["c", "a c"], model.translations(["c", "a c"], beam, beam), strict=True):
            for one in each:
                assert model.score(([line], [one.text])) == pytest.approx(one.log_p, rel=1e-4)
                assert "<unk>" not in one.tokens


def test_the_end_written_as_a_word_is_an_unknown_one():
    model = tiny()
    model.build(PAIRS)
    pairs = (["eins <eos> zwei"], ["one <eos> two"])
    assert model.score(pairs) == model.score((["eins <unk> zwei"], ["one <unk> two"]))


def test_blanks_make_no_answer_wrong(trained):
    blank = [f"  {line.replace(' ', '   ')} " for line in TARGET]
    assert trained.evaluate((SOURCE, blank), metrics=["exact"]) == trained.evaluate(PAIRS, metrics=["exact"])


def test_an_end_is_a_symbol_however_few_lines_there_are():
    model = tiny(level="char", min_frequency=5)
    model.build((["aaaaabbbbbc"], ["aaaaad"]))
    assert [len(vocabulary) for vocabulary in model.vocabularies.values()] == [4, 3]  # <unk>, line break, letters


def test_weights_of_steps_do_not_pile_up():
    for tie in (False, True):
        model = tiny(tie=tie, embedding=24)
        model.fit(PAIRS, epochs=2, **RUN)
        assert all(len(embed._written) <= 1 for embed in (model._encoder.embed, model._decoder.embed))


@pytest.mark.parametrize("level", ["char", "bpe"])
def test_an_output_is_one_line(level):
    if level == "bpe":
        pytest.importorskip("tokenizers")
    model = tiny(level=level, vocab_size=300)
    lines = ["a ", "b", "", "", "a  "] * 20  # so that blanks and line breaks become one token
    model.fit((lines, lines), epochs=1, **RUN)
    texts = model.translate(["a", "b a"] * 20, temperature=5.0, seed=0)
    assert not any("\n" in text for text in texts)
    assert any(texts)
