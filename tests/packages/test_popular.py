"""Popular packages in confined workers: the ten smallest of docs/packages.md; docs/record_packages.py tries them all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import redis
from packaged import try_package
from raw_host import raw_host
from runner import Runner

from sandboxrun.redis import embedded

DOCS = Path(__file__).parents[2] / "docs"
sys.path.append(str(DOCS))

from popular_packages import PACKAGES, SMALL  # noqa: E402


@pytest.mark.timeout(600)  # they are downloaded
@pytest.mark.parametrize("requirement", SMALL)
def test_a_popular_package_works_in_a_worker(requirement: str, tmp_path: Path) -> None:
    [package] = [package for package in PACKAGES if package.requirement == requirement]
    home = tmp_path / "home"
    home.mkdir()
    with embedded.server() as url, redis.Redis.from_url(url, decode_responses=True) as r, raw_host() as http:
        try_package(package, Runner(url, home), r, http, tmp_path / "worker")
