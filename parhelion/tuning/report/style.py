"""How the page looks: system fonts, light and dark, one column on a narrow screen."""

from __future__ import annotations

from parhelion.tuning.report.marks import DARK, LIGHT, SHAPES, colour_rules

_LIGHT = "--page:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d8dee4;--band:#f5f7f9;--link:#0550ae;--limit:#8c959f;"
_DARK = "--page:#14171a;--ink:#e6e9ec;--soft:#a3acb5;--line:#343a41;--band:#1c2024;--link:#79b8ff;--limit:#7d8791;"

_RULES = """
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif }
h1, h2, h3, p, a, figcaption { overflow-wrap: anywhere }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; letter-spacing: -.01em }
h2 { margin: 3rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); font-size: 1.3rem }
h3 { margin: 2.25rem 0 .25rem; font-size: 1.1rem }
h4 { margin: 1.5rem 0 .5rem; font-size: .9rem; font-weight: 500; color: var(--soft) }
h3 code, h4 code { font-weight: 600 }
p { margin: .5rem 0; max-width: 46rem }
a { color: var(--link) }
code { font: .93em ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  overflow-wrap: anywhere }
nav ul { display: flex; flex-wrap: wrap; gap: .35rem 1.25rem; margin: .5rem 0; padding: 0; list-style: none }
.soft, figcaption, caption { color: var(--soft) }
.sources { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .75rem;
  margin: 1rem 0 }
article { padding: .7rem .9rem; background: var(--band); border-radius: .4rem }
article h2 { margin: 0 0 .3rem; padding: 0; border: 0; font-size: 1rem }
dl { margin: 0; font-size: .85rem }
dl div { display: grid; grid-template-columns: 4.75rem minmax(0, 1fr) }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
.panel { display: grid; grid-template-columns: minmax(0, 30rem) minmax(0, 1fr); gap: .5rem 1.75rem;
  align-items: start; margin: .5rem 0 1.75rem }
figure { margin: 0 }
figcaption { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .83rem }
figcaption span { min-width: 0 }
.scroll { overflow-x: auto; max-width: 100%; margin: .75rem 0 1.5rem }
.panel .scroll { margin: 0 }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
caption { padding: 0 0 .3rem; text-align: left; font-size: .83rem }
th, td { padding: .22rem .65rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap }
table code { overflow-wrap: normal }
th { font-weight: 600 }
thead th { white-space: nowrap; background: var(--band); vertical-align: bottom }
tbody th { font-weight: 500 }
.cost tbody th { white-space: normal; min-width: 9rem }
.words th, .words td, .cost th:first-child { text-align: left }
.words th, .words td { white-space: normal; min-width: 5rem }
.no { color: var(--soft); font-style: italic }
details { margin: 1rem 0 }
summary { cursor: pointer }
.icon { width: .8em; height: .8em; margin-right: .3em; vertical-align: -.05em; overflow: visible }
figure > svg { display: block; width: 100%; height: auto }
svg text { fill: var(--soft); font-size: 11.5px; font-family: inherit }
.grid { stroke: var(--line); stroke-width: 1 }
.axis { stroke: var(--limit); stroke-width: 1 }
.floor { fill: none; stroke: var(--limit); stroke-width: 1.5 }
.floor-area { fill: var(--limit); opacity: .16 }
.series { stroke: currentColor; stroke-width: 2; stroke-linecap: round }
.passes { stroke-dasharray: 1 5 }
.spread { stroke: currentColor; stroke-width: 1.5 }
.mark { fill: currentColor; stroke: var(--page); stroke-width: 1 }
.target { fill: transparent }
@media (max-width: 56rem) { .panel { grid-template-columns: minmax(0, 1fr) } th, td { padding: .22rem .4rem } }
@media print { .panel { break-inside: avoid } }
"""


def style_sheet() -> str:
    """All of the page's CSS."""
    colours = "".join(f".s{place} {{ color: var(--s{place}) }}\n" for place in range(len(SHAPES)))
    return (
        f":root {{ color-scheme: light dark; {_LIGHT}{colour_rules(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_DARK}{colour_rules(DARK)} }} }}\n{_RULES}{colours}"
    )
