"""The entry point: four ways of naming the connector on vLLM's command line, and versions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from memcache_connector.vllm import MemCacheConnector, plugin
from memcache_connector.vllm.version import UnsupportedVllm, check

JSON = json.dumps({"kv_connector": "MemCacheConnector", "kv_role": "kv_producer"})
WAYS = {
    "word": ["--kv-transfer-config", "memcache"],
    "word after =": ["--kv-transfer-config=memcache"],
    "json": ["--kv-transfer-config", JSON],
    "dotted": ["--kv-transfer-config.kv_connector", "MemCacheConnector", "--kv-transfer-config.kv_role", "kv_both"],
    "module path": [
        "--kv-transfer-config.kv_connector",
        "MemCacheConnector",
        "--kv-transfer-config.kv_connector_module_path",
        "memcache_connector.vllm",
        "--kv-transfer-config.kv_role",
        "kv_both",
    ],
}


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """vLLM as it was before the plugin, then with it."""
    monkeypatch.setattr(KVConnectorFactory, "_registry", dict(KVConnectorFactory._registry))
    KVConnectorFactory._registry.pop("MemCacheConnector", None)
    original = EngineArgs.__dict__["add_cli_args"]
    plugin.register()
    yield
    EngineArgs.add_cli_args = original


def parse(arguments: list[str], args_class: type[Any]) -> Any:
    parser = args_class.add_cli_args(FlexibleArgumentParser())
    return args_class.from_cli_args(parser.parse_args(arguments)).kv_transfer_config


@pytest.mark.parametrize("args_class", [EngineArgs, AsyncEngineArgs])
@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS.keys())
def test_every_way_of_naming_the_connector(arguments: list[str], args_class: type[Any]) -> None:
    config = parse(arguments, args_class)
    assert config.kv_connector == "MemCacheConnector"
    assert KVConnectorFactory.get_connector_class(config) is MemCacheConnector


def test_the_word_recomputes_what_cannot_be_loaded() -> None:
    config = parse(WAYS["word"], EngineArgs)
    assert config.kv_role == "kv_both"
    assert config.kv_load_failure_policy == "recompute"


def test_other_words_are_refused_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--kv-transfer-config", "memcash"], EngineArgs)
    assert "Invalid JSON" in capsys.readouterr().err


def test_registering_twice_changes_nothing() -> None:
    once = EngineArgs.add_cli_args
    plugin.register()
    assert EngineArgs.add_cli_args is once
    assert parse(WAYS["word"], EngineArgs).kv_connector == "MemCacheConnector"


def test_a_vllm_without_the_hook_keeps_the_json_form(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import vllm.engine.arg_utils

    monkeypatch.delattr(vllm.engine.arg_utils, "EngineArgs")
    KVConnectorFactory._registry.pop("MemCacheConnector")
    with caplog.at_level("WARNING", "vllm.memcache_connector"):
        plugin.register()
    assert "MemCacheConnector" in KVConnectorFactory._registry
    assert '"kv_connector": "MemCacheConnector"' in caplog.text, "the message says what to write instead"


def test_the_package_and_the_plugin_import_without_vllm() -> None:
    script = "import sys, memcache_connector.vllm.plugin; sys.exit('vllm' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_an_old_vllm_is_told_apart(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedVllm, match=r"needs vLLM 0\.30 or newer, this is 0\.29\.1"):
        check("0.29.1")
    KVConnectorFactory._registry.pop("MemCacheConnector")
    monkeypatch.setattr("vllm.__version__", "0.28.0")
    plugin.register()
    assert "MemCacheConnector" not in KVConnectorFactory._registry, "never registered, and nothing raised"
    assert "0.28.0" in caplog.text


@pytest.mark.parametrize("version", ["0.30.0", "0.31.2+cpu", "0.32.0"])
def test_tested_versions_need_no_remark(version: str) -> None:
    assert check(version) is None


@pytest.mark.parametrize("version", ["0.33.0", "1.0.0", "0.1.dev1+gabcdef", "dev"])
def test_untested_versions_get_a_remark(version: str) -> None:
    assert version in str(check(version))
