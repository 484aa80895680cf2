"""The words, tables and pictures of a report as HTML.

One file without scripts, whose pictures stand in it. Every text that comes
from outside goes through :func:`html.escape` here, and stands in an element
with a direction of its own, as captions can be of any script.
"""

import base64
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from .examples import Direction, Example, RankedItem
from .frames import FRAMES, Footage

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fff; --card: #f6f8fa; --line: #d8dee4; --text: #1f2328;
  --quiet: #59636e; --link: #0757b5; --right: #116329; --right-ground: #dafbe1;
  --bar: #4c86c6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f1318; --card: #181e26; --line: #343c47; --text: #e8ecf1;
    --quiet: #a0aab6; --link: #7ab7ff; --right: #62d57c;
    --right-ground: #12331d; --bar: #4c86c6;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif;
}
header, main { max-width: 78rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
main { padding-bottom: 3rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.35rem; margin: 0 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .75rem; }
h4 { font-size: .85rem; font-weight: 400; color: var(--quiet); margin: 0; }
p { margin: 0 0 .75rem; max-width: 46rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
h1, dd, .text, .name { overflow-wrap: anywhere; }
.quiet, dt { color: var(--quiet); }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; padding: .5rem; z-index: 2;
  background: var(--ground); }
nav {
  position: sticky; top: 0; z-index: 1; background: var(--ground);
  border-bottom: 1px solid var(--line); margin-top: 1rem;
}
nav ul {
  display: flex; gap: .25rem 1.5rem; list-style: none; overflow-x: auto;
  max-width: 78rem; margin: 0 auto; padding: .6rem 1.25rem;
  white-space: nowrap;
}
section { padding-top: 2rem; }
.wide { overflow-x: auto; margin-bottom: .75rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--line);
  text-align: right; font-weight: normal; }
thead th { color: var(--quiet); }
th:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
.metrics td { font-weight: 600; }
.columns { display: grid; gap: 1.5rem 3rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.ranks { width: 100%; }
.ranks td { white-space: nowrap; }
.ranks td:last-child { width: 60%; padding-right: 0; }
.bar { display: block; height: 1.1rem; background: var(--bar);
  border-radius: 0 3px 3px 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem;
  margin: 0; font-size: .9rem; }
dd { margin: 0; }
.examples { display: grid; gap: 1.25rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
article { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 1rem; min-width: 0; }
.query { margin: .15rem 0 .75rem; }
.query.text { font-size: 1.1rem; line-height: 1.35; font-weight: 600; }
ol, .below { list-style: none; margin: 0; padding: 0; }
.hit { margin: 0 0 .5rem; padding: .4rem .5rem; border-radius: 6px;
  border-left: 4px solid transparent; }
.hit.right { border-left-color: var(--right);
  background: var(--right-ground); }
.below { border-top: 1px dashed var(--quiet); padding-top: .6rem; }
.hit .text { margin: 0; }
.line { display: flex; gap: .1rem .75rem; flex-wrap: wrap; font-size: .85rem;
  align-items: baseline; margin-bottom: .15rem; }
.name { color: var(--quiet); font-size: .85rem; }
.line .name { flex: 1 1 10rem; min-width: 0; }
.mark { color: var(--right); font-weight: 700; }
.strip { display: block; width: 100%; height: auto; border-radius: 3px;
  outline: 1px solid var(--line); }
.missing { display: grid; place-items: center; min-height: 4.5rem;
  border: 1px dashed var(--quiet); color: var(--quiet); font-size: .85rem; }
summary { cursor: pointer; }
@media (max-width: 30rem) {
  header, main { padding-left: .9rem; padding-right: .9rem; }
  nav ul { padding-left: .9rem; padding-right: .9rem; column-gap: .9rem; }
  th, td { padding: .35rem .3rem; font-size: .85rem; }
  .metrics th:first-child { white-space: normal; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  article { padding: .75rem; }
}
@media print { nav, .skip { display: none; } article { break-inside: avoid; } }
"""

DIRECTIONS = dict(t2v='Text to video', v2t='Video to text')
LONG = 280  # characters of a caption that are shown at once


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        name (str): Where links lead to.
        title (str): Its heading.
        html (str): What it holds.
    """

    name: str
    title: str
    html: str


def page(title: str, facts: dict[str, str], sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title (str): Its title.
        facts (dict[str, str]): What was tested, by name.
        sections (Sequence[Section]): Its parts.

    Returns:
        str: HTML.
    """
    rows = ''.join(
        f'<dt>{escape(name)}</dt><dd dir="auto">{escape(value)}</dd>\n'
        for name, value in facts.items()
    )
    links = ''.join(f'<li><a href="#{part.name}">{part.title}</a></li>' for part in sections)
    parts = ''.join(
        f'<section id="{part.name}" '
        f'aria-labelledby="{part.name}-title">\n'
        f'<h2 id="{part.name}-title">{part.title}</h2>\n'
        f'{part.html}</section>\n'
        for part in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"/>
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">To the results</a>
<header><h1>{escape(title)}</h1>
<dl>
{rows}</dl>
</header>
<nav aria-label="Parts of this page"><ul>{links}</ul></nav>
<main id="main">
{parts}</main>
</body>
</html>
"""


def metrics_table(metrics: dict[str, float], notes: dict[str, str]) -> str:
    """A table of metrics, a row for each direction.

    Args:
        metrics (dict[str, float]): As ``evaluate_similarity`` gives them.
        notes (dict[str, str]): What rescored rows look at, by their prefix.

    Returns:
        str: HTML.
    """
    rows: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        row, name = key.rsplit('/', 1)
        rows.setdefault(row, {})[name] = value
    names = list(next(iter(rows.values())))
    head = ''.join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = ''
    for row, values in rows.items():
        prefix, way = row[:-3], row[-3:]
        body += (
            f'<tr><th scope="row">{escape(prefix)} {DIRECTIONS[way]}</th>'
            + ''.join(f'<td>{_number(values[name], ".2f", name == "MdR")}</td>' for name in names)
            + '</tr>\n'
        )
    notes = ''.join(
        f'<p>Rows with {escape(prefix)}/ look at {escape(looks_at)}: they are '
        'not to be compared with plain numbers, to which ranks and queries '
        'below belong.</p>\n'
        for prefix, looks_at in notes.items()
    )
    return (
        '<div class="wide" role="region" aria-label="Metrics" tabindex="0">'
        '<table class="metrics"><thead><tr><th scope="col">Direction</th>'
        f'{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'
        '<p class="quiet">R@k: percent of the queries that have a right item '
        'among their first k; higher is better. MdR, MnR: median and mean '
        f'rank of the best right item; lower is better.</p>\n{notes}'
    )


def rank_tables(directions: dict[str, Direction]) -> str:
    """How many queries have which rank, by direction."""
    tables = ''
    for way, direction in directions.items():
        queries = len(direction.counts.right)
        rows = ''
        for first, last, count in direction.histogram():
            span = f'{first:,}' if first == last else f'{first:,}–{last:,}'
            share = 100 * count / queries
            rows += (
                f'<tr><th scope="row">{span}</th>'
                f'<td>{_number(count, ",.1f", short=True)}</td>'
                f'<td>{share:.1f} %</td><td><span class="bar" '
                f'style="width:{share:.2f}%"></span></td></tr>\n'
            )
        tables += (
            f'<table class="ranks"><caption>{DIRECTIONS[way]}</caption><thead><tr>'
            '<th scope="col">Rank</th><th scope="col">Queries</th>'
            '<th scope="col">Share</th><td></td></tr></thead>'
            f'<tbody>\n{rows}</tbody></table>\n'
        )
    return (
        '<p class="quiet">The rank of the best right item of each query. A '
        'query whose right item ties with wrong ones counts in part for each '
        'rank that it can get, as in R@k.</p>\n'
        f'<div class="columns">{tables}</div>\n'
    )


def examples(way: str, direction: Direction, footage: Footage) -> str:
    """Queries with what they find.

    Args:
        way (str): ``'t2v'`` or ``'v2t'``.
        direction (Direction): What is found.
        footage (Footage): Names, frames and captions of it.

    Returns:
        str: HTML.
    """
    queries = len(direction.counts.right)
    article, looks_for = {
        't2v': (_caption_query, 'Each caption looks for its video'),
        'v2t': (_video_query, 'Each video looks for its captions, of which the best counts'),
    }[way]
    groups = (
        f'<p class="quiet">{looks_for}. Below a query stand the items with '
        'the highest scores, the right ones marked; where none of these is '
        'right, the best right one follows with its rank. Frames are '
        f'some of those that the model saw, at most {FRAMES}.</p>\n'
    )
    for name, chosen in direction.examples.items():
        articles = ''.join(article(example, direction.items, footage) for example in chosen)
        groups += (
            f'<h3>{len(chosen)} {name} of {queries:,} queries</h3>\n'
            f'<div class="examples {name}">\n{articles}</div>\n'
        )
    return groups


def _caption_query(example: Example, items: int, footage: Footage) -> str:
    hits, below = _hits(
        example, lambda hit: _strip(hit.item, footage), lambda hit: _name(footage.names[hit.item])
    )
    return (
        f'<article>{_rank(example, items, "videos")}'
        f'{_caption(footage.caption(example.query), "query")}'
        f'{hits}{below}</article>\n'
    )


def _video_query(example: Example, items: int, footage: Footage) -> str:
    hits, below = _hits(example, lambda hit: _caption(footage.caption(hit.item)), lambda hit: '')
    return (
        f'<article>{_rank(example, items, "captions")}'
        f'<div class="query">{_strip(example.query, footage)}'
        f'{_name(footage.names[example.query])}</div>'
        f'{hits}{below}</article>\n'
    )


def _rank(example: Example, items: int, what: str) -> str:
    ties = ''
    if example.tied:
        ties = f' ({example.tied:,} wrong with the same score)'
    rank = _number(example.rank, ',.2f', short=True)
    return f'<h4>Rank {rank} of {items:,} {what}{ties}</h4>\n'


def _hits(
    example: Example, show: Callable[[RankedItem], str], name: Callable[[RankedItem], str]
) -> tuple[str, str]:
    def one(tag: str, hit: RankedItem, place: str) -> str:
        mark = '<strong class="mark">✓ right</strong>' if hit.right else ''
        tie = '<span>tie</span>' if hit.tied else ''
        return (
            f'<{tag} class="hit{" right" if hit.right else ""}">'
            f'<div class="line"><span>{place}</span>{mark}'
            f'<span>score {_number(hit.score, ".4f")}</span>{tie}'
            f'{name(hit)}</div>{show(hit)}</{tag}>\n'
        )

    top = ''.join(one('li', hit, f'{place}.') for place, hit in enumerate(example.top, start=1))
    below = ''
    if example.below:
        rank = _number(example.rank, ',.2f', short=True)
        below = f'<div class="below">{one("div", example.below, f"at rank {rank}")}</div>\n'
    return f'<ol>\n{top}</ol>\n', below


def _strip(video: int, footage: Footage) -> str:
    name = footage.names[video]
    jpeg = footage.strip(video)
    if jpeg is None:
        return (
            '<div class="strip missing" role="img" aria-label="no picture '
            f'of {escape(name)}">This video cannot be read any more.'
            '</div>\n'
        )
    data = base64.b64encode(jpeg).decode()
    return (
        f'<img class="strip" alt="frames of {escape(name)}" src="data:image/jpeg;base64,{data}"/>\n'
    )


def _name(name: str) -> str:
    return f'<bdi class="name">{escape(name)}</bdi>'


def _caption(text: str, kind: str = '') -> str:
    """A caption; what is beyond ``LONG`` can be unfolded."""
    kind = f'text {kind}'.strip()
    if len(text) <= LONG:
        return f'<p class="{kind}" dir="auto">{escape(text)}</p>\n'
    cut = text.rfind(' ', LONG // 2, LONG)
    cut = LONG if cut < 0 else cut
    return (
        f'<details class="{kind}" dir="auto"><summary>'
        f'{escape(text[:cut])} …</summary>{escape(text[cut:])}'
        '</details>\n'
    )


def _number(value: float, form: str, short: bool = False) -> str:
    """A rounded number, with the whole one for machines."""
    shown = format(value, form)
    if short:
        shown = shown.rstrip('0').rstrip('.')
    return f'<data value="{value!r}">{shown}</data>'
