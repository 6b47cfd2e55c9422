"""Inspection sheets: random records to be read by a person, who keeps a verdict beside them.

A sheet is made anew from the data; what its reader found stands in a small file of its own,
`sheets/PRESET.toml` (or in the folder named by `CS336_SHEETS`):

    [language]
    verdict = "Short pages of code are taken for Latin; 0.65 is right for the rest."
    labels = {"http://docs.localhost/numpy/numpy.exceptions.html" = "en"}     # own label, by address

Labels are compared with what the filters say. Texts never enter that file.
"""

from __future__ import annotations

import html
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cs336.evals.report import wilson_interval
from cs336.files import UserError
from cs336.filters.pii import EMAIL, IP, PHONE, mask_pii

MAX_EXCERPT = 600  # characters of a text on a sheet
NOT_READ = "not read yet"
_BEGINNING = 200  # of those, from the beginning of a longer text
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)  # and what turns text around
_AROUND = 80  # characters shown on either side of a replacement
_PLACEHOLDER = re.compile("|".join(map(re.escape, (EMAIL, PHONE, IP))))


class Entry(NamedTuple):
    """One record on a sheet.

    Attributes:
        url: the page's address.
        place: WARC file and offset.
        facts: scores and the like, by name.
        excerpts: (what it is, text), the text as long as it likes: sheets show `excerpt` of it.
        says: the filters' answer, which labels are compared with; "" where there is none.
    """

    url: str
    place: str
    facts: Mapping[str, str]
    excerpts: Sequence[tuple[str, str]]
    says: str = ""


class Sheet(NamedTuple):
    """Records to read and what to look for.

    Attributes:
        name: of the table in the file of verdicts.
        figures: sentences about all the data, not only the sample.
    """

    name: str
    title: str
    question: str
    figures: Sequence[str]
    entries: Sequence[Entry]


@dataclass(frozen=True)
class Verdict:
    """What a reader of a sheet wrote."""

    text: str = NOT_READ
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_read(self) -> bool:
        return self.text != NOT_READ


def verdicts_file(preset: str) -> Path:
    """`PRESET.toml` in `CS336_SHEETS`, else in `sheets/` beside the packages."""
    folder = os.environ.get("CS336_SHEETS")
    return (Path(folder) if folder else Path(__file__).resolve().parent.parent / "sheets") / f"{preset}.toml"


def read_verdicts(path: Path, sheets: Sequence[str]) -> dict[str, Verdict]:
    """The verdict of each sheet, NOT_READ where the file has none.

    Raises:
        UserError: the file is not valid, or speaks of a sheet that does not exist.
    """
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})") from None
    for name, table in written.items():
        if name not in sheets:
            raise UserError(f"{path}: there is no sheet {name!r}; there are {', '.join(sheets)}")
        if not isinstance(table, dict) or table.keys() - {"verdict", "labels"}:
            raise UserError(f'{path}: [{name}] holds verdict = "..." and labels = {{ADDRESS = LABEL}}, nothing else')
        labels = table.get("labels", {})
        if not isinstance(labels, dict) or not all(isinstance(label, str) for label in labels.values()):
            raise UserError(f'{path}: [{name}] labels is a table such as {{"http://a.test/" = "en"}}')
    return {
        name: Verdict(str(table.get("verdict", NOT_READ)).strip() or NOT_READ, table.get("labels", {}))
        for name in sheets
        for table in [written.get(name, {})]
    }


def agreement(sheet: Sheet, verdict: Verdict) -> str:
    """How often the reader's labels are what the filters say, with a 95 % interval; "" without labels."""
    labelled = [entry for entry in sheet.entries if entry.says and entry.url in verdict.labels]
    if not labelled:
        return ""
    agreed = sum(verdict.labels[entry.url] == entry.says for entry in labelled)
    low, high = wilson_interval(agreed, len(labelled))
    return f"{agreed} of {len(labelled)} labels agree with the filters ({low:.0%} to {high:.0%}, Wilson 95 %)"


def as_markdown(sheet: Sheet, verdict: Verdict) -> str:
    """One sheet for Dagster's UI: texts stand in fences, so nothing in them is drawn."""
    lines = [f"**{sheet.title}.** {sheet.question}", "", f"**Verdict:** {verdict.text}"]
    lines += [f"- {figure}" for figure in (*sheet.figures, agreement(sheet, verdict)) if figure]
    for number, entry in enumerate(sheet.entries, 1):
        facts = "; ".join(f"{name}: {value}" for name, value in _facts(entry, verdict).items())
        lines += ["", f"**{number}.** {_code(entry.url)} {_code(entry.place)}", "", facts]
        for what, text in entry.excerpts:
            lines += ["", f"{what}:", "```", excerpt(text).replace("```", "'''"), "```"]
    return "\n".join(lines)


def as_page(title: str, sheets: Sequence[Sheet], verdicts: Mapping[str, Verdict]) -> str:
    """All sheets as one HTML page that loads nothing; whatever pages hold is escaped, and no address is a link."""
    text = html.escape
    parts = [_HEAD.format(title=text(title)), f"<h1>{text(title)}</h1>\n<nav>"]
    parts += [f'<a href="#{text(sheet.name)}">{text(sheet.title)}</a>' for sheet in sheets]
    parts.append("</nav>")
    for sheet in sheets:
        verdict = verdicts[sheet.name]
        kind = "verdict" if verdict.is_read else "unread"
        parts.append(f'<section id="{text(sheet.name)}"><h2>{text(sheet.title)}</h2><p>{text(sheet.question)}</p>')
        parts.append(f'<p class="{kind}"><b>Verdict:</b> {text(verdict.text)}</p>')
        figures = [figure for figure in (*sheet.figures, agreement(sheet, verdict)) if figure]
        parts += ["<ul>", *(f"<li>{text(figure)}</li>" for figure in figures), "</ul>"] if figures else []
        for number, entry in enumerate(sheet.entries, 1):
            facts = "".join(f"<span>{text(k)} <b>{text(v)}</b></span>" for k, v in _facts(entry, verdict).items())
            parts.append(f"<article><h3>{number}. {text(entry.url)}</h3><p>{text(entry.place)}</p><p>{facts}</p>")
            for what, body in entry.excerpts:
                parts.append(f"<h4>{text(what)}</h4><pre>{text(excerpt(body))}</pre>")
            parts.append("</article>")
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>\n"])


def excerpt(text: str) -> str:
    """The beginning of a text and a stretch of its middle, without control characters.

    Pages begin with their menus; what they are about stands further on.
    """
    if len(text) > MAX_EXCERPT:
        middle = len(text) // 2
        text = f"{text[:_BEGINNING]}\n[...]\n{text[middle : middle + MAX_EXCERPT - _BEGINNING]}..."
    return without_controls(text)


def without_controls(text: str) -> str:
    """A page's text or address, which a terminal takes for no command; line breaks and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def replacements(text: str) -> list[tuple[str, str, str]]:
    """What masking replaces in a text: (placeholder, what stood there, the text around it)."""
    masked, found, done = mask_pii(text)[0], [], 0
    pieces = _PLACEHOLDER.split(masked)
    for placeholder, before, after in zip(_PLACEHOLDER.findall(masked), pieces, pieces[1:], strict=False):
        start = done + len(before)
        end = text.find(after, start + 1) if after else len(text)
        done = end if end >= 0 else len(text)
        if text[start:done] != placeholder:  # else it stood there before
            around = f"{text[max(start - _AROUND, 0) : start]}[{text[start:done]}]{text[done : done + _AROUND]}"
            found.append((placeholder.strip("|"), text[start:done], around))
    return found


def _facts(entry: Entry, verdict: Verdict) -> dict[str, str]:
    label = verdict.labels.get(entry.url)
    return dict(entry.facts) | ({"own label": label} if label is not None else {})


def _code(text: str) -> str:
    return f"`{text.replace('`', '%60')}`"


_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
nav a {{ margin-right: 1rem; }}
section {{ border-top: 2px solid #ccc; margin-top: 2rem; }}
article {{ margin: 1.5rem 0; }}
article p {{ margin: .2rem 0; color: #666; font-size: .85rem; }}
article span {{ margin-right: 1rem; }}
h3 {{ font-size: 1rem; margin: 0; overflow-wrap: anywhere; }}
h4 {{ font-size: .8rem; margin: .5rem 0 0; color: #666; }}
pre {{ background: #f6f6f4; padding: .6rem; margin: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }}
.verdict {{ background: #e8f3e8; padding: .6rem; white-space: pre-wrap; }}
.unread {{ background: #fbeedd; padding: .6rem; }}
</style></head><body>"""
