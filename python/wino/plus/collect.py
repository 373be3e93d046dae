"""Collect trajectories: decode a training set with WINO, grade it, and record the order in which tokens settled."""

from __future__ import annotations

import contextlib
import fcntl
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..config import GenerationConfig
from ..generation import generate
from ..models.ends import end_token_ids
from ..tasks.base import Item, Task
from ..tasks.evaluation import encode_items, read_answers
from .identity import identify, weights_fingerprint
from .records import RecordWriter, Trajectory, merge_files, write_trajectories

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
    on_items: Callable[[int], None] | None = None,
) -> bool:
    """Write one record per item to ``out``; what is already there is kept and not decoded again.

    An item is decoded at each of ``temperatures`` in turn until its answer is correct; the first correct answer is
    kept, else the last one, marked incorrect. Every batch is on the disk before the next begins. With several processes
    each writes its own file beside ``out``, and whoever finishes last merges them into ``out``.

    Args:
        config: WINO's settings; its temperature and seed are replaced for every attempt.
        name: of the model, for the records.
        on_items: told how many items were finished, those of an earlier run first.

    Returns:
        Whether ``out`` is complete; False while other processes still work.

    Raises:
        ValueError: two items with one key, a ``config`` for another decoder, or a file that belongs to other settings.
    """
    if config.decoder != "wino":
        raise ValueError(f"config: trajectories are WINO's, expected decoder 'wino', got {config.decoder!r}")
    keys = [item.key for item in items]
    if len(set(keys)) != len(keys):
        raise ValueError(f"items: expected distinct keys, got {len(keys) - len(set(keys))} repeated")
    settings = _settings(model, tokenizer, task, config, name)
    checked = {field: value for field, value in settings.items() if field != "model"}
    elsewhere = _done_elsewhere(out, shard, checked)
    with RecordWriter(shard.path(out), checked) as writer:
        todo = [i for i in items[shard.rank :: shard.world] if i.key not in elsewhere and i.key not in writer.done]
        if on_items is not None:
            on_items(len(items[shard.rank :: shard.world]) - len(todo))
        for first in range(0, len(todo), batch_size):
            batch = todo[first : first + batch_size]
            writer.write(_records(model, tokenizer, task, batch, config, temperatures, settings))
            if on_items is not None:
                on_items(len(batch))
    return shard.world == 1 or merge_if_complete(out, shard, keys, elsewhere)


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
    }


def _records(
    model: Any,
    tokenizer: Any,
    task: Task,
    items: Sequence[Item],
    config: GenerationConfig,
    temperatures: Sequence[float],
    settings: dict[str, Any],
) -> Iterator[Trajectory]:
    kept: dict[str, Trajectory] = {}
    todo = list(items)
    for attempt, temperature in enumerate(temperatures, 1):
        for item, record in zip(todo, _decode(model, tokenizer, task, todo, config, temperature), strict=True):
            metadata = {**settings, "answer": item.answer, "attempts": attempt}
            kept[item.key] = replace(record, metadata=metadata)
        todo = [item for item in todo if not kept[item.key].correct]
        if not todo:
            break
    return iter(kept.values())


def _decode(
    model: Any, tokenizer: Any, task: Task, items: Sequence[Item], config: GenerationConfig, temperature: float
) -> Iterator[Trajectory]:
    """One attempt at every item, each with a seed of its own, so that its company does not matter."""
    input_ids, attention_mask = encode_items(tokenizer, task, items)
    seeds = [random.Random(f"{item.key}/{temperature}").getrandbits(31) for item in items]
    settings = {**config.to_dict(), "temperature": temperature, "seed": seeds}
    output = generate(model, input_ids, attention_mask, GenerationConfig(**settings))
    generated = output.sequences[:, input_ids.shape[1] :].cpu()
    texts, _ = read_answers(tokenizer, generated, end_token_ids(model, tokenizer))
    for row, (item, text) in enumerate(zip(items, texts, strict=True)):
        prompt = input_ids[row][attention_mask[row].bool()].tolist()
        yield Trajectory(
            unique_id=item.key,
            source=task.name,
            prompt_ids=prompt,
            prompt_length=len(prompt),
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
    """Keys in files no running process writes: ``out`` beside shards, and shards of runs of another size."""
    if shard.world == 1:
        leftovers = _shards_of(out)
        if leftovers:
            raise ValueError(
                f"{leftovers[0]} is left of a run with several processes: start as many, or merge it first"
            )
        return set()
    others = [path for path in _shards_of(out) if not path.name.endswith(f"of{shard.world}")]
    done: set[str] = set()
    for path in [out, *others]:
        if path.exists():
            with RecordWriter(path, settings) as existing:
                done |= existing.done
    return done


def merge_if_complete(out: Path, shard: Shard, keys: Sequence[str], elsewhere: set[str]) -> bool:
    """Put the shards into ``out`` if they hold all ``keys`` but those found ``elsewhere``; whether ``out`` is whole."""
    with _alone(out):
        if set(keys) <= _whole_lines(out):
            return True
        for rank in range(shard.world):
            expected = {key for key in keys[rank :: shard.world] if key not in elsewhere}
            if expected - _whole_lines(Shard(rank, shard.world).path(out)):
                return False
        parts = _shards_of(out)
        write_trajectories(out, merge_files([out, *parts] if out.exists() else parts))
        for path in parts:
            path.unlink()
    return True


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One process at a time: two that finish together must not take the shards from under each other."""
    path = out.with_name(f".{out.name}.lock")
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)  # who waits for it then finds the work done


def _whole_lines(path: Path) -> set[str]:
    """Keys of the records that a process, perhaps still writing, has finished."""
    keys: set[str] = set()
    if path.exists():
        with open(path, encoding="utf-8") as file:
            keys = {Trajectory.from_json(line, str(path)).unique_id for line in file if line.endswith("\n")}
    return keys


def training_items(task: Task, n: int, seed: int = 0) -> list[Item]:
    """The first ``n`` distinct generated items of the training split; it shares none with the other splits."""
    items: dict[str, Item] = {}
    for item in task.items("train", seed):
        if len(items) == n:
            break
        items.setdefault(item.key, item)
    return list(items.values())
