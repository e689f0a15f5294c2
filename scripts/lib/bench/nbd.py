"""A small NBD client that knows when each request was sent and answered. One request at a time."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

NBD_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
EXPORT_NAME = 1
READ, WRITE = 0, 1


class NbdError(Exception):
    """The server answered an error, or the connection is gone."""


class Client:
    """A connection to an export on a unix socket."""

    def __init__(self, path: Path, export: str, limit_s: float = 60):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(limit_s)
        try:
            self.socket.connect(str(path))
            greeting, option = struct.unpack(">QQ", self._read(16))
            if (greeting, option) != (NBD_MAGIC, OPTION_MAGIC):
                raise NbdError("not an NBD server")
            self._read(2)
            name = export.encode()
            self.socket.sendall(
                struct.pack(">IQII", 3, OPTION_MAGIC, EXPORT_NAME, len(name)) + name
            )
            self.size_bytes, _flags = struct.unpack(">QH", self._read(10))
        except (OSError, NbdError):
            self.socket.close()
            raise
        self.cookie = 0

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise NbdError("the connection is closed")
            data += part
        return bytes(data)

    def _request(self, command: int, offset: int, length: int, payload: bytes = b"") -> None:
        self.cookie += 1
        self.socket.sendall(
            struct.pack(">IHHQQI", REQUEST_MAGIC, 0, command, self.cookie, offset, length) + payload
        )
        magic, error, cookie = struct.unpack(">IIQ", self._read(16))
        if magic != SIMPLE_REPLY_MAGIC or cookie != self.cookie:
            raise NbdError("not the reply to the request")
        if error:
            raise NbdError(f"error {error}")

    def write(self, offset: int, data: bytes) -> float:
        """When the answer came."""
        self._request(WRITE, offset, len(data), data)
        return time.monotonic()

    def read(self, offset: int, length: int) -> bytes:
        self._request(READ, offset, length)
        return self._read(length)

    def close(self) -> None:
        self.socket.close()
