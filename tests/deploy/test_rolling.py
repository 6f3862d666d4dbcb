"""Servers that are replaced while they are asked: no request is lost, and a new version takes over."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.benchmarks.rolling import Versions, make_versions, measure_under_load, replace_servers, run_two_servers
from tests.deploy.production import ProductionTriton


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return make_versions(tmp_path_factory.mktemp("versions"), num_frames=16)


@pytest.fixture(scope="module")
def servers(versions: Versions) -> Iterator[list[ProductionTriton]]:
    with run_two_servers(versions.old) as running:
        yield running


def test_version_2_takes_over_without_a_request_lost(servers: list[ProductionTriton], versions: Versions) -> None:
    part = asyncio.run(measure_under_load(servers, versions, "", lambda: replace_servers(servers, versions.new)))
    assert not part.lost
    assert part.resent > 0  # what a stopping server refused, the other one answered
    assert part.answers.keys() == {"1", "2"}
    assert min(part.answers.values()) >= 3
