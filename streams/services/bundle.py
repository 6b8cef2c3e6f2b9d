"""Which model bundle is served. Light: it imports no ONNX Runtime, which takes half a second and leaves a file."""

from pathlib import Path
from typing import Final

from models.bundle import Bundle, read_bundle
from models.errors import BundleError
from streams.contracts.generation import Generation, Serving
from streams.settings import Settings

DEMO_BUNDLE: Final = Path(__file__).parent.parent / "demo" / "bundle"


def bundle_path(chosen: Path | None) -> Path:
    """The folder of the bundle that ``model.bundle`` (or ``--bundle``) names; without one the demo's."""
    return chosen or DEMO_BUNDLE


def find_bundle(settings: Settings, serving: Serving, record: Generation | None) -> Bundle:
    """The bundle of the version that is served; until one was activated, that of the settings.

    A version is looked for in the settings' bundle, in the registry, and where it was when its generation was begun.

    Raises:
        BundleError: It is in none of these, or broken.
    """
    configured = bundle_path(settings.model.bundle)
    if not serving.model:
        return read_bundle(configured)
    looked: list[str] = []
    places: list[Path] = [configured]
    if settings.model.registry is not None:
        places.append(settings.model.registry / serving.model)
    if record is not None and record.model == serving.model:
        places.append(Path(record.bundle))
    for place in places:
        try:
            bundle = read_bundle(place)
        except BundleError as error:
            looked.append(f"{place}: {error}")
            continue
        if bundle.config.version != serving.model:
            looked.append(f"{place} is version {bundle.config.version}")
            continue
        return bundle
    raise BundleError(
        f"generation {serving.generation} is served with model version {serving.model}, which is not here: "
        f"{'; '.join(looked)}. Put it where this machine finds it: model.bundle, or a folder {serving.model} in model.registry"
    )
