"""The licence, what it says of data from others, and how to cite the project."""

import re
import tomllib

from tests.tiny_runs import ROOT

LICENCE = (ROOT / "LICENSE").read_text()
CITATION = (ROOT / "CITATION.cff").read_text()


def test_licence_citation_and_package_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = dict(re.findall(r"^([a-z-]+): ?(.*)$", CITATION, re.MULTILINE))
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "type", "version", "license"}
    assert LICENCE.startswith("MIT License\n")
    assert citation["license"] == project["license"] == "MIT"
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["type"] == "software"


def test_the_authors_are_the_same_in_both() -> None:
    holder = re.findall(r"^Copyright \(c\) \d{4} (.*)$", LICENCE, re.MULTILINE)
    assert holder == re.findall(r"^  - name: (.*)$", CITATION, re.MULTILINE) == ["The o2o-bench authors"]


def test_the_notice_speaks_of_files_that_are_there_and_of_all_published_sources() -> None:
    paths = re.findall(r"(?:analysis|tests)/[\w/.*]+\w", LICENCE)
    assert paths
    for path in paths:
        assert list(ROOT.glob(path)), path
    head = [line for line in (ROOT / "analysis/published/published.csv").read_text().splitlines() if line[:1] == "#"]
    for number in re.findall(r"(arXiv \S+?),[^\n]*Licence: MIT", "\n".join(head)):
        assert number in " ".join(LICENCE.split()), number
