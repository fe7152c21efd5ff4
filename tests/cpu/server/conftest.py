"""Servers as processes: one a module where a test can share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cpu.server.server_process import Server

StartServer = Callable[..., Server]


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Server]:
    """A server on the tiny bundle, ready; a test must leave it as it was."""
    process = Server(tiny_bundle)
    try:
        yield process.wait_until_ready()
    finally:
        process.close()


@pytest.fixture(scope="module")
def smollm2_server(smollm2_bundle: Path) -> Iterator[Server]:
    """A server on SmolLM2's bundle, ready; a test must leave it as it was."""
    process = Server(smollm2_bundle)
    try:
        yield process.wait_until_ready()
    finally:
        process.close()


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """A function `start_server(*words, ...)`, see `Server`; what it started ends with the test."""
    started: list[Server] = []

    def start(*words: object, **settings: object) -> Server:
        process = Server(*words, **settings)  # type: ignore[arg-type]  # as `Server` takes them
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()
