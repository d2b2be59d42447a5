"""Where the time of a training step of recipes.py's models goes: encoder, decoder, attention, loss and the rest.

    python benchmarks/seq2seq/step_profile.py --data DIR                             # the shapes of torch_baseline.py
    python benchmarks/seq2seq/step_profile.py --data DIR --shapes g2p-512 --json FILE

--data as for recipes.py. Unlike in torch_baseline.py, the models have their dropout; between the layers it is a part of
these. Steps run under Python's profiler, which adds next to nothing: a step is few calls of the kernels.
"""

from __future__ import annotations

import argparse
import cProfile
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from recipes import RECIPES
from torch_baseline import SHAPES, WARMUP, make_trainer

import fastrnn
from fastrnn.bench import machine
from fastrnn.clipping import clip_grad_norm
from fastrnn.layers import LSTM
from fastrnn.models.attention import Attention
from fastrnn.models.encoder_decoder import Bridge, Decoder, Encoder
from fastrnn.models.nn import Dropout, Embedding, Output
from fastrnn.models.reading import Combine
from fastrnn.models.seq2seq import Seq2Seq
from fastrnn.models.training import Trainer
from fastrnn.optim import Optimizer
from fastrnn.output import print_table

Function = Callable[..., Any]

# Functions, or (caller, function) for the calls of one caller only. All recurrent layers have theirs from one class.
PARTS: dict[str, tuple[Function | tuple[Function, Function], ...]] = {
    "batch": (Seq2Seq._batch,),
    "embedding": (Embedding.forward, Embedding.backward),
    "encoder, forward": ((Encoder.forward, LSTM.forward), Bridge.forward),
    "encoder, backward": ((Encoder.backward, LSTM.backward), Bridge.backward),
    "decoder, forward": ((Decoder._run, LSTM.forward),),
    "decoder, backward": ((Decoder.backward, LSTM.backward),),
    "attention": (Attention.prepare, Attention.forward, Attention.backward, Attention.prepare_backward),
    "combine": (Combine.forward, Combine.backward),
    "loss": (Output.loss,),
    "dropout": (Dropout.forward, Dropout.backward),
    "zero gradients": (Seq2Seq._zero_grads_before,),
    "gradient norm": (clip_grad_norm,),
    "optimizer": (Optimizer.step,),
}


def spent(entries: list[Any], function: Function | tuple[Function, Function]) -> float:
    """Seconds in a function, or in its calls by one caller, what it calls included."""
    if isinstance(function, tuple):
        caller, function = function
        entries = [each for entry in entries if entry.code is caller.__code__ for each in entry.calls or ()]
    return sum(entry.totaltime for entry in entries if entry.code is function.__code__)


def shares(name: str, data: Path, seconds: float) -> dict[str, Any]:
    trainer = make_trainer(name, data, RECIPES[name].model.get("dropout", 0.0))
    for _ in range(WARMUP):
        trainer.step(0.0)
    profile, end = cProfile.Profile(), perf_counter() + seconds
    while perf_counter() < end or trainer.steps < WARMUP + 5:
        profile.runcall(trainer.step, 0.0)
    entries = profile.getstats()
    whole = spent(entries, Trainer.step)
    parts = {part: sum(spent(entries, each) for each in functions) / whole for part, functions in PARTS.items()}
    parts["rest"] = 1.0 - sum(parts.values())
    steps = trainer.steps - WARMUP
    return {
        "model": trainer.model.config, "batch": trainer.data.options["batch_size"], "steps": steps,
        "ms": round(whole / steps * 1e3, 2), "shares": {part: round(share, 4) for part, share in parts.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=RECIPES, default=SHAPES, metavar="SHAPE", help="recipes' names")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each shape")
    parser.add_argument("--note", help="goes into the JSON, such as what else the machine was doing")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = {name: shares(name, args.data, args.seconds) for name in args.shapes}
    header = ["part", *rows]
    lines = [[part, *(f"{row['shares'][part]:.1%}" for row in rows.values())] for part in (*PARTS, "rest")]
    print_table("", (header, lines))
    if args.json:
        record = {
            "note": args.note,
            "threads": fastrnn.get_num_threads(),
            "machine": machine.describe(),
            "versions": machine.versions(()),
            "commit": machine.commit(),
            "seq2seq_profile": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
