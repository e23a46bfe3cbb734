"""Reading the pack's documents: help pages, translations, tables."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
HELP, LOCALES = ROOT / "web" / "docs", ROOT / "locales"


def locale(language, file):
    return json.loads((LOCALES / language / file).read_text(encoding="utf-8"))


def keys(tree):
    return {key: keys(branch) for key, branch in tree.items()} if isinstance(tree, dict) else None


def help_page(node_id):
    return (HELP / f"{node_id}.md").read_text(encoding="utf-8")


def section(page, title):
    """The text below a heading, up to the next heading."""
    return re.split(r"^#+ ", page.split(f"## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text):
    """The cells of a Markdown table's rows, without its head."""
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in table[2:]]


def shown(value):
    """A default in the notation of the help pages."""
    if value == "":
        return "Empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, (int, float)) else f"`{value}`"
