"""Which model bundle is served. Light: it imports no ONNX Runtime, which takes half a second and leaves a file."""

from pathlib import Path
from typing import Final

DEMO_BUNDLE: Final = Path(__file__).parent.parent / "demo" / "bundle"


def bundle_path(chosen: Path | None) -> Path:
    """The folder of the bundle that ``model.bundle`` (or ``--bundle``) names; without one the demo's."""
    return chosen or DEMO_BUNDLE
