"""Pieces of an HTML page that opens anywhere. No script, no host, no font; plots are inline SVG.

What a model wrote is hostile text: everything passes through `esc`, and the page forbids itself all loading.
"""

from typing import Any

from hadal.report.charts import esc
from hadal.report.style import CSS
from hadal.report.words import bounds, cut, percent, printable
from hadal.text.parse import parse_response

Json = dict[str, Any]


def document(title: str, sections: list[str]) -> str:
    """A page of sections, which may load nothing."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
        "'unsafe-inline'\">"
        '<meta name="color-scheme" content="light dark">'
        f"<title>{esc(title)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def figure(title: str, body: str, keys: str = "", note: str = "") -> str:
    tail = f'<p class="note">{esc(note)}</p>' if note else ""
    return f"<figure><figcaption><b>{esc(title)}</b>{keys}</figcaption>{body}{tail}</figure>"


def table(head: list[str], rows: list[list[str]], css: str = "") -> str:
    """Cells are HTML already; the first of a row is its heading."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    table = f'<table class="{css}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def share(estimate: Json | None) -> str:
    if not estimate or estimate.get("accuracy") is None:
        return "–"
    return f"{percent(estimate['accuracy'])} <small>{bounds(estimate)}</small>"


def findings(cards: list[Json]) -> str:
    """A card for each thing that was asked of the run."""
    return "".join(
        f'<article class="finding {"yes" if f["changed"] else "no"}"><p class="kind">{esc(f["name"])}</p>'
        f'<h3>{esc(f["question"])}</h3><p class="verdict">{esc(f["verdict"])}</p>'
        + "".join(f"<p>{esc(sentence)}</p>" for sentence in f["sentences"])
        + "</article>"
        for f in cards
    )


def colour(kind: str) -> str:
    """The class of a model that a stage of this kind left: what is begun from, or what has learnt."""
    return "base" if kind in ("pretrain", "checkpoint") else "rl"


def response(text: str) -> str:
    parsed = parse_response(printable(text))
    parts = []
    if parsed.thought is not None:
        parts.append(f'<p class="thought">{esc(cut(parsed.thought)) or "(an empty thought)"}</p>')
    if not parsed.closed:
        parts.append('<p class="answer none">(never came to an answer)</p>')
    else:
        parts.append(f'<p class="answer">{esc(cut(parsed.answer)) or "(no answer)"}</p>')
    return "".join(parts)
