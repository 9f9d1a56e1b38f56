"""Which configurations may live in one process, and that those which may do not change each other's evidence."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import gpubench.toggles
from gpubench.errors import GpubenchError
from gpubench.toggles import all_toggles, get
from gpubench.toggles.sharing import can_share, groups
from gpubench.toggles.toggle import Stage

FP32, TF32, BF16 = ({"precision": value} for value in ("fp32", "tf32", "bf16-autocast"))
SYSTEM = {"allocator": "system", "precision": "fp32"}


@pytest.mark.parametrize(
    "configurations",
    [
        [],
        [{"compile": "default"}],
        [FP32, FP32],
        [FP32, BF16, {"precision": "fp16-weights"}],
        [{"channels_last": "on"}, {"channels_last": "off"}],
        [{"channels_last": "on"}, {}],  # it sets nothing for the process, named or not
        [{"optimizer": "fused"}, {"optimizer": "for-loop"}],
        [{"batch_size": 1}, {"batch_size": 2}],
        [{"tile_size": 0, "tile_overlap": 8}, {"tile_size": 16, "tile_overlap": 8}],
        [{"compile": "default"}, {"compile": "off"}, {}],
        [{"threads": 2}, {"threads": 2}],
        [{"cudnn_benchmark": "on"}, {"cudnn_benchmark": "on"}],
        [{"allocator": "tuned"}, {"allocator": "tuned"}],
    ],
)
def test_what_differs_in_the_model_alone_shares(configurations):
    assert can_share(configurations) is None


PROCESS = "differ in what they set for the whole process."


@pytest.mark.parametrize(
    ("configurations", "reason"),
    [
        ([FP32, TF32], f"precision=fp32 and precision=tf32 {PROCESS}"),
        ([FP32, BF16, TF32], f"precision=fp32 and precision=tf32 {PROCESS}"),
        ([FP32, {}], f"precision=fp32 and no precision {PROCESS}"),
        ([{"threads": 1}, {"threads": 2}], f"threads=1 and threads=2 {PROCESS}"),
        ([{}, {"threads": 2}], f"no threads and threads=2 {PROCESS}"),
        (
            [{"cudnn_benchmark": "off"}, {"cudnn_benchmark": "on"}],
            f"cudnn_benchmark=off and cudnn_benchmark=on {PROCESS}",
        ),
        ([{"allocator": "system"}, {"allocator": "tuned"}], f"allocator=system and allocator=tuned {PROCESS}"),
        (
            [{"compile": "default"}, {"compile": "off"}, {"compile": "default"}],
            "2 of the configurations are compiled, and dynamo's caches, recompile limit and automatic dynamic shapes "
            "are the whole process's.",
        ),
    ],
)
def test_what_is_set_for_the_process_does_not(configurations, reason):
    assert can_share(configurations) == reason
    assert can_share(configurations[::-1]) is not None


def test_different_environment_variables_do_not_share_whatever_a_toggle_declares(monkeypatch):
    foreign = dataclasses.replace(
        get("allocator"),
        name="mine",
        stage=Stage.ENVIRONMENT,
        environment=lambda value: {"MINE": str(value)} if value else {},
        process_state=lambda value: None,
    )
    monkeypatch.setattr(gpubench.toggles, "all_toggles", lambda: {"mine": foreign})
    assert can_share([{"mine": 1}, {"mine": 2}]) == "mine=1 and mine=2 need different environment variables."
    assert can_share([{"mine": 1}, {}]) == "mine=1 and no mine need different environment variables."
    assert can_share([{"mine": 0}, {}]) is None


def test_the_system_allocator_remembers_what_a_process_has_done():
    """Seen: a baseline 15 % faster beside another configuration than alone. Two copies of one have one history."""
    one, other = {"allocator": "system", "precision": "fp32"}, {"allocator": "system", "precision": "bf16-autocast"}
    assert "with the other's history" in can_share([one, other])
    assert can_share([one, dict(one)]) is None
    assert can_share([{**one, "allocator": "tuned"}, {**other, "allocator": "tuned"}]) is None


def test_an_unknown_toggle_is_an_error():
    with pytest.raises(GpubenchError, match="Unknown toggle 'warp'"):
        can_share([{"warp": 9}])


def test_every_toggle_that_sets_a_flag_of_torch_says_so(kit):
    # Whatever `apply` changes of the flags and the threads must show in `process_state`; a new toggle is held to it.
    def flags() -> tuple[object, ...]:
        cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        return cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, torch.get_num_threads()

    for toggle in all_toggles().values():
        seen: dict[tuple[object, ...], object] = {}
        for value in toggle.values or ((1, 2) if toggle.name in ("threads", "batch_size") else (0,)):
            if toggle.name in ("compile", "optimizer"):  # they need a mode of their own, and set no such flag
                continue
            kit.prepare({toggle.name: value})
            seen.setdefault(flags(), toggle.process_state(value))
        assert len({str(state) for state in seen.values()}) == len(seen), toggle.name


@pytest.mark.parametrize(
    ("configurations", "expected"),
    [
        ([], []),
        ([FP32], [[0]]),
        ([FP32, TF32, BF16, TF32], [[0, 2], [1], [3]]),  # a repeat lives as its twin does
        ([FP32, FP32], [[0, 1]]),
        ([FP32, BF16, FP32], [[0, 1, 2]]),
        ([SYSTEM, {**SYSTEM, "precision": "bf16-autocast"}, SYSTEM], [[0], [1], [2]]),
        ([SYSTEM, SYSTEM], [[0, 1]]),
        ([{"threads": 1}, {"threads": 2}, {"threads": 4}], [[0], [1], [2]]),
        ([{"compile": "default"}, {"compile": "off"}, {"compile": "default"}], [[0, 1], [2]]),
        ([{"compile": "off"}, {"compile": "default"}, {"compile": "default"}, {}], [[0, 1, 3], [2]]),
    ],
)
def test_groups_hold_what_can_share_in_order(configurations, expected):
    assert groups(configurations) == expected


SHARED = [
    {"precision": "fp32", "channels_last": "off"},
    {"precision": "fp32", "channels_last": "on"},
    {"precision": "bf16-autocast", "channels_last": "off"},
    {"precision": "bf16-weights", "channels_last": "on"},
    {"precision": "fp32", "channels_last": "on", "compile": "default"},
]


def test_configurations_in_one_process_do_not_change_each_others_evidence(kit):
    assert can_share(SHARED) is None

    def proofs(context):
        return {name: get(name).evidence(context, value) for name, value in context.configuration.items()}

    contexts_, first = [], []
    for configuration in SHARED:
        contexts_.append(kit.run(configuration))
        first.append(proofs(contexts_[-1]))
    for proof in first:
        assert all(each.took_effect is True for each in proof.values()), proof
    # Again in turn, as blocks of them are timed: each one's own next step shows the same.
    for context, before in zip(contexts_, first, strict=True):
        kit.trace_again(context)
        assert proofs(context) == before
