"""The JSON Schema of spec.json, as an editor uses it, beside what the model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from spec_files import BAD, BEYOND_THE_SCHEMA, GOOD

from sandboxrun.config.permissions import KINDS
from sandboxrun.errors import SpecError
from sandboxrun.spec import model

ROOT = Path(__file__).parents[3]
SCHEMA = jsonschema_rs.Draft202012Validator(model.schema())


def parse(raw: Any) -> model.Spec:
    return model.parse(json.dumps(raw).encode(), "spec.json")


def test_the_schema_is_one_of_its_draft() -> None:
    jsonschema_rs.meta.validate(model.schema())


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_is_accepted_by_both(name: str) -> None:
    assert [str(error) for error in SCHEMA.iter_errors(GOOD[name])] == []
    assert parse(GOOD[name]).raw == GOOD[name]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_both_and_the_model_says_why(name: str) -> None:
    raw, message = BAD[name]
    with pytest.raises(SpecError) as caught:
        parse(raw)
    assert message in str(caught.value)
    assert str(caught.value).startswith("spec.json")
    assert not SCHEMA.is_valid(raw)


@pytest.mark.parametrize("name", BEYOND_THE_SCHEMA)
def test_the_model_finds_what_a_schema_cannot(name: str) -> None:
    raw, message = BEYOND_THE_SCHEMA[name]
    with pytest.raises(SpecError) as caught:
        parse(raw)
    assert message in str(caught.value)
    assert SCHEMA.is_valid(raw)


def test_editors_are_told_every_grant() -> None:
    grants = model.schema()["properties"]["grants"]["properties"]
    assert set(grants) == {f"allow{kind.capitalize()}" for kind in KINDS}


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/*/spec.json")), ids=lambda path: path.parent.name)
def test_our_own_files_are_good(path: Path) -> None:
    assert model.load(str(path.parent)).type == path.parent.name
    assert SCHEMA.is_valid(json.loads(path.read_text()))
