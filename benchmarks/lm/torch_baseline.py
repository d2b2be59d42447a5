"""Training speed of a language model beside the same model written plainly in PyTorch: tokens a second, same losses.

    python benchmarks/lm/torch_baseline.py --data DIR                      # all shapes; some minutes
    python benchmarks/lm/torch_baseline.py words-200 --data DIR --json FILE

--data is a folder with wikitext-2/{train,valid,test}.txt for the shapes of words, and tinyshakespeare/input.txt for
those of characters; benchmarks/README.md tells where these are from. Both models have the same weights, read the same
batches and take turns of some steps, of which the first is not counted: in it the other's threads may still spin, and
caches hold what was the other's. Without dropout their losses are the same but for rounding: the largest difference is
printed. Times are medians of steps, with the interquartile range over the median.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from recipes import shakespeare, wikitext2

import fastrnn
from fastrnn.bench import machine
from fastrnn.models import LanguageModel
from fastrnn.models.schedules import Options
from fastrnn.models.training import Streams, Trainer


@dataclass(frozen=True)
class Shape:
    level: str
    symbols: int  # of the training text
    cell: str
    hidden: int
    layers: int
    batch: int
    bptt: int
    optimizer: str
    lr: float
    asked: float  # for times torch's speed


SHAPES = {
    "words-200": Shape("word", 33278, "lstm", 200, 2, 20, 35, "sgd", 1.0, 1.5),
    "words-650": Shape("word", 33278, "lstm", 650, 2, 20, 35, "sgd", 1.0, 1.5),
    "chars-lstm": Shape("char", 66, "lstm", 512, 1, 32, 64, "adam", 2e-3, 1.25),
    "chars-gru": Shape("char", 66, "gru", 512, 1, 32, 64, "adam", 2e-3, 2.5),
}
TEXTS = {"word": wikitext2, "char": shakespeare}
CLIP = 0.25
TURN = 4  # steps


class Plain(torch.nn.Module):
    """Embedding, recurrent layers, linear layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(shape.symbols, shape.hidden)
        layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[shape.cell]
        self.recurrent = layer(shape.hidden, shape.hidden, shape.layers)
        self.output = torch.nn.Linear(shape.hidden, shape.symbols)

    def forward(self, inputs: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        y, state = self.recurrent(self.embedding(inputs), state)
        return self.output(y).flatten(0, 1), state


class TorchTrainer:
    """The training loop of PyTorch's tutorials."""

    def __init__(self, shape: Shape, weights: dict[str, np.ndarray]) -> None:
        self.model = Plain(shape)
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[shape.optimizer]
        self.optimizer = kind(self.model.parameters(), lr=shape.lr)
        self.state: Any = None

    def step(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        self.optimizer.zero_grad()
        logits, state = self.model(torch.from_numpy(inputs), self.state)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).long().flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        return loss.item()


def quartiles(times: list[float]) -> dict[str, float]:
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
    return {"ms": round(median * 1e3, 3), "spread": round((high - low) / median, 3)}


def make_trainer(shape: Shape, data: Path, dropout: float = 0.0) -> Trainer:
    """That of fastrnn, before its first step on the training text."""
    size = {"embedding": shape.hidden, "hidden": shape.hidden, "layers": shape.layers}
    model = LanguageModel(level=shape.level, cell=shape.cell, **size, dropout=dropout, seed=0)
    text = TEXTS[shape.level](data)["train"]
    vocabulary = model.build(text)
    if len(vocabulary) != shape.symbols:
        raise ValueError(f"the text in {data} must have {shape.symbols:,} symbols, got {len(vocabulary):,}")
    options = Options.checked(
        "make_trainer", optimizer=shape.optimizer, lr=shape.lr, momentum=0.0, weight_decay=0.0, clip=CLIP,
        schedule="constant", warmup=0,
    )  # fmt: skip
    return Trainer(model, Streams(vocabulary.encode(text), shape.batch, shape.bptt), options, epochs=10**6)


def measure(shape: Shape, data: Path, seconds: float) -> dict[str, Any]:
    ours = make_trainer(shape, data)
    theirs = TorchTrainer(shape, ours.model.state_dict())
    per_step = shape.batch * shape.bptt

    def ours_step(inputs: np.ndarray, targets: np.ndarray) -> float:
        before = ours.nats
        ours.step(0.0)
        return (ours.nats - before) / targets.size

    times: dict[str, list[float]] = {"fastrnn": [], "torch": []}
    worst, end = 0.0, perf_counter() + seconds
    turn = TURN * ours.data.stride
    if ours.data.length <= turn:
        raise ValueError(f"the text in {data} must have more than {turn * shape.batch:,} tokens")
    while (perf_counter() < end or not times["torch"]) and ours.position + turn < ours.data.length:
        batches = [ours.data.batch(ours.position + at) for at in range(0, turn, ours.data.stride)]
        losses: dict[str, list[float]] = {"fastrnn": [], "torch": []}
        order = (("fastrnn", ours_step), ("torch", theirs.step))
        for name, step in order if len(times["torch"]) % 2 else order[::-1]:
            for i, (inputs, targets) in enumerate(batches):
                start = perf_counter()
                losses[name].append(step(inputs, targets))
                if i > 0:
                    times[name].append(perf_counter() - start)
        worst = max(worst, *(abs(a - b) / b for a, b in zip(losses["fastrnn"], losses["torch"], strict=True)))
    result = {name: quartiles(each) for name, each in times.items()}
    for each in result.values():
        each["tokens_per_second"] = round(per_step / each["ms"] * 1e3)
    ratio = result["torch"]["ms"] / result["fastrnn"]["ms"]
    return asdict(shape) | result | {"ratio": round(ratio, 3), "steps": len(times["torch"]), "loss_difference": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"some of {', '.join(SHAPES)} (default: all)")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each shape")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if unknown := set(args.shapes) - set(SHAPES):
        parser.error(f"no shape {sorted(unknown)[0]!r}")
    torch.set_num_threads(fastrnn.get_num_threads())
    rows = {}
    for name in args.shapes or SHAPES:
        rows[name] = row = measure(SHAPES[name], args.data, args.seconds)
        print(
            f"{name:11} fastrnn {row['fastrnn']['tokens_per_second']:7,} tokens/s, torch "
            f"{row['torch']['tokens_per_second']:7,}: {row['ratio']:.2f} times (asked for {row['asked']}), "
            f"losses differ by {row['loss_difference']:.1e}",
            flush=True,
        )
    if args.json:
        record = {
            "clip": CLIP,
            "threads": fastrnn.get_num_threads(),
            "machine": machine.describe(),
            "versions": machine.versions(("torch",)),
            "commit": machine.commit(),
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
