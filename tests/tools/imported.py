"""Import modules as a start does, and print as JSON what came from the module cache and what each module is.

    imported.py MODULE… [EXPRESSION]

The expression, if the last word is one, is evaluated with the modules imported.
"""

import sys

import sandboxrun.modulecache as modulecache

taken = []
code = modulecache.ModuleCache.code


def noted(self, name, source):
    found = code(self, name, source)
    if found is not None:
        taken.append(name)
    return found


modulecache.ModuleCache.code = noted
*names, expression = sys.argv[1:]
modulecache.install()
for name in names:
    __import__(name)
modulecache.close()

import json  # noqa: E402 - not before the cache is there

SPEC = ("name", "origin", "cached", "has_location", "parent", "submodule_search_locations")
modules = {
    name: {
        "file": getattr(module, "__file__", None),
        "cached": getattr(module, "__cached__", None),
        "path": list(getattr(module, "__path__", ())),
        "package": module.__package__,
        "spec": {field: getattr(module.__spec__, field) for field in SPEC},
    }
    for name, module in list(sys.modules.items())
    if name.startswith("sandboxrun.")
}
value = eval(expression, {**sys.modules, "sys": sys})
print(json.dumps({"taken": taken, "modules": modules, "value": value, "finders": len(sys.meta_path)}))
