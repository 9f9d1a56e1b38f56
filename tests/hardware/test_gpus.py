from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.errors import GpubenchError
from gpubench.hardware.gpus import all_gpus
from gpubench.profiles_folder import profiles_folder


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
    gpus = {gpu.name: gpu for gpu in all_gpus()}
    facts = gpus["NVIDIA GeForce RTX 5070 Ti"]
    assert (facts.compute_capability, facts.memory_gb, facts.memory_bandwidth_gb_per_s) == ([12, 0], 16, 896)
    shared = gpus["NVIDIA GeForce RTX 3060"]
    assert shared.name_is_ambiguous and shared.dense_tflops.bfloat16 is None


def test_a_broken_profile_names_file_and_place(tmp_path: Path) -> None:
    (tmp_path / "gpus").mkdir()
    (tmp_path / "gpus/bad.toml").write_text('name = "x"\ncompute_capability = [8, "six"]\n')
    with pytest.raises(GpubenchError, match=r"bad\.toml is no valid GPU profile.*compute_capability\[1\]"):
        all_gpus(tmp_path)


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
