"""fastrnn.torch's layers as modules: state, constructors, and the errors that torch.nn's raise."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402

import fastrnn.torch as fast  # noqa: E402
from fastrnn.torch.paths import obstacle  # noqa: E402

import torch_pairs  # noqa: E402 isort: skip
from torch_pairs import assert_close, pair, results, draw_state  # noqa: E402 isort: skip

CELLS = ("LSTM", "GRU", "RNN")
pytestmark = torch_pairs.IGNORED


@pytest.mark.parametrize("cell", CELLS)
def test_modules_are_torchs(cell):
    theirs, mine = pair(cell, 3, 8, 2, bidirectional=True)
    assert repr(mine) == repr(theirs)
    assert isinstance(mine, nn.RNNBase)
    assert not isinstance(mine, (nn.LSTM, nn.GRU, nn.RNN))
    for a, b in zip(mine.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(5, 4, 3)
    file = io.BytesIO()
    torch.save(mine, file)
    file.seek(0)
    copies = [copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)), torch.load(file, weights_only=False)]
    for other in copies:
        assert type(other) is type(mine)
        assert all(torch.equal(a, b) for a, b in zip(results(other, x), results(mine, x), strict=True))
    mine.double()
    assert mine(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("cell", CELLS)
def test_subclasses_draw_their_weights_themselves(cell):
    made = []
    for module in (nn, fast):

        class Mine(getattr(module, cell)):
            def reset_parameters(self):
                for weight in self.parameters():
                    nn.init.normal_(weight)

        torch.manual_seed(0)
        made.append([*Mine(3, 4).parameters(), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((0, 3), {}),
        ((3, 4), {"proj_size": 4}),
        ((3, 4), {"num_layers": 0}),
        ((3, 4), {"dropout": 2.0}),
        ((3, 4), {"bias": 1}),
    ],
)
@pytest.mark.parametrize("cell", CELLS)
def test_constructors_refuse_what_torchs_refuse(cell, args, options):
    with pytest.raises(Exception) as expected:  # noqa: PT011 - the one below is compared with it
        getattr(nn, cell)(*args, **options)
    with pytest.raises(type(expected.value)) as got:
        getattr(fast, cell)(*args, **options)
    assert str(got.value) == str(expected.value)


WRONG = {
    "features": lambda hx: (torch.randn(5, 4, 2), hx),
    "dimensions": lambda hx: (torch.randn(5), hx),
    "dtype": lambda hx: (torch.randn(5, 4, 3).double(), hx),
    "state": lambda hx: (torch.randn(5, 2, 3), hx),
    "state in a tuple": lambda hx: (torch.randn(5, 4, 3), (hx,)),
    "state's dimensions": lambda hx: (torch.randn(5, 3), hx),
    "no steps": lambda hx: (torch.randn(0, 4, 3), hx),
    "packed": lambda hx: (pack_padded_sequence(torch.randn(5, 4, 2), torch.tensor([5, 4, 3, 2])), None),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("cell", CELLS)
def test_calls_are_refused_as_torch_refuses_them(cell, wrong):
    theirs, mine = pair(cell, 3, 8)
    inputs = WRONG[wrong](draw_state(cell, mine, (4,)))
    with pytest.raises(Exception) as expected:  # noqa: PT011 - the one below is compared with it
        theirs(*inputs)
    with pytest.raises(type(expected.value)) as got:
        mine(*inputs)
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize(
    "sizes", [([4, 4, 4], 2), ([1, 3], 4), ([3, 1, 2], 6), ([2, 0], 2)], ids=["too many", "rising", "uneven", "none"]
)
@pytest.mark.parametrize("cell", CELLS)
def test_packed_sequences_that_cannot_be_are_left_to_torch(cell, sizes):
    layer = getattr(fast, cell)(3, 8)
    packed = PackedSequence(torch.randn(sizes[1], 3), torch.tensor(sizes[0]))
    assert "shapes" in obstacle(layer, layer._weights(), packed).reason
    orders = PackedSequence(torch.randn(4, 3), torch.tensor([4]), torch.tensor([0]), torch.tensor([0]))
    assert "shapes" in obstacle(layer, layer._weights(), orders).reason


def test_operators_called_by_hand():
    layer = fast.GRU(3, 8)
    x = torch.randn(4, 5, 3).transpose(0, 1)
    weights = [w.detach() for w in layer.parameters()]
    got = torch.ops.fastrnn.forward("gru", 1, False, True, x, None, None, None, None, False, 0.0, None, weights, False)
    assert torch.equal(got[0], layer(x)[0])
    with pytest.raises(ValueError, match="x of 2 layers and directions must have 3 dimensions, got 2"):
        torch.ops.fastrnn.forward(
            "gru", 2, False, True, x[0], None, None, None, None, False, 0.0, None, weights * 2, False
        )
    with pytest.raises(ValueError, match="one row for each step, got 4 rows"):
        torch.ops.fastrnn.forward(
            "gru", 1, False, True, x[0], None, None, torch.tensor([3, 3]), None, True, 0.0, None, weights, False
        )


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_many_at_once(cell):
    layer = getattr(fast, cell)(2, 3, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    one_by_one, at_once = (
        torch.autograd.functional.jacobian(lambda x: layer(x)[0], x, vectorize=vectorize) for vectorize in (False, True)
    )
    assert_close([at_once], [one_by_one], 6)


def test_padding_reaches_no_gradient():
    layer = fast.GRU(3, 8, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    x[2:, 0] = torch.nan
    x.requires_grad_()
    y, _ = layer(x, lengths=torch.tensor([2, 9, 5, 9])[::2])
    inputs = (x, *layer.parameters())
    plain = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    assert all(g.isfinite().all() for g in plain)
    assert_close(torch.autograd.grad(y.sum(), inputs, create_graph=True), plain, 20)


def test_another_default_device():
    layer = fast.GRU(3, 8, 2, dropout=0.5)
    packed = pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 1]))
    with torch.device("meta"):
        assert layer(packed)[1].device.type == "cpu"


def test_weights_of_another_shape_are_refused():
    theirs, mine = pair("GRU", 3, 8)
    for layer in (theirs, mine):
        layer.weight_hh_l0 = nn.Parameter(torch.zeros(24, 9))
    x = torch.randn(5, 4, 3)
    assert "shapes" in obstacle(mine, mine._weights(), x).reason
    for layer in (theirs, mine):
        with pytest.raises(RuntimeError):
            layer(x)


def test_views_of_many_kinds():
    """Not contiguous, broadcast, lazily negated: read as what they stand for."""
    theirs, mine = pair("GRU", 3, 8)
    numbers = torch.randn(4, 3, 5, dtype=torch.complex64)
    for x in (numbers.real.permute(2, 0, 1), numbers.real[:1, :, :1].permute(2, 0, 1).expand(5, 4, 3)):
        assert_close(results(mine, x), results(theirs, x), 20)
    x = numbers.conj().imag.permute(2, 0, 1)
    assert x.is_neg()
    assert_close([mine(x)[0]], [theirs(x)[0]])
    y = mine(numbers.real.permute(2, 0, 1))[0]
    grads = [
        torch.autograd.grad(y, mine.weight_hh_l0, dy, retain_graph=True)[0] for dy in (-torch.ones_like(y), negated(y))
    ]
    assert_close(grads[:1], grads[1:], 20)


def negated(like):
    """-1 in the shape of another tensor, by a bit that says so."""
    ones = torch.complex(torch.zeros_like(like), torch.ones_like(like)).detach()
    assert ones.conj().imag.is_neg()
    return ones.conj().imag


@pytest.mark.parametrize(
    ("extras", "error", "message"),
    [
        ({"lengths": [1, 2, 3, 4]}, TypeError, "lengths must be an int64 tensor, got list"),
        ({"lengths": torch.ones(4)}, TypeError, "lengths must be an int64 tensor, got torch.float32"),
        ({"lengths": torch.ones(3, dtype=torch.int64)}, ValueError, r"lengths must have shape \(B=4,\), got \(3,\)"),
        ({"lengths": torch.tensor([1, 6, 2, 2])}, ValueError, r"between 0 and T=5, got \[1, 6, 2, 2\]"),
        ({"resets": torch.ones(5, 4)}, TypeError, "resets must be a bool tensor, got torch.float32"),
        ({"resets": torch.ones(4, 5, dtype=torch.bool)}, ValueError, r"shape \(T=5, B=4\), got \(4, 5\)"),
    ],
)
def test_wrong_lengths_and_resets(extras, error, message):
    with pytest.raises(error, match=message):
        fast.GRU(3, 8)(torch.randn(5, 4, 3), **extras)


def test_lengths_and_resets_where_they_cannot_be():
    layer = fast.GRU(3, 8, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 1]))
    with pytest.raises(ValueError, match="lengths cannot be used with a PackedSequence"):
        layer(packed, lengths=torch.tensor([5, 1]))
    with pytest.raises(ValueError, match="lengths need a batch"):
        layer(torch.randn(5, 3), lengths=torch.tensor([5]))
    with pytest.raises(ValueError, match="resets cannot be used with bidirectional=True"):
        layer(torch.randn(5, 2, 3), resets=torch.zeros(5, 2, dtype=torch.bool))
