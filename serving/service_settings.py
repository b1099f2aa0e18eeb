"""What the service is told from outside: environment variables, read once when it starts."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from videoblip2.config import InputError, Section

CHAMPION = "models:/videoblip2@champion"
PREFIX = "VB2_"


class Settings(Section):
    """One environment variable a field: `max_batch` is VB2_MAX_BATCH."""

    model: str = Field(CHAMPION, description="MODEL to serve; an alias is followed, a folder is not")
    pin: int | None = Field(None, ge=1, description="a fixed version of the registered model, whatever is champion")
    shadow: str | None = Field(None, description="MODEL that captions along, logged and compared, never answered")
    shadow_log: Path | None = Field(None, description="JSON lines of what champion and shadow said")
    device: str = Field("auto", description="auto, cpu, cuda …")
    max_batch: int = Field(32, ge=1, description="captions (times beams) decoded at once")
    max_waiting: int = Field(256, ge=1, description="requests and captions in the house; more get 429")
    timeout_seconds: float = Field(60, gt=0, le=290, description="longest wait for an answer, then 504")
    poll_seconds: float = Field(1, gt=0, description="seconds between looks at the registry")

    @property
    def address(self) -> str:
        """MODEL with the pin applied: models:/NAME@ALIAS and 3 make models:/NAME/3."""
        if self.pin is None:
            return self.model
        name = self.model.removeprefix("models:/").partition("@")[0].partition("/")[0]
        return f"models:/{name}/{self.pin}"


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read VB2_* variables; an empty one counts as not set. Raises InputError naming the variable."""
    names = {name: f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    given = {name: environment[variable] for name, variable in names.items() if environment.get(variable)}
    if "pin" in given and not given.get("model", CHAMPION).startswith("models:/"):
        raise InputError(f"VB2_PIN={given['pin']}: VB2_MODEL={given['model']} has no versions; leave one of them out")
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = names[str(first["loc"][0])]
        message = first["msg"][0].lower() + first["msg"][1:]
        raise InputError(f"{name}={first['input']}: {message}; correct that environment variable") from error
