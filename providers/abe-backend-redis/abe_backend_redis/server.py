"""Where Redis is: URLs of single servers, Sentinels and Clusters, and how to connect."""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    DefaultParser,
    SSLConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from abe.errors import ConfigurationError
from abe_backend_redis.failures import Translator

__all__ = ["Server"]

_SCHEMES = {
    "redis": ("plain", "redis"),
    "rediss": ("plain", "rediss"),
    "unix": ("plain", "unix"),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
}
_FORM = (
    "it must look like redis://[user:password@]host:port/db, rediss://… (TLS), unix:///path, "
    "redis+sentinel://host:port,host:port/service/db or redis+cluster://host:port,host:port"
)
_PARAMETERS = frozenset({"db", "client_name", "socket_keepalive"})
_TLS_PARAMETERS = {n for n in inspect.signature(SSLConnection).parameters if n[:4] == "ssl_"}
_FILES = {"ssl_ca_certs": "CA", "ssl_certfile": "CERT", "ssl_keyfile": "KEY"}
_DEFAULT_PORTS = {"plain": 6379, "cluster": 6379, "sentinel": 26379}
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class _Parser(DefaultParser):  # type: ignore[misc, valid-type]
    """Calls ``heard`` whenever something has arrived."""

    def __init__(self, heard: Callable[[], None], socket_read_size: int) -> None:
        super().__init__(socket_read_size=socket_read_size)
        self._heard = heard

    async def read_from_socket(self) -> bool:
        arrived: bool = await super().read_from_socket()
        self._heard()
        return arrived


class Server:
    """A Redis to connect to; for Sentinel and Cluster, the way to find out which.

    The arguments are those of `RedisBackend`.

    Raises:
        ConfigurationError: If the URL is malformed; the text does not repeat it.
    """

    def __init__(
        self,
        url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: Mapping[str, str] | None = None,
        sentinel_username: str | None = None,
        sentinel_password: str | None = None,
    ) -> None:
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in _SCHEMES:
            raise ConfigurationError(f"url is malformed; {_FORM}")
        self.kind, base = _SCHEMES[scheme]
        try:
            self._read(f"{base}://{rest}")
        except (TypeError, ValueError) as error:
            # Not chained: the text of the cause may hold the URL's password.
            reason = error if isinstance(error, ConfigurationError) else _FORM
            raise ConfigurationError(f"url is malformed; {reason}") from None
        if username:
            self._options["username"] = username
        if password:
            self._options["password"] = password
        if self._class is SSLConnection:
            self._options.update(tls or {})
        elif tls:
            raise ConfigurationError("tls needs a URL that asks for TLS (rediss://…)")
        self._sentinel = {
            name: value
            for name, value in (("username", sentinel_username), ("password", sentinel_password))
            if value
        }
        cluster = str(self).rpartition("/")[0] if self.kind == "plain" and not self.path else None
        self.translator = Translator(
            str(self),
            cluster and f"{base}+cluster://{cluster}",
            self._options.get("password"),
            self._options.get("ssl_password"),
            self._sentinel.get("password"),
            urlsplit(f"{base}://{rest}").password,
        )
        self.translator.served = self.kind != "plain"

    def _read(self, url: str) -> None:
        parts = urlsplit(url)
        credentials, at, hosts = parts.netloc.rpartition("@")
        path, service = parts.path, ""
        if self.kind == "sentinel":
            _, service, *db = path.split("/")
            if not service:
                raise ConfigurationError("the path of a Sentinel URL must name the service")
            path = "/" + "/".join(db)
        if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]*/?", path):
            raise ConfigurationError(_FORM)
        self.service = service
        found = []
        options: dict[str, Any] = {}
        for host in hosts.split(","):
            # redis-py takes one host at a time.
            options = dict(
                parse_url(
                    urlunsplit((parts.scheme, credentials + at + host, path, parts.query, ""))
                )
            )
            port = options.pop("port", _DEFAULT_PORTS[self.kind])
            found.append((str(options.pop("host", "localhost")), int(port)))
        self._class: type[AbstractConnection] = options.pop("connection_class", Connection)
        self.addresses: Sequence[tuple[str, int]] = found
        self.path = str(options.get("path", ""))
        known = {*_PARAMETERS, "username", "password", "path"}
        if self._class is SSLConnection:
            known |= _TLS_PARAMETERS
        for name in options:
            if name not in known:
                hint = "; TLS is rediss://" if name in _TLS_PARAMETERS else ""
                raise ConfigurationError(f"it has an unknown parameter {name!r}{hint}")
        self._options = options
        if self.kind == "cluster" and options.get("db"):
            raise ConfigurationError("a Cluster has only database 0")

    def __repr__(self) -> str:
        return f"<Server {self}>"

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        addresses = ",".join(f"{host}:{port}" for host, port in self.addresses)
        service = f"/{self.service}" if self.service else ""
        return f"{addresses}{service}/{self._options.get('db', 0)}"

    async def connection(
        self, slot_key: str, timeout: float, heard: Callable[[], None]
    ) -> AbstractConnection:
        """Return an unopened connection to the server of ``slot_key``; arrivals call ``heard``.

        Raises:
            redis.RedisError: If Sentinel or Cluster do not tell which that is.
            ConfigurationError: If a file for TLS is not there.
        """
        self._check_files()
        options: dict[str, Any] = {
            "client_name": "abe",
            "parser_class": partial(_Parser, heard),
            **self._options,
            # Time-outs are ours: a blocked read must not be cut off by the driver's.
            "socket_timeout": None,
            "socket_connect_timeout": timeout,
            "socket_read_size": 1 << 18,
            "protocol": 2,
        }
        if not self.path:
            host, port = await self._address(slot_key, timeout)
            numbers = {
                getattr(socket, name): seconds
                for name, seconds in _KEEPALIVE.items()
                if hasattr(socket, name)
            }
            keepalive = {"socket_keepalive": True, "socket_keepalive_options": numbers}
            options = {**keepalive, **options, "host": host, "port": port}
        return self._class(**options)

    async def check_tls(self) -> None:
        """Find out why a connection could not be opened, unless one could before.

        Raises:
            ConfigurationError: If the server speaks TLS and the URL does not, or the reverse.
        """
        if self.kind != "plain" or self.path or self.translator.served:
            return
        context = None
        if self._class is not SSLConnection:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # nothing is sent but PING
        advice = ""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection(*self.addresses[0], ssl=context)
                writer.write(b"PING\r\n")
                if context is not None:
                    advice = "speaks TLS; use rediss://"
                elif await reader.read(1) in (b"+", b"-"):
                    advice = "does not speak TLS; use redis://"
                writer.close()
        if advice:
            raise ConfigurationError(f"Redis at {self} {advice} in ABE_REDIS_URL")

    def _check_files(self) -> None:
        for name, end in _FILES.items():
            if name in self._options and not Path(self._options[name]).is_file():
                raise ConfigurationError(
                    f"there is no file {self._options[name]!r} (ABE_REDIS_TLS_{end}, or {name} in "
                    "ABE_REDIS_URL)"
                )

    async def _address(self, slot_key: str, timeout: float) -> tuple[str, int]:
        if self.kind == "sentinel":
            return await self._ask_sentinels(timeout)
        if self.kind == "cluster":
            return await self._ask_cluster(slot_key, timeout)
        return self.addresses[0]

    def _shared(self, timeout: float) -> dict[str, Any]:
        options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "protocol": 2,
            # Who connects tries again, and the next address is not kept waiting.
            "retry": Retry(NoBackoff(), 0),
        }
        if self._class is SSLConnection:
            options["ssl"] = True
            options |= {n: v for n, v in self._options.items() if n[:4] == "ssl_"}
        return options

    async def _ask_sentinels(self, timeout: float) -> tuple[str, int]:
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            list(self.addresses), sentinel_kwargs=self._shared(timeout) | self._sentinel
        )
        try:
            host, port = await sentinel.discover_master(self.service)
        finally:
            for client in sentinel.sentinels:
                await client.aclose()
        return str(host), int(port)

    async def _ask_cluster(self, slot_key: str, timeout: float) -> tuple[str, int]:
        credentials = {n: self._options[n] for n in ("username", "password") if n in self._options}
        cluster = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in self.addresses],
            **self._shared(timeout),
            **credentials,
        )
        try:
            _ = await cluster.initialize()
            node = cluster.get_node_from_key(slot_key)
        finally:
            await cluster.aclose()
        if node is None:
            raise ConnectionError("no node of the Cluster serves the prefix's slot")
        return str(node.host), int(node.port)
