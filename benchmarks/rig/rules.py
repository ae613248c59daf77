"""What makes a rig's numbers comparable. A summary that breaks a rule is invalid. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.rig.arms import ARMS
from benchmarks.rig.measure import PLANNED_PATHS

Tree = dict[str, Any]
SAME = (
    "model",
    "attention_backend",
    "router",
    "trace",
    "prefetch_policy",
    "nic_bits_per_s",
    "page_size",
)
"""Of an arm's `config`: equal in every arm of all topologies."""
SAME_IN_TOPOLOGY = ("prefill_pools",)
"""Equal in every arm of one topology: several engines share what one has."""
MIN_HITS = 0.95
MIN_FROM_STORAGE = 0.90
MIN_OVER_RECOMPUTE = 1.3
PLANNED_TOLERANCE = 0.05
MAX_FOREIGN = 0.10


def broken_rules(summary: Tree) -> list[str]:
    """Every rule that is broken, in words; empty for a valid summary.

    Arms that were not run break nothing.
    """
    broken = [text for name in SAME for text in _differs(name, _arms(summary))]
    for topology, block in summary["topologies"].items():
        arms = {name: arm for name, arm in block["arms"].items() if arm["runs"]}
        of_topology = [pair for pair in _arms(summary) if pair[0].split()[0] == topology]
        broken += [text for name in SAME_IN_TOPOLOGY for text in _differs(name, of_topology)]
        for rule in ARM_RULES:
            for name, arm in arms.items():
                if text := rule(name, arm):
                    broken.append(f"{topology} {name}: {text}")
        broken += [f"{topology}: {text}" for text in _beats_recompute(arms)]
    return broken


def _arms(summary: Tree) -> list[tuple[str, Tree]]:
    """("topology arm", its config) of every arm that was run."""
    return [
        (f"{topology} {name}", arm["config"])
        for topology, block in summary["topologies"].items()
        for name, arm in block["arms"].items()
        if arm["runs"]
    ]


def _differs(field: str, configs: list[tuple[str, Tree]]) -> list[str]:
    if not configs:
        return []
    first, wanted = configs[0][0], configs[0][1].get(field)
    others = [name for name, config in configs if config.get(field) != wanted]
    return [f"{field} of {', '.join(others)} differs from that of {first}"] if others else []


def _no_errors(name: str, arm: Tree) -> str:
    return f"{arm['errors']} sessions failed" if arm["errors"] else ""


def _own_runs_alike(name: str, arm: Tree) -> str:
    return "its runs were made with different settings" if arm["config_differs"] else ""


def _hooks(name: str, arm: Tree) -> str:
    """Upstream arms have CPU support only, ours the second path."""
    wanted = ARMS[name].hooks
    got = arm["config"].get("hooks")
    return "" if got == wanted else f"its engines ran with hooks {got!r} instead of {wanted!r}"


def _shaping(name: str, arm: Tree) -> str:
    shaped = ARMS[name].shaped
    got = arm["config"].get("shaped")
    return "" if got == shaped else f"its storage NICs were {'' if got else 'not '}shaped"


def _hits(name: str, arm: Tree) -> str:
    """Prompts are nearly all hits: the store was filled, sessions start in mid-trajectory."""
    if name == "recompute":
        return ""
    hits = sum((arm["hit_tokens"] or {}).values())
    share = hits / arm["prompt_tokens"] if arm["prompt_tokens"] else 0.0
    return "" if share >= MIN_HITS else f"only {share:.1%} of the prompt tokens were hits"


def _from_storage(name: str, arm: Tree) -> str:
    if name == "recompute":
        return ""
    share = arm["from_storage"] or 0.0
    if share >= MIN_FROM_STORAGE:
        return ""
    return f"only {share:.1%} of the hit tokens came off a storage NIC"


def _pools(name: str, arm: Tree) -> str:
    config = arm["config"]
    for side in ("prefill_pools", "decode_pools"):
        pools = config[side]
        tokens = max(pools["tokens"], pools["host_tokens"]) * pools["engines"]
        if tokens >= config["working_set"]:
            return f"{side} hold {tokens} tokens, the working set has {config['working_set']}"
    return ""


def _window(name: str, arm: Tree) -> str:
    turns, sessions = arm["window_turns"] or 0, arm["config"]["sessions"]
    return "" if turns >= sessions else f"only {turns:g} turns while all sessions were active"


def _alone(name: str, arm: Tree) -> str:
    """Two cores are few: what else runs on them is measured too."""
    share = arm["cpu_foreign_share"] or 0.0
    return "" if share <= MAX_FOREIGN else f"other work took {share:.0%} of the machine's CPUs"


def _planned(name: str, arm: Tree) -> str:
    """In `split` the measured bytes are those that the plans asked for."""
    if name != "split":
        return ""
    wrong = list(_off_plan(arm))
    return "; ".join(wrong)


def _off_plan(arm: Tree) -> Iterator[str]:
    for path in PLANNED_PATHS:
        asked = (arm["planned_bytes"] or {}).get(path)
        got = (arm["path_bytes"] or {}).get(path) or 0
        if not asked:
            yield f"no plan asked for {path}"
        elif abs(got / asked - 1) > PLANNED_TOLERANCE:
            yield f"{path} carried {got / asked:.1%} of what the plans asked for"


def _beats_recompute(arms: dict[str, Tree]) -> list[str]:
    """Loading over the prefill path alone must be worth it, or the numbers say little."""
    loading = arms.get("prefill_path") or arms.get("upstream_prefill_only")
    recompute = arms.get("recompute")
    if loading is None or recompute is None or not recompute["turns_per_s"]:
        return []
    ratio = loading["turns_per_s"] / recompute["turns_per_s"]
    if ratio >= MIN_OVER_RECOMPUTE:
        return []
    return [
        f"loading over the prefill path alone is {ratio:.2f}x recompute, not "
        f"{MIN_OVER_RECOMPUTE}x: change the model's size or the NIC's rate"
    ]


ARM_RULES: tuple[Callable[[str, Tree], str], ...] = (
    _no_errors,
    _own_runs_alike,
    _hooks,
    _shaping,
    _hits,
    _from_storage,
    _pools,
    _window,
    _alone,
    _planned,
)
