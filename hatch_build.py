"""What a build says of the project: README as its description, and addresses where one is known.

`SECATEUR_URL` is the address of the repository, such as https://git.example.org/them/secateur;
publish.yml sets it. Without it the package names no address, and links into the repository are
left as their words.
"""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?://)([^)]+)\)")
LINK = re.compile(r"\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")


class Addresses(MetadataHookInterface):
    """The fields that pyproject.toml calls dynamic."""

    def update(self, metadata: dict) -> None:
        """Write them."""
        url = os.environ.get("SECATEUR_URL", "").rstrip("/")
        text = described(Path(self.root, "README.md").read_text("utf-8"), metadata["version"], url)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = addresses(url)


def described(text: str, version: str, url: str) -> str:
    """README where it stands alone: no link in it is relative."""
    if not url:
        return LINK.sub(r"\1", PICTURE.sub(r"*\1*", text))
    text = PICTURE.sub(rf"![\1]({url}/raw/v{version}/\2)", text)
    return LINK.sub(rf"[\1]({url}/blob/v{version}/\2)", text)


def addresses(url: str) -> dict[str, str]:
    """Where the project is, by what an index calls it."""
    if not url:
        return {}
    return {
        "Homepage": url,
        "Changelog": f"{url}/blob/main/CHANGELOG.md",
        "Issues": f"{url}/issues",
    }
