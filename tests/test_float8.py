"""float8 is refused with the reason where it cannot be had."""

import pytest
import torch

from shared.errors import ConfigError
from tests.train_helpers import recipe, some_ids, write_tokens
from train.building import build_model
from train.float8 import check_float8, convert_to_float8
from train.model import ArgonneModel
from train.preflight import prepare
from train.request import RunRequest

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


@without_gpu
def test_a_cpu_is_refused(tmp_path):
    write_tokens(tmp_path / "tokens", [[5] * 400], vocab_size=64)
    request = RunRequest(tmp_path / "tokens", tmp_path / "run", recipe(training__precision="float8"))
    message = r"float8 needs a GPU of compute capability 8.9 or more, this is a CPU: use bf16 on a GPU, fp32 on a CPU"
    with pytest.raises(ConfigError, match=message):
        prepare(request, 1)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6)])
def test_an_old_gpu_is_refused(monkeypatch, capability):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    with pytest.raises(ConfigError, match=rf"this one has {capability[0]}\.{capability[1]}: use bf16"):
        check_float8()


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs torchao, which is not installed: pip install 'argonne\[float8\]'"):
        check_float8()


def test_the_projections_of_blocks_are_rounded_and_keep_their_names():
    """With torchao, on any device, by emulation: what is not looked at here is the speed."""
    pytest.importorskip("torchao")
    model = build_model(recipe(training__precision="bf16"))
    convert_to_float8(model, emulate=True)
    model.to_empty(device="cpu")
    model.initialize(0)
    plain = ArgonneModel(model.config)
    plain.initialize(0)
    assert {name: p.shape for name, p in model.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    converted = {name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"}
    assert converted == {f"blocks.{i}.{name}" for i in (0, 1) for name in PROJECTIONS}
    losses = []
    for side in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            loss = side(some_ids(2, 16), some_ids(2, 16, seed=1))
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


PROJECTIONS = [*(f"attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]
