"""The registry of flags is the only place that says what a flag does; unknown kinds do nothing by themselves."""

from __future__ import annotations

import msgspec
import pytest

from gpubench.analysis.eligibility import cautions, gate
from gpubench.executor.process_flags import merged
from gpubench.flags import CONTAMINATED, GATES, HOST_BOUND, KINDS, STRICT, UNSTEADY, Flag
from gpubench.study.rows import allowed, strict
from tests.reports import flag, row


def test_every_kind_says_when_it_is_set_and_what_to_do() -> None:
    for name, kind in KINDS.items():
        assert name == kind.name
        assert kind.when.endswith(".") and kind.remedy.endswith(".")
        assert bool(kind.meaning) == (kind.effect in ("gates", "caution")), "a clause, where sentences need one"


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_has_the_effects_of_the_registry(name: str) -> None:
    kind = KINDS[name]
    marked = row("x", 0.1, flags=[f"{name}: planted"])
    assert bool(gate(marked)) == (name in GATES) == (kind.effect == "gates")
    assert bool(cautions(marked)) == (kind.effect == "caution")
    assert (strict(marked).status == "failed") == (name in STRICT) == kind.strict
    assert marked.flags[0].disturbs == kind.disturbs


def test_only_unsteady_is_outweighed_by_three_processes() -> None:
    for name in GATES:
        marked = row("x", runoff_s=[0.1, 0.1, 0.1], flags=[f"{name}: planted"])
        assert (gate(marked) is None) == (name == "unsteady")


def test_what_is_allowed_gates_nothing_and_can_be_taken_back() -> None:
    marked = row("x", flags=["contaminated: by a miner", "host_bound: 40 %"])
    free = allowed(marked, ["contaminated"])
    assert list(map(str, free.flags)) == ["contaminated (allowed): by a miner", "host_bound: 40 %"]
    assert gate(free) is None
    assert strict(allowed(row("y", flags=["contaminated: by a miner"]), ["contaminated"])).status == "ok"
    assert not free.flags[0].disturbs
    assert [part.flags for part in free.rounds] == [part.flags for part in marked.rounds]
    assert allowed(free, []) == marked


def test_an_unknown_kind_does_nothing_by_itself_and_keeps_the_effect_it_was_given() -> None:
    marked = row("x", flags=["levitating: 3 cm"])
    assert marked.flags == [Flag("levitating", "3 cm", "note")]
    assert gate(marked) is None and not cautions(marked) and strict(marked).status == "ok"
    gates = msgspec.structs.replace(marked, flags=[Flag("levitating", "3 cm", "gates")])
    assert "(levitating: 3 cm)" in str(gate(gates))


def test_a_row_has_each_kind_of_its_processes_once_with_their_number() -> None:
    first, second = UNSTEADY.flag("4 s"), CONTAMINATED.flag("by a miner")
    assert merged([[first, second], [first], [first]]) == [first, flag("contaminated: in 1 of 3 processes: by a miner")]
    assert merged([[first], [UNSTEADY.flag("5 s")]]) == [flag("unsteady: in 2 of 2 processes: 4 s")]
    assert merged([[HOST_BOUND.flag("40 %"), HOST_BOUND.flag("50 %")]]) == [flag("host_bound: 50 %")]
