"""`crossdock activations`: count how often FFN neurons are active, for PowerInfer's split."""

from __future__ import annotations

from pathlib import Path

import click

from crossdock.cli import show
from crossdock.cli.options import PATH, Parsed, json_option, progress_option
from crossdock.cli.sections import Sectioned, examples
from crossdock.errors import UsageError
from crossdock.options import positive
from crossdock_powerinfer.collect import collect


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock activations ReluLLaMA-7B/ --text wiki.txt -o activation/",
        "crossdock activations TurboSparse/ --drelu --text wiki.txt -o activation/",
    ),
)
@click.argument("model", type=PATH)
@click.option("--text", required=True, type=PATH, metavar="FILE", help="Text to count over, UTF-8.")
@click.option("-o", "--output", required=True, type=PATH, metavar="DIR", help="Folder to write.")
@click.option(
    "--window", type=Parsed(positive), default="512", show_default=True, metavar="N", help="Tokens read at once."
)
@click.option("--drelu", is_flag=True, help="ReLU on gate and up projections (always for Bamboo).")
@json_option
@progress_option
def activations(
    model: Path, text: Path, output: Path, window: int, drelu: bool, as_json: bool, no_progress: bool
) -> int:
    """Count how often each FFN neuron of MODEL is active over a text.

    MODEL is a Hugging Face folder of OPT, Falcon, ReluLLaMA, ProSparse, Bamboo or a ReLU Mistral. Runs on the CPU
    with one layer in memory; a run that was stopped goes on. Needs the extra crossdock[activations].
    """
    try:
        words = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("the text is not UTF-8", where=f"{text} at byte {error.start:,}") from None

    def progress(done: int, total: int, name: str) -> None:
        if not no_progress:
            show.note(f"activations: {done} of {total} layers")

    found = collect(model, words, output, window=window, drelu=drelu, progress=progress)
    if as_json:
        show.print_json(found)
    else:
        show.say(f"{found.folder}: {found.layers} layers of {found.width:,} neurons over {found.tokens:,} tokens")
    return 0
