"""The variable as a process has it at its start, and TF32 as a probe sees it; no GPU is needed for either here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from gpubench.toggles import fp32_flags
from gpubench.toggles.environment import tf32_override as toggle
from gpubench.toggles.environment.tf32_override import TF32_OVERRIDE
from gpubench.toggles.numerics import precision
from gpubench.toggles.numerics.precision import PRECISION
from gpubench.toggles.tf32_probe import Tf32Probe

VARIABLE = fp32_flags.OVERRIDE
# Torch's flags as they are at the start, and after the precision that means torch's own settings.
READ = """
import json, torch
from gpubench.toggles import fp32_flags
from gpubench.measure.start_environment import variable_at_start
begins = fp32_flags.state("cuda")["cuda.matmul"]
found = []
for overridden in (False, True):
    fp32_flags.reset(overridden=overridden)
    found.append([fp32_flags.state("cuda")["cuda.matmul"], torch.backends.cuda.matmul.allow_tf32])
print(json.dumps([variable_at_start(fp32_flags.OVERRIDE), begins, found]))
"""


@pytest.mark.parametrize(("value", "began"), [("unset", [None, "fp32"]), ("on", ["1", "tf32"])])
def test_torch_reads_the_variable_when_it_is_imported(value, began):
    own = {name: text for name, text in os.environ.items() if name != VARIABLE}
    environment = {**own, **TF32_OVERRIDE.environment(value)}
    done = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [*began, [["fp32", False], ["tf32", True]]]


def proof(kit, monkeypatch, value, started, permitted="tf32", matmul=True):
    monkeypatch.setattr(toggle, "variable_at_start", lambda name: started)
    monkeypatch.setattr(toggle.fp32_flags, "state", lambda kind: {"cuda.matmul": permitted})
    monkeypatch.setattr(toggle, "tf32_in_use", lambda device: Tf32Probe(matmul, matmul, "probed"))
    return TF32_OVERRIDE.evidence(kit.prepare({}), value)


@pytest.mark.parametrize(
    ("value", "started", "permitted", "matmul", "took_effect", "words"),
    [
        ("unset", None, "fp32", False, True, f"the process started with {VARIABLE} unset"),
        ("unset", None, "tf32", True, True, "unset"),  # that the model's own code permits TF32 is precision's matter
        ("unset", "0", "fp32", False, True, "at '0'"),
        ("unset", "1", "tf32", True, False, "at '1'"),
        ("on", "1", "tf32", True, True, "torch.backends.cuda.matmul.fp32_precision is tf32; probed"),
        ("on", None, "tf32", True, False, "unset"),  # as where the variable is set after the start
        ("on", "1", "fp32", False, False, "later code has taken it back"),
        ("on", "1", "tf32", False, False, "probed"),
        ("on", "1", "tf32", None, None, "probed"),
    ],
)
def test_the_variable_and_the_probe_decide(kit, monkeypatch, value, started, permitted, matmul, took_effect, words):
    found = proof(kit, monkeypatch, value, started, permitted, matmul)
    assert found.took_effect is took_effect, found
    assert words in found.detail


def test_torchs_own_precision_leaves_it_in_force_and_others_do_not_allow_it(kit, monkeypatch):
    scope = kit.scope(kit.AMPERE)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert TF32_OVERRIDE.applies(scope) is None
    assert TF32_OVERRIDE.unmet(scope, "on", {"precision": "torch-default"}) is None
    assert TF32_OVERRIDE.unmet(scope, "on", {"precision": "fp32"}) == "needs precision=torch-default or as-built"
    assert TF32_OVERRIDE.unmet(scope, "unset", {"precision": "fp32"}) is None
    for value, permitted in (("on", "tf32"), ("unset", "fp32")):
        kit.prepare({"tf32_override": value, "precision": "torch-default"})
        assert fp32_flags.state("cuda")["cuda.matmul"] == permitted
    fp32_flags.reset()


@pytest.mark.parametrize(
    ("override", "matmul", "took_effect"), [("on", True, True), ("on", False, False), ("unset", True, False)]
)
def test_precision_expects_the_tf32_that_was_asked_for(kit, monkeypatch, override, matmul, took_effect):
    context = kit.prepare({"tf32_override": override, "precision": "torch-default"})
    context.device = torch.device("cuda")
    context.trace = kit.trace(["aten::mm"], ["ampere_sgemm_128x64_tn"])
    permitted = {"cuda.matmul": "tf32"} if override == "on" else {}
    monkeypatch.setattr(precision.fp32_flags, "permitted", lambda kind: {"cudnn.conv": "tf32", **permitted})
    monkeypatch.setattr(precision, "tf32_in_use", lambda device: Tf32Probe(matmul, True, "probed"))
    assert PRECISION.evidence(context, "torch-default").took_effect is took_effect
    fp32_flags.reset()


def test_where_the_environment_has_it_there_is_nothing_to_choose(kit, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")
    assert TF32_OVERRIDE.applies(kit.scope(kit.AMPERE)) == (
        f"{VARIABLE}=1 is set here already, which precision=as-built measures"
    )
    monkeypatch.setenv(VARIABLE, "0")
    assert TF32_OVERRIDE.applies(kit.scope(kit.AMPERE)) is None
    assert TF32_OVERRIDE.environment("on") == {VARIABLE: "1"}
    assert TF32_OVERRIDE.environment("unset") == {}


def test_elsewhere_it_is_left_out(kit, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert TF32_OVERRIDE.applies(kit.scope()) == "TF32 is a format of NVIDIA's GPUs, this is A CPU"
    assert TF32_OVERRIDE.unmet(kit.scope(kit.TURING), "on") == (
        "needs compute capability 8.0, NVIDIA T4 has 7.5; TF32 needs tensor cores of Ampere or newer"
    )
    assert TF32_OVERRIDE.usage("on", None) == f"export {VARIABLE}=1"
