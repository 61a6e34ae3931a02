"""MkDocs hook: links to files outside docs/, and the rank of pages in the search.

A link to a file outside docs/ is shown as the file's path, not as a link: on a code host
`[trainer.py](../src/unfreeze/training/trainer.py)` leads to the file; the site does not hold it. A
path that is nowhere is left as it is, so that the strict build names it. Pages of records rank
below guides that have the same words.
"""

import os
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)\)")
RECORDS = {"RESULTS.md", "LOG.md", "ROBUSTNESS.md"}


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page with its outside links as code."""
    if page.file.src_uri in RECORDS:
        page.meta["search"] = {"boost": 0.3}
    docs = Path(config["docs_dir"])
    folder = (docs / page.file.src_uri).parent

    def shown(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / match[2]))
        if not target.exists() or target.is_relative_to(docs):
            return match[0]
        path = target.relative_to(docs.parent).as_posix()
        return f"{match[1]} (`{path}`)" if match[1].strip("`") not in path else f"`{path}`"

    return LINK.sub(shown, markdown)
