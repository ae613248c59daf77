"""The engines of the configuration, checked once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from agent_runtime.config import EngineEndpoint
from dualpath_sglang.contract.addresses import is_http_url
from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.contract.ids import EngineId


def fleet_of(engines: Sequence[EngineEndpoint]) -> Mapping[EngineId, EngineEndpoint]:
    """Engines by name, in configuration order. Raises ConfigError naming the field.

    A fleet is prefill and decode engines, or plain ones; a mixture has no meaning.
    """
    for index, engine in enumerate(engines):
        _check(index, engine)
    doubled = [name for name, n in Counter(e.name for e in engines).items() if n > 1]
    if doubled:
        raise ConfigError(f"two engines are named {doubled[0]!r}", field="engines")
    roles = {engine.role for engine in engines}
    if "plain" in roles and len(roles) > 1:
        raise ConfigError(
            "plain engines cannot be mixed with prefill and decode engines", field="engines"
        )
    if len(roles) == 1 and "plain" not in roles:
        lacking = ({"prefill", "decode"} - roles).pop()
        raise ConfigError(f"the fleet has no {lacking} engine: add one", field="engines")
    return {EngineId(engine.name): engine for engine in engines}


def _check(index: int, engine: EngineEndpoint) -> None:
    field = f"engines[{index}]"
    if not engine.name:
        raise ConfigError(f"{field}.name is empty: give a unique name", field=f"{field}.name")
    if not is_http_url(engine.url):
        raise ConfigError(
            f"{field}.url is {engine.url!r}: write http://host:port", field=f"{field}.url"
        )
