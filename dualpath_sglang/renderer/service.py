"""One request line to one reply line. Runs in worker threads and never raises."""

from __future__ import annotations

import logging

from jinja2 import TemplateError

from dualpath_sglang.contract.errors import BadRequest, BodyTooLarge, DualPathError
from dualpath_sglang.contract.render import (
    Detokenize,
    RenderError,
    Reply,
    Request,
    Text,
    Tokenize,
    Tokens,
    decode_request,
    encode_reply,
    request_id_of,
)
from dualpath_sglang.renderer.delta import render_delta
from dualpath_sglang.renderer.model_files import ModelFiles

log = logging.getLogger(__name__)


class RenderService:
    def __init__(self, model: ModelFiles) -> None:
        self._model = model

    def answer(self, line: bytes) -> bytes:
        """The reply line; every failure is an error reply with the request's id if readable."""
        request_id: int | None = None
        try:
            request_id, request = decode_request(line)
            return encode_reply(request_id, self.reply(request))
        except Exception as err:
            if request_id is None:
                request_id = request_id_of(line)
            return encode_reply(request_id, error_of(err))

    def reply(self, request: Request) -> Reply:
        """Raises as `render_delta` and the tokenizer do."""
        tokenizer = self._model.tokenizer
        if isinstance(request, Tokenize):
            return Tokens(tokenizer.encode(request.text))
        if isinstance(request, Detokenize):
            ids = request.token_ids
            return Text(tokenizer.decode(ids), tokenizer.content(ids))
        try:
            return render_delta(request, self._model.template, tokenizer)
        except (TemplateError, TypeError) as err:
            return RenderError("template_error", f"the chat template refused: {err}")


def error_of(err: Exception) -> RenderError:
    if isinstance(err, BodyTooLarge):
        return RenderError("too_large", _short(err.message), err.field)
    if isinstance(err, BadRequest):
        return RenderError("bad_request", _short(err.message), err.field)
    if not isinstance(err, DualPathError):
        log.error("defect in the renderer", exc_info=err)
    return RenderError("internal", _short(f"{type(err).__name__}: {err}"))


def _short(message: str) -> str:
    """Bounded, and writable as UTF-8 whatever the request held."""
    return message[:2000].encode(errors="replace").decode()
