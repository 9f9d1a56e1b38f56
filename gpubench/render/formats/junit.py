"""Checks as JUnit XML, which CI systems show as tests: a row is a case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench.render.document import Content, Document, TableRow
from gpubench.render.formats import Format

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

TAGS = {"regressed": "failure", "inconclusive": "error", "incomparable": "skipped"}


def render(content: Content) -> str:
    """One suite a check. Regressed: failure; inconclusive: error (or skipped, where allowed); incomparable: skipped.

    A check that is incomparable as a whole is a suite with one case that is an error.
    """
    from xml.etree import ElementTree

    root = ElementTree.Element("testsuites", name="gpubench check")
    for document in content.documents():
        suite = ElementTree.SubElement(root, "testsuite", name=" ".join(document.about[:2]))
        if document.status == "incomparable":
            words = " ".join(note.text for note in document.notes if not note.status) or document.title
            case = _case(suite, "comparable", document)
            ElementTree.SubElement(case, "error", message=words, type="incomparable").text = words
        for row in document.rows:
            _tell(_case(suite, row.name, document), row, document.tolerated)
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(name, str(sum(case.find(tag) is not None for case in suite)))
        suite.set("tests", str(len(suite)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: Element, name: str, document: Document) -> Element:
    from xml.etree import ElementTree

    return ElementTree.SubElement(suite, "testcase", name=name, classname=".".join(("gpubench", *document.about)))


def _tell(case: Element, row: TableRow, tolerated: tuple[str, ...]) -> None:
    from xml.etree import ElementTree

    if (tag := TAGS.get(row.status)) is None:
        return
    if row.status in tolerated:
        tag = "skipped"
    texts = [note.text for note in row.notes if note.status == row.status]
    result = ElementTree.SubElement(case, tag, message=texts[0] if texts else "")
    if tag != "skipped":
        result.set("type", row.status)
    result.text = "\n".join(texts)


FORMAT = Format("junit", ("check",), render, ending=".xml", order=4)
