"""Where the profiles that ship with gpubench lie."""

from __future__ import annotations

from pathlib import Path

from gpubench.errors import GpubenchError

PACKAGE = Path(__file__).parent


def profiles_folder(package: Path = PACKAGE) -> Path:
    """The folder with `gpus/`, `matrices/` and `recommended/`: inside an installed package, beside it in a checkout.

    Raises GpubenchError where neither exists.
    """
    candidates = (package / "profiles", package.parent / "profiles")
    for folder in candidates:
        if (folder / "gpus").is_dir():  # "profiles" alone is a common name beside a package in site-packages
            return folder
    raise GpubenchError(
        f"The profiles of gpubench are missing: looked for {' and '.join(map(str, candidates))}.",
        "Install gpubench-torch again.",
    )
