"""Decodes a few prompts with every kind of bundled model and prints the tokens: equal for every supported library.

Run in a process of its own, whose PYTHONPATH holds the versions to try.
"""

import json
from pathlib import Path

import torch
import transformers

import wino
from wino.multimodal import load
from wino.tasks import PICTURE_TASKS, TASKS
from wino.tasks.evaluation import encode_items

ITEMS, SEED = 2, 7


def main() -> None:
    tokens = {}
    for name, tasks in (("wino-tiny", TASKS), ("wino-tiny-mmada", PICTURE_TASKS)):
        model, encoder = (wino.load if tasks is TASKS else load)(name)
        for task in tasks.values():
            source = task.items("heldout", SEED)
            items = [next(source) for _ in range(ITEMS)]
            input_ids, attention_mask = encode_items(encoder, task, items)
            for decoder in ("wino", "confidence_threshold"):
                config = wino.GenerationConfig(decoder=decoder, max_new_tokens=task.max_new_tokens)
                output = wino.generate(model, input_ids, attention_mask, config)
                texts = encoder.batch_decode(output.sequences[:, input_ids.shape[1] :], skip_special_tokens=True)
                tokens[f"{task.name}, {decoder}"] = [input_ids.tolist(), output.sequences.tolist(), texts]
    print(json.dumps({"transformers": transformers.__version__, "from": _origin(), "tokens": tokens}))


def _origin() -> str:
    return str(Path(transformers.__file__).parent.parent)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
