"""The ready-made questions to results. Each is SQL over the view `results`, and can be copied and changed.

`results` has the columns of `pipeline.result_schema`, the carried ones and `run_date`; with several
runs, files that lack a column have nulls in it. `cost` takes the parameter `$usd`; `diff` reads the
views `a` and `b`, the rows of the two runs, and `planned`, what the manifest asked for each row.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """What a ready-made question tells, and its SQL."""

    purpose: str
    sql: str


_FAILURES = """
SELECT error_stage, error_code, count(*) AS rows,
       round(count(*) / (SELECT count(*) FROM results), 4) AS share,
       count(DISTINCT video_id) AS videos,
       any_value(uri) AS example, any_value(error_message) AS message
FROM results WHERE status = 'error'
GROUP BY error_stage, error_code
ORDER BY rows DESC, error_code
"""

_SLOWEST = """
SELECT video_id, status, round(total_ms) AS total_ms, round(fetch_ms) AS fetch_ms, round(decode_ms) AS decode_ms,
       round(wait_ms) AS wait_ms, round(vision_ms) AS vision_ms, round(prune_ms) AS prune_ms,
       round(prefill_ms) AS prefill_ms, round(generate_ms) AS generate_ms, duration_s, frames, uri, run_id
FROM results WHERE total_ms IS NOT NULL
ORDER BY results.total_ms DESC, video_id LIMIT 20
"""

_RETENTION = """
SELECT run_id, model, pruning_method, retention_requested, count(*) AS rows,
       round(avg(retention_achieved), 4) AS mean, round(min(retention_achieved), 4) AS least,
       round(max(retention_achieved), 4) AS most, sum(video_tokens)::BIGINT AS video_tokens,
       round(sum(video_tokens * retention_achieved))::BIGINT AS kept_tokens,
       round(avg(flops_ratio), 4) AS flops_ratio, round(avg(kv_ratio), 4) AS kv_ratio
FROM results WHERE status = 'ok'
GROUP BY ALL ORDER BY run_id, retention_requested
"""

# Fetching and decoding are CPU work wherever the model ran; an hour of the others is one of the row's device.
_COST = """
WITH stages AS (
    UNPIVOT (SELECT run_id, device, fetch_ms, decode_ms, vision_ms, prune_ms, prefill_ms, generate_ms FROM results)
    ON fetch_ms, decode_ms, vision_ms, prune_ms, prefill_ms, generate_ms INTO NAME stage VALUE ms
), busy AS (
    SELECT run_id, replace(stage, '_ms', '') AS stage, ms,
           CASE WHEN stage IN ('fetch_ms', 'decode_ms') OR starts_with(device, 'cpu') THEN 'cpu'
                ELSE 'gpu' END AS device
    FROM stages
)
SELECT run_id, stage, device, round(sum(ms) / 1e3, 3) AS busy_s, round(sum(ms) / 3.6e6, 6) AS busy_hours,
       round(sum(ms) / sum(sum(ms)) OVER (PARTITION BY run_id), 4) AS share,
       round(CASE WHEN device = 'gpu' THEN sum(ms) / 3.6e6 * $usd::DOUBLE END, 4) AS usd
FROM busy
GROUP BY run_id, stage, device ORDER BY run_id, busy_s DESC
"""

PAIRS = """
WITH asked AS (
    SELECT 'a' AS side, a.*, planned.start_s, planned.end_s, planned.row
    FROM a LEFT JOIN planned USING (run_id, item_id)
    UNION ALL BY NAME
    SELECT 'b' AS side, b.*, planned.start_s, planned.end_s, planned.row
    FROM b LEFT JOIN planned USING (run_id, item_id)
), prompts AS (
    SELECT *, min(prompt) OVER one_side IS NOT DISTINCT FROM max(prompt) OVER one_side AS has_one_prompt
    FROM asked WINDOW one_side AS (PARTITION BY side, video_id, start_s, end_s)
), named AS (
    SELECT *, CASE WHEN bool_and(has_one_prompt) OVER (PARTITION BY video_id, start_s, end_s) THEN ''
                   ELSE coalesce(prompt, '') END AS asks
    FROM prompts
), rows AS (
    SELECT side, video_id, prompt, start_s, end_s, asks, answer, status, error_code, video_tokens,
           row_number() OVER (PARTITION BY side, video_id, start_s, end_s, asks ORDER BY run_id, row, item_id) AS n,
           video_tokens * retention_achieved AS kept_tokens,
           coalesce(fetch_ms, 0) + coalesce(decode_ms, 0) + coalesce(vision_ms, 0) + coalesce(prune_ms, 0)
               + coalesce(prefill_ms, 0) + coalesce(generate_ms, 0) AS busy_ms
    FROM named
), one AS (SELECT * FROM rows WHERE side = 'a'), other AS (SELECT * FROM rows WHERE side = 'b')
SELECT coalesce(one.video_id, other.video_id) AS video_id, one.prompt AS prompt_a, other.prompt AS prompt_b,
       coalesce(one.start_s, other.start_s) AS start_s, coalesce(one.end_s, other.end_s) AS end_s,
       coalesce(one.n, other.n) AS n,
       CASE WHEN other.status IS NULL THEN 'only in A' WHEN one.status IS NULL THEN 'only in B'
            WHEN one.status = 'ok' AND other.status = 'error' THEN 'fails in B'
            WHEN one.status = 'error' AND other.status = 'ok' THEN 'failed in A'
            WHEN one.answer IS DISTINCT FROM other.answer THEN 'answer'
            WHEN one.error_code IS DISTINCT FROM other.error_code THEN 'error code' END AS change,
       one.answer AS answer_a, other.answer AS answer_b, one.error_code AS error_a, other.error_code AS error_b,
       round(one.kept_tokens) AS kept_tokens_a, round(other.kept_tokens) AS kept_tokens_b,
       round(one.busy_ms, 1) AS busy_ms_a, round(other.busy_ms, 1) AS busy_ms_b
FROM one FULL JOIN other
  ON one.video_id IS NOT DISTINCT FROM other.video_id AND one.start_s IS NOT DISTINCT FROM other.start_s
 AND one.end_s IS NOT DISTINCT FROM other.end_s AND one.asks = other.asks AND one.n = other.n
"""
"""The rows of two runs side by side, as the view `pairs`; `change` is null where both say the same.

Item ids hold the fingerprint, so rows meet by video, range, prompt and their number among equal ones;
where both runs ask a video one thing each, they meet though the prompt was changed."""

PAIRS_SUMMARY = """
SELECT count(*) FILTER (in_both) AS in_both, count(*) FILTER (in_both AND change IS NOT NULL) AS changed,
       count(*) FILTER (change = 'only in A') AS only_a, count(*) FILTER (change = 'only in B') AS only_b,
       sum(kept_tokens_a) FILTER (in_both) AS kept_a, sum(kept_tokens_b) FILTER (in_both) AS kept_b,
       sum(busy_ms_a) FILTER (in_both) / 1e3 AS busy_a, sum(busy_ms_b) FILTER (in_both) / 1e3 AS busy_b
FROM (SELECT *, change IS NULL OR NOT starts_with(change, 'only') AS in_both FROM pairs)
"""

QUESTIONS = {
    "failures": Question("why rows failed: stage, code, how many, an example", _FAILURES),
    "slowest": Question("the 20 rows that took longest, and where", _SLOWEST),
    "retention": Question("tokens kept, asked for and achieved, and what that saved", _RETENTION),
    "cost": Question("busy time by stage and device; money with --usd-per-gpu-hour", _COST),
    "diff": Question(
        "the rows whose outcome differs between two runs, with tokens and time",
        "SELECT * FROM pairs WHERE change IS NOT NULL ORDER BY video_id, start_s, n",
    ),
}
"""The ready-made questions by name."""
