"""The plugin's configuration: SPIRE's keys mean what they mean to SPIRE, and what we do not do is refused."""

from __future__ import annotations

import pytest

from tracer.errors import UsageError
from tracer.serve.spire_config import KEYS, PluginConfig, read, seconds

REFUSED = [
    ("sigstore {\n  allowed_identities { }\n}", "sigstore", "is not supported; use the built-in attestor"),
    ('sigstore "x" { }', "sigstore", "is not supported"),
    ("experimental { broker { } }", "experimental.broker", "is not supported; use the built-in attestor"),
    ('experimental "broker" { }', "experimental.broker", "is not supported"),
    ("experimental { sigstore { } }", "experimental.sigstore", "is not supported"),
    ("EXPERIMENTAL { Broker { } }", "experimental.broker", "is not supported"),
    ("use_new_container_locator = false", "use_new_container_locator", "is not supported"),
    ("kubelet_port = 1", "kubelet_port", "is no key"),
    ("experimental { api_server { speed = 1 } }", "experimental.api_server.speed", "is no key"),
    ("experimental = 1", "experimental", "has to be a block"),
    (
        "kubelet_read_only_port = 1 kubelet_secure_port = 2",
        "kubelet_read_only_port, kubelet_secure_port",
        "cannot use both the read-only and secure port",
    ),
    ("kubelet_secure_port = 65536", "kubelet_secure_port", "is no port"),
    ('kubelet_secure_port = "x"', "kubelet_secure_port", "is no integer"),
    ('fallback = "true"', "fallback", "is no true or false"),
    ("token_path = true", "token_path", "is no string"),
    ('certificate_path = "/c"', "private_key_path", "the private key path is required"),
    ('private_key_path = "/k"', "certificate_path", "the certificate path is required"),
    ('poll_retry_interval = "5"', "poll_retry_interval", "is no duration"),
    ('ephemeral_containers = "true"', "ephemeral_containers", "is no true or false"),
    ('pod_images_wait = "long"', "pod_images_wait", "is no duration"),
    ('reload_interval = "1d"', "reload_interval", "is no duration"),
    ('mode = "lax"', "mode", "neither strict nor parity"),
    ('socket_path = "podtracer.sock"', "socket_path", "is no path"),
    (f'socket_path = "/{"x" * 120}"', "socket_path", "is no path"),
    ('disable_kubelet_client = true token_path = "/t"', "token_path", "beside disable_kubelet_client"),
    ("disable_kubelet_client = true kubelet_secure_port = 1", "kubelet_secure_port", "beside disable_kubelet_client"),
    ("kubelet_secure_port", None, "the configuration is not HCL: line 1"),
]


@pytest.mark.parametrize(("text", "key", "words"), REFUSED, ids=[text.partition("\n")[0] for text, _, _ in REFUSED])
def test_what_cannot_be_used_is_refused_by_its_key(text: str, key: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        read(text, {})
    assert caught.value.obj == key


def test_nothing_set_is_spires_defaults_and_ours() -> None:
    assert read("", {}) == PluginConfig(
        kubelet_read_only_port=None,
        kubelet_secure_port=10250,
        kubelet_ca_path="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
        token_path="/var/run/secrets/kubernetes.io/serviceaccount/token",
        max_poll_attempts=60,
        poll_retry_interval=0.5,
        reload_interval=60.0,
        socket_path=None,
        fallback=True,
        mode="strict",
        pod_images_wait=1.0,
        ephemeral_containers=False,
    )


def test_what_is_zero_or_less_or_empty_is_the_default() -> None:
    text = """
    kubelet_read_only_port = 0    kubelet_secure_port = -1
    max_poll_attempts = -1        poll_retry_interval = "0s"    reload_interval = "-5s"
    kubelet_ca_path = ""          token_path = ""               node_name = ""
    certificate_path = ""         socket_path = ""              pod_images_wait = ""
    """
    assert read(text, {}) == read("", {})


def test_every_key_is_taken() -> None:
    config = read(
        """
        kubelet_secure_port = "10251"
        kubelet_ca_path = "/ca"
        skip_kubelet_verification = true
        token_path = "/token"
        certificate_path = "/cert"
        private_key_path = "/key"
        node_name = "node-1"
        node_name_env = "OTHER"
        max_poll_attempts = 3
        poll_retry_interval = "100ms"
        reload_interval = "1m30s"
        disable_container_selectors = true
        enable_namespace_labels = true
        use_anonymous_authentication = true
        use_new_container_locator = true
        verbose_container_locator_logs = true
        experimental { api_server { cache { enabled = true } } }
        socket_path = "unix:///run/x.sock"
        fallback = false
        mode = "parity"
        pod_images_wait = "0"
        ephemeral_containers = true
        """,
        {"OTHER": "node-2"},
    )
    assert config == PluginConfig(
        kubelet_secure_port=10251,
        kubelet_ca_path="/ca",
        skip_kubelet_verification=True,
        token_path="/token",
        certificate_path="/cert",
        private_key_path="/key",
        use_anonymous_authentication=True,
        node_name="node-1",
        max_poll_attempts=3,
        poll_retry_interval=0.1,
        reload_interval=90.0,
        disable_container_selectors=True,
        enable_namespace_labels=True,
        socket_path="/run/x.sock",
        fallback=False,
        mode="parity",
        pod_images_wait=0.0,
        ephemeral_containers=True,
    )
    assert config.poll_budget == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("text", "environ", "name"),
    [
        ("", {"MY_NODE_NAME": "a", "NODE_NAME": "b"}, "a"),
        ("", {"NODE_NAME": "b"}, None),
        ('node_name_env = "X"', {"MY_NODE_NAME": "a", "X": "x"}, "x"),
        ('node_name_env = "X"', {"MY_NODE_NAME": "a"}, None),
        ('node_name = "n" node_name_env = "X"', {"X": "x"}, "n"),
    ],
)
def test_the_nodes_name_is_found_by_spires_rule(text: str, environ: dict[str, str], name: str | None) -> None:
    assert read(text, environ).node_name == name


def test_a_certificate_alone_matters_only_where_it_would_be_used() -> None:
    assert read('certificate_path = "/c" use_anonymous_authentication = true', {}).use_anonymous_authentication
    assert read('certificate_path = "/c" kubelet_read_only_port = 10255', {}).kubelet_read_only_port == 10255


def test_disable_kubelet_client_stands_beside_what_is_not_about_the_kubelet() -> None:
    text = "disable_kubelet_client = true disable_container_selectors = true fallback = false"
    assert read(text, {}).disable_kubelet_client


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("500ms", 0.5), ("1m30s", 90.0), ("1.5h", 5400.0), (".5s", 0.5), ("1.s", 1.0), ("2us", 2e-6), ("2µs", 2e-6),
     ("-1s", -1.0), ("+1s", 1.0), ("0", 0.0), ("1h2m3s4ms", 3723.004), ("3ns", 3e-9)],
)  # fmt: skip
def test_a_duration_is_gos(text: str, wanted: float) -> None:
    assert seconds("x", text) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["", "1", "s", "1 s", "1d", "1s ", "1e3s", "--1s", ".s", "1..s", "9" * 99 + "h", "٣s"])
def test_what_is_no_duration_of_gos_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"duration|too long"):
        seconds("x", text)


def test_a_key_of_every_kind_that_is_wrong_is_named() -> None:
    for key, kind in KEYS.items():
        name = key.rpartition(".")[2]
        wrong = f"{name} = {'[1]' if kind is str else '[true]'}"
        for above in reversed(key.split(".")[:-1]):
            wrong = f"{above} {{ {wrong} }}"
        with pytest.raises(UsageError) as caught:
            read(wrong, {})
        assert caught.value.obj == key
