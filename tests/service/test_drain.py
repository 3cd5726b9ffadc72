"""A listener that is to end takes no connection more, and none that waits in it is lost."""

from __future__ import annotations

import multiprocessing
import os
import socket

import pytest

from service.drain import _take_no_connections

NOBODY = 65534


@pytest.mark.parametrize(
    ("host", "caller"), [("127.0.0.1", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::1")]
)
def test_who_waits_is_kept_and_who_comes_is_dropped_also_for_a_user_who_is_not_root(
    host: str, caller: str
) -> None:
    child = multiprocessing.get_context("fork").Process(target=_listen_and_stop, args=(host, caller))
    child.start()
    child.join(20)

    assert child.exitcode == 0


def _listen_and_stop(host: str, caller: str) -> None:
    if os.geteuid() == 0:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::") as listener:
        address = (caller, listener.getsockname()[1])
        with socket.create_connection(address, timeout=5) as waiting:
            waiting.sendall(b"asked")

            _take_no_connections(listener.fileno())

            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(16) == b"asked"
                accepted.sendall(b"made")
            assert waiting.recv(16) == b"made"
