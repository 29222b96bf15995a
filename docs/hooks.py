"""What the site does to its pages: formulas become MathML, which every browser draws by itself."""

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)


def on_page_content(page_html: str, **_: object) -> str:
    """Render the formulas of a page; one that cannot be read stops the build."""
    return FORMULA.sub(_rendered, page_html)


def _rendered(found: re.Match[str]) -> str:
    latex = html.unescape(found["latex"]).strip()
    if found["open"] == "(":
        return str(convert(latex))
    # A formula of several lines: one below the other, the alignment marks dropped.
    lines = [line.replace("&", " ").strip() for line in re.split(r"\\\\", latex)]
    return "".join(convert(line, display="block") for line in lines if line)
