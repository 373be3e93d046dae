"""docs/spec.md is the definition that the code cites: every cited section is there, and every link of a document leads
somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
FOLDERS = ("wino_kernels", "python", "csrc", "tests", "benchmarks", "docs", "examples", "tools")
SUFFIXES = {".py", ".h", ".cpp", ".cu", ".md", ".pyi"}
CITATION = re.compile(r"docs/spec\.md(?:\]\(\S+\))?,? sections? (\d+[a-z]?(?:(?:, | and )\d+[a-z]?)*)")
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def sources() -> list[Path]:
    found = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.suffix in SUFFIXES]
    return [*found, *ROOT.glob("*.md")]


def documents() -> list[Path]:
    return [path for path in sources() if path.suffix == ".md"]


def cited(text: str) -> list[str]:
    """The sections that ``text`` cites; a citation may run over the end of a line, in comments too."""
    joined = re.sub(r"\n\s*(?://|#|\*)?\s*", " ", text)
    return [number for found in CITATION.findall(joined) for number in re.findall(r"\d+[a-z]?", found)]


def test_every_cited_section_exists() -> None:
    sections = set(re.findall(r"^#+ (\d+[a-z]?)\. ", SPEC, re.MULTILINE))
    assert {"1", "2", "3", "3a", "3b", "4", "5", "6"} <= sections
    citations = {path: cited(path.read_text(encoding="utf-8")) for path in sources()}
    assert sum(map(len, citations.values())) > 90  # the pattern still finds them
    missing = {str(path): set(found) - sections for path, found in citations.items() if set(found) - sections}
    assert not missing


def test_nothing_cites_a_specification_that_is_not_shipped() -> None:
    old = "SPEC" + " section"
    assert not [path for path in sources() if old in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    broken = [target for target, _ in LINK.findall(text) if not (path.parent / target).exists()]
    assert not broken


def test_a_wrong_citation_would_be_found() -> None:
    assert cited("as docs/spec.md sections 3, 3a and 5 say") == ["3", "3a", "5"]
    assert cited("see docs/spec.md\n// section 6.") == ["6"]
    assert cited("[docs/spec.md](spec.md) section 2") == ["2"]
