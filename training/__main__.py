"""``python -m training {run,vocab,train,evaluate,publish} RECIPE --run DIR``: from data to a published checkpoint."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from sparse_encoder.artifact import ArtifactError, read_artifact
from sparse_encoder.store import Store, StoreError
from training.config import Config, ConfigError, RunError, load_config
from training.readers import DataError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    help_of = {
        "run": "train, evaluate and publish, one after the other",
        "vocab": "build the vocabulary only",
        "train": "run every stage that is not done yet: vocabulary, teacher vectors, alignment, sparse training",
        "evaluate": "measure the trained checkpoint; writes evaluation/report.json, .md and .png in the run directory",
        "publish": "put the measured checkpoint into a store that services follow, if it passes the recipe's gates",
    }
    for name, text in help_of.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("recipe", type=Path, help="TOML file, such as training/recipes/best.toml")
        command.add_argument("--run", type=Path, required=True, help="directory of this run; a stopped one goes on")
        command.add_argument("--data-root", type=Path, help="replaces data.root of the recipe")
        if name in ("run", "evaluate"):
            command.add_argument("--queries", type=int, default=1000, help="at most so many queries a set (0 = all)")
            command.add_argument("--reference", type=Path, help="artifact to compare the heaviest words with")
            command.add_argument("--dense", action="store_true", help="also measure the dense teacher, model.e5_path")
        if name in ("run", "publish"):
            command.add_argument("--store", required=True, help="directory or fsspec URL, such as s3://bucket/models")
            command.add_argument("--alias", action="append", default=[], help="name that shall stand for the version")
            command.add_argument("--force", action="store_true", help="publish although a gate fails; needs --reason")
            command.add_argument("--reason", default="", help="why it is forced; kept in the store")
            command.add_argument(
                "--new-token-ids",
                action="store_true",
                help="number the tokens anew: indexes with sparse_vector fields must then be encoded anew",
            )
            command.add_argument("--pack", type=Path, help="also write the packed (int8) form to this new directory")
    return parser


def _train(options: argparse.Namespace, config: Config) -> bool:
    """Whether this process goes on: of several that ``torchrun`` started only the first does."""
    from training import pipeline
    from training.distributed import processes
    from training.run import record_origin

    record_origin(options.run, options.recipe)
    print(pipeline.train(config, options.run))  # noqa: T201
    first: bool = processes(config.train).is_main_process
    return first


def _evaluate(options: argparse.Namespace, config: Config) -> None:
    from training.report import table
    from training.run import Run
    from training.stages.evaluate import TextEncoder, evaluate_stage

    report = evaluate_stage(
        Run(config, options.run),
        query_limit=options.queries,
        reference=TextEncoder.from_artifact(options.reference) if options.reference else None,
        with_dense=options.dense,
    )
    print(table(report))  # noqa: T201


def _check_places(options: argparse.Namespace) -> None:
    """What is only needed after hours of training: raises now if it will not do."""
    from training.stages.publish import check_new

    check_new(options.pack)
    Store(options.store).aliases()
    if options.reference:
        read_artifact(options.reference)


def _publish(options: argparse.Namespace, config: Config) -> None:
    from training.run import Run
    from training.stages.publish import Publication, publish_stage

    publication = Publication(Store(options.store), tuple(options.alias), options.reason, options.new_token_ids)
    print(publish_stage(Run(config, options.run), publication, options.pack))  # noqa: T201


def _run(options: argparse.Namespace, config: Config) -> None:
    # torch and transformers take seconds to import: not for --help or for a wrong recipe
    if options.command == "vocab":
        from training.pipeline import begin
        from training.stages.vocabulary import vocabulary_stage

        vocabulary_stage(begin(config, options.run))
    elif options.command == "train":
        _train(options, config)
    elif options.command == "evaluate":
        _evaluate(options, config)
    elif options.command == "publish":
        _publish(options, config)
    else:
        _check_places(options)
        if _train(options, config):
            _evaluate(options, config)
            _publish(options, config)


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command in ("run", "publish") and options.force != bool(options.reason.strip()):
        parser.error("--force and --reason TEXT go together")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        _run(options, load_config(options.recipe, data_root=options.data_root))
    except (ConfigError, DataError, ArtifactError, RunError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
