"""torch.nn's recurrent layers on fastrnn's kernels.

    >>> import torch, fastrnn.torch
    >>> model = torch.nn.Sequential(torch.nn.LSTM(8, 16, num_layers=2))
    >>> model = fastrnn.torch.accelerate(model)      # the layers in it now run on the kernels
    >>> y, (h_n, c_n) = model(torch.ones(5, 3, 8))
    >>> y.shape
    torch.Size([5, 3, 16])

``RNN``, ``GRU``, ``LSTM`` and their cells can stand where torch.nn's do; ``accelerate`` turns those of a whole model
into them and ``restore`` turns them back; ``explain`` says what a call runs on, and why.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    message = "fastrnn.torch needs PyTorch 2.4 or newer: pip install 'fastrnn[torch]'"
    raise ModuleNotFoundError(message, name="torch") from None

from .cells import GRUCell, LSTMCell, RNNCell
from .layers import GRU, LSTM, RNN
from .openmp import share_threads as _share_threads
from .replace import accelerate, explain, restore

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "accelerate", "explain", "restore"]

_share_threads()
