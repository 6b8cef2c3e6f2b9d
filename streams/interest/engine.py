"""From a user's row and new events to the row and the recommendation that follow: pure, for many users at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Protocol

import numpy as np

from models.bundle import Bundle
from models.ranking import Ranking, Score, closest_in_window, rank_candidates, rank_items, unit_vectors
from models.rerank import item_topics, rerank_calibrated, rerank_dpp, rerank_mmr
from models.spec import IntArray, Vectors, WindowRule
from models.windows import WindowInputs, window_inputs
from streams.contracts.recommendation import (
    ModelName,
    Recommendation,
    RecommendedItem,
    Trigger,
    VectorSummary,
    encode_recommendation,
    recommendation_id,
)
from streams.errors import SettingsError
from streams.interest.explore import normals_of
from streams.interest.window import (
    EMPTY_STATE,
    Advance,
    Arrival,
    UserState,
    advance_window,
    decode_state,
    encode_state,
)


class VectorEncoder(Protocol):
    """What the engine needs of an encoder; `streams.interest.encode.Encoder` is one."""

    def encode(self, inputs: WindowInputs) -> Vectors:
        """Vectors of windows, shape (batch, dim), float32."""

    def encode_posterior(self, inputs: WindowInputs) -> tuple[Vectors, Vectors]:
        """Vectors and deviations, each of shape (batch, dim), float32; asked of variational models only."""

    def verify(self) -> None:
        """Replay the golden sample; raises `EncoderFailed`."""


class CandidateScorer(Protocol):
    """What the engine needs of a scorer; `streams.interest.encode.Scorer` is one."""

    def score(self, vectors: Vectors, candidates: IntArray) -> Vectors:
        """Scores of item rows, shape (users, n), float32, by user vectors; row 0 is padding."""

    def verify(self) -> None:
        """Replay the golden sample; raises `EncoderFailed`."""


class NotFiniteError(ArithmeticError):
    """The model gave numbers that nothing can be ranked by."""


@dataclass(frozen=True, slots=True)
class UserEvents:
    """What the engine takes in for one user.

    Attributes:
        state: The row's ``state`` bytes; None for a new user.
        vector: The row's ``vector`` bytes, for the drift; None where there is none.
        arrivals: New events in the order of the log.
    """

    user_id: str
    state: bytes | None
    vector: bytes | None
    arrivals: Sequence[Arrival]


@dataclass(frozen=True, slots=True)
class UserWindow:
    """A window to encode.

    Attributes:
        trigger: The event that moved it last.
        vector: The row's ``vector`` bytes, for the drift; None where there is none.
    """

    user_id: str
    state: UserState
    trigger: Trigger
    vector: bytes | None


@dataclass(frozen=True, slots=True)
class UserRow:
    """A user's row in the store."""

    vector: bytes
    recommendations: bytes
    state: bytes
    model: str
    updated_at: int


@dataclass(frozen=True, slots=True)
class UserUpdate:
    """What the engine gives back for one user.

    Attributes:
        row: The new row, its ``recommendations`` being the recommendation event as JSON; None where no event was
            applied, and so nothing changes.
        applied: The events that entered the window.
        repeats: Events dropped as repeats.
        late: Events dropped as older than a full window.
    """

    user_id: str
    row: UserRow | None
    applied: Sequence[Arrival]
    repeats: int
    late: int


@dataclass(slots=True)
class StageSeconds:
    """How long the stages took since this was made; the caller reads and drops it."""

    advance: float = 0.0
    encode: float = 0.0
    rank: float = 0.0
    recommend: float = 0.0


Rerank = Literal["none", "mmr", "dpp", "calibrated"]


@dataclass(frozen=True, slots=True)
class EngineRules:
    """What a person may set.

    Attributes:
        k: Items a recommendation.
        filter_seen: Leave out the items of the user's window.
        because: Items of the window to name with each recommended item.
        memory: Event ids remembered a user, beyond those in the window.
        generation: The namespace that recommendation ids are made in.
        mode: Whether events are new or replayed.
        exploration: How far the vectors that items are ranked by are drawn from those of the rows, in deviations of a
            variational model; 0 is not at all, 1 a sample of its posterior.
        rerank: How the list is chosen from the best items; "none" takes the best.
        rerank_pool: How many best items it is chosen from, at least k.
        diversity: What re-ranking gives up relevance for, 0 to 1 (`models.rerank`).
    """

    k: int
    filter_seen: bool
    because: int
    memory: int
    generation: str
    mode: Literal["live", "replay"] = "live"
    exploration: float = 0.0
    rerank: Rerank = "none"
    rerank_pool: int = 100
    diversity: float = 0.0


class Engine:
    """A model and rules; `evolve` is the one function that live serving, backfill and tests call.

    Args:
        bundle: The model.
        encoder: Its encoder.
        rules: What a person may set.
        scorer: Its scorer; None where items are scored by dot product.

    Raises:
        SettingsError: The rules ask for what this model cannot do.
        ValueError: A scorer without a bundle that has one, or the reverse.
    """

    def __init__(
        self, bundle: Bundle, encoder: VectorEncoder, rules: EngineRules, scorer: CandidateScorer | None = None
    ) -> None:
        if rules.exploration and bundle.golden.deviations is None:
            raise SettingsError(
                f"recommendations.exploration is {rules.exploration:g}, but the model {bundle.config.name!r} of "
                f"{bundle.path} is not variational: its encoder has no output deviation to draw from. Set it to 0, or "
                "serve a model that has one, such as vae"
            )
        if (scorer is None) != (bundle.scorer_path is None):
            raise ValueError("a scorer belongs to an engine if and only if its bundle has one")
        self._bundle = bundle
        self._encoder = encoder
        self._rules = rules
        self._scorer = scorer
        self._items = bundle.item_vectors
        self._unit_items = unit_vectors(bundle.item_vectors)
        self._rerank = _reranker(bundle, self._unit_items, rules)
        self._model = ModelName(bundle.config.name, bundle.config.version)

    @property
    def model_name(self) -> str:
        """What people call the model."""
        return self._model.name

    @property
    def window_rule(self) -> WindowRule:
        """How the model wants windows cut."""
        return self._bundle.config.window

    @property
    def model_version(self) -> str:
        """The version of the model that this engine serves, as rows carry it."""
        return self._model.version

    def verify(self) -> None:
        """Check that encoder and scorer still give right answers.

        Raises:
            EncoderFailed: They do not.
        """
        self._encoder.verify()
        if self._scorer is not None:
            self._scorer.verify()

    def evolve(self, users: Sequence[UserEvents], now_ms: int, seconds: StageSeconds | None = None) -> list[UserUpdate]:
        """Advance every user's window, encode it, rank the items and write the recommendation.

        Args:
            users: Each user once.
            now_ms: Written as ``updated_at`` and ``generated_at``.
            seconds: Where to add the time of each stage.

        Returns:
            One update a user, in the order given.

        Raises:
            InvalidState: A row's state cannot be read.
            NotFiniteError: A vector, a deviation or a score is NaN or infinity.
        """
        seconds = StageSeconds() if seconds is None else seconds
        clock = perf_counter()
        advances = [self.advance(user) for user in users]
        seconds.advance += perf_counter() - clock
        windows = [
            UserWindow(user.user_id, advance.state, trigger_of(advance.applied[-1]), user.vector)
            for user, advance in zip(users, advances, strict=True)
            if advance.applied
        ]
        rows = iter(self.encode(windows, now_ms, seconds))
        return [
            UserUpdate(
                user.user_id, next(rows) if advance.applied else None, advance.applied, advance.repeats, advance.late
            )
            for user, advance in zip(users, advances, strict=True)
        ]

    def advance(self, user: UserEvents) -> Advance[Arrival]:
        """A user's window with the new events in it; nothing is encoded.

        Raises:
            InvalidState: The row's state cannot be read.
        """
        state = EMPTY_STATE if user.state is None else decode_state(user.state)
        return advance_window(state, user.arrivals, self._bundle.config.window, self._rules.memory)

    def encode(self, windows: Sequence[UserWindow], now_ms: int, seconds: StageSeconds | None = None) -> list[UserRow]:
        """Encode windows, rank the items and write the recommendations.

        Args:
            windows: Each user once.
            now_ms, seconds: As for `evolve`.

        Returns:
            One row a window, in the order given.

        Raises:
            NotFiniteError: A vector, a deviation or a score is NaN or infinity.
        """
        seconds = StageSeconds() if seconds is None else seconds
        clock = perf_counter()
        inputs = self._inputs([window.state for window in windows])
        seconds.advance += perf_counter() - clock

        clock = perf_counter()
        deviations: Vectors | None = None
        if self._rules.exploration:
            vectors, deviations = self._encoder.encode_posterior(inputs)
        else:
            vectors = self._encoder.encode(inputs)
        if not np.isfinite(vectors).all() or (deviations is not None and not np.isfinite(deviations).all()):
            raise NotFiniteError("the encoder gave a vector with NaN or infinity")
        seconds.encode += perf_counter() - clock
        return self._rows(windows, inputs, vectors, deviations, now_ms, seconds)

    def _inputs(self, states: Sequence[UserState]) -> WindowInputs:
        config = self._bundle.config
        return window_inputs(states, self._bundle.vocabulary, config.types, config.window.max)

    def _rows(
        self,
        windows: Sequence[UserWindow],
        inputs: WindowInputs,
        vectors: Vectors,
        deviations: Vectors | None,
        now_ms: int,
        seconds: StageSeconds,
    ) -> list[UserRow]:
        clock = perf_counter()
        generation, version = self._rules.generation, self._model.version
        ids = [recommendation_id(generation, version, window.user_id, window.trigger) for window in windows]
        seconds.recommend += perf_counter() - clock

        clock = perf_counter()
        ranking = self._rank(self._explored(vectors, deviations, ids), inputs)
        because = closest_in_window(ranking.rows, inputs.items, self._unit_items, self._rules.because)
        drifts = _drifts(vectors, [window.vector for window in windows])
        seconds.rank += perf_counter() - clock

        clock = perf_counter()
        lists = self._lists(ranking.rows.tolist(), ranking.scores.tolist(), because.tolist())
        known = inputs.lengths.tolist()
        rows = []
        for place, window in enumerate(windows):
            recommendation = Recommendation(
                ids[place],
                window.user_id,
                now_ms,
                self._rules.mode,
                "personal" if known[place] else "popular",
                window.trigger,
                self._model,
                VectorSummary(vectors.shape[1], drifts[place]),
                lists[place] if known[place] else self._popular(window.state),
            )
            rows.append(
                UserRow(
                    vectors[place].tobytes(),
                    encode_recommendation(recommendation),
                    encode_state(window.state),
                    self._model.version,
                    now_ms,
                )
            )
        seconds.recommend += perf_counter() - clock
        return rows

    def _explored(self, vectors: Vectors, deviations: Vectors | None, ids: Sequence[str]) -> Vectors:
        """The vectors to rank by: μ + exploration · σ ⊙ ε, where ε follows from the recommendation's id."""
        if deviations is None:
            return vectors
        return vectors + np.float32(self._rules.exploration) * deviations * normals_of(ids, vectors.shape[1])

    def _rank(self, vectors: Vectors, inputs: WindowInputs) -> Ranking:
        rules = self._rules
        seen = inputs.items if rules.filter_seen else np.zeros((len(inputs), 1), np.int64)
        kept = rules.k if rules.rerank == "none" else max(rules.k, rules.rerank_pool)
        if self._scorer is None:
            pool = rank_items(vectors, self._items, seen, kept)
        else:
            # How many are scored does not depend on the pool, so that a diversity of 0 gives the list of no re-ranking.
            retrieved = max(self._bundle.config.candidates or 0, rules.k)
            score = _finite(self._scorer)
            pool = rank_candidates(vectors, self._items, seen, score, retrieved, min(kept, retrieved))
        return self._rerank(pool, inputs.items)

    def _lists(
        self, rows: list[list[int]], scores: list[list[float]], because: list[list[list[int]]]
    ) -> list[list[RecommendedItem]]:
        ids = self._bundle.vocabulary.ids
        return [
            [
                RecommendedItem(ids[row], rank, score, [ids[close] for close in reasons if close])
                for rank, (row, score, reasons) in enumerate(zip(*user, strict=True), start=1)
                if row > 0
            ]
            for user in zip(rows, scores, because, strict=True)
        ]

    def _popular(self, state: UserState) -> list[RecommendedItem]:
        seen = set(state.items) if self._rules.filter_seen else set()
        unseen = [item_id for item_id in self._bundle.config.popular if item_id not in seen]
        return [
            RecommendedItem(item_id, rank, None, []) for rank, item_id in enumerate(unseen[: self._rules.k], start=1)
        ]


def _finite(scorer: CandidateScorer) -> Score:
    def score(vectors: Vectors, candidates: IntArray) -> Vectors:
        scores = scorer.score(vectors, candidates)
        if not np.isfinite(scores).all():
            raise NotFiniteError("the scorer gave a score that is NaN or infinity")
        return scores

    return score


def _reranker(bundle: Bundle, unit_items: Vectors, rules: EngineRules) -> Callable[[Ranking, IntArray], Ranking]:
    """From the best items of each user and the rows of the windows to the lists."""
    match rules.rerank:
        case "none":
            return lambda pool, _: pool
        case "mmr":
            return lambda pool, _: rerank_mmr(pool, unit_items, rules.k, rules.diversity)
        case "dpp":
            return lambda pool, _: rerank_dpp(pool, unit_items, rules.k, rules.diversity)
        case "calibrated":
            topics = item_topics(bundle.metadata, bundle.vocabulary)
            if not topics.names:
                raise SettingsError(
                    f"recommendations.rerank is calibrated, but the bundle {bundle.path} names no topic of any item. "
                    "Export it with metadata, or take mmr or dpp"
                )
            return lambda pool, windows: rerank_calibrated(pool, windows, topics, rules.k, rules.diversity)


def trigger_of(newest: Arrival) -> Trigger:
    """How a recommendation names the event that led to it."""
    return Trigger(
        newest.event_id,
        newest.type,
        newest.item_id,
        newest.time_ms,
        newest.source.topic,
        newest.source.partition,
        newest.offset,
        newest.source.topic_id,
    )


def _drifts(vectors: Vectors, previous: Sequence[bytes | None]) -> list[float | None]:
    """Cosine distance of each vector to the one before; None without one, or where either has no direction."""
    size = vectors.shape[1] * 4
    # A vector of another length is of another model: no distance to it means anything.
    comparable = [old is not None and len(old) == size for old in previous]
    if not any(comparable):
        return [None] * len(previous)
    olds = np.frombuffer(
        b"".join(o if c and o is not None else bytes(size) for o, c in zip(previous, comparable, strict=True)), "<f4"
    )
    olds = olds.reshape(vectors.shape)
    norms = np.linalg.norm(olds, axis=1) * np.linalg.norm(vectors, axis=1)
    dots = (olds * vectors).sum(axis=1)
    cosine = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    distances = np.clip(1.0 - cosine, 0.0, 2.0).tolist()
    return [distance if norm > 0 else None for distance, norm in zip(distances, norms.tolist(), strict=True)]
