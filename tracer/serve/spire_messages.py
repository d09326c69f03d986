"""The messages between SPIRE's agent and a plugin, and the names of their services.

What is on the wire is written down in ``proto/``; the tables here name the same fields, and a test compares the two.
This module loads protobuf.
"""

from __future__ import annotations

from tracer.protobuf import Field, Table, declare

INIT = "spire.service.private.init.v1.Init"
ATTESTOR = "spire.plugin.agent.workloadattestor.v1.WorkloadAttestor"
CONFIG = "spire.service.common.config.v1.Config"
BROKER = "plugin.GRPCBroker"
CONTROLLER = "plugin.GRPCController"
STDIO = "plugin.GRPCStdio"
HEALTH = "grpc.health.v1.Health"

PID_REFERENCE = "spiffe.broker.WorkloadPIDReference"
OBJECT_REFERENCE = "spiffe.broker.KubernetesObjectReference"

_SELECTORS = {"selector_values": Field(1, repeated=True)}
_CONFIGURATION = {"core_configuration": Field(1, "CoreConfiguration"), "hcl_configuration": Field(2)}

TABLES: dict[str, Table] = {
    "spire.service.private.init.v1": {
        "InitRequest": {"host_service_names": Field(1, repeated=True)},
        "InitResponse": {"plugin_service_names": Field(1, repeated=True)},
        "DeinitRequest": {},
        "DeinitResponse": {},
    },
    "spire.plugin.agent.workloadattestor.v1": {
        "AttestRequest": {"pid": Field(1, "int32")},
        "AttestResponse": _SELECTORS,
        # On the wire this is google.protobuf.Any.
        "AttestReferenceRequest": {"reference": Field(1, "Reference")},
        "Reference": {"type_url": Field(1), "value": Field(2, "bytes")},
        "AttestReferenceResponse": _SELECTORS,
    },
    "spire.service.common.config.v1": {
        "CoreConfiguration": {"trust_domain": Field(1)},
        "ConfigureRequest": _CONFIGURATION,
        "ConfigureResponse": {},
        "ValidateRequest": _CONFIGURATION,
        "ValidateResponse": {"valid": Field(1, "bool"), "notes": Field(2, repeated=True)},
    },
    "spiffe.broker": {"WorkloadPIDReference": {"pid": Field(1, "int32")}},
    "plugin": {
        "ConnInfo": {
            "service_id": Field(1, "uint32"),
            "network": Field(2),
            "address": Field(3),
            "knock": Field(4, "Knock"),
        },
        "Knock": {"knock": Field(1, "bool"), "ack": Field(2, "bool"), "error": Field(3)},
        "Empty": {},
        "StdioData": {"channel": Field(1, "int32"), "data": Field(2, "bytes")},
    },
    "grpc.health.v1": {
        "HealthCheckRequest": {"service": Field(1)},
        "HealthCheckResponse": {"status": Field(1, "int32")},  # an enumeration: 1 is SERVING
    },
}

init = declare("spire.service.private.init.v1", TABLES["spire.service.private.init.v1"])
attestor = declare("spire.plugin.agent.workloadattestor.v1", TABLES["spire.plugin.agent.workloadattestor.v1"])
config = declare("spire.service.common.config.v1", TABLES["spire.service.common.config.v1"])
reference = declare("spiffe.broker", TABLES["spiffe.broker"])
plugin = declare("plugin", TABLES["plugin"])
health = declare("grpc.health.v1", TABLES["grpc.health.v1"])
