"""The style of `report.html`: light and dark by the reader's setting, narrow and wide, and on paper."""

_LIGHT = """
:root{--paper:#fbfaf7;--card:#fff;--ink:#16222b;--soft:#5b6b76;--line:#dfe3e4;--grid:#e8ebec;
  --base:#b4681b;--rl:#04707c;--good:#1b7a43;--bad:#b3261e;--tint:#e6f2f2;--t0:#04707c;--t1:#b4681b;
  --t2:#6a4fb3;--t3:#b32d5b;--t4:#4b7a1c;--t5:#2b62b8}
"""

CSS = """
@LIGHT@
@media (prefers-color-scheme:dark){
  :root{--paper:#0a151d;--card:#111f29;--ink:#e4edf0;--soft:#93a7b3;--line:#253743;--grid:#1c2c37;
    --base:#e8a352;--rl:#41c9cf;--good:#63cf8f;--bad:#ff8a80;--tint:#10303a;--t0:#41c9cf;
    --t1:#e8a352;--t2:#b09cf0;--t3:#f585a9;--t4:#a3d065;--t5:#85b2f5}
}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,
  "Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:860px;margin:0 auto;padding:40px 20px 56px}
h1,h2{font-family:"Iowan Old Style","Palatino Linotype",Palatino,Charter,Georgia,serif;
  font-weight:600;text-wrap:balance}
h1{font-size:clamp(1.9rem,6vw,3rem);line-height:1.12;margin:.35em 0 .3em;letter-spacing:-.015em}
h2{font-size:1.6rem;line-height:1.2;margin:0 0 .5em}
h3{font-size:1.05rem;margin:1.8em 0 .4em}
p{margin:.4em 0}
small{font-size:.78em;color:var(--soft);white-space:nowrap;font-weight:400}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
section{margin-top:52px;padding-top:28px;border-top:1px solid var(--line)}
.brand{font-weight:700;letter-spacing:.04em;color:var(--rl);margin:0}
.brand span{font-weight:400;color:var(--soft);letter-spacing:0;margin-left:.5em;
  overflow-wrap:anywhere}
.lead{font-size:1.08rem;color:var(--soft);max-width:40em}
.note{font-size:.85rem;color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;
  margin:28px 0 0}
.tiles>div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tiles dt{font-size:.85rem;color:var(--soft)}
.tiles dd{margin:2px 0;font-size:1.65rem;font-weight:650;letter-spacing:-.02em;
  font-variant-numeric:tabular-nums;white-space:nowrap}
.tiles p{font-size:.78rem;line-height:1.4;color:var(--soft);margin:0}
.base-word{color:var(--base)}
.tiles .base-word{font-weight:450}
.arrow{color:var(--soft);font-weight:400;margin:0 .22em}
.legend{display:inline-flex;flex-wrap:wrap;gap:2px 14px;font-size:.83rem;color:var(--soft)}
.key{display:inline-flex;align-items:center;gap:6px;white-space:nowrap}
.key i{width:11px;height:11px;border-radius:50%;background:var(--c)}
.key.base i{background:transparent;border:2.5px solid var(--c)}
.base{--c:var(--base)}
.rl{--c:var(--rl)}
.t0{--c:var(--t0)}
.t1{--c:var(--t1)}
.t2{--c:var(--t2)}
.t3{--c:var(--t3)}
.t4{--c:var(--t4)}
.t5{--c:var(--t5)}
.tasks{margin:18px 0 8px}
.task{display:grid;grid-template-columns:minmax(0,12.5em) minmax(0,1fr) 8.6em;gap:6px 18px;
  align-items:center;padding:9px 0;border-top:1px solid var(--grid)}
.task:first-child{border-top:0}
.task.mean{border-top:2px solid var(--line)}
.task.axis{border-top:0;padding:0}
.scale{display:flex;justify-content:space-between;font-size:.72rem;color:var(--soft);padding:0 2%}
.scale i{font-style:normal;width:0;display:flex;justify-content:center}
.what p{font-size:.8rem;line-height:1.35;color:var(--soft);margin:0}
.result{font-variant-numeric:tabular-nums;font-weight:600;line-height:1.35;font-size:.95rem;
  display:grid}
svg{display:block;width:100%;height:auto;overflow:visible}
svg.track{height:36px}
.grid,.half,.mark{stroke:var(--grid);stroke-width:1}
.half{stroke:var(--soft);stroke-dasharray:2 3;opacity:.8}
.mark{stroke:var(--ink);stroke-dasharray:5 3;opacity:.65}
.tick,.axis-name,svg .note{font-size:11px;fill:var(--soft)}
svg .note{fill:var(--ink);font-weight:600}
.line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.band{fill:var(--c);opacity:.16}
.dot{fill:var(--c)}
.hollow{fill:var(--card);stroke:var(--c);stroke-width:2}
.stem{stroke:var(--c);stroke-width:2;opacity:.28}
.whisker{stroke:var(--c);stroke-width:7;stroke-linecap:round;opacity:.38}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:16px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;
  padding:14px 16px 10px;break-inside:avoid;min-width:0}
figcaption{display:grid;gap:2px;margin-bottom:8px;font-size:.93rem}
figure .note{margin:4px 0 0;font-size:.78rem}
.empty{color:var(--soft);padding:28px 0;text-align:center}
article{break-inside:avoid}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:12px;
  margin-top:8px}
.pair>div{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--c);
  border-radius:8px;padding:10px 14px;min-width:0}
.side{font-size:.85rem;color:var(--soft);display:flex;justify-content:space-between}
.right{color:var(--good)}
.wrong{color:var(--bad)}
.thought{white-space:pre-wrap;overflow-wrap:anywhere;color:var(--soft);font:.85rem/1.5 ui-monospace,
  SFMono-Regular,Menlo,Consolas,monospace;border-left:2px solid var(--line);padding-left:10px}
.answer{white-space:pre-wrap;overflow-wrap:anywhere;font-size:1.15rem;font-weight:600}
.answer.none{font-weight:400;color:var(--soft);font-size:1rem}
.findings{display:grid;gap:12px;margin-top:18px}
.finding{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px}
.finding.yes{border-left:5px solid var(--rl)}
.finding.no{border-left:5px solid var(--line)}
.finding h3{margin:.1em 0}
.finding p{font-size:.94rem}
.finding .kind{font-size:.85rem;color:var(--soft);margin:0}
.finding .verdict{font-size:1.15rem;font-weight:650;margin:.1em 0 .5em}
.finding.yes .verdict{color:var(--rl)}
.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:6px 0 6px 14px;border-bottom:1px solid var(--grid);
  vertical-align:top}
th:first-child{text-align:left;padding-left:0}
thead th{color:var(--soft);font-weight:500;font-size:.8rem;vertical-align:bottom}
thead small{display:block;white-space:normal}
tbody th{font-weight:600}
.stages tbody tr:last-child>*{border-top:2px solid var(--line);font-weight:650}
tbody td{white-space:nowrap}
.modes small{display:block}
footer{margin-top:56px;padding-top:20px;border-top:1px solid var(--line);font-size:.9rem;
  color:var(--soft)}
@media (max-width:640px){
  main{padding:24px 16px 40px}
  section{margin-top:38px}
  .tiles{grid-template-columns:1fr 1fr}
  .tiles dd{font-size:1.3rem}
  .tiles>div{padding:10px 12px}
  .task{grid-template-columns:minmax(0,1fr) auto}
  .task>svg,.task>.scale{grid-column:1/-1}
  .task>svg{grid-row:2}
  .axis>div:empty{display:none}
  .modes{min-width:540px}
  .stages{min-width:640px}
}
@media print{
  @LIGHT@
  :root{--paper:#fff;--ink:#000;--soft:#444;--line:#bbb;--grid:#ddd}
  body{font-size:11pt}
  main{max-width:none;padding:0}
  section{margin-top:24pt;padding-top:12pt}
  h2,h3{break-after:avoid}
  .scroll{overflow:visible}
  .task{break-inside:avoid}
  *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
""".replace("@LIGHT@", _LIGHT.strip())
