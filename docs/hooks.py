"""What the site does to its pages.

Formulas become MathML, which every browser draws by itself; the table of methods is made from the
registry by `tables.py`, and a page for each of them by `method_pages.py`.
"""

import html
import json
import re
from pathlib import Path

from latex2mathml.converter import convert
from method_pages import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from tables import readme_models, site_methods

import secateur
from secateur import lab

TABLE = "<!-- table of methods -->"
MODELS = "<!-- table of models -->"
METHODS, EACH = "Methods", "Each method"
"""The section of the navigation, and what stands in it above the methods' pages."""

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the methods' pages below those of their section."""
    for section in config.nav or []:
        if METHODS in section:
            section[METHODS].append({EACH: list(pages())})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each method."""
    for address, text in pages().items():
        files.append(File.generated(config, address, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the tables of methods and models where a page asks for them."""
    for mark, written in ((TABLE, site_methods), (MODELS, readme_models)):
        if mark in markdown:
            markdown = markdown.replace(mark, written())
    return markdown


def on_page_content(page_html: str, **_: object) -> str:
    """Render the formulas of a page; one that cannot be read stops the build."""
    return FORMULA.sub(_rendered, page_html)


def _rendered(found: re.Match[str]) -> str:
    latex = html.unescape(found["latex"]).strip().replace(r"\_", "_")
    if found["open"] == "(":
        return str(convert(latex))
    if r"\begin" in latex:
        return str(convert(latex, display="block"))
    # A formula of several lines: one below the other, the alignment marks dropped.
    lines = [line.replace("&", " ").strip() for line in re.split(r"\\\\", latex)]
    return "".join(convert(line, display="block") for line in lines if line)


def on_post_build(config: MkDocsConfig) -> None:
    """Stop the build where search would not find a public name."""
    index = json.loads(Path(config.site_dir, "search", "search_index.json").read_text("utf-8"))
    found = {entry["location"].rpartition("#")[2] for entry in index["docs"]}
    names = [getattr(module, name) for module in (secateur, lab) for name in module.__all__]
    public = {f"{x.__module__}.{x.__qualname__}" for x in names if hasattr(x, "__qualname__")}
    if missing := sorted(public - found):
        raise PluginError(f"no page of docs/api describes {', '.join(missing)}")
