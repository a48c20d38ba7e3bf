"""README and runbook of infra/: what they name exists."""

import re
from pathlib import Path

from pipeline.errors import ERROR_CODES
from tests.infra.files import INFRA, ROOT, cluster, schedule
from tests.infra.panels import OURS, dashboard, rules

README = (INFRA / "README.md").read_text()
RUNBOOK = (INFRA / "runbook.md").read_text()


def test_the_runbook_names_panels_metrics_and_error_codes_that_exist():
    titles = {panel["title"] for panel in dashboard()["panels"]}
    named = set(re.findall(r"[Pp]anel \*([^*]+)\*", RUNBOOK))
    assert named
    assert named <= titles
    assert set(re.findall(r"\bray_hieravid_\w+", RUNBOOK)) <= {name.removesuffix("_bucket") for name in OURS}
    table = RUNBOOK.partition("| code | lever |")[2].partition("\n\n")[0]
    codes = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert codes
    assert codes <= set(ERROR_CODES)


def test_the_runbook_names_sections_that_reports_have():
    parts = "\n".join(path.read_text() for path in Path(ROOT, "pipeline", "report").glob("*.py"))
    for title in re.findall(r"report, \*([^*]+)\*", RUNBOOK):
        assert f'"{title}"' in parts, title


def test_alerts_lead_to_a_place_of_the_runbook_and_documents_to_an_alert():
    names = {rule["alert"] for rule in rules()}
    assert set(re.findall(r"\bHieravid[A-Z]\w+", README + RUNBOOK)) <= names
    for rule in rules():
        for heading in re.findall(r'See "([^"]+)"|see "([^"]+)"', rule["annotations"]["description"]):
            assert f"## {''.join(heading)}\n" in RUNBOOK


def test_settings_of_the_manifests_that_are_named_exist():
    spec = schedule()["spec"]["jobTemplate"]
    for name in ("activeDeadlineSeconds", "backoffLimit", "preRunningDeadlineSeconds", "ttlSecondsAfterFinished"):
        assert f"`{name}`" in README + RUNBOOK
        assert name in spec
    assert "idleTimeoutSeconds" in cluster()["spec"]["autoscalerOptions"]
