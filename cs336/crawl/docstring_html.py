"""Docstrings to HTML: paragraphs, headings, lists, definitions and code, from plain text.

Docstrings come in three styles (reST, Google, NumPy), mostly loosely followed. What all share is
indentation, so that carries the structure; markers only decide what a block is called.
"""

from __future__ import annotations

import html
import inspect
import re
import textwrap

_UNDERLINE = re.compile(r"([=\-~^*#+\"'`])\1{2,}\s*$")
_SECTION = re.compile(
    r"(Args|Arguments|Parameters|Keyword Args|Keyword Arguments|Attributes|Returns?|Yields?|Raises|Examples?|"
    r"Notes?|References?|See Also|Warnings?|Usage|Inputs?|Outputs?|Shape|Todo|Side Effects)\s*:\s*$"
)
_DIRECTIVE = re.compile(r"\.\. ([\w\-]+)::\s*(.*)$")
_CODE_DIRECTIVES = {"code", "code-block", "sourcecode", "highlight", "testcode", "doctest", "literalinclude", "math"}
_FIELD = re.compile(r":(\w[\w\- ]*?)(?:\s+([^:]+?))?:(?:\s+(.*))?$")
_BULLET = re.compile(r"([-*•+]|\(?\d{1,2}[.)])\s+(?=\S)")
_ROLE = re.compile(r":[\w:+\-]+:`([^`]+)`")
_CODE = re.compile(r"``(.+?)``|`([^`\n]+)`_{0,2}")
_STRONG = re.compile(r"\*\*([^*\n]+)\*\*")
_LOOKS_LIKE_CODE = re.compile(
    r"^\s*(>>>|\$ |def |class |import |from \w+ import|@|#|\w+ = |[{}\[\]()|+\-]+\s*$|[\w.]+\(.*\)\s*$)"
)
_MAX_DEPTH = 6  # deeper nesting than this is ASCII art


def docstring_html(docstring: str) -> str:
    """HTML of one docstring, without any enclosing element.

    Wrapped lines are joined into paragraphs; doctests, literal blocks and code become `<pre>`,
    section headings `<h4>`, bullets `<ul>`, parameters and NumPy's indented pairs `<dl>`.
    """
    return "\n".join(_blocks(inspect.cleandoc(docstring).splitlines(), 0))


def inline_html(text: str) -> str:
    """Escaped text with reST's inline markup as `<code>` and `<strong>`."""
    text = _ROLE.sub(lambda match: f"``{_role_target(match.group(1))}``", text)
    text = html.escape(text, quote=False)
    text = _CODE.sub(lambda match: f"<code>{match.group(1) or match.group(2)}</code>", text)
    return _STRONG.sub(r"<strong>\1</strong>", text)


def _role_target(target: str) -> str:
    """What a reader sees of a cross-reference: its title, or the last name after `~`."""
    if "<" in target:
        return target.partition("<")[0].strip() or target.strip("<>")
    return target.rpartition(".")[2] if target.startswith("~") else target.lstrip("!")


def _blocks(lines: list[str], depth: int) -> list[str]:
    out: list[str] = []
    literal_next = False
    i = 0
    while i < len(lines):
        line = lines[i]
        if not line.strip():
            i += 1
            continue
        if line[0].isspace():
            block, i = _indented_block(lines, i)
            out += (
                [_pre(block)] if literal_next or depth >= _MAX_DEPTH or _is_code(block) else _blocks(block, depth + 1)
            )
            literal_next = False
            continue
        literal_next = False
        if line.startswith((">>>", "```")) or _is_table_line(line):
            end = _end_of_verbatim(lines, i)
            out.append(_pre([one for one in lines[i:end] if not one.startswith("```")]))
            i = end
        elif _UNDERLINE.match(line):  # an overline, or a rule
            i += 1
        elif i + 1 < len(lines) and _UNDERLINE.match(lines[i + 1]):
            out.append(f"<h4>{inline_html(line.strip())}</h4>")
            i += 2
        elif _SECTION.match(line):
            block, i = _indented_block(lines, i + 1)
            out.append(f"<h4>{inline_html(line.strip().rstrip(':'))}</h4>")
            out += _definitions(block, depth + 1)
        elif match := _DIRECTIVE.match(line):
            block, i = _indented_block(lines, i + 1)
            out += _directive(match.group(1), match.group(2), block, depth + 1)
        elif line.startswith(".. "):  # a reST comment or link target
            _, i = _indented_block(lines, i + 1)
        elif _FIELD.match(line):
            items, i = _items(lines, i, _FIELD)
            out.append("<dl>" + "".join(_field(item, depth + 1) for item in items) + "</dl>")
        elif _BULLET.match(line):
            items, i = _items(lines, i, _BULLET)
            out.append("<ul>" + "".join(f"<li>{_item_body(item, depth + 1)}</li>" for item in items) + "</ul>")
        elif (
            not line.rstrip().endswith("::")
            and i + 1 < len(lines)
            and lines[i + 1][:1].isspace()
            and lines[i + 1].strip()
        ):
            block, i = _indented_block(lines, i + 1)
            body = "".join(_blocks(block, depth + 1)) if depth < _MAX_DEPTH else _pre(block)
            out.append(f"<dl><dt>{inline_html(line.strip())}</dt><dd>{body}</dd></dl>")
        else:
            end = _end_of_paragraph(lines, i)
            text = " ".join(one.strip() for one in lines[i:end])
            literal_next = text.endswith("::")
            if literal_next:
                text = text[:-1] if text != "::" else ""
            if text:
                out.append(f"<p>{inline_html(text)}</p>")
            i = end
    return out


def _indented_block(lines: list[str], start: int) -> tuple[list[str], int]:
    """Lines from `start` that are indented or blank, dedented; and where they end."""
    end = start
    while end < len(lines) and (not lines[end].strip() or lines[end][0].isspace()):
        end += 1
    block = textwrap.dedent("\n".join(lines[start:end])).strip("\n").splitlines()
    return block, end


def _end_of_verbatim(lines: list[str], start: int) -> int:
    if lines[start].startswith("```"):
        for end in range(start + 1, len(lines)):
            if lines[end].startswith("```"):
                return end + 1
        return len(lines)
    end = start
    while end < len(lines) and lines[end].strip():
        end += 1
    return end


def _end_of_paragraph(lines: list[str], start: int) -> int:
    end = start + 1
    while end < len(lines) and lines[end].strip():
        line = lines[end]
        if line.startswith((">>>", "```", ".. ")) or _BULLET.match(line) or _FIELD.match(line) or _SECTION.match(line):
            break
        if _UNDERLINE.match(line) or (end + 1 < len(lines) and _UNDERLINE.match(lines[end + 1])):
            break
        if lines[end - 1].rstrip().endswith("::"):
            break
        end += 1
    return end


def _is_table_line(line: str) -> bool:
    return line.startswith(("+--", "+==", "|")) or bool(re.match(r"[=\-]{2,}( +[=\-]{2,})+\s*$", line))


def _is_code(block: list[str]) -> bool:
    lines = [line for line in block if line.strip()]
    return 2 * sum(bool(_LOOKS_LIKE_CODE.match(line)) for line in lines) >= len(lines)


def _pre(block: list[str]) -> str:
    return f"<pre>{html.escape(chr(10).join(block).rstrip(), quote=False)}</pre>" if block else ""


def _items(lines: list[str], start: int, marker: re.Pattern[str]) -> tuple[list[list[str]], int]:
    """Consecutive items that begin with `marker`, each with its indented continuation lines."""
    items: list[list[str]] = []
    i = start
    while i < len(lines):
        if marker.match(lines[i]):
            items.append([lines[i]])
        elif lines[i][:1].isspace() and lines[i].strip():
            items[-1].append(lines[i])
        elif not lines[i].strip() and i + 1 < len(lines) and lines[i + 1].strip():
            if not (marker.match(lines[i + 1]) or lines[i + 1][0].isspace()):
                break
            items[-1].append("")
        else:
            break
        i += 1
    return items, i


def _item_body(item: list[str], depth: int) -> str:
    return _hanging(_BULLET.sub("", item[0], count=1), item[1:], depth)


def _field(item: list[str], depth: int) -> str:
    match = _FIELD.match(item[0])
    assert match is not None
    kind, name, text = match.groups()
    label = name or kind.capitalize()
    return f"<dt>{inline_html(label)}</dt><dd>{_hanging(text or '', item[1:], depth)}</dd>"


def _hanging(first: str, rest: list[str], depth: int) -> str:
    """A first line and its indented continuation: one text if it is one paragraph, else blocks."""
    lines = [first, *textwrap.dedent("\n".join(rest)).splitlines()]
    if depth >= _MAX_DEPTH or all(line.strip() and not _BULLET.match(line) for line in lines[1:]):
        return inline_html(" ".join(line.strip() for line in lines if line.strip()))
    return "".join(_blocks(lines, depth))


def _directive(name: str, argument: str, block: list[str], depth: int) -> list[str]:
    if name in _CODE_DIRECTIVES:
        return [_pre(block)] if block else []
    title = name.replace("-", " ").replace("version", "version ").strip().capitalize()
    head = f"<h5>{inline_html(title)}</h5>"
    text = [f"<p>{inline_html(argument)}</p>"] if argument else []
    return [head, *text, *(_blocks(block, depth) if depth < _MAX_DEPTH else [_pre(block)])]


def _definitions(block: list[str], depth: int) -> list[str]:
    """Google's sections: `name (type): text` with deeper continuation lines; else ordinary blocks."""
    starts = [line for line in block if line.strip() and not line[0].isspace()]
    pairs = [re.match(r"(\*{0,2}[\w.]+(?: ?\([^)]*\))?)\s*:\s+(\S.*)$", line) for line in starts]
    if not block or block[0][0].isspace() or not all(pairs):
        return _blocks(block, depth)
    items: list[list[str]] = []
    for line in block:
        if line.strip() and not line[0].isspace():
            items.append([line])
        else:
            items[-1].append(line)
    rows = []
    for match, item in zip(pairs, items, strict=True):
        assert match is not None
        while item and not item[-1].strip():
            item.pop()
        rows.append(f"<dt>{inline_html(match.group(1))}</dt><dd>{_hanging(match.group(2), item[1:], depth)}</dd>")
    return ["<dl>" + "".join(rows) + "</dl>"]
