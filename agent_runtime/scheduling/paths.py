"""Who reads the turn's cached prefix on a pair of engines that is already chosen."""

from __future__ import annotations

from agent_runtime.scheduling.passes import Pass
from agent_runtime.scheduling.split import (
    Links,
    Rule,
    Sides,
    best_split,
    fixed_split,
    load_seconds,
)
from agent_runtime.scheduling.view import TurnView


def choose_path(
    state: Pass,
    turn: TurnView,
    p: int,
    d: int,
    default: Rule,
    queues: tuple[float, float] | None = None,
) -> tuple[int | None, str]:
    """The split point and the words for it; null: no plan.

    default: the rule of the placement policy, where the configuration leaves it to that (`auto`).
    queues: reading queues of P and D in tokens (null: of the two engines, with this pass's turns).
    """
    configured = state.view.split_policy
    rule = default if configured == "auto" else configured
    if rule == "none":
        return None, ""
    if (why := no_plan(state, turn, p, d)) is not None:
        return None, f"no plan: {why}"
    n = turn.cached_pages or 0
    if rule == "best":
        return best_path(state, turn, p, d)
    split = fixed_split(rule, n, _sides(state, p, queues or _queues(state, p, d)))
    most = state.decode.most_pages(d, turn, state.held(turn, state.decode.side, d))
    if split.k > most:
        return most, f"{split.reason}; D has room for {most} of {split.k} pages"
    return split.k, split.reason


def no_plan(state: Pass, turn: TurnView, p: int, d: int) -> str | None:
    """Why the pair gets no plan for this turn; null: it gets one."""
    if turn.cached_pages is None:
        return turn.no_plan
    prefill, decode = state.prefill.side, state.decode.side
    if not prefill.plans[p]:
        return f"{prefill.ranks[p].engine!r} takes none"
    if not decode.plans[d]:
        return f"{decode.ranks[d].engine!r} takes none"
    number = state.view.namespaces.get(turn.namespace)
    if turn.namespace and number != prefill.namespace[p]:
        return "what the store holds was asked for other engines' pages"
    return None


def best_path(state: Pass, turn: TurnView, p: int, d: int) -> tuple[int, str]:
    """The split with the least loading time, and that time in words."""
    n, page = turn.cached_pages or 0, turn.page_size
    links = links_of(state, turn, p, d)
    k = best_split(n, page, links, state.decode.most_pages(d, turn, links.d))
    return k, f"D supplies {k} of {n} pages, loaded in {load_seconds(k, n, page, links):.3f} s"


def links_of(state: Pass, turn: TurnView, p: int, d: int) -> Links:
    """The ways of one pair, with what this pass has put on them."""
    prefill, decode = state.prefill, state.decode
    return Links(
        p=state.held(turn, prefill.side, p),
        d=state.held(turn, decode.side, d),
        prefill_queue=float(prefill.store_queue[p]),
        decode_queue=float(decode.store_queue[d]),
        pull_queue=float(prefill.peer_queue[p]),
        prefill_rate=float(prefill.side.store_rate[p]),
        decode_rate=float(decode.side.store_rate[d]),
        pull_rate=float(prefill.side.peer_rate[p]),
        pull_fixed_s=state.view.profile.pull_fixed_s,
    )


def _queues(state: Pass, p: int, d: int) -> tuple[float, float]:
    return float(state.prefill.store_queue[p]), float(state.decode.store_queue[d])


def _sides(state: Pass, p: int, queues: tuple[float, float]) -> Sides:
    prefills, decodes = state.planning(int(state.view.prefill.namespace[p]))
    return Sides(
        prefill_engines=prefills,
        decode_engines=decodes,
        prefill_tokens=queues[0],
        decode_tokens=queues[1],
        # Once round the engines: turn by turn, of two engines one would always have the same path.
        turn=state.cursor.splits // max(prefills, decodes),
    )
