"""AsyncAPI documents of specs, and specs of AsyncAPI documents. tests/tools/asyncapi_parser.py has the official parser read them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spec_files import GOOD, ODD, PRICE

from sandboxrun.errors import SpecError
from sandboxrun.spec import asyncapi, asyncapi_import, keywords, model

ROOT = Path(__file__).parents[3]
OURS = {path.parent.name: json.loads(path.read_text()) for path in sorted(ROOT.glob("*/*/spec.json"))}


def document(raw: Any) -> dict[str, Any]:
    return asyncapi.document(model.parse(json.dumps(raw).encode(), "spec.json"))


def imported(given: Any) -> dict[str, Any]:
    return asyncapi_import.spec_of(json.dumps(given).encode(), "doc.json")


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from references(each)


@pytest.mark.parametrize("name", {**GOOD, **OURS})
def test_a_document_is_imported_as_the_spec_that_it_was_made_of(name: str) -> None:
    raw = {**GOOD, **OURS}[name]
    assert imported(document(raw)) == raw


@pytest.mark.parametrize("name", GOOD)
def test_every_reference_of_a_document_leads_somewhere(name: str) -> None:
    found = document(GOOD[name])
    for reference in references({**found, "x-tests": None}):
        keywords.value_at(found, reference)


def test_streams_methods_envelope_and_errors_are_in_it() -> None:
    found = document(PRICE)
    assert found["channels"]["requests"]["address"] == "price:req:x"
    assert found["channels"]["replies"]["address"] == "res:{ref}"
    assert set(found["operations"]) == {"of", "count"}
    messages = found["components"]["messages"]
    assert messages["of.request"]["headers"]["properties"]["method"] == {"const": "of"}
    assert messages["of.request"]["payload"]["properties"]["item"] == {"$ref": "#/components/schemas/item"}
    assert messages["of.reply"]["headers"]["required"] == ["ref", "source", "code", "time"]
    assert messages["error"]["payload"]["required"] == ["err"]
    assert "payload" not in messages["count.request"]
    assert found["x-tests"] == PRICE["tests"]
    assert found["info"] == {"title": "Prices", "version": "1.0.0", "description": "What things cost."}


def test_draft_07_reads_what_a_later_draft_means() -> None:
    found = document(ODD)
    pair = found["components"]["schemas"]["pair"]
    assert pair["items"][1] == {"$ref": "#/components/schemas/pair"}
    assert pair["additionalItems"] is False
    payload = found["components"]["messages"]["request"]["payload"]
    assert payload["properties"]["a/b~c"]["allOf"] == [{"minProperties": 1}, {"$ref": "#/components/schemas/deep"}]
    own = payload["$defs"]["own"]["properties"]["again"]
    assert own == {"$ref": "#/components/messages/request/payload"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$id": "a"}, "spec.json: request has $id, which AsyncAPI does not have"),
        ({"$anchor": "a", "items": {"$ref": "#a"}}, 'has the reference "#a"'),
        ({"const": {"$ref": 1}}, "has the reference 1, which AsyncAPI cannot have"),
        ({"prefixItems": [{}], "items": {"$ref": "#/prefixItems/0"}}, "prefixItems/0"),
    ],
)
def test_what_a_document_cannot_have_is_an_error(schema: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        document({"type": "t", "request": schema})
    assert message in str(caught.value)


def test_a_definition_must_have_a_name_that_a_document_can_have() -> None:
    with pytest.raises(SpecError, match='the name "a b"'):
        document({"type": "t", "$defs": {"a b": {}}})


FOREIGN: dict[str, Any] = {
    "asyncapi": "3.0.0",
    "info": {"title": "Weather Service 2", "version": "2.1.0", "description": "Of cities."},
    "channels": {
        "ask": {"address": "weather.ask", "messages": {"query": {"$ref": "#/components/messages/Query"}}},
        "answer": {"messages": {"weather": {"payload": {"type": "number"}}, "weatherError": {"payload": {}}}},
        "news": {"address": "news", "messages": {"item": {"payload": {"type": "string"}}}},
    },
    "operations": {
        "publishNews": {"action": "send", "channel": {"$ref": "#/channels/news"}},
        "getWeather": {
            "action": "receive",
            "channel": {"$ref": "#/channels/ask"},
            "reply": {"channel": {"$ref": "#/channels/answer"}},
        },
    },
    "components": {
        "messages": {
            "Query": {
                "payload": {
                    "schemaFormat": "application/schema+json;version=draft-07",
                    "schema": {"type": "object", "properties": {"city": {"$ref": "#/components/schemas/City"}}},
                }
            }
        },
        "schemas": {"City": {"type": "string", "minLength": 1}},
    },
}


def test_the_one_request_of_another_document_is_found() -> None:
    assert imported(FOREIGN) == {
        "type": "weather-service",
        "title": "Weather Service 2",
        "description": "Of cities.",
        "$defs": {"City": {"type": "string", "minLength": 1}},
        "request": {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}},
        "reply": {"type": "number"},
    }


def test_several_requests_of_another_document_are_methods() -> None:
    given = copy.deepcopy(FOREIGN)
    given["operations"]["get-rain"] = {
        **given["operations"]["getWeather"],
        "description": "Only rain.",
        "reply": {"messages": [{"$ref": "#/channels/answer/messages/weather"}]},
    }
    found = imported(given)
    assert set(found["methods"]) == {"getWeather", "get_rain"}
    assert found["methods"]["get_rain"]["description"] == "Only rain."
    assert found["methods"]["get_rain"]["reply"] == {"type": "number"}
    assert "request" not in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asyncapi": "2.6.0"}, 'has asyncapi "2.6.0": expected 3.0.0'),
        ({"asyncapi": None}, "is no AsyncAPI document"),
        ({"operations": {}}, "has no operation with a reply"),
        ({"operations": []}, "has operations []: expected an object"),
        ({"operations": {"a": {"$ref": "#/operations/a"}}}, "which leads to itself"),
        ({"operations": {"a": {"$ref": "other.json#/a"}}}, "expected one within the document"),
        ({"channels": {}}, 'has the reference "#/channels/ask", which leads nowhere'),
        ({"info": {"title": "42"}}, 'has info.title "42", which gives no type of a worker'),
        ({"x-tests": [{"name": "a"}, {"name": "a"}]}, "is a second test with the name"),
        ({"x-tests": "["}, "x-tests:1:2 is not JSON"),
        ({"components": {"messages": {"Query": {"payload": {"schemaFormat": "avro"}}}}}, 'has schemaFormat "avro"'),
        ({"components": {"messages": {"Query": {"payload": {"$ref": "#/info"}}}}}, 'reference "#/info" in a schema'),
        ({"components": {"messages": {"Query": {"payload": {"type": "x"}}}}}, "request.type is not a JSON Schema"),
    ],
)
def test_a_document_without_a_usable_request_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        imported({**FOREIGN, **change})
    assert message in str(caught.value)
    assert str(caught.value).startswith("doc.json")
