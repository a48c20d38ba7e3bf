"""What a job file may say: one tree of sections, unknown keys refused.

Every field's description tells what is allowed; it is what a user reads after a mistake.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from pipeline.durations import seconds
from pipeline.uris import without_secrets
from pipeline.video.sampling import Backend, Policy
from pruning import PruningConfig

Task = Literal["caption", "qa"]
DEFAULT_CAPTION_PROMPT = "Describe the video."
MAX_FRAMES = 4096
BUDGETS = ("retention", "tokens_per_video", "flops_share", "gpu_hours", "deadline", "usd")
"""The keys of `budget` of which a job gives one."""


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
Count = Annotated[Integer, Field(ge=1)]
Actors = Count | tuple[Count, Count]
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
    """What a job or a video may cost: the only home of a job's amount. One of six ways to say it, else retention 1.

    A retention is derived from every one but `retention` itself (`is_derived`); it lies within the two bounds. What
    was derived is not kept here: this section is what was asked for.
    """

    # The order matters: whoever stands later complains of two that are given, and usd of a missing price.
    retention: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        None, description="a number above 0 and at most 1: mean share of video tokens kept over the layers"
    )
    tokens_per_video: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="a number above 0: video tokens kept of a video, mean over the layers"
    )
    flops_share: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        None, description="a number above 0 and at most 1: FLOPs of the language model's prefill, of the unpruned ones"
    )
    gpu_hours: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="a number above 0: hours of all answerers' GPUs together (without GPUs, of the answerers)"
    )
    deadline: Annotated[Number, Field(gt=0), BeforeValidator(seconds)] | None = Field(
        None, description="a length of time such as 6h, 90m or 1h30m, or a number of seconds"
    )
    usd_per_gpu_hour: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="a number above 0: the price of an hour of one GPU, which budget.usd needs"
    )
    usd: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="a number above 0: what the GPU-hours may cost, at budget.usd_per_gpu_hour"
    )
    min_retention: Number = Field(
        0.05, gt=0, le=1, description="a number above 0 and at most 1: the least retention that a budget may come to"
    )
    max_retention: Number = Field(
        1.0, gt=0, le=1, description="a number from budget.min_retention to 1: the most that a budget may come to"
    )
    adaptive: bool = Field(
        False,
        description="true or false: at the same mean, videos in which little happens keep less, down to half, and "
        "eventful ones more, up to twice; with budget.retention, tokens_per_video or flops_share",
    )

    @field_validator("retention", "tokens_per_video", "flops_share", "gpu_hours", "deadline", "usd")
    @classmethod
    def _one_of_them(cls, value: float | None, info: ValidationInfo) -> float | None:
        earlier = next((name for name in BUDGETS if info.data.get(name) is not None), None)
        if value is not None and earlier is not None:
            raise ValueError(f"budget.{earlier} is a budget already; give one (null takes the other back)")
        return value

    @field_validator("usd")
    @classmethod
    def _has_a_price(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("usd_per_gpu_hour", 0.0) is None:
            raise ValueError("budget.usd_per_gpu_hour is missing")
        return value

    @field_validator("max_retention")
    @classmethod
    def _above_the_least(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("min_retention", 0.0):
            raise ValueError(f"budget.min_retention is {info.data['min_retention']:g}")
        return value

    @field_validator("adaptive")
    @classmethod
    def _with_one_retention_for_all(cls, value: bool, info: ValidationInfo) -> bool:
        by_time = next((name for name in ("gpu_hours", "deadline", "usd") if info.data.get(name) is not None), None)
        if value and by_time:
            raise ValueError(f"budget.{by_time} moves the retention itself: it cannot be spent unevenly as well")
        return value

    @model_validator(mode="after")
    def _all_of_it_by_default(self) -> BudgetConfig:
        if all(getattr(self, name) is None for name in BUDGETS):
            self.__dict__["retention"] = 1.0  # the section is frozen for others
        return self

    @model_serializer(mode="wrap")
    def _what_was_asked(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the ways that were not taken; bounds only where they bound something."""
        silent = () if self.is_derived else ("min_retention", "max_retention")
        silent += () if self.adaptive else ("adaptive",)
        return {name: value for name, value in serialize(self).items() if value is not None and name not in silent}

    @property
    def is_derived(self) -> bool:
        """Whether the retention is yet to be worked out."""
        return self.retention is None

    @property
    def key(self) -> str:
        """The name of the one budget that was given."""
        return next(name for name in BUDGETS if getattr(self, name) is not None)


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

    decoders: Actors = Field(
        2,
        description="processes that fetch and decode: a whole number from 1 (so many as soon as they fit), or "
        "[fewest, most] (more of them while they have more to do than they can)",
    )
    answerers: Actors = Field(
        1,
        description="processes that hold the model: a whole number from 1 (so many as soon as they fit), or "
        "[fewest, most] (more of them while they have more to do than they can)",
    )
    gpus_per_answerer: Literal["auto"] | Annotated[Number, Field(ge=0)] = Field(
        "auto", description="auto (1 where the cluster has GPUs and the model may use them) or a number from 0"
    )
    batch_size: Integer = Field(
        8, ge=1, le=256, description="a whole number from 1 to 256: videos in work at an answerer"
    )
    rows_per_shard: Literal["auto"] | Annotated[Integer, Field(ge=1, le=65_536)] = Field(
        "auto",
        description="auto (64 to 4096, about 256 files a run) or a whole number from 1 to 65536: rows committed "
        "together, as one result file",
    )

    @field_validator("decoders", "answerers")
    @classmethod
    def _fewest_comes_first(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError(f"{value[0]} at least and {value[1]} at most")
        return value


class FailuresConfig(Section):
    """What failing videos do to the job."""

    max_failed_share: Number = Field(
        0.05, ge=0, le=1, description="a number from 0 to 1: with more failed rows than this share the job exits 1"
    )
    retries: Integer = Field(
        2,
        ge=0,
        description="a whole number from 0: further attempts at a fetch that failed, and at a video whose process died",
    )
    stall_timeout_s: Number = Field(
        1800.0, gt=0, description="a number of seconds above 0: with no progress at any stage for so long, the job ends"
    )


class ReportConfig(Section):
    """What a run keeps for its report."""

    samples: Integer = Field(
        8, ge=0, le=1000, description="a whole number from 0 to 1000: rows of which about so many pictures are kept"
    )


class JobConfig(Section):
    """A whole job, validated. `pruning` holds the budget's retention; one that is derived is put there by `settled`."""

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
    report: ReportConfig = Field(ReportConfig(), description="a section of keys and values")

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
        return {**value, "retention": budget.retention} if budget and not budget.is_derived else value

    @field_validator("pruning")
    @classmethod
    def _reaches_what_an_uneven_budget_gives(cls, value: PruningConfig, info: ValidationInfo) -> PruningConfig:
        budget = info.data.get("budget")
        if isinstance(budget, BudgetConfig) and budget.adaptive and value.method != "hieravid":
            raise ValueError(f"budget.adaptive needs hieravid, which reaches any retention, not {value.method}")
        return value

    @field_validator("generation")
    @classmethod
    def _fill_the_caption_prompt(cls, value: GenerationConfig, info: ValidationInfo) -> GenerationConfig:
        if value.prompt is None and info.data.get("task") == "caption":
            return value.model_copy(update={"prompt": DEFAULT_CAPTION_PROMPT})
        return value

    @field_serializer("pruning")
    def _leave_retention_to_the_budget(self, value: PruningConfig) -> dict[str, Any]:
        return value.model_dump(mode="json", exclude={"retention"})

    def settled(self, retention: float) -> JobConfig:
        """The same job with the retention that its derived budget has come to: the request stays what it was."""
        return self.model_copy(update={"pruning": self.pruning.model_copy(update={"retention": retention})})
