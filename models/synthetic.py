"""Simulated visitors of a small shop, whose interests drift: data to learn from, and live traffic for a demo.

A visitor browses one topic after another and, within a topic, tends to go on to what belongs with the item before
(shoes, then socks, then gaiters), also on coming back to it from another. Topics come from the visitor's taste, and the
taste drifts. So what comes next depends on the order of many events: a sequence model can predict it, the last item
alone only in part, and popularity not at all.

Only `random.Random.random` is drawn from: Python guarantees its sequence for a seed, NumPy's distributions may change
with a version, and a published figure must stay reproducible.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from models.data.events import LoggedEvent
from models.errors import DataError
from models.spec import ItemMetadata

CLICK, VIEW = "click", "view"

# Within a topic the order is the order in which visitors tend to go on.
_TITLES = {
    "Trail running": (
        "Ridgeline trail shoe", "Merino crew socks", "Low gaiters", "Split shorts", "Handheld flask", "Race vest 5 L",
        "Soft flask 500 ml", "Salt capsules", "Energy gel citrus", "Chafe balm", "Sun cap", "Wrap sunglasses",
        "Wind shell", "Arm sleeves", "GPS watch", "Chest strap", "Headlamp 400 lm", "Spare battery pack",
        "Folding poles", "Pole quiver", "Rain jacket 10K", "Rain trousers", "Thermal tights", "Running gloves",
        "Micro spikes", "Foam roller", "Massage ball", "Recovery sandals", "Compression socks", "Race belt",
    ),
    "Espresso": (
        "Lever espresso machine", "Burr grinder", "Dosing funnel", "Distribution tool", "Calibrated tamper",
        "Tamping mat", "Bottomless portafilter", "Precision basket 18 g", "Puck screen", "Brew scale 0.1 g",
        "Espresso cups, pair", "Milk jug 350 ml", "Milk thermometer", "Latte art pen", "Knock box", "Group brush",
        "Backflush tablets", "Descaler", "Water filter jug", "Hardness test strips", "House blend 1 kg",
        "Ethiopia natural 250 g", "Colombia washed 250 g", "Decaf 250 g", "Bean vault", "Single-dose cellar",
        "Grinder brush", "Bar towels", "Cortado glasses", "Travel press",
    ),
    "Film photography": (
        "35 mm rangefinder", "50 mm lens", "Lens cleaning kit", "Colour negative 400", "Black and white 400",
        "Slide film 100", "Film case", "Light meter", "Leather strap", "Yellow filter", "Orange filter",
        "Lens hood", "Cable release", "Travel tripod", "Camera half case", "Shoulder bag", "Changing bag",
        "Developing tank", "Steel reels", "Film developer", "Stop bath", "Rapid fixer", "Wetting agent",
        "Film clips", "Negative sleeves", "Light pad", "Loupe 8x", "Scanning mask", "Archive binder", "Photo corners",
    ),
    "Balcony garden": (
        "Railing planter", "Terracotta pot 20 cm", "Pot feet", "Peat-free compost", "Perlite", "Tomato seedlings",
        "Basil seeds", "Chilli seeds", "Seed tray", "Propagator lid", "Plant labels", "Dibber", "Hand trowel",
        "Watering can 2 L", "Rose attachment", "Drip kit", "Water timer", "Tomato feed", "Bamboo canes",
        "Garden twine", "Plant clips", "Pruning snips", "Gardening gloves", "Slug collar", "Bee hotel",
        "Lavender plug", "Strawberry tower", "Worm bin", "Kneeling pad", "Frost fleece",
    ),
    "Sourdough": (
        "Starter jar", "Rye flour", "Strong white flour", "Wholemeal flour", "Kitchen scale", "Dough whisk",
        "Mixing bowl 5 L", "Dough scraper", "Bench knife", "Proofing box", "Probe thermometer", "Banneton round",
        "Banneton oval", "Linen couche", "Rice flour", "Scoring lame", "Spare blades", "Cast-iron pot",
        "Baking stone", "Bread peel", "Oven gloves", "Cooling rack", "Bread knife", "Bread bag", "Bread bin",
        "Sea salt flakes", "Malt powder", "Seed mix", "Baking book", "Sandwich tin",
    ),
    "Synthesizers": (
        "Mono synth", "Patch cables", "Cable tree", "Drum machine", "Step sequencer", "MIDI keyboard", "MIDI thru box",
        "Clock divider", "Eurorack case 84 HP", "Power module", "Oscillator module", "Filter module",
        "Envelope module", "VCA quad", "LFO module", "Reverb module", "Delay pedal", "Mixer 6-channel",
        "Audio interface", "Studio headphones", "Headphone stand", "Field recorder", "Desktop stand",
        "Dust cover", "Screw set", "Blank panels", "Sample pack", "Synthesis handbook", "Foam tiles", "Sustain pedal",
    ),
    "Bikepacking": (
        "Steel gravel frame", "Gravel tyre 45 mm", "Tubeless sealant", "Plug kit", "Mini pump", "Multi-tool",
        "Chain lube wet", "Spare link", "Frame bag", "Saddle bag 14 L", "Handlebar roll", "Top-tube bag",
        "Voile straps", "Fork cages", "Bottle 950 ml", "Filter bottle", "Dynamo hub", "Front light", "Rear light",
        "Power bank 10 Ah", "Bike computer", "Bib shorts", "Chamois cream", "Packable down", "One-person tent",
        "Sleeping quilt", "Inflatable mat", "Titanium stove", "Gas canister", "Titanium spork",
    ),
    "Board games": (
        "Harbour traders", "Harbour traders: storms", "Card sleeves", "Deck box", "Dice tower", "Metal coins",
        "Playmat", "Insert organiser", "Forest of owls", "Forest of owls: winter", "Tile bag", "Score pad",
        "Rail barons", "Rail barons: alps", "Paint set", "Detail brushes", "Primer spray", "Dungeon of echoes",
        "Echoes: bestiary", "Terrain tiles", "Initiative tracker", "Cooperative island", "Party words", "Sand timer",
        "Two-player duel", "Duel: second season", "Travel chess", "Go set", "Puzzle 1000 pieces", "Puzzle mat",
    ),
}  # fmt: skip

TOPICS = tuple(_TITLES)
ITEMS_PER_TOPIC = 30

_TASTE_FLOOR = 0.005
_FIRST_FAVOURITES = (0.5, 0.3, 0.2)
_NEW_FAVOURITE_SHARE = 0.7
_NEW_FAVOURITES_PER_EVENT = 0.1  # at drift 1; at drift 0 none
_STAY = {CLICK: 0.75, VIEW: 0.4}  # keep to the topic, by the type of the event before
_FOLLOW = 0.65  # within a topic, go on from the item before rather than to any popular one
_STEPS = (0.7, 0.9, 1.0)  # go on by one, two or three items: cumulative
_CLICKS = 0.4
_MEMORY = 60  # a visitor does not come back to an item within so many events
_SESSION_GAP_SECONDS = 45.0
_DAY_SECONDS = 86_400.0
_NEW_SESSION = 0.12
_START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z


def _item_id(topic: str, place: int) -> str:
    return f"{topic.lower().replace(' ', '-')}-{place + 1:02d}"


CATALOGUE: dict[str, ItemMetadata] = {
    _item_id(topic, place): ItemMetadata(title=title, topics=(topic,))
    for topic, titles in _TITLES.items()
    for place, title in enumerate(titles)
}
"""The shop's 240 items: id, such as "espresso-07", to title and topic."""

# Popularity falls as 1 / rank (Zipf). 7 and 30 share no factor, so popular items lie scattered along the order.
_POPULARITY = tuple(1.0 / (1 + place * 7 % ITEMS_PER_TOPIC) for place in range(ITEMS_PER_TOPIC))
_TOPIC_POPULARITY = tuple(1.0 / (2 + rank) for rank in range(len(TOPICS)))


class Visitor:
    """One simulated visitor, step by step.

    Args:
        user_id: Who.
        drift: How strongly interests drift, 0 (never) to 1 (a new favourite topic every ten events on average).
        rng: Where the behaviour comes from; not shared with another visitor if runs are to be repeated.

    Raises:
        DataError: `drift` outside 0 to 1.
    """

    def __init__(self, user_id: str, drift: float, rng: Random) -> None:
        if not 0.0 <= drift <= 1.0:
            raise DataError(f"drift must be between 0 (none) and 1 (strongest), not {drift}")
        self.user_id = user_id
        self.drift = drift
        self._rng = rng
        self._recent: deque[tuple[int, int]] = deque(maxlen=_MEMORY)
        self._last_place: dict[int, int] = {}
        self._last_type = VIEW
        self._taste = [_TASTE_FLOOR] * len(TOPICS)
        left = list(_TOPIC_POPULARITY)
        for share in _FIRST_FAVOURITES:
            favourite = _pick(rng, left)
            left[favourite] = 0.0
            self._taste[favourite] = share
        self._topic = _pick(rng, self._taste)
        self._events = 0

    @property
    def taste(self) -> dict[str, float]:
        """How likely each topic is when the visitor turns to another, summing to 1. Changes with every drift."""
        total = sum(self._taste)
        return {topic: weight / total for topic, weight in zip(TOPICS, self._taste, strict=True)}

    def next_event(self, now_ms: int) -> LoggedEvent:
        """What the visitor does now.

        Args:
            now_ms: The event's time, milliseconds since the epoch.
        """
        rng = self._rng
        if rng.random() < self.drift * _NEW_FAVOURITES_PER_EVENT:
            self._taste = _with_favourite(self._taste, int(rng.random() * len(TOPICS)))
        if rng.random() >= _STAY[self._last_type]:
            self._topic = _pick(rng, self._taste)
        topic, place = self._next_item()
        self._topic = topic
        self._last_place[topic] = place
        self._recent.append((topic, place))
        self._last_type = CLICK if rng.random() < _CLICKS else VIEW
        self._events += 1
        return LoggedEvent(
            user_id=self.user_id,
            item_id=_item_id(TOPICS[topic], place),
            type=self._last_type,
            time_ms=now_ms,
            event_id=f"{self.user_id}-{self._events:06d}",
        )

    def _next_item(self) -> tuple[int, int]:
        recent = set(self._recent)
        topic = self._topic
        if topic in self._last_place and self._rng.random() < _FOLLOW:
            step = 1 + bisect_right(_STEPS, self._rng.random())
            for further in range(ITEMS_PER_TOPIC):
                place = (self._last_place[topic] + step + further) % ITEMS_PER_TOPIC
                if (topic, place) not in recent:
                    return topic, place
        # The memory is shorter than the catalogue, so some topic always has an item left.
        weights = [0.0 if (topic, place) in recent else weight for place, weight in enumerate(_POPULARITY)]
        while not any(weights):
            topic = (topic + 1) % len(TOPICS)
            weights = [0.0 if (topic, place) in recent else weight for place, weight in enumerate(_POPULARITY)]
        return topic, _pick(self._rng, weights)


@dataclass(frozen=True, slots=True)
class LogPlan:
    """What makes a synthetic log; the same plan always makes the same log.

    Attributes:
        users: Visitors.
        events: Events a visitor.
        drift: How strongly interests drift, 0 to 1.
        seed: Fixes everything else.
    """

    users: int
    events: int
    drift: float
    seed: int


def generate_log(plan: LogPlan) -> Iterator[LoggedEvent]:
    """A log of simulated visitors, one after another, each in time order.

    No visitor comes back to an item within 60 events.

    Raises:
        DataError: Fewer than one user or event, or drift outside 0 to 1.
    """
    if plan.users < 1 or plan.events < 1:
        raise DataError(f"a log needs at least one user and one event each, not {plan.users} and {plan.events}")
    for number in range(plan.users):
        # A seed of its own for each visitor, so that more users or events leave the others as they are.
        rng = Random(f"{plan.seed}/{number}")
        visitor = Visitor(f"visitor-{number:05d}", plan.drift, rng)
        now_ms = _START_MS + int(rng.random() * 30 * _DAY_SECONDS * 1000)
        for _ in range(plan.events):
            yield visitor.next_event(now_ms)
            mean = _DAY_SECONDS if rng.random() < _NEW_SESSION else _SESSION_GAP_SECONDS
            now_ms += 1_000 + int(-math.log(1.0 - rng.random()) * mean * 1000)


def _with_favourite(taste: Sequence[float], favourite: int) -> list[float]:
    total = sum(taste)
    kept = [weight / total * (1.0 - _NEW_FAVOURITE_SHARE) for weight in taste]
    kept[favourite] += _NEW_FAVOURITE_SHARE
    return [max(weight, _TASTE_FLOOR) for weight in kept]


def _pick(rng: Random, weights: Sequence[float]) -> int:
    """An index with probability proportional to its weight."""
    cumulative = list(accumulate(weights))
    return min(bisect_right(cumulative, rng.random() * cumulative[-1]), len(weights) - 1)
