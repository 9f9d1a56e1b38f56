"""The language model: its size, and that its cache gives what the whole sequence would."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpubench.errors import GpubenchError
from gpubench.workloads.gpt import GPT, SIZES, Attention, generate, prefill, rotate
from gpubench.workloads.loader import load
from gpubench.workloads.workload import Batch, Workload

VARIANTS = [{}, {"positions": "rotary"}, {"kv_heads": "1"}, {"positions": "rotary", "kv_heads": "1"}]


def make(**parameters: str) -> tuple[Workload, nn.Module, Batch]:
    workload = load("gpt", "tiny", parameters).workload
    torch.manual_seed(0)
    model = workload.build().eval()
    return workload, model, workload.inputs(workload.batch_size, torch.Generator().manual_seed(1))


def test_base_is_gpt2() -> None:
    workload = load("gpt", "base").workload
    with torch.device("meta"):
        model = workload.build()
        assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808  # its checkpoint
        tokens = torch.zeros(1, 1024, dtype=torch.long)
        with FlopCounterMode(display=False) as counted:
            model(tokens)
        assert counted.get_total_flops() == 291_648_307_200  # nanoGPT's transformer_sizing.ipynb
        with FlopCounterMode(display=False) as counted:
            prefill(model, tokens, 1024)
        assert counted.get_total_flops() == 291_648_307_200 - 2 * 1023 * 768 * 50_257  # scores of the last token only


@pytest.mark.parametrize("parameters", VARIANTS)
def test_generation_with_the_cache_equals_the_whole_sequence_each_time(parameters: dict[str, str]) -> None:
    workload, model, (prompt,) = make(task="generate", **parameters)
    assert prompt.shape == (2, 24)
    with torch.inference_mode():
        found = workload.infer(model, (prompt,), {})
        text = prompt
        for _ in range(8):
            scores = model(text)[:, -1]
            text = torch.cat((text, scores.argmax(dim=-1, keepdim=True)), dim=1)
    assert torch.equal(found["tokens"], text[:, 24:])
    torch.testing.assert_close(found["scores"], scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parameters", VARIANTS)
def test_the_first_token_shows_in_the_last_scores(parameters: dict[str, str]) -> None:
    workload, model, (prompt,) = make(task="generate", **parameters)
    other = prompt.clone()
    other[:, 0] = (other[:, 0] + 1) % 256
    with torch.inference_mode():
        one, two = (workload.infer(model, (each,), {})["scores"] for each in (prompt, other))
    assert (one - two).norm() > 0.02 * one.norm()  # a fault in the cache cannot hide


def test_prefill_scores_the_token_after_the_prompt() -> None:
    workload, model, (tokens, following) = make()
    assert workload.items_per_sample == 32
    assert torch.equal(tokens[:, 1:], following[:, :-1])
    with torch.inference_mode():
        scores = workload.infer(model, (tokens, following), {})
        torch.testing.assert_close(scores, model(tokens)[:, -1], rtol=1e-4, atol=1e-5)


def test_no_token_sees_those_after_it() -> None:
    _, model, (tokens, _) = make()
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 256
    with torch.inference_mode():
        one, two = model(tokens), model(changed)
    torch.testing.assert_close(one[:, :20], two[:, :20])
    assert all(not torch.equal(one[:, place], two[:, place]) for place in range(20, 32))


def test_a_step_keeps_nothing_of_the_one_before_but_its_memory() -> None:
    workload, model, (prompt,) = make(task="generate")
    attentions = [part for part in model.modules() if isinstance(part, Attention)]
    with torch.inference_mode():
        first = workload.infer(model, (prompt,), {})["scores"]
        addresses = [part.keys.data_ptr() for part in attentions]
        for part in attentions:
            part.keys.fill_(float("nan"))
            part.values.fill_(float("nan"))
        assert torch.equal(workload.infer(model, (prompt,), {})["scores"], first)
        assert [part.keys.data_ptr() for part in attentions] == addresses  # as CUDA graphs need it
        generate(model, prompt[:1], 4)
    assert {tuple(part.keys.shape) for part in attentions} == {(1, 2, 28, 16)}
    assert not list(model.buffers())  # what is emptied before each use is no state of the model


@pytest.mark.parametrize("parameters", VARIANTS)
def test_the_cache_has_the_dtype_that_keys_are_computed_in(parameters: dict[str, str]) -> None:
    workload, model, (prompt,) = make(task="generate", **parameters)
    cache = next(part for part in model.modules() if isinstance(part, Attention))
    with torch.inference_mode():
        exact = workload.infer(model, (prompt,), {})
        assert cache.keys.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            halved = workload.infer(model, (prompt,), {})
        assert cache.keys.dtype == torch.bfloat16
        weights = workload.infer(model.half(), (prompt,), {})
        assert cache.values.dtype == torch.float16
    for each in (halved, weights):
        assert torch.equal(each["tokens"], exact["tokens"])  # a clear leader: rounding decides nothing
        assert (each["scores"].float() - exact["scores"]).norm() < 0.02 * exact["scores"].norm()


def test_the_last_token_leads_clearly_at_every_size() -> None:
    """Else rounding would decide which token comes next, and right outputs in bf16 would be held wrong."""
    for size in ("tiny", "small"):
        torch.manual_seed(0)
        model = GPT(SIZES[size]).eval()
        tokens = torch.randint(SIZES[size].vocabulary, (1, 32), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            scores = model(tokens)[0]  # [T, V]
        best, second = scores.topk(2, dim=-1).values.T
        assert (best - second).median() > 1
        assert 0.5 < scores.std() < 2


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    model = load("gpt", "tiny", {"positions": "rotary"}).workload.build()
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 32, 16)
    turn = model.cosine, model.sine
    scores = rotate(q, *turn) @ rotate(k, *turn).transpose(-1, -2)  # [1, 1, T, T]
    torch.testing.assert_close(scores[0, 0, 1:, 1:], scores[0, 0, :-1, :-1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores[0, 0, 0, 0], scores[0, 0, 0, 1])


@pytest.mark.parametrize("parameters", [VARIANTS[0], VARIANTS[-1]])
def test_prompt_and_token_are_one_graph_each(parameters: dict[str, str]) -> None:
    workload, model, batch = make(task="generate", **parameters)
    assert workload.compile_targets == ("",)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        expected = workload.infer(model, batch, {})["scores"]
        model.compile(backend="eager", fullgraph=True)
        for _ in range(2):
            torch.testing.assert_close(workload.infer(model, batch, {})["scores"], expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"task": "generat"}, "Unknown task of gpt 'generat'. Did you mean 'generate'?"),
        ({"positions": "rotor"}, "Unknown kind of positions of gpt 'rotor'."),
        ({"kv_heads": "3"}, "kv_heads is 3. It must divide the heads: 1, 2."),
        ({"kv_heads": "0"}, "kv_heads is 0."),
        ({"sequence": "33"}, "sequence is 33. It must be from 2 to 32 tokens."),
        ({"task": "generate", "new_tokens": "32"}, "new_tokens is 32. It must be from 1 to 31: a prompt needs one."),
    ],
)
def test_values_that_do_not_fit(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(GpubenchError) as caught:
        load("gpt", "tiny", parameters)
    assert message in str(caught.value)
