"""What every kind of language model keeps to, and the window and n-gram models by themselves."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from fastrnn.models import NgramModel, WordVocabulary, kinds
from fastrnn.models.interpolation import Interpolation
from fastrnn.models.language_model import LanguageModel
from fastrnn.models.ngram_language_model import NgramLanguageModel
from fastrnn.models.window_model import WindowModel
from model_files import edit
from tiny_model import QUICK, TEXT, check_gradients

OPTIONS = {"level": "char", "embedding": 5, "hidden": 9, "window": 3, "order": 3, "layers": 2, "seed": 3}


def make(kind: str, **options):
    return kinds.make(
        kind, **{name: value for name, value in (OPTIONS | options).items() if name in kinds.options_of(kind)}
    )


WORDS = "the cat saw the dog\nthe dog saw a cat\n\nthe end\n" * 9


def fitted(kind: str, text: str = TEXT, **options):
    model = make(kind, **options)
    model.fit(text, **({"progress": False} if kind == "ngram" else {**QUICK, "epochs": 2}))
    return model


@pytest.fixture(scope="module", params=kinds.KINDS)
def model(request):
    return fitted(request.param)


def test_scores_are_log_probabilities_of_a_distribution(model):
    """Whatever the text, decoding gives the probabilities that scoring gives, and they sum to 1."""
    ids = np.random.default_rng(0).integers(1, len(model.vocabulary), 9)
    text = model.vocabulary.decode(ids)
    scores = model.score(text)
    decoder = model._decoder(ids[:1])
    for i in range(len(ids) - 1):
        logits = decoder.step(ids[i : i + 1]).astype(np.float64)[0]
        log_p = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert log_p[ids[i + 1]] == pytest.approx(scores[i], abs=1e-4)


def test_a_decoder_reads_what_it_is_given(model):
    ids = model.vocabulary.encode(TEXT[:12])
    all_at_once = model._decoder(ids).step(ids[-1:])
    decoder = model._decoder(ids[:1])
    for token in ids:
        logits = decoder.step(np.array([token]))
    np.testing.assert_allclose(all_at_once, logits, rtol=0, atol=1e-4)


def test_a_decoders_rows_are_selected(model):
    ids = model.vocabulary.encode(TEXT[:5])
    decoder = model._decoder(ids)
    decoder.step(ids[-1:])
    decoder.select(np.array([0, 0]))
    first = decoder.step(np.array([1, 2]))
    decoder.select(np.array([1, 0, 1]))
    second = decoder.step(np.array([3, 3, 3]))
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_allclose(second[0], second[2], rtol=0, atol=1e-5)
    alone = model._decoder(np.array([*ids, 2, 3])).step(np.array([3]))
    np.testing.assert_allclose(second[0], alone[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_evaluation_in_streams_is_the_pieces_alone(model, batch_size):
    text = TEXT[:100]
    length = -(-99 // batch_size)
    pieces = [text[start : start + length + 1] for start in range(0, 99, length)]
    nats = -sum(model.score(piece).sum() for piece in pieces)
    result = model.evaluate(text, batch_size=batch_size)
    assert result["tokens"] == 99
    assert result["loss"] == pytest.approx(nats / 99, rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(nats / 99), rel=1e-4)


@pytest.mark.parametrize(
    ("level", "text", "characters"),
    [
        ("char", "☃ hi", 3),
        ("word", "supercalifragilistic cat saw", 8),
        ("word", "   the cat saw the dog", 16),
        ("word", " \n the end ", 9),
        ("bpe", "☃ hi", 4),  # the snowman ends with its third token
        ("bpe", "  the", 4),
    ],
)
def test_bits_per_character(level, text, characters, tmp_path):
    """Of all characters but those of the first token, as they are in the text."""
    if level == "bpe":
        pytest.importorskip("tokenizers")
    model = fitted("ngram", WORDS, level=level, order=2)
    result = model.evaluate(text)
    assert result["tokens"] == len(model.score(text))
    bits = -model.score(text).sum() / math.log(2)
    assert result["bits_per_character"] == pytest.approx(bits / characters, rel=1e-12)
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    assert model.evaluate(path) == result


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="pipes have no path here")
def test_pipes(model):
    def pipe():
        reading, writing = os.pipe()
        with open(writing, "wb") as file:
            file.write(TEXT.encode())
        stack.callback(os.close, reading)
        return Path(f"/dev/fd/{reading}")

    with ExitStack() as stack:
        assert model.evaluate(pipe()) == model.evaluate(TEXT)
        new = type(model)(**model.config)
        for name, texts in (("train", (pipe(), TEXT)), ("valid", (TEXT, pipe()))):
            error = rf"\.fit: {name} must be a regular file, as it is read more than once, got /dev/fd/\d+$"
            with pytest.raises(ValueError, match=error):
                new.fit(*texts, progress=False)
        with pytest.raises(ValueError, match=r"\.build: text must be a regular file"):
            new.build(pipe())
        assert new.vocabulary is None


def test_the_tokens_of_a_file_are_mapped(model, tmp_path, monkeypatch):
    """They and no others are what is predicted, without a folder, too."""
    path, seen = tmp_path / "text.txt", []
    path.write_text(TEXT)
    expected, nats = model.evaluate(TEXT, batch_size=3), model._nats
    monkeypatch.setattr(model, "_nats", lambda ids, batch_size: seen.append(ids) or nats(ids, batch_size))
    assert model.evaluate(path, batch_size=3) == expected
    assert isinstance(seen[0], np.memmap)


def test_save_and_load_to_the_bit(model, tmp_path):
    model.save(tmp_path)
    loaded = kinds.load(tmp_path)
    assert type(loaded) is type(model)
    assert (loaded.config, loaded.history) == (model.config, model.history)
    assert np.array_equal(loaded.score(TEXT), model.score(TEXT))
    assert loaded.generate("well", 20, seed=1) == model.generate("well", 20, seed=1)
    assert (loaded.num_parameters, loaded.nbytes) == (model.num_parameters, model.nbytes)


def test_a_folder_of_another_kind(model, tmp_path):
    model.save(tmp_path)
    other = NgramLanguageModel if isinstance(model, LanguageModel) else LanguageModel
    with pytest.raises(ValueError, match=f"is not a {other._format}"):
        other.load(tmp_path)


def test_load_refuses_an_unknown_kind(tmp_path):
    (tmp_path / "model.json").write_text('{"format": "someone.else"}')
    with pytest.raises(ValueError, match=r"must hold one of fastrnn\.LanguageModel, .* got 'someone.else'"):
        kinds.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.json is missing"):
        kinds.load(tmp_path / "nothing")


def test_nothing_is_predicted_before_fit():
    for kind in kinds.KINDS:
        with pytest.raises(
            RuntimeError, match=r"evaluate: the model has no vocabulary yet: call fit \(or build\) first"
        ):
            make(kind).evaluate("text")


# -- window ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 4},
        {"window": 3, "direct": True},
        {"window": 2, "direct": True, "dropout": 0.4},
    ],
    ids=str,
)
def test_gradients_of_the_window_model(options):
    check_gradients(WindowModel("char", embedding=3, hidden=4, seed=1, dtype="float64", **options))


def test_window_gradients_take_the_place_of_others():
    model = WindowModel("char", 3, 4, 5, direct=True, seed=2, dtype="float64")
    model.build(TEXT)
    ids = model.vocabulary.encode(TEXT[:21]).reshape(7, 3)
    model.zero_grad()
    model.loss_and_grads(ids[:-1], ids[1:])
    once = [grad.copy() for group in model.grads for grad in group.values()]
    model.loss_and_grads(ids[::-1][:-1], ids[1:], accumulate=False)
    model.loss_and_grads(ids[:-1], ids[1:], accumulate=False)
    for again, grad in zip((g for group in model.grads for g in group.values()), once, strict=True):
        np.testing.assert_allclose(again, grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_sees_so_many_tokens_and_no_more(window):
    model = WindowModel("char", window, 4, 8, seed=0)
    model.build(TEXT)
    ids = model.vocabulary.encode(TEXT[:30])
    # The last token's score depends on the `window` tokens before it.
    for back in range(1, 9):
        changed = ids.copy()
        changed[-1 - back] = 1 + ids[-1 - back] % (len(model.vocabulary) - 1)
        a, b = (model.score(model.vocabulary.decode(each))[-1] for each in (ids, changed))
        assert (a != b) == (back <= window)


def test_a_window_slides_from_step_to_step():
    """The state that a step leaves makes the next one the continuation of its text."""
    model = WindowModel("char", 4, 4, 8, seed=0, dtype="float64")
    model.build(TEXT)
    ids = model.vocabulary.encode(TEXT[:41])
    state, nats = None, 0.0
    for start in range(0, 40, 8):
        part = ids[start : start + 9]
        loss, state = model.loss_and_grads(part[:-1, None], part[1:, None], state)
        nats += 8 * loss
    assert nats / 40 == pytest.approx(-model.score(TEXT[:41]).mean(), rel=1e-12)


def test_window_learns_and_resumes_exactly(tmp_path):
    options = {**QUICK, "epochs": 6}
    whole = WindowModel("char", 4, 8, 16, dropout=0.1, seed=5)
    whole.fit(TEXT, TEXT[:50], **options)
    assert whole.evaluate(TEXT)["perplexity"] < 2.0  # 18 symbols
    part = WindowModel("char", 4, 8, 16, dropout=0.1, seed=5)
    part.fit(TEXT, TEXT[:50], **{**options, "epochs": 3})
    part.save(tmp_path)
    again = WindowModel.load(tmp_path)
    again.fit(TEXT, TEXT[:50], **options, resume=True)
    for name, array in whole.state_dict().items():
        assert np.array_equal(again.state_dict()[name], array), name


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"window": 0}, ValueError, "WindowModel: window must be an integer >= 1, got 0"),
        ({"window": 2.0}, TypeError, "WindowModel: window must be an integer >= 1, got 2.0"),
        ({"direct": 1}, TypeError, "WindowModel: direct must be True or False, got 1"),
        ({"embedding": 0}, ValueError, "WindowModel: embedding must be an integer >= 1, got 0"),
    ],
)
def test_window_refuses(options, kind, message):
    with pytest.raises(kind, match=message):
        WindowModel(**options)


# -- n-grams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", ["kneser_ney", "add_k"])
@pytest.mark.parametrize("level", ["char", "word"])
def test_an_ngram_model_is_that_of_the_ids(level, smoothing):
    model = NgramLanguageModel(level, 3, smoothing, k=0.1, seed=0)
    history = model.fit(WORDS, WORDS[:60], progress=False)
    ids = model.vocabulary.encode(WORDS)
    plain = NgramModel(3, smoothing, k=0.1).fit(ids, len(model.vocabulary))
    text = WORDS[40:90]
    np.testing.assert_array_equal(model.score(text), plain.log_probs(model.vocabulary.encode(text)))
    assert model.num_parameters == sum(plain.entries)
    assert history[0]["valid_loss"] == pytest.approx(-model.score(WORDS[:60]).mean())


def test_stupid_backoff_has_scores_but_no_perplexity(tmp_path):
    model = NgramLanguageModel("word", 3, "stupid_backoff", seed=0)
    history = model.fit(WORDS, WORDS, checkpoint=tmp_path, progress=False)
    assert history[0].keys() == {"epoch", "tokens_per_second", "seconds"}
    assert (model.score(WORDS) < 0).any()
    assert len(model.generate("the", 5, seed=1).split()) > 0
    with pytest.raises(ValueError, match=r"evaluate: the scores of NgramLanguageModel.* sum to no probability"):
        kinds.load(tmp_path).evaluate(WORDS)


def test_ngrams_are_counted_anew_by_fit():
    model = NgramLanguageModel("word", 2, seed=0)
    model.fit(WORDS, progress=False)
    entries = model.ngrams.entries
    model.fit("the cat\n", progress=False)
    assert model.ngrams.entries != entries
    assert isinstance(model.vocabulary, WordVocabulary)
    assert "saw" in model.vocabulary


def test_ngram_files_are_checked(tmp_path):
    model = NgramLanguageModel("word", 2, seed=0)
    model.fit(WORDS, checkpoint=tmp_path, progress=False)
    edit(tmp_path, lambda data: data["counts"].update(vocab_size=1))
    with pytest.raises(ValueError, match="is damaged: counts must be of"):
        NgramLanguageModel.load(tmp_path)


def test_a_new_run_has_nothing_to_do_with_the_best_model_of_an_earlier_one(tmp_path):
    def run(kind, **options):
        fit = QUICK if kind == "gru" else {"progress": False}
        model = kinds.make(kind, **options)
        model.fit(TEXT, checkpoint=tmp_path, **fit | ({"epochs": 1, "valid": TEXT} if kind == "gru" else {}))
        return model

    run("gru", embedding=4, hidden=5)
    (tmp_path / "best" / "notes").write_text("mine")
    assert isinstance(kinds.load_best(tmp_path), LanguageModel)
    ngrams = run("ngram", level="char", order=2)
    assert [entry.name for entry in (tmp_path / "best").iterdir()] == ["notes"]
    assert kinds.load_best(tmp_path).config == ngrams.config
    run("gru", embedding=4, hidden=5)
    (tmp_path / "best" / "notes").unlink()
    mixture = Interpolation([ngrams])
    mixture.fit(TEXT, checkpoint=tmp_path, progress=False)
    assert not (tmp_path / "best").exists()
    assert isinstance(kinds.load_best(tmp_path), Interpolation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order must be an integer >= 1, got 0"),
        ({"smoothing": "laplace"}, "smoothing must be one of 'add_k', 'stupid_backoff', 'kneser_ney', got 'laplace'"),
        ({"k": 0}, "k must be a finite number > 0, got 0"),
        ({"level": "byte"}, "level must be one of"),
    ],
)
def test_ngrams_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        NgramLanguageModel(**options)


def test_ngram_fit_refuses():
    model = NgramLanguageModel("word")
    with pytest.raises(TypeError, match=r"NgramLanguageModel\.fit: train must be a str or the path of a file, got int"):
        model.fit(3)
    with pytest.raises(ValueError, match=r"NgramLanguageModel\.fit: train must have at least 1 words, got 0"):
        model.fit("")
    with pytest.raises(ValueError, match=r"NgramLanguageModel\.fit: valid must have at least 2 words, got 1"):
        model.fit("a b", "a")
