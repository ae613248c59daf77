"""The one exception tree of the project. Each leaf knows its HTTP status.

DualPathError
├── ClientError                 the caller can fix it
│   ├── BadRequest        400   a field is missing, malformed or out of range
│   ├── Unauthorized      401   no key, or one that nobody has
│   ├── Forbidden         403   a right key that does not open this
│   ├── NotFound          404   no such session, turn or model
│   ├── Conflict          409   busy session, stale `if_turn`, id already taken
│   ├── BodyTooLarge      413
│   ├── ContextOverflow   400   prompt + output do not fit the model's context
│   └── TemplateRewrite   422   the chat template would rewrite tokens already in history
├── Saturated             503   no engine has room now; `retry_after_s` says when to come back
├── EngineFailure         502   an engine broke, refused or answered nonsense
├── RendererFailure       502   the renderer process is gone or failed
├── StoreFailure          502   the store's master is gone or answered nonsense
├── RouterFailure         502   the router is gone or answered nonsense (raised by the clients)
├── DeadlineExceeded      504   the turn did not end within its deadline
├── Internal              500   a defect of ours; the cause is in the log
├── ConfigError           —     start-up: unknown key, bad value, missing file
├── StartupError          —     start-up: a component did not come up
└── WeightsUnreadable     —     start-up, update: nobody can say which weights an engine has
"""

from __future__ import annotations

from typing import ClassVar


class DualPathError(Exception):
    """Root. `message` is for people, `field` names the offending input when there is one."""

    http_status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class ClientError(DualPathError):
    http_status = 400
    kind = "bad_request"


class BadRequest(ClientError):
    pass


class Unauthorized(ClientError):
    http_status = 401
    kind = "unauthorized"


class Forbidden(ClientError):
    http_status = 403
    kind = "forbidden"


class NotFound(ClientError):
    http_status = 404
    kind = "not_found"


class Conflict(ClientError):
    http_status = 409
    kind = "conflict"


class BodyTooLarge(ClientError):
    http_status = 413
    kind = "body_too_large"


class ContextOverflow(ClientError):
    kind = "context_overflow"


class TemplateRewrite(ClientError):
    http_status = 422
    kind = "template_rewrite"


class Saturated(DualPathError):
    http_status = 503
    kind = "saturated"

    def __init__(
        self, message: str, *, field: str | None = None, retry_after_s: float = 1.0
    ) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class EngineFailure(DualPathError):
    http_status = 502
    kind = "engine_failure"


class RendererFailure(DualPathError):
    http_status = 502
    kind = "renderer_failure"


class StoreFailure(DualPathError):
    http_status = 502
    kind = "store_failure"


class RouterFailure(DualPathError):
    http_status = 502
    kind = "router_failure"


class DeadlineExceeded(DualPathError):
    http_status = 504
    kind = "deadline_exceeded"


class Internal(DualPathError):
    pass


class ConfigError(DualPathError):
    kind = "config_error"


class StartupError(DualPathError):
    kind = "startup_error"


class WeightsUnreadable(DualPathError):
    kind = "weights_unreadable"
