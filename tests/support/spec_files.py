"""spec.json files that are good, and such that are not: for the model, the schema, and tests/tools/editor.py."""

from __future__ import annotations

from typing import Any

PRICE: dict[str, Any] = {
    "$schema": "../spec.schema.json",
    "type": "price",
    "title": "Prices",
    "description": "What things cost.",
    "grants": {"allowRedis": "price:*", "allowCall": ["stock", "tax"]},
    "fields": {"maxDeliveries": 3},
    "secrets": {"token": "not-a-real-one"},
    "$defs": {
        "item": {"type": "string", "enum": ["tea", "cup"], "description": "What is sold."},
        "tree": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
            "required": ["name"],
        },
    },
    "methods": {
        "of": {
            "description": "The price of some pieces.",
            "request": {
                "type": "object",
                "properties": {
                    "item": {"$ref": "#/$defs/item"},
                    "count": {"type": "integer", "minimum": 1, "maximum": 99, "default": 1},
                    "coupon": {"type": ["string", "null"], "pattern": "^[A-Z]{4}$"},
                },
                "required": ["item"],
                "additionalProperties": False,
                "examples": [{"item": "tea", "count": 2}],
            },
            "reply": {
                "type": "object",
                "properties": {"total": {"type": "integer"}, "parts": {"$ref": "#/$defs/tree"}},
                "required": ["total"],
            },
        },
        "count": {"reply": {"type": "object", "properties": {"result": {"type": "integer"}}, "required": ["result"]}},
    },
    "tests": [
        {
            "name": "two cups of tea",
            "method": "of",
            "before": {"price:tea:h": {"cents": 250}},
            "request": {"item": "tea", "count": 2},
            "reply": {"total": 500},
        },
        {
            "name": "no such thing",
            "method": "of",
            "request": {"item": "x"},
            "reply": {"code": 400, "err": {"message": {"$match": ".*item.*"}}},
        },
    ],
}

STATE: dict[str, Any] = {
    "type": "t",
    "clock": "2026-01-31T12:00:00Z",
    "seed": 4294967295,
    "tests": [
        {
            "name": "every kind",
            "before": {
                "a:h": {"n": 1, "$$x": "$$any", "j": {"$json": {"a": [1, None, "$$"]}}, "b": {"$base64": "AAE="}},
                "a:s": ["x", 2],
                "b:s": "a text",
                "a:z": {"m": 1.5},
                "a:x": [{"$id": "1-1", "f": "v"}, {"f": 1}],
                "a:q": ["x"],
                "text": "x",
                "list": ["x"],
                "hash": {"f": "v"},
                "kept": {"$string": "x", "$ttl": 60},
                "b:h": {"$value": {"f": 1}, "$ttl": 0.5},
                "c:h": {"$set": ["x"]},
            },
            "request": {"$ref": "a field of the request"},
            "reply": {"code": 200, "a": "$any", "b": [{"$between": [1, 2]}], "c": {"$schema": {"type": "string"}}},
            "after": {
                "a:h": {"n": "$any", "j": {"$json": {"a": "$any"}}, "m": {"$match": "[0-9]+"}},
                "a:s": ["x", {"$match": "y.*"}],
                "a:z": {"m": {"$between": [1, 2]}, "n": "$any"},
                "a:x": ["$any", {"$id": "2-1", "f": "$any"}],
                "a:q": "$any",
                "text": {"$schema": {"type": "integer"}},
                "gone:h": None,
                "kept": {"$string": "$any", "$ttl": {"$between": [1, 60]}},
                "b:h": {"$hash": "$any", "$ttl": "$any"},
                "empty:h": {},
            },
            "timeout": 5,
            "fresh": True,
            "clock": "2026-01-31T12:00:00.5+02:00",
            "seed": 0,
        },
        {"name": "a matcher alone", "reply": {"$schema": {"required": ["a"]}}},
    ],
}

PLAIN: dict[str, Any] = {
    "type": "counter",
    "request": {"type": "object", "properties": {"user": {"type": "string"}}, "required": ["user"]},
    "reply": True,
}

# Schemas that AsyncAPI writes in another form, and names that Python does not have.
ODD: dict[str, Any] = {
    "type": "odd-one",
    "title": "odd-one",
    "description": "",
    "$defs": {
        "any.thing": True,
        "none": False,
        "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"$ref": "#/$defs/pair"}], "items": False},
        "deeper": {"type": "array", "items": {"type": "string"}},
        "deep": {"type": "object", "properties": {"in": {"$ref": "#/$defs/deeper/items"}}},
    },
    "request": {
        "type": "object",
        "$defs": {"own": {"type": "object", "properties": {"again": {"$ref": "#"}}}, "nothing": {"type": "null"}},
        "properties": {
            "class": {"$ref": "#/$defs/own"},
            "own pair": {"$ref": "#/$defs/nothing"},
            "a/b~c": {"$ref": "#/$defs/deep", "description": "With words beside it.", "allOf": [{"minProperties": 1}]},
            "a": {"$ref": "#/properties/a~1b~0c"},
            "bodyBase64": {"type": "string", "contentEncoding": "base64"},
            "open": {"type": "object", "additionalProperties": {"type": "number"}},
            "const": {"const": {"ref": 1}},
            "level": {"enum": ["low", 1, None, True, 1.5]},
            "either": {
                "anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "boolean"}}, {"type": "null"}]
            },
            "not": {"not": {"type": "string"}},
        },
        "patternProperties": {"^x-": {}},
        "additionalProperties": True,
    },
    "reply": {"allOf": [{"type": "object", "properties": {"n": {"type": "number"}}}, {"required": ["n"]}]},
    "methods": {
        "shop.list": {"description": "", "request": True, "reply": {"type": "array", "items": {"type": "string"}}},
        "import": {"reply": False},
        "request": {"reply": {"type": "object"}},
        "problem": {"reply": {"type": "object", "minProperties": 1}},
    },
    "tests": [],
}

GOOD: dict[str, dict[str, Any]] = {
    "price": PRICE,
    "state": STATE,
    "plain": PLAIN,
    "odd": ODD,
    "least": {"type": "t"},
    "no methods": {"type": "t", "methods": {}, "title": "Of nothing"},
}


def _test(**more: Any) -> dict[str, Any]:
    return {"type": "t", "tests": [{"name": "x", **more}]}


# Which are wrong, and part of the message of the model.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({}, '"type" is a required property'),
    "type of capitals": ({"type": "Price"}, 'type: "Price" does not match'),
    "reserved type": ({"type": "res"}, "type: "),
    "unknown member": ({"type": "t", "test": []}, "has 'test', which is no part of it, did you mean tests?"),
    "unknown member of a test": (_test(befor={}), "did you mean before?"),
    "no grant": ({"type": "t", "grants": {"net": "x:1"}}, "grants"),
    "no schema": ({"type": "t", "request": {"type": "strin"}}, "request.type is not a JSON Schema: "),
    "schema of a number": ({"type": "t", "reply": 5}, "reply is not a JSON Schema: "),
    "no schema by name": ({"type": "t", "$defs": {"a": {"minimum": "1"}}}, "minimum is not a JSON Schema: "),
    "no schema of a method": (
        {"type": "t", "methods": {"m": {"request": {"required": "a"}}}},
        "methods.m.request.required is not a JSON Schema: ",
    ),
    "method name": ({"type": "t", "methods": {"1st": {}}}, "methods"),
    "no name": ({"type": "t", "tests": [{}]}, '"name" is a required property'),
    "reply of a list": (_test(reply=["ok"]), "tests[0].reply: "),
    "state of a list": (_test(before=[]), "tests[0].before: "),
    "unknown matcher": (_test(reply={"a": {"$mach": "x"}}), 'tests[0].reply.a has "$mach": expected one of $match'),
    "text that begins with $": (_test(reply={"a": "$anything"}), 'reply.a is "$anything": expected $any, or $$'),
    "matcher beside a field": (_test(reply={"a": {"$match": "x", "b": 1}}), 'reply.a has "$match"'),
    "between one": (_test(reply={"a": {"$between": [1]}}), "$between [1]: expected two numbers"),
    "between texts": (_test(after={"a:h": {"f": {"$between": ["1", "2"]}}}), "expected two numbers"),
    "schema in a matcher": (_test(reply={"a": {"$schema": {"type": "x"}}}), "a.$schema.type is not a JSON Schema"),
    "code of a text": (_test(reply={"code": "200"}), 'reply.code is "200": expected a whole number'),
    "matcher before": (_test(before={"a:h": {"f": "$any"}}), "before.a:h.f is $any: a matcher is for `after`"),
    "matcher in JSON before": (_test(before={"a:h": {"f": {"$json": ["$any"]}}}), "has a matcher"),
    "null before": (_test(before={"a:h": None}), "is null: leave it out"),
    "empty before": (_test(before={"a:h": {}}), "is an empty hash"),
    "hash of a list": (_test(after={"a:h": []}), "is a hash, and []"),
    "hash of objects": (_test(after={"a:h": {"f": {"x": 1}}}), "expected text or a number"),
    "hash of true": (_test(after={"a:h": {"f": True}}), "expected text or a number"),
    "list of an object": (_test(after={"a:q": {}}), "is a list, and {}"),
    "score of a text": (_test(after={"a:z": {"m": "1"}}), "expected a score, which is a number"),
    "entry of a text": (_test(after={"a:x": ["f"]}), "expected an entry"),
    "entry without a field": (_test(before={"a:x": [{"$id": "1-1"}]}), "has no field"),
    "id of an entry": (_test(before={"a:x": [{"$id": "1", "f": 1}]}), "expected an ID such as 1-1"),
    "two kinds": (_test(after={"k": {"$set": [], "$list": []}}), "expected one of $value"),
    "ttl alone": (_test(after={"k": {"$ttl": 5}}), "expected one of $value"),
    "ttl of a text": (_test(after={"k": {"$string": "x", "$ttl": "5"}}), "$ttl"),
    "ttl of nothing": (_test(before={"k": {"$string": "x", "$ttl": 0}}), "expected seconds above 0"),
    "any ttl before": (_test(before={"k": {"$string": "x", "$ttl": "$any"}}), "expected seconds above 0"),
    "clock of a number": ({"type": "t", "clock": 1700000000}, "clock: "),
    "seed of a text": (_test(seed="7"), "tests[0].seed: "),
    "seed below 0": ({"type": "t", "seed": -1}, "seed: "),
    "no base64": (_test(before={"k": {"$base64": "?"}}), "expected bytes in base64"),
}
# What only the model can know.
BEYOND_THE_SCHEMA: dict[str, tuple[dict[str, Any], str]] = {
    "two tests of one name": ({"type": "t", "tests": [{"name": "x"}, {"name": "x"}]}, "is a second test with the name"),
    "unknown method": (_test(method="m"), "has the method 'm', which the spec does not describe"),
    "ends the other way around": (_test(reply={"a": {"$between": [2, 1]}}), "the lower one first"),
    "clock without a zone": (_test(clock="2026-01-31T12:00:00"), "expected a time from 1970 on with its zone"),
    "no regular expression": (_test(reply={"a": {"$match": "("}}), "expected a regular expression"),
}
