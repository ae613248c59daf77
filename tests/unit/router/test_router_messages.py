"""Text and messages through the real renderer process: deltas onto an exact token history."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from render_process import END, Renderer, chatml, renderer_process, say
from router_world import World, eventually, failure, world
from stub_engines import VOCABULARY, StubEngine


class Script(StubEngine):
    """Stub engine that answers what it is told to."""

    def answer(self, *outputs: list[int]) -> None:
        self.script = list(outputs)

    def output(self, prompt: list[int], count: int) -> list[int]:
        return self.script.pop(0)


def worded(renderer: Renderer, **settings: Any) -> Any:
    return world(Script("one"), renderer_socket=renderer.socket, **settings)


def scripted(w: World) -> Script:
    (engine,) = w.engines
    assert isinstance(engine, Script)
    return engine


async def test_text_becomes_tokens(renderer: Renderer) -> None:
    async with worded(renderer) as w:
        scripted(w).answer(renderer.ids(" bako"), renderer.ids("!"))
        sid = await w.session()
        await w.done(sid, text="bako bako, <|im_end|>")
        await w.done(sid, text="ta")
        history = await w.history(sid)
        assert history == renderer.ids("bako bako, <|im_end|>") + renderer.ids(" bako") + (
            renderer.ids("ta") + renderer.ids("!")
        )
        assert END in history


async def test_messages_are_rendered_as_deltas(renderer: Renderer) -> None:
    """What the engine sees equals one rendering of the whole conversation, turn after turn."""
    first, second = [*renderer.ids("bako"), END], [*renderer.ids(" tita"), END]
    async with worded(renderer) as w:
        engine = scripted(w)
        engine.answer(first, second, [END])
        sid = await w.session()
        talk = [say("system", "be good"), say("user", "hi")]
        await w.done(sid, messages=talk)
        assert engine.body["input_ids"] == renderer.ids(chatml(*talk))
        talk += [say("assistant", "bako"), say("user", "more")]
        await w.done(sid, messages=talk[-1:])
        assert engine.body["input_ids"] == renderer.ids(chatml(*talk))
        talk += [say("assistant", " tita"), say("tool", "42"), say("user", "and?")]
        await w.done(sid, messages=talk[-2:])
        assert engine.body["input_ids"] == renderer.ids(chatml(*talk))


async def test_generated_tokens_stay_as_they_were_generated(renderer: Renderer) -> None:
    """ "bako" in four tokens: a tokenizer would write it in fewer."""
    odd = [token for letter in "bako" for token in renderer.ids(letter)]
    assert renderer.ids("bako") != odd
    async with worded(renderer) as w:
        engine = scripted(w)
        engine.answer([*odd, END], [END])
        sid = await w.session()
        await w.done(sid, messages=[say("user", "hi")])
        history = await w.history(sid)
        await w.done(sid, messages=[say("user", "more")])
        prompt = engine.body["input_ids"]
        assert (
            prompt[: len(history)]
            == history
            == [*renderer.ids(chatml(say("user", "hi"))), *odd, END]
        )
        assert renderer.text(prompt) == chatml(
            say("user", "hi"), say("assistant", "bako"), say("user", "more")
        )


async def test_tools_and_template_arguments_reach_the_template(renderer: Renderer) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    async with worded(renderer) as w:
        engine = scripted(w)
        engine.answer([END], [END])
        sid = await w.session()
        await w.done(sid, messages=[say("user", "1+1")], tools=tools)
        text = renderer.text(engine.body["input_ids"])
        assert text.startswith('<|im_start|>system\n[{"type": "function"')
        more = [say("assistant", "", tool_calls=[call]), say("tool", "2")]
        await w.done(sid, messages=more, tools=tools)
        assert 'add({"a": 1})<|im_end|>\n<|im_start|>tool\n2<|im_end|>' in renderer.text(
            engine.body["input_ids"]
        )


REWRITES: dict[str, Any] = {"template_kwargs": {"strip": True}}


async def two_turns(w: World, renderer: Renderer) -> str:
    scripted(w).answer(*([*renderer.ids(text), END] for text in ("bako#ta", "tita#ko", "")))
    sid = await w.session()
    await w.done(sid, messages=[say("user", "hi")], **REWRITES)
    return sid


async def test_a_template_that_rewrites_history_names_the_message(renderer: Renderer) -> None:
    async with worded(renderer) as w:
        sid = await two_turns(w, renderer)
        before = await w.history(sid)
        for stream in (False, True):
            reply = await w.turn(sid, messages=[say("user", "more")], stream=stream, **REWRITES)
            assert (reply.status_code, failure(reply)["type"]) == (422, "template_rewrite")
            assert "message 1 (assistant)" in failure(reply)["message"]
            assert failure(reply)["field"] == "messages"
        assert await w.history(sid) == before
        assert len(scripted(w).bodies) == 1


async def test_cut_keeps_the_common_prefix(renderer: Renderer) -> None:
    async with worded(renderer) as w:
        sid = await two_turns(w, renderer)
        before = await w.history(sid)
        cut: dict[str, Any] = {"on_template_rewrite": "cut", **REWRITES}
        await w.done(sid, messages=[say("user", "more")], **cut)
        prompt = scripted(w).body["input_ids"]
        talk = [say("user", "hi"), say("assistant", "ta"), say("user", "more")]
        assert renderer.text(prompt) == chatml(*talk)
        common = len(renderer.ids(chatml(say("user", "hi"))))
        assert prompt[:common] == before[:common]
        # And on from there: the second answer is rewritten now, the first already was.
        await w.done(sid, messages=[say("user", "yet more")], **cut)
        talk += [say("assistant", "ko"), say("user", "yet more")]
        assert renderer.text(scripted(w).body["input_ids"]) == chatml(*talk)


async def test_messages_after_raw_tokens_start_a_new_rendering(renderer: Renderer) -> None:
    async with worded(renderer) as w:
        engine = scripted(w)
        engine.answer([END], [END], [*renderer.ids("bako"), END], [END])
        sid = await w.session()
        await w.done(sid, messages=[say("user", "hi")])
        await w.done(sid, token_ids=[1, 2, 3])
        raw = await w.history(sid)
        await w.done(sid, messages=[say("user", "new")])
        assert engine.body["input_ids"] == raw + renderer.ids(chatml(say("user", "new")))
        await w.done(sid, messages=[say("user", "next")])
        talk = [say("user", "new"), say("assistant", "bako"), say("user", "next")]
        assert engine.body["input_ids"] == raw + renderer.ids(chatml(*talk))


async def test_keep_goes_back_to_the_end_of_a_turn(renderer: Renderer) -> None:
    async with worded(renderer) as w:
        engine = scripted(w)
        engine.answer([*renderer.ids("bako"), END], [END], [END])
        sid = await w.session()
        first = await w.done(sid, messages=[say("user", "hi")])
        await w.done(sid, messages=[say("user", "wrong way")])
        end = first["history_tokens"]
        reply = await w.turn(sid, messages=[say("user", "x")], keep=end + 1)
        assert (reply.status_code, failure(reply)["field"]) == (400, "keep")
        assert f"nearest end of a turn: {end}" in failure(reply)["message"]
        await w.done(sid, messages=[say("user", "right way")], keep=end)
        talk = [say("user", "hi"), say("assistant", "bako"), say("user", "right way")]
        assert engine.body["input_ids"] == renderer.ids(chatml(*talk))


async def test_the_conversation_goes_on_after_a_restart(renderer: Renderer, tmp_path: Path) -> None:
    database = str(tmp_path / "db")
    async with worded(renderer, database=database) as w:
        scripted(w).answer([*renderer.ids("bako"), END])
        sid = await w.session()
        await w.done(sid, messages=[say("user", "hi")])
    async with worded(renderer, database=database) as w:
        scripted(w).answer([END])
        await w.done(sid, messages=[say("user", "more")])
        talk = [say("user", "hi"), say("assistant", "bako"), say("user", "more")]
        assert scripted(w).body["input_ids"] == renderer.ids(chatml(*talk))


async def test_the_renderer_may_be_away_for_a_while(tmp_path: Path) -> None:
    """It ends while the engine generates; the output is decoded when it is back."""
    with renderer_process(tmp_path) as renderer:
        async with worded(renderer) as w:
            engine = scripted(w)
            engine.answer([*renderer.ids("bako"), END], [END])
            sid = await w.session()
            engine.fault = "hang"
            first = asyncio.create_task(w.done(sid, messages=[say("user", "hi")]))
            await eventually(lambda: engine.running)
            renderer.kill()
            engine.go.set()
            assert (await first)["token_ids"] == [*renderer.ids("bako"), END]
            reply = await w.turn(sid, messages=[say("user", "more")])
            assert (reply.status_code, failure(reply)["type"]) == (502, "renderer_failure")
            assert "token_ids can" in failure(reply)["message"]
            with renderer_process(tmp_path):
                await w.done(sid, messages=[say("user", "more")])
                talk = [say("user", "hi"), say("assistant", "bako"), say("user", "more")]
                assert engine.body["input_ids"] == renderer.ids(chatml(*talk))


async def test_output_that_the_renderer_cannot_decode_is_not_lost(renderer: Renderer) -> None:
    async with worded(renderer) as w:
        scripted(w).answer([VOCABULARY + 1, END], [END])
        sid = await w.session()
        done = await w.done(sid, messages=[say("user", "hi")])
        assert (await w.history(sid))[-2:] == done["token_ids"] == [VOCABULARY + 1, END]
        reply = await w.turn(sid, messages=[say("user", "more")])
        assert f"token id {VOCABULARY + 1}" in failure(reply)["message"]
        await w.done(sid, token_ids=[1])


async def test_what_the_template_refuses_is_the_clients_to_fix(renderer: Renderer) -> None:
    async with worded(renderer) as w:
        sid = await w.session()
        reply = await w.turn(sid, messages=[say("user", "hi", tool_calls=[{}])])
        assert (reply.status_code, failure(reply)["type"]) == (400, "bad_request")
        assert "the chat template refused" in failure(reply)["message"]
        assert await w.history(sid) == []


async def test_text_that_cannot_be_rendered(renderer: Renderer) -> None:
    """More than a line to the renderer holds; half a character."""
    async with worded(renderer, max_body_bytes=64 * 2**20) as w:
        path = f"/v1/sessions/{await w.session()}/turns"
        long = await w.http.post(path, json={"text": "ab " * 6_000_000})
        assert (long.status_code, failure(long)["type"]) == (413, "body_too_large")
        half = await w.http.post(path, content=b'{"text": "\\ud800"}')
        assert (half.status_code, failure(half)["type"]) == (400, "bad_request")
