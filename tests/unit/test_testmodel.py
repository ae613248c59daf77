"""The test model must see every KV page and must not see chunking, batching or caching.

Offline proof with Hugging Face's Qwen3 in float32: no engine, no code of ours in the forward.
"""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from dualpath_sglang.contract.errors import ConfigError
from dualpath_sglang.cpu.shims import install_shims
from dualpath_sglang.testmodel import ModelSpec, fit_kv_bytes, main, write_model
from dualpath_sglang.testmodel_tokenizer import SPECIAL_TOKENS, word_ids

PAGE = 16
PROMPT = 1024
CACHED = PROMPT - PAGE  # an engine always computes at least the last token itself
ANSWER = 16
KINDS = ("zeroed", "noise", "copied", "exchanged")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_model(ModelSpec(), path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    install_shims()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Qwen3ForCausalLM

        return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    install_shims()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def prompt(seed: int, length: int = PROMPT) -> torch.Tensor:
    rng = torch.Generator().manual_seed(100 + seed)
    return torch.randint(0, 4093, (length,), generator=rng)


def new_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


@torch.inference_mode()
def logits(model: Any, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    """[tokens, vocab] for `ids` [tokens]; the cache grows."""
    return model(ids[None], past_key_values=cache, use_cache=True).logits[0]


def greedy(
    model: Any, cache: Any, ids: torch.Tensor, count: int, expected: list[int] | None = None
) -> tuple[list[int], torch.Tensor]:
    """(tokens, their logits); stops at the first token that is not the expected one."""
    tokens: list[int] = []
    rows = []
    for _ in range(count):
        rows.append(logits(model, ids, cache)[-1])
        tokens.append(int(rows[-1].argmax()))
        if expected is not None and tokens[-1] != expected[len(tokens) - 1]:
            break
        ids = torch.tensor(tokens[-1:])
    return tokens, torch.stack(rows)


def altered(cache: Any, page: int, kind: str, part: str) -> Any:
    """A copy of the cache in which one page of keys or values, in all layers, is wrong."""
    rng = torch.Generator().manual_seed(page)
    wrong = copy.deepcopy(cache)
    here = slice(page * PAGE, (page + 1) * PAGE)
    far = (page + 7) % (CACHED // PAGE)
    there = slice(far * PAGE, (far + 1) * PAGE)
    for layer in wrong.layers:
        tensor = getattr(layer, part)  # [1, heads, tokens, dim]
        old = tensor[:, :, here].clone()
        if kind == "zeroed":
            tensor[:, :, here] = 0
        elif kind == "noise":
            tensor[:, :, here] = torch.randn(old.shape, generator=rng) * tensor.std()
        else:
            tensor[:, :, here] = tensor[:, :, there]
            if kind == "exchanged":
                tensor[:, :, there] = old
    return wrong


def unseen(model: Any, seed: int, pages: Iterable[int], *, decode_only: bool) -> list[str]:
    """Alterations that leave all greedy tokens as they were.

    With `decode_only` the page breaks after prefill (as on a decode engine that loads its own
    copy): the first token is right and the other 15 must show it.
    """
    ids = prompt(seed)
    cache = new_cache()
    logits(model, ids[:CACHED], cache)
    right, _ = greedy(model, copy.deepcopy(cache), ids[CACHED:], ANSWER)
    start, expected = ids[CACHED:], right
    if decode_only:
        logits(model, start, cache)
        start, expected = torch.tensor(right[:1]), right[1:]
    return [
        f"prompt {seed} page {page} {part} {kind}"
        for page, kind, part in itertools.product(pages, KINDS, ("keys", "values"))
        if greedy(model, altered(cache, page, kind, part), start, len(expected), expected)[0]
        == expected
    ]


@pytest.mark.parametrize("decode_only", [False, True], ids=["prefill", "decode"])
def test_every_altered_page_changes_the_tokens_sample(model: Any, decode_only: bool) -> None:
    assert unseen(model, 0, range(0, CACHED // PAGE, 6), decode_only=decode_only) == []


@pytest.mark.full
@pytest.mark.parametrize("decode_only", [False, True], ids=["prefill", "decode"])
@pytest.mark.parametrize("seed", range(3))
def test_every_altered_page_changes_the_tokens(model: Any, seed: int, decode_only: bool) -> None:
    assert unseen(model, seed, range(CACHED // PAGE), decode_only=decode_only) == []


def in_chunks(model: Any, ids: torch.Tensor, size: int) -> torch.Tensor:
    cache = new_cache()
    return torch.cat([logits(model, part, cache) for part in ids.split(size)])


@torch.inference_mode()
def batched(model: Any, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(model(torch.stack(rows)).logits)


def test_gap_is_a_hundred_times_the_difference_between_runs(model: Any) -> None:
    count = 64
    prompts = [prompt(0), prompt(1)]
    runs = [greedy(model, new_cache(), ids, count) for ids in prompts]
    whole = [
        torch.cat([ids, torch.tensor(tokens[:-1])])
        for ids, (tokens, _) in zip(prompts, runs, strict=True)
    ]
    together = batched(model, whole)
    differences, gaps = [], []
    for ids, (tokens, stepped), batch in zip(whole, runs, together, strict=True):
        others = [in_chunks(model, ids, size) for size in (len(ids), 512, 128)]
        for other in (batch, *others):
            answer = other[PROMPT - 1 :]
            assert answer.argmax(dim=-1).tolist() == tokens
            differences.append((answer - stepped).abs().max().item())
        best = stepped.topk(2, dim=-1).values
        gaps.append((best[:, 0] - best[:, 1]).min().item())
    assert min(gaps) >= 100 * max(differences), (min(gaps), max(differences))


def test_a_removed_page_that_is_computed_again_leaves_the_tokens_equal(model: Any) -> None:
    ids = prompt(2)
    right, _ = greedy(model, new_cache(), ids, ANSWER)
    for kept in (0, 16, 512, CACHED):
        cache = new_cache()
        if kept:
            logits(model, ids[:kept], cache)
        assert greedy(model, cache, ids[kept:], ANSWER)[0] == right


def test_answers_vary_within_and_between_prompts(model: Any) -> None:
    answers = [greedy(model, new_cache(), prompt(seed, 256), 64)[0] for seed in range(3)]
    assert all(len(set(tokens)) >= 40 for tokens in answers)
    assert len({tuple(tokens[:4]) for tokens in answers}) == 3
    words = word_ids(4096)
    assert all(token in words for tokens in answers for token in tokens)


def test_later_keys_and_values_depend_on_the_text_before(model: Any) -> None:
    first, second = prompt(0, 64), prompt(0, 64)
    second[:32] = prompt(1, 32)
    caches = []
    for ids in (first, second):
        cache = new_cache()
        logits(model, ids, cache)
        caches.append(cache)
    for depth, (a, b) in enumerate(zip(caches[0].layers, caches[1].layers, strict=True)):
        for part in ("keys", "values"):
            same = torch.equal(getattr(a, part)[:, :, 48:], getattr(b, part)[:, :, 48:])
            assert same == (depth == 0), f"{part} of layer {depth}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " bako zimu\n\tif x:  return  1",
        "Grüße, 你好 🎉 \u200b\x00\x7f",
        "<|im_start|>user\nhi<|im_end|>\n",
        " word1  word22 ",
    ],
)
def test_tokenizer_gives_any_text_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_id_decodes(tokenizer: Any) -> None:
    assert len(tokenizer) == 4096
    assert all(tokenizer.convert_ids_to_tokens(i) is not None for i in range(4096))
    assert all(tokenizer.decode([i]).startswith(" ") for i in word_ids(4096))
    assert [tokenizer.decode([i]) for i in range(4093, 4096)] == list(SPECIAL_TOKENS)


def test_chat_template_is_chatml(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(layers=2, vocab=2048, seed=5),
        ModelSpec(hidden=64, layers=3, heads=2, kv_heads=1, dtype="bfloat16", vocab=12_000),
    ],
    ids=["small", "large vocabulary"],
)
def test_equal_arguments_give_equal_files(tmp_path: Path, spec: ModelSpec) -> None:
    for name in ("a", "b"):
        write_model(spec, tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    vocab = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    assert len(vocab["model"]["vocab"]) + len(vocab["added_tokens"]) == spec.vocab


def test_seeds_give_different_weights(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_model(ModelSpec(layers=2, seed=seed), tmp_path / str(seed))
    first, second = ((tmp_path / str(s) / "model.safetensors").read_bytes() for s in (0, 1))
    assert first != second


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"layers": 0}, "layers"),
        ({"layers": 1}, "layers"),
        ({"layers": 20}, "hidden"),
        ({"hidden": 8}, "hidden"),
        ({"heads": 3}, "heads"),
        ({"kv_heads": 0}, "kv_heads"),
        ({"head_dim": 33}, "head_dim"),
        ({"head_dim": 8}, "head_dim"),
        ({"vocab": 600}, "vocab"),
        ({"dtype": "int8"}, "dtype"),
        ({"context": -1}, "context"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_name_the_field(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field.replace("_", ".")) as caught:
        ModelSpec(**arguments)
    assert caught.value.field == field


def test_kv_bytes_choose_the_heads() -> None:
    assert fit_kv_bytes(8192, layers=4, head_dim=64, dtype="float32", heads=None) == (8, 4)
    assert fit_kv_bytes(2048, layers=4, head_dim=64, dtype="bfloat16", heads=6) == (6, 2)
    with pytest.raises(ConfigError, match="multiple of 2048"):
        fit_kv_bytes(3000, layers=4, head_dim=64, dtype="float32", heads=None)


def test_command_prints_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "m"), "--kv-bytes-per-token", "8192"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["kv_bytes_per_token"] == 8192
    assert (written["heads"], written["kv_heads"]) == (8, 4)


def test_command_refuses_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ["--out", str(tmp_path / "m"), "--kv-bytes-per-token", "8192", "--kv-heads", "2"]
    assert main(bad) == 2
    assert "not both" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
