"""Models built on the recurrent layers."""

from .language_model import LanguageModel
from .vocabulary import CharVocabulary, WordVocabulary

__all__ = ["CharVocabulary", "LanguageModel", "WordVocabulary"]
