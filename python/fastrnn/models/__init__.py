"""Models built on the recurrent layers."""

from .language_model import LanguageModel
from .ngram import NgramModel
from .vocabulary import CharVocabulary, WordVocabulary

__all__ = ["CharVocabulary", "LanguageModel", "NgramModel", "WordVocabulary"]
