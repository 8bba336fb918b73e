"""Announcements of the replay server's incarnations, from the thread that answers the driver to the working thread."""

import threading

import pytest

from shared.metrics import Reporter
from shared.replay.announcements import Announcements, ServerIncarnation
from shared.replay.errors import ReplayStopped

SERVER = ServerIncarnation(1, "localhost:1", {"active": "run/active"}, 0)


class Client:
    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_client_that_is_made_while_its_server_is_left_is_not_used() -> None:
    announced, client = Announcements(Reporter(), threading.Event()), Client()
    announced.announce(SERVER)
    assert announced.next() == SERVER
    announced.disconnect()  # the driver asks for counts while the client still connects
    assert not announced.use(client)
    announced.announce(SERVER._replace(number=2))
    assert announced.next().number == 2
    assert announced.use(client)
    announced.disconnect()
    assert client.closed


def test_waits_call_back_until_they_end() -> None:
    stop, calls = threading.Event(), []

    def meanwhile() -> None:
        calls.append(None)
        if len(calls) == 2:
            stop.set()

    with pytest.raises(ReplayStopped):
        Announcements(Reporter(), stop).next(meanwhile)
    assert len(calls) == 2
