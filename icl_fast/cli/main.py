"""`icl-fast`: the group of commands, and the program."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, NamedTuple

import click

from icl_fast import __version__
from icl_fast.cli.commands import Commands, one_line
from icl_fast.cli.environment import flush, own_process, require_folder, settle


class _Command(NamedTuple):
    target: str  # "module:attribute"
    help: str  # here, not read off the command, so that `--help` imports none of them


COMMANDS = {
    "train": _Command("icl_fast.cli.train:train", "Train a model and snapshot it along the way."),
    "plan": _Command("icl_fast.cli.plan:plan", "What a training will take: operations, GPU-hours, disk, memory."),
    "ablate": _Command("icl_fast.cli.ablate:ablate", "Knock out every head of a run's snapshots."),
    "evaluate": _Command(
        "icl_fast.cli.evaluate:evaluate", "Score the heads of a run's snapshots; on exemplars, its strategies."
    ),
    "idealise": _Command(
        "icl_fast.cli.idealise:idealise", "How much of what each head does an idealised attention pattern keeps."
    ),
    "templates": _Command(
        "icl_fast.cli.templates:templates", "Lines labelled by their kinds of words, in many random tables."
    ),
    "wiring": _Command(
        "icl_fast.cli.wiring:wiring", "Which first-layer heads the last layer's heads read, and what for."
    ),
    "pca": _Command("icl_fast.cli.pca:pca", "Trajectories of runs in the plane in which their losses differ most."),
    "report": _Command("icl_fast.cli.report:report", "Measure runs and write one HTML page with all figures."),
    "results": _Command("icl_fast.cli.results:results", "What a store of results holds; write it as CSV or NetCDF."),
    "export": _Command(
        "icl_fast.cli.export:export", "Write a model as transformers or TransformerLens read it, or as safetensors."
    ),
    "toy": _Command(
        "icl_fast.cli.toy:toy", "The tensor-product models: phase changes, strategies that race and share."
    ),
    "demo": _Command("icl_fast.cli.demo:demo", "The whole story in minutes: train three models, ablate, plot."),
    "reproduce": _Command(
        "icl_fast.cli.reproduce:reproduce", "Test what the two works say, claim by claim, by rules fixed beforehand."
    ),
    "verify": _Command("icl_fast.cli.verify:verify", "Check that runs, results and reports are as they were written."),
    "corpus": _Command("icl_fast.cli.corpus:corpus", "What text a corpus holds, and how many tokens."),
    "data": _Command("icl_fast.cli.data:data", "Exemplars: characters from the fonts of this machine, or of strokes."),
    "bench": _Command("icl_fast.cli.bench:bench", "Measure the fused ops against plain torch, beside their targets."),
    "info": _Command("icl_fast.cli.info:info", "What is installed, what was built, what this machine can run."),
}


class LazyGroup(Commands):
    """Imports a command when it is called."""

    def main(self, *args: Any, **options: Any) -> Any:
        settle()
        return super().main(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with one_line():
            require_folder()
        return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and os.path.exists(args[0]):
            raise click.UsageError(
                f"{args[0]} is a path, and what to do with it comes first, as in `icl-fast evaluate RUN`"
            )
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])


_COMPLETION = """Every command takes --json, --quiet and --help. A shell completes commands, options and paths after
eval "$(_ICL_FAST_COMPLETE=bash_source icl-fast)", for ~/.bashrc; zsh takes zsh_source, and fish
_ICL_FAST_COMPLETE=fish_source icl-fast | source."""


@click.group(cls=LazyGroup, epilog=_COMPLETION, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="icl-fast")
def cli() -> None:
    """How in-context learning forms in small transformers, measured fast."""


def main() -> None:
    """Run the command line and exit: 0 done, 2 the user's mistake, 130 interrupted."""
    own_process()
    try:
        cli(prog_name="icl-fast")
    finally:
        flush()
