"""Parts of an HTML page that needs nothing but itself: no script, no style, font or picture from elsewhere."""

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
body { margin: 2rem auto; max-width: 76rem; padding: 0 1.5rem; background: #fff; color: #1a1a1a;
       font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.measured { color: #555; margin-top: 0; }
p.verdict { padding: 0.6rem 0.9rem; border-left: 0.4rem solid; }
p.good { border-color: #009e73; background: #eef8f4; } p.bad { border-color: #d55e00; background: #fdf1ea; }
table { border-collapse: collapse; margin: 0.6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th { background: #f5f5f5; } th:first-child, td:first-child, td.text { text-align: left; }
td.text { overflow-wrap: anywhere; max-width: 40rem; } td.doubtful { color: #a34400; text-align: left; }
span.interval { display: block; color: #666; font-size: 0.85em; }
div.wide { overflow-x: auto; } figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
summary { cursor: pointer; font-weight: 600; margin: 0.8rem 0; }
"""


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """The whole page; the browser is told to fetch nothing either."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def heading(level: int, text: str) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, of a class if one is given."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def cell(text: str, interval: str | None = None, kind: str = "") -> str:
    """A cell of a table, with a smaller line below."""
    below = f'<span class="interval">{escape(interval)}</span>' if interval else ""
    return f'<td class="{kind}">{escape(text)}{below}</td>' if kind else f"<td>{escape(text)}{below}</td>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of ready cells; ``head`` is text, and may be empty."""
    top = "<thead><tr>" + "".join(f"<th>{escape(text)}</th>" for text in head) + "</tr></thead>" if head else ""
    lines = "".join("<tr>" + "".join(row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table>{top}<tbody>\n{lines}</tbody></table></div>'


def picture(uri: str, description: str) -> str:
    """A figure; ``description`` is read to those who do not see it."""
    return f'<figure><img src="{uri}" alt="{escape(description)}"></figure>'


def folded(summary: str, parts: Iterable[str]) -> str:
    """What is shown when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>\n" + "\n".join(parts) + "\n</details>"
