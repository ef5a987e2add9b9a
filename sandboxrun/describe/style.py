"""The style of the page. The Content-Security-Policy names it by its digest, so that no other style and no script applies."""

from __future__ import annotations

import base64
import hashlib

STYLE = """\
:root{color-scheme:light dark;--ground:#fafaf9;--card:#fff;--text:#1c1c1e;--soft:#6a6a70;--line:#e6e5e2;
--bad:#b42318;--bad-ground:#fef2f0;--odd:#8a5a00;--odd-ground:#fff8e6;--good:#13704a;--good-ground:#effaf4;--code:#f2f1ee}
@media(prefers-color-scheme:dark){:root{--ground:#161618;--card:#1e1e21;--text:#ececef;--soft:#9b9ba3;--line:#313136;
--bad:#ff9a8d;--bad-ground:#3a1f1c;--odd:#f2c46d;--odd-ground:#352b16;--good:#79d6a6;--good-ground:#16301f;--code:#2a2a2e}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:78rem;padding:1.5rem 1.25rem 4rem;background:var(--ground);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}
header{display:flex;flex-wrap:wrap;align-items:baseline;gap:.25rem 1rem;margin-bottom:1.25rem}
h1{font-size:1.35rem;margin:0;letter-spacing:-.01em}
h2{font-size:1.05rem;margin:2rem 0 .5rem}
h2 small,header p{font-size:.85rem;font-weight:400;color:var(--soft);margin:0}
a{color:inherit}
ul.problems{list-style:none;margin:0;padding:0;display:grid;grid-template-columns:minmax(0,1fr);gap:.5rem}
ul.problems li{border-radius:.5rem;padding:.6rem .9rem;background:var(--odd-ground);border-left:4px solid var(--odd)}
ul.problems li.bad{background:var(--bad-ground);border-color:var(--bad)}
ul.problems li.good{background:var(--good-ground);border-color:var(--good)}
ul.problems code{margin-top:.3rem}
code{display:inline-block;max-width:100%;overflow-x:auto;white-space:pre;background:var(--code);border-radius:.3rem;padding:.1rem .45rem;
font:.85em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;direction:ltr;unicode-bidi:isolate-override;
user-select:all;-webkit-user-select:all;vertical-align:bottom}
div.wide{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.5rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .75rem;text-align:left;white-space:nowrap;vertical-align:baseline}
th{font-size:.78rem;font-weight:500;color:var(--soft);border-bottom:1px solid var(--line)}
th.type{padding-top:.9rem;font-size:.95rem;font-weight:600;color:var(--text)}
th.type small{font-size:.8rem;font-weight:400;color:var(--soft)}
tbody tr+tr td{border-top:1px solid var(--line)}
td.n,th.n{text-align:right}
td.text{white-space:normal;overflow-wrap:anywhere;min-width:12rem}
td.zero{color:var(--soft)}
tr.bad td{background:var(--bad-ground)}
tr.odd td{background:var(--odd-ground)}
b.state{font-weight:500}
b.bad,td.bad{color:var(--bad)}b.odd{color:var(--odd)}b.good{color:var(--good)}b.soft{color:var(--soft)}
footer{margin-top:2.5rem;font-size:.85rem;color:var(--soft)}
@media(max-width:40rem){body{padding:1rem .75rem 3rem}th,td{padding:.3rem .5rem}.minor{display:none}}
"""
DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"style-src 'sha256-{DIGEST}'"
