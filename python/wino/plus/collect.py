"""Collect trajectories: decode a training set with WINO, grade it, and record the order in which tokens settled."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..config import GenerationConfig
from ..files import locked
from ..generation import generate
from ..models.ends import end_token_ids
from ..prompts import pad_left
from ..tasks.base import Item, Task
from ..tasks.evaluation import encode_checked, read_answers
from .identity import identify, weights_fingerprint
from .records import RecordWriter, Trajectory, checked_ids, merge_files, write_trajectories

#: Of the attempts at an item, until one is correct (docs/spec.md section 5).
TEMPERATURES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
THRESHOLD, THRESHOLD_BACK = 0.5, 0.8


class Shard(NamedTuple):
    """Which of ``world`` processes this is; it takes every ``world``-th item from the ``rank``-th on."""

    rank: int = 0
    world: int = 1

    def path(self, out: Path) -> Path:
        return out if self.world == 1 else out.with_name(f"{out.name}.rank{self.rank}of{self.world}")


ALONE = Shard()


def collect(
    model: Any,
    tokenizer: Any,
    task: Task,
    items: Sequence[Item],
    out: Path,
    config: GenerationConfig,
    *,
    name: str,
    temperatures: Sequence[float] = TEMPERATURES,
    batch_size: int = 64,
    shard: Shard = ALONE,
    source: Collection[str] | None = None,
    on_checked: Callable[[], None] | None = None,
    on_items: Callable[[int], None] | None = None,
    on_invalid: Callable[[str], None] | None = None,
) -> bool:
    """Write one record per item to ``out``; what is already there is kept and not decoded again.

    All items are checked before the first is decoded. An item is decoded at each of ``temperatures`` in turn until its
    answer is correct; the first correct answer is kept, else the last one, marked incorrect. Every batch is on the disk
    before the next begins. With several processes each writes its own file beside ``out``, and whoever finishes last
    merges them into ``out``.

    Args:
        config: WINO's settings; its temperature and seed are replaced for every attempt.
        name: of the model, for the records.
        source: the keys of all items of the data that ``items`` are from, if they are from some: ``out`` must not hold
            others, which an edited file or another one would leave in it.
        on_checked: called once all items are checked, before the first is decoded.
        on_items: told how many items were finished, those of an earlier run first.
        on_invalid: told of every item that cannot be decoded, which is then left out.

    Returns:
        Whether ``out`` is complete; False while other processes still work.

    Raises:
        InvalidRowError: without ``on_invalid``, an item that cannot be decoded; before any is.
        ValueError: two items with one key, a ``config`` for another decoder, a file that belongs to other settings or
            other data, or that another process writes (:func:`wino.files.locked`).
    """
    if config.decoder != "wino":
        raise ValueError(f"config: trajectories are WINO's, expected decoder 'wino', got {config.decoder!r}")
    keys = [item.key for item in items]
    if len(set(keys)) != len(keys):
        raise ValueError(f"items: expected distinct keys, got {len(keys) - len(set(keys))} repeated")
    settings = _settings(model, tokenizer, task, config, name)
    checked = {field: value for field, value in settings.items() if field != "model"}
    # One process writes `out` itself; several write beside it, and only together.
    with ExitStack() as stack:
        if shard.world > 1:
            stack.enter_context(locked(out, shared=True))
        elsewhere = _done_elsewhere(out, shard, checked)
        with RecordWriter(shard.path(out), checked) as writer:
            done = elsewhere | writer.done
            if source is not None:
                _check_source(out, done, source)
            fresh = [item for item in items if item.key not in done]
            valid, ids = encode_checked(model, tokenizer, task, fresh, [config], on_invalid=on_invalid)
            if not done and not valid:
                raise ValueError("items: none of them can be decoded")
            if on_checked is not None:
                on_checked()
            prompts = dict(zip((item.key for item in valid), ids, strict=True))
            own = items[shard.rank :: shard.world]
            todo = [item for item in own if item.key in prompts]
            if on_items is not None:
                on_items(len(own) - len(todo))
            for first in range(0, len(todo), batch_size):
                batch = todo[first : first + batch_size]
                writer.write(_records(model, tokenizer, task, batch, prompts, config, temperatures, settings))
                if on_items is not None:
                    on_items(len(batch))
        left_out = {item.key for item in fresh} - prompts.keys()
        return shard.world == 1 or merge_if_complete(out, shard, keys, elsewhere | left_out)


def _check_source(out: Path, done: Collection[str], source: Collection[str]) -> None:
    """A record of an item that the data do not have is of other data, or of the data before they were edited."""
    for key in sorted(done):
        if key not in source:
            is_row = key.count(":") == 1 and key.rpartition(":")[2].isdecimal()
            reason = "is the number of a row, which does not say of what data" if is_row else "is not among them"
            raise ValueError(f"{out}: holds records of other data than these: {key!r} {reason}; choose another output")


def _settings(model: Any, tokenizer: Any, task: Task, config: GenerationConfig, name: str) -> dict[str, Any]:
    """What every record of a run shares, and what a resumed run must share with it."""
    identity, magvit = identify(model, tokenizer, name), getattr(tokenizer, "magvit", None)
    return {
        "model": name,
        "weights": identity.weights,
        "vocab_size": identity.vocab_size,
        "mask_token_id": identity.mask_token_id,
        "tokenizer_fingerprint": identity.tokenizer,
        **({} if magvit is None else {"image_tokenizer_fingerprint": weights_fingerprint(magvit)}),
        "task": task.name,
        "max_new_tokens": config.max_new_tokens,
        "block_length": config.block_length or config.max_new_tokens,
        "threshold": config.threshold,
        "threshold_back": config.threshold_back,
        "verify_last": bool(config.verify_last),
        "cache": config.cache,
        "cache_refresh": config.cache_refresh,
    }


def _records(
    model: Any,
    tokenizer: Any,
    task: Task,
    items: Sequence[Item],
    prompts: Mapping[str, Sequence[int]],
    config: GenerationConfig,
    temperatures: Sequence[float],
    settings: dict[str, Any],
) -> Iterator[Trajectory]:
    kept: dict[str, Trajectory] = {}
    todo = list(items)
    for attempt, temperature in enumerate(temperatures, 1):
        decoded = _decode(model, tokenizer, task, todo, [prompts[item.key] for item in todo], config, temperature)
        for item, record in zip(todo, decoded, strict=True):
            metadata = {**settings, "answer": item.answer, "attempts": attempt}
            kept[item.key] = replace(record, metadata=metadata)
        todo = [item for item in todo if not kept[item.key].correct]
        if not todo:
            break
    return iter(kept.values())


def _decode(
    model: Any,
    tokenizer: Any,
    task: Task,
    items: Sequence[Item],
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    temperature: float,
) -> Iterator[Trajectory]:
    """One attempt at every item, each with a seed of its own, so that its company does not matter."""
    input_ids, attention_mask = pad_left(prompts)
    seeds = [random.Random(f"{item.key}/{temperature}").getrandbits(31) for item in items]
    settings = {**config.to_dict(), "temperature": temperature, "seed": seeds}
    output = generate(model, input_ids, attention_mask, GenerationConfig(**settings))
    generated = output.sequences[:, input_ids.shape[1] :].cpu()
    texts, _ = read_answers(tokenizer, generated, end_token_ids(model, tokenizer))
    for row, (item, text) in enumerate(zip(items, texts, strict=True)):
        yield Trajectory(
            unique_id=item.key,
            source=task.name,
            prompt_ids=list(prompts[row]),
            prompt_length=len(prompts[row]),
            generated_ids=generated[row].tolist(),
            trajectory_accepted=output.accepted_at[row].tolist(),
            trajectory_proposed=None,
            correct=task.grade(item, text),
            generated_text=text,
            decoding_steps=int(output.steps[row]),
            used_temperature=temperature,
        )


def _shards_of(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f"{out.name}.rank*of*"))


def _done_elsewhere(out: Path, shard: Shard, settings: dict[str, Any]) -> set[str]:
    """Keys in files that none of our processes writes: ``out`` beside shards, and shards of runs of another size."""
    if shard.world == 1:
        leftovers = _shards_of(out)
        if leftovers:
            raise ValueError(
                f"{leftovers[0]} is left of a run with several processes: start as many, or merge it first"
            )
        return set()
    others = [path for path in _shards_of(out) if not path.name.endswith(f"of{shard.world}")]
    done: set[str] = set()
    for path in others:
        with locked(path, shared=True):  # a run of another size must not be at it
            done |= checked_ids(path, settings)
    return done | checked_ids(out, settings)


def merge_if_complete(out: Path, shard: Shard, keys: Sequence[str], elsewhere: set[str]) -> bool:
    """Put the shards into ``out`` if they hold all ``keys`` but those found ``elsewhere``; whether ``out`` is whole.

    Processes that finish together take turns: they must not take the shards from under each other.
    """
    with locked(out.with_name(f"{out.name}.merge"), wait=True):
        if not _shards_of(out):
            return True
        for rank in range(shard.world):
            expected = {key for key in keys[rank :: shard.world] if key not in elsewhere}
            if expected - checked_ids(Shard(rank, shard.world).path(out), {}):
                return False
        parts = _shards_of(out)
        write_trajectories(out, merge_files([out, *parts] if out.exists() else parts))
        for path in parts:
            path.unlink()
    return True


def training_items(task: Task, n: int, seed: int = 0) -> list[Item]:
    """The first ``n`` distinct generated items of the training split; it shares none with the other splits."""
    items: dict[str, Item] = {}
    for item in task.items("train", seed):
        if len(items) == n:
            break
        items.setdefault(item.key, item)
    return list(items.values())
