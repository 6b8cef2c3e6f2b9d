"""Whether the engine recommends, live, what a model recommends offline: a whole log through a real Kafka and Redis.

    python -m tests.benchmarks.live_lists BUNDLE --data ../shared/data/ml-1m.sasrec.txt.gz [--users 1000]

The users' events are produced as an app would, ingested, and applied by `driftline evolve` with the bundle. What is in
Redis when everything is applied is compared with the lists that `driftline evaluate` ranks for the same windows: item by
item. Two items whose scores differ by less than float32 can tell may change places, and are counted apart. Ends with 1
where any list is different.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np

from deploy.local.servers import KafkaServer, RedisServer
from models.data.events import UserSequence, user_sequences
from models.data.readers import read_events
from models.errors import DriftlineError
from models.evaluation.full_ranking import Queries, best_items
from models.evaluation.onnx_runtime import read_recommender
from models.evaluation.recommender import Recommender
from streams.contracts.recommendation import decode_recommendation
from tests.integration.pipeline import Names, Pipeline, Raw

_K: Final = 10
# A log without times counts its events from 0; an app's clock is later than that. Only differences reach a model.
_BASE_MS: Final = 1_700_000_000_000
_TIMEOUT_S: Final = 900.0
_TIE: Final = 1e-5


def live_lists(bundle: Path, sequences: list[UserSequence]) -> tuple[dict[str, list[str]], float]:
    """What is in Redis for each user once all events are applied, and the seconds that it took."""
    names = Names.under("live-lists-")
    with (
        tempfile.TemporaryDirectory() as place,
        KafkaServer(Path(place) / "kafka") as kafka,
        RedisServer(Path(place) / "redis") as redis,
        Pipeline(Path(place), kafka.bootstrap_servers, redis.url, names, bundle) as pipeline,
    ):
        pipeline.create_topics()
        began = time.monotonic()
        workers = [pipeline.start("ingest"), pipeline.start("evolve")]
        # All into one topic: of two, each is read as fast as can be, and a user's events would arrive out of order.
        pipeline.produce(
            Raw(names.clicks, sequence.user_id, _event(sequence, number).encode())
            for sequence in sequences
            for number in range(len(sequence))
        )
        pipeline.wait_until_ready(*workers)
        pipeline.wait_until_applied(_TIMEOUT_S)
        seconds = time.monotonic() - began
        rows = {key.rpartition(":")[2]: row["recommendations"] for key, row in pipeline.rows().items()}
        pipeline.stop()
    return {
        user_id: [item.item_id for item in decode_recommendation(content).items] for user_id, content in rows.items()
    }, seconds


def _event(sequence: UserSequence, number: int) -> str:
    return json.dumps(
        {
            "user_id": sequence.user_id,
            "item_id": sequence.items[number],
            "type": sequence.types[number],
            "event_id": f"{number:06d}",
            "event_time": _BASE_MS + sequence.times[number],
        }
    )


def offline_lists(
    recommender: Recommender, sequences: list[UserSequence]
) -> tuple[list[list[str]], list[dict[str, float]]]:
    """The lists of an evaluation for windows as the engine keeps them, and the scores of what is next in line too."""
    windows = tuple(
        sequence.part(max(0, len(sequence) - recommender.window.max), len(sequence)) for sequence in sequences
    )
    lengths, nothing = np.array([len(window) for window in windows]), np.zeros(len(windows), np.int64)
    queries = Queries(windows, np.arange(len(windows)), nothing, lengths, nothing, lengths, ("",) * len(windows))
    ranking = best_items(recommender, queries, 2 * _K).ranking
    ids = recommender.vocabulary.ids
    scores = [
        {ids[row]: float(score) for row, score in zip(rows, scored, strict=True) if row > 0}
        for rows, scored in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
    ]
    return [list(scored)[:_K] for scored in scores], scores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="a log that the bundle's model knows the items of")
    parser.add_argument("--users", type=int, default=1_000, help="how many of its users, spread over all")
    chosen = parser.parse_args()
    recommender = read_recommender(chosen.bundle)
    if recommender.window.keep != recommender.window.max or recommender.score is not None:
        parser.error(
            "the bundle must be of a model without a scorer whose window slides: its lists are ranked in one go"
        )
    everyone = user_sequences(read_events(chosen.data).events)
    sequences = everyone[:: max(1, len(everyone) // chosen.users)][: chosen.users]
    events = sum(map(len, sequences))
    expected, scores = offline_lists(recommender, sequences)
    live, seconds = live_lists(chosen.bundle.resolve(), sequences)
    same = tied = 0
    for sequence, offline, scored in zip(sequences, expected, scores, strict=True):
        listed = live.get(sequence.user_id, [])
        if listed == offline:
            same += 1
        elif len(listed) == len(offline) and all(
            item in scored and abs(scored[item] - scored[other]) <= _TIE * max(1.0, abs(scored[other]))
            for item, other in zip(listed, offline, strict=True)
        ):
            tied += 1
        else:
            print(f"user {sequence.user_id}: live {listed}, offline {offline}")
    print(
        f"{recommender.name} {recommender.version}: {len(sequences):,} users, {events:,} events applied in {seconds:.0f} s; "
        f"{same:,} lists identical, {tied:,} but for items whose scores are equal to within {_TIE:g}, "
        f"{len(sequences) - same - tied:,} different"
    )
    return 0 if same + tied == len(sequences) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DriftlineError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
