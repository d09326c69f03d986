"""SPIRE's external WorkloadAttestor: its services, over whoever attests.

Who that is, this module does not know: it is given an ``Attests``.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from tracer.errors import AttestError, TracerError, UsageError
from tracer.serve import spire_messages as messages
from tracer.serve.spire_config import PluginConfig, read

_log = logging.getLogger("podtracer.plugin")

BROKER_CALLER = "spire-agent-broker-caller-id"
"""Metadata that says for whom the agent asks, and that a broker's policy would have to be asked."""

_NO_REFERENCE = "podtracer cannot attest by this kind of reference"


class Attests(Protocol):
    """Whoever attests."""

    def configure(self, config: PluginConfig) -> None:
        """From now on by this configuration. Raises UsageError, and then everything is as it was."""

    def unconfigure(self) -> None:
        """From now on not at all."""

    async def attest(self, pid: int) -> tuple[str, ...]:
        """The selectors of a process, without their type. Raises AttestError."""


def handlers(attests: Attests) -> list[grpc.GenericRpcHandler]:
    """The services of the plugin that SPIRE's agent asks for."""
    plugin = _Plugin(attests)
    attestor, config, init = messages.attestor, messages.config, messages.init
    return [
        _service(
            messages.INIT,
            Init=(plugin.init, init.InitRequest),
            Deinit=(plugin.deinit, init.DeinitRequest),
        ),
        _service(
            messages.CONFIG,
            Configure=(plugin.configure, config.ConfigureRequest),
            Validate=(plugin.validate, config.ValidateRequest),
        ),
        _service(
            messages.ATTESTOR,
            Attest=(plugin.attest, attestor.AttestRequest),
            AttestReference=(plugin.attest_reference, attestor.AttestReferenceRequest),
        ),
    ]


Answer = Callable[[Any, Any], Awaitable[Any]]


def _service(name: str, **methods: tuple[Answer, Any]) -> grpc.GenericRpcHandler:
    made = {
        method: grpc.unary_unary_rpc_method_handler(
            _guarded(answer),
            request_deserializer=request.FromString,
            response_serializer=_serialize,
        )
        for method, (answer, request) in methods.items()
    }
    return grpc.method_handlers_generic_handler(name, made)


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _guarded(answer: Answer) -> Answer:
    """Errors as gRPC statuses, whatever they are."""

    async def guarded(request: Any, context: Any) -> Any:
        try:
            return await answer(request, context)
        except AttestError as error:
            code, words = error.code, error.what
        except UsageError as error:
            code, words = "InvalidArgument", _words(error)
        except (asyncio.CancelledError, grpc.RpcError, grpc.aio.AbortError):
            raise
        except Exception as error:
            _log.exception("an answer failed in a way nobody thought of")
            code, words = "Internal", f"internal error: {type(error).__name__}"
        await context.abort(_status(code), words)
        return None

    return guarded


def _status(code: str) -> grpc.StatusCode:
    """gRPC's own value for Go's spelling of a code."""
    return grpc.StatusCode[re.sub(r"(?<!^)(?=[A-Z])", "_", code).upper()]


def _words(error: TracerError) -> str:
    """The error with the key that it is about."""
    named = error.obj is None or error.obj in error.what
    return error.what if named else f"{error.obj}: {error.what}"


class _Plugin:
    def __init__(self, attests: Attests) -> None:
        self._attests = attests

    async def init(self, _request: Any, _context: Any) -> Any:
        return messages.init.InitResponse(plugin_service_names=[messages.ATTESTOR, messages.CONFIG])

    async def deinit(self, _request: Any, _context: Any) -> Any:
        self._attests.unconfigure()
        return messages.init.DeinitResponse()

    async def configure(self, request: Any, _context: Any) -> Any:
        config = read(request.hcl_configuration)
        self._attests.configure(config)
        _log.info("configured", extra={"fields": {"mode": config.mode, "fallback": config.fallback}})
        return messages.config.ConfigureResponse()

    async def validate(self, request: Any, _context: Any) -> Any:
        try:
            read(request.hcl_configuration)
        except UsageError as error:
            return messages.config.ValidateResponse(valid=False, notes=[_words(error)])
        return messages.config.ValidateResponse(valid=True)

    async def attest(self, request: Any, _context: Any) -> Any:
        return messages.attestor.AttestResponse(selector_values=await self._attests.attest(request.pid))

    async def attest_reference(self, request: Any, context: Any) -> Any:
        if any(key == BROKER_CALLER for key, _ in context.invocation_metadata() or ()):
            raise AttestError("Internal", "broker configuration missing")
        kind = request.reference.type_url.rpartition("/")[2]
        if kind == messages.OBJECT_REFERENCE:
            raise AttestError("Unimplemented", f"{_NO_REFERENCE}: {kind}")
        if kind != messages.PID_REFERENCE:
            raise AttestError("InvalidArgument", f"{_NO_REFERENCE}: {kind[:200]!r}")
        try:
            reference = messages.reference.WorkloadPIDReference.FromString(request.reference.value)
        except DecodeError as error:
            raise AttestError("InvalidArgument", f"this is no {kind}") from error
        return messages.attestor.AttestReferenceResponse(selector_values=await self._attests.attest(reference.pid))
