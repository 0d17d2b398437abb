"""The report's style sheet: one column of cards, light or dark by the reader's preference, readable on a phone."""

CSS = """
:root { --page: #f6f7f9; --card: #fff; --ink: #1b2230; --soft: #667085; --line: #e2e6ec;
  --hover: #1b223012;
  --c0: #2f6fde; --c1: #e07b1a; --c2: #22935c; --c3: #b5459a; --c4: #128fa6; --c5: #a68a00; --c6: #6d52d6; --c7: #c93a3a;
  --rest: #d5dae2; --good: #1c8a52; --bad: #c0392b; --warn: #fff4d6; --warn-ink: #6b4e00; }
@media (prefers-color-scheme: dark) { :root { --page: #0f131a; --card: #171d27; --ink: #e4e9f1; --soft: #8d99ab;
  --line: #29313d;
  --hover: #ffffff14; --c0: #6ea3ff; --c1: #f2a04c; --c2: #54c68c; --c3: #e183c8; --c4: #4ec3d8; --c5: #d9bf45; --c6: #a78dff;
  --c7: #ff7f76; --rest: #343d4b; --good: #54c68c; --bad: #ff7f76; --warn: #33290f; --warn-ink: #f0d48a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 4px; }
h3 { font-size: 14px; margin: 0 0 6px; font-weight: 600; }
p { margin: 4px 0 12px; } .soft { color: var(--soft); } .small { font-size: 13px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; margin: 0;
  min-width: 0; }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); margin-top: 12px; }
.fold { margin-top: 14px; }
.stack { display: grid; gap: 14px; margin-top: 12px; grid-template-columns: minmax(0, 1fr); }
.badge { display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: 13px; font-weight: 600; border: 1px solid; }
.finished { color: var(--good); } .failed { color: var(--bad); } .interrupted, .unfinished, .running { color: var(--c1); }
.note { background: var(--warn); color: var(--warn-ink); border-radius: 10px; padding: 10px 14px; margin-top: 14px; }
.hero { display: grid; gap: 14px; grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); margin-top: 20px; }
@media (max-width: 820px) { .hero { grid-template-columns: minmax(0, 1fr); } }
.big { font-size: clamp(30px, 4.6vw, 44px); line-height: 1.15; font-weight: 700; letter-spacing: -0.02em; white-space: nowrap; }
.big .arrow { color: var(--soft); font-weight: 400; padding: 0 0.15em; }
.big .good { color: var(--good); } .big .bad { color: var(--bad); }
.tiles { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.tile b { display: block; font-size: 22px; line-height: 1.25; letter-spacing: -0.01em; } .tile { padding: 12px 16px; }
figure { display: flex; flex-direction: column; } figure > svg { margin-top: auto; } figure.top > svg { margin-top: 0; }
figure figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 12px; margin-bottom: 6px; }
figcaption h3 { margin: 0; } figcaption .now { margin-left: auto; font-weight: 600; font-size: 14px; }
figcaption .about { flex-basis: 100%; color: var(--soft); font-size: 12.5px; line-height: 1.35; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12.5px; color: var(--soft); }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 5px; vertical-align: -1px; }
.legend b { color: var(--ink); font-weight: 600; }
figure img { width: 100%; max-width: 360px; border-radius: 8px; margin: 6px auto 0; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .gridline { stroke: var(--line); } svg .hit { fill: transparent; } svg .hit:hover { fill: var(--hover); }
svg .lane { fill: var(--rest); opacity: 0.45; } svg .name { fill: var(--ink); font-weight: 600; }
svg .stepline { stroke: var(--soft); }
svg .span:hover, svg .idle:hover { stroke: var(--ink); stroke-width: 1; }
.wide { overflow-x: auto; } .wide svg { min-width: 760px; } .wide table { min-width: 680px; }
.wide td:first-child { white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.num, th.num { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
tr:last-child td { border-bottom: 0; }
.meter { display: flex; height: 12px; min-width: 140px; border-radius: 4px; overflow: hidden; background: var(--rest);
  margin-top: 4px; }
.meter i { display: block; height: 100%; }
code, pre { font: 12.5px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { margin: 6px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  max-height: 22em; overflow-y: auto; }
.pair { display: grid; gap: 10px 22px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
@media (max-width: 640px) { .pair { grid-template-columns: minmax(0, 1fr); }
  main { padding: 20px 12px 40px; } .card { padding: 14px; } }
.pair .prompt { grid-column: 1 / -1; color: var(--soft); } .answer { border-left: 3px solid var(--rest); padding-left: 12px; }
.answer.up { border-color: var(--good); } .answer.down { border-color: var(--bad); }
details > summary { cursor: pointer; font-weight: 600; } details[open] > summary { margin-bottom: 8px; }
footer { margin-top: 40px; color: var(--soft); font-size: 13px; }
"""
