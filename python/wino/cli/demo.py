"""``wino demo``: decoders side by side on problems nobody trained on, then every decoder in figures."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.align import Align
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..config import GenerationConfig
from ..files import write_atomically
from ..generation import generate
from ..tasks import TASKS, Item, Task
from ..tasks.curve import Workbench
from ..tasks.evaluation import Evaluation, encode_items, read_answers
from ..tasks.presets import decoder_configs
from ..tasks.statistics import paired_difference
from ..trace import StepRecord
from .board import Board, Glyphs, Line, half_blocks
from .evaluate import evaluate_all
from .report import legend, print_table
from .session import Session, check_writable, open_session, status

SHOWN = {
    "low_confidence": "one token a pass",
    "confidence_threshold": "confidence threshold",
    "wino": "WINO",
}
"""The configurations that play side by side: label -> title."""

_CANDIDATES = 16
_BATCH_SIZE = 50
_SECONDS_A_TASK = 9.0
_LONGEST_TICK = 0.5
_FLASH = 0.6  # share of a tick for which accepted and taken-back tokens stay lit
_PICTURE_WIDTH = 84
_PICTURE_COLUMNS = (32, 48)  # of a scene on a narrow and on a wide terminal
_WIDE = 104
_PANEL_WIDTH = 26


@dataclass
class Decode:
    """One problem decoded alone, with what each step did and when it was done; a streamer for :func:`wino.generate`."""

    title: str
    records: list[StepRecord] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    text: str = ""
    correct: bool = False
    length: int = 0
    began: float = field(default_factory=time.perf_counter)

    def put(self, value: Any) -> None:
        """Prompt and result pass through here; nothing to keep."""

    def put_step(self, step: int, tokens: Any, records: Sequence[StepRecord | None]) -> None:
        if records[0] is not None:
            self.records.append(records[0])
            self.seconds.append(time.perf_counter() - self.began)

    def end(self) -> None:
        """Nothing is buffered."""

    @property
    def taken_back(self) -> int:
        return sum(len(record.remasked_positions) for record in self.records)


@dataclass(frozen=True)
class Show:
    """One task's problem, its picture if it has one, and its decodes."""

    task: Task
    item: Item
    decodes: list[Decode]
    why: str
    picture: Any = None


def run_demo(
    model: str, device: str, *, items: int, seed: int, animation: bool, fast: bool, record: Path | None
) -> None:
    """Play and measure every task; see ``wino demo --help``."""
    if record is not None:
        check_writable(record)
    session = open_session(model, device)
    session.announce()
    console = Console(highlight=False)
    picture = Console(
        record=True,
        file=io.StringIO(),
        width=_PICTURE_WIDTH,
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    say(console, f"{model}: held-out problems, which training never saw (seed {seed}).", "bold")
    if console.is_terminal and animation:
        say(console, "All play at the same slowed-down pace; tok/s is the real speed.", "dim")
    last = list(TASKS)[-1]
    for task in TASKS.values():
        show = prepare(session, task, seed)
        play(console, session, show, animate=animation, speed=3.0 if fast else 1.0)
        if task.name == last:
            print_moment(picture, session, show)
    compare([console, picture], session, list(TASKS.values()), items, seed)
    if record is not None:
        write_atomically(record, svg_of(picture))
        say(console, f"wrote {record}", "dim")


def compare(consoles: Sequence[Console], session: Session, tasks: Sequence[Task], count: int, seed: int) -> None:
    """Every decoder on the first ``count`` held-out problems of each task: tables, then what they say."""
    seen = []
    for task in tasks:
        problems = list(islice(task.items("heldout", seed), count))
        configs = decoder_configs(task, session.presets)
        bench = Workbench(session.name, session.model, session.tokenizer, None)
        evaluations = evaluate_all(bench, task, problems, configs, _BATCH_SIZE)
        for target in consoles:
            heading(target, task.name, f"{task.title}, {len(problems)} held-out problems")
            print_table(target, evaluations)
        seen.append(verdict(task, evaluations))
    for target in consoles:
        target.print()
        say(target, legend(min(count, _BATCH_SIZE)), "dim")
        target.print()
        for sentence in seen:
            say(target, sentence)


def say(console: Console, text: str, style: str = "") -> None:
    """A sentence: wrapped on a terminal, one line elsewhere."""
    console.print(Text(text, style), soft_wrap=not console.is_terminal)


def counted(number: int, one: str, more: str) -> str:
    """ "1 pass", "2 passes"."""
    return f"{number} {one if number == 1 else more}"


def heading(console: Console, name: str, title: str) -> None:
    """The title line of a task."""
    title = f"{name}: {title}"
    console.print()
    if console.is_terminal:
        console.print(Rule(Text(title, "bold"), align="left", style="bright_black"))
    else:
        say(console, title)


def prepare(session: Session, task: Task, seed: int) -> Show:
    """Choose the problem to watch among the first held-out ones, and decode it alone with each decoder."""
    configs = decoder_configs(task, session.presets)
    items = list(islice(task.items("heldout", seed), _CANDIDATES))
    with status(f"{task.name}: choosing a problem ..."):
        solved, moves = [True] * len(items), [0] * len(items)
        for label in SHOWN:
            for i, (correct, taken_back) in enumerate(_outcomes(session, task, items, configs[label])):
                solved[i] &= correct
                moves[i] += taken_back
        best = max(range(len(items)), key=lambda i: (solved[i], moves[i]))
        decodes = [decode_alone(session, task, items[best], configs[label], title) for label, title in SHOWN.items()]
    which = "solved by all, and" if solved[best] else "none is solved by all; here"
    why = f"Chosen from {_CANDIDATES} problems: {which} WINO takes back the most tokens."
    return Show(task, items[best], decodes, why, task.picture(items[best]) if task.has_pictures else None)


def _outcomes(session: Session, task: Task, items: list[Item], config: GenerationConfig) -> Iterator[tuple[bool, int]]:
    """Per item: whether it was solved, and how many tokens were taken back."""
    input_ids, attention_mask = encode_items(session.tokenizer, task, items)
    output = generate(session.model, input_ids, attention_mask, config, return_trace=True)
    texts, _ = read_answers(session.tokenizer, output.sequences[:, input_ids.shape[1] :], session.ends)
    for item, text, records in zip(items, texts, output.trace or [], strict=True):
        yield task.grade(item, text), sum(len(record.remasked_positions) for record in records)


def decode_alone(session: Session, task: Task, item: Item, config: GenerationConfig, title: str) -> Decode:
    """Decode one problem and keep what each step did."""
    input_ids, attention_mask = encode_items(session.tokenizer, task, [item])
    decode = Decode(title)
    output = generate(session.model, input_ids, attention_mask, config, streamer=decode)
    generated = output.sequences[:, input_ids.shape[1] :]
    (decode.text,), (decode.length,) = read_answers(session.tokenizer, generated, session.ends)
    decode.correct = task.grade(item, decode.text)
    return decode


def play(console: Console, session: Session, show: Show, *, animate: bool, speed: float) -> None:
    """Show the decodes of one problem: moving, still, or as plain lines."""
    heading(console, show.task.name, show.task.title)
    say(console, show.item.prompt, "bold cyan")
    say(console, show.why, "dim")
    if not console.is_terminal:
        if show.picture is not None:
            say(console, f"  a right answer: {show.item.answer}")
        for decode in show.decodes:
            outcome = "solved" if decode.correct else "wrong"
            say(
                console,
                f"  {decode.title}: {decode.text}  ({outcome}, {counted(len(decode.records), 'pass', 'passes')}, "
                f"{counted(decode.taken_back, 'token', 'tokens')} taken back)",
            )
        return
    stage = Stage(console, session, show)
    if not animate:
        stage.move_to(stage.ticks)
        console.print(stage.picture(flash=False))
        return
    tick_seconds = min(_LONGEST_TICK, _SECONDS_A_TASK / stage.ticks) / speed
    with Live(stage.picture(flash=False), console=console, auto_refresh=False) as live:
        clock = time.monotonic() + tick_seconds
        for tick in range(1, stage.ticks + 1):
            time.sleep(max(0.0, clock - time.monotonic()))
            stage.move_to(tick)
            live.update(stage.picture(flash=True), refresh=True)
            time.sleep(_FLASH * tick_seconds)
            live.update(stage.picture(flash=False), refresh=True)
            clock += tick_seconds
        stage.settle()
        live.update(stage.picture(flash=False), refresh=True)
    time.sleep(1.0 / speed)


class Stage:
    """The decodes of a problem after the same number of passes, as panels: side by side, or beside its picture."""

    def __init__(self, console: Console, session: Session, show: Show) -> None:
        glyphs = Glyphs(session.tokenizer, session.ends, console)
        self.show, self.at = show, 0
        self.ticks = max(len(decode.records) for decode in show.decodes)
        length = show.task.max_new_tokens
        lines, given = layout(show, glyphs, length)
        self.boards = [Board(glyphs, length, lines, given, widths(decode, glyphs, length)) for decode in show.decodes]
        self.width = console.width
        self.columns = _PICTURE_COLUMNS[console.width >= _WIDE]
        has_scene = show.picture is not None and glyphs.unicode
        self.scene = half_blocks(show.picture, self.columns) if has_scene else None

    def move_to(self, tick: int) -> None:
        """Replay the passes up to the ``tick``-th."""
        while self.at < tick:
            for board, decode in zip(self.boards, self.show.decodes, strict=True):
                board.settle()
                if self.at < len(decode.records):
                    board.apply(decode.records[self.at])
            self.at += 1

    def settle(self) -> None:
        """Unlight the last pass."""
        for board in self.boards:
            board.settle()

    def picture(self, flash: bool) -> RenderableType:
        """The panels now, as many side by side as there is room for."""
        panels = [self._panel(b, decode, flash) for b, decode in zip(self.boards, self.show.decodes, strict=True)]
        grid = Table.grid(expand=True, padding=0)
        if self.scene is not None:
            grid.add_column(width=self.columns + 1)
            grid.add_column(ratio=1)
            grid.add_row(self.scene, Group(*panels))
            return grid
        abreast = max(1, min(len(panels), self.width // _PANEL_WIDTH))
        for _ in range(abreast):
            grid.add_column(ratio=1)
        for first in range(0, len(panels), abreast):
            grid.add_row(*panels[first : first + abreast])
        return grid

    def _panel(self, board: Board, decode: Decode, flash: bool) -> Panel:
        passes = min(self.at, len(decode.records))
        done = passes == len(decode.records)
        taken_back = sum(len(record.remasked_positions) for record in decode.records[:passes])
        filled = sum(token is not None for token in board.tokens[: decode.length])
        speed = filled / decode.seconds[passes - 1] if passes else 0.0
        counters = Table.grid(expand=True)
        for _ in range(2):
            counters.add_column(ratio=1, no_wrap=True)
        counters.add_row(
            Text(counted(passes, "pass", "passes"), "bold"),
            Text(f"{speed:.0f} tok/s" if passes else "", "dim", justify="right"),
        )
        undone = Text(f"{taken_back} taken back" if taken_back else "", "red", justify="center")
        verdict = Text("solved", "bold green") if decode.correct else Text("wrong", "bold red")
        outcome = verdict if done else Text("decoding", "bright_black")
        subtitle = None
        if self.show.picture is not None:
            body, subtitle = Group(board.text(flash), counters, undone), outcome
        else:
            body = Group(Text(), Align.center(board.text(flash)), Text(), counters, undone, Align.center(outcome))
        border = ("green" if decode.correct else "red") if done else "bright_black"
        title = Text(decode.title, "bold")
        return Panel(body, title=title, subtitle=subtitle, border_style=border, padding=(0, 1))


def layout(show: Show, glyphs: Glyphs, length: int) -> tuple[list[Line], dict[int, str]]:
    """Where each generated token is drawn, and what the question already fixes there."""
    if show.task.name == "sudoku":
        bar, rule = (" │ ", "────┼────") if glyphs.unicode else (" | ", "----+----")
        rows: list[Line] = [[4 * r, " ", 4 * r + 1, bar, 4 * r + 2, " ", 4 * r + 3] for r in range(4)]
        puzzle = show.item.prompt.split()[-1]
        given = {i: cell for i, cell in enumerate(puzzle) if cell != "0"}
        ends: list[int | str] = ["  "]
        for position in range(16, length):
            ends += [position, " "]
        return [*rows[:2], [rule], *rows[2:], ends], given
    lines: list[Line] = []
    line: list[int | str] = []
    if show.task.has_pictures:
        for position in range(length):
            line += [position, " "]
        return [line], {}
    ids = glyphs.tokenizer(show.item.answer, add_special_tokens=False)["input_ids"]
    for position in range(length):
        line.append(position)
        if position < len(ids) and ";" in glyphs.draw(ids[position]):
            lines.append(line)
            line = []
    return [*lines, line], {}


def widths(decode: Decode, glyphs: Glyphs, length: int) -> list[int]:
    """Columns of what ``decode`` ends with at each position."""
    ends: dict[int, int] = {}
    for record in decode.records:
        ends.update(zip(record.accepted_positions, record.accepted_tokens, strict=True))
    return [len(glyphs.draw(ends[position])) if position in ends else 1 for position in range(length)]


def print_moment(console: Console, session: Session, show: Show) -> None:
    """The pass at which WINO takes back most, as a still picture."""
    heading(console, show.task.name, show.task.title)
    say(console, show.item.prompt, "bold cyan")
    stage = Stage(console, session, show)
    records = show.decodes[-1].records
    stage.move_to(1 + max(range(len(records)), key=lambda i: len(records[i].remasked_positions)))
    console.print(stage.picture(flash=True))
    say(console, "Green: accepted in this pass. Red: taken back in this pass.", "dim")


def verdict(task: Task, evaluations: dict[str, Evaluation]) -> str:
    """What the figures of one task say, in a sentence."""
    wino, slow, fast = (evaluations[label] for label in ("wino", "low_confidence", "confidence_threshold"))
    scores = "".join(
        f" {name.upper()}: WINO {score:.3f}, one token a pass {slow.scores[name]:.3f}, confidence_threshold "
        f"{fast.scores[name]:.3f}."
        for name, score in wino.scores.items()
    )
    mean, low, high = (100 * x for x in paired_difference(wino.correct, slow.correct))
    return (
        f"{task.name}: WINO {100 * wino.accuracy:.1f} % in {wino.mean_steps:.1f} passes, "
        f"one token a pass {100 * slow.accuracy:.1f} % in {slow.mean_steps:.1f}: {mean:+.1f} points "
        f"(95 % interval {low:+.1f} to {high:+.1f}). "
        f"confidence_threshold: {100 * fast.accuracy:.1f} % in {fast.mean_steps:.1f}.{scores}"
    )


def svg_of(picture: Console) -> str:
    """The recorded console as SVG that asks no other site for fonts."""
    svg = picture.export_svg(title="wino demo", unique_id="wino-demo")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
