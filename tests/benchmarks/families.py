"""Every model family on one data set: trained, exported, compared.

    python -m tests.benchmarks.families ml-1m --data ../shared/data --out .local/ml-1m [--only sasrec,gru] [--threads 2]

Runs `driftline train` and `driftline export` for one family after the other, and `driftline evaluate --compare` over all
bundles there. A family whose bundle is there already is not trained again, so a run that was stopped goes on.
"""

import argparse
import json
import subprocess
import sys
import time
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
        options: More options of `driftline train` by family.
    """

    log: str
    metadata: str
    item_map: str | None
    window: int
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)


DATA_SETS = {
    "ml-1m": DataSet("ml-1m.sasrec.txt.gz", "ml-1m.movies.dat.gz", "ml-1m.sasrec-items.txt.gz", 200),
    "ml-100k": DataSet("ml-100k.inter.gz", "ml-100k.item.gz", None, 200),
}


def run_family(family: str, data: DataSet, directory: Path, out: Path, threads: int) -> None:
    """Train and export one family; what the commands print goes to log.txt."""
    out.mkdir(parents=True, exist_ok=True)
    source = ["--data", str(directory / data.log), "--metadata", str(directory / data.metadata)]
    if data.item_map:
        source += ["--item-map", str(directory / data.item_map)]
    train = [
        *("train", "--model", family, *source, "--window-max", str(data.window), "--threads", str(threads)),
        *("--out", str(out / "checkpoint"), "--resume", *data.options.get(family, ())),
    ]
    began = time.monotonic()
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        for command in (train, ["export", str(out / "checkpoint"), "--out", str(out / "bundle")]):
            log.write(f"$ driftline {' '.join(command)}\n")
            log.flush()
            done = subprocess.run(
                [sys.executable, "-m", "streams.cli", *command], stdout=log, stderr=log, text=True, check=False
            )
            if done.returncode:
                print(f"{family}: `driftline {command[0]}` failed with {done.returncode}; see {out / 'log.txt'}")
                return
    metrics = json.loads((out / "checkpoint" / "checkpoint.json").read_text())["metrics"]
    minutes = (time.monotonic() - began) / 60
    print(f"{family:18} HR@10 {metrics['hr@10']:.4f}  NDCG@10 {metrics['ndcg@10']:.4f}  {minutes:.1f} min", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", choices=sorted(DATA_SETS))
    parser.add_argument("--data", type=Path, required=True, help="the directory of the data set's files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(NAMES), help="families, with commas between")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    data = DATA_SETS[chosen.data_set]
    families = chosen.only.split(",")
    unknown = sorted(set(families) - set(NAMES))
    if unknown:
        parser.error(f"no family {', '.join(unknown)}; there are {', '.join(NAMES)}")
    for family in families:
        if not (chosen.out / family / "bundle" / "manifest.json").exists():
            run_family(family, data, chosen.data, chosen.out / family, chosen.threads)
    bundles = [str(path.parent) for path in sorted(chosen.out.glob("*/bundle/manifest.json"))]
    if not bundles:
        return 1
    compare = ["evaluate", "--compare", *bundles, "--data", str(chosen.data / data.log), "--out", str(chosen.out)]
    return subprocess.run([sys.executable, "-m", "streams.cli", *compare], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
