"""A page of Markdown as one HTML file that loads nothing: its pictures are in it.

Known are headings, paragraphs, lists, tables, pictures that stand alone, and `code` and **bold** within a line: what
the report is written in, and no more.
"""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

_PICTURE = re.compile(r"!\[(.*)\]\((.+)\)")
_RULE = re.compile(r"\|( *:?-+:? *\|)+")


def without_pictures(markdown: str) -> str:
    """The page for where pictures are shown by themselves."""
    return "\n\n".join(block for block in _blocks(markdown) if not _PICTURE.fullmatch(block)) + "\n"


def pictures(markdown: str) -> list[str]:
    """Files of the page's pictures, in order."""
    return [found[2] for block in _blocks(markdown) if (found := _PICTURE.fullmatch(block))]


def as_html(title: str, markdown: str, folder: Path) -> str:
    """The page in HTML, headings of the second level in the menu.

    Args:
        folder: that the pictures lie in, PNG files.
    """
    blocks = _blocks(markdown)
    heads = [block[3:] for block in blocks if block.startswith("## ")]
    menu = " ".join(f'<a href="#{_anchor(head)}">{html.escape(head)}</a>' for head in heads)
    body = "\n".join(_block(block, folder) for block in blocks)
    return f"{_HEAD.format(title=html.escape(title))}\n<nav>{menu}</nav>\n{body}\n</body></html>\n"


def _blocks(markdown: str) -> list[str]:
    return [block.strip("\n") for block in re.split(r"\n{2,}", markdown) if block.strip()]


def _block(block: str, folder: Path) -> str:
    if found := _PICTURE.fullmatch(block):
        data = base64.b64encode((folder / found[2]).read_bytes()).decode()
        caption = _inline(found[1])
        image = f'<img alt="{html.escape(found[1])}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    if block.startswith("#"):
        marks, _, text = block.partition(" ")
        return f'<h{len(marks)} id="{_anchor(text)}">{_inline(text)}</h{len(marks)}>'
    lines = block.splitlines()
    if len(lines) > 1 and _RULE.fullmatch(lines[1]):
        return _table(lines)
    if all(line.startswith(("- ", "  ")) for line in lines):
        items = re.split(r"\n?^- ", block, flags=re.MULTILINE)[1:]
        return "<ul>" + "".join(f"<li>{_inline(' '.join(item.split()))}</li>" for item in items) + "</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def _table(lines: list[str]) -> str:
    heads, rule, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines)
    marks = [' class="number"' if cell.endswith(":") else "" for cell in rule]

    def line(cells: list[str], tag: str) -> str:
        return "".join(f"<{tag}{mark}>{_inline(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))

    body = "\n".join(f"<tr>{line(cells, 'td')}</tr>" for cells in rows)
    return f"<table>\n<thead><tr>{line(heads, 'th')}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _inline(text: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def _anchor(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")


_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
p, li {{ overflow-wrap: anywhere; }}
nav a {{ margin-right: 1rem; white-space: nowrap; }}
h2 {{ border-top: 2px solid #ccc; margin-top: 2.5rem; padding-top: 1rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; font-size: .88rem; margin: 1rem 0; }}
th, td {{ padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
figure {{ margin: 1.5rem 0; }}
img {{ max-width: 100%; }}
figcaption {{ color: #666; font-size: .85rem; }}
code {{ background: #f6f6f4; padding: 0 .2rem; }}
</style></head><body>"""
