"""The command line ``wino``. Only what ``--help`` needs is imported here; each command imports its own work."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..tasks import PICTURE_TASKS, SPLITS, TASKS, TEXT_TASK_NAMES, VISUAL_TASK_NAMES
from .errors import OneLineErrors

_TASK_NAMES = (
    f"{', '.join(TASKS)}; with --data {', '.join((*TEXT_TASK_NAMES, 'exact'))}; "
    f"of a MMaDA {', '.join(PICTURE_TASKS)}, with --data {', '.join(VISUAL_TASK_NAMES)}"
)
_EPILOG = (
    "Errors are one line on stderr. Exit codes: 0 done, 2 bad input, 130 interrupted. "
    "WINO_BACKEND chooses the kernels, WINO_TRACEBACK=1 shows where an error came from."
)

app = typer.Typer(
    name="wino",
    cls=OneLineErrors,
    help="Decode masked diffusion language models with revocable parallel decoding (WINO).",
    epilog=_EPILOG,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    rich_markup_mode="rich" if sys.stdout is not None and sys.stdout.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DECODING = "Decoding"
_MODEL_HELP = "The bundled wino-tiny, wino-tiny-plus or wino-tiny-mmada, a folder in Hugging Face layout, or a hub id."

_DECODER_HELP = "wino, low_confidence, confidence_threshold, prophet or maskgit."
_THRESHOLD_HELP = "wino: accept drafts above it; confidence_threshold: at or above it. In (0, 1]."

Model = Annotated[str, typer.Option(help=_MODEL_HELP)]
Device = Annotated[str, typer.Option(help="Where to run, such as cpu or cuda:0; auto: a GPU where there is one.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts decoded together.")]
Decoder = Annotated[
    str | None,
    typer.Option(help=_DECODER_HELP, rich_help_panel=_DECODING),
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Generation length.", rich_help_panel=_DECODING)]
BlockLength = Annotated[
    int | None,
    typer.Option(
        help="Tokens per block, divides the generation length; one block if left out.", rich_help_panel=_DECODING
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(help=_THRESHOLD_HELP, rich_help_panel=_DECODING),
]
ThresholdBack = Annotated[
    float | None,
    typer.Option(
        help="wino: take a token back when its verification is below it. In (0, 1].", rich_help_panel=_DECODING
    ),
]
AcceptFraction = Annotated[
    float | None,
    typer.Option(help="wino: accept at most this share of the masked tokens a step.", rich_help_panel=_DECODING),
]
MinAccept = Annotated[int | None, typer.Option(help="wino: that limit is never below this.", rich_help_panel=_DECODING)]
MaxAccept = Annotated[int | None, typer.Option(help="wino: nor above this.", rich_help_panel=_DECODING)]
VerifyLast = Annotated[
    bool | None,
    typer.Option(
        "--verify-last/--no-verify-last",
        help="wino: verify the tokens of a block's last step too.",
        rich_help_panel=_DECODING,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        help="low_confidence, prophet: forward passes over all blocks; one a token if left out.",
        rich_help_panel=_DECODING,
    ),
]
AnswerStart = Annotated[
    int | None,
    typer.Option(
        help="prophet: where the answer's five positions begin in the generated text, whose certainty ends the decode.",
        rich_help_panel=_DECODING,
    ),
]
Remasking = Annotated[
    str | None,
    typer.Option(help="low_confidence: fill by low_confidence or at random.", rich_help_panel=_DECODING),
]
CfgScale = Annotated[float | None, typer.Option(help="Classifier-free guidance; 0 is none.", rich_help_panel=_DECODING)]
Temperature = Annotated[float | None, typer.Option(help="Gumbel temperature; 0 is greedy.", rich_help_panel=_DECODING)]
Seed = Annotated[int | None, typer.Option(help="Seed of the random draws.", rich_help_panel=_DECODING)]
StopAtEos = Annotated[
    bool | None,
    typer.Option(
        "--stop-at-eos/--no-stop-at-eos",
        help="Do not decode what lies behind a block of nothing but end tokens.",
        rich_help_panel=_DECODING,
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        help="Keys and values computed once a block: none (exact), of the prefix, or dual, also of what lies behind "
        "the block (both approximate).",
        rich_help_panel=_DECODING,
    ),
]
CacheRefresh = Annotated[
    int | None,
    typer.Option(help="With a cache: compute everything every so many steps of a block.", rich_help_panel=_DECODING),
]

SkipInvalid = Annotated[
    bool,
    typer.Option(
        "--skip-invalid", help="Leave out rows that cannot be used (each is named), and say how many; not the run."
    ),
]
PromptStyle = Annotated[
    str | None,
    typer.Option(help="own prompts, or those published with the papers (the eight text tasks).", show_default="own"),
]
QuestionColumn = Annotated[
    str | None, typer.Option(help="Task exact: the column of questions, if it is not called question, prompt, ...")
]
AnswerColumn = Annotated[str | None, typer.Option(help="Task exact: the column of answers.")]
AllowCodeExecution = Annotated[
    bool,
    typer.Option(
        "--allow-code-execution", help="humaneval, mbpp: run the programs that the model writes, in a sandbox."
    ),
]
AllowUnsandboxed = Annotated[
    bool,
    typer.Option(
        "--allow-unsandboxed-code-execution",
        help="With --allow-code-execution: where this machine has no sandbox, run them without, as you.",
    ),
]
Records = Annotated[Path, typer.Argument(help="Records of wino collect (JSON lines).")]


def main() -> None:
    """Run the command line."""
    _let_threads_sleep()
    app(prog_name="wino")


def _let_threads_sleep() -> None:
    """Before Torch loads OpenMP: its threads spin for some microseconds, then sleep; what the user set stays.

    Left alone they spin so long that beside other load next to nothing is done (docs/performance.md has the figures).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _asked(ctx: typer.Context) -> dict[str, str]:
    """What was given of the options that say how a task asks."""
    names = ("prompt_style", "question_column", "answer_column")
    return {name: ctx.params[name] for name in names if ctx.params[name] is not None}


def _version() -> str:
    """The package's version, read without importing the package, which would import Torch."""
    package = importlib.util.find_spec("wino_kernels")
    assert package is not None and package.origin is not None
    return runpy.run_path(str(Path(package.origin).with_name("_version.py")))["__version__"]


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"wino {_version()}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command(
    "demo",
    short_help="Watch held-out problems being solved side by side, then compare all decoders.",
    epilog="Example: wino demo --fast",
)
def demo_command(
    model: Annotated[
        str | None, typer.Option(help=f"{_MODEL_HELP} wino-tiny, or wino-tiny-mmada with --multimodal, if left out.")
    ] = None,
    device: Device = "auto",
    multimodal: Annotated[
        bool, typer.Option("--multimodal", help="Pictures: described, asked about, and drawn from descriptions.")
    ] = False,
    items: Annotated[int, typer.Option(min=1, help="Held-out problems per task in the table.")] = 100,
    seed: Annotated[int, typer.Option(help="Chooses the problems.")] = 0,
    animation: Annotated[bool, typer.Option(help="Show decodes step by step before the table.")] = True,
    fast: Annotated[bool, typer.Option("--fast", help="Play the animation three times as fast.")] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Also write a picture to this file: one moment and the tables (SVG), or with --multimodal a contact "
            "sheet (PNG)."
        ),
    ] = None,
) -> None:
    """Watch problems nobody trained on being solved by LLaDA's decoder and by WINO, then compare all decoders; with
    --multimodal pictures are described, asked about and drawn.

    On a terminal the decodes play side by side; into a pipe or a file goes plain text.
    """
    from .session import require

    if multimodal:
        require("multimodal", "PIL", "pycocoevalcap")
        from .gallery import run_gallery as run
    else:
        from .demo import run_demo as run
    name = model or ("wino-tiny-mmada" if multimodal else "wino-tiny")
    run(name, device, items=items, seed=seed, animation=animation, fast=fast, record=record)


@app.command("generate", short_help="Decode prompts.", epilog='Example: wino generate "sum 34+08-15+27-01"')
def generate_command(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What to ask; - reads prompts from standard input.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="A text file with one prompt a line; - is standard input.")
    ] = None,
    model: Model = "wino-tiny",
    device: Device = "auto",
    batch_size: BatchSize = 16,
    json_lines: Annotated[
        bool, typer.Option("--json", help="One JSON object a prompt: text, steps, tokens, ids, when each was accepted.")
    ] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Add what each step accepted and took back to the JSON.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Show the text as it is decoded, prompt by prompt (terminal only).")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say on stderr how many forward passes each answer took.")
    ] = False,
    image: Annotated[
        Path | None, typer.Option(help="A picture that the prompts are about; needs a MMaDA.", dir_okay=False)
    ] = None,
    decoder: Decoder = None,
    max_new_tokens: MaxNewTokens = None,
    block_length: BlockLength = None,
    threshold: Threshold = None,
    threshold_back: ThresholdBack = None,
    accept_fraction: AcceptFraction = None,
    min_accept: MinAccept = None,
    max_accept: MaxAccept = None,
    verify_last: VerifyLast = None,
    steps: Steps = None,
    answer_start: AnswerStart = None,
    remasking: Remasking = None,
    cfg_scale: CfgScale = None,
    temperature: Temperature = None,
    seed: Seed = None,
    stop_at_eos: StopAtEos = None,
    cache: Cache = None,
    cache_refresh: CacheRefresh = None,
) -> None:
    """Decode prompts.

    Settings left out come from the model's presets if the prompt's first word is a task they name (wino-tiny has them
    for its tasks), else from the defaults of wino.GenerationConfig; the generation length from the checkpoint's
    generation_config.json, or as much as fits.
    """
    from .generate import read_prompts, run_generate
    from .session import chosen_settings

    run_generate(
        read_prompts(prompt, file),
        chosen_settings(ctx.params),
        model=model,
        device=device,
        batch_size=batch_size,
        json_lines=json_lines,
        trace=trace,
        stream=stream,
        verbose=verbose,
        image=image,
    )


@app.command(
    "eval",
    short_help="Measure decoders on a task: accuracy, steps, speed.",
    epilog="Example: wino eval --task sudoku --n 50 --decoder wino --threshold 0.8",
)
def eval_command(
    ctx: typer.Context,
    task: Annotated[list[str], typer.Option(help=f"One of {_TASK_NAMES}; several with --out.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A published file (.jsonl, .csv, .parquet or hf:owner/name/split), not generated items; docs/tasks.md "
            "says which columns."
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", min=1, help="Number of items; left out: 200 generated ones or the whole file."),
    ] = None,
    split: Annotated[str, typer.Option(help=f"Generated items: one of {', '.join(SPLITS[1:])}.")] = "heldout",
    item_seed: Annotated[int, typer.Option(help="Chooses the generated items.")] = 0,
    model: Annotated[
        list[str] | None, typer.Option(help=f"{_MODEL_HELP} With --out several, each NAME or LABEL=NAME.")
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = 64,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write figures, settings and every answer to this JSON file.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Draw the accuracy-under-parallelism curve: eval.json, eval.md and eval.png in this folder, of every "
            "--model, --task, --decoder and --threshold (paired tests against the first). A second run resumes."
        ),
    ] = None,
    skip_invalid: SkipInvalid = False,
    allow_code_execution: AllowCodeExecution = False,
    allow_unsandboxed_code_execution: AllowUnsandboxed = False,
    prompt_style: PromptStyle = None,
    question_column: QuestionColumn = None,
    answer_column: AnswerColumn = None,
    decoder: Annotated[
        list[str] | None,
        typer.Option(help=f"{_DECODER_HELP} Several with --out.", rich_help_panel=_DECODING),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    block_length: BlockLength = None,
    threshold: Annotated[
        str | None,
        typer.Option(help=f"{_THRESHOLD_HELP} With --out several, such as 0.5,0.7,0.9.", rich_help_panel=_DECODING),
    ] = None,
    threshold_back: ThresholdBack = None,
    accept_fraction: AcceptFraction = None,
    min_accept: MinAccept = None,
    max_accept: MaxAccept = None,
    verify_last: VerifyLast = None,
    steps: Steps = None,
    answer_start: AnswerStart = None,
    remasking: Remasking = None,
    cfg_scale: CfgScale = None,
    temperature: Temperature = None,
    seed: Seed = None,
    stop_at_eos: StopAtEos = None,
    cache: Cache = None,
    cache_refresh: CacheRefresh = None,
) -> None:
    """Measure decoders on a task: accuracy, steps, speed.

    Without --decoder: LLaDA's decoder at 1, 2 and 4 tokens a step, confidence_threshold and wino with the model's
    presets; settings that every decoder has go to all of them. With it: that one, with the settings given here over
    its preset.
    """
    from .evaluate import run_eval
    from .session import chosen_settings, numbers_of, one_of

    models, decoders, thresholds = model or ["wino-tiny"], decoder or [], numbers_of("--threshold", threshold)
    items: dict[str, Any] = {
        "data": data,
        "n": n,
        "split": split,
        "item_seed": item_seed,
        "device": device,
        "batch_size": batch_size,
        "skip_invalid": skip_invalid,
        "allow_code_execution": allow_code_execution,
        "allow_unsandboxed": allow_unsandboxed_code_execution,
        "asked": _asked(ctx),
    }
    if out is not None:
        from .curve import run_curve

        settings = chosen_settings({**ctx.params, "decoder": None, "threshold": None})
        names = decoders or ["low_confidence", "confidence_threshold", "wino"]
        run_curve(task, settings, models=models, decoders=names, thresholds=thresholds, out=out, **items)
        return
    single = {"decoder": one_of("--decoder", decoders), "threshold": one_of("--threshold", thresholds)}
    run_eval(
        one_of("--task", task),
        chosen_settings({**ctx.params, **single}),
        model=one_of("--model", models),
        json_file=json_file,
        **items,
    )


@app.command(
    "bench",
    short_help="Measure how fast a model decodes here.",
    epilog="Example: wino bench --trunk 4x256 --prompt 512 --modes exact,dual",
)
def bench_command(
    ctx: typer.Context,
    model: Model = "wino-tiny",
    trunk: Annotated[
        str | None,
        typer.Option(help="Instead of --model: a random model of so many layers x width, such as 4x256; or llada-8b."),
    ] = None,
    vocab: Annotated[
        int | None, typer.Option(min=4, help="With --trunk: vocabulary size; LLaDA's 126464 if left out.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bfloat16, float32 or float16; left out: the checkpoint's, bfloat16 with --trunk."),
    ] = None,
    device: Device = "auto",
    batch: Annotated[str, typer.Option(help="Batch sizes, such as 1,4,16.")] = "1",
    prompt: Annotated[
        str | None,
        typer.Option(help="Lengths of random prompts, such as 128,1024; left out: 128, or wino-tiny's own problems."),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="Prompts from a text file instead, one a line.")
    ] = None,
    modes: Annotated[
        str,
        typer.Option(
            help="Some of exact, prefix, dual (approximate caches), compile; on a GPU graph, dual+graph, compile+graph."
        ),
    ] = "exact,prefix,dual",
    rounds: Annotated[int, typer.Option(min=1, help="Timed decodes of each mode, in turn.")] = 7,
    published: Annotated[
        bool, typer.Option("--published/--no-published", help="Also measure the published loop, the baseline.")
    ] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write settings, machine and every figure to this JSON file.")
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    block_length: BlockLength = None,
    threshold: Threshold = None,
    threshold_back: ThresholdBack = None,
    seed: Annotated[int, typer.Option(help="Chooses prompts and the random model.")] = 0,
) -> None:
    """Measure how fast a model decodes here, by the published loop and by ours.

    Prints tokens a second, steps, where a step's time goes and peak memory. A random model (--trunk) accepts several
    tokens a step and takes some back, as a trained one does.
    """
    from .bench import run_bench

    run_bench(
        ctx.params,
        model=model,
        trunk=trunk,
        vocabulary=vocab,
        dtype=dtype,
        device=device,
        batch=batch,
        prompt=prompt,
        file=file,
        modes=modes,
        rounds=rounds,
        published=published,
        seed=seed,
        json_file=json_file,
    )


@app.command(
    "collect",
    short_help="Record how WINO decodes a training set, for WINO+.",
    epilog="Example: wino collect --task sudoku --items 200 --out sudoku.jsonl",
)
def collect_command(
    ctx: typer.Context,
    task: Annotated[str, typer.Option(help=f"One of {_TASK_NAMES}.")],
    out: Annotated[Path, typer.Option(help="File of the records (JSON lines); one that is there is gone on with.")],
    data: Annotated[Path | None, typer.Option(help="Training items from this file, not generated ones.")] = None,
    items: Annotated[
        int | None, typer.Option(min=1, help="How many; left out: 1000 generated ones or the whole file.")
    ] = None,
    item_seed: Annotated[int, typer.Option(help="Chooses the generated items.")] = 0,
    model: Model = "wino-tiny",
    device: Device = "auto",
    batch_size: BatchSize = 64,
    skip_invalid: SkipInvalid = False,
    allow_code_execution: AllowCodeExecution = False,
    allow_unsandboxed_code_execution: AllowUnsandboxed = False,
    prompt_style: PromptStyle = None,
    question_column: QuestionColumn = None,
    answer_column: AnswerColumn = None,
    temperatures: Annotated[
        str | None, typer.Option(help="Tried in turn until an answer is correct; 0,0.1,0.2,0.3,0.4,0.5 if left out.")
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    block_length: BlockLength = None,
    threshold: Threshold = None,
    threshold_back: ThresholdBack = None,
    verify_last: VerifyLast = None,
    cache: Cache = None,
    cache_refresh: CacheRefresh = None,
) -> None:
    """Record how WINO decodes a training set: which token settled at which step, and whether the answer is right.

    Thresholds left out are 0.5 and 0.8. Under accelerate launch or torchrun every process takes its share of the items,
    and the last one to finish merges them.
    """
    from .collect import run_collect
    from .session import chosen_settings

    run_collect(
        task,
        chosen_settings(ctx.params),
        out=out,
        model=model,
        device=device,
        data=data,
        n=items,
        item_seed=item_seed,
        batch_size=batch_size,
        temperatures=temperatures,
        skip_invalid=skip_invalid,
        allow_code_execution=allow_code_execution,
        allow_unsandboxed=allow_unsandboxed_code_execution,
        asked=_asked(ctx),
    )


trajectories_app = typer.Typer(help="Filter, merge and look at collected records.", invoke_without_command=True)
app.add_typer(trajectories_app, name="trajectories")


@trajectories_app.callback()
def _trajectories(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@trajectories_app.command(
    "filter",
    short_help="Keep the correct records, one per item.",
    epilog="Example: wino trajectories filter sudoku.jsonl best.jsonl",
)
def filter_command(
    source: Records,
    out: Annotated[Path, typer.Argument(help="File to write.")],
    allow_incorrect: Annotated[
        bool, typer.Option("--allow-incorrect", help="Keep an item's best record even if its answer is not correct.")
    ] = False,
    max_prompt_length: Annotated[int | None, typer.Option(min=1, help="Leave out longer prompts, in tokens.")] = None,
    keep_step_ratio: Annotated[
        float, typer.Option(help="Keep the easy records that make up this share of all steps; in (0, 1].")
    ] = 1.0,
    dedupe_key: Annotated[
        str | None,
        typer.Option(help="Keep one record a value of this field, such as unique_id; left out: one an item."),
    ] = None,
) -> None:
    """Keep the correct records, one per item, the easy ones first: lowest temperature, then fewest steps.

    With nothing left it writes nothing and exits 1.
    """
    from .trajectories import run_filter

    run_filter(
        source,
        out,
        allow_incorrect=allow_incorrect,
        max_prompt_length=max_prompt_length,
        keep_step_ratio=keep_step_ratio,
        dedupe_key=dedupe_key,
    )


@trajectories_app.command(
    "stats",
    short_help="How many are correct, and when tokens were accepted.",
    epilog="Example: wino trajectories stats sudoku.jsonl",
)
def stats_command(source: Records) -> None:
    """How many are correct, and when their tokens were accepted."""
    from .trajectories import run_stats

    run_stats(source)


@trajectories_app.command(
    "show", short_help="Draw one record step by step.", epilog="Example: wino trajectories show sudoku.jsonl --index 3"
)
def show_command(
    source: Records,
    unique_id: Annotated[str | None, typer.Option("--id", help="The record's unique_id.")] = None,
    index: Annotated[int, typer.Option(help="Without --id: which record, from 0.")] = 0,
    model: Annotated[str | None, typer.Option(help="Whose tokenizer; the record's own model if left out.")] = None,
) -> None:
    """Draw one record step by step."""
    from .trajectories import run_show

    run_show(source, unique_id, index, model)


@trajectories_app.command(
    "merge",
    short_help="Put several files into one.",
    epilog="Example: wino trajectories merge a.jsonl b.jsonl both.jsonl",
)
def merge_records_command(
    files: Annotated[list[Path], typer.Argument(help="Files to read, then the file to write.", exists=False)],
) -> None:
    """Put several files into one, each unique_id once."""
    from .trajectories import run_merge

    if len(files) < 2:
        raise typer.BadParameter("expected at least one file to read and one to write")
    run_merge(files[:-1], files[-1])


@app.command(
    "train",
    short_help="Train a model to follow recorded trajectories (WINO+).",
    epilog="Example: wino train --config llada-8b",
)
def train_command(
    config: Annotated[str, typer.Option(help="A recipe (YAML), or the name of one that comes with the package.")],
    model: Annotated[str | None, typer.Option(help="Instead of the recipe's base model.")] = None,
    output: Annotated[Path | None, typer.Option(help="Instead of the recipe's output folder.")] = None,
) -> None:
    """Train a model to follow recorded trajectories (WINO+), stage by stage; an interrupted run goes on."""
    from .train import run_train

    run_train(config, model, output)


@app.command(
    "merge",
    short_help="Merge a trained adapter into its base.",
    epilog="Example: wino merge --base wino-tiny --adapter runs/tiny/final --out wino-mine",
)
def merge_command(
    adapter: Annotated[
        Path, typer.Option(help="The folder `final` of a stage of wino train, or another LoRA in PEFT's layout.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    base: Annotated[str, typer.Option(help="The model the adapter was trained on.")] = "wino-tiny",
) -> None:
    """Merge a trained adapter into its base: a checkpoint that loads wherever the base loads.

    Tokenizer, settings and model card come from the base. A base without presets.json gets the thresholds published
    for WINO+ models.
    """
    from .train import run_merge

    run_merge(base, adapter, out)


@app.command(
    "doctor", short_help="Say what this machine has, and which kernels serve it.", epilog="Example: wino doctor"
)
def doctor_command() -> None:
    """Say what this machine has, which kernels serve it and why others do not."""
    from .doctor import run_doctor

    run_doctor()
