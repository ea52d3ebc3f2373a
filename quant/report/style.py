"""The style sheet of `report.html`: light and dark, on a phone and on a laptop, and on paper."""

from __future__ import annotations

# Series colours are those of Okabe and Ito, which colour-blind readers can tell apart, lightened on dark ground.
STYLE = """
:root { color-scheme: light dark;
  --paper: #fff; --ink: #1b1f24; --muted: #59636e; --grid: #e3e7eb; --panel: #f5f7f9; --line: #d5dae0;
  --accent: #0a58a8; --accent-soft: #e6f0fb; --band: #f3dfae; --added: #d7f2dd; --removed: #fbdfdf;
  --series-1: #0072b2; --series-2: #c25100; --series-3: #00805c; --series-4: #a3477b; --series-5: #8a6d00;
  --series-6: #30343a }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171b; --ink: #e6e9ed; --muted: #a0a9b4; --grid: #2b3138; --panel: #1d2228; --line: #39414a;
  --accent: #6db3f5; --accent-soft: #1a2f45; --band: #4d4220; --added: #16402a; --removed: #522626;
  --series-1: #56b4e9; --series-2: #f0883e; --series-3: #2fc49a; --series-4: #dd8cb9; --series-5: #e3c33a;
  --series-6: #c3c9d0 } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100% }
body { margin: 0 auto; max-width: 70rem; padding: 1rem 0.75rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere }
@media (min-width: 48rem) { body { padding: 2rem 2rem 4rem } }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 0.25rem; text-wrap: balance }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.75rem 0 0.5rem; padding-top: 0.75rem;
  border-top: 1px solid var(--line) }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0.25rem }
p, ul, ol, dl { margin: 0.5rem 0; max-width: 48rem }
ul, ol { padding-left: 1.4rem } li { margin: 0.25rem 0 }
.sub, figcaption, .note { color: var(--muted) }
.sub, .note { margin-top: 0 }
.choice { background: var(--accent-soft); border-left: 4px solid var(--accent); border-radius: 4px;
  padding: 0.75rem 1rem; margin: 1.25rem 0 }
.choice h2 { border: 0; margin: 0; padding: 0; font-size: 1rem; font-weight: 600; color: var(--muted) }
.choice .name { font-size: 1.5rem; font-weight: 700; line-height: 1.25; margin: 0 0 0.5rem }
.facts { display: flex; flex-wrap: wrap; gap: 0.5rem 1.75rem; margin: 0.75rem 0 }
.facts div { min-width: 6.5rem } .facts dt { color: var(--muted); font-size: 0.9rem }
.facts dd { margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums }
.facts dd small { display: block; font-size: 0.9rem; font-weight: 400; color: var(--muted) }
.plots { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)) }
figure { margin: 0; max-width: 30rem }
figcaption { font-size: 0.95rem; line-height: 1.4 }
svg.plot { display: block; width: 100%; height: auto; overflow: visible; font-family: inherit }
.scroll { overflow-x: auto; max-width: 100%; margin: 0.75rem 0; border: 1px solid var(--line); border-radius: 4px }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 0.9375rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: 0.4rem 0.6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--grid);
  background: var(--paper); white-space: nowrap }
thead th { vertical-align: bottom; background: var(--panel); font-weight: 600; white-space: normal; min-width: 5.25rem;
  border-bottom: 1px solid var(--line) }
tbody tr:last-child > * { border-bottom: 0 }
.word { text-align: left }
thead .number, .number { text-align: right; min-width: 2.2rem; color: var(--muted) }
td.number { white-space: normal } td.number span { white-space: nowrap }
.name { overflow-wrap: anywhere }
td.word { white-space: normal; min-width: 4.5rem }
th.name { position: sticky; left: 0; z-index: 1; font-weight: 600; white-space: normal; min-width: 8.5rem;
  max-width: 14rem; text-align: left; box-shadow: 1px 0 0 var(--line) }
@media (min-width: 48rem) { th.name { min-width: 12rem; max-width: 20rem } }
td small { display: block; font-size: 0.875rem; color: var(--muted) }
tr.chosen > * { background: var(--accent-soft) }
tr.reference > * { background: var(--panel) }
.tag { display: inline-block; font-size: 0.875rem; font-weight: 400; color: var(--accent) }
tr.reference .tag { color: var(--muted) }
dl.terms dt, dl.pairs dt { font-weight: 600; margin-top: 0.5rem } dl.terms dd, dl.pairs dd { margin: 0 }
@media (min-width: 48rem) { dl.terms, dl.pairs { display: grid; grid-template-columns: 11rem 1fr; gap: 0.35rem 1rem }
  dl.terms dt, dl.pairs dt { margin: 0 } }
details { margin: 0.75rem 0 } summary { cursor: pointer; color: var(--accent) }
.clip { border: 1px solid var(--line); border-radius: 4px; padding: 0.75rem 1rem; margin: 1rem 0 }
.clip h3 { margin: 0 } .clip p { margin: 0.25rem 0; max-width: none }
.says { margin: 0.6rem 0 0; padding-left: 0.75rem; border-left: 3px solid var(--line) }
.says.base { border-color: var(--accent) }
.who { color: var(--muted); font-size: 0.9rem; line-height: 1.35 }
.said { white-space: pre-wrap; unicode-bidi: isolate }
ins { background: var(--added); text-decoration: underline; text-decoration-thickness: 2px; font-weight: 600;
  border-radius: 2px }
del { background: var(--removed); text-decoration: line-through; border-radius: 2px }
.quote { background: var(--panel); border: 1px solid var(--line); border-radius: 4px; padding: 0.25rem 1rem 0.75rem;
  margin-top: 2.75rem }
.quote h2 { border: 0; margin: 0; padding-top: 0.5rem }
@media print { details > * { display: block } .scroll { overflow: visible } }
"""
