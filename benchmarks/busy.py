"""How decoding and training fare on an idle and on a busy machine, by how long OpenMP's threads spin before they sleep.

    python benchmarks/busy.py

Every setting is a process of its own, in turn with the others; "busy" is another process that multiplies matrices on
all cores. Prints a table of ratios, settings over Torch's default.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
}
WORK = ("decode", "train")
LOAD = "import torch\nwhile True: torch.mm(torch.ones(900, 900), torch.ones(900, 900))"


def work(kind: str, seconds: float) -> int:
    """How much of ``kind`` this process does in ``seconds``."""
    import torch

    import wino
    from wino.pretrain import Recipe, build_model, build_tokenizer

    if kind == "decode":
        model, tokenizer = wino.load("wino-tiny", device="cpu")
        ids = torch.tensor(
            [tokenizer("<|user|>sum 34+08-15+27-01<|assistant|>", add_special_tokens=False)["input_ids"]]
        )
        config = wino.GenerationConfig(max_new_tokens=44)

        def once() -> None:
            wino.generate(model, ids, generation_config=config)
    else:
        tokens = torch.randint(8, 20, (8, 64))
        model = build_model(Recipe(), build_tokenizer()).float().train()
        optimizer = torch.optim.AdamW(model.parameters())

        def once() -> None:
            logits = model(tokens).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()

    for _ in range(3):
        once()
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        once()
        done += 1
    return done


def run(kind: str, setting: dict[str, str], seconds: float) -> int:
    environment = {n: v for n, v in os.environ.items() if n not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, __file__, "--work", kind, "--seconds", str(seconds)]
    done = subprocess.run(command, env=environment | setting, capture_output=True, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=WORK, help="do this alone, and print how often it was done")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.work:
        print(work(arguments.work, arguments.seconds))
        return
    print(f"| machine | work | {' | '.join(SETTINGS)} |\n|---|---|" + "---|" * len(SETTINGS))
    for machine in ("idle", "busy"):
        load = subprocess.Popen([sys.executable, "-c", LOAD]) if machine == "busy" else None
        try:
            for kind in WORK:
                counts: dict[str, list[int]] = defaultdict(list)
                for _ in range(arguments.rounds):
                    for name, setting in SETTINGS.items():
                        counts[name].append(run(kind, setting, arguments.seconds))
                base = statistics.median(counts["default"])
                cells = (f"{statistics.median(counts[name]) / base:.2f}x" for name in SETTINGS)
                print(f"| {machine} | {kind} | {' | '.join(cells)} |", flush=True)
        finally:
            if load is not None:
                load.kill()
                load.wait()


if __name__ == "__main__":
    main()
