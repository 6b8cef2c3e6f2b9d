"""Writes the settings table into README.md from the settings themselves: ``python -m tests.readme``."""

import re
from pathlib import Path

from streams.settings import settings_table

README = Path(__file__).parent.parent / "README.md"


def settings_markdown() -> str:
    """The table of every setting, as README.md holds it between its two markers."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for row in settings_table():
        default = f"`{row.default}`" if row.default else ""
        rows.append(f"| `{row.name}` | {default} | {row.description} |")
    return "\n".join(rows)


def with_settings(readme: str) -> str:
    """README.md's text with its settings table made anew."""
    table = f"<!-- settings -->\n\n{settings_markdown()}\n\n<!-- /settings -->"
    return re.sub(r"<!-- settings -->.*<!-- /settings -->", lambda _: table, readme, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(with_settings(README.read_text(encoding="utf-8")), encoding="utf-8")
