"""Open a model (checkpoint folder, MLflow run, registered version) with its data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from videoblip2.captioner import Captioner, pick_device
from videoblip2.captions import DocumentFrequencies
from videoblip2.config import Config, DecodeConfig
from videoblip2.imports import import_transformers
from videoblip2.plugins import load_plugins
from videoblip2.tracking import FoundModel as FoundModel
from videoblip2.tracking import find_model as find_model
from videoblip2.tracking import model_config
from videoblip2.tracking import model_mark as model_mark

if TYPE_CHECKING:
    from videoblip2.features.store import FeatureStore
    from videoblip2.model.network import VideoBlip2

#: Where encoders are now, if they have moved: folder or hub name by kind, `clip` or `clap`.
Places = Mapping[str, str | None]


@dataclass(frozen=True)
class OpenModel:
    """A model and the data of its configuration. Each part is loaded on first use."""

    name: str  # MODEL as the user gave it
    folder: Path
    version: str  # `NAME/3`, `m-…` or the folder's name
    overrides: tuple[str, ...] = ()  # `key=value` on the configuration of its checkpoint
    device: str | None = None  # None = the configuration's
    encoders: Places = field(default_factory=dict)

    @cached_property
    def config(self) -> Config:
        """The configuration that it was trained with, and the overrides."""
        return model_config(self.name, self.folder, self.overrides)

    @cached_property
    def decode(self) -> DecodeConfig:
        """How it decodes by itself, even if the rest of its configuration does not fit this version."""
        return model_config(self.name, self.folder, self.overrides, only="decode").decode

    @cached_property
    def captioner(self) -> Captioner:
        """The network in eval mode on its device."""
        import_transformers()
        from videoblip2.model.checkpoint import load_checkpoint

        device = pick_device(self.device or self.config.device)
        checkpoint = load_checkpoint(self.folder)
        features = checkpoint.provenance.features
        features = features and features.stored_in(self.folder, self.encoders)
        provenance = checkpoint.provenance.model_copy(update={"features": features})
        network = checkpoint.model.to(device).eval()
        network.decoding = self.decode.decoding
        if self.device is None:
            network.compiled_decoding = self.decode.compile
        file = self.folder / "document_frequencies"
        frequencies = cache(lambda: DocumentFrequencies.load(file)) if file.is_file() else None
        return Captioner(network, checkpoint.tokenizers, provenance, self.name, self.version, frequencies)

    @cached_property
    def store(self) -> "FeatureStore":
        """The features of `data.features`. Raises InputError if they were made with encoders other than the model's."""
        return self.captioner.store(Path(self.config.data.features))

    def annotations(self, file: str) -> Path:
        """A file in `data.annotations`."""
        return Path(self.config.data.annotations) / file


def open_model(
    model: str | Path,
    overrides: Sequence[str] = (),
    device: str | None = None,
    found: FoundModel | None = None,
    encoders: Places | None = None,
) -> OpenModel:
    """MODEL (a checkpoint folder, an MLflow run, `models:/videoblip2@champion`) → the model with its data.

    Args:
        overrides: `key=value` on the configuration of its checkpoint, such as data.features=DIR.
        device: auto, cpu, cuda …; None = the configuration's.
        found: the earlier result of `find_model` for MODEL, since an alias may have moved.
    """
    load_plugins()  # not every process starts with `vb2`: the service, Ray's actors, `mlflow models serve`
    checkpoint = found or find_model(model)
    return OpenModel(str(model), checkpoint.folder, checkpoint.version, tuple(overrides), device, encoders or {})


def load(model: str | Path, device: str | None = None) -> "VideoBlip2":
    """MODEL → the network in eval mode."""
    return load_captioner(model, device).model


def load_captioner(model: str | Path, device: str | None = None, encoders: Places | None = None) -> Captioner:
    """MODEL → a Captioner on `device` (default: CUDA if available); see `open_model`."""
    return open_model(model, device=device or "auto", encoders=encoders).captioner
