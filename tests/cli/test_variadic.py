"""`--sizes 1 2 4 8` takes all numbers that follow, `--param a=1 b=2` all assignments, and nothing else."""

import pytest

from gpubench.cli.options import split_numbers
from gpubench.cli.variadic import spread
from gpubench.errors import GpubenchError
from gpubench.search.requested import split_assignment


@pytest.mark.parametrize(
    ("given", "result"),
    [
        (["--sizes", "1", "2", "4"], ["--sizes", "1", "--sizes", "2", "--sizes", "4"]),
        (["vae", "--sizes", "1", "2", "--quiet"], ["vae", "--sizes", "1", "--sizes", "2", "--quiet"]),
        (["--sizes", "1", "2", "vae"], ["--sizes", "1", "--sizes", "2", "vae"]),
        (["--sizes", "1,2,4"], ["--sizes", "1,2,4"]),
        (["--sizes"], ["--sizes"]),
        (["--sizes", "-1"], ["--sizes", "-1"]),
        (["--sizes", "1", "--overlaps", "2", "3"], ["--sizes", "1", "--overlaps", "2", "--overlaps", "3"]),
        (["--batch-size", "1", "2"], ["--batch-size", "1", "2"]),
        (["--param", "a=1", "b=x y", "vae"], ["--param", "a=1", "--param", "b=x y", "vae"]),
        (["--set", "a=1,2", "b=3", "--fix", "c=4", "7"], ["--set", "a=1,2", "--set", "b=3", "--fix", "c=4", "7"]),
        (["--set", "a", "b=3"], ["--set", "a", "b=3"]),
        (["--output", "a=1", "b=2"], ["--output", "a=1", "b=2"]),
        (
            ["--param=a=1", "b=2", "--sizes=1", "2"],
            ["--param", "a=1", "--param", "b=2", "--sizes", "1", "--sizes", "2"],
        ),
        (["--output=a=1", "b=2"], ["--output=a=1", "b=2"]),
        (["--", "--sizes", "1", "2"], ["--", "--sizes", "1", "2"]),
    ],
)
def test_spread(given: list[str], result: list[str]) -> None:
    assert spread(given) == result


def test_numbers_are_read_once_each_in_order() -> None:
    assert split_numbers(["8", "1,2", "8"], "--sizes") == (8, 1, 2)
    with pytest.raises(GpubenchError, match=r"1\.5"):
        split_numbers(["1.5"], "--sizes")


def test_assignments() -> None:
    assert split_assignment("a = b=c", "--fix") == ("a", "b=c")
    for text in ("a", "=b", "a="):
        with pytest.raises(GpubenchError, match="NAME=VALUE"):
            split_assignment(text, "--fix")
