"""Docstrings keep numpydoc's math directives, the site reads Markdown: one into the other."""

import re
from typing import Any

import griffe

BLOCK = re.compile(
    r"^(?P<indent> *)\.\. math::(?P<line>[^\n]*)(?P<body>(?:\n(?:(?P=indent) +[^\n]*)?)*)", re.M
)
ROLE = re.compile(r":math:`([^`]+)`")


def _block(found: re.Match[str]) -> str:
    latex = " ".join(part.strip() for part in (found["line"] + found["body"]).splitlines())
    return f"{found['indent']}$${latex.strip()}$$\n\n"


class MathDirectives(griffe.Extension):
    """Rewrites math directives and roles before docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            text = BLOCK.sub(_block, obj.docstring.value)
            obj.docstring.value = ROLE.sub(r"$\1$", text)
