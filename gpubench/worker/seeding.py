"""Every generator that a seed covers: Python's, numpy's and torch's, on all devices.

String hashes are Python's own, fixed for all processes by `PYTHONHASHSEED` (executor/fork_server.py). Workers of a
DataLoader are seeded by torch from its own generator: Python's, numpy's and torch's in each of them.
"""

from __future__ import annotations

import random

IMPORT_SEED = 0  # while a user's module is imported: in a server that does not know the run's seed, or in a worker
STEP_SEEDS = 1_000  # above the run's seed: those of checked steps, apart from those of model and inputs
OTHER_NUMBERS = 500  # above the run's seed: for steps that draw other random numbers
FRESH_INPUTS = 1_000_000  # above the run's seed: inputs that are never timed


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # the generator that users' code shares
    torch.manual_seed(seed)


def seed_step(seed: int, number: int) -> None:
    """Seeds checked step `number`, so that it draws the same random numbers in every process."""
    seed_everything(seed + STEP_SEEDS + number)
