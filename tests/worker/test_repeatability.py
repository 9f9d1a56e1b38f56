"""State, random numbers and builds are told apart, each with its reason, and what can be compared is."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from gpubench.executor.fork_server import server_environment
from gpubench.executor.outcome import Outcome
from gpubench.executor.process_flags import flags_of as flags_of_process
from gpubench.measure.outputs import load_tensors
from gpubench.report.model import Protocol, Quality
from gpubench.worker import facts
from gpubench.worker.facts import Facts
from gpubench.worker.messages import EvidenceCollected, MakeReference, Prepare, WorkloadChoice
from gpubench.worker.once import make_reference
from gpubench.worker.prepare import load_choice
from gpubench.worker.prepared_model import PreparedModel
from gpubench.worker.reference import RANDOM, Reference
from gpubench.worker.server import preload

ODD = Path(__file__).with_name("odd_models.py")
QUICK = Protocol(
    warmup_min_s=0.0, warmup_max_s=0.0, warmup_min_iterations=2, block_s=0.001, min_sampling_s=0.0,
    max_sampling_s=0.01, min_samples=1,
)  # fmt: skip
PLAIN = {"inference": {}, "training": {"optimizer": "for-loop"}}
CACHE = tempfile.TemporaryDirectory(prefix="gpubench-test-")
ANOTHER = {"precision": "fp32"}  # changes nothing, and is another configuration than the reference's

Make = Callable[..., tuple[Path, Facts]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The reference of a workload in odd_models.py, made once, and what it told."""
    known: dict[tuple[str, str], Path] = {}

    def make(name: str, mode: str = "inference") -> tuple[Path, Facts]:
        if (name, mode) not in known:
            folder = tmp_path_factory.mktemp(name)
            make_reference(
                MakeReference(
                    choice=choice(name, mode), device="cpu", configuration=PLAIN[mode], protocol=QUICK,
                    folder=str(folder),
                )
            )  # fmt: skip
            known[name, mode] = folder
        return known[name, mode], facts.load(known[name, mode])

    return make


def choice(name: str, mode: str, **parameters: str) -> WorkloadChoice:
    return WorkloadChoice(reference=f"{ODD}:{name}", size=None, parameters=parameters, mode=mode)  # type: ignore[arg-type]


def prepared(
    folder: Path | None, name: str, mode: str = "inference", more: dict[str, Any] | None = None, **parameters: str
) -> tuple[PreparedModel, Quality]:
    """The workload in this process, prepared and compared with the reference in `folder`."""
    random.random(), np.random.rand(), torch.rand(1)  # generators are somewhere else in every process
    request = Prepare(
        model=0, choice=choice(name, mode, **parameters), device="cpu", configuration={**PLAIN[mode], **(more or {})},
        protocol=QUICK, tolerance=1e-3, compile_cache=CACHE.name, reference_folder=folder and str(folder),
    )  # fmt: skip
    model = PreparedModel(request, lambda _: None)
    return model, model.prepare().quality


def flags_of(model: PreparedModel) -> dict[str, str]:
    return {flag.kind: flag.detail for flag in model.flags}


# ----- what the reference's runs tell


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("counter", "two steps in a row on one input, from one seed, differ by 1"),
        ("average", "a step changes buffer mean"),
        ("halves", "a step changes input 0 of batch 0 in place; clone it first"),
        ("hardly", "a step changes input 0 of batch 0 in place; clone it first"),
        ("trains", "a step changes parameter one.weight"),
        ("gan", "a step changes parameter makes.weight"),
    ],
)
def test_a_step_that_keeps_state_is_told_and_its_sequence_is_compared(name: str, state: str, made: Make) -> None:
    folder, told = made(name)
    assert (told.state, told.problem) == (state, "")
    model, quality = prepared(folder, name)
    assert quality.passed is True, quality.reason
    assert flags_of(model)["keeps_state"] == state
    model.sample(None)
    later = model.check_last(every_batch=True).quality
    assert later is not None
    assert later.passed is None  # later steps have no counterpart in the reference: never wrong


@pytest.mark.parametrize("mode", PLAIN)
@pytest.mark.parametrize("name", ["dropout", "numpy_noise", "plain", "numpy_weights"])
def test_random_numbers_are_the_same_from_the_same_seed(name: str, mode: str, made: Make) -> None:
    folder, told = made(name, mode)
    assert (told.state, told.problem) == ("", "")
    assert (told.spread > RANDOM) == (name in ("dropout", "numpy_noise"))
    _, quality = prepared(folder, name, mode)
    assert quality.passed is True, quality.reason
    assert (quality.relative_error or 0.0) < 1e-6  # not merely within what chance explains


@pytest.mark.parametrize("name", ["sample", "numpy_inputs", "loaded_inputs"])
def test_integers_numpy_and_loader_workers_are_seeded_too(name: str, made: Make) -> None:
    folder, told = made(name)
    assert (told.state, told.problem, told.spread > RANDOM) == ("", "", name == "sample")
    assert prepared(folder, name)[1].passed is True


@pytest.mark.parametrize(
    ("name", "mode", "problem"),
    [
        ("other_weights", "inference", "the model is built differently each time: parameter two.weight"),
        ("other_weights", "training", "the model is built differently each time: parameter two.weight"),
        ("other_factor", "inference", "the model is built differently each time: its parameters are the same"),
        ("other_inputs", "inference", "the inputs are made differently each time: input 0 of batch 0"),
        ("unseeded", "inference", "the step draws random numbers that no seed covers"),
        ("unseeded", "training", "the step draws random numbers that no seed covers"),
        ("never_begins_anew", "inference", "the step keeps state"),
    ],
)
def test_what_no_seed_covers_is_unchecked_with_its_reason(name: str, mode: str, problem: str, made: Make) -> None:
    folder, told = made(name, mode)
    assert problem in told.problem
    assert told.state == ""  # nothing was seen to be kept: one flag, and one sentence
    for more in ({}, ANOTHER):
        _, quality = prepared(folder, name, mode, more)
        assert (quality.passed, quality.reason) == (None, told.problem)
        assert quality.relative_error is None  # it is no numerical error


def test_a_model_that_is_not_built_anew_is_trained_from_its_first_weights(made: Make) -> None:
    _, told = made("not_anew", "training")
    assert (told.problem, told.spread) == ("", 0.0)


def test_a_model_that_cannot_be_built_twice_has_a_reference(made: Make) -> None:
    assert made("only_one")[1].problem == ""
    assert "could not be built once more to see whether it begins alike" in made("only_one_counter")[1].problem


def test_inputs_that_training_changes_are_told(made: Make) -> None:
    folder, told = made("halves_in_training", "training")
    assert told.state == "a step changes input 0 of batch 0 in place; clone it first"
    model, quality = prepared(folder, "halves_in_training", "training")
    assert quality.passed is True
    assert "keeps_state" in flags_of(model)


# ----- what a configuration is compared with


def test_an_own_optimizer_that_does_nothing_is_wrong_though_its_losses_agree(made: Make) -> None:
    folder, told = made("trains")
    assert told.moves
    _, quality = prepared(folder, "idles", more=ANOTHER)
    assert quality.passed is False
    assert "parameters that should have moved did not" in quality.reason


def test_another_build_in_another_process_is_no_numerical_error(made: Make) -> None:
    # Of the same modules, but seen from a reference that a process with other weights has made.
    folder, _ = made("plain")
    for more in ({}, ANOTHER):
        _, quality = prepared(folder, "numpy_weights", more=more)
        assert quality.passed is None
        assert "built differently each time: parameter one.weight" in quality.reason


def test_a_baseline_that_does_not_repeat_is_unchecked_and_others_are_wrong(made: Make) -> None:
    folder, _ = made("plain")
    _, quality = prepared(folder, "counter")
    assert quality.passed is None
    assert "the same plain fp32 model in another process gives other outputs" in quality.reason
    assert prepared(folder, "counter", more=ANOTHER)[1].passed is False


def of(folder: Path, told: Facts) -> Reference:
    return Reference(folder, ANOTHER, told.built)


def test_other_random_numbers_are_not_called_wrong_and_gross_errors_are(made: Make) -> None:
    folder, told = made("dropout")
    checked = of(folder, told)
    same = [load_tensors(checked.folder / f"step-{number}") for number in range(3)]
    assert checked.check_inference(same, {}, 1e-3).passed is True
    model, _ = prepared(None, "dropout")
    model.protocol = Protocol(seed=77)
    other = [model.seeded(index) for index in (0, 0, 1)]
    quality = checked.check_inference(other, {}, 1e-3)
    assert quality.passed is None
    assert "the same seed gives others here than in the reference" in quality.reason
    for spoil in (lambda x: x * 10, lambda x: x * float("nan"), lambda x: x[:4]):
        spoilt = [{name: spoil(value) for name, value in one.items()} for one in same]
        assert checked.check_inference(spoilt, {}, 1e-3).passed is False


def test_a_buffer_that_turns_stale_shows_in_a_random_model(made: Make) -> None:
    folder, told = made("dropout")
    checked = of(folder, told)
    one, other = (load_tensors(folder / f"step-{number}") for number in (1, 2))
    assert checked.check_later({0: one, 1: one}, 1e-3).passed is False
    assert checked.check_later({0: one, 1: other}, 1e-3).passed is True
    model, _ = prepared(folder, "dropout")
    model.sample(None)  # the last timed step has drawn numbers of its own
    later = model.check_last(every_batch=True).quality
    assert later is not None
    assert (later.passed, later.reason) == (None, "")


def test_a_step_with_state_whose_outputs_no_longer_follow_its_inputs_is_unchecked(made: Make) -> None:
    folder, told = made("counter")
    quality = of(folder, told).check_later({key: {"output": torch.ones(8, 16)} for key in (0, 1)}, 1e-3)
    assert quality.passed is None
    assert "the outputs for batches 0 and 1 are the same" in quality.reason


def test_later_doubts_make_a_row_unchecked_and_the_lack_of_a_counterpart_does_not(made: Make) -> None:
    folder, _ = made("plain")
    model, _ = prepared(None, "plain")
    sampled, good = model.sample(None), Quality(passed=True, reason="", reference="")
    ready = replace(prepared(folder, "plain")[0].prepare(), quality=good)
    for later, passed in ((None, True), ("", True), ("the same output for all", None)):
        quality = None if later is None else Quality(passed=None, reason=later, reference="")
        collected = EvidenceCollected(evidence=[], flags=[], seconds=0.0)
        outcome = Outcome("ok", "", "", ready, sampled, quality, collected=collected)
        assert outcome.quality is not None
        assert outcome.quality.passed is passed
        unchecked = [flag.detail for flag in flags_of_process(outcome) if flag.kind == "quality_unchecked"]
        assert unchecked == ([later] if passed is None else [])


# ----- seeds before anything is built


@pytest.mark.parametrize(("own", "expected"), [(None, "0"), ("random", "0"), ("7", "7")])
def test_all_processes_order_sets_of_strings_alike(
    own: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if own is not None:
        monkeypatch.setenv("PYTHONHASHSEED", own)
    environment = server_environment({}, sys.executable, tmp_path)
    assert environment["PYTHONHASHSEED"] == expected
    ask = [sys.executable, "-c", "print({'alpha', 'beta', 'gamma', 'delta'})"]
    assert len({subprocess.run(ask, env=environment, capture_output=True, check=True).stdout for _ in range(3)}) == 1


def test_what_a_module_draws_when_it_is_imported_is_the_same_in_server_and_worker(tmp_path: Path) -> None:
    text = "import numpy, random, torch\nfrom gpubench import Workload\n" + (
        "drawn = numpy.random.rand(), random.random(), float(torch.rand(1))\n"
        "def make():\n"
        "    name = f'{drawn} {numpy.random.rand()}'\n"
        "    return Workload(name=name, item='row', batch_size=1, build=torch.nn.ReLU, inputs=lambda b, g: ())\n"
    )
    names = []
    for number in range(2):  # in one the server imports it, in the other the worker
        file = tmp_path / f"model_{number}.py"
        file.write_text(text)
        random.random(), np.random.rand(), torch.rand(1)
        reference = f"{file}:make"
        if number == 0:
            assert not isinstance(preload(reference), str)
            random.random(), np.random.rand(), torch.rand(1)
        wanted = WorkloadChoice(reference=reference, size=None, parameters={}, mode="inference")
        names.append(load_choice(wanted)[0].workload.name)
    assert names[0] == names[1]


def test_outputs_that_do_not_follow_the_inputs_are_unchecked(made: Make) -> None:
    folder, told = made("stale")
    assert told.problem.startswith("the outputs of different batches are the same, in plain fp32 too")
    assert prepared(folder, "stale", more=ANOTHER)[1].passed is None
