"""A check as JUnit XML, which CI systems show as tests: a row is a case."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from gpubench.regression.verdicts import Check, RowCheck
from gpubench.render.check_cells import deciding, headline, remarks, sentence
from gpubench.text import printable


def junit(checks: Sequence[Check], inconclusive_ok: bool = False) -> str:
    """One suite a check. Regressed: failure; inconclusive: error (or skipped, where allowed); incomparable: skipped.

    A check that is incomparable as a whole is a suite with one case that is an error.
    """
    root = ElementTree.Element("testsuites", name="gpubench check")
    for check in checks:
        suite = ElementTree.SubElement(root, "testsuite", name=printable(f"{check.workload} {check.mode}"))
        if check.verdict == "incomparable":
            case = ElementTree.SubElement(suite, "testcase", name="comparable", classname=_class(check))
            words = " ".join(remarks(check)) or headline(check)
            ElementTree.SubElement(case, "error", message=words, type="incomparable").text = words
        for row in check.rows:
            _case(suite, check, row, inconclusive_ok)
        for name, tags in (("failures", ("failure",)), ("errors", ("error",)), ("skipped", ("skipped",))):
            suite.set(name, str(sum(case.find(tag) is not None for case in suite for tag in tags)))
        suite.set("tests", str(len(suite)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, check: Check, row: RowCheck, inconclusive_ok: bool) -> None:
    case = ElementTree.SubElement(suite, "testcase", name=printable(row.id), classname=_class(check))
    words = "\n".join(sentence(row, one) for one in deciding(row))
    tag = {"regressed": "failure", "inconclusive": "error", "incomparable": "skipped"}.get(row.verdict)
    if tag == "error" and inconclusive_ok:
        tag = "skipped"
    if tag is not None:
        found = ElementTree.SubElement(case, tag, message=words.partition("\n")[0])
        if tag != "skipped":
            found.set("type", row.verdict)
        found.text = words


def _class(check: Check) -> str:
    return printable(f"gpubench.{check.workload}.{check.mode}.{check.device}")
