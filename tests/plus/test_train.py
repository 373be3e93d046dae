"""Training: the loss is a function of the global batch, runs resume exactly, stages follow each other."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sharded_worker
import torch
import torch.nn.functional as F
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from plus_records import make_record
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainingArguments

import wino
from wino.plus.callbacks import PARTS, StopAfterStep
from wino.plus.recipe import Loss, Recipe, read_recipe
from wino.plus.records import Trajectory, write_trajectories
from wino.plus.train import adapted_model, train
from wino.plus.trainer import TrajectoryTrainer, call_block, sums_and_counts
from wino.plus.unfold import CANDIDATE, TARGET, TrajectorySamples, collate, mask_answers
from wino.tasks.presets import load_presets, write_presets

MASK = 1
_STAGE = "{name: s, trajectories: [t], steps: 1}"


def make_recipe(base: Path, records: Path, output: Path, *, stages: list[dict[str, Any]] | None = None, **changes: Any):
    stage = {"name": "one", "trajectories": [records], "steps": 6, "batch_size": 8, "learning_rate": 1e-3}
    fields: dict[str, Any] = {
        "model": str(base),
        "output": output,
        "adapter": {"preset": "full", "rank": 4, "alpha": 4},
        "loss": {"remask": 0.5, "threshold": 0.0, "threshold_back": 1.0, "llada": 0.5},
        "dtype": "float32",
        "bf16": False,
        "logging_steps": 1,
        "save_steps": 2,
        "stages": [{**stage, **own} for own in stages or [{}]],
    }
    return Recipe.model_validate({**fields, **changes})


def losses(folder: Path) -> list[dict[str, float]]:
    with open(folder / "loss.csv", newline="") as file:
        return [{name: float(value) for name, value in line.items()} for line in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same_run(ours: Path, theirs: Path, *, names: tuple[str, ...] = ("loss", *PARTS)) -> None:
    """Losses to float32 rounding, counts exactly, weights as close as Adam leaves rounding."""
    pairs = list(zip(losses(ours), losses(theirs), strict=True))
    assert pairs
    for a, b in pairs:
        for name in names:
            assert a[name] == pytest.approx(b[name], rel=2e-4, abs=2e-5), name
        assert [a[n] for n in ("step", "targets", "unmasked", "remasked", "samples")] == [
            b[n] for n in ("step", "targets", "unmasked", "remasked", "samples")
        ]
    theirs_weights = weights(theirs / "final")
    for name, value in weights(ours / "final").items():
        torch.testing.assert_close(value, theirs_weights[name], rtol=0, atol=2e-4)


def test_sums_are_those_of_the_definition(base: Path) -> None:
    """Against log-softmaxes of the whole model's logits, a record at a time without padding."""
    model, _ = wino.load(base, dtype=torch.float64)
    samples = TrajectorySamples([make_record(i) for i in range(6)], MASK)
    loss = Loss(threshold=0.02, threshold_back=0.2)
    expected, counts = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    for i in range(len(samples)):
        one = collate([samples[i]], pad_id=0)
        noisy, masked = mask_answers(one, MASK, "s")
        log_p = model(one["input_ids"]).logits[0].log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        top, best = log_p.exp().max(-1)
        tokens, roles = one["tokens"][0], one["roles"][0]
        cross = F.nll_loss(log_p, tokens, reduction="none")
        sure = (roles == TARGET) & (best == tokens) & (top < 0.2)
        wrong = (roles == CANDIDATE) & (best != tokens) & (top > 0.02)
        noise = F.nll_loss(model(noisy).logits[0].log_softmax(-1), tokens, reduction="none")
        parts = (cross[roles == TARGET].sum(), entropy[sure].sum(), entropy[wrong].sum(), noise[masked[0]].mean())
        expected += torch.stack(parts).detach()
        counts += torch.tensor([(roles == TARGET).sum(), sure.sum(), wrong.sum(), 1])
    batch = collate([samples[i] for i in range(len(samples))], pad_id=0)
    noisy, masked = mask_answers(batch, MASK, "s")
    inputs = {**batch, "noisy_ids": noisy, "noisy_mask": masked}
    sums, got = sums_and_counts(model, loss, call_block, inputs)
    assert (counts > 0).all()
    assert got.tolist() == counts.tolist()
    torch.testing.assert_close(sums.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_published_objective_is_the_mean_of_the_samples_losses(base: Path) -> None:
    """Against each sample's own loss, alone, its parts divided by its own counts."""
    model, _ = wino.load(base, dtype=torch.float64)
    samples = TrajectorySamples([make_record(i) for i in range(6)], MASK)
    both = [Loss(threshold=0.02, threshold_back=0.2, reduction=of) for of in ("batch_mean", "sample_mean")]
    alone = [sums_and_counts(model, both[0], call_block, collate([samples[i]], 0)) for i in range(len(samples))]
    expected = torch.stack([sums / counts.clamp(min=1) for sums, counts in alone]).sum(0)
    batch = collate([samples[i] for i in range(len(samples))], 0)
    sums, counts = sums_and_counts(model, both[1], call_block, batch)
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=1e-6)
    others, same = sums_and_counts(model, both[0], call_block, batch)
    assert counts.tolist() == same.tolist()
    means, global_means = sums / len(samples), others / same.clamp(min=1)
    assert ((means - global_means).abs()[:3] > 1e-4).all()


@pytest.mark.parametrize("reduction", ["batch_mean", "sample_mean"])
def test_micro_batches_do_not_change_the_run(base: Path, records: Path, tmp_path: Path, reduction: str) -> None:
    loss = {"remask": 0.5, "threshold": 0.0, "threshold_back": 1.0, "llada": 0.5, "reduction": reduction}
    train(make_recipe(base, records, tmp_path / "whole", loss=loss), show_progress=False)
    parts = [{"batch_size": 1, "accumulation": 8}]
    train(make_recipe(base, records, tmp_path / "parts", stages=parts, loss=loss), show_progress=False)
    assert_same_run(tmp_path / "parts/one", tmp_path / "whole/one")


def test_gradient_checkpointing_does_not_change_the_run(base: Path, records: Path, tmp_path: Path) -> None:
    train(make_recipe(base, records, tmp_path / "plain"), show_progress=False)
    train(make_recipe(base, records, tmp_path / "saving", gradient_checkpointing=True), show_progress=False)
    assert_same_run(tmp_path / "saving/one", tmp_path / "plain/one")


def launch(recipe: Recipe, folder: Path, processes: int, **environment: str) -> None:
    path = folder / f"recipe{processes}.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    run = subprocess.run(
        [*command, "-m", "wino", "train", "--config", str(path)], env=settings, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize(("accumulation", "reduction"), [(1, "batch_mean"), (2, "batch_mean"), (2, "sample_mean")])
def test_two_processes_do_not_change_the_run(
    base: Path, records: Path, tmp_path: Path, accumulation: int, reduction: str
) -> None:
    loss = {"remask": 0.5, "threshold": 0.0, "threshold_back": 1.0, "llada": 0.5, "reduction": reduction}
    train(make_recipe(base, records, tmp_path / "one", loss=loss), show_progress=False)
    halves = [{"batch_size": 4 // accumulation, "accumulation": accumulation}]
    launch(make_recipe(base, records, tmp_path / "two", stages=halves, loss=loss), tmp_path, 2)
    assert_same_run(tmp_path / "two/one", tmp_path / "one/one")


def test_sharded_parameters_do_not_change_the_gradients(base: Path, tmp_path: Path) -> None:
    """FSDP around every block: the trainer's forward pass lets it gather and free their parameters."""
    worker = Path(sharded_worker.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(worker)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, str(base), str(tmp_path / "out.pt")], env=settings, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    sharded = torch.load(tmp_path / "out.pt")
    whole = sharded_worker.gradients(str(base), 0, 1, shard=False)
    assert len(whole) == len(sharded) > 20
    torch.testing.assert_close(sharded.pop("sums"), whole.pop("sums"))
    for name, value in whole.items():
        torch.testing.assert_close(2 * sharded[name], value, rtol=1e-4, atol=1e-5, msg=name)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """As Ctrl-C during that step does."""
    real = StopAfterStep.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.asked = self.asked or state.global_step == step
        real(self, args, state, control, **others)

    monkeypatch.setattr(StopAfterStep, "on_step_end", on_step_end)


def assert_identical(ours: Path, theirs: Path) -> None:
    assert (ours / "loss.csv").read_text() == (theirs / "loss.csv").read_text()
    theirs_weights = weights(theirs / "final")
    for name, value in weights(ours / "final").items():
        assert torch.equal(value, theirs_weights[name]), name


def test_an_interrupted_run_goes_on_exactly(
    base: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = {"preset": "full", "rank": 4, "alpha": 4, "dropout": 0.2}
    train(make_recipe(base, records, tmp_path / "straight", adapter=adapter), show_progress=False)
    recipe = make_recipe(base, records, tmp_path / "stopped", adapter=adapter)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, show_progress=False)
    assert not (tmp_path / "stopped/one/final").exists()
    assert (tmp_path / "stopped/one/checkpoint-3").is_dir()
    train(recipe, show_progress=False)
    assert_identical(tmp_path / "stopped/one", tmp_path / "straight/one")


def test_a_torn_checkpoint_is_passed_over(base: Path, records: Path, tmp_path: Path) -> None:
    """A process killed while it wrote checkpoint 6 goes on from checkpoint 4."""
    recipe = make_recipe(base, records, tmp_path / "torn")
    train(recipe, show_progress=False)
    folder = tmp_path / "torn/one"
    shutil.copytree(folder, tmp_path / "straight")
    shutil.move(folder / "final", tmp_path / "gone")
    for torn in (lambda p: p.unlink(), lambda p: p.write_text(p.read_text()[:100])):
        torn(folder / "checkpoint-6/trainer_state.json")
        with open(folder / "loss.csv", "a") as table:
            table.write("7,0.1")
        train(recipe, show_progress=False)
        assert_identical(folder, tmp_path / "straight")
        shutil.move(folder / "final", tmp_path / f"gone{torn}")


def test_a_killed_run_is_held_while_it_lives_and_gone_on_with_exactly(
    base: Path, records: Path, tmp_path: Path
) -> None:
    stages = [{"name": "one", "steps": 30}]
    recipe = make_recipe(base, records, tmp_path / "killed", stages=stages)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(recipe.model_dump_json())))
    command = [sys.executable, "-m", "wino", "train", "--config", str(path)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=one_thread, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder, until = tmp_path / "killed/one", time.monotonic() + 120
    while not (folder / "checkpoint-4/trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    with pytest.raises(ValueError, match=rf"killed: process {process.pid} on \S+, since .*, is writing it"):
        train(recipe, show_progress=False)
    process.kill()
    process.communicate()
    assert not (folder / "final").exists()
    (folder / "final.partial").mkdir()  # as if it had died while it wrote the result
    (folder / "final.partial/adapter_model.safetensors").write_text("half of")
    train(recipe, show_progress=False)
    train(make_recipe(base, records, tmp_path / "straight", stages=stages), show_progress=False)
    assert_identical(folder, tmp_path / "straight/one")
    assert not (tmp_path / "killed/.lock").exists()


def test_a_finished_run_is_not_repeated_and_another_recipe_is_refused(
    base: Path, records: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(base, records, tmp_path / "run")
    final = train(recipe, show_progress=False)
    before = (final / "adapter_model.safetensors").stat().st_mtime_ns
    assert train(recipe, show_progress=False) == final
    assert (final / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"run/one holds the run of another recipe"):
        train(recipe.model_copy(update={"seed": 1}), show_progress=False)


def test_other_trajectories_under_the_same_name_are_refused(base: Path, records: Path, tmp_path: Path) -> None:
    recipe = make_recipe(base, records, tmp_path / "run")
    train(recipe, show_progress=False)
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"run/one holds the run of another recipe or of other trajectories"):
        train(recipe, show_progress=False)


def test_stages_go_on_from_the_one_before(base: Path, records: Path, tmp_path: Path) -> None:
    stages = [{"name": "first", "steps": 3}, {"name": "second", "steps": 1, "learning_rate": 1e-9}]
    final = train(make_recipe(base, records, tmp_path / "run", stages=stages), show_progress=False)
    assert final == tmp_path / "run/second/final"
    first = weights(tmp_path / "run/first/final")
    assert any(value.abs().sum() > 0 for name, value in first.items() if "lora_B" in name)
    for name, value in weights(final).items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=1e-6)


def test_full_training_gives_a_model(base: Path, records: Path, tmp_path: Path) -> None:
    base = shutil.copytree(base, tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": [0, 3]}')
    (base / "README.md").write_text("# A base\n")
    write_presets(base, {"sum": {"wino": {"threshold": 0.7}}}, "chosen")
    stages = [{"name": "first", "steps": 2}, {"name": "second", "steps": 2}]
    final = train(make_recipe(base, records, tmp_path / "run", adapter=None, stages=stages), show_progress=False)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (final / name).read_bytes() == (base / name).read_bytes()
    assert load_presets(final) == {"sum": {"wino": {"threshold": 0.7}}}
    assert f"{base}, for which they were chosen" in json.loads((final / "presets.json").read_text())["_source"]
    assert (final / "README.md").read_text().startswith("# A base\n\n## WINO+\n")
    assert not list(final.glob("*.bin"))  # pickles
    trained, tokenizer = wino.load(final)
    original, own_tokenizer = wino.load(base)
    assert tokenizer.get_vocab() == own_tokenizer.get_vocab()
    changed = [
        name
        for (name, a), b in zip(trained.named_parameters(), original.parameters(), strict=True)
        if not torch.equal(a, b.float())
    ]
    assert "model.transformer.ff_out.weight" in changed and len(changed) > 10


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("published", {"q_proj", "k_proj", "v_proj", "up_proj"}),
        ("full", {"q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"}),
    ],
)
def test_presets_adapt_blocks_and_never_the_head(base: Path, preset: str, names: set[str]) -> None:
    model, _ = wino.load(base)
    adapter = Recipe.model_validate(
        {"model": "m", "output": "o", "adapter": {"preset": preset}, "stages": [minimal_stage()]}
    ).adapter
    adapted = adapted_model(model, adapter, None)
    assert isinstance(adapted, PeftModel)
    found = {name.split(".lora_")[0] for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert {name.rsplit(".", 1)[1] for name in found} == names
    assert all(".blocks." in name for name in found)
    assert len(found) == 2 * len(names)


class Watched(torch.nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("how", ["LoRA", "a hook", "a subclass", "a bias", "plain"])
def test_a_head_that_the_loss_cannot_multiply_by_is_refused(base: Path, tmp_path: Path, how: str) -> None:
    """Before anything is trained: the loss reads the head's weight, and would leave out what is put on it."""
    model, _ = wino.load(base, dtype=torch.float32)
    transformer: Any = model.model.transformer
    head = transformer["ff_out"]
    trained: torch.nn.Module = model
    if how == "LoRA":
        trained = get_peft_model(model, LoraConfig(r=2, target_modules=["ff_out"]))
    elif how == "a hook":
        head.register_forward_hook(lambda module, args, output: 2 * output)
    elif how == "a subclass":
        transformer["ff_out"] = Watched(head.in_features, head.out_features, bias=False)
    elif how == "a bias":
        transformer["ff_out"] = torch.nn.Linear(head.in_features, head.out_features)

    def make() -> TrajectoryTrainer:
        arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        return TrajectoryTrainer(model=trained, args=arguments, loss=Loss())

    if how == "plain":
        assert make().model is model
        return
    match = "LM head with a bias" if how == "a bias" else "the LM head must be a plain nn.Linear"
    with pytest.raises(ValueError, match=match):
        make()
    assert "forward" not in vars(model)


def test_what_a_stage_leaves_out_is_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts have 3 to 7 tokens, answers 12."""
    path = tmp_path / "records.jsonl"
    write_trajectories(path, (make_record(i, correct=i != 0) for i in range(10)))
    stages = [{"steps": 1, "max_prompt_length": 6, "max_length": 16, "learning_rate": 1e-4}]
    train(make_recipe(base, path, tmp_path / "run", stages=stages), show_progress=False)
    said = capsys.readouterr().err
    assert "one: 3 records to train on; left out: 1 not correct, " in said
    assert "2 prompt longer than 6 tokens" in said and "4 longer than 16 tokens" in said
    everything = [{"steps": 1, "allow_incorrect": True}]
    train(make_recipe(base, path, tmp_path / "all", stages=everything), show_progress=False)
    assert "left out" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected at least one record"):
        train(make_recipe(base, path, tmp_path / "none", stages=[{"max_length": 3}]), show_progress=False)


def test_the_learning_rate_warms_up_and_ends_at_its_floor(base: Path, records: Path, tmp_path: Path) -> None:
    cosine = {"schedule": "cosine", "warmup_steps": 2, "learning_rate_floor": 0.1, "learning_rate": 1e-3, "steps": 7}
    train(make_recipe(base, records, tmp_path / "run", stages=[cosine], save_steps=7), show_progress=False)
    found = [line["learning_rate"] for line in losses(tmp_path / "run/one")]
    shape = [0.0, 0.5, *(0.1 + 0.9 * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(5))]
    assert found == pytest.approx([1e-3 * factor for factor in shape], rel=1e-4)


def minimal_stage() -> dict[str, Any]:
    return {"name": "s", "trajectories": ["t.jsonl"], "steps": 1}


def test_training_follows_the_trajectories(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_trajectories(path, (make_record(i, generated_ids=list(range(5, 17))) for i in range(40)))
    stages = [{"steps": 60, "batch_size": 16, "learning_rate": 3e-3}]
    changes: dict[str, Any] = {"adapter": None, "loss": {"remask": 0.0}, "save_steps": 60, "logging_steps": 10}
    train(make_recipe(base, path, tmp_path / "run", stages=stages, **changes), show_progress=False)
    table = losses(tmp_path / "run/one")
    assert table[-1]["cross_entropy"] < 0.75 * table[0]["cross_entropy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {"vocab_size": 99}}, r"record 1 \(item:0\): vocab_size 99, but .* has 24"),
        ({"metadata": {"mask_token_id": 7}}, r"mask_token_id 7, but .* has 1"),
        ({"metadata": {"tokenizer_fingerprint": "other"}}, r"tokenizer_fingerprint 'other', but"),
        ({"generated_ids": [5] * 11 + [24]}, r"token id 24, but .* has 24 tokens"),
    ],
)
def test_trajectories_of_another_model_are_refused(
    base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "foreign.jsonl"
    write_trajectories(path, [make_record(0, **changes)])
    with pytest.raises(ValueError, match=message):
        train(make_recipe(base, path, tmp_path / "run"), show_progress=False)
    assert not list((tmp_path / "run/one").glob("checkpoint*"))


def test_an_invalid_record_stops_training_before_it_starts(base: Path, records: Path, tmp_path: Path) -> None:
    lines = records.read_text().splitlines()
    broken = json.loads(lines[3])
    broken["trajectory_accepted"] = broken["trajectory_accepted"][:-1]
    records.write_text("\n".join([*lines[:3], json.dumps(broken)]) + "\n")
    with pytest.raises(ValueError, match=r"records.jsonl, line 4: field trajectory_accepted: expected 12 steps"):
        train(make_recipe(base, records, tmp_path / "run"), show_progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", r"expected a mapping with the fields of a recipe, got list"),
        ("a: [", r"not YAML"),
        ("model: m", r"output: Field required; stages: Field required"),
        ("{model: m, output: o, stages: [], lr: 1}", r"stages: .* at least 1 item.*; lr: Extra inputs"),
        (
            "{model: m, output: o, stages: [{name: s, trajectories: [t], steps: 1, epochs: 2}]}",
            r"stages.0: Value error, expected exactly one of epochs and steps",
        ),
        (
            "{model: m, output: o, save_steps: 15, stages: [{name: s, trajectories: [t], steps: 1}]}",
            r"save_steps: expected a multiple of logging_steps \(10\)",
        ),
        *(
            (f"{{model: m, output: o, stages: [{{name: s, trajectories: [t], steps: 1, {more}}}]}}", message)
            for more, message in (
                ("pad_to_max_length: true", "pad_to_max_length needs max_length"),
                ("learning_rate_floor: 0.1", "learning_rate_floor needs the schedule cosine, got constant"),
                ("warmup_steps: 5", "warmup_steps needs another schedule than constant"),
                ("first_share: 0", "stages.0.first_share: Input should be greater than 0"),
            )
        ),
        (
            f"{{model: m, output: o, stages: [{_STAGE}, {_STAGE}]}}",
            r"expected distinct names",
        ),
        (
            "{model: m, output: o, stages: [{name: ../s, trajectories: [t], steps: 1}]}",
            r"stages.0.name: String should match",
        ),
    ],
)
def test_bad_recipes_name_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(str(path))


def test_trajectories_are_found_beside_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("{model: m, output: o, stages: [{name: s, trajectories: [t.jsonl, /a/b.jsonl], steps: 1}]}")
    recipe = read_recipe(path, {"model": "other"})
    assert recipe.stages[0].trajectories == [tmp_path / "t.jsonl", Path("/a/b.jsonl")]
    assert recipe.model == "other"


def test_a_record_of_the_authors_collector_trains(base: Path, tmp_path: Path) -> None:
    """No metadata, the older field name; the stage says the block length."""
    path = tmp_path / "authors.jsonl"
    with open(path, "w") as file:
        for number in range(8):
            fields = json.loads(make_record(number).to_json())
            fields["wino_trajectory"] = fields.pop("trajectory_accepted")
            del fields["metadata"], fields["trajectory_proposed"]
            file.write(json.dumps(fields) + "\n")
    final = train(make_recipe(base, path, tmp_path / "run", stages=[{"block_length": 6}]), show_progress=False)
    assert isinstance(next(iter(weights(final).values())), Tensor)
    assert Trajectory.from_json(path.read_text().splitlines()[0]).metadata == {}
