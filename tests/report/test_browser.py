"""The page in a real browser: nothing is loaded, nothing runs, nothing overflows, everything is there."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.report.found import find_run
from pipeline.report.page import make_report
from tests.report.runs import RUN_A, RUN_B, answered, failed, write_run
from tests.report.test_report import HOSTILE, SECTIONS
from tests.report.test_samples import write_one

ASK = {
    "width": "document.documentElement.scrollWidth",
    "title": "document.title",
    "text": "document.body.innerText",
    "headings": "[...document.querySelectorAll('h1,h2,h3')].map(e => Number(e.tagName[1]))",
    "sections": "[...document.querySelectorAll('section')].map(e => e.id)",
    "captions": "[...document.querySelectorAll('table')].every(e => e.caption && e.caption.textContent)",
    "images": "[...document.images].map(e => [e.alt.length > 20, e.naturalWidth > 0])",
    "background": "getComputedStyle(document.documentElement).backgroundColor",
    "reachable": "[...document.querySelectorAll('.scroll, pre')].every(e => e.tabIndex === 0)",
    # colour contrast of every element with text of its own, as WCAG computes it, without see-through bars
    "contrast": """(() => {
        const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b };
        const ground = e => { const c = getComputedStyle(e).backgroundColor;
            return c === 'rgba(0, 0, 0, 0)' && e.parentElement ? ground(e.parentElement) : c };
        let least = 99;
        for (const e of document.querySelectorAll('body *')) {
            if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
            const style = getComputedStyle(e), back = ground(e);
            const pair = [light(e.namespaceURI.endsWith('svg') ? style.fill : style.color), light(back)];
            least = Math.min(least, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05));
        }
        return least })()""",
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run with failures, hostile texts and samples, alone and beside another; and one that has just begun."""
    folder = tmp_path_factory.mktemp("pages")
    out = str(folder / "out")
    rows = [answered(n, answer=text, prompt=text, video_id=text, total_ms=1e5) for n, text in enumerate(HOSTILE)]
    rows += [failed(100 + n, error_message=text, uri=f"/a/{text}", video_id=text) for n, text in enumerate(HOSTILE)]
    rows += [answered(200 + n) for n in range(60)] + [answered(300, answer="w" * 5000, video_id="v" * 500)]
    first = write_run(out, rows, RUN_A)
    write_run(out, [row | {"answer": "another"} for row in rows], RUN_B)
    for number, text in enumerate(HOSTILE[:2]):
        write_one(f"{first}/samples", f"{number}", text)
    begun = write_run(str(folder / "begun"), [], planned=4, exit_status=None)
    for name, runs in {"one": [first], "two": [first, f"{out}/runs/{RUN_B}"], "begun": [begun]}.items():
        (folder / f"{name}.html").write_text(make_report([find_run(run) for run in runs]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["one", "two", "begun"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (390, "light"), (320, "light")])
def test_a_page_is_complete_and_quiet_at_any_width(browser, pages, name, width, scheme):
    page = pages / f"{name}.html"
    opened = browser.open(page, width, scheme, ASK)
    told = opened.values
    assert opened.messages == []
    assert [uri for uri in opened.requests if not uri.startswith("data:")] == [page.as_uri()]
    assert told["width"] == width
    assert [section for section in told["sections"] if section != "compare"] == SECTIONS
    assert "nightly" in told["title"]
    assert "owned" not in told["title"]
    assert told["headings"][0] == 1
    assert told["headings"].count(1) == 1
    assert told["captions"] is True
    assert told["reachable"] is True
    assert told["contrast"] >= 4.5
    assert told["images"] == [[True, True]] * (0 if name == "begun" else 2)
    if name != "begun":
        assert "<script>document.title='owned'</script>" in told["text"]
        assert "<img src=x onerror=alert(1)>" in told["text"]


def test_dark_is_dark_and_print_is_light(browser, pages):
    def brightness(**how):
        picture = np.asarray(Image.open(io.BytesIO(browser.open(pages / "one.html", **how).picture)).convert("L"))
        return np.median(picture)

    assert brightness(scheme="dark") < 60
    assert brightness(scheme="light") > 220
    assert brightness(scheme="dark", media="print") > 220
