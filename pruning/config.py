"""The `pruning` section of a job: which method, how much it keeps, and its options."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from pruning.registry import check_method

Level = Literal["segment", "frame", "layer"]
LEVELS: tuple[Level, ...] = ("segment", "frame", "layer")

# A preset gives defaults only; a value that is written out wins over it, and so does a calibration.
# "default" is the field defaults below. "author" adds what the authors' runs do differently.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "author": {"merge_across_segments": True, "budget_coupling": "author", "max_block": None},
}
# A preset says which options a config starts from, a calibration which file knows better: neither is one itself.
_NO_OPTIONS = ("method", "retention", "kv_retention", "preset", "calibration")
# What every method knows, since the engine does it.
OF_ALL = ("method", "retention", "kv_retention")


class PruningConfig(BaseModel):
    """A pruning method and its options; immutable, unknown keys are refused.

    All options below `kv_retention` belong to HieraVid; the other methods have none. An option takes its
    value from the field default, over it the preset, over it the calibration, over it what is written
    out; with neither preset nor calibration from the author preset. Here a calibration is only named:
    `pruning.calibration` applies it, and until then the options read as without one.
    Raises pydantic's ValidationError (a ValueError) for a value outside its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The method stands first: the validator of each option sees it.
    method: str = Field("hieravid", description="a registered method")
    retention: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="mean over the decoder layers of (video tokens entering the MLP) / N",
    )
    kv_retention: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="above 0 and at most 1: share of each layer's video entries kept in the KV cache after prefill",
    )
    preset: Literal["default", "author"] | None = Field(
        None,
        description="default or author: where unset options take their values from; null: the calibration, else author",
    )
    calibration: str | None = Field(
        "auto",
        min_length=1,
        description="a file that jobs.evaluate calibrate wrote, auto (the model's own, if no preset is named) or null",
    )

    levels: tuple[Level, ...] = Field(
        LEVELS, min_length=1, description="which of segment, frame and layer are on, at least one"
    )
    tau: float = Field(
        0.6, ge=-1, le=1, description="from -1 to 1: cosine above which a token repeats its predecessor in time"
    )
    beta: float = Field(0.4, ge=0, le=1, description="from 0 to 1: a frame that repeats less starts a new segment")
    segments: int | None = Field(
        None, ge=1, description="a whole number from 1: cut at the frames that repeat least; null: by beta"
    )
    merge_share: float = Field(
        1.0, ge=0, le=1, description="from 0 to 1: of the tokens that leave at the input, at most this share merges"
    )
    merge_across_segments: bool = Field(False, description="may a token merge into one of the segment before")
    shape: Literal["author", "geometric"] = Field(
        "author", description="how kept shares fall from stage to stage: the authors' tables or gamma ** s"
    )
    gamma: float = Field(
        0.6, gt=0, le=1, description="above 0 and at most 1: ratio of one stage's share to the last, shape geometric"
    )
    selection: Literal["dpp", "relevance", "uniform"] = Field(
        "dpp", description="what stays in a segment: relevant and diverse, most relevant, or evenly spaced tokens"
    )
    relevance_sign: Literal["positive", "negative"] = Field(
        "negative", description="prefer tokens with much or with little attention from the last prompt token"
    )
    relevance_transform: Literal["minmax", "rank", "exp"] = Field(
        "minmax", description="how signed attention becomes a weight"
    )
    budget_coupling: Literal["exact", "author"] = Field(
        "exact", description="exact: the mean share is solved for after clipping; author: it is the stage's share"
    )
    max_block: int | None = Field(
        1024,
        ge=2,
        description="a whole number from 2: most tokens selected together; null: whole segments, up to 8192",
    )
    projection: int | None = Field(
        None, ge=1, description="a whole number from 1: dimensions that features are projected to for dpp; null: none"
    )
    dpp_epsilon: float = Field(
        1e-6, ge=0, lt=1, description="from 0 to 1: diversity ends at this fraction of the kernel's largest diagonal"
    )

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        return check_method(method)

    @field_validator("*", mode="before")
    @classmethod
    def _fits_field_and_method(cls, value: Any, info: ValidationInfo) -> Any:
        name, method = str(info.field_name), info.data.get("method", "hieravid")
        # YAML reads yes and on as truth values, and pydantic would take those for 1.
        if isinstance(value, bool) and cls.model_fields[name].annotation is not bool:
            raise ValueError("a truth value is not allowed")
        asks_nothing = name in ("preset", "calibration") and value in (None, "auto")
        if method != "hieravid" and name not in OF_ALL and not asks_nothing:
            raise ValueError(f"an option of hieravid, not of {method}")
        return value

    @field_validator("levels")
    @classmethod
    def _in_order_without_repeats(cls, levels: tuple[Level, ...]) -> tuple[Level, ...]:
        return tuple(level for level in LEVELS if level in levels)

    @model_validator(mode="after")
    def _fill_from_preset(self) -> PruningConfig:
        """Give options that are not written out the preset's values; they still count as unset."""
        for name, value in PRESETS[self.preset or "author"].items():
            if name not in self.model_fields_set:
                self.__dict__[name] = value  # the model is frozen for others
        return self

    @model_serializer(mode="wrap")
    def _leave_out_options_of_others(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = serialize(self)
        if self.method != "hieravid":
            return {name: value for name, value in fields.items() if name in OF_ALL}
        return fields


def option_names() -> tuple[str, ...]:
    """The options that a preset, a calibration and a job file may set."""
    return tuple(name for name in PruningConfig.model_fields if name not in _NO_OPTIONS)


def written_out(config: PruningConfig) -> dict[str, Any]:
    """The options that a config sets itself, in place of a preset or a calibration."""
    return {name: getattr(config, name) for name in option_names() if name in config.model_fields_set}
