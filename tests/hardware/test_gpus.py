from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.errors import GpubenchError
from gpubench.hardware.gpus import all_gpus, gpu_facts
from gpubench.profiles_folder import profiles_folder

GIB = 2**30


def test_every_shipped_profile_is_whole_and_plausible() -> None:
    gpus = all_gpus()
    assert {"NVIDIA GeForce RTX 5070 Ti", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"} <= {g.name for g in gpus}
    assert len({gpu.name for gpu in gpus}) == len(gpus)
    for gpu in gpus:
        peaks = gpu.dense_tflops
        assert gpu.source and len(gpu.compute_capability) == 2
        assert 100 < gpu.memory_bandwidth_gb_per_s < 20_000
        assert peaks.float16 == peaks.bfloat16  # so on every card with tensor cores that has both
        # Tensor cores double from tf32 to 16 bit; a figure with sparsity in it would not fit.
        if peaks.tf32 and peaks.bfloat16:
            assert peaks.bfloat16 == pytest.approx(2 * peaks.tf32, rel=0.01)


def test_facts_of_a_card() -> None:
    facts = gpu_facts("nvidia geforce rtx 5070 ti", 16_600_000_000)
    assert facts is not None
    assert (facts.compute_capability, facts.memory_gb, facts.memory_bandwidth_gb_per_s) == ([12, 0], 16, 896)
    assert gpu_facts("NVIDIA H200", 150_754_820_096) is not None  # as the driver reports it
    assert gpu_facts("NVIDIA A100-SXM4-80GB", 85_100_000_000) is not None


def test_what_is_not_that_card() -> None:
    assert gpu_facts("NVIDIA GeForce RTX 5070 Ti Laptop GPU") is None
    assert gpu_facts("NVIDIA GeForce RTX 4090", 16 * GIB) is None
    assert gpu_facts("") is None


def test_a_name_that_two_cards_share_needs_the_memory() -> None:
    name = "NVIDIA GeForce RTX 3060"
    assert gpu_facts(name) is None
    assert gpu_facts(name, 8 * GIB) is None
    known = gpu_facts(name, 12_600_000_000)
    assert known is not None and known.dense_tflops.bfloat16 is None


def test_a_broken_profile_names_file_and_place(tmp_path: Path) -> None:
    (tmp_path / "gpus").mkdir()
    (tmp_path / "gpus/bad.toml").write_text('name = "x"\ncompute_capability = [8, "six"]\n')
    with pytest.raises(GpubenchError, match=r"bad\.toml is no valid GPU profile.*compute_capability\[1\]"):
        gpu_facts("x", folder=tmp_path)


def test_the_folder_inside_a_package_comes_first(tmp_path: Path) -> None:
    package = tmp_path / "gpubench"
    (tmp_path / "profiles/gpus").mkdir(parents=True)
    package.mkdir()
    assert profiles_folder(package) == tmp_path / "profiles"
    (package / "profiles/gpus").mkdir(parents=True)
    assert profiles_folder(package) == package / "profiles"


def test_no_profiles(tmp_path: Path) -> None:
    with pytest.raises(GpubenchError, match="The profiles of gpubench are missing"):
        profiles_folder(tmp_path / "gpubench")
