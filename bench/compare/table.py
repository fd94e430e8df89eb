"""Writes Markdown tables, SVG bar charts and JSON results, without a library."""

import json
from html import escape
from math import floor, log10


def number(value, digits=0):
    if value is None:
        return "–"
    if digits:
        return f"{value:.{digits}f}"
    return f"{value:,.0f}".replace(",", " ")


def markdown(head, rows):
    """Returns a Markdown table: first column left-aligned, the others right-aligned."""
    rule = ["---", *("---:" for _ in head[1:])]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def bars(title, unit, rows):
    """Returns an SVG of horizontal bars on a logarithmic scale. Rows are (name, value, is_keypeg)."""
    rows = [(name, value, ours) for name, value, ours in rows if value]
    if not rows:
        return ""
    least = 10 ** floor(log10(min(value for _, value, _ in rows)))
    most = max(value for _, value, _ in rows)
    left, width, line, top = 330, 480, 26, 56
    height = top + line * len(rows) + 34
    span = log10(most / least) or 1
    x = lambda value: left + width * log10(value / least) / span
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 110} {height}" '
        f'font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="{escape(title)}">',
        "<style>text{fill:#1f2933}.quiet{fill:#616e7c}.ours{fill:#2563ab}.theirs{fill:#9aa5b1}line{stroke:#cbd2d9}"
        "@media(prefers-color-scheme:dark){text{fill:#e4e7eb}.quiet{fill:#9aa5b1}.ours{fill:#6ea8e6}"
        ".theirs{fill:#616e7c}line{stroke:#3e4c59}}</style>",
        f'<text x="8" y="22" font-size="16" font-weight="600">{escape(title)}</text>',
        f'<text x="8" y="40" class="quiet">{escape(unit)}; each grid line is ten times the one before</text>',
    ]
    mark = least
    while mark <= most:
        parts.append(f'<line x1="{x(mark):.1f}" y1="{top - 6}" x2="{x(mark):.1f}" y2="{height - 26}"/>')
        parts.append(f'<text x="{x(mark):.1f}" y="{height - 10}" text-anchor="middle" class="quiet">{number(mark)}</text>')
        mark *= 10
    for index, (name, value, ours) in enumerate(rows):
        y = top + line * index
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        kind = "ours" if ours else "theirs"
        parts.append(f'<rect x="{left}" y="{y}" width="{max(x(value) - left, 1):.1f}" height="18" rx="2" class="{kind}"/>')
        parts.append(f'<text x="{x(value) + 6:.1f}" y="{y + 14}">{number(value, 0 if value >= 10 else 2)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def write_json(path, results, member):
    """Writes the results as JSON, with one line for each entry of the member named `member`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inner = results[member]
    is_list = isinstance(inner, list)
    lines = [json.dumps(one) for one in inner] if is_list else [f"{json.dumps(str(k))}: {json.dumps(v)}" for k, v in inner.items()]
    rest = json.dumps({name: value for name, value in results.items() if name != member})
    begin, end = "[]" if is_list else "{}"
    path.write_text(f'{rest[:-1]}, "{member}": {begin}\n' + ",\n".join(lines) + f"\n{end}}}\n")


def replace_section(path, name, text):
    """Replaces a section of a Markdown file between its markers; appends it if the file has no markers."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    whole = path.read_text()
    section = f"{begin}\n{text.strip()}\n{end}"
    if begin in whole and end in whole:
        whole = whole[: whole.index(begin)] + section + whole[whole.index(end) + len(end):]
    else:
        whole = whole.rstrip() + "\n\n" + section + "\n"
    path.write_text(whole)
