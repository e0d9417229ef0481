"""A Hub of ours on this machine, and the command line in a process that talks to it."""

from collections.abc import Iterator

import pytest
from hub_server import Hub, Program, running_hub


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def program(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = Program(server, tmp_path_factory.mktemp("home"))
    yield program
    program.close()


@pytest.fixture
def hub(server: Hub) -> Hub:
    server.reset()
    return server
