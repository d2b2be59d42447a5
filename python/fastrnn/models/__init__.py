"""Models built on the recurrent layers, and the older ones that they are compared with."""

from .classifier import SequenceClassifier
from .generator import SequenceGenerator
from .interpolation import Interpolation
from .language_model import LanguageModel
from .loading import load
from .ngram import NgramModel
from .ngram_language_model import NgramLanguageModel
from .seq2seq import Seq2Seq
from .tagger import SequenceTagger
from .translation import Translation
from .vocabulary import BpeVocabulary, CharVocabulary, WordVocabulary
from .window_model import WindowModel

__all__ = [
    "BpeVocabulary",
    "CharVocabulary",
    "Interpolation",
    "LanguageModel",
    "NgramLanguageModel",
    "NgramModel",
    "Seq2Seq",
    "SequenceClassifier",
    "SequenceGenerator",
    "SequenceTagger",
    "Translation",
    "WindowModel",
    "WordVocabulary",
    "load",
]
