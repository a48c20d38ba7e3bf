"""The reference of job files beside the templates."""

from pathlib import Path

from pipeline.config_reference import reference

PAGE = Path(__file__).resolve().parents[2] / "configs" / "README.md"


def test_the_committed_page_is_current():
    assert PAGE.read_text() == reference(), "run: make docs"


def test_every_section_and_key_of_a_template_is_on_it():
    import yaml

    page = reference()
    for template in PAGE.parent.glob("*.yaml"):
        for section, keys in yaml.safe_load(template.read_text()).items():
            for key in keys if isinstance(keys, dict) else ():
                assert f"`{section}.{key}`" in page, f"{template.name}: {section}.{key}"
