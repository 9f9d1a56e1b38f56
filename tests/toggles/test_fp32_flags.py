"""Whatever a workload's code has set before, and by whichever name: afterwards all names agree and can be read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gpubench.toggles import fp32_flags

NEW = hasattr(torch.backends, "fp32_precision")  # since torch 2.9


def setter(path: str, value: object) -> Callable[[], None]:
    *holders, name = path.split(".")

    def apply() -> None:
        found: object = torch.backends
        for holder in holders:
            found = getattr(found, holder)
        setattr(found, name, value)

    return apply


MESSES = {
    "nothing": lambda: None,
    "matmul precision medium": lambda: torch.set_float32_matmul_precision("medium"),
    "matmul precision high": lambda: torch.set_float32_matmul_precision("high"),
    "older, matmul": setter("cuda.matmul.allow_tf32", True),
    "older, cudnn": setter("cudnn.allow_tf32", False),
}
if NEW:
    names = ("", "cudnn.", "cudnn.conv.", "cudnn.rnn.", "cuda.matmul.", "mkldnn.", "mkldnn.matmul.", "mkldnn.conv.")
    MESSES |= {
        f"{name or 'all '}{value}": setter(f"{name}fp32_precision", value)
        for name in names
        for value in ("tf32", "ieee")
    }
    MESSES |= {
        "all bf16": setter("fp32_precision", "bf16"),
        "oneDNN bf16": setter("mkldnn.matmul.fp32_precision", "bf16"),
    }


def older() -> tuple[bool, bool, str]:
    """By the older names; reading them is an error where newer ones disagree."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return matmul, cudnn, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("mess", MESSES.values(), ids=MESSES)
def test_what_was_set_before_does_not_matter(mess: Callable[[], None]) -> None:
    mess()
    fp32_flags.forbid()
    assert (fp32_flags.permitted("cuda"), fp32_flags.permitted("cpu"), older()) == ({}, {}, (False, False, "highest"))
    mess()
    fp32_flags.permit_tf32()
    assert set(fp32_flags.permitted("cuda").values()) == {"tf32"}
    assert {"cuda.matmul", "cudnn.conv"} <= set(fp32_flags.permitted("cuda"))
    assert (fp32_flags.permitted("cpu"), older()[:2]) == ({}, (True, True))
    mess()
    fp32_flags.reset()
    assert older() == (False, True, "highest")
    assert set(fp32_flags.permitted("cuda")) == {"cudnn.conv", *(["cudnn.rnn"] if NEW else [])}
    assert fp32_flags.permitted("cpu") == {}


@pytest.mark.skipif(not NEW, reason="this torch has the older names only")
def test_triton_convolutions_read_what_the_value_says() -> None:
    """Inductor compiles its own convolutions with TF32 where `torch.backends.cudnn.fp32_precision` is "tf32"."""
    fp32_flags.permit_tf32()
    assert torch.backends.cudnn.fp32_precision == "tf32"
    fp32_flags.forbid()
    assert torch.backends.cudnn.fp32_precision == "ieee"
    fp32_flags.reset()
    assert torch.backends.cudnn.fp32_precision == torch.backends.fp32_precision == "none"


@pytest.mark.skipif(not NEW, reason="this torch has the older names only")
def test_what_is_permitted_is_read_where_reading_the_older_names_is_an_error() -> None:
    torch.backends.fp32_precision = "tf32"
    torch.backends.cudnn.allow_tf32 = False
    with pytest.raises(RuntimeError):
        older()
    assert fp32_flags.permitted("cuda")["cudnn.conv"] == "tf32"
    torch.set_float32_matmul_precision("medium")
    assert fp32_flags.permitted("cpu")["mkldnn.matmul"] == "bf16"


def test_resetting_gives_what_torch_begins_with() -> None:
    """Of this process, in which the fixtures reset after every test, against a new one."""
    import subprocess
    import sys

    code = (
        "import torch; from gpubench.toggles import fp32_flags as f; print(f.state('cuda'), f.state('cpu'), "
        "torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())"
    )
    begun = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")[
        0
    ]
    torch.set_float32_matmul_precision("medium")
    fp32_flags.reset()
    assert begun == " ".join(map(str, (fp32_flags.state("cuda"), fp32_flags.state("cpu"), *older())))
