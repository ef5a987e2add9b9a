"""The official parser of AsyncAPI reads the documents that `sandboxrun spec asyncapi` makes. It comes from npm.

python tests/tools/asyncapi_parser.py     installs it into a temporary folder; exits with 1 if a document has an error
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from spec_files import GOOD

from sandboxrun.spec import asyncapi, asyncapi_import, model

ROOT = Path(__file__).parents[2]
PROGRAM = """\
import fs from 'fs';
import { Parser } from '@asyncapi/parser';

const found = {};
for (const [name, text] of Object.entries(JSON.parse(fs.readFileSync(0, 'utf8')))) {
  const { document, diagnostics } = await new Parser().parse(text);
  found[name] = {
    accepted: document !== undefined,
    operations: document === undefined ? 0 : document.allOperations().all().length,
    messages: document === undefined ? 0 : document.allMessages().all().length,
    diagnostics: diagnostics.map((each) => [each.severity, each.code, each.message, each.path.join('/')]),
  };
}
console.log(JSON.stringify(found));
"""
ERROR = 0  # of the severities


def main() -> int:
    ours = {path.parent.name: json.loads(path.read_text()) for path in sorted(ROOT.glob("*/*/spec.json"))}
    specs = {**GOOD, **ours}
    texts, faults = {}, []
    for name, raw in specs.items():
        texts[name] = json.dumps(asyncapi.document(model.parse(json.dumps(raw).encode(), "spec.json")))
        if asyncapi_import.spec_of(texts[name].encode(), name) != raw:
            faults.append(f"{name}: the import is not equal to the spec")
    # What must be refused, or the parser would accept anything.
    texts["broken"] = texts["price"].replace('"action": "receive"', '"action": "take"')
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "package.json").write_text('{"private": true}')
        (Path(folder) / "main.mjs").write_text(PROGRAM)
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "@asyncapi/parser"]
        subprocess.run(command, cwd=folder, check=True)
        installed = Path(folder) / "node_modules/@asyncapi/parser/package.json"
        version = json.loads(installed.read_text())["version"]
        done = subprocess.run(
            ["node", "main.mjs"], cwd=folder, input=json.dumps(texts), capture_output=True, text=True, check=True
        )
    found = json.loads(done.stdout)
    if found.pop("broken")["accepted"]:
        faults.append("broken: is accepted")
    for name, each in found.items():
        errors = [line for line in each["diagnostics"] if line[0] == ERROR]
        faults += [f"{name}: {line}" for line in errors]
        faults += [] if each["accepted"] else [f"{name}: is refused"]
        if each["operations"] != len(model.parse(json.dumps(specs[name]).encode(), name).interfaces):
            faults.append(f"{name}: has {each['operations']} operations")
    warnings = {line[1] for each in found.values() for line in each["diagnostics"] if line[0] != ERROR}
    print("\n".join(faults))
    print(
        f"@asyncapi/parser {version}: {len(found)} documents, {sum(each['operations'] for each in found.values())} "
        f"operations, {sum(each['messages'] for each in found.values())} messages, {len(faults)} faults; "
        f"warnings: {', '.join(sorted(warnings)) or 'none'}"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
