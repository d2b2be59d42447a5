"""The models of recipes.py written plainly in PyTorch: training, greedy and beam search as its users write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

State = Any  # h, or the pair (h, c)
Memory = tuple[Tensor, Tensor, Tensor] | None  # what attention reads: values, keys, past whose end there is nothing
_IGNORED = -100


class Plain(nn.Module):
    """A ``Seq2Seq`` of this configuration: attention "none" or "general", no input feeding, no dropout.

    Where the encoder ``packs``, it reads packed sequences. Otherwise it reads what stands past their ends, too, and is
    another model, but a faster one: PyTorch has no fast LSTM on the CPU for packed sequences.
    """

    def __init__(
        self, config: dict[str, Any], source_symbols: int, target_symbols: int, end: int, packs: bool = True
    ) -> None:
        super().__init__()
        self.end, self.packs = end, packs
        size, hidden, layers, both = (config[name] for name in ("embedding", "hidden", "layers", "bidirectional"))
        layer = {"lstm": nn.LSTM, "gru": nn.GRU}[config["cell"]]
        memory = 2 * hidden if both else hidden
        self.source_embedding = nn.Embedding(source_symbols, size)
        self.encoder = layer(size, hidden, layers, bidirectional=both)
        if both:
            self.bridge_h = nn.ModuleList(nn.Linear(memory, hidden) for _ in range(layers))
            if config["cell"] == "lstm":
                self.bridge_c = nn.ModuleList(nn.Linear(memory, hidden) for _ in range(layers))
        self.target_embedding = nn.Embedding(target_symbols, size)
        self.decoder = layer(size, hidden, layers)
        self.attends = config["attention"] == "general"
        if self.attends:
            self.attention = nn.Linear(memory, hidden, bias=False)
            self.combine = nn.Linear(memory + hidden, hidden)
        self.output = nn.Linear(hidden, target_symbols)

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Those of ``Seq2Seq.state_dict``."""
        own = {}
        for name, array in weights.items():
            part, _, key = name.partition(".")
            if part == "bridge":
                kind, state = key.split("_")
                for i, each in enumerate(array):
                    own[f"bridge_{state}.{i}.{kind}"] = each[0] if kind == "bias" else each
            else:
                own[name] = array
        self.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in own.items()})

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Memory, State]:
        """Values (B, S, M), keys (B, S, H) and a mask (B, 1, S) for attention, and the decoder's first state."""
        x = self.source_embedding(source)
        y, state = self.encoder(pack_padded_sequence(x, lengths, enforce_sorted=False) if self.packs else x)
        if self.encoder.bidirectional:
            state = self._bridge(state)
        if not self.attends:
            return None, state
        values = (pad_packed_sequence(y)[0] if self.packs else y).transpose(0, 1)
        return (values, self.attention(values), (torch.arange(len(source)) >= lengths[:, None])[:, None]), state

    def _bridge(self, state: State) -> State:
        if isinstance(state, tuple):
            h, c = state
            return torch.tanh(_across(self.bridge_h, h)), _across(self.bridge_c, c)
        return torch.tanh(_across(self.bridge_h, state))

    def decode(self, tokens: Tensor, memory: Memory, state: State) -> tuple[Tensor, State]:
        """Logits after tokens (T, B), whose rows are those of the memory."""
        y, state = self.decoder(self.target_embedding(tokens), state)
        return self.output(y if memory is None else self._attend(y.transpose(0, 1), memory).transpose(0, 1)), state

    def _attend(self, queries: Tensor, memory: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        values, keys, past_end = memory
        scores = torch.bmm(queries, keys.transpose(1, 2)).masked_fill(past_end, -torch.inf)
        contexts = torch.bmm(torch.softmax(scores, dim=2), values)
        return torch.tanh(self.combine(torch.cat([contexts, queries], dim=2)))

    def step(self, tokens: Tensor, memory: Memory, state: State) -> tuple[Tensor, State]:
        """Logits (N, V) after one more token (N,), the rows of a sentence next to each other."""
        y, state = self.decoder(self.target_embedding(tokens)[None], state)
        features = y[0]
        if memory is not None:
            queries = features.view(len(memory[0]), -1, features.shape[1])
            features = self._attend(queries, memory).flatten(0, 1)
        return self.output(features), state


def _across(layers: nn.ModuleList, state: Tensor) -> Tensor:
    """(2 L, B, H) -> (L, B, H)."""
    pairs = state.view(len(layers), 2, *state.shape[1:])
    return torch.stack([layer(torch.cat([*pair], dim=1)) for layer, pair in zip(layers, pairs, strict=True)])


class Batch:
    """A batch of ``Seq2Seq`` as tensors, past the end of each target ``ignore_index``."""

    def __init__(self, batch: Any) -> None:
        self.source, self.inputs = torch.from_numpy(batch.source), torch.from_numpy(batch.inputs)
        self.lengths = torch.from_numpy(np.array(batch.source_lengths))
        inside = np.arange(len(batch.targets))[:, None] < batch.target_lengths
        self.targets = torch.from_numpy(np.where(inside, batch.targets, _IGNORED)).long()


class Trainer:
    """The training loop of PyTorch's tutorials."""

    def __init__(self, model: Plain, lr: float, clip: float) -> None:
        self.model, self._clip = model, clip
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def step(self, batch: Batch) -> float:
        self.optimizer.zero_grad()
        memory, state = self.model.encode(batch.source, batch.lengths)
        logits, _ = self.model.decode(batch.inputs, memory, state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=_IGNORED)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self.optimizer.step()
        return loss.item()


class Margins:
    """How near each sentence came to another output: the smallest difference between candidates that were chosen and
    those next to them, in nats. It costs time."""

    def __init__(self, rows: int) -> None:
        self.smallest = torch.full((rows,), torch.inf)

    def note(self, ranked: Tensor, done: Tensor) -> None:
        """Candidates (B, C) of a step, best first, by their log p or logits."""
        gaps = (ranked[:, :-1] - ranked[:, 1:]).nan_to_num(torch.inf).amin(dim=1)
        self.smallest = torch.where(done, self.smallest, torch.minimum(self.smallest, gaps))


@torch.inference_mode()
def greedy(
    model: Plain, source: Tensor, lengths: Tensor, limits: Tensor, margins: Margins | None = None
) -> list[list[int]]:
    """The most probable token each time, until all sentences have ended."""
    memory, state = model.encode(source, lengths)
    tokens = torch.full((len(lengths),), model.end)
    done, written = torch.zeros(len(lengths), dtype=torch.bool), []
    for length in range(1, int(limits.max()) + 1):
        logits, state = model.step(tokens, memory, state)
        if margins is not None:
            margins.note(logits.topk(2).values, done)
        tokens = logits.argmax(dim=1)
        written.append(tokens)
        done |= (tokens == model.end) | (limits == length)
        if done.all():
            break
    outputs = torch.stack(written, dim=1).tolist()
    return [_until(model.end, row[:limit]) for row, limit in zip(outputs, limits.tolist(), strict=True)]


def _until(end: int, tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


@torch.inference_mode()
def beam_search(
    model: Plain, source: Tensor, lengths: Tensor, limits: Tensor, width: int, margins: Margins | None = None
) -> list[list[int]]:
    """The output of highest mean log p among those that a beam finds, until all sentences are done: when ``width`` of
    their outputs have ended, or none that is open can become better."""
    memory, state = model.encode(source, lengths)
    sentences = len(lengths)
    state = _selected(state, torch.arange(sentences).repeat_interleave(width))
    tokens = torch.full((sentences * width,), model.end)
    log_p = torch.full((sentences, width), -torch.inf)
    log_p[:, 0] = 0.0
    history = torch.empty(sentences, width, 0, dtype=torch.long)
    first = torch.arange(sentences)[:, None] * width  # rows of the sentences
    best: list[list[int]] = [[] for _ in range(sentences)]
    best_score, ended = torch.full((sentences,), -torch.inf), torch.zeros(sentences, dtype=torch.long)
    done = torch.zeros(sentences, dtype=torch.bool)

    def finish(sentence: int, score: float, output: list[int]) -> None:
        ended[sentence] += 1
        if score > best_score[sentence]:
            best_score[sentence], best[sentence] = score, output

    for length in range(1, int(limits.max()) + 1):
        logits, state = model.step(tokens, memory, state)
        scores = log_p[:, :, None] + torch.log_softmax(logits, dim=1).view(sentences, width, -1)
        ranked, places = scores.flatten(1).topk(2 * width + (margins is not None))
        if margins is not None:
            margins.note(ranked, done)
            ranked, places = ranked[:, :-1], places[:, :-1]
        rows, words = places // scores.shape[2], places % scores.shape[2]
        ends = words == model.end
        for sentence, rank in (ends[:, :width] & ~done[:, None]).nonzero().tolist():
            score = ranked[sentence, rank].item()
            if score > -torch.inf:
                finish(sentence, score / length, history[sentence, rows[sentence, rank]].tolist())
        log_p, ranks = ranked.masked_fill(ends, -torch.inf).topk(width)
        rows, words = rows.gather(1, ranks), words.gather(1, ranks)
        history = torch.cat([history.gather(1, rows[:, :, None].expand(-1, -1, length - 1)), words[:, :, None]], dim=2)
        last = limits == length
        for sentence in (last & ~done).nonzero().flatten().tolist():
            finish(sentence, log_p[sentence, 0].item() / length, history[sentence, 0].tolist())
        done |= last | (ended >= width) | (best_score >= log_p[:, 0] / limits)
        if done.all():
            break
        tokens = words.flatten()
        state = _selected(state, (first + rows).flatten())
    return best


def _selected(state: State, rows: Tensor) -> State:
    return tuple(part[:, rows] for part in state) if isinstance(state, tuple) else state[:, rows]
