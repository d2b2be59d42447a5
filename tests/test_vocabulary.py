"""Vocabularies: there and back, unknown symbols, what is kept with a model."""

import ast
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastrnn.cli import main
from fastrnn.models import CharVocabulary, NgramLanguageModel, WordVocabulary
from fastrnn.models.vocabulary import VOCABULARIES, BpeVocabulary, between_words, leading, vocabulary_from_dict

TEXT = "the cat saw the dog\n\nthe <unk> end\n"
has_tokenizers = importlib.util.find_spec("tokenizers") is not None
needs_tokenizers = pytest.mark.skipif(not has_tokenizers, reason="tokenizers is not installed")
classes = [pytest.param(cls, marks=needs_tokenizers if cls is BpeVocabulary else ()) for cls in VOCABULARIES.values()]
levels = pytest.mark.parametrize("cls", classes)
texts = st.text(st.characters(exclude_categories=["Cs"]))
# Whatever a rule about words could trip over, more often than among all of Unicode.
signs = st.lists(st.sampled_from([*" \t\r\n\x0b\x1c\x85\xa0\u2028\u3000", *"aé中9'.☃\u0301", "<unk>", "'s"])).map(
    "".join
)


@st.composite
def pieces_of_texts(draw):
    text = draw(signs | texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)))))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def concatenated(arrays):
    return np.concatenate([np.empty(0, np.int32), *arrays])


@levels
@settings(max_examples=60, deadline=None)
@given(text=texts | signs, other=texts)
def test_there_and_back(cls, text, other):
    if cls is not CharVocabulary or text:
        vocabulary = cls.of_text(text)
        ids = vocabulary.encode(text)
        assert ids.dtype == np.int32
        for some in (text, other):
            count, most = len(vocabulary.encode(some)), cls.count(some)
            assert count <= most if cls is BpeVocabulary else count == most
            assert (count == 0) == (most == 0)
        assert vocabulary.encode(other).max(initial=0) < len(vocabulary)
        again = vocabulary.decode(ids)
        np.testing.assert_array_equal(vocabulary.encode(again), ids)
        if cls is WordVocabulary:
            assert [line.split() for line in again.split("\n")] == [line.split() for line in text.split("\n")]
        else:
            assert again == text
        copy = vocabulary_from_dict(json.loads(json.dumps(vocabulary.to_dict())))
        assert copy == vocabulary
        assert copy.symbols == vocabulary.symbols
        assert copy.start == vocabulary.start
        np.testing.assert_array_equal(copy.encode(text), ids)


@levels
@settings(max_examples=60, deadline=None)
@given(pieces=pieces_of_texts(), min_frequency=st.integers(1, 3))
@example(pieces=["on", "e two o", "ne"], min_frequency=2)
def test_pieces_give_the_vocabulary_of_the_text(cls, pieces, min_frequency):
    text = "".join(pieces)
    if cls is CharVocabulary and (most := max(map(text.count, text), default=0)) < min_frequency:
        why = f"min_frequency must be at most {most}, .*, got {min_frequency}$" if text else "at least one character"
        with pytest.raises(ValueError, match=f"^CharVocabulary: .*{why}"):
            cls.of_pieces(pieces, min_frequency)
    else:
        assert cls.of_pieces(iter(pieces), min_frequency) == cls.of_text(text, min_frequency)


@levels
@settings(max_examples=200, deadline=None)
@given(blocks=pieces_of_texts())
def test_pieces_between_words_have_the_ids_of_the_text(cls, blocks):
    text = "".join(blocks)
    pieces = list(between_words(blocks))
    assert "".join(pieces) == text
    assert all(pieces)
    vocabulary = cls.of_text("the cat's a 9中中\n\r é☃. " + text)
    np.testing.assert_array_equal(concatenated(map(vocabulary.encode, pieces)), vocabulary.encode(text))


def test_pieces_are_cut_where_they_can_be():
    text = "word \n" * 100
    blocks = [text[i : i + 50] for i in range(0, len(text), 50)]
    pieces = list(between_words(blocks))
    assert len(pieces) in (len(blocks), len(blocks) + 1)
    assert max(map(len, pieces)) < 60
    assert all(piece.startswith("\nword") for piece in pieces[1:])
    assert list(between_words(["a" * 50] * 20)) == ["a" * 1000]
    assert list(between_words(["", ""])) == []


@needs_tokenizers
def test_long_texts_have_the_ids_of_the_library():
    """They are encoded in blocks; words longer than one, and longer than the longest, among them."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcé中", k=rng.choice([1, 3, 8]))) for _ in range(300)]
    text = "".join(word + rng.choice([" ", "\n", "  ", " \n\n"]) for word in rng.choices(words, k=8_000))
    text = text + "x" * 40_000 + " " + "中" * 20_000 + "\n" * 30_000 + text
    vocabulary = BpeVocabulary.of_text(text, 2, size=600)
    assert len(vocabulary) == 600
    assert vocabulary == BpeVocabulary.of_pieces((text[i : i + 777] for i in range(0, len(text), 777)), 2, size=600)
    ids = vocabulary.encode(text)
    assert ids.min() > 0
    assert vocabulary.decode(ids) == text
    import tokenizers

    library = tokenizers.Tokenizer.from_str(vocabulary.to_dict()["tokenizer"])
    np.testing.assert_array_equal(library.encode(text).ids, ids)
    assert library.decode(ids) == text


@needs_tokenizers
def test_bpe():
    vocabulary = BpeVocabulary.of_text(TEXT, min_frequency=3)
    assert vocabulary.symbols[256:] == ["he", "the"]
    assert len(vocabulary) == 259
    assert "the" in vocabulary
    assert "cat" not in vocabulary
    ids = vocabulary.encode("<unk> a\n\n").tolist()
    assert len(ids) == 9
    assert 0 not in ids
    assert ids[-1] == ids[-2] == vocabulary.start
    assert vocabulary.decode([0, ids[6]]) == "<unk>a"
    assert vocabulary.encode("").tolist() == []
    assert vocabulary.decode([]) == ""
    with pytest.raises(IndexError):
        vocabulary.decode([259])


@needs_tokenizers
def test_the_size_of_bpe():
    assert len(BpeVocabulary.of_text(TEXT, size=257)) == 257
    assert len(BpeVocabulary.of_text(TEXT, size=261)) == 261
    assert len(BpeVocabulary.of_text("", size=300)) == 257
    for size, error in ((256, ValueError), (300.0, TypeError)):
        with pytest.raises(error, match=r"^BpeVocabulary: size must be an integer >= 257, got "):
            BpeVocabulary.of_text(TEXT, size=size)
    with pytest.raises(ValueError, match=r"^BpeVocabulary: min_frequency must be an integer >= 1, got 0"):
        BpeVocabulary.of_text(TEXT, 0)


@needs_tokenizers
@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 256)))
def test_bytes_that_are_no_characters(ids):
    """Any ids have a text, as a model may draw any."""
    vocabulary = BpeVocabulary.of_text("", size=257)
    snowman = vocabulary.encode("☃")
    assert len(snowman) == 3
    assert vocabulary.decode(snowman) == "☃"
    assert set(vocabulary.decode(snowman[:2])) == {"\ufffd"}
    text = vocabulary.decode(np.array(ids, np.int64))
    assert vocabulary.decode(vocabulary.encode(text)) == text


@needs_tokenizers
def test_lone_surrogates_are_refused():
    error = re.escape("BpeVocabulary: text must be Unicode, got the lone surrogate U+DC80 as character 2")
    with pytest.raises(ValueError, match=f"^{error}$"):
        BpeVocabulary.of_text("ab\udc80")
    with pytest.raises(ValueError, match=f"^{error}$"):
        BpeVocabulary.of_text("ab").encode("ab\udc80\udc81")
    assert BpeVocabulary.count("\udc80") == 3


@needs_tokenizers
def test_errors_of_the_source_of_pieces_come_through():
    def pieces():
        yield "one"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        BpeVocabulary.of_pieces(pieces())


def damaged(**changes):
    """The JSON of a tokenizer with another model."""
    data = json.loads(BpeVocabulary.of_text(TEXT, 3).to_dict()["tokenizer"])
    data["model"] |= changes
    return json.dumps(data)


@needs_tokenizers
def test_damaged_tokenizers_are_refused():
    vocab = json.loads(damaged())["model"]["vocab"]
    some = dict.fromkeys("abc", 0)
    for tokenizer, message in (
        ("", "must be the JSON"),
        ("{}", "must be the JSON"),
        ("[" * 100_000, "must be the JSON"),
        (damaged(vocab=None), "must be the JSON"),
        (damaged(vocab=vocab | {"a": -1}), "must be the JSON"),
        (damaged(vocab=some), "must be the JSON"),  # without what is merged
        (damaged(merges=[["the", "cat"]]), "must be the JSON"),
        (damaged(merges=[["t"]]), "must be the JSON"),
        (damaged(vocab=vocab | {"x": 300}), "must have the ids"),
        (damaged(vocab=some, merges=[]), "must have the ids"),
        (damaged(vocab={"a": 0, "<unk>": 1}, merges=[]), "all 256 bytes"),
        (damaged(vocab={"<unk>": 0, "a": 1}, merges=[]), "all 256 bytes"),
        (damaged(vocab={}, merges=[]), "all 256 bytes"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            vocabulary_from_dict({"level": "bpe", "tokenizer": tokenizer})
        assert str(caught.value).startswith("BpeVocabulary: ")
        assert "\n" not in str(caught.value)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    error = re.escape("BpeVocabulary: tokenizers is not installed: pip install 'fastrnn[text]'")
    with pytest.raises(RuntimeError, match=f"^{error}$"):
        BpeVocabulary.of_text(TEXT)
    with pytest.raises(RuntimeError, match=f"^{error}$"):
        vocabulary_from_dict({"level": "bpe", "tokenizer": "{}"})


IMPORTED = """
import sys
import fastrnn.models
assert "tokenizers" not in sys.modules
"""
FORKED = """
import os, sys
from fastrnn.models.vocabulary import BpeVocabulary
text = "the cat saw the dog " * 10_000
vocabulary = BpeVocabulary.of_text(text)
ids = vocabulary.encode(text)
sys.stdout.flush()
if (child := os.fork()) == 0:
    same = BpeVocabulary.of_text(text) == vocabulary and (vocabulary.encode(text) == ids).all()
    os._exit(0 if same else 1)
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(IMPORTED, id="imported"),
        pytest.param(
            FORKED, marks=[needs_tokenizers, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")], id="forked"
        ),
    ],
)
def test_in_a_process_of_its_own(program):
    """The library is loaded when it is needed, and neither warns nor hangs in the child of a process that used it."""
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    # Python from 3.12 on warns of any fork of a process with threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@given(text=signs | texts)
@example(text="")
@example(text=" \r\na\x0b\x1cb\u2028c\x85")
@levels
def test_pieces_are_what_the_ids_stand_for(cls, text):
    vocabulary = cls.of_text("the end ")
    pieces = vocabulary.pieces(text)
    assert len(pieces) == len(vocabulary.encode(text))
    if cls is WordVocabulary:
        assert "".join(pieces) == re.sub(r"[^\S\n]+\Z", "", text)
        assert [piece.strip() for piece in pieces if piece.strip()] == text.split()
    else:
        assert "".join(pieces) == text


@levels
@settings(max_examples=60, deadline=None)
@given(text=signs | texts, blanks=st.integers(0, 9))
@example(text="", blanks=5)
@example(text="a\n", blanks=3)
@example(text="x" * 40_000 + " y", blanks=20_000)  # both longer than a block
def test_characters_of_the_first_token(cls, text, blanks):
    text = " " * blanks + text
    vocabulary = cls.of_text("the end ")
    pieces = vocabulary.pieces(text)
    assert leading(vocabulary, text) == (len(pieces[0]) if pieces else len(text))


@needs_tokenizers
def test_pieces_of_bytes():
    vocabulary = BpeVocabulary.of_text("a snowman a snowman", size=300)
    assert vocabulary.pieces("a snowman ☃é\n") == ["a", " snowman", " ", "", "", "☃", "", "é", "\n"]
    with pytest.raises(ValueError, match="text must be Unicode, got the lone surrogate"):
        vocabulary.pieces("a\ud800")


@levels
def test_score_shows_the_text(cls, tmp_path, capsys):
    model, text = NgramLanguageModel(cls.level, 2, seed=1), "the owl ☃ sees\nthe  end"
    model.fit("the end\n" * 20, progress=False)
    model.save(tmp_path / "model")
    (tmp_path / "text").write_text(text, encoding="utf-8")
    assert main(["lm", "score", str(tmp_path / "model"), str(tmp_path / "text")]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [ast.literal_eval(piece) for _, piece in rows] == model.vocabulary.pieces(text)[1:]
    assert [float(log_p) for log_p, _ in rows] == pytest.approx(model.score(text), abs=1e-4)


def test_a_token_is_decoded_in_no_time_of_the_vocabulary():
    """Nothing as large as that is made."""
    vocabulary = CharVocabulary(map(chr, range(0x4E00, 0x6E00)))
    tracemalloc.start()
    try:
        assert vocabulary.decode([0, 8192]) == "\ufffd\u6dff"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(vocabulary)


def test_words():
    vocabulary = WordVocabulary.of_text(TEXT)
    assert vocabulary.symbols == ["<eos>", "the", "cat", "dog", "end", "saw"]
    assert len(vocabulary) == 7
    assert "cat" in vocabulary
    assert "cow" not in vocabulary
    np.testing.assert_array_equal(vocabulary.encode(TEXT), [2, 3, 6, 2, 4, 1, 1, 2, 0, 5, 1])
    np.testing.assert_array_equal(vocabulary.encode(" a  dog"), [0, 4])
    assert vocabulary.decode([2, 0, 1, 1, 4]) == "the <unk>\n\ndog"
    assert vocabulary.decode([]) == ""
    assert WordVocabulary.of_text("").encode("a\n").tolist() == [0, 1]


@pytest.mark.parametrize(("cls", "kept"), [(CharVocabulary, [" ", "e", "t"]), (WordVocabulary, ["<eos>", "the"])])
def test_rare_symbols_are_unknown(cls, kept):
    vocabulary = cls.of_text("the cat the hat", min_frequency=2)
    assert set(vocabulary.symbols) >= set(kept)
    assert "c" not in vocabulary
    assert 0 in vocabulary.encode("the cat")


@pytest.mark.parametrize(
    "data",
    [None, {}, {"level": "sound"}, {"level": "word"}, {"level": "word", "symbols": 3, "more": 1}, {"level": "bpe"}],
)
def test_damaged_vocabularies_are_refused(data):
    with pytest.raises(ValueError, match=r"level|expected"):
        vocabulary_from_dict(data)


def test_bad_symbols_are_refused():
    for words in (["a", "a"], ["<unk>"], ["<eos>"]):
        with pytest.raises(ValueError, match="must be different"):
            WordVocabulary(words)
    with pytest.raises(ValueError, match="without whitespace"):
        WordVocabulary(["a b"])
    with pytest.raises(ValueError, match="must be text"):
        WordVocabulary.from_dict({"level": "word", "symbols": 3})
    with pytest.raises(ValueError, match="tokenizer must be text"):
        BpeVocabulary.from_dict({"level": "bpe", "tokenizer": {}})
