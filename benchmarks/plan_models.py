"""What `projclust plan --probe` picks for many models: one row each, one after the other or on a cluster of Ray.

    python benchmarks/plan_models.py MODEL ... [--bits 1,0.75,0.5] [--engine ray[:ADDRESS]] [--json FILE]

A model is a folder or the name of one on the Hub. Prints the size of its table and of the one that is picked, and how
the outputs of the model change with it on random sequences: their cosine or, where it predicts tokens, the divergence.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cluster import add_engine_option, each

from projclust.checkpoints.source import local_folder
from projclust.glue.ray_engine import Files, model_files, write_files
from projclust.jobs.options import PlanOptions
from projclust.jobs.plan import plan_checkpoint
from projclust.results.reports import PlanReport


@dataclass(frozen=True)
class Model:
    """A model by its name, with its files where it is a folder of this machine."""

    name: str
    files: Files | None

    @classmethod
    def of(cls, name: str, travels: bool) -> "Model":
        """The model, with its files if it `travels`."""
        folder = local_folder(name) if travels else None
        return cls(name, None if folder is None else model_files(folder))


def planned(bits: tuple[float, ...], model: Model) -> PlanReport:
    """The plan of one model."""
    with tempfile.TemporaryDirectory() as place:
        name = model.name
        if model.files is not None:
            write_files(model.files, Path(place))
            name = place
        return plan_checkpoint(PlanOptions(name, bits=bits, probe=True))


def row(name: str, report: PlanReport) -> str:
    """A row of the table."""
    dense = f"{report.bytes_dense / 1e6:.2f}"
    if report.pick is None:
        return f"| {name} | {dense} | | none keeps enough | |"
    found = next(one for one in report.rows if one.bytes == report.pick.bytes)
    outputs = f"cosine {found.cosine:.4f}" if found.kl is None else f"KL {found.kl:.4f}"
    return f"| {name} | {dense} | {report.pick.bytes / 1e6:.2f} | {report.pick.bits_per_weight:.2f} | {outputs} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="Folders, or names on the Hub.")
    parser.add_argument("--bits", default=",".join(map(str, PlanOptions("").bits)), help="Stored bits for each weight.")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="Write the plans.")
    add_engine_option(parser)
    arguments = parser.parse_args()
    bits = tuple(float(own) for own in arguments.bits.split(","))
    models = [Model.of(name, arguments.engine is not None) for name in arguments.models]
    print("| model | MB of the table | MB picked | bits | outputs |")
    print("| --- | ---: | ---: | ---: | --- |")
    plans = []
    for model, report in zip(models, each(arguments.engine, planned, bits, models), strict=True):
        print(row(model.name, report), flush=True)
        plans.append({**report.as_json(), "model": model.name})
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(plans, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
