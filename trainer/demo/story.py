"""The order of the demonstration, and what is said about each step."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from polygraft.client import Client, Upload
from polygraft.trainer.base.skills import NAMES_WORDINGS
from polygraft.trainer.config import Data
from polygraft.trainer.demo.prometheus import scrape
from polygraft.trainer.demo.recipes import NAMES, SUMMARY, THREADS, demo_recipe
from polygraft.trainer.demo.server_process import ServerProcess
from polygraft.trainer.demo.tables import answer_table, metric_table, score_columns
from polygraft.trainer.demo.traffic import Request, Swap, mixed_load, swap_under_load
from polygraft.trainer.metrics import rouge_l
from polygraft.trainer.progress import ProgressBar
from polygraft.trainer.remote import make_request, server_asker
from polygraft.trainer.run import RunResult, train
from polygraft.trainer.scoring import (
    Prompt,
    Subject,
    best_base_prompt,
    literal_text,
    score_subject,
)
from polygraft.trainer.source import Source, load_source

START_SECONDS = 120.0
LOAD_ROWS = 16
"""Rows of each task in the mixed load; each is asked of the base and of the adapter."""
STREAMS = 16
"""Requests in flight while the alias moves."""
SHOWN_ROWS = 2
"""Rows of each task in the table of answers: simply the first of the test split."""


@dataclass
class Demo:
    """One demonstration: what it works with, and what it has measured so far."""

    console: Console
    output: Path
    base: str
    keep: bool
    """Whether `output` outlives the demonstration."""
    process: ServerProcess
    """Started already; it loads torch while we do."""
    started: float
    """When the demonstration began, on the monotonic clock."""
    server: str = ""
    metrics: str = ""
    steps: int = 0
    measured: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Show everything, stop the server, return what was measured."""
        self._step("Start a server")
        self.sources = {
            name: load_source(Data(task=f"builtin:{name}")) for name in (SUMMARY, NAMES)
        }
        rouge_l(["loads nltk"], ["while we wait"])
        addresses = self.process.wait_ready(START_SECONDS)
        self.server, self.metrics = addresses.grpc, addresses.metrics
        self._say(f"{self.base} on gRPC {self.server}, metrics on {self.metrics}")
        self._show()
        self._step("Stop the server")
        code = self.process.stop()
        seconds = time.monotonic() - self.started
        self.measured |= {"server_exit_code": code, "seconds": round(seconds, 1)}
        kept = f"in {self.output}" if self.keep else "with --keep"
        self._say(f"exit code {code}; {seconds:.0f} s in all. Adapters, plots and logs: {kept}.")
        return self.measured

    def _show(self) -> None:
        """Everything that needs the running server."""
        self._step("Train a LoRA in haste, and a soft prompt")
        hasty, names = self._train("hasty"), self._train("names")
        self._step("Upload both to the running server")
        first, named = self._upload(hasty, SUMMARY), self._upload(names, NAMES)
        self._step("Ask base, LoRA and soft prompt all at once")
        prompts = {name: self._base_prompt(name) for name in self.sources}
        self._mixed_load(prompts)
        self._step("Train the LoRA properly")
        full = self._train("full")
        self._step(f"Replace {SUMMARY}@live while requests stream")
        swap = self._swap(full)
        self._step("Score on held-out rows, through the server")
        bases = {name: self._score_base(name, prompt) for name, prompt in prompts.items()}
        adapters = [self._score(u) for u in (first, swap.upload, named)]
        self._compare_with_alone(swap, {1: adapters[0], 2: adapters[1]})
        self._show_scores(bases, adapters)
        self._ask_in_a_known_wording()
        self._step("What the server counted")
        self.console.print(metric_table(scrape(self.metrics)))

    def _train(self, recipe: str) -> RunResult:
        config = demo_recipe(recipe, base=self.base, output=self.output / "runs", threads=THREADS)
        with ProgressBar(self.console, f"{config.name:<10}") as progress:
            result = train(config, progress, score_test=False)
        if self.keep:
            self._say(f"loss curve: {result.directory / 'loss.png'}")
        self.measured.setdefault("training_seconds", {})[config.name] = round(result.seconds, 1)
        return result

    def _upload(self, run: RunResult, name: str) -> Upload:
        with Client(self.server) as client:
            upload = client.upload_adapter(run.directory, name)
        self._say_published(upload)
        return upload

    def _base_prompt(self, name: str) -> Prompt:
        """What to ask the base: the task's instruction in the wording it understands best."""
        source = self.sources[name]
        ask = server_asker(self.server, "", by_variables=False)
        prompt = best_base_prompt(source, source.metric, ask)
        choice = f", best of {n} wordings" if (n := len(source.base_prompts())) > 1 else ""
        self._say(f'for {name} the base is asked "{literal_text(prompt)}"{choice}')
        return prompt

    def _mixed_load(self, prompts: dict[str, Prompt]) -> None:
        requests: list[Request] = []
        for name, source in self.sources.items():
            for row in source.splits.validation[:LOAD_ROWS]:
                requests.append(make_request(prompts[name], row, "", by_variables=False))
                requests.append(make_request(source.prompt, row, name, by_variables=True))
        load = asyncio.run(mixed_load(self.server, requests))
        self._say(
            f"{len(load.answered)} of {len(requests)} answered in {load.seconds:.1f} s, "
            f"{load.tokens_per_second:.0f} tokens/s, first text after "
            f"{1000 * load.median_first_text:.0f} ms (median)"
        )
        self.measured["mixed_load"] = {
            "requests": len(requests),
            "failed": len(load.failed),
            "tokens_per_second": round(load.tokens_per_second),
            "median_first_text_ms": round(1000 * load.median_first_text),
        }

    def _swap(self, run: RunResult) -> Swap:
        source = self.sources[SUMMARY]
        requests = [
            make_request(source.prompt, row, SUMMARY, by_variables=True)
            for row in source.splits.test
        ]
        swap = asyncio.run(
            swap_under_load(self.server, requests, run.directory, SUMMARY, streams=STREAMS)
        )
        self._say_published(swap.upload)
        counts = ", ".join(f"{count} by @{number}" for number, count in swap.by_version())
        self._say(
            f"{len(swap.load.answered)} answers, {counts}; {len(swap.load.failed)} failed. "
            "Each names the one version that made it."
        )
        self.measured["swap"] = {
            "answers": len(swap.load.answered),
            "failed": len(swap.load.failed),
            "by_version": {str(number): count for number, count in swap.by_version()},
        }
        return swap

    def _score_base(self, name: str, prompt: Prompt) -> Subject:
        ask = server_asker(self.server, "", by_variables=False)
        return score_subject(f"base, {name}", prompt, self.sources[name].splits.test, ask)

    def _score(self, upload: Upload) -> Subject:
        version = upload.version
        source = self.sources[version.adapter_name]
        ask = server_asker(self.server, version.digest, by_variables=True)
        title = f"{version.adapter_name}@{version.number}"
        return score_subject(title, source.prompt, source.splits.test, ask)

    def _compare_with_alone(self, swap: Swap, alone: dict[int, Subject]) -> None:
        """Each answer given during the swap against what its version says without one."""
        test = self.sources[SUMMARY].splits.test
        row_of = {str(row.variables): number for number, row in enumerate(test)}
        same = 0
        for answered in swap.load.answered:
            version = answered.generation.version
            assert version is not None
            row = row_of[str(answered.request["variables"])]
            same += alone[version.number].answers[row].text == answered.generation.text
        self.measured["swap"]["same_as_alone"] = same
        self._say(
            f"{same} of the {len(swap.load.answered)} answers of the swap are word for word what "
            "their version answers without one"
        )

    def _show_scores(self, bases: dict[str, Subject], adapters: list[Subject]) -> None:
        _, better, named = adapters
        shown = [
            (row, {"base": bases[name].answers[n].text, subject.name: subject.answers[n].text})
            for name, subject in ((SUMMARY, better), (NAMES, named))
            for n, row in enumerate(self.sources[name].splits.test[:SHOWN_ROWS])
        ]
        self.console.print(answer_table(shown))
        columns = [bases[SUMMARY], *adapters[:2], bases[NAMES], named]
        self.console.print(score_columns(columns))
        self._say(f"{len(better.answers)} rows each, about people whom no training row names")
        self.measured["scores"] = {
            subject.name: {score.metric: score.value for score in subject.scores}
            for subject in columns
        }

    def _ask_in_a_known_wording(self) -> None:
        """What a soft prompt is: it finds a skill that the base has, it does not add one."""
        source, wording = self.sources[NAMES], NAMES_WORDINGS[0]
        segments = [{"text": f"{wording}\n"}, *source.prompt["segments"]]
        subject = self._score_base(NAMES, {**source.prompt, "segments": segments})
        value = subject.value("exact_match")
        self._say(
            f'Asked in the words of its pre-training, "{wording}", the base has {value:.1f} exact '
            f"matches: {NAMES} calls up a skill of the base, {SUMMARY} teaches one."
        )
        self.measured["names_in_known_wording"] = value

    def _step(self, title: str) -> None:
        self.steps += 1
        self.console.print(f"\n[bold]{self.steps}. {title}[/]", highlight=False)

    def _say(self, text: str) -> None:
        self.console.print(f"   {text}", markup=False, highlight=False, soft_wrap=True)

    def _say_published(self, upload: Upload) -> None:
        version = upload.version
        kind = f"LoRA of rank {version.max_rank}"
        if version.virtual_tokens:
            kind = f"soft prompt of {version.virtual_tokens} tokens"
        self._say(
            f"{version.adapter_name}@{version.number}: {kind}, "
            f"{version.size_bytes / 1024:.0f} KiB, {version.digest[:19]}"
        )
