"""The ``vllm.general_plugins`` entry point.

vLLM calls :func:`register` in every process it starts, before it parses its command line. It makes the connector
known by name and the bare word ``memcache`` a value of ``--kv-transfer-config``. Importing this module imports
nothing of vLLM, so that other users of the package do not pay for it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from memcache_connector.vllm.log import logger
from memcache_connector.vllm.version import UnsupportedVllm, check

CONNECTOR_NAME = "MemCacheConnector"
CONNECTOR_MODULE = "memcache_connector.vllm.connector"
OPTION = "--kv-transfer-config"

SHORTHANDS: dict[str, dict[str, Any]] = {
    "memcache": {"kv_connector": CONNECTOR_NAME, "kv_role": "kv_both", "kv_load_failure_policy": "recompute"},
}
"""Words that stand for a whole configuration."""

_MARK = "_memcache_shorthand"


def register() -> None:
    """Make the connector known to the vLLM of this process. May be called any number of times.

    Never raises: a vLLM that this package cannot serve must still start for those who do not use the connector.
    """
    try:
        import vllm

        remark = check(vllm.__version__)
    except UnsupportedVllm as error:
        logger.error("%s", error)
        return
    if remark is not None:
        logger.info("%s", remark)
    try:
        _register_name()
    except Exception:
        logger.exception(
            "could not register %s with vLLM; name it with kv_connector_module_path=%s instead",
            CONNECTOR_NAME,
            CONNECTOR_MODULE,
        )
    try:
        _teach_shorthands()
    except Exception as error:
        logger.warning(
            "'%s memcache' is not available with this vLLM (%s); use %s '%s'",
            OPTION,
            error,
            OPTION,
            json.dumps(SHORTHANDS["memcache"]),
        )


def _register_name() -> None:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    # The factory refuses a name it has: so it knows ours since an earlier call.
    with contextlib.suppress(ValueError):
        KVConnectorFactory.register_connector(CONNECTOR_NAME, CONNECTOR_MODULE, CONNECTOR_NAME)


def _teach_shorthands() -> None:
    """Have every parser that vLLM builds from now on accept the words of :data:`SHORTHANDS`.

    vLLM offers no hook for option values, so the function that adds its options is wrapped: what it did is done
    unchanged, then the converter of the one option is put behind :func:`expand`.
    """
    from vllm.engine.arg_utils import EngineArgs

    add_options = EngineArgs.add_cli_args
    if getattr(add_options, _MARK, False):
        return

    def add_cli_args(parser: Any) -> Any:
        parser = add_options(parser)
        if not _wrap_option(parser):
            logger.warning("vLLM's parser has no %s option to extend; 'memcache' is not accepted there", OPTION)
        return parser

    setattr(add_cli_args, _MARK, True)
    EngineArgs.add_cli_args = staticmethod(add_cli_args)


def _wrap_option(parser: Any) -> bool:
    for action in getattr(parser, "_actions", ()):
        if OPTION in getattr(action, "option_strings", ()):
            action.type = _expanding(action.type)
            return True
    return False


def _expanding(convert: Callable[[str], Any] | None) -> Callable[[str], Any]:
    def converter(value: str) -> Any:
        text = expand(value)
        return convert(text) if convert is not None else text

    return converter


def expand(value: str) -> str:
    """The JSON text a shorthand stands for; any other value as it is."""
    preset = SHORTHANDS.get(value.strip())
    return value if preset is None else json.dumps(preset)
