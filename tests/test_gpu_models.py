"""Language models with device="cuda", on a GPU or emulated, against those on the CPU."""

import copy

import numpy as np
import pytest

import fake_cupy
import gpu_arrays
from fastrnn.models import LanguageModel, array_api

pytestmark = gpu_arrays.needs_kernels
TEXT = "hello world, how are you? "
QUICK = {"batch_size": 2, "bptt": 6, "lr": 0.02, "progress": False}  # emulated steps take their time
MODELS = pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm", "layers": 2, "dropout": 0.2},
        {"cell": "gru", "tie": True, "embedding": 6},
        {"cell": "rnn", "dropout": 0.2},
    ],
    ids=str,
)


@pytest.fixture(scope="module", autouse=True)
def _installed():
    with gpu_arrays.installed(), gpu_arrays.waiting(), pytest.MonkeyPatch.context() as patch:
        if gpu_arrays.EMULATED:
            patch.setattr(array_api, "namespace", lambda array: fake_cupy.STANDARD)
        else:
            pytest.importorskip("array_api_compat")
        yield


def tiny(**options):
    return LanguageModel(**{"embedding": 4, "hidden": 6, "seed": 3, **options})


def fitted(device, **options):
    model = tiny(dtype="float64", device=device, **options)
    return model, model.fit(TEXT, TEXT[:9], **QUICK, epochs=2)


@MODELS
def test_training_is_that_of_the_cpu(options):
    (gpu, history), (cpu, expected) = fitted("cuda", **options), fitted("cpu", **options)
    for got, want in zip(history, expected, strict=True):
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-9)
        assert got["valid_loss"] == pytest.approx(want["valid_loss"], rel=1e-9)
    for name, weight in cpu.state_dict().items():
        np.testing.assert_allclose(gpu.state_dict()[name], weight, rtol=1e-7, atol=1e-9, err_msg=name)
    assert gpu.nbytes == cpu.nbytes
    np.testing.assert_allclose(gpu.score(TEXT), cpu.score(TEXT), rtol=1e-7, atol=1e-9)
    assert gpu.evaluate(TEXT, batch_size=4)["loss"] == pytest.approx(cpu.evaluate(TEXT, batch_size=4)["loss"], rel=1e-7)
    assert gpu.generate("hel", 4, seed=3) == cpu.generate("hel", 4, seed=3)
    assert gpu.generate("hel", 3, beam_size=2) == cpu.generate("hel", 3, beam_size=2)


@MODELS
@pytest.mark.parametrize(("saved_on", "loaded_on"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda:1")])
def test_models_move_by_their_files(options, saved_on, loaded_on, tmp_path):
    if loaded_on == "cuda:1" and not gpu_arrays.EMULATED:
        pytest.skip("one GPU")
    model, _ = fitted(saved_on, **options)
    model.save(tmp_path)
    loaded = LanguageModel.load(tmp_path, device=loaded_on)
    for name, weight in model.state_dict().items():
        assert np.array_equal(loaded.state_dict()[name], weight), name
    # A run goes on where it was loaded.
    for each in (model, loaded):
        each.fit(TEXT, TEXT[:9], **QUICK, epochs=3, resume=True)
    assert loaded.history[-1]["loss"] == pytest.approx(model.history[-1]["loss"], rel=1e-9)


def test_a_run_on_a_gpu_resumes_exactly(tmp_path):
    options = {"layers": 2, "dropout": 0.2}
    whole = tiny(device="cuda", **options)
    whole.fit(TEXT, **QUICK, epochs=3)
    part = tiny(device="cuda", **options)
    part.fit(TEXT, **QUICK, epochs=2)
    part.save(tmp_path)
    again = LanguageModel.load(tmp_path, device="cuda")
    again.fit(TEXT, **QUICK, epochs=3, resume=True)
    for name, weight in whole.state_dict().items():
        assert np.array_equal(again.state_dict()[name], weight), name


def test_a_copy_is_another_model_on_the_same_gpu():
    model, _ = fitted("cuda")
    other = copy.deepcopy(model)
    other.fit(TEXT, **QUICK, epochs=1)
    assert other.recurrent.device == model.recurrent.device
    assert not np.array_equal(other.state_dict()["output.bias"], model.state_dict()["output.bias"])


@gpu_arrays.emulated_only
def test_a_model_is_on_the_gpu_that_was_asked_for():
    model = tiny(device="cuda:1")
    model.build(TEXT)
    for group in (*model.parameters, *model.grads):
        for array in group.values():
            assert array.device.id == 1


@gpu_arrays.emulated_only
def test_no_such_gpu():
    with pytest.raises(RuntimeError, match="LanguageModel: device 'cuda:7' is not"):
        tiny(device="cuda:7")
