"""Fused recurrent layers: RNN, GRU and LSTM that train and infer from NumPy alone.

>>> import numpy as np, fastrnn
>>> lstm = fastrnn.LSTM(128, 256, num_layers=2, seed=0)
>>> x = np.random.default_rng(0).standard_normal((35, 20, 128), dtype=np.float32)
>>> y, (h_n, c_n) = lstm(x)
>>> y.shape, h_n.shape
((35, 20, 256), (2, 20, 256))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import cuda, functional, optim, reference
from .clipping import clip_grad_norm
from .config import check_environment, show_config
from .layers import GRU, LSTM, RNN
from .threads import get_num_threads, release_memory, set_num_threads

if TYPE_CHECKING:
    from .models import LanguageModel, Seq2Seq

__version__ = "0.1.0"

check_environment()  # FASTRNN_ISA and FASTRNN_NUM_THREADS: a wrong value is a ValueError of the import

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "LanguageModel",
    "Seq2Seq",
    "clip_grad_norm",
    "cuda",
    "functional",
    "get_num_threads",
    "optim",
    "reference",
    "release_memory",
    "set_num_threads",
    "show_config",
]


def __getattr__(name: str) -> Any:
    # Models are imported on first use: layers alone load faster.
    if name in ("LanguageModel", "Seq2Seq"):
        from . import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
