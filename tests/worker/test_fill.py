"""Parameters that hide what comes before them are filled while outputs are checked, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gpubench.report.model import Protocol
from gpubench.worker import once, reference
from gpubench.worker.fill import Filled
from gpubench.worker.messages import MakeReference, Prepare, WorkloadChoice
from gpubench.worker.prepared_model import PreparedModel

MODELS = Path(__file__).parents[1] / "faults" / "fault_models.py"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.zero, self.random, self.norm = nn.Conv2d(8, 4, 3), nn.Linear(4, 4), nn.BatchNorm2d(4)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 1e-5))
        self.alpha = nn.Parameter(torch.tensor(0.0))
        self.noise = nn.Parameter(1e-4 * torch.randn(5))
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.table = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
        self.register_buffer("mean", torch.zeros(4))


def test_zero_and_tiny_parameters_are_filled_and_restored_in_place() -> None:
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = {name: value.data_ptr() for name, value in model.named_parameters()}
    filled = Filled(model, seed=0)
    assert filled.names == ["scale", "alpha", "noise", "table", "zero.weight"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is (name not in filled.names), name
    assert float(model.scale.detach().min()) > 0.1  # it could be a divisor
    assert 0 < float(model.zero.weight.detach().abs().mean()) < 0.1
    filled.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == places


def test_every_process_fills_the_same_and_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    one = Model()
    state = torch.get_rng_state()
    Filled(one, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    other, unlike = Model(), Model()
    Filled(other, seed=1)
    Filled(unlike, seed=2)
    assert torch.equal(one.zero.weight, other.zero.weight)
    assert not torch.equal(one.zero.weight, unlike.zero.weight)


def test_what_was_converted_meanwhile_is_restored() -> None:
    model = Model()
    filled = Filled(model, seed=0)
    model.to(torch.bfloat16).to(memory_format=torch.channels_last)
    filled.restore()
    assert not model.zero.weight.any()
    assert model.zero.weight.dtype is torch.bfloat16
    assert model.zero.weight.is_contiguous(memory_format=torch.channels_last)
    assert float(model.scale.flatten()[0]) == pytest.approx(1e-5, rel=1e-2)


def test_a_model_that_torch_compile_wraps_is_filled_and_restored_alike() -> None:
    plain, wrapped = Model(), Model()
    plain_names = Filled(plain, seed=0).names
    filled = Filled(torch.compile(wrapped), seed=0)  # type: ignore[arg-type]
    assert filled.names == plain_names
    assert torch.equal(wrapped.zero.weight, plain.zero.weight)
    filled.restore()
    assert not wrapped.zero.weight.any()


def test_what_cannot_be_written_is_left() -> None:
    model = nn.Module()
    model.wide = nn.Parameter(torch.zeros(1).expand(5))
    model.whole = nn.Parameter(torch.zeros(3, dtype=torch.long), requires_grad=False)
    model.none = nn.Parameter(torch.empty(0))
    model.sparse = nn.Parameter(torch.zeros(3, 3).to_sparse())
    model.eight = nn.Parameter(torch.zeros(3).to(torch.float8_e4m3fn), requires_grad=False)
    with torch.inference_mode():
        model.fixed = nn.Parameter(torch.zeros(3), requires_grad=False)
    assert not Filled(model, seed=0).names


@pytest.mark.parametrize(
    ("name", "mode"), [("zero_last", "inference"), ("tiny_branch", "inference"), ("frozen_last", "training")]
)
def test_a_hidden_error_is_found_and_the_own_weights_are_timed(name: str, mode: str, tmp_path: Path) -> None:
    choice = WorkloadChoice(reference=f"{MODELS}:{name}", size=None, parameters={}, mode=mode)  # type: ignore[arg-type]
    protocol = Protocol(warmup_min_s=0.0, min_sampling_s=0.0, max_sampling_s=0.05, warmup_max_s=0.1)
    folder, fixed = tmp_path / "reference", {"optimizer": "for-loop"} if mode == "training" else {}
    made = MakeReference(choice=choice, device="cpu", configuration=fixed, protocol=protocol, folder=str(folder))
    once.make_reference(made)
    (tmp_path / "cache").mkdir()
    found = {}
    for precision in ("fp32", "bf16-autocast"):
        request = Prepare(
            model=0, choice=choice, device="cpu", configuration={**fixed, "precision": precision}, protocol=protocol,
            tolerance=0.06, compile_cache=str(tmp_path / "cache"), reference_folder=str(folder),
        )  # fmt: skip
        resident = PreparedModel(request, lambda _: None)
        found[precision] = resident.prepare().quality
        last = dict(resident.context.model.named_parameters())["last"]
        assert float(last.detach().abs().max()) < 1e-4  # the model's own
        if mode == "inference":
            resident.sample(1)
            checked = resident.check_last(every_batch=True).quality
            assert checked is not None
            assert checked.passed is not False  # compared with outputs of its own weights
    assert found["fp32"].passed is True
    assert found["fp32"].filled_parameters == ["last"]
    assert found["bf16-autocast"].passed is False


def test_outputs_that_are_no_batch_cannot_be_made_in_parts() -> None:
    parts = [{"x": torch.ones(2, 3), "mean": torch.tensor(1.0)}] * 2
    with pytest.raises(Exception, match="does not fit in memory, and not all of its outputs have the batch"):
        reference.join(parts)
    with pytest.raises(Exception, match="does not fit"):
        reference.join([{"0": torch.ones(2, 3)}, {"0": torch.ones(2, 3), "1": torch.ones(2, 3)}])
