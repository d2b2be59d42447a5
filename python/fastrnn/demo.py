"""``fastrnn demo``: a character language model trained on English text that is on every machine with Python.

The text is the prose of ``pydoc_data.topics``, the manual pages behind ``help()``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import statistics
import textwrap
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from . import config, get_num_threads, reference
from .layers import LSTM
from .models import LanguageModel

# Chosen for two cores and 40 s: larger models see the text less often in that time and predict it worse.
_MODEL: dict[str, Any] = {"cell": "lstm", "embedding": 64, "hidden": 256, "layers": 1, "dropout": 0.2}
_TRAINING: dict[str, Any] = {
    "epochs": 20,
    "batch_size": 16,
    "bptt": 64,
    "lr": 5e-3,
    "schedule": "cosine",
    "warmup": 20,
    "clip": 1.0,
}
_SAMPLE: dict[str, Any] = {"max_new_tokens": 600, "temperature": 0.5}

_SPEED_SHAPE = (64, 32, 256)  # T, B, I = H
_SPEED_SHARE = 0.15  # of the training time, at most 8 s


def run(seconds: float = 40.0, seed: int = 0, progress: Any = True) -> None:
    """Train for at most ``seconds``, then print what came of it on standard output."""
    others = _load_of_others()
    source, paragraphs = english_text()
    train = "\n\n".join(p for i, p in enumerate(paragraphs) if i % 10)
    valid = "\n\n".join(paragraphs[::10])
    model = LanguageModel(**_MODEL, seed=seed)
    vocabulary = model.build(train)
    print(f"text: {source}, {len(train):,} characters to learn from, {len(valid):,} held out")
    print(
        f"model: {model.cell.upper()}, {model.layers} x {model.hidden} units, {len(vocabulary)} symbols, "
        f"{model.num_parameters:,} weights; {get_num_threads()} threads, {config.collect()['isa']['in_use']}"
    )
    before = model.evaluate(valid, batch_size=32)
    print(f"perplexity per held-out character before training: {before['perplexity']:.2f}", flush=True)
    history = model.fit(train, valid, **_TRAINING, seconds=seconds, progress=progress)
    tokens = sum(record["tokens_per_second"] * record["seconds"] for record in history)
    spent = sum(record["seconds"] for record in history)
    after = model.evaluate(valid, batch_size=32)
    print(
        f"perplexity per held-out character after training, {history[-1]['steps']:,} steps in {spent:.0f} s: "
        f"{after['perplexity']:.2f} ({after['bits_per_character']:.2f} bits), {tokens / spent:,.0f} characters/s"
    )
    # A state of zeros is rare in training: reading a paragraph first gives the model its footing.
    sample = model.generate(paragraphs[0] + "\n\n", **_SAMPLE, seed=seed)
    print(f"\nThe model writes (temperature {_SAMPLE['temperature']}):\n")
    for paragraph in sample.strip().split("\n\n"):
        print(textwrap.fill(paragraph, 96, initial_indent="  ", subsequent_indent="  "))
    print(flush=True)
    compare_speed(budget=min(8.0, _SPEED_SHARE * seconds), seed=seed)
    if others is not None:
        print(f"note: the machine was busy with other work when the demo began ({others}), which distorts these times")


def _load_of_others() -> str | None:
    """The load average where it is high; to be read before the demo adds its own."""
    if not hasattr(os, "getloadavg"):
        return None
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load {load:.1f} on {cores} cores" if load > 0.5 * cores else None


# -- the text ----------------------------------------------------------------------------------------------------------


def english_text() -> tuple[str, list[str]]:
    """Where the text is from, and its paragraphs of prose, each once."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some systems package it apart
        import builtins

        objects = [value for module in (builtins, np) for _, value in sorted(vars(module).items())]
        documents = [getattr(value, "__doc__", None) or "" for value in objects]
        source = "the docstrings of Python's builtins and NumPy"
    else:
        documents = [topics[name] for name in sorted(topics)]
        source = "the manual pages behind Python's help() (pydoc_data.topics)"
    paragraphs = list(dict.fromkeys(_prose(documents)))
    if sum(map(len, paragraphs)) < 10_000:
        raise ValueError("fastrnn demo: this Python has no documentation to learn from (pydoc_data.topics is missing)")
    return source, paragraphs


def _prose(documents: Iterable[str]) -> Iterable[str]:
    for document in documents:
        for paragraph in re.split(r"\n\s*\n", document):
            text = " ".join(paragraph.split())
            plain = sum(c.isalpha() or c in " ,.;'" for c in text)
            # Tables, grammars and examples are mostly something else than words.
            if len(text) >= 60 and text[0].isupper() and plain >= 0.9 * len(text):
                yield text


# -- speed -------------------------------------------------------------------------------------------------------------


def compare_speed(budget: float, seed: int) -> None:
    """Forward and backward of one LSTM layer, beside plain NumPy and torch: in turns, medians, spread and error."""
    T, B, H = _SPEED_SHAPE
    rng = np.random.default_rng(seed)
    layer = LSTM(H, H, seed=seed)
    x = rng.standard_normal((T, B, H), dtype=np.float32)
    dy = rng.standard_normal((T, B, H), dtype=np.float32)
    weights = layer.parameters

    def fused() -> list[np.ndarray]:
        layer.zero_grad()
        y, _, tape = layer.forward(x)
        dx, _ = layer.backward(tape, dy)
        assert dx is not None
        return [y, dx, *layer.grads.values()]

    contenders: dict[str, Callable[[], list[np.ndarray]]] = {
        "fastrnn": fused,
        "NumPy, a loop over time": lambda: plain_lstm(x, dy, *weights.values()),
    }
    if importlib.util.find_spec("torch") is not None:
        contenders["torch.nn.LSTM"] = torch_lstm(x, dy, weights)
    y, _, tape = reference.forward("lstm", x, weights)
    dx, _, dweights = reference.backward(tape, dy)
    assert dx is not None
    exact = [y, dx, *(dweights[name] for name in weights)]
    errors = {name: _error(run(), exact) for name, run in contenders.items()}  # the first call warms up, too

    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + budget
    while len(times["fastrnn"]) < 3 or time.perf_counter() < end:
        for name, run in contenders.items():
            run()  # meanwhile threads that another library left spinning on our cores go to sleep
            begun = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - begun))

    repeats = len(times["fastrnn"])
    print(
        f"One LSTM layer forward and backward, T={T} B={B} I=H={H}, float32, {get_num_threads()} threads, "
        f"{repeats} interleaved repeats"
    )
    print(f"{'':<26}{'median ms':>10}{'middle half':>18}{'time ratio':>12}{'error':>10}")
    base = statistics.median(times["fastrnn"])
    for name, values in times.items():
        low, median, high = np.percentile(values, (25, 50, 75))
        spread = f"{low:.1f} .. {high:.1f}"
        print(f"{name:<26}{median:>10.1f}{spread:>18}{median / base:>11.1f}x{errors[name]:>10.0e}")
    print(
        "error: largest deviation from the float64 reference, as a share of the largest value, over y, dx and weights"
    )


def _error(results: list[np.ndarray], exact: list[np.ndarray]) -> float:
    return max(float(np.abs(r - e).max() / np.abs(e).max()) for r, e in zip(results, exact, strict=True))


def plain_lstm(
    x: np.ndarray, dy: np.ndarray, w_ih: np.ndarray, w_hh: np.ndarray, b_ih: np.ndarray, b_hh: np.ndarray
) -> list[np.ndarray]:
    """An LSTM layer as one writes it in NumPy: y, dx, dw_ih, dw_hh, db_ih, db_hh.

    The input's product is one matmul for all steps, and so are those of the weight gradients: a step does only the
    one that depends on the step before.
    """
    T, B, input_size = x.shape
    H = w_hh.shape[1]
    gates = (x.reshape(T * B, input_size) @ w_ih.T + (b_ih + b_hh)).reshape(T, B, 4, H)
    h = np.zeros((T + 1, B, H), x.dtype)
    c = np.zeros((T + 1, B, H), x.dtype)
    tanh_c = np.empty((T, B, H), x.dtype)
    for t in range(T):
        gates[t] += (h[t] @ w_hh.T).reshape(B, 4, H)
        i_f, g, o = gates[t, :, :2], gates[t, :, 2], gates[t, :, 3]
        for part in (i_f, o):  # sigmoid(a) = 1 / (1 + exp(-a))
            np.negative(part, out=part)
            np.exp(part, out=part)
            part += 1.0
            np.reciprocal(part, out=part)
        np.tanh(g, out=g)
        np.add(i_f[:, 1] * c[t], i_f[:, 0] * g, out=c[t + 1])
        np.tanh(c[t + 1], out=tanh_c[t])
        np.multiply(o, tanh_c[t], out=h[t + 1])

    dgates = np.empty_like(gates)
    dh_next, dc_next = np.zeros((B, H), x.dtype), np.zeros((B, H), x.dtype)
    for t in reversed(range(T)):
        i, f, g, o = (gates[t, :, k] for k in range(4))
        dh = dy[t] + dh_next
        dc = dc_next + dh * o * (1.0 - tanh_c[t] * tanh_c[t])
        dgates[t, :, 0] = dc * g * i * (1.0 - i)
        dgates[t, :, 1] = dc * c[t] * f * (1.0 - f)
        dgates[t, :, 2] = dc * i * (1.0 - g * g)
        dgates[t, :, 3] = dh * tanh_c[t] * o * (1.0 - o)
        dh_next = dgates[t].reshape(B, 4 * H) @ w_hh
        dc_next = dc * f
    rows = dgates.reshape(T * B, 4 * H)
    db = rows.sum(axis=0)
    dx = (rows @ w_ih).reshape(x.shape)
    return [h[1:], dx, rows.T @ x.reshape(T * B, input_size), rows.T @ h[:-1].reshape(T * B, H), db, db]


def torch_lstm(x: np.ndarray, dy: np.ndarray, weights: dict[str, np.ndarray]) -> Callable[[], list[np.ndarray]]:
    """The same with ``torch.nn.LSTM``, as a function of no arguments."""
    import torch

    torch.set_num_threads(get_num_threads())
    module = torch.nn.LSTM(x.shape[2], weights["weight_hh_l0"].shape[1])
    module.load_state_dict({name: torch.from_numpy(w.copy()) for name, w in weights.items()})
    x_torch, dy_torch = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)

    def run() -> list[np.ndarray]:
        module.zero_grad()
        x_torch.grad = None
        y, _ = module(x_torch)
        y.backward(dy_torch)
        return [a.detach().numpy() for a in (y, x_torch.grad, *(p.grad for p in module.parameters()))]

    return run
