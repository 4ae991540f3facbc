"""What the site needs beyond mkdocs: pages that live outside of docs/, and links that leave it."""

# ruff: noqa: INP001

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]

# Documents that are read where they lie, and stand on the site under another name.
PAGES = {"packages/claude-projects/README.md": "CLIENT.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the outside documents, and put the decisions under "Understand"."""
    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_relinked(text, source, name)))
    decisions = sorted(file.src_uri for file in files if file.src_uri.startswith("decisions/"))
    if decisions:
        config.nav[-1]["Understand"].append({"Decisions": decisions})
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Mend the links that leave docs/."""
    name = page.file.src_uri
    return markdown if name in PAGES.values() else _relinked(markdown, f"docs/{name}", name)


def _relinked(text: str, source: str, name: str) -> str:
    """Links to outside documents lead to their pages; other files of the repository are only named.

    Raises PluginError where a link leads to a file that does not exist.
    """

    def mended(found: re.Match[str]) -> str:
        image, label, target, anchor = found.groups()
        if ":" in target:
            return found[0]
        path = posixpath.normpath(str(PurePosixPath(source).parent / target))
        if not (ROOT / path).exists():
            raise PluginError(f"{source}: the link to {target} leads nowhere")
        inside = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is None:
            return f"{label} (`{path}` in the repository)"
        relative = posixpath.relpath(inside, PurePosixPath(name).parent)
        return f"{image}[{label}]({relative}{anchor or ''})"

    # Code is left as it is.
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    return "".join(part if part.startswith("`") else _LINK.sub(mended, part) for part in parts)
