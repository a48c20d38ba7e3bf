"""The `pruning` section of a job: which method, how much it keeps, and its options."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pruning.registry import check_method

# A preset gives defaults only; a value that is written out wins over it. "default" is the field
# defaults below. "author" adds what the authors' runs do differently.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "author": {"merge_across_segments": True, "budget_coupling": "author", "max_block": None},
}


class PruningConfig(BaseModel):
    """A pruning method and its options; immutable, unknown keys are refused.

    All options below `preset` belong to HieraVid; the other methods have none.
    Raises pydantic's ValidationError (a ValueError) for a value outside its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field("hieravid", description="a registered method: hieravid, none, uniform or random")
    retention: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="mean over the decoder layers of (video tokens entering the MLP) / N",
    )
    preset: Literal["default", "author"] = Field("default", description="where unset options take their values from")

    tau: float = Field(0.6, ge=-1, le=1, description="cosine above which a token repeats its predecessor in time")
    beta: float = Field(0.4, ge=0, le=1, description="a frame that repeats a smaller share starts a new segment")
    merge_across_segments: bool = Field(False, description="may a token merge into one of the segment before")
    shape: Literal["author", "geometric"] = Field(
        "author", description="how kept shares fall from stage to stage: the authors' tables or gamma ** s"
    )
    gamma: float = Field(0.6, gt=0, le=1, description="ratio of one stage's share to the last, shape geometric only")
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
        1024, ge=2, description="longest run of tokens selected together; null: whole segments"
    )
    dpp_epsilon: float = Field(
        1e-6, ge=0, lt=1, description="selection by diversity ends at this fraction of the kernel's largest diagonal"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        """Put the preset's values in for options that were not given."""
        if not isinstance(given, dict):
            return given
        preset = given.get("preset")
        return {**PRESETS[preset], **given} if isinstance(preset, str) and preset in PRESETS else given

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        return check_method(method)
