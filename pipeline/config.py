"""What a job file may say: one tree of sections, unknown keys refused.

Every field's description tells what is allowed; it is what a user reads after a mistake.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_serializer, field_validator

from pipeline.uris import without_secrets
from pipeline.video.sampling import Backend, Policy
from pruning import PruningConfig

Task = Literal["caption", "qa"]
DEFAULT_CAPTION_PROMPT = "Describe the video."
MAX_FRAMES = 4096


def _no_truth_value(value: Any) -> Any:
    # YAML reads yes, no, on and off as truth values, and pydantic would take those for 1 and 0.
    if isinstance(value, bool):
        raise ValueError("a truth value is not a number")
    return value


def _no_secrets(uri: str) -> str:
    if without_secrets(uri) != uri:
        raise ValueError("credentials and signatures do not belong in a uri: use the environment")
    return uri


Integer = Annotated[int, BeforeValidator(_no_truth_value)]
Number = Annotated[float, BeforeValidator(_no_truth_value), Field(allow_inf_nan=False)]
Location = Annotated[
    str, Field(min_length=1), BeforeValidator(lambda uri: _no_secrets(uri) if isinstance(uri, str) else uri)
]


class Section(BaseModel):
    """A section of the job file: frozen, every key known."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


class VideoConfig(Section):
    """Which frames are taken, and what decoding them may cost."""

    frames: Literal["auto"] | Annotated[Integer, Field(ge=1, le=MAX_FRAMES)] = Field(
        "auto", description=f"auto (what the model was trained for) or a whole number from 1 to {MAX_FRAMES}"
    )
    policy: Policy = Field(
        "keyframe",
        description="keyframe (evenly spread, at a keyframe where one is near), uniform (evenly spread, exact), "
        "fps (video.fps frames a second, video.frames at most) or scene (spread over the scenes between cuts)",
    )
    fps: Number = Field(1.0, gt=0, description="a number above 0: frames a second under the policy fps")
    backend: Backend = Field(
        "auto", description="auto (PyAV, and decord for a second opinion where that fails), decord or pyav"
    )
    decode_timeout_s: Number = Field(
        120.0, gt=0, description="a number of seconds above 0, allowed for each video; long ones get more"
    )
    decoder_memory_mb: Integer = Field(
        4096, ge=512, description="a whole number of MiB from 512: of one decoding process; each decoder has two"
    )


class ModelConfig(Section):
    """The VideoLLM."""

    source: Location = Field(
        "builtin:tiny",
        description="builtin:tiny, or a model in the Hugging Face layout: a folder, an s3:// prefix or a hub id "
        "(owner/name, owner/name@revision)",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto (float32 on a CPU, bfloat16 on a GPU), float32, bfloat16 or float16"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto (a GPU where there is one), cpu or cuda")
    quantization: Literal["none", "int8", "fp8"] = Field(
        "none", description="none, int8 or fp8 (weights of the language model; fp8 on GPUs that have it)"
    )
    max_positions: Annotated[Integer, Field(ge=1)] | None = Field(
        None, description="null (as many positions as the model was trained for) or a whole number from 1"
    )


class BudgetConfig(Section):
    """What a video may cost: the only home of a job's amount."""

    retention: Number = Field(
        1.0, gt=0, le=1, description="a number above 0 and at most 1: mean share of video tokens kept over the layers"
    )


class GenerationConfig(Section):
    """What is asked, and how the answer is sampled."""

    prompt: Annotated[str, Field(min_length=1)] | None = Field(
        None, description=f"a text; captions default to {DEFAULT_CAPTION_PROMPT!r}, questions to the manifest's own"
    )
    max_new_tokens: Integer = Field(128, ge=1, description="a whole number from 1")
    temperature: Number = Field(0.0, ge=0, description="a number from 0; 0 takes the likeliest token each time")
    top_p: Number = Field(1.0, gt=0, le=1, description="a number above 0 and at most 1")
    seed: Integer = Field(0, ge=0, lt=2**63, description="a whole number from 0")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), max_length=16, description="a list of at most 16 texts, none empty: an answer ends before the first of them"
    )
    time_instruction: bool = Field(
        False,
        description="true or false: tell the model when its frames were shown, in the words that it was trained with",
    )


class ClusterConfig(Section):
    """How many workers there are, and how the work is cut for them."""

    decoders: Integer = Field(2, ge=1, description="a whole number from 1: processes that fetch and decode")
    answerers: Integer = Field(1, ge=1, description="a whole number from 1: processes that hold the model")
    gpus_per_answerer: Literal["auto"] | Annotated[Number, Field(ge=0)] = Field(
        "auto", description="auto (1 where the cluster has GPUs and the model may use them) or a number from 0"
    )
    batch_size: Integer = Field(8, ge=1, description="a whole number from 1: videos in work at an answerer")
    rows_per_shard: Literal["auto"] | Annotated[Integer, Field(ge=1, le=65_536)] = Field(
        "auto",
        description="auto (64 to 4096, about 256 files a run) or a whole number from 1 to 65536: rows committed "
        "together, as one result file",
    )


class FailuresConfig(Section):
    """What failing videos do to the job."""

    max_failed_share: Number = Field(
        0.05, ge=0, le=1, description="a number from 0 to 1: with more failed rows than this share the job exits 1"
    )
    retries: Integer = Field(
        2, ge=0, description="a whole number from 0: further attempts on a row whose workers failed"
    )
    stall_timeout_s: Number = Field(
        1800.0, gt=0, description="a number of seconds above 0: with no progress at any stage for so long, the job ends"
    )


class JobConfig(Section):
    """A whole job, validated. `pruning` already holds the budget's retention."""

    # The order matters: a field's validator sees the fields above it.
    task: Task = Field(description="caption or qa")
    name: str = Field(
        "job", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="letters, digits, dot, dash, underscore"
    )
    manifest: Location = Field(
        description="a .parquet, .jsonl or .csv file, a folder or a glob of videos, local or s3://"
    )
    output: Location = Field(description="a folder, local or s3://")
    video: VideoConfig = Field(VideoConfig(), description="a section of keys and values")
    model: ModelConfig = Field(ModelConfig(), description="a section of keys and values")
    budget: BudgetConfig = Field(BudgetConfig(), description="a section of keys and values")
    pruning: PruningConfig = Field({}, description="a section of keys and values")  # type: ignore[assignment]  # validated below
    generation: GenerationConfig = Field(GenerationConfig(), description="a section of keys and values")
    cluster: ClusterConfig = Field(ClusterConfig(), description="a section of keys and values")
    failures: FailuresConfig = Field(FailuresConfig(), description="a section of keys and values")

    @field_validator("pruning", mode="before")
    @classmethod
    def _take_retention_from_the_budget(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, PruningConfig):
            # What the preset gave stays unset: a calibration still wins over it.
            value = value.model_dump(exclude_unset=True, exclude={"retention"})
        if not isinstance(value, dict):
            return value
        if "retention" in value:
            raise ValueError("retention is set as budget.retention")
        if isinstance(value.get("calibration"), str):
            _no_secrets(value["calibration"])
        budget = info.data.get("budget")
        return {**value, "retention": budget.retention} if budget else value

    @field_validator("generation")
    @classmethod
    def _fill_the_caption_prompt(cls, value: GenerationConfig, info: ValidationInfo) -> GenerationConfig:
        if value.prompt is None and info.data.get("task") == "caption":
            return value.model_copy(update={"prompt": DEFAULT_CAPTION_PROMPT})
        return value

    @field_serializer("pruning")
    def _leave_retention_to_the_budget(self, value: PruningConfig) -> dict[str, Any]:
        return value.model_dump(mode="json", exclude={"retention"})
