"""Seeing inside a recurrent language model: how far gradients reach back, and what clipping does to them.

Everything here reads a model; its weights, gradients and generators stay as they are. ``figures`` draws what these
functions return.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import check_choice, check_size
from .inspection import as_parts, as_state, encode, rounded
from .schedules import Options
from .stack import make_stack
from .training import Streams, Trainer

if TYPE_CHECKING:
    from .language_model import LanguageModel


@dataclass(frozen=True)
class GradientFlow:
    """How strongly a loss depends on the states long before it; see ``gradient_flow``."""

    cell: str
    loss: str
    #: "h", of an LSTM also "c": (layers, steps, windows) float64; [l, k - 1] is k steps before the last loss.
    norms: dict[str, np.ndarray]

    @property
    def steps_back(self) -> np.ndarray:
        """1, 2, ... steps: the k of each column of ``norms``."""
        return np.arange(1, self.norms["h"].shape[1] + 1)

    def quartiles(self, state: str = "h") -> np.ndarray:
        """(3, layers, steps): lower quartile, median and upper quartile over the windows."""
        return np.quantile(self.norms[state], [0.25, 0.5, 0.75], axis=2)

    def to_dict(self) -> dict[str, Any]:
        names = ("lower_quartile", "median", "upper_quartile")
        return {
            "cell": self.cell,
            "loss": self.loss,
            "steps": len(self.steps_back),
            "windows": self.norms["h"].shape[2],
            "norms": {
                state: dict(zip(names, map(rounded, self.quartiles(state)), strict=True)) for state in self.norms
            },
        }


def gradient_flow(
    model: LanguageModel, text: str, steps: int = 200, *, windows: int = 16, loss: str = "last"
) -> GradientFlow:
    """The norm of the gradient of a loss by the state of each layer k = 1 ... ``steps`` steps before.

    From ``windows`` pieces of the text, spread over it, each read from a zero state, s_t being the states of all layers
    after t tokens (h, of an LSTM h and c)::

        L = -log p(w_(T+1) | w_1 ... w_T)                               loss="last"
        L = -1/T sum_t log p(w_(t+1) | w_1 ... w_t),  t = 1 ... T       loss="mean"
        norms[l, k - 1] = ||dL / ds_(T-k)^l||                           Euclidean, T = steps

    What vanishes with k cannot be learned over k steps. The gradient is that by the state handed from one step to the
    next, which truncated backpropagation cuts off: of L it sees the later steps alone, and what h^l gives the layer
    above at its own step belongs to that layer's state.

    The kernels run one step a call, forwards and backwards, in float64, so that norms down to 1e-300 are exact. Norms
    differ by orders of magnitude from window to window; their median is what ``figures`` shows.

    Args:
        model: a ``LanguageModel`` with a vocabulary.
        text: of at least ``steps`` + 1 tokens.
        steps: T.
        windows: at most that many; a short text has fewer.
        loss: "last" or "mean".

    Memory: the activations of ``steps`` x ``windows`` tokens.

    Raises:
        TypeError, ValueError: naming the argument. FloatingPointError: a gradient is not finite.

    Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013; Bengio, Simard,
    Frasconi, "Learning long-term dependencies with gradient descent is difficult", 1994.

    Example:
        >>> import fastrnn
        >>> from fastrnn.models import gradients
        >>> model = fastrnn.LanguageModel(cell="rnn", embedding=8, hidden=16, seed=1)
        >>> vocabulary = model.build("hello world. ")
        >>> flow = gradients.gradient_flow(model, "hello world. " * 10, steps=50)
        >>> near, far = flow.quartiles("h")[1, 0, [0, -1]]
        >>> bool(far < 1e-3 * near)
        True
    """
    where = "gradient_flow"
    steps, windows = check_size(where, "steps", steps), check_size(where, "windows", windows)
    check_choice(where, "loss", loss, ("last", "mean"))
    ids = encode(where, model, text, steps + 1)
    starts = np.linspace(0, len(ids) - steps - 1, min(windows, len(ids) - steps)).astype(int)
    rows = ids[starts + np.arange(steps + 1)[:, None]]
    stack = make_stack(
        model.cell, model.embedding, model.hidden, model.layers, proj_size=model.proj_size, skip=model.skip,
        dtype="float64", seed=0,
    )  # fmt: skip
    stack.load_state_dict(model.recurrent.parameters)
    x = model.embed.forward(rows[:-1]).astype(np.float64)
    state: Any = None
    outputs: list[np.ndarray] = []
    tapes: list[Any] = []
    for t in range(steps):
        y, state, tape = stack.forward(x[t : t + 1], state)
        outputs.append(y[0].astype(model.dtype))
        tapes.append(tape)
    output = copy.deepcopy(model.output)  # its loss adds to its gradients
    dstate = [np.zeros_like(part) for part in as_parts(state)]
    norms = np.empty((len(dstate), model.layers, steps, len(starts)))
    for t in reversed(range(steps)):
        dy = None
        if t == steps - 1 or loss == "mean":
            dy = output.loss(outputs[t], rows[t + 1], 1.0 if loss == "last" else 1.0 / steps)[1][None].astype(float)
        _, before = stack.backward(tapes[t], dy, as_state(dstate), need_dx=False)
        dstate = [np.array(part) for part in as_parts(before)]
        norms[:, :, steps - 1 - t] = [_norm(part) for part in dstate]
    if not np.isfinite(norms).all():
        raise FloatingPointError(f"{where}: a gradient is not finite; check the model's weights, or take fewer steps")
    return GradientFlow(model.cell, loss, dict(zip(("h", "c"), norms, strict=False)))


@dataclass(frozen=True)
class GradientNorms:
    """The norm of the whole gradient at each step of a training run; see ``gradient_norms``."""

    cell: str
    clip: float | None
    norms: np.ndarray  # (steps,) before clipping
    losses: np.ndarray  # (steps,) nats per token
    diverged: bool  # the loss or the norm of the next step was not finite

    @property
    def clipped(self) -> np.ndarray:
        """(steps,) after clipping."""
        return self.norms if self.clip is None else np.minimum(self.norms, self.clip)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"norms": rounded(self.norms), "losses": rounded(self.losses)}


def gradient_norms(
    model: LanguageModel,
    text: str,
    steps: int = 100,
    *,
    lr: float = 1.0,
    clip: float | None = None,
    batch_size: int = 8,
    bptt: int = 64,
) -> GradientNorms:
    """Train a copy of the model for some steps, and keep the norm of the gradient at each.

    The steps are those of ``LanguageModel.fit`` with plain SGD, where one that is too long shows in the next gradient:
    without ``clip`` norms may explode; clipping bounds the steps, and with them what follows. A run that diverges ends
    there.

    Args:
        model: a ``LanguageModel`` with a vocabulary.
        text: of at least ``batch_size`` + 1 tokens, read in ``batch_size`` streams, and again where it ends.
        steps: of training, each over ``bptt`` tokens of each stream.
        lr: learning rate > 0.
        clip: largest global norm of the gradient; None does not clip.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013.

    Example:
        >>> import fastrnn
        >>> from fastrnn.models import gradients
        >>> model = fastrnn.LanguageModel(embedding=8, hidden=16, seed=1)
        >>> vocabulary = model.build("hello world. ")
        >>> run = gradients.gradient_norms(model, "hello world. " * 10, steps=5, clip=0.1)
        >>> run.norms.shape, bool((run.clipped <= 0.1).all())
        ((5,), True)
    """
    where = "gradient_norms"
    steps = check_size(where, "steps", steps)
    batch_size, bptt = check_size(where, "batch_size", batch_size), check_size(where, "bptt", bptt)
    options = Options.checked(where, optimizer="sgd", lr=lr, clip=clip)
    ids = encode(where, model, text, batch_size + 1)
    trainer = Trainer(copy.deepcopy(model), Streams(ids, batch_size, bptt), options, epochs=1)
    trainer.model.zero_grad()
    norms: list[float] = []
    losses: list[float] = []
    diverged = False
    try:
        with np.errstate(all="ignore"):
            for _ in range(steps):
                loss, norm = trainer.step(0.0)
                losses.append(loss)
                norms.append(norm)
    except FloatingPointError:
        diverged = True
    return GradientNorms(model.cell, options.clip, np.array(norms), np.array(losses), diverged)


@dataclass(frozen=True)
class ClippingHistory:
    """What ``fit`` has recorded of clipping, an entry for each epoch."""

    epoch: np.ndarray
    clipped: np.ndarray  # share of steps
    grad_norm: np.ndarray  # mean before clipping; NaN where it was not recorded

    def to_dict(self) -> dict[str, Any]:
        return {name: rounded(array) for name, array in vars(self).items()}


def clipping_history(model: Any) -> ClippingHistory:
    """From ``model.history``; empty for a model that was not trained by gradients.

    Example:
        >>> import fastrnn
        >>> from fastrnn.models import gradients
        >>> model = fastrnn.LanguageModel(embedding=8, hidden=16, seed=1)
        >>> history = model.fit("hello world. " * 20, epochs=2, batch_size=4, bptt=16, clip=1e-3, progress=False)
        >>> gradients.clipping_history(model).clipped
        array([1., 1.])
    """
    records = [record for record in model.history if "clipped" in record]
    return ClippingHistory(
        np.array([record["epoch"] for record in records], int),
        np.array([record["clipped"] for record in records], float),
        np.array([record.get("grad_norm", math.nan) for record in records], float),
    )


def _norm(x: np.ndarray) -> np.ndarray:
    """Euclidean, along the last axis; the squares of small numbers do not underflow."""
    largest = np.abs(x).max(axis=-1)
    scaled = x / np.where(largest > 0.0, largest, 1.0)[..., None]
    return largest * np.sqrt((scaled * scaled).sum(axis=-1))
