"""The README and docs/ name everything that a user can type, set or get back."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import pytest

from tracer import errors
from tracer.cli import bench, configuration, main
from tracer.cli.group import COMMANDS, cli
from tracer.identity import cgroup_path
from tracer.model import State
from tracer.serve import spire_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = README + "".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
WORDS = set(re.findall(r"[\w.-]+", DOCS))


def commands() -> dict[str, click.Command]:
    return {name: importlib.import_module(lazy.module).command for name, lazy in COMMANDS.items()}


def every_command() -> Iterator[click.Command]:
    for command in (cli, *commands().values()):
        yield command
        if isinstance(command, click.Group) and command is not cli:
            yield from command.commands.values()


def flags() -> Iterator[str]:
    for command in every_command():
        for param in command.get_params(click.Context(command, help_option_names=["-h", "--help"])):
            if isinstance(param, click.Option):
                yield from param.opts + param.secondary_opts


def exit_codes(error: type[errors.TracerError] = errors.TracerError) -> Iterator[int]:
    yield error.exit_code
    for kind in error.__subclasses__():
        yield from exit_codes(kind)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    assert f"`podtracer {name}" in DOCS


@pytest.mark.parametrize("name", bench.command.commands)
def test_every_benchmark_is_documented(name: str) -> None:
    assert f"`podtracer bench {name}`" in DOCS


@pytest.mark.parametrize("flag", sorted(set(flags())))
def test_every_flag_is_documented(flag: str) -> None:
    assert flag in WORDS


@pytest.mark.parametrize("key", configuration.OPTIONS)
def test_every_environment_variable_and_default_is_documented(key: str) -> None:
    option = configuration.OPTIONS[key]
    assert {option.variable, *option.fallbacks} <= WORDS
    if isinstance(option.default, str):
        assert f"`{option.default}`" in DOCS


def test_the_configuration_file_and_its_variable_are_documented() -> None:
    assert "PODTRACER_CONFIG" in WORDS
    assert configuration.DEFAULT_FILE in DOCS


@pytest.mark.parametrize("code", sorted({0, 1, *exit_codes(), main.INTERNAL, main.INTERRUPTED}))
def test_every_exit_code_is_documented(code: int) -> None:
    assert re.search(rf"^\| {code} \|", DOCS, re.M)


@pytest.mark.parametrize("state", list(State))
def test_every_state_is_documented(state: State) -> None:
    assert f"| `{state}` |" in DOCS


def test_every_reason_is_documented() -> None:
    source = "".join(path.read_text() for path in (ROOT / "tracer/identity").glob("*.py"))
    reasons = set(re.findall(r'(?:State\.\w+|_unknown\(\w+|Workload\([^"()]*), "([a-z_]+)"', source))
    assert {"sandbox", "conflict", "hierarchy"} <= reasons
    for reason in (*reasons, *get_args(cgroup_path.Why)):
        assert f"`{reason}`" in README, reason


@pytest.mark.parametrize("key", spire_config.KEYS)
def test_every_key_of_the_plugin_is_documented(key: str) -> None:
    assert f"`{key}`" in README


def test_nothing_is_documented_that_is_not_there() -> None:
    # scripts/test --all and --kernels, lookup -, spire-server entry show -output
    others = {"--all", "--kernels", "-", "-output"}
    known = set(flags()) | {"-h", "--help"} | others
    spoken = {word for code in re.findall(r"`([^`\n]+)`", README) for word in re.findall(r"(?<!\S)-[\w-]*", code)}
    assert spoken <= known, spoken - known


def test_what_the_readme_refers_to_is_in_the_repository() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`(scripts/\w+|bpf/|tracer/\w+/)", README):
        assert (ROOT / path).exists(), path


def test_every_test_that_the_security_document_names_is_there() -> None:
    """Each rule against an attacker is shown by a test that can be run."""
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 20
    for path, name in named:
        source = (ROOT / path).read_text()
        assert not name or re.search(rf"^(def|class) {name}\b|^{name} = ", source, re.MULTILINE), f"{path}::{name}"
