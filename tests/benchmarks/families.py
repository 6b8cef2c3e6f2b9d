"""Every model family on one data set: trained, exported, compared.

    python -m tests.benchmarks.families ml-1m --data ../shared/data --out .local/ml-1m [--only sasrec,gru] [--threads 2]

Runs `driftline train` and `driftline export` for one family after the other, and `driftline evaluate --compare` over all
bundles there. A family whose bundle is there already is not trained again, so a run that was stopped goes on, and a
checkpoint that was trained elsewhere is only exported. At the end the table of `models/README.md` is printed, and written
to families.md.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from models.networks import NAMES


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set, and what its runs need.

    Attributes:
        log: File of the log.
        metadata: File of titles and topics.
        item_map: File that maps the log's items to those of the metadata.
        window: Longest window.
        options: More options of `driftline train` for every family.
        family_options: The same for one family.
    """

    log: str
    metadata: str
    item_map: str | None
    window: int
    options: tuple[str, ...] = ()
    family_options: dict[str, tuple[str, ...]] = field(default_factory=dict)


DATA_SETS = {
    # On a CPU a validation takes a quarter of the time of an epoch.
    "ml-1m": DataSet(
        "ml-1m.sasrec.txt.gz", "ml-1m.movies.dat.gz", "ml-1m.sasrec-items.txt.gz", 200, ("--validate-every", "2")
    ),
    # A tenth of the events, so an epoch is a tenth of the steps.
    "ml-100k": DataSet(
        *("ml-100k.inter.gz", "ml-100k.item.gz", None, 200),
        family_options={
            **dict.fromkeys(("vae", "text", "text+mf", "text+id"), ("--epochs", "30")),
            "ncf": ("--epochs", "24"),
            "bert4rec": ("--epochs", "60", "--batch-tokens", "1600"),
        },
    ),
}


def run_family(family: str, data: DataSet, directory: Path, out: Path, threads: int, device: str) -> None:
    """Train and export one family; what the commands print goes to log.txt."""
    out.mkdir(parents=True, exist_ok=True)
    source = ["--data", str(directory / data.log), "--metadata", str(directory / data.metadata)]
    if data.item_map:
        source += ["--item-map", str(directory / data.item_map)]
    train = [
        *("train", "--model", family, *source, "--window-max", str(data.window), "--threads", str(threads)),
        *("--device", device, "--out", str(out / "checkpoint"), "--resume"),
        *data.options,
        *data.family_options.get(family, ()),
    ]
    commands = [["export", str(out / "checkpoint"), "--out", str(out / "bundle")]]
    if not (out / "checkpoint" / "checkpoint.json").exists():
        commands.insert(0, train)
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        for command in commands:
            log.write(f"$ driftline {' '.join(command)}\n")
            log.flush()
            done = subprocess.run(
                [sys.executable, "-m", "streams.cli", *command], stdout=log, stderr=log, text=True, check=False
            )
            if done.returncode:
                print(f"{family}: `driftline {command[0]}` failed with {done.returncode}; see {out / 'log.txt'}")
                return
    print(f"{family}: done", flush=True)


def table_of(out: Path) -> str:
    """One line a family in Markdown, best NDCG@10 first: what was measured, and what it took."""
    lines = [
        "| model | HR@10 | NDCG@10 | parameters | minutes | users/s, L = 50 | users/s, L = 200 |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for model in json.loads((out / "evaluation.json").read_text())["models"]:
        checkpoint = Path(model["source"]).with_name("checkpoint") / "checkpoint.json"
        metrics = json.loads(checkpoint.read_text())["metrics"]
        figures = [
            f"{figure['mean']:.4f} ({figure['low']:.3f}–{figure['high']:.3f})"
            for figure in (model["figures"]["hr@10"], model["figures"]["ndcg@10"])
        ]
        speeds = [model["users_per_second"][length] for length in ("50", "200")]
        cells = [
            *(f"`{model['name']}`", *figures, f"{metrics['parameters']:,.0f}"),
            f"{metrics['training_seconds'] / 60:.1f}",
            *("" if speed is None else f"{speed:,.0f}" for speed in speeds),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", choices=sorted(DATA_SETS))
    parser.add_argument("--data", type=Path, required=True, help="the directory of the data set's files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(NAMES), help="families, with commas between")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    chosen = parser.parse_args()
    data = DATA_SETS[chosen.data_set]
    families = chosen.only.split(",")
    unknown = sorted(set(families) - set(NAMES))
    if unknown:
        parser.error(f"no family {', '.join(unknown)}; there are {', '.join(NAMES)}")
    for family in families:
        if not (chosen.out / family / "bundle" / "manifest.json").exists():
            run_family(family, data, chosen.data, chosen.out / family, chosen.threads, chosen.device)
    bundles = [str(path.parent) for path in sorted(chosen.out.glob("*/bundle/manifest.json"))]
    if not bundles:
        return 1
    compare = ["evaluate", "--compare", *bundles, "--data", str(chosen.data / data.log), "--out", str(chosen.out)]
    if code := subprocess.run([sys.executable, "-m", "streams.cli", *compare], check=False).returncode:
        return code
    table = table_of(chosen.out)
    (chosen.out / "families.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
