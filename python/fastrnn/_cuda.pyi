"""The compiled part for GPUs, where it was built. Arrays are addresses in device memory, for which callers vouch.

Arrays and workspaces are the caller's, and nothing waits for the stream: results are there when it is done. Memory of
CUDA graphs and of the handle of cuBLASLt is the driver's, which may wait when it allocates any.
"""

from collections.abc import Sequence

#: What it was compiled with and for.
build: str

class Problem:
    """One recurrent stack: cell "lstm", "gru", "rnn_tanh" or "rnn_relu"; dtype "float32", "float64", "float16" or
    "bfloat16"."""

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

class Options:
    """Of a forward pass and its backward: lengths (B,) of int64, resets (T, B) of bytes, dropout, TF32 for float32."""

    def __init__(
        self, lengths: int | None, resets: int | None, dropout: float, dropout_seed: int, tf32: bool
    ) -> None: ...

def sizes(problem: Problem, seq_len: int, batch: int, dropout: float, training: bool) -> tuple[int, int, int]:
    """Bytes of the reserve, of forward's workspace and of backward's. Each must be aligned to 256."""

def reserve_parts(problem: Problem) -> list[tuple[int, int]]:
    """Bytes of each part of the reserve for a row of a step, and for a sequence besides; each is rounded up to 256."""

def paths(problem: Problem, seq_len: int, batch: int, tf32: bool) -> tuple[str, str]:
    """What forward and backward would take on the current device, "general" or "one_sm", were all arrays well aligned.

    The environment variable FASTRNN_CUDA_PATH asks for one of them, which serves where it can.
    """

def graph_launches() -> int:
    """How many calls of this process were launched as graphs.

    From the third call with the same arguments on, the general path's launches become one graph. The environment
    variable FASTRNN_CUDA_GRAPHS=off keeps it from that.
    """

def release_graphs() -> None:
    """Drops the graphs that are kept for calls that come again."""

def load_cublaslt(name: str, resident: bool, least_work: int = ...) -> int:
    """Leaves large products to this cuBLASLt, if `resident` only if the process has it already; gives its version, such
    as 120904 for 12.9.4.

    Products are large from `least_work` multiplications on. Sizes of workspaces must be asked for anew afterwards.
    fastrnn.cuda.cublaslt decides which one is loaded.

    Raises:
        RuntimeError: it cannot be loaded, or is of no known version.
    """

def unload_cublaslt() -> None:
    """Leaves products to cuBLASLt no more."""

def cublaslt_products() -> int:
    """How many products cuBLASLt took in this process; those of a graph count when it is made."""

def forward(
    problem: Problem,
    seq_len: int,
    batch: int,
    x: int,
    h_0: int | None,
    c_0: int | None,
    weights: Sequence[int],
    options: Options,
    out: tuple[int, int, int | None],
    reserve: int | None,
    workspace: int,
    stream: int,
) -> None:
    """out: y, h_n, c_n. reserve None: not training."""

def backward(
    problem: Problem,
    seq_len: int,
    batch: int,
    x: int,
    y: int,
    weights: Sequence[int],
    options: Options,
    dy: int | None,
    dh_n: int | None,
    dc_n: int | None,
    out: tuple[int | None, int | None, int | None],
    dweights: Sequence[int | None],
    reserve: int,
    workspace: int,
    stream: int,
    accumulate: bool = True,
) -> None:
    """out: dx, dh_0, dc_0. reserve, x, y, weights and options are those of forward."""
