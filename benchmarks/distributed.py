"""Trains a character language model with fastrnn.torch's LSTM in several processes, by torch's DistributedDataParallel.

    torchrun --nproc_per_node=2 benchmarks/distributed.py                    # two processes here
    python benchmarks/distributed.py                                         # one process, the same numbers
    torchrun --nproc_per_node=2 benchmarks/distributed.py --data FILE --steps 500 --batch-size 32

On several machines torchrun takes `--nnodes` and `--rdzv-endpoint`; nothing here changes. The batch is that of all
processes together, of which each takes its rows; losses and gradients do not depend on how many there are, but for
rounding. Threads are shared between the processes of a machine.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from pydoc_data import topics

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import fastrnn.torch


class LanguageModel(nn.Module):
    """The next character's scores: embedding, LSTM, linear."""

    def __init__(self, symbols: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, hidden)
        self.lstm = fastrnn.torch.LSTM(hidden, hidden, layers)
        self.output = nn.Linear(hidden, symbols)

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(self.embedding(tokens), state)
        return self.output(y), state


def read(path: Path | None, batch_size: int) -> tuple[Tensor, int]:
    """Characters as numbers, (time, batch_size), each column a stretch of the text; and how many symbols there are."""
    text = path.read_text(encoding="utf-8") if path else "\n".join(map(str, topics.topics.values()))
    symbols = sorted(set(text))
    number = {symbol: i for i, symbol in enumerate(symbols)}
    tokens = torch.tensor([number[symbol] for symbol in text])
    steps = len(tokens) // batch_size
    if steps < 2:
        raise SystemExit(f"distributed.py: the text must have at least {2 * batch_size} characters, got {len(text)}")
    return tokens[: steps * batch_size].reshape(batch_size, steps).t().contiguous(), len(symbols)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FILE", help="text to learn (default: Python's own help topics)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16, help="rows of all processes together (default 16)")
    parser.add_argument("--bptt", type=int, default=35)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--save", type=Path, metavar="FILE", help="losses, and gradients of the last step (torch.save)")
    options = parser.parse_args()

    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if options.batch_size % world:
        raise SystemExit(
            f"distributed.py: --batch-size must be a multiple of {world} processes, got {options.batch_size}"
        )
    if world > 1:
        distributed.init_process_group("gloo")
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        torch.set_num_threads(max(1, fastrnn.get_num_threads() // local))
    torch.manual_seed(0)
    data, symbols = read(options.data, options.batch_size)
    rows = slice(rank * options.batch_size // world, (rank + 1) * options.batch_size // world)
    data = data[:, rows]
    plain = LanguageModel(symbols, options.hidden, options.layers)
    model = DistributedDataParallel(plain) if world > 1 else plain
    adam = torch.optim.Adam(model.parameters(), lr=options.lr)

    losses, state, start = [], None, 0
    for step in range(options.steps):
        if start + 1 + options.bptt > len(data):
            start, state = 0, None
        tokens, targets = data[start : start + options.bptt], data[start + 1 : start + 1 + options.bptt]
        start += options.bptt
        scores, state = model(tokens, state)
        state = (state[0].detach(), state[1].detach())
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
        adam.zero_grad()
        loss.backward()  # gradients are averaged over the processes here
        adam.step()
        mean = loss.detach()
        if world > 1:
            distributed.all_reduce(mean)
            mean /= world
        losses.append(float(mean))
        if rank == 0 and (step % 20 == 0 or step + 1 == options.steps):
            print(f"step {step + 1:5}  loss {losses[-1]:.4f} nats per character", flush=True)
    if rank == 0 and options.save:
        grads = {name: weight.grad for name, weight in plain.named_parameters()}
        torch.save({"losses": losses, "grads": grads}, options.save)
    if world > 1:
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
