"""Where the time of a training step goes: the shares of the embedding, the recurrent layer, the loss and the rest.

    python benchmarks/lm/step_profile.py --data DIR                      # all shapes of torch_baseline.py
    python benchmarks/lm/step_profile.py words-200 --data DIR --json FILE

--data as for torch_baseline.py. Unlike there, the models may have dropout: between the layers it is a part of the
recurrent layer, on embeddings it counts as theirs and as dropout. Steps run under Python's profiler, which adds next to
nothing: a step is few calls of the kernels.
"""

from __future__ import annotations

import argparse
import cProfile
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from torch_baseline import SHAPES, Shape, make_trainer

import fastrnn
from fastrnn.bench import machine
from fastrnn.clipping import clip_grad_norm
from fastrnn.layers import LSTM
from fastrnn.models.nn import Dropout, Embedding, Output
from fastrnn.models.training import Trainer
from fastrnn.optim import Optimizer
from fastrnn.output import print_table

# The recurrent layers have their methods from one class.
PARTS: dict[str, tuple[Callable[..., Any], ...]] = {
    "embedding": (Embedding.read, Embedding.read_backward, Embedding.zero_written_rows),
    "recurrent, forward": (LSTM.forward,),
    "recurrent, backward": (LSTM.backward, LSTM.zero_grad),
    "loss": (Output.loss,),
    "dropout": (Dropout.forward, Dropout.backward),
    "gradient norm": (clip_grad_norm,),
    "optimizer": (Optimizer.step,),
}
WARMUP = 3  # steps that find cold caches


def shares(shape: Shape, data: Path, dropout: float, seconds: float) -> dict[str, Any]:
    trainer = make_trainer(shape, data, dropout)
    for _ in range(WARMUP):
        trainer.step(0.0)
    profile, end = cProfile.Profile(), perf_counter() + seconds
    while perf_counter() < end or trainer.steps < WARMUP + 5:
        profile.runcall(trainer.step, 0.0)
    spent = {entry.code: entry.totaltime for entry in profile.getstats()}
    whole = spent[Trainer.step.__code__]
    # Without dropout some are never called.
    parts = {name: sum(spent.get(each.__code__, 0.0) for each in methods) / whole for name, methods in PARTS.items()}
    parts["rest"] = 1.0 - sum(parts.values())
    steps = trainer.steps - WARMUP
    return asdict(shape) | {"dropout": dropout, "steps": steps, "shares": {k: round(v, 4) for k, v in parts.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"some of {', '.join(SHAPES)} (default: all)")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each shape")
    parser.add_argument("--note", help="goes into the JSON, such as what else the machine was doing")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if unknown := set(args.shapes) - set(SHAPES):
        parser.error(f"no shape {sorted(unknown)[0]!r}")
    rows = {name: shares(SHAPES[name], args.data, args.dropout, args.seconds) for name in args.shapes or SHAPES}
    header = ["shape", *PARTS, "rest"]
    print_table("", (header, [[name, *(f"{x:.1%}" for x in row["shares"].values())] for name, row in rows.items()]))
    if args.json:
        record = {
            "note": args.note,
            "threads": fastrnn.get_num_threads(),
            "machine": machine.describe(),
            "versions": machine.versions(()),
            "commit": machine.commit(),
            "profile": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
