"""The `polygraft` program: commands on a server, output for people and programs, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter_support.directories import lora_config, lora_tensors, write_adapter
from server_support.service import DSUM_RECIPE, Service, service_in_thread
from typer.testing import CliRunner, Result

from polygraft.adapters.errors import (
    AdapterInvalid,
    InvalidRequest,
    NotFound,
    PolygraftError,
    Unavailable,
)
from polygraft.cli import app
from polygraft.commands import COMMANDS
from polygraft.commands.failure import CommandFailed, ExitCode, exit_code_of
from polygraft.server.engine.messages import Sampling


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service on a loop in another thread; the commands find it by POLYGRAFT_SERVER."""
    with service_in_thread(tmp_path / "store") as running:
        monkeypatch.setenv("POLYGRAFT_SERVER", running.address)
        yield running


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def prompt_of(service: Service) -> str:
    return str(service.engine.tokenizer.decode(list(service.engine.requests[-1].prompt_token_ids)))


def test_the_version_is_printed() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, "polygraft 0.1.0\n")


def test_help_lists_every_command_without_importing_any() -> None:
    code = """if True:
        import atexit, sys
        from polygraft.cli import main
        loaded = lambda: [name for name in sys.modules if name.startswith("polygraft.commands.")]
        atexit.register(lambda: print(*loaded()))
        sys.argv[1:] = ["--help"]
        main()"""
    command = [sys.executable, "-P", "-c", code]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in COMMANDS:
        assert f" {name} " in shown
    assert shown.splitlines()[-1].split() == ["polygraft.commands.failure"]


@pytest.mark.parametrize("command", ["serve", "generate", "adapters", "adapters check"])
def test_help_of_a_command_needs_neither_torch_nor_grpc(command: str) -> None:
    code = f"""if True:
        import atexit, sys
        heavy = ("torch", "transformers", "grpc", "numpy")
        atexit.register(lambda: print([n for n in heavy if n in sys.modules], file=sys.stderr))
        sys.argv[1:] = [*"{command}".split(), "--help"]
        from polygraft.cli import main
        main()"""
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True
    )
    assert "Usage" in result.stdout
    assert result.stderr.strip() == "[]"


def test_an_unknown_command_names_the_nearest() -> None:
    result = run("genrate")
    assert result.exit_code == ExitCode.USAGE
    assert "generate" in result.output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("x."), 2),
        (NotFound("x."), 2),
        (AdapterInvalid("x."), 5),
        (Unavailable("x."), 6),
        (CommandFailed("x.", ExitCode.DATA), 3),
        (CommandFailed("x.", ExitCode.TRAINING), 4),
        (PolygraftError("x."), 1),
        (ZeroDivisionError("x"), 1),
        (PermissionError(13, "Permission denied", "/etc/x"), 2),
        (OSError(28, "No space left on device"), 2),
        (ConnectionResetError(104, "Connection reset by peer"), 1),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(error: Exception, code: int) -> None:
    assert exit_code_of(error) == code


def test_no_server_is_one_sentence_and_exit_code_6() -> None:
    result = run("adapters", "list", "--server", "127.0.0.1:1")
    assert result.exit_code == ExitCode.UNREACHABLE
    assert result.stderr.startswith("error: no server answers at 127.0.0.1:1")
    assert "Traceback" not in result.output


def test_generate_streams_the_answer_and_tells_who_answered(service: Service) -> None:
    result = run("generate", "Hi", "--raw")
    assert result.exit_code == 0
    assert result.stdout == service.engine.reply + "\n"
    assert result.stderr.startswith("[base, 2 + 20 tokens, stop, seed ")
    assert prompt_of(service) == "Hi"


def test_generate_wraps_the_text_for_a_chat_base(service: Service) -> None:
    assert run("generate", "Hi").exit_code == 0
    assert prompt_of(service) == "<s><u>Hi<a>"
    assert run("generate", "Hi", "--system", "Be brief.").exit_code == 0
    assert prompt_of(service) == "<s><u>Be brief.<u>Hi<a>"


def test_generate_fills_the_one_variable_of_a_recipe(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a", recipe=DSUM_RECIPE)
    result = run("generate", "--adapter", "dsum", "A: hi")
    assert result.exit_code == 0
    assert prompt_of(service) == "Summarize: A: hi\nSummary:"
    assert "dsum@1 sha256:" in result.stderr
    assert run("generate", "--adapter", "dsum", "--var", "dialogue=B=c").exit_code == 0
    assert prompt_of(service) == "Summarize: B=c\nSummary:"
    assert run("generate", "--adapter", "dsum", "--raw", "A: hi").exit_code == 0
    assert prompt_of(service) == "A: hi"


def test_generate_asks_for_variables_when_the_text_could_fill_several(
    service: Service, tmp_path: Path
) -> None:
    recipe = {"segments": [{"var": "a"}, {"text": " or "}, {"var": "b"}]}
    service.publish("two", tmp_path / "a", recipe=recipe)
    result = run("generate", "--adapter", "two", "x")
    assert result.exit_code == ExitCode.USAGE
    assert "a, b" in result.stderr
    assert run("generate", "--adapter", "two", "--var", "a=1", "x").exit_code == 0
    assert prompt_of(service) == "1 or x"


def test_generate_composes_adapters_by_weight(service: Service, tmp_path: Path) -> None:
    service.publish("style", tmp_path / "a", seed=1)
    service.publish("dsum", tmp_path / "b", seed=2, recipe=DSUM_RECIPE)
    result = run("generate", "--adapter", "style=0.5", "--adapter", "dsum", "A: hi")
    assert result.exit_code == 0, result.output
    assert prompt_of(service) == "Summarize: A: hi\nSummary:"
    weights = {share.weight for share in service.engine.requests[-1].adapters}
    assert weights == {0.5, 1.0}
    assert "style@1 sha256:" in result.stderr
    assert " x 0.5 + dsum@1" in result.stderr


def test_generate_sends_every_option(service: Service) -> None:
    options = {
        "--temperature": "0.5",
        "--top-p": "0.25",
        "--top-k": "3",
        "--min-p": "0.125",
        "--repetition-penalty": "1.5",
        "--presence-penalty": "0.5",
        "--frequency-penalty": "-0.5",
        "--logit-bias": "7=2.5",
        "--seed": "3",
        "--max-output-tokens": "9",
        "--min-output-tokens": "2",
        "--stop-token-id": "5",
        "--time-limit": "30",
        "--top-logprobs": "2",
        "--prompt-logprobs": "1",
        "--priority": "low",
        "--timeout": "8",
        "--token-ids": "72,105 33",
    }
    words = [word for pair in options.items() for word in pair]
    result = run("generate", *words, "--ignore-eos", "--no-speculation", "--echo", "--json")
    assert result.exit_code == 0, result.output
    request = service.engine.requests[-1]
    assert request.prompt_token_ids == (72, 105, 33)
    assert request.sampling == Sampling(
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        seed=3,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias=((7, 2.5),),
    )
    assert request.stopping.stop_token_ids == {5}
    assert (request.stopping.min_output_tokens, request.stopping.max_output_tokens) == (2, 9)
    assert (request.top_logprobs, request.prompt_logprobs) == (2, 1)
    assert (request.priority, request.speculation) == (-1, False)
    answer = json.loads(result.stdout)
    assert answer["text"].endswith("Hello, w\ufffd")
    assert len(answer["choices"][0]["logprobs"]) == len(answer["choices"][0]["token_ids"]) == 9
    assert len(answer["prompt_logprobs"]) == 2


def test_generate_shows_several_answers_one_after_the_other(service: Service) -> None:
    result = run("generate", "Hi", "--raw", "-n", "2")
    assert result.stdout == f"[0] {service.engine.reply}\n[1] {service.engine.reply}\n"
    assert result.stderr.startswith("[base, 2 + 40 tokens, stop, seed ")


def test_likelihood_ranks_continuations(service: Service) -> None:
    result = run("likelihood", "a", "zz", "b", "[/x]")
    assert result.exit_code == 0, result.output
    lines = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert lines == ["'b'", "'zz'", "'[/x]'"]
    assert len(service.engine.requests) == 3
    scores = json.loads(run("likelihood", "a", "zz", "b", "--json").stdout)
    assert [score["continuation"] for score in scores] == ["zz", "b"]
    assert scores[1]["logprob"] == -float(service.engine.tokenizer.encode("b")[0])


def test_generate_reads_standard_input(service: Service) -> None:
    assert run("generate", "-", "--raw", stdin="from a pipe").exit_code == 0
    assert prompt_of(service) == "from a pipe"


def test_generate_json_is_one_object(service: Service) -> None:
    result = run("generate", "Hi", "--raw", "--json", "--seed", "7", "--max-output-tokens", "5")
    answer = json.loads(result.stdout)
    assert (answer["text"], answer["finish_reason"], answer["seed"]) == ("Hello", "length", 7)
    assert answer["usage"]["output_tokens"] == 5


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("Hi", "--temperature", "-1"), ExitCode.USAGE),
        (("Hi", "--adapter", "nope"), ExitCode.USAGE),
        (("Hi", "--var", "broken"), ExitCode.USAGE),
        ((), ExitCode.USAGE),
        (("--raw",), ExitCode.USAGE),
        (("Hi", "--raw", "--system", "Be brief."), ExitCode.USAGE),
        (("Hi", "--token-ids", "1,x"), ExitCode.USAGE),
        (("Hi", "--logit-bias", "5"), ExitCode.USAGE),
        (("Hi", "--logit-bias", "5=nan"), ExitCode.USAGE),
        (("Hi", "--adapter", "a=1", "--adapter", "a=2"), ExitCode.USAGE),
        (("Hi", "--adapter", "a=much"), ExitCode.USAGE),
        (("Hi", "--raw", "--top-logprobs", "1"), ExitCode.USAGE),
        (("Hi", "--raw", "--regex", "a", "--choice", "b"), ExitCode.USAGE),
        (("Hi", "--raw", "--priority", "urgent"), ExitCode.USAGE),
        (("Hi", "--raw", "--json-schema", "/nope.json"), ExitCode.USAGE),
    ],
)
def test_generate_refuses_in_one_sentence(
    service: Service, arguments: tuple[str, ...], code: int
) -> None:
    result = run("generate", *arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


def test_push_publishes_and_says_that_the_base_is_not_verified(
    service: Service, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "my-lora")
    result = run("adapters", "push", str(folder))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("my-lora@1  sha256:")
    assert "UNVERIFIED" in result.stdout
    assert "live -> 1" in result.stdout
    again = json.loads(run("adapters", "push", str(folder), "my-lora", "--json").stdout)
    assert again["version"]["number"] == 1
    refused = run("adapters", "push", str(folder), "--require-verified")
    assert refused.exit_code == ExitCode.REFUSED


def test_push_promotes_when_told_to(service: Service, tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = write_adapter(tmp_path / str(seed), None, lora_tensors(seed=seed))
        assert run("adapters", "push", str(folder), "x", "--promote").exit_code == 0
    assert service.server.registry.resolve("x").number == 2


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: folder / "nothing", ExitCode.USAGE),
        (lambda folder: folder, ExitCode.REFUSED),
        (lambda folder: write_adapter(folder, lora_config(use_dora=True)), ExitCode.REFUSED),
    ],
)
def test_push_refuses_what_is_no_adapter(
    service: Service, tmp_path: Path, make: object, code: int
) -> None:
    result = run("adapters", "push", str(make(tmp_path)), "x")  # type: ignore[operator]
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")


def test_list_shows_a_table_or_json(service: Service, tmp_path: Path) -> None:
    assert run("adapters", "list").stdout == ""
    assert json.loads(run("adapters", "list", "--json").stdout) == []
    service.publish("dsum", tmp_path / "a", recipe=DSUM_RECIPE)
    run("adapters", "push", str(write_adapter(tmp_path / "b")), "bare")
    shown = run("adapters", "list").stdout
    assert "dsum" in shown
    assert "LoRA r=2" in shown
    assert "verified" in shown
    assert "UNVERIFIED  UNPROVEN" in shown  # 80 columns: other columns wrap before these are cut
    listed = json.loads(run("adapters", "list", "--json").stdout)
    assert [adapter["name"] for adapter in listed] == ["bare", "dsum"]
    assert listed[1]["version"]["verified"]


def test_show_tells_aliases_versions_and_variables(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a", recipe=DSUM_RECIPE)
    shown = run("adapters", "show", "dsum").stdout
    assert "live -> 1" in shown
    assert "prompt variables: dialogue" in shown
    adapter, version, manifest = json.loads(run("adapters", "show", "dsum", "--json").stdout)
    assert adapter["name"] == "dsum"
    assert version["number"] == 1
    assert manifest["kind"] == "lora"


def test_promote_moves_an_alias(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a", seed=1)
    service.publish("dsum", tmp_path / "b", seed=2)
    result = run("adapters", "promote", "dsum@2", "--reason", "better")
    assert result.stdout == "dsum@live -> 2  (generation 2)\n"
    refused = run("adapters", "promote", "dsum@1", "--expected-generation", "1")
    assert refused.exit_code == ExitCode.REFUSED


def test_a_canary_is_promoted_rolled_back_and_told(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a", seed=1)
    service.publish("dsum", tmp_path / "b", seed=2)
    shared = run("adapters", "promote", "dsum@2", "--weight", "5%", "--reason", "try")
    assert shared.stdout == "dsum@live -> 1 (95%), 2 (5%)  (generation 2)\n"
    assert "live=1+2" in " ".join(run("adapters", "list").stdout.split())
    grown = run("adapters", "promote", "dsum@2", "--weight", "0.2", "--expect", "2")
    assert grown.stdout == "dsum@live -> 1 (80%), 2 (20%)  (generation 3)\n"
    back = run("adapters", "rollback", "dsum", "--reason", "worse")
    assert back.stdout == "dsum@live -> 1  (generation 4)\n"
    moves = json.loads(run("adapters", "history", "dsum", "--json").stdout)
    assert [(m["generation"], m["reason"]) for m in moves] == [
        (4, "worse"),
        (3, ""),
        (2, "try"),
        (1, "first version"),
    ]
    shown = run("adapters", "history", "dsum").stdout
    assert [m["restored"] for m in moves] == [1, 0, 0, 0]
    assert "127.0.0.1" in shown
    for weight in ("0", "5", "x%"):
        assert run("adapters", "promote", "dsum@2", "--weight", weight).exit_code == ExitCode.USAGE
    lonely = run("adapters", "promote", "dsum@2", "--alias", "canary", "--weight", "5%")
    assert "points to nothing yet" in lonely.stderr
    assert run("adapters", "rollback", "dsum@canary").exit_code == ExitCode.USAGE


def test_delete_asks_and_then_deletes(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a", seed=1)
    service.publish("dsum", tmp_path / "b", seed=2)
    assert run("adapters", "delete", "dsum@2", stdin="n\n").exit_code == 1
    assert len(service.server.registry.versions("dsum")) == 2
    assert run("adapters", "delete", "dsum@2", "--yes").exit_code == 0
    assert len(service.server.registry.versions("dsum")) == 1
    assert run("adapters", "delete", "dsum@1", "--yes").exit_code == ExitCode.REFUSED
    assert run("adapters", "delete", "dsum@live", "--yes").exit_code == ExitCode.USAGE
    assert run("adapters", "delete", "dsum", stdin="y\n").exit_code == 0
    assert service.server.registry.names() == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--set", "prot=1"), "port"),
        (("--set", "port"), "KEY=VALUE"),
        (("--dtype", "int3"), "engine.dtype"),
        (("--config", "/nonexistent.yaml"), "cannot be read"),
        (("--port", "99999"), "port"),
    ],
)
def test_serve_refuses_wrong_settings_before_loading_anything(
    arguments: tuple[str, ...], text: str
) -> None:
    result = run("serve", *arguments)
    assert result.exit_code == ExitCode.USAGE
    assert text in result.stderr
    assert "loading" not in result.stderr
