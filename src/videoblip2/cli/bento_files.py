"""The folder that a Bento is built from.

serving/          the service                 model/            the checkpoint, its VERSION, and encoders/
videoblip2/       this package                requirements.txt  all it needs, pinned as installed here
bentofile.yaml
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import yaml

from videoblip2.errors import InputError
from videoblip2.files import shipped
from videoblip2.provenance import ENCODERS, Provenance

#: Not the package's name: BentoML first tries a tag as a module, and would import an installed videoblip2.
NAME = "videoblip2-service"
#: What serving imports; their own requirements are found in their metadata.
NEEDED = (
    "av",
    "bentoml",
    "fastapi",
    "filelock",
    "huggingface-hub",
    "numpy",
    "peft",
    "pillow",
    "prometheus-client",
    "pydantic",
    "python-multipart",
    "pyyaml",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
ENVIRONMENT = {"BENTOML_DO_NOT_TRACK": "True", "HF_HUB_OFFLINE": "1"}
LEFT_OUT = ("__pycache__", "*.pyc", "state", ".*")


@dataclass(frozen=True)
class Staged:
    """What the folder contains: the model's version, and whether its encoders are included."""

    version: str
    media: bool


def stage(model: str, folder: Path) -> Staged:
    """Copy everything a Bento of MODEL needs into `folder`. Raises InputError if something is missing."""
    import videoblip2
    from videoblip2.tracking import find_model

    found, ignore = find_model(model), shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(shipped("serving"), folder / "serving", ignore=ignore)
    shutil.copytree(found.folder, folder / "model", ignore=ignore)
    ignore = shutil.ignore_patterns(*LEFT_OUT, "serving", "experiments")  # an installed package holds both
    shutil.copytree(Path(videoblip2.__file__).parent, folder / "videoblip2", ignore=ignore)
    (folder / "model" / "VERSION").write_text(found.version + "\n", encoding="utf-8")
    media = bake_encoders(folder / "model")
    (folder / "requirements.txt").write_text("\n".join(pinned(NEEDED)) + "\n", encoding="utf-8")
    (folder / "bentofile.yaml").write_text(yaml.safe_dump(bentofile(), sort_keys=False), encoding="utf-8")
    return Staged(found.version, media)


def bake_encoders(checkpoint: Path) -> bool:
    """Copy the CLIP and CLAP that made the model's features to `checkpoint`/encoders; False where none are named.

    Raises InputError if one is not available, or is not the one that made the features.
    """
    features = Provenance.read(checkpoint).features
    if features is None or not all(kind in features.encoders and features.encoders[kind].name for kind in ENCODERS):
        return False
    from videoblip2.features.encoders import load_clap, load_clip

    chosen = features.settings.model_dump(include={"output", "tokens"}, exclude_unset=True)
    for kind, load, options in (("clip", load_clip, chosen), ("clap", load_clap, {})):
        target = checkpoint / "encoders" / kind
        encoder = features.encoders[kind]
        shutil.copytree(_encoder_folder(encoder.name, encoder.revision), target)
        found: str = load(target, **options).fingerprint
        if encoder.fingerprint not in (None, found):
            raise InputError(
                f"{encoder.name}: fingerprint {found}, but the model's features were made with "
                f"{encoder.fingerprint}; restore that encoder"
            )
    return True


def pinned(needed: Iterable[str], wanted: Iterable[str] = ()) -> list[str]:
    """`name==version`, as installed here, of these distributions and everything they require.

    A local label such as `+cpu` is left out, since no index has it: on a GPU machine pip installs the CUDA build.
    """
    from packaging.requirements import Requirement

    versions: dict[str, str] = {}
    missing: set[str] = set()
    waiting = [Requirement(name) for name in (*needed, *wanted)]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            missing.add(requirement.name)
            continue
        versions[distribution.name.lower().replace("_", "-")] = distribution.version.partition("+")[0]
        extras = requirement.extras or {""}
        for text in distribution.requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    if absent := missing & set(needed):
        raise InputError(f"{', '.join(sorted(absent))}: not installed; run `make setup`")
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def bentofile() -> dict[str, object]:
    """The build options: everything in the folder, exact requirements, a slim image that does not run as root."""
    return {
        "service": "serving.service:VideoBlip2Service",
        "name": NAME,
        "include": ["*"],
        "envs": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
        "python": {"requirements_txt": "requirements.txt", "lock_packages": False},
        "docker": {"distro": "debian", "python_version": "3.11"},
    }


def _encoder_folder(name: str, revision: str | None = None) -> Path:
    """A folder as it is; a hub name through the local cache, downloading it if necessary."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.bin"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise InputError(
            f"{name}: this model's encoder is neither a folder nor available from the hub "
            f"({type(error).__name__}); restore the folder, or package on a machine that can download it"
        ) from error
