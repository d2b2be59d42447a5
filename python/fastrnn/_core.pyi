"""The compiled part. Callers have checked every argument; sizes, dtype and contiguity are checked again here."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

_Array = NDArray[Any]
# An array, or the address of C-contiguous numbers, for whose dtype and shape the caller vouches.
_Numbers = _Array | int

class Problem:
    """One recurrent stack: cell "lstm", "gru", "rnn_tanh" or "rnn_relu"; dtype "float32" or "float64"."""

    def __init__(
        self,
        cell: str,
        dtype: str,
        input_size: int,
        hidden_size: int,
        proj_size: int,
        num_layers: int,
        bidirectional: bool,
        bias: bool,
    ) -> None: ...
    @property
    def cell(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def input_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def proj_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def bidirectional(self) -> bool: ...
    @property
    def bias(self) -> bool: ...
    @property
    def directions(self) -> int: ...
    @property
    def state_size(self) -> int: ...

class Memory:
    """A lease on the cache of reserves and workspaces; what was cached for it is freed when it dies."""

class Reserve:
    """What backward needs of a forward pass besides x, y and the weights. Backward only reads it.

    Its memory is a buffer, so that an array library can keep it alive; what stands there is the kernels' own.
    """

    @property
    def nbytes(self) -> int: ...

def is_input(problem: Problem, x: Any) -> bool:
    """Whether x is a plain C-contiguous array (T, B, I) of the problem's dtype."""

def gather(problem: Problem, mapping: dict[str, Any], names: tuple[str, ...]) -> list[_Array] | None:
    """The arrays of a stack in order, or None where anything about the dict is not as it should be."""

def gather_gradients(
    problem: Problem,
    gradients: dict[str, Any],
    names: tuple[str, ...],
    weights: list[_Array],
    parameters: dict[str, Any],
) -> list[_Array] | None:
    """The same for gradients: writeable, and clearly apart in memory from each other, the weights and parameters."""

def forward(
    problem: Problem,
    x: _Array | tuple[int, int, int, bool],  # (T, B, I); or address, T, B and whether rows are packed
    h_0: _Numbers | None,  # (L*D, B, P)
    c_0: _Numbers | None,  # (L*D, B, H)
    weights: list[_Array] | list[int],  # of each layer and direction: w_ih, w_hh, [b_ih, b_hh], [w_hr]
    lengths: _Array | None,  # int64 (B,); never rising if packed
    resets: _Array | None,  # bool (T, B)
    dropout: float,
    dropout_seed: int,
    training: bool,
    memory: Memory | None,
    num_threads: int = 0,  # 0: get_num_threads()
    out: tuple[_Numbers | None, ...] | None = None,
    index: _Array | None = None,  # int32 (T, B): the row that each step of each sequence reads of x, then (inputs, I)
) -> tuple[Any, Any, Any, Reserve | None]:
    """One pass over the whole stack: y (T, B, D*P), h_n (L*D, B, P), c_n (L*D, B, H) for LSTM, a Reserve if training.

    The three arrays are those of ``out`` or, without it, new ones, read-only if training. The GIL is released.
    Packed, x and y hold only the rows that exist, (sum of lengths, .), step by step.
    """

def backward(
    problem: Problem,
    reserve: Reserve,
    x: _Numbers,
    y: _Numbers,
    weights: list[_Array] | list[int],
    dy: _Numbers | None,  # (T, B, D*P)
    dh_n: _Numbers | None,
    dc_n: _Numbers | None,
    need_dx: bool,
    dweights: list[Any],  # None where not wanted
    memory: Memory | None,
    num_threads: int = 0,
    out: tuple[_Numbers | None, ...] | None = None,  # None: not wanted
    accumulate: bool = True,  # dweights are added to; False: written
) -> tuple[Any, Any, Any]:
    """The gradients of one forward pass: dx (T, B, I) if wanted, dh_0, dc_0 for LSTM. The GIL is released."""

def cross_entropy(
    x: _Array,  # (N, I)
    weight: _Array,  # (V, I)
    bias: _Array | None,  # (V,)
    targets: _Array,  # int32 (N,), < V; negative: the row counts for nothing
    scale: float,
    dx: _Array | None,  # written; None: not wanted
    dweight: _Array | None,
    dbias: _Array | None,
    memory: Memory | None,
    num_threads: int = 0,
    accumulate: bool = True,  # dweight and dbias are added to; False: written
    logit_bytes: int = 1 << 27,  # about as much memory holds logits
) -> _Array:
    """-log softmax(x weightᵀ + bias)[target] of each row, and the gradients of ``scale`` times their sum."""

def product(
    a: _Array,  # (M, K); each of these may be a part of a matrix, its rows further apart
    b: _Array,  # (K, N); a and b also the transpose of one
    out: _Array,  # (M, N), which shares no memory with them
    add: bool = False,  # to what is there
    num_threads: int = 0,
) -> None:
    """out = a b, or out += a b, on the threads of the kernels."""

class TopSymbols:
    """The most probable symbols of rows, call after call with the same weights: whether later changes of them count is
    undefined."""

    def __init__(
        self,
        weight: _Array,  # (V, I)
        bias: _Array | None,  # (V,)
        rows: int,  # of most calls: for more than a few the weights are packed
        memory: Memory | None,
        num_threads: int = 0,
    ) -> None: ...
    def find(
        self,
        x: _Array,  # (N, I)
        count: int,  # 1 to V
        never: _Array,  # int32 (M,): symbols that are not chosen
    ) -> tuple[_Array, _Array]:
        """int32 (N, count): the symbols of largest x weightᵀ + bias, best first, of equal sums the lower; and, float64,
        their log softmax over all symbols. Where fewer can be chosen, the rest is 0 and -inf."""

def multiply(dtype: str, arrays: list[_Array], factor: float) -> None:
    """In place, as all of these: whole C-contiguous arrays of the dtype."""

def sgd(
    dtype: str,
    params: list[_Array],
    grads: list[_Array],
    buffers: list[_Array],  # of the momentum; empty: none
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    scale: float,  # of the gradients
) -> None: ...
def adam(
    dtype: str,
    params: list[_Array],
    grads: list[_Array],
    first: list[_Array],
    second: list[_Array],
    lr: float,  # over 1 - beta_1^t
    beta_1: float,
    beta_2: float,
    eps: float,
    root: float,  # sqrt(1 - beta_2^t)
    weight_decay: float,  # added to the gradient
    shrink: float,  # what params are multiplied by first
    scale: float,
) -> None: ...
def sum_of_squares(dtype: str, grads: list[_Array], divisor: float) -> float:
    """Of (g / divisor), in float64; the order of the sum depends on the shapes alone."""

def take_rows(matrix: _Array, ids: _Array, out: _Array) -> None:
    """out (N, E) = matrix[ids], ids int32 of any shape with N numbers."""

def add_rows(matrix: _Array, ids: _Array, rows: _Array) -> None:
    """matrix[ids[i]] += rows[i], one after the other."""

class Stream:
    """One step at a time on weights packed once."""

    def __init__(self, problem: Problem, weights: Sequence[_Array], batch_size: int, num_threads: int) -> None: ...
    def step(self, x_t: _Array, out: _Array) -> None: ...  # (B, I) -> (B, P)
    def get_state(self, h: _Array, c: _Array | None) -> None: ...
    def set_state(self, h: _Array, c: _Array | None) -> None: ...
    def reset(self, rows: _Array | None) -> None: ...  # int64
    def select(self, rows: _Array) -> None: ...  # int64
    @property
    def batch_size(self) -> int: ...

def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def use_openmp(functions: tuple[int, int, int, int, int] | None) -> None:
    """Teams take the threads of an OpenMP runtime: the addresses of GOMP_parallel, omp_get_thread_num,
    omp_get_num_threads, omp_get_max_threads and omp_in_parallel. None: threads of their own."""

def release_memory() -> None:
    """Frees cached workspaces; memory in use is not touched."""

def cached_bytes() -> int: ...
def peak_flops(dtype: str, threads: int, seconds: float) -> float:
    """Operations per second of all threads together; a fused multiply-add is two."""

def read_bandwidth(bytes_per_thread: int, threads: int, seconds: float) -> float:
    """Bytes per second of all threads together, each reading its own bytes again and again."""

def round_trip(seconds: float) -> float:
    """Seconds, the median: two threads answer each other once."""

def config() -> dict[str, Any]: ...
def set_isa(name: str) -> None:
    """Switches the kernels in use to "avx512", "avx2" or "portable": for tests."""
