"""Each leaf of the exception tree has one HTTP status, in JSON and in a stream."""

from __future__ import annotations

import pytest
from router_world import World, failure, leaves, world

from agent_runtime.dispatch.events import Done, TurnEvents
from agent_runtime.http.failures import error_tree
from dualpath_sglang.contract import errors
from dualpath_sglang.contract.errors import DualPathError

STATUSES: dict[type[DualPathError], tuple[int, str]] = {
    errors.BadRequest: (400, "bad_request"),
    errors.Unauthorized: (401, "unauthorized"),
    errors.Forbidden: (403, "forbidden"),
    errors.NotFound: (404, "not_found"),
    errors.Conflict: (409, "conflict"),
    errors.BodyTooLarge: (413, "body_too_large"),
    errors.ContextOverflow: (400, "context_overflow"),
    errors.TemplateRewrite: (422, "template_rewrite"),
    errors.Saturated: (503, "saturated"),
    errors.EngineFailure: (502, "engine_failure"),
    errors.RendererFailure: (502, "renderer_failure"),
    errors.StoreFailure: (502, "store_failure"),
    errors.RouterFailure: (502, "router_failure"),
    errors.DeadlineExceeded: (504, "deadline_exceeded"),
    errors.Internal: (500, "internal_error"),
}
WITHIN_ENGINES = {errors.ConfigError, errors.StartupError, errors.WeightsUnreadable}


def test_no_leaf_is_missing() -> None:
    assert leaves() == STATUSES.keys() | WITHIN_ENGINES


class Failing:
    """Stub pipeline: every turn ends with `error`."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def start(self, *_: object) -> TurnEvents:
        events = TurnEvents()
        events.run(self._fail())
        return events

    async def _fail(self) -> Done:
        raise self._error


def failing(w: World, error: Exception) -> None:
    w.router.pipeline = Failing(error)  # type: ignore[assignment]


def made(kind: type[DualPathError]) -> DualPathError:
    if kind is errors.Saturated:
        return errors.Saturated("the cause", field="a.b", retry_after_s=2.3)
    return kind("the cause", field="a.b")


async def test_statuses_types_and_messages() -> None:
    async with world() as w:
        sid = await w.session()
        for kind, (status, name) in STATUSES.items():
            failing(w, made(kind))
            for stream in (False, True):
                reply = await w.turn(sid, token_ids=[1], stream=stream)
                assert (reply.status_code, failure(reply)["type"]) == (status, name), kind
                assert failure(reply)["message"] == "the cause"
                assert failure(reply)["field"] == "a.b"
                has_retry = "retry-after" in reply.headers
                assert has_retry == (kind is errors.Saturated)
                if has_retry:
                    assert reply.headers["retry-after"] == "3"


@pytest.mark.parametrize("kind", sorted(leaves(), key=str))
def test_the_tree_has_the_same_keys_for_all(kind: type[DualPathError]) -> None:
    error = {"type": kind.kind, "message": "why", "field": None, "request_id": "r-1"}
    assert error_tree(kind("why"), "r-1") == {"error": error}
