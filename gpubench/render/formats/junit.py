"""Checks as JUnit XML, which CI systems show as tests: a row is a case."""

from __future__ import annotations

from gpubench.render.document import Content
from gpubench.render.formats import Format

TAGS = {"regressed": "failure", "inconclusive": "error"}


def render(content: Content) -> str:
    """One suite a check. Regressed: failure; inconclusive: error (or skipped, where allowed); incomparable: skipped.

    A check that is incomparable as a whole is a suite with one case that is an error.
    """
    from xml.etree.ElementTree import Element, SubElement, indent, tostring

    root = Element("testsuites", name="gpubench check")
    for document in content.documents():
        suite = SubElement(root, "testsuite", name=" ".join(document.about[:2]))
        place = ".".join(("gpubench", *document.about))
        if document.status == "incomparable":
            words = " ".join(document.remarks) or document.title
            case = SubElement(suite, "testcase", name="comparable", classname=place)
            SubElement(case, "error", message=words, type="incomparable").text = words
        for row in document.rows:
            case = SubElement(suite, "testcase", name=row.cells["row"], classname=place)
            texts = [note.text for note in row.notes if note.status == row.status]
            if row.status in document.tolerated or row.status == "incomparable":
                SubElement(case, "skipped", message="".join(texts[:1])).text = "\n".join(texts)
            elif tag := TAGS.get(row.status):
                SubElement(case, tag, message="".join(texts[:1]), type=row.status).text = "\n".join(texts)
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(name, str(sum(case.find(tag) is not None for case in suite)))
        suite.set("tests", str(len(suite)))
    indent(root)
    return tostring(root, encoding="unicode", xml_declaration=True) + "\n"


FORMAT = Format("junit", ("check",), render, ending=".xml", order=4)
