"""The recurrent language model: one model however its recurrence, projections and chunks are computed."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gpubench.errors import GpubenchError
from gpubench.hardware.facts import Device
from gpubench.measure.trace import trace_step
from gpubench.toggles.own import declared, stand_in
from gpubench.toggles.toggle import Scope
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads import scans
from gpubench.workloads.catalog import TOGGLES
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import load
from gpubench.workloads.recurrent_lm import SIZES, Config, Hawk, empty_state
from gpubench.workloads.workload import Batch, Workload


def made(scan: str = "loop", fused_qkvz: str = "off", **parameters: str) -> tuple[Workload, nn.Module, Batch]:
    workload = load("recurrent_lm", "tiny", parameters).workload
    torch.manual_seed(0)
    model = workload.build({"scan": scan, "fused_qkvz": fused_qkvz})
    return workload, model, workload.inputs(workload.batch_size, torch.Generator().manual_seed(1))


def on_meta(config: Config) -> Hawk:
    with torch.device("meta"):
        return Hawk(config, "native", False)


def parameters_of(model: nn.Module) -> tuple[int, int]:
    """All, and those without the embedding."""
    everything = sum(parameter.numel() for parameter in model.parameters())
    return everything, everything - model.get_parameter("embedding.weight").numel()


def results(**parameters: str) -> list[Tensor]:
    """Outputs of the prefill, the loss, and gradients that go through every part."""
    workload, model, batch = made(**parameters)
    with torch.inference_mode():
        outputs = workload.infer(model, batch, {})
    loss = workload.loss(model, batch)
    loss.backward()
    grads = [model.get_parameter(name).grad for name in ("embedding.weight", "blocks.0.recurrence.decay")]
    return [*outputs, loss.detach(), *grads]


reference = functools.cache(results)


@pytest.mark.parametrize("chunk", ["0", "4"])
@pytest.mark.parametrize("fused", ["off", "on"])
@pytest.mark.parametrize("scan", scans.WAYS)
def test_the_same_numbers_in_every_way(scan: str, fused: str, chunk: str) -> None:
    if scan == "native" and (reason := scans.unavailable("native", "cpu")):
        pytest.skip(reason)
    got = results(scan=scan, fused_qkvz=fused, chunk=chunk)
    for one, other in zip(got, reference(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_fused_is_one_matrix_product_for_two() -> None:
    def products(**parameters: str) -> int:
        workload, model, batch = made(**parameters)
        with torch.profiler.profile() as seen, torch.inference_mode():
            workload.infer(model, batch, {})
        return sum(event.name in ("aten::addmm", "aten::bmm") for event in seen.events())

    assert products() - products(fused_qkvz="on") == 2 * SIZES["tiny"].depth


def test_base_is_the_published_size() -> None:
    """The paper names its sizes by parameters without the embedding: 100M, and 7B for DeepMind's preset of Hawk."""
    assert parameters_of(on_meta(SIZES["base"])) == (118_377_216, 93_801_216)
    seven = Config(width=4096, channels=5632, depth=32, blocks=32, vocabulary=256_000, length=2048, batch_size=1)
    assert parameters_of(on_meta(seven))[1] == pytest.approx(7e9, rel=0.02)


def test_the_work_of_base_is_two_flops_a_parameter_and_token() -> None:
    def matrix_products(counted: FlopCounterMode) -> float:  # torch 2.13 counts a depthwise gradient as a full one
        flops = counted.get_flop_counts()["Global"]
        return sum(count for operator, count in flops.items() if "convolution" not in str(operator)) / config.length

    config = SIZES["base"]
    model = on_meta(config)
    with FlopCounterMode(display=False) as counted, torch.device("meta"):
        tokens = torch.zeros(1, config.length, dtype=torch.long)
        logits, _ = model(tokens, *empty_state(config, tokens), False)
        forward = matrix_products(counted)
        logits.sum().backward()
    everything, _ = parameters_of(model)  # the embedding counts: it is the last layer's weight as well
    assert forward == pytest.approx(2 * everything, rel=0.01)
    assert matrix_products(counted) == pytest.approx(6 * everything, rel=0.01)


def test_no_logit_sees_later_tokens() -> None:
    _, model, (tokens, _) = made()
    state = empty_state(SIZES["tiny"], tokens)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % SIZES["tiny"].vocabulary
    with torch.no_grad():
        before, after = model(tokens, *state, False)[0], model(changed, *state, False)[0]
    assert torch.equal(before[:, :9], after[:, :9])
    assert all(bool((before[:, step] != after[:, step]).any()) for step in range(9, 16))  # and all later ones do


def test_chunks_keep_less_for_the_backward_pass() -> None:
    def kept(chunk: str) -> int:
        workload, model, batch = made(chunk=chunk, length="256")
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            workload.loss(model, batch)
        return total

    assert kept("16") < kept("0") / 10


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_model_is_one_graph_but_for_a_python_loop(mode: str) -> None:
    workload, model, batch = made(scan="log")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile(backend="eager", fullgraph=True)
    with torch.inference_mode(mode == "inference"):
        workload.infer(model.eval(), batch, {}) if mode == "inference" else workload.loss(model.train(), batch)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_an_item_is_a_token() -> None:
    workload, model, (tokens, targets) = made(length="20")
    assert (workload.item, workload.items_per_sample, tokens.shape) == ("token", 20, (2, 20))
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    logits, befores, states = workload.infer(model, (tokens, targets), {})
    assert (logits.shape, befores.shape, states.shape) == ((2, 1, 64), (2, 2, 3, 48), (2, 2, 48))
    assert all(0.1 < float(part.detach().std()) < 3 for part in (logits, befores, states))


def test_training_learns() -> None:
    workload, model, batch = made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = workload.loss(model, batch)
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_stay_near_fp32(dtype: torch.dtype) -> None:
    workload, model, batch = made()
    with torch.inference_mode():
        exact = workload.infer(model, batch, {})[0]
        halved = workload.infer(model.to(dtype), batch, {})[0]
    assert halved.dtype == dtype
    assert (halved.float() - exact).norm() / exact.norm() < (0.05 if dtype == torch.bfloat16 else 0.01)


@pytest.mark.parametrize("chunk", ["0", "4"])
def test_training_in_bf16_autocast_and_bf16_weights_is_finite(chunk: str) -> None:
    workload, model, batch = made(chunk=chunk)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = workload.loss(model, batch)
    loss.backward()
    assert loss.dtype == torch.float32
    workload.loss(model.bfloat16(), batch).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"chunk": "5"}, "chunk is 5, which does not divide the length 16. 0 is the whole sequence."),
        ({"chunk": "-4"}, "chunk is -4"),
        ({"length": "1"}, "length is 1; it must be a multiple of 1 and at least 2"),
    ],
)
def test_wrong_values_name_what_is_allowed(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(GpubenchError) as caught:
        load("recurrent_lm", "tiny", parameters)
    assert message in str(caught.value)


@pytest.mark.parametrize(("toggle", "value"), [("scan", "log"), ("scan", "native"), ("fused_qkvz", "on")])
def test_its_own_toggles_prove_themselves_and_idle_ones_are_caught(toggle: str, value: str) -> None:
    if value == "native" and (reason := scans.unavailable("native", "cpu")):
        pytest.skip(reason)
    case = load("recurrent_lm", "tiny")
    (chosen,) = (each for each in case.workload.toggles if each.name == toggle)
    first = next(iter(chosen.values))
    assert TOGGLES["recurrent_lm"] == tuple(each.name for each in case.workload.toggles)
    for asked in (first, value):
        context = build(case, "inference", torch.device("cpu"), {toggle: asked}, 0)
        apply_toggles(context, make_batches(case, 1, 1, 0))
        stepper = Stepper(context)
        context.trace = trace_step(lambda stepper=stepper: stepper.run(0), cuda=False)
        assert {each: chosen.evidence(context, each).took_effect for each in (first, value)} == {
            first: asked == first, value: asked == value,
        }  # fmt: skip


def test_a_scan_that_cannot_run_is_skipped_with_its_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "unavailable", lambda way, kind: "there is no compiler." if way == "native" else None)
    case = load("recurrent_lm", "tiny")
    scope = Scope(
        device=Device(kind="cpu", name="A CPU", cores=2), workload=describe(case, "inference"), torch_version=(2, 13)
    )
    there = stand_in(declared(case.workload.toggles[0], scope))
    assert there.unmet(scope, "native") == "cannot be computed here: there is no compiler"
    assert there.unmet(scope, "log") is None
