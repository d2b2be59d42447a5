"""Vocabularies: there and back, unknown symbols, what is kept with a model."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn.models import CharVocabulary, WordVocabulary
from fastrnn.models.vocabulary import VOCABULARIES, vocabulary_from_dict

TEXT = "the cat saw the dog\n\nthe <unk> end\n"
levels = pytest.mark.parametrize("cls", VOCABULARIES.values())


@levels
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1), other=st.text())
def test_there_and_back(cls, text, other):
    if cls is CharVocabulary or text.strip():
        vocabulary = cls.of_text(text)
        ids = vocabulary.encode(text)
        assert ids.dtype == np.int32
        assert len(ids) == cls.count(text)
        assert len(vocabulary.encode(other)) == cls.count(other)
        assert vocabulary.encode(other).max(initial=0) < len(vocabulary)
        again = vocabulary.decode(ids)
        np.testing.assert_array_equal(vocabulary.encode(again), ids)
        if cls is CharVocabulary:
            assert again == text
        else:
            assert [line.split() for line in again.split("\n")] == [line.split() for line in text.split("\n")]
        copy = vocabulary_from_dict(json.loads(json.dumps(vocabulary.to_dict())))
        assert copy == vocabulary
        assert copy.symbols == vocabulary.symbols
        np.testing.assert_array_equal(copy.encode(text), ids)


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
    "data", [None, {}, {"level": "sound"}, {"level": "word"}, {"level": "word", "symbols": 3, "more": 1}]
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
