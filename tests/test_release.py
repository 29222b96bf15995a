"""What a release consists of: project, citation, the workflow, what is left out of nothing."""

import re
import runpy
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import secateur as sc
from secateur.core.methods import own

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))

# From the schema of the Citation File Format 1.2.0, as far as this file goes.
ALLOWED = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi",
    "identifiers", "keywords", "license", "license-url", "message", "preferred-citation",
    "references", "repository", "repository-artifact", "repository-code", "title", "type", "url",
    "version",
}  # fmt: skip
REFERENCE = {
    "authors", "collection-title", "doi", "end", "identifiers", "issue", "journal", "month",
    "notes", "start", "status", "title", "type", "url", "volume", "year",
}  # fmt: skip
PERSON = {"family-names", "given-names", "name-particle", "name-suffix", "orcid", "affiliation"}
ENTITY = {"name", "website", "orcid"}
DOI = r"10\.\d{4,9}(\.\d+)?/[A-Za-z0-9:/_;.()\[\]\\-]+"


def test_the_version_is_one():
    assert PROJECT["version"] == sc.__version__ == str(CITATION["version"])
    assert f"## {sc.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def people(given, where):
    assert given, where
    for each in given:
        assert each.keys() <= (ENTITY if "name" in each else PERSON), (where, each)
        assert each.get("name") or each.get("family-names"), (where, each)
        assert all(isinstance(x, str) and x.strip() for x in each.values()), (where, each)


def test_the_citation_is_of_the_format():
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION.keys() <= ALLOWED
    assert {"message", "title", "authors"} <= CITATION.keys()
    assert CITATION["type"] in ("software", "dataset")
    people(CITATION["authors"], "authors")
    assert len(set(CITATION["keywords"])) == len(CITATION["keywords"])
    titles = [each["title"] for each in CITATION["references"]]
    assert len(set(titles)) == len(titles), "the format allows no reference twice"
    for each in CITATION["references"]:
        assert each.keys() <= REFERENCE, each
        assert {"authors", "title", "type"} <= each.keys(), each
        assert each["type"] in ("article", "conference-paper", "report", "software", "thesis")
        people(each["authors"], each["title"])
        assert isinstance(each.get("year", 0), int)
        assert each.get("month", 1) in range(1, 13)
        assert "doi" not in each or re.fullmatch(
            r"10\.\d{4,9}(\.\d+)?/[A-Za-z0-9:/_;\-\.\(\)\[\]\\]+", each["doi"]
        )
        for told in each.get("identifiers", []):
            assert told.keys() == {"type", "value"}
            assert told["type"] in ("doi", "url", "swh", "other")


def test_every_paper_of_a_method_is_cited():
    cited = str(CITATION["references"])
    for kind in own():
        for number in re.findall(r"arXiv (\d{4}\.\d{5})", kind.reference):
            assert number in cited, (kind.name, number)


@pytest.fixture
def building(monkeypatch):
    """hatch_build.py, which is there for hatchling, without hatchling."""
    for name in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    interface = ModuleType("hatchling.metadata.plugin.interface")
    interface.MetadataHookInterface = object
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    found = runpy.run_path(str(ROOT / "hatch_build.py"))
    hook = found["Addresses"]()
    hook.root = str(ROOT)

    def metadata(url):
        monkeypatch.setenv("SECATEUR_URL", url)
        made = {"version": sc.__version__}
        hook.update(made)
        return made["readme"]["text"], made["urls"]

    return metadata


def test_where_an_address_is_known_every_link_of_the_description_is_whole(building):
    text, urls = building("https://git.example.org/them/secateur/")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 8
    assert all(link.startswith(("https://", "#")) for link in links)
    assert f"/them/secateur/raw/v{sc.__version__}/docs/images/lab.png" in text
    assert f"/them/secateur/blob/v{sc.__version__}/docs/install.md" in text
    assert set(urls) == {"Homepage", "Changelog", "Issues"}
    assert all(url.startswith("https://git.example.org/them/secateur") for url in urls.values())


def test_where_none_is_known_nothing_leads_nowhere(building):
    text, urls = building("")
    assert urls == {}
    assert all(link.startswith(("https://", "#")) for link in re.findall(r"\]\(([^)]+)\)", text))
    assert "what each extra brings" in text
    assert "example.org" not in (ROOT / "pyproject.toml").read_text("utf-8")
    assert "urls" not in PROJECT


def test_what_is_published_was_built_and_tried_and_signed():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text("utf-8"))
    build, publish = flow["jobs"]["build"], flow["jobs"]["publish"]
    (made,) = [step for step in build["steps"] if step.get("run") == "make dist"]
    assert made["env"] == {"SECATEUR_URL": "${{ github.server_url }}/${{ github.repository }}"}
    assert publish["needs"] == "build"
    assert publish["permissions"]["id-token"] == "write"
    assert flow["permissions"] == {"contents": "read"}
    last = publish["steps"][-1]
    assert last["with"]["attestations"] is True
    assert not {"password", "user"} & last["with"].keys(), "trusted publishing has no secret"
    used = [step["uses"] for job in (build, publish) for step in job["steps"] if "uses" in step]
    assert all("@" in each for each in used)


def test_until_it_is_on_an_index_pages_say_where_it_comes_from():
    """A page that tells to install secateur by name leads to the page that says from where."""
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text("utf-8")
        if "pip install" in text and "secateur[" in text and page.name != "install.md":
            assert "install.md" in text, page
    install = (ROOT / "docs" / "install.md").read_text("utf-8")
    assert "on no package index yet" in install
    assert "pip install 'secateur" not in (ROOT / "README.md").read_text("utf-8")
    for extra in set(PROJECT["optional-dependencies"]) - {
        "bench", "dev", "dist", "docs", "lint", "test", "test-serving"
    }:  # fmt: skip
        assert f"| `{extra}` |" in install


@pytest.mark.parametrize("extra", ["demo", "dev"])
def test_locks_hold_what_the_tests_run_with_and_its_hashes(extra):
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line
    )
    told = (ROOT / f"locks/{extra}.txt").read_text("utf-8").replace("\\\n", " ")
    locked = {}
    for line in told.splitlines():
        if line and not line.lstrip().startswith("#"):
            name, version = line.split(";")[0].split()[0].split("==")
            locked.setdefault(name, set()).add(version)
            assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", line), name
    assert {"torch", "transformers", "numpy"} <= locked.keys()
    assert "://" not in told
    for name in locked.keys() & pinned.keys():
        assert locked[name] == {pinned[name]}
    for name in re.findall(r"^[A-Za-z0-9-]+", "\n".join(wanted(extra)), re.MULTILINE):
        assert name.lower() in locked, name


def wanted(extra):
    """What an extra asks for, those it names of ours resolved."""
    for line in PROJECT["optional-dependencies"][extra]:
        ours = re.fullmatch(r"secateur\[(.*)\]", line)
        if ours is None:
            yield line
        else:
            for each in ours[1].split(","):
                yield from wanted(each)
