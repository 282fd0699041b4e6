"""Dask over Unix sockets in a folder that one user alone can enter, for the workers of one machine.

A scheduler runs what its clients send, and on a port of this machine each of its users can be a client; Dask 2026.8
knows no other proof than certificates, which it needs another package to make. A folder of mode 0700 proves it too: the
system lets nobody else in.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from distributed import LocalCluster
from distributed.comm.core import BaseListener, CommClosedError, Connector
from distributed.comm.registry import Backend, backends
from distributed.comm.tcp import MAX_BUFFER_SIZE, TCP
from distributed.security import Security
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import bind_unix_socket
from tornado.tcpserver import TCPServer

from qnas_plugin.errors import ClusterError, OutputError
from qnas_plugin.files.locks import alone_in
from qnas_plugin.hardware.turns import private_folder

SCHEME = "qnas-private"
"""Addresses are ``qnas-private://FOLDER:NUMBER``: Dask wants a number behind a colon; here it names the socket."""


LONGEST = 90
"""Characters of a folder in which Linux still takes the name of a socket: 108 with it."""


@contextmanager
def private_cluster(workers: int, **options: Any) -> Iterator[LocalCluster]:
    """A scheduler and so many workers of one thread each, as processes of this machine that this user alone can reach.

    Args:
        workers: How many.
        options: More for Dask's workers.

    Raises:
        ClusterError: The name of the user's folder is too long for sockets.
        HardwareError: The user has no folder that is closed to others.
    """
    place = private_folder()
    for old in place.glob("workers-*"):  # of a driver that was killed
        with suppress(OutputError, OSError), alone_in(old):
            shutil.rmtree(old)
    with tempfile.TemporaryDirectory(dir=place, prefix="workers-") as folder, alone_in(Path(folder)):
        if len(folder) > LONGEST:
            raise ClusterError(
                f"the folder {folder} has a name too long for the sockets of workers; set XDG_RUNTIME_DIR to a folder "
                "of mode 0700 with a shorter one"
            )
        # Scheduler and workers open a port for web pages each, whatever they are told; there are none behind it.
        pages: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
        with (
            dask.config.set(pages),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host=folder,
                protocol=SCHEME,
                security=Private(),
                dashboard_address="127.0.0.1:0",  # else a port that is taken is warned of
                scheduler_kwargs={"dashboard": False},
                silence_logs=logging.CRITICAL,
                **options,
            ) as cluster,
        ):
            yield cluster


class Private(Security):  # type: ignore[misc]
    """Goes to each process that Dask starts; to unpickle it imports this module, which makes the scheme known there."""


class _Connector(Connector):  # type: ignore[misc]
    async def connect(self, address: str, deserialize: bool = True, **_: Any) -> TCP:
        stream = IOStream(socket.socket(socket.AF_UNIX), max_buffer_size=MAX_BUFFER_SIZE)
        try:
            await stream.connect(str(_path(address)))
        except StreamClosedError as error:
            raise CommClosedError(f"cannot connect to {_path(address)}: {error.real_error}") from error
        return _comm(stream, address, deserialize)


class _Server(TCPServer):
    def __init__(self, accept: Callable[[IOStream], Awaitable[None]]) -> None:
        super().__init__(max_buffer_size=MAX_BUFFER_SIZE)
        self._accept = accept

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await self._accept(stream)


class _Listener(BaseListener):  # type: ignore[misc]
    prefix = f"{SCHEME}://"

    def __init__(self, address: str, handle: Callable[[TCP], Awaitable[None]], deserialize: bool) -> None:
        super().__init__()
        folder, _, number = address.rpartition(":")
        self._address = f"{folder}:{int(number) or secrets.randbits(48)}"
        self._handle, self._deserialize = handle, deserialize
        self._server = _Server(self._accept)

    async def start(self) -> None:
        self._server.add_socket(bind_unix_socket(str(_path(self._address)), mode=0o600))

    def stop(self) -> None:
        self._server.stop()
        _path(self._address).unlink(missing_ok=True)

    async def _accept(self, stream: IOStream) -> None:
        comm = _comm(stream, self._address, self._deserialize)
        try:
            await self.on_connection(comm)
        except CommClosedError:
            return
        await self._handle(comm)

    @property
    def listen_address(self) -> str:
        return f"{SCHEME}://{self._address}"

    contact_address = listen_address


class _Backend(Backend):  # type: ignore[misc]
    def get_connector(self) -> _Connector:
        return _Connector()

    def get_listener(self, loc: str, handle_comm: Any, deserialize: bool, **_: Any) -> _Listener:
        return _Listener(loc, handle_comm, deserialize)

    def get_address_host(self, loc: str) -> str:
        return "127.0.0.1"

    def resolve_address(self, loc: str) -> str:
        return loc

    def get_local_address_for(self, loc: str) -> str:
        return f"{loc.rpartition(':')[0]}:0"


def _path(address: str) -> Path:
    """The socket of an address without its scheme."""
    folder, _, number = address.rpartition(":")
    return Path(folder) / f"{int(number):x}"


def _comm(stream: IOStream, address: str, deserialize: bool) -> TCP:
    return TCP(stream, f"{SCHEME}://{address}", f"{SCHEME}://{address}", deserialize)


backends[SCHEME] = _Backend()
logging.getLogger("distributed.comm.tcp").setLevel(logging.CRITICAL)  # these sockets have no time-outs, an error to it
