"""Tables of a replay server as it reports them: sizes, rate limiters and waits; and a monitor of its liveness."""

from collections.abc import Iterable
from dataclasses import dataclass

import grpc

from shared.replay import reverb_pb2 as pb
from shared.replay.channel import SERVER_INFO, named_error, open_channel
from shared.replay.errors import ReplayMismatch, ReplayUnavailable

NAMES_SHOWN = 8  # table names in an error
MISSES_ALLOWED = 1  # polls in a row without an answer; a busy machine causes one, not two


@dataclass(frozen=True)
class TableInfo:
    """State of a table; sizes and counts are in windows, `inserted` and `sampled` since the server started.

    The rate limiter keeps `inserted * samples_per_insert - sampled` within [`min_diff`, `max_diff`].
    `waiting_for_inserts_ms` grows while samplers are blocked, `waiting_for_sampling_ms` while inserts are.
    """

    name: str
    size: int
    max_size: int
    inserted: int
    sampled: int
    samples_per_insert: float
    min_size_to_sample: int
    min_diff: float
    max_diff: float
    waiting_for_inserts_ms: int
    waiting_for_sampling_ms: int


@dataclass(frozen=True)
class ServerInfo:
    """Tables of a server by name. Each incarnation of a server has another `tables_state_id`."""

    tables_state_id: tuple[int, int]
    tables: dict[str, TableInfo]


def server_info(address: str, timeout_s: float = 2.0) -> ServerInfo:
    """Asks the server at `address` `host:port`. Raises `ReplayUnavailable` without an answer within `timeout_s`."""
    with open_channel(address) as channel:
        return _ask(channel, address, timeout_s)


def check_tables(info: ServerInfo, tables: Iterable[str], address: str) -> None:
    """Raises `ReplayMismatch` unless the server has all of `tables`."""
    missing = sorted(set(tables) - info.tables.keys())
    if missing:
        names = sorted(info.tables)
        shown = " ".join(", ".join(names[:NAMES_SHOWN]).split())  # another server's names may hold anything
        rest = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        raise ReplayMismatch(
            f"the replay server at {address} is not this run's: it lacks {', '.join(missing)}"
            f" and has {shown or 'no tables'}{rest}"
        )


class ReplayMonitor:
    """Checks that one server stays alive and the same incarnation; call `poll` every two seconds or so.

    Has its own connection, no thread, and never blocks longer than `timeout_s` seconds.
    """

    def __init__(self, address: str, tables: Iterable[str], timeout_s: float = 2.0) -> None:
        self._address, self._tables, self._timeout_s = address, tuple(tables), timeout_s
        self._channel = open_channel(address)
        self._state_id: tuple[int, int] | None = None
        self._misses = 0

    def poll(self, timeout_s: float | None = None) -> ServerInfo | None:
        """Returns the server's state; none at the first miss. `timeout_s` replaces the monitor's for this poll.

        Raises `ReplayUnavailable` at the second miss in a row, and `ReplayMismatch` if a table is missing or the
        server is another incarnation than at the first poll.
        """
        try:
            info = _ask(self._channel, self._address, timeout_s or self._timeout_s)
        except ReplayUnavailable as error:
            self._misses += 1
            if self._misses <= MISSES_ALLOWED:
                return None
            raise ReplayUnavailable(
                f"the replay server at {self._address} missed {self._misses} polls of {self._timeout_s:g} s: {error}"
            ) from error
        self._misses = 0
        check_tables(info, self._tables, self._address)
        self._state_id = self._state_id or info.tables_state_id
        if info.tables_state_id != self._state_id:
            raise ReplayMismatch(
                f"the replay server at {self._address} was restarted or replaced: its tables were made anew"
            )
        return info

    def close(self) -> None:
        self._channel.close()


def _ask(channel: grpc.Channel, address: str, timeout_s: float) -> ServerInfo:
    call = channel.unary_unary(SERVER_INFO, pb.ServerInfoRequest.SerializeToString, pb.ServerInfoResponse.FromString)
    try:
        response = call(pb.ServerInfoRequest(), timeout=timeout_s)
    except grpc.RpcError as error:
        raise named_error(error, address, "asking for its tables") from error
    state = response.tables_state_id
    return ServerInfo((state.high, state.low), {t.name: _table_info(t) for t in response.table_info})


def _table_info(table: pb.TableInfo) -> TableInfo:
    limiter, times = table.rate_limiter_info, table.table_worker_time
    return TableInfo(
        name=table.name,
        size=table.current_size,
        max_size=table.max_size,
        inserted=limiter.insert_stats.completed,
        sampled=limiter.sample_stats.completed,
        samples_per_insert=limiter.samples_per_insert,
        min_size_to_sample=limiter.min_size_to_sample,
        min_diff=limiter.min_diff,
        max_diff=limiter.max_diff,
        waiting_for_inserts_ms=times.waiting_for_inserts_ms,
        waiting_for_sampling_ms=times.waiting_for_sampling_ms,
    )
