"""The two sides of `ab` may be two copies of one configuration in one process: neither changes the other's evidence."""

from __future__ import annotations

import pytest

from gpubench.toggles import get


@pytest.mark.parametrize(
    "configuration",
    [
        {"precision": "fp32", "channels_last": "off"},
        {"precision": "bf16-autocast", "channels_last": "on"},
        {"precision": "bf16-weights", "channels_last": "on"},
        {"precision": "fp32", "threads": 1},
    ],
)
def test_copies_in_one_process_do_not_change_each_others_evidence(kit, configuration):
    def evidence(context):
        return {name: get(name).evidence(context, value) for name, value in configuration.items()}

    contexts, first = [], []
    for _ in range(2):
        contexts.append(kit.run(dict(configuration)))
        first.append(evidence(contexts[-1]))
    for results in first:
        assert all(each.took_effect is True for each in results.values()), results
    # Again in turn, as blocks of them are timed: each one's own next step shows the same.
    for context, before in zip(contexts, first, strict=True):
        kit.trace_again(context)
        again = evidence(context)  # in its details, the number of OS threads depends on what else runs
        assert {name: each.took_effect for name, each in again.items()} == dict.fromkeys(before, True)
