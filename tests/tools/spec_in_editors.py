"""The JSON Schema of spec.json in two engines: the one of VS Code, which completes too, and ajv. Both come from npm.

python tests/tools/spec_in_editors.py     installs them into a temporary folder; exits with 1 if one does not do as expected
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from spec_files import BAD, BEYOND_THE_SCHEMA, GOOD

from sandboxrun.spec import model

ROOT = Path(__file__).parents[2]
PACKAGES = ("vscode-json-languageservice", "ajv", "ajv-formats")
# Where a name is typed (`|`), and some of those that are offered.
TYPED = {
    '{"|"}': ["type", "request", "reply", "methods", "tests", "$defs"],
    '{"type": "t", "grants": {"|"}}': ["allowNet", "allowRedis", "allowCall"],
    '{"type": "t", "tests": [{"|"}]}': ["name", "before", "request", "reply", "after", "fresh"],
    '{"type": "t", "methods": {"m": {"|"}}}': ["description", "request", "reply"],
    '{"type": "t", "request": {"|"}}': ["properties", "required", "additionalProperties"],
    '{"type": "t", "tests": [{"name": "x", "after": {"a:h": {"f": {"|"}}}}]}': ["$match", "$between", "$json"],
}
PROGRAM = """\
import fs from 'fs';
import vscode from 'vscode-json-languageservice';
import Ajv from 'ajv/dist/2020.js';
import formats from 'ajv-formats';

const { schema, files, typed } = JSON.parse(fs.readFileSync(0, 'utf8'));
const fetched = [];
const service = vscode.getLanguageService({
  schemaRequestService: async (uri) => {
    if (uri.endsWith('/spec.schema.json')) return JSON.stringify(schema); // the $schema of a file
    fetched.push(uri);
    throw new Error('nothing else is there');
  },
});
service.configure({ validate: true, schemas: [{ uri: 'spec:schema', fileMatch: ['*'], schema }] });
const open = (text) => {
  const document = vscode.TextDocument.create('file:///spec.json', 'json', 1, text);
  return [document, service.parseJSONDocument(document)];
};
const ajv = new Ajv.default({ strict: false, allErrors: true });
formats.default(ajv);
const validate = ajv.compile(schema);
const editor = {}, engine = {}, offered = {};
for (const [name, raw] of Object.entries(files)) {
  const found = await service.doValidation(...open(JSON.stringify(raw)), { schemaValidation: 'error' });
  editor[name] = found.map((each) => each.message);
  engine[name] = validate(raw) ? [] : validate.errors.map((each) => each.message);
}
for (const text of typed) {
  const at = text.indexOf('|');
  const [document, parsed] = open(text.replace('|', ''));
  const found = await service.doComplete(document, document.positionAt(at), parsed);
  offered[text] = found.items.map((each) => each.label);
}
console.log(JSON.stringify({ editor, engine, offered, fetched }));
"""


def main() -> int:
    ours = {path.parent.name: json.loads(path.read_text()) for path in sorted(ROOT.glob("*/*/spec.json"))}
    good = {**GOOD, **ours, **{name: raw for name, (raw, _) in BEYOND_THE_SCHEMA.items()}}
    bad = {name: raw for name, (raw, _) in BAD.items()}
    given = {"schema": model.schema(), "files": {**good, **bad}, "typed": list(TYPED)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "package.json").write_text('{"private": true}')
        (Path(folder) / "main.mjs").write_text(PROGRAM)
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *PACKAGES], cwd=folder, check=True)
        done = subprocess.run(
            ["node", "main.mjs"], cwd=folder, input=json.dumps(given), capture_output=True, text=True, check=True
        )
    found = json.loads(done.stdout)
    faults = []
    for engine in ("editor", "engine"):
        faults += [f"{engine}: {name} is refused: {found[engine][name]}" for name in good if found[engine][name]]
        faults += [f"{engine}: {name} is accepted" for name in bad if not found[engine][name]]
    for text, names in TYPED.items():
        missing = set(names) - set(found["offered"][text])
        faults += [f"editor: {text} does not offer {', '.join(sorted(missing))}"] if missing else []
    print("\n".join(faults))
    print(
        f"{len(good)} good and {len(bad)} bad files, {len(TYPED)} places to complete, in 2 engines: {len(faults)} faults; "
        f"schemas that the editor wanted to fetch: {len(found['fetched'])}"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
