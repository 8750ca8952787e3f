"""What MkDocs does beside its plugins: takes in files from outside, and shows doctests as code.

`{{ include benchmarks/growth.md }}` in a page stands for that file, its headings one level lower.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r"^\{\{ include (\S+) \}\}$", flags=re.MULTILINE)
EXAMPLE = re.compile(r"^Example:\n\n?((?:>>>.*\n(?:(?!\n).*\n?)*)+)", flags=re.MULTILINE)
# Where the links of the README lead to on the site.
LINKS = {
    "(docs/": "(",
    "(benchmarks/README.md)": "(benchmarks.md)",
    "(CHANGELOG.md)": "(changelog.md)",
    " ([LICENSE](LICENSE))": "",
}


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Any, config: Any) -> Any:
    """Adds the notebooks, and the README as the first page."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    readme = (ROOT / "README.md").read_text()
    for link, there in LINKS.items():
        readme = readme.replace(link, there)
    files.append(File.generated(config, "index.md", content=readme))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Takes in the files that a page names."""
    return INCLUDE.sub(lambda found: included((ROOT / found[1]).read_text()), markdown)


def included(text: str) -> str:
    """A text for the middle of a page: without its title, headings one level lower."""
    text = re.sub(r"\A# .*\n+", "", text)
    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # code stays
    parts[::2] = [re.sub(r"^#", "##", part, flags=re.MULTILINE) for part in parts[::2]]
    return "".join(parts)


class Doctests(griffe.Extension):
    """Shows the examples of docstrings, which stand there without a fence, as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Puts a fence around them."""
        if obj.docstring is not None:
            text = obj.docstring.value + "\n"
            obj.docstring.value = EXAMPLE.sub(r"**Example**\n\n```python\n\1```\n", text).rstrip()
