"""What the site does to its pages.

Formulas become MathML, which every browser draws by itself; the table of methods is made from
the registry.
"""

import html
import json
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

import secateur
from secateur import lab
from secateur.core.methods import table

TABLE = "<!-- table of methods -->"

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the table of methods where a page asks for it."""
    return markdown.replace(TABLE, _methods()) if TABLE in markdown else markdown


def _methods() -> str:
    lines = [
        "| method | paper | needs | acts | time | guarantee | parity |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| [{row.title}](../api/methods.md) | {row.paper} | {row.needs} | {row.acts} "
        f"| {row.complexity} | {row.guarantee} | {row.parity} |"
        for row in table()
    ]
    return "\n".join(lines)


def on_page_content(page_html: str, **_: object) -> str:
    """Render the formulas of a page; one that cannot be read stops the build."""
    return FORMULA.sub(_rendered, page_html)


def _rendered(found: re.Match[str]) -> str:
    latex = html.unescape(found["latex"]).strip()
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
