"""One of several processes that hold a model's parameters in shards: ``torchrun sharded_worker.py MODEL OUT``.

Accelerate starts FSDP on accelerators only, so this applies it to the trainer's forward pass by itself.
"""

from __future__ import annotations

import os
import sys
from functools import partial

import torch
import torch.distributed as dist
from plus_records import make_record
from torch.distributed.fsdp import fully_shard

import wino
from wino.plus.recipe import Adapter, Loss
from wino.plus.train import adapted_model
from wino.plus.trainer import call_block, sums_and_counts
from wino.plus.unfold import TrajectorySamples, collate

LOSS = Loss(threshold=0.0, threshold_back=1.0)


def gradients(folder: str, rank: int, world: int, shard: bool) -> dict[str, torch.Tensor]:
    """Of the LoRA matrices, averaged over ranks, and the loss's sums, on every ``world``-th of 24 samples."""
    model, _ = wino.load(folder, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = adapted_model(model, Adapter(preset="full", rank=4, alpha=4), None)
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    model.forward = partial(sums_and_counts, model, LOSS, call_block)
    if shard:
        for block in model.model.transformer.blocks:
            fully_shard(block)
        fully_shard(adapted)
    samples = TrajectorySamples([make_record(i) for i in range(8)], 1)
    batch = collate([samples[i] for i in range(rank, 24, world)], 0)
    sums, _ = adapted(batch)
    (sums[0] + sums[1] - sums[2]).backward()
    found = {"sums": sums.detach()}
    for name, value in adapted.named_parameters():
        if value.grad is not None:
            grad = value.grad
            found[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return found


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = gradients(sys.argv[1], dist.get_rank(), dist.get_world_size(), shard=True)
    dist.all_reduce(found["sums"])
    if dist.get_rank() == 0:
        torch.save(found, sys.argv[2])
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo may still be joinable, and the interpreter's end would abort
