"""The clients of a backend, opened when first used."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES
from botocore.loaders import create_loader

from abe.errors import ConfigurationError
from abe_backend_sqs.failures import DRIVER_ERRORS, Translator, UnreachedError

__all__ = ["Access", "Link"]

POOL = 1000
"""Connections at most: each waiting consumer holds one."""
LONGEST_WAIT = 20

# Descriptions of the services: large, and the same for every backend of the process.
_loader = create_loader(os.environ.get("AWS_DATA_PATH"))


@dataclass(frozen=True, slots=True)
class Access:
    """What is known of region and credentials; AWS's usual chain finds what is not."""

    region: str | None = None
    profile: str | None = None
    key_id: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """URL of each service, if it is not at AWS."""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """AWS's other variables; they may belong to this backend alone."""

    @classmethod
    def from_env(cls, region: str | None) -> Self:
        """Read AWS's own variables now; ``region`` takes precedence over theirs."""
        left = {name: value for name, value in os.environ.items() if name[:4] == "AWS_" and value}

        def take(*names: str) -> str | None:
            return next(filter(None, [left.pop(name, None) for name in names]), None)

        theirs, endpoint = take("AWS_REGION", "AWS_DEFAULT_REGION"), take("AWS_ENDPOINT_URL")
        endpoints = {s: take(f"AWS_ENDPOINT_URL_{s.upper()}") or endpoint for s in ("sqs", "sns")}
        if left.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
            endpoints = {}
        key_id, secret = take("AWS_ACCESS_KEY_ID"), take("AWS_SECRET_ACCESS_KEY")
        profile, token = take("AWS_DEFAULT_PROFILE", "AWS_PROFILE"), take("AWS_SESSION_TOKEN")
        urls = {service: url for service, url in endpoints.items() if url}
        if key_id and secret:
            return cls(region or theirs, None, key_id, secret, token, urls, left)
        return cls(region or theirs, profile, endpoints=urls, variables=left)

    def session(self) -> AioSession:
        """Return a session of the driver; refuse variables that it reads from the process only."""
        session = AioSession(profile=self.profile)
        session.register_component("data_loader", _loader)
        if self.key_id:
            session.set_credentials(self.key_id, self.secret, self.token)
        own = {n: value for n, value in self.variables.items() if os.environ.get(n) != value}
        for name, (_, variables, _, convert) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items():
            if isinstance(variables, str) and variables in own and name != "data_path":
                value = own.pop(variables)
                session.set_config_variable(name, convert(value) if convert else value)
        if own:
            raise ConfigurationError(
                f"{', '.join(sorted(own))} cannot be given to one backend alone; set it in the "
                "environment of the process, or use a profile in AWS_CONFIG_FILE"
            )
        return session


class Link:
    """Calls SQS and SNS, and translates what goes wrong.

    Nothing is repeated here: who calls knows what may be.
    """

    def __init__(self, endpoint: str | None, access: Access, timeout: float) -> None:
        self._endpoint = endpoint
        self._access = access
        self._region = access.region
        self._timeout = timeout
        self._clients: dict[str, Any] = {}
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.closed = False
        self.translator = Translator(access.secret, access.token)

    def where(self, service: str = "sqs") -> str:
        return f"{service.upper()} at {self.endpoint(service) or self._region or 'AWS'}"

    def endpoint(self, service: str = "sqs") -> str | None:
        return self._endpoint or self._access.endpoints.get(service)

    async def call(
        self, service: str, operation: str, *, wait: float = 0.0, **parameters: Any
    ) -> dict[str, Any]:
        """Call an operation, e.g. ``send_message_batch``, and return its answer.

        The service may hold that back for ``wait`` seconds.

        Raises:
            ConnectionLostError: If there is no answer, or none that says anything.
            ConfigurationError: If the credentials or the call are refused.
        """
        if self.closed:
            raise UnreachedError(f"{self.where(service)}: the connection was closed")
        self._calls += 1
        self._idle.clear()
        try:
            async with asyncio.timeout(self._timeout + wait):
                client = self._clients.get(service) or await self._open(service)
                answer: dict[str, Any] = await getattr(client, operation)(**parameters)
                return answer
        except DRIVER_ERRORS as error:
            if isinstance(error, TimeoutError) and not str(error):
                error = TimeoutError(f"no answer within {self._timeout + wait:g} s")
            raise self.translator.translate(error, self.where(service)) from error
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _open(self, service: str) -> Any:
        async with self._lock:
            if service in self._clients:
                return self._clients[service]
            session = self._access.session()
            client = await self._stack.enter_async_context(
                session.create_client(
                    service,
                    region_name=self._region,
                    endpoint_url=self.endpoint(service),
                    config=AioConfig(
                        connect_timeout=self._timeout,
                        read_timeout=self._timeout + LONGEST_WAIT,
                        max_pool_connections=POOL,
                        parameter_validation=False,
                        retries={"mode": "standard", "total_max_attempts": 1},
                        tcp_keepalive=True,
                    ),
                )
            )
            self._region = client.meta.region_name
            if (credentials := await session.get_credentials()) is not None:
                # Texts may repeat what a role or a profile has given us.
                frozen = await credentials.get_frozen_credentials()
                self.translator.add(frozen.secret_key, frozen.token)
            self._clients[service] = client
            return client

    async def aclose(self) -> None:
        """Close the clients for good, once the calls on their way have ended."""
        self.closed = True
        await self._idle.wait()
        await self._stack.aclose()
