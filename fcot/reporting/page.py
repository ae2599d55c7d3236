"""Write the report's page: one self-contained HTML file, which opens from disk and needs no network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from fcot.base.files import write_atomic
from fcot.reporting.document import Block, Chart, Code, Document, Paragraph, Section
from fcot.reporting.samples import ProblemsOf, Samples, read_samples
from fcot.reporting.table import Table

LIMIT_BYTES = 30_000_000
_ASSETS = Path(__file__).with_name("page")
_SCRIPTS = ("elements", "charts", "browsing", "marks", "samples", "rounds", "start")  # in order: later scripts use earlier ones
_BROWSERS = {"samples": "Rationales", "rounds": "Paths through the rounds"}  # sections that the page fills, and their headings
_LEAST_BYTES = 100_000  # for samples, even if the rest exceeds the limit
# Control characters are shown as their Unicode pictures, so that they are visible and no HTML parser interprets them.
# Unpaired surrogates become replacement characters.
_VISIBLE = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)
_VISIBLE |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def write_page(document: Document, path: Path, limit_bytes: int = LIMIT_BYTES, problems_of: ProblemsOf | None = None) -> None:
    """Write a report as one file.

    Args:
        document: The report.
        path: The file, written atomically.
        limit_bytes: Maximum size of the file. Samples that do not fit are left out, and the page says how many are shown.
        problems_of: Loads the problems of a run's dataset, for the questions that it trained on; None shows fewer of them.

    Raises:
        FcotError: The file cannot be written.
    """
    scripts = {"page": _page_script(), "vega": _vega() if _charts(document) else ""}
    fixed = _filled(document, Samples(b"", 0, 0, 0, ()), scripts)
    available = limit_bytes - sum(len(part.encode()) for part in fixed)
    samples = read_samples(document.runs, max(available, _LEAST_BYTES) // 4 * 3 - 1000, problems_of)
    write_atomic(path, _filled(document, samples, scripts))


def _filled(document: Document, samples: Samples, scripts: dict[str, str]) -> list[str]:
    """The page's template with its placeholders filled, in pieces to be joined."""
    sections = _sections(document, samples)
    places = {
        "policy": _policy(scripts.values()),
        "title": _text(document.title),
        "style": _asset("page.css"),
        "answer": _prose(document.answer),
        "missing": _missing(document.missing),
        "contents": "".join(f'<li><a href="#{_text(section.id)}">{_text(section.title)}</a></li>' for section in sections),
        "sections": "".join(_section(section, samples) for section in sections),
        "samples": base64.b64encode(samples.packed).decode("ascii"),
        **scripts,
    }
    parts = re.split(r"\{\{(\w+)\}\}", _asset("page.html"))
    return [places[part] if number % 2 else part for number, part in enumerate(parts)]


def _sections(document: Document, samples: Samples) -> list[Section]:
    """The sections of the page: the document's, and a browser's section if it has data, at the end unless the document places it."""
    filled = {"samples": samples.shown > 0 or bool(samples.warnings), "rounds": samples.paths > 0}
    placed = {section.id for section in document.sections}
    extra = [Section(name, title) for name, title in _BROWSERS.items() if filled[name] and name not in placed]
    return [section for section in (*document.sections, *extra) if section.blocks or filled.get(section.id)]


def _section(section: Section, samples: Samples) -> str:
    """A section as HTML, with an empty element in which the script builds the section's browser."""
    body = "".join(map(_block, section.blocks))
    if section.id == "samples":
        body += _shown(samples)
    if {"samples": samples.shown, "rounds": samples.paths}.get(section.id):
        body += f'<div class="browser" data-browser="{section.id}"><p class="note">Loading; this needs JavaScript.</p></div>'
    name = _text(section.id)
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{_text(section.title)}</h2>{body}</section>'


def _shown(samples: Samples) -> str:
    """How many of the problems the page holds, and which files could not be read."""
    note = (
        f'<p class="note">{samples.shown:,} of {samples.total:,} problems, to keep the file small: first those on which runs disagree or '
        "are wrong, spread evenly over tasks.</p>"
    )
    warnings = "".join(f"<li>{_text(warning)}</li>" for warning in samples.warnings)
    return (note if samples.shown < samples.total else "") + (f'<ul class="warnings">{warnings}</ul>' if warnings else "")


def _missing(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    lines = "".join(f"<li>{_text(line)}</li>" for line in missing)
    return f'<div class="missing"><p>Not in this report:</p><ul>{lines}</ul></div>'


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return f'<div class="table">{_visible(block.to_html())}</div>'
    if isinstance(block, Paragraph):
        return _prose(block.text)
    return _code(block) if isinstance(block, Code) else _chart(block)


def _code(block: Code) -> str:
    """Text to copy; the script adds the copy button."""
    text = f'<pre tabindex="0" class="code"><code>{_text(block.text)}</code></pre>'
    title = f"<bdi>{_text(block.title)}</bdi>"
    if block.folded:
        return f'<details class="block"><summary>{title}</summary><div class="copied">{text}</div></details>'
    return f'<div class="block"><h3>{title}</h3><div class="copied">{text}</div></div>'


def _chart(block: Chart) -> str:
    """A chart that the script draws."""
    height = block.spec.get("height")
    space = f' style="min-height:{height + 60}px"' if isinstance(height, int) else ""  # the page does not jump when it is drawn
    return (
        f'<figure><figcaption><bdi>{_text(block.title)}</bdi></figcaption><div class="plot"{space}></div>'
        f'<script type="application/json">{_script_json(block.spec)}</script></figure>'
    )


def _charts(document: Document) -> bool:
    return any(isinstance(block, Chart) for section in document.sections for block in section.blocks)


def _prose(text: str) -> str:
    """Text as paragraphs; a number and its percent sign stay on one line."""
    together = re.sub(r"(?<=[0-9]) %", "\N{NO-BREAK SPACE}%", text)
    return "".join(f'<p dir="auto">{_text(part)}</p>' for part in together.split("\n\n"))


def _text(text: str) -> str:
    """Untrusted text as HTML."""
    return html.escape(_visible(text))


def _visible(text: str) -> str:
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def _script_json(value: object) -> str:
    """JSON for a ``<script>`` element, which no text in it can close."""
    return json.dumps(value, separators=(",", ":"), default=str).replace("<", "\\u003c")


def _policy(scripts: Iterable[str]) -> str:
    """A Content-Security-Policy that allows these scripts only and no connections; inline styles are needed by Vega."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts if text)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _page_script() -> str:
    """The page's own scripts, joined in one function scope."""
    return "\n".join(["'use strict';", "(() => {", *(_asset(f"{name}.js") for name in _SCRIPTS), "})();", ""])


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script, which defines ``vegaEmbed``."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("</script", "<\\/script").replace("<!--", "<\\!--")
